"""Stochastic interpolants: any flow or diffusion model as an SDE with a diffusion coefficient of one's choice.

On the linear interpolant x = (1 - s) x0 + s n the process dX = (b + epsilon score) dt + sqrt(2 epsilon) dW has the same
marginals for every epsilon(s) >= 0 (Albergo et al. 2023, arXiv 2303.08797, section 2). In half-logSNR that is noise of
strength tau^2 = epsilon (1 - s) / s in the exponential integrator, and since log-SNR alone enters, a model on the VE
path is the same process at s = sigma / (1 + sigma).
"""

from dataclasses import dataclass

import numpy as np

from .dpm_solver import falling_orders
from .integrator import Integrator, plan_multistep, usable
from .plan import Plan, StepInfo, check_choices, plan_sampler
from .weights import basis_function

EPSILONS = {
    "sigma/(1-sigma)": lambda s: np.ones_like(s),
    "sigma": lambda s: 1 - s,
    "sigma^2": lambda s: s * (1 - s),
    "sin^2(pi sigma)": lambda s: np.sin(np.pi * s) ** 2 * (1 - s) / s,
    "constant": lambda s: (1 - s) / s,
}
"""epsilon(s) -> tau^2(s) at scale 1."""

MOST = 3.0
"""tau stays below it, for with a constant epsilon it would grow without bound towards sigma 0."""

INTEGRATORS = ("exponential", "euler-maruyama", "heun")


def strength_function(path, epsilon, scale):
    """tau of the noise levels: a number where it is constant, else a smooth function of sigma."""
    if epsilon == "sigma/(1-sigma)" or scale == 0:
        return float(np.sqrt(scale))

    def tau(sigma):
        s = sigma / (path.alpha(sigma) + sigma)
        square = scale * EPSILONS[epsilon](s)
        return np.sqrt(square / (1 + square / MOST**2) if epsilon == "constant" else square)

    return tau


@dataclass
class WindowedIntegrator(Integrator):
    """An Integrator whose steps are noisy where they start within [sigma_low, sigma_high] only."""

    sigma_high: float = np.inf
    sigma_low: float = 0.0

    def strength(self, sigma_a):
        return self.tau if self.sigma_low <= sigma_a <= self.sigma_high else 0.0


def plan_interpolant(
    sigmas, schedule, *, epsilon="sigma", scale=1.0, sigma_high=np.inf, sigma_low=0.0, order=2,
    integrator="exponential", guard=6.0,
):  # fmt: skip
    """Plan of the SDE of stochastic interpolants for the noise levels `sigmas`.

    epsilon: one of EPSILONS; scale multiplies it, 0 is the ODE. sigma_high, sigma_low: steps that start outside this
    window add no noise. integrator: 'exponential' solves the linear part and the noise exactly and is a multistep
    method of `order` 1-3 (at scale 0 DPM-Solver++); 'euler-maruyama' is the first-order method of the paper; 'heun'
    adds the noise first and takes a Heun step from there, two calls a step. guard: see `Integrator.guarded`.

    The authors' Heun takes both slopes at the end of the step; here the first stands at its start, so that scale 0 is
    Heun's method. Raises ValueError for unknown words, values out of range and SIGMAS that rise.
    """
    check_options(epsilon, scale, sigma_high, sigma_low, order, integrator)
    path, plan = schedule.path, Plan()
    sigmas = usable(sigmas, path, scale)
    made = WindowedIntegrator(
        plan, path, basis_function("logSNR", schedule), "data", tau=strength_function(path, epsilon, scale),
        guard=guard, sigma_high=sigma_high, sigma_low=sigma_low,
    )  # fmt: skip
    if integrator == "exponential":
        plan_multistep(made, sigmas, falling_orders(sigmas, order, "auto"), "ramp", correct=False)
    else:
        _plan_explicit(made, sigmas, heun=integrator == "heun")
    return plan


sample_interpolant = plan_sampler(plan_interpolant)


def check_options(epsilon, scale, sigma_high, sigma_low, order, integrator):
    """Raise ValueError with the option, its value and the fix."""
    choices = {
        "epsilon": (epsilon, EPSILONS), "order": (order, (1, 2, 3)), "integrator": (integrator, INTEGRATORS),
    }  # fmt: skip
    check_choices(choices)
    if scale < 0:
        raise ValueError(f"scale is {scale}; it is the strength of the noise, 0 (none) or more")
    if sigma_low > sigma_high:
        raise ValueError(f"sigma_low is {sigma_low}, above sigma_high {sigma_high}; lower it, or raise sigma_high")


def _plan_explicit(made, sigmas, heun):
    """Append steps of dx = G dsigma + noise with the drift G = (x - D)/sigma + tau^2 (x - alpha D)/(sigma alpha)."""
    plan, path = made.plan, made.path

    def drift(state, node, tau):
        square = float(tau(node.sigma) if callable(tau) else tau) ** 2
        slot = f"G{node.denoised}"
        terms = (1 + square / path.alpha(node.sigma)) / node.sigma, -(1 + square) / node.sigma
        plan.combine(slot, (terms[0], state), (terms[1], node.denoised))
        return slot

    for i, (sigma_a, sigma_b) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        calls, state, out, order = plan.calls, plan.result, f"x{i + 1}", 1
        tau, span = made.strength(sigma_a), sigma_b - sigma_a
        if made.closed(sigma_a, sigma_b):
            made.advance(out, state, [made.predict(state, sigma_a, i)], sigma_a, sigma_b)
        else:
            at_start = float(tau(sigma_a) if callable(tau) else tau)
            deviation = at_start * float(np.sqrt(2 * max(0.0, -span) * sigma_a / path.alpha(sigma_a)))
            noise = made.increments(out, deviation, (), sigma_b) if deviation else ()
            if heun:
                noisy, order = f"n{i}", 2
                plan.combine(noisy, (1.0, state), *noise)
                slope = drift(noisy, made.predict(noisy, sigma_a, i), tau)
                plan.combine(f"e{i}", (1.0, noisy), (span, slope))
                end = drift(f"e{i}", made.predict(f"e{i}", sigma_b), tau)
                plan.combine(out, (1.0, noisy), (span / 2, slope), (span / 2, end))
            else:
                slope = drift(state, made.predict(state, sigma_a, i), tau)
                plan.combine(out, (1.0, state), (span, slope), *noise)
        plan.steps.append(StepInfo(sigma_a, sigma_b, order, plan.calls - calls))
        plan.result = out
