"""Teach the eps miniature, by low-rank changes of its weights, that a caption may leave things out.

    python -m trajectory.training.open_captions

For the other miniatures, objects that a caption does not mention are not there, so two captions of different objects
contradict each other. Here each thing is mentioned by half of the captions: what is not mentioned is open, and the
pictures of "a red house" and of "two green trees" have those with both in common, as with models of the web's captions.
"""

from __future__ import annotations

import argparse

from . import _low_rank
from ._run import MINIATURES, WORK
from .captions import PoolCaptions
from .eps_model import Batches

FILE = MINIATURES / "landscapes_open.safetensors"
CHECKPOINT = WORK / "open_captions.pt"
KEEP = 0.5


def train(args) -> None:
    def true_noise(base, noisy, noise, times, tokens):
        context, _pooled = base.encoder(tokens)
        return context, noise

    captions = PoolCaptions(args.pool, args.seed, keep=KEEP, open_groups=True)
    _low_rank.train(args, FILE, CHECKPOINT, Batches(args.pool, args.seed, captions), 0.995, true_noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--pool", type=int, default=6000, help="pictures painted per size")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
