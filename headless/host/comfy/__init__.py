"""Clean-room stand-in for the host package `comfy`: the public names that pack, core nodes and examples use.

Names, signatures and numbers are those of ComfyUI 0.3.64 and 0.33.0, proved by the contract tests. Memory management,
control networks, hooks and area conditioning are left out on purpose.
"""
