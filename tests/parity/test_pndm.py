"""PNDM against the authors' code, by recorded numbers (record_pndm.py) or side by side, and against diffusers.

Set PNDM_PATH to a checkout of the authors' repository to run the second. diffusers' scheduler has the authors' F-PNDM
and latent diffusion's PLMS. Where a step spans an odd number of times it moves the first inner stage to another time
than it calls the network at, so the comparison is on even ones.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from trajectory.samplers.model import ModelTime, Schedule
from trajectory.samplers.paths import VE
from trajectory.samplers.plan import execute
from trajectory.samplers.pndm import plan_pndm

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_pndm", HERE / "record_pndm.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)


def recorded():
    if path := os.environ.get("PNDM_PATH"):
        return recorder.record(path)
    return json.loads((HERE / "pndm.json").read_text())


DATA = recorded()
X = torch.tensor(DATA["x"], dtype=torch.float64).view(-1, 1, 1, 1)


class LinearVP(Schedule):
    """The model's own time over the authors' table."""

    time = ModelTime(torch.sqrt(1 / recorder.TABLE - 1).tolist(), VE)


def ours(method, sigmas):
    """(result, calls) of a run from X."""
    plan = plan_pndm(sigmas.tolist(), LinearVP(), method=method, coefficients="constant", mid="model time")

    def model(x, sigma):
        return recorder.denoise(x, sigma.view(-1, 1, 1, 1))

    return execute(plan, model, X, sigmas, disable=True), plan.calls


@pytest.mark.parametrize("method", recorder.METHODS)
def test_same_as_the_authors(method):
    result, calls = ours(method, recorder.sigma_of(recorder.TIMES))
    expected = torch.tensor(DATA["results"][method]["result"], dtype=torch.float64)
    assert calls == DATA["results"][method]["calls"]
    assert (result.flatten() - expected).abs().max() < 2e-15 * expected.abs().max()


@pytest.mark.parametrize("method", ["F-PNDM", "PLMS"])
def test_same_as_diffusers(method):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=method == "PLMS")
    scheduler.alphas_cumprod = recorder.TABLE
    scheduler.final_alpha_cumprod = recorder.TABLE[0]
    scheduler.set_timesteps(20)
    state, calls = X * recorder.TABLE[950].sqrt(), 0
    for t in scheduler.timesteps.tolist():
        # its index is the time itself, the authors' one more
        state, calls = scheduler.step(recorder.network(state, t - 1), t, state).prev_sample, calls + 1
    times = torch.tensor([*range(949, -2, -50), -1])  # its last step leads from index 0 to index 0
    result, ours_calls = ours(method, recorder.sigma_of(times))
    assert ours_calls == calls
    expected = state / recorder.TABLE[0].sqrt()
    assert (result - expected).abs().max() < 2e-15 * expected.abs().max()
