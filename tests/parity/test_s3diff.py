"""S3Diff against the authors' code (record_s3diff.py): its estimator, and its restorer from picture to picture.

Theirs: a batch of two pictures with two degradations through modulated layers. Ours: two runs of the host's own
networks, each with an ordinary LoRA.

Side by side when S3DIFF_PATH names a checkout of github.com/ArcticHare105/S3Diff: the estimator at its published size,
and, where peft is installed, the record anew.
"""

import importlib.util
import json
import os
from pathlib import Path

import comfy.latent_formats
import comfy.sd
import pytest
import small_networks
import torch
from trajectory.models.one_step import Change
from trajectory.models.s3diff import DENet, de_net, s3diff
from trajectory.nodes._one_step import with_changes
from trajectory.nodes._unet import unet_model
from trajectory.nodes.one_step import SILENT, encoded, in_one_step
from trajectory.nodes.s3diff import Restorer, applied

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_s3diff", HERE / "record_s3diff.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "s3diff.json").read_text())
CHECKOUT = os.environ.get("S3DIFF_PATH")
SCALE = 0.18215
CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # of values up to 80: an error of the noise counts 14.6 times
side_by_side = pytest.mark.skipif(not CHECKOUT, reason="S3DIFF_PATH names no checkout")
items = pytest.mark.parametrize("item", range(2))


def recorded(name, *shape):
    return torch.tensor(DATA[name]).view(2, *shape)


def base_weights(name):
    return small_networks.drawn(DATA["base"][name], name)


def changes():
    return s3diff(recorder.checkpoint(DATA["file"]))


def base_model():
    return unet_model(small_networks.HOST_UNET, base_weights("unet"), comfy.latent_formats.SD15, dtype=torch.float32)


def base_vae():
    """In a real host, which takes the weights under diffusers' names and renames them itself."""
    return comfy.sd.VAE(sd=base_weights("vae"), config={"params": small_networks.HOST_VAE}, dtype=torch.float32,
                        device=torch.device("cpu"))  # fmt: skip


def denoised(model, latent, cfg=recorder.CFG):
    positive, negative = ([[text, {}]] for text in recorder.inputs()[1:])
    return SCALE * in_one_step(model, latent / SCALE, positive, negative, cfg)


def test_the_estimator_answers_as_the_authors():
    shapes = recorder.shapes_of(DENet((8, 12, 512)).state_dict())
    network = de_net(recorder.drawn(shapes, "estimator"))
    ours = torch.tensor([network(recorder.picture(*size)).flatten().tolist() for size in recorder.SIZES])
    theirs = torch.tensor(DATA["degrees"])
    assert (ours - theirs).abs().max() < 1e-6 and theirs.std(0).min() > 0.02


@items
def test_the_step_is_theirs(item):
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    latent, expected = (recorded(name, 4, 4, 6)[item : item + 1] for name in ("latents", "denoised"))
    for number, degradation in enumerate(recorder.DEGRADATIONS):
        model, _ = with_changes(base_model(), vae, changes().at(*degradation)[0], Change({}, {}), "it")
        close = torch.allclose(denoised(model, latent), expected, **CLOSE)
        assert close == (number == item)
    assert (denoised(model, latent, 1.0) - denoised(model, latent)).abs().max() > 0.1


@items
def test_the_encoder_is_theirs(item):
    diffusers = pytest.importorskip("diffusers")
    weights = base_weights("vae")
    for layer, pair in changes().at(*recorder.DEGRADATIONS[item])[1].low_rank.items():
        weight = weights[f"{layer}.weight"]
        weights[f"{layer}.weight"] = weight + pair.scale * (pair.up.flatten(1) @ pair.down.flatten(1)).view_as(weight)
    with torch.random.fork_rng(devices=[]):
        network = diffusers.AutoencoderKL(**small_networks.VAE).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        latents = SCALE * network.encode(2 * recorder.inputs()[0] - 1).latent_dist.mode()
    theirs = recorded("latents", 4, 4, 6)
    assert (latents[item] - theirs[item]).abs().max() < 1e-5
    assert (latents[1 - item] - theirs[1 - item]).abs().max() > 1e-3


@items
def test_picture_to_picture_in_a_host(host, item):
    if host.name == "embedded":
        pytest.skip("the embedded host has TAESD's autoencoder only")
    model, vae = applied(base_model(), base_vae(), Restorer(changes(), None), *recorder.DEGRADATIONS[item], 1.0)
    latent = SCALE * encoded(vae, recorder.inputs()[0][item : item + 1], 0, SILENT)
    assert (latent - recorded("latents", 4, 4, 6)[item]).abs().max() < 1e-5
    restored = 2 * vae.decode(denoised(model, latent) / SCALE).movedim(-1, 1) - 1
    assert (restored - recorded("restored", 3, 32, 48)[item]).abs().max() < 2e-3


@side_by_side
def test_the_estimator_at_its_published_size():
    network = recorder.estimator(CHECKOUT)
    weights = network.state_dict()
    assert len(weights) == 80 and sum(value.numel() for value in weights.values()) == 2_351_362
    ours = de_net(weights)
    for size in ((1, 1), (33, 64), (90, 57)):
        with torch.no_grad():
            expected = network(recorder.picture(*size, 2))
        assert (ours(recorder.picture(*size, 2)) - expected).abs().max() < 1e-6


@side_by_side
def test_the_record_is_what_the_checkout_gives():
    pytest.importorskip("peft")
    again = recorder.record(CHECKOUT)
    assert again["file"] == DATA["file"] and again["base"] == DATA["base"]
    for name in ("degrees", "latents", "denoised", "restored"):
        assert torch.allclose(torch.tensor(again[name]), torch.tensor(DATA[name]), **CLOSE)
