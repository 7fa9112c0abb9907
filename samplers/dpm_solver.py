"""DPM-Solver and DPM-Solver++, multistep and singlestep, in any prediction, on any path (Lu et al. 2022a, 2022b).

`Integrator` appends exponential-integrator steps to a plan; the two planners differ in where P is known: at the past
points of SIGMAS (multistep) or at points inside the step that SIGMAS itself supplies (singlestep).
"""

from dataclasses import dataclass

import numpy as np

from .plan import Plan, StepInfo, plan_sampler
from .weights import BASES, VARIANTS, basis_function, first_order, step_weights, with_variant

METHODS = ("multistep", "singlestep")
STARTS = ("ramp", "rk", "euler")
CORRECTORS = ("none", "unic")
LOWER_ORDER_FINAL = ("auto", "on", "off")
AUTO_BASIS = {"data": "logSNR", "noise": "logSNR", "derivative": "sigma"}
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

    def predict(self, state, sigma, interval=None):
        """Call the model at `state`; returns the Node, whose P = (x - alpha D)/sigma (noise) or (x - D)/sigma."""
        n = self.plan.calls
        node = Node(sigma, f"D{n}", f"D{n}" if self.prediction == "data" else f"P{n}")
        self.plan.eval(node.denoised, state, sigma, interval)
        if self.prediction != "data":
            alpha = float(self.path.alpha(sigma)) if self.prediction == "noise" else 1.0
            self.plan.combine(node.prediction, (1 / sigma, state), (-alpha / sigma, node.denoised))
        return node

    def weights(self, nodes, sigma_a, sigma_b, variant):
        """Weights of the step with P known at `nodes`, the variant's factor applied."""
        weights = step_weights(
            self.path, self.prediction, self.u, [node.sigma for node in nodes], sigma_a, sigma_b, self.tau
        )
        span = float(self.path.lam(sigma_b) - self.path.lam(sigma_a)) * (1 + self.tau**2)
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
        closed = sigma_b == 0 or self.path.alpha(sigma_a) == 0 or self.path.alpha(sigma_b) == 0
        if not closed:
            weights, nodes = self.guarded(nodes, sigma_a, sigma_b, variant or self.variant)
            closed = len(nodes) == 1 and (self.tau == 0 or self.prediction == "data")
        if closed:
            nodes = nodes[:1]
            weights = first_order(self.path, sigma_a, sigma_b, self.tau)
        slots = [node.denoised if closed else node.prediction for node in nodes]
        if not noises and weights.noise > 0:
            noises = self.increments(out, weights.noise, carried, sigma_b)
        self.plan.combine(out, (weights.carry, state), *zip(weights.nodes, slots, strict=True), *noises)
        return nodes, weights.kappa, noises

    def increments(self, out, scale, carried, sigma_b):
        """Noise of deviation `scale`: the draws `carried` = (sigma, terms) of an inner point plus a new one."""
        terms = ()
        if carried:
            sigma, earlier = carried
            inner = first_order(self.path, sigma, sigma_b, self.tau) if self.prediction == "data" else None
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


def plan_dpm_solver(
    sigmas, schedule, *, method="multistep", order=2, prediction="data", basis="auto", variant="taylor",
    lower_order_final="auto", start="ramp", corrector="none", tau=0.0, guard=6.0,
):  # fmt: skip
    """Plan of DPM-Solver for the noise levels `sigmas` (Lu et al. 2022a, 2022b; SA-Solver's noise, Xue et al. 2023).

    method: 'multistep' reuses past predictions, 'singlestep' spends the sigmas of SIGMAS as stages; both cost one call
    an interval. order: 1-4 (singlestep 1-3). prediction: 'data' (the ++ form), 'noise' or 'derivative'. basis: the
    variable of the interpolation polynomial; 'auto' is logSNR, sigma for the derivative. variant: factor on two-node
    steps, see `weights.VARIANTS`. lower_order_final: lower the order towards the end ('auto': below 10 steps).
    start: how the first steps of a multistep method run, before it has a history: 'ramp' 1, 2, ..., 'rk' singlesteps
    with inserted calls, 'euler'. corrector: 'unic' (Zhao et al. 2023). tau: 0 ODE, 1 reverse SDE. guard: lower the
    order while the weights' kappa is larger (0 = never).

    The official multistep order 3 lacks a factor 2 in its second difference and converges with order 2; this one is
    the exact three-node polynomial. Raises ValueError for options that exclude each other.
    """
    check_options(method, order, prediction, basis, variant, lower_order_final, start, corrector, tau)
    u = basis_function(AUTO_BASIS[prediction] if basis == "auto" else basis, schedule)
    sigmas = until_zero(sigmas)
    plan = Plan()
    integrator = Integrator(plan, schedule.path, u, prediction, variant, tau, guard)
    if method == "singlestep":
        _plan_singlestep(integrator, sigmas, order)
    else:
        last = len(sigmas) - 1
        lower = lower_order_final == "on" or (lower_order_final == "auto" and last < 10)
        orders = [min(order, last - i) if lower else order for i in range(last)]
        _plan_multistep(integrator, sigmas, orders, start, corrector == "unic")
    return plan


sample_dpm_solver = plan_sampler(plan_dpm_solver)


