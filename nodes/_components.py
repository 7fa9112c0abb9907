"""Guiders of several components: SuperDiff Sampler asks them for each, any other sampler gets the average."""

import math
from contextlib import ExitStack, contextmanager

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch

from ..samplers import superposition
from ..samplers.model import path_of

KEY = "trajectory_superdiff"


class ComponentsGuider(comfy.samplers.CFGGuider):
    """A guider of several components. Any sampler gets their average; SuperDiff Sampler asks for each.

    A subclass writes `predict_components`.
    """

    def predict_components(self, x, sigma, model_options, seed):
        """(unconditional, conditional) predictions at x [B, ...]: lists, the first with one for all or one for each."""
        raise NotImplementedError

    def set_cfg(self, cfg):
        if not math.isfinite(cfg):
            raise ValueError(f"cfg is {cfg}; choose a number from 1 (no guidance) on")
        super().set_cfg(cfg)

    def sample(self, noise, latent_image, sampler, *args, **kwargs):
        """As the host's. The record of a SuperDiff Sampler learns what became of its run."""
        record = record_of(sampler)
        if record is None:
            return super().sample(noise, latent_image, sampler, *args, **kwargs)
        record.clear()  # without steps the host does not even call the sampler
        latents = super().sample(noise, latent_image, sampler, *args, **kwargs)
        record.keep_result(whole(latents))
        return latents

    def __call__(self, x, timestep, model_options=None, seed=None):
        """The average [B, ...], or the stack if it is asked for; wrappers of a prediction see the average anyway."""
        self._stack = None
        average = super().__call__(x, timestep, model_options=model_options or {}, seed=seed)
        stack, self._stack = self._stack, None
        return average if stack is None else stack

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """The average, guided by the host's own function, which runs what patches of the model hook in there.

        If the stack of components is asked for, it is kept for `__call__`, and their average is the plain one.
        """
        model_options = model_options or {}
        unconditional, conditional = map(torch.stack, self.predict_components(x, timestep, model_options, seed))
        if model_options.get(superposition.COMPONENTS):
            guided = unconditional + self.cfg * (conditional - unconditional)
            self._stack = torch.cat([conditional, guided])
            return guided.mean(0)
        averages = [conditional.mean(0), unconditional.mean(0)]
        options = {**model_options, "sampler_calc_cond_batch_function": lambda _: averages}
        positive = [entry for name, entries in self.conds.items() if name != "negative" for entry in entries]
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds["negative"], positive, self.cfg, options, seed)  # fmt: skip


def record_of(sampler):
    """The Record of a SuperDiff Sampler; None for other samplers."""
    record = getattr(sampler, "extra_options", {}).get("record")
    return record if isinstance(record, superposition.Record) else None


def whole(latents):
    """The samples of a LATENT as one tensor [B, ...]: of those with several parts, such as sound, the first."""
    return latents.unbind()[0] if latents.is_nested else latents


def predictions(model, conds, x, sigma, model_options):
    """A prediction for each of `conds` in one batch, made by the model's patch where one takes this over."""
    patch = model_options.get("sampler_calc_cond_batch_function")
    if patch is not None:
        return patch({"conds": conds, "input": x, "sigma": sigma, "model": model, "model_options": model_options})
    return comfy.samplers.calc_cond_batch(model, conds, x, sigma, model_options)


class PromptsGuider(ComponentsGuider):
    """Components that are prompts of one model."""

    def set_prompts(self, prompts, negative):
        self.names = [f"prompt_{i}" for i in range(1, len(prompts) + 1)]
        self.inner_set_conds({"negative": negative, **dict(zip(self.names, prompts, strict=True))})

    def predict_components(self, x, sigma, model_options, seed):
        conds = [self.conds[name] for name in ("negative", *self.names)]
        unconditional, *conditional = predictions(self.inner_model, conds, x, sigma, model_options)
        return [unconditional], conditional


class Companion:
    """A model beside the guider's own during one run, with conditionings, options and a noise scale of its own."""

    def __init__(self, patcher, conds, own_sampling):
        self._patcher, self._conds, self._own_path = patcher, conds, path_of(own_sampling)
        self._options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
        comfy.sampler_helpers.prepare_model_patcher(patcher, conds, self._options)

    @contextmanager
    def running(self, noise, latent_image, device, denoise_mask, seed, **more):
        """What the host does for the guider's own model: `pre_run`, the inputs of the network, `cleanup`."""
        model = self._patcher.model
        if latent_image is not None and torch.count_nonzero(latent_image) > 0:
            latent_image = model.process_latent_in(latent_image)
        try:
            self._patcher.pre_run()
            self._conds = comfy.samplers.process_conds(
                model, noise, self._conds, device, latent_image, denoise_mask, seed, **more)  # fmt: skip
            yield self
        finally:
            self._patcher.cleanup()

    def predictions(self, x, sigma):
        """[negative, positive] predictions at x and sigma of the guider's own model."""
        sampling = self._patcher.get_model_object("model_sampling")
        place = superposition.on_other_path(x, sigma, self._own_path, path_of(sampling), float(sampling.sigma_max))
        conds = [self._conds["negative"], self._conds["positive"]]
        return predictions(self._patcher.model, conds, *place, self._options)


class ModelsGuider(ComponentsGuider):
    """Components that are models, each with conditionings of its own. The first one's noise scale is the run's."""

    def __init__(self, patchers):
        first, *others = (patcher.clone() for patcher in patchers)
        first.set_additional_models(KEY, others)  # by which the host loads them, too
        super().__init__(first)
        self.others, self.companions = others, []

    def set_pairs(self, pairs):
        """pairs: (positive, negative) of each model."""
        for i, (positive, negative) in enumerate(pairs):
            self.inner_set_conds({f"positive{_of(i)}": positive, f"negative{_of(i)}": negative})

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed,
                     **more):  # fmt: skip
        # the host has loaded what all conditionings bring along, and now makes network inputs of the first model's
        pairs = [{kind: self.conds[kind + _of(i)] for kind in ("positive", "negative")}
                 for i in range(len(self.others) + 1)]  # fmt: skip
        own_sampling, every = self.model_patcher.get_model_object("model_sampling"), self.conds
        self.conds = pairs[0]
        try:
            with ExitStack() as stack:
                self.companions = [
                    stack.enter_context(Companion(patcher, conds, own_sampling).running(
                        noise, latent_image, device, denoise_mask, seed, **more))
                    for patcher, conds in zip(self.others, pairs[1:], strict=True)
                ]  # fmt: skip
                return super().inner_sample(
                    noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed,
                    **more)  # fmt: skip
        finally:
            self.conds, self.companions = every, []

    def predict_components(self, x, sigma, model_options, seed):
        conds = [self.conds["negative"], self.conds["positive"]]
        pairs = [predictions(self.inner_model, conds, x, sigma, model_options)]
        pairs += [companion.predictions(x, sigma) for companion in self.companions]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _of(i):
    return f"_{i + 1}" if i else ""
