"""`trajectory run --host URL`: against the pack's own server, and against one that refuses, drops the line or hangs."""

import asyncio
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web
from PIL import Image
from trajectory.headless import cli, remote

GRAPHS = Path(__file__).parent / "graphs"
INFO = {
    "LoadImage": {"input": {"required": {"image": [["small.png"], {"image_upload": True}]}},
                  "output": ["IMAGE", "MASK"]},
    "ImageScale": {"input": {"required": {
        "image": ["IMAGE"], "upscale_method": [["bilinear"]], "width": ["INT", {"min": 0, "max": 100}],
        "height": ["INT", {"min": 0, "max": 100}], "crop": [["disabled"]]}}, "output": ["IMAGE"]},
    "SaveImage": {"input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}}, "output": [],
                  "output_node": True},
    "PreviewImage": {"input": {"required": {"images": ["IMAGE"]}}, "output": [], "output_node": True},
}
TOO_WIDE = {"3": {"class_type": "ImageScale", "dependent_outputs": ["4"], "errors": [
    {"type": "value_bigger_than_max", "message": "Value too big", "details": "width",
     "extra_info": {"input_name": "width", "received_value": 999, "input_config": ["INT", {}]}}]}}


@contextmanager
def serving(app):
    """URL of an aiohttp application that runs in a thread."""
    loop, ready, runners = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        ready.set()

    def work():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{runners[0].addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runners[0].cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


class FakeHost:
    """Enough of ComfyUI's server for one run: `answer` is (status, body) for POST /prompt, `end` how the run ends."""

    def __init__(self, end="success", answer=(200, {})):
        self.end, self.answer = end, answer
        self.queued = self.socket = None
        self.running, self.history, self.posted = False, {}, []
        self.app = web.Application()
        self.app.add_routes([
            web.get("/object_info", self._json(lambda request: INFO)), web.get("/ws", self._ws),
            web.post("/prompt", self._prompt), web.get("/history/{id}", self._json(lambda request: self.history)),
            web.get("/queue", self._json(self._queue)), web.post("/queue", self._post),
            web.post("/interrupt", self._post), web.get("/view", self._view)])

    def _json(self, content):
        async def handler(request):
            return web.json_response(content(request))
        return handler

    def _queue(self, _request):
        running = [[0, self.queued["prompt_id"], {}, {}, []]] if self.running else []
        return {"queue_running": running, "queue_pending": []}

    async def _post(self, request):
        self.posted.append((request.path, await request.json()))
        if request.path == "/interrupt":
            await self._finish("execution_interrupted")
        return web.Response()

    async def _ws(self, request):
        self.socket = web.WebSocketResponse()
        await self.socket.prepare(request)
        await self.socket.send_json({"type": "status", "data": {"sid": request.query["clientId"]}})
        async for message in self.socket:
            assert message.type == WSMsgType.TEXT
        return self.socket

    async def _prompt(self, request):
        self.queued = await request.json()
        status, body = self.answer
        if status == 200:
            self.running = True
            asyncio.get_running_loop().create_task(self._run())
            body = {"prompt_id": self.queued["prompt_id"], "number": 1, "node_errors": {}} | body
        return web.json_response(body, status=status)

    async def _send(self, event, **data):
        await self.socket.send_json({"type": event, "data": {"prompt_id": self.queued["prompt_id"], **data}})

    async def _run(self):
        await self._send("execution_start")
        await self._send("executing", node="1", display_node="1")
        await self.socket.send_bytes(b"\x00\x00\x00\x01 a preview")
        await self._send("progress_state", nodes={"1": {"state": "finished", "value": 1, "max": 1}})
        if self.end == "hang":
            return
        if self.end == "drop":
            await self.socket.close()
        await self._finish("execution_error" if self.end == "error" else "execution_success")

    async def _finish(self, event):
        data = {"node_id": "3", "exception_type": "RuntimeError", "exception_message": "no memory", "traceback": []}
        data = data if event == "execution_error" else {}
        images = [{"filename": "first_00001_.png", "subfolder": "kept", "type": "output"}]
        self.history = {self.queued["prompt_id"]: {
            "outputs": {"2": {"images": images}}, "status": {"messages": [[event, data]]}}}
        self.running = False
        if not self.socket.closed:
            await self._send(event, **data)

    async def _view(self, request):
        assert dict(request.query) == {"filename": "first_00001_.png", "subfolder": "kept", "type": "output"}
        return web.Response(body=b"the picture")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.02)
    return tmp_path


def run(fake, *arguments):
    with serving(fake.app) as url:
        return cli.main(["run", str(GRAPHS / "two_branches.json"), "--host", url, *arguments])


