"""The step from a latent instead of noise, and the files of one-step restorers."""

import math

import pytest
import torch
from trajectory.models.one_step import autoencoder_key, change, osediff, section
from trajectory.samplers.one_step import sample_one_step, start
from trajectory.samplers.paths import FLOW, VE

SIGMA_MAX = 14.61464


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the step


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 4, 3, 6, 5), (2, 1, 77)])
@pytest.mark.parametrize("sigma", [SIGMA_MAX, 1.0, 1e-3, 0.0])
def test_the_network_sees_the_latent_itself(shape, sigma):
    z = draw(*shape)
    x, noise = start(z, sigma, VE)
    assert torch.allclose(x / math.sqrt(1 + sigma**2), z, atol=1e-6)
    assert torch.allclose(z + sigma * noise, x, atol=1e-5)
    x, noise = start(z, sigma, FLOW)
    assert torch.equal(x, z)
    assert torch.allclose((1 - sigma) * z + sigma * noise, z, atol=1e-5)


def test_is_the_closed_form():
    """x0 = (z - sqrt(1 - alpha_bar) eps(z)) / sqrt(alpha_bar), and so the Euler step from sigma_max to 0."""
    z, bar = draw(3, 4, 8, 8), 1 / (1 + SIGMA_MAX**2)

    def network(latent):
        return torch.sin(3 * latent) + 0.2

    def model(x, sigma):
        sigma = sigma.view(-1, 1, 1, 1)
        return x - sigma * network(x / (1 + sigma**2) ** 0.5)

    sigmas = torch.tensor([SIGMA_MAX, 0.0])
    x, _ = start(z, SIGMA_MAX, VE)
    expected = (z - (1 - bar) ** 0.5 * network(z)) / bar**0.5
    assert torch.allclose(sample_one_step(model, x, sigmas), expected, atol=1e-4)


def test_one_call_at_the_first_sigma_whatever_follows():
    calls, seen = [], []

    def model(x, sigma, **extra):
        calls.append((sigma.tolist(), extra))
        return 0.5 * x

    x = draw(2, 4, 3, 3)
    for sigmas in ([9.0, 0.0], [9.0, 3.0], [9.0, 5.0, 5.0, 1.0]):
        out = sample_one_step(model, x, torch.tensor(sigmas), {"seed": 3}, seen.append)
        assert torch.equal(out, 0.5 * x)
    assert calls == [([9.0, 9.0], {"seed": 3})] * 3
    assert [state["i"] for state in seen] == [0, 0, 0] and torch.equal(seen[0]["denoised"], 0.5 * x)


@pytest.mark.parametrize("sigmas", [[], [9.0]])
def test_no_interval_is_no_step(sigmas):
    x = draw(1, 4, 3, 3)
    assert torch.equal(sample_one_step(None, x, torch.tensor(sigmas)), x)


def test_is_cancelled_before_the_call():
    def cancel():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_one_step(None, draw(1, 4, 3, 3), torch.tensor([9.0, 0.0]), before_call=cancel)


# --- files

PAIR = {"conv_in.lora_A.default_encoder.weight": draw(4, 8, 3, 3), "conv_in.lora_B.default_encoder.weight":
        draw(16, 4, 1, 1), "conv_in.base_layer.weight": draw(16, 8, 3, 3), "conv_in.base_layer.bias": draw(16)}
ENCODER = {"encoder.conv_in.lora_A.vae_skip.weight": draw(2, 3, 3, 3), "encoder.conv_in.lora_B.vae_skip.weight":
           draw(8, 2, 1, 1)}  # fmt: skip


def test_a_file_is_sorted_into_pairs_and_whole_layers():
    sorted_ = change(PAIR)
    (pair,) = sorted_.low_rank.values()
    assert list(sorted_.low_rank) == ["conv_in"] and sorted(sorted_.weights) == ["conv_in.bias", "conv_in.weight"]
    assert torch.equal(pair.down, PAIR["conv_in.lora_A.default_encoder.weight"]) and pair.scale == 2.0
    assert change(ENCODER).low_rank["encoder.conv_in"].scale == 4.0
    without_adapter = {key.replace(".vae_skip", ""): value for key, value in ENCODER.items()}
    assert change(without_adapter).low_rank.keys() == change(ENCODER).low_rank.keys()


def test_nested_and_flat_files_are_the_same():
    nested = {"rank_unet": 4, "state_dict_unet": PAIR, "state_dict_vae": ENCODER}
    flat = {f"{part}/{key}": value for part in ("state_dict_unet", "state_dict_vae")
            for key, value in nested[part].items()}  # fmt: skip
    for checkpoint in (nested, flat):
        unet, vae = osediff(checkpoint)
        assert list(unet.low_rank) == ["conv_in"] and list(vae.low_rank) == ["encoder.conv_in"]
        assert unet.weights.keys() == {"conv_in.weight", "conv_in.bias"}
        assert section(checkpoint, "state_dict_unet").keys() == PAIR.keys()


