"""How well the miniatures show what they should: the checker's score on painted, autoencoded and generated pictures.

    python -m trajectory.benchmarks.miniature --out sheet.png
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from PIL import Image

from ..headless.runtime import embedded
from ..training.landscapes.checker import ATTRIBUTES, score
from ..training.landscapes.grammar import caption
from ..training.landscapes.painter import paint
from ..training.landscapes.scene import held_out_scenes


def painted(scenes, size: int) -> torch.Tensor:
    """The scenes painted: [B, size, size, 3]."""
    return torch.from_numpy(np.stack([paint(s, size, np.random.default_rng((7, k))) for k, s in enumerate(scenes)]))


def autoencoded(vae, pictures: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.decode(vae.encode(part)) for part in pictures.split(32)])


def generated(node_table, captions, size, steps, cfg, seed, batch=16) -> torch.Tensor:
    """A picture for each caption, [B, size, size, 3], by what the nodes of 'Text to image' do.

    The solver stands at its defaults, the schedule is `simple`; picture k starts from the noise of seed + k.
    """
    import comfy.samplers

    model, clip, vae = node_table["TrajectoryLoadMiniature"].execute("landscapes (flow)").args
    solver_node = node_table["TrajectoryAngularSampler"]
    solver = solver_node.execute(**{i.id: i.default for i in solver_node.GET_SCHEMA().inputs}).args[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    pictures = []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        noise = torch.stack([
            torch.randn(16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed + start + k))
            for k in range(len(part))
        ])  # fmt: skip
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning(clip, part), conditioning(clip, [""] * len(part)))
        guider.set_cfg(cfg)
        latents = guider.sample(noise, torch.zeros_like(noise), solver, sigmas, disable_pbar=True, seed=seed)
        pictures.append(vae.decode(latents))
    return torch.cat(pictures)


def conditioning(clip, captions):
    """CONDITIONING of a batch: item k is caption k."""
    encoded = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in captions]
    return [[torch.cat([cond for cond, _ in encoded]), {"pooled_output": torch.cat([pooled for _, pooled in encoded])}]]


def contact_sheet(pictures: torch.Tensor, columns: int = 16) -> Image.Image:
    """Pictures side by side, row by row."""
    rows = [torch.cat(list(row), dim=1) for row in pictures[: len(pictures) // columns * columns].split(columns)]
    return Image.fromarray((torch.cat(rows).clamp(0, 1) * 255).round().byte().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--number", type=int, default=256, help="held-out captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write a contact sheet of the generated pictures to this file")
    args = parser.parse_args()

    scenes = held_out_scenes(args.number)
    captions = [caption(s, np.random.default_rng((3, k))) for k, s in enumerate(scenes)]
    node_table = embedded().node_table
    vae = node_table["TrajectoryLoadMiniature"].execute("landscapes (flow)").args[2]
    with torch.inference_mode():
        pictures = painted(scenes, args.size)
        again = autoencoded(vae, pictures)
        start = time.perf_counter()
        made = generated(node_table, captions, args.size, args.steps, args.cfg, args.seed)
    seconds = time.perf_counter() - start
    table = {
        "painted": score(pictures, scenes), "autoencoded": score(again, scenes), "generated": score(made, captions),
    }

    print(f"{args.number} held-out captions, {args.size}x{args.size}, {args.steps} steps, cfg {args.cfg}")
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
