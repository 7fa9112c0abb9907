"""SuperDiff on a miniature: pictures that show two captions (AND), and pictures that show one of two (OR).

    python -m trajectory.benchmarks.composition --out sheet.png

AND: held-out scenes in two captions that can both be true. 'setting': both name the objects, one the light and one the
ground; for the flow miniature, to which objects that are not mentioned are not there. 'objects': one names light and
sky with the first group of objects, the other the ground with the second; for the miniature to which they are open.
Counted are the pictures in which the checker finds all that both captions state, beside the host's Conditioning
(Combine), which averages the predictions, and Conditioning (Average), which averages the texts, from the same noise in
as many steps. 'SuperDiff average' is the SuperDiff Sampler without AND: what its fresh noise alone is worth.

OR: two scenes that differ in light and ground, each in one whole caption; counted are the pictures that show one
caption and not the other, and how the two share them, with and without a bias.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

from ..training.landscapes.checker import compare, read, stated_by
from ..training.landscapes.grammar import caption
from ..training.landscapes.scene import Scene, held_out_scenes
from .painting import BATCH, Painter, contact_sheet

LIGHTS = {
    "black": "a pitch black night", "night": "a blue night", "dusk": "a dusk", "dawn": "a dawn", "day": "a blue day",
    "noon": "a white noon",
}
GROUNDS = {"hills": "green hills", "snow": "snow", "sea": "a blue sea", "desert": "a desert"}
COUNTS = {1: "a", 2: "two", 3: "three"}
OR_MODEL, OR_CFG = "landscapes (eps)", 3.0
PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def phrase(group) -> str:
    return f"{COUNTS[group.count]} {group.colour} {group.kind}{'s' * (group.count > 1)} {PLACES[group.place]}"


def setting(scene: Scene) -> tuple[str, str]:
    objects = " and ".join(map(phrase, scene.groups))
    return f"{LIGHTS[scene.light]}, {objects}", f"{GROUNDS[scene.ground]}, {objects}"


def objects(scene: Scene) -> tuple[str, str]:
    sky = [LIGHTS[scene.light]] + ([f"a {scene.orb}"] if scene.orb != "none" else [])
    return " with ".join(sky) + f", {phrase(scene.groups[0])}", f"{GROUNDS[scene.ground]}, {phrase(scene.groups[1])}"


# How scenes become pairs of captions, the model, the CFG and the scenes that the captions can describe.
PAIRS = {
    "setting": (setting, "landscapes (flow)", 1.0, lambda scene: scene.orb == "none" and not scene.clouds),
    "objects": (objects, "landscapes (open)", 1.5, lambda scene: True),
}


def two_groups(number: int, fits) -> list[Scene]:
    """The first held-out scenes with two groups of objects that fit."""
    scenes = [scene for scene in held_out_scenes(20 * number) if len(scene.groups) == 2 and fits(scene)]
    return scenes[:number]


def shows(seen: dict, text: str) -> list[bool]:
    """Whether a picture shows what a caption states, attribute by attribute; objects beside these are no fault."""
    return [right for name, right in compare(seen, stated_by(text)) if name != "no others"]


class Bench:
    def __init__(self, model: str, pairs, cfg: float, args):
        self.painter, self.pairs, self.cfg, self.seed = Painter(model), pairs, cfg, args.seed
        self.steps, self.scheduler = args.steps, args.scheduler or ("simple" if "flow" in model else "karras")

    def _texts(self, numbers, which):
        return self.painter.conditioning([self.pairs[k][which] for k in numbers])

    def _paint(self, guider_of, sampler) -> torch.Tensor:
        """Pictures of all pairs; guider_of(first captions, second captions, empty ones) guides a batch."""
        import comfy.samplers

        sampling = self.painter.model.get_model_object("model_sampling")
        sigmas, made = comfy.samplers.calculate_sigmas(sampling, self.scheduler, self.steps), []
        for part in torch.arange(len(self.pairs)).split(BATCH):
            numbers = part.tolist()
            noise = self.painter.noise(numbers, 128, self.seed)
            guider = guider_of(
                self._texts(numbers, 0), self._texts(numbers, 1), self.painter.conditioning([""] * len(numbers)))
            made.append(self.painter.vae.decode(guider.sample(
                noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=self.seed)))
        return torch.cat(made)

    def host(self, join) -> torch.Tensor:
        """Pictures of the host's guider and euler, the two captions joined into one conditioning."""
        import comfy.samplers

        def guider_of(first, second, empty):
            guider = comfy.samplers.CFGGuider(self.painter.model)
            guider.set_conds(join(first, second), empty)
            guider.set_cfg(self.cfg)
            return guider

        return self._paint(guider_of, comfy.samplers.sampler_object("euler"))

    def superdiff(self, **options) -> torch.Tensor:
        """Pictures of the SuperDiff nodes."""

        def guider_of(first, second, empty):
            return self.painter.node("TrajectorySuperDiffGuider", model=self.painter.model, prompt_1=first,
                                     prompt_2=second, negative=empty, cfg=self.cfg)

        return self._paint(guider_of, self.painter.node("TrajectorySuperDiffSampler", **options))


