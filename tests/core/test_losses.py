"""Losses: their gradients, what they measure, and that items of a batch do not touch."""

import pytest
import torch
from trajectory.operators import losses
from trajectory.operators.base import Operator
from trajectory.operators.losses import Loss
from trajectory.operators.measurement import Measurement, rms


def picture(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Shrunk(Operator):
    """Means of 2 x 2 pixels."""

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 2)


MASK = torch.zeros(1, 1, 8, 8)
MASK[..., 2:6, 1:5] = 1.0
PROJECTION = picture(12, 3 * 64, seed=8) - 0.5
EMBED, HIDDEN = (lambda x: x.flatten(1) @ PROJECTION.T.to(x)), (lambda x: (
    x.flatten(1) @ PROJECTION.T.to(x)).sin().view(len(x), 1, 2, 6))  # fmt: skip
MEASUREMENT = Measurement(Shrunk(), picture(1, 3, 4, 4, seed=3).float(), 0.0, (1, 3, 8, 8))

LOSSES = {
    "mean": losses.mean_colour([0.9, 0.4, 0.1]),
    "mean, masked": losses.mean_colour([0.9, 0.4, 0.1], MASK),
    "palette": losses.palette([[0.9, 0.4, 0.1], [0.0, 0.1, 0.3]]),
    "palette, masked": losses.palette([[0.9, 0.4, 0.1], [0.0, 0.1, 0.3]], MASK),
    "histogram": losses.histogram(picture(2, 3, 5, 7, seed=4)),
    "histogram, masked": losses.histogram(picture(2, 3, 5, 7, seed=4), MASK),
    "similarity": losses.similarity(EMBED, picture(2, 3, 8, 8, seed=5)),
    "measurement": losses.measured(MEASUREMENT),
    "sum": losses.weighted_sum([(losses.mean_colour([1.0, 0.0, 0.0]), 0.5), (losses.measured(MEASUREMENT), 2.0)]),
}  # fmt: skip
STYLE = losses.style(HIDDEN, picture(2, 3, 8, 8, seed=6))  # in float32, as networks compute


def gradient_of(loss, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name):
    x = picture(1, 3, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (x,), eps=1e-6, atol=1e-6)


def test_the_gradient_of_style_is_that_of_finite_differences():
    x = picture(1, 3, 8, 8).float()
    gradient = gradient_of(STYLE, x)
    step = 1e-2 * gradient / gradient.norm()
    assert float((STYLE(x + step) - STYLE(x - step)) / 2) == pytest.approx(float((gradient * step).sum()), rel=1e-2)


@pytest.mark.parametrize("loss", [*LOSSES.values(), STYLE], ids=[*LOSSES, "style"])
def test_items_of_a_batch_do_not_touch(loss):
    x = picture(2, 3, 8, 8).float()
    assert loss(x).shape == (2,)
    assert torch.allclose(loss(x), torch.cat([loss(item) for item in x.split(1)]), atol=1e-6)
    moved = loss.direction(x)
    assert torch.allclose(moved, torch.cat([loss.direction(item) for item in x.split(1)]), atol=1e-5)
    assert moved.dtype == torch.float32


@pytest.mark.parametrize("loss", [*LOSSES.values(), STYLE], ids=[*LOSSES, "style"])
def test_a_small_step_along_the_direction_lowers_the_loss(loss):
    x = picture(2, 3, 8, 8)
    moved = loss.direction(x)
    assert torch.allclose(rms(moved), rms(x))
    assert (loss(x - 1e-3 * moved) < loss(x)).all()


@pytest.mark.parametrize("loss", [*LOSSES.values(), STYLE], ids=[*LOSSES, "style"])
def test_in_inference_mode_as_hosts_run_nodes(loss):
    expected = loss.direction(picture(1, 3, 8, 8))
    with torch.inference_mode():
        assert torch.allclose(loss.direction(picture(1, 3, 8, 8)), expected)


def test_losses_made_in_inference_mode_have_gradients():
    with torch.inference_mode():
        made = [losses.mean_colour(torch.rand(3), torch.ones(1, 1, 8, 8)), losses.palette(torch.rand(2, 3)),
                losses.histogram(torch.rand(1, 3, 4, 4)), losses.similarity(EMBED, torch.rand(1, 3, 8, 8)),
                losses.style(HIDDEN, torch.rand(1, 3, 8, 8))]  # fmt: skip
    for loss in made:
        assert loss.direction(picture(1, 3, 8, 8).float()).any()


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_the_direction_does_not_depend_on_the_size_of_the_loss(scale):
    x = picture(2, 3, 8, 8).float()
    base = LOSSES["mean"]
    scaled = Loss(lambda pixels: scale * base(pixels))
    assert torch.allclose(scaled.direction(x), base.direction(x), atol=1e-5)


def test_where_the_gradient_is_zero_nothing_moves():
    x = torch.stack([torch.full((3, 8, 8), 0.5), picture(3, 8, 8).float()])
    moved = losses.mean_colour([0.5, 0.5, 0.5]).direction(x)
    assert not moved[0].any() and moved[1].any()


