"""The attention that packs call."""

from comfy._layers import optimized_attention

__all__ = ["optimized_attention"]
