"""Time-Shift: call the network at the noise level that a state has, not at the one of the schedule.

A solver's errors change the noise that is left in a state, so that the schedule's label is off (exposure bias; Li et
al. 2024, arXiv 2305.15583). The level can be read off the variance: on any path a state has

    Var(x / alpha) = v0 + rho^2,    rho = sigma / alpha,    v0 = Var(x0),

and since a denoiser is a posterior mean, E[x D] = E[x x0], the call before tells v0 = Cov(x, D) / alpha. The published
rules compare the variance-preserving state with the share of noise rho^2 / (1 + rho^2) alone, without v0: they take
exact states for too noisy and shift them to the upper edge of the window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from .classical import UniformIntegrator
from .deis import sample_deis
from .dpm_solver import sample_dpm_solver
from .integrator import Integrator, Node, usable
from .model import schedule_of
from .noise import ItemNoise
from .plan import check_choices
from .weights import basis_function, first_order

TRAINING_STEPS = 1000
"""The grid of time steps in which the paper counts its window."""
CHANCE = 4.0
"""Standard errors up to which a deviation of the first state is the chance of its noise."""
GUARD = 6.0
"""Of the two-point base, see `integrator.Integrator.guarded`: shifts may bring its points close together."""


@dataclass(frozen=True)
class Mode:
    """How a rule is applied."""

    corrected: bool
    reach: float
    """How far a shift may go to each side, in windows."""
    moves_step: bool
    """Whether the solver's step starts at the shifted level too; else the network's label alone is shifted."""
    from_first: bool
    """Whether the first call is shifted; else the start of a run is taken at its word."""


MODES = {
    "corrected": Mode(corrected=True, reach=0.5, moves_step=True, from_first=False),
    "paper": Mode(corrected=False, reach=0.5, moves_step=True, from_first=False),
    "official-DEIS": Mode(corrected=False, reach=1.0, moves_step=False, from_first=True),
}
"""'paper' is the paper's algorithm 3, 'official-DEIS' what the authors' DEIS sampler does."""


def moments(x, y, mask=None, per_channel=False):
    """(covariances, sizes), floats [B]: the unbiased sample covariance of each item of x and y [B, C, ...].

    mask: weights >= 0 that broadcast to x, None for all elements. per_channel: about each channel's mean, averaged
    over the channels; packed latents [B, 1, N] have one. size: the number of elements that count, for a standard
    error. Both are nan where the mask leaves nothing.
    """
    start = 2 if per_channel and x.ndim > 2 else 1
    weight = torch.ones_like(x) if mask is None else mask.to(x).expand_as(x)
    x, y, weight = (part.flatten(start) for part in (x, y, weight))
    total = weight.sum(-1)
    size = total**2 / weight.square().sum(-1)
    x, y = (part - ((weight * part).sum(-1) / total).unsqueeze(-1) for part in (x, y))
    covariance = (weight * x * y).sum(-1) / total * size / (size - 1)
    if start == 2:
        covariance, size = covariance.mean(-1), size.sum(-1)
    return covariance.tolist(), size.tolist()


def published_rho(rho, variance):
    """The rho whose share of noise is the variance of the variance-preserving state; inf where none is large enough.

    This is argmin |Var(x_t) - (1 - alpha_bar)| (Li et al. 2024, algorithm 3) before it is held to the window.
    variance: of x / alpha.
    """
    share = variance / (1 + rho**2)
    return math.sqrt(share / (1 - share)) if share < 1 else math.inf


@dataclass
class Item:
    """What the corrected rule knows of one item of a run. A state is given by its alpha, sigma, variance and size."""

    v0: float | None = None
    """Variance of x0; None before a call told it, and after one at alpha 0, where nothing of x0 is in the state."""
    surplus: float | None = None
    """Sample variance of the noise of the first state, less 1; None before the first call."""

    def _signal(self, alpha):
        return alpha**2 * self.v0 if self.v0 is not None else 0.0

    def _standard_error(self, alpha, variance, size):
        """Of a variance over `size` elements whose signal is given and whose noise is white."""
        return math.sqrt(2 * max(variance**2 - self._signal(alpha) ** 2, 0.0) / size)

    def rho(self, alpha, sigma, variance, size, stochastic):
        """The rho that a state at (alpha, sigma) of the schedule has, without what is chance.

        The noise that an item starts with has a sample variance other than 1 and keeps it on an ODE: the first state
        shows it. Fresh noise (stochastic) has a chance of its own, so there the excess shrinks by its standard error
        (James & Stein 1961), which leaves nothing of it in latents of a few hundred elements.
        """
        if self.v0 is None:
            return sigma / alpha
        excess = variance - self._signal(alpha) - sigma**2
        if not stochastic:
            excess -= self.surplus * sigma**2
        elif excess:
            excess *= max(0.0, 1 - (self._standard_error(alpha, variance, size) / excess) ** 2)
        return math.sqrt(max(sigma**2 + excess, 0.0)) / alpha

    def learn(self, alpha, sigma, variance, size, covariance):
        """Take v0 from the covariance of x and D, and from the first state the surplus, as far as it can be chance."""
        self.v0 = max(covariance, 0.0) / alpha if alpha > 0 else None
        if self.surplus is None and sigma > 0:
            limit = CHANCE * self._standard_error(alpha, variance, size)
            self.surplus = float(np.clip(variance - self._signal(alpha) - sigma**2, -limit, limit)) / sigma**2


class LevelMeter:
    """Measures the noise levels of the states of one run: `levels` before each network call, `learn` after it.

    mode: one of MODES. window: width of the window around the schedule's level, in TRAINING_STEPS of the model's own
    time; a mode takes its `reach` of it to each side. cutoff: model time in [0, 1] at and below which nothing is
    shifted. per_channel, mask: see `moments`; the published rules look at all channels at once. stochastic: whether
    fresh noise enters the states. Raises ValueError for a model without a table of sigmas.
    """

    def __init__(self, schedule, mode, window, cutoff, per_channel=True, mask=None, stochastic=False):
        if schedule.time is None:
            raise ValueError("model has no table of sigmas, which window and cutoff are counted in; set window to 0")
        self.path, self.time, self.rule, self.cutoff = schedule.path, schedule.time, MODES[mode], cutoff
        self.reach = self.rule.reach * window / TRAINING_STEPS
        self.per_channel, self.mask, self.stochastic = per_channel and self.rule.corrected, mask, stochastic
        self._items = None

    def levels(self, x, sigmas):
        """The levels of the states x [B, C, ...] that the schedule takes to be at `sigmas`: lists of B floats."""
        if self._items is None:
            self._items = [Item() for _ in sigmas]
            if not self.rule.from_first:
                return list(sigmas)
        measured = zip(self._items, sigmas, *moments(x, x, self.mask, self.per_channel), strict=True)
        return [self._level(*known) for known in measured]

    def _level(self, item, sigma, variance, size):
        alpha = float(self.path.alpha(sigma))
        if alpha == 0 or not math.isfinite(variance) or sigma <= 0 or self.time(sigma) <= self.cutoff:
            return sigma
        if self.rule.corrected:
            rho = item.rho(alpha, sigma, variance, size, self.stochastic)
        else:
            rho = published_rho(sigma / alpha, variance / alpha**2)
        level = float(self.path.sigma(-math.log(rho))) if rho > 0 else 0.0
        times = np.maximum(self.time(sigma) + np.array([-self.reach, self.reach]), 1 / TRAINING_STEPS)
        low, high = self.time.sigma(times)
        return float(np.clip(level, min(low, sigma), max(high, sigma)))

    def states(self, x, sigmas, levels):
        """The states x, of which the schedule says `sigmas`, in the scale of `levels`.

        The corrected rule keeps x / alpha, whose noise it measured. The published ones give the variance-preserving
        network the same input, x / sqrt(alpha^2 + sigma^2), under another label.
        """
        scales = []
        for sigma, level in zip(sigmas, levels, strict=True):
            before, after = (float(self.path.alpha(s)) for s in (sigma, level))
            if not self.rule.corrected:
                before, after = math.hypot(before, sigma), math.hypot(after, level)
            scales.append(after / before if level != sigma else 1.0)
        return x * per_item(scales, x)

    def learn(self, x, levels, denoised):
        """Take from the states x at `levels`, and the network's prediction there, what the next call needs."""
        if self.rule.corrected:
            covariances, _ = moments(x, denoised, self.mask, self.per_channel)
            variances, sizes = moments(x, x, self.mask, self.per_channel)
            for item, level, *measured in zip(self._items, levels, variances, sizes, covariances, strict=True):
                item.learn(float(self.path.alpha(level)), level, *measured)

    def relabelled(self, x, shifted, denoised, sigmas, levels):
        """The prediction for the state x at `sigmas`, of the network's answer to `shifted` at `levels`.

        By the corrected rule the answer is the picture that belongs to the state. The published ones hand on its
        noise: y - rho eps in y = x / alpha. (With that the corrected rule would lose on exact Gaussians: a state with
        too little noise would be given more of it.)
        """
        if self.rule.corrected:
            return denoised
        alphas, ratios = [], []
        for sigma, level in zip(sigmas, levels, strict=True):
            moved = sigma != level  # never at alpha 0
            alphas.append(tuple(float(self.path.alpha(s)) for s in (sigma, level)) if moved else (1.0, 1.0))
            ratios.append(math.exp(self.path.lam(level) - self.path.lam(sigma)) if moved else 1.0)
        before, after = (per_item(values, x) for values in zip(*alphas, strict=True))
        ratio = per_item(ratios, x)
        return (x / before - ratio * shifted / after) + ratio * denoised  # exactly `denoised` where nothing is shifted


