"""Records tests/parity/bdia.json: python record_bdia.py /path/to/BDIA/text-to-image/stablediffusionV2

Runs the authors' BDIA-DDIM sampler (github.com/guoqiang-zhang-x/BDIA) in float64 on an analytic eps model over the
schedule of Stable Diffusion, and stores its noise levels, start and results as VE states (x / alpha).
"""

import json
import sys
import types
from pathlib import Path

import torch

STEPS, GAMMAS = 12, (0.0, 0.5, 0.96, 1.0)


def denoise(x, sigma):
    """A smooth nonlinear denoiser: two modes at +-1 with standard deviation 0.35."""
    v = 0.35**2 + sigma**2
    sign = torch.tanh(x / v)
    return sign + 0.35**2 / v * (x - sign)


class EpsModel:
    """What the authors' sampler asks of a model."""

    parameterization, num_timesteps, device = "eps", 1000, torch.device("cpu")

    def __init__(self):
        self.betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas_cumprod = torch.cumprod(1 - self.betas, 0)
        self.alphas_cumprod_prev = torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])

    def sigma(self, alpha_bar):
        return ((1 - alpha_bar) / alpha_bar) ** 0.5

    def apply_model(self, x, t, c):
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        y, sigma = x / alpha_bar**0.5, self.sigma(alpha_bar)
        return (y - denoise(y, sigma)) / sigma


def record(checkout):
    torch.set_default_dtype(torch.float64)  # the authors make coefficients in torch's default type
    sys.path.insert(0, checkout)
    sys.modules["ldm.util"] = types.ModuleType("ldm.util")  # loads image libraries; its one name is not used here
    sys.modules["ldm.util"].instantiate_from_config = None
    from ldm.models.diffusion.BDIAddim import BDIADDIMSampler

    model = EpsModel()
    sampler = BDIADDIMSampler(model, STEPS, 0.0, device=model.device)
    sampler.make_schedule(STEPS, verbose=False)
    levels = model.sigma(torch.cat([sampler.ddim_alphas.flip(0), model.alphas_cumprod[:1]]))
    start = torch.linspace(-1.5, 1.5, 6).view(6, 1, 1, 1)
    units = (1 + levels**2) ** 0.5
    results = {}
    for gamma in GAMMAS:
        sampler.gamma = gamma
        out, _ = sampler.bdiaddim_sampling(None, tuple(start.shape), x_T=start)
        results[str(gamma)] = (out * units[-1]).flatten().tolist()
    return {"sigmas": levels.tolist(), "x": (start * units[0]).flatten().tolist(), "results": results}


if __name__ == "__main__":
    Path(__file__).with_name("bdia.json").write_text(json.dumps(record(sys.argv[1]), indent=1) + "\n")
