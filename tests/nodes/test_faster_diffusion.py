"""Faster Diffusion inside a host: on a UNet, on the bundled transformer, and its prior noise on exact models."""

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import host_models
import pytest
import tiny_dits
import torch
import unets
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from trajectory.nodes.solvers import sampler_recipe
from trajectory.samplers.dpm_solver import sample_dpm_solver
from trajectory.samplers.feature_reuse import UNetRun
from trajectory.samplers.key_steps import Timeline, key_steps
from trajectory.samplers.prior_noise import with_prior_noise

STEPS = 10
ALL = ", ".join(str(i) for i in range(STEPS))
KEYS = [0, 1, 4, 8]
SHAPE = (2, 4, 8, 8)


@pytest.fixture
def unet():
    return unets.unet()


def patch(host, patcher, keys=KEYS, node="TrajectoryFasterDiffusion", **inputs):
    cls = host.node_table[node]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if i.id != "model"}
    custom = ", ".join(str(k) for k in keys) if isinstance(keys, list) else keys
    published = {"fresh_input": False} if node == "TrajectoryFasterDiffusion" else {}
    settings = {**defaults, **published, "schedule": "custom", "custom": custom, **inputs}
    return cls.execute(patcher, **settings).args[0]


def noise_of(seed=5, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmas_of(patcher, steps=STEPS):
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "karras", steps)


def solver(name):
    if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
        pytest.skip(f"this host has no {name}")
    return comfy.samplers.sampler_object(name)


def sample(patcher, sampler="euler", cfg=3.0, noise=None, sigmas=None, positive=None, negative=None, report=None):
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive or unets.conditioning(0.3), negative or unets.conditioning(0.7))
    guider.set_cfg(cfg)
    noise = noise_of() if noise is None else noise
    sigmas = sigmas_of(patcher) if sigmas is None else sigmas
    return guider.sample(
        noise, torch.zeros_like(noise), solver(sampler), sigmas, callback=report, disable_pbar=True, seed=3
    ).clone()  # fmt: skip


class Counter:
    """How often a layer of a network is called."""

    def __init__(self, layer):
        self.calls = 0
        layer.register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1


def counters(patcher):
    network = patcher.model.diffusion_model
    return Counter(network.input_blocks[1][0]), Counter(network.middle_block[0]), Counter(network.output_blocks[0][0])


def spied(patcher, spy, wrapper=WrappersMP.DIFFUSION_MODEL):
    """A clone with the wrapper `spy` around the network, outside of Faster Diffusion's own."""
    clone = patcher.clone()
    clone.add_wrapper_with_key(wrapper, "spy", spy)
    return clone


# --- what a UNet computes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("parallel", [False, True])
def test_where_every_step_is_whole_the_run_is_the_models_to_the_last_bit(host, unet, sampler, parallel):
    patched = patch(host, unet, keys=ALL, parallel_decode=parallel)
    assert torch.equal(sample(patched, sampler), sample(unet, sampler))


@pytest.mark.parametrize("inputs", [
    {"start_percent": 1.0}, {"end_percent": 0.0}, {"start_percent": 0.5, "end_percent": 0.5},
], ids=str)  # fmt: skip
def test_outside_of_the_range_every_step_is_whole(host, unet, inputs):
    assert torch.equal(sample(patch(host, unet, **inputs)), sample(unet))


def test_the_papers_list_leaves_short_runs_alone(host, unet):
    patched, sigmas = patch(host, unet, schedule="paper"), sigmas_of(unet, 7)
    assert torch.equal(sample(patched, sigmas=sigmas), sample(unet, sigmas=sigmas))


