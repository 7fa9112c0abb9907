"""The host's own UNet (Stable Diffusion's class) with weights that the pack brings."""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils

# What every UNet of Stable Diffusion's class has, so that a configuration says only what differs.
COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False}


def unet_model(unet_config, weights, latent_format, dtype=None):
    """ModelPatcher of an eps model on the 1000 scaled-linear steps of Stable Diffusion 1.

    Args:
        unet_config: options of the host's UNetModel: `model_channels`, `num_res_blocks`, `channel_mult`,
            `transformer_depth`, `transformer_depth_output` (lists), `transformer_depth_middle`, `context_dim`, and
            `num_head_channels` or `num_heads`. A vector condition (`adm_in_channels`) is not among the inputs of this
            class of models.
        weights: {key: tensor} under the host's keys or those of diffusers' UNet2DConditionModel.
        latent_format: a class of `comfy.latent_formats`.
        dtype: to store the weights in; by default what the device computes well.

    Raises:
        ValueError: the weights are not those of `unet_config`; the message lists missing and unexpected keys.
    """

    family = {"unet_extra_config": {}, "latent_format": latent_format, "memory_usage_factor": 1.0}
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    config = type("UNet", (comfy.supported_models_base.BASE,), family)({**COMMON, **unet_config})
    supported = config.supported_inference_dtypes
    dtype = dtype or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights))
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, load_device, supported))
    model = comfy.model_base.BaseModel(config, device=offload_device)
    _load(model.diffusion_model, config.unet_config, weights, dtype)
    model.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def _load(network, unet_config, weights, dtype):
    host_keys = comfy.utils.unet_to_diffusers(unet_config)
    renamed = {host_keys.get(key, key): weight.to(dtype) for key, weight in weights.items()}
    missing, unexpected = network.load_state_dict(renamed, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"The weights do not belong to this UNet (missing {list(missing)}, unexpected {list(unexpected)}); take "
            "weights and configuration from the same model.")
