"""Operators made of operators."""

import copy
import math

import torch

from .base import Operator

GRADIENTS = ("exact", "straight-through", "none")
"""From the best to the worst: two operators have the worse one's."""


def on_latents(operator):
    """The same operator on latents in place of pictures; its measurements are in the scale of the VAE's latents."""
    if operator.space == "latent":
        return operator
    moved = copy.copy(operator)
    moved.space = "latent"
    return moved


class _Pair(Operator):
    """What two operators share."""

    def __init__(self, one, other):
        self.linear = one.linear and other.linear
        self.gradient = max(one.gradient, other.gradient, key=GRADIENTS.index)
        self.mixes_items = one.mixes_items or other.mixes_items


class Compose(_Pair):
    """outer(inner(x)). Raises ValueError where outer takes latents, or inner measures complex numbers."""

    def __init__(self, outer, inner):
        if outer.space == "latent":
            raise ValueError("outer takes latents, but inner hands on a measurement; make the operator that takes "
                             "latents the inner one")
        if inner.complex:
            raise ValueError("inner measures complex numbers, which outer cannot take; exchange the two")
        super().__init__(outer, inner)
        self.outer, self.inner, self.space, self.complex = outer, inner, inner.space, outer.complex

    def check(self, shape):
        self.inner.check(shape)  # outer checks what it is given

    def forward(self, x):
        return self.outer.A(self.inner.forward(x))

    def observe(self, pictures):
        return self.outer.A(self.inner.observe(pictures))

    def domain(self, shape):
        return self.inner.domain(shape)

    def out_shape(self, shape):
        return self.outer.out_shape(self.inner.out_shape(shape))

    def adjoint(self, y, shape):
        return self.inner.adjoint(self.outer.adjoint(y, self.inner.out_shape(shape)), shape)

    def preview(self, y):
        return self.outer.preview(y)

    def visible(self, y):
        return self.outer.visible(y)


class Stack(_Pair):
    """Both measurements of the same pictures, in one row of numbers an item [B, n]; complex ones count as two.

    weights: what each part is multiplied by. One row [1, n] in all where items are mixed. Raises ValueError where one
    takes pixels and the other latents, and for a weight that is not finite.
    """

    def __init__(self, a, b, weights=(1.0, 1.0)):
        if a.space != b.space:
            raise ValueError(f"a takes {a.space}s and b {b.space}s; stack two operators of one kind, for instance both "
                             "through a VAE")
        for name, weight in zip("ab", weights, strict=True):
            if not math.isfinite(weight):
                raise ValueError(f"weight_{name} is {weight}; set it to a finite number")
        super().__init__(a, b)
        self.parts, self.weights, self.space = (a, b), weights, a.space

    def check(self, shape):
        for part in self.parts:
            part.check(shape)

    def out_shape(self, shape):
        rows = 1 if self.mixes_items else shape[0]
        numbers = sum(part.out_shape(shape).numel() * (1 + part.complex) for part in self.parts)
        return torch.Size((rows, numbers // rows))

    def _row(self, seen):
        numbers = torch.view_as_real(seen) if seen.is_complex() else seen
        return numbers.reshape(1 if self.mixes_items else len(seen), -1)

    def _joined(self, both):
        return torch.cat([w * self._row(seen) for w, seen in zip(self.weights, both, strict=True)], 1)

    def forward(self, x):
        return self._joined(part.forward(x) for part in self.parts)

    def observe(self, pictures):
        return self._joined(part.observe(pictures) for part in self.parts)

    def domain(self, shape):
        return self.parts[0].domain(shape)
