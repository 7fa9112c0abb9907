"""Training of low-rank changes of the eps miniature's weights, as few_step and open_captions make them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch.func import functional_call

from ..models.captions import CaptionEncoder
from ..models.low_rank import merged
from ._fit import falling, fit
from ._muon import Muon
from ._run import Average, device_and_autocast, save_weights
from .eps_model import FILE as BASE_FILE
from .eps_model import Batches, alpha_bars, attention_for, build_model, load_captions

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


@dataclass(frozen=True)
class Base:
    """The eps miniature and the caption encoder, frozen."""

    network: torch.nn.Module
    weights: dict[str, torch.Tensor]
    encoder: CaptionEncoder

    def eps(self, weights, noisy, times, context) -> torch.Tensor:
        """The prediction of the network with these weights."""
        return functional_call(self.network, weights, (noisy, times, context), {"return_dict": False})[0].float()


def train(args, file, checkpoint, batches: Batches, memory: float, objective) -> None:
    """Train, from the checkpoint on if there is one, and save the running average (of that `memory`) to `file`.

    objective(base, noisy, noise, times, tokens) -> (context, target): the texts' states that the student sees, and the
    eps that it should predict.
    """
    device, autocast = device_and_autocast()
    attention = attention_for(device)
    weights = {name: value.float().to(device) for name, value in load_file(BASE_FILE).items()}
    base = Base(build_model().to(device).requires_grad_(False), weights, load_captions(device))
    student = LowRank(weights, args.rank, torch.Generator().manual_seed(args.seed)).to(device)
    bars = alpha_bars().to(device)

    def loss_of(step):
        clean, noise, times, tokens = (t.to(device) for t in batches.draw(step, SIZES[step % 4], args.batch))
        bar = bars[times][:, None, None, None]
        noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
        with attention(), autocast:
            context, target = objective(base, noisy, noise, times, tokens)
            eps = base.eps(merged(weights, student.named()), noisy, times, context)
        sigma = ((1 - bar) / bar).sqrt()
        error = (eps - target).square()
        return {"loss": (sigma * (5**0.5 * sigma).clamp(max=1) * error).mean(), "error": error.mean()}

    def save(state):
        save_weights(file, {name.removeprefix("factors.").replace("/", "."): value for name, value in state.items()})

    fit(student, Muon([], list(student.parameters()), weight_decay=0.0), Average(student, memory), loss_of,
        steps=args.steps, rate=falling(args.rate, 50, 0.03, args.steps), checkpoint=checkpoint, save=save)
