"""OSEDiff's layers, file and chain against the authors' code (record_osediff.py).

Side by side when OSEDIFF_PATH names a checkout of github.com/cswry/OSEDiff and peft is installed: the record anew.
"""

import importlib.util
import json
import os
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import pytest
import small_networks
import torch
from trajectory.models.one_step import osediff
from trajectory.nodes._one_step import with_changes
from trajectory.nodes._unet import COMMON, unet_model
from trajectory.nodes.one_step import SILENT, encoded, in_one_step

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_osediff", HERE / "record_osediff.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "osediff.json").read_text())
CHECKOUT = os.environ.get("OSEDIFF_PATH")
CLOSE = {"rtol": 0, "atol": 5e-4}  # of values up to 60: an error of the noise counts 14.6 times

PUBLISHED_UNET = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
}  # fmt: skip
SD21 = {
    "model_channels": 320, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1, "context_dim": 1024, "num_head_channels": 64, "use_linear_in_transformer": True,
}  # fmt: skip


def recorded(name, *shape):
    return torch.tensor(DATA[name]).view(shape)


def changes():
    return osediff(recorder.checkpoint(DATA["file"]))


def base_model():
    weights = small_networks.drawn(DATA["base"]["unet"], "unet")
    return unet_model(small_networks.HOST_UNET, weights, comfy.latent_formats.SD15, dtype=torch.float32)


def base_vae():
    """In a real host, which takes the weights under diffusers' names and renames them itself."""
    weights = small_networks.drawn(DATA["base"]["vae"], "vae")
    return comfy.sd.VAE(sd=weights, config={"params": small_networks.HOST_VAE}, dtype=torch.float32,
                        device=torch.device("cpu"))  # fmt: skip


def identity_vae():
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)


def text():
    return [[recorder.inputs()[1], {}]]


def test_the_step_is_theirs():
    """Their loop over unmerged layers of peft and the scheduler of diffusers; ours over patched weights."""
    unet, _ = changes()
    model, _ = with_changes(base_model(), identity_vae(), unet, type(unet)({}, {}), "it")
    latent = recorded("latent", 1, 4, 4, 6) / 0.18215
    denoised = in_one_step(model, latent, text(), None, 1.0) * 0.18215
    assert torch.allclose(denoised, recorded("denoised", 1, 4, 4, 6), **CLOSE)
    plain = in_one_step(base_model(), latent, text(), None, 1.0) * 0.18215
    assert (plain - denoised).abs().max() > 1


def test_the_encoder_is_theirs():
    diffusers = pytest.importorskip("diffusers")
    weights, (_, change) = small_networks.drawn(DATA["base"]["vae"], "vae"), changes()
    for layer, pair in change.low_rank.items():
        weight = weights[f"{layer}.weight"]
        weights[f"{layer}.weight"] = weight + pair.scale * (pair.up.flatten(1) @ pair.down.flatten(1)).view_as(weight)
    with torch.random.fork_rng(devices=[]):
        network = diffusers.AutoencoderKL(**small_networks.VAE).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        latent = 0.18215 * network.encode(recorder.inputs()[0]).latent_dist.mode()
    assert torch.allclose(latent, recorded("latent", 1, 4, 4, 6), atol=1e-5)


def test_picture_to_picture_in_a_host(host):
    if host.name == "embedded":
        pytest.skip("the embedded host has TAESD's autoencoder only")
    model, vae = with_changes(base_model(), base_vae(), *changes(), "it")
    picture = recorder.inputs()[0] / 2 + 0.5
    latent = encoded(vae, picture, 0, SILENT)
    assert torch.allclose(0.18215 * latent, recorded("latent", 1, 4, 4, 6), atol=1e-5)
    denoised = in_one_step(model, latent, text(), None, 1.0)
    restored = 2 * vae.decode(denoised).movedim(-1, 1) - 1
    assert torch.allclose(restored, recorded("image", 1, 3, 32, 48), atol=2e-3)
    plain = encoded(base_vae(), picture, 0, SILENT)
    assert (plain - latent).abs().max() > 0.1


def test_one_step_of_the_scheduler_is_the_closed_form():
    """The same through diffusers' scheduler as it is now, for any noise that a network might predict."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(timesteps=[999])
    bar = float(scheduler.alphas_cumprod[999])
    assert bar == pytest.approx(0.00466010, rel=1e-5)
    z, eps = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    sigma = ((1 - bar) / bar) ** 0.5
    assert sigma == pytest.approx(14.61464, rel=1e-5)
    theirs = scheduler.step(eps, 999, z).prev_sample
    assert torch.allclose((1 + sigma**2) ** 0.5 * z - sigma * eps, theirs, atol=2e-5)


def test_the_published_layers_have_their_place_and_number():
    """At full size, of shapes alone: 258 layers of the UNet, 32 of the autoencoder, as the authors' files have."""
    diffusers = pytest.importorskip("diffusers")
    family = type("Family", (comfy.supported_models_base.BASE,), {"unet_extra_config": {}})
    with torch.device("meta"):
        theirs = shapes_of_layers(diffusers.UNet2DConditionModel(**PUBLISHED_UNET), "")
        encoder = shapes_of_layers(diffusers.AutoencoderKL(**{
            **small_networks.VAE, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}), "encoder")
        ours = comfy.model_base.BaseModel(family({**COMMON, **SD21}), device=torch.device("meta")).state_dict()
    theirs = {name: shape for name, shape in theirs.items() if "time_emb" not in name}
    assert len(theirs) == 258 and len(encoder) == 32
    host_keys = comfy.utils.unet_to_diffusers(SD21)
    for name, shape in theirs.items():
        assert ours[f"diffusion_model.{host_keys[f'{name}.weight']}"].shape == shape, name
    pairs = sum(4 * (shape[0] + shape[1:].numel()) for shape in theirs.values())
    assert 2 * len(theirs) + 2 == 518 and pairs + theirs["conv_in"].numel() + 320 == 4_067_552


def shapes_of_layers(network, part):
    """{name: shape of its weight} of the matrices and convolutions; of an autoencoder those of its encoder."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    return {name: module.weight.shape for name, module in network.named_modules() if isinstance(module, kinds)
            and (name.startswith(part) or name == "quant_conv")}


@pytest.mark.skipif(not CHECKOUT, reason="OSEDIFF_PATH names no checkout")
def test_side_by_side():
    pytest.importorskip("peft")
    again = recorder.record(CHECKOUT)
    assert again["file"] == DATA["file"] and again["counts"] == DATA["counts"]
    for name in ("latent", "denoised", "image"):
        assert again[name] == pytest.approx(DATA[name], rel=1e-4, abs=1e-4)
