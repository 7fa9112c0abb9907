"""What the stand-ins claim to be (read from their source) and what a running host is (read by introspection).

A symbol is a dotted name under the host's own import names: ``comfy.samplers.CFGGuider.sample``. Its description
is a small JSON object; signatures are lists of ``name``, ``name=default``, ``*args``, ``*`` and ``**kwargs`` in their
order, without annotations and without the bound first parameter.
"""

import ast
import enum
import functools
import importlib
import inspect
import re
import textwrap
import types
from pathlib import Path

#: Top-level import names that belong to the host.
HOST_PACKAGES = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "nodes",
    "latent_preview",
    "node_helpers",
)

#: What a loader looks for in a module of nodes; which of them a host's own module has is its business.
LOADER_NAMES = {"NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "comfy_entrypoint"}

#: Attributes of the node interface's classes that point to other classes.
REFERENCES = {"Parent", "Type"}

_LITERALS = (bool, int, float, str, type(None))


# --- the claim (source of the stand-ins) ----------------------------------------------------------------------------


def module_name(root: Path, file: Path) -> str:
    """Dotted import name of ``file`` below ``root``."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        names = [t for target in node.targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
        return [t.id for t in names if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _published(tree: ast.Module) -> list[str] | None:
    """The names in a module's ``__all__``, None where it has none."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(statement.value))
    return None


def _reexports(node: ast.stmt, module: str, is_package: bool, modules: set[str]) -> dict[str, str]:
    """{public name: private module it stands for ('' when it is a plain symbol)} that an import statement publishes."""
    if not isinstance(node, ast.ImportFrom):
        return {}
    package = module if is_package else module.rpartition(".")[0]
    if node.level:
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        source = ".".join(p for p in (package, node.module) if p)
    else:
        source = node.module or ""
    if source.split(".")[0] not in HOST_PACKAGES:
        return {}
    found = {}
    for alias in node.names:
        target = f"{source}.{alias.name}"
        found[alias.asname or alias.name] = target if target in modules else ""
    return found


def claimed_names(root: Path) -> dict[str, list[str]]:
    """{module: [public names]} of every stand-in module below ``root``, by reading its source.

    Modules whose name starts with an underscore count under the public names that their package gives them
    (``comfy_api.latest._io`` as ``comfy_api.latest.io``). ``__all__`` decides what is public where a module has one;
    otherwise imports are public only where a package re-exports host symbols.
    """
    files = {module_name(root, f): f for f in sorted(root.rglob("*.py")) if "__pycache__" not in f.parts}
    modules = set(files)
    claims: dict[str, list[str]] = {}

    def read(public: str, module: str) -> None:
        if public in claims:
            return
        file = files[module]
        is_package = file.name == "__init__.py"
        names: list[str] = []
        claims[public] = names
        tree = ast.parse(file.read_text(encoding="utf-8"))
        published = _published(tree)
        if published is not None:
            names += published
        for statement in tree.body:
            if published is None:
                names += _targets(statement)
            if not is_package:
                continue
            for name, private in _reexports(statement, module, is_package, modules).items():
                if published is None:
                    names.append(name)
                if private and not name.startswith("_"):
                    read(f"{public}.{name}", private)
        claims[public] = sorted({n for n in names if not n.startswith("_")})

    for module in sorted(modules):
        if not any(part.startswith("_") for part in module.split(".")):
            read(module, module)
    for module in claims:
        if module.startswith("comfy_extras."):
            claims[module] = [n for n in claims[module] if n not in LOADER_NAMES and not n.endswith("Extension")]
    return {m: claims[m] for m in sorted(claims)}


# --- the host (introspection) ---------------------------------------------------------------------------------------


def _default(value) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value) if isinstance(value, str) else value.name
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def signature(function, bound: bool = False) -> list[str]:
    """Parameters of ``function`` as strings, in order; ``bound`` drops the first one (self or cls)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ["*args", "**kwargs"]
    if (
        bound
        and parameters
        and parameters[0].kind in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD)
    ):
        parameters = parameters[1:]
    out, star = [], False
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            star = True
        elif p.kind is p.KEYWORD_ONLY and not star:
            out.append("*")
            star = True
        text = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        out.append(text if p.default is p.empty else f"{text}={_default(p.default)}")
    return out


def _constant(value) -> dict:
    out = {"kind": "constant", "type": type(value).__name__}
    is_path = isinstance(value, str) and Path(value).is_absolute()
    if isinstance(value, _LITERALS) and len(repr(value)) <= 120 and not is_path:
        out["value"] = value
    return out


def _host_bases(cls: type) -> list[type]:
    return [c for c in cls.__mro__ if c.__module__.split(".")[0] in HOST_PACKAGES]


@functools.cache
def _instance_attributes(cls: type) -> set[str]:
    """Public attributes that the methods of a class set on ``self``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return set()
    stored = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {n.attr for n in stored if getattr(n.value, "id", "") == "self" and not n.attr.startswith("_")}


