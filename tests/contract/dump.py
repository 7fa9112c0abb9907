"""Write down what a host is, as far as the stand-ins claim to be it.

    python tests/contract/dump.py /path/to/ComfyUI > tests/contract/<version>.json
    python tests/contract/dump.py --embedded

Run with an interpreter that has the host's requirements, on the CPU. The JSON holds one symbol, node or golden per
line: ``symbols`` (kind, arguments), ``missing`` (claimed names that this host lacks), ``nodes`` (what ``/object_info``
says of the core nodes that the stand-ins provide), ``goldens`` (numbers and answers) and ``unanswered`` (questions that
raised).
"""

import argparse
import ast
import contextlib
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import hosts  # noqa: E402
import surface  # noqa: E402


def possible_node_ids(root: Path) -> list[str]:
    """Names in the stand-ins' node modules that may be node ids: classes, and ids written out in schemas."""
    ids: set[str] = set()
    for file in [root / "nodes.py", *sorted((root / "comfy_extras").glob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                ids.add(node.name)
            elif isinstance(node, ast.keyword) and node.arg == "node_id" and isinstance(node.value, ast.Constant):
                ids.add(node.value.value)
    return sorted(ids)


def dump(host: hosts.Host) -> dict:
    """The contract of a running host, as one JSON object."""
    import goldens
    import graphs

    symbols, missing = surface.describe(surface.claimed_names(hosts.STAND_INS))
    numbers, silent = goldens.compute()
    answers, failed = graphs.compute(host)
    ids = [i for i in possible_node_ids(hosts.STAND_INS) if i in host.node_classes]
    return {
        "host": {"version": host.version},
        "symbols": symbols,
        "missing": {name: True for name in missing},
        "nodes": {node_id: hosts.node_info(host, node_id) for node_id in ids},
        "goldens": {**numbers, **answers},
        "unanswered": {**silent, **failed},
    }


def render(contract: dict) -> str:
    """JSON with one entry per line, so that a difference between two hosts is a difference of lines."""
    sections = []
    for section, entries in contract.items():
        lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in entries.items()]
        sections.append(f"{json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?", help="folder with ComfyUI's main.py")
    parser.add_argument("--embedded", action="store_true", help="dump the embedded host instead of a checkout")
    args = parser.parse_args()
    if args.embedded == (args.checkout is not None):
        parser.error("name a checkout or --embedded, one of the two")
    with contextlib.redirect_stdout(sys.stderr):  # hosts print while they start
        host = hosts.embedded_host() if args.embedded else hosts.real_host(args.checkout)
        logging.disable(logging.CRITICAL)
        text = render(dump(host))
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
