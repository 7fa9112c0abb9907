"""The UNet of ResShift: what its weights say of it, its windows, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from trajectory.models import swin_unet
from trajectory.models.swin_unet import Config, Norm, SwinBlock, SwinUNet, config_of, load

PUBLISHED = Config(
    channels=160, latent_channels=3, lq_channels=3, features=(), widths=(160, 320, 320, 640), blocks=(2, 2, 2, 2),
    swin=(True, True, True, True), swin_width=192, swin_depth=2, heads=6, window=8, mlp_width=768)  # fmt: skip
SMALL = Config(
    channels=8, latent_channels=3, lq_channels=4, features=(8,), widths=(8, 16), blocks=(2, 1), swin=(True, False),
    swin_width=8, swin_depth=2, heads=2, window=4, mlp_width=12)  # fmt: skip
COUNTS = [
    (PUBLISHED, 118_593_583),
    (replace(PUBLISHED, features=(32,)), 118_640_431),
    (replace(PUBLISHED, lq_channels=4, features=(32, 64)), 118_714_399),
    (replace(PUBLISHED, latent_channels=8, features=(32, 64, 128)), 118_931_604),
]


def small(seed=0):
    torch.manual_seed(seed)
    network = SwinUNet(SMALL).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.ndim > 1 else 1.0))
    return network


def inputs(batch=2, height=16, width=8):
    generator = torch.Generator().manual_seed(3)
    state = torch.randn(batch, 3, height, width, generator=generator)
    return state, torch.arange(batch), torch.rand(batch, 4, 2 * height, 2 * width, generator=generator) * 2 - 1


@pytest.mark.parametrize("config, parameters", COUNTS, ids=["x4", "x2", "inpainting", "face"])
def test_published_sizes_and_configurations(config, parameters):
    with torch.device("meta"):
        network = SwinUNet(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert config_of(network.state_dict()) == config
    assert network.multiple == 64


def test_a_small_network_is_read_from_its_weights_alone():
    network = small()
    again = load(network.state_dict())
    assert again.config == SMALL
    assert torch.equal(again(*inputs()), network(*inputs()))


def test_an_item_of_a_batch_is_that_item_alone():
    network, (state, times, lq) = small(), inputs(3)
    together = network(state, times, lq)
    alone = network(state[1:2], times[1:2], lq[1:2])
    assert (together[1:2] - alone).abs().max() < 1e-5 * together.abs().max()


def test_time_and_the_bad_picture_matter():
    network, (state, times, lq) = small(), inputs()
    for changed in ((state, times + 1, lq), (state, times, -lq)):
        assert (network(*changed) - network(state, times, lq)).abs().max() > 1e-3


@pytest.mark.parametrize("height, width", [(12, 8), (8, 20)])
def test_sides_that_no_windows_fill_are_refused(height, width):
    with pytest.raises(ValueError, match=f"{width}x{height}.*multiples of 8"):
        small()(*inputs(1, height, width))


def test_windows_are_shifted_at_all_levels_but_the_coarsest():
    with torch.device("meta"):
        network = SwinUNet(PUBLISHED)
    shifted = {name.partition(".1.blocks")[0] for name, module in network.named_modules()
               if isinstance(module, SwinBlock) and module.shift}  # fmt: skip
    assert shifted == {f"{part}_blocks.{block}" for part, blocks in (("input", (1, 4, 7)), ("output", (3, 6, 9)))
                       for block in blocks}  # fmt: skip


def test_windows_are_cut_and_put_together():
    x = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    windows = swin_unet.partition(x, 4)
    assert torch.equal(windows[1, 4], x[1, :, 4:8, 4:8].flatten(1).T)  # rows of 3 windows: the fifth
    assert torch.equal(swin_unet.together(windows, 8, 12), x)


def test_attention_stays_within_a_window():
    block = SwinBlock(8, 2, 4, 12, 0).eval().requires_grad_(False)
    block.norm1 = torch.nn.Identity()  # whose statistics are of the whole picture
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., 0, 0] += 1
    difference = (block._attended(changed) - block._attended(x)).abs().sum((0, 1))
    assert bool((difference[:4, :4] > 0).all())
    assert float(difference[4:].max()) == float(difference[:, 4:].max()) == 0


def test_the_bias_belongs_to_the_offset():
    attention = swin_unet.WindowAttention(4, 1, 3)
    attention.relative_position_bias_table.data = torch.arange(25.0)[:, None]
    bias = attention.bias()[0].detach().view(3, 3, 3, 3)  # of the pixel (y, x) for the pixel (v, u)
    assert float(bias[2, 0, 0, 1]) == (2 - 0 + 2) * 5 + (0 - 1 + 2)
    assert float(bias[0, 0, 2, 2]) == 0 and float(bias[2, 2, 0, 0]) == 24


def test_norms_are_computed_in_float32():
    x = 300 * torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    assert Norm(64).half()(x.half()).dtype == torch.float16
    assert (Norm(64).half()(x.half()).float() - Norm(64)(x)).abs().max() < 5e-3


@pytest.mark.parametrize("channels, groups", [(640, 32), (160, 32), (128, 32), (48, 8), (96, 16), (8, 2), (3, 1)])
def test_groups_of_a_norm(channels, groups):
    assert swin_unet.groups_of(channels) == groups


def test_weights_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="ResShift"):
        load({"conv_in.weight": torch.zeros(8, 3, 3, 3)})
    weights = small().state_dict()
    with pytest.raises(ValueError, match="out.0.bias"):
        load({key: value for key, value in weights.items() if key != "out.0.bias"})
    with pytest.raises(ValueError, match="shifted"):
        load(weights | {"middle_block.1.blocks.1.attn_mask": torch.zeros(4, 16, 16)})
    with pytest.raises(ValueError, match="not the weights of a ResShift.*no residual block before input_blocks.1"):
        load({key: value for key, value in weights.items() if not key.startswith("input_blocks.1.")})


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (0, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("key", [
    "out.2.weight", "time_embed.0.weight", "feature_extractor.0.weight", "feature_extractor.2.op.weight",
    "input_blocks.1.0.in_layers.2.weight", "middle_block.1.patch_embed.proj.weight",
    "middle_block.1.blocks.0.attn.relative_position_bias_table", "middle_block.1.blocks.0.mlp.fc1.weight"])  # fmt: skip
def test_weights_of_other_shapes_are_refused(key, shape):
    with pytest.raises(ValueError, match=f"not the weights of a ResShift.*{key} has the shape ") as refused:
        load({**small().state_dict(), key: torch.zeros(shape)})
    assert str(list(shape)) in str(refused.value)


def test_the_stages_of_the_feature_extractor_are_in_order():
    config = replace(SMALL, features=(4, 8, 12, 16, 20))
    with torch.device("meta"):
        assert config_of(SwinUNet(config).state_dict()) == config
