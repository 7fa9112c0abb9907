"""Sampling from parts: NOISE, GUIDER, SAMPLER and SIGMAS."""

import _core
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

# --- sigmas ----------------------------------------------------------------------------------------------------------


class BasicScheduler:
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = "sampling/custom_sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL",), "scheduler": (comfy.samplers.SCHEDULER_NAMES,), "steps": _core.STEPS,
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
        }}

    def get_sigmas(self, model, scheduler, steps, denoise):
        """The last `steps` intervals of a schedule of steps/denoise; no sigmas at all for denoise 0."""
        if denoise <= 0.0:
            return (torch.zeros(0),)
        total = steps if denoise >= 1.0 else int(steps / denoise)
        model_sampling = model.get_model_object("model_sampling")
        return (comfy.samplers.calculate_sigmas(model_sampling, scheduler, total).cpu()[-(steps + 1):],)


class SplitSigmas:
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    FUNCTION = "get_sigmas"
    CATEGORY = "sampling/custom_sampling/sigmas"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sigmas": ("SIGMAS",), "step": ("INT", {"default": 0, "min": 0, "max": 10000})}}

    def get_sigmas(self, sigmas, step):
        return sigmas[:step + 1], sigmas[step:]


class FlipSigmas:
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = "sampling/custom_sampling/sigmas"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sigmas": ("SIGMAS",)}}

    def get_sigmas(self, sigmas):
        """Reversed, for sampling from picture to noise; a leading 0 becomes 0.0001, where a model can be evaluated."""
        flipped = sigmas.flip(0)
        if len(flipped) and flipped[0] == 0:
            flipped[0] = 0.0001
        return (flipped,)


class KSamplerSelect:
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (comfy.samplers.SAMPLER_NAMES,)}}

    def get_sampler(self, sampler_name):
        return (comfy.samplers.sampler_object(sampler_name),)


# --- noise -----------------------------------------------------------------------------------------------------------


class Noise_EmptyNoise:
    seed = 0

    def generate_noise(self, input_latent):
        return torch.zeros_like(input_latent["samples"], device="cpu")


class Noise_RandomNoise:
    """Noise of a seed, the same for a latent wherever it stands in its batch."""

    def __init__(self, seed):
        self.seed = seed

    def generate_noise(self, input_latent):
        return comfy.sample.prepare_noise(input_latent["samples"], self.seed, input_latent.get("batch_index"))


class DisableNoise:
    RETURN_TYPES = ("NOISE",)
    FUNCTION = "get_noise"
    CATEGORY = "sampling/custom_sampling/noise"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def get_noise(self):
        return (Noise_EmptyNoise(),)


class RandomNoise:
    RETURN_TYPES = ("NOISE",)
    FUNCTION = "get_noise"
    CATEGORY = "sampling/custom_sampling/noise"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"noise_seed": _core.SEED}}

    def get_noise(self, noise_seed):
        return (Noise_RandomNoise(noise_seed),)


# --- guiders ---------------------------------------------------------------------------------------------------------


class Guider_Basic(comfy.samplers.CFGGuider):
    """One conditioning, no guidance."""

    def set_conds(self, positive):
        self.inner_set_conds(dict(positive=positive))


class BasicGuider:
    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"
    CATEGORY = "sampling/custom_sampling/guiders"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "conditioning": ("CONDITIONING",)}}

    def get_guider(self, model, conditioning):
        unguided = Guider_Basic(model)
        unguided.set_conds(conditioning)
        return (unguided,)


class CFGGuider:
    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"
    CATEGORY = "sampling/custom_sampling/guiders"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",),
                             "cfg": _core.CFG}}

    def get_guider(self, model, positive, negative, cfg):
        guided = comfy.samplers.CFGGuider(model)
        guided.set_cfg(cfg)
        guided.set_conds(positive, negative)
        return (guided,)


# --- sampling --------------------------------------------------------------------------------------------------------


def _sampled(patcher, latent_image, sigmas, run):
    """(output, denoised output) LATENTs of `run(latent, callback, disable_pbar)`.

    The second is the last denoised estimate that the callback saw; without a step it is the output itself.
    """
    latent = {**latent_image, "samples": comfy.sample.fix_empty_latent_channels(patcher, latent_image["samples"])}
    estimate = {}
    callback = latent_preview.prepare_callback(patcher, sigmas.shape[-1] - 1, estimate)
    samples = run(latent, callback, not comfy.utils.PROGRESS_BAR_ENABLED)
    out = {**latent, "samples": samples.to(comfy.model_management.intermediate_device())}
    if "x0" not in estimate:
        return out, out
    return out, {**latent, "samples": patcher.model.process_latent_out(estimate["x0"].cpu())}


class SamplerCustom:
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    FUNCTION = "sample"
    CATEGORY = "sampling/custom_sampling"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "model": ("MODEL",), "add_noise": ("BOOLEAN", {"default": True}), "noise_seed": _core.SEED,
            "cfg": _core.CFG, "positive": ("CONDITIONING",), "negative": ("CONDITIONING",), "sampler": ("SAMPLER",),
            "sigmas": ("SIGMAS",), "latent_image": ("LATENT",),
        }}

    def sample(self, model, add_noise, noise_seed, cfg, positive, negative, sampler, sigmas, latent_image):
        noise = Noise_RandomNoise(noise_seed) if add_noise else Noise_EmptyNoise()

        def run(latent, callback, disable_pbar):
            return comfy.sample.sample_custom(
                model, noise.generate_noise(latent), cfg, sampler, sigmas, positive, negative, latent["samples"],
                noise_mask=latent.get("noise_mask"), callback=callback, disable_pbar=disable_pbar, seed=noise_seed)

        return _sampled(model, latent_image, sigmas, run)


class SamplerCustomAdvanced:
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    FUNCTION = "sample"
    CATEGORY = "sampling/custom_sampling"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"noise": ("NOISE",), "guider": ("GUIDER",), "sampler": ("SAMPLER",), "sigmas": ("SIGMAS",),
                             "latent_image": ("LATENT",)}}

    def sample(self, noise, guider, sampler, sigmas, latent_image):
        def run(latent, callback, disable_pbar):
            return guider.sample(
                noise.generate_noise(latent), latent["samples"], sampler, sigmas, denoise_mask=latent.get("noise_mask"),
                callback=callback, disable_pbar=disable_pbar, seed=noise.seed)

        return _sampled(guider.model_patcher, latent_image, sigmas, run)


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (
    BasicScheduler, SplitSigmas, FlipSigmas, KSamplerSelect, DisableNoise, RandomNoise, BasicGuider, CFGGuider,
    SamplerCustom, SamplerCustomAdvanced)}
