"""ModelPatcher: a handle on a shared model with its own options and patches, which loading writes into the model."""

import inspect
import uuid

import torch

import comfy.lora
import comfy.model_management
import comfy.patcher_extension
import comfy.utils
from comfy.patcher_extension import CallbacksMP, WrappersMP


def create_model_options_clone(orig_model_options):
    return comfy.patcher_extension.copy_nested_dicts(orig_model_options)


def set_model_options_patch_replace(model_options, patch, name, block_name, number, transformer_index=None):
    """Register a replacement for a block without changing containers that other clones may share."""
    block = (block_name, number) if transformer_index is None else (block_name, number, transformer_index)
    options = model_options["transformer_options"]
    replaced = options.get("patches_replace", {})
    model_options["transformer_options"] = {
        **options, "patches_replace": {**replaced, name: {**replaced.get(name, {}), block: patch}}}
    return model_options


def _evaluate_both_at_cfg_1(model_options):
    """Let the negative conditioning be evaluated at scale 1 too, where plain guidance does not use it."""
    model_options["disable_cfg1_optimization"] = True


def _append_cfg_function(model_options, kind, function, disable_cfg1_optimization):
    model_options[kind] = model_options.get(kind, []) + [function]
    if disable_cfg1_optimization:
        _evaluate_both_at_cfg_1(model_options)
    return model_options


def set_model_options_post_cfg_function(model_options, post_cfg_function, disable_cfg1_optimization=False):
    return _append_cfg_function(
        model_options, "sampler_post_cfg_function", post_cfg_function, disable_cfg1_optimization)


def set_model_options_pre_cfg_function(model_options, pre_cfg_function, disable_cfg1_optimization=False):
    return _append_cfg_function(model_options, "sampler_pre_cfg_function", pre_cfg_function, disable_cfg1_optimization)


def _copy_containers(value):
    """Nested dicts and lists copied, everything inside them shared."""
    if isinstance(value, dict):
        return {key: _copy_containers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy_containers(item) for item in value]
    return value


def _copy_registry(registry):
    """Copy of {type: {key: [function, ...]}}."""
    return {kind: {key: list(functions) for key, functions in by_key.items()} for kind, by_key in registry.items()}


def _patch_setter(key):
    """Method that registers a patch which the network looks up under `key`."""
    def register(self, patch):
        self.set_model_patch(patch, key)

    return register


def _replacement_setter(name):
    """Method that registers a replacement for one block's attention `name`."""
    def register(self, patch, block_name, number, transformer_index=None):
        self.set_model_patch_replace(patch, name, block_name, number, transformer_index)

    return register


