"""One host for all tests of a session: the embedded one, or the real ComfyUI that COMFYUI_PATH names.

The fixture `host` is the same for both: `name`, `version`, `node_table` {id: class}, `object_info()`, `run(prompt)` ->
`trajectory.headless.runtime.RunResult`, `interrupt()`, `forget()` (drop cached results), and the folders `input`,
`output` and `temp`.
"""

import os
from pathlib import Path

import pytest
import real_host
from trajectory.headless import runtime

CHECKOUT = os.environ.get("COMFYUI_PATH")


def pytest_configure(config):
    """Test modules import the host's names at their top, so those have to be there before collection."""
    if CHECKOUT:
        real_host.prepare(Path(CHECKOUT))
    else:
        runtime.activate()


def pytest_report_header(config):
    return f"host: {CHECKOUT or 'embedded'}"


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    chosen = real_host.RealHost() if CHECKOUT else runtime.embedded()
    base = tmp_path_factory.mktemp("host")
    for kind in ("input", "output", "temp"):
        setattr(chosen, kind, base / kind)
    chosen.set_folders(base / "input", base / "output", base / "temp")
    return chosen
