"""Every example runs as it is, and a picture of the miniature shows what its caption says; a clip moves as it says.

latents.json holds numbers of the latent of 'Text to image' as the embedded host makes it (python
tests/workflows/test_examples.py records it anew after a training). Every host is held to them, so the embedded host and
the real ones agree to twice the tolerance at most.
"""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from trajectory.headless import graph, workflow_file
from trajectory.operators.measurement import psnr
from trajectory.training.landscapes import checker

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
LATENTS = Path(__file__).with_name("latents.json")
TOLERANCE = 5e-5  # latents of unit size in float32: two hosts, two versions of torch


def load(name):
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def latent_of_example(host):
    """The latent that 'Text to image' decodes, as a flat list: every seventh value."""
    import folder_paths
    import safetensors.torch

    prompt = graph.convert(load("Text to image"), host.object_info()).prompt
    decoder = next(node for node in prompt.values() if node["class_type"] == "VAEDecode")
    nodes = {key: node for key, node in prompt.items() if node["class_type"] not in ("VAEDecode", "SaveImage")}
    nodes["save"] = {
        "class_type": "TestSaveLatent", "inputs": {"samples": decoder["inputs"]["samples"]}, "_meta": {"title": "save"},
    }  # fmt: skip
    host.node_table["TestSaveLatent"] = SaveLatent
    try:
        result = host.run(nodes)
    finally:
        del host.node_table["TestSaveLatent"]
    assert result.success, result.messages
    saved = safetensors.torch.load_file(Path(folder_paths.get_temp_directory()) / "latent.safetensors")["samples"]
    return saved.flatten()[::7].tolist()


class SaveLatent:
    """A node of the test alone: leaves the latent in the temp folder."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"samples": ("LATENT",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "save", True, "test"

    def save(self, samples):
        import folder_paths
        import safetensors.torch

        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({"samples": samples["samples"].contiguous()}, folder / "latent.safetensors")
        return {"ui": {}}


def caption_of(workflow, picture="Picture"):
    """What the picture of the node of that title must show: the node "<title> caption", else the node "Caption"."""
    texts = {n.get("title"): n["widgets_values"][0] for n in workflow["nodes"] if n["widgets_values"]}
    return texts.get(f"{picture} caption", texts["Caption"])


def titles_of(workflow):
    """{node id in the API form: title}"""
    return {str(node["id"]): node.get("title") for node in workflow["nodes"]}


def frames_of(file):
    """[N, H, W, 3] in 0..1 of a picture file; N is 1 but for an animation."""
    with Image.open(file) as picture:
        frames = [np.asarray(frame.convert("RGB"), dtype=np.float32) for frame in ImageSequence.Iterator(picture)]
    return np.stack(frames) / 255


def shows(picture, caption):
    """Raise AssertionError unless a picture [H, W, 3] shows all that the caption says."""
    verdict = checker.score(picture[None], [caption])
    assert verdict["captions"] == 1.0, f"not as the caption says: {verdict['wrong'][0]}"


def arrived(caption):
    """The caption of the last frame of a clip: what set off on the left or the right is in the middle."""
    last, moving = re.subn(r"on the (left|right) (?=(drift|sail)s? )", "in the middle ", caption)
    assert moving == 1, f"{caption!r} names no way from a side to the middle, which the checker could see"
    return last


@pytest.fixture
def models_elsewhere(monkeypatch, tmp_path):
    """An example that saves a model saves it into a temporary folder."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "trip", ([str(tmp_path)], {".safetensors"}))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_an_example_runs_and_shows_its_caption(host, file, models_elsewhere):
    """In every picture, but those of a node titled "Plot", which must show something. The animation of "Picture" begins
    with the picture of "First frame", and ends with its caption once what moves has arrived."""
    workflow = json.loads(file.read_text(encoding="utf-8"))
    result = host.run(graph.convert(workflow, host.object_info()).prompt, {"extra_pnginfo": {"workflow": workflow}})
    assert result.success and not result.node_errors, result.messages
    titles, folders = titles_of(workflow), {"output": host.output, "temp": host.temp}
    images = [(titles[key], image) for key, shown in result.outputs.items() for image in shown.get("images", [])]
    assert "Picture" in [title for title, _ in images]
    shown = {}
    for title, image in images:
        picture = Path(folders[image["type"]]) / image["subfolder"] / image["filename"]
        saved = workflow_file.read(picture)
        assert saved.graph == workflow and saved.prompt
        shown[title] = frames_of(picture)
        if title == "Plot":
            assert shown[title].std() > 0.05, "the plot is blank"
        else:
            shows(shown[title][0], caption_of(workflow, title))
    clip = shown["Picture"]
    if len(clip) > 1:
        shows(clip[-1], arrived(caption_of(workflow)))
        begun, picture = (torch.from_numpy(shown[title][:1]) for title in ("Picture", "First frame"))
        assert psnr(begun, picture) > 25, "the autoencoder alone leaves 27 dB and more"


def test_an_example_is_what_the_tool_writes(host, monkeypatch):
    """python tools/examples.py writes them anew, after a change of a node's inputs or of the tool."""
    if host.name != "embedded":
        pytest.skip("other hosts describe their own nodes otherwise")
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool, info = importlib.import_module("examples"), host.object_info()
    assert {file.stem for file in EXAMPLES} == set(tool.EXAMPLES)
    stale = []
    for name, describe in tool.EXAMPLES.items():
        graph_of_tool = tool.Graph(info)
        describe(graph_of_tool)
        if json.loads(json.dumps(graph_of_tool.save())) != load(name):
            stale.append(name)
    assert not stale


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_the_thumbnail_shows_the_caption_too(file):
    """That of a clip has its frames in the first eight of nine cells."""
    [picture], workflow = frames_of(file.with_suffix(".jpg")), load(file.stem)
    caption = caption_of(workflow)
    if any(node["type"] == "SaveAnimatedWEBP" for node in workflow["nodes"]):
        edge, cell = len(picture), len(picture) // 3
        shows(picture[edge - cell :, edge // 2 - cell // 2 :][:, :cell], arrived(caption))
        picture = picture[:cell, :cell]
    shows(picture, caption)


def test_the_latent_is_the_same_on_every_host(host):
    recorded = json.loads(LATENTS.read_text(encoding="utf-8"))
    difference = np.abs(np.array(latent_of_example(host)) - np.array(recorded))
    assert difference.max() < TOLERANCE


if __name__ == "__main__":
    from trajectory.headless.runtime import embedded

    LATENTS.write_text(json.dumps([round(v, 7) for v in latent_of_example(embedded())]) + "\n", encoding="utf-8")