def test_result_is_fetched_and_nothing_else_left(folder, capsys):
    fake = FakeHost()
    assert run(fake, "--set", "Larger.width=30") == 0
    assert capsys.readouterr().out == f"Keep it (#2): {Path('out/kept/first_00001_.png')}\n"
    assert [p.name for p in (folder / "out").rglob("*") if p.is_file()] == ["first_00001_.png"]
    assert (folder / "out/kept/first_00001_.png").read_bytes() == b"the picture"
    assert fake.queued["prompt"]["3"]["inputs"]["width"] == 30
    workflow = fake.queued["extra_data"]["extra_pnginfo"]["workflow"]
    assert workflow["nodes"][2]["widgets_values"][1] == 30
    assert len(fake.queued["prompt_id"]) == 36


def test_an_earlier_result_is_not_overwritten(folder):
    (folder / "out/kept").mkdir(parents=True)
    (folder / "out/kept/first_00001_.png").write_bytes(b"mine")
    assert run(FakeHost()) == 0
    assert (folder / "out/kept/first_00001_.png").read_bytes() == b"mine"
    assert (folder / "out/kept/first_00001_ (2).png").read_bytes() == b"the picture"


def test_lost_socket_falls_back_to_the_history(capsys):
    assert run(FakeHost(end="drop")) == 0
    assert "Keep it (#2)" in capsys.readouterr().out


def test_refusal_with_node_errors(folder, capsys):
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""}
    assert run(FakeHost(answer=(400, {"error": error, "node_errors": TOO_WIDE}))) == 2
    assert '"Larger" (#3, ImageScale): input "width" is 999, but must be between 0 and 100' in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_branches_that_the_server_leaves_out(capsys):
    assert run(FakeHost(answer=(200, {"node_errors": TOO_WIDE}))) == 2
    shown = capsys.readouterr()
    assert 'input "width" is 999' in shown.err and "Keep it (#2)" in shown.out


def test_a_node_that_breaks_there(capsys):
    assert run(FakeHost(end="error")) == 1
    shown = capsys.readouterr()
    assert '"Larger" (#3, ImageScale) failed: no memory' in shown.err
    assert "Keep it (#2)" in shown.out, "what was finished is fetched"


def test_server_that_is_broken_or_no_comfyui(capsys):
    assert run(FakeHost(answer=(500, {"oops": 1}))) == 2
    assert "did not take the graph: HTTP 500" in capsys.readouterr().err
    with serving(web.Application()) as url:
        assert cli.main(["run", str(GRAPHS / "two_branches.json"), "--host", url]) == 2
    assert "answers, but not as a ComfyUI server does (HTTP 404)" in capsys.readouterr().err


def test_interruption_reaches_the_server(capsys, monkeypatch):
    fake = FakeHost(end="hang")
    begun = remote.RemoteHost.run

    def run_and_interrupt(self, prompt, workflow, on_event):
        def listen(event, data):
            on_event(event, data)
            if event == "progress_state":
                self.interrupt()
        return begun(self, prompt, workflow, listen)

    monkeypatch.setattr(remote.RemoteHost, "run", run_and_interrupt)
    assert run(fake) == 130
    assert ("/interrupt", {"prompt_id": fake.queued["prompt_id"]}) in fake.posted
    shown = capsys.readouterr()
    assert "stopped. Finished: Picture." in shown.err and "Keep it (#2)" in shown.out


def test_results_outside_of_the_output_folder_are_refused(folder, capsys, monkeypatch):
    fake = FakeHost()
    finish = fake._finish

    async def finish_elsewhere(event):
        await finish(event)
        fake.history[fake.queued["prompt_id"]]["outputs"]["2"]["images"][0]["subfolder"] = "../.."

    monkeypatch.setattr(fake, "_finish", finish_elsewhere)
    fake.end = "drop"
    assert run(fake) == 2
    assert "outside of the output folder" in capsys.readouterr().err
    assert not list(folder.rglob("*.png"))


def test_against_the_packs_own_server(folder, capsys):
    from trajectory.headless.runtime import embedded
    from trajectory.headless.server import create_app

    try:
        runtime = embedded()
    except RuntimeError:
        pytest.skip("a real ComfyUI is imported in this process")
    (folder / "input").mkdir()
    Image.new("RGB", (12, 8)).save(folder / "input" / "small.png")
    runtime.set_folders(input=folder / "input", output=folder / "there", temp=folder / "there" / "temp")
    runtime.forget()
    (folder / "empty").mkdir()
    with serving(create_app(runtime, folder / "empty", folder / "user")) as url:
        assert cli.main(["run", str(GRAPHS / "two_branches.json"), "--host", url, "--set", "Larger.width=31"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert cli.main(["run", str(GRAPHS / "two_branches.json"), "--host", url, "--set", "Larger.width=-1"]) == 2
    assert "must be between 0 and 16384" in capsys.readouterr().err
    assert Image.open(folder / shown[1].split(": ")[1]).size == (31, 16)
    workflow = json.loads(Image.open(folder / "out/kept/first_00001_.png").info["workflow"])
    assert workflow["nodes"][2]["widgets_values"][1] == 31
