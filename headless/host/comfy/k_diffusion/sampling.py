"""Sigma schedules and samplers over a denoiser `model(x, sigma * ones(B), **extra_args) -> x0` (Karras et al. 2022).

Every sampler calls `callback` with a dict of "x", "i", "sigma", "sigma_hat" and "denoised" once per interval of sigmas.
"""

import math

import torch
from tqdm.auto import trange

import comfy.model_sampling
from comfy.k_diffusion import utils


def append_zero(x):
    return torch.cat([x, x.new_zeros([1])])


def get_sigmas_karras(n, sigma_min, sigma_max, rho=7.0, device="cpu"):
    """n sigmas equally spaced in sigma^(1/rho), and a zero (Karras et al. 2022, equation 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = torch.linspace(0, 1, n, device=device)
    return append_zero((high + ramp * (low - high)) ** rho)


def get_sigmas_exponential(n, sigma_min, sigma_max, device="cpu"):
    """n sigmas equally spaced in log sigma, and a zero."""
    return append_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), n, device=device).exp())


def to_d(x, sigma, denoised):
    """Derivative dx/dsigma = (x - x0) / sigma of the probability flow."""
    return (x - denoised) / utils.append_dims(sigma, x.ndim)


def get_ancestral_step(sigma_from, sigma_to, eta=1.0):
    """(sigma_down, sigma_up): step deterministically to the first, then add noise of the second to reach sigma_to."""
    if not eta:
        return sigma_to, 0.0
    sigma_up = min(sigma_to, eta * (sigma_to ** 2 * (sigma_from ** 2 - sigma_to ** 2) / sigma_from ** 2) ** 0.5)
    return (sigma_to ** 2 - sigma_up ** 2) ** 0.5, sigma_up


def default_noise_sampler(x, seed=None):
    """Function of (sigma, sigma_next) that draws noise like x; seeded runs have a stream of their own.

    On a CPU it is seeded with seed + 1, as in hosts since 0.7: with `seed` its first draw would be the initial noise.
    """
    generator = None
    if seed is not None:
        generator = torch.Generator(device=x.device)
        generator.manual_seed(seed + 1 if x.device.type == "cpu" else seed)

    def draw(sigma, sigma_next):
        return torch.randn(x.size(), dtype=x.dtype, layout=x.layout, device=x.device, generator=generator)

    return draw


def _start(x, extra_args):
    """extra_args as a dict, and a batch of ones for the sigma argument."""
    return {} if extra_args is None else extra_args, x.new_ones([x.shape[0]])


def _report(callback, i, x, sigma, sigma_hat, denoised):
    if callback is not None:
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": denoised})


def _churned(x, sigma, intervals, s_churn, s_tmin, s_tmax, s_noise, noise_sampler):
    """State and sigma after the stochastic part of Karras et al. 2022, algorithm 2 (nothing for s_churn = 0)."""
    if s_churn <= 0 or not s_tmin <= sigma <= s_tmax:
        return x, sigma
    sigma_hat = sigma * (min(s_churn / intervals, 2 ** 0.5 - 1) + 1)
    return x + noise_sampler(sigma, sigma_hat) * s_noise * (sigma_hat ** 2 - sigma ** 2) ** 0.5, sigma_hat


def _karras_steps(model, x, sigmas, extra_args, callback, disable, churn, corrected):
    """Karras et al. 2022, algorithm 2 with churn = (s_churn, s_tmin, s_tmax, s_noise), with or without correction."""
    extra_args, ones = _start(x, extra_args)
    noise_sampler = default_noise_sampler(x, seed=extra_args.get("seed"))
    for i in trange(len(sigmas) - 1, disable=disable):
        x, sigma_hat = _churned(x, sigmas[i], len(sigmas) - 1, *churn, noise_sampler)
        denoised = model(x, sigma_hat * ones, **extra_args)
        slope = to_d(x, sigma_hat, denoised)
        _report(callback, i, x, sigmas[i], sigma_hat, denoised)
        dt = sigmas[i + 1] - sigma_hat
        if corrected and sigmas[i + 1] != 0:
            ahead = x + slope * dt
            slope = (slope + to_d(ahead, sigmas[i + 1], model(ahead, sigmas[i + 1] * ones, **extra_args))) / 2
        x = x + slope * dt
    return x


@torch.no_grad()
def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0, s_tmin=0.0,
                 s_tmax=float("inf"), s_noise=1.0):
    """Euler steps (Karras et al. 2022, algorithm 2 without the correction)."""
    churn = (s_churn, s_tmin, s_tmax, s_noise)
    return _karras_steps(model, x, sigmas, extra_args, callback, disable, churn, corrected=False)


@torch.no_grad()
def sample_heun(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0, s_tmin=0.0,
                s_tmax=float("inf"), s_noise=1.0):
    """Heun's second-order steps (Karras et al. 2022, algorithm 2); the step to sigma 0 is Euler's."""
    churn = (s_churn, s_tmin, s_tmax, s_noise)
    return _karras_steps(model, x, sigmas, extra_args, callback, disable, churn, corrected=True)


@torch.no_grad()
def sample_euler_ancestral(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0,
                           noise_sampler=None):
    """Euler steps to below the next sigma and noise back up to it; in flow models the signal is rescaled as well."""
    extra_args, ones = _start(x, extra_args)
    noise_sampler = noise_sampler or default_noise_sampler(x, seed=extra_args.get("seed"))
    is_flow = isinstance(model.inner_model.inner_model.model_sampling, comfy.model_sampling.CONST)
    step = _ancestral_flow_step if is_flow else _ancestral_step
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        _report(callback, i, x, sigmas[i], sigmas[i], denoised)
        x = step(x, denoised, sigmas[i], sigmas[i + 1], eta, s_noise, noise_sampler)
    return x


def _ancestral_step(x, denoised, sigma, sigma_next, eta, s_noise, noise_sampler):
    sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta=eta)
    if sigma_down == 0:
        return denoised
    x = x + to_d(x, sigma, denoised) * (sigma_down - sigma)
    return x + noise_sampler(sigma, sigma_next) * s_noise * sigma_up


def _ancestral_flow_step(x, denoised, sigma, sigma_next, eta, s_noise, noise_sampler):
    if sigma_next == 0:
        return denoised
    sigma_down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    keep = sigma_down / sigma
    x = keep * x + (1 - keep) * denoised
    if eta <= 0:
        return x
    alpha, alpha_down = 1 - sigma_next, 1 - sigma_down
    renoise = (sigma_next ** 2 - sigma_down ** 2 * alpha ** 2 / alpha_down ** 2) ** 0.5
    return (alpha / alpha_down) * x + noise_sampler(sigma, sigma_next) * s_noise * renoise


@torch.no_grad()
def sample_dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """DPM-Solver++(2M) of Lu et al. 2022 in t = -log sigma; the first step and the one to sigma 0 have order 1."""
    extra_args, ones = _start(x, extra_args)
    previous = None
    for i in trange(len(sigmas) - 1, disable=disable):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        _report(callback, i, x, sigmas[i], sigmas[i], denoised)
        t, t_next = sigmas[i].log().neg(), sigmas[i + 1].log().neg()
        h = t_next - t
        data = denoised
        if previous is not None and sigmas[i + 1] != 0:
            r = (t - sigmas[i - 1].log().neg()) / h
            data = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * previous
        x = (t_next.neg().exp() / t.neg().exp()) * x - (-h).expm1() * data
        previous = denoised
    return x
