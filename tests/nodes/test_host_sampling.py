"""The sampling semantics that the pack relies on, in whichever host is active: the embedded one or a real one."""

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import host_models
import pytest
import torch
from exact_models import PATHS, gaussian_flow_map

KINDS = ("eps", "v", "edm", "flow")
SHAPE = (1, 4, 6, 6)
ORDER = {"euler": 1, "heun": 2, "dpmpp_2m": 2}


def noise_of(seed=1, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(patcher, sampler="euler", scheduler="normal", steps=6, cfg=1.0, latent=None, positive=0.4, negative=-0.2,
        **options):
    """Result of a KSampler node's run; positive and negative are means or CONDITIONING."""
    conds = [host_models.conditioning(c) if isinstance(c, float) else c for c in (positive, negative)]
    noise = options.pop("noise", None)
    noise = noise_of() if noise is None else noise
    latent = torch.zeros_like(noise) if latent is None else latent
    return comfy.sample.sample(
        patcher, noise, steps, cfg, sampler, scheduler, *conds, latent, disable_pbar=True, seed=3, **options)


def error(kind, sampler, sigmas, cfg):
    """Largest distance to the exact solution of the guided run from the same start."""
    start = {}

    def callback(step, x0, x, total):
        start.setdefault("x", x.clone())

    guider = host_models.guider(host_models.model(kind), cfg=cfg)
    noise = noise_of()
    solver = comfy.samplers.sampler_object(sampler)
    out = guider.sample(noise, torch.zeros_like(noise), solver, sigmas, callback=callback, disable_pbar=True)
    mean = -0.2 + cfg * 0.6
    path = PATHS["flow" if kind == "flow" else "ve"]
    exact = gaussian_flow_map(path, start["x"].double(), float(sigmas[0]), 0.0, mean, host_models.STD)
    return float((out.double() - exact).abs().max())


# the solution


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ORDER)
def test_samplers_converge_to_the_exact_flow(kind, sampler, cfg):
    # From moderate noise, so that few steps are in the asymptotic range; the last interval ends at zero with Euler.
    levels = {"eps": 5.0, "v": 5.0, "edm": 5.0, "flow": 0.98}
    errors = []
    for steps in (20, 40, 80):
        top = levels[kind]
        ramp = torch.linspace(top ** 0.25, 0.02 ** 0.25, steps) ** 4
        errors.append(error(kind, sampler, torch.cat([ramp, torch.zeros(1)]), cfg))
    assert errors[2] < 0.04 if ORDER[sampler] == 1 else errors[2] < 0.01
    assert errors[2] < 0.75 * errors[0]


@pytest.mark.parametrize("kind", KINDS)
def test_start_is_at_the_largest_sigma(kind):
    patcher = host_models.model(kind)
    sampling = patcher.get_model_object("model_sampling")
    sigma = sampling.sigma_max
    started = sampling.noise_scaling(sigma, noise_of(), torch.zeros(SHAPE), True)
    expected = sigma if kind == "flow" else (1 + sigma ** 2) ** 0.5
    assert torch.allclose(started, noise_of() * expected)


# schedules


def test_scheduler_names_in_the_hosts_order():
    expected = ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
                "kl_optimal"]
    assert [name for name in comfy.samplers.SCHEDULER_NAMES if name in expected] == expected
    assert comfy.samplers.KSampler.SCHEDULERS is comfy.samplers.SCHEDULER_NAMES
    assert comfy.samplers.KSampler.SAMPLERS is comfy.samplers.SAMPLER_NAMES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "scheduler", ["simple", "sgm_uniform", "karras", "exponential", "beta", "normal", "kl_optimal"])
def test_schedules_descend_to_zero(kind, scheduler):
    sampling = host_models.model(kind).get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, 10)
    assert sigmas.device.type == "cpu" and sigmas.dtype == torch.float32
    assert len(sigmas) == 11 and sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    assert float(sigmas[0]) == pytest.approx(float(sampling.sigma_max), rel=1e-4)


def test_unknown_scheduler_is_an_error():
    sampling = host_models.model("eps").get_model_object("model_sampling")
    with pytest.raises(ValueError, match="no_such_scheduler"):
        comfy.samplers.calculate_sigmas(sampling, "no_such_scheduler", 5)


def test_denoise_takes_the_end_of_a_longer_schedule():
    patcher = host_models.model("flow")
    sampler = comfy.samplers.KSampler(patcher, 5, torch.device("cpu"), "euler", "simple", denoise=0.4)
    sampling = patcher.get_model_object("model_sampling")
    assert torch.equal(sampler.sigmas, comfy.samplers.calculate_sigmas(sampling, "simple", 12)[-6:])


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_partial_runs_join_to_the_whole(kind):
    """First half with leftover noise, second half without new noise: the same as one run."""
    whole = run(host_models.model(kind))
    half = run(host_models.model(kind), last_step=3)
    rest = run(host_models.model(kind), latent=half, noise=torch.zeros(SHAPE), start_step=3)
    assert torch.allclose(rest, whole, atol=1e-4)


