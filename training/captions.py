"""Fresh captions for the pictures of a pool, as token numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..models.captions import CaptionTokenizer
from .landscapes.grammar import caption
from .landscapes.scene import LIGHTS, Scene
from .latents import pool_scene

DROPOUT = 0.1  # share of empty captions: the unconditional that guidance needs
UNKNOWN = 0.02  # share of captions with a word that the encoder does not know: users write them


class PoolCaptions:
    """Words anew at every draw for the scenes of the first `number` pictures of a pool.

    `wrong_lights` is the share of captions that name another light than the picture has, as captions of the web do.
    `keep` is the probability with which a caption states an attribute; `open_groups`: also a group of objects. Without
    that, objects which a caption does not mention are not there.
    """

    def __init__(self, number: int, seed: int, wrong_lights: float = 0.0, keep: float = 0.93, open_groups=False):
        self.tokenizer = CaptionTokenizer()
        self.scenes = [pool_scene(index, seed)[0] for index in range(number)]
        self.wrong_lights, self.keep, self.open_groups = wrong_lights, keep, open_groups

    def tokens(self, indices, rng: np.random.Generator) -> torch.Tensor:
        """Token numbers [B, 20] for the pictures at `indices`."""
        return torch.tensor([self._row(self.scenes[index], rng) for index in indices])

    def _row(self, scene: Scene, rng: np.random.Generator) -> list[int]:
        if rng.random() < DROPOUT:
            return self.tokenizer.encode("")
        if self.wrong_lights and rng.random() < self.wrong_lights:
            scene = replace(scene, light=LIGHTS[int(rng.integers(len(LIGHTS)))])
        if self.open_groups:
            scene = replace(scene, groups=tuple(group for group in scene.groups if rng.random() < self.keep))
        row = self.tokenizer.encode(caption(scene, rng, self.keep))
        if rng.random() < UNKNOWN:
            row[1 + int(rng.integers(len(row) - 1))] = self.tokenizer.unknown
        return row
