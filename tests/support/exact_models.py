"""Denoisers with exact answers, and the float64 run of a plan on them."""

import numpy as np
import torch
from trajectory.samplers.model import Schedule
from trajectory.samplers.paths import FLOW, VE
from trajectory.samplers.plan import execute

PATHS = {"ve": VE, "flow": FLOW}
MEAN, STD = torch.tensor([1.0, -0.6, 0.4], dtype=torch.float64), 0.35


def _alpha(path, sigma):
    return torch.ones_like(sigma) if path is VE else 1 - sigma


def gaussian(path, mean=0.3, std=0.5):
    """Posterior mean E[x0 | x] of data N(mean, std^2): D = mean + alpha std^2 / v (x - alpha mean)."""

    def model(x, sigma, **_):
        sigma = sigma.double().view(-1, *[1] * (x.ndim - 1))
        alpha = _alpha(path, sigma)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    return model


def gaussian_flow_map(path, x, sigma_a, sigma_b, mean=0.3, std=0.5):
    """The exact solution of the probability-flow ODE for `gaussian`: the deviation in units of its scale is kept."""
    alpha_a, alpha_b = float(path.alpha(sigma_a)), float(path.alpha(sigma_b))
    scale = np.sqrt((alpha_b**2 * std**2 + sigma_b**2) / (alpha_a**2 * std**2 + sigma_a**2))
    return alpha_b * mean + scale * (x - alpha_a * mean)


def two_modes(path):
    """Posterior mean of data with two Gaussian modes at +-MEAN: smooth, nonlinear, x [B, 3]."""

    def model(x, sigma, **_):
        sigma = sigma.double().view(-1, 1)
        alpha = _alpha(path, sigma)
        v = alpha**2 * STD**2 + sigma**2
        sign = torch.tanh((x * alpha * MEAN).sum(-1, keepdim=True) / v)
        return sign * MEAN + alpha * STD**2 / v * (x - alpha * sign * MEAN)

    return model


def start(path, sigma, items=16, seed=0):
    """Float64 states [items, 3] at noise level sigma, and the same for every caller."""
    noise = torch.randn(items, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * sigma + float(path.alpha(sigma)) * 0.3


def uniform_lam(path, sigma_a, sigma_b, steps):
    """steps + 1 noise levels uniform in log-SNR, as floats."""
    return [float(s) for s in path.sigma(np.linspace(path.lam(sigma_a), path.lam(sigma_b), steps + 1))]


def run(planner, path, model, sigmas, x, seed=0, **options):
    """(result, plan) of a planner in float64, without host."""
    plan = planner(sigmas, Schedule(path), **options)
    table = torch.tensor(sigmas, dtype=torch.float64)
    return execute(plan, model, x, table, {"seed": seed}, disable=True), plan


def slope(errors):
    """Order of convergence: mean log2 ratio of the last two halvings of the step."""
    return float(np.mean(np.log2(np.array(errors[-3:-1]) / np.array(errors[-2:]))))
