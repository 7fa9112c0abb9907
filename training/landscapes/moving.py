"""Moving landscapes: a scene in which one thing moves at constant speed, in paint, in words, and read back.

A balloon, a boat, the sun, the moon or the clouds move by 0.24 of the picture over a clip, or half as far when they
move slowly. All else stands still, so a frame differs from the first only along the path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grammar import caption as describe
from .painter import paint
from .scene import Group, Scene, draw_scene, draw_training_scene, is_held_out

_WAYS = {"left": (-1, 0), "right": (1, 0), "rises": (0, -1), "sinks": (0, 1)}
_THINGS = ("balloon", "boat", "clouds", "moon", "sun")
_SPAN = 0.24
_LOOKED_FOR = np.linspace(-0.4, 0.4, 81)


@dataclass(frozen=True)
class Motion:
    """What moves (a kind of object, "sun", "moon" or "clouds"), which way ("left", "right", "rises", "sinks")."""

    what: str
    way: str
    slowly: bool = False

    @property
    def _begin(self) -> float:
        """Share of the way that lies before the scene's own place of the thing: it stands there at the beginning, in
        the middle or at the end of a clip, so that it stays in the picture."""
        if self.what == "clouds" or self.what == "balloon" and self.way in ("rises", "sinks"):
            return 0.5
        return 1.0 if self.way == "rises" else 0.0

    def travels(self, frames: int) -> np.ndarray:
        """[frames]: how far along its way the thing is from its own place, as a share of the picture."""
        span = _SPAN * (0.5 if self.slowly else 1.0)
        return span * (np.linspace(0, 1, frames) - self._begin)

    def moved(self, travel: float) -> dict[str, tuple[float, float]]:
        """What `paint` takes for the thing so far along its way."""
        dx, dy = _WAYS[self.way]
        return {self.what: (dx * float(travel), dy * float(travel))}

    def words(self, count: int) -> str:
        """What the thing does, as it follows it in a caption."""
        verb, *rest = {"rises": ["rises"], "sinks": ["sinks"]}.get(
            self.way, ["sails" if self.what == "boat" else "drifts", self.way])  # fmt: skip
        verb = verb.removesuffix("s") if count > 1 else verb
        return " ".join(["slowly"] * self.slowly + [verb, *rest])


@dataclass(frozen=True)
class Clip:
    """A scene, what moves in it, and the seed of what the scene leaves open."""

    scene: Scene
    motion: Motion
    seed: tuple[int, ...]

    def picture(self, travel: float, size: int) -> np.ndarray:
        """float32 [size, size, 3] in 0..1 with the thing `travel` along its way."""
        return paint(self.scene, size, np.random.default_rng(self.seed), self.motion.moved(travel))

    def paint(self, frames: int, size: int) -> np.ndarray:
        """float32 [frames, size, size, 3] in 0..1."""
        return np.stack([self.picture(travel, size) for travel in self.motion.travels(frames)])

    def caption(self, rng: np.random.Generator, keep: float = 0.93) -> str:
        """The scene in words, with what moves and where to. Each attribute is stated with probability `keep`."""
        counts = {g.kind: g.count for g in self.scene.groups} | {"clouds": 2}
        words = self.motion.words(counts.get(self.motion.what, 1))
        return describe(self.scene, rng, keep, {self.motion.what: words})


def motions(scene: Scene) -> list[Motion]:
    """All that may happen in `scene`: nothing runs out of the picture or into what stands on the ground."""
    ways = {"clouds": ("left", "right")} if scene.clouds else {}
    if scene.orb != "none":
        ways[scene.orb] = ("rises", "sinks")
    for group in scene.groups:
        if group.kind == "balloon":
            ways["balloon"] = ("rises", "sinks", *_sideways(group, []))
        elif group.kind == "boat":
            ways["boat"] = _sideways(group, [g.place for g in scene.groups if g.kind != "balloon"])
    return [Motion(what, way, slowly) for what, some in ways.items() for way in some for slowly in (False, True)]


def _sideways(group: Group, taken: list[str]) -> tuple[str, ...]:
    beside = {"left": {"right": "middle"}, "right": {"left": "middle"}, "middle": {"left": "left", "right": "right"}}
    return tuple(way for way, place in beside[group.place].items() if place not in taken)


def _choice(options: list, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def draw_motion(scene: Scene, rng: np.random.Generator) -> Motion | None:
    """A random motion of `scene`, evenly over the things that can move; None where nothing can."""
    possible = motions(scene)
    if not possible:
        return None
    what = _choice(sorted({motion.what for motion in possible}), rng)
    return _choice([motion for motion in possible if motion.what == what], rng)


def training_clip(index: int, seed: int) -> Clip:
    """The clip of one place in the training pool: all things that can move do so equally often, for boats are rare in
    scenes. The scene is not held out."""
    rng = np.random.default_rng((seed, 88, index))
    what = _THINGS[index % len(_THINGS)]
    possible = []
    while not possible:
        scene = draw_training_scene(rng)
        possible = [motion for motion in motions(scene) if motion.what == what]
    return Clip(scene, _choice(possible, rng), (seed, 89, index))


def held_out_clips(number: int = 128, seed: int = 0) -> list[Clip]:
    """The first `number` clips of distinct held-out scenes, in the order of a seeded stream."""
    rng = np.random.default_rng((seed, 0x4D4F5645))
    found: dict[str, Clip] = {}
    while len(found) < number:
        scene = draw_scene(rng)
        if is_held_out(scene) and (motion := draw_motion(scene, rng)):
            found.setdefault(scene.key(), Clip(scene, motion, (seed, 90, len(found))))
    return list(found.values())


class Tracker:
    """Reads how far along its way the moving thing of a clip is.

    A picture is compared with paintings of the clip with the thing at 81 places along its way, 0.4 of the picture to
    either side, where these differ from one another. Painted, it is read to 0.005 while it can be seen: a sun that
    has set behind the land is read by its light alone.
    """

    def __init__(self, clip: Clip, size: int):
        painted = np.stack([clip.picture(travel, size) for travel in _LOOKED_FOR])
        self.clip, self.path = clip, np.ptp(painted, axis=0).max(-1) > 0.04
        self.painted = painted[:, self.path]

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """float64 [N]: how far the thing is in each of pictures [N, size, size, 3] in 0..1."""
        errors = np.square(pictures[:, None, self.path] - self.painted).mean((2, 3))
        return _LOOKED_FOR[errors.argmin(1)]

    def accuracy(self, pictures: np.ndarray, tolerance: float = 0.03) -> float:
        """Share of the pictures whose thing has come as far since the first one as the caption says, within `tolerance`
        of the picture. Those by which it has not yet come so far do not count: a thing at rest would be right there."""
        found, true = self(pictures), self.clip.motion.travels(len(pictures))
        found, true = found - found[0], true - true[0]
        return float((np.abs(found - true) <= tolerance)[np.abs(true) > tolerance].mean())
