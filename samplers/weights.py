"""Weights of one exponential-integrator step, by quadrature in float64.

The ODE dx/dsigma = (x - D)/sigma splits into a linear part, solved exactly, and the integral of a prediction P that is
replaced by its interpolation polynomial in a variable u(sigma) (Lu et al. 2022, eq. 3.4; Zhang & Chen 2023, eq. 15):

    data   P = D                      x_b = (s_b/s_a) x_a + s_b int D d(1/sigma)
    noise  P = (x - alpha D)/sigma    x_b = (alpha_b/alpha_a) x_a + alpha_b int eps d(sigma/alpha)
    deriv  P = (x - D)/sigma          x_b = x_a + int d dsigma

Gauss-Legendre quadrature with 48 points is exact to about 1e-14 for polynomial degree 0-3 over log-SNR spans up to 12,
so no phi functions and no special cases for small steps are needed.
"""

from dataclasses import dataclass

import numpy as np

PREDICTIONS = ("data", "noise", "derivative")
BASES = ("logSNR", "sigma", "model time", "-log sigma", "sigma/alpha")

_XI, _W = np.polynomial.legendre.leggauss(48)


@dataclass(frozen=True)
class StepWeights:
    """x_b = carry * x_a + sum_j nodes[j] * P_j + noise * z, with z standard normal."""

    carry: float
    nodes: tuple[float, ...]
    noise: float = 0.0

    @property
    def kappa(self):
        """How far the polynomial extrapolates: sum |c_j| / |sum c_j| (1 = a mean of what is known)."""
        total = abs(sum(self.nodes))
        return sum(map(abs, self.nodes)) / total if total > 0 else 1.0


def basis_function(basis, schedule):
    """The variable u(sigma) of the interpolation polynomial, on the path or in the time of a `model.Schedule`."""
    if basis == "logSNR":
        return schedule.path.lam
    if basis == "sigma":
        return lambda sigma: np.asarray(sigma, dtype=float)
    if basis == "-log sigma":
        return lambda sigma: -np.log(sigma)
    if basis == "sigma/alpha":
        return lambda sigma: np.exp(-schedule.path.lam(sigma))
    if basis == "model time":
        if schedule.time is None:
            raise ValueError("basis 'model time' needs a model with a table of sigmas; choose 'logSNR' or 'sigma'")
        return schedule.time
    raise ValueError(f"basis '{basis}' is unknown; choose one of {', '.join(BASES)}")


def lagrange(u_nodes, u):
    """Lagrange polynomials [n, q] of the nodes `u_nodes` [n] at the points `u` [q]."""
    rows = []
    for j, u_j in enumerate(u_nodes):
        others = [u_k for k, u_k in enumerate(u_nodes) if k != j]
        rows.append(np.prod([(u - u_k) / (u_j - u_k) for u_k in others], axis=0) if others else np.ones_like(u))
    return np.array(rows)


def quadrature(path, sigma_a, sigma_b):
    """Points sigma_q between the two noise levels and their weights d sigma_q (signed)."""
    lam_a, lam_b = path.lam(sigma_a), path.lam(sigma_b)
    if np.isfinite(lam_a) and np.isfinite(lam_b):
        sigma = path.sigma(lam_a + (lam_b - lam_a) * (_XI + 1) / 2)
        return sigma, _W * (lam_b - lam_a) / 2 * path.dsigma_dlam(sigma)
    log_a, log_b = np.log(sigma_a), np.log(sigma_b)  # a flow at sigma 1, where lam has no value but log sigma has
    sigma = np.exp(log_a + (log_b - log_a) * (_XI + 1) / 2)
    return sigma, _W * (log_b - log_a) / 2 * sigma


def noise_time(path, tau, sigma, sigma_b):
    """T = int tau^2 dlam from each `sigma` down to sigma_b, the exponent by which noise of strength tau forgets.

    tau: a number, or a function of sigma that is 0 at sigma 1 of a flow, so that the integral exists there.
    """
    if not callable(tau):
        return tau**2 * (path.lam(sigma_b) - path.lam(sigma))
    span = np.log(np.asarray(sigma, dtype=float) / sigma_b)
    between = sigma_b * np.exp(np.multiply.outer(span, (_XI + 1) / 2))
    return span / 2 * ((tau(between) ** 2 / path.alpha(between)) @ _W)


