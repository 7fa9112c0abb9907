"""One-step restoration with Stable Diffusion: OSEDiff's files, the step as a SAMPLER, tiles, and pictures at once."""

import math
from functools import lru_cache

import comfy.model_management
import comfy.samplers
import torch
from comfy_api.latest import io
from torch.nn import functional

from ..models import one_step as files_of
from ..restoration import colour_fix
from ..restoration.tiling import TilePlan
from ..samplers import one_step
from ..samplers.model import path_of
from . import _files
from ._autoencoder import check_vae
from ._inputs import pixels_of
from ._one_step import PROCESS_SIZE, TRAINED_SIZE, check_plain, check_text, is_restorer, with_changes
from ._restore import Progress, color_fix_input, each_frame, in_tiles
from ._schema import kw, schema
from ._types import S3DIFF
from ._vae_tiles import decoded, encoded
from .models import load_weights
from .s3diff import BASE as S3DIFF_BASE
from .s3diff import applied, check_degradation, degradations, mean, measured
from .solvers import sampler_output

CATEGORY = "trajectory/restoration"
FOLDER = "osediff"
BUNDLED = "landscapes (bundled)"
BASES = {BUNDLED: "Load Miniature, 'landscapes (eps)'"}
BASE = "Stable Diffusion 2.1-base (512)"
PROCESS_SIZES = {BUNDLED: 128}
UPSCALE_METHODS = ("bicubic", "bilinear")
DEGRADATIONS = ("per_image", "batch_mean", "manual")
SMALLEST_TILE = 8  # latent cells, that a person may choose
LEAST_TILE = 16  # when memory runs out
SILENT = Progress(lambda done: None)
STRIP = 8  # times as long as wide: a longer strip is enlarged less than process_size asks, or it would grow huge
NOT_FINITE = ("model or vae computed values that are not finite: start the host with --force-fp32 --fp32-vae, or load "
              "other weights")
ALIGN = 64  # pixels: whole cells on every level of the UNet, and what S3Diff pads to


class ApplyOSEDiff(io.ComfyNode):
    """MODEL and VAE that restore in one step."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryApplyOSEDiff",
            display_name="Apply OSEDiff",
            category=CATEGORY,
            description=(
                "Turns Stable Diffusion 2.1-base into the one-step restorer OSEDiff: low-rank changes of its UNet and "
                "of its VAE's encoder, as patches of MODEL and VAE."
            ),
            search_aliases=["osediff", "super resolution", "upscale", "restore", "one step", "real-isr", "lora"],
            inputs=[
                io.Model.Input("model", tooltip=(
                    "Stable Diffusion 2.1-base, the version for 512 pixels that predicts noise; of Load Miniature "
                    "'landscapes (eps)' for the bundled file.")),
                io.Vae.Input("vae", tooltip="The VAE of that model."),
                io.Combo.Input("file", options=[BUNDLED, *_files.files(FOLDER)], default=BUNDLED, tooltip=(
                    "osediff.pkl or osediff_face.pkl in models/osediff, as its authors publish them or as safetensors; "
                    "'landscapes (bundled)' is a small one for trying out.")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip=(
                    "The restorer: for One-Step Upscale, or a guider with One-Step SR Sampler.")),
                io.Vae.Output(display_name="vae", tooltip=(
                    "Encodes the picture to be restored. For other pictures keep the VAE it was made from.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, file):
        checkpoint = load_weights("restore_one_step") if file == BUNDLED else _files.read(FOLDER, file, "file")
        try:
            changes = files_of.osediff(checkpoint)
        except ValueError as error:
            raise ValueError(f"file is {file!r}, which is not OSEDiff's: {error}") from error
        return io.NodeOutput(*with_changes(
            model, vae, *changes, BASES.get(file, BASE), process_size=PROCESS_SIZES.get(file, PROCESS_SIZE)))


class OneStep(comfy.samplers.Sampler):
    """One prediction from the latent itself. A class of its own, because the host's KSAMPLER starts from noise."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        if len(sigmas) < 2:
            return latent_image
        path = path_of(model_wrap.model_patcher.get_model_object("model_sampling"))
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        x, model.noise = one_step.start(latent_image, float(sigmas[0]), path)
        model.latent_image = latent_image

        def report(state):
            callback(state["i"], state["denoised"], state["x"], 1)

        return one_step.sample_one_step(
            model, x, sigmas, {**extra_args, "denoise_mask": denoise_mask}, callback and report, disable_pbar,
            before_call=comfy.model_management.throw_exception_if_processing_interrupted)


