"""How steady a clip is, and how true to the picture that it starts from. Frames are [T, 3, H, W] in 0..1.

Frames are seen one after the other: what is made of a whole long video would be several times as large.
"""

from itertools import pairwise

import torch

from .colour_fix import to_lab


def adjacent_difference(frames):
    """Mean |f_{i+1} - f_i|: how much the clip moves; 0 for a single frame."""
    return _mean((after - before).abs() for before, after in pairwise(frames))


def jitter(frames):
    """Mean |f_{i+1} - 2 f_i + f_{i-1}|: what is uneven in the motion; 0 for fewer than three frames."""
    neighbours = zip(frames, frames[1:], frames[2:], strict=False)
    return _mean((after - 2 * here + before).abs() for before, here, after in neighbours)


def colour_drift(frames, reference):
    """Mean distance in CIELAB of each frame's mean colour from that of the reference [1, 3, H, W]."""
    colour = to_lab(reference).mean((2, 3))
    return _mean((to_lab(frame).mean((2, 3)) - colour).norm() for frame in frames.split(1))


def frame_consistency(embeddings, count=None):
    """Mean cosine, times 100, of the first embedding [T, D] with the next `count` (all by default); 100 if alone."""
    others = embeddings[1:] if count is None else embeddings[1 : 1 + count]
    if not len(others):
        return 100.0
    return 100 * torch.cosine_similarity(embeddings[:1], others).mean().item()


def _mean(parts):
    """The mean of tensors of one size; 0 for none."""
    means = [part.mean().item() for part in parts]
    return sum(means) / len(means) if means else 0.0
