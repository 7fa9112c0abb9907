"""NAG computes what the authors' pack computes (record_nag.py), whose scale counts from 1: nag_scale = phi + 1."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from trajectory.samplers.negative_attention import nag

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_nag", HERE / "record_nag.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "nag.json").read_text())


@pytest.mark.parametrize("index, settings", list(enumerate(recorder.SETTINGS)), ids=str)
def test_same_combination_as_the_authors(index, settings):
    scale, tau, blend = settings
    ours = nag(*recorder.outputs(), scale - 1, tau, blend)
    assert torch.allclose(ours, torch.tensor(DATA[index], dtype=torch.float64), rtol=1e-12)
