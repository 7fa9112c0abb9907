"""Step weights against closed forms, classical tables and adaptive quadrature."""

from types import SimpleNamespace

import numpy as np
import pytest
from exact_models import PATHS
from scipy.integrate import quad
from trajectory.samplers.weights import basis_function, first_order, lagrange, step_weights, with_variant


def weights(path, prediction, basis, nodes, sigma_a, sigma_b, tau=0.0):
    u = basis_function(basis, SimpleNamespace(path=path, time=None))
    return step_weights(path, prediction, u, nodes, sigma_a, sigma_b, tau)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("h", [1e-3, 0.3, 2.0, 9.0])
def test_second_order_closed_form(path, prediction, h):
    lam_a, ratio = 0.4, 0.7  # ratio of the previous step to this one
    sigma_a, sigma_b, before = (float(path.sigma(lam)) for lam in (lam_a, lam_a + h, lam_a - ratio * h))
    alpha_b = float(path.alpha(sigma_b))
    if prediction == "data":
        whole, slope = alpha_b * -np.expm1(-h), alpha_b * (h + np.expm1(-h)) / (ratio * h)
    else:
        whole, slope = -sigma_b * np.expm1(h), -sigma_b * (np.expm1(h) - h) / (ratio * h)
    got = weights(path, prediction, "logSNR", [sigma_a, before], sigma_a, sigma_b)
    assert np.allclose(got.nodes, [whole + slope, -slope], rtol=1e-9, atol=1e-13)
    carry = sigma_b / sigma_a if prediction == "data" else alpha_b / float(path.alpha(sigma_a))
    assert got.carry == pytest.approx(carry, rel=1e-14)


@pytest.mark.parametrize(
    "table", [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]], ids=len
)
def test_derivative_form_in_sigma_is_adams_bashforth_on_a_uniform_grid(table):
    sigmas = [5.0 + j for j in range(len(table))]
    got = weights(PATHS["ve"], "derivative", "sigma", sigmas, 5.0, 4.0)
    assert np.allclose(got.nodes, [-c for c in table], atol=1e-12)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("basis", ["logSNR", "sigma", "-log sigma", "sigma/alpha"])
@pytest.mark.parametrize("prediction", ["data", "noise", "derivative"])
def test_any_basis_against_adaptive_quadrature(path, basis, prediction):
    nodes, sigma_a, sigma_b = [0.6, 0.7, 0.9], 0.6, 0.45
    u = basis_function(basis, SimpleNamespace(path=path, time=None))
    alpha_b = float(path.alpha(sigma_b))
    measure = {
        "data": lambda s: -sigma_b / s**2,
        "noise": lambda s: alpha_b / float(path.alpha(s)) ** (0 if path.name == "ve" else 2),
        "derivative": lambda s: 1.0,
    }[prediction]
    table = [float(u(node)) for node in nodes]


    def integrand(s, j):
        return measure(s) * lagrange(table, np.array([float(u(s))]))[j, 0]

    expected = [quad(integrand, sigma_a, sigma_b, args=(j,), epsrel=1e-13)[0] for j in range(3)]
    assert np.allclose(weights(path, prediction, basis, nodes, sigma_a, sigma_b).nodes, expected, atol=1e-11)


@pytest.mark.parametrize("prediction", ["data", "noise", "derivative"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_first_order_is_the_same_step_in_every_prediction(path, prediction):
    x, denoised, sigma_a, sigma_b = 1.7, 0.4, 0.8, 0.3
    alpha = float(path.alpha(sigma_a))
    noise, derivative = (x - alpha * denoised) / sigma_a, (x - denoised) / sigma_a
    p = {"data": denoised, "noise": noise, "derivative": derivative}[prediction]
    got = weights(path, prediction, "logSNR", [sigma_a], sigma_a, sigma_b)
    closed = first_order(path, sigma_a, sigma_b)
    assert got.carry * x + got.nodes[0] * p == pytest.approx(closed.carry * x + closed.nodes[0] * denoised, abs=1e-13)


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_noisy_step_keeps_the_marginal_of_a_known_picture(path, tau):
    # With D = x0 exact, x_a ~ N(alpha_a x0, sigma_a^2) must become x_b ~ N(alpha_b x0, sigma_b^2).
    sigma_a, sigma_b = 0.8, 0.3
    closed, general = first_order(path, sigma_a, sigma_b, tau), weights(path, "data", "logSNR", [0.8], 0.8, 0.3, tau)
    assert np.allclose([closed.carry, *closed.nodes, closed.noise], [general.carry, *general.nodes, general.noise])
    assert closed.carry * float(path.alpha(sigma_a)) + closed.nodes[0] == pytest.approx(float(path.alpha(sigma_b)))
    assert (closed.carry * sigma_a) ** 2 + closed.noise**2 == pytest.approx(sigma_b**2)


def test_from_pure_noise_of_a_flow_the_step_is_finite():
    flow = PATHS["flow"]
    assert first_order(flow, 1.0, 0.9).nodes == pytest.approx((0.1,))
    noisy = first_order(flow, 1.0, 0.9, tau=1.0)
    assert (noisy.carry, noisy.noise) == pytest.approx((0.0, 0.9))
    assert sum(weights(flow, "derivative", "sigma", [1.0], 1.0, 0.9).nodes) == pytest.approx(-0.1)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_midpoint_is_the_plus_plus_2m_update(tau):
    h, h_before, sigma_a = 0.7, 0.5, 2.0
    sigma_b, before = sigma_a * np.exp(-h), sigma_a * np.exp(h_before)
    got = with_variant(
        weights(PATHS["ve"], "data", "logSNR", [sigma_a, before], sigma_a, sigma_b, tau),
        "midpoint", "data", h * (1 + tau**2),
    )  # fmt: skip
    whole = -np.expm1(-(1 + tau**2) * h)
    half = 0.5 * whole * h / h_before  # 1/2 (1 - e^-H) (D_a - D_before) / r with r = h_before / h
    assert np.allclose(got.nodes, [whole + half, -half])


def test_kappa_measures_extrapolation():
    ve = PATHS["ve"]
    assert weights(ve, "data", "logSNR", [2.0], 2.0, 1.0).kappa == 1.0
    near, far = (weights(ve, "data", "logSNR", [2.0, 2.2, 2.4], 2.0, end).kappa for end in (1.8, 0.2))
    assert 1.0 < near < far


@pytest.mark.parametrize("bad", ["cubic", "model time"])
def test_a_basis_that_cannot_be_had_is_named(bad):
    with pytest.raises(ValueError, match=bad):
        basis_function(bad, SimpleNamespace(path=PATHS["ve"], time=None))


@pytest.mark.parametrize("tau", [1.0, lambda sigma: 1 - sigma], ids=["number", "function"])
def test_a_step_of_no_length_is_none_also_at_sigma_1_of_a_flow(tau):
    step = first_order(PATHS["flow"], 1.0, 1.0, tau)
    assert (step.carry, step.nodes, step.noise) == (1.0, (0.0,), 0.0)
