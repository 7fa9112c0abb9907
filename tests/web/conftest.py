"""The editor in Chromium: a server process per supported frontend, a page per frontend and renderer.

TRAJECTORY_SCREENSHOTS=DIR keeps a picture of the page after every browser test.
"""

import os
import re
from pathlib import Path

import pytest
from editor_pages import SCREENSHOTS, chromium_path, editor_server, oldest_frontend, open_editor

collect_ignore = [] if os.environ.get("COMFYUI_PATH") else ["test_real_host.py"]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with editor_server(tmp_path_factory.mktemp("newest")) as started:
        yield started


@pytest.fixture(scope="session")
def old_server(tmp_path_factory):
    with editor_server(tmp_path_factory.mktemp("oldest"), oldest_frontend()) as started:
        yield started


@pytest.fixture(scope="module")  # not longer: while it lives, no other test of this thread can start an event loop
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=["oldest-classic", "newest-classic", "newest-nodes2"])
def editor(request, browser):
    server = request.getfixturevalue("old_server" if request.param.startswith("oldest") else "server")
    with open_editor(browser, server, vue=request.param.endswith("nodes2")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def screenshot(request):
    yield
    if SCREENSHOTS and "editor" in request.fixturenames:
        name = re.sub(r"[^\w-]+", "_", request.node.name)
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        request.getfixturevalue("editor").page.screenshot(path=f"{SCREENSHOTS}/{name}.png")
