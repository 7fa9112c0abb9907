"""SuperDiff on Gaussian mixtures, whose predictions and log-densities are known at every noise level."""

import math
from types import SimpleNamespace

import pytest
import torch
from trajectory.samplers import superposition
from trajectory.samplers.paths import FLOW, VE
from trajectory.samplers.superposition import COMPONENTS, Record, log_density_steps, sample_superdiff

STD = 0.5
FAR = ([[-2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, -2.0]])
THREE = ([[-2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 2.0]], [[0.0, -2.0], [0.0, 1.0]])
SIGMA_MAX, SIGMA_MIN = 20.0, 0.02


class Mixture:
    """Equal Gaussians of standard deviation STD around means [K, 2]."""

    def __init__(self, means):
        self.means = torch.tensor(means, dtype=torch.float64)

    def _logits(self, y, rho):
        variance = STD**2 + rho**2
        return -(y.double()[:, None] - self.means).square().sum(-1) / (2 * variance) - math.log(variance)

    def log_density(self, y, rho=0.0):
        return torch.logsumexp(self._logits(y, rho), 1)

    def denoised(self, y, rho):
        mean = torch.softmax(self._logits(y, rho), 1) @ self.means
        return mean + STD**2 / (STD**2 + rho**2) * (y.double() - mean)


class CONST:
    """By this name a host marks a flow."""


class Guided:
    """The `model` of a sampler function, with a guider that has these components."""

    def __init__(self, mixtures, path=VE, cfg=1.0):
        sampling = CONST() if path is FLOW else None
        self.inner_model = SimpleNamespace(
            predict_components=None, inner_model=SimpleNamespace(model_sampling=sampling))
        self.mixtures, self.path, self.cfg, self.calls, self.unconditional = mixtures, path, cfg, 0, None

    def __call__(self, x, sigma, model_options, seed=None):
        assert model_options[COMPONENTS]
        self.calls += 1
        level = min(float(sigma[0]), 1 - 1e-7) if self.path is FLOW else float(sigma[0])
        alpha = float(self.path.alpha(level))
        conditional = torch.stack([m.denoised(x.double() / alpha, level / alpha) for m in self.mixtures])
        plain = self.unconditional  # by default the mean
        unconditional = plain.denoised(x.double() / alpha, level / alpha) if plain else conditional.mean(0)
        return torch.cat([conditional, unconditional + self.cfg * (conditional - unconditional)]).to(x.dtype)


def levels(steps, path=VE):
    ends = SIGMA_MAX ** (1 / 7), SIGMA_MIN ** (1 / 7)
    rho = torch.linspace(*ends, steps, dtype=torch.float64) ** 7
    rho = torch.cat([rho, rho.new_zeros(1)])
    return rho / (1 + rho) if path is FLOW else rho


