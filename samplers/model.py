"""What a sampler must know of the model behind it, read through the host's wrappers without importing the host."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .paths import FLOW, VE, Path


def model_sampling_of(model):
    """The schedule object of the `model` that a host hands to a sampler function, object patches honoured; or None."""
    guider = getattr(model, "inner_model", None)
    patcher = getattr(guider, "model_patcher", None)
    if patcher is not None:
        return patcher.get_model_object("model_sampling")
    return getattr(getattr(guider, "inner_model", None), "model_sampling", None)


def path_of(model_sampling):
    """FLOW for the host's CONST family (by class name: the host is not imported here), VE for all others."""
    return FLOW if any(cls.__name__ == "CONST" for cls in type(model_sampling).__mro__) else VE


class ModelTime:
    """The model's own time t in [0, 1] as a smooth monotone function of sigma, and back.

    The host's tables hold sigma at t = 1/n, 2/n, ..., 1. Their smooth inverse is a monotone cubic (Fritsch & Carlson
    1980) of t over log sigma (VE) or over sigma (flow, where t = 0 is sigma 0): a piecewise linear one has kinks that
    spoil quadrature.
    """

    def __init__(self, table, path):
        from scipy.interpolate import PchipInterpolator  # half of the pack's import time if it stood at the top

        sigma = np.asarray(table, dtype=np.float64)
        t = np.arange(1, len(sigma) + 1) / len(sigma)
        keep = np.concatenate([[True], np.diff(np.maximum.accumulate(sigma)) > 0])
        sigma, t = sigma[keep], t[keep]
        if path is FLOW and sigma[0] > 0:
            sigma, t = np.insert(sigma, 0, 0.0), np.insert(t, 0, 0.0)
        self._log = path is not FLOW
        y = np.log(sigma) if self._log else sigma
        self.sigma_min, self.sigma_max = float(sigma[0]), float(sigma[-1])
        self.t_min = float(t[0])
        self._t, self._y = PchipInterpolator(y, t), PchipInterpolator(t, y)

    def __call__(self, sigma):
        """t of sigma; extrapolated smoothly outside the table."""
        sigma = np.asarray(sigma, dtype=np.float64)
        return self._t(np.log(sigma) if self._log else sigma)

    def sigma(self, t):
        """sigma of t, t held inside the table's range."""
        y = self._y(np.clip(t, self.t_min, 1.0))
        return np.clip(np.exp(y) if self._log else y, self.sigma_min, self.sigma_max)


@dataclass(frozen=True)
class Schedule:
    """What a planner may ask of the model: its path and, where it has a table of sigmas, its own time."""

    path: Path = VE
    model_sampling: object = None

    @cached_property
    def time(self):
        """ModelTime, or None for a model without a table."""
        table = getattr(self.model_sampling, "sigmas", None)
        return None if table is None or len(table) < 2 else ModelTime(table.tolist(), self.path)


def schedule_from(model_sampling):
    """Schedule of a host's schedule object; plain VE for None."""
    return Schedule(path_of(model_sampling), model_sampling)


def schedule_of(model):
    """Schedule of the `model` that a host hands to a sampler function; plain VE for a bare denoiser."""
    return schedule_from(model_sampling_of(model))
