"""Tiny autoencoder for latents of 1/8 the picture's size (Bohan, TAESD): plain 3x3 convolutions, width 64."""

import torch
from torch import nn

_WIDTH = 64


def conv(n_in, n_out, **kwargs):
    return nn.Conv2d(n_in, n_out, 3, padding=1, **kwargs)


class Clamp(nn.Module):
    """Soft limit of latents to -3..3."""

    def forward(self, x):
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions beside a skip connection."""

    def __init__(self, n_in, n_out):
        super().__init__()
        inner = [layer for _ in range(2) for layer in (nn.ReLU(), conv(n_out, n_out))]
        self.conv = nn.Sequential(conv(n_in, n_out), *inner)
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x):
        return torch.relu(self.skip(x) + self.conv(x))


def _blocks():
    return [Block(_WIDTH, _WIDTH) for _ in range(3)]


def _encoder(latent_channels):
    halve = [layer for _ in range(3) for layer in (conv(_WIDTH, _WIDTH, stride=2, bias=False), *_blocks())]
    return nn.Sequential(conv(3, _WIDTH), Block(_WIDTH, _WIDTH), *halve, conv(_WIDTH, latent_channels))


def _decoder(latent_channels):
    double = [layer for _ in range(3)
              for layer in (*_blocks(), nn.Upsample(scale_factor=2), conv(_WIDTH, _WIDTH, bias=False))]
    return nn.Sequential(
        Clamp(), conv(latent_channels, _WIDTH), nn.ReLU(), *double, Block(_WIDTH, _WIDTH), conv(_WIDTH, 3))


class TAESD(nn.Module):
    """encode: [B, 3, H, W] in -1..1 to latents [B, C, H/8, W/8]; decode: the way back."""

    def __init__(self, encoder_path=None, decoder_path=None, latent_channels=4):
        import comfy.utils

        super().__init__()
        self.taesd_encoder = _encoder(latent_channels)
        self.taesd_decoder = _decoder(latent_channels)
        self.vae_scale = nn.Parameter(torch.tensor(1.0))
        self.vae_shift = nn.Parameter(torch.tensor(0.0))
        for part, path in ((self.taesd_encoder, encoder_path), (self.taesd_decoder, decoder_path)):
            if path is not None:
                part.load_state_dict(comfy.utils.load_torch_file(path, safe_load=True))

    def encode(self, x):
        return self.taesd_encoder(x * 0.5 + 0.5) / self.vae_scale + self.vae_shift

    def decode(self, x):
        return self.taesd_decoder((x - self.vae_shift) * self.vae_scale).sub(0.5).mul(2)
