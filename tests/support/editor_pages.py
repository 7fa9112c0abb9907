"""ComfyUI's editor for tests: server processes, Chromium, and a page in which the editor has booted."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLDEST_FRONTEND = "1.27.10"
START_LIMIT = 120.0
SCREENSHOTS = os.environ.get("TRAJECTORY_SCREENSHOTS")


# --- servers ----------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    url: str
    out: Path
    process: subprocess.Popen
    log: list[str] = field(default_factory=list)

    def ask(self, path: str, data: bytes | dict | None = None, method: str | None = None, **headers):
        """(status, body as bytes, headers) of a request."""
        body = json.dumps(data).encode() if isinstance(data, dict) else data
        request = urllib.request.Request(f"{self.url}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def json(self, path: str, data: dict | None = None):
        status, body, _ = self.ask(path, data)
        assert status == 200, (path, status, body[:500])
        return json.loads(body)


@contextmanager
def running(command: list[str], cwd: Path, pattern: str, env: dict[str, str], out: Path):
    """A server process, from the line of its output that holds its address (group 1 of `pattern`) to the end."""
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    log: list[str] = []
    address: list[str] = []
    ready = threading.Event()

    def read():
        for line in process.stdout:
            log.append(line)
            if not address and (found := re.search(pattern, line)):
                address.append(found[1])
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(START_LIMIT) and address, "the server did not start:\n" + "".join(log)
        yield Server(address[0].rstrip("/"), out, process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(5)


def oldest_frontend() -> Path:
    """Folder with the oldest supported editor, unpacked from PyPI on first use."""
    cache = ROOT / ".pytest_cache" / "frontends"
    folder = cache / OLDEST_FRONTEND
    if not (folder / "comfyui_frontend_package").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        wheel = f"comfyui-frontend-package=={OLDEST_FRONTEND}"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), wheel],
            check=True,
            timeout=300,
        )
        with zipfile.ZipFile(next(cache.glob(f"comfyui_frontend_package-{OLDEST_FRONTEND}-*.whl"))) as archive:
            archive.extractall(folder)
    return folder


@contextmanager
def editor_server(folder: Path, frontend: Path | None = None):
    """`trajectory serve` with the installed editor, or with the one in the folder `frontend`."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    if frontend:
        env["PYTHONPATH"] = os.pathsep.join([str(frontend), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "trajectory.headless.cli", "serve", "--port", "0", "--out", str(folder / "out")]
    with running(command, folder, r"(http://127\.0\.0\.1:\d+)", env, folder / "out") as server:
        yield server


# --- the browser ------------------------------------------------------------------------------------------------------


def chromium_path() -> str:
    """The system's Chromium; installed with apt where that is allowed."""
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "-qq", *command], capture_output=True, timeout=600)
        if found := shutil.which("chromium"):
            return found
    raise RuntimeError(
        "The browser tests need Chromium: install the package 'chromium' (Debian, Fedora, Arch) or 'chromium-browser' "
        "(Ubuntu), or name one with the environment variable CHROMIUM."
    )


READY = """() => {
    const app = window.app ?? window.comfyAPI?.app?.app
    if (!app?.graph || !app.extensionManager || !window.LiteGraph?.registered_node_types?.SaveImage) return false
    window.app = app
    return true
}"""

#: One message of 1.27.10 in every set-up, also with a real host.
HARMLESS = ("Cannot read properties of undefined (reading 'id')",)


class Editor:
    """A booted editor page. `vue` tells whether it draws nodes as Nodes 2.0."""

    def __init__(self, page, server: Server, vue: bool):
        self.page, self.server, self.vue = page, server, vue
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def boot(self) -> None:
        self.server.ask("/api/settings/Comfy.VueNodes.Enabled", json.dumps(self.vue).encode(), "POST")
        self.server.ask("/api/settings/Comfy.TutorialCompleted", b"true", "POST")
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY, timeout=90_000)
        self.page.wait_for_timeout(500)  # the editor opens its start graph and dialogs after it is ready

    def run(self, script: str, argument=None):
        """The value of a JavaScript function of one argument."""
        return self.page.evaluate(script, argument)

    def load(self, workflow: dict) -> None:
        self.run("workflow => app.loadGraphData(workflow)", workflow)

    def help_pictures(self, node_id: str) -> list[dict]:
        """Address and loaded width of each picture on the help page of a node, opened as a user does."""
        self.page.keyboard.press("Escape")  # the oldest editor tells of its start graph's missing nodes in a dialog
        self.run("""id => {
            app.graph.clear()
            const node = window.LiteGraph.createNode(id)
            app.graph.add(node)
            app.canvas.centerOnNode(node)
        }""", node_id)  # fmt: skip
        self.page.wait_for_timeout(500)  # an editor that still follows the clearing shows no buttons for a selection
        self.run("() => app.canvas.selectNode(app.graph._nodes[0])")
        self.page.get_by_test_id("info-button").click(timeout=15_000)
        pictures = self.page.locator(f'img[src$="{node_id}.png"], img[src$="{node_id}.jpg"]')
        pictures.first.wait_for(state="attached", timeout=15_000)
        return pictures.evaluate_all("""async images => {
            await Promise.all(images.map(image => image.decode().catch(() => null)))
            return images.map(image => ({src: image.src, width: image.naturalWidth}))
        }""")

    def page_faults(self) -> list[str]:
        return [fault for fault in self.faults if not any(known in fault for known in HARMLESS)]


@contextmanager
def open_editor(browser, server: Server, vue: bool):
    context = browser.new_context(viewport={"width": 1600, "height": 900}, service_workers="block")
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    try:
        editor = Editor(context.new_page(), server, vue)
        editor.boot()
        yield editor
    finally:
        context.close()
