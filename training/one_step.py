"""Train the one-step restorer: low-rank changes of the eps miniature's encoder and UNet, in the form of OSEDiff.

    python -m trajectory.training.one_step

z_L = E(small picture, enlarged bicubically), z_0 = (z_L - sqrt(1 - abar) eps(z_L, t = 999, caption)) / sqrt(abar), and
D(z_0) is the restored picture (Wu et al. 2024, https://arxiv.org/abs/2406.08177). The decoder D stays as it is.

At first encoder and UNet learn side by side: z_L is to be a quarter of the sharp picture's latent z, and z_0 to be z.
Then both learn together from the restored picture. The quarter matters: eps has to cancel z_L, and its error, 14.6
times as large in z_0, shrinks with it. At last the UNet learns alone, from a pool of pairs z_L and z: without encoder
and decoder a step is fifty times as cheap a picture. Half of the captions are empty, for that is what a user without
words gives.
What the paper adds for photographs, LPIPS and the distillation of the base model's own pictures, is left out.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ..models import checkpoints
from ..models.captions import CaptionTokenizer
from ..models.one_step import ALPHA
from . import autoencoder
from ._fit import falling, fit
from ._muon import Muon
from ._run import MINIATURES, WORK, Average, device_and_autocast
from ._shards import load_pool
from .degradation import degrade
from .eps_model import CHANNELS, alpha_bars, attention_for, build_model, load_captions
from .eps_model import FILE as BASE_FILE
from .landscapes.grammar import caption
from .landscapes.painter import paint
from .landscapes.scene import draw_training_scene
from .latents import encode, pool_scene

FILE = MINIATURES / "restore_one_step.safetensors"
CHECKPOINT = WORK / "one_step.pt"
FACTOR = 4
SIZE, CROP = 128, 64  # of painted pictures; every fourth step is of parts of them, as tiles are
LAST = 999
SHARE = 0.25  # of z, that z_L is to be
CAPTIONED = 0.5
# Layers of the UNet that are changed: a name holds one of these.
LAYERS = ("conv", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class Adapted(nn.Module):
    """A matrix or convolution with a low-rank change beside it: layer(x) + ALPHA / rank B(A(x)), named as by peft.

    A convolution's A is one of the same shape to `rank` channels, its B one of 1x1. B begins at zero.
    """

    def __init__(self, layer: nn.Module, adapter: str, rank: int, generator: torch.Generator):
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            shape = layer.kernel_size, layer.stride, layer.padding
            down = nn.Conv2d(layer.in_channels, rank, *shape, bias=False)
            up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            down = nn.Linear(layer.in_features, rank, bias=False)
            up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.normal_(down.weight, std=down.weight[0].numel() ** -0.5, generator=generator)
        nn.init.zeros_(up.weight)
        self.base_layer = layer
        self.lora_A, self.lora_B = nn.ModuleDict({adapter: down}), nn.ModuleDict({adapter: up})
        self.adapter, self.scale = adapter, ALPHA / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.scale * self.lora_B[self.adapter](self.lora_A[self.adapter](x))


def adapt(network: nn.Module, adapter_of: Callable[[str], str | None], rank: int, seed: int) -> dict[str, list[str]]:
    """Freeze `network` and change its layers: {adapter: the names of its layers}. adapter_of(name) is None for none."""
    generator = torch.Generator().manual_seed(seed)
    network.requires_grad_(False)
    changed = {}
    for name, layer in list(network.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and (adapter := adapter_of(name)):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, Adapted(layer, adapter, rank, generator))
            changed.setdefault(adapter, []).append(name)
    return changed


def unet_adapter(name: str) -> str | None:
    """The three adapters that a file of OSEDiff has for the UNet: on its way down, on its way up, and the rest."""
    if not any(part in name for part in LAYERS):
        return None
    if "down_blocks" in name or name == "conv_in":
        return "default_encoder"
    return "default_decoder" if "up_blocks" in name or name == "conv_out" else "default_others"


def vae_adapter(name: str) -> str | None:
    """Every layer of the encoder, none of the decoder."""
    return "default_encoder" if name.startswith("encoder.") else None


class OneStep(nn.Module):
    """The miniature's UNet and autoencoder with changes of these ranks, and of the UNet's first layer as a whole."""

    def __init__(self, rank_unet: int, rank_vae: int, seed: int):
        super().__init__()
        self.unet, self.vae = build_model(), autoencoder.load(CHANNELS)
        self.unet.load_state_dict({name: value.float() for name, value in load_file(BASE_FILE).items()})
        self.layers = {"unet": adapt(self.unet, unet_adapter, rank_unet, seed),
                       "vae": adapt(self.vae, vae_adapter, rank_vae, seed)}  # fmt: skip
        self.ranks = {"rank_unet": rank_unet, "rank_vae": rank_vae}
        self.unet.conv_in.base_layer.requires_grad_(True)
        self.register_buffer("abar", alpha_bars()[LAST], persistent=False)

    def encode(self, enlarged: torch.Tensor) -> torch.Tensor:
        """Latents z_L [B, 4, H/8, W/8] of pictures [B, 3, H, W] in 0..1."""
        return self.vae.encoder(enlarged.contiguous(memory_format=torch.channels_last) * 2 - 1)

    def denoise(self, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """z_0 of z_L, both [B, 4, h, w], for texts [B, 20, 128]."""
        eps = self.unet(z, LAST, context, return_dict=False)[0]
        return (z - (1 - self.abar).sqrt() * eps) / self.abar.sqrt()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Pictures in 0..1, not clipped, of latents."""
        return (self.vae.decoder(z) + 1) / 2

    def changes(self) -> dict[str, torch.Tensor]:
        """All that a file holds, by name."""
        return {name: value.detach() for name, value in self.named_parameters()
                if "lora_" in name or name.startswith("unet.conv_in.base_layer")}  # fmt: skip


