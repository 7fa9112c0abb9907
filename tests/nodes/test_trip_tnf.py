"""The nodes of TRIP's learned fusion: its patch in both layouts of latents, its files, and its training in a host."""

import os
import re

import comfy.conds
import comfy.model_management
import comfy.samplers
import folder_paths
import host_models
import pytest
import torch
import unets
from random_weights import stirred
from safetensors import SafetensorError
from trajectory.models import tnf as files
from trajectory.models import trip
from trajectory.nodes._restore import patcher_of
from trajectory.nodes.models import load_weights
from trajectory.operators.base import gradients
from trajectory.training import tnf as training

KINDS = {"eps": "noise", "v": "noise", "edm": "noise", "flow": "velocity"}
LAYOUTS = {"batch": (4, 4, 6, 8), "time": (2, 4, 4, 6, 8)}
STEPS = 4


def call(host, node, **inputs):
    """All outputs of a node in the mode that hosts run nodes in, with its own defaults."""
    cls = host.node_table[f"TrajectoryTRIP{node}"]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    with torch.inference_mode():
        return cls.execute(**{**defaults, **inputs})


def fusion(parametrisation="noise", channels=4, frames=4, begun=False):
    """TRIP_TNF: at the start of a training, or with weights of which none is zero."""
    made = training.begun(channels, frames, 8, 2, parametrisation, "a model", seed=0)
    return patcher_of((made if begun else stirred(made)).requires_grad_(False))


def latents(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def still_clip(shape):
    return latents(shape, 1)[:1] if len(shape) == 4 else latents(shape, 1)[:1, :, :1]


def applied(host, patcher, tnf, still, **inputs):
    return call(host, "ApplyTNF", model=patcher, tnf=tnf, reference={"samples": still}, **inputs).args[0]


def fused(patched, x, denoised, sigma, cond=()):
    function = patched.model_options["sampler_post_cfg_function"][-1]
    return function({"denoised": denoised, "input": x, "sigma": sigma, "model": patched.model, "cond": cond})


def sample(patcher, shape, cfg=1.0):
    scheduler = "simple" if patcher.model.diffusion_model.kind == "flow" else "karras"
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, STEPS)
    with torch.inference_mode():
        return host_models.guider(patcher, cfg=cfg).sample(
            latents(shape, 5), torch.zeros(shape), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True,
            seed=3).clone()  # fmt: skip


def frames(x):
    """[T, B, ...] in either layout."""
    return x[:, None] if x.ndim == 4 else x.movedim(2, 0)


