"""Refusion's network (Luo et al. 2023, arXiv 2304.08291): NAFNet, a U-Net without activations, told the time.

It reads cat(x - mu, mu) of the state x and the degraded picture mu and predicts the noise in x (the one for denoising
reads x alone). Keys are those of the published files (github.com/Algolzw/image-restoration-sde).
"""

import math

import torch
from torch import nn

from .checkpoints import filled
from .conditional_unet import ChannelNorm, Sinusoids


class Gate(nn.Module):
    """One half of the channels times the other."""

    def forward(self, x):
        first, second = x.chunk(2, dim=1)
        return first * second


class NAFBlock(nn.Module):
    """A gated depthwise convolution with channel attention, then a gated pixelwise one."""

    def __init__(self, channels, embedding):
        super().__init__()
        self.mlp = nn.Sequential(Gate(), nn.Linear(embedding // 2, 4 * channels))
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.sg = Gate()
        self.beta, self.gamma = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))

    def forward(self, x, time):
        shift, scale, shift_after, scale_after = self.mlp(time)[..., None, None].chunk(4, dim=1)
        hidden = self.sg(self.conv2(self.conv1(self.norm1(x) * (scale + 1) + shift)))
        x = x + self.beta * self.conv3(hidden * self.sca(hidden))
        hidden = self.conv4(self.norm2(x) * (scale_after + 1) + shift_after)
        return x + self.gamma * self.conv5(self.sg(hidden))


class ConditionalNAFNet(nn.Module):
    """The noise in a state.

    Args:
        in_channels: channels that it reads: twice those of a picture, or as many for the denoising network.
        out_channels: channels of a picture, or of latents.
        width: at full resolution; it doubles at each level.
        encoders, middle, decoders: numbers of blocks at the levels down, at the bottom, at the levels up.
        intro_skip: adds the first layer's output before the last layer, as the network for latents does.
    """

    def __init__(self, in_channels=6, out_channels=3, width=64, encoders=(1, 1, 1, 28), middle=1,
                 decoders=(1, 1, 1, 1), intro_skip=False):  # fmt: skip
        super().__init__()
        self.multiple, self.intro_skip = 2 ** len(encoders), intro_skip
        embedding = 4 * width
        self.time_mlp = nn.Sequential(Sinusoids(width), nn.Linear(width, 2 * embedding), Gate(),
                                      nn.Linear(embedding, embedding))  # fmt: skip
        self.intro = nn.Conv2d(in_channels, width, 3, padding=1)
        self.ending = nn.Conv2d(width, out_channels, 3, padding=1)
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()

        def blocks(number):
            return nn.ModuleList(NAFBlock(width, embedding) for _ in range(number))

        for number in encoders:
            self.encoders.append(blocks(number))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, stride=2))
            width *= 2
        self.middle_blks = blocks(middle)
        for number in decoders:
            self.ups.append(nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)))
            width //= 2
            self.decoders.append(blocks(number))

    def forward(self, x, time):
        """Noise [B, out_channels, H, W] in x [B, in_channels, H, W], of any size, at the times [B] from 1 on.

        Both are of the dtype of x; what lies between is of the weights'.
        """
        height, width = x.shape[-2:]
        given, dtype = x.dtype, self.intro.weight.dtype
        below, right = (math.ceil(side / self.multiple) * self.multiple - side for side in (height, width))
        x = first = self.intro(nn.functional.pad(x.to(dtype), (0, right, 0, below)))
        embedding = self.time_mlp[1:](self.time_mlp[0](time).to(dtype))
        passed = []
        for blocks, down in zip(self.encoders, self.downs, strict=True):
            for block in blocks:
                x = block(x, embedding)
            passed.append(x)
            x = down(x)
        for block in self.middle_blks:
            x = block(x, embedding)
        for blocks, up in zip(self.decoders, self.ups, strict=True):
            x = up(x) + passed.pop()
            for block in blocks:
                x = block(x, embedding)
        return self.ending(x + first if self.intro_skip else x)[..., :height, :width].to(given)


def read(weights, dtype=None):
    """ConditionalNAFNet of a published {key: tensor}, whose shapes say its sizes.

    The intro skip has no weights; the published network with it is the one for latents of 8 channels.
    Raises ValueError for weights of another network.
    """
    first, last = (weights.get(key, torch.empty(0)) for key in ("intro.weight", "ending.weight"))
    down, up = (_blocks(weights, part) for part in ("encoders", "decoders"))
    if {first.ndim, last.ndim} != {4} or not down or len(down) != len(up):
        raise ValueError("these are not the weights of a ConditionalNAFNet: it has intro, as many encoders as "
                         "decoders, and ending")
    sizes = {
        "in_channels": first.shape[1], "out_channels": len(last), "width": len(first), "encoders": down,
        "middle": _count(weights, "middle_blks"), "decoders": up, "intro_skip": len(last) == 8,
    }  # fmt: skip
    return filled(lambda: ConditionalNAFNet(**sizes), weights, dtype)


def _blocks(weights, part):
    return [_count(weights, f"{part}.{level}") for level in range(_count(weights, part))]


def _count(weights, name):
    """How many children the module `name` has."""
    return len({key.removeprefix(f"{name}.").partition(".")[0] for key in weights if key.startswith(f"{name}.")})
