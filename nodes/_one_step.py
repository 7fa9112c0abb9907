"""The changes of a one-step restorer as weight patches of the host's MODEL and VAE."""

import copy
import logging
import math
from functools import lru_cache

import comfy.model_sampling
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter

from ..models.one_step import ALPHA, autoencoder_key
from ._autoencoder import check_vae

logger = logging.getLogger("trajectory")

TRAINED_SIZE = "trajectory_process_size"
"""Key of the attachment that every restorer's patcher has: the shorter side in pixels that it was trained on."""
PROCESS_SIZE = 512
"""That of the published files."""


def with_changes(model, vae, unet, autoencoder, base, strength=1.0, process_size=PROCESS_SIZE):
    """Clones of MODEL and VAE with the `models.one_step.Change`s of their UNet and autoencoder as patches.

    Args:
        base: name of the model that was trained on, for errors.
        strength: 1 as trained, 0 none; whole layers are interpolated.
        process_size: shorter side in pixels of the pictures that it was trained on.

    Raises:
        ValueError: `model` does not predict noise, a change finds no layer of its size in `model` or `vae`, or one of
            them is a restorer already.
    """
    check_vae(vae)
    check_plain(model, vae, base)
    check_predicts_noise(model, base)
    if torch.bfloat16 in (model.model.get_dtype(), model.model.manual_cast_dtype):
        _warn_once(model.patches_uuid, "model computes in bf16, whose rounding shows as grain in one-step results; "
                                       "load it in fp16 or fp32")
    host_keys = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    restorer = _patched("model", model, unet, lambda key: f"diffusion_model.{host_keys.get(key)}", base, strength)
    encoder = copy.copy(vae)
    encoder.patcher = _patched("vae", vae.patcher, autoencoder, autoencoder_key, base, strength)
    for patcher in (restorer, encoder.patcher):
        patcher.set_attachments(TRAINED_SIZE, process_size)
    return restorer, encoder


def is_restorer(patcher):
    """Whether `with_changes` made this patcher, or one that it was cloned from."""
    return patcher.get_attachment(TRAINED_SIZE) is not None


def check_plain(model, vae, base):
    """Raise ValueError for a MODEL or VAE that `with_changes` made: changed twice, it restores nothing."""
    for name, patcher in (("model", model), ("vae", vae.patcher)):
        if is_restorer(patcher):
            raise ValueError(f"{name} already is a one-step restorer's; connect the plain {name} of {base}")


def check_predicts_noise(model, base):
    """Raise ValueError for a model of v, x0 or velocity: on such a one the changes give coloured noise."""
    sampling = model.get_model_object("model_sampling")
    other = (comfy.model_sampling.V_PREDICTION, comfy.model_sampling.X0)  # EDM is a kind of the first
    if not isinstance(sampling, comfy.model_sampling.EPS) or isinstance(sampling, other):
        kinds = ", ".join(kind.__name__ for kind in type(sampling).__bases__)
        raise ValueError(f"model does not predict noise (eps), but is of the kind {kinds}; connect {base}, not a "
                         "version for v-prediction")


def check_text(name, conditioning, model):
    """Raise ValueError for a CONDITIONING of the input `name` that `model` cannot read: empty, or of another width."""
    width = model.model.model_config.unet_config.get("context_dim")
    if not conditioning:
        raise ValueError(f"{name} holds no text; connect CLIP Text Encode, where the text may be empty")
    for text, _ in conditioning:
        if width and text.shape[-1] != width:
            raise ValueError(f"{name} has texts of {text.shape[-1]} numbers a token, and model reads {width}; encode "
                             "them with the CLIP that belongs to model")


def _patched(name, patcher, change, host_key, base, strength):
    shapes = {key: tuple(weight.shape) for key, weight in patcher.model.state_dict().items()}
    pairs = {f"{layer}.weight": pair for layer, pair in change.low_rank.items()}
    sizes = [(key, (len(weight), weight[0].numel())) for key, weight in change.weights.items()]
    sizes += [(key, (len(pair.up), pair.down[0].numel())) for key, pair in pairs.items()]
    trouble = []
    for key, size in sizes:
        shape = shapes.get(host_key(key), ())
        if size != (*shape[:1], math.prod(shape[1:])):
            trouble.append(f"{key} {list(size)} for {list(shape) or 'none'}")
    if trouble:
        raise ValueError(
            f"{name} is not the one that this file changes: {len(trouble)} of its {len(sizes)} changes find no layer "
            f"of their size ({', '.join(trouble[:3])}{', ...' if len(trouble) > 3 else ''}); connect that of {base}")
    clone = patcher.clone()
    if not strength:
        return clone
    if lost := [key for key in change.weights if host_key(key) in patcher.patches]:
        _warn_once(patcher.patches_uuid, f"{name} has patches (LoRAs) on {len(lost)} layers that the restorer puts its "
                                         f"own in place of ({lost[0]}, ...); put them after the restorer")
    clone.add_patches({host_key(key): (weight.reshape(shapes[host_key(key)]),) for key, weight in
                       change.weights.items()}, strength, 1.0 - strength)  # (1 - strength) W + strength weight
    clone.add_patches({host_key(key): LoRAAdapter(set(), (pair.up, pair.down, ALPHA, None, None, None))
                       for key, pair in pairs.items()}, strength)
    return clone


@lru_cache(16)
def _warn_once(patches_uuid, message):
    """Log a warning about the patcher of that id; a film makes a restorer of the same one for frame after frame."""
    logger.warning("One-step restorer: %s", message)
