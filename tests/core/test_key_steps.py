"""Key steps: the published lists, what a user may write, and where the calls of a sampler stand between them."""

import pytest
from trajectory.samplers.key_steps import SCHEDULES, Timeline, check_options, key_steps

VALID = {"schedule": "paper", "interval": 4, "custom": "0", "start_percent": 0.0, "end_percent": 1.0}
SIGMAS = (8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0)


def test_the_authors_lists():
    """hutaiHang/Faster-Diffusion, utils_sd.py: '50ls'; 'pro' keeps i where 9 + 8 i is a square; a number m, i % m."""
    assert key_steps("paper", 50) == {0, 1, 2, 3, 5, 10, 15, 25, 35}
    assert key_steps("pro", 50) == {i for i in range(50) if int((9 + 8 * i) ** 0.5) ** 2 == 9 + 8 * i}
    for interval in (2, 3, 4, 10):
        assert key_steps("uniform", 50, interval) == {i for i in range(50) if i % interval == 0}


@pytest.mark.parametrize("steps", range(8))
def test_a_short_run_skips_nothing_by_the_papers_list(steps):
    assert key_steps("paper", steps) == set(range(max(steps, 1)))


@pytest.mark.parametrize(
    ("steps", "keys"),
    [(8, {0, 1, 2, 4, 6}), (20, {0, 1, 2, 4, 6, 10, 14}), (100, {0, 2, 4, 6, 10, 20, 30, 50, 70})],
)
def test_the_papers_list_at_another_length(steps, keys):
    assert key_steps("paper", steps) == keys


@pytest.mark.parametrize("custom", ["0, 1, 5", "0 1 5", "1,5", " 5, 1, 5,\n", "1,5,99"])
def test_a_custom_list_in_any_writing(custom):
    check_options(**{**VALID, "schedule": "custom", "custom": custom})
    assert key_steps("custom", 8, custom=custom) == {0, 1, 5}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_step_0_is_a_key_step_and_none_is_beyond_the_last(schedule, steps):
    keys = key_steps(schedule, steps, custom="3, 4, 99")
    assert 0 in keys and keys <= set(range(max(steps, 1)))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"schedule": "papers"}, "schedule"), ({"interval": 1}, "interval"),
     ({"schedule": "custom", "custom": ""}, "custom"), ({"schedule": "custom", "custom": "0, a"}, "custom"),
     ({"schedule": "custom", "custom": "-1, 3"}, "custom"), ({"schedule": "custom", "custom": "1.5"}, "custom"),
     ({"start_percent": 0.6, "end_percent": 0.4}, "start_percent"),
     ({"start_percent": float("nan")}, "start_percent")],
)  # fmt: skip
def test_messages_name_the_input_and_its_value(wrong, name):
    with pytest.raises(ValueError, match=name) as error:
        check_options(**{**VALID, **wrong})
    assert repr(wrong[name]).strip("'") in str(error.value)


def test_places_of_calls():
    timeline = Timeline(SIGMAS, frozenset({0, 1, 4}))
    assert timeline.place(8.0) == (0, True) and timeline.place(3.0 * (1 - 5e-5)) == (3, True)
    assert timeline.place(5.0) == (1, False)  # between 6 and 4
    assert timeline.place(9.0) == (0, False)  # churned above the start
    assert timeline.place(0.2) == (6, False) and timeline.place(0.0) == (6, False)  # the end is no step
    assert [timeline.key(step) for step in range(7)] == [0, 1, 1, 1, 4, 4, 4]
    assert [timeline.skips(step) for step in range(7)] == [False, True, True, True, True, True, True]
    assert [list(timeline.skipped(step)) for step in range(7)] == [[], [2, 3], [3], [], [5, 6], [6], []]


def test_places_on_rising_repeated_and_single_sigmas():
    rising = Timeline(SIGMAS[::-1], frozenset({0}))
    assert rising.place(0.7) == (1, False) and rising.place(6.0) == (6, True)
    repeated = Timeline((2.0, 2.0, 1.0), frozenset({0, 1}))
    assert repeated.place(2.0) == (0, True)
    alone = Timeline((2.0,), frozenset({0}))
    assert alone.place(2.0)[0] == 0 and not alone.skips(0)


def test_nothing_is_skipped_where_every_step_is_a_key_step():
    timeline = Timeline(SIGMAS, frozenset(range(7)))
    assert not any(timeline.skips(timeline.place(sigma)[0]) for sigma in (*SIGMAS, 9.0, 7.0, 0.7, 0.2))
