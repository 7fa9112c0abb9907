"""One More Step (Hu et al., CVPR 2024, arXiv 2311.15744): a step from pure noise to where the schedule begins.

Schedules of Stable Diffusion begin at alpha_bar_T = 0.0047, not 0: the last step of training still shows the mean of
the picture, and the sampler starts from noise without one. The missing step goes from zero signal, where the state is
noise alone and v = -x0, to alpha_bar_T. It fixes the mean of the state: light and overall colour.
"""

import math

import torch


def clean_estimate(v_positive, v_negative=None, cfg=1.0):
    """x0_hat = -v, with guidance v = v_negative + cfg (v_positive - v_negative), all of one shape [B, C, ...].

    It is v = sqrt(abar) n - sqrt(1 - abar) x0 (Salimans & Ho 2022) at abar = 0. Without `v_negative` cfg has no say.
    """
    v = v_positive if v_negative is None else v_negative + cfg * (v_positive - v_negative)
    return -v


def vp_state(x0_hat, noise, alpha_bar, official=False):
    """The state of unit variance at alpha_bar (a float in 0..1): the DDPM posterior with abar_t = 0, whose current
    state has the weight 0.

        x_T = sqrt(alpha_bar) x0_hat + sqrt(1 - alpha_bar) noise

    The authors' code multiplies the noise by the variance 1 - alpha_bar (`official`) where the posterior has its root:
    0.2 % less noise at alpha_bar 0.0047, not visible.
    """
    variance = 1 - alpha_bar
    return alpha_bar**0.5 * x0_hat + (variance if official else variance**0.5) * noise


def ve_state(x0_hat, noise, sigma):
    """`vp_state` divided by sqrt(alpha_bar), alpha_bar = 1/(1 + sigma^2): x_T = x0_hat + sigma noise.

    A host that adds noise of level sigma to a latent does just this, so a sampler needs x0_hat as its latent only.
    """
    return x0_hat + sigma * noise


def signal(sigma):
    """sqrt(alpha_bar) = 1/sqrt(1 + sigma^2), the weight of x0_hat in the state of unit variance: how much it tells."""
    return 1 / math.hypot(1, sigma)


def with_mean(x, latent_image, x0_hat, path, sigma):
    """A noised start x [B, C, ...] with another mean: alpha x0_hat instead of alpha latent_image."""
    return x + float(path.alpha(sigma)) * (x0_hat - latent_image)


def low_pass(latents, width):
    """Gaussian blur over the last two axes, with mirrored edges: constants and means stay as they are.

    latents: [..., h, w]. width: standard deviation as a share of the shorter axis, 0 or more; 0 changes nothing.
    A mirrored signal is a sum of cosines, of which the blur scales number k by exp(-(pi k std/length)^2 / 2).
    """
    height, wide = latents.shape[-2:]
    std = width * min(height, wide)
    rows, columns = (_blur_matrix(length, std).to(latents) for length in (height, wide))
    return rows @ latents @ columns.mT


def _blur_matrix(length, std):
    """[length, length] in float64, on the CPU."""
    k = torch.arange(length, dtype=torch.float64)
    cosines = torch.cos(math.pi / length * (k + 0.5) * k[:, None])
    cosines *= (2 / length) ** 0.5
    cosines[0] /= 2**0.5
    gain = torch.exp(-0.5 * (math.pi * k * std / length) ** 2)
    return cosines.mT @ (gain[:, None] * cosines)
