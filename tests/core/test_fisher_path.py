"""Fisher length against quadrature and closed forms; schedules on both paths."""

import numpy as np
import pytest
from exact_models import PATHS
from scipy.integrate import quad
from trajectory.samplers.model import Schedule
from trajectory.samplers.schedules import fisher_length, fisher_path
from trajectory.samplers.spectrum import Spectrum, power_law


class Discrete:
    """The scaled-linear VP table of Stable Diffusion in VE form."""

    sigmas = np.sqrt(1 / np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) - 1)


class CONST:
    """A flow's table with shift 3, as the host builds it."""

    sigmas = 3 * (t := np.arange(1, 1001) / 1000) / (1 + 2 * t)


def schedule(name):
    return Schedule(PATHS[name], {"ve": Discrete, "flow": CONST}[name])


def two_modes(low, high, count=(1, 1)):
    return Spectrum(np.array([0.0, 0.5]), np.array([low, high]), np.array(count))


def by_quadrature(spectrum, a, b):
    """The definition, integrated over varsigma itself."""
    share = spectrum.count / spectrum.count.sum()

    def speed(v):
        s = spectrum.power
        return np.sqrt(0.5 * (share * (2 * v * (1 - s) / ((s + v**2) * (1 + v**2))) ** 2).sum())

    return quad(speed, a, b, epsabs=1e-11, epsrel=1e-11, limit=400)[0]


def test_one_frequency_has_the_length_of_its_log_covariance():
    """With one S the length is |log C(b) / C(a)| / sqrt(2); with a second mode at S = 1, half of the square."""
    u = np.linspace(np.log(0.03), np.log(14.0), 4000)
    c = (4 + np.exp(2 * u[[0, -1]])) / (1 + np.exp(2 * u[[0, -1]]))
    expected = np.log(c[0] / c[1]) / np.sqrt(2)
    assert fisher_length(u, two_modes(4.0, 4.0))[-1] == pytest.approx(expected, rel=1e-6)
    assert fisher_length(u, two_modes(4.0, 1.0))[-1] == pytest.approx(expected / np.sqrt(2), rel=1e-6)
    assert fisher_length(u, two_modes(4.0, 1.0, (1, 3)))[-1] == pytest.approx(expected / 2, rel=1e-6)


@pytest.mark.parametrize("spectrum", [two_modes(1.8, 0.2), power_law(2.0, (16, 16))], ids=["two", "law"])
def test_length_is_the_quadrature_of_its_definition(spectrum):
    u = np.linspace(np.log(0.02), np.log(20.0), 4000)
    length = fisher_length(u, spectrum)
    for k in (500, 2000, 3999):
        assert length[k] == pytest.approx(by_quadrature(spectrum, np.exp(u[0]), np.exp(u[k])), rel=1e-5)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("spectrum", [two_modes(1.8, 0.2), power_law(2.0, (16, 16))], ids=["two", "law"])
def test_levels_are_equally_far_apart(name, spectrum):
    made = schedule(name)
    sigmas = np.array(fisher_path(made, spectrum, 8, append_zero=False))
    varsigma = np.exp(-made.path.lam(np.minimum(sigmas, 0.999) if name == "flow" else sigmas))
    pieces = [by_quadrature(spectrum, b, a) for a, b in zip(varsigma[:-1], varsigma[1:], strict=True)]
    assert np.allclose(pieces, pieces[0], rtol=1e-4)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_shape_and_ends(name, exponent, steps):
    made, spectrum = schedule(name), power_law(exponent, (64, 64))
    table = made.model_sampling.sigmas
    sigmas = fisher_path(made, spectrum, steps)
    assert len(sigmas) == steps + 1 and (np.diff(sigmas) < 0).all()
    assert sigmas[0] == table[-1] and sigmas[-1] == 0.0
    open_end = fisher_path(made, spectrum, steps, append_zero=False)
    assert len(open_end) == steps + 1 and open_end[-1] == pytest.approx(table[0], rel=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_white_data_fall_back_to_even_log_snr(name):
    made = schedule(name)
    sigmas = fisher_path(made, power_law(0.0, (64, 64)), 12, append_zero=False)
    gaps = np.diff(made.path.lam(np.minimum(sigmas, 0.999) if name == "flow" else np.array(sigmas)))
    assert np.allclose(gaps, gaps[0], rtol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_the_unit_of_the_latent_does_not_matter(name):
    law = power_law(2.0, (16, 16))
    louder = Spectrum(law.frequency, 7 * law.power, law.count)
    assert np.allclose(fisher_path(schedule(name), louder, 9), fisher_path(schedule(name), law, 9))


def test_denoise_keeps_the_end_of_a_longer_schedule():
    made, law = schedule("ve"), power_law(2.0, (16, 16))
    assert fisher_path(made, law, 10, denoise=0.5) == fisher_path(made, law, 20)[-11:]
    assert fisher_path(made, law, 10, denoise=0.0) == []


def test_what_makes_no_schedule_is_named():
    with pytest.raises(ValueError, match="no table of sigmas"):
        fisher_path(Schedule(), power_law(2.0, (8, 8)), 5)
    with pytest.raises(ValueError, match="constant"):
        fisher_path(schedule("ve"), two_modes(0.0, 0.0), 5)
