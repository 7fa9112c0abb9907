"""The image noise prior: its identities, the limits of its weight, and what it gains on Gaussians."""

import math

import pytest
import torch
from trajectory.samplers import image_prior
from trajectory.samplers.image_prior import Drift, ImagePrior, Measured, Moments
from trajectory.samplers.paths import FLOW, VE

PATHS = {"ve": VE, "flow": FLOW}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lam(sigma, tau, s, path=VE):
    tensors = (torch.tensor(v, dtype=torch.float64) for v in (sigma, tau**2))
    sigma, tau2 = tensors
    return image_prior.adaptive(sigma, path, tau2, s**2).item()


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_fusing_denoised_frames_is_fusing_noises(path):
    sigma = 0.7
    alpha = float(path.alpha(sigma))
    x, first, denoised = randn(1, 5, 2, 4, 4, seed=1), randn(1, 1, 2, 4, 4, seed=2), randn(1, 5, 2, 4, 4, seed=3)
    prior = ImagePrior(mode="paper_linear", lambda_last=0.2)
    weight = torch.linspace(1, 0.2, 5, dtype=torch.float64).view(1, 5, 1, 1, 1)
    noise = weight * (x - alpha * first) / sigma + (1 - weight) * (x - alpha * denoised) / sigma
    fused = prior(denoised, first, torch.full((1, 1), sigma), path)
    assert torch.allclose(fused, (x - sigma * noise) / alpha, atol=1e-6)


# --- the weight ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_limits_of_the_weight(path):
    top = 1.0 if path is FLOW else 1e6
    assert lam(top, 0.5, 1.0, path) == pytest.approx(1, abs=1e-9)
    assert lam(0.0, 0.5, 1.0, path) == 0
    assert lam(0.0, 0.0, 1.0, path) == lam(0.3, 0.0, 1.0, path) == lam(0.3, 0.0, 0.0, path) == 1
    assert lam(0.3, 0.5, 1e-9, path) < 1e-12


def test_a_flow_has_the_weight_of_its_ratio_of_noise_to_picture():
    assert lam(0.6, 0.5, 1.3, FLOW) == pytest.approx(lam(0.6 / 0.4, 0.5, 1.3, VE), rel=1e-12)


@pytest.mark.parametrize(
    ("s", "tau", "sigma", "weight", "plain", "fused"),
    [(1, 0.5, 1, 0.762, 0.556, 0.217), (2, 0.1, 0.3, None, 0.0878, 0.0090), (1, 0.5, 5, None, 1.190, 0.251)],
)
def test_the_weight_is_the_best_one_on_gaussians(s, tau, sigma, weight, plain, fused):
    first, moved, noise = randn(3, 400_000, seed=4)
    first, frame = s * first, s * first + tau * moved
    variance = s**2 + tau**2
    denoised = variance / (variance + sigma**2) * (frame + sigma * noise)

    def error(share):
        return (share * first + (1 - share) * denoised - frame).square().mean().item()

    best = ((frame - denoised) * (first - denoised)).mean() / (first - denoised).square().mean()
    chosen = lam(sigma, tau, s)
    assert chosen == pytest.approx(best.item(), abs=5e-3)
    assert weight is None or chosen == pytest.approx(weight, abs=5e-4)
    assert error(0) == pytest.approx(plain, rel=0.01)
    assert error(chosen) == pytest.approx(fused, rel=0.015)
    shares = torch.linspace(0, chosen, 6).tolist()
    assert all(error(a) > error(b) for a, b in zip(shares, shares[1:], strict=False))
    assert error(chosen) > 0.99 * tau**2 * sigma**2 / (tau**2 + sigma**2)  # of one that knows both frames


def test_a_guided_run_on_gaussian_clips_takes_the_first_frame_along():
    """Frame 2 given frame 1 is N(z^1, tau^2). With the prior a run ends at p noise + q z^1, a little calmer than that.

    Of dx / dlog(sigma) = x - D', with s = 1, v = 1 + tau^2, c = tau^2 v and w = sigma^2 from 0 on:
    p = sqrt(c^(v / (v - c)) / v^(c / (v - c))) and
    1 - q = p c / 2 times the integral of (w + c)^(-1 - v / (2 (v - c))) (w + v)^(-1 + c / (2 (v - c))) over w.
    """
    tau, items = 0.5, 40_000
    variance = torch.tensor([1, 1 + tau**2], dtype=torch.float64)
    first, x0 = randn(items, 1, 1, 1, 1, seed=5), randn(items, 2, 1, 1, 1, seed=6)
    sigmas = torch.cat([torch.logspace(1.5, -2.5, 400, dtype=torch.float64), torch.zeros(1)])
    prior = ImagePrior(Moments((0.0, tau**2), 1.0))

    def run(fuse):
        x = x0 * (sigmas[0] ** 2 + variance.view(2, 1, 1, 1)).sqrt()
        for a, b in zip(sigmas[:-1], sigmas[1:], strict=True):
            denoised = (variance / (variance + a**2)).view(2, 1, 1, 1) * x
            if fuse:
                denoised = prior(denoised, first, a.expand(1, 1), VE)
            x = x + (x - denoised) * (b - a) / a
        return x.flatten(1)

    plain, fused = run(False), run(True)
    assert torch.allclose(fused[:, 0], first.flatten(), atol=1e-12)
    v = 1 + tau**2
    c = tau**2 * v
    far, near = v / (v - c), c / (v - c)
    p = math.sqrt(c**far / v**near)
    w = torch.cat([torch.zeros(1), torch.logspace(-6, 9, 20_001)]).double()
    q = 1 - p * c / 2 * torch.trapezoid((w + c) ** (-1 - far / 2) * (w + v) ** (-1 + near / 2), w).item()
    correlation = [torch.corrcoef(torch.stack([first.flatten(), z[:, 1]]))[0, 1].item() for z in (plain, fused)]
    deviation = [(z[:, 1] - first.flatten()).std().item() for z in (plain, fused)]
    assert correlation == pytest.approx([0, q / math.hypot(p, q)], abs=0.02)  # 4 / sqrt(items)
    assert deviation == pytest.approx([math.sqrt(1 + v), math.hypot(p, 1 - q)], rel=0.02)
    assert 0.9 * tau < math.hypot(p, 1 - q) < tau


