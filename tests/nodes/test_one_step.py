"""One-step restoration inside a host: OSEDiff's files, the sampler, tiles of the network, pictures of any size."""

import logging

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.sd
import folder_paths
import host_models
import pytest
import torch
import unets
from torch.nn import functional
from trajectory.models import checkpoints
from trajectory.models.one_step import osediff
from trajectory.nodes import _restore, one_step
from trajectory.nodes._one_step import with_changes
from trajectory.nodes.models import load_weights

SIGMA_MAX = 14.614643
SHAPE = (2, 4, 9, 7)
# layers of `unets.unet` in diffusers' names: a convolution, one of stride 2, one of 1x1, matrices
LAYERS = {
    "conv_in": (32, 4, 3, 3), "down_blocks.0.downsamplers.0.conv": (32, 32, 3, 3),
    "mid_block.attentions.0.proj_in": (64, 64, 1, 1),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (64, 24), "conv_out": (4, 32, 3, 3),
}  # fmt: skip
HOST_KEYS = {
    "conv_in": "input_blocks.0.0", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": "middle_block.1.transformer_blocks.0.attn2.to_k",
    "conv_out": "out.2",
}  # fmt: skip
ENCODER = {"encoder.layers.0": (64, 3, 3, 3), "encoder.layers.14": (4, 64, 3, 3)}


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pairs(layers, adapter, rank=4):
    weights = {}
    for seed, (layer, (out, *inner)) in enumerate(layers.items()):
        ones = [1] * len(inner[1:])
        weights[f"{layer}.lora_A.{adapter}.weight"] = draw(rank, *inner, seed=seed, scale=0.2)
        weights[f"{layer}.lora_B.{adapter}.weight"] = draw(out, rank, *ones, seed=seed + 50, scale=0.2)
    return weights


def osediff_file(layers=LAYERS):
    """The contents of an osediff.pkl of random changes of `unets.unet` and the miniatures' autoencoder."""
    whole = {"conv_in.base_layer.weight": draw(32, 4, 3, 3, seed=80, scale=0.2),
             "conv_in.base_layer.bias": draw(32, seed=81, scale=0.2)}  # fmt: skip
    return {
        "rank_unet": 4, "rank_vae": 4, "unet_lora_encoder_modules": list(layers), "vae_lora_encoder_modules":
        list(ENCODER), "state_dict_unet": {**pairs(layers, "default_encoder"), **whole},
        "state_dict_vae": pairs(ENCODER, "default_encoder"),
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/osediff of its own."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "osediff", ([str(tmp_path)], {".safetensors", ".pkl"}))
    return tmp_path


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=load_weights("landscapes_autoencoder4"), dtype=torch.float32)


@pytest.fixture(scope="module")
def model():
    return unets.unet()


def plain_weights():
    """Of `model`, whose own are patched where a clone is loaded."""
    return unets.unet().model.diffusion_model.state_dict()


def call(host, node_id, **inputs):
    return host.node_table[node_id].execute(**inputs).args


def apply(host, folder, model, vae, contents=None, name="osediff.pkl"):
    torch.save(contents or osediff_file(), folder / name)
    return call(host, "TrajectoryApplyOSEDiff", model=model, vae=vae, file=name)


def run(model, latent, cfg=1.0, mask=None, sigmas=(SIGMA_MAX, 0.0), noise=0, sampler=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(unets.conditioning(0.2), unets.conditioning(0.7))
    guider.set_cfg(cfg)
    return guider.sample(draw(*latent.shape, seed=noise), latent, sampler or one_step.OneStep(), torch.tensor(sigmas),
                         denoise_mask=mask, disable_pbar=True, seed=noise).clone()  # fmt: skip


def picture(*shape, seed=0):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))


# --- Apply OSEDiff


