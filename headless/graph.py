"""A graph as the editor saves it -> the prompt that a host executes (API format).

Reads workflow version 0.4 (links as arrays) and 1 (links as objects) and needs only the host's `/object_info`:
subgraphs of any depth become nodes "outer:inner"; muted nodes go with everything that needs them; bypassed nodes pass
inputs of the right type through; Reroute, PrimitiveNode, Note and Get/Set nodes, which exist in the editor only, are
resolved. Pure functions on dictionaries; nothing here imports a host.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import widgets
from .errors import UnknownNodes, UserError, closest

MUTED, BYPASSED = 2, 4  # values of a node's "mode"; everything else runs
GRAPH_INPUT, GRAPH_OUTPUT = "-10", "-20"  # node ids that stand for a subgraph's own inputs and outputs in its links

NOTES = {"Note", "MarkdownNote", "Label (rgthree)", "Bookmark (rgthree)", "Fast Groups Muter (rgthree)",
         "Fast Groups Bypasser (rgthree)", "Fast Muter (rgthree)", "Fast Bypasser (rgthree)"}
REROUTES = {"Reroute", "Reroute (rgthree)"}
SETTERS, GETTERS = {"SetNode", "easy setNode"}, {"GetNode", "easy getNode"}
EDITOR_ONLY = NOTES | REROUTES | SETTERS | GETTERS | {"PrimitiveNode"}


@dataclass(frozen=True)
class Link:
    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class Place:
    """Where a widget's value stands in the saved graph: `container[key]`."""

    container: list | dict
    key: int | str

    def write(self, value) -> None:
        self.container[self.key] = value


@dataclass(frozen=True)
class Value:
    """A widget's value and its places in the saved graph (none where it is a default or is shared by instances)."""

    value: object
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Wire:
    """Output `slot` of the node that executes under the id `node`."""

    node: str
    slot: int


SILENT = object()  # the source is muted


@dataclass
class Conversion:
    """`prompt` in API format and the `workflow` it came from; `places` tells where each constant input is saved."""

    prompt: dict
    workflow: dict
    places: dict[tuple[str, str], tuple[Place, ...]] = field(default_factory=dict)


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """API prompt `{id: {"class_type", "inputs", "_meta": {"title"}}}` of a saved graph; see `convert`."""
    return convert(workflow, object_info).prompt


def convert(workflow: dict, object_info: dict) -> Conversion:
    """Raises UserError for broken links and circles, UnknownNodes for node types that `object_info` lacks."""
    workflow = copy.deepcopy(workflow)
    return _Converter(workflow, object_info).run()


class _Graph:
    """One level of a saved graph: the root or a subgraph definition."""

    def __init__(self, raw: dict):
        self.nodes = {str(_identified(node)["id"]): node for node in raw.get("nodes") or []}
        self.links = dict(_links(raw))
        self.inputs = raw.get("inputs") or []
        self.outputs = raw.get("outputs") or []
        self.input_id = str((raw.get("inputNode") or {}).get("id", GRAPH_INPUT))
        self.output_id = str((raw.get("outputNode") or {}).get("id", GRAPH_OUTPUT))

    def in_order(self) -> list[dict]:
        return sorted(self.nodes.values(), key=lambda node: node.get("order") or 0)


def _identified(node) -> dict:
    if not isinstance(node, dict) or node.get("id") is None:
        raise UserError(f"The workflow has a node without an id: {str(node)[:100]}. "
                        "Open it in the editor and save it again.")
    return node


def _links(raw: dict) -> Iterator[tuple[str, Link]]:
    links = raw.get("links") or []
    for link in links.values() if isinstance(links, dict) else links:
        try:
            if isinstance(link, dict):
                ident, *ends = (link[k] for k in ("id", "origin_id", "origin_slot", "target_id", "target_slot"))
            else:
                ident, *ends = link[:5]
            origin, origin_slot, target, target_slot = ends
            yield str(ident), Link(str(origin), int(origin_slot), str(target), int(target_slot))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"The workflow has a link that cannot be read: {link!r}. "
                            "Open it in the editor and save it again.") from None