def per_item(values, x):
    """One number an item as a tensor that broadcasts to x [B, ...]."""
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 1))


class LabelShift:
    """One run in which the network's label alone is shifted, whatever the solver.

    A guided prediction may call the network several times, on parts of a state and on several conditionings at once;
    the levels are measured once for it, on the whole states.
    """

    def __init__(self, meter):
        self._meter = meter
        self._sigmas, self._levels = [], []

    def predict(self, guided, x, sigma):
        """guided() -> the prediction at the states x [B, ...] and sigma [B], whose network calls go through `call`."""
        self._sigmas = sigma.tolist()
        self._levels = self._meter.levels(x, self._sigmas)
        denoised = guided()
        self._meter.learn(self._meter.states(x, self._sigmas, self._levels), self._levels, denoised)
        return denoised

    def call(self, network, x, sigma, items):
        """network(x, sigma) at the shifted levels, given back as a prediction at sigma.

        x: a part of the states, for one or more conditionings along the batch [n B, ...]. items: how many states the
        caller holds. Other states than those that were measured are left as they are.
        """
        stacked = len(sigma) // items
        sigmas, levels = self._sigmas * stacked, self._levels * stacked
        if items != len(self._sigmas) or sigma.tolist() != sigmas:
            return network(x, sigma)
        shifted = self._meter.states(x, sigmas, levels)
        return self._meter.relabelled(x, shifted, network(shifted, sigma.new_tensor(levels)), sigmas, levels)


