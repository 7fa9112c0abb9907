"""NASA and NAG inside a host: against the paper's formula, and against two networks in lockstep.

The lockstep is the reference for every kind of network: it runs in two threads, once on each prompt, and at each
attention to a text the two exchange what they got and go on with the same image.
"""

import logging
import re
import threading

import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import pytest
import tiny_dits
import torch
import unets
from trajectory.samplers.negative_attention import MODES

MADE = "TrajectoryNASA"
EVERY = comfy.patcher_extension.WrappersMP
SCALES = {"nasa": 0.7, "nasa_text_only": 0.7, "nag": 3.0}
TAU, BLEND = 1.4, 0.6


@pytest.fixture
def one_thread():
    """Several threads split the longer product of to_k and to_v in another way, which moves the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def patch(host, patcher, negative, mode="nasa", scale=None, **inputs):
    cls = host.node_table[MADE]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if hasattr(i, "default") and i.id != "model"}
    scale = SCALES[mode] if scale is None else scale
    given = {**defaults, "mode": mode, "scale": scale, "tau": TAU, "blend": BLEND, **inputs, "negative": negative}
    return cls.execute(patcher, **given).args[0]


def noise_of(shape, seed=5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(patcher, positive, shape=unets.SHAPE, negative=None, cfg=1.0, steps=2, noise=None, mask=None, seed=3):
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, negative or positive)
    guider.set_cfg(cfg)
    noise = noise_of(shape) if noise is None else noise
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas,
                             denoise_mask=mask, disable_pbar=True, seed=seed).clone()  # fmt: skip


def close(a, b, tolerance=1e-4):
    """Equal up to that share of the largest value."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


# --- the reference ---------------------------------------------------------------------------------------------------


def combined(mode, positive, negative):
    if mode != "nag":
        return positive - SCALES[mode] * negative
    guided = positive * (SCALES["nag"] + 1) - negative * SCALES["nag"]
    channels = (1, 3) if positive.ndim == 4 else -1
    ratio = guided.abs().sum(channels, keepdim=True) / positive.abs().sum(channels, keepdim=True)
    return BLEND * guided * ratio.clamp(max=TAU) / ratio + (1 - BLEND) * positive


def image_tokens(name, shape):
    patch = 1 if name == "Flux 2" else 2
    frames = shape[1] if len(shape) == 4 else 1
    return frames * -(-shape[-2] // patch) * -(-shape[-1] // patch)


def in_lockstep(name, mode, negative, networks):
    """APPLY_MODEL wrapper: the network on the positive and, in another thread, on the negative text."""
    registers = 8 if name == "AuraFlow" else 0

    def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more):
        text, options = negative[0]  # some models append tokens or pad
        made = executor.class_obj.extra_conds(cross_attn=text, noise=x, device=x.device, **options)
        others = [more, dict(more)]
        if "attention_mask" in made:
            others[1]["attention_mask"] = made["attention_mask"].cond.expand(len(x), -1)
        contexts = [c_crossattn, made["c_crossattn"].cond.expand(len(x), -1, -1)]
        image = image_tokens(name, x.shape[1:]) if name not in CROSS else None
        barrier, got, answers = threading.Barrier(2, timeout=60), [None, None], [None, None]

        def attention(branch):
            def override(original, q, k, v, heads, mask=None, **rest):
                if not rest.get("skip_reshape"):  # SD3's values come as [B, L, heads, D]
                    v = v.flatten(2)
                z = original(q, k, v, heads, mask=mask, **rest)
                length = contexts[branch].shape[1]
                if image is None:
                    if k.shape[-2] != length or q.shape[-2] == length:
                        return z
                    where = slice(None)
                elif q.shape[-2] == image + length + registers:
                    first = getattr(networks.double_blocks[0], "flipped_img_txt", False) if name in HUNYUAN else False
                    where = slice(0, image) if first else slice(length + registers, None)
                else:
                    return z
                got[branch] = z[..., where, :]
                if mode == "nasa_text_only" and image is not None and branch == 1:
                    values = v.clone()
                    values[..., where, :] = 0
                    got[1] = original(q, k, values, heads, mask=mask, **rest)[..., where, :]
                barrier.wait()
                both = combined(mode, *got)
                barrier.wait()
                z = z.clone()
                z[..., where, :] = both
                return z

            return override

        overrides = [attention(branch) for branch in range(2)]
        both = {}

        def run(branch):
            try:
                both[threading.get_ident()] = overrides[branch]
                own = dict(transformer_options, optimized_attention_override=overrides[branch])
                with torch.inference_mode():
                    answers[branch] = executor(x, t, c_concat, contexts[branch], control, own, **others[branch])
            except BaseException as error:
                answers[branch] = error
                barrier.abort()

        replaced = deaf_attention(name, both)
        threads = [threading.Thread(target=run, args=(branch,)) for branch in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        replaced()
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, threading.BrokenBarrierError):
                raise answer
        assert torch.equal(*answers)  # one image
        return answers[0]

    return apply_model


