"""What a cheap camera and a web page make of a picture, written once for training and benchmarks of restoration.

Blur, fewer pixels, noise, JPEG, each of a random strength; as Real-ESRGAN's first order (Wang et al. 2021), but milder,
so that pictures of 32x32 pixels still show what they are of.
"""

from __future__ import annotations

import math

import torch

from ..operators.blur import Blur
from ..operators.compression import JPEG
from ..operators.resample import Downsample

BLUR = (0.3, 2.0)
"""Standard deviations of the Gaussian along its two axes, in pixels of the sharp picture; drawn on a log scale."""
ISOTROPIC = 0.5
"""How often both are the same."""
KERNELS = ("area", "bicubic", "bilinear")
"""Of operators/resample, widened against aliasing; equally likely."""
NOISE = (0.0, 0.06)
"""Standard deviation of the noise, in 0..1; the same for all channels, each with noise of its own."""
QUALITY = (40, 95)
"""Of the JPEG file, both ends included."""


def elliptic_kernel(first: float, second: float, angle: float) -> torch.Tensor:
    """Weights of a Gaussian with these standard deviations along two axes, the first `angle` radians from the right."""
    reach = math.ceil(3 * max(first, second))
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = line[:, None], line
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    return torch.exp(-0.5 * ((along / first) ** 2 + (across / second) ** 2))


def degrade(pictures: torch.Tensor, seeds: list[int], factor: int = 4) -> torch.Tensor:
    """Small bad pictures [B, 3, H / factor, W / factor] of good ones [B, 3, H, W], both in 0..1.

    Item k depends on picture k and seeds[k] alone. Raises ValueError where factor does not divide the sides, or where
    there is not one seed a picture.
    """
    return torch.cat([_degraded(picture[None], seed, factor)
                      for picture, seed in zip(pictures, seeds, strict=True)])  # fmt: skip


def _degraded(picture: torch.Tensor, seed: int, factor: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    isotropic, first, second, turn, kernel, strength, quality = torch.rand(7, generator=generator).tolist()
    low, high = BLUR
    widths = [low * (high / low) ** u for u in (first, first if isotropic < ISOTROPIC else second)]
    blur = Blur(elliptic_kernel(*widths, math.pi * turn))
    small = Downsample(factor, KERNELS[int(kernel * len(KERNELS))]).A(blur.A(picture))
    noise = torch.randn(small.shape, generator=generator).to(small.device)
    noisy = small + (NOISE[0] + (NOISE[1] - NOISE[0]) * strength) * noise
    return JPEG(QUALITY[0] + int(quality * (QUALITY[1] - QUALITY[0] + 1))).A(noisy.clamp(0, 1))
