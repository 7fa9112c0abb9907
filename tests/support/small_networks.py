"""Stable Diffusion 2's networks at small widths, for diffusers and for a host, with weights from a formula."""

import math
import zlib

import torch

# arguments of diffusers' classes
UNET = {
    "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "cross_attention_dim": 24, "norm_num_groups": 32,
    "attention_head_dim": (1, 1, 2, 2), "use_linear_projection": True,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
VAE = {
    "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip

# the same in a host's words
HOST_UNET = {
    "model_channels": 32, "num_res_blocks": [1] * 4, "channel_mult": [1, 1, 2, 2], "transformer_depth": [1, 1, 1, 0],
    "transformer_depth_output": [1] * 6 + [0, 0], "transformer_depth_middle": 1, "context_dim": 24,
    "num_head_channels": 32, "use_linear_in_transformer": True,
}  # fmt: skip
HOST_VAE = {"embed_dim": 4, "ddconfig": {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}}  # fmt: skip


def drawn(shapes, what):
    """{key: tensor} for {key: shape}: each from a seed of its own, so large that its layer passes on what it gets."""
    weights = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{what} {key}".encode())))
        norm = len(shape) == 1 and key.endswith("weight")
        weights[key] = 1 + 0.1 * value if norm else value / (math.prod(shape[1:]) if len(shape) > 1 else 100) ** 0.5
    return weights


def shapes_of(weights):
    return {key: list(value.shape) for key, value in weights.items()}