def sample(means, steps=25, items=1000, path=VE, cfg=1.0, dtype=torch.float64, sigmas=None, seed=3, **options):
    """(samples, Run, mixtures)."""
    mixtures, record = [Mixture(m) for m in means], Record()
    sigmas = levels(steps, path) if sigmas is None else sigmas
    noise = torch.randn(items, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = sample_superdiff(
        Guided(mixtures, path, cfg), (noise * sigmas[0]).to(dtype), sigmas, {"seed": seed}, disable=True, record=record,
        **options)  # fmt: skip
    return out, record.run, mixtures


def true_densities(mixtures, x):
    return superposition.centred(torch.stack([m.log_density(x) for m in mixtures], dim=-1))


@pytest.mark.parametrize("integrator", superposition.INTEGRATORS)
@pytest.mark.parametrize(("steps", "error"), [(25, 2.1), (200, 0.35)])
def test_tracked_densities_are_those_of_the_samples(integrator, steps, error):
    out, run, mixtures = sample(FAR, steps, mode="OR", integrator=integrator)
    true, tracked = true_densities(mixtures, out)[:, 0] * 2, run.log_densities[-1, :, 0] * 2
    assert torch.corrcoef(torch.stack([true, tracked]))[0, 1] > 0.999
    assert (true - tracked).abs().mean() < error
    decided = true.abs() > 1
    assert decided.double().mean() > 0.9 and (true.sign() == tracked.sign())[decided].all()


def test_with_the_sign_of_the_authors_script_the_densities_are_wrong(monkeypatch):
    """Their OR adds h |v_i|^2: tracked densities then have nothing to do with the true ones, and OR does not choose."""

    def official(denoised, y, y_next, rho, rho_next):
        v, h = (y - denoised) / rho, rho - rho_next
        return superposition.centred(-((v * (y_next - y - h * v)).flatten(2).sum(-1) / rho).T)

    ours, *_ = sample(FAR, 100, mode="OR")
    monkeypatch.setattr(superposition, "log_density_steps", official)
    theirs, run, mixtures = sample(FAR, 100, mode="OR")
    true, tracked = true_densities(mixtures, theirs)[:, 0] * 2, run.log_densities[-1, :, 0] * 2
    assert (true - tracked).abs().mean() > 5
    assert to_nearest_mode(ours, mixtures) < 0.66 < 0.8 < to_nearest_mode(theirs, mixtures)


def to_nearest_mode(x, mixtures):
    modes = torch.cat([m.means for m in mixtures])
    return float((x[:, None] - modes).norm(dim=-1).min(1).values.mean())


@pytest.mark.parametrize("integrator", superposition.INTEGRATORS)
def test_or_chooses_each_fairly_and_lands_on_its_modes(integrator):
    out, _, mixtures = sample(FAR, 200, mode="OR", integrator=integrator)
    share = float((true_densities(mixtures, out)[:, 0] > 0).double().mean())
    assert abs(share - 0.5) < 0.05
    assert to_nearest_mode(out, mixtures) == pytest.approx(STD * math.sqrt(math.pi / 2), abs=0.03)


@pytest.mark.parametrize("integrator", superposition.INTEGRATORS)
@pytest.mark.parametrize("means", [FAR, THREE], ids=["two", "three"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_and_ends_where_all_are_equally_likely(integrator, means, cfg):
    out, run, mixtures = sample(means, 50, mode="AND", integrator=integrator, cfg=cfg, kappa_clip=0.0)
    # three densities in the plane: where their predictions stand in a line, what rounding would decide stays open
    assert run.log_densities.abs().max() < (1e-9 if len(means) == 2 else 0.01)
    assert torch.allclose(run.kappas.sum(-1), torch.ones(50, 1000, dtype=torch.float64), atol=1e-9)
    if len(means) == 2:
        assert true_densities(mixtures, out)[:, 0].abs().median() < 0.1


def test_and_recovers_from_clipped_weights():
    out, run, mixtures = sample(FAR, 200, mode="AND", kappa_clip=2.0)
    assert run.kappas.abs().max() <= 3 + 1e-9
    assert true_densities(mixtures, out)[:, 0].abs().median() < 0.15


def test_bias_is_in_nats_in_favour_of_a_component():
    out, run, mixtures = sample(FAR, 100, mode="AND", bias=(3.0,), kappa_clip=0.0)
    assert torch.allclose(2 * run.log_densities[-1, :, 0], torch.tensor(3.0).double())
    assert (2 * true_densities(mixtures, out)[:, 0]).median() == pytest.approx(3.0, abs=0.5)
    out, _, mixtures = sample(FAR, 100, mode="OR", bias=(0.0, 3.0))
    assert (true_densities(mixtures, out)[:, 1] > 0).double().mean() > 0.8


def noise_of_every_step(noise, monkeypatch):
    class Fixed(superposition.ItemNoise):
        def draw(self):
            return noise

    monkeypatch.setattr(superposition, "ItemNoise", Fixed)


def drift(cfg, densities, monkeypatch):
    """(log q_1 - log q_2, what the formula says) of one step at equal weights without its noise, each [B]."""
    noise_of_every_step(torch.zeros(50, 2, dtype=torch.float64), monkeypatch)
    rho, rho_next = 3.0, 2.2
    x = 3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model, record = Guided([Mixture(m) for m in FAR], cfg=cfg), Record()
    model.unconditional = Mixture([[1.0, 1.5], [0.0, -0.5]])
    sample_superdiff(
        model, x, torch.tensor([rho, rho_next], dtype=torch.float64), disable=True, mode="average",
        integrator="euler_maruyama", densities=densities, record=record)  # fmt: skip
    unconditional = model.unconditional.denoised(x, rho)
    first, second = ((m.denoised(x, rho) - unconditional).square().sum(-1) for m in model.mixtures)
    tracked = record.run.log_densities[-1]
    return tracked[:, 0] - tracked[:, 1], (cfg - 1) * (rho - rho_next) / rho**3 * (first - second)


@pytest.mark.parametrize("cfg", [1.0, 1.5, 7.5])
def test_equal_weights_keep_the_guided_densities_and_not_those_of_the_prompts(cfg, monkeypatch):
    guided, _ = drift(cfg, "guided", monkeypatch)
    assert guided.abs().max() < 1e-12
    prompts, expected = drift(cfg, "prompt", monkeypatch)
    assert torch.allclose(prompts, expected, atol=1e-12)
    assert (prompts.abs().median() > 1e-3) == (cfg > 1)


@pytest.mark.parametrize("mode", superposition.MODES)
@pytest.mark.parametrize("count", [2, 3])
def test_components_that_are_the_same_are_one(mode, count):
    """Nothing is composed then: the run is that of the one component with the same noise."""
    out, run, _ = sample([FAR[0]] * count, mode=mode, items=50)
    alone, *_ = sample([FAR[0]] * 2, mode="average", items=50)
    assert torch.equal(run.kappas, torch.full_like(run.kappas, 1 / count))
    assert torch.allclose(out, alone, atol=1e-9)


def test_two_of_three_that_are_the_same_share_a_weight():
    _, run, _ = sample([FAR[0], FAR[0], FAR[1]], mode="AND", kappa_clip=0.0)
    assert torch.allclose(run.kappas[..., 0], run.kappas[..., 1], atol=1e-6)
    assert run.log_densities.abs().max() < 1e-6


@pytest.mark.parametrize("integrator", superposition.INTEGRATORS)
@pytest.mark.parametrize("mode", superposition.MODES)
def test_a_flow_is_sampled_as_its_eps_model(mode, integrator):
    ve, ve_run, _ = sample(FAR, mode=mode, integrator=integrator)
    # an item is known by its first state, and the seed of its noise with it: the state of a flow has another scale
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixtures, record = [Mixture(m) for m in FAR], Record()
    sigmas = {path: levels(25, path) for path in (VE, FLOW)}
    results = {}
    for path in (VE, FLOW):
        model = Guided(mixtures, path)
        model.noise = noise
        results[path] = sample_superdiff(
            model, noise * sigmas[path][0], sigmas[path], {"seed": 3}, disable=True, mode=mode, integrator=integrator,
            record=record), record.run  # fmt: skip
    assert torch.allclose(results[VE][0], results[FLOW][0], atol=1e-6)
    assert torch.allclose(results[VE][1].kappas, results[FLOW][1].kappas, atol=1e-5)
    assert ve.isfinite().all() and ve_run.kappas.isfinite().all()


@pytest.mark.parametrize("integrator", superposition.INTEGRATORS)
@pytest.mark.parametrize("mode", superposition.MODES)
def test_a_flow_may_begin_at_sigma_1(mode, integrator):
    """The step from infinite noise counts, too: densities are as close as from a large but finite level."""
    sigmas = torch.cat([torch.ones(1, dtype=torch.float64), levels(60, FLOW)[5:]])
    out, run, mixtures = sample(FAR, sigmas=sigmas, path=FLOW, mode=mode, integrator=integrator)
    assert out.isfinite().all()
    true, tracked = true_densities(mixtures, out), run.log_densities[-1]
    assert (true - tracked)[:, 0].abs().mean() < 0.6


@pytest.mark.parametrize("temperature", [0.0, 1e6])
def test_the_ends_of_the_temperature(temperature):
    _, run, _ = sample(FAR, mode="OR", temperature=temperature)
    best = run.kappas[1:].amax(-1)
    assert torch.equal(best, torch.full_like(best, 0.5)) if temperature == 0 else best.median() == 1.0


def test_composing_starts_and_stops_where_told():
    _, run, _ = sample(FAR, 20, mode="AND", start_composing=0.25, stop_composing=0.5)
    composed = (run.kappas != 0.5).any(-1).any(-1)
    assert composed.tolist() == [5 <= i < 10 for i in range(20)]


def test_average_is_the_plain_sampler_of_the_mean_prediction():
    """With the ODE this is Euler's method."""
    out, _, mixtures = sample(FAR, mode="average", integrator="ode", items=20)
    sigmas = levels(25)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigmas[0]
    for a, b in zip(sigmas[:-1], sigmas[1:], strict=True):
        mean = torch.stack([m.denoised(x, float(a)) for m in mixtures]).mean(0)
        x = x + (b - a) * (x - mean) / a
    assert torch.allclose(out, x, atol=1e-9)


def test_sums_keep_the_precision_that_half_floats_lose():
    """Large latents: the factored float32 form is exact, the terms one by one in bfloat16 are not."""
    generator = torch.Generator().manual_seed(5)
    y, step, first, second = (torch.randn(1, 200_000, generator=generator, dtype=torch.float64) for _ in range(4))
    y, denoised = 5 * y, torch.stack([first, first + 1e-2 * second])
    y_next = y - 0.1 * (y - first) + 0.3 * step
    exact = log_density_steps(denoised, y, y_next, 5.0, 4.5)
    single = log_density_steps(denoised.float(), y.float(), y_next.float(), 5.0, 4.5)
    assert torch.allclose(single.double(), exact, rtol=1e-4)
    half, dy = ((y - denoised) / 5).bfloat16(), (y_next - y).bfloat16()
    terms = -((0.5 * half.square().sum(-1) + (half * dy).sum(-1)) / 5).T
    assert (superposition.centred(terms.double()) - exact).abs().max() > 0.5 * exact.abs().max()


@pytest.mark.parametrize("mode", superposition.MODES)
@pytest.mark.parametrize("integrator", superposition.INTEGRATORS)
@pytest.mark.parametrize("kappa_clip", [0.0, 5.0])
def test_item_k_of_a_batch_is_that_item_alone(mode, integrator, kappa_clip):
    mixtures, sigmas = [Mixture(m) for m in FAR], levels(10)
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigmas[0]

    def run(x):
        return sample_superdiff(
            Guided(mixtures, cfg=2.0), x, sigmas, {"seed": 1}, disable=True, mode=mode, integrator=integrator,
            kappa_clip=kappa_clip)  # fmt: skip

    for k in range(3):
        assert torch.allclose(run(noise)[k : k + 1], run(noise[k : k + 1]), atol=1e-9)


SHORT = ([], [2.0], [2.0, 0.0], [2.0, 1.0, 0.5], [1.0, 0.5], [0.0, 0.0], [2.0, 0.0, 1.0])


@pytest.mark.parametrize("sigmas", SHORT, ids=str)
@pytest.mark.parametrize("mode", superposition.MODES)
@pytest.mark.parametrize("integrator", superposition.INTEGRATORS)
def test_short_and_partial_schedules(mode, integrator, sigmas):
    model, x = Guided([Mixture(m) for m in FAR]), torch.ones(2, 2)
    out = sample_superdiff(model, x, torch.tensor(sigmas), disable=True, mode=mode, integrator=integrator)
    assert out.isfinite().all() and out.shape == x.shape
    assert torch.equal(out, x) == (len(sigmas) < 2 or sigmas[0] == 0)


@pytest.mark.parametrize(
    ("path", "sigmas", "twice"),
    [
        (VE, [2.0, 1.0, 0.5], [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]),
        (FLOW, [1.0, 0.5, 0.0], [1.0, 1.0, 1.0, 0.5, 0.5, 0.0]),
        (FLOW, [0.6, 0.3], [0.6, 0.6, 0.3, 0.3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", superposition.MODES)
@pytest.mark.parametrize("integrator", ["ancestral", "euler_maruyama", "ode"])
def test_a_level_that_repeats_changes_nothing(path, sigmas, twice, mode, integrator, monkeypatch):
    """Not the picture, nor the log-densities; with the same noise each step, which a repeated level must not add."""
    noise_of_every_step(torch.ones(2, 2, dtype=torch.float64), monkeypatch)
    x, results = torch.tensor([[0.3, -1.0], [0.5, 2.0]], dtype=torch.float64), []
    for schedule in (sigmas, twice):
        record = Record()
        out = sample_superdiff(
            Guided([Mixture(m) for m in FAR], path), x, torch.tensor(schedule, dtype=torch.float64), disable=True,
            mode=mode, integrator=integrator, record=record)  # fmt: skip
        results.append((out, record.run.log_densities[-1]))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-9)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-9)


@pytest.mark.parametrize("mode", superposition.MODES)
@pytest.mark.parametrize("sigmas", [[1.0, 1.0], [1.0, 1.0, 1.0]], ids=str)
def test_a_flow_that_ends_at_sigma_1_stays_the_noise_it_is(mode, sigmas):
    x, record = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)), Record()
    model = Guided([Mixture(m) for m in FAR], FLOW)
    assert torch.equal(sample_superdiff(model, x, torch.tensor(sigmas), disable=True, mode=mode, record=record), x)
    assert not record.run.log_densities.any() and (record.run.kappas == 0.5).all()


def test_a_model_in_bfloat16_moves_the_picture_by_its_own_rounding_alone():
    """The path between its predictions is float32: what is lost is what one rounding of each prediction loses."""
    single, run, _ = sample(FAR, 50, mode="AND", dtype=torch.float32)
    half, half_run, _ = sample(FAR, 50, mode="AND", dtype=torch.bfloat16)
    assert single.dtype == torch.float32 and half.dtype == torch.bfloat16 and half.isfinite().all()
    for tracked, bound in ((run, 1e-5), (half_run, 1e-4)):
        assert tracked.kappas.dtype == torch.float64
        assert tracked.log_densities[-1].abs().median() < bound


def test_a_cancelled_run_leaves_what_it_did():
    class Cancelled(Exception):
        pass

    model, record = Guided([Mixture(m) for m in FAR]), Record()

    def cancel():
        if model.calls == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample_superdiff(model, torch.ones(2, 2), levels(10), record=record, before_call=cancel, disable=True)
    assert model.calls == 4 and record.run.kappas.shape == record.run.log_densities.shape == (4, 2, 2)
    assert len(record.run.sigmas) == 4


def test_the_record_never_influences_a_run():
    model, record = Guided([Mixture(m) for m in FAR]), Record()
    x, sigmas = torch.ones(2, 2) * 20, levels(10)
    first = sample_superdiff(model, x, sigmas, {"seed": 1}, disable=True, record=record)
    kept = record.run
    again = sample_superdiff(model, x, sigmas, {"seed": 1}, disable=True, record=record)
    assert torch.equal(first, again) and record.run is not kept


@pytest.mark.parametrize("sigmas", [[], [2.0], [1.0, 2.0]], ids=str)
def test_a_run_of_no_steps_and_a_refused_one_leave_no_old_log(sigmas):
    model, record = Guided([Mixture(m) for m in FAR]), Record()
    x = sample_superdiff(model, torch.ones(2, 2), levels(4).float(), disable=True, record=record)
    record.keep_result(x)
    assert record.is_of(x)
    try:
        sample_superdiff(model, x, torch.tensor(sigmas), disable=True, record=record)
    except ValueError:
        assert sigmas == [1.0, 2.0]
    assert record.run is None and not record.is_of(x)


def test_a_record_knows_the_result_of_its_run():
    latents = torch.randn(2, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    record = Record(run=object())
    assert not record.is_of(latents)
    record.keep_result(latents)
    for same in (latents.clone(), latents.half(), latents.bfloat16(), latents.double()):
        assert record.is_of(same)
    for other in (latents[:1], latents[..., :39], latents.flip(0), latents + 0.1, 1.1 * latents, latents * 0):
        assert not record.is_of(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", superposition.MODES)
def test_predictions_that_are_not_finite_are_named(mode, value):
    class Overflowing(Guided):
        def __call__(self, x, sigma, **arguments):
            stack = super().__call__(x, sigma, **arguments)
            if self.calls == 3:
                stack[0, 1, 0] = value
            return stack

    model, sigmas = Overflowing([Mixture(m) for m in FAR]), levels(5)
    with pytest.raises(ValueError, match=f"NaN or infinite values at sigma {float(sigmas[2]):.4g}.*float32"):
        sample_superdiff(model, torch.ones(2, 2), sigmas, disable=True, mode=mode)


def test_a_state_on_another_path_has_the_same_share_of_noise():
    x0, n, rho = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.1, 1.0, 5.0])
    scale = rho.view(-1, 1)
    ve, flow = x0 + scale * n, (x0 + scale * n) / (1 + scale)
    there, sigma = superposition.on_other_path(ve, rho, VE, FLOW, 1.0)
    assert torch.allclose(there, flow, atol=1e-6) and torch.allclose(sigma, rho / (1 + rho))
    back, sigma = superposition.on_other_path(flow, rho / (1 + rho), FLOW, VE, 14.6)
    assert torch.allclose(back, ve, atol=1e-5) and torch.allclose(sigma, rho)
    noise, sigma = superposition.on_other_path(n, torch.ones(3), FLOW, VE, 14.6)
    assert torch.allclose(noise, 14.6 * n) and torch.equal(sigma, torch.full((3,), 14.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "XOR"}, "mode is 'XOR'"),
        ({"integrator": "heun"}, "integrator is 'heun'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"bias": (0.0, math.nan)}, "bias is 0.0, nan"),
        ({"bias": (0.0, 0.0, 1.0)}, "bias has 3 values for 2 components"),
        ({"kappa_clip": -1.0}, "kappa_clip is -1.0"),
        ({"start_composing": 0.6, "stop_composing": 0.4}, "start_composing is 0.6"),
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, r"sigmas\[1\] is 2.0"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample(FAR, 3, items=2, **options)


def test_a_guider_without_components_is_named():
    model = SimpleNamespace(inner_model=SimpleNamespace())
    with pytest.raises(ValueError, match="SuperDiff Guider"):
        sample_superdiff(model, torch.ones(1, 2), levels(3))


def test_csv_has_a_line_for_each_image_and_step():
    _, run, _ = sample(FAR, 4, items=2)
    header, *lines = superposition.csv(run).splitlines()
    assert header == "image,step,sigma,kappa_1,kappa_2,log_q_1,log_q_2" and len(lines) == 8
    assert lines[4].split(",")[:3] == ["2", "1", "20"]
