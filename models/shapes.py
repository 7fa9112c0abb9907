"""Shapes of weights, from which the networks of this folder read their configuration."""


def shape_of(weights, key, dims):
    """The sizes of weights[key], of `dims` dimensions and not empty. Raises ValueError naming the key otherwise."""
    if key not in weights:
        raise ValueError(f"{key} is not there")
    shape = weights[key].shape
    if len(shape) != dims or not shape.numel():
        raise ValueError(f"{key} has the shape {list(shape)}, where {dims} dimensions of 1 or more are")
    return shape
