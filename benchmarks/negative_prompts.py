"""Negative prompts at CFG 1 on the few-step miniature: does what they name go away, and does the rest stay right?

    python -m trajectory.benchmarks.negative_prompts --out sheet.png

256 captions leave one attribute open (the ground, the light or the colour of the first objects). The negative prompt
names what the base model shows there, so the base shows it in every picture; counted are the pictures that still do.
"Right" is the share of the attributes stated by the captions that the checker sees.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from ..training.landscapes.checker import compare, read, stated_by
from ..training.landscapes.grammar import caption, parse
from ..training.landscapes.scene import held_out_scenes
from .painting import Painter, contact_sheet

# What a negative prompt calls each light and ground: the grammar's own words.
WORDS = {
    "black": "black night", "night": "starry blue night", "dusk": "orange sunset", "dawn": "pink dawn",
    "day": "blue day", "noon": "bright white noon", "hills": "green hills", "snow": "snow", "sea": "blue sea",
    "desert": "sandy desert",
}
OPEN = ("ground", "light", "colour")


def open_caption(scene, attribute: str, rng: np.random.Generator) -> str:
    """A caption of `scene` that states everything but `attribute`."""
    while True:
        text = caption(scene, rng, keep=0.8)
        stated, group = parse(text), parse(text)["groups"][0]
        if (attribute not in stated and attribute not in group) and ("kind" in group):
            others = {"light", "ground"} - {attribute}
            if others <= set(stated) and (attribute == "colour" or "colour" in group):
                return text


def shown(seen: dict, attribute: str, kind: str):
    """What a picture shows of the open attribute, as a word of a negative prompt; None without the objects."""
    if attribute != "colour":
        return WORDS[seen[attribute]]
    colours = [g["colour"] for g in seen["groups"] if g["kind"] == kind]
    return f"{colours[0]} {kind}" if colours else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=256, help="captions")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cfg", type=float, default=2.0, help="of the CFG row")
    parser.add_argument("--nasa", type=float, nargs="+", default=[0.5], help="values of scale")
    parser.add_argument("--nag", type=float, nargs="+", default=[2.0], help="values of scale in mode nag")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write a contact sheet to this file: 16 pictures of each method")
    args = parser.parse_args()

    painter = Painter("landscapes (few-step)")
    scenes = [replace(s, groups=s.groups[:1]) for s in held_out_scenes(args.number)]
    attributes = [OPEN[k % len(OPEN)] for k in range(args.number)]
    captions = [open_caption(s, attributes[k], np.random.default_rng((11, k))) for k, s in enumerate(scenes)]
    kinds = [s.groups[0].kind for s in scenes]

    def paint(**options):
        return painter.paint(captions, steps=args.steps, seed=args.seed, **{"cfg": 1.0, **options})

    def words(pictures):
        return [shown(seen, *rest) for seen, *rest in zip(read(pictures), attributes, kinds, strict=True)]

    def steered(**inputs):
        """Pictures with the NASA node: one patched model for each negative prompt."""
        groups = defaultdict(list)
        for k, word in enumerate(negatives):
            groups[word].append(k)
        made = torch.empty_like(base)
        for word, indices in groups.items():
            model = painter.node(
                "TrajectoryNASA", model=painter.model, negative=painter.conditioning([word]), **inputs)
            made[indices] = painter.paint(
                [captions[k] for k in indices], steps=args.steps, cfg=1.0, model=model, indices=indices, seed=args.seed)
        return made

    with torch.inference_mode():
        base = paint()
        negatives = [word or "" for word in words(base)]
        rows = {"base": base, f"CFG {args.cfg}": paint(cfg=args.cfg, negatives=negatives)}
        rows |= {f"NASA {scale}": steered(mode="nasa", scale=scale) for scale in args.nasa}
        rows |= {f"nag {scale}": steered(mode="nag", scale=scale) for scale in args.nag}
    cases = [k for k, word in enumerate(negatives) if word]
    print(f"{len(cases)} captions, {args.steps} steps; the negative prompt names what the base shows")
    print(f"{'':<12}{'still shown, %':>16}{'stated attributes right, %':>28}")
    for name, made in rows.items():
        now = words(made)
        still = sum(now[k] == negatives[k] for k in cases) / len(cases)
        marks = [right for seen, text in zip(read(made), captions, strict=True)
                 for _, right in compare(seen, stated_by(text))]
        print(f"{name:<12}{100 * still:>16.1f}{100 * sum(marks) / len(marks):>28.1f}")
    if args.out:
        contact_sheet(torch.cat([made[:16] for made in rows.values()])).save(args.out)


if __name__ == "__main__":
    main()
