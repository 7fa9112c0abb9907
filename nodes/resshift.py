"""ResShift: pictures restored in a few steps between the bad one and the good one."""

import math
import re
from dataclasses import dataclass

import comfy.sd
import torch
from comfy_api.latest import io
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from ..models import checkpoints, swin_unet, vq
from ..restoration.tiling import TilePlan
from ..samplers import residual_shift
from ..samplers.residual_shift import PUBLISHED, Levels, ResidualShift
from ._files import files, read
from ._inputs import mask_of
from ._residual import residual_model
from ._restore import (
    color_fix_input,
    dtype_input,
    dtype_of,
    each_frame,
    enlarged,
    in_tiles,
    loaded,
    noise_of,
    patcher_of,
)
from ._schema import kw, schema
from ._types import RESSHIFT
from .models import load_weights
from .solvers import sampler_output, sampler_recipe

CATEGORY = "trajectory/restoration"
FOLDER = "resshift"
BUNDLED = "landscapes (bundled)"
BUNDLED_STEPS = 4
DECODING = 2200
"""Values that the autoencoder holds for each pixel of a picture."""


@dataclass(frozen=True)
class ResShift:
    """The two networks and what is between them. model: ModelPatcher of `residual_model`; vae: the host's VAE."""

    model: object
    vae: object
    process: ResidualShift

    @property
    def network(self):
        return self.model.model.diffusion_model.network.unet

    @property
    def scale(self):
        """How much larger the result is."""
        return self.vae.downscale_ratio // self.network.config.lq_scale

    @property
    def inpaints(self):
        return self.network.config.lq_channels == 4

    def load(self, height, width):
        """Bring both networks to their device, with room for tiles of so many pixels of the result."""
        vae = self.vae
        latent = (1, vae.latent_channels, height // vae.upscale_ratio, width // vae.upscale_ratio)
        needed = self.model.memory_required(latent), vae.memory_used_decode(latent, vae.vae_dtype)
        loaded(self.model, vae.patcher, memory=max(needed))  # one network at a time computes

    def restored(self, picture, noises, mask, progress, calls, eta_noise):
        """One tile of the result, [1, 3, scale H, scale W] in 0..1.

        picture: [1, 3, H, W] in 0..1. noises: [1, calls * channels, h, w]. mask: [1, 1, H, W], 1 where it is painted
        anew by a network that inpaints.
        """
        picture, noises, mask = (part.to(self.model.load_device) for part in (picture, noises, mask))
        autoencoder, dtype, levels = self.vae.first_stage_model, self.vae.vae_dtype, Levels(self.process.sigmas)
        lq = with_hole(2 * picture - 1, mask) if self.inpaints else 2 * picture - 1
        large = functional.interpolate(lq[:, :3], scale_factor=self.scale, mode="bicubic", align_corners=False)
        y = autoencoder.encode(large.to(dtype)).float()

        def network(u, sigma):
            return self.process.denoised(self.network, u, sigma, levels.position(sigma), y, lq=lq)

        latent = residual_shift.restore(
            network, y, noises.chunk(calls, 1), self.process, calls, eta_noise,
            callback=lambda report: progress((report["i"] + 1) / calls))
        return (autoencoder.decode(latent.to(dtype)).float() / 2 + 0.5).clamp(0, 1)


class OnLatents(torch.nn.Module):
    """The network with its low-quality picture as channels of a latent, so that a host may cut them alike."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, state, index, *, picture):
        return self.unet(state, index, functional.pixel_shuffle(picture, self.unet.config.lq_scale))


def picture_reader(vae, config):
    """Conditions of a MODEL, which is given nothing but latents: the low-quality picture as the autoencoder sees it.

    The part to be painted anew, and black in the picture, is the run's noise mask.
    """

    nothing, pictures = torch.zeros(1, 1, 1, 1), WeakTensorKeyDictionary()

    def conditions(degraded, mask):
        size = [side * config.lq_scale for side in degraded.shape[-2:]]
        if degraded not in pictures:  # each CONDITIONING of a run asks
            decode = vae.first_stage_model.decode
            seen = torch.cat([decode(one.to(vae.vae_dtype)).float() for one in degraded.split(1)])
            pictures[degraded] = functional.interpolate(seen, size, mode="area").clamp(-1, 1)
        picture = pictures[degraded]
        if config.lq_channels == 4:
            picture = with_hole(picture, functional.interpolate(nothing if mask is None else mask, size))
        return {"picture": functional.pixel_unshuffle(picture, config.lq_scale)}

    return conditions


def with_hole(picture, mask):
    """What an inpainting network sees of a picture in -1..1: black in the hole, and the hole as a channel.

    mask: [B or 1, 1, H, W], a hole above 0.5.
    """
    hole = (mask > 0.5).to(picture).expand(len(picture), -1, -1, -1)
    return torch.cat([torch.where(hole > 0, -1.0, picture), 2 * hole - 1], 1)


def host_vae(autoencoder, dtype):
    """The host's VAE around an autoencoder of ours, for its VAE Encode and VAE Decode, tiled ones too."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=dtype)  # all that a VAE has, but no network
    vae.first_stage_model, vae.patcher = autoencoder, patcher_of(autoencoder)
    vae.downscale_ratio = vae.upscale_ratio = factor = autoencoder.factor
    vae.latent_channels = autoencoder.quantize.embedding.weight.shape[1]
    vae.device, vae.disable_offload = vae.patcher.load_device, True
    vae.memory_used_encode = lambda shape, dtype: DECODING * shape[-2] * shape[-1] * dtype.itemsize
    vae.memory_used_decode = lambda shape, dtype: DECODING * shape[-2] * shape[-1] * factor**2 * dtype.itemsize
    return vae


def network_of(name, file, bundled, load, dtype):
    """load(weights, dtype) of the choice `file` of the input `name`. Raises ValueError naming both."""
    try:
        weights = load_weights(bundled) if file == BUNDLED else checkpoints.state_dict(read(FOLDER, file, name))
        return load(weights, dtype)
    except ValueError as error:
        told = str(error).startswith(name)
        raise error if told else ValueError(f"{name} is {file!r}: {error}. Choose another file") from error


def steps_of(choice, file):
    """Steps of the schedule that a network was trained with: as chosen, or as its file's name says.

    Raises ValueError where the choice is auto and the name does not say it, and for other choices.
    """
    if choice != "auto":
        steps = {str(steps): steps for steps in PUBLISHED}
        if choice not in steps:
            raise ValueError(f"schedule is {choice!r}; choose one of auto, {', '.join(steps)}")
        return steps[choice]
    if file == BUNDLED:
        return BUNDLED_STEPS
    named = re.search(r"(?<![a-z0-9])s(4|15)(?![0-9])", file.lower())
    if named is None:
        raise ValueError(f"schedule is 'auto', but the name of {file!r} has neither s4 nor s15 in it and weights do "
                         "not tell; choose 4 (v3, faces, inpainting, bicubic) or 15 (v1, v2)")
    return int(named[1])


def masks_of(mask, frames, needed):
    """Iterator over a mask [1, 1, H, W] for each frame; all white without one.

    Raises ValueError where there are as many as neither one nor the frames, and where one is needed.
    """
    if mask is None:
        if needed:
            raise ValueError("mask is not connected, but this network paints holes: connect a mask that is white where "
                             "the picture is to be painted anew")
        mask = torch.ones(1, 1, 1)
    masks = mask_of("mask", mask).cpu().clamp(0, 1)[:, None]
    if len(masks) not in (1, frames):
        raise ValueError(f"mask has {len(masks)} frames and image {frames}; connect one mask, or one for each frame")
    return iter(masks.expand(frames, -1, -1, -1).split(1))


class ResShiftLoader(io.ComfyNode):
    """Both networks of ResShift, for Upscale and for the host's samplers."""

    @classmethod
    def define_schema(cls):
        choices = [BUNDLED, *files(FOLDER)]
        return schema(
            node_id="TrajectoryResShiftLoader",
            display_name="ResShift Loader",
            category=CATEGORY,
            description=(
                "Loads a ResShift network and its autoencoder from models/resshift, or the small bundled pair. Scale, "
                "task and size are read from the weights. Outputs for ResShift Upscale and, apart, for any sampler."
            ),
            search_aliases=["super-resolution", "upscale model", "restore", "face restoration", "vqgan"],
            inputs=[
                io.Combo.Input("unet", options=choices, default=BUNDLED, tooltip=(
                    "File in models/resshift, such as resshift_realsrx4_s4_v3.pth. Its weights are for non-commercial "
                    "use. The bundled one enlarges drawn landscapes of 32x32.")),
                io.Combo.Input("vqgan", options=choices, default=BUNDLED, tooltip=(
                    "File of its autoencoder in models/resshift: autoencoder_vq_f4.pth, for faces "
                    "ffhq512_vq_f8_dim8_face.pth, for inpainting faces celeba256_vq_f4_dim3_face.pth.")),
                io.Combo.Input("schedule", options=["auto", *map(str, PUBLISHED)], default="auto", tooltip=(
                    "Steps that the network was trained with: 15 for v1 and v2, 4 for all others. auto reads s4 or s15 "
                    "in the file's name; the weights do not tell.")),
                dtype_input(("auto", "fp16", "fp32", "bf16")),
            ],
            outputs=[
                RESSHIFT.Output(display_name="resshift", tooltip="For ResShift Upscale."),
                io.Model.Output(display_name="MODEL", tooltip=(
                    "For KSampler and SamplerCustom at CFG 1, with the encoded bad picture as latent.")),
                io.Vae.Output(display_name="VAE", tooltip=(
                    "For VAE Encode of the bad picture, enlarged before, and VAE Decode.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, unet, vqgan, schedule, dtype):
        dtype, process = dtype_of(dtype), ResidualShift.published(steps_of(schedule, unet))
        network = network_of("unet", unet, "restore_resshift", swin_unet.load, dtype)
        vae = host_vae(network_of("vqgan", vqgan, "restore_vq", vq.load, dtype), dtype)
        config = network.config
        if vae.latent_channels != config.latent_channels or vae.downscale_ratio % config.lq_scale:
            raise ValueError(
                f"vqgan is {vqgan!r}, with {vae.latent_channels} channels at 1/{vae.downscale_ratio} of the size; the "
                f"network in {unet!r} works on {config.latent_channels} channels. Choose the autoencoder that the "
                "network was trained with")
        model = residual_model(
            OnLatents(network), process, config.latent_channels, factor=vae.downscale_ratio, align=network.multiple,
            conditions=picture_reader(vae, config))
        model.set_additional_models("resshift_vae", [vae.patcher])
        return io.NodeOutput(ResShift(model, vae, process), model, vae)


class ResShiftUpscale(io.ComfyNode):
    """IMAGE -> IMAGE."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryResShiftUpscale",
            display_name="ResShift Upscale",
            category=CATEGORY,
            description=(
                "Enlarges and restores pictures of any size with ResShift, in tiles: sharp details in 4 or 15 steps. "
                "Restores faces or fills holes with the networks for it."
            ),
            search_aliases=["super-resolution", "upscale", "restore", "denoise", "deblur", "inpaint", "face"],
            inputs=[
                RESSHIFT.Input("resshift", tooltip="From ResShift Loader."),
                io.Image.Input("image", tooltip=(
                    "Pictures of any size; a batch is worked on frame by frame, with the same noise.")),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=(
                    "Of the noise, from which the network makes what the picture lacks.")),
                io.Int.Input("steps", default=0, min=0, max=max(PUBLISHED), tooltip=(
                    "Network calls for each tile: 0 takes all steps that the network knows. Fewer are smoother.")),
                io.Float.Input("eta_noise", default=1.0, min=0.0, max=1.0, step=0.05, tooltip=(
                    "Fresh noise of each step: 1 as published, 0 none, which is calmer in films.")),
                io.Int.Input("tile", default=512, min=0, max=4096, step=64, tooltip=(
                    "Side of a tile in pixels of the result; 0 works on the whole picture. Larger tiles see more and "
                    "need more memory. Halved where memory does not suffice.")),
                io.Int.Input("overlap", default=64, min=0, max=1024, step=8, tooltip=(
                    "Least overlap of two tiles in pixels of the result, where they are blended.")),
                color_fix_input(),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "White is restored; elsewhere the input stays, enlarged. A network for inpainting needs it: it "
                    "paints the white part anew.")),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip=(
                "The restored pictures, at exactly the network's scale; alpha is enlarged, too."))],
        )  # fmt: skip

    @classmethod
    def execute(cls, resshift, image, seed, steps, eta_noise, tile, overlap, color_fix, mask=None):
        residual_shift.check_options(eta_noise)
        calls, masks = len(resshift.process.run(steps)) - 1, masks_of(mask, len(image), resshift.inpaints)
        scale, grain = resshift.scale, resshift.network.config.lq_scale
        cut = {"tile": math.ceil(tile / scale), "overlap": math.ceil(overlap / scale), "scale": scale, "grain": grain,
               "align": resshift.network.multiple * grain}  # fmt: skip

        def noises(plan):
            return noise_of((1, calls * resshift.vae.latent_channels, *(side // grain for side in plan.padded)), seed)

        def restore(picture, progress):
            resshift.load(*(scale * side for side in TilePlan(*picture.shape[-2:], **cut).boxes[0][2:]))
            here = functional.interpolate(next(masks), picture.shape[-2:], mode="bilinear", align_corners=False)
            result = in_tiles(
                lambda *crops: resshift.restored(*crops, calls, eta_noise), picture, noises,
                lambda plan: plan.pad(here), progress=progress, **cut)
            return torch.lerp(enlarged(picture, scale), result, enlarged(here, scale))

        return io.NodeOutput(each_frame(image, scale, restore, color_fix))


class ResShiftSampler(io.ComfyNode):
    """SAMPLER of the chain as published."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryResShiftSampler",
            display_name="ResShift Sampler",
            category=CATEGORY,
            description=(
                "The published chain of ResShift for the MODEL of ResShift Loader: an ancestral sampler whose share of "
                "fresh noise is that of its residual shifting. Runs other models, too."
            ),
            search_aliases=["resshift", "residual shifting", "ancestral"],
            inputs=[io.Float.Input("eta_noise", default=1.0, min=0.0, max=1.0, step=0.05, tooltip=(
                "Fresh noise of each step: 1 as published, 0 none, which is Euler's deterministic path."))],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, eta_noise):
        residual_shift.check_options(eta_noise)
        return io.NodeOutput(sampler_recipe(residual_shift.sample_resshift, eta_noise=eta_noise))


class ResShiftScheduler(io.ComfyNode):
    """SIGMAS of the levels that a network was trained at."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryResShiftScheduler",
            display_name="ResShift Scheduler",
            category=CATEGORY,
            description=(
                "The noise levels of ResShift's schedule as SIGMAS, by its formula. Those of the published networks "
                "with 4 or 15 steps need nothing but `steps`."
            ),
            search_aliases=["resshift", "sigmas", "residual shifting", "eta"],
            inputs=[
                io.Int.Input("steps", default=4, min=1, max=1000, tooltip=(
                    "Number of levels. A network knows those that it was trained at, 4 or 15; at others it is told the "
                    "nearest.")),
                kw(io.Float.Input, "smallest", default=0.0, min=0.0, max=0.98, step=0.01, advanced=True, tooltip=(
                    "Noise of the lowest level. 0 is that of the published networks: 0.04 at 15 steps, else 0.2.")),
                kw(io.Float.Input, "kappa", default=residual_shift.KAPPA, min=0.1, max=100.0, step=0.1, advanced=True,
                    tooltip="Strength of the noise against the residual: 2 in every published network."),
                kw(io.Float.Input, "power", default=residual_shift.POWER, min=0.01, max=10.0, step=0.01, advanced=True,
                    tooltip="Spacing: below 1 spends more steps at high noise. 0.3 in every published network."),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels, falling to 0.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, steps, smallest, kappa, power):
        smallest = smallest or PUBLISHED.get(steps, PUBLISHED[4])
        roots = residual_shift.schedule(steps, smallest, kappa, power)
        return io.NodeOutput(ResidualShift(tuple(roots), kappa).run())


NODES = [ResShiftLoader, ResShiftUpscale, ResShiftSampler, ResShiftScheduler]
