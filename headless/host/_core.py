"""What the modules of core nodes share: widgets that many of them have, and pictures as files."""

import os

import numpy as np
from PIL import Image

SEED = ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True})
STEPS = ("INT", {"default": 20, "min": 1, "max": 10000})
CFG = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01})
SAVE_METADATA = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def latent_grid(width, height):
    """(width, height) of the latent of a picture; refuses sizes that the host would silently cut to the grid of 8."""
    for name, size in (("width", width), ("height", height)):
        if size % 8:
            raise ValueError(f"{name} is {size}, which is not a multiple of 8, the latent's grid. "
                             f"Use {size // 8 * 8} or {size // 8 * 8 + 8}.")
    return width // 8, height // 8


def picture(image):
    """IMAGE [H, W, C] in 0..1 as 8-bit Pillow image (truncated, not rounded, as the host does)."""
    return Image.fromarray(np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8))


def write_picture(image, path, **options):
    """Save a Pillow image as a whole: whatever stops the writing, no torn file is left under the final name."""
    part, kind = f"{path}.part", os.path.splitext(path)[1][1:].upper()
    try:
        image.save(part, format=kind, **options)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)