class ModelPatcher:
    """Options and patches for `model`; clones share the model and, in `backup`, its original weights."""

    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        self.model = model
        self.load_device = load_device
        self.offload_device = offload_device
        self.size = size
        self.weight_inplace_update = weight_inplace_update
        self.patches, self.backup = {}, {}
        self.object_patches, self.object_patches_backup = {}, {}
        self.model_options = {"transformer_options": {}}
        self.patches_uuid = uuid.uuid4()
        self.force_cast_weights = False
        self.parent = None
        self.attachments = {}
        self.additional_models = {}
        self.callbacks = CallbacksMP.init_callbacks()
        self.wrappers = WrappersMP.init_wrappers()
        self.injections = {}
        self.is_injected = False
        self.is_clip = False
        self.forced_hooks = None
        if getattr(model, "device", None) is None:
            model.device = offload_device
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None
        self.model_size()

    def clone(self):
        n = self.__class__(self.model, self.load_device, self.offload_device, self.size, self.weight_inplace_update)
        n.patches = {key: list(patches) for key, patches in self.patches.items()}
        n.patches_uuid = self.patches_uuid
        n.backup = self.backup
        n.object_patches = self.object_patches.copy()
        n.object_patches_backup = self.object_patches_backup
        n.model_options = _copy_containers(self.model_options)
        n.force_cast_weights = self.force_cast_weights
        n.parent = self
        n.attachments = {
            key: value.on_model_patcher_clone() if hasattr(value, "on_model_patcher_clone") else value
            for key, value in self.attachments.items()}
        n.additional_models = {
            key: [model.clone() for model in models] for key, models in self.additional_models.items()}
        n.callbacks = _copy_registry(self.callbacks)
        n.wrappers = _copy_registry(self.wrappers)
        n.injections = {key: list(injections) for key, injections in self.injections.items()}
        n.is_injected = self.is_injected
        n.is_clip = self.is_clip
        n.forced_hooks = self.forced_hooks
        self._notify(CallbacksMP.ON_CLONE, n)
        return n

    def is_clone(self, other):
        return getattr(other, "model", None) is self.model

    # size and type

    def model_size(self):
        if self.size <= 0:
            self.size = comfy.model_management.module_size(self.model)
        return self.size

    def model_dtype(self):
        return self.model.get_dtype() if hasattr(self.model, "get_dtype") else None

    def memory_required(self, input_shape):
        return self.model.memory_required(input_shape=input_shape)

    def current_loaded_device(self):
        return self.model.device

    # options that the samplers read

    def set_model_sampler_cfg_function(self, sampler_cfg_function, disable_cfg1_optimization=False):
        """Combine cond and uncond by function(args), or by a function of (cond, uncond, scale)."""
        function = sampler_cfg_function
        if len(inspect.signature(sampler_cfg_function).parameters) == 3:
            def function(args):
                return sampler_cfg_function(args["cond"], args["uncond"], args["cond_scale"])
        self.model_options["sampler_cfg_function"] = function
        if disable_cfg1_optimization:
            _evaluate_both_at_cfg_1(self.model_options)

    def set_model_sampler_post_cfg_function(self, post_cfg_function, disable_cfg1_optimization=False):
        set_model_options_post_cfg_function(self.model_options, post_cfg_function, disable_cfg1_optimization)

    def set_model_sampler_pre_cfg_function(self, pre_cfg_function, disable_cfg1_optimization=False):
        set_model_options_pre_cfg_function(self.model_options, pre_cfg_function, disable_cfg1_optimization)

    def set_model_sampler_calc_cond_batch_function(self, sampler_calc_cond_batch_function):
        self.model_options["sampler_calc_cond_batch_function"] = sampler_calc_cond_batch_function

    def set_model_unet_function_wrapper(self, unet_wrapper_function):
        """Call function(apply_model, {"input", "timestep", "c", "cond_or_uncond"}) in place of the model."""
        self.model_options["model_function_wrapper"] = unet_wrapper_function

    def set_model_denoise_mask_function(self, denoise_mask_function):
        """Let function(sigma, mask, extra_options=...) change the mask of a masked run at every step."""
        self.model_options["denoise_mask_function"] = denoise_mask_function

    # patches that the network reads

    def set_model_patch(self, patch, name):
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = patches.get(name, []) + [patch]

    def set_model_patch_replace(self, patch, name, block_name, number, transformer_index=None):
        set_model_options_patch_replace(self.model_options, patch, name, block_name, number, transformer_index)

    set_model_attn1_replace = _replacement_setter("attn1")
    set_model_attn2_replace = _replacement_setter("attn2")
    set_model_attn1_patch = _patch_setter("attn1_patch")
    set_model_attn1_output_patch = _patch_setter("attn1_output_patch")
    set_model_attn2_patch = _patch_setter("attn2_patch")
    set_model_attn2_output_patch = _patch_setter("attn2_output_patch")
    set_model_input_block_patch = _patch_setter("input_block_patch")
    set_model_input_block_patch_after_skip = _patch_setter("input_block_patch_after_skip")
    set_model_output_block_patch = _patch_setter("output_block_patch")
    set_model_double_block_patch = _patch_setter("double_block")
    set_model_emb_patch = _patch_setter("emb_patch")
    set_model_post_input_patch = _patch_setter("post_input")

    def _network_patches(self):
        """(container, key) of every patch and replacement, and of the function around the model."""
        options = self.model_options["transformer_options"]
        for patches in options.get("patches", {}).values():
            yield from ((patches, index) for index in range(len(patches)))
        for patches in options.get("patches_replace", {}).values():
            yield from ((patches, block) for block in patches)
        if "model_function_wrapper" in self.model_options:
            yield self.model_options, "model_function_wrapper"

    def model_patches_to(self, device):
        """Move the patches that can be moved."""
        for container, key in self._network_patches():
            if hasattr(container[key], "to"):
                container[key] = container[key].to(device)

    def model_patches_models(self):
        """ModelPatchers that the patches bring along."""
        return [model for container, key in self._network_patches() if hasattr(container[key], "models")
                for model in container[key].models()]

    # patches of the model itself

    def add_object_patch(self, name, obj):
        """Let the model's attribute `name` (dotted) be `obj` while this patcher is loaded."""
        self.object_patches[name] = obj

    def get_model_object(self, name):
        """The attribute as this patcher sees it, whichever clone is loaded."""
        for known in (self.object_patches, self.object_patches_backup):  # the second: what another clone has covered
            if name in known:
                return known[name]
        return comfy.utils.get_attr(self.model, name)

    def set_model_compute_dtype(self, dtype):
        """Compute in `dtype`, whatever the weights are stored in (None: in the weights' own)."""
        self.add_object_patch("manual_cast_dtype", dtype)
        self.force_cast_weights = self.force_cast_weights or dtype is not None
        self.patches_uuid = uuid.uuid4()

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        """Register weight patches {key or (key, offset, function): value}; returns the ones whose weight exists."""
        known = self.model.state_dict()
        accepted = []
        for target, value in patches.items():
            key, offset, function = (target, None, None) if isinstance(target, str) else (*target, None, None)[:3]
            if key in known:
                accepted.append(target)
                entry = (strength_patch, value, strength_model, offset, function)
                self.patches[key] = self.patches.get(key, []) + [entry]
        self.patches_uuid = uuid.uuid4()
        return accepted

    def get_key_patches(self, filter_prefix=None):
        """{key: [(original weight, convert function), patch, ...]} as model merging wants it."""
        def unchanged(weight, **kwargs):
            return weight

        return {key: [(self.backup.get(key, weight), unchanged)] + self.patches.get(key, [])
                for key, weight in self.model_state_dict(filter_prefix).items()}

    def model_state_dict(self, filter_prefix=None):
        return {key: value for key, value in self.model.state_dict().items()
                if filter_prefix is None or key.startswith(filter_prefix)}

    @torch.no_grad()
    def _patch_weights(self):
        for key, patches in self.patches.items():
            weight = comfy.utils.get_attr(self.model, key)
            self.backup[key] = weight.detach().to(self.offload_device, copy=True)
            patched = comfy.lora.calculate_weight(patches, weight.detach().to(torch.float32, copy=True), key)
            comfy.utils.set_attr_param(self.model, key, patched.to(weight.dtype))

    def _unpatch_weights(self):
        for key, weight in self.backup.items():
            comfy.utils.set_attr_param(self.model, key, weight)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None

    def patch_model(self, device_to=None, lowvram_model_memory=0, load_weights=True, force_patch_weights=False):
        """Write the object patches and (with `load_weights`) the weight patches into the model and move it."""
        for name, value in self.object_patches.items():
            previous = comfy.utils.set_attr(self.model, name, value)
            self.object_patches_backup.setdefault(name, previous)
        if load_weights:
            self._patch_weights()
            self._move_model(device_to)
            self.model.current_weight_patches_uuid = self.patches_uuid
            self._notify(CallbacksMP.ON_LOAD, device_to, lowvram_model_memory, force_patch_weights, True)
        self.inject_model()
        return self.model

    def _move_model(self, device):
        """Move the model unless `device` is None."""
        if device is not None:
            self.model.to(device)
            self.model.device = device

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        """Undo `patch_model`, also that of another clone."""
        self.eject_model()
        if unpatch_weights:
            self._unpatch_weights()
            self._move_model(device_to)
        for name, value in self.object_patches_backup.items():
            comfy.utils.set_attr(self.model, name, value)
        self.object_patches_backup.clear()

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        """Load this patcher's state; weights are touched only when they or the device change. Returns bytes moved."""
        stale = force_patch_weights or self.model.current_weight_patches_uuid != self.patches_uuid
        stale = stale or self.model.device != device_to
        self.unpatch_model(unpatch_weights=stale)
        self.patch_model(device_to, load_weights=stale)
        return self.model_size() if stale else 0

    def detach(self, unpatch_all=True):
        """Take the model off the device; without `unpatch_all` it stays for another clone to take over."""
        home = self.offload_device
        self.eject_model()
        self.model_patches_to(home)
        if unpatch_all:
            self.unpatch_model(home)
        self._notify(CallbacksMP.ON_DETACH, unpatch_all)
        return self.model

    # a run

    def _tell_model_its_patcher(self, patcher):
        if hasattr(self.model, "current_patcher"):
            self.model.current_patcher = patcher

    def pre_run(self):
        self._tell_model_its_patcher(self)
        self._notify(CallbacksMP.ON_PRE_RUN)

    def cleanup(self):
        self._tell_model_its_patcher(None)
        self._notify(CallbacksMP.ON_CLEANUP)

    # wrappers, callbacks and things attached

    def add_callback(self, call_type, callback):
        self.add_callback_with_key(call_type, None, callback)

    def add_callback_with_key(self, call_type, key, callback):
        self.callbacks.setdefault(call_type, {}).setdefault(key, []).append(callback)

    def remove_callbacks_with_key(self, call_type, key):
        self.callbacks.get(call_type, {}).pop(key, None)

    def get_callbacks(self, call_type, key):
        return self.callbacks.get(call_type, {}).get(key, [])

    def get_all_callbacks(self, call_type):
        return [callback for callbacks in self.callbacks.get(call_type, {}).values() for callback in callbacks]

    def _notify(self, moment, *details):
        """Run the callbacks of one moment of the patcher's life."""
        for callback in self.get_all_callbacks(moment):
            callback(self, *details)

    def add_wrapper(self, wrapper_type, wrapper):
        self.add_wrapper_with_key(wrapper_type, None, wrapper)

    def add_wrapper_with_key(self, wrapper_type, key, wrapper):
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, wrapper_type, key):
        self.wrappers.get(wrapper_type, {}).pop(key, None)

    def get_wrappers(self, wrapper_type, key):
        return self.wrappers.get(wrapper_type, {}).get(key, [])

    def get_all_wrappers(self, wrapper_type):
        return [wrapper for wrappers in self.wrappers.get(wrapper_type, {}).values() for wrapper in wrappers]

    def set_attachments(self, key, attachment):
        self.attachments[key] = attachment

    def remove_attachments(self, key):
        self.attachments.pop(key, None)

    def get_attachment(self, key):
        return self.attachments.get(key)

    def set_injections(self, key, injections):
        self.injections[key] = injections

    def remove_injections(self, key):
        self.injections.pop(key, None)

    def get_injections(self, key):
        return self.injections.get(key)

    def _all_injections(self):
        return [injection for injections in self.injections.values() for injection in injections]

    def inject_model(self):
        if self.is_injected:
            return
        for injection in self._all_injections():
            injection.inject(self)
            self.is_injected = True
        if self.is_injected:
            self._notify(CallbacksMP.ON_INJECT_MODEL)

    def eject_model(self):
        if self.is_injected:
            for injection in self._all_injections():
                injection.eject(self)
            self.is_injected = False
            self._notify(CallbacksMP.ON_EJECT_MODEL)

    def set_additional_models(self, key, models):
        self.additional_models[key] = models

    def remove_additional_models(self, key):
        self.additional_models.pop(key, None)

    def get_additional_models_with_key(self, key):
        return self.additional_models.get(key, [])

    def get_additional_models(self):
        return [model for models in self.additional_models.values() for model in models]

    def get_nested_additional_models(self):
        """The additional models, theirs, and so on, each once."""
        found = dict.fromkeys(self.get_additional_models())
        waiting = list(found)
        while waiting:
            for model in waiting.pop(0).get_additional_models():
                if model not in found:
                    found[model] = None
                    waiting.append(model)
        return list(found)
