"""What the networks share: attention, which packs may replace, and the features of a timestep."""

import math

import torch
from torch import nn


def overridable(attention):
    """Let `transformer_options["optimized_attention_override"]` run as function(attention, *args, **kwargs) instead.

    The override may call the attention with the same keywords without being asked again: they carry the mark
    `_inside_attn_wrapper`, by which the host's own attention functions know that too. Hosts name q, k and v
    differently, so what is public takes them by position alone.
    """

    def call(*args, **kwargs):
        override = (kwargs.get("transformer_options") or {}).get("optimized_attention_override")
        if override is None or "_inside_attn_wrapper" in kwargs:
            return attention(*args, **kwargs)
        return override(attention, *args, **kwargs, _inside_attn_wrapper=True)

    return call


@overridable
def optimized_attention(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False,
                        **kwargs):
    """Attention over [B, L, heads D], or over [B, heads, L, D] with `skip_reshape`."""
    if not skip_reshape:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    if mask is not None and mask.ndim < 4:
        mask = mask.reshape((1,) * (3 - mask.ndim) + tuple(mask.shape)).unsqueeze(1)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def timestep_features(timesteps, width):
    """Cosines and sines of the timesteps [B] at width / 2 frequencies from 1 down to 1/10000: float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
