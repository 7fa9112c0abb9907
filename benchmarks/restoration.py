"""4x super-resolution of degraded held-out scenes: the bundled restorers beside bicubic and Lanczos enlargement.

    python -m trajectory.benchmarks.restoration --out sheet.png

The scenes are painted at 128x128, degraded to 32x32 by `training.degradation` (blur, resize, noise, JPEG) with seeds
that no training saw, and enlarged. Counted are PSNR and SSIM against the painting, how many of its attributes the
checker reads right, and in how many scenes it reads all of them right. "painting" and "autoencoder" are what it reads
in the undegraded pictures, and what the one-step restorer's autoencoder leaves of them: no restorer on its latents can
have more.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..training.degradation import degrade
from ..training.landscapes.checker import score
from ..training.landscapes.scene import held_out_scenes
from .miniature import autoencoded, painted
from .painting import Painter, contact_sheet, defaults
from .steering import psnr

SIZE, SCALE = 128, 4
FIRST_SEED = 10**9
"""Seeds of the degradations count up from here; the trainers' count up from 0."""


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity [B] of pictures [B, C, H, W] in 0..1 (Wang et al. 2004: a Gaussian window of 11 pixels with
    standard deviation 1.5, k = 0.01 and 0.03), the mean over channels and places."""
    line = torch.exp(-0.5 * ((torch.arange(11.0) - 5) / 1.5) ** 2)
    channels = a.shape[1]
    window = (line[:, None] * line / line.sum() ** 2).expand(channels, 1, 11, 11)

    def mean(x):
        return F.conv2d(x, window, groups=channels)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return (light * (2 * covariance + 9e-4) / (var_a + var_b + 9e-4)).flatten(1).mean(1)


def resized(pictures: torch.Tensor, method) -> torch.Tensor:
    """Pictures [B, H, W, 3] enlarged by Pillow."""
    large = (pictures.shape[2] * SCALE, pictures.shape[1] * SCALE)
    eight_bits = (255 * pictures).round().byte().numpy()
    return torch.from_numpy(np.stack([np.asarray(Image.fromarray(p).resize(large, method)) for p in eight_bits])) / 255


class Restorers:
    """The bundled restorers, by the nodes of a graph."""

    def __init__(self):
        painter = Painter("landscapes (eps)")
        self.nodes, self.vae = painter.nodes, painter.vae
        self.empty = painter.conditioning([""])
        self.resshift = self.node("TrajectoryResShiftLoader")[0]
        self.model, self.patched = self.node("TrajectoryApplyOSEDiff", model=painter.model, vae=painter.vae)

    def node(self, name: str, **inputs) -> tuple:
        node_class = self.nodes[name]
        return node_class.execute(**{**defaults(node_class), **inputs}).args

    def by_resshift(self, pictures, **options):
        return self.node("TrajectoryResShiftUpscale", resshift=self.resshift, image=pictures, seed=0, **options)[0]

    def by_one_step(self, pictures, **options):
        return self.node("TrajectoryOneStepUpscale", model=self.model, vae=self.patched, positive=self.empty,
                         image=pictures, **options)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=64, help="held-out scenes")
    parser.add_argument("--out", help="write the degraded, restored and painted pictures of 16 scenes to this file")
    args = parser.parse_args()

    scenes = held_out_scenes(args.number)
    with torch.inference_mode():
        truth = painted(scenes, SIZE)
        low = degrade(truth.movedim(-1, 1), [FIRST_SEED + k for k in range(len(scenes))]).movedim(1, -1)
        restorers = Restorers()
        methods = {
            "painting": lambda _: truth,
            "autoencoder": lambda _: autoencoded(restorers.vae, truth),
            "bicubic": lambda x: resized(x, Image.Resampling.BICUBIC),
            "Lanczos": lambda x: resized(x, Image.Resampling.LANCZOS),
            "ResShift, 4 steps": restorers.by_resshift,
            "ResShift, eta_noise 0": lambda x: restorers.by_resshift(x, eta_noise=0.0),
            "one step": restorers.by_one_step,
            "one step, wavelet": lambda x: restorers.by_one_step(x, color_fix="wavelet"),
        }
        rows, sheet = {}, [low.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)[:16]]
        for name, restore in methods.items():
            start = time.perf_counter()
            made = restore(low)
            seconds = time.perf_counter() - start
            pair = made.movedim(-1, 1), truth.movedim(-1, 1)
            quality = (psnr(pair[0] - pair[1]), float(ssim(*pair).mean())) if name != "painting" else (np.inf, 1.0)
            seen = score(made, scenes)
            rows[name] = (*quality, 100 * seen["attributes"], 100 * seen["captions"], 1000 * seconds / len(scenes))
            sheet.append(made[:16])
    print(f"{len(scenes)} held-out scenes, {SIZE // SCALE}x{SIZE // SCALE} to {SIZE}x{SIZE}")
    print(f"{'':24}{'PSNR':>8}{'SSIM':>8}{'attributes':>12}{'all right':>11}{'ms a picture':>14}")
    for name, (decibels, similarity, attributes, scenes_right, milliseconds) in rows.items():
        print(f"{name:24}{decibels:8.2f}{similarity:8.3f}{attributes:11.1f}%{scenes_right:10.1f}%{milliseconds:14.0f}")
    if args.out:
        contact_sheet(torch.cat([*sheet[:1], *sheet[3:], truth[:16]]), len(sheet[0])).save(args.out)


if __name__ == "__main__":
    main()