def deaf_attention(name, overrides):
    """PixArt's attention hears of no options: send each thread's calls to its override. Returns what undoes it."""
    if name != "PixArt":
        return lambda: None
    import comfy.ldm.pixart.blocks as blocks

    original = blocks.optimized_attention
    blocks.optimized_attention = lambda q, k, v, heads, **more: overrides[threading.get_ident()](
        original, q, k, v, heads, **more)  # fmt: skip

    def undo():
        blocks.optimized_attention = original

    return undo


CROSS = ("UNet", "Wan", "LTX", "Cosmos", "Cosmos Predict2", "Stable Audio", "PixArt")
HUNYUAN = ("HunyuanVideo",)
NETWORKS = ("UNet", *tiny_dits.DITS)


@pytest.fixture(scope="module")
def networks(host):
    made = {}

    def get(name):
        """(ModelPatcher, shape of one latent) of a random network."""
        if name == "UNet":
            return made.setdefault(name, unets.unet()), unets.SHAPE[1:]
        if host.name == "embedded" and name != "SD3":
            pytest.skip(f"the embedded host has no {name}")
        if name not in made:
            made[name] = embedded_sd3() if host.name == "embedded" else tiny_dits.dit(name)
        if made[name] is None:
            pytest.skip(f"ComfyUI {host.version} has no {name}")
        return made[name], tiny_dits.DITS[name][2]

    return get


