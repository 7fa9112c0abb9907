"""What a mask hides is unknown: inpainting as a measurement."""

import logging

import torch
from torch.nn import functional

from .base import Operator, constant, kept, working

logger = logging.getLogger("trajectory")

RESIZES = ("area", "nearest")
HIDDEN = 1e-3
"""Share of a pixel or latent cell above which it counts as hidden: what is partly hidden is not known."""


def grown(mask, pixels):
    """A mask [F, H, W] whose holes reach that many pixels further on every side."""
    return functional.max_pool2d(mask[:, None], 2 * pixels + 1, 1, pixels)[:, 0] if pixels else mask


class Mask(Operator):
    """y = keep x, where keep is 1 where the mask is black and 0 where it hides something.

    mask: [F, H, W], white (1) = unknown; one for all items, or one for each. It is resized to the pictures: "area"
    keeps a cell that is known as a whole, "nearest" one whose middle is.
    """

    def __init__(self, mask, resize="area"):
        if mask.ndim != 3 or 0 in mask.shape:
            raise ValueError(f"mask has the shape {list(mask.shape)}; connect a MASK [frames, height, width]")
        if resize not in RESIZES:
            raise ValueError(f"resize is {resize!r}; choose one of {', '.join(RESIZES)}")
        self.mask, self.resize = constant(mask), resize
        self.mixes_items = len(mask) > 1  # an item alone would not know its mask

    def check(self, shape):
        if len(self.mask) not in (1, shape[0]):
            raise ValueError(f"mask has {len(self.mask)} frames, but there are {shape[0]} pictures; give one mask for "
                             "all of them, or one for each")

    @kept
    def keep(self, height, width):
        """[F, 1, height, width] of 0 and 1, on the CPU."""
        own = self.mask.shape[1:]
        mask = self.mask[:, None]
        if own != (height, width):
            logger.info("Operator Mask: mask of %d x %d resized to %d x %d", own[1], own[0], width, height)
            mode = {"area": "area", "nearest": "nearest-exact"}[self.resize]
            mask = functional.interpolate(mask, (height, width), mode=mode)
        return constant(mask <= HIDDEN)

    def forward(self, x):
        return self.keep(*x.shape[-2:]).to(x.device, x.dtype) * x

    def adjoint(self, y, shape):
        return self.forward(y)

    def visible(self, y):
        return self.forward(y)

    def out_shape(self, shape):
        self.check(shape)
        return torch.Size(shape)

    def norm2(self, shape):
        return float(self.keep(*shape[-2:]).max())

    def pinv(self, y, shape):
        self.check(shape)
        return self.forward(working(y))
