"""Exponential-integrator steps appended to a plan: multistep, stages, corrector, noise and guard.

Every solver of this pack that interpolates a prediction is a choice of where that prediction is known (past points of
SIGMAS, points inside the step, the end point) and is written with an `Integrator`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .plan import Plan, StepInfo
from .weights import first_order, step_weights, with_variant

STARTS = ("ramp", "rk", "euler")
RK_STAGES = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Where the stages of an inserted singlestep stand, as fractions of its log-SNR span (Lu et al. 2022a, alg. 1, 2)."""


@dataclass(frozen=True)
class Node:
    """A point where the model was called: its noise level, the denoised prediction, and the prediction P in use."""

    sigma: float
    denoised: str
    prediction: str


@dataclass
class Integrator:
    """Appends model calls and steps of one prediction, basis, variant, tau and guard to `plan`."""

    plan: Plan
    path: object
    u: object
    prediction: str
    variant: str = "taylor"
    tau: float = 0.0
    guard: float = 0.0
    ddim: ClassVar[bool] = True
    """Whether a step with one prediction is the same for data, noise and derivative, as it is without noise."""

    def strength(self, sigma_a):
        """tau of the step that starts at sigma_a: a number, or a function of sigma (`weights.noise_time`)."""
        return self.tau

    def closed(self, sigma_a, sigma_b):
        """Whether a step has its first-order form alone: to sigma 0, and at sigma 1 of a flow where others diverge.

        There alpha is 0, by which the noise form and fresh noise divide, and some bases are infinite.
        """
        if sigma_b == 0:
            return True
        if min(self.path.alpha(sigma_a), self.path.alpha(sigma_b)) > 0:
            return False
        infinite = self.u is not None and not np.isfinite([self.u(sigma_a), self.u(sigma_b)]).all()
        return self.prediction == "noise" or self.strength(sigma_a) != 0 or infinite

    def predict(self, state, sigma, interval=None):
        """Call the model at `state`; returns the Node, with the prediction P in use."""
        n = self.plan.calls
        node = Node(sigma, f"D{n}", f"D{n}" if self.prediction == "data" else f"P{n}")
        self.plan.eval(node.denoised, state, sigma, interval)
        if self.prediction != "data":
            of_state, of_denoised = self.prediction_terms(sigma)
            self.plan.combine(node.prediction, (of_state, state), (of_denoised, node.denoised))
        return node

    def prediction_terms(self, sigma):
        """(weight of x, weight of D) of P = (x - alpha D)/sigma (noise) or (x - D)/sigma (derivative)."""
        return 1 / sigma, -(float(self.path.alpha(sigma)) if self.prediction == "noise" else 1.0) / sigma

    def weights(self, nodes, sigma_a, sigma_b, variant):
        """Weights of the step with P known at `nodes`, the variant's factor applied."""
        tau, levels = self.strength(sigma_a), [node.sigma for node in nodes]
        weights = step_weights(self.path, self.prediction, self.u, levels, sigma_a, sigma_b, tau)
        if variant == "taylor":
            return weights
        span = float(self.u(sigma_b) - self.u(sigma_a)) * (1 + tau**2)
        return with_variant(weights, variant, self.prediction, span)

    def guarded(self, nodes, sigma_a, sigma_b, variant):
        """(weights, nodes) with the last nodes dropped until the weights stop extrapolating beyond the guard."""
        nodes = self.distinct(nodes, sigma_b)
        weights = self.weights(nodes, sigma_a, sigma_b, variant)
        while len(nodes) > 1 and 0 < self.guard < weights.kappa:
            nodes = nodes[:-1]
            weights = self.weights(nodes, sigma_a, sigma_b, variant)
        return weights, nodes

    def distinct(self, nodes, sigma_b):
        """Nodes without those that nearly coincide on the basis with an earlier one in the list."""
        kept = nodes[:1]
        for node in nodes[1:]:
            gaps = [abs(self.u(node.sigma) - self.u(other.sigma)) for other in kept]
            if min(gaps) > 1e-9 * max(abs(self.u(sigma_b) - self.u(kept[0].sigma)), *gaps):
                kept.append(node)
        return kept

    def advance(self, out, state, nodes, sigma_a, sigma_b, *, noises=(), carried=(), variant=None):
        """Step `state` from sigma_a to sigma_b into `out`; returns (nodes used, kappa, noise terms of this step).

        nodes: the most trusted first (the newest of a history, the start of a singlestep). The first-order step is the
        same for every prediction, and the only one that is finite at sigma 0 and at sigma 1 of a flow. noises: the
        (weight, slot) that stand for this step's noise instead of a fresh draw (a corrector repeats its predictor's);
        carried: noise that was drawn for an inner point of the step. variant: instead of the integrator's own.
        """
        closed, tau = self.closed(sigma_a, sigma_b), self.strength(sigma_a)
        if not closed:
            weights, nodes = self.guarded(nodes, sigma_a, sigma_b, variant or self.variant)
            closed = self.ddim and len(nodes) == 1 and (tau == 0 or self.prediction == "data")
        if closed:
            nodes = nodes[:1]
            weights = first_order(self.path, sigma_a, sigma_b, tau)
        slots = [node.denoised if closed else node.prediction for node in nodes]
        if not noises and weights.noise > 0:
            noises = self.increments(out, weights.noise, carried, sigma_b)
        self.plan.combine(out, (weights.carry, state), *zip(weights.nodes, slots, strict=True), *noises)
        return nodes, weights.kappa, noises

    def correct(self, out, state, nodes, sigma_a, sigma_b, noises):
        """Repeat the step from sigma_a to sigma_b with a prediction at sigma_b among its nodes, the start first."""
        return self.advance(out, state, nodes, sigma_a, sigma_b, noises=noises)

    def increments(self, out, scale, carried, sigma_b):
        """Noise of deviation `scale`: the draws `carried` = (sigma, terms) of an inner point plus a new one."""
        terms = ()
        if carried:
            sigma, earlier = carried
            inner = first_order(self.path, sigma, sigma_b, self.strength(sigma)) if self.prediction == "data" else None
            carry = inner.carry if inner else float(self.path.alpha(sigma_b) / self.path.alpha(sigma))
            terms = tuple((weight * carry, slot) for weight, slot in earlier)
        rest = max(0.0, scale**2 - sum(weight**2 for weight, _ in terms)) ** 0.5
        slot = f"z{out}"
        self.plan.noise(slot)
        return (*terms, (rest, slot))

    def singlestep(self, out, state, first, stages, sigma_b):
        """One Runge-Kutta step from first.sigma to sigma_b; stages: (sigma, interval or None) inside it, in order.

        Stage j is reached with all nodes known so far. The last combination takes all nodes ('taylor'), or the first
        and last alone: with the variant's factor after one stage, without it after two (the 'dpmsolver' type of the
        paper, algorithms 1 and 2).
        """
        nodes, carried = [first], ()
        for j, (sigma, interval) in enumerate(stages, 1):
            stage = f"{out}.{j}"
            noises = self.advance(stage, state, nodes, first.sigma, sigma, carried=carried, variant="taylor")[2]
            carried = (sigma, noises) if noises else ()
            nodes.append(self.predict(stage, sigma, interval))
        variant = self.variant
        if variant != "taylor" and len(nodes) == 3:
            nodes, variant = [first, nodes[-1]], "taylor"
        return self.advance(out, state, nodes, first.sigma, sigma_b, carried=carried, variant=variant)


