"""`--comfyui PATH`: run in this process on a real ComfyUI checkout, with its own validation and executor.

The checkout's models and inputs stay where they are; only results and previews go to the run's own folder. Built-in
nodes and this pack are loaded, other custom nodes are not. Tried with ComfyUI 0.3.64 and 0.33.0.
"""

import asyncio
import importlib
import inspect
import logging
import os
import sys
import uuid
from pathlib import Path

from .backend import Folders, Listener, LocalRun, Outcome
from .errors import UserError

PACK = Path(__file__).resolve().parents[1]


class RealHost:
    def __init__(self, path: str | Path, out: Path):
        self._folders = Folders(out)
        self._path = Path(path).resolve()
        if not all((self._path / part).exists() for part in ("main.py", "nodes.py", "execution.py", "comfy")):
            raise UserError(f"--comfyui {path}: this is no ComfyUI checkout "
                            "(main.py, nodes.py, execution.py and comfy/ are expected in it).")
        try:
            self._start()
        except ModuleNotFoundError as error:
            raise UserError(f'The ComfyUI in {self._path} needs the Python package "{error.name}", which '
                            f"{sys.executable} does not have. Run: pip install -r {self._path / 'requirements.txt'} - "
                            "or run this command with ComfyUI's own Python.") from error

    def _start(self) -> None:
        """Import the host as its main.py would, without its server."""
        sys.path.insert(0, str(self._path))
        os.chdir(self._path)
        sys.argv = ["main.py", *([] if _has_accelerator() else ["--cpu"])]
        importlib.import_module("comfy.options").enable_args_parsing()
        # utils first: `nodes` puts comfy/, which has another `utils`, in front of the path
        extra_config, comfy_utils, execution, folder_paths, nodes = map(
            importlib.import_module, ("utils.extra_config", "comfy.utils", "execution", "folder_paths", "nodes"))

        folder_paths.set_output_directory(str(self._folders.output))
        folder_paths.set_temp_directory(str(self._folders.previews))
        listed = self._path / "extra_model_paths.yaml"
        if listed.is_file():
            extra_config.load_extra_path_config(str(listed))
        comfy_utils.PROGRESS_BAR_ENABLED = False  # the samplers' own bars would run through ours
        self._execution, self._nodes = execution, nodes
        self._missing_files = asyncio.run(_load_nodes(nodes))

    @property
    def unknown_nodes_advice(self) -> str:
        advice = ("In process only ComfyUI's built-in nodes and this pack are loaded. Start ComfyUI with the packs "
                  "that are missing and run the graph there with --host URL.")
        if self._missing_files:
            advice += f" These built-in files did not load, for want of packages: {', '.join(self._missing_files)}."
        return advice

    def object_info(self) -> dict:
        return {name: node_info(name, cls, self._nodes) for name, cls in self._nodes.NODE_CLASS_MAPPINGS.items()}

    def run(self, prompt: dict, workflow: dict | None, on_event: Listener) -> Outcome:
        run = LocalRun(self._folders, on_event)
        prompt_id = str(uuid.uuid4())
        valid, refusal, outputs, node_errors = asyncio.run(self._validate(prompt_id, prompt))
        run.outcome.refusal, run.outcome.node_errors = refusal, node_errors
        if valid:
            server = _EventServer(run, prompt_id)
            _report_progress(server)
            extra_data = {"client_id": server.client_id, "extra_pnginfo": {"workflow": workflow} if workflow else {}}
            self._executor(server).execute(prompt, prompt_id, extra_data, outputs)
        return run.outcome

    async def _validate(self, prompt_id: str, prompt: dict) -> tuple:
        return tuple(await self._execution.validate_prompt(prompt_id, prompt, None))

    def _executor(self, server):
        make = self._execution.PromptExecutor
        if "cache_args" in inspect.signature(make).parameters:  # newer hosts; 0.3.64 has none
            return make(server, cache_type=self._execution.CacheType.CLASSIC,
                        cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})
        return make(server, cache_type=self._execution.CacheType.CLASSIC)

    def interrupt(self) -> None:
        self._nodes.interrupt_processing()


class _EventServer:
    """What the executor needs of ComfyUI's server: an addressee for its events."""

    def __init__(self, on_event: Listener, prompt_id: str):
        self.client_id = "trajectory"
        self.last_node_id = None
        self.last_prompt_id = prompt_id
        self.sockets_metadata = {}
        self._on_event = on_event

    def send_sync(self, event, data, sid=None) -> None:
        self._on_event(event, data)


def _report_progress(server: _EventServer) -> None:
    """Do what the host's main.py does with a node's progress: stop where asked to, keep the state, tell."""
    import comfy.model_management
    import comfy.utils
    from comfy_execution.progress import get_progress_state

    def hook(value, total, preview_image, prompt_id=None, node_id=None):
        comfy.model_management.throw_exception_if_processing_interrupted()
        node = node_id or server.last_node_id
        get_progress_state().update_progress(node, value, total, preview_image)
        server.send_sync("progress", {"value": value, "max": total, "node": node, "prompt_id": server.last_prompt_id})

    comfy.utils.set_progress_bar_global_hook(hook)


def node_info(name: str, cls, nodes) -> dict:
    """The `/object_info` entry of a node class, V3 or V1."""
    if hasattr(cls, "GET_NODE_INFO_V1"):
        return cls.GET_NODE_INFO_V1()
    inputs = cls.INPUT_TYPES()
    outputs = list(cls.RETURN_TYPES)
    return {
        "input": inputs,
        "input_order": {group: list(specs) for group, specs in inputs.items()},
        "output": outputs,
        "output_name": list(getattr(cls, "RETURN_NAMES", outputs)),
        "name": name,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
        "description": getattr(cls, "DESCRIPTION", ""),
        "category": getattr(cls, "CATEGORY", ""),
        "output_node": bool(getattr(cls, "OUTPUT_NODE", False)),
    }


def _has_accelerator() -> bool:
    """Whether torch sees a device other than the CPU; the host is told to use the CPU only where it does not."""
    import torch

    if hasattr(torch, "accelerator"):
        return torch.accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()


async def _load_nodes(nodes) -> list[str]:
    """Load the built-in nodes and this pack; returns the built-in files that failed.

    What the host logs about those is left out, as most graphs do not need them; what the executor logs about errors
    too, since the outcome of the run says it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.module != "execution")
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    logging.disable(logging.WARNING)
    failed = await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    logging.disable(logging.NOTSET)
    await nodes.load_custom_node(str(PACK), module_parent="custom_nodes")
    return list(failed or [])
