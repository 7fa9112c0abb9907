"""Momentum for solvers: heavy ball, its generalization GHVB, and Nesterov (Wizadwongsa et al. 2023, arXiv 2307.11118).

A velocity v = (1 - beta) v + beta q follows what a step would take alone, which widens the region of stable steps:
guidance at few steps no longer overshoots into saturated blobs.

    heavy ball   q: the mean prediction of the step (its bracket),   the step takes v
    Nesterov     q: the same,                                        the step takes (1 - beta) v + beta q
    GHVB         q: the newest prediction,                           the last difference of the step is taken of v

GHVB_k is Adams-Bashforth of k - 1 predictions plus the k-th difference term, with v in place of the derivative: on even
steps sum_{j < k-1} g_j nabla^j d + g_{k-1} nabla^{k-1} v, which are the published weights; written with the weights of
k and of k - 1 nodes it holds on any steps, keeps order k, and beta 1 is Adams-Bashforth itself.
"""

from dataclasses import dataclass, field

import numpy as np

from .classical import ADAMS_BASHFORTH, UniformIntegrator
from .integrator import Integrator, plan_multistep, usable
from .plan import Plan, check_choices, plan_sampler
from .weights import basis_function


@dataclass(frozen=True)
class Base:
    """A solver and the rule of its velocity. order: fixed, or None where the user chooses it. least: the number of
    predictions from which a step has momentum. corrector: whether UniC corrects each state."""

    rule: str
    prediction: str = "derivative"
    variant: str = "taylor"
    order: int | None = None
    least: int = 1
    corrector: bool = False


BASES = {
    "HB": Base("heavy ball"),
    "GHVB": Base("GHVB"),
    "Nesterov": Base("Nesterov"),
    "DPM++2M": Base("heavy ball", "data", "midpoint", order=2, least=2),
    "UniPC": Base("heavy ball", "data", "midpoint", corrector=True),
}
"""HB, GHVB and Nesterov run on Adams-Bashforth (PLMS); 'midpoint' is the form of 2M and UniPC's B_2(h)."""

ORDERS = range(1, 6)
LEAST_BETA = 0.05


@dataclass
class MomentumIntegrator(Integrator):
    """An Integrator whose steps carry a velocity; tau is 0. rule and least: see `Base`. beta in (0, 1]."""

    rule: str = "heavy ball"
    beta: float = 1.0
    least: int = 1
    velocities: dict = field(default_factory=dict)
    """Slot of each velocity: by 'predictor' and 'corrector' (heavy ball, Nesterov), by prediction (GHVB)."""

    def predict(self, state, sigma, interval=None):
        node = super().predict(state, sigma, interval)
        if self.rule == "GHVB":
            self.follow("newest", f"V{node.prediction}", [(1.0, node.prediction)])
            self.velocities[node.prediction] = self.velocities["newest"]
        elif self.least == 1:
            self.velocities.setdefault("predictor", node.prediction)  # the paper's v_0
        return node

    def follow(self, name, out, mean):
        """Average the velocity `name` with `mean` (weights and slots that sum up to 1) into the slot `out`."""
        before = self.velocities.get(name)
        terms = mean if before is None else [(1 - self.beta, before), *((self.beta * w, slot) for w, slot in mean)]
        self.plan.combine(out, *terms)
        self.velocities[name] = out

    def advance(self, out, state, nodes, sigma_a, sigma_b, *, of="predictor", **_):
        """A step with momentum; what has one form alone, or no length, has none."""
        if sigma_a == sigma_b or self.closed(sigma_a, sigma_b):
            return super().advance(out, state, nodes, sigma_a, sigma_b)
        weights, nodes = self.guarded(nodes, sigma_a, sigma_b, self.variant)
        terms = list(zip(weights.nodes, (node.prediction for node in nodes), strict=True))
        if self.rule == "GHVB":
            terms = self.generalized(terms, nodes, sigma_a, sigma_b)
        elif len(nodes) >= self.least:
            terms = self.averaged(out, terms, of)
        self.plan.combine(out, (weights.carry, state), *terms)
        return nodes, weights.kappa, ()

    def correct(self, out, state, nodes, sigma_a, sigma_b, noises):
        return self.advance(out, state, nodes, sigma_a, sigma_b, of="corrector")

    def averaged(self, out, terms, of):
        """The step's terms with its mean prediction replaced by the velocity (heavy ball), or led by it (Nesterov)."""
        total = sum(weight for weight, _ in terms)
        velocity = f"V{out}"
        self.follow(of, velocity, [(weight / total, slot) for weight, slot in terms])
        if self.rule == "heavy ball":
            return [(total, velocity)]
        return [((1 - self.beta) * total, velocity), *((self.beta * weight, slot) for weight, slot in terms)]

    def generalized(self, terms, nodes, sigma_a, sigma_b):
        """The terms of one node less, plus the difference between the two sets of weights on the velocities."""
        fewer = self.weights(nodes[:-1], sigma_a, sigma_b, self.variant).nodes if len(nodes) > 1 else ()
        fewer += (0.0,)
        last = [(w - f, self.velocities[slot]) for (w, slot), f in zip(terms, fewer, strict=True)]
        return [*last, *((f, slot) for f, (_, slot) in zip(fewer, terms, strict=True))]


