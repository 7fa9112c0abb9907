"""Which node is running: progress bars and messages ask for it."""

import contextvars
from typing import NamedTuple


class ExecutionContext(NamedTuple):
    prompt_id: str
    node_id: str
    list_index: int | None


current_executing_context: contextvars.ContextVar[ExecutionContext | None] = contextvars.ContextVar(
    "current_executing_context", default=None)


def get_executing_context() -> ExecutionContext | None:
    return current_executing_context.get()


class CurrentNodeContext:
    """`with CurrentNodeContext(prompt_id, node_id, list_index):` around the call of a node."""

    def __init__(self, prompt_id: str, node_id: str, list_index: int | None = None):
        self.context = ExecutionContext(prompt_id, node_id, list_index)

    def __enter__(self):
        self.token = current_executing_context.set(self.context)
        return self

    def __exit__(self, *exception):
        current_executing_context.reset(self.token)
