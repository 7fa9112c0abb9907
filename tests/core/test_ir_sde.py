"""IR-SDE: the noise levels of the published models, and what a run over them is."""

import numpy as np
import pytest
import torch
from trajectory.samplers.ir_sde import MAX_SIGMA, SPACINGS, ir_sde_schedule, noise_levels, signal, signal_at


def test_the_levels_of_a_published_model():
    a, sigma = signal(), noise_levels(10)
    noise = 10 / 255 * np.sqrt(1 - a**2)
    assert len(a) == len(sigma) == 100
    assert a[-1] == pytest.approx(0.005)
    assert noise[[0, 49, 99]] == pytest.approx([7.365e-4, 0.036574, 0.0392152], rel=1e-4)
    assert sigma[[0, 9, 49, 89, 99]] == pytest.approx([7.37e-4, 6.78e-3, 0.10136, 2.7952, 7.8430], rel=1e-3)
    assert -np.log(a[0]) / 0.0016946 == pytest.approx(0.1040938, rel=1e-4)  # theta_1 dt / theta_1
    assert -np.log(a[-1] / a[-2]) / 0.1040938 == pytest.approx(0.9997666, rel=1e-5)
    assert np.log(a[-1] / (50 / 255)) == pytest.approx(-3.67, abs=0.01)  # where the universal model's prior begins


@pytest.mark.parametrize("max_sigma", sorted(set(MAX_SIGMA.values())))
@pytest.mark.parametrize("T", [1, 2, 30, 100, 1000])
def test_levels_rise_and_the_signal_follows_from_them(T, max_sigma):
    sigma = noise_levels(max_sigma, T)
    assert (np.diff(sigma) > 0).all() and sigma[0] > 0
    assert np.allclose(signal_at(sigma, max_sigma), signal(T), rtol=1e-12)
    assert np.allclose(signal_at(torch.tensor(sigma), max_sigma), signal(T), rtol=1e-12)


def test_all_levels_by_index_are_the_authors_run():
    levels = noise_levels(10)
    assert ir_sde_schedule(levels, 100) == [*levels[::-1], 0.0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 99])
def test_a_schedule_falls_from_the_largest_level_to_zero(steps, spacing):
    levels = noise_levels(50)
    schedule = ir_sde_schedule(levels, steps, spacing)
    assert len(schedule) == steps + 1
    assert schedule[0] == pytest.approx(levels[-1]) and schedule[-1] == 0.0
    assert (np.diff(schedule) < 0).all()
    if steps > 1:
        assert schedule[-2] == pytest.approx(levels[0])
    if spacing == "index":
        assert set(schedule[:-1]) <= set(levels)
    elif steps > 2:
        assert np.diff(np.log(schedule[:-1])) == pytest.approx(np.log(levels[0] / levels[-1]) / (steps - 1))


@pytest.mark.parametrize("call, words", [
    (lambda: signal(T=0), "T is 0"), (lambda: signal(eps=0), "eps is 0"), (lambda: signal(eps=1.0), "eps is 1.0"),
    (lambda: ir_sde_schedule(noise_levels(10), 101), "steps is 101, and the model has 100 noise levels"),
    (lambda: ir_sde_schedule(noise_levels(10), 10, "linear"), "spacing is 'linear'; choose one of index, logSNR"),
])  # fmt: skip
def test_what_cannot_be_is_named_with_the_fix(call, words):
    with pytest.raises(ValueError, match=words):
        call()