@dataclass(frozen=True)
class Base:
    """A solver that can step from levels of each item's own, and the same solver without them."""

    order: int
    """The most predictions a step takes."""
    integrator: Callable
    """schedule -> the Integrator that weighs them."""
    unshifted: Callable
    options: dict


def _data(**options):
    return lambda schedule: Integrator(
        None, schedule.path, basis_function("logSNR", schedule), "data", guard=GUARD, **options
    )


def _uniform(schedule):
    return UniformIntegrator(None, schedule.path, basis_function("-log sigma", schedule), "derivative")


BASES = {
    "euler": Base(1, _data(), sample_dpm_solver, {"order": 1}),
    "ancestral": Base(1, _data(tau=1.0), sample_dpm_solver, {"order": 1, "tau": 1.0}),
    "dpmpp_2m": Base(2, _data(variant="midpoint"), sample_dpm_solver, {
        "order": 2, "variant": "midpoint", "lower_order_final": "off", "guard": GUARD}),
    "ipndm": Base(4, _uniform, sample_deis, {"variant": "iPNDM", "order": 3, "guard": 0.0}),
}  # fmt: skip
"""'ancestral' is DDPM's posterior (the reverse SDE, tau 1), 'ipndm' the constant weights that F-PNDM ends up with."""


def item_weights(integrator, levels, sigma_b):
    """(carry, weights of the predictions, noise) of one item's step from its newest level to sigma_b.

    levels: where its predictions were made, newest first; so are the weights, 0 for those that the step leaves out.
    """
    sigma_a = levels[0]
    nodes = [Node(level, j, j) for j, level in enumerate(levels) if np.isfinite(integrator.u(level))]
    closed = integrator.closed(sigma_a, sigma_b) or len(nodes) < 2
    if closed and integrator.prediction == "data":
        tau = integrator.tau if sigma_a > sigma_b else 0.0  # a state shifted below the next level has no noise to lose
        nodes, weights = [Node(sigma_a, 0, 0)], first_order(integrator.path, sigma_a, sigma_b, tau)
    else:
        weights, nodes = integrator.guarded(nodes[:1] if closed else nodes, sigma_a, sigma_b, integrator.variant)
    row = [0.0] * len(levels)
    for node, weight in zip(nodes, weights.nodes, strict=True):
        row[node.prediction] = weight
    return weights.carry, row, weights.noise


