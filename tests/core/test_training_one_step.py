"""Training of the one-step restorer: the file is laid out as OSEDiff's, and a stopped run goes on as if it had not."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trajectory.models import checkpoints
from trajectory.models.captions import CaptionTokenizer
from trajectory.models.one_step import osediff
from trajectory.training import _fit, autoencoder, one_step
from trajectory.training.degradation import degrade
from trajectory.training.eps_model import FILE as BASE_FILE
from trajectory.training.eps_model import build_model, load_captions
from trajectory.training.landscapes.painter import paint
from trajectory.training.landscapes.scene import held_out_scenes


@pytest.fixture(scope="module")
def restorer():
    """One whose changes are not zero, and the file that it is saved to would hold: its `changes` in half precision."""
    model = one_step.OneStep(rank_unet=4, rank_vae=2, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.changes().items():
            if "lora_B" in name:
                value.normal_(std=0.05, generator=generator)
            value.copy_(value.half())
    return model


@pytest.fixture(scope="module")
def file(restorer, tmp_path_factory):
    path = tmp_path_factory.mktemp("one_step") / "restore.safetensors"
    one_step.export(restorer, restorer.changes(), path)
    return path


def _merged(weights, change):
    merged = {**weights, **{name: value.float() for name, value in change.weights.items()}}
    for layer, pair in change.low_rank.items():
        added = pair.scale * pair.up.float().flatten(1) @ pair.down.float().flatten(1)
        merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + added.view_as(merged[f"{layer}.weight"])
    return merged


def test_the_file_has_the_sections_and_names_of_osediff(file):
    saved = checkpoints.read(file)
    assert saved["rank_unet"] == 4 and saved["rank_vae"] == 2
    adapters = {"encoder": "down_blocks", "decoder": "up_blocks", "others": "mid_block"}
    expected = {"conv_in.base_layer.weight", "conv_in.base_layer.bias"}
    for adapter, place in adapters.items():
        layers = saved[f"unet_lora_{adapter}_modules"]
        assert all(layer.startswith((place, "conv_in", "conv_out")) for layer in layers)
        expected |= {f"{layer}.lora_{part}.default_{adapter}.weight" for layer in layers for part in "AB"}
    assert "conv_in" in saved["unet_lora_encoder_modules"] and "conv_out" in saved["unet_lora_decoder_modules"]
    assert set(saved["state_dict_unet"]) == expected
    layers = saved["vae_lora_encoder_modules"]
    convolutions = [m for m in autoencoder.load(4).encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == len(convolutions) and all(layer.startswith("encoder.layers.") for layer in layers)
    names = {f"{layer}.lora_{part}.default_encoder.weight" for layer in layers for part in "AB"}
    assert set(saved["state_dict_vae"]) == names
    assert saved["state_dict_vae"]["encoder.layers.2.lora_A.default_encoder.weight"].shape == (2, 64, 3, 3)
    assert saved["state_dict_vae"]["encoder.layers.2.lora_B.default_encoder.weight"].shape == (64, 2, 1, 1)
    tensors = [*saved["state_dict_unet"].values(), *saved["state_dict_vae"].values()]
    assert all(value.dtype == torch.float16 for value in tensors)


def test_changes_beside_the_layers_are_those_of_merged_weights(restorer, file):
    unet_change, vae_change = osediff(checkpoints.read(file))
    unet, vae = build_model().eval(), autoencoder.load(4)
    unet.load_state_dict(_merged({name: value.float() for name, value in load_file(BASE_FILE).items()}, unet_change))
    decoder = {name: value.clone() for name, value in vae.decoder.state_dict().items()}
    vae.load_state_dict(_merged(vae.state_dict(), vae_change))
    generator = torch.Generator().manual_seed(2)
    picture, context = torch.rand(2, 3, 64, 64, generator=generator), torch.randn(2, 20, 128, generator=generator)
    with torch.no_grad():
        z, expected = restorer.encode(picture), vae.encoder(picture * 2 - 1)
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(z, autoencoder.load(4).encoder(picture * 2 - 1), atol=1e-2)
        eps = restorer.unet(z, one_step.LAST, context, return_dict=False)[0]
        torch.testing.assert_close(eps, unet(z, 999, context, return_dict=False)[0], rtol=1e-4, atol=1e-4)
        abar = restorer.abar.double().item()
        assert abar == pytest.approx(0.00466010, rel=1e-4)
        torch.testing.assert_close(restorer.denoise(z, context), (z - (1 - abar) ** 0.5 * eps) / abar**0.5)
    assert all(torch.equal(value, decoder[name]) for name, value in restorer.vae.decoder.state_dict().items())


def test_a_step_draws_the_same_whenever_it_is_drawn_and_parts_show_one_place():
    sharp, small, tokens = one_step.draw(4, 1, seed=0)
    again = one_step.draw(4, 1, seed=0)
    assert all(torch.equal(a, b) for a, b in zip((sharp, small, tokens), again, strict=True))
    assert sharp.shape == (4, 3, 64, 64) and small.shape == (4, 3, 16, 16) and tokens.shape == (4, 20)
    assert (torch.nn.functional.avg_pool2d(sharp, 4) - small).square().mean(dim=(1, 2, 3)).max() < 0.01
    whole, small, _tokens = one_step.draw(5, 2, seed=0)
    assert whole.shape == (2, 3, 128, 128) and small.shape == (2, 3, 32, 32)


def _stopping(function, stop):
    def interrupted(*args):
        if stop in args:
            raise KeyboardInterrupt
        return function(*args)

    return interrupted


@pytest.mark.parametrize("stage", ["pictures", "pool"])
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, monkeypatch, stage):
    pool = {"z_L": torch.rand(8, 4, 4, 4), "z": torch.rand(8, 4, 4, 4), "tokens": torch.ones(8, 20, dtype=torch.long)}
    monkeypatch.setattr(one_step, "load_pool", lambda stem, number, make: pool)
    args = argparse.Namespace(apart=1, steps=2, batch=1, rate=3e-3, pixels=5.0, rank_unet=2, rank_vae=2, seed=0,
                              pool=8, pool_steps=3, pool_batch=2)
    saved = {}
    for name in ("whole", "stopped"):
        monkeypatch.setattr(one_step, "FILE", tmp_path / f"{name}.safetensors")
        monkeypatch.setattr(one_step, "CHECKPOINT", tmp_path / f"{name}.pt")
        if name == "stopped":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(_fit, "SAVE_SECONDS", -1)  # saves after every step
                if stage == "pictures":
                    patch.setattr(one_step, "draw", _stopping(one_step.draw, 1))
                else:
                    patch.setattr(np.random, "default_rng", _stopping(np.random.default_rng, (0, 1, 2)))
                one_step.train(args)
        one_step.train(args)
        saved[name] = checkpoints.read(one_step.FILE)
    for section in ("state_dict_unet", "state_dict_vae"):
        whole, stopped = saved["whole"][section], saved["stopped"][section]
        assert all(torch.equal(value, stopped[key]) for key, value in whole.items())
    assert any(value.any() for key, value in saved["whole"]["state_dict_vae"].items() if "lora_B" in key)


def test_the_pool_holds_what_the_networks_make_of_a_picture(restorer):
    made = one_step.make_examples(range(3, 5), 0, restorer)
    alone = one_step.make_examples(range(4, 5), 0, restorer)
    assert made["z_L"].shape == made["z"].shape == (2, 4, 16, 16) and made["tokens"].shape == (2, 20)
    for name, value in made.items():
        torch.testing.assert_close(value[1:], alone[name], rtol=0.05, atol=0.05)
    assert (made["z_L"] - made["z"]).abs().mean() > 0.05


def test_the_bundled_file_restores_unseen_pictures_better_than_bicubic():
    scenes = held_out_scenes(8)
    painted = np.stack([paint(scene, 128, np.random.default_rng((7, k))) for k, scene in enumerate(scenes)])
    sharp = torch.from_numpy(painted).permute(0, 3, 1, 2).float()
    enlarged = one_step.enlarge(degrade(sharp, list(range(8))))
    saved = checkpoints.read(one_step.FILE)
    model = one_step.OneStep(saved["rank_unet"], saved["rank_vae"], 0).eval()
    changes = {f"{part}.{name}": value for part in ("unet", "vae")
               for name, value in saved[f"state_dict_{part}"].items()}  # fmt: skip
    assert changes.keys() == model.changes().keys()
    model.load_state_dict(changes, strict=False)
    context, _pooled = load_captions(torch.device("cpu"))(torch.tensor([CaptionTokenizer().encode("")] * 8))
    with torch.no_grad():
        restored = model.decode(model.denoise(model.encode(enlarged), context)).clamp(0, 1)
    errors = [(picture - sharp).square().mean((1, 2, 3)).log10().mean() for picture in (enlarged, restored)]
    assert errors[1] < errors[0] - 0.05  # half a decibel
    assert one_step.FILE.stat().st_size < 1_200_000
