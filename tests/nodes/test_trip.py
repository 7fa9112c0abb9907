"""TRIP without training: the patch in both layouts of latents, the fit, the reference, and the measures of a video."""

import copy
import math

import comfy.conds
import comfy.model_management
import comfy.samplers
import host_models
import pytest
import torch
import unets
from trajectory.nodes._vision import vision_embeds
from trajectory.samplers.image_prior import Moments
from vision import vision_of

KINDS = ("eps", "v", "edm", "flow")
LAYOUTS = {"batch": (6, 4, 8, 8), "time": (2, 4, 6, 8, 8)}
STEPS = 8


def call(host, node, *args, **inputs):
    return execute(host, f"TrajectoryTRIP{node}", *args, **inputs)


def execute(host, node_id, *args, **inputs):
    cls = host.node_table[node_id]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    return cls.execute(*args, **{**defaults, **inputs}).args


def patch(host, patcher, still, **inputs):
    return call(host, "NoisePrior", patcher, {"samples": still}, **inputs)[0]


def still_clip(shape, seed=1):
    """The latent of a picture that stands still, in the layout of latents of `shape`."""
    frame = torch.randn(1, *shape[1:], generator=torch.Generator().manual_seed(seed)) * 0.5
    return frame.expand(shape).clone() if len(shape) == 4 else frame[:, :, :1].expand(1, *shape[1:]).clone()


def sigmas_of(patcher):
    scheduler = "simple" if patcher.model.diffusion_model.kind == "flow" else "karras"
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, STEPS)


def sample(patcher, shape, cfg=1.0, sampler="euler", mask=None, sigmas=None, positive=None):
    sigmas = sigmas_of(patcher) if sigmas is None else sigmas
    guider = host_models.guider(patcher, cfg=cfg)
    if positive is not None:
        guider.set_conds(positive, host_models.conditioning(-0.2))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return guider.sample(noise, torch.zeros(shape), comfy.samplers.sampler_object(sampler), sigmas, denoise_mask=mask,
                         disable_pbar=True, seed=3).clone()  # fmt: skip


def frames(latents):
    """[T, B, ...] in either layout."""
    return latents[:, None] if latents.ndim == 4 else latents.movedim(2, 0)


def begins_with(drawn, still):
    return torch.allclose(frames(drawn)[0], frames(still)[0].expand_as(frames(drawn)[0]), atol=1e-6)


