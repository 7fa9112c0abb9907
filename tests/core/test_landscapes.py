"""The painted world: scenes, captions and pictures agree, and the checker reads them."""

import numpy as np
import pytest
import torch
from trajectory.models.captions import CONTEXT_LENGTH, WORDS, CaptionTokenizer
from trajectory.training.landscapes import checker
from trajectory.training.landscapes.grammar import caption, parse, vocabulary
from trajectory.training.landscapes.painter import paint
from trajectory.training.landscapes.scene import (
    LIGHTS,
    Group,
    Scene,
    draw_scene,
    draw_training_scene,
    held_out_scenes,
    is_held_out,
)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(11)
    return [draw_scene(rng) for _ in range(300)]


def _paint_all(scenes, size):
    return np.stack([paint(s, size, np.random.default_rng((5, k))) for k, s in enumerate(scenes)])


def test_scenes_keep_a_loose_physical_sense(scenes):
    for scene in scenes:
        kinds, places = [g.kind for g in scene.groups], [g.place for g in scene.groups]
        assert len(set(kinds)) == len(kinds) and len(set(places)) == len(places)
        assert "boat" not in kinds or scene.ground == "sea"
        assert scene.orb != "sun" or scene.light not in ("black", "night")


def test_the_split_is_a_function_of_the_attributes_alone():
    groups = (Group("house", "red", 1, "left"), Group("tree", "blue", 2, "right"))
    one, other = (Scene("day", "sun", "hills", False, g) for g in (groups, groups[::-1]))
    assert one.key() == other.key() and is_held_out(one) == is_held_out(other)
    held_out = held_out_scenes(256)
    assert len({s.key() for s in held_out}) == 256
    assert held_out == held_out_scenes(256)
    assert all(is_held_out(s) and s.groups for s in held_out)
    rng = np.random.default_rng(0)
    assert not any(is_held_out(draw_training_scene(rng)) for _ in range(300))


def test_a_full_caption_states_the_whole_scene(scenes):
    rng = np.random.default_rng(2)
    for scene in scenes:
        stated = parse(caption(scene, rng, keep=1.0))
        truth = checker.stated_by(scene)
        assert stated["light"] == scene.light and stated["ground"] == scene.ground
        assert stated.get("orb", "none") == scene.orb and stated.get("clouds", False) == scene.clouds
        assert sorted(stated["groups"], key=str) == sorted(
            ({k: g[k] for k in stated["groups"][0]} for g in truth["groups"]), key=str) if scene.groups else True


def test_a_caption_states_nothing_wrong(scenes):
    rng = np.random.default_rng(3)
    for scene in scenes:
        results = checker.compare(checker.stated_by(scene), parse(caption(scene, rng, keep=0.6)))
        assert all(right for _name, right in results)


def test_captions_are_deterministic_and_vary(scenes):
    first, second = (caption(scenes[0], np.random.default_rng(4)) for _ in range(2))
    assert first == second
    assert len({caption(scenes[1], np.random.default_rng(k)) for k in range(20)}) > 5


def test_every_caption_fits_the_tokenizer(scenes):
    tokenizer, rng = CaptionTokenizer(), np.random.default_rng(5)
    assert set(WORDS) <= set(vocabulary())
    for scene in scenes:
        tokens = tokenizer.encode(caption(scene, rng))
        assert len(tokens) == CONTEXT_LENGTH and tokenizer.unknown not in tokens
        assert len(tokenizer.tokenize_with_weights(caption(scene, rng, 1.0))["captions"][0]) == CONTEXT_LENGTH


def test_one_seed_is_one_picture_at_every_size(scenes):
    for scene in scenes[:12]:
        large, small = (paint(scene, size, np.random.default_rng(6)) for size in (128, 64))
        assert large.shape == (128, 128, 3) and large.dtype == np.float32
        assert 0 <= large.min() and large.max() <= 1
        halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - small).mean() < 0.03
        assert np.array_equal(small, paint(scene, 64, np.random.default_rng(6)))


def test_lights_spread_from_black_to_white():
    means = [paint(Scene(light, "none", "hills", False), 64, np.random.default_rng(0)).mean() for light in LIGHTS]
    assert means[0] < 0.13 and means[-1] > 0.8
    assert all(b > a for a, b in zip(means[:4], means[1:4], strict=False))


@pytest.mark.parametrize("size", [64, 128])
def test_the_checker_reads_fresh_pictures(size):
    rng = np.random.default_rng(901)
    scenes = [draw_scene(rng) for _ in range(400)]
    share = checker.score(_paint_all(scenes, size), scenes)
    for name in checker.ATTRIBUTES:
        assert share[name] >= 0.985, (name, share[name])


def test_the_checker_accepts_numpy_and_torch(scenes):
    pictures = _paint_all(scenes[:3], 64)
    assert checker.read(pictures) == checker.read(torch.from_numpy(pictures))


def test_the_score_counts_what_is_stated():
    scene = Scene("day", "sun", "sea", False, (Group("boat", "red", 2, "left"),))
    picture = paint(scene, 64, np.random.default_rng(0))[None]
    assert checker.score(picture, [scene])["captions"] == 1
    wrong = checker.score(picture, ["two blue boats on the left and the sun"])
    assert wrong["wrong"] == [["colour"]] and wrong["captions"] == 0
    assert checker.score(picture, ["the sea on a blue day"])["wrong"] == [["no others"]]
