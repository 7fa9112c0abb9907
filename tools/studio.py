"""Runs graphs in the embedded host and hands back the pictures they show; for the scripts beside it."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageSequence
from trajectory.headless.embedded import EmbeddedHost
from trajectory.headless.graph import convert
from trajectory.headless.overrides import apply_overrides
from trajectory.headless.workflow_file import read

EXAMPLES = Path(__file__).resolve().parents[1] / "example_workflows"


@contextmanager
def elsewhere():
    """In a temporary folder: the embedded host has its models where it is started, and examples save some."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def frames_of(file):
    """The RGB pictures in a picture file, several where it is animated."""
    with Image.open(file) as picture:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]


def example(name):
    """The saved graph of an example."""
    return read(EXAMPLES / f"{name}.json").graph


class Studio:
    """An embedded host; `object_info` describes its nodes."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._host = EmbeddedHost(Path(self._folder.name))
        self.object_info = self._host.object_info()

    def pictures(self, workflow, settings=None):
        """{title of a node: [the RGB pictures it shows]} of a run of `workflow` with {"Node title.input": value}.

        Raises RuntimeError for a run that fails.
        """
        prompt = convert(workflow, self.object_info).prompt
        texts = [(target, str(value)) for target, value in (settings or {}).items()]
        apply_overrides(prompt, texts, self.object_info)
        outcome = self._host.run(prompt, None, lambda event, data: None)
        if outcome.failure or outcome.refusal:
            raise RuntimeError(f"the graph did not run: {outcome.failure or outcome.refusal}")
        shown = {}
        for result in outcome.results:
            if result.path:
                title = prompt[result.node_id]["_meta"]["title"]
                shown.setdefault(title, []).extend(frames_of(result.path))
        return shown