# --- the patch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_strength_0_is_the_model_itself(host, kind, shape):
    patcher = host_models.model(kind)
    patched = patch(host, patcher, still_clip(shape), strength=0.0)
    assert patched is patcher
    assert torch.equal(sample(patched, shape), sample(patcher, shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral"])
def test_the_first_frame_is_the_picture_and_the_others_come_nearer(host, kind, shape, sampler):
    patcher, still = host_models.model(kind), still_clip(shape)
    plain, drawn = (sample(m, shape, sampler=sampler) for m in (patcher, patch(host, patcher, still, motion=0.2)))
    assert begins_with(drawn, still)
    assert (frames(drawn) - frames(still)).std() < 0.5 * (frames(plain) - frames(still)).std()
    distance = (frames(drawn) - frames(still)).square().flatten(1).mean(1)
    assert distance[-1] > distance[1] > distance[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_the_patch_is_the_papers_fusion_of_noises(host, kind, shape):
    """Equal in the noises that each kind of model predicts, in its own published parametrisation."""
    patcher, still = host_models.model(kind), still_clip(shape).double()
    patched = patch(host, patcher, still, mode="paper_linear", lambda_last=0.2, lock_first=False)
    generator = torch.Generator().manual_seed(9)
    x, output = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.linspace(0.3, 0.9, shape[0], dtype=torch.float64)
    level = sigma.view(-1, *[1] * (x.ndim - 1))
    bar = 1 / (1 + level**2)  # of DDPM, whose latent is z
    z = bar.sqrt() * x
    if kind == "flow":  # the output is the velocity n - x0
        prior, noise = (x - (1 - level) * still) / level, x + (1 - level) * output
    else:
        prior = (z - bar.sqrt() * still) / (1 - bar).sqrt()
        noise = {"eps": output, "v": bar.sqrt() * output + (1 - bar).sqrt() * z,
                 "edm": (x - bar * x) / level - bar.sqrt() * output}[kind]  # fmt: skip
    weight = torch.linspace(1, 0.2, 6, dtype=torch.float64).view((6, 1, 1, 1) if x.ndim == 4 else (6, 1, 1))
    fused = weight * prior + (1 - weight) * noise
    expected = (x - level * fused) / (1 - level) if kind == "flow" else (z - (1 - bar).sqrt() * fused) / bar.sqrt()
    denoised = patcher.get_model_object("model_sampling").calculate_denoised(sigma, output, x)
    function, = patched.model_options["sampler_post_cfg_function"]
    made = function({"denoised": denoised, "sigma": sigma, "model": patched.model, "cond": []})
    assert torch.allclose(made, expected, atol=1e-6) and not torch.allclose(made, denoised, atol=0.1)


@pytest.mark.parametrize("name", comfy.samplers.KSAMPLER_NAMES)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_first_frame_is_the_picture_under_every_sampler_of_the_host(host, kind, name):
    shape, still = LAYOUTS["batch"], still_clip(LAYOUTS["batch"])
    assert begins_with(sample(patch(host, host_models.model(kind), still), shape, sampler=name), still)


def test_of_two_patches_the_last_picture_that_is_locked_is_the_first_frame(host):
    shape, patcher = LAYOUTS["batch"], host_models.model("eps")
    one, other = still_clip(shape), still_clip(shape, seed=2)
    locked = patch(host, patcher, one)
    assert begins_with(sample(patch(host, locked, other), shape), other)
    assert begins_with(sample(patch(host, locked, other, lock_first=False), shape), one)


def test_copies_of_a_models_options_share_the_reference(host):
    patched = patch(host, host_models.model("eps"), still_clip(LAYOUTS["time"]))
    of_hosts_that_copy = copy.deepcopy(patched.model_options)
    functions = (options["sampler_post_cfg_function"][-1] for options in (patched.model_options, of_hosts_that_copy))
    one, other = (function.__self__.reference.samples for function in functions)
    assert one is other


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_it_patches_stays(host, kind):
    shape = LAYOUTS["time"]
    patcher = host_models.model(kind)
    before = sample(patcher, shape)
    patched = patch(host, patcher, still_clip(shape))
    first, second = sample(patched, shape), sample(patched, shape)
    assert torch.equal(first, second) and torch.equal(sample(patcher, shape), before)


def test_both_layouts_of_one_clip_agree(host):
    noise, still = LAYOUTS["batch"], still_clip(LAYOUTS["batch"])
    patched = patch(host, host_models.model("eps"), still)
    on_batch = sample(patched, noise)
    video = patch(host, host_models.model("eps"), still.movedim(0, 1)[None])
    sigmas = comfy.samplers.calculate_sigmas(video.get_model_object("model_sampling"), "karras", STEPS)
    noise = torch.randn(noise, generator=torch.Generator().manual_seed(5)).movedim(0, 1)[None]
    on_time = host_models.guider(video).sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"),
                                               sigmas, disable_pbar=True, seed=3)  # fmt: skip
    assert torch.allclose(on_time[0].movedim(1, 0), on_batch, atol=1e-5)


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_a_picture_stands_for_all_frames(host, shape):
    patcher, still = host_models.model("eps"), still_clip(shape)
    whole = sample(patch(host, patcher, still), shape)
    picture = still[:1] if len(shape) == 4 else still[:, :, :1]
    assert torch.equal(sample(patch(host, patcher, picture), shape), whole)
    assert torch.equal(sample(patch(host, patcher, picture.reshape(1, 4, 8, 8)), shape), whole)


def test_item_k_of_a_batch_of_videos_is_that_video(host):
    shape = LAYOUTS["time"]
    patched = patch(host, host_models.model("eps"), still_clip(shape))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    function = patched.model_options["sampler_post_cfg_function"][-1]

    def fuse(x, sigma):
        return function({"denoised": x, "sigma": sigma, "model": patched.model, "cond": []})

    sigma = torch.tensor([3.0, 0.5])
    together = fuse(x, sigma)
    for k in range(2):
        assert torch.allclose(fuse(x[k : k + 1], sigma[k : k + 1]), together[k : k + 1], atol=1e-6)


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_frames_are_fused_behind_guidance_and_behind_parts(host, shape):
    """Conditionings with masks are joined before the frames are fused: halves are fused like the whole."""
    patched = patch(host, host_models.model("eps"), still_clip(shape), motion=1.0)
    whole = sample(patched, shape, cfg=3.0)
    half = torch.zeros(1, *shape[2:])
    half[..., :4] = 1.0
    parts = [[host_models.conditioning(0.4)[0][0], {"mask": m, "mask_strength": 1.0}] for m in (half, 1 - half)]
    assert torch.allclose(sample(patched, shape, cfg=3.0, positive=parts), whole, atol=1e-4)


def test_the_prior_acts_in_its_part_of_the_run_alone(host):
    shape, patcher = LAYOUTS["batch"], host_models.model("eps")
    plain = sample(patcher, shape)
    for part in ({"start_percent": 1.0}, {"end_percent": 0.0}):
        drawn = sample(patch(host, patcher, still_clip(shape), **part), shape)
        assert torch.allclose(drawn[1:], plain[1:], atol=1e-6) and torch.allclose(drawn[0], still_clip(shape)[0])
        assert torch.allclose(sample(patch(host, patcher, still_clip(shape), lock_first=False, **part), shape), plain)
    half = sample(patch(host, patcher, still_clip(shape), end_percent=0.5), shape)
    assert not torch.allclose(half[1:], plain[1:], atol=1e-3)


def test_the_first_frame_is_locked_under_a_solver_that_mixes_older_predictions(host):
    """The last state of such a solver is none of its predictions; a run that ends in noise is left as it is."""
    shape, still = LAYOUTS["time"], still_clip(LAYOUTS["time"])
    patched = patch(host, host_models.model("eps"), still)

    def half_way(model, x, sigmas, extra_args=None, callback=None, disable=None):
        sigmas[-1] = max(sigmas[-1], 0.001)  # in place, as uni_pc of the host does it
        return 0.5 * (x + model(x, sigmas[0] * x.new_ones(len(x)), **extra_args))

    def run(sigmas, mask=None):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        return host_models.guider(patched).sample(noise, torch.zeros(shape), comfy.samplers.KSAMPLER(half_way),
                                                  torch.tensor(sigmas), mask, disable_pbar=True)  # fmt: skip

    assert torch.equal(run([5.0, 0.0])[:, :, 0], still[:, :, 0].expand(2, 4, 8, 8))
    assert (run([5.0, 1.0])[:, :, 0] - still[:, :, 0]).abs().mean() > 0.5
    mask = torch.ones(1, 1, 6, 8, 8)
    mask[..., :4] = 0.0
    kept = run([5.0, 0.0], mask)[:, :, 0]
    assert torch.equal(kept[..., 4:], still[:, :, 0, :, 4:].expand(2, 4, 8, 4))
    assert not torch.allclose(kept[..., :4], still[:, :, 0, :, :4].expand(2, 4, 8, 4), atol=0.1)


def test_the_reference_is_put_in_the_scale_of_the_model(host):
    shape, patcher = LAYOUTS["batch"], host_models.model("eps")
    patcher.model.latent_format.scale_factor = 0.18215
    still = still_clip(shape) * 5
    assert torch.allclose(sample(patch(host, patcher, still), shape)[0], still[0], atol=1e-5)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.0], [1.0, 1.0, 0.2], [0.4, 0.2, 0.0]], ids=str)
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_short_and_partial_schedules(host, shape, sigmas):
    still = still_clip(shape)
    drawn = sample(patch(host, host_models.model("flow"), still), shape, sigmas=torch.tensor(sigmas))
    assert begins_with(drawn, still) == (sigmas[-1] == 0)


