"""Vector-quantised autoencoders: sizes as published, codes by brute force, the miniature and how it is trained."""

import argparse
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trajectory.models import vq
from trajectory.training import vq_autoencoder as training
from trajectory.training.landscapes.painter import paint
from trajectory.training.landscapes.scene import held_out_scenes

PUBLISHED = {
    "4x": ({"widths": [128, 256, 512], "blocks": [2, 2, 2], "z_channels": 3, "dim": 3, "codes": 8192}, 55_322_782),
    "face": (
        {"widths": [64, 128, 256, 512], "blocks": [1, 2, 3, 4], "z_channels": 8, "dim": 8, "codes": 4096}, 77_009_115
    ),
}  # fmt: skip
TINY = {"widths": [4, 8, 6], "blocks": [1, 2, 1], "z_channels": 3, "dim": 2, "codes": 20, "attention": [1]}


def tiny(**changes):
    torch.manual_seed(0)
    return vq.VQAutoencoder(**{**TINY, **changes}).eval().requires_grad_(False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name):
    options, count = PUBLISHED[name]
    with torch.device("meta"):
        network = vq.VQAutoencoder(**options)
    assert sum(p.numel() for p in network.parameters()) == count
    assert vq.config_of(network.state_dict()) == {**options, "attention": [], "channels": 3}


@pytest.mark.parametrize("changes", [{}, {"attention": []}, {"widths": [4], "blocks": [3]}, {"widths": [1, 3]},
                                     {"channels": 1}], ids=str)
def test_any_size_is_read_from_the_weights(changes):
    network = tiny(**changes)
    weights = network.state_dict()
    again = vq.load({**weights, "loss.logvar": torch.zeros(1)})
    pictures = torch.rand(2, changes.get("channels", 3), 12, 8)
    latents = network.encode(pictures)
    assert latents.shape == (2, 2, 12 // network.factor, 8 // network.factor)
    assert torch.equal(again.encode(pictures), latents)
    assert again.decode(latents).shape == pictures.shape
    assert vq.load(weights, torch.float16).encode(pictures.half()).dtype == torch.float16


def test_weights_of_another_model_are_refused():
    weights = tiny().state_dict()
    with pytest.raises(ValueError, match="quantize.embedding.weight is not there"):
        vq.load({key: value for key, value in weights.items() if "quantize" not in key})
    with pytest.raises(ValueError, match="1 missing .decoder.conv_out.bias"):
        vq.load({key: value for key, value in weights.items() if key != "decoder.conv_out.bias"})


def test_weights_in_the_layout_of_diffusers_are_refused():
    weights = tiny().state_dict()
    weights = {key.replace("encoder.down.", "encoder.down_blocks."): value for key, value in weights.items()}
    with pytest.raises(ValueError, match="not the weights of a VQ.*encoder.down.0.block.0.conv1.weight is not there"):
        vq.load(weights)


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (0, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("key", [
    "encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "quant_conv", "quantize.embedding",
    "encoder.down.1.block.0.conv1"])  # fmt: skip
def test_weights_of_other_shapes_are_refused(key, shape):
    key += ".weight"
    with pytest.raises(ValueError, match=f"not the weights of a VQ.*{key} has the shape ") as refused:
        vq.load({**tiny().state_dict(), key: torch.zeros(shape)})
    assert str(list(shape)) in str(refused.value)


def test_a_picture_of_less_than_one_place_is_refused():
    with pytest.raises(ValueError, match="a side of less than 4 pixels"):
        tiny().encode(torch.zeros(1, 3, 0, 8))


def test_an_item_of_a_batch_is_that_item_alone():
    network, pictures = tiny(), torch.rand(3, 3, 16, 8)
    latents = network.encode(pictures)
    together = network.decode(latents)
    for k in range(3):
        assert torch.allclose(network.encode(pictures[k : k + 1])[0], latents[k], atol=1e-5)
        assert torch.allclose(network.decode(latents[k : k + 1])[0], together[k], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_nearest_code_is_that_of_brute_force(dtype, monkeypatch):
    """Also where codes are nearer to each other than half precision tells distances apart, and in parts."""
    generator = torch.Generator().manual_seed(0)
    book = vq.Codebook(500, 3).requires_grad_(False)
    book.embedding.weight.copy_(8 + 0.05 * torch.randn(500, 3, generator=generator))
    book = book.to(dtype)
    z = (8 + 0.05 * torch.randn(2, 3, 7, 5, generator=generator)).to(dtype)
    codes = book.embedding.weight.double()
    distances = (z.double().movedim(1, -1)[..., None, :] - codes).square().sum(-1)
    whole = book.nearest(z)
    chosen = distances.gather(-1, whole[..., None])[..., 0]
    assert torch.allclose(chosen, distances.amin(-1), atol=1e-9)
    assert torch.equal(book(z).movedim(1, -1), book.embedding.weight[whole]) and book(z).dtype == dtype
    monkeypatch.setattr(vq, "DISTANCES", 1200)
    assert torch.equal(book.nearest(z), whole)


def test_decoding_rounds_first():
    network, latents = tiny(), torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    rounded = network.quantize(latents)
    assert not torch.equal(rounded, latents)
    assert torch.equal(network.quantize(rounded), rounded)
    assert torch.equal(network.decode(rounded), network.decode(latents))


# --- the miniature


@pytest.fixture(scope="module")
def miniature():
    return training.load()


@pytest.fixture(scope="module")
def paintings():
    """Held-out pictures [8, 3, 128, 128] in -1..1."""
    drawn = [paint(scene, 128, np.random.default_rng(k)) for k, scene in enumerate(held_out_scenes(8))]
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1).float() for picture in drawn]) * 2 - 1


