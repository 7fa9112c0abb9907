"""Tensor helpers of the samplers."""


def append_dims(x, target_dims):
    """x with trailing dimensions of length one up to `target_dims` dimensions."""
    return x[(...,) + (None,) * (target_dims - x.ndim)]
