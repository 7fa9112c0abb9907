"""Core nodes under the host's ids, and the table that all nodes register in.

Ids, inputs, ranges, categories and display names are those of ComfyUI 0.3.64: a graph made here opens there unchanged.
"""

import hashlib
import json
import math
import os
import random

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import node_helpers
import numpy as np
import torch
from _core import CFG, SAVE_METADATA, SEED, STEPS, latent_grid, picture, write_picture
from comfy.cli_args import args
from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

MAX_RESOLUTION = 16384

NODE_CLASS_MAPPINGS = {}
"""Node id -> class, of the core nodes and of every pack that is loaded."""

NODE_DISPLAY_NAME_MAPPINGS = {}

EXTENSION_WEB_DIRS = {}
"""Pack name -> its folder of editor extensions and help pages."""


def _node(display_name=None):
    """Class decorator: register a core node under its class name, which is also shown where no other name is given."""

    def register(cls):
        NODE_CLASS_MAPPINGS[cls.__name__] = cls
        if display_name is not None:
            NODE_DISPLAY_NAME_MAPPINGS[cls.__name__] = display_name
        return cls

    return register


def before_node_execution():
    """Called by the executor before each call of a node: the place where an interruption is noticed."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def interrupt_processing(value=True):
    """Ask the running prompt to stop, or take that back."""
    comfy.model_management.interrupt_current_processing(value)


# --- loaders ---------------------------------------------------------------------------------------------------------


@_node("Load Diffusion Model")
class UNETLoader:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "advanced/loaders"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "unet_name": (folder_paths.get_filename_list("diffusion_models"),),
            "weight_dtype": (["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"],),
        }}

    def load_unet(self, unet_name, weight_dtype):
        options = {
            "default": {},
            "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
            "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
            "fp8_e5m2": {"dtype": torch.float8_e5m2},
        }[weight_dtype]
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return (comfy.sd.load_diffusion_model(path, model_options=options),)


@_node("Load VAE")
class VAELoader:
    """Without the host's shortcuts for TAESD files in `vae_approx`."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "load_vae"
    CATEGORY = "loaders"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae_name": ([*folder_paths.get_filename_list("vae"), "pixel_space"],)}}

    def load_vae(self, vae_name):
        if vae_name == "pixel_space":
            weights = {"pixel_space_vae": torch.tensor(1.0)}
        else:
            weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("vae", vae_name))
        vae = comfy.sd.VAE(sd=weights)
        vae.throw_exception_if_invalid()
        return (vae,)


# --- conditioning ----------------------------------------------------------------------------------------------------


@_node("CLIP Text Encode (Prompt)")
class CLIPTextEncode:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "conditioning"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP", {})}}

    def encode(self, clip, text):
        if clip is None:
            raise ValueError("clip is None: the model that was loaded brings no text encoder; load one and connect it.")
        return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)


@_node("Conditioning (Combine)")
class ConditioningCombine:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "combine"
    CATEGORY = "conditioning"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning_1": ("CONDITIONING",), "conditioning_2": ("CONDITIONING",)}}

    def combine(self, conditioning_1, conditioning_2):
        return (conditioning_1 + conditioning_2,)


@_node()
class ConditioningZeroOut:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "zero_out"
    CATEGORY = "advanced/conditioning"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def zero_out(self, conditioning):
        return ([self._zeroed(tensor, extras) for tensor, extras in conditioning],)

    @staticmethod
    def _zeroed(tensor, extras):
        zeros = {key: torch.zeros_like(extras[key]) for key in ("pooled_output", "conditioning_lyrics")
                 if extras.get(key) is not None}
        return [torch.zeros_like(tensor), {**extras, **zeros}]


# --- latents ---------------------------------------------------------------------------------------------------------


@_node("Empty Latent Image")
class EmptyLatentImage:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"
    CATEGORY = "latent"

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 512, "min": 16, "max": MAX_RESOLUTION, "step": 8})
        count = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"width": size, "height": size, "batch_size": count}}

    def generate(self, width, height, batch_size=1):
        columns, rows = latent_grid(width, height)
        device = comfy.model_management.intermediate_device()
        return ({"samples": torch.zeros([batch_size, 4, rows, columns], device=device)},)


@_node("VAE Decode")
class VAEDecode:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "latent"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT", {}), "vae": ("VAE", {})}}

    def decode(self, vae, samples):
        images = vae.decode(samples["samples"])
        return (images.flatten(0, 1) if images.ndim == 5 else images,)  # frames of a video become a batch


@_node("VAE Encode")
class VAEEncode:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "latent"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, vae, pixels):
        return ({"samples": vae.encode(pixels[..., :3])},)


@_node("Set Latent Noise Mask")
class SetLatentNoiseMask:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"
    CATEGORY = "latent/inpaint"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "mask": ("MASK",)}}

    def set_mask(self, samples, mask):
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