def averaged(first, second):
    """Conditioning (Average) at strength 0.5."""
    (a, a_more), (b, b_more) = first[0], second[0]
    return [[(a + b) / 2, {"pooled_output": (a_more["pooled_output"] + b_more["pooled_output"]) / 2}]]


def run_and(args, kind: str) -> list[torch.Tensor]:
    captions, model, cfg, fits = PAIRS[kind]
    cfg = args.cfg or cfg
    pairs = [captions(scene) for scene in two_groups(args.number, fits)]
    bench = Bench(model, pairs, cfg, args)
    rows = {
        "Conditioning (Combine)": bench.host(lambda first, second: first + second),
        "Conditioning (Average)": bench.host(averaged),
        "SuperDiff average": bench.superdiff(mode="average"),
        "SuperDiff AND": bench.superdiff(mode="AND"),
        "SuperDiff AND, to 0.5": bench.superdiff(mode="AND", stop_composing=0.5),
    }
    print(f"\nAND, {kind}: {len(pairs)} pairs of captions, {model}, {args.steps} steps, cfg {cfg}; for example\n"
          f"  {pairs[0][0]!r} and {pairs[0][1]!r}")
    print(f"{'':<24}{'both captions %':>16}{'attributes %':>14}")
    for name, pictures in rows.items():
        marks = [[shows(seen, text) for text in pair] for seen, pair in zip(read(pictures), pairs, strict=True)]
        both = np.mean([all(map(all, row)) for row in marks])
        attributes = np.mean([mark for row in marks for text in row for mark in text])
        print(f"{name:<24}{100 * both:>16.1f}{100 * attributes:>14.1f}", flush=True)
    return list(rows.values())


def run_or(args) -> list[torch.Tensor]:
    scenes, pairs = held_out_scenes(8 * args.number), []
    for a, b in zip(scenes[::2], scenes[1::2], strict=True):
        if a.light != b.light and a.ground != b.ground and len(pairs) < args.number:
            pairs.append(tuple(caption(s, np.random.default_rng((3, len(pairs))), keep=1.0) for s in (a, b)))
    bench = Bench(OR_MODEL, pairs, OR_CFG, args)
    rows = {}
    print(f"\nOR: {len(pairs)} pairs of captions, {OR_MODEL}, {args.steps} steps, cfg {OR_CFG}")
    print(f"{'bias in nats':<16}{'exactly one %':>14}{'the first of these %':>22}{'expected %':>12}")
    for share in (0.5, args.share):
        bias = math.log(share / (1 - share))
        rows[bias] = bench.superdiff(mode="OR", bias=f"{bias:.6f}, 0")
        shown = [[all(shows(seen, text)) for text in pair] for seen, pair in zip(read(rows[bias]), pairs, strict=True)]
        one = [row for row in shown if sum(row) == 1]
        print(f"{bias:<16.3f}{100 * len(one) / len(pairs):>14.1f}{100 * np.mean([row[0] for row in one]):>22.1f}"
              f"{100 * share:>12.1f}")
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=64, help="pairs of captions")
    parser.add_argument("--tasks", nargs="+", default=[*PAIRS, "or"], choices=[*PAIRS, "or"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scheduler", help="(default: simple for the flow, karras for the others)")
    parser.add_argument("--cfg", type=float, help="of all methods under AND (default: 1 for setting, 1.5 for objects)")
    parser.add_argument("--share", type=float, default=0.75, help="of the first caption in the biased run of OR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write a contact sheet to this file: 12 pairs, a row for each method")
    args = parser.parse_args()
    rows = []
    with torch.inference_mode():
        for task in args.tasks:
            rows += run_or(args) if task == "or" else run_and(args, task)
    if args.out:
        contact_sheet(torch.cat([pictures[:12] for pictures in rows]), 12).save(args.out)


if __name__ == "__main__":
    main()
