"""Denoising MCMC: the Langevin step, the level read off a spectrum, and whole chains against exact laws.

Where a law is compared, chains are independent of each other and the standard error is that of the chains' own means,
so what is correlated within a chain is counted once. Limits are 4 standard errors plus the stated bias.
"""

from itertools import islice

import numpy as np
import pytest
import torch
from exact_models import PATHS, run
from scipy.stats import kstest, norm
from trajectory.samplers.denoising_mcmc import (
    calls,
    denoising_mcmc,
    describe,
    gibbs_level,
    karras_levels,
    langevin_gibbs,
    langevin_step,
    level_posterior,
    lowest_of_each,
    noise_in,
)
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.model import Schedule
from trajectory.samplers.spectrum import Spectrum, power_law, rings


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(shape, g, dtype=torch.float64):
    return torch.randn(shape, generator=g, dtype=dtype)


def coefficients(level, eta):
    """(decay, scale) of the step y' = D + decay (y - D) + scale z."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return float(langevin_step(one, zero, level, eta, zero)), float(langevin_step(zero, zero, level, eta, one))


@pytest.mark.parametrize("ratio", [1e-6, 0.1, 1.0, 8.0, 500.0])
def test_with_the_denoised_picture_held_the_law_around_it_has_the_variance_of_the_noise(ratio):
    level = 1.7
    decay, scale = coefficients(level, ratio * level**2)
    assert decay**2 * level**2 + scale**2 == pytest.approx(level**2, rel=1e-12)
    assert decay == pytest.approx(np.exp(-ratio / 2))


def test_a_small_step_is_the_authors_step():
    """y + eta/2 score + sqrt(eta) z: the drift differs by O(eta^2), the noise by O(eta^1.5)."""
    g, level = generator(0), 0.8
    y, denoised, z = (normal((50,), g) for _ in range(3))

    def difference(eta):
        authors = y + eta / 2 * (denoised - y) / level**2 + eta**0.5 * z
        return float((langevin_step(y, denoised, level, eta, z) - authors).abs().max())

    assert difference(1e-4) < 1e-5
    assert np.log2(difference(2e-3) / difference(1e-3)) == pytest.approx(1.5, abs=0.1)


def test_without_a_step_the_chain_stays_put():
    g = generator(1)
    y, denoised, z = (normal((50,), g) for _ in range(3))
    assert torch.allclose(langevin_step(y, denoised, 0.5, 0.0, z), y, atol=1e-15)
    assert (langevin_step(y, denoised, 0.5, 1e-14, z) - y).abs().max() < 1e-6


@pytest.mark.parametrize("ratio", [0.01, 0.5, 4.0])
@pytest.mark.parametrize("std", [0.001, 1.0, 1000.0])
def test_the_bias_of_a_finite_step_is_the_one_stated(std, ratio):
    """Gaussian data: y' = c y + scale z with c = decay + (1 - decay) std^2 / V, whose stationary law is known."""
    level = 1.0
    decay, scale = coefficients(level, ratio)
    v = std**2 + level**2
    c = decay + (1 - decay) * std**2 / v
    kept = scale**2 / (1 - c**2) / v
    expected = (1 + decay) / (2 - (1 - decay) * level**2 / v)
    assert kept == pytest.approx(expected, rel=1e-5)
    if std == 1000.0:
        assert kept == pytest.approx((1 + decay) / 2, rel=1e-4)
    if std == 0.001:
        assert kept == pytest.approx(1.0, rel=1e-4)


MODE, SPREAD, SHARE = torch.tensor([1.4, 0.7], dtype=torch.float64), 0.4, 0.7


def mixture(path):
    """Posterior mean of 2-D data: N(MODE, SPREAD^2) with probability SHARE, else N(-MODE, SPREAD^2)."""

    def model(x, sigma, **_):
        sigma = torch.as_tensor(sigma, dtype=torch.float64).view(-1, 1)
        alpha = 1 - sigma if path.name == "flow" else torch.ones_like(sigma)
        v = alpha**2 * SPREAD**2 + sigma**2
        logit = 2 * (x * alpha * MODE).sum(-1, keepdim=True) / v + np.log(SHARE / (1 - SHARE))
        centre = torch.tanh(logit / 2) * MODE
        return centre + alpha * SPREAD**2 / v * (x - alpha * centre)

    return model


