"""One More Step inside a host: its files, the step as a latent, the wrapped sampler, the seed without a module."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import host_models
import pytest
import torch
import unets
from safetensors.torch import save_file
from trajectory.models import oms
from trajectory.nodes import models as miniatures
from trajectory.nodes import oms as nodes
from trajectory.training.one_more_step import build_module, without_time

SHAPE = (3, 4, 8, 8)
WIDTH = 24
V = [0.5, -0.25, 1.0, 0.125]


def weights(seed=0, v=None, width=WIDTH):
    """Of a random module; with `v` [4] of one that always answers v."""
    module = without_time(build_module((32, 64), 4, width, 1))
    made = {k: w for k, w in unets.random_weights(module, seed).items() if "time_emb" not in k}
    if v is not None:
        made |= {"conv_out.weight": torch.zeros(4, 32, 3, 3), "conv_out.bias": torch.tensor(v)}
    return made


def oms_model(latent_format=comfy.latent_formats.SD15, dtype=torch.float32, **options):
    made = weights(**options)
    config = oms.unet_config(made)
    return nodes.module_model(made, config, latent_format, dtype)


def text(value=0.3, width=WIDTH, items=1):
    return [[torch.sin(torch.arange(items * 5.0 * width) * (1 + value)).reshape(items, 5, width), {}]]


def call(host, node_id, **inputs):
    return host.node_table[node_id].execute(**inputs).args[0]


def step(host, module=None, model=None, shape=SHAPE, **inputs):
    inputs = {"latent": {"samples": torch.zeros(shape)}, "positive": text(), "oms_cfg": 1.0, "strength": 1.0,
              "seed": 3, **inputs}  # fmt: skip
    return call(host, "TrajectoryOMSStep", oms_model=module or oms_model(), model=model or unets.unet(), **inputs)


def noise_of(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def recorder(states):
    """SAMPLER that keeps its first state and returns it."""
    return comfy.samplers.KSAMPLER(lambda model, x, sigmas, **_: states.append(x.clone()) or x)


def sample(model, latent, sampler=None, mask=None, denoise=1.0):
    """(result, first sigma) of four steps of the host from the noise of seed 5."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", int(4 / denoise))[-5:]
    out = comfy.sample.sample_custom(
        model, noise_of(5, latent.shape), 1.0, sampler or comfy.samplers.sampler_object("euler"), sigmas,
        unets.conditioning(0.2), unets.conditioning(0.1), latent, noise_mask=mask, disable_pbar=True, seed=5,
    )  # fmt: skip
    return out, float(sigmas[0])


# --- the step


def test_the_first_state_is_minus_v_plus_noise(host):
    """x = -v + s n; at full denoise hosts take sqrt(1 + s^2) n. As the latent, and beside a latent of one's own."""
    latent, model, states = step(host, oms_model(v=V)), unets.unet(), []
    mean = -torch.tensor(V).view(1, 4, 1, 1).expand(SHAPE)
    assert torch.allclose(latent["samples"] * 0.18215, mean, atol=1e-6)
    wrapped = call(host, "TrajectoryOMSSamplerWrap", sampler=recorder(states), start=latent)
    _, sigma = sample(model, latent["samples"], recorder(states))
    sample(model, noise_of(6) + 1.0, wrapped)
    for state in states:
        assert torch.allclose(state, mean + (1 + sigma**2) ** 0.5 * noise_of(5), atol=1e-4)


def test_a_partial_schedule_starts_from_it_with_noise_of_its_first_sigma(host, caplog):
    latent, states = step(host, oms_model(v=V)), []
    wrapped = call(host, "TrajectoryOMSSamplerWrap", sampler=recorder(states), start=latent)
    with caplog.at_level(logging.WARNING, "trajectory"):
        _, sigma = sample(unets.unet(), noise_of(6), wrapped, denoise=0.5)
    assert torch.allclose(states[0], -torch.tensor(V).view(1, 4, 1, 1) + sigma * noise_of(5), atol=1e-5)
    assert "denoise below 1" in caplog.text


