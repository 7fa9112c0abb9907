"""What a pack imports: `from comfy_api.latest import ComfyExtension, io, ui`."""

from abc import ABC, abstractmethod

from . import _io as io
from . import _ui as ui

__all__ = ["ComfyExtension", "io", "ui"]


class ComfyExtension(ABC):
    """What a pack's `comfy_entrypoint` returns."""

    async def on_load(self) -> None:  # noqa: B027 - optional to override
        """Never called by ComfyUI 0.3.64, nor here; newer hosts call it once."""

    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes of the pack."""
