"""Scanners of frequencies: a part of the Fourier transform, as in MRI, or its size without its phase."""

import math

import numpy as np
import torch
from torch.nn import functional

from .base import Operator, constant, kept, working


def mask_of(height, width, pattern, acceleration, centre, seed):
    """Which frequencies are kept: bool [height, width], frequency 0 first as torch.fft has it. Deterministic in `seed`.

    1 / acceleration of them are (of whole columns in a 1d pattern; within a spoke of "radial"), the `centre` part
    around frequency 0 among them.
    """
    random = torch.Generator().manual_seed(seed)
    draw, one_dimensional = PATTERNS[pattern]
    rows = 1 if one_dimensional else height
    count = max(round(rows * width / acceleration), 1)
    share = centre if one_dimensional else math.sqrt(centre)
    kept = torch.zeros(rows, width, dtype=torch.bool)
    kept[_middle(rows, 1.0 if one_dimensional else share), _middle(width, share)] = True
    kept = draw(kept, count, random)
    return torch.fft.ifftshift(kept).expand(height, width)


def _middle(size, share):
    wide = max(round(share * size), 1)
    start = size // 2 - wide // 2
    return slice(start, start + wide)


def _distance(kept):
    """Distance of each frequency to frequency 0, in units of the band, [H, W]."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in kept.shape)
    return torch.hypot(rows[:, None] / kept.shape[0], columns / kept.shape[1])


def _with(kept, indices):
    kept = kept.flatten().clone()
    kept[indices] = True
    return kept


def _missing(kept, count):
    """How many more to keep, and the indices of those that are not kept yet."""
    return max(count - int(kept.sum()), 0), (~kept.flatten()).nonzero()[:, 0]


def even(kept, count, random):
    """The remaining ones at equal distances, the first at random."""
    missing, free = _missing(kept, count)
    if not missing:
        return kept
    offset = float(torch.rand(1, generator=random, dtype=torch.float64))
    places = ((torch.arange(missing, dtype=torch.float64) + offset) * len(free) / missing).long()
    return _with(kept, free[places]).view_as(kept)


def dense_middle(kept, count, random):
    """The remaining ones at random, with a Gaussian density of a standard deviation of 1/6 of the band."""
    missing, free = _missing(kept, count)
    if not missing:
        return kept
    weight = torch.exp(-18 * _distance(kept).flatten()[free] ** 2).clamp_min(1e-12)
    return _with(kept, free[torch.multinomial(weight, missing, generator=random)]).view_as(kept)


def anywhere(kept, count, random):
    """The remaining ones at random, all alike."""
    missing, free = _missing(kept, count)
    return _with(kept, free[torch.randperm(len(free), generator=random)[:missing]]).view_as(kept)


def spread(kept, count, random):
    """The remaining ones at random but apart: what fits at a distance, then at the next smaller one (Poisson disc).

    All that are the first of a random order within that distance are taken at once, and what is near them is dropped.
    """
    from scipy import ndimage  # a tenth of the pack's import time if it stood at the top

    order = torch.randperm(kept.numel(), generator=random).view_as(kept).numpy() + 1
    block, taken = kept.numpy(), np.zeros(kept.shape, dtype=bool)
    missing, free = _missing(kept, count)
    for reach in _reaches(math.sqrt(len(free) / missing)) if missing else ():
        disc = _disc(reach)
        allowed = ~(block | ndimage.binary_dilation(taken, disc))
        while allowed.any():
            ranks = np.where(allowed, order, 0)
            first = allowed & (ranks == ndimage.maximum_filter(ranks, footprint=disc, mode="constant"))
            room = missing - int(taken.sum())
            if first.sum() >= room:
                return torch.from_numpy(block | taken | (first & (order >= np.sort(order[first])[-room])))
            taken = taken | first
            allowed &= ~ndimage.binary_dilation(first, disc)
    return kept


def _reaches(largest):
    """Squares of the distances on a grid from `largest` down to 1."""
    steps = np.arange(math.floor(largest) + 1) ** 2
    squares = np.unique(steps[:, None] + steps)
    return squares[(1 <= squares) & (squares <= largest**2)][::-1].tolist()


def _disc(square):
    """The places nearer than the root of `square`, as a footprint."""
    n = math.isqrt(square)
    steps = np.arange(-n, n + 1) ** 2
    return steps[:, None] + steps < square


def spokes(kept, count, random):
    """Lines through frequency 0, each turned by the golden angle from the last, until there are enough."""
    height, width = kept.shape
    along = torch.arange(-max(height, width), max(height, width) + 1, dtype=torch.float64) / 2
    turn = math.pi * float(torch.rand(1, generator=random, dtype=torch.float64))
    kept = kept.clone()
    while kept.sum() < count:
        longest = max(abs(math.cos(turn)), abs(math.sin(turn)))
        rows = (height // 2 + along * math.sin(turn) / longest).round().long()
        columns = (width // 2 + along * math.cos(turn) / longest).round().long()
        inside = (0 <= rows) & (rows < height) & (0 <= columns) & (columns < width)
        kept[rows[inside], columns[inside]] = True
        turn += math.pi * (math.sqrt(5) - 1) / 2
    return kept


PATTERNS = {
    "uniform1d": (even, True),
    "gaussian1d": (dense_middle, True),
    "random2d": (anywhere, False),
    "poisson": (spread, False),
    "radial": (spokes, False),
}
"""{name: (what it adds to the centre, whether it keeps whole columns)}"""


def log_size(spectrum):
    """Pictures of a spectrum [B, C, H, W]: the logarithm of its size, frequency 0 in the middle, in 0..1."""
    size = torch.fft.fftshift(working(spectrum.abs()), dim=(-2, -1)).mean(1, keepdim=True)
    light = torch.log1p(1e3 * size / size.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)) / math.log1p(1e3)
    return light.expand(-1, 3, -1, -1)


class FourierMask(Operator):
    """mask * FFT2(x) of every channel, orthonormal, complex [B, C, H, W]; an accelerated MRI of one coil.

    Args:
        pattern: of PATTERNS.
        acceleration: pixels for each frequency that is kept, 1 - 16.
        centre: share of the frequencies that are all kept, around frequency 0; 1 / acceleration at most.
        seed: of the pattern, the same one for all items and channels.
    """

    complex = True

    def __init__(self, pattern="uniform1d", acceleration=2.0, centre=0.15, seed=0):
        if pattern not in PATTERNS:
            raise ValueError(f"pattern is {pattern!r}; choose one of {', '.join(PATTERNS)}")
        if not 1 <= acceleration <= 16:
            raise ValueError(f"acceleration is {acceleration}; set it to 1 - 16")
        if not 0 <= centre <= 1 / acceleration:
            raise ValueError(f"centre_fraction is {centre}, but acceleration {acceleration:g} keeps "
                             f"{1 / acceleration:.3g} of all frequencies; set it to 0 - {1 / acceleration:.3g}")
        self.choice = pattern, acceleration, centre, seed

    def mask(self, shape):
        """[H, W] of 0 and 1 for pictures of this shape."""
        return self._mask(*shape[-2:])

    @kept
    def _mask(self, height, width):
        return constant(mask_of(height, width, *self.choice))

    def weight(self, shape):
        """Eigenvalues of At A [H, W]: a real picture's two frequencies k and -k hold the same, so each counts half."""
        mask = self.mask(shape)
        return (mask + mask.flip(0, 1).roll((1, 1), (0, 1))) / 2

    def forward(self, x):
        return torch.fft.fft2(x, norm="ortho") * self.mask(x.shape).to(x)

    def adjoint(self, y, shape):
        return torch.fft.ifft2(y * self.mask(shape).to(y.device), norm="ortho").real

    def pinv(self, y, shape):
        """real(iFFT2(y / weight)): where only one of k and -k was kept it stands for both."""
        y, weight = working(y), self.weight(shape).to(y.device)
        return self.adjoint(y / weight.clamp_min(0.5), shape)

    def norm2(self, shape):
        return float(self.weight(shape).max())

    def out_shape(self, shape):
        return torch.Size(shape)

    def preview(self, y):
        return log_size(y)


class PhaseRetrieval(Operator):
    """|FFT2| of pictures in -1..1, padded with zeros: [B, C, H + 2 p, W + 2 q] with p, q = oversample/8 of H and W.

    x in 0..1 is taken to 2 x - 1 first, as in the papers. Translations and a turn by 180 degrees look the same, so
    there is no inverse.
    """

    linear = False

    def __init__(self, oversample=2.0):
        if not 0 <= oversample <= 8:
            raise ValueError(f"oversample is {oversample}; set it to 0 - 8")
        self.oversample = oversample

    def margins(self, shape):
        """(rows, columns) of zeros on each side."""
        return tuple(round(self.oversample / 8 * n) for n in shape[-2:])

    def forward(self, x):
        rows, columns = self.margins(x.shape)
        wide = functional.pad(2 * x - 1, (columns, columns, rows, rows))
        return torch.fft.fft2(wide, norm="ortho").abs()

    def out_shape(self, shape):
        rows, columns = self.margins(shape)
        return torch.Size((*shape[:-2], shape[-2] + 2 * rows, shape[-1] + 2 * columns))

    def preview(self, y):
        return log_size(y)
