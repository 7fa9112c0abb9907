"""A real ComfyUI checkout in this process, on the CPU, with the interface of the embedded runtime."""

import asyncio
import importlib
import inspect
import logging
import os
import sys
import tempfile
import uuid
from pathlib import Path

from trajectory.headless.runtime import EventServer, RunResult, Runtime, node_info

PACK = Path(__file__).parents[2]


def prepare(checkout):
    """Put the checkout on the import path and let it read a command line of ours; imports nothing heavy of it."""
    if not (checkout / "comfy").is_dir():
        raise FileNotFoundError(f"COMFYUI_PATH is {checkout}, but there is no folder comfy in it")
    sys.path.insert(0, str(checkout.resolve()))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", tempfile.mkdtemp(prefix="comfyui-")]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401 - reads sys.argv while it is imported

    sys.argv = arguments
    import utils.extra_config  # noqa: F401 - `nodes` puts a folder with another `utils` first on the path


class RealHost:
    name = "ComfyUI"

    def __init__(self):
        import comfy.utils
        import execution

        import nodes

        self.version = importlib.import_module("comfyui_version").__version__
        self._execution, self._nodes = execution, nodes
        self.node_table = nodes.NODE_CLASS_MAPPINGS
        asyncio.run(self._load_nodes())
        self.server = EventServer()
        self.forget()
        comfy.utils.set_progress_bar_global_hook(self._on_progress)

    async def _load_nodes(self):
        """Core nodes, and the pack by its folder, as the host does it.

        The pack's own modules are those of the installed name `trajectory`, which the tests import, too: with two
        copies of a class, `isinstance` would not recognise the other's objects.
        """
        await self._nodes.init_builtin_extra_nodes()
        sys.modules[f"{str(PACK).replace('.', '_x_')}.nodes"] = importlib.import_module("trajectory.nodes")
        if not await self._nodes.load_custom_node(str(PACK), module_parent="custom_nodes"):
            raise RuntimeError(f"ComfyUI {self.version} could not load the pack in {PACK}")

    def _on_progress(self, value, total, preview, prompt_id=None, node_id=None):
        """What the host's main.py does with a step of a progress bar."""
        import comfy.model_management
        from comfy_execution.progress import get_progress_state
        from comfy_execution.utils import get_executing_context

        comfy.model_management.throw_exception_if_processing_interrupted()
        context = get_executing_context()
        node_id = node_id or (context.node_id if context else self.server.last_node_id)
        get_progress_state().update_progress(node_id, value, total, preview)
        self.server.send_sync("progress", {"value": value, "max": total, "node": node_id,
                                           "prompt_id": self.server.last_prompt_id})

    def object_info(self):
        return {node_id: node_info(node_id, cls, self._nodes) for node_id, cls in self.node_table.items()}

    set_folders = Runtime.set_folders

    def run(self, prompt, extra_data=None, on_event=None, targets=None, prompt_id=None):
        prompt_id = prompt_id or str(uuid.uuid4())
        valid, error, outputs, node_errors = asyncio.run(self._execution.validate_prompt(prompt_id, prompt, targets))
        if not valid:
            return RunResult(False, error=error, node_errors=node_errors)
        self.server.last_prompt_id = prompt_id
        with self.server.telling(on_event):
            self._executor.execute(prompt, prompt_id, {"client_id": "tests", **(extra_data or {})}, outputs)
        return RunResult.of(self._executor, node_errors)

    def interrupt(self):
        self._nodes.interrupt_processing()

    def forget(self):
        options = {"cache_type": self._execution.CacheType.CLASSIC}
        if "cache_args" in inspect.signature(self._execution.PromptExecutor).parameters:  # from 0.4 on
            options["cache_args"] = {"lru": 0, "ram": 0, "ram_inactive": 0}
        self._executor = self._execution.PromptExecutor(self.server, **options)


logging.getLogger().setLevel(logging.ERROR)
