"""Answers of a host to good and bad prompts, and the events of an execution."""

import copy
import json
from typing import Any

from hosts import Host
from PIL import Image

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {
        "class_type": "ImageScale",
        "inputs": {"image": ["1", 0], "upscale_method": "nearest-exact", "width": 8, "height": 4, "crop": "disabled"},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "contract"}},
}


def _with(node: str, **inputs) -> dict:
    graph = copy.deepcopy(GRAPH)
    graph[node]["inputs"].update(inputs)
    return graph


def _without(node: str, name: str | None = None) -> dict:
    graph = copy.deepcopy(GRAPH)
    if name is None:
        del graph[node]
    else:
        del graph[node]["inputs"][name]
    return graph


def _more(**nodes) -> dict:
    return {**copy.deepcopy(GRAPH), **nodes}


def _scale(image) -> dict:
    return {"class_type": "ImageScale", "inputs": {**GRAPH["2"]["inputs"], "image": image}}


def _save(image) -> dict:
    return {"class_type": "SaveImage", "inputs": {"images": image, "filename_prefix": "second"}}


LATENT = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}

PROMPTS: dict[str, dict] = {
    "good": GRAPH,
    "empty": {},
    "no_output": _without("3"),
    "unknown_node": {**copy.deepcopy(GRAPH), "2": {**_scale(["1", 0]), "class_type": "NoSuchNode"}},
    "no_class_type": {**copy.deepcopy(GRAPH), "2": {"inputs": {}}},
    "missing_link": _without("2", "image"),
    "missing_value": _without("2", "width"),
    "too_small": _with("2", width=-1),
    "too_big": _with("2", width=1000000),
    "not_a_number": _with("2", width="wide"),
    "number_as_text": _with("2", width="12"),
    "float_for_int": _with("2", width=12.7),
    "unknown_option": _with("2", upscale_method="magic"),
    "missing_file": _with("1", image="nothing.png"),
    "link_to_nowhere": _with("2", image=["99", 0]),
    "link_beyond_outputs": _with("2", image=["1", 7]),
    "link_malformed": _with("2", image=["1"]),
    "wrong_type": {**_with("2", image=["4", 0]), "4": LATENT},
    "cycle": {**_with("2", image=["5", 0]), "5": _scale(["2", 0])},
    "one_of_two_outputs": _more(**{"5": _scale(["99", 0]), "6": _save(["5", 0])}),
    "two_errors": _with("2", width=-1, height="tall"),
    "error_upstream_of_two": {**_with("2", width=-1), "6": _save(["2", 0])},
}


def validation(host: Host) -> dict:
    """{``validation/<prompt>``: the shape of the answer}: flags, error types and the inputs they name."""
    out = {}
    for name, graph in PROMPTS.items():
        prompt = copy.deepcopy(graph)
        valid, error, outputs, node_errors = host.validate(prompt)
        out[f"validation/{name}"] = {
            "valid": bool(valid),
            "error": (error or {}).get("type"),
            "outputs": sorted(outputs),
            "node_errors": {
                node: {
                    "class_type": entry["class_type"],
                    "dependent_outputs": sorted(entry["dependent_outputs"]),
                    "errors": sorted(
                        [e["type"], e.get("extra_info", {}).get("input_name") or ""] for e in entry["errors"]
                    ),
                }
                for node, entry in sorted((node_errors or {}).items())
            },
            "width": prompt.get("2", {}).get("inputs", {}).get("width"),
        }
    return out


# --- execution ------------------------------------------------------------------------------------------------------

#: Events whose number is not part of the protocol.
UNCOUNTED = ("progress", "progress_state", "status", "progress_text")


def _event(name: str, data: dict) -> str:
    if name == "execution_cached":
        return f"{name} {','.join(sorted(data['nodes']))}".strip()
    node = data.get("node", data.get("node_id"))
    return name if node is None else f"{name} {node}"


def _run(host: Host, executor, graph: dict, number: int) -> dict[str, Any]:
    host.recorder.events.clear()
    prompt = copy.deepcopy(graph)
    _, _, outputs, _ = host.validate(prompt)
    extra_data = {"client_id": "contract", "extra_pnginfo": {"workflow": {"nodes": []}}}
    executor.execute(prompt, f"00000000-0000-4000-8000-00000000000{number}", extra_data, outputs)
    events = [(n, d) for n, d in host.recorder.events if isinstance(n, str) and n not in UNCOUNTED]
    failed = [d for n, d in events if n == "execution_error"]
    return {
        "events": [_event(n, d) for n, d in events],
        "outputs": {d["node"]: d["output"] for n, d in events if n == "executed"},
        "success": bool(executor.success),
        "history": sorted(executor.history_result["outputs"]),
        "error": sorted(failed[0]) if failed else None,
    }


def execution(host: Host) -> dict:
    """Events, outputs and history of runs: first, repeated (cached), with a changed tail, and one that fails."""
    executor = host.make_executor(host.recorder)
    (host.folders / "input" / "broken.png").write_bytes(b"no picture")
    out = {
        "execution/first": _run(host, executor, GRAPH, 1),
        "execution/again": _run(host, executor, GRAPH, 2),
        "execution/changed_size": _run(host, executor, _with("2", width=6), 3),
        "execution/broken_file": _run(host, executor, _with("1", image="broken.png"), 4),
    }
    with Image.open(host.folders / "output" / "contract_00001_.png") as picture:
        out["execution/png"] = {
            "size": list(picture.size),
            "pixels": list(picture.convert("RGB").tobytes()),
            "text": sorted(picture.text),
            "prompt": {
                node: {"class_type": entry["class_type"], "inputs": entry["inputs"]}
                for node, entry in json.loads(picture.text["prompt"]).items()
            },
        }
    return out


def compute(host: Host) -> tuple[dict, dict[str, str]]:
    """All answers, and {section: error} for what this host cannot answer."""
    out: dict = {}
    errors: dict[str, str] = {}
    for section in (validation, execution):
        try:
            out.update(section(host))
        except Exception as error:  # one missing piece must not hide the other answers
            errors[section.__name__] = f"{type(error).__name__}: {error}"
    return out, errors