def test_patched_weights_compute_what_unmerged_layers_do(host, folder, model, vae):
    contents = osediff_file()
    restorer, encoder = apply(host, folder, model, vae, contents)
    original, x = plain_weights(), draw(2, 64, 6, 64, seed=9)
    for layer, shape in LAYERS.items():
        key = f"{HOST_KEYS[layer]}.weight"
        weight = original[key].float().clone()
        assert weight.shape == shape
        merged = comfy.lora.calculate_weight(restorer.patches[f"diffusion_model.{key}"], weight.clone(), key)
        base = contents["state_dict_unet"].get(f"{layer}.base_layer.weight", weight)
        down, up = (contents["state_dict_unet"][f"{layer}.lora_{part}.default_encoder.weight"] for part in "AB")
        if len(shape) == 2:
            def forward(x, w):
                return functional.linear(x[..., : w.shape[1]], w)
        else:
            def forward(x, w):
                return functional.conv2d(x[:, : w.shape[1]], w, padding=w.shape[2] // 2)
        expected = forward(x, base) + 8 / 4 * forward(forward(x, down), up)
        assert torch.allclose(forward(x, merged), expected, atol=1e-4)
        assert (merged - base).abs().max() > 0.1
    assert len(encoder.patcher.patches) == len(ENCODER) and not vae.patcher.patches and not model.patches


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_strength_scales_every_change(vae, model, strength):
    unet, encoder = osediff(osediff_file())
    half, _ = with_changes(model, vae, unet, encoder, "it", strength)
    pair, key = unet.low_rank["conv_in"], "diffusion_model.input_blocks.0.0.weight"
    weight = plain_weights()["input_blocks.0.0.weight"]
    delta = unet.weights["conv_in.weight"] - weight + 2 * (pair.up.flatten(1) @ pair.down.flatten(1)).view_as(weight)
    patched = comfy.lora.calculate_weight(half.patches.get(key, []), weight.clone(), key)
    assert torch.allclose(patched, weight + strength * delta, atol=1e-5)


def test_bf16_is_warned_of(host, folder, vae, caplog):
    with caplog.at_level(logging.WARNING, "trajectory"):
        apply(host, folder, unets.unet(), vae)
        assert not caplog.text
        apply(host, folder, unets.unet(dtype=torch.bfloat16), vae)
    assert "computes in bf16" in caplog.text


def test_a_restorer_is_not_made_of_a_restorer(host, folder, model, vae):
    restorer, encoder = apply(host, folder, model, vae)
    for networks, name in (((tiled(host, restorer), vae), "model"), ((model, encoder), "vae")):
        with pytest.raises(ValueError, match=f"{name} already is a one-step restorer's; connect the plain"):
            apply(host, folder, *networks)


def test_what_stood_on_replaced_layers_is_warned_of(host, folder, model, vae, caplog):
    key = "diffusion_model.input_blocks.0.0.weight"
    with caplog.at_level(logging.WARNING, "trajectory"):
        other = model.clone()
        other.add_patches({"diffusion_model.out.2.weight": (torch.zeros(4, 32, 3, 3),)})  # has a pair in the file
        apply(host, folder, other, vae)
        assert not caplog.text
        other.add_patches({key: (torch.zeros(32, 4, 3, 3),)})
        apply(host, folder, other, vae)
    assert "model has patches (LoRAs) on 1 layers" in caplog.text and "(conv_in.weight" in caplog.text


def test_the_models_given_stay_as_they_are(host, folder, model, vae):
    latent, pixels = draw(*SHAPE), picture(1, 16, 24)
    before = run(model, latent), vae.encode(pixels)
    restorer, encoder = apply(host, folder, model, vae)
    after = run(restorer, latent), encoder.encode(pixels)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(after, before, strict=True))
    assert torch.equal(run(model, latent), before[0]) and torch.equal(vae.encode(pixels), before[1])
    assert torch.equal(encoder.decode(before[1]), vae.decode(before[1]))
    assert torch.equal(run(restorer, latent), after[0]) and torch.equal(encoder.encode(pixels), after[1])


