"""A measurement: an operator, what it saw, and the move of a picture that agrees better with it."""

import math
from dataclasses import dataclass

import torch

from .base import Operator, gradients, working

TRIAL = 0.1
"""Length of the trial move of a non-linear operator's line search, as a share of the picture's RMS."""


def rms(x):
    """Root mean square of each item [B, ...] -> [B, 1, ...]."""
    return x.abs().square().flatten(1).mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Measurement:
    """y = A x + sigma n of unknown pictures x.

    y: on the CPU, float32 or complex64. sigma: standard deviation of its noise, in units of y. shape: of x,
    [B, C, H, W]; a single item stands for all items of a batch.
    """

    operator: Operator
    y: torch.Tensor
    sigma: float
    shape: tuple[int, ...]

    def check(self, shape):
        """Raise ValueError where pictures of this shape are not those that were measured."""
        if tuple(shape[1:]) != tuple(self.shape[1:]) or len(self.y) not in (1, self._rows(shape)):
            raise ValueError(
                f"measurement is of pictures {_size(self.shape)}, but they are {_size(shape)} here; measure a picture "
                "of that size, or sample at the size of the measured one")

    def _rows(self, shape):
        return self.operator.out_shape(shape)[0] if self.operator.mixes_items else shape[0]

    def target(self, x):
        """y on the device of pictures x, one for each."""
        dtype = None if self.y.is_complex() else working(x).dtype
        y = self.y.to(x.device, dtype)
        return y.expand(self._rows(x.shape), *y.shape[1:])

    def residual(self, x):
        """A x - y."""
        return self.operator.A(x) - self.target(x)

    def direction(self, x):
        """What to subtract from pictures x so that they agree with y: the gradient of |A x - y|^2 / 2, in units where
        the whole of it is the projection for A = identity.

        A linear operator's gradient is divided by its largest eigenvalue; a non-linear one's by what the residual does
        along a trial move, so that the whole of it is the best step in that direction. Of noise, as much is left in the
        residual as belongs there. Raises ValueError for an operator without a gradient, or pictures of another size.
        """
        self.check(x.shape)
        if self.operator.linear:
            residual = self.residual(x)
            move = self.operator.At(residual, x.shape) / self.operator.norm2(x.shape)
        else:
            residual, move = self._line_search(x)
        return self._beyond_noise(residual) * move

    def _beyond_noise(self, residual):
        if not self.sigma:
            return 1.0
        level = rms(residual)
        share = (1 - self.sigma / level.clamp_min(1e-12)).clamp_min(0)
        return share.mean() if self.operator.mixes_items else share.view(-1, 1, 1, 1)

    def _line_search(self, x):
        if self.operator.gradient == "none":
            raise ValueError(f"{type(self.operator).__name__} has no gradient, so nothing can be steered by it; choose "
                             "a rounding with a gradient")
        with gradients():
            leaf = x.detach().clone().requires_grad_()
            residual = self.residual(leaf)
            gradient, = torch.autograd.grad(residual.abs().square().sum() / 2, leaf)
        residual = residual.detach()
        size = TRIAL * rms(x) / rms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        with torch.no_grad():
            change = (self.residual(x - size * gradient) - residual).flatten(1)
        best = -torch.linalg.vecdot(change, residual.flatten(1)).real / change.abs().square().sum(1).clamp_min(1e-20)
        if self.operator.mixes_items:
            best = best.mean().expand(len(x))
        return residual, size * best.clamp(0, 1 / TRIAL).view(-1, *[1] * (x.ndim - 1)) * gradient

    def error(self, x):
        """RMS of the residual over all of y, a float."""
        return math.sqrt(float(self.residual(x).abs().square().mean()))


def _size(shape):
    return " x ".join(str(n) for n in shape[2:]) + f" with {shape[1]} channels (batch of {shape[0]})"
