"""What the command line needs of a host, whichever it is: embedded, a ComfyUI checkout in process, or a running one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

# (event, data) under the names and with the contents of ComfyUI's websocket messages
Listener = Callable[[str, dict], None]


@dataclass(frozen=True)
class Result:
    """A file that a node wrote, or a text that it shows."""

    node_id: str
    path: Path | None = None
    text: str | None = None


@dataclass
class Outcome:
    """How a run ended. `refusal` and `node_errors` come from validation, `failure` is an `execution_error` record."""

    results: list[Result] = field(default_factory=list)
    refusal: dict | None = None
    node_errors: dict = field(default_factory=dict)
    failure: dict | None = None
    interrupted: bool = False

    def note(self, event: str, data: dict) -> None:
        """Keep what an event of the run says about its end."""
        if event == "execution_error":
            self.failure = data
        elif event == "execution_interrupted":
            self.interrupted = True


class Backend(Protocol):
    unknown_nodes_advice: str

    def object_info(self) -> dict:
        """Schemas of all node types, as `GET /object_info` gives them."""

    def run(self, prompt: dict, workflow: dict | None, on_event: Listener) -> Outcome:
        """Validate and execute an API prompt; results lie in the output folder when it returns.

        Branches that do not validate are left out, as a host does; `workflow` is written into saved pictures.
        """

    def interrupt(self) -> None:
        """Ask the run to stop at its next step. Called from a signal handler."""


def files_of(output: dict) -> Iterator[dict]:
    """Records {"filename", "subfolder", "type"} in what a node shows, whatever their kind (images, audio, ...)."""
    for entries in output.values():
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if isinstance(entry, dict) and entry.get("filename"):
                yield entry


def texts_of(output: dict) -> Iterator[str]:
    entries = output.get("text") or ()
    yield from (entry for entry in ([entries] if isinstance(entries, str) else entries) if isinstance(entry, str))


@dataclass(frozen=True)
class Folders:
    """Where a run's files go: results into `output`, previews below it."""

    output: Path

    @property
    def previews(self) -> Path:
        return self.output / "preview"

    def path_of(self, record: dict) -> Path | None:
        """Path for a node's file record; None for a file of the input folder, which is no result."""
        root = {"output": self.output, "temp": self.previews}.get(record.get("type", "output"))
        return None if root is None else root / (record.get("subfolder") or "") / record["filename"]

    def results(self, node_id: str, output: dict) -> list[Result]:
        """Results of a node whose host writes into these folders itself."""
        files = [path for path in map(self.path_of, files_of(output)) if path is not None]
        return [*(Result(node_id, path=p) for p in files), *(Result(node_id, text=t) for t in texts_of(output))]


class LocalRun:
    """Listener of a run in this process: keeps its results and passes every event on."""

    def __init__(self, folders: Folders, on_event: Listener):
        self.outcome = Outcome()
        self._folders = folders
        self._on_event = on_event

    def __call__(self, event: str | int, data) -> None:
        if not isinstance(event, str):  # numbers stand for binary previews
            return
        self.outcome.note(event, data)
        if event == "executed":
            shown = data.get("output") or {}
            self.outcome.results += self._folders.results(str(data.get("display_node") or data["node"]), shown)
        self._on_event(event, data)
