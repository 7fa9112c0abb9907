"""AdcSR: four times larger in one pass of a pruned UNet and half a decoder (Chen et al., CVPR 2025, arXiv:2411.13383).

The UNet of Stable Diffusion 2.1 at 3/4 of its widths, without time, text and cross-attention, reads the picture itself,
2x2 pixels at a place, and hands its features, not latents, to a narrow decoder of the class of Stable Diffusion's.
"""

from itertools import chain, zip_longest

import torch
from torch import nn
from torch.nn import functional

from .checkpoints import filled

SCALE = 4
ALIGN = 16
"""The network's input has sides that are multiples of this: 2 for the pixels at a place, 8 for three halvings."""

HEAD_WIDTH = 48
"""Channels of an attention head in the UNet: 3/4 of the 64 of Stable Diffusion 2.1, whose number of heads is kept. The
weights do not tell it; so a level of w channels has w/48 heads, 5, 10, 20 and 20 in the published network."""

WIDTHS, DECODER_WIDTHS = (240, 480, 960, 960), (256, 256, 128, 64)
"""Channels of the published network: of the UNet from the largest size on, of the decoder from the smallest."""

LEVELS, LAYERS, ATTENDING = 4, 2, 3
"""Sizes in the UNet and in the decoder, residual blocks at each on the way down, and sizes with attention."""

GROUPS = (32, 24, 16, 12, 8, 6, 4, 2, 1)
"""A norm has the first of these numbers of groups that divides its channels."""


def group_norm(channels, epsilon):
    return nn.GroupNorm(next(groups for groups in GROUPS if channels % groups == 0), channels, epsilon)


def activated(norm, x):
    return functional.silu(norm(x), inplace=True)


