"""CLIP vision networks of the host as differentiable functions of pixels."""

from contextlib import contextmanager

import torch

from ..operators.losses import vision_pixels
from ._gradients import load, with_gradient


def vision_embeds(clip_vision):
    """pixels [B, 3, H, W] in 0..1 -> embeddings [B, D] of a CLIP_VISION, differentiable."""

    def embeds(seen):
        projected = clip_vision.model(pixel_values=seen)[2]
        return projected if projected.ndim == 2 else projected.mean(1)  # SigLIP has one for each token

    return _vision(clip_vision, embeds)


def vision_states(clip_vision, layers):
    """pixels [B, 3, H, W] in 0..1 -> hidden states [B, layers, tokens, D] of a CLIP_VISION, differentiable.

    They raise ValueError where the network lacks one of `layers`, or does not hand out its hidden states.
    """

    def states(seen):
        try:
            every = clip_vision.model(pixel_values=seen, intermediate_output="all")[1]
        except TypeError as error:  # DINO compares the word with a number
            raise ValueError("clip_vision does not hand out its hidden states; choose a CLIP or SigLIP vision model"
                             ) from error  # fmt: skip
        known = every.shape[1]
        if any(not -known <= layer < known for layer in layers):
            raise ValueError(f"layers is {layers}, but clip_vision has {known}; choose from {-known} to {known - 1}")
        return every[:, layers]

    return _vision(clip_vision, states)


@contextmanager
def _inputs_copied(network):
    """Layer norms inside work on copies: the host adds in place to their input, which their gradient needs."""
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda norm, inputs: (inputs[0].clone(), *inputs[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _vision(clip_vision, read):
    size = clip_vision.image_size
    if size < 1:
        raise ValueError("clip_vision reads pictures of any size, which is not supported; choose one with a fixed size")

    def see(pixels):
        load(clip_vision.patcher, 0)
        seen = vision_pixels(pixels.to(clip_vision.load_device), size, clip_vision.image_mean, clip_vision.image_std)
        message = (f"clip_vision ran out of memory in the gradient of {len(pixels)} picture(s); use fewer at a time, "
                   "or a smaller CLIP vision model")
        with _inputs_copied(clip_vision.model):
            return with_gradient(clip_vision.model, read, seen, message).float().to(pixels.device)

    return see
