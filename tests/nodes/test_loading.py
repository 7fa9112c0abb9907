"""How the pack gets into a host: by its folder's path, alone, quickly, without a warning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trajectory.headless import runtime

ROOT = Path(runtime.__file__).parents[1]

LOAD_BY_PATH = """
import asyncio, importlib.util, json, sys, time, warnings

host, folder = sys.argv[1:]
sys.path.insert(0, host)
import comfy.sd, comfy_api.latest, nodes

loaded = set(sys.modules)
warnings.simplefilter("error")
start = time.process_time()
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
pack = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

async def classes():
    return await (await pack.comfy_entrypoint()).get_node_list()

ids = [cls.GET_SCHEMA().node_id for cls in asyncio.run(classes())]
seconds = time.process_time() - start
print(json.dumps({"ids": ids, "seconds": seconds, "failures": sys.modules[name + ".nodes"].failures,
                  "modules": sorted({module.split(".")[0] for module in set(sys.modules) - loaded
                                     if not module.startswith(name)})}))
"""


def test_the_pack_loads_by_its_path_alone(host, tmp_path):
    """The second start is timed: the first one after an installation compiles the pack, which the others find done."""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    for _start in range(2):
        run = subprocess.run([sys.executable, "-c", LOAD_BY_PATH, str(runtime.HOST), str(ROOT)], cwd=tmp_path,
                             env=os.environ | compiled, capture_output=True, text=True, timeout=240)
        assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    assert loaded["failures"] == {} and run.stderr == ""
    assert sorted(loaded["ids"]) == sorted(name for name in host.node_table if name.startswith("Trajectory"))
    assert not {"trajectory", "diffusers", "transformers"} & set(loaded["modules"])
    assert loaded["seconds"] < 0.3


def test_the_embedded_host_does_not_take_the_place_of_a_real_one(monkeypatch, tmp_path):
    real = type(sys)("folder_paths")
    real.__file__ = str(tmp_path / "ComfyUI" / "folder_paths.py")
    monkeypatch.setitem(sys.modules, "folder_paths", real)
    before = list(sys.path)
    with pytest.raises(RuntimeError, match="is already imported from .*--comfyui PATH"):
        runtime.activate()
    assert sys.path == before
