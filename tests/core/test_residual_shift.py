"""ResShift: its tables, the published posterior against ours in VE form, exact answers, IR-SDE's ancestral step."""

import math

import numpy as np
import pytest
import torch
from trajectory.samplers import residual_shift
from trajectory.samplers.model import Schedule
from trajectory.samplers.noise import ItemNoise
from trajectory.samplers.paths import FLOW, VE
from trajectory.samplers.residual_shift import Levels, ResidualShift, plan_resshift, root_of, sample_resshift, sigma_of

SHAPE = (2, 3, 5, 4)


def noise_of(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(state, index, scale=0.7):
    """Stands in for a network: x0 from a scaled state and a time, not linear in either."""
    return torch.tanh(scale * state + 0.1 * index.view(-1, 1, 1, 1))


def published_chain(process, y, noises, predict=network, eta_noise=1.0):
    """The chain in the coordinates of the paper, with its marginal and posterior written out."""
    etas, kappa = [0.0, *process.etas], process.kappa
    x = y + kappa * math.sqrt(etas[-1]) * noises[0]
    for i in range(len(etas) - 1, 0, -1):
        before, eta = etas[i - 1], etas[i]
        x0 = predict(x / math.sqrt(kappa**2 * eta + 1), torch.full((len(y),), i - 1.0))
        mean = before / eta * x + (eta - before) / eta * x0
        variance = kappa**2 * before / eta * (eta - before)
        x = mean + math.sqrt(variance) * noises[len(etas) - i] if i > 1 else mean
    return x


def model_of(process, y, predict=network):
    levels = Levels(process.sigmas)
    return lambda u, sigma, **_: process.denoised(predict, u, sigma, levels.position(sigma), y)


# --- tables


@pytest.mark.parametrize("steps,roots", [
    (4, [0.1, 0.52009637, 0.76138199, 0.99]),
    (15, [0.02, 0.11716508, 0.17630456, 0.23362892, 0.29157413, 0.35100928, 0.41235614, 0.47585773, 0.54167168,
          0.60990993, 0.68065802, 0.75398526, 0.82995066, 0.90860639, 0.99]),
])  # fmt: skip
def test_the_published_tables(steps, roots):
    process = ResidualShift.published(steps)
    assert np.allclose(process.roots, roots, atol=5e-9)
    assert np.allclose(process.etas, np.square(roots), atol=1e-8)


def test_the_ve_levels_of_four_steps():
    assert np.allclose(ResidualShift.published(4).sigmas, [0.20202, 1.42590, 3.62306, 99.4975], rtol=1e-5)


def test_a_step_keeps_what_the_published_posterior_keeps():
    """Its weight of the state and its noise, for T = 4, brought to the paper's coordinates x = y + (1 - eta)(u - y)."""
    process = ResidualShift.published(4)
    plan = plan_resshift(process.run().tolist(), Schedule(VE))
    combines = [op for op in plan.operations if hasattr(op, "terms")]
    etas = [*process.etas[::-1], 0.0]
    carries, deviations = [], []
    for op, eta, after in zip(combines, etas, etas[1:], strict=False):
        terms = {slot[0]: weight for weight, slot in op.terms}
        carries.append(terms.get("x", 0.0) * (1 - after) / (1 - eta))
        deviations.append(terms.get("n", 0.0) * (1 - after))
    assert np.allclose(carries[::-1], [0, 0.03696854, 0.46661903, 0.59147285], atol=1e-6)
    assert np.allclose(deviations[::-1], [0, 0.19626833, 0.75968330, 0.97329179], atol=1e-6)


@pytest.mark.parametrize("kappa", [0.5, 2.0, 7.0])
def test_noise_level_and_shift_are_each_others_inverse(kappa):
    for root in (0.0, 1e-6, 0.02, 0.5, 0.99, 0.999999):
        assert root_of(sigma_of(root, kappa), kappa) == pytest.approx(root, rel=1e-12, abs=1e-15)
    assert root_of(1.0, kappa, 0.0) == 1.0  # pure noise of a flow


def test_a_table_of_one_step_and_tables_that_cannot_be():
    assert residual_shift.schedule(1, 0.2) == [0.99]
    assert residual_shift.schedule(5, 0.3, kappa=0.5)[0] == 0.3  # never above `smallest` itself
    for arguments in ((0, 0.2), (4, 0.0), (4, 2.5), (4, 0.99, 0.5)):
        with pytest.raises(ValueError, match="steps is 0|smallest is"):
            residual_shift.schedule(*arguments)


@pytest.mark.parametrize("steps, power", [(1000, 0.01), (1000, 0.3), (4, 10.0)])
def test_levels_fall_at_the_ends_of_the_range_of_power(steps, power):
    assert (ResidualShift(tuple(residual_shift.schedule(steps, 0.2, power=power))).run().diff() < 0).all()


@pytest.mark.parametrize("steps", [15, 1000])
def test_levels_that_float32_cannot_tell_apart_are_refused(steps):
    with pytest.raises(ValueError, match=f"power is 10.0 and steps {steps}.*choose a smaller power or fewer steps"):
        residual_shift.schedule(steps, 0.2, power=10.0)


def test_a_run_on_fewer_levels_has_the_highest_and_the_lowest():
    process = ResidualShift.published(15)
    assert torch.equal(process.run(), process.run(15)) and len(process.run()) == 16
    assert process.run(3).tolist() == pytest.approx([process.sigmas[14], process.sigmas[7], process.sigmas[0], 0.0])
    assert process.run(1).tolist() == pytest.approx([process.sigmas[14], 0.0])
    for steps in (-1, 16):
        with pytest.raises(ValueError, match=f"steps is {steps}; this network knows 15"):
            process.run(steps)


def test_positions_among_levels_are_exact_there_and_go_on_beyond_both_ends():
    for steps in (4, 15):
        levels = Levels(ResidualShift.published(steps).sigmas)
        sigmas = torch.tensor(ResidualShift.published(steps).sigmas)
        assert torch.allclose(levels.position(sigmas), torch.arange(float(steps)), atol=1e-5)
        others = torch.tensor([[1e-4, 0.03], [0.3, 1.0], [17.0, 500.0]])
        assert torch.allclose(levels.sigma(levels.position(others)), others, rtol=1e-5)
        assert (levels.position(others).flatten().diff() > 0).all()
        assert levels.sigma(levels.position(torch.zeros(1))).item() == 0.0


# --- the chain


@pytest.mark.parametrize("steps", [4, 15])
def test_the_chain_in_ve_form_is_the_published_one(steps):
    process, y = ResidualShift.published(steps), noise_of(0)
    noises = [noise_of(1 + i) for i in range(steps)]
    ours = residual_shift.restore(model_of(process, y), y, noises, process)
    torch.testing.assert_close(ours, published_chain(process, y, noises), rtol=0, atol=1e-5)


def test_a_step_is_the_bridge_of_ddim_with_the_noise_of_the_posterior():
    """x' = a' x0 + (1 - a') y + sqrt(s'^2 - tau^2) n + tau z with tau^2 = s'^2 (s^2 - s'^2) / s^2; y cancels."""
    process = ResidualShift.published(4)
    for eta, after in zip(process.etas[::-1], process.etas[-2::-1], strict=False):
        s, s_after = process.kappa * math.sqrt(eta), process.kappa * math.sqrt(after)
        tau = s_after * math.sqrt(s**2 - s_after**2) / s
        x, x0, y, z = (noise_of(seed) for seed in range(4))
        n = (x - (1 - eta) * x0 - eta * y) / s
        bridge = (1 - after) * x0 + after * y + math.sqrt(s_after**2 - tau**2) * n + tau * z
        carry = after / eta
        posterior = carry * x + (1 - carry) * x0 + process.kappa * math.sqrt(carry * (eta - after)) * z
        torch.testing.assert_close(bridge, posterior, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta_noise", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 15])
def test_a_network_that_knows_the_answer_gives_it(steps, eta_noise):
    process, x0, y = ResidualShift.published(15), noise_of(7), noise_of(8)
    noises = [noise_of(9 + i) for i in range(steps)]
    out = residual_shift.restore(lambda u, sigma: x0, y, noises, process, steps, eta_noise)
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-12)


def test_one_step_is_one_prediction():
    y, noise = noise_of(1), noise_of(2)
    process = ResidualShift(tuple(residual_shift.schedule(2, 0.2)))
    model = model_of(process, y)
    expected = model(y + process.run(1)[0] * noise, process.run(1)[:1].expand(len(y)))
    torch.testing.assert_close(residual_shift.restore(model, y, [noise], process, 1), expected, rtol=0, atol=1e-5)


def test_without_noise_the_chain_is_eulers():
    process, y, noise = ResidualShift.published(15), noise_of(3), noise_of(4)
    model, sigmas = model_of(process, y), process.run().tolist()
    u = y + torch.tensor(sigmas[0]) * noise
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        u = u + (b - a) * (u - model(u, torch.full((len(y),), a))) / a
    ours = residual_shift.restore(model, y, [noise], process, eta_noise=0.0)
    torch.testing.assert_close(ours, u, rtol=0, atol=1e-5)


def test_drawn_and_given_noise_make_the_same_chain():
    """`sample_resshift` on the MODEL and `restore` in tiles differ in nothing but where the noise comes from."""
    process, y = ResidualShift.published(4), noise_of(5).float()
    start, sigmas = noise_of(6).float(), process.run()
    x, model = y + sigmas[0] * start, model_of(process, y)
    drawn = residual_shift.sample_resshift(model, x, sigmas, {"seed": 3}, disable=True)
    source = ItemNoise(None, x, 3)
    given = residual_shift.restore(model, y, [start, *(source.draw() for _ in range(3))], process)
    torch.testing.assert_close(drawn, given, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [VE, FLOW], ids=lambda path: path.name)
@pytest.mark.parametrize("eta_noise", [0.0, 0.5, 1.0])
def test_each_step_has_the_noise_of_its_level(path, eta_noise):
    """For a perfect prediction the state's noise has the variance sigma^2 of the level that a step goes to."""
    sigmas = [1.0, 0.9, 0.9, 0.4, 0.01, 0.0] if path is FLOW else [80.0, 14.0, 14.0, 0.7, 0.02, 0.0]
    plan = plan_resshift(sigmas, Schedule(path), eta_noise=eta_noise)
    for op, a, b in zip((op for op in plan.operations if hasattr(op, "terms")), sigmas, sigmas[1:], strict=False):
        terms = {slot[0]: weight for weight, slot in op.terms}
        assert (terms.get("x", 0.0) * a) ** 2 + terms.get("n", 0.0) ** 2 == pytest.approx(b**2, rel=1e-12)
        signal = terms.get("x", 0.0) * path.alpha(a) + terms.get("D", 0.0)
        assert signal == pytest.approx(path.alpha(b), rel=1e-12)


def test_kappa_is_that_of_the_models_process():
    class Sampling:
        kappa = 5.0

    sigmas = [20.0, 3.0, 0.4, 0.0]
    own = plan_resshift(sigmas, Schedule(VE, Sampling()))
    assert own.operations == plan_resshift(sigmas, Schedule(VE), kappa=5.0).operations
    assert own.operations != plan_resshift(sigmas, Schedule(VE)).operations


def test_the_forward_process_and_the_input_have_the_variances_that_they_should():
    process = ResidualShift.published(4)
    x0, y, noise = noise_of(1), noise_of(2), noise_of(3)
    for eta, sigma in zip(process.etas, process.sigmas, strict=True):
        x = process.diffused(x0, y, eta, noise)
        torch.testing.assert_close(y + (x - y) / (1 - eta), x0 + sigma * noise, rtol=1e-9, atol=1e-9)
        assert process.input_scale(eta) == pytest.approx(1 / math.sqrt(4 * eta + 1))


def test_a_network_gets_the_nearest_whole_index_inside_its_range():
    process, seen = ResidualShift.published(4), []

    def listening(state, index):
        seen.append(index.tolist())
        return state

    model = model_of(process, torch.zeros(1, 1, 2, 2), listening)
    for sigma in (1e-3, 0.202, 1.3, 3.7, 99.0, 1e4):
        model(torch.zeros(1, 1, 2, 2), torch.tensor([sigma]))
    assert seen == [[0], [0], [1], [2], [3], [3]]


def test_options_out_of_range_are_named():
    for eta_noise in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"eta_noise is {eta_noise}; choose 0"):
            plan_resshift([1.0, 0.0], Schedule(VE), eta_noise=eta_noise)
    with pytest.raises(ValueError, match="fresh noise needs a falling schedule"):
        plan_resshift([1.0, 2.0, 0.0], Schedule(VE))
    plan_resshift([1.0, 2.0, 0.0], Schedule(VE), eta_noise=0.0)


