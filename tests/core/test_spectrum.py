"""Radial spectra against white noise, single waves, other sizes and ranks."""

import numpy as np
import pytest
import torch
from trajectory.samplers.spectrum import power_law, radial_spectrum, rings

SHAPES = [(32, 48), (5, 16, 16), (4096,), (1, 1)]


def white(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rings_hold_every_mode_once_and_rise(shape):
    ring, frequency, count = rings(shape)
    assert len(ring) == np.prod(shape) == count.sum() and (np.diff(frequency) > 0).all()
    assert count[0] == 1 and frequency[0] == 0  # DC alone


@pytest.mark.parametrize("shape", [(32, 48), (5, 16, 16), (4096,)], ids=str)
def test_white_noise_has_its_variance_in_every_ring(shape):
    spectrum = radial_spectrum(1.7 * white((6, 4, *shape)))
    # a ring's mean over m real degrees of freedom has the relative standard error sqrt(2 / m)
    error = np.sqrt(2 / (24 * spectrum.count))
    deviation = (spectrum.power / 1.7**2 - 1) / error
    assert np.abs(deviation[1:]).max() < 4.5 and spectrum.variance == pytest.approx(1.7**2, rel=0.02)


def test_a_wave_is_at_its_frequency():
    t = torch.arange(64) * (2 * torch.pi / 64)
    spectrum = radial_spectrum(torch.cos(8 * t)[None, None, :, None].expand(1, 1, 64, 64))
    assert spectrum.frequency[spectrum.power.argmax()] == pytest.approx(8 / 64, rel=0.05)
    assert spectrum.variance == pytest.approx(0.5, rel=1e-5)


def test_the_mean_of_a_picture_is_capped():
    x = white((2, 3, 16, 16))
    plain, lifted = radial_spectrum(x), radial_spectrum(x + 50)
    assert lifted.power[0] == lifted.power[1] and np.allclose(lifted.power[1:], plain.power[1:], rtol=1e-3)


def test_spectra_of_two_sizes_compare():
    """Smoothed noise has one density in cycles a sample, however large it is cut."""
    wide = torch.nn.functional.avg_pool2d(white((40, 1, 66, 66)), 3, 1)
    small = radial_spectrum(wide[..., :32, :32])
    other = radial_spectrum(wide).at(small.frequency)
    inner = small.frequency > 0.05  # below, the window of the small cut blurs
    assert np.average(np.abs(np.log(other / small.power))[inner], weights=small.count[inner]) < 0.15


def test_a_power_law_has_unit_variance_and_its_slope():
    spectrum = power_law(2.5, (64, 64))
    assert spectrum.variance == pytest.approx(1.0)
    slope = np.diff(np.log(spectrum.power[1:])) / np.diff(np.log(spectrum.frequency[1:]))
    assert np.allclose(slope, -2.5) and spectrum.power[0] == spectrum.power[1]
    assert np.allclose(power_law(0.0, (64, 64)).power, 1.0)


def test_a_constant_latent_has_no_spectrum_to_normalise():
    with pytest.raises(ValueError, match="constant"):
        radial_spectrum(torch.zeros(1, 4, 8, 8)).normalised()
