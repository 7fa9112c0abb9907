"""Noise parametrisations and sigma tables of the diffusion and flow models that ComfyUI samples.

A model's sampling object inherits one parametrisation (`EPS`, `V_PREDICTION`, `EDM`, `CONST`, `X0`, `IMG_TO_IMG`) and
one schedule (`ModelSampling...`). With x = x0 + sigma n (variance exploding) or x = (1 - sigma) x0 + sigma n (CONST,
flow) they answer: what does the network see, what is x0 given its output, how does a run start and end, which sigma
belongs to which timestep.
"""

import math

import torch

_NO_LIMIT = 999999999.9  # percent_to_sigma(0) of the variance-exploding schedules: above every sigma


def reshape_sigma(sigma, noise_dim):
    """Sigma of shape [B] (or one element) in a shape that broadcasts over a latent with `noise_dim` dimensions."""
    if sigma.nelement() == 1:
        return sigma.view(())
    return sigma.view((sigma.shape[0],) + (1,) * (noise_dim - 1))


class EPS:
    """The network sees x / sqrt(sigma^2 + sigma_data^2) and predicts the noise n."""

    def calculate_input(self, sigma, noise):
        variance = reshape_sigma(sigma, noise.ndim) ** 2 + self.sigma_data ** 2
        return noise / variance ** 0.5

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_input - model_output * reshape_sigma(sigma, model_output.ndim)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        """Start state; at the largest sigma, where some signal is left, with the whole variance 1 + sigma^2."""
        sigma = reshape_sigma(sigma, noise.ndim)
        scale = torch.sqrt(1.0 + sigma ** 2.0) if max_denoise else sigma
        return noise * scale + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class V_PREDICTION(EPS):
    """The network predicts v = alpha n - sigma' x0 (Salimans and Ho 2022) in the variance-preserving scaling."""

    _velocity_sign = -1.0

    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = reshape_sigma(sigma, model_output.ndim)
        variance = sigma ** 2 + self.sigma_data ** 2
        skip = model_input * self.sigma_data ** 2 / variance
        return skip + self._velocity_sign * (model_output * sigma * self.sigma_data / variance ** 0.5)


class EDM(V_PREDICTION):
    """Karras et al. 2022, table 1: c_skip x + c_out F."""

    _velocity_sign = 1.0


class CONST:
    """Rectified flow: x = (1 - sigma) x0 + sigma n; the network sees x and predicts n - x0."""

    def calculate_input(self, sigma, noise):
        return noise

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_input - model_output * reshape_sigma(sigma, model_output.ndim)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        weight = reshape_sigma(sigma, noise.ndim)
        return weight * noise + (1.0 - weight) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - reshape_sigma(sigma, latent.ndim))


class X0(EPS):
    """The network predicts x0 itself."""

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_output


class IMG_TO_IMG(X0):
    """The network sees x unscaled and predicts x0."""

    def calculate_input(self, sigma, noise):
        return noise


def make_beta_schedule(schedule, n_timestep, linear_start, linear_end, cosine_s=8e-3):
    """Variances beta_t of the discrete forward process in float64, shape [n_timestep].

    `linear` is linear in sqrt(beta) (Stable Diffusion's), `sqrt_linear` in beta, `cosine` Nichol and Dhariwal 2021.
    """
    if schedule == "linear":
        return torch.linspace(linear_start ** 0.5, linear_end ** 0.5, n_timestep, dtype=torch.float64) ** 2
    if schedule == "sqrt_linear":
        return torch.linspace(linear_start, linear_end, n_timestep, dtype=torch.float64)
    if schedule == "cosine":
        time = torch.arange(n_timestep + 1, dtype=torch.float64) / n_timestep + cosine_s
        alpha_bar = torch.cos(time / (1 + cosine_s) * math.pi / 2).pow(2)
        alpha_bar = alpha_bar / alpha_bar[0]
        return torch.clamp(1 - alpha_bar[1:] / alpha_bar[:-1], min=0, max=0.999)
    raise ValueError(f"schedule '{schedule}' unknown.")


def rescale_zero_terminal_snr_sigmas(sigmas):
    """Sigmas with almost no signal in the last: Lin et al. 2024, algorithm 1, with the host's finite last alpha_bar."""
    root = (1 / (sigmas * sigmas + 1)).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    alpha_bar[-1] = 4.8973451890853435e-08
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def _settings(model_config):
    return {} if model_config is None else model_config.sampling_settings


class _SigmaTable(torch.nn.Module):
    """A schedule with an ascending table `sigmas`. Its kinds say by `_sigma_left` how sigma falls on the way."""

    _first_sigma = _NO_LIMIT

    sigma_min = property(lambda self: self.sigmas[0])
    sigma_max = property(lambda self: self.sigmas[-1])

    def _store_with_logarithms(self, sigmas):
        for name, table in (("sigmas", sigmas), ("log_sigmas", sigmas.log())):
            self.register_buffer(name, table.float())

    def percent_to_sigma(self, percent):
        """Sigma after the fraction `percent` of the trajectory (0 = before the start, 1 = finished)."""
        if percent >= 1.0:
            return 0.0
        return self._first_sigma if percent <= 0.0 else self._sigma_left(1.0 - percent)


