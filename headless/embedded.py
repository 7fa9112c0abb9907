"""The embedded host as a back-end of the command line."""

from pathlib import Path

from .backend import Folders, Listener, LocalRun, Outcome


class EmbeddedHost:
    unknown_nodes_advice = ("The embedded host holds only this pack and the core nodes that its examples need. Run the "
                            "graph on a full ComfyUI: --comfyui PATH for a checkout, --host URL for a running one.")

    def __init__(self, out: Path):
        from .runtime import embedded

        self._folders = Folders(out)
        self._runtime = embedded()

    def object_info(self) -> dict:
        return self._runtime.object_info()

    def run(self, prompt: dict, workflow: dict | None, on_event: Listener) -> Outcome:
        import comfy.utils
        import folder_paths

        comfy.utils.PROGRESS_BAR_ENABLED = False  # the samplers' own bars would run through ours
        folder_paths.set_output_directory(str(self._folders.output))
        folder_paths.set_temp_directory(str(self._folders.previews))
        run = LocalRun(self._folders, on_event)
        extra_data = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        answer = self._runtime.run(prompt, extra_data, run)
        run.outcome.refusal, run.outcome.node_errors = answer.error, answer.node_errors
        return run.outcome

    def interrupt(self) -> None:
        self._runtime.interrupt()
