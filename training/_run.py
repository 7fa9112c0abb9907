"""What the trainers share: devices, checkpoints that survive an interruption, exponential averages, progress."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
WORK = Path(__file__).resolve().parent / "work"
MINIATURES = ROOT / "miniatures"


def device_and_autocast() -> tuple[torch.device, torch.autocast]:
    """The GPU where there is one, else the CPU, and an autocast to bfloat16 for it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, torch.autocast(device.type, dtype=torch.bfloat16)


def initialise(module: torch.nn.Module, seed: int, ends: Sequence[str]) -> None:
    """Xavier weights for linear layers and convolutions, and zeros for those whose names end with one of `ends`: what
    ends a branch, so that each begins as the identity.

    Each layer has its own stream of the seed, so that networks share what they have in common.
    """
    generator = torch.Generator()
    for name, layer in module.named_modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            generator.manual_seed(int(np.random.default_rng([seed, *name.encode()]).integers(2**62)))
            bound = 0.0 if name.endswith(tuple(ends)) else math.sqrt(6 / sum(layer.weight.flatten(1).shape))
            torch.nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            torch.nn.init.zeros_(layer.bias)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` so that an interruption leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a miniature in half precision, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    halves = {k: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous() for k, v in weights.items()}
    save_file(halves, partial, {"format": "pt"})
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict | None:
    """The saved state, or None when training starts afresh."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Average:
    """Exponential moving average of a module's floating point state."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        floats = [k for k, v in self.state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.state[k] for k in floats], [current[k] for k in floats], 1 - decay)


class Progress:
    """Prints the step, the speed and the smoothed losses about twice a minute."""

    def __init__(self, total: int, step: int, seconds: float = 30.0):
        self.total, self.first, self.seconds = total, step, seconds
        self.start = self.last = time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0

    def report(self, step: int, **losses: torch.Tensor) -> bool:
        """Count one step; True when a line was printed."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.count += 1
        now = time.monotonic()
        if now - self.last < self.seconds and step < self.total:
            return False
        speed = (step - self.first) / (now - self.start)
        means = "  ".join(f"{k} {v / self.count:.4f}" for k, v in self.sums.items())
        left = (self.total - step) / max(speed, 1e-9) / 60
        print(f"step {step}/{self.total}  {means}  {speed:.2f} steps/s  {left:.0f} min left", flush=True)
        self.last, self.sums, self.count = now, {}, 0
        return True
