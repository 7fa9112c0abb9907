"""S3Diff: the estimator of blur and noise in tiles, the LoRA that a degradation makes of its file, files refused."""

import pytest
import s3diff_files
import torch
from torch.nn import functional
from trajectory.models import checkpoints
from trajectory.models.s3diff import DENet, block_of, de_net, s3diff, tiles

UNET = {"down_blocks.1.resnets.0.conv1": (8, 5, 3, 3), "mid_block.attentions.0.proj_in": (6, 6),
        "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_k": (7, 9), "conv_out": (4, 6, 3, 3)}  # fmt: skip
VAE = {"encoder.conv_in": (8, 3, 3, 3), "encoder.mid_block.attentions.0.to_q": (6, 6)}


def picture(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def file(**changes):
    return s3diff_files.checkpoint(UNET, VAE, **changes)


# --- the estimator


def test_its_size_is_the_published_one():
    weights = DENet().state_dict()
    assert len(weights) == 80 and sum(value.numel() for value in weights.values()) == 2_351_362


def test_a_feature_sees_22_pixels_around_its_place():
    network = DENet((1, 1, 1))
    for weight in network.parameters():
        torch.nn.init.constant_(weight, 0.1)
    x = torch.ones(1, 3, 101, 101, requires_grad=True)
    network.body[0](network.conv_first[0](x))[0, 0, 25, 25].backward()
    rows, columns = x.grad[0, 0].nonzero().T
    assert network.RADIUS == 22
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50 - 22, 50 + 22, 50 - 22, 50 + 22)


@pytest.mark.parametrize("size, tile", [
    ((1, 1), 2), ((1, 90), 32), ((90, 1), 16), ((64, 33), 32), ((51, 66), 16)], ids=str)  # fmt: skip
def test_tiles_leave_the_result_as_it_is(size, tile):
    network, x = de_net(s3diff_files.estimator()), picture(2, 3, *size)
    whole = network(x)
    assert whole.shape == (2, 2) and 0 < whole.min() and whole.max() < 1
    assert (network(x, tile=tile) - whole).abs().max() < 1e-5


def test_a_halo_that_is_smaller_changes_the_result(monkeypatch):
    network, x = de_net(s3diff_files.estimator()), picture(1, 3, 51, 66)
    whole = network(x)
    monkeypatch.setattr(DENet, "RADIUS", 6)
    assert (network(x, tile=32) - whole).abs().max() > 1e-5