def test_distances_grow_from_none_to_the_motion():
    assert Drift(0.5, 1.0).of(5) == pytest.approx([0, 1 / 16, 1 / 8, 3 / 16, 1 / 4])
    assert Drift(0.5, 2.0).of(3) == pytest.approx([0, 1 / 16, 1 / 4])
    assert Drift(0.5, 0.0).of(3) == (0.0, 0.25, 0.25)
    assert Drift().of(1) == (0.0,)


def test_weights_fall_along_the_clip_and_with_the_noise():
    sigma = torch.tensor([[5.0], [0.2]])
    weights = ImagePrior().weights(sigma, VE, 6)
    assert weights.shape == (2, 6) and (weights.diff(dim=1) < 0).all() and (weights[0, 1:] > weights[1, 1:]).all()
    assert torch.allclose(ImagePrior(mode="paper_linear", strength=0.5).weights(sigma, VE, 3)[0],
                          torch.tensor([0.5, 0.275, 0.05]))  # fmt: skip
    assert (ImagePrior(mode="constant", strength=0.4).weights(sigma, VE, 3) == 0.4).all()


# --- the weight measured beside a network ----------------------------------------------------------------------------


def walks(s=1.0, taus=(0.0, 0.3, 0.6), number=2):
    """Clips [number, T, 2, 64, 64] whose frames are the first, of deviation s, and noise of deviation tau."""
    first = s * randn(number, 1, 2, 64, 64, seed=1)
    return first + torch.tensor(taus).double().view(-1, 1, 1, 1) * randn(number, len(taus), 2, 64, 64, seed=2)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_measured_beside_a_network_that_denoises_each_pixel_alone_the_weight_is_the_adaptive_one(path):
    s, taus, sigmas = 1.2, (0.0, 0.3, 0.6), (0.2, 0.5, 0.9)
    variance = torch.tensor([s**2 + tau**2 for tau in taus]).view(-1, 1, 1, 1)

    def predict(x, sigma, number):
        alpha = float(path.alpha(float(sigma)))
        return alpha * variance / (alpha**2 * variance + sigma**2) * x

    prior = image_prior.measured(walks(s, taus), predict, path, sigmas)
    for level, sigma in enumerate(sigmas):
        expected = [lam(sigma, tau, s, path) for tau in taus]
        assert prior.lam[level] == pytest.approx(expected, abs=0.03)


def test_a_network_that_knows_the_clip_is_left_alone_but_in_the_first_frame():
    clips = walks(number=1)
    close = clips.float() + 1e-3 * randn(*clips.shape, seed=3).float()
    prior = image_prior.measured(clips, lambda x, sigma, number: close, VE, (0.5, 2.0))
    assert all(row[0] == 1 and max(row[1:]) < 1e-3 for row in prior.lam)


def test_measured_weights_lie_between_those_of_the_levels_and_stay_beyond_them():
    prior = Measured((0.1, 1.0, 10.0), ((1.0, 0.0), (1.0, 0.4), (1.0, 0.8)))
    sigma = torch.tensor([[0.01], [0.1], [math.sqrt(0.1)], [1.0], [math.sqrt(10)], [99.0]])
    assert torch.allclose(prior.weights(sigma, VE, 2)[:, 1], torch.tensor([0, 0, 0.2, 0.4, 0.6, 0.8]), atol=1e-6)
    each = prior.weights(torch.tensor([[1.0, 10.0]]), VE, 2)
    assert torch.allclose(each, torch.tensor([[1.0, 0.8]]))
    assert prior.weights(sigma, VE, 1).shape == (6, 1)
    with pytest.raises(ValueError, match="prior was fitted to 2 frames, but the model samples 3"):
        prior.weights(sigma, VE, 3)