@pytest.mark.parametrize("name", PATHS)
def test_at_a_fixed_level_chain_and_denoising_have_the_exact_laws(name):
    """4000 independent chains from one point. eta 0.02 at level 1 leaves a bias of 0.5 % of the variance at most,
    which moves the distribution function by less than 0.002; Kolmogorov-Smirnov at p = 0.001 allows 1.95/sqrt(n).
    """
    path, level, n, g = PATHS[name], 1.0, 4000, generator(2)
    model, sigma = mixture(path), float(path.sigma(0.0))
    scale = float(path.alpha(sigma))
    chain = langevin_gibbs(
        lambda y, v: model(y * scale, sigma), -MODE.expand(n, 2), level, 0.02,
        lambda: normal((n, 2), g), lambda y: level,
    )  # fmt: skip
    y, _ = next(islice(chain, 1500, None))
    direction = MODE / MODE.norm()
    distance, limit = float(MODE.norm()), 1.95 / n**0.5 + 0.002

    def cdf(std):
        return lambda t: SHARE * norm.cdf(t, distance, std) + (1 - SHARE) * norm.cdf(t, -distance, std)

    assert kstest((y @ direction).numpy(), cdf(np.hypot(SPREAD, level))).statistic < limit
    levels = [*path.sigma(np.linspace(0.0, 5.0, 40)).tolist(), 0.0]
    clean, _ = run(plan_dpm_solver, path, model, levels, y * scale, order=3)
    assert kstest((clean @ direction).numpy(), cdf(SPREAD)).statistic < limit
    across = clean @ torch.stack([-direction[1], direction[0]])
    assert kstest(across.numpy(), lambda t: norm.cdf(t, 0, SPREAD)).statistic < limit


def textured(spectrum, shape, items, g, channels=1):
    """Gaussian fields [items, channels, *shape] whose modes have exactly the powers of `spectrum` on its own rings."""
    power = torch.from_numpy(spectrum.power[rings(shape)[0]].reshape(shape))
    dims = tuple(range(-len(shape), 0))
    return torch.fft.ifftn(torch.fft.fftn(normal((items, channels, *shape), g), dim=dims) * power.sqrt(), dim=dims).real


@pytest.mark.parametrize("exponent, sigma, precision", [
    (3.0, 0.1, 0.004), (3.0, 1.0, 0.008), (3.0, 10.0, 0.06), (2.0, 0.1, 0.012), (2.0, 1.0, 0.008), (0.0, 1.0, 0.012),
])  # fmt: skip
def test_the_level_is_read_off_a_power_law_latent(exponent, sigma, precision):
    """4 x 64 x 64 values. precision: the standard error that the Fisher information of the modes allows at best."""
    spectrum, g = power_law(exponent, (64, 64)), generator(3)
    levels = np.geomspace(0.01, 80, 1000)
    best = (4 * spectrum.count / (2 * (spectrum.power + sigma**2) ** 2)).sum() ** -0.5 / (2 * sigma)
    assert best < precision
    clean = textured(spectrum, (64, 64), 8, g, channels=4)
    noisy = clean + sigma * normal(clean.shape, g)
    error = np.array([float(level_posterior(y[None], spectrum, levels) @ levels) for y in noisy]) - sigma
    assert np.abs(error).max() < 4 * best and abs(error.mean()) < 4 * best / 8**0.5, error


