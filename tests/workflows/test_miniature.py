"""The bundled miniature shows what its captions say, and says so clearly when a file of it is not whole."""

import numpy as np
import pytest
import torch
from trajectory.benchmarks.painting import Painter
from trajectory.nodes import models
from trajectory.training.landscapes.checker import score
from trajectory.training.landscapes.grammar import caption
from trajectory.training.landscapes.scene import held_out_scenes


@pytest.mark.parametrize("choice, steps, cfg, number, attributes, wholly", [
    ("landscapes (flow)", 20, 2.0, 48, 0.92, 0.75),
    ("landscapes (eps)", 20, 3.0, 32, 0.90, 0.65),
    ("landscapes (few-step)", 8, 1.0, 32, 0.90, 0.65),
])  # fmt: skip
def test_held_out_captions_are_shown(host, choice, steps, cfg, number, attributes, wholly):
    """The first of the 256 of benchmarks/miniature.py."""
    scenes = held_out_scenes(256)[:number]
    captions = [caption(s, np.random.default_rng((3, k))) for k, s in enumerate(scenes)]
    with torch.inference_mode():
        shares = score(Painter(choice, host.node_table).paint(captions, steps=steps, cfg=cfg), captions)
    assert shares["attributes"] >= attributes and shares["captions"] >= wholly


def test_the_eps_miniature_is_the_network_that_was_trained(host):
    """The host's UNetModel with the bundled weights against diffusers' UNet2DConditionModel."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers builds the reference")
    from trajectory.training.eps_model import build_model

    assert diffusers
    reference = build_model().eval()
    weights = models.load_weights("landscapes_eps")
    reference.load_state_dict({name: value.float() for name, value in weights.items()})
    network = models.TrajectoryLoadMiniature.execute("landscapes (eps)").args[0].model.diffusion_model
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 16, 24, generator=generator), torch.randn(2, 20, 128, generator=generator)
    times = torch.tensor([12.0, 971.0])
    with torch.inference_mode():
        ours, theirs = network(x, times, context=context), reference(x, times, context).sample
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("damage, words", [
    (lambda path: path.unlink(), "is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged .5000 bytes"),
    (lambda path: path.write_bytes(b"<html>not found</html>"), "is damaged"),
], ids=["missing", "truncated", "another file"])  # fmt: skip
def test_a_file_that_is_not_whole_is_named_with_the_fix(host, tmp_path, monkeypatch, damage, words):
    for file in models._FOLDER.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path / "landscapes_flow.safetensors")
    monkeypatch.setattr(models, "_FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match=rf"(?s)landscapes_flow.*{words}.*git checkout"):
        models.TrajectoryLoadMiniature.execute("landscapes (flow)")


def test_an_unknown_model_is_named(host):
    with pytest.raises(ValueError, match="model is 'seascapes'.*landscapes"):
        models.TrajectoryLoadMiniature.execute("seascapes")
