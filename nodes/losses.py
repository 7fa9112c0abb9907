"""LOSS nodes: what a steered picture should have little of."""

import math

import torch
from comfy_api.latest import io

from ..operators import losses
from ..samplers.plan import check_choices
from ._inputs import mask_of, pixels_of
from ._schema import schema
from ._types import LOSS, MEASUREMENT
from ._vision import vision_embeds, vision_states

CATEGORY = "trajectory/steering/losses"
TARGETS = ("mean", "palette", "histogram")


def loss_output():
    return LOSS.Output(display_name="loss", tooltip="For FlowChef Sampler, or Loss Sum.")


def parsed_colours(text):
    """Colours [K, 3] in 0..1 of words such as #e08030, separated by commas or spaces."""
    colours = []
    for word in text.replace(",", " ").split():
        digits = word.removeprefix("#")
        if len(digits) != 6 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
            raise ValueError(f"colours has {word!r}; write each colour as # and six digits, such as #e08030")
        colours.append([byte / 255 for byte in bytes.fromhex(digits)])
    return torch.tensor(colours)


def parsed_layers(text):
    """Numbers of layers, separated by commas or spaces."""
    words = text.replace(",", " ").split()
    try:
        layers = [int(word) for word in words]
    except ValueError as error:
        raise ValueError(f"layers is {text!r}; write whole numbers with commas, such as -12, -8, -4") from error
    if not layers:
        raise ValueError("layers is empty; write whole numbers with commas, such as -12, -8, -4")
    return layers


def region(mask):
    """Weights [1, 1, H, W] of a MASK, or None."""
    if mask is None:
        return None
    mask = mask_of("mask", mask)[:, None]
    if len(mask) != 1:
        raise ValueError(f"mask has {len(mask)} items, and one is used for all pictures; pick one of them")
    if not mask.any():
        raise ValueError("mask is black everywhere, so the loss would see nothing; paint white where it is to act")
    return mask


class LossColour(io.ComfyNode):
    """LOSS of colours."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryLossColour",
            display_name="Loss Colour",
            category=CATEGORY,
            description=(
                "How far a picture's colours are from wanted ones: a mean colour, a palette, or the histogram of a "
                "reference picture; in the whole picture or under a mask."
            ),
            search_aliases=["color", "tint", "palette", "histogram", "colour transfer", "grading", "steering"],
            inputs=[
                io.Combo.Input("target", options=list(TARGETS), default="mean", tooltip=(
                    "mean: the mean colour is the first of colours. palette: each pixel has one of colours. "
                    "histogram: the colours of reference, as often as there.")),
                io.String.Input("colours", default="#e08030", tooltip=(
                    "Colours as # and six hexadecimal digits, with commas; for mean and palette.")),
                io.Image.Input("reference", optional=True, tooltip=(
                    "Whose histogram is wanted; several pictures count together. For histogram.")),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "White is where the loss acts. Resized to the picture. Without it, everywhere.")),
            ],
            outputs=[loss_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, target, colours, reference=None, mask=None):
        check_choices({"target": (target, TARGETS)})
        where = region(mask)
        if target == "histogram":
            if reference is None:
                raise ValueError("reference is not connected; target 'histogram' takes its colours from a picture")
            return io.NodeOutput(losses.histogram(pixels_of("reference", reference), where))
        wanted = parsed_colours(colours)
        if not len(wanted):
            raise ValueError("colours is empty; write a colour as # and six digits, such as #e08030")
        made = losses.mean_colour(wanted[0], where) if target == "mean" else losses.palette(wanted, where)
        return io.NodeOutput(made)


class LossCLIPVision(io.ComfyNode):
    """LOSS of likeness to a picture."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryLossCLIPVision",
            display_name="Loss CLIP Vision",
            category=CATEGORY,
            description=(
                "How unlike a reference picture a picture is in what it shows: 1 - cosine of their CLIP Vision "
                "embeddings."
            ),
            search_aliases=["clip", "similarity", "cosine", "semantic", "image prompt", "guidance", "steering"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip=(
                    "From Load CLIP Vision. The pictures are resized to its square as a whole, without crop.")),
                io.Image.Input("reference", tooltip="What the picture should be like; of several, their mean."),
            ],
            outputs=[loss_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip_vision, reference):
        return io.NodeOutput(losses.similarity(vision_embeds(clip_vision), pixels_of("reference", reference)))


class LossStyleGram(io.ComfyNode):
    """LOSS of style."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryLossStyleGram",
            display_name="Loss Style Gram",
            category=CATEGORY,
            description=(
                "How unlike a reference picture a picture is in style: the distance of the Gram matrices of hidden "
                "states of a CLIP Vision network."
            ),
            search_aliases=["style transfer", "gram matrix", "texture", "clip vision", "guidance", "steering"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip=(
                    "From Load CLIP Vision. The pictures are resized to its square as a whole, without crop.")),
                io.Image.Input("reference", tooltip="Whose style is wanted; of several, the mean of their matrices."),
                io.String.Input("layers", default="-12, -8, -4", tooltip=(
                    "Which layers of the network, with commas: 0 is the first, -1 the last. Early layers are textures, "
                    "late ones what is shown.")),
            ],
            outputs=[loss_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip_vision, reference, layers):
        states = vision_states(clip_vision, parsed_layers(layers))
        return io.NodeOutput(losses.style(states, pixels_of("reference", reference)))


class LossMeasurement(io.ComfyNode):
    """LOSS of a measurement."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryLossMeasurement",
            display_name="Loss Measurement",
            category=CATEGORY,
            description=(
                "How much a picture contradicts a measurement: the mean of |A x - y|^2. To weigh a measurement against "
                "other losses; alone, connect it to the sampler's own input."
            ),
            search_aliases=["data fidelity", "consistency", "inverse problem", "residual", "steering"],
            inputs=[
                MEASUREMENT.Input("measurement", tooltip="Of pixels, from Apply Operator, without Through VAE."),
            ],
            outputs=[loss_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, measurement):
        return io.NodeOutput(losses.measured(measurement))


class LossSum(io.ComfyNode):
    """LOSS as a weighted sum."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryLossSum",
            display_name="Loss Sum",
            category=CATEGORY,
            description="Joins up to four losses by weights, so that a picture is steered by all of them.",
            search_aliases=["combine", "add", "weights", "multiple losses", "steering"],
            inputs=[
                *(LOSS.Input(f"loss_{k}", optional=k > 1, tooltip="One of the losses.") for k in range(1, 5)),
                *(io.Float.Input(f"weight_{k}", default=1.0, min=-1000.0, max=1000.0, step=0.01, tooltip=(
                    f"Weight of loss_{k}. Only their ratios matter; a negative one turns its loss around."))
                    for k in range(1, 5)),
            ],
            outputs=[loss_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, weight_1, weight_2, weight_3, weight_4, **connected):
        weights = {"loss_1": weight_1, "loss_2": weight_2, "loss_3": weight_3, "loss_4": weight_4}
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"{name.replace('loss', 'weight')} is {weight}; set it to a finite number")
        terms = [(loss, weights[name]) for name, loss in connected.items() if loss is not None]
        if not any(weight for _, weight in terms):
            raise ValueError("weight is 0 for every connected loss, so nothing would steer; raise one of them")
        return io.NodeOutput(losses.weighted_sum(terms))


NODES = [LossColour, LossCLIPVision, LossStyleGram, LossMeasurement, LossSum]
