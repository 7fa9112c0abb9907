"""The pack in a real ComfyUI, as its users run it: a server process, the pack in custom_nodes, the editor in a browser.

Collected only where COMFYUI_PATH names a checkout.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest
from editor_pages import ROOT, SCREENSHOTS, open_editor, running

CHECKOUT = Path(os.environ["COMFYUI_PATH"]).resolve()
EXAMPLE = "Text to image"


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    """ComfyUI on the CPU with the pack alone in its custom_nodes, linked as a developer would."""
    import comfyui_frontend_package

    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "trajectory").symlink_to(ROOT, target_is_directory=True)
    frontend = Path(comfyui_frontend_package.__file__).parent / "static"
    command = [
        sys.executable, "main.py", "--cpu", "--base-directory", str(base), "--port", str(_free_port()),
        "--database-url", f"sqlite:///{base}/comfyui.db", "--disable-api-nodes", "--front-end-root", str(frontend),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with running(command, CHECKOUT, r"To see the GUI go to: (\S+)", env, base / "output") as server:
        yield server


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def editor(comfyui, browser):
    with open_editor(browser, comfyui, vue=False) as opened:
        yield opened


def test_the_pack_loads_without_a_word(comfyui):
    """The host names the pack once, in its list of import times."""
    said = [line for line in comfyui.log if "trajectory" in line.lower()]
    assert len(said) == 1 and "seconds" in said[0] and "FAILED" not in said[0], said
    info = comfyui.json("/object_info")
    nodes = {name for name, node in info.items() if node["python_module"] == "custom_nodes.trajectory"}
    expected = ("LoadMiniature", "DPMSolverSampler", "TimeSkipScheduler", "PlanInfo")
    assert {f"Trajectory{name}" for name in expected} <= nodes
    for name in nodes:
        assert comfyui.ask(f"/extensions/trajectory/docs/{name}.md")[0] == 200


def test_the_example_paints_a_picture_in_the_editor(editor, comfyui):
    page = editor.page
    assert EXAMPLE in comfyui.json("/api/workflow_templates")["trajectory"]
    editor.load(comfyui.json(f"/api/workflow_templates/trajectory/{EXAMPLE.replace(' ', '%20')}.json"))
    assert editor.run("() => app.graph._nodes.filter(node => node.has_errors).map(node => node.type)") == []
    done = editor.run("""async () => {
        const end = new Promise((resolve, reject) => {
            app.api.addEventListener('execution_success', () => resolve(), {once: true})
            app.api.addEventListener('execution_error', event => reject(event.detail.exception_message), {once: true})
            setTimeout(() => reject('no end of the run'), 240000)
        })
        await app.queuePrompt(0)
        await end
        return true
    }""")
    assert done
    page.wait_for_timeout(1500)
    assert list(comfyui.out.glob("landscape_*.png"))
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        editor.run("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.wait_for_timeout(1500)
        page.screenshot(path=f"{SCREENSHOTS}/real_host.png")
        for picture in comfyui.out.glob("landscape_*.png"):
            shutil.copy(picture, SCREENSHOTS)
    assert editor.page_faults() == []


def test_a_help_page_shows_its_picture(editor):
    pictures = editor.help_pictures("TrajectoryDPMSolverSampler")
    assert pictures and all(picture["width"] > 100 for picture in pictures), pictures


def test_the_log_stays_clean(comfyui):
    """Nothing that was asked of the running host ended in an error or a warning of the pack's."""
    started = next(n for n, line in enumerate(comfyui.log) if "To see the GUI" in line)
    said = comfyui.log[started:]
    assert [line for line in said if "Traceback" in line or "trajectory" in line.lower()] == [], "".join(said)
