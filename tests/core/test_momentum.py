"""Momentum: limits in which it is the known method, orders of convergence, stability, edge cases."""

import numpy as np
import pytest
import torch
from exact_models import PATHS, gaussian, run, slope, start, two_modes, uniform_lam
from trajectory.samplers.deis import plan_deis
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.model import Schedule
from trajectory.samplers.momentum import BASES, ORDERS, plan_momentum, stability_polynomials

SPANS = {"ve": (10.0, 0.05), "flow": (0.995, 0.02)}
ON_PLMS = ("HB", "GHVB", "Nesterov")


def solve(path, model, sigmas, x, **options):
    """(result, plan) with exact weights on uneven steps, unless the options say otherwise."""
    return run(plan_momentum, path, model, sigmas, x, **{"variable_step": True, **options})


@pytest.mark.parametrize("variable_step", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("base", ON_PLMS)
@pytest.mark.parametrize("name", PATHS)
def test_beta_one_is_adams_bashforth(name, base, order, variable_step):
    path = PATHS[name]
    sigmas, x = [1.0, *uniform_lam(path, 0.9, 0.05, 9), 0.0], start(path, 1.0)
    options = {"base": base, "order": order, "beta": 1.0, "variable_step": variable_step}
    result, _ = solve(path, two_modes(path), sigmas, x, guard=0, **options)
    variant = "rhoAB" if variable_step else "iPNDM"
    known, _ = run(plan_deis, path, two_modes(path), sigmas, x, variant=variant, order=order - 1, guard=0)
    assert torch.allclose(result, known, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("base, order, corrector", [
    ("DPM++2M", 2, "none"), *(("UniPC", order, "unic") for order in range(1, 5)),
])  # fmt: skip
def test_beta_one_is_dpm_solver(name, base, order, corrector):
    path = PATHS[name]
    sigmas, x = [1.0, *uniform_lam(path, 0.9, 0.05, 9), 0.0], start(path, 1.0)
    result, _ = solve(path, two_modes(path), sigmas, x, base=base, order=order, beta=1.0, guard=6)
    options = {"variant": "midpoint", "lower_order_final": "off", "corrector": corrector}
    known, _ = run(plan_dpm_solver, path, two_modes(path), sigmas, x, order=order, guard=6, **options)
    assert torch.allclose(result, known, atol=1e-12)


@pytest.mark.parametrize("variable_step", [True, False])
@pytest.mark.parametrize("name", PATHS)
def test_with_one_prediction_heavy_ball_is_ghvb(name, variable_step):
    path = PATHS[name]
    sigmas, x = [1.0, *uniform_lam(path, 0.9, 0.05, 9), 0.0], start(path, 1.0)
    options = {"order": 1, "beta": 0.4, "variable_step": variable_step}
    results = [solve(path, two_modes(path), sigmas, x, base=b, **options)[0] for b in ("HB", "GHVB")]
    assert torch.allclose(*results, atol=1e-12)


@pytest.mark.parametrize("variable_step", [True, False])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", PATHS)
def test_what_never_changes_is_followed_exactly(name, base, variable_step):
    """A constant picture (or, on PLMS, derivative) needs no momentum, so none may show, whatever the steps."""
    path, x = PATHS[name], start(PATHS[name], 0.9)
    constant = 0.3

    def model(x, sigma, **_):
        if BASES[base].prediction == "data":
            return torch.full_like(x, constant)
        return x - sigma.view(-1, 1) * constant

    sigmas = [0.9, 0.8, 0.5, 0.45, 0.2, 0.1]
    result, _ = solve(path, model, sigmas, x, base=base, beta=0.3, variable_step=variable_step)
    if BASES[base].prediction == "data":
        ratio = sigmas[-1] / sigmas[0]
        exact = ratio * x + (float(path.alpha(sigmas[-1])) - ratio * float(path.alpha(sigmas[0]))) * constant
    else:
        exact = x + (sigmas[-1] - sigmas[0]) * constant
    assert torch.allclose(result, exact, atol=1e-12)


@pytest.fixture(scope="module")
def references():
    found = {}
    for name, path in PATHS.items():
        x = start(path, SPANS[name][0])
        grid = uniform_lam(path, *SPANS[name], 1000)
        found[name] = x, run(plan_deis, path, two_modes(path), grid, x, variant="rhoRK", rk="rk4")[0]
    return found


def errors_of(references, name, steps, **options):
    path, (x, reference) = PATHS[name], references[name]
    grids = (uniform_lam(path, *SPANS[name], n) for n in steps)
    results = (solve(path, two_modes(path), grid, x, guard=0, **options)[0] for grid in grids)
    return [float((result - reference).abs().mean()) for result in results]


@pytest.mark.parametrize("beta", [0.8, 0.5])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ghvb_keeps_its_order(references, order, beta):
    """On the flow, where the first steps of a run are so easy that their lower order does not show."""
    errors = errors_of(references, "flow", (80, 160, 320), base="GHVB", order=order, beta=beta)
    assert slope(errors) == pytest.approx(order, abs=0.3), errors


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("name", PATHS)
def test_the_error_of_ghvb_lies_between_those_of_its_order_and_the_one_below(references, name, order):
    def error(order, beta):
        return errors_of(references, name, (80,), base="GHVB", order=order, beta=beta)[0]

    errors = [error(order, beta) for beta in (1.0, 0.8, 0.5, 0.2)] + [error(order - 1, 1.0)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("base, order", [("HB", 4), ("Nesterov", 4), ("DPM++2M", 2), ("UniPC", 3)])
@pytest.mark.parametrize("name", PATHS)
def test_the_others_fall_to_first_order(references, name, base, order):
    errors = errors_of(references, name, (80, 160, 320), base=base, order=order, beta=0.5)
    assert slope(errors) == pytest.approx(1, abs=0.3), errors


@pytest.mark.parametrize("name", PATHS)
def test_constant_weights_are_of_second_order_on_a_curved_grid(references, name):
    errors = errors_of(references, name, (80, 160, 320), base="GHVB", order=4, variable_step=False)
    assert slope(errors) == pytest.approx(2, abs=0.3), errors


def growth(base, order, beta, z):
    """Largest modulus of a mode of dx/dt = lambda x with z = h lambda, 1 or less where the method is stable."""
    rho, sigma = stability_polynomials(base, order, beta)
    return abs(np.roots(rho - z * sigma)).max()


def stable_interval(base, order, beta):
    """Length of the interval of stability on the negative real axis."""
    lengths = np.linspace(0.005, 60, 12000)
    unstable = (growth(base, order, beta, -length) > 1 + 1e-9 for length in lengths)
    return lengths[next(i for i, found in enumerate(unstable) if found)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("base", ON_PLMS)
def test_the_stable_interval_grows_as_beta_falls(base, order):
    lengths = [stable_interval(base, order, beta) for beta in (1.0, 0.9, 0.8, 0.5, 0.3)]
    assert all(after > before for before, after in zip(lengths, lengths[1:], strict=False)), lengths


@pytest.mark.parametrize("order, length", [(1, 2.0), (2, 1.0), (3, 6 / 11), (4, 3 / 10), (5, 90 / 551)])
def test_the_stable_interval_at_beta_one_is_that_of_adams_bashforth(order, length):
    for base in ON_PLMS:
        assert stable_interval(base, order, 1.0) == pytest.approx(length, abs=0.01)


@pytest.mark.parametrize("beta", [0.8, 0.4])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("base", ON_PLMS)
def test_a_run_decays_inside_the_stable_interval_and_explodes_outside(base, order, beta):
    steps, length = 400, stable_interval(base, order, beta)
    sigmas = np.linspace(steps + 1, 1, steps + 1).tolist()

    def end(z):
        def model(x, sigma, **_):
            return x + z * sigma.view(-1, 1) * x  # steps of -1 in sigma: dx/dsigma = -z x

        options = {"base": base, "order": order, "beta": beta, "variable_step": False}
        return float(solve(PATHS["ve"], model, sigmas, torch.ones(1, 1).double(), **options)[0].abs())

    assert end(-0.9 * length) < 1e-2 and end(-1.2 * length) > 1e2


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", PATHS)
def test_whole_schedules_are_finite_and_end_at_the_prediction(name, base):
    path = PATHS[name]
    x = start(path, 1.0)
    schedules = (
        [1.0, 0.6, 0.3, 0.1, 0.0], [0.9, 0.5, 0.5, 0.2, 0.2, 0.0], [1.0, 1.0, 0.5, 0.0], [0.9, 0.5, 0.9, 0.5],
        [0.9, 0.0], [], [1.0], [0.0],
    )  # fmt: skip
    for sigmas in schedules:
        for variable_step in (True, False):
            options = {"base": base, "order": 3, "beta": 0.3, "variable_step": variable_step}
            result, plan = solve(path, gaussian(path), sigmas, x, **options)
            assert torch.isfinite(result).all() and plan.calls == max(len(sigmas) - 1, 0)
            if len(sigmas) > 1 and sigmas[-1] == 0:
                assert plan.operations[-1].terms[0][0] == 1.0 and len(plan.operations[-1].terms) == 1


@pytest.mark.parametrize("options, words", [
    ({"base": "PLMS"}, "base is 'PLMS'"), ({"order": 6}, "order is 6"), ({"order": 0}, "order is 0"),
    ({"beta": 0.01}, "beta is 0.01"), ({"beta": 1.1}, "beta is 1.1"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_momentum([1.0, 0.5], Schedule(), **options)
