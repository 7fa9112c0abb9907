"""One More Step: its module as a model of its own, the step as a LATENT, and the same start without a module."""

import logging
import math
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..models import oms
from ..samplers import one_more_step
from ..samplers.model import path_of, schedule_of
from ..samplers.noise import item_seeds
from ..samplers.paths import FLOW
from ._files import files
from ._schema import kw, schema
from ._unet import unet_model
from .models import load_weights, read_weights
from .solvers import sampler_output, with_function

logger = logging.getLogger("trajectory")

CATEGORY = "trajectory/schedules"
FOLDER = "oms"
BUNDLED = "landscapes (bundled)"
FORMATS = {"SD1.5 and 2.1": comfy.latent_formats.SD15, "SDXL": comfy.latent_formats.SDXL}
ENCODERS = {
    1024: "the OpenCLIP-H text encoder of SD 2.x (Load CLIP, type stable_diffusion)",
    2048: "the two text encoders of SDXL",
    128: "the CLIP of Load Miniature",
}
LITTLE_SIGNAL = 0.01  # of x0_hat in the start: a seventh of SD's 0.068, and a hundred times that of a zero-SNR schedule
OMSModel = io.Custom("OMS_MODEL")


def module_files():
    """The safetensors files in the host's folders for modules, models/oms and those of extra_model_paths."""
    return [name for name in files(FOLDER) if name.endswith(".safetensors")]


def read_module(file):
    """(weights, config.json or None) of a choice of OMS Loader. Raises ValueError or RuntimeError naming the fix."""
    if file == BUNDLED:
        return load_weights("landscapes_oms"), None
    if file not in module_files():
        raise ValueError(f"file is {file!r}, which is no safetensors file in models/oms; put the module there (or "
                         "its whole folder, oms_module/ included) and choose it from the list")
    path = Path(folder_paths.get_full_path_or_raise(FOLDER, file))
    return read_weights(path, "file: the module", "Fetch it again from where it came."), oms.read_config(path)


@contextmanager
def refusing(file):
    """Whatever goes wrong meanwhile with the contents of a module's file becomes a ValueError naming it and the fix."""
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION:  # a RuntimeError in torch, and no fault of the file
        raise
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"file is {file!r}, which gives no module of One More Step: {error}. Choose another file, or "
                         "fetch this one and the config.json beside it again") from error


def module_model(weights, options, latent_format, dtype=None):
    """ModelPatcher of a module, from its weights under diffusers' keys and their `unet_config`."""
    made = unet_model(options, oms.with_time(weights, options), latent_format, dtype)
    made.model.model_config.one_more_step = True  # tells OMS Step a module from a diffusion model of the same class
    return made