def test_the_merged_variant_holds_both_networks_whole():
    unet, vae = osediff({"unet": {"conv_in.weight": draw(2, 2)}, "vae": {"encoder.conv_in.weight": draw(2, 2)}})
    assert list(unet.weights) == ["conv_in.weight"] and list(vae.weights) == ["encoder.conv_in.weight"]
    assert not unet.low_rank and not vae.low_rank


@pytest.mark.parametrize(("checkpoint", "message"), [
    ({}, "nothing"),
    ({"conv_in.weight": draw(2, 2)}, "conv_in.weight"),
    ({"state_dict_unet": PAIR}, "state_dict_vae"),
    ({"state_dict_unet": PAIR, "state_dict_vae": ENCODER, "state_dict_unet_de_mlp": {"0.weight": draw(2, 2)}},
     "S3Diff Loader"),
    (None, "NoneType, not weights by name"),
    ([PAIR, ENCODER], "list, not weights by name"),
    (draw(2, 2), "Tensor, not weights by name"),
    ({0: draw(2, 2)}, "dict, not weights by name"),
    ({"state_dict_unet": {0: "text"}, "state_dict_vae": ENCODER}, "0 is str, not a tensor"),
])  # fmt: skip
def test_another_file_is_refused(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        osediff(checkpoint)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"conv_in.lora_B.default_encoder.weight": None}, "low-rank parts"),
    ({"conv_in.lora_B.default_encoder.weight": draw(16, 5, 1, 1)}, "of the same rank"),
    ({"conv_in.lora_A.other.weight": draw(4, 8, 3, 3)}, "two low-rank changes"),
    ({"conv_in.lora_B.default_encoder.weight": draw(16)}, "low-rank parts"),
    ({"conv_in.lora_B.default_encoder.weight": draw(16, 4, 3, 3)}, "of the same rank"),
    ({"conv_in.lora_A.default_encoder.weight": draw(4)}, "low-rank parts"),
    ({"conv_in.lora_A.default_encoder.weight": draw(0, 8, 3, 3), "conv_in.lora_B.default_encoder.weight":
      draw(16, 0, 1, 1)}, r"lora_A.*\[0, 8, 3, 3\]"),
    ({"conv_in.lora_A.default_encoder.weight": torch.tensor(1.0)}, r"lora_A.* \[\], not"),
    ({"conv_in.base_layer.weight": draw(0, 8, 3, 3)}, r"conv_in.base_layer.weight is .*\[0, 8, 3, 3\], not"),
    ({"conv_in.base_layer.bias": torch.ones(16, dtype=torch.int32)}, "conv_in.base_layer.bias is torch.int32"),
    ({"conv_in.base_layer.bias": 3}, "conv_in.base_layer.bias is int, not a tensor"),
    ({"conv_in.base_layer.bias": torch.full((16,), torch.nan)}, "conv_in.base_layer.bias has values that are not fin"),
    ({"conv_in.lora_B.default_encoder.weight": draw(16, 4, 1, 1) / 0}, "lora_B.* has values that are not finite"),
])  # fmt: skip
def test_broken_pairs_are_refused(wrong, message):
    weights = {key: value for key, value in {**PAIR, **wrong}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        change(weights)


# --- names of autoencoders


@pytest.mark.parametrize(("theirs", "host"), [
    ("encoder.conv_in.weight", "encoder.conv_in.weight"),
    ("encoder.down_blocks.2.resnets.1.conv2.bias", "encoder.down.2.block.1.conv2.bias"),
    ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.weight"),
    ("encoder.down_blocks.0.downsamplers.0.conv.weight", "encoder.down.0.downsample.conv.weight"),
    ("encoder.mid_block.resnets.1.norm1.weight", "encoder.mid.block_2.norm1.weight"),
    ("encoder.mid_block.attentions.0.group_norm.weight", "encoder.mid.attn_1.norm.weight"),
    ("encoder.mid_block.attentions.0.to_q.weight", "encoder.mid.attn_1.q.weight"),
    ("encoder.mid_block.attentions.0.to_out.0.bias", "encoder.mid.attn_1.proj_out.bias"),
    ("encoder.conv_norm_out.weight", "encoder.norm_out.weight"),
    ("quant_conv.weight", "quant_conv.weight"),
    ("post_quant_conv.bias", "post_quant_conv.bias"),
    ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
    ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"),
    ("encoder.layers.3.conv.2.weight", "taesd_encoder.3.conv.2.weight"),
    ("decoder.layers.0.weight", "taesd_decoder.1.weight"),
])  # fmt: skip
def test_the_hosts_names(theirs, host):
    assert autoencoder_key(theirs) == host


def test_the_miniature_has_the_layers_of_diffusers_tiny_autoencoder():
    from pathlib import Path

    from safetensors import safe_open

    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderTiny().state_dict()
    path = Path(__file__).parents[2] / "miniatures" / "landscapes_autoencoder4.safetensors"
    with safe_open(path, "pt") as file:
        ours = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    renamed = {autoencoder_key(key): tuple(value.shape) for key, value in theirs.items()}
    assert renamed == {key: shape for key, shape in ours.items() if key not in ("vae_scale", "vae_shift")}
