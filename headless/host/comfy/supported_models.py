"""The model families that the embedded host loads."""

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models_base


class SD3(comfy.supported_models_base.BASE):
    """Stable Diffusion 3's class, to which the pack's miniatures belong."""

    unet_config = {"in_channels": 16, "pos_embed_scaling_factor": None}
    sampling_settings = {"shift": 3.0}
    unet_extra_config = {}
    latent_format = comfy.latent_formats.SD3
    memory_usage_factor = 1.2

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.SD3(self, device=device)
