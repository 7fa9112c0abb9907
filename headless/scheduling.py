"""In which order nodes run: a node when all that it waits for is done."""

import inspect

from comfy_execution.graph_utils import is_link

from .validation import input_info


class Schedule:
    """The nodes that still have to run, each with the set of what it waits for (node ids, or any other mark)."""

    def __init__(self, dynprompt, node_table, has_result):
        self._dynprompt = dynprompt
        self._node_table = node_table
        self._has_result = has_result
        self.waiting = {}

    def add(self, node_id):
        """Schedule a node and everything upstream that has no result; lazy inputs only when the node asks for them."""
        todo = [node_id]
        while todo:
            node_id = todo.pop()
            if node_id in self.waiting:
                continue
            node = self._dynprompt.get_node(node_id)
            class_inputs = self._class_of(node_id).INPUT_TYPES()
            self.waiting[node_id] = {
                value[0] for name, value in node["inputs"].items()
                if is_link(value) and not self._has_result(value[0]) and not _is_lazy(class_inputs, name)}
            todo += sorted(self.waiting[node_id])

    def wait_for(self, node_id, source_id):
        """Let a node wait for another one, too, unless that has its result already."""
        if not self._has_result(source_id):
            self.add(source_id)
            self.waiting[node_id].add(source_id)

    def block(self, node_id, mark):
        self.waiting[node_id].add(mark)

    def release(self, node_id, mark):
        self.waiting[node_id].discard(mark)

    def done(self, node_id):
        del self.waiting[node_id]
        for blockers in self.waiting.values():
            blockers.discard(node_id)

    def next(self):
        """The node to run now, or None when all of them wait.

        Outputs and asynchronous nodes come first, then what leads to an output in one or two steps: results show early.
        """
        ready = [node_id for node_id, blockers in self.waiting.items() if not blockers]
        if not ready:
            return None
        urgent = {node_id for node_id in self.waiting if self._comes_first(node_id)}
        for _ in range(3):
            for node_id in ready:
                if node_id in urgent:
                    return node_id
            urgent = {source for node_id in urgent for source in self.waiting.get(node_id, ())}
        return ready[0]

    def _comes_first(self, node_id):
        cls = self._class_of(node_id)
        return getattr(cls, "OUTPUT_NODE", False) or inspect.iscoroutinefunction(getattr(cls, cls.FUNCTION))

    def _class_of(self, node_id):
        return self._node_table[self._dynprompt.get_node(node_id)["class_type"]]


def _is_lazy(class_inputs, name):
    _, category, settings = input_info(class_inputs, name)
    return category is not None and bool(settings.get("lazy"))
