"""Records tests/parity/dpm_solver.json: python record_dpm_solver.py /path/to/dpm_solver_pytorch.py

Runs the authors' solver (github.com/LuChengTHU/dpm-solver) in float64 on an analytic model over the linear VP schedule,
and stores the noise levels it called the model at, its start and its result, as VE states (x / alpha).
"""

import importlib.util
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

CASES = [
    {"method": "multistep", "order": order, "prediction": prediction, "variant": variant}
    for prediction in ("data", "noise")
    for order, variant in ((1, "taylor"), (2, "taylor"), (2, "midpoint"), (3, "taylor"))
] + [
    {"method": "singlestep", "order": order, "prediction": prediction, "variant": variant}
    for prediction in ("data", "noise")
    for order in (2, 3)
    for variant in ("taylor", "midpoint")
]
STEPS = {1: 6, 2: 6, 3: 7}


def load(path):
    spec = importlib.util.spec_from_file_location("dpm_solver_pytorch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def second_difference_twice(source):
    """The authors' third multistep update with the missing factor 2 of its second difference (see the parity test)."""
    wrong = "D2 = (1. / (r0 + r1)) * (D1_0 - D1_1)"
    assert source.count(wrong) == 1
    return source.replace(wrong, "D2 = (2. / (r0 + r1)) * (D1_0 - D1_1)")


def official(module, case, x_ve, t_start=0.9, t_end=0.05):
    """(sigmas visited, result) of one case, in VE form."""
    schedule = module.NoiseScheduleVP("linear", dtype=torch.float64)
    visited = []

    def noise_prediction(x, t):
        t = t.reshape(-1)[:1]
        alpha, sigma = schedule.marginal_alpha(t), schedule.marginal_std(t)
        visited.append(float(sigma / alpha))
        y, s = x / alpha, sigma / alpha
        return (y - denoise(y, s)) / s

    solver = module.DPM_Solver(
        noise_prediction, schedule, algorithm_type="dpmsolver++" if case["prediction"] == "data" else "dpmsolver"
    )
    start = torch.tensor([t_start], dtype=torch.float64)
    out = solver.sample(
        x_ve * schedule.marginal_alpha(start), steps=STEPS[case["order"]], t_start=t_start, t_end=t_end,
        order=case["order"], skip_type="logSNR", method=case["method"], lower_order_final=False,
        solver_type="taylor" if case["variant"] == "taylor" else "dpmsolver",
    )  # fmt: skip
    end = torch.tensor([t_end], dtype=torch.float64)
    visited.append(float(schedule.marginal_std(end) / schedule.marginal_alpha(end)))
    return visited, out / schedule.marginal_alpha(end)


def denoise(x, sigma):
    """A smooth nonlinear denoiser: two modes at +-1 with standard deviation 0.35."""
    v = 0.35**2 + sigma**2
    sign = torch.tanh(x / v)
    return sign + 0.35**2 / v * (x - sign)


@contextmanager
def float64_default():
    """The authors make their time steps in torch's default type; in float32 they would cost seven digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def record(path):
    module = load(path)
    source = Path(path).read_text()
    x = torch.linspace(-3.0, 3.0, 4, dtype=torch.float64).reshape(4, 1) + 0.25
    cases = []
    for case in CASES:
        runs = {"result": module}
        if case["method"] == "multistep" and case["order"] == 3:
            fixed = type(module)("fixed")
            exec(compile(second_difference_twice(source), "fixed", "exec"), fixed.__dict__)  # noqa: S102 the authors' file
            runs["result_factor_2"] = fixed
        entry = dict(case)
        for name, which in runs.items():
            with float64_default():
                sigmas, out = official(which, case, x)
            entry |= {"sigmas": sigmas, name: out.flatten().tolist()}
        cases.append(entry)
    return {"x": x.flatten().tolist(), "cases": cases}


if __name__ == "__main__":
    target = Path(__file__).with_name("dpm_solver.json")
    target.write_text(json.dumps(record(sys.argv[1]), indent=1) + "\n")
