"""Noise levels for a run: the time skips of DPM-Solver (Lu et al. 2022a, appendix D) and Karras et al. 2022, eq. 5."""

import numpy as np

from .paths import FLOW

SKIPS = {"logSNR": None, "time_uniform": 1.0, "time_quadratic": 2.0, "rho": 7.0}
"""Spacing -> its usual exponent p: uniform in u, where u is log-SNR, t^(1/p) or sigma^(1/p)."""

FLOW_FIRST = 0.999
"""Where uniform log-SNR starts on a flow, whose log-SNR at sigma 1 is -inf; the first level itself stays at t_start."""


def time_skip(schedule, steps, skip="logSNR", exponent=0.0, t_start=1.0, t_end=1e-3, append_zero=True, denoise=1.0):
    """steps + 1 falling noise levels as a list of floats; none for denoise 0.

    schedule: `model.Schedule` of the model. skip: one of SKIPS. exponent: p, 0 = the usual one of the skip. t_start,
    t_end: the model's own time in (0, 1]; below the first entry of the model's table its smallest sigma is meant.
    append_zero: the last level is 0 after `steps` levels above it; else all are above 0.
    denoise: below 1 the schedule of int(steps / denoise) steps is made and its last `steps` are kept.
    Raises ValueError for a model without a table or values out of range.
    """
    time, path = schedule.time, schedule.path
    if time is None:
        raise ValueError("model has no table of sigmas to measure its time by; use a scheduler made for that model")
    if skip not in SKIPS:
        raise ValueError(f"skip is {skip!r}; choose one of {', '.join(SKIPS)}")
    if not 0 < t_end < t_start <= 1:
        raise ValueError(f"t_start is {t_start} and t_end is {t_end}; they must hold 0 < t_end < t_start <= 1")
    if exponent != 0 and exponent < 0.1:
        raise ValueError(f"exponent is {exponent}; it must be 0.1 or more, or 0 for the usual one of the skip")
    if denoise <= 0:
        return []
    total = max(steps, int(steps / denoise))
    points = total if append_zero else total + 1
    first, last = float(time.sigma(t_start)), float(time.sigma(t_end))
    p = exponent or SKIPS[skip]
    if skip == "logSNR":
        finite = min(first, FLOW_FIRST) if path is FLOW else first
        sigmas = path.sigma(np.linspace(path.lam(finite), path.lam(last), points))
    elif skip == "rho":
        sigmas = np.linspace(first ** (1 / p), last ** (1 / p), points) ** p
    else:
        sigmas = time.sigma(np.linspace(t_start ** (1 / p), max(t_end, time.t_min) ** (1 / p), points) ** p)
    levels = [first, *map(float, sigmas[1:]), *[0.0] * append_zero]
    return levels[-(steps + 1) :]
