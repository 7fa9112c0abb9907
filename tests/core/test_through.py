"""Operators through a decoder: here a fixed linear map with a bend, from 4 x 4 cells of 5 channels to 8 x 8 pixels."""

import pytest
import torch
from operator_checks import misfit
from trajectory.operators.base import Operator
from trajectory.operators.measurement import Measurement
from trajectory.operators.through import ThroughVAE

PIXELS, LATENTS = (2, 3, 8, 8), (2, 5, 4, 4)


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TABLE = draw(5, 12, seed=7) / 3


def decode(z):
    spread = torch.einsum("bchw,cn->bnhw", z.flatten(1).view(len(z), 5, *z.shape[-2:]), TABLE.to(z))
    return torch.nn.functional.pixel_shuffle(spread, 2).tanh() / 2 + 0.5


def encode(pixels):
    cells = torch.nn.functional.pixel_unshuffle(pixels, 2)
    return torch.einsum("bnhw,cn->bchw", cells, torch.linalg.pinv(TABLE).T.to(pixels))


class Shrunk(Operator):
    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 2)

    def check(self, shape):
        if shape[-1] % 2:
            raise ValueError("operator: odd width")


def through(inner=None, **options):
    return ThroughVAE(inner or Shrunk(), decode, encode, 2, 5, **options)


def test_it_sees_what_the_decoded_picture_shows():
    operator, z = through(), draw(*LATENTS)
    assert torch.equal(operator.A(z), Shrunk().A(decode(z)))
    assert operator.space == "latent" and not operator.linear and operator.gradient == "exact"
    pictures = decode(z)
    assert torch.equal(operator.observe(pictures), Shrunk().A(pictures))
    assert torch.equal(operator.preview(operator.A(z)), Shrunk().preview(Shrunk().A(pictures)))


def test_shapes():
    operator = through()
    assert operator.domain(PIXELS) == LATENTS
    assert through(frames=True).domain(PIXELS) == (2, 5, 1, 4, 4)
    assert operator.out_shape(LATENTS) == (2, 3, 4, 4) == operator.A(draw(*LATENTS)).shape
    with pytest.raises(ValueError, match="multiples of 2.*9 x 8.*8 x 8"):
        operator.domain((1, 3, 8, 9))


def test_the_pseudo_inverse_encodes_that_of_pixels():
    operator, y = through(), draw(2, 3, 4, 4).abs()
    expected = encode(Shrunk().pinv(y, PIXELS))
    assert torch.allclose(operator.pinv(y, LATENTS), expected)


def test_what_the_inner_operator_is_it_is():
    inner = Shrunk()
    inner.gradient, inner.mixes_items = "straight-through", True
    assert through(inner).gradient == "straight-through" and through(inner).mixes_items
    with pytest.raises(ValueError, match="odd width"):
        inner.check = lambda shape: Shrunk.check(inner, (1, 3, 8, 7))
        through(inner).A(draw(*LATENTS))


def test_the_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(through().A, (draw(*LATENTS).requires_grad_(),), eps=1e-6, atol=1e-6)


def test_steering_brings_the_residual_down_item_by_item():
    operator, truth = through(), draw(*LATENTS, seed=3)
    measurement = Measurement(operator, operator.A(truth), 0.0, operator.domain(PIXELS))
    z = draw(*LATENTS, seed=4)
    batch = measurement.direction(z)
    alone = [Measurement(operator, operator.A(truth[k : k + 1]), 0.0, (1, *LATENTS[1:])).direction(z[k : k + 1])
             for k in range(2)]  # fmt: skip
    assert torch.allclose(batch, torch.cat(alone))
    before = misfit(measurement, z)
    for _ in range(60):
        z = z - measurement.direction(z)
    assert misfit(measurement, z) < 0.05 * before


def test_an_operator_of_latents_is_refused():
    with pytest.raises(ValueError, match="takes latents already"):
        through(through())