def with_sound(kind):
    """A model of latents of two parts, as the hosts' models of video and sound are; each part is Gaussian."""

    class Network(host_models.GaussianNetwork):
        def forward(self, parts, *args, **kwargs):
            return [super(Network, self).forward(part, *args, **kwargs) for part in parts]

    patcher = host_models.model(kind)
    patcher.model.diffusion_model, conds = Network(kind), patcher.model.extra_conds
    patcher.model.extra_conds = lambda latent_shapes, **inputs: {
        **conds(**inputs), "latent_shapes": comfy.conds.CONDConstant(latent_shapes)}  # fmt: skip
    return patcher


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_of_a_video_with_sound_the_video_is_drawn_and_the_sound_stays(host, kind):
    nested = pytest.importorskip("comfy.nested_tensor", reason="this host has single latents only")
    shapes = LAYOUTS["time"], (2, 4, 5, 6)
    noise = nested.NestedTensor([torch.randn(s, generator=torch.Generator().manual_seed(5)) for s in shapes])
    still, patcher = still_clip(shapes[0]), with_sound(kind)
    mask = torch.ones(1, 1, 6, 8, 8)
    mask[..., :4] = 0.0
    alone = patch(host, host_models.model(kind), still)
    for noise_mask in (None, mask):
        plain, drawn = (
            host_models.guider(m).sample(noise, noise * 0, comfy.samplers.sampler_object("euler"), sigmas_of(m),
                                         noise_mask, disable_pbar=True, seed=3).unbind()
            for m in (patcher, patch(host, patcher, still)))  # fmt: skip
        assert torch.equal(drawn[1], plain[1])
        assert torch.allclose(drawn[0], sample(alone, shapes[0], mask=noise_mask), atol=1e-6)


