"""Which entry of a node's `widgets_values` belongs to which input, as the editor counts them.

The editor writes widget values by position: widget inputs in the order of the schema (required, then optional), plus
entries for widgets that it adds itself (what happens to a seed after a run, an upload button). A pack may also write
them by name. Nothing in this module imports a host.
"""

import datetime
import random
import re
from collections.abc import Iterator

TYPES = {
    "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3", "COLOR", "CURVE", "RANGE", "MARKDOWN",
    "TEXTAREA", "MULTISELECT", "SELECTBUTTON", "TREESELECT", "FILEUPLOAD", "IMAGECOMPARE", "CHART", "GALLERIA",
    "BOUNDING_BOX",
}
SEEDS = ("seed", "noise_seed")
CONTROL_WORDS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
UPLOAD_FLAGS = ("image_upload", "video_upload", "animated_image_upload", "audio_upload")
UPLOAD_BUTTON = ["IMAGEUPLOAD"]  # the editor adds it behind the required inputs; it stands in files, not in schemas
BLANK = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}


def settings(spec: list) -> dict:
    return spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}


def declared(definition: dict) -> Iterator[tuple[str, list]]:
    """(name, spec) of every visible input, required ones first, each group in the schema's order."""
    for group in ("required", "optional"):
        specs = definition.get("input", {}).get(group) or {}
        order = (definition.get("input_order") or {}).get(group) or list(specs)
        for name in order:
            if name in specs:
                yield name, specs[name]


def is_widget(spec: list, forced: bool = False) -> bool:
    """Whether an input has a widget; with `forced`, also where the schema allows only a link (`forceInput`)."""
    options = settings(spec)
    if options.get("forceInput") and not forced:
        return False
    return isinstance(spec[0], list) or options.get("widgetType", spec[0]) in TYPES


def positions(definition: dict, values: list) -> dict[str, int]:
    """Index into `values` of every widget input that has an entry there.

    Old editors also wrote values of `forceInput` inputs; they are counted where the entries left over say so.
    """
    found, end = _walk(definition, values, forced=False)
    link_only = sum(is_widget(spec, True) and not is_widget(spec) for _, spec in declared(definition))
    if link_only and len(values) - end >= link_only:
        found, _ = _walk(definition, values, forced=True)
    return {name: index for name, index in found.items() if index < len(values)}


def _walk(definition: dict, values: list, forced: bool) -> tuple[dict[str, int], int]:
    """(index by name, number of entries counted)."""
    queue = [entry for entry in declared(definition) if is_widget(entry[1], forced)]
    required = definition.get("input", {}).get("required") or {}
    if any(_uploads(spec) for spec in required.values()):
        queue.insert(sum(name in required for name, _ in queue), ("", UPLOAD_BUTTON))
    found, at = {}, 0
    while queue:
        name, spec = queue.pop(0)
        if spec is UPLOAD_BUTTON:
            at += len(values) - at > len(queue)
            continue
        found[name] = at
        value = values[at] if at < len(values) else None
        at += 1 + _controls(name, spec, values[at + 1:])
        queue[:0] = _chosen_inputs(name, spec, value)
    return found, at


def _uploads(spec: list) -> bool:
    return any(settings(spec).get(flag) for flag in UPLOAD_FLAGS)


def _controls(name: str, spec: list, following: list) -> int:
    """How many entries after a widget belong to its control ("fixed", "randomize", ...; combos add a filter text)."""
    controlled = settings(spec).get("control_after_generate", name in SEEDS)
    if not controlled or not following or following[0] not in CONTROL_WORDS:
        return 0
    return 1 if spec[0] == "INT" else 2


def _chosen_inputs(name: str, spec: list, value) -> list[tuple[str, list]]:
    """Inputs that the chosen option of a dynamic combo brings along, named `combo.input`."""
    if spec[0] != "COMFY_DYNAMICCOMBO_V3":
        return []
    for option in settings(spec).get("options", []):
        if option.get("key") == value:
            inputs = declared({"input": option["inputs"]})
            return [(f"{name}.{inner}", inner_spec) for inner, inner_spec in inputs if is_widget(inner_spec)]
    return []


def default(spec: list):
    """What a fresh widget shows; None where it has nothing to show (a list of files that is empty)."""
    options = settings(spec)
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    if choices:
        return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
    return BLANK.get(spec[0])


def resolve_choices(text: str, key: str) -> str:
    """The editor's dynamic prompts: comments go, `{a|b}` becomes one of its branches, `\\{` stays as it is.

    The editor draws at random; here the draw is a function of `key`, so that a run can be repeated.
    """
    return _choose(re.sub(r"/\*[\s\S]*?\*/|//.*", "", text), random.Random(key))


def _choose(text: str, rng: random.Random) -> str:
    out, at = [], 0
    while at < len(text):
        if text[at] == "\\":
            out.append(text[at:at + 2])
            at += 2
        elif text[at] == "{":
            branches, at = _branches(text, at + 1)
            out.append(_choose(rng.choice(branches), rng))
        else:
            out.append(text[at])
            at += 1
    return "".join(out)


def _branches(text: str, at: int) -> tuple[list[str], int]:
    """Split `a|b{c|d}}...` at its own bars up to its closing brace; (branches, index behind the brace)."""
    branches, depth = [""], 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "\\":
            char += text[at:at + 1]
            at += 1
        elif char == "}" and not depth:
            break
        elif char == "|" and not depth:
            branches.append("")
            continue
        depth += (char == "{") - (char == "}")
        branches[-1] += char
    return branches, at


DATE_FIELDS = {"yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}


def fill_in(text: str, widgets_of: dict[str, dict]) -> str:
    """Replace `%Node title.widget%` and `%date:yyyy-MM-dd%` in a file name; other `%...%` are left to the host."""
    def value(match: re.Match) -> str:
        inner = match.group(1)
        if inner.startswith("date:"):
            now = datetime.datetime.now()
            return re.sub("|".join(DATE_FIELDS), lambda m: now.strftime(DATE_FIELDS[m.group()]), inner[5:])
        node, _, widget = inner.partition(".")
        if widget not in widgets_of.get(node, {}):
            return match.group()
        return re.sub(r'[/?<>\\:*|"\x00-\x1f\x7f]', "_", str(widgets_of[node][widget]))

    return re.sub("%([^%]+)%", value, text)
