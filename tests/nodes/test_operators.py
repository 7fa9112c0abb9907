"""Operators and measurements inside a host: pictures, masks and latents of users, inference mode, bad input."""

import logging

import operator_nodes
import pytest
import torch
from operator_checks import misfit
from operator_nodes import call, check_operator, operator
from trajectory.nodes.measurements import noise_of
from trajectory.operators.base import Operator

SIZE = 16


def image(items=2, size=SIZE, channels=3):
    return operator_nodes.image(items, size, size, channels)


def hole(size=SIZE):
    with torch.inference_mode():
        mask = torch.zeros(1, size, size)
        mask[:, : size // 2, : size // 2] = 1
    return mask


OPERATORS = {
    "mask": lambda host: operator(host, "Mask", mask=hole()),
    "downsample": lambda host: operator(host, "Downsample", kernel="bicubic"),
    "gaussian": lambda host: operator(host, "Blur", sigma=1.0),
    "motion": lambda host: operator(host, "Blur", kernel="motion", length=5),
    "disk": lambda host: operator(host, "Blur", kernel="disk", radius=2.0, border="zero"),
    "custom": lambda host: operator(host, "Blur", kernel="custom", kernel_image=image(1, 4), border="circular"),
    "grey": lambda host: operator(host, "Colour"),
    "rows": lambda host: operator(host, "Colour", matrix="custom"),
    "composed": lambda host: operator(
        host, "Compose", outer=operator(host, "Downsample"), inner=operator(host, "Blur", sigma=1.0)),
    "stacked": lambda host: operator(
        host, "Stack", a=operator(host, "Mask", mask=hole()), b=operator(host, "Downsample"), weight_b=2.0),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_a_picture_is_measured_shown_and_steered_by(host, name):
    """A measurement made in inference mode pulls another picture toward agreement, in both modes."""
    measured = check_operator(host, OPERATORS[name](host), gain=0.8, height=SIZE, width=SIZE)
    assert measured.shape == (2, 3, SIZE, SIZE)


def test_a_mask_of_another_size_is_resized_with_a_note(host, caplog):
    made = operator(host, "Mask", mask=hole(40))
    with caplog.at_level(logging.INFO, "trajectory"):
        measured, preview = call(host, "ApplyOperator", operator=made, image=image())
    assert "mask of 40 x 40 resized to 16 x 16" in caplog.text
    assert not preview[:, :8, :8].any() and torch.equal(preview[:, 8:], image()[:, 8:])
    assert misfit(measured, image().movedim(-1, 1)) == 0


def test_a_mask_is_inverted_before_it_grows(host):
    plain = operator(host, "Mask", mask=hole(), invert=True, grow=2).keep(SIZE, SIZE)[0, 0]
    assert plain.sum() == 36 and plain[:6, :6].all()
    flat = operator(host, "Mask", mask=hole()[0])
    assert torch.equal(flat.keep(SIZE, SIZE), operator(host, "Mask", mask=hole()).keep(SIZE, SIZE))


def test_masks_of_other_frames_are_refused(host):
    three = operator(host, "Mask", mask=hole().repeat(3, 1, 1))
    with pytest.raises(ValueError, match="mask has 3 frames, but there are 2 pictures"):
        call(host, "ApplyOperator", operator=three, image=image())


def test_noise_is_of_its_strength_and_belongs_to_the_item(host):
    made, pictures = operator(host, "Blur", sigma=1.0), image(3, 64)
    clean = call(host, "ApplyOperator", operator=made, image=pictures)[0].y
    noisy = call(host, "ApplyOperator", operator=made, image=pictures, sigma_y=0.1, seed=7)[0]
    assert noisy.sigma == 0.1 and float((noisy.y - clean).std()) == pytest.approx(0.1, rel=0.05)
    again = call(host, "ApplyOperator", operator=made, image=pictures[[2, 0]], sigma_y=0.1, seed=7)[0].y
    assert torch.allclose(again, noisy.y[[2, 0]], atol=1e-6)
    other = call(host, "ApplyOperator", operator=made, image=pictures, sigma_y=0.1, seed=8)[0].y
    assert not torch.allclose(other, noisy.y, atol=0.01)


def test_noise_leaves_the_global_generator_alone(host):
    before = torch.get_rng_state()
    call(host, "ApplyOperator", operator=operator(host, "Colour"), image=image(), sigma_y=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_complex_noise_is_of_unit_size():
    y = torch.zeros(2, 3, 64, 64, dtype=torch.complex64)
    noise = noise_of(torch.stack([torch.zeros(4), torch.ones(4)]), y, 3, mixes_items=False)
    assert noise.dtype == y.dtype and float(noise.abs().square().mean()) == pytest.approx(1, rel=0.05)
    assert not torch.equal(noise[0], noise[1])


def test_pictures_may_be_grey_or_have_an_alpha(host):
    made = operator(host, "Colour")
    for channels in (1, 4):
        measured = call(host, "ApplyOperator", operator=made, image=image(channels=channels))[0]
        assert measured.y.shape == (2, 1, SIZE, SIZE)


@pytest.mark.parametrize(("picture", "message"), [
    (torch.zeros(0, 16, 16, 3), "has the shape"), (torch.zeros(16, 16, 3), "has the shape"),
    (torch.zeros(1, 16, 16, 2), "has 2 channels; connect a grey or colour picture"),
    (torch.full((1, 16, 16, 3), float("nan")), "has values that are not finite"),
])  # fmt: skip
def test_what_is_no_picture_is_refused(host, picture, message):
    with pytest.raises(ValueError, match=f"image {message}"):
        call(host, "ApplyOperator", operator=operator(host, "Colour"), image=picture)


# --- latents


def test_latents_are_measured_as_they_are(host):
    with torch.inference_mode():
        samples = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    made = operator(host, "Downsample", factor=2)
    measured, preview = call(host, "ApplyOperator", operator=made, latent={"samples": samples}, sigma_y=0.1)
    assert (measured.operator.space, made.space, measured.shape) == ("latent", "pixel", (2, 16, 8, 8))
    assert preview.shape == (2, 4, 4, 3)
    assert measured.direction(samples.clone()).shape == samples.shape
    with pytest.raises(ValueError, match="a measurement of latents alone has no report"):
        call(host, "MeasurementReport", measurement=measured, image=image(size=64))


def test_a_mask_of_pixels_keeps_whole_cells_of_latents(host):
    samples = torch.ones(1, 4, 8, 8)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :33] = 1
    made = operator(host, "Mask", mask=mask)
    measured = call(host, "ApplyOperator", operator=made, latent={"samples": samples})[0]
    assert measured.y[0, 0, 0].tolist() == 5 * [0.0] + 3 * [1.0]


def test_one_of_image_and_latent_is_measured(host):
    made = operator(host, "Downsample")
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for inputs in ({}, {"image": image(), "latent": latent}):
        with pytest.raises(ValueError, match="connect one of the two"):
            call(host, "ApplyOperator", operator=made, **inputs)
    for samples in (torch.zeros(1, 4, 1, 8, 8), torch.zeros(0, 4, 8, 8)):
        with pytest.raises(ValueError, match="latent has the shape"):
            call(host, "ApplyOperator", operator=made, latent={"samples": samples})


class HalfSizeLatents(Operator):
    """Stands in for an operator through a VAE: 'latents' are pictures of half the size."""

    linear, space = False, "latent"

    def forward(self, z):
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def observe(self, pictures):
        return pictures.float()

    def domain(self, shape):
        return torch.Size((shape[0], shape[1], shape[2] // 2, shape[3] // 2))


def test_pictures_are_measured_and_reported_for_an_operator_through_a_vae(host):
    measured, preview = call(host, "ApplyOperator", operator=HalfSizeLatents(), image=image())
    assert measured.shape == (2, 3, 8, 8) and torch.equal(preview, image())
    assert call(host, "MeasurementReport", measurement=measured, image=image())[0] == 0
    owned = call(host, "MeasurementFromImage", operator=HalfSizeLatents(), image=image(), width=SIZE, height=SIZE)[0]
    assert owned.shape == (2, 3, 8, 8) and torch.equal(owned.y, measured.y)


# --- pictures that users bring, and reports


class EverySecond(Operator):
    mixes_items = True

    def forward(self, x):
        return x[::2]


def test_a_picture_of_ones_own_is_a_measurement(host):
    made = operator(host, "Downsample", factor=4)
    small = image(1, 4)
    measured = call(host, "MeasurementFromImage", image=small, operator=made, width=16, height=16, sigma_y=0.02)[0]
    assert measured.shape == (1, 3, 16, 16) and measured.sigma == 0.02
    assert torch.equal(measured.y, small.movedim(-1, 1))
    assert measured.direction(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_what_is_under_the_mask_of_a_picture_of_ones_own_is_left_out(host):
    """Whatever a damaged picture shows in the hole, the original agrees; also where the mask is the outer operator."""
    original, size = image(1), {"width": 16, "height": 16}
    damaged = torch.where(hole()[..., None] > 0, 1.0, original)
    made = operator(host, "Mask", mask=hole())
    measured = call(host, "MeasurementFromImage", image=damaged, operator=made, **size)[0]
    assert call(host, "MeasurementReport", measurement=measured, image=original)[0] == 0
    same = operator(host, "Colour", matrix="custom", rows="1 0 0; 0 1 0; 0 0 1")
    composed = operator(host, "Compose", outer=made, inner=same)
    assert torch.equal(call(host, "MeasurementFromImage", image=damaged, operator=composed, **size)[0].y, measured.y)


def test_a_grey_picture_of_ones_own_has_one_channel(host):
    made = operator(host, "Colour")
    grey, size = image(1, channels=1), {"width": 16, "height": 16}
    measured = call(host, "MeasurementFromImage", image=grey.expand(-1, -1, -1, 3), operator=made, **size)[0]
    assert torch.allclose(measured.y, grey.movedim(-1, 1))


def test_fewer_frames_of_ones_own_tell_how_many_are_wanted(host):
    inputs = {"image": image(2), "operator": EverySecond(), "width": 16, "height": 16}
    measured = call(host, "MeasurementFromImage", **inputs, frames=4)[0]
    assert measured.shape[0] == 4 and len(measured.y) == 2
    with pytest.raises(ValueError, match="image has 2 pictures of 16 x 16, but of 2 pictures .* operator makes 1"):
        call(host, "MeasurementFromImage", **inputs)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda host: operator(host, "Downsample"), "operator makes 1 of 4 x 4; resize image to that"),
        (lambda host: operator(host, "Downsample", factor=3), "does not divide pictures of 16 x 16"),
        (lambda host: operator(host, "Colour", matrix="drop red"), "shape .1, 2, 16, 16., which no picture holds"),
        (OPERATORS["stacked"], "which no picture holds"),
    ],
)  # fmt: skip
def test_a_picture_that_no_such_operator_made_is_refused(host, made, expected):
    with pytest.raises(ValueError, match=expected):
        call(host, "MeasurementFromImage", image=image(1), operator=made(host), width=16, height=16)


def test_a_report_tells_residual_and_psnr(host):
    pictures = image()
    measured = call(host, "ApplyOperator", operator=operator(host, "Blur"), image=pictures, sigma_y=0.05)[0]
    residual, ratio, text = call(host, "MeasurementReport", measurement=measured, image=pictures, reference=pictures)
    assert residual == pytest.approx(0.05, rel=0.1) and ratio == 100 and "PSNR" in text
    with torch.inference_mode():
        brighter = pictures + 0.1
    residual, ratio, _ = call(host, "MeasurementReport", measurement=measured, image=brighter, reference=pictures)
    assert residual > 0.1 and ratio == pytest.approx(20, abs=1e-3)
    residual, ratio, text = call(host, "MeasurementReport", measurement=measured, image=pictures)
    assert ratio == 0 and "PSNR" not in text


def test_a_report_is_of_pictures_of_one_size(host):
    measured = call(host, "ApplyOperator", operator=operator(host, "Blur"), image=image())[0]
    with pytest.raises(ValueError, match="image is 32 x 32, but measurement is of"):
        call(host, "MeasurementReport", measurement=measured, image=image(size=32))
    with pytest.raises(ValueError, match="measurement is of pictures .*batch of 2.*, but .*batch of 3"):
        call(host, "MeasurementReport", measurement=measured, image=image(3))
    with pytest.raises(ValueError, match="reference is 32 x 32"):
        call(host, "MeasurementReport", measurement=measured, image=image(), reference=image(size=32))


# --- options


@pytest.mark.parametrize("rows", ["", "1, a, 0", "1, 0; 0, 1, 0", "1 0 0;"])
def test_rows_that_are_no_matrix_are_refused(host, rows):
    with pytest.raises(ValueError, match="rows is"):
        operator(host, "Colour", matrix="custom", rows=rows)


def test_rows_are_weights_of_red_green_and_blue(host):
    made = operator(host, "Colour", matrix="custom", rows="1 0 0\n0, .5, 0.5")
    assert made.matrix.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]


def test_a_custom_kernel_is_connected_and_not_black(host):
    with pytest.raises(ValueError, match="kernel_image is not connected"):
        operator(host, "Blur", kernel="custom")
    assert operator(host, "Blur", sigma=0.1, size=2).kernel.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="not black"):
        operator(host, "Blur", kernel="custom", kernel_image=torch.zeros(1, 5, 5, 3))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("name", "inputs", "message"), [
    ("Blur", {"kernel": "nonsense"}, "kernel is 'nonsense'; choose one of gaussian, motion"),
    ("Blur", {"border": "nonsense"}, "border is 'nonsense'; choose one of"),
    ("Colour", {"matrix": "nonsense"}, "matrix is 'nonsense'; choose one of grayscale"),
    *(("Blur", {"sigma": value}, f"sigma is {value}; set it to") for value in (NAN, INF, 0.0, -1.0)),
    *(("Blur", {"kernel": "disk", "radius": value}, f"radius is {value}; set it to") for value in (NAN, INF, 0.0)),
    *(("Blur", {"kernel": "motion", "angle": value}, f"angle is {value}; set it to") for value in (NAN, INF)),
    ("Blur", {"kernel": "motion", "length": 0}, "length is 0; set it to"),
    ("Blur", {"size": -1}, "size is -1; set it to"),
    ("Blur", {"kernel": "custom", "kernel_image": torch.zeros(0, 5, 5, 3)}, "kernel_image has the shape"),
    ("Blur", {"kernel": "custom", "kernel_image": torch.full((1, 5, 5, 3), NAN)}, "kernel_image has values that are"),
    ("Mask", {"mask": torch.zeros(1, 0, 0)}, r"mask has the shape \[1, 0, 0\]; connect"),
    ("Mask", {"mask": torch.zeros(5)}, r"mask has the shape \[5\]; connect"),
    ("Mask", {"mask": torch.full((1, 8, 8), NAN)}, "mask has values that are not finite"),
])  # fmt: skip
def test_wrong_inputs_are_named(host, name, inputs, message):
    with pytest.raises(ValueError, match=message):
        operator(host, name, **inputs)


@pytest.mark.parametrize("weight", [NAN, INF])
def test_weights_of_a_stack_are_finite(host, weight):
    made = operator(host, "Colour")
    with pytest.raises(ValueError, match=f"weight_b is {weight}; set it to"):
        operator(host, "Stack", a=made, b=made, weight_b=weight)


@pytest.mark.parametrize("sigma_y", [NAN, INF, -0.5])
def test_noise_of_no_size_is_refused(host, sigma_y):
    made = operator(host, "Colour")
    for node, inputs in (("ApplyOperator", {}), ("MeasurementFromImage", {"width": SIZE, "height": SIZE})):
        with pytest.raises(ValueError, match=f"sigma_y is {sigma_y}; set it to"):
            call(host, node, operator=made, image=image(), sigma_y=sigma_y, **inputs)


def test_operators_that_do_not_fit_together_are_refused(host):
    with pytest.raises(ValueError, match="make the operator that takes latents the inner one"):
        operator(host, "Compose", outer=HalfSizeLatents(), inner=operator(host, "Blur"))
    with pytest.raises(ValueError, match="a takes latents and b pixels"):
        operator(host, "Stack", a=HalfSizeLatents(), b=operator(host, "Blur"))
