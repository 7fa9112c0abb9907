"""What a painted landscape shows: its attributes, their vocabulary, and the split into training and held-out scenes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

LIGHTS = ("black", "night", "dusk", "dawn", "day", "noon")  # from dark to bright
ORBS = ("none", "sun", "moon")
GROUNDS = ("hills", "snow", "sea", "desert")
KINDS = ("house", "tree", "boat", "balloon")
COLOURS = ("red", "yellow", "green", "blue", "white")
PLACES = ("left", "middle", "right")
MAX_COUNT = 3

# Which lights of heaven may stand in which sky.
_ORBS_BY_LIGHT = {
    "black": ("none", "moon"),
    "night": ("none", "moon"),
    "dusk": ("none", "sun", "moon"),
    "dawn": ("none", "sun", "moon"),
    "day": ("none", "sun"),
    "noon": ("none", "sun"),
}
_HELD_OUT_SHARE = 16  # one scene in this many is never trained on


@dataclass(frozen=True, order=True)
class Group:
    """One to three equal objects that stand together."""

    kind: str
    colour: str
    count: int
    place: str


@dataclass(frozen=True)
class Scene:
    """The attributes of one picture. `groups` holds at most two groups that differ in kind and in place."""

    light: str
    orb: str
    ground: str
    clouds: bool
    groups: tuple[Group, ...] = ()

    def key(self) -> str:
        """The attributes as one line of text, the same for equal scenes whatever the order of the groups."""
        groups = ";".join(f"{g.kind},{g.colour},{g.count},{g.place}" for g in sorted(self.groups))
        return f"{self.light}|{self.orb}|{self.ground}|{int(self.clouds)}|{groups}"


def is_held_out(scene: Scene) -> bool:
    """Whether this combination of attributes is reserved for tests: a function of the attributes alone."""
    digest = hashlib.sha256(scene.key().encode()).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_SHARE == 0


def _choice(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene that keeps a loose physical sense: boats need the sea, the sun needs some day."""
    light = _choice(rng, LIGHTS)
    orbs = _ORBS_BY_LIGHT[light]
    orb = "none" if rng.random() < 0.25 else _choice(rng, orbs[1:])
    ground = _choice(rng, GROUNDS)
    clouds = bool(rng.random() < 0.4)
    kinds = [k for k in KINDS if k != "boat" or ground == "sea"]
    number = int(rng.choice(3, p=(0.06, 0.40, 0.54)))
    chosen = rng.permutation(len(kinds))[:number]
    places = rng.permutation(len(PLACES))[:number]
    groups = tuple(
        Group(kinds[k], _choice(rng, COLOURS), 1 + int(rng.integers(MAX_COUNT)), PLACES[p])
        for k, p in zip(chosen, places, strict=True)
    )
    return Scene(light, orb, ground, clouds, groups)


def draw_training_scene(rng: np.random.Generator) -> Scene:
    """A random scene that is not held out."""
    while is_held_out(scene := draw_scene(rng)):
        pass
    return scene


def held_out_scenes(number: int = 256, seed: int = 0) -> list[Scene]:
    """The first `number` distinct held-out scenes that contain objects, in the order of a seeded stream."""
    rng = np.random.default_rng((seed, 0x4C414E44))
    found: dict[str, Scene] = {}
    while len(found) < number:
        scene = draw_scene(rng)
        if scene.groups and is_held_out(scene):
            found.setdefault(scene.key(), scene)
    return list(found.values())
