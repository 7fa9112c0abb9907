"""Every node is explained: a tooltip on each input and output, a help page that names them all, and an example."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
PICTURE = re.compile(r"^!\[(?P<alt>.*)\]\((?P<file>.*)\)\n\n\*(?P<caption>[^\n]*)\*$", re.MULTILINE)

OPTIONAL = {"TrajectoryOperatorFromDeepinv": "deepinv"}
"""{node: package}. A node that is there where its package is; its help page always is."""
WITHOUT_EXAMPLE = {
    "TrajectoryAdcSRLoader": "needs the weights of AdcSR",
    "TrajectoryAdcSRUpscale": "needs the weights of AdcSR",
    "TrajectoryOperatorFromDeepinv": "needs the package deepinv",
    "TrajectoryOperatorFromModel": "needs an upscale model, which the pack does not bring",
    "TrajectoryLossCLIPVision": "needs the weights of CLIP vision",
    "TrajectoryLossStyleGram": "needs the weights of CLIP vision",
    "TrajectoryIRSDELoader": "needs the weights of IR-SDE or Refusion",
    "TrajectoryIRSDEScheduler": "needs the weights of IR-SDE or Refusion",
    "TrajectoryS3DiffLoader": "needs the weights of S3Diff",
    "TrajectoryS3DiffDegradation": "needs the weights of S3Diff",
    "TrajectoryApplyS3Diff": "needs the weights of S3Diff",
}
"""{node: why no example holds it}. Every example runs from a fresh clone."""


def pack_nodes(host):
    return {name: cls for name, cls in host.node_table.items() if name.startswith("Trajectory")}


def test_the_pack_has_nodes_and_none_failed_to_load(host):
    from trajectory.nodes import failures

    assert failures == {}
    assert len(pack_nodes(host)) >= 4


def test_every_input_and_output_has_a_tooltip(host):
    for name, cls in pack_nodes(host).items():
        schema = cls.GET_SCHEMA()
        assert schema.description and schema.category.startswith("trajectory/"), name
        for part in [*schema.inputs, *schema.outputs]:
            assert getattr(part, "tooltip", None), f"{name}: {part.display_name or part.id}"


def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs(host):
    for name, cls in pack_nodes(host).items():
        page = ROOT / "web" / "docs" / f"{name}.md"
        assert page.is_file(), f"{page} is missing"
        text, schema = page.read_text(encoding="utf-8"), cls.GET_SCHEMA()
        assert text.startswith(f"# {schema.display_name}\n"), name
        for heading in ("## When to use it", "## Inputs", "## Outputs", "## Paper"):
            assert heading in text, f"{name}: {heading}"
        for part in [*schema.inputs, *schema.outputs]:
            assert f"`{part.id if part in schema.inputs else part.display_name}`" in text, f"{name}: {part.id}"


def test_help_pages_state_the_ranges_and_options_of_the_schemas(host):
    for name, cls in pack_nodes(host).items():
        rows = {}
        for line in (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 5 and cells[0].startswith("`"):
                rows[cells[0].strip("`")] = cells[4]
        for part in cls.GET_SCHEMA().inputs:
            words = [f"{part.min:g} - {part.max:g}", f"default {part.default:g}"] if hasattr(part, "min") else []
            words += list(getattr(part, "options", None) or [])
            assert all(word in rows[part.id] for word in words), f"{name}: {part.id}: {rows[part.id]} lacks {words}"


def test_every_help_page_belongs_to_a_node(host):
    pages = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    absent = {node for node, package in OPTIONAL.items() if not importlib.util.find_spec(package)}
    assert pages == set(pack_nodes(host)) | absent


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_a_help_page_has_a_small_picture_with_words_in_its_place_and_below_it(page):
    pictures = list(PICTURE.finditer(page.read_text(encoding="utf-8")))
    assert pictures
    for found in pictures:
        file = page.parent / found["file"]
        assert file.is_file() and file.stat().st_size < 60_000, found["file"]
        assert len(found["alt"].split()) >= 4 and found["caption"].endswith(".")
        shown = np.asarray(Image.open(file).convert("RGB"), dtype=int)
        assert 600 <= shown.shape[1] <= 1000
        assert (np.ptp(shown, axis=-1) > 60).mean() > 0.005, f"{file} is blank: lines and paintings have colours"


def test_every_picture_is_on_a_help_page():
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")]
    shown = {found["file"] for page in pages for found in PICTURE.finditer(page)}
    assert shown == {f"images/{file.name}" for file in (DOCS / "images").iterdir()}


def test_every_node_is_in_an_example(host):
    used = {node["type"] for file in EXAMPLES for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]}
    assert set(pack_nodes(host)) - used == set(pack_nodes(host)) & set(WITHOUT_EXAMPLE)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_an_example_has_a_small_thumbnail_and_tells_its_packs(file):
    picture = file.with_suffix(".jpg")
    assert picture.is_file() and picture.stat().st_size < 60_000 and picture.read_bytes()[:2] == b"\xff\xd8"
    for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]:
        if node["type"] != "MarkdownNote":
            assert node["properties"]["cnr_id"] in ("trajectory-nodes", "comfy-core")