# --- the patch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_strength_0_is_the_model_itself(host, kind, shape):
    patcher = host_models.model(kind)
    assert applied(host, patcher, fusion(KINDS[kind]), still_clip(shape), strength=0.0) is patcher


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_fusion_that_was_not_trained_is_the_linear_one(host, kind, shape, strength):
    still, x, denoised = still_clip(shape), latents(shape), latents(shape, 2)
    patched = applied(host, host_models.model(kind), fusion(KINDS[kind], begun=True), still, strength=strength)
    lam = strength * torch.linspace(0.9, 0.1, 4).view(4, *[1] * 4)
    out = fused(patched, x, denoised, torch.full(shape[:1], 0.7))
    assert torch.allclose(frames(out), lam * frames(still) + (1 - lam) * frames(denoised), atol=1e-4)


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_the_first_frame_of_the_reference_stands_for_all_as_in_training(host, shape):
    """Autoencoders of videos have other latents for the frames behind it, which no training has seen."""
    still, x, denoised = latents(shape, 1)[:1 if len(shape) == 5 else None], latents(shape), latents(shape, 2)
    patched, alone = (applied(host, host_models.model("eps"), fusion(), reference)
                      for reference in (still, still[:1] if len(shape) == 4 else still[:, :, :1]))
    sigma = torch.full(shape[:1], 0.7)
    assert torch.equal(fused(patched, x, denoised, sigma), fused(alone, x, denoised, sigma))


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_the_fusion_of_a_trip_network_gives_what_the_network_gives(host, shape):
    """Behind the residual path of a small TRIP network with random weights."""
    network = stirred(trip.TRIP(trip.Config(width=8, time=16, frames=4, dim=8, side=4))).requires_grad_(False)
    seen = []
    network.fusion.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    clips = latents(shape) if len(shape) == 5 else latents(shape).movedim(0, 1)[None]
    image, level, items = latents((1, 4, 6, 8), 1), 1.7, len(clips)
    eps = network(clips / (1 + level**2) ** 0.5, torch.full((items,), level), latents((items, 20, 128), 2),
                  image.expand(items, -1, -1, -1))  # fmt: skip
    tnf = patcher_of(files.TemporalFusion(network.fusion, "noise"))
    patched = applied(host, host_models.model("eps"), tnf, image)
    residual, expected = (x if len(shape) == 5 else x[0].movedim(1, 0)
                          for x in (clips - level * seen[0], clips - level * eps))  # fmt: skip
    out = fused(patched, latents(shape), residual, torch.full(shape[:1], level))
    assert torch.allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_it_samples_and_the_model_it_patches_stays(host, kind, shape):
    patcher = host_models.model(kind)
    before = sample(patcher, shape)
    patched = applied(host, patcher, fusion(KINDS[kind], begun=True), still_clip(shape))
    calls = len(patcher.model.diffusion_model.calls)
    drawn = sample(patched, shape)
    assert len(patcher.model.diffusion_model.calls) == calls + STEPS
    assert torch.equal(sample(patched, shape), drawn) and torch.equal(sample(patcher, shape), before)
    distances = [(frames(x) - frames(still_clip(shape))).square().flatten(1).mean(1) for x in (drawn, before)]
    assert distances[0][0] < 0.1 * distances[1][0] and distances[0][0] < distances[0][-1]
    assert torch.isfinite(sample(patched, shape, cfg=3.0)).all()


def test_both_layouts_of_one_clip_agree_and_videos_of_a_batch_do_not_mix(host):
    shape, still = LAYOUTS["time"], still_clip(LAYOUTS["time"])
    patched = applied(host, host_models.model("eps"), fusion(), still)
    x, denoised, sigma = latents(shape), latents(shape, 2), torch.tensor([3.0, 0.5])
    both = fused(patched, x, denoised, sigma)
    on_batch = applied(host, host_models.model("eps"), fusion(), still[:, :, 0])
    for k in range(2):
        alone = fused(patched, x[k : k + 1], denoised[k : k + 1], sigma[k : k + 1])
        assert torch.allclose(alone, both[k : k + 1], atol=1e-5)
        alone = fused(on_batch, x[k].movedim(1, 0), denoised[k].movedim(1, 0), sigma[k].expand(4))
        assert torch.allclose(alone.movedim(0, 1), both[k], atol=1e-5)


def test_of_a_video_with_sound_the_video_is_fused(host):
    """Newer hosts pack both into one tensor and tell the shapes in the conditionings."""
    shape, sound, sigma = LAYOUTS["time"], latents((2, 1, 30), 3), torch.tensor([3.0, 0.5])
    x, denoised = latents(shape), latents(shape, 2)
    patched = applied(host, host_models.model("eps"), fusion(), still_clip(shape))
    shapes = comfy.conds.CONDConstant([torch.Size(shape), sound.shape])
    packed = [torch.cat([video.flatten(1)[:, None], sound], dim=-1) for video in (x, denoised)]
    out = fused(patched, *packed, sigma, [{"model_conds": {"latent_shapes": shapes}}])
    alone = fused(patched, x, denoised, sigma)
    assert torch.equal(out, torch.cat([alone.flatten(1)[:, None], sound], dim=-1))


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_patches_compose(host, shape):
    """The prior behind it locks the first frame; a second fusion acts behind the first, and both are loaded."""
    still, tnf = still_clip(shape), fusion(begun=True)
    once = applied(host, host_models.model("eps"), tnf, still)
    locked = host.node_table["TrajectoryTRIPNoisePrior"].execute(
        once, {"samples": still}, mode="adaptive", strength=1.0, lambda_last=0.1, motion=0.5, growth=1.0,
        start_percent=0.0, end_percent=1.0, band="full", low_pass=8, lock_first=True, axis="auto").args[0]  # fmt: skip
    assert torch.allclose(frames(sample(locked, shape))[0], frames(still)[0].expand(len(shape) == 5 and 2 or 1, -1, -1,
                                                                                    -1), atol=1e-5)  # fmt: skip
    twice = applied(host, once, fusion(), still)
    assert len(twice.model_options["sampler_post_cfg_function"]) == 2
    assert len([m for models in twice.additional_models.values() for m in models]) == 2
    assert not torch.allclose(sample(twice, shape), sample(once, shape), atol=1e-3)


