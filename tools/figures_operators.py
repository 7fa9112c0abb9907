"""The pictures of the help pages of operators and measurements."""

import functools

import numpy as np
import torch
from drawing import painted, sheet
from PIL import Image
from trajectory.operators import (
    blur,
    colour,
    combine,
    compression,
    fourier,
    masks,
    measurement,
    network,
    radon,
    resample,
    temporal,
)  # fmt: skip


@functools.cache
def picture():
    """The painting of the first example, pixels [1, 3, H, W]."""
    return pixels(painted("Text to image", {})[0])


def pixels(painting):
    return torch.from_numpy(np.asarray(painting).copy()).movedim(-1, 0)[None] / 255


def drawn(pixels, size=128):
    """Pixels [1, 3, h, w] as a picture, small ones with pixels that can be seen."""
    shown = Image.fromarray((255 * pixels[0].clamp(0, 1)).round().byte().movedim(0, -1).numpy())
    return shown.resize((size, round(size * shown.height / shown.width)), Image.Resampling.NEAREST)


def seen(operator, sigma=0.0):
    """What an operator makes of the painting, as Apply Operator shows it."""
    y = operator.A(picture())
    return drawn(operator.preview(y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))))


def beside_the_picture(*cases):
    """One row: the painting, then (operator, label)."""
    return sheet([[(drawn(picture()), "picture"), *((seen(operator), label) for operator, label in cases)]])


def hole():
    mask = torch.zeros(1, 128, 128)
    mask[:, 44:100, 32:88] = 1
    return mask


def mask():
    return beside_the_picture(
        (masks.Mask(hole()), "mask"), (masks.Mask(masks.grown(hole(), 16)), "grow 16"),
        (masks.Mask(1 - hole()), "invert"),
    )  # fmt: skip


def downsample():
    kernels = ("area", "bicubic", "gaussian", "nearest")
    return beside_the_picture(*((resample.Downsample(4, kernel), f"factor 4, {kernel}") for kernel in kernels))


def blurs():
    return beside_the_picture(
        (blur.Blur(blur.gaussian_kernel(3.0)), "gaussian, sigma 3"),
        (blur.Blur(blur.motion_kernel(15, 45)), "motion, length 15, angle 45"),
        (blur.Blur(blur.disk_kernel(4.0)), "disk, radius 4"),
    )


def colours():
    names = ("grayscale", "drop red", "drop green", "drop blue")
    return beside_the_picture(*((colour.Colour(colour.MATRICES[name]), name) for name in names))


def compose():
    first, then = blur.Blur(blur.gaussian_kernel(3.0)), resample.Downsample(4)
    return beside_the_picture(
        (first, "inner: blur"), (then, "outer: fewer pixels"), (combine.Compose(then, first), "composed"))


def stack():
    known, grey = masks.Mask(hole()), colour.Colour(colour.MATRICES["mean"])
    both = combine.Stack(known, grey)
    told = both.pinv(both.A(picture()), picture().shape)
    return sheet([[
        (drawn(picture()), "picture"), (seen(known), "a: with a hole"), (seen(grey), "b: in grey"),
        (drawn(told), "what both tell"),
    ]])  # fmt: skip


def apply_operator():
    degraded = resample.Downsample(2)
    return sheet([[(drawn(picture()), "picture"),
                   *((seen(degraded, sigma), f"sigma_y {sigma:g}") for sigma in (0, 0.05, 0.1, 0.2))]])  # fmt: skip


def measurement_from_image():
    """From grey alone, by nothing but the measurement."""
    operator = combine.Compose(resample.Downsample(4, "bicubic"), blur.Blur(blur.gaussian_kernel(1.0)))
    given = measurement.Measurement(operator, operator.A(picture()), 0.0, tuple(picture().shape))
    row, x = [(seen(operator), "image, 32 x 32")], torch.full_like(picture(), 0.5)
    for moves in range(31):
        if moves in (1, 5, 30):
            row.append((drawn(x), f"after {moves} move{'s' * (moves > 1)}"))
        x = x - given.direction(x)
    return sheet([row])


def measurement_report():
    operator = resample.Downsample(4, "bicubic")
    given = measurement.Measurement(operator, operator.A(picture()), 0.0, tuple(picture().shape))
    resized = torch.nn.functional.interpolate(given.y, scale_factor=4, mode="bicubic").clamp(0, 1)
    candidates = {
        "the original": picture(), "the measurement, resized": resized,
        "another seed": pixels(painted("Text to image", {"Noise.noise_seed": 5})[0]),
    }  # fmt: skip
    row = [(seen(operator), "measurement")]
    for name, x in candidates.items():
        numbers = f"residual {given.picture_error(x):.3f}, PSNR {measurement.psnr(x, picture()):.0f} dB"
        row.append((drawn(x), f"{name}: {numbers}"))
    return sheet([row])


