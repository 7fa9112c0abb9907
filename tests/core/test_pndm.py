"""PNDM: its starts, calls and middles, orders of convergence, edge cases."""

import numpy as np
import pytest
import torch
from exact_models import PATHS, gaussian, run, slope, start, two_modes, uniform_lam
from trajectory.samplers.deis import plan_deis
from trajectory.samplers.model import Schedule
from trajectory.samplers.pndm import COEFFICIENTS, METHODS, MIDDLES, middle_of, plan_pndm

SPANS = {"ve": (10.0, 0.05), "flow": (0.995, 0.02)}
EXTRA_CALLS = {"F-PNDM": 9, "S-PNDM": 1, "PLMS": 1}


class TimeIsSquareRoot:
    """A model whose own time is the square root of sigma / 4."""

    sigmas = 4.0 * np.linspace(0.001, 1.0, 1000) ** 2


TIMED = Schedule(PATHS["ve"], TimeIsSquareRoot)


@pytest.fixture(scope="module")
def references():
    found = {}
    for name, path in PATHS.items():
        x = start(path, SPANS[name][0])
        grid = uniform_lam(path, *SPANS[name], 1000)
        found[name] = x, run(plan_deis, path, two_modes(path), grid, x, variant="rhoRK", rk="rk4")[0]
    return found


@pytest.mark.parametrize("method, coefficients, mid, order", [
    ("F-PNDM", "variable", "sigma", 4), ("F-PNDM", "variable", "logSNR", 4), ("F-PNDM", "constant", "sigma", 2),
    ("S-PNDM", "variable", "auto", 2), ("S-PNDM", "constant", "auto", 2),
])  # fmt: skip
@pytest.mark.parametrize("name", PATHS)
def test_order_on_a_curved_grid(references, name, method, coefficients, mid, order):
    path, (x, reference) = PATHS[name], references[name]
    grids = (uniform_lam(path, *SPANS[name], n) for n in (80, 160, 320))
    options = {"method": method, "coefficients": coefficients, "mid": mid, "guard": 0}
    results = (run(plan_pndm, path, two_modes(path), grid, x, **options)[0] for grid in grids)
    errors = [float((result - reference).abs().mean()) for result in results]
    assert slope(errors) == pytest.approx(order, abs=0.3), errors


@pytest.mark.parametrize("method, order", [("F-PNDM", 4), ("PLMS", 3)])
def test_order_where_the_start_is_what_errs_most(method, order):
    """From a level where the two modes part, the first steps decide: those of PLMS are of third order."""
    path = PATHS["ve"]

    def end(planner, n, **options):
        grid = [0.8 * (1 - 0.5 * i / n) ** 2 for i in range(n + 1)]
        return run(planner, path, two_modes(path), grid, start(path, 0.8), guard=0, **options)[0]

    reference = end(plan_deis, 500, variant="rhoRK", rk="rk4")
    options = {"method": method, "coefficients": "variable", "mid": "logSNR"}
    errors = [float((end(plan_pndm, n, **options) - reference).abs().mean()) for n in (40, 80, 160)]
    assert slope(errors) == pytest.approx(order, abs=0.3), errors


@pytest.mark.parametrize("mid", ["sigma", "logSNR"])
@pytest.mark.parametrize("name", PATHS)
def test_variable_f_pndm_integrates_a_parabola_exactly_on_any_grid(name, mid):
    path, x = PATHS[name], start(PATHS[name], 0.9)

    def model(x, sigma, **_):
        sigma = sigma.view(-1, 1)
        return x - sigma * (1.0 - 3 * sigma + 2.0 * sigma**2)  # dx/dsigma is the parabola

    grid = [0.9, 0.7, 0.65, 0.4, 0.35, 0.1, 0.05]
    options = {"method": "F-PNDM", "mid": mid, "guard": 0}
    exact = x + sum(c * (grid[-1] ** p - grid[0] ** p) for p, c in ((1, 1.0), (2, -1.5), (3, 2 / 3)))
    variable, _ = run(plan_pndm, path, model, grid, x, coefficients="variable", **options)
    constant, _ = run(plan_pndm, path, model, grid, x, coefficients="constant", **options)
    assert torch.allclose(variable, exact, atol=1e-12) and not torch.allclose(constant, exact, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PATHS)
