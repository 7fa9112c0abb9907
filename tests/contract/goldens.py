"""Numbers and answers that a host gives to fixed questions; run inside whichever host can be imported as ``comfy``.

Every function in :data:`SECTIONS` returns ``{name: list of floats | JSON value}``. The questions are small and
deterministic: analytic model, CPU, float32, drawn noise only where the noise itself is the question.
"""

import copy
import hashlib
import math

import comfy.model_base
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import torch
from toy import UNET, condition, fill, toy_model, toy_unet

SCHEDULERS = (
    "simple",
    "normal",
    "karras",
    "exponential",
    "sgm_uniform",
    "ddim_uniform",
    "beta",
    "linear_quadratic",
    "kl_optimal",
)
SAMPLERS = ("euler", "heun", "dpmpp_2m")
SIGMAS = (0.05, 0.3, 0.7, 0.95)
SHAPE = (1, 16, 2, 2)


def _floats(tensor) -> list[float | None]:
    """Values with nine significant digits, None for what is no number (JSON has no word for it)."""
    values = torch.as_tensor(tensor).detach().double().flatten().tolist()
    return [float(f"{v:.9g}") if math.isfinite(v) else None for v in values]


def _fixed(shape=SHAPE, phase: float = 0.0) -> torch.Tensor:
    """A fixed smooth tensor with values in (-1.6, 1.6)."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (1.6 * torch.sin(1.7 * count + phase)).float().reshape(shape)


# --- model_sampling -------------------------------------------------------------------------------------------------


class _Settings:
    def __init__(self, **sampling_settings):
        self.sampling_settings = sampling_settings


def _model_samplings() -> dict:
    ms = comfy.model_sampling

    def make(schedule, prediction, **settings):
        return type("ModelSampling", (schedule, prediction), {})(_Settings(**settings))

    return {
        "eps": make(ms.ModelSamplingDiscrete, ms.EPS),
        "v": make(ms.ModelSamplingDiscrete, ms.V_PREDICTION),
        "edm": make(ms.ModelSamplingContinuousEDM, ms.EDM),
        "flow_shift1": make(ms.ModelSamplingDiscreteFlow, ms.CONST, shift=1.0),
        "flow_shift3": make(ms.ModelSamplingDiscreteFlow, ms.CONST, shift=3.0),
    }


def sigma_tables() -> dict:
    out = {}
    for kind, sampling in _model_samplings().items():
        out[f"sigmas/{kind}/range"] = _floats([sampling.sigma_min, sampling.sigma_max])
        out[f"sigmas/{kind}/percent_to_sigma"] = _floats([sampling.percent_to_sigma(p / 8) for p in range(9)])
        sigmas = torch.tensor([0.03, 0.2, 0.6, 0.99]) * float(sampling.sigma_max)
        out[f"sigmas/{kind}/timestep"] = _floats(sampling.timestep(sigmas))
        out[f"sigmas/{kind}/sigma"] = _floats(sampling.sigma(sampling.timestep(sigmas)))
        for scheduler in SCHEDULERS:
            if scheduler not in comfy.samplers.SCHEDULER_NAMES:
                continue
            for steps in (1, 5, 20):
                sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
                out[f"sigmas/{kind}/{scheduler}/{steps}"] = _floats(sigmas)
    return out


def prediction_types() -> dict:
    out = {}
    noise, latent, output = _fixed((1, 4, 1, 2)), _fixed((1, 4, 1, 2), 1.0), _fixed((1, 4, 1, 2), 2.0)
    for kind, sampling in _model_samplings().items():
        for sigma in SIGMAS:
            s = torch.tensor([sigma])
            key = f"prediction/{kind}/{sigma}"
            out[f"{key}/calculate_input"] = _floats(sampling.calculate_input(s, noise))
            out[f"{key}/calculate_denoised"] = _floats(sampling.calculate_denoised(s, output, noise))
            out[f"{key}/noise_scaling"] = _floats(sampling.noise_scaling(s, noise.clone(), latent.clone()))
            out[f"{key}/noise_scaling_max"] = _floats(sampling.noise_scaling(s, noise.clone(), latent.clone(), True))
            out[f"{key}/inverse_noise_scaling"] = _floats(sampling.inverse_noise_scaling(s, latent.clone()))
    return out


# --- guidance -------------------------------------------------------------------------------------------------------


def _one_call(model, positive, negative, cfg: float, sigma: float) -> torch.Tensor:
    """The guided prediction at one sigma, through the whole call chain of a custom sampler."""

    def sample_once(denoiser, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        return denoiser(x, sigmas[0] * x.new_ones([x.shape[0]]), **(extra_args or {}))

    sampler = comfy.samplers.KSAMPLER(sample_once)
    sigmas = torch.tensor([sigma, 0.0])
    return comfy.sample.sample_custom(
        model, _fixed(), cfg, sampler, sigmas, positive, negative, _fixed(phase=1.0), disable_pbar=True, seed=1
    )


def guidance() -> dict:
    out = {}
    positive, negative = condition(0.4), condition(-0.2)
    args_seen: dict[str, list[str]] = {}

    def pre_cfg(args):
        args_seen["pre_cfg"] = sorted(args)
        cond, *rest = args["conds_out"]
        return [cond * 1.1, *rest]

    def post_cfg(args):
        args_seen["post_cfg"] = sorted(args)
        return args["denoised"] * 0.9 + 0.05 * args["cond_denoised"] + 0.03 * args["uncond_denoised"]

    def sampler_cfg(args):
        args_seen["sampler_cfg"] = sorted(args)
        return args["uncond"] + args["cond_scale"] * 0.5 * (args["cond"] - args["uncond"]) + 0.01 * args["input"]

    def unet_wrapper(apply_model, args):
        args_seen["unet_wrapper"] = sorted(args)
        return apply_model(args["input"], args["timestep"], **args["c"]) * 0.8

    hooks = {
        "plain": lambda m: None,
        "pre_cfg": lambda m: m.set_model_sampler_pre_cfg_function(pre_cfg),
        "post_cfg": lambda m: m.set_model_sampler_post_cfg_function(post_cfg),
        "post_cfg_disable_cfg1": lambda m: m.set_model_sampler_post_cfg_function(
            post_cfg, disable_cfg1_optimization=True
        ),
        "sampler_cfg": lambda m: m.set_model_sampler_cfg_function(sampler_cfg),
        "unet_wrapper": lambda m: m.set_model_unet_function_wrapper(unet_wrapper),
    }
    for flow in (False, True):
        for name, install in hooks.items():
            for cfg in (1.0, 4.0):
                model = toy_model(flow).clone()
                install(model)
                sigma = 0.6 if flow else 1.5
                key = f"guidance/{'flow' if flow else 'eps'}/{name}/cfg{cfg:g}"
                out[key] = _floats(_one_call(model, positive, negative, cfg, sigma))
        two = condition(0.4) + condition(0.1)
        out[f"guidance/{'flow' if flow else 'eps'}/combined"] = _floats(
            _one_call(toy_model(flow), two, negative, 4.0, 0.6)
        )
    out.update({f"hook_args/{name}": keys for name, keys in args_seen.items()})
    return out


def wrappers() -> dict:
    """The order in which the wrappers around one model call run, and what each is given."""
    types = comfy.patcher_extension.WrappersMP
    names = ("OUTER_SAMPLE", "SAMPLER_SAMPLE", "PREDICT_NOISE", "CALC_COND_BATCH", "APPLY_MODEL")
    trace: list[str] = []
    model = toy_model(True).clone()
    for name in names:

        def wrap(executor, *args, _name=name, **kwargs):
            trace.append(f"{_name} of {type(executor.class_obj).__name__ if executor.class_obj is not None else None}")
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(getattr(types, name), "contract", wrap)
    _one_call(model, condition(0.4), condition(-0.2), 3.0, 0.6)
    return {"wrappers/order": trace}


# --- noise and runs -------------------------------------------------------------------------------------------------


def noise() -> dict:
    from comfy_extras.nodes_custom_sampler import DisableNoise, RandomNoise

    latent = {"samples": torch.zeros(3, 4, 4, 4)}
    out = {}
    first = getattr(RandomNoise, "execute", None)

    def noise_object(node, *args):
        return node.execute(*args)[0] if first else node().get_noise(*args)[0]

    random = noise_object(RandomNoise, 42)
    out["noise/random"] = _floats(random.generate_noise(latent)[0].flatten()[:16])
    out["noise/random_item2"] = _floats(random.generate_noise(latent)[2].flatten()[:16])
    picked = random.generate_noise({**latent, "batch_index": [4, 0, 4]})
    out["noise/batch_index"] = _floats(picked[:, 0, 0].flatten())
    out["noise/prepare_noise"] = _floats(comfy.sample.prepare_noise(latent["samples"], 7)[1].flatten()[:16])
    indexed = comfy.sample.prepare_noise(latent["samples"][:2], 7, [2, 1])
    out["noise/prepare_noise_indices"] = _floats(indexed[:, 0, 0].flatten())
    out["noise/disabled"] = _floats(noise_object(DisableNoise).generate_noise(latent).abs().sum())
    out["noise/seeds"] = [random.seed, noise_object(DisableNoise).seed]
    return out


def runs() -> dict:
    out = {}
    positive, negative = condition(0.4), condition(-0.2)
    mask = torch.zeros(1, 2, 2)
    mask[:, :, 1] = 1.0
    mask[:, 1, 0] = 0.5
    for flow in (False, True):
        kind = "flow" if flow else "eps"

        def run(
            key, sampler="euler", scheduler="simple", cfg=3.0, steps=6, shape=SHAPE, kind=kind, flow=flow, **options
        ):
            steps_seen = []

            def callback(step, x0, x, total_steps):
                steps_seen.append(step * 1000 + total_steps)

            samples = comfy.sample.sample(
                toy_model(flow), _fixed(shape), steps, cfg, sampler, scheduler, positive, negative, _fixed(shape, 1.0),
                callback=callback, disable_pbar=True, seed=3, **options,
            )  # fmt: skip
            out[f"runs/{kind}/{key}"] = _floats(samples)
            out[f"runs/{kind}/{key}/callback"] = steps_seen

        for sampler in SAMPLERS:
            run(sampler, sampler=sampler)
            run(f"{sampler}_karras_cfg1", sampler=sampler, scheduler="karras", cfg=1.0)
        run("masked", noise_mask=mask)
        run("masked_dpmpp_2m", sampler="dpmpp_2m", noise_mask=mask)
        run("masked_batch", shape=(2, 16, 2, 2), noise_mask=mask)
        run("denoise_half", denoise=0.5)
        run("denoise_zero", denoise=0.0)
        run("first_half", start_step=0, last_step=3)
        run("second_half", start_step=3, last_step=10, disable_noise=True)
        run("first_half_full", start_step=0, last_step=3, force_full_denoise=True)
    return out


# --- graphs ---------------------------------------------------------------------------------------------------------


def graph_builder() -> dict:
    from comfy_execution.graph_utils import GraphBuilder, is_link

    GraphBuilder.set_default_prefix("7", 0, 0)
    first = GraphBuilder()
    node = first.node("EmptyLatentImage", width=64)
    named = first.node("VAEDecode", "decode", samples=node.out(0))
    second = GraphBuilder()
    other = second.node("EmptyLatentImage")
    return {
        "graph/prefixes": [first.prefix, second.prefix],
        "graph/ids": [node.id, named.id, other.id],
        "graph/finalized": first.finalize(),
        "graph/is_link": [is_link(v) for v in (["1", 0], ["1", 0.0], [1, 0], ["1"], ("1", 0), ["1", "0"], None)],
    }


# --- networks -------------------------------------------------------------------------------------------------------

#: {name: options of the host's UNet beside those of `toy.UNET`}.
UNETS = {
    "plain": {},
    "heads": {"num_heads": 4, "num_head_channels": -1, "transformer_depth_middle": 2},
    "linear_vector": {"use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 20},
    "no_middle_transformer": {"transformer_depth_middle": -1},
    "no_middle": {"transformer_depth_middle": -2},
    "pooled": {"conv_resample": False},
}


def _run_unet(network, options: dict, control=None, size=(6, 5), **inputs) -> torch.Tensor:
    return network(
        _fixed((2, 4, *size)).double(), torch.tensor([700.0, 30.5]), context=_fixed((2, 3, 12), 1.0).double(),
        control=control, transformer_options=options, **inputs,
    )  # fmt: skip


def unets() -> dict:
    """What the host's UNet computes, and where controls go."""
    out = {}
    for name, changes in UNETS.items():
        network = toy_unet(**changes)
        inputs = {"y": _fixed((2, 20), 2.0).double()} if "adm_in_channels" in changes else {}
        sizes = [(6, 4)] if name == "pooled" else [(6, 4), (7, 5)]
        for size in sizes:
            out[f"unet/{name}/{size[0]}x{size[1]}"] = _floats(_run_unet(network, {}, size=size, **inputs))
    shapes = [(32, 6, 5), (32, 6, 5), (32, 3, 3), (64, 3, 3)]  # of what the four input blocks yield
    control = {
        "input": [_fixed((2, *shape), 3.0) for shape in reversed(shapes)],
        "middle": [_fixed((2, 64, 3, 3), 4.0)],
        "output": [_fixed((2, 7, 3, 3)), None, *[_fixed((2, *shape), 5.0) for shape in shapes[2:]]],
    }
    out["unet/control"] = _floats(_run_unet(toy_unet(), {}, control))
    out["unet/control/left"] = {part: len(rest) for part, rest in control.items()}
    return out


