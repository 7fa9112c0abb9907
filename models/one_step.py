"""One-step restorers, OSEDiff and S3Diff: what their files change in Stable Diffusion's UNet and autoencoder.

A file holds pairs of small matrices (LoRA, https://arxiv.org/abs/2106.09685), as peft names them, for layers as
diffusers names them: `<layer>.lora_A.<adapter>.weight` and `<layer>.lora_B.<adapter>.weight`; and some layers whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

ALPHA = 8
"""peft's default, with which both were trained; their files do not say it. A change is multiplied by ALPHA / rank."""

_PAIR = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])(\.\w+)?\.weight")


class LowRank(NamedTuple):
    """W + scale up down in place of W, a convolution counted as the matrix [out, in k k].

    up [out, r] or [out, r, 1, 1]; down [r, in] or [r, in, k, k].
    """

    up: torch.Tensor
    down: torch.Tensor

    @property
    def scale(self) -> float:
        return ALPHA / len(self.down)


class Change(NamedTuple):
    """What a file changes in one network, under diffusers' names.

    low_rank: {layer, without '.weight': LowRank}.
    weights: {key: tensor that takes the place of the network's own}, before the pairs are added.
    """

    low_rank: dict[str, LowRank]
    weights: dict[str, torch.Tensor]


def change(weights: Mapping[str, torch.Tensor]) -> Change:
    """`weights` {key: tensor} as peft writes them, sorted into pairs and whole layers.

    Raises ValueError for half a pair, two pairs for one layer, pairs whose ranks differ, and what `checked` refuses.
    """
    pairs, whole = {}, {}
    for key, value in weights.items():
        checked(key, value)
        if found := _PAIR.fullmatch(key):
            pair = pairs.setdefault(found["layer"], {})
            if found["part"] in pair:
                raise ValueError(f"{found['layer']} has two low-rank changes; a file of one restorer has one a layer")
            pair[found["part"]] = value
        else:
            whole[key.replace(".base_layer.", ".")] = value
    for layer, pair in pairs.items():
        ranks = {part: value[0].numel() if part == "B" else len(value) for part, value in pair.items()}
        if pair.keys() != {"A", "B"} or ranks["A"] != ranks["B"] or min(v.ndim for v in pair.values()) < 2:
            raise ValueError(f"{layer} has the low-rank parts {({k: list(v.shape) for k, v in sorted(pair.items())})}; "
                             "a change is A [r, in] and B [out, r] of the same rank r")
    return Change({layer: LowRank(pair["B"], pair["A"]) for layer, pair in pairs.items()}, whole)


def checked(key: str, value: torch.Tensor) -> torch.Tensor:
    """`value`, a weight of a file. Raises ValueError for all but a tensor of finite numbers, one at least."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{key} is {type(value).__name__}, not a tensor")
    if not value.is_floating_point() or not value.ndim or not value.numel():
        raise ValueError(f"{key} is {value.dtype} {list(value.shape)}, not floating-point numbers along an axis")
    if not value.isfinite().all():
        raise ValueError(f"{key} has values that are not finite (NaN or infinite)")
    return value


def section(checkpoint: Mapping, name: str) -> dict[str, torch.Tensor]:
    """The tensors under `name`: of a nested checkpoint, or of a flat one, in which their names begin with '<name>/'.

    Raises ValueError for contents without names.
    """
    if not isinstance(checkpoint, Mapping) or not all(isinstance(key, str) for key in checkpoint):
        raise ValueError(f"it is {type(checkpoint).__name__}, not weights by name")
    if isinstance(checkpoint.get(name), Mapping):
        return {str(key): value for key, value in checkpoint[name].items()}
    return {key.removeprefix(f"{name}/"): value for key, value in checkpoint.items() if key.startswith(f"{name}/")}


def osediff(checkpoint: Mapping) -> tuple[Change, Change]:
    """The changes of UNet and autoencoder in an OSEDiff file (https://arxiv.org/abs/2406.08177).

    Args:
        checkpoint: nested as in osediff.pkl ('state_dict_unet', 'state_dict_vae'); or the merged variant ('unet',
            'vae'), which holds both networks whole; or either one flat, as safetensors names its tensors.

    Raises:
        ValueError: this is another file.
    """
    if section(checkpoint, "state_dict_unet_de_mlp"):
        raise ValueError("it is a file of S3Diff; load it with S3Diff Loader")
    for names in (("state_dict_unet", "state_dict_vae"), ("unet", "vae")):
        unet, vae = (section(checkpoint, name) for name in names)
        if unet and vae:
            return change(unet), change(vae)
    raise ValueError("it holds neither 'state_dict_unet' and 'state_dict_vae' nor 'unet' and 'vae', one of which a "
                     f"file of OSEDiff has, but {', '.join(map(str, list(checkpoint)[:4])) or 'nothing'}")


# diffusers' names of AutoencoderKL and AutoencoderTiny against those of the host's networks
_UP_LEVELS = 4  # diffusers counts the decoder's levels from the latent, the host from the picture
_LAYERS = (
    (r"^encoder\.layers\.", "taesd_encoder."),
    (r"^decoder\.layers\.(\d+)", lambda found: f"taesd_decoder.{int(found[1]) + 1}"),  # the host's first is a clamp
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{_UP_LEVELS - 1 - int(found[1])}.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{_UP_LEVELS - 1 - int(found[1])}.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.(group_norm|to_(?=[qkv])|to_out\.0)", lambda found: {
        "group_norm": "attn_1.norm", "to_": "attn_1.", "to_out.0": "attn_1.proj_out"}[found[1]]),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)  # fmt: skip


def autoencoder_key(key: str) -> str:
    """The host's name of a weight (or layer) of diffusers' AutoencoderKL or AutoencoderTiny."""
    for pattern, name in _LAYERS:
        key = re.sub(pattern, name, key)
    return key
