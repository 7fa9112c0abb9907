"""Models with exact answers inside a host: Gaussian data whose mean is given by the conditioning.

The denoiser is linear, so classifier-free guidance of two such models is again Gaussian, with mean
uncond + cfg (cond - uncond), and the whole guided run has an exact answer (`exact_models.gaussian_flow_map`).
"""

import torch

STD = 0.5


class GaussianNetwork(torch.nn.Module):
    """Stands in for a diffusion model: turns the exact denoised picture into what the model type predicts."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.dtype = kind, torch.float32
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # hosts ask the parameters for their device
        self.calls = []

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **_):
        shape = [-1] + [1] * (x.ndim - 1)
        sigmas = transformer_options["sigmas"].float()  # one an item, however many conditions are batched together
        sigma = sigmas.repeat(len(x) // len(sigmas)).view(shape)
        self.calls.append(len(x))
        mean = context.float().mean(dim=(1, 2)).view(shape)
        scale = (sigma**2 + 1) ** 0.5
        state = x.float() if self.kind == "flow" else x.float() * scale
        alpha = 1 - sigma if self.kind == "flow" else 1.0
        denoised = mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (state - alpha * mean)
        if self.kind in ("eps", "flow"):
            return (state - denoised) / sigma
        sign = {"v": 1, "edm": -1}[self.kind]
        return sign * (state / scale**2 - denoised) * scale / sigma


def model(kind, channels=4):
    """ModelPatcher of a Gaussian model; kind: 'eps', 'v', 'edm' or 'flow'. Needs an active host."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    class Format(comfy.latent_formats.LatentFormat):
        latent_channels = channels

    class Config(comfy.supported_models_base.BASE):
        unet_config = {"disable_unet_model_creation": True}
        latent_format = Format
        optimizations = {}
        memory_usage_factor = 0.01
        sampling_settings = {"shift": 3.0, "multiplier": 1.0} if kind == "flow" else {}

    types = comfy.model_base.ModelType
    model_type = {"eps": types.EPS, "v": types.V_PREDICTION, "edm": types.EDM, "flow": types.FLOW}[kind]
    config = Config({})
    config.latent_format = Format()
    config.unet_config = Config.unet_config
    base = comfy.model_base.BaseModel(config, model_type, device=torch.device("cpu"))
    base.diffusion_model = GaussianNetwork(kind)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)


def conditioning(mean, items=1):
    """CONDITIONING whose Gaussian has that mean."""
    return [[torch.full((items, 3, 8), float(mean)), {}]]


def guider(patcher, positive=0.4, negative=-0.2, cfg=1.0):
    import comfy.samplers

    made = comfy.samplers.CFGGuider(patcher)
    made.set_conds(conditioning(positive), conditioning(negative))
    made.set_cfg(cfg)
    return made
