"""Queued prompts, one at a time in order of priority, and what became of them."""

import copy
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

logger = logging.getLogger("trajectory.server")

HISTORY_LIMIT = 1000


@dataclass
class Job:
    """A validated prompt. Lower numbers run first; `outputs` are the ids of the nodes to reach."""

    number: float
    prompt_id: str
    prompt: dict
    extra_data: dict
    outputs: list[str]
    created: int = field(default_factory=lambda: int(time.time() * 1000))

    def as_entry(self) -> list:
        """The job as the host's queue and history list it."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


@dataclass
class Ending:
    """What an executed job leaves: UI outputs by node, their node records, and the events of the run."""

    success: bool
    outputs: dict
    meta: dict
    messages: list

    def as_history(self, job: Job) -> dict:
        return {
            "prompt": job.as_entry(),
            "outputs": self.outputs,
            "meta": self.meta,
            "status": {
                "status_str": "success" if self.success else "error",
                "completed": self.success,
                "messages": self.messages,
            },
        }


class PromptQueue:
    """Runs jobs in one worker thread.

    Args:
        run: executes a job and returns its ending; called in the worker thread.
        interrupt: asks the running job to stop; called in the caller's thread.
        changed: told whenever the length of the queue changed; called in either thread.
    """

    def __init__(self, run: Callable[[Job], Ending], interrupt: Callable[[], None], changed: Callable[[], None]):
        self._run, self._interrupt, self._changed = run, interrupt, changed
        self._waiting: list[tuple[float, int, Job]] = []
        self._order = itertools.count()
        self._running: Job | None = None
        self._history: dict[str, dict] = {}
        self._created: dict[str, int] = {}
        self._closed = False
        self._lock = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="prompt worker", daemon=True)
        self._worker.start()

    # ------------------------------------------------------------------------------------------ what clients ask for

    def put(self, job: Job) -> None:
        with self._lock:
            heapq.heappush(self._waiting, (job.number, next(self._order), job))
            self._lock.notify()
        self._changed()

    def delete(self, prompt_ids: list[str]) -> bool:
        """Drop waiting jobs; True when there was one."""
        return self._drop(lambda job: job.prompt_id in prompt_ids)

    def clear(self) -> bool:
        """Drop all waiting jobs."""
        return self._drop(lambda job: True)

    def _drop(self, wanted: Callable[[Job], bool]) -> bool:
        with self._lock:
            kept = [entry for entry in self._waiting if not wanted(entry[2])]
            dropped = len(kept) < len(self._waiting)
            self._waiting = kept
            heapq.heapify(self._waiting)
        self._changed()
        return dropped

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Stop the running job (only if it has this id, when one is given); True when it was asked to."""
        with self._lock:
            if self._running is None or prompt_id not in (None, self._running.prompt_id):
                return False
            self._interrupt()
            return True

    def snapshot(self) -> tuple[list[Job], list[Job]]:
        """(running, waiting in order)."""
        with self._lock:
            return [self._running] if self._running else [], [entry[2] for entry in sorted(self._waiting)]

    def remaining(self) -> int:
        running, waiting = self.snapshot()
        return len(running) + len(waiting)

    def history(self, prompt_id: str | None = None) -> dict[str, dict]:
        """Finished jobs, oldest first."""
        with self._lock:
            wanted = self._history if prompt_id is None else [i for i in (prompt_id,) if i in self._history]
            return {i: copy.copy(self._history[i]) for i in wanted}

    def created(self, prompt_id: str) -> int:
        """Milliseconds since 1970 at which a job was queued, 0 for unknown ones."""
        return self._created.get(prompt_id, 0)

    def forget(self, prompt_ids: list[str] | None = None) -> None:
        """Delete these (or all) jobs from the history."""
        with self._lock:
            for prompt_id in list(self._history) if prompt_ids is None else prompt_ids:
                self._history.pop(prompt_id, None)
                self._created.pop(prompt_id, None)

    def close(self, timeout: float = 30.0) -> None:
        """Drop what waits, interrupt what runs, and wait for the worker to end."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            if self._running is not None:
                self._interrupt()
            self._lock.notify()
        self._worker.join(timeout)

    # ------------------------------------------------------------------------------------------ the worker

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                ending = self._run(job)
            except Exception:  # a fault of the server itself must not end the worker
                logger.exception("prompt %s could not be run", job.prompt_id)
                ending = Ending(False, {}, {}, [])
            with self._lock:
                self._running = None
                self._history[job.prompt_id] = ending.as_history(job)
                while len(self._history) > HISTORY_LIMIT:
                    self._created.pop(self._forget_oldest(), None)
            self._changed()

    def _forget_oldest(self) -> str:
        oldest = next(iter(self._history))
        del self._history[oldest]
        return oldest

    def _next(self) -> Job | None:
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._running = heapq.heappop(self._waiting)[2]
            self._created[self._running.prompt_id] = self._running.created
        self._changed()
        return self._running