def test_the_pickle_its_safetensors_and_the_merged_variant_are_the_same(host, folder, model, vae):
    latent, contents = draw(*SHAPE), osediff_file()
    expected = run(apply(host, folder, model, vae, contents)[0], latent)
    checkpoints.write(folder / "osediff.safetensors", contents)
    converted, _ = call(host, "TrajectoryApplyOSEDiff", model=model, vae=vae, file="osediff.safetensors")
    assert torch.equal(run(converted, latent), expected)

    unet, encoder = osediff(contents)
    whole = dict(unet.weights)
    for layer, pair in unet.low_rank.items():
        base = whole.get(f"{layer}.weight", plain_weights()[f"{HOST_KEYS[layer]}.weight"])
        whole[f"{layer}.weight"] = base + pair.scale * (pair.up.flatten(1) @ pair.down.flatten(1)).view_as(base)
    autoencoder = {f"{layer}.weight": draw(*shape) for layer, shape in ENCODER.items()}
    merged, _ = apply(host, folder, model, vae, {"unet": whole, "vae": autoencoder}, "merged.pkl")
    assert torch.allclose(run(merged, latent), expected, rtol=1e-4, atol=1e-3)


def test_a_model_that_predicts_something_else_is_refused(host, folder, vae):
    for kind, word in (("v", "V_PREDICTION"), ("edm", "EDM"), ("flow", "CONST")):
        with pytest.raises(ValueError, match=f"model does not predict noise.*{word}.*2.1-base"):
            apply(host, folder, host_models.model(kind), vae)


def test_other_networks_are_refused_by_name(host, folder, model, vae):
    wide = {**LAYERS, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (64, 32)}
    with pytest.raises(ValueError, match=r"model is not the one.*1 of its 7.*to_k.weight \[64, 32\] for \[64, 24"):
        apply(host, folder, model, vae, osediff_file(wide))
    with pytest.raises(ValueError, match=r"model is not.*down_blocks.9.conv.weight \[4, 36\] for none"):
        apply(host, folder, model, vae, osediff_file({**LAYERS, "down_blocks.9.conv": (4, 4, 3, 3)}))
    pixels = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="vae is not the one.*2 of its 2 changes"):
        apply(host, folder, model, pixels)


def test_other_files_are_refused_by_name(host, folder, model, vae):
    with pytest.raises(ValueError, match="file is 'osediff.pkl'.*S3Diff Loader"):
        apply(host, folder, model, vae, {**osediff_file(), "state_dict_unet_de_mlp": {"0.weight": draw(2, 2)}})
    with pytest.raises(ValueError, match="file is 'osediff.pkl', which is not OSEDiff's"):
        apply(host, folder, model, vae, {"params": {"weight": draw(2, 2)}})
    with pytest.raises(ValueError, match="file is 'gone.pkl', which is no file in models/osediff"):
        call(host, "TrajectoryApplyOSEDiff", model=model, vae=vae, file="gone.pkl")
    (folder / "cut.pkl").write_bytes((folder / "osediff.pkl").read_bytes()[:200])
    with pytest.raises(ValueError, match="file: cut.pkl"):
        call(host, "TrajectoryApplyOSEDiff", model=model, vae=vae, file="cut.pkl")


# --- One-Step SR Sampler


