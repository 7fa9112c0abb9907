"""Graphs that a node writes (expansion), links, and the value that blocks everything downstream of it."""


def is_link(obj) -> bool:
    """Whether an input's value is `[node id, output index]`."""
    return (isinstance(obj, list) and len(obj) == 2
            and isinstance(obj[0], str) and isinstance(obj[1], (int, float)))


class ExecutionBlocker:
    """An output value that stops the nodes it reaches: with an error message, or silently when it is None."""

    def __init__(self, message):
        self.message = message


class Node:
    """A node of a GraphBuilder."""

    def __init__(self, id, class_type, inputs):
        self.id, self.class_type, self.inputs = id, class_type, inputs
        self.override_display_id = None

    def out(self, index):
        """Link to one of the node's outputs."""
        return [self.id, index]

    def set_input(self, key, value):
        """Set an input; None takes it away."""
        if value is None:
            self.inputs.pop(key, None)
        else:
            self.inputs[key] = value

    def get_input(self, key):
        """The input's value or link; None where it has neither."""
        return self.inputs.get(key)

    def set_override_display_id(self, override_display_id):
        """Show progress and results on another node than the one that expanded."""
        self.override_display_id = override_display_id

    def serialize(self):
        shown_on = {} if self.override_display_id is None else {"override_display_id": self.override_display_id}
        return {"class_type": self.class_type, "inputs": self.inputs, **shown_on}


class GraphBuilder:
    """Writes a graph in the API format with ids that no other node has: "<expanding node>.<call>.<graph>.<id>"."""

    _place = ("", 0, 0)  # the expanding node, its call, and the number that the call's next graph gets

    def __init__(self, prefix=None):
        self.prefix = GraphBuilder.alloc_prefix() if prefix is None else prefix
        self.nodes, self.id_gen = {}, 1

    @classmethod
    def set_default_prefix(cls, prefix_root, call_index, graph_index=0):
        """Called by the executor before each call of a node."""
        cls._place = (prefix_root, call_index, graph_index)

    @classmethod
    def alloc_prefix(cls, root=None, call_index=None, graph_index=None):
        given, place = (root, call_index, graph_index), GraphBuilder._place
        GraphBuilder._place = (*place[:2], place[2] + 1)
        return "".join(f"{known if part is None else part}." for part, known in zip(given, place, strict=True))

    def node(self, class_type, id=None, **kwargs):
        """The node with this id, made if it is new; without an id the next number."""
        if id is None:
            id = str(self.id_gen)
            self.id_gen += 1
        full_id = self.prefix + id
        if full_id not in self.nodes:
            self.nodes[full_id] = Node(full_id, class_type, kwargs)
        return self.nodes[full_id]

    def lookup_node(self, id):
        return self.nodes.get(self.prefix + id)

    def replace_node_output(self, node_id, index, new_value):
        """Point every link to an output somewhere else, or drop those inputs when the new value is None."""
        link = [self.prefix + node_id, index]
        for node in self.nodes.values():
            for key in [key for key, value in node.inputs.items() if is_link(value) and value == link]:
                node.set_input(key, new_value)

    def remove_node(self, id):
        del self.nodes[self.prefix + id]

    def finalize(self):
        """The graph: {id: {"class_type", "inputs"}}."""
        return {node_id: node.serialize() for node_id, node in self.nodes.items()}


def add_graph_prefix(graph, outputs, prefix):
    """A graph with `prefix` before all its ids, and the outputs (links or values) that go with it."""

    def moved(value):
        return [prefix + value[0], value[1]] if is_link(value) else value

    nodes = {prefix + node_id: {"class_type": node["class_type"],
                                "inputs": {key: moved(value) for key, value in node.get("inputs", {}).items()}}
             for node_id, node in graph.items()}
    return nodes, tuple(moved(value) for value in outputs)
