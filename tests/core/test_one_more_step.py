"""The formulas of One More Step, its low-pass, and what the weights of a module say of its network."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from trajectory.models import oms
from trajectory.samplers import one_more_step as step
from trajectory.samplers.paths import FLOW, VE
from trajectory.training import _fit
from trajectory.training import one_more_step as trainer
from trajectory.training.one_more_step import build_module, without_time


def latents(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module_weights(channels=(32, 64, 128), width=24, layers=2):
    module = without_time(build_module(channels, 4, width, layers))
    return {k: v for k, v in module.state_dict().items() if "time_emb" not in k}


# --- the step


def test_at_zero_signal_the_estimate_is_minus_v():
    x0, noise = latents(2, 4, 5, 6), latents(2, 4, 5, 6, seed=1)
    v = 0.0**0.5 * noise - 1.0**0.5 * x0  # v = sqrt(abar) n - sqrt(1 - abar) x0
    assert torch.equal(step.clean_estimate(v), x0)
    wrong = latents(2, 4, 5, 6, seed=2)
    assert torch.equal(step.clean_estimate(v, wrong, cfg=1.0), -(wrong + (v - wrong)))
    assert torch.allclose(step.clean_estimate(v, wrong, cfg=3.0), 3 * x0 + 2 * wrong)


@pytest.mark.parametrize("alpha_bar", [0.0047, 0.3, 1.0])
def test_the_two_forms_are_one_state(alpha_bar):
    x0, noise = latents(1, 4, 5, 6), latents(1, 4, 5, 6, seed=1)
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
    assert step.signal(sigma) == pytest.approx(alpha_bar**0.5)
    vp, ve = step.vp_state(x0, noise, alpha_bar), step.ve_state(x0, noise, sigma)
    assert torch.allclose(vp, step.signal(sigma) * ve, atol=1e-12)


def test_the_state_has_unit_variance_and_the_official_one_a_little_less():
    """Over x0 and noise of unit variance: abar + (1 - abar) = 1 against abar + (1 - abar)^2."""
    x0, noise, bar = latents(200, 4, 16, 16), latents(200, 4, 16, 16, seed=1), 0.3
    assert float(step.vp_state(x0, noise, bar).var()) == pytest.approx(1.0, abs=0.01)
    assert float(step.vp_state(x0, noise, bar, official=True).var()) == pytest.approx(bar + (1 - bar) ** 2, abs=0.01)


def test_another_mean_replaces_the_latents():
    mine, theirs, noise = latents(1, 4, 5, 6), latents(1, 4, 5, 6, seed=1), latents(1, 4, 5, 6, seed=2)
    moved = step.with_mean(mine + 9.0 * noise, mine, theirs, VE, 9.0)
    assert torch.allclose(moved, step.ve_state(theirs, noise, 9.0))
    moved = step.with_mean(0.25 * mine + 0.75 * noise, mine, theirs, FLOW, 0.75)
    assert torch.allclose(moved, 0.25 * theirs + 0.75 * noise)


# --- the low-pass


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 4, 5, 13), (1, 4, 3, 6, 10), (1, 1, 1, 40)], ids=str)
@pytest.mark.parametrize("width", [0.0, 0.06, 0.25, 1.0])
def test_means_stay_and_so_do_constants(shape, width):
    x = latents(*shape)
    blurred = step.low_pass(x, width)
    assert blurred.shape == x.shape
    assert torch.allclose(blurred.mean((-2, -1)), x.mean((-2, -1)), atol=1e-12)
    constant = torch.full(shape, -1.7, dtype=torch.float64)
    assert torch.allclose(step.low_pass(constant, width), constant, atol=1e-12)
    if width == 0:
        assert torch.allclose(blurred, x, atol=1e-12)


def test_each_cosine_is_damped_by_the_gaussian():
    position = torch.arange(12, dtype=torch.float64) + 0.5
    for k in (1, 3, 7):
        wave = torch.cos(torch.pi * k * position / 12).expand(1, 1, 20, 12)
        gain = torch.exp(-torch.tensor((torch.pi * k * 0.1 * 12 / 12) ** 2 / 2))
        assert torch.allclose(step.low_pass(wave, 0.1), gain * wave, atol=1e-12)


def test_a_point_becomes_a_gaussian():
    point = torch.zeros(1, 1, 41, 61, dtype=torch.float64)
    point[..., 20, 30] = 1.0
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(61.0) - 30, indexing="ij")
    std = 0.06 * 41
    expected = torch.exp(-(rows**2 + columns**2) / (2 * std**2)) / (2 * torch.pi * std**2)
    assert (step.low_pass(point, 0.06)[0, 0] - expected).abs().max() < 1e-5


def test_wide_blurs_leave_the_mean_alone():
    x = latents(1, 4, 16, 16)
    assert torch.allclose(step.low_pass(x, 2.0), x.mean((-2, -1), keepdim=True).expand_as(x), atol=1e-6)


def test_low_pass_of_bfloat16_stays_bfloat16():
    x = latents(1, 4, 16, 16).bfloat16()
    assert step.low_pass(x, 0.2).dtype is torch.bfloat16
    assert (step.low_pass(x, 0.2).double() - step.low_pass(x.double(), 0.2)).abs().max() < 0.05


# --- the network of a module


def test_the_published_layout_is_read_from_the_shapes():
    with torch.device("meta"):
        weights = module_weights((160, 320, 640), 1024)
    assert len(weights) == 458 and sum(w.numel() for w in weights.values()) == 154_014_564
    options = oms.unet_config(weights, {"attention_head_dim": [5, 10, 20]})
    assert options == oms.unet_config(weights)  # 32 channels a head is what stands in it
    assert options == {
        "model_channels": 160, "in_channels": 4, "out_channels": 4, "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 1, 1, 1, 1],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "transformer_depth_middle": 1, "context_dim": 1024,
        "use_linear_in_transformer": False, "num_head_channels": 32,
    }  # fmt: skip


def test_the_miniatures_layout_is_read_by_the_same_code():
    options = oms.unet_config(module_weights((32, 64), 128, 1))
    assert options["num_res_blocks"] == [1, 1] and options["transformer_depth_output"] == [0, 0, 1, 1]


def test_the_time_path_is_filled_in_with_zeros():
    weights = module_weights()
    full = oms.with_time(weights, oms.unet_config(weights))
    added = {name: value for name, value in full.items() if name not in weights}
    diffusers_names = build_module((32, 64, 128), 4, 24, 2).state_dict()
    assert len(added) == 38 and not any(value.any() for value in added.values())
    assert {n: v.shape for n, v in full.items()} == {n: v.shape for n, v in diffusers_names.items()}


@pytest.mark.parametrize("change, message", [
    (lambda w: {"a": torch.zeros(1)}, "not the weights of a One More Step module"),
    (lambda w: {**w, "time_embedding.linear_1.weight": torch.zeros(1)}, "a diffusion model and not a One More Step"),
    (lambda w: {k: v for k, v in w.items() if "attn2" not in k}, "attends to one text"),
])  # fmt: skip
def test_other_weights_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        oms.unet_config(change(module_weights((32, 64), 24, 1)))


def test_heads_come_from_config_json():
    weights = module_weights((32, 64), 24, 1)
    assert oms.unet_config(weights, {"attention_head_dim": 4})["num_heads"] == 4
    assert oms.unet_config(weights, {"num_attention_heads": [2, 4]})["num_head_channels"] == 16
    with pytest.raises(ValueError, match="heads of one size"):
        oms.unet_config(weights, {"attention_head_dim": [1, 1]})
    for heads in ([1, 2, 4], 0, [0, 0], 7, "8", None):
        with pytest.raises(ValueError, match="do not divide levels of"):
            oms.unet_config(weights, {"attention_head_dim": heads})
    with pytest.raises(ValueError, match="norms of 16 groups"):
        oms.unet_config(weights, {"attention_head_dim": [1, 2], "norm_num_groups": 16})
    with torch.device("meta"):
        large = module_weights((32, 64), 2048, 1)
    with pytest.raises(ValueError, match="config.json"):
        oms.unet_config(large)
    assert oms.unet_config(large, {"attention_head_dim": [1, 2]})["context_dim"] == 2048


def test_config_json_beside_the_weights(tmp_path):
    weights = tmp_path / "module.safetensors"
    assert oms.read_config(weights) is None
    (tmp_path / "config.json").write_text(json.dumps({"attention_head_dim": [1, 2]}))
    assert oms.read_config(weights) == {"attention_head_dim": [1, 2]}
    for broken in ("{", "[1]"):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(ValueError, match="config.json.*fetch it again"):
            oms.read_config(weights)


@pytest.mark.parametrize("name, width, expected", [
    ("oms_b_openclip_15_21/oms_module/diffusion_pytorch_model.fp16.safetensors", 1024, "SD1.5 and 2.1"),
    ("oms_b_openclip_xl/oms_module/diffusion_pytorch_model.safetensors", 1024, "SDXL"),
    ("module.safetensors", 2048, "SDXL"),
    ("module.safetensors", 1024, None),
    ("sd15_xlarge_prompt.safetensors", 1024, None),
    ("sd15_xlarge_prompt.safetensors", 2048, "SDXL"),
])  # fmt: skip
def test_the_family_is_in_the_name(name, width, expected):
    assert oms.family(name, width) == expected


# --- the trainer, on a folder of latents


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two texts whose latents are +1 and -1 everywhere, in two sizes."""
    monkeypatch.setattr(trainer, "WORK", tmp_path / "work")
    monkeypatch.setattr(_fit, "SAVE_SECONDS", 0)
    save_file({"context": torch.zeros(3, 8)}, tmp_path / "empty.safetensors")
    for number, sign in enumerate((1.0, -1.0, 1.0, -1.0)):
        size = 4 if number < 2 else 6
        pair = {"latent": torch.full((4, size, size), sign), "context": torch.full((3, 8), sign)}
        save_file(pair, tmp_path / f"{number}.safetensors")
    return tmp_path


