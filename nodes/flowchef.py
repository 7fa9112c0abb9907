"""FlowChef: a SAMPLER that steers the denoised picture toward what its inputs ask for, and a GUIDER for edits."""

import logging
from dataclasses import dataclass

import comfy.samplers
import torch
from comfy_api.latest import io

from ..samplers import flowchef
from ..samplers.flowchef import STEERED, LatentScale, Steering
from ._autoencoder import decoder
from ._inputs import mask_of
from ._schema import kw, schema
from ._types import LOSS, MEASUREMENT
from .solvers import sampler_output, sampler_recipe

logger = logging.getLogger("trajectory")

CATEGORY = "trajectory/steering"
PREDICTIONS = ("target", "source")


@dataclass(frozen=True)
class Wanted:
    """What the sampler's optional inputs ask for; called with a run, whose latents it must fit, its Steering."""

    measurement: object = None
    loss: object = None
    reference: dict | None = None
    mask: torch.Tensor | None = None
    vae: object = None

    def __call__(self, model, x, noise_mask):
        scale = LatentScale(model)
        picture = self._picture(model, x, scale)
        pulls = []
        if (mask := noise_mask if self.mask is None else self.mask) is not None:
            pulls.append(flowchef.toward(require_picture(picture, self.mask), fitted(mask, x)))
        elif self.reference is not None:
            pulls.append(flowchef.toward(picture))
        if self.measurement is not None:
            pulls.append(flowchef.agreeing(direction_of(self.measurement, x.shape), scale))
        if self.loss is not None:
            pulls.append(flowchef.descending(descent_of(self.loss, self.vae, x.shape), scale))
        return Steering(tuple(pulls), picture if picture is None else flowchef.toward(picture))

    def _picture(self, model, x, scale):
        """The reference, or else what is in the sampled latent, in the model's scale; None for an empty latent."""
        if self.reference is None:
            latent = getattr(model, "latent_image", None)
            return latent if latent is not None and latent.any() else None
        samples = self.reference["samples"]
        if not samples.is_nested and samples.ndim == x.ndim - 1:  # a picture for a model of videos
            samples = samples.unsqueeze(2)
        if samples.is_nested or samples.shape[1:] != x.shape[1:] or len(samples) not in (1, len(x)):
            raise ValueError(f"reference is a latent {size_of(samples)}, but the sampled one is {size_of(x)}; encode a "
                             "picture of that size with the VAE of the sampled model")
        return scale.to_model(samples.to(x.device, torch.float32))


def size_of(latent):
    return "of several parts" if latent.is_nested else " x ".join(str(n) for n in latent.shape)


def require_picture(picture, mask):
    if picture is None:
        what = "The latent has a noise mask" if mask is None else "mask is connected"
        raise ValueError(f"{what}, but the sampled latent is empty, so there is no picture to keep; connect reference, "
                         "or sample from VAE Encode")
    return picture


def fitted(mask, x):
    """Where latents x keep what is there: 1, else 0."""
    keep = flowchef.kept(mask, x.shape).to(x.device)
    if mask.shape[-2:] != x.shape[-2:]:
        logger.info("FlowChef: the mask of %s was resized to the latent's %s; %.0f %% of it is kept", size_of(mask),
                    " x ".join(str(n) for n in x.shape[-2:]), 100 * float(keep.mean()))  # fmt: skip
    return keep


def direction_of(measurement, shape):
    """Function of latents (in the VAE's scale): what to subtract from them so that they agree with `measurement`."""
    if measurement.operator.space == "pixel" and tuple(shape[1:]) != tuple(measurement.shape[1:]):
        raise ValueError("measurement is of pixels, but the model samples latents; put Operator Through VAE between "
                         "the operator and Apply Operator")
    try:
        measurement.check(shape)
    except ValueError as error:
        raise ValueError(f"{error}. A latent's size and channels are those of the VAE that Operator Through VAE was "
                         "given: it must be the one of the sampled model") from error
    if measurement.operator.space == "pixel":  # a model of pixels works in -1..1
        return lambda pixels: 2 * measurement.direction((pixels + 1) / 2)
    return measurement.direction


