"""TRIP Miniature inside a host: frames on the batch axis as the host samples them, bundled files, files that play."""

import os
from dataclasses import replace

import comfy.samplers
import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import stirred
from trajectory.models.trip import TRIP, Config
from trajectory.nodes import models
from trajectory.nodes.trip_miniature import video_model
from trajectory.operators.measurement import psnr
from trajectory.restoration.video_metrics import adjacent_difference
from trajectory.samplers.angular import sample_angular
from trajectory.samplers.dpm_solver import sample_dpm_solver
from trajectory.training.landscapes.moving import Tracker, held_out_clips

import nodes as core

SMALL = Config(width=8, time=16, context=128, frames=8, dim=8, side=4)
CONFIGS = {"TRIP": SMALL, "linear": replace(SMALL, fusion="linear"), "plain": replace(SMALL, fusion="none"),
           "text": replace(SMALL, fusion="none", image=False)}  # fmt: skip
SCALE = 0.18215  # of Stable Diffusion's latents


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def still(height=8, width=8):
    """The latent of a picture, as a VAE gives it."""
    return draw(1, 4, height, width, seed=1) / SCALE


def video(variant, height=8, width=8):
    config = CONFIGS[variant]
    return video_model(stirred(TRIP(config), std=0.1).eval(), still(height, width) if config.image else None)


class Shortcut(torch.nn.Module):
    """A network that says half of the image noise prior: its clip is half way from the state to the picture."""

    config = CONFIGS["linear"]

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # hosts ask the parameters for their device

    def forward(self, x, sigma, context, image):
        level = sigma[:, None, None, None, None]
        return 0.5 * (x * (1 + level.square()).sqrt() - image[:, :, None]) / level


def shortcut(height=8, width=8):
    return video_model(Shortcut(), still(height, width))


def text(seed=2, **options):
    return [[draw(1, 20, 128, seed=seed), options]]


def run(model, sampler, sigmas, frames=8, cfg=1.0, positive=None, negative=None, size=(8, 8), **options):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text() if positive is None else positive, text(3) if negative is None else negative)
    guider.set_cfg(cfg)
    noise = draw(frames, 4, *size, seed=5)
    return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(sampler), torch.tensor(sigmas),
                         disable_pbar=True, seed=3, **options).clone()  # fmt: skip


def denoised(model, x, sigma, **options):
    """The MODEL's denoised frames for a state."""
    found = []

    def once(function, state, sigmas, extra_args=None, callback=None, disable=None):
        found.append(function(x, sigmas[0] * x.new_ones(len(x)), **extra_args))
        return state

    run(model, once, [sigma, 0.0], len(x), size=x.shape[2:], **options)
    return found[0]


def table(model):
    return model.get_model_object("model_sampling").sigmas


# --- the MODEL is the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "frames"), [*((v, 8) for v in CONFIGS), ("TRIP", 1), ("text", 1), ("TRIP", 3)])
@torch.no_grad()
def test_denoised_frames_are_those_of_the_network(host, variant, frames):
    model = video(variant)
    sigma, network = table(model)[500], model.model.diffusion_model.network
    x = draw(frames, 4, 8, 8) * (1 + sigma**2).sqrt()
    image = [still() * SCALE] if CONFIGS[variant].image else []
    eps = network((x / (1 + sigma**2).sqrt()).movedim(0, 1)[None], sigma[None], text()[0][0], *image)
    expected = x - sigma * eps[0].movedim(1, 0)
    torch.testing.assert_close(denoised(model, x, float(sigma)), expected, atol=1e-4, rtol=1e-4)


def test_texts_are_answered_alike_together_and_apart_and_guidance_is_between_them(host):
    model, x = video("TRIP"), draw(8, 4, 8, 8) * 3
    sigma, sizes = float(table(model)[600]), []
    model.model.diffusion_model.network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    one, other = (denoised(model, x, sigma, positive=text(seed)) for seed in (2, 3))
    assert sizes == [1, 1] and not torch.allclose(one, other, atol=5e-3)
    both = denoised(model, x, sigma, cfg=3.0)
    assert sizes in ([1, 1, 2], [1, 1, 1, 1])  # hosts that are short of memory show texts one after the other
    torch.testing.assert_close(both, other + 3 * (one - other), atol=2e-3, rtol=1e-3)


def test_the_network_hears_the_very_noise_level_under_fractional_timesteps(host):
    model = shortcut()
    fractional = host.node_table["TrajectoryFractionalTimesteps"].execute(model).args[0]
    x, sigma = draw(8, 4, 8, 8), float(table(model)[10:12].mean())
    exact = (x + still() * SCALE) / 2
    assert torch.allclose(denoised(fractional, x, sigma), exact, atol=1e-5)
    assert not torch.allclose(denoised(model, x, sigma), exact, atol=1e-4)
    assert torch.allclose(denoised(model, x, float(table(model)[10])), exact, atol=1e-5)


