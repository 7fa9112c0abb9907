"""The numbers of a comparison of samplers."""

import csv
import math

import pytest
import torch
from trajectory.samplers import comparison
from trajectory.samplers.comparison import Run


def runs_of_order(p, calls=(5, 8, 10, 20), name="a", factor=1):
    return [Run(name, c, factor * c, 3.0 * (factor * c) ** -p) for c in calls]


def test_the_distance_is_in_units_of_the_items_deviation_and_the_median_over_them():
    reference = torch.tensor([[-1.0, 1.0], [-10.0, 10.0], [0.0, 4.0]])
    x = reference + torch.tensor([[0.5, -0.5], [1.0, 1.0], [20.0, 20.0]])
    assert comparison.distance(x, reference) == pytest.approx(0.5)  # of 0.5, 0.1 and 10
    assert comparison.distance(x[:2], reference[:2]) == pytest.approx(0.3)
    video = reference.reshape(3, 1, 2, 1, 1)
    assert comparison.distance(video + 2, video) == pytest.approx(1.0)  # of 2, 0.2 and 1


def test_the_distance_does_not_depend_on_scale_and_shift():
    x, reference = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    plain = comparison.distance(x, reference)
    assert comparison.distance(7 * x + 3, 7 * reference + 3) == pytest.approx(plain, rel=1e-5)
    assert comparison.distance(reference, reference) == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_result_has_no_finite_distance(broken):
    reference = torch.tensor([[1.0, 2.0]])
    assert not math.isfinite(comparison.distance(torch.tensor([[1.0, broken]]), reference))
    assert not math.isfinite(comparison.distance(reference, torch.ones(1, 2)))  # a constant has no unit


@pytest.mark.parametrize("p", [1, 2, 3.5, 0])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_order_is_the_slope_over_calls(p, factor):
    assert comparison.fitted_order(runs_of_order(p, factor=factor)) == pytest.approx(p, abs=1e-9)


def test_the_order_leaves_out_what_is_no_distance():
    bad = [Run("a", 30, 30, 0.0), Run("a", 40, 40, math.nan), Run("a", 50, 50, math.inf), Run("a", 60, error="broke")]
    assert comparison.fitted_order(runs_of_order(2) + bad) == pytest.approx(2)
    assert math.isnan(comparison.fitted_order(runs_of_order(2, calls=(5,)) * 2 + bad))


def test_step_counts():
    assert comparison.parse_steps("20, 5;8\n8 10,") == [5, 8, 10, 20]
    for text in ("", "5, x", "0", "2.5", "-3", "10001"):
        with pytest.raises(ValueError, match="steps is .*whole numbers from 1 to 10000"):
            comparison.parse_steps(text)


def cancel():
    """Stands for an option that is no number or word."""


EULER = ("sample_euler", {})
SECOND = ("sample_dpm_solver", {"order": 2, "tau": 0.0, "before_call": cancel})
THIRD = ("sample_dpm_solver", {"order": 3, "tau": 0.0, "before_call": lambda: None})


def test_default_labels_tell_namesakes_apart():
    assert comparison.labels([EULER, SECOND], "") == ["euler", "dpm_solver"]
    assert comparison.labels([EULER, SECOND, THIRD], "") == ["euler", "dpm_solver order=2", "dpm_solver order=3"]
    assert comparison.labels([EULER, EULER, EULER], "a, a, a (1)") == ["a (2)", "a (3)", "a (1)"]
    assert comparison.labels([EULER, EULER, SECOND], "") == ["euler (1)", "euler (2)", "dpm_solver"]
    assert comparison.labels([("f", {"eta": 0.5}), ("f", {})], "") == ["f eta=0.5", "f"]


def test_given_labels():
    assert comparison.labels([EULER, SECOND], "one, the other") == ["one", "the other"]
    assert comparison.labels([EULER, SECOND], "one\nthe other\n") == ["one", "the other"]
    assert comparison.labels([EULER, SECOND], ", mine") == ["euler", "mine"]
    assert comparison.labels([EULER, SECOND], "mine") == ["mine", "dpm_solver"]
    with pytest.raises(ValueError, match="names has 3 entries, but 2 samplers are connected; remove 'c'"):
        comparison.labels([EULER, SECOND], "a, b, c")


def test_the_reference_starts_where_the_runs_start():
    fine = torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0])
    assert comparison.reference_sigmas(fine, torch.tensor(1.0)).tolist() == fine.tolist()
    assert torch.equal(comparison.reference_sigmas(fine, torch.tensor(0.5)), torch.tensor([0.5, 0.4, 0.1, 0.0]))
    assert comparison.reference_sigmas(fine, torch.tensor(2.0)).tolist() == [2.0, *fine.tolist()]


MIXED = [
    *runs_of_order(2, calls=(5, 10)),
    Run("noisy", 5, 5, 1.2, stochastic=True),
    Run("noisy", 10, 10, 1.1, stochastic=True),
    Run("broken | one", 5, error="ValueError: no,\nnot so"),
]


def test_the_table_is_aligned_and_complete():
    text = comparison.table(MIXED, 200)
    heading, rows = text.split("\n\n")
    assert "reference of 200 steps" in heading and "raise" not in heading
    rows = rows.splitlines()
    assert len(rows) == 2 + len(MIXED)
    bars = {tuple(i for i, c in enumerate(row) if c == "|") for row in rows}
    assert len(bars) == 1  # every row has its bars in the same places
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert cells[0] == ["a", "5", "5", "0.12", "2.00", ""] and cells[1][4] == ""
    assert cells[2][4] == "" and "does not go to 0" in cells[2][5]
    assert cells[4] == ["broken / one", "5", "0", "", "", "ValueError: no, not so"]


def test_fresh_noise_is_told_where_the_first_run_failed():
    runs = [Run("noisy", 5, error="broke"), *(Run("noisy", n, n, 1.2, stochastic=True) for n in (10, 20))]
    assert "broke" in comparison.table(runs, 200) and comparison.lines(runs)[0][0] == "noisy (fresh noise)"
    assert "0.00" not in comparison.table(runs, 200)  # no order


def test_the_table_asks_for_a_finer_reference():
    assert "raise reference_steps to 80" in comparison.table(runs_of_order(1), 79)
    assert "raise" not in comparison.table(runs_of_order(1), 80)


def test_the_csv_reads_back():
    rows = list(csv.DictReader(comparison.to_csv(MIXED).splitlines(keepends=True)))
    assert [row["sampler"] for row in rows] == [run.sampler for run in MIXED]
    assert float(rows[1]["distance"]) == MIXED[1].distance and rows[2]["stochastic"] == "True"
    assert rows[4]["error"] == "ValueError: no,\nnot so" and math.isnan(float(rows[4]["distance"]))


def test_the_lines_of_the_chart():
    (a, calls, distances), noisy, broken = comparison.lines(MIXED)
    assert a == "a (order 2.00)" and calls == [5, 10] and distances == [run.distance for run in MIXED[:2]]
    assert noisy[0] == "noisy (fresh noise)" and broken == ("broken | one (failed)", [], [])
    assert comparison.lines([Run("one", 5, 5, 0.1)]) == [("one", [5], [0.1])]