@pytest.mark.parametrize("route", ["strength", "colour"])
def test_strength_0_is_the_sampler_without_it_to_the_last_bit(host, route):
    if route == "strength":
        latent = step(host, strength=0.0)["samples"]
    else:
        latent = seed_of(host, colour="#ffffff", strength=0.0)["samples"].repeat(3, 1, 1, 1)
    assert not latent.any() and latent.shape == SHAPE
    model = unets.unet()
    plain, _ = sample(model, torch.zeros(SHAPE))
    assert torch.equal(sample(model, latent)[0], plain)
    wrapped = call(host, "TrajectoryOMSSamplerWrap", sampler=comfy.samplers.sampler_object("euler"),
                   start={"samples": latent})  # fmt: skip
    assert torch.equal(sample(model, torch.zeros(SHAPE), wrapped)[0], plain)


def test_strength_scales_and_the_seed_hardly_matters_but_repeats(host):
    module = oms_model()
    whole, half = (step(host, module, strength=s)["samples"] for s in (1.0, 0.5))
    assert torch.allclose(half, 0.5 * whole, atol=1e-5) and whole.abs().max() > 0.1
    assert torch.equal(step(host, module)["samples"], whole)
    assert not torch.equal(step(host, module, seed=4)["samples"], whole)


def test_guidance_leads_away_from_the_negative(host):
    module = oms_model()
    positive, negative = (step(host, module, positive=text(t))["samples"] for t in (0.3, 0.7))
    guided = step(host, module, oms_cfg=2.5, negative=text(0.7))["samples"]
    assert torch.allclose(guided, negative + 2.5 * (positive - negative), atol=1e-4)
    assert not torch.allclose(guided, positive, atol=1e-2)
    longer = [[torch.cat([text(0.7)[0][0]] * 2, dim=1), {}]]  # as two chunks of tokens
    assert torch.isfinite(step(host, module, oms_cfg=2.5, negative=longer)["samples"]).all()


def test_item_k_of_a_batch_is_that_item_alone(host):
    module = oms_model()
    batch = step(host, module)["samples"]
    for k in range(3):
        latent = {"samples": torch.zeros(1, *SHAPE[1:]), "batch_index": [k]}
        alone = step(host, module, latent=latent)
        assert torch.allclose(alone["samples"], batch[k : k + 1], atol=1e-5) and alone["batch_index"] == [k]
    assert not torch.allclose(batch[0], batch[1], atol=1e-4)


def test_a_text_an_item(host):
    module, many = oms_model(), text(items=3)
    batch = step(host, module, positive=many)["samples"]
    for k in range(3):
        one = {"samples": torch.zeros(1, *SHAPE[1:]), "batch_index": [k]}
        alone = step(host, module, latent=one, positive=[[many[0][0][k : k + 1], {}]])["samples"]
        assert torch.allclose(alone, batch[k : k + 1], atol=1e-5)


def test_a_device_with_little_memory_gets_a_few_items_at_a_time(host, monkeypatch):
    module = oms_model()
    whole = step(host, module)["samples"]
    monkeypatch.setattr(
        comfy.model_management, "get_free_memory", lambda _=None, both=False: (1.0, 1.0) if both else 1.0)
    network, calls = module.model.diffusion_model, []
    network.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    assert torch.allclose(step(host, module)["samples"], whole, atol=1e-5)
    assert calls == [1, 1, 1]


def test_half_precision(host):
    whole = step(host, oms_model())["samples"]
    half = step(host, oms_model(dtype=torch.bfloat16))["samples"]
    assert half.dtype is torch.float32
    assert (half - whole).abs().mean() < 0.1 * whole.abs().mean()


def test_interruption_before_a_call(host):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        step(host)
    assert not comfy.model_management.processing_interrupted()


def test_its_noise_is_not_the_samplers(host):
    ours = nodes.item_noise(5, range(3), SHAPE)
    theirs = comfy.sample.prepare_noise(torch.zeros(SHAPE), 5)
    shares = [float((a * b).mean()) for a in ours for b in theirs]
    assert max(map(abs, shares)) < 5 / 16  # five deviations of the mean of 256 products
    assert float(ours.std()) == pytest.approx(1.0, abs=0.1)


def test_inpainting_keeps_what_is_outside_the_mask(host):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1.0
    latent, model, start = noise_of(6), unets.unet(), step(host)
    sampler = comfy.samplers.sampler_object("euler")
    wrapped = call(host, "TrajectoryOMSSamplerWrap", sampler=sampler, start=start)
    out, _ = sample(model, latent, wrapped, mask)
    assert torch.allclose(out[..., :4], latent[..., :4], atol=1e-4)
    assert not torch.allclose(out[..., 4:], sample(model, latent, sampler, mask)[0][..., 4:], atol=1e-3)


