"""Attention that is steered away from a negative prompt: NASA and NAG, for cross- and joint attention.

With Q from the image, and keys and values of the same layer from the positive and from the negative prompt,

    Z+ = softmax(Q K+^T / sqrt d) V+,   Z- = softmax(Q K-^T / sqrt d) V-,

and the layer goes on with a combination of the two in the place of Z+.

`attend(q, k, v, mask)` stands for the attention of whoever runs the network. Tokens are on axis -2 of q, k, v and of
its result; the other axes (heads, channels) are its own business. A mask has the keys on its last axis.
"""

import torch

MODES = ("nasa", "nasa_text_only", "nag")
LARGEST_ALPHA = 2.0


def nasa(positive, negative, alpha):
    """NASA, Z = Z+ - alpha Z- (Nguyen et al. 2024, arXiv:2412.02687): tensors of equal shape.

    Not an affine combination: what the two have in common shrinks by 1 - alpha.
    """
    return positive - alpha * negative


def nag(positive, negative, phi, tau, blend, channels=-1):
    """Normalized attention guidance (Chen et al. 2025, arXiv:2505.21179).

    Z~ = Z+ + phi (Z+ - Z-), no longer than tau times Z+ in the 1-norm of each token, and blended with Z+. Packs that
    write Z+ s - Z- (s - 1) have s = phi + 1.

    Args:
        positive, negative: tensors of equal shape.
        phi: strength of the extrapolation, 0 or more.
        tau: largest allowed |Z~| / |Z+|.
        blend: share of the result, 1 replaces Z+.
        channels: the axis, or axes, that make up a token's vector.
    """

    def norm(z):  # half precision ends at 65504
        return z.abs().sum(channels, keepdim=True, dtype=torch.promote_types(z.dtype, torch.float32)).clamp_min(1e-6)

    guided = positive + phi * (positive - negative)
    ratio = norm(guided) / norm(positive)
    guided = guided * (ratio.clamp_max(tau) / ratio).to(guided.dtype)
    return blend * guided + (1 - blend) * positive


def check_options(mode, scale, tau, blend):
    """Raises ValueError naming the input for settings outside what the methods define."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
    if not scale >= 0:
        raise ValueError(f"scale is {scale}; take 0 (off) or more")
    if mode != "nag" and scale > LARGEST_ALPHA:
        raise ValueError(
            f"scale is {scale}, but in mode {mode} it is alpha, from 0 to {LARGEST_ALPHA:g} (0.2 is a good start); "
            "larger scales belong to mode nag")
    if not tau >= 1:
        raise ValueError(f"tau is {tau}; take 1 or more (2.5 is the paper's)")
    if not 0 <= blend <= 1:
        raise ValueError(f"blend is {blend}; take a share from 0 to 1")


def combination(mode, scale, tau, blend):
    """The function (positive, negative, channels) -> Z of a mode."""
    if mode == "nag":
        return lambda positive, negative, channels=-1: nag(positive, negative, scale, tau, blend, channels)
    return lambda positive, negative, channels=-1: nasa(positive, negative, scale)


def _rows(mask, batch, rows):
    """The mask of some items; one without a batch axis, or for all alike, as it is."""
    return mask[rows] if mask is not None and mask.ndim > 2 and len(mask) == batch else mask


def cross_attention(attend, q, k, v, mask, length, rows, combine, attend_negative=None):
    """Attention to a text whose tokens are the positive prompt's, then the negative one's.

    Args:
        attend: attention to the positive tokens; `attend_negative` to the negative ones where that differs.
        q: image queries; k, v: [..., length + m, ...], the first `length` tokens positive, the other m negative.
        mask: None, or with length + m keys.
        rows: indices of the items that are steered; the others get Z+.
        combine: (Z+, Z-) -> Z.

    Returns:
        Z in the layout of `attend`.
    """
    out = attend(q, k[..., :length, :], v[..., :length, :], None if mask is None else mask[..., :length])
    negative = None if mask is None else _rows(mask[..., length:], len(q), rows)
    if len(rows) == len(q):
        rows = slice(None)  # the usual case, without copies
    negative = (attend_negative or attend)(q[rows], k[rows][..., length:, :], v[rows][..., length:, :], negative)
    out[rows] = combine(out[rows], negative)
    return out


def joint_attention(attend, q, k, v, mask, image, padding, rows, combine, text_only=False):
    """Attention of text and image tokens together, in a batch whose last items repeat others with the negative text.

    Each prompt's text goes its own way. The image tokens of an item and of its repetition get the same Z, so that the
    two remain one image with two texts.

    Args:
        q, k, v: text and image tokens; the shorter text is padded to the length of the longer one.
        mask: None, or with all tokens as keys (and as queries).
        image: slice of the image tokens.
        padding: (start, stop) of the padding in the items themselves, and in the repetitions.
        rows: indices of the items that are repeated, in the order of their repetitions.
        combine: (Z+, Z-) -> Z.
        text_only: Z- sums the values of the negative text alone, under unchanged weights: plain subtraction would
            damp what the image tokens tell each other.

    Returns:
        Z in the layout of `attend`.
    """
    own, repeated = slice(0, len(q) - len(rows)), slice(len(q) - len(rows), None)

    def branch(items, v, gap):
        return _attend_without(attend, q[items], k[items], v[items], _rows(mask, len(q), items), *gap)

    if padding[0] == padding[1]:
        out = attend(q, k, v, mask)
    else:
        out = torch.cat([branch(own, v, padding[0]), branch(repeated, v, padding[1])])
    seen = out[..., image, :]
    negative = seen[repeated]
    if text_only:
        text = v.clone()
        text[..., image, :] = 0
        negative = branch(repeated, text, padding[1])[..., image, :]
    seen[repeated] = seen[rows] = combine(seen[rows], negative)
    return out


def _attend_without(attend, q, k, v, mask, start, stop):
    """Attention as if the tokens from start to stop were not there; zeros in their place."""
    if start == stop:
        return attend(q, k, v, mask)
    length = q.shape[-2]
    there = torch.arange(length, device=q.device)
    there = torch.cat([there[:start], there[stop:]])
    if mask is not None:
        mask = mask[..., there, :] if mask.shape[-2] == length else mask
        mask = mask[..., there]
    z = attend(q[..., there, :], k[..., there, :], v[..., there, :], mask)
    out = z.new_zeros(*z.shape[:-2], length, z.shape[-1])
    out[..., there, :] = z
    return out