def test_every_feature_is_counted_once():
    for side, tile in ((1, 2), (2, 2), (7, 4), (64, 32), (65, 32), (1000, 512)):
        kept = [slice((cut.start + 2 * keep.start) // 2, (cut.start + 2 * keep.stop) // 2)
                for cut, keep in tiles(side, tile, 22)]  # fmt: skip
        assert [place for part in kept for place in range(part.start, part.stop)] == list(range((side + 1) // 2))
        assert all(cut.start % 2 == 0 for cut, _ in tiles(side, tile, 22))


def test_a_huge_picture_is_seen_in_tiles_and_can_be_interrupted():
    network, seen, sizes = de_net(s3diff_files.estimator((2, 2, 4))), [], []
    network.body[0].register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    x = picture(1, 3, 1100, 60)
    tiled = network(x, before_tile=lambda: seen.append(1))
    assert len(seen) == 3 and max(max(size) for size in sizes) == 512 + 2 * 22
    assert (tiled - network(x, tile=2000)).abs().max() < 1e-5
    assert network.memory(5000, 5000) == 3 * 2 * 4 * 556**2 > network.memory(100, 100)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        network(x, before_tile=stop)


def test_item_k_of_a_batch_is_that_item_alone():
    network, x = de_net(s3diff_files.estimator()), picture(3, 3, 40, 31)
    batch = network(x)
    for k in range(3):
        assert torch.allclose(network(x[k : k + 1]), batch[k : k + 1], atol=1e-6)
    assert (batch[0] - batch[1]).abs().max() > 1e-5


def test_weights_of_another_network_are_refused():
    weights = s3diff_files.estimator()
    with pytest.raises(ValueError, match=r"another model: 1 missing \(body.0.3.conv2.bias\)"):
        de_net({key: value for key, value in weights.items() if key != "body.0.3.conv2.bias"})
    with pytest.raises(ValueError, match="another model: 80 missing .* 1 unknown"):
        de_net({"unet.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="of another shape"):
        de_net({**weights, "conv_first.0.weight": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="conv_first.0.bias has values that are not finite"):
        de_net({**weights, "conv_first.0.bias": torch.full((8,), torch.nan)})


def test_half_precision_weights_measure_large_pictures():
    """Their sum over a picture exceeds what half precision holds."""
    weights = {key: value.abs() for key, value in s3diff_files.estimator((2, 2, 4)).items()}
    halves, x = {key: value.half() for key, value in weights.items()}, 0.5 + 0.5 * picture(1, 3, 600, 400)
    network = de_net(halves)
    sums = network.body[0](network.conv_first[0](x)).sum((-2, -1))
    assert sums.max() > torch.finfo(torch.half).max
    assert (network(x) - de_net(weights)(x)).abs().max() < 1e-3


# --- the change of the networks


@pytest.mark.parametrize("layer, unet, vae", [
    ("down_blocks.0.resnets.0.conv1", 0, 0), ("down_blocks.3.downsamplers.0.conv", 3, 3),
    ("mid_block.resnets.1.conv2", 4, 4), ("up_blocks.0.resnets.2.conv1", 5, None),
    ("up_blocks.3.attentions.2.proj_out", 8, None), ("conv_out", 9, 5), ("conv_in", 9, 5),
])  # fmt: skip
def test_blocks(layer, unet, vae):
    assert block_of(layer, 10) == unet
    assert vae is None or block_of(f"encoder.{layer}", 6) == vae


def test_the_merged_lora_is_the_modulated_one():
    """y = W x + (8 / r) B M^T A x with M of the layer's block, by hand."""
    contents = file(ranks=(6, 4))
    made = s3diff(contents)
    features, weights = made.features(0.3, 0.8), contents["state_dict_unet"]
    mixing = made.unet.mixing(features)
    assert mixing.shape == (10, 6, 6) and (mixing[0] - mixing[1]).abs().max() > 0.01
    for layer, block in (("down_blocks.1.resnets.0.conv1", 1), ("mid_block.attentions.0.proj_in", 4),
                         ("up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_k", 7), ("conv_out", 9)):  # fmt: skip
        down, up = (weights[f"{layer}.lora_{part}.default.weight"] for part in "AB")
        run = functional.linear if down.ndim == 2 else functional.conv2d
        x = picture(2, UNET[layer][1]) if down.ndim == 2 else picture(2, UNET[layer][1], 6, 6)
        channels = run(x, down)
        mixed = torch.zeros_like(channels)
        for out in range(6):
            for into in range(6):
                mixed[:, out] += channels[:, into] * mixing[block, into, out]
        expected = 8 / 6 * run(mixed, up)
        pair = made.unet.at(features).low_rank[layer]
        assert pair.up.shape == up.shape and pair.down is down
        merged = (pair.scale * pair.up.flatten(1) @ pair.down.flatten(1)).reshape(UNET[layer])
        assert torch.allclose(run(x, merged), expected, atol=1e-5)


def test_the_mixing_matrix_by_hand():
    contents = file()
    made = s3diff(contents)
    blur, noise, w = 0.3, 0.8, contents["w"]
    angles = [2 * torch.pi * value * w for value in (blur, noise)]
    f = torch.cat([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()])
    assert torch.allclose(made.features(blur, noise), f, atol=1e-5)
    degree, block, fuse = (contents[f"state_dict_vae_{part}_mlp"] for part in ("de", "block", "fuse"))
    g = (degree["0.weight"] @ f + degree["0.bias"]).relu()
    e = contents["state_embeddings"]["state_dict_vae_block"]["weight"][4]
    b = (block["0.weight"] @ e + block["0.bias"]).relu()
    expected = (fuse["weight"] @ torch.cat([g, b]) + fuse["bias"]).reshape(4, 4)
    assert torch.allclose(made.vae.mixing(f)[4], expected, atol=1e-5)


def test_blur_and_noise_both_count():
    made = s3diff(file())
    ups = [made.at(*degradation)[1].low_rank["encoder.conv_in"].up
           for degradation in ((0.3, 0.8), (0.8, 0.3), (0.3, 0.3))]  # fmt: skip
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (ups[a] - ups[b]).abs().max() > 1e-3
    assert torch.equal(made.at(0.3, 0.8)[1].low_rank["encoder.conv_in"].up, ups[0])


def test_whole_layers_are_passed_on_and_ranks_are_read():
    whole = {"conv_in.weight": torch.ones(4, 4, 3, 3)}
    unet, vae = s3diff(file(ranks=(32, 16), whole=whole)).at(0.5, 0.5)
    assert torch.equal(unet.weights["conv_in.weight"], whole["conv_in.weight"]) and not vae.weights
    assert {pair.scale for pair in unet.low_rank.values()} == {0.25}
    assert {pair.scale for pair in vae.low_rank.values()} == {0.5}


@pytest.mark.parametrize("write, name", [
    (lambda contents, path: torch.save(contents, path), "s3diff.pkl"), (lambda contents, path: checkpoints.write(
        path, contents), "s3diff.safetensors")], ids=["pickle", "safetensors"])  # fmt: skip
def test_files(tmp_path, write, name):
    contents = file()
    write(contents | {"w": torch.nn.Parameter(contents["w"])}, tmp_path / name)  # as the authors save it
    found, expected = (s3diff(c).at(0.2, 0.6)[0].low_rank for c in (checkpoints.read(tmp_path / name), contents))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[layer].up, pair.up, atol=1e-6) for layer, pair in expected.items())


def without(*path):
    def change(contents):
        *sections, key = path
        for name in sections:
            contents = contents[name]
        del contents[key]

    return change


def resized(name, key, shape):
    return lambda contents: contents[name].update({key: torch.zeros(shape)})


@pytest.mark.parametrize("change, message", [
    (without("w"), "no w, as a file of S3Diff has"),
    (without("state_dict_vae"), "no low-rank changes in state_dict_vae"),
    (without("state_dict_unet_de_mlp"), "no state_dict_unet_de_mlp 0.weight"),
    (without("state_dict_vae_fuse_mlp", "bias"), "no state_dict_vae_fuse_mlp bias"),
    (without("state_embeddings", "state_dict_vae_block"), "no state_embeddings state_dict_vae_block weight"),
    (without("state_dict_unet", "conv_out.lora_A.default.weight"), "conv_out has the low-rank parts"),
    (resized("state_dict_unet_fuse_mlp", "weight", (37, 21)), "do not fit together"),
    (resized("state_dict_unet_fuse_mlp", "weight", (25, 21)), "do not fit together"),
    (resized("state_dict_vae_de_mlp", "0.weight", (16, 31)), "do not fit together"),
    (resized("state_dict_unet", "conv_out.lora_B.default.weight", (4,)), "conv_out has the low-rank parts"),
    (resized("state_dict_unet", "conv_out.lora_A.default.weight", (0, 6, 3, 3)), r"conv_out.* \[0, 6, 3, 3\]"),
    (lambda c: c["state_dict_vae_fuse_mlp"]["bias"].fill_(torch.nan), "state_dict_vae_fuse_mlp bias has values"),
    (lambda c: c["w"].fill_(torch.inf), "w has values that are not finite"),
    (lambda c: c.update(w=3), "no w, as a file of S3Diff has"),
    (lambda c: c.update(w=torch.tensor(3.0)), r"w is torch.float32 \[\], not"),
    (lambda c: c["state_dict_unet"].update({"conv_in.bias": 3}), "conv_in.bias is int, not a tensor"),
    (lambda c: c.update(w=torch.zeros(9)), "do not fit together"),
    (lambda c: c["state_embeddings"]["state_dict_unet_block"].update(weight=torch.zeros(3, 7)), "do not fit together"),
    (lambda c: (c.clear(), c.update({"unet": {"conv_in.weight": torch.zeros(1)}})), "no low-rank changes"),
], ids=range(19))  # fmt: skip
def test_other_files_are_refused(change, message):
    contents = file()
    change(contents)
    with pytest.raises(ValueError, match=message):
        s3diff(contents)


@pytest.mark.parametrize("contents", [None, [torch.zeros(2)], torch.zeros(2), {0: torch.zeros(2)}], ids=str)
def test_contents_without_names_are_refused(contents):
    with pytest.raises(ValueError, match="not weights by name"):
        s3diff(contents)
