"""Seconds that importing the pack adds to a started host: python benchmarks/import_time.py [/path/to/ComfyUI]

Without a path the embedded host's stand-ins are used. Each of five runs is a fresh process; the best counts, so the
compiling that the first start after an installation does is left out.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import sys, time, warnings, asyncio, importlib.util
root, host = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, host)
import comfy.options
comfy.options.enable_args_parsing()
import nodes, folder_paths, comfy.sd, comfy.samplers, comfy_api.latest, scipy.integrate
before = set(sys.modules)
warnings.simplefilter("error")
start = time.perf_counter()
spec = importlib.util.spec_from_file_location(
    "custom_nodes_trajectory", root + "/__init__.py", submodule_search_locations=[root])
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
seconds = time.perf_counter() - start
heavy = {"diffusers", "transformers", "matplotlib", "pandas"} & (set(sys.modules) - before)
print(f"{seconds:.4f} {len(found)} {','.join(sorted(heavy)) or '-'}")
"""


def measure(host, compiled):
    """(seconds, number of nodes, heavy modules imported) of one fresh process, with bytecode in the folder given."""
    command = [sys.executable, "-c", PROBE, str(ROOT), str(host)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    line = run.stdout.strip().splitlines()[-1]
    seconds, count, heavy = line.split()
    return float(seconds), int(count), heavy


if __name__ == "__main__":
    host = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "headless" / "host"
    with tempfile.TemporaryDirectory() as compiled:
        runs = [measure(host, compiled) for _ in range(5)]
    print(f"pack import beyond the host: {min(runs)[0]:.3f} s for {runs[0][1]} nodes; heavy modules: {runs[0][2]}")
