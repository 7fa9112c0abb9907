"""`trajectory serve`: ComfyUI's own editor (PyPI: comfyui-frontend-package) on top of the embedded host.

The server listens on this machine only, and answers only requests that were addressed to it by a loopback name and that
come from its own pages.
"""

import asyncio
import importlib.util
import ipaddress
import mimetypes
import sys
import tempfile
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from .errors import UserError

ADDRESS = "127.0.0.1"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def main(arguments) -> int:
    """Serve until Ctrl-C: results go into `arguments.out`, what the editor saves into its folder `user`.

    Raises UserError when the editor's package is missing or the port is taken.
    """
    from .runtime import embedded

    frontend, out = frontend_folder(), arguments.out.resolve()
    runtime = embedded()
    with tempfile.TemporaryDirectory(prefix="trajectory-preview-") as previews:
        runtime.set_folders(output=out, temp=previews)
        try:
            asyncio.run(_serve(create_app(runtime, frontend, out / "user"), arguments.port))
        except OSError as error:
            raise UserError(
                f"--port {arguments.port}: {error.strerror}. Choose another port (0: any free one)."
            ) from error
        except KeyboardInterrupt:
            return 0


async def _serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, ADDRESS, port).start()
        print(f"The editor is at http://{ADDRESS}:{runner.addresses[0][1]} - Ctrl-C ends it.", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def frontend_folder() -> Path:
    """Static files of the installed editor. Raises UserError where it is not installed."""
    found = importlib.util.find_spec("comfyui_frontend_package")
    folder = Path(found.origin).parent / "static" if found and found.origin else None
    if folder is None or not (folder / "index.html").is_file():
        raise UserError(f"The editor is not installed. Run: {sys.executable} -m pip install comfyui-frontend-package")
    return folder


def create_app(runtime, frontend: Path | None = None, user: Path | None = None) -> web.Application:
    """The server as an aiohttp application; `app["server"]` is its EditorServer.

    Args:
        runtime: the embedded host; has `node_table` (id -> class), `object_info()` and `version`.
        frontend: static files of the editor; those of the installed package by default.
        user: folder for files that the editor saves; one that goes with the application by default.
    """
    from .clients import MAX_UPLOAD
    from .editor import SERVER, EditorServer
    from .user_files import UserFiles

    mimetypes.add_type("text/javascript", ".js")  # some systems register another type, which browsers refuse to run
    mimetypes.add_type("image/webp", ".webp")
    server = EditorServer(runtime, frontend or frontend_folder(), UserFiles(user))
    app = web.Application(client_max_size=MAX_UPLOAD, middlewares=[only_own_pages])
    app[SERVER] = server
    app.on_startup.append(server.start)
    app.on_shutdown.append(server.stop)
    server.add_routes(app)
    return app


def is_loopback(host: str | None) -> bool:
    """Whether a host name without port names this machine: localhost, 127.x.x.x or ::1, never a name to be resolved."""
    if not host:
        return False
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(url: str) -> tuple[str | None, int | None]:
    """(host name in lower case, port) of an URL, (None, None) for a broken one."""
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.hostname, parts.port
    except ValueError:
        return None, None


def is_own(host_header: str, origin: str | None) -> bool:
    """Whether a request was addressed to this machine by name and, where it tells its page, comes from our own.

    A foreign page that reaches us through a name which resolves to 127.0.0.1 (DNS rebinding) sends that name as host.
    """
    address = _address(f"//{host_header}")
    own_page = origin is None or (origin.lower().startswith("http://") and _address(origin) == address)
    return is_loopback(address[0]) and own_page


@web.middleware
async def only_own_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not is_own(request.headers.get("Host", ""), request.headers.get("Origin")):
        return web.Response(status=403, text="This server answers only its own pages on this machine.")
    return await handler(request)
