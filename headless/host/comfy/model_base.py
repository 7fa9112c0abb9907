"""Models as the samplers see them: a network, its noise parametrisation and its conditioning inputs."""

import math
from collections.abc import Mapping
from enum import Enum

import torch

import comfy._mmdit
import comfy._unet
import comfy.conds
import comfy.latent_formats
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.utils


class ModelType(Enum):
    """What a network predicts, with the host's numbers."""

    EPS = 1
    V_PREDICTION = 2
    V_PREDICTION_EDM = 3
    EDM = 5
    FLOW = 6
    V_PREDICTION_CONTINUOUS = 7
    FLUX = 8
    IMG_TO_IMG = 9


_SAMPLING = {
    ModelType.EPS: ("ModelSamplingDiscrete", "EPS"),
    ModelType.V_PREDICTION: ("ModelSamplingDiscrete", "V_PREDICTION"),
    ModelType.V_PREDICTION_EDM: ("ModelSamplingContinuousEDM", "V_PREDICTION"),
    ModelType.EDM: ("ModelSamplingContinuousEDM", "EDM"),
    ModelType.FLOW: ("ModelSamplingDiscreteFlow", "CONST"),
    ModelType.V_PREDICTION_CONTINUOUS: ("ModelSamplingContinuousV", "V_PREDICTION"),
    ModelType.FLUX: ("ModelSamplingFlux", "CONST"),
    ModelType.IMG_TO_IMG: ("ModelSamplingDiscrete", "IMG_TO_IMG"),
}


def model_sampling(model_config, model_type):
    """The sampling object of a model type: its schedule and parametrisation joined in one class."""
    bases = tuple(getattr(comfy.model_sampling, name) for name in _SAMPLING[model_type])
    return type("ModelSampling", bases, {})(model_config)


def _cast(value, dtype, device):
    """A conditioning value on the device, if it is a tensor or a list of them; int tensors keep their dtype."""
    if isinstance(value, list):
        return [_cast(item, dtype, device) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.dtype not in (torch.int, torch.long) else None)


class BaseModel(torch.nn.Module):
    """A diffusion or flow network `diffusion_model(x, timesteps, context=, ...)` wrapped into x0 prediction."""

    _network = comfy._unet.UNetModel

    def __init__(self, model_config, model_type=ModelType.EPS, device=None):
        super().__init__()
        self.model_config = model_config
        self.latent_format = model_config.latent_format
        self.manual_cast_dtype = model_config.manual_cast_dtype
        self.device = device
        self.current_patcher = None
        if not model_config.unet_config.get("disable_unet_model_creation", False):
            self.diffusion_model = self._network(device=device, **model_config.unet_config)
        self.model_type = model_type
        self.model_sampling = model_sampling(model_config, model_type)
        self.adm_channels = model_config.unet_config.get("adm_in_channels") or 0
        self.memory_usage_factor = model_config.memory_usage_factor

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options: Mapping = {},
                    **kwargs):
        """x0 for the state x [B, C, ...] at the sigmas t [B]."""
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.APPLY_MODEL, transformer_options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._apply_model, self, wrappers)
        return executor.execute(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options: Mapping = {},
                     **kwargs):
        dtype = self._inference_dtype()
        model_input = self.model_sampling.calculate_input(t, x)
        if c_concat is not None:
            model_input = torch.cat([model_input, c_concat.to(model_input)], dim=1)
        model_input = model_input.to(dtype)
        extra = {name: _cast(value, dtype, x.device) for name, value in kwargs.items()}
        shapes = extra.pop("latent_shapes", None)
        timestep = self.process_timestep(self.model_sampling.timestep(t).float(), x=x, **extra)
        if shapes is not None:
            model_input = comfy.utils.unpack_latents(model_input, shapes)
        output = self.diffusion_model(
            model_input, timestep, context=_cast(c_crossattn, dtype, x.device), control=control,
            transformer_options=transformer_options, **extra)
        if not torch.is_tensor(output):
            output, _ = comfy.utils.pack_latents(output)
        return self.model_sampling.calculate_denoised(t, output.float(), x)

    def get_dtype(self):
        return self.diffusion_model.dtype

    def process_timestep(self, timestep, **kwargs):
        """For models whose network wants more than the schedule's timestep."""
        return timestep

    def _inference_dtype(self):
        return self.get_dtype() if self.manual_cast_dtype is None else self.manual_cast_dtype

    def encode_adm(self, **kwargs):
        """Vector conditioning [B, adm_channels] from the CONDITIONING's options, or None."""
        return None

    def extra_conds(self, **kwargs):
        """Conditioning inputs of the network from one CONDITIONING entry."""
        conds = {}
        vector = self.encode_adm(**kwargs)
        if vector is not None:
            conds["y"] = comfy.conds.CONDRegular(vector)
        for name, source, kind in (("c_crossattn", "cross_attn", comfy.conds.CONDCrossAttn),
                                   ("c_concat", "noise_concat", comfy.conds.CONDNoiseShape)):
            if kwargs.get(source) is not None:
                conds[name] = kind(kwargs[source])
        return conds

    def extra_conds_shapes(self, **kwargs):
        return {}

    def load_model_weights(self, sd, unet_prefix=""):
        """Load the network's weights, taking them out of `sd`. Raises RuntimeError for missing or unknown keys."""
        weights = {key[len(unet_prefix):]: sd.pop(key) for key in list(sd) if key.startswith(unet_prefix)}
        network = self.diffusion_model
        made_without_tensors = any(weight.is_meta for weight in network.parameters())
        network.load_state_dict(self.model_config.process_unet_state_dict(weights), assign=made_without_tensors)
        return self

    def process_latent_in(self, latent):
        """A VAE's latent in the model's scale."""
        return self.latent_format.process_in(latent)

    def process_latent_out(self, latent):
        """A latent of the model in the VAE's scale."""
        return self.latent_format.process_out(latent)

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        """The kept part of a masked run at the noise level sigma [B]."""
        sigma = sigma.reshape([-1] + [1] * (noise.ndim - 1))
        return self.model_sampling.noise_scaling(sigma, noise, latent_image)

    def memory_required(self, input_shape, cond_shapes: Mapping = {}):
        """Estimated bytes of activations for an input of the given shape."""
        area = input_shape[0] * math.prod(input_shape[2:])
        return area * self._inference_dtype().itemsize * 0.01 * self.memory_usage_factor * 1024 * 1024


class SD3(BaseModel):
    """Stable Diffusion 3's class: an MMDiT on pooled and token embeddings of the text."""

    _network = comfy._mmdit.OpenAISignatureMMDITWrapper

    def __init__(self, model_config, model_type=ModelType.FLOW, device=None):
        super().__init__(model_config, model_type, device=device)

    def encode_adm(self, **kwargs):
        """The pooled text embedding."""
        return kwargs["pooled_output"]

    def extra_conds(self, **kwargs):
        conds = super().extra_conds(**kwargs)
        if kwargs.get("cross_attn") is not None:
            conds["c_crossattn"] = comfy.conds.CONDRegular(kwargs["cross_attn"])
        return conds
