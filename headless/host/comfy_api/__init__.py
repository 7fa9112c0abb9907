"""Clean-room stand-in for the host package `comfy_api`: the V3 node interface of ComfyUI 0.3.64."""
