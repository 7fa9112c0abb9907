"""Faster Diffusion as patches of a MODEL, for UNets and for transformers, and its prior noise for any SAMPLER."""

import copy
import logging
from functools import partial

from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy_api.latest import io

from ..samplers import key_steps
from ..samplers.feature_reuse import RECALL, BlocksRun, UNetRun
from ..samplers.prior_noise import with_prior_noise
from ._run import options_of_run, patched
from ._schema import kw, schema
from .solvers import sampler_output, with_function

KEY = "trajectory_faster_diffusion"
CATEGORY = "trajectory/guidance"
DIT_BLOCKS = ("joint_blocks", "double_blocks", "transformer_blocks", "blocks")
"""Where the host's transformers keep the blocks that patches may replace."""

logger = logging.getLogger("trajectory")


def model_input():
    return io.Model.Input("model", tooltip="The model; it stays as it is, a patched clone is returned.")


def model_output():
    return io.Model.Output(display_name="MODEL", tooltip="The patched clone, for any guider or sampler.")


def schedule_inputs(default):
    return [
        io.Combo.Input("schedule", options=list(key_steps.SCHEDULES), default=default, tooltip=(
            "Which steps run the whole network. paper: 9 of 50, most of them early, scaled to the number of steps (all "
            "below 8 steps). uniform: every interval-th. pro: gaps that grow by one. custom: as listed.")),
        io.Int.Input("interval", default=4, min=2, max=10, tooltip=(
            "uniform: distance from one whole step to the next; 4 suits most models. Not used by the others.")),
        io.String.Input("custom", default="0, 1, 2, 3, 5, 10, 15, 25, 35", tooltip=(
            "custom: the whole steps, counted from 0, separated by commas. Steps beyond the run's last are ignored; "
            "step 0 always is whole.")),
    ]  # fmt: skip


def range_inputs():
    return [
        kw(io.Float.Input, "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=(
            "Share of the run before which every step is whole.")),
        kw(io.Float.Input, "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=(
            "Share of the run after which every step is whole.")),
    ]  # fmt: skip


def timeline_of(sampling, sigmas, schedule, interval, custom, start_percent, end_percent):
    """The key steps of a run over `sigmas`: those of the schedule, and all outside the range."""
    levels = tuple(sigmas.tolist())
    start, end = sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent)
    outside = {i for i, sigma in enumerate(levels[:-1]) if not end <= sigma <= start}
    keys = key_steps.key_steps(schedule, len(levels) - 1, interval, custom)
    return key_steps.Timeline(levels, keys | outside)


def follow(run, guider, options, hidden=lambda conds: conds):
    """Lets `run` know where the sampler is; `hidden` takes from the conditionings what its cheap steps do without."""

    def predict_noise(executor, x, timestep, *args, **kwargs):
        run.begin(float(timestep.flatten()[0]))
        return executor(x, timestep, *args, **kwargs)

    def calc_cond_batch(executor, model, conds, *args, **kwargs):
        return run.conditionings(
            lambda mode: executor(model, hidden(conds) if mode == RECALL else conds, *args, **kwargs))

    add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise, guider.model_options, True)
    add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, calc_cond_batch, options, True)


def resting_controls():
    """Function of conditionings that gives them ControlNets that do not run.

    One for each ControlNet, the same at every call: the host batches conditionings by the identity of theirs.
    """
    resting = {}

    def rest(control):
        if control not in resting:
            resting[control] = copy.copy(control)
            resting[control].get_control = lambda *args, **kwargs: None
        return resting[control]

    def without(cond):
        return {**cond, "control": rest(cond["control"])} if cond.get("control") is not None else cond

    return lambda conds: [group and [without(cond) for cond in group] for group in conds]


def unet_wrapper(parallel_decode, skip_controlnet, fresh_input, **schedule):
    def sample(executor, guider, sigmas, extra_args, *args, **kwargs):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        timesteps_of = (lambda levels: sampling.timestep(levels).float()) if parallel_decode else None
        run = UNetRun(timeline_of(sampling, sigmas, **schedule), timesteps_of, skip_controlnet, fresh_input)
        with options_of_run(guider, extra_args) as extra_args:
            options = extra_args["model_options"]
            follow(run, guider, options, *([resting_controls()] if skip_controlnet else []))
            add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, run.call, options, True)
            return executor(guider, sigmas, extra_args, *args, **kwargs)

    return sample


def dit_wrapper(count, **schedule):
    def sample(executor, guider, sigmas, extra_args, *args, **kwargs):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        run = BlocksRun(timeline_of(sampling, sigmas, **schedule))

        def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                        **kwargs):
            options = transformer_options or {}
            network = partial(executor, x, t, c_concat, c_crossattn, control, options, **kwargs)
            return run.call(network, options)

        with options_of_run(guider, extra_args) as extra_args:
            options = extra_args["model_options"]
            replaced = options["transformer_options"].get("patches_replace", {}).get("dit", {})
            for i in range(count):
                block = run.block(i, count, replaced.get(("double_block", i)))
                set_model_options_patch_replace(options, block, "dit", "double_block", i)
            follow(run, guider, options)
            add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model, options, True)
            samples = executor(guider, sigmas, extra_args, *args, **kwargs)
        if not run.used:
            logger.warning("Faster Diffusion (DiT): this model does not let a patch replace its blocks one by one, so "
                           "every step ran the whole network.")
        return samples

    return sample


