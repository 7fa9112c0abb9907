"""Run a validated prompt: order, caching, lists, lazy inputs, expansion, blocking, asynchronous nodes, events.

The events, their names and their contents are those of ComfyUI's executor, so every client of a real host can listen.
"""

import asyncio
import inspect
import time

import comfy.utils
import torch
from comfy.model_management import InterruptProcessingException
from comfy_api.latest._node import overrides
from comfy_execution.graph import DynamicPrompt, NodeNotFoundError
from comfy_execution.graph_utils import ExecutionBlocker, GraphBuilder, is_link
from comfy_execution.utils import CurrentNodeContext, get_executing_context

import nodes

from .caching import Keys, Result, ResultCache
from .returns import Answer, blocker_in, items, merged_ui, merged_values, readable
from .scheduling import Schedule
from .validation import describe_exception, input_info, is_v3

PREVIEW_IMAGE_WITH_METADATA = 4
"""Event number of a preview: ((format, Pillow image, largest side), {"node_id", "display_node_id", ...})."""

INTERRUPT_POLL = 0.1
"""Seconds after which a wait for asynchronous nodes looks whether the user wants to stop."""


class DependencyCycleError(Exception):
    pass


class PromptExecutor:
    """Runs prompts one after another and keeps results between them.

    Args:
        server: has `client_id`, `last_node_id` and `send_sync(event, data, client_id)`.
        node_table: node id -> class.

    After a run: `success`, `status_messages` [(event, data)] and `history_result` {"outputs": {id: UI}, "meta": ...}.
    """

    def __init__(self, server, node_table):
        self.server = server
        self.node_table = node_table
        self.reset()

    def reset(self):
        """Forget all results."""
        self.cache = ResultCache()
        self.instances = {}
        self.status_messages = []
        self.success = True
        self.history_result = {"outputs": {}, "meta": {}}

    def execute(self, prompt, prompt_id, extra_data=None, execute_outputs=()):
        """Run a validated prompt up to the given output nodes. Errors of nodes are reported, not raised."""
        asyncio.run(self.execute_async(prompt, prompt_id, extra_data or {}, execute_outputs))

    async def execute_async(self, prompt, prompt_id, extra_data, execute_outputs):
        nodes.interrupt_processing(False)
        self.server.client_id = extra_data.get("client_id")
        self.status_messages = []
        self.add_message("execution_start", {"prompt_id": prompt_id})
        run = _Run(self, prompt, prompt_id, extra_data)
        comfy.utils.set_progress_bar_global_hook(run.on_progress)
        try:
            with torch.inference_mode():
                self.success = await run.to(execute_outputs)
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
            self.server.last_node_id = None
        self.history_result = run.history()

    def add_message(self, event, data, broadcast=False):
        """Note an event of the run, and send it to the client that queued the prompt (or to all)."""
        data = {**data, "timestamp": int(time.time() * 1000)}
        self.status_messages.append((event, data))
        if broadcast or self.server.client_id is not None:
            self.server.send_sync(event, data, self.server.client_id)


