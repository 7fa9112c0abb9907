"""Low-rank changes of a weight, as `ModelPatcher.add_patches` takes them."""

import torch


class WeightAdapterBase:
    """A change of one weight that knows how to apply itself."""


class LoRAAdapter(WeightAdapterBase):
    """W + strength (alpha / r) up down (Hu et al. 2021).

    `weights` = (up [out, r], down [r, in], alpha or None, None, None, None); the last three slots (mid convolution,
    DoRA scale, reshape) exist in the host, here they must be None.
    """

    name = "lora"

    def __init__(self, loaded_keys, weights):
        self.weights, self.loaded_keys = weights, loaded_keys

    def calculate_weight(self, weight, key, strength, strength_model, offset, function,
                         intermediate_dtype=torch.float32, original_weight=None):
        up, down, alpha, *special = self.weights
        if any(part is not None for part in special):
            raise ValueError(f"The embedded host has plain LoRA only; {key} got mid, DoRA or reshape weights.")
        up, down = (part.to(weight.device, intermediate_dtype).flatten(start_dim=1) for part in (up, down))
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        weight += function((strength * scale * (up @ down)).reshape(weight.shape).to(weight.dtype))
        return weight
