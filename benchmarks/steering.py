"""FlowChef on the flow miniature: inpainting, 4x super-resolution and deblurring of held-out scenes.

    python -m trajectory.benchmarks.steering --out sheet.png

Inpainting: a painted scene, a mask of exactly the pixels of its first group of objects, and a caption that gives them
another colour. Counted is what the checker sees of that group ("hole"), how often all of it is right ("whole"), and
how often the caption is; the PSNR is that of what was not masked. Beside FlowChef stand the host's noise mask, the same
with all latent cells white that are partly hidden, and a sampler that steers by the same residual but through a
gradient of the network (as DPS does), in as many steps.

Super-resolution and deblurring: the captions are those of the painted scenes, of which a picture of a fourth of the
size, or a blurred one, is known. The PSNR is that of the picture's own measurement, and of the picture itself.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from ..operators.base import gradients
from ..operators.masks import Mask
from ..operators.measurement import Measurement
from ..training.landscapes.checker import compare, read, stated_by
from ..training.landscapes.grammar import caption
from ..training.landscapes.painter import group_centre, paint
from ..training.landscapes.scene import COLOURS, held_out_scenes
from .painting import BATCH, Painter, contact_sheet

SIZE = 128
TASKS = ("inpaint", "4x", "deblur")
INPAINTING = {"strength": 0.1, "schedule": "rise to 1"}
RESTORATION = {"strength": 1.0, "start": 0.5}
"""FlowChef's settings; as long as the layout is undecided, a decoded picture tells little."""
REACH = 0.18  # of a group to each side of its centre, in widths of the picture


def psnr(difference: torch.Tensor, counted=1.0) -> float:
    """Mean over the items of the PSNR of differences [B, ...] where `counted` is 1."""
    counted = torch.ones_like(difference) * counted
    error = (difference.square() * counted).flatten(1).sum(1) / counted.flatten(1).sum(1)
    return float((-10 * error.log10()).mean())


class Scenes:
    """Held-out scenes: `pictures` [B, H, W, 3] and `captions` as painted; `holes` [B, 1, H, W] of their first groups,
    `repainted` captions that give these another colour, and `wanted`, these groups."""

    def __init__(self, number: int):
        self.pictures, self.captions, self.holes, self.repainted, self.wanted = [], [], [], [], []
        for k, scene in enumerate(held_out_scenes(number)):
            rng, group = np.random.default_rng((5, k)), scene.groups[0]
            others = [colour for colour in COLOURS if colour != group.colour]
            self.wanted.append(replace(group, colour=others[int(rng.integers(len(others)))]))
            self.repainted.append(caption(replace(scene, groups=(self.wanted[-1], *scene.groups[1:])), rng, keep=1.0))
            self.captions.append(caption(scene, rng, keep=1.0))
            whole, bare = (
                paint(s, SIZE, np.random.default_rng((6, k))) for s in (scene, replace(scene, groups=scene.groups[1:])))
            hole, (x, _) = np.abs(whole - bare).max(-1) > 0.02, group_centre(group)
            hole[:, np.abs((np.arange(SIZE) + 0.5) / SIZE - x) > REACH] = False  # the other group is painted anew, too
            self.pictures.append(whole)
            self.holes.append(hole)
        self.pictures = torch.from_numpy(np.stack(self.pictures))
        self.holes = torch.from_numpy(np.stack(self.holes)).float()[:, None]


def backpropagating(measurement, scale, strength):
    """SAMPLER that moves the state along the gradient of |A D(x) - y|^2 through the network, then steps as Euler does.

    The move is the one at which the residual would vanish if it went on as it begins, times `strength`, and at most as
    long as the picture. measurement: of latents in the VAE's scale, `scale` leads there.
    """
    import comfy.samplers

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        each = torch.ones(len(x))
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            with gradients():
                leaf = x.detach().clone().requires_grad_()
                denoised = model(leaf, each * sigma, **extra_args)
                residual = measurement.residual(scale(denoised))
                (gradient,) = torch.autograd.grad(residual.square().sum() / 2, leaf)
            denoised = denoised.detach()
            squares = [part.detach().square().flatten(1).sum(1).view(-1, 1, 1, 1)
                       for part in (residual, gradient, denoised)]
            vanishing, longest = squares[0] / squares[1], (squares[2] / squares[1]).sqrt()
            x = x + (x - denoised) / sigma * (after - sigma) - strength * vanishing.minimum(longest) * gradient
        return x

    return comfy.samplers.KSAMPLER(sample)


