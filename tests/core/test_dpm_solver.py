"""Orders of convergence, exact cases, limits and edge cases of DPM-Solver's plans."""

import numpy as np
import pytest
import torch
from exact_models import PATHS, gaussian, gaussian_flow_map, run, slope, start, two_modes, uniform_lam
from trajectory.samplers.dpm_solver import plan_dpm_solver, singlestep_groups
from trajectory.samplers.model import Schedule

EXACT = {"guard": 0.0, "lower_order_final": "off"}
SPANS = {"ve": (10.0, 0.05), "flow": (0.995, 0.02)}

# options -> theoretical order. A multistep method of order k that starts with Euler steps is globally of order 2,
# unless an rk start keeps the order.
ORDERS = [
    ({"order": 1}, 1),
    ({"order": 2}, 2),
    ({"order": 2, "variant": "midpoint"}, 2),
    ({"order": 2, "variant": "bh1"}, 2),
    ({"order": 2, "prediction": "noise"}, 2),
    ({"order": 2, "prediction": "derivative"}, 2),
    ({"order": 2, "basis": "-log sigma"}, 2),
    ({"order": 3, "start": "rk"}, 3),
    ({"order": 3, "start": "rk", "prediction": "noise"}, 3),
    ({"order": 3, "start": "rk", "prediction": "derivative"}, 3),
    ({"order": 4, "start": "rk"}, 4),
    ({"order": 2, "corrector": "unic"}, 3),
    ({"order": 3, "start": "rk", "corrector": "unic"}, 4),
    ({"order": 2, "method": "singlestep"}, 2),
    ({"order": 2, "method": "singlestep", "variant": "midpoint"}, 2),
    ({"order": 3, "method": "singlestep"}, 3),
]


@pytest.fixture(scope="module")
def references():
    found = {}
    for name, path in PATHS.items():
        sigma_a, sigma_b = SPANS[name]
        x = start(path, sigma_a)
        grid = uniform_lam(path, sigma_a, sigma_b, 3000)
        found[name] = x, run(plan_dpm_solver, path, two_modes(path), grid, x, order=4, start="rk", **EXACT)[0]
    return found


def words(options):
    return "-".join(map(str, options.values())) if isinstance(options, dict) else ""


@pytest.mark.parametrize("options, order", ORDERS, ids=words)
@pytest.mark.parametrize("name", PATHS)
def test_order_of_convergence(references, name, options, order):
    path, (x, reference) = PATHS[name], references[name]
    errors = []
    for steps in (132, 264, 528):  # multiples of 2 and 3: whole singlesteps
        grid = uniform_lam(path, *SPANS[name], steps)
        result, _ = run(plan_dpm_solver, path, two_modes(path), grid, x, **EXACT, **options)
        errors.append(float((result - reference).abs().mean()))
    assert slope(errors) == pytest.approx(order, abs=0.3), errors


@pytest.mark.parametrize("name", PATHS)
def test_third_order_beats_second_order_by_far(references, name):
    path, (x, reference) = PATHS[name], references[name]
    grid = uniform_lam(path, *SPANS[name], 160)
    error = {}
    for order in (2, 3):
        result, _ = run(plan_dpm_solver, path, two_modes(path), grid, x, order=order, start="rk", **EXACT)
        error[order] = float((result - reference).abs().mean())
    assert error[3] < error[2] / 5


