"""Records tests/parity/residual_shift.json: python record_residual_shift.py /path/to/ResShift

The authors' tables and their sampling loop (github.com/zsyOAOA/ResShift, branch journal) on an analytic network.
"""

import importlib
import json
import sys
import types
from pathlib import Path
from unittest import mock

import torch

SHAPE = (2, 3, 4, 5)
SMALLEST = {15: 0.04, 4: 0.2}


class Network(torch.nn.Module):
    """An analytic stand-in: bounded, and linear in neither the state nor the picture nor time."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # whose device the loop asks for

    def forward(self, x, timesteps, lq):
        return torch.tanh(x + 0.3 * lq) * torch.cos(0.2 * timesteps.view(-1, 1, 1, 1).to(x))


class Same(torch.nn.Module):
    """An autoencoder that does nothing; the loop does not run without one."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x):
        return x

    def decode(self, x):
        return x


def degraded():
    """y [2, 3, 4, 5] in -1..1."""
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def noises(steps):
    """Standard normal draws [steps + 1, 2, 3, 4, 5]; the first makes the start, the last belongs to the last step."""
    return torch.randn(steps + 1, *SHAPE, generator=torch.Generator().manual_seed(2))


def diffusion(checkout, steps):
    """The authors' process, with the modules that it imports for training left empty."""
    names = ("ldm", "ldm.models", "ldm.models.autoencoder", "reference_resshift")
    stubs = {name: types.ModuleType(name) for name in names}
    stubs["ldm.models.autoencoder"].AutoencoderKLTorch = object
    stubs["reference_resshift"].__path__ = [str(Path(checkout) / "models")]
    with mock.patch.dict(sys.modules, stubs):
        script = importlib.import_module("reference_resshift.script_util")
    return script.create_gaussian_diffusion(
        sf=1, schedule_name="exponential", schedule_kwargs={"power": 0.3}, etas_end=0.99, steps=steps,
        min_noise_level=SMALLEST[steps], kappa=2.0, weighted_mse=False, predict_type="xstart",
        timestep_respacing=None, scale_factor=1.0, normalize_input=True, latent_flag=True,
    )  # fmt: skip


def chain(checkout, steps):
    """Their result for `degraded` and `noises`."""
    draws, y = iter(noises(steps)), degraded()
    with mock.patch.object(torch, "randn_like", lambda x: next(draws)):
        return diffusion(checkout, steps).p_sample_loop(
            y=y, model=Network(), first_stage_model=Same(), clip_denoised=False, model_kwargs={"lq": y})


def record(checkout):
    return {str(steps): {"roots": diffusion(checkout, steps).sqrt_etas.tolist(),
                         "result": chain(checkout, steps).flatten().tolist()} for steps in SMALLEST}  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("residual_shift.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