def test_the_miniature_is_small_and_laid_out_as_published():
    weights = load_file(training.FILE)
    assert training.FILE.stat().st_size < 1.2e6
    assert {value.dtype for value in weights.values()} == {torch.float16}
    options = vq.config_of(weights)
    assert (options["z_channels"], options["dim"], len(options["widths"])) == (3, 3, 3)


def test_the_miniature_gives_held_out_pictures_back(miniature, paintings):
    with torch.no_grad():
        latents = miniature.encode(paintings)
        back = miniature.decode(latents).clamp(-1, 1)
    errors = ((back - paintings) / 2).square().mean((1, 2, 3))
    assert latents.shape == (8, 3, 32, 32)
    assert -10 * math.log10(errors.mean()) > 31
    assert 0.8 < latents.std() < 1.25


def test_codes_move_to_where_latents_are():
    """From codes that are all far away: none stays unused, and rounding gets as fine as the number of codes allows."""
    generator = torch.Generator().manual_seed(0)
    network = tiny(codes=64)
    network.quantize.embedding.weight.fill_(50.0)
    codes, latents = training.Codes(network), torch.randn(2000, 2, generator=generator)

    def chosen():
        return network.quantize.nearest(latents.T[None, :, :, None]).flatten()

    codes.place(latents, generator)
    assert len(chosen().unique()) == 64
    placed = (network.quantize.embedding.weight[chosen()] - latents).square().mean()
    assert placed < 0.035  # the best 64 codes of a unit Gaussian in the plane leave 0.0315 (Zador)
    latents = latents + 3
    for _ in range(600):
        codes.update(latents, chosen(), generator)
    assert len(chosen().unique()) > 55
    assert (network.quantize.embedding.weight[chosen()] - latents).square().mean() < 1.5 * placed


def test_a_resumed_training_is_that_in_one_go(tmp_path, monkeypatch):
    """Through all three parts; interrupted at a checkpoint."""
    monkeypatch.setattr(training, "WIDTHS", [8, 8, 8])
    monkeypatch.setattr(training, "CODES", 32)
    monkeypatch.setattr(training, "PIXELS", 2 * 48**2)
    arguments = argparse.Namespace(free_steps=1, joint_steps=3, steps=5, pool=3, seed=0)

    def run(name, interrupted=False):
        class Interrupted(training.Progress):
            def report(self, step, **losses):
                if interrupted and step == 4:
                    raise KeyboardInterrupt
                return super().report(step, **losses)

        with monkeypatch.context() as patch:
            patch.setattr(training, "Progress", Interrupted)
            patch.setattr(training, "FILE", tmp_path / f"{name}.safetensors")
            patch.setattr(training, "CHECKPOINT", tmp_path / f"{name}.pt")
            training.train(arguments)
        return load_file(tmp_path / f"{name}.safetensors")

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", interrupted=True)
    half, resumed = load_file(tmp_path / "parts.safetensors"), run("parts")
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    frozen = [key for key in whole if not key.startswith(("decoder.", "post_quant_conv."))]
    assert all(torch.equal(half[key], whole[key]) for key in frozen)
    assert not torch.equal(half["decoder.conv_in.weight"], whole["decoder.conv_in.weight"])
