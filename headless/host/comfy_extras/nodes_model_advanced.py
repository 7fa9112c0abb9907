"""Changes to a model's noise schedule."""

import comfy.model_sampling


class ModelSamplingSD3:
    """A flow schedule with another shift: sigma(t) = shift * t / (1 + (shift - 1) * t)."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "advanced/model"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",),
                             "shift": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.01})}}

    def patch(self, model, shift, multiplier=1000):
        class ShiftedFlow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
            pass

        model_sampling = ShiftedFlow(model.model.model_config)
        model_sampling.set_parameters(shift=shift, multiplier=multiplier)
        patched = model.clone()
        patched.add_object_patch("model_sampling", model_sampling)
        return (patched,)


NODE_CLASS_MAPPINGS = {"ModelSamplingSD3": ModelSamplingSD3}
