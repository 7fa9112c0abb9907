"""UNets of Stable Diffusion's class: the host's network with our weights, in whichever host is active."""

import copy
import os

import comfy.latent_formats
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import pytest
import torch
import unets
from trajectory.nodes._unet import unet_model


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny():
    return unets.unet()


def predict(patcher, size=(8, 8), network=None, control=None, y=None, **options):
    """The network's output for two items of fixed noise, text and timesteps."""
    comfy.model_management.load_models_gpu([patcher])
    network = network or patcher.model.diffusion_model
    context = patcher.model.model_config.unet_config["context_dim"]
    with torch.no_grad():
        return network(
            draw(2, 4, *size), torch.tensor([700.0, 30.0]), context=draw(2, 5, context, seed=2), y=y, control=control,
            transformer_options=options)


# --- the network -----------------------------------------------------------------------------------------------------

SD15 = (
    {"block_out_channels": (32, 64), "layers_per_block": 2, "attention_head_dim": 4, "cross_attention_dim": 24,
     "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
     "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    {"model_channels": 32, "num_res_blocks": [2, 2], "channel_mult": [1, 2], "transformer_depth": [1, 1, 0, 0],
     "transformer_depth_output": [1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "context_dim": 24, "num_heads": 4},
)
SDXL = (
    {"block_out_channels": (32, 64, 64), "layers_per_block": 1, "attention_head_dim": (2, 4, 4),
     "cross_attention_dim": 24, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
     "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
     "transformer_layers_per_block": (1, 2, 3), "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
     "projection_class_embeddings_input_dim": 16 + 6 * 8},
    {"model_channels": 32, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 2], "transformer_depth": [0, 2, 3],
     "transformer_depth_output": [0, 0, 2, 2, 3, 3], "transformer_depth_middle": 3, "context_dim": 24,
     "num_head_channels": 16, "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 64},
)
OMS = (
    {"block_out_channels": (32, 64, 128), "layers_per_block": 2, "attention_head_dim": (1, 2, 4),
     "cross_attention_dim": 24, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
     "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
    {"model_channels": 32, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
     "transformer_depth": [0, 0, 1, 1, 1, 1], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
     "transformer_depth_middle": 1, "context_dim": 24, "num_head_channels": 32},
)  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8), (37, 45)], ids=["even", "odd"])
@pytest.mark.parametrize(("theirs", "ours"), [SD15, SDXL, OMS], ids=["sd15", "sdxl", "oms"])
def test_equals_diffusers(theirs, ours, size):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        reference = diffusers.UNet2DConditionModel(in_channels=4, out_channels=4, **theirs).eval()
    weights = unets.random_weights(reference)
    reference.load_state_dict(weights)
    patcher = unet_model(ours, weights, comfy.latent_formats.SD15)
    y, added = None, {}
    if "adm_in_channels" in ours:
        pooled, sizes = draw(2, 16, seed=3), torch.tensor([[128.0, 96.0, 0.0, 8.0, 128.0, 96.0]] * 2)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        y = torch.cat([pooled, reference.add_time_proj(sizes.flatten()).reshape(2, -1)], dim=1)
    with torch.no_grad():
        expected = reference(
            draw(2, 4, *size), torch.tensor([700.0, 30.0]), draw(2, 5, 24, seed=2), **added).sample
    out = predict(patcher, size, y=y)
    assert float((out - expected).abs().max() / expected.abs().max()) < 1e-5


def test_host_keys_load_as_diffusers_keys_do(tiny):
    weights = dict(tiny.model.diffusion_model.state_dict())
    again = unet_model(unets.CONFIG, weights, comfy.latent_formats.SD15)
    host_keys = comfy.utils.unet_to_diffusers(unets.CONFIG)
    renamed = {key: weights[value] for key, value in host_keys.items() if value in weights}
    converted = unet_model(unets.CONFIG, renamed, comfy.latent_formats.SD15)
    assert {"conv_in.weight", "mid_block.attentions.0.proj_in.weight"} <= set(renamed)
    for other in (again, converted):
        assert torch.equal(predict(other), predict(tiny))