def test_one_start_serves_a_batch_and_inputs_stay(host):
    start = step(host, shape=(1, *SHAPE[1:]))
    kept, states = start["samples"].clone(), []
    sampler = recorder(states)
    function = sampler.sampler_function
    wrapped = call(host, "TrajectoryOMSSamplerWrap", sampler=sampler, start=start)
    sample(unets.unet(), torch.zeros(SHAPE), wrapped)
    sample(unets.unet(), start["samples"].repeat(3, 1, 1, 1), sampler)
    assert torch.allclose(states[0], states[1], atol=1e-4)
    assert torch.equal(start["samples"], kept) and sampler.sampler_function is function


def test_a_second_start_replaces_the_first(host):
    first, second, states = torch.ones(SHAPE), torch.full(SHAPE, -2.0), []
    twice = recorder(states)
    for start in (first, second):
        twice = call(host, "TrajectoryOMSSamplerWrap", sampler=twice, start={"samples": start})
    sample(unets.unet(), torch.zeros(SHAPE), twice)
    once = call(host, "TrajectoryOMSSamplerWrap", sampler=recorder(states), start={"samples": second})
    sample(unets.unet(), torch.zeros(SHAPE), once)
    assert torch.equal(states[0], states[1])


def test_a_lora_of_the_model_stays_the_models_own(host):
    model, module = unets.unet(), oms_model()
    before, plain = step(host, module, model)["samples"], sample(model, torch.zeros(SHAPE))[0]
    key = "diffusion_model.out.2.bias"
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.full((4,), 0.3),))}, 1.0)
    with_lora = sample(patched, torch.zeros(SHAPE))[0]
    assert not torch.allclose(with_lora, plain, atol=1e-2)
    assert torch.equal(step(host, module, patched)["samples"], before)
    assert torch.equal(sample(patched, torch.zeros(SHAPE))[0], with_lora)


# --- what is refused


@pytest.mark.parametrize("inputs, message", [
    ({"positive": text(width=768)}, "positive has a width of 768, but oms_model reads texts of width 24"),
    ({"oms_cfg": 2.0, "negative": text(width=16)}, "negative has a width of 16"),
    ({"oms_cfg": 2.0}, "oms_cfg is 2.0, but negative is not connected"),
    ({"latent": {"samples": torch.ones(1, 16, 8, 8)}}, r"latent has the shape \[1, 16, 8, 8\]"),
    ({"latent": {"samples": torch.zeros(1, 4, 3, 8, 8)}}, r"latent has the shape \[1, 4, 3, 8, 8\]"),
    ({"latent": {"samples": torch.zeros(0, 4, 8, 8)}}, r"latent has the shape \[0, 4, 8, 8\], so it is empty"),
    ({"latent": {"samples": torch.zeros(SHAPE), "batch_index": [0, 1]}}, r"batch_index \[0, 1\] for 3 items"),
    ({"latent": {"samples": torch.zeros(1, 4, 8, 8), "batch_index": [-1]}}, r"batch_index \[-1\] for 1 item"),
    ({"positive": []}, "positive is empty; connect a text"),
    ({"oms_cfg": 2.0, "negative": []}, "negative is empty; connect a text"),
    ({"positive": [[torch.zeros(5, WIDTH), {}]]}, r"positive has the shape \[5, 24\]; a text is \[batch"),
    ({"positive": [[torch.zeros(0, 5, WIDTH), {}]]}, r"positive has the shape \[0, 5, 24\]"),
    ({"strength": float("nan")}, "strength is nan; set it to a number of 0 or more"),
    ({"oms_cfg": -1.0}, "oms_cfg is -1.0; set it"),
])  # fmt: skip
def test_wrong_inputs_are_named(host, inputs, message):
    with pytest.raises(ValueError, match=message):
        step(host, **inputs)


def test_the_empty_latent_of_another_family_is_taken(host):
    assert step(host, latent={"samples": torch.zeros(1, 16, 8, 8)})["samples"].shape == (1, 4, 8, 8)


