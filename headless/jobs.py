"""Queue and history in the form of `/api/jobs`, which the editor reads since host 0.6."""

from collections.abc import Iterator

from .backend import files_of
from .prompt_queue import Job, PromptQueue

PREVIEWABLE = ("images", "gifs", "video", "audio", "3d", "text")
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def all_jobs(queue: PromptQueue) -> list[dict]:
    """Summaries of all jobs, newest first."""
    running, waiting = queue.snapshot()
    jobs = [_unfinished(job, "in_progress") for job in running] + [_unfinished(job, "pending") for job in waiting]
    jobs += [_finished(prompt_id, entry, queue.created(prompt_id)) for prompt_id, entry in queue.history().items()]
    return sorted(jobs, key=lambda job: job["create_time"], reverse=True)


def one_job(queue: PromptQueue, prompt_id: str) -> dict | None:
    """A job with its outputs and graph, None for an unknown one."""
    for entry in queue.history(prompt_id).values():
        _, _, prompt, extra_data, _ = entry["prompt"]
        return {
            **_finished(prompt_id, entry, queue.created(prompt_id)),
            "outputs": entry["outputs"],
            "execution_status": entry["status"],
            "workflow": {"prompt": prompt, "extra_data": extra_data},
        }
    return next((job for job in all_jobs(queue) if job["id"] == prompt_id), None)


def _unfinished(job: Job, status: str) -> dict:
    return {
        "id": job.prompt_id,
        "status": status,
        "priority": job.number,
        "create_time": job.created,
        "outputs_count": 0,
        **_workflow_id(job.extra_data),
    }


def _finished(prompt_id: str, entry: dict, created: int) -> dict:
    number, _, _, extra_data, _ = entry["prompt"]
    events = dict(entry["status"]["messages"])
    end = next((name for name in ENDS if name in events), None)
    statuses = {"execution_error": "failed", "execution_interrupted": "cancelled"}
    shown = list(_previews(entry["outputs"]))
    saved = [record for record in shown if record.get("type") == "output"]
    job = {
        "id": prompt_id,
        "status": statuses.get(end, "completed" if entry["status"]["completed"] else "failed"),
        "priority": number,
        "create_time": created,
        "outputs_count": len(shown),
        **_workflow_id(extra_data),
    }
    if "execution_start" in events:
        job["execution_start_time"] = events["execution_start"]["timestamp"]
    if end:
        job["execution_end_time"] = events[end]["timestamp"]
    if "execution_error" in events:
        job["execution_error"] = events["execution_error"]
    if shown:
        job["preview_output"] = (saved or shown)[0]
    return job


def _workflow_id(extra_data: dict) -> dict:
    found = ((extra_data.get("extra_pnginfo") or {}).get("workflow") or {}).get("id")
    return {"workflow_id": found} if found else {}


def _previews(outputs: dict) -> Iterator[dict]:
    """File records of the outputs with the node and the medium that they belong to."""
    for node_id, shown in outputs.items():
        for medium in (m for m in PREVIEWABLE if m in shown):
            for record in files_of({medium: shown[medium]}):
                yield {**record, "nodeId": node_id, "mediaType": medium}
