"""FlowChef on a Gaussian flow whose exact answer is known: 16 numbers of an AR(1) process, of which 8 are given."""

import math
from types import SimpleNamespace

import pytest
import torch
from trajectory.samplers import flowchef
from trajectory.samplers.flowchef import Steering, kept, move, sample_flowchef, strengths, toward
from trajectory.samplers.paths import FLOW, VE

SIZE, KNOWN, ITEMS, CORRELATION = 16, 8, 2000, 0.8
INDEX = torch.arange(SIZE)
COVARIANCE = (CORRELATION ** (INDEX[:, None] - INDEX).abs()).double()
KEEP = (INDEX < KNOWN).double()


class CONST:
    """The host's name for flows."""


class Gaussian:
    """The exact denoiser of the problem, with the path where a host's model has it."""

    def __init__(self, path=FLOW):
        self.path, self.calls = path, []
        sampling = CONST() if path is FLOW else object()
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))

    def __call__(self, x, sigma, **_):
        self.calls.append(float(sigma[0]))
        s = float(sigma[0])
        alpha = float(self.path.alpha(s))
        gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + s**2 * torch.eye(SIZE).double())
        return (x.double() @ gain.T).to(x)


def even(steps):
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def noise(seed=0, items=ITEMS):
    return torch.randn(items, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(seed=1):
    return noise(seed, 1) @ torch.linalg.cholesky(COVARIANCE).T


def sample(pull, sigmas=None, x=None, path=FLOW, model=None, **options):
    options = {"max_norm": 0.0, **options}
    bound = pull if isinstance(pull, Steering) else Steering((pull,))
    sigmas = even(30) if sigmas is None else sigmas
    x = noise() if x is None else x
    return sample_flowchef(model or Gaussian(path), x, sigmas, {}, disable=True, steering=lambda *_: bound, **options)


def euler(model, x, sigmas):
    """As k-diffusion writes it."""
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - model(x, a * x.new_ones(len(x)))) / a * (b - a)
    return x


def figures(steps, runs=6, **options):
    """(RMSE of the given half, RMSE of the other half's mean, its variance as a ratio to the exact one)."""
    known = KEEP.bool()
    gain = COVARIANCE[~known][:, known] @ torch.linalg.inv(COVARIANCE[known][:, known])
    variance = (COVARIANCE[~known][:, ~known] - gain @ COVARIANCE[known][:, ~known]).diagonal()
    sums = torch.zeros(3, dtype=torch.float64)
    for run in range(runs):
        y = given(100 + run)
        out = sample(toward(y, KEEP), even(steps), noise(run), **options)
        error = (out - y)[:, known].square().mean()
        bias = (out[:, ~known].mean(0) - (gain @ y[0, known])).square().mean()
        sums += torch.stack([error, bias, (out[:, ~known].var(0) / variance).mean()]) / runs
    return float(sums[0]) ** 0.5, float(sums[1]) ** 0.5, float(sums[2])


# --- the exact Gaussian ----------------------------------------------------------------------------------------------


