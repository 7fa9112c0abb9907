"""The UNet of ResShift (Yue et al. 2023, https://arxiv.org/abs/2307.12348): residual blocks and shifted windows.

Its modules have the names of the published files, from whose shapes alone the configuration is read.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .checkpoints import filled
from .shapes import shape_of

BUFFERS = ("relative_position_index", "attn_mask")
"""Last parts of the keys that published files have besides weights; both follow from the window and the size."""
APART = -100.0
"""Added to the logits of an attention that a mask forbids."""


@dataclass(frozen=True)
class Config:
    """What the weights say of the network. One entry of `widths`, `blocks` and `swin` a level, the finest first."""

    channels: int  # of the embedding of time before its layers
    latent_channels: int  # of the state and of the prediction
    lq_channels: int  # of the low-quality picture; with the mask of what to paint, 4
    features: tuple[int, ...]  # what each stage of the feature extractor gives; none where the picture goes in as it is
    widths: tuple[int, ...]
    blocks: tuple[int, ...]  # residual blocks
    swin: tuple[bool, ...]  # whether a Swin layer follows the first of them
    swin_width: int
    swin_depth: int
    heads: int
    window: int
    mlp_width: int

    @property
    def multiple(self) -> int:
        """What divides both sides of a latent: one window at the coarsest level. Training latents had this size."""
        return self.window * 2 ** (len(self.widths) - 1)

    @property
    def lq_scale(self) -> int:
        """Pixels of the low-quality picture along one side of a latent pixel."""
        return 2 ** len(self.features)


def config_of(weights) -> Config:
    """The configuration of the network with these weights, {key: tensor} under the published keys.

    Raises ValueError where they are of another network.
    """
    layer = "middle_block.1"
    try:
        levels = _levels(weights)
        latent_channels = shape_of(weights, "out.2.weight", 4)[0]
        features = _features(weights)
        rows, heads = shape_of(weights, f"{layer}.blocks.0.attn.relative_position_bias_table", 2)
        return Config(
            channels=shape_of(weights, "time_embed.0.weight", 2)[1], latent_channels=latent_channels,
            lq_channels=shape_of(weights, "feature_extractor.0.weight", 4)[1] if features
            else shape_of(weights, "input_blocks.0.0.weight", 4)[1] - latent_channels,
            features=features,
            widths=tuple(level[0][0] for level in levels), blocks=tuple(len(level) for level in levels),
            swin=tuple(level[0][1] for level in levels),
            swin_width=shape_of(weights, f"{layer}.patch_embed.proj.weight", 4)[0],
            swin_depth=sum(key.startswith(f"{layer}.blocks.") and key.endswith("attn.qkv.weight") for key in weights),
            heads=heads, window=(math.isqrt(rows) + 1) // 2,
            mlp_width=shape_of(weights, f"{layer}.blocks.0.mlp.fc1.weight", 4)[0],
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"these are not the weights of a ResShift network with Swin layers: {error}") from error


def _features(weights) -> tuple[int, ...]:
    """What each stage of the feature extractor gives: a convolution, an activation, and this one, the third layer."""
    found = []
    while (key := f"feature_extractor.{3 * len(found) + 2}.op.weight") in weights:
        found.append(shape_of(weights, key, 4)[0])
    return tuple(found)


def _levels(weights) -> list[list[tuple[int, bool]]]:
    """For each level its residual blocks on the way down: the width, and whether a Swin layer follows.

    Raises ValueError where a level has none.
    """
    levels, number = [[]], 1
    while True:
        name = f"input_blocks.{number}"
        if f"{name}.0.op.weight" in weights:
            levels.append([])
        elif f"{name}.0.in_layers.2.weight" in weights:
            width = shape_of(weights, f"{name}.0.in_layers.2.weight", 4)[0]
            levels[-1].append((width, f"{name}.1.patch_embed.proj.weight" in weights))
        elif not all(levels):
            raise ValueError(f"there is no residual block before {name}")
        else:
            return levels
        number += 1


def load(weights, dtype=None) -> SwinUNet:
    """The network with these weights, {key: tensor} under the published keys, in evaluation mode.

    Raises ValueError where they are of another network, or of one trained on latents of another size than `multiple`.
    """
    config = config_of(weights)
    network = filled(lambda: SwinUNet(config),
                     {key: value for key, value in weights.items() if not key.endswith(BUFFERS)}, dtype)
    masked = {key.removesuffix(".attn_mask") for key in weights if key.endswith(".attn_mask")}
    shifted = {name for name, module in network.named_modules() if isinstance(module, SwinBlock) and module.shift}
    if masked and masked != shifted:
        raise ValueError(f"other windows are shifted in this file than in a network for latents of {config.multiple} "
                         "pixels a side; only such are known")
    return network


def groups_of(channels: int) -> int:
    """Groups of a norm: 32, as in all published networks; fewer where a group would have less than 4 channels."""
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0 and channels >= 4 * groups
                or groups == 1)  # fmt: skip


class Norm(nn.GroupNorm):
    """Group norm in float32, whatever comes in."""

    def __init__(self, channels: int):
        super().__init__(groups_of(channels), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


def conv(ins: int, outs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, size, stride, size // 2)


def time_embedding(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """[cos, sin] of t at `width` / 2 frequencies from 1 down to nearly 1e-4; float32 [B, width]."""
    frequencies = torch.exp(-math.log(1e4) / (width // 2) * torch.arange(width // 2, device=timesteps.device))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """Two convolutions; time scales and shifts what is between them."""

    def __init__(self, ins: int, outs: int, time_width: int):
        super().__init__()
        self.in_layers = nn.Sequential(Norm(ins), nn.SiLU(), conv(ins, outs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * outs))
        # the third is where dropout stands in the published numbering
        self.out_layers = nn.Sequential(Norm(outs), nn.SiLU(), nn.Identity(), conv(outs, outs))
        self.skip_connection = nn.Identity() if ins == outs else conv(ins, outs, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class Down(nn.Module):
    def __init__(self, ins: int, outs: int):
        super().__init__()
        self.op = conv(ins, outs, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class WindowAttention(nn.Module):
    """Attention of every pixel of a window to every other, with a learned bias for each offset between two."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias(self) -> torch.Tensor:
        """[heads, window^2, window^2] of the table: row (dy + window - 1) (2 window - 1) + dx + window - 1."""
        table, reach = self.relative_position_bias_table, self.window - 1
        place = torch.arange(self.window**2, device=table.device)
        y, x = place // self.window, place % self.window
        dy, dx = y[:, None] - y + reach, x[:, None] - x + reach
        return table[dy * (2 * reach + 1) + dx].permute(2, 0, 1)

    def forward(self, windows: torch.Tensor, apart: torch.Tensor | None) -> torch.Tensor:
        """windows [B, windows, pixels, width]; apart [windows, pixels, pixels] is added to the attention's logits."""
        batch, number, pixels, width = windows.shape
        qkv = self.qkv(windows).view(batch * number, pixels, 3, self.heads, width // self.heads)
        bias = self.bias().to(windows.dtype)[None]
        if apart is not None:
            bias = (bias + apart[:, None].to(windows.dtype)).repeat(batch, 1, 1, 1)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), attn_mask=bias)
        return self.proj(attended.transpose(1, 2).reshape(windows.shape))


