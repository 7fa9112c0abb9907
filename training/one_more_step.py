"""Train a module for One More Step: a UNet without a time path that sees pure noise and a text, and answers with -x_0.

    python -m trajectory.training.one_more_step                                   # the miniature's
    python -m trajectory.training.one_more_step --data FOLDER --out module.safetensors --channels 160 320 640

At zero signal-to-noise ratio the v-prediction is v = -x_0 whatever the noise, so the loss is || f(n, c) + x_0 ||^2 and
the best answer is -E[x_0 | c]: light, colour and layout that a text asks for. The diffusion model and its text encoder
stay as they are. FOLDER holds safetensors files, one a picture, each with a `latent` [C, h, w] at the diffusion model's
scale and a `context` [tokens, width] from the text encoder, and `empty.safetensors` with the `context` of no text.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from ..models.captions import CaptionEncoder
from ._fit import fit
from ._run import MINIATURES, WORK, Average, device_and_autocast, save_weights
from .captions import DROPOUT, PoolCaptions
from .eps_model import CHANNELS, attention_for, initialise, load_captions, optimiser_for
from .latents import build_pool, load_pool

FILE = MINIATURES / "landscapes_oms.safetensors"
SIZES = (64, 128)
HEAD = 32  # channels a head, and groups a norm


def build_module(channels, latent_channels: int, width: int, layers: int = 1) -> UNet2DConditionModel:
    """The published layout in any size: attention to the text on all levels but the first, 32 channels a head.

    channels: one multiple of 32 a level. width: of the text encoder's states.
    """
    attending = ["CrossAttn" if level else "" for level in range(len(channels))]
    return UNet2DConditionModel(
        in_channels=latent_channels, out_channels=latent_channels, block_out_channels=tuple(channels),
        down_block_types=[f"{kind}DownBlock2D" for kind in attending],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(attending)], layers_per_block=layers,
        attention_head_dim=[c // HEAD for c in channels], cross_attention_dim=width, norm_num_groups=HEAD,
    )  # fmt: skip


def _is_time(name: str) -> bool:
    return "time_emb" in name


def without_time(module: UNet2DConditionModel) -> UNet2DConditionModel:
    """`module` with a time path that is zero and stays so."""
    for name, parameter in module.named_parameters():
        if _is_time(name):
            torch.nn.init.zeros_(parameter)
            parameter.requires_grad_(False)
    return module


class Landscapes:
    """The miniature's pictures: latents from the pool, with a fresh caption each time from the frozen encoder."""

    latent_channels, width = CHANNELS, CaptionEncoder.WIDTH

    def __init__(self, number: int, seed: int):
        self.encoder = load_captions(torch.device("cpu"))
        self.captions = PoolCaptions(number, seed)
        self.pools = {}
        for size in SIZES:
            build_pool(size, number, seed, CHANNELS)
            self.pools[size] = load_pool(size, number, seed, CHANNELS)

    def batch(self, number: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [B, 4, h, w] and contexts [B, 20, 128], B = number."""
        pool = self.pools[int(rng.choice(SIZES))]
        indices = rng.integers(len(pool), size=number)
        context, _pooled = self.encoder(self.captions.tokens(indices, rng))
        return pool[indices].float(), context


class Folder:
    """A user's own latents and contexts; those of one shape share a batch."""

    def __init__(self, folder: Path):
        self.empty = load_file(folder / "empty.safetensors")["context"].float()
        shapes = defaultdict(list)
        for path in sorted(set(folder.glob("*.safetensors")) - {folder / "empty.safetensors"}):
            pair = load_file(path)
            shapes[pair["latent"].shape].append((pair["latent"].float(), pair["context"].float()))
        if not shapes:
            raise FileNotFoundError(f"--data {folder} holds no file with a latent and a context")
        self.groups = list(shapes.values())
        self.shares = np.array([len(group) for group in self.groups]) / sum(map(len, self.groups))
        self.latent_channels, self.width = len(self.groups[0][0][0]), self.empty.shape[-1]

    def batch(self, number: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [B, C, h, w] and contexts [B, tokens, width], B = number."""
        group = self.groups[int(rng.choice(len(self.groups), p=self.shares))]
        pairs = [group[index] for index in rng.integers(len(group), size=number)]
        contexts = [self.empty if rng.random() < DROPOUT else context for _latent, context in pairs]
        return torch.stack([latent for latent, _context in pairs]), torch.stack(contexts)


def _learning_rate(step: int, args) -> float:
    left = (args.steps - step) / args.steps
    return args.rate * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * min(1.0, 1.5 * left))


def export(state: dict[str, torch.Tensor], path: Path) -> None:
    """Save under diffusers' keys in half precision, as the published modules: without a time path."""
    save_weights(path, {k: v for k, v in state.items() if not _is_time(k)})


def train(args) -> None:
    device, autocast = device_and_autocast()
    if device.type == "cpu":
        autocast = nullcontext()  # convolutions of few channels are slower in bfloat16 there
    attention = attention_for(device)
    generator = torch.Generator().manual_seed(args.seed)
    data = Folder(args.data) if args.data else Landscapes(args.pool, args.seed)
    module = build_module(args.channels, data.latent_channels, data.width, args.layers)
    initialise(module, generator)
    without_time(module).to(device)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    print(f"{sum(p.numel() for p in trained.values()) / 1e6:.2f} M parameters", flush=True)

    def objective(step):
        rng = np.random.default_rng((args.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        generator.manual_seed(int(rng.integers(2**62)))
        clean, context = data.batch(args.batch, rng)
        noise = torch.randn(clean.shape, generator=generator)
        clean, noise, context = (t.to(device) for t in (clean, noise, context))
        with attention(), autocast:
            v = module(noise, 0, context, return_dict=False)[0]
        loss = (v.float() + clean).square().mean()
        return {"loss": loss, "unexplained": loss / clean.square().mean()}

    fit(module, optimiser_for(trained), Average(module, 0.995), objective, steps=args.steps,
        rate=partial(_learning_rate, args=args), checkpoint=(WORK / args.out.name).with_suffix(".pt"),
        save=partial(export, path=args.out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of latents and contexts; the miniature's pool without it")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64], help="a multiple of 32 for each level")
    parser.add_argument("--layers", type=int, default=1, help="residual blocks a level; the published modules have 2")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=6000, help="pictures painted per size")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