def test_a_clone_of_the_patched_model_runs_the_fusion_that_is_loaded(host):
    tnf = fusion()
    clone = applied(host, host_models.model("eps"), tnf, still_clip(LAYOUTS["batch"])).clone()
    assert clone.model_options["sampler_post_cfg_function"][-1].__self__.tnf.model is tnf.model
    loaded, = (m for models in clone.additional_models.values() for m in models)
    assert loaded.model is tnf.model


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_go_through_a_fusion_that_was_made_in_inference_mode(host, shape):
    with torch.inference_mode():
        made, still = fusion(), still_clip(shape).clone()
    found = []
    for tnf in (made, fusion()):
        patched = applied(host, host_models.model("eps"), tnf, still)
        with gradients():
            x = latents(shape).requires_grad_()
            out = fused(patched, x, 0.3 * x, torch.full(shape[:1], 0.7))
            found += torch.autograd.grad(out.square().sum(), x)
    assert torch.equal(*found) and found[0].abs().max() > 0


def test_a_fusion_that_does_not_fit_into_memory_is_told(host, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    patched = applied(host, host_models.model("eps"), fusion(), still_clip(LAYOUTS["batch"]))
    monkeypatch.setattr(files.TemporalFusion, "forward", full)
    with pytest.raises(ValueError, match="clips of 4 x 4 x 6 x 8 .* do not fit into memory in the fusion; connect"):
        sample(patched, LAYOUTS["batch"])


@pytest.mark.parametrize(("kind", "tnf", "still", "words"), [
    ("flow", ("noise", 4), (1, 4, 6, 8), r"tnf was trained on eps, v or EDM models \(a model\), but model is one of "
                                         "flow; train one"),
    ("v", ("velocity", 4), (1, 4, 6, 8), "tnf was trained on flow models"),
    ("eps", ("noise", 16), (1, 4, 6, 8), "tnf takes latents of 16 channels .*, but they have 4 here; choose one"),
    ("eps", ("noise", 4), (1, 1, 50), "reference is a latent 1 x 1 x 50"),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(host, kind, tnf, still, words):
    with pytest.raises(ValueError, match=words):
        applied(host, host_models.model(kind), fusion(*tnf), torch.zeros(still))


def test_a_reference_of_another_size_is_refused(host):
    patched = applied(host, host_models.model("eps"), fusion(), torch.zeros(3, 4, 6, 8))
    with pytest.raises(ValueError, match="reference is a latent 3 x 4 x 6 x 8, but the model samples 4 x 4 x 6 x 8"):
        sample(patched, LAYOUTS["batch"])


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "trip", ([str(tmp_path / "trip")], set()))
    (tmp_path / "trip").mkdir()
    return tmp_path / "trip"


def test_a_saved_fusion_is_loaded_bit_by_bit_and_never_replaced(host, folder):
    made = [fusion(), fusion("velocity", begun=True)]
    for tnf in made:
        call(host, "SaveTNF", tnf=tnf, filename_prefix="clips/waves")
    names = [f"clips/waves_0000{k}_.safetensors" for k in (1, 2)]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == names
    offered = next(i for i in host.node_table["TrajectoryTRIPLoadTNF"].define_schema().inputs if i.id == "file").options
    assert {name.replace("\\", "/") for name in offered} == {"landscapes (bundled)", *names}
    for tnf, name in zip(made, names, strict=True):
        again = call(host, "LoadTNF", file=next(n for n in offered if n.replace("\\", "/") == name)).args[0].model
        assert again.about() == tnf.model.about()
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in tnf.model.state_dict().items())


@pytest.mark.parametrize(("prefix", "words"), [
    *((prefix, "which names no file that can be written in models/trip; set letters") for prefix in (
        "../waves", "a/../../waves", "/waves/a", "", ".", "..", "clips/", "clips/..", "a\\", "a\0b", "a?b", "C:a")),
    ("n" * 300, r"but its file cannot be written in .*; set a shorter one"),
])  # fmt: skip
def test_names_that_a_file_cannot_have_are_refused(host, folder, prefix, words):
    for _ in range(2):
        with pytest.raises(ValueError, match=f"filename_prefix is .*, {words}"):
            call(host, "SaveTNF", tnf=fusion(), filename_prefix=prefix)
    assert [path.name for path in folder.parent.rglob("*")] == ["trip"]


def test_a_file_that_cannot_be_written_is_told(host, folder, monkeypatch):
    def full(weights, path, about):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(ValueError, match="filename_prefix is 'tnf', but .*No space left on device.*the disk is full"):
        call(host, "SaveTNF", tnf=fusion(), filename_prefix="tnf")
    assert not [*folder.iterdir()]


def test_a_folder_that_cannot_be_made_is_told(host, folder, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("Permission denied: 'waves'")

    monkeypatch.setattr(os, "makedirs", refused)  # who runs the tests may be allowed everything
    with pytest.raises(ValueError, match="'waves/a', but its file cannot be written in .*denied.*is full or read-only"):
        call(host, "SaveTNF", tnf=fusion(), filename_prefix="waves/a")


def test_files_that_are_none_are_refused_by_name(host, folder):
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="^file: cut.safetensors is no safetensors file.*; choose one that"):
        call(host, "LoadTNF", file="cut.safetensors")
    for name in ("none.safetensors", "../secret.safetensors"):
        with pytest.raises(ValueError, match="^file is .*, which is no file in models/trip; put [^;]*$"):
            call(host, "LoadTNF", file=name)


def test_the_bundled_fusion_is_that_of_the_miniature(host):
    loaded = call(host, "LoadTNF").args[0].model
    assert loaded.parametrisation == "noise" and loaded.tnf.channels == 4
    for name, value in loaded.tnf.state_dict().items():
        assert torch.equal(value, load_weights("trip_tnf")[f"fusion.{name}"].float())
        assert value.dtype == torch.float32


# --- training --------------------------------------------------------------------------------------------------------


def trained(host, kind="eps", shape=(2, 4, 4, 6, 8), **inputs):
    """(TRIP_TNF, loss curve, report) of few steps on random clips, of which the model is one of."""
    inputs = {"model": host_models.model(kind), "positive": host_models.conditioning(0.4),
              "clips": {"samples": latents(shape)}, "steps": 3, "dim": 8, "learning_rate": 1e-2, **inputs}  # fmt: skip
    inputs["model"].model.latent_format.latent_dimensions = inputs["clips"]["samples"].ndim - 2
    return call(host, "TrainTNF", **inputs).args


def weights_of(tnf):
    return {name: value.clone() for name, value in tnf.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "length"), [((2, 4, 4, 6, 8), 0), ((4, 4, 5, 7), 0), ((6, 4, 6, 8), 3)], ids=str)
