"""An operator on pixels, seen by a sampler of latents."""

import torch

from .base import Operator


class ThroughVAE(Operator):
    """A(z) = inner(decode(z)) of latents z [B, C, h, w]. A decoder is not linear, so nor is this.

    Args:
        inner: an operator on pixels.
        decode: latents -> pixels [B, 3, H, W] in 0..1, differentiable if steering is to use the gradient.
        encode: pixels -> latents.
        downscale: pixels at the edge of a latent cell.
        channels: C.
        frames: whether latents have an axis of frames, [B, C, 1, h, w], as an autoencoder of videos has them.

    Raises:
        ValueError: `inner` takes latents already.
    """

    linear = False
    space = "latent"

    def __init__(self, inner, decode, encode, downscale, channels, frames=False):
        if inner.space == "latent":
            raise ValueError("operator takes latents already; connect it to the sampler as it is, without Operator "
                             "Through VAE")
        self.inner, self.decode, self.encode = inner, decode, encode
        self.downscale, self.channels, self.frames = downscale, channels, frames
        self.gradient, self.mixes_items, self.complex = inner.gradient, inner.mixes_items, inner.complex

    def check(self, shape):
        self.inner.check(self.pixels(shape))

    def forward(self, z):
        return self.inner.A(self.decode(z))

    def observe(self, pictures):
        return self.inner.observe(pictures)

    def domain(self, shape):
        """Shape of the latents of pixels of this shape. Raises ValueError where the VAE would crop them."""
        batch, _, height, width = self.inner.domain(shape)
        if height % self.downscale or width % self.downscale:
            fits = " x ".join(str(max(1, n // self.downscale) * self.downscale) for n in (width, height))
            raise ValueError(f"vae takes pictures whose sides are multiples of {self.downscale}, but this one is "
                             f"{width} x {height}; crop or resize it to {fits}")
        frame = (1,) if self.frames else ()
        return torch.Size((batch, self.channels, *frame, height // self.downscale, width // self.downscale))

    def pixels(self, shape):
        """Shape of the pixels of latents of this shape."""
        return torch.Size((shape[0], 3, shape[-2] * self.downscale, shape[-1] * self.downscale))

    def out_shape(self, shape):
        return self.inner.out_shape(self.pixels(shape))

    def pinv(self, y, shape):
        return self.encode(self.inner.pinv(y, self.pixels(shape)))

    def visible(self, y):
        return self.inner.visible(y)

    def preview(self, y):
        return self.inner.preview(y)
