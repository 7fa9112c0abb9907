"""SuperDiff: guiders with several prompts or models, the sampler that composes them, and its log."""

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..charts import line_chart
from ..samplers import superposition
from ._components import ModelsGuider, PromptsGuider, record_of, whole
from ._schema import kw, schema
from .solvers import sampler_output, sampler_recipe

CATEGORY = "trajectory/composition"
MOST_PROMPTS, MOST_MODELS = 8, 4


def check_models(patchers):
    """Raise ValueError, naming the inputs and the fix, for models that cannot run side by side."""
    formats = [patcher.get_model_object("latent_format") for patcher in patchers]
    for i, patcher in enumerate(patchers):
        for j in range(i):
            if patcher.is_clone(patchers[j]):
                raise ValueError(
                    f"model_{i + 1} and model_{j + 1} are patches of one loaded model, which has one set of weights at "
                    "a time. To compose LoRAs of one model, hook each to its prompt (Create Hook LoRA, Set CLIP Hooks) "
                    "and use SuperDiff Guider")
        kinds = [f"{type(f).__name__} with {f.latent_channels} channels" for f in (formats[0], formats[i])]
        if kinds[0] != kinds[1]:
            raise ValueError(f"model_{i + 1} works on latents {kinds[1]}, but model_1 on {kinds[0]}; compose models "
                             "that share a VAE")


def check_conditionings(pairs):
    for i, pair in enumerate(pairs[1:], 2):
        for name, conditioning in zip(("positive", "negative"), pair, strict=True):
            if any("hooks" in options for _, options in conditioning):
                raise ValueError(f"{name}_{i} has hooks, which act on model_1 alone; connect their LoRA to model_{i} "
                                 "instead")


def prompt_input(i, **options):
    return io.Conditioning.Input(f"prompt_{i}", tooltip="One of the prompts, with its own words alone.", **options)


def model_inputs(i, **options):
    """A model with its conditionings."""
    role = "Its schedule is the run's." if i == 1 else "Loaded beside model_1, with which it shares a VAE."
    return [
        io.Model.Input(f"model_{i}", tooltip=role, **options),
        io.Conditioning.Input(f"positive_{i}", tooltip=f"What model_{i} paints.", **options),
        io.Conditioning.Input(f"negative_{i}", tooltip=f"The negative of model_{i}.", **options),
    ]


def cfg_input():
    return io.Float.Input("cfg", default=7.5, min=1.0, max=30.0, step=0.1, tooltip=(
        "Guidance of each component. 1 is off."))  # fmt: skip


def guider_output():
    return io.Guider.Output(display_name="guider", tooltip=(
        "For SamplerCustomAdvanced. With SuperDiff Sampler it composes, with others it is the average."))  # fmt: skip


class SuperDiffGuider(io.ComfyNode):
    """GUIDER with several prompts."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectorySuperDiffGuider",
            display_name="SuperDiff Guider",
            category=CATEGORY,
            description=(
                "Several prompts side by side, for SuperDiff Sampler: pictures that are likely under all of them (AND) "
                "or under one of them (OR)."
            ),
            search_aliases=["superdiff", "superposition", "compose", "and", "or", "multiple prompts", "conjunction"],
            inputs=[
                io.Model.Input("model", tooltip="The model of all prompts."),
                *(prompt_input(i) for i in (1, 2)),
                io.Conditioning.Input("negative", tooltip="The negative of all prompts; empty text is usual."),
                cfg_input(),
                *(prompt_input(i, optional=True) for i in range(3, MOST_PROMPTS + 1)),
            ],
            outputs=[guider_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, negative, cfg, **prompts):
        guider = PromptsGuider(model)
        guider.set_prompts([prompts[name] for name in sorted(prompts) if prompts[name] is not None], negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


class SuperDiffMultiModelGuider(io.ComfyNode):
    """GUIDER with several models."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectorySuperDiffMultiModelGuider",
            display_name="SuperDiff Multi-Model Guider",
            category=CATEGORY,
            description=(
                "Several models side by side, each with its prompts, for SuperDiff Sampler. They may differ in kind "
                "(eps, v, EDM, flow) and schedule, but must share a latent format."
            ),
            search_aliases=["superdiff", "superposition", "ensemble", "two models", "compose models"],
            inputs=[
                *(made for i in (1, 2) for made in model_inputs(i)),
                cfg_input(),
                *(made for i in range(3, MOST_MODELS + 1) for made in model_inputs(i, optional=True)),
            ],
            outputs=[guider_output()],
        )

    @classmethod
    def execute(cls, cfg, **inputs):
        given = [i for i in range(1, MOST_MODELS + 1) if connected(inputs, i)]
        pairs = [(inputs[f"positive_{i}"], inputs[f"negative_{i}"]) for i in given]
        check_models([inputs[f"model_{i}"] for i in given])
        check_conditionings(pairs)
        guider = ModelsGuider([inputs[f"model_{i}"] for i in given])
        guider.set_pairs(pairs)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


def connected(inputs, i):
    """Whether there is an i-th model; raises ValueError for one that lacks some of its inputs."""
    names = [f"{name}_{i}" for name in ("model", "positive", "negative")]
    there = [name for name in names if inputs.get(name) is not None]
    missing = [name for name in names if name not in there]
    if there and missing:
        raise ValueError(f"model {i} lacks {' and '.join(missing)}; connect all of {', '.join(names)}, or none")
    return bool(there)