@pytest.mark.parametrize("sampler", [sample_dpm_solver, sample_angular], ids=lambda sampler: sampler.__name__)
def test_solvers_of_the_pack_arrive_at_the_exact_clip(host, sampler):
    """dx / dsigma = (x - z) / (2 sigma) of the shortcut alone is solved by x = z + (x_0 - z) sqrt(sigma / sigma_0)."""
    model = host.node_table["TrajectoryFractionalTimesteps"].execute(shortcut()).args[0]
    sigmas = torch.logspace(0.8, -0.8, 25).tolist()
    states = []
    out = run(model, sampler, sigmas, callback=lambda step, x0, x, total: states.append(x.clone())) * SCALE
    z = still() * SCALE
    exact = z + (states[0] - z) * (sigmas[-1] / sigmas[0]) ** 0.5
    assert (out - exact).abs().max() < 0.02 * (states[0] - exact).abs().max()


@pytest.mark.parametrize("size", [(9, 7), (3, 16)], ids=str)
def test_latents_of_odd_sizes_are_whole_clips(host, size):
    """Neither size nor picture is lost where the network sees more."""
    x, model = draw(8, 4, *size), shortcut(*size)
    found = denoised(model, x, float(table(model)[500]))
    torch.testing.assert_close(found, (x + still(*size) * SCALE) / 2, atol=1e-4, rtol=0)
    made = denoised(video("TRIP", *size), x, float(table(model)[500]))
    assert made.shape == x.shape and made.isfinite().all()


def test_tiles_see_their_part_of_the_picture(host):
    x, model = draw(2, 4, 40, 24), shortcut(40, 24)
    tiled = host.node_table["TrajectoryTiledDenoise"].execute(model, 16, 4).args[0]
    found = denoised(tiled, x, float(table(model)[500]))
    torch.testing.assert_close(found, (x + still(40, 24) * SCALE) / 2, atol=1e-4, rtol=0)


def test_areas_see_their_part_of_the_picture(host):
    if host.name == "embedded":
        pytest.skip("the embedded host has no areas")
    model, x = shortcut(), draw(8, 4, 8, 8)
    halves = [text(area=(8, 4, 0, column), strength=1.0)[0] for column in (0, 4)]
    found = denoised(model, x, float(table(model)[500]), positive=halves)
    torch.testing.assert_close(found, (x + still() * SCALE) / 2, atol=1e-4, rtol=0)


# --- the MODEL in the host -------------------------------------------------------------------------------------------


def ksampler(model, latent, steps=3, cfg=2.0, sampler="euler", seed=7, **options):
    return core.common_ksampler(model, seed, steps, cfg, sampler, "normal", text(), text(3), latent, **options)[0][
        "samples"]  # fmt: skip


def empty(frames=8, size=8):
    return {"samples": torch.zeros(frames, 4, size, size)}


def test_a_seed_gives_one_clip_and_clones_share_the_weights(host):
    model = video("TRIP")
    clone = model.clone()
    first = ksampler(model, empty())
    assert first.shape == (8, 4, 8, 8) and first.isfinite().all()
    assert torch.equal(first, ksampler(clone, empty())) and clone.model is model.model
    assert not torch.equal(first, ksampler(model, empty(), seed=8))


def test_what_a_noise_mask_keeps_stays(host):
    latent = {"samples": draw(8, 4, 8, 8, seed=4) / SCALE, "noise_mask": torch.ones(8, 1, 64, 64)}
    latent["noise_mask"][:3] = 0
    made = ksampler(video("TRIP"), latent)
    torch.testing.assert_close(made[:3], latent["samples"][:3], atol=1e-4, rtol=1e-4)
    assert (made[3:] - latent["samples"][3:]).abs().mean() > 0.1


def test_a_run_with_less_denoising_stays_nearer_to_its_clip(host):
    latent = {"samples": draw(8, 4, 8, 8, seed=4) / SCALE}
    model = shortcut()
    whole, part = (((ksampler(model, latent, denoise=share) - latent["samples"]) * SCALE).abs().mean()
                   for share in (1.0, 0.2))  # fmt: skip
    assert part < 0.5 * whole


def test_the_image_noise_prior_makes_the_text_model_begin_with_the_picture(host):
    cls = host.node_table["TrajectoryTRIPNoisePrior"]
    inputs = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    model, reference = video("text"), still().repeat(8, 1, 1, 1)
    prior = cls.execute(model, {"samples": reference}, **{**inputs, "motion": 0.2}).args[0]
    plain, drawn = (ksampler(m, empty()) for m in (model, prior))
    torch.testing.assert_close(drawn[0], reference[0], atol=1e-4, rtol=1e-5)
    assert (drawn - reference).std() < 0.5 * (plain - reference).std()


