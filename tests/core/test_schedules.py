"""Model time and time-skip schedules against their definitions."""

import numpy as np
import pytest
from exact_models import PATHS
from trajectory.samplers.model import ModelTime, Schedule
from trajectory.samplers.schedules import SKIPS, time_skip


class Discrete:
    """The scaled-linear VP table of Stable Diffusion in VE form."""

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    sigmas = np.sqrt(1 / np.cumprod(1 - betas) - 1)


class CONST:
    """A flow's table with shift 3, as the host builds it."""

    t = np.arange(1, 1001) / 1000
    sigmas = 3 * t / (1 + 2 * t)


def schedule(name):
    sampling = Discrete if name == "ve" else CONST
    return Schedule(PATHS[name], sampling)


@pytest.mark.parametrize("name", PATHS)
def test_time_is_the_inverse_of_the_table(name):
    table = schedule(name).model_sampling.sigmas
    time = ModelTime(table, PATHS[name])
    t = np.arange(1, 1001) / 1000
    assert np.allclose(time(table), t, atol=1e-12) and np.allclose(time.sigma(t), table, rtol=1e-12)
    between = time.sigma(np.linspace(0.001, 1, 3777))
    assert (np.diff(between) > 0).all()


def test_time_of_a_flow_is_the_unshifted_time():
    sigma = np.linspace(0.01, 0.999, 50)
    assert np.allclose(ModelTime(CONST.sigmas, PATHS["flow"])(sigma), sigma / (3 - 2 * sigma), atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_shape_and_ends(name, skip, steps):
    made = schedule(name)
    sigmas = time_skip(made, steps, skip)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0.0
    assert sigmas[0] == pytest.approx(made.model_sampling.sigmas[-1], rel=1e-9)  # the host's test for full noise
    assert (np.diff(sigmas) < 0).all()
    open_end = time_skip(made, steps, skip, append_zero=False)
    assert len(open_end) == steps + 1 and open_end[-1] == pytest.approx(made.model_sampling.sigmas[0], rel=1e-6)


def test_spacings_are_even_in_what_they_say():
    made = schedule("ve")
    even = {
        "logSNR": lambda s: np.log(s), "rho": lambda s: s ** (1 / 7), "time_uniform": made.time,
        "time_quadratic": lambda s: np.sqrt(made.time(s)),
    }  # fmt: skip
    for skip, u in even.items():
        gaps = np.diff(u(np.array(time_skip(made, 12, skip, append_zero=False))))
        # the two monotone cubics of a table are inverse at its entries, and to 1e-5 between them
        assert np.allclose(gaps, gaps[0], rtol=1e-4), skip
    powered = np.diff(np.array(time_skip(made, 12, "rho", exponent=3.0, append_zero=False)) ** (1 / 3))
    assert np.allclose(powered, powered[0], rtol=1e-6)


def test_denoise_keeps_the_end_of_a_longer_schedule():
    made = schedule("ve")
    assert time_skip(made, 10, denoise=0.5) == time_skip(made, 20)[-11:]
    assert time_skip(made, 10, denoise=0.0) == []


def test_t_start_and_t_end_bound_the_schedule():
    made = schedule("flow")
    sigmas = time_skip(made, 8, "time_uniform", t_start=0.8, t_end=0.1, append_zero=False)
    assert sigmas[0] == pytest.approx(2.4 / 2.6) and sigmas[-1] == pytest.approx(0.3 / 1.2)


@pytest.mark.parametrize("options, words", [
    ({"t_start": 0.1, "t_end": 0.2}, "t_end < t_start"), ({"t_end": 0.0}, "0 < t_end"),
    ({"skip": "log"}, "skip is 'log'"),
    ({"exponent": -1.0}, "exponent is -1.0"), ({"exponent": 0.001, "skip": "rho"}, "0.1 or more"),
])  # fmt: skip
def test_values_that_make_no_schedule(options, words):
    with pytest.raises(ValueError, match=words):
        time_skip(schedule("ve"), 5, **options)


def test_a_model_without_a_table_is_refused():
    with pytest.raises(ValueError, match="no table of sigmas"):
        time_skip(Schedule(), 5)
