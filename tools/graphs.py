"""Graphs of the editor, described as a few nodes with their links: what the examples and the figures are built of."""

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
            else:  # an optional socket that nothing is connected to
                inputs.append({"name": name, "type": spec[0], "link": None})
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


def text_to_image(
    graph, positive=CAPTION, seed=4, cfg=2.0, steps=20, size=128, sampler=None, sigmas=None, patch=None, start=None,
    miniature="landscapes (flow)", title="Picture",
):  # fmt: skip
    """The common trunk of the examples; returns its nodes by name.

    `start`: called with the graph and its nodes so far for the node whose LATENT is sampled from. `title`: of the node
    that saves the picture.
    """
    loader = graph.add("TrajectoryLoadMiniature", 0, model=miniature)
    model = (patch(graph, loader), 0) if patch else (loader, "MODEL")
    caption = graph.add("CLIPTextEncode", 1, "Caption", clip=(loader, "CLIP"), text=positive)
    negative = graph.add("CLIPTextEncode", 1, "Negative", clip=(loader, "CLIP"), text="")
    latent = graph.add("EmptySD3LatentImage", 0, "Size", width=size, height=size, batch_size=1)
    first = {"loader": loader, "caption": caption, "negative": negative, "latent": latent}
    latent = start(graph, first) if start else latent
    noise = graph.add("RandomNoise", 0, "Noise", noise_seed=seed)
    guider = graph.add(
        "CFGGuider", 2, "Guidance", model=model, positive=(caption, 0), negative=(negative, 0), cfg=cfg
    )
    sampler = sampler(graph) if sampler else graph.add("TrajectoryAngularSampler", 1, "Solver")
    sigmas = sigmas(graph, loader) if sigmas else graph.add(
        "BasicScheduler", 2, "Schedule", model=model, scheduler="simple", steps=steps, denoise=1.0
    )
    run = graph.add(
        "SamplerCustomAdvanced", 2, "Sample", noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0),
        sigmas=(sigmas, 0), latent_image=(latent, 0),
    )  # fmt: skip
    picture = graph.add("VAEDecode", 3, samples=(run, 0), vae=(loader, "VAE"))
    graph.add("SaveImage", 3, title, images=(picture, 0), filename_prefix="landscape")
    return {
        "loader": loader, "sampler": sampler, "sigmas": sigmas, "guider": guider, "noise": noise, "latent": latent,
        "run": run,
    }  # fmt: skip
