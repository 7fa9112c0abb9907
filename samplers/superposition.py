"""SuperDiff: superposition of prompts or models (Skreta et al., ICLR 2025, arXiv 2412.17762).

All in y = x / alpha = x0 + rho n, rho = sigma / alpha, where a flow is what eps, v and EDM models are. There each of M
components predicts D_i = E_i[x0 | y], and with it its score -v_i / rho, v_i = (y - D_i) / rho. Guided predictions
G_i = U + cfg (D_i - U) are mixed with weights kappa that sum to 1, and a step moves towards the mixture:

    y' = y + share (sum_i kappa_i G_i - y) + noise.

Along the way the log-densities follow from the predictions at hand by Ito's formula, without a divergence:

    d log q_i = -1/rho [h |v_i|^2 + <dy, v_i>],    h = rho - rho',  dy = y' - y.

The authors' script adds the first term where its OR accumulates densities; it must be as above. Everything that is
common to the components cancels in what follows, so densities are kept relative to their mean over the components:
the differences come from D_i - mean(D) and the large parts of v_i never enter a sum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from .integrator import usable
from .model import schedule_of
from .noise import ItemNoise
from .paths import FLOW
from .plan import check_choices

COMPONENTS = "trajectory_components"
"""Model option that asks a guider for the stack [2 M, B, ...] of the predictions D_i and the guided ones G_i."""

MODES = ("AND", "OR", "average")
DENSITIES = ("guided", "prompt")
"""Whose densities are tracked: those of the guided predictions G_i, which the step mixes, or of the prompts' own D_i.

The paper tracks D_i. Then equal weights do not keep the densities in step: guidance alone makes log q_i - log q_j drift
by (cfg - 1) h / rho^3 (|D_i - U|^2 - |D_j - U|^2), towards the prompt with more to say, and AND fades what it asks for.
With G_i, a mixture is one of the components' own predictions and the drift is none. At cfg 1 both are the same.
"""
ALIKE = 1e-5
"""Predictions that differ by less than this share of their size are the same: the difference is rounding."""
PRECISION = 1e-6
"""Relative error of sums in float32."""
PROBE = 0.01
"""Length of the move of a divergence's finite difference, in units of rho."""
RESULT_ENTRIES = 256
"""So many entries of each latent tell one run's result from another's."""
ROUNDING = 2.0**-8
"""Largest relative error of a value that was stored in bfloat16, the coarsest of the usual types."""


@dataclass(frozen=True)
class Transition:
    """A step from rho to rho' = ratio rho: y' = y + share (G - y) + rho spread n, n standard normal."""

    share: Callable[[float], float]
    spread: Callable[[float], float] | None = None
    """None for a step without noise, whose log-densities need the divergences of the predictions."""


INTEGRATORS = {
    "ancestral": Transition(lambda ratio: 1 - ratio**2, lambda ratio: ratio * math.sqrt(1 - ratio**2)),
    "euler_maruyama": Transition(lambda ratio: 2 * (1 - ratio), lambda ratio: math.sqrt(2 * (1 - ratio))),
    "ode": Transition(lambda ratio: 1 - ratio),
}
"""The exact Gaussian transition, the paper's step of the same equation, and its probability-flow ODE.

Noise of any strength in between is not offered: the terms with a divergence cancel at the full strength alone.
"""


@dataclass(frozen=True)
class Run:
    """What one run did. All on the CPU; the steps that were made, which are fewer if it was cancelled."""

    sigmas: tuple[float, ...]
    """At which the predictions of each step were made."""
    kappas: torch.Tensor
    """Weights [steps, B, M]."""
    log_densities: torch.Tensor
    """log q_i minus its mean over i, in nats, after each step [steps, B, M]."""


@dataclass
class Record:
    """Where a run leaves its Run, and what it is known by. Nothing reads it during a run."""

    run: Run | None = None
    _result: tuple | None = None

    def clear(self):
        self.run = self._result = None

    def keep_result(self, latents):
        """latents: what the run became in the end, [B, ...] in any scale."""
        self._result = latents.shape, sampled_entries(latents)

    def is_of(self, latents):
        """Whether `latents` [B, ...] are the kept result: the same, but for a change of device or precision."""
        if self.run is None or self._result is None:
            return False
        shape, entries = self._result
        return shape == latents.shape and torch.allclose(sampled_entries(latents), entries, ROUNDING, ROUNDING**2)