def test_it_trains_in_both_layouts_and_leaves_the_model_as_it_is(host, kind, shape, length):
    patcher = host_models.model(kind)
    weights = {name: value.clone() for name, value in patcher.model.state_dict().items()}
    tnf, curve, report = trained(host, kind, shape, length=length, model=patcher, batch=2)
    assert tnf.model.parametrisation == KINDS[kind] and tnf.model.base == "BaseModel"
    assert tnf.model.tnf.head.weight.any() and not any(p.requires_grad for p in tnf.model.parameters())
    assert curve.ndim == 4 and curve.shape[-1] == 3 and curve.std() > 0.01 and report.startswith("3 steps on ")
    assert same(weights, patcher.model.state_dict())
    frames_a_clip = shape[2] if len(shape) == 5 else length or shape[0]
    calls = patcher.model.diffusion_model.calls
    assert calls == ([2] * 3 if len(shape) == 5 else [frames_a_clip] * 6)
    other = (frames_a_clip, 4, 6, 8)
    if len(shape) == 4:
        assert sample(applied(host, patcher, tnf, still_clip(other)), other).isfinite().all()


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before(host):
    state = torch.get_rng_state()
    one, two, other = (weights_of(trained(host, seed=seed)[0]) for seed in (1, 1, 2))
    assert same(one, two) and not same(one, other) and torch.equal(torch.get_rng_state(), state)