class Bench:
    def __init__(self, scenes: Scenes, steps: int, cfg: float, seed: int):
        self.painter, self.scenes = Painter("landscapes (flow)"), scenes
        self.options = {"size": SIZE, "steps": steps, "cfg": cfg, "seed": seed}
        self.latents = self.painter.vae.encode(scenes.pictures)
        self.scale = self.painter.model.model.process_latent_out

    def paint(self, captions, sampler_of, starts=None, masks=None):
        """(pictures, seconds); sampler_of(slice) is the SAMPLER of a batch."""
        made, begin = [], time.perf_counter()
        for part in torch.arange(len(captions)).split(BATCH):
            k = slice(int(part[0]), int(part[-1]) + 1)
            own = {"starts": None if starts is None else starts[k], "masks": None if masks is None else masks[k]}
            made.append(self.painter.paint(
                captions[k], sampler=sampler_of(k), indices=part.tolist(), **own, **self.options))
        return torch.cat(made), time.perf_counter() - begin

    def inpainted(self, baseline: float):
        """{method: (pictures, seconds)}"""
        scenes, node = self.scenes, self.painter.node
        known = (F.adaptive_avg_pool2d(1 - scenes.holes, self.latents.shape[-2:]) > 0.999).float()

        def masked(k):
            operator = Mask(1 - known[k][:, 0])
            return Measurement(operator, operator.A(self.latents[k]), 0.0, tuple(self.latents[k].shape))

        return {
            "noise mask": self.paint(scenes.repainted, lambda k: "euler", self.latents, scenes.holes),
            "of whole cells": self.paint(scenes.repainted, lambda k: "euler", self.latents, 1 - known),
            "FlowChef": self.paint(
                scenes.repainted,
                lambda k: node("TrajectoryFlowChefSampler", mask=scenes.holes[k][:, 0], **INPAINTING), self.latents),
            "backpropagation": self.paint(
                scenes.repainted, lambda k: backpropagating(masked(k), self.scale, baseline)),
        }

    def restored(self, operator, baseline: float):
        """({method: (pictures, seconds)}, measurement of all pictures)"""
        scenes, node = self.scenes, self.painter.node
        through = node("TrajectoryOperatorThroughVAE", operator=operator, vae=self.painter.vae)

        def measured(k, operator=through):
            return node("TrajectoryApplyOperator", operator=operator, image=scenes.pictures[k])

        return {
            "caption alone": self.paint(scenes.captions, lambda k: "euler"),
            "FlowChef": self.paint(scenes.captions, lambda k: node(
                "TrajectoryFlowChefSampler", measurement=measured(k), **RESTORATION)),
            "backpropagation": self.paint(
                scenes.captions, lambda k: backpropagating(measured(k), self.scale, baseline)),
        }, measured(slice(None), operator)


def report_inpainting(scenes: Scenes, results: dict) -> None:
    print(f"\n{'inpainting':<18}{'hole %':>9}{'whole %':>9}{'caption %':>11}{'known dB':>10}{'seconds':>9}")
    for name, (pictures, seconds) in results.items():
        marks, captions = [], []
        for seen, wanted, text in zip(read(pictures), scenes.wanted, scenes.repainted, strict=True):
            shown = next((g for g in seen["groups"] if g["kind"] == wanted.kind), {})
            marks.append([shown.get(a) == getattr(wanted, a) for a in ("kind", "count", "colour", "place")])
            captions.append(all(right for _, right in compare(seen, stated_by(text))))
        known = psnr(pictures - scenes.pictures, 1 - scenes.holes.movedim(1, -1))
        print(f"{name:<18}{100 * np.mean(marks):>9.1f}{100 * np.mean(np.all(marks, axis=1)):>9.1f}"
              f"{100 * np.mean(captions):>11.1f}{known:>10.1f}{seconds:>9.1f}")


def report_restoration(title: str, scenes: Scenes, results: dict, measurement) -> None:
    print(f"\n{title:<18}{'attributes %':>13}{'caption %':>11}{'measured dB':>13}{'picture dB':>12}{'seconds':>9}")
    for name, (pictures, seconds) in results.items():
        rows = [compare(seen, stated_by(text)) for seen, text in zip(read(pictures), scenes.captions, strict=True)]
        attributes = np.mean([right for row in rows for _, right in row])
        captions = np.mean([all(right for _, right in row) for row in rows])
        measured = psnr(measurement.residual(pictures.movedim(-1, 1)))
        print(f"{name:<18}{100 * attributes:>13.1f}{100 * captions:>11.1f}{measured:>13.1f}"
              f"{psnr(pictures - scenes.pictures):>12.1f}{seconds:>9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=64, help="scenes")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--baseline", type=float, default=0.3, help="strength of the backpropagating sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write a contact sheet to this file: 12 scenes, a row for each method")
    args = parser.parse_args()

    scenes = Scenes(args.number)
    rows = [scenes.pictures]
    with torch.no_grad():
        bench = Bench(scenes, args.steps, args.cfg, args.seed)
        node = bench.painter.node
        operators = {
            "4x": node("TrajectoryOperatorDownsample", factor=4), "deblur": node("TrajectoryOperatorBlur", sigma=3.0)}
        for task in args.tasks:
            if task == "inpaint":
                results = bench.inpainted(args.baseline)
                report_inpainting(scenes, results)
            else:
                results, measurement = bench.restored(operators[task], args.baseline)
                report_restoration(task, scenes, results, measurement)
                rows.append(node("TrajectoryApplyOperator", operator=operators[task], image=scenes.pictures)
                            .operator.pinv(measurement.y, measurement.shape).movedim(1, -1))
            rows += [pictures for pictures, _ in results.values()]
    if args.out:
        contact_sheet(torch.cat([pictures[:12] for pictures in rows]), 12).save(args.out)


if __name__ == "__main__":
    main()
