"""Callback of sampler nodes: progress, a rough preview and the latest prediction."""

import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

MAX_PREVIEW_RESOLUTION = args.preview_size


def preview_to_image(latent_image):
    """Pillow picture from [H, W, 3] in -1..1."""
    pixels = ((latent_image + 1.0) / 2.0).clamp(0, 1).mul(255)
    return Image.fromarray(pixels.to(device="cpu", dtype=torch.uint8).numpy())


class LatentPreviewer:
    """Turns x0 [B, C, H, W] into ("JPEG", picture, largest side) for the host's progress hook."""

    def decode_latent_to_preview(self, x0):
        raise NotImplementedError

    def decode_latent_to_preview_image(self, preview_format, x0):
        return ("JPEG", self.decode_latent_to_preview(x0), MAX_PREVIEW_RESOLUTION)


class Latent2RGBPreviewer(LatentPreviewer):
    """Linear map of the first item's channels to colours."""

    def __init__(self, latent_rgb_factors, latent_rgb_factors_bias=None):
        self._factors = torch.tensor(latent_rgb_factors)
        self._bias = None if latent_rgb_factors_bias is None else torch.tensor(latent_rgb_factors_bias)

    def decode_latent_to_preview(self, x0):
        picture = x0[0, :, 0] if x0.ndim == 5 else x0[0]
        colours = picture.float().cpu().movedim(0, -1) @ self._factors
        return preview_to_image(colours if self._bias is None else colours + self._bias)


def get_previewer(device, latent_format):
    if args.preview_method == LatentPreviewMethod.NoPreviews or latent_format.latent_rgb_factors is None:
        return None
    return Latent2RGBPreviewer(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)


def prepare_callback(model, steps, x0_output_dict=None):
    """callback(step, x0, x, total_steps) that moves a progress bar, sends previews and keeps x0 under "x0"."""
    previewer = get_previewer(model.load_device, model.model.latent_format)
    bar = comfy.utils.ProgressBar(steps)

    def callback(step, x0, x, total_steps):
        if x0_output_dict is not None:
            x0_output_dict.update(x0=x0)
        shown = x0.tensors[0] if x0.is_nested else x0
        preview = previewer.decode_latent_to_preview_image("JPEG", shown) if previewer else None
        bar.update_absolute(step + 1, total_steps, preview)

    return callback
