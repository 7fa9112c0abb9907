"""Codecs, limits of cameras, networks and deepinv's physics as OPERATOR nodes."""

import importlib.util
import inspect

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..operators import compression, from_deepinv
from ..operators.network import FromNetwork
from ._gradients import load, with_gradient
from ._schema import schema
from .operators import CATEGORY, operator_output

MEMORY = 384 * 12
"""Bytes for each pixel of a picture, times the scale, that the host reckons an upscale model to need."""


class OperatorJPEG(io.ComfyNode):
    """OPERATOR that saves pictures as JPEG."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorJPEG",
            display_name="Operator JPEG",
            category=CATEGORY,
            description="What a JPEG file shows of a picture, with a gradient: artefact removal as a measurement.",
            search_aliases=["compression", "artifacts", "jpeg", "codec", "measurement", "degradation"],
            inputs=[
                io.Int.Input("quality", default=20, min=1, max=95, tooltip=(
                    "As libjpeg, Pillow and GIMP count it. For a file of your own take the one it was saved with.")),
                io.Combo.Input("subsampling", options=list(compression.SUBSAMPLINGS), default="4:2:0", tooltip=(
                    "4:2:0: colour at half the resolution, as most files. 4:4:4: colour of each pixel.")),
                io.Combo.Input("rounding", options=list(compression.ROUNDINGS), default="straight-through", tooltip=(
                    "What the gradient takes rounding for; the result is the same. straight-through: for nothing. "
                    "cubic: small where a coefficient is safe in its step. none: for a constant, so nothing can be "
                    "steered.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, quality, subsampling, rounding):
        return io.NodeOutput(compression.JPEG(quality, subsampling, rounding))


class OperatorQuantise(io.ComfyNode):
    """OPERATOR that leaves a few bits."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorQuantise",
            display_name="Operator Quantise",
            category=CATEGORY,
            description="Leaves a few bits of each channel: the removal of banding as a measurement.",
            search_aliases=["quantize", "posterize", "bit depth", "banding", "measurement", "degradation"],
            inputs=[
                io.Int.Input("bits", default=3, min=1, max=8, tooltip=(
                    "Of each channel: 2 to this power levels from black to white.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, bits):
        return io.NodeOutput(compression.Quantise(bits))


class OperatorClip(io.ComfyNode):
    """OPERATOR that overexposes."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorClip",
            display_name="Operator Clip",
            category=CATEGORY,
            description="Raises the contrast and cuts off what is too dark or too light: HDR as a measurement.",
            search_aliases=["hdr", "overexposure", "clipping", "dynamic range", "measurement", "degradation"],
            inputs=[
                io.Float.Input("gain", default=2.0, min=0.1, max=20.0, step=0.1, tooltip=(
                    "How much brighter or darker than middle grey everything becomes before it is cut off.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, gain):
        return io.NodeOutput(compression.Clip(gain))


def upscaler(upscale_model):
    """picture [1, C, H, W] -> picture of an UPSCALE_MODEL, differentiable where autograd records.

    Raises ValueError where memory does not suffice.
    """
    call = inspect.unwrap(type(upscale_model).__call__)  # as it is, it runs in inference mode
    patcher = getattr(upscale_model, "patcher", None) or ModelPatcher(
        upscale_model.model, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device())

    def network(picture):
        comfy.model_management.throw_exception_if_processing_interrupted()
        height, width = picture.shape[-2:]
        load(patcher, MEMORY * upscale_model.scale * height * width)
        message = (f"upscale_model ran out of memory in the gradient of a picture of {width} x {height}; use a smaller "
                   "picture or a smaller model")
        moved = picture.to(patcher.load_device)
        made = with_gradient(upscale_model.model, lambda x: call(upscale_model, x.clone()), moved, message)
        return made.to(picture.device)

    return network


class OperatorFromModel(io.ComfyNode):
    """OPERATOR that is a network."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorFromModel",
            display_name="Operator From Model",
            category=CATEGORY,
            description=(
                "Takes a network of Load Upscale Model for the measurement: a learned degradation, a style, an "
                "enlargement. The gradient goes through it."
            ),
            search_aliases=["learned operator", "spandrel", "esrgan", "style", "degradation", "measurement"],
            inputs=[
                io.UpscaleModel.Input("upscale_model", tooltip=(
                    "From Load Upscale Model. It stays as it is, and runs on whole pictures without tiles.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, upscale_model):
        channels = (upscale_model.input_channels, upscale_model.output_channels)
        return io.NodeOutput(FromNetwork(upscaler(upscale_model), upscale_model.scale, channels))


class OperatorFromDeepinv(io.ComfyNode):
    """OPERATOR of deepinv's physics."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorFromDeepinv",
            display_name="Operator From deepinv",
            category=CATEGORY,
            description="Takes a physics of the installed library deepinv for the measurement, without its noise.",
            search_aliases=["deepinv", "deepinverse", "physics", "inverse problem", "compressed sensing"],
            inputs=[
                io.Combo.Input("physics", options=list(from_deepinv.PHYSICS), default="Decolorize", tooltip=(
                    "The class of deepinv.physics.")),
                io.String.Input("arguments", default="{}", multiline=True, tooltip=(
                    'Its arguments as a JSON object, such as {"img_size": [3, 128, 128], "factor": 2}. A list of '
                    "numbers becomes a tuple, a list of lists a tensor.")),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=(
                    "Of what it draws at random: the pixels of Inpainting, the matrix of CompressedSensing.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, physics, arguments, seed):
        return io.NodeOutput(from_deepinv.FromDeepinv(physics, from_deepinv.arguments(arguments), seed))


NODES = [OperatorJPEG, OperatorQuantise, OperatorClip, OperatorFromModel]
if importlib.util.find_spec("deepinv"):
    NODES.append(OperatorFromDeepinv)
