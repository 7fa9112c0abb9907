"""Check an API prompt before it runs, with the error records that ComfyUI's `POST /prompt` answers with.

An output branch that does not validate is left out and the rest runs. Combos of V3 nodes are checked as hosts from 0.8
on do (0.3.64 lets every value pass).
"""

import inspect
import math
import traceback

from comfy_api.latest import io
from comfy_api.latest._node import overrides
from comfy_execution.graph_utils import ExecutionBlocker

LONG_LIST = 20
"""Combos with more options are not sent back whole."""


def validate_prompt(prompt, node_table, targets=None):
    """(valid, error, good output ids, node errors) for a prompt {id: {"class_type", "inputs"}}.

    Constants are converted to their input's type in place. With `targets` only those output nodes count. Node errors
    are {id: {"errors": [...], "dependent_outputs": [...], "class_type"}}; a valid prompt may have them, too.
    """
    for node_id, node in prompt.items():
        if node.get("class_type") not in node_table:
            return False, _missing_node_type(node_id, node), [], {}
    outputs = [node_id for node_id, node in prompt.items()
               if getattr(node_table[node["class_type"]], "OUTPUT_NODE", False)
               and (targets is None or node_id in targets)]
    if not outputs:
        return False, _error("prompt_no_outputs", "The prompt has no output node"), [], {}

    check = _Check(prompt, node_table)
    good = [node_id for node_id in outputs if check.node(node_id)]
    node_errors = {}
    for output in outputs:
        if output not in good:
            for node_id in check.blamed(output):
                entry = node_errors.setdefault(node_id, {"errors": check.errors[node_id], "dependent_outputs": [],
                                                         "class_type": prompt[node_id]["class_type"]})
                entry["dependent_outputs"].append(output)
    if good:
        return True, None, good, node_errors
    details = "\n".join(f"{e['message']}: {e['details']}" for output in outputs for e in check.errors[output])
    refusal = _error("prompt_outputs_failed_validation", "No output of the prompt is valid", details)
    return False, refusal, [], node_errors


def input_info(class_inputs, name):
    """(type, "required" | "optional" | "hidden", settings) of an input, or three None for an unknown one."""
    for category in ("required", "optional", "hidden"):
        if name in class_inputs.get(category, {}):
            spec = class_inputs[category][name]
            return spec[0], category, spec[1] if len(spec) > 1 and category != "hidden" else {}
    return None, None, None


def is_v3(cls):
    return issubclass(cls, io.ComfyNode)


def accepts(received, declared):
    """Whether an output type may be linked to an input type; both may be comma lists, and "*" takes all."""
    if not received != declared:  # the host's types redefine "!=" only
        return True
    if not isinstance(received, str) or not isinstance(declared, str):
        return False
    return not {t.strip() for t in received.split(",")}.isdisjoint(t.strip() for t in declared.split(","))


def describe_exception(error):
    """(full type name, traceback lines) of an exception."""
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return name, traceback.format_tb(error.__traceback__)


class _Check:
    """One validation: visits each node once, inputs before the node that uses them."""

    def __init__(self, prompt, node_table):
        self.prompt = prompt
        self.node_table = node_table
        self.valid = {}
        self.errors = {}
        self.path = []

    def node(self, node_id, user=None, link=None):
        """Whether a node and all that it depends on are valid. `user` is the input that is linked to it, if any."""
        if node_id in self.path:
            self._blame_cycle(self.path[self.path.index(node_id):])
            return False
        if node_id not in self.valid:
            errors = self.errors.setdefault(node_id, [])
            self.path.append(node_id)
            try:
                inputs_valid = self._inputs(node_id, errors)
            except Exception as error:  # INPUT_TYPES and validation functions may raise anything
                errors[:] = [_exception(error, user, link)]
                inputs_valid = False
            self.path.pop()
            self.valid[node_id] = inputs_valid and not errors
        return self.valid[node_id]

    def blamed(self, output):
        """The nodes with errors that an output depends on."""
        found, todo = {}, [output]
        while todo:
            node_id = todo.pop()
            if node_id not in found:
                found[node_id] = bool(self.errors.get(node_id))
                todo += [v[0] for v in self.prompt[node_id].get("inputs", {}).values()
                         if isinstance(v, list) and v and isinstance(v[0], str) and v[0] in self.prompt]
        return [node_id for node_id, has_errors in found.items() if has_errors]

    def _blame_cycle(self, cycle):
        way = " -> ".join(f"{n} ({self.prompt[n]['class_type']})" for n in [*cycle, cycle[0]])
        for node_id in cycle:
            self.errors[node_id].append(_error("dependency_cycle", "Dependency cycle detected", way,
                                               node_id=node_id, cycle_nodes=cycle))

    def _inputs(self, node_id, errors):
        node = self.prompt[node_id]
        cls = self.node_table[node["class_type"]]
        values = node.setdefault("inputs", {})
        class_inputs = cls.INPUT_TYPES()
        own_check = _OwnCheck(cls)
        received = {}
        inputs_valid = True
        for name in [*class_inputs.get("required", {}), *class_inputs.get("optional", {})]:
            declared, category, settings = input_info(class_inputs, name)
            if name not in values:
                if category == "required":
                    errors.append(_error("required_input_missing", "Required input is missing", name, input_name=name))
                continue
            checked = _Input(name, declared, settings)
            if isinstance(values[name], list):
                fault = self._link(checked, values[name], received, own_check.wants_types)
                if fault is None:
                    inputs_valid = self.node(values[name][0], checked, values[name]) and inputs_valid
            else:
                fault = checked.convert(values) or (None if own_check.covers(name) else checked.constant(values[name]))
            if fault is not None:
                errors.append(fault)
        errors += own_check.run(values, class_inputs, received)
        return inputs_valid

    def _link(self, checked, link, received, any_type):
        """The fault of a link, or None. Raises LookupError where the link leads nowhere, as the host does."""
        if len(link) != 2:
            message = "A link must be [node id, output number]"
            return checked.error("bad_linked_input", message, checked.name, received_value=link)
        source_id, slot = link
        if source_id not in self.prompt:
            raise KeyError(f"input {checked.name} is linked to node {source_id}, which is not in the prompt")
        types = self.node_table[self.prompt[source_id]["class_type"]].RETURN_TYPES
        if not isinstance(slot, int) or slot >= len(types):
            raise IndexError(f"input {checked.name} is linked to output {slot} of node {source_id}, "
                             f"which has {len(types)} outputs")
        received[checked.name] = types[slot]
        if any_type or accepts(types[slot], checked.type):
            return None
        details = f"{checked.name} takes {checked.type}, but is linked to an output of type {types[slot]}"
        return checked.error("return_type_mismatch", "Linked to an output of another type", details,
                             received_type=types[slot], linked_node=link)


