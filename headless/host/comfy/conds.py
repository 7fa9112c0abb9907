"""Containers that carry one conditioning input to the model and know how to batch it."""

import logging
import math

import torch

import comfy.utils


class CONDRegular:
    """A tensor whose first dimension is the batch; only equal shapes are concatenated."""

    def __init__(self, cond):
        self.cond = cond

    def _batched(self, cond, batch_size):
        return self._copy_with(comfy.utils.repeat_to_batch_size(cond, batch_size))

    def process_cond(self, batch_size, **kwargs):
        """What a run with this batch size uses."""
        return self._batched(self.cond, batch_size)

    def _copy_with(self, cond):
        """The same kind of container around something else."""
        return type(self)(cond)

    def can_concat(self, other):
        return self.cond.shape == other.cond.shape and self._same_device(other)

    def _same_device(self, other):
        if self.cond.device == other.cond.device:
            return True
        logging.warning("Conditionings lie on different devices and are run one after the other.")
        return False

    def concat(self, others):
        return torch.cat([self.cond] + [other.cond for other in others])

    def size(self):
        return [*self.cond.shape]


class CONDNoiseShape(CONDRegular):
    """A tensor with the latent's spatial shape, cut to the conditioned area."""

    def process_cond(self, batch_size, area, **kwargs):
        """`area` = (*lengths, *starts) of the dimensions after batch and channel."""
        cut = self.cond
        if area is not None:
            half = len(area) // 2
            for dim, (length, start) in enumerate(zip(area[:half], area[half:], strict=True), start=2):
                cut = cut.narrow(dim, start, length)
        return self._batched(cut, batch_size)


class CONDCrossAttn(CONDRegular):
    """Text tokens [B, T, C]. Different T are joined by repeating, which cross attention does not notice."""

    _LONGEST_REPEAT = 4  # beyond this the padding costs more than a second model call

    def can_concat(self, other):
        mine, theirs = self.cond.shape, other.cond.shape
        if mine != theirs:
            if mine[0] != theirs[0] or mine[2] != theirs[2]:
                return False
            if math.lcm(mine[1], theirs[1]) // min(mine[1], theirs[1]) > self._LONGEST_REPEAT:
                return False
        return self._same_device(other)

    def concat(self, others):
        conds = [self.cond] + [other.cond for other in others]
        length = math.lcm(*(cond.shape[1] for cond in conds))
        return torch.cat([cond.repeat(1, length // cond.shape[1], 1) for cond in conds])


class CONDConstant(CONDRegular):
    """A value that is the same for the whole batch."""

    def can_concat(self, other):
        return self.cond == other.cond

    def concat(self, others):
        return self.cond

    def process_cond(self, batch_size, **kwargs):
        return self._copy_with(self.cond)

    def size(self):
        return [1]


class CONDList(CONDRegular):
    """A list of tensors, batched one by one."""

    def process_cond(self, batch_size, **kwargs):
        return self._copy_with([comfy.utils.repeat_to_batch_size(cond, batch_size) for cond in self.cond])

    def can_concat(self, other):
        return [cond.shape for cond in self.cond] == [cond.shape for cond in other.cond]

    def concat(self, others):
        return [torch.cat(parts) for parts in zip(self.cond, *(other.cond for other in others), strict=True)]

    def size(self):
        total = sum(math.prod(cond.size()) for cond in self.cond)
        width = self.cond[-1].shape[1] if self.cond and self.cond[-1].ndim > 1 else 1
        return [1, width, total // width]