def test_a_measurement_is_the_same_each_time_and_reports_each_call():
    calls, clips = [], walks(number=2)
    inputs = clips, lambda x, sigma, number: (0.5 + number) * x, VE, (0.5, 2.0), lambda: calls.append(1)
    made = [image_prior.measured(*inputs) for _ in range(2)]
    assert made[0] == made[1] and len(calls) == 8


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="latents, or what the model makes of them, have values that are not finite"):
        image_prior.measured(walks(), lambda x, sigma, number: x * math.nan, VE, (0.5, 2.0))


# --- moments ---------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_clips():
    first = 2 * randn(3, 1, 4, 24, 24, seed=7) + torch.arange(4.0).view(4, 1, 1)
    step = torch.tensor([0, 0.3, 0.6], dtype=torch.float64).view(3, 1, 1, 1)
    found = image_prior.moments(first + step * randn(3, 3, 4, 24, 24, seed=8))
    assert found.s2 == pytest.approx(4, rel=0.05)
    assert found.tau2 == pytest.approx((0, 0.09, 0.36), rel=0.05)
    assert found.of(2) == found.tau2[:2]
    with pytest.raises(ValueError, match="prior was fitted to 3 frames, but the model samples 4"):
        found.of(4)


@pytest.mark.parametrize(("value", "words"), [(0.0, "no variance"), (math.nan, "not finite")])
def test_clips_without_moments_are_refused(value, words):
    with pytest.raises(ValueError, match=words):
        image_prior.moments(torch.full((1, 3, 4, 8, 8), value))


# --- fusion ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 13), (1, 5), (16, 3)])
def test_the_low_band_of_the_whole_picture_is_its_mean(height, width):
    x = randn(2, 3, 4, height, width, seed=9)
    assert torch.allclose(image_prior.low_band(x, 64), x.mean((-2, -1), keepdim=True).expand_as(x))
    prior = ImagePrior(band="low", low_pass=64, mode="constant", lock_first=False)
    reference = randn(1, 1, 4, height, width, seed=10)
    change = prior(x, reference, torch.ones(1, 1), VE) - x
    assert torch.allclose(change, (reference - x).mean((-2, -1), keepdim=True).expand_as(x), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 45)])
def test_the_low_band_keeps_what_is_even_and_drops_what_is_fine(height, width):
    assert torch.allclose(image_prior.low_band(torch.ones(2, height, width), 8), torch.ones(2, height, width))
    fine = (-1.0) ** torch.arange(width).expand(height, width)
    assert image_prior.low_band(fine, 8).square().mean() < 0.05


@pytest.mark.parametrize("options", [{}, {"strength": 0.3}, {"band": "low"}, {"mode": "constant"}], ids=str)
def test_the_first_frame_is_locked(options):
    clips, reference = randn(2, 4, 3, 8, 8), randn(1, 4, 3, 8, 8, seed=1)
    sigma = torch.full((2, 1), 0.4)
    assert torch.equal(ImagePrior(**options)(clips, reference, sigma, FLOW)[:, 0], reference[:, 0].expand(2, 3, 8, 8))


def test_without_motion_every_frame_is_the_reference():
    clips, reference = randn(1, 4, 3, 8, 8), randn(1, 1, 3, 8, 8, seed=1)
    still = ImagePrior(Drift(motion=0.0))
    assert torch.equal(still(clips, reference, torch.full((1, 1), 0.1), VE), reference.expand_as(clips))


def test_the_dtype_of_the_clip_stays():
    clips = randn(1, 4, 3, 8, 8).bfloat16()
    for band in image_prior.BANDS:
        assert ImagePrior(band=band)(clips, clips[:, :1], torch.ones(1, 1), VE).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (2, 4, 5, 8, 8)], ids=["batch", "time"])
def test_both_layouts_are_clips(shape):
    x = randn(*shape)
    axis = image_prior.axis_of(x)
    clips, sigma = image_prior.to_clips(x, axis), image_prior.to_clips(torch.arange(float(len(x))), axis)
    assert clips.shape[1:] == (5, 4, 8, 8) and torch.equal(image_prior.from_clips(clips, axis), x)
    assert ImagePrior().weights(sigma, VE, 5).shape == clips.shape[:2]


@pytest.mark.parametrize(("shape", "axis", "words"), [
    ((1, 1, 100), "auto", "needs frames of pictures"), ((5, 4, 8, 8), "time", "has no axis of time; choose auto or b"),
    ((1, 4, 5, 8, 8), "batch", "has an axis of time; choose auto or time"),
    ((5, 4, 8, 8), "frames", "axis is 'frames'; choose one of"),
])  # fmt: skip
def test_latents_without_frames_are_refused(shape, axis, words):
    with pytest.raises(ValueError, match=words):
        image_prior.axis_of(torch.zeros(shape), axis)


@pytest.mark.parametrize("options", [{"mode": "quadratic"}, {"band": "high"}], ids=str)
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="choose one of"):
        ImagePrior(**options)