@pytest.mark.parametrize("options", [o for o, _ in ORDERS], ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("name", PATHS)
def test_exact_for_a_constant_prediction(name, options):
    """Where the interpolated prediction does not change, every method is exact whatever the steps."""
    path, sigmas, c = PATHS[name], [0.9, 0.7, 0.5, 0.31, 0.3, 0.1], 0.25
    alpha_a, alpha_b = float(path.alpha(0.9)), float(path.alpha(0.1))
    x = start(path, 0.9)
    model, exact = {
        "data": (lambda x, s, **_: torch.full_like(x, c), x / 9 + 8 / 9 * c),
        "noise": (lambda x, s, **_: (x - s[0] * c) / float(path.alpha(float(s[0]))),
                  alpha_b / alpha_a * x + alpha_b * (0.1 / alpha_b - 0.9 / alpha_a) * c),
        "derivative": (lambda x, s, **_: x - s[0] * c, x - 0.8 * c),
    }[options.get("prediction", "data")]  # fmt: skip
    result, _ = run(plan_dpm_solver, path, model, sigmas, x, **EXACT, **options)
    assert torch.allclose(result, exact, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_close_to_the_exact_flow_map_of_a_gaussian(name):
    path = PATHS[name]
    sigma_a, sigma_b = SPANS[name]
    x = start(path, sigma_a)
    grid = uniform_lam(path, sigma_a, sigma_b, 60)
    result, plan = run(plan_dpm_solver, path, gaussian(path), grid, x, order=3)
    assert plan.calls == 60
    assert (result - gaussian_flow_map(path, x, sigma_a, sigma_b)).abs().max() < 2e-4


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", range(1, 12))
@pytest.mark.parametrize("name", PATHS)
def test_one_call_an_interval_and_the_last_step_to_zero_is_the_prediction(name, steps, order, method):
    path = PATHS[name]
    sigmas = [*np.linspace(1.0, 0.1, steps).tolist(), 0.0]
    plan = plan_dpm_solver(sigmas, Schedule(path), method=method, order=order)
    assert plan.calls == steps
    assert [op.interval for op in plan.operations if hasattr(op, "interval")] == list(range(steps))
    assert plan.operations[-1].terms == ((1.0, f"D{steps - 1}"),)
    assert all(np.isfinite(w) for op in plan.operations if hasattr(op, "terms") for w, _ in op.terms)


@pytest.mark.parametrize("order, steps, groups", [
    (3, 9, [3, 3, 2, 1]), (3, 10, [3, 3, 3, 1]), (3, 11, [3, 3, 3, 2]), (3, 0, []), (2, 7, [2, 2, 2, 1]),
    (1, 3, [1, 1, 1]),
])  # fmt: skip
def test_singlestep_budget_of_the_paper(order, steps, groups):
    assert singlestep_groups(steps, order) == groups


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("sigmas", [[], [1.0], [0.0], [0.0, 1.0]], ids=str)
def test_nothing_to_do_returns_the_state(sigmas, method):
    x = start(PATHS["ve"], 1.0)
    result, plan = run(plan_dpm_solver, PATHS["ve"], gaussian(PATHS["ve"]), sigmas, x, method=method)
    assert plan.calls == 0 and torch.equal(result, x)


def test_the_state_after_sigma_zero_is_kept():
    path, x = PATHS["ve"], start(PATHS["ve"], 2.0)
    short, _ = run(plan_dpm_solver, path, gaussian(path), [2.0, 1.0, 0.0], x)
    long, _ = run(plan_dpm_solver, path, gaussian(path), [2.0, 1.0, 0.0, 3.0, 1.0], x)
    assert torch.equal(short, long)


@pytest.mark.parametrize("options", [{}, {"method": "singlestep"}, {"corrector": "unic"}, {"variant": "midpoint"}])
def test_duplicate_sigmas_are_harmless(options):
    path, x = PATHS["ve"], start(PATHS["ve"], 5.0)
    sigmas = [5.0, 5.0, 3.0, 3.0, 3.0, 1.0, 0.5, 0.5]
    result, _ = run(plan_dpm_solver, path, gaussian(path), sigmas, x, order=2 if "variant" in options else 3, **options)
    assert torch.isfinite(result).all()
    assert (result - gaussian_flow_map(path, x, 5.0, 0.5)).abs().max() < 0.5


@pytest.mark.parametrize("name", PATHS)
def test_a_schedule_may_rise(name):
    """Inversion: up and down again by the same solver comes back, to the order of the method."""
    path = PATHS[name]
    low, high = SPANS[name][1], SPANS[name][0]
    x = gaussian_flow_map(path, start(path, high), high, low)
    grid = uniform_lam(path, low, high, 100)
    up, _ = run(plan_dpm_solver, path, gaussian(path), grid, x, order=3, **EXACT)
    assert (up - gaussian_flow_map(path, x, low, high)).abs().max() < 2e-2


def test_the_guard_lowers_the_order_where_the_weights_extrapolate():
    sigmas = [14.6, 10.0, 8.0, 7.0, 6.5, 0.05, 0.0]
    guarded, free = (plan_dpm_solver(sigmas, Schedule(), order=3, guard=g, lower_order_final="off") for g in (6, 0))
    assert free.steps[4].order == 3 and free.steps[4].kappa > 6
    assert guarded.steps[4].order < 3 and guarded.steps[4].kappa <= 6


@pytest.mark.parametrize(
    "setting, orders", [("on", [1, 2, 3, 2, 1]), ("off", [1, 2, 3, 3, 3]), ("auto", [1, 2, 3, 2, 1])]
)
def test_lower_order_final(setting, orders):
    sigmas = np.geomspace(10, 1, 6).tolist()
    plan = plan_dpm_solver(sigmas, Schedule(), order=3, lower_order_final=setting, guard=0)
    assert [step.order for step in plan.steps] == orders


def test_auto_lowers_only_below_ten_steps():
    plan = plan_dpm_solver(np.geomspace(10, 1, 11).tolist(), Schedule(), order=3, guard=0)
    assert plan.steps[-1].order == 3


def test_starts():
    sigmas = np.geomspace(10, 1, 7).tolist()
    plans = {s: plan_dpm_solver(sigmas, Schedule(), order=3, start=s, guard=0) for s in ("ramp", "euler", "rk")}
    assert [s.order for s in plans["ramp"].steps[:3]] == [1, 2, 3]
    assert [s.order for s in plans["euler"].steps[:3]] == [1, 1, 3]
    assert [s.order for s in plans["rk"].steps[:3]] == [3, 3, 3] and plans["rk"].calls == 6 + 4


@pytest.mark.parametrize("options", [
    {}, {"order": 3}, {"order": 2, "prediction": "noise"}, {"order": 2, "method": "singlestep"},
    {"order": 3, "method": "singlestep", "prediction": "noise"}, {"order": 2, "corrector": "unic"},
    {"order": 3, "start": "rk"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", PATHS)
def test_with_noise_the_end_has_the_distribution_of_the_data(name, options):
    """tau 1 from the exact marginal of N(0.3, 0.5^2): mean and deviation at the end, 6000 items, 4 standard errors."""
    path, (sigma_a, sigma_b), items = PATHS[name], SPANS[name], 6000
    noise = torch.randn(items, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    alpha_a, alpha_b = float(path.alpha(sigma_a)), float(path.alpha(sigma_b))
    x = alpha_a * 0.3 + np.hypot(alpha_a * 0.5, sigma_a) * noise
    grid = uniform_lam(path, sigma_a, sigma_b, 60)
    result, _ = run(plan_dpm_solver, path, gaussian(path), grid, x, tau=1.0, **options)
    deviation = np.hypot(alpha_b * 0.5, sigma_b)
    assert float(result.mean()) == pytest.approx(alpha_b * 0.3, abs=4 * deviation / items**0.5)
    # half a percent for the discretisation of 60 steps
    assert float(result.std()) == pytest.approx(deviation, rel=4 / (2 * items) ** 0.5 + 0.005)


@pytest.mark.parametrize("variant", ["taylor", "midpoint", "bh1"])
def test_the_first_correction_is_unic_1(variant):
    """UniC-1 (Zhao et al. 2023, section 3.1): B(h)/2 (D_b - D_a) on top of the first-order step, B = e^h - 1 or h."""
    h = np.log(2.0)
    plan = plan_dpm_solver([10.0, 5.0, 2.0], Schedule(), order=1, corrector="unic", variant=variant)
    weights = {slot: w for w, slot in next(op for op in plan.operations if op.out == "c1").terms}
    whole = 1 - np.exp(-h)
    new = {"taylor": (h - whole) / h, "midpoint": whole / 2, "bh1": h / 2}[variant]
    assert weights == pytest.approx({"x": 0.5, "D0": whole - new, "D1": new})


def test_a_guard_that_drops_the_new_point_leaves_the_predictor():
    plan = plan_dpm_solver([10.0, 5.0, 2.0], Schedule(), order=1, corrector="unic", guard=1e-9)
    steps = {op.out: dict((slot, w) for w, slot in op.terms) for op in plan.operations if hasattr(op, "terms")}
    assert steps["c1"] == pytest.approx(steps["x1"])


@pytest.mark.parametrize("name, sigmas, tau, words", [
    ("ve", [1.0, float("nan"), 0.0], 0.0, r"sigmas\[1\] is nan"), ("ve", [1.0, -0.5], 0.0, r"sigmas\[1\] is -0.5"),
    ("ve", [float("inf"), 1.0], 0.0, r"sigmas\[0\] is inf"), ("flow", [1.5, 0.5], 0.0, "between 0 and 1"),
    ("ve", [0.5, 0.8], 1.0, "Sort SIGMAS"), ("flow", [0.5, 1.0], 1.0, "Sort SIGMAS"),
])  # fmt: skip
def test_sigmas_that_cannot_be_are_named(name, sigmas, tau, words):
    with pytest.raises(ValueError, match=words):
        plan_dpm_solver(sigmas, Schedule(PATHS[name]), tau=tau)


def test_a_flow_may_start_a_rounding_above_one():
    plan = plan_dpm_solver([1.0000001, 0.5, 0.0], Schedule(PATHS["flow"]))
    assert all(np.isfinite(w) for op in plan.operations if hasattr(op, "terms") for w, _ in op.terms)


def test_without_noise_the_seed_does_not_matter_and_with_it_it_does():
    path, x = PATHS["ve"], start(PATHS["ve"], 5.0)
    grid = uniform_lam(path, 5.0, 0.1, 6)
    runs = {(tau, seed): run(plan_dpm_solver, path, gaussian(path), grid, x, seed=seed, tau=tau)[0]
            for tau in (0.0, 1.0) for seed in (1, 2)}  # fmt: skip
    assert torch.equal(runs[0.0, 1], runs[0.0, 2])
    assert not torch.equal(runs[1.0, 1], runs[1.0, 2])
    assert torch.equal(runs[1.0, 1], run(plan_dpm_solver, path, gaussian(path), grid, x, seed=1, tau=1.0)[0])


@pytest.mark.parametrize("options, words", [
    ({"order": 5}, "order is 5"), ({"order": 4, "method": "singlestep"}, "singlestep goes up to 3"),
    ({"method": "singlestep", "corrector": "unic"}, "set corrector to none"), ({"tau": -1.0}, "tau is -1.0"),
    ({"tau": 0.5, "prediction": "derivative"}, "set tau 0"), ({"variant": "midpoint", "basis": "sigma"}, "set variant"),
    ({"prediction": "velocity"}, "prediction is 'velocity'"), ({"basis": "model time"}, "model time"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_dpm_solver([1.0, 0.5], Schedule(), **options)


def test_midpoint_in_minus_log_sigma_is_what_hosts_run_on_flows():
    """2M on a flow as if it were VE: h counts -log sigma, also from sigma 1 (Lu et al. 2022b, algorithm 2)."""
    sigmas = [1.0, 0.7, 0.4, 0.2]
    plan = plan_dpm_solver(
        sigmas, Schedule(PATHS["flow"]), variant="midpoint", basis="-log sigma", lower_order_final="off", guard=0
    )
    h_before, h = np.log(1.0 / 0.7), np.log(0.7 / 0.4)
    terms = {slot: weight for weight, slot in plan.operations[3].terms}
    bracket = 1 / (2 * h_before / h)
    assert terms["x1"] == pytest.approx(0.4 / 0.7)
    assert terms["D1"] == pytest.approx(-np.expm1(-h) * (1 + bracket))
    assert terms["D0"] == pytest.approx(np.expm1(-h) * bracket)
