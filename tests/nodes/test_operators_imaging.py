"""Fourier masks, phase retrieval, tomography and frames inside a host."""

import pytest
import torch
from operator_checks import misfit
from operator_nodes import call, check_operator, image, operator

SCANNERS = {
    **{p: lambda host, p=p: operator(host, "FourierMask", pattern=p)
       for p in ("uniform1d", "gaussian1d", "random2d", "poisson", "radial")},
    "phase": lambda host: operator(host, "PhaseRetrieval"),
    "radon": lambda host: operator(host, "Radon"),
    "radon, circle": lambda host: operator(host, "Radon", circle=True, arc=90.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SCANNERS)
def test_a_picture_is_measured_shown_and_steered_by(host, name):
    check_operator(host, SCANNERS[name](host), gain=0.7)


@pytest.mark.parametrize("name", SCANNERS)
def test_item_k_of_a_batch_is_that_item_alone(host, name):
    made, pictures = SCANNERS[name](host), image(3)
    whole, _ = call(host, "ApplyOperator", operator=made, image=pictures)
    for k in range(3):
        alone, _ = call(host, "ApplyOperator", operator=made, image=pictures[k : k + 1])
        assert torch.allclose(alone.y[0], whole.y[k], atol=1e-6)


@pytest.mark.parametrize("mode", ["average", "drop", "mask"])
@pytest.mark.parametrize(("items", "frames"), [(4, 2), (5, 2), (5, 3), (1, 4), (2, 64)])
def test_frames_are_measured_shown_and_steered_by(host, mode, items, frames):
    measured = check_operator(host, operator(host, "Temporal", mode=mode, frames=frames), items=items, gain=0.8)
    assert len(measured.y) == (items if mode == "mask" else -(-items // frames))
    # another number of frames is another video
    with pytest.raises(ValueError, match="measurement is of pictures"):
        measured.direction(image(2 * items + 70).movedim(-1, 1))


def test_a_sinogram_and_a_spectrum_are_shown(host):
    _, spectrum = call(host, "ApplyOperator", operator=operator(host, "FourierMask"), image=image(1, 16, 20))
    _, sinogram = call(host, "ApplyOperator", operator=operator(host, "Radon"), image=image(1, 16, 20))
    assert spectrum.shape == (1, 16, 20, 3) and sinogram.shape == (1, 26, 26, 3)
    assert int(spectrum[0, ..., 0].argmax()) == 8 * 20 + 10  # frequency 0 is in the middle


def test_noise_of_a_spectrum_is_complex(host):
    made = operator(host, "FourierMask", acceleration=1.0, centre_fraction=1.0)
    measured, _ = call(host, "ApplyOperator", operator=made, image=image(2, 64, 64), sigma_y=0.1, seed=3)
    assert measured.y.is_complex()
    assert misfit(measured, image(2, 64, 64).movedim(-1, 1)) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(("name", "inputs", "message"), [
    ("FourierMask", {"acceleration": 8.0}, "centre_fraction is 0.15, but acceleration 8 keeps 0.125"),
    ("FourierMask", {"pattern": "lines"}, "pattern is 'lines'"),
    ("PhaseRetrieval", {"oversample": 9.0}, "oversample is 9.0"),
    ("Radon", {"views": 0}, "views is 0"),
    ("Radon", {"arc": 0.0}, "arc is 0.0"),
    ("Temporal", {"frames": 0}, "frames is 0"),
])  # fmt: skip
def test_wrong_inputs_are_named(host, name, inputs, message):
    with pytest.raises(ValueError, match=message):
        operator(host, name, **inputs)
