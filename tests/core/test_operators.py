"""Masks, resampling, blurs, colours and what is made of them: against dense algebra, limits, and deepinv."""

import logging

import operator_checks as checks
import pytest
import torch
from trajectory.operators import blur, colour, combine, masks, measurement, resample
from trajectory.operators.base import Operator


def hole(height=8, width=8, frames=1):
    """A mask whose upper left quarter is unknown, one column more of it in each later frame."""
    mask = torch.zeros(frames, height, width)
    for k in range(frames):
        mask[k, : height // 2, : width // 2 + k] = 1
    return mask


def lopsided():
    """Weights without any symmetry, of an even and an odd size."""
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(5)) + 0.1


LINEAR = {
    "mask": lambda: masks.Mask(hole()),
    "mask, nearest": lambda: masks.Mask(hole(6, 9), "nearest"),
    **{f"downsample {k}": lambda k=k: resample.Downsample(2, k) for k in resample.KERNELS},
    "downsample by 4": lambda: resample.Downsample(4, "area"),
    **{f"blur {b}": lambda b=b: blur.Blur(blur.gaussian_kernel(0.8), b) for b in blur.BORDERS},
    "motion": lambda: blur.Blur(blur.motion_kernel(5, 30), "zero"),
    "disk": lambda: blur.Blur(blur.disk_kernel(1.5), "reflect"),
    **{f"lopsided {b}": lambda b=b: blur.Blur(lopsided(), b) for b in blur.BORDERS},
    **{m: lambda m=m: colour.Colour(colour.MATRICES[m]) for m in colour.MATRICES},
    "colour matrix": lambda: colour.Colour([[1.0, -0.5, 0.2], [0.3, 0.3, 0.4]]),
    "composed": lambda: combine.Compose(resample.Downsample(2), blur.Blur(blur.gaussian_kernel(0.8))),
    "stacked": lambda: combine.Stack(masks.Mask(hole()), resample.Downsample(2, "bicubic"), (1.0, 0.5)),
}
"""{name: makes a linear operator on pictures of 8 x 8, 3 channels}"""

CLOSED = {"blur circular", "lopsided circular", "mask", "mask, nearest", *(f"downsample {k}" for k in resample.KERNELS),
          "downsample by 4", *colour.MATRICES, "colour matrix"}  # fmt: skip
"""Those whose norm2 is a closed form."""


def shapes(name, count=20):
    """Random shapes that suit an operator on 3 channels with a factor up to 4, one not larger than its kernels."""
    random = torch.Generator().manual_seed(sum(name.encode()))
    drawn = torch.randint(1, 9, (count, 3), generator=random).tolist()
    return [(1, 3, 4, 4), *((1 + b % 3, 3, 4 * h, 4 * w) for b, h, w in drawn[1:])]


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operator_agrees_with_its_matrix(name):
    checks.check_linear(LINEAR[name](), (2, 3, 8, 8))


