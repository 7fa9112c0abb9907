"""The loader of the bundled miniature models, on which every example runs, and patches of a model's schedule."""

import json
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import torch
from comfy_api.latest import io
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..models.captions import CaptionEncoder, CaptionTokenizer
from ..samplers.timesteps import with_fractional_timesteps
from ._schema import kw, schema

_FOLDER = Path(__file__).resolve().parents[1] / "miniatures"
# Choice in the node -> stem of its files in `miniatures`. Saved graphs hold these words: append, never rename.
_MINIATURES = {"landscapes (flow)": ("landscapes_flow", "landscapes_captions", "landscapes_autoencoder")}
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


def load_weights(stem, choice):
    """The tensors of one bundled file. Raises RuntimeError naming input, file, sizes and fix when it is not whole."""
    path = _FOLDER / f"{stem}.safetensors"
    problem = f"Load Miniature, input 'model' = '{choice}': the bundled file {path}"
    fix = f"Fetch it again with `git checkout -- miniatures` in {_FOLDER.parent}, or install the pack anew."
    if not path.is_file():
        raise RuntimeError(f"{problem} is missing. {fix}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        actual, expected = path.stat().st_size, _expected_size(path)
        should = f"it should have {expected} bytes" if expected else "its header is not that of a safetensors file"
        raise RuntimeError(f"{problem} is damaged ({actual} bytes; {should}). {fix}") from error


def load_clip(weights):
    """The caption encoder behind the host's CLIP object."""
    target = SimpleNamespace(params={}, clip=CaptionEncoder, tokenizer=CaptionTokenizer)
    parameters = sum(w.numel() for w in weights.values())
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options=_OPTIONS)
    missing, unexpected = clip.load_sd(weights)
    if missing or unexpected:
        raise RuntimeError(f"Load Miniature: the caption encoder's file in {_FOLDER} is of another version (missing "
                           f"{missing}, unexpected {unexpected}). Fetch the whole pack again: code and miniatures "
                           "belong together.")
    return clip


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
                   tooltip="Which bundled model. 'landscapes (flow)': an SD3-class flow model of illustrated "
                           "landscapes, for 128x128 (and 64x64) pictures. It knows the words of its captions: a light "
                           "(black night, blue night, dusk, dawn, blue day, white noon), a ground (green hills, snow, "
                           "sea, desert), sun or moon, clouds, and one to three red, yellow, green, blue or white "
                           "houses, trees, boats or balloons on the left, in the middle or on the right."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The flow model: connect to a sampler or guider."),
                io.Clip.Output(display_name="CLIP", tooltip="The caption encoder: connect to CLIP Text Encode."),
                io.Vae.Output(display_name="VAE", tooltip="The autoencoder: connect to VAE Decode or VAE Encode."),
            ],
        )

    @classmethod
    def execute(cls, model):
        if model not in _MINIATURES:
            raise ValueError(f"model is {model!r}; choose one of {', '.join(_MINIATURES)}")
        flow, captions, autoencoder = (load_weights(stem, model) for stem in _MINIATURES[model])
        patcher = comfy.sd.load_diffusion_model_state_dict(flow, model_options=dict(_OPTIONS))
        vae = comfy.sd.VAE(sd=autoencoder, dtype=torch.float32)
        vae.throw_exception_if_invalid()
        return io.NodeOutput(patcher, load_clip(captions), vae)


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
