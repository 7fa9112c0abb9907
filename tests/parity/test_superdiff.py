"""SuperDiff takes the step of the authors' script (record_superdiff.py), except for the sign in the densities of OR."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from trajectory.samplers import superposition
from trajectory.samplers.superposition import INTEGRATORS, Step, centred

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_superdiff", HERE / "record_superdiff.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "superdiff.json").read_text())


class Noise:
    def draw(self):
        return recorder.noise()


@pytest.mark.parametrize("index, settings", list(enumerate(recorder.SETTINGS)), ids=str)
def test_same_step_as_the_authors(index, settings):
    method, scale, sigma, sigma_next, lift, temperature, logp = settings
    theirs = {name: torch.tensor(values, dtype=torch.float64) for name, values in DATA[index].items()}
    x, *velocities, none = recorder.given()
    denoised, unconditional = x - sigma * torch.stack(velocities), x - sigma * none
    guided = unconditional + scale * (denoised - unconditional)

    step = Step.between(sigma, sigma_next, INTEGRATORS["euler_maruyama"])
    rest = step.rest(x, Noise())
    equal = superposition.log_density_steps(denoised, x, rest + step.share * guided.mean(0), sigma, sigma_next)
    gains = superposition.gains(denoised, guided, step)
    if method == "and":
        kappa = superposition.weights_and(equal, gains, torch.tensor([0.0, lift / recorder.STEPS]).double())
    else:
        kappa = superposition.weights_or(
            torch.tensor(recorder.LOG_Q).double().T, torch.tensor([logp, 0.0]).double(), temperature)
    assert torch.allclose(kappa[:, 0], theirs["kappa"], rtol=1e-6)

    x_next = rest + step.share * superposition.mixture(kappa, guided)
    assert torch.allclose(x_next.sum((1, 2, 3)), theirs["sum"])

    ours = superposition.log_density_steps(denoised, x, x_next, sigma, sigma_next)
    assert torch.allclose(ours, equal + (gains @ centred(kappa).unsqueeze(-1)).squeeze(-1))
    squares = torch.stack([v.square().sum((1, 2, 3)) for v in velocities], dim=-1)
    wrong = 2 * (sigma - sigma_next) / sigma * squares if method == "or" else 0.0 * squares
    assert torch.allclose(ours, centred(torch.stack([theirs["first"], theirs["second"]], dim=-1) - wrong), rtol=1e-6)
    assert math.isfinite(float(ours.sum()))
