"""Exact inversion on the bundled miniature: the way back is the picture, an edit changes what its caption does."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trajectory.headless import graph
from trajectory.training.landscapes import checker

EXAMPLE = Path(__file__).resolve().parents[2] / "example_workflows" / "Exact inversion and edit.json"


def read(folder, image):
    pixels = np.asarray(Image.open(Path(folder) / image["subfolder"] / image["filename"]).convert("RGB"))
    return checker.read(pixels[None].astype(np.float32) / 255)[0]


def test_the_edit_changes_the_balloons_colour_and_nothing_else(host):
    workflow = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    prompt = graph.convert(workflow, host.object_info()).prompt
    result = host.run(prompt)
    assert result.success and not result.node_errors, result.messages
    shown = {prompt[node]["_meta"]["title"]: outputs for node, outputs in result.outputs.items()}
    source = read(host.temp, shown["Source"]["images"][0])
    edited = read(host.output, shown["Picture"]["images"][0])
    captions = {n.get("title"): n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "CLIPTextEncode"}
    assert all(right for _, right in checker.compare(source, checker.stated_by(captions["Source caption"])))
    assert all(right for _, right in checker.compare(edited, checker.stated_by(captions["Caption"])))
    colours = []
    for picture in (source, edited):
        balloon = next(group for group in picture["groups"] if group["kind"] == "balloon")
        colours.append(balloon.pop("colour"))
    assert colours == ["red", "blue"] and source == edited
    drift = float(re.search(r"largest drift ([\d.e+-]+)", shown["Invert"]["text"][0])[1])
    assert drift < 1e-9


def test_round_trip_through_the_network(host):
    """gamma 0.96, 50 steps, no guidance, a float32 network: latents of unit size come back to 1e-5."""
    import comfy.samplers

    nodes = host.node_table
    model, clip, _ = nodes["TrajectoryLoadMiniature"].execute(model="landscapes (flow)").args
    caption = clip.encode_from_tokens_scheduled(clip.tokenize("a dusk over the sea with a moon"))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(caption, caption)
    guider.set_cfg(1.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 50)
    latent = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    inversion = {"guider": guider, "latent": {"samples": latent}, "sigmas": sigmas, "gamma": 0.96}
    with torch.inference_mode():
        _, sampler, sigmas, _ = nodes["TrajectoryBDIAInvert"].execute(**inversion, end_sigma=0.0, verify=False).args
        back = guider.sample(torch.zeros_like(latent), latent * 0, sampler, sigmas, disable_pbar=True, seed=0)
    assert (back - latent).abs().max() < 1e-5