def sampled_entries(latents):
    """float32 entries [B, RESULT_ENTRIES or fewer] on the CPU, evenly spaced over each item of [B, ...]."""
    items = latents.detach().flatten(1)
    places = torch.linspace(0, items.shape[1] - 1, min(items.shape[1], RESULT_ENTRIES)).round().long()
    return items[:, places.to(items.device)].to("cpu", torch.float32)


# --- one step --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """From y at rho to y' = rest + share (mixture of G), with rest = (1 - share) y + spread n."""

    rho: float
    rho_next: float
    share: float
    spread: float

    @classmethod
    def between(cls, rho, rho_next, transition):
        """A level that repeats moves nothing. From rho = inf to another one and to 0 there is no noise."""
        if rho == rho_next:
            return cls(rho, rho_next, 0.0, 0.0)
        if math.isinf(rho) or not rho_next:
            return cls(rho, rho_next, 1.0, 0.0)
        ratio = rho_next / rho
        return cls(rho, rho_next, transition.share(ratio), rho * transition.spread(ratio) if transition.spread else 0.0)

    def rest(self, y, noise):
        """Where all of the state but the mixture goes. y: the state, at rho = inf its noise. noise: an ItemNoise."""
        if not self.share:
            return y
        if math.isinf(self.rho):
            return self.rho_next * y
        rest = (1 - self.share) * y
        return rest + self.spread * noise.draw().to(y) if self.spread else rest


def apart(predictions):
    """What sets each of the predictions [M, B, ...] apart from their mean; zero where it is rounding."""
    mean = predictions.mean(0)
    differences = predictions - mean
    alike = inner(differences, differences) <= ALIKE**2 * inner(predictions, predictions)
    return differences.masked_fill(alike.view(*alike.shape, *[1] * (mean.ndim - 1)), 0.0)


def inner(a, b):
    """<a_i, b_i> [M, B] of stacks [M, B, ...]; the sums are in their own precision, float32 or better."""
    return (a * b).flatten(2).sum(-1)


def centred(values):
    """Values [..., M] less their mean over the components."""
    return values - values.mean(-1, keepdim=True)


def log_density_steps(denoised, y, y_next, rho, rho_next):
    """d log q_i [B, M] of the step y -> y_next [B, ...], relative to the mean over the components.

    With d_i = D_i - mean(D) the formula above is <d_i, h (v_i + mean(v)) + dy> / rho^2. From rho = inf, where all
    densities are the same, it is the density that N(D_i, rho'^2) has at y_next. denoised: D [M, B, ...].
    """
    mean = denoised.mean(0)
    if math.isinf(rho):
        along = y_next - (denoised + mean) / 2
    else:
        along = (1 - rho_next / rho) * (2 * y - denoised - mean) + (y_next - y)
    return centred(rate(rho, rho_next) * inner(apart(denoised), along).T)


def rate(rho, rho_next):
    """Density per square of distance; none is known of the steps from rho = inf to 0 and to inf."""
    scale = rho_next if math.isinf(rho) else rho
    return scale**-2 if scale else 0.0


def gains(denoised, guided, step):
    """What each d log q_i of a step gains per kappa_j, for kappa that sum to 1 [B, M, M]."""
    difference = apart(denoised)
    columns = [inner(difference, towards.expand_as(difference)).T for towards in apart(guided)]
    return step.share * rate(step.rho, step.rho_next) * torch.stack(columns, dim=-1)


def weights_and(log_densities, gains, bias):
    """kappa [B, M] after whose step all log q_i - bias_i are the same (AND of the paper, for any M).

    log_densities: after a step at equal weights [B, M]. bias: nats, [M]. All float64. The paper keeps the steps equal;
    the sums are the same, but recover from steps whose kappa had to be clipped. Of all solutions the one closest to
    equal weights: components that predict the same have the same weight.
    """
    missing = centred(bias - log_densities).unsqueeze(-1)
    return 1 / log_densities.shape[-1] + centred((torch.linalg.pinv(gains, rtol=PRECISION) @ missing).squeeze(-1))


def weights_or(log_densities, bias, temperature):
    """kappa [B, M] = softmax(temperature (log q + bias)) (OR of the paper). bias: nats, [M]."""
    return torch.softmax(temperature * (log_densities + bias), dim=-1)


def clipped(kappa, clip):
    """kappa drawn towards equal weights until each is within [-clip, 1 + clip]; 0 leaves them as they are."""
    if not clip:
        return kappa
    equal = 1 / kappa.shape[-1]
    away = kappa - equal
    room = torch.where(away > 0, 1 + clip - equal, clip + equal)
    return equal + away * (room / away.abs().maximum(room)).amin(-1, keepdim=True)