@pytest.mark.parametrize(("still", "sampled"), [
    ((5, 4, 8, 8), (6, 4, 8, 8)), ((6, 4, 8, 9), (6, 4, 8, 8)), ((6, 3, 8, 8), (6, 4, 8, 8)),
    ((1, 4, 5, 8, 8), (2, 4, 6, 8, 8)), ((3, 4, 6, 8, 8), (2, 4, 6, 8, 8)), ((1, 4, 6, 8, 8), (6, 4, 8, 8)),
])  # fmt: skip
def test_a_reference_of_another_size_is_refused(host, still, sampled):
    size = " x ".join(map(str, still))
    with pytest.raises(ValueError, match=f"reference is a latent {size}, but the model samples .*; connect TRIP"):
        sample(patch(host, host_models.model("eps"), torch.zeros(still)), sampled)


@pytest.mark.parametrize(("inputs", "words"), [
    ({"mode": "quadratic"}, "mode is 'quadratic'; choose one of"), ({"band": "high"}, "band is 'high'; choose one of"),
    ({"axis": "frames"}, "axis is 'frames'; choose one of"),
    ({"start_percent": 0.7, "end_percent": 0.2}, "start_percent is 0.7, behind end_percent"),
])  # fmt: skip
def test_bad_inputs_are_refused(host, inputs, words):
    with pytest.raises(ValueError, match=words):
        patch(host, host_models.model("eps"), torch.zeros(LAYOUTS["batch"]), **inputs)


def test_a_reference_that_is_not_finite_is_refused(host):
    still = still_clip(LAYOUTS["batch"])
    still[3, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="reference has values that are not finite"):
        patch(host, host_models.model("eps"), still)


def test_frames_on_the_batch_axis_of_videos_are_refused(host):
    patched = patch(host, host_models.model("eps"), torch.zeros(LAYOUTS["time"]), axis="batch")
    with pytest.raises(ValueError, match="axis is batch, but the latent .* has an axis of time; choose auto or time"):
        sample(patched, LAYOUTS["time"])


def test_a_node_that_guides_without_conditionings_is_served(host):
    shape, still = LAYOUTS["batch"], still_clip(LAYOUTS["batch"])
    patched = patch(host, host_models.model("eps"), still)
    function, = patched.model_options["sampler_post_cfg_function"]
    made = function({"denoised": torch.zeros(shape), "sigma": torch.ones(6), "model": patched.model, "cond": None})
    assert torch.equal(made[0], still[0])


def test_latents_without_frames_are_refused(host):
    with pytest.raises(ValueError, match="reference is a latent 1 x 1 x 100"):
        patch(host, host_models.model("eps"), torch.zeros(1, 1, 100))
    patched = patch(host, host_models.model("eps"), torch.zeros(LAYOUTS["batch"]))
    with pytest.raises(ValueError, match="the prior needs frames of pictures"):
        sample(patched, (1, 4, 100))


# --- beside other patches and samplers of the pack -------------------------------------------------------------------


