"""NASA and NAG on attention worked out by hand, and the splitting of texts, batches and padding around them."""

import functools

import pytest
import torch
from trajectory.samplers import negative_attention
from trajectory.samplers.negative_attention import combination, cross_attention, joint_attention, nag, nasa

ALPHA = 0.4


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attend(q, k, v, mask=None, heads=2):
    """Softmax attention over [B, L, heads D], head by head."""
    out = []
    for query, key, value in zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True):
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        out.append((logits if mask is None else logits + mask).softmax(-1) @ value)
    return torch.cat(out, dim=-1)


subtract = functools.partial(nasa, alpha=ALPHA)


def test_nasa_by_hand():
    """Two heads of one channel, one query, two positive tokens and one negative; log 3 makes weights 3/4 and 1/4."""
    q = torch.tensor([[[1.0, 1.0]]])
    k = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [5.0, 5.0]]]).log()
    v = torch.tensor([[[8.0, 4.0], [4.0, 8.0], [10.0, -10.0]]])
    z = cross_attention(attend, q, k, v, None, 2, [0], subtract)
    assert torch.allclose(z, torch.tensor([[[7.0 - ALPHA * 10, 7.0 + ALPHA * 10]]]))


def test_nag_by_hand():
    positive, negative = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    # Z~ = (3 + 2 phi, 1): its 1-norm over that of Z+ is (4 + 2 phi) / 4
    assert torch.allclose(nag(positive, negative, 1.0, 2.5, 1.0), torch.tensor([[5.0, 1.0]]))
    assert torch.allclose(nag(positive, negative, 6.0, 2.5, 1.0), torch.tensor([[15.0, 1.0]]) * 2.5 / 4)
    assert torch.allclose(nag(positive, negative, 6.0, 2.5, 0.25), torch.tensor([[15.0, 1.0]]) * 0.625 * 0.25
                          + positive * 0.75)  # fmt: skip


def test_nag_measures_each_token_over_all_of_its_channels():
    positive, negative = rand(2, 3, 5, 4), rand(2, 3, 5, 4, seed=1)  # [B, heads, L, D]
    merged = [z.transpose(1, 2).flatten(2) for z in (positive, negative)]
    apart = nag(positive, negative, 4.0, 1.5, 0.5, channels=(1, 3)).transpose(1, 2).flatten(2)
    assert torch.allclose(apart, nag(*merged, 4.0, 1.5, 0.5))


def test_nag_in_half_precision_keeps_sums_that_half_precision_cannot_hold():
    positive = torch.full((1, 4096), 40.0, dtype=torch.float16)  # the 1-norm is 163840
    negative = torch.zeros_like(positive)
    assert torch.allclose(nag(positive, negative, 9.0, 2.0, 1.0), 2 * positive)


def test_limits():
    positive, negative = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    assert torch.equal(nasa(positive, negative, 0.0), positive)
    assert torch.allclose(nasa(positive, positive, ALPHA), (1 - ALPHA) * positive)
    assert torch.allclose(nag(positive, positive, 5.0, 1.0, 0.7), positive)  # nothing to move away from
    assert torch.equal(nag(positive, negative, 5.0, 2.5, 0.0), positive)
    assert torch.isfinite(nag(torch.zeros(1, 4), negative[:1, 0].float(), 5.0, 2.5, 1.0)).all()


@pytest.mark.parametrize("negative_tokens", [1, 5, 9])
def test_cross_attention_splits_text_mask_and_rows(negative_tokens):
    q, positive, negative = rand(3, 7, 4), rand(3, 5, 4, seed=1), rand(3, negative_tokens, 4, seed=2)
    mask = rand(3, 1, 5 + negative_tokens, seed=3)
    both = torch.cat([positive, negative], dim=1)
    z = cross_attention(attend, q, both, 2 * both, mask, 5, [2, 0], subtract)
    plain = attend(q, positive, 2 * positive, mask[..., :5])
    away = plain - ALPHA * attend(q, negative, 2 * negative, mask[..., 5:])
    assert torch.equal(z[1], plain[1])
    assert torch.allclose(z[[0, 2]], away[[0, 2]])
    assert torch.equal(cross_attention(attend, q, both, 2 * both, mask, 5, [0, 1, 2], subtract), away)


def two_branches(text, negative, image, mask=None, text_only=False):
    """(Z of the text, of the negative text, combined Z of the image), each branch by itself; values are twice keys."""
    n = image.shape[1]
    positive, negative = torch.cat([text, image], 1), torch.cat([negative, image], 1)
    values = 2 * negative
    z, other = attend(positive, positive, 2 * positive), attend(negative, negative, values)
    if text_only:
        values = torch.cat([values[:, :-n], torch.zeros_like(image)], 1)
    steered = z[:, -n:] - ALPHA * attend(negative, negative, values)[:, -n:]
    return z[:, :-n], other[:, :-n], steered


