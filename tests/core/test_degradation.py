"""The degradation of training and benchmarks: each item by its own seed, each part as strong as documented."""

import math

import numpy as np
import pytest
import torch
from trajectory.operators.compression import JPEG
from trajectory.operators.resample import Downsample
from trajectory.training import degradation
from trajectory.training.degradation import degrade, elliptic_kernel
from trajectory.training.landscapes.painter import paint
from trajectory.training.landscapes.scene import held_out_scenes


def paintings(number, size=128):
    drawn = [paint(scene, size, np.random.default_rng(k)) for k, scene in enumerate(held_out_scenes(number))]
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1).float() for picture in drawn])


def test_item_k_depends_on_its_seed_alone():
    pictures, seeds = paintings(3), [5, 9, 2**62]
    together, state = degrade(pictures, seeds), torch.random.get_rng_state()
    for k, seed in enumerate(seeds):
        assert torch.equal(degrade(pictures[k : k + 1], [seed])[0], together[k])
    assert not torch.equal(degrade(pictures[:1], [6])[0], together[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("size", "factor"), [((128, 128), 4), ((24, 40), 2), ((8, 8), 4)], ids=str)
def test_the_result_is_a_smaller_picture(size, factor):
    small = degrade(torch.rand(2, 3, *size), [0, 1], factor)
    assert small.shape == (2, 3, size[0] // factor, size[1] // factor) and small.dtype == torch.float32
    assert small.min() >= 0 and small.max() <= 1


def test_it_still_shows_the_picture():
    """Every one of 48 is nearer to its own picture than to any other, and none is the plain small picture."""
    plain = Downsample(4).A(paintings(48))
    small = degrade(paintings(48), list(range(48)))
    errors = torch.cdist(small.flatten(1), plain.flatten(1)) / math.sqrt(small[0].numel())
    assert torch.equal(errors.argmin(1), torch.arange(48))
    assert 0.005 < errors.diagonal().min() and errors.diagonal().max() < 0.15


def test_the_noise_is_drawn_over_its_whole_range(monkeypatch):
    """On grey pictures, before the file is written."""
    seen = []
    monkeypatch.setattr(JPEG, "A", lambda _self, x: seen.append(x.std()) or x)
    degrade(torch.full((60, 3, 128, 128), 0.5), list(range(60)))
    low, high = degradation.NOISE
    assert 0 <= min(seen) - low < 0.1 * high
    assert 0.9 * high < max(seen) < 1.05 * high


def test_the_file_is_drawn_over_its_whole_range(monkeypatch):
    qualities = []
    monkeypatch.setattr(degradation, "JPEG", lambda quality: qualities.append(quality) or JPEG(quality))
    degrade(torch.rand(1, 3, 8, 8).expand(120, -1, -1, -1), list(range(120)))
    low, high = degradation.QUALITY
    assert low <= min(qualities) < low + 4 and high - 4 < max(qualities) <= high


def test_a_blurred_point_has_the_documented_widths_and_direction():
    kernel = elliptic_kernel(2.0, 0.7, math.radians(30))
    kernel = kernel / kernel.sum()
    place = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    covariance = torch.stack([(kernel * a * b).sum() for a in (place, place[:, None]) for b in (place, place[:, None])])
    values, axes = torch.linalg.eigh(covariance.view(2, 2))
    assert values.sqrt().tolist() == pytest.approx([0.7, 2.0], rel=0.03)
    assert math.atan2(axes[1, 1], axes[0, 1]) % math.pi == pytest.approx(math.radians(30), abs=0.01)
    assert torch.allclose(elliptic_kernel(1.0, 1.0, 0.3), elliptic_kernel(1.0, 1.0, 1.2))


def test_the_blur_is_drawn_over_its_whole_range(monkeypatch):
    widths = []
    monkeypatch.setattr(degradation, "elliptic_kernel", lambda *a: widths.append(a[:2]) or elliptic_kernel(*a))
    degrade(torch.rand(1, 3, 8, 8).expand(80, -1, -1, -1), list(range(80)))
    low, high = degradation.BLUR
    drawn = torch.tensor(widths)
    assert low <= drawn.min() < 1.2 * low and 0.8 * high < drawn.max() <= high
    assert 0.3 < (drawn[:, 0] == drawn[:, 1]).float().mean() < 0.7


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="factor is 4"):
        degrade(torch.rand(1, 3, 10, 8), [0])
    with pytest.raises(ValueError, match="shorter"):
        degrade(torch.rand(2, 3, 8, 8), [0])
