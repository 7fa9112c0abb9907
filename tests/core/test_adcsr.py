"""AdcSR: its size, its files, and what a network that runs in tiles and threads must not do."""

from concurrent.futures import ThreadPoolExecutor

import adcsr_files
import pytest
import torch
from trajectory.models import adcsr, checkpoints
from trajectory.restoration import colour_fix


def picture(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_published_network_has_456_million_parameters_and_heads_of_48():
    with torch.device("meta"):
        network = adcsr.AdcSR()
    assert sum(weight.numel() for weight in network.parameters()) == 456_073_683
    used = [network.unet, network.decoder.mid_block]
    assert sum(weight.numel() for part in used for weight in part.parameters()) == 446_321_744
    heads = [stage.attentions[0].transformer_blocks[0].attn1.heads for stage in network.unet.down_blocks[:3]]
    assert heads == [5, 10, 20]
    assert network.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 20


@pytest.mark.parametrize("channels, groups", [(240, 24), (720, 24), (480, 32), (960, 32), (1440, 32), (1920, 32)])
def test_the_groups_of_a_norm_are_the_first_that_divide_its_channels(channels, groups):
    assert adcsr.group_norm(channels, 1e-5).num_groups == groups


@torch.no_grad()
def test_sides_are_multiplied_by_four_and_items_do_not_touch_each_other():
    network = adcsr_files.random_network().double()  # in single, sums of a batch round by more than 1e-5
    x = picture(2, 3, 16, 48).double()
    made = network(x)
    assert made.shape == (2, 3, 64, 192) and made.std() > 0.1
    for k in range(2):
        torch.testing.assert_close(network(x[k:k + 1]), made[k:k + 1], rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_two_threads_do_not_share_what_skips_ahead():
    network = adcsr_files.random_network().double()
    inputs = [picture(1, 3, 32, 16 * width, seed=width).double() for width in (1, 2, 3, 2)]
    alone = [network(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(torch.no_grad()(network), inputs * 3))
    for made, expected in zip(together, alone * 3, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision_is_close(dtype, tolerance):
    network = adcsr_files.random_network()
    x = picture(1, 3, 16, 16)
    expected = network(x)
    made = network.to(dtype)(x)
    assert made.dtype == dtype
    assert (made.float() - expected).abs().mean() < tolerance * expected.std()


# --- files ------------------------------------------------------------------------------------------------------------


def load(folder, net="net_params_200.pkl", decoder="halfDecoder.ckpt", **options):
    net, decoder = (checkpoints.state_dict(checkpoints.read(folder / name)) for name in (net, decoder))
    return adcsr.network(adcsr.net_weights(net), adcsr.decoder_weights(decoder), **options)


@pytest.fixture
def folder(tmp_path):
    adcsr_files.write(tmp_path, adcsr_files.random_network())
    return tmp_path


def test_the_published_files_and_what_they_are_converted_to_give_the_network(folder):
    for name in ("net_params_200.pkl", "halfDecoder.ckpt"):
        converted = (folder / name).with_suffix(".safetensors")
        checkpoints.write(converted, checkpoints.read(folder / name))
        assert converted.stat().st_size < 1.1 * (folder / name).stat().st_size  # what has two names is stored once
    expected = adcsr_files.random_network().state_dict()
    for names in ((), ("net_params_200.safetensors", "halfDecoder.safetensors")):
        found = load(folder, *names).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert load(folder, dtype=torch.float16).dtype == torch.float16


def without(weights, *parts):
    return {key: value for key, value in weights.items() if not any(part in key for part in parts)}


def cut(weights, suffix, index):
    """The weights whose keys end so, indexed."""
    return {key: value[index] if key.endswith(suffix) else value for key, value in weights.items()}


SPOILT = {
    "the decoder twice": (lambda net, half: (half, half), "not AdcSR's net_params file"),
    "the net twice": (lambda net, half: (net, net), "not AdcSR's halfDecoder file"),
    "no middle": (lambda net, half: (without(net, ".mid_block.", ".body.4."), half), r"missing \(unet.mid_block"),
    "no last bias": (lambda net, half: (net, without(half, "conv_out.bias")), r"missing \(decoder.conv_out.bias"),
    "a time path": (lambda net, half: ({**net, "body.1.time_embedding.weight": torch.zeros(4)}, half),
                    r"unknown \(unet.time_embedding"),
    "an odd width": (lambda net, half: (cut(without(net, ".body."), "down_blocks.1.resnets.0.conv1.weight",
                                            slice(40)), half), "40 channels, which are no heads"),
    "an empty convolution": (lambda net, half: (net, cut(half, "resnets.0.conv1.weight", slice(0))),
                             "is missing or no convolution"),
    "a flat convolution": (lambda net, half: (net, cut(half, "decoder.conv_out.weight", (..., 0))),
                           r"of another shape \(decoder.conv_out.weight"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", SPOILT.values(), ids=SPOILT)
def test_weights_of_another_model_are_refused_by_name(spoil, message):
    net, half = (checkpoints.state_dict(contents) for contents in adcsr_files.published(adcsr_files.random_network()))
    net, half = spoil(net, half)
    with pytest.raises(ValueError, match=message):
        adcsr.network(adcsr.net_weights(net), adcsr.decoder_weights(half))


# --- mean and contrast ------------------------------------------------------------------------------------------------


def test_the_fix_gives_the_small_pictures_mean_and_deviation_whatever_its_size():
    made, low = 3 * picture(2, 3, 40, 24) - 1, 0.5 * picture(2, 3, 10, 6, seed=1)
    fixed = colour_fix.adcsr(made, low)
    torch.testing.assert_close(fixed.mean((2, 3)), low.mean((2, 3)))
    torch.testing.assert_close(fixed.std((2, 3)), low.std((2, 3)))
    torch.testing.assert_close(colour_fix.adcsr(low, low), low)
    assert torch.equal(colour_fix.adcsr(made.flip(0), low.flip(0)).flip(0), fixed)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_one_colour_stays_one_colour(size):
    low = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, *size)
    large = low.expand(1, 3, *size).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(colour_fix.adcsr(picture(*large.shape), low), large)
    torch.testing.assert_close(colour_fix.adcsr(torch.full_like(large, 0.7), low), large)
