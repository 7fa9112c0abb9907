"""Records tests/parity/vq.json: python record_vq.py /path/to/ResShift

The authors' vector-quantised autoencoder (VQModelTorch, github.com/zsyOAOA/ResShift, branch journal) in small
configurations with random weights: its keys with their shapes, latents of pictures and pictures of latents.
"""

import json
import sys
from pathlib import Path

import torch

FACE = {"embed_dim": 8, "n_embed": 4096, "z_channels": 8, "ch": 64, "ch_mult": [1, 2, 4, 8],
        "num_res_blocks": [1, 2, 3, 4]}  # fmt: skip
PUBLISHED = {
    "4x": {"embed_dim": 3, "n_embed": 8192, "z_channels": 3, "ch": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2},
    "face": FACE,
}
CASES = {
    "4x": {"embed_dim": 3, "n_embed": 300, "z_channels": 3, "ch": 64, "ch_mult": [1, 1, 2], "num_res_blocks": 1},
    "face": {**FACE, "n_embed": 200, "ch_mult": [1, 2, 1, 1], "num_res_blocks": [1, 2, 1, 2]},
    "attention": {**FACE, "n_embed": 50, "embed_dim": 4, "ch_mult": [1, 1], "num_res_blocks": [1, 2],
                  "attn_resolutions": [16]},
}  # fmt: skip
RESOLUTION = 32
"""By which the authors count sizes, so that 16 is the second level; the pictures need not be so large."""
SIZE = (40, 32)
STRIDE = 7


def random_weights(shapes, seed=0):
    """{key: tensor} for {key: shape}, such that what goes through stays near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key in sorted(shapes):
        drawn = torch.randn(shapes[key], generator=generator)
        if drawn.ndim == 1:
            drawn = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
        elif drawn.ndim == 4:
            drawn = drawn / drawn[0].numel() ** 0.5
        weights[key] = drawn
    return weights


def inputs(config, size=SIZE):
    """Pictures [2, 3, H, W] in -1..1, and latents [2, d, h, w]."""
    generator = torch.Generator().manual_seed(1)
    factor = 2 ** (len(config["ch_mult"]) - 1)
    pictures = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    return pictures, torch.randn(2, config["embed_dim"], *(n // factor for n in size), generator=generator)


def theirs(checkout, config):
    sys.path.insert(0, str(checkout))
    from ldm.models.autoencoder import VQModelTorch

    sys.path.remove(str(checkout))
    rest = {key: value for key, value in config.items() if key not in ("embed_dim", "n_embed")}
    network = VQModelTorch({"resolution": RESOLUTION, "in_channels": 3, "out_ch": 3, "double_z": False,
                            "attn_resolutions": [], **rest}, config["n_embed"], config["embed_dim"]).eval()
    network.load_state_dict(random_weights({key: value.shape for key, value in network.state_dict().items()}))
    return network


def answers(network, config, size=SIZE):
    """Latents of the pictures, and pictures of the latents; of either implementation."""
    pictures, latents = inputs(config, size)
    with torch.no_grad():
        return network.encode(pictures), network.decode(latents)


def record(checkout):
    recorded = {}
    for name, config in CASES.items():
        network = theirs(checkout, config)
        recorded[name] = {
            "shapes": {key: list(value.shape) for key, value in network.state_dict().items()},
            "outputs": [output.flatten()[::STRIDE].tolist() for output in answers(network, config)],
        }
    return recorded


if __name__ == "__main__":
    Path(__file__).with_name("vq.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