def _is_node(cls: type) -> bool:
    module = cls.__module__.split(".")[0]
    return module in ("nodes", "comfy_extras") and (hasattr(cls, "FUNCTION") or hasattr(cls, "GET_SCHEMA"))


def _describe_class(cls: type, name: str, out: dict, depth: int) -> None:
    if issubclass(cls, enum.Enum):
        out[name] = {"kind": "enum", "members": {k: m.value for k, m in cls.__members__.items()}}
        return
    if _is_node(cls):  # its promise is its schema, which is written down apart; V1 and V3 classes differ in the rest
        out[name] = {"kind": "node"}
        return
    out[name] = {"kind": "class", "args": signature(cls)}
    if depth > 2:
        return
    members: dict[str, object] = {}
    for base in reversed(_host_bases(cls)):
        members.update(vars(base))
    for key in sorted(members):
        if key.startswith("_") and key != "__call__":
            continue
        if key in REFERENCES:
            out[f"{name}.{key}"] = {"kind": "constant"}
        else:
            _describe(members[key], f"{name}.{key}", out, depth + 1, owner=cls)
    for key in sorted(set().union(*map(_instance_attributes, _host_bases(cls))) - set(members)):
        out[f"{name}.{key}"] = {"kind": "attribute"}


def _describe(value, name: str, out: dict, depth: int = 0, owner: type | None = None) -> None:
    if isinstance(value, types.ModuleType):
        out[name] = {"kind": "module"}
    elif isinstance(value, staticmethod):
        out[name] = {"kind": "function", "args": signature(value.__func__)}
    elif isinstance(value, classmethod):
        out[name] = {"kind": "function", "args": signature(value.__func__, bound=True)}
    elif isinstance(value, type):
        _describe_class(value, name, out, depth)
    elif inspect.isroutine(value):
        out[name] = {
            "kind": "function",
            "args": signature(value, bound=owner is not None and inspect.isfunction(value)),
        }
    elif isinstance(value, property) or (owner is not None and type(value).__name__ == "classproperty"):
        out[name] = {"kind": "property"}
    else:
        out[name] = _constant(value)


def describe(claims: dict[str, list[str]]) -> tuple[dict[str, dict], list[str]]:
    """Describe the claimed symbols in the host that can be imported now: ({symbol: description}, [missing symbols])."""
    found: dict[str, dict] = {}
    missing: list[str] = []
    for module, names in claims.items():
        try:
            holder = _resolve(module)
        except (ImportError, AttributeError):
            missing.append(module)
            continue
        found[module] = {"kind": "module"}
        for name in names:
            if hasattr(holder, name):
                _describe(getattr(holder, name), f"{module}.{name}", found)
            else:
                missing.append(f"{module}.{name}")
    return found, missing


def _resolve(dotted: str):
    """Import ``dotted``; a public alias of a private module is reached as an attribute of its package."""
    try:
        return importlib.import_module(dotted)
    except ImportError:
        package, _, name = dotted.rpartition(".")
        if not package:
            raise
        return getattr(importlib.import_module(package), name)
