"""Train a miniature autoencoder: the TAESD layout with 16 or 4 latent channels, 8x smaller than the picture.

    python -m trajectory.training.autoencoder                 # 16 channels, in the latent scale of SD3
    python -m trajectory.training.autoencoder --channels 4    # 4 channels, in that of SD 1.5; begins from the former

The first part trains encoder and decoder together; then the encoder is frozen, so that latents made from it stay valid,
and the decoder alone goes on. The file is laid out as ComfyUI's VAE loader expects a TAESD with its own latent scale.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from ._muon import Muon
from ._run import MINIATURES, WORK, Progress, device_and_autocast, load_checkpoint, save_checkpoint, save_weights
from .landscapes.painter import group_centre, paint
from .landscapes.scene import draw_training_scene


@dataclass(frozen=True)
class Layout:
    """One latent space: the file of its autoencoder, the mean and deviation that training pulls the network's latents
    to, and the scale and shift by which the host brings them to the diffusion model: (latents - shift) * scale."""

    file: Path
    mean: float
    std: float
    scale: float
    shift: float
    vae_scale: float  # what the host's VAE divides the network's latents by

    @property
    def checkpoint(self) -> Path:
        return (WORK / self.file.name).with_suffix(".pt")


# By the number of channels. The host scales SD3 latents by 1.5305 around 0.0609, and those of SD 1.5 by 0.18215, which
# cancels against `vae_scale`, so that the network's own latents are the model's.
LAYOUTS = {
    16: Layout(MINIATURES / "landscapes_autoencoder.safetensors", 0.0609, 0.65, 1.5305, 0.0609, 1.0),
    4: Layout(MINIATURES / "landscapes_autoencoder4.safetensors", 0.0, 1.0, 1.0, 0.0, 0.18215),
}


def paint_pool(number: int, size: int, seed: int) -> list[tuple[torch.Tensor, list]]:
    """`number` training pictures uint8 [3, size, size], each with the centres of its groups."""
    pool = []
    for index in range(number):
        rng = np.random.default_rng((seed, index))
        scene = draw_training_scene(rng)
        picture = torch.from_numpy((paint(scene, size, rng) * 255).round().astype(np.uint8))
        pool.append((picture.permute(2, 0, 1).contiguous(), [group_centre(g) for g in scene.groups]))
    return pool


def _crop(picture: torch.Tensor, centres: list, side: int, rng: np.random.Generator) -> torch.Tensor:
    """A crop [3, side, side]: three times in four around a group of objects, for empty sky teaches little."""
    size = picture.shape[-1]
    corner = rng.integers(size - side + 1, size=2)
    if centres and rng.random() < 0.75:
        centre = np.array(centres[int(rng.integers(len(centres)))]) * size
        corner = (centre - side / 2 + rng.uniform(-0.3, 0.3, 2) * side).astype(int).clip(0, size - side)
    x, y = (int(c) for c in corner)
    return picture[:, y : y + side, x : x + side]


def crops(pool, crop: int, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops [size, 3, crop, crop] in 0..1."""
    chosen = rng.integers(len(pool), size=size)
    return torch.stack([_crop(*pool[i], crop, rng) for i in chosen]).float() / 255.0


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of pixels, of their differences, and of the picture at half and quarter size, and a squared
    error that does not let small things vanish."""
    loss = F.l1_loss(output, target) + 10 * F.mse_loss(output, target)
    loss = loss + sum(F.l1_loss(a, b) for a, b in zip(_edges(output), _edges(target), strict=True))
    for factor in (2, 4):
        loss = loss + 0.5 * F.l1_loss(F.avg_pool2d(output, factor), F.avg_pool2d(target, factor))
    return loss


def latent_penalty(latents: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Pulls each channel's mean and deviation over batch and place towards what the diffusion model expects."""
    return (latents.mean((0, 2, 3)) - mean).square().mean() + (latents.std((0, 2, 3)) - std).square().mean()


def _learning_rate(step: int, encoder_steps: int, steps: int) -> float:
    if step < encoder_steps:
        warm = min(1.0, (step + 1) / 100)
        return 2e-3 * warm * (0.02 + 0.98 * (1 - step / encoder_steps))
    return 1e-3 * (0.02 + 0.98 * (1 - (step - encoder_steps) / max(1, steps - encoder_steps)))


