"""Fourier masks, phase retrieval, tomography, frames, networks: against dense algebra, phantoms and deepinv."""

import math

import operator_checks as checks
import pytest
import torch
from trajectory.operators import fourier, from_deepinv, network, radon, temporal
from trajectory.operators.base import Operator
from trajectory.operators.measurement import Measurement

LINEAR = {
    **{p: lambda p=p: fourier.FourierMask(p, 3.0, 0.1, 1) for p in fourier.PATTERNS},
    "no centre": lambda: fourier.FourierMask("random2d", 2.0, 0.0, 3),
    "all": lambda: fourier.FourierMask("uniform1d", 1.0, 1.0),
    "radon": lambda: radon.Radon(5),
    "radon, circle": lambda: radon.Radon(4, circle=True),
    "radon, one view": lambda: radon.Radon(1),
    "radon, limited": lambda: radon.Radon(3, 60.0),
}
"""{name: makes a linear operator on pictures of any size whose items are independent}"""

VIDEO = {f"{m}, {n}": lambda m=m, n=n: temporal.Temporal(m, n) for m in temporal.MODES for n in (1, 2, 3)}


def shapes(name, count=20):
    random = torch.Generator().manual_seed(sum(name.encode()))
    drawn = torch.randint(1, 14, (count, 4), generator=random).tolist()
    return [(1 + b % 4, 1 + c % 3, 1 + h, 1 + w) for b, c, h, w in drawn]


@pytest.mark.parametrize("name", [*LINEAR, *VIDEO])
def test_the_adjoint_is_one_on_twenty_shapes(name):
    operator = {**LINEAR, **VIDEO}[name]()
    for seed, shape in enumerate(shapes(name)):
        checks.check_adjoint(operator, shape, seed)
        checks.check_out_shape(operator, shape)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 7, 10)], ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operator_agrees_with_its_matrix(name, shape):
    operator = LINEAR[name]()
    checks.check_prox(operator, shape)
    checks.check_norm2(operator, shape, 1e-5 if isinstance(operator, fourier.FourierMask) else 0.01)
    checks.check_gradient(operator, (1, *shape[1:]))
    checks.check_items(operator, shape)
    checks.check_modes(operator, shape)


# --- Fourier masks


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 7, 9), (1, 1, 12, 5)], ids=str)
@pytest.mark.parametrize("name", [n for n in LINEAR if "radon" not in n])
def test_the_inverse_of_a_fourier_mask_is_the_smallest(name, shape):
    """Against the pseudo-inverse of the matrix."""
    operator = LINEAR[name]()
    checks.check_pinv(operator, shape, 1e-12)
    matrix, y = checks.dense(operator, shape), operator.A(checks.pictures(shape))
    least = torch.linalg.pinv(matrix, rtol=1e-9) @ checks.numbers(y[0])
    assert torch.allclose(operator.pinv(y, shape)[0].flatten(), least, atol=1e-10)


@pytest.mark.parametrize("acceleration, centre", [(2.0, 0.15), (4.0, 0.08), (8.0, 0.04), (16.0, 0.0)])
@pytest.mark.parametrize("pattern", fourier.PATTERNS)
def test_a_mask_keeps_its_share_and_the_centre(pattern, acceleration, centre):
    operator = fourier.FourierMask(pattern, acceleration, centre, 5)
    mask = operator.mask((1, 1, 90, 128))
    assert set(mask.unique().tolist()) == {0.0, 1.0} and mask[0, 0] == 1
    assert 1 / float(mask.mean()) == pytest.approx(acceleration, rel=0.05)  # of whole lines: not quite
    middle, columns = torch.fft.fftshift(mask), fourier.PATTERNS[pattern][1]
    share = centre if columns else math.sqrt(centre)
    wide, high = int(share * 128) // 2, 45 if columns else int(share * 90) // 2
    assert bool(middle[45 - high : 45 + high, 64 - wide : 64 + wide].all())
    assert columns == bool((mask == mask[:1]).all())


