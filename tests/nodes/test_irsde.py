"""IR-SDE and Refusion inside a host: files, the MODEL under many samplers, its schedule, pictures of any size."""

import types

import comfy.samplers
import folder_paths
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trajectory.models.conditional_unet import ConditionalUNet
from trajectory.models.nafnet import ConditionalNAFNet
from trajectory.nodes._residual import residual_model
from trajectory.samplers.ir_sde import IRSDE, noise_levels
from trajectory.samplers.residual_shift import ResidualShift

DEFAULTS = {"task": "derain", "max_sigma": 10.0, "T": 100, "eps": 0.005, "dtype": "fp32"}
NETWORKS = {
    "unet": lambda: ConditionalUNet(nf=4, depth=2),
    "nafnet": lambda: ConditionalNAFNet(width=4, encoders=(1, 1), middle=1, decoders=(1, 1)),
}
TASKS = {"unet": "derain", "nafnet": "Refusion"}


def random_weights(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {key: torch.where(weight == 0, 0.3, weight) for key, weight in make().state_dict().items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/irsde of its own, with a file a network."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "irsde", ([str(tmp_path)], {".safetensors", ".pth"}))
    for name, make in NETWORKS.items():
        torch.save({f"module.{key}": weight for key, weight in random_weights(make).items()}, tmp_path / f"{name}.pth")
    return tmp_path


def load(host, name, **inputs):
    """(MODEL, CONDITIONING, VAE) of a file of the folder."""
    inputs = {**DEFAULTS, "task": TASKS.get(name, "derain"), **inputs}
    return host.node_table["TrajectoryIRSDELoader"].execute(file=f"{name}.pth", **inputs).args


def schedule(host, model, steps=4, spacing="index"):
    return host.node_table["TrajectoryIRSDEScheduler"].execute(model=model, steps=steps, spacing=spacing).args[0]


def pictures(*shape, seed=0):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))


def noise_of(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(model, conditioning, latent, sampler, sigmas, noise, mask=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=7).clone()


def restore(model, conditioning, vae, image, sampler, sigmas, mask=None):
    latent = vae.encode(image)
    return vae.decode(sample(model, conditioning, latent, sampler, sigmas, noise_of(*latent.shape), mask))


def with_perfect_network(model, clean, process):
    """The model's network, replaced by the noise that is truly in the state of the picture `clean` [B, 3, H, W]."""
    calls = []

    def noise(x, time):
        calls.append(float(time[0]))
        a = torch.tensor(np.exp(np.interp(float(time[0]), np.arange(1, 101), np.log(signal_of(process)))))
        s = process.max_sigma / 255 * (1 - a**2) ** 0.5
        centred, mu = x.chunk(2, dim=1)
        return ((centred - a * (clean - mu)) / s).to(x)

    model.model.diffusion_model.network.forward = noise
    return calls


def signal_of(process):
    return (1 + (np.array(process.sigmas) / 2 * 255 / process.max_sigma) ** 2) ** -0.5


@pytest.mark.parametrize("task", ["derain", "super-resolution"])
def test_its_noise_levels_are_those_of_the_task_in_the_pixel_space(host, folder, task):
    model, _, _ = load(host, "unet", task=task)
    sampling = model.get_model_object("model_sampling")
    expected = 2 * noise_levels({"derain": 10, "super-resolution": 30}[task])
    assert np.allclose(sampling.sigmas, expected, rtol=1e-6)
    assert np.allclose(schedule(host, model, 100)[:-1].flip(0), expected, rtol=1e-6)
    assert schedule(host, model, 100)[-1] == 0
    assert len(schedule(host, model, 250, "logSNR")) == 251


@pytest.mark.parametrize("steps", [5, 100])
def test_a_network_that_knows_the_noise_gives_the_clean_picture(host, folder, steps):
    model, conditioning, vae = load(host, "unet")
    clean, degraded = pictures(1, 9, 14), pictures(1, 9, 14, seed=1)
    calls = with_perfect_network(model, clean.movedim(-1, 1), IRSDE(10))
    sigmas = schedule(host, model, steps)
    result = restore(model, conditioning, vae, degraded, comfy.samplers.sampler_object("euler"), sigmas)
    assert torch.allclose(result, clean, atol=1e-4)
    assert calls == pytest.approx(np.linspace(99, 0, steps).round() + 1, abs=1e-2)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "mr ode", "mr sde"])
