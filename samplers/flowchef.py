"""FlowChef: steer a flow's picture during sampling, without a gradient through the network (Patel et al. 2024).

With the slope d = (x - D) / sigma held, dD/dx = 1: to move the denoised picture D by a Delta is to move the state by
it, and no network is differentiated. On a flow a step is then

    D' = D + Delta,    x_next = D' + sigma_next u,    u = (x - D) / sigma,

which is the Euler step plus Delta. A VE model is the flow of s = sigma / (1 + sigma) in the state x / (1 + sigma),
which gives the Euler step plus (1 + sigma_next) Delta; both are Euler plus (alpha + sigma) Delta of the path. Delta is
-strength P(D), where P(D) is the whole way from what is wanted to D, applied `inner_steps` times to D.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm.auto import trange

from .integrator import usable
from .model import schedule_of
from .plan import check_choices

KNOWN = 0.999
"""Share of a latent cell that must be known for it to be kept: an autoencoder mixes what is hidden into the rest."""
STEERED = "trajectory_flowchef"
"""Entry of model_options: a dict in which a guider leaves, under "denoised", the prediction that is to be steered."""

SCHEDULES = {
    "constant": lambda strength, done, s, s_next: strength,
    "decay to 0": lambda strength, done, s, s_next: strength * (1 - done),
    "1-s": lambda strength, done, s, s_next: strength * (1 - s),
    "rise to 1": lambda strength, done, s, s_next: strength + (1 - strength) * (1 - s_next) ** 4,
}
"""A step's strength, of the share `done` of the steered steps and of the noise levels s -> s_next as a flow's. "rise to
1" is gentle while the picture is a guess, and ends at what is known: it is of shares of a way, so not for losses."""
MODES = {
    "linear": lambda pull, strength, tau: strength * pull,
    "soft-sign": lambda pull, strength, tau: strength * pull / (pull.abs() + tau),
}
"""What is subtracted for a pull. soft-sign is the first step of an Adam optimiser, whose epsilon makes tau."""
SOLVERS = ("euler", "heun")


@dataclass(frozen=True)
class Steering:
    """What one run is steered by. A pull maps a denoised picture in the model's scale to what is to be subtracted."""

    pulls: tuple[Callable, ...] = ()
    source: Callable | None = None
    """Pull of the whole picture to the reference, for the first steps."""

    def __call__(self, denoised):
        """The sum of the pulls at `denoised` [B, ...]."""
        return sum((pull(denoised) for pull in self.pulls), torch.zeros_like(denoised))


class LatentScale:
    """Between the model's scale and the VAE's, in which latents are stored; the same for a bare denoiser."""

    def __init__(self, model):
        base = getattr(getattr(model, "inner_model", None), "inner_model", None)
        self.to_model = getattr(base, "process_latent_in", lambda latents: latents)
        self.to_vae = getattr(base, "process_latent_out", lambda latents: latents)


def rms(x):
    """Root mean square of each item [B, ...] -> [B, 1, ...]."""
    return x.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))


def toward(reference, keep=1.0):
    """Pull to a reference [1 or B, ...] where keep (0..1, broadcast) is 1."""
    return lambda denoised: keep * (denoised - reference)


def agreeing(direction, scale):
    """Pull by a measurement: direction(latents) is what to subtract from latents in the VAE's scale."""

    def pull(denoised):
        latents = scale.to_vae(denoised)
        return denoised - scale.to_model(latents - direction(latents))

    return pull


def descending(direction, scale):
    """Pull along direction(latents) of a loss, made as long as the picture: g rms(D) / rms(g), item by item."""

    def pull(denoised):
        g = direction(scale.to_vae(denoised)).to(denoised)
        return g * (rms(denoised) / rms(g).clamp_min(torch.finfo(g.dtype).tiny))

    return pull


def kept(mask, shape):
    """1 where latents of this `shape` are wholly known, else 0: [1 or B, 1, ...] or, for a mask of that shape, that.

    mask: 1 = unknown. [M, H, W] with M = 1, the batch, or the frames of a single video; resized by area. Raises
    ValueError for another number of masks and for packed latents, in which a picture has no place.
    """
    known = 1.0 - mask.float()
    if mask.shape[2:] != tuple(shape[2:]) or mask.ndim != len(shape):
        known = F.interpolate(_planes(known, shape), size=shape[-2:], mode="area")
        if len(shape) > 4:
            frames = known.shape[0] if len(known) == shape[2] and shape[0] == 1 else 1
            known = known.view(-1, 1, frames, *shape[-2:])
    return (known > KNOWN).float()


def _planes(known, shape):
    if len(shape) < 4:
        raise ValueError(f"mask is connected, but the latent is {_size(shape)}, which has no rows and columns; take "
                         "the mask off, and for FlowChef Sampler put it on the latent with Set Latent Noise Mask")
    planes = known.reshape(-1, 1, *known.shape[-2:])
    frames = shape[2] if len(shape) > 4 and shape[0] == 1 else 1
    if len(planes) not in (1, shape[0], frames):
        fit = f"{frames} frames" if frames > 1 else f"{shape[0]} items"
        raise ValueError(f"mask has {len(planes)} items, but the latent has {fit}; connect one mask, or one for each")
    return planes


def _size(shape):
    return " x ".join(str(n) for n in shape)


def strengths(sigmas, path, strength, start=0.0, stop=1.0, schedule="constant", steer_last=True):
    """The strength of each step between the `sigmas` (floats), 0 outside the window from start to stop, or for 0."""
    steps = len(sigmas) - 1
    first, last = (math.ceil(share * steps - 1e-9) for share in (start, stop))
    count = last - first
    found = [0.0] * max(steps, 0)
    if not strength:
        return found
    levels = [sigma / (float(path.alpha(sigma)) + sigma) for sigma in sigmas]
    for i in range(first, min(last, steps if steer_last else steps - 1)):
        found[i] = SCHEDULES[schedule](strength, (i - first) / count, levels[i], levels[i + 1])
    return found


