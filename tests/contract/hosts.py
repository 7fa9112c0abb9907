"""Bring up one host in this process: a real ComfyUI checkout (CPU, empty folders) or the embedded one.

Only one host fits into a process, because all of them own the same import names.
"""

import asyncio
import importlib
import inspect
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_INS = REPOSITORY / "headless" / "host"


class Recorder:
    """The part of the host's server that its executor talks to; keeps the events."""

    def __init__(self):
        self.client_id = None
        self.last_node_id = None
        self.last_prompt_id = None
        self.sockets_metadata: dict = {}
        self.events: list[tuple[str, Any]] = []

    def send_sync(self, event, data, sid=None):
        self.events.append((event, data))

    def send_progress_text(self, text, node_id, sid=None):
        self.events.append(("progress_text", {"node": node_id, "text": text}))

    def queue_updated(self):
        """Nobody looks at the queue."""


@dataclass
class Host:
    """A host that runs in this process."""

    version: str
    node_classes: dict[str, type]
    display_names: dict[str, str]
    execution: Any
    make_executor: Callable[[Any], Any]
    folders: Path
    recorder: Recorder = field(default_factory=Recorder)

    def validate(self, prompt: dict):
        """(valid, error, output ids, node errors), as the host answers."""
        function = self.execution.validate_prompt
        answer = function("00000000-0000-4000-8000-000000000000", prompt, None)
        return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


def _make_folders() -> Path:
    base = Path(tempfile.mkdtemp(prefix="contract-"))
    for name in ("input", "output", "temp", "models", "user", "custom_nodes"):
        (base / name).mkdir()
    _write_example_picture(base / "input" / "example.png")
    return base


def _write_example_picture(path: Path) -> None:
    from PIL import Image

    picture = Image.new("RGB", (16, 8))
    picture.putdata([(x * 16, y * 32, (x * y) % 256) for y in range(8) for x in range(16)])
    picture.save(path)


def real_host(checkout: Path) -> Host:
    """Boot the checkout on the CPU with its core nodes, without any custom node.

    Args:
        checkout: folder with ComfyUI's ``main.py``.
    """
    checkout = checkout.resolve()
    base = _make_folders()
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    import comfy.options

    comfy.options.enable_args_parsing()
    logging.getLogger().setLevel(logging.ERROR)
    # utils first: `nodes` puts a folder that holds another `utils` in front of the path
    _, execution, folder_paths, nodes = map(
        importlib.import_module, ("utils.install_util", "execution", "folder_paths", "nodes")
    )
    for kind in ("input", "output", "temp", "user"):
        getattr(folder_paths, f"set_{kind}_directory")(str(base / kind))
    asyncio.run(nodes.init_builtin_extra_nodes())
    version = importlib.import_module("comfyui_version").__version__
    return Host(
        version,
        nodes.NODE_CLASS_MAPPINGS,
        nodes.NODE_DISPLAY_NAME_MAPPINGS,
        execution,
        _executor_factory(execution),
        base,
    )


def embedded_host() -> Host:
    """Bring up the embedded host, with the core nodes and the pack.

    It is imported under the pack's own name, whose package is the repository.
    """
    from trajectory.headless.runtime import embedded

    base = _make_folders()
    os.chdir(base)
    host = embedded()
    import folder_paths
    from trajectory.headless.execution import PromptExecutor
    from trajectory.headless.validation import validate_prompt

    import nodes

    for kind in ("input", "output", "temp", "user"):
        getattr(folder_paths, f"set_{kind}_directory")(str(base / kind))
    execution = SimpleNamespace(
        validate_prompt=lambda _prompt_id, prompt, targets: validate_prompt(prompt, host.node_table, targets)
    )
    names = nodes.NODE_DISPLAY_NAME_MAPPINGS
    return Host("embedded", host.node_table, names, execution, lambda s: PromptExecutor(s, host.node_table), base)


def _executor_factory(execution):
    """The classic cache (what the current prompt uses) under both spellings of the executor's options."""
    if "cache_args" not in inspect.signature(execution.PromptExecutor).parameters:
        return execution.PromptExecutor
    options = {"cache_type": execution.CacheType.CLASSIC, "cache_args": {"lru": 0, "ram": 0, "ram_inactive": 0}}
    return lambda server: execution.PromptExecutor(server, **options)


def node_info(host: Host, node_id: str) -> dict:
    """The node's entry of ``/object_info``, reduced to what a graph depends on."""
    cls = host.node_classes[node_id]
    if hasattr(cls, "GET_NODE_INFO_V1"):
        info = cls.GET_NODE_INFO_V1()
        if not isinstance(info, dict):
            info = vars(info)
    else:
        inputs = cls.INPUT_TYPES()
        info = {
            "input": inputs,
            "input_order": {key: list(value) for key, value in inputs.items()},
            "output": list(cls.RETURN_TYPES),
            "output_is_list": list(getattr(cls, "OUTPUT_IS_LIST", [False] * len(cls.RETURN_TYPES))),
            "output_name": list(getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)),
            "display_name": host.display_names.get(node_id, node_id),
            "category": getattr(cls, "CATEGORY", "sd"),
            "output_node": bool(getattr(cls, "OUTPUT_NODE", False)),
        }
    return {
        "input": {
            kind: {name: _input_info(entry) for name, entry in group.items()}
            for kind, group in info["input"].items()
            if kind in ("required", "optional")
        },
        "hidden": sorted(info["input"].get("hidden") or {}),
        "output": [t if isinstance(t, str) else "COMBO" for t in info["output"]],
        "output_is_list": list(info["output_is_list"]),
        "output_name": list(info["output_name"]),
        "output_node": bool(info["output_node"]),
        "display_name": info["display_name"],
        "category": info["category"],
    }


#: Input settings that decide which values a graph may hold or how the editor keeps them.
SETTINGS = (
    "default",
    "min",
    "max",
    "step",
    "round",
    "multiline",
    "dynamicPrompts",
    "control_after_generate",
    "image_upload",
    "lazy",
)


def _input_info(entry) -> dict:
    """{type, options?, settings...} of one input; old list combos and new "COMBO" inputs read the same."""
    kind, settings = entry[0], (entry[1] if len(entry) > 1 else {}) or {}
    out: dict = {"type": kind if isinstance(kind, str) else "COMBO"}
    options = settings.get("options") if isinstance(kind, str) else kind
    if options is not None:
        out["options"] = list(options)
    out.update({k: settings[k] for k in SETTINGS if settings.get(k) is not None})
    return out
