"""Time-Shift: exact states stay, published rules saturate, few-step errors fall, and the base where nothing shifts.

The non-Gaussian problem is a mixture of two modes, independent for each element, whose denoiser is exact.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact_models import gaussian
from trajectory.samplers.deis import sample_deis
from trajectory.samplers.dpm_solver import sample_dpm_solver
from trajectory.samplers.model import schedule_from
from trajectory.samplers.paths import FLOW, VE
from trajectory.samplers.time_shift import BASES, MODES, LabelShift, LevelMeter, moments, sample_time_shift

SHAPE = (1, 4, 64, 64)
ALPHA_BAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
MODES_AT, SHARES, STD = torch.tensor([-0.5, 2.0], dtype=torch.float64), (0.8, 0.2), 0.3


class CONST:
    """The host's name for a flow's parametrisation."""


def sampling(path, shift=1.0):
    """A model's schedule object: Stable Diffusion's table, or a flow's with a shift."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    made = CONST() if path is FLOW else SimpleNamespace()
    made.sigmas = shift * t / (1 + (shift - 1) * t) if path is FLOW else ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
    return made


class Model:
    """A denoiser with a schedule, as a host hands it over; remembers the labels it was called with."""

    def __init__(self, denoise, model_sampling):
        self.denoise, self.labels = denoise, []
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=model_sampling))

    def __call__(self, x, sigma, **_):
        self.labels.append(sigma.clone())
        return self.denoise(x, sigma)


def mixture(path):
    def denoise(x, sigma):
        sigma = sigma.view(-1, *[1] * x.ndim)
        alpha = 1 - sigma if path is FLOW else torch.ones_like(sigma)
        v = alpha**2 * STD**2 + sigma**2
        away = x.unsqueeze(-1) - alpha * MODES_AT
        weights = torch.softmax(torch.tensor(SHARES, dtype=torch.float64).log() - away**2 / (2 * v), -1)
        return (weights * (MODES_AT + alpha * STD**2 / v * away)).sum(-1)

    return denoise


