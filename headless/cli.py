"""The `trajectory` command: run saved graphs, list nodes, serve the editor.

Exit codes of `run`: 0 all results are made; 1 a node broke while running; 2 bad input (file, graph, values, weights,
pictures); 130 stopped with Ctrl-C. Whatever the code, results of finished nodes are kept and listed.
"""

import argparse
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from . import errors, graph, overrides, preflight, workflow_file
from .backend import Backend, Outcome
from .errors import UnknownNodes, UserError

OK, BROKE, BAD_INPUT, STOPPED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except UserError as error:
        if getattr(arguments, "traceback", False):
            traceback.print_exc()
        print(f"trajectory: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("trajectory: stopped before the graph ran; nothing was made.", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trajectory", description="Run ComfyUI graphs from the command line.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a saved graph", description="Run a graph saved from the editor, an API "
                              "prompt, or the graph in a saved picture.")
    run.add_argument("workflow", type=Path, metavar="WORKFLOW", help="a .json file or a picture that holds its graph")
    run.add_argument("--set", action="append", default=[], metavar='"Node title.input=value"', dest="assignments",
                     help="change an input; the node may also be given as #id, or by its type where that is unique")
    run.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for results (default: out)")
    run.add_argument("--seed", type=int, metavar="N", help="use this seed in every node that has one")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--comfyui", type=Path, metavar="PATH", help="run in process on this ComfyUI checkout")
    where.add_argument("--host", metavar="URL", help="run on the ComfyUI server at this address")
    run.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    run.set_defaults(command=_run)

    nodes = commands.add_parser("nodes", help="list the nodes of the embedded host")
    nodes.set_defaults(command=_nodes)

    serve = commands.add_parser("serve", help="open the editor on the embedded host")
    serve.add_argument("--port", type=int, default=8188, help="port to listen on (default: 8188)")
    serve.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for results (default: out)")
    serve.set_defaults(command=_serve)
    return parser


def _nodes(_arguments) -> int:
    from .embedded import EmbeddedHost

    for name, info in sorted(EmbeddedHost(Path("out").resolve()).object_info().items()):
        text = (info.get("description") or info.get("display_name") or "").strip().split("\n")[0]
        print(name if text in ("", name) else f"{name}: {text}")
    return OK


def _serve(arguments) -> int:
    from . import server

    arguments.out = _output_folder(arguments.out)
    return server.main(arguments) or OK


def _output_folder(given: Path) -> Path:
    """The absolute path of --out, which need not exist yet. Raises UserError where it cannot be made or written."""
    try:
        out = given.resolve()
        standing = next(folder for folder in (out, *out.parents) if folder.exists())
        if not standing.is_dir():
            raise UserError(f"--out {given}: {standing} is a file; name a folder.")
        with tempfile.TemporaryFile(dir=standing):  # leaves nothing; permission bits do not tell it all
            return out
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {given}: no results can be written there ({reason}). Name another folder.") from None


def _run(arguments) -> int:
    saved = workflow_file.read(arguments.workflow)
    assignments = [overrides.parse_assignment(text) for text in arguments.assignments]
    here, out = Path.cwd(), _output_folder(arguments.out)
    host = _backend(arguments, out)
    object_info = host.object_info()
    try:
        prompt, workflow = _prepare(saved, assignments, arguments.seed, object_info)
    except UnknownNodes as error:
        raise UserError(f"{error}\n{host.unknown_nodes_advice}") from error
    return _execute(host, prompt, workflow, object_info, (here, out), arguments.traceback)


def _backend(arguments, out: Path) -> Backend:
    if arguments.host:
        from .remote import RemoteHost

        return RemoteHost(arguments.host, out)
    if arguments.comfyui:
        from .real import RealHost

        return RealHost(arguments.comfyui, out)
    from .embedded import EmbeddedHost

    return EmbeddedHost(out)