def test_on_even_steps_variable_is_constant(name, method):
    path = PATHS[name]
    sigmas, x = np.linspace(0.9, 0.2, 9).tolist(), start(path, 0.9)
    results = [
        run(plan_pndm, path, two_modes(path), sigmas, x, method=method, mid="sigma", coefficients=c, guard=0)[0]
        for c in COEFFICIENTS
    ]
    assert torch.allclose(*results, atol=1e-12)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("method", METHODS)
def test_calls_are_counted(method, coefficients):
    sigmas = [4.0, 3.0, 2.2, 1.5, 1.0, 0.5, 0.0]
    plan = plan_pndm(sigmas, TIMED, method=method, coefficients=coefficients)
    assert plan.calls == 6 + EXTRA_CALLS[method] == sum(step.calls for step in plan.steps)
    assert [op.interval for op in plan.operations if getattr(op, "interval", None) is not None] == list(range(6))


@pytest.mark.parametrize("mid", ["sigma", "logSNR"])
@pytest.mark.parametrize("method", METHODS)
def test_sigma_one_of_a_flow_is_a_start_like_any_other(method, mid):
    """The velocity is finite there, so the first step has its further calls, all inside the step."""
    plan = plan_pndm([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], Schedule(PATHS["flow"]), method=method, mid=mid)
    first = [op.sigma for op in plan.operations if hasattr(op, "sigma")][: plan.steps[0].calls]
    assert plan.calls == 5 + EXTRA_CALLS[method] and plan.steps[0].calls > 1
    assert first[0] == 1.0 and first[-1] == 0.8 and all(0.8 < sigma < 1.0 for sigma in first[1:-1])


@pytest.mark.parametrize("name", PATHS)
def test_middles(name):
    path = PATHS[name]
    assert middle_of("sigma", Schedule(path))(0.8, 0.2) == 0.5
    between = middle_of("logSNR", Schedule(path))(0.8, 0.2)
    assert path.lam(between) == pytest.approx(path.lam([0.8, 0.2]).mean())


def test_the_models_time_is_the_middle_where_there_is_one():
    for mid in ("auto", "model time"):
        assert middle_of(mid, TIMED)(4.0, 1.0) == pytest.approx(4 * 0.75**2, rel=1e-6)
    assert middle_of("auto", Schedule())(4.0, 1.0) == 2.5
    assert 9.0 <= middle_of("model time", TIMED)(10.0, 9.0) <= 10.0  # beyond the table
    with pytest.raises(ValueError, match="mid is 'model time'.*set mid to auto"):
        middle_of("model time", Schedule())


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("mid", [mid for mid in MIDDLES if mid != "model time"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PATHS)
def test_whole_schedules_are_finite_and_end_at_the_prediction(name, method, mid, coefficients):
    path = PATHS[name]
    x = start(path, 1.0)
    schedules = (
        [1.0, 0.6, 0.3, 0.1, 0.0], [0.9, 0.5, 0.5, 0.2, 0.2, 0.0], [1.0, 1.0, 0.5, 0.0], [0.9, 0.9, 0.4],
        [0.9, 0.0], [0.9, 0.8, 0.0], [], [1.0], [0.0],
    )  # fmt: skip
    for sigmas in schedules:
        options = {"method": method, "mid": mid, "coefficients": coefficients}
        result, plan = run(plan_pndm, path, gaussian(path), sigmas, x, **options)
        assert torch.isfinite(result).all()
        if len(sigmas) > 1 and sigmas[-1] == 0:
            assert plan.operations[-1].terms[0][0] == 1.0 and len(plan.operations[-1].terms) == 1


@pytest.mark.parametrize("options, words", [
    ({"method": "FON"}, "method is 'FON'"), ({"coefficients": "even"}, "coefficients is 'even'"),
    ({"mid": "t"}, "mid is 't'"), ({"mid": "model time"}, "has no table"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_pndm([1.0, 0.5], Schedule(), **options)
