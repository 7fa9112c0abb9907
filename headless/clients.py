"""The editor's open web sockets: events and previews on their way from the executor to the pages."""

import asyncio
import json
import logging
import struct
import uuid
from io import BytesIO
from typing import Any

from aiohttp import WSMsgType, web

from .execution import PREVIEW_IMAGE_WITH_METADATA
from .strict_json import BadJSON, parse

logger = logging.getLogger("trajectory.server")

MAX_UPLOAD = 100 * 2**20
PREVIEW_IMAGE = 1
IMAGE_CODES = {"JPEG": 1, "PNG": 2}


class Clients:
    """Open web sockets by client id. `send` may be called from any thread and keeps the order of its calls."""

    def __init__(self):
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._flags: dict[str, dict] = {}
        self._outgoing: asyncio.Queue[tuple[Any, Any, str | None]] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sender: asyncio.Task | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = asyncio.create_task(self._send_all())

    async def stop(self) -> None:
        self._sender.cancel()
        for socket in list(self._sockets.values()):
            await socket.close()

    def send(self, event, data, client_id: str | None = None) -> None:
        """Send an event to one client, or to all where the id is None."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outgoing.put_nowait, (event, data, client_id))

    async def _send_all(self) -> None:
        while True:
            event, data, client_id = await self._outgoing.get()
            for sid, socket in list(self._sockets.items()):
                if client_id in (None, sid):
                    await self._send(socket, sid, event, data)

    async def _send(self, socket: web.WebSocketResponse, sid: str, event, data) -> None:
        try:
            if event == PREVIEW_IMAGE_WITH_METADATA:
                wants_metadata = self._flags.get(sid, {}).get("supports_preview_metadata", False)
                await socket.send_bytes(encode_preview(*data, with_metadata=wants_metadata))
            else:
                await socket.send_str(json.dumps({"type": event, "data": data}, default=str))
        except (ConnectionError, RuntimeError) as error:  # the client has gone
            logger.debug("client %s: %s", sid, error)

    async def serve(self, request: web.Request, status: dict) -> web.WebSocketResponse:
        """Talk to one client until it closes the socket."""
        socket = web.WebSocketResponse(heartbeat=30)
        await socket.prepare(request)
        sid = request.query.get("clientId") or uuid.uuid4().hex
        self._sockets[sid] = socket
        try:
            await self._send(socket, sid, "status", {"status": status, "sid": sid})
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    await self._receive(socket, sid, message.data)
        finally:
            if self._sockets.get(sid) is socket:
                del self._sockets[sid]
                self._flags.pop(sid, None)
        return socket

    async def _receive(self, socket: web.WebSocketResponse, sid: str, text: str) -> None:
        try:
            message = parse(text)
        except BadJSON:
            return
        if isinstance(message, dict) and message.get("type") == "feature_flags":
            flags = message.get("data")
            self._flags[sid] = flags if isinstance(flags, dict) else {}
            await self._send(socket, sid, "feature_flags", features())


def features() -> dict:
    return {"supports_preview_metadata": True, "max_upload_size": MAX_UPLOAD}


def encode_preview(preview: tuple, metadata: dict, with_metadata: bool) -> bytes:
    """Binary frame of a preview ((format, Pillow picture, largest side or None), metadata)."""
    kind, picture, largest = preview
    kind = kind if kind in IMAGE_CODES else "JPEG"
    if largest:
        factor = largest / max(picture.size)
        picture = picture.resize([max(1, round(side * factor)) for side in picture.size])
    buffer = BytesIO()
    (picture.convert("RGB") if kind == "JPEG" else picture).save(buffer, format=kind)
    if not with_metadata:
        return struct.pack(">II", PREVIEW_IMAGE, IMAGE_CODES[kind]) + buffer.getvalue()
    described = json.dumps({**metadata, "image_type": f"image/{kind.lower()}"}).encode()
    return struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(described)) + described + buffer.getvalue()


class ExecutorLink:
    """What the executor needs of a server: whom to tell, and which node was last."""

    def __init__(self, clients: Clients):
        self._clients = clients
        self.client_id: str | None = None
        self.last_node_id: str | None = None

    def send_sync(self, event, data, client_id: str | None = None) -> None:
        self._clients.send(event, data, client_id)
