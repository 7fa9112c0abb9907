"""The noise levels of IR-SDE (Luo et al. 2023, arXiv 2301.11699), in the form that every sampler can run.

At the time t = 1..T a picture x0 has become x = mu + a (x0 - mu) + s n: shrunk towards its degraded version mu, with
noise. u = mu + (x - mu)/a = x0 + sigma n, sigma = s/a, is an ordinary diffusion of x0, in which the posterior sampling
of the authors is the Euler ancestral sampler.
"""

from dataclasses import dataclass

import numpy as np
import torch

MAX_SIGMA = {
    "derain": 10.0, "deblur": 10.0, "deshadow": 30.0, "inpainting": 30.0, "super-resolution": 30.0, "Refusion": 50.0,
}  # fmt: skip
"""Published model -> standard deviation of the noise on the degraded picture, in levels of 0..255."""

SPACINGS = ("index", "logSNR")
OFFSET = 0.008  # of the cosine
PIXEL_RANGE = 2.0
"""Latents of the host's pixel space run from -1 to 1, the pictures of the networks from 0 to 1."""


def signal(T=100, eps=0.005):
    """a at the times 1..T, as an array that falls to eps at T: exp of minus the integral of the cosine theta.

    Raises ValueError unless T is at least 1 and eps in (0, 1).
    """
    if T < 1:
        raise ValueError(f"T is {T}; a model has 1 noise level or more (the published ones 100)")
    if not 0 < eps < 1:
        raise ValueError(f"eps is {eps}; it is the share of the picture left at T, above 0 and below 1")
    angle = (np.arange(T + 2) / (T + 2) + OFFSET) / (1 + OFFSET) * np.pi / 2
    theta = 1 - (np.cos(angle) / np.cos(angle[0])) ** 2
    total = np.cumsum(theta[2:])  # that of the time 0, theta[1], does not count
    return eps ** (total / total[-1])


def noise_levels(max_sigma, T=100, eps=0.005):
    """sigma at the times 1..T, rising. max_sigma: one of MAX_SIGMA's; T, eps: as in `signal`."""
    return max_sigma / 255 * np.sqrt(signal(T, eps) ** -2 - 1)


def signal_at(sigma, max_sigma):
    """a at the noise level sigma (a float, array or tensor): s = max_sigma/255 sqrt(1 - a^2) holds at all times."""
    return (1 + (sigma * 255 / max_sigma) ** 2) ** -0.5


def ir_sde_schedule(sigmas, steps, spacing="index"):
    """steps + 1 falling noise levels as a list of floats that ends in 0.

    sigmas: the model's, rising. spacing: 'index' takes every so manieth of them, as the models were trained; with
    as many steps as there are, that is the authors' run. 'logSNR' spreads the logarithm of sigma evenly.
    Raises ValueError for an unknown spacing, or more steps than levels under 'index'.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing is {spacing!r}; choose one of {', '.join(SPACINGS)}")
    sigmas = np.asarray(sigmas, dtype=np.float64)
    if spacing == "logSNR":
        levels = np.geomspace(sigmas[-1], sigmas[0], steps)
    elif steps > len(sigmas):
        raise ValueError(
            f"steps is {steps}, and the model has {len(sigmas)} noise levels; take no more, or spacing logSNR"
        )
    else:
        levels = sigmas[np.linspace(len(sigmas) - 1, 0, steps).round().astype(int)]
    return [*map(float, levels), 0.0]


@dataclass(frozen=True)
class IRSDE:
    """The process of a conditional network, on latents that are pixels in -1..1: their noise levels are doubled.

    max_sigma, T, eps: as in `noise_levels`.
    """

    max_sigma: float
    T: int = 100
    eps: float = 0.005

    @property
    def sigmas(self):
        """[T] noise levels, rising."""
        return (PIXEL_RANGE * noise_levels(self.max_sigma, self.T, self.eps)).tolist()

    def denoised(self, network, u, sigma, position, y):
        """x0 of the state u and the degraded y, both [B, C, H, W].

        network(cat(x - mu, mu) [B, 2C, H, W], time [B]) -> noise. sigma: [B]. position: [B], where sigma stands among
        `sigmas`, from 0 on; beyond the first and the last the network is told that one.
        """
        sigma = sigma.view(-1, *[1] * (u.ndim - 1)) / PIXEL_RANGE
        centred = signal_at(sigma, self.max_sigma) * (u - y) / PIXEL_RANGE
        noise = network(torch.cat([centred, (y + 1) / PIXEL_RANGE], dim=1), (position + 1).clamp(1, self.T))
        return u - PIXEL_RANGE * sigma * noise