@pytest.mark.parametrize(("node_id", "inputs"), [
    ("TrajectoryTimeShiftModel", {"window": 100, "cutoff": 0.1}),
    ("TrajectoryNASA", {"negative": unets.conditioning(1.0), "scale": 0.5}),
], ids=["time shift", "nasa"])  # fmt: skip
def test_other_patches_act_beside_it_in_either_order(host, node_id, inputs):
    shape, patcher = (6, 4, 8, 8), unets.unet()
    still = still_clip(shape)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 3)

    def run(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(unets.conditioning(0.2), unets.conditioning(0.1))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        return guider.sample(noise, torch.zeros(shape), comfy.samplers.sampler_object("euler"), sigmas,
                             disable_pbar=True, seed=3).clone()  # fmt: skip

    def other(model):
        return execute(host, node_id, model=model, **inputs)[0]

    alone, before, behind = map(run, (patch(host, patcher, still), patch(host, other(patcher), still),
                                      other(patch(host, patcher, still))))  # fmt: skip
    assert torch.equal(before, behind) and begins_with(before, still)
    assert not torch.allclose(before, alone, atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_guider_of_several_prompts_draws_their_average(host, kind):
    shape, still = LAYOUTS["time"], still_clip(LAYOUTS["time"])
    prompts = {f"prompt_{i}": host_models.conditioning(mean) for i, mean in enumerate((0.4, -0.3), 1)}
    patched = patch(host, host_models.model(kind), still)
    guider, = execute(host, "TrajectorySuperDiffGuider", model=patched, negative=host_models.conditioning(0.0), cfg=1.0,
                      **prompts)  # fmt: skip
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))

    def run(guider, sampler):
        return guider.sample(noise, torch.zeros(shape), sampler, sigmas_of(patched), disable_pbar=True, seed=3).clone()

    euler = comfy.samplers.sampler_object("euler")
    out = run(guider, euler)
    assert begins_with(out, still)
    assert torch.allclose(out, run(host_models.guider(patched, positive=0.05), euler), atol=1e-5)
    assert begins_with(run(guider, execute(host, "TrajectorySuperDiffSampler")[0]), still)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_first_frame_is_the_picture_under_every_sampler_of_the_pack(host, kind):
    """All whose inputs have defaults, and what has a picture or another sampler to work on; SuperDiff's needs its own
    guiders."""
    shape, still = LAYOUTS["batch"], still_clip(LAYOUTS["batch"])
    euler, reference = comfy.samplers.sampler_object("euler"), {"samples": still}
    samplers = {"TrajectoryFlowChefSampler": {"reference": reference}, "TrajectoryOMSSamplerWrap": {
        "sampler": euler, "start": reference}}  # fmt: skip
    for node_id, cls in host.node_table.items():
        ours = node_id.startswith("Trajectory") and node_id != "TrajectorySuperDiffSampler"
        described = cls.GET_SCHEMA() if ours else None
        if described and [o.io_type for o in described.outputs] == ["SAMPLER"]:
            if all(getattr(i, "default", None) is not None or i.optional for i in described.inputs):
                samplers.setdefault(node_id, {})
    assert len(samplers) > 8
    for node_id, inputs in samplers.items():
        sampler, = execute(host, node_id, **inputs)
        patched = patch(host, host_models.model(kind), still)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        out = host_models.guider(patched).sample(noise, torch.zeros(shape), sampler, sigmas_of(patched),
                                                 disable_pbar=True, seed=3)  # fmt: skip
        assert begins_with(out, still), node_id


# --- the fit ---------------------------------------------------------------------------------------------------------


