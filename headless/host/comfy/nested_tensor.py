"""Several latents of different shape that travel as one (for example video and audio)."""

import torch


class NestedTensor:
    """A list of tensors that share the batch dimension; arithmetic and `to` act on each of them."""

    def __init__(self, tensors):
        self.tensors = list(tensors)
        self.is_nested = True

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
        return self.tensors

    def to(self, *args, **kwargs):
        return NestedTensor(tensor.to(*args, **kwargs) for tensor in self.tensors)

    def float(self):
        return self.to(dtype=torch.float)

    def cpu(self):
        return self.to(device="cpu")

    def chunk(self, *args, **kwargs):
        return NestedTensor(tensor.chunk(*args, **kwargs) for tensor in self.tensors)

    def new_ones(self, *args, **kwargs):
        return self.tensors[0].new_ones(*args, **kwargs)

    def size(self):
        return self.shape

    @property
    def shape(self):
        return self.tensors[0].shape

    @property
    def ndim(self):
        return max(tensor.ndim for tensor in self.tensors)

    @property
    def device(self):
        return self.tensors[0].device

    @property
    def dtype(self):
        return self.tensors[0].dtype

    @property
    def layout(self):
        return self.tensors[0].layout

    def __repr__(self):
        return f"NestedTensor({self.tensors!r})"


def cat_nested(tensors, *args, **kwargs):
    """Concatenate nested tensors member by member."""
    members = zip(*(nested.tensors for nested in tensors), strict=True)
    return NestedTensor(torch.cat(parts, *args, **kwargs) for parts in members)
