"""Temporal noise fusion as a change of the denoised clip, which serves any model of videos, and its file.

A network D denoises x. Its residual path is (x - D) / sigma, the shortcut to the still clip z_ref (x - z_ref) / sigma:
noise on a variance-exploding path, a velocity on a flow. TRIP's fusion (`models.trip.TNF`) joins both, and
D' = x - sigma TNF.
"""

import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import pad

from .checkpoints import filled
from .shapes import shape_of
from .trip import HEADS, TNF

FORMAT, VERSION = "trip_tnf", "2"
PARAMETRISATIONS = ("noise", "velocity")


class TemporalFusion(nn.Module):
    """A TNF and what it was made for.

    Args:
        tnf: the fusion, in float32.
        parametrisation: "noise" of a variance-exploding path (eps, v, EDM), or "velocity" of a flow.
        base: for people: the model that it was trained on.
    """

    def __init__(self, tnf: TNF, parametrisation: str, base: str = ""):
        super().__init__()
        self.tnf, self.parametrisation, self.base = tnf, parametrisation, base

    def forward(self, denoised, reference, x, sigma):
        """D' [B, N, C, h, w], float32, of any h and w.

        Args:
            denoised, x: clips [B, N, C, h, w] in the scale in which the model samples.
            reference: the still clip, [1 or B, 1 or N, C, h, w].
            sigma: noise levels [B, 1 or N] of the path, as the host has them. At 0 there is no noise to fuse.
        """
        sigma, x, denoised = sigma.float(), x.float(), denoised.float()
        level = sigma[..., None, None, None]
        # a frame without noise would else make the others NaN, which attend to it
        divided = torch.where(sigma > 0, sigma, _or_one(sigma.amax(1, keepdim=True)))
        paths = ((x - clean.float()) / divided[..., None, None, None] for clean in (denoised, reference))
        fused = self.tnf(*(self._whole_patches(path) for path in paths), divided).transpose(1, 2)
        height, width = x.shape[-2:]
        return torch.where(level > 0, x - level * fused[..., :height, :width], denoised)

    def _whole_patches(self, clips):
        """As [B, C, N, h, w], whose last row and column are repeated until patches fit."""
        clips, patch = clips.transpose(1, 2), self.tnf.patch
        bottom, right = (-side % patch for side in clips.shape[-2:])
        return pad(clips.flatten(1, 2), (0, right, 0, bottom), mode="replicate").unflatten(1, clips.shape[1:3])

    def about(self):
        """What the metadata of its file says, {name: text}."""
        dim, frames = self.tnf.frame.shape[1:]
        sizes = {"channels": self.tnf.channels, "patch": self.tnf.patch, "dim": dim, "heads": HEADS, "blocks": 1,
                 "max_frames": frames}  # fmt: skip
        return {"format": FORMAT, "version": VERSION, **{name: str(size) for name, size in sizes.items()},
                "parametrisation": self.parametrisation, "base": self.base}  # fmt: skip


def _or_one(level):
    return torch.where(level > 0, level, 1)


def write(path, fusion):
    """Write a TemporalFusion as a safetensors file, whole or not at all. Raises FileExistsError if there is one."""
    path = Path(path)
    partial = path.with_suffix(".partial")
    if path.exists():
        raise FileExistsError(f"{path} exists")
    try:
        weights = {name: value.detach().cpu().contiguous() for name, value in fusion.state_dict().items()}
        save_file(weights, partial, fusion.about())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path):
    """TemporalFusion of a file that `write` wrote. Raises ValueError naming the file and what is wrong with it."""
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT or about.get("version") != VERSION:
                raise ValueError(f"its metadata has format {about.get('format')!r} and version "
                                 f"{about.get('version')!r}, not {FORMAT!r} and {VERSION!r}")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return _made(about, weights)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is no safetensors file, or not all of one: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is no file of a temporal noise fusion: {error}") from error


def _made(about, weights):
    """TemporalFusion of metadata and weights. The sizes are those of the weights, and the metadata must agree."""
    dim, values = shape_of(weights, "tnf.from_res.weight", 2)
    frames, side = shape_of(weights, "tnf.frame", 3)[-1], shape_of(weights, "tnf.place", 4)[-1]
    try:
        channels = int(about["channels"])
        patch = math.isqrt(values // channels)
    except (KeyError, ValueError, ZeroDivisionError):
        raise ValueError("its metadata tells no number of channels") from None
    parametrisation = about.get("parametrisation")
    if parametrisation not in PARAMETRISATIONS or dim % HEADS:
        raise ValueError(f"it has parametrisation {parametrisation!r} and dim {dim}, where one of "
                         f"{', '.join(PARAMETRISATIONS)} and a multiple of {HEADS} are read")
    fusion = filled(lambda: TemporalFusion(TNF(channels, patch, dim, frames, side), parametrisation,
                                           about.get("base", "")), weights, torch.float32)  # fmt: skip
    wrong = [name for name, value in fusion.about().items() if about.get(name, "") != value]
    if wrong:
        raise ValueError(f"its metadata and its weights differ in {', '.join(wrong)}")
    if not all(value.isfinite().all() for value in fusion.state_dict().values()):
        raise ValueError("it has weights that are not finite")
    if not all(0 <= share <= 1 for share in fusion.tnf.share):
        raise ValueError(f"its shares of the picture are {fusion.tnf.share.tolist()}, where 0 to 1 are read")
    return fusion
