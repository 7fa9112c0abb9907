"""The published rules select the time steps that the authors' samplers select (record_time_shift.py).

Theirs are entries of a table, ours lie between them. Their PNMSolver fails at the top of the schedule, where its window
would leave the table; it is compared below that.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from trajectory.samplers.model import Schedule
from trajectory.samplers.paths import VE
from trajectory.samplers.time_shift import LevelMeter

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_time_shift", HERE / "record_time_shift.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "time_shift.json").read_text())


@pytest.mark.parametrize("t", recorder.TIMES)
@pytest.mark.parametrize("author, mode, cutoff", [
    ("PNMSolver", "paper", recorder.CUTOFF / 1000), ("DEIS_Sampler", "official-DEIS", 0.0),
])  # fmt: skip
def test_same_time_steps_as_the_authors(author, mode, cutoff, t):
    alpha_bar = recorder.alpha_bar()
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    schedule = Schedule(VE, SimpleNamespace(sigmas=sigmas))
    meter = LevelMeter(schedule, mode, recorder.WINDOW, cutoff)
    sigma = float(sigmas[t])
    x = recorder.states(t) * (1 + sigma**2) ** 0.5
    meter.levels(x, [sigma] * len(x))
    levels = meter.levels(x, [sigma] * len(x))  # the second call, which 'paper' shifts too
    ours = schedule.time(np.array(levels)) * 1000 - 1
    theirs = np.array(DATA[author][str(t)])
    assert np.abs(ours - theirs).max() < 0.6
    assert (len(set(DATA[author][str(t)])) == 1) == (author == "PNMSolver" and t < recorder.CUTOFF)
