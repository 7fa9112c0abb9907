"""Paints a scene as a small illustrated poster. All geometry is in unit coordinates, so a picture has any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .scene import Group, Scene

_SUPERSAMPLE = 4
_OUTLINE = (38, 30, 46)
_PLACE_X = {"left": 0.20, "middle": 0.50, "right": 0.80}
_HORIZON = 0.56
_UNMOVED = (0.0, 0.0)

Colour = tuple[float, float, float]
Place = tuple[float, float]


@dataclass(frozen=True)
class _Light:
    """Colours of one sky and how much of their own colour the ground and the objects keep under it (0..1)."""

    top: Colour
    bottom: Colour
    ground: float
    objects: float
    tint: Colour
    tint_share: float
    cloud: Colour
    stars: bool = False


_LIGHTS = {
    "black": _Light((3, 3, 8), (13, 14, 26), 0.28, 0.84, (10, 12, 30), 0.15, (34, 36, 50), True),
    "night": _Light((15, 24, 84), (52, 78, 158), 0.46, 0.90, (30, 40, 120), 0.25, (86, 104, 168), True),
    "dusk": _Light((92, 42, 112), (255, 128, 58), 0.62, 0.94, (190, 70, 60), 0.18, (216, 106, 118)),
    "dawn": _Light((134, 160, 216), (255, 206, 196), 0.86, 1.0, (235, 160, 180), 0.16, (255, 236, 226)),
    "day": _Light((38, 128, 232), (160, 216, 250), 1.0, 1.0, (255, 255, 255), 0.0, (255, 255, 255)),
    "noon": _Light((238, 246, 252), (255, 255, 255), 1.08, 1.0, (255, 255, 255), 0.5, (196, 216, 236)),
}
_COLOURS = {
    "red": (222, 46, 42),
    "yellow": (252, 208, 44),
    "green": (52, 160, 70),
    "blue": (40, 88, 214),
    "white": (246, 244, 240),
}
# Far, middle and near layer of each ground.
_GROUNDS = {
    "hills": ((132, 178, 116), (98, 164, 78), (72, 140, 58)),
    "snow": ((176, 196, 222), (216, 228, 242), (240, 246, 252)),
    "sea": ((54, 132, 176), (34, 112, 164), (24, 92, 146)),
    "desert": ((226, 178, 118), (236, 190, 112), (222, 164, 84)),
}


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def _ink(colour: Colour) -> tuple[int, int, int]:
    return tuple(int(min(255, max(0, round(c)))) for c in colour)


class _Canvas:
    """A Pillow drawing in unit coordinates: (0, 0) is the upper left corner, (1, 1) the lower right one."""

    def __init__(self, pixels: int):
        self.pixels = pixels
        self.image = Image.new("RGB", (pixels, pixels))
        self.draw = ImageDraw.Draw(self.image)
        self.line_width = max(1, round(pixels * 0.009))

    def _points(self, points):
        return [(x * self.pixels, y * self.pixels) for x, y in points]

    def polygon(self, points, colour, outline=False):
        points = self._points(points)
        self.draw.polygon(points, fill=_ink(colour))
        if outline:
            self.draw.line([*points, points[0], points[1]], fill=_OUTLINE, width=self.line_width, joint="curve")

    def ellipse(self, x, y, rx, ry, colour, outline=False):
        box = self._points([(x - rx, y - ry), (x + rx, y + ry)])
        line = {"outline": _OUTLINE, "width": self.line_width} if outline else {}
        self.draw.ellipse([*box[0], *box[1]], fill=_ink(colour), **line)

    def line(self, points, colour, width):
        self.draw.line(self._points(points), fill=_ink(colour), width=max(1, round(width * self.pixels)), joint="curve")

    def gradient(self, top, bottom, y0, y1):
        rows = max(1, round((y1 - y0) * self.pixels))
        share = np.linspace(0, 1, rows)[:, None]
        column = np.asarray(top) + (np.asarray(bottom) - np.asarray(top)) * share
        strip = Image.fromarray(np.clip(column, 0, 255).astype(np.uint8)[:, None, :])
        self.image.paste(strip.resize((self.pixels, rows)), (0, round(y0 * self.pixels)))

    def glow(self, x, y, radius, colour, strength):
        """Blend a soft disc of light over the picture: opacity falls off as a Gaussian of the given radius."""
        small = max(16, self.pixels // 8)
        axis = (np.arange(small) + 0.5) / small
        distance = (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2
        mask = np.exp(-distance / (2 * radius**2)) * strength * 255
        mask = Image.fromarray(mask.astype(np.uint8)).resize((self.pixels, self.pixels), Image.BILINEAR)
        self.image.paste(Image.new("RGB", self.image.size, _ink(colour)), (0, 0), mask)

    def crescent(self, x, y, radius, colour):
        mask = Image.new("L", self.image.size, 0)
        draw = ImageDraw.Draw(mask)
        for shift, r, value in ((0.0, radius, 255), (0.5 * radius, 0.82 * radius, 0)):
            box = self._points([(x + shift - r, y - 0.3 * shift - r), (x + shift + r, y - 0.3 * shift + r)])
            draw.ellipse([*box[0], *box[1]], fill=value)
        self.image.paste(Image.new("RGB", self.image.size, _ink(colour)), (0, 0), mask)


def _lit(colour: Colour, light: _Light, strength: float) -> Colour:
    dimmed = tuple(c * strength for c in colour)
    return _mix(dimmed, light.tint, light.tint_share)


def _object_ink(colour: Colour, light: _Light) -> Colour:
    return _mix(tuple(c * light.objects for c in colour), light.tint, 0.25 * light.tint_share)


def _paint_stars(canvas, rng):
    for x, y, size, shine in rng.random((26, 4)):
        radius = 0.003 + 0.004 * size
        canvas.ellipse(x, 0.5 * y, radius, radius, (170 + 80 * shine,) * 3)


def _orb_place(scene: Scene, rng) -> tuple[float, float]:
    """The orb stands over a third of the sky that no balloon uses."""
    taken = [g.place for g in scene.groups if g.kind == "balloon"]
    free = [p for p in ("left", "right", "middle") if p not in taken][:2]
    x = _PLACE_X[free[int(rng.integers(len(free)))]] + rng.uniform(-0.05, 0.05)
    low = scene.light in ("dusk", "dawn") and scene.orb == "sun"
    return x, (0.36 if low else 0.20) + rng.uniform(-0.04, 0.04)


def _paint_clouds(canvas, light, orb_x, shift, rng):
    slots = [x for x in (0.12, 0.37, 0.63, 0.88) if orb_x is None or abs(x - orb_x) > 0.19]
    jitter = rng.uniform(-1, 1, (4, 3))
    keep = rng.permutation(len(slots))[:3]
    for row, slot in enumerate(keep):
        x, y = slots[slot] + 0.03 * jitter[row, 0] + shift[0], 0.20 + 0.12 * jitter[row, 1] + shift[1]
        size = 0.085 + 0.015 * jitter[row, 2]
        shade = _mix(light.cloud, light.bottom, 0.3)
        canvas.ellipse(x, y + 0.28 * size, 1.35 * size, 0.36 * size, shade)
        for dx, dy, r in ((-0.7, 0.1, 0.5), (0.7, 0.12, 0.46), (0.0, -0.12, 0.68)):
            canvas.ellipse(x + dx * size, y + dy * size, r * size * 1.05, r * size * 0.8, light.cloud)
        canvas.ellipse(x, y + 0.2 * size, 1.2 * size, 0.3 * size, light.cloud)


def _paint_orb(canvas, scene, light, place):
    x, y = place
    if scene.orb == "sun":
        low = scene.light == "dusk"
        canvas.glow(x, y, 0.13, (255, 190, 90) if low else (255, 236, 150), 0.75)
        canvas.ellipse(x, y, 0.085, 0.085, (255, 170, 50) if low else (255, 206, 40))
        canvas.ellipse(x, y, 0.068, 0.068, (255, 214, 110) if low else (255, 226, 96))
    else:
        canvas.glow(x, y, 0.10, (200, 210, 255), 0.35)
        canvas.crescent(x, y, 0.085, (250, 246, 222))


def _ridge(base, height, phases, frequencies):
    """A skyline as 41 points: `height` times a sum of sines around `base`."""
    xs = np.linspace(0, 1, 41)
    pairs = enumerate(zip(frequencies, phases, strict=True), 1)
    waves = sum(np.sin(2 * np.pi * (f * xs + p)) / i for i, (f, p) in pairs)
    return xs, base - height * waves


def _layer(canvas, xs, ys, colour):
    canvas.polygon([*zip(xs, ys, strict=True), (1, 1), (0, 1)], colour)


def _paint_peaks(canvas, colour, snow, rng):
    """Far mountains with white tops behind the snow field."""
    for centre, jitter in zip((0.14, 0.50, 0.84), rng.uniform(-1, 1, (3, 2)), strict=True):
        x, top = centre + 0.06 * jitter[0], 0.42 + 0.04 * jitter[1]
        canvas.polygon([(x - 0.26, 0.66), (x, top), (x + 0.26, 0.66)], colour)
        cap = ((-0.076, 0.07), (0.0, 0.0), (0.076, 0.07), (0.03, 0.05), (-0.01, 0.085))
        canvas.polygon([(x + dx, top + dy) for dx, dy in cap], snow)


def _paint_land(canvas, scene, light, rng):
    far, middle, near = (_lit(c, light, light.ground) for c in _GROUNDS[scene.ground])
    phases = rng.random((3, 3))
    if scene.ground == "snow":
        _paint_peaks(canvas, _mix(far, light.bottom, 0.15), near, rng)
    waves = {"hills": (0.035, (0.9, 1.7, 2.9)), "snow": (0.018, (0.8, 1.4, 2.1)), "desert": (0.04, (0.7, 1.2, 1.9))}
    height, frequencies = waves[scene.ground]
    layers = ((0.56, _mix(far, light.bottom, 0.25)), (0.64, middle), (0.76, near))
    for (base, colour), phase in zip(layers, phases, strict=True):
        xs, ys = _ridge(base, height, phase, frequencies)
        _layer(canvas, xs, ys, colour)
    if scene.ground == "snow":
        for x, y, size in rng.random((14, 3)):
            canvas.ellipse(x, 0.80 + 0.19 * y, 0.012 + 0.02 * size, 0.004, _mix(near, far, 0.55))
        return
    furrow = _mix(near, middle if scene.ground == "hills" else far, 0.6)
    for row in range(1, 5):  # fields follow the nearest skyline
        canvas.line([*zip(xs, ys + 0.055 * row + 0.006 * row * row, strict=True)], furrow, 0.009)


def _paint_sea(canvas, scene, light, rng):
    far, _, near = (_lit(c, light, light.ground) for c in _GROUNDS["sea"])
    canvas.gradient(_mix(far, light.bottom, 0.2), near, _HORIZON, 1.0)
    foam = _mix(far, (255, 255, 255), 0.12 + 0.28 * min(1.0, light.ground))
    for row, (x, drift) in enumerate(rng.random((12, 2))):
        y = 0.60 + 0.034 * row
        length = 0.03 + 0.05 * (y - 0.5) + 0.03 * drift
        crest = ((-1.0, 0.0), (-0.4, -0.008), (0.4, 0.0), (1.0, -0.006))
        canvas.line([(x + dx * length, y + dy) for dx, dy in crest], foam, 0.008)


class _Pen:
    """Draws one object on the canvas in units of its size, with the origin at (x, y) and heights negative upwards."""

    def __init__(self, canvas: _Canvas, x: float, y: float, size: float, light: _Light):
        self.canvas, self.x, self.y, self.size, self.light = canvas, x, y, size, light

    def ink(self, colour: Colour) -> Colour:
        return _object_ink(colour, self.light)

    def place(self, points):
        return [(self.x + dx * self.size, self.y + dy * self.size) for dx, dy in points]

    def polygon(self, points, colour, outline=False):
        self.canvas.polygon(self.place(points), colour, outline)

    def box(self, x0, x1, y0, y1, colour, outline=False):
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, outline)

    def ellipse(self, dx, dy, rx, ry, colour, outline=False):
        size = self.size
        self.canvas.ellipse(self.x + dx * size, self.y + dy * size, rx * size, ry * size, colour, outline)


def _paint_house(pen: _Pen, colour: Colour):
    pen.box(0.2, 0.32, -0.75, -1.05, pen.ink((120, 84, 74)), True)
    pen.box(-0.42, 0.42, 0.0, -0.506, colour, True)
    pen.polygon([(-0.5376, -0.4968), (0.0, -1.1), (0.5376, -0.4968)], _mix(colour, _OUTLINE, 0.35), True)
    pen.box(-0.10, 0.10, 0.0, -0.28, pen.ink((96, 62, 48)))
    for dx in (-0.27, 0.27):
        pen.ellipse(dx, -0.33, 0.085, 0.095, (255, 236, 160))


def _paint_tree(pen: _Pen, colour: Colour):
    pen.polygon([(-0.09, 0.0), (0.09, 0.0), (0.06, -0.6), (-0.06, -0.6)], pen.ink((112, 74, 48)), True)
    crown = ((-0.24, -0.62, 0.27), (0.24, -0.62, 0.27), (0.0, -0.95, 0.32))
    for dx, dy, r in crown:
        pen.ellipse(dx, dy, r, r, colour, True)
    half_line = 0.5 * pen.canvas.line_width / pen.canvas.pixels / pen.size
    for dx, dy, r in crown:  # again without outline, so that only the outer one stays
        pen.ellipse(dx, dy, 0.9 * r - half_line, 0.9 * r, colour)
    pen.ellipse(0.0, -0.72, 0.22, 0.2, colour)
    pen.ellipse(-0.09, -1.04, 0.11, 0.09, _mix(colour, (255, 255, 255), 0.4))


def _paint_boat(pen: _Pen, colour: Colour):
    pen.box(-0.03, 0.03, -0.25, -1.2, pen.ink((96, 62, 48)))
    pen.polygon([(0.07, -1.16), (0.52, -0.36), (0.07, -0.36)], colour, True)
    pen.polygon([(-0.07, -1.06), (-0.44, -0.36), (-0.07, -0.36)], colour, True)
    pen.polygon([(-0.56, -0.27), (0.58, -0.27), (0.36, 0.0), (-0.36, 0.0)], pen.ink((134, 82, 52)), True)


def _paint_balloon(pen: _Pen, colour: Colour):
    for side in (-0.12, 0.12):
        pen.canvas.line(pen.place([(2.2 * side, 0.25), (side, 0.62)]), _OUTLINE, 0.008)
    pen.polygon([(-0.4, 0.1), (0.4, 0.1), (0.13, 0.48), (-0.13, 0.48)], colour, True)
    pen.ellipse(0.0, -0.08, 0.47, 0.47, colour, True)
    pen.polygon([(-0.36, 0.1), (0.36, 0.1), (0.11, 0.44), (-0.11, 0.44)], colour)
    pen.ellipse(0.0, -0.06, 0.17, 0.40, _mix(colour, _OUTLINE, 0.25))
    pen.ellipse(-0.24, -0.24, 0.08, 0.12, _mix(colour, (255, 255, 255), 0.5))
    pen.polygon([(-0.14, 0.6), (0.14, 0.6), (0.11, 0.8), (-0.11, 0.8)], pen.ink((140, 92, 56)), True)


_PAINT_OBJECT = {"house": _paint_house, "tree": _paint_tree, "boat": _paint_boat, "balloon": _paint_balloon}
# Size of one object and offsets of the members (in units of the picture), by count.
_LAYOUT = {
    1: (0.25, ((0.0, 0.0),)),
    2: (0.165, ((-0.083, -0.02), (0.083, 0.02))),
    3: (0.130, ((-0.108, 0.0), (0.108, 0.0), (0.0, 0.075))),
}


def _paint_island(canvas, x, y, width, light):
    """Dry land for what stands in the sea."""
    canvas.ellipse(x, y + 0.012, width, 0.05, _lit((232, 204, 140), light, light.ground))
    canvas.ellipse(x, y, 0.9 * width, 0.034, _lit((110, 168, 84), light, light.ground))


def _paint_group(canvas, group: Group, scene: Scene, light: _Light, shift, rng):
    size, offsets = _LAYOUT[group.count]
    jitter = rng.uniform(-1, 1, (4, 2))
    x = _PLACE_X[group.place] + 0.015 * jitter[3, 0] + shift[0]
    flying = group.kind == "balloon"
    y = (0.27 if flying else 0.84) + 0.02 * jitter[3, 1] - (0.02 if group.count == 3 else 0.0) + shift[1]
    if scene.ground == "sea" and group.kind in ("house", "tree"):
        _paint_island(canvas, x, y + (0.04 if group.count == 3 else 0.0), 0.17 if group.count == 1 else 0.19, light)
    colour = _object_ink(_COLOURS[group.colour], light)
    for (dx, dy), (jx, jy) in zip(offsets, jitter[:3], strict=False):
        spread = 1.6 if flying else 1.0
        pen = _Pen(canvas, x + dx + 0.006 * jx, y + spread * dy + 0.008 * jy, size, light)
        _PAINT_OBJECT[group.kind](pen, colour)


def group_centre(group: Group) -> tuple[float, float]:
    """About where the middle of a group stands, in unit coordinates (x to the right, y downwards)."""
    return _PLACE_X[group.place], 0.27 if group.kind == "balloon" else 0.76


def paint(scene: Scene, size: int, rng: np.random.Generator, moved: Mapping[str, Place] | None = None) -> np.ndarray:
    """Paint `scene` as float32 [size, size, 3] in 0..1. What the scene leaves open (where hills roll, clouds drift) is
    drawn from `rng`, in the same order for every size: one seed gives one picture at all resolutions.

    moved: how far (to the right, down) a kind of object, "sun", "moon" or "clouds" stand from where they would.
    """
    moved = moved or {}
    light = _LIGHTS[scene.light]
    canvas = _Canvas(size * _SUPERSAMPLE)
    canvas.gradient(light.top, light.bottom, 0.0, 0.62)
    canvas.gradient(light.bottom, light.bottom, 0.62, 1.0)
    if light.stars:
        _paint_stars(canvas, rng)
    place = _orb_place(scene, rng) if scene.orb != "none" else None
    if scene.clouds:
        _paint_clouds(canvas, light, place[0] if place else None, moved.get("clouds", _UNMOVED), rng)
    if place:
        dx, dy = moved.get(scene.orb, _UNMOVED)
        _paint_orb(canvas, scene, light, (place[0] + dx, place[1] + dy))
    (_paint_sea if scene.ground == "sea" else _paint_land)(canvas, scene, light, rng)
    for group in sorted(scene.groups):
        _paint_group(canvas, group, scene, light, moved.get(group.kind, _UNMOVED), rng)
    return np.asarray(canvas.image.reduce(_SUPERSAMPLE), dtype=np.float32) / 255.0
