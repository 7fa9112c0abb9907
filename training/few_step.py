"""Distil the eps miniature's guidance into low-rank changes of its weights, for pictures in few steps at CFG 1.

    python -m trajectory.training.few_step

The student eps(x, t, c) learns eps_empty + w (eps_c - eps_empty) of the frozen teacher (Meng et al. 2023, stage one,
https://arxiv.org/abs/2210.03142, with one w), so a call costs half of a guided one. An empty caption stays what it was.
"""

from __future__ import annotations

import argparse
import time

import torch
from safetensors.torch import load_file
from torch.func import functional_call

from ..models.captions import CaptionTokenizer
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
from .eps_model import FILE as TEACHER_FILE
from .eps_model import Batches, alpha_bars, attention_for, build_model, load_captions

FILE = MINIATURES / "landscapes_few_step.safetensors"
CHECKPOINT = WORK / "few_step.pt"
SAVE_SECONDS = 120
SIZES = (128, 128, 128, 64)


class LowRank(torch.nn.Module):
    """`<name>.up` and `<name>.down` for every matrix and convolution of the blocks; `up` begins at zero."""

    def __init__(self, weights: dict[str, torch.Tensor], rank: int, generator: torch.Generator):
        super().__init__()
        self.factors = torch.nn.ParameterDict()
        for name, weight in weights.items():
            if weight.ndim > 1 and "block" in name:
                outs, ins = weight.flatten(1).shape
                down = torch.randn(rank, ins, generator=generator) * ins**-0.5
                self.factors[name.replace(".", "/") + "/up"] = torch.nn.Parameter(torch.zeros(outs, rank))
                self.factors[name.replace(".", "/") + "/down"] = torch.nn.Parameter(down)

    def named(self) -> dict[str, torch.Tensor]:
        """The factors by the names of the file."""
        return {name.replace("/", "."): value for name, value in self.factors.items()}


def train(args) -> None:
    device, autocast = device_and_autocast()
    attention = attention_for(device)
    network = build_model().to(device).requires_grad_(False)
    teacher = {name: value.float().to(device) for name, value in load_file(TEACHER_FILE).items()}
    encoder = load_captions(device)
    student = LowRank(teacher, args.rank, torch.Generator().manual_seed(args.seed)).to(device)
    optimiser = Muon([], list(student.parameters()), weight_decay=0.0)
    average = Average(student, 0.99)
    step, state = 0, load_checkpoint(CHECKPOINT)
    if state:
        step = state["step"]
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        average.state = {k: v.to(device) for k, v in state["average"].items()}
    batches, bars = Batches(args.pool, args.seed), alpha_bars().to(device)
    empty = torch.tensor([CaptionTokenizer().encode("")], device=device)
    progress, saved = Progress(args.steps, step), time.monotonic()
    while step < args.steps:
        clean, noise, times, tokens = (t.to(device) for t in batches.draw(step, SIZES[step % 4], args.batch))
        bar = bars[times][:, None, None, None]
        noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
        with attention():
            with autocast:
                context, _pooled = encoder(torch.cat([tokens, empty.expand_as(tokens)]))
                own = context[: args.batch]
                with torch.no_grad():
                    both = functional_call(
                        network, teacher, (noisy.repeat(2, 1, 1, 1), times.repeat(2), context), {"return_dict": False})
                    eps, eps_empty = both[0].float().chunk(2)
                    target = eps_empty + args.guidance * (eps - eps_empty)
                weights = merged(teacher, student.named())
                guided = functional_call(network, weights, (noisy, times, own), {"return_dict": False})[0]
            sigma = ((1 - bar) / bar).sqrt()
            error = (guided.float() - target).square()
            (sigma * (5**0.5 * sigma).clamp(max=1) * error).mean().backward()
        optimiser.step(args.rate * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * (1 - step / args.steps)))
        step += 1
        average.update(student, step)
        progress.report(step, error=error.mean(), gap=(eps.detach() - target).square().mean())
        if time.monotonic() - saved > SAVE_SECONDS or step == args.steps:
            state = {"step": step, "student": student.state_dict(), "average": average.state}
            save_checkpoint(CHECKPOINT, state | {"optimiser": optimiser.state_dict()})
            names = zip(student.state_dict(), student.named(), strict=True)
            save_weights(FILE, {name: average.state[key] for key, name in names})
            saved = time.monotonic()


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
