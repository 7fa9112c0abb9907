"""One step from a picture instead of noise, as one-step restorers take it.

OSEDiff (Wu et al., NeurIPS 2024, arXiv 2406.08177, equation 5) and S3Diff (Zhang et al. 2024, arXiv 2409.17058) show
the network the latent z of the degraded picture where sampling would show it noise of the largest level:

    x0 = (z - sqrt(1 - alpha_bar) eps(z, t)) / sqrt(alpha_bar)        alpha_bar = 1 / (1 + sigma^2)

Hosts divide the state of such a model by sqrt(1 + sigma^2) before the network sees it, so this is the Euler step from
x = sqrt(1 + sigma^2) z at sigma to 0. The network of a flow sees its state as it is: there x = z.
"""

import math

from .paths import FLOW


def start(latent, sigma, path):
    """(x, n): the state that the network sees as `latent`, and the noise that it has on it, x = alpha latent + sigma n.

    latent: [B, C, ...] in the model's scale. sigma: a float. n is what a host must take for the noise of the part
    outside a mask, so that the network sees the same picture there.
    """
    if path is FLOW:
        return latent, latent
    scale = math.hypot(1.0, sigma)
    return scale * latent, sigma / (1.0 + scale) * latent


def sample_one_step(model, x, sigmas, extra_args=None, callback=None, disable=None, before_call=None):
    """The prediction of x0 for the state x of `start` at the first of `sigmas`, in one call; x for fewer than two."""
    if len(sigmas) < 2:
        return x
    if before_call is not None:
        before_call()
    denoised = model(x, sigmas[0] * x.new_ones(len(x)), **(extra_args or {}))
    if callback is not None:
        callback({"x": x, "i": 0, "sigma": sigmas[0], "sigma_hat": sigmas[0], "denoised": denoised})
    return denoised