@pytest.mark.parametrize("pattern", fourier.PATTERNS)
def test_a_mask_is_its_seeds(pattern):
    shape = (1, 1, 48, 40)
    state = torch.get_rng_state()
    first, again, other = (fourier.FourierMask(pattern, 4.0, 0.04, s).mask(shape) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_poisson_points_are_apart():
    """Uniform ones of the same number come closer, and leave larger holes."""
    gaps = {}
    for pattern in ("poisson", "random2d"):
        points = torch.fft.fftshift(fourier.FourierMask(pattern, 9.0, 0.0, 2).mask((1, 1, 96, 96))).nonzero().double()
        distance = torch.cdist(points, points).fill_diagonal_(torch.inf).amin(1)
        gaps[pattern] = (float((distance < 1.9).double().mean()), float(distance.max()))
    assert gaps["poisson"][0] < 0.05 < 0.3 < gaps["random2d"][0]
    assert gaps["poisson"][1] < gaps["random2d"][1]


def test_gaussian_columns_are_dense_in_the_middle():
    mask = torch.fft.fftshift(fourier.FourierMask("gaussian1d", 4.0, 0.0, 1).mask((1, 1, 1, 512)))[0]
    assert mask[128:384].sum() > 3 * (mask[:128].sum() + mask[384:].sum())


def test_radial_lines_go_through_the_middle():
    middle = torch.fft.fftshift(fourier.FourierMask("radial", 8.0, 0.0, 1).mask((1, 1, 65, 65)))
    rows, columns = (torch.arange(65.0) - 32).view(-1, 1), torch.arange(65.0) - 32
    ring = (torch.hypot(rows, columns) - 10).abs() < 0.5
    outer = (torch.hypot(rows, columns) - 30).abs() < 0.5
    assert middle[ring].mean() > 1.5 * middle[outer].mean()


def test_a_spectrum_is_shown_with_frequency_0_in_the_middle():
    operator = fourier.FourierMask(acceleration=1.0)
    shown = operator.preview(operator.A(checks.pictures((2, 3, 20, 30))))
    assert shown.shape == (2, 3, 20, 30) and shown.flatten(2).argmax(-1).tolist() == [[10 * 30 + 15] * 3] * 2
    assert 0 <= shown.min() and shown.max() == 1


# --- phase retrieval


def test_the_size_of_a_spectrum_is_by_definition():
    x = checks.pictures((2, 3, 8, 12))
    y = fourier.PhaseRetrieval(2.0).A(x)
    wide = torch.zeros(2, 3, 12, 18, dtype=torch.float64)
    wide[..., 2:10, 3:15] = 2 * x - 1
    assert torch.allclose(y, torch.fft.fft2(wide).abs() / math.sqrt(12 * 18))
    assert fourier.PhaseRetrieval(2.0).preview(y).shape == (2, 3, 12, 18)


@pytest.mark.parametrize("oversample", [0.0, 2.0, 3.5, 8.0])
def test_phase_retrieval_has_an_exact_gradient_and_no_inverse(oversample):
    operator, x = fourier.PhaseRetrieval(oversample), checks.pictures((1, 2, 5, 7))
    checks.check_out_shape(operator, x.shape)
    checks.check_gradient(operator, (1, 2, 5, 7))
    with pytest.raises(ValueError, match="PhaseRetrieval is not linear"):
        operator.pinv(operator.A(x), x.shape)
    # a black frequency has no direction, so its gradient is 0 and not nan
    grey = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    assert not torch.autograd.grad(operator.A(grey).sum(), grey)[0].any()


def test_a_turned_picture_looks_the_same_to_it():
    x = checks.pictures((1, 1, 8, 8))
    operator = fourier.PhaseRetrieval()
    assert torch.allclose(operator.A(x), operator.A(x.flip(2, 3)))


# --- tomography


def phantom(height, width):
    """A disc with a bright and a dark spot, within the circle; [1, 1, H, W]."""
    s = min(height, width) / 2
    y = (torch.arange(height).view(-1, 1) - (height - 1) / 2) / s
    x = (torch.arange(width) - (width - 1) / 2) / s
    discs = ((0, 0, 0.8, 0.5), (0.3, -0.2, 0.25, 0.4), (-0.3, 0.3, 0.2, -0.3))
    return sum(v * ((x - a) ** 2 + (y - b) ** 2 < r**2) for a, b, r, v in discs)[None, None].float()


@pytest.mark.parametrize("circle", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (64, 100), (101, 65)], ids=str)
def test_filtered_back_projection_shows_the_phantom(size, circle):
    x = phantom(*size)
    operator = radon.Radon(180, circle=circle)
    back = operator.pinv(operator.A(x), x.shape)
    assert float((back - x).square().mean().sqrt()) < 0.15 * float(x.std())
    assert float(back.mean()) == pytest.approx(float(x.mean()), rel=0.01)
    few = radon.Radon(8, circle=circle)
    assert (few.pinv(few.A(x), x.shape) - x).norm() > 2 * (back - x).norm()


