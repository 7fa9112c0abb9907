"""From CONDITIONING, cfg and sigmas to samples: batching of conditionings, guidance, masks, schedulers and guiders.

Call chain of a run: guider.sample, OUTER_SAMPLE wrappers, outer_sample, inner_sample, SAMPLER_SAMPLE wrappers,
sampler.sample, sampler_function(model_k, x, sigmas, ...). There model_k is a KSamplerX0Inpaint that calls the guider,
PREDICT_NOISE wrappers, predict_noise, sampling_function, CALC_COND_BATCH wrappers, BaseModel.apply_model, the network.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy
import torch

import comfy.model_patcher
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.utils
from comfy.k_diffusion import sampling as k_diffusion_sampling
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP

# --- conditionings ---------------------------------------------------------------------------------------------------

_UNSUPPORTED = ("area", "set_area_to_bounds", "control", "gligen", "default")


class _Cond(NamedTuple):
    """One conditioning at one state: network inputs, weight of its prediction in the mean, and whose it is."""

    conditioning: dict
    mult: torch.Tensor
    uuid: object
    index: int


def _active_cond(cond, x, timestep, index):
    """The conditioning entry for the state x, or None when the sigma is outside its range."""
    sigma = timestep[0]
    if "timestep_start" in cond and sigma > cond["timestep_start"]:
        return None
    if "timestep_end" in cond and sigma < cond["timestep_end"]:
        return None
    mult = torch.ones_like(x)
    if "mask" in cond:
        mask = cond["mask"][:x.shape[0]] * cond.get("mask_strength", 1.0)
        mult = mask.unsqueeze(1).repeat(x.shape[0] // mask.shape[0], x.shape[1], *[1] * (mask.ndim - 1))
    conditioning = {
        name: value.process_cond(batch_size=x.shape[0], area=None) for name, value in cond["model_conds"].items()}
    return _Cond(conditioning, mult * cond.get("strength", 1.0), cond["uuid"], index)


def _can_join(a, b):
    if a is b:
        return True
    return a.keys() == b.keys() and all(a[name].can_concat(b[name]) for name in a)


def calc_cond_batch(model, conds, x_in, timestep, model_options):
    """Predictions of x0 for each of `conds` (lists of entries, or None), each the weighted mean over its entries.

    Entries with inputs of equal shape share one model call. A list that is None or has no active entry gives zeros.
    """
    wrappers = comfy.patcher_extension.get_all_wrappers(
        WrappersMP.CALC_COND_BATCH, model_options, is_model_options=True)
    executor = WrapperExecutor.new_executor(_calc_cond_batch, wrappers)
    return executor.execute(model, conds, x_in, timestep, model_options)


def _calc_cond_batch(model, conds, x_in, timestep, model_options):
    sums = [torch.zeros_like(x_in) for _ in conds]
    weights = [torch.ones_like(x_in) * 1e-37 for _ in conds]
    entries = [_active_cond(entry, x_in, timestep, i) for i, cond in enumerate(conds) for entry in cond or ()]
    waiting = [entry for entry in entries if entry is not None]
    for callback in model.current_patcher.get_all_callbacks(CallbacksMP.ON_PREPARE_STATE):
        callback(model.current_patcher, timestep, model_options)
    while waiting:
        # Last one first: the order in which the host stacks a batch, visible in `cond_or_uncond`.
        batch = [entry for entry in waiting if _can_join(entry.conditioning, waiting[0].conditioning)][::-1]
        waiting = [entry for entry in waiting if not any(entry is taken for taken in batch)]
        outputs = _run_batch(model, batch, x_in, timestep, model_options)
        for entry, output in zip(batch, outputs, strict=True):
            sums[entry.index] += output * entry.mult
            weights[entry.index] += entry.mult
    return [total / weight for total, weight in zip(sums, weights, strict=True)]


def _run_batch(model, batch, x_in, timestep, model_options):
    """One model call for several conditionings; a tuple of predictions in the batch's order."""
    count = len(batch)
    first = batch[0].conditioning
    inputs = {name: first[name].concat([entry.conditioning[name] for entry in batch[1:]]) for name in first}
    cond_or_uncond = [entry.index for entry in batch]
    transformer_options = comfy.patcher_extension.copy_nested_dicts(model_options.get("transformer_options", {}))
    transformer_options["cond_or_uncond"] = cond_or_uncond[:]
    transformer_options["uuids"] = [entry.uuid for entry in batch]
    transformer_options["sigmas"] = timestep
    inputs["transformer_options"] = transformer_options
    x, sigmas = torch.cat([x_in] * count), torch.cat([timestep] * count)
    if "model_function_wrapper" in model_options:
        arguments = {"input": x, "timestep": sigmas, "c": inputs, "cond_or_uncond": cond_or_uncond}
        return model_options["model_function_wrapper"](model.apply_model, arguments).chunk(count)
    return model.apply_model(x, sigmas, **inputs).chunk(count)


