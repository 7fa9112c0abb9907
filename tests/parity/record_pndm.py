"""Records tests/parity/pndm.json: python record_pndm.py /path/to/PNDM

Runs the authors' F-PNDM and S-PNDM (github.com/luping-liu/PNDM, runner/method.py) in float64 on an analytic model over
the linear VP schedule, and stores start and results as VE states (x / alpha).
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch

TABLE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
"""alpha squared by index; the authors' time t stands at index t + 1, so that t = -1 is the end of a run."""

TIMES = [*range(950, -1, -50), -1]
METHODS = {"F-PNDM": "gen_order_4", "S-PNDM": "gen_order_2"}


def sigma_of(t):
    """Noise level of the VE state at the authors' time t, a whole number; what sits between two is rounded down."""
    squared = TABLE[torch.as_tensor(t).long() + 1]
    return torch.sqrt((1 - squared) / squared)


def denoise(x, sigma):
    """A smooth nonlinear denoiser: two modes at +-1 with standard deviation 0.35."""
    v = 0.35**2 + sigma**2
    sign = torch.tanh(x / v)
    return sign + 0.35**2 / v * (x - sign)


def network(x, t):
    """The noise prediction of `denoise` at the VP state x [B, ...] and the time t."""
    sigma, scale = sigma_of(t), TABLE[torch.as_tensor(t).long() + 1].sqrt()
    return (x / scale - denoise(x / scale, sigma)) / sigma


def record(checkout):
    spec = importlib.util.spec_from_file_location("method", Path(checkout) / "runner" / "method.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.linspace(-120.0, 120.0, 6, dtype=torch.float64).view(6, 1, 1, 1)
    results = {}
    for name, function in METHODS.items():
        state, history, calls = x * TABLE[TIMES[0] + 1].sqrt(), [], []

        def counted(x, t, calls=calls):
            calls.append(t)
            return network(x, t)

        for t, after in zip(TIMES, TIMES[1:], strict=False):
            times = (torch.tensor([float(t)]), torch.tensor([float(after)]))
            state = getattr(module, function)(state, *times, counted, TABLE, history)
        results[name] = {"calls": len(calls), "result": (state / TABLE[TIMES[-1] + 1].sqrt()).flatten().tolist()}
    return {"x": x.flatten().tolist(), "results": results}


if __name__ == "__main__":
    Path(__file__).with_name("pndm.json").write_text(json.dumps(record(sys.argv[1]), indent=1) + "\n")