def test_the_first_view_is_the_mean_of_each_column():
    x = checks.pictures((2, 3, 9, 9))
    operator = radon.Radon(2, circle=True)
    inside = (torch.arange(9).view(-1, 1) - 4) ** 2 + (torch.arange(9) - 4) ** 2 <= 4.5**2
    y = operator.A(x)
    assert torch.allclose(y[:, :, 0], (x * inside).mean(2), atol=1e-9)
    assert torch.allclose(y[:, :, 1], (x * inside).mean(3).flip(-1), atol=1e-9)


def test_a_line_through_a_white_picture_is_1():
    assert radon.Radon(7, circle=True).A(torch.ones(1, 1, 65, 65))[..., 32].min() > 0.97
    whole = radon.Radon(3).A(torch.ones(1, 1, 33, 21))
    assert whole.shape[-1] == 40 and whole.max() <= 1
    assert torch.allclose(whole.sum(-1) * 40, torch.tensor(33.0 * 21.0), rtol=0.01)  # each view holds all of it


def test_the_norm_of_many_channels_is_that_of_one():
    assert radon.Radon(4).norm2((2, 3, 16, 12)) == radon.Radon(4).norm2((1, 1, 16, 12))


@pytest.mark.parametrize("views, circle, size", [(1, False, (100, 100)), (3, False, (96, 150)), (6, True, (128, 90))])
def test_the_norm_of_a_large_picture_follows_from_a_smaller_one(views, circle, size):
    operator = radon.Radon(views, circle=circle)
    assert operator.norm2((1, 1, *size)) == pytest.approx(Operator.norm2(operator, (1, 1, *size)), rel=0.03)


def test_a_sinogram_is_shown_as_a_square():
    operator = radon.Radon(8)
    shown = operator.preview(operator.A(checks.pictures((2, 3, 30, 20))))
    assert shown.shape == (2, 3, 37, 37) and shown.max() == 1


# --- frames


@pytest.mark.parametrize("frames", [1, 2, 5, 7])
@pytest.mark.parametrize("name", VIDEO)
def test_frames_are_a_matrix(name, frames):
    operator, shape = VIDEO[name](), (frames, 2, 3, 4)
    matrix, x = operator.matrix(frames), checks.pictures((frames, 2, 3, 4))
    y = operator.A(x)
    assert torch.allclose(y, torch.einsum("ij,jchw->ichw", matrix, x))
    assert operator.norm2(shape) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)) ** 2)
    checks.check_pinv(operator, shape, 1e-12)
    assert operator.mixes_items
    if frames > 1:
        checks.check_gradient(operator, shape)
    z = operator.prox(x, 1 - y, 2.0)
    exact = torch.linalg.solve(torch.eye(frames, dtype=x.dtype) + 2 * matrix.T @ matrix,
                               (x + 2 * torch.einsum("ij,ichw->jchw", matrix, 1 - y)).flatten(1))  # fmt: skip
    assert torch.allclose(z.flatten(1), exact, atol=1e-5)


def test_what_each_mode_leaves_of_five_frames():
    x = torch.tensor([1.0, 2, 3, 4, 5]).view(5, 1, 1, 1)
    seen = {m: temporal.Temporal(m, 2).A(x).flatten().tolist() for m in temporal.MODES}
    assert seen == {"average": [1.5, 3.5, 5], "drop": [1, 3, 5], "mask": [1, 0, 3, 0, 5]}
    back = {m: temporal.Temporal(m, 2).pinv(temporal.Temporal(m, 2).A(x), x.shape).flatten().tolist() for m in seen}
    assert back == {"average": [1.5, 1.5, 3.5, 3.5, 5], "drop": [1, 1, 3, 3, 5], "mask": [1, 1, 3, 3, 5]}


