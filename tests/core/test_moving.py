"""Moving landscapes: what moves does so evenly, as its caption says, and is read back where it was painted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from trajectory.models.captions import CONTEXT_LENGTH
from trajectory.models.trip import MotionTokenizer
from trajectory.training.landscapes.grammar import parse
from trajectory.training.landscapes.moving import (
    Clip,
    Motion,
    Tracker,
    held_out_clips,
    motions,
    training_clip,
)
from trajectory.training.landscapes.painter import paint
from trajectory.training.landscapes.scene import Group, Scene, draw_scene, is_held_out

FRAMES, SIZE = 8, 64


@pytest.fixture(scope="module")
def clips():
    return [training_clip(index, 3) for index in range(200)]


def test_held_out_clips_are_of_distinct_scenes_that_training_never_sees(clips):
    held_out = held_out_clips(40)
    assert held_out == held_out_clips(40)
    assert len({clip.scene.key() for clip in held_out}) == 40
    assert all(is_held_out(clip.scene) for clip in held_out)
    assert not any(is_held_out(clip.scene) for clip in clips)


def test_everything_that_can_move_does_in_every_way_it_can(clips):
    found = {(clip.motion.what, clip.motion.way) for clip in clips}
    assert {("sun", "sinks"), ("moon", "rises"), ("balloon", "left"), ("clouds", "right")} <= found
    assert {what for what, _way in found} == {"sun", "moon", "balloon", "boat", "clouds"}
    assert {clip.motion.slowly for clip in clips} == {False, True}


def test_in_training_all_that_can_move_does_so_equally_often(clips):
    assert set(Counter(clip.motion.what for clip in clips).values()) == {40}
    rng = np.random.default_rng(0)
    can_move = {motion.what for _ in range(300) for motion in motions(draw_scene(rng))}
    assert can_move == {clip.motion.what for clip in clips}


def test_nothing_moves_where_nothing_can_and_boats_keep_clear_of_the_land():
    assert not motions(Scene("day", "none", "hills", False, (Group("house", "red", 1, "left"),)))
    boat, tree = Group("boat", "red", 1, "middle"), Group("tree", "green", 2, "left")
    ways = {motion.way for motion in motions(Scene("day", "none", "sea", False, (boat, tree)))}
    assert ways == {"right"}


def test_the_way_is_even_and_slow_motion_half_as_long(clips):
    for clip in clips[:20]:
        steps = np.diff(clip.motion.travels(FRAMES))
        assert np.allclose(steps, steps[0]) and steps[0] > 0
        slow, fast = (replace(clip.motion, slowly=slowly).travels(FRAMES) for slowly in (True, False))
        assert np.isclose(2 * (slow[-1] - slow[0]), fast[-1] - fast[0])


def test_only_the_path_changes_and_at_its_own_place_a_thing_is_as_ever():
    scene = Scene("day", "none", "sea", False, (Group("boat", "red", 1, "left"), Group("balloon", "blue", 1, "right")))
    clip = Clip(scene, Motion("boat", "right"), (1,))
    pictures = clip.paint(FRAMES, SIZE)
    still = paint(scene, SIZE, np.random.default_rng((1,)))
    assert np.array_equal(pictures[0], still)  # a boat sets off from its place
    changed = (np.ptp(pictures, axis=0) > 0).any(-1)
    assert changed.any() and not changed[: SIZE // 2].any() and not changed[:, int(0.65 * SIZE) :].any()


def test_painted_clips_are_read_to_a_hundredth_of_the_picture_and_frozen_or_reversed_ones_are_told(clips):
    for clip in [next(c for c in clips if c.motion.what == what) for what in ("sun", "boat", "balloon", "clouds")]:
        clip = replace(clip, motion=replace(clip.motion, slowly=clip.motion.what in ("sun", "boat")))
        pictures = clip.paint(FRAMES, SIZE)
        tracker = Tracker(clip, SIZE)
        assert np.abs(tracker(pictures) - clip.motion.travels(FRAMES)).max() < 0.01
        assert tracker.accuracy(pictures) == 1
        assert tracker.accuracy(pictures[:1].repeat(FRAMES, 0)) == 0
        assert tracker.accuracy(pictures[::-1]) == 0


def test_captions_say_what_moves_and_fit_the_tokenizer(clips):
    tokenizer, rng = MotionTokenizer(), np.random.default_rng(0)
    for clip in clips:
        text = clip.caption(rng, keep=1.0)
        tokens = tokenizer.encode(text)
        assert len(tokenizer._tokens(text, 1.0)) < CONTEXT_LENGTH and tokenizer.unknown not in tokens
        words = text.replace(",", " ").split()
        assert clip.motion.way.removesuffix("s") in {word.removesuffix("s") for word in words}
        assert ("slowly" in words) == clip.motion.slowly
        stated, groups = parse(text), sorted(g.kind for g in clip.scene.groups)
        assert sorted(g["kind"] for g in stated["groups"]) == groups
        assert stated.get("orb", "none") == clip.scene.orb and stated.get("clouds", False) == clip.scene.clouds


def test_a_caption_depends_on_its_seed_alone(clips):
    assert clips[0].caption(np.random.default_rng(1)) == clips[0].caption(np.random.default_rng(1))
    assert len({clips[0].caption(np.random.default_rng(k)) for k in range(10)}) > 3