def test_samplers_of_the_host_and_the_pack_drive_it(host, folder, name, sampler):
    model, conditioning, vae = load(host, name)
    if sampler.startswith("mr"):
        options = {"equation": sampler[3:], "order": 2, "prediction": "data", "s_noise": 1.0}
        solver = host.node_table["TrajectoryMRSampler"].execute(**options).args[0]
    else:
        solver = comfy.samplers.sampler_object(sampler)
    latent, noise, sigmas = vae.encode(pictures(2, 13, 6)), noise_of(2, 3, 13, 6), schedule(host, model)
    both = sample(model, conditioning, latent, solver, sigmas, noise)
    assert both.shape == latent.shape and both.isfinite().all()
    assert not torch.allclose(both, latent, atol=1e-2)
    assert torch.equal(sample(model, conditioning, latent, solver, sigmas, noise), both)
    if sampler != "euler_ancestral":  # whose noise is drawn for the whole batch
        alone = sample(model, conditioning, latent[1:], solver, sigmas, noise[1:])
        assert torch.allclose(both[1:], alone, atol=1e-4 * float(alone.abs().max()))


def test_euler_ancestral_is_mr_sde_of_first_order_but_for_its_noise(host, folder, monkeypatch):
    model, conditioning, vae = load(host, "unet")
    monkeypatch.setattr("trajectory.samplers.plan.ItemNoise.draw", lambda self: torch.ones_like(self._x))
    mr = host.node_table["TrajectoryMRSampler"].execute(equation="sde", order=1, prediction="data", s_noise=1.0).args[0]
    ancestral = comfy.samplers.ksampler("euler_ancestral", {"noise_sampler": lambda *_: torch.ones(1, 3, 8, 8)})
    sigmas, image = schedule(host, model, 20), pictures(1, 8, 8)
    ours = restore(model, conditioning, vae, image, mr, sigmas)
    assert torch.allclose(ours, restore(model, conditioning, vae, image, ancestral, sigmas), atol=1e-4)


@pytest.mark.parametrize("height, width", [(1, 1), (3, 40), (64, 17)])
def test_any_size(host, folder, height, width):
    for name in NETWORKS:
        model, conditioning, vae = load(host, name)
        solver = comfy.samplers.sampler_object("euler")
        image = pictures(1, height, width)
        assert restore(model, conditioning, vae, image, solver, schedule(host, model, 2)).shape == image.shape