def partition(x: torch.Tensor, window: int) -> torch.Tensor:
    """[B, C, H, W] -> [B, windows, window^2, C]."""
    batch, channels, height, width = x.shape
    parts = x.view(batch, channels, height // window, window, width // window, window)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, window**2, channels)


def together(windows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `partition`."""
    batch, _number, pixels, channels = windows.shape
    window = math.isqrt(pixels)
    parts = windows.view(batch, height // window, width // window, window, window, channels)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


def apart(height: int, width: int, window: int, device=None) -> torch.Tensor:
    """What the published networks learned with as the mask of shifted windows: [windows, window^2, window^2].

    In the last row of windows -100 between the left half of a window and its right half, 0 everywhere else. Masks are
    meant to keep apart what only the shift by half a window wrapped into one, in the last row and the last column; in
    the authors' code, rows and columns change places on the way, and these weights know no other.
    """
    right = torch.arange(window**2, device=device) % window >= window // 2
    mask = torch.zeros(height // window, width // window, window**2, window**2, device=device)
    mask[-1] = APART * (right[:, None] != right)
    return mask.flatten(0, 1)


class SwinBlock(nn.Module):
    """Attention within windows, then a perceptron for each pixel; `shift` pixels up and left where it is not 0."""

    def __init__(self, width: int, heads: int, window: int, mlp_width: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.attn = Norm(width), WindowAttention(width, heads, window)
        self.norm2 = Norm(width)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=conv(width, mlp_width, 1), act=nn.GELU(), fc2=conv(mlp_width, width, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attended(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        if not self.shift:
            return together(self.attn(partition(x, self.window), None), height, width)
        shifted = partition(x.roll((-self.shift, -self.shift), (2, 3)), self.window)
        attended = self.attn(shifted, apart(height, width, self.window, x.device))
        return together(attended, height, width).roll((self.shift, self.shift), (2, 3))


class SwinLayer(nn.Module):
    """Blocks at `swin_width`, every second one shifted by half a window; no path leads around it."""

    def __init__(self, channels: int, config: Config, shifted: bool):
        super().__init__()
        width, window = config.swin_width, config.window
        self.patch_embed = nn.Sequential(OrderedDict(proj=conv(channels, width, 1)))
        self.blocks = nn.Sequential(*(
            SwinBlock(width, config.heads, window, config.mlp_width, window // 2 if shifted and i % 2 else 0)
            for i in range(config.swin_depth)))  # fmt: skip
        self.patch_unembed = nn.Sequential(OrderedDict(proj=conv(width, channels, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.patch_unembed(self.blocks(self.patch_embed(x)))


class Stage(nn.Sequential):
    """Layers one after another, of which the residual blocks see the time."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, Residual) else layer(x)
        return x


class SwinUNet(nn.Module):
    """Predicts the latent of the good picture from a noisy state between it and that of the bad one.

    Windows at the coarsest level are never shifted, whatever the size of the latent: the networks were trained with
    one window there.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.multiple = config.multiple
        time_width, deepest = 4 * config.channels, len(config.widths) - 1
        self.time_embed = nn.Sequential(
            nn.Linear(config.channels, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.feature_extractor, features = nn.Sequential(), config.lq_channels
        for doubled in config.features:
            self.feature_extractor.extend([conv(features, doubled // 2), nn.SiLU(), Down(doubled // 2, doubled)])
            features = doubled

        def stage(level, ins, swin, *ends):
            outs = config.widths[level]
            layers = [SwinLayer(outs, config, shifted=level < deepest)] if swin else []
            return Stage(Residual(ins, outs, time_width), *layers, *ends)

        width = config.widths[0]
        self.input_blocks = nn.ModuleList([Stage(conv(config.latent_channels + features, width))])
        kept = [width]
        for level, number in enumerate(config.blocks):
            for block in range(number):
                self.input_blocks.append(stage(level, width, config.swin[level] and block == 0))
                width = config.widths[level]
                kept.append(width)
            if level < deepest:
                self.input_blocks.append(Stage(Down(width, width)))
                kept.append(width)
        self.middle_block = Stage(
            Residual(width, width, time_width), SwinLayer(width, config, shifted=False),
            Residual(width, width, time_width))  # fmt: skip
        self.output_blocks = nn.ModuleList()
        for level in range(deepest, -1, -1):
            for block in range(config.blocks[level] + 1):
                ends = [Up(config.widths[level])] if level and block == config.blocks[level] else []
                self.output_blocks.append(
                    stage(level, width + kept.pop(), config.swin[level] and block == 0, *ends))
                width = config.widths[level]
        self.out = nn.Sequential(Norm(width), nn.SiLU(), conv(width, config.latent_channels))

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        """The predicted latent [B, C, h, w].

        Args:
            x: state / sqrt(kappa^2 eta_t + 1), [B, C, h, w]; both sides are multiples of `multiple`.
            timesteps: index t of the step, 0 .. T - 1, [B].
            lq: the low-quality picture in -1..1, [B, lq_channels, h lq_scale, w lq_scale]; for inpainting black in
                the hole, with a fourth channel that is 1 there and -1 elsewhere.

        Raises ValueError where the sides are not such multiples.
        """
        if any(side % self.multiple for side in x.shape[-2:]):
            raise ValueError(f"the latent is {x.shape[-1]}x{x.shape[-2]}; this network takes multiples of "
                             f"{self.multiple}")
        dtype = self.out[2].weight.dtype
        time = self.time_embed(time_embedding(timesteps, self.config.channels).to(dtype))
        h = torch.cat([x.to(dtype), self.feature_extractor(lq.to(dtype))], dim=1)
        kept = []
        for stage in self.input_blocks:
            h = stage(h, time)
            kept.append(h)
        h = self.middle_block(h, time)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, kept.pop()], dim=1), time)
        return self.out(h).to(x.dtype)
