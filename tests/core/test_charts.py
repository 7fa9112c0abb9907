"""Charts, read back from their pixels."""

import math

import numpy as np
import pytest
from PIL import ImageColor
from trajectory import charts
from trajectory.charts import COLOURS, MARKERS, Axis, line_chart

NAN, INF = math.nan, math.inf


def pixels(chart):
    return np.asarray(chart).astype(int)


def of_colour(chart, colour, tolerance=40):
    """[(row, column)] of the pixels in a colour."""
    return np.argwhere(np.abs(pixels(chart) - ImageColor.getrgb(colour)).max(-1) <= tolerance)


def frame_of(chart):
    """(top, bottom, left, right) of the plot: the rows and columns where dark pixels run through most of it."""
    dark = pixels(chart).max(-1) < 150
    rows, columns = (np.flatnonzero(dark.mean(axis) > 0.5) for axis in (1, 0))
    return rows.min(), rows.max(), columns.min(), columns.max()


def drawn(chart, colour):
    """The pixels of a colour inside the plot, as (rows, columns)."""
    _, _, left, right = frame_of(chart)
    found = of_colour(chart, colour)
    return found[(found[:, 1] > left) & (found[:, 1] < right)].T


def legend_rows(chart):
    """For each legend row from the top, the middle of its line sample."""
    *_, right = frame_of(chart)
    inked = pixels(chart)[:, right + 10 : right + 30].min(-1) < 200
    rows = np.flatnonzero(inked.any(1))
    return [] if len(rows) == 0 else [part.mean() for part in np.split(rows, np.flatnonzero(np.diff(rows) > 2) + 1)]


def test_a_power_law_is_a_straight_line_on_logarithmic_axes_and_not_on_linear_ones():
    xs = [2.0**k for k in range(11)]
    ys = [x**-2 for x in xs]
    straight = drawn(line_chart([("a", xs, ys)], "t", "x", "y", True, True), COLOURS[0])
    slope, offset = np.polyfit(straight[1], straight[0], 1)
    assert slope > 0  # it falls, and rows count downwards
    distance = np.abs(straight[0] - slope * straight[1] - offset) / math.hypot(slope, 1)
    assert distance.max() < charts.MARK + 2
    bent = drawn(line_chart([("a", xs, ys)], "t", "x", "y"), COLOURS[0])
    slope, offset = np.polyfit(bent[1], bent[0], 1)
    assert (np.abs(bent[0] - slope * bent[1] - offset) / math.hypot(slope, 1)).max() > 50


def test_points_stand_where_the_axes_say():
    chart = line_chart([("a", [1, 100], [0.01, 10]), ("b", [10], [1])], "t", "x", "y", True, True)
    top, bottom, left, right = frame_of(chart)
    x_axis, y_axis = Axis.around([1, 10, 100], True), Axis.around([0.01, 10, 1], True)
    rows, columns = drawn(chart, COLOURS[1])
    assert columns.mean() == pytest.approx(left + x_axis.share(10) * (right - left), abs=1.5)
    assert rows.mean() == pytest.approx(bottom - y_axis.share(1) * (bottom - top), abs=1.5)
    assert x_axis.share(10) == pytest.approx(0.5)


def test_the_line_joins_its_points_and_has_gaps_where_a_value_is_missing():
    def inked_at(ys, log=False):
        """Whether the line crosses the middle between neighbours 1-2 and 3-4."""
        chart = line_chart([("a", [1, 2, 3, 4, 5], ys)], "t", "x", "y", False, log)
        _, _, left, right = frame_of(chart)
        columns, axis = drawn(chart, COLOURS[0])[1], Axis.around([1, 5], False)
        return [np.abs(columns - left - axis.share(x) * (right - left)).min() < 2 for x in (1.5, 3.5)]

    assert inked_at([1, 2, 3, 4, 5]) == [True, True]
    for missing in (NAN, INF, -INF):
        assert inked_at([1, 2, 3, missing, 5]) == [True, False]
    assert inked_at([1, 2, 3, 0, 5]) == [True, True] and inked_at([1, 2, 3, 0, 5], log=True) == [True, False]


@pytest.mark.parametrize("count", [1, 3, 8, 15])
@pytest.mark.parametrize("name", ["a", "a long name that needs more than one line of the legend to be read whole"])
def test_the_legend_has_a_row_for_every_line_and_stands_outside_the_plot(count, name):
    chart = line_chart([(f"{name} {i}", [1, 2], [i + 1, i + 2]) for i in range(count)], "t", "x", "y")
    rows = legend_rows(chart)
    assert len(rows) == count and np.diff(rows).min(initial=99) > 8
    top, bottom, left, right = frame_of(chart)
    assert right - left > 0.5 * chart.width and max(rows) < bottom
    edge = pixels(chart)[:, -3:]
    assert edge.min() == 255  # nothing runs over the edge


def test_every_line_looks_different():
    assert len({(COLOURS[i % len(COLOURS)], tuple(MARKERS[i % len(MARKERS)])) for i in range(56)}) == 56
    colours = np.array([ImageColor.getrgb(colour) for colour in COLOURS])
    gaps = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(len(colours))
    assert gaps.min() > 80
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert luminance.max() < 180  # none is pale on white


def test_ticks_at_decades_or_at_one_two_and_five():
    wide, fine = Axis.around([1e-4, 1.0], True).ticks()
    assert [(text, above) for _, text, above in wide] == [("10", str(k)) for k in range(-4, 1)]
    assert len(fine) > 4 * 8
    narrow, _ = Axis.around([5, 40], True).ticks()
    assert [text for _, text, _ in narrow] == ["5", "10", "20"] or [t for _, t, _ in narrow] == ["5", "10", "20", "50"]
    assert len(Axis.around([3.01, 3.02], True).ticks()[0]) >= 2
    assert len(Axis.around([1e-30, 1e30], True).ticks()[0]) <= 9
    linear, _ = Axis.around([0, 1], False).ticks()
    assert [text for _, text, _ in linear] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ys", [[0.5], [0.5, 0.5], [0.0, 0.0], [NAN, INF], [1e-30, 1e30], [-1.0, 2.0], []], ids=str)
def test_any_data_gives_a_chart(ys, log):
    chart = line_chart([("a", list(range(1, len(ys) + 1)), ys), ("b", [], [])], "t", "x", "y", log, log, (480, 320))
    assert chart.size == (480, 320) and len(legend_rows(chart)) == 2
    shown = [y for y in ys if math.isfinite(y) and (y > 0 or not log)]
    assert bool(len(drawn(chart, COLOURS[0])[0])) == bool(shown)


def test_no_series_gives_a_chart():
    chart = line_chart([], "t", "x", "y")
    assert chart.size == (960, 600) and (pixels(chart) < 100).any()


def test_edges_are_smooth():
    """An anti-aliased line has many shades between its colour and white."""
    chart = line_chart([("a", [0, 1], [0, 1])], "t", "x", "y")
    top, bottom, left, right = frame_of(chart)
    plot = pixels(chart)[top:bottom, left:right].reshape(-1, 3)
    tinted = plot[plot.max(1) - plot.min(1) > 20]  # the grid is grey
    assert len(np.unique(tinted, axis=0)) > 40
