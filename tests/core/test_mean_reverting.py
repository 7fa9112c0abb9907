"""MR Sampler: the centred variable turns a mean-reverting model into an ordinary one, and the preset solves it."""

import numpy as np
import pytest
import torch
from exact_models import PATHS, run, two_modes
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.ir_sde import signal
from trajectory.samplers.mean_reverting import plan_mean_reverting
from trajectory.samplers.model import Schedule

VE = PATHS["ve"]
MU = torch.tensor([0.6, 0.2, -0.4], dtype=torch.float64)
SIGMA_INFINITY = 50 / 255


def ir_sde():
    """(alpha, sigma) of IR-SDE at t = 1 ... 100, where the state is mu + alpha (x0 - mu) + sigma n."""
    alpha = signal()
    return alpha, SIGMA_INFINITY * np.sqrt(1 - alpha**2)


def first_and_second_order(x, alpha, sigma, order):
    """MR-ODE-1 and -2 with the data prediction in the paper's own coordinates (its section 3, lambda = ln alpha/sigma).

    x_b = (s_b/s_a) x_a + mu (1 - a_b - s_b/s_a (1 - a_a)) + a_b (1 - e^-h) D + a_b (h - 1 + e^-h) D', D the clean
    picture itself and D' its difference quotient in lambda.
    """
    lam = np.log(alpha / sigma)
    clean = [MU + two_modes(VE)((x - MU) / alpha[0], torch.full((len(x),), sigma[0] / alpha[0]))]
    for i in range(len(alpha) - 1):
        ratio, h = sigma[i + 1] / sigma[i], lam[i + 1] - lam[i]
        step = ratio * x + MU * (1 - alpha[i + 1] - ratio * (1 - alpha[i])) + alpha[i + 1] * -np.expm1(-h) * clean[-1]
        if order == 2 and i > 0:
            quotient = (clean[-1] - clean[-2]) / (lam[i] - lam[i - 1])
            step = step + alpha[i + 1] * (h + np.expm1(-h)) * quotient
        x = step
        level = torch.full((len(x),), sigma[i + 1] / alpha[i + 1])
        clean.append(MU + two_modes(VE)((x - MU) / alpha[i + 1], level))
    return x


@pytest.mark.parametrize("order", [1, 2])
def test_the_papers_steps_are_ours_in_the_centred_variable(order):
    alpha, sigma = ir_sde()
    pick = np.linspace(99, 3, 13).round().astype(int)
    alpha, sigma = alpha[pick], sigma[pick]
    x = MU + SIGMA_INFINITY * torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = first_and_second_order(x, alpha, sigma, order)
    levels = (sigma / alpha).tolist()
    ours, plan = run(plan_mean_reverting, VE, two_modes(VE), levels, (x - MU) / alpha[0], order=order)
    assert plan.calls == 12
    assert torch.allclose(MU + alpha[-1] * ours, expected, atol=1e-12)


@pytest.mark.parametrize("equation, tau", [("ode", 0.0), ("sde", 1.0)])
def test_the_preset_is_dpm_solver(equation, tau):
    levels = [5.0, 2.0, 1.0, 0.4, 0.1, 0.0]
    for prediction in ("data", "noise"):
        ours = plan_mean_reverting(levels, Schedule(), equation=equation, prediction=prediction)
        assert ours == plan_dpm_solver(levels, Schedule(), prediction=prediction, tau=tau)


@pytest.mark.parametrize("options, words", [
    ({"equation": "pde"}, "equation is 'pde'"), ({"order": 4}, "order is 4"),
    ({"prediction": "velocity"}, "prediction is 'velocity'"),
])  # fmt: skip
def test_unknown_words_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_mean_reverting([1.0, 0.5], Schedule(), **options)