# batches and noise


def test_noise_of_a_batch_index_is_the_same_draw():
    latent = torch.zeros(3, 4, 5, 5)
    batch = comfy.sample.prepare_noise(torch.zeros(5, 4, 5, 5), 11, [0, 1, 2, 3, 4])
    picked = comfy.sample.prepare_noise(latent, 11, [4, 1, 1])
    assert torch.equal(picked, batch[[4, 1, 1]])
    assert torch.equal(comfy.sample.prepare_noise(latent[:1], 11), batch[:1])


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_item_of_a_batch_equals_the_item_alone(kind, cfg):
    noise = noise_of(shape=(3, 4, 6, 6))
    batch = run(host_models.model(kind), cfg=cfg, noise=noise)
    alone = run(host_models.model(kind), cfg=cfg, noise=noise[1:2])
    assert torch.allclose(batch[1:2], alone, atol=1e-5)


# masks


@pytest.mark.parametrize("sampler", ORDER)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_mask_keeps_the_rest_of_the_latent(kind, sampler):
    latent = noise_of(5)
    mask = torch.zeros(1, 48, 48)
    mask[:, :24] = 1
    out = run(host_models.model(kind), sampler, latent=latent, noise_mask=mask, denoise=0.7)
    assert torch.allclose(out[:, :, 4:], latent[:, :, 4:], atol=1e-4)
    assert (out[:, :, :2] - latent[:, :, :2]).abs().max() > 0.05


def test_full_mask_changes_nothing():
    latent = noise_of(5)
    free = run(host_models.model("flow"), latent=latent, denoise=0.6)
    masked = run(host_models.model("flow"), latent=latent, denoise=0.6, noise_mask=torch.ones(1, 48, 48))
    assert torch.allclose(free, masked, atol=1e-6)


def test_denoise_mask_function_sees_sigmas_and_decides():
    patcher = host_models.model("flow").clone()
    seen = []

    def nothing(sigma, mask, extra_options):
        seen.append((sigma.shape, extra_options["sigmas"].shape))
        return torch.zeros_like(mask)

    patcher.set_model_denoise_mask_function(nothing)
    latent = noise_of(5)
    out = run(patcher, latent=latent, noise_mask=torch.ones(1, 6, 6))
    assert torch.allclose(out, latent, atol=1e-5)
    assert seen == [((1,), (7,))] * 6


# guidance


def test_cfg_one_never_evaluates_the_negative():
    patcher = host_models.model("flow")
    run(patcher, steps=3)
    assert patcher.model.diffusion_model.calls == [1, 1, 1]
    other = patcher.clone()
    other.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    patcher.model.diffusion_model.calls.clear()
    run(other, steps=3)
    assert patcher.model.diffusion_model.calls == [2, 2, 2]


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_arguments_of_the_cfg_functions(cfg):
    patcher = host_models.model("eps").clone()
    seen = {}

    def pre(args):
        seen["pre"] = (args["conds"][1] is None, float(args["conds_out"][1].abs().max()) == 0)
        return args["conds_out"]

    def post(args):
        seen["post"] = (args["uncond"] is None, float(args["uncond_denoised"].abs().max()) == 0)
        return args["denoised"]

    patcher.set_model_sampler_pre_cfg_function(pre)
    patcher.set_model_sampler_post_cfg_function(post)
    run(patcher, steps=2, cfg=cfg)
    assert seen == {"pre": (cfg == 1,) * 2, "post": (cfg == 1,) * 2}


def test_cfg_function_of_the_model_replaces_the_formula():
    plain = run(host_models.model("eps"), cfg=3.0)
    patcher = host_models.model("eps").clone()
    patcher.set_model_sampler_cfg_function(lambda args: args["uncond"] + 3.0 * (args["cond"] - args["uncond"]))
    assert torch.allclose(run(patcher, cfg=7.0), plain, atol=1e-4)
    patcher.set_model_sampler_cfg_function(lambda cond, uncond, scale: uncond + 3.0 * (cond - uncond))
    assert torch.allclose(run(patcher, cfg=7.0), plain, atol=1e-4)


# conditionings


def test_masked_conditionings_share_the_picture():
    left = torch.zeros(1, 6, 6)
    left[..., :3] = 1
    both = [[tensor, {"mask": mask}] for mask, mean in ((left, 1.0), (1 - left, -1.0))
            for tensor, _ in host_models.conditioning(mean)]
    out = run(host_models.model("flow"), positive=both)
    for half, mean in ((out[..., :3], 1.0), (out[..., 3:], -1.0)):
        alone = run(host_models.model("flow"), positive=mean)
        assert torch.allclose(half, alone[..., :3] if mean > 0 else alone[..., 3:], atol=1e-5)


