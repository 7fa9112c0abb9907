"""The bundled miniature shows what its captions say, and says so clearly when a file of it is not whole."""

import numpy as np
import pytest
import torch
from trajectory.benchmarks.miniature import generated
from trajectory.nodes import models
from trajectory.training.landscapes.checker import score
from trajectory.training.landscapes.grammar import caption
from trajectory.training.landscapes.scene import held_out_scenes


def test_held_out_captions_are_shown(host):
    """48 of the 256 of benchmarks/miniature.py, 20 steps; the bars are those of the whole: 92 % and 75 %."""
    scenes = held_out_scenes(256)[:48]
    captions = [caption(s, np.random.default_rng((3, k))) for k, s in enumerate(scenes)]
    with torch.inference_mode():
        shares = score(generated(host.node_table, captions, 128, 20, 2.0, 0), captions)
    assert shares["attributes"] >= 0.92 and shares["captions"] >= 0.75


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
