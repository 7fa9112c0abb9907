"""The pack uses no host symbol outside the contract, keeps the layers apart and leaves the host as it found it."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VERSIONS = ("0.3.64", "0.33.0")
HOST_PACKAGES = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
)
NUMERIC_ROOMS = ("samplers", "models", "operators", "training")
ROOMS = ("nodes", *NUMERIC_ROOMS)

#: {symbol: why}. A symbol that one host lacks may be used where the same file asks `hasattr(..., "name")` before.
GUARDED: dict[str, str] = {}

#: Kinds whose attributes are Python's own and no longer the host's names.
LEAVES = ("constant", "attribute", "property", "function", "enum")

MUTATORS = {
    "append",
    "extend",
    "insert",
    "remove",
    "pop",
    "clear",
    "update",
    "setdefault",
    "sort",
    "reverse",
    "add",
    "discard",
}


def contracts() -> dict[str, dict]:
    return {v: json.loads((HERE / f"{v}.json").read_text(encoding="utf-8"))["symbols"] for v in VERSIONS}


def pack_files() -> list[Path]:
    files = [ROOT / "__init__.py"]
    for room in ROOMS:
        files += sorted((ROOT / room).rglob("*.py"))
    return [f for f in files if "__pycache__" not in f.parts and "work" not in f.relative_to(ROOT).parts]


class Scan(ast.NodeVisitor):
    """The host symbols that one source file uses, what it imports, and what it writes to while it is imported."""

    def __init__(self, source: str):
        self.symbols: set[str] = set()
        self.imports: set[str] = set()
        self.writes: list[int] = []
        self.asked: set[str] = set()
        self._names: dict[str, str] = {}
        self._depth = 0
        tree = ast.parse(source)
        for node in ast.walk(tree):
            self._read_import(node)
        self.visit(tree)

    def _read_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.imports.add(alias.name)
                if alias.name.split(".")[0] in HOST_PACKAGES:
                    self.symbols.add(alias.name)
                    local = alias.asname or alias.name.split(".")[0]
                    self._names[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            self.imports.update(f"{module}{'' if module.endswith('.') else '.'}{a.name}" for a in node.names)
            if node.level == 0 and module.split(".")[0] in HOST_PACKAGES:
                for alias in node.names:
                    self.symbols.add(f"{module}.{alias.name}")
                    self._names[alias.asname or alias.name] = f"{module}.{alias.name}"

    def _chain(self, node: ast.AST) -> str | None:
        """The host's dotted name that an expression spells, None for anything else."""
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self._names:
            return None
        return ".".join([self._names[node.id], *reversed(parts)])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self._chain(node)
        if chain is None:
            self.generic_visit(node)
        else:
            self.symbols.add(chain)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", None)
        if name in ("hasattr", "getattr") and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            if name == "hasattr" or len(node.args) == 3:
                self.asked.add(str(node.args[1].value))
            elif chain := self._chain(node.args[0]):
                self.symbols.add(f"{chain}.{node.args[1].value}")
        if self._depth == 0:
            if name in ("setattr", "delattr") and node.args and self._chain(node.args[0]):
                self.writes.append(node.lineno)
            method = node.func
            if isinstance(method, ast.Attribute) and method.attr in MUTATORS and self._host_object(method.value):
                self.writes.append(node.lineno)
        self.generic_visit(node)

    def _host_object(self, node: ast.AST) -> bool:
        while isinstance(node, ast.Subscript):
            node = node.value
        return self._chain(node) is not None

    def _written(self, target: ast.AST) -> None:
        if self._depth == 0 and isinstance(target, (ast.Attribute, ast.Subscript)) and self._host_object(target):
            self.writes.append(target.lineno)
        for element in getattr(target, "elts", []):
            self._written(element)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._written(target)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._written(node.target)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._written(target)
        self.generic_visit(node)

    def _inside(self, node: ast.AST) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _inside


def is_known(symbol: str, contract: dict) -> bool:
    """Whether the contract has the symbol, or an attribute of a value that it has."""
    parts = symbol.split(".")
    for end in range(1, len(parts) + 1):
        entry = contract.get(".".join(parts[:end]))
        if entry is None:
            return False
        if entry["kind"] in LEAVES:
            return True
    return True


