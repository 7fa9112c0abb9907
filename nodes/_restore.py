"""What every restoring node does around its network: frames one by one, tiles, colours, alpha, memory, cancelling."""

import logging
import math

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy_api.latest import io
from torch.nn import functional

from ..restoration.colour_fix import METHODS, fix
from ..restoration.tiling import TilePlan
from ._inputs import pixels_of
from ._schema import kw

logger = logging.getLogger("trajectory")

ENOUGH = 1e32
"""Bytes for any network."""
RESOLUTION = 1000
"""Steps of the progress bar for a frame."""


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """ModelPatcher of a network of plain torch layers, which is on its device as a whole or not at all.

    The host leaves layers on the CPU where memory is short, and brings their weights when they compute; only its own
    kinds of layers do that.
    """

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        return super().partially_load(device_to, ENOUGH, force_patch_weights)

    def partially_unload(self, device_to, memory_to_free=0, **_options):
        return 0  # bytes that became free: the host unloads all of it then


def patcher_of(module):
    """ModelPatcher of a network of ours, so that the host loads and offloads it as any model."""
    return WholePatcher(
        module, load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device())


def dtype_of(choice, weight_dtype=torch.float32):
    """The dtype for weights of a choice auto, fp32, fp16 or bf16; auto is fp16 where the device does it well.

    Raises ValueError for other choices.
    """
    if choice == "auto":
        return torch.float16 if comfy.model_management.should_use_fp16() else torch.float32
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if choice not in dtypes:
        raise ValueError(f"dtype is {choice!r}; choose one of auto, {', '.join(dtypes)}")
    return dtypes[choice]


def dtype_input(options=("auto", "fp16", "fp32")):
    return kw(io.Combo.Input, "dtype", options=list(options), default="auto", advanced=True, tooltip=(
        "Precision of the weights. auto: fp16 where the device computes it well, else fp32."))


def color_fix_input(default="none", others=()):
    """The shared choice of a colour fix; `others` {name: what it does} are methods of the node's own."""
    own = "".join(f"{name}: {what} " for name, what in dict(others).items())
    return kw(io.Combo.Input, "color_fix", options=[*others, *METHODS], default=default, tooltip=(
        f"How the result gets the colours of the input, on the whole picture. {own}wavelet: the input's low "
        "frequencies. adain: its mean and contrast in each channel. lab: wavelet, then mean and contrast in CIELAB. "
        "none: as the network paints them."))


def loaded(*patchers, memory=0):
    """Bring networks to their device, with `memory` bytes free for what they compute; that device."""
    comfy.model_management.load_models_gpu(list(patchers), memory_required=memory)
    return patchers[0].load_device


def noise_of(shape, seed):
    """Standard normal noise in float32 on the CPU: the same for each frame of a batch, so that a film does not flicker.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Progress:
    """Share of the work that is done; reporting it is also where a run is cancelled.

    tiles: {(tile, overlap) that the memory did not suffice for: smaller ones}, shared by all parts of a run; None
    where nothing is to be remembered.
    """

    def __init__(self, report, start=0.0, share=1.0, tiles=None):
        self._report, self._start, self._share = report, start, share
        self.tiles = tiles

    def __call__(self, fraction):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._report(self._start + fraction * self._share)

    def part(self, number, count):
        """The progress of the number-th of `count` equal parts."""
        return Progress(self._report, self._start + self._share * number / count, self._share / count, self.tiles)


def enlarged(picture, scale):
    """[B, C, H, W] bicubically at scale times its size, in 0..1."""
    if scale == 1:
        return picture
    return functional.interpolate(picture, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


LOW_PRECISION = "the network's result is not finite: its precision does not suffice; choose dtype fp32 in the loader"


def each_frame(image, scale, restore, color_fix="none", own_fixes=None, not_finite=LOW_PRECISION):
    """IMAGE [B, H, W, C] -> IMAGE [B, scale H, scale W, C], its alpha enlarged if it has one.

    Args:
        restore: (picture [1, 3, H, W] in 0..1, float32 on the CPU, Progress) -> [1, 3, scale H, scale W], called for
            one frame at a time.
        color_fix: of METHODS, against the bicubically enlarged frame, or of own_fixes.
        own_fixes: {name: function(frame, picture)} of the node.
        not_finite: what to tell of a result that is not finite.

    Raises:
        ValueError: `image` is no picture, or it or a result has values that are not finite; color_fix is another.
    """
    own_fixes = own_fixes or {}
    if color_fix not in (*own_fixes, *METHODS):
        raise ValueError(f"color_fix is {color_fix!r}; choose one of {', '.join((*own_fixes, *METHODS))}")
    pixels = pixels_of("image", image).cpu().clamp(0, 1)
    bar = comfy.utils.ProgressBar(RESOLUTION * len(pixels))
    run, frames = Progress(lambda done: bar.update_absolute(int(RESOLUTION * len(pixels) * done)), tiles={}), []
    for number, picture in enumerate(pixels.split(1)):
        whole = run.part(number, len(pixels))
        whole(0.0)
        frame = restore(picture, whole).cpu().float()
        if not frame.isfinite().all():
            raise ValueError(not_finite)
        if color_fix in own_fixes:
            frames.append(own_fixes[color_fix](frame, picture).clamp(0, 1))
        else:
            frames.append(fix(color_fix, frame, enlarged(picture, scale)))
        whole(1.0)
    restored = torch.cat(frames)
    if image.shape[-1] == 4:
        alpha = enlarged(image[..., 3:].movedim(-1, 1).float().cpu().clamp(0, 1), scale)
        restored = torch.cat([restored, alpha], 1)
    return restored.movedim(1, -1).to(comfy.model_management.intermediate_device())


def in_tiles(function, picture, *others, tile, overlap, align=1, scale=1, progress, least=None, grain=None):
    """A picture [1, C, H, W] through function(crop, *crops of others, Progress) in tiles of `tile` pixels (0: whole).

    others: tensors whose sides are those of the picture padded to multiples of align, times any factor (noise), or
    functions of the plan that make them.
    Out of memory, the tile is halved, down to `least` (or align) pixels, and the picture begun again; those for other
    frames of the run begin with the smaller one.
    """
    least, known = least or align, {} if progress.tiles is None else progress.tiles
    while True:
        while (tile, overlap) in known:
            tile, overlap = known[tile, overlap]
        plan = TilePlan(*picture.shape[-2:], tile, overlap, align, scale, grain=grain)
        parts = iter(range(len(plan.boxes)))

        def call(*crops, plan=plan, parts=parts):
            part = progress.part(next(parts), len(plan.boxes))
            part(0.0)
            return function(*crops, part)

        try:
            return plan.run(call, plan.pad(picture), *(other(plan) if callable(other) else other for other in others))
        except comfy.model_management.OOM_EXCEPTION:
            smaller = max(least, math.ceil(min(plan.tile, max(plan.padded)) / 2 / align) * align)
            if smaller >= min(plan.tile, max(plan.padded)):
                raise
            logger.warning("Out of memory with tiles of %d pixels; trying %d", plan.tile, smaller)
            known[tile, overlap] = smaller, min(overlap, smaller // 2)
        comfy.model_management.soft_empty_cache()
