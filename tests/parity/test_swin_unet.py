"""The UNet of ResShift against the authors' (record_swin_unet.py), read from their keys and shapes alone.

Side by side at the published sizes when RESSHIFT_PATH names a checkout of github.com/zsyOAOA/ResShift.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from trajectory.models.swin_unet import load

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_swin_unet", HERE / "record_swin_unet.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "swin_unet.json").read_text())


@pytest.mark.parametrize("name", recorder.CASES)
def test_same_prediction_as_the_authors(name):
    network = load(recorder.random_weights(DATA[name]["shapes"]))
    for size, recorded in zip(recorder.SIZES, DATA[name]["outputs"], strict=True):
        with torch.no_grad():
            ours = network(*recorder.inputs(recorder.CASES[name], *size)).flatten()[:: recorder.STRIDE]
        assert (ours - torch.tensor(recorded)).abs().max() < 1e-5


@pytest.mark.skipif("RESSHIFT_PATH" not in os.environ, reason="RESSHIFT_PATH names no checkout")
@pytest.mark.parametrize("variant", recorder.VARIANTS)
def test_same_prediction_at_the_published_size(variant):
    config = {**recorder.PUBLISHED, **recorder.VARIANTS[variant]}
    network = recorder.theirs(os.environ["RESSHIFT_PATH"], config)
    ours = load(network.state_dict())
    for size in recorder.SIZES:
        expected = recorder.answer(network, config, size)
        with torch.no_grad():
            assert (ours(*recorder.inputs(config, *size)) - expected).abs().max() < 1e-5 * expected.abs().max()
