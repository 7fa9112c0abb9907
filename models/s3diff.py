"""S3Diff (https://arxiv.org/abs/2409.17058): an estimator of blur and noise, and the LoRA that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear, relu

from .checkpoints import filled
from .one_step import Change, LowRank, change, checked, section

Weights = dict[str, torch.Tensor]


class Residual(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(relu(self.conv1(x)))


class DENet(nn.Module):
    """How blurred and how noisy a picture is: for each a trunk of convolutions, its global mean, two layers.

    Args:
        widths: channels before and after the trunk halves the resolution, and of the hidden layer of the head.
    """

    PUBLISHED = (64, 128, 512)
    RADIUS = 22  # pixels of the picture around its place that a feature sees
    TILE = 512

    def __init__(self, widths=PUBLISHED):
        super().__init__()
        narrow, wide, hidden = widths
        self.conv_first = nn.ModuleList(nn.Conv2d(3, narrow, 3, padding=1) for _ in range(2))
        self.body = nn.ModuleList(nn.Sequential(
            *(Residual(narrow) for _ in range(6)),
            nn.Conv2d(narrow, wide, 3, stride=2, padding=1),
            *(Residual(wide) for _ in range(2)),
        ) for _ in range(2))  # fmt: skip
        self.fc_degree = nn.ModuleList(nn.Sequential(
            nn.Linear(wide, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()) for _ in range(2))  # fmt: skip

    def forward(self, pictures, tile=TILE, before_tile=lambda: None):
        """(blur, noise) [B, 2], each in 0..1, of pictures [B, 3, H, W] in 0..1 of any size and on any device.

        The mean of the features over a picture is summed up from tiles (of `tile` pixels, even) with a halo of all
        that their features see, so the tiles bound the memory and leave the result as it is.
        """
        weight = self.conv_first[0].weight
        sums = weight.new_zeros(2, len(pictures), self.fc_degree[0][0].in_features)
        rows, columns = (tiles(side, tile, self.RADIUS) for side in pictures.shape[-2:])
        for cut_y, keep_y in rows:
            for cut_x, keep_x in columns:
                before_tile()
                crop = pictures[..., cut_y, cut_x].to(weight)
                for total, first, body in zip(sums, self.conv_first, self.body, strict=True):
                    total += body(first(crop))[..., keep_y, keep_x].sum((-2, -1))
        places = -(-pictures.shape[-2] // 2) * -(-pictures.shape[-1] // 2)
        return torch.cat([head(total / places) for head, total in zip(self.fc_degree, sums, strict=True)], dim=1)

    def memory(self, height, width):
        """Bytes that a picture of this size takes while it is worked on: three maps of features of its largest tile."""
        most = self.TILE + 2 * self.RADIUS
        return 3 * self.conv_first[0].weight[:, 0, 0, 0].nbytes * min(height, most) * min(width, most)


def tiles(side, tile, radius):
    """[(slice of `side` pixels to cut, slice of the features at half resolution to keep)].

    A cut begins at an even pixel, where the whole picture's stride of 2 has its places, too.
    """
    halo = radius + radius % 2
    found = []
    for start in range(0, side, tile):
        stop, left = min(start + tile, side), max(start - halo, 0)
        found.append((slice(left, stop + halo), slice((start - left) // 2, -(-(stop - left) // 2))))
    return found


def de_net(weights: Weights) -> DENet:
    """The estimator of a file's weights, in float32, in which its sums over a picture fit.

    Raises ValueError when they are of another network, or not finite.
    """
    sized = [f"{name}.weight" for name in ("conv_first.0", "body.0.6", "fc_degree.0.0")]
    known = all(key in weights and weights[key].ndim for key in sized)
    widths = [len(weights[key]) for key in sized] if known else DENet.PUBLISHED
    network = filled(lambda: DENet(widths), weights, torch.float32)
    for key, value in network.state_dict().items():
        checked(key, value)
    return network


FIRST_BLOCK = {"down_blocks": 0, "mid_block": 4, "up_blocks": 5}
"""Numbers of the blocks that have a mixing matrix of their own, in either network; the last is of all other layers."""


def block_of(layer, blocks):
    """The number, of `blocks`, of the block to which a layer of diffusers' UNet or encoder belongs."""
    part, number, *_ = (*layer.removeprefix("encoder.").split("."), "")
    if part not in FIRST_BLOCK:
        return blocks - 1
    return FIRST_BLOCK[part] + (int(number) if number.isdigit() else 0)


