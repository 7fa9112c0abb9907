"""Whether pictures get as dark and as bright as their captions ask: One More Step on the eps miniature.

    python -m trajectory.benchmarks.brightness --out sheet.png

64 captions, half of a black night and half of a white noon. The spread is the mean brightness (luma, 0..255) of the
bright pictures less that of the dark ones; the gap is what the model's spread lacks to that of the data, which are the
same scenes painted and sent through the autoencoder.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from ..training.landscapes.checker import score
from ..training.landscapes.grammar import caption
from ..training.landscapes.scene import held_out_scenes
from .miniature import autoencoded, painted
from .painting import Painter, contact_sheet

LUMA = (0.299, 0.587, 0.114)
MODULE = "landscapes (bundled)"


def brightness(pictures: torch.Tensor) -> torch.Tensor:
    """Mean luma [B] of pictures [B, H, W, 3], in grey levels."""
    return 255 * (pictures @ pictures.new_tensor(LUMA)).mean((1, 2))


def scenes_of(number: int):
    """Half black nights, half white noons, otherwise as the held-out scenes are."""
    orbs = {"black": "moon", "noon": "sun"}
    return [
        replace(scene, light=light, orb=orbs[light] if scene.orb != "none" else "none")
        for scene, light in zip(held_out_scenes(number), ("black", "noon") * (number // 2), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=64, help="captions")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--oms-cfg", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write a contact sheet to this file: 16 dark and bright pictures of each method")
    args = parser.parse_args()

    painter = Painter("landscapes (eps)")
    scenes = scenes_of(args.number)
    captions = [caption(s, np.random.default_rng((9, k)), keep=1.0) for k, s in enumerate(scenes)]
    dark = torch.tensor([s.light == "black" for s in scenes])

    def one_more_step():
        module = painter.node("TrajectoryOMSLoader", file=MODULE)
        empty = {"samples": torch.zeros(1, 4, 16, 16)}
        return torch.cat([
            painter.node("TrajectoryOMSStep", oms_model=module, model=painter.model, latent=empty, seed=args.seed + k,
                         positive=painter.conditioning([text]), oms_cfg=args.oms_cfg)["samples"]
            for k, text in enumerate(captions)
        ])  # fmt: skip

    def low_frequency_seed():
        colours = {"black": "#0a0c14", "noon": "#f4f8fc"}
        seeds = {
            light: painter.node("TrajectoryLowFrequencySeed", vae=painter.vae, colour=colour, width=128, height=128)
            for light, colour in colours.items()
        }
        return torch.cat([seeds[s.light]["samples"] for s in scenes])

    def pictures(starts=None):
        return painter.paint(captions, steps=args.steps, cfg=args.cfg, seed=args.seed, starts=starts)

    with torch.inference_mode():
        rows = {
            "data": autoencoded(painter.vae, painted(scenes, 128)),
            "base model": pictures(),
            "One More Step": pictures(one_more_step()),
            "Low-Frequency Seed": pictures(low_frequency_seed()),
        }
    print(f"{args.number} captions, {args.steps} steps, cfg {args.cfg}, OMS cfg {args.oms_cfg}; grey levels of 255")
    print(f"{'':<20}{'dark':>8}{'bright':>8}{'spread':>8}{'gap closed, %':>15}{'light right, %':>16}")
    spreads = {}
    for name, made in rows.items():
        level = brightness(made)
        spreads[name] = float(level[~dark].mean() - level[dark].mean())
        lacking = spreads["data"] - spreads.get("base model", spreads["data"])
        closed = f"{100 * (1 - (spreads['data'] - spreads[name]) / lacking):.0f}" if lacking else "-"
        light = 100 * score(made, scenes)["light"]
        print(f"{name:<20}{level[dark].mean():>8.1f}{level[~dark].mean():>8.1f}{spreads[name]:>8.1f}{closed:>15}{light:>16.0f}")
    if args.out:
        contact_sheet(torch.cat([made[:16] for made in rows.values()])).save(args.out)


if __name__ == "__main__":
    main()