def first_order(path, sigma_a, sigma_b, tau=0.0):
    """The step with D held constant: DDIM (tau 0) up to its SDE (tau 1), finite at sigma_a = 1 and sigma_b = 0."""
    ratio = sigma_b / sigma_a
    if tau == 0 or sigma_b in (0, sigma_a):
        return StepWeights(ratio, (1.0 - ratio,))
    time = float(noise_time(path, tau, sigma_a, sigma_b))
    carry = float(ratio * np.exp(-time))
    return StepWeights(
        carry,
        (float(path.alpha(sigma_b) - carry * path.alpha(sigma_a)),),
        float(sigma_b * np.sqrt(-np.expm1(-2 * time))),
    )


def step_weights(path, prediction, u, nodes, sigma_a, sigma_b, tau=0.0):
    """Weights of the step sigma_a -> sigma_b with P known at the noise levels `nodes`.

    path: VE or FLOW. prediction: one of PREDICTIONS. u: basis function. nodes: any distinct sigmas > 0: the past
    (multistep), inside the step (stages) or sigma_b itself (corrector). tau: strength of the reverse-time noise,
    0 = ODE, 1 = the reverse SDE (Xue et al. 2023, SA-Solver, eq. 7), a number or (prediction data) a function of sigma.
    """
    sigma, dsigma = quadrature(path, sigma_a, sigma_b)
    alpha_a, alpha_b = path.alpha(sigma_a), path.alpha(sigma_b)
    noise = 0.0
    if prediction == "data":
        carry, kernel = sigma_b / sigma_a, -sigma_b / sigma**2 * dsigma
        if tau:
            time = noise_time(path, tau, sigma_a, sigma_b)
            carry, noise = carry * np.exp(-time), sigma_b * np.sqrt(max(0.0, -np.expm1(-2 * time)))
            strength = tau(sigma) if callable(tau) else tau
            kernel = kernel * (1 + strength**2) * np.exp(-noise_time(path, tau, sigma, sigma_b))
    elif prediction == "noise":
        carry, kernel = alpha_b / alpha_a, alpha_b * dsigma / path.alpha(sigma) ** (1 if path.name == "ve" else 2)
        if tau:
            kernel = kernel * (1 + tau**2)
            noise = alpha_b * tau * np.sqrt(max(0.0, (sigma_a / alpha_a) ** 2 - (sigma_b / alpha_b) ** 2))
    elif prediction == "derivative":
        if tau:
            raise ValueError("tau > 0 needs prediction 'data' or 'noise': the derivative form has no noisy one")
        carry, kernel = 1.0, dsigma
    else:
        raise ValueError(f"prediction '{prediction}' is unknown; choose one of {', '.join(PREDICTIONS)}")
    c = lagrange([float(u(s)) for s in nodes], u(sigma)) @ kernel
    return StepWeights(float(carry), tuple(map(float, c)), float(noise))


def _midpoint(h):
    return h * -np.expm1(-h) / 2 / (h + np.expm1(-h))


def _bh1(h):
    return h**2 / 2 / (h + np.expm1(-h))


VARIANTS = {"taylor": None, "midpoint": _midpoint, "bh1": _bh1}
"""Factor on the first-derivative term of a two-node step in log-SNR (or -log sigma), a function of the signed span h.

'taylor' integrates the line exactly; 'midpoint' is DPM-Solver++(2M)'s and UniPC's B_2(h); 'bh1' is UniPC's B_1(h) = h
(Lu et al. 2022b, algorithm 2; Zhao et al. 2023, section 3.1). The noise form takes h with the opposite sign.
"""


def with_variant(weights, variant, prediction, span):
    """Scale the derivative term of a two-node step whose first node is its start; others stay (there it cancels)."""
    factor = VARIANTS[variant]
    if factor is None or len(weights.nodes) != 2 or span == 0:
        return weights
    c0, c1 = weights.nodes
    rho = float(factor(span if prediction == "data" else -span))
    return StepWeights(weights.carry, (c0 + (1 - rho) * c1, rho * c1), weights.noise)