def _resize_masks(conds, dims, device):
    """Bring the entries' masks to the latent's size, in new entries."""
    for i, cond in enumerate(conds):
        if "mask" not in cond:
            continue
        mask = cond["mask"].to(device=device)
        if mask.ndim == len(dims):
            mask = mask.unsqueeze(0)
        if mask.shape[1:] != dims:
            planes = mask.unsqueeze(1) if mask.ndim < 4 else mask
            planes = comfy.utils.common_upscale(planes, dims[-1], dims[-2], "bilinear", "none")
            mask = planes.squeeze(1) if mask.ndim < 4 else planes
        conds[i] = {**cond, "mask": mask}


def _set_sigma_range(conds, model_sampling):
    """Turn the entries' percent ranges into sigma ranges."""
    for i, cond in enumerate(conds):
        start, end = cond.get("start_percent"), cond.get("end_percent")
        if "clip_start_percent" in cond:
            start = max(cond["clip_start_percent"], start or 0.0)
            end = min(cond["clip_end_percent"], 1.0 if end is None else end)
        limits = {"timestep_start": start, "timestep_end": end}
        conds[i] = {**cond, **{name: model_sampling.percent_to_sigma(percent)
                               for name, percent in limits.items() if percent is not None}}


def encode_model_conds(model_function, conds, noise, device, prompt_type, **kwargs):
    """Let the model make its network inputs from each entry (`model_conds`)."""
    for i, cond in enumerate(conds):
        arguments = {**kwargs, **cond, "device": device, "noise": noise}
        arguments.setdefault("prompt_type", prompt_type)
        if noise.ndim >= 4:
            arguments.setdefault("width", noise.shape[3] * 8)
        arguments.setdefault("height", noise.shape[2] * 8)
        conds[i] = {**cond, "model_conds": {**cond["model_conds"], **model_function(**arguments)}}
    return conds


def process_conds(model, noise, conds, device, latent_image=None, denoise_mask=None, seed=None, **kwargs):
    """Make the lists of entries in `conds` ready for a run over `noise`; the given entries are not changed."""
    for name in conds:
        for option in _UNSUPPORTED:
            if any(cond.get(option) for cond in conds[name]):
                raise NotImplementedError(
                    f"The {name} conditioning uses `{option}`, which the embedded host does not have; "
                    "run the graph with --comfyui PATH or --host URL.")
        conds[name] = list(conds[name])
        _resize_masks(conds[name], noise.shape[2:], device)
        _set_sigma_range(conds[name], model.model_sampling)
        if hasattr(model, "extra_conds"):
            encode_model_conds(model.extra_conds, conds[name], noise, device, name, latent_image=latent_image,
                               denoise_mask=denoise_mask, seed=seed, **kwargs)
    return conds


# --- guidance --------------------------------------------------------------------------------------------------------


def cfg_function(model, cond_pred, uncond_pred, cond_scale, x, timestep, model_options: Mapping = {}, cond=None,
                 uncond=None):
    """Guidance uncond + scale (cond - uncond), or the model's own function; then the post-cfg functions."""
    if "sampler_cfg_function" in model_options:
        result = x - model_options["sampler_cfg_function"]({
            "cond": x - cond_pred, "uncond": x - uncond_pred, "cond_scale": cond_scale, "timestep": timestep,
            "input": x, "sigma": timestep, "cond_denoised": cond_pred, "uncond_denoised": uncond_pred,
            "model": model, "model_options": model_options, "input_cond": cond, "input_uncond": uncond})
    else:
        result = uncond_pred + (cond_pred - uncond_pred) * cond_scale
    for function in model_options.get("sampler_post_cfg_function", []):
        result = function({
            "denoised": result, "cond": cond, "uncond": uncond, "cond_scale": cond_scale, "model": model,
            "uncond_denoised": uncond_pred, "cond_denoised": cond_pred, "sigma": timestep,
            "model_options": model_options, "input": x})
    return result


def sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options: Mapping = {}, seed=None):
    """Guided prediction of x0. At scale 1 the negative is evaluated only if `disable_cfg1_optimization` is set."""
    if math.isclose(cond_scale, 1.0) and not model_options.get("disable_cfg1_optimization", False):
        uncond = None
    conds = [cond, uncond]
    if "sampler_calc_cond_batch_function" in model_options:
        predictions = model_options["sampler_calc_cond_batch_function"](
            {"conds": conds, "input": x, "sigma": timestep, "model": model, "model_options": model_options})
    else:
        predictions = calc_cond_batch(model, conds, x, timestep, model_options)
    for function in model_options.get("sampler_pre_cfg_function", []):
        predictions = function({
            "conds": conds, "conds_out": predictions, "cond_scale": cond_scale, "timestep": timestep, "input": x,
            "sigma": timestep, "model": model, "model_options": model_options})
    return cfg_function(
        model, predictions[0], predictions[1], cond_scale, x, timestep, model_options=model_options, cond=cond,
        uncond=uncond)


class KSamplerX0Inpaint:
    """What a sampler function calls: the guider, with the part outside the mask kept at the original latent.

    `noise` and `latent_image` are set by the sampler before the run.
    """

    def __init__(self, model, sigmas):
        self.sigmas, self.inner_model = sigmas, model

    def __call__(self, x, sigma, denoise_mask, model_options: Mapping = {}, seed=None):
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options=model_options, seed=seed)
        if "denoise_mask_function" in model_options:
            denoise_mask = model_options["denoise_mask_function"](
                sigma, denoise_mask, extra_options={"model": self.inner_model, "sigmas": self.sigmas})
        keep = 1.0 - denoise_mask
        kept = self.inner_model.inner_model.scale_latent_inpaint(
            x=x, sigma=sigma, noise=self.noise, latent_image=self.latent_image, denoise_mask=denoise_mask)
        denoised = self.inner_model(x * denoise_mask + kept * keep, sigma, model_options=model_options, seed=seed)
        return denoised * denoise_mask + self.latent_image * keep


# --- schedulers ------------------------------------------------------------------------------------------------------


def simple_scheduler(model_sampling, steps):
    """Every (table length / steps)-th sigma from the top, and a zero."""
    table = model_sampling.sigmas
    stride = len(table) / steps
    return torch.FloatTensor([float(table[-(1 + int(i * stride))]) for i in range(steps)] + [0.0])


