"""Records tests/parity/nag.json: python record_nag.py /path/to/ComfyUI-NAG

What the function `nag` of the authors' ComfyUI pack (github.com/ChenDarYen/ComfyUI-NAG) makes of attention outputs.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch

# (nag_scale, nag_tau, nag_alpha): usual ones, some that tau binds, one that it does not, and no guidance
SETTINGS = ((5.0, 2.5, 0.25), (3.0, 2.5, 0.5), (5.0, 1.2, 0.125), (11.0, 2.5, 0.25), (1.5, 9.0, 1.0), (1.0, 2.5, 0.5))


def outputs():
    """Attention outputs Z+ and Z-, each [2, 4, 6]."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 2, 4, 6, generator=generator, dtype=torch.float64)


def record(checkout):
    spec = importlib.util.spec_from_file_location("nag_utils", Path(checkout) / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [module.nag(*outputs(), *settings).tolist() for settings in SETTINGS]


if __name__ == "__main__":
    Path(__file__).with_name("nag.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
