"""Wrappers and callbacks that packs put around the host's sampling functions.

Both are kept as `{type: {key: [function, ...]}}`, on a ModelPatcher and in `transformer_options` under "wrappers" and
"callbacks".
"""


class CallbacksMP:
    """Moments in a ModelPatcher's life at which callbacks run."""

    # the patcher and what it does to its model
    ON_CLONE = "on_clone"
    ON_INJECT_MODEL, ON_EJECT_MODEL = "on_inject_model", "on_eject_model"
    ON_LOAD, ON_DETACH = "on_load_after", "on_detach_after"
    # a sampling run
    ON_PRE_RUN, ON_CLEANUP = "on_pre_run", "on_cleanup"
    ON_PREPARE_STATE = "on_prepare_state"
    # hooks, of which this host has none: packs may register for them, nothing calls
    ON_REGISTER_ALL_HOOK_PATCHES, ON_APPLY_HOOKS = "on_register_all_hook_patches", "on_apply_hooks"

    @classmethod
    def init_callbacks(cls):
        return {}


class WrappersMP:
    """Functions of a sampling run that can be wrapped, innermost first."""

    # every evaluation: the network, the model around it, all conditionings, guidance
    DIFFUSION_MODEL, APPLY_MODEL = "diffusion_model", "apply_model"
    CALC_COND_BATCH, PREDICT_NOISE = "calc_cond_batch", "predict_noise"
    # once a run: the SAMPLER, the loading of models, and everything
    SAMPLER_SAMPLE, PREPARE_SAMPLING, OUTER_SAMPLE = "sampler_sample", "prepare_sampling", "outer_sample"

    @classmethod
    def init_wrappers(cls):
        return {}


def _register(kind, call_type, key, function, options, is_model_options):
    if is_model_options:
        options = options.setdefault("transformer_options", {})
    options.setdefault(kind, {}).setdefault(call_type, {}).setdefault(key, []).append(function)


def _registered(kind, call_type, options, is_model_options):
    if is_model_options:
        options = options.get("transformer_options", {})
    return options.get(kind, {}).get(call_type, {})


def _flat(functions_by_key):
    return [function for functions in functions_by_key.values() for function in functions]


def add_callback(call_type, callback, transformer_options, is_model_options=False):
    _register("callbacks", call_type, None, callback, transformer_options, is_model_options)


def add_callback_with_key(call_type, key, callback, transformer_options, is_model_options=False):
    _register("callbacks", call_type, key, callback, transformer_options, is_model_options)


def get_callbacks_with_key(call_type, key, transformer_options, is_model_options=False):
    return list(_registered("callbacks", call_type, transformer_options, is_model_options).get(key, []))


def get_all_callbacks(call_type, transformer_options, is_model_options=False):
    return _flat(_registered("callbacks", call_type, transformer_options, is_model_options))


def add_wrapper(wrapper_type, wrapper, transformer_options, is_model_options=False):
    _register("wrappers", wrapper_type, None, wrapper, transformer_options, is_model_options)


def add_wrapper_with_key(wrapper_type, key, wrapper, transformer_options, is_model_options=False):
    _register("wrappers", wrapper_type, key, wrapper, transformer_options, is_model_options)


def get_wrappers_with_key(wrapper_type, key, transformer_options, is_model_options=False):
    return list(_registered("wrappers", wrapper_type, transformer_options, is_model_options).get(key, []))


def get_all_wrappers(wrapper_type, transformer_options, is_model_options=False):
    return _flat(_registered("wrappers", wrapper_type, transformer_options, is_model_options))


class WrapperExecutor:
    """One position in a chain of wrappers around a function.

    A wrapper receives the executor as its first argument and goes on by calling it; `class_obj` is the object whose
    method is wrapped. Whoever builds the chain starts it with `execute`.
    """

    def __init__(self, original, class_obj, wrappers, idx):
        self.original = original
        self.class_obj = class_obj
        self.wrappers = list(wrappers)
        self.idx = idx
        self.is_last = idx == len(self.wrappers)

    @classmethod
    def new_executor(cls, original, wrappers, idx=0):
        return cls(original, None, wrappers, idx)

    @classmethod
    def new_class_executor(cls, original, class_obj, wrappers, idx=0):
        return cls(original, class_obj, wrappers, idx)

    def execute(self, *args, **kwargs):
        if not self.is_last:
            return self.wrappers[self.idx](self, *args, **kwargs)
        return self.original(*args, **kwargs)

    def __call__(self, *args, **kwargs):
        if self.is_last:
            raise Exception("The chain of wrappers is at its end; its executor was called from outside.")
        return type(self)(self.original, self.class_obj, self.wrappers, self.idx + 1).execute(*args, **kwargs)


class PatcherInjection:
    """Pair of functions of one ModelPatcher argument that put something into its model and take it out again."""

    def __init__(self, inject, eject):
        self.inject = inject
        self.eject = eject


def copy_nested_dicts(input_dict):
    """Copy of a dict in which nested dicts and lists are new containers and all other values are shared."""
    copied = dict(input_dict)
    for key, value in copied.items():
        if isinstance(value, dict):
            copied[key] = copy_nested_dicts(value)
        elif isinstance(value, list):
            copied[key] = value.copy()
    return copied


def merge_nested_dicts(dict1, dict2, copy_dict1=True):
    """`dict1` with `dict2` merged in: dicts recursively, lists appended, everything else replaced."""
    merged = copy_nested_dicts(dict1) if copy_dict1 else dict1
    for key, value in dict2.items():
        if isinstance(value, dict):
            merged[key] = merge_nested_dicts(merged.get(key, {}), value)
        elif isinstance(value, list):
            merged.setdefault(key, []).extend(value)
        else:
            merged[key] = value
    return merged

