"""IR-SDE's networks (Luo et al. 2023, arXiv 2301.11699): a U-Net of modulated residual blocks and linear attention.

It reads cat(x - mu, mu) of the state x and the degraded picture mu and predicts the noise in x. Keys are those of the
published files (github.com/Algolzw/image-restoration-sde).
"""

import math

import torch
from torch import nn
from torch.nn.functional import silu

from .checkpoints import filled

HEADS, HEAD_CHANNELS = 4, 32
LONGEST_PERIOD = 10000.0


class Sinusoids(nn.Module):
    """Sines and cosines [B, width] of times [B], in float32."""

    def __init__(self, width):
        super().__init__()
        self.half = width // 2

    def forward(self, time):
        places = torch.arange(self.half, device=time.device) / (self.half - 1)
        angles = time.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * places)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class ChannelNorm(nn.Module):
    """Normalisation over the channels of each pixel. In float32: the epsilon is of the size of what a half rounds."""

    def __init__(self, channels):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        wide = x.float()
        variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        return ((wide - mean) * torch.rsqrt(variance + 1e-5)).to(x.dtype) * self.g


class Projection(nn.Module):
    def __init__(self, channels_in, channels):
        super().__init__()
        self.proj = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return self.proj(x)


class ResidualBlock(nn.Module):
    """Two convolutions; the time's embedding scales and shifts what the first one hands over."""

    def __init__(self, channels_in, channels, embedding):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * channels))
        self.block1 = Projection(channels_in, channels)
        self.block2 = Projection(channels, channels)
        alike = channels_in == channels
        self.res_conv = nn.Identity() if alike else nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x, time):
        scale, shift = self.mlp(time)[..., None, None].chunk(2, dim=1)
        hidden = silu(self.block1(x) * (scale + 1) + shift)
        return silu(self.block2(hidden)) + self.res_conv(x)


class LinearAttention(nn.Module):
    """Attention whose queries and keys are normalised apart, so that its cost is linear in the pixels."""

    def __init__(self, channels):
        super().__init__()
        width = HEADS * HEAD_CHANNELS
        self.to_qkv = nn.Conv2d(channels, 3 * width, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(width, channels, 1), ChannelNorm(channels))

    def forward(self, x):
        # weights and their sums are of the size 1 / pixels, which a half cannot hold
        query, key, value = self.to_qkv(x).unflatten(1, (3, HEADS, HEAD_CHANNELS)).flatten(4).float().unbind(1)
        context = key.softmax(dim=-1) @ value.transpose(-1, -2) / key.shape[-1]
        attended = context.transpose(-1, -2) @ query.softmax(dim=-2) * HEAD_CHANNELS**-0.5
        return self.to_out(attended.reshape(len(x), -1, *x.shape[-2:]).to(x.dtype))


class Normed(nn.Module):
    def __init__(self, channels, fn):
        super().__init__()
        self.norm, self.fn = ChannelNorm(channels), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class Attended(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, channels):
        super().__init__()
        self.fn = Normed(channels, LinearAttention(channels))

    def forward(self, x):
        return x + self.fn(x)


class ConditionalUNet(nn.Module):
    """The noise in a state.

    Args:
        in_nc: channels that it reads, twice those of a picture.
        out_nc: channels of a picture.
        nf: width at full resolution; it doubles at each of the `depth` levels, of which the last keeps the resolution.
    """

    def __init__(self, in_nc=6, out_nc=3, nf=64, depth=4):
        super().__init__()
        self.multiple = 2**depth
        embedding = 4 * nf
        self.init_conv = nn.Conv2d(in_nc, nf, 7, padding=3, bias=False)
        self.time_mlp = nn.Sequential(Sinusoids(nf), nn.Linear(nf, embedding), nn.GELU(),
                                      nn.Linear(embedding, embedding))  # fmt: skip
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            narrow, wide = nf * 2**level, nf * 2 ** (level + 1)
            deepest, full_size = level == depth - 1, level == 0
            self.downs.append(nn.ModuleList([
                ResidualBlock(narrow, narrow, embedding), ResidualBlock(narrow, narrow, embedding),
                Attended(narrow),
                nn.Conv2d(narrow, wide, 3, padding=1, bias=False) if deepest else
                nn.Conv2d(narrow, wide, 4, stride=2, padding=1),
            ]))  # fmt: skip
            self.ups.insert(0, nn.ModuleList([
                ResidualBlock(wide + narrow, wide, embedding), ResidualBlock(wide + narrow, wide, embedding),
                Attended(wide),
                nn.Conv2d(wide, narrow, 3, padding=1, bias=False) if full_size else
                nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1)),
            ]))  # fmt: skip
        self.mid_block1 = ResidualBlock(wide, wide, embedding)
        self.mid_attn = Attended(wide)
        self.mid_block2 = ResidualBlock(wide, wide, embedding)
        self.final_res_block = ResidualBlock(2 * nf, nf, embedding)
        self.final_conv = nn.Conv2d(nf, out_nc, 3, padding=1)

    def forward(self, x, time):
        """Noise [B, out_nc, H, W] in x [B, in_nc, H, W], of any size, at the times [B] from 1 on; between is fine.

        Both are of the dtype of x; what lies between is of the weights'.
        """
        height, width = x.shape[-2:]
        given, dtype = x.dtype, self.init_conv.weight.dtype
        x = first = self.init_conv(mirrored(x.to(dtype), self.multiple))
        embedding = self.time_mlp[1:](self.time_mlp[0](time).to(dtype))
        passed = []
        for before, after, attention, down in self.downs:
            passed.append(before(x, embedding))
            passed.append(attention(after(passed[-1], embedding)))
            x = down(passed[-1])
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, embedding)), embedding)
        for before, after, attention, up in self.ups:
            x = before(torch.cat([x, passed.pop()], dim=1), embedding)
            x = up(attention(after(torch.cat([x, passed.pop()], dim=1), embedding)))
        x = self.final_res_block(torch.cat([x, first], dim=1), embedding)
        return self.final_conv(x)[..., :height, :width].to(given)


def mirrored(x, multiple):
    """x [..., H, W] with more on the right and below, mirrored, up to a multiple: also beyond its own size."""
    for axis in (-2, -1):
        last = x.shape[axis] - 1
        period = max(2 * last, 1)
        places = torch.arange(math.ceil(x.shape[axis] / multiple) * multiple, device=x.device) % period
        x = x.index_select(axis, torch.minimum(places, period - places))
    return x


def read(weights, dtype=None):
    """ConditionalUNet of a published {key: tensor}, whose shapes say its sizes.

    Raises ValueError for weights of another network.
    """
    first, last = (weights.get(key, torch.empty(0)) for key in ("init_conv.weight", "final_conv.weight"))
    depth = sum(f"downs.{level}.3.weight" in weights for level in range(len(weights)))
    if {first.ndim, last.ndim} != {4} or not depth:
        raise ValueError("these are not the weights of a ConditionalUNet: it has init_conv, downs and final_conv")
    sizes = {"in_nc": first.shape[1], "out_nc": len(last), "nf": len(first), "depth": depth}
    return filled(lambda: ConditionalUNet(**sizes), weights, dtype)