def decoded(network, call, timesteps, x=None):
    """Output of the network for `call`, the decoder's residual blocks told `timesteps`: found with hooks alone.

    x: a state whose first convolution is the decoder's last skip, in place of that of the call.
    """
    embedding, hooks = [], []

    def keep(module, args, output):
        embedding.append(output)

    hook = network.time_embed.register_forward_hook(keep)
    network._forward(call["x"], timesteps, call["context"], None, None, {})
    hook.remove()

    def swap(module, args):
        return (args[0], embedding[0], *args[2:])

    for block in network.output_blocks:
        for layer in block:
            if type(layer).__name__ == "ResBlock":
                hooks.append(layer.register_forward_pre_hook(swap))
    if x is not None:
        skip = network.input_blocks[0][0](x)
        hooks.append(network.output_blocks[-1][0].register_forward_pre_hook(
            lambda module, args: (torch.cat([args[0][:, :-skip.shape[1]], skip], dim=1), *args[1:])))
    output = network._forward(call["x"], call["timesteps"], call["context"], None, None, {})
    for hook in hooks:
        hook.remove()
    return output


@pytest.mark.parametrize("parallel, fresh", [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_key_step_is_the_model_and_the_others_its_decoder_on_the_key_steps_features(host, unet, cfg, parallel, fresh):
    calls = []

    def spy(executor, x, timesteps, context, *args, **kwargs):
        call = {"x": x.clone(), "timesteps": timesteps, "context": context}
        calls.append({**call, "output": executor(x, timesteps, context, *args, **kwargs)})
        return calls[-1]["output"]

    sample(patch(host, spied(unet, spy), parallel_decode=parallel, fresh_input=fresh), cfg=cfg)
    assert len(calls) == STEPS
    network = unet.model.diffusion_model
    with torch.inference_mode():
        for step, call in enumerate(calls):
            key = max(k for k in KEYS if k <= step)
            expected = decoded(network, calls[key], call["timesteps"], call["x"] if fresh and not parallel else None)
            if step in KEYS:
                assert torch.equal(call["output"], network._forward(call["x"], call["timesteps"], call["context"],
                                                                    None, None, {}))  # fmt: skip
            assert torch.allclose(call["output"], expected, atol=2e-6)


@pytest.mark.parametrize(("sampler", "whole", "decoder"), [
    ("euler", 4, 10), ("dpmpp_2m", 4, 10),
    ("heun", 1 + 2 * 3, 19),  # twice at a key step: at its state, and where the step before looks ahead to it
    ("dpm_2", 4 + 1, 19),  # and between steps 0 and 1, which are both whole
], ids=str)  # fmt: skip
def test_the_encoder_runs_at_the_key_steps_alone(host, unet, sampler, whole, decoder):
    encoder, middle, up = counters(unet)
    sample(patch(host, unet), sampler)
    assert (encoder.calls, middle.calls, up.calls) == (whole, whole, decoder)


@pytest.mark.parametrize("schedule", ["paper", "uniform", "pro"])
def test_calls_of_the_named_schedules(host, unet, schedule):
    encoder, _, _ = counters(unet)
    sample(patch(host, unet, schedule=schedule), sigmas=sigmas_of(unet, 25))
    assert encoder.calls == len(key_steps(schedule, 25)) < 12


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_decoding_ahead_is_decoding_in_turn(host, unet, sampler, cfg):
    in_turn = sample(patch(host, unet), sampler, cfg)
    _, _, up = counters(unet)
    ahead = sample(patch(host, unet, parallel_decode=True), sampler, cfg)
    assert torch.allclose(ahead, in_turn, atol=1e-5 * float(in_turn.abs().max()))
    if sampler in ("euler", "dpmpp_2m"):
        assert up.calls == len(KEYS) + 3  # each key step, and one batch after it; none follows step 0


def test_churned_sigmas_refresh_the_features_as_often(host, unet):
    encoder, _, _ = counters(unet)
    noisy = comfy.samplers.ksampler("euler", {"s_churn": 4.0})
    guider = comfy.samplers.CFGGuider(patch(host, unet))
    guider.set_conds(unets.conditioning(0.3), unets.conditioning(0.7))
    out = guider.sample(noise_of(), torch.zeros(SHAPE), noisy, sigmas_of(unet), disable_pbar=True, seed=3)
    assert torch.isfinite(out).all() and len(KEYS) <= encoder.calls <= len(KEYS) + 1


def test_features_follow_the_conditioning_when_the_host_splits_its_batch(host, unet):
    """Cond and uncond in one call at some steps and in two at others."""
    turns = []

    def split(apply_model, args):
        x, sigma, c = args["input"], args["timestep"], args["c"]
        turns.append(len(turns) % 3 != 1)
        if turns[-1]:
            return apply_model(x, sigma, **c)
        options, halves = c["transformer_options"], []
        for k in range(2):
            own = {**options, "uuids": options["uuids"][k : k + 1], "cond_or_uncond": args["cond_or_uncond"][k : k + 1]}
            context = c["c_crossattn"].chunk(2)[k]
            halves.append(apply_model(x.chunk(2)[k], sigma.chunk(2)[k], c_crossattn=context, transformer_options=own))
        return torch.cat(halves)

    encoder, _, _ = counters(unet)
    merged = sample(patch(host, unet))
    assert encoder.calls == len(KEYS)
    for parallel in (False, True):
        splitting = patch(host, unet, parallel_decode=parallel)
        splitting.set_model_unet_function_wrapper(split)
        assert torch.allclose(sample(splitting), merged, atol=1e-5 * float(merged.abs().max()))
    assert not all(turns) and encoder.calls > 2 * len(KEYS)


def test_a_guidance_that_asks_for_the_same_conditioning_twice_has_features_of_its_own(host, unet):
    """As perturbed-attention guidance does: the second answer must not stand in for the first."""
    def perturbed(args):
        options = comfy.model_patcher.create_model_options_clone(args["model_options"])
        options["transformer_options"]["patches"] = {"input_block_patch": [lambda h, _: 2 * h]}
        comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"]

    patched = patch(host, unet)
    guided = patched.clone()
    guided.set_model_sampler_post_cfg_function(perturbed)
    assert torch.equal(sample(guided), sample(patched))


def test_item_k_of_a_batch_is_that_item_alone(host, unet):
    patched, noise = patch(host, unet, parallel_decode=True), noise_of(8, (3, 4, 8, 8))
    batch = sample(patched, noise=noise)
    for k in range(3):
        alone = sample(patched, noise=noise[k : k + 1])
        assert torch.allclose(batch[k : k + 1], alone, atol=1e-5 * float(batch.abs().max()))


def test_bfloat16(host):
    low = unets.unet(dtype=torch.bfloat16)
    noise = noise_of()
    in_turn = sample(patch(host, low), noise=noise)
    ahead = sample(patch(host, low, parallel_decode=True), noise=noise)
    assert torch.isfinite(in_turn).all() and torch.equal(sample(patch(host, low, keys=ALL)), sample(low))
    assert (ahead - in_turn).abs().max() < 0.1 * in_turn.abs().max()


def test_video_unets(host):
    """Stable Video Diffusion's class: frames are the batch, and stay together when steps are decoded ahead."""
    if host.name == "embedded":
        pytest.skip("the embedded host has no video UNets")
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    frames, sigmas = 3, (4.0, 3.0, 2.0, 1.0, 0.0)
    network = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
        transformer_depth=[1, 1], transformer_depth_output=[1] * 4, transformer_depth_middle=1, context_dim=24,
        num_head_channels=16, use_spatial_transformer=True, legacy=False, use_temporal_resblock=True,
        use_temporal_attention=True, extra_ff_mix_layer=True, use_spatial_context=True, merge_factor=0.0,
        merge_strategy="learned_with_images", video_kernel_size=[3, 1, 1],
    )  # fmt: skip
    network.load_state_dict(unets.random_weights(network))
    x, context = noise_of(1, (2 * frames, 4, 8, 8)), noise_of(2, (2 * frames, 5, 24))

    def outputs(keys, ahead=False):
        run = UNetRun(Timeline(sigmas, frozenset(keys)), (lambda s: 100 * s) if ahead else None)
        for sigma in sigmas[:-1]:
            options = {"uuids": ["cond", "uncond"], "sigmas": torch.full((frames,), sigma)}
            add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", run.call, options)
            run.begin(sigma)
            with torch.no_grad():
                yield run.conditionings(lambda mode, sigma=sigma, options=options: network(
                    x * sigma, torch.full((len(x),), 100 * sigma), context, transformer_options=options,
                    num_video_frames=frames))

    plain, in_turn, ahead = (list(outputs(*args)) for args in ((range(4),), ((0, 2),), ((0, 2), True)))
    assert [torch.equal(a, b) for a, b in zip(plain, in_turn, strict=True)] == [True, False, True, False]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(in_turn, ahead, strict=True))


