"""BDIA-DDIM against the authors' sampler, by recorded numbers (record_bdia.py): same to rounding in float64."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from trajectory.samplers.bdia import plan_bdia
from trajectory.samplers.model import Schedule
from trajectory.samplers.plan import execute

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_bdia", HERE / "record_bdia.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "bdia.json").read_text())


def ours(gamma, space):
    x = torch.tensor(DATA["x"], dtype=torch.float64).view(-1, 1)
    sigmas = torch.tensor(DATA["sigmas"], dtype=torch.float64)
    plan = plan_bdia(DATA["sigmas"], Schedule(), gamma=gamma, space=space)
    return execute(plan, lambda x, s: recorder.denoise(x, s.view(-1, 1)), x, sigmas, disable=True).flatten()


@pytest.mark.parametrize("gamma", recorder.GAMMAS)
def test_same_as_the_authors(gamma):
    expected = torch.tensor(DATA["results"][str(gamma)], dtype=torch.float64)
    assert (ours(gamma, "auto") - expected).abs().max() < 1e-14


def test_another_space_is_another_method():
    expected = torch.tensor(DATA["results"]["0.96"], dtype=torch.float64)
    assert (ours(0.96, "ve") - expected).abs().max() > 1e-3