def test_is_one_prediction_from_the_latent_and_ignores_noise(host, model):
    (sampler,) = call(host, "TrajectoryOneStepSRSampler")
    latent, calls = draw(*SHAPE), []
    expected, sampling = {}, model.get_model_object("model_sampling")

    def record(apply_model, args):
        calls.append(args["input"].clone())
        return apply_model(args["input"], args["timestep"], **args["c"])

    recorded = model.clone()
    recorded.set_model_unet_function_wrapper(record)
    z, sigma = 0.18215 * latent, torch.tensor([SIGMA_MAX])
    for cfg in (1.0, 1.07):
        calls.clear()
        out = run(recorded, latent, cfg, sampler=sampler)
        assert torch.equal(run(recorded, latent, cfg, sampler=sampler, noise=5), out)
        assert torch.allclose(sampling.calculate_input(sigma, calls[0][:2]), z, atol=1e-6)
        expected[cfg] = out
    assert len(calls) == (2 if len(calls[0]) == 4 else 4)  # hosts may join cond and uncond
    both = [run(model, latent, cfg) for cfg in (0.0, 1.0)]
    assert torch.allclose(expected[1.07], both[0] + 1.07 * (both[1] - both[0]), rtol=1e-4, atol=1e-3)
    assert torch.equal(expected[1.0], both[1])


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
def test_exact_models_of_every_kind(host, kind):
    """x0 = E[x0 | x] for Gaussian data, from the state that the network of this kind sees as the latent."""
    patcher, latent = host_models.model(kind), draw(*SHAPE)
    sigma = 0.9 if kind == "flow" else 9.0
    guider = host_models.guider(patcher, positive=0.4)
    out = guider.sample(draw(*SHAPE, seed=3), latent, one_step.OneStep(), torch.tensor([sigma, 0.0]),
                        disable_pbar=True)  # fmt: skip
    alpha, x = (1 - sigma, latent) if kind == "flow" else (1.0, (1 + sigma**2) ** 0.5 * latent)
    variance = host_models.STD**2
    expected = 0.4 + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * 0.4)
    assert torch.allclose(out, expected, atol=1e-4)


def test_a_mask_keeps_the_latent_outside_and_the_network_sees_the_whole_picture(host, model):
    latent, mask, seen = draw(*SHAPE), torch.zeros(1, 1, *SHAPE[2:]), []
    mask[..., :4, :] = 1
    watched = model.clone()

    def watch(apply_model, args):
        seen.append(args["input"].clone())
        return apply_model(args["input"], args["timestep"], **args["c"])

    watched.set_model_unet_function_wrapper(watch)
    whole, masked = run(watched, latent), run(watched, latent, mask=mask)
    assert torch.allclose(seen[0], seen[1], atol=1e-4)
    assert torch.allclose(masked[..., :4, :], whole[..., :4, :], rtol=1e-4, atol=1e-3)
    assert torch.allclose(masked[..., 4:, :], latent[..., 4:, :], atol=1e-5)


@pytest.mark.parametrize("sigmas", [[SIGMA_MAX], [0.0, 0.0]])
def test_schedules_without_a_step_return_the_latent(host, model, sigmas):
    latent = draw(*SHAPE)
    assert torch.allclose(run(model, latent, sigmas=sigmas), latent, atol=1e-5)


def test_only_the_first_sigma_counts_and_items_are_alone(host, model):
    latent = draw(*SHAPE)
    out = run(model, latent)
    assert torch.equal(run(model, latent, sigmas=[SIGMA_MAX, 3.0, 1.0, 0.0]), out)
    assert torch.allclose(run(model, latent[1:]), out[1:], rtol=1e-4, atol=1e-3)


def test_is_cancelled_before_the_call(host, model, monkeypatch):
    calls = []
    watched = model.clone()
    watched.set_model_unet_function_wrapper(lambda apply_model, args: calls.append(args))

    def cancel():
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(watched, draw(*SHAPE))
    assert not calls


# --- Tiled Denoise


def tiled(host, model, tile=8, overlap=4):
    return call(host, "TrajectoryTiledDenoise", model=model, tile=tile, overlap=overlap)[0]


def watching(model, seen, apply=True):
    """A clone of `model` that keeps what its network is called with."""
    watched = model.clone()

    def watch(apply_model, args):
        seen.append((args["input"].clone(), {k: v for k, v in args["c"].items() if torch.is_tensor(v)}))
        return apply_model(args["input"], args["timestep"], **args["c"])

    watched.set_model_unet_function_wrapper(watch)
    return watched


def test_a_network_that_works_cell_by_cell_is_the_same_in_tiles(host):
    patcher, latent = host_models.model("eps"), draw(2, 4, 21, 34)
    guider = [host_models.guider(p) for p in (patcher, tiled(host, patcher))]
    sigmas = torch.tensor([SIGMA_MAX, 0.0])
    whole, parts = (g.sample(latent * 0, latent, one_step.OneStep(), sigmas, disable_pbar=True) for g in guider)
    assert torch.allclose(parts, whole, atol=1e-4)


