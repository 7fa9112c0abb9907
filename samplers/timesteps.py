"""Fractional timesteps for models whose schedule is a table: the host rounds a sigma to the nearest entry's timestep.

A network that hears the wrong time answers for another noise level; the error of a fine run then stops falling. The
authors' codes interpolate, and the networks' sinusoidal embeddings take any real time.
"""

import copy

import torch


def rounds(model_sampling):
    """Whether a schedule answers with the timestep of the nearest table entry: such answers are whole numbers."""
    return not model_sampling.timestep(model_sampling.sigmas[:1]).is_floating_point()


def fractional_timestep(sigma, sigmas, timestep):
    """Timesteps like `sigma`, linear in log sigma between the entries of `sigmas`, clamped to its ends.

    sigmas: rising table, 1-D. timestep(sigma) -> the timestep of a table entry, which is returned unchanged there.
    """
    x = sigma.float().to(sigmas.device).contiguous()
    above = torch.searchsorted(sigmas, x, right=True).clamp(1, len(sigmas) - 1)
    low, high = sigmas[above - 1], sigmas[above]
    weight = ((x / low).log() / (high / low).log()).clamp(0, 1)
    return torch.lerp(timestep(low).float(), timestep(high).float(), weight).to(sigma.device)


def with_fractional_timesteps(model_sampling):
    """A copy of a schedule object that does not round, of a subclass of its class; itself where it does not round.

    Its `sigma(timestep)` is linear in log sigma already, so the two are inverse to each other.
    """
    if not rounds(model_sampling):
        return model_sampling
    base = type(model_sampling)

    class FractionalTimesteps(base):
        def timestep(self, sigma):
            return fractional_timestep(sigma, self.sigmas, super().timestep)

    patched = copy.deepcopy(model_sampling)
    patched.__class__ = FractionalTimesteps
    return patched
