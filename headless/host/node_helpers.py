"""Small helpers shared by nodes."""

import hashlib
from collections.abc import Mapping

import torch
from comfy.cli_args import args
from PIL import ImageFile, UnidentifiedImageError


def conditioning_set_values(conditioning, values: Mapping = {}, append=False):
    """CONDITIONING with options set in every entry, or with `append` added to what an entry has; the input is kept."""
    changed = []
    for tensor, options in conditioning:
        new = {key: options[key] + value if append and options.get(key) is not None else value
               for key, value in values.items()}
        changed.append([tensor, {**options, **new}])
    return changed


def pillow(fn, arg):
    """fn(arg), and once more accepting truncated pictures when Pillow refuses."""
    try:
        return fn(arg)
    except (OSError, UnidentifiedImageError, ValueError):
        previous = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return fn(arg)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = previous


def hasher():
    return getattr(hashlib, args.default_hashing_function)


def string_to_torch_dtype(string):
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(string)


def image_alpha_fix(destination, source):
    """Two IMAGE batches with the channels of the smaller, or an opaque alpha channel added to the one that lacks it."""
    if destination.shape[-1] < source.shape[-1]:
        return destination, source[..., :destination.shape[-1]]
    if destination.shape[-1] > source.shape[-1]:
        source = torch.nn.functional.pad(source, (0, 1), value=1.0)
    return destination, source
