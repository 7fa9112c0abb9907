"""Train the text-to-image miniature: an SD3-class flow transformer and its caption encoder, together.

    python -m trajectory.training.text_to_image

Rectified flow: x_sigma = (1 - sigma) x_0 + sigma noise, the model sees sigma * 1000 and predicts noise - x_0. The first
steps are at 64x64 pixels, the rest at 128x128 with some at 64x64, so that the model works at both.
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.captions import CaptionEncoder
from ._fit import fit
from ._muon import Muon
from ._run import MINIATURES, WORK, Average, device_and_autocast, save_weights
from .captions import PoolCaptions
from .latents import build_pool, load_pool

MODEL_FILE = MINIATURES / "landscapes_flow.safetensors"
CAPTIONS_FILE = MINIATURES / "landscapes_captions.safetensors"
CHECKPOINT = WORK / "text_to_image.pt"
SIZES = (64, 128)


def build_model(depth: int) -> SD3Transformer2DModel:
    """The transformer in the shape that ComfyUI's SD3 detection reads: heads = layers = depth, width 64 depth."""
    return SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, out_channels=16, num_layers=depth, num_attention_heads=depth,
        attention_head_dim=64, joint_attention_dim=CaptionEncoder.WIDTH, caption_projection_dim=64 * depth,
        pooled_projection_dim=CaptionEncoder.POOLED, pos_embed_max_size=16, qk_norm="rms_norm",
    )


class TextToImage(torch.nn.Module):
    """Caption encoder and flow transformer as one trainable thing."""

    def __init__(self, depth: int):
        super().__init__()
        self.captions = CaptionEncoder()
        self.flow = build_model(depth)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Velocity at `x` [B, 16, h, w], `sigma` [B], for `tokens` [B, 20]."""
        context, pooled = self.captions(tokens)
        return self.flow(x, context, pooled, sigma * 1000, return_dict=False)[0]


def initialise(model: TextToImage, generator: torch.Generator) -> None:
    """Seeded weights: Xavier for matrices; modulations and the output are zero, so each block begins as identity."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            flat = module.weight.view(module.weight.shape[0], -1)
            bound = math.sqrt(6 / (flat.shape[0] + flat.shape[1]))
            torch.nn.init.uniform_(flat, -bound, bound, generator=generator)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
            if ".norm" in name or name.endswith("proj_out"):
                torch.nn.init.zeros_(module.weight)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.3, generator=generator)
    torch.nn.init.normal_(model.captions.position, std=0.3, generator=generator)


def _optimiser(model: TextToImage) -> Muon:
    """Muon for the matrices of attention and feed-forward, AdamW for embeddings, modulations, biases and both ends."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden = {n for n, p in named if p.ndim == 2 and "blocks." in n and ".norm" not in n}
    return Muon([p for n, p in named if n in hidden], [p for n, p in named if n not in hidden])


def draw_sigmas(number: int, generator: torch.Generator) -> torch.Tensor:
    """Logit-normal noise levels, moved towards noise by a shift of 2: the objects are decided there."""
    u = torch.sigmoid(torch.randn(number, generator=generator))
    return 2 * u / (1 + u)


def export(state: dict[str, torch.Tensor]) -> None:
    """Save both parts in half precision: the transformer under diffusers' keys, which the host converts itself."""
    for part, path in (("flow.", MODEL_FILE), ("captions.", CAPTIONS_FILE)):
        save_weights(path, {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})


def _size(step: int, small_steps: int) -> int:
    return 64 if step < small_steps or step % 6 == 0 else 128


def _learning_rate(step: int, args) -> float:
    rate = args.rate * min(1.0, (step + 1) / 300)
    left = (args.steps - step) / max(1, args.steps - args.small_steps)
    return rate * (0.03 + 0.97 * min(1.0, 1.25 * left))


def train(args) -> None:
    device, autocast = device_and_autocast()
    # With so few tokens the plain form of attention is the fastest on a CPU, above all backwards.
    attention = partial(sdpa_kernel, SDPBackend.MATH) if device.type == "cpu" else nullcontext
    generator = torch.Generator().manual_seed(args.seed)
    model = TextToImage(args.depth)
    initialise(model, generator)
    model.to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"depth {args.depth}: {parameters / 1e6:.2f} M parameters", flush=True)
    pools = {}
    captions = PoolCaptions(args.pool, args.seed)

    def objective(step):
        size = _size(step, args.small_steps)
        if size not in pools:
            build_pool(size, args.pool, args.seed)
            pools[size] = load_pool(size, args.pool, args.seed)
        rng = np.random.default_rng((args.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        generator.manual_seed(int(rng.integers(2**62)))
        indices = rng.integers(len(pools[size]), size=args.batch)
        clean = pools[size][indices].float()
        noise = torch.randn(clean.shape, generator=generator)
        sigma = draw_sigmas(args.batch, generator)
        tokens = captions.tokens(indices, rng)
        clean, noise, sigma, tokens = (t.to(device) for t in (clean, noise, sigma, tokens))
        wide = sigma[:, None, None, None]
        with attention(), autocast:
            velocity = model((1 - wide) * clean + wide * noise, sigma, tokens)
        return {"loss": (velocity.float() - (noise - clean)).square().mean()}

    fit(model, _optimiser(model), Average(model, 0.999), objective, steps=args.steps,
        rate=partial(_learning_rate, args=args), checkpoint=CHECKPOINT, save=export)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=3, help="layers, heads, and width in units of 64")
    parser.add_argument("--small-steps", type=int, default=3200, help="steps at 64x64 before 128x128 joins")
    parser.add_argument("--steps", type=int, default=9000, help="steps in all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--pool", type=int, default=16000, help="pictures painted per size")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
