"""IR-SDE's and Refusion's networks, noise levels and posterior sampling against the authors' code.

By recorded numbers (record_ir_sde.py), and side by side at the published sizes where IRSDE_PATH names a checkout.
"""

import importlib.util
import json
import os
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from trajectory.models import conditional_unet, nafnet
from trajectory.samplers.ir_sde import noise_levels, signal, signal_at
from trajectory.samplers.mean_reverting import plan_mean_reverting
from trajectory.samplers.model import Schedule
from trajectory.samplers.plan import execute

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_ir_sde", HERE / "record_ir_sde.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "ir_sde.json").read_text())
READERS = {"ConditionalUNet": conditional_unet.read, "ConditionalNAFNet": nafnet.read}


def read_as(cls, shapes):
    return READERS[cls]({key: recorder.seeded(key, tuple(shape)) for key, shape in shapes.items()})


def seen(x, mu, conditional):
    """What our networks read of a state and a degraded picture."""
    return torch.cat([x - mu, mu], dim=1) if conditional else x


@pytest.mark.parametrize("name", recorder.NETWORKS)
@torch.no_grad()
def test_a_network_computes_what_the_authors_does(name):
    _, cls, _, channels, conditional = recorder.NETWORKS[name]
    ours = read_as(cls, DATA["networks"][name]["shapes"])
    for size, expected in zip(recorder.SIZES, DATA["networks"][name]["results"], strict=True):
        result = ours(seen(*recorder.pictures(channels, size), conditional), torch.tensor(recorder.TIMES))
        expected = torch.tensor(expected).view(2, channels, *size)
        assert expected.std() > 0.1
        assert (result - expected).abs().max() < 5e-6 * max(1, expected.abs().max())


def test_the_noise_levels_are_the_authors():
    assert np.allclose(signal(), DATA["signal"], rtol=1e-5)  # theirs are float32
    levels = noise_levels(10)
    assert np.allclose(levels, np.array(DATA["noise"]) / DATA["signal"], rtol=1e-4)
    assert np.allclose(signal_at(levels, 10), signal(), rtol=1e-12)


def test_the_first_order_mr_sde_over_all_levels_is_the_authors_posterior_sampling(monkeypatch):
    settings = recorder.POSTERIOR
    levels = noise_levels(settings["max_sigma"], settings["T"], settings["eps"])
    sigmas = [*levels[::-1], 0.0]
    mu = torch.linspace(0, 1, 60, dtype=torch.float64).view(1, 3, 4, 5)
    draws = iter(recorder.noises(settings["T"] + 1))
    # theirs starts with noise of the strength that the levels only approach
    start = mu + settings["max_sigma"] / 255 / settings["eps"] * next(draws)

    def denoised(u, sigma):
        a = signal_at(sigma, settings["max_sigma"])
        t = 1 + int(np.abs(levels - float(sigma)).argmin())
        return u - sigma * recorder.predicted(a * (u - mu), t)

    monkeypatch.setattr("trajectory.samplers.plan.ItemNoise", lambda *_: types.SimpleNamespace(draw=draws.__next__))
    plan = plan_mean_reverting(sigmas, Schedule(), equation="sde", order=1)
    restored = execute(plan, denoised, start, torch.tensor(sigmas, dtype=torch.float64), disable=True)
    expected = torch.tensor(DATA["posterior"], dtype=torch.float64).view_as(mu)
    assert (expected - mu).abs().max() > 0.05
    assert (restored - expected).abs().max() < 1e-5


PUBLISHED = {
    "IR-SDE": ("deraining", "ConditionalUNet", {"in_nc": 3, "out_nc": 3, "nf": 64, "depth": 4}, 137_147_523),
    "deshadow": ("deshadow", "ConditionalUNet", {"in_nc": 3, "out_nc": 3, "nf": 32, "depth": 5}, 135_346_755),
    "Refusion": ("deraining", "ConditionalNAFNet", {
        "width": 64, "enc_blk_nums": [1, 1, 1, 28], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]}, 76_608_387),
}  # fmt: skip


@pytest.mark.skipif("IRSDE_PATH" not in os.environ, reason="IRSDE_PATH names a checkout of image-restoration-sde")
@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_side_by_side_at_the_published_size(name):
    folder, cls, options, parameters = PUBLISHED[name]
    theirs = recorder.network(os.environ["IRSDE_PATH"], folder, cls, options)
    ours = READERS[cls](theirs.state_dict())
    assert sum(weight.numel() for weight in ours.parameters()) == parameters
    x, mu = recorder.pictures(3, (40, 24))
    expected = theirs(x, mu, torch.tensor(recorder.TIMES))
    result = ours(seen(x, mu, True), torch.tensor(recorder.TIMES))
    difference, largest = float((result - expected).abs().max()), float(expected.abs().max())
    print(f"{name}: largest difference {difference:.1e} in values up to {largest:.1f}")
    assert difference < 1e-5 * largest
