"""Reads the attributes of a landscape back from its picture, and scores pictures against captions or scenes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .grammar import parse
from .scene import COLOURS, GROUNDS, KINDS, LIGHTS, MAX_COUNT, ORBS, PLACES, Scene

FILE = Path(__file__).resolve().parents[2] / "miniatures" / "landscapes_checker.safetensors"
SIZE = 64  # every picture is brought to this size before it is read
# What is read from each picture: name -> number of classes.
HEADS = {"light": len(LIGHTS), "orb": len(ORBS), "ground": len(GROUNDS), "clouds": 2}
_PER_KIND = {"count": MAX_COUNT + 1, "colour": len(COLOURS), "place": len(PLACES)}
HEADS |= {f"{kind}.{name}": classes for kind in KINDS for name, classes in _PER_KIND.items()}
ATTRIBUTES = ("light", "orb", "ground", "clouds", "kind", "count", "colour", "place", "no others")


class Checker(nn.Module):
    """A small convolutional classifier with one head per attribute: [B, 3, 64, 64] in 0..1 -> {head: logits}."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for width, stride in ((32, 1), (64, 2), (64, 1), (96, 2), (96, 1), (128, 2), (128, 1)):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.trunk = nn.Sequential(*layers, nn.Conv2d(before, 20, 1), nn.Flatten(), nn.Linear(20 * 64, 192), nn.ReLU())
        self.heads = nn.Linear(192, sum(HEADS.values()))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.heads(self.trunk(pictures * 2 - 1))
        return dict(zip(HEADS, logits.split(list(HEADS.values()), dim=1), strict=True))


def targets(scene: Scene) -> dict[str, int]:
    """Class numbers of every head; -100 (ignored by the loss) for colour and place of what is not there."""
    found = {
        "light": LIGHTS.index(scene.light), "orb": ORBS.index(scene.orb), "ground": GROUNDS.index(scene.ground),
        "clouds": int(scene.clouds),
    }
    for kind in KINDS:
        group = next((g for g in scene.groups if g.kind == kind), None)
        found[f"{kind}.count"] = group.count if group else 0
        found[f"{kind}.colour"] = COLOURS.index(group.colour) if group else -100
        found[f"{kind}.place"] = PLACES.index(group.place) if group else -100
    return found


def prepare(pictures) -> torch.Tensor:
    """Pictures [B, H, W, 3] in 0..1, numpy or torch, as [B, 3, 64, 64]."""
    pictures = torch.as_tensor(np.asarray(pictures)) if not torch.is_tensor(pictures) else pictures
    pictures = pictures.float().clamp(0, 1).movedim(-1, 1)
    if pictures.shape[-2:] == (SIZE, SIZE):
        return pictures
    mode = "area" if min(pictures.shape[-2:]) >= SIZE else "bilinear"
    return F.interpolate(pictures, (SIZE, SIZE), mode=mode)


@lru_cache(maxsize=1)
def load() -> Checker:
    """The trained checker."""
    model = Checker()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(FILE).items()})
    return model.eval()


def read(pictures, model: Checker | None = None) -> list[dict]:
    """What each picture shows: `light`, `orb`, `ground`, `clouds`, `groups` of `kind`, `count`, `colour`, `place`."""
    model = model or load()
    ready = prepare(pictures)
    with torch.no_grad():
        parts = [{k: v.argmax(1) for k, v in model(part).items()} for part in ready.split(64)]
    columns = {k: torch.cat([p[k] for p in parts]).tolist() for k in HEADS}
    return [_describe({k: column[i] for k, column in columns.items()}) for i in range(len(ready))]


def _describe(found: dict[str, int]) -> dict:
    groups = []
    for kind in KINDS:
        count, colour, place = (found[f"{kind}.{name}"] for name in _PER_KIND)
        if count:
            groups.append({"kind": kind, "count": count, "colour": COLOURS[colour], "place": PLACES[place]})
    return {
        "light": LIGHTS[found["light"]], "orb": ORBS[found["orb"]], "ground": GROUNDS[found["ground"]],
        "clouds": bool(found["clouds"]), "groups": groups,
    }


def stated_by(truth: str | Scene) -> dict:
    """What a caption states, or all that a scene is, in the form of `read`."""
    if isinstance(truth, str):
        return parse(truth)
    groups = [{"kind": g.kind, "count": g.count, "colour": g.colour, "place": g.place} for g in truth.groups]
    return {"light": truth.light, "orb": truth.orb, "ground": truth.ground, "clouds": truth.clouds, "groups": groups}


def compare(seen: dict, stated: dict) -> list[tuple[str, bool]]:
    """(attribute, right?) for each stated attribute, and whether the picture is free of objects that are not stated."""
    results = [(name, seen[name] == stated[name]) for name in ("light", "orb", "ground", "clouds") if name in stated]
    shown = {g["kind"]: g for g in seen["groups"]}
    for group in stated["groups"]:
        match = shown.pop(group["kind"], None)
        results.append(("kind", match is not None))
        results += [(a, match is not None and match[a] == group[a]) for a in ("count", "colour", "place") if a in group]
    return [*results, ("no others", not shown)]


def score(pictures, truths: Sequence[str | Scene], model: Checker | None = None) -> dict:
    """Shares of what is right: one entry per attribute, `attributes` over all of them, `captions` wholly right, and
    `wrong`: for each picture the list of attributes that are not right."""
    results = [compare(seen, stated_by(truth)) for seen, truth in zip(read(pictures, model), truths, strict=True)]
    flat = [result for row in results for result in row]
    share = {}
    for name in ATTRIBUTES:
        marks = [right for attribute, right in flat if attribute == name]
        if marks:
            share[name] = sum(marks) / len(marks)
    share["attributes"] = sum(right for _, right in flat) / len(flat)
    share["captions"] = sum(all(right for _, right in row) for row in results) / len(results)
    share["wrong"] = [[name for name, right in row if not right] for row in results]
    return share
