"""Noise that belongs to the batch item, so that item k of a batch equals that item alone."""

import hashlib

import numpy as np
import torch


def item_seeds(seed, purpose, identities):
    """One 63-bit seed an item from (seed, purpose, identity); identity is any bytes."""
    keys = (f"{seed}|{purpose}|".encode() + identity for identity in identities)
    return [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1 for key in keys]


def item_identities(initial_noise):
    """What an item is, wherever it stands in a batch: its initial noise, the only thing that the host gives it alone.

    initial_noise: [B, ...]. Items with equal noise (a disabled noise source: all zeros) are told apart by their rank.
    """
    digests, seen = [], {}
    for item in initial_noise.detach().to("cpu", torch.float32).contiguous():
        digest = hashlib.blake2b(np.ascontiguousarray(item.numpy()).tobytes(), digest_size=16).digest()
        rank = seen[digest] = seen.get(digest, -1) + 1
        digests.append(digest + rank.to_bytes(4, "little"))
    return digests


class ItemNoise:
    """Standard normal draws for the steps of one run: one CPU generator an item, made at the first draw.

    initial_noise: what the host drew for the run (its inpaint wrapper's `noise`), or None, when the state x stands in.
    """

    def __init__(self, initial_noise, x, seed, purpose="sde"):
        known = initial_noise is not None and initial_noise.shape[:1] == x.shape[:1]
        self._initial = initial_noise if known else x
        self._seed, self._purpose = 0 if seed is None else seed, purpose
        self._generators = None

    def draw(self):
        """float32 noise [B, ...] on the CPU."""
        if self._generators is None:
            seeds = item_seeds(self._seed, self._purpose, item_identities(self._initial))
            self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn(self._initial.shape[1:], generator=g) for g in self._generators])
