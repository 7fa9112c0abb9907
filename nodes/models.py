"""The loader of the bundled miniature models, on which every example runs, and patches of a model's schedule."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.sd
import torch
from comfy_api.latest import io
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..models.captions import CaptionEncoder
from ..models.low_rank import merged
from ..samplers.timesteps import with_fractional_timesteps
from ._schema import kw, schema
from ._unet import unet_model

_FOLDER = Path(__file__).resolve().parents[1] / "miniatures"
_OPTIONS = {"dtype": torch.float32}  # tiny networks: full precision costs nothing and keeps pictures alike everywhere


def _expected_size(path):
    """Bytes that a safetensors file says it has, or None when even its header is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + length + max(ends)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def read_weights(path, what, fix):
    """The tensors of a safetensors file (a Path). Raises RuntimeError naming file, sizes and fix if it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        actual, expected = path.stat().st_size, _expected_size(path)
        should = f"it should have {expected} bytes" if expected else "its header is not that of a safetensors file"
        raise RuntimeError(f"{what} {path} is damaged ({actual} bytes; {should}). {fix}") from error


def load_weights(stem):
    """The tensors of one bundled file. Raises RuntimeError naming file, sizes and fix when it is not whole."""
    path, what = _FOLDER / f"{stem}.safetensors", "The bundled model file"
    fix = f"Fetch it again with `git checkout -- miniatures` in {_FOLDER.parent}, or install the pack anew."
    if not path.is_file():
        raise RuntimeError(f"{what} {path} is missing. {fix}")
    return read_weights(path, what, fix)


def load_vae(stem):
    """The autoencoder of one bundled file behind the host's VAE object."""
    vae = comfy.sd.VAE(sd=load_weights(stem), dtype=torch.float32)
    vae.throw_exception_if_invalid()
    return vae


def load_clip(weights, encoder=CaptionEncoder):
    """The caption encoder behind the host's CLIP object."""
    target = SimpleNamespace(params={}, clip=encoder, tokenizer=encoder.TOKENIZER)
    parameters = sum(w.numel() for w in weights.values())
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options=_OPTIONS)
    missing, unexpected = clip.load_sd(weights)
    if missing or unexpected:
        raise RuntimeError(f"Load Miniature: the caption encoder's file in {_FOLDER} is of another version (missing "
                           f"{missing}, unexpected {unexpected}). Fetch the whole pack again: code and miniatures "
                           "belong together.")
    return clip


def load_flow():
    """The SD3-class flow model."""
    return comfy.sd.load_diffusion_model_state_dict(load_weights("landscapes_flow"), model_options=dict(_OPTIONS))


# Of the eps miniature: two levels of 64 and 128 channels, one block each, attention at the lower one.
_UNET = {
    "model_channels": 64, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": 1, "context_dim": CaptionEncoder.WIDTH,
    "num_head_channels": 32,
}  # fmt: skip


def load_eps(low_rank=None):
    """The Stable-Diffusion-class eps model, with the changes of another file if one is named."""
    weights = load_weights("landscapes_eps")
    if low_rank:
        weights = merged({name: value.float() for name, value in weights.items()}, load_weights(low_rank))
    return unet_model(_UNET, weights, comfy.latent_formats.SD15, **_OPTIONS)


# Choice in the node -> its network, its autoencoder's file. Saved graphs hold these words: append, never rename.
_MINIATURES = {
    "landscapes (flow)": (load_flow, "landscapes_autoencoder"),
    "landscapes (eps)": (load_eps, "landscapes_autoencoder4"),
    "landscapes (few-step)": (partial(load_eps, "landscapes_few_step"), "landscapes_autoencoder4"),
    "landscapes (open)": (partial(load_eps, "landscapes_open"), "landscapes_autoencoder4"),
}


class TrajectoryLoadMiniature(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryLoadMiniature",
            display_name="Load Miniature",
            category="trajectory/models",
            description="Loads a small bundled text-to-image model with its caption encoder and autoencoder. It "
                        "paints little landscapes in seconds on any CPU, so that a technique can be tried before a "
                        "large model takes this node's place.",
            search_aliases=["bundled model", "example model", "tiny model", "landscapes"],
            inputs=[
                kw(io.Combo.Input, "model", options=list(_MINIATURES), default=next(iter(_MINIATURES)),
                   tooltip="Which bundled model of illustrated landscapes, for 128x128 (and 64x64) pictures. "
                           "'landscapes (flow)': SD3's class, the best painter. 'landscapes (eps)': Stable "
                           "Diffusion's class, a UNet on 4-channel latents. 'landscapes (few-step)': the latter with "
                           "its guidance distilled, for CFG 1. 'landscapes (open)': for which what a caption leaves "
                           "out is open, not absent. They know the words of their captions: a light (black night, "
                           "blue night, dusk, dawn, blue day, white noon), a ground (green hills, snow, sea, desert), "
                           "sun or moon, clouds, and one to three red, yellow, green, blue or white houses, trees, "
                           "boats or balloons on the left, in the middle or on the right."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The diffusion model: connect to a sampler or guider."),
                io.Clip.Output(display_name="CLIP", tooltip="The caption encoder: connect to CLIP Text Encode."),
                io.Vae.Output(display_name="VAE", tooltip="The autoencoder: connect to VAE Decode or VAE Encode."),
            ],
        )

    @classmethod
    def execute(cls, model):
        if model not in _MINIATURES:
            raise ValueError(f"model is {model!r}; choose one of {', '.join(_MINIATURES)}")
        network, autoencoder = _MINIATURES[model]
        return io.NodeOutput(network(), load_clip(load_weights("landscapes_captions")), load_vae(autoencoder))


class FractionalTimesteps(io.ComfyNode):
    """MODEL whose network hears the exact time of a sigma instead of the nearest entry of its table."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryFractionalTimesteps",
            display_name="Fractional Timesteps",
            category="trajectory/models",
            description=(
                "Tells the network of an eps or v model the exact time of each sigma, where the host rounds to one of "
                "1000 steps. Flow and EDM models do not round and are returned as they are."
            ),
            search_aliases=["timestep rounding", "continuous time", "discrete", "model sampling"],
            inputs=[io.Model.Input("model", tooltip="The model, after any node that changes its sampling.")],
            outputs=[io.Model.Output(display_name="model", tooltip="For the guider and the schedule.")],
        )

    @classmethod
    def execute(cls, model):
        sampling = model.get_model_object("model_sampling")
        fractional = with_fractional_timesteps(sampling)
        if fractional is sampling:
            return io.NodeOutput(model)
        patched = model.clone()
        patched.add_object_patch("model_sampling", fractional)
        return io.NodeOutput(patched)


NODES = [TrajectoryLoadMiniature, FractionalTimesteps]