def nats(text):
    """The numbers of "0, 2.5" as floats. Raises ValueError for other text."""
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"bias is {text!r}; write one number for each prompt, such as 0, 2.5") from None


class SuperDiffSampler(io.ComfyNode):
    """SAMPLER that composes the components of a SuperDiff guider."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectorySuperDiffSampler",
            display_name="SuperDiff Sampler",
            category=CATEGORY,
            description=(
                "Composes the prompts or models of a SuperDiff guider while it samples, by the density that the "
                "picture has under each: AND makes it equally likely under all, OR lets it choose one."
            ),
            search_aliases=["superdiff", "superposition", "and", "or", "ito density", "compose"],
            inputs=[
                io.Combo.Input("mode", options=list(superposition.MODES), default="AND", tooltip=(
                    "AND keeps the picture equally likely under all prompts. OR follows the likeliest one. average is "
                    "the mean of the predictions, as Conditioning (Combine).")),
                io.Float.Input("temperature", default=1.0, min=0.0, max=1e6, step=0.01, tooltip=(
                    "Of OR: how much a nat of log-density counts. 0 is average, 1e6 the likeliest alone.")),
                io.String.Input("bias", default="0, 0", tooltip=(
                    "Nats in favour of each prompt, in their order; missing ones are 0. AND ends that much likelier "
                    "under it, OR chooses it more often.")),
                io.Combo.Input("integrator", options=list(superposition.INTEGRATORS), default="ancestral", tooltip=(
                    "ancestral is the exact transition, euler_maruyama the paper's step. ode is without noise, "
                    "experimental: it estimates divergences and makes twice the calls.")),
                kw(io.Float.Input, "kappa_clip", default=5.0, min=0.0, max=100.0, step=0.1, advanced=True, tooltip=(
                    "AND may weigh prompts beyond 0 and 1: this far at most. 0 is no limit, as in the paper.")),
                kw(io.Float.Input, "start_composing", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=(
                    "The first steps, up to this share, are the average.")),
                kw(io.Float.Input, "stop_composing", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=(
                    "The steps from this share on are the average again.")),
                kw(io.Combo.Input, "densities", options=list(superposition.DENSITIES), default="guided", advanced=True,
                    tooltip="Whose densities count: guided are those of the prompts at the guider's CFG, prompt those "
                            "without it, as in the paper: then AND weakens the prompt that guidance strengthens more."),
            ],
            outputs=[sampler_output()],
            not_idempotent=True,  # its record is one node's, and equal ones would share it
        )  # fmt: skip

    @classmethod
    def execute(cls, bias, **options):
        options["bias"] = nats(bias)
        superposition.check_options(**options)
        record = superposition.Record()
        return io.NodeOutput(sampler_recipe(superposition.sample_superdiff, record=record, **options))


class SuperDiffLog(io.ComfyNode):
    """What a SuperDiff Sampler did in its last run."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectorySuperDiffLog",
            display_name="SuperDiff Log",
            category=CATEGORY,
            description="Shows how the last run of a SuperDiff Sampler weighed its prompts, and their log-densities.",
            search_aliases=["superdiff", "kappa", "log likelihood", "density", "plot", "winner"],
            is_output_node=True,
            inputs=[
                io.Sampler.Input("sampler", tooltip="The SuperDiff Sampler; give each run one of its own."),
                io.Latent.Input("latent", tooltip="The result of its run, so that the log is made after it."),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="One for each image: the weights above the densities."),
                io.String.Output(display_name="csv", tooltip="One line for each image and step."),
                io.Int.Output(display_name="winner", is_output_list=True, tooltip=(
                    "The prompt, counted from 1, under which each image is likeliest; one number for each image.")),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, sampler, latent):
        record, latents = record_of(sampler), whole(latent["samples"])
        if record is None:
            raise ValueError("sampler is not a SuperDiff Sampler, so it has no log; connect one")
        if not record.is_of(latents):
            raise ValueError("latent is not the result of this sampler's last run, so there is no log of it. Connect "
                             "the SuperDiff Sampler and the latent of one and the same SamplerCustomAdvanced, and give "
                             "each run a SuperDiff Sampler of its own")
        run, images = record.run, len(latents)
        plots = torch.stack([plot(run, image) for image in range(images)])
        winners = (run.log_densities[-1].argmax(-1) + 1).tolist()
        return io.NodeOutput(plots, superposition.csv(run), winners, ui=ui.PreviewImage(plots, cls=cls))


def plot(run, image):
    """IMAGE [H, W, 3] of one item: its weights above its log-densities."""
    steps = list(range(1, len(run.sigmas) + 1))
    charts = [
        line_chart([(f"prompt {i + 1}", steps, values[:, image, i].tolist()) for i in range(values.shape[-1])],
                   title, "step", label, size=(800, 400))
        for values, title, label in (
            (run.kappas, f"Image {image + 1}: weights", "kappa"),
            (run.log_densities, "Log-densities less their mean", "nats"),
        )
    ]  # fmt: skip
    return torch.from_numpy(np.concatenate([np.asarray(chart) for chart in charts]) / np.float32(255))


NODES = [SuperDiffGuider, SuperDiffMultiModelGuider, SuperDiffSampler, SuperDiffLog]
