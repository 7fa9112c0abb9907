"""SuperDiff inside a host, on Gaussian models whose means the prompts give."""

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import host_models
import pytest
import torch

KINDS = ("eps", "v", "edm", "flow")
MODES = ("AND", "OR", "average")
SHAPE = (2, 4, 6, 6)
STEPS = 12


def noise_of(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def execute(host, node_id, **inputs):
    cls = host.node_table[node_id]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    return cls.execute(**{**defaults, **inputs}).args


def prompts_guider(host, patcher, means=(0.4, -0.3), negative=0.0, cfg=2.0):
    prompts = {f"prompt_{i}": host_models.conditioning(mean) for i, mean in enumerate(means, 1)}
    negative = host_models.conditioning(negative)
    return execute(host, "TrajectorySuperDiffGuider", model=patcher, negative=negative, cfg=cfg, **prompts)[0]


def models_guider(host, patchers, means=(0.4, -0.3), negative=0.0, cfg=2.0):
    inputs = {}
    for i, (patcher, mean) in enumerate(zip(patchers, means, strict=True), 1):
        inputs |= {f"model_{i}": patcher, f"positive_{i}": host_models.conditioning(mean),
                   f"negative_{i}": host_models.conditioning(negative)}  # fmt: skip
    return execute(host, "TrajectorySuperDiffMultiModelGuider", cfg=cfg, **inputs)[0]


def sampler_of(host, **inputs):
    return execute(host, "TrajectorySuperDiffSampler", **inputs)[0]


def sigmas_of(patcher, kind, steps=STEPS):
    scheduler = "simple" if kind == "flow" else "karras"
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, steps)


def sample(guider, sampler, kind, noise=None, latent=None, mask=None, sigmas=None, **options):
    noise = noise_of(0) if noise is None else noise
    latent = torch.zeros_like(noise) if latent is None else latent
    sigmas = sigmas_of(guider.model_patcher, kind) if sigmas is None else sigmas
    return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=5, **options)


