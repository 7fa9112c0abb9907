"""A VAE of the host as a differentiable decoder and an encoder, with the memory that a gradient will need."""

from weakref import WeakKeyDictionary

import torch

from ..operators.base import gradients
from ._gradients import carry_gradients, free_memory, load, with_gradient

PROBE = 8
"""Latent cells at the edge of the picture on which an autoencoder's gradient is tried."""

_cost = WeakKeyDictionary()  # network of an autoencoder -> bytes that its gradient holds for each latent cell


def check_vae(vae):
    """Raise ValueError for none, and for what is no autoencoder of pictures."""
    if vae is None:  # what a checkpoint without one gives
        raise ValueError("vae is none, as a checkpoint without an autoencoder gives; connect Load VAE")
    vae.throw_exception_if_invalid()
    if vae.latent_dim == 1 or vae.output_channels < 3:
        raise ValueError("vae is one for sound; connect the VAE of a model of pictures")


def decoder(vae):
    """decode(latents [B, C, h, w] as `vae` has them) -> pixels [B, 3, H, W], float32 in 0..1, differentiable.

    Latents of a video's autoencoder may have one frame [B, C, 1, h, w]. The gradient passes the clamp to 0..1 as if it
    were not there; otherwise a pixel outside could never come back.

    decode raises ValueError where the weights carry no gradient, where memory does not suffice (before it starts, if
    the host can tell), or where the latents are of another autoencoder or of several frames.
    """
    check_vae(vae)

    def decode(z):
        latents = _latents(vae, z)
        wanted = torch.is_grad_enabled() and z.requires_grad
        _make_room(vae, latents, wanted)
        size = " x ".join(str(n * vae.spacial_compression_decode()) for n in reversed(latents.shape[-2:]))
        message = (f"vae ran out of memory in the gradient of {len(latents)} picture(s) of {size}; use a smaller "
                   "picture, fewer at a time, a TAESD as VAE, or an operator or mask on latents")
        pixels = with_gradient(vae.first_stage_model, lambda z: _pixels(vae, z), latents, message)
        return pixels.to(z.device)

    return decode


def encoder(vae):
    """encode(pixels [B, 3, H, W] in 0..1) -> latents as `vae` has them, float32, without gradient."""
    check_vae(vae)

    def encode(pixels):
        with torch.inference_mode():  # one by one: autoencoders of videos take a batch as frames
            latents = torch.cat([vae.encode(picture.movedim(0, -1)[None]) for picture in pixels.float()])
        return latents.to(pixels.device, torch.float32, copy=True)

    return encode


def _latents(vae, z):
    if z.ndim == 5:
        if z.shape[2] != 1:
            raise ValueError(f"vae gives {z.shape[2]} frames for these latents, and gradients are for single pictures; "
                             "steer a picture, or use an operator or mask on latents")
        z = z[:, :, 0]
    if z.ndim != 4 or z.shape[1] != vae.latent_channels:
        raise ValueError(f"vae is of another model: it reads latents of {vae.latent_channels} channels, but these are "
                         f"{list(z.shape)}; connect the model's own VAE, or its TAESD")
    return z.unsqueeze(2) if vae.latent_dim == 3 else z


def _pixels(vae, z):
    raw = vae.first_stage_model.decode(z.to(vae.device, vae.vae_dtype)).float()
    if raw.ndim == 5:
        raw = raw[:, :, 0]
    raw = raw[:, :3]
    # The host's range is affine and then a clamp, on some hosts in place: the value is its own, the gradient the slope.
    low, high = vae.process_output(torch.tensor([0.0, 0.1])).tolist()
    return vae.process_output(raw.detach().clone()) + (high - low) / 0.1 * (raw - raw.detach())


def _make_room(vae, latents, wanted):
    plain = vae.memory_used_decode(latents.shape, vae.vae_dtype)
    held = _bytes_per_cell(vae) * latents.shape[0] * latents[0, 0].numel() if wanted else 0
    load(vae.patcher, plain + held)
    free = free_memory(vae.patcher)
    if held > free:
        raise ValueError(
            f"vae needs {held / 2**30:.1f} GB for the gradient of {len(latents)} picture(s) of this size, and "
            f"{free / 2**30:.1f} GB are free; use a smaller picture, fewer at a time, a TAESD as VAE, or an operator "
            "or mask on latents")


def _bytes_per_cell(vae):
    """What a gradient through the decoder holds for each latent cell; from two tiny pictures, of which one is tried.

    The host's estimates are of a decoding without gradient, and the same for large and tiny autoencoders. The
    difference of two sizes leaves out what does not grow with the picture, such as weights cast for the call.
    """
    network = vae.first_stage_model
    if network not in _cost:
        load(vae.patcher, 0)
        with gradients():
            carry_gradients(network)
            small, large = (_trial(vae, width) for width in (PROBE, 2 * PROBE))
        _cost[network] = max(0.0, (large - small) / PROBE**2)
    return _cost[network]


def _trial(vae, width):
    """Bytes held for the gradient of one picture; ValueError where it has none."""
    frame = (1,) if vae.latent_dim == 3 else ()
    z = torch.randn((1, vae.latent_channels, *frame, PROBE, width), generator=torch.Generator().manual_seed(0))
    z, sizes = z.to(vae.device).requires_grad_(), {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            pixels = _pixels(vae, z)
        gradient, = torch.autograd.grad(pixels.square().sum(), z)
        trouble = "" if gradient.isfinite().all() and gradient.any() else "its gradient is zero or not finite"
    except (RuntimeError, NotImplementedError, TypeError) as error:
        trouble = f"{type(error).__name__}: {error}"
    if trouble:
        raise ValueError(f"vae carries no gradient ({trouble}); load it unquantised, in bf16 or fp32, or use a TAESD "
                         "as VAE")
    return sum(sizes.values())
