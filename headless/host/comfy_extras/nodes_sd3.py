"""Latents of SD3-class models."""

import _core
import comfy.model_management
import torch
from comfy_api.latest import ComfyExtension, io

import nodes


class EmptySD3LatentImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        pixels = {"default": 1024, "min": 16, "max": nodes.MAX_RESOLUTION, "step": 16}
        inputs = [io.Int.Input(side, **pixels) for side in ("width", "height")]
        inputs.append(io.Int.Input("batch_size", default=1, min=1, max=4096))
        return io.Schema("EmptySD3LatentImage", category="latent/sd3", inputs=inputs, outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls, width, height, batch_size=1):
        columns, rows = _core.latent_grid(width, height)
        device = comfy.model_management.intermediate_device()
        return io.NodeOutput({"samples": torch.zeros([batch_size, 16, rows, columns], device=device)})


class SD3Extension(ComfyExtension):
    async def get_node_list(self):
        return [EmptySD3LatentImage]


async def comfy_entrypoint():
    return SD3Extension()