@pytest.mark.parametrize("width, encoder", [(1024, "OpenCLIP-H"), (2048, "SDXL"), (128, "Load Miniature")])
def test_the_error_says_which_text_encoder_is_needed(host, width, encoder):
    model = SimpleNamespace(model=SimpleNamespace(model_config=SimpleNamespace(unet_config={"context_dim": width})))
    with pytest.raises(ValueError, match=f"width of 24.*of width {width}.*{encoder}"):
        nodes.check_text(model, "positive", text())


def test_flow_models_and_other_latents_are_refused(host):
    with pytest.raises(ValueError, match="flow model"):
        step(host, model=host_models.model("flow"))
    with pytest.raises(ValueError, match="latents of SDXL.*model in SD15.*variant in OMS Loader"):
        step(host, oms_model(comfy.latent_formats.SDXL))


def test_a_diffusion_model_is_no_module(host):
    model = unets.unet()
    with pytest.raises(ValueError, match="oms_model is a .* no module of One More Step; connect OMS Loader"):
        step(host, model, model)


def test_a_schedule_that_begins_at_pure_noise_is_warned_of(host, caplog):
    model = unets.unet()
    sampling = model.get_model_object("model_sampling")
    assert not one_warning(host, model, caplog)
    patched = model.clone()
    zero_snr = type(sampling)(model.model.model_config)
    zero_snr.set_sigmas(torch.cat([sampling.sigmas[:-1], torch.tensor([4500.0])]))
    patched.add_object_patch("model_sampling", zero_snr)
    assert "begins at sigma 4500" in one_warning(host, patched, caplog)


def one_warning(host, model, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "trajectory"):
        step(host, model=model)
    return caplog.text


def test_masks_and_more_texts_are_warned_of(host, caplog):
    latent = {"samples": torch.zeros(SHAPE), "noise_mask": torch.ones(1, 8, 8)}
    with caplog.at_level(logging.WARNING, "trajectory"):
        made = step(host, latent=latent, positive=text() + text(0.5))
    assert "noise_mask" not in made and "OMS Sampler Wrap" in caplog.text and "holds 2 texts" in caplog.text


def test_the_wrap_refuses_what_it_cannot_use(host, caplog):
    with pytest.raises(ValueError, match="sampler is a"):
        call(host, "TrajectoryOMSSamplerWrap", sampler=comfy.samplers.Sampler(), start={"samples": torch.zeros(1)})
    wrapped = call(host, "TrajectoryOMSSamplerWrap", sampler=recorder([]), start={"samples": torch.ones(1, 4, 4, 4)})
    with pytest.raises(ValueError, match=r"start of OMS Sampler Wrap has the shape \[1, 4, 4, 4\]"):
        sample(unets.unet(), torch.zeros(SHAPE), wrapped)


def test_on_a_flow_model_the_wrap_says_that_it_does_nothing(host, caplog):
    """At sigma 1 of a flow the state is noise alone, so a start has the weight 0."""
    states, noise = [], noise_of(5)
    wrapped = call(host, "TrajectoryOMSSamplerWrap", sampler=recorder(states), start={"samples": torch.ones(SHAPE)})
    with caplog.at_level(logging.WARNING, "trajectory"):
        host_models.guider(host_models.model("flow")).sample(
            noise, torch.zeros(SHAPE), wrapped, torch.tensor([1.0, 0.5, 0.0]), disable_pbar=True)
    assert torch.allclose(states[0], noise) and "flow model" in caplog.text


# --- files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/oms, and one more folder as extra_model_paths would name it."""
    extra = tmp_path / "extra"
    extra.mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "oms", ([str(extra)], set()))
    if hasattr(folder_paths, "filename_list_cache"):
        folder_paths.filename_list_cache.pop("oms", None)
    (tmp_path / "oms").mkdir()
    return tmp_path / "oms"


def load(host, file, variant="auto"):
    return call(host, "TrajectoryOMSLoader", file=file, variant=variant)


