"""Denoising MCMC: a node that samples, since a chain yields many latents where a SAMPLER returns one."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..samplers import denoising_mcmc
from ..samplers.model import schedule_from
from ..samplers.spectrum import radial_spectrum
from ._schema import kw, schema


class ChainSampler(comfy.samplers.Sampler):
    """One chain as a SAMPLER of one run, so that the guider loads, conditions and cleans up as for any other.

    The run returns the chain's clean latents as a batch; `trace` tells its states.
    """

    def __init__(self, inner, spectrum, progress, options):
        self.inner, self.spectrum, self.progress, self.options = inner, spectrum, progress, options
        self.trace = ""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        base = model_wrap.inner_model
        model_sampling = base.model_sampling
        schedule = schedule_from(model_sampling)
        sigma_range = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
        denoiser = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        denoiser.noise, denoiser.latent_image = noise, latent_image
        seed, runs = extra_args["seed"], 0

        def predict(x, sigma):
            comfy.model_management.throw_exception_if_processing_interrupted()
            denoised = denoiser(x, x.new_full((1,), sigma), denoise_mask=denoise_mask, **extra_args)
            self.progress(callback, denoised, x)
            return denoised

        def solve(start_noise, levels):
            """x0 of the inner SAMPLER, which starts at alpha latent_image + sigma start_noise."""
            nonlocal runs
            levels, options = noise.new_tensor(levels), extra_args["model_options"]
            transformer_options = {**options.get("transformer_options", {}), "sample_sigmas": levels}
            arguments = {
                "model_options": {**options, "transformer_options": transformer_options},
                "seed": (seed + runs) % 2**63,  # a noisy solver must not repeat its noise in every picture
            }
            runs += 1
            report = self.progress.steps(callback, len(levels) - 1)
            return self.inner.sample(
                model_wrap, levels, arguments, report, start_noise, latent_image, denoise_mask, disable_pbar)

        def integrate(x, levels):
            return solve(denoising_mcmc.noise_in(x, latent_image, levels[0], schedule.path), levels)

        x0 = latent_image
        if is_empty(latent_image):
            levels = denoising_mcmc.first_levels(sigma_range, self.options["denoise_steps"], self.options["rho"])
            x0 = solve(noise, levels)
        spectrum = None if self.spectrum is None else radial_spectrum(base.process_latent_in(self.spectrum))
        clean, trace, kept = denoising_mcmc.denoising_mcmc(
            predict, integrate, x0, noise, seed, schedule, sigma_range, spectrum, **self.options)
        self.trace = denoising_mcmc.describe(trace, kept)
        return clean


class Progress:
    """Network calls of the chain and steps of its solver runs on one bar."""

    def __init__(self, total):
        self.done, self.total = 0, total

    def __call__(self, callback, denoised, x):
        if callback is not None:
            callback(min(self.done, self.total - 1), denoised, x, self.total)
        self.done += 1

    def steps(self, callback, count):
        """Callback of a solver run of `count` steps, which counts on from here."""
        first, self.done = self.done, self.done + count

        def report(step, denoised, x, _):
            if callback is not None:
                callback(min(first + step, self.total - 1), denoised, x, self.total)

        return report


def parts_of(samples):
    """The tensors of a latent: several where video and audio travel as one."""
    return samples.unbind() if samples.is_nested else [samples]


def is_empty(samples):
    return not any(bool(torch.any(part)) for part in parts_of(samples))


def joined(batches):
    """Latents one after the other along the batch."""
    if not batches[0].is_nested:
        return torch.cat(batches)
    return type(batches[0])([torch.cat(parts) for parts in zip(*map(parts_of, batches), strict=True)])


def mask_of(mask, k):
    """The noise mask of item k; the host repeats a shorter batch of masks."""
    if mask is None or mask.is_nested or len(mask) == 1:
        return mask
    return mask[k % len(mask)][None]


def check_latents(patcher, start, spectrum):
    """Raise ValueError for a start that the model does not take, or a reference that is no clean latent of it."""
    channels = patcher.get_model_object("latent_format").latent_channels
    for name, samples in (("latent", start), ("spectrum", spectrum)):
        if samples is not None and not samples.is_nested and samples.ndim > 3 and samples.shape[1] != channels:
            raise ValueError(
                f"{name} has {samples.shape[1]} channels and the model works on {channels}; "
                "encode the picture with the VAE of this model"
            )
    if spectrum is not None and (start.is_nested or spectrum.is_nested or spectrum.ndim != start.ndim):
        raise ValueError("spectrum and latent differ in kind; connect pictures for pictures and video for video, "
                         "or leave spectrum empty")  # fmt: skip


class DenoisingMCMC(io.ComfyNode):
    """A batch of different clean latents from one chain of noisy ones."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryDenoisingMCMC",
            display_name="Denoising MCMC",
            category="trajectory/solvers",
            description=(
                "A stream of related, different pictures: a Markov chain walks over noisy pictures, and every few "
                "states one is denoised by any SAMPLER in a few steps."
            ),
            search_aliases=["dmcmc", "langevin", "gibbs", "variations", "markov chain", "dlg"],
            inputs=[
                io.Guider.Input("guider", tooltip="Model, conditioning and guidance."),
                io.Sampler.Input("sampler", tooltip="Denoises the chosen states."),
                io.Latent.Input("latent", tooltip=(
                    "Where the chain starts: a sampled or encoded latent; an empty one is sampled first. A batch runs "
                    "one chain an item. A mask limits the walk to its inside.")),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="All random numbers of the chain; items of a batch have their own."),
                io.Int.Input("samples", default=4, min=1, max=64, tooltip="Pictures of each chain."),
                io.Int.Input("n_skip", default=10, min=1, max=1000, tooltip=(
                    "Langevin steps between pictures, one network call each. The state of lowest sigma among them is "
                    "denoised. More makes pictures differ more.")),
                io.Float.Input("eta", default=0.0, min=0.0, max=1000.0, step=0.01, tooltip=(
                    "Size of a Langevin step in squared units of the latent. 0 is automatic: 8 times the variance of "
                    "the data, the authors' choice. Smaller is closer to the exact law, and slower.")),
                io.Int.Input("burn_in", default=20, min=0, max=1000, tooltip=(
                    "Langevin steps before the first picture, one network call each.")),
                io.Int.Input("denoise_steps", default=10, min=1, max=1000, tooltip=(
                    "Steps of the SAMPLER from a state's sigma to 0. An empty latent is sampled in twice as many.")),
                io.Float.Input("rho", default=7.0, min=1.0, max=20.0, step=0.1, tooltip=(
                    "Spacing of those steps, even in sigma^(1/rho) (Karras). 1 is even in sigma, often better on "
                    "flow models.")),
                io.Combo.Input("sigma_estimator", options=list(denoising_mcmc.ESTIMATORS), default="spectral",
                    tooltip=(
                    "spectral draws the noise level of each state from its spectrum; fixed keeps the first level, "
                    "which makes the chain plain Langevin dynamics.")),
                kw(io.Float.Input, "start_sigma", default=0.0, min=0.0, max=1000.0, step=0.001, advanced=True, tooltip=(
                    "First noise level, in the model's sigma (below 1 on a flow). Low keeps the layout, high changes "
                    "it. 0 is automatic: 4 times as much noise as signal.")),
                io.Latent.Input("spectrum", optional=True, tooltip=(
                    "Clean latents whose spectrum tells noise from signal and whose variance sets the automatic "
                    "values. Without it the start of the chain is used.")),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The pictures, chain after chain, in order."),
                io.String.Output(display_name="trace", tooltip="The sigma of every state, one line each."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, guider, sampler, latent, seed, spectrum=None, **options):
        if not callable(getattr(sampler, "sample", None)):
            raise ValueError("sampler cannot sample; connect a SAMPLER, such as KSamplerSelect or a Trajectory solver")
        patcher = guider.model_patcher
        sigma_max = float(patcher.get_model_object("model_sampling").sigma_max)
        denoising_mcmc.check_options(sigma_max, **options)
        start = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
        spectrum = spectrum and spectrum["samples"]
        check_latents(patcher, start, spectrum)
        noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
        mask, sigmas = latent.get("noise_mask"), torch.tensor([sigma_max, 0.0])
        items = [slice(k, k + 1) for k in range(start.shape[0])]
        budget = {name: options[name] for name in ("samples", "n_skip", "burn_in", "denoise_steps")}
        progress = Progress(sum(denoising_mcmc.calls(**budget, empty=is_empty(start[item])) for item in items))
        callback = latent_preview.prepare_callback(patcher, progress.total)
        batches, traces = [], []
        for k, item in enumerate(items):
            chain = ChainSampler(sampler, spectrum, progress, options)
            batches.append(guider.sample(
                noise[item], start[item], chain, sigmas, denoise_mask=mask_of(mask, k), callback=callback,
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed))  # fmt: skip
            traces.append(chain.trace)
        out = {name: value for name, value in latent.items() if name not in ("noise_mask", "batch_index")}
        out["samples"] = joined(batches).to(comfy.model_management.intermediate_device())
        return io.NodeOutput(out, "\n\n".join(traces))


NODES = [DenoisingMCMC]
