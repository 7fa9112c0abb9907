"""Losses on pictures whose gradient steers a sampler."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .base import constant, gradients, working
from .measurement import rms

PALETTE_SOFTNESS = 0.02
"""Squared distance over which two colours of a palette share a pixel."""


def _unchanged(x):
    return x


@dataclass(frozen=True)
class Loss:
    """A function of pixels [B, 3, H, W] in 0..1 with one value for each picture, [B]; smaller is better."""

    function: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, pixels):
        return self.function(pixels)

    def direction(self, x, decode=_unchanged):
        """What to subtract from x [B, ...] so that the loss of decode(x) shrinks: the gradient with the RMS of x.

        Items do not touch; where an item's gradient is zero, so is its direction.
        """
        with gradients():
            leaf = working(x.detach()).clone().requires_grad_()
            gradient, = torch.autograd.grad(self(decode(leaf)).sum(), leaf)
        tiny = torch.finfo(gradient.dtype).tiny
        gradient = gradient / gradient.abs().flatten(1).amax(1).clamp_min(tiny).view(rms(gradient).shape)
        return gradient * rms(working(x)) / rms(gradient).clamp_min(tiny)


# --- colour ----------------------------------------------------------------------------------------------------------


def mean_colour(colour, mask=None):
    """Squared distance of the mean colour from `colour` (three values in 0..1).

    mask: [1, 1, H, W] in 0..1, where the mean is taken (all three losses of colour); None: everywhere. Pictures of
    another size have it resized.
    """
    target, weights = constant(colour), _weights(mask)

    def loss(pixels):
        weight = weights(pixels)
        mean = (pixels * weight).sum((2, 3)) / weight.sum((2, 3))
        return (mean - target.to(mean)).square().sum(1)

    return Loss(loss)


def palette(colours, mask=None):
    """Mean over the pixels of the squared distance from the nearest of `colours` [K, 3], by a soft minimum."""
    targets, weights = constant(colours), _weights(mask)

    def loss(pixels):
        weight = weights(pixels)
        distance = torch.stack([(pixels - colour.to(pixels).view(1, 3, 1, 1)).square().sum(1) for colour in targets])
        nearest = -PALETTE_SOFTNESS * torch.logsumexp(-distance / PALETTE_SOFTNESS, 0)
        return (nearest * weight[:, 0]).sum((1, 2)) / weight.sum((1, 2, 3))

    return Loss(loss)


# Half of the 26 directions from the middle of a cube to its faces, edges and corners: the other half mirrors them.
_DIRECTIONS = constant(F.normalize(torch.tensor(
    [way for way in itertools.product((-1.0, 0.0, 1.0), repeat=3) if way > (0.0, 0.0, 0.0)]), dim=1))  # fmt: skip


def histogram(pictures, mask=None):
    """Squared sliced Wasserstein distance of the colours from those of `pictures` [N, 3, h, w], taken together.

    Colours are projected on 13 directions, where the distance of two distributions is that of their sorted values.
    (Rabin, Peyre, Delon and Bernot 2011, eq. 4, 10.1007/978-3-642-24785-9_37.)
    """
    reference = _projected(constant(pictures).movedim(1, 0).reshape(1, 3, -1))
    weights = _weights(mask)

    def loss(pixels):
        weight = weights(pixels).flatten()
        found = _projected(pixels.flatten(2)[..., weight >= weight.max() / 2])
        wanted = F.interpolate(reference.to(found), found.shape[-1], mode="linear", align_corners=True)
        return (found - wanted).square().mean((1, 2))

    return Loss(loss)


def _projected(colours):
    """Sorted projections [B, 13, N] of colours [B, 3, N]."""
    return torch.einsum("dc,bcn->bdn", _DIRECTIONS.to(colours), colours).sort(-1).values


def _weights(mask):
    """pixels -> weights [1, 1, H, W] of a mask, or of none."""
    kept = None if mask is None else constant(mask)

    def weights(pixels):
        if kept is None:
            return torch.ones_like(pixels[:1, :1])
        return F.interpolate(kept.to(pixels), pixels.shape[-2:], mode="area")

    return weights


# --- networks of vision ----------------------------------------------------------------------------------------------


def vision_pixels(pixels, size, mean, std):
    """Pixels as a CLIP vision network reads them: the whole picture at size x size, normalised.

    As transformers' CLIPImageProcessor without crop and without the rounding to 256 values, which has no gradient.
    """
    resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (resized - mean) / std


def similarity(embed, pictures):
    """1 - cosine of the embeddings of a picture and of `pictures` (their mean).

    embed: pixels -> [B, D], differentiable.
    """
    target = constant(F.normalize(embed(pictures), dim=1).mean(0, keepdim=True))
    return Loss(lambda pixels: 1 - F.cosine_similarity(embed(pixels), target.to(pixels.device)))


def style(hidden, pictures):
    """Squared distance of the Gram matrices of hidden states from those of `pictures` (their mean), over their square.

    hidden: pixels -> states [B, layers, tokens, channels], differentiable. Each token is normalised first, since a few
    tokens of a transformer are so large that they would be all of the Gram matrix. (Gatys, Ecker and Bethge 2016,
    eq. 3-5, 10.1109/CVPR.2016.265, there with the channels of a convolutional network.)
    """
    target = constant(gram(hidden(pictures)).mean(0, keepdim=True))

    def loss(pixels):
        wanted = target.to(pixels.device)
        distance = (gram(hidden(pixels)) - wanted).square().sum((2, 3)) / wanted.square().sum((2, 3))
        return distance.mean(1)

    return Loss(loss)


def gram(states):
    """Gram matrices [..., D, D] of states [..., tokens, D], each token normalised to mean 0 and variance 1."""
    states = F.layer_norm(states.float(), states.shape[-1:])
    return states.mT @ states / states.shape[-2]


# --- measurements and sums -------------------------------------------------------------------------------------------


def measured(measurement):
    """Mean of |A x - y|^2 over the values of a picture's measurement.

    Raises ValueError for an operator that takes latents or has no gradient.
    """
    operator = measurement.operator
    if operator.space == "latent":
        raise ValueError("measurement is of latents, but a loss sees pixels; measure without Operator Through VAE, and "
                         "connect the VAE to the sampler")
    if operator.gradient == "none":
        raise ValueError(f"measurement is by {type(operator).__name__}, which has no gradient; choose a rounding with "
                         "one")

    def loss(pixels):
        measurement.check(pixels.shape)
        squares = measurement.residual(pixels).abs().square()
        return squares.mean().expand(len(pixels)) if operator.mixes_items else squares.flatten(1).mean(1)

    return Loss(loss)


def weighted_sum(terms):
    """Sum of weight x loss over `terms`, pairs of Loss and float."""
    return Loss(lambda pixels: sum(weight * loss(pixels) for loss, weight in terms))