# --- nothing of a run is left ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_runs_do_not_know_of_each_other(host, unet, parallel):
    patched = patch(host, unet, parallel_decode=parallel)
    options = patched.model_options
    first, plain = sample(patched), sample(unet)
    assert not torch.allclose(first, plain, atol=1e-3)
    sample(patched, noise=noise_of(9, (1, 4, 16, 12)))
    assert torch.equal(sample(patched), first)
    assert torch.equal(sample(unet), plain)
    assert patched.model_options is options and "patches_replace" not in options["transformer_options"]
    again = patch(host, patched, parallel_decode=parallel)
    encoder, _, _ = counters(unet)
    assert torch.equal(sample(again), first) and encoder.calls == len(KEYS)  # a second patch replaces the first


@pytest.mark.parametrize("reason", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_a_run_that_breaks_off_leaves_nothing_behind(host, unet, reason):
    patched = patch(host, unet)
    whole = sample(patched)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(unets.conditioning(0.3), unets.conditioning(0.7))

    def stop(step, *_):
        if step == 5:
            raise reason

    with pytest.raises(reason):
        guider.sample(noise_of(9), torch.zeros(SHAPE), comfy.samplers.sampler_object("euler"), sigmas_of(unet),
                      callback=stop, disable_pbar=True)  # fmt: skip
    assert guider.model_options is patched.model_options
    assert torch.equal(sample(patched), whole)


# --- together with other patches -------------------------------------------------------------------------------------


def test_patches_of_the_decoder_work_at_every_step(host, unet):
    """FreeU and its kind."""
    blocks = []

    def louder(h, skip, options):
        blocks.append(options["block"])
        return 1.2 * h, skip

    def fitted(patcher):
        clone = patcher.clone()
        clone.set_model_patch(louder, "output_block_patch")
        return clone

    outer = fitted(unet)
    assert torch.equal(sample(patch(host, outer, keys=ALL)), sample(outer))
    blocks.clear()
    free = sample(patch(host, outer))
    assert len(blocks) == STEPS * len(unet.model.diffusion_model.output_blocks)
    assert not torch.allclose(free, sample(patch(host, unet)), atol=1e-3)
    assert torch.equal(free, sample(fitted(patch(host, unet))))  # in either order


def test_attention_patches_see_the_same_place_in_the_network(host, unet):
    seen = {}

    def look(n, context, value, options):
        step = len(seen.setdefault("steps", []))
        seen.setdefault((step, options["block"]), options["transformer_index"])
        return n, context, value

    patched = patch(host, unet)
    patched.set_model_patch(look, "attn1_patch")
    sample(patched, report=lambda *_: seen["steps"].append(0))
    places = {step: {b: i for (s, b), i in list(seen.items())[1:] if s == step and b[0] == "output"} for step in (0, 5)}
    assert len(places[0]) == 4 and places[0] == places[5]


@pytest.mark.parametrize("parallel", [False, True])
def test_a_patch_that_changes_sizes_in_the_middle_of_the_run(host, unet, parallel):
    """PatchModelAddDownscale ('deep shrink'): smaller features at high sigma. Where they no longer fit, a key step."""
    limit = float(sigmas_of(unet)[5])

    def shrink(h, options):
        if options["block"] == ("input", 3) and float(options["sigmas"][0]) > limit:
            return torch.nn.functional.interpolate(h, scale_factor=0.5)
        return h

    def grow(h, skip, options):
        if h.shape[2:] != skip.shape[2:]:
            h = torch.nn.functional.interpolate(h, size=skip.shape[2:])
        return h, skip

    outer = unet.clone()
    outer.set_model_patch(shrink, "input_block_patch")
    outer.set_model_patch(grow, "output_block_patch")
    noise = noise_of(4, (1, 4, 16, 16))
    assert torch.equal(sample(patch(host, outer, keys=ALL), noise=noise), sample(outer, noise=noise))
    encoder, _, _ = counters(unet)
    out = sample(patch(host, outer, parallel_decode=parallel), noise=noise)
    forced = sample(patch(host, outer, keys=[0, 1, 4, 5, 8]), noise=noise)
    assert torch.allclose(out, forced, atol=1e-5 * float(out.abs().max()))  # step 5 became whole by itself
    assert encoder.calls == 2 * (len(KEYS) + 1)


def test_wrappers_inside_of_ours_still_run(host, unet):
    calls = []

    def inner(executor, *args, **kwargs):
        calls.append(0)
        return executor(*args, **kwargs)

    def late(executor, guider, sigmas, extra_args, *args, **kwargs):
        add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "late", inner, extra_args["model_options"], True)
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    patched = patch(host, unet)
    expected = sample(patched)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "late", late)
    assert torch.equal(sample(patched), expected) and len(calls) == STEPS


