"""What nodes take from an IMAGE or a MASK: pixels and weights in the layout of operators, checked."""


def pixels_of(name, image):
    """Pixels [B, 3, H, W], float32, of the IMAGE in input `name`: a grey one in three channels, without its alpha.

    Raises ValueError for a batch or picture without content, other channels, and values that are not finite.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"{name} has the shape {list(image.shape)}; connect at least one picture [batch, height, "
                         "width, channels]")
    if image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} has {image.shape[-1]} channels; connect a grey or colour picture")
    check_finite(name, image)
    return image[..., :3].expand(*image.shape[:3], 3).movedim(-1, 1).float()


def mask_of(name, mask):
    """[frames, H, W], float32, of the MASK in input `name`, which some nodes hand out without the axis of frames.

    Raises ValueError for a mask without content, and values that are not finite.
    """
    if mask.ndim < 2 or 0 in mask.shape:
        raise ValueError(f"{name} has the shape {list(mask.shape)}; connect a mask [frames, height, width] of at least "
                         "one pixel")
    check_finite(name, mask)
    return mask.reshape(-1, *mask.shape[-2:]).float()


def check_finite(name, values):
    """Raise ValueError for values in input `name` that are not finite."""
    if not values.isfinite().all():
        raise ValueError(f"{name} has values that are not finite (NaN or infinite); look for the node before it that "
                         "makes them, often a VAE in fp16, and load that in bf16 or fp32")
