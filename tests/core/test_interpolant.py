"""Stochastic interpolants: the moments of a step, the law of a whole run, limits in which it is another method."""

import numpy as np
import pytest
import torch
from exact_models import PATHS, gaussian, gaussian_flow_map, run, slope, start, two_modes, uniform_lam
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.interpolant import EPSILONS, INTEGRATORS, MOST, plan_interpolant, strength_function
from trajectory.samplers.model import Schedule
from trajectory.samplers.weights import first_order, noise_time, step_weights

SPANS = {"ve": (10.0, 0.05), "flow": (0.995, 0.02)}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_tau_is_epsilon_at_the_flow_of_equal_snr(name, epsilon):
    """tau^2 = epsilon (1 - s) / s, with s the flow's sigma of the same log-SNR."""
    path, s = PATHS[name], np.array([0.1, 0.4, 0.8])
    formulas = {
        "sigma/(1-sigma)": s / (1 - s), "sigma": s, "sigma^2": s**2, "sin^2(pi sigma)": np.sin(np.pi * s) ** 2,
        "constant": np.ones(3),
    }  # fmt: skip
    square = 1.3 * formulas[epsilon] * (1 - s) / s
    expected = np.sqrt(1 / (1 / square + 1 / MOST**2) if epsilon == "constant" else square)
    tau = strength_function(path, epsilon, 1.3)
    found = tau(s if name == "flow" else s / (1 - s)) if callable(tau) else np.full(3, tau)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("epsilon", list(EPSILONS)[1:])
def test_the_noise_time_is_the_integral(name, epsilon):
    from scipy.integrate import quad

    path, tau = PATHS[name], strength_function(PATHS[name], epsilon, 1.3)
    sigmas, sigma_b = np.array([0.9, 0.5, 0.2]), 0.1
    expected = [quad(lambda v: float(tau(path.sigma(v))) ** 2, path.lam(s), path.lam(sigma_b))[0] for s in sigmas]
    assert noise_time(path, tau, sigmas, sigma_b) == pytest.approx(expected, rel=1e-9)
    assert float(noise_time(path, tau, 0.5, sigma_b)) == pytest.approx(expected[1], rel=1e-9)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_step_keeps_the_mean_and_the_variance(name, epsilon):
    """With D = x0 known the state is N(alpha x0, sigma^2) before and after, whatever the step and the order."""
    path = PATHS[name]
    tau = strength_function(path, epsilon, 1.7)
    for sigma_a, sigma_b in ((0.95, 0.6), (0.6, 0.05), (0.1, 0.09)):
        several = step_weights(path, "data", path.lam, [sigma_a, 0.97], sigma_a, sigma_b, tau)
        for step in (first_order(path, sigma_a, sigma_b, tau), several):
            assert (step.carry * sigma_a) ** 2 + step.noise**2 == pytest.approx(sigma_b**2, rel=1e-12)
            mean = step.carry * float(path.alpha(sigma_a)) + sum(step.nodes)
            assert mean == pytest.approx(float(path.alpha(sigma_b)), rel=1e-9)
            assert step.noise > 0


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_scale_0_is_dpm_solver(name, order):
    path = PATHS[name]
    sigmas, x = [*uniform_lam(path, *SPANS[name], 12), 0.0], start(path, SPANS[name][0])
    for options in ({"scale": 0.0}, {"sigma_high": 0.0}, {"sigma_low": 900.0}):
        ours, _ = run(plan_interpolant, path, two_modes(path), sigmas, x, order=order, **options)
        dpm, _ = run(plan_dpm_solver, path, two_modes(path), sigmas, x, order=order)
        assert torch.equal(ours, dpm)


@pytest.mark.parametrize("name", PATHS)
def test_the_constant_tau_is_the_reverse_sde_of_dpm_solver(name):
    path = PATHS[name]
    sigmas, x = uniform_lam(path, *SPANS[name], 12), start(path, SPANS[name][0])
    ours, _ = run(plan_interpolant, path, two_modes(path), sigmas, x, epsilon="sigma/(1-sigma)", scale=0.49)
    dpm, _ = run(plan_dpm_solver, path, two_modes(path), sigmas, x, tau=0.7)
    assert torch.equal(ours, dpm)


