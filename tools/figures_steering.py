"""The pictures of the help pages of FlowChef and its losses."""

import functools

import numpy as np
import torch
from drawing import painted, sheet, studio
from PIL import Image
from studio import example
from trajectory.operators import losses
from trajectory.operators.measurement import Measurement
from trajectory.operators.resample import Downsample

# --- losses ----------------------------------------------------------------------------------------------------------


@functools.cache
def painting(name="Text to image"):
    """The painting of an example as pixels [1, 3, H, W]."""
    return torch.from_numpy(np.array(painted(name, {})[0])).movedim(-1, 0)[None] / 255


def shown(pixels):
    return Image.fromarray((255 * pixels[0].clamp(0, 1)).round().byte().movedim(0, -1).numpy())


def descended(loss, x, steps=40, rate=0.05):
    """x after steps along the loss, each a share `rate` of the picture's size that shrinks to nothing."""
    for step in range(steps):
        x = x - rate * (1 - step / steps) * loss.direction(x)
    return x


def loss_colour():
    start, colours = painting(), torch.tensor([[0.878, 0.502, 0.188], [0.125, 0.188, 0.376]])
    upper = torch.zeros(1, 1, 128, 128)
    upper[..., :64, :] = 1
    cases = {
        "mean": losses.mean_colour(colours[0]), "mean, masked": losses.mean_colour(colours[0], upper),
        "palette": losses.palette(colours), "histogram": losses.histogram(painting("DEIS in model time")),
    }  # fmt: skip
    steered = [(shown(descended(loss, start)), name) for name, loss in cases.items()]
    return sheet([[(shown(start), "picture"), *steered]])


def steered(**settings):
    """Pictures of the example of a measurement and a histogram, summed, by titles of its nodes."""
    return studio().pictures(example("FlowChef colour guidance"), settings)


def loss_measurement():
    """Of a caption that says nothing of places."""
    run = {"Caption.text": "the sea with a sun and a red balloon", "Noise.noise_seed": 5, "Solver.stop": 0.6}
    row = []
    for label, strength, weight in (
        ("without steering", 0.0, 0.0), ("by this loss alone", 0.2, 0.0), ("with Loss Colour", 0.2, 2.0)
    ):
        pictures = steered(**run, **{"Solver.strength": strength, "Layout and colours.weight_2": weight})
        row.append((pictures["Picture"][0], label))
    return sheet([[(pictures["Plot"][0], "measurement"), *row]])


def loss_sum():
    weights = (0.0, 1.0, 1.5, 2.0)
    return sheet([[
        (steered(**{"Layout and colours.weight_2": weight})["Picture"][0], f"weight_2 {weight:g}") for weight in weights
    ]])  # fmt: skip


def loss_clip_vision():
    wide = painting()[..., 24:104, :]
    square = torch.nn.functional.interpolate(wide, (64, 64), mode="bicubic", antialias=True)
    on_paper = torch.nn.functional.pad(wide, (0, 0, 24, 24), value=1.0)
    return sheet([[(shown(on_paper), "picture"), (shown(wide[..., 24:104]), "usual crop"),
                   (shown(square), "seen by this loss")]])  # fmt: skip


def loss_style_gram():
    def gram(pixels):
        patches = torch.nn.functional.pixel_unshuffle(pixels, 4).flatten(2).mT[:, None]
        return losses.gram(patches)[0]

    start = painting()
    cells = torch.nn.functional.pixel_unshuffle(start, 4).flatten(2)
    order = torch.randperm(cells.shape[-1], generator=torch.Generator().manual_seed(0))
    mixed = torch.nn.functional.pixel_shuffle(cells[..., order].unflatten(2, (32, 32)), 4)
    row = []
    for pixels, name in ((start, "picture"), (mixed, "patches shuffled")):
        matrix = gram(pixels)[:, None].expand(-1, 3, -1, -1)
        row += [(shown(pixels), name), (shown(0.5 + matrix / 2 / matrix.abs().max()), "its Gram matrix")]
    return sheet([row])


def operator_through_vae():
    from trajectory.nodes.models import TrajectoryLoadMiniature  # the host is active by now
    from trajectory.nodes.operators_vae import OperatorThroughVAE

    vae = TrajectoryLoadMiniature.execute("landscapes (flow)").args[2]
    small = Downsample(4, "area")
    operator = OperatorThroughVAE.execute(small, vae).args[0]
    measurement = Measurement(operator, operator.observe(painting()), 0.0, operator.domain((1, 3, 128, 128)))
    z = 0.3 * torch.randn(measurement.shape, generator=torch.Generator().manual_seed(0))
    row = [(shown(painting()), "picture"), (shown(measurement.y), "measurement")]
    for step in range(61):
        if step in (0, 60):
            row.append((shown(operator.decode(z)), f"latents, {step} steps"))
        z = z - measurement.direction(z)
    return sheet([row])


# --- FlowChef --------------------------------------------------------------------------------------------------------


def flowchef():
    """Above what each example is given, below what it paints."""
    rows = [[], []]
    for name, given, label in (
        ("inpaint", "Source", "other words for the right side"),
        ("edit", "Source", "another colour"),
        ("4x super-resolution", "Plot", "4x the size"),
        ("deblur", "Plot", "deblurred"),
    ):
        pictures = studio().pictures(example(f"FlowChef {name}"))
        small = pictures[given][0]
        rows[0].append((small.resize((256, 256), Image.Resampling.NEAREST), "given"))
        rows[1].append((pictures["Picture"][0], label))
    return sheet(rows)


def edit_guider():
    guidances = (1.0, 3.0, 8.0)
    source = studio().pictures(example("FlowChef edit"))["Source"][0]
    masked, box = source.copy(), (80, 8, 120, 68)
    masked.paste(Image.blend(source.crop(box), Image.new("RGB", (40, 60), "white"), 0.6), box)
    edits = [(painted("FlowChef edit", {"Edit guidance.cfg": cfg})[0], f"cfg {cfg:g}") for cfg in guidances]
    return sheet([[(masked, "source and mask"), *edits]])


FIGURES = {
    "TrajectoryFlowChefSampler": flowchef,
    "TrajectoryFlowChefEditGuider": edit_guider,
    "TrajectoryLossColour": loss_colour,
    "TrajectoryLossCLIPVision": loss_clip_vision,
    "TrajectoryLossStyleGram": loss_style_gram,
    "TrajectoryLossMeasurement": loss_measurement,
    "TrajectoryLossSum": loss_sum,
    "TrajectoryOperatorThroughVAE": operator_through_vae,
}