def test_changed_weights_change_the_features(host, unet):
    patched = patch(host, unet)
    plain = sample(patched)
    key = "diffusion_model.input_blocks.1.0.out_layers.3.weight"
    weight = unet.model_state_dict()[key]
    patched.add_patches({key: ("diff", (0.5 * torch.ones_like(weight),))}, 1.0)
    lora = sample(patched)
    assert not torch.allclose(lora, plain, atol=1e-3)
    patched.unpatch_model(patched.offload_device)
    assert torch.equal(sample(patch(host, unet)), plain)


# --- ControlNet ------------------------------------------------------------------------------------------------------


def controlled(patcher, log):
    """A clone whose network is given fresh control residuals at every call, which it uses up as a ControlNet's are."""
    def spy(executor, x, timesteps, context, y, control, options, **kwargs):
        log.append(float(timesteps[0]))
        size, amount = x.shape[-1] // 4, float(timesteps[0]) / 1000
        middle = torch.full((len(x), 64, size, size), amount)
        control = {"middle": [middle], "output": [None] * 4 + [middle.clone()], "input": []}
        return executor(x, timesteps, context, y, control, options, **kwargs)

    return spied(patcher, spy)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_key_steps_control_is_used_again(host, unet, parallel):
    log = []
    outer = controlled(unet, log)
    assert torch.equal(sample(patch(host, outer, keys=ALL)), sample(outer))
    again = sample(patch(host, outer, parallel_decode=parallel))
    fresh = sample(patch(host, outer, skip_controlnet=False, parallel_decode=parallel))
    assert torch.isfinite(again).all() and not torch.allclose(again, fresh, atol=1e-4)
    assert torch.allclose(again, sample(patch(host, outer)), atol=1e-5 * float(again.abs().max()))
    assert torch.equal(fresh, sample(patch(host, outer, skip_controlnet=False)))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("on", ["both", "positive"])