# --- networks


def smoother():
    """A network to pictures of twice the size, with fixed weights."""
    layers = torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Sigmoid()
    net = torch.nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return net.requires_grad_(False)


def test_a_network_is_an_operator_item_by_item():
    operator, x = network.FromNetwork(smoother(), 2), checks.pictures((3, 3, 5, 7), dtype=torch.float32)
    y = operator.A(x)
    assert y.shape == (3, 3, 10, 14) == operator.out_shape(x.shape)
    assert torch.equal(y[1:2], operator.A(x[1:2])) and not operator.linear
    assert operator.A(x.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="takes pictures of 3 channels, but there are 4"):
        operator.A(torch.zeros(1, 4, 5, 7))


def test_the_gradient_of_a_network_is_its_own():
    net = smoother()
    x = checks.pictures((2, 3, 4, 4), dtype=torch.float32).requires_grad_()
    ours, = torch.autograd.grad(network.FromNetwork(net, 2).A(x).square().sum(), x)
    exact, = torch.autograd.grad(net(x).square().sum(), x)
    assert torch.allclose(ours, exact, atol=1e-6)


# --- steering by them


def every():
    return {**{n: LINEAR[n]() for n in ("poisson", "radon", "radon, circle")}, "phase": fourier.PhaseRetrieval(),
            "temporal": temporal.Temporal(), "network": network.FromNetwork(smoother(), 2)}  # fmt: skip


@pytest.mark.parametrize("name", every())
def test_steering_brings_the_residual_down(name):
    operator = every()[name]
    x = checks.pictures((4, 3, 16, 12), 1, torch.float32)
    found = Measurement(operator, operator.A(x), 0.0, tuple(x.shape))
    moved = checks.pictures(x.shape, 2, torch.float32)
    before = checks.misfit(found, moved)
    with torch.inference_mode():
        for _ in range(20):
            moved = moved - found.direction(moved)
    assert checks.misfit(found, moved) < 0.5 * before


# --- bad values


@pytest.mark.parametrize(("make", "message"), [
    (lambda: fourier.FourierMask("spiral"), "pattern is 'spiral'; choose one of uniform1d"),
    (lambda: fourier.FourierMask(acceleration=0.5), "acceleration is 0.5; set it to 1 - 16"),
    (lambda: fourier.FourierMask(acceleration=8.0), "centre_fraction is 0.15, but.* 8 keeps 0.125.*0 - 0.125"),
    (lambda: fourier.PhaseRetrieval(-1.0), "oversample is -1.0; set it to 0 - 8"),
    (lambda: radon.Radon(0), "views is 0; set it to 1 or more"),
    (lambda: radon.Radon(8, 200.0), "arc is 200.0; set it to above 0 and up to 180"),
    (lambda: temporal.Temporal("blend"), "mode is 'blend'; choose one of average, drop, mask"),
    (lambda: temporal.Temporal("average", 0), "frames is 0; set it to 1 or more"),
    (lambda: from_deepinv.arguments("{"), "arguments is no JSON"),
    (lambda: from_deepinv.arguments("[1]"), r"arguments is '\[1\]'; write a JSON object"),
    (lambda: from_deepinv.arguments('{"filter": [[1, 2], [3]]}'), "filter is no tensor.*equally many"),
    (lambda: from_deepinv.arguments('{"filter": [[1, "a"]]}'), "filter is no tensor"),
    (lambda: from_deepinv.FromDeepinv("Camera", {}), "physics is 'Camera'; choose one of Blur"),
])  # fmt: skip
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- deepinv


def test_json_values_are_what_deepinv_takes():
    found = from_deepinv.arguments('{"img_size": [3, 8, 8], "mask": 0.5, "filter": [[[[1, 2]]]], "padding": "valid"}')
    assert found["img_size"] == (3, 8, 8) and found["mask"] == 0.5 and found["padding"] == "valid"
    assert torch.equal(found["filter"], torch.tensor([[[[1.0, 2.0]]]]))


