"""From operators and pictures to measurements, and how well a picture agrees with one."""

import torch
from comfy_api.latest import io, ui

from ..operators.base import constant
from ..operators.combine import on_latents
from ..operators.measurement import Measurement, psnr, size_of
from ..samplers.noise import item_identities, item_seeds
from ._inputs import pixels_of
from ._schema import schema
from ._types import MEASUREMENT, OPERATOR
from .operators import CATEGORY


def measurement_output():
    return MEASUREMENT.Output(display_name="measurement", tooltip="For a sampler that steers by it, and for "
                              "Measurement Report.")  # fmt: skip


class ApplyOperator(io.ComfyNode):
    """MEASUREMENT of a picture or latent."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryApplyOperator",
            display_name="Apply Operator",
            category=CATEGORY,
            description="Degrades pictures or latents by an operator, with noise if wanted, and keeps both as a "
            "measurement.",
            search_aliases=["degrade", "measure", "corrupt", "inverse problem", "add noise"],
            inputs=[
                OPERATOR.Input("operator", tooltip="What is measured of them."),
                io.Float.Input("sigma_y", default=0.0, min=0.0, max=1.0, step=0.005, tooltip=(
                    "Standard deviation of the noise that is added to what is measured; pictures go from 0 to 1.")),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=(
                    "Of that noise.")),
                io.Image.Input("image", optional=True, tooltip="The pictures, or the frames of a video."),
                io.Latent.Input("latent", optional=True, tooltip=(
                    "Latents in place of pictures: the operator then acts on them directly, and steers latents without "
                    "a VAE.")),
            ],
            outputs=[
                measurement_output(),
                io.Image.Output(display_name="preview", tooltip=(
                    "The measurement as a picture; what is none, such as a spectrum, by its absolute value over the "
                    "largest.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, operator, sigma_y, seed, image=None, latent=None):
        if (image is None) == (latent is None):
            raise ValueError("Apply Operator measures an image or a latent; connect one of the two, and not both")
        if image is not None:
            x = pixels_of("image", image)
            y, shape = operator.observe(x), operator.domain(x.shape)
        else:
            x, operator = samples_of(latent), on_latents(operator)
            y, shape = operator.A(x), x.shape
        if sigma_y:
            y = y + sigma_y * noise_of(x, y, seed, operator.mixes_items)
        measured = Measurement(operator, constant(y, y.dtype), sigma_y, tuple(shape))
        return io.NodeOutput(measured, operator.preview(y).cpu().movedim(1, -1))


def samples_of(latent):
    """Latents [B, C, h, w] of a LATENT. Raises ValueError where operators cannot take them."""
    samples = latent["samples"]
    if samples.is_nested or samples.ndim != 4 or 0 in samples.shape:
        shape = "several parts" if samples.is_nested else f"the shape {list(samples.shape)}"
        raise ValueError(f"latent has {shape}; operators take latents of pictures [batch, channels, height, width]: "
                         "connect an image, with Operator Through VAE after the operator")
    return samples


def noise_of(x, y, seed, mixes_items):
    """Standard normal noise like y, the same for an item of x [B, ...] wherever in a batch it stands."""
    identities = [b""] if mixes_items else item_identities(x)
    rows = y.shape if mixes_items else (1, *y.shape[1:])
    generators = (torch.Generator().manual_seed(s) for s in item_seeds(seed, "measurement", identities))
    return torch.cat([torch.randn(rows, generator=g, dtype=y.dtype) for g in generators]).to(y.device)


class MeasurementFromImage(io.ComfyNode):
    """MEASUREMENT whose degraded picture the user brings."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryMeasurementFromImage",
            display_name="Measurement From Image",
            category=CATEGORY,
            description=(
                "Takes a degraded picture of your own as what an operator measured: a small, blurred or grey picture "
                "whose original is wanted."
            ),
            search_aliases=["restore", "upscale", "deblur", "colourise", "inverse problem", "low resolution"],
            inputs=[
                io.Image.Input("image", tooltip="The degraded picture; for an operator to grey its channels' mean."),
                OPERATOR.Input("operator", tooltip="What degraded it."),
                io.Int.Input("width", default=1024, min=1, max=16384, tooltip="Of the wanted picture, in pixels."),
                io.Int.Input("height", default=1024, min=1, max=16384, tooltip="Of the wanted picture, in pixels."),
                io.Float.Input("sigma_y", default=0.0, min=0.0, max=1.0, step=0.005, tooltip=(
                    "Standard deviation of the noise in image, which goes from 0 to 1: about this much is not "
                    "explained by the picture.")),
                io.Int.Input("frames", default=0, min=0, max=4096, tooltip=(
                    "How many pictures are wanted, where the operator makes fewer frames of a video. 0: as many as "
                    "image has.")),
            ],
            outputs=[measurement_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, operator, width, height, sigma_y, frames):
        y = pixels_of("image", image)
        count = frames or len(y)
        shape = operator.domain((count, 3, height, width))
        seen = operator.out_shape(shape)
        if operator.complex or len(seen) != 4 or seen[1] not in (1, 3):
            raise ValueError(f"operator measures {'complex ' * operator.complex}numbers of the shape {list(seen)}, "
                             "which no picture holds; measure a picture by Apply Operator instead")
        if seen[1] == 1:
            y = y.mean(1, keepdim=True)
        if y.shape != seen:
            raise ValueError(
                f"image has {len(y)} pictures of {y.shape[3]} x {y.shape[2]}, but of {count} pictures of {width} x "
                f"{height} operator makes {seen[0]} of {seen[3]} x {seen[2]}; resize image to that, or set width, "
                "height and frames to those of the original")
        return io.NodeOutput(Measurement(operator, constant(operator.visible(y)), sigma_y, tuple(shape)))


