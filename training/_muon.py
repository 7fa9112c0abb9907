"""Muon: momentum whose update is orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

AdamW serves what is no hidden matrix. It saves small networks many steps, at the cost of a few small matrix products.
"""

from __future__ import annotations

from collections import defaultdict

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration


def orthogonalise(matrices: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """Bring the singular values of each matrix in [B, m, n] near 1, in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Muon for `hidden` weights (convolutions count as [out, in * k * k]), AdamW for `others`.

    One learning rate serves both: a Muon update is scaled to the root mean square that AdamW's usually has.
    """

    def __init__(self, hidden, others, momentum: float = 0.95, weight_decay: float = 0.01):
        self.hidden, self.momentum, self.weight_decay = list(hidden), momentum, weight_decay
        self.buffers = [torch.zeros_like(p) for p in self.hidden]
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
        self.by_shape = defaultdict(list)
        for index, parameter in enumerate(self.hidden):
            self.by_shape[parameter.shape].append(index)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at the learning rate `rate`, from the gradients, which are then dropped."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for shape, indices in self.by_shape.items():
            gradients = [self.hidden[i].grad for i in indices]
            buffers = [self.buffers[i] for i in indices]
            torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
            nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, self.momentum)).flatten(2)
            scale = 0.2 * max(nesterov.shape[1:]) ** 0.5
            updates = orthogonalise(nesterov).view(-1, *shape)
            parameters = [self.hidden[i] for i in indices]
            torch._foreach_mul_(parameters, 1 - rate * self.weight_decay)
            torch._foreach_add_(parameters, list(updates), alpha=-rate * scale)
            for parameter in parameters:
                parameter.grad = None

    def state_dict(self) -> dict:
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        for mine, saved in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])