def mixture_samples(seed, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(torch.tensor(SHARES), math.prod(shape), True, generator=generator).view(shape)
    return MODES_AT[which] + STD * torch.randn(shape, generator=generator, dtype=torch.float64)


def sigmas_of(model_sampling, steps, kind="simple"):
    table = model_sampling.sigmas
    if kind == "simple":
        levels = [float(table[-1 - int(i * 1000 / steps)]) for i in range(steps)]
    elif kind == "normal":
        levels = [float(schedule_from(model_sampling).time.sigma(t)) for t in np.linspace(1, 0.001, steps)]
    else:  # karras
        high, low = (float(table[i]) ** (1 / 7) for i in (-1, 0))
        levels = [(high + r * (low - high)) ** 7 for r in np.linspace(0, 1, steps)]
    return torch.tensor([*levels, 0.0], dtype=torch.float64)


def unit_noise(shape=SHAPE, seed=0):
    """Noise of sample variance 1."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z - z.flatten(1).mean(1).view(-1, 1, 1, 1)) / z.flatten(1).std(1).view(-1, 1, 1, 1)


def run(model, x, sigmas, **options):
    return sample_time_shift(model, x, sigmas, {"seed": 3}, disable=True, **options)


# the measurement


@pytest.mark.parametrize("path, shift", [(VE, 1.0), (FLOW, 1.0), (FLOW, 3.0)], ids=["ve", "flow", "flow-3"])
@pytest.mark.parametrize("v0", [0.05, 0.25, 1.0, 4.0])
def test_an_exact_trajectory_is_not_shifted(path, shift, v0):
    schedule = schedule_from(sampling(path, shift))
    meter, z = LevelMeter(schedule, "corrected", 200, 0.0, per_channel=False), unit_noise()
    for sigma in sigmas_of(schedule.model_sampling, 12)[:-1].tolist():
        alpha = float(path.alpha(sigma))
        x = z * math.sqrt(alpha**2 * v0 + sigma**2)
        (level,) = meter.levels(x, [sigma])
        assert level == pytest.approx(sigma, rel=1e-6)
        denoised = gaussian(path, 0.0, v0**0.5)(x, torch.tensor([sigma], dtype=torch.float64))
        assert moments(x, denoised)[0][0] == pytest.approx(alpha * v0, rel=1e-9)
        meter.learn(x, [sigma], denoised)


@pytest.mark.parametrize("path", [VE, FLOW], ids=["ve", "flow"])
def test_the_level_of_a_state_with_other_noise_is_found(path):
    schedule, v0, sigma = schedule_from(sampling(path)), 0.5, 0.8
    meter = LevelMeter(schedule, "corrected", 400, 0.0, per_channel=False)
    first, clean, noise = 0.9, unit_noise(seed=1) * v0**0.5, unit_noise(seed=2)
    noise = noise - (noise * clean).mean() / (clean**2).mean() * clean  # without a chance correlation
    noise = noise / noise.std()

    def state(rho):
        return float(path.alpha(sigma)) * (clean + rho * noise)

    meter.levels(float(path.alpha(first)) * clean + first * noise, [first])
    meter.learn(float(path.alpha(first)) * clean + first * noise, [first], clean)
    rho = 0.9 * sigma / float(path.alpha(sigma))
    (level,) = meter.levels(state(rho), [sigma])
    assert level / float(path.alpha(level)) == pytest.approx(rho, rel=1e-6)


@pytest.mark.parametrize("v0, window, share", [(0.25, 2, 1.0), (0.25, 20, 1.0), (1.0, 20, 1.0), (1.0, 200, 1.0)])
def test_the_published_rule_takes_exact_states_to_the_edge_of_its_window(v0, window, share):
    """Why 'paper' is not the default: exact states have the variance abar v0 + 1 - abar, not 1 - abar."""
    schedule, z = schedule_from(sampling(VE)), unit_noise()
    meter = LevelMeter(schedule, "paper", window, 0.0)
    sigmas = sigmas_of(schedule.model_sampling, 10)[1:-1].tolist()
    meter.levels(z, [14.0])
    levels = [meter.levels(z * math.sqrt(v0 + sigma**2), [sigma])[0] for sigma in sigmas]
    edges = [float(schedule.time.sigma(schedule.time(sigma) + window / 2000)) for sigma in sigmas]
    at_edge = np.mean([level == pytest.approx(edge, rel=1e-9) for level, edge in zip(levels, edges, strict=True)])
    assert at_edge == share


def test_moments_count_what_the_mask_leaves():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(2, 1, 5, 6, dtype=torch.float64)
    mask[0, :, :3], mask[1, :, 1:] = 1.0, 1.0
    covariances, sizes = moments(x, y, mask)
    assert sizes == [54, 72]
    for k, rows in enumerate((slice(0, 3), slice(1, 5))):
        expected = np.cov(x[k, :, rows].flatten(), y[k, :, rows].flatten())[0, 1]
        assert covariances[k] == pytest.approx(expected)
    assert moments(x, x)[0] == pytest.approx(x.flatten(1).var(1).tolist())
    assert moments(x, x, per_channel=True)[0] == pytest.approx(x.flatten(2).var(2).mean(1).tolist())
    assert all(map(math.isnan, moments(x, x, torch.zeros(1, 1, 1, 1))[0]))


def test_a_mask_without_an_inside_shifts_nothing():
    meter = LevelMeter(schedule_from(sampling(VE)), "corrected", 40, 0.0, mask=torch.zeros(1, 1, 64, 64))
    for sigma in (5.0, 4.0):
        assert meter.levels(unit_noise() * 9, [sigma]) == [sigma]
        meter.learn(unit_noise() * 9, [sigma], unit_noise())


@pytest.mark.parametrize("elements, shifted", [(100, False), (40_000, True)])
def test_with_fresh_noise_a_shift_below_its_standard_error_is_none(elements, shifted):
    """5 % too much variance is a third of the standard error of 100 elements and seven of 40000."""
    meter = LevelMeter(schedule_from(sampling(VE)), "corrected", 200, 0.0, stochastic=True)
    z = unit_noise((1, 1, 1, elements))
    meter.levels(z * math.sqrt(26), [5.0])
    meter.learn(z * math.sqrt(26), [5.0], z / math.sqrt(26))
    (level,) = meter.levels(z * math.sqrt(17 * 1.05), [4.0])
    assert (level > 4.05) == shifted and (level == pytest.approx(4.0)) != shifted


# the sampler


@pytest.mark.parametrize("path", [VE, FLOW], ids=["ve", "flow"])
@pytest.mark.parametrize("options", [{"window": 0}, {"cutoff": 1.0}], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_without_a_shift_it_is_the_base_to_the_last_bit(path, options, base):
    model_sampling = sampling(path)
    x, sigmas = unit_noise() * float(sigmas_of(model_sampling, 9)[0]), sigmas_of(model_sampling, 9)
    solvers = {
        "euler": lambda m: sample_dpm_solver(m, x, sigmas, {"seed": 3}, order=1),
        "ancestral": lambda m: sample_dpm_solver(m, x, sigmas, {"seed": 3}, order=1, tau=1.0),
        "dpmpp_2m": lambda m: sample_dpm_solver(m, x, sigmas, variant="midpoint", lower_order_final="off"),
        "ipndm": lambda m: sample_deis(m, x, sigmas, variant="iPNDM", guard=0.0),
    }
    expected = solvers[base](Model(mixture(path), model_sampling))
    assert torch.equal(run(Model(mixture(path), model_sampling), x, sigmas, base=base, **options), expected)


@pytest.mark.parametrize("path", [VE, FLOW], ids=["ve", "flow"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("base", BASES)
def test_the_loop_of_levels_takes_the_same_steps_where_it_shifts_nothing(path, mode, base):
    model_sampling = sampling(path)
    sigmas = sigmas_of(model_sampling, 9)
    x = unit_noise() * float(sigmas[0])
    plain = run(Model(mixture(path), model_sampling), x, sigmas, base=base, window=0)
    # below the cutoff nothing is shifted; the first call has time 1 and only 'official-DEIS' may shift it
    own = run(Model(mixture(path), model_sampling), x, sigmas[1:], base=base, mode=mode, cutoff=0.999)
    assert torch.allclose(own, run(Model(mixture(path), model_sampling), x, sigmas[1:], base=base, window=0), atol=1e-9)
    assert not torch.allclose(run(Model(mixture(path), model_sampling), x, sigmas, base=base, mode=mode), plain)


def wasserstein(x, y):
    return float((x.flatten().sort().values - y.flatten().sort().values).abs().mean())


def few_step_errors(path, shift, steps, **options):
    """W1 to the data of Euler without and with a shift."""
    model_sampling = sampling(path, shift)
    sigmas = sigmas_of(model_sampling, steps, "karras" if path is VE else "simple")
    shape = (1, 4, 256, 256)  # so many that the distance of two samples of the data themselves is small
    x = float(path.alpha(float(sigmas[0]))) * mixture_samples(1, shape) + float(sigmas[0]) * unit_noise(shape)
    target = mixture_samples(2, shape)
    made = (run(Model(mixture(path), model_sampling), x, sigmas, **one) for one in ({"window": 0}, options))
    return [wasserstein(out, target) for out in made]


@pytest.mark.parametrize("steps, published", [(5, 0.127 / 0.174), (8, 0.060 / 0.092), (10, 0.047 / 0.070),
                                              (20, 0.027 / 0.042)])  # fmt: skip
def test_the_corrected_rule_gains_on_a_mixture(steps, published):
    """The ratios of W1 that a wider window reaches on VE; the narrow default gains in part."""
    plain, shifted = few_step_errors(VE, 1.0, steps, window=100, cutoff=0.1)
    assert shifted < (published + 0.03) * plain
    plain, shifted = few_step_errors(VE, 1.0, steps)
    assert shifted < 0.87 * plain


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [5, 8, 10, 20])
def test_the_corrected_rule_gains_on_a_flow(steps, shift):
    plain, shifted = few_step_errors(FLOW, shift, steps)
    assert shifted < 0.95 * plain


def test_the_published_rule_loses_on_a_mixture():
    for steps in (5, 8, 10):
        plain, shifted = few_step_errors(VE, 1.0, steps, mode="paper")
        assert shifted > plain


@pytest.mark.parametrize("base", ["euler", "ancestral"])
@pytest.mark.parametrize("path, shift, kind", [
    (VE, 1.0, "karras"), (VE, 1.0, "normal"), (FLOW, 1.0, "simple"), (FLOW, 3.0, "simple"),
])  # fmt: skip
def test_a_gaussian_never_comes_out_worse(base, path, shift, kind):
    """The relative error of the final deviation, whose exact value is sqrt(v0)."""
    model_sampling = sampling(path, shift)
    for v0 in (0.05, 0.25, 1.0, 4.0):
        for steps in (5, 8, 10, 20):
            sigmas = sigmas_of(model_sampling, steps, kind)
            x = unit_noise() * math.hypot(float(path.alpha(float(sigmas[0]))) * v0**0.5, float(sigmas[0]))
            plain, shifted = (
                abs(float(run(Model(gaussian(path, 0.0, v0**0.5), model_sampling), x, sigmas, base=base, **o).std())
                    / v0**0.5 - 1) for o in ({"window": 0}, {}))  # fmt: skip
            assert shifted < plain + 1e-3, (v0, steps)


def labelled(model, model_sampling, **options):
    """A denoiser whose label alone is shifted, as the model patch does it."""
    run = LabelShift(LevelMeter(schedule_from(model_sampling), stochastic=True, **options))

    def denoise(x, sigma, **_):
        return run.predict(lambda: run.call(model, x, sigma, len(x)), x, sigma)

    denoise.inner_model = model.inner_model
    return denoise


@pytest.mark.parametrize("path, shift, kind", [
    (VE, 1.0, "karras"), (VE, 1.0, "normal"), (FLOW, 1.0, "simple"), (FLOW, 3.0, "simple"),
])  # fmt: skip
def test_the_label_alone_gains_too(path, shift, kind):
    model_sampling = sampling(path, shift)
    for v0 in (0.25, 1.0, 4.0):
        for steps in (5, 10, 20):
            sigmas = sigmas_of(model_sampling, steps, kind)
            x = unit_noise() * math.hypot(float(path.alpha(float(sigmas[0]))) * v0**0.5, float(sigmas[0]))
            model = Model(gaussian(path, 0.0, v0**0.5), model_sampling)
            patched = labelled(model, model_sampling, mode="corrected", window=40, cutoff=0.3)
            plain, shifted = (
                abs(float(sample_dpm_solver(m, x, sigmas, disable=True, order=1).std()) / v0**0.5 - 1)
                for m in (model, patched)
            )
            assert shifted < plain + 1e-3, (v0, steps)


def test_a_published_label_shift_is_the_samplers():
    """'official-DEIS' is label-only, so the patch under Euler is the sampler with that base."""
    for path in (VE, FLOW):
        model_sampling = sampling(path)
        sigmas, model = sigmas_of(model_sampling, 8), Model(mixture(path), model_sampling)
        x = unit_noise() * float(sigmas[0])
        patched = labelled(model, model_sampling, mode="official-DEIS", window=40, cutoff=0.3)
        own = run(model, x, sigmas, mode="official-DEIS")
        assert torch.allclose(sample_dpm_solver(patched, x, sigmas, order=1), own, atol=1e-9)


def test_a_call_for_other_items_is_left_alone():
    shift = LabelShift(LevelMeter(schedule_from(sampling(VE)), "paper", 200, 0.0))
    told, sigma = [], torch.tensor([4.0, 4.0])

    def network(x, sigma):
        told.append(sigma)
        return x

    def guided():
        return shift.call(network, x[:1], sigma[:1], 1)

    x = unit_noise((2, 4, 8, 8)) * 4
    for _ in range(2):
        shift.predict(guided, x, sigma)
    shift.call(network, x, torch.tensor([3.0, 3.0]), 2)
    assert [t.tolist() for t in told] == [[4.0], [4.0], [3.0, 3.0]]


def test_labels_stay_in_the_window_and_below_the_cutoff_on_the_schedule():
    model_sampling = sampling(VE)
    model, sigmas = Model(mixture(VE), model_sampling), sigmas_of(model_sampling, 10)
    time = schedule_from(model_sampling).time
    run(model, unit_noise() * float(sigmas[0]), sigmas, window=30, cutoff=0.45)
    shifts = np.array([time(float(label)) - time(float(s)) for label, s in zip(model.labels, sigmas, strict=False)])
    assert np.abs(shifts).max() <= 0.015 + 1e-9 and np.abs(shifts).max() > 1e-4
    low = np.array([time(float(s)) <= 0.45 for s in sigmas[:-1]])
    assert (shifts[low] == 0).all() and shifts[0] == 0


def test_each_item_has_its_own_levels():
    model_sampling = sampling(VE)
    sigmas = sigmas_of(model_sampling, 8)
    x = torch.cat([mixture_samples(1), 0.1 * mixture_samples(2)]) + float(sigmas[0]) * unit_noise()
    both, model = Model(mixture(VE), model_sampling), Model(mixture(VE), model_sampling)
    out = run(both, x, sigmas)
    assert torch.allclose(out[1:], run(model, x[1:], sigmas), atol=1e-9)
    assert any(label[0] != label[1] for label in both.labels)


@pytest.mark.parametrize("options, words", [
    ({"mode": "guess"}, "mode is 'guess'"), ({"base": "heun"}, "base is 'heun'"), ({"window": -1}, "window is -1"),
    ({"cutoff": 2.0}, "cutoff is 2.0"), ({}, "set window to 0"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named_with_the_fix(options, words):
    with pytest.raises(ValueError, match=words):
        sample_time_shift(lambda x, sigma: x, torch.ones(1, 4), torch.tensor([1.0, 0.0]), **options)
