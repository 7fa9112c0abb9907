"""TRIP without training: a patch of a video MODEL that draws each frame to the picture that the clip begins with."""

import math
from dataclasses import dataclass
from itertools import chain

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..operators.measurement import psnr
from ..restoration import video_metrics
from ..samplers import image_prior
from ..samplers.image_prior import Drift, ImagePrior
from ..samplers.model import path_of
from ..samplers.plan import check_choices
from ._autoencoder import check_vae
from ._beside_model import beside_model
from ._inputs import check_finite, pixels_of
from ._run import patched
from ._schema import kw, schema
from ._types import TRIP_PRIOR
from ._vision import vision_embeds

CATEGORY = "trajectory/video"
KEY = "trajectory_trip"
LEVELS = 12
"""Of noise, at which TRIP Fit Prior asks a model: even in the model's own time."""


class TRIPReferenceLatent(io.ComfyNode):
    """LATENT of a clip in which a picture stands still."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPReferenceLatent",
            display_name="TRIP Reference Latent",
            category=CATEGORY,
            description=(
                "Encodes a picture as the clip in which it stands still, which TRIP Image Noise Prior draws the frames "
                "of a video to."
            ),
            search_aliases=["trip", "image to video", "i2v", "first frame", "still", "animate"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to animate, in the size of the video."),
                io.Vae.Input("vae", tooltip="The autoencoder of the video model."),
                io.Int.Input("length", default=16, min=1, max=4096, tooltip=(
                    "Frames of the video, as in the node of the empty latent.")),
                io.Boolean.Input("repeat_static", default=True, tooltip=(
                    "Encode all frames of the still clip: autoencoders of videos give the first latent frame other "
                    "statistics than those behind it. Off: one latent frame, which stands for all.")),
            ],
            outputs=[io.Latent.Output(display_name="reference", tooltip="For TRIP Image Noise Prior.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, vae, length, repeat_static):
        check_vae(vae)
        picture = first_picture(image, vae)
        of_videos = vae.latent_dim == 3 and not getattr(vae, "not_video", False)
        frames = whole_clip(vae, length) if of_videos and repeat_static else 1
        samples = vae.encode(picture.repeat(frames, 1, 1, 1))
        if samples.ndim == 4 and repeat_static:  # pictures, whose batch is the clip
            samples = samples.repeat(length, 1, 1, 1)
        return io.NodeOutput({"samples": samples})


def first_picture(image, vae):
    """The one picture [1, H, W, 3] of input `image`, for `vae` to encode.

    Raises ValueError for more, for what is no picture, and for one smaller than a cell of the latent.
    """
    picture, cell = pixels_of("image", image).movedim(1, -1), vae.spacial_compression_encode()
    if len(picture) > 1:
        raise ValueError(f"image holds {len(picture)} pictures, and a clip begins with one; connect one, such as by "
                         "ImageFromBatch")
    height, width = picture.shape[1:3]
    if min(height, width) < cell:
        raise ValueError(f"image is {height} x {width} pixels (height x width), and the autoencoder takes sides from "
                         f"{cell} on; scale it to the size of the video")
    return picture


def whole_clip(vae, length):
    """Frames of the longest clip up to `length` that fills the latent frames of an autoencoder of videos."""
    try:
        return max(1, vae.upscale_ratio[0](vae.downscale_ratio[0](length)))
    except TypeError:  # the same number for space and time: no compression in time is known
        return length


@dataclass(frozen=True)
class Reference:
    """The still clip of a LATENT, and where the sampled latents keep their frames."""

    samples: torch.Tensor
    axis: str

    def beside(self, model, latents):
        """(axis, clips [B, T, C, h, w], still clip [1 or B, 1 or T, C, h, w]) for latents that a BaseModel samples."""
        axis, samples = image_prior.axis_of(latents, self.axis), self.samples
        if samples.ndim == 4 and axis == "time":  # pictures for a model of videos
            samples = samples.movedim(0, 1)[None]
        if samples.ndim == latents.ndim and samples.shape[1] == latents.shape[1]:
            still = image_prior.to_clips(model.process_latent_in(samples.to(latents)), axis)
            clips = image_prior.to_clips(latents, axis)
            counts = zip(still.shape[:2], clips.shape[:2], strict=True)
            if still.shape[2:] == clips.shape[2:] and all(known in (1, sampled) for known, sampled in counts):
                return axis, clips, still
        raise ValueError(f"reference is a latent {size_of(self.samples)}, but the model samples {size_of(latents)}; "
                         "connect TRIP Reference Latent with the picture in the size of the video, the VAE of the "
                         "model and the video's length")


def size_of(latents):
    return " x ".join(str(n) for n in latents.shape)


def video_of(latents, conds):
    """(video, back) of sampled latents: the frames among them, and a function that puts others in their place.

    Newer hosts pack a video and its sound into one [B, 1, N], and tell the network the shapes of the parts, the video
    first, in each of the conditionings of the run, `conds`; None where a node calls the guidance without them.
    """
    told = (cond["model_conds"]["latent_shapes"] for cond in conds or () if "latent_shapes" in cond["model_conds"])
    shapes = next(told, None)
    if shapes is None or len(shapes.cond) < 2:
        return latents, lambda video: video
    frames = shapes.cond[0][1:]
    video, others = latents.tensor_split([math.prod(frames)], dim=-1)
    return video.reshape(-1, *frames), lambda video: torch.cat([video.flatten(1)[:, None], others], dim=-1)


@dataclass(frozen=True)
class PriorPatch:
    """What the patch does behind guidance in each call, and behind the run."""

    prior: ImagePrior
    reference: Reference
    start_percent: float
    end_percent: float

    def __deepcopy__(self, memo):
        return self  # hosts copy the options of a MODEL deeply, and the reference may be a long clip

    def after_cfg(self, args):
        """Post-CFG function: the denoised latents, fused with the reference."""
        sigma, sampling = args["sigma"], args["model"].model_sampling
        video, back = video_of(args["denoised"], args["cond"])
        axis, clips, still = self.reference.beside(args["model"], video)
        start, end = (sampling.percent_to_sigma(percent) for percent in (self.start_percent, self.end_percent))
        if end <= float(sigma.max()) <= start:
            clips = self.prior(clips, still, image_prior.to_clips(sigma, axis), path_of(sampling))
        elif self.prior.lock_first:
            clips = image_prior.with_first(clips, still)
        return back(image_prior.from_clips(clips, axis))

    def after_run(self, executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
                  *rest, **more):
        """SAMPLER_SAMPLE wrapper: solvers that mix older predictions into the last state miss the first frame."""
        ends_in_noise = float(sigmas[-1]) > 0  # asked before the run: uni_pc writes into sigmas
        samples = executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **more)
        if ends_in_noise:
            return samples
        video, back = video_of(samples, chain(*guider.conds.values()))
        axis, clips, still = self.reference.beside(guider.inner_model, video)
        locked = back(image_prior.from_clips(image_prior.with_first(clips, still), axis))
        return locked if denoise_mask is None else torch.lerp(samples, locked, denoise_mask)


class TRIPNoisePrior(io.ComfyNode):
    """MODEL whose frames are drawn to a picture."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPNoisePrior",
            display_name="TRIP Image Noise Prior",
            category=CATEGORY,
            description=(
                "Animates a picture with any video model: every frame's prediction is drawn to the picture, the later "
                "the frame and the lower the noise the less. No training and no extra network call."
            ),
            search_aliases=["trip", "image to video", "i2v", "first frame", "colour drift", "flicker", "consistency"],
            inputs=[
                io.Model.Input("model", tooltip="The video model; it stays as it is, a patched clone is returned."),
                io.Latent.Input("reference", tooltip="The picture as a still clip, from TRIP Reference Latent."),
                io.Combo.Input("mode", options=list(image_prior.MODES), default="adaptive", tooltip=(
                    "adaptive: the weight with the least error for what motion or prior expect. paper_linear: falls "
                    "along the frames, the same at all steps; stop it by end_percent. constant: strength itself.")),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Multiplies the weights. 0 is the plain model.")),
                io.Float.Input("lambda_last", default=0.1, min=0.0, max=1.0, step=0.01, tooltip=(
                    "For paper_linear: the weight of the last frame; that of the first is 1.")),
                io.Float.Input("motion", default=1.0, min=0.01, max=4.0, step=0.01, tooltip=(
                    "For adaptive: how far the last frame is from the picture, in standard deviations of a picture. "
                    "More motion leaves more to the model.")),
                kw(io.Float.Input, "growth", default=1.0, min=0.0, max=2.0, step=0.05, advanced=True, tooltip=(
                    "For adaptive: how the squared distance grows along the frames. 1 is a random walk, 2 a constant "
                    "speed, 0 the same for all.")),
                kw(io.Float.Input, "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=(
                    "Share of the sampling after which the prior begins.")),
                kw(io.Float.Input, "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=(
                    "Share of the sampling after which the prior ends. 0.6 or less for paper_linear and constant, "
                    "which else leave ghosts.")),
                io.Combo.Input("band", options=list(image_prior.BANDS), default="full", tooltip=(
                    "full: the whole picture. low: its colours and light only, which stops their drift and leaves "
                    "motion free; with mode constant for models that see the picture themselves (SVD, Wan I2V).")),
                kw(io.Int.Input, "low_pass", default=8, min=2, max=64, advanced=True, tooltip=(
                    "For low: side of the cells whose mean colour counts, in latent pixels.")),
                kw(io.Boolean.Input, "lock_first", default=True, advanced=True, tooltip=(
                    "The first frame is the picture at every step, whatever the other inputs say but strength 0.")),
                kw(io.Combo.Input, "axis", options=list(image_prior.AXES), default="auto", advanced=True, tooltip=(
                    "Where latents keep frames. batch: AnimateDiff, SVD. time: Wan, Hunyuan, LTX. auto goes by the "
                    "number of axes.")),
                TRIP_PRIOR.Input("prior", optional=True, tooltip=(
                    "For adaptive: what TRIP Fit Prior measured, in place of motion and growth.")),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The patched clone, for any guider or sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, reference, strength, motion, growth, start_percent, end_percent, axis, prior=None,
                **options):
        if start_percent > end_percent:
            raise ValueError(f"start_percent is {start_percent:g}, behind end_percent at {end_percent:g}; it must not "
                             "be larger")
        fusion = ImagePrior(Drift(motion, growth) if prior is None else prior, strength=strength, **options)
        check_choices({"axis": (axis, image_prior.AXES)})
        samples = frames_in("reference", reference)
        if strength == 0:
            return io.NodeOutput(model)
        patch = PriorPatch(fusion, Reference(samples, axis), start_percent, end_percent)
        clone = patched(model, KEY, patch.after_run) if fusion.lock_first else model.clone()
        clone.set_model_sampler_post_cfg_function(patch.after_cfg)
        return io.NodeOutput(clone)


