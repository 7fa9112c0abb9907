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


FISHER_GRID = 4000
"""Points of the trapezoidal rule in log varsigma."""

NO_LENGTH = 1e-9
"""A path shorter than this is white data up to rounding."""


def fisher_length(log_varsigma, spectrum):
    """Fisher length from the first of the ascending `log_varsigma` to each of them, as an array.

    Gaussian data whose Fourier modes have the variances S_f pass, in the variance-preserving scaling, through
    C_f = (S_f + varsigma^2) / (1 + varsigma^2), varsigma = sigma / alpha. The length is the integral of
    sqrt(1/2 sum_f w_f (d log C_f)^2), w_f the share of the modes (Das et al. 2023, Shortest Path Diffusion).
    """
    s, v = spectrum.power[:, None], np.exp(2 * log_varsigma)
    rate = 2 * v * (1 - s) / ((s + v) * (1 + v))  # d log C_f / d log varsigma
    speed = np.sqrt(0.5 * np.average(rate**2, axis=0, weights=spectrum.count))
    pieces = np.diff(log_varsigma) * (speed[1:] + speed[:-1]) / 2
    return np.concatenate([[0.0], np.cumsum(pieces)])


def fisher_path(schedule, spectrum, steps, append_zero=True, denoise=1.0):
    """steps + 1 falling noise levels as a list of floats, equally far apart in Fisher length; none for denoise 0.

    They span the model's table. spectrum: `spectrum.Spectrum` of clean latents, taken at unit variance. A white one
    (S = 1) has no length: the levels are then even in log-SNR. append_zero, denoise: as in `time_skip`. Raises
    ValueError for a model without a table or a spectrum without power.
    """
    if schedule.time is None:
        raise ValueError("model has no table of sigmas that says its range; use a scheduler made for that model")
    if denoise <= 0:
        return []
    path, table = schedule.path, [float(sigma) for sigma in schedule.model_sampling.sigmas]
    first, last = max(table), min(sigma for sigma in table if sigma > 0)
    finite = min(first, FLOW_FIRST) if path is FLOW else first
    u = np.linspace(-path.lam(last), -path.lam(finite), FISHER_GRID)
    length = fisher_length(u, spectrum.normalised())
    if length[-1] < NO_LENGTH:
        length = u
    total = max(steps, int(steps / denoise))
    even = np.linspace(length[-1], length[0], total if append_zero else total + 1)
    levels = path.sigma(-np.interp(even, length, u))
    return [first, *map(float, levels[1:]), *[0.0] * append_zero][-(steps + 1) :]
