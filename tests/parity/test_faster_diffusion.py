"""Faster Diffusion predicts, at each step of a guided run, what the authors' code does (record_faster_diffusion.py)."""

import importlib.util
import json
from pathlib import Path

import comfy.latent_formats
import comfy.samplers
import comfy.utils
import pytest
import torch
import unets
from trajectory.nodes._unet import unet_model

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_faster_diffusion", HERE / "record_faster_diffusion.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "faster_diffusion.json").read_text())
SMALL = {
    "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": 1, "context_dim": 24, "num_head_channels": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    """The recorder's network in the host."""
    model = unets.unet(**SMALL).model
    known = model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(model.model_config.unet_config).items()
    weights = recorder.random_weights({theirs: known[ours].shape for theirs, ours in names if ours in known})
    return unet_model(SMALL, weights, comfy.latent_formats.SD15, dtype=torch.float32)


def predictions(patcher):
    """Probes of the noise predictions of a DDIM run."""
    sampling, probes = patcher.get_model_object("model_sampling"), []

    def ddim(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            predicted = (x - model(x, sigma.expand(len(x)), **extra_args)) / sigma
            probes.append(recorder.probe(predicted))
            x = x + predicted * (following - sigma)
        return x

    noise, uncond, cond = recorder.inputs()
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([[cond, {}]], [[uncond, {}]])
    guider.set_cfg(recorder.CFG)
    sigmas = torch.cat([sampling.sigma(torch.tensor(recorder.TIMESTEPS)), torch.zeros(1)])
    guider.sample(noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(ddim), sigmas, disable_pbar=True)
    return torch.tensor(probes)


@pytest.mark.parametrize("run", DATA)
def test_same_noise_predictions_as_the_authors(host, unet, run):
    schedule, *ahead = run.split(", ")
    node = host.node_table["TrajectoryFasterDiffusion"]
    patched = node.execute(
        unet, schedule=schedule, interval=recorder.MODES["uniform"], custom="", parallel_decode=bool(ahead),
        start_percent=0.0, end_percent=1.0, skip_controlnet=True, fresh_input=False,
    ).args[0]  # fmt: skip
    expected = torch.tensor(DATA[run])
    assert expected.abs().mean() > 0.1
    assert (predictions(patched) - expected).abs().max() < 1e-4
    assert (predictions(unet) - expected).abs().max() > 1e-2
