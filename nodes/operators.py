"""Measurement operators of cameras as OPERATOR nodes, and what is made of two of them."""

import re

from comfy_api.latest import io

from ..operators import blur, colour, combine, masks, resample
from ..samplers.plan import check_choices
from ._inputs import mask_of, pixels_of
from ._schema import schema
from ._types import OPERATOR

CATEGORY = "trajectory/steering/operators"
BLURS = {
    "gaussian": lambda sigma, size, **_: blur.gaussian_kernel(sigma, size),
    "motion": lambda length, angle, **_: blur.motion_kernel(length, angle),
    "disk": lambda radius, **_: blur.disk_kernel(radius),
    "custom": lambda kernel_image=None, **_: pictured_kernel(kernel_image),
}
"""{kernel: its weights [h, w] from the inputs of Operator Blur}"""


def operator_output():
    return OPERATOR.Output(display_name="operator", tooltip="For Apply Operator, Measurement From Image, Operator "
                           "Compose, Operator Stack and Operator Through VAE.")  # fmt: skip


class OperatorMask(io.ComfyNode):
    """OPERATOR that hides what a mask covers."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorMask",
            display_name="Operator Mask",
            category=CATEGORY,
            description="Hides the white part of a mask: inpainting as a measurement, of pictures, frames or latents.",
            search_aliases=["inpainting", "measurement", "inverse problem", "degradation", "missing pixels"],
            inputs=[
                io.Mask.Input("mask", tooltip=(
                    "White is unknown, as in the host's noise masks. One for all pictures, or one for each.")),
                io.Combo.Input("resize", options=list(masks.RESIZES), default="area", tooltip=(
                    "How a mask of another size is fitted to the pictures: area keeps a cell that is known as a whole, "
                    "nearest one whose middle is.")),
                io.Boolean.Input("invert", default=False, tooltip="Black is unknown instead."),
                io.Int.Input("grow", default=0, min=0, max=256, tooltip=(
                    "Pixels of the mask by which the unknown part grows on every side.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, mask, resize, invert, grow):
        mask = mask_of("mask", mask)
        return io.NodeOutput(masks.Mask(masks.grown(1 - mask if invert else mask, grow), resize))


class OperatorDownsample(io.ComfyNode):
    """OPERATOR that makes pictures smaller."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorDownsample",
            display_name="Operator Downsample",
            category=CATEGORY,
            description="Makes pictures smaller by a whole factor: super-resolution as a measurement.",
            search_aliases=["super-resolution", "upscale", "resize", "measurement", "inverse problem", "degradation"],
            inputs=[
                io.Int.Input("factor", default=4, min=2, max=resample.MOST, tooltip=(
                    "How many pixels become one, along each side. It must divide width and height.")),
                io.Combo.Input("kernel", options=list(resample.KERNELS), default="area", tooltip=(
                    "How they are weighed. area: their mean. bicubic: as Matlab's imresize and most papers. gaussian: "
                    "softer, without ringing. nearest: the one in the middle, with aliasing.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, factor, kernel):
        return io.NodeOutput(resample.Downsample(factor, kernel))


class OperatorBlur(io.ComfyNode):
    """OPERATOR that blurs."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorBlur",
            display_name="Operator Blur",
            category=CATEGORY,
            description=(
                "Blurs by a Gaussian, a movement, a lens out of focus or a kernel of your own: deblurring as a "
                "measurement. The picture keeps its size and does not shift."
            ),
            search_aliases=["deblur", "convolution", "motion blur", "defocus", "psf", "measurement", "degradation"],
            inputs=[
                io.Combo.Input("kernel", options=list(BLURS), default="gaussian", tooltip=(
                    "What a point of light becomes. custom: the picture in kernel_image.")),
                io.Float.Input("sigma", default=3.0, min=0.1, max=50.0, step=0.1, tooltip=(
                    "Of gaussian: its standard deviation in pixels.")),
                io.Int.Input("size", default=0, min=0, max=255, tooltip=(
                    "Of gaussian: the edge of the kernel in pixels. 0 takes 3 sigma on each side.")),
                io.Int.Input("length", default=15, min=1, max=255, tooltip="Of motion: the path in pixels."),
                io.Float.Input("angle", default=45.0, min=-180.0, max=180.0, step=1.0, tooltip=(
                    "Of motion: its direction in degrees, counter-clockwise from the right.")),
                io.Float.Input("radius", default=4.0, min=0.5, max=64.0, step=0.1, tooltip="Of disk, in pixels."),
                io.Combo.Input("border", options=list(blur.BORDERS), default="reflect", tooltip=(
                    "What lies beyond the picture: its mirror image, its other side, or black.")),
                io.Image.Input("kernel_image", optional=True, tooltip=(
                    "Of custom: a blurred point of light on black, its middle in the middle. The mean of its channels "
                    "over their sum is taken.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, kernel, border, **shape):
        check_choices({"kernel": (kernel, BLURS)})
        return io.NodeOutput(blur.Blur(BLURS[kernel](**shape), border))


def pictured_kernel(image):
    """Weights [H, W] of the first picture of an IMAGE."""
    if image is None:
        raise ValueError("kernel is custom, but kernel_image is not connected; connect a picture of a blurred point of "
                         "light, or choose another kernel")
    return pixels_of("kernel_image", image)[0].mean(0)


class OperatorColour(io.ComfyNode):
    """OPERATOR that mixes or drops channels."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorColour",
            display_name="Operator Colour",
            category=CATEGORY,
            description="Turns pictures grey, drops a channel or mixes channels: colourisation as a measurement.",
            search_aliases=["grayscale", "colorize", "colourise", "color", "channel", "measurement", "degradation"],
            inputs=[
                io.Combo.Input("matrix", options=[*colour.MATRICES, "custom"], default="grayscale", tooltip=(
                    "What is measured of red, green and blue. grayscale: 0.299, 0.587, 0.114 of them. mean: a third of "
                    "each. drop: the two other channels. custom: the rows below.")),
                io.String.Input("rows", default="1, 0, 0; 0, 0.5, 0.5", tooltip=(
                    "Of custom: the weights of red, green and blue for each measured channel, rows separated by ;.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, matrix, rows):
        check_choices({"matrix": (matrix, (*colour.MATRICES, "custom"))})
        return io.NodeOutput(colour.Colour(parse_rows(rows) if matrix == "custom" else colour.MATRICES[matrix]))


def parse_rows(text):
    """[[numbers]] of '1, 0, 0; 0, 0.5, 0.5'. Raises ValueError where a number or the same number of them is missing."""
    try:
        rows = [[float(word) for word in re.split(r"[,\s]+", row.strip())] for row in re.split(r"[;\n]", text.strip())]
    except ValueError:
        rows = []
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"rows is {text!r}; write equally many numbers a row, separated by commas, and ; between "
                         "rows, such as 1, 0, 0; 0, 0.5, 0.5")
    return rows


class OperatorCompose(io.ComfyNode):
    """OPERATOR of two, one after the other."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorCompose",
            display_name="Operator Compose",
            category=CATEGORY,
            description="One operator after the other: first inner, then outer, such as a blur, then fewer pixels.",
            search_aliases=["chain", "sequence", "measurement", "degradation"],
            inputs=[
                OPERATOR.Input("outer", tooltip="Acts on what inner measures."),
                OPERATOR.Input("inner", tooltip="Acts on the pictures, or on latents (Operator Through VAE)."),
            ],
            outputs=[operator_output()],
        )

    @classmethod
    def execute(cls, outer, inner):
        return io.NodeOutput(combine.Compose(outer, inner))


class OperatorStack(io.ComfyNode):
    """OPERATOR of two, side by side."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorStack",
            display_name="Operator Stack",
            category=CATEGORY,
            description="Two measurements of the same pictures, taken as one: whoever steers by it agrees with both.",
            search_aliases=["concat", "both", "several", "measurement", "degradation"],
            inputs=[
                OPERATOR.Input("a", tooltip="The first operator."),
                OPERATOR.Input("b", tooltip="The second operator, on pictures or latents as the first."),
                io.Float.Input("weight_a", default=1.0, min=0.0, max=100.0, step=0.01, tooltip=(
                    "Multiplies what a measures: more of it counts more.")),
                io.Float.Input("weight_b", default=1.0, min=0.0, max=100.0, step=0.01, tooltip=(
                    "Multiplies what b measures.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, a, b, weight_a, weight_b):
        return io.NodeOutput(combine.Stack(a, b, (weight_a, weight_b)))


NODES = [OperatorMask, OperatorDownsample, OperatorBlur, OperatorColour, OperatorCompose, OperatorStack]