class FasterDiffusion(io.ComfyNode):
    """MODEL whose encoder runs at the key steps alone."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryFasterDiffusion",
            display_name="Faster Diffusion",
            category=CATEGORY,
            description=(
                "Runs the encoder half of a UNet (SD1.5, SD2, SDXL) at a few key steps only and uses its features "
                "again at the steps between: up to 26 % (SD1.5) or 35 % (SDXL) less time. "
                "ControlNets rest, too."
            ),
            search_aliases=["faster diffusion", "encoder propagation", "cache", "speed", "deepcache", "teacache"],
            inputs=[
                model_input(),
                *schedule_inputs("paper"),
                io.Boolean.Input("parallel_decode", default=False, tooltip=(
                    "Run the decoder of all steps up to the next key step in one batch. Faster where a single picture "
                    "does not fill the GPU; takes more memory. The result is that without fresh_input.")),
                *range_inputs(),
                kw(io.Boolean.Input, "skip_controlnet", default=True, advanced=True, tooltip=(
                    "Use the ControlNet's features of the key step again, too. Off: it runs at every step.")),
                kw(io.Boolean.Input, "fresh_input", default=True, advanced=True, tooltip=(
                    "Run the first convolution at every step, which costs next to nothing: the steps between then see "
                    "the picture as it is, and leave no noise. Off: as published. Not used by parallel_decode.")),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, parallel_decode, skip_controlnet, fresh_input, **inputs):
        key_steps.check_options(**inputs)
        network = model.model.diffusion_model
        if not all(hasattr(network, name) for name in ("input_blocks", "middle_block", "output_blocks", "_forward")):
            raise ValueError(f"model is a {type(network).__name__}, which has no encoder and decoder; connect a UNet "
                             "(SD1.5, SD2, SDXL), or use the node 'Faster Diffusion (DiT)'")
        return io.NodeOutput(patched(
            model, KEY, unet_wrapper(parallel_decode, skip_controlnet, fresh_input, **inputs)))


class FasterDiffusionDiT(io.ComfyNode):
    """MODEL whose first blocks run at the key steps alone."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryFasterDiffusionDiT",
            display_name="Faster Diffusion (DiT)",
            category=CATEGORY,
            description=(
                "Runs the first blocks of a transformer (SD3, Flux, Qwen, Wan, LTX, HunyuanVideo, Chroma) at a few key "
                "steps only and adds again, at the steps between, what they added there."
            ),
            search_aliases=["faster diffusion", "encoder propagation", "cache", "speed", "easycache", "teacache"],
            inputs=[
                model_input(),
                io.Float.Input("fraction", default=0.33, min=0.05, max=0.9, step=0.01, tooltip=(
                    "Share of the blocks that rest between key steps: at most this share of the time is saved. Of "
                    "Flux-like models only the double blocks can (a third of Flux).")),
                *schedule_inputs("uniform"),
                *range_inputs(),
            ],
            outputs=[model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, fraction, **inputs):
        key_steps.check_options(**inputs)
        network = model.model.diffusion_model
        blocks = next((getattr(network, name) for name in DIT_BLOCKS if hasattr(network, name)), None)
        if blocks is None:
            raise ValueError(f"model is a {type(network).__name__}, which has no row of blocks; connect a diffusion "
                             "transformer, or use the node 'Faster Diffusion' for a UNet")
        total = len(blocks) + len(getattr(network, "single_blocks", ()))
        count = min(max(round(fraction * total), 1), len(blocks), total - 1)
        return io.NodeOutput(patched(model, KEY, dit_wrapper(count, **inputs)))


class PriorNoiseInjection(io.ComfyNode):
    """SAMPLER that adds a little of the initial noise to its state."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryPriorNoiseInjection",
            display_name="Prior Noise Injection",
            category=CATEGORY,
            description=(
                "Adds a little of the run's initial noise to the state before each of the later steps. Keeps the "
                "texture that Faster Diffusion may smooth away."
            ),
            search_aliases=["faster diffusion", "noise injection", "texture", "detail"],
            inputs=[
                io.Sampler.Input("sampler", tooltip="The sampler; it stays as it is."),
                io.Float.Input("strength", default=0.003, min=0.0, max=0.05, step=0.001, tooltip=(
                    "Share of the initial noise that is added at each step. 0 adds nothing.")),
                io.Float.Input("below_percent", default=0.5, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Add where the model's time (1 is pure noise; sigma on a flow) is below this. 0 adds nothing.")),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, sampler, strength, below_percent):
        add_noise = partial(with_prior_noise, strength=strength, below=below_percent)
        return io.NodeOutput(with_function(sampler, add_noise))


NODES = [FasterDiffusion, FasterDiffusionDiT, PriorNoiseInjection]