def ddim_scheduler(model_sampling, steps):
    """Sigmas at a fixed stride from the second table entry upwards, in descending order."""
    table = model_sampling.sigmas
    ends_at_zero = math.isclose(float(table[1]), 0, abs_tol=0.00001)
    stride = max(len(table) // (steps + 1 if ends_at_zero else steps), 1)
    sigmas = [float(table[i]) for i in range(1, len(table), stride)]
    return torch.FloatTensor((sigmas if ends_at_zero else [0.0] + sigmas)[::-1])


def normal_scheduler(model_sampling, steps, sgm=False, floor=False):
    """Sigmas at equally spaced timesteps; with `sgm` the grid has one more point, which the closing zero replaces."""
    s = model_sampling
    start, end = s.timestep(s.sigma_max), s.timestep(s.sigma_min)
    close = [0.0]
    if sgm:
        timesteps = torch.linspace(start, end, steps + 1)[:-1]
    elif math.isclose(float(s.sigma(end)), 0, abs_tol=0.00001):
        timesteps, close = torch.linspace(start, end, steps + 1), []
    else:
        timesteps = torch.linspace(start, end, steps)
    return torch.FloatTensor([float(s.sigma(timestep)) for timestep in timesteps] + close)


def beta_scheduler(model_sampling, steps, alpha=0.6, beta=0.6):
    """Table entries at the quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173), repeats dropped."""
    import scipy.stats

    last = len(model_sampling.sigmas) - 1
    quantiles = scipy.stats.beta.ppf(1 - numpy.linspace(0, 1, steps, endpoint=False), alpha, beta)
    indices = dict.fromkeys(int(index) for index in numpy.rint(quantiles * last))
    return torch.FloatTensor([float(model_sampling.sigmas[index]) for index in indices] + [0.0])


def linear_quadratic_schedule(model_sampling, steps, threshold_noise=0.025, linear_steps=None):
    """Linear down to 1 - threshold_noise, then quadratic (Polyak et al. 2024, Movie Gen), times sigma_max."""
    if steps == 1:
        levels = [0.0, 1.0]
    else:
        linear = steps // 2 if linear_steps is None else linear_steps
        quadratic = steps - linear
        excess = linear - threshold_noise * steps
        a = excess / (linear * quadratic ** 2)
        b = threshold_noise / linear - 2 * excess / quadratic ** 2
        c = a * linear ** 2
        levels = [i * threshold_noise / linear for i in range(linear)]
        levels += [a * i ** 2 + b * i + c for i in range(linear, steps)] + [1.0]
    return torch.FloatTensor([1.0 - level for level in levels]) * model_sampling.sigma_max.cpu()


def kl_optimal_scheduler(n, sigma_min, sigma_max):
    """Sigmas equally spaced in atan(sigma) (Sabour et al. 2024, Align Your Steps), and a zero."""
    ramp = torch.arange(n, dtype=torch.float) / (n - 1)
    angles = ramp * math.atan(sigma_min) + (1 - ramp) * math.atan(sigma_max)
    return k_diffusion_sampling.append_zero(angles.tan())


class SchedulerHandler(NamedTuple):
    """A scheduler: handler(model_sampling, steps), or handler(n, sigma_min, sigma_max) where `use_ms` is False."""

    handler: Callable[..., torch.Tensor]
    use_ms: bool = True


SCHEDULER_NAMES = [  # in the order of the host's menus
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal"]
_FROM_THE_ENDS = {  # need nothing of the model but its smallest and largest sigma
    "exponential": k_diffusion_sampling.get_sigmas_exponential, "karras": k_diffusion_sampling.get_sigmas_karras,
    "kl_optimal": kl_optimal_scheduler}
_FROM_THE_MODEL = {
    "beta": beta_scheduler, "ddim_uniform": ddim_scheduler, "linear_quadratic": linear_quadratic_schedule,
    "normal": normal_scheduler, "sgm_uniform": partial(normal_scheduler, sgm=True), "simple": simple_scheduler}
SCHEDULER_HANDLERS = {
    name: SchedulerHandler(_FROM_THE_MODEL.get(name) or _FROM_THE_ENDS[name], use_ms=name in _FROM_THE_MODEL)
    for name in SCHEDULER_NAMES}


def calculate_sigmas(model_sampling, scheduler_name, steps):
    """Descending sigmas [steps + 1] on the CPU. Raises ValueError for an unknown scheduler."""
    handler = SCHEDULER_HANDLERS.get(scheduler_name)
    if handler is None:
        raise ValueError(f"error invalid scheduler {scheduler_name}")
    if handler.use_ms:
        return handler.handler(model_sampling, steps)
    return handler.handler(
        n=steps, sigma_min=float(model_sampling.sigma_min), sigma_max=float(model_sampling.sigma_max))


# --- samplers --------------------------------------------------------------------------------------------------------

KSAMPLER_NAMES = ["euler", "euler_ancestral", "heun", "dpmpp_2m"]
SAMPLER_NAMES = KSAMPLER_NAMES + ["ddim"]


class Sampler:
    """Base of SAMPLER objects."""

    def sample(self):
        pass

    def max_denoise(self, model_wrap, sigmas):
        """Whether the run starts at (or above) the model's largest sigma."""
        largest = float(model_wrap.inner_model.model_sampling.sigma_max)
        first = float(sigmas[0])
        return math.isclose(largest, first, rel_tol=1e-05) or first > largest


class KSAMPLER(Sampler):
    """A SAMPLER from a function in k-diffusion's signature."""

    def __init__(self, sampler_function, extra_options: Mapping = {}, inpaint_options: Mapping = {}):
        self.sampler_function = sampler_function
        self.extra_options, self.inpaint_options = extra_options, inpaint_options

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        denoiser = KSamplerX0Inpaint(model_wrap, sigmas)
        denoiser.noise, denoiser.latent_image = self._inpaint_noise(noise, extra_args), latent_image
        extra_args["denoise_mask"] = denoise_mask
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))

        def report(state):
            callback(state["i"], state["denoised"], state["x"], len(sigmas) - 1)

        samples = self.sampler_function(
            denoiser, x, sigmas, extra_args=extra_args, callback=None if callback is None else report,
            disable=disable_pbar, **self.extra_options)
        return sampling.inverse_noise_scaling(sigmas[-1], samples)

    def _inpaint_noise(self, noise, extra_args):
        """Noise of the kept part: the run's own, or with `random` a draw from the next seed."""
        if not self.inpaint_options.get("random", False):
            return noise
        generator = torch.Generator(device="cpu").manual_seed(extra_args.get("seed", 41) + 1)
        return torch.randn(noise.shape, generator=generator, device="cpu").to(noise)


