"""Masks drawn from rectangles."""

import torch

import nodes

_OPERATIONS = {
    "multiply": torch.mul,
    "add": torch.add,
    "subtract": torch.sub,
    "and": lambda a, b: (a.round().bool() & b.round().bool()).float(),
    "or": lambda a, b: (a.round().bool() | b.round().bool()).float(),
    "xor": lambda a, b: (a.round().bool() ^ b.round().bool()).float(),
}


class SolidMask:
    RETURN_TYPES = ("MASK",)
    FUNCTION = "solid"
    CATEGORY = "mask"

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 512, "min": 1, "max": nodes.MAX_RESOLUTION, "step": 1})
        value = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"value": value, "width": size, "height": size}}

    def solid(self, value, width, height):
        return (torch.full((1, height, width), value),)


class MaskComposite:
    """The source laid over the destination with its upper left corner at (x, y); what lies outside is cut off."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "combine"
    CATEGORY = "mask"

    @classmethod
    def INPUT_TYPES(cls):
        place = ("INT", {"default": 0, "min": 0, "max": nodes.MAX_RESOLUTION, "step": 1})
        return {"required": {"destination": ("MASK",), "source": ("MASK",), "x": place, "y": place,
                             "operation": (list(_OPERATIONS),)}}

    def combine(self, destination, source, x, y, operation):
        result = destination.reshape(-1, *destination.shape[-2:]).clone()
        under = result[:, y:, x:][:, : source.shape[-2], : source.shape[-1]]
        over = source.reshape(-1, *source.shape[-2:])[:, : under.shape[1], : under.shape[2]].to(under)
        under.copy_(_OPERATIONS[operation](under, over))
        return (result.clamp(0, 1),)


NODE_CLASS_MAPPINGS = {"SolidMask": SolidMask, "MaskComposite": MaskComposite}
