"""Writes the example workflows and their thumbnails: python tools/examples.py [name ...]

Each example is described below as a few nodes with their links and positions, saved in the editor's format (0.4), then
run in the embedded host; its first saved picture becomes the thumbnail of the same name. Texts and values live here
alone, so that all examples stay alike.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"
PACK = {"cnr_id": "trajectory-nodes", "ver": "0.1.0"}
CORE = {"cnr_id": "comfy-core", "ver": "0.3.64"}
CAPTION = "a blue day over green hills with a sun and clouds, two red houses on the left and a red balloon on the right"
SEEDED = ("seed", "noise_seed")
COLUMN, ROW, GAP = 360, 26, 40


class Graph:
    """Collects nodes in the editor's format; `add` returns a handle whose outputs are taken by name or index."""

    def __init__(self, object_info):
        self.info, self.nodes, self.links = object_info, [], []
        self.bottoms = {}

    def add(self, kind, column, title=None, **values):
        """Add a node to a column (laid out from top to bottom); values: widget values, or (node, output) for links."""
        info = self.info[kind]
        node = {"id": len(self.nodes) + 1, "type": kind, "flags": {}, "order": len(self.nodes), "mode": 0}
        inputs, widgets = [], []
        for name, spec in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items():
            value = values.pop(name, None)
            if isinstance(value, tuple):
                inputs.append(self._link(node, len(inputs), name, value))
            elif self._is_widget(spec):
                default = spec[1].get("default") if len(spec) > 1 else None
                options = spec[0] if isinstance(spec[0], list) else spec[1].get("options", [None])
                widgets.append(value if value is not None else default if default is not None else options[0])
                if name in SEEDED:
                    widgets.append("fixed")
        assert not values, f"{kind} has no input {list(values)}"
        outputs = [
            {"name": name, "type": kind_, "links": None}
            for name, kind_ in zip(info["output_name"], info["output"], strict=True)
        ]
        own = kind.startswith("Trajectory")
        node |= {"inputs": inputs, "outputs": outputs, "widgets_values": widgets}
        node["properties"] = {"Node name for S&R": kind, **(PACK if own else CORE)}
        if title:
            node["title"] = title
        self._place(node, column, tall=any("\n" in str(w) or len(str(w)) > 40 for w in widgets), picture="IMAGE" in [
            i["type"] for i in inputs] and info["output_node"])
        self.nodes.append(node)
        return node

    def note(self, column, text):
        node = {
            "id": len(self.nodes) + 1, "type": "MarkdownNote", "flags": {}, "order": len(self.nodes), "mode": 0,
            "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text], "title": "About this example",
            "color": "#432", "bgcolor": "#653",
        }  # fmt: skip
        self._place(node, column, tall=True, height=60 + 18 * sum(1 + len(line) // 40 for line in text.splitlines()))
        self.nodes.append(node)

    def save(self):
        return {
            "id": "00000000-0000-0000-0000-000000000000", "revision": 0, "last_node_id": len(self.nodes),
            "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": [], "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [150, 120]}}, "version": 0.4,
        }  # fmt: skip

    @staticmethod
    def _is_widget(spec):
        return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

    def _link(self, node, slot, name, source):
        origin, output = source
        names = [o["name"] for o in origin["outputs"]]
        index = output if isinstance(output, int) else names.index(output)
        link = len(self.links) + 1
        kind = origin["outputs"][index]["type"]
        self.links.append([link, origin["id"], index, node["id"], slot, kind])
        origin["outputs"][index]["links"] = [*(origin["outputs"][index]["links"] or []), link]
        return {"name": name, "type": kind, "link": link}

    def _place(self, node, column, tall=False, picture=False, height=None):
        rows = max(len(node["inputs"]), len(node["outputs"])) + len(node["widgets_values"])
        height = height or 40 + ROW * rows + (90 if tall else 0) + (280 if picture else 0)
        top = self.bottoms.get(column, 0)
        node["pos"], node["size"] = [column * COLUMN, top], [COLUMN - GAP, height]
        self.bottoms[column] = top + height + 30 + GAP


def text_to_image(graph, positive=CAPTION, seed=4, cfg=2.0, steps=20, size=128, sampler=None, sigmas=None):
    """The common trunk of the examples; returns its nodes by name."""
    loader = graph.add("TrajectoryLoadMiniature", 0)
    caption = graph.add("CLIPTextEncode", 1, "Caption", clip=(loader, "CLIP"), text=positive)
    negative = graph.add("CLIPTextEncode", 1, "Negative", clip=(loader, "CLIP"), text="")
    latent = graph.add("EmptySD3LatentImage", 0, "Size", width=size, height=size, batch_size=1)
    noise = graph.add("RandomNoise", 0, "Noise", noise_seed=seed)
    guider = graph.add(
        "CFGGuider", 2, "Guidance", model=(loader, "MODEL"), positive=(caption, 0), negative=(negative, 0), cfg=cfg
    )
    sampler = sampler(graph) if sampler else graph.add("TrajectoryDPMSolverSampler", 1, "Solver")
    sigmas = sigmas(graph, loader) if sigmas else graph.add(
        "BasicScheduler", 2, "Schedule", model=(loader, "MODEL"), scheduler="simple", steps=steps, denoise=1.0
    )
    run = graph.add(
        "SamplerCustomAdvanced", 2, "Sample", noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0),
        sigmas=(sigmas, 0), latent_image=(latent, 0),
    )  # fmt: skip
    picture = graph.add("VAEDecode", 3, samples=(run, 0), vae=(loader, "VAE"))
    graph.add("SaveImage", 3, "Picture", images=(picture, 0), filename_prefix="landscape")
    return {"loader": loader, "sampler": sampler, "sigmas": sigmas, "guider": guider, "run": run}


def example_text_to_image(graph):
    text_to_image(graph)
    graph.note(0, (
        "The bundled miniature paints the landscape of the **Caption**. Change its words: light (*black night, blue "
        "night, dusk, dawn, blue day, white noon*), ground (*green hills, snow, sea, desert*), *sun* or *moon*, "
        "houses, trees, boats, balloons with colours, counts and places.\n\n"
        "To use a large model, replace **Load Miniature** by its loaders; the rest of the graph stays."
    ))  # fmt: skip


def example_solver_and_schedule(graph):
    nodes = text_to_image(
        graph, "a dusk over the sea with a moon and one white boat in the middle", seed=3,
        sampler=lambda g: g.add("TrajectoryDPMSolverSampler", 1, "Solver", order=3),
        sigmas=lambda g, loader: g.add(
            "TrajectoryTimeSkipScheduler", 2, "Schedule", model=(loader, "MODEL"), steps=10, skip="time_uniform"
        ),
    )  # fmt: skip
    graph.add(
        "TrajectoryPlanInfo", 3, "Plan", sampler=(nodes["sampler"], 0), sigmas=(nodes["sigmas"], 0),
        model=(nodes["loader"], "MODEL"),
    )  # fmt: skip
    graph.note(0, (
        "A third-order solver in ten network calls. **Plan** shows each step before it runs: its noise levels, the "
        "order used, and how far the weights extrapolate (kappa).\n\nTry *skip*, *order* and *method*, and watch the "
        "plan and the picture change."
    ))  # fmt: skip


def example_deis(graph):
    text_to_image(
        graph, "a dusk over green hills with a sun, two green trees on the right and a white balloon on the left",
        sampler=lambda g: g.add("TrajectoryDEISSampler", 1, "Solver", variant="tAB", order=2), seed=1,
        sigmas=lambda g, loader: g.add(
            "TrajectoryTimeSkipScheduler", 2, "Schedule", model=(loader, "MODEL"), steps=10, skip="time_quadratic"
        ),
    )  # fmt: skip
    graph.note(0, (
        "DEIS in the model's own time (tAB) on the schedule of its paper, *time_quadratic*, in ten network calls.\n\n"
        "Try the *variant* rhoRK with *rk* heun at 5 steps: the same number of calls, spent inside the steps."
    ))  # fmt: skip


EXAMPLES = {
    "Text to image": example_text_to_image,
    "Solver and schedule": example_solver_and_schedule,
    "DEIS in model time": example_deis,
}


def thumbnail(workflow_file, edge=400, quality=88):
    """JPEG bytes of the first picture that the workflow saves, run by the command line as a user would."""
    from PIL import Image
    from trajectory.headless.cli import main

    with tempfile.TemporaryDirectory() as out:
        if main(["run", str(workflow_file), "--out", out]):
            sys.exit(f"{workflow_file} did not run")
        picture = Image.open(sorted(Path(out).glob("*.png"))[0]).convert("RGB")
    picture = picture.resize((edge, edge), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=quality)
    return target.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(EXAMPLES), help="examples to write (default: all)")
    parser.add_argument("--no-thumbnails", action="store_true", help="write the workflows only")
    arguments = parser.parse_args()
    from trajectory.headless.embedded import EmbeddedHost

    info = EmbeddedHost(ROOT / "out").object_info()
    FOLDER.mkdir(exist_ok=True)
    for name in arguments.names:
        graph = Graph(info)
        EXAMPLES[name](graph)
        target = FOLDER / f"{name}.json"
        target.write_text(json.dumps(graph.save(), indent=1) + "\n", encoding="utf-8")
        if not arguments.no_thumbnails:
            target.with_suffix(".jpg").write_bytes(thumbnail(target))


if __name__ == "__main__":
    main()