@pytest.mark.parametrize("text_only", [False, True])
@pytest.mark.parametrize("image_first", [False, True])
@pytest.mark.parametrize("lengths", [(5, 5), (5, 3), (2, 6)])
def test_joint_attention_is_two_branches_with_one_image(lengths, image_first, text_only):
    items, rows, longest = 3, [2, 0], max(lengths)
    image, text = rand(items, 6, 4), rand(items, lengths[0], 4, seed=1)
    negative = rand(len(rows), lengths[1], 4, seed=2)

    def padded(text):
        return torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[1]), value=9.0)

    tokens = [torch.cat([padded(text), padded(negative)]), torch.cat([image, image[rows]])]
    x = torch.cat(tokens[::-1] if image_first else tokens, dim=1)
    start = 6 if image_first else 0
    where = slice(0, 6) if image_first else slice(longest, None)
    padding = [(start + length, start + longest) for length in lengths]
    z = joint_attention(attend, x, x, 2 * x, None, where, padding, rows, subtract, text_only)

    z_text, z_negative, z_image = two_branches(text[rows], negative, image[rows], text_only=text_only)
    assert torch.allclose(z[3:, start : start + lengths[1]], z_negative)
    assert torch.allclose(z[rows][:, start : start + lengths[0]], z_text)
    assert torch.allclose(z[rows][:, where], z_image)
    assert torch.equal(z[3:, where], z[rows][:, where])
    alone = torch.cat([text[1:2], image[1:2]], 1)
    assert torch.allclose(z[1:2, where], attend(alone, alone, 2 * alone)[:, lengths[0] :])  # not steered
    assert not z[3:, start + lengths[1] : start + longest].any()  # the place of padding


@pytest.mark.parametrize("queries", [1, 8])
def test_joint_attention_leaves_padding_out_of_a_mask(queries):
    x = rand(2, 8, 4)
    mask = rand(2, queries, 8, seed=1)
    z = joint_attention(attend, x, x, x, mask, slice(5, None), [(5, 5), (3, 5)], [0], subtract)
    there = [0, 1, 2, 5, 6, 7]
    short = mask[1:, :, there] if queries == 1 else mask[1:, there][..., there]
    other = attend(x[1:, there], x[1:, there], x[1:, there], short)
    assert torch.allclose(z[1, :3], other[0, :3])
    own = attend(x[:1], x[:1], x[:1], mask[:1])[:, 5:]
    assert torch.allclose(z[:1, 5:], own - ALPHA * other[:, 3:])


def test_an_image_that_only_text_tokens_speak_to_is_not_damped():
    """Text only: with a negative text of no weight the image keeps Z+, where plain subtraction takes alpha of it."""
    x = rand(2, 7, 4)
    mask = torch.zeros(2, 1, 7, dtype=torch.float64)
    mask[1, :, :3] = -1e9  # nothing attends to the negative text
    arguments = (attend, x, x, x, mask, slice(3, None), [(3, 3), (3, 3)], [0], subtract)
    kept = joint_attention(*arguments, text_only=True)[:1, 3:]
    assert torch.allclose(kept, attend(x[:1], x[:1], x[:1])[:, 3:])
    assert not torch.allclose(joint_attention(*arguments)[:1, 3:], kept)


@pytest.mark.parametrize("options, named", [
    (("cfg", 0.2, 2.5, 0.5), "mode is 'cfg'"), (("nasa", -0.1, 2.5, 0.5), "scale"),
    (("nasa", 4.0, 2.5, 0.5), "mode nag"), (("nasa_text_only", 4.0, 2.5, 0.5), "mode nag"),
    (("nag", 4.0, 0.5, 0.5), "tau"), (("nag", 4.0, 2.5, 1.5), "blend"), (("nag", float("nan"), 2.5, 1.0), "scale"),
])  # fmt: skip
def test_settings_outside_the_methods_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        negative_attention.check_options(*options)


def test_modes():
    positive, negative = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    for mode in negative_attention.MODES:
        negative_attention.check_options(mode, 2.0, 2.5, 0.5)
        expected = nag(positive, negative, 2.0, 2.5, 0.5) if mode == "nag" else nasa(positive, negative, 2.0)
        assert torch.equal(combination(mode, 2.0, 2.5, 0.5)(positive, negative, -1), expected)