def check_options(method, order, prediction, basis, variant, lower_order_final, start, corrector, tau):
    """Raise ValueError with the option, its value and the fix: unknown words, options that exclude each other."""
    choices = {
        "method": (method, METHODS), "order": (order, (1, 2, 3, 4)), "prediction": (prediction, tuple(AUTO_BASIS)),
        "basis": (basis, ("auto", *BASES)), "variant": (variant, tuple(VARIANTS)), "start": (start, STARTS),
        "lower_order_final": (lower_order_final, LOWER_ORDER_FINAL), "corrector": (corrector, CORRECTORS),
    }  # fmt: skip
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(str, allowed))}")
    if method == "singlestep" and order > 3:
        raise ValueError(f"order is {order}, but singlestep goes up to 3; lower order, or set method to multistep")
    if method == "singlestep" and corrector != "none":
        raise ValueError("corrector 'unic' belongs to method multistep; set corrector to none, or method to multistep")
    if tau < 0:
        raise ValueError(f"tau is {tau}; it is the strength of the noise, 0 (none) or more")
    if tau > 0 and prediction == "derivative":
        raise ValueError(f"tau is {tau}, but prediction 'derivative' has no noisy form; set tau 0 or prediction data")
    if variant != "taylor" and (prediction == "derivative" or basis not in ("auto", "logSNR")):
        raise ValueError(
            f"variant '{variant}' is a factor in log-SNR: it needs prediction data or noise and basis auto or logSNR; "
            "set variant to taylor"
        )


def until_zero(sigmas):
    """SIGMAS up to the first 0: the state there is clean, and nothing is known of a way up from it."""
    return sigmas[: sigmas.index(0) + 1] if 0 in sigmas else sigmas


def _record(plan, sigma_a, sigma_b, nodes, calls_before, kappa, note=""):
    plan.steps.append(StepInfo(sigma_a, sigma_b, len(nodes), plan.calls - calls_before, kappa, note))


def _plan_multistep(integrator, sigmas, orders, start, correct):
    plan, history, pending = integrator.plan, [], None
    for i, order in enumerate(orders):
        sigma_a, sigma_b = sigmas[i], sigmas[i + 1]
        calls = plan.calls
        node = integrator.predict(plan.result, sigma_a, i)
        if correct and pending is not None:
            corrected = f"c{i}"
            state, nodes, sigma_from, noises = pending
            integrator.advance(corrected, state, [node, *nodes], sigma_from, sigma_a, noises=noises)
            plan.result = corrected
        state, out = plan.result, f"x{i + 1}"
        nodes, note = [node, *history][:order], ""
        if len(nodes) < order and start == "euler":
            nodes = nodes[:1]
        if len(nodes) < order and start == "rk" and sigma_b > 0 and integrator.path.alpha(sigma_a) > 0:
            stages = [(sigma, None) for sigma in _inserted(integrator.path, sigma_a, sigma_b, min(order, 3))]
            nodes, kappa, noises = integrator.singlestep(out, state, node, stages, sigma_b)
            note = "start: rk"
        else:
            nodes, kappa, noises = integrator.advance(out, state, nodes, sigma_a, sigma_b)
        _record(plan, sigma_a, sigma_b, nodes, calls, kappa, note)
        correctable = not note and sigma_b > 0 and integrator.path.alpha(sigma_a) > 0
        pending = (state, nodes, sigma_a, noises) if correctable else None
        if np.isfinite(integrator.u(sigma_a)):  # log-SNR has no value at sigma 1 of a flow
            history = [node, *history][: max(orders)]
        plan.result = out


def _inserted(path, sigma_a, sigma_b, order):
    lam_a, lam_b = path.lam(sigma_a), path.lam(sigma_b)
    return [float(path.sigma(lam_a + r * (lam_b - lam_a))) for r in RK_STAGES[order]]


def singlestep_groups(steps, order):
    """How `steps` calls are shared out to steps of the given order (Lu et al. 2022a, section 3.4 and appendix D)."""
    if order == 3:
        full, rest = divmod(steps, 3)
        return [3] * (full - 1) + [2, 1] if rest == 0 and full else [3] * full + [rest] * (rest > 0)
    full, rest = divmod(steps, order)
    return [order] * full + [1] * rest


def _plan_singlestep(integrator, sigmas, order):
    plan, path, last = integrator.plan, integrator.path, max(len(sigmas) - 1, 0)
    groups = [1] if last and path.alpha(sigmas[0]) == 0 else []  # from sigma 1 of a flow only one step is finite
    groups += singlestep_groups(last - len(groups), order)
    if last and sigmas[last] == 0 and groups[-1] > 1:  # the step to sigma 0 is x = D
        groups[-1:] = [groups[-1] - 1, 1]
    i = 0
    for group in groups:
        calls = plan.calls
        first = integrator.predict(plan.result, sigmas[i], i)
        stages = [(sigmas[j], j) for j in range(i + 1, i + group)]
        out, sigma_b = f"x{i + group}", sigmas[i + group]
        nodes, kappa, _ = integrator.singlestep(out, plan.result, first, stages, sigma_b)
        _record(plan, sigmas[i], sigma_b, nodes, calls, kappa)
        plan.result = out
        i += group
