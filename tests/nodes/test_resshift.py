"""ResShift inside a host: loader, pictures of any size in tiles, MODEL and VAE under the host's own nodes."""

import logging

import comfy.model_management
import comfy.samplers
import folder_paths
import pytest
import resshift_files
import torch
from safetensors.torch import save_file
from torch.nn import functional
from trajectory.nodes import resshift as nodes
from trajectory.samplers import residual_shift
from trajectory.samplers.noise import ItemNoise

import nodes as core

CONDITIONING = [[torch.zeros(1, 4, 8), {}]]


@pytest.fixture(scope="module")
def folder(host, tmp_path_factory):
    """models/resshift with the tiny networks of every task."""
    base, patch = tmp_path_factory.mktemp("models"), pytest.MonkeyPatch()
    patch.setattr(folder_paths, "models_dir", str(base))
    patch.setitem(folder_paths.folder_names_and_paths, "resshift", ([str(base / "resshift")], set()))
    (base / "resshift").mkdir()
    for task in resshift_files.TASKS:
        save_file(resshift_files.unet(task), base / "resshift" / f"{task}_s4.safetensors")
        save_file(resshift_files.vqgan(task), base / "resshift" / f"{task}_vq.safetensors")
    yield base / "resshift"
    patch.undo()


def forget_files():
    getattr(folder_paths, "filename_list_cache", {}).pop("resshift", None)


def load(host, unet="x4_s4.safetensors", vqgan="x4_vq.safetensors", schedule="auto", dtype="fp32"):
    forget_files()
    return host.node_table["TrajectoryResShiftLoader"].execute(unet, vqgan, schedule, dtype).args


def load_task(host, task):
    return load(host, f"{task}_s4.safetensors", f"{task}_vq.safetensors")


@pytest.fixture(scope="module", params=resshift_files.TASKS)
def task(request, host, folder):
    """(its name, what the loader returns)."""
    return request.param, load_task(host, request.param)


@pytest.fixture(scope="module")
def x4(host, folder):
    return load_task(host, "x4")


def picture(seed=0, height=12, width=20, frames=1, channels=3):
    return torch.rand(frames, height, width, channels, generator=torch.Generator().manual_seed(seed))


def upscale(host, resshift, image, **inputs):
    inputs = {"seed": 1, "steps": 0, "eta_noise": 1.0, "tile": 512, "overlap": 64, "color_fix": "none", **inputs}
    return host.node_table["TrajectoryResShiftUpscale"].execute(resshift, image, **inputs).args[0]


def whole(task, image):
    """Every pixel painted anew, for networks that inpaint."""
    return torch.ones(1, *image.shape[1:3]) if task == "inpaint" else None


# --- Upscale


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (33, 17)], ids=str)
def test_any_size_gives_scale_times_it(host, task, size):
    name, (resshift, _, _) = task
    for channels in (1, 3, 4):
        image = picture(0, *size, channels=channels)
        out = upscale(host, resshift, image, mask=whole(name, image))
        scale = resshift_files.SCALES[name]
        assert out.shape == (1, scale * size[0], scale * size[1], 4 if channels == 4 else 3)
        assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1


def test_the_seed_decides_and_frames_share_their_noise(host, x4):
    resshift, image = x4[0], picture(frames=3)
    first = upscale(host, resshift, image)
    assert torch.equal(first, upscale(host, resshift, image))
    assert not torch.equal(first, upscale(host, resshift, image, seed=2))
    for k in range(3):
        assert torch.equal(upscale(host, resshift, image[k : k + 1]), first[k : k + 1])
    still = upscale(host, resshift, image[:1].expand(16, -1, -1, -1))
    assert all(torch.equal(frame, still[0]) for frame in still)


