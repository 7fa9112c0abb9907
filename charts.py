"""Line charts as pictures, drawn with Pillow alone, which every host brings: for nodes that plot and for the docs."""

import functools
import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GRID, MINOR = "#ffffff", "#222222", "#d9d9d9", "#efefef"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart with any colour vision (Okabe and Ito 2008), without the yellow, which is pale on white."""

SCALE = 3  # pixels drawn for one pixel shown
TITLE, LABEL, TICK, LEGEND, SMALLEST = 20, 16, 14, 14, 8  # font sizes in shown pixels
PAD, MARK = 10, 5.5
LEGEND_SHARE = 0.3  # of the width, at most


def _regular(corners, turn=0.0, radius=1.0, inner=None):
    """Corners of a regular polygon, of a star where the inner radius is given; turn in half corners."""
    count = corners if inner is None else 2 * corners
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(count)]
    angles = [math.pi * (turn / corners + 2 * i / count) for i in range(count)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


_ARM = 0.36
_PLUS = [(x, y) for x, y in ((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM))]
MARKERS = (
    _regular(48), _regular(4, 1, 1.2), _regular(3, 0, 1.3), _regular(4, 0, 1.2), _regular(3, 1, 1.3),
    _regular(5, 0, 1.4, 0.6), _PLUS + [(-x, -y) for x, y in _PLUS], _regular(6, 0, 1.1),
)  # fmt: skip
"""Circle, square, triangle, diamond, triangle on its tip, star, plus, hexagon; as many as not to fit the colours."""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, from `start` at the low end to `end`; low and high are logarithms where `log` is set."""

    low: float
    high: float
    log: bool

    @classmethod
    def around(cls, values, log):
        """An axis with a margin around the values (all positive where log); from 0 to 1, or 1 to 10, for none."""
        values = [math.log10(v) for v in values] if log else values
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
            room = 0.5 if log else abs(low) / 2 or 0.5
        else:
            room = 0.06 * (high - low)
        return cls(low - room, high + room, log)

    def share(self, value):
        """Where the value stands on the axis: 0 at the low end, 1 at the high end."""
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self):
        """([(value, text, superscript)] with labels, [value] without)."""
        if not self.log:
            return [(v, f"{v:g}", "") for v in _round_steps(self.low, self.high)], []
        first, last = math.floor(self.low), math.ceil(self.high)
        fine = [m * 10.0**k for k in range(first, last) for m in range(1, 10) if self._inside(m * 10.0**k)]
        decades = [k for k in range(first, last + 1) if self._inside(10.0**k)]
        if len(decades) >= 3:
            step = math.ceil(len(decades) / 8)
            return [(10.0**k, "10", str(k)) for k in decades[::step]], fine if step == 1 else []
        labelled = [v for v in fine if f"{v:e}"[0] in "125"]
        if len(labelled) < 2:
            labelled = _round_steps(10**self.low, 10**self.high)
        return [(v, f"{v:g}", "") for v in labelled], fine

    def _inside(self, value):
        return self.low <= math.log10(value) <= self.high


