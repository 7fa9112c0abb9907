"""TRIP in miniature as a MODEL: the frames on the batch axis are one clip, which begins with a picture.

The picture's latent reaches the network as an input beside the text, so that areas, tiles and batches of the host cut
and repeat it as they do the frames.
"""

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import torch
from comfy_api.latest import io

from ..models.trip import MotionEncoder, read
from ..restoration.tiling import TilePlan
from ..samplers.plan import check_choices
from ._restore import patcher_of
from ._schema import kw, schema
from .models import load_clip, load_vae, load_weights
from .trip import CATEGORY, first_picture, size_of

# Choice in the node -> its file. Saved graphs hold these words: append, never rename.
_VARIANTS = {
    "TRIP": "trip_tnf",
    "TRIP (linear fusion)": "trip_linear",
    "TRIP (no shortcut)": "trip_plain",
    "text to video": "trip_text",
}
_PIXELS = 8  # of the autoencoder, along one side of a cell of the latent
_ALIGN = 2
"""What sides of a latent the network takes multiples of; others are mirrored up to there."""


class TRIPNetwork(torch.nn.Module):
    """The network as the host calls it: the noise in the frames [clips * frames, C, h, w] of one clip a text."""

    dtype = torch.float32  # of what goes in and comes out

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, sigmas, *, context, transformer_options, image=None, **_):
        frames = len(x) // len(transformer_options.get("cond_or_uncond", [0]))
        levels = sigmas.unflatten(0, (-1, frames))
        if (levels != levels[:, :1]).any():
            raise ValueError("model is TRIP Miniature, whose frames are one clip and equally noisy, but the sampler "
                             "moves each by itself; choose another sampler, such as euler")
        plan = TilePlan(*x.shape[-2:], tile=0, overlap=0, align=_ALIGN)

        def noise(x, *pictures):
            clips = x.unflatten(0, (-1, frames)).transpose(1, 2)
            once = (value[::frames] for value in (sigmas, context, *pictures))  # the host repeats them for each frame
            return self.network(clips, *once).transpose(1, 2).flatten(0, 1)

        return plan.run(noise, *(plan.pad(value) for value in (x, image) if value is not None))


class TRIPModel(comfy.model_base.BaseModel):
    """The host's eps model around a network and the latent [1, C, h, w] of its picture, None for one without."""

    def __init__(self, config, network, image, device):
        super().__init__(config, device=device)
        self.diffusion_model, self._config, self._image = TRIPNetwork(network), network.config, image

    def process_timestep(self, timestep, **_):
        """The network hears noise levels, so it follows any schedule that a patch gives the model."""
        return self.model_sampling.sigma(timestep)

    def extra_conds(self, *, noise, device, cross_attn=None, prompt_type=None, **inputs):
        conds = super().extra_conds(noise=noise, device=device, cross_attn=cross_attn, prompt_type=prompt_type,
                                    **inputs)
        frames, width = self._config.frames, self._config.context
        if noise.ndim != 4 or noise.shape[1] != self._config.channels or len(noise) > frames:
            raise ValueError(f"latent_image is a latent {size_of(noise)}, and the batch of TRIP Miniature is one clip "
                             f"of 1 to {frames} frames; connect Empty Latent Image with batch_size {frames}")
        if cross_attn is None or cross_attn.shape[-1] != width:
            raise ValueError(f"{prompt_type} is not encoded by the CLIP of TRIP Miniature; connect that to CLIP Text "
                             "Encode")
        if self._image is not None:
            if self._image.shape[2:] != noise.shape[2:]:
                image, clip = (" x ".join(str(_PIXELS * n) for n in x.shape[2:]) for x in (self._image, noise))
                raise ValueError(f"image is {image} pixels (height x width), but the clip of latent_image {clip}; "
                                 "scale image, or set height and width of Empty Latent Image to those of image")
            conds["image"] = comfy.conds.CONDNoiseShape(self._image.to(device))
        return conds


def load_network(stem):
    """The `models.trip.TRIP` of one bundled file. Raises RuntimeError naming file and fix where it holds another."""
    weights = load_weights(stem)
    try:
        return read(weights, torch.float32)
    except ValueError as error:
        raise RuntimeError(f"miniatures/{stem}.safetensors is of another version ({error}). Fetch the "
                           "whole pack again: code and miniatures belong together.") from error


def video_model(network, image=None):
    """ModelPatcher of a `models.trip.TRIP` and the VAE's latent [1, C, h, w] of its picture."""
    family = {"latent_format": comfy.latent_formats.SD15, "unet_extra_config": {}, "memory_usage_factor": 1.0}
    config = type("TRIP", (comfy.supported_models_base.BASE,), family)({"disable_unet_model_creation": True})
    image = None if image is None else config.latent_format.process_in(image)
    model = TRIPModel(config, network, image, comfy.model_management.unet_offload_device())
    return patcher_of(model.eval().requires_grad_(False))


class TRIPMiniature(io.ComfyNode):
    """MODEL, CLIP and VAE of a bundled video model."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTRIPMiniature",
            display_name="TRIP Miniature",
            category=CATEGORY,
            description=(
                "Loads a small bundled video model that animates a landscape as its caption says, in up to 8 frames "
                "and in seconds on any CPU: TRIP itself, what it is without its parts, and a model of text alone, on "
                "which the training-free nodes of TRIP can be tried."
            ),
            search_aliases=["trip", "image to video", "i2v", "text to video", "bundled model", "animate", "landscapes"],
            inputs=[
                kw(io.Combo.Input, "model", options=list(_VARIANTS), default="TRIP", tooltip=(
                    "'TRIP': the shortcut from the picture and the video network's own noise, joined by a learned "
                    "fusion. 'TRIP (linear fusion)': joined by fixed weights. 'TRIP (no shortcut)': the picture is "
                    "only one more frame for the network. 'text to video': reads no picture. All are for 128x128 "
                    "pictures, and know the words of Load Miniature and those of motion: a balloon rises, sinks or "
                    "drifts left or right, a boat sails left or right, clouds drift left or right, the sun or moon "
                    "rises or sinks; and slowly.")),
                io.Image.Input("image", optional=True, tooltip=(
                    "The picture to animate, in the size of the clip. Needed by all but 'text to video', which does "
                    "not read it.")),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip=(
                    "The video model: for a sampler whose latent is a batch of 1 to 8 frames.")),
                io.Clip.Output(display_name="CLIP", tooltip="The caption encoder: connect to CLIP Text Encode."),
                io.Vae.Output(display_name="VAE", tooltip="The autoencoder: VAE Decode gives the frames."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, image=None):
        check_choices({"model": (model, tuple(_VARIANTS))})
        network, vae = load_network(_VARIANTS[model]), load_vae("landscapes_autoencoder4")
        captions = MotionEncoder.of(load_weights("landscapes_captions"), network.words).state_dict()
        latent = None
        if network.config.image:
            if image is None:
                raise ValueError(f"image is not connected, and {model!r} animates one; connect Load Image, or set "
                                 "model to 'text to video'")
            latent = vae.encode(first_picture(image, vae))
        return io.NodeOutput(video_model(network, latent), load_clip(captions, MotionEncoder), vae)


NODES = [TRIPMiniature]