def test_ir_sdes_posterior_is_the_ancestral_step_in_the_same_form():
    """x = mu + a (x0 - mu) + s n with s = lam sqrt(1 - a^2): its posterior sampling is euler_ancestral at s / a."""
    lam, decay = 0.2, [math.exp(-0.4 * t) for t in range(6)]
    for a_before, a in zip(decay, decay[1:], strict=False):
        if a_before == 1.0:
            continue
        x, x0, mu, z = (noise_of(seed) for seed in range(4))
        step = a / a_before
        # the published mean and variance of x_{t-1} given x_t and x0
        mean = (step * (1 - a_before**2) * (x - mu) + a_before * (1 - step**2) * (x0 - mu)) / (1 - a**2) + mu
        variance = lam**2 * (1 - a_before**2) * (1 - step**2) / (1 - a**2)
        published = mean + math.sqrt(variance) * z
        sigma, after = (lam * math.sqrt(1 - value**2) / value for value in (a, a_before))
        up = math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
        down = math.sqrt(after**2 - up**2)
        u = mu + (x - mu) / a
        ancestral = u + (u - x0) / sigma * (down - sigma) + up * z
        torch.testing.assert_close(mu + a_before * (ancestral - mu), published, rtol=0, atol=1e-12)


def test_half_precision_in_half_precision_out():
    process, y = ResidualShift.published(4), noise_of(5).bfloat16()
    out = sample_resshift(model_of(process, y.float()), y, process.run(), {"seed": 1}, disable=True)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