@dataclass
class _Scope:
    """A graph in its place: the root, or the inside of one subgraph node (`host`, which lives in `parent`)."""

    graph: _Graph
    path: tuple[str, ...] = ()
    parent: "_Scope | None" = None
    host: dict | None = None
    shared: bool = False  # its definition serves several nodes, so a value in it cannot be changed for one of them
    promoted: dict[str, Value] = field(default_factory=dict)  # graph input -> value of the host's widget
    overrides: dict[tuple[str, str], Value] = field(default_factory=dict)  # (inner node, widget) -> host's value

    def id_of(self, node: dict) -> str:
        return ":".join((*self.path, str(node["id"])))

    def name_of(self, node: dict) -> str:
        return f'"{_title(node)}" (#{self.id_of(node)})'


def _title(node: dict) -> str:
    return node.get("title") or str(node.get("type"))


class _Converter:
    def __init__(self, workflow: dict, object_info: dict):
        self.workflow = workflow
        self.object_info = object_info
        self.definitions = {str(d["id"]): d for d in _definitions(workflow)}
        self.instances = Counter(str(n.get("type")) for raw in (workflow, *self.definitions.values())
                                 for n in raw.get("nodes", []))
        self.root = _Scope(_Graph(workflow))
        self.scopes: dict[tuple[str, ...], _Scope] = {(): self.root}

    def run(self) -> Conversion:
        executing = list(self._walk(self.root))
        self._refuse_unknown(executing)
        links, values = {}, {}
        for scope, node in executing:
            links[scope.id_of(node)], values[scope.id_of(node)] = self._inputs(scope, node)
        kinds = {scope.id_of(node): node["type"] for scope, node in executing}
        alive = self._without_silenced(kinds, links, values)
        self._finish_texts(executing, values)
        result = Conversion({}, self.workflow)
        for scope, node in executing:
            ident = scope.id_of(node)
            if ident in alive:
                result.prompt[ident] = self._entry(node, values[ident], links[ident])
                result.places |= {(ident, name): v.places for name, v in values[ident].items()
                                  if name not in links[ident]}
        return result

    def _entry(self, node: dict, values: dict[str, Value], links: dict[str, Wire]) -> dict:
        inputs = {name: {"__value__": v.value} if isinstance(v.value, list) else v.value for name, v in values.items()}
        inputs |= {name: [wire.node, wire.slot] for name, wire in links.items()}
        shown = node.get("title") or self.object_info[node["type"]].get("display_name") or node["type"]
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": shown}}

    # --- which nodes execute ---------------------------------------------------------------------------------------

    def _walk(self, scope: _Scope) -> Iterator[tuple[_Scope, dict]]:
        """Nodes that execute, subgraphs replaced by their insides. Opens the scope of every subgraph on the way."""
        for node in scope.graph.in_order():
            if node.get("mode") in (MUTED, BYPASSED) or node.get("type") in EDITOR_ONLY:
                continue
            if str(node.get("type")) in self.definitions:
                yield from self._walk(self._inside(scope, node))
            else:
                yield scope, node

    def _inside(self, scope: _Scope, host: dict) -> _Scope:
        path = (*scope.path, str(host["id"]))
        if path not in self.scopes:
            kind = str(host["type"])
            if kind in _kinds_above(scope):
                raise UserError(f"The subgraph {scope.name_of(host)} contains itself.")
            inner = _Scope(_Graph(self.definitions[kind]), path, scope, host,
                           shared=scope.shared or self.instances[kind] > 1)
            self._read_host_widgets(inner)
            self.scopes[path] = inner
        return self.scopes[path]

    def _refuse_unknown(self, executing: list[tuple[_Scope, dict]]) -> None:
        lines = [unknown_line(f'"{_title(node)}" (#{scope.id_of(node)}, {node.get("type")})', str(node.get("type")),
                              node, self.object_info)
                 for scope, node in executing if node.get("type") not in self.object_info]
        if lines:
            raise UnknownNodes(lines)

    def _without_silenced(self, kinds: dict, links: dict, values: dict) -> set[str]:
        """Ids that stay once nodes that need a muted one are gone; removes dead links from `links` on the way.

        An input needs its link where the schema requires it and no widget stands behind it.
        """
        alive = set(links)
        changed = True
        while changed:
            changed = False
            for ident in list(alive):
                required = self.object_info[kinds[ident]].get("input", {}).get("required") or {}
                dead = [name for name, wire in links[ident].items()
                        if wire is SILENT or wire.node not in alive]
                if any(name in required and name not in values[ident] for name in dead):
                    alive.discard(ident)
                    changed = True
                for name in dead:
                    del links[ident][name]
        return alive

    # --- inputs of a node ------------------------------------------------------------------------------------------

    def _inputs(self, scope: _Scope, node: dict) -> tuple[dict, dict[str, Value]]:
        """Links (name -> Wire or SILENT) and widget values of a node; a link hides a value of the same name."""
        values = self._widget_values(scope, node)
        links = {}
        for index, entry in enumerate(node.get("inputs") or []):
            source = self._source(scope, node, index, str(entry.get("type", "*")), set())
            if isinstance(source, Value):
                values[entry["name"]] = source
            elif source is not None:
                links[entry["name"]] = source
        return links, values

    def _widget_values(self, scope: _Scope, node: dict) -> dict[str, Value]:
        definition = self.object_info[node["type"]]
        saved = {name: Value(v.value, () if scope.shared else v.places) for name, v in _saved(definition, node).items()}
        for name, spec in widgets.declared(definition):
            if name not in saved and widgets.is_widget(spec) and widgets.default(spec) is not None:
                saved[name] = Value(widgets.default(spec))
        inner_id = str(node["id"])
        saved |= {name: value for (ident, name), value in scope.overrides.items() if ident == inner_id}
        return saved

    def _finish_texts(self, executing: list[tuple[_Scope, dict]], values: dict[str, dict[str, Value]]) -> None:
        """Draw the branches of dynamic prompts, and fill `%Node.widget%` into file names, as the editor does."""
        known: dict[str, dict] = {}
        for scope, node in executing:
            plain = {name: v.value for name, v in values[scope.id_of(node)].items()}
            for name in (_title(node), (node.get("properties") or {}).get("Node name for S&R")):
                known.setdefault(str(name), plain)
        for scope, node in executing:
            ident = scope.id_of(node)
            for name, spec in widgets.declared(self.object_info[node["type"]]):
                value = values[ident].get(name)
                if value is None or not isinstance(value.value, str):
                    continue
                text = value.value
                if widgets.settings(spec).get("dynamicPrompts"):
                    text = widgets.resolve_choices(text, f"{ident}.{name}")
                if name == "filename_prefix":
                    text = widgets.fill_in(text, known)
                values[ident][name] = Value(text, value.places)

    # --- following links backwards ---------------------------------------------------------------------------------

    def _source(self, scope: _Scope, node: dict, index: int, wanted: str, seen: set):
        """What feeds input `index` of a node: Wire, Value, SILENT (muted) or None (nothing connected)."""
        entry = node["inputs"][index]
        link_id = entry.get("link")
        if link_id is None:
            return None
        self._no_circle(scope, node, f"input {entry.get('name')}", seen)
        link = scope.graph.links.get(str(link_id))
        if link is None:
            raise UserError(f'{scope.name_of(node)}: input "{entry.get("name")}" has link {link_id}, which is not in '
                            "the file. Connect the input again in the editor and save.")
        return self._origin(scope, node, entry, link, wanted, seen)

    def _origin(self, scope: _Scope, node: dict, entry: dict, link: Link, wanted: str, seen: set):
        if link.origin == scope.graph.input_id and scope.host is not None:
            return self._from_outside(scope, link.origin_slot, wanted, seen)
        origin = scope.graph.nodes.get(link.origin)
        if origin is None:
            raise UserError(f'{scope.name_of(node)}: input "{entry.get("name")}" is linked to node #{link.origin}, '
                            "which is not in the file. Connect the input again in the editor and save.")
        return self._output(scope, origin, link.origin_slot, wanted, seen)

    def _from_outside(self, scope: _Scope, slot: int, wanted: str, seen: set):
        """Input `slot` of the subgraph that `scope` is inside of: the host's link, else its widget, else nothing."""
        try:
            name = scope.graph.inputs[slot]["name"]
        except IndexError:
            raise UserError(f"The subgraph {scope.parent.name_of(scope.host)} has no input number {slot}. "
                            "Open the graph in the editor and save it again.") from None
        for index, entry in enumerate(scope.host.get("inputs") or []):
            if entry["name"] == name:
                source = self._source(scope.parent, scope.host, index, wanted, seen)
                return scope.promoted.get(name) if source is None else source
        return scope.promoted.get(name)

    def _output(self, scope: _Scope, node: dict, slot: int, wanted: str, seen: set):
        """What comes out of output `slot` of a node, `wanted` being the type of the input that asks."""
        self._no_circle(scope, node, f"output {slot}", seen)
        kind = str(node.get("type"))
        if node.get("mode") == MUTED:
            return SILENT
        if kind == "PrimitiveNode":
            return _primitive(scope, node)
        if node.get("mode") == BYPASSED:
            index = _bypass(node, slot, wanted)
            return None if index is None else self._source(scope, node, index, wanted, seen)
        if kind in self.definitions:
            return self._from_inside(self._inside(scope, node), slot, wanted, seen)
        if kind in REROUTES | SETTERS:
            return self._source(scope, node, 0, wanted, seen) if node.get("inputs") else None
        if kind in GETTERS:
            return self._got(scope, node, wanted, seen)
        return None if kind in NOTES else Wire(scope.id_of(node), slot)

    def _from_inside(self, inner: _Scope, slot: int, wanted: str, seen: set):
        graph = inner.graph
        for link in graph.links.values():
            if link.target == graph.output_id and link.target_slot == slot:
                if link.origin == graph.input_id:
                    return self._from_outside(inner, link.origin_slot, wanted, seen)
                if link.origin in graph.nodes:
                    return self._output(inner, graph.nodes[link.origin], link.origin_slot, wanted, seen)
        return None

    def _got(self, scope: _Scope, getter: dict, wanted: str, seen: set):
        """A Get node reads the Set node of its name in its own graph, else in one around it."""
        name = _first_value(getter)
        around = scope
        while around is not None:
            for node in around.graph.nodes.values():
                if node.get("type") in SETTERS and _first_value(node) == name:
                    return self._output(around, node, 0, wanted, seen)
            around = around.parent
        raise UserError(f'{scope.name_of(getter)} gets "{name}", but no Set node has this name.')

    def _no_circle(self, scope: _Scope, node: dict, end: str, seen: set) -> None:
        step = (scope.id_of(node), end)
        if step in seen:
            raise UserError(f"The links run in a circle through {scope.name_of(node)}, {end}.")
        seen.add(step)

    # --- widgets that a subgraph node shows of its inside ----------------------------------------------------------

    def _read_host_widgets(self, inner: _Scope) -> None:
        """Fill `promoted` and `overrides` of the inside of a subgraph node from the node's own widget values.

        The values belong, in this order, to the widgets listed in `properties.proxyWidgets` ([inner node, widget];
        -1 stands for the subgraph's inputs) or, where there is no list, to the graph inputs that feed a widget.
        """
        host = inner.host
        names = self._promoted_inputs(inner.graph, host)
        proxies = [p for p in (host.get("properties") or {}).get("proxyWidgets") or [] if len(p) >= 2]
        saved = host.get("widgets_values_named") or host.get("widgets_values")
        if isinstance(saved, dict):
            found = [(("-1", name), saved, name) for name in names if name in saved]
        else:
            owners = [(str(p[0]), p[1]) for p in proxies] or [("-1", name) for name in names]
            found = [(owner, saved, k) for k, owner in enumerate(owners) if k < len(saved or [])]
        for (ident, widget), container, key in found:
            if container[key] is not None:
                value = Value(container[key], () if inner.parent.shared else (Place(container, key),))
                self._give(inner, ident, widget, value)
        for (ident, widget), value in inner.parent.overrides.items():
            if ident == str(host["id"]):
                self._give(inner, "-1", widget, value)

    @staticmethod
    def _give(inner: _Scope, ident: str, widget: str, value: Value) -> None:
        name = widget if ident == "-1" else _graph_input_of(inner.graph, ident, widget)
        if name is None:
            inner.overrides[ident, widget] = value
        else:
            inner.promoted[name] = value

    def _promoted_inputs(self, graph: _Graph, host: dict) -> list[str]:
        """Names of the graph inputs that feed a widget, in the order in which the host shows them."""
        feeding = set()
        for link in graph.links.values():
            if link.origin == graph.input_id and link.target in graph.nodes and link.origin_slot < len(graph.inputs):
                if self._feeds_widget(graph.nodes[link.target], link):
                    feeding.add(graph.inputs[link.origin_slot]["name"])
        listed = [entry["name"] for entry in host.get("inputs") or []]
        names = [slot["name"] for slot in graph.inputs]
        order = listed if set(names) <= set(listed) else names
        return [name for name in order if name in feeding]

    def _feeds_widget(self, target: dict, link: Link) -> bool:
        inputs = target.get("inputs") or []
        if link.target_slot >= len(inputs):
            return False
        entry = inputs[link.target_slot]
        if entry.get("widget"):
            return True
        definition = self.definitions.get(str(target.get("type")))
        return definition is not None and entry["name"] in self._promoted_inputs(_Graph(definition), target)


