"""Scanners and videos as OPERATOR nodes."""

from comfy_api.latest import io

from ..operators import fourier, radon, temporal
from ._schema import schema
from .operators import CATEGORY, operator_output


class OperatorFourierMask(io.ComfyNode):
    """OPERATOR of a fast MRI."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorFourierMask",
            display_name="Operator Fourier Mask",
            category=CATEGORY,
            description="Keeps a part of a picture's frequencies: accelerated MRI as a measurement.",
            search_aliases=["mri", "k-space", "fft", "compressed sensing", "measurement", "inverse problem"],
            inputs=[
                io.Combo.Input("pattern", options=list(fourier.PATTERNS), default="uniform1d", tooltip=(
                    "Which are kept besides the centre. uniform1d: columns at equal distances. gaussian1d: random "
                    "columns, mostly near the centre. random2d: random points. poisson: random points apart from each "
                    "other. radial: lines through the centre.")),
                io.Float.Input("acceleration", default=2.0, min=1.0, max=16.0, step=0.5, tooltip=(
                    "One in so many frequencies is kept, the centre included.")),
                io.Float.Input("centre_fraction", default=0.15, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Share of all frequencies, the lowest, that are kept without gaps. At most 1 / acceleration; 0.08 "
                    "goes with 4, 0.04 with 8.")),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=(
                    "Of the pattern, which is the same for all pictures and channels.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, pattern, acceleration, centre_fraction, seed):
        return io.NodeOutput(fourier.FourierMask(pattern, acceleration, centre_fraction, seed))


class OperatorPhaseRetrieval(io.ComfyNode):
    """OPERATOR of the size of a Fourier transform."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorPhaseRetrieval",
            display_name="Operator Phase Retrieval",
            category=CATEGORY,
            description="The size of a picture's Fourier transform without its phase: a diffraction pattern.",
            search_aliases=["fft", "diffraction", "magnitude", "ptychography", "measurement", "inverse problem"],
            inputs=[
                io.Float.Input("oversample", default=2.0, min=0.0, max=8.0, step=0.5, tooltip=(
                    "How much black is put around the picture first: this many eighths of its size on each side. From "
                    "about 2 on the phase is determined, but for shifts and a turn.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, oversample):
        return io.NodeOutput(fourier.PhaseRetrieval(oversample))


class OperatorRadon(io.ComfyNode):
    """OPERATOR of a tomograph."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorRadon",
            display_name="Operator Radon",
            category=CATEGORY,
            description="Means of a picture along parallel lines in several directions: CT as a measurement.",
            search_aliases=["ct", "tomography", "sinogram", "x-ray", "measurement", "inverse problem"],
            inputs=[
                io.Int.Input("views", default=8, min=1, max=720, tooltip="Number of directions."),
                io.Float.Input("arc", default=180.0, min=1.0, max=180.0, step=1.0, tooltip=(
                    "They are uniform in 0 to this many degrees. 180 is all round; less is limited-angle CT.")),
                io.Boolean.Input("circle", default=False, tooltip=(
                    "See only the circle within the picture, as a tomograph does. Off: the whole picture, from corner "
                    "to corner.")),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, views, arc, circle):
        return io.NodeOutput(radon.Radon(views, arc, circle))


class OperatorTemporal(io.ComfyNode):
    """OPERATOR of a slow camera."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorTemporal",
            display_name="Operator Temporal",
            category=CATEGORY,
            description=(
                "Takes the batch for a video and keeps one frame for several: their mean (motion blur), the first, or "
                "the first with black frames after it."
            ),
            search_aliases=["video", "frames", "interpolation", "motion blur", "frame rate", "measurement"],
            inputs=[
                io.Combo.Input("mode", options=list(temporal.MODES), default="average", tooltip=(
                    "average: frames run into each other. drop: only the first of each group remains. mask: as "
                    "drop, with black frames in place of the others.")),
                io.Int.Input("frames", default=2, min=1, max=64, tooltip="So many become one. 1 changes nothing."),
            ],
            outputs=[operator_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, mode, frames):
        return io.NodeOutput(temporal.Temporal(mode, frames))


NODES = [OperatorFourierMask, OperatorPhaseRetrieval, OperatorRadon, OperatorTemporal]
