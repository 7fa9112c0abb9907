"""Vector-quantised autoencoders (VQGAN, Esser et al. 2021, https://arxiv.org/abs/2012.09841) as ResShift uses them.

Published: 4x smaller with 3 channels and 8192 codes, and for faces 8x smaller with 8 channels, 4096 codes and more
blocks the deeper the level. Keys are those of latent-diffusion; every size is read from the weights.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .checkpoints import filled
from .shapes import shape_of

DISTANCES = 2**22
"""How many distances to codes are held at a time: 16 MB."""
UNUSED = ("loss.", "model_ema.")
"""What checkpoints of latent-diffusion hold for training only."""


def norm(channels):
    """Of 32 groups, as published, but of two channels a group at least, if there are two."""
    return nn.GroupNorm(min(32, max(1, channels // 2)), channels, eps=1e-6)


class Block(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, width_in, width):
        super().__init__()
        self.norm1, self.conv1 = norm(width_in), nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2, self.conv2 = norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x):
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Attention of one head among all places, added to x [B, C, H, W]."""

    def __init__(self, width):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).mT[:, None].contiguous() for part in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(seen[:, 0].mT.reshape(x.shape))


class Halving(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x):
        return self.conv(functional.pad(x, (0, 1, 0, 1)))  # as trained: the pixel more is on the right and below


class Doubling(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks at one size, each with an attention if asked for, and then the step to the next size, if there is one."""

    def __init__(self, width_in, width, blocks, attention, downsample=None, upsample=None):
        super().__init__()
        self.block = nn.ModuleList(Block(width if n else width_in, width) for n in range(blocks))
        self.attn = nn.ModuleList(Attention(width) for _ in range(blocks if attention else 0))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x):
        for n, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[n](x)
        change = self.downsample or self.upsample
        return x if change is None else change(x)


class Middle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Block(width, width), Attention(width), Block(width, width)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures [B, C, H, W] -> [B, z, H / f, W / f], f = 2^(levels - 1)."""

    def __init__(self, channels, widths, blocks, attention, z_channels):
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[max(n - 1, 0)], width, blocks[n], n in attention,
                  downsample=Halving(width) if n < last else None)
            for n, width in enumerate(widths))  # fmt: skip
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """[B, z, h, w] -> pictures [B, C, f h, f w]; one block more a level than the encoder."""

    def __init__(self, channels, widths, blocks, attention, z_channels):
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[min(n + 1, len(widths) - 1)], width, blocks[n] + 1, n in attention,
                  upsample=Doubling(width) if n else None)
            for n, width in enumerate(widths))  # fmt: skip
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(h)))


class Codebook(nn.Module):
    """The codes [n, d] that latents are rounded to."""

    def __init__(self, number, dim):
        super().__init__()
        self.embedding = nn.Embedding(number, dim)

    def nearest(self, z):
        """Number of the nearest code at each place of z [B, d, H, W]: int64 [B, H, W].

        In float32 and by differences: half precision confuses codes, and so does a matrix product in TF32.
        """
        codes = self.embedding.weight.float()
        places = z.movedim(1, -1).float()
        rows = max(1, DISTANCES // len(codes))
        found = [torch.cdist(part, codes, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
                 for part in places.flatten(0, -2).split(rows)]  # fmt: skip
        return torch.cat(found).view(places.shape[:-1])

    def forward(self, z):
        """z with the nearest code at each place."""
        return self.embedding(self.nearest(z)).movedim(-1, 1).to(z.dtype)


class VQAutoencoder(nn.Module):
    """Pictures [B, channels, H, W] in -1..1 and latents [B, dim, H / factor, W / factor]; sides: multiples of factor.

    Args:
        widths: channels of each level, the finest first.
        blocks: residual blocks of each level of the encoder.
        attention: levels with attention (the middle always has it).
        z_channels: channels at the end of the encoder.
        dim, codes: size and number of the codes.
        channels: of a picture.
    """

    def __init__(self, widths, blocks, z_channels, dim, codes, attention=(), channels=3):
        super().__init__()
        self.factor = 2 ** (len(widths) - 1)
        self.encoder = Encoder(channels, widths, blocks, attention, z_channels)
        self.decoder = Decoder(channels, widths, blocks, attention, z_channels)
        self.quantize = Codebook(codes, dim)
        self.quant_conv = nn.Conv2d(z_channels, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, z_channels, 1)

    def encode(self, pictures):
        """Latents before they are rounded to codes, which is what diffusion models of this latent space work on.

        Raises ValueError for pictures too small to have any.
        """
        if min(pictures.shape[-2:]) < self.factor:  # a host has cut them to a multiple of it, which then is 0
            raise ValueError(f"the picture has a side of less than {self.factor} pixels, which is one place of a "
                             "latent of this autoencoder; enlarge the picture before")
        return self.quant_conv(self.encoder(pictures))

    def decode(self, latents):
        """Pictures of latents, each place of which is rounded to its nearest code first."""
        return self.decoder(self.post_quant_conv(self.quantize(latents)))


def config_of(weights):
    """Options of VQAutoencoder for weights {key: tensor}. Raises ValueError where these are not of one."""
    try:
        convs = {key: shape_of(weights, f"{key}.weight", 4) for key in (
            "encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "quant_conv", "encoder.down.0.block.0.conv1")}
        codes, dim = shape_of(weights, "quantize.embedding.weight", 2)
        widths, blocks = [], []
        while f"encoder.down.{len(widths)}.block.0.conv1.weight" in weights:
            level = f"encoder.down.{len(widths)}.block"
            widths.append(shape_of(weights, f"{level}.0.conv1.weight", 4)[0])
            blocks.append(1)
            while f"{level}.{blocks[-1]}.conv1.weight" in weights:
                blocks[-1] += 1
    except ValueError as error:
        raise ValueError("these are not the weights of a VQ autoencoder with the keys of latent-diffusion: "
                         f"{error}") from error
    return {
        "widths": widths, "blocks": blocks,
        "attention": [n for n in range(len(widths)) if f"encoder.down.{n}.attn.0.q.weight" in weights],
        "z_channels": convs["encoder.conv_out"][0], "dim": dim, "codes": codes,
        "channels": convs["encoder.conv_in"][1],
    }  # fmt: skip


def load(weights, dtype=None):
    """The VQAutoencoder of weights {key: tensor}, ready to use. Raises ValueError where these are not of one."""
    config = config_of(weights)
    return filled(lambda: VQAutoencoder(**config), weights, dtype, UNUSED)
