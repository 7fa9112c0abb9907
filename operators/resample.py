"""Pictures of fewer pixels: super-resolution as a measurement."""

import functools
import math

import torch

from .base import Operator, constant, working
from .borders import mirrored

MOST = 16


def cubic(t):
    """Keys' cubic kernel with a = -0.5."""
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


KERNELS = {
    "area": (1, lambda t: 1.0),
    "bicubic": (4, cubic),
    "bilinear": (2, lambda t: 1 - abs(t)),
    "gaussian": (4, lambda t: math.exp(-2 * t**2)),
    "nearest": (1, None),
}
"""{name: (width in pixels of the small picture, weight at a distance from the middle in such pixels)}. The Gaussian's
standard deviation is half a pixel of the small picture."""


def taps(kernel, factor):
    """The weights [n] of the pixels around the middle of a small pixel; n - factor is even, their sum is 1."""
    width, weight = KERNELS[kernel]
    count = width * factor - (factor % 2 if width > 1 else 0)
    if weight is None:
        return [float(i == factor // 2) for i in range(count)]
    weights = [weight((i - (count - 1) / 2) / factor) for i in range(count)]
    return [w / sum(weights) for w in weights]


@functools.lru_cache(maxsize=8)
def axis(kernel, factor, length):
    """The new pixels of one axis as a matrix [length / factor, length] in float64. `length` is a multiple of factor."""
    weights = constant(taps(kernel, factor), torch.float64)
    margin = (len(weights) - factor) // 2
    places = mirrored(torch.arange(length)[None], (0, margin), twice=True).unfold(1, len(weights), factor)[0]
    matrix = torch.zeros(length // factor, length, dtype=torch.float64)
    return constant(matrix.scatter_add_(1, places, weights.expand(places.shape)), torch.float64)


@functools.lru_cache(maxsize=64)
def axis_norm2(kernel, factor, length):
    """The largest eigenvalue of that matrix times its transpose, a float."""
    matrix = axis(kernel, factor, length)
    return float(torch.linalg.eigvalsh(matrix @ matrix.mT)[-1])


def between(rows, x, columns):
    """rows x columns' for pictures x, by matrices in float64 on the CPU."""
    return rows.to(x.device, x.dtype) @ x @ columns.to(x.device, x.dtype).mT


class Downsample(Operator):
    """Pictures [B, C, H, W] -> [B, C, H/factor, W/factor], each new pixel centred on the block that it stands for.

    kernel: of KERNELS, widened by the factor against aliasing; "nearest" takes the pixel in the middle of the block
    (of an even factor the one below and to the right of it). Borders are mirrored, the outermost pixel twice, so that
    "bicubic" is Matlab's imresize. Each axis is a matrix: of so few channels that is faster than a convolution.
    """

    def __init__(self, factor=4, kernel="area"):
        if not 2 <= factor <= MOST:
            raise ValueError(f"factor is {factor}; set it to 2 - {MOST}")
        if kernel not in KERNELS:
            raise ValueError(f"kernel is {kernel!r}; choose one of {', '.join(KERNELS)}")
        self.factor, self.kernel = factor, kernel

    def check(self, shape):
        height, width = shape[-2:]
        if height % self.factor or width % self.factor:
            fits = [max(n // self.factor, 1) * self.factor for n in (width, height)]
            raise ValueError(f"factor is {self.factor}, which does not divide pictures of {width} x {height}; crop or "
                             f"resize them to {fits[0]} x {fits[1]}, or choose another factor")

    def _axes(self, shape):
        return [axis(self.kernel, self.factor, length) for length in shape[-2:]]

    def forward(self, x):
        rows, columns = self._axes(x.shape)
        return between(rows, x, columns)

    def adjoint(self, y, shape):
        rows, columns = self._axes(shape)
        return between(rows.mT, y, columns.mT)

    def out_shape(self, shape):
        self.check(shape)
        return torch.Size((*shape[:-2], shape[-2] // self.factor, shape[-1] // self.factor))

    def norm2(self, shape):
        return math.prod(axis_norm2(self.kernel, self.factor, length) for length in shape[-2:])

    def pinv(self, y, shape):
        self.check(shape)
        rows, columns = (a.mT @ torch.linalg.pinv(a @ a.mT, hermitian=True) for a in self._axes(shape))
        return between(rows, working(y), columns)
