"""Records tests/parity/faster_diffusion.json: python record_faster_diffusion.py /path/to/Faster-Diffusion

The noise predictions of guided runs of 50 DDIM steps with the authors' `register_faster_forward`
(github.com/hutaiHang/Faster-Diffusion) on a small UNet of diffusers with random weights: some numbers of each step.
"""

import ast
import copy
import json
import sys
import typing
from pathlib import Path

import numpy as np
import torch

SMALL = {
    "block_out_channels": [32, 64], "layers_per_block": 1, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": [2, 4], "cross_attention_dim": 24,
}  # fmt: skip
TIMESTEPS = list(range(981, 0, -20))
MODES = {"paper": "50ls", "pro": "pro", "uniform": 4}
"""Our name of a schedule -> the authors' `mod`."""
CFG = 3.0


def random_weights(shapes):
    """{key: tensor} for {key: shape}, small enough that the output stays near 1."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key in sorted(shapes):
        drawn = torch.randn(shapes[key], generator=generator)
        if drawn.ndim == 1:
            weights[key] = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = drawn / drawn[0].numel() ** 0.5
    return weights


def inputs():
    """Noise [1, 4, 8, 8] and the texts without and with a prompt, each [1, 5, 24]."""
    generator = torch.Generator().manual_seed(1)
    shapes = (1, 4, 8, 8), (1, 5, 24), (1, 5, 24)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def probe(noise_prediction):
    """Six of the 256 numbers."""
    return [round(value, 6) for value in noise_prediction.flatten()[::47].tolist()]


def faster(checkout, mode):
    """The small network with the authors' forward, which is taken alone: their module imports much that has moved."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    names = {**vars(typing), "np": np, "torch": torch, "deepcopy": copy.deepcopy,
             "UNet2DConditionOutput": UNet2DConditionOutput}  # fmt: skip
    tree = ast.parse((Path(checkout) / "utils_sd.py").read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if getattr(n, "name", "").startswith(("warpped_", "register_faster_forward"))]
    exec(compile(tree, "utils_sd.py", "exec"), names)  # noqa: S102 - the authors'
    network = UNet2DConditionModel(**SMALL).eval()
    network.load_state_dict(random_weights({k: v.shape for k, v in network.state_dict().items()}))
    names["register_faster_forward"](network, mode)
    return network


@torch.no_grad()
def run(network, batches):
    """Probes of all steps; `batches` says which steps are predicted in one call, by their places in TIMESTEPS."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)
    sigmas = [*((1 - alpha_bar) / alpha_bar).sqrt()[TIMESTEPS].tolist(), 0.0]
    noise, *texts = inputs()
    x, text, probes = noise * sigmas[0], torch.cat(texts), []
    for steps in batches:
        network.order = steps[0]
        times = [torch.tensor(TIMESTEPS[i]) for i in steps]
        scaled = x / (1 + sigmas[steps[0]] ** 2) ** 0.5
        output = network(torch.cat([scaled, scaled]), times if len(times) > 1 else times[0], text).sample
        uncond, cond = output.chunk(2)
        for i, predicted in zip(steps, (uncond + CFG * (cond - uncond)).chunk(len(steps)), strict=True):
            probes.append(probe(predicted))
            x = x + predicted * (sigmas[i + 1] - sigmas[i])
    return probes


def record(checkout):
    steps = range(len(TIMESTEPS))
    runs = {name: run(faster(checkout, mode), [[i] for i in steps]) for name, mode in MODES.items()}
    keys = [0, 1, 2, 3, 5, 10, 15, 25, 35, len(steps)]
    ahead = [list(range(a, b)) for a, b in zip(keys, keys[1:], strict=False)]
    return {**runs, "paper, decoding ahead": run(faster(checkout, MODES["paper"]), ahead)}


if __name__ == "__main__":
    runs = record(sys.argv[1]).items()
    lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, probes)) + "\n]" for name, probes in runs]
    Path(__file__).with_name("faster_diffusion.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