class OneStepSRSampler(io.ComfyNode):
    """SAMPLER of one-step restorers."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOneStepSRSampler",
            display_name="One-Step SR Sampler",
            category=CATEGORY,
            description=(
                "Shows the network the latent itself in place of noise and returns what it predicts, in one call: how "
                "OSEDiff, S3Diff and their like restore a picture."
            ),
            search_aliases=["osediff", "s3diff", "one step", "super resolution", "restore", "sampler"],
            inputs=[],
            outputs=[sampler_output()],
        )

    @classmethod
    def execute(cls):
        return io.NodeOutput(OneStep())


def tiled(around, tile, overlap, progress, texts=1):
    """A function for set_model_unet_function_wrapper that runs the model tile by tile.

    Args:
        around: such a function that is there already, or None; each tile goes through it.
        tile, overlap: in cells of the latent.
        progress: Progress of a prediction.
        texts: how many texts it is made of, which hosts show the network together or one after another.
    """
    done = 0

    def call(apply_model, arguments):
        state, conds = arguments["input"], arguments["c"]
        if state.ndim < 4:
            raise ValueError(f"model samples latents of {state.ndim - 2} axes here, which cannot be cut into tiles; "
                             "leave Tiled Denoise out for it")
        if max(state.shape[-2:]) > tile and conds.get("control") is not None:
            raise ValueError("model is tiled, but its conditioning has a ControlNet, which sees the whole picture; "
                             f"leave one of the two out, or raise tile to {max(state.shape[-2:])}")
        # what the network sees beside the state, cell by cell: masks and latents of inpainting and upscaling models
        beside = {name: value for name, value in conds.items() if torch.is_tensor(value)
                  and value.ndim >= 4 and value.shape[-2:] == state.shape[-2:]}

        def one(part, *rest):
            *crops, _progress = rest
            inner = {**arguments, "input": part, "c": {**conds, **dict(zip(beside, crops, strict=True))}}
            return around(apply_model, inner) if around else apply_model(part, inner["timestep"], **inner["c"])

        nonlocal done
        together = len(arguments["cond_or_uncond"])
        part = progress.part(done / together, texts / together)
        done = (done + together) % texts
        return in_tiles(one, state, *beside.values(), tile=tile, overlap=overlap, least=LEAST_TILE,
                        progress=part).to(state.dtype)

    return call


def check_tiles(tile, overlap):
    """Raise ValueError for tiles that are too small, or overlap by more than half."""
    if 0 < tile < SMALLEST_TILE:
        raise ValueError(f"tile is {tile}, and a network sees next to nothing in so few cells; set it to "
                         f"{SMALLEST_TILE} or more, or to 0 for no tiles")
    if tile and overlap > tile // 2:
        raise ValueError(f"overlap is {overlap}, more than half of the tile of {tile}; lower it to {tile // 2}, or "
                         "raise tile")


def in_latent_tiles(model, tile, overlap, progress=SILENT, texts=1):
    """A clone of MODEL that works in tiles of `tile` cells of the latent; `model` itself for tile 0.

    Raises ValueError as `check_tiles` does.
    """
    check_tiles(tile, overlap)
    if not tile:
        return model
    clone = model.clone()
    clone.set_model_unet_function_wrapper(
        tiled(model.model_options.get("model_function_wrapper"), tile, overlap, progress, texts))
    return clone


def tile_inputs(tile_tooltip):
    return [
        io.Int.Input("tile", default=96, min=0, max=1024, step=4, tooltip=tile_tooltip),
        io.Int.Input("overlap", default=32, min=0, max=512, step=2, tooltip=(
            "Least overlap of two tiles, in cells of the latent; they are blended there.")),
    ]  # fmt: skip


class TiledDenoise(io.ComfyNode):
    """MODEL that works in tiles."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTiledDenoise",
            display_name="Tiled Denoise",
            category=CATEGORY,
            description=(
                "Runs the network on overlapping tiles of the latent and blends what it predicts: large pictures in "
                "the memory of a small one, at the size that the network was trained at."
            ),
            search_aliases=["tiled diffusion", "multidiffusion", "tile", "large images", "memory", "upscale"],
            inputs=[
                io.Model.Input("model", tooltip="A model of pictures; above all a restorer, for One-Step SR Sampler."),
                *tile_inputs("Longest side of a tile in cells of the latent, 8 pixels each for Stable Diffusion. "
                             "Larger stays closer to the whole picture, smaller invents more. 0: no tiles; else 8 "
                             "or more."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For a guider or sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, tile, overlap):
        return io.NodeOutput(in_latent_tiles(model, tile, overlap))


def resized(picture, height, width, method):
    """[1, 3, H, W] at another size, as Pillow resizes: smoothed where it shrinks."""
    if picture.shape[-2:] == (height, width):
        return picture
    return functional.interpolate(picture, (height, width), mode=method, antialias=True).clamp(0, 1)


def check_networks(model, vae, s3diff):
    """Raise ValueError for networks that are no restorer, and for ones that s3diff would make that a second time."""
    check_vae(vae)
    if s3diff is not None:
        check_plain(model, vae, S3DIFF_BASE)
    elif not is_restorer(model):
        raise ValueError("model is no restorer; connect that of Apply OSEDiff or Apply S3Diff, or connect s3diff")


def networks_of(image, model, vae, s3diff, degradation, blur, noise):
    """A function: picture [1, 3, H, W] of `image` -> (MODEL, VAE) that restore it; without `s3diff` as they are."""
    if s3diff is None:
        return lambda picture: (model, vae)

    @lru_cache(1)  # the same patches for the next frame if it is like this one: patching takes time
    def made_for(blur, noise):
        return applied(model, vae, s3diff, blur, noise, 1.0)

    if degradation == "per_image":
        return lambda picture: made_for(*measured(s3diff, picture))
    if degradation == "batch_mean":
        blur, noise = map(mean, degradations(s3diff, image))
    return lambda picture: made_for(blur, noise)


def in_one_step(model, latent, positive, negative, cfg):
    """The latent that the restorer `model` predicts for one; `negative` may be None, which is cfg 1."""
    channels = model.get_model_object("latent_format").latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(f"vae gives latents {list(latent.shape)}, and model wants {channels} channels; connect the "
                         "vae that belongs to it")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(1.0 if negative is None else cfg)
    sigma_max = float(model.get_model_object("model_sampling").sigma_max)
    return guider.sample(latent * 0, latent, OneStep(), torch.tensor([sigma_max, 0.0]), disable_pbar=True, seed=0)


class OneStepUpscale(io.ComfyNode):
    """IMAGE, larger and restored."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOneStepUpscale",
            display_name="One-Step Upscale",
            category=CATEGORY,
            description=(
                "Enlarges and restores pictures or frames of any size with a one-step restorer (OSEDiff, S3Diff): "
                "encode, one call of the network in tiles, decode, colours of the input."
            ),
            search_aliases=["osediff", "s3diff", "super resolution", "upscale", "restore", "enhance", "4x"],
            inputs=[
                io.Image.Input("image", tooltip=(
                    "Pictures or frames, restored one by one. Alpha is enlarged and kept.")),
                io.Model.Input("model", tooltip="Of Apply OSEDiff or Apply S3Diff; for s3diff, the plain SD-Turbo."),
                io.Vae.Input("vae", tooltip="Of the same node as model; for s3diff, that of SD-Turbo."),
                io.Conditioning.Input("positive", tooltip=(
                    "What the picture shows, as tags, from CLIP Text Encode; may be empty for OSEDiff.")),
                io.Int.Input("scale", default=4, min=1, max=8, tooltip=(
                    "How much larger the result is, exactly. The published weights are for 4; 1 restores only.")),
                kw(io.Combo.Input, "upscale_method", options=list(UPSCALE_METHODS), default=UPSCALE_METHODS[0],
                   advanced=True,
                   tooltip="How the input is enlarged before: bicubic for OSEDiff, bilinear for S3Diff."),
                kw(io.Int.Input, "process_size", default=0, min=0, max=4096, advanced=True, tooltip=(
                    "Least shorter side, in pixels, at which the network works; a smaller result is worked on larger "
                    "and shrunk at the end. 0: as it was trained, 512, or 128 for the bundled file. 1: any.")),
                *tile_inputs("Longest side of a tile of the network, in cells of 8 pixels. Larger stays closer to the "
                             "input, smaller invents more detail. 0: the whole picture at once."),
                kw(io.Int.Input, "vae_tile", default=1024, min=0, max=8192, step=64, advanced=True, tooltip=(
                    "Longest side of a tile of the VAE, in pixels; less than 384 counts as that. 0: the whole picture "
                    "at once.")),
                color_fix_input("adain"),
                io.Conditioning.Input("negative", optional=True, tooltip=(
                    "What a bad picture looks like, for S3Diff with cfg. Without it, one call of the network does.")),
                io.Float.Input("cfg", default=1.07, min=0.0, max=10.0, step=0.01, optional=True, tooltip=(
                    "Guidance away from negative; has no effect without it. 1.07 is S3Diff's.")),
                S3DIFF.Input("s3diff", optional=True, tooltip=(
                    "Of S3Diff Loader: the restorer is made for each picture's blur and noise.")),
                io.Combo.Input("degradation", options=list(DEGRADATIONS), default=DEGRADATIONS[0], optional=True,
                               tooltip="With s3diff: measure blur and noise of each picture, their mean over the batch "
                                       "(film: no flicker), or take those below."),
                io.Float.Input("blur", default=0.5, min=0.0, max=1.0, step=0.01, optional=True, tooltip=(
                    "With s3diff and manual: how blurred the input is, 0 sharp.")),
                io.Float.Input("noise", default=0.5, min=0.0, max=1.0, step=0.01, optional=True, tooltip=(
                    "With s3diff and manual: how noisy the input is, 0 clean.")),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Exactly scale times the size of the input.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image, model, vae, positive, scale, upscale_method, process_size, tile, overlap, vae_tile, color_fix,
        negative=None, cfg=1.07, s3diff=None, degradation=DEGRADATIONS[0], blur=0.5, noise=0.5,
    ):
        for name, value, options in (("upscale_method", upscale_method, UPSCALE_METHODS),
                                     ("color_fix", color_fix, colour_fix.METHODS),
                                     ("degradation", degradation, DEGRADATIONS)):
            if value not in options:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(options)}")
        if not math.isfinite(cfg):
            raise ValueError(f"cfg is {cfg}; set it to a number from 0 to 10")
        check_tiles(tile, overlap)
        check_degradation(blur, noise)
        check_networks(model, vae, s3diff)
        check_text("positive", positive, model)
        if negative is not None:
            check_text("negative", negative, model)
        pixels_of("image", image)
        texts = len(positive) + (len(negative) if negative is not None and cfg != 1 else 0)
        networks = networks_of(image, model, vae, s3diff, degradation, blur, noise)

        def restore(picture, progress):
            restorer, autoencoder = networks(picture)
            sides = [side * scale for side in picture.shape[-2:]]
            least = process_size or restorer.get_attachment(TRAINED_SIZE)
            factor = max(1.0, min(least / min(sides), STRIP * least / max(sides)))
            working = [round(side * factor) for side in sides]
            restorer = in_latent_tiles(restorer, tile, overlap, progress.part(1, 3), texts)

            def network(large):
                latent = encoded(autoencoder, large, vae_tile, progress.part(0, 3))
                latent = in_one_step(restorer, latent, positive, negative, cfg)
                return decoded(autoencoder, latent, vae_tile, progress.part(2, 3))

            plan = TilePlan(*working, tile=0, overlap=0, align=ALIGN)
            result = plan.run(network, plan.pad(resized(picture, *working, upscale_method)))
            return resized(result, *sides, upscale_method)

        return io.NodeOutput(each_frame(image, scale, restore, color_fix, not_finite=NOT_FINITE))


NODES = [ApplyOSEDiff, OneStepSRSampler, TiledDenoise, OneStepUpscale]