@pytest.mark.parametrize("name", LINEAR)
def test_the_adjoint_is_one_on_twenty_shapes(name):
    operator = LINEAR[name]()
    for seed, shape in enumerate(shapes(name)):
        checks.check_adjoint(operator, shape, seed)


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_closed_norms_are_exact(name):
    checks.check_norm2(LINEAR[name](), (1, 3, 8, 8), 1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_closed_forms_are_what_the_base_class_derives(name):
    operator, shape = LINEAR[name](), (2, 3, 8, 8)
    x, y = checks.pictures(shape), operator.A(checks.pictures(shape, 1))
    assert torch.allclose(operator.At(y, shape), Operator.adjoint(operator, y, torch.Size(shape)), atol=1e-12)
    assert torch.allclose(operator.prox(x, y, 2.0), Operator.prox(operator, x, y, 2.0), atol=1e-5)
    least = Operator.pinv(operator, y, shape)
    assert torch.allclose(operator.A(operator.pinv(y, shape)), operator.A(least), atol=2e-3)


# --- masks


def test_a_mask_keeps_what_is_black():
    x = checks.pictures((2, 3, 8, 8))
    y = masks.Mask(hole()).A(x)
    assert torch.equal(y[..., 4:, :], x[..., 4:, :]) and not y[..., :4, :4].any()


@pytest.mark.parametrize(("resize", "known"), [("area", 2), ("nearest", 4)])
def test_a_cell_that_is_partly_hidden_is_unknown(resize, known, caplog):
    """Columns 0 to 8 of 16 are hidden: the cell of columns 8 and 9 (of 2 each) is known by its middle, 9, alone."""
    mask = torch.zeros(1, 16, 16)
    mask[..., :9] = 1
    operator = masks.Mask(mask, resize)
    with caplog.at_level(logging.INFO, "trajectory"):
        keep = operator.keep(8, 8)
        operator.keep(8, 8)
    assert keep[0, 0, 0].tolist() == [0, 0, 0, 0, 0 if resize == "area" else 1, 1, 1, 1]
    assert caplog.text.count("16 x 16 resized to 8 x 8") == 1


def test_soft_edges_are_unknown():
    mask = torch.linspace(0, 1, 16).expand(1, 16, 16)
    assert masks.Mask(mask).keep(16, 16)[0, 0, 0].tolist() == [1.0] + 15 * [0.0]


def test_grown_holes_reach_further_on_every_side():
    mask = torch.zeros(2, 9, 9)
    mask[0, 4, 4] = 1
    wider = masks.grown(mask, 2)
    assert wider[0].sum() == 25 and wider[0, 2:7, 2:7].all() and not wider[1].any()
    assert torch.equal(masks.grown(mask, 0), mask)


def test_each_picture_has_its_own_mask():
    frames, x = hole(frames=2), checks.pictures((2, 3, 8, 8))
    operator = masks.Mask(frames)
    assert torch.equal(operator.A(x), torch.cat([masks.Mask(frames[k : k + 1]).A(x[k : k + 1]) for k in range(2)]))
    checks.check_adjoint(operator, (2, 3, 8, 8))
    assert operator.norm2((2, 3, 8, 8)) == 1
    for three in (operator, combine.Compose(resample.Downsample(2), operator)):
        with pytest.raises(ValueError, match="2 frames, but there are 3 pictures"):
            three.A(checks.pictures((3, 3, 8, 8)))


def test_where_nothing_is_known_nothing_is_steered():
    x = checks.pictures((1, 3, 8, 8))
    blind = masks.Mask(torch.ones(1, 8, 8))
    for operator in (blind, combine.Compose(resample.Downsample(2), blind)):
        found = measurement.Measurement(operator, operator.A(x).float(), 0.0, tuple(x.shape))
        assert not found.direction(1 - x).any()


def hidden_by_half(sigma, items=1):
    """A noisy measurement of black pictures whose left half is hidden."""
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    shape = (items, 3, 8, 8)
    return measurement.Measurement(masks.Mask(mask), torch.zeros(shape), sigma, shape)


def test_only_what_is_beyond_the_noise_of_the_seen_pixels_is_steered():
    """A residual of 0.3 on all that is seen, in noise of 0.2: a third of it remains. In noise of 0.4 nothing does."""
    x = torch.full((1, 3, 8, 8), 0.3)
    move = hidden_by_half(0.2).direction(x)
    assert torch.allclose(move[..., 4:], torch.tensor(0.1)) and not move[..., :4].any()
    assert not hidden_by_half(0.4).direction(x).any()


def test_noise_of_measurements_of_another_rank_than_the_pictures():
    """Rows of numbers, and latents of videos, have a share for each item."""
    one = resample.Downsample(2)
    stacked = combine.Stack(one, one)
    x = torch.stack([torch.full((3, 4, 4), level) for level in (0.2, 0.4)])
    found = measurement.Measurement(stacked, torch.zeros(2, 24), 0.1, tuple(x.shape))
    clean = measurement.Measurement(stacked, torch.zeros(2, 24), 0.0, tuple(x.shape))
    share = torch.tensor([0.5, 0.75]).view(2, 1, 1, 1)
    assert torch.allclose(found.direction(x), share * clean.direction(x), atol=1e-6)
    video = x[:, :, None].expand(2, 3, 2, 4, 4)
    seen = measurement.Measurement(one, torch.zeros(2, 3, 2, 2, 2), 0.1, tuple(video.shape))
    assert torch.allclose(seen.direction(video), share[..., None] * video, atol=1e-6)


class Bright(Operator):
    """A map that is not linear, of any rank."""

    linear = False

    def forward(self, x):
        return torch.exp(x)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 2, 4, 4)], ids=str)
