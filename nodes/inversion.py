"""Exact inversion: from a picture up to the noise that it comes from, and from there down to an edited one."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io, ui

from ..samplers import bdia
from ..samplers.model import schedule_from
from ._schema import kw, schema


def one_by_one(model_options):
    """Model options by which each conditioning has its own network call.

    The host batches conditionings as far as its free memory allows, and a network rounds differently in a batch; an
    inversion needs the same numbers on the way back.
    """

    def predictions(args):
        # a None takes the place of each conditioning before, since patches are told a conditioning by its place
        conds, options = args["conds"], args["model_options"]
        call = comfy.samplers.calc_cond_batch
        return [
            call(args["model"], [*[None] * i, cond], args["input"], args["sigma"], options)[i]
            for i, cond in enumerate(conds)
        ]

    return {"sampler_calc_cond_batch_function": predictions, **model_options}


def run(function, start, model_wrap, sigmas, extra_args, callback, disable, gamma, done=0, total=None):
    """`bdia.invert` or `bdia.resume` with what the host hands to a Sampler; `done` of `total` calls are behind it."""
    total = len(sigmas) - 1 if total is None else total

    def report(state):
        callback(done + state["i"], state["denoised"].float(), state["x"].float(), total)

    return function(
        comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas), start, sigmas,
        {**extra_args, "denoise_mask": None, "model_options": one_by_one(extra_args["model_options"])},
        callback and report, disable, gamma=gamma,
        before_call=comfy.model_management.throw_exception_if_processing_interrupted,
    )  # fmt: skip


class Inversion(comfy.samplers.Sampler):
    """One run up: leaves `pair` and the round trip's `drift` (None without one) to the node that made it.

    A class of its own, because the host's KSAMPLER adds noise at the start and divides by 1 - sigma at the end, which
    is 0 at the top of a flow.
    """

    def __init__(self, gamma, verify):
        self.gamma, self.verify, self.pair, self.drift = gamma, verify, None, None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        calls = len(sigmas) - 1
        host = model_wrap, sigmas, extra_args, callback, disable_pbar, self.gamma
        total = calls * (2 if self.verify else 1)
        pair = run(bdia.invert, latent_image, *host, total=total)
        if self.verify:
            self.drift = float((run(bdia.resume, pair, *host, done=calls, total=total) - latent_image).abs().max())
        self.pair = tuple(state.cpu() for state in pair)
        return pair[0].float()


class Resumption(comfy.samplers.Sampler):
    """SAMPLER that starts at the pair of states of an inversion and not at the noise that it is given."""

    def __init__(self, pair, sigmas, gamma):
        # a copy of the schedule, since some of the host's samplers write into the one they are given
        self.pair, self.sigmas, self.gamma = pair, sigmas.clone(), gamma

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        self.check(sigmas, noise.shape, denoise_mask)
        pair = [state.to(noise.device, bdia.exact_dtype(noise.device)) for state in self.pair]
        return run(bdia.resume, pair, model_wrap, sigmas, extra_args, callback, disable_pbar, self.gamma).float()

    def check(self, sigmas, shape, denoise_mask):
        """Raise ValueError, naming the input and the fix, for a run that does not belong to the inversion."""
        if not torch.equal(sigmas.cpu(), self.sigmas):
            raise ValueError(
                f"sigmas ({len(sigmas)} values from {sigmas[0]:.5g} to {sigmas[-1]:.5g}) is not the schedule of the "
                f"inversion ({len(self.sigmas)} values from {self.sigmas[0]:.5g} to {self.sigmas[-1]:.5g}). Connect "
                "the output 'sigmas' of BDIA Invert, and change steps at the scheduler in front of that node"
            )
        if shape != self.pair[0].shape:
            raise ValueError(
                f"latent_image has the shape {list(shape)}, but {list(self.pair[0].shape)} was inverted. Connect the "
                "output 'latent' of BDIA Invert; for another size or batch, invert such a latent"
            )
        if denoise_mask is not None:
            raise ValueError(NO_MASK.format("latent_image"))


NO_MASK = (
    "{} has a noise_mask, but an inversion is exact for the whole picture only. Connect it without the mask; to keep a "
    "part, paste the edited picture over the source afterwards (ImageCompositeMasked)"
)


class BDIAInvert(io.ComfyNode):
    """LATENT to the SAMPLER that samples it again, exactly."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryBDIAInvert",
            display_name="BDIA Invert",
            category="trajectory/solvers",
            description=(
                "Inverts a picture to the noise it comes from, exactly: the SAMPLER it hands out paints it "
                "again, and with another prompt an edited one. One network call an interval of SIGMAS."
            ),
            search_aliases=["inversion", "invert", "unsampler", "edit", "ddim inversion", "edict", "reconstruction"],
            inputs=[
                io.Guider.Input("guider", tooltip=(
                    "Model and prompt that describe the source picture. A low CFG, 1 to 3, edits best.")),
                io.Latent.Input("latent", tooltip=(
                    "The source picture, from VAE Encode or a sampler, without a noise mask.")),
                io.Sigmas.Input("sigmas", tooltip=(
                    "A falling schedule as for sampling; the inversion walks it backwards. With denoise below 1 it "
                    "goes up part of the way only and keeps more of the source.")),
                io.Float.Input("gamma", default=0.96, min=0.5, max=1.0, step=0.01, tooltip=(
                    "Share of the step back. Rounding grows by 1/gamma a step on the way up: stay above 0.9.")),
                kw(io.Float.Input, "end_sigma", default=0.0, min=0.0, max=10.0, step=0.001, advanced=True, tooltip=(
                    "Noise level that the source picture stands for, in place of a closing 0 of SIGMAS. 0 is the "
                    "model's smallest sigma, or 0.002 on a flow.")),
                io.Boolean.Input("verify", default=True, tooltip=(
                    "Go back down at once with the same guider and report the largest drift. As many calls again.")),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip=(
                    "The noise, to look at, and of the right size for latent_image of the edit.")),
                io.Sampler.Output(display_name="sampler", tooltip=(
                    "Starts at the inverted states, whatever noise it is given: connect Disable Noise.")),
                io.Sigmas.Output(display_name="sigmas", tooltip="The schedule that was inverted, for the edit."),
                io.String.Output(display_name="report", tooltip="Schedule, and drift of the round trip."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, guider, latent, sigmas, gamma, end_sigma, verify):
        if "noise_mask" in latent:
            raise ValueError(NO_MASK.format("latent"))
        patcher = guider.model_patcher
        sigmas = bdia.inversion_sigmas(sigmas, schedule_from(patcher.get_model_object("model_sampling")), end_sigma)
        samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
        inversion = Inversion(gamma, verify)
        noise = guider.sample(
            samples * 0, samples, inversion, sigmas, callback=latent_preview.prepare_callback(patcher, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=0,
        )  # fmt: skip
        report = f"{len(sigmas) - 1} intervals from sigma {sigmas[0]:.5g} to {sigmas[-1]:.5g}, gamma {gamma:g}\n"
        report += f"round trip: largest drift {inversion.drift:.2g}" if verify else "round trip: not verified"
        return io.NodeOutput(
            {**latent, "samples": noise.to(comfy.model_management.intermediate_device())},
            Resumption(inversion.pair, sigmas, gamma), sigmas, report, ui=ui.PreviewText(report),
        )  # fmt: skip


NODES = [BDIAInvert]
