"""Base of the descriptions of model families."""

import torch

import comfy.latent_formats
import comfy.model_base


class BASE:
    """What a family's networks look like, how they are sampled and in which latents."""

    unet_config = {}
    unet_extra_config = {"num_heads": -1, "num_head_channels": 64}
    required_keys = {}
    sampling_settings = {}
    latent_format = comfy.latent_formats.LatentFormat
    memory_usage_factor = 2.0
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    custom_operations = manual_cast_dtype = None
    optimizations = {"fp8": False}

    def __init__(self, unet_config):
        self.unet_config = {**unet_config, **self.unet_extra_config}
        self.sampling_settings = dict(self.sampling_settings)
        self.latent_format = self.latent_format()
        self.optimizations = dict(self.optimizations)

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.EPS

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(self, model_type=self.model_type(state_dict, prefix), device=device)

    def process_unet_state_dict(self, state_dict):
        return state_dict

    def set_inference_dtype(self, dtype, manual_cast_dtype):
        """Store the weights as `dtype` and compute in `manual_cast_dtype` (None: in `dtype` too)."""
        self.manual_cast_dtype = manual_cast_dtype
        self.unet_config["dtype"] = dtype


class ClipTarget:
    """Classes of a tokenizer and of a text encoder, and the encoder's extra arguments."""

    def __init__(self, tokenizer, clip):
        self.tokenizer = tokenizer
        self.clip = clip
        self.params = {}
