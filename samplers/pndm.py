"""PNDM: pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv 2202.09778).

The paper's transfer from one noise level to the next is the step of dx/dsigma = d, d = (x - D)/sigma, with d held
constant, on any path. So its methods are Adams-Bashforth on d after a Runge-Kutta start, and work on a flow's velocity.
"""

from collections import Counter

import numpy as np

from .classical import TABLEAUS, UniformIntegrator, combine_row, stages
from .integrator import Integrator, plan_multistep, usable
from .plan import Plan, check_choices, plan_sampler
from .weights import basis_function, step_weights

METHODS = {"F-PNDM": ("rk4", (4,)), "S-PNDM": ("heun", (2,)), "PLMS": ("heun", (2, 2, 3, 4))}
"""Method -> (table of the steps that lack a history, predictions used by the first steps; the last number stays)."""

COEFFICIENTS = ("constant", "variable")
MIDDLES = ("auto", "model time", "logSNR", "sigma")


def plan_pndm(sigmas, schedule, *, method="PLMS", coefficients="constant", mid="auto", guard=7.0):
    """Plan of PNDM for the noise levels `sigmas` (Liu et al. 2022, algorithm 2 and appendix A.4).

    method: 'F-PNDM' starts with three Runge-Kutta steps of 4 calls and goes on with 4 predictions; 'S-PNDM' starts with
    one step of 2 calls and goes on with 2 predictions; 'PLMS' starts as S-PNDM and grows to 4 (latent diffusion).
    coefficients: 'constant' are the paper's, exact on even steps in sigma; 'variable' are exact on any. mid: what is
    halved by the inner stages of F-PNDM; 'auto' is the model's time where it has one, else sigma. guard: see
    `integrator.Integrator.guarded`, for the variable coefficients. Raises ValueError for options that exclude each
    other.
    """
    check_options(method, coefficients, mid)
    path, u = schedule.path, basis_function("sigma", schedule)
    sigmas, plan, middle = usable(sigmas, path), Plan(), middle_of(mid, schedule)
    constant = coefficients == "constant"
    integrator = (
        UniformIntegrator(plan, path, u, "derivative") if constant
        else Integrator(plan, path, u, "derivative", guard=guard)
    )  # fmt: skip
    table, first_orders = METHODS[method]
    tableau = TABLEAUS[table]

    def start(out, state, node, sigma_b):
        inner = [sigma_b if c == 1 else middle(node.sigma, sigma_b) for c in tableau.c]
        nodes = stages(integrator, out, state, node, tableau, inner)
        row = tableau.b if constant else exact_row(path, u, nodes, node.sigma, sigma_b)
        combine_row(integrator, out, state, nodes, row, node.sigma, sigma_b)
        return nodes

    orders = [first_orders[min(i, len(first_orders) - 1)] for i in range(len(sigmas) - 1)]
    plan_multistep(integrator, sigmas, orders, start, correct=False)
    return plan


sample_pndm = plan_sampler(plan_pndm)


def exact_row(path, u, nodes, sigma_a, sigma_b):
    """Weights of the predictions of a Runge-Kutta step that integrate the polynomial through its noise levels exactly.

    Stages at one noise level share its weight: their mean is closer there than either, for the two inner stages of rk4
    err to opposite sides.
    """
    calls = Counter(node.sigma for node in nodes)
    weights = step_weights(path, "derivative", u, list(calls), sigma_a, sigma_b).nodes
    shares = {sigma: weight / n for (sigma, n), weight in zip(calls.items(), weights, strict=True)}
    return [shares[node.sigma] for node in nodes]


def middle_of(mid, schedule):
    """The function (sigma_a, sigma_b) -> the noise level half-way between them in one of MIDDLES.

    Raises ValueError where the model has no time of its own.
    """
    if mid == "auto":
        mid = "sigma" if schedule.time is None else "model time"
    if mid == "model time" and schedule.time is None:
        raise ValueError("mid is 'model time', but the model has no table of sigmas; set mid to auto, logSNR or sigma")
    there = basis_function(mid, schedule)
    back = {"sigma": float, "logSNR": schedule.path.sigma, "model time": getattr(schedule.time, "sigma", None)}[mid]

    def middle(sigma_a, sigma_b):
        between = (there(sigma_a) + there(sigma_b)) / 2
        if np.isinf(between):  # log-SNR at sigma 1 of a flow
            return (sigma_a + sigma_b) / 2
        # a table's time ends at its last sigma, and the middle has to lie inside the step also beyond that
        return float(np.clip(back(between), *sorted((sigma_a, sigma_b))))

    return middle


def check_options(method, coefficients, mid):
    """Raise ValueError with the option, its value and the fix: unknown words."""
    choices = {"method": (method, METHODS), "coefficients": (coefficients, COEFFICIENTS), "mid": (mid, MIDDLES)}
    check_choices(choices)
