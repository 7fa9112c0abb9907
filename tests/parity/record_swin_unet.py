"""Records tests/parity/swin_unet.json: python record_swin_unet.py /path/to/ResShift

The authors' network (UNetModelSwin, github.com/zsyOAOA/ResShift, branch journal) in small configurations with random
weights: its keys with their shapes, and every 31st number of its output.
"""

import json
import sys
import types
from pathlib import Path

import torch

PUBLISHED = {
    "image_size": 64, "in_channels": 3, "model_channels": 160, "out_channels": 3, "num_res_blocks": [2, 2, 2, 2],
    "attention_resolutions": [64, 32, 16, 8], "channel_mult": [1, 2, 2, 4], "num_head_channels": 32,
    "use_scale_shift_norm": True, "swin_depth": 2, "swin_embed_dim": 192, "window_size": 8, "mlp_ratio": 4,
    "cond_lq": True, "cond_mask": False, "lq_size": 64,
}  # fmt: skip
VARIANTS = {
    "x4": {}, "x2": {"lq_size": 128}, "inpainting": {"lq_size": 256, "cond_mask": True},
    "face": {"lq_size": 512, "in_channels": 8, "out_channels": 8},
}  # fmt: skip
SMALL = {"model_channels": 128, "channel_mult": [1, 1, 2, 1], "num_res_blocks": [1, 2, 1, 1], "swin_embed_dim": 128,
         "mlp_ratio": 2}  # fmt: skip
CASES = {
    "x4": {**PUBLISHED, **SMALL},
    "inpainting": {**PUBLISHED, **SMALL, **VARIANTS["inpainting"], "attention_resolutions": [64, 16]},
}
SIZES = ((64, 64), (128, 64), (64, 128))
BUFFERS = ("relative_position_index", "attn_mask")
STRIDE = 31


def random_weights(shapes, seed=0):
    """{key: tensor} for {key: shape}, small enough that the output stays near 1; a buffer is not drawn but zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key in sorted(shapes):
        drawn = torch.zeros(shapes[key]) if key.endswith(BUFFERS) else torch.randn(shapes[key], generator=generator)
        if drawn.ndim == 1:
            drawn = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
        elif "bias_table" not in key:
            drawn = drawn / drawn[0].numel() ** 0.5
        weights[key] = drawn
    return weights


def inputs(config, height, width):
    """State [1, C, h, w], time step [1] and conditioning [1, 3 or 4, H, W]."""
    generator = torch.Generator().manual_seed(1)
    scale = config["lq_size"] // config["image_size"]
    state = torch.randn(1, config["in_channels"], height, width, generator=generator)
    lq = torch.rand(1, 3 + config["cond_mask"], height * scale, width * scale, generator=generator) * 2 - 1
    return state, torch.tensor([2]), lq


def theirs(checkout, config):
    """The authors' network; of timm it needs three small functions."""
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath, layers.to_2tuple = torch.nn.Identity, lambda x: (x, x)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    sys.modules |= {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models"),
                    "timm.models.layers": layers}  # fmt: skip
    sys.path.insert(0, str(checkout))
    from models.unet import UNetModelSwin

    sys.path.remove(str(checkout))
    network = UNetModelSwin(**config).eval()
    weights = random_weights({key: value.shape for key, value in network.state_dict().items()})
    network.load_state_dict({k: v for k, v in weights.items() if not k.endswith(BUFFERS)}, strict=False)
    return network


def answer(network, config, size):
    """The prediction of the authors' network, which takes the mask by itself."""
    state, time, lq = inputs(config, *size)
    with torch.no_grad():
        return network(state, time, lq=lq[:, :3], mask=lq[:, 3:] if config["cond_mask"] else None)


def record(checkout):
    recorded = {}
    for name, config in CASES.items():
        network = theirs(checkout, config)
        recorded[name] = {
            "shapes": {key: list(value.shape) for key, value in network.state_dict().items()},
            "outputs": [answer(network, config, size).flatten()[::STRIDE].tolist() for size in SIZES],
        }
    return recorded


if __name__ == "__main__":
    Path(__file__).with_name("swin_unet.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
