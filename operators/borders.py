"""What lies beyond the border of a picture, as blurring and resampling take it."""

import torch


def mirrored(x, margin, twice):
    """x [..., H, W] with `margin` (rows, columns) more on each side, mirrored; of any width, also wider than x.

    twice: mirrored at the border, so that the outermost pixel stands there twice; else at that pixel.
    """
    for axis, width in zip((-2, -1), margin, strict=True):
        last = x.shape[axis] - 1
        period = max(2 * (last + twice), 1)
        places = torch.arange(-width, last + 1 + width, device=x.device) % period
        x = x.index_select(axis, torch.minimum(places, (2 * last + twice - places).abs()))
    return x