class _Input:
    """A declared input, and the faults of a constant given to it."""

    CONVERTERS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}

    def __init__(self, name, declared, settings):
        self.name = name
        self.type = declared
        self.settings = settings

    def error(self, kind, message, details, **extra):
        config = extra.pop("input_config", (self.type, self.settings))
        return _error(kind, message, details, input_name=self.name, input_config=config, **extra)

    def convert(self, values):
        """Bring the constant to the input's type, in place. Lists travel wrapped, since a bare list is a link."""
        value = values[self.name]
        if isinstance(value, dict) and "__value__" in value:
            value = values[self.name] = value["__value__"]
        converter = self.CONVERTERS.get(self.type) if isinstance(self.type, str) else None
        if converter is None:
            return None
        try:
            values[self.name] = converter(value)
            if self.type == "FLOAT" and not math.isfinite(values[self.name]):
                raise ValueError("the number has to be finite")
        except (TypeError, ValueError, OverflowError) as error:
            return self.error("invalid_input_type", f"The value is no {self.type}",
                              f"{self.name}: {error}", received_value=value, exception_message=str(error))
        return None

    def constant(self, value):
        """The fault of a constant's value: below min, above max, no option."""
        low, high = self.settings.get("min"), self.settings.get("max")
        if low is not None and value < low:
            return self.error("value_smaller_than_min", f"The value {value} is below the minimum of {low}", self.name,
                              received_value=value)
        if high is not None and value > high:
            return self.error("value_bigger_than_max", f"The value {value} is above the maximum of {high}", self.name,
                              received_value=value)
        options = self.type if isinstance(self.type, list) else self.settings.get("options")
        if options is None or not (isinstance(self.type, list) or self.type == "COMBO"):
            return None
        chosen = value if self.settings.get("multiselect") and isinstance(value, list) else [value]
        if all(one in options for one in chosen):
            return None
        if len(options) > LONG_LIST:
            return self.error("value_not_in_list", "The value is no option",
                              f"{self.name}: {value!r} is none of {len(options)} options", received_value=value,
                              input_config=None)
        return self.error("value_not_in_list", "The value is no option", f"{self.name}: {value!r} is none of {options}",
                          received_value=value)


class _OwnCheck:
    """A node's own validation function; the inputs that it names are left to it."""

    def __init__(self, cls):
        if is_v3(cls):
            clone = cls.PREPARE_CLASS_CLONE(None)
            self.function = clone.validate_inputs if overrides(cls, "validate_inputs") else None
        else:
            self.function = getattr(cls, "VALIDATE_INPUTS", None)
        spec = inspect.getfullargspec(self.function) if self.function else None
        self.names = [name for name in spec.args if name not in ("self", "cls")] if spec else []
        self.takes_all = bool(spec and spec.varkw)
        self.wants_types = "input_types" in self.names

    def covers(self, name):
        return self.takes_all or name in self.names

    def run(self, values, class_inputs, received):
        """One error for each input that the function was given, with what it said. Linked inputs are given as None."""
        if not (self.names or self.takes_all):
            return []
        arguments = {name: None if isinstance(value, list) else value for name, value in values.items()
                     if self.covers(name) and input_info(class_inputs, name)[1] is not None}
        if self.wants_types:
            arguments["input_types"] = received
        answer = self.function(**arguments)
        if answer is True or isinstance(answer, ExecutionBlocker):
            return []
        said = "" if answer is False else f" - {answer}"
        return [_error("custom_validation_failed", "The node refuses its inputs", f"{name}{said}",
                       input_name=name) for name in arguments]


def _exception(error, user, link):
    """Record of an exception; the host tells those of outputs from those of nodes further up."""
    name, tb = describe_exception(error)
    what = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
    if user is None:
        return _error("exception_during_validation", "The check of the node raised an exception", what,
                      exception_type=name, traceback=tb)
    return user.error("exception_during_inner_validation", "The check of the linked node raised an exception", what,
                      exception_message=what, exception_type=name, traceback=tb, linked_node=link)


def _missing_node_type(node_id, node):
    class_type = node.get("class_type")
    title = (node.get("_meta") or {}).get("title")
    if class_type is None:
        message = f"Node '{title or f'ID #{node_id}'}' has no class_type. The prompt is damaged."
    else:
        message = f"Node '{title or class_type}' not found. Its pack is not installed."
    return _error("missing_node_type", message, f"Node ID '#{node_id}'", node_id=node_id, class_type=class_type,
                  node_title=title or class_type)


def _error(kind, message, details="", **extra):
    return {"type": kind, "message": message, "details": details, "extra_info": extra}