class _Run:
    """One prompt on its way."""

    def __init__(self, executor, prompt, prompt_id, extra_data):
        self.executor = executor
        self.server = executor.server
        self.node_table = executor.node_table
        self.cache = executor.cache
        self.prompt_id = prompt_id
        self.extra_data = extra_data
        self.dynprompt = DynamicPrompt(prompt)
        self.keys = Keys(self.dynprompt, self.node_table, self._fingerprint)
        self.schedule = Schedule(self.dynprompt, self.node_table, lambda node_id: self._result(node_id) is not None)
        self.states = {}
        self.executed = []
        self.returned = {}  # asynchronous nodes: what they returned so far, and the tasks for the rest
        self.expansions = {}  # node id -> (its calls' values with links into their graphs, UI)
        self.owned = {}
        self.current = None
        self.current_inputs = {}

    # --- the run as a whole ------------------------------------------------------------------------------------------

    async def to(self, outputs):
        """Run up to these nodes; whether all went well."""
        try:
            await self._prepare()
            for node_id in outputs:
                self.schedule.add(node_id)
            while self.schedule.waiting:
                node_id = await self._next()
                if await self._advance(node_id):
                    self.schedule.done(node_id)
        except InterruptProcessingException:
            self.executor.add_message("execution_interrupted", self._where(), broadcast=True)
            return False
        except Exception as error:  # a node may raise anything; the run ends with a report
            self.executor.add_message("execution_error", {**self._where(), **self._what(error)})
            return False
        finally:
            for task in self._pending_tasks():
                task.cancel()
        for owner, keys in self.owned.items():
            self.cache.owns(owner, keys)
        self.executor.add_message("execution_success", {"prompt_id": self.prompt_id})
        return True

    async def _prepare(self):
        prompt = self.dynprompt.original_prompt
        self.current = next(iter(prompt))
        owners = {(node_id, node["class_type"]) for node_id, node in prompt.items()}
        self.cache.keep(await self.keys.add(prompt), owners)
        self.executor.instances = {key: obj for key, obj in self.executor.instances.items() if key in owners}
        cached = [node_id for node_id in prompt if self._result(node_id) is not None]
        self.executor.add_message("execution_cached", {"nodes": cached, "prompt_id": self.prompt_id})

    async def _next(self):
        """The next node that can run; waits for asynchronous ones while there is none."""
        while True:
            for node_id in [n for n, returned in self.returned.items() if not _unfinished(returned)]:
                self.schedule.release(node_id, _TASKS)
            node_id = self.schedule.next()
            if node_id is not None:
                return node_id
            tasks = self._pending_tasks()
            if not tasks:
                self._blame_cycle()
            self.current = next(iter(self.returned))
            await asyncio.wait(tasks, timeout=INTERRUPT_POLL, return_when=asyncio.FIRST_COMPLETED)
            nodes.before_node_execution()

    def _pending_tasks(self):
        return [task for returned in self.returned.values() for task in _unfinished(returned)]

    def _blame_cycle(self):
        """Cycles in the queued graph do not pass validation, so the blame is on a node that expanded into one."""
        stuck = list(self.schedule.waiting)
        self.current = next((n for n in stuck if self.dynprompt.get_parent_node_id(n) is not None), stuck[0])
        raise DependencyCycleError("Dependency cycle detected")

    def _where(self):
        real_id = self.dynprompt.get_real_node_id(self.current)
        return {"prompt_id": self.prompt_id, "node_id": real_id,
                "node_type": self.dynprompt.get_node(real_id)["class_type"], "executed": list(self.executed)}

    def _what(self, error):
        name, tb = describe_exception(error)
        return {"exception_message": str(error), "exception_type": name, "traceback": tb,
                "current_inputs": readable(self.current_inputs),
                "current_outputs": list(self.dynprompt.original_prompt)}

    def history(self):
        """UI data of every node that has some, also of those that had it from an earlier run."""
        ids = [*self.dynprompt.original_prompt, *self.dynprompt.ephemeral_prompt]
        shown = {node_id: result for node_id in ids if (result := self._result(node_id)) is not None and result.ui}
        return {"outputs": {node_id: result.ui for node_id, result in shown.items()},
                "meta": {node_id: result.meta for node_id, result in shown.items()}}

    # --- one node ----------------------------------------------------------------------------------------------------

    async def _advance(self, node_id):
        """Bring a node as far as it gets; True when it is done, False when it has to wait for something more."""
        self.current, self.current_inputs = node_id, {}
        cached = self._result(node_id)
        if cached is not None:
            self._send_executed(node_id, cached.ui)
            self._set_state(node_id, "finished")
            return True
        if node_id in self.expansions:
            answers, ui = self.expansions.pop(node_id)
            return self._finish(node_id, answers, ui)
        if node_id not in self.returned and not await self._begin(node_id):
            return False
        answers = [Answer(r.result() if isinstance(r, asyncio.Task) else r, self._class_of(node_id))
                   for r in self.returned.pop(node_id)]
        ui = merged_ui(answers)
        if all(answer.graph is None for answer in answers):
            return self._finish(node_id, answers, ui)
        await self._expand(node_id, answers)
        self.expansions[node_id] = (answers, ui)
        return False

    async def _begin(self, node_id):
        """Call a node; False when it needs lazy inputs first, or when it is asynchronous and not done yet."""
        cls = self._class_of(node_id)
        display_id = self.dynprompt.get_display_node_id(node_id)
        self._set_state(node_id, "running", 0.0, 1.0)
        self.server.last_node_id = display_id
        if self.server.client_id is not None:
            self.server.send_sync("executing", {"node": node_id, "display_node": display_id,
                                                "prompt_id": self.prompt_id}, self.server.client_id)
        inputs, missing, hidden = self._inputs(node_id)
        self.current_inputs = inputs
        target = self._target(node_id, cls, hidden)
        needed = await self._needed_lazy_inputs(node_id, cls, target, inputs, missing)
        for name in needed:
            self.schedule.wait_for(node_id, self._source_of(node_id, name))
        if needed:
            return False
        self.returned[node_id] = await self._call(node_id, target, cls.FUNCTION, inputs)
        if not _unfinished(self.returned[node_id]):
            return True
        self.schedule.block(node_id, _TASKS)
        return False

    def _finish(self, node_id, answers, ui):
        outputs = merged_values(answers, self._class_of(node_id), lambda source: self._result(source).outputs)
        meta = {"node_id": node_id, "display_node": self.dynprompt.get_display_node_id(node_id),
                "parent_node": self.dynprompt.get_parent_node_id(node_id),
                "real_node_id": self.dynprompt.get_real_node_id(node_id)}
        self.cache.results[self.keys[node_id]] = Result(outputs, ui, meta)
        if ui:
            self._send_executed(node_id, ui)
        self._set_state(node_id, "finished")
        self.executed.append(node_id)
        return True

    async def _needed_lazy_inputs(self, node_id, cls, target, inputs, missing):
        if not (overrides(cls, "check_lazy_status") if is_v3(cls) else hasattr(cls, "check_lazy_status")):
            return []
        answers = await _gathered(await self._call(node_id, target, "check_lazy_status", inputs))
        wanted = dict.fromkeys(name for answer in answers if isinstance(answer, list) for name in answer)
        return [name for name in wanted if isinstance(name, str) and (name not in inputs or name in missing)]

    def _source_of(self, node_id, name):
        value = self.dynprompt.get_node(node_id)["inputs"].get(name)
        if not is_link(value):
            raise ValueError(f"Node {node_id} asks for its input {name}, but nothing is linked to it.")
        return value[0]

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _inputs(self, node_id):
        """({name: list of values}, names of the links without a result, hidden values of a V3 node)."""
        cls = self._class_of(node_id)
        declared = cls.INPUT_TYPES()
        inputs, missing = {}, set()
        for name, value in self.dynprompt.get_node(node_id)["inputs"].items():
            _, category, settings = input_info(declared, name)
            if is_link(value) and not (settings or {}).get("rawLink"):
                result = self._result(value[0])
                if result is None or value[1] >= len(result.outputs):
                    missing.add(name)
                    inputs[name] = (None,)
                else:
                    inputs[name] = result.outputs[value[1]]
            elif category is not None:
                inputs[name] = [value]
        if is_v3(cls):
            asked = cls.SCHEMA.hidden if cls.SCHEMA else cls.GET_SCHEMA().hidden
            return inputs, missing, {hidden: self._hidden(node_id, hidden.value) for hidden in asked or ()}
        inputs |= {name: [self._hidden(node_id, kind)] for name, kind in declared.get("hidden", {}).items()}
        return inputs, missing, {}

    def _hidden(self, node_id, kind):
        return {"UNIQUE_ID": node_id, "PROMPT": self.dynprompt.get_original_prompt(), "DYNPROMPT": self.dynprompt,
                "EXTRA_PNGINFO": self.extra_data.get("extra_pnginfo")}.get(kind)

    def _target(self, node_id, cls, hidden):
        """What is called: a locked clone of a V3 class, or the instance of a V1 class, which outlives the prompt."""
        if is_v3(cls):
            return cls.PREPARE_CLASS_CLONE(hidden)
        key = (node_id, self.dynprompt.get_node(node_id)["class_type"])
        if key not in self.executor.instances:
            self.executor.instances[key] = cls()
        return self.executor.instances[key]

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _fingerprint(self, node_id, name, inputs):
        cls = self._class_of(node_id)
        target = cls.PREPARE_CLASS_CLONE({}) if is_v3(cls) else cls
        return await _gathered(await self._call(node_id, target, name, inputs))

    async def _call(self, node_id, target, name, inputs):
        """Call a method for each item of its inputs, or once with the lists where the node wants them.

        Returns one entry a call: what it returned, or the task of an asynchronous one that is not done yet.
        """
        function = getattr(target, name)
        takes_lists = getattr(target, "INPUT_IS_LIST", False)
        results = []
        for index, arguments in enumerate([inputs] if takes_lists else items(inputs)):
            nodes.before_node_execution()
            blocker = blocker_in(arguments, takes_lists)
            if blocker is not None:
                results.append(self._blocked(node_id, blocker))
                continue
            GraphBuilder.set_default_prefix(node_id, index, 0)
            with CurrentNodeContext(self.prompt_id, node_id, index):
                result = function(**arguments)
                if inspect.iscoroutine(result):
                    result = asyncio.create_task(result)
                    await asyncio.sleep(0)  # most are done after their first stretch
                    result = result.result() if result.done() else result
            results.append(result)
        return results

    def _blocked(self, node_id, blocker):
        """Report a blocker's message once; what lies further downstream is blocked in silence."""
        if blocker.message is not None:
            self.server.send_sync("execution_error", {
                "prompt_id": self.prompt_id, "node_id": node_id,
                "node_type": self.dynprompt.get_node(node_id)["class_type"], "executed": list(self.executed),
                "exception_message": f"Execution Blocked: {blocker.message}", "exception_type": "ExecutionBlocked",
                "traceback": [], "current_inputs": [], "current_outputs": []}, self.server.client_id)
        return ExecutionBlocker(None)

    # --- expansion ---------------------------------------------------------------------------------------------------

    async def _expand(self, node_id, answers):
        """Add the graphs that a node returned, and let it wait for the outputs that it takes from them."""
        added = {}
        for answer in answers:
            for new_id, node in (answer.graph or {}).items():
                if node["class_type"] not in self.node_table:
                    raise NodeNotFoundError(f"Node {node_id} expanded into {node['class_type']}, which does not exist.")
                if self.dynprompt.has_node(new_id):
                    raise ValueError(f"Node {node_id} expanded into a node {new_id}, but that id is taken. "
                                     "Let comfy_execution.graph_utils.GraphBuilder make the ids.")
                self.dynprompt.add_ephemeral_node(new_id, node, node_id, node.get("override_display_id", node_id))
                added[new_id] = node
        keys = await self.keys.add(added)
        real_id = self.dynprompt.get_real_node_id(node_id)
        owner = (real_id, self.dynprompt.get_node(real_id)["class_type"])
        self.owned.setdefault(owner, set()).update(keys)
        self.cache.owned.setdefault(owner, set()).update(keys)
        for new_id, node in added.items():
            if getattr(self.node_table[node["class_type"]], "OUTPUT_NODE", False):
                self.schedule.add(new_id)
        for answer in answers:
            if answer.graph is not None:
                for value in answer.values:
                    if is_link(value):
                        self.schedule.wait_for(node_id, value[0])

    # --- events ------------------------------------------------------------------------------------------------------

    def on_progress(self, value, total, preview, prompt_id=None, node_id=None):
        """Hook of the host's progress bars; a bar's step is also where a running node notices an interruption."""
        nodes.before_node_execution()
        context = get_executing_context()
        node_id = node_id or (context.node_id if context else self.current)
        self._set_state(node_id, "running", value, total)
        if preview is not None:
            metadata = {"prompt_id": self.prompt_id, "node_id": node_id, **self._ids(node_id)}
            self.server.send_sync(PREVIEW_IMAGE_WITH_METADATA, (preview, metadata), self.server.client_id)
        self.server.send_sync("progress", {"value": value, "max": total, "prompt_id": self.prompt_id, "node": node_id},
                              self.server.client_id)

    def _set_state(self, node_id, state, value=None, total=None):
        """Send the states of all nodes that have begun."""
        known = self.states.setdefault(node_id, {"value": 0.0, "max": 1.0})
        total = known["max"] if total is None else total
        known |= {"value": total if value is None else value, "max": total, "state": state}
        states = {n: {**known, "node_id": n, "prompt_id": self.prompt_id, **self._ids(n)}
                  for n, known in self.states.items()}
        self.server.send_sync("progress_state", {"prompt_id": self.prompt_id, "nodes": states}, self.server.client_id)

    def _send_executed(self, node_id, ui):
        if self.server.client_id is not None:
            self.server.send_sync("executed", {
                "node": node_id, "display_node": self.dynprompt.get_display_node_id(node_id), "output": ui,
                "prompt_id": self.prompt_id}, self.server.client_id)

    def _ids(self, node_id):
        return {"display_node_id": self.dynprompt.get_display_node_id(node_id),
                "parent_node_id": self.dynprompt.get_parent_node_id(node_id),
                "real_node_id": self.dynprompt.get_real_node_id(node_id)}

    def _result(self, node_id):
        return self.cache.results.get(self.keys[node_id])

    def _class_of(self, node_id):
        return self.node_table[self.dynprompt.get_node(node_id)["class_type"]]


_TASKS = object()
"""What an asynchronous node waits for in the schedule."""


def _unfinished(returned):
    return [task for task in returned if isinstance(task, asyncio.Task) and not task.done()]


async def _gathered(returned):
    """Results of calls, tasks awaited."""
    return [await one if isinstance(one, asyncio.Task) else one for one in returned]
