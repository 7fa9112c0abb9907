"""Clean-room stand-in for the host package `comfy_execution`: what node code may import of it."""
