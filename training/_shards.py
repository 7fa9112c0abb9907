"""Pools of made examples on disk, in files of a few hundred, so that an interruption loses one file at most."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ._run import WORK

SHARD = 250  # examples per file


def _write(path: Path, make: Callable[[range], dict[str, torch.Tensor]], shard: int) -> None:
    torch.set_num_threads(1)
    unfinished = path.with_suffix(".partial")
    made = make(range(shard * SHARD, (shard + 1) * SHARD))
    save_file({name: value.contiguous() for name, value in made.items()}, unfinished)
    os.replace(unfinished, path)


def load_pool(stem: str, number: int, make: Callable[[range], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The first `number` examples of the pool `stem`; what is missing on disk is made first, on two processes.

    make(numbers) -> {name: tensor whose first axis is that of the numbers}; a function that can be pickled.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    paths = [WORK / f"{stem}_{shard:04d}.safetensors" for shard in range(math.ceil(number / SHARD))]
    missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    with ProcessPoolExecutor(2) as workers:
        jobs = [workers.submit(partial(_write, paths[shard], make, shard)) for shard in missing]
        for done, job in enumerate(jobs, 1):
            job.result()
            print(f"pool {stem}: {done}/{len(jobs)}", flush=True)
    parts = [load_file(path) for path in paths]
    return {name: torch.cat([part[name] for part in parts])[:number] for name in parts[0]}
