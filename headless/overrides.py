"""Change inputs of an API prompt from the command line: `--set "Node title.input=value"` and `--seed N`."""

import math
from collections.abc import Iterable

from . import widgets
from .errors import UserError, did_you_mean, input_spec, label, options_of, quote, title
from .strict_json import BadJSON, NoJSON, parse

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_assignment(text: str) -> tuple[str, str]:
    """'Node title.input=value' -> (target, value); a value may hold further equals signs."""
    target, equals, value = text.partition("=")
    if not equals or "." not in target:
        raise UserError(f'--set {quote(text)} is not of the form "Node title.input=value".')
    return target.strip(), value


def apply_overrides(prompt: dict, assignments: Iterable[tuple[str, str]], object_info: dict) -> list[tuple[str, str]]:
    """Set inputs in place; returns the (node id, input) pairs that were set.

    A target is a node's title, `#id`, or its type where only one node is of that type, then a dot and the input.
    Raises UserError with the closest names where it fits nothing or several nodes, or the value does not fit the input.
    """
    changed = []
    for target, text in assignments:
        ident, name = _find(prompt, target, object_info)
        prompt[ident]["inputs"][name] = _parse(text, prompt, ident, name, object_info)
        changed.append((ident, name))
    return changed


def set_seed(prompt: dict, seed: int, object_info: dict) -> list[tuple[str, str]]:
    """Give every seed that is a value (not a link) the value `seed`; returns the (node id, input) pairs.

    Raises UserError where there is none, or where the seed lies outside of a node's range.
    """
    changed = []
    for ident, node in prompt.items():
        for name in widgets.SEEDS:
            if name in node["inputs"] and not isinstance(node["inputs"][name], list):
                node["inputs"][name] = _in_range(seed, prompt, ident, name, object_info)
                changed.append((ident, name))
    if not changed:
        raise UserError(f"--seed {seed}: no node of this graph has a seed of its own.")
    return changed


def _find(prompt: dict, target: str, object_info: dict) -> tuple[str, str]:
    """Split at the last dot; where no node fits, at earlier ones, for inputs that have a dot in their name."""
    dots = [k for k, char in enumerate(target) if char == "."]
    first_miss = None
    for dot in reversed(dots):
        node_name, name = target[:dot], target[dot + 1:]
        fitting = _nodes_called(prompt, node_name)
        if len(fitting) == 1:
            return fitting[0], _input_called(prompt, fitting[0], name, object_info)
        if fitting:
            listed = ", ".join(f'"#{ident}.{name}"' for ident in fitting)
            raise UserError(f'--set "{target}": {len(fitting)} nodes are called "{node_name}". Say which: {listed}.')
        first_miss = first_miss or node_name
    names = [title(prompt, ident) for ident in prompt] + [f"#{ident}" for ident in prompt]
    raise UserError(f'--set "{target}": no node is called "{first_miss}".{did_you_mean(first_miss, names)}'
                    f" Nodes: {', '.join(sorted({label(prompt, ident) for ident in prompt}))}.")


def _nodes_called(prompt: dict, name: str) -> list[str]:
    """Ids of the nodes meant by a title, `#id` or type; the first reading that fits anything counts."""
    if name.startswith("#") and name[1:] in prompt:
        return [name[1:]]
    readings = (
        lambda ident: title(prompt, ident) == name,
        lambda ident: title(prompt, ident).casefold() == name.casefold(),
        lambda ident: prompt[ident]["class_type"] == name,
    )
    for fits in readings:
        found = [ident for ident in prompt if fits(ident)]
        if found:
            return found
    return []


def _input_called(prompt: dict, ident: str, name: str, object_info: dict) -> str:
    node = prompt[ident]
    names = [n for n, _ in widgets.declared(object_info.get(node["class_type"], {}))]
    if name in node["inputs"] or name in names:
        return name
    every = sorted({*names, *node["inputs"]})
    raise UserError(f'--set: {label(prompt, ident)} has no input "{name}".{did_you_mean(name, every)}'
                    f" Inputs: {', '.join(every)}.")


def _parse(text: str, prompt: dict, ident: str, name: str, object_info: dict):
    spec = input_spec(object_info, prompt[ident]["class_type"], name) or ("*", {})
    options = options_of(spec)
    reader = {"INT": _integer, "FLOAT": _number, "BOOLEAN": _truth, "STRING": str}.get(spec[0], _json)
    try:
        return reader(text) if options is None else _option(text, options, spec[1])
    except BadJSON as error:
        raise UserError(f'--set: the value for input "{name}" of {label(prompt, ident)} {error}.') from None
    except ValueError:
        wanted = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}[spec[0]]
        raise UserError(f'--set: input "{name}" of {label(prompt, ident)} is {wanted}, not {text!r}.') from None


def _option(text: str, options: list, settings: dict):
    """The option that reads like `text`; an unknown one is left to the host's own check. Several: a JSON list."""
    if settings.get("multiselect"):
        chosen = _json(text)
        return {"__value__": chosen} if isinstance(chosen, list) else {"__value__": text.split(",")}
    return next((option for option in options if str(option) == text), text)


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _truth(text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE + FALSE:
        raise ValueError(text)
    return word in TRUE


def _json(text: str):
    """JSON where it is JSON, else the text itself; lists are wrapped, because a bare one would be read as a link."""
    try:
        value = parse(text)
    except NoJSON:
        return text
    return {"__value__": value} if isinstance(value, list) else value


def _in_range(seed: int, prompt: dict, ident: str, name: str, object_info: dict) -> int:
    _, settings = input_spec(object_info, prompt[ident]["class_type"], name) or ("INT", {})
    low, high = settings.get("min", seed), settings.get("max", seed)
    if not low <= seed <= high:
        raise UserError(f'--seed {seed}: input "{name}" of {label(prompt, ident)} must be between {low} and {high}.')
    return seed
