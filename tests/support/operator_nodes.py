"""Calls of OPERATOR nodes and their measurements in the mode that hosts run nodes in."""

import torch
from operator_checks import misfit


def call(host, node_id, **inputs):
    """All outputs of a node, with its own defaults for the inputs that are not named."""
    cls = host.node_table[f"Trajectory{node_id}"]
    defaults = {part.id: part.default for part in cls.GET_SCHEMA().inputs if getattr(part, "default", None) is not None}
    with torch.inference_mode():
        return cls.execute(**{**defaults, **inputs}).args


def operator(host, name, **inputs):
    """The OPERATOR of the node of that name, such as "JPEG"."""
    return call(host, f"Operator{name}", **inputs)[0]


def image(items=2, height=17, width=22, channels=3, seed=0):
    """A random IMAGE."""
    with torch.inference_mode():
        return torch.rand(items, height, width, channels, generator=torch.Generator().manual_seed(seed))


def check_operator(host, made, items=2, gain=1.0, **size):
    """A node's operator is applied, shown, and pulls other pictures towards agreement; in bf16 and inference mode, too.

    gain: at most what share of the residual ten moves may leave.
    """
    picture = image(items, **size)
    measured, preview = call(host, "ApplyOperator", operator=made, image=picture)
    assert preview.ndim == 4 and preview.shape[-1] == 3 and preview.isfinite().all()
    assert 0 <= preview.min() and preview.max() <= 1 and preview.std() > 0.01
    assert not measured.y.is_inference() and measured.y.device.type == "cpu"
    x = image(items, seed=1, **size).movedim(-1, 1)
    half, _ = call(host, "ApplyOperator", operator=made, image=picture.bfloat16())
    assert (half.y - measured.y).abs().mean() < 0.05 * measured.y.abs().mean() + 0.02
    for inference in (True, False):
        with torch.inference_mode(inference):
            assert misfit(measured, picture.movedim(-1, 1).clone()) < 1e-5
            moved = x.clone()
            for _ in range(10):
                moved = moved - measured.direction(moved)
            assert misfit(measured, moved) < gain * misfit(measured, x)
    return measured
