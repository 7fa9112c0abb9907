"""Show a run on the terminal: bars for nodes and steps, or one line per node where nobody watches."""

import sys
import time

from tqdm import tqdm

from .errors import title


class Progress:
    """Listener for the events of a run; `finished` collects the ids of the nodes that are done."""

    def __init__(self, prompt: dict, total: int, stream=None):
        self.finished: list[str] = []
        self._prompt = prompt
        self._total = total
        self._stream = stream or sys.stderr
        self._started: dict[str, float] = {}
        self._bars = self._stream.isatty()
        self._nodes = tqdm(total=total, unit="node", file=self._stream, disable=not self._bars, position=0)
        self._steps: tqdm | None = None

    def __call__(self, event: str, data: dict) -> None:
        if event == "execution_cached":
            for ident in data.get("nodes", []):
                self._finish(str(ident))
        elif event == "executing" and data.get("node") is not None:
            self._nodes.set_description(title(self._prompt, str(data.get("display_node") or data["node"])))
        elif event == "progress":
            self._step(int(data.get("value", 0)), int(data.get("max", 0)))
        elif event == "progress_state":
            for ident, state in data.get("nodes", {}).items():
                self._started.setdefault(ident, time.monotonic())
                if state.get("state") == "finished":
                    self._finish(ident)

    def close(self) -> None:
        """Take the bars away; a node that was running stays unfinished."""
        self._end_steps()
        self._nodes.close()

    def _finish(self, ident: str) -> None:
        if ident in self.finished or ident not in self._prompt:
            return
        self._end_steps()
        self.finished.append(ident)
        self._nodes.update(1)
        if not self._bars:
            now = time.monotonic()
            seconds = now - self._started.get(ident, now)
            count, width = len(self.finished), len(str(self._total))
            print(f"[{count:{width}}/{self._total}] {title(self._prompt, ident)} (#{ident}) {seconds:.1f} s",
                  file=self._stream, flush=True)

    def _step(self, value: int, total: int) -> None:
        if not self._bars or total < 1:
            return
        if self._steps is None or self._steps.total != total or value < self._steps.n:
            self._end_steps()
            self._steps = tqdm(total=total, unit="step", file=self._stream, position=1, leave=False)
        self._steps.update(value - self._steps.n)

    def _end_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None
