"""Codecs and limits of cameras: JPEG, few bits, clipped highlights."""

import math

import torch
from torch.nn import functional

from .base import Operator, constant, working

# ITU-T T.81, tables K.1 and K.2
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *4 * ((99,) * 8,),
)  # fmt: skip
# JFIF: rows Y, Cb, Cr of red, green, blue
YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))

SUBSAMPLINGS = {"4:2:0": 2, "4:4:4": 1}
"""{name: pixels of the picture at the edge of a pixel of colour}"""


def passing(exact, surrogate):
    """The value of one tensor with the gradient of another."""
    return exact.detach() + (surrogate - surrogate.detach())


def nearest(x):
    """Whole numbers, halves away from 0 as codecs round them. Even areas often are halves, so a margin is for float's
    own rounding."""
    return x.sign() * (x.abs() + 0.5 + 1e-4).floor()


ROUNDINGS = {
    "straight-through": lambda x: passing(nearest(x), x),
    "cubic": lambda x: passing(nearest(x), (x - nearest(x).detach()) ** 3),
    "none": nearest,
}
"""{name: rounding of coefficients}; all have the same value. The cubic's gradient, 3 (x - round x)^2, is small where a
coefficient is well inside its step (Shin and Song 2017)."""


def whole(x):
    """x as 8-bit numbers hold it; straight-through whatever the rounding, as it loses next to nothing."""
    return passing(nearest(x), x)


def limited(x, low, high):
    """x clamped, as codecs clamp, with the gradient of x: what is outside can come back."""
    return passing(x.clamp(low, high), x)


def tables(quality):
    """Quantisation tables [2, 8, 8] of luminance and chrominance, as libjpeg scales them to a quality of 1 - 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor((LUMINANCE, CHROMINANCE))
    return ((base * scale + 50) // 100).clamp(1, 255)


def cosines():
    """The orthonormal matrix [8, 8] of the DCT; row k is frequency k."""
    k = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi / 8 * k[:, None] * (k + 0.5)) / 2
    rows[0] /= math.sqrt(2)
    return rows


class JPEG(Operator):
    """What a JPEG file of pictures [B, 3, H, W] (or grey ones [B, 1, H, W]) in 0..1 shows when it is opened again.

    Args:
        quality: 1 - 95, the scale of libjpeg and Pillow.
        subsampling: of SUBSAMPLINGS.
        rounding: of ROUNDINGS; what the gradient of the rounding counts as.
    """

    linear = False

    def __init__(self, quality=20, subsampling="4:2:0", rounding="straight-through"):
        if not 1 <= quality <= 95:
            raise ValueError(f"quality is {quality}; set it to 1 - 95")
        if subsampling not in SUBSAMPLINGS:
            raise ValueError(f"subsampling is {subsampling!r}; choose one of {', '.join(SUBSAMPLINGS)}")
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding is {rounding!r}; choose one of {', '.join(ROUNDINGS)}")
        self.cell, self.round = SUBSAMPLINGS[subsampling], ROUNDINGS[rounding]
        self.gradient = "none" if rounding == "none" else "straight-through"
        self.tables = constant(tables(quality))
        self.dct, self.ycbcr = constant(cosines(), torch.float64), constant(YCBCR, torch.float64)

    def check(self, shape):
        if shape[1] not in (1, 3):
            raise ValueError(f"JPEG holds pictures of 1 or 3 channels, but there are {shape[1]}; remove the others")

    def forward(self, x):
        grey_levels = 255 * x
        if x.shape[1] == 1:
            decoded = self._coded(whole(grey_levels) - 128, 0) + 128
        else:
            matrix = self.ycbcr.to(x)
            planes = whole(torch.einsum("kc,bchw->bkhw", matrix, grey_levels))
            light = self._coded(planes[:, :1] - 128, 0) + 128
            colour = self._spread(self._coded(self._gathered(planes[:, 1:]), 1), x.shape[-2:])
            back = torch.linalg.inv(self.ycbcr).to(x)
            decoded = torch.einsum("ck,bkhw->bchw", back, torch.cat([light, colour], 1))
        return limited(decoded / 255, 0, 1)

    def pinv(self, y, shape):
        """y itself: the codec hardly changes what it has coded before."""
        return working(y)

    def out_shape(self, shape):
        self.check(shape)
        return torch.Size(shape)

    def _coded(self, planes, kind):
        """Planes around 0 after coding with the table of luminance (0) or chrominance (1)."""
        height, width = planes.shape[-2:]
        dct, table = self.dct.to(planes), self.tables[kind].to(planes)
        wide = functional.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = wide.unfold(2, 8, 8).unfold(3, 8, 8)
        coefficients = self.round(dct @ blocks @ dct.T / table) * table
        decoded = (dct.T @ coefficients @ dct).transpose(3, 4).reshape(wide.shape)
        return decoded[..., :height, :width]

    def _gathered(self, planes):
        height, width = planes.shape[-2:]
        even = functional.pad(planes, (0, -width % self.cell, 0, -height % self.cell), mode="replicate")
        return functional.avg_pool2d(even, self.cell)

    def _spread(self, planes, size):
        """Colour at every pixel: between the middles of its cells decoders interpolate with weights 3/4 and 1/4."""
        if self.cell == 1:
            return planes
        return functional.interpolate(planes, scale_factor=self.cell, mode="bilinear")[..., : size[0], : size[1]]


class Quantise(Operator):
    """Pictures in 0..1 with 2^bits levels, k / (2^bits - 1) of the k-th of as many equal parts; straight-through."""

    linear = False
    gradient = "straight-through"

    def __init__(self, bits=3):
        if not 1 <= bits <= 8:
            raise ValueError(f"bits is {bits}; set it to 1 - 8")
        self.levels = 2**bits

    def forward(self, x):
        return passing((x * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1), x)

    def pinv(self, y, shape):
        return working(y)

    def out_shape(self, shape):
        return torch.Size(shape)


class Clip(Operator):
    """clip(gain u) of u = 2 x - 1, pictures in -1..1; in and out in 0..1. Where it clips, the gradient is 0."""

    linear = False

    def __init__(self, gain=2.0):
        if not 0 < gain < math.inf:
            raise ValueError(f"gain is {gain}; set it to a number above 0")
        self.gain = gain

    def forward(self, x):
        return ((self.gain * (2 * x - 1)).clamp(-1, 1) + 1) / 2

    def pinv(self, y, shape):
        return ((2 * working(y) - 1) / self.gain + 1) / 2

    def out_shape(self, shape):
        return torch.Size(shape)