def ksampler(sampler_name, extra_options: Mapping = {}, inpaint_options: Mapping = {}):
    function = getattr(k_diffusion_sampling, f"sample_{sampler_name}")
    return KSAMPLER(function, extra_options, inpaint_options)


def sampler_object(name):
    if name == "ddim":
        return ksampler("euler", inpaint_options={"random": True})
    return ksampler(name)


# --- guiders ---------------------------------------------------------------------------------------------------------


class CFGGuider:
    """A GUIDER: holds model and conditionings, runs a SAMPLER and is itself the denoiser that the sampler calls."""

    def __init__(self, model_patcher):
        self.model_patcher, self.model_options = model_patcher, model_patcher.model_options
        self.cfg, self.original_conds = 1.0, {}

    def set_cfg(self, cfg):
        self.cfg = cfg

    def set_conds(self, positive, negative):
        self.inner_set_conds(dict(positive=positive, negative=negative))

    def inner_set_conds(self, conds):
        for name, cond in conds.items():
            self.original_conds[name] = comfy.sampler_helpers.convert_cond(cond)

    def _wrapped(self, kind, function, owner, model_options):
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, model_options, is_model_options=True)
        return WrapperExecutor.new_class_executor(function, owner, wrappers)

    def __call__(self, *args, **kwargs):
        return self.outer_predict_noise(*args, **kwargs)

    def outer_predict_noise(self, x, timestep, model_options: Mapping = {}, seed=None):
        executor = self._wrapped(WrappersMP.PREDICT_NOISE, self.predict_noise, self, self.model_options)
        return executor.execute(x, timestep, model_options, seed)

    def predict_noise(self, x, timestep, model_options: Mapping = {}, seed=None):
        """Guided x0 (the name is historical)."""
        return sampling_function(
            self.inner_model, x, timestep, self.conds.get("negative"), self.conds.get("positive"), self.cfg,
            model_options=model_options, seed=seed)

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed,
                     **kwargs):
        if latent_image is not None and torch.count_nonzero(latent_image) > 0:  # all zeros mean an empty latent
            latent_image = self.inner_model.process_latent_in(latent_image)
        self.conds = process_conds(
            self.inner_model, noise, self.conds, device, latent_image, denoise_mask, seed, **kwargs)
        options = comfy.model_patcher.create_model_options_clone(self.model_options)
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        extra_args = {"model_options": options, "seed": seed}
        executor = self._wrapped(WrappersMP.SAMPLER_SAMPLE, sampler.sample, sampler, options)
        samples = executor.execute(self, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        return self.inner_model.process_latent_out(samples.to(torch.float32))

    def outer_sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False,
                     seed=None, **kwargs):
        """The run with everything loaded. `latent_shapes`, which newer hosts pass on, is one of the `kwargs`."""
        self.inner_model, self.conds, self.loaded_models = comfy.sampler_helpers.prepare_sampling(
            self.model_patcher, noise.shape, self.conds, self.model_options)
        device = self.model_patcher.load_device
        if denoise_mask is not None:
            denoise_mask = denoise_mask.to(device)
        noise = noise.to(device=device, dtype=torch.float32)
        latent_image = latent_image.to(device=device, dtype=torch.float32)
        try:
            self.model_patcher.pre_run()
            output = self.inner_sample(
                noise, latent_image, device, sampler, sigmas.to(device), denoise_mask, callback, disable_pbar, seed,
                **kwargs)
        finally:
            self.model_patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(self.conds, self.loaded_models)
        del self.inner_model, self.loaded_models
        return output

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False,
               seed=None):
        """Samples from latent and noise [B, C, ...] over descending sigmas; empty `sigmas` return the latent."""
        if sigmas.shape[-1] == 0:
            return latent_image
        self.conds = {name: [dict(cond) for cond in conds] for name, conds in self.original_conds.items()}
        shapes = [part.shape for part in latent_image.unbind()] if latent_image.is_nested else [latent_image.shape]
        if latent_image.is_nested:
            latent_image, _ = comfy.utils.pack_latents(latent_image.unbind())
            noise, _ = comfy.utils.pack_latents(noise.unbind())
            callback = _unpacking(callback, shapes)
        if denoise_mask is not None:
            denoise_mask = _fit_mask(denoise_mask, shapes)
        own_options = self.model_options
        try:
            self.model_options = comfy.model_patcher.create_model_options_clone(own_options)
            comfy.sampler_helpers.prepare_model_patcher(self.model_patcher, self.conds, self.model_options)
            executor = self._wrapped(WrappersMP.OUTER_SAMPLE, self.outer_sample, self, self.model_options)
            output = executor.execute(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, latent_shapes=shapes)
        finally:
            self.model_options = own_options
        del self.conds
        if len(shapes) > 1:
            output = comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(output, shapes))
        return output


