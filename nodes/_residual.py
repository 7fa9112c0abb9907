"""A host's MODEL of a network that restores pictures by sampling between the degraded one, y, and the clean one.

    residual_model(network, process, channels, ...) -> ModelPatcher

The MODEL works in variance-exploding form: its states are u = x0 + sigma n, its sigmas those of the process, a run
starts from y + sigma_T n. So every sampler, scheduler, guider and KSampler drives it. y is the latent that the run is
given (KSampler's latent_image); CONDITIONING is not read. Outside a noise mask the result is y, the degraded picture.

A process is any object with
    sigmas                                          the [T] noise levels that the network was trained at, rising
    denoised(network, u, sigma, position, y, **conditions) -> x0
        u, y [B, C, H, W] float32; sigma [B]; position [B]: where sigma stands among `sigmas` (0 the first, fractions
        between and beyond); conditions: what `conditions` below gives, cut and padded as u is
    kappa                                           where ResShift Sampler should know it
such as `samplers.residual_shift.ResidualShift`. network is the torch module that `denoised` calls; its weights may be
of any dtype, which it casts to itself.
"""

import logging

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP

from ..restoration.tiling import TilePlan
from ..samplers.residual_shift import Levels
from ._restore import patcher_of

logger = logging.getLogger("trajectory")

KEY = "trajectory_residual"
BEFORE_ALL = 999999999.9
"""The host's noise level of percent 0."""


class ResidualSampling(torch.nn.Module, comfy.model_sampling.IMG_TO_IMG):
    """The host's schedule object. Its timesteps are positions among the trained levels."""

    def __init__(self, process):
        super().__init__()
        self.process, self.kappa = process, getattr(process, "kappa", None)
        self._levels = Levels(process.sigmas)
        self.register_buffer("sigmas", torch.tensor(process.sigmas, dtype=torch.float32))

    @property
    def sigma_min(self):
        return self.sigmas[0]

    @property
    def sigma_max(self):
        return self.sigmas[-1]

    def timestep(self, sigma):
        return self._levels.position(sigma)

    def sigma(self, timestep):
        return self._levels.sigma(timestep)

    def percent_to_sigma(self, percent):
        if percent <= 0:
            return BEFORE_ALL
        return float(self.sigma(torch.tensor((1 - percent) * (len(self.sigmas) - 1)))) if percent < 1 else 0.0

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + sigma * noise


class Bridge(torch.nn.Module):
    """The network as the host calls it: x0 of the state u at a position, given the degraded latent."""

    dtype = torch.float32  # of what goes in and comes out

    def __init__(self, network, process, align):
        super().__init__()
        self.network, self._process, self._align = network, process, align
        self._levels = Levels(process.sigmas)

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, *, degraded, **conditions):
        plan = TilePlan(*x.shape[-2:], tile=0, overlap=0, align=self._align)
        sigma = self._levels.sigma(timesteps)

        def denoised(u, y, *given):
            given = dict(zip(conditions, given, strict=True))
            return self._process.denoised(self.network, u, sigma, timesteps, y, **given)

        return plan.run(denoised, *map(plan.pad, (x, degraded, *conditions.values())))


class ResidualModel(comfy.model_base.BaseModel):
    """The host's model around a Bridge."""

    def __init__(self, config, bridge, process, conditions, device):
        super().__init__(config, device=device)
        self.diffusion_model, self.model_sampling = bridge, ResidualSampling(process)
        self._conditions = conditions

    def extra_conds(self, *, noise, device, latent_image=None, denoise_mask=None, **_):
        degraded = torch.zeros_like(noise) if latent_image is None else latent_image.to(device)
        channels = self.latent_format.latent_channels
        if degraded.ndim != 4 or degraded.shape[1] != channels:
            raise ValueError(f"latent_image has the shape {list(degraded.shape)}, and this model takes "
                             f"[B, {channels}, H, W]: encode the picture with the VAE of its loader")
        mask = None if denoise_mask is None else denoise_mask[:, :1].to(device)
        given = {"degraded": degraded, **self._conditions(degraded, mask)}
        return {name: comfy.conds.CONDNoiseShape(value) for name, value in given.items()}


def _warn_of_late_start(executor, guider, sigmas, *args, **kwargs):
    """SAMPLER_SAMPLE wrapper: a run that begins inside the schedule is legal, but not what the network learned."""
    highest = guider.model_patcher.get_model_object("model_sampling").sigma_max
    if len(sigmas) > 1 and sigmas[0] < 0.99 * highest:
        logger.warning(
            "The schedule begins at sigma %.4g, the network's at %.4g (denoise below 1?): the run starts too close to "
            "the degraded picture and keeps more of it", float(sigmas[0]), float(highest))
    return executor(guider, sigmas, *args, **kwargs)


def no_conditions(degraded, mask):
    """Of a network that takes nothing but the degraded latent."""
    return {}


def residual_model(network, process, channels, *, factor=1, align=1, conditions=no_conditions, memory=1.0):
    """ModelPatcher of a network and its process, see the module.

    Args:
        channels, factor: of the latents, which the model takes as they are, and pixels along one side of a latent one.
        align: what the network needs the sides of a latent to be multiples of; others are mirrored up to there.
        conditions: (y [B, channels, h, w], mask of what to restore [B, 1, h, w] or None) -> {name: tensor [B, C, h, w]}
            for `process.denoised`, called once for each CONDITIONING of a run.
        memory: the host's memory_usage_factor: about 10 kB (fp32: 40 kB) of activations for each place of a latent.
    """
    latent_format = type("Latent", (comfy.latent_formats.LatentFormat,), {
        "latent_channels": channels, "spacial_downscale_ratio": factor})  # fmt: skip
    family = {"latent_format": latent_format, "unet_extra_config": {}, "memory_usage_factor": memory}
    config = type("Residual", (comfy.supported_models_base.BASE,), family)({"disable_unet_model_creation": True})
    offload_device = comfy.model_management.unet_offload_device()
    model = ResidualModel(config, Bridge(network, process, align), process, conditions, offload_device)
    model.eval().requires_grad_(False)
    patcher = patcher_of(model)
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _warn_of_late_start)
    return patcher
