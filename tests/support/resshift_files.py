"""Weights of tiny ResShift networks and autoencoders in the layout of the published files, one pair a task."""

import torch
from trajectory.models.swin_unet import Config, SwinUNet
from trajectory.models.vq import VQAutoencoder

TINY = {"channels": 8, "widths": (8, 8), "blocks": (1, 1), "swin": (True, True), "swin_width": 8, "swin_depth": 2,
        "heads": 2, "window": 2, "mlp_width": 16}  # fmt: skip

# task -> what its network has of its own (channels of the latent and of the picture, features), levels of the VQGAN
TASKS = {
    "x4": ({"latent_channels": 3, "lq_channels": 3, "features": ()}, 3),
    "x2": ({"latent_channels": 3, "lq_channels": 3, "features": (8,)}, 3),
    "inpaint": ({"latent_channels": 3, "lq_channels": 4, "features": (4, 8)}, 3),
    "face": ({"latent_channels": 8, "lq_channels": 3, "features": (4, 8, 16)}, 4),
}
SCALES = {"x4": 4, "x2": 2, "inpaint": 1, "face": 1}


def random_weights(module, seed):
    """{key: tensor} of the module's shapes, of a size that keeps outputs near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in module.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        weights[key] = 0.2 * drawn if value.ndim < 2 else drawn / value[0].numel() ** 0.5
        if value.ndim == 1 and key.endswith("weight"):
            weights[key] += 1
    return weights


def unet(task, seed=0):
    return random_weights(SwinUNet(Config(**TINY, **TASKS[task][0])), seed)


def vqgan(task, seed=0):
    own, levels = TASKS[task]
    channels = own["latent_channels"]
    return random_weights(VQAutoencoder([4] * (levels - 1) + [8], [1] * levels, channels, channels, 32), seed)
