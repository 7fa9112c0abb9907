"""A predictor-corrector in the angle of the v-prediction.

Every diffusion and flow model turns its state around a circle: with r = sqrt((s alpha)^2 + sigma^2) and the angle
phi = arctan(sigma / (s alpha)), z = x / r moves by dz/dphi = v alone, where v = cos(phi) n - sin(phi) x0/s is the
v-prediction for data of standard deviation s (Salimans & Ho 2022, appendix D; Lu & Song 2024, TrigFlow). phi runs from
pi/2 (noise, also at sigma 1 of a flow) to 0 (data), nothing diverges at either end, and Gaussian data of deviation s
are solved exactly by one step. So v is what is interpolated, with the angle for s = 1 as the variable:

    predict   x_b = (r_b/r_a) x_a + r_b int v dphi      v through the last predictions (Adams-Bashforth)
    evaluate  D_b = D(x_b, sigma_b)
    correct   the same step with v_b among its points (Adams-Moulton); no further call

The last step is x = D where other solvers stop. Here the correction of the last state is passed on through it, by the
gain that a denoiser has on it: x = D + g (corrected - predicted), g = alpha d^2 / ((d alpha)^2 + sigma^2), the gain of
Wiener's filter for details of deviation d.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .integrator import Integrator, record_step, usable
from .plan import Plan, plan_sampler
from .weights import StepWeights, lagrange, quadrature

FEW_STEPS = 10


@dataclass(frozen=True)
class Settings:
    """order and corrector: predictions used by each. data_std: s. detail_std: d, in latents of unit variance."""

    order: int
    corrector: int
    data_std: float
    detail_std: float


def automatic(path, steps):
    """The Settings that did best on mixtures like those of `benchmarks/solvers.py`, in few steps also on pictures."""
    flow = path.name == "flow"
    if steps < FEW_STEPS:  # long steps: extrapolation overshoots, and the last correction is of more than details
        return Settings(1, 2 if flow else 3, 1.0, 0.15)
    return Settings(2, 2, 2.0, 0.5) if flow else Settings(3, 3, 1.0, 0.5)


@dataclass
class AngularIntegrator(Integrator):
    """An Integrator of dz/dphi = v; `data_std` is s."""

    data_std: float = 1.0
    ddim: ClassVar[bool] = False

    def radius(self, sigma):
        return np.hypot(self.data_std * self.path.alpha(sigma), sigma)

    def prediction_terms(self, sigma):
        """v = (s alpha / (r sigma)) x - (r / (s sigma)) D."""
        alpha, radius = float(self.path.alpha(sigma)), float(self.radius(sigma))
        return self.data_std * alpha / (radius * sigma), -radius / (self.data_std * sigma)

    def weights(self, nodes, sigma_a, sigma_b, variant):
        """Weights of the step by the polynomial through v at `nodes`; dphi = s / r^2 dsigma on both paths."""
        sigma, dsigma = quadrature(self.path, sigma_a, sigma_b)
        kernel = float(self.radius(sigma_b)) * self.data_std / self.radius(sigma) ** 2 * dsigma
        c = lagrange([float(self.u(node.sigma)) for node in nodes], self.u(sigma)) @ kernel
        return StepWeights(float(self.radius(sigma_b) / self.radius(sigma_a)), tuple(map(float, c)))


def plan_angular(sigmas, schedule, *, order=0, corrector=0, data_std=0.0, guard=6.0):
    """Plan of the angular predictor-corrector for the noise levels `sigmas`, one call an interval.

    order: predictions used by the predictor, 1-4; corrector: by the corrector, 2-4, or 1 for none; data_std: s. For 0
    see `automatic`. guard: see `integrator.Integrator.guarded`. The whole run is of order min(order + 1, corrector), 3
    at most. Raises ValueError for options out of range.
    """
    check_options(order, corrector, data_std)
    sigmas, path, plan = usable(sigmas, schedule.path), schedule.path, Plan()
    steps = max(len(sigmas) - 1, 0)
    chosen = automatic(path, steps)
    order, corrector = order or chosen.order, corrector or chosen.corrector
    integrator = AngularIntegrator(
        plan, path, lambda sigma: np.arctan2(sigma, path.alpha(sigma)), "v", guard=guard,
        data_std=data_std or chosen.data_std,
    )  # fmt: skip
    history, before = [], None
    for i in range(steps):
        sigma_a, sigma_b, out, calls = sigmas[i], sigmas[i + 1], f"x{i + 1}", plan.calls
        predicted = plan.result
        node = integrator.predict(predicted, sigma_a, i)
        if before and corrector > 1:
            state, start = before
            plan.result = f"c{i}"
            # the start stays first, for the guard counts from it
            integrator.advance(plan.result, state, [start, node, *history[1:]][:corrector], start.sigma, sigma_a)
        history = [node, *history][:4]
        before = plan.result, node
        if sigma_b == 0:
            nodes, kappa, plan.outside = [node], 1.0, node.denoised
            gain = wiener_gain(path, sigma_a, chosen.detail_std)
            plan.combine(out, (1.0, node.denoised), (gain, plan.result), (-gain, predicted))
        else:
            nodes, kappa, _ = integrator.advance(out, plan.result, history[:order], sigma_a, sigma_b)
        record_step(plan, sigma_a, sigma_b, nodes, calls, kappa)
        plan.result = out
    return plan


sample_angular = plan_sampler(plan_angular)


def wiener_gain(path, sigma, std):
    """dD/dx of the best denoiser at `sigma` for Gaussian data of deviation `std`."""
    alpha = float(path.alpha(sigma))
    return alpha * std**2 / ((alpha * std) ** 2 + sigma**2)


def check_options(order, corrector, data_std):
    """Raise ValueError with the option, its value and the fix."""
    for name, value, most in (("order", order, 4), ("corrector", corrector, 4)):
        if value not in range(most + 1):
            raise ValueError(f"{name} is {value}; choose 1 to {most}, or 0 for the automatic one")
    if data_std != 0 and not 0.05 <= data_std <= 5:
        raise ValueError(f"data_std is {data_std}; choose 0.05 to 5, or 0 for the automatic one")