def moving(shape):
    """Clips [B, 4, T, h, w] whose frame i is s = 2 times noise and 0.3 i times another."""
    first, other = (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    return first[:, :, :1] + 0.15 * torch.arange(shape[2]).view(-1, 1, 1) * other


def fit(host, patcher, clips, **inputs):
    """The prior of clips, of which the model is one of: of videos, or of pictures."""
    patcher.model.latent_format.latent_dimensions = clips.ndim - 2
    return call(host, "FitPrior", patcher, {"samples": clips}, **inputs)[0]


def test_the_fit_measures_what_moves_in_the_scale_of_the_model(host):
    patcher, clips = host_models.model("eps"), moving((3, 4, 5, 16, 16))
    prior = fit(host, patcher, clips)
    assert prior.s2 == pytest.approx(4, rel=0.1)
    assert prior.tau2 == pytest.approx([0.09 * i**2 for i in range(5)], rel=0.1)
    on_batch = fit(host, patcher, clips.movedim(2, 1).flatten(0, 1), length=5)
    assert on_batch.s2 == pytest.approx(prior.s2) and on_batch.tau2 == pytest.approx(prior.tau2)
    patcher.model.latent_format.scale_factor = 0.5
    scaled = fit(host, patcher, clips)
    assert scaled.s2 == pytest.approx(prior.s2 / 4) and scaled.tau2 == pytest.approx([t / 4 for t in prior.tau2])


def test_a_fitted_prior_takes_the_place_of_motion(host):
    shape, patcher = LAYOUTS["batch"], host_models.model("eps")
    still = still_clip(shape)
    rest = patch(host, patcher, still, prior=Moments((0.0,) * 6, 1.0))
    assert torch.allclose(sample(rest, shape), still, atol=1e-5)
    with pytest.raises(ValueError, match="prior was fitted to 5 frames, but the model samples 6"):
        sample(patch(host, patcher, still, prior=Moments((0.0,) * 5, 1.0)), shape)


@pytest.mark.parametrize(("shape", "length", "words"), [
    ((1, 4, 8, 8), 0, "clips of one frame"), ((7, 4, 8, 8), 3, "length is 3, but latents holds 7"),
    ((8, 4, 8, 8), 1, "length is 1, but latents holds 8"), ((1, 1, 50), 0, "latents is a latent 1 x 1 x 50"),
])  # fmt: skip
def test_clips_that_have_no_motion_to_fit_are_refused(host, shape, length, words):
    with pytest.raises(ValueError, match=words):
        call(host, "FitPrior", host_models.model("eps"), {"samples": torch.rand(shape)}, length=length)


@pytest.mark.parametrize(("shape", "dimensions", "words"), [
    ((1, 4, 5, 8, 8), 2, "1 x 4 x 5 x 8 x 8, but the model samples frames x channels x height x width"),
    ((5, 4, 8, 8), 3, "5 x 4 x 8 x 8, but the model samples batch x channels x frames x height x width"),
    ((5, 16, 8, 8), 2, "5 x 16 x 8 x 8, but the model has 4 channels"),
])  # fmt: skip
def test_clips_of_another_model_are_refused(host, shape, dimensions, words):
    patcher = host_models.model("eps")
    patcher.model.latent_format.latent_dimensions = dimensions
    with pytest.raises(ValueError, match=f"latents is a latent {words}; connect clips from its VAE"):
        call(host, "FitPrior", patcher, {"samples": torch.rand(shape)})


def test_a_conditioning_of_no_parts_is_refused(host):
    with pytest.raises(ValueError, match="positive is empty"):
        fit(host, host_models.model("eps"), torch.rand(5, 4, 8, 8), positive=[])


def test_levels_that_a_model_does_not_tell_apart_are_measured_once(host, monkeypatch):
    patcher = host_models.model("eps")
    sampling = patcher.get_model_object("model_sampling")
    monkeypatch.setattr(sampling, "percent_to_sigma", lambda percent: 5.0 if percent < 0.5 else 0.5)
    prior = fit(host, patcher, torch.rand(5, 4, 8, 8), positive=host_models.conditioning(0.4))
    assert prior.sigmas == (0.5, 5.0)


@pytest.mark.parametrize("kind", KINDS)
def test_measured_beside_the_model_the_fit_leaves_it_what_it_knows(host, kind):
    """Clips of even frames that the model knows exactly by its text need no picture, whose first frame is another."""
    patcher = host_models.model(kind)
    clips = torch.full((2, 4, 3, 8, 8), 0.4)
    clips[:, :, 0] = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    positive = host_models.conditioning(0.4)
    prior = fit(host, patcher, clips, positive=positive)
    assert len(prior.sigmas) == 12 and list(prior.sigmas) == sorted(prior.sigmas)
    assert all(row[0] == pytest.approx(1) for row in prior.lam) and max(row[2] for row in prior.lam[-3:]) < 0.2
    assert fit(host, patcher, clips, positive=positive) == prior
    on_batch = fit(host, patcher, clips.movedim(2, 1).flatten(0, 1), positive=positive, length=3)
    assert torch.allclose(torch.tensor(on_batch.lam), torch.tensor(prior.lam), atol=1e-5)


def test_a_measured_prior_takes_the_place_of_motion_and_of_the_model(host):
    shape, patcher = LAYOUTS["batch"], host_models.model("eps")
    still = still_clip(shape)
    positive = host_models.conditioning(0.4)
    prior, = call(host, "FitPrior", patcher, {"samples": still}, positive=positive)
    rest = patch(host, patcher, still, prior=prior)
    assert torch.allclose(sample(rest, shape), still, atol=1e-3)  # clips that stand still


def test_a_measurement_can_be_cancelled_and_leaves_the_model_as_it_was(host):
    shape, patcher = LAYOUTS["batch"], host_models.model("eps")
    before = sample(patcher, shape)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        call(host, "FitPrior", patcher, {"samples": still_clip(shape)}, positive=host_models.conditioning(0.4))
    assert torch.equal(sample(patcher, shape), before)


# --- the reference ---------------------------------------------------------------------------------------------------


class Autoencoder:
    """Means of 8 x 8 pixels; of videos, with 4 frames a latent frame behind the first, as it tells by its ratios.

    not_video: of single pictures in the layout of videos.
    """

    output_channels = 3

    def __init__(self, video=False, not_video=False):
        self.latent_dim, self.video, self.not_video = 3 if video or not_video else 2, video, not_video
        if self.latent_dim == 3:
            self.downscale_ratio = (lambda frames: max(0, math.floor((frames + 3) / 4)), 8, 8)
            self.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)
        else:
            self.downscale_ratio = self.upscale_ratio = 8

    def throw_exception_if_invalid(self):
        pass

    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        self.seen = len(pixels)
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return cells[::4].movedim(0, 1)[None] if self.video else cells[:, :, None] if self.not_video else cells