@pytest.mark.parametrize("name", PATHS)
def test_without_noise_the_explicit_integrators_are_euler_and_heun(name):
    path = PATHS[name]
    x = start(path, SPANS[name][0])
    exact = gaussian_flow_map(path, x, *SPANS[name])
    for integrator, order in (("euler-maruyama", 1), ("heun", 2)):
        errors = []
        for steps in (100, 200, 400):
            grid = uniform_lam(path, *SPANS[name], steps)
            result, plan = run(plan_interpolant, path, gaussian(path), grid, x, integrator=integrator, scale=0.0)
            assert plan.calls == steps * order
            errors.append(float((result - exact).abs().mean()))
        assert slope(errors) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("name", PATHS)
def test_every_epsilon_ends_in_the_distribution_of_the_data(name, epsilon, integrator):
    """A Gaussian in, the data's Gaussian out: within 4 standard errors and the integrator's own 2 % (explicit: 4 %)."""
    path, items = PATHS[name], 6000
    sigma_a, sigma_b = {"ve": 10.0, "flow": 1.0}[name], SPANS[name][1]
    noise = torch.randn(items, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    alpha_a, alpha_b = float(path.alpha(sigma_a)), float(path.alpha(sigma_b))
    x = alpha_a * 0.3 + np.hypot(alpha_a * 0.5, sigma_a) * noise
    grid = uniform_lam(path, SPANS[name][0], sigma_b, 80)
    grid = [1.0, *grid] if name == "flow" else grid
    result, _ = run(plan_interpolant, path, gaussian(path), grid, x, epsilon=epsilon, integrator=integrator)
    deviation, own = np.hypot(alpha_b * 0.5, sigma_b), 0.02 if integrator == "exponential" else 0.04
    assert float(result.mean()) == pytest.approx(alpha_b * 0.3, abs=4 * deviation / items**0.5)
    assert float(result.std()) == pytest.approx(deviation, rel=4 / (2 * items) ** 0.5 + own)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_two_modes_keep_their_shares(name, epsilon):
    """The mixture's modes have equal shares; with the noise of any epsilon a start of one sign spreads to both."""
    path, items = PATHS[name], 4000
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(items, 3, generator=generator, dtype=torch.float64) * SPANS[name][0]
    grid = uniform_lam(path, *SPANS[name], 60)
    result, _ = run(plan_interpolant, path, two_modes(path), [*grid, 0.0], x, epsilon=epsilon, scale=2.0)
    share = float((result[:, 0] > 0).double().mean())
    assert share == pytest.approx(0.5, abs=4 * 0.5 / items**0.5 + 0.01)
    assert float(result[result[:, 0] > 0][:, 0].mean()) == pytest.approx(1.0, abs=0.03)


def test_the_window_limits_the_noise():
    plan = plan_interpolant([0.9, 0.7, 0.5, 0.3, 0.1, 0.0], Schedule(PATHS["flow"]), sigma_high=0.75, sigma_low=0.4)
    noisy = {op.out for op in plan.operations if type(op).__name__ == "Noise"}
    assert noisy == {"zx2", "zx3"}


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", PATHS)
def test_whole_schedules_are_finite(name, integrator):
    path = PATHS[name]
    x = start(path, 1.0)
    for sigmas in ([1.0, 0.6, 0.3, 0.1, 0.0], [1.0, 0.5, 0.5, 0.2, 0.0], [1.0, 0.0], [], [1.0], [0.0]):
        for epsilon in EPSILONS:
            result, _ = run(
                plan_interpolant, path, gaussian(path), sigmas, x, epsilon=epsilon, integrator=integrator, scale=4.0
            )
            assert torch.isfinite(result).all()


@pytest.mark.parametrize("options, words", [
    ({"epsilon": "x"}, "epsilon is 'x'"), ({"order": 4}, "order is 4"), ({"integrator": "rk4"}, "integrator is 'rk4'"),
    ({"scale": -1.0}, "scale is -1"), ({"sigma_low": 2.0, "sigma_high": 1.0}, "lower it, or raise sigma_high"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        plan_interpolant([1.0, 0.5], Schedule(), **options)


def test_a_rising_schedule_is_refused_with_noise_only():
    with pytest.raises(ValueError, match="falling schedule"):
        plan_interpolant([0.5, 0.8], Schedule())
    assert plan_interpolant([0.5, 0.8], Schedule(), scale=0.0).calls == 1
