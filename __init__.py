"""Trajectory: published sampling, steering, restoration and distillation techniques as native ComfyUI nodes.

ComfyUI loads this folder by path, so every import inside is relative.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called once by the host; returns the extension that lists the nodes."""
    from .nodes import TrajectoryExtension

    return TrajectoryExtension()
