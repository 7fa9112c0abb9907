"""How well the miniatures show what they should: the checker's score on painted, autoencoded and generated pictures.

    python -m trajectory.benchmarks.miniature --out sheet.png
    python -m trajectory.benchmarks.miniature --model "landscapes (eps)" --cfg 3 --steps 50 --sampler euler \\
        --key-steps paper
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from ..training.landscapes.checker import ATTRIBUTES, score
from ..training.landscapes.grammar import caption
from ..training.landscapes.painter import paint
from ..training.landscapes.scene import held_out_scenes
from .painting import Painter, contact_sheet


def painted(scenes, size: int) -> torch.Tensor:
    """The scenes painted: [B, size, size, 3]."""
    return torch.from_numpy(np.stack([paint(s, size, np.random.default_rng((7, k))) for k, s in enumerate(scenes)]))


def autoencoded(vae, pictures: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.decode(vae.encode(part)) for part in pictures.split(32)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="landscapes (flow)", help="a choice of Load Miniature")
    parser.add_argument("--key-steps", help="run the encoder at the key steps of this Faster Diffusion schedule only")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", help="a sampler of the host in place of the Angular Sampler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--number", type=int, default=256, help="held-out captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write a contact sheet of the generated pictures to this file")
    args = parser.parse_args()

    scenes = held_out_scenes(args.number)
    captions = [caption(s, np.random.default_rng((3, k))) for k, s in enumerate(scenes)]
    painter = Painter(args.model)
    model = painter.model
    if args.key_steps:
        model = painter.node("TrajectoryFasterDiffusion", model=model, schedule=args.key_steps)
    with torch.inference_mode():
        pictures = painted(scenes, args.size)
        again = autoencoded(painter.vae, pictures)
        start = time.perf_counter()
        made = painter.paint(
            captions, size=args.size, steps=args.steps, cfg=args.cfg, seed=args.seed, model=model, sampler=args.sampler,
            scheduler=args.scheduler)
    seconds = time.perf_counter() - start
    table = {
        "painted": score(pictures, scenes), "autoencoded": score(again, scenes), "generated": score(made, captions),
    }

    print(f"{args.model}: {args.number} held-out captions, {args.size}x{args.size}, {args.steps} steps, cfg {args.cfg}")
    print(f"{'% right':<12}" + "".join(f"{name:>13}" for name in table))
    for name in (*ATTRIBUTES, "attributes", "captions"):
        cells = "".join(f"{100 * row[name]:>13.1f}" if name in row else f"{'-':>13}" for row in table.values())
        print(f"{name:<12}{cells}")
    error = (again - pictures).square().mean((1, 2, 3))
    print(f"autoencoder: {(-10 * torch.log10(error)).mean():.1f} dB")
    print(f"{1000 * seconds / args.number:.0f} ms per generated picture")
    if args.out:
        contact_sheet(made).save(args.out)


if __name__ == "__main__":
    main()