@pytest.mark.parametrize(("node", "words"), [
    ("FasterDiffusion", "a TRIPNetwork, which has no encoder"),
    ("FasterDiffusionDiT", "a TRIPNetwork, which has no row of blocks"),
    ("NASA", "of the class TRIPNetwork, in which NASA does not know"),
])  # fmt: skip
def test_patches_of_other_networks_refuse_it_by_name(host, node, words):
    cls = host.node_table[f"Trajectory{node}"]
    inputs = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    with pytest.raises(ValueError, match=f"model is {words}"):
        cls.execute(video("TRIP"), **inputs, **({"negative": text()} if node == "NASA" else {}))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 4, 8, 8), (1, 4, 8, 8, 8), (8, 16, 8, 8)], ids=str)
def test_latents_that_are_no_clip_are_refused(host, shape):
    size = " x ".join(map(str, shape))
    guider = comfy.samplers.CFGGuider(video("TRIP"))
    guider.set_conds(text(), text(3))
    with pytest.raises(ValueError, match=f"latent_image is a latent {size}.*1 to 8 frames.*batch_size 8"):
        guider.sample(draw(*shape), torch.zeros(shape), comfy.samplers.sampler_object("euler"),
                      torch.tensor([1.0, 0.0]), disable_pbar=True)  # fmt: skip


def test_a_clip_in_another_size_than_the_picture_is_refused(host):
    with pytest.raises(ValueError, match=r"image is 64 x 128 pixels .*, but the clip of latent_image 64 x 64; scale"):
        ksampler(video("TRIP", 8, 16), empty())


def test_texts_of_another_encoder_are_refused(host):
    with pytest.raises(ValueError, match="positive is not encoded by the CLIP of TRIP Miniature"):
        run(video("text"), comfy.samplers.sampler_object("euler").sampler_function, [1.0, 0.0],
            positive=[[draw(1, 77, 768), {}]])  # fmt: skip


def test_frames_of_different_noise_levels_are_refused(host):
    def uneven(function, state, sigmas, extra_args=None, callback=None, disable=None):
        return function(state, torch.linspace(2.0, 1.0, len(state)), **extra_args)

    with pytest.raises(ValueError, match="model is TRIP Miniature, .*equally noisy, but the sampler .*choose another"):
        run(video("TRIP"), uneven, [2.0, 0.0])


def load(host, *args, **inputs):
    return host.node_table["TrajectoryTRIPMiniature"].execute(*args, **inputs).args


def test_bad_inputs_are_refused(host):
    with pytest.raises(ValueError, match="image is not connected, and 'TRIP' animates one; .*'text to video'"):
        load(host, "TRIP")
    with pytest.raises(ValueError, match="image holds 2 pictures, and a clip begins with one"):
        load(host, "TRIP", torch.rand(2, 64, 64, 3))
    with pytest.raises(ValueError, match=r"image is 7 x 64 pixels .*, and the autoencoder takes sides from 8 on"):
        load(host, "TRIP", torch.rand(1, 7, 64, 3))
    with pytest.raises(ValueError, match="model is 'SVD'; choose one of TRIP"):
        load(host, "SVD")


def test_a_missing_file_is_named_with_the_fix(host, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)trip_tnf\.safetensors is missing.*git checkout"):
        load(host, "TRIP", torch.rand(1, 64, 64, 3))


def test_a_file_of_another_network_is_named_with_the_fix(host, monkeypatch):
    scope = host.node_table["TrajectoryTRIPMiniature"].execute.__func__.__globals__
    monkeypatch.setitem(scope, "load_weights", lambda stem: models.load_weights("landscapes_captions"))
    with pytest.raises(RuntimeError, match=r"miniatures/trip_tnf\.safetensors is of another version .*Fetch the whole"):
        load(host, "TRIP", torch.rand(1, 64, 64, 3))


# --- the bundled files -----------------------------------------------------------------------------------------------


def test_the_caption_encoder_knows_what_things_do_and_all_that_landscapes_are(host):
    clip, plain = load(host, "text to video")[1], models.load_clip(models.load_weights("landscapes_captions"))

    def encode(encoder, words):
        return encoder.encode_from_tokens_scheduled(encoder.tokenize(words))[0][0]

    assert torch.equal(encode(clip, "a red boat"), encode(plain, "a red boat"))
    moving = [encode(clip, f"a red boat {words}") for words in ("sails left", "sails right", "drifts left", "rises")]
    assert all((a - b).abs().max() > 0.01 for k, a in enumerate(moving) for b in moving[:k])