class MeasurementReport(io.ComfyNode):
    """How well a picture agrees with a measurement."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryMeasurementReport",
            display_name="Measurement Report",
            category=CATEGORY,
            description="Tells how well a picture agrees with a measurement, and how close it is to the original.",
            search_aliases=["psnr", "residual", "rmse", "consistency", "error", "compare"],
            is_output_node=True,
            inputs=[
                MEASUREMENT.Input("measurement", tooltip="What was measured of the original."),
                io.Image.Input("image", tooltip="The picture in question, of the size of the original."),
                io.Image.Input("reference", optional=True, tooltip="The original, where it is known."),
            ],
            outputs=[
                io.Float.Output(display_name="residual", tooltip=(
                    "RMS of the difference between what the operator makes of image and the measurement. About "
                    "sigma_y is as good as it gets.")),
                io.Float.Output(display_name="psnr", tooltip=(
                    "Peak signal-to-noise ratio of image to reference in dB, 100 at most; 0 without a reference.")),
                io.String.Output(display_name="text", tooltip="The same in words."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, measurement, image, reference=None):
        pictures = pixels_of("image", image)
        operator = measurement.operator
        shape = operator.domain(pictures.shape)
        if tuple(shape[1:]) != tuple(measurement.shape[1:]):
            raise ValueError(f"image is {pictures.shape[3]} x {pictures.shape[2]}, but measurement is of "
                             f"{size_of(measurement.shape)}; connect a picture of the size of the measured one (a "
                             "measurement of latents alone has no report)")
        measurement.check(shape)
        residual, ratio = measurement.picture_error(pictures), 0.0
        text = f"Residual {residual:.5f} RMS (noise of the measurement {measurement.sigma:.5f})"
        if reference is not None:
            original = pixels_of("reference", reference)
            if original.shape[1:] != pictures.shape[1:] or len(original) not in (1, len(pictures)):
                raise ValueError(f"reference is {size_of(original.shape)}, but image {size_of(pictures.shape)}; "
                                 "connect the original in the size of image, one picture or as many")
            ratio = psnr(pictures, original)
            text += f"\nPSNR to the reference {ratio:.2f} dB"
        return io.NodeOutput(residual, ratio, text, ui=ui.PreviewText(text))


NODES = [ApplyOperator, MeasurementFromImage, MeasurementReport]
