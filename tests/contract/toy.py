"""An analytic diffusion model in the host's own wrappers: every number it yields follows from a formula, no weights.

Data: each latent value is drawn from an equal mixture of N(c - m, s^2) and N(c + m, s^2), where the conditioning
tensor's mean is c. For x = a * x0 + sigma * n (a = 1 for eps models in the variance exploding form, a = 1 - sigma for
flow models), with v = a^2 s^2 + sigma^2 and y = x - a c, the posterior mean is

    E[x0 | x] = c + (a s^2 y + sigma^2 m tanh(a m y / v)) / v.
"""

import math

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models_base
import torch

STD, MODE = 0.5, 0.8


def posterior_mean(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] of the mixture; alpha, sigma and center broadcast against x."""
    variance = (alpha * STD) ** 2 + sigma**2
    y = x - alpha * center
    return center + (alpha * STD**2 * y + sigma**2 * MODE * torch.tanh(alpha * MODE * y / variance)) / variance


class AnalyticNet(torch.nn.Module):
    """Stands for the diffusion network: predicts eps (of x / sqrt(sigma^2 + 1)) or the flow velocity."""

    def __init__(self, flow: bool):
        super().__init__()
        self.flow = flow
        self.dtype = torch.float32
        self.anchor = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **kwargs):
        shape = (-1,) + (1,) * (x.ndim - 1)
        sigma = transformer_options["sigmas"].to(x).reshape(-1)  # one per latent; x stacks the conditions
        sigma = sigma.repeat(x.shape[0] // sigma.numel()).reshape(shape)
        center = context.to(x).flatten(1).mean(1).reshape(shape)
        if self.flow:
            return (x - posterior_mean(x, 1 - sigma, sigma, center)) / sigma
        x = x * (sigma**2 + 1) ** 0.5
        return (x - posterior_mean(x, torch.ones_like(sigma), sigma, center)) / sigma


class ToyConfig(comfy.supported_models_base.BASE):
    unet_config = {"disable_unet_model_creation": True}
    latent_format = comfy.latent_formats.SD3
    memory_usage_factor = 0.01
    optimizations: dict = {}


def toy_model(flow: bool):
    """A MODEL (ModelPatcher) around :class:`AnalyticNet`, eps or flow with shift 1, on the CPU."""
    config = ToyConfig(ToyConfig.unet_config)
    config.sampling_settings = {"shift": 1.0, "multiplier": 1.0} if flow else {}
    kind = comfy.model_base.ModelType.FLOW if flow else comfy.model_base.ModelType.EPS
    device = torch.device("cpu")
    model = comfy.model_base.BaseModel(config, kind, device=device)
    model.diffusion_model = AnalyticNet(flow)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def condition(center: float) -> list:
    """CONDITIONING whose centre is ``center``."""
    return [[torch.full((1, 2, 4), center), {}]]


UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 2],
    "transformer_depth_output": [0, 0, 2, 2], "transformer_depth_middle": 1, "context_dim": 12,
    "num_head_channels": 16, "num_heads": -1,
}  # fmt: skip


def toy_unet(**changes) -> torch.nn.Module:
    """The host's own UNet, small, with weights from a formula, in float64: hosts sum in different orders."""
    network = comfy.model_base.BaseModel(_UNetConfig({**UNET, **changes}), device=torch.device("cpu")).diffusion_model
    fill(network)
    return network.double().eval()


class _UNetConfig(comfy.supported_models_base.BASE):
    unet_extra_config: dict = {}
    optimizations: dict = {}


def fill(network: torch.nn.Module) -> None:
    """Give every weight fixed values: sines, as large as keeps the features near 1."""
    weights = {}
    for number, (key, value) in enumerate(sorted(network.state_dict().items())):
        count = torch.arange(value.numel(), dtype=torch.float64)
        wave = torch.sin(12.9898 * count * (1 + 0.01 * number) + number).float().reshape(value.shape)
        if value.ndim < 2:
            weights[key] = 0.1 * wave + (1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = wave * math.sqrt(2 / value[0].numel())
    network.load_state_dict(weights)
