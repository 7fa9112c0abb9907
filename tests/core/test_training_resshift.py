"""The ResShift miniature: how its training begins and draws, and what came of it."""

import pytest
import torch
from safetensors.torch import load_file
from trajectory.benchmarks.miniature import painted
from trajectory.benchmarks.restoration import FIRST_SEED
from trajectory.models import swin_unet
from trajectory.samplers.residual_shift import Levels, ResidualShift, restore
from trajectory.training import resshift, vq_autoencoder
from trajectory.training.degradation import degrade
from trajectory.training.landscapes.scene import held_out_scenes


def test_the_network_begins_the_same_for_a_seed_and_predicts_nothing_yet():
    first, again, other = (resshift.build_model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["time_embed.0.weight"], other["time_embed.0.weight"])
    state = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(resshift.build_model(0)(state, torch.tensor([1]), state).abs().max()) == 0


def test_every_weight_is_trained_once():
    model = resshift.build_model(0)
    optimiser = resshift.optimiser_for(model)
    trained = [*optimiser.hidden, *(p for group in optimiser.adam.param_groups for p in group["params"])]
    assert len(trained) == len({id(p) for p in trained}) == len(list(model.parameters()))


def test_a_batch_depends_on_seed_and_step_alone(monkeypatch):
    pool = {name: torch.arange(20).view(20, 1, 1, 1).expand(-1, 3, 4, 4) for name in ("x0", "y", "lq")}
    monkeypatch.setattr(resshift, "load_pool", lambda stem, number, make: pool)
    first, again = (resshift.Batches(20, 0).draw(5, 6) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    x0, y, noise, lq, times = first
    assert torch.equal(x0, y) and (lq - (x0 / 127.5 - 1)).abs().max() == 0  # of the same pictures
    assert not torch.equal(noise, resshift.Batches(20, 0).draw(6, 6)[2])
    assert set(times.tolist()) <= set(range(resshift.STEPS))


@pytest.fixture(scope="module")
def bundled():
    return swin_unet.load(load_file(resshift.FILE), torch.float32), vq_autoencoder.load()


def test_the_bundled_network_is_small_and_of_the_published_kind(bundled):
    network, autoencoder = bundled
    assert resshift.FILE.stat().st_size < 1.8e6
    assert network.config == resshift.CONFIG
    assert network.multiple * autoencoder.factor == resshift.SIZE


def test_the_bundled_network_comes_closer_to_the_painting_than_bicubic_enlargement(bundled):
    network, autoencoder = bundled
    process, seeds = ResidualShift.published(resshift.STEPS), range(FIRST_SEED, FIRST_SEED + 6)
    levels = Levels(process.sigmas)
    sharp = painted(held_out_scenes(6), resshift.SIZE).movedim(-1, 1)
    small = degrade(sharp, list(seeds))
    large = resshift.enlarged(small)
    with torch.no_grad():
        y = autoencoder.encode(large * 2 - 1)
        x0 = restore(lambda u, sigma: process.denoised(network, u, sigma, levels.position(sigma), y, lq=small * 2 - 1),
                     y, torch.randn(4, *y.shape, generator=torch.Generator().manual_seed(0)), process)  # fmt: skip
        restored = (autoencoder.decode(x0) + 1) / 2
    errors = [(made.clamp(0, 1) - sharp).square().mean((1, 2, 3)).log10().mean() for made in (restored, large)]
    assert errors[0] < errors[1] - 0.3  # 3 dB