def test_clips_on_the_batch_axis_teach_what_those_on_the_time_axis_do(host):
    video = latents((3, 4, 4, 6, 8))
    on_time, on_batch = (weights_of(trained(host, clips={"samples": clips}, length=4, batch=2)[0])
                         for clips in (video, video.movedim(2, 1).flatten(0, 1)))  # fmt: skip
    assert all(torch.allclose(value, on_batch[name], atol=1e-4) for name, value in on_time.items())


def test_it_goes_on_from_another_fusion_which_stays(host):
    start = fusion()
    before = weights_of(start)
    went_on = trained(host, resume=start, dim=6, patch=1)[0]
    assert same(before, weights_of(start)) and not same(before, weights_of(went_on))
    assert went_on.model.tnf.patch == 2 and went_on.model.about()["dim"] == "8"
    with pytest.raises(ValueError, match="resume was trained on eps, v or EDM models"):
        trained(host, "flow", resume=start)
    with pytest.raises(ValueError, match="resume takes latents of 16 channels"):
        trained(host, resume=fusion(channels=16))


def test_clips_are_put_in_the_scale_of_the_model(host):
    patcher, plain = host_models.model("eps"), latents((2, 4, 4, 6, 8))
    expected = weights_of(trained(host, clips={"samples": plain})[0])
    patcher.model.latent_format.scale_factor = 0.25
    assert same(expected, weights_of(trained(host, model=patcher, clips={"samples": 4 * plain})[0]))


def test_it_is_interrupted_before_the_next_call_of_the_model(host):
    patcher = host_models.model("eps")
    network = patcher.model.diffusion_model
    forward = network.forward

    def interrupting(*args, **kwargs):
        if len(network.calls) == 1:
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    network.forward = interrupting
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            trained(host, model=patcher, steps=9)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(network.calls) == 2
    network.forward = forward
    again = trained(host, model=patcher)[0]
    assert same(weights_of(again), weights_of(trained(host)[0]))


def test_the_report_counts_clips_and_tells_a_loss_that_rose(host):
    _tnf, curve, report = trained(host, shape=(1, 4, 4, 6, 8), steps=1)
    assert re.fullmatch(r"1 steps on 1 clip of 4 frames: loss (\S+) to \1", report) and curve.ndim == 4
    report = trained(host, steps=20, learning_rate=1.0)[2]
    assert report.startswith("20 steps on 2 clips of 4 frames") and report.endswith("; it rose: lower learning_rate or "
                                                                                   "take more steps")


@pytest.mark.parametrize("node", ["TimeShiftModel", "FasterDiffusion"])
def test_it_trains_behind_patches_of_whole_runs(host, node):
    cls = host.node_table[f"Trajectory{node}"]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    tnf = trained(host, shape=(3, 4, 8, 8), model=cls.execute(unets.unet(), **defaults).args[0],
                  positive=unets.conditioning(0.4))[0]  # fmt: skip
    assert all(value.isfinite().all() for value in weights_of(tnf).values())


@pytest.mark.parametrize(("inputs", "words"), [
    ({"dim": 6}, "dim is 6, .*; set a multiple of 4"),
    ({"shape": (7, 4, 6, 8), "length": 3}, "length is 3, but clips holds 7 frames"),
    ({"shape": (1, 4, 6, 8)}, "clips holds clips of one frame"),
    ({"shape": (1, 16, 4, 6, 8)}, "clips is a latent 1 x 16 x 4 x 6 x 8, but the model has 4 channels"),
    ({"shape": (1, 1, 50)}, "clips is a latent 1 x 1 x 50"),
    ({"clips": {"samples": torch.full((1, 4, 4, 6, 8), float("nan"))}}, "clips has values that are not finite"),
    ({"positive": []}, "positive is empty"),
])  # fmt: skip
def test_nonsense_is_refused(host, inputs, words):
    with pytest.raises(ValueError, match=words):
        trained(host, **inputs)
