"""What a measurement operator is, and what follows from its A alone: adjoint, norm, pseudo-inverse, proximal map.

An operator maps pictures [B, C, H, W] (values in 0..1, or latents) to what a camera, codec or scanner keeps of them.
It has no noise and no state of a run. A subclass writes `forward`; where a closed form is faster than what this class
derives, it writes that, too.
"""

import functools
import math
from contextlib import contextmanager

import torch

POWER_ITERATIONS = 15
CG_STEPS = 50
CG_TOLERANCE = 1e-6
KEPT = 8
"""How many results of a method that is `kept` an operator holds."""


@contextmanager
def gradients():
    """Autograd inside, also where the host runs nodes in inference mode. Tensors from outside must be cloned inside."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def constant(tensor, dtype=torch.float32):
    """A copy on the CPU that autograd may save, whatever mode the tensor was made in."""
    with torch.inference_mode(False):
        return torch.as_tensor(tensor).detach().clone().to("cpu", dtype)


def working(x):
    """x in the precision that operators compute in: float32, or float64 and complex as they are."""
    return x if x.dtype in (torch.float64, torch.complex64, torch.complex128) else x.float()


def inner(a, b, items):
    """Real inner products of two batches: a scalar for each of `items` leading items, to broadcast with them."""
    products = torch.linalg.vecdot(a.reshape(items, -1), b.reshape(items, -1)).real
    return products.view(items, *[1] * (a.ndim - 1)) if items == len(a) else products.view(*[1] * a.ndim)


def folded(rows):
    """Rows of numbers [B, n], each broken into the lines of a square picture [B, 1, H, W] that zeros fill up."""
    edge = math.ceil(math.sqrt(rows.shape[1]))
    return torch.nn.functional.pad(rows, (0, edge**2 - rows.shape[1])).view(len(rows), 1, edge, edge)


def kept(method):
    """The method of an operator, whose last KEPT results for hashable arguments stay with the operator."""
    name = f"_results_of_{method.__name__}"

    @functools.wraps(method)
    def call(self, *arguments):
        results = self.__dict__.setdefault(name, {})
        if arguments not in results:
            results[arguments] = method(self, *arguments)
            if len(results) > KEPT:
                del results[next(iter(results))]  # the oldest
        return results[arguments]

    return call


class Operator:
    """A map A. Every method takes and returns float32 (float64 for float64 input) on the device of its argument.

    linear: whether At, pinv, prox and norm2 exist. gradient: "exact", "straight-through" (the rounding inside counts as
    the identity) or "none". space: "pixel", or "latent" for an operator that takes a VAE's latents. mixes_items:
    whether an output item depends on several input items (frames of a video). complex: whether it measures complex
    numbers.
    """

    linear = True
    gradient = "exact"
    space = "pixel"
    mixes_items = False
    complex = False

    def forward(self, x):
        """A of pictures x in working precision."""
        raise NotImplementedError

    def check(self, shape):
        """Raise ValueError, with the fix, where pictures of this shape do not fit."""

    def A(self, x):
        """The measurement of pictures x. Raises ValueError where their shape does not fit."""
        self.check(x.shape)
        return self.forward(working(x))

    def observe(self, pictures):
        """The measurement of pixels [B, 3, H, W]; A itself, but for an operator that takes latents."""
        return self.A(pictures)

    def domain(self, shape):
        """Shape of what A takes where the pixels have this shape."""
        return torch.Size(shape)

    def out_shape(self, shape):
        """Shape of the measurement of pictures of this shape."""
        return self.A(torch.zeros(shape)).shape

    def preview(self, y):
        """A measurement as pictures [N, 3, H, W] in 0..1: what is one as it is, all else by |y| over its maximum."""
        if y.ndim == 4 and y.shape[1] in (1, 3) and not y.is_complex():
            return working(y).clamp(0, 1).expand(-1, 3, -1, -1)
        size = working(y.abs())
        grey = size.mean(1, keepdim=True) if y.ndim == 4 else folded(size.flatten(1))
        return (grey / grey.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)).expand(-1, 3, -1, -1)

    def visible(self, y):
        """A measurement that somebody else made, without what this operator sees nothing of; most see all of it."""
        return y

    def At(self, y, shape):
        """The adjoint: <A x, y> = <x, At y> for pictures of this shape, real part for complex y. Linear operators."""
        if not self.linear:
            raise ValueError(f"{type(self).__name__} is not linear, so it has no adjoint, and no inverse but where its "
                             "own is written down")
        self.check(shape)
        return self.adjoint(working(y), torch.Size(shape))

    def adjoint(self, y, shape):
        """At in working precision; by autograd, so exact by construction."""
        with gradients():
            y = y.detach().clone()
            x = torch.zeros(shape, dtype=y.real.dtype, device=y.device, requires_grad=True)
            return torch.autograd.grad(self.forward(x), x, y)[0]

    def _items(self, shape):
        return 1 if self.mixes_items else shape[0]

    def norm2(self, shape):
        """Largest eigenvalue of At A for pictures of this shape, a float; by power iteration, kept for each shape."""
        return self._largest(tuple(shape if self.mixes_items else (1, *shape[1:])))

    @kept
    def _largest(self, shape):
        v = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for _ in range(POWER_ITERATIONS):
            v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
            v = self.At(self.A(v), shape)
        return float(v.norm())

    def pinv(self, y, shape):
        """The smallest least-squares solution of A x = y, pictures of this shape; by conjugate gradients (CGLS)."""
        y, items = working(y), self._items(shape)
        x = torch.zeros(shape, dtype=y.real.dtype, device=y.device)
        residual, gradient = y, self.At(y, shape)
        direction, square = gradient, inner(gradient, gradient, items)
        goal = CG_TOLERANCE**2 * square
        for _ in range(CG_STEPS):
            seen = self.A(direction)
            step = square / inner(seen, seen, items).view_as(square).clamp_min(torch.finfo(x.dtype).tiny)
            step = step * (square > goal)  # an item that is done stays, so that it is as it would be alone
            x = x + step * direction
            residual = residual - step.view(-1, *[1] * (y.ndim - 1)) * seen
            gradient = self.At(residual, shape)
            before, square = square, inner(gradient, gradient, items)
            if bool((square <= goal).all()):
                break
            direction = gradient + square / before.clamp_min(torch.finfo(x.dtype).tiny) * direction
        return x

    def prox(self, x, y, gamma):
        """argmin over z of gamma/2 |A z - y|^2 + 1/2 |z - x|^2; by conjugate gradients on (1 + gamma At A) z."""
        x, y, items = working(x), working(y), self._items(x.shape)
        z = x
        residual = gamma * self.At(y - self.A(x), x.shape)
        direction, square = residual, inner(residual, residual, items)
        goal = CG_TOLERANCE**2 * square
        for _ in range(CG_STEPS):
            image = direction + gamma * self.At(self.A(direction), x.shape)
            step = square / inner(direction, image, items).clamp_min(torch.finfo(x.dtype).tiny)
            step = step * (square > goal)
            z, residual = z + step * direction, residual - step * image
            before, square = square, inner(residual, residual, items)
            if bool((square <= goal).all()):
                break
            direction = residual + square / before.clamp_min(torch.finfo(x.dtype).tiny) * direction
        return z
