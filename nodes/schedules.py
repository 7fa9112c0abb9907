"""Schedules as SIGMAS nodes."""

import torch
from comfy_api.latest import io

from ..samplers.model import schedule_from
from ..samplers.schedules import SKIPS, fisher_path, time_skip
from ..samplers.spectrum import power_law, radial_spectrum
from ._schema import schema

LATENT_SHAPE = (64, 64)
"""Where the modes of a power law lie: the latent of a picture of 512 x 512."""


class TimeSkipScheduler(io.ComfyNode):
    """SIGMAS at the time skips of DPM-Solver and DEIS."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryTimeSkipScheduler",
            display_name="Time Skip Scheduler",
            category="trajectory/schedules",
            description="SIGMAS uniform in log-SNR, in the model's own time or a power of it, or in a power of sigma.",
            search_aliases=["sigmas", "logsnr", "karras", "time uniform", "quadratic", "scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="Its table of sigmas gives the time and the range."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Number of intervals."),
                io.Combo.Input("skip", options=list(SKIPS), default="logSNR", tooltip=(
                    "What is spaced evenly: logSNR (small pictures), time_uniform (Stable Diffusion's habit), "
                    "time_quadratic (DEIS), rho (Karras: a power of sigma).")),
                io.Float.Input("exponent", default=0.0, min=0.0, max=20.0, step=0.1, tooltip=(
                    "Power p of the spacing: even in t^(1/p) or sigma^(1/p). 0 takes the usual one: 1, 2 and 7; "
                    "otherwise 0.1 or more. logSNR has none.")),
                io.Float.Input("t_start", default=1.0, min=0.001, max=1.0, step=0.001, tooltip=(
                    "Model time of the first sigma: 1 is pure noise.")),
                io.Float.Input("t_end", default=0.001, min=0.0001, max=1.0, step=0.0001, round=0.00001, tooltip=(
                    "Model time of the last sigma above 0. Up to 15 steps 0.001 is good, beyond it 0.0001; tables end "
                    "at one step of training, often 0.001.")),
                io.Boolean.Input("append_zero", default=True, tooltip=(
                    "End at sigma 0, a clean picture. Off leaves the state at t_end, for a chained sampler.")),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Below 1 keeps the last part of a longer schedule, for image to image.")),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels, falling.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, **options):
        schedule = schedule_from(model.get_model_object("model_sampling"))
        return io.NodeOutput(torch.tensor(time_skip(schedule, **options), dtype=torch.float32))


class FisherPathScheduler(io.ComfyNode):
    """SIGMAS equally far apart for the data's own spectrum."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryFisherPathScheduler",
            display_name="Fisher Path Scheduler",
            category="trajectory/schedules",
            description=(
                "SIGMAS whose steps change the distribution of a noisy picture equally much, measured by the Fisher "
                "length of its power spectrum."
            ),
            search_aliases=["sigmas", "spectrum", "shortest path diffusion", "spd", "scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="Its table of sigmas gives the range."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Number of intervals."),
                io.Float.Input("exponent", default=2.0, min=0.0, max=6.0, step=0.1, tooltip=(
                    "Power p of a spectrum that falls as frequency^-p, where no spectrum is connected. About 2 for "
                    "pictures; 0 is white, which gives steps even in log-SNR.")),
                io.Boolean.Input("append_zero", default=True, tooltip=(
                    "End at sigma 0, a clean picture. Off leaves the state at the model's smallest sigma.")),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Below 1 keeps the last part of a longer schedule, for image to image.")),
                io.Latent.Input("spectrum", optional=True, tooltip=(
                    "Clean latents of this model whose spectrum takes the place of the power law; a batch is "
                    "averaged.")),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels, falling.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, exponent, spectrum=None, **options):
        if spectrum is None:
            power = power_law(exponent, LATENT_SHAPE)
        else:
            power = radial_spectrum(model.model.process_latent_in(spectrum["samples"]))
        schedule = schedule_from(model.get_model_object("model_sampling"))
        return io.NodeOutput(torch.tensor(fisher_path(schedule, power, **options), dtype=torch.float32))


NODES = [TimeSkipScheduler, FisherPathScheduler]