def test_a_picture_is_cut_to_whole_cells_of_the_autoencoder(host):
    model, _clip, vae = load(host, "TRIP", torch.rand(1, 68, 65, 4))
    assert model.model._image.shape == (1, 4, 8, 8)
    picture = torch.rand(1, 64, 64, 3)
    model = load(host, "TRIP", picture)[0]
    assert torch.allclose(model.model._image, vae.encode(picture) * SCALE)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(model, words, steps, size=128, **nodes):
    """A prompt of 8 frames, which node 7 decodes; node 8 encodes and decodes first.png."""
    image = {} if model == "text to video" else {"image": ["1", 0]}
    return {
        "1": node("LoadImage", image="first.png"),
        "2": node("TrajectoryTRIPMiniature", model=model, **image),
        "3": node("CLIPTextEncode", clip=["2", 1], text=words), "4": node("CLIPTextEncode", clip=["2", 1], text=""),
        "5": node("EmptyLatentImage", width=size, height=size, batch_size=8),
        "6": node("KSampler", model=["2", 0], positive=["3", 0], negative=["4", 0], latent_image=["5", 0], seed=1,
                  steps=steps, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0),
        "7": node("VAEDecode", samples=["6", 0], vae=["2", 2]),
        **nodes,
    }  # fmt: skip


def save_webp(name, images="7"):
    return node("SaveAnimatedWEBP", images=[images, 0], filename_prefix=name, fps=6.0, lossless=True, quality=90,
                method="fastest")  # fmt: skip


def frames_of(host, name):
    """[frames, 3, H, W] in 0..1 of an animation in the output folder."""
    (path,) = host.output.glob(f"{name}_*.webp")
    with Image.open(path) as file:
        frames = []
        for k in range(file.n_frames):
            file.seek(k)
            frames.append(np.asarray(file.convert("RGB")))
    path.unlink()
    return torch.from_numpy(np.stack(frames)).movedim(-1, 1).float() / 255


@pytest.fixture
def moving(host):
    """(a held-out clip, its caption); its first frame is the input first.png."""
    clip = held_out_clips(4)[3]
    Image.fromarray((clip.paint(8, 128)[0] * 255).astype(np.uint8)).save(host.input / "first.png")
    return clip, clip.caption(np.random.default_rng(0), keep=1.0)


@pytest.mark.parametrize("model", ["TRIP", "TRIP (linear fusion)", "TRIP (no shortcut)", "text to video"])
def test_a_saved_animation_begins_with_the_picture_and_moves(host, moving, model):
    clip, words = moving
    encoded = {"8": node("VAEEncode", pixels=["1", 0], vae=["2", 2]), "9": node("VAEDecode", samples=["8", 0],
               vae=["2", 2]), "10": save_webp("still", "9"), "11": save_webp("clip")}  # fmt: skip
    result = host.run(graph(model, words, 10, **encoded))
    assert result.success, result.failure
    made, first = frames_of(host, "clip"), frames_of(host, "still")
    assert made.shape == (8, 3, 128, 128) and result.outputs["11"]["animated"][0]
    if model in ("TRIP", "TRIP (linear fusion)"):
        assert psnr(made[:1], first) > 30  # from where on a difference is hard to see
    if model == "text to video":  # a landscape of its own, in which nothing can be followed
        assert adjacent_difference(made) > 0
    else:  # most frames as far as the caption says; none in a clip that stands still or flickers
        assert Tracker(clip, 128).accuracy(made.movedim(1, -1).numpy()) > 0.5


def test_cancelling_stops_the_clip_and_the_next_run_is_whole(host, moving):
    def stop(event, data):
        if event == "progress" and data["value"] == 1:
            host.interrupt()

    host.forget()
    prompt = graph("text to video", "", 3, size=64, **{"8": save_webp("after")})
    result = host.run(prompt, on_event=stop)
    assert result.interrupted and "8" not in result.outputs
    assert host.run(prompt).success and len(frames_of(host, "after")) == 8


def test_progress_shows_previews(host, monkeypatch):
    import comfy.utils
    from comfy.cli_args import LatentPreviewMethod, args

    shown = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK",
                        lambda value, total, preview, **_: shown.append((value, total, preview[1].size)))  # fmt: skip
    ksampler(video("text"), empty())
    assert shown == [(k, 3, (8, 8)) for k in (1, 2, 3)]


def test_a_video_file_plays(host, moving):
    if "CreateVideo" not in host.node_table:
        pytest.skip("the embedded host makes no video files")
    av = pytest.importorskip("av")
    save = node("SaveVideo", video=["8", 0], filename_prefix="clip", format="auto", codec="auto")
    result = host.run(graph("text to video", "", 1, size=64, **{
        "8": node("CreateVideo", images=["7", 0], fps=6.0), "9": save}))  # fmt: skip
    assert result.success, result.failure
    (path,) = host.output.glob("clip_*.mp4")
    with av.open(os.fspath(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 6
    path.unlink()
    assert np.stack(frames).shape == (8, 64, 64, 3)