def frames_in(name, latent):
    """The samples of the LATENT in input `name`.

    Raises ValueError for several parts, no content, and values that are not finite.
    """
    samples = latent["samples"]
    if samples.is_nested or samples.ndim not in (4, 5) or 0 in samples.shape:
        size = "of several parts" if samples.is_nested else size_of(samples)
        raise ValueError(f"{name} is a latent {size}; connect one of pictures or of a video")
    check_finite(name, samples)
    return samples


class TRIPFitPrior(io.ComfyNode):
    """TRIP_PRIOR of clips."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPFitPrior",
            display_name="TRIP Fit Prior",
            category=CATEGORY,
            description=(
                "Measures in your clips how far frames are from the first, or how much better a model knows them than "
                "the first frame does, for TRIP Image Noise Prior. No training: means of squares."
            ),
            search_aliases=["trip", "image to video", "i2v", "motion", "statistics"],
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The video model, in whose scale of latents is measured; unpatched by TRIP Image Noise Prior.")),
                io.Latent.Input("latents", tooltip="One or more clips from its VAE, of the motion that is wanted."),
                io.Int.Input("length", default=0, min=0, max=4096, tooltip=(
                    "For latents with frames on the batch axis: frames of each clip in the batch. 0 is one clip.")),
                io.Conditioning.Input("positive", optional=True, tooltip=(
                    "What the clips show. Connected, the model predicts each clip at 12 noise levels, and the weights "
                    "are the best ones for what it knows. Needed for models that see the picture themselves.")),
            ],
            outputs=[TRIP_PRIOR.Output(display_name="prior", tooltip="For TRIP Image Noise Prior.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, latents, length, positive=None):
        axis, clips = clips_in("latents", model, latents, length)
        if positive is None:
            return io.NodeOutput(image_prior.moments(clips))
        sampling = model.get_model_object("model_sampling")
        sigmas = sorted({float(sampling.percent_to_sigma((k + 0.5) / LEVELS)) for k in range(LEVELS)})
        bar = comfy.utils.ProgressBar(len(clips) * len(sigmas))

        def measure(predict, device):
            return image_prior.measured(clips.to(device), lambda x, sigma, _number: predict(x, sigma),
                                        path_of(sampling), sigmas, lambda: bar.update(1))

        return io.NodeOutput(beside_model(model, positive, clips[:1], axis, measure))


def clips_in(name, model, latent, length):
    """(axis, clips [K, N, C, h, w] in the scale in which a MODEL samples) of the LATENT in input `name`.

    length: frames of a clip where they lie on the batch axis, 0 for one clip. Raises ValueError for latents of another
    model, for clips that are not whole, and for clips of one frame.
    """
    samples, form = frames_in(name, latent), model.model.latent_format
    if samples.shape[1] != form.latent_channels:
        raise ValueError(f"{name} is a latent {size_of(samples)}, but the model has {form.latent_channels} channels; "
                         "connect clips from its VAE")
    if samples.ndim - 2 != form.latent_dimensions:
        layout = "batch x channels x frames" if form.latent_dimensions == 3 else "frames x channels"
        raise ValueError(f"{name} is a latent {size_of(samples)}, but the model samples {layout} x height x width; "
                         "connect clips from its VAE")
    axis = image_prior.axis_of(samples)
    clips = image_prior.to_clips(model.model.process_latent_in(samples.float()), axis)
    if axis == "batch" and length:
        if length == 1 or len(samples) % length:
            raise ValueError(f"length is {length}, but {name} holds {len(samples)} frames, which must be a whole "
                             "number of clips of 2 frames or more; set length to the frames of one clip, or to 0 for "
                             "one clip")
        clips = clips.unflatten(1, (-1, length))[0]
    if clips.shape[1] < 2:
        raise ValueError(f"{name} holds clips of one frame, which do not move; connect clips of 2 frames or more")
    return axis, clips


class TRIPVideoMetrics(io.ComfyNode):
    """How steady a video is, and how true to its picture."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPVideoMetrics",
            display_name="TRIP Video Metrics",
            category=CATEGORY,
            description="Measures how true a video is to the picture that it begins with, and how steadily it moves.",
            search_aliases=["trip", "psnr", "f-consistency", "clip score", "flicker", "jitter", "colour drift"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of one video."),
                io.Image.Input("reference", tooltip="The picture that it was to begin with, in the same size."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=(
                    "For F-Consistency: a CLIP vision model of a fixed picture size.")),
            ],
            outputs=[
                io.Float.Output(display_name="first_frame_psnr", tooltip=(
                    "Peak signal-to-noise ratio of the first frame to reference in dB, 100 at most.")),
                io.Float.Output(display_name="f_consistency_4", tooltip=(
                    "100 x mean cosine of CLIP's view of the first frame and the next three; 0 without clip_vision.")),
                io.Float.Output(display_name="f_consistency_all", tooltip=(
                    "The same with all other frames.")),
                io.Float.Output(display_name="adjacent_difference", tooltip=(
                    "Mean difference of neighbouring frames, of values 0 to 1: how much the video moves.")),
                io.Float.Output(display_name="jitter", tooltip=(
                    "Mean second difference along the frames: how unevenly it moves.")),
                io.Float.Output(display_name="colour_drift", tooltip=(
                    "Mean distance of a frame's mean colour from that of reference, in CIELAB; 2.3 is just seen.")),
                io.String.Output(display_name="text", tooltip="The same in words."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, reference, clip_vision=None):
        frames, picture = pixels_of("images", images), pixels_of("reference", reference)
        if len(picture) > 1 or picture.shape[1:] != frames.shape[1:]:
            raise ValueError(f"reference is {size_of(picture)}, but a frame of images 1 x {size_of(frames[0])} "
                             "(pictures x channels x height x width); connect one picture in the size of the frames")
        values = {
            "First-frame PSNR": psnr(frames[:1], picture),
            "F-Consistency 4": 0.0,
            "F-Consistency all": 0.0,
            "Adjacent difference": video_metrics.adjacent_difference(frames),
            "Jitter": video_metrics.jitter(frames),
            "Colour drift": video_metrics.colour_drift(frames, picture),
        }
        if clip_vision is not None:
            embeddings = embeddings_of(frames, clip_vision)
            values["F-Consistency 4"] = video_metrics.frame_consistency(embeddings, 3)
            values["F-Consistency all"] = video_metrics.frame_consistency(embeddings)
        text = "\n".join(f"{name} {value:.4f}" for name, value in values.items()
                         if clip_vision is not None or "Consistency" not in name)  # fmt: skip
        return io.NodeOutput(*values.values(), text, ui=ui.PreviewText(text))


def embeddings_of(frames, clip_vision):
    """Embeddings [T, D] of frames [T, 3, H, W], one by one."""
    embeds, found = vision_embeds(clip_vision), []
    for frame in frames.split(1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(embeds(frame))
    return torch.cat(found)


NODES = [TRIPReferenceLatent, TRIPNoisePrior, TRIPFitPrior, TRIPVideoMetrics]