def _prepare(saved: workflow_file.Saved, assignments: list[tuple[str, str]], seed: int | None,
             object_info: dict) -> tuple[dict, dict | None]:
    """The prompt to run and the workflow to write into its pictures.

    A graph is converted; a prompt (also one from a picture, which says exactly what was run) is taken as it is. The
    workflow follows the overrides; where it cannot, it is left out, and pictures carry the prompt alone.
    """
    if saved.prompt is None:
        conversion = graph.convert(saved.graph, object_info)
        prompt, workflow, places = conversion.prompt, conversion.workflow, conversion.places
    else:
        prompt, workflow, places = saved.prompt, saved.graph, {}
    preflight.check_types(prompt, object_info, workflow)
    changed = [] if seed is None else overrides.set_seed(prompt, seed, object_info)
    changed += overrides.apply_overrides(prompt, assignments, object_info)  # last: --set names one node
    preflight.check_values(prompt, object_info)
    for key in changed:
        value = prompt[key[0]]["inputs"][key[1]]
        if workflow is None or not places.get(key):
            return prompt, None
        for place in places[key]:
            place.write(value["__value__"] if isinstance(value, dict) and "__value__" in value else value)
    return prompt, workflow


def _execute(host: Backend, prompt: dict, workflow: dict | None, object_info: dict, folders: tuple[Path, Path],
             verbose: bool) -> int:
    from .progress import Progress

    progress = Progress(prompt, len(preflight.needed(prompt, object_info)))
    with _Interruption(host, progress) as on_event:
        outcome = host.run(prompt, workflow, on_event)
    progress.close()
    return _report(outcome, prompt, object_info, progress.finished, folders, verbose)


class _Interruption:
    """While a run goes on, the first Ctrl-C asks the host to stop at its next step; the second one kills."""

    def __init__(self, host: Backend, on_event):
        self._host, self._on_event, self._asked = host, on_event, False

    def __enter__(self):
        self._before = signal.signal(signal.SIGINT, self._first)
        return self._pass_on

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self._before)

    def _first(self, _number, _frame):
        self._asked = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(2, b"\nStopping at the next step; Ctrl-C again kills at once.\n")  # print is not safe in a handler
        self._host.interrupt()

    def _pass_on(self, event: str, data: dict) -> None:
        if self._asked and event == "execution_start":  # a host forgets earlier requests when it begins
            self._host.interrupt()
        self._on_event(event, data)


def _report(outcome: Outcome, prompt: dict, object_info: dict, finished: list[str], folders: tuple[Path, Path],
            verbose: bool) -> int:
    """Say how the run ended; `folders` are the one that the command was given in, and that of results."""
    here, out = folders
    problems = errors.describe_validation(outcome.refusal, outcome.node_errors, prompt, object_info)
    for sentence in problems:
        print(f"trajectory: {sentence}", file=sys.stderr)
    for result in outcome.results:
        shown = _relative(result.path, here) if result.path else result.text
        print(f"{errors.title(prompt, result.node_id)} (#{result.node_id}): {shown}")
    if outcome.failure:
        if verbose:
            print("".join(outcome.failure.get("traceback") or []), file=sys.stderr)
        print(f"trajectory: {errors.describe_failure(outcome.failure, prompt, out)}", file=sys.stderr)
        return BAD_INPUT if errors.is_bad_input(outcome.failure) else BROKE
    if outcome.interrupted:
        print(f"trajectory: stopped. {_finished(finished, prompt)} {_kept(outcome)}", file=sys.stderr)
        return STOPPED
    return BAD_INPUT if problems else OK


def _finished(finished: list[str], prompt: dict) -> str:
    if not finished:
        return "No node was finished."
    return f"Finished: {', '.join(errors.title(prompt, ident) for ident in finished)}."


def _kept(outcome: Outcome) -> str:
    return "Their results are listed above." if outcome.results else "No result was saved."


def _relative(path: Path, here: Path) -> Path:
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())
