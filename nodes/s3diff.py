"""S3Diff: its files, how blurred and noisy a picture is, and Stable Diffusion patched into its restorer for that."""

from typing import NamedTuple

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models import s3diff as files_of
from ..models.checkpoints import state_dict
from . import _files
from ._inputs import pixels_of
from ._one_step import with_changes
from ._restore import loaded, patcher_of
from ._schema import kw, schema
from ._types import S3DIFF

CATEGORY = "trajectory/restoration"
FOLDER = "s3diff"
BASE = "SD-Turbo"
MEASURE = -1.0
DIGITS = 3  # of a degradation; frames that differ by less share one set of patches


class Restorer(NamedTuple):
    """What an S3DIFF link carries."""

    changes: files_of.S3Diff
    estimator: ModelPatcher


def measured(s3diff, picture):
    """(blur, noise) in 0..1, to DIGITS, of a picture [1, 3, H, W] in 0..1, as large as it came."""
    network = s3diff.estimator.model
    loaded(s3diff.estimator, memory=network.memory(*picture.shape[-2:]))
    found = network(picture, before_tile=comfy.model_management.throw_exception_if_processing_interrupted)
    return tuple(round(value, DIGITS) for value in found[0].tolist())


def applied(model, vae, s3diff, blur, noise, strength):
    """(MODEL, VAE) that restore pictures of one degradation: clones with patches, of which strength 0 adds none.

    Raises ValueError for numbers out of range, and networks of which this is no restorer.
    """
    check_degradation(blur, noise)
    check_range("strength", strength, 2.0)
    return with_changes(model, vae, *s3diff.changes.at(blur, noise), BASE, strength)


def check_degradation(blur, noise):
    """Raise ValueError naming what is not in 0..1."""
    check_range("blur", blur, 1.0)
    check_range("noise", noise, 1.0)


def check_range(name, value, most):
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value}; set it to a number from 0 to {most:g}")


def choices(estimator):
    """The files in the folder; those first that are called as the estimator, or those that are not."""
    return sorted(_files.files(FOLDER), key=lambda name: ("de_net" in name) is not estimator)


def understood(name, file, meaning):
    """What `meaning` makes of a file's contents. Raises ValueError naming the input, the file and the fix."""
    contents = _files.read(FOLDER, file, name)
    try:
        return meaning(contents)
    except ValueError as error:
        raise ValueError(f"{name} is {file!r}, and {error}; choose the file that the help page of this node "
                         "names") from error


class S3DiffLoader(io.ComfyNode):
    """S3DIFF of its two files."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryS3DiffLoader",
            display_name="S3Diff Loader",
            category=CATEGORY,
            description=(
                "Loads S3Diff, a one-step restorer whose changes of SD-Turbo depend on how blurred and how noisy the "
                "picture is, and the network that measures both."
            ),
            search_aliases=["s3diff", "super resolution", "upscale", "restore", "one step", "degradation"],
            inputs=[
                kw(io.Combo.Input, "s3diff", options=choices(False), tooltip=(
                    "s3diff.pkl in models/s3diff, as its authors publish it or as safetensors.")),
                kw(io.Combo.Input, "de_net", options=choices(True), tooltip=(
                    "de_net.pth in models/s3diff: the network that measures blur and noise.")),
            ],
            outputs=[S3DIFF.Output(display_name="s3diff", tooltip=(
                "For Apply S3Diff, S3Diff Degradation or One-Step Upscale."))],
        )  # fmt: skip

    @classmethod
    def execute(cls, s3diff, de_net):
        changes = understood("s3diff", s3diff, files_of.s3diff)
        network = understood("de_net", de_net, lambda contents: files_of.de_net(state_dict(contents)))
        return io.NodeOutput(Restorer(changes, patcher_of(network)))


class S3DiffDegradation(io.ComfyNode):
    """FLOATs of how blurred and noisy pictures are."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryS3DiffDegradation",
            display_name="S3Diff Degradation",
            category=CATEGORY,
            description="Measures how blurred and how noisy pictures are, on S3Diff's scale from 0 to 1.",
            search_aliases=["s3diff", "blur", "noise", "quality", "measure", "estimate", "degradation"],
            inputs=[
                io.Image.Input("image", tooltip="Pictures at the size in which they came, not enlarged."),
                S3DIFF.Input("s3diff", tooltip="Of S3Diff Loader."),
            ],
            outputs=[
                io.Float.Output(display_name="blur", tooltip="Mean over the batch: 0 sharp, 1 much blurred."),
                io.Float.Output(display_name="noise", tooltip="Mean over the batch: 0 clean, 1 very noisy."),
                io.Float.Output(display_name="blurs", is_output_list=True, tooltip="The blur of each picture."),
                io.Float.Output(display_name="noises", is_output_list=True, tooltip="The noise of each picture."),
            ],
        )

    @classmethod
    def execute(cls, image, s3diff):
        blurs, noises = degradations(s3diff, image)
        return io.NodeOutput(mean(blurs), mean(noises), blurs, noises)


def degradations(s3diff, image):
    """[blur of each picture], [noise of each] of an IMAGE."""
    found = [measured(s3diff, picture) for picture in pixels_of("image", image).clamp(0, 1).split(1)]
    return tuple(map(list, zip(*found, strict=True)))


def mean(values):
    return sum(values) / len(values)


class ApplyS3Diff(io.ComfyNode):
    """MODEL and VAE that restore pictures of one degradation in one step."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryApplyS3Diff",
            display_name="Apply S3Diff",
            category=CATEGORY,
            description=(
                "Turns SD-Turbo into the one-step restorer S3Diff for pictures as blurred and noisy as the given ones, "
                "or as you say: patches of MODEL and of the VAE's encoder."
            ),
            search_aliases=["s3diff", "super resolution", "upscale", "restore", "one step", "degradation", "lora"],
            inputs=[
                io.Model.Input("model", tooltip="SD-Turbo."),
                io.Vae.Input("vae", tooltip="The VAE of SD-Turbo."),
                S3DIFF.Input("s3diff", tooltip="Of S3Diff Loader."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip=(
                    "Of the patches: 1 as trained, 0 the plain model.")),
                io.Float.Input("blur", default=MEASURE, min=MEASURE, max=1.0, step=0.01, tooltip=(
                    "How blurred the pictures are, from 0 (sharp) to 1: more restores more. -1 measures it on image.")),
                io.Float.Input("noise", default=MEASURE, min=MEASURE, max=1.0, step=0.01, tooltip=(
                    "How noisy the pictures are, from 0 (clean) to 1: more smooths more. -1 measures it on image.")),
                io.Image.Input("image", optional=True, tooltip=(
                    "The pictures to be restored, not enlarged. The mean over the batch counts, so that a film does "
                    "not flicker.")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip=(
                    "The restorer, for a guider with One-Step SR Sampler.")),
                io.Vae.Output(display_name="vae", tooltip=(
                    "Encodes the picture to be restored. For other pictures keep the VAE it was made from.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, s3diff, strength, blur, noise, image=None):
        given = {"blur": blur, "noise": noise}
        if MEASURE in given.values():
            if image is None:
                raise ValueError(f"{' and '.join(n for n, v in given.items() if v == MEASURE)} is -1, to be measured, "
                                 "but image is not connected: connect it, or set blur and noise to 0 to 1")
            found = map(mean, degradations(s3diff, image))
            blur, noise = (m if value == MEASURE else value for value, m in zip(given.values(), found, strict=True))
        return io.NodeOutput(*applied(model, vae, s3diff, blur, noise, strength))


NODES = [S3DiffLoader, S3DiffDegradation, ApplyS3Diff]
