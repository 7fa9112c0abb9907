"""The server by itself: what it answers, what it refuses, how prompts run and stop."""

import asyncio
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid

import aiohttp
import pytest
from editor_pages import editor_server
from PIL import Image

PICTURE = {"class_type": "LoadImage", "inputs": {"image": "contract.png"}}


def png(colour=(200, 30, 60), size=(8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def upload(server, name: str, content: bytes, path="/api/upload/image", **fields):
    """Answer to an upload as a browser's form sends it."""
    edge = uuid.uuid4().hex
    parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    body = "".join(parts).encode() + head.encode() + b"Content-Type: image/png\r\n\r\n" + content
    body += f"\r\n--{edge}--\r\n".encode()
    return server.ask(path, body, "POST", **{"Content-Type": f"multipart/form-data; boundary={edge}"})


def scaling(width: int, prefix="scaled") -> dict:
    inputs = {"image": ["1", 0], "upscale_method": "nearest-exact", "width": width, "height": 4, "crop": "disabled"}
    return {
        "1": PICTURE,
        "2": {"class_type": "ImageScale", "inputs": inputs},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def finished(server, prompt_id: str, limit=60.0) -> dict:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        history = server.json(f"/history/{prompt_id}")
        if prompt_id in history:
            return history[prompt_id]
        time.sleep(0.05)
    raise TimeoutError(prompt_id)


@pytest.fixture(scope="module")
def loaded(server):
    """The server with a picture to load."""
    status, body, _ = upload(server, "contract.png", png(), overwrite="true")
    assert status == 200 and json.loads(body)["name"] == "contract.png"
    return server


# --- files ------------------------------------------------------------------------------------------------------------


def test_uploads_are_numbered_and_viewed(loaded):
    again = json.loads(upload(loaded, "contract.png", png((1, 2, 3)))[1])
    assert again == {"name": "contract (1).png", "subfolder": "", "type": "input"}
    same = json.loads(upload(loaded, "contract.png", png())[1])
    assert same["name"] == "contract.png"
    status, body, headers = loaded.ask("/api/view?filename=contract.png&type=input")
    assert (status, body, headers["Content-Type"]) == (200, png(), "image/png")
    assert loaded.ask("/api/view?filename=contract.png%20[input]")[0] == 200


@pytest.mark.parametrize(
    ("query", "form", "mode"),
    [("preview=webp;90", "WEBP", "RGB"), ("preview=jpeg;50", "JPEG", "RGB"), ("channel=rgb", "PNG", "RGB"),
     ("channel=a", "PNG", "RGBA")],
)  # fmt: skip
def test_pictures_in_other_forms(loaded, query, form, mode):
    status, body, _ = loaded.ask(f"/view?filename=contract.png&type=input&{query}")
    with Image.open(io.BytesIO(body)) as picture:
        assert (status, picture.format, picture.mode, picture.size) == (200, form, mode, (8, 6))


def test_masks_become_alpha_channels(loaded):
    mask = io.BytesIO()
    Image.new("RGBA", (8, 6), (0, 0, 0, 77)).save(mask, "PNG")
    reference = json.dumps({"filename": "contract.png", "type": "input"})
    answer = json.loads(upload(loaded, "masked.png", mask.getvalue(), "/upload/mask", original_ref=reference)[1])
    with Image.open(io.BytesIO(loaded.ask(f"/view?filename={answer['name']}&type=input")[1])) as picture:
        assert picture.getpixel((0, 0)) == (200, 30, 60, 77)


@pytest.mark.parametrize(
    "query",
    [
        "filename=../input/contract.png&type=input", "filename=..%2F..%2Fpyproject.toml", "filename=/etc/hostname",
        "filename=hostname&subfolder=/etc", "filename=hostname&subfolder=../../../../../../etc",
        "filename=..%5Ccontract.png&type=input", "filename=contract.png&type=user", "filename=contract.png&type=..",
        "filename=.&type=input", "filename=..&type=input", "filename=&type=input", "filename=a%00.png&type=input",
        "filename=hostname&subfolder=a%00b", "",
    ],
)  # fmt: skip
def test_view_stays_in_its_folders(loaded, query):
    assert loaded.ask(f"/api/view?{query}")[0] in (400, 403, 404)


def test_links_out_of_a_folder_are_not_followed(loaded, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    loaded.out.mkdir(parents=True, exist_ok=True)
    (loaded.out / "way_out").symlink_to(tmp_path, target_is_directory=True)
    assert loaded.ask("/view?filename=secret.png&subfolder=way_out")[0] == 403


@pytest.mark.parametrize(
    ("name", "fields"),
    [("../evil.png", {}), ("evil.png", {"subfolder": "../.."}), ("evil.png", {"subfolder": "/tmp"}),
     ("evil.png", {"type": "user"}), ("..", {})],
)  # fmt: skip
def test_uploads_stay_in_their_folders(loaded, name, fields):
    assert upload(loaded, name, png(), **fields)[0] in (400, 403)


@pytest.mark.parametrize("name", ["page.html", "page.xml", "page.xsl", "picture.svg", "page.xhtml", "page.unknown"])
def test_pages_among_the_files_are_downloads(loaded, name):
    (loaded.out / name).write_text("<script>alert(1)</script>")
    headers = loaded.ask(f"/view?filename={name}")[2]
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"].startswith("attachment;")
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_pictures_are_shown_as_what_they_are(loaded):
    for query in ("", "&preview=webp;90"):
        headers = loaded.ask(f"/view?filename=contract.png&type=input{query}")[2]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert not headers.get("Content-Disposition", "").startswith("attachment")


def test_folders_are_not_overwritten(loaded):
    def user(name):
        return "/userdata/" + urllib.parse.quote(name, safe="")

    assert loaded.ask(user("places/here/a.json"), b"1", "POST")[0] == 200
    assert loaded.ask(user("b.json"), b"2", "POST")[0] == 200
    for name in ("places/here", "b.json/below"):
        assert loaded.ask(user(name), b"3", "POST")[0] == 409
        assert loaded.ask(f"{user('b.json')}/move/{urllib.parse.quote(name, safe='')}", b"", "POST")[0] == 409
    assert loaded.json(user("b.json")) == 2
    assert loaded.json("/userdata?dir=places&recurse=true") == ["here/a.json"], "no partial files are left"
    assert upload(loaded, "inside.png", png(), subfolder="taken.png")[0] == 200
    assert upload(loaded, "taken.png", png(), overwrite="true")[0] == 409
    assert json.loads(upload(loaded, "taken.png", png())[1])["name"] == "taken (1).png"


def test_files_of_the_user(server):
    name = urllib.parse.quote("workflows/my graph.json", safe="")
    moved = urllib.parse.quote("workflows/sub/other.json", safe="")
    assert server.ask(f"/api/userdata/{name}?overwrite=false&full_info=true", b'{"a": 1}', "POST")[0] == 200
    assert server.ask(f"/api/userdata/{name}?overwrite=false", b"{}", "POST")[0] == 409
    assert server.json(f"/userdata/{name}") == {"a": 1}
    assert server.json("/userdata?dir=workflows&recurse=true") == ["my graph.json"]
    assert json.loads(server.ask(f"/userdata/{name}/move/{moved}", b"", "POST")[1]) == "workflows/sub/other.json"
    assert server.json("/userdata?dir=workflows&recurse=true&split=true") == [["sub/other.json", "sub", "other.json"]]
    assert server.json("/userdata?dir=workflows&recurse=true&full_info=true")[0]["size"] == 8
    assert server.ask(f"/userdata/{moved}", method="DELETE")[0] == 204
    assert server.ask(f"/userdata/{moved}")[0] == 404
    assert server.json("/userdata?dir=workflows&recurse=true") == []
    for escape in ("../secret", "/etc/hostname", "a/../../b", ".."):
        assert server.ask(f"/userdata/{urllib.parse.quote(escape, safe='')}")[0] in (403, 404)
        assert server.ask(f"/userdata/{urllib.parse.quote(escape, safe='')}", b"x", "POST")[0] == 403


def test_templates_and_help_pages_stay_in_their_folders(server):
    listed = server.json("/api/workflow_templates")["trajectory"]
    assert "Text to image" in listed and server.json("/api/workflow_templates/trajectory/Text%20to%20image.json")
    for path in ("workflow_templates/trajectory/..%2F__init__.py", "workflow_templates/trajectory/..%2Fpyproject.toml",
                 "extensions/trajectory/..%2F__init__.py", "..%2F..%2Fetc%2Fhostname"):  # fmt: skip
        assert server.ask(f"/{path}")[0] in (403, 404)


# --- who may ask ------------------------------------------------------------------------------------------------------


def raw_status(server, path: str, **headers) -> int:
    """Status of a request with headers that urllib would set itself."""
    address = urllib.parse.urlsplit(server.url)
    lines = [f"GET {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "Connection: close", "", ""]
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.recv(100).split()[1])


def test_only_own_pages_are_answered(server):
    port = urllib.parse.urlsplit(server.url).port
    own, name = f"127.0.0.1:{port}", f"localhost:{port}"
    assert raw_status(server, "/prompt", Host=own) == 200
    assert raw_status(server, "/prompt", Host=name, Origin=f"http://{name}") == 200
    for host, origin in (
        (f"rebound.example:{port}", f"http://rebound.example:{port}"), ("rebound.example", None), ("", None),
        (own, "http://elsewhere.example"), (own, "http://127.0.0.1:1"), (own, "null"), (own, f"http://{name}"),
        (own, f"https://{own}"), (own, f"ftp://{own}"),
    ):  # fmt: skip
        headers = {"Host": host, **({"Origin": origin} if origin else {})}
        assert raw_status(server, "/prompt", **headers) in (400, 403), (host, origin)


def test_the_server_listens_on_this_machine_only(server):
    port = urllib.parse.urlsplit(server.url).port
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in (a for a in others if not a.startswith("127.")):
        with pytest.raises(OSError):
            socket.create_connection((address, port), timeout=2)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_runs_and_is_remembered(loaded):
    answer = loaded.json("/api/prompt", {"prompt": scaling(5, "first")})
    assert answer["node_errors"] == {}
    entry = finished(loaded, answer["prompt_id"])
    assert entry["status"]["status_str"] == "success" and entry["status"]["completed"]
    image = entry["outputs"]["3"]["images"][0]
    assert (loaded.out / image["filename"]).is_file()
    job = loaded.json(f"/api/jobs/{answer['prompt_id']}")
    assert job["status"] == "completed" and job["preview_output"] == {**image, "nodeId": "3", "mediaType": "images"}
    listed = loaded.json("/api/jobs?status=completed&limit=1")
    assert listed["pagination"]["limit"] == 1 and len(listed["jobs"]) == 1
    assert len(loaded.json("/history?max_items=1")) == 1
    loaded.ask("/history", {"delete": [answer["prompt_id"]]})
    assert loaded.json(f"/history/{answer['prompt_id']}") == {}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "no_prompt"),
        ({"prompt": []}, "no_prompt"),
        ({"prompt": {}}, "prompt_no_outputs"),
        ({"prompt": scaling(5), "prompt_id": "not-a-uuid"}, "invalid_prompt_id"),
        ({"prompt": scaling(-5)}, "prompt_outputs_failed_validation"),
        ({"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, "missing_node_type"),
    ],
)
def test_bad_prompts_are_refused(loaded, body, kind):
    status, answer, _ = loaded.ask("/prompt", body or {"nothing": 1})
    assert (status, json.loads(answer)["error"]["type"]) == (400, kind)


def test_bodies_that_are_no_json_are_refused(server):
    assert server.ask("/prompt", b"{broken", "POST")[0] == 400
    assert server.ask("/prompt", b"[1]", "POST")[0] == 400
    assert server.ask("/history?max_items=many")[0] == 400
    for path in ("/prompt", "/settings/Some.Thing"):
        for body in (b"[" * 200_000, b'{"number": NaN}', b'{"a": 1e999}', b"{broken", b"\xff"):
            status, answer, _ = server.ask(path, body, "POST")
            assert status == 400 and answer.startswith(b"The body "), (path, body[:20])


@pytest.mark.parametrize("number", [None, "soon", [1], 10**400])
def test_places_in_the_queue_are_numbers(loaded, number):
    status, answer, _ = loaded.ask("/prompt", {"prompt": scaling(5), "number": number})
    assert status == 400 and b'"number"' in answer


def test_odd_messages_do_not_end_a_client(loaded):
    async def talk():
        url = f"{loaded.url.replace('http', 'ws')}/ws"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
            for message in ("[" * 200_000, "{broken", "NaN", '{"type": "feature_flags", "data": "none"}'):
                await ws.send_str(message)
            while (await ws.receive_json(timeout=20))["type"] != "feature_flags":
                pass

    asyncio.run(talk())


class Listener:
    """A web socket in a thread that keeps everything it hears."""

    def __init__(self, server, client_id: str):
        self.events: list[tuple[str, dict]] = []
        self.frames: list[bytes] = []
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._url = f"{server.url.replace('http', 'ws')}/ws?clientId={client_id}"
        threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True).start()
        assert self._ready.wait(20)

    async def _listen(self):
        async with aiohttp.ClientSession() as session, session.ws_connect(self._url) as ws:
            await ws.send_str(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            async for message in ws:
                with self._changed:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        self.frames.append(message.data)
                    else:
                        event = json.loads(message.data)
                        self.events.append((event["type"], event["data"]))
                        if event["type"] == "feature_flags":
                            self._ready.set()
                    self._changed.notify_all()

    def wait(self, name: str, limit=90.0) -> dict:
        """Data of the first event of that name."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(n == name for n, _ in self.events), limit), (name, self.events)
            return next(data for n, data in self.events if n == name)

    def wait_for_frame(self, limit=90.0) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: self.frames, limit), self.events
            return self.frames[0]


def test_events_reach_the_client_that_queued(loaded):
    mine, other = Listener(loaded, "mine"), Listener(loaded, "other")
    loaded.json("/prompt", {"prompt": scaling(7), "client_id": "mine"})
    mine.wait("execution_success")
    names = [name for name, _ in mine.events]
    order = ["execution_start", "execution_cached", "executing", "executed", "execution_success"]
    assert [name for name in dict.fromkeys(names) if name in order] == order
    assert mine.events[0][1]["sid"] == "mine"
    assert {name for name, _ in other.events} <= {"status", "feature_flags"}


def painting(steps: int, seed: int) -> dict:
    """A run of the miniature that takes a while: SaveImage on a sampler."""
    with_model = {
        "1": {"class_type": "TrajectoryLoadMiniature", "inputs": {"model": "landscapes (flow)"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a blue day over green hills"}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": seed,
                "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "painting"}},
    }  # fmt: skip
    return with_model


def test_interrupting_stops_the_run_and_keeps_the_queue(loaded):
    listener = Listener(loaded, "painter")
    long = loaded.json("/prompt", {"prompt": painting(5000, 1), "client_id": "painter"})["prompt_id"]
    waiting = loaded.json("/prompt", {"prompt": scaling(9), "client_id": "painter"})["prompt_id"]
    dropped = loaded.json("/prompt", {"prompt": scaling(3, "dropped")})["prompt_id"]
    listener.wait("progress")
    frame = listener.wait_for_frame()
    assert int.from_bytes(frame[:4], "big") == 4
    length = int.from_bytes(frame[4:8], "big")
    assert json.loads(frame[8 : 8 + length])["node_id"] == "4"
    Image.open(io.BytesIO(frame[8 + length :])).verify()
    queue = loaded.json("/queue")
    assert [e[1] for e in queue["queue_running"]] == [long]
    assert [e[1] for e in queue["queue_pending"]] == [waiting, dropped]
    loaded.ask("/queue", {"delete": [dropped]})
    loaded.ask("/interrupt", {"prompt_id": waiting})  # does not run, so nothing stops
    assert [e[1] for e in loaded.json("/queue")["queue_running"]] == [long]
    loaded.ask("/interrupt", {"prompt_id": long})
    assert listener.wait("execution_interrupted")["prompt_id"] == long
    assert finished(loaded, long)["status"]["status_str"] == "error"
    assert loaded.json(f"/api/jobs/{long}")["status"] == "cancelled"
    assert finished(loaded, waiting)["status"]["status_str"] == "success"
    assert loaded.json(f"/history/{dropped}") == {}


def test_a_failing_node_is_reported(loaded):
    upload(loaded, "broken.png", b"no picture", overwrite="true")
    prompt = {**scaling(5), "1": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}}
    listener = Listener(loaded, "failing")
    prompt_id = loaded.json("/prompt", {"prompt": prompt, "client_id": "failing"})["prompt_id"]
    failure = listener.wait("execution_error")
    assert failure["node_id"] == "1" and failure["node_type"] == "LoadImage"
    job = loaded.json(f"/api/jobs/{prompt_id}") if finished(loaded, prompt_id) else None
    assert job["status"] == "failed" and job["execution_error"]["node_id"] == "1"


# --- the rest of the editor's questions -------------------------------------------------------------------------------


def test_settings_are_kept(server):
    assert server.ask("/api/settings/Some.Thing", b'{"a": [1]}', "POST")[0] == 200
    assert server.ask("/api/settings", {"Other.Thing": 2})[0] == 200
    assert server.json("/api/settings")["Some.Thing"] == {"a": [1]}
    assert server.json("/settings/Other.Thing") == 2


@pytest.mark.parametrize(
    "path",
    ["/", "/api/users", "/api/extensions", "/api/system_stats", "/api/features", "/api/embeddings", "/api/models",
     "/api/models/vae", "/api/experiment/models", "/api/experiment/models/vae", "/api/i18n", "/api/global_subgraphs",
     "/api/node_replacements", "/templates/index.json", "/user.css", "/api/queue", "/api/history", "/api/prompt"],
)  # fmt: skip
def test_the_editor_is_answered(server, path):
    assert server.ask(path)[0] == 200


def test_object_info_of_one_node(server):
    assert list(server.json("/object_info/KSampler")) == ["KSampler"]
    assert server.json("/object_info/NoSuchNode") == {}


# --- starting and ending ----------------------------------------------------------------------------------------------


def test_a_missing_editor_is_named(monkeypatch):
    from trajectory.headless import errors, server

    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.UserError, match="pip install comfyui-frontend-package"):
        server.frontend_folder()


def test_a_taken_port_is_named(server, tmp_path):
    port = urllib.parse.urlsplit(server.url).port
    command = [sys.executable, "-m", "trajectory.headless.cli", "serve", "--port", str(port), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"--port {port}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT between processes")
def test_ctrl_c_ends_a_server_in_the_middle_of_a_run(tmp_path):
    with editor_server(tmp_path) as own:
        listener = Listener(own, "painter")
        own.json("/prompt", {"prompt": painting(5000, 1), "client_id": "painter"})
        listener.wait("progress")
        own.process.send_signal(signal.SIGINT)
        assert own.process.wait(20) == 0
    assert not [line for line in own.log if "Traceback" in line]
