"""Preparation of conditionings, masks and models before a sampling run, and the clean-up after it."""

import uuid

import comfy.model_management
import comfy.patcher_extension
import comfy.utils


def prepare_mask(noise_mask, shape, device):
    return comfy.utils.reshape_mask(noise_mask, shape).to(device)


def convert_cond(cond):
    """CONDITIONING [[tensor, dict], ...] as the sampler's list of dicts with `cross_attn`, `model_conds` and `uuid`."""
    converted = []
    for tensor, options in cond:
        entry = dict(options)
        entry.setdefault("model_conds", {})
        entry["uuid"] = uuid.uuid4()
        if tensor is not None:
            entry["cross_attn"] = tensor
        converted.append(entry)
    return converted


def get_models_from_cond(cond, model_type):
    models = []
    for entry in cond:
        value = entry.get(model_type, [])
        models += value if isinstance(value, list) else [value]
    return models


def get_additional_models(conds, dtype):
    """Models that conditionings bring along, and the memory that they need beside their weights."""
    return [model for cond in conds.values() for model in get_models_from_cond(cond, "additional_models")], 0


def prepare_sampling(model, noise_shape, conds, model_options=None):
    """Load everything a run needs. Returns (BaseModel, conds, additional models)."""
    wrappers = comfy.patcher_extension.get_all_wrappers(
        comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, model_options, is_model_options=True)
    executor = comfy.patcher_extension.WrapperExecutor.new_executor(_prepare_sampling, wrappers)
    return executor.execute(model, noise_shape, conds, model_options=model_options)


def _prepare_sampling(model, noise_shape, conds, model_options=None):
    additional, extra_memory = get_additional_models(conds, model.model_dtype())
    additional += model.get_nested_additional_models()
    minimum = model.memory_required(list(noise_shape)) + extra_memory
    with_cfg = model.memory_required([noise_shape[0] * 2] + list(noise_shape[1:])) + extra_memory
    comfy.model_management.load_models_gpu(
        [model] + additional, memory_required=with_cfg, minimum_memory_required=minimum)
    return model.model, conds, additional


def cleanup_additional_models(models):
    for model in models:
        if hasattr(model, "cleanup"):
            model.cleanup()


def cleanup_models(conds, models):
    cleanup_additional_models(models)


def prepare_model_patcher(model, conds, model_options):
    """Put the patcher's wrappers and callbacks into the run's transformer_options."""
    transformer_options = model_options["transformer_options"]
    for kind, registered in (("wrappers", model.wrappers), ("callbacks", model.callbacks)):
        comfy.patcher_extension.merge_nested_dicts(
            transformer_options.setdefault(kind, {}), registered, copy_dict1=False)
