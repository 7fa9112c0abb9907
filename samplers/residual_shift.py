"""ResShift: restoration by shifting the residual (Yue, Wang, Loy 2023, arXiv 2307.12348; v3: 2403.07319).

A clean picture x0 becomes the degraded one, y, in T steps of growing share eta_1 < ... < eta_T:

    x_i = x0 + eta_i (y - x0) + kappa sqrt(eta_i) n

The network predicts x0. With u = y + (x_i - y) / (1 - eta_i) the same states are x0 plus plain noise,

    u = x0 + sigma n,    sigma = kappa r / (1 - r^2),    r = sqrt(eta),

so every sampler of variance-exploding models drives the network, and a run starts from y + sigma_T n. This holds for
any process whose mean slides from x0 to y, IR-SDE among them.
"""

import math
from dataclasses import dataclass

import torch

from .integrator import usable
from .model import Schedule
from .paths import VE
from .plan import STATE, Noise, Plan, StepInfo, plan_sampler, run_plan, state_slot

KAPPA = 2.0
"""Strength of the noise against the residual in every published model."""
PUBLISHED = {15: 0.04, 4: 0.2}
"""Steps -> `smallest` of the published tables: v1 and v2 have 15 steps, v3 and all later models 4."""
LARGEST = 0.99
"""sqrt(eta_T) of every published model."""
POWER = 0.3
"""Of every published model."""


def schedule(steps, smallest, kappa=KAPPA, power=POWER):
    """[steps] floats, rising: r_i = sqrt(eta_i) of i = 1..T, geometric in ((i - 1) / (T - 1))^power.

    smallest: the noise kappa r_1 of the first step, above 0; r_1 is at most `smallest` itself. A single step is
    LARGEST. power: below 1 spends more steps on large shifts. Raises ValueError for values that give no rising table.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; a schedule has at least 1")
    first = min(smallest / kappa, smallest)
    if not 0 < first < LARGEST:
        raise ValueError(f"smallest is {smallest} and kappa {kappa}; smallest / kappa and smallest must lie between 0 "
                         f"and {LARGEST}")
    if steps == 1:
        return [LARGEST]
    roots = [first * (LARGEST / first) ** ((i / (steps - 1)) ** power) for i in range(steps)]
    if (torch.tensor([sigma_of(root, kappa) for root in roots]).diff() <= 0).any():
        raise ValueError(f"power is {power} and steps {steps}: the lowest levels are too close for float32 to tell "
                         "them apart; choose a smaller power or fewer steps")
    return roots


def sigma_of(root, kappa=KAPPA):
    """VE noise level of r = sqrt(eta), 0 <= r < 1."""
    return kappa * root / (1 - root**2)


def root_of(sigma, kappa=KAPPA, alpha=1.0):
    """r = sqrt(eta) at the noise level sigma / alpha, floats or tensors: the inverse of `sigma_of`, 1 at alpha 0."""
    return 2 * sigma / (kappa * alpha + ((kappa * alpha) ** 2 + 4 * sigma**2) ** 0.5)


class Levels:
    """The noise levels that a network was trained at, and fractional positions among them.

    Positions are linear in log sigma between the levels and go on so beyond the first (0) and the last.
    sigmas: two or more, rising. Tensors of any shape go in and come out, float32.
    """

    def __init__(self, sigmas):
        self._logs = torch.tensor(sigmas, dtype=torch.float64).log().float()

    def position(self, sigma):
        """Position of noise levels > 0."""
        logs, log = self._logs.to(sigma.device), sigma.float().log()
        above = torch.searchsorted(logs, log.contiguous()).clamp(1, len(logs) - 1)
        return above - 1 + (log - logs[above - 1]) / (logs[above] - logs[above - 1])

    def sigma(self, position):
        """The inverse of `position`."""
        logs, position = self._logs.to(position.device), position.float()
        below = position.floor().clamp(0, len(logs) - 2).long()
        return torch.lerp(logs[below], logs[below + 1], position - below).exp()


@dataclass(frozen=True)
class ResidualShift:
    """The process between clean and degraded pictures, as far as a trained network knows it.

    roots: r_1 < ... < r_T.
    """

    roots: tuple[float, ...]
    kappa: float = KAPPA

    @classmethod
    def published(cls, steps):
        """The process of the published models with 15 or 4 steps."""
        return cls(tuple(schedule(steps, PUBLISHED[steps])))

    @property
    def etas(self):
        """[T] floats, rising."""
        return [root**2 for root in self.roots]

    @property
    def sigmas(self):
        """[T] VE noise levels, rising."""
        return [sigma_of(root, self.kappa) for root in self.roots]

    def run(self, steps=0):
        """SIGMAS [steps + 1] of a run on so many of the trained levels, spread evenly, from the highest to 0.

        steps: 0 takes all. Raises ValueError where the network knows fewer levels.
        """
        known = len(self.roots)
        if not 0 <= steps <= known:
            raise ValueError(f"steps is {steps}; this network knows {known} noise levels: choose 1 to {known}, or 0 "
                             "for all of them")
        steps = steps or known
        places = [round((known - 1) * (1 - i / max(steps - 1, 1))) for i in range(steps)]
        return torch.tensor([*(self.sigmas[place] for place in places), 0.0])

    def diffused(self, x0, y, eta, noise):
        """The state at eta, a float or a tensor that broadcasts, of the clean x0 and the degraded y."""
        return x0 + eta * (y - x0) + self.kappa * eta**0.5 * noise

    def input_scale(self, eta):
        """What the network's state is multiplied by, so that its variance is about 1."""
        return (self.kappa**2 * eta + 1) ** -0.5

    def denoised(self, network, u, sigma, position, y, **conditions):
        """x0 of the VE state u [B, C, ...] and the degraded y, both of one shape.

        network(state, index, **conditions) -> x0. sigma: [B]. position: [B], where sigma stands among the trained
        levels (`Levels`); the network knows whole indices 0..T-1 alone.
        """
        eta = root_of(sigma.view(-1, *[1] * (u.ndim - 1)), self.kappa) ** 2
        state = self.input_scale(eta) * ((1 - eta) * u + eta * y)
        return network(state, position.round().clamp(0, len(self.roots) - 1), **conditions)


