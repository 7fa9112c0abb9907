"""A solver as a plan: a straight-line program of model calls and linear combinations, and the loop that runs it.

Every solver here is linear in the states and the model's predictions, so it is a list of three operations on named
slots, with weights that are plain floats computed in float64 before the first model call:

    Eval     slot <- model(slot, sigma)            the denoised prediction
    Noise    slot <- standard normal noise         drawn per batch item
    Combine  slot <- sum of weight * slot

A plan is data: it can be printed, counted (network calls) and transposed. The loop knows nothing about solvers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from .model import schedule_of
from .noise import ItemNoise

STATE = "x"
"""The slot that holds the initial state before the first operation."""


def state_slot(i):
    """The slot of the state at the i-th sigma of a schedule."""
    return f"x{i}" if i else STATE


@dataclass(frozen=True)
class Eval:
    out: str
    state: str
    sigma: float
    interval: int | None = None
    """Index into SIGMAS of a call at the user's own sigma (reported to the callback), None for an inserted one."""

    @property
    def reads(self):
        return (self.state,)


@dataclass(frozen=True)
class Noise:
    out: str
    reads = ()


@dataclass(frozen=True)
class Combine:
    out: str
    terms: tuple[tuple[float, str], ...]

    @property
    def reads(self):
        return tuple(slot for _, slot in self.terms)


@dataclass(frozen=True)
class StepInfo:
    """What was decided for one step; for people, the loop does not read it."""

    sigma_from: float
    sigma_to: float
    order: int
    calls: int
    kappa: float = 1.0
    note: str = ""


@dataclass
class Plan:
    """Operations in order, and a line about each step. Built by a solver's planner, run by `run_plan`."""

    operations: list = field(default_factory=list)
    steps: list[StepInfo] = field(default_factory=list)
    result: str = STATE
    """The slot that holds the state at the last sigma after the last operation."""
    keep: tuple[str, ...] = ()
    """Slots that outlive the run besides the result."""
    outside: str = ""
    """The prediction that stands outside a mask, where the result is more than a prediction; empty for the result."""
    calls: int = 0
    """Number of network calls (NFE)."""

    def eval(self, out, state, sigma, interval=None):
        self.calls += 1
        self.operations.append(Eval(out, state, float(sigma), interval))

    def noise(self, out):
        self.operations.append(Noise(out))

    def combine(self, out, *terms):
        """Append a combination; terms are (weight, slot), zero weights are left out, equal slots are added up."""
        weights = {}
        for weight, slot in terms:
            weights[slot] = weights.get(slot, 0.0) + float(weight)
        self.operations.append(Combine(out, tuple((w, s) for s, w in weights.items() if w != 0.0)))

    def releases(self):
        """For each operation the slots that nothing reads after it, so that their memory can go."""
        alive, releases = {self.result, *self.keep, *filter(None, [self.outside])}, []
        for op in reversed(self.operations):
            releases.append({*op.reads, op.out} - alive)
            alive = (alive - {op.out}) | set(op.reads)
        return releases[::-1]

    def most_alive(self):
        """The most slots that hold a latent at once."""
        alive, most = {STATE}, 1
        for op, released in zip(self.operations, self.releases(), strict=True):
            alive.add(op.out)
            most = max(most, len(alive))
            alive -= released
        return most

    def describe(self):
        """A table of the steps and the network calls as text."""
        lines = [f"{self.calls} network calls in {len(self.steps)} steps; at most {self.most_alive()} latents at once"]
        for i, s in enumerate(self.steps, 1):
            line = f"{i:4d}  sigma {s.sigma_from:9.5g} -> {s.sigma_to:9.5g}  order {s.order}  calls {s.calls}"
            lines.append(f"{line}  kappa {s.kappa:5.2f}{'  ' + s.note if s.note else ''}")
        return "\n".join(lines)


def combine(terms, slots):
    """sum of weight * tensor in the tensors' own dtype; one new tensor, no temporaries."""
    if not terms:
        return torch.zeros_like(next(iter(slots.values())))
    (weight, slot), *rest = terms
    out = slots[slot] * weight
    for weight, slot in rest:
        out.add_(slots[slot], alpha=weight)
    return out


def dynamic_threshold(denoised, quantile):
    """Clamp each item to its own quantile of |value|, at least 1, and rescale to [-1, 1] (Saharia et al. 2022, 2.3).

    For models that work on pixels in [-1, 1]; latents have no such range.
    """
    size = denoised.flatten(1).abs()
    limit = size.kthvalue(max(1, round(quantile * size.shape[1])), dim=1).values.clamp(min=1.0)
    limit = limit.view(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-limit, limit) / limit


