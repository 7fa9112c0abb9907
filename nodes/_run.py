"""Patches of a MODEL whose state lives for one run of a sampler."""

from contextlib import contextmanager

from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP


def patched(model, key, around_run=None):
    """A clone of `model` with this SAMPLER_SAMPLE wrapper under `key`, in place of one from an earlier patch."""
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, key)
    if around_run is not None:
        clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, around_run)
    return clone


@contextmanager
def options_of_run(guider, extra_args):
    """`extra_args` with options of their own for guider and sampler, gone when the run ends, however it ends."""
    own = guider.model_options
    guider.model_options = create_model_options_clone(own)
    try:
        yield {**extra_args, "model_options": create_model_options_clone(extra_args["model_options"])}
    finally:
        guider.model_options = own