@pytest.mark.parametrize("together", [1, 2])
def test_progress_goes_once_from_0_to_1_however_many_texts_are_shown_at_once(host, together):
    seen = []
    wrapper = one_step.tiled(lambda apply_model, args: args["input"], 8, 4, _restore.Progress(seen.append), 2)
    for call in range(2 // together):
        wrapper(None, {"input": draw(together, 4, 8, 20), "timestep": torch.ones(together), "c": {},
                       "cond_or_uncond": [0, 1] if together == 2 else [call]})  # fmt: skip
    assert seen == sorted(set(seen)) and seen[0] == 0 and len(seen) == 8 // together and max(seen) < 1


def test_tiles_go_through_the_function_that_was_there(host, model):
    seen, latent = [], draw(1, 4, 20, 8)
    out = run(tiled(host, watching(model, seen)), latent)
    assert [tuple(x.shape) for x, _ in seen] == [(1, 4, 8, 8)] * 4
    seen.clear()
    whole = watching(model, seen)
    small = draw(1, 4, 8, 7)
    assert torch.equal(run(tiled(host, whole), small), run(model, small)) and seen[0][0].shape == (1, 4, 8, 7)
    assert (out - run(model, latent)).abs().max() > 1e-3  # attention sees a tile only
    assert torch.allclose(run(tiled(host, model), latent.repeat(2, 1, 1, 1))[1:], out, rtol=1e-4, atol=1e-3)


def test_what_the_network_sees_beside_the_state_is_cut_alike(host):
    calls = []

    def apply_model(x, timestep, **conds):
        calls.append((x, conds))
        return x + conds["c_concat"].sum(1, keepdim=True)

    state, beside = draw(2, 4, 12, 20), draw(2, 5, 12, 20, seed=1)
    text = draw(2, 7, 24)
    conds = {"c_concat": beside, "c_crossattn": text, "transformer_options": {"cond_or_uncond": [0]}}
    wrapper = one_step.tiled(None, 8, 4, one_step.SILENT)
    out = wrapper(apply_model, {"input": state, "timestep": torch.ones(2), "c": conds, "cond_or_uncond": [0]})
    assert torch.allclose(out, state + beside.sum(1, keepdim=True), atol=1e-5)
    assert len(calls) == 8 and all(c["c_concat"].shape == (2, 5, 8, 8) and c["c_crossattn"] is text for _, c in calls)
    assert conds["c_concat"] is beside


def test_films_are_cut_along_height_and_width(host):
    state = draw(1, 4, 3, 12, 20)
    wrapper = one_step.tiled(lambda apply_model, args: 2 * args["input"], 8, 4, one_step.SILENT)
    arguments = {"input": state, "timestep": torch.ones(1), "c": {}, "cond_or_uncond": [0]}
    assert torch.allclose(wrapper(None, arguments), 2 * state, atol=1e-6)


def test_half_precision_stays_so(host):
    state = draw(1, 4, 12, 20).bfloat16()
    wrapper = one_step.tiled(lambda apply_model, args: args["input"], 8, 4, one_step.SILENT)
    arguments = {"input": state, "timestep": torch.ones(1), "c": {}, "cond_or_uncond": [0]}
    assert torch.equal(wrapper(None, arguments), state)


def test_tiles_shrink_when_memory_runs_out(host, model):
    sizes = []

    def short(apply_model, args):
        sizes.append(args["input"].shape[-1])
        if sizes[-1] > 20:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return args["input"]

    wrapper, state = one_step.tiled(short, 64, 8, one_step.SILENT), draw(1, 4, 40, 40)
    out = wrapper(None, {"input": state, "timestep": torch.ones(1), "c": {}, "cond_or_uncond": [0]})
    assert torch.allclose(out, state, atol=1e-6) and sizes[0] == 40 and set(sizes) == {40, 20}

    sizes.clear()
    one_step.tiled(short, 32, 16, one_step.SILENT)(
        None, {"input": state, "timestep": torch.ones(1), "c": {}, "cond_or_uncond": [0]})
    assert sizes == [32] + [16] * 16  # the overlap is halved, too


def test_a_tile_of_0_changes_nothing_and_bad_ones_are_refused(host, model):
    assert tiled(host, model, tile=0) is model
    with pytest.raises(ValueError, match="overlap is 6, more than half of the tile of 8; lower it to 4"):
        tiled(host, model, overlap=6)
    for tile in (1, 7):
        with pytest.raises(ValueError, match=f"tile is {tile}, .* set it to 8 or more, or to 0"):
            tiled(host, model, tile=tile, overlap=0)
    for shape, conds, message in (((1, 1, 77), {}, "cannot be cut into tiles"),
                                  ((1, 4, 9, 9), {"control": {"output": []}}, "ControlNet.*raise tile to 9")):
        arguments = {"input": draw(*shape), "timestep": torch.ones(1), "c": conds, "cond_or_uncond": [0]}
        with pytest.raises(ValueError, match=message):
            one_step.tiled(None, 8, 4, one_step.SILENT)(None, arguments)


# --- One-Step Upscale

DEFAULTS = {"scale": 4, "upscale_method": "bicubic", "process_size": 1, "tile": 16, "overlap": 8, "vae_tile": 1024,
            "color_fix": "adain"}  # fmt: skip


def upscale(host, model, vae, image, **inputs):
    inputs = {**DEFAULTS, "positive": unets.conditioning(0.2), **inputs}
    with torch.inference_mode():  # as hosts run nodes, and their tiled autoencoders must
        return call(host, "TrajectoryOneStepUpscale", image=image, model=model, vae=vae, **inputs)[0]


@pytest.fixture
def quick(monkeypatch):
    """(MODEL, VAE) of a network that answers its latent, and an autoencoder of 8x8 means: all that remains is sizes."""
    model = host_models.model("eps")
    model.set_attachments(one_step.TRAINED_SIZE, 128)
    model.set_model_unet_function_wrapper(lambda apply_model, args: args["input"] / (1 + SIGMA_MAX**2) ** 0.5)
    vae = comfy.sd.VAE(sd=load_weights("landscapes_autoencoder4"), dtype=torch.float32)
    network = vae.first_stage_model

    def encode(pixels):
        return functional.pad(functional.avg_pool2d(pixels, 8), (0, 0, 0, 0, 0, 1))

    monkeypatch.setattr(network, "encode", encode)
    monkeypatch.setattr(network, "decode", lambda z: functional.interpolate(z[:, :3], scale_factor=8, mode="bilinear"))
    return model, vae


@pytest.mark.parametrize(("size", "scale", "process_size"), [
    ((1, 1), 4, 1), ((1, 1), 4, 128), ((17, 5), 4, 64), ((31, 33), 3, 1), ((16, 16), 4, 64), ((40, 23), 1, 64),
    ((3000, 17), 1, 1), ((17, 300), 4, 128), ((300, 1), 2, 512),
])  # fmt: skip
def test_any_size_gives_exactly_scale_times_it(host, quick, size, scale, process_size):
    image = picture(1, *size)
    out = upscale(host, *quick, image, scale=scale, process_size=process_size)
    assert out.shape == (1, scale * size[0], scale * size[1], 3) and bool(out.isfinite().all())


def test_the_result_lies_where_the_input_does(host, quick):
    """No shift by padding, tiles or the working size: a smooth picture comes back."""
    ramp = torch.linspace(0, 1, 37)
    image = torch.stack([ramp[:, None].expand(37, 29), ramp[:29].expand(37, 29), torch.full((37, 29), 0.3)], -1)[None]
    for process_size, vae_tile in ((1, 0), (256, 0), (1, 384)):
        out = upscale(host, *quick, image, process_size=process_size, vae_tile=vae_tile, color_fix="none")
        expected = functional.interpolate(image.movedim(-1, 1), scale_factor=4, mode="bilinear").movedim(1, -1)
        inside = (slice(None), slice(16, -16), slice(16, -16))
        assert torch.allclose(out[inside], expected[inside], atol=0.02)


def test_frames_of_a_still_picture_are_identical_and_alone(host, folder, model, vae):
    restorer, encoder = apply(host, folder, model, vae)
    image = picture(1, 32, 16).repeat(9, 1, 1, 1)
    image[7] = picture(32, 16, seed=3)
    out = upscale(host, restorer, encoder, image, tile=8, overlap=4, color_fix="none")
    still = [frame for number, frame in enumerate(out) if number != 7]
    assert all(torch.equal(frame, still[0]) for frame in still)
    assert torch.equal(upscale(host, restorer, encoder, image[7:8], tile=8, overlap=4, color_fix="none")[0], out[7])
    assert (out[7] - out[0]).abs().max() > 0.05


def test_alpha_grey_and_inputs_are_kept(host, quick):
    image = torch.cat([picture(2, 9, 8), torch.linspace(0, 1, 8).expand(2, 9, 8)[..., None]], -1)
    before = image.clone()
    out = upscale(host, *quick, image)
    assert out.shape == (2, 36, 32, 4) and torch.equal(image, before)
    assert torch.allclose(out[..., 3].mean(), torch.tensor(0.5), atol=0.02)
    assert upscale(host, *quick, image[..., :1]).shape == (2, 36, 32, 3)


def test_equals_the_chain_of_nodes(host, folder, model, vae):
    """At a size that needs no padding: enlarged, encoded, one step in tiles, decoded, by hand."""
    restorer, encoder = apply(host, folder, model, vae)
    image = picture(1, 32, 16)
    large = functional.interpolate(image.movedim(-1, 1), scale_factor=4, mode="bicubic", antialias=True).clamp(0, 1)
    latent = encoder.encode(large.movedim(1, -1))
    for negative, cfg in ((None, 3.0), (unets.conditioning(0.7), 1.07), (unets.conditioning(0.7), 1.0)):
        parts = tiled(host, restorer, 8, 4)
        expected = encoder.decode(run(parts, latent, 1.0 if negative is None else cfg))
        out = upscale(host, restorer, encoder, image, tile=8, overlap=4, color_fix="none", negative=negative, cfg=cfg)
        assert torch.allclose(out, expected.clamp(0, 1), atol=1e-4)


def test_small_pictures_are_worked_on_larger(host, quick):
    seen, image = [], picture(1, 8, 12)
    model = watching(quick[0], seen)
    for process_size, sides in ((1, (8, 8)), (64, (8, 16)), (256, (32, 48))):
        seen.clear()
        upscale(host, model, quick[1], image, process_size=process_size, tile=0)
        assert seen[0][0].shape[-2:] == sides
    seen.clear()
    upscale(host, model, quick[1], picture(1, 2, 64), process_size=64, tile=0)  # 8x256, at most 512 long
    assert seen[0][0].shape[-2:] == (8, 64)


def test_the_autoencoder_in_tiles_gives_the_whole(host, quick):
    image = picture(1, 256, 200)
    whole = upscale(host, *quick, image, scale=2, vae_tile=0, color_fix="none")
    parts = upscale(host, *quick, image, scale=2, vae_tile=384, color_fix="none")
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_the_working_size_is_the_restorers_own(host, folder, model, vae):
    restorer, encoder = apply(host, folder, model, vae)
    for size, cells in ((None, 64), (128, 16)):
        seen = []
        if size:
            restorer = restorer.clone()
            restorer.set_attachments(one_step.TRAINED_SIZE, size)
        upscale(host, watching(restorer, seen), encoder, picture(1, 8, 8), process_size=0, tile=0)
        assert seen[0][0].shape[-2:] == (cells, cells)


@pytest.mark.parametrize(("degradation", "expected"), [
    ("per_image", [(0.0, 0.25), (0.5, 0.25), (0.75, 0.25)]), ("batch_mean", [(0.4375, 0.25)]),
    ("manual", [(0.1, 0.9)]),
])  # fmt: skip
def test_s3diff_is_made_for_each_degradation_once(host, quick, monkeypatch, degradation, expected):
    """Neighbouring frames of one degradation share their patches."""
    made = []

    def applied(model, vae, s3diff, blur, noise, strength):
        made.append((blur, noise))
        assert s3diff == "s3diff" and strength == 1.0
        return model, vae

    quick[0].remove_attachments(one_step.TRAINED_SIZE)
    monkeypatch.setattr(one_step, "applied", applied)
    monkeypatch.setattr(one_step, "measured", lambda s3diff, picture: (float(picture.mean()), 0.25))
    monkeypatch.setattr(one_step, "degradations", lambda s3diff, image: (
        image.mean((1, 2, 3)).tolist(), [0.25] * len(image)))
    image = torch.tensor([0.0, 0.5, 0.5, 0.75]).view(4, 1, 1, 1).expand(4, 8, 8, 3)
    upscale(host, *quick, image, s3diff="s3diff", degradation=degradation, blur=0.1, noise=0.9)
    assert made == expected


def wide(*widths):
    """CONDITIONING of texts of these widths."""
    return [[torch.zeros(1, 5, width), {}] for width in widths]


@pytest.mark.parametrize("inputs, message", [
    ({"upscale_method": "best"}, "upscale_method is 'best'"),
    ({"degradation": "some"}, "degradation is 'some'"),
    ({"color_fix": "hsv"}, "color_fix is 'hsv'"),
    ({"overlap": 9}, "overlap is 9, more than half"),
    ({"tile": 5, "overlap": 0}, "tile is 5, "),
    ({"cfg": float("nan")}, "cfg is nan; set it"),
    ({"cfg": float("inf")}, "cfg is inf; set it"),
    ({"blur": 1.5, "degradation": "manual"}, "blur is 1.5; set it to a number from 0 to 1"),
    ({"noise": float("nan"), "degradation": "manual"}, "noise is nan; set it"),
    ({"positive": []}, "positive holds no text; connect"),
    ({"negative": []}, "negative holds no text; connect"),
    ({"positive": wide(24, 32)}, "positive has texts of 32 numbers a token, and model reads 24"),
    ({"negative": wide(1024)}, "negative has texts of 1024 numbers a token, and model reads 24"),
    ({"image": torch.zeros(0, 8, 8, 3)}, r"image has the shape \[0, 8, 8, 3\]"),
    ({"image": torch.full((1, 8, 8, 3), torch.nan)}, "image has values that are not finite"),
    ({"vae": None}, "vae is none, .*connect Load VAE"),
])  # fmt: skip
@pytest.mark.parametrize("with_s3diff", [False, True])
def test_bad_inputs_are_refused_before_any_work(host, model, vae, monkeypatch, inputs, message, with_s3diff):
    def worked(*_, **__):
        pytest.fail("worked")

    for name in ("measured", "degradations", "applied", "encoded", "in_one_step"):
        monkeypatch.setattr(one_step, name, worked)
    given = {"model": model.clone(), "vae": vae, "image": picture(1, 8, 8), "degradation": "batch_mean", **inputs}
    if with_s3diff:
        given["s3diff"] = "s3diff"
    else:
        given["model"].set_attachments(one_step.TRAINED_SIZE, 512)
    with pytest.raises(ValueError, match=message):
        upscale(host, given.pop("model"), given.pop("vae"), given.pop("image"), **given)


def test_a_result_that_is_not_finite_is_told_with_its_fix(host, quick):
    model, vae = quick
    model.set_model_unet_function_wrapper(lambda apply_model, args: args["input"] / 0)
    with pytest.raises(ValueError, match="model or vae computed values that are not finite: .*--force-fp32 --fp32-vae"):
        upscale(host, model, vae, picture(1, 8, 8))


def test_an_autoencoder_of_another_model_is_refused(host, quick):
    model, image = quick[0], picture(1, 8, 8)
    pixels = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="vae gives latents .* 4 channels"):
        upscale(host, model, pixels, image)


def test_is_cancelled_between_frames(host, quick, monkeypatch):
    checks = []

    def cancel():
        checks.append(1)
        if len(checks) > 8:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(_restore.comfy.model_management, "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        upscale(host, *quick, picture(100, 8, 8))