def test_the_known_half_is_met_the_more_the_stronger():
    errors = [figures(30, strength=strength)[0] for strength in (0.0, 0.02, 0.1, 0.3, 1.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.0 and errors[2] < 0.13 and errors[3] < 0.035 and errors[4] < 1e-12


@pytest.mark.parametrize(
    "steps, strength, most", [(30, 0.1, 0.25), (30, 0.3, 0.15), (200, 0.08, 0.11), (200, 0.3, 0.05)]
)
def test_the_unknown_half_comes_from_the_exact_posterior(steps, strength, most):
    _, bias, ratio = figures(steps, strength=strength)
    assert bias < most < 0.6 * figures(steps, strength=0.0)[1]
    assert 0.9 < ratio < 1.08


def test_strength_that_grows_with_the_signal_is_worse():
    constant, growing = (figures(30, strength=0.1, schedule=name) for name in ("constant", "1-s"))
    assert growing[1] > 1.3 * constant[1] and growing[0] > constant[0]


@pytest.mark.parametrize("steps, strength", [(20, 0.1), (30, 0.1), (30, 0.3), (200, 0.08)])
def test_strength_that_rises_to_1_ends_at_what_is_known_and_hardly_touches_the_rest(steps, strength):
    constant, rising = (figures(steps, strength=strength, schedule=name) for name in ("constant", "rise to 1"))
    assert rising[0] < 1e-12
    assert rising[1] < 1.07 * constant[1] and 0.9 < rising[2] < 1.06


def test_steering_that_stops_early_lets_go():
    assert figures(30, strength=0.1, stop=0.6)[0] > 3 * figures(30, strength=0.1)[0]


# --- identities ------------------------------------------------------------------------------------------------------


def test_strength_1_meets_the_reference_exactly_on_what_is_kept():
    y = given()
    out = sample(toward(y, KEEP), strength=1.0)
    assert (out - y)[:, :KNOWN].abs().max() < 1e-14


@pytest.mark.parametrize("path", [FLOW, VE], ids=["flow", "ve"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strength_0_is_euler_to_the_bit(path, dtype):
    sigmas = (even(12) if path is FLOW else torch.cat([torch.linspace(9, 0.1, 12), torch.zeros(1)])).to(dtype)
    x = noise().to(dtype) * sigmas[0]
    out = sample(toward(given()), sigmas, x, path, strength=0.0)
    assert torch.equal(out, euler(Gaussian(path), x, sigmas))


def test_outside_the_window_it_is_euler_to_the_bit():
    y = given()
    assert torch.equal(sample(toward(y), start=0.4, stop=0.4), euler(Gaussian(), noise(), even(30)))
    late = sample(toward(y), start=0.5, strength=0.2)
    middle = euler(Gaussian(), noise(), even(30)[:16])
    assert torch.equal(late, sample(toward(y), even(30)[15:], middle, strength=0.2))


@pytest.mark.parametrize("inner_steps", [1, 2, 7])
def test_inner_steps_under_a_mask_have_a_closed_form(inner_steps):
    y = given()
    repeated = sample(toward(y, KEEP), strength=0.1, inner_steps=inner_steps)
    once = sample(toward(y, KEEP), strength=1 - 0.9**inner_steps)
    assert (repeated - once).abs().max() < 1e-12


def test_a_ve_model_is_the_flow_of_its_shares():
    s = torch.linspace(0.98, 0, 31, dtype=torch.float64)
    sigmas, y = s / (1 - s), given()
    options = {"strength": 0.15, "inner_steps": 2, "max_norm": 0.3, "schedule": "1-s"}
    flow = sample(toward(y, KEEP), s, noise(), **options)
    ve = sample(toward(y, KEEP), sigmas, noise() * (1 + sigmas[0]), VE, **options)
    assert (ve - flow).abs().max() < 1e-10
    partly = slice(0, 20)
    flow = sample(toward(y, KEEP), s[partly], noise(), **options)
    ve = sample(toward(y, KEEP), sigmas[partly], noise() * (1 + sigmas[0]), VE, **options)
    assert (ve / (1 + sigmas[partly][-1]) - flow).abs().max() < 1e-10


def test_soft_sign_is_a_step_of_adam():
    """InstaFlow's loss 0.001 mean(m d^2) under a fresh Adam of rate 0.5 on N elements: tau is 1e-8 N / (2 c)."""
    d, count, rate = torch.linspace(-1, 1, 21, dtype=torch.float64)[None], 16384, 0.5
    variable = torch.nn.Parameter(d.clone())
    optimiser = torch.optim.Adam([variable], lr=rate)
    (0.001 * variable.square().sum() / count).backward()
    optimiser.step()
    delta = move(toward(torch.zeros(1)), d, rate, mode="soft-sign", tau=1e-8 * count / (2 * 0.001))
    assert (d + delta - variable).abs().max() < 1e-12


def test_source_steps_pull_the_whole_picture_first():
    y, seen = given(), []

    def late(denoised):
        seen.append(denoised)
        return torch.zeros_like(denoised)

    out = sample(Steering((late,), toward(y)), even(10), strength=1.0, source_steps=4)
    assert len(seen) == 6
    u = euler(Gaussian(), noise(), even(10)[:2]) - noise()  # -u / 10 of the first step
    first = []
    sample_flowchef(
        Gaussian(), noise(), even(10), {}, lambda report: first.append(report), True, strength=1.0, source_steps=1,
        steering=lambda *_: Steering((late,), toward(y)), max_norm=0.0,
    )  # fmt: skip
    assert (first[0]["denoised"] - y).abs().max() < 1e-12
    assert (first[1]["x"] - (y - 0.9 * 10 * u)).abs().max() < 1e-12  # D' + s u
    assert out.isfinite().all()


def test_heun_is_of_second_order_and_steers():
    y = given()
    exact = sample(toward(y), even(640), noise(items=8), strength=0.0, solver="heun")
    errors = [
        float((sample(toward(y), even(n), noise(items=8), strength=0.0, solver="heun") - exact).abs().max())
        for n in (20, 40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) > 1.5 and math.log2(errors[1] / errors[2]) > 1.5
    model = Gaussian()
    out = sample(toward(y, KEEP), even(10), model=model, strength=1.0, solver="heun")
    assert len(model.calls) == 19 and (out - y)[:, :KNOWN].abs().max() < 1e-12


def test_a_guider_may_choose_what_is_steered():
    y = given()

    class Two(Gaussian):
        def __call__(self, x, sigma, model_options, **_):
            denoised = super().__call__(x, sigma)
            model_options[flowchef.STEERED]["denoised"] = denoised - 0.5
            return denoised

    other = sample(toward(y), even(6), strength=0.3, model=Two())
    assert (other - sample(toward(y + 0.5), even(6), strength=0.3)).abs().max() < 1e-12


# --- the parts -------------------------------------------------------------------------------------------------------


def test_item_k_of_a_batch_is_that_item_alone():
    y, x = noise(3, 3), noise(items=3)
    scale = flowchef.LatentScale(None)

    def pulls(y):
        return Steering((toward(y, KEEP), flowchef.descending(lambda z: z**3, scale)))

    batch = sample(pulls(y), x=x, strength=0.2, max_norm=0.2)
    for k in range(3):
        assert torch.allclose(batch[k], sample(pulls(y[k : k + 1]), x=x[k : k + 1], strength=0.2, max_norm=0.2)[0])


@pytest.mark.parametrize("max_norm", [0.1, 1.0])
def test_a_move_is_at_most_max_norm_of_the_picture(max_norm):
    d = torch.tensor([[1.0, -1.0], [3.0, 3.0], [0.1, 0.0]])
    far = toward(torch.full((1, 2), 50.0))
    delta = move(far, d, 1.0, max_norm=max_norm)
    assert torch.allclose(flowchef.rms(delta), max_norm * flowchef.rms(d))
    assert torch.allclose(move(far, d, 1.0), 50 - d)
    assert torch.allclose(move(toward(d + 1e-3), d, 1.0, max_norm=max_norm), torch.full_like(d, 1e-3), atol=1e-6)


def test_a_loss_pulls_by_the_size_of_the_picture_and_no_gradient_by_nothing():
    d = torch.tensor([[1.0, -1.0], [2.0, 2.0]])
    pull = flowchef.descending(lambda z: 1e-9 * torch.tensor([[3.0, 4.0], [0.0, 0.0]]), flowchef.LatentScale(None))(d)
    assert torch.allclose(flowchef.rms(pull).flatten(), torch.tensor([1.0, 0.0]))
    assert float(pull[0, 1] / pull[0, 0]) == pytest.approx(4 / 3)


def test_a_measurement_works_in_the_scale_of_the_vae():
    """A direction of the whole way gives the latents that were measured, in the model's scale."""

    class Base:
        def process_latent_in(self, latents):
            return (latents - 0.1) * 0.36

        def process_latent_out(self, latents):
            return latents / 0.36 + 0.1

    scale = flowchef.LatentScale(SimpleNamespace(inner_model=SimpleNamespace(inner_model=Base())))
    wanted, d = noise(1, 2), noise(2, 2)
    pull = flowchef.agreeing(lambda latents: latents - wanted, scale)
    assert torch.allclose(d - pull(d), Base().process_latent_in(wanted))


def test_strengths_of_a_window():
    sigmas = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert strengths(sigmas, FLOW, 0.5) == [0.5] * 5
    assert strengths(sigmas, FLOW, 0.5, steer_last=False) == [0.5] * 4 + [0.0]
    assert strengths(sigmas, FLOW, 0.5, start=0.2, stop=0.6) == [0.0, 0.5, 0.5, 0.0, 0.0]
    assert strengths(sigmas, FLOW, 1.0, schedule="decay to 0") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert strengths(sigmas, FLOW, 1.0, schedule="1-s") == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    rising = strengths(sigmas, FLOW, 0.5, schedule="rise to 1")
    assert rising == pytest.approx([0.5 + 0.5 * s**4 for s in (0.2, 0.4, 0.6, 0.8, 1.0)]) and rising[-1] == 1
    assert strengths(sigmas, FLOW, 0.0, schedule="rise to 1") == [0.0] * 5
    assert strengths([1.0, 0.0], VE, 1.0, schedule="1-s") == [0.5]
    assert strengths([1.0], FLOW, 1.0) == strengths([], FLOW, 1.0) == []


def test_a_mask_keeps_only_cells_that_are_wholly_known():
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:17, 0:8] = 1  # a whole cell, and one row of the cell below it
    keep = kept(mask, (2, 16, 4, 4))
    assert keep.shape == (1, 1, 4, 4) and keep.unique().tolist() == [0, 1]
    assert (keep[0, 0] == 0).nonzero().tolist() == [[1, 0], [2, 0]]
    assert torch.equal(kept(mask[:, ::8, ::8], (1, 16, 4, 4))[0, 0] == 0, mask[0, ::8, ::8] == 1)
    assert torch.equal(kept(mask, (2, 16, 3, 4, 4)), keep[:, :, None])
    frames = torch.cat([mask, 1 - mask, mask])
    assert kept(frames, (1, 16, 3, 4, 4)).shape == (1, 1, 3, 4, 4)
    assert kept(frames, (3, 16, 1, 4, 4)).shape == (3, 1, 1, 4, 4)
    packed = torch.rand(1, 1, 40).round()
    assert torch.equal(kept(packed, (1, 1, 40)), 1 - packed)


def test_masks_that_do_not_fit():
    with pytest.raises(ValueError, match="mask has 3 items, but the latent has 2"):
        kept(torch.zeros(3, 8, 8), (2, 4, 8, 8))
    with pytest.raises(ValueError, match="Set Latent Noise Mask"):
        kept(torch.zeros(1, 8, 8), (1, 1, 40))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"start": 0.7, "stop": 0.3}, "start is 0.7 and stop 0.3"),
        ({"source_steps": -1}, "source_steps is -1"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"solver": "rk4"}, "solver is 'rk4'"),
        ({"mode": "adam"}, "mode is 'adam'"),
        ({"max_norm": -1.0}, "max_norm is -1"),
        ({"mode": "soft-sign", "tau": 0.0}, "tau is 0"),
        ({"mode": "soft-sign", "schedule": "rise to 1"}, "schedule is 'rise to 1', but with soft-sign"),
        ({"source_steps": 3}, "source_steps is 3, but there is no picture"),
    ],
)
def test_bad_options_name_themselves(options, words):
    model = Gaussian()
    with pytest.raises(ValueError, match=words):
        sample(toward(given()), model=model, **options)
    assert not model.calls


def test_nothing_to_steer_toward():
    with pytest.raises(ValueError, match="nothing to steer toward; connect"):
        sample(Steering())
    assert sample(Steering(), strength=0.0).isfinite().all()


@pytest.mark.parametrize("sigmas", [[], [0.7], [1.0, 1.0, 0.5, 0.5, 0.0], [0.8, 0.5], [0.9, 0.0, 0.0]], ids=str)
def test_short_and_repeated_schedules(sigmas):
    out = sample(toward(given()), torch.tensor(sigmas), noise(items=2), strength=0.2)
    assert out.isfinite().all()
    if len(sigmas) < 2:
        assert torch.equal(out, noise(items=2))


def test_half_precision_is_summed_in_float32():
    x = noise(items=4)
    low = sample(toward(given().float(), KEEP.float()), x=x.bfloat16(), strength=0.3, max_norm=1.0)
    high = sample(toward(given(), KEEP), x=x, strength=0.3, max_norm=1.0)
    assert low.dtype == torch.bfloat16 and (low.double() - high).abs().max() < 0.1


def test_every_call_and_every_pull_asks_first():
    asked = []
    sample(toward(given()), even(5), before_call=lambda: asked.append(1), inner_steps=3)
    assert len(asked) == 5 * (1 + 3)