def _unpacking(callback, shapes):
    """The callback, given nested views of the packed state."""
    if callback is None:
        return None

    def nested(step, x0, x, total_steps):
        x0, x = (comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(part, shapes)) for part in (x0, x))
        return callback(step, x0, x, total_steps)

    return nested


def _fit_mask(mask, shapes):
    """A noise mask in the shape of the (packed) latent; parts without a mask are denoised wholly."""
    masks = (mask.unbind() if mask.is_nested else [mask])[:len(shapes)]
    masks = masks + [torch.ones(shape) for shape in shapes[len(masks):]]
    fitted = [comfy.sampler_helpers.prepare_mask(part, shape, part.device)
              for part, shape in zip(masks, shapes, strict=True)]
    return (fitted[0] if len(fitted) == 1 else comfy.utils.pack_latents(fitted)[0]).float()


def sample(model, noise, positive, negative, cfg, device, sampler, sigmas, model_options: Mapping = {},
           latent_image=None, denoise_mask=None, callback=None, disable_pbar=False, seed=None):
    """A run with plain classifier-free guidance."""
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider.sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)


class KSampler:
    """Sigmas from steps, scheduler and denoise, and the run over a part of them."""

    SCHEDULERS = SCHEDULER_NAMES
    SAMPLERS = SAMPLER_NAMES
    DISCARD_PENULTIMATE_SIGMA_SAMPLERS = {"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"}

    def __init__(self, model, steps, device, sampler=None, scheduler=None, denoise=None, model_options: Mapping = {}):
        self.model = model
        self.device = device
        self.scheduler = scheduler if scheduler in self.SCHEDULERS else self.SCHEDULERS[0]
        self.sampler = sampler if sampler in self.SAMPLERS else self.SAMPLERS[0]
        self.denoise = denoise
        self.model_options = model_options
        self.set_steps(steps, denoise)

    def calculate_sigmas(self, steps):
        discard = self.sampler in self.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
        sampling = self.model.get_model_object("model_sampling")
        sigmas = calculate_sigmas(sampling, self.scheduler, steps + 1 if discard else steps)
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    def set_steps(self, steps, denoise=None):
        """The last `steps` intervals of a schedule of int(steps / denoise); none for denoise 0."""
        self.steps = steps
        if denoise is not None and denoise <= 0.0:
            self.sigmas = torch.FloatTensor([])
            return
        whole = denoise is None or denoise > 0.9999
        sigmas = self.calculate_sigmas(steps if whole else int(steps / denoise))
        self.sigmas = (sigmas if whole else sigmas[-(steps + 1):]).to(self.device)

    def sample(self, noise, positive, negative, cfg, latent_image=None, start_step=None, last_step=None,
               force_full_denoise=False, denoise_mask=None, sigmas=None, callback=None, disable_pbar=False, seed=None):
        sigmas = self.sigmas if sigmas is None else sigmas
        if last_step is not None and last_step < len(sigmas) - 1:
            sigmas = sigmas[:last_step + 1]
            if force_full_denoise:
                sigmas = sigmas.clone()
                sigmas[-1] = 0
        if start_step is not None:
            if start_step >= len(sigmas) - 1:
                return torch.zeros_like(noise) if latent_image is None else latent_image
            sigmas = sigmas[start_step:]
        sampler = sampler_object(self.sampler)
        return sample(
            self.model, noise, positive, negative, cfg, self.device, sampler, sigmas, self.model_options,
            latent_image=latent_image, denoise_mask=denoise_mask, callback=callback, disable_pbar=disable_pbar,
            seed=seed)