def _kinds_above(scope: _Scope | None) -> set[str]:
    kinds = set()
    while scope is not None and scope.host is not None:
        kinds.add(str(scope.host["type"]))
        scope = scope.parent
    return kinds


def _definitions(raw: dict) -> Iterator[dict]:
    """Subgraph definitions of a graph, those inside definitions included."""
    for definition in (raw.get("definitions") or {}).get("subgraphs") or []:
        yield definition
        yield from _definitions(definition)


def _saved(definition: dict, node: dict) -> dict[str, Value]:
    """Widget values that the file holds for a node, by input name; written by position, by name, or both."""
    values, named = node.get("widgets_values"), node.get("widgets_values_named")
    if isinstance(values, dict):
        values, named = None, values
    found: dict[str, Value] = {}
    if isinstance(values, list):
        for name, index in widgets.positions(definition, values).items():
            found[name] = Value(values[index], (Place(values, index),))
    known = {name for name, _ in widgets.declared(definition)}
    for name in named or ():
        if name.split(".")[0] not in known:  # an input of a dynamic combo is called "combo.input"
            continue
        places = found[name].places if name in found else ()
        found[name] = Value(named[name], (*places, Place(named, name)))
    return found


def _first_value(node: dict):
    values = node.get("widgets_values") or [None]
    return next(iter(values.values())) if isinstance(values, dict) else values[0]


