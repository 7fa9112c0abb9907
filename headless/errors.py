"""What the command line says when something is wrong: the node, its title, the input, the value and the fix.

The host answers with machine-readable error records (ComfyUI's ``POST /prompt`` format); the functions here turn them
into sentences. Nothing in this module imports a host.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

# Exceptions that a node raises because of what it was given, not because it broke: (exception's own name, what to do).
BAD_INPUT = {
    "ValueError": "",
    "FileNotFoundError": "Check the name; the file has to lie in the folder that the host reads for this input.",
    "IsADirectoryError": "This is a folder; name a file in it.",
    "UnidentifiedImageError": "The file is no picture that can be read (PNG, JPEG and WebP can); choose another one.",
    "SafetensorError": "The weight file is truncated or no safetensors file; fetch or build it again.",
    "EOFError": "The file ends too early; fetch or build it again.",
    "UnpicklingError": "The file is truncated or no weight file; fetch or build it again.",
}
NAME_INSIDE = 'Take a name without ".." that does not begin with a slash.'
OUTSIDE = "outside the output folder"  # hosts say so under a bare Exception
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")  # torch says so under a RuntimeError, too
DAMAGED_PICTURE = ("truncated", "broken PNG", "broken data stream")  # Pillow says so under exceptions of many kinds
BLOCKED = "ExecutionBlocked"  # "exception" of a node that stops what comes after it; the rest of the run goes on


class UserError(Exception):
    """Something that the person can put right; its text is shown as it is, without a traceback."""


class UnknownNodes(UserError):
    """The graph names node types that the host does not have: one line for each node."""

    def __init__(self, lines: list[str]):
        super().__init__("\n".join(["The graph has nodes that this host does not know:", *lines]))


def closest(word: str, words: Iterable[str], limit: int = 3) -> list[str]:
    """The entries of `words` most like `word`, case ignored, best first."""
    by_lower = {str(w).lower(): str(w) for w in words}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=limit, cutoff=0.5)
    return [by_lower[w] for w in found]


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """' Did you mean "a" or "b"?', or nothing where no entry is like `word`."""
    found = closest(word, words)
    return f" Did you mean {' or '.join(quote(w) for w in found)}?" if found else ""


def quote(text) -> str:
    return f'"{text}"'


def label(prompt: Mapping, node_id: str) -> str:
    """A node as people know it: '"Title" (#3, KSampler)'; the type is left out where it is the title."""
    node = prompt.get(node_id, {})
    kind = node.get("class_type", "?")
    name = title(prompt, node_id)
    return f"{quote(name)} (#{node_id})" if name == kind else f"{quote(name)} (#{node_id}, {kind})"


def title(prompt: Mapping, node_id: str) -> str:
    node = prompt.get(node_id, {})
    return (node.get("_meta") or {}).get("title") or node.get("class_type") or f"#{node_id}"


def input_spec(object_info: Mapping, class_type: str, name: str) -> tuple | None:
    """(type or option list, settings) of an input, or None. Both V1 ([options], {}) and V3 ("COMBO", {}) forms."""
    declared = object_info.get(class_type, {}).get("input", {})
    for group in ("required", "optional"):
        spec = (declared.get(group) or {}).get(name)
        if spec:
            return spec[0], (spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {})
    return None


def options_of(spec: tuple) -> list | None:
    """The options of a combo input, None for any other type."""
    kind, settings = spec
    if isinstance(kind, (list, tuple)):
        return list(kind)
    return list(settings.get("options") or []) if kind == "COMBO" else None


def describe_validation(refusal: Mapping | None, node_errors: Mapping, prompt: Mapping,
                        object_info: Mapping) -> list[str]:
    """Sentences for the host's answer to a prompt: per-node errors first, else its general one."""
    sentences = [
        _node_error(node_id, error, prompt, object_info)
        for node_id, entry in node_errors.items()
        for error in entry.get("errors", [])
    ]
    if sentences or not refusal:
        return sentences
    if refusal.get("type") == "prompt_no_outputs":
        return ["The graph has no output node (Save Image, Preview Image, ...) that is switched on: nothing to make."]
    return [_with_details(refusal)]


def _node_error(node_id: str, error: Mapping, prompt: Mapping, object_info: Mapping) -> str:
    extra = error.get("extra_info") or {}
    name = extra.get("input_name")
    where = label(prompt, node_id)
    node = prompt.get(node_id, {})
    if name is None:
        return f"{where}: {_with_details(error)}"
    value = extra.get("received_value", node.get("inputs", {}).get(name))
    spec = input_spec(object_info, node.get("class_type", ""), name) or ("*", {})
    reason = _reason(error, name, value, spec, extra, prompt)
    return f"{where}: {reason}{_how_to_set(node_id, name, spec, prompt)}"