def unet_patches() -> dict:
    """Which patches run where and in which order, what they are given, and that what they return is used."""
    trace: list[str] = []
    keys: dict[str, list[str]] = {}

    def note(name, options, *tensors):
        keys[name] = sorted(str(key) for key in options)
        place = [options.get(key) for key in ("block", "transformer_index", "block_index", "activations_shape")]
        trace.append(f"{name} {place} {[list(t.shape) for t in tensors]}")

    def features(name, factor):
        def patch(h, options):
            note(name, options, h)
            return h * factor

        return patch

    def attended(name):
        def patch(n, context, value, options):
            note(name, options, n, context, value)
            return n * 0.9, context * 1.1, value * 0.8

        return patch

    def replaced(name):
        def patch(q, k, v, options):
            note(name, options, q, k, v)
            return q * 0.5 + k.mean(1, keepdim=True) + v.mean(1, keepdim=True)

        return patch

    def output_block(h, skip, options):
        note("output_block_patch", options, h, skip)
        return h * 0.95, skip * 1.05

    def embedding(emb, width, options):
        note(f"emb_patch {width}", options, emb)
        return emb * 1.2

    names = ("attn1_output_patch", "attn2_output_patch", "middle_patch", "input_block_patch",
             "input_block_patch_after_skip")  # fmt: skip
    patches = {name: [features(name, 1 + 0.02 * i), features(f"second {name}", 0.99)] for i, name in enumerate(names)}
    patches.update(
        attn1_patch=[attended("attn1_patch")], attn2_patch=[attended("attn2_patch")],
        output_block_patch=[output_block], emb_patch=[embedding],
    )  # fmt: skip
    replacements = {
        "attn1": {("input", 3): replaced("attn1 block"), ("middle", 0, 0): replaced("attn1 one")},
        "attn2": {("input", 3, 1): replaced("attn2 one"), ("output", 1): replaced("attn2 block")},
    }
    options = {"patches": patches, "patches_replace": replacements, "mine": 1}
    out = {"unet/patches": _floats(_run_unet(toy_unet(), options))}
    out["unet/patches/trace"] = trace
    out.update({f"unet/patches/options/{name}": given for name, given in keys.items()})
    out["unet/options_after"] = {key: value for key, value in options.items() if not key.startswith("patches")}
    after: list[list[str]] = []

    def after_middle(args):
        after.append(sorted(args))
        return {"h": args["h"] * 0.7}

    out["unet/middle_after"] = _floats(_run_unet(toy_unet(), {"patches": {"middle_block_after_patch": [after_middle]}}))
    out["unet/middle_after/arguments"] = after
    return out