def _primitive(scope: _Scope, node: dict) -> Value | None:
    values = node.get("widgets_values")
    if not isinstance(values, list) or not values:
        return None
    return Value(values[0], () if scope.shared else (Place(values, 0),))


def _graph_input_of(graph: _Graph, ident: str, widget: str) -> str | None:
    """Name of the graph input that is linked to a widget of an inner node."""
    for entry in graph.nodes.get(ident, {}).get("inputs") or []:
        link = graph.links.get(str(entry.get("link")))
        if entry["name"] == widget and link is not None and link.origin == graph.input_id:
            return graph.inputs[link.origin_slot]["name"]
    return None


def _bypass(node: dict, slot: int, wanted: str) -> int | None:
    """Index of the input that a bypassed node hands to output `slot`.

    An input of any type takes the one at the same place; else the one at the same place if its type fits, the first
    one of exactly the wanted type, the first one that fits.
    """
    types = [str(entry.get("type", "*")) for entry in node.get("inputs") or []]
    outputs = node.get("outputs") or []
    given = str(outputs[slot].get("type", "*")) if slot < len(outputs) else "*"
    if not types:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(types) else 0
    fits = [_connects(t, given) and _connects(t, wanted) for t in types]
    if slot < len(types) and fits[slot]:
        return slot
    if wanted in types:
        return types.index(wanted)
    return fits.index(True) if True in fits else None


