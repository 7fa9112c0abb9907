"""The module's network in the host's UNetModel, and the step, against the authors' (record_one_more_step.py).

Side by side at the published size when ONE_MORE_STEP_PATH names a checkout of github.com/mhh0318/OneMoreStep.
"""

import importlib.util
import json
import os
from pathlib import Path

import comfy.latent_formats
import pytest
import torch
from trajectory.models import oms
from trajectory.nodes._unet import unet_model
from trajectory.samplers.one_more_step import clean_estimate, vp_state

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_one_more_step", HERE / "record_one_more_step.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "one_more_step.json").read_text())


def hosted(weights, config):
    """The module's answer to (noise, text) in the host's own UNet."""
    options = oms.unet_config(weights, config)
    patcher = unet_model(options, oms.with_time(weights, options), comfy.latent_formats.SD15, dtype=torch.float32)
    network = patcher.model.diffusion_model

    @torch.no_grad()
    def answer(noise, text):
        return network(noise, torch.zeros(len(noise)), context=text)

    return answer


def test_the_hosts_unet_answers_as_the_authors_network():
    network = hosted(recorder.random_weights(DATA["shapes"]), recorder.SMALL)
    v = network(*recorder.inputs(recorder.SMALL["cross_attention_dim"]))
    expected = torch.tensor(DATA["v"]).view_as(v)
    assert expected.abs().mean() > 0.1
    assert (v - expected).abs().max() < 1e-5


@pytest.mark.parametrize("official", [True, False])
def test_the_step_is_the_authors_but_for_the_deviation_of_its_noise(official):
    v = torch.tensor(DATA["v"], dtype=torch.float64).view(2, 1, 4, 5, 7)
    noise = torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(recorder.SEED), dtype=torch.float64)
    x0_hat = clean_estimate(v[1], v[0], recorder.CFG)
    ours = vp_state(x0_hat, noise, recorder.ALPHA_BAR, official)
    difference = (ours - torch.tensor(DATA["state"], dtype=torch.float64).view_as(ours)) / noise
    bar = 1 - recorder.ALPHA_BAR
    assert (difference - (0 if official else bar**0.5 - bar)).abs().max() < 1e-9


@pytest.mark.skipif("ONE_MORE_STEP_PATH" not in os.environ, reason="ONE_MORE_STEP_PATH names no checkout")
@pytest.mark.parametrize("size", [(16, 16), (37, 45)])
def test_side_by_side_at_the_published_size(size):
    network = recorder.theirs(os.environ["ONE_MORE_STEP_PATH"], recorder.PUBLISHED)
    weights = network.state_dict()
    assert len(weights) == 458 and sum(w.numel() for w in weights.values()) == 154_014_564
    noise, text = recorder.inputs(1024, size)
    with torch.no_grad():
        expected = network(noise, text, return_dict=False)[0]
    assert (hosted(weights, recorder.PUBLISHED)(noise, text) - expected).abs().max() < 1e-5
