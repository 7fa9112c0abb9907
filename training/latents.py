"""A pool of painted scenes as latents on disk: painting and encoding on the fly would be slower than training itself.

    python -m trajectory.training.latents --size 128 --number 16000 --channels 16
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from . import autoencoder
from ._run import WORK
from .landscapes.painter import paint
from .landscapes.scene import Scene, draw_training_scene

SHARD = 500  # pictures per file


def to_model(latents: torch.Tensor) -> torch.Tensor:
    """Autoencoder latents [B, C, h, w] as the diffusion model sees them."""
    layout = autoencoder.LAYOUTS[latents.shape[1]]
    return (latents - layout.shift) * layout.scale


def from_model(latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_model`."""
    layout = autoencoder.LAYOUTS[latents.shape[1]]
    return latents / layout.scale + layout.shift


def pool_scene(index: int, seed: int) -> tuple[Scene, np.random.Generator]:
    """The scene of one place in the pool, and the generator that paints it."""
    rng = np.random.default_rng((seed, 77, index))
    return draw_training_scene(rng), rng


def encode(model, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in 0..1 to autoencoder latents [B, C, H/8, W/8]."""
    with torch.no_grad(), torch.autocast(pictures.device.type, dtype=torch.bfloat16):
        return model.encoder(pictures.to(memory_format=torch.channels_last) * 2 - 1).float()


def decode(model, latents: torch.Tensor) -> torch.Tensor:
    """Autoencoder latents to pictures [B, 3, H, W] in 0..1."""
    with torch.no_grad(), torch.autocast(latents.device.type, dtype=torch.bfloat16):
        return ((model.decoder(latents).float() + 1) / 2).clamp(0, 1)


def _path(size: int, shard: int, seed: int, channels: int):
    return WORK / f"latents{channels}_{size}_{seed}_{shard:04d}.safetensors"


def _make_shard(shard: int, size: int, seed: int, channels: int) -> int:
    torch.set_num_threads(1)
    model = autoencoder.load(channels)
    latents = []
    for start in range(shard * SHARD, (shard + 1) * SHARD, 25):
        scenes = [pool_scene(index, seed) for index in range(start, start + 25)]
        pictures = np.stack([paint(scene, size, rng) for scene, rng in scenes])
        latents.append(encode(model, torch.from_numpy(pictures).permute(0, 3, 1, 2)).half())
    path = _path(size, shard, seed, channels)
    partial_path = path.with_suffix(".partial")
    save_file({"latents": torch.cat(latents).contiguous()}, partial_path)
    os.replace(partial_path, path)
    return shard


def build_pool(size: int, number: int, seed: int, channels: int = 16) -> None:
    """Paint and encode what is missing of the first `number` pictures, on two processes."""
    WORK.mkdir(parents=True, exist_ok=True)
    missing = [s for s in range(number // SHARD) if not _path(size, s, seed, channels).exists()]
    make = partial(_make_shard, size=size, seed=seed, channels=channels)
    with ProcessPoolExecutor(2) as workers:
        for done, shard in enumerate(workers.map(make, missing), 1):
            print(f"latents at {size}: shard {shard} ({done}/{len(missing)})", flush=True)


def load_pool(size: int, number: int, seed: int, channels: int = 16) -> torch.Tensor:
    """The leading shards that are on disk, at most `number` pictures: fp16 [N, C, size/8, size/8], model scale."""
    shards = []
    for shard in range(number // SHARD):
        path = _path(size, shard, seed, channels)
        if not path.exists():
            break
        shards.append(to_model(load_file(path)["latents"].float()).half())
    if not shards:
        command = f"python -m trajectory.training.latents --size {size} --channels {channels}"
        raise FileNotFoundError(f"no latents at size {size} in {WORK}: run `{command}`")
    return torch.cat(shards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--number", type=int, default=16000)
    parser.add_argument("--channels", type=int, default=16, choices=list(autoencoder.LAYOUTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    build_pool(args.size, args.number, args.seed, args.channels)


if __name__ == "__main__":
    main()
