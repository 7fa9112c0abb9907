"""ResShift's tables and chain against the authors' (record_residual_shift.py).

Recorded anew and compared when RESSHIFT_PATH names a checkout of github.com/zsyOAOA/ResShift, branch journal.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from trajectory.samplers import residual_shift
from trajectory.samplers.residual_shift import Levels, ResidualShift

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_residual_shift", HERE / "record_residual_shift.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "residual_shift.json").read_text())


@pytest.mark.parametrize("steps", [4, 15])
def test_the_tables_are_the_authors(steps):
    ours, theirs = (torch.tensor(roots, dtype=torch.float64) for roots in (
        ResidualShift.published(steps).roots, DATA[str(steps)]["roots"]))  # fmt: skip
    assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [4, 15])
def test_the_chain_is_the_authors(steps):
    """In VE form, with the same draws: theirs has one more, for the last step, which it multiplies by 0."""
    process, network, y = ResidualShift.published(steps), recorder.Network(), recorder.degraded()
    levels = Levels(process.sigmas)

    def model(u, sigma):
        return process.denoised(network, u, sigma, levels.position(sigma), y, lq=y)

    ours = residual_shift.restore(model, y, list(recorder.noises(steps)), process)
    theirs = torch.tensor(DATA[str(steps)]["result"]).view_as(ours)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < 5e-6


@pytest.mark.skipif("RESSHIFT_PATH" not in os.environ, reason="RESSHIFT_PATH names no checkout")
def test_the_record_is_what_the_checkout_says():
    made = recorder.record(os.environ["RESSHIFT_PATH"])
    for steps, values in DATA.items():
        for name, expected in values.items():
            assert torch.allclose(torch.tensor(made[steps][name]), torch.tensor(expected), atol=1e-6)