def test_a_mask_keeps_the_picture_outside(host, folder):
    model, conditioning, vae = load(host, "unet")
    image, mask = pictures(1, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    solver, sigmas = comfy.samplers.sampler_object("euler"), schedule(host, model)
    result = restore(model, conditioning, vae, image, solver, sigmas, mask)
    assert torch.allclose(result[:, :, :4], image[:, :, :4], atol=1e-5)
    assert not torch.allclose(result[:, :, 4:], image[:, :, 4:], atol=1e-3)


def test_tiled_denoise_cuts_the_degraded_picture_with_the_state(host, folder):
    model, conditioning, vae = load(host, "nafnet")
    cut = host.node_table["TrajectoryTiledDenoise"].execute(model=model, tile=16, overlap=8).args[0]
    solver, sigmas, image = comfy.samplers.sampler_object("euler"), schedule(host, model), pictures(2, 40, 23)
    tiled, whole = (restore(made, conditioning, vae, image, solver, sigmas) for made in (cut, model))
    assert tiled.shape == image.shape and not torch.allclose(tiled, whole, atol=1e-3)
    levels, sizes = signal_of(IRSDE(50)), []

    def degraded_itself(x, time):
        sizes.append(tuple(x.shape[-2:]))
        a = torch.tensor(levels)[time.round().long() - 1].view(-1, 1, 1, 1)
        return (x[:, :3] / (50 / 255 * (1 - a**2) ** 0.5)).to(x)

    model.model.diffusion_model.network.forward = degraded_itself
    assert torch.allclose(restore(cut, conditioning, vae, image, solver, sigmas), image, atol=1e-4)
    assert set(sizes) == {(16, 16)}


def test_the_vae_is_the_identity_and_vae_encode_drops_alpha(host, folder):
    vae = load(host, "unet")[2]
    image = torch.rand(2, 5, 7, 4)
    latent = host.node_table["VAEEncode"]().encode(vae, image)[0]["samples"]
    assert latent.shape == (2, 3, 5, 7) and latent.dtype is torch.float32
    assert torch.allclose(vae.decode(latent), image[..., :3], atol=1e-6)


def test_ksampler_runs_it(host, folder):
    model, conditioning, vae = load(host, "nafnet")
    image = pictures(1, 6, 6)
    latent = {"samples": vae.encode(image)}
    out = host.node_table["KSampler"]().sample(
        model, 3, 4, 1.0, "dpmpp_2m", "simple", conditioning, conditioning, latent)[0]["samples"]  # fmt: skip
    assert out.shape == latent["samples"].shape and out.isfinite().all()


@pytest.mark.parametrize("name, task, words", [
    ("unet", "Refusion", "task is 'Refusion', whose max_sigma is 50, and the file's network is IR-SDE's"),
    ("nafnet", "derain", "task is 'derain', whose max_sigma is 10, and the file's network is Refusion's; choose Refu"),
    ("unet", "dehaze", "task is 'dehaze'; choose one of derain"),
])  # fmt: skip
def test_a_max_sigma_that_cannot_be_right_is_explained(host, folder, name, task, words):
    with pytest.raises(ValueError, match=words):
        load(host, name, task=task)
    assert load(host, name, task="custom", max_sigma=25.0)[0].get_model_object("model_sampling").sigmas[-1] == (
        pytest.approx(2 * noise_levels(25)[-1]))  # fmt: skip


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_bad_files_are_refused_by_name(host, folder, capsys):
    torch.save({"init_conv.weight": Evil()}, folder / "evil.pth")
    whole = (folder / "unet.pth").read_bytes()
    (folder / "short.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"layer.weight": torch.ones(3)}, folder / "other.pth")
    weights = random_weights(NETWORKS["unet"])
    torch.save({**weights, "fusion.weight": torch.ones(3)}, folder / "stereo.pth")
    torch.save(random_weights(lambda: ConditionalNAFNet(3, 3, 4, (1,), 1, (1,))), folder / "denoising.pth")
    for name, words in {
        "evil": "asks for __builtin__.print", "short": "short.pth", "other": "neither a ConditionalUNet nor a",
        "stereo": "unknown .fusion.weight", "denoising": r"shape \[4, 3, 3, 3\], and one that",
        "absent": "no file in models/irsde",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words) as refused:
            load(host, name)
        assert str(refused.value).startswith("file") and f"{name}.pth" in str(refused.value)
    assert "executed" not in capsys.readouterr().out


def test_a_converted_file_is_the_same_model(host, folder):
    save_file(random_weights(NETWORKS["unet"]), folder / "unet.safetensors")
    cls = host.node_table["TrajectoryIRSDELoader"]
    models = [cls.execute(file=f"unet.{kind}", **DEFAULTS).args[0] for kind in ("pth", "safetensors")]
    states = [model.model.diffusion_model.network.state_dict() for model in models]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_close(host, folder, name):
    results = {}
    for dtype in ("fp32", "fp16", "bf16"):
        model, conditioning, vae = load(host, name, dtype=dtype)
        latent, solver = vae.encode(pictures(1, 8, 8)), comfy.samplers.sampler_object("euler")
        results[dtype] = sample(model, conditioning, latent, solver, schedule(host, model, 8), noise_of(1, 3, 8, 8))
    for dtype in ("fp16", "bf16"):
        difference = (results[dtype] - results["fp32"]).std() / results["fp32"].std()
        assert 0 < difference < 0.02


def test_models_of_other_loaders_are_refused(host):
    others = residual_model(torch.nn.Identity(), ResidualShift.published(4), 3)
    diffusion = types.SimpleNamespace(sigmas=torch.linspace(0.1, 10, 1000))
    for model in (others, types.SimpleNamespace(get_model_object=lambda name: diffusion)):
        with pytest.raises(ValueError, match="model has not the noise levels of IR-SDE; connect the model of"):
            schedule(host, model)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 2, 8, 8), (1, 1, 192)], ids=str)
def test_latents_of_other_models_are_refused(host, folder, shape):
    model, conditioning, _ = load(host, "unet")
    solver, latent = comfy.samplers.sampler_object("euler"), torch.ones(shape)
    with pytest.raises(ValueError, match=r"latent_image has .*takes \[B, 3, H, W\]: encode the picture") as refused:
        sample(model, conditioning, latent, solver, schedule(host, model), noise_of(*shape))
    assert str(list(shape)) in str(refused.value)
