"""The angular predictor-corrector: exact cases, orders of convergence, limits in which it is another method."""

import numpy as np
import pytest
import torch
from exact_models import PATHS, gaussian, gaussian_flow_map, run, slope, start, two_modes, uniform_lam
from trajectory.samplers.angular import AngularIntegrator, plan_angular, wiener_gain
from trajectory.samplers.deis import plan_deis
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.model import Schedule
from trajectory.samplers.plan import Eval, Plan

SPANS = {"ve": (10.0, 0.05), "flow": (1.0, 0.02)}


def grid(name, steps):
    """Even in the angle, from the first to the last level of SPANS."""
    path, (first, last) = PATHS[name], SPANS[name]
    angles = [float(np.arctan2(s, path.alpha(s))) for s in (first, last)]
    tangents = np.tan(np.linspace(*angles, steps + 1)[1:])
    return [first, *map(float, tangents if name == "ve" else tangents / (1 + tangents))]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("order, corrector", [(1, 1), (2, 2), (3, 3), (1, 4)])
def test_a_gaussian_of_the_data_std_is_exact_in_any_steps(name, order, corrector):
    """v is constant along its paths, also from sigma 1 of a flow."""
    path = PATHS[name]
    x = start(path, SPANS[name][0])
    sigmas = [SPANS[name][0], 0.7, 0.3, 0.02]
    result, _ = run(
        plan_angular, path, gaussian(path, 0.0, 0.5), sigmas, x, order=order, corrector=corrector, data_std=0.5, guard=0
    )
    assert torch.allclose(result, gaussian_flow_map(path, x, sigmas[0], sigmas[-1], 0.0, 0.5), atol=1e-10)


@pytest.fixture(scope="module")
def references():
    found = {}
    for name, path in PATHS.items():
        x = start(path, SPANS[name][0])
        found[name] = x, run(plan_deis, path, two_modes(path), grid(name, 3000), x, variant="rhoRK", rk="rk4")[0]
    return found


@pytest.mark.parametrize("data_std", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("order, corrector, expected", [
    (1, 1, 1), (2, 1, 2), (3, 1, 2), (1, 2, 2), (1, 3, 2), (2, 2, 2), (2, 3, 3), (3, 3, 3), (4, 4, 3),
])  # fmt: skip
@pytest.mark.parametrize("name", PATHS)
def test_order_of_convergence(references, name, order, corrector, expected, data_std):
    """min(order + 1, corrector); the first step, of order 2 once corrected, bounds the whole by 3 (uncorrected: 2)."""
    path, (x, reference) = PATHS[name], references[name]
    errors = []
    for steps in (150, 300, 600):
        options = {"order": order, "corrector": corrector, "data_std": data_std, "guard": 0}
        result, plan = run(plan_angular, path, two_modes(path), grid(name, steps), x, **options)
        assert plan.calls == steps
        errors.append(float((result - reference).abs().mean()))
    assert slope(errors) > expected - 0.3, errors
    if order < 4:
        assert slope(errors) < expected + 0.5, errors


@pytest.mark.parametrize("name", PATHS)
def test_one_prediction_and_small_or_large_data_are_the_other_forms(name):
    """data_std -> 0 interpolates D, data_std -> infinity the noise."""
    path = PATHS[name]
    sigmas = uniform_lam(path, 0.9, 0.3, 6)
    x = start(path, 0.9)
    for data_std, prediction in ((1e-6, "data"), (1e6, "noise")):
        angular, _ = run(_unchecked, path, two_modes(path), sigmas, x, data_std=data_std)
        dpm, _ = run(plan_dpm_solver, path, two_modes(path), sigmas, x, order=1, prediction=prediction)
        assert torch.allclose(angular, dpm, atol=1e-4)


def _unchecked(sigmas, schedule, data_std):
    """One-prediction steps for a deviation beyond the range of the planner."""
    plan = Plan()
    made = AngularIntegrator(plan, schedule.path, lambda sigma: sigma, "v", data_std=data_std)
    for i, (a, b) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        made.advance(f"x{i + 1}", plan.result, [made.predict(plan.result, a, i)], a, b)
        plan.result = f"x{i + 1}"
    return plan


@pytest.mark.parametrize("name", PATHS)
def test_the_gain_is_the_slope_of_the_denoiser(name):
    path, sigma = PATHS[name], torch.tensor([0.4], dtype=torch.float64)
    model = gaussian(path, std=0.5)
    x = torch.tensor([[0.2]], dtype=torch.float64)
    slope_of_d = (model(x + 1e-6, sigma) - model(x - 1e-6, sigma)) / 2e-6
    assert wiener_gain(path, 0.4, 0.5) == pytest.approx(float(slope_of_d), rel=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_the_last_correction_reaches_the_picture(name):
    """x = D + g (corrected - predicted), and without a corrector x = D."""
    path = PATHS[name]
    sigmas = [0.9, 0.5, 0.2, 0.0]
    plan = plan_angular(sigmas, Schedule(path), order=1, corrector=2)
    gain = wiener_gain(path, 0.2, 0.15)
    assert plan.operations[-1].terms == ((1.0, "D2"), (gain, "c2"), (-gain, "x2"))
    assert plan_angular(sigmas, Schedule(path), corrector=1).operations[-1].terms == ((1.0, "D2"),)


def test_automatic_choices():
    def order(path, steps):
        sigmas = [float(s) for s in np.linspace(0.9, 0.1, steps + 1)]
        plan = plan_angular(sigmas, Schedule(PATHS[path]), guard=0)
        return max(step.order for step in plan.steps)

    assert [order("ve", 9), order("ve", 10), order("flow", 9), order("flow", 10)] == [1, 3, 1, 2]


@pytest.mark.parametrize("name", PATHS)
def test_whole_schedules_are_finite_and_cost_one_call_an_interval(name):
    path = PATHS[name]
    x = start(path, 1.0)
    for sigmas in (
        [1.0, 0.6, 0.3, 0.1, 0.0], [1.0, 0.5, 0.5, 0.2, 0.2, 0.0], [1.0, 0.0], [], [1.0], [0.0], [0.3, 0.6, 0.9],
    ):  # fmt: skip
        result, plan = run(plan_angular, path, gaussian(path), sigmas, x)
        assert torch.isfinite(result).all()
        assert plan.calls == sum(isinstance(op, Eval) for op in plan.operations) == max(len(sigmas) - 1, 0)


@pytest.mark.parametrize("options, words", [
    ({"order": 5}, "order is 5"), ({"corrector": -1}, "corrector is -1"), ({"data_std": 0.01}, "data_std is 0.01"),
])  # fmt: skip
def test_options_out_of_range_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_angular([1.0, 0.5], Schedule(), **options)
