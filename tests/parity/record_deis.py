"""Records tests/parity/deis.json: python record_deis.py /path/to/ComfyUI

The host's `deis` (tAB in the time of a fixed VP schedule with sigma from 0.002 to 80) in float64 on an analytic model.
"""

import json
import sys
from pathlib import Path

import torch

SIGMAS = [10.0, 6.0, 4.0, 2.5, 1.5, 1.0, 0.6, 0.3, 0.1]


def denoise(x, sigma):
    """A smooth nonlinear denoiser: two modes at +-1 with standard deviation 0.35."""
    v = 0.35**2 + sigma**2
    sign = torch.tanh(x / v)
    return sign + 0.35**2 / v * (x - sign)


def record(checkout):
    sys.path.insert(0, checkout)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.k_diffusion.sampling import sample_deis

    x = torch.linspace(-20.0, 20.0, 6, dtype=torch.float64).view(6, 1)
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    results = {
        str(order): sample_deis(lambda x, s: denoise(x, s.view(-1, 1)), x, sigmas, disable=True, max_order=order)
        for order in (2, 3, 4)
    }
    return {"x": x.flatten().tolist(), "results": {k: v.flatten().tolist() for k, v in results.items()}}


if __name__ == "__main__":
    Path(__file__).with_name("deis.json").write_text(json.dumps(record(sys.argv[1]), indent=1) + "\n")