class _FlowTable(_SigmaTable):
    """A flow's schedule: sigma is the shifted time, and all of the way is left at sigma 1."""

    _first_sigma = 1.0


class ModelSamplingDiscrete(_SigmaTable):
    """Sigmas of a diffusion in `timesteps` steps; timesteps in between are interpolated in log sigma."""

    def __init__(self, model_config=None, zsnr=None):
        super().__init__()
        settings = _settings(model_config)
        self.linear_start = settings.get("linear_start", 0.00085)
        self.linear_end = settings.get("linear_end", 0.012)
        self.num_timesteps = int(settings.get("timesteps", 1000))
        self.zsnr = settings.get("zsnr", False) if zsnr is None else zsnr
        betas = make_beta_schedule(
            settings.get("beta_schedule", "linear"), self.num_timesteps, self.linear_start, self.linear_end)
        alpha_bar = torch.cumprod(1.0 - betas, dim=0)
        sigmas = ((1 - alpha_bar) / alpha_bar) ** 0.5
        self.set_sigmas(rescale_zero_terminal_snr_sigmas(sigmas) if self.zsnr else sigmas)
        self.sigma_data = 1.0

    def set_sigmas(self, sigmas):
        self._store_with_logarithms(sigmas)

    def timestep(self, sigma):
        """Index of the table entry nearest in log sigma."""
        table = self.log_sigmas
        distance = sigma.log().to(table.device) - table[:, None]
        return distance.abs().argmin(dim=0).view(sigma.shape).to(sigma.device)

    def sigma(self, timestep):
        table = self.log_sigmas
        t = timestep.float().to(table.device).clamp(min=0, max=len(table) - 1)
        weight = t.frac()
        log_sigma = (1 - weight) * table[t.floor().long()] + weight * table[t.ceil().long()]
        return log_sigma.exp().to(timestep.device)

    def _sigma_left(self, fraction):
        return self.sigma(torch.tensor(fraction * 999.0)).item()


class ModelSamplingContinuousEDM(_SigmaTable):
    """Continuous noise levels with timestep log(sigma) / 4; the table only serves schedulers that want one."""

    def __init__(self, model_config=None):
        super().__init__()
        settings = _settings(model_config)
        self.set_parameters(
            settings.get("sigma_min", 0.002), settings.get("sigma_max", 120.0), settings.get("sigma_data", 1.0))

    def set_parameters(self, sigma_min, sigma_max, sigma_data):
        low, high = math.log(sigma_min), math.log(sigma_max)
        self._store_with_logarithms(torch.linspace(low, high, 1000).exp())
        self.sigma_data = sigma_data

    def timestep(self, sigma):
        return sigma.log() / 4

    def sigma(self, timestep):
        return (4 * timestep).exp()

    def _sigma_left(self, fraction):
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return math.exp((high - low) * fraction + low)


class ModelSamplingContinuousV(ModelSamplingContinuousEDM):
    """Continuous noise levels with the angle 2 atan(sigma) / pi as timestep."""

    def timestep(self, sigma):
        angle = sigma.atan()
        return angle / math.pi * 2

    def sigma(self, timestep):
        angle = timestep * math.pi / 2
        return angle.tan()


def time_snr_shift(alpha, t):
    """Flow time moved towards the noise: alpha t / (1 + (alpha - 1) t), Esser et al. 2024, equation 23."""
    return t if alpha == 1.0 else alpha * t / (1 + (alpha - 1) * t)


class ModelSamplingDiscreteFlow(_FlowTable):
    """Flow with shifted time; the network's timestep is sigma times `multiplier`."""

    def __init__(self, model_config=None):
        super().__init__()
        settings = _settings(model_config)
        self.set_parameters(shift=settings.get("shift", 1.0), multiplier=settings.get("multiplier", 1000))

    def set_parameters(self, shift=1.0, timesteps=1000, multiplier=1000):
        self.shift, self.multiplier = shift, multiplier
        steps = torch.arange(1, timesteps + 1, 1) / timesteps
        self.register_buffer("sigmas", self.sigma(steps * multiplier))

    def _sigma_left(self, fraction):
        return time_snr_shift(self.shift, fraction)

    def sigma(self, timestep):
        return self._sigma_left(timestep / self.multiplier)

    def timestep(self, sigma):
        return sigma * self.multiplier


def flux_time_shift(mu, sigma, t):
    """Flow time shifted by exp(mu) / (exp(mu) + (1/t - 1)^sigma)."""
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1) ** sigma)


class ModelSamplingFlux(_FlowTable):
    """Flow with Flux's time shift; the network's timestep is sigma."""

    def __init__(self, model_config=None):
        super().__init__()
        self.set_parameters(shift=_settings(model_config).get("shift", 1.15))

    def set_parameters(self, shift=1.15, timesteps=10000):
        self.shift = shift
        self.register_buffer("sigmas", self.sigma(torch.arange(1, timesteps + 1, 1) / timesteps))

    def timestep(self, sigma):
        return sigma

    def sigma(self, timestep):
        return self._sigma_left(timestep)

    def _sigma_left(self, fraction):
        return flux_time_shift(self.shift, 1.0, fraction)
