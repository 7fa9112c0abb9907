"""Radial power spectra: what is known of clean latents without a network, and where noise drowns it.

A stationary signal is described to second order by the mean power of its Fourier modes over rings of equal frequency.
With the orthonormal transform white noise of variance v has power v in every mode, whatever the size of the latent, so
spectra of latents of different sizes compare, and the mean over all modes is the mean square of a value.
"""

from dataclasses import dataclass

import numpy as np
import torch

RINGS_PER_OCTAVE = 8
"""Rings are even in log frequency, so that those of a packed latent, one signal of many samples, hold enough modes."""


@dataclass(frozen=True)
class Spectrum:
    """Mean power of the modes of each ring, in ascending order; the first is the mean value (DC)."""

    frequency: np.ndarray
    """Mean frequency of each ring, in cycles a sample."""
    power: np.ndarray
    """Squared units of the latent; that of DC is capped by the next ring."""
    count: np.ndarray
    """Modes of each ring in one channel."""

    @property
    def variance(self):
        """Mean square of a value; its mean over the picture enters only as far as the cap lets it."""
        return float(np.average(self.power, weights=self.count))

    def normalised(self):
        """The same spectrum at unit variance. Raises ValueError for one without power."""
        if not self.variance > 0:
            raise ValueError("spectrum is of a latent that is constant or not finite; connect a latent of pictures")
        return Spectrum(self.frequency, self.power / self.variance, self.count)

    def at(self, frequency):
        """Power at other frequencies: linear in between, held at both ends."""
        return np.interp(frequency, self.frequency, self.power)


def rings(shape):
    """(ring of each mode [prod(shape)], mean frequency of each ring, modes of each ring) for the spatial `shape`."""
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij")
    frequency = np.sqrt(sum(axis**2 for axis in axes)).ravel()
    octaves = np.log2(1 + frequency * max(shape))
    _, ring, count = np.unique(np.rint(RINGS_PER_OCTAVE * octaves), return_inverse=True, return_counts=True)
    return ring.ravel(), np.bincount(ring.ravel(), frequency) / count, count


def _capped(power):
    """DC, the mean of the picture, is no part of its texture and often a hundred times the next ring."""
    return np.concatenate([np.minimum(power[:1], power[1:2]), power[1:]]) if len(power) > 1 else power


def radial_spectrum(x):
    """Spectrum of latents [B, C, ...] over all dimensions after C, averaged over items and channels.

    Pictures are [B, C, H, W], video [B, C, T, H, W]; a packed latent [B, 1, N] is one signal in the order of packing.
    """
    modes = torch.fft.fftn(x.detach().to("cpu", torch.float32), dim=tuple(range(2, x.ndim)), norm="ortho")
    power = modes.abs().square().double().mean(dim=(0, 1)).flatten().numpy()
    ring, frequency, count = rings(tuple(x.shape[2:]))
    return Spectrum(frequency, _capped(np.bincount(ring, power) / count), count)


def power_law(exponent, shape):
    """Spectrum of unit variance whose power falls as frequency^-exponent, on the rings of `shape`; 0 is white."""
    _, frequency, count = rings(shape)
    frequency = np.maximum(frequency, frequency[1])
    return Spectrum(frequency, frequency**-exponent, count).normalised()