def _connects(a: str, b: str) -> bool:
    """Whether the editor lets an output of type `a` into an input of type `b`: `*` is any, commas list several."""
    if a in ("*", "", "0") or b in ("*", "", "0"):
        return True
    return not set(a.lower().split(",")).isdisjoint(b.lower().split(","))


def unknown_line(name: str, kind: str, saved: dict, object_info: dict) -> str:
    """What can be said about a node of a type that the host lacks; `saved` is the node as the editor saved it."""
    if kind.startswith(("workflow>", "workflow/")):
        return f"- {name}: a group node; open the graph in the editor and convert it to a subgraph."
    if len(kind) == 36 and kind.count("-") == 4:
        return f"- {name}: a subgraph whose definition is not in the file; save the graph again from the editor."
    pack, like = _source(saved), closest(kind, object_info, limit=2)
    if pack:
        return f"- {name}: {pack}"
    return f"- {name}" + (f"; known types like it: {', '.join(like)}" if like else "")


def _source(node: dict) -> str:
    """What a saved node tells about the pack it comes from, or an empty text."""
    properties = node.get("properties") or {}
    registry, repository = properties.get("cnr_id"), properties.get("aux_id")
    version = f" {properties['ver']}" if properties.get("ver") else ""
    if registry == "comfy-core":
        return f"a node of ComfyUI itself{version}"
    if registry:
        return f"from the pack {registry}{version} (https://registry.comfy.org/nodes/{registry})"
    if repository:
        return f"from the pack https://github.com/{repository}"
    searched = properties.get("Node name for S&R")
    return f'saved as "{searched}"' if searched and searched != node.get("type") else ""
