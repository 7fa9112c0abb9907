"""The autoencoders of ResShift against the authors' (record_vq.py), read from their keys and shapes alone.

Side by side at the published sizes when RESSHIFT_PATH names a checkout of github.com/zsyOAOA/ResShift.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from trajectory.models.vq import load

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_vq", HERE / "record_vq.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "vq.json").read_text())


@pytest.mark.parametrize("name", recorder.CASES)
def test_same_latents_and_pictures_as_the_authors(name):
    network = load(recorder.random_weights(DATA[name]["shapes"]))
    found = recorder.answers(network, recorder.CASES[name])
    for ours, recorded in zip(found, DATA[name]["outputs"], strict=True):
        recorded = torch.tensor(recorded)
        assert (ours.flatten()[:: recorder.STRIDE] - recorded).abs().max() < 1e-5 * recorded.abs().max()


@pytest.mark.skipif("RESSHIFT_PATH" not in os.environ, reason="RESSHIFT_PATH names no checkout")
@pytest.mark.parametrize("name", recorder.PUBLISHED)
def test_same_latents_and_pictures_at_the_published_size(name):
    config = recorder.PUBLISHED[name]
    network = recorder.theirs(os.environ["RESSHIFT_PATH"], config)
    expected = recorder.answers(network, config, (64, 128))
    found = recorder.answers(load(network.state_dict()), config, (64, 128))
    for ours, other in zip(found, expected, strict=True):
        assert (ours - other).abs().max() < 1e-5 * other.abs().max()
