"""Several latents of different shape that travel as one (for example video and audio)."""

import torch


def _of_the_first(name):
    """Property that the first member answers for all."""
    return property(lambda self: getattr(self.tensors[0], name))


class NestedTensor:
    """A list of tensors that share the batch dimension; arithmetic and `to` act on each of them."""

    is_nested = True

    def __init__(self, tensors):
        self.tensors = list(tensors)

    def apply_operation(self, other, operation):
        others = other.tensors if isinstance(other, NestedTensor) else [other] * len(self.tensors)
        return NestedTensor(operation(a, b) for a, b in zip(self.tensors, others, strict=False))

    def __add__(self, other):
        return self.apply_operation(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self.apply_operation(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self.apply_operation(other, lambda a, b: a * b)

    def __truediv__(self, other):
        return self.apply_operation(other, lambda a, b: a / b)

    def __getitem__(self, index):
        return NestedTensor(tensor[index] for tensor in self.tensors)

    def unbind(self):
        """The members."""
        return self.tensors

    def to(self, *args, **kwargs):
        return NestedTensor(tensor.to(*args, **kwargs) for tensor in self.tensors)

    def cpu(self):
        return self.to("cpu")

    def float(self):
        return self.to(torch.float32)

    def chunk(self, *args, **kwargs):
        return NestedTensor(tensor.chunk(*args, **kwargs) for tensor in self.tensors)

    def new_ones(self, *args, **kwargs):
        return self.tensors[0].new_ones(*args, **kwargs)

    def size(self):
        return self.shape

    shape, device, dtype, layout = map(_of_the_first, ("shape", "device", "dtype", "layout"))

    @property
    def ndim(self):
        return max(tensor.ndim for tensor in self.tensors)

    def __repr__(self):
        return f"NestedTensor({self.tensors!r})"


def cat_nested(tensors, *args, **kwargs):
    """Concatenate nested tensors member by member."""
    members = zip(*(nested.tensors for nested in tensors), strict=True)
    return NestedTensor(torch.cat(parts, *args, **kwargs) for parts in members)