@_node("Latent Blend")
class LatentBlend:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "blend"
    CATEGORY = "_for_testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "samples1": ("LATENT",),
            "samples2": ("LATENT",),
            "blend_factor": ("FLOAT", {"default": 0.5, "min": 0, "max": 1, "step": 0.01}),
        }}

    def blend(self, samples1, samples2, blend_factor):
        """`blend_factor` of the first and the rest of the second, which is resized to the first."""
        first, second = samples1["samples"], samples2["samples"]
        if first.shape != second.shape:
            second = comfy.utils.common_upscale(second, first.shape[3], first.shape[2], "bicubic", crop="center")
        return ({**samples1, "samples": first * blend_factor + second * (1 - blend_factor)},)


@_node("Latent From Batch")
class LatentFromBatch:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "frombatch"
    CATEGORY = "latent/batch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "batch_index": ("INT", {"default": 0, "min": 0, "max": 63}),
                             "length": ("INT", {"default": 1, "min": 1, "max": 64})}}

    def frombatch(self, samples, batch_index, length):
        """Items from `batch_index` on, with their masks and with the numbers that tie them to their noise."""
        latent = samples["samples"]
        start = min(batch_index, latent.shape[0] - 1)
        chosen = slice(start, min(start + length, latent.shape[0]))
        out = {**samples, "samples": latent[chosen].clone()}
        if "noise_mask" in samples:
            masks = samples["noise_mask"]
            out["noise_mask"] = masks.clone() if masks.shape[0] == 1 else _masks_for(masks, latent)[chosen].clone()
        numbers = samples.get("batch_index") or list(range(latent.shape[0]))
        out["batch_index"] = numbers[chosen]
        return (out,)


@_node("Repeat Latent Batch")
class RepeatLatentBatch:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "repeat"
    CATEGORY = "latent/batch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "amount": ("INT", {"default": 1, "min": 1, "max": 64})}}

    def repeat(self, samples, amount):
        """The whole batch `amount` times; items that carry noise numbers get new ones in each repetition."""
        latent = samples["samples"]
        out = {**samples, "samples": _repeated(latent, amount)}
        if "noise_mask" in samples and samples["noise_mask"].shape[0] > 1:
            out["noise_mask"] = _repeated(_masks_for(samples["noise_mask"], latent), amount)
        if "batch_index" in samples:
            numbers = samples["batch_index"]
            span = max(numbers) - min(numbers) + 1
            out["batch_index"] = [number + turn * span for turn in range(amount) for number in numbers]
        return (out,)


def _repeated(tensor, times):
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _masks_for(masks, latent):
    """One mask an item: a shorter list is repeated from its start."""
    return _repeated(masks, math.ceil(latent.shape[0] / masks.shape[0]))[:latent.shape[0]]


# --- sampling --------------------------------------------------------------------------------------------------------


def common_ksampler(model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise=1.0,
                    disable_noise=False, start_step=None, last_step=None, force_full_denoise=False):
    """Noise, schedule and sampler in one: returns the LATENT in a tuple."""
    start = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    if disable_noise:
        noise = torch.zeros_like(start, device="cpu")
    else:
        noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    samples = comfy.sample.sample(
        model, noise, steps, cfg, sampler_name, scheduler, positive, negative, start, denoise=denoise,
        disable_noise=disable_noise, start_step=start_step, last_step=last_step, force_full_denoise=force_full_denoise,
        noise_mask=latent.get("noise_mask"), callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed)
    return ({**latent, "samples": samples},)


@_node("KSampler")
class KSampler:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "sampling"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL", {}), "seed": SEED, "steps": STEPS, "cfg": CFG,
            "sampler_name": (comfy.samplers.KSampler.SAMPLERS, {}),
            "scheduler": (comfy.samplers.KSampler.SCHEDULERS, {}),
            "positive": ("CONDITIONING", {}), "negative": ("CONDITIONING", {}), "latent_image": ("LATENT", {}),
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
        }}

    def sample(self, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=1.0):
        return common_ksampler(model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image,
                               denoise=denoise)


@_node("KSampler (Advanced)")
class KSamplerAdvanced:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "sampling"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL",), "add_noise": (["enable", "disable"],), "noise_seed": SEED, "steps": STEPS, "cfg": CFG,
            "sampler_name": (comfy.samplers.KSampler.SAMPLERS,), "scheduler": (comfy.samplers.KSampler.SCHEDULERS,),
            "positive": ("CONDITIONING",), "negative": ("CONDITIONING",), "latent_image": ("LATENT",),
            "start_at_step": ("INT", {"default": 0, "min": 0, "max": 10000}),
            "end_at_step": ("INT", {"default": 10000, "min": 0, "max": 10000}),
            "return_with_leftover_noise": (["disable", "enable"],),
        }}

    def sample(self, model, add_noise, noise_seed, steps, cfg, sampler_name, scheduler, positive, negative,
               latent_image, start_at_step, end_at_step, return_with_leftover_noise, denoise=1.0):
        return common_ksampler(
            model, noise_seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise,
            disable_noise=add_noise == "disable", start_step=start_at_step, last_step=end_at_step,
            force_full_denoise=return_with_leftover_noise == "disable")