class Modulated(NamedTuple):
    """The change of one network for every degradation: W + (8 / r) up M^T down, M [r, r] one for each block.

    M = fuse([relu(degree(f)), relu(block(e))]), where f are features of the degradation and e [blocks, n] what was
    learned of each block; degree, block and fuse are linear layers (weight, bias).
    """

    change: Change
    degree: tuple[torch.Tensor, torch.Tensor]
    block: tuple[torch.Tensor, torch.Tensor]
    fuse: tuple[torch.Tensor, torch.Tensor]
    embeddings: torch.Tensor

    def mixing(self, features):
        """M [blocks, r, r] for features [n] of a degradation."""
        degree = relu(linear(features, *self.degree)).expand(len(self.embeddings), -1)
        flat = linear(torch.cat([degree, relu(linear(self.embeddings, *self.block))], dim=1), *self.fuse)
        return flat.unflatten(1, [math.isqrt(flat.shape[1])] * 2)

    def at(self, features):
        """The Change for features [n] of a degradation: an ordinary LoRA, as M^T is taken into up."""
        mixing = self.mixing(features)
        low_rank = {}
        for layer, (up, down) in self.change.low_rank.items():
            mixed = up.flatten(1).float() @ mixing[block_of(layer, len(mixing))].T
            low_rank[layer] = LowRank(mixed.reshape(up.shape), down)
        return Change(low_rank, self.change.weights)


class S3Diff(NamedTuple):
    """The changes of UNet and autoencoder for every degradation. frequencies [n]: of the degradation's features."""

    unet: Modulated
    vae: Modulated
    frequencies: torch.Tensor

    def features(self, blur, noise):
        """Fourier features [4 n] of a degradation: sines, cosines of blur, then of noise, both in 0..1."""
        angles = 2 * math.pi * torch.tensor([blur, noise])[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).flatten()

    def at(self, blur, noise):
        """(Change of the UNet, Change of the autoencoder) for blur and noise in 0..1."""
        features = self.features(blur, noise)
        return self.unet.at(features), self.vae.at(features)


def s3diff(checkpoint: Mapping) -> S3Diff:
    """The contents of s3diff.pkl: the sections of `Modulated` for each of the two networks, and 'w', the frequencies.

    Raises ValueError when something is missing or does not fit together.
    """
    try:
        made = S3Diff(*(_modulated(checkpoint, name) for name in ("unet", "vae")), _tensor(checkpoint, "w"))
        made.at(0.0, 0.0)
    except (RuntimeError, IndexError) as error:  # shapes, or fewer blocks than the layers have
        raise ValueError(f"its parts do not fit together: {error}") from error
    return made


def _modulated(checkpoint, name):
    def layer(part, key=""):
        found = f"state_dict_{name}_{part}_mlp"
        return _tensor(checkpoint, found, f"{key}weight"), _tensor(checkpoint, found, f"{key}bias")

    found = change(section(checkpoint, f"state_dict_{name}"))
    if not found.low_rank:
        raise ValueError(f"it has no low-rank changes in state_dict_{name}, as a file of S3Diff has")
    blocks = _tensor(checkpoint, "state_embeddings", f"state_dict_{name}_block", "weight")
    return Modulated(found, layer("de", "0."), layer("block", "0."), layer("fuse"), blocks)


def _tensor(checkpoint, *path):
    """The tensor at `path` of nested sections, in float32."""
    *sections, key = path
    for name in sections:
        checkpoint = section(checkpoint, name)
    if not isinstance(checkpoint.get(key), torch.Tensor):
        raise ValueError(f"it has no {' '.join(path)}, as a file of S3Diff has")
    return checked(" ".join(path), checkpoint[key]).float()
