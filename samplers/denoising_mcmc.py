"""Denoising MCMC (Kim & Ye 2023, arXiv 2209.14593): a Markov chain of noisy pictures, each denoised on its own.

The chain is the paper's Denoising Langevin Gibbs. It alternates a Langevin step of the picture at its noise level with
a draw of the level given the picture, so it walks over noisy pictures close to the data; from there a solver needs
few steps. States are y = x / alpha = x0 + varsigma n with the level varsigma = sigma / alpha, the same for VE and flow.

In place of the paper's classifier, trained for one dataset, the level is read off the spectrum: the Fourier modes
of a noisy picture have the power S_f + varsigma^2.
"""

import math
from itertools import islice

import numpy as np
import torch

from .noise import ItemNoise, item_identities, item_seeds
from .spectrum import radial_spectrum

ESTIMATORS = ("spectral", "fixed")
LEVELS = 1000
AUTO_ETA = 8.0
"""Step size in variances of the data; the authors' 0.8 on pixels in [0, 1] is about that."""
AUTO_START = 4.0
"""First level in standard deviations of the data: high enough for the layout of a picture to change."""
INIT_STEPS = 2
"""Steps of a first sample from pure noise, in units of denoise_steps, as the authors start their chains."""
HIGHEST = 0.99
"""Top of the levels in units of sigma_max: hosts treat a start at sigma_max itself as pure noise."""


def langevin_step(y, denoised, level, eta, noise):
    """One step of size eta of Langevin dynamics at the noise level `level`, stable for every eta.

    dy = (D - y) / (2 level^2) ds + dW is solved exactly over s = eta with D held: its stationary law is
    N(D, level^2). For eta << level^2 this is y + eta/2 score + sqrt(eta) noise with score = (D - y) / level^2,
    the paper's step. Unadjusted: at finite eta directions along which the data vary much more than the noise keep
    the fraction (1 + e^(-eta / 2 level^2)) / 2 of their variance, directions of pure noise keep all.
    """
    decay = math.exp(-eta / (2 * level**2))
    return denoised + decay * (y - denoised) + level * math.sqrt(-math.expm1(-eta / level**2)) * noise


def level_posterior(y, spectrum, levels):
    """p(level | y) over `levels` [L] as an array: Gaussian modes of power S_f + level^2, prior even over `levels`.

    y: one noisy latent [1, C, ...]. spectrum: `spectrum.Spectrum` of clean latents, of any size.
    """
    seen = radial_spectrum(y)
    rings = slice(min(1, len(seen.power) - 1), None)  # DC is capped, which tells nothing of the noise
    variance = spectrum.at(seen.frequency[rings])[:, None] + np.square(levels)
    modes = y.shape[1] * seen.count[rings]
    log_likelihood = -0.5 * modes @ (np.log(variance) + seen.power[rings, None] / variance)
    weights = np.exp(log_likelihood - log_likelihood.max())
    return weights / weights.sum()


def gibbs_level(spectrum, levels, generator):
    """y -> a draw of its level from `level_posterior`; `generator` of torch, on the CPU, gives the chance."""

    def draw(y):
        cumulative = np.cumsum(level_posterior(y, spectrum, levels))
        chance = torch.rand((), generator=generator, dtype=torch.float64).item()
        return float(levels[min(np.searchsorted(cumulative, chance), len(levels) - 1)])

    return draw


def langevin_gibbs(predict, y, level, eta, noise, next_level):
    """The states (y, level) of the chain after `y` at `level`, without end.

    predict(y, level) -> D. noise() -> standard normal noise like y. next_level(y) -> level.
    """
    while True:
        y = langevin_step(y, predict(y, level), level, eta, noise())
        level = next_level(y)
        yield y, level


def lowest_of_each(chain, n_skip):
    """Of every n_skip states of the chain the index and the state of lowest level, the latest of equals."""
    numbered = enumerate(chain)
    while True:
        yield min(islice(numbered, n_skip), key=lambda state: (state[1][1], -state[0]))