@pytest.mark.parametrize("middle", [-1, 0])
def test_middles_without_transformer(middle):
    out = predict(unets.unet(transformer_depth_middle=middle))
    assert out.shape == (2, 4, 8, 8) and bool(out.isfinite().all())


def test_blocks_pool_without_convolutions():
    patcher = unets.unet(conv_resample=False)
    assert not any("conv." in key or ".op." in key for key in patcher.model.diffusion_model.state_dict())
    assert predict(patcher, (16, 8)).shape == (2, 4, 16, 8)


def test_each_item_is_on_its_own(tiny):
    network = tiny.model.diffusion_model
    x, t, text = draw(3, 4, 8, 8), torch.tensor([900.0, 20.0, 400.0]), draw(3, 5, 24, seed=2)
    with torch.no_grad():
        together = network(x, t, context=text, transformer_options={})
        alone = [network(x[i:i + 1], t[i:i + 1], context=text[i:i + 1], transformer_options={}) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_text_for_each_transformer_block(tiny):
    one = draw(2, 5, 24, seed=2)
    layer = tiny.model.diffusion_model.input_blocks[5][1]  # of two transformer blocks
    x = draw(2, 64, 4, 4)
    with torch.no_grad():
        same = layer(x, [one, one], {})
        assert torch.equal(same, layer(x, one, {}))
        assert not torch.allclose(same, layer(x, [one, -one], {}))


@pytest.mark.skipif("COMFYUI_PATH" in os.environ, reason="real hosts have these networks")
@pytest.mark.parametrize("option", [{"use_temporal_attention": True}, {"num_classes": 10}])
def test_networks_of_other_families_are_refused(option):
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        unets.unet(**option)


# --- wrong weights ---------------------------------------------------------------------------------------------------


def test_missing_and_foreign_weights_are_named(tiny):
    weights = dict(tiny.model.diffusion_model.state_dict())
    weights["input_blocks.9.0.weight"] = weights.pop("middle_block.0.in_layers.2.bias")
    with pytest.raises(ValueError, match=r"missing \['middle_block.0.in_layers.2.bias'\].*input_blocks.9.0.weight"):
        unet_model(unets.CONFIG, weights, comfy.latent_formats.SD15)


def test_a_weight_of_another_shape_is_named(tiny):
    weights = dict(tiny.model.diffusion_model.state_dict())
    weights["out.2.bias"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"out\.2\.bias"):
        unet_model(unets.CONFIG, weights, comfy.latent_formats.SD15)


# --- patches ---------------------------------------------------------------------------------------------------------


def plain_attention(q, k, v, extra):
    q, k, v = (part.unflatten(-1, (extra["n_heads"], extra["dim_head"])).transpose(1, 2) for part in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_replaced_attention_runs_at_its_place(tiny, name):
    places = []

    def replacement(q, k, v, extra):
        places.append((extra["block"], extra["block_index"], extra["transformer_index"], k.shape[1]))
        assert {"original_shape", "activations_shape"} <= set(extra)
        assert not {"patches", "patches_replace"} & set(extra)
        return plain_attention(q, k, v, extra)

    replaced = {name: {("input", 3): replacement, ("input", 5, 1): replacement, ("middle", 0): replacement}}
    out = predict(tiny, patches_replace=replaced)
    first, rest = (16, 4) if name == "attn1" else (5, 5)
    assert places == [(("input", 3), 0, 0, first), (("input", 5), 1, 1, rest), (("middle", 0), 0, 2, rest)]
    assert torch.allclose(out, predict(tiny), atol=1e-5)
    nothing = {name: {("input", 5): lambda q, k, v, extra: torch.zeros_like(q)}}
    assert not torch.allclose(predict(tiny, patches_replace=nothing), predict(tiny), atol=1e-3)


def test_attention_override_is_a_link_of_a_chain(tiny):
    seen = []

    def override(attention, *args, **kwargs):
        options = kwargs["transformer_options"]
        seen.append((args[0].shape, args[3], options["block"]))
        return 0.5 * attention(*args, **kwargs)

    def halved(q, k, v, extra):
        return 0.5 * plain_attention(q, k, v, extra)

    out = predict(tiny, optimized_attention_override=override)
    assert len(seen) == 2 * 10 and seen[0] == ((2, 16, 64), 4, ("input", 3))
    places = {place: halved for *_, place in seen}
    same = predict(tiny, patches_replace={"attn1": places, "attn2": places})
    assert torch.allclose(out, same, atol=1e-5) and not torch.allclose(out, predict(tiny), atol=1e-3)


@pytest.mark.parametrize("name", ["attn1_patch", "attn2_patch"])
def test_attention_patches_change_what_is_attended(tiny, name):
    def only_values(n, context, value, extra):
        assert context is value and extra["n_heads"] * extra["dim_head"] == n.shape[-1]
        return n, context, 2.0 * value

    def swapped(n, context, value, extra):
        return n, context.flip(1), value.flip(1)

    plain = predict(tiny)
    assert not torch.allclose(predict(tiny, patches={name: [only_values]}), plain, atol=1e-3)
    assert torch.allclose(predict(tiny, patches={name: [swapped]}), plain, atol=1e-5)  # the order does not matter
    twice = predict(tiny, patches={name: [only_values, lambda n, c, v, extra: (n, c, 0.5 * v)]})
    assert torch.allclose(twice, plain, atol=1e-5)


def test_patches_run_in_order_at_every_place(tiny):
    trace = []

    def note(name, result):
        def patch(*args):
            options = args[-1]
            trace.append((name, options["block"], options["transformer_index"]))
            return args[0] if result == 1 else args[:result]

        return patch

    names = {"input_block_patch": 1, "input_block_patch_after_skip": 1, "output_block_patch": 2, "middle_patch": 1,
             "attn1_output_patch": 1, "attn2_output_patch": 1}
    patches = {name: [note(name, result)] for name, result in names.items()}
    patches["emb_patch"] = [lambda emb, width, options: emb if width == 32 else None]
    out = predict(tiny, patches=patches)
    assert torch.equal(out, predict(tiny))
    block = [("input_block_patch", ("input", 0), 0), ("input_block_patch_after_skip", ("input", 0), 0)]
    assert trace[:2] == block
    assert [entry[1] for entry in trace if entry[0] == "output_block_patch"] == [("output", i) for i in range(6)]
    start = trace.index(("attn1_output_patch", ("middle", 0), 2))
    assert trace[start:start + 3] == [
        ("attn1_output_patch", ("middle", 0), 2), ("middle_patch", ("middle", 0), 2),
        ("attn2_output_patch", ("middle", 0), 2)]
    assert trace[-1] == ("output_block_patch", ("output", 5), 7)


def test_skip_is_taken_before_the_patch_after_it(tiny):
    skips = []

    def grow(h, options):
        return 2.0 * h

    def record(h, skip, options):
        skips.append(skip)
        return h, skip

    predict(tiny, patches={"input_block_patch_after_skip": [grow], "output_block_patch": [record]})
    first = skips[-1].clone()
    predict(tiny, patches={"input_block_patch": [grow], "output_block_patch": [record]})
    assert torch.allclose(skips[-1], 2.0 * first, atol=1e-5)


def test_embedding_patch_is_all_that_the_network_hears_of_time(tiny):
    network, x, text = tiny.model.diffusion_model, draw(2, 4, 8, 8), draw(2, 5, 24, seed=2)
    late, early = torch.tensor([700.0, 30.0]), torch.tensor([5.0, 999.0])

    def call(timesteps, **patches):
        with torch.no_grad():
            return network(x, timesteps, context=text, transformer_options={"patches": patches})

    def silent(emb, width, options):
        return torch.zeros_like(emb)

    assert torch.equal(call(late, emb_patch=[silent]), call(early, emb_patch=[silent]))
    assert not torch.allclose(call(late), call(early), atol=1e-3)


# --- control ---------------------------------------------------------------------------------------------------------


def test_controls_are_added_and_used_up(tiny):
    """A control is what a patch at the same place could add."""
    shapes, blocks = {}, {"input": 6, "middle": 1, "output": 6}

    def record_input(h, options):
        shapes[options["block"]] = h.shape
        return h

    def record_output(h, skip, options):
        shapes[options["block"]] = skip.shape
        shapes.setdefault(("middle", 0), h.shape)
        return h, skip

    predict(tiny, patches={"input_block_patch": [record_input], "output_block_patch": [record_output]})
    added = {(part, i): draw(*shapes[(part, i)], seed=10 * i + len(part))
             for part, number in blocks.items() for i in range(number)}

    def add_input(h, options):
        return h + added[options["block"]]

    def add_output(h, skip, options):
        if options["block"] == ("output", 0):
            h = h + added[("middle", 0)]
        return h, skip + added[options["block"]]

    control = {part: [added[(part, i)] for i in reversed(range(number))] for part, number in blocks.items()}
    out = predict(tiny, control=control)
    expected = predict(tiny, patches={"input_block_patch": [add_input], "output_block_patch": [add_output]})
    assert control == {"input": [], "middle": [], "output": []}
    assert torch.allclose(out, expected, atol=1e-5) and not torch.allclose(out, predict(tiny), atol=1e-2)


def test_controls_that_are_absent_or_do_not_fit_change_nothing(tiny):
    control = {"output": [None] * 5 + [torch.ones(2, 3, 8, 8)]}
    assert torch.equal(predict(tiny, control=control), predict(tiny))
    assert control == {"output": []}


# --- networks that packs make out of it ------------------------------------------------------------------------------


class Double(torch.nn.Module):
    def forward(self, x):
        return 2.0 * x


def test_wrappers_hold_the_network_and_its_inputs(tiny):
    seen = []

    def wrapper(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        seen.append((executor.class_obj, x.shape, timesteps.tolist(), context.shape, y, control))
        return 3.0 * executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    options = {}
    comfy.patcher_extension.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper, options)
    out = predict(tiny, **options)
    assert seen == [(tiny.model.diffusion_model, (2, 4, 8, 8), [700.0, 30.0], (2, 5, 24), None, None)]
    assert torch.allclose(out, 3.0 * predict(tiny))


def test_blocks_and_networks_can_be_rebuilt(tiny):
    """A shallow copy with longer blocks runs, and leaves the original as it is."""
    comfy.model_management.load_models_gpu([tiny])
    network = tiny.model.diffusion_model
    plain = predict(tiny)
    changed = copy.copy(network)
    changed._modules = dict(network._modules)
    blocks = list(network.input_blocks)
    blocks[5] = type(blocks[5])(*blocks[5], Double())
    changed.input_blocks = torch.nn.ModuleList(blocks)
    out = predict(tiny, network=changed)
    doubled = predict(
        tiny, patches={"input_block_patch": [lambda h, options: 2.0 * h if options["block"][1] == 5 else h]})
    assert torch.equal(out, doubled) and torch.equal(predict(tiny), plain)

    changed = copy.copy(network)
    changed._modules = dict(network._modules)
    changed.middle_block = type(network.middle_block)(Double())
    features = []
    patches = {
        "input_block_patch": [lambda h, options: features.append(h) or h],
        "output_block_patch": [lambda h, skip, options: features.append(h) or (h, skip)],
    }
    predict(tiny, network=changed, patches=patches)
    assert torch.equal(features[6], 2.0 * features[5])


def test_layers_of_other_kinds_may_have_a_handler(tiny):
    network = tiny.model.diffusion_model
    calls = []

    def handler(layer, x, emb, context, transformer_options, output_shape, *video):
        calls.append((emb.shape, context.shape, transformer_options["block"], output_shape, len(video)))
        return layer(x)

    changed = copy.copy(network)
    changed._modules = dict(network._modules)
    blocks = list(network.output_blocks)
    blocks[0] = type(blocks[0])(*blocks[0], Double())
    changed.output_blocks = torch.nn.ModuleList(blocks)
    predict(tiny, network=changed, patches={"forward_timestep_embed_patch": [(Double, handler)]})
    assert calls == [((2, 128), (2, 5, 24), ("output", 0), (2, 64, 2, 2), 3)]


# --- latents ---------------------------------------------------------------------------------------------------------


def test_autoencoder_with_the_scale_of_stable_diffusion_1():
    """Its network's own latents are what the model gets, whatever scale they have between the nodes."""
    network = comfy.taesd.taesd.TAESD(latent_channels=4)
    weights = {**unets.random_weights(network), "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
    vae = comfy.sd.VAE(sd=dict(weights), dtype=torch.float32)
    vae.throw_exception_if_invalid()
    network.load_state_dict(weights)
    pictures = draw(2, 16, 24, 3).sigmoid()
    latents = vae.encode(pictures)
    assert latents.shape == (2, 4, 2, 3) and vae.latent_channels == 4
    with torch.no_grad():
        own = network.taesd_encoder(pictures.movedim(-1, 1))
        decoded = network.taesd_decoder(own).movedim(1, -1).clamp(0, 1)
    assert torch.allclose(comfy.latent_formats.SD15().process_in(latents), own, atol=1e-5)
    assert torch.allclose(vae.decode(latents), decoded, atol=1e-5)


# --- sampling --------------------------------------------------------------------------------------------------------


def sample(patcher, shape=(1, 4, 8, 8), steps=4, cfg=3.0, **options):
    noise = draw(*shape, seed=5)
    return comfy.sample.sample(
        patcher, noise, steps, cfg, "euler", "normal", unets.conditioning(0.3), unets.conditioning(-0.4),
        torch.zeros_like(noise), disable_pbar=True, seed=3, **options)


def test_schedule_and_scale_are_those_of_stable_diffusion_1(tiny):
    sampling = tiny.get_model_object("model_sampling")
    assert float(sampling.sigma_min) == pytest.approx(0.0291675, rel=1e-4)
    assert float(sampling.sigma_max) == pytest.approx(14.614642, rel=1e-4)
    assert float(tiny.model.process_latent_in(torch.ones(1))) == pytest.approx(0.18215)
    assert tiny.model.model_type.name == "EPS"


@pytest.mark.parametrize("size", [(8, 8), (7, 13)])
def test_a_whole_run(tiny, size):
    out = sample(tiny, (2, 4, *size))
    assert out.shape == (2, 4, *size) and bool(out.isfinite().all())
    assert torch.equal(out, sample(tiny, (2, 4, *size)))
    assert not torch.allclose(out, sample(tiny, (2, 4, *size), cfg=1.0), atol=1e-2)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_may_be_stored_in_half(tiny, stored):
    half = unets.unet(dtype=stored)
    assert {weight.dtype for weight in half.model.diffusion_model.parameters()} == {stored}
    out, exact = sample(half), sample(tiny)
    assert out.dtype == torch.float32
    assert (out - exact).abs().max() < 0.05 * exact.abs().max()


def test_computing_in_bfloat16_stays_close(tiny):
    low = tiny.clone()
    low.set_model_compute_dtype(torch.bfloat16)
    out, exact = sample(low), sample(tiny)
    assert out.dtype == torch.float32 and not torch.equal(out, exact)
    assert (out - exact).abs().max() < 0.1 * exact.abs().max()


def test_weight_patches_are_applied_and_taken_back(tiny):
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    patched = tiny.clone()
    change = draw(64, 24, seed=8)
    assert patched.add_patches({key: ("diff", (change,))}, 0.5) == [key]
    before = comfy.utils.get_attr(tiny.model, key).clone()
    plain = sample(tiny)
    assert not torch.allclose(sample(patched), plain, atol=1e-3)
    assert torch.allclose(comfy.utils.get_attr(patched.model, key), before + 0.5 * change, atol=1e-6)
    assert torch.equal(sample(tiny), plain)
    assert torch.equal(comfy.utils.get_attr(tiny.model, key), before)


def test_patches_of_a_model_reach_the_network(tiny):
    seen = []
    patched = tiny.clone()
    patched.set_model_attn2_replace(
        lambda q, k, v, extra: seen.append(extra["cond_or_uncond"]) or plain_attention(q, k, v, extra), "middle", 0)
    patched.set_model_output_block_patch(lambda h, skip, options: (h, 0.9 * skip))
    out = sample(patched, steps=2)
    assert sorted(seen[0]) == [0, 1] and len(seen) == 2
    assert not torch.allclose(out, sample(tiny, steps=2), atol=1e-3)