def plan_resshift(sigmas, schedule, *, eta_noise=1.0, kappa=None):
    """Plan of ResShift's chain on the noise levels sigma/alpha of any model: an ancestral step with its own split.

    A step keeps the share eta_b / eta_a of the noise's variance and draws the rest anew; the published posterior in
    the coordinates u. eta_noise: 1 is published, 0 the deterministic path (Euler), between them less fresh noise.
    kappa: of the network's process, by default that of the model's schedule object, else KAPPA.
    Raises ValueError for eta_noise outside 0..1.
    """
    check_options(eta_noise)
    path, plan = schedule.path, Plan()
    kappa = kappa or getattr(schedule.model_sampling, "kappa", None) or KAPPA
    sigmas = usable(sigmas, path, eta_noise)
    for i, (a, b) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        prediction, terms = f"D{i}", []
        plan.eval(prediction, state_slot(i), a, interval=i)
        alpha_a, alpha_b = path.alpha(a), path.alpha(b)
        kept = (root_of(b, kappa, alpha_b) / root_of(a, kappa, alpha_a)) ** 2
        fresh = eta_noise * math.sqrt(1 - kept) if eta_noise else 0.0
        if fresh and b:
            plan.noise(f"n{i}")
            terms = [(b * fresh, f"n{i}")]
        carry = b / a * math.sqrt(1 - fresh**2)
        plan.combine(state_slot(i + 1), (carry, state_slot(i)), (alpha_b - carry * alpha_a, prediction), *terms)
        plan.steps.append(StepInfo(a, b, 1, 1))
        plan.result = state_slot(i + 1)
    return plan


sample_resshift = plan_sampler(plan_resshift)


def restore(model, y, noises, process, steps=0, eta_noise=1.0, **options):
    """The clean picture [B, C, ...] of a degraded y, by noise that is given instead of drawn: of a tile, its part.

    Args:
        model: (u, sigma [B]) -> x0.
        noises: standard normal, of y's shape: the first begins the run, the others go to its steps in turn.
        process: ResidualShift.
        steps, eta_noise: see `ResidualShift.run` and `plan_resshift`.
        options: of `plan.run_plan`: callback, before_call.
    """
    sigmas = process.run(steps)
    plan = plan_resshift(sigmas.tolist(), Schedule(VE), eta_noise=eta_noise, kappa=process.kappa)
    draws = [operation for operation in plan.operations if isinstance(operation, Noise)]
    plan.operations = [operation for operation in plan.operations if operation not in draws]
    given = {STATE: y + sigmas[0].to(y) * noises[0]}
    given |= {draw.out: noise for draw, noise in zip(draws, noises[1:], strict=False)}
    return run_plan(plan, model, given, sigmas.to(y.device), dtype=y.dtype, disable=True, **options)[plan.result]


def check_options(eta_noise):
    """Raise ValueError with the option, its value and the fix."""
    if not 0 <= eta_noise <= 1:
        raise ValueError(f"eta_noise is {eta_noise}; choose 0 (deterministic) to 1 (as published)")