class OMSLoader(io.ComfyNode):
    """OMS_MODEL of a module's file."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOMSLoader",
            display_name="OMS Loader",
            category=CATEGORY,
            description=(
                "Loads a module of One More Step: a small UNet that tells light and overall colour of the picture "
                "from its text, for OMS Step."
            ),
            search_aliases=["one more step", "oms", "zero snr", "black", "brightness"],
            inputs=[
                kw(io.Combo.Input, "file", options=[BUNDLED, *module_files()], default=BUNDLED, tooltip=(
                    "A safetensors file in models/oms. Of a module in diffusers' form put its whole folder there and "
                    "choose the file in its oms_module. 'landscapes (bundled)' belongs to Load Miniature's eps "
                    "model.")),
                kw(io.Combo.Input, "variant", options=["auto", *FORMATS], default="auto", advanced=True, tooltip=(
                    "Whose latents the module works in. auto reads it from the name of the file and its folder. The "
                    "two families do not mix.")),
            ],
            outputs=[OMSModel.Output(display_name="oms_model", tooltip="For OMS Step.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, file, variant):
        if variant not in ("auto", *FORMATS):
            raise ValueError(f"variant is {variant!r}; choose one of auto, {', '.join(FORMATS)}")
        weights, config = read_module(file)
        with refusing(file):
            options = oms.unet_config(weights, config)
        if variant == "auto":
            variant = "SD1.5 and 2.1" if file == BUNDLED else oms.family(file, options["context_dim"])
        if variant is None:
            raise ValueError(f"variant is auto, but {file!r} names no family, or both; set variant to one "
                             f"of {', '.join(FORMATS)}")
        with refusing(file):
            return io.NodeOutput(module_model(weights, options, FORMATS[variant]))


class OMSStep(io.ComfyNode):
    """LATENT of the module's picture of light and colour."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOMSStep",
            display_name="OMS Step",
            category=CATEGORY,
            description=(
                "One More Step: makes the latent from which an eps or v model paints true black, true white and the "
                "colours that the text asks for. Sample from it with denoise 1; the model stays as it is."
            ),
            search_aliases=["one more step", "oms", "zero snr", "true black", "dark", "brightness", "offset noise"],
            inputs=[
                OMSModel.Input("oms_model", tooltip="From OMS Loader."),
                io.Model.Input("model", tooltip="The model that will sample, for its latents and its first sigma."),
                io.Conditioning.Input("positive", tooltip=(
                    "What the light and the colours should be, from the text encoder that the module was made for. It "
                    "may differ from the text of the sampler.")),
                io.Latent.Input("latent", tooltip=(
                    "An empty latent, for size and batch, as for the sampler. Its contents are not used.")),
                io.Float.Input("oms_cfg", default=1.0, min=0.0, max=10.0, step=0.1, tooltip=(
                    "Guidance of the module: above 1 away from negative. 1 does without it. 1 to 2 is usual.")),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip=(
                    "Scales the result. 0 gives an empty latent, hence the picture without One More Step.")),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=(
                    "Of the noise that the module sees, which has hardly a say. Independent of the sampler's noise, "
                    "also under the same number.")),
                io.Conditioning.Input("negative", optional=True, tooltip=(
                    "What to lead away from when oms_cfg is not 1: the empty text, as the modules were trained.")),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip=(
                "For the latent_image of a sampler with denoise 1, or for OMS Sampler Wrap."))],
        )  # fmt: skip

    @classmethod
    def execute(cls, oms_model, model, positive, latent, oms_cfg, strength, seed, negative=None):
        check_amounts(oms_cfg=oms_cfg, strength=strength)
        check_models(oms_model, model)
        texts = [check_text(oms_model, "positive", positive)]
        if oms_cfg != 1:
            if negative is None:
                raise ValueError(f"oms_cfg is {oms_cfg}, but negative is not connected: connect the empty text, or "
                                 "set oms_cfg to 1")
            texts.append(check_text(oms_model, "negative", negative))
        samples = empty_like(model, latent)
        indices = places(latent, len(samples))
        if strength > 0:
            x0_hat = strength * estimate(oms_model, item_noise(seed, indices, samples.shape), texts, oms_cfg)
            samples = oms_model.model.process_latent_out(x0_hat).to(samples)
        kept = {"batch_index": latent["batch_index"]} if "batch_index" in latent else {}
        return io.NodeOutput({"samples": samples, **kept})


def check_amounts(**amounts):
    """Raises ValueError for a number that is negative, infinite or none."""
    for name, value in amounts.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; set it to a number of 0 or more")


def check_models(oms_model, model):
    """Raises ValueError when a module cannot serve a model; warns when it has little to say."""
    # not getattr: a host's model_config answers None, with a warning in the log, to any name
    if "one_more_step" not in vars(oms_model.model.model_config):
        raise ValueError(f"oms_model is a {type(oms_model.model).__name__} that is no module of One More Step; connect "
                         "OMS Loader")
    sampling, theirs = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
    ours = oms_model.get_model_object("latent_format")
    if path_of(sampling) is FLOW:
        raise ValueError("model is a flow model, whose schedule begins at pure noise already: One More Step is for "
                         "eps and v models such as SD 1.5, 2.1 and SDXL")
    if (ours.latent_channels, ours.scale_factor) != (theirs.latent_channels, theirs.scale_factor):
        raise ValueError(
            f"oms_model works in latents of {type(ours).__name__} ({ours.latent_channels} channels, scale "
            f"{ours.scale_factor}), model in {type(theirs).__name__} ({theirs.latent_channels} channels, scale "
            f"{theirs.scale_factor}); load the module of the model's family, or set variant in OMS Loader")
    if (share := one_more_step.signal(float(sampling.sigma_max))) < LITTLE_SIGNAL:
        logger.warning("OMS Step: the model's schedule begins at sigma %.0f, where the picture has a share of %.5f in "
                       "the state (SD: 0.068): the step will have hardly any effect. Zero-SNR models need none.",
                       float(sampling.sigma_max), share)  # fmt: skip


