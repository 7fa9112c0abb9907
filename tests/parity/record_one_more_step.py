"""Records tests/parity/one_more_step.json: python record_one_more_step.py /path/to/OneMoreStep

The authors' network (UNet2DConditionWoCTModel, github.com/mhh0318/OneMoreStep) in a small configuration with random
weights, and their `oms_step` on fixed numbers.
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import torch

SMALL = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64, 128], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2, 4], "cross_attention_dim": 24, "use_linear_projection": False,
}  # fmt: skip
PUBLISHED = {**SMALL, "block_out_channels": [160, 320, 640], "attention_head_dim": [5, 10, 20],
             "cross_attention_dim": 1024}  # fmt: skip
ALPHA_BAR, CFG, SEED = 0.0047, 1.7, 5


def random_weights(shapes, seed=0):
    """{key: tensor} for {key: shape}, small enough that the output stays near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key in sorted(shapes):
        drawn = torch.randn(shapes[key], generator=generator)
        if drawn.ndim == 1:
            weights[key] = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = drawn / drawn[0].numel() ** 0.5
    return weights


def inputs(width, size=(5, 7)):
    """Noise [2, 4, h, w] and text [2, 6, width]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, *size, generator=generator), torch.randn(2, 6, width, generator=generator)


def theirs(checkout, config):
    """The authors' network; a module that it imports has moved inside diffusers since."""
    import diffusers.models.unets.unet_2d_blocks as blocks

    sys.modules["diffusers.models.unet_2d_blocks"] = blocks
    path = Path(checkout) / "diffusers_patch" / "models" / "unet_2d_condition_woct.py"
    spec = importlib.util.spec_from_file_location("unet_2d_condition_woct", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.UNet2DConditionWoCTModel(**config).eval()
    network.load_state_dict(random_weights({k: v.shape for k, v in network.state_dict().items()}))
    return network


def their_step(checkout):
    """The method `oms_step` alone: what its module imports else is of another diffusers."""
    from diffusers.utils.torch_utils import randn_tensor

    source = (Path(checkout) / "diffusers_patch" / "pipelines" / "oms" / "pipeline_oms.py").read_text(encoding="utf-8")
    method = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "oms_step")
    names = {"torch": torch, "randn_tensor": randn_tensor}
    exec(compile(ast.Module([method], []), "pipeline_oms.py", "exec"), names)  # noqa: S102 - the authors'
    return names["oms_step"]


def record(checkout):
    network = theirs(checkout, SMALL)
    noise, text = inputs(SMALL["cross_attention_dim"])
    with torch.no_grad():
        v = network(noise, text, return_dict=False)[0]
    bar = torch.tensor(ALPHA_BAR, dtype=torch.float64)
    pair = torch.cat([v[:1], v[1:]]).double()  # taken as the answers without and with the text
    state = their_step(checkout)(None, pair, noise[:1].double(), True, CFG, torch.Generator().manual_seed(SEED), bar)
    return {"shapes": {k: list(p.shape) for k, p in network.state_dict().items()}, "v": v.flatten().tolist(),
            "state": state.flatten().tolist()}  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("one_more_step.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
