"""A network from pictures to pictures as an operator: a learned degradation, a style, an enlargement."""

import torch

from .base import Operator


class FromNetwork(Operator):
    """y = network(x) of pictures [B, C, H, W] in 0..1, item by item; the whole picture at once, without tiles.

    Args:
        network: picture [1, C, H, W] float32 -> picture [1, C', scale H, scale W], on the device of its argument and
            differentiable if steering is to use the gradient.
        scale: how many times larger its pictures are.
        channels: (C, C').
    """

    linear = False

    def __init__(self, network, scale=1, channels=(3, 3)):
        self.network, self.scale, self.channels = network, scale, channels

    def check(self, shape):
        if shape[1] != self.channels[0]:
            raise ValueError(f"the network takes pictures of {self.channels[0]} channels, but there are {shape[1]}; "
                             "connect pictures of that kind, or choose another network")

    def forward(self, x):
        return torch.cat([self.network(picture[None].float()) for picture in x]).to(x.dtype)

    def out_shape(self, shape):
        self.check(shape)
        return torch.Size((shape[0], self.channels[1], round(self.scale * shape[2]), round(self.scale * shape[3])))