def descent_of(loss, vae, shape):
    """Function of latents (in the VAE's scale): what to subtract so that `loss` falls, which sees their picture."""
    if vae is not None:
        decode = decoder(vae)
    elif shape[1] == 3:  # a model of pixels works in -1..1

        def decode(pixels):
            return (pixels + 1) / 2
    else:
        raise ValueError("loss is connected, but vae is not, and the model samples latents; connect the VAE of the "
                         "model, through which the loss sees the picture")

    return lambda latents: loss.direction(latents, decode)


class FlowChefSampler(io.ComfyNode):
    """SAMPLER that steers the denoised picture of each step."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryFlowChefSampler",
            display_name="FlowChef Sampler",
            category=CATEGORY,
            description=(
                "Steers the picture while it is sampled: keeps what a mask leaves of a reference, agrees with a "
                "measurement (super-resolution, deblurring), or lowers a loss. No inversion, no gradient through the "
                "network, no extra network call; for flow and eps models."
            ),
            search_aliases=["flowchef", "inpaint", "inverse problem", "restoration", "super resolution", "deblur",
                            "inversion-free edit", "guidance", "steering"],
            inputs=[
                io.Float.Input("strength", default=0.1, min=0.0, max=1.0, step=0.005, tooltip=(
                    "Share of the way to what is wanted that each step goes, whatever the size of the picture. "
                    "Inpainting 0.1 to 0.3, edits about 0.05; 1 follows wholly; 0 is the plain solver.")),
                io.Int.Input("inner_steps", default=1, min=1, max=20, tooltip=(
                    "How often a step pulls. For measurement and loss; under a mask alone, n pulls of strength s are "
                    "one of 1 - (1 - s)^n.")),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Share of the steps after which steering begins.")),
                io.Float.Input("stop", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Share of the steps after which steering ends. Below 1, the last steps drift off what is wanted.")),
                io.Int.Input("source_steps", default=0, min=0, max=200, tooltip=(
                    "The first steered steps pull the whole picture to the reference, or to the sampled latent. For "
                    "edits 5 to 10 of 30: the composition stays.")),
                kw(io.Combo.Input, "schedule", options=list(flowchef.SCHEDULES), default="constant", advanced=True,
                    tooltip="How strength goes on. rise to 1: the last step keeps what a mask or measurement says "
                            "exactly; best for inpainting, not for losses. decay to 0: linearly over the steered "
                            "steps. 1-s: by the share of picture in the state."),
                kw(io.Float.Input, "max_norm", default=1.0, min=0.0, max=100.0, step=0.05, advanced=True, tooltip=(
                    "The most that a step may move the picture, in units of the picture's RMS. 0 is no limit.")),
                kw(io.Boolean.Input, "steer_last", default=True, advanced=True, tooltip=(
                    "Steer the last step, too. Off is the authors' way for pixels.")),
                kw(io.Combo.Input, "solver", options=list(flowchef.SOLVERS), default="euler", advanced=True, tooltip=(
                    "euler: one network call a step. heun: two.")),
                kw(io.Combo.Input, "mode", options=list(flowchef.MODES), default="linear", advanced=True, tooltip=(
                    "linear: pulls grow with the distance. soft-sign: each element moves by strength at most, as with "
                    "the authors' optimiser for InstaFlow.")),
                kw(io.Float.Input, "tau", default=0.08, min=0.001, max=100.0, step=0.001, advanced=True, tooltip=(
                    "Distance at which soft-sign moves by half of strength. 0.08 is InstaFlow inpainting, 8.2 its "
                    "edits.")),
                MEASUREMENT.Input("measurement", optional=True, tooltip=(
                    "What the picture must agree with, from Apply Operator. For a model of latents its operator has to "
                    "be behind Operator Through VAE.")),
                LOSS.Input("loss", optional=True, tooltip=(
                    "What the picture should have little of. For a model of latents it needs vae.")),
                io.Latent.Input("reference", optional=True, tooltip=(
                    "What is to be kept, from VAE Encode with the model's VAE. Without it, the sampled latent is it.")),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "White is repainted, black kept. Latent cells that are not wholly black are repainted. Without it, "
                    "the noise mask of reference, or else of the sampled latent.")),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE, for loss."),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, measurement=None, loss=None, reference=None, mask=None, vae=None, **options):
        flowchef.check_options(**{name: value for name, value in options.items() if name != "steer_last"})
        if loss is not None and options["schedule"] == "rise to 1":
            raise ValueError("schedule is 'rise to 1', but a loss has no end that is known; choose constant")
        if mask is None and reference is not None and reference.get("noise_mask") is not None:
            mask = mask_of("reference", reference["noise_mask"])
        steering = Wanted(measurement, loss, reference, mask if mask is None else mask_of("mask", mask), vae)
        return io.NodeOutput(sampler_recipe(flowchef.sample_flowchef, steering=steering, **options))


class EditGuider(comfy.samplers.CFGGuider):
    """Guidance from a source to a target text inside a mask, the target alone outside."""

    def set_region(self, mask, steer_with):
        self.mask, self.steer_with = mask, steer_with

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 - the host's signature
        aside = model_options.get(STEERED) if self.steer_with == "source" else None

        def within_mask(results):  # behind all other functions of the guidance, so that it bounds them, too
            if aside is not None:
                aside["denoised"] = results["uncond_denoised"]
            if self.mask is None:
                return results["denoised"]
            keep = flowchef.kept(self.mask, x.shape).to(x)
            return torch.lerp(results["denoised"], results["cond_denoised"], keep.expand_as(x))

        functions = [*model_options.get("sampler_post_cfg_function", []), within_mask]
        options = {**model_options, "sampler_post_cfg_function": functions}
        if aside is not None:  # needed at a cfg of 1, too
            options["disable_cfg1_optimization"] = True
        return super().predict_noise(x, timestep, options, seed)


class FlowChefEditGuider(io.ComfyNode):
    """GUIDER for edits inside a mask."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryFlowChefEditGuider",
            display_name="FlowChef Edit Guider",
            category=CATEGORY,
            description=(
                "Guides from a text that describes the picture to one that describes the edit, inside a mask only. "
                "For FlowChef Sampler, and for any other."
            ),
            search_aliases=["flowchef", "edit", "regional guidance", "true cfg", "negative prompt"],
            inputs=[
                io.Model.Input("model", tooltip="The model that samples."),
                io.Conditioning.Input("target", tooltip="What the picture should show after the edit."),
                io.Conditioning.Input("source", tooltip="What the picture shows now; guidance leads away from it."),
                io.Float.Input("cfg", default=5.5, min=0.0, max=100.0, step=0.1, tooltip=(
                    "Guidance inside the mask, on the usual scale: 1 is off. The authors' true_cfg is one less.")),
                io.Combo.Input("steer_with", options=list(PREDICTIONS), default="target", tooltip=(
                    "The prediction that FlowChef Sampler compares with the reference: that of the guided target "
                    "(as for Flux), or that of source (as for InstaFlow).")),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "White is edited: guidance acts there alone. Without it, everywhere.")),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, target, source, cfg, steer_with, mask=None):
        if steer_with not in PREDICTIONS:
            raise ValueError(f"steer_with is {steer_with!r}; choose one of {', '.join(PREDICTIONS)}")
        guider = EditGuider(model)
        guider.set_conds(target, source)
        guider.set_cfg(cfg)
        guider.set_region(mask if mask is None else mask_of("mask", mask), steer_with)
        return io.NodeOutput(guider)


NODES = [FlowChefSampler, FlowChefEditGuider]
