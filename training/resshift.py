"""Train the ResShift miniature: restores pictures of landscapes at 4x their size, in latents of the VQ miniature.

    python -m trajectory.training.resshift

The network of ResShift in small, with the process of its 4-step models (Yue et al. 2024,
https://arxiv.org/abs/2403.07319). At a step drawn evenly it predicts the latent x0 of the sharp picture from a noisy
state between that and y, the latent of the small bad picture enlarged, and from the bad picture itself. The loss is the
squared error alone, without the perceptual loss of the paper.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ..models.swin_unet import Config, SwinUNet
from ..samplers.residual_shift import ResidualShift
from . import vq_autoencoder
from ._fit import falling, fit
from ._muon import Muon
from ._run import MINIATURES, WORK, Average, device_and_autocast, save_weights
from ._shards import load_pool
from .degradation import degrade
from .eps_model import attention_for
from .landscapes.painter import paint
from .latents import pool_scene

FILE = MINIATURES / "restore_resshift.safetensors"
CHECKPOINT = WORK / "resshift.pt"
STEPS, FACTOR, SIZE = 4, 4, 128
CONFIG = Config(
    channels=16, latent_channels=3, lq_channels=3, features=(), widths=(48, 48, 48), blocks=(1, 1, 1),
    swin=(False, False, True), swin_width=32, swin_depth=2, heads=1, window=8, mlp_width=128)  # fmt: skip
ENDS = ("out_layers.3", "attn.proj", "mlp.fc2", "out.2")
"""Layers that end a residual branch, or the network."""


def build_model(seed: int) -> SwinUNet:
    """Seeded Xavier weights; what ends a residual branch is zero, so that each begins as the identity."""
    model, generator = SwinUNet(CONFIG), torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            flat = module.weight.flatten(1)
            bound = 0.0 if name.endswith(ENDS) else math.sqrt(6 / sum(flat.shape))
            torch.nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            torch.nn.init.zeros_(module.bias)
    return model


def optimiser_for(model: SwinUNet) -> Muon:
    """Muon for the matrices and convolutions of the blocks; AdamW for the time path, the tables of offsets, the last
    convolution, norms and biases."""
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and "_block" in name and "emb_layers" not in name and "bias_table" not in name
        (hidden if matrix else others).append(parameter)
    return Muon(hidden, others)


def enlarged(small: torch.Tensor) -> torch.Tensor:
    """Pictures as the encoder takes a small one to be: bicubic, without clipping."""
    return F.interpolate(small, scale_factor=FACTOR, mode="bicubic")


@torch.no_grad()
def make_examples(numbers: range, seed: int) -> dict[str, torch.Tensor]:
    """Latents x0 of sharp pictures; latents y and pixels lq of bad ones; each [N, 3, 32, 32]."""
    model = vq_autoencoder.load()
    made = {"x0": [], "y": [], "lq": []}
    for some in torch.tensor(numbers).split(25):
        painted = np.stack([paint(scene, SIZE, rng) for scene, rng in (pool_scene(k, seed) for k in some.tolist())])
        sharp = torch.from_numpy(painted).movedim(-1, 1).float()
        small = degrade(sharp, some.tolist(), FACTOR)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made["x0"].append(model.encode(sharp * 2 - 1).half())
            made["y"].append(model.encode(enlarged(small) * 2 - 1).half())
        made["lq"].append((small * 255).round().byte())
    return {name: torch.cat(parts) for name, parts in made.items()}


class Batches:
    """What each step learns from, a function of (seed, step) alone."""

    def __init__(self, number: int, seed: int):
        self.pool = load_pool(f"resshift_{seed}", number, partial(make_examples, seed=seed))
        self.seed = seed

    def draw(self, step: int, batch: int) -> tuple[torch.Tensor, ...]:
        """x0, y, noise, lq in -1..1, each [B, 3, 32, 32], and indices t of steps, int64 [B]."""
        rng = np.random.default_rng((self.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        picked = torch.from_numpy(rng.integers(len(self.pool["x0"]), size=batch))
        x0, y, lq = (self.pool[name][picked].float() for name in ("x0", "y", "lq"))
        noise, times = torch.randn(x0.shape, generator=generator), torch.randint(STEPS, (batch,), generator=generator)
        return x0, y, noise, lq / 127.5 - 1, times


def train(args) -> None:
    device, autocast = device_and_autocast()
    attention = attention_for(device)
    model = build_model(args.seed).to(device, memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    batches, process = Batches(args.pool, args.seed), ResidualShift.published(STEPS)
    etas = torch.tensor(process.etas, device=device)

    def objective(step):
        x0, y, noise, lq, times = (t.to(device) for t in batches.draw(step, args.batch))
        eta = etas[times][:, None, None, None]
        noisy = process.input_scale(eta) * process.diffused(x0, y, eta, noise)
        with attention(), autocast:
            predicted = model(noisy.to(memory_format=torch.channels_last), times, lq)
        return {"loss": (predicted.float() - x0).square().mean(), "unrestored": (y - x0).square().mean()}

    fit(model, optimiser_for(model), Average(model, 0.998), objective, steps=args.steps, checkpoint=CHECKPOINT,
        rate=falling(args.rate, 200, 0.02, args.steps), save=partial(save_weights, FILE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=4000, help="pictures painted")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