def test_the_chain_is_the_published_one_around_the_autoencoder(host, x4):
    """Written out in the paper's coordinates for a picture that needs neither tiles nor padding."""
    resshift, image = x4[0], picture()
    lq = 2 * image.movedim(-1, 1) - 1
    autoencoder, etas = resshift.vae.first_stage_model, [0.0, *resshift.process.etas]
    y = autoencoder.encode(functional.interpolate(lq, scale_factor=4, mode="bicubic", align_corners=False))
    noises = torch.randn(1, 12, 12, 20, generator=torch.Generator().manual_seed(1)).chunk(4, 1)
    x = y + 2 * etas[-1] ** 0.5 * noises[0]
    for i in range(4, 0, -1):
        x0 = resshift.network(x / (4 * etas[i] + 1) ** 0.5, torch.tensor([i - 1.0]), lq)
        kept = etas[i - 1] / etas[i]
        x = kept * x + (1 - kept) * x0
        if i > 1:
            x = x + 2 * (kept * (etas[i] - etas[i - 1])) ** 0.5 * noises[5 - i]
    expected = (autoencoder.decode(x) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    # rounding may move a latent to another code
    assert ((upscale(host, resshift, image) - expected).abs() < 1e-4).float().mean() > 0.98


def test_steps_and_noise_change_the_picture_and_are_checked(host, x4):
    resshift, image = x4[0], picture()
    outs = [upscale(host, resshift, image, **inputs) for inputs in ({}, {"steps": 1}, {"eta_noise": 0.0})]
    assert all(not torch.equal(a, b) for a, b in zip(outs, outs[1:] + outs[:1], strict=True))
    assert torch.equal(outs[0], upscale(host, resshift, image, steps=4))
    with pytest.raises(ValueError, match="steps is 5; this network knows 4 noise levels"):
        upscale(host, resshift, image, steps=5)
    with pytest.raises(ValueError, match=r"eta_noise is 1\.5"):
        upscale(host, resshift, image, eta_noise=1.5)
    with pytest.raises(ValueError, match="color_fix is 'warm'"):
        upscale(host, resshift, image, color_fix="warm")


def test_tiles_get_their_part_of_one_noise(host, task, monkeypatch):
    """With a network of one pixel's reach, a picture in tiles is the picture at once; no tile breaks the alignment."""
    name, (resshift, _, _) = task
    scale, grain, seen = resshift_files.SCALES[name], resshift.network.config.lq_scale, []

    def restored(self, crop, noises, mask, progress, calls, eta_noise):
        seen.append(crop.shape)
        assert all(side % (resshift.network.multiple * grain) == 0 for side in crop.shape[-2:])
        noise = functional.interpolate(noises[:, :3], scale_factor=scale * grain)
        return functional.interpolate(crop * mask, scale_factor=scale) + 0.1 * noise

    monkeypatch.setattr(nodes.ResShift, "restored", restored)
    image = picture(0, 70, 45)
    mask = (torch.rand(1, 70, 45, generator=torch.Generator().manual_seed(4)) > 0.5).float()
    at_once = upscale(host, resshift, image, tile=0, mask=mask)
    assert len(seen) == 1
    in_tiles = upscale(host, resshift, image, tile=64, overlap=16, mask=mask)
    assert len(seen) > 2
    torch.testing.assert_close(in_tiles, at_once, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile, sides", [(64, (64, 48)), (0, (800, 48))])
def test_room_is_made_for_the_largest_tile(host, x4, monkeypatch, tile, sides):
    asked = []
    resshift = x4[0]
    monkeypatch.setattr(nodes, "loaded", lambda *patchers, memory: asked.append(memory))
    upscale(host, resshift, picture(0, 200, 12), tile=tile)
    height, width = sides
    decoder = nodes.DECODING * height * width * 4
    network = resshift.model.memory_required((1, 3, height // 4, width // 4))
    assert asked == [max(decoder, network)]
    with pytest.raises(ValueError, match="image has values that are not finite"):
        upscale(host, resshift, torch.full((1, 4, 4, 3), float("nan")))
    assert len(asked) == 1


def test_where_the_mask_is_black_the_picture_stays(host, task):
    name, (resshift, _, _) = task
    scale, image = resshift_files.SCALES[name], picture(3, 16, 24)
    mask = torch.zeros(1, 16, 24)
    mask[:, :, 12:] = 1.0
    out = upscale(host, resshift, image, mask=mask)
    kept = functional.interpolate(image.movedim(-1, 1), scale_factor=scale, mode="bicubic").clamp(0, 1).movedim(1, -1)
    border = 12 * scale - 2 * scale
    assert torch.equal(out[:, :, :border], (image if scale == 1 else kept)[:, :, :border])
    assert (out[:, :, 12 * scale :] - kept[:, :, 12 * scale :]).abs().mean() > 0.01


def test_what_is_in_a_hole_is_never_seen(host, folder):
    resshift, image = load_task(host, "inpaint")[0], picture(5, 16, 24)
    mask = torch.zeros(1, 16, 24)
    mask[:, 4:12, 8:16] = 1.0
    other = torch.where(mask[..., None] > 0, picture(6, 16, 24), image)
    assert torch.equal(upscale(host, resshift, image, mask=mask), upscale(host, resshift, other, mask=mask))
    with pytest.raises(ValueError, match="mask is not connected, but this network paints holes"):
        upscale(host, resshift, image)


def test_masks_of_frames_and_of_other_sizes(host, x4):
    image, masks = picture(frames=2), torch.stack([torch.zeros(6, 10), torch.ones(6, 10)])
    out = upscale(host, x4[0], image, mask=masks)
    torch.testing.assert_close(out[1:], upscale(host, x4[0], image[1:]), rtol=0, atol=1e-6)
    assert torch.equal(out[:1], upscale(host, x4[0], image[:1], mask=torch.zeros(12, 20)))
    with pytest.raises(ValueError, match="mask has 3 frames and image 2"):
        upscale(host, x4[0], image, mask=torch.ones(3, 12, 20))


def test_cancelling_between_steps_leaves_nothing_behind(host, x4, monkeypatch):
    resshift, image, calls = x4[0], picture(frames=2), []
    before = upscale(host, resshift, image)
    forward = resshift.network.forward

    def interrupting(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(resshift.network, "forward", interrupting)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            upscale(host, resshift, image)
    assert len(calls) == 6 and not comfy.model_management.processing_interrupted()
    assert torch.equal(before, upscale(host, resshift, image))


def test_half_precision_stays_near_full(host, folder):
    image = picture(7, 16, 16)
    full = upscale(host, load(host)[0], image, eta_noise=0.0)
    low = upscale(host, load(host, dtype="bf16")[0], image, eta_noise=0.0)
    assert low.isfinite().all() and (full - low).abs().mean() < 0.1  # few codes: some latents round to others


# --- the loader


def test_scale_and_schedule_are_read_off_the_file(host, task):
    name, (resshift, model, vae) = task
    assert resshift.scale == resshift_files.SCALES[name] and resshift.inpaints == (name == "inpaint")
    assert len(resshift.process.roots) == 4 and resshift.model is model and resshift.vae is vae


def test_the_schedule_is_asked_for_where_no_name_tells_it(host, folder):
    assert len(load(host, schedule="15")[0].process.roots) == 15
    for name in ("resshift_realsrx4_s15_v2", "S15x"):
        save_file(resshift_files.unet("x4"), folder / f"{name}.safetensors")
        assert len(load(host, f"{name}.safetensors")[0].process.roots) == 15
    for name in ("mine", "tests4", "s44"):
        save_file(resshift_files.unet("x4"), folder / f"{name}.safetensors")
        with pytest.raises(ValueError, match=f"schedule is 'auto', but the name of '{name}.safetensors'"):
            load(host, f"{name}.safetensors")
    with pytest.raises(ValueError, match="schedule is '7'; choose one of auto, 15, 4"):
        load(host, schedule="7")


def test_checkpoints_in_wrappers_load(host, folder):
    wrapped = {"state_dict": {f"module._orig_mod.{key}": value for key, value in resshift_files.unet("x4").items()}}
    torch.save(wrapped, folder / "wrapped_s4.pth")
    image = picture()
    assert torch.equal(upscale(host, load(host, "wrapped_s4.pth")[0], image), upscale(host, load(host)[0], image))


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_bad_files_are_refused_by_name(host, folder, capsys):
    whole = folder / "x4_s4.safetensors"
    (folder / "cut_s4.safetensors").write_bytes(whole.read_bytes()[:5000])
    (folder / "junk_s4.pth").write_bytes(b"no checkpoint at all")
    torch.save({"state_dict": Harmful()}, folder / "harmful_s4.pth")
    torch.save({"step": 3}, folder / "empty_s4.pth")
    for file in ("cut_s4.safetensors", "junk_s4.pth", "harmful_s4.pth", "empty_s4.pth", "x4_vq.safetensors",
                 "nowhere_s4.pth"):  # fmt: skip
        with pytest.raises(ValueError, match=f"(?s)unet.*{file}"):
            load(host, file, schedule="4")
    for file in ("junk_s4.pth", "x4_s4.safetensors"):
        with pytest.raises(ValueError, match=f"(?s)vqgan.*{file}"):
            load(host, vqgan=file)
    with pytest.raises(ValueError, match=r"vqgan is 'face_vq.safetensors', with 8 channels at 1/8"):
        load(host, vqgan="face_vq.safetensors")
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        load(host, dtype="fp8")
    assert "executed" not in capsys.readouterr().out


# --- the VAE under the host's own nodes


def test_the_hosts_nodes_encode_and_decode(host, task):
    _, (resshift, _, vae) = task
    factor, channels = vae.downscale_ratio, vae.latent_channels
    image = picture(8, 4 * factor + 3, 6 * factor, frames=2)
    (latent,) = core.VAEEncode().encode(vae, image)
    assert latent["samples"].shape == (2, channels, 4, 6)
    pixels = 2 * image[:, 1 : 1 + 4 * factor].movedim(-1, 1) - 1
    expected = vae.first_stage_model.encode(pixels)
    torch.testing.assert_close(latent["samples"], expected, rtol=0, atol=1e-5)
    (decoded,) = core.VAEDecode().decode(vae, latent)
    again = (vae.first_stage_model.decode(latent["samples"]) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(decoded, again, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 40), (1, 1)], ids=str)
def test_a_picture_too_small_for_the_vae_is_refused(host, x4, size):
    with pytest.raises(ValueError, match="a side of less than 4 pixels.*enlarge the picture"):
        core.VAEEncode().encode(x4[2], picture(0, *size))


@torch.inference_mode()
def test_it_works_in_tiles(host, task):
    """By the calls of the host's tiled nodes."""
    _, (_, _, vae) = task
    factor = vae.downscale_ratio
    latent = vae.encode_tiled(picture(9, 160, 96), tile_x=64, tile_y=64, overlap=16)
    assert latent.shape == (1, vae.latent_channels, 160 // factor, 96 // factor)
    tile = 64 // vae.spacial_compression_decode()
    image = vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=16 // factor)
    assert image.shape == (1, 160, 96, 3) and image.isfinite().all()


# --- the MODEL under the host's own nodes


def latent_of(seed, batch=1, channels=3, height=6, width=10):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def ksample(model, y, sampler="euler", scheduler="simple", steps=4, cfg=1.0, denoise=1.0, mask=None, seed=5):
    latent = {"samples": y} if mask is None else {"samples": y, "noise_mask": mask}
    return core.common_ksampler(
        model, seed, steps, cfg, sampler, scheduler, CONDITIONING, CONDITIONING, latent, denoise)[0]["samples"]


def custom(model, y, sampler, sigmas, noise=None, mask=None, seed=5):
    import comfy.sample

    noise = latent_of(99, *y.shape) if noise is None else noise
    return comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, CONDITIONING, CONDITIONING, y,
                                      noise_mask=mask, disable_pbar=True, seed=seed)


def test_every_sampler_reaches_what_the_network_knows(host, folder):
    x0, y = 0.3, latent_of(1)
    model = load(host)[1]

    class Knowing(torch.nn.Module):
        def forward(self, state, index, *, picture):
            return torch.full_like(state, x0)

    model.model.diffusion_model.network = Knowing()
    for sampler in comfy.samplers.KSampler.SAMPLERS:
        out = ksample(model, y, sampler, "karras", steps=6)
        left = 5 * 0.2 if sampler in ("dpm_fast", "dpm_adaptive") else 0.05  # these end at the lowest level, not at 0
        assert out.shape == y.shape and (out - x0).abs().max() < left, sampler
    fine = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 30)
    for name in ("Angular", "DPMSolver", "DEIS", "BDIA", "PNDM", "Momentum", "TimeShift", "MR", "ResShift"):
        cls = host.node_table[f"Trajectory{name}Sampler"]
        recipe = cls.execute(**{i.id: i.default for i in cls.GET_SCHEMA().inputs}).args[0]
        assert (custom(model, y, recipe, fine) - x0).abs().max() < 0.05, name


def test_every_scheduler_stays_inside_the_trained_range(host, x4):
    sampling = x4[1].get_model_object("model_sampling")
    for scheduler in comfy.samplers.KSampler.SCHEDULERS:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, 4)
        assert sigmas.isfinite().all() and sigmas[-1] == 0 and sigmas[0] <= sampling.sigma_max * 1.0001, scheduler
    assert torch.allclose(comfy.samplers.calculate_sigmas(sampling, "simple", 4), x4[0].process.run())
    assert sampling.percent_to_sigma(0.0) > sampling.sigma_max and sampling.percent_to_sigma(1.0) == 0.0
    assert sampling.percent_to_sigma(2 / 3) == pytest.approx(1.4259, rel=1e-4)


def test_the_model_with_the_nodes_of_the_pack_is_upscale(host, x4, monkeypatch):
    """The same chain through guider and host, given the picture that Upscale has; else it reads it off the latent."""
    resshift, model, vae = x4
    image = picture()
    lq = 2 * image.movedim(-1, 1) - 1
    y = vae.first_stage_model.encode(functional.interpolate(lq, scale_factor=4, mode="bicubic"))
    noise = latent_of(2, *y.shape)
    sampler = host.node_table["TrajectoryResShiftSampler"].execute(1.0).args[0]
    sigmas = host.node_table["TrajectoryResShiftScheduler"].execute(4, 0.0, 2.0, 0.3).args[0]
    assert torch.equal(sigmas, resshift.process.run())
    monkeypatch.setattr(model.model, "_conditions", lambda y, mask: {"picture": lq})
    source = ItemNoise(noise, y, 5)
    levels = residual_shift.Levels(resshift.process.sigmas)

    def network(u, sigma):
        return resshift.process.denoised(resshift.network, u, sigma, levels.position(sigma), y, lq=lq)

    expected = residual_shift.restore(network, y, [noise, *(source.draw() for _ in range(3))], resshift.process)
    torch.testing.assert_close(custom(model, y, sampler, sigmas, noise), expected, rtol=0, atol=1e-4)


def test_a_batch_and_its_items_and_any_size(host, task):
    _, (_, model, vae) = task
    y = latent_of(3, 3, vae.latent_channels, 5, 7)
    noise = latent_of(4, *y.shape)
    sampler = host.node_table["TrajectoryResShiftSampler"].execute(1.0).args[0]
    sigmas = host.node_table["TrajectoryResShiftScheduler"].execute(4, 0.0, 2.0, 0.3).args[0]
    batch = custom(model, y, sampler, sigmas, noise)
    assert batch.shape == y.shape
    for k in range(3):
        alone = custom(model, y[k : k + 1], sampler, sigmas, noise[k : k + 1])
        torch.testing.assert_close(batch[k : k + 1], alone, rtol=0, atol=1e-4)


def test_conditioning_and_cfg_do_not_matter(host, x4):
    y = latent_of(5, 2)
    torch.testing.assert_close(ksample(x4[1], y, cfg=7.0), ksample(x4[1], y), rtol=0, atol=1e-4)
    guider = comfy.samplers.CFGGuider(x4[1])
    guider.set_conds(CONDITIONING, CONDITIONING)
    out = guider.sample(latent_of(6, *y.shape), y, comfy.samplers.sampler_object("euler"), x4[0].process.run(), seed=1,
                        disable_pbar=True)
    assert out.shape == y.shape


def test_an_area_sees_its_own_part_of_the_degraded_latent_and_picture(host, task):
    _, (_, model, vae) = task
    y = latent_of(7, 2, vae.latent_channels, 8, 12)
    conds = model.model.extra_conds(noise=y, device=y.device, latent_image=y, denoise_mask=None, prompt_type="positive")
    assert set(conds) == {"degraded", "picture"}
    for cond in conds.values():
        part = cond.process_cond(batch_size=2, device=y.device, area=(4, 8, 2, 3)).cond
        assert torch.equal(part, cond.cond[:, :, 2:6, 3:11])
    assert torch.equal(conds["degraded"].cond, y)


def test_tiled_denoise_cuts_what_belongs_to_the_tile(host, task, monkeypatch):
    """With a network of one place's reach the latent in tiles is the latent at once."""
    _, (_, model, vae) = task
    y = latent_of(13, 1, vae.latent_channels, 24, 40)

    def near(self, network, u, sigma, position, y, *, picture):
        return 0.5 * y + 0.1 * u.tanh() + 0.1 * picture.mean(1, keepdim=True)

    monkeypatch.setattr(residual_shift.ResidualShift, "denoised", near)
    tiled = host.node_table["TrajectoryTiledDenoise"].execute(model, 16, 8).args[0]
    torch.testing.assert_close(ksample(tiled, y), ksample(model, y), rtol=0, atol=1e-4)


def test_outside_a_noise_mask_the_degraded_picture_stays(host, task):
    _, (_, model, vae) = task
    y = latent_of(8, 1, vae.latent_channels, 8, 8)
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1.0
    for sampler in ("euler", "dpmpp_2m", "euler_ancestral"):
        out = ksample(model, y, sampler, mask=mask)
        torch.testing.assert_close(out[..., :4], y[..., :4], rtol=0, atol=1e-5)
        assert (out[..., 4:] - y[..., 4:]).abs().mean() > 0.05


def test_the_noise_mask_is_the_hole_of_an_inpainting_model(host, folder):
    model, seen = load_task(host, "inpaint")[1], []
    network = model.model.diffusion_model.network.unet
    forward = network.forward
    network.forward = lambda x, index, lq: seen.append(lq) or forward(x, index, lq)
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 4:] = 1.0
    ksample(model, latent_of(9, 1, 3, 8, 8), mask=mask)
    hole = functional.interpolate(mask[None], scale_factor=4)[0, 0] > 0
    assert seen[0].shape == (1, 4, 32, 32)
    assert (seen[0][0, 3][hole] == 1).all() and (seen[0][0, 3][~hole] == -1).all()
    assert (seen[0][0, :3, hole] == -1).all() and seen[0][0, :3, ~hole].std() > 0
    seen.clear()
    ksample(model, latent_of(9, 1, 3, 8, 8))
    assert (seen[0][0, 3] == -1).all()


def test_denoise_below_one_runs_and_warns(host, x4, caplog):
    with caplog.at_level(logging.WARNING, "trajectory"):
        assert ksample(x4[1], latent_of(10)).isfinite().all()
        assert not caplog.records
        out = ksample(x4[1], latent_of(10), denoise=0.5, steps=2)
    assert out.isfinite().all() and "begins at sigma 1.426, the network's at 99.5" in caplog.text


def test_an_empty_latent_runs(host, x4):
    assert ksample(x4[1], torch.zeros(1, 4, 8, 8)).isfinite().all()


def test_a_run_decodes_its_picture_once_and_the_next_run_its_own(host, x4, monkeypatch):
    _, model, vae = x4
    decode, seen = vae.first_stage_model.decode, []
    monkeypatch.setattr(vae.first_stage_model, "decode", lambda latent: seen.append(latent) or decode(latent))
    first = ksample(model, latent_of(14))
    assert len(seen) == 1
    second = ksample(model, latent_of(15))
    assert len(seen) == 2 and not torch.equal(first, second)
    assert torch.equal(first, ksample(model, latent_of(14)))


def test_a_model_and_its_clone_share_nothing_of_a_run(host, x4):
    model, y = x4[1], latent_of(11)
    first = ksample(model, y)
    ksample(model.clone(), latent_of(12, 2, height=9))
    assert torch.equal(first, ksample(model, y))


# --- the scheduler


@pytest.mark.parametrize("steps", [1, 2, 4, 15, 40])
def test_the_scheduler_gives_falling_levels_to_zero(host, steps):
    sigmas = host.node_table["TrajectoryResShiftScheduler"].execute(steps, 0.0, 2.0, 0.3).args[0]
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert sigmas[0] == pytest.approx(99.49749, rel=1e-6)
