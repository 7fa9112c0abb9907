"""The embedded host as a whole: stand-ins on the import path, core nodes and this pack loaded, prompts run.

`embedded()` gives the one runtime of this process. It never replaces a real ComfyUI: `activate()` refuses where one is
imported already.
"""

import asyncio
import contextlib
import functools
import importlib
import inspect
import logging
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

HOST = Path(__file__).with_name("host")
VERSION = "0.3.64"
"""The ComfyUI whose node interface the stand-ins have."""

STAND_INS = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "node_helpers",
             "nodes")
PACK = __name__.split(".headless")[0]
"""Import name of this package, whichever way it was imported."""

PACK_FOLDER = "trajectory"
"""Folder name under which the editor knows the pack (`custom_nodes.trajectory`)."""

logger = logging.getLogger("trajectory")


def activate():
    """Put the stand-ins first on the import path.

    Raises RuntimeError when one of their names is taken by another module, which is a real ComfyUI.
    """
    for name in STAND_INS:
        module = sys.modules.get(name)
        if module is not None and not _is_ours(module):
            raise RuntimeError(f"The module {name} is already imported from {_origin(module)}, so the embedded host "
                               "cannot take its place. Run in a fresh Python process, or use --comfyui PATH.")
    if sys.path[0] != str(HOST):
        sys.path[:] = [str(HOST), *(entry for entry in sys.path if entry != str(HOST))]


def _origin(module):
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "an unknown place")


def _is_ours(module):
    return HOST in Path(_origin(module)).resolve().parents


@dataclass
class RunResult:
    """How a prompt ended.

    `outputs`: UI data by node id, such as {"9": {"images": [{"filename", "subfolder", "type"}]}}; `messages`: the run's
    events [(name, data)]; `error` and `node_errors`: what validation answered (a run may succeed and still have node
    errors, for the branches that were left out).
    """

    success: bool
    outputs: dict = field(default_factory=dict)
    meta: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)
    error: dict | None = None
    node_errors: dict = field(default_factory=dict)

    @classmethod
    def of(cls, executor, node_errors):
        """What an executor, ours or the host's, tells of its latest prompt."""
        history = executor.history_result
        return cls(executor.success, history["outputs"], history["meta"], executor.status_messages, None, node_errors)

    @property
    def failure(self):
        """The `execution_error` record of a run that a node broke, else None."""
        return next((data for event, data in self.messages if event == "execution_error"), None)

    @property
    def interrupted(self):
        return any(event == "execution_interrupted" for event, _ in self.messages)


class EventServer:
    """What an executor needs of a server: an address for its events. Binary previews arrive under their number."""

    def __init__(self, on_event=None):
        self.client_id = None
        self.last_node_id = None
        self.last_prompt_id = None
        self.sockets_metadata = {}
        self.on_event = on_event

    @contextlib.contextmanager
    def telling(self, on_event):
        """Pass the events to `on_event` meanwhile."""
        self.on_event = on_event
        try:
            yield
        finally:
            self.on_event = None

    def send_sync(self, event, data, sid=None):
        if self.on_event is not None:
            self.on_event(event, data)