@dataclass
class UniformMomentumIntegrator(UniformIntegrator, MomentumIntegrator):
    """Momentum with the weights of a uniform grid, whatever the steps: the published form."""


def plan_momentum(sigmas, schedule, *, base="GHVB", order=3, beta=0.7, variable_step=False, guard=7.0):
    """Plan of a solver with momentum for the noise levels `sigmas` (Wizadwongsa et al. 2023, sections 4.1 and 4.2).

    base: one of BASES. order: 1-5, the most predictions of a step; DPM++2M takes 2. beta: 0.05-1, the share of the
    newest in the velocity, 1 = no momentum; the paper's order 2.7 is order 3 with beta 0.7. variable_step: exact
    Adams-Bashforth weights on uneven steps instead of the paper's constant ones (HB, GHVB, Nesterov; the others always
    are exact). guard: see `integrator.Integrator.guarded`, not for constant weights. Raises ValueError for options out
    of range.
    """
    check_options(base, order, beta)
    chosen, path = BASES[base], schedule.path
    derivative = chosen.prediction == "derivative"
    sigmas, plan = usable(sigmas, path), Plan()
    uniform = derivative and not variable_step
    integrator = (UniformMomentumIntegrator if uniform else MomentumIntegrator)(
        plan, path, basis_function("sigma" if derivative else "logSNR", schedule), chosen.prediction, chosen.variant,
        guard=0.0 if uniform else guard, rule=chosen.rule, beta=beta, least=chosen.least,
    )  # fmt: skip
    orders = [chosen.order or order] * max(len(sigmas) - 1, 0)
    plan_multistep(integrator, sigmas, orders, "ramp", chosen.corrector)
    return plan


sample_momentum = plan_sampler(plan_momentum)


def check_options(base, order, beta):
    """Raise ValueError with the option, its value and the fix: unknown words, numbers out of range."""
    check_choices({"base": (base, BASES), "order": (order, ORDERS)})
    if not LEAST_BETA <= beta <= 1:
        raise ValueError(f"beta is {beta}; choose {LEAST_BETA} (most momentum) to 1 (none)")


def stability_polynomials(base, order, beta):
    """(rho, sigma), arrays of coefficients, highest power first, of HB, GHVB or Nesterov on even steps.

    As a linear multistep method on dx/dt = lambda x, with z = h lambda: stable where all roots of rho - z sigma lie in
    the unit circle; z = rho(w) / sigma(w), |w| = 1, is the boundary locus (Hairer & Wanner, Solving ODEs II, V.1).
    """
    newest_first = np.array(ADAMS_BASHFORTH[order - 1])
    fewer = np.array([*ADAMS_BASHFORTH[order - 2], 0.0]) if order > 1 else np.zeros(1)
    lag = np.array([1.0, beta - 1.0])  # v - (1 - beta) v_before = beta q
    sigma = {
        "HB": beta * np.pad(newest_first, (0, 1)),
        "Nesterov": beta * np.convolve(newest_first, [2 - beta, beta - 1]),
        "GHVB": np.convolve(fewer, lag) + beta * np.pad(newest_first - fewer, (0, 1)),
    }[base]
    rho = np.convolve([1.0, -1.0], lag)
    degree = max(len(rho) - 1, len(sigma))
    return np.pad(rho, (0, degree + 1 - len(rho))), np.pad(sigma, (1, degree - len(sigma)))
