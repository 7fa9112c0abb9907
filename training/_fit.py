"""The loop of a training: steps, a running average, checkpoints, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ._muon import Muon
from ._run import Average, Progress, load_checkpoint, save_checkpoint

SAVE_SECONDS = 120


def falling(rate: float, warm_up: int, floor: float, steps: int) -> Callable[[int], float]:
    """step -> learning rate: rises over `warm_up` steps, then falls evenly to `floor` times `rate` at the last step."""
    return lambda step: rate * min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * (1 - step / steps))


def fit(model: torch.nn.Module, optimiser: Muon, average: Average, objective: Callable[[int], dict[str, torch.Tensor]],
        *, steps: int, rate: Callable[[int], float], checkpoint: Path, save: Callable[[dict[str, torch.Tensor]], None],
        kept: Iterable[str] | None = None, clip: Iterable[Iterable[torch.nn.Parameter]] = ()) -> None:
    """Train `model` from the checkpoint on if there is one, else from the start.

    Args:
        average: of the model's state; it is what is saved.
        objective: step -> {name: loss}. The one named "loss" is lowered, all are shown. A function of the step alone,
            so that a run that was stopped draws what a whole one draws.
        rate: step -> learning rate.
        save: takes {name: tensor} of the average.
        kept: names of the state that is trained, all unless given.
        clip: groups of parameters whose gradients together are at most 1 long.
    """
    names, device = list(kept or model.state_dict()), next(model.parameters()).device
    step, state = 0, load_checkpoint(checkpoint)
    if state:
        step = state["step"]
        model.load_state_dict(state["model"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        average.state |= {name: value.to(device) for name, value in state["average"].items()}
    progress, saved = Progress(steps, step), time.monotonic()
    while step < steps:
        losses = objective(step)
        losses["loss"].backward()
        for parameters in clip:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step(rate(step))
        step += 1
        average.update(model, step)
        progress.report(step, **losses)
        if time.monotonic() - saved > SAVE_SECONDS or step == steps:
            current, mean = model.state_dict(), {name: average.state[name] for name in names}
            save_checkpoint(checkpoint, {
                "step": step, "model": {name: current[name] for name in names}, "average": mean,
                "optimiser": optimiser.state_dict()})  # fmt: skip
            save(mean)
            saved = time.monotonic()
