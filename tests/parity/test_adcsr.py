"""The network and its fix of mean and contrast against the authors' (record_adcsr.py), through the keys of their files.

Side by side at the published size when ADCSR_PATH names a checkout of github.com/Guaishou74851/AdcSR.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from trajectory.models import adcsr, checkpoints
from trajectory.restoration import colour_fix

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_adcsr", HERE / "record_adcsr.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "adcsr.json").read_text())


def ours(net, decoder):
    """AdcSR of the checkpoints of the two files."""
    return adcsr.network(adcsr.net_weights(checkpoints.state_dict(net)),
                         adcsr.decoder_weights(checkpoints.state_dict(decoder)))  # fmt: skip


def recorded():
    """The contents of the two files whose keys and shapes were recorded; the parts named twice are the same tensors."""
    first_names = {key: shape for key, shape in DATA["net"].items() if ".body.1.body." not in key}
    weights = recorder.random_weights({key.removeprefix("module."): shape for key, shape in first_names.items()})
    net = {f"module.{key}": value for key, value in weights.items()}
    half = recorder.random_weights({k.removeprefix("decoder."): shape for k, shape in DATA["decoder"].items()}, 1)
    return net, {"state_dict": {f"decoder.{key}": value for key, value in half.items()}, "epoch": 3}


def sampled(picture):
    return picture[0, :, ::recorder.STRIDE, ::recorder.STRIDE].flatten()


@torch.no_grad()
def test_the_network_answers_as_the_authors():
    expected = torch.tensor(DATA["sr"])
    assert expected.std() > 0.3
    assert (sampled(2 * ours(*recorded())(recorder.picture()) - 1) - expected).abs().max() < 2e-5


@torch.no_grad()
def test_the_fix_is_the_authors():
    sr = ours(*recorded())(recorder.picture())
    fixed = colour_fix.adcsr(sr, recorder.picture())
    assert (2 * sampled(fixed) - 1 - torch.tensor(DATA["fixed"])).abs().max() < 2e-5


def test_the_keys_of_the_published_file_name_the_unet_twice_and_both_are_read():
    names = {key: torch.empty(shape, device="meta") for key, shape in DATA["net"].items()}
    names = checkpoints.state_dict(names)
    assert len(names) == 1076
    twice = adcsr.net_weights(names)
    second = {key: v for key, v in names.items() if key.startswith(("body.1.body.", "body.1.conv_in.", "body.2."))}
    assert len(second) == 552
    assert {k: v.shape for k, v in adcsr.net_weights(second).items()} == {k: v.shape for k, v in twice.items()}


@pytest.mark.skipif("ADCSR_PATH" not in os.environ, reason="ADCSR_PATH names no checkout")
@torch.no_grad()
def test_side_by_side_at_the_published_size():
    whole, net, decoder = recorder.theirs(os.environ["ADCSR_PATH"], recorder.PUBLISHED, recorder.DECODER)
    network = ours(net, {"state_dict": decoder})
    assert sum(weight.numel() for weight in network.parameters()) == 456_073_683
    lr = recorder.picture((64, 96))
    assert (2 * network(lr) - 1 - whole(2 * lr - 1)).abs().max() < 1e-4