def mixture(kappa, stack):
    """sum_i kappa_i s_i [B, ...] of weights [B, M] and a stack [M, B, ...]."""
    return (kappa.T.to(stack).view(*stack.shape[:2], *[1] * (stack.ndim - 2)) * stack).sum(0)


def exact(values):
    """Densities and weights, a few numbers an item: float64 on the CPU, since not every device has it."""
    return values.cpu().double()


def on_other_path(x, sigma, path, other, highest):
    """(x, sigma) of one path as a model of another one knows the same y and rho.

    Since alpha = sigma / rho, the state is scaled as sigma is. sigma [B], of the states x [B, ...], may be 1 on a flow.
    highest: the other model's largest sigma; beyond it, where a state is noise, the noise alone is scaled.
    """
    rho = sigma / (1 - sigma) if path is FLOW else sigma
    there = 1 / (1 + 1 / rho) if other is FLOW else rho
    there = there.clamp(max=highest)
    return x * (there / sigma).view(-1, *[1] * (x.ndim - 1)).to(x), there


# --- the run ---------------------------------------------------------------------------------------------------------


class Components:
    """(D, G), each [M, B, ...], of the states of one run, through all of the host's wrappers of a model.

    D are the predictions whose densities are tracked: see DENSITIES. Raises ValueError for a guider without components
    and for predictions that are not finite, of which no density and no weight follows.
    """

    def __init__(self, model, extra_args, dtype, densities, before_call):
        if not hasattr(getattr(model, "inner_model", None), "predict_components"):
            raise ValueError("guider gives one prediction only, but SuperDiff mixes those of several prompts; connect "
                             "a SuperDiff Guider or a SuperDiff Multi-Model Guider")
        self._model, self._dtype, self._densities, self._before_call = model, dtype, densities, before_call
        options = {**extra_args.get("model_options", {}), COMPONENTS: True}
        self._arguments = {**extra_args, "model_options": options}

    def __call__(self, x, sigma):
        """x: states of the model's own path [B, ...]. sigma: the host's own entry, a scalar tensor."""
        if self._before_call is not None:
            self._before_call()
        level = torch.ones(len(x), dtype=x.dtype, device=x.device) * sigma
        stack = self._model(x.to(self._dtype), level, **self._arguments).to(x.dtype)
        if not stack.isfinite().all():
            raise ValueError(f"model predicts NaN or infinite values at sigma {float(sigma):.4g}, where its half "
                             "precision overflows; load it in float32 or bfloat16")
        denoised, guided = stack.chunk(2)
        return (guided if self._densities == "guided" else denoised), guided


def divergences(predict, x, sigma, denoised, signs, reach):
    """Hutchinson's estimate of div D_i over y [B, M], along signs [B, ...], by a finite difference of one more call.

    reach: length of the move for each entry, (in x, in y).
    """
    moved, _ = predict(x + reach[0] * signs, sigma)
    return inner(moved - denoised, signs.expand_as(denoised)).T / reach[1]


