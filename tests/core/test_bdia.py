"""BDIA: its formula, limits, order, the exact round trip, schedules that fit an inversion."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact_models import PATHS, gaussian, run, slope, start, two_modes, uniform_lam
from trajectory.samplers.bdia import (
    SPACES,
    exact_dtype,
    inversion_sigmas,
    invert,
    plan_bdia,
    plan_inversion,
    plan_resumption,
    resume,
    sample_bdia,
)
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.model import Schedule
from trajectory.samplers.plan import run_plan

SPANS = {"ve": (10.0, 0.05), "flow": (1.0, 0.02)}
MODES = {"ve": (10.0, 0.05), "flow": (0.995, 0.02)}


class CONST:
    """The name by which a flow is recognised."""


def hosted(path, model):
    """The model as a host hands it over, so that its path can be read off."""
    sampling = CONST() if path is PATHS["flow"] else object()

    class Denoiser:
        inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))

        def __call__(self, x, sigma, **_):
            return model(x, sigma)

    return Denoiser()


def ddim(z, denoised, sigma_a, sigma_b):
    """The published VP step: z = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1; arguments are VE noise levels."""
    alpha_a, alpha_b = (1 / np.hypot(1, s) for s in (sigma_a, sigma_b))
    eps = (z - alpha_a * denoised) / (alpha_a * sigma_a)
    return alpha_b * denoised + alpha_b * sigma_b * eps


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_vp_space_is_the_published_update(gamma):
    sigmas, model = [8.0, 5.0, 2.0, 0.7, 0.1], two_modes(PATHS["ve"])
    x = start(PATHS["ve"], 8.0)
    ours, _ = run(plan_bdia, PATHS["ve"], model, sigmas, x, gamma=gamma)
    states = [x / np.hypot(1, 8.0)]
    for n in range(4):
        z, sigma = states[-1], sigmas[n]
        denoised = model(z * np.hypot(1, sigma), torch.full((16,), sigma, dtype=torch.float64))
        ahead = ddim(z, denoised, sigma, sigmas[n + 1])
        behind = gamma * (states[-2] - ddim(z, denoised, sigma, sigmas[n - 1])) if n else 0.0
        states.append(ahead + behind)
    assert torch.allclose(ours, states[-1] * np.hypot(1, 0.1), atol=1e-13)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", PATHS)
def test_without_a_step_back_it_is_ddim(name, space):
    path = PATHS[name]
    sigmas, x = [*uniform_lam(path, *MODES[name], 9), 0.0], start(path, MODES[name][0])
    bdia, _ = run(plan_bdia, path, two_modes(path), sigmas, x, gamma=0.0, space=space)
    first, _ = run(plan_dpm_solver, path, two_modes(path), sigmas, x, order=1)
    assert torch.allclose(bdia, first, atol=1e-13)


@pytest.fixture(scope="module")
def references():
    found = {}
    for name, path in PATHS.items():
        x = start(path, MODES[name][0])
        grid = uniform_lam(path, *MODES[name], 4000)
        found[name] = x, run(plan_dpm_solver, path, two_modes(path), grid, x, guard=0)[0]
    return found


def errors_of(references, name, steps, **options):
    path, (x, reference) = PATHS[name], references[name]
    grids = (uniform_lam(path, *MODES[name], n) for n in steps)
    results = (run(plan_bdia, path, two_modes(path), grid, x, **options)[0] for grid in grids)
    return [float((result - reference).abs().mean()) for result in results]


@pytest.mark.parametrize("gamma, order", [(0.0, 1), (0.5, 1), (1.0, 2)])
@pytest.mark.parametrize("name", PATHS)
def test_order(references, name, gamma, order):
    errors = errors_of(references, name, (40, 80, 160), gamma=gamma)
    assert slope(errors) == pytest.approx(order, abs=0.2), errors


@pytest.mark.parametrize("name", PATHS)
def test_a_step_back_is_closer_than_ddim_and_more_of_it_closer_still(references, name):
    errors = [errors_of(references, name, (20,), gamma=gamma)[0] for gamma in (0.0, 0.5, 0.9)]
    assert errors[2] < errors[1] / 2 < errors[0] / 4


@pytest.mark.parametrize("gamma, steps", [(1.0, 100), (0.96, 50), (0.96, 100), (0.95, 100)])
@pytest.mark.parametrize("name", PATHS)
def test_round_trip_is_exact(name, gamma, steps):
    path, x = PATHS[name], start(PATHS[name], 0.5)
    grid, model = torch.tensor(uniform_lam(path, *MODES[name], steps)), hosted(path, two_modes(path))
    pair = invert(model, x, grid, gamma=gamma, dtype=torch.float64, disable=True)
    back = resume(model, pair, grid, gamma=gamma, dtype=torch.float64, disable=True)
    assert (back - x).abs().max() < 1e-13
    assert (pair[0] - x).abs().mean() > 0.3  # it went somewhere


@pytest.mark.parametrize("name", PATHS)
def test_at_gamma_0_9_the_round_trip_is_exact_relative_to_the_states_on_the_way(name):
    """What is off the trajectory grows by 1/0.9 a step, 4e4 in all, and the states with it."""
    path, x = PATHS[name], start(PATHS[name], 0.5)
    grid, model = torch.tensor(uniform_lam(path, *MODES[name], 100)), hosted(path, two_modes(path))
    pair = invert(model, x, grid, gamma=0.9, dtype=torch.float64, disable=True)
    back = resume(model, pair, grid, gamma=0.9, dtype=torch.float64, disable=True)
    assert (back - x).abs().max() < 1e-13 * pair[0].abs().max()


@pytest.mark.parametrize("name", PATHS)
def test_sampling_can_be_inverted_to_its_own_first_states(name):
    """The way down and then up: the inverse in the other direction, which amplifies rounding by 1/gamma a step."""
    path, x = PATHS[name], start(PATHS[name], MODES[name][0])
    sigmas = uniform_lam(path, *MODES[name], 20)
    end, _ = run(plan_bdia, path, two_modes(path), sigmas, x, gamma=1.0)
    before, _ = run(plan_bdia, path, two_modes(path), sigmas[:-1], x, gamma=1.0)
    # the last two states of the way down begin the way up
    reverse = plan_resumption(sigmas[::-1], Schedule(path), gamma=1.0)
    table = torch.tensor(sigmas[::-1], dtype=torch.float64)
    up = run_plan(reverse, two_modes(path), {"x": end, "x1": before}, table, disable=True, dtype=torch.float64)
    assert torch.allclose(up[reverse.result], x, atol=1e-11)


@pytest.mark.parametrize("name", PATHS)
def test_a_float32_network_leaves_the_round_trip_exact(name):
    path, (sigma_a, sigma_b) = PATHS[name], SPANS[name]

    def network(x, sigma):
        assert x.dtype == sigma.dtype == torch.float32
        return gaussian(path)(x, sigma).float()

    grid = torch.linspace(sigma_a, sigma_b, 51)
    x = start(path, 0.5).float()
    pair = invert(hosted(path, network), x, grid, gamma=0.96, disable=True)
    assert pair[0].dtype == pair[1].dtype == torch.float64
    back = resume(hosted(path, network), pair, grid, gamma=0.96, disable=True)
    assert (back - x).abs().max() < 1e-6


def test_states_are_exact_where_the_device_can():
    assert exact_dtype("cuda:0") == exact_dtype("cpu") == torch.float64 and exact_dtype("mps") == torch.float32


def test_calls_and_intervals_of_the_three_plans():
    sigmas, schedule = [4.0, 3.0, 2.0, 1.0], Schedule()
    down, up, again = (
        plan_bdia(sigmas, schedule),
        plan_inversion(sigmas, schedule, gamma=0.9),
        plan_resumption(sigmas, schedule, gamma=0.9),
    )
    calls = [[(op.sigma, op.interval) for op in p.operations if hasattr(op, "sigma")] for p in (down, up, again)]
    assert calls[0] == [(4.0, 0), (3.0, 1), (2.0, 2)]
    assert calls[1] == [(1.0, 0), (2.0, 1), (3.0, 2)]
    assert calls[2] == [(3.0, 1), (2.0, 2)]
    assert up.keep == ("x2",) and up.result == again.result == "x3"
    assert [step.note for step in down.steps] == ["", "step back 0.271", "step back 0.224"]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("name", PATHS)
def test_whole_schedules_are_finite_and_end_at_the_prediction(name, gamma, space):
    path = PATHS[name]
    x = start(path, 1.0)
    for sigmas in ([1.0, 0.6, 0.3, 0.1, 0.0], [1.0, 0.5, 0.5, 0.2, 0.2, 0.0], [], [1.0], [0.0], [1.0, 0.0]):
        result, plan = run(plan_bdia, path, gaussian(path), sigmas, x, gamma=gamma, space=space)
        assert torch.isfinite(result).all()
        if len(sigmas) > 1:
            assert [weight for weight, _ in plan.operations[-1].terms] == [1.0]


def test_any_shape_and_type():
    sigmas = torch.tensor([5.0, 2.0, 1.0, 0.1])
    for shape in ((2, 4, 3, 6, 6), (1, 1, 77), (3, 5)):
        x = torch.ones(shape, dtype=torch.bfloat16)
        out = sample_bdia(lambda x, s: (x * 0.5), x, sigmas, disable=True)
        assert out.shape == shape and out.dtype == torch.bfloat16


def schedule_of_table(name):
    return Schedule(PATHS[name], SimpleNamespace(sigma_min=torch.tensor(0.03)))


@pytest.mark.parametrize("name, given, end, expected", [
    ("ve", [5.0, 1.0, 0.2, 0.0], 0.0, [5.0, 1.0, 0.2, 0.03]),
    ("ve", [5.0, 1.0, 0.03, 0.0], 0.0, [5.0, 1.0, 0.03]),  # schedulers that step on the smallest sigma before 0
    ("ve", [5.0, 1.0, 0.2, 0.01], 0.0, [5.0, 1.0, 0.2, 0.01]),  # the end of a part stays
    ("ve", [5.0, 1.0, 0.2, 0.1, 0.0], 0.15, [5.0, 1.0, 0.2, 0.15]),
    ("flow", [1.0, 0.5, 0.0], 0.0, [1.0, 0.5, 0.002]),
])  # fmt: skip
def test_the_closing_zero_becomes_the_end_sigma(name, given, end, expected):
    assert torch.equal(inversion_sigmas(torch.tensor(given), schedule_of_table(name), end), torch.tensor(expected))


@pytest.mark.parametrize("given, end, words", [
    ([], 0.0, "too few noise levels"), ([5.0, 0.0], 0.0, "too few noise levels"),
    ([5.0, 1.0, 0.0], 2.0, "lower end_sigma"), ([1.0, 2.0, 3.0], 0.0, r"sigmas\[1\] is 2.0, not below the 1.0"),
    ([3.0, 2.0, 2.0, 1.0], 0.0, r"sigmas\[2\]"), ([3.0, 1.0, 0.0], -1.0, "end_sigma is -1.0"),
])  # fmt: skip
def test_schedules_that_cannot_be_inverted_are_named_with_the_fix(given, end, words):
    with pytest.raises(ValueError, match=words):
        inversion_sigmas(torch.tensor(given), schedule_of_table("ve"), end)


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.5])
def test_an_inversion_needs_a_gamma(gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}"):
        plan_inversion([3.0, 2.0, 1.0], Schedule(), gamma=gamma)


@pytest.mark.parametrize("options, words", [({"gamma": 1.2}, "gamma is 1.2"), ({"space": "edm"}, "space is 'edm'")])
def test_options_that_do_not_fit_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_bdia([1.0, 0.5], Schedule(), **options)
