"""JPEG against Pillow, and the other codecs and limits: values, inverses, gradients."""

import io

import numpy as np
import operator_checks as checks
import pytest
import torch
from PIL import Image
from trajectory.operators import compression
from trajectory.operators.measurement import Measurement

QUALITIES = (5, 20, 50, 75, 95)


def drawing(height, width, seed=0):
    """A picture of smooth light, a hard-edged red disc and a little grain, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = np.stack([0.3 + 0.6 * x, 0.5 + 0.4 * np.sin(4 * y + x), 0.8 - 0.5 * y], -1)
    light[(x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.03] = (0.9, 0.15, 0.1)
    light += 0.02 * np.random.default_rng(seed).standard_normal(light.shape)
    return (255 * light.clip(0, 1)).round().astype(np.uint8)


def saved_by_pillow(picture, quality, subsampling):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file), dtype=float)


def tensor(picture):
    return torch.from_numpy(picture.copy()).movedim(-1, 0)[None].float() / 255


@pytest.mark.parametrize("size", [(128, 128), (101, 77), (90, 61), (7, 200)], ids=str)
@pytest.mark.parametrize("subsampling", compression.SUBSAMPLINGS)
def test_a_file_is_that_of_pillow(subsampling, size):
    picture = drawing(*size)
    for quality in QUALITIES:
        ours = 255 * compression.JPEG(quality, subsampling).A(tensor(picture))[0].movedim(0, -1).numpy()
        theirs = saved_by_pillow(picture, quality, subsampling)
        assert np.abs(ours - theirs).mean() < 1, quality
        assert np.abs(ours - picture).mean() > np.abs(ours - theirs).mean(), quality


def test_a_grey_file_is_that_of_pillow():
    picture = drawing(50, 43)[..., 1]
    for quality in QUALITIES:
        ours = 255 * compression.JPEG(quality).A(tensor(picture[..., None]))[0, 0].numpy()
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        assert np.abs(ours - np.asarray(Image.open(file), dtype=float)).mean() < 1, quality


@pytest.mark.parametrize("quality", [1, 20, 50, 90])
def test_the_tables_are_those_in_a_file(quality):
    file = io.BytesIO()
    Image.fromarray(drawing(16, 16)).save(file, "JPEG", quality=quality)
    found = Image.open(file).quantization
    assert [compression.tables(quality)[k].flatten().tolist() for k in (0, 1)] == [found[0], found[1]]


def test_the_cosines_are_orthonormal():
    rows = compression.cosines()
    assert torch.allclose(rows @ rows.T, torch.eye(8, dtype=torch.float64), atol=1e-14)


def test_values_do_not_depend_on_the_rounding_and_gradients_do():
    x = tensor(drawing(32, 32))
    seen, gradients = {}, {}
    for rounding in compression.ROUNDINGS:
        leaf = x.clone().requires_grad_()
        seen[rounding] = compression.JPEG(30, "4:4:4", rounding).A(leaf)
        gradients[rounding], = torch.autograd.grad(seen[rounding].sum(), leaf)
    assert torch.equal(seen["straight-through"], seen["none"]) and torch.equal(seen["cubic"], seen["none"])
    assert torch.allclose(gradients["straight-through"], torch.ones_like(x), atol=1e-4)
    assert 0 < gradients["cubic"].abs().mean() < gradients["straight-through"].abs().mean()


def test_coding_twice_hardly_changes_anything():
    once = compression.JPEG(20).A(tensor(drawing(64, 64)))
    operator = compression.JPEG(20)
    assert (operator.A(operator.pinv(once, once.shape)) - once).abs().mean() < 0.005


def test_steering_by_jpeg_brings_the_residual_down():
    x = tensor(drawing(64, 64))
    operator = compression.JPEG(20)
    found = Measurement(operator, operator.A(x), 0.0, tuple(x.shape))
    start = (x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    errors = [checks.misfit(found, start)]
    for _ in range(5):
        start = start - found.direction(start)
        errors.append(checks.misfit(found, start))
    assert errors[-1] < 0.35 * errors[0]


def test_rounding_none_cannot_steer():
    x = tensor(drawing(16, 16))
    operator = compression.JPEG(20, rounding="none")
    assert operator.gradient == "none"
    with pytest.raises(ValueError, match="JPEG has no gradient.*rounding with a gradient"):
        Measurement(operator, operator.A(x), 0.0, tuple(x.shape)).direction(1 - x)


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (3, 8), (8, 256)])
def test_few_bits_are_so_many_levels_from_black_to_white(bits, levels):
    x = torch.linspace(-0.1, 1.1, 4001).view(1, 1, 1, -1)
    operator = compression.Quantise(bits)
    y = operator.A(x)
    assert len(y.unique()) == levels and (y.min(), y.max()) == (0, 1)
    assert torch.equal(operator.A(operator.pinv(y, y.shape)), y)
    inside = (0 <= x) & (x <= 1)
    assert float((y - x)[inside].abs().max()) <= 1 / levels + 1e-6 and abs(float((y - x)[inside].mean())) < 1e-3
    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(operator.A(leaf).sum(), leaf)[0], torch.ones_like(x))
    assert operator.gradient == "straight-through"


def test_a_clip_is_linear_around_grey_and_flat_outside():
    x = torch.tensor([0.0, 0.2, 0.25, 0.4, 0.5, 0.75, 0.8]).view(1, 1, 1, -1)
    operator = compression.Clip(2.0)
    assert torch.allclose(operator.A(x).flatten(), torch.tensor([0, 0, 0, 0.3, 0.5, 1, 1]), atol=1e-7)
    y = operator.A(x)
    assert torch.allclose(operator.A(operator.pinv(y, y.shape)), y)
    assert operator.gradient == "exact"
    checks.check_gradient(operator, (1, 3, 4, 4))


def operators():
    codecs = (compression.JPEG(30, s) for s in compression.SUBSAMPLINGS)
    return [*codecs, compression.Quantise(3), compression.Clip(2.0)]


@pytest.mark.parametrize("operator", operators(), ids=lambda o: type(o).__name__)
def test_items_precision_and_modes(operator):
    x = checks.pictures((3, 3, 13, 18), dtype=torch.float32)
    y = operator.A(x)
    assert y.shape == x.shape == operator.out_shape(x.shape)
    for k in range(3):
        assert torch.allclose(operator.A(x[k : k + 1]), y[k : k + 1], atol=1e-6)
    assert torch.equal(operator.A(x.bfloat16()), operator.A(x.bfloat16().float()))
    assert operator.A(x.double()).dtype == torch.float64
    with torch.inference_mode():
        assert torch.equal(operator.A(x), y)
        found = Measurement(operator, y, 0.0, tuple(x.shape))
        assert found.direction(x * 0.9).isfinite().all()
    with pytest.raises(ValueError, match="not linear"):
        operator.At(y, x.shape)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: compression.JPEG(0), "quality is 0; set it to 1 - 95"),
    (lambda: compression.JPEG(96), "quality is 96"),
    (lambda: compression.JPEG(20, "4:2:2"), "subsampling is '4:2:2'; choose one of 4:2:0, 4:4:4"),
    (lambda: compression.JPEG(20, rounding="up"), "rounding is 'up'"),
    (lambda: compression.JPEG().A(torch.zeros(1, 4, 8, 8)), "1 or 3 channels, but there are 4"),
    (lambda: compression.Quantise(0), "bits is 0; set it to 1 - 8"),
    (lambda: compression.Clip(0.0), "gain is 0.0; set it to a number above 0"),
    (lambda: compression.Clip(float("nan")), "gain is nan"),
])  # fmt: skip
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
