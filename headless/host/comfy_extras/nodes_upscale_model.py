"""Pictures enlarged by a network."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import ComfyExtension, io

_TILE, _OVERLAP = 512, 32


class ImageUpscaleWithModel(io.ComfyNode):
    """The network in tiles, whatever its size; running out of memory is not met with smaller ones here."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            "ImageUpscaleWithModel", display_name="Upscale Image (using Model)", category="image/upscaling",
            inputs=[io.UpscaleModel.Input("upscale_model"), io.Image.Input("image")], outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, upscale_model, image):
        device = comfy.model_management.get_torch_device()
        upscale_model.to(device)
        pixels = image.movedim(-1, 1).to(device)
        tiles = comfy.utils.get_tiled_scale_steps(image.shape[2], image.shape[1], _TILE, _TILE, _OVERLAP)
        bar = comfy.utils.ProgressBar(tiles * len(image))
        made = comfy.utils.tiled_scale(
            pixels, upscale_model, _TILE, _TILE, _OVERLAP, upscale_amount=upscale_model.scale, pbar=bar)
        upscale_model.to("cpu")
        return io.NodeOutput(made.movedim(1, -1).clamp(0, 1))


class UpscaleModelExtension(ComfyExtension):
    async def get_node_list(self):
        return [ImageUpscaleWithModel]


async def comfy_entrypoint():
    return UpscaleModelExtension()
