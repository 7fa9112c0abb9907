"""BDIA: exactly invertible sampling by a step forward and a step back (Zhang et al. 2023, arXiv 2307.10829).

With DDIM_n(m) the first-order step from sigma_n to sigma_m by the prediction at the state z_n, a BDIA step

    z_{n+1} = DDIM_n(n+1) + gamma (z_{n-1} - DDIM_n(n-1))

is linear in z_{n-1} and can be solved for it: the inverse is the same step on the reversed schedule with 1/gamma for
gamma. A pair of neighbouring states takes the place of the single one, and nothing is approximated.

The states are z = x / unit(sigma). The factor cancels in DDIM, but not between z_{n-1} and z_{n+1}.
"""

import numpy as np
import torch

from .integrator import usable
from .model import schedule_of
from .plan import STATE, Plan, StepInfo, plan_sampler, run_plan, state_slot
from .weights import first_order

UNITS = {
    "native": lambda path, sigma: 1.0,
    "vp": lambda path, sigma: float(np.hypot(path.alpha(sigma), sigma)),
    "ve": lambda path, sigma: float(path.alpha(sigma)),
}
"""Space of the states -> unit(sigma): as they are, of constant variance (the paper's), of constant signal (EDM's)."""

SPACES = ("auto", "vp", "ve")
FLOW_END_SIGMA = 0.002


def plan_bdia(sigmas, schedule, *, gamma=0.5, space="auto"):
    """Plan of BDIA-DDIM for the noise levels `sigmas` (Zhang et al. 2023).

    gamma: share of the step back, from 0 (DDIM) to 1 (second order, but undamped). space: one of SPACES; 'auto' is 'vp'
    and on a flow its own states. The first step and the one to sigma 0 are DDIM. Raises ValueError for options that
    are out of range.
    """
    check_options(gamma, space)
    return _plan(usable(sigmas, schedule.path), schedule.path, gamma, space)


sample_bdia = plan_sampler(plan_bdia)


def plan_inversion(sigmas, schedule, *, gamma):
    """Plan from the state at sigmas[-1] > 0 up to those at sigmas[0] (the result) and at sigmas[1] (kept)."""
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}; an inversion divides by it. Choose a value from 0.5 to 1, best above 0.9")
    plan = _plan(sigmas[::-1], schedule.path, 1 / gamma, "auto")
    plan.keep = (state_slot(len(sigmas) - 2),)
    return plan


def plan_resumption(sigmas, schedule, *, gamma):
    """Plan from the states at sigmas[0] and sigmas[1], in the first two slots, to the state at sigmas[-1]."""
    return _plan(sigmas, schedule.path, gamma, "auto", first=1)


def _plan(sigmas, path, gamma, space, first=0):
    """The steps from the state at sigmas[first] on; with `first` 1 the state before it is known, too."""
    unit = UNITS[("native" if path.name == "flow" else "vp") if space == "auto" else space]

    def ddim(n, m, share=1.0):
        step = first_order(path, sigmas[n], sigmas[m])
        return (share * step.carry, state_slot(n)), (share * step.nodes[0], f"D{n}")

    plan = Plan(result=state_slot(first))
    for n in range(first, len(sigmas) - 1):
        plan.eval(f"D{n}", state_slot(n), sigmas[n], n)
        terms, share = ddim(n, n + 1), 0.0
        # there is no step back before the second, from the clean picture, nor to where a state has no signal
        if n > 0 and sigmas[n + 1] > 0 and unit(path, sigmas[n - 1]) > 0:
            share = gamma * unit(path, sigmas[n + 1]) / unit(path, sigmas[n - 1])
            terms += ((share, state_slot(n - 1)), *ddim(n, n - 1, -share))
        plan.result = state_slot(n + 1)
        plan.combine(plan.result, *terms)
        order = 2 if share and gamma == 1 else 1
        plan.steps.append(StepInfo(sigmas[n], sigmas[n + 1], order, 1, note=f"step back {share:.3g}" if share else ""))
    return plan


def invert(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, gamma, dtype=torch.float32, before_call=None
):
    """The states at sigmas[0] and sigmas[1] from which `resume` comes back to `x`, the state at sigmas[-1].

    x: [B, ...] in the model's space. sigmas: falling, see `inversion_sigmas`. dtype: what the model gets; the states
    are in `exact_dtype`. callback: as in k-diffusion, an interval of the reversed schedule each. Raises ValueError for
    gamma outside (0, 1].
    """
    plan = plan_inversion(sigmas.tolist(), schedule_of(model), gamma=gamma)
    ends = run_plan(
        plan, model, {STATE: x.to(exact_dtype(x.device))}, sigmas.flip(0), extra_args, callback, disable,
        dtype=dtype, before_call=before_call,
    )  # fmt: skip
    return ends[plan.result], ends[plan.keep[0]]


def resume(
    model, pair, sigmas, extra_args=None, callback=None, disable=None, *, gamma, dtype=torch.float32, before_call=None
):
    """The state [B, ...] at sigmas[-1] from the `pair` of states that `invert` gave for `sigmas` and `gamma`."""
    plan = plan_resumption(sigmas.tolist(), schedule_of(model), gamma=gamma)
    given = {state_slot(i): state for i, state in enumerate(pair)}
    return run_plan(
        plan, model, given, sigmas, extra_args, callback, disable, dtype=dtype, before_call=before_call
    )[plan.result]  # fmt: skip


def exact_dtype(device):
    """float64, or float32 on a device that lacks it."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def inversion_sigmas(sigmas, schedule, end_sigma=0.0):
    """SIGMAS [n] fit for an inversion: a closing 0, where no model can be called, becomes `end_sigma`.

    end_sigma: 0 is the model's smallest sigma, or 0.002 on a flow. Sigmas that are not above it go with the closing 0.
    Raises ValueError, naming the input and the fix, for a schedule that does not fall or has fewer than two intervals.
    """
    levels = usable(sigmas.tolist(), schedule.path)
    if end_sigma < 0:
        raise ValueError(f"end_sigma is {end_sigma}; it is a noise level above 0, or 0 for the model's smallest")
    if levels and levels[-1] == 0:
        if end_sigma == 0:
            end_sigma = FLOW_END_SIGMA if schedule.path.name == "flow" else float(schedule.model_sampling.sigma_min)
        levels = [*(sigma for sigma in levels if sigma > end_sigma * (1 + 1e-5)), end_sigma]
    if len(levels) < 3:
        raise ValueError(
            f"sigmas has too few noise levels for an inversion: {levels}. It keeps the states at the first two and "
            "needs a third. Raise steps or denoise of the scheduler, or lower end_sigma"
        )
    for i, (before, after) in enumerate(zip(levels, levels[1:], strict=False), 1):
        if after >= before:
            raise ValueError(
                f"sigmas[{i}] is {after}, not below the {before} before it. Connect the falling schedule of a sampling "
                "run: the inversion itself walks it backwards"
            )
    return torch.tensor(levels, dtype=sigmas.dtype)


def check_options(gamma, space):
    """Raise ValueError with the option, its value and the fix."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; it is the share of the step back, from 0 (DDIM) to 1")
    if space not in SPACES:
        raise ValueError(f"space is {space!r}; choose one of {', '.join(SPACES)}")