def sample_time_shift(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    *, mode="corrected", base="euler", window=40, cutoff=0.3, per_channel=True, s_noise=1.0, before_call=None,
):  # fmt: skip
    """Sample with each network call, and each step, at the noise level of the state (Li et al. 2024, algorithm 3).

    x: [B, ...]. base: one of BASES. mode, window, cutoff, per_channel: see `LevelMeter`; of a masked run the inside of
    the mask is measured. s_noise, before_call: see `plan.run_plan`. Each item has levels of its own, so this is no
    plan of scalar weights; where nothing can be shifted (window 0, cutoff 1) it is the plan of the base.
    Raises ValueError for options and SIGMAS that do not fit, and for a model without a table of sigmas.
    """
    check_options(mode, window, cutoff, base)
    solver = BASES[base]
    if window == 0 or cutoff >= 1:
        options = {**solver.options, "s_noise": s_noise, "before_call": before_call}
        return solver.unshifted(model, x, sigmas, extra_args, callback, disable, **options)
    extra_args, schedule, dtype = extra_args or {}, schedule_of(model), x.dtype
    integrator = solver.integrator(schedule)
    stochastic = integrator.tau > 0 and s_noise > 0
    meter = LevelMeter(schedule, mode, window, cutoff, per_channel, extra_args.get("denoise_mask"), stochastic)
    noise = ItemNoise(getattr(model, "noise", None), x, extra_args.get("seed"))
    x = x.to(torch.promote_types(dtype, torch.float32))
    steps = usable(sigmas.tolist(), schedule.path, integrator.tau)
    history = []  # (levels, predictions at them), newest first
    for i, sigma_b in enumerate(tqdm(steps[1:], disable=disable)):
        if before_call is not None:
            before_call()
        nominal = [steps[i]] * len(x)
        levels = meter.levels(x, nominal)
        shifted = meter.states(x, nominal, levels)
        denoised = model(shifted.to(dtype), per_item(levels, x).flatten(), **extra_args).to(x.dtype)
        meter.learn(shifted, levels, denoised)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if meter.rule.moves_step:
            x = shifted
        else:
            denoised, levels = meter.relabelled(x, shifted, denoised, nominal, levels), nominal
        prediction = denoised if integrator.prediction == "data" else (x - denoised) / per_item(levels, x)
        history = [(levels, prediction), *history][: solver.order]
        x = _step(integrator, history, x, sigma_b, noise, s_noise)
    return x.to(dtype)


def _step(integrator, history, x, sigma_b, noise, s_noise):
    """The states x at the newest levels, moved to sigma_b, each item by weights of its own."""
    items = zip(*(levels for levels, _ in history), strict=True)
    carry, rows, scales = zip(*(item_weights(integrator, item, sigma_b) for item in items), strict=True)
    out = per_item(carry, x) * x
    for weights, (_, prediction) in zip(zip(*rows, strict=True), history, strict=True):
        out = out + per_item(weights, x) * prediction
    return out + per_item(scales, x) * s_noise * noise.draw().to(x.device) if any(scales) else out


def check_options(mode, window, cutoff, base="euler"):
    """Raise ValueError with the option, its value and the fix."""
    check_choices({"mode": (mode, MODES), "base": (base, BASES)})
    if not 0 <= window <= TRAINING_STEPS:
        raise ValueError(f"window is {window}; it is a width in time steps, 0 (no shift) to {TRAINING_STEPS}")
    if not 0 <= cutoff <= 1:
        raise ValueError(f"cutoff is {cutoff}; it is a fraction of the model's time, 0 to 1")
