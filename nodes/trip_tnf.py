"""TRIP's learned fusion for any MODEL: loaded, saved, applied as a patch, and trained beside the frozen model."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from safetensors import SafetensorError

from ..charts import line_chart
from ..models import tnf as fusions
from ..models.trip import HEADS
from ..samplers.image_prior import from_clips, to_clips
from ..samplers.model import path_of
from ..samplers.paths import FLOW, VE
from ._beside_model import beside_model
from ._files import files
from ._files import path_of as file_path
from ._gradients import carry_gradients, memory_told
from ._restore import patcher_of
from ._schema import kw, schema
from ._types import TRIP_TNF
from .trip import CATEGORY, Reference, clips_in, frames_in, size_of, video_of
from .trip_miniature import load_network

KEY = "trajectory_trip_tnf"
FOLDER = "trip"
BUNDLED = "landscapes (bundled)"
PARAMETRISATIONS = {VE: "noise", FLOW: "velocity"}
KINDS = {"noise": "eps, v or EDM", "velocity": "flow"}
UNFIT = re.compile(r'[<>:"|?*\x00-\x1f]|(^|[/\\])\.{0,2}$')
"""Names with characters that one of the systems cannot hold, and those with nothing behind the last slash."""


def check_fits(name, tnf, model, channels):
    """Raise ValueError where the TRIP_TNF of input `name` is for another path, or for latents of other channels."""
    fusion, path = tnf.model, path_of(model.get_model_object("model_sampling"))
    if fusion.parametrisation != PARAMETRISATIONS[path]:
        raise ValueError(f"{name} was trained on {KINDS[fusion.parametrisation]} models ({fusion.base}), but model is "
                         f"one of {KINDS[PARAMETRISATIONS[path]]}; train one on it with TRIP Train TNF")
    if fusion.tnf.channels != channels:
        raise ValueError(f"{name} takes latents of {fusion.tnf.channels} channels ({fusion.base}), but they have "
                         f"{channels} here; choose one that was trained on this model")


class TRIPLoadTNF(io.ComfyNode):
    """TRIP_TNF of a file."""

    @classmethod
    def define_schema(cls):
        found = [name for name in files(FOLDER) if name.endswith(".safetensors")]
        return schema(
            node_id="TrajectoryTRIPLoadTNF",
            display_name="TRIP Load TNF",
            category=CATEGORY,
            description="Loads a temporal noise fusion that TRIP Save TNF wrote, for TRIP Apply TNF.",
            search_aliases=["trip", "temporal noise fusion", "image to video", "i2v"],
            inputs=[
                kw(io.Combo.Input, "file", options=[BUNDLED, *found], default=BUNDLED, tooltip=(
                    "A file of TRIP Save TNF in models/trip. 'landscapes (bundled)' is the one inside TRIP Miniature, "
                    "for latents of 4 channels of eps, v and EDM models.")),
            ],
            outputs=[TRIP_TNF.Output(display_name="tnf", tooltip="For TRIP Apply TNF, or to train on.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, file):
        if file == BUNDLED:
            fusion = load_network("trip_tnf").fusion
            return io.NodeOutput(patcher_of(fusions.TemporalFusion(fusion, "noise", "TRIP Miniature")))
        path = file_path(FOLDER, file, "file")
        try:
            return io.NodeOutput(patcher_of(fusions.read(path)))
        except ValueError as error:
            raise ValueError(f"file: {error}; choose one that TRIP Save TNF wrote, or copy it here again") from error


def unwritten(prefix, folder, error):
    """What to raise where the file or its folder could not be made."""
    return ValueError(f"filename_prefix is {prefix!r}, but its file cannot be written in {folder} ({error}); set a "
                      "shorter one, or look whether the disk is full or read-only")


class TRIPSaveTNF(io.ComfyNode):
    """File of a TRIP_TNF."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPSaveTNF",
            display_name="TRIP Save TNF",
            category=CATEGORY,
            description="Saves a temporal noise fusion into models/trip, where TRIP Load TNF finds it.",
            search_aliases=["trip", "temporal noise fusion", "safetensors"],
            is_output_node=True,
            inputs=[
                TRIP_TNF.Input("tnf", tooltip="From TRIP Train TNF."),
                io.String.Input("filename_prefix", default="tnf", tooltip=(
                    "Beginning of the name; a number follows, so that no file is replaced. With slashes: folders in "
                    "models/trip.")),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    def execute(cls, tnf, filename_prefix):
        files(FOLDER)  # makes the host know the folder
        root = os.path.abspath(folder_paths.get_folder_paths(FOLDER)[0])
        refusal = (f"filename_prefix is {filename_prefix!r}, which names no file that can be written in "
                   f"models/{FOLDER}; set letters, figures and slashes, and a name behind the last slash")
        if UNFIT.search(filename_prefix):
            raise ValueError(refusal)
        try:
            folder, name, number, *_ = folder_paths.get_save_image_path(filename_prefix, root)
        except OSError as error:
            raise unwritten(filename_prefix, root, error) from error
        except Exception as error:  # of no other class in the host
            raise ValueError(refusal) from error
        path = Path(folder, f"{name}_{number:05}_.safetensors")
        try:
            fusions.write(path, tnf.model)
        except (OSError, SafetensorError) as error:
            raise unwritten(filename_prefix, root, error) from error
        return io.NodeOutput(ui=ui.PreviewText(f"{path.relative_to(root).as_posix()} in {root}"))


@dataclass(frozen=True)
class FusionPatch:
    """What the patch does behind guidance."""

    tnf: comfy.model_patcher.ModelPatcher
    reference: Reference
    strength: float

    def __deepcopy__(self, memo):
        return self  # hosts copy the options of a MODEL deeply, and would never load that copy of the weights

    def after_cfg(self, args):
        """Post-CFG function: the denoised latents, fused with the reference."""
        (video, back), (x, _) = (video_of(args[name], args["cond"]) for name in ("denoised", "input"))
        axis, clips, still = self.reference.beside(args["model"], video)
        if torch.is_grad_enabled() and x.requires_grad:
            carry_gradients(self.tnf.model)
        with memory_told(f"clips of {size_of(clips[0])} (frames x channels x height x width) do not fit into memory in "
                         "the fusion; connect a tnf of a higher patch, or sample shorter or smaller ones"):  # fmt: skip
            # the first frame stands for all, as in training, also where a VAE of videos has others for those behind it
            fused = self.tnf.model(clips, still[:, :1], to_clips(x, axis), to_clips(args["sigma"], axis)).to(clips)
        return back(from_clips(torch.lerp(clips, fused, self.strength), axis))


class TRIPApplyTNF(io.ComfyNode):
    """MODEL whose clips are fused with a picture."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPApplyTNF",
            display_name="TRIP Apply TNF",
            category=CATEGORY,
            description=(
                "Animates a picture with a video model by TRIP's temporal noise fusion: a small transformer that has "
                "learned how much of the picture and how much of the model each pixel of each frame takes."
            ),
            search_aliases=["trip", "temporal noise fusion", "image to video", "i2v", "first frame"],
            inputs=[
                io.Model.Input("model", tooltip="The video model; it stays as it is, a patched clone is returned."),
                TRIP_TNF.Input("tnf", tooltip="From TRIP Train TNF or TRIP Load TNF, trained on this model."),
                io.Latent.Input("reference", tooltip="The picture as a still clip, from TRIP Reference Latent."),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "1 is the fusion as it was trained, 0 the plain model.")),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The patched clone, for any guider or sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, tnf, reference, strength):
        samples = frames_in("reference", reference)
        check_fits("tnf", tnf, model, samples.shape[1])
        if strength == 0:
            return io.NodeOutput(model)
        clone = model.clone()
        clone.set_model_sampler_post_cfg_function(FusionPatch(tnf, Reference(samples, "auto"), strength).after_cfg)
        clone.set_additional_models(KEY, [*clone.get_additional_models_with_key(KEY), tnf])  # loaded with the model
        return io.NodeOutput(clone)


class TRIPTrainTNF(io.ComfyNode):
    """TRIP_TNF of clips, for one MODEL."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPTrainTNF",
            display_name="TRIP Train TNF",
            category=CATEGORY,
            description=(
                "Trains a temporal noise fusion for a video model on clips: it learns when to follow the picture that "
                "a clip begins with, and when the model. The model itself stays as it is."
            ),
            search_aliases=["trip", "temporal noise fusion", "image to video", "i2v", "train", "fine-tune"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to train for. It is run, and not changed."),
                io.Conditioning.Input("positive", tooltip=(
                    "What the clips show, or what suits all of them: the same for every step.")),
                io.Latent.Input("clips", tooltip="One or more clips from the VAE of the model."),
                io.Int.Input("length", default=0, min=0, max=4096, tooltip=(
                    "For latents with frames on the batch axis: frames of each clip in the batch. 0 is one clip.")),
                io.Int.Input("steps", default=500, min=1, max=100000, tooltip=(
                    "Steps of training, each with one call of the model and one of the fusion.")),
                io.Float.Input("learning_rate", default=2e-4, min=1e-6, max=1.0, step=1e-6, tooltip=(
                    "Of AdamW at the first step; it falls to a fiftieth. The paper's is 0.0002; 0.001 to 0.005 for few "
                    "steps.")),
                io.Int.Input("batch", default=1, min=1, max=64, tooltip=(
                    "Clips a step. More make steps slower and steadier.")),
                kw(io.Int.Input, "dim", default=64, min=4, max=1024, step=4, advanced=True, tooltip=(
                    "Width of the fusion, a multiple of 4. Not used with resume.")),
                kw(io.Int.Input, "patch", default=2, min=1, max=16, advanced=True, tooltip=(
                    "Side in latent pixels of what the fusion sees as one. 4 or 8 for large videos: its cost falls "
                    "with the fourth power. Not used with resume.")),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=(
                    "Of first weights, clips, noise and noise levels.")),
                TRIP_TNF.Input("resume", optional=True, tooltip=(
                    "A fusion to train on, in place of the linear one that a training begins with; it stays as it "
                    "is. Take another seed than before.")),
            ],
            outputs=[
                TRIP_TNF.Output(display_name="tnf", tooltip="For TRIP Apply TNF and TRIP Save TNF."),
                io.Image.Output(display_name="loss_curve", tooltip="Mean loss along the training."),
                io.String.Output(display_name="report", tooltip=(
                    "Mean loss at the beginning and at the end, and whether it rose.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, clips, length, steps, learning_rate, batch, dim, patch, seed, resume=None):
        from ..training import tnf as training  # a trainer, which the start of a host need not wait for

        axis, x0 = clips_in("clips", model, clips, length)
        sampling = model.get_model_object("model_sampling")
        path, base = path_of(sampling), type(model.model).__name__
        if resume is None:
            if dim % HEADS:
                raise ValueError(f"dim is {dim}, which {HEADS} heads do not share evenly; set a multiple of {HEADS}")
            fusion = training.begun(x0.shape[2], x0.shape[1], dim, patch, PARAMETRISATIONS[path], base, seed)
        else:
            check_fits("resume", resume, model, x0.shape[2])
            fusion = training.continued(resume.model, base)
        bar = comfy.utils.ProgressBar(steps)

        def learn(predict, device):
            return training.train(fusion, x0.to(device), predict, path, sampling.percent_to_sigma, steps=steps,
                                  learning_rate=learning_rate, batch=batch, seed=seed, report=lambda: bar.update(1))

        with memory_told(f"clips of {size_of(x0[0])} (frames x channels x height x width) do not fit into memory; set "
                         "batch to 1, patch higher, or connect shorter or smaller ones"):  # fmt: skip
            losses = beside_model(model, positive, x0[:1].expand(batch, *x0.shape[1:]), axis, learn)
        at, means = training.curve(losses)
        plot = line_chart([("loss", at, means)], "Training of the fusion", "step", "loss", log_y=True)
        image = torch.from_numpy(np.asarray(plot).copy())[None].float() / 255
        clip_or_clips = "1 clip" if len(x0) == 1 else f"{len(x0)} clips"
        report = f"{steps} steps on {clip_or_clips} of {x0.shape[1]} frames: loss {means[0]:.4g} to {means[-1]:.4g}"
        if means[-1] > means[0]:
            report += "; it rose: lower learning_rate or take more steps"
        offload = comfy.model_management.unet_offload_device()
        return io.NodeOutput(patcher_of(fusion.to(offload)), image, report, ui=ui.PreviewText(report))


NODES = [TRIPLoadTNF, TRIPSaveTNF, TRIPApplyTNF, TRIPTrainTNF]
