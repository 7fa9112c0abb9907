"""Train the eps miniature: a UNet of Stable Diffusion's class on 4-channel latents, with the trained caption encoder.

    python -m trajectory.training.eps_model

DDPM with SD 1.5's schedule, whose last step still holds sqrt(abar) = 0.068 of the picture: what One More Step repairs.
As on the web, some captions name a wrong light, so the network learns to trust the picture's faint residue at the last
step more than the words, which is how real models come by their grey nights.

The squared error of eps is weighted by s min(1, s sqrt(5)), s = sqrt((1 - abar)/abar): low noise as by min-SNR-5 (Hang
et al. 2023, https://arxiv.org/abs/2303.09556), high noise more, where light and layout are decided.
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.captions import CaptionEncoder
from ._fit import fit
from ._muon import Muon
from ._run import MINIATURES, WORK, Average, device_and_autocast, save_weights
from .captions import PoolCaptions
from .latents import build_pool, load_pool

FILE = MINIATURES / "landscapes_eps.safetensors"
CAPTIONS_FILE = MINIATURES / "landscapes_captions.safetensors"
CHECKPOINT = WORK / "eps_model.pt"
WRONG_LIGHTS = 0.05
CHANNELS = 4


def build_model() -> UNet2DConditionModel:
    """Two levels of 64 and 128 channels, attention at the lower one, heads of 32 channels."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(64, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CaptionEncoder.WIDTH, attention_head_dim=(2, 4),
    )  # fmt: skip


def initialise(model: UNet2DConditionModel, generator: torch.Generator) -> None:
    """Seeded Xavier weights; what ends a residual branch is zero, so that each begins as the identity."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            flat = module.weight.view(module.weight.shape[0], -1)
            bound = math.sqrt(6 / (flat.shape[0] + flat.shape[1]))
            torch.nn.init.uniform_(flat, -bound, bound, generator=generator)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "proj_out", "conv_out")):
                torch.nn.init.zeros_(module.weight)


def optimiser_for(parameters: dict[str, torch.nn.Parameter]) -> Muon:
    """Muon for the hidden matrices and convolutions, AdamW for the time path, the ends, norms and biases."""
    hidden = {n for n, p in parameters.items() if p.ndim > 1 and "blocks" in n or "mid_block" in n and p.ndim > 1}
    hidden -= {n for n in hidden if "time_emb" in n}
    return Muon([p for n, p in parameters.items() if n in hidden],
                [p for n, p in parameters.items() if n not in hidden])


def alpha_bars() -> torch.Tensor:
    """abar_t [1000] of the scaled-linear schedule: sqrt(beta) is linear from sqrt(0.00085) to sqrt(0.012)."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


def load_captions(device: torch.device) -> CaptionEncoder:
    """The trained caption encoder, frozen."""
    encoder = CaptionEncoder()
    encoder.load_state_dict({k: v.float() for k, v in load_file(CAPTIONS_FILE).items()})
    return encoder.requires_grad_(False).to(device)


def attention_for(device: torch.device):
    """With so few tokens the plain form of attention is the fastest on a CPU, above all backwards."""
    return partial(sdpa_kernel, SDPBackend.MATH) if device.type == "cpu" else nullcontext


def picture_size(step: int, small_steps: int) -> int:
    return 64 if step < small_steps or step % 8 == 0 else 128


def _learning_rate(step: int, args) -> float:
    rate = args.rate * min(1.0, (step + 1) / 200)
    left = (args.steps - step) / max(1, args.steps - args.small_steps)
    return rate * (0.03 + 0.97 * min(1.0, 1.25 * left))


class Batches:
    """Latents, noise, times and caption tokens of each step, a function of (seed, step) alone."""

    def __init__(self, pool: int, seed: int, captions: PoolCaptions | None = None):
        self.number, self.seed = pool, seed
        self.captions = captions or PoolCaptions(pool, seed, WRONG_LIGHTS)
        self.pools: dict[int, torch.Tensor] = {}

    def draw(self, step: int, size: int, batch: int) -> tuple[torch.Tensor, ...]:
        """clean [B, 4, h, w], noise of that shape, t int64 [B], tokens [B, 20]."""
        if size not in self.pools:
            build_pool(size, self.number, self.seed, CHANNELS)
            self.pools[size] = load_pool(size, self.number, self.seed, CHANNELS)
        rng = np.random.default_rng((self.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        indices = rng.integers(len(self.pools[size]), size=batch)
        clean = self.pools[size][indices].float()
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(1000, (batch,), generator=generator)
        return clean, noise, times, self.captions.tokens(indices, rng)


def train(args) -> None:
    device, autocast = device_and_autocast()
    attention = attention_for(device)
    model = build_model()
    initialise(model, torch.Generator().manual_seed(args.seed))
    model.to(device)
    encoder = load_captions(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    batches, bars = Batches(args.pool, args.seed), alpha_bars().to(device)

    def objective(step):
        drawn = batches.draw(step, picture_size(step, args.small_steps), args.batch)
        clean, noise, times, tokens = (t.to(device) for t in drawn)
        bar = bars[times][:, None, None, None]
        sigma = ((1 - bar) / bar).sqrt()
        weight = sigma * (5**0.5 * sigma).clamp(max=1)
        with attention(), autocast:
            context, _pooled = encoder(tokens)
            eps = model(bar.sqrt() * clean + (1 - bar).sqrt() * noise, times, context, return_dict=False)[0]
        error = (eps.float() - noise).square()
        return {"loss": (weight * error).mean(), "eps": error.mean()}

    fit(model, optimiser_for(dict(model.named_parameters())), Average(model, 0.999), objective, steps=args.steps,
        rate=partial(_learning_rate, args=args), checkpoint=CHECKPOINT, save=partial(save_weights, FILE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small-steps", type=int, default=2500, help="steps at 64x64 before 128x128 joins")
    parser.add_argument("--steps", type=int, default=8500, help="steps in all")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--pool", type=int, default=6000, help="pictures painted per size")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