def _reason(error: Mapping, name: str, value, spec: tuple, extra: Mapping, prompt: Mapping) -> str:
    kind, settings = spec
    word = error.get("type")
    if word == "required_input_missing":
        return f'input "{name}" ({_kind_name(kind)}) is missing. Connect it or give it a value.'
    if word in ("value_smaller_than_min", "value_bigger_than_max"):
        return f'input "{name}" is {value!r}, but must be {_range(settings)}.'
    if word == "value_not_in_list":
        return _unknown_option(name, value, options_of(spec) or [])
    if word == "invalid_input_type":
        return f'input "{name}" is {value!r}, but must be {_kind_name(kind)}.'
    if word == "return_type_mismatch":
        source = (extra.get("linked_node") or ["?"])[0]
        return (f'input "{name}" takes {_kind_name(kind)}, but is linked to {label(prompt, str(source))}, which gives '
                f"{extra.get('received_type')}. Connect an output of type {kind}.")
    if word == "bad_linked_input":
        return f'input "{name}" is {value!r}, but a link must be [node id, output number].'
    if word == "custom_validation_failed":
        return f'input "{name}" is {value!r}: {_own_words(error, name)}'
    return f'input "{name}": {_with_details(error)}'


def _own_words(error: Mapping, name: str) -> str:
    """The node's own sentence out of 'name - sentence'."""
    details = str(error.get("details") or "")
    said = details.removeprefix(name).removeprefix(" - ").strip() or "the node does not accept it"
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _unknown_option(name: str, value, options: list) -> str:
    if not options:
        return f'input "{name}" is {value!r}, but there is nothing to choose from: no file of this kind was found.'
    shown = ", ".join(str(o) for o in options[:20]) + (f", ... ({len(options)} in all)" if len(options) > 20 else "")
    return (f'input "{name}" is {value!r}, which is not one of its options.{did_you_mean(value, options)} '
            f"Options: {shown}.")


def _how_to_set(node_id: str, name: str, spec: tuple, prompt: Mapping) -> str:
    """A ready --set argument where a widget holds the value."""
    kind, settings = spec
    if options_of(spec) is None and kind not in ("INT", "FLOAT", "STRING", "BOOLEAN"):
        return ""
    options = options_of(spec)
    example = settings.get("default", options[0] if options else None)
    if example in (None, ""):
        return ""
    target = title(prompt, node_id)
    if sum(title(prompt, other) == target for other in prompt) > 1:
        target = f"#{node_id}"
    return f' For example: --set "{target}.{name}={example}"'


def _range(settings: Mapping) -> str:
    low, high = settings.get("min"), settings.get("max")
    if low is None or high is None:
        return f"at least {low}" if high is None else f"at most {high}"
    return f"between {low} and {high}"


def _kind_name(kind) -> str:
    if isinstance(kind, (list, tuple)):
        return "one of its options"
    return {"INT": "a whole number", "FLOAT": "a number", "STRING": "a text", "BOOLEAN": "true or false",
            "COMBO": "one of its options"}.get(kind, str(kind))


def _with_details(error: Mapping) -> str:
    message, details = str(error.get("message") or "").strip(), str(error.get("details") or "").strip()
    return f"{message} ({details})" if details and details not in message else message


def describe_failure(failure: Mapping, prompt: Mapping, out: Path | None = None) -> str:
    """A sentence for the host's `execution_error` record: who failed, on which settings, why and what helps.

    `out` is the folder of results: the advice for files that are read does not fit what is missing there.
    """
    node_id = str(failure.get("node_id"))
    reason = str(failure.get("exception_message") or "").strip() or _exception_name(failure)
    hint = BAD_INPUT.get(_exception_name(failure), "")
    if _out_of_memory(failure):
        reason, hint = "the memory is not enough for it.", "Lower width, height or batch_size."
    elif OUTSIDE in reason:
        hint = NAME_INSIDE
    elif out is not None and str(out) in reason:
        hint = ""
    settings = ", ".join(f"{name} = {value!r}" for name, value in _settings(prompt, node_id))
    lines = [f"{label(prompt, node_id)} failed: {reason}"]
    if hint:
        lines.append(hint)
    if settings:
        lines.append(f"Its inputs: {settings}")
    return "\n".join(lines)


def _settings(prompt: Mapping, node_id: str) -> list[tuple]:
    """Constant inputs of a node; long texts are cut."""
    inputs = prompt.get(node_id, {}).get("inputs", {})
    return [(k, v[:80] + "..." if isinstance(v, str) and len(v) > 80 else v)
            for k, v in inputs.items() if not isinstance(v, list)]


def _exception_name(failure: Mapping) -> str:
    return str(failure.get("exception_type") or "an unknown error").rsplit(".", 1)[-1]


def _out_of_memory(failure: Mapping) -> bool:
    said = str(failure.get("exception_message"))
    return _exception_name(failure).endswith("MemoryError") or (
        _exception_name(failure) == "RuntimeError" and any(words in said for words in OUT_OF_MEMORY))


def is_bad_input(failure: Mapping) -> bool:
    """Whether a node failed because of what it was given (exit code 2) or broke while running (1)."""
    said = str(failure.get("exception_message"))
    return _exception_name(failure) in BAD_INPUT or any(words in said for words in (*DAMAGED_PICTURE, OUTSIDE))
