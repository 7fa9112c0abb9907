"""Momentum against the authors' code, by recorded numbers (record_momentum.py) or side by side, and their GHVB table.

Set MOMENTUM_PATH to a checkout of the authors' repository to run the second. Their UniPC is not here: it overwrites the
predictor's velocity right after averaging it, and divides what it averages by the noise level of the step's end, which
moves the result even where the prediction never changes (tests/core/test_momentum.py holds ours to that).
"""

import importlib.util
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from trajectory.samplers.model import Schedule
from trajectory.samplers.momentum import plan_momentum
from trajectory.samplers.plan import Combine, execute

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_momentum", HERE / "record_momentum.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)


def recorded():
    if path := os.environ.get("MOMENTUM_PATH"):
        return recorder.record(path)
    return json.loads((HERE / "momentum.json").read_text())


DATA = recorded()


def name(case):
    return "-".join(str(case[k]) for k in ("base", "order", "beta") if k in case)


@pytest.mark.parametrize("case", DATA["runs"], ids=name)
def test_same_as_the_authors(case):
    options = {k: case[k] for k in ("base", "order", "beta")}
    plan = plan_momentum(recorder.SIGMAS, Schedule(), variable_step=False, guard=0, **options)
    x = torch.tensor(DATA["x"], dtype=torch.float64)
    sigmas = torch.tensor(recorder.SIGMAS, dtype=torch.float64)
    result = execute(plan, recorder.denoise, x, sigmas, disable=True)
    expected = torch.tensor(case["result"], dtype=torch.float64)
    assert (result - expected).abs().max() < 1e-13 * expected.abs().max()


def velocity_weights(order, beta, variable_step):
    """(weights of the newest velocities in the last of many even steps of GHVB, those of the older ones)."""
    sigmas = [9.0 - 0.5 * i for i in range(12)]
    plan = plan_momentum(sigmas, Schedule(), order=order, beta=beta, variable_step=variable_step, guard=0)
    steps = {op.out: op.terms for op in plan.operations if isinstance(op, Combine)}
    found = Counter()
    for weight, slot in steps[plan.result]:
        if slot.startswith("VP"):
            found[int(slot[2:])] += weight / -0.5
        elif slot.startswith("P"):  # P_n = (v_n - (1 - beta) v_{n-1}) / beta
            found[int(slot[1:])] += weight / beta / -0.5
            found[int(slot[1:]) - 1] -= weight * (1 - beta) / beta / -0.5
    return [found.pop(10 - j) for j in range(order)], list(found.values())


@pytest.mark.parametrize("variable_step", [False, True])
@pytest.mark.parametrize("case", DATA["table"], ids=name)
def test_the_weights_on_even_steps_are_the_published_table(case, variable_step):
    weights, rest = velocity_weights(case["order"], case["beta"], variable_step)
    scale = max(map(abs, case["weights"]))
    assert weights == pytest.approx(case["weights"], abs=1e-11 * scale)
    assert all(abs(weight) < 1e-11 * scale for weight in rest)