def enlarge(small: torch.Tensor) -> torch.Tensor:
    """Small pictures [B, 3, H, W] in 0..1, four times as large, as Pillow enlarges them."""
    return F.interpolate(small, scale_factor=FACTOR, mode="bicubic", antialias=True).clamp(0, 1)


def export(model: OneStep, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Save `weights`, the model's `changes` or their average, in half precision, laid out as OSEDiff's own file."""
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    of = {part: {n.removeprefix(f"{part}."): v for n, v in halves.items() if n.startswith(f"{part}.")}
          for part in ("unet", "vae")}  # fmt: skip
    unet, vae = model.layers["unet"], model.layers["vae"]
    partial = path.with_suffix(".partial")
    checkpoints.write(partial, {
        "vae_lora_encoder_modules": vae["default_encoder"],
        "unet_lora_encoder_modules": unet["default_encoder"],
        "unet_lora_decoder_modules": unet["default_decoder"],
        "unet_lora_others_modules": unet["default_others"],
        **model.ranks, "state_dict_unet": of["unet"], "state_dict_vae": of["vae"],
    })  # fmt: skip
    os.replace(partial, path)


def draw(step: int, batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sharp pictures [B, 3, H, W], the same bad and small [B, 3, H/4, W/4], and tokens [B, 20]: of (seed, step) alone.

    Every fourth step is of parts of the pictures, four times as many.
    """
    rng = np.random.default_rng((seed, step))
    number = batch if step % 4 else 4 * batch
    scenes = [draw_training_scene(rng) for _ in range(number)]
    sharp = torch.from_numpy(np.stack([paint(scene, SIZE, rng) for scene in scenes])).permute(0, 3, 1, 2).float()
    small = degrade(sharp, rng.integers(2**62, size=number).tolist(), FACTOR)
    words = [caption(scene, rng) if rng.random() < CAPTIONED else "" for scene in scenes]
    tokenizer = CaptionTokenizer()
    tokens = torch.tensor([tokenizer.encode(text) for text in words])
    if step % 4 == 0:
        tops, lefts = rng.integers((SIZE - CROP) // FACTOR + 1, size=(2, number))
        corners = list(zip(tops.tolist(), lefts.tolist(), strict=True))
        small = _cut(small, corners, CROP // FACTOR)
        sharp = _cut(sharp, [(FACTOR * top, FACTOR * left) for top, left in corners], CROP)
    return sharp, small, tokens


def _cut(pictures: torch.Tensor, corners: list[tuple[int, int]], side: int) -> torch.Tensor:
    return torch.stack([picture[:, top : top + side, left : left + side]
                        for picture, (top, left) in zip(pictures, corners, strict=True)])  # fmt: skip


def learn(model: OneStep, objective: Callable[[int], dict], steps: int, rate: float, checkpoint: Path) -> None:
    """`_fit.fit` of what has a gradient in `model`; the running average stays in it."""
    clip = [[p for p in part.parameters() if p.requires_grad] for part in (model.vae, model.unet)]
    optimiser = Muon([], [parameter for part in clip for parameter in part], weight_decay=0.0)
    average = Average(model, 0.99)
    fit(model, optimiser, average, objective, steps=steps, rate=falling(rate, 50, 0.03, steps), checkpoint=checkpoint,
        save=lambda weights: export(model, weights, FILE), kept=model.changes(), clip=clip)
    model.load_state_dict(average.state, strict=False)


@torch.no_grad()
def make_examples(numbers: range, seed: int, encoder: OneStep) -> dict[str, torch.Tensor]:
    """z_L of bad pictures and z of the sharp ones, [N, 4, 16, 16], and tokens of their captions, [N, 20]."""
    original, tokenizer = autoencoder.load(CHANNELS), CaptionTokenizer()
    made = {"z_L": [], "z": [], "tokens": []}
    for some in torch.tensor(numbers).split(25):
        scenes = [pool_scene(number, seed) for number in some.tolist()]
        sharp = torch.from_numpy(np.stack([paint(scene, SIZE, rng) for scene, rng in scenes])).movedim(-1, 1).float()
        small = degrade(sharp, some.tolist(), FACTOR)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made["z_L"].append(encoder.encode(enlarge(small)).half())
            made["z"].append(encode(original, sharp).half())
        made["tokens"].append(torch.tensor([tokenizer.encode(caption(scene, rng)) for scene, rng in scenes]))
    return {name: torch.cat(parts) for name, parts in made.items()}


def train(args) -> None:
    device, autocast = device_and_autocast()
    attention = attention_for(device)
    model = OneStep(args.rank_unet, args.rank_vae, args.seed).to(device)
    original = autoencoder.load(CHANNELS).encoder.requires_grad_(False).to(device)
    captions = load_captions(device)
    print(f"{sum(value.numel() for value in model.changes().values()) / 1e6:.2f} M parameters", flush=True)

    def from_pictures(step):
        apart = step < args.apart
        sharp, small, tokens = (t.to(device) for t in draw(step, args.batch, args.seed))
        with attention():
            with autocast:
                clean = original(sharp.contiguous(memory_format=torch.channels_last) * 2 - 1).float()
                z = model.encode(enlarge(small)).float()
                context, _pooled = captions(tokens)
            restored = model.denoise(z.detach() if apart else z, context.float())
            begun, done = (F.mse_loss(latent, clean) for latent in (z / SHARE, restored))
            loss = begun + done
            if not apart:
                with autocast:
                    pictures = model.decode(restored)
                loss = done + args.pixels * autoencoder.reconstruction_loss(pictures.float(), sharp)
        return {"z_L": begun, "z_0": done, "loss": loss}

    learn(model, from_pictures, args.steps, args.rate, CHECKPOINT)
    model.vae.requires_grad_(False)
    encoder = copy.deepcopy(model).cpu()
    pool = load_pool(f"one_step_{args.seed}", args.pool, partial(make_examples, seed=args.seed, encoder=encoder))
    empty = torch.tensor(CaptionTokenizer().encode(""))

    def from_pool(step):
        rng = np.random.default_rng((args.seed, 1, step))
        picked, told = rng.integers(len(pool["z"]), size=args.pool_batch), rng.random(args.pool_batch) < CAPTIONED
        tokens = torch.where(torch.from_numpy(told)[:, None], pool["tokens"][picked], empty)
        z, clean, tokens = (t.to(device) for t in (pool["z_L"][picked], pool["z"][picked], tokens))
        with attention(), autocast:
            context, _pooled = captions(tokens)
            restored = model.denoise(z.float(), context.float())
        return {"loss": F.mse_loss(restored.float(), clean.float())}

    learn(model, from_pool, args.pool_steps, args.rate, CHECKPOINT.with_stem(f"{CHECKPOINT.stem}_pool"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apart", type=int, default=250, help="steps in which encoder and UNet learn side by side")
    parser.add_argument("--steps", type=int, default=870, help="steps of encoder and UNet")
    parser.add_argument("--pool-steps", type=int, default=3000, help="steps of the UNet alone")
    parser.add_argument("--pool-batch", type=int, default=32)
    parser.add_argument("--pool", type=int, default=5000, help="pictures of the pool")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--pixels", type=float, default=5.0, help="weight of the picture's error beside the latent's")
    parser.add_argument("--rank-unet", type=int, default=8)
    parser.add_argument("--rank-vae", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
