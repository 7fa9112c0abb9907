"""Records tests/parity/momentum.json: python record_momentum.py /path/to/momentum-diffusion

The authors' heavy ball, GHVB and Nesterov wrappers and their DPM-Solver++(2M) with heavy ball
(github.com/sWizad/momentum-diffusion, stable_diffusion/diffusion/momentum_scheduler.py; needs diffusers), in float64 on
an analytic model, and their table of GHVB weights. Noise levels belong to VE states.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

SIGMAS = [10.0, 6.0, 4.0, 2.5, 1.5, 1.0, 0.6, 0.3, 0.1]
ORDERS, BETAS = (1, 2, 3, 4, 5), (1.0, 0.9, 0.8, 0.5, 0.3, 0.05)
RUNS = [(base, order, beta) for base in ("HB", "GHVB", "Nesterov") for order in ORDERS for beta in (0.8, 0.3)]
RUNS += [("DPM++2M", 2, beta) for beta in (1.0, 0.8, 0.3)]
CLASSES = {"HB": "PLMSWithHBScheduler", "GHVB": "GHVBScheduler", "Nesterov": "PLMSWithNTScheduler"}


def denoise(x, sigma):
    """A smooth nonlinear denoiser: two modes at +-1 with standard deviation 0.35."""
    v = 0.35**2 + sigma**2
    sign = torch.tanh(x / v)
    return sign + 0.35**2 / v * (x - sign)


def load(checkout):
    path = Path(checkout) / "stable_diffusion" / "diffusion" / "momentum_scheduler.py"
    spec = importlib.util.spec_from_file_location("momentum_scheduler", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plms(module, base, order, beta, x):
    """One run of a wrapper around a scheduler that has sigmas, whose step is x + (difference of sigmas) * velocity."""
    times = torch.arange(len(SIGMAS))
    config = SimpleNamespace(prediction_type="epsilon")
    inner = SimpleNamespace(sigmas=torch.tensor(SIGMAS, dtype=torch.float64), timesteps=times, config=config)
    wrapper = getattr(module, CLASSES[base])(inner, order)
    wrapper.order, wrapper.beta = order, beta  # they read both from one number, order 3.8 for 4 and 0.8
    for t, sigma in zip(times, SIGMAS[:-1], strict=False):
        x = wrapper.step((x - denoise(x, sigma)) / sigma, t, x)
    return x


def dpm_2m(module, beta, x):
    """One run of their second update on VE states (alpha 1); the first step is DDIM, as theirs."""
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    solver = SimpleNamespace(
        lambda_t=-sigmas.log(), alpha_t=torch.ones_like(sigmas), sigma_t=sigmas, vel=None, beta=beta,
        config=SimpleNamespace(algorithm_type="dpmsolver++", solver_type="midpoint"),
    )  # fmt: skip
    step = module.MomentumDPMSolverMultistepScheduler.multistep_dpm_solver_second_order_update
    known = [denoise(x, sigmas[0])]
    x = sigmas[1] / sigmas[0] * x + (1 - sigmas[1] / sigmas[0]) * known[0]
    for i in range(1, len(sigmas) - 1):
        known.append(denoise(x, sigmas[i]))
        x = step(solver, known[-2:], [i - 1, i], i + 1, x)
    return x


def weights(module, order, beta):
    """Their weights of the velocities, newest first."""
    return [module.AdamBmixer(order, list(row), beta).item() for row in torch.eye(order, dtype=torch.float64).flip(0)]


def record(checkout):
    module = load(checkout)
    x = torch.linspace(-20.0, 20.0, 6, dtype=torch.float64)
    runs = []
    for base, order, beta in RUNS:
        result = dpm_2m(module, beta, x) if base == "DPM++2M" else plms(module, base, order, beta, x)
        runs.append({"base": base, "order": order, "beta": beta, "result": result.tolist()})
    table = [{"order": k, "beta": b, "weights": weights(module, k, b)} for k in ORDERS for b in BETAS]
    return {"x": x.tolist(), "runs": runs, "table": table}


if __name__ == "__main__":
    Path(__file__).with_name("momentum.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