def run_of(sampler):
    return sampler.extra_options["record"].run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("integrator", ["ancestral", "euler_maruyama", "ode"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_every_kind_of_model(host, kind, mode, integrator, cfg):
    patcher = host_models.model(kind)
    sampler, reports = sampler_of(host, mode=mode, integrator=integrator), []

    def callback(step, denoised, x, total):
        reports.append((step, total, denoised.shape, x.shape))

    out = sample(prompts_guider(host, patcher, cfg=cfg), sampler, kind, callback=callback)
    assert out.shape == SHAPE and out.isfinite().all()
    assert reports == [(i, STEPS, SHAPE, SHAPE) for i in range(STEPS)]
    run, calls = run_of(sampler), patcher.model.diffusion_model.calls
    assert run.kappas.shape == (STEPS, 2, 2)
    assert sum(calls) == 2 * 3 * (STEPS if integrator != "ode" else 2 * STEPS - (kind == "flow"))
    if mode == "AND":  # halfway between the means 0.4 and -0.3 of equal Gaussians, both are as likely
        assert run.log_densities[-1].abs().max() < 1e-2
        assert abs(float(out.mean()) - 0.05) < 0.1
    if mode == "OR":
        assert run.log_densities[-1].abs().min() > 1
        assert ((out.mean((1, 2, 3)) > 0.05) == (run.log_densities[-1, :, 0] > 0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_are_the_same_are_one(host, kind):
    """The run is the one of the average, and with the ODE that of the host's guider."""
    same = prompts_guider(host, host_models.model(kind), (0.4, 0.4))
    out = sample(same, sampler_of(host, mode="AND"), kind)
    assert torch.allclose(out, sample(same, sampler_of(host, mode="average"), kind), atol=1e-5)
    plain = host_models.guider(host_models.model(kind), 0.4, 0.0, cfg=2.0)
    euler = sample(plain, comfy.samplers.sampler_object("euler"), kind)
    assert torch.allclose(sample(same, sampler_of(host, mode="AND", integrator="ode"), kind), euler, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_average_is_what_combined_conditionings_give(host, kind, cfg):
    combined = host_models.guider(host_models.model(kind), cfg=cfg)
    combined.set_conds(host_models.conditioning(0.4) + host_models.conditioning(-0.3), host_models.conditioning(0.0))
    euler = comfy.samplers.sampler_object("euler")
    expected = sample(combined, euler, kind)
    guider = prompts_guider(host, host_models.model(kind), cfg=cfg)
    assert torch.allclose(sample(guider, euler, kind), expected, atol=1e-5)
    assert torch.allclose(
        sample(guider, sampler_of(host, mode="average", integrator="ode"), kind), expected, atol=1e-4)  # fmt: skip


def test_other_samplers_run_the_functions_that_patches_hook_into_guidance(host):
    patcher, seen = host_models.model("eps").clone(), []

    def post(arguments):
        seen.append(arguments["cond_denoised"].shape)
        return arguments["denoised"] * 0 + 1.0

    patcher.set_model_sampler_post_cfg_function(post)
    out = sample(prompts_guider(host, patcher), comfy.samplers.sampler_object("euler"), "eps")
    assert seen == [SHAPE] * STEPS and torch.allclose(out, torch.ones(SHAPE), atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_wrappers_of_a_prediction_run_and_see_the_average(host, several):
    """As those of patches that measure the state of a run."""
    patcher, seen = host_models.model("eps").clone(), []

    def predict_noise(executor, x, timestep, *args, **kwargs):
        out = executor(x, timestep, *args, **kwargs)
        seen.append(out)
        return out

    kinds = comfy.patcher_extension.WrappersMP
    patcher.add_wrapper_with_key(kinds.PREDICT_NOISE, "test", predict_noise)
    guider = models_guider(host, [patcher, host_models.model("v")]) if several else prompts_guider(host, patcher)
    out = sample(guider, sampler_of(host, mode="average", integrator="ode"), "eps")
    assert [tuple(average.shape) for average in seen] == [SHAPE] * 2 * STEPS
    assert torch.allclose(seen[-2], out, atol=1e-5)  # the last step goes to the prediction, then come its divergences


def test_time_shift_acts_under_it(host):
    patcher = host_models.model("eps")
    shifted = execute(host, "TrajectoryTimeShiftModel", model=patcher)[0]
    plain, moved = (sample(prompts_guider(host, model), sampler_of(host), "eps") for model in (patcher, shifted))
    assert moved.isfinite().all() and not torch.allclose(plain, moved, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_outside_the_mask_the_picture_is_untouched_and_not_counted(host, kind, mode):
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 3:] = 1.0
    latent = noise_of(3)
    results = []
    for kept in (latent, latent + torch.cat([torch.ones(2, 4, 6, 3), torch.zeros(2, 4, 6, 3)], dim=-1)):
        sampler = sampler_of(host, mode=mode)
        out = sample(prompts_guider(host, host_models.model(kind)), sampler, kind, latent=kept, mask=mask)
        assert torch.allclose(out[..., :3], kept[..., :3], atol=1e-4)
        results.append((out[..., 3:], run_of(sampler)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-4)
    assert torch.allclose(results[0][1].kappas, results[1][1].kappas, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("integrator", ["ancestral", "euler_maruyama", "ode"])
@pytest.mark.parametrize("kappa_clip", [0.0, 5.0])
def test_item_k_of_a_batch_is_that_item_alone(host, kind, mode, integrator, kappa_clip):
    noise, guider = noise_of(5), prompts_guider(host, host_models.model(kind))
    sampler = sampler_of(host, mode=mode, integrator=integrator, kappa_clip=kappa_clip)
    batch = sample(guider, sampler, kind, noise)
    for k in range(2):
        assert torch.allclose(batch[k : k + 1], sample(guider, sampler, kind, noise[k : k + 1]), atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 4, 3, 4, 4), (1, 1, 40)], ids=str)
def test_odd_sizes_video_and_packed_latents(host, kind, shape):
    guider = prompts_guider(host, host_models.model(kind, channels=shape[1]), (0.4, -0.3, 0.1))
    out = sample(guider, sampler_of(host), kind, noise_of(1, shape))
    assert out.shape == shape and out.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sigmas", [[1.0, 1.0, 0.5, 0.0], [1.0, 1.0, 0.5], [0.5, 0.5, 0.0]], ids=str)
def test_levels_that_repeat_on_a_flow(host, mode, sigmas):
    guider, sampler = prompts_guider(host, host_models.model("flow")), sampler_of(host, mode=mode)
    out = sample(guider, sampler, "flow", sigmas=torch.tensor(sigmas))
    assert out.isfinite().all() and len(run_of(sampler).sigmas) == len(sigmas) - 1


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_partial_schedules_and_half_precision(host, kind):
    guider = prompts_guider(host, host_models.model(kind))
    sigmas = sigmas_of(guider.model_patcher, kind)
    sampler = sampler_of(host)
    assert sample(guider, sampler, kind, latent=noise_of(4), sigmas=sigmas[4:]).isfinite().all()
    assert sample(guider, sampler, kind, sigmas=sigmas[:6]).isfinite().all()
    assert sample(guider, sampler, kind, sigmas=sigmas[4:5], latent=noise_of(4)).isfinite().all()
    assert torch.equal(sample(guider, sampler, kind, sigmas=sigmas[:0], latent=noise_of(4)), noise_of(4))
    assert sample(guider, sampler, kind, noise_of(0).bfloat16()).isfinite().all()


@pytest.mark.parametrize("kinds", [("eps", "flow"), ("flow", "eps"), ("eps", "v"), ("edm", "flow", "v")], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_models_of_different_kinds(host, kinds, mode):
    patchers, means = [host_models.model(kind) for kind in kinds], (0.4, -0.3, 0.05)[: len(kinds)]
    guider, sampler = models_guider(host, patchers, means), sampler_of(host, mode=mode)
    out = sample(guider, sampler, kinds[0])
    assert out.isfinite().all() and run_of(sampler).kappas.shape == (STEPS, 2, len(kinds))
    one = prompts_guider(host, host_models.model(kinds[0]), means)
    alone = sample(one, sampler_of(host, mode=mode), kinds[0])
    assert torch.allclose(out, alone, atol=0.02)  # they are the same Gaussians
    for patcher in patchers:
        assert patcher.model.current_patcher is None
        assert sum(patcher.model.diffusion_model.calls) == 2 * 2 * STEPS
    assert torch.equal(out, sample(guider, sampler, kinds[0]))


def test_a_model_keeps_its_patches_beside_others(host):
    seen = []

    def wrapper(apply_model, arguments):
        seen.append(arguments["input"].shape)
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    second = host_models.model("eps").clone()
    second.set_model_unet_function_wrapper(wrapper)
    sample(models_guider(host, [host_models.model("eps"), second]), sampler_of(host), "eps")
    assert len(seen) == STEPS


@pytest.mark.parametrize("several", [False, True])
def test_interruption_leaves_nothing_behind(host, several):
    patchers = [host_models.model("eps"), host_models.model("eps")]
    guider = models_guider(host, patchers) if several else prompts_guider(host, patchers[0])
    sampler, network = sampler_of(host), patchers[0].model.diffusion_model
    whole = sample(guider, sampler, "eps")
    network.calls.clear()
    forward = network.forward

    def interrupting(*args, **kwargs):
        if len(network.calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    network.forward = interrupting
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(guider, sampler, "eps")
    network.forward = forward
    assert len(network.calls) == 4 and len(run_of(sampler).sigmas) == 4
    assert patchers[several].model.current_patcher is None
    assert torch.equal(whole, sample(guider, sampler, "eps"))


def test_log_of_a_run(host):
    sampler = sampler_of(host, mode="OR")
    out = sample(prompts_guider(host, host_models.model("eps")), sampler, "eps")
    plots, text, winners = execute(host, "TrajectorySuperDiffLog", sampler=sampler, latent={"samples": out})
    assert plots.shape == (2, 800, 800, 3) and 0 <= plots.min() and plots.max() <= 1 and plots.min() < 0.5
    assert len(text.splitlines()) == 1 + 2 * STEPS
    assert winners == [1 if mean > 0.05 else 2 for mean in out.mean((1, 2, 3)).tolist()]


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("steps", [STEPS, 4])
def test_the_log_knows_the_result_in_any_precision_and_at_any_level(host, kind, steps):
    """Also of a run that stops early, and of a model whose latents have a scale of their own."""
    patcher = host_models.model(kind)
    patcher.model.latent_format.scale_factor = 0.13
    guider, sampler = prompts_guider(host, patcher), sampler_of(host)
    out = sample(guider, sampler, kind, sigmas=sigmas_of(patcher, kind)[: steps + 1])
    for latent in (out, out.half(), out.bfloat16()):
        _, text, _ = execute(host, "TrajectorySuperDiffLog", sampler=sampler, latent={"samples": latent})
        assert len(text.splitlines()) == 1 + 2 * steps


def test_a_log_of_another_run_is_refused(host):
    """Whoever samples twice with one recipe has the log of the last run alone."""
    guider, sampler = prompts_guider(host, host_models.model("eps")), sampler_of(host)
    first, second = (sample(guider, sampler, "eps", noise_of(seed)) for seed in (0, 1))
    log = {"node_id": "TrajectorySuperDiffLog", "sampler": sampler}
    assert execute(host, **log, latent={"samples": second})
    for other in (first, second[:1], second[..., :5], torch.cat([second, second])):
        with pytest.raises(ValueError, match="not the result of this sampler's last run"):
            execute(host, **log, latent={"samples": other})
    untouched = sample(guider, sampler, "eps", latent=noise_of(4), sigmas=torch.zeros(0))
    with pytest.raises(ValueError, match="not the result of this sampler's last run"):
        execute(host, **log, latent={"samples": untouched})


def test_equal_samplers_do_not_share_a_recipe(host):
    assert host.node_table["TrajectorySuperDiffSampler"].GET_SCHEMA().not_idempotent
    assert sampler_of(host).extra_options["record"] is not sampler_of(host).extra_options["record"]


def test_a_log_without_a_run_is_named(host):
    latent = {"samples": torch.zeros(2, 4, 6, 6)}
    with pytest.raises(ValueError, match="not the result of this sampler's last run"):
        execute(host, "TrajectorySuperDiffLog", sampler=sampler_of(host), latent=latent)
    with pytest.raises(ValueError, match="not a SuperDiff Sampler"):
        execute(host, "TrajectorySuperDiffLog", sampler=comfy.samplers.sampler_object("euler"), latent=latent)


def test_models_that_cannot_run_side_by_side_are_named(host):
    patcher = host_models.model("eps")
    with pytest.raises(ValueError, match="model_2 and model_1 are patches of one loaded model"):
        models_guider(host, [patcher, patcher.clone()])
    with pytest.raises(ValueError, match="model_2 works on latents"):
        models_guider(host, [patcher, host_models.model("eps", channels=16)])
    with pytest.raises(ValueError, match="model 3 lacks negative_3; connect all of model_3"):
        pair = {"positive_{}": host_models.conditioning(0.1), "negative_{}": host_models.conditioning(0.0)}
        inputs = {name.format(i): value for i in (1, 2) for name, value in pair.items()}
        execute(host, "TrajectorySuperDiffMultiModelGuider", cfg=2.0, model_1=patcher, model_2=host_models.model("eps"),
                model_3=host_models.model("eps"), positive_3=host_models.conditioning(0.1), **inputs)  # fmt: skip
    with pytest.raises(ValueError, match="model 3 lacks model_3; connect all of model_3"):
        inputs |= {name.format(3): value for name, value in pair.items()}
        execute(host, "TrajectorySuperDiffMultiModelGuider", cfg=2.0, model_1=patcher, model_2=host_models.model("eps"),
                **inputs)  # fmt: skip


def test_hooks_of_further_models_are_named(host):
    hooked = [[torch.zeros(1, 3, 8), {"hooks": object()}]]
    plain = host_models.conditioning(0.0)
    with pytest.raises(ValueError, match="positive_2 has hooks"):
        execute(host, "TrajectorySuperDiffMultiModelGuider", cfg=2.0, model_1=host_models.model("eps"),
                model_2=host_models.model("eps"), positive_1=plain, negative_1=plain, positive_2=hooked,
                negative_2=plain)  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_network_that_overflows_is_named(host, mode):
    patcher = host_models.model("eps")
    forward = patcher.model.diffusion_model.forward
    patcher.model.diffusion_model.forward = lambda *args, **kwargs: forward(*args, **kwargs) * torch.nan
    with pytest.raises(ValueError, match="NaN or infinite values at sigma .* float32 or bfloat16"):
        sample(prompts_guider(host, patcher), sampler_of(host, mode=mode), "eps")


def test_bad_inputs_are_named(host):
    for cfg in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"cfg is {cfg}"):
            prompts_guider(host, host_models.model("eps"), cfg=cfg)
        with pytest.raises(ValueError, match=f"cfg is {cfg}"):
            models_guider(host, [host_models.model("eps"), host_models.model("eps")], cfg=cfg)
    with pytest.raises(ValueError, match="bias is 'a, b'"):
        sampler_of(host, bias="a, b")
    with pytest.raises(ValueError, match="bias is nan"):
        sampler_of(host, bias="nan")
    with pytest.raises(ValueError, match="bias has 3 values for 2 components"):
        sample(prompts_guider(host, host_models.model("eps")), sampler_of(host, bias="0, 0, 1"), "eps")
    with pytest.raises(ValueError, match="SuperDiff Guider"):
        sample(host_models.guider(host_models.model("eps")), sampler_of(host), "eps")