def save(path, tensors, config=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    if config:
        path.with_name("config.json").write_text(json.dumps(config))


def test_a_diffusers_folder_and_a_single_file_load(host, folder):
    made, name = weights(), "oms_b_15_21/oms_module/diffusion_pytorch_model.fp16.safetensors"
    save(folder / name, {k: w.half() for k, w in made.items()}, {"attention_head_dim": [1, 2]})
    save(folder.parent / "extra" / "my_xl.safetensors", made)
    assert set(nodes.module_files()) >= {str(Path(name)), "my_xl.safetensors"}
    first, second = load(host, str(Path(name))), load(host, "my_xl.safetensors")
    assert isinstance(first.get_model_object("latent_format"), comfy.latent_formats.SD15)
    assert isinstance(second.get_model_object("latent_format"), comfy.latent_formats.SDXL)
    forced = load(host, "my_xl.safetensors", "SD1.5 and 2.1")
    ours = step(host, forced)["samples"]
    assert torch.allclose(ours, step(host, oms_model())["samples"], atol=1e-4)
    assert torch.allclose(step(host, first)["samples"], ours, atol=0.1)


def test_the_bundled_module_is_one_of_the_files(host, monkeypatch):
    monkeypatch.setattr(nodes, "load_weights", lambda stem: {"landscapes_oms": weights(width=128)}[stem])
    loaded = load(host, nodes.BUNDLED)
    made = step(host, loaded, positive=text(width=128))["samples"]
    assert torch.isfinite(made).all() and made.any()


def test_damaged_missing_and_foreign_files_are_named(host, folder, monkeypatch, tmp_path):
    whole = folder / "sd15.safetensors"
    save(whole, weights())
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="sd15.safetensors is damaged .* bytes; it should have"):
        load(host, "sd15.safetensors")
    (folder / "junk15.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(RuntimeError, match="junk15.*header is not that of a safetensors file"):
        load(host, "junk15.safetensors")
    save(folder / "other15.safetensors", {"conv_in.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="file is 'other15.safetensors', .*: these are not the weights"):
        load(host, "other15.safetensors")
    lacking = weights()
    del lacking["conv_in.bias"]
    save(folder / "lacking15.safetensors", lacking)
    with pytest.raises(ValueError, match="file is 'lacking15.safetensors'.*missing.*bias"):
        load(host, "lacking15.safetensors")
    monkeypatch.setattr(miniatures, "_FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match="landscapes_oms.safetensors is missing"):
        load(host, nodes.BUNDLED)


@pytest.mark.parametrize("config, change", [
    (None, lambda w: [w.pop(k) for k in list(w) if k.startswith("up_blocks")]),
    (None, lambda w: [w.pop(k) for k in list(w) if k.startswith("up_blocks.1.")]),
    (None, lambda w: w.pop("conv_out.weight")),
    (None, lambda w: [w.pop(k) for k in list(w) if k.startswith("down_blocks.0.resnets")]),
    (None, lambda w: w.pop("down_blocks.1.resnets.0.conv1.weight")),
    (None, lambda w: w.update({"conv_in.weight": torch.tensor(1.0)})),
    (None, lambda w: w.update({"conv_in.weight": torch.zeros(0, 4, 3, 3)})),
    (None, lambda w: w.update({"conv_in.bias": torch.zeros(7)})),
    (None, lambda w: w.update({"down_blocks.a.resnets.b": torch.zeros(7)})),
    *(({"attention_head_dim": heads}, lambda w: None) for heads in (0, [0, 0], "8", ["1", "2"], None, {}, 2.0)),
    ({"num_attention_heads": 7}, lambda w: None),
], ids=str)  # fmt: skip
def test_odd_contents_are_refused_with_file_and_fix(host, folder, config, change):
    made = weights()
    change(made)
    save(folder / "odd15.safetensors", made, config)
    with pytest.raises(ValueError, match="(?s)^file is 'odd15.safetensors', .*: .*fetch this one and the config.json"):
        load(host, "odd15.safetensors")


@pytest.mark.parametrize("stop", [
    comfy.model_management.OOM_EXCEPTION, comfy.model_management.InterruptProcessingException])  # fmt: skip
def test_a_lack_of_memory_is_not_blamed_on_the_file(host, folder, monkeypatch, stop):
    def unet_model(*_):
        raise stop("stop")

    save(folder / "sd15.safetensors", weights())
    monkeypatch.setattr(nodes, "unet_model", unet_model)
    with pytest.raises(stop, match="stop"):
        load(host, "sd15.safetensors")


def test_pickles_and_paths_are_refused(host, folder):
    torch.save({"conv_in.weight": torch.zeros(1)}, folder / "module15.bin")
    torch.save({"conv_in.weight": torch.zeros(1)}, folder / "sneaky15.safetensors")
    save(folder.parent / "outside15.safetensors", weights())
    assert not {"module15.bin"} & set(nodes.module_files())
    for name in ("module15.bin", "../outside15.safetensors", str(folder.parent / "outside15.safetensors"), "no.st"):
        with pytest.raises(ValueError, match="no safetensors file in models/oms"):
            load(host, name)
    with pytest.raises(RuntimeError, match="not that of a safetensors file"):
        load(host, "sneaky15.safetensors")


def test_a_name_without_a_family_asks_for_the_variant(host, folder):
    save(folder / "module.safetensors", weights())
    with pytest.raises(ValueError, match="variant is auto, but 'module.safetensors' names no family, or both; set"):
        load(host, "module.safetensors")
    assert load(host, "module.safetensors", "SDXL")
    with pytest.raises(ValueError, match="variant is 'SD4'"):
        load(host, "module.safetensors", "SD4")


# --- the seed without a module


class Autoencoder:
    """Eightfold means of the pixels in four channels: linear, so that what a blur does to them is known."""

    def encode(self, pixels):
        means = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([means, means.mean(1, keepdim=True)], dim=1) - 0.5


def seed_of(host, vae=None, **inputs):
    inputs = {"colour": "#000000", "width": 64, "height": 64, "blur": 0.25, "strength": 1.0, **inputs}
    return call(host, "TrajectoryLowFrequencySeed", vae=vae or Autoencoder(), **inputs)


def test_a_colour_becomes_its_latent(host):
    made = seed_of(host, colour=" #ff8000", width=96, height=64)["samples"]
    expected = torch.tensor([1.0, 128 / 255, 0.0, (1 + 128 / 255) / 3]) - 0.5
    assert made.shape == (1, 4, 8, 12)
    assert torch.allclose(made, expected.view(1, 4, 1, 1).expand_as(made), atol=1e-5)
    assert torch.allclose(seed_of(host, colour="#ff8000", strength=0.5)["samples"][0, :, 0, 0], expected / 2, atol=1e-5)


def test_a_picture_keeps_its_mean_and_loses_its_detail(host):
    image = torch.rand(2, 64, 64, 4, generator=torch.Generator().manual_seed(1))
    sharp, soft = (seed_of(host, image=image, blur=blur)["samples"] for blur in (0.0, 0.25))
    assert sharp.shape == soft.shape == (2, 4, 8, 8)
    assert torch.allclose(sharp, Autoencoder().encode(image[..., :3]), atol=1e-5)
    assert torch.allclose(sharp.mean((-2, -1)), soft.mean((-2, -1)), atol=1e-5)
    assert soft.std() < 0.8 * sharp.std()
    assert seed_of(host, image=image, width=128, height=32)["samples"].shape == (2, 4, 4, 16)


@pytest.mark.parametrize("colour", ["black", "#12345", "#1234567", "", "00 00 00", "##000000"])
def test_colours_that_are_none(host, colour):
    with pytest.raises(ValueError, match="colour is .*write #RRGGBB"):
        seed_of(host, colour=colour)


@pytest.mark.parametrize("inputs, message", [
    ({"blur": float("nan")}, "blur is nan; set it"),
    ({"blur": -0.1}, "blur is -0.1; set it"),
    ({"strength": -1.0}, "strength is -1.0; set it"),
    ({"strength": float("inf")}, "strength is inf; set it"),
    ({"image": torch.zeros(0, 64, 64, 3)}, r"image has the shape \[0, 64, 64, 3\]; connect at least one picture"),
    ({"image": torch.zeros(64, 64, 3)}, r"image has the shape \[64, 64, 3\]"),
])  # fmt: skip
def test_other_inputs_that_are_none(host, inputs, message):
    with pytest.raises(ValueError, match=message):
        seed_of(host, **inputs)


def test_a_picture_of_one_channel_is_grey(host):
    image = torch.rand(1, 64, 64, 1, generator=torch.Generator().manual_seed(1))
    grey = seed_of(host, image=image.expand(1, 64, 64, 3))["samples"]
    assert torch.equal(seed_of(host, image=image)["samples"], grey) and grey.any()


def test_autoencoders_of_video_are_refused(host):
    class Video:
        def encode(self, pixels):
            return torch.zeros(1, 4, 1, 8, 8)

    with pytest.raises(ValueError, match="vae makes latents of the shape"):
        seed_of(host, Video())
