"""Prior noise injection of Faster Diffusion (Li et al., NeurIPS 2024, arXiv 2312.09608, Section 3.4)."""

import torch

from .key_steps import TOLERANCE
from .model import schedule_of
from .paths import FLOW


class PriorNoise:
    """The `model` of a sampler function that first adds a little of the run's initial noise to the sampler's state:

        z_t <- z_t + strength z_T   for t below `below`, once at each sigma of the schedule,

    z the state of unit variance: x / sqrt(1 + sigma^2) for VE, x for flow models. It is added to the sampler's own
    tensor, so that the step which follows starts from it, too. The model gets states of `dtype`.
    """

    def __init__(self, model, x, sigmas, strength, below, dtype):
        self._model, self._strength, self._below, self._dtype = model, strength, below, dtype
        self._schedule = schedule_of(model)
        self._waiting = set(sigmas.tolist())
        self._prior = x / self._scale(float(sigmas[0]))

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, x, sigma, *args, **kwargs):
        level = float(sigma.flatten()[0])
        reached = {s for s in self._waiting if abs(s - level) <= TOLERANCE * level}
        self._waiting -= reached
        if reached and level > 0 and self._time(level) < self._below:  # sigma 0 has no time
            x += (self._strength * self._scale(level)) * self._prior.to(x)
        return self._model(x.to(self._dtype), sigma, *args, **kwargs).to(x.dtype)

    def _scale(self, sigma):
        return 1.0 if self._schedule.path is FLOW else (1 + sigma**2) ** 0.5

    def _time(self, sigma):
        """The model's own time of sigma in 0..1 (1 is pure noise); sigma itself on a flow."""
        return sigma if self._schedule.path is FLOW else float(self._schedule.time(sigma))


def with_prior_noise(sampler_function, strength, below):
    """`sampler_function` (k-diffusion's signature) under prior noise of this strength, for times below `below`."""

    def sample(model, x, sigmas, *args, **kwargs):
        if not x.numel() or len(sigmas) < 2:
            return x  # nothing to step
        # float32 at least: half precision would round away what is added, and a sampler may step from a copy of it
        state = x.to(torch.promote_types(x.dtype, torch.float32))
        noisy = PriorNoise(model, state, sigmas, strength, below, x.dtype)
        return sampler_function(noisy, state, sigmas, *args, **kwargs).to(x.dtype)

    return sample
