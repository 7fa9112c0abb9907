"""A measurement: an operator, what it saw, and the move of a picture that agrees better with it."""

import math
from dataclasses import dataclass

import torch

from .base import Operator, gradients, working

TRIAL = 0.1
"""Length of the trial move of a non-linear operator's line search, as a share of the picture's RMS."""
DARKEST = 0.1
"""RMS that the line search takes a picture to have at least, so that it finds its way out of black."""


def rms(x):
    """Root mean square of each item [B, ...] -> [B, 1, ...]."""
    return x.abs().square().flatten(1).mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))


def psnr(pictures, reference):
    """Peak signal-to-noise ratio in dB of pictures with values in 0..1 over all of them, a float; 100 at most."""
    error = float((working(pictures) - working(reference)).square().mean())
    return -10 * math.log10(max(error, 1e-10))


@dataclass(frozen=True)
class Measurement:
    """y = A x + sigma n of unknown pictures x.

    y: on the CPU, float32 or complex64. sigma: standard deviation of its noise, in units of y, 0 or more. shape: of x,
    [B, C, H, W]; a single item stands for all items of a batch. Raises ValueError for another sigma.
    """

    operator: Operator
    y: torch.Tensor
    sigma: float
    shape: tuple[int, ...]

    def __post_init__(self):
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma_y is {self.sigma}; set it to the standard deviation of the noise, 0 for none")

    def check(self, shape):
        """Raise ValueError where pictures of this shape are not those that were measured."""
        fits = shape[0] == self.shape[0] if self.operator.mixes_items else len(self.y) in (1, shape[0])
        if tuple(shape[1:]) != tuple(self.shape[1:]) or not fits:
            raise ValueError(
                f"measurement is of pictures {size_of(self.shape)}, but they are {size_of(shape)} here; measure a "
                "picture of that size, or sample at the size of the measured one")

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
            move = self.operator.At(residual, x.shape)
            move = move / (self.operator.norm2(x.shape) or 1.0)  # 0: the operator sees nothing, so nothing moves
        else:
            residual, move = self._line_search(x)
        return self._beyond_noise(residual, x.ndim) * move

    def _beyond_noise(self, residual, rank):
        """Share of the residual that is no noise, to broadcast with pictures of this rank."""
        if not self.sigma:
            return 1.0
        seen = self.operator.visible  # what is hidden tells nothing of the noise
        level = rms(seen(residual)) / rms(seen(torch.ones_like(residual))).clamp_min(1e-12)
        share = (1 - self.sigma / level.clamp_min(1e-12)).clamp_min(0)
        return share.mean() if self.operator.mixes_items else share.view(-1, *[1] * (rank - 1))

    def _line_search(self, x):
        if self.operator.gradient == "none":
            raise ValueError(f"{type(self.operator).__name__} has no gradient, so nothing can be steered by it; choose "
                             "a rounding with a gradient")
        with gradients():
            leaf = x.detach().clone().requires_grad_()
            residual = self.residual(leaf)
            gradient, = torch.autograd.grad(residual.abs().square().sum() / 2, leaf)
        residual = residual.detach()
        size = TRIAL * rms(x).clamp_min(DARKEST) / rms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        with torch.no_grad():
            change = (self.residual(x - size * gradient) - residual).flatten(1)
        best = -torch.linalg.vecdot(change, residual.flatten(1)).real / change.abs().square().sum(1).clamp_min(1e-20)
        if self.operator.mixes_items:
            best = best.mean().expand(len(x))
        return residual, size * best.clamp(0, 1 / TRIAL).view(-1, *[1] * (x.ndim - 1)) * gradient

    def picture_error(self, pictures):
        """RMS of the residual of pixels [B, 3, H, W] over all of y, a float; also where the operator takes latents."""
        seen = self.operator.observe(pictures)
        return math.sqrt(float((seen - self.y.to(seen)).abs().square().mean()))


def size_of(shape):
    """The shape of pictures or latents [B, C, ..., H, W] in words, width first."""
    return f"{shape[-1]} x {shape[-2]} with {shape[1]} channels (batch of {shape[0]})"
