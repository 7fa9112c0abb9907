"""Changes of a network's weights as products of two small matrices (LoRA, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import torch

Weights = dict[str, torch.Tensor]


def merged(weights: Weights, low_rank: Weights) -> Weights:
    """`weights` with W + up down in place of W, for each W that has `<name>.up` [out, r] and `<name>.down` [r, in].

    A convolution's W [out, in, k, k] counts as [out, in k k]. Differentiable; tensors without a pair are passed on.
    """
    changed = {}
    for name, weight in weights.items():
        if f"{name}.up" in low_rank:
            up, down = (low_rank[f"{name}.{part}"].to(weight.dtype) for part in ("up", "down"))
            weight = weight + (up @ down).reshape(weight.shape)
        changed[name] = weight
    return changed
