"""Tomography with parallel beams: the means of a picture along lines."""

import math

import torch
from torch.nn import functional

from .base import Operator, gradients, working

NORM_SIDE = 64
"""Shorter side of the largest pictures whose norm is computed: that of larger ones follows from it."""


class Radon(Operator):
    """Means along parallel lines, [B, C, views, S]: as many lines a view as the detector has bins, one pixel apart.

    A line is as long as the detector, S pixels, so that a white picture of that size is seen as 1. Between pixels the
    picture is interpolated; outside it is 0.

    Args:
        views: angles, uniform in 0 (lines run down the picture) to `arc` degrees, without the last; counter-clockwise.
        arc: 180 for all; less leaves out directions.
        circle: S is the shorter side, and only what is in the circle within the picture is seen. Else S is the
            diagonal.
    """

    def __init__(self, views=8, arc=180.0, circle=False):
        if views < 1:
            raise ValueError(f"views is {views}; set it to 1 or more")
        if not 0 < arc <= 180:
            raise ValueError(f"arc is {arc}; set it to above 0 and up to 180 degrees")
        self.angles = [math.radians(arc) * k / views for k in range(views)]
        self.arc, self.circle = math.radians(arc), circle

    def bins(self, shape):
        """S for pictures of this shape."""
        height, width = shape[-2:]
        return min(height, width) if self.circle else math.ceil(math.hypot(height, width))

    def out_shape(self, shape):
        return torch.Size((*shape[:2], len(self.angles), self.bins(shape)))

    def forward(self, x):
        return torch.stack([self._view(x, angle) for angle in self.angles], 2)

    def _view(self, x, angle):
        """One view [B, C, S]."""
        height, width = x.shape[-2:]
        size = self.bins(x.shape)
        steps = torch.arange(size, device=x.device, dtype=x.dtype) - (size - 1) / 2
        along, across = steps[:, None], steps[None, :]
        columns = math.cos(angle) * across + math.sin(angle) * along
        rows = math.cos(angle) * along - math.sin(angle) * across
        grid = torch.stack([2 / width * columns, 2 / height * rows], -1)
        planes = x.reshape(1, -1, height, width)
        seen = functional.grid_sample(planes, grid[None], align_corners=False).view(*x.shape[:2], size, size)
        if self.circle:
            seen = seen * (along**2 + across**2 <= (size / 2) ** 2)
        return seen.mean(2)

    def adjoint(self, y, shape):
        """One view at a time, so that autograd holds the lines of one alone."""
        with gradients():
            y, total = y.detach().clone(), 0
            x = torch.zeros(shape, dtype=y.dtype, device=y.device, requires_grad=True)
            for k, angle in enumerate(self.angles):
                total = total + torch.autograd.grad(self._view(x, angle), x, y[:, :, k])[0]
        return total

    def norm2(self, shape):
        """By power iteration on one channel; of pictures beyond NORM_SIDE to 3 %, by a smaller one of that aspect.

        A line is a mean over S pixels, so that A of a picture twice the size has half the norm2.
        """
        shrink = max(1.0, min(shape[-2:]) / NORM_SIDE)
        small = (1, 1, *(round(side / shrink) for side in shape[-2:]))
        return super().norm2(small) * self.bins(small) / self.bins(shape)

    def pinv(self, y, shape):
        """Filtered back-projection with the ramp of Ram and Lak; near to an inverse only with many views."""
        y, size = working(y), self.bins(shape)
        distance = torch.arange(-size + 1, size, device=y.device, dtype=y.dtype)
        ramp = torch.where(distance % 2 == 0, 0.0, -1 / (math.pi * distance) ** 2)
        ramp[size - 1] = 0.25
        length = 4 * size
        spectrum = torch.fft.rfft(y, length) * torch.fft.rfft(ramp, length)
        filtered = torch.fft.irfft(spectrum, length)[..., size - 1 : 2 * size - 1]
        return self.arc / len(self.angles) * size**2 * self.At(filtered, shape)

    def preview(self, y):
        """The sinogram, an angle a row, as high as it is wide."""
        light = working(y).mean(1, keepdim=True)
        light = light / light.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        return functional.interpolate(light, size=(y.shape[-1],) * 2, mode="nearest-exact").expand(-1, 3, -1, -1)