def test_strengths_weigh_conditionings():
    two = [[tensor, {"strength": strength}] for strength, mean in ((3.0, 1.0), (1.0, -1.0))
           for tensor, _ in host_models.conditioning(mean)]
    mixed, single = (run(host_models.model("eps"), positive=positive) for positive in (two, 0.5))
    assert torch.allclose(mixed, single, atol=1e-3)


def test_conditionings_take_turns():
    early = [[host_models.conditioning(1.0)[0][0], {"start_percent": 0.0, "end_percent": 0.5}],
             [host_models.conditioning(-1.0)[0][0], {"start_percent": 0.5001, "end_percent": 1.0}]]
    patcher = host_models.model("flow")
    sampling = patcher.get_model_object("model_sampling")
    contexts = []

    def wrapper(apply_model, args):
        contexts.append((float(args["timestep"][0]), float(args["c"]["c_crossattn"].mean())))
        return apply_model(args["input"], args["timestep"], **args["c"])

    patcher.set_model_unet_function_wrapper(wrapper)
    run(patcher, positive=early, steps=8)
    border = sampling.percent_to_sigma(0.5)
    assert [mean for _, mean in contexts] == [1.0 if sigma >= border else -1.0 for sigma, _ in contexts]
    assert {mean for _, mean in contexts} == {1.0, -1.0}


# patches


def test_wrappers_run_from_the_outside_to_the_inside():
    kinds = comfy.patcher_extension.WrappersMP
    order = (kinds.OUTER_SAMPLE, kinds.PREPARE_SAMPLING, kinds.SAMPLER_SAMPLE, kinds.PREDICT_NOISE,
             kinds.CALC_COND_BATCH, kinds.APPLY_MODEL)
    patcher = host_models.model("flow").clone()
    trace = []

    def tracing(name):
        def wrapper(executor, *args, **kwargs):
            trace.append(name)
            return executor(*args, **kwargs)
        return wrapper

    for kind in order:
        patcher.add_wrapper_with_key(kind, "test", tracing(kind))
    run(patcher, steps=1)
    assert trace == list(order)
    run(host_models.model("flow"), steps=1)
    assert trace == list(order)


def test_clone_does_not_change_its_original():
    patcher = host_models.model("eps")
    clone = patcher.clone()
    clone.set_model_patch(lambda *args: None, "test")
    clone.set_model_patch_replace(lambda *args: None, "dit", "double_block", 0)
    clone.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    clone.add_wrapper("predict_noise", lambda executor, *args: executor(*args))
    assert patcher.model_options == {"transformer_options": {}}
    assert patcher.get_all_wrappers("predict_noise") == []
    assert clone.is_clone(patcher) and clone.model is patcher.model


def test_object_patch_belongs_to_its_clone():
    patcher = host_models.model("flow")
    original = patcher.get_model_object("model_sampling")
    clone = patcher.clone()
    other = type(original)(patcher.model.model_config)
    other.set_parameters(shift=9.0, multiplier=1.0)
    clone.add_object_patch("model_sampling", other)
    before, shifted, after = run(patcher), run(clone), run(patcher)
    assert torch.equal(before, after) and not torch.equal(before, shifted)
    assert clone.get_model_object("model_sampling") is other
    run(clone)
    assert patcher.get_model_object("model_sampling") is original


def test_weight_patch_is_written_for_its_clone_only():
    patcher = host_models.model("eps")
    name = "diffusion_model.anchor"
    clone = patcher.clone()
    assert list(clone.add_patches({name: (torch.full((1,), 2.0),), "no.such.weight": (torch.ones(1),)}, 0.5)) == [name]
    values = []
    for current in (clone, patcher, clone):
        comfy.model_management.load_models_gpu([current])
        values.append(float(patcher.model.diffusion_model.anchor))
    assert values == [1.0, 0.0, 1.0]
    comfy.model_management.load_models_gpu([patcher])


# runs


def test_progress_is_reported_once_a_step():
    reports = []
    run(host_models.model("flow"), "heun", steps=5, callback=lambda step, x0, x, total: reports.append((step, total)))
    assert reports == [(i, 5) for i in range(5)]


def test_interruption_leaves_the_model_ready():
    patcher = host_models.model("flow")

    def stop(step, x0, x, total):
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(patcher, callback=stop)
    assert not comfy.model_management.processing_interrupted()
    assert torch.equal(run(patcher), run(host_models.model("flow")))