def _round_steps(low, high, count=6):
    """About `count` values at steps of 1, 2 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(
        math.ceil(low / step), math.floor(high / step) + 1)]  # fmt: skip


def line_chart(series, title, x_label, y_label, log_x=False, log_y=False, size=(960, 600)):
    """A chart of lines with markers on white, its legend beside the plot, as an RGB picture of `size` pixels.

    series: list of (name, xs, ys), both of equal length, drawn in their order. A point that is not finite, or not
    positive on a logarithmic axis, is left out and the line has a gap there; a series without points stays in the
    legend. Logarithmic axes have a tick at each decade. Long names are wrapped.
    """
    picture = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
    pen = _Pen(ImageDraw.Draw(picture), picture)
    runs = [_unbroken(xs, ys, log_x, log_y) for _, xs, ys in series]
    points = [point for parts in runs for part in parts for point in part]
    x_axis, y_axis = Axis.around([x for x, _ in points], log_x), Axis.around([y for _, y in points], log_y)

    height = size[1] - (TITLE + 2.5 * PAD) - (LABEL + TICK + 3 * PAD)
    legend = _Legend.fitted([name for name, *_ in series], LEGEND_SHARE * size[0], height)
    ticks = y_axis.ticks()[0]
    left = LABEL + 3.5 * PAD + max((_label_width(text, above) for _, text, above in ticks), default=0)
    top, right, bottom = TITLE + 2.5 * PAD, size[0] - legend.width - 1.5 * PAD, TITLE + 2.5 * PAD + height
    frame = (left, top, right, bottom)

    pen.text((left + right) / 2, top - PAD, title, TITLE, "ms")
    pen.text((left + right) / 2, size[1] - PAD, x_label, LABEL, "ms")
    pen.upright(PAD, (top + bottom) / 2, y_label, LABEL)
    _draw_grid(pen, frame, x_axis, y_axis)
    for parts, style in zip(runs, _styles(), strict=False):
        for part in parts:
            place = [(left + x_axis.share(x) * (right - left), bottom - y_axis.share(y) * (bottom - top))
                     for x, y in part]  # fmt: skip
            pen.line(place, style[0], 2)
            for x, y in place:
                pen.marker(x, y, *style)
    if not points:
        pen.text((left + right) / 2, (top + bottom) / 2, "no data", LABEL, "mm")
    legend.draw(pen, right + 1.5 * PAD, top)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _unbroken(xs, ys, log_x, log_y):
    """The points of a line as lists without a gap."""
    parts = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(x) and math.isfinite(y) and not (log_x and x <= 0) and not (log_y and y <= 0):
            parts[-1].append((float(x), float(y)))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _styles():
    """(colour, marker) for one series after the other, without end; 56 until they repeat."""
    i = 0
    while True:
        yield COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        i += 1


def _draw_grid(pen, frame, x_axis, y_axis):
    left, top, right, bottom = frame
    (x_ticks, x_fine), (y_ticks, y_fine) = x_axis.ticks(), y_axis.ticks()

    def at_x(value):
        return left + x_axis.share(value) * (right - left)

    def at_y(value):
        return bottom - y_axis.share(value) * (bottom - top)

    for values, colour in ((x_fine, MINOR), ([v for v, *_ in x_ticks], GRID)):
        for value in values:
            pen.line([(at_x(value), top), (at_x(value), bottom)], colour, 1)
    for values, colour in ((y_fine, MINOR), ([v for v, *_ in y_ticks], GRID)):
        for value in values:
            pen.line([(left, at_y(value)), (right, at_y(value))], colour, 1)
    free = -math.inf  # pixels up to here are taken by the label before
    for value, text, above in x_ticks:
        width = _label_width(text, above)
        if at_x(value) - width / 2 > free:
            pen.label(at_x(value) - width / 2, bottom + 0.8 * PAD + TICK, text, above)
            free = at_x(value) + width / 2 + PAD
        pen.line([(at_x(value), bottom), (at_x(value), bottom + PAD / 2)], INK, 1)
    for value, text, above in y_ticks:
        pen.label(left - 0.8 * PAD - _label_width(text, above), at_y(value) + 0.36 * TICK, text, above)
        pen.line([(left - PAD / 2, at_y(value)), (left, at_y(value))], INK, 1)
    pen.line([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], INK, 1)


@functools.cache
def _font(size):
    return ImageFont.load_default(size * SCALE)


def _width(text, size):
    return _font(size).getlength(text) / SCALE


def _label_width(text, above):
    return _width(text, TICK) + (_width(above, 0.7 * TICK) + 1 if above else 0)


@dataclass
class _Legend:
    """Rows of a marker and a name, the name on as many lines as it needs."""

    rows: list
    font: float
    width: float

    @classmethod
    def fitted(cls, names, width, height):
        """With the largest font at which the rows fit into the height, or the smallest there is."""
        for font in range(LEGEND, SMALLEST - 1, -1):
            rows = [wrapped(name, font, width - cls._indent(font)) for name in names]
            if cls._height(rows, font) <= height:
                break
        widest = max((_width(line, font) for row in rows for line in row), default=0)
        return cls(rows, font, cls._indent(font) + widest + PAD)

    @staticmethod
    def _indent(font):
        return 2.6 * font

    @staticmethod
    def _height(rows, font):
        return sum(1.25 * font * len(row) + 0.45 * font for row in rows)

    def draw(self, pen, left, top):
        for row, (colour, marker) in zip(self.rows, _styles(), strict=False):
            middle = top + 0.7 * self.font
            pen.line([(left, middle), (left + 2 * self.font, middle)], colour, 2)
            pen.marker(left + self.font, middle, colour, marker)
            for i, line in enumerate(row):
                pen.text(left + self._indent(self.font), middle + 1.25 * self.font * i, line, self.font, "lm")
            top += self._height([row], self.font)


def wrapped(name, font, width):
    """The name in the font size `font` as lines no wider than `width`, broken at blanks where it has them."""
    lines = [""]
    for word in " ".join(str(name).split()).split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if _width(joined, font) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _width(lines[-1] + letter, font) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@dataclass(frozen=True)
class _Pen:
    """Draws at shown pixels into the enlarged picture."""

    draw: ImageDraw.ImageDraw
    picture: Image.Image

    def line(self, points, colour, width):
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), "curve")

    def marker(self, x, y, colour, corners):
        for radius, fill in ((MARK + 1.2, PAPER), (MARK, colour)):  # a white rim parts it from lines below
            self.draw.polygon([((x + radius * dx) * SCALE, (y + radius * dy) * SCALE) for dx, dy in corners], fill)

    def text(self, x, y, text, size, anchor):
        self.draw.text((x * SCALE, y * SCALE), text, INK, _font(size), anchor)

    def label(self, x, y, text, above):
        """A tick's label with its left end on the baseline at (x, y), `above` as a superscript."""
        self.text(x, y, text, TICK, "ls")
        self.text(x + _width(text, TICK) + 1, y - 0.42 * TICK, above, 0.7 * TICK, "ls")

    def upright(self, x, y, text, size):
        """Text that reads upwards, its left edge at x, centred on y."""
        box = _font(size).getbbox(text, anchor="ls")
        strip = Image.new("RGB", (max(box[2], 1), round(1.4 * size * SCALE)), PAPER)
        ImageDraw.Draw(strip).text((0, size * SCALE), text, INK, _font(size), "ls")
        strip = strip.rotate(90, expand=True)
        self.picture.paste(strip, (round(x * SCALE), round(y * SCALE - strip.height / 2)))
