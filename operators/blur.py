"""Blurred pictures: deblurring as a measurement."""

import math

import torch
from torch.nn import functional

from .base import Operator, constant, working
from .borders import mirrored

BORDERS = ("reflect", "circular", "zero")
LARGEST = 255
"""Pixels at the edge of a kernel, or along its path."""
WIENER = 1e-4
"""Below this share of the largest, a frequency's answer is damped in the inverse instead of undone."""


def gaussian_kernel(sigma, size=0):
    """Weights [size, size] of a Gaussian of standard deviation sigma, up to 50 pixels; size 0: as far as 3 sigma."""
    if not 0 < sigma <= 50:
        raise ValueError(f"sigma is {sigma}; set it to above 0 and up to 50 pixels")
    if not 0 <= size <= LARGEST:
        raise ValueError(f"size is {size}; set it to 0 - {LARGEST} pixels")
    size = size or 2 * math.ceil(3 * sigma) + 1
    line = torch.exp(-0.5 * ((torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / sigma) ** 2)
    return line[:, None] * line


def motion_kernel(length, angle):
    """Weights of a straight path of `length` pixels, in degrees counter-clockwise from the right.

    A point a pixel, each shared among the four pixels around it.
    """
    if not 1 <= length <= LARGEST:
        raise ValueError(f"length is {length}; set it to 1 - {LARGEST} pixels")
    if not math.isfinite(angle):
        raise ValueError(f"angle is {angle}; set it to degrees, such as 45")
    radius = math.ceil((length - 1) / 2) + 1
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
    along = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    row, column = (-along * math.sin(math.radians(angle)) + radius), (along * math.cos(math.radians(angle)) + radius)
    for down in (0, 1):
        for right in (0, 1):
            at = row.floor().long() + down, column.floor().long() + right
            kernel.index_put_(at, (1 - (row - at[0]).abs()) * (1 - (column - at[1]).abs()), accumulate=True)
    return kernel


def disk_kernel(radius):
    """Weights of a disk of that radius, up to 64 pixels, a lens out of focus; smooth at its edge."""
    if not 0 < radius <= 64:
        raise ValueError(f"radius is {radius}; set it to above 0 and up to 64 pixels")
    reach = math.ceil(radius)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return (radius + 0.5 - torch.hypot(line[:, None], line)).clamp(0, 1)


def centred(kernel):
    """A kernel of odd sizes about its middle: of an even size, the mean of the two ways to place it."""
    for axis in (0, 1):
        if kernel.shape[axis] % 2 == 0:
            before, after = ((0, 0, 1, 0), (0, 0, 0, 1)) if axis == 0 else ((1, 0), (0, 1))
            kernel = (functional.pad(kernel, before) + functional.pad(kernel, after)) / 2
    return kernel


class Blur(Operator):
    """y = kernel * x (a convolution: a point of light becomes the kernel), of the size of x.

    kernel: weights [h, w] of any size; they are divided by their sum. border: "reflect" mirrors the picture at its
    outermost pixel, "circular" goes on at the other side, "zero" is black.
    """

    def __init__(self, kernel, border="reflect"):
        kernel = kernel.double()
        whole = float(kernel.abs().sum())
        if kernel.ndim != 2 or not 0 < whole < math.inf or abs(float(kernel.sum())) < 1e-6 * whole:
            raise ValueError(f"kernel has the shape {list(kernel.shape)} and the sum {float(kernel.sum()):.3g}; take a "
                             "picture [height, width] of a blurred point of light that is not black")
        if border not in BORDERS:
            raise ValueError(f"border is {border!r}; choose one of {', '.join(BORDERS)}")
        self.kernel, self.border = constant(centred(kernel / kernel.sum()), torch.float64), border

    def _transfer(self, x):
        """What each frequency of x [..., H, W] is multiplied by, as rfft2 orders them."""
        point, kernel = torch.zeros(x.shape[-2:], dtype=x.dtype), self.kernel.to(x.dtype)
        sizes = zip(kernel.shape, point.shape, strict=True)
        rows, columns = ((torch.arange(n) - n // 2) % size for n, size in sizes)
        wrapped = point.index_put((rows[:, None], columns), kernel, accumulate=True)
        return torch.fft.rfft2(wrapped.to(x.device))

    def _filtered(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(x) * self._transfer(x), s=x.shape[-2:])

    def forward(self, x):
        if self.border == "circular":
            return self._filtered(x)
        rows, columns = (n // 2 for n in self.kernel.shape)
        if self.border == "reflect":
            wide = mirrored(x, (rows, columns), twice=False)
        else:
            wide = functional.pad(x, (columns, columns, rows, rows))
        return self._filtered(wide)[..., rows : rows + x.shape[-2], columns : columns + x.shape[-1]]

    def out_shape(self, shape):
        return torch.Size(shape)

    def norm2(self, shape):
        if self.border != "circular":
            return super().norm2(shape)
        return float(self._transfer(torch.zeros(shape[-2:])).abs().square().max())

    def pinv(self, y, shape):
        """With border circular in Fourier space: conj(H)/(|H|^2 + e^2), e = WIENER max|H|."""
        if self.border != "circular":
            return super().pinv(y, shape)
        y = working(y)
        transfer = self._transfer(y)
        power = transfer.abs().square()
        inverse = transfer.conj() / (power + WIENER**2 * power.max())
        return torch.fft.irfft2(inverse * torch.fft.rfft2(y), s=shape[-2:])

    def prox(self, x, y, gamma):
        """With border circular exactly: (gamma conj(H) Y + X)/(gamma |H|^2 + 1)."""
        if self.border != "circular":
            return super().prox(x, y, gamma)
        x = working(x)
        transfer = self._transfer(x)
        pulled = gamma * transfer.conj() * torch.fft.rfft2(working(y)) + torch.fft.rfft2(x)
        return torch.fft.irfft2(pulled / (gamma * transfer.abs().square() + 1), s=x.shape[-2:])
