"""Values on their way into and out of node calls: lists, blockers, UI data, graphs to expand into."""

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker, is_link


class Answer:
    """One return value of a node, whichever form it has.

    `values`: one for each output; `ui`: {kind: records} or None; `graph`: nodes to expand into, or None.
    """

    def __init__(self, returned, cls):
        self.ui = self.graph = None
        values = returned
        if isinstance(returned, io.NodeOutput):
            self.ui = returned.ui if isinstance(returned.ui, dict | None) else returned.ui.as_dict()
            self.graph = returned.expand
            values = returned.args
            if returned.block_execution is not None:
                values = ExecutionBlocker(returned.block_execution)
        elif isinstance(returned, dict):
            self.ui, self.graph, values = returned.get("ui"), returned.get("expand"), returned.get("result")
        if isinstance(values, ExecutionBlocker):
            values = (values,) * len(cls.RETURN_TYPES)
        self.values = () if values is None else tuple(values)


def merged_values(answers, cls, outputs_of):
    """For each output the list of what all calls gave.

    Outputs that are lists are joined; a link into a graph is replaced by the results of the linked node, which
    `outputs_of(node_id)` gives.
    """
    outputs = [[] for _ in range(max((len(a.values) for a in answers), default=len(cls.RETURN_TYPES)))]
    are_lists = getattr(cls, "OUTPUT_IS_LIST", None) or [False] * len(outputs)
    for answer in answers:
        for output, value, is_list in zip(outputs, answer.values, are_lists, strict=False):
            if answer.graph is not None and is_link(value):
                output += outputs_of(value[0])[value[1]]
            elif is_list and not isinstance(value, ExecutionBlocker):
                output += value
            else:
                output.append(value)
    return outputs


def merged_ui(answers):
    """UI records of all calls under the keys of the first, or None."""
    uis = [answer.ui for answer in answers if answer.ui]
    return {key: [record for ui in uis for record in ui[key]] for key in uis[0]} if uis else None


def items(inputs):
    """Arguments of each call: shorter lists repeat their last item, and an empty one means no call at all."""
    length = max((len(values) for values in inputs.values()), default=1)
    if not all(inputs.values()):
        return []
    return [{name: values[min(index, len(values) - 1)] for name, values in inputs.items()} for index in range(length)]


def blocker_in(arguments, are_lists):
    """The first blocker among the arguments, or inside a list of them; None when there is none."""
    for value in arguments.values():
        for one in value if are_lists else (value,):
            if isinstance(one, ExecutionBlocker):
                return one
    return None


def readable(inputs):
    """Inputs for an error report: plain values as they are, others as text."""
    plain = (int, float, bool, str, type(None))
    return {name: [value if isinstance(value, plain) else str(value) for value in values]
            for name, values in inputs.items()}
