"""tAB-DEIS against the host's `deis`, by recorded numbers (record_deis.py), in the time that the host's version fixes.

The host sums 10000 left-hand rectangles in float32, which leaves a few 1e-5 relative to states of size 20. And
logrhoAB-DEIS against diffusers' scheduler, side by side.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_models import PATHS, start, two_modes
from trajectory.samplers.deis import plan_deis
from trajectory.samplers.model import Schedule
from trajectory.samplers.plan import execute

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_deis", HERE / "record_deis.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "deis.json").read_text())


def vp_time(sigma, low=0.002, high=80.0, epsilon=1e-3):
    """Time of the linear VP schedule whose sigma runs from `low` at `epsilon` to `high` at 1 (Karras et al. 2022)."""
    slope = 2 * (np.log(low**2 + 1) / epsilon - np.log(high**2 + 1)) / (epsilon - 1)
    least = np.log(high**2 + 1) - slope / 2
    return (np.sqrt(least**2 + 2 * slope * np.log(np.asarray(sigma) ** 2 + 1)) - least) / slope


class VPSchedule(Schedule):
    time = staticmethod(vp_time)


@pytest.mark.parametrize("predictions", [2, 3, 4])
def test_same_as_the_hosts_deis_in_its_time(predictions):
    x = torch.tensor(DATA["x"], dtype=torch.float64).view(-1, 1)
    sigmas = torch.tensor(recorder.SIGMAS, dtype=torch.float64)
    plan = plan_deis(recorder.SIGMAS, VPSchedule(), order=predictions - 1, guard=0)
    ours = execute(plan, lambda x, s: recorder.denoise(x, s.view(-1, 1)), x, sigmas, disable=True).flatten()
    expected = torch.tensor(DATA["results"][str(predictions)], dtype=torch.float64)
    assert (ours - expected).abs().max() < 2e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("predictions", [1, 2, 3])
def test_logrho_ab_is_that_of_diffusers(predictions):
    from diffusers import DEISMultistepScheduler

    scheduler = DEISMultistepScheduler(
        solver_order=predictions, lower_order_final=False, prediction_type="epsilon", solver_type="logrho"
    )
    scheduler.set_timesteps(9)
    sigmas = scheduler.sigmas = scheduler.sigmas.double()  # its own are float32
    model, x = two_modes(PATHS["ve"]), start(PATHS["ve"], float(sigmas[0]))
    state = x / (1 + sigmas[0] ** 2) ** 0.5
    for sigma, time in zip(sigmas[:8], scheduler.timesteps, strict=False):
        ve = state * (1 + sigma**2) ** 0.5
        state = scheduler.step((ve - model(ve, sigma.expand(len(ve)))) / sigma, time, state).prev_sample
    theirs = state * (1 + sigmas[8] ** 2) ** 0.5
    plan = plan_deis(sigmas[:9].tolist(), Schedule(), variant="logrhoAB", order=predictions - 1, guard=0)
    ours = execute(plan, model, x, sigmas[:9], disable=True)
    assert (ours - theirs).abs().max() < 1e-13
