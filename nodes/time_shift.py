"""Time-Shift as a SAMPLER, which moves label and step, and as a patch of the MODEL, which moves the label alone."""

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy_api.latest import io

from ..samplers import time_shift
from ..samplers.model import schedule_from
from ._run import options_of_run, patched
from ._schema import kw, schema
from .solvers import CATEGORY, sampler_output, sampler_recipe

KEY = "trajectory_time_shift"


def shift_inputs():
    return [
        io.Combo.Input("mode", options=list(time_shift.MODES), default="corrected", tooltip=(
            "corrected reads the noise level off the variance without that of the picture. paper and official-DEIS "
            "are the published rules, which leave that in and nearly always shift to the window's edge.")),
        io.Int.Input("window", default=40, min=0, max=200, tooltip=(
            "Width of the window around the schedule's level, in 1000ths of the model's own time. 40 is careful; 100 "
            "pays with 5 to 10 steps. 0 shifts nothing.")),
        io.Float.Input("cutoff", default=0.3, min=0.0, max=1.0, step=0.01, tooltip=(
            "Model time (1 is pure noise) at and below which nothing is shifted. 1 shifts nothing.")),
        kw(io.Boolean.Input, "per_channel", default=True, advanced=True, tooltip=(
            "Measure about the mean of each channel, so that a colour cast does not count as variance. For corrected; "
            "the published rules look at all channels at once.")),
    ]  # fmt: skip


class TimeShiftSampler(io.ComfyNode):
    """SAMPLER whose calls and steps are at the measured noise level."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTimeShiftSampler",
            display_name="Time-Shift Sampler",
            category=CATEGORY,
            description=(
                "Measures how much noise is left in the state and makes each network call, and each step, at that "
                "level instead of the schedule's. Corrects much of the error of few-step first-order sampling."
            ),
            search_aliases=["ts-dpm", "exposure bias", "few steps", "ddim", "epsilon scaling"],
            inputs=[
                *shift_inputs(),
                io.Combo.Input("base", options=list(time_shift.BASES), default="euler", tooltip=(
                    "The solver that is shifted. euler (DDIM) and ancestral (DDPM) gain most; dpmpp_2m and ipndm "
                    "leave little to correct.")),
                io.Float.Input("s_noise", default=1.0, min=0.0, max=10.0, step=0.01, tooltip=(
                    "Multiplies the fresh noise of ancestral; the others have none.")),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, mode, window, cutoff, base, **options):
        time_shift.check_options(mode, window, cutoff, base)
        options |= {"mode": mode, "window": window, "cutoff": cutoff, "base": base}
        return io.NodeOutput(sampler_recipe(time_shift.sample_time_shift, **options))


def shift_run(**options):
    """SAMPLER_SAMPLE wrapper that shifts the labels of one run; what it measures lives in that run's options alone."""

    def sample(executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *rest,
               **more):
        schedule = schedule_from(guider.model_patcher.get_model_object("model_sampling"))
        # a patch does not know whether the sampler adds noise, and takes the careful side
        run = time_shift.LabelShift(time_shift.LevelMeter(schedule, mask=denoise_mask, stochastic=True, **options))

        def predict_noise(executor, x, timestep, *args, **kwargs):
            return run.predict(lambda: executor(x, timestep, *args, **kwargs), x, timestep)

        def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                        **kwargs):
            transformer_options = transformer_options or {}

            def network(x, t):
                return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

            # a context window over the batch brings other items than were measured
            return run.call(network, x, t, len(transformer_options.get("sigmas", t)))

        with options_of_run(guider, extra_args) as extra_args:
            add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise, guider.model_options, True)
            add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model, extra_args["model_options"], True)
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **more)

    return sample


class TimeShiftModel(io.ComfyNode):
    """MODEL whose network is called at the measured noise level, under any sampler."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTimeShiftModel",
            display_name="Time-Shift (model patch)",
            category=CATEGORY,
            description=(
                "Tells the network the noise level that the state really has, under any sampler; the sampler's steps "
                "stay as they are. The Time-Shift Sampler, which moves both, gains a little more."
            ),
            search_aliases=["ts-dpm", "exposure bias", "few steps", "epsilon scaling"],
            inputs=[
                io.Model.Input("model", tooltip="The model; it stays as it is, a patched clone is returned."),
                *shift_inputs(),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The patched clone, for any guider or sampler.")],
        )

    @classmethod
    def execute(cls, model, mode, window, cutoff, per_channel):
        time_shift.check_options(mode, window, cutoff)
        on = window > 0 and cutoff < 1
        shift = shift_run(mode=mode, window=window, cutoff=cutoff, per_channel=per_channel) if on else None
        return io.NodeOutput(patched(model, KEY, shift))


NODES = [TimeShiftSampler, TimeShiftModel]