class Runtime:
    """The embedded host. `name`, `version`, `node_table` (id -> class), `object_info()`, `run(prompt)`."""

    name = "embedded"
    version = VERSION

    def __init__(self):
        activate()
        import nodes

        from .execution import PromptExecutor

        self._nodes = nodes
        self.node_table = nodes.NODE_CLASS_MAPPINGS
        asyncio.run(self._load_nodes())
        self.server = EventServer()
        self._executor = PromptExecutor(self.server, self.node_table)

    async def _load_nodes(self):
        for path in sorted((HOST / "comfy_extras").glob("nodes_*.py")):
            await load_nodes(importlib.import_module(f"comfy_extras.{path.stem}"), f"comfy_extras.{path.stem}")
        pack = importlib.import_module(PACK)
        await load_nodes(pack, f"custom_nodes.{PACK_FOLDER}")
        self._nodes.EXTENSION_WEB_DIRS[PACK_FOLDER] = str(Path(pack.__file__).parent / pack.WEB_DIRECTORY)

    def object_info(self):
        """Descriptions of all nodes, as `GET /object_info` gives them."""
        return {node_id: node_info(node_id, cls, self._nodes) for node_id, cls in self.node_table.items()}

    def set_folders(self, input=None, output=None, temp=None):
        """Where pictures are read from and written to; None leaves a folder as it is."""
        import folder_paths

        for folder, setter in ((input, folder_paths.set_input_directory), (output, folder_paths.set_output_directory),
                               (temp, folder_paths.set_temp_directory)):
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
                setter(str(folder))

    def run(self, prompt, extra_data=None, on_event=None, targets=None, prompt_id=None):
        """Validate and run an API prompt; results are kept for the next one.

        Args:
            prompt: {node id: {"class_type", "inputs"}}; constants are converted to their input's type in place.
            extra_data: {"extra_pnginfo": {"workflow": ...}} goes into saved pictures.
            on_event: called with (event name, data) for every event of the run.
            targets: only these output nodes.
        """
        from .validation import validate_prompt

        valid, error, outputs, node_errors = validate_prompt(prompt, self.node_table, targets)
        if not valid:
            return RunResult(False, error=error, node_errors=node_errors)
        with self.server.telling(on_event):
            self._executor.execute(prompt, prompt_id or str(uuid.uuid4()),
                                   {"client_id": "embedded", **(extra_data or {})}, outputs)
        return RunResult.of(self._executor, node_errors)

    def interrupt(self):
        """Ask the running prompt to stop at its next step or node. May be called from another thread or a signal."""
        self._nodes.interrupt_processing()

    def forget(self):
        """Drop the results that are kept between prompts."""
        self._executor.reset()


@functools.cache
def embedded():
    """The runtime of this process, made on first use."""
    return Runtime()


async def load_nodes(module, python_module):
    """Register what a module offers, as the host loads a pack: V1 mappings, else a V3 `comfy_entrypoint`."""
    import nodes

    if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None:
        found = dict(module.NODE_CLASS_MAPPINGS)
        nodes.NODE_DISPLAY_NAME_MAPPINGS.update(getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {}))
    else:
        extension = module.comfy_entrypoint()
        extension = await extension if inspect.isawaitable(extension) else extension
        found = {cls.GET_SCHEMA().node_id: cls for cls in await extension.get_node_list()}
        nodes.NODE_DISPLAY_NAME_MAPPINGS.update(
            {node_id: cls.SCHEMA.display_name for node_id, cls in found.items() if cls.SCHEMA.display_name is not None})
    for node_id, cls in found.items():
        if node_id in nodes.NODE_CLASS_MAPPINGS:
            logger.warning("%s: node %s is left out, because the host has one of that name", python_module, node_id)
            continue
        cls.RELATIVE_PYTHON_MODULE = python_module
        nodes.NODE_CLASS_MAPPINGS[node_id] = cls


def node_info(node_id, cls, nodes):
    """The `/object_info` entry of a node class, V1 or V3; `nodes` is the host's module of that name."""
    if hasattr(cls, "GET_NODE_INFO_V1"):
        return cls.GET_NODE_INFO_V1()
    inputs = cls.INPUT_TYPES()
    info = {
        "input": inputs,
        "input_order": {group: list(members) for group, members in inputs.items()},
        "output": cls.RETURN_TYPES,
        "output_is_list": getattr(cls, "OUTPUT_IS_LIST", [False] * len(cls.RETURN_TYPES)),
        "output_name": getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES),
        "name": node_id,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node_id, node_id),
        "description": getattr(cls, "DESCRIPTION", ""),
        "python_module": getattr(cls, "RELATIVE_PYTHON_MODULE", "nodes"),
        "category": getattr(cls, "CATEGORY", "sd"),
        "output_node": bool(getattr(cls, "OUTPUT_NODE", False)),
    }
    if hasattr(cls, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = cls.OUTPUT_TOOLTIPS
    for key in ("deprecated", "experimental"):
        if getattr(cls, key.upper(), False):
            info[key] = True
    return info