def karras_levels(sigma, sigma_min, steps, rho):
    """Noise levels from `sigma` over `steps` calls to 0, even in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    if sigma <= sigma_min:
        return [sigma, 0.0]
    ramp = np.linspace(sigma ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho
    return [sigma, *map(float, ramp[1:]), 0.0]


def first_levels(sigma_range, denoise_steps, rho):
    """Noise levels for the sample that a chain starts from, where none is given."""
    sigma_min, sigma_max = sigma_range
    return karras_levels(sigma_max, sigma_min, INIT_STEPS * denoise_steps, rho)


def noise_in(x, clean, sigma, path):
    """The noise n of x = alpha clean + sigma n: how a solver that mixes `clean` and noise itself is started at x."""
    return (x - float(path.alpha(sigma)) * clean) / sigma


def calls(samples, n_skip, burn_in, denoise_steps, empty):
    """Network calls of one chain with a solver of one call a step; empty: it samples its own start."""
    return INIT_STEPS * denoise_steps * empty + burn_in + samples * (n_skip + denoise_steps)


def denoising_mcmc(
    predict, integrate, x0, initial_noise, seed, schedule, sigma_range, spectrum=None, *, samples=4, n_skip=10,
    eta=0.0, burn_in=20, start_sigma=0.0, denoise_steps=10, rho=7.0, sigma_estimator="spectral",
):  # fmt: skip
    """Run one chain. Returns (clean latents [samples, ...], sigma of every state, indices of the denoised states).

    predict(x, sigma) -> D; integrate(x, sigmas) -> x0 runs a solver over the list `sigmas`. x0: the clean latent
    [1, C, ...] the chain starts from. initial_noise: like x0, the item's identity in the random numbers, with `seed`.
    schedule: `model.Schedule`. sigma_range: the model's smallest and largest sigma. spectrum: of clean latents, None
    takes that of x0. eta: step size in squared units of the latent. start_sigma: first level, in the model's sigma.
    0 for either is automatic. Raises ValueError for options out of range.
    """
    path, (sigma_min, sigma_max) = schedule.path, sigma_range
    check_options(sigma_max, samples, n_skip, eta, burn_in, start_sigma, denoise_steps, rho, sigma_estimator)
    spectrum = radial_spectrum(x0) if spectrum is None else spectrum
    if not spectrum.variance > 0:
        raise ValueError(
            "latent (or spectrum, where it is connected) has no variation: it is constant, or not finite. Connect a "
            "latent of pictures, or an empty one to sample the first"
        )
    levels = np.exp(-np.linspace(path.lam(sigma_min), path.lam(HIGHEST * sigma_max), LEVELS))
    start = float(np.exp(-path.lam(start_sigma))) if start_sigma else AUTO_START * spectrum.variance**0.5
    start = float(np.clip(start, levels[0], levels[-1]))
    eta = eta or AUTO_ETA * spectrum.variance
    noise = ItemNoise(initial_noise, x0, seed, "denoising mcmc")
    [level_seed] = item_seeds(seed, "noise level", item_identities(initial_noise))
    draw = gibbs_level(spectrum, levels, torch.Generator().manual_seed(level_seed))
    trace = []

    def sigma_of(level):
        return float(path.sigma(-math.log(level)))

    def state_of(y, sigma):
        return y * float(path.alpha(sigma))

    def predict_at(y, level):
        return predict(state_of(y, sigma_of(level)), sigma_of(level))

    def next_level(y):
        level = draw(y) if sigma_estimator == "spectral" else start
        trace.append(sigma_of(level))
        return level

    def fresh():
        return noise.draw().to(x0)

    chain = langevin_gibbs(predict_at, x0 + start * fresh(), start, eta, fresh, next_level)
    for _ in islice(chain, burn_in):
        pass
    clean, kept = [], []
    for index, (y, level) in islice(lowest_of_each(chain, n_skip), samples):
        kept.append(burn_in + index)
        sigma = sigma_of(level)
        clean.append(integrate(state_of(y, sigma), karras_levels(sigma, sigma_min, denoise_steps, rho)))
    return torch.cat(clean), trace, kept


def check_options(sigma_max, samples, n_skip, eta, burn_in, start_sigma, denoise_steps, rho, sigma_estimator):
    """Raise ValueError with the option, its value and the fix."""
    for name, value, least in (
        ("samples", samples, 1), ("n_skip", n_skip, 1), ("eta", eta, 0), ("burn_in", burn_in, 0),
        ("denoise_steps", denoise_steps, 1), ("rho", rho, 1),
    ):  # fmt: skip
        if not value >= least:
            raise ValueError(f"{name} is {value}; it must be {least} or more")
    if not 0 <= start_sigma <= HIGHEST * sigma_max:
        raise ValueError(
            f"start_sigma is {start_sigma}; it must be between 0 and {HIGHEST * sigma_max:.5g}, "
            f"{HIGHEST} of the model's largest sigma"
        )
    if sigma_estimator not in ESTIMATORS:
        raise ValueError(f"sigma_estimator is {sigma_estimator!r}; choose one of {', '.join(ESTIMATORS)}")


def describe(trace, kept):
    """The chain as text: one line a state, those that were denoised marked."""
    return "\n".join(
        f"{i:5d}  sigma {sigma:9.5g}{'  denoised' if i - 1 in kept else ''}" for i, sigma in enumerate(trace, 1)
    )