def train(args) -> AutoencoderTiny:
    device, autocast = device_and_autocast()
    layout = LAYOUTS[args.channels]
    torch_rng = torch.Generator().manual_seed(args.seed)
    pool = paint_pool(args.pool, 128, args.seed) + paint_pool(args.pool // 4, 64, args.seed + 1)
    if args.channels == 16:
        model = AutoencoderTiny(latent_channels=16)
        initialise(model, torch_rng)
    else:
        model = narrowed(load(16), args.channels, torch.stack([picture for picture, _ in pool[:256]]).float() / 255.0)
    model = model.to(device, memory_format=torch.channels_last)
    step, state = 0, load_checkpoint(layout.checkpoint)
    if state:
        step = state["step"]
        model.load_state_dict(state["model"])
    optimiser = _optimiser(model, "decoder" if step >= args.encoder_steps else "")
    if state and step != args.encoder_steps:
        optimiser.load_state_dict(state["optimiser"])
    progress = Progress(args.steps, step)
    while step < args.steps:
        frozen = step >= args.encoder_steps
        if step == args.encoder_steps:
            optimiser = _optimiser(model, "decoder")
        rng = np.random.default_rng((args.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        torch_rng.manual_seed(int(rng.integers(2**62)))
        target = crops(pool, args.crop, args.batch, rng).to(device, memory_format=torch.channels_last)
        with autocast:
            with torch.set_grad_enabled(not frozen):
                latents = model.encoder(target * 2 - 1)
            noise = torch.randn(latents.shape, generator=torch_rng).to(device)
            output = model.decoder(latents + 0.03 * noise)
        loss = reconstruction_loss((output.float() + 1) / 2, target)
        total = loss if frozen else loss + 0.05 * latent_penalty(latents.float(), layout.mean, layout.std)
        total.backward()
        optimiser.step(_learning_rate(step, args.encoder_steps, args.steps))
        step += 1
        psnr = -10 * torch.log10(F.mse_loss((output.detach().float() + 1) / 2, target))
        progress.report(step, loss=loss, psnr=psnr, std=latents.detach().float().std())
        if step % 500 == 0 or step == args.steps or step == args.encoder_steps:
            state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
            save_checkpoint(layout.checkpoint, state)
            export(model, layout)
    return model


@torch.no_grad()
def narrowed(model: AutoencoderTiny, channels: int, pictures: torch.Tensor) -> AutoencoderTiny:
    """`model` with fewer latent channels: the whitened principal components of its latents of `pictures`.

    Both ends of the bottleneck are convolutions, so the projection and its inverse go into their weights.
    """
    latents = model.encoder(pictures * 2 - 1).movedim(1, -1).flatten(0, -2)
    mean = latents.mean(0)
    variance, axes = torch.linalg.eigh((latents - mean).T.cov())
    variance, axes = variance[-channels:], axes[:, -channels:]
    small = AutoencoderTiny(latent_channels=channels)
    state = model.state_dict()
    ends = [name.removesuffix(".bias") for name in state if name.startswith("encoder.") and name.endswith(".bias")]
    last, first = ends[-1], "decoder.layers.0"
    project, restore = (axes / variance.sqrt()).T, axes * variance.sqrt()
    weight, bias = state[f"{last}.weight"], state[f"{last}.bias"]
    state[f"{last}.weight"] = torch.einsum("pc,cikl->pikl", project, weight)
    state[f"{last}.bias"] = project @ (bias - mean)
    weight = state[f"{first}.weight"]
    state[f"{first}.bias"] = state[f"{first}.bias"] + weight.sum((2, 3)) @ mean
    state[f"{first}.weight"] = torch.einsum("ockl,cp->opkl", weight, restore)
    small.load_state_dict(state)
    return small.train()


def _optimiser(model: AutoencoderTiny, part: str = "") -> Muon:
    """Muon for the 64-channel convolutions, AdamW for the rest, of the parameters whose name begins with `part`."""
    named = [(n, p) for n, p in model.named_parameters() if n.startswith(part)]
    hidden = [p for _n, p in named if p.ndim == 4 and p.shape[:2] == (64, 64)]
    return Muon(hidden, [p for _n, p in named if not (p.ndim == 4 and p.shape[:2] == (64, 64))], weight_decay=0.0)


def initialise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """PyTorch's own initial weights, but drawn from our generator."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            torch.nn.init.uniform_(module.weight, -bound * math.sqrt(3), bound * math.sqrt(3), generator=generator)
            if module.bias is not None:
                torch.nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def export(model: AutoencoderTiny, layout: Layout) -> None:
    """Save under the host's names: its decoder begins with a clamp layer, so the decoder's indices move up by one."""
    out = {"vae_scale": torch.tensor(layout.vae_scale), "vae_shift": torch.tensor(0.0)}
    for key, value in model.state_dict().items():
        half, _, index, *rest = key.split(".")
        number = int(index) + (half == "decoder")
        out[f"taesd_{half}.{'.'.join([str(number), *rest])}"] = value
    save_weights(layout.file, out)


def load(channels: int) -> AutoencoderTiny:
    """The exported autoencoder with so many latent channels as a diffusers model in float32, ready to use."""
    state = {}
    for key, value in load_file(LAYOUTS[channels].file).items():
        if key.startswith("taesd_"):
            half, index, *rest = key.removeprefix("taesd_").split(".")
            state[f"{half}.layers.{'.'.join([str(int(index) - (half == 'decoder')), *rest])}"] = value.float()
    model = AutoencoderTiny(latent_channels=channels)
    model.load_state_dict(state)
    return model.eval().to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=16, choices=list(LAYOUTS), help="latent channels")
    parser.add_argument("--encoder-steps", type=int, default=10000, help="steps after which the encoder is frozen")
    parser.add_argument("--steps", type=int, default=13000, help="steps in all")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--pool", type=int, default=5000, help="pictures painted at 128x128; a quarter more at 64x64")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