def test_a_controlnet_rests_between_key_steps(host, unet, on, parallel):
    if host.name == "embedded":
        pytest.skip("the embedded host has no control networks")
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        calls = 0

        def get_control(self, x, t, cond, batched_number, transformer_options):
            Control.calls += 1
            middle = torch.full((len(x), 64, x.shape[-2] // 4, x.shape[-1] // 4), float(t[0]) / 10)
            return {"middle": [middle], "output": [], "input": []}

        def get_models(self):
            return []

    def conditioning(value, control):
        (text, options), = unets.conditioning(value)
        return [[text, {**options, "control": control, "control_apply_to_uncond": False}]] if control else [[text, {}]]

    def run(patcher):
        Control.calls, control = 0, Control()
        return sample(patcher, positive=conditioning(0.3, control),
                      negative=conditioning(0.7, control if on == "both" else None))

    plain = run(unet)
    assert Control.calls == STEPS
    assert torch.equal(run(patch(host, unet, keys=ALL)), plain)
    rested = run(patch(host, unet, parallel_decode=parallel))
    assert Control.calls == len(KEYS)
    assert torch.isfinite(rested).all() and not torch.allclose(rested, sample(patch(host, unet)), atol=1e-3)
    run(patch(host, unet, skip_controlnet=False, parallel_decode=parallel))
    assert Control.calls == STEPS


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def miniature(host):
    """(model, conditioning, empty conditioning) of the bundled flow model."""
    from trajectory.nodes.models import TrajectoryLoadMiniature

    model, clip, _ = TrajectoryLoadMiniature.execute("landscapes (flow)").args
    encode = host.node_table["CLIPTextEncode"]()
    return model, *(encode.encode(clip, text)[0] for text in ("a dawn over the sea with a sun", ""))


def dit(host, model, keys=KEYS, **inputs):
    return patch(host, model, keys, "TrajectoryFasterDiffusionDiT", **inputs)


def paint(miniature, patcher, sampler="euler", cfg=2.0, size=8, items=1, report=None):
    _, positive, negative = miniature
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    noise = noise_of(1, (items, patcher.model.latent_format.latent_channels, size, size))
    return sample(patcher, sampler, cfg, noise, sigmas, positive, negative, report)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_dit_where_every_step_is_whole_the_run_is_the_models_to_the_last_bit(host, miniature, sampler):
    model = miniature[0]
    assert torch.equal(paint(miniature, dit(host, model, ALL), sampler), paint(miniature, model, sampler))


@pytest.mark.parametrize(("fraction", "count"), [(0.05, 1), (0.33, None), (0.9, None)])
def test_dit_the_first_blocks_run_at_the_key_steps_alone(host, miniature, fraction, count):
    model = miniature[0]
    blocks = model.model.diffusion_model.joint_blocks
    count = count or min(round(fraction * len(blocks)), len(blocks) - 1)
    counted = [Counter(block.x_block.mlp) for block in blocks]
    changed, plain = paint(miniature, dit(host, model, fraction=fraction)), paint(miniature, model)
    assert [c.calls for c in counted] == [len(KEYS) + STEPS] * count + [2 * STEPS] * (len(blocks) - count)
    assert torch.isfinite(changed).all() and not torch.equal(changed, plain)


def residual_answers(model, count, key, call):
    """The model's answers to `key`, and to `call` with what its first blocks added at `key`: found with hooks alone."""
    blocks, entered, added = model.diffusion_model.joint_blocks, [], []

    def enter(block, streams):
        entered[:] = [stream.clone() for stream in streams[:2]]

    def leave(block, streams, left):
        if added:
            return tuple(a + b for a, b in zip(entered, added, strict=True))
        added.extend(b - a for a, b in zip(entered, left, strict=True))

    hooks = blocks[0].register_forward_pre_hook(enter), blocks[count - 1].register_forward_hook(leave)
    answers = [model.apply_model(**arguments, transformer_options={}) for arguments in (key, call)]
    for hook in hooks:
        hook.remove()
    return answers


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_dit_between_key_steps_the_first_blocks_add_what_they_added_at_the_last(host, miniature, cfg):
    calls = []

    def spy(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        denoised = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        calls.append(({"x": x.clone(), "t": t, "c_crossattn": c_crossattn, **kwargs}, denoised.clone()))
        return denoised

    paint(miniature, dit(host, spied(miniature[0], spy, WrappersMP.APPLY_MODEL), fraction=0.33), cfg=cfg)
    assert len(calls) == STEPS
    model = miniature[0].model
    count = round(0.33 * len(model.diffusion_model.joint_blocks))
    with torch.inference_mode():
        for step, (arguments, denoised) in enumerate(calls):
            key = max(k for k in KEYS if k <= step)
            whole, expected = residual_answers(model, count, calls[key][0], arguments)
            assert torch.equal(calls[key][1], whole)
            assert torch.allclose(denoised, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [
    "Wan", "LTX", "SD3", "SD3.5 medium", "Flux", "Flux 2", "Chroma", "Qwen-Image", "HunyuanVideo",
])  # fmt: skip
def test_dit_between_key_steps_the_output_follows_the_state(host, kind):
    if host.name == "embedded":
        pytest.skip(f"the embedded host has no {kind}")
    patcher = tiny_dits.dit(kind)
    if patcher is None:
        pytest.skip(f"this host has no {kind}")
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)

    def velocities(patcher):
        """At step 0, and at step 1 in two states."""
        seen = []

        def look(model, x, sigmas, extra_args=None, **kwargs):
            for state, sigma in ((x, sigmas[0]), (x, sigmas[1]), (x.roll(1, -1), sigmas[1])):
                seen.append((state - model(state, sigma.expand(len(x)), **extra_args)) / sigma)
            return x

        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(tiny_dits.conditioning(kind, 1, 5), tiny_dits.conditioning(kind, 2, 5))
        guider.set_cfg(2.0)
        noise = noise_of(1, (1, *tiny_dits.DITS[kind][2]))
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(look), sigmas, disable_pbar=True)
        return seen

    whole, cached = velocities(patcher), velocities(dit(host, patcher, [0], fraction=0.5))
    assert torch.equal(whole[0], cached[0])
    assert not torch.equal(whole[1], cached[1])
    change = whole[2] - whole[1]
    assert (cached[2] - cached[1] - change).norm() < 0.95 * change.norm()  # random blocks: they add much


def test_dit_runs_do_not_know_of_each_other(host, miniature):
    model = miniature[0]
    patched = dit(host, model)
    first = paint(miniature, patched)
    paint(miniature, patched, size=16, items=2)
    with pytest.raises(RuntimeError):
        paint(miniature, patched, report=lambda *_: (_ for _ in ()).throw(RuntimeError))
    assert torch.equal(paint(miniature, patched), first)
    both = paint(miniature, patched, items=2)
    paint(miniature, patched, size=16)
    assert torch.equal(paint(miniature, patched, items=2), both)


def test_dit_replacements_of_others_go_on(host, miniature):
    calls = []

    def theirs(args, extra):
        calls.append(0)
        out = extra["original_block"](args)
        return {**out, "img": 1.1 * out["img"]}

    other = miniature[0].clone()
    other.set_model_patch_replace(theirs, "dit", "double_block", 0)
    assert torch.equal(paint(miniature, dit(host, other, ALL)), paint(miniature, other))
    calls.clear()
    changed = paint(miniature, dit(host, other))
    assert len(calls) == len(KEYS) and not torch.allclose(changed, paint(miniature, dit(host, miniature[0])), atol=1e-4)


@pytest.mark.parametrize(("node", "other"), [
    ("TrajectoryFasterDiffusion", "TrajectoryFasterDiffusionDiT"),
    ("TrajectoryFasterDiffusionDiT", "TrajectoryFasterDiffusion"),
])  # fmt: skip
def test_the_wrong_kind_of_model_is_named(host, miniature, unet, node, other):
    model = miniature[0] if node == "TrajectoryFasterDiffusion" else unet
    with pytest.raises(ValueError, match="model is a") as error:
        patch(host, model, node=node)
    name = host.node_table[other].GET_SCHEMA().display_name
    assert type(model.model.diffusion_model).__name__ in str(error.value) and f"'{name}'" in str(error.value)


def test_a_transformer_that_lets_nobody_replace_its_blocks_is_reported(host, caplog):
    patcher = host_models.model("flow")
    patcher.model.diffusion_model.blocks = torch.nn.ModuleList([torch.nn.Identity()] * 4)
    patched = dit(host, patcher)
    conditionings = host_models.conditioning(0.4), host_models.conditioning(-0.2)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    with caplog.at_level("WARNING"):
        out = sample(patched, sigmas=sigmas, positive=conditionings[0], negative=conditionings[1])
    assert "does not let a patch replace its blocks" in caplog.text
    assert torch.equal(out, sample(patcher, sigmas=sigmas, positive=conditionings[0], negative=conditionings[1]))


# --- prior noise -----------------------------------------------------------------------------------------------------


def prior_noise(host, sampler, **inputs):
    cls = host.node_table["TrajectoryPriorNoiseInjection"]
    return cls.execute(sampler, **{"strength": 0.003, "below_percent": 0.5, **inputs}).args[0]


def states(kind, sampler, mask=None):
    """(sigma, state) of each step of a run from noise on an exact model."""
    patcher = host_models.model(kind)
    scheduler = "simple" if kind == "flow" else "karras"
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, STEPS)
    seen = []
    guider = host_models.guider(patcher)
    out = guider.sample(
        noise_of(), torch.zeros(SHAPE), sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=3,
        callback=lambda i, denoised, x, total: seen.append((float(sigmas[i]), x.clone())),
    )  # fmt: skip
    return patcher.get_model_object("model_sampling"), seen, out


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
@pytest.mark.parametrize("inputs", [{"strength": 0.0}, {"below_percent": 0.0}], ids=str)
def test_without_noise_it_is_the_sampler_to_the_last_bit(host, kind, inputs):
    euler = comfy.samplers.sampler_object("euler")
    _, _, plain = states(kind, euler)
    _, _, same = states(kind, prior_noise(host, euler, **inputs))
    assert torch.equal(plain, same)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_the_published_rule(host, kind):
    """Before each Euler step below the middle of the model's time: x += 0.003 z_T, in the state's own scale."""
    sampling, seen, _ = states(kind, prior_noise(host, comfy.samplers.sampler_object("euler")))
    scale = (lambda s: 1.0) if kind == "flow" else (lambda s: (1 + s * s) ** 0.5)
    prior = seen[0][1] / scale(seen[0][0])
    exact, added = host_models.model(kind).model, 0
    network = exact.diffusion_model
    for (a, x), (b, following) in zip(seen, seen[1:], strict=False):
        sigma = torch.full((2,), a)
        with torch.no_grad():
            denoised = exact.apply_model(x, sigma, c_crossattn=host_models.conditioning(0.4, 2)[0][0],
                                         transformer_options={"sigmas": sigma})  # fmt: skip
        step = x + (x - denoised) / a * (b - a)
        below = b < 0.5 if kind == "flow" else float(sampling.timestep(torch.tensor(b))) < 500
        expected = step + 0.003 * scale(b) * prior if below else step
        assert torch.allclose(following, expected, atol=1e-5 * max(1.0, b))
        added += below
    assert 2 <= added < STEPS and network.calls