def embedded_sd3():
    """The embedded host's network of SD3's class, random, for the latents and texts of `tiny_dits`."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    options = tiny_dits.SD3
    known = ("in_channels", "out_channels", "patch_size", "depth", "num_patches", "pos_embed_max_size",
             "adm_in_channels", "context_size", "qk_norm")  # fmt: skip

    class Format(comfy.latent_formats.LatentFormat):
        latent_channels = 4

    class Config(comfy.supported_models_base.BASE):
        unet_extra_config = {}
        latent_format = Format
        memory_usage_factor = 0.01
        sampling_settings = {"shift": 3.0}

    base = comfy.model_base.SD3(Config({name: options[name] for name in known}))
    network = base.diffusion_model
    network.load_state_dict(unets.random_weights(network), assign=True)
    base.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)


def text(name, seed, tokens, items=1):
    if name == "UNet":
        return [[torch.cat([unets.conditioning(seed + i, tokens)[0][0] for i in range(items)]), {}]]
    return tiny_dits.conditioning(name, seed, tokens, items)


# --- the same as the formulas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [(5, 5), (5, 8), (6, 3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_two_networks_that_share_one_image(host, networks, name, mode, tokens):
    patcher, shape = networks(name)
    positive, negative = text(name, 1, tokens[0]), text(name, 2, tokens[1])
    reference = patcher.clone()
    lockstep = in_lockstep(name, mode, negative, patcher.model.diffusion_model)
    reference.add_wrapper_with_key(EVERY.APPLY_MODEL, "reference", lockstep)
    expected = sample(reference, positive, (2, *shape))
    out = sample(patch(host, patcher, negative, mode), positive, (2, *shape))
    plain = sample(patcher, positive, (2, *shape))
    assert out.isfinite().all() and not close(out, plain, 1e-3)
    assert close(out, expected)


def attentions_to_text(patcher):
    """The layers of a UNet, which registers its modules in the order in which it runs them."""
    return [m.attn2 for m in patcher.model.diffusion_model.modules() if hasattr(m, "attn2")]


def formula_of_the_paper(layer, negative, alpha):
    """Forward of an attention to the text: Z+ - alpha Z- and then to_out."""
    from comfy.ldm.modules.attention import optimized_attention

    def forward(x, context=None, value=None, mask=None, transformer_options=None):
        q, texts = layer.to_q(x), (context, negative[0][0].expand(len(x), -1, -1))
        z = [optimized_attention(q, layer.to_k(text), layer.to_v(text), layer.heads,
                                 attn_precision=layer.attn_precision) for text in texts]  # fmt: skip
        return layer.to_out(z[0] - alpha * z[1])

    return forward


@pytest.mark.parametrize("tokens", [5, 77, 90])
def test_it_is_the_formula_of_the_paper_to_the_last_bit(host, tokens, monkeypatch):
    patcher, positive, negative = unets.unet(), unets.conditioning(1, 77), unets.conditioning(2, tokens)
    out = sample(patch(host, patcher, negative, scale=0.3), positive)
    for layer in attentions_to_text(patcher):
        monkeypatch.setattr(layer, "forward", formula_of_the_paper(layer, negative, 0.3))
    assert torch.equal(out, sample(patcher, positive))


@pytest.mark.parametrize("name", NETWORKS)
def test_nag_has_nothing_to_move_away_from_where_both_texts_are_one(host, networks, name):
    patcher, shape = networks(name)
    positive = text(name, 1, 5)
    plain = sample(patcher, positive, (1, *shape))
    same = sample(patch(host, patcher, positive, "nag"), positive, (1, *shape))
    assert close(same, plain)


# --- off is off ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("inputs", [
    {"mode": "nasa", "scale": 0.0}, {"mode": "nasa_text_only", "scale": 0.0}, {"mode": "nag", "scale": 0.0},
    {"mode": "nag", "blend": 0.0}, {"start_percent": 1.0},
], ids=str)  # fmt: skip
def test_without_strength_it_is_the_model_to_the_last_bit(host, networks, name, inputs):
    patcher, shape = networks(name)
    positive = text(name, 1, 5)
    out = sample(patch(host, patcher, text(name, 2, 8), **inputs), positive, (2, *shape))
    assert torch.equal(out, sample(patcher, positive, (2, *shape)))


def test_hooks_of_scale_zero_change_no_bit(one_thread, host, networks):
    """Not only is nothing hung on a run of scale 0: the split attention itself is exact."""
    patcher, shape = networks("UNet")
    positive = text("UNet", 1, 5)
    out = sample(patch(host, patcher, text("UNet", 2, 8), scale=1e-30), positive, (2, *shape))
    assert torch.equal(out, sample(patcher, positive, (2, *shape)))


@pytest.mark.parametrize("percents, steered", [((0.0, 1.0), 4), ((0.0, 0.5), 2), ((0.4, 1.0), 2), ((0.3, 0.6), 1)])
def test_it_acts_from_start_to_end(host, networks, percents, steered):
    patcher, shape = networks("UNet")
    calls = []
    patched = patch(host, patcher, text("UNet", 2, 5), start_percent=percents[0], end_percent=percents[1])
    network = patcher.model.diffusion_model
    forward = network.forward
    network.forward = lambda *args, transformer_options=None, **more: (
        calls.append("attn2" in transformer_options.get("patches_replace", {})),
        forward(*args, transformer_options=transformer_options, **more))[1]  # fmt: skip
    try:
        sample(patched, text("UNet", 1, 5), (1, *shape), steps=4)
    finally:
        del network.forward
    assert len(calls) == 4 and sum(calls) == steered


# --- batches and guidance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UNet", "SD3", "Wan", "Qwen-Image"])
@pytest.mark.parametrize("mode", MODES)
def test_item_k_of_a_batch_is_that_item_alone(host, networks, name, mode):
    patcher, shape = networks(name)
    positive, noise = text(name, 1, 5), noise_of((3, *shape), 8)
    patched = patch(host, patcher, text(name, 2, 7), mode)
    batch = sample(patched, positive, noise=noise)
    for k in range(3):
        alone = sample(patched, positive, noise=noise[k : k + 1])
        assert close(batch[k : k + 1], alone)


@pytest.mark.parametrize("name", ["UNet", "SD3"])
def test_each_item_has_its_own_text(host, networks, name):
    patcher, shape = networks(name)
    positive, negative, noise = text(name, 1, 5, items=2), text(name, 4, 7, items=2), noise_of((2, *shape), 8)
    batch = sample(patch(host, patcher, negative), positive, noise=noise)

    def of(cond, k):
        values, options = cond[0]
        return [[values[k : k + 1], {name: value[k : k + 1] for name, value in options.items()}]]

    for k in range(2):
        alone = sample(patch(host, patcher, of(negative, k)), of(positive, k), noise=noise[k : k + 1])
        assert close(batch[k : k + 1], alone)


@pytest.mark.parametrize("name", ["UNet", "SD3", "Wan"])
def test_the_guiders_negative_is_not_steered(host, networks, name, caplog):
    """With CFG, in one batch or in two calls: cond is NASA's, uncond the plain model's."""
    patcher, shape = networks(name)
    positive, other, shape = text(name, 1, 5), text(name, 3, 5), (2, *shape)
    patched = patch(host, patcher, text(name, 2, 7))

    def once(model, cond, cfg=1.0):
        return sample(model, cond, shape, negative=other, cfg=cfg, steps=1)

    cond, uncond = once(patched, positive), once(patcher, other)
    with caplog.at_level(logging.WARNING, "trajectory"):
        joined = once(patched, positive, cfg=3.0)
    assert sum("both count" in record.message for record in caplog.records) == 1
    expected = uncond + 3 * (cond - uncond)
    assert close(joined, expected)
    longer = [[torch.cat([other[0][0]] * 2, dim=1), other[0][1]]]  # some hosts pad it, others call twice
    split = sample(patched, positive, shape, negative=longer, cfg=3.0, steps=1)
    again = sample(patcher, longer, shape, steps=1)
    assert close(split, again + 3 * (cond - again))


@pytest.mark.parametrize("name", ["UNet", "SD3"])
def test_masked_conditionings_are_all_steered(host, networks, name):
    patcher, shape = networks(name)
    half = torch.zeros(1, *shape[-2:])
    half[..., : shape[-1] // 2] = 1.0
    values, options = text(name, 1, 5)[0]
    parts = [[values, {**options, "mask": m, "mask_strength": 1.0}] for m in (half, 1 - half)]
    patched = patch(host, patcher, text(name, 2, 7))
    whole = sample(patched, [[values, options]], (2, *shape))
    assert close(sample(patched, parts, (2, *shape)), whole)


def test_a_noise_mask_keeps_what_it_covers(host, networks):
    patcher, shape = networks("UNet")
    mask = torch.zeros(1, 1, *shape[-2:])
    mask[..., 4:] = 1.0
    patched = patch(host, patcher, text("UNet", 2, 5))
    out = sample(patched, text("UNet", 1, 5), (1, *shape), mask=mask)
    assert out[..., :4].abs().max() < 1e-4 < out[..., 4:].abs().max()


# --- other patches ---------------------------------------------------------------------------------------------------


def test_a_replaced_attention_is_chained(host, networks):
    """Another pack's replacement (IPAdapter) makes the positive half; ours is subtracted from it."""
    from comfy.ldm.modules.attention import optimized_attention

    patcher, shape = networks("UNet")
    positive, negative = text("UNet", 1, 5), text("UNet", 2, 8)
    seen = []

    def replacement(q, k, v, extra):
        seen.append(k.shape[1])
        return optimized_attention(q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"]) + 0.1

    theirs = patcher.clone()
    theirs.set_model_attn2_replace(replacement, "middle", 0)
    theirs.set_model_attn2_replace(replacement, "input", 3, 0)
    by_us = sample(patch(host, theirs, negative), positive, (1, *shape))
    later = patch(host, patcher, negative)  # the order of the nodes does not matter
    later.set_model_attn2_replace(replacement, "middle", 0)
    later.set_model_attn2_replace(replacement, "input", 3, 0)
    assert torch.equal(sample(later, positive, (1, *shape)), by_us)
    assert set(seen) == {5}
    assert not close(by_us, sample(patch(host, patcher, negative), positive, (1, *shape)))


@pytest.mark.parametrize("name", ["UNet", "SD3"])
def test_an_attention_override_is_chained(host, networks, name):
    patcher, shape = networks(name)
    calls = []

    def override(original, *args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    theirs = patcher.clone()
    theirs.model_options["transformer_options"]["optimized_attention_override"] = override
    negative = text(name, 2, 8)
    out = sample(patch(host, theirs, negative), text(name, 1, 5), (1, *shape))
    assert calls and torch.equal(out, sample(patch(host, patcher, negative), text(name, 1, 5), (1, *shape)))


def faster(host, patcher, parallel):
    inputs = {"schedule": "custom", "interval": 4, "custom": "0, 1, 4, 8", "start_percent": 0.0, "end_percent": 1.0}
    return host.node_table["TrajectoryFasterDiffusion"].execute(
        patcher, parallel_decode=parallel, skip_controlnet=True, fresh_input=False, **inputs).args[0]


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_steps_decoded_ahead_are_steered_as_in_turn(host, networks, cfg, items):
    """Faster Diffusion's larger batches: each copy of an item meets that item's own negative text."""
    patcher, shape = networks("UNet")
    steered = patch(host, patcher, text("UNet", 2, 7, items))
    in_turn, ahead = (
        sample(faster(host, steered, parallel), text("UNet", 1, 5), (3, *shape), text("UNet", 3, 5), cfg, steps=10)
        for parallel in (False, True))
    assert close(ahead, in_turn)
    plain = sample(faster(host, patcher, True), text("UNet", 1, 5), (3, *shape), text("UNet", 3, 5), cfg, steps=10)
    assert not close(ahead, plain, 1e-3)


def test_steps_that_run_the_decoder_alone_may_have_none_of_the_blocks(host, networks):
    patcher, shape = networks("UNet")
    steered = patch(host, patcher, text("UNet", 2, 7), blocks="0", start_percent=0.3)
    out = sample(faster(host, steered, False), text("UNet", 1, 5), (1, *shape), steps=10)
    assert out.isfinite().all()


def test_a_patched_layer_counts_for_both_prompts(host, networks):
    """A LoRA, like any patch of weights, acts on the negative half, too."""
    patcher, shape = networks("UNet")
    layer = next(key for key in patcher.model_state_dict() if key.endswith("attn2.to_v.weight"))
    changed = patcher.clone()
    changed.add_patches({layer: (torch.ones_like(patcher.model_state_dict()[layer]) * 0.1,)})
    negative, positive = text("UNet", 2, 8), text("UNet", 1, 5)
    assert not close(sample(patch(host, changed, negative), positive, (1, *shape)),
                     sample(patch(host, patcher, negative), positive, (1, *shape)))  # fmt: skip


def test_image_and_text_of_equal_length_are_told_apart(host, networks):
    """12 image tokens, and 5 + 7 of text: self- and cross-attention have the same shapes."""
    patcher, shape = networks("Wan")
    assert image_tokens("Wan", shape) == 12
    out = sample(patch(host, patcher, text("Wan", 2, 7)), text("Wan", 1, 5), (1, *shape))
    twice = [[torch.cat([text("Wan", 2, 7)[0][0]] * 3, dim=1), {}]]  # repeated tokens change no cross-attention
    assert close(out, sample(patch(host, patcher, twice), text("Wan", 1, 5), (1, *shape)))


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UNet", "SD3"])
def test_nothing_of_a_run_is_left(host, networks, name):
    patcher, shape = networks(name)
    positive, negative, shape = text(name, 1, 5), text(name, 2, 8), (1, *shape)
    plain = sample(patcher, positive, shape)
    patched = patch(host, patcher, negative)
    out = sample(patched, positive, shape)
    assert torch.equal(sample(patched, positive, shape), out)
    assert torch.equal(sample(patcher, positive, shape), plain)
    assert torch.equal(sample(patch(host, patched, negative), positive, shape), out)  # a second patch replaces it
    assert torch.equal(sample(patch(host, patched, negative, scale=0.0), positive, shape), plain)


def test_the_negative_prompt_is_prepared_once_a_run(host, networks, monkeypatch):
    patcher, shape = networks("UNet")
    prepared = []
    extra_conds = patcher.model.extra_conds
    monkeypatch.setattr(patcher.model, "extra_conds", lambda **options: (
        prepared.append(options["prompt_type"]), extra_conds(**options))[1])  # fmt: skip
    sample(patch(host, patcher, text("UNet", 2, 8)), text("UNet", 1, 5), (1, *shape), steps=4)
    assert sorted(prepared) == ["negative", "negative", "positive"]  # ours, and those of the guider


@pytest.mark.parametrize("blocks, chosen", [("0-1", {0, 1}), ("3", {3}), (" 0 , 2 - 3,99", {0, 2, 3})])
def test_blocks_are_numbered_in_the_order_of_the_network(one_thread, host, blocks, chosen, monkeypatch):
    patcher, positive, negative = unets.unet(), unets.conditioning(1), unets.conditioning(2, 8)
    out = sample(patch(host, patcher, negative, scale=0.3, blocks=blocks), positive)
    for number, layer in enumerate(attentions_to_text(patcher)):
        if number in chosen:
            monkeypatch.setattr(layer, "forward", formula_of_the_paper(layer, negative, 0.3))
    assert torch.equal(out, sample(patcher, positive))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_stays_close(host, dtype):
    exact, low = unets.unet(), unets.unet(dtype=dtype)
    positive, negative = unets.conditioning(1), unets.conditioning(2, 8)
    for mode in MODES:
        out = sample(patch(host, low, negative, mode), positive)
        expected = sample(patch(host, exact, negative, mode), positive)
        assert out.isfinite().all()
        assert (out - expected).abs().mean() < 0.05 * expected.abs().mean()


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs, named", [
    ({"mode": "cfg", "scale": 0.2}, "mode is 'cfg'"), ({"mode": "nasa", "scale": 4.0}, "belong to mode nag"),
    ({"blocks": "1-"}, "blocks is '1-'"), ({"blocks": ""}, "blocks is ''"), ({"blocks": "mid"}, "blocks is 'mid'"),
    ({"blocks": "5-2"}, "blocks is '5-2'"), ({"start_percent": float("nan")}, "start_percent is nan"),
    ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent is 0.8"),
])  # fmt: skip
def test_bad_settings_are_named_before_the_run(host, networks, inputs, named):
    patcher, _ = networks("UNet")
    with pytest.raises(ValueError, match=named):
        patch(host, patcher, text("UNet", 2, 5), **inputs)