def move(pull, denoised, strength, inner_steps=1, max_norm=0.0, mode="linear", tau=0.0, before_call=None):
    """Delta: how far `inner_steps` pulls move the picture; at most max_norm times its RMS, item by item (0: any)."""
    steered = denoised
    for _ in range(inner_steps):
        if before_call is not None:
            before_call()
        steered = steered - MODES[mode](pull(steered), strength, tau)
    delta = steered - denoised
    if max_norm:
        delta = delta * (max_norm * rms(denoised) / rms(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp(max=1)
    return delta


def sample_flowchef(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    *, steering, strength=0.1, inner_steps=1, start=0.0, stop=1.0, source_steps=0, schedule="constant", max_norm=1.0,
    steer_last=True, solver="euler", mode="linear", tau=0.08, before_call=None,
):  # fmt: skip
    """Sample with the denoised picture of each step steered (Patel et al. 2024, arXiv 2412.00100).

    x: [B, ...]. steering(model, x, noise mask or None) -> Steering of this run; with it the noise mask is its business
    and the model is called without. strength: share of a pull that a step follows, 1 is all of it; 0 is the plain
    solver. start, stop: the window of steered steps, as shares of all. source_steps: so many of them pull the whole
    picture to the reference first. schedule, solver, mode: SCHEDULES, SOLVERS, MODES. steer_last: whether the last step
    is steered. tau: of soft-sign. max_norm: see `move`. before_call() runs before each network call and each pull and
    may raise to cancel. A guider may leave the prediction that is to be steered in model_options[STEERED]["denoised"].
    Raises ValueError for options and SIGMAS that do not fit, and where there is nothing to steer toward.
    """
    check_options(strength, inner_steps, start, stop, source_steps, schedule, max_norm, solver, mode, tau)
    extra_args, path, dtype = extra_args or {}, schedule_of(model).path, x.dtype
    levels = usable(sigmas.tolist(), path)
    amounts = strengths(levels, path, strength, start, stop, schedule, steer_last)
    aside = {}
    if any(amounts):
        steering = steering(model, x, extra_args.get("denoise_mask"))
        check_steering(steering, source_steps)
        extra_args = {**extra_args, "model_options": {**extra_args.get("model_options", {}), STEERED: aside}}
        extra_args |= {"denoise_mask": None} if "denoise_mask" in extra_args else {}
    x = x.to(torch.promote_types(dtype, torch.float32))
    each = torch.ones(len(x), dtype=x.dtype, device=x.device)

    def predict(x, i):
        """(denoised,), and the prediction that is to be steered if that is another."""
        if before_call is not None:
            before_call()
        denoised = model(x.to(dtype), each * sigmas[i], **extra_args).to(x.dtype)
        return (denoised, aside.pop("denoised").to(x.dtype)) if aside else (denoised,)

    pulled = 0
    for i in trange(len(amounts), disable=disable):
        predictions = predict(x, i)
        slopes, step = [(x - denoised) / sigmas[i] for denoised in predictions], sigmas[i + 1] - sigmas[i]
        if solver == "heun" and levels[i + 1] > 0:
            ahead = x + slopes[0] * step
            there = [(ahead - denoised) / sigmas[i + 1] for denoised in predict(ahead, i + 1)]
            slopes = [(a + b) / 2 for a, b in zip(slopes, there, strict=True)]
            predictions = [x - slope * sigmas[i] for slope in slopes]
        shown, after = predictions[0], x + slopes[0] * step
        if amounts[i]:
            pull = steering.source if pulled < source_steps else steering
            delta = move(pull, predictions[-1], amounts[i], inner_steps, max_norm, mode, tau, before_call)
            shown = shown + delta
            after = after + (float(path.alpha(levels[i + 1])) + levels[i + 1]) * delta if levels[i + 1] else shown
            pulled += 1
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": shown})
        x = after
    return x.to(dtype)


def check_options(strength, inner_steps, start, stop, source_steps, schedule, max_norm, solver, mode, tau):
    """Raise ValueError with the option, its value and the fix."""
    check_choices({"schedule": (schedule, SCHEDULES), "solver": (solver, SOLVERS), "mode": (mode, MODES)})
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it is the share of the way to what is wanted, 0 to 1")
    if inner_steps < 1:
        raise ValueError(f"inner_steps is {inner_steps}; set it to 1 or more")
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"start is {start} and stop {stop}; they are shares of the steps, 0 <= start <= stop <= 1")
    if source_steps < 0:
        raise ValueError(f"source_steps is {source_steps}; set it to 0 or more")
    if not 0 <= max_norm < math.inf:
        raise ValueError(f"max_norm is {max_norm}; set it to 0 (off) or more")
    if mode == "soft-sign" and schedule == "rise to 1":
        raise ValueError("schedule is 'rise to 1', but with soft-sign strength is the length of a move, not a share of "
                         "the way; choose constant, or linear as mode")
    if mode == "soft-sign" and not 0 < tau < math.inf:
        raise ValueError(f"tau is {tau}; soft-sign needs a number above 0")


def check_steering(steering, source_steps):
    """Raise ValueError where a run has nothing to steer toward."""
    if source_steps and steering.source is None:
        raise ValueError(f"source_steps is {source_steps}, but there is no picture to pull to; connect reference, "
                         "sample from a latent with a picture in it, or set source_steps to 0")
    if not steering.pulls and not source_steps:
        raise ValueError("FlowChef has nothing to steer toward; connect measurement, loss, or reference (with a mask "
                         "of what is to be repainted), or sample from a latent with a noise mask")
