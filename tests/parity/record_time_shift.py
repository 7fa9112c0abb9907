"""Records tests/parity/time_shift.json: python record_time_shift.py /path/to/TS-DPM

The time steps that the authors' samplers (github.com/Mingxiao-Li/TS-DPM) select for states of several variances, on
the linear schedule of 1000 steps: PNMSolver (window to both sides of half its width) and DEIS_Sampler (of its width).
"""

import json
import sys
import types
from pathlib import Path

import torch

TIMES = (5, 200, 305, 500, 800, 960)
WINDOW, CUTOFF = 40, 300
STATES = 8


def alpha_bar():
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def states(t):
    """Variance-preserving states [STATES, 3, 8, 8] whose variance lies around 1 - alpha_bar of the time step t."""
    generator = torch.Generator().manual_seed(t)
    times = (t + torch.linspace(-60, 60, STATES)).round().long().clamp(0, 999)
    x = torch.randn(STATES, 3, 8, 8, generator=generator, dtype=torch.float64)
    deviation = x.flatten(1).std(dim=1) / (1 - alpha_bar()[times]).sqrt()
    return x / deviation.view(-1, 1, 1, 1)


def record(checkout):
    sys.path.insert(0, checkout)
    jax = types.ModuleType("jax")
    jax.numpy = types.ModuleType("jax.numpy")
    sys.modules |= {"jax": jax, "jax.numpy": jax.numpy}
    package = types.ModuleType("sampler")  # its DEIS part needs jax, which the selection of times does not
    package.__path__, package.deis = [str(Path(checkout) / "sampler")], types.ModuleType("deis")
    sys.modules["sampler"] = package
    from sampler.deis_sampler import DEIS_Sampler
    from sampler.pnm_solver import PNMSolver

    deis = object.__new__(DEIS_Sampler)
    deis.window_size, deis.cut_off_value = WINDOW, 0
    pnm = PNMSolver(torch.nn.Identity(), 1000, 1e-4, 0.02, "linear", "cpu", True, WINDOW, CUTOFF)
    deis.alpha_list = pnm.alpha_list
    selected = {"PNMSolver": {}, "DEIS_Sampler": {}}
    for t in TIMES:
        x = states(t).float()
        selected["PNMSolver"][t] = pnm.apply_time_shift([x], t).tolist()
        selected["DEIS_Sampler"][t] = deis.apply_time_shift(x, t).tolist()
    return selected


if __name__ == "__main__":
    Path(__file__).with_name("time_shift.json").write_text(json.dumps(record(sys.argv[1]), indent=1) + "\n")