def jpeg():
    return beside_the_picture(*(
        (compression.JPEG(quality, sub), f"quality {quality}, {sub}")
        for quality, sub in ((5, "4:2:0"), (20, "4:2:0"), (20, "4:4:4"), (75, "4:2:0"))
    ))  # fmt: skip


def quantise():
    return beside_the_picture(*((compression.Quantise(bits), f"{bits} bits") for bits in (4, 3, 2, 1)))


def clip():
    return beside_the_picture(*((compression.Clip(gain), f"gain {gain:g}") for gain in (0.5, 2, 4)))


def measured_and_back(cases):
    """What operators {label: operator} measure in a row, and their pseudo-inverses in a second."""
    back = [operator.pinv(operator.A(picture()), picture().shape) for operator in cases.values()]
    return sheet([[(seen(operator), label) for label, operator in cases.items()],
                  [(drawn(told), "its inverse") for told in back]])  # fmt: skip


def fourier_mask():
    return measured_and_back({name: fourier.FourierMask(name, 4.0, 0.04) for name in fourier.PATTERNS})


def phase_retrieval():
    """Two pictures of one measurement, and one of another."""
    operator = fourier.PhaseRetrieval()
    given = measurement.Measurement(operator, operator.A(picture()), 0.0, tuple(picture().shape))
    candidates = {"picture": picture(), "turned by 180 degrees": picture().flip(2, 3), "mirrored": picture().flip(3)}
    return sheet([
        [(drawn(x), label) for label, x in candidates.items()],
        [(drawn(operator.preview(operator.A(x))), f"its spectrum: residual {given.picture_error(x):.2f}")
         for x in candidates.values()],
    ])  # fmt: skip


def radon_views():
    cases = {
        "8 views": radon.Radon(8), "32 views": radon.Radon(32), "180 views": radon.Radon(180),
        "90 views, arc 90": radon.Radon(90, 90.0), "60 views, circle": radon.Radon(60, circle=True),
    }  # fmt: skip
    return measured_and_back(cases)


def frames():
    """The painting moves to the right by four pixels a frame."""
    video = torch.cat([picture().roll(4 * k, 3) for k in range(4)])
    seen_ = [(drawn(frame[None]), f"{mode}, frame {k}")
             for mode in ("average", "drop") for k, frame in enumerate(temporal.Temporal(mode, 2).A(video))]
    return sheet([[(drawn(frame[None]), f"frame {k}") for k, frame in enumerate(video)], seen_])


def from_model():
    """A blur in the place of an upscale model, which the pack does not bring; found again by its measurement alone."""
    soft = torch.nn.AvgPool2d(7, 1, 3, count_include_pad=False)
    operator = network.FromNetwork(lambda x: soft(x).pow(2))
    given = measurement.Measurement(operator, operator.A(picture()), 0.0, tuple(picture().shape))
    row, x = [(drawn(picture()), "picture"), (seen(operator), "what the network makes of it")], given.y
    for moves in range(41):
        if moves in (5, 40):
            row.append((drawn(x), f"after {moves} moves"))
        x = x - given.direction(x)
    return sheet([row])


def pixels_at_random():
    """What deepinv's Inpainting does, without deepinv, which need not be there."""
    kept = {}
    for share in (0.9, 0.5, 0.1):
        chance = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(0))
        kept[f'"mask": {share}'] = masks.Mask((chance > share).float())
    return beside_the_picture(*((operator, label) for label, operator in kept.items()))


FIGURES = {
    "TrajectoryOperatorMask": mask,
    "TrajectoryOperatorDownsample": downsample,
    "TrajectoryOperatorBlur": blurs,
    "TrajectoryOperatorColour": colours,
    "TrajectoryOperatorCompose": compose,
    "TrajectoryOperatorStack": stack,
    "TrajectoryApplyOperator": apply_operator,
    "TrajectoryMeasurementFromImage": measurement_from_image,
    "TrajectoryMeasurementReport": measurement_report,
    "TrajectoryOperatorJPEG": jpeg,
    "TrajectoryOperatorQuantise": quantise,
    "TrajectoryOperatorClip": clip,
    "TrajectoryOperatorFourierMask": fourier_mask,
    "TrajectoryOperatorPhaseRetrieval": phase_retrieval,
    "TrajectoryOperatorRadon": radon_views,
    "TrajectoryOperatorTemporal": frames,
    "TrajectoryOperatorFromModel": from_model,
    "TrajectoryOperatorFromDeepinv": pixels_at_random,
}