def test_a_reference_is_the_picture_once_a_frame(host):
    image = torch.rand(1, 32, 24, 4)
    still = call(host, "ReferenceLatent", image, Autoencoder(), length=6)[0]["samples"]
    assert still.shape == (6, 3, 4, 3) and (still == still[:1]).all()
    assert call(host, "ReferenceLatent", image, Autoencoder(), repeat_static=False)[0]["samples"].shape[0] == 1


@pytest.mark.parametrize(("length", "encoded", "latent_frames"), [(1, 1, 1), (16, 13, 4), (17, 17, 5)])
def test_an_autoencoder_of_videos_encodes_the_still_clip(host, length, encoded, latent_frames):
    vae = Autoencoder(video=True)
    still = call(host, "ReferenceLatent", torch.rand(1, 32, 24, 3), vae, length=length)[0]["samples"]
    assert vae.seen == encoded and still.shape == (1, 3, latent_frames, 4, 3)
    call(host, "ReferenceLatent", torch.rand(1, 32, 24, 3), vae, length=length, repeat_static=False)
    assert vae.seen == 1


@pytest.mark.parametrize("repeat_static", [True, False])
def test_an_autoencoder_of_pictures_in_the_layout_of_videos_gives_one_frame_for_all(host, repeat_static):
    still = call(host, "ReferenceLatent", torch.rand(1, 32, 24, 3), Autoencoder(not_video=True), length=6,
                 repeat_static=repeat_static)[0]["samples"]  # fmt: skip
    assert still.shape == (1, 3, 1, 4, 3)


def test_pictures_that_begin_no_clip_are_refused(host):
    with pytest.raises(ValueError, match=r"image is 32 x 7 pixels .*, and the autoencoder takes sides from 8 on"):
        call(host, "ReferenceLatent", torch.rand(1, 32, 7, 3), Autoencoder())
    with pytest.raises(ValueError, match="image holds 2 pictures"):
        call(host, "ReferenceLatent", torch.rand(2, 32, 24, 3), Autoencoder())
    with pytest.raises(ValueError, match="vae is none"):
        call(host, "ReferenceLatent", torch.rand(1, 32, 24, 3), None)


# --- measures of a video ---------------------------------------------------------------------------------------------


