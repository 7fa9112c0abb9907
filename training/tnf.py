"""Train a temporal noise fusion (`models.tnf`) on clips, beside a network that stays as it is. Knows no host and no
files.

The loss is || D' - x0 ||^2 (alpha^2 + sigma^2) / sigma^2, that of v on a variance-preserving path. The paper's
|| eps - eps~ ||^2, whose weight has no sigma^2 above the line, hardly counts the high noise, where motion is decided.
The weight ends at `LARGEST_WEIGHT`, since what is left at low noise is the network's to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..models.checkpoints import filled
from ..models.tnf import TemporalFusion
from ..models.trip import TNF
from ..operators.base import gradients
from ..samplers.paths import Path
from ._fit import falling
from ._run import initialise

ENDS = ("cross.out", "head", "time_mlp.3")
"""Layers of a TNF that end a branch or modulate it."""
LARGEST_WEIGHT = 5.0
EDGE = 1e-3
"""Of the run at both ends: hosts take a percentage of 0 for infinite noise and one of 1 for none."""
POINTS = 50


def begun(channels: int, frames: int, dim: int, patch: int, parametrisation: str, base: str,
          seed: int) -> TemporalFusion:
    """The fusion at the start of its training, which is the linear fusion, with places for `frames` frames."""
    with gradients(), torch.random.fork_rng(devices=[]):  # torch draws first weights of its own from its global stream
        fusion = TemporalFusion(TNF(channels, patch, dim, frames), parametrisation, base)
        initialise(fusion, seed, ENDS)
    return fusion


def continued(fusion: TemporalFusion, base: str) -> TemporalFusion:
    """A copy with weights of its own, on the CPU, to train on the model `base`."""
    tnf = fusion.tnf
    dim, frames = tnf.frame.shape[1:]

    def same():
        return TemporalFusion(TNF(tnf.channels, tnf.patch, dim, frames, tnf.place.shape[-1]), fusion.parametrisation,
                              base)  # fmt: skip

    with gradients():
        return filled(same, {name: value.detach().cpu().clone() for name, value in fusion.state_dict().items()})


def train(fusion: TemporalFusion, clips: torch.Tensor,
          predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], path: Path,
          sigma_at: Callable[[float], float], *, steps: int, learning_rate: float, batch: int, seed: int,
          report: Callable[[], None]) -> list[float]:
    """Train `fusion`, on the device of the clips, by AdamW with gradients of length 1 at most. Returns the losses.

    The learning rate falls evenly to a fiftieth.

    Args:
        clips: x0 [K, N, C, h, w] in the scale in which the model samples, each the clip of its own first frame.
        predict: (x [B, N, C, h, w], sigma [B]) -> D [B, N, C, h, w] of the network, without gradient.
        sigma_at: share of a run in (0, 1) -> noise level.
        batch: clips a step, drawn with replacement.
        seed: of all that is drawn; torch's global generator is left alone.
        report: called behind each step.

    Raises:
        ValueError: a loss or its gradient is not finite.
    """
    generator, losses = torch.Generator().manual_seed(seed), []
    with gradients():
        clips = clips.detach().clone()
        fusion.to(clips.device).train().requires_grad_(True)  # moved in inference mode, weights could not be trained
        optimiser, rate = torch.optim.AdamW(fusion.parameters()), falling(learning_rate, 1, 0.02, steps)
        for step in range(steps):
            x0 = clips[torch.randint(len(clips), (batch,), generator=generator)]
            noise = torch.randn(x0.shape, generator=generator)
            levels = [sigma_at(u) for u in torch.rand(batch, generator=generator).clamp(EDGE, 1 - EDGE).tolist()]
            sigma, alpha = x0.new_tensor(levels), x0.new_tensor([path.alpha(level) for level in levels])
            x = alpha.view(-1, 1, 1, 1, 1) * x0 + sigma.view(-1, 1, 1, 1, 1) * noise.to(x0)
            fused = fusion(predict(x, sigma).clone(), x0[:, :1], x, sigma[:, None])
            errors = (fused - x0).square().mean(dim=(1, 2, 3, 4))
            weights = ((alpha.square() + sigma.square()) / sigma.square()).clamp(max=LARGEST_WEIGHT)
            loss = (errors * weights).mean()
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            length = float(torch.nn.utils.clip_grad_norm_(fusion.parameters(), 1.0))
            if not (math.isfinite(losses[-1]) and math.isfinite(length)):
                raise ValueError(f"the loss of step {step + 1} is {losses[-1]:.4g}, and its gradient {length:.4g}, at "
                                 f"learning_rate {learning_rate:g}; lower that, and look whether clips and what the "
                                 "model makes of them are finite")
            for group in optimiser.param_groups:
                group["lr"] = rate(step)
            optimiser.step()
            report()
        fusion.eval().requires_grad_(False)
    return losses


def curve(losses: list[float]) -> tuple[list[int], list[float]]:
    """(last step, mean loss) of up to POINTS equal parts of a training, whose single losses vary with the noise."""
    width = math.ceil(len(losses) / POINTS)
    parts = [losses[start : start + width] for start in range(0, len(losses), width)]
    return [min(width * (k + 1), len(losses)) for k in range(len(parts))], [sum(part) / len(part) for part in parts]
