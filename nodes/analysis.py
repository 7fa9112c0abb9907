"""Nodes that show what a solver or schedule does."""

import copy
import logging

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..charts import line_chart
from ..samplers import comparison
from ..samplers.dpm_solver import sample_dpm_solver
from ..samplers.model import schedule_from
from ._schema import schema

logger = logging.getLogger("trajectory")


class PlanInfo(io.ComfyNode):
    """What a solver will do on a schedule, before any network call."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryPlanInfo",
            display_name="Solver Plan Info",
            category="trajectory/analysis",
            description="Shows a solver's plan on given SIGMAS: network calls, order and extrapolation of each step.",
            search_aliases=["nfe", "order", "solver", "plan", "inspect"],
            is_output_node=True,
            inputs=[
                io.Sampler.Input("sampler", tooltip="A solver of this pack."),
                io.Sigmas.Input("sigmas", tooltip="The schedule it will run on."),
                io.Model.Input("model", tooltip="Says whether it is a flow, and what its own time is."),
            ],
            outputs=[
                io.String.Output(display_name="plan", tooltip="One line a step."),
                io.Int.Output(display_name="network calls", tooltip="NFE of one run without guidance."),
            ],
        )

    @classmethod
    def execute(cls, sampler, sigmas, model):
        make_plan = getattr(getattr(sampler, "sampler_function", None), "plan", None)
        if make_plan is None:
            raise ValueError(
                "sampler has no plan to show: only Trajectory's solvers have one, except Time-Shift, which measures as "
                "it goes, and the SAMPLER of BDIA Invert. Connect another node of the category trajectory/solvers."
            )
        schedule = schedule_from(model.get_model_object("model_sampling"))
        plan = make_plan(sigmas.tolist(), schedule, **sampler.extra_options)
        text = plan.describe()
        return io.NodeOutput(text, plan.calls, ui=ui.PreviewText(text))


MOST_SAMPLERS = 6


class Bench:
    """One problem, guided model, noise and latent, on which samplers are measured."""

    def __init__(self, guider, noise, latent):
        samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
        self._latent = {**latent, "samples": samples}
        self._guider, self._noise, self._seed = guider, noise.generate_noise(self._latent), noise.seed

    def compare(self, samplers, schedules, fine):
        """[comparison.Run] of each sampler {label: SAMPLER} on each schedule {step count: SIGMAS}.

        fine: SIGMAS of the reference. A sampler that raises has a run with the reason in place of a distance.
        """
        fine = {float(sigmas[0]): comparison.reference_sigmas(fine, sigmas[0]) for sigmas in schedules.values()}
        fewest = next(iter(schedules.values()))
        repeated = [fewest, *schedules.values()]  # the first again, with other fresh noise
        self._bar = comfy.utils.ProgressBar(
            sum(len(s) - 1 for s in fine.values()) + len(samplers) * sum(len(s) - 1 for s in repeated))  # fmt: skip
        self._done = 0
        solver = comfy.samplers.KSAMPLER(sample_dpm_solver, {"order": 3})
        references = {first: self._run(solver, sigmas)[0] for first, sigmas in fine.items()}
        runs = []
        for label, sampler in samplers.items():
            stochastic = None
            for steps, sigmas in schedules.items():
                try:
                    out, calls = self._run(sampler, sigmas)
                    distance = comparison.distance(out, references[float(sigmas[0])])
                    if stochastic is None:
                        again, _ = self._run(sampler, sigmas, self._seed ^ 1)
                        stochastic = comparison.distance(again, out) > comparison.CLOSE
                except comfy.model_management.InterruptProcessingException:
                    raise
                except Exception as error:  # whatever breaks one sampler must not take the others with it
                    logger.exception("Solver Comparison: %s failed at %d steps", label, steps)
                    runs.append(comparison.Run(label, steps, error=f"{type(error).__name__}: {error}"))
                else:
                    runs.append(comparison.Run(label, steps, calls, distance, stochastic))
        return runs

    def _run(self, sampler, sigmas, seed=None):
        """(final latents [B, values], network calls) of one run that can be cancelled before each call."""
        guider, calls = copy.copy(self._guider), 0
        guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)

        def count(executor, *args, **kwargs):
            nonlocal calls
            comfy.model_management.throw_exception_if_processing_interrupted()
            calls += 1
            return executor(*args, **kwargs)

        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "trajectory_comparison", count, guider.model_options,
            is_model_options=True)  # fmt: skip
        try:
            # copies, since some of the host's samplers write into the schedule they are given
            out = guider.sample(
                self._noise, self._latent["samples"], sampler, sigmas.clone(),
                denoise_mask=self._latent.get("noise_mask"),
                callback=lambda step, *_: self._bar.update_absolute(self._done + step + 1), disable_pbar=True,
                seed=self._seed if seed is None else seed)  # fmt: skip
        finally:
            self._done += len(sigmas) - 1
        parts = out.unbind() if out.is_nested else [out]
        return torch.cat([part.flatten(1) for part in parts], 1), calls


def make_sigmas(model_sampling, scheduler, steps, denoise):
    """The last `steps` intervals of a schedule of steps/denoise, as the host's Basic Scheduler gives them.

    Raises ValueError for a schedule that nothing can be sampled on.
    """
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, int(steps / denoise)).cpu()[-(steps + 1) :]
    if len(sigmas) < 2 or not sigmas.isfinite().all():
        raise ValueError(f"scheduler {scheduler} gives no usable schedule of {steps} steps: "
                         f"{sigmas.tolist()}. Choose another scheduler, or more steps")
    return sigmas


def recipe_of(sampler):
    """(name, options) by which a comparison knows a SAMPLER."""
    function = getattr(sampler, "sampler_function", type(sampler))
    return getattr(function, "__name__", type(function).__name__), getattr(sampler, "extra_options", {})


class SolverComparison(io.ComfyNode):
    """Several SAMPLERs on one problem: how far from the exact result after how many network calls."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectorySolverComparison",
            display_name="Solver Comparison",
            category="trajectory/analysis",
            description=(
                "Runs up to 6 samplers from the same noise at several step counts and plots their distance to a fine "
                "reference against the network calls that were counted."
            ),
            search_aliases=["compare", "benchmark", "convergence", "nfe", "order", "work precision", "xy plot"],
            is_output_node=True,
            inputs=[
                io.Guider.Input("guider", tooltip="The model with its conditioning; also gives the schedules."),
                io.Noise.Input("noise", tooltip="All runs start from this noise, whatever their step count."),
                io.Latent.Input("latent_image", tooltip=(
                    "Size or picture, as for SamplerCustomAdvanced; a batch gives steadier numbers.")),
                io.Sampler.Input("sampler_1", tooltip="Any SAMPLER, of this pack, the host or another pack."),
                io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES,
                    default=comfy.samplers.SCHEDULER_NAMES[0], tooltip="Schedule of all runs and of the reference."),
                io.String.Input("steps", default="5, 8, 10, 15, 20", tooltip=(
                    "Step counts to run, separated by commas. Each sampler runs once for each.")),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip=(
                    "Below 1 keeps the last part of a longer schedule, for image to image.")),
                io.Int.Input("reference_steps", default=200, min=2, max=10000, tooltip=(
                    "Steps of the reference: DPM-Solver of order 3 on the same schedule, one call each. Has to be much "
                    "finer than every run, at least 4 times its calls.")),
                io.String.Input("names", default="", multiline=True, tooltip=(
                    "Names of the samplers in their order, separated by commas or lines. Where one is missing, the "
                    "function's name and the options that set it apart.")),
                *(io.Sampler.Input(f"sampler_{i}", optional=True, tooltip="Another SAMPLER to compare.")
                  for i in range(2, MOST_SAMPLERS + 1)),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="Distance against network calls, both logarithmic."),
                io.String.Output(display_name="table", tooltip="Each run's calls and distance, the orders, notes."),
                io.String.Output(display_name="csv", tooltip="The same numbers for a spreadsheet."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, guider, noise, latent_image, scheduler, steps, denoise, reference_steps, names, **samplers):
        if scheduler not in comfy.samplers.SCHEDULER_NAMES:
            raise ValueError(f"scheduler is {scheduler!r}; choose one of {', '.join(comfy.samplers.SCHEDULER_NAMES)}")
        samplers = [samplers[name] for name in sorted(samplers) if samplers[name] is not None]
        labels = comparison.labels([recipe_of(sampler) for sampler in samplers], names)
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        counts = comparison.parse_steps(steps)
        schedules = {count: make_sigmas(model_sampling, scheduler, count, denoise) for count in counts}
        fine = make_sigmas(model_sampling, scheduler, reference_steps, denoise)
        bench = Bench(guider, noise, latent_image)
        runs = bench.compare(dict(zip(labels, samplers, strict=True)), schedules, fine)
        table = comparison.table(runs, reference_steps)
        plot = line_chart(
            comparison.lines(runs), f"Distance to a reference of {reference_steps} steps", "network calls",
            "distance / standard deviation", log_x=True, log_y=True)  # fmt: skip
        image = torch.from_numpy(np.asarray(plot).copy())[None].float() / 255
        return io.NodeOutput(image, table, comparison.to_csv(runs), ui=ui.PreviewText(table))


NODES = [PlanInfo, SolverComparison]