def check_text(oms_model, name, conditioning):
    """The text states [1 or B, tokens, width] of the CONDITIONING in input `name`."""
    expected = oms_model.model.model_config.unet_config["context_dim"]
    if not conditioning:
        raise ValueError(f"{name} is empty; connect a text, from CLIP Text Encode")
    text = conditioning[0][0]
    if text.ndim != 3 or 0 in text.shape:
        raise ValueError(f"{name} has the shape {list(text.shape)}; a text is [batch, tokens, width]: connect CLIP "
                         "Text Encode")
    if text.shape[-1] != expected:
        need = ENCODERS.get(expected, "the text encoder that the module was trained with")
        raise ValueError(f"{name} has a width of {text.shape[-1]}, but oms_model reads texts of width {expected}: "
                         f"encode the text with {need}")
    if len(conditioning) > 1:
        logger.warning("OMS Step: %s holds %d texts; the module reads the first", name, len(conditioning))
    return text


def empty_like(model, latent):
    """Zeros [B, C, h, w] of the size of a LATENT. Raises ValueError when they would be no latent of a picture."""
    samples = latent["samples"]
    if not getattr(samples, "is_nested", False) and samples.ndim == 4:
        samples = comfy.sample.fix_empty_latent_channels(model, samples)
    channels = model.get_model_object("latent_format").latent_channels
    if getattr(samples, "is_nested", False) or samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(f"latent has the shape {list(samples.shape)}; One More Step makes latents of pictures "
                         f"[batch, {channels}, height, width]: connect Empty Latent Image")
    if 0 in samples.shape:
        raise ValueError(f"latent has the shape {list(samples.shape)}, so it is empty: connect Empty Latent Image with "
                         "a batch_size of 1 or more")
    if "noise_mask" in latent:
        logger.warning("OMS Step: the mask of latent is left out; to inpaint, give the sampler your own latent and "
                       "bring this result in with OMS Sampler Wrap")
    return torch.zeros_like(samples, dtype=torch.float32)


def places(latent, items):
    """The places in the batch of the `items` of a LATENT. Raises ValueError when they are not one an item."""
    indices = latent.get("batch_index") or range(items)
    if len(indices) != items or min(indices) < 0:
        raise ValueError(f"latent has the batch_index {list(indices)} for {items} items; it holds one number an item, "
                         "0 or more: connect Empty Latent Image or Latent From Batch")
    return indices