@pytest.mark.parametrize("size", [32, 33])
def test_tomography_is_that_of_deepinv(size):
    physics = pytest.importorskip("deepinv.physics")
    places = torch.arange(size) - (size - 1) / 2
    inside = places[:, None] ** 2 + places**2 < (size / 2 - 1) ** 2
    x = checks.pictures((1, 1, size, size), dtype=torch.float32) * inside
    theirs = physics.Tomography(angles=12, img_width=size, circle=True, normalize=False).A(x)
    assert torch.allclose(size * radon.Radon(12, circle=True).A(x), theirs.transpose(2, 3), atol=1e-4)


def test_mri_is_that_of_deepinv():
    """Which holds frequency 0 in the middle, and complex numbers as two channels."""
    physics = pytest.importorskip("deepinv.physics")
    ours, x = fourier.FourierMask("poisson", 4.0, 0.04), checks.pictures((2, 1, 32, 48), dtype=torch.float32)
    mask = torch.fft.fftshift(ours.mask(x.shape))
    theirs = physics.MRI(mask=mask[None, None], img_size=(32, 48)).A(torch.cat([x, torch.zeros_like(x)], 1))
    # theirs has the picture's middle at the origin, too
    moved = torch.fft.fftshift(ours.A(torch.fft.ifftshift(x, (2, 3))), (2, 3))
    assert torch.allclose(torch.view_as_real(moved[:, 0]).movedim(-1, 1), theirs, atol=1e-5)


@pytest.mark.parametrize(("name", "text"), [
    ("Blur", '{"filter": [[[[0.1, 0.2], [0.3, 0.4]]]], "padding": "circular"}'),
    ("BlurFFT", '{"img_size": [3, 16, 16], "filter": [[[[0.1, 0.2], [0.3, 0.4]]]]}'),
    ("CompressedSensing", '{"m": 20, "img_size": [3, 16, 16]}'),
    ("Decolorize", "{}"),
    ("Demosaicing", '{"img_size": [3, 16, 16]}'),
    ("Downsampling", '{"img_size": [3, 16, 16], "factor": 2, "filter": "bicubic"}'),
    ("DownsamplingMatlab", '{"factor": 2}'),
    ("Inpainting", '{"img_size": [3, 16, 16], "mask": 0.5}'),
    ("SinglePixelCamera", '{"m": 20, "img_size": [3, 16, 16]}'),
    ("Tomography", '{"angles": 8, "img_width": 16, "normalize": false}'),
])  # fmt: skip
def test_a_physics_of_deepinv_is_an_operator(name, text):
    pytest.importorskip("deepinv")
    state = torch.get_rng_state()
    with torch.inference_mode():
        operator, again = (from_deepinv.FromDeepinv(name, from_deepinv.arguments(text), 4) for _ in range(2))
        x = checks.pictures((2, 3, 16, 16), dtype=torch.float32)
        y = operator.A(x)
        assert torch.equal(y, again.A(x)) and y.dtype == torch.float32 and operator.linear
        assert checks.adjoint_error(operator, x.shape, dtype=torch.float32) < 1e-5
        assert Measurement(operator, y, 0.0, tuple(x.shape)).direction(1 - x).isfinite().all()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(operator.A(x.bfloat16()), operator.A(x.bfloat16().float()))


def test_deepinv_arguments_that_do_not_suit_are_named():
    pytest.importorskip("deepinv")
    with pytest.raises(ValueError, match="arguments names colour, but Decolorize takes channels, srf"):
        from_deepinv.FromDeepinv("Decolorize", {"colour": 3})
    with pytest.raises(ValueError, match="arguments do not suit CompressedSensing.*it takes m, img_size"):
        from_deepinv.FromDeepinv("CompressedSensing", {"m": 3})
    operator = from_deepinv.FromDeepinv("Inpainting", {"img_size": (3, 16, 16), "mask": 0.5})
    with pytest.raises(ValueError, match="Inpainting does not take pictures of shape"):
        operator.A(torch.zeros(1, 3, 9, 9))