def arguments(folder, name, steps):
    return SimpleNamespace(data=folder, out=folder / "out" / name, channels=[32, 32], layers=1, steps=steps, batch=4,
                           rate=3e-3, pool=0, seed=0)  # fmt: skip


def test_a_module_learns_the_mean_of_a_text(folder):
    args = arguments(folder, "module.safetensors", 120)
    trainer.train(args)
    weights = load_file(args.out)
    options = oms.unet_config(weights)
    assert options["context_dim"] == 8 and all(w.dtype is torch.float16 for w in weights.values())
    module = build_module(args.channels, 4, 8)
    module.load_state_dict({k: w.float() for k, w in oms.with_time(weights, options).items()})
    for sign in (1.0, -1.0):
        with torch.no_grad():
            v = module(latents(8, 4, 4, 4).float(), 0, torch.full((8, 3, 8), sign), return_dict=False)[0]
        assert abs(float(step.clean_estimate(v).mean()) - sign) < 0.4


def test_a_resumed_training_is_the_whole_one(folder, monkeypatch):
    trainer.train(arguments(folder, "whole.safetensors", 6))

    class Stopping(_fit.Progress):
        def report(self, step, **losses):
            if step == 4 and not self.first:
                raise KeyboardInterrupt
            return super().report(step, **losses)

    monkeypatch.setattr(_fit, "Progress", Stopping)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(arguments(folder, "parts.safetensors", 6))
    trainer.train(arguments(folder, "parts.safetensors", 6))
    whole, parts = (load_file(folder / "out" / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_an_empty_folder_is_named(tmp_path):
    save_file({"context": torch.zeros(3, 8)}, tmp_path / "empty.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no file with a latent and a context"):
        trainer.Folder(tmp_path)
