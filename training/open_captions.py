"""Teach the eps miniature, by low-rank changes of its weights, that a caption may leave things out.

    python -m trajectory.training.open_captions

For the other miniatures, objects that a caption does not mention are not there, so two captions of different objects
contradict each other. Here each thing is mentioned by half of the captions: what is not mentioned is open, and the
pictures of "a red house" and of "two green trees" have those with both in common, as with models of the web's captions.
"""

from __future__ import annotations

import argparse
import time

import torch
from safetensors.torch import load_file
from torch.func import functional_call

from ..models.low_rank import merged
from ._muon import Muon
from ._run import (
    MINIATURES,
    WORK,
    Average,
    Progress,
    device_and_autocast,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from .captions import PoolCaptions
from .eps_model import FILE as BASE_FILE
from .eps_model import Batches, alpha_bars, attention_for, build_model, load_captions
from .few_step import LowRank

FILE = MINIATURES / "landscapes_open.safetensors"
CHECKPOINT = WORK / "open_captions.pt"
SAVE_SECONDS = 120
SIZES = (128, 128, 128, 64)
KEEP = 0.5


def train(args) -> None:
    device, autocast = device_and_autocast()
    attention = attention_for(device)
    network = build_model().to(device).requires_grad_(False)
    base = {name: value.float().to(device) for name, value in load_file(BASE_FILE).items()}
    encoder = load_captions(device)
    student = LowRank(base, args.rank, torch.Generator().manual_seed(args.seed)).to(device)
    optimiser = Muon([], list(student.parameters()), weight_decay=0.0)
    average = Average(student, 0.995)
    step, state = 0, load_checkpoint(CHECKPOINT)
    if state:
        step = state["step"]
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        average.state = {k: v.to(device) for k, v in state["average"].items()}
    captions = PoolCaptions(args.pool, args.seed, keep=KEEP, open_groups=True)
    batches, bars = Batches(args.pool, args.seed, captions), alpha_bars().to(device)
    progress, saved = Progress(args.steps, step), time.monotonic()
    while step < args.steps:
        clean, noise, times, tokens = (t.to(device) for t in batches.draw(step, SIZES[step % 4], args.batch))
        bar = bars[times][:, None, None, None]
        noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
        with attention():
            with autocast:
                context, _pooled = encoder(tokens)
                weights = merged(base, student.named())
                eps = functional_call(network, weights, (noisy, times, context), {"return_dict": False})[0]
            sigma = ((1 - bar) / bar).sqrt()
            error = (eps.float() - noise).square()
            (sigma * (5**0.5 * sigma).clamp(max=1) * error).mean().backward()
        optimiser.step(args.rate * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * (1 - step / args.steps)))
        step += 1
        average.update(student, step)
        progress.report(step, eps=error.mean())
        if time.monotonic() - saved > SAVE_SECONDS or step == args.steps:
            state = {"step": step, "student": student.state_dict(), "average": average.state}
            save_checkpoint(CHECKPOINT, state | {"optimiser": optimiser.state_dict()})
            names = zip(student.state_dict(), student.named(), strict=True)
            save_weights(FILE, {name: average.state[key] for key, name in names})
            saved = time.monotonic()


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