@pytest.mark.parametrize("sigma", [0.0, 1e-3])
def test_the_line_search_finds_its_way_out_of_black(shape, sigma):
    wanted = checks.pictures(shape)
    found = measurement.Measurement(Bright(), torch.exp(wanted), sigma, shape)
    x = torch.zeros(shape, dtype=torch.float64)
    first = found.direction(x)
    assert (measurement.rms(first) > 0.05).all()
    for _ in range(60):
        x = x - found.direction(x)
    assert (x - wanted).abs().max() < 0.01


# --- resampling


@pytest.mark.parametrize("factor", [2, 3, 4, 7, 16])
@pytest.mark.parametrize("kernel", resample.KERNELS)
def test_a_kernel_is_even_and_of_unit_sum(kernel, factor):
    weights = resample.taps(kernel, factor)
    assert sum(weights) == pytest.approx(1) and (len(weights) - factor) % 2 == 0
    if kernel == "nearest":
        assert weights.index(1.0) == factor // 2
    else:
        assert weights == pytest.approx(weights[::-1])


@pytest.mark.parametrize("kernel", [k for k in resample.KERNELS if k != "nearest"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_ramp_stays_a_ramp_inside(kernel, factor):
    """No shift by half a pixel: the small pixel i holds the middle of its block, (i + 1/2) factor - 1/2."""
    ramp = torch.arange(20.0 * factor, dtype=torch.float64).expand(1, 1, 20 * factor, -1)
    small = resample.Downsample(factor, kernel).A(ramp)[0, 0, 10, 3:-3]
    assert torch.allclose(small, (torch.arange(3, 17, dtype=torch.float64) + 0.5) * factor - 0.5, atol=1e-9)


def test_area_is_the_mean_of_a_block_and_its_inverse_repeats_it():
    x = checks.pictures((2, 3, 12, 8))
    operator = resample.Downsample(4, "area")
    y = operator.A(x)
    assert torch.allclose(y, torch.nn.functional.avg_pool2d(x, 4))
    assert torch.allclose(operator.pinv(y, x.shape), y.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_bicubic_is_the_antialiased_one_of_torch_away_from_the_border():
    x = checks.pictures((1, 3, 64, 64))
    ours = resample.Downsample(4, "bicubic").A(x)
    theirs = torch.nn.functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    assert torch.allclose(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=1e-6)


def test_a_size_that_does_not_divide_names_one_that_does():
    with pytest.raises(ValueError, match="does not divide pictures of 130 x 66.* to 128 x 64"):
        resample.Downsample(4).A(torch.zeros(1, 3, 66, 130))


# --- blurs


def kernels():
    return {
        "gaussian": blur.gaussian_kernel(1.5), "gaussian, even": blur.gaussian_kernel(1.5, 8),
        "motion, odd": blur.motion_kernel(7, 0), "motion, even": blur.motion_kernel(6, 25),
        "disk": blur.disk_kernel(2.3), "one": torch.ones(1, 1), "two": torch.ones(2, 2), "box": torch.ones(4, 5),
    }  # fmt: skip


@pytest.mark.parametrize("border", blur.BORDERS)
@pytest.mark.parametrize("name", kernels())
def test_a_point_of_light_becomes_the_kernel_about_itself(name, border):
    operator = blur.Blur(kernels()[name], border)
    point = torch.zeros(1, 1, 31, 40, dtype=torch.float64)
    point[..., 15, 20] = 1
    seen = operator.A(point)[0, 0]
    assert seen.shape == (31, 40) and float(seen.sum()) == pytest.approx(1)
    assert float((seen.sum(1) * torch.arange(31)).sum()) == pytest.approx(15)
    assert float((seen.sum(0) * torch.arange(40)).sum()) == pytest.approx(20)
    rows, columns = (n // 2 for n in operator.kernel.shape)
    around = seen[15 - rows : 16 + rows, 20 - columns : 21 + columns]
    assert torch.allclose(around, operator.kernel, atol=1e-12)


def test_a_convolution_does_not_turn_the_kernel_around():
    kernel = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    point = torch.zeros(1, 1, 5, 5)
    point[..., 2, 2] = 1
    assert torch.allclose(blur.Blur(kernel).A(point)[0, 0, 2], torch.tensor([0, 0, 0.25, 0.75, 0]), atol=1e-6)


def test_motion_is_of_its_length_and_angle():
    path = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(blur.motion_kernel(3, 0)[2], path)
    assert torch.allclose(blur.motion_kernel(3, 90)[:, 2], path, atol=1e-9)
    rising = blur.motion_kernel(9, 45)
    half = len(rising) // 2
    assert rising[:half, half + 1 :].sum() > 3 and rising[:half, :half].sum() < 0.1  # up and to the right


@pytest.mark.parametrize("border", blur.BORDERS)
def test_the_border_is_the_one_that_is_named(border):
    """Against a convolution of the padded picture, by definition."""
    kernel, x = lopsided()[:3], checks.pictures((1, 1, 7, 6))
    mode = {"reflect": "reflect", "circular": "circular", "zero": "constant"}[border]
    wide = torch.nn.functional.pad(x, (1, 1, 1, 1), mode=mode)
    weights = (kernel / kernel.sum()).flip(0, 1).double()[None, None]
    assert torch.allclose(blur.Blur(kernel, border).A(x), torch.nn.functional.conv2d(wide, weights), atol=1e-6)


@pytest.mark.parametrize("border", blur.BORDERS)
def test_a_kernel_may_be_larger_than_the_picture(border):
    operator = blur.Blur(blur.gaussian_kernel(5.0), border)
    checks.check_adjoint(operator, (1, 3, 4, 7))
    flat = operator.A(torch.full((1, 3, 4, 7), 0.5))
    assert border == "zero" or torch.allclose(flat, torch.full_like(flat, 0.5), atol=1e-6)


@pytest.mark.parametrize("kernel", [torch.zeros(3, 3), torch.full((3, 3), torch.nan), torch.ones(3)], ids=str)
def test_what_is_no_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match="kernel has the shape"):
        blur.Blur(kernel)


# --- colours


def test_the_weights_of_grey():
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    assert torch.allclose(colour.Colour(colour.MATRICES["grayscale"]).A(red), torch.full((1, 1, 2, 2), 0.299))
    assert colour.Colour(colour.MATRICES["drop red"]).A(red).shape == (1, 2, 2, 2)


def test_a_dropped_channel_is_shown_black():
    operator, x = colour.Colour(colour.MATRICES["drop green"]), checks.pictures((2, 3, 4, 4))
    shown = operator.preview(operator.A(x))
    assert torch.allclose(shown[:, [0, 2]], x[:, [0, 2]]) and not shown[:, 1].any()


@pytest.mark.parametrize("matrix", [[[0.0, 0.0, 0.0]], [[float("inf"), 0, 0]], [1.0, 2.0, 3.0]], ids=str)
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match="matrix is"):
        colour.Colour(matrix)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="3 weights a row, but there are 4 channels"):
        colour.Colour(colour.MATRICES["mean"]).A(torch.zeros(1, 4, 2, 2))


# --- made of others


class Square(Operator):
    linear = False
    gradient = "straight-through"

    def forward(self, x):
        return x.square()


class Spectrum(Operator):
    complex = True

    def forward(self, x):
        return torch.fft.fft2(x, norm="ortho")


class FramePairs(Operator):
    mixes_items = True

    def forward(self, x):
        return (x[::2] + x[1::2]) / 2


class Encoded(Operator):
    """Takes 'latents' of half the size, which are pictures after repetition."""

    linear, space = False, "latent"

    def forward(self, x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def observe(self, pictures):
        return pictures

    def domain(self, shape):
        return torch.Size((*shape[:2], shape[2] // 2, shape[3] // 2))


def test_composition_is_one_after_the_other():
    x = checks.pictures((2, 3, 8, 8))
    outer, inner = resample.Downsample(2), blur.Blur(lopsided())
    assert torch.equal(combine.Compose(outer, inner).A(x), outer.A(inner.A(x)))
    mixed = combine.Compose(Square(), inner)
    assert (mixed.linear, mixed.gradient, mixed.mixes_items) == (False, "straight-through", False)
    assert combine.Compose(outer, FramePairs()).mixes_items
    checks.check_adjoint(combine.Compose(Spectrum(), inner), (2, 3, 8, 8))


def test_composition_knows_which_size_does_not_fit():
    with pytest.raises(ValueError, match="pictures of 6 x 6"):
        combine.Compose(resample.Downsample(4), resample.Downsample(2)).A(torch.zeros(1, 3, 12, 12))


def test_composition_after_a_vae_observes_pictures():
    x = checks.pictures((1, 3, 8, 8))
    operator = combine.Compose(resample.Downsample(2), Encoded())
    assert operator.space == "latent" and operator.domain(x.shape) == (1, 3, 4, 4)
    assert torch.equal(operator.observe(x), resample.Downsample(2).A(x))
    with pytest.raises(ValueError, match="outer takes latents"):
        combine.Compose(Encoded(), resample.Downsample(2))


def test_complex_numbers_are_not_composed():
    with pytest.raises(ValueError, match="exchange the two"):
        combine.Compose(blur.Blur(lopsided()), Spectrum())


def test_a_stack_holds_both_with_their_weights():
    x = checks.pictures((2, 3, 8, 8))
    a, b = resample.Downsample(2), Spectrum()
    y = combine.Stack(a, b, (2.0, 0.5)).A(x)
    assert y.shape == (2, 48 + 2 * 192) and not y.is_complex()
    assert torch.equal(y[:, :48], 2 * a.A(x).flatten(1))
    assert torch.equal(y[:, 48:].reshape(2, -1, 2), torch.view_as_real(0.5 * b.A(x)).reshape(2, -1, 2))
    checks.check_adjoint(combine.Stack(a, b), (2, 3, 8, 8))
    checks.check_pinv(combine.Stack(a, b), (2, 3, 8, 8))


def test_a_stack_of_what_mixes_items_is_one_row():
    x = checks.pictures((4, 3, 8, 8))
    operator = combine.Stack(FramePairs(), resample.Downsample(2))
    assert operator.A(x).shape == (1, 2 * 192 + 4 * 48)
    checks.check_adjoint(operator, tuple(x.shape))
    checks.check_pinv(operator, tuple(x.shape))


@pytest.mark.parametrize("make", [
    lambda: combine.Stack(resample.Downsample(2), Spectrum()),
    lambda: combine.Stack(FramePairs(), resample.Downsample(2)),
    lambda: combine.Compose(Spectrum(), resample.Downsample(2)),
])  # fmt: skip
def test_the_shape_of_two_is_known_without_a_picture(make, monkeypatch):
    operator, x = make(), checks.pictures((4, 3, 8, 8))
    expected = operator.A(x).shape
    for kind in (resample.Downsample, combine.Stack, combine.Compose):
        monkeypatch.setattr(kind, "forward", lambda self, x: pytest.fail("a picture was measured"))
    assert operator.out_shape(x.shape) == expected


def test_a_stack_is_of_one_kind():
    with pytest.raises(ValueError, match="a takes pixels and b latents"):
        combine.Stack(resample.Downsample(2), Encoded())
    both, x = combine.Stack(Encoded(), combine.Compose(Square(), Encoded())), checks.pictures((1, 3, 4, 4))
    assert both.space == "latent" and not both.linear and both.domain(x.shape) == (1, 3, 2, 2)
    assert torch.equal(both.observe(x), torch.cat([x.flatten(1), x.square().flatten(1)], 1))


def test_an_operator_on_latents_is_the_same_map():
    operator = resample.Downsample(2)
    moved, x = combine.on_latents(operator), checks.pictures((1, 16, 8, 8))
    assert (moved.space, operator.space) == ("latent", "pixel")
    assert torch.equal(moved.A(x), operator.A(x))
    assert combine.on_latents(moved) is moved


# --- shown and reported


def test_what_is_no_picture_is_shown_by_its_size():
    operator, x = Spectrum(), checks.pictures((2, 3, 8, 8))
    shown = operator.preview(operator.A(x))
    assert shown.shape == (2, 3, 8, 8) and torch.equal(shown[:, 0], shown[:, 1])
    assert torch.allclose(shown.amax((1, 2, 3)), torch.ones(2, dtype=torch.float64))
    stacked = combine.Stack(resample.Downsample(2), operator).preview(torch.tensor([[1.0, -2.0, 0.5]]))
    assert stacked[0, 0].tolist() == [[0.5, 1.0], [0.25, 0.0]]
    assert not operator.preview(torch.zeros(1, 2, 4, 4)).any()
    assert operator.preview(torch.full((1, 1, 4, 4), 1.5)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_noise_of_no_size_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma_y is .*; set it to"):
        measurement.Measurement(resample.Downsample(2), torch.zeros(1, 3, 4, 4), sigma, (1, 3, 8, 8))


def test_results_that_are_kept_are_few():
    operator = masks.Mask(hole())
    first = operator.keep(8, 8)
    assert operator.keep(8, 8) is first
    for width in range(9, 30):
        operator.keep(8, width)
    assert operator.keep(8, 8) is not first and torch.equal(operator.keep(8, 8), first)


def test_the_numbers_of_a_report():
    x = checks.pictures((2, 3, 8, 8)).float()
    operator = resample.Downsample(2)
    found = measurement.Measurement(operator, operator.A(x)[:1], 0.0, (1, 3, 8, 8))
    assert found.picture_error(x[:1]) == 0
    assert found.picture_error(x[:1] + 0.1) == pytest.approx(0.1, rel=1e-5)
    assert measurement.psnr(x + 0.1, x) == pytest.approx(20, rel=1e-5)
    assert measurement.psnr(x, x) == 100


# --- deepinv


def test_blurs_resampling_colours_and_masks_are_those_of_deepinv():
    physics = pytest.importorskip("deepinv.physics")
    x = checks.pictures((1, 3, 32, 32), dtype=torch.float32)
    kernel = torch.nn.functional.pad(lopsided()[:3], (1, 1, 1, 1))
    weights = (kernel / kernel.sum())[None, None]
    borders = {"circular": "circular", "zero": "constant", "reflect": "reflect"}
    pairs = [(blur.Blur(kernel, ours), physics.Blur(filter=weights, padding=theirs))
             for ours, theirs in borders.items()]  # fmt: skip
    pairs += [(resample.Downsample(factor, "bicubic"), physics.DownsamplingMatlab(img_size=(3, 32, 32), factor=factor))
              for factor in (2, 4)]  # fmt: skip
    mask = hole(32, 32)
    pairs += [(masks.Mask(mask), physics.Inpainting(img_size=(3, 32, 32), mask=1 - mask))]
    for ours, theirs in pairs:
        y = theirs.A(x)
        assert torch.allclose(ours.A(x), y, atol=1e-5)
        assert torch.allclose(ours.At(y, x.shape), theirs.A_adjoint(y), atol=1e-5)
    grey = physics.Decolorize().A(x)
    ours = colour.Colour(colour.MATRICES["grayscale"]).A(x)
    assert torch.allclose(ours * (grey.norm() / ours.norm()), grey, atol=2e-3)  # its weights have four digits