@pytest.mark.parametrize("count", [0, 2])
def test_one_negative_prompt_is_needed(host, networks, count):
    patcher, _ = networks("UNet")
    with pytest.raises(ValueError, match=f"negative holds {count} conditionings"):
        patch(host, patcher, text("UNet", 2, 5) * count)


def test_an_unknown_network_is_named(host):
    import host_models

    with pytest.raises(ValueError, match="GaussianNetwork.*it knows UNetModel"):
        patch(host, host_models.model("eps"), host_models.conditioning(0.1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_text_of_another_encoder_is_named(host, networks, name):
    patcher, shape = networks(name)
    if name == "Stable Audio":
        pytest.skip("its own model refuses that text before")
    options = text(name, 2, 5)[0][1]
    patched = patch(host, patcher, [[torch.zeros(1, 5, 99), options]])
    with pytest.raises(ValueError, match="input 'negative': its text has 99 channels.*texts of 24 channels"):
        sample(patched, text(name, 1, 5), (1, *shape))


def test_blocks_that_do_not_exist_are_named(host, networks):
    patcher, _ = networks("UNet")
    last = len(attentions_to_text(patcher)) - 1
    with pytest.raises(ValueError, match=f"input 'blocks'.* 0 to {last};"):
        patch(host, patcher, text("UNet", 2, 5), blocks=f"{last + 1}-80")
    patch(host, patcher, text("UNet", 2, 5), blocks=f"{last}-80")
    patcher, shape = networks("SD3")
    patched = patch(host, patcher, text("SD3", 2, 5), blocks="70-80")
    with pytest.raises(ValueError, match="input 'blocks'.* 0 to 1;"):
        sample(patched, text("SD3", 1, 5), (1, *shape))


@pytest.mark.parametrize("shape", [(5, 24), (1, 0, 24), (0, 5, 24)], ids=str)
def test_a_text_of_another_shape_is_named(host, networks, shape):
    patcher, _ = networks("UNet")
    with pytest.raises(ValueError, match=f"negative is a text of shape {re.escape(str(shape))}"):
        patch(host, patcher, [[torch.zeros(shape), {}]])


@pytest.mark.parametrize("pooled", [{}, {"pooled_output": None}], ids=str)
def test_the_negative_needs_no_pooled_vector(host, networks, pooled):
    """SD3 and SDXL ask every text for one; what is steered looks at the tokens alone."""
    patcher, shape = networks("SD3")
    positive, negative = text("SD3", 1, 5), text("SD3", 2, 7)
    bare = [[negative[0][0], pooled]]
    out = sample(patch(host, patcher, bare), positive, (2, *shape))
    assert torch.equal(out, sample(patch(host, patcher, negative), positive, (2, *shape)))


def test_a_network_without_attention_to_the_text_is_named(host, networks):
    """Where another patch leaves the network's attentions out, NASA says so instead of doing nothing."""
    patcher, shape = networks("SD3")
    patched = patch(host, patcher, text("SD3", 2, 5))
    for block in range(2):
        patched.set_model_patch_replace(
            lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", block)
    with pytest.raises(ValueError, match="NASA found no attention to text"):
        sample(patched, text("SD3", 1, 5), (1, *shape))