def outside_contract(scan: Scan) -> dict[str, list[str]]:
    """{symbol: versions that lack it} of what the file uses beyond the contract."""
    faults: dict[str, list[str]] = {}
    for symbol in sorted(scan.symbols):
        lacking = [v for v, symbols in contracts().items() if not is_known(symbol, symbols)]
        guarded = symbol in GUARDED and symbol.rpartition(".")[2] in scan.asked
        if lacking and not (guarded and len(lacking) < len(VERSIONS)):
            faults[symbol] = lacking
    return faults


def _room(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


@pytest.fixture(scope="module")
def scans() -> dict[Path, Scan]:
    return {file: Scan(file.read_text(encoding="utf-8")) for file in pack_files()}


def test_the_pack_is_scanned(scans):
    assert {"nodes", "samplers", "__init__.py"} <= {_room(f) for f in scans}
    assert any(scan.symbols for scan in scans.values())


def test_host_symbols_are_in_the_contract_of_both_versions(scans):
    faults = {str(f.relative_to(ROOT)): outside_contract(s) for f, s in scans.items() if outside_contract(s)}
    assert faults == {}, "add a stand-in and dump the contract again, or use what both hosts have"


def test_numerics_do_not_know_the_host(scans):
    faults = [str(f.relative_to(ROOT)) for f, s in scans.items() if _room(f) in NUMERIC_ROOMS and s.symbols]
    assert faults == []


def test_nothing_imports_the_embedded_host(scans):
    faults = [
        str(f.relative_to(ROOT)) for f, s in scans.items() if any("headless" in name.split(".") for name in s.imports)
    ]
    assert faults == []


def test_import_leaves_the_host_alone(scans):
    assert {str(f.relative_to(ROOT)): s.writes for f, s in scans.items() if s.writes} == {}


def test_the_contract_covers_every_stand_in():
    """A stand-in that was added after the dump is held to nothing; this asks for a new dump."""
    spec = importlib.util.spec_from_file_location("contract_surface", HERE / "surface.py")
    surface = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(surface)
    claims = surface.claimed_names(ROOT / "headless" / "host")
    for version in VERSIONS:
        recorded = json.loads((HERE / f"{version}.json").read_text(encoding="utf-8"))
        known = {*recorded["symbols"], *recorded["missing"]}
        new = [f"{m}.{n}" for m, names in claims.items() if m not in recorded["missing"] for n in names]
        assert [name for name in new if name not in known] == [], f"dump {version} again"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import comfy.samplers\ncomfy.samplers.no_such_thing()", "comfy.samplers.no_such_thing"),
        ("import comfy.samplers as s\ndef f(): return s.nothing.at.all", "comfy.samplers.nothing.at.all"),
        ("from comfy.ldm.modules import distributions", "comfy.ldm.modules.distributions"),
        ("from comfy_api.latest import io\nx = io.Fancy.Input('a')", "comfy_api.latest.io.Fancy.Input"),
        ("import comfy\ndef f():\n    return getattr(comfy, 'secret')", "comfy.secret"),
    ],
)
def test_the_scan_finds_foreign_symbols(source, fault):
    assert fault in outside_contract(Scan(source))


@pytest.mark.parametrize(
    "source",
    [
        "import comfy.samplers\ncomfy.samplers.CFGGuider.sample = None",
        "import comfy.samplers\ncomfy.samplers.SCHEDULER_NAMES.append('mine')",
        "import comfy.samplers\ncomfy.samplers.SCHEDULER_HANDLERS['mine'] = None",
        "from comfy import samplers\nsamplers.SCHEDULER_NAMES += ['mine']",
        "from comfy import samplers\nsetattr(samplers, 'mine', 1)",
        "import comfy.samplers\nif True:\n    del comfy.samplers.KSAMPLER",
    ],
)
def test_the_scan_finds_writes_at_import(source):
    assert Scan(source).writes


def test_the_scan_lets_good_code_pass():
    source = (
        "import comfy.samplers\ndef f(fn):\n    names = []\n    names.append(1)\n    return comfy.samplers.KSAMPLER(fn)"
    )
    scan = Scan(source)
    assert outside_contract(scan) == {} and scan.writes == []


def test_import_linter_contracts():
    """The arrows of the architecture, as written in .importlinter."""
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    assert command, "lint-imports is missing: pip install import-linter"
    done = subprocess.run(
        [command, "--config", str(ROOT / ".importlinter"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
