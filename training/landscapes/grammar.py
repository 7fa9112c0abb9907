"""Captions: a scene in words (`caption`), and the attributes that a caption states (`parse`).

A caption is a list of phrases in any order, joined by commas or "and": the setting ("a blue night over the sea"), the
sun or the moon, clouds, and each group of objects ("two red boats on the left"). Phrases may be left out; what a
caption does not state is open, except that objects it does not mention are not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from .scene import COLOURS, KINDS, PLACES, Scene

_LIGHT_PHRASES = {
    "black": ("black night", "pitch black night"),
    "night": ("blue night", "starry blue night"),
    "dusk": ("dusk", "orange sunset", "sunset"),
    "dawn": ("dawn", "pink dawn", "pink sunrise"),
    "day": ("blue day", "blue sky", "bright blue day"),
    "noon": ("white noon", "white sky", "bright white noon"),
}
_GROUND_PHRASES = {
    "hills": ("green hills", "hills"),
    "snow": ("snow", "snowy mountains"),
    "sea": ("sea", "blue sea"),
    "desert": ("desert", "sandy desert"),
}
_COUNT_WORDS = {1: ("a", "one"), 2: ("two",), 3: ("three",)}
_PLACE_PHRASES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_LEADS = ("a picture of", "a painting of", "a landscape with")

# The word by which each stated attribute is recognised.
_LIGHT_WORDS = {
    "black": "black", "night": "night", "dusk": "dusk", "sunset": "dusk", "dawn": "dawn", "sunrise": "dawn",
    "day": "day", "sky": "day", "noon": "noon", "white sky": "noon", "black night": "black",
}
_GROUND_WORDS = {"hills": "hills", "snow": "snow", "snowy": "snow", "sea": "sea", "desert": "desert"}
_COUNTS = {"a": 1, "one": 1, "two": 2, "three": 3}


def vocabulary() -> list[str]:
    """Every word that `caption` can write, sorted."""
    phrases = [p for table in (_LIGHT_PHRASES, _GROUND_PHRASES, _COUNT_WORDS) for ps in table.values() for p in ps]
    phrases += [*_PLACE_PHRASES.values(), *_LEADS, *KINDS, *(k + "s" for k in KINDS), *COLOURS]
    phrases += ["at under over with and the sun moon clouds cloudy"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _article(phrase: str) -> str:
    return phrase if phrase in ("dusk", "dawn", "snow") else f"a {phrase}"


def _setting(scene: Scene, rng: np.random.Generator, keep: float) -> list[str]:
    light, ground = _pick(rng, _LIGHT_PHRASES[scene.light]), _pick(rng, _GROUND_PHRASES[scene.ground])
    with_light, with_ground = rng.random() < keep, rng.random() < keep
    if not with_light or not with_ground:
        return [_article(light)] if with_light else [ground] if with_ground else []
    forms = (f"{_article(light)} over the {ground}", f"{ground} at {light}", f"{ground} under {_article(light)}")
    return [_pick(rng, forms)]


def _group_phrase(group, rng: np.random.Generator, keep: float) -> str:
    words = [_pick(rng, _COUNT_WORDS[group.count])]
    if rng.random() < keep:
        words.append(group.colour)
    words.append(group.kind + ("s" if group.count > 1 else ""))
    if rng.random() < keep:
        words.append(_PLACE_PHRASES[group.place])
    return " ".join(words)


def caption(scene: Scene, rng: np.random.Generator, keep: float = 0.93, doing: Mapping[str, str] | None = None) -> str:
    """`scene` in words. Each attribute (but the objects themselves) is stated with probability `keep`.

    doing: {kind of object, "sun", "moon" or "clouds": the words that follow it}; what it names is always stated.
    """
    doing = doing or {}

    def acting(phrase: str, name: str) -> str:
        return f"{phrase} {doing[name]}" if name in doing else phrase

    extras = []
    if scene.orb != "none" and (rng.random() < keep or scene.orb in doing):
        article = "the" if doing else _pick(rng, ("the", "a"))  # words of motion leave no room for another one
        extras.append(acting(f"{article} {scene.orb}", scene.orb))
    if scene.clouds and (rng.random() < keep or "clouds" in doing):
        extras.append(acting("clouds", "clouds"))
    extras += [acting(_group_phrase(g, rng, keep), g.kind) for g in scene.groups]
    extras = [extras[i] for i in rng.permutation(len(extras))]
    setting = _setting(scene, rng, keep)
    phrases = extras + setting if rng.random() < 0.25 else setting + extras
    if not phrases:
        return "a landscape"
    joint = _pick(rng, (", ", " and ", ", "))
    text = phrases[0]
    if setting and phrases[0] == setting[0] and len(phrases) > 1 and rng.random() < 0.4:
        text = f"{phrases[0]} with {phrases[1]}"
        phrases = phrases[1:]
    text = joint.join([text, *phrases[1:]])
    return f"{_pick(rng, _LEADS)} {text}" if not doing and rng.random() < 0.1 else text


def parse(text: str) -> dict:
    """What a caption of this grammar states: some of `light`, `orb`, `ground`, `clouds`, and `groups`, a list of dicts
    with `kind`, `count` and, where stated, `colour` and `place`."""
    words = re.findall(r"[a-z]+", text.lower())
    stated: dict = {"groups": []}
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        kind = word.removesuffix("s") if word.removesuffix("s") in KINDS else None
        if kind:
            colour = before if before in COLOURS else None
            count = words[index - 2] if colour and index > 1 else before
            group = {"kind": kind, "count": _COUNTS.get(count, 1)}
            after = words[index + 1 : index + 4]
            if colour:
                group["colour"] = colour
            if len(after) == 3 and after[:2] in (["on", "the"], ["in", "the"]) and after[2] in PLACES:
                group["place"] = after[2]
            stated["groups"].append(group)
        elif word in ("sun", "moon"):
            stated["orb"] = word
        elif word in ("clouds", "cloudy"):
            stated["clouds"] = True
        elif word in _GROUND_WORDS:
            stated["ground"] = _GROUND_WORDS[word]
        elif f"{before} {word}" in _LIGHT_WORDS or word in _LIGHT_WORDS:
            stated["light"] = _LIGHT_WORDS.get(f"{before} {word}") or _LIGHT_WORDS[word]
    return stated
