"""Colour fixes: what they keep, what they take from the reference, and that items do not touch each other."""

import pytest
import torch
from trajectory.restoration.colour_fix import METHODS, fix, from_lab, low_band, to_lab, wavelet

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = 0.2 + 0.6 * torch.rand(3, 3, 40, 52, generator=GENERATOR)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_that_is_its_own_reference_stays(method):
    torch.testing.assert_close(fix(method, PICTURES, PICTURES), PICTURES, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_items_of_a_batch_are_independent(method):
    reference = PICTURES.flip(0)
    together = fix(method, PICTURES, reference)
    for k in range(3):
        torch.testing.assert_close(fix(method, PICTURES[k:k + 1], reference[k:k + 1]), together[k:k + 1], rtol=0,
                                   atol=1e-6)


def test_a_constant_shift_is_undone():
    shifted = PICTURES + torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1)
    torch.testing.assert_close(wavelet(shifted, PICTURES), PICTURES, rtol=0, atol=1e-5)
    torch.testing.assert_close(fix("adain", shifted, PICTURES), PICTURES, rtol=0, atol=1e-4)
    torch.testing.assert_close(fix("lab", shifted, PICTURES), PICTURES, rtol=0, atol=1e-4)


def test_adain_has_the_references_mean_and_contrast():
    reference = (0.4 * PICTURES + 0.3).flip(0)
    fixed = METHODS["adain"](PICTURES, reference)
    torch.testing.assert_close(fixed.mean((-2, -1)), reference.mean((-2, -1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(fixed.std((-2, -1)), reference.std((-2, -1)), rtol=2e-3, atol=0)


def test_wavelet_takes_the_low_band_and_keeps_the_rest():
    reference = PICTURES.flip(0)
    fixed = wavelet(PICTURES, reference)
    torch.testing.assert_close(fixed - low_band(reference), PICTURES - low_band(PICTURES), rtol=0, atol=1e-6)


def test_five_levels_blur_as_wide_as_their_taps():
    """The variance of [1 2 1]/4 is 1/2, and taps 2^k apart make it 4^k/2: together (4^5 - 1)/6 = 170.5 pixels^2."""
    point = torch.zeros(1, 1, 1, 129)
    point[..., 64] = 1
    line = low_band(point)[0, 0, 0]
    places = torch.arange(129.0) - 64
    assert abs(float((line * places**2).sum()) - 170.5) < 1e-3 and abs(float(line.sum()) - 1) < 1e-6


def test_lab_is_cielab():
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5]]).T.reshape(1, 3, 4, 1)
    known = torch.tensor([[100.0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [53.39, 0, 0]])
    torch.testing.assert_close(to_lab(colours)[0, :, :, 0].T, known, rtol=0, atol=0.03)
    torch.testing.assert_close(from_lab(to_lab(PICTURES)), PICTURES, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_flat_pictures_and_single_pixels_are_finite(method):
    for shape in ((1, 3, 1, 1), (1, 3, 16, 16), (2, 3, 1, 33)):
        assert fix(method, torch.zeros(shape), torch.full(shape, 0.5)).isfinite().all()


def test_another_method_is_refused_by_name():
    with pytest.raises(ValueError, match="color_fix is 'sepia'; choose one of none, wavelet, adain, lab"):
        fix("sepia", PICTURES, PICTURES)