def test_draws_of_the_level_are_calibrated():
    """Level and field drawn from their joint law: the draw given the field has the rank of the truth, uniformly."""
    spectrum, g = power_law(2.0, (8, 8)), generator(4)
    levels = np.geomspace(0.05, 5, 200)
    truth = levels[torch.randint(200, (400,), generator=g).numpy()]
    clean = textured(spectrum, (8, 8), 400, g)
    noisy = clean + torch.from_numpy(truth).view(-1, 1, 1, 1) * normal(clean.shape, g)
    cumulative = [np.cumsum(level_posterior(y[None], spectrum, levels)) for y in noisy]
    ranks = [c[np.searchsorted(levels, t)] for c, t in zip(cumulative, truth, strict=True)]
    assert kstest(ranks, "uniform").pvalue > 0.001
    draw = gibbs_level(spectrum, levels, generator(5))
    drawn = np.array([draw(y[None]) for y in noisy])
    # truth and draw are exchangeable given the field
    difference = np.log(drawn / truth)
    assert abs(difference.mean()) < 4 * difference.std() / 400**0.5 and difference.std() > 0.01


FIELD = (8, 8)
PATTERN = torch.cos(torch.arange(8, dtype=torch.float64) * (torch.pi / 4)).expand(1, 1, 8, 8) * 2**0.5
AMPLITUDE = 0.5


def texture():
    law = power_law(1.0, FIELD)
    return Spectrum(law.frequency, 0.25 * law.power, law.count)


def field_mixture(path):
    """Posterior mean of fields: +AMPLITUDE PATTERN with probability SHARE, else minus, plus Gaussian texture."""
    power = torch.from_numpy(texture().power[rings(FIELD)[0]].reshape(FIELD))

    def filtered(x, response):
        return torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3)) * response, dim=(2, 3)).real

    def model(x, sigma, **_):
        sigma = float(torch.as_tensor(sigma).flatten()[0])
        alpha = float(path.alpha(sigma))
        v = alpha**2 * power + sigma**2
        logit = 2 * alpha * AMPLITUDE * (filtered(x, 1 / v) * PATTERN).sum() + np.log(SHARE / (1 - SHARE))
        centre = torch.tanh(logit / 2) * AMPLITUDE * PATTERN
        return centre + filtered(x - alpha * centre, alpha * power / v)

    return model


def one_chain(path, item, **options):
    """(clean fields, trace, kept) of a chain that starts in the rarer mode without texture."""
    model, schedule = field_mixture(path), Schedule(path)
    noise = normal((1, 1, *FIELD), generator(1000 + item))

    def integrate(x, sigmas):
        return run(plan_dpm_solver, path, model, sigmas, x, order=2)[0]

    law = texture()
    ring = rings(FIELD)[0].reshape(FIELD)[0, 1]  # where the pattern's power is
    power = law.power + np.where(np.arange(len(law.power)) == ring, AMPLITUDE**2 * 64 / law.count[ring], 0.0)
    whole = Spectrum(law.frequency, power, law.count)
    sigma_range = (0.02, 30.0) if path.name == "ve" else (0.02, 1.0)
    options = {"samples": 3, "n_skip": 4, "burn_in": 20, "denoise_steps": 12, **options}
    return denoising_mcmc(
        model, integrate, -AMPLITUDE * PATTERN, noise, item, schedule, sigma_range, whole, **options)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("estimator", ["spectral", "fixed"])
def test_pictures_of_a_chain_have_the_law_of_the_data(name, estimator):
    """150 chains of 3 pictures. Bias allowed: 0.03 in the share of a mode, 5 % in the texture's variance.

    n_skip 1: 64 values tell the level to 9 % only, and the lowest of several levels would be too low a guess.
    """
    chains, path = 150, PATHS[name]
    options = {"sigma_estimator": estimator, "n_skip": 1, "burn_in": 30, "denoise_steps": 24}
    pictures = torch.stack([one_chain(path, k, **options)[0] for k in range(chains)])
    along = (pictures * PATTERN).mean(dim=(-1, -2, -3))
    share = (along > 0).double().mean(dim=1).numpy()  # a mode lies 0.5 from 0, its texture spreads by less than 0.2
    assert abs(share.mean() - SHARE) < 4 * share.std(ddof=1) / chains**0.5 + 0.03
    rest = pictures - AMPLITUDE * along.sign()[..., None, None, None] * PATTERN
    energy = rest.square().mean(dim=(1, 2, 3, 4)).numpy()
    assert abs(energy.mean() - 0.25) < 4 * energy.std(ddof=1) / chains**0.5 + 0.05 * 0.25