def test_the_direction_goes_through_a_decoder():
    """Of latents in which pixels are three times as large."""
    x = picture(1, 3, 8, 8)
    base = LOSSES["measurement"]
    expected = base.direction(3 * x)
    assert torch.allclose(base.direction(x, lambda z: 3 * z), expected / 3)


# --- what each one measures ------------------------------------------------------------------------------------------


def descended(loss, x, steps=300, rate=0.02):
    for _ in range(steps):
        x = x - rate * loss.direction(x)
    return x


def test_mean_colour_is_reached():
    x = descended(LOSSES["mean"], picture(1, 3, 8, 8))
    assert torch.allclose(x.mean((2, 3)), torch.tensor([[0.9, 0.4, 0.1]], dtype=x.dtype), atol=0.02)


def test_a_mask_keeps_the_rest():
    x = picture(1, 3, 8, 8)
    for name in ("mean, masked", "palette, masked", "histogram, masked"):
        moved = LOSSES[name].direction(x)
        assert not (moved * (1 - MASK)).any() and moved.any()


def test_a_mask_of_another_size_is_resized():
    large = torch.nn.functional.interpolate(MASK, (32, 32))
    x = picture(1, 3, 8, 8)
    for make in (lambda mask: losses.mean_colour([1.0, 0.0, 0.0], mask), lambda mask: losses.histogram(x, mask)):
        assert torch.allclose(make(large)(x * 0.9), make(MASK)(x * 0.9))


def test_every_pixel_goes_to_its_nearest_colour_of_a_palette():
    colours = torch.tensor([[0.9, 0.4, 0.1], [0.0, 0.1, 0.3]], dtype=torch.float64)
    x = picture(1, 3, 8, 8)
    before = torch.cdist(x[0].flatten(1).T, colours).argmin(1)
    gradient = gradient_of(LOSSES["palette"], x)[0].flatten(1).T
    towards = x[0].flatten(1).T - colours[before]
    agree = torch.nn.functional.cosine_similarity(gradient, towards, dim=1)
    assert (agree > 0.9).double().mean() > 0.8  # pixels half-way between two colours share both
    assert losses.palette([[0.3, 0.3, 0.3]])(x) == pytest.approx(float((x - 0.3).square().sum(1).mean()))


def test_histogram_forgets_where_colours_are():
    reference = picture(1, 3, 8, 8)
    loss = losses.histogram(reference)
    shuffled = reference.flatten(2)[..., torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert float(loss(shuffled.view(1, 3, 8, 8))) == pytest.approx(0, abs=1e-12)
    shifted = losses.histogram(reference)(reference + 0.1)  # every direction d moves by 0.1 sum(d)
    assert float(shifted) == pytest.approx(float((0.1 * losses._DIRECTIONS.sum(1)).square().mean()), rel=1e-5)


def test_measurement_is_zero_for_what_was_measured():
    x = picture(2, 3, 8, 8)
    loss = losses.measured(Measurement(Shrunk(), Shrunk().A(x), 0.0, (2, 3, 8, 8)))
    assert not loss(x).any() and torch.allclose(loss(x + 0.1), torch.full((2,), 0.01, dtype=x.dtype))


def test_operators_that_mix_items_share_one_loss():
    class Difference(Shrunk):
        mixes_items = True

        def forward(self, x):
            return x[1:] - x[:-1]

    x = picture(3, 3, 8, 8)
    loss = losses.measured(Measurement(Difference(), torch.zeros(2, 3, 8, 8), 0.0, (3, 3, 8, 8)))
    assert torch.allclose(loss(x), (x[1:] - x[:-1]).square().mean().expand(3))


def test_a_sum_weighs():
    x = picture(2, 3, 8, 8)
    both = losses.weighted_sum([(LOSSES["mean"], 0.5), (LOSSES["measurement"], -2.0)])
    assert torch.allclose(both(x), 0.5 * LOSSES["mean"](x) - 2 * LOSSES["measurement"](x))


def test_similarity_and_style_vanish_at_their_own_pictures():
    x = picture(1, 3, 8, 8).float()
    assert float(losses.similarity(EMBED, x)(x)) == pytest.approx(0, abs=1e-6)
    assert float(losses.style(HIDDEN, x)(x)) == pytest.approx(0, abs=1e-6)


def test_vision_pixels_fill_the_square_and_are_normalised():
    flat = torch.full((1, 3, 40, 64), 0.5)
    seen = losses.vision_pixels(flat, 14, [0.5, 0.25, 0.5], [0.5, 0.25, 1.0])
    assert torch.allclose(seen, torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 14, 14), atol=1e-6)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "words"), [
    ({"space": "latent"}, "Through VAE"), ({"gradient": "none"}, "gradient")])  # fmt: skip
def test_measurements_that_cannot_be_a_loss(change, words):
    operator = Shrunk()
    operator.__dict__.update(change)
    with pytest.raises(ValueError, match=words):
        losses.measured(Measurement(operator, torch.zeros(1, 3, 4, 4), 0.0, (1, 3, 8, 8)))


def test_a_picture_of_another_size_than_the_measured():
    with pytest.raises(ValueError, match="measurement is of pictures 8 x 8"):
        LOSSES["measurement"](picture(1, 3, 16, 16))
