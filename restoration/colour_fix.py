"""Colours and light of a restored picture taken from the picture before, on the whole picture, never tile by tile."""

import torch
from torch.nn import functional

LEVELS = 5
EPSILON = 1e-5


def _statistics(x):
    return x.mean((-2, -1), keepdim=True), (x.var((-2, -1), keepdim=True, correction=0) + EPSILON).sqrt()


def adain(picture, reference):
    """Each channel with the mean and standard deviation of the reference's (Huang & Belongie 2017)."""
    (mean, deviation), (wanted, spread) = _statistics(picture), _statistics(reference)
    return (picture - mean) / deviation * spread + wanted


def adcsr(picture, low):
    """Each channel with the mean and standard deviation of the low-resolution picture itself, of any size, as in AdcSR.

    One colour stays one colour. [B, 3, H, W] and [B, 3, h, w]; the result is not clamped.
    """
    (mean, deviation), (wanted, spread) = (
        (x.mean((-2, -1), keepdim=True), x.std((-2, -1), keepdim=True, correction=int(x[0, 0].numel() > 1)))
        for x in (picture, low))  # fmt: skip
    return (picture - mean) / deviation.clamp(min=EPSILON) * spread + wanted


def low_band(x):
    """What is left of x after LEVELS wavelet levels: blurs by [1 2 1]/4 each way, their taps 1, 2, 4, ... apart."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    for level in range(LEVELS):
        step = 2**level
        padded = functional.pad(x, [step] * 4, mode="replicate")
        rows = functional.conv2d(padded, line.view(1, 1, 3, 1).repeat(channels, 1, 1, 1), dilation=step,
                                 groups=channels)
        x = functional.conv2d(rows, line.view(1, 1, 1, 3).repeat(channels, 1, 1, 1), dilation=step, groups=channels)
    return x


def wavelet(picture, reference):
    """The picture's details on the reference's low band, as in StableSR: only smooth differences of colour move."""
    return picture + low_band(reference - picture)


_TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
_WHITE = [0.95047, 1.0, 1.08883]
_KNEE = 6 / 29


def _mixed(matrix, x):
    return torch.einsum("ij,bjhw->bihw", torch.as_tensor(matrix, dtype=x.dtype, device=x.device), x)


def to_lab(x):
    """CIELAB (D65) of sRGB pictures in 0..1: lightness 0..100, two colour axes."""
    linear = torch.where(x > 0.04045, ((x.clamp(min=0) + 0.055) / 1.055) ** 2.4, x / 12.92)
    white = torch.tensor(_WHITE, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    xyz = _mixed(_TO_XYZ, linear) / white
    f = torch.where(xyz > _KNEE**3, xyz.clamp(min=1e-12) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def from_lab(lab):
    """sRGB of CIELAB; outside 0..1 where the colour does not exist on a screen."""
    lightness, a, b = lab.unbind(1)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, fy - b / 200], 1)
    white = torch.tensor(_WHITE, dtype=lab.dtype, device=lab.device).view(1, 3, 1, 1)
    xyz = torch.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29)) * white
    linear = _mixed(torch.linalg.inv(torch.tensor(_TO_XYZ, dtype=torch.float64)), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-12) ** (1 / 2.4) - 0.055, 12.92 * linear)


def lab(picture, reference):
    """Mean and standard deviation of the reference in CIELAB, after `wavelet`."""
    return from_lab(adain(to_lab(wavelet(picture, reference)), to_lab(reference)))


METHODS = {"none": lambda picture, reference: picture, "wavelet": wavelet, "adain": adain, "lab": lab}
"""{name: function(picture, reference)} of [B, 3, H, W] in 0..1, item by item."""


def fix(method, picture, reference):
    """METHODS[method] of a picture and its reference of the same size, in 0..1. Raises ValueError for other methods."""
    if method not in METHODS:
        raise ValueError(f"color_fix is {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method](picture, reference).clamp(0, 1)
