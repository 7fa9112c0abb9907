"""Frames of a video that were left out or ran into each other; the batch is the video."""

import torch

from .base import Operator, working

MODES = ("average", "drop", "mask")


class Temporal(Operator):
    """Of every `frames` frames one: pictures [B, C, H, W] -> [ceil(B / frames), C, H, W].

    "average": their mean; a last part of fewer frames is the mean of these. "drop": the first. "mask": the first, with
    black frames in place of the others, [B, C, H, W].
    """

    mixes_items = True

    def __init__(self, mode="average", frames=2):
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
        if frames < 1:
            raise ValueError(f"frames is {frames}; set it to 1 or more")
        self.mode, self.frames = mode, frames

    def matrix(self, count):
        """A for `count` frames, [frames of the measurement, count], float64."""
        frame = torch.arange(count)
        if self.mode == "mask":
            return torch.diag((frame % self.frames == 0).double())
        parts = torch.arange(-(-count // self.frames))[:, None]
        if self.mode == "drop":
            return (frame == self.frames * parts).double()
        inside = (frame // self.frames == parts).double()
        return inside / inside.sum(1, keepdim=True)

    def out_shape(self, shape):
        return torch.Size((shape[0] if self.mode == "mask" else -(-shape[0] // self.frames), *shape[1:]))

    def forward(self, x):
        return torch.tensordot(self.matrix(len(x)).to(x), x, 1)

    def adjoint(self, y, shape):
        return torch.tensordot(self.matrix(shape[0]).T.to(y), y, 1)

    def pinv(self, y, shape):
        """Each known frame, repeated until the next; of all videos that fit, the one without change between them."""
        first = torch.arange(shape[0]) // self.frames
        return working(y)[first * self.frames if self.mode == "mask" else first]

    def norm2(self, shape):
        return float(self.matrix(shape[0]).square().sum(1).max())
