"""DEIS: tables, limits in which it is another method, orders of convergence, edge cases."""

import numpy as np
import pytest
import torch
from exact_models import PATHS, gaussian, gaussian_flow_map, run, slope, start, two_modes, uniform_lam
from trajectory.samplers.classical import ADAMS_BASHFORTH, TABLEAUS, Tableau
from trajectory.samplers.deis import plan_deis
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.model import Schedule

SPANS = {"ve": (10.0, 0.05), "flow": (0.995, 0.02)}


class TimeIsSigma:
    """A model whose own time is proportional to sigma, so that tAB becomes Adams-Bashforth on even steps."""

    sigmas = np.linspace(0.1, 10.0, 1000)


@pytest.mark.parametrize("degree", range(1, 5))
def test_tab_in_a_time_that_is_sigma_has_the_adams_bashforth_weights(degree):
    sigmas = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    plan = plan_deis(sigmas, Schedule(PATHS["ve"], TimeIsSigma), order=degree, guard=0)
    weights = {slot: w for w, slot in plan.operations[-1].terms}
    for newest_first, w in enumerate(ADAMS_BASHFORTH[degree]):
        assert weights[f"P{4 - newest_first}"] == pytest.approx(-w, abs=1e-6)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("degree", range(4))
def test_logrho_ab_is_dpm_solver_in_the_noise_form(name, degree):
    path = PATHS[name]
    sigmas, x = uniform_lam(path, *SPANS[name], 12), start(path, SPANS[name][0])
    options = {"variant": "logrhoAB", "flow_form": "noise"}
    # on VE the derivative is the noise; the polynomial in log-SNR is the same
    deis, _ = run(plan_deis, path, two_modes(path), sigmas, x, order=degree, guard=0, **options)
    dpm, _ = run(plan_dpm_solver, path, two_modes(path), sigmas, x, order=degree + 1, prediction="noise", guard=0,
                 lower_order_final="off")  # fmt: skip
    assert torch.allclose(deis, dpm, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_ipndm_is_rho_ab_on_even_steps(name):
    path = PATHS[name]
    sigmas, x = np.linspace(0.9, 0.2, 8).tolist(), start(path, 0.9)
    uniform, _ = run(plan_deis, path, two_modes(path), sigmas, x, variant="iPNDM", guard=0)
    variable, _ = run(plan_deis, path, two_modes(path), sigmas, x, variant="rhoAB", guard=0)
    assert torch.allclose(uniform, variable, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_euler_table_is_the_first_order_step(name):
    path = PATHS[name]
    sigmas, x = uniform_lam(path, *SPANS[name], 9), start(path, SPANS[name][0])
    for form in ("velocity", "noise"):
        table, _ = run(plan_deis, path, two_modes(path), sigmas, x, variant="rhoRK", rk="euler", flow_form=form)
        first, _ = run(plan_dpm_solver, path, two_modes(path), sigmas, x, order=1)
        assert torch.allclose(table, first, atol=1e-12)


@pytest.fixture(scope="module")
def references():
    found = {}
    for name, path in PATHS.items():
        x = start(path, SPANS[name][0])
        grid = uniform_lam(path, *SPANS[name], 2000)
        found[name] = x, run(plan_deis, path, two_modes(path), grid, x, variant="rhoRK", rk="rk4")[0]
    return found


def errors_of(references, name, steps, **options):
    path, (x, reference) = PATHS[name], references[name]
    grids = (uniform_lam(path, *SPANS[name], n) for n in steps)
    results = (run(plan_deis, path, two_modes(path), grid, x, **options)[0] for grid in grids)
    return [float((result - reference).abs().mean()) for result in results]


@pytest.mark.parametrize("form", ["velocity", "noise"])
@pytest.mark.parametrize("rk", TABLEAUS)
@pytest.mark.parametrize("name", PATHS)
def test_order_of_a_table(references, name, rk, form):
    errors = errors_of(references, name, (100, 200, 400), variant="rhoRK", rk=rk, flow_form=form)
    assert slope(errors) == pytest.approx(TABLEAUS[rk].order, abs=0.3), errors


@pytest.mark.parametrize("form", ["velocity", "noise"])
@pytest.mark.parametrize("variant", ["rhoAB", "logrhoAB"])
@pytest.mark.parametrize("degree, order", [(0, 1), (1, 2)])
@pytest.mark.parametrize("name", PATHS)
def test_order_of_a_polynomial(references, name, degree, order, variant, form):
    errors = errors_of(references, name, (132, 264, 528), variant=variant, order=degree, flow_form=form, guard=0)
    assert slope(errors) == pytest.approx(order, abs=0.3), errors


@pytest.mark.parametrize("variant", ["rhoAB", "logrhoAB"])
@pytest.mark.parametrize("name", PATHS)
def test_higher_degrees_are_closer(references, name, variant):
    """The first step of order 1 bounds the global order by 2, but each degree lowers the error at equal cost."""
    errors = [errors_of(references, name, (60,), variant=variant, order=degree, guard=0)[0] for degree in range(4)]
    assert errors[3] < errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("rk", TABLEAUS)
def test_calls_are_counted(rk):
    stages = len(TABLEAUS[rk].b)
    plan = plan_deis([4.0, 3.0, 2.0, 1.0, 0.0], Schedule(), variant="rhoRK", rk=rk)
    assert plan.calls == 3 * stages + 1
    assert [op.interval for op in plan.operations if getattr(op, "interval", None) is not None] == [0, 1, 2, 3]


@pytest.mark.parametrize("variant", ["rhoAB", "logrhoAB", "iPNDM", "rhoRK"])
@pytest.mark.parametrize("form", ["velocity", "noise"])
@pytest.mark.parametrize("name", PATHS)
def test_whole_schedules_are_finite_and_end_at_the_prediction(name, form, variant):
    path = PATHS[name]
    x = start(path, 1.0)
    for sigmas in ([1.0, 0.6, 0.3, 0.1, 0.0], [1.0, 0.5, 0.5, 0.2, 0.2, 0.0], [], [1.0], [0.0]):
        result, plan = run(plan_deis, path, gaussian(path), sigmas, x, variant=variant, flow_form=form)
        assert torch.isfinite(result).all()
        if len(sigmas) > 1:
            assert plan.operations[-1].terms[0][0] == 1.0 and len(plan.operations[-1].terms) == 1


@pytest.mark.parametrize("name", PATHS)
def test_with_noise_the_end_has_the_distribution_of_the_data(name):
    path, (sigma_a, sigma_b), items = PATHS[name], SPANS[name], 6000
    noise = torch.randn(items, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    alpha_a, alpha_b = float(path.alpha(sigma_a)), float(path.alpha(sigma_b))
    x = alpha_a * 0.3 + np.hypot(alpha_a * 0.5, sigma_a) * noise
    grid = uniform_lam(path, sigma_a, sigma_b, 80)
    result, _ = run(plan_deis, path, gaussian(path), grid, x, variant="logrhoAB", order=1, tau=1.0)
    deviation = np.hypot(alpha_b * 0.5, sigma_b)
    assert float(result.mean()) == pytest.approx(alpha_b * 0.3, abs=4 * deviation / items**0.5)
    assert float(result.std()) == pytest.approx(deviation, rel=4 / (2 * items) ** 0.5 + 0.01)


@pytest.mark.parametrize("name", PATHS)
def test_close_to_the_exact_flow_map_of_a_gaussian(name):
    path, (sigma_a, sigma_b) = PATHS[name], SPANS[name]
    x = start(path, sigma_a)
    result, _ = run(plan_deis, path, gaussian(path), uniform_lam(path, sigma_a, sigma_b, 60), x, variant="rhoAB")
    assert (result - gaussian_flow_map(path, x, sigma_a, sigma_b)).abs().max() < 2e-3


def test_a_table_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not a consistent"):
        Tableau(2, (1.0,), ((0.5,),), (0.5, 0.5))


@pytest.mark.parametrize("options, words", [
    ({"variant": "qAB"}, "variant is 'qAB'"), ({"order": 5}, "order is 5"), ({"rk": "rk5"}, "rk is 'rk5'"),
    ({"flow_form": "eps"}, "flow_form is 'eps'"), ({"tau": 1.0, "variant": "rhoRK"}, "set tau 0"),
    ({"tau": -1.0}, "tau is -1.0"), ({}, "model time"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_deis([1.0, 0.5], Schedule(), **options)
