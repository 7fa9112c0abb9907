"""The routes that ComfyUI's editor asks for, over one embedded host, one queue and one user.

Each route is served with and without the prefix `/api`. Files of nodes are named by filename, subfolder and type
(output, input, temp), never by path.
"""

import asyncio
import json
import math
import mimetypes
import sys
import threading
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

from .clients import Clients, ExecutorLink, features
from .execution import PromptExecutor
from .jobs import all_jobs, one_job
from .pictures import converted, with_alpha
from .prompt_queue import Ending, Job, PromptQueue
from .strict_json import BadJSON, parse
from .user_files import UserFiles, confined, takes_a_file, write_whole
from .validation import validate_prompt

SERVER = web.AppKey("server", object)
SHOWN = ("image/", "audio/", "video/")
"""Kinds of files that a browser may show; all others, which may hold scripts, are handed out as downloads."""

NO_GUESSING = {"X-Content-Type-Options": "nosniff"}


class EditorServer:
    """Routes of the editor over one embedded host, one queue and one user."""

    def __init__(self, runtime, frontend: Path, files: UserFiles):
        self.runtime = runtime
        self.frontend = frontend
        self.files = files
        self.settings: dict[str, Any] = {}
        self.clients = Clients()
        self.link = ExecutorLink(self.clients)
        self.executor = PromptExecutor(self.link, runtime.node_table)
        self.queue: PromptQueue | None = None
        self._number = 0
        self._forget_results = threading.Event()

    async def start(self, _app: web.Application) -> None:
        import nodes

        self.clients.start()
        self.queue = PromptQueue(self._run, nodes.interrupt_processing, self._queue_changed)

    async def stop(self, _app: web.Application) -> None:
        await asyncio.to_thread(self.queue.close)
        await self.clients.stop()
        self.files.close()

    def _run(self, job: Job) -> Ending:
        """Execute a job; in the worker thread."""
        if self._forget_results.is_set():
            self._forget_results.clear()
            self.executor.reset()
        self.executor.execute(job.prompt, job.prompt_id, job.extra_data, job.outputs)
        if self.link.client_id is not None:
            self.clients.send("executing", {"node": None, "prompt_id": job.prompt_id}, self.link.client_id)
        history = self.executor.history_result
        return Ending(self.executor.success, history["outputs"], history["meta"], self.executor.status_messages)

    def _queue_changed(self) -> None:
        self.clients.send("status", {"status": self._status()})

    def _status(self) -> dict:
        return {"exec_info": {"queue_remaining": self.queue.remaining() if self.queue else 0}}

    # --- routes ---------------------------------------------------------------------------------------------------

    def add_routes(self, app: web.Application) -> None:
        routes = {
            "GET": {
                "/ws": self.get_ws,
                "/prompt": self.get_prompt,
                "/object_info": self.get_object_info,
                "/object_info/{node_id}": self.get_object_info,
                "/queue": self.get_queue,
                "/history": self.get_history,
                "/history/{prompt_id}": self.get_history,
                "/jobs": self.get_jobs,
                "/jobs/{prompt_id}": self.get_job,
                "/view": self.get_view,
                "/extensions": self.get_extensions,
                "/embeddings": self.get_embeddings,
                "/models": self.get_models,
                "/models/{folder}": self.get_models,
                "/experiment/models": self.get_model_folders,
                "/experiment/models/{folder}": self.get_model_files,
                "/workflow_templates": self.get_templates,
                "/workflow_templates/{pack}/{file}": self.get_template,
                "/system_stats": self.get_system_stats,
                "/features": self.get_features,
                "/users": self.get_users,
                "/settings": self.get_settings,
                "/settings/{name}": self.get_settings,
                "/i18n": self.get_nothing,
                "/global_subgraphs": self.get_nothing,
                "/node_replacements": self.get_nothing,
                "/userdata": self.get_user_files,
                "/userdata/{file}": self.get_user_file,
            },
            "POST": {
                "/prompt": self.post_prompt,
                "/queue": self.post_queue,
                "/history": self.post_history,
                "/interrupt": self.post_interrupt,
                "/free": self.post_free,
                "/jobs/{prompt_id}/cancel": self.post_cancel,
                "/upload/image": self.post_image,
                "/upload/mask": self.post_mask,
                "/settings": self.post_settings,
                "/settings/{name}": self.post_setting,
                "/userdata/{file}": self.post_user_file,
                "/userdata/{file}/move/{target}": self.post_move,
            },
            "DELETE": {"/userdata/{file}": self.delete_user_file},
        }
        for method, handlers in routes.items():
            for path, handler in handlers.items():
                for prefix in ("", "/api"):
                    app.router.add_route(method, prefix + path, handler)
        app.router.add_get("/", self.get_index)
        app.router.add_get("/templates/index.json", self.get_no_templates)
        app.router.add_get("/user.css", self.get_user_css)
        for name, folder in self._web_folders().items():
            app.router.add_static(f"/extensions/{name}", folder)
        app.router.add_static("/", self.frontend)

    @staticmethod
    def _web_folders() -> dict[str, Path]:
        """Folders with editor extensions and help pages of the packs."""
        import nodes

        return {name: Path(folder) for name, folder in nodes.EXTENSION_WEB_DIRS.items()}

    async def get_index(self, _request) -> web.FileResponse:
        return web.FileResponse(self.frontend / "index.html", headers={"Cache-Control": "no-cache"})

    async def get_user_css(self, _request) -> web.Response:
        return web.Response(text="", content_type="text/css")

    async def get_no_templates(self, _request) -> web.Response:
        """The templates of ComfyUI itself need models that the embedded host does not have."""
        return web.json_response([])

    async def get_nothing(self, _request) -> web.Response:
        """Translations, blueprints and node replacements: there are none."""
        return web.json_response({})

    async def get_ws(self, request) -> web.WebSocketResponse:
        return await self.clients.serve(request, self._status())

    async def get_features(self, _request) -> web.Response:
        return web.json_response(features())

    async def get_users(self, _request) -> web.Response:
        return web.json_response({"storage": "server", "migrated": True})

    async def get_system_stats(self, _request) -> web.Response:
        import comfy.model_management as management
        import torch

        device = management.get_torch_device()
        return web.json_response(
            {
                "system": {
                    "os": sys.platform,
                    "ram_total": 0,
                    "ram_free": 0,
                    "comfyui_version": self.runtime.version,
                    "python_version": sys.version,
                    "pytorch_version": torch.__version__,
                    "embedded_python": False,
                    "argv": ["trajectory", "serve"],
                },
                "devices": [
                    {
                        "name": str(device),
                        "type": device.type,
                        "index": device.index,
                        "vram_total": 0,
                        "vram_free": 0,
                        "torch_vram_total": 0,
                        "torch_vram_free": 0,
                    }
                ],
            }
        )

    async def get_object_info(self, request) -> web.Response:
        known = self.runtime.object_info()
        wanted = request.match_info.get("node_id")
        if wanted is not None:
            known = {wanted: known[wanted]} if wanted in known else {}
        return web.json_response(known)

    async def get_extensions(self, _request) -> web.Response:
        core = (path.relative_to(self.frontend) for path in (self.frontend / "extensions").rglob("*.js"))
        packs = [
            f"/extensions/{name}/{path.relative_to(folder).as_posix()}"
            for name, folder in self._web_folders().items()
            for path in sorted(folder.rglob("*.js"))
        ]
        return web.json_response(sorted(f"/{path.as_posix()}" for path in core) + packs)

    # --- prompts --------------------------------------------------------------------------------------------------

    async def get_prompt(self, _request) -> web.Response:
        return web.json_response(self._status())

    async def post_prompt(self, request) -> web.Response:
        """Validate a prompt and queue it; bad prompts are answered as the host answers them."""
        body = await _body(request)
        prompt = body.get("prompt")
        if not isinstance(prompt, dict):
            return _refused("no_prompt", "No prompt provided")
        prompt_id = body.get("prompt_id") or str(uuid.uuid4())
        if not _is_uuid(prompt_id):
            return _refused("invalid_prompt_id", "prompt_id must be a UUID in its canonical form")
        valid, error, outputs, node_errors = validate_prompt(
            prompt, self.runtime.node_table, body.get("partial_execution_targets")
        )
        if not valid:
            return web.json_response({"error": error, "node_errors": node_errors}, status=400)
        extra_data = dict(body.get("extra_data") or {})
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        number = self._priority(body)
        self.queue.put(Job(number, prompt_id, prompt, extra_data, outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": node_errors})

    def _priority(self, body: dict) -> float:
        if "number" in body:
            try:
                number = float(body["number"])
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                raise web.HTTPBadRequest(text='"number", the place in the queue, has to be a finite number.')
            return number
        self._number += 1
        return -self._number if body.get("front") else self._number

    async def get_queue(self, _request) -> web.Response:
        running, waiting = self.queue.snapshot()
        return web.json_response(
            {
                "queue_running": [job.as_entry() for job in running],
                "queue_pending": [job.as_entry() for job in waiting],
            }
        )

    async def post_queue(self, request) -> web.Response:
        body = await _body(request)
        if body.get("clear"):
            self.queue.clear()
        self.queue.delete(body.get("delete") or [])
        return web.Response()

    async def get_history(self, request) -> web.Response:
        entries = self.queue.history(request.match_info.get("prompt_id"))
        limit, offset = _number(request, "max_items"), _number(request, "offset")
        names = list(entries)
        if limit is not None:
            start = max(0, len(names) - limit) if offset is None or offset < 0 else offset
            names = names[start : start + limit]
        return _json({name: entries[name] for name in names})

    async def post_history(self, request) -> web.Response:
        body = await _body(request)
        if body.get("clear"):
            self.queue.forget()
        self.queue.forget(body.get("delete") or [])
        return web.Response()

    async def post_interrupt(self, request) -> web.Response:
        self.queue.interrupt((await _body(request)).get("prompt_id"))
        return web.Response()

    async def post_free(self, request) -> web.Response:
        """Forget cached results before the next prompt."""
        body = await _body(request)
        if body.get("free_memory") or body.get("unload_models"):
            self._forget_results.set()
        return web.Response()

    async def get_jobs(self, request) -> web.Response:
        wanted = [s for s in request.query.get("status", "").split(",") if s]
        jobs = [job for job in all_jobs(self.queue) if not wanted or job["status"] in wanted]
        offset, limit = _number(request, "offset") or 0, _number(request, "limit")
        page = jobs[offset : None if limit is None else offset + limit]
        more = offset + len(page) < len(jobs)
        pagination = {"offset": offset, "limit": limit, "total": len(jobs), "has_more": more}
        return _json({"jobs": page, "pagination": pagination})

    async def get_job(self, request) -> web.Response:
        job = one_job(self.queue, request.match_info["prompt_id"])
        return _json(job) if job else web.json_response({"error": "Job not found"}, status=404)

    async def post_cancel(self, request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        return web.json_response({"cancelled": self.queue.delete([prompt_id]) or self.queue.interrupt(prompt_id)})

    # --- files of nodes -------------------------------------------------------------------------------------------

    @staticmethod
    def _file(filename: str, subfolder: str, kind: str) -> Path:
        """Path of a node's file. Raises 400 for names and 403 for folders that lead elsewhere."""
        import folder_paths

        root = folder_paths.get_directory_by_type(kind)
        if root is None or Path(filename).name != filename or filename in ("", "..") or "\\" in filename:
            raise web.HTTPBadRequest(text="A file is named by filename, subfolder and type (output, input or temp).")
        path = confined(Path(root), subfolder, filename)
        if path is None:
            raise web.HTTPForbidden(text="The subfolder leads out of the folder.")
        return path

    async def get_view(self, request) -> web.StreamResponse:
        """A file of a node; `preview=webp;90` and `channel=rgb|a` give a picture in another form."""
        import folder_paths

        query = request.query
        named = query.get("filename", "")
        annotated = next((kind for kind in ("output", "input", "temp") if named.endswith(f"[{kind}]")), None)
        filename, _ = folder_paths.annotated_filepath(named)
        path = self._file(filename, query.get("subfolder", ""), annotated or query.get("type", "output"))
        if not path.is_file():
            raise web.HTTPNotFound
        if "preview" in query or query.get("channel", "rgba") != "rgba":
            body, kind = await asyncio.to_thread(converted, path, query.get("preview"), query.get("channel", "rgba"))
            return web.Response(body=body, content_type=kind, headers=NO_GUESSING)
        kind = mimetypes.guess_type(path.name)[0] or ""
        shown = kind.startswith(SHOWN) and kind != "image/svg+xml"
        where, name = "inline" if shown else "attachment", urllib.parse.quote(path.name)
        headers = {
            "Content-Type": kind if shown else "application/octet-stream",
            "Content-Disposition": f"{where}; filename*=UTF-8''{name}",
            **NO_GUESSING,
        }
        return web.FileResponse(path, headers=headers)

    async def post_image(self, request) -> web.Response:
        form = await request.post()
        upload = form.get("image")
        if not isinstance(upload, web.FileField):
            raise web.HTTPBadRequest(text='The form has no file "image".')
        return self._keep(form, upload.filename, upload.file.read())

    async def post_mask(self, request) -> web.Response:
        """Keep a picture with the alpha channel of the uploaded mask; `original_ref` names the picture."""
        form = await request.post()
        upload = form.get("image")
        try:
            original = parse(form.get("original_ref", ""))
            source = self._file(original["filename"], original.get("subfolder", ""), original.get("type", "output"))
        except (ValueError, KeyError, TypeError) as error:
            raise web.HTTPBadRequest(text='"original_ref" names no picture.') from error
        if not isinstance(upload, web.FileField) or not source.is_file():
            raise web.HTTPBadRequest(text="The mask or the picture that it belongs to is missing.")
        return self._keep(form, upload.filename, await asyncio.to_thread(with_alpha, source, upload.file.read()))

    def _keep(self, form, filename: str, content: bytes) -> web.Response:
        """Write an upload under its name, or a numbered one where another file has it."""
        kind, subfolder = form.get("type") or "input", form.get("subfolder") or ""
        path = self._file(filename, subfolder, kind)
        if form.get("overwrite") not in ("true", "1"):
            stem, number = path.stem, 1
            while path.is_dir() or (path.exists() and path.read_bytes() != content):
                path = path.with_name(f"{stem} ({number}){path.suffix}")
                number += 1
        _check_place(path)
        write_whole(path, content)
        return web.json_response({"name": path.name, "subfolder": subfolder, "type": kind})

    # --- models, templates, settings ------------------------------------------------------------------------------

    async def get_embeddings(self, _request) -> web.Response:
        import folder_paths

        return web.json_response([Path(name).stem for name in folder_paths.get_filename_list("embeddings")])

    async def get_models(self, request) -> web.Response:
        import folder_paths

        folder = request.match_info.get("folder")
        if folder is None:
            return web.json_response(list(folder_paths.folder_names_and_paths))
        return web.json_response(folder_paths.get_filename_list(self._known(folder)))

    async def get_model_folders(self, _request) -> web.Response:
        import folder_paths

        kinds = [name for name in folder_paths.folder_names_and_paths if name != "custom_nodes"]
        return web.json_response([{"name": kind, "folders": []} for kind in kinds])

    async def get_model_files(self, request) -> web.Response:
        import folder_paths

        names = folder_paths.get_filename_list(self._known(request.match_info["folder"]))
        return web.json_response([{"name": name, "pathIndex": 0} for name in names])

    @staticmethod
    def _known(folder: str) -> str:
        import folder_paths

        if folder not in folder_paths.folder_names_and_paths:
            raise web.HTTPNotFound
        return folder

    def _template_folders(self) -> dict[str, Path]:
        """Folders with example workflows; they lie beside the web folders of the packs."""
        found = {name: folder.resolve().parent / "example_workflows" for name, folder in self._web_folders().items()}
        return {name: folder for name, folder in found.items() if folder.is_dir()}

    async def get_templates(self, _request) -> web.Response:
        return web.json_response(
            {
                pack: sorted(path.stem for path in folder.glob("*.json"))
                for pack, folder in self._template_folders().items()
            }
        )

    async def get_template(self, request) -> web.StreamResponse:
        folder = self._template_folders().get(request.match_info["pack"])
        path = folder and confined(folder, request.match_info["file"])
        if not path or not path.is_file() or path.suffix not in (".json", ".jpg"):
            raise web.HTTPNotFound
        return web.FileResponse(path, headers=NO_GUESSING)

    async def get_settings(self, request) -> web.Response:
        name = request.match_info.get("name")
        return web.json_response(self.settings if name is None else self.settings.get(name))

    async def post_settings(self, request) -> web.Response:
        self.settings.update(await _body(request))
        return web.Response()

    async def post_setting(self, request) -> web.Response:
        self.settings[request.match_info["name"]] = _parsed(await _text(request))
        return web.Response()

    # --- files of the user ----------------------------------------------------------------------------------------

    def _user_path(self, request, key: str = "file", exists: bool = True) -> Path:
        path = self.files.path(request.match_info[key])
        if path is None:
            raise web.HTTPForbidden(text="The name leads out of the user's folder.")
        if exists and not path.is_file():
            raise web.HTTPNotFound
        return path

    async def get_user_files(self, request) -> web.Response:
        query = request.query
        found = self.files.listing(query.get("dir", ""), query.get("recurse") == "true")
        if found is None:  # nothing was saved there yet
            return web.json_response([])
        folder = self.files.path(query["dir"])
        if query.get("full_info") == "true":
            return web.json_response([self.files.describe(path, folder) for path in found])
        names = [path.relative_to(folder).as_posix() for path in found]
        return web.json_response([[n, *n.split("/")] for n in names] if query.get("split") == "true" else names)

    async def get_user_file(self, request) -> web.FileResponse:
        headers = {"Content-Type": "application/octet-stream", **NO_GUESSING}
        return web.FileResponse(self._user_path(request), headers=headers)

    async def post_user_file(self, request) -> web.Response:
        path = self._user_path(request, exists=False)
        if request.query.get("overwrite") == "false" and path.exists():
            raise web.HTTPConflict(text="The file exists already.")
        _check_place(path)
        write_whole(path, await request.read())
        return self._described(request, path)

    async def post_move(self, request) -> web.Response:
        source, target = self._user_path(request), self._user_path(request, "target", exists=False)
        if request.query.get("overwrite") == "false" and target.exists():
            raise web.HTTPConflict(text="The file exists already.")
        _check_place(target)
        self.files.move(source, target)
        return self._described(request, target)

    async def delete_user_file(self, request) -> web.Response:
        self._user_path(request).unlink()
        return web.Response(status=204)

    def _described(self, request, path: Path) -> web.Response:
        about = self.files.describe(path)
        return web.json_response(about if request.query.get("full_info") == "true" else about["path"])


# --- small helpers ----------------------------------------------------------------------------------------------------


async def _body(request: web.Request) -> dict:
    """The JSON object in a request; {} for an empty body. Raises 400 for anything else."""
    text = await _text(request)
    body = _parsed(text) if text.strip() else {}
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="The body has to be a JSON object.")
    return body


async def _text(request: web.Request) -> str:
    try:
        return await request.text()
    except (UnicodeDecodeError, LookupError) as error:
        raise web.HTTPBadRequest(text="The body is no text in the character set that the request names.") from error


def _parsed(text: str) -> Any:
    try:
        return parse(text)
    except BadJSON as error:
        raise web.HTTPBadRequest(text=f"The body {error}.") from error


def _check_place(path: Path) -> None:
    if not takes_a_file(path):
        raise web.HTTPConflict(text="The name is that of a folder, or a file stands where a folder is needed.")


def _json(value) -> web.Response:
    """Answer with values that nodes made, which may hold things that JSON does not know."""
    return web.json_response(text=json.dumps(value, default=str))


def _refused(kind: str, message: str) -> web.Response:
    error = {"type": kind, "message": message, "details": message, "extra_info": {}}
    return web.json_response({"error": error, "node_errors": {}}, status=400)


def _is_uuid(value) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f'"{name}" has to be a whole number.') from error
