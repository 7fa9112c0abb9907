"""Checks of an API prompt that need no host to run: what makes hosts fail without a sentence that helps.

Ranges, options and types are the host's own business (`validate_prompt`); here stand the shape of the prompt, node
types, links, circles, sizes off the latent grid, which hosts round in silence, and names that lead out of the output
folder, which hosts refuse only after all the work.
"""

import posixpath

from .errors import NAME_INSIDE, UnknownNodes, UserError, label
from .graph import unknown_line

LATENT_GRID = 8
"""Pixels that a latent stands for in the finest latents in use; coarser models cut sizes down further themselves."""


def check_types(prompt: dict, object_info: dict, workflow: dict | None = None) -> None:
    """Raises UserError where this is no prompt, UnknownNodes for node types; `workflow` may tell a node's pack."""
    _check_shape(prompt)
    saved = {node.get("type"): node for node in (workflow or {}).get("nodes", [])}
    unknown = [unknown_line(label(prompt, ident), node["class_type"], saved.get(node["class_type"], {}), object_info)
               for ident, node in prompt.items() if node["class_type"] not in object_info]
    if unknown:
        raise UnknownNodes(unknown)


def check_values(prompt: dict, object_info: dict) -> None:
    """Raises UserError with one line per link that leads nowhere, circle, size off the grid, or name that leads out."""
    problems = [*_link_problems(prompt, object_info), *_size_problems(prompt, object_info), *_name_problems(prompt)]
    problems = problems or _circles(prompt)
    if problems:
        raise UserError("\n".join(problems))


def _check_shape(prompt: dict) -> None:
    for ident, node in prompt.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise UserError(f'Node #{ident} has no "class_type". Export the graph again in API format.')
        if not isinstance(node.get("inputs"), dict):
            kind = node["class_type"]
            raise UserError(f'Node #{ident} ({kind}) has no "inputs". Export the graph again in API format.')


def links_of(node: dict) -> dict[str, list]:
    """Inputs that are links: [node id, output number]."""
    return {name: value for name, value in node["inputs"].items()
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)}


def _link_problems(prompt: dict, object_info: dict) -> list[str]:
    problems = []
    for ident, node in prompt.items():
        for name, (source, slot) in links_of(node).items():
            where = f'{label(prompt, ident)}: input "{name}"'
            if source not in prompt:
                problems.append(f"{where} is linked to node #{source}, which is not in the graph. Connect it again.")
                continue
            outputs = object_info[prompt[source]["class_type"]].get("output") or []
            if not isinstance(slot, int) or not 0 <= slot < len(outputs):
                has = f"has only {len(outputs)}, counted from 0" if outputs else "has no outputs"
                problems.append(f"{where} is linked to output {slot} of {label(prompt, source)}, which {has}. "
                                "Connect it again.")
    return problems


def _size_problems(prompt: dict, object_info: dict) -> list[str]:
    """`width` and `height` of nodes that make latents; the host would cut them down to the grid unasked."""
    problems = []
    for ident, node in prompt.items():
        if "LATENT" not in (object_info[node["class_type"]].get("output") or []):
            continue
        for name in ("width", "height"):
            value = node["inputs"].get(name)
            if isinstance(value, int) and value > 0 and value % LATENT_GRID:
                below = value - value % LATENT_GRID
                problems.append(f'{label(prompt, ident)}: input "{name}" is {value}, which is not a multiple of the '
                                f"latent grid's {LATENT_GRID}. Take {below or LATENT_GRID} or {below + LATENT_GRID}.")
    return problems


def _name_problems(prompt: dict) -> list[str]:
    problems = []
    for ident, node in prompt.items():
        prefix = node["inputs"].get("filename_prefix")
        if isinstance(prefix, str) and posixpath.normpath(prefix.replace("\\", "/")).split("/")[0] == "..":
            problems.append(f'{label(prompt, ident)}: input "filename_prefix" is {prefix!r}, which leads out of the '
                            f"output folder. {NAME_INSIDE}")
    return problems


def _circles(prompt: dict) -> list[str]:
    """One sentence for the first circle of links. Depth first without recursion: graphs can be long chains."""
    done: set[str] = set()
    for start in prompt:
        path, pending = [], [(start, False)]
        while pending:
            ident, leaving = pending.pop()
            if leaving:
                done.add(path.pop())
            elif ident in path:
                names = " -> ".join(label(prompt, n) for n in [ident, *reversed(path[path.index(ident):])])
                return [f"The links run in a circle: {names}. Take one of them away."]
            elif ident not in done:
                path.append(ident)
                pending.append((ident, True))
                pending += [(source, False) for source, _ in links_of(prompt[ident]).values()]
    return []


def needed(prompt: dict, object_info: dict) -> set[str]:
    """Ids of the nodes that run: output nodes and everything that they need."""
    pending = [ident for ident, node in prompt.items() if object_info[node["class_type"]].get("output_node")]
    found: set[str] = set()
    while pending:
        ident = pending.pop()
        if ident not in found:
            found.add(ident)
            pending += [source for source, _ in links_of(prompt[ident]).values() if source in prompt]
    return found
