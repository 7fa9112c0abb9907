"""Noise that belongs to the batch item, so that item k of a batch equals that item alone."""

import hashlib

import numpy as np
import torch


def item_seeds(seed, purpose, identities):
    """One 63-bit seed an item from (seed, purpose, identity); identity is any bytes."""
    keys = (f"{seed}|{purpose}|".encode() + identity for identity in identities)
    return [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1 for key in keys]


def item_identities(items):
    """What tells the items of a batch [B, ...] apart, wherever they stand in it: a digest of their values.

    Items that are equal to the last bit are told apart by their rank.
    """
    digests, seen = [], {}
    for item in items.detach().to("cpu", torch.float32).contiguous():
        digest = hashlib.blake2b(np.ascontiguousarray(item.numpy()).tobytes(), digest_size=16).digest()
        rank = seen[digest] = seen.get(digest, -1) + 1
        digests.append(digest + rank.to_bytes(4, "little"))
    return digests


class ItemNoise:
    """Standard normal draws for the steps of one run: one CPU generator an item, made at the first draw.

    An item is known by its initial noise, the only thing that the host hands over for an item alone as in a batch;
    where that is zero (a disabled noise source) or missing, by its first state.
    initial_noise: [B, ...] as the host drew it (its inpaint wrapper's `noise`), or None. x: the first state [B, ...].
    """

    def __init__(self, initial_noise, x, seed, purpose="sde"):
        known = initial_noise is not None and initial_noise.shape == x.shape
        self._initial, self._x = initial_noise if known else x, x
        self._seed, self._purpose = 0 if seed is None else seed, purpose
        self._generators = None

    def draw(self):
        """float32 noise [B, ...] on the CPU."""
        if self._generators is None:
            drawn = self._initial.flatten(1).any(dim=1).view(-1, *[1] * (self._x.ndim - 1)).to(self._x.device)
            items = torch.where(drawn, self._initial.to(self._x), self._x)
            seeds = item_seeds(self._seed, self._purpose, item_identities(items))
            self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn(self._x.shape[1:], generator=g) for g in self._generators])
