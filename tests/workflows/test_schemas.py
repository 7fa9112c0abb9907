"""Ids, input names, their order and option words are a promise: the committed snapshot may only grow at the end.

After adding a node or an input: python tests/workflows/test_schemas.py rewrites schemas.json. Review its difference.
"""

import json
import sys
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("schemas.json")


def describe(node_table):
    """{node id: {"inputs": [[name, type, options]], "outputs": [type]}} of the pack's nodes."""
    snapshot = {}
    for name, cls in sorted(node_table.items()):
        if name.startswith("Trajectory"):
            schema = cls.GET_SCHEMA()
            inputs = [[i.id, i.io_type, list(getattr(i, "options", None) or [])] for i in schema.inputs]
            snapshot[name] = {"inputs": inputs, "outputs": [o.io_type for o in schema.outputs]}
    return snapshot


def test_schemas_only_grow_at_the_end(host):
    now, promised = describe(host.node_table), json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    for name, old in promised.items():
        assert name in now, f"{name} is gone; keep it as a deprecated node"
        new = now[name]
        assert new["outputs"][: len(old["outputs"])] == old["outputs"], name
        for (old_id, old_type, old_options), (new_id, new_type, new_options) in zip(
            old["inputs"], new["inputs"][: len(old["inputs"])], strict=True
        ):
            assert (new_id, new_type) == (old_id, old_type), name
            assert new_options[: len(old_options)] == old_options, f"{name}: {new_id}"
    assert now == promised, "new nodes or inputs: run `python tests/workflows/test_schemas.py` and commit schemas.json"


if __name__ == "__main__":
    from trajectory.headless.runtime import embedded

    SNAPSHOT.write_text(json.dumps(describe(embedded().node_table), indent=1) + "\n", encoding="utf-8")
    sys.exit(0)