def run_plan(
    plan: Plan,
    model: Callable,
    given: dict[str, torch.Tensor],
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    callback: Callable | None = None,
    disable: bool | None = None,
    *,
    dtype: torch.dtype,
    s_noise: float = 1.0,
    threshold: float = 0.0,
    before_call: Callable | None = None,
):
    """Run `plan` from the slots `given` and return what outlives it: {slot: tensor} of `plan.result` and `plan.keep`.

    given: {slot: tensor [B, ...]}, the initial state first; sums are taken in its dtype, while the model gets `dtype`.
    model(x, sigma[B], **extra_args) -> denoised. sigmas: the host's tensor, whose float32 entries are handed to the
    model unchanged, so that a discrete table is hit exactly. callback: as in k-diffusion, once an interval of SIGMAS.
    s_noise multiplies every noise. threshold in (0, 1]: dynamic thresholding at that quantile, 0 = off. before_call()
    runs before each network call and may raise to cancel.
    """
    extra_args = extra_args or {}
    slots = dict(given)
    x = next(iter(given.values()))
    per_item = torch.ones(x.shape[0], dtype=torch.promote_types(dtype, torch.float32), device=x.device)
    noise = ItemNoise(getattr(model, "noise", None), x, extra_args.get("seed"))
    with tqdm(total=max(len(sigmas) - 1, 0), disable=disable) as bar:
        for op, released in zip(plan.operations, plan.releases(), strict=True):
            if isinstance(op, Eval):
                if before_call is not None:
                    before_call()
                own = op.interval is not None
                state, sigma = slots[op.state], per_item * (sigmas[op.interval] if own else op.sigma)
                denoised = model(state.to(dtype), sigma, **extra_args).to(state.dtype)
                slots[op.out] = dynamic_threshold(denoised, threshold) if threshold else denoised
                if own:
                    bar.update()
                    if callback is not None:
                        report = {"sigma": sigmas[op.interval], "sigma_hat": sigmas[op.interval]}
                        callback({"x": state, "i": op.interval, "denoised": slots[op.out], **report})
            elif isinstance(op, Noise):
                slots[op.out] = noise.draw().to(x.device) * s_noise
            else:
                slots[op.out] = combine(op.terms, slots)
            for slot in released:
                del slots[slot]
    mask = extra_args.get("denoise_mask")
    if plan.outside and mask is not None:
        slots[plan.result] = torch.lerp(slots[plan.outside], slots[plan.result], mask.to(slots[plan.result]))
    return {slot: slots[slot] for slot in (plan.result, *plan.keep)}


def execute(plan: Plan, model: Callable, x: torch.Tensor, sigmas: torch.Tensor, *args, **options):
    """Run `plan` from the state `x` (any shape [B, ...]) and return the final state in the dtype of `x`.

    The other arguments are those of `run_plan`. Half-precision states are accumulated in float32.
    """
    given = {STATE: x.to(torch.promote_types(x.dtype, torch.float32))}
    return run_plan(plan, model, given, sigmas, *args, dtype=x.dtype, **options)[plan.result].to(x.dtype)


def check_choices(choices):
    """Raise ValueError for the first option of {name: (value, allowed values)} whose value is not allowed."""
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(str, allowed))}")


def plan_sampler(planner):
    """Make a k-diffusion sampler function of a planner.

    planner(sigmas: list[float], schedule: Schedule, **options) -> Plan. The function takes the planner's options and
    those of `execute` by keyword. Its attribute `plan(sigmas, schedule, **the same options)` gives the plan alone.
    """

    def plan(sigmas, schedule, *, s_noise=1.0, threshold=0.0, before_call=None, **options):
        return planner(sigmas, schedule, **options)

    def sample(
        model, x, sigmas, extra_args=None, callback=None, disable=None,
        *, s_noise=1.0, threshold=0.0, before_call=None, **options,
    ):  # fmt: skip
        return execute(
            planner(sigmas.tolist(), schedule_of(model), **options), model, x, sigmas, extra_args, callback, disable,
            s_noise=s_noise, threshold=threshold, before_call=before_call,
        )  # fmt: skip

    sample.plan = plan
    sample.__name__ = sample.__qualname__ = planner.__name__.replace("plan_", "sample_")
    sample.__doc__ = planner.__doc__
    return sample
