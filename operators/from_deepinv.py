"""Operators of the library deepinv (https://deepinv.org), where it is installed; it is imported on first use."""

import inspect
import json

import torch

from .base import Operator

PHYSICS = ("Blur", "BlurFFT", "CompressedSensing", "Decolorize", "Demosaicing", "Downsampling", "DownsamplingMatlab",
           "Inpainting", "SinglePixelCamera", "Tomography")  # fmt: skip
"""Constructors of deepinv.physics whose pictures are real and whose arguments can be written down."""
HIDDEN = ("device", "rng", "kwargs")
"""Arguments of theirs that are no choice of the user."""


def arguments(text):
    """Keyword arguments from a JSON object: lists of numbers are tuples, lists of lists are tensors.

    Raises ValueError for text that is no such object.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"arguments is no JSON ({error}); write an object such as "
                         '{"img_size": [3, 128, 128]}, or {} for none') from error
    if not isinstance(found, dict):
        raise ValueError(f"arguments is {text.strip()!r}; write a JSON object such as "
                         '{"img_size": [3, 128, 128]}, or {} for none')
    return {name: _value(name, value) for name, value in found.items()}


def _value(name, value):
    if not isinstance(value, list):
        return value
    if not any(isinstance(part, list) for part in value):
        return tuple(value)
    try:
        return torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments: {name} is no tensor ({error}); its rows must be numbers, equally many") from error


class FromDeepinv(Operator):
    """A of a deepinv physics, without its noise; a linear one's adjoint is taken from A by autograd.

    Args:
        name: of PHYSICS.
        options: its keyword arguments.
        seed: of what it draws at random (the pixels of Inpainting, the matrix of CompressedSensing).

    Raises:
        ValueError: an unknown name, or arguments that deepinv does not take.
    """

    def __init__(self, name, options, seed=0):
        if name not in PHYSICS:
            raise ValueError(f"physics is {name!r}; choose one of {', '.join(PHYSICS)}")
        from deepinv import physics

        constructor = getattr(physics, name, None)
        if constructor is None:
            raise ValueError(f"physics is {name!r}, which the installed deepinv does not have; update deepinv")
        known = inspect.signature(constructor).parameters
        taken = [name for name in known if name not in HIDDEN]
        if strange := [name for name in options if name not in taken]:  # deepinv would pass over them
            raise ValueError(f"arguments names {', '.join(strange)}, but {name} takes {', '.join(taken) or 'none'}")
        with torch.inference_mode(False):  # what it keeps must serve for gradients
            if "rng" in known:
                options = {**options, "rng": torch.Generator().manual_seed(seed)}
            try:
                self.physics = constructor(**options)
            except Exception as error:  # whatever a constructor makes of a user's values
                raise ValueError(f"arguments do not suit {name} ({type(error).__name__}: {error}); it takes "
                                 f"{', '.join(taken) or 'none'}") from error
        self.name, self.linear = name, isinstance(self.physics, physics.LinearPhysics)

    def forward(self, x):
        try:
            return self.physics.to(x.device).A(x.float()).to(x.dtype)
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise ValueError(f"deepinv's {self.name} does not take pictures of shape {list(x.shape)} ({error}); set "
                             "its arguments for that size") from error