def test_no_sigmas_return_the_latent():
    latent = noise_of(5)
    guider = host_models.guider(host_models.model("flow"))
    out = guider.sample(noise_of(), latent, comfy.samplers.sampler_object("euler"), torch.FloatTensor([]))
    assert torch.equal(out, latent)


def test_empty_latent_gets_the_models_channels():
    patcher = host_models.model("flow", channels=16)
    assert comfy.sample.fix_empty_latent_channels(patcher, torch.zeros(2, 4, 5, 5)).shape == (2, 16, 5, 5)
    assert comfy.sample.fix_empty_latent_channels(patcher, torch.ones(2, 4, 5, 5)).shape == (2, 4, 5, 5)


def test_nested_latents_are_sampled_packed():
    """Since 0.3.67 samplers see [B, 1, N]; each part comes back in its own shape."""
    nested = pytest.importorskip("comfy.nested_tensor")
    parts = [torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 7, 2)]
    latent = nested.NestedTensor(parts)
    noise = comfy.sample.prepare_noise(latent, 5)
    shapes = []

    def callback(step, x0, x, total):
        shapes.append([part.shape for part in x0.unbind()])

    guider = host_models.guider(host_models.model("flow"))
    sigmas = torch.tensor([1.0, 0.6, 0.0])
    out = guider.sample(
        noise, latent, comfy.samplers.sampler_object("euler"), sigmas, callback=callback, disable_pbar=True, seed=5)
    assert [part.shape for part in out.unbind()] == [part.shape for part in parts]
    assert shapes == [[part.shape for part in parts]] * 2
    alone = guider.sample(
        noise.unbind()[0], parts[0], comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=5)
    assert torch.allclose(out.unbind()[0], alone, atol=1e-5)


# the miniatures' class of network


@pytest.fixture(scope="module")
def tiny_mmdit():
    """ModelPatcher of a random SD3-class model of depth 2, loaded as a diffusion model file would be."""
    diffusers = pytest.importorskip("diffusers")
    import comfy.sd

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_attention_heads=2,
            attention_head_dim=64, joint_attention_dim=32, caption_projection_dim=128, pooled_projection_dim=24,
            pos_embed_max_size=12, qk_norm="rms_norm")
    return comfy.sd.load_diffusion_model_state_dict(dict(network.state_dict()))


def _velocity(patcher, height, width, **options):
    comfy.model_management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(1)
    shapes = ((16, height, width), (5, 32), (24,))
    x, context, pooled = (torch.randn(2, *shape, generator=generator) for shape in shapes)
    with torch.no_grad():
        return patcher.model.diffusion_model(
            x, torch.tensor([700.0, 30.0]), context=context, y=pooled, transformer_options=options)


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (2, 24)])
def test_mmdit_takes_any_latent_size(tiny_mmdit, size):
    out = _velocity(tiny_mmdit, *size)
    assert out.shape == (2, 16, *size) and bool(out.isfinite().all())


def test_mmdit_blocks_can_be_replaced(tiny_mmdit):
    seen = []

    def replacement(args, extra):
        seen.append(sorted(args))
        return extra["original_block"](args)

    def skip(args, extra):
        return {"img": args["img"], "txt": args["txt"]}

    plain = _velocity(tiny_mmdit, 8, 8)
    same = _velocity(tiny_mmdit, 8, 8, patches_replace={"dit": {("double_block", 1): replacement}})
    skipped = _velocity(tiny_mmdit, 8, 8, patches_replace={"dit": {("double_block", 0): skip}})
    assert torch.equal(plain, same) and not torch.allclose(plain, skipped)
    assert seen == [["img", "transformer_options", "txt", "vec"]]


def test_mmdit_attention_can_be_replaced(tiny_mmdit):
    shapes = []

    def override(attention, q, k, v, heads, **options):
        shapes.append((q.shape, heads))
        return attention(q, k, v, heads, **options)

    out = _velocity(tiny_mmdit, 8, 6, optimized_attention_override=override)
    assert torch.allclose(out, _velocity(tiny_mmdit, 8, 6))
    assert shapes == [((2, 5 + 12, 128), 2)] * 2  # text tokens, then image tokens


def test_mmdit_in_bfloat16_stays_close(tiny_mmdit):
    low = tiny_mmdit.clone()
    low.set_model_compute_dtype(torch.bfloat16)
    conds = [[torch.full((1, 4, 32), 0.3), {"pooled_output": torch.full((1, 24), 0.1)}]]
    options = {"noise": noise_of(shape=(1, 16, 8, 8)), "positive": conds, "negative": conds, "steps": 3}
    out, exact = run(low, **options), run(tiny_mmdit, **options)
    assert out.dtype == torch.float32
    assert (out - exact).abs().max() < 0.05 * exact.abs().max()
