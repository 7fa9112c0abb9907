"""Train the checker on painted pictures, blurred, noised, rescaled, compressed and autoencoded.

    python -m trajectory.training.checker
"""

from __future__ import annotations

import argparse
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import autoencoder
from ._run import WORK, Progress, device_and_autocast, load_checkpoint, save_checkpoint, save_weights
from .landscapes.checker import FILE, HEADS, Checker, prepare, targets
from .landscapes.painter import paint
from .landscapes.scene import draw_training_scene
from .latents import decode, encode

CHECKPOINT = WORK / "checker.pt"


def _paint_pool(number: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Pictures uint8 [N, 3, 64, 64], half of them painted at 128 and brought down, and the classes of their heads."""
    pictures = torch.empty(number, 3, 64, 64, dtype=torch.uint8)
    rows = []
    for index in range(number):
        rng = np.random.default_rng((seed, 99, index))
        scene = draw_training_scene(rng)
        painted = paint(scene, 128 if index % 2 else 64, rng)
        pictures[index] = (prepare(painted[None])[0] * 255).round().byte()
        rows.append(targets(scene))
    return pictures, {k: torch.tensor([row[k] for row in rows]) for k in HEADS}


def _autoencode(pictures: torch.Tensor) -> torch.Tensor:
    """The same pictures after a trip through the autoencoder."""
    model = autoencoder.load(16)
    parts = [decode(model, encode(model, part.float() / 255)) for part in pictures.split(50)]
    return (torch.cat(parts) * 255).round().byte()


def _compress(picture: torch.Tensor, quality: int) -> torch.Tensor:
    """One picture uint8 [3, H, W] through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1)


def _augment(batch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """uint8 [B, 3, 64, 64] -> float in 0..1; each picture is left alone, compressed, blurred, noised or rescaled."""
    out = torch.empty(batch.shape)
    for index, picture in enumerate(batch):
        kind = int(rng.integers(5))
        if kind == 1:
            picture = _compress(picture, int(rng.integers(40, 95)))
        x = picture.float()[None] / 255
        if kind == 2:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1) * (w := rng.uniform(0.3, 1)) + x * (1 - w)
        elif kind == 3:
            x = x + torch.from_numpy(rng.normal(0, rng.uniform(0.005, 0.05), x.shape).astype(np.float32))
        elif kind == 4:
            side = int(rng.integers(44, 128))
            x = F.interpolate(F.interpolate(x, (side, side), mode="bilinear"), (64, 64), mode="area")
        out[index] = x[0].clamp(0, 1)
    return out


def _loss(logits: dict, classes: dict) -> torch.Tensor:
    terms = [F.cross_entropy(logits[k].float(), classes[k]) for k in HEADS if bool((classes[k] >= 0).any())]
    return sum(terms) / len(HEADS)


def train(args) -> None:
    device, autocast = device_and_autocast()
    generator = torch.Generator().manual_seed(args.seed)
    model = Checker()
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
    model.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    step, state = 0, load_checkpoint(CHECKPOINT)
    if state:
        step = state["step"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    pictures, classes = _paint_pool(args.pool, args.seed)
    if autoencoder.LAYOUTS[16].file.exists():
        part = slice(0, args.pool // 3)
        pictures = torch.cat([pictures, _autoencode(pictures[part])])
        classes = {k: torch.cat([v, v[part]]) for k, v in classes.items()}
    progress = Progress(args.steps, step)
    model.train()
    while step < args.steps:
        for group in optimiser.param_groups:
            decay = 0.01 + 0.99 * (1 + math.cos(math.pi * step / args.steps)) / 2
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * decay
        rng = np.random.default_rng((args.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        indices = torch.from_numpy(rng.integers(len(pictures), size=args.batch))
        batch = _augment(pictures[indices], rng).to(device, memory_format=torch.channels_last)
        with autocast:
            logits = model(batch)
        loss = _loss(logits, {k: v[indices].to(device) for k, v in classes.items()})
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        step += 1
        progress.report(step, loss=loss)
        if step % 250 == 0 or step == args.steps:
            state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
            save_checkpoint(CHECKPOINT, state)
            save_weights(FILE, model.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--pool", type=int, default=9000, help="painted pictures")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
