"""Train a miniature vector-quantised autoencoder, in whose latents the ResShift miniature restores: 4x, 3 channels.

    python -m trajectory.training.vq_autoencoder

First encoder and decoder learn without codes; then the codes are placed where latents are (k-means), and all three go
on together; at last encoder and codes are frozen, so that what was trained on their latents stays valid, and the
decoder alone goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ..models import vq
from ._muon import Muon
from ._run import MINIATURES, WORK, Progress, device_and_autocast, load_checkpoint, save_checkpoint, save_weights
from .autoencoder import crops, initialise, latent_penalty, paint_pool, reconstruction_loss

FILE = MINIATURES / "restore_vq.safetensors"
CHECKPOINT = WORK / "restore_vq.pt"
WIDTHS, BLOCKS, Z, CODES = [32, 48, 48], [1, 1, 1], 3, 4096
SIDES = (48, 48, 64, 128)
"""Of the crops, in turn: small ones show many objects, whole pictures teach what changes with the size."""
PIXELS = 12 * 48**2
"""Of a batch, about."""
COMMITMENT = 0.25
DECAY = 0.99
"""Of the averages that codes are, over the latents that they stand for."""
RARE = 0.02
"""Latents a batch, of a code that moves to where it is used more."""


class Codes:
    """Codes as exponential averages of the latents nearest to them (van den Oord et al. 2017, appendix A.1)."""

    def __init__(self, model: vq.VQAutoencoder, state: dict | None = None):
        self.book = model.quantize
        codes = self.book.embedding.weight.detach()
        state = state or {"counts": torch.ones(len(codes)), "sums": codes.clone()}
        self.counts, self.sums = state["counts"].to(codes.device), state["sums"].to(codes.device)

    def state(self) -> dict[str, torch.Tensor]:
        return {"counts": self.counts, "sums": self.sums}

    @torch.no_grad()
    def place(self, latents: torch.Tensor, generator: torch.Generator, rounds: int = 8) -> None:
        """k-means on latents [N, d], from some of them."""
        some = torch.randperm(len(latents), generator=generator)[: len(self.counts)]
        self.book.embedding.weight.copy_(latents[some.to(latents.device)])
        for _ in range(rounds):
            self.counts.zero_()
            self.sums.zero_()
            self._add(latents, self.book.nearest(latents.T[None, :, :, None]).flatten(), 1.0)
            self._average(latents, generator, 1.0)
        self.sums /= self.counts.mean()
        self.counts /= self.counts.mean()

    @torch.no_grad()
    def update(self, latents: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> None:
        """One step of the averages, by latents [N, d] of a batch and the codes [N] nearest to them."""
        self.counts *= DECAY
        self.sums *= DECAY
        self._add(latents, chosen, 1 - DECAY)
        self._average(latents, generator, RARE)

    def _add(self, latents: torch.Tensor, chosen: torch.Tensor, share: float) -> None:
        self.counts.index_add_(0, chosen, torch.full_like(chosen, share, dtype=self.counts.dtype))
        self.sums.index_add_(0, chosen, share * latents)

    def _average(self, latents: torch.Tensor, generator: torch.Generator, least: float) -> None:
        """Codes from their averages; those of fewer than `least` latents move to latents drawn from these."""
        rare = (self.counts < least).nonzero().flatten()
        drawn = torch.randint(len(latents), (len(rare),), generator=generator).to(latents.device)
        self.counts[rare] = max(least, float(self.counts.mean()))
        self.sums[rare] = latents[drawn] * self.counts[rare, None]
        self.book.embedding.weight.copy_(self.sums / self.counts[:, None])


def flat(latents: torch.Tensor) -> torch.Tensor:
    """[B, d, H, W] -> [B H W, d]."""
    return latents.detach().movedim(1, -1).flatten(0, -2)


def learning_rate(step: int, joint: int, steps: int) -> float:
    """Warm up, fall while encoder and decoder train; a shorter second time for the decoder alone."""
    if step < joint:
        return 2e-3 * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 - step / joint))
    return 1e-3 * (0.02 + 0.98 * (1 - (step - joint) / max(1, steps - joint)))


def _optimiser(model: vq.VQAutoencoder, frozen: bool) -> Muon:
    """Muon for the hidden convolutions, AdamW for the ends, norms and biases; without encoder and codes if `frozen`."""
    named = {n: p for n, p in model.named_parameters() if not n.startswith("quantize.")}
    if frozen:
        named = {n: p for n, p in named.items() if n.startswith(("decoder.", "post_quant_conv."))}
    hidden = {n for n, p in named.items() if p.ndim == 4 and min(p.shape[:2]) >= min(WIDTHS)}
    return Muon([p for n, p in named.items() if n in hidden], [p for n, p in named.items() if n not in hidden],
                weight_decay=0.0)


@torch.no_grad()
def _latents_of(model: vq.VQAutoencoder, pool, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
    """Latents [N, d] of some crops, to place the codes by."""
    parts = [model.encode(crops(pool, 64, 16, rng).to(device) * 2 - 1) for _ in range(8)]
    return torch.cat([flat(part) for part in parts])


def train(args) -> vq.VQAutoencoder:
    device, autocast = device_and_autocast()
    generator = torch.Generator().manual_seed(args.seed)
    pool = paint_pool(args.pool, 128, args.seed)
    model = vq.VQAutoencoder(WIDTHS, BLOCKS, Z, Z, CODES)
    initialise(model, generator)
    model = model.to(device)
    step, state = 0, load_checkpoint(CHECKPOINT)
    if state:
        step = state["step"]
        model.load_state_dict(state["model"])
    codes = Codes(model, state and state["codes"])
    optimiser = _optimiser(model, step >= args.joint_steps)
    if state and step != args.joint_steps:
        optimiser.load_state_dict(state["optimiser"])
    progress = Progress(args.steps, step)
    while step < args.steps:
        rng = np.random.default_rng((args.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        generator.manual_seed(int(rng.integers(2**62)))
        rounded, frozen = step >= args.free_steps, step >= args.joint_steps
        if step == args.free_steps:
            codes.place(_latents_of(model, pool, rng, device), generator)
        if step == args.joint_steps:
            optimiser = _optimiser(model, frozen)
        side = SIDES[step % len(SIDES)]
        target = crops(pool, side, max(1, round(PIXELS / side**2)), rng).to(device)
        with autocast, torch.set_grad_enabled(not frozen):
            latents = model.encode(target * 2 - 1)
        latents = latents.float()
        if rounded:
            chosen = model.quantize.nearest(latents.detach())
            nearest = model.quantize.embedding(chosen).movedim(-1, 1).detach()
            taken = latents + (nearest - latents).detach()
        else:
            nearest = latents.detach()
            taken = latents + 0.05 * torch.randn(latents.shape, generator=generator).to(device)
        with autocast:
            output = (model.decoder(model.post_quant_conv(taken)).float() + 1) / 2
        loss = total = reconstruction_loss(output, target)
        error = F.mse_loss(latents, nearest)
        if not frozen:
            total = loss + COMMITMENT * error + 0.05 * latent_penalty(latents, 0.0, 1.0)
        total.backward()
        optimiser.step(learning_rate(step, args.joint_steps, args.steps))
        if rounded and not frozen:
            codes.update(flat(latents), chosen.flatten(), generator)
        step += 1
        psnr = -10 * torch.log10(F.mse_loss(output.detach(), target))
        progress.report(step, loss=loss, psnr=psnr, std=latents.std(), rounding=error)
        if step % 500 == 0 or step in (args.steps, args.joint_steps):
            save_checkpoint(CHECKPOINT, {"step": step, "model": model.state_dict(), "codes": codes.state(),
                                         "optimiser": optimiser.state_dict()})
            save_weights(FILE, model.state_dict())
    return model


def load(path: Path = FILE) -> vq.VQAutoencoder:
    """The exported autoencoder in float32, ready to use."""
    return vq.load(load_file(path), torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--free-steps", type=int, default=2200, help="steps without codes")
    parser.add_argument("--joint-steps", type=int, default=2600, help="steps after which only the decoder trains")
    parser.add_argument("--steps", type=int, default=3600, help="steps in all")
    parser.add_argument("--pool", type=int, default=5000, help="pictures painted at 128x128")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
