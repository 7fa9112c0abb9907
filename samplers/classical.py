"""Classical methods for the form of the ODE that has no linear part: Runge-Kutta tables and Adams-Bashforth weights.

dx/dsigma = d on any path (the derivative form), or dy/drho = eps in y = x/alpha, rho = sigma/alpha (the noise form).
"""

from dataclasses import dataclass

import numpy as np

from .integrator import Integrator, record_step
from .weights import StepWeights, first_order

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    (1901 / 720, -2774 / 720, 2616 / 720, -1274 / 720, 251 / 720),
)
"""Weights of the last 1 to 5 derivatives on a uniform grid, newest first (Hairer et al., Solving ODEs I, III.1)."""


@dataclass(frozen=True)
class Tableau:
    """An explicit Butcher table of an order; c and the rows of a are those of the second stage on.

    Raises ValueError when its shape, its row sums or the sum of b do not fit.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def __post_init__(self):
        stages = len(self.b)
        shaped = len(self.c) == len(self.a) == stages - 1 and all(len(row) == j for j, row in enumerate(self.a, 1))
        sums = [sum(row) for row in self.a]
        if not shaped or not np.allclose(sums, self.c) or not np.isclose(sum(self.b), 1):
            raise ValueError(f"not a consistent explicit Runge-Kutta table: {self}")


TABLEAUS = {
    "euler": Tableau(1, (), (), (1.0,)),
    "heun": Tableau(2, (1.0,), ((1.0,),), (1 / 2, 1 / 2)),
    "kutta3": Tableau(3, (1 / 2, 1.0), ((1 / 2,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6)),
    "ralston3": Tableau(3, (1 / 2, 3 / 4), ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "heun3": Tableau(3, (1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "vdhouwen3": Tableau(3, (8 / 15, 2 / 3), ((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4)),
    "ssprk3": Tableau(3, (1.0, 1 / 2), ((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "rk4": Tableau(4, (1 / 2, 1 / 2, 1.0), ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 2 / 6, 2 / 6, 1 / 6)),
}


@dataclass
class UniformIntegrator(Integrator):
    """An Integrator with the weights of a uniform grid, whatever the steps: iPNDM (Zhang & Chen 2023, appendix E)."""

    def weights(self, nodes, sigma_a, sigma_b, variant):
        table = ADAMS_BASHFORTH[len(nodes) - 1]
        carry, span = _linear(self.path, self.prediction, sigma_a, sigma_b)
        return StepWeights(carry, tuple(span * w for w in table))


def _linear(path, prediction, sigma_a, sigma_b):
    """(carry, span) with x_b = carry x_a + span P for a prediction P that does not change."""
    if prediction == "derivative":
        return 1.0, sigma_b - sigma_a
    alpha_a, alpha_b = float(path.alpha(sigma_a)), float(path.alpha(sigma_b))
    return alpha_b / alpha_a, sigma_b - sigma_a * alpha_b / alpha_a


def plan_runge_kutta(integrator, sigmas, tableau):
    """Append a Runge-Kutta step for each interval of SIGMAS; stages inside it are further calls, at new noise levels.

    Closed steps (`Integrator.closed`) are of first order, as everywhere.
    """
    plan, path = integrator.plan, integrator.path
    for i, (sigma_a, sigma_b) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        calls, state, out = plan.calls, plan.result, f"x{i + 1}"
        nodes = [integrator.predict(state, sigma_a, i)]
        if integrator.closed(sigma_a, sigma_b):
            step = first_order(path, sigma_a, sigma_b)
            plan.combine(out, (step.carry, state), (step.nodes[0], nodes[0].denoised))
        else:
            sigmas_of_stages = [_between(path, integrator.prediction, sigma_a, sigma_b, c) for c in tableau.c]
            nodes = stages(integrator, out, state, nodes[0], tableau, sigmas_of_stages)
            combine_row(integrator, out, state, nodes, tableau.b, sigma_a, sigma_b)
        record_step(plan, sigma_a, sigma_b, nodes[: tableau.order], calls, 1.0)
        plan.result = out


def stages(integrator, out, state, first, tableau, sigmas):
    """Call the model at the further stages of a table, at the noise levels `sigmas`; returns the nodes of all stages.

    `state` is the one of `first`, where the step begins.
    """
    nodes = [first]
    for sigma, row in zip(sigmas, tableau.a, strict=True):
        stage = f"{out}.{len(nodes)}"
        combine_row(integrator, stage, state, nodes, row, first.sigma, sigma)
        nodes.append(integrator.predict(stage, sigma))
    return nodes


def _between(path, prediction, sigma_a, sigma_b, c):
    """The noise level a fraction c into the step, in sigma or (noise form) in rho = sigma/alpha."""
    if prediction == "derivative":
        return sigma_a + c * (sigma_b - sigma_a)
    rho_a, rho_b = (s / float(path.alpha(s)) for s in (sigma_a, sigma_b))
    return float(path.sigma(-np.log(rho_a + c * (rho_b - rho_a))))


def combine_row(integrator, out, state, nodes, row, sigma_a, sigma_b):
    """Step `state` from sigma_a to sigma_b with the mean of the predictions that a row of a table weighs."""
    carry, span = _linear(integrator.path, integrator.prediction, sigma_a, sigma_b)
    # a stage's row sums up to its c, the fraction of the step that lies between the two noise levels
    terms = [(span * w / sum(row), node.prediction) for w, node in zip(row, nodes, strict=True)]
    integrator.plan.combine(out, (carry, state), *terms)