def sample_superdiff(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    *, mode="AND", temperature=1.0, bias=(), integrator="ancestral", kappa_clip=5.0, start_composing=0.0,
    stop_composing=1.0, densities="guided", record=None, before_call=None,
):  # fmt: skip
    """Sample a superposition of the components that the guider behind `model` has (Skreta et al. 2025).

    mode: AND keeps the log-densities of all components in step, OR gives the weight to the likeliest, average is the
    mean of the predictions. temperature >= 0: of OR. bias: nats in favour of each component, 0 for those that it has
    none for; AND reaches them in equal steps. integrator: one of INTEGRATORS; 'ode' makes a second call each step, for
    the divergences. kappa_clip >= 0: see `clipped`; only AND leaves [0, 1]. start_composing, stop_composing: fractions
    of the steps between which kappa is chosen; before and after it is 1 / M. densities: one of DENSITIES. record: a
    Record for the Run, cleared first. Raises ValueError for options out of range, a rising schedule, a guider without
    components and predictions that are not finite.
    """
    if record is not None:
        record.clear()
    check_options(mode, temperature, bias, integrator, kappa_clip, start_composing, stop_composing, densities)
    extra_args, path, transition = extra_args or {}, schedule_of(model).path, INTEGRATORS[integrator]
    predict = Components(model, extra_args, x.dtype, densities, before_call)
    levels = usable(sigmas.tolist(), path, tau=1.0)
    dtype, count = x.dtype, len(levels) - 1
    if count < 1 or not x.numel():
        return x
    x = x.to(torch.promote_types(dtype, torch.float32))
    identity = getattr(model, "noise", None), x, extra_args.get("seed")
    noise, probe = ItemNoise(*identity), ItemNoise(*identity, purpose="divergence")
    composing = [start_composing <= i / count < stop_composing for i in range(count)]
    kappas, tracked = [], []
    try:
        for i in tqdm(range(count), disable=disable):
            denoised, guided = predict(x, sigmas[i])
            if i == 0:
                log_q = torch.zeros(len(x), len(denoised), dtype=torch.float64)
                favour = favours(bias, len(denoised))
            alpha, alpha_next = (float(path.alpha(level)) for level in levels[i : i + 2])
            rho = levels[i] / alpha if alpha else math.inf
            rho_next = levels[i + 1] / alpha_next if alpha_next else math.inf
            step = Step.between(rho, rho_next, transition)
            y = x / (alpha or levels[i])  # at rho = inf the noise alone
            rest = step.rest(y, noise)

            # a step is linear in kappa: what it does at equal weights, and what it gains from others
            steps = log_density_steps(denoised, y, rest + step.share * guided.mean(0), rho, rho_next)
            if transition.spread is None and alpha:
                signs = torch.where(probe.draw() < 0, -1.0, 1.0).to(x)
                reach = PROBE * levels[i], PROBE * rho
                steps = steps - step.share * centred(divergences(predict, x, sigmas[i], denoised, signs, reach))
            steps, gain = exact(steps), exact(gains(denoised, guided, step))
            kappa = torch.full_like(log_q, 1 / len(denoised))
            if composing[i] and mode == "AND":
                progress = sum(composing[: i + 1]) / sum(composing)
                kappa = clipped(weights_and(log_q + steps, gain, progress * favour), kappa_clip)
            elif composing[i] and mode == "OR":
                kappa = weights_or(log_q, favour, temperature)
            log_q = log_q + steps + (gain @ centred(kappa).unsqueeze(-1)).squeeze(-1)

            mixed = mixture(kappa, guided)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": mixed})
            x = (alpha_next or levels[i + 1]) * (rest + step.share * mixed)
            kappas.append(kappa)
            tracked.append(log_q)
    finally:
        if record is not None and kappas:
            record.run = Run(tuple(levels[: len(kappas)]), torch.stack(kappas), torch.stack(tracked))
    return x.to(dtype)


def favours(bias, count):
    """bias of `count` components, float64 [count]. Raises ValueError for more values than components."""
    if len(bias) > count:
        raise ValueError(f"bias has {len(bias)} values for {count} components; give at most one for each, in their "
                         "order")
    return torch.tensor([*bias, *[0.0] * (count - len(bias))], dtype=torch.float64)


def check_options(mode, temperature, bias, integrator, kappa_clip, start_composing, stop_composing, densities):
    """Raise ValueError with the option, its value and the fix."""
    check_choices({
        "mode": (mode, MODES), "integrator": (integrator, INTEGRATORS), "densities": (densities, DENSITIES)})
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; choose 0 (equal weights) or more, 1e6 for the likeliest alone")
    if not all(map(math.isfinite, bias)):
        raise ValueError(f"bias is {', '.join(map(str, bias))}; each value is a finite number of nats")
    if not 0 <= kappa_clip < math.inf:
        raise ValueError(f"kappa_clip is {kappa_clip}; choose 0 (off) or more")
    if not 0 <= start_composing <= stop_composing <= 1:
        raise ValueError(f"start_composing is {start_composing} and stop_composing {stop_composing}; they are "
                         "fractions of the steps, the first not above the second")


def csv(run):
    """A Run as text: one line for each item and step, both counted from 1."""
    numbers = range(1, run.kappas.shape[-1] + 1)
    lines = [",".join(["image", "step", "sigma", *(f"kappa_{i}" for i in numbers), *(f"log_q_{i}" for i in numbers)])]
    for image in range(run.kappas.shape[1]):
        for step, sigma in enumerate(run.sigmas):
            values = [sigma, *run.kappas[step, image].tolist(), *run.log_densities[step, image].tolist()]
            lines.append(",".join([str(image + 1), str(step + 1), *(f"{value:.6g}" for value in values)]))
    return "\n".join(lines)