class _Halve(torch.nn.Module):
    def forward(self, x):
        return x / 2


def unet_extensions() -> dict:
    """Attention overrides, wrappers around the network, and blocks that a pack puts together anew."""
    out: dict = {}
    seen: list = []

    def override(attention, *args, **kwargs):
        seen.append([[list(a.shape) if torch.is_tensor(a) else a for a in args], sorted(kwargs)])
        return attention(*args, **kwargs) * 0.5

    def wrapper(executor, *args, **kwargs):
        kinds = [type(a).__name__ for a in args]
        out["unet/wrapper/given"] = [type(executor.class_obj).__name__, kinds, sorted(kwargs)]
        return executor(*args, **kwargs) + 1.0

    def handler(layer, x, emb, context, options, *others):
        size = [list(o) if isinstance(o, torch.Size) else o for o in others]
        out["unet/handler/given"] = [list(x.shape), list(emb.shape), list(context.shape), list(options["block"]), size]
        return layer(x) * 0.9

    network = toy_unet()
    out["unet/override"] = _floats(_run_unet(network, {"optimized_attention_override": override}))
    out["unet/override/given"] = seen
    options: dict = {}
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    comfy.patcher_extension.add_wrapper_with_key(kind, "contract", wrapper, options)
    out["unet/wrapper"] = _floats(_run_unet(network, options))
    rebuilt = copy.copy(network)
    rebuilt._modules = dict(network._modules)
    blocks = list(network.output_blocks)
    blocks[1] = type(blocks[1])(*blocks[1], _Halve())
    rebuilt.output_blocks = torch.nn.ModuleList(blocks)
    rebuilt.middle_block = type(network.middle_block)(_Halve())
    out["unet/rebuilt"] = _floats(_run_unet(rebuilt, {}))
    patches = {"forward_timestep_embed_patch": [(_Halve, handler)]}
    out["unet/handler"] = _floats(_run_unet(rebuilt, {"patches": patches}))
    return out


