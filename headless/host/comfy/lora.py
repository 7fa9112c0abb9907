"""Application of weight patches."""

import torch

from comfy.weight_adapter import WeightAdapterBase


def calculate_weight(patches, weight, key, intermediate_dtype=torch.float32, original_weights=None):
    """The weight with `patches` [(strength, value, strength_model, offset, function), ...] applied in order, in place.

    A value is an adapter, `(difference,)`, `("diff", (difference,))` or `("set", (weight,))`; `offset` (dim, start,
    length) restricts a patch to a part of the weight. Raises ValueError for other kinds and shapes that do not fit.
    """
    for strength, value, strength_model, offset, function in patches:
        part = weight if offset is None else weight.narrow(*offset)
        function = function or _identity
        if strength_model != 1.0:
            part *= strength_model
        if isinstance(value, WeightAdapterBase):
            value.calculate_weight(
                part, key, strength, strength_model, offset, function, intermediate_dtype, original_weights)
            continue
        kind, (change, *_) = ("diff", value) if len(value) == 1 else value
        if kind == "set":
            part.copy_(change)
        elif kind != "diff":
            raise ValueError(f"The embedded host has the weight patches diff, set and LoRA; {key} got {kind!r}.")
        elif change.shape != part.shape:
            raise ValueError(f"A weight patch of shape {tuple(change.shape)} does not fit {key} {tuple(part.shape)}.")
        else:
            part += function(strength * change.to(part.device, part.dtype))
    return weight


def _identity(weight):
    return weight
