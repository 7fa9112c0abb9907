"""`--host URL`: run a graph on a ComfyUI server and fetch its results.

The WebSocket tells the progress; what came out is read from the server's history, which also answers when the socket
was lost on the way. Nothing is uploaded: files that the graph names have to lie on the server.
"""

import asyncio
import json
import os
import uuid
from pathlib import Path

from .backend import Folders, Listener, Outcome, Result, files_of, texts_of
from .errors import BLOCKED, UserError

POLL_SECONDS = 1.0
PATIENCE = 30  # polls without an answer, or without a trace of the run, before it is given up
LAST_EVENTS = ("execution_success", "execution_error", "execution_interrupted")


class RemoteHost:
    unknown_nodes_advice = "Install the packs that are missing on that server, or choose another one."

    def __init__(self, url: str, out: Path):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._folders = Folders(out)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def object_info(self) -> dict:
        return self._run(lambda session: _get_json(session, f"{self.url}/object_info"))

    def run(self, prompt: dict, workflow: dict | None, on_event: Listener) -> Outcome:
        return self._run(lambda session: self._execute(session, prompt, workflow, on_event))

    def interrupt(self) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    def _run(self, job):
        import aiohttp

        async def inside():
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)) as session:
                return await job(session)

        try:
            return asyncio.run(inside())
        except aiohttp.InvalidURL:
            raise UserError(f"--host {self.url}: this is no address; one is http://127.0.0.1:8188.") from None
        except (aiohttp.ClientConnectionError, TimeoutError, asyncio.TimeoutError) as error:
            raise UserError(f"No ComfyUI answers at {self.url} ({error}). "
                            "Is it running, and is the address right?") from None

    # --- one run ---------------------------------------------------------------------------------------------------

    async def _execute(self, session, prompt: dict, workflow: dict | None, on_event: Listener) -> Outcome:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
        outcome = Outcome()
        async with session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket:
            answer = await self._queue(session, prompt, workflow, client_id, prompt_id)
            outcome.refusal, outcome.node_errors = answer.get("error"), answer.get("node_errors") or {}
            if outcome.refusal:
                return outcome
            prompt_id = answer.get("prompt_id", prompt_id)

            def listen(event: str, data: dict) -> None:
                outcome.note(event, data)
                on_event(event, data)

            watching = asyncio.create_task(_watch(socket, prompt_id, listen))
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and await self._cancel(session, prompt_id):
                watching.cancel()
                outcome.interrupted = True
                return outcome
            stopping.cancel()
            await watching
        entry = await self._history(session, prompt_id)
        for event, data in (entry.get("status") or {}).get("messages") or []:
            outcome.note(event, data)
        outcome.results = await self._fetch_all(session, entry.get("outputs") or {})
        return outcome

    async def _queue(self, session, prompt: dict, workflow: dict | None, client_id: str, prompt_id: str) -> dict:
        """The server's answer to the prompt: {"prompt_id", "node_errors"}, with "error" where it refuses all of it."""
        body = {"prompt": prompt, "client_id": client_id, "prompt_id": prompt_id,
                "extra_data": {"extra_pnginfo": {"workflow": workflow} if workflow else {}}}
        async with session.post(f"{self.url}/prompt", json=body) as response:
            text = await response.text()
        try:
            answer = json.loads(text)
        except json.JSONDecodeError:
            answer = None
        if response.status == 200 and isinstance(answer, dict):
            return answer
        if response.status == 400 and isinstance(answer, dict) and answer.get("error"):
            error = answer["error"]
            return answer if isinstance(error, dict) else {**answer, "error": {"message": str(error)}}
        raise UserError(f"{self.url} did not take the graph: HTTP {response.status} {text[:300]}")

    async def _cancel(self, session, prompt_id: str) -> bool:
        """Take the run out of the queue; True where it had not begun. A run that has is interrupted."""
        await _post(session, f"{self.url}/queue", {"delete": [prompt_id]})
        running = (await _get_json(session, f"{self.url}/queue")).get("queue_running") or []
        if any(prompt_id in entry for entry in running):
            await _post(session, f"{self.url}/interrupt", {"prompt_id": prompt_id})
            return False
        return prompt_id not in await _get_json(session, f"{self.url}/history/{prompt_id}")

    async def _history(self, session, prompt_id: str) -> dict:
        """The finished run's history entry; waits while it is queued or running (the socket may have been lost)."""
        import aiohttp

        silent = stopped = 0
        while silent < PATIENCE:
            try:
                if self._stop.is_set() and not stopped:
                    stopped = 1
                    await self._cancel(session, prompt_id)
                entries = await _get_json(session, f"{self.url}/history/{prompt_id}")
                if prompt_id in entries:
                    return entries[prompt_id]
                queue = await _get_json(session, f"{self.url}/queue")
                waiting = (queue.get("queue_running") or []) + (queue.get("queue_pending") or [])
                silent = 0 if any(prompt_id in entry for entry in waiting) else silent + 1
            except (aiohttp.ClientError, asyncio.TimeoutError):
                silent += 1
            await asyncio.sleep(POLL_SECONDS)
        raise UserError(f"{self.url} was lost during the run and does not know it any more (was it restarted?). "
                        "Results that it had saved lie in its own output folder.")

    # --- results ---------------------------------------------------------------------------------------------------

    async def _fetch_all(self, session, outputs: dict) -> list[Result]:
        results = []
        for node_id, output in outputs.items():
            for record in files_of(output):
                path = self._folders.path_of(record)
                if path is not None:
                    results.append(Result(node_id, path=await self._fetch(session, record, path)))
            results += [Result(node_id, text=text) for text in texts_of(output)]
        return results

    async def _fetch(self, session, record: dict, path: Path) -> Path:
        """Download one file; it appears under its name only when it is whole, and never replaces another."""
        root = self._folders.output.resolve()
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{self.url} named a result outside of the output folder: {record['filename']!r}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        query = {key: record.get(key) or "" for key in ("filename", "subfolder", "type")}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            async with session.get(f"{self.url}/view", params=query) as response:
                if response.status != 200:
                    raise UserError(f"{self.url} does not hand out {record['filename']!r}: HTTP {response.status}.")
                with partial.open("wb") as file:
                    async for block in response.content.iter_chunked(1 << 16):
                        file.write(block)
            path = _free_name(path)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path


async def _watch(socket, prompt_id: str, listen: Listener) -> None:
    """Pass on the events of one run until its last one, or until the socket closes."""
    import aiohttp

    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:
            continue
        content = json.loads(message.data)
        event, data = content.get("type"), content.get("data") or {}
        if data.get("prompt_id") != prompt_id:
            continue
        listen(event, data)
        if _ends(event, data):
            return


def _ends(event: str, data: dict) -> bool:
    if event == "executing":
        return data.get("node") is None
    return event in LAST_EVENTS and data.get("exception_type") != BLOCKED


async def _get_json(session, url: str) -> dict:
    async with session.get(url) as response:
        try:
            if response.status == 200:
                return await response.json(content_type=None)
        except ValueError:
            pass
        raise UserError(f"{url} answers, but not as a ComfyUI server does (HTTP {response.status}).")


async def _post(session, url: str, body: dict) -> None:
    async with session.post(url, json=body):
        pass


def _free_name(path: Path) -> Path:
    """`path`, or `name (2).png` and so on where it is taken by an earlier run."""
    candidate, count = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem} ({count}){path.suffix}")
        count += 1
    return candidate
