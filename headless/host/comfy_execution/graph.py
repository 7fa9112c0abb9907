"""The graph of a running prompt (the hidden value DYNPROMPT): what was queued, and what nodes added while running."""

from comfy_execution.graph_utils import ExecutionBlocker

__all__ = ["DynamicPrompt", "ExecutionBlocker", "NodeNotFoundError"]


class NodeNotFoundError(Exception):
    pass


def _last(node_id, following):
    """The end of a chain {node: next node}."""
    return _last(following[node_id], following) if node_id in following else node_id


class DynamicPrompt:
    """The queued nodes, the ephemeral ones, and whom each of those descends from and is shown on."""

    def __init__(self, original_prompt):
        self.original_prompt, self.ephemeral_prompt = original_prompt, {}
        self.ephemeral_parents, self.ephemeral_display = {}, {}

    def get_node(self, node_id):
        for prompt in (self.ephemeral_prompt, self.original_prompt):
            if node_id in prompt:
                return prompt[node_id]
        raise NodeNotFoundError(f"Node {node_id} is not in the graph")

    def has_node(self, node_id):
        return node_id in self.all_node_ids()

    def add_ephemeral_node(self, node_id, node_info, parent_id, display_id):
        """Add a node that `parent_id` expanded into; its events are shown on `display_id`."""
        self.ephemeral_parents[node_id], self.ephemeral_display[node_id] = parent_id, display_id
        self.ephemeral_prompt[node_id] = node_info

    def get_parent_node_id(self, node_id):
        return self.ephemeral_parents.get(node_id)

    def get_real_node_id(self, node_id):
        """The queued node that a node descends from."""
        return _last(node_id, self.ephemeral_parents)

    def get_display_node_id(self, node_id):
        """The node that a node's events are shown on."""
        return _last(node_id, self.ephemeral_display)

    def all_node_ids(self):
        return set(self.original_prompt) | set(self.ephemeral_prompt)

    def get_original_prompt(self):
        return self.original_prompt