def item_noise(seed, indices, shape):
    """Noise [B, ...]: one CPU generator an item, by its place in the batch, in a stream that no sampler draws from."""
    seeds = item_seeds(seed, "one more step", [int(index).to_bytes(8, "little") for index in indices])
    return torch.stack([torch.randn(shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])


def estimate(oms_model, noise, texts, cfg):
    """x0_hat [B, C, h, w] on the CPU from the module's answers to one or two texts [1 or B, tokens, width]."""
    one = oms_model.memory_required([1, *noise.shape[1:]])
    comfy.model_management.load_models_gpu(
        [oms_model], memory_required=one * len(noise), minimum_memory_required=one)
    device, network = oms_model.load_device, oms_model.model
    dtype = network.manual_cast_dtype or network.get_dtype()
    together = max(1, int(comfy.model_management.get_free_memory(device) // max(one, 1)))
    texts = [comfy.utils.repeat_to_batch_size(text, len(noise)) for text in texts]
    bar = comfy.utils.ProgressBar(len(noise) * len(texts))
    parts = []
    for items in torch.arange(len(noise)).split(together):
        answers = []
        for text in texts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            x, context = noise[items].to(device, dtype), text[items.to(text.device)].to(device, dtype)
            v = network.diffusion_model(x, torch.zeros(len(items), device=device), context=context)
            answers.append(v.float().cpu())
            bar.update(len(items))
        parts.append(one_more_step.clean_estimate(*answers, cfg=cfg))
    return torch.cat(parts)


class OMSSamplerWrap(io.ComfyNode):
    """SAMPLER that starts from another mean than that of the sampler's latent."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOMSSamplerWrap",
            display_name="OMS Sampler Wrap",
            category=CATEGORY,
            description=(
                "Brings the result of OMS Step or Low-Frequency Seed into a sampler whose latent is your own: for "
                "inpainting, where that latent is what is kept outside the mask."
            ),
            search_aliases=["one more step", "oms", "inpaint", "start", "init"],
            inputs=[
                io.Sampler.Input("sampler", tooltip="The sampler; it stays as it is."),
                io.Latent.Input("start", tooltip="From OMS Step or Low-Frequency Seed."),
            ],
            outputs=[sampler_output()],
        )

    @classmethod
    def execute(cls, sampler, start):
        return io.NodeOutput(with_function(sampler, partial(started_from, start=start["samples"])))


def started_from(function, start):
    """A sampler function whose first state has the mean `start` [1 or B, C, ...], a latent of the VAE.

    It takes the place of a start that `function` already has.
    """
    function = getattr(function, "without_start", function)

    def sample(model, x, sigmas, *args, **kwargs):
        schedule, sigma = schedule_of(model), float(sigmas[0])
        warn_of_little_effect(schedule, sigma)
        x0_hat = in_models_scale(model.inner_model.inner_model, start, x)
        x = one_more_step.with_mean(x, model.latent_image, x0_hat, schedule.path, sigma)
        return function(model, x, sigmas, *args, **kwargs)

    sample.without_start = function
    return sample


def in_models_scale(base, start, x):
    """x0_hat like the state x [B, C, ...]; an empty start of any size is zero, as an empty latent is for the host."""
    if not start.any():
        return torch.zeros_like(x)
    if start.shape[1:] != x.shape[1:]:
        raise ValueError(f"start of OMS Sampler Wrap has the shape {list(start.shape)}, the latent of the sampler "
                         f"{list(x.shape)}: make both of one size")
    return comfy.utils.repeat_to_batch_size(base.process_latent_in(start), len(x)).to(x)


def warn_of_little_effect(schedule, sigma):
    """Say so when a run from `sigma` makes nothing of its start, or too much."""
    top = float(getattr(schedule.model_sampling, "sigma_max", sigma))
    if float(schedule.path.alpha(sigma)) < LITTLE_SIGNAL:
        logger.warning("OMS Sampler Wrap: a flow model's schedule begins at pure noise, where a start has no say")
    elif sigma < top / 2:
        logger.warning("OMS Sampler Wrap: the schedule begins at sigma %.3g of %.3g (denoise below 1): the start takes "
                       "the place of your latent", sigma, top)  # fmt: skip


class LowFrequencySeed(io.ComfyNode):
    """LATENT of a blurred colour or picture."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryLowFrequencySeed",
            display_name="Low-Frequency Seed",
            category=CATEGORY,
            description=(
                "The start of One More Step without its module: light and colours come from a colour or a blurred "
                "picture instead of a text. Sample from it with denoise 1, on eps and v models."
            ),
            search_aliases=["one more step", "oms", "true black", "dark", "brightness", "colour", "color", "palette"],
            inputs=[
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
                io.String.Input("colour", default="#000000", tooltip=(
                    "The colour to start from, as #RRGGBB. Not used where an image is connected.")),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Of the picture, in pixels."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Of the picture, in pixels."),
                io.Float.Input("blur", default=0.25, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Standard deviation of the blur, as a share of the shorter side. 0.06 keeps the layout of an "
                    "image, 0.5 hardly more than its colour; 0 does not blur.")),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip=(
                    "Scales the result. 0 gives an empty latent, hence the picture without this node.")),
                io.Image.Input("image", optional=True, tooltip=(
                    "The picture to start from; cut and resized to width and height. A batch gives a batch.")),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip=(
                "For the latent_image of a sampler with denoise 1, or for OMS Sampler Wrap."))],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, colour, width, height, blur, strength, image=None):
        check_amounts(blur=blur, strength=strength)
        if image is None:
            pixels = parse_colour(colour).expand(1, height, width, 3)
        else:
            if image.ndim != 4 or 0 in image.shape:
                raise ValueError(f"image has the shape {list(image.shape)}; connect at least one picture [batch, "
                                 "height, width, channels]")
            image = image if image.shape[-1] >= 3 else image[..., :1].expand(*image.shape[:-1], 3)
            pixels = image[..., :3].movedim(-1, 1)
            pixels = comfy.utils.common_upscale(pixels, width, height, "bilinear", "center").movedim(1, -1)
        latents = vae.encode(pixels)
        if latents.ndim != 4:
            raise ValueError(f"vae makes latents of the shape {list(latents.shape)}; Low-Frequency Seed needs that of "
                             "an image model: [batch, channels, height, width]")
        if strength == 0:
            return io.NodeOutput({"samples": torch.zeros_like(latents)})
        return io.NodeOutput({"samples": strength * one_more_step.low_pass(latents, blur)})


def parse_colour(colour):
    """Red, green and blue [3] in 0..1 of '#RRGGBB'."""
    if not re.fullmatch("#?[0-9a-fA-F]{6}", colour.strip()):
        raise ValueError(f"colour is {colour!r}; write #RRGGBB, such as #000000 for black")
    return torch.tensor(list(bytes.fromhex(colour.strip().removeprefix("#")))) / 255


NODES = [OMSLoader, OMSStep, OMSSamplerWrap, LowFrequencySeed]