def test_measures_of_a_still_and_of_a_brightening_video(host):
    picture = torch.full((1, 16, 16, 3), 0.2)
    psnr, _, _, adjacent, jitter, drift, text = call(host, "VideoMetrics", picture.repeat(5, 1, 1, 1), picture)
    assert (psnr, adjacent, jitter, drift) == (pytest.approx(100), 0, 0, pytest.approx(0, abs=1e-4))
    assert "Consistency" not in text and "Colour drift 0.0000" in text
    brighter = picture + 0.1 * torch.arange(5).view(-1, 1, 1, 1)
    psnr, _, _, adjacent, jitter, drift, _ = call(host, "VideoMetrics", brighter, picture)
    assert psnr == pytest.approx(100) and adjacent == pytest.approx(0.1) and jitter == pytest.approx(0, abs=1e-6)
    linear = [((0.2 + 0.1 * i + 0.055) / 1.055) ** 2.4 for i in range(5)]  # light of sRGB's greys
    lightness = [116 * light ** (1 / 3) - 16 for light in linear]
    assert drift == pytest.approx(sum(lightness) / 5 - lightness[0], abs=0.01)
    flicker = picture + 0.1 * (torch.arange(5) % 2).view(-1, 1, 1, 1)
    assert call(host, "VideoMetrics", flicker, picture)[4] == pytest.approx(0.2)


def test_consistency_is_that_of_the_first_frame_with_the_others(host, monkeypatch):
    angles = {0.0: 0, 0.25: 60, 0.5: 90}

    def embeds(_clip_vision):
        def see(pixels):
            degrees = [math.radians(angles[round(float(p.mean()), 2)]) for p in pixels]
            return torch.tensor([[math.cos(d), math.sin(d)] for d in degrees])

        return see

    monkeypatch.setitem(host.node_table["TrajectoryTRIPVideoMetrics"].execute.__func__.__globals__, "vision_embeds",
                        embeds)  # fmt: skip
    video = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.5, 0.5]).view(-1, 1, 1, 1).expand(6, 8, 8, 3)
    _, four, every, *_, text = call(host, "VideoMetrics", video, video[:1], clip_vision=object())
    assert four == pytest.approx(50, abs=1e-3) and every == pytest.approx(30, abs=1e-3)
    assert "F-Consistency 4 50.0000" in text


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_clip_vision_sees_each_frame_alone_and_without_its_alpha(host, channels):
    video = torch.rand(3, 20, 34, channels, generator=torch.Generator().manual_seed(1))
    vision = vision_of(host)
    with torch.inference_mode():
        made = call(host, "VideoMetrics", video, video[:1], clip_vision=vision)
    rgb = video[..., :3].expand(3, 20, 34, 3).movedim(-1, 1)
    first, second, third = (vision_embeds(vision)(frame[None]).detach().double().flatten() for frame in rgb)
    cosines = [first @ e / first.norm() / e.norm() for e in (second, third)]
    assert made[1] == made[2] == pytest.approx(50 * float(sum(cosines)), rel=1e-4)
    assert made[0] == pytest.approx(100) and made[3] == pytest.approx(float(rgb.diff(dim=0).abs().mean()), rel=1e-5)


def test_a_cancelled_run_stops_before_the_next_frame(host, monkeypatch):
    seen = []

    def embeds(_clip_vision):
        return lambda pixels: seen.append(pixels) or torch.ones(1, 2)

    scope = host.node_table["TrajectoryTRIPVideoMetrics"].execute.__func__.__globals__
    monkeypatch.setitem(scope, "vision_embeds", embeds)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        call(host, "VideoMetrics", torch.rand(3, 8, 8, 3), torch.rand(1, 8, 8, 3), clip_vision=object())
    assert not seen


def test_a_video_of_one_frame_has_measures(host):
    picture = torch.rand(1, 16, 16, 3)
    assert call(host, "VideoMetrics", picture, picture)[3:5] == (0, 0)


@pytest.mark.parametrize("shape", [(1, 8, 16, 3), (2, 16, 16, 3)], ids=str)
def test_a_reference_picture_of_another_size_is_refused(host, shape):
    with pytest.raises(ValueError, match="reference is .*; connect one picture in the size of the frames"):
        call(host, "VideoMetrics", torch.rand(4, 16, 16, 3), torch.rand(shape))