def test_second_order_samplers_add_it_once_a_sigma(host, monkeypatch):
    from trajectory.samplers import prior_noise as module

    levels, original = [], module.PriorNoise._scale
    monkeypatch.setattr(module.PriorNoise, "_scale", lambda self, s: levels.append(s) or original(self, s))
    states("eps", prior_noise(host, comfy.samplers.sampler_object("heun"), below_percent=1.0))
    assert len(levels) == len(set(levels)) == STEPS  # the first is the prior's own: its time is 1, not below


def test_prior_noise_under_a_mask_reaches_the_samplers_own_state(host):
    mask = torch.ones(1, 1, 8, 8)
    euler = comfy.samplers.sampler_object("euler")
    _, free, _ = states("eps", prior_noise(host, euler))
    _, masked, _ = states("eps", prior_noise(host, euler), mask)
    assert all(torch.allclose(a, b, atol=1e-4) for (_, a), (_, b) in zip(free, masked, strict=True))


def test_prior_noise_refuses_what_samples_by_itself(host):
    with pytest.raises(ValueError, match="sampler is a Sampler"):
        prior_noise(host, comfy.samplers.Sampler())
    own = sampler_recipe(sample_dpm_solver)
    assert prior_noise(host, own).sampler_function is not own.sampler_function


def visit(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that asks the model at each level, and leaves the state to it."""
    for sigma in sigmas[:-1]:
        model(x, sigma.expand(len(x)), **extra_args)
    return x


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize(("levels", "added"), [((0.0, 0.0), False), ((0.0, 0.2, 0.3), True)], ids=str)
def test_prior_noise_is_not_added_at_sigma_0(host, kind, levels, added):
    sigmas, guider = torch.tensor(levels), host_models.guider(host_models.model(kind))
    sampler = comfy.samplers.KSAMPLER(visit)
    plain, noisy = (
        guider.sample(noise_of(), noise_of(9), one, sigmas, disable_pbar=True)
        for one in (sampler, prior_noise(host, sampler, below_percent=1.0))
    )
    assert noisy.isfinite().all() and torch.equal(noisy, plain) is not added


@pytest.mark.parametrize(("items", "levels"), [(2, ()), (2, (0.5,)), (0, (1.0, 0.0))], ids=str)
def test_prior_noise_without_steps_or_items_leaves_the_latent(levels, items):
    x = noise_of()[:items]
    assert with_prior_noise(visit, 0.003, 1.0)(None, x, torch.tensor(levels)) is x
