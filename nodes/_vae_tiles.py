"""A VAE of the host on pictures of any size: in tiles where they are large, without tiles of different brightness.

The host's own tiled VAE normalises each tile by itself. Here every GroupNorm sees the whole picture, see
`restoration.group_norm`.
"""

from fractions import Fraction

import comfy.model_management

from ..restoration.group_norm import run_in_unison
from ..restoration.tiling import TilePlan

HALO = 12
"""Half of the overlap of two tiles, in cells of the latent. A quarter of the overlap does not count: the 6 cells in
which Stable Diffusion's VAE notices most that its tile ends."""


def encoded(vae, picture, tile, progress):
    """Latent [1, C, h, w] of a picture [1, 3, H, W] in 0..1 whose sides the VAE's cells divide.

    In tiles of `tile` pixels where it is larger (0: never), at least 4 HALO cells of them; progress is a
    `_restore.Progress` of the whole.
    """
    cell = vae.spacial_compression_encode()
    if not tile or max(picture.shape[-2:]) <= tile:
        return vae.encode(picture.movedim(1, -1))
    plan = _plan(picture, tile, cell, Fraction(1, cell))
    _load(vae, vae.memory_used_encode, (1, 3, plan.tile, plan.tile))

    def network(crop):
        return vae.first_stage_model.encode(vae.process_input(crop).to(vae.device, vae.vae_dtype)).float()

    return run_in_unison(_half(vae, "encoder"), network, plan, picture, progress).to(vae.output_device)


def decoded(vae, latent, tile, progress):
    """Picture [1, 3, H, W] in 0..1 of a latent [1, C, h, w], in tiles as `encoded`."""
    cell = vae.spacial_compression_decode()
    if not tile or max(latent.shape[-2:]) * cell <= tile:
        return vae.decode(latent)[..., :3].movedim(-1, 1)
    plan = _plan(latent, tile // cell, 1, cell)
    _load(vae, vae.memory_used_decode, (1, latent.shape[1], plan.tile, plan.tile))

    def network(crop):
        return vae.first_stage_model.decode(crop.to(vae.device, vae.vae_dtype)).float()

    pixels = run_in_unison(_half(vae, "decoder"), network, plan, latent, progress)
    return vae.process_output(pixels.to(vae.output_device))[:, :3]


def _plan(x, tile, cell, scale):
    """TilePlan of x, of which `cell` steps are one of the latent."""
    overlap = 2 * HALO * cell
    return TilePlan(*x.shape[-2:], max(tile, 2 * overlap), overlap, cell, scale)


def _load(vae, memory, shape):
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory(shape, vae.vae_dtype))


def _half(vae, name):
    """The part of the network that has the normalisations, where it is called as usual."""
    return getattr(vae.first_stage_model, name, vae.first_stage_model)
