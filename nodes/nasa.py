"""NASA and NAG: negative prompts inside the attention, which need no CFG."""

import logging
import re

import comfy.sampler_helpers
import comfy.samplers
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy_api.latest import io

from ..samplers.negative_attention import MODES, check_options, combination
from ._negative_branch import KEY, STEERING, NegativeBranch, check_blocks
from ._run import options_of_run, patched
from ._schema import kw, schema

logger = logging.getLogger("trajectory")


def parse_blocks(text):
    """The set of numbers in a list such as '0-5, 8', or None for 'all'. Raises ValueError for anything else."""
    if text.strip().lower() == "all":
        return None
    parts = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part) for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"blocks is {text!r}; write 'all', or numbers and ranges such as '0-5, 8'")
    ranges = [(int(first), int(last or first)) for first, last in (part.groups() for part in parts)]
    if any(first > last for first, last in ranges):
        raise ValueError(f"blocks is {text!r}, with a range that ends before it starts; write '2-5', not '5-2'")
    return {number for first, last in ranges for number in range(first, min(last, 10_000) + 1)}


def with_pooled(conds, guider):
    """The negative's conds, with the guider's pooled vector where they have none: models ask for one, NASA does not."""
    theirs = (cond.get("pooled_output") for group in guider.conds.values() for cond in group)
    pooled = next((vector for vector in theirs if vector is not None), None)
    if pooled is None:
        return conds
    return [cond if cond.get("pooled_output") is not None else {**cond, "pooled_output": pooled} for cond in conds]


def steered_run(negative, mode, scale, tau, blend, blocks, percents):
    """SAMPLER_SAMPLE wrapper that steers one run; what it prepares lives in that run's options alone."""

    def sample(executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *rest,
               **more):
        if getattr(guider, "cfg", 1.0) > 1.0:
            logger.warning("NASA at CFG %g: the negative prompts of NASA and of the guider both count. NASA is made "
                           "for CFG 1.", guider.cfg)
        model = guider.inner_model
        conds = comfy.samplers.encode_model_conds(
            model.extra_conds, with_pooled(comfy.sampler_helpers.convert_cond(negative), guider), noise, noise.device,
            "negative",
            latent_image=latent_image, denoise_mask=denoise_mask, seed=extra_args.get("seed"))
        sampling = guider.model_patcher.get_model_object("model_sampling")
        branch = NegativeBranch(
            conds[0]["model_conds"], combination(mode, scale, tau, blend), mode == "nasa_text_only", blocks,
            [float(sampling.percent_to_sigma(percent)) for percent in percents])
        with options_of_run(guider, extra_args) as extra_args:
            add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, branch.apply_model, extra_args["model_options"], True)
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **more)

    return sample


class NASA(io.ComfyNode):
    """MODEL whose attention to the prompt is steered away from a negative prompt."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryNASA",
            display_name="NASA (Negative-Away Steer Attention)",
            category="trajectory/guidance",
            description=(
                "Negative prompts that work at CFG 1, on distilled models of one to eight steps, too: their attention "
                "is subtracted from that of the positive prompt. For UNets and DiTs."
            ),
            search_aliases=["negative prompt", "nag", "normalized attention guidance", "snoopi", "cfg 1", "distilled",
                            "turbo", "lightning", "lcm", "schnell"],
            inputs=[
                io.Model.Input("model", tooltip="The model; it stays as it is, a patched clone is returned."),
                io.Conditioning.Input("negative", tooltip=(
                    "What the picture should not show, from CLIP Text Encode with the model's own CLIP. Used here in "
                    "place of the guider's negative.")),
                io.Combo.Input("mode", options=list(MODES), default="nasa", tooltip=(
                    "nasa subtracts the negative attention: for UNets and other models with cross-attention. "
                    "nasa_text_only subtracts its text part alone, steadier where text and image attend jointly (SD3, "
                    "Flux). nag extrapolates within bounds: steady on all models.")),
                io.Float.Input("scale", default=0.2, min=0.0, max=10.0, step=0.01, tooltip=(
                    "Strength; 0 is off. nasa modes: alpha, 0.1 to 1, at most 2. nag: phi, 2 to 4; packs that count "
                    "from 1 call that 3 to 5.")),
                io.Float.Input("tau", default=2.5, min=1.0, max=10.0, step=0.1, tooltip=(
                    "For nag: how many times larger than the positive attention the result may be.")),
                io.Float.Input("blend", default=0.5, min=0.0, max=1.0, step=0.005, tooltip=(
                    "For nag: share of the result in the attention: 0.25 on Flux and Wan, 0.5 on SDXL. 0 is off.")),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Steer from this part of the sampling on, counted by sigma as for conditionings.")),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Steer up to this part. 0.5 shapes the picture, and leaves details and speed of later steps.")),
                kw(io.String.Input, "blocks", default="all", advanced=True, tooltip=(
                    "Which attentions to the text to steer, numbered from 0 in the order of the network: all, or a "
                    "list such as 0-5, 8.")),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The patched clone, for a guider at CFG 1.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, negative, mode, scale, tau, blend, start_percent, end_percent, blocks):
        check_options(mode, scale, tau, blend)
        numbers = parse_blocks(blocks)
        if not start_percent <= end_percent:  # NaN, too
            raise ValueError(f"start_percent is {start_percent} and end_percent {end_percent}; the start comes first")
        if len(negative) != 1:
            raise ValueError(f"negative holds {len(negative)} conditionings, but NASA takes one; join their texts with "
                             "Conditioning (Concat), or write them into one prompt")
        shape = tuple(negative[0][0].shape)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"negative is a text of shape {shape}, but NASA takes [items, tokens, channels] with at "
                             "least one token; connect CLIP Text Encode with the model's own CLIP")
        diffusion_model = model.get_model_object("diffusion_model")
        network = type(diffusion_model).__name__
        if network not in STEERING:
            raise ValueError(f"model is of the class {network}, in which NASA does not know the attention to the text; "
                             f"it knows {', '.join(STEERING)}")
        check_blocks(diffusion_model, numbers)
        on = scale > 0 and (mode != "nag" or blend > 0)
        percents = start_percent, end_percent
        run = steered_run(negative, mode, scale, tau, blend, numbers, percents) if on else None
        return io.NodeOutput(patched(model, KEY, run))


NODES = [NASA]