def diffusers_keys() -> dict:
    """How many keys of diffusers' UNet the host knows for the layouts in use, and a digest of what it calls them."""
    sd15 = {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2,
            "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}  # fmt: skip
    three = {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4]}
    sdxl = {**three, "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}  # fmt: skip
    module = {**three, "transformer_depth": [0, 0, 1, 1, 1, 1],
              "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "transformer_depth_middle": 1}  # fmt: skip
    configs = {"sd15": sd15, "sdxl": sdxl, "one_more_step": module, "toy": UNET, "other": {"depth": 2}}
    out = {}
    for name, config in configs.items():
        names = comfy.utils.unet_to_diffusers(config)
        digest = hashlib.sha256(repr(sorted(names.items())).encode()).hexdigest()
        out[f"unet_to_diffusers/{name}"] = [len(names), digest]
    return out


def autoencoder() -> dict:
    """A VAE of TAESD's layout with the four channels and the scale of Stable Diffusion 1."""
    network = comfy.taesd.taesd.TAESD(latent_channels=4)
    fill(network)
    weights = {**network.state_dict(), "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
    vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    pictures = _fixed((1, 16, 24, 3)) / 4 + 0.5
    latents = vae.encode(pictures)
    return {
        "vae/taesd4/channels": [vae.latent_channels, vae.downscale_ratio],
        "vae/taesd4/encode": _floats(latents),
        "vae/taesd4/decode": _floats(vae.decode(latents)[0, ::4]),
    }


SECTIONS = (
    sigma_tables, prediction_types, guidance, wrappers, noise, runs, graph_builder, unets, unet_patches,
    unet_extensions, diffusers_keys, autoencoder,
)  # fmt: skip


def compute() -> tuple[dict, dict[str, str]]:
    """All goldens, and {section: error} for the sections that this host cannot answer."""
    out: dict = {}
    errors: dict[str, str] = {}
    with torch.inference_mode():
        for section in SECTIONS:
            try:
                out.update(section())
            except Exception as error:  # one missing piece must not hide the other answers
                errors[section.__name__] = f"{type(error).__name__}: {error}"
    return out, errors
