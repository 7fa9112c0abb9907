"""The embedded host is what it claims to be: the stand-ins against what real hosts were recorded to be.

`<version>.json` was written by `dump.py` from a real host; the same script dumps the embedded host here, in its own
process. With COMFYUI_PATH the host found there is dumped as well and held against the file of its version.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VERSIONS = ("0.3.64", "0.33.0")
OLDEST, NEWEST = VERSIONS

#: Symbols that only newer hosts have. The pack may use them behind a guard; the reason says why a stand-in is there.
NEWER = {
    "comfy.nested_tensor": "latents of several parts exist since 0.3.67; solvers are tested on the packed form",
    "comfy.utils.pack_latents": "belongs to nested latents",
    "comfy.utils.unpack_latents": "belongs to nested latents",
    "comfy.model_management.intermediate_dtype": "decides the dtype of latents between nodes since 0.18",
}

#: Kinds that read alike: where a value is kept is a class's own business.
DATA = {"constant", "attribute", "property"}

#: What only each host's own executor calls; its form follows the pinned host.
EXECUTOR_ONLY = {"comfy_api.latest.io.ComfyNode.PREPARE_CLASS_CLONE", "comfy_api.latest.io.ComfyNode.INPUT_TYPES"}

#: Switches that starting a host flips.
SWITCHES = {"comfy.options.args_parsing"}

#: Absolute and relative tolerance of numbers; runs accumulate the float32 rounding of some ten operations per step.
TOLERANCE = {"runs/": 1e-5}
DEFAULT_TOLERANCE = 1e-6


def recorded(version: str) -> dict:
    return json.loads((HERE / f"{version}.json").read_text(encoding="utf-8"))


def run_dump(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(HERE / "dump.py"), *arguments],
        capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def embedded() -> dict:
    return run_dump("--embedded")


@pytest.fixture(scope="module", params=VERSIONS)
def host(request) -> dict:
    return recorded(request.param)


# --- symbols --------------------------------------------------------------------------------------------------------


def _is_newer(symbol: str) -> bool:
    return any(symbol == name or symbol.startswith(f"{name}.") for name in NEWER)


def _split(arguments: list[str]) -> tuple[list[str], list[str], bool, bool]:
    """(positional names, keyword-only names, takes *args, takes **kwargs) of a recorded signature."""
    positional, keyword, star = [], [], False
    for text in arguments:
        name = text.split("=")[0]
        if name.startswith("**"):
            continue
        if name.startswith("*"):
            star = True
            continue
        (keyword if star else positional).append(name)
    kwargs = any(a.startswith("**") for a in arguments)
    return positional, keyword, any(a.startswith("*") and len(a) > 1 and a[1] != "*" for a in arguments), kwargs


def _in_order(names: list[str], longer: list[str]) -> bool:
    """Whether ``names`` stand in ``longer`` in the same order."""
    rest = iter(longer)
    return all(name in rest for name in names)


def signature_faults(claimed: list[str], real: list[str], by_position: bool = True) -> list[str]:
    """Why code written against ``claimed`` could fail on ``real``; empty when it cannot.

    Args:
        by_position: calls may pass positional parameters by position, so the host may only add some behind them. A
            newer host has put some between; there calls by keyword have to work.
    """
    positional, keyword, _, takes_more = _split(claimed)
    real_positional, real_keyword, real_args, real_kwargs = _split(real)
    defaults = {text.split("=")[0]: text for text in real if "=" in text}
    faults = []
    if not real_args:
        if by_position and positional != real_positional[: len(positional)]:
            faults.append(f"positional parameters {positional} are no prefix of {real_positional}")
        elif not _in_order(positional, real_positional):
            faults.append(f"positional parameters {positional} are not in this order in {real_positional}")
    for name in keyword:
        if name not in (*real_keyword, *real_positional) and not real_kwargs:
            faults.append(f"keyword {name} is unknown")
    extra = [n for n in (*real_positional, *real_keyword) if n not in (*positional, *keyword)]
    required = [n for n in extra if n not in defaults]
    if required and not takes_more:
        faults.append(f"required parameters are missing: {required}")
    return faults


def test_stand_ins_exist_in_every_host(embedded, host):
    oldest = host["host"]["version"] == OLDEST
    absent = [s for s in embedded["symbols"] if s not in host["symbols"] and not (oldest and _is_newer(s))]
    assert not absent, "stand-ins without a counterpart in the host (or the contract needs a new dump)"


def test_newer_symbols_are_in_the_newest_host_only():
    oldest, newest = recorded(OLDEST)["symbols"], recorded(NEWEST)["symbols"]
    assert [s for s in NEWER if s not in newest or s in oldest] == []


def test_kinds_and_signatures_fit_every_host(embedded, host):
    faults, pinned = {}, host["host"]["version"] == OLDEST
    for symbol, claim in embedded["symbols"].items():
        real = host["symbols"].get(symbol)
        if real is None or (symbol in EXECUTOR_ONLY and not pinned):
            continue
        if claim["kind"] != real["kind"] and not {claim["kind"], real["kind"]} <= DATA:
            faults[symbol] = f"is a {claim['kind']}, the host has a {real['kind']}"
        elif "args" in claim and (why := signature_faults(claim["args"], real["args"], by_position=pinned)):
            faults[symbol] = "; ".join(why)
    assert faults == {}


def test_defaults_and_constants_equal_one_host(embedded):
    """Where the two hosts differ, either value will do."""
    hosts = [recorded(v)["symbols"] for v in VERSIONS]
    faults = {}
    for symbol, claim in embedded["symbols"].items():
        reals = [h[symbol] for h in hosts if symbol in h]
        values = [r["value"] for r in reals if "value" in r]
        if "value" in claim and symbol not in SWITCHES and values and claim["value"] not in values:
            faults[symbol] = (claim["value"], values)
        for argument in claim.get("args", []):
            name, has_default, _ = argument.partition("=")
            theirs = [a for r in reals for a in r.get("args", []) if a.split("=")[0] == name]
            if has_default and theirs and argument not in theirs:
                faults[f"{symbol}({argument})"] = theirs
        for name, value in claim.get("members", {}).items():
            if reals and value not in [r["members"].get(name) for r in reals]:
                faults[f"{symbol}.{name}"] = value
    assert faults == {}


@pytest.mark.parametrize(
    ("claimed", "real", "fits"),
    [
        (["a", "b=1"], ["a", "b=1", "c=2"], True),
        (["a"], ["a", "c"], False),
        (["b", "a"], ["a", "b"], False),
        (["a", "*", "k=1"], ["a", "k=1"], True),
        (["a", "*", "k=1"], ["a"], False),
        (["a"], ["a", "*", "k"], False),
        (["a", "b"], ["*args", "**kwargs"], True),
        (["a", "c"], ["a", "b=1", "c"], False),
        (["*args", "**kwargs"], ["a", "b"], True),
    ],
)
def test_signature_rule(claimed, real, fits):
    assert (signature_faults(claimed, real) == []) is fits


# --- nodes ----------------------------------------------------------------------------------------------------------


def _options_fit(ours: dict, theirs: dict) -> bool:
    """Options are the host's, in its order; a stand-in may offer fewer samplers, and file lists are the folder's."""
    if "options" not in theirs or not theirs["options"]:
        return True
    kept = [o for o in theirs["options"] if o in ours.get("options", [])]
    return bool(kept) and kept == ours["options"]


def test_core_node_schemas_equal_the_pinned_host(embedded):
    faults, pinned = {}, recorded(OLDEST)["nodes"]
    for node_id, ours in embedded["nodes"].items():
        theirs = pinned[node_id]
        for field in ("output", "output_is_list", "output_name", "output_node", "display_name", "category", "hidden"):
            if ours[field] != theirs[field]:
                faults[f"{node_id}.{field}"] = (ours[field], theirs[field])
        for group in ("required", "optional"):
            mine, real = ours["input"].get(group, {}), theirs["input"].get(group, {})
            if list(mine) != list(real):
                faults[f"{node_id}.{group}"] = (list(mine), list(real))
                continue
            for name in mine:
                bare = [{k: v for k, v in e.items() if k != "options"} for e in (mine[name], real[name])]
                if bare[0] != bare[1]:
                    faults[f"{node_id}.{name}"] = tuple(bare)
                elif not _options_fit(mine[name], real[name]):
                    faults[f"{node_id}.{name}.options"] = (mine[name].get("options"), real[name].get("options"))
    assert faults == {}


def test_core_node_inputs_exist_in_the_newest_host(embedded):
    faults, newest = [], recorded(NEWEST)["nodes"]
    for node_id, ours in embedded["nodes"].items():
        theirs = {n: e for group in newest[node_id]["input"].values() for n, e in group.items()}
        for name, entry in ((n, e) for group in ours["input"].values() for n, e in group.items()):
            if theirs.get(name, {}).get("type") != entry["type"]:
                faults.append((node_id, name, entry["type"], theirs.get(name)))
        if newest[node_id]["output"][: len(ours["output"])] != ours["output"]:
            faults.append((node_id, "output", ours["output"], newest[node_id]["output"]))
    assert faults == []


# --- goldens --------------------------------------------------------------------------------------------------------


def _tolerance(name: str) -> float:
    return next((t for prefix, t in TOLERANCE.items() if name.startswith(prefix)), DEFAULT_TOLERANCE)


def agrees(ours, theirs, tolerance: float) -> bool:
    """Equal JSON, numbers within ``tolerance`` (absolute below 1, relative above)."""
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance) or ours == theirs
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(agrees(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(agrees(ours[k], theirs[k], tolerance) for k in ours)
    return ours == theirs


def test_every_question_is_answered(embedded):
    assert embedded["unanswered"] == {}


def test_goldens_of_the_embedded_host(embedded):
    """Every answer equals that of 0.3.64 or, where the hosts differ, that of 0.33.0."""
    hosts = [recorded(v)["goldens"] for v in VERSIONS]
    faults = {
        name: {"embedded": ours, **{v: h.get(name) for v, h in zip(VERSIONS, hosts, strict=True)}}
        for name, ours in embedded["goldens"].items()
        if not any(name in h and agrees(ours, h[name], _tolerance(name)) for h in hosts)
    }
    assert faults == {}


def test_no_golden_is_left_out(embedded):
    """Only schedulers that the embedded host does not offer may be missing."""
    left_out = set(recorded(OLDEST)["goldens"]) - set(embedded["goldens"])
    offered = embedded["nodes"]["BasicScheduler"]["input"]["required"]["scheduler"]["options"]
    assert [n for n in sorted(left_out) if not n.startswith("sigmas/") or n.split("/")[2] in offered] == []


if "COMFYUI_PATH" in os.environ:

    def test_the_real_host_is_still_what_was_recorded():
        real = run_dump(os.environ["COMFYUI_PATH"])
        version = real["host"]["version"]
        assert version in VERSIONS, f"no contract for ComfyUI {version}: write it with dump.py"
        expected = recorded(version)
        goldens = expected["goldens"]
        assert {n for n, v in real["goldens"].items() if not agrees(v, goldens.get(n), _tolerance(n))} == set()
        for section in ("symbols", "nodes"):
            assert {n for n in expected[section] if expected[section][n] != real[section].get(n)} == set()