# --- images ----------------------------------------------------------------------------------------------------------


@_node("Save Image")
class SaveImage:
    """PNG files whose text chunks hold the prompt and the workflow, so that the picture opens its graph."""

    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    CATEGORY = "image"

    type = "output"
    prefix_append = ""
    compress_level = 4

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
                "hidden": SAVE_METADATA}

    def save_images(self, images, filename_prefix="ComfyUI", prompt=None, extra_pnginfo=None):
        height, width = images[0].shape[:2]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix + self.prefix_append, folder_paths.get_directory_by_type(self.type), width, height)
        metadata = self._metadata(prompt, extra_pnginfo)
        saved = []
        for index, image in enumerate(images):
            file = f"{name.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
            write_picture(picture(image), os.path.join(folder, file), pnginfo=metadata,
                          compress_level=self.compress_level)
            saved.append({"filename": file, "subfolder": subfolder, "type": self.type})
        return {"ui": {"images": saved}}

    @staticmethod
    def _metadata(prompt, extra_pnginfo):
        chunks = PngInfo()
        values = {} if prompt is None else {"prompt": prompt}
        for key, value in {} if args.disable_metadata else {**values, **(extra_pnginfo or {})}.items():
            chunks.add_text(key, json.dumps(value))
        return chunks


@_node("Preview Image")
class PreviewImage(SaveImage):
    type = "temp"
    compress_level = 1

    def __init__(self):
        self.prefix_append = "_temp_" + "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=5))

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "hidden": SAVE_METADATA}


def _input_files():
    folder = folder_paths.get_input_directory()
    if not os.path.isdir(folder):
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())


class _InputPicture:
    """What the nodes that read a picture from the input folder share."""

    @classmethod
    def IS_CHANGED(cls, image, **others):
        """Hash of the file, so that an overwritten picture is read again."""
        with open(folder_paths.get_annotated_filepath(image), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image):
        if folder_paths.exists_annotated_filepath(image):
            return True
        return f"Invalid image file: {image}. Put it into {folder_paths.get_input_directory()}."


def _channel(frame, name):
    return torch.from_numpy(np.array(frame.getchannel(name)).astype(np.float32) / 255.0)


def _eight_bit(frame):
    """A 32-bit integer picture (16-bit PNGs open as one) brought to 0..255; others as they are."""
    return frame.point(lambda value: value * (1 / 255)) if frame.mode == "I" else frame


@_node("Load Image")
class LoadImage(_InputPicture):
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls):
        files = sorted(folder_paths.filter_files_content_types(_input_files(), ["image"]))
        return {"required": {"image": (files, {"image_upload": True})}}

    def load_image(self, image):
        """Picture [B, H, W, 3] and mask [B, H, W] (1 where it is transparent); an animation's frames are the batch."""
        file = node_helpers.pillow(Image.open, folder_paths.get_annotated_filepath(image))
        frames, masks = [], []
        for raw in ImageSequence.Iterator(file):
            frame = _eight_bit(node_helpers.pillow(ImageOps.exif_transpose, raw))
            pixels = torch.from_numpy(np.array(frame.convert("RGB")).astype(np.float32) / 255.0)
            if frames and pixels.shape != frames[0].shape:
                continue
            frames.append(pixels)
            masks.append(self._mask(frame))
        if file.format == "MPO":  # the further pictures of this camera format are previews
            frames, masks = frames[:1], masks[:1]
        return torch.stack(frames), torch.stack(masks)

    @staticmethod
    def _mask(frame):
        if "A" in frame.getbands():
            return 1.0 - _channel(frame, "A")
        if frame.mode == "P" and "transparency" in frame.info:
            return 1.0 - _channel(frame.convert("RGBA"), "A")
        return torch.zeros(64, 64)


@_node("Load Image (as Mask)")
class LoadImageMask(_InputPicture):
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image"
    CATEGORY = "mask"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": (_input_files(), {"image_upload": True}),
                             "channel": (["alpha", "red", "green", "blue"],)}}

    def load_image(self, image, channel):
        """One channel as mask [1, H, W]; alpha is inverted, so that transparent means 1."""
        file = node_helpers.pillow(Image.open, folder_paths.get_annotated_filepath(image))
        frame = _eight_bit(node_helpers.pillow(ImageOps.exif_transpose, file)).convert("RGBA")
        mask = _channel(frame, channel[0].upper())
        return ((1.0 - mask if channel == "alpha" else mask).unsqueeze(0),)


@_node("Upscale Image")
class ImageScale:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1})
        methods = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
        return {"required": {"image": ("IMAGE",), "upscale_method": (methods,), "width": size, "height": size,
                             "crop": (["disabled", "center"],)}}

    def upscale(self, image, upscale_method, width, height, crop):
        """A width or height of 0 follows from the other one and the picture's shape; both 0 leave the picture alone."""
        if width == height == 0:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return (comfy.utils.common_upscale(image.movedim(-1, 1), width, height, upscale_method, crop).movedim(1, -1),)