def usable(sigmas, path, tau=0.0):
    """SIGMAS up to the first 0: the state there is clean, and nothing is known of a way up from it.

    Raises ValueError, naming the entry and the fix, for values that no model has and for noise on the way up.
    """
    highest = 1.0 if path.name == "flow" else math.inf
    for i, sigma in enumerate(sigmas):
        if not 0 <= sigma <= highest + 1e-6 or math.isinf(sigma):
            limits = "between 0 and 1 for a flow model" if path.name == "flow" else "0 or more"
            raise ValueError(f"sigmas[{i}] is {sigma}; it must be {limits}. Connect a schedule made for this model")
    sigmas = [min(sigma, highest) for sigma in sigmas]
    sigmas = sigmas[: sigmas.index(0) + 1] if 0 in sigmas else sigmas
    for i, (before, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if tau > 0 and after > before:
            raise ValueError(f"sigmas[{i + 1}] is {after}, above the {before} before it: fresh noise needs a falling "
                             "schedule. Sort SIGMAS, or turn the sampler's noise off")
    return sigmas


def record_step(plan, sigma_a, sigma_b, nodes, calls_before, kappa, note=""):
    """Note in the plan what was decided for a step; its order is the number of nodes."""
    plan.steps.append(StepInfo(sigma_a, sigma_b, len(nodes), plan.calls - calls_before, kappa, note))


def plan_multistep(integrator, sigmas, orders, start, correct):
    """Append a step for each interval of SIGMAS that takes the newest predictions, one call an interval.

    orders: the most nodes of each step. start: for the steps that lack a history, one of STARTS, or a function
    (out, state, node, sigma_b) -> nodes that appends such a step from `node`, its further calls included. correct:
    replace each state, once the model was called at it, by the step with that call among its nodes (UniC, Zhao et al.
    2023).
    """
    plan, history, pending = integrator.plan, [], None
    for i, order in enumerate(orders):
        sigma_a, sigma_b = sigmas[i], sigmas[i + 1]
        calls = plan.calls
        node = integrator.predict(plan.result, sigma_a, i)
        if correct and pending is not None:
            corrected = f"c{i}"
            state, nodes, sigma_from, noises = pending
            # the start stays first, for the variant's factor and the guard count from it
            integrator.correct(corrected, state, [nodes[0], node, *nodes[1:]], sigma_from, sigma_a, noises)
            plan.result = corrected
        state, out = plan.result, f"x{i + 1}"
        nodes, note = [node, *history][:order], ""
        if len(nodes) < order and start == "euler":
            nodes = nodes[:1]
        usual = sigma_a != sigma_b and not integrator.closed(sigma_a, sigma_b)
        lacking = usual and len(nodes) < order
        if lacking and callable(start):
            nodes, kappa, noises, note = start(out, state, node, sigma_b), 1.0, (), "start"
        elif lacking and start == "rk":
            stages = [(sigma, None) for sigma in _inserted(integrator.path, sigma_a, sigma_b, min(order, 3))]
            nodes, kappa, noises = integrator.singlestep(out, state, node, stages, sigma_b)
            note = "start: rk"
        else:
            nodes, kappa, noises = integrator.advance(out, state, nodes, sigma_a, sigma_b)
        record_step(plan, sigma_a, sigma_b, nodes, calls, kappa, note)
        correctable = not note and not integrator.closed(sigma_a, sigma_b)
        pending = (state, nodes, sigma_a, noises) if correctable else None
        if np.isfinite(integrator.u(sigma_a)):  # log-SNR has no value at sigma 1 of a flow
            history = [node, *history][: max(orders)]
        plan.result = out


def _inserted(path, sigma_a, sigma_b, order):
    lam_a, lam_b = path.lam(sigma_a), path.lam(sigma_b)
    return [float(path.sigma(lam_a + r * (lam_b - lam_a))) for r in RK_STAGES[order]]