class Residual(nn.Module):
    """x + two convolutions of it, [B, inner, H, W] -> [B, outer, H, W]."""

    def __init__(self, inner, outer, epsilon=1e-5):
        super().__init__()
        self.norm1, self.conv1 = group_norm(inner, epsilon), nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = group_norm(outer, epsilon), nn.Conv2d(outer, outer, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x):
        changed = self.conv1(activated(self.norm1, x))
        changed = activated(self.norm2, changed)  # by name, so that what came before is freed
        return self.conv2(changed).add_(self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention of tokens [B, N, C]."""

    def __init__(self, channels, heads, bias):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """The first half of a linear map, weighted by GELU of the second."""

    def __init__(self, inner, outer):
        super().__init__()
        self.proj = nn.Linear(inner, 2 * outer)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels):
        super().__init__()
        # the place between held a dropout
        self.net = nn.Sequential(GatedLinear(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward network, of tokens. norm2 and attn2 attended to the text and are gone."""

    def __init__(self, channels, heads):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(channels), Attention(channels, heads, bias=False)
        self.norm3, self.ff = nn.LayerNorm(channels), FeedForward(channels)

    def forward(self, x):
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """x + a transformer block over its places, [B, C, H, W]."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.proj_in = group_norm(channels, 1e-6), nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, channels // HEAD_WIDTH)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x):
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens))
        return x + tokens.transpose(1, 2).unflatten(-1, x.shape[-2:])


class DecoderAttention(Attention):
    """x + the attention of its places with one head, [B, C, H, W]."""

    def __init__(self, channels):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = group_norm(channels, 1e-6)

    def forward(self, x):
        tokens = super().forward(self.group_norm(x).flatten(2).transpose(1, 2))
        return x + tokens.transpose(1, 2).unflatten(-1, x.shape[-2:])


class Halving(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Doubling(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Residual blocks at one size, each with an attention behind it where there are any; then perhaps a new size."""

    def __init__(self, resnets, attentions=(), downsampler=None, upsampler=None):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([downsampler] if downsampler else [])
        self.upsamplers = nn.ModuleList([upsampler] if upsampler else [])

    def layers(self):
        """Lists of modules, in their order: on the way down each list makes a skip, on the way up each takes one."""
        pairs = zip_longest(self.resnets, self.attentions)
        layers = [[module for module in pair if module is not None] for pair in pairs]
        layers[-1] += self.upsamplers
        return layers + [[downsampler] for downsampler in self.downsamplers]


class UNet(nn.Module):
    """[B, 12, H, W] -> features [B, out, H, W]. H and W are multiples of 8.

    widths: channels at the four sizes, multiples of 48.
    """

    def __init__(self, widths, out):
        super().__init__()
        last = LEVELS - 1
        self.conv_in = nn.Conv2d(3 * 2 * 2, widths[0], 3, padding=1)
        before = (widths[0], *widths)
        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            self.down_blocks.append(Stage(
                [Residual(before[level] if layer == 0 else width, width) for layer in range(LAYERS)],
                [Transformer(width) for _ in range(LAYERS)] if level < ATTENDING else [],
                downsampler=Halving(width) if level < last else None))  # fmt: skip
            skips += [width] * (LAYERS + (level < last))
        self.mid_block = Stage([Residual(widths[last], widths[last]) for _ in range(2)], [Transformer(widths[last])])
        self.up_blocks = nn.ModuleList()
        channels = widths[last]
        for level, width in reversed(list(enumerate(widths))):
            resnets = []
            for _ in range(LAYERS + 1):
                resnets.append(Residual(channels + skips.pop(), width))
                channels = width
            self.up_blocks.append(Stage(
                resnets, [Transformer(width) for _ in resnets] if level < ATTENDING else [],
                upsampler=Doubling(width) if level else None))  # fmt: skip
        self.conv_norm_out = group_norm(widths[0], 1e-5)
        self.conv_out = nn.Conv2d(widths[0], out, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        skips = [x]
        for stage in self.down_blocks:
            for layer in stage.layers():
                for module in layer:
                    x = module(x)
                skips.append(x)
        for module in chain(*self.mid_block.layers()):
            x = module(x)
        for stage in self.up_blocks:
            for layer in stage.layers():
                x = torch.cat([x, skips.pop()], dim=1)
                for module in layer:
                    x = module(x)
        return self.conv_out(activated(self.conv_norm_out, x))


class HalfDecoder(nn.Module):
    """Features [B, C, H, W] -> pictures [B, 3, 8H, 8W]: half of a decoder's widths, and none of its first convolution.

    widths: channels at the four sizes, the smallest picture first.
    """

    def __init__(self, widths):
        super().__init__()
        self.mid_block = Stage([Residual(widths[0], widths[0], 1e-6) for _ in range(2)], [DecoderAttention(widths[0])])
        before = (widths[0], *widths)
        self.up_blocks = nn.ModuleList(
            Stage([Residual(before[level] if layer == 0 else width, width, 1e-6) for layer in range(LAYERS + 1)],
                  upsampler=Doubling(width) if level + 1 < LEVELS else None)
            for level, width in enumerate(widths))  # fmt: skip
        self.conv_norm_out = group_norm(widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x):
        for stage in (self.mid_block, *self.up_blocks):
            for module in chain(*stage.layers()):
                x = module(x)
        return self.conv_out(activated(self.conv_norm_out, x))


class AdcSR(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 -> [B, 3, 4H, 4W], near 0..1. H and W are multiples of 16.

    Mean and contrast come out free: `colour_fix.adcsr` sets them as the authors do.
    """

    def __init__(self, widths=WIDTHS, decoder_widths=DECODER_WIDTHS):
        super().__init__()
        self.unet, self.decoder = UNet(widths, decoder_widths[0]), HalfDecoder(decoder_widths)

    @property
    def dtype(self):
        return self.unet.conv_in.weight.dtype

    def forward(self, x):
        x = functional.pixel_unshuffle((2 * x - 1).to(self.dtype), 2)
        return self.decoder(self.unet(x)) / 2 + 0.5


# --- the published files ----------------------------------------------------------------------------------------------

_NET = {
    **{f"body.1.body.{number}.": f"unet.down_blocks.{number}." for number in range(LEVELS)},
    f"body.1.body.{LEVELS}.": "unet.mid_block.",
    **{f"body.1.body.{LEVELS + 1 + number}.": f"unet.up_blocks.{number}." for number in range(LEVELS)},
    "body.1.body.9.": "unet.conv_norm_out.",
    "body.1.body.11.": "unet.conv_out.",
    "body.1.": "unet.",
    "body.2.": "decoder.mid_block.",
}
"""{prefix of keys in the net's file: here}. It holds the parts of its UNet twice, under body.1.body as well."""


def net_weights(weights):
    """{key of AdcSR: tensor} of net_params_200.pkl's state dict: the UNet and the decoder's middle as trained with it.

    Raises ValueError if it is the state dict of something else.
    """
    renamed = {}
    for key, value in weights.items():
        old = next((prefix for prefix in _NET if key.startswith(prefix)), "")
        renamed[_NET.get(old, "") + key.removeprefix(old)] = value
    if "unet.conv_in.weight" not in renamed:
        raise ValueError("it is not AdcSR's net_params file: it holds no body.1.conv_in.weight")
    return renamed


def decoder_weights(weights):
    """{key of AdcSR: tensor} of halfDecoder.ckpt's state dict, without its first convolution and untrained middle.

    Raises ValueError if it is the state dict of something else.
    """
    unused = ("decoder.conv_in.", "decoder.mid_block.")
    kept = {key: value for key, value in weights.items() if key.startswith("decoder.") and not key.startswith(unused)}
    if "decoder.up_blocks.0.resnets.0.conv1.weight" not in kept:
        raise ValueError("it is not AdcSR's halfDecoder file: it holds no decoder.up_blocks.0.resnets.0.conv1.weight")
    return kept


def network(net, decoder, dtype=None):
    """AdcSR with the weights of both files, as `net_weights` and `decoder_weights` hand them out.

    Its widths are read from the shapes. Raises ValueError where keys or shapes are not those of this class.
    """
    weights = {**net, **decoder}
    widths, decoder_widths = ([_outputs(weights, f"{part}.{level}.resnets.0.conv1.weight") for level in range(LEVELS)]
                              for part in ("unet.down_blocks", "decoder.up_blocks"))
    if odd := [width for width in widths if width % HEAD_WIDTH]:
        raise ValueError(f"its UNet has {odd[0]} channels, which are no heads of {HEAD_WIDTH}: it is of another model")
    return filled(lambda: AdcSR(widths, decoder_widths), weights, dtype)


def _outputs(weights, key):
    """Channels that a convolution makes."""
    if key not in weights or weights[key].ndim != 4 or 0 in weights[key].shape:
        raise ValueError(f"its weights are of another model: {key} is missing or no convolution")
    return len(weights[key])
