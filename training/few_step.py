"""Distil the eps miniature's guidance into low-rank changes of its weights, for pictures in few steps at CFG 1.

    python -m trajectory.training.few_step

The student eps(x, t, c) learns eps_empty + w (eps_c - eps_empty) of the frozen teacher (Meng et al. 2023, stage one,
https://arxiv.org/abs/2210.03142, with one w), so a call costs half of a guided one. An empty caption stays what it was.
"""

from __future__ import annotations

import argparse

import torch

from ..models.captions import CaptionTokenizer
from . import _low_rank
from ._run import MINIATURES, WORK
from .eps_model import Batches

FILE = MINIATURES / "landscapes_few_step.safetensors"
CHECKPOINT = WORK / "few_step.pt"


def train(args) -> None:
    empty = torch.tensor([CaptionTokenizer().encode("")])

    def guided(base, noisy, noise, times, tokens):
        context, _pooled = base.encoder(torch.cat([tokens, empty.to(tokens).expand_as(tokens)]))
        with torch.no_grad():
            both = base.eps(base.weights, noisy.repeat(2, 1, 1, 1), times.repeat(2), context)
        eps, eps_empty = both.chunk(2)
        return context[: len(tokens)], eps_empty + args.guidance * (eps - eps_empty)

    _low_rank.train(args, FILE, CHECKPOINT, Batches(args.pool, args.seed), 0.99, guided)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=3.0, help="the CFG that the student learns")
    parser.add_argument("--pool", type=int, default=6000, help="pictures painted per size")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