def test_a_chain_repeats_and_its_random_numbers_are_its_own():
    first, trace, kept = one_chain(PATHS["ve"], 0)
    again, trace_again, _ = one_chain(PATHS["ve"], 0)
    other, trace_other, _ = one_chain(PATHS["ve"], 1)
    assert torch.equal(first, again) and trace == trace_again
    assert not torch.allclose(first, other) and trace != trace_other
    assert first.shape == (3, 1, *FIELD) and len(trace) == 20 + 3 * 4
    for k, index in enumerate(kept):
        block = trace[20 + 4 * k : 24 + 4 * k]
        assert trace[index] == min(block) and 20 + 4 * k <= index < 24 + 4 * k


@pytest.mark.parametrize("name, sigma", [("ve", 2.5), ("flow", 0.6)])
def test_a_fixed_level_stays_in_the_models_sigma(name, sigma):
    trace = one_chain(PATHS[name], 0, sigma_estimator="fixed", start_sigma=sigma)[1]
    assert np.allclose(trace, sigma)
    spectral = one_chain(PATHS[name], 0, start_sigma=sigma)[1]
    assert len(set(spectral)) > 10 and 0.5 * sigma < np.mean(spectral) < 2 * sigma


def test_the_lowest_of_each_block_is_taken_the_latest_of_equals():
    chain = iter([("a", 3.0), ("b", 1.0), ("c", 1.0), ("d", 5.0), ("e", 4.0), ("f", 6.0)])
    assert list(islice(lowest_of_each(chain, 3), 2)) == [(2, ("c", 1.0)), (4, ("e", 4.0))]


def test_levels_for_a_state_are_karras():
    levels = karras_levels(5.0, 0.1, 6, 7.0)
    assert levels[0] == 5.0 and levels[-2] == pytest.approx(0.1) and levels[-1] == 0.0 and len(levels) == 7
    gaps = np.diff(np.array(levels[:-1]) ** (1 / 7))
    assert np.allclose(gaps, gaps[0])
    assert karras_levels(5.0, 0.1, 1, 7.0) == [5.0, 0.0] and karras_levels(0.05, 0.1, 9, 7.0) == [0.05, 0.0]


@pytest.mark.parametrize("name", PATHS)
def test_a_solver_is_started_at_the_state(name):
    g, path = generator(6), PATHS[name]
    x, clean = normal((1, 4), g), normal((1, 4), g)
    assert torch.allclose(float(path.alpha(0.3)) * clean + 0.3 * noise_in(x, clean, 0.3, path), x)


def test_calls_and_the_trace_are_told():
    assert calls(samples=3, n_skip=5, burn_in=7, denoise_steps=4, empty=False) == 34
    assert calls(samples=3, n_skip=5, burn_in=7, denoise_steps=4, empty=True) == 42
    lines = describe([0.5, 0.4], [1]).splitlines()
    assert len(lines) == 2 and "denoised" not in lines[0] and lines[1].split() == ["2", "sigma", "0.4", "denoised"]


@pytest.mark.parametrize("options, words", [
    ({"samples": 0}, "samples is 0"), ({"n_skip": 0}, "n_skip is 0"), ({"eta": -1.0}, "eta is -1.0"),
    ({"burn_in": -1}, "burn_in is -1"), ({"denoise_steps": 0}, "denoise_steps is 0"), ({"rho": 0.5}, "rho is 0.5"),
    ({"sigma_estimator": "cnn"}, "sigma_estimator is 'cnn'"), ({"start_sigma": 1.0}, "0.99 of the model's"),
    ({"start_sigma": -0.1}, "start_sigma is -0.1"),
])  # fmt: skip
def test_options_out_of_range_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        one_chain(PATHS["flow"], 0, **options)


def test_a_start_without_texture_is_refused():
    flat, still = torch.ones(1, 1, *FIELD), torch.randn(1, 1, *FIELD, generator=generator(7))
    with pytest.raises(ValueError, match="has no variation"):
        denoising_mcmc(None, None, flat, still, 0, Schedule(), (0.02, 30.0))
