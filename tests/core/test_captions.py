"""The caption tokenizer and encoder: prompt weights, any text, and the surface that the host's CLIP object drives."""

import logging

import pytest
import torch
from random_weights import stirred
from trajectory.models.captions import CONTEXT_LENGTH, CaptionEncoder, CaptionTokenizer, parse_weights


@pytest.fixture(scope="module")
def encoder():
    return stirred(CaptionEncoder()).eval()


@pytest.mark.parametrize(("text", "expected"), [
    ("red house", [("red house", 1.0)]),
    ("(red house:1.3) and", [("red house", 1.3), (" and", 1.0)]),
    ("(a)", [("a", 1.1)]),
    ("((a))", [("a", 1.1 * 1.1)]),
    ("((a:2):0.5)", [("a", 1.0)]),
    ("(a:-1)", [("a", -1.0)]),
    (r"\(a\)", [("(", 1.0), ("a", 1.0), (")", 1.0)]),
    ("", []),
])
def test_prompt_weights(text, expected):
    found = parse_weights(text)
    assert [part for part, _w in found] == [part for part, _w in expected]
    assert [w for _p, w in found] == pytest.approx([w for _p, w in expected])


STRANGE = ["(", ")", "((a", "a))", ":", "(:)", "(a:)", "\\", "(a:x)", "1:2", "\u00e9 \u6f22\u5b57", "\n\t", "(" * 500]


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_is_accepted(text, encoder):
    tokens = CaptionTokenizer().tokenize_with_weights(text)
    context, pooled = encoder.encode_token_weights(tokens)
    assert context.shape == (1, CONTEXT_LENGTH, encoder.WIDTH) and pooled.shape == (1, encoder.POOLED)
    assert torch.isfinite(context).all()


def test_unknown_words_are_named_once(caplog):
    tokenizer = CaptionTokenizer()
    with caplog.at_level(logging.WARNING):
        tokenizer.tokenize_with_weights("a dragon, a dragon")
    assert [r for r in caplog.records if "dragon" in r.getMessage()] == caplog.records and len(caplog.records) == 1


def test_a_long_caption_says_what_it_leaves_out(caplog):
    with caplog.at_level(logging.WARNING):
        entries = CaptionTokenizer().tokenize_with_weights("red " * 30 + "house")["captions"][0]
    assert len(entries) == CONTEXT_LENGTH and "house" in caplog.text


def test_case_punctuation_and_fillers_do_not_matter():
    tokenizer = CaptionTokenizer()
    assert tokenizer.encode("Two RED boats, on the left!") == tokenizer.encode("two red boats left")


def test_word_numbers_and_decoding():
    tokenizer = CaptionTokenizer()
    entries = tokenizer.tokenize_with_weights("red house", return_word_ids=True)["captions"][0]
    assert all(len(entry) == 3 for entry in entries)
    assert [number for *_e, number in entries[:3]] == [0, 1, 2]
    assert tokenizer.decode([token for token, *_e in entries]) == "red house"
    assert tokenizer.untokenize(entries)[1][1] == "red"
    assert tokenizer.state_dict() == {}


def test_weights_interpolate_from_the_empty_caption(encoder):
    tokenizer = CaptionTokenizer()
    plain, empty, heavy, light = (encoder.encode_token_weights(tokenizer.tokenize_with_weights(t))[0][0]
                                  for t in ("red house", "", "(red:1.5) house", "(red:0) house"))
    assert torch.allclose(heavy[1], empty[1] + 1.5 * (plain[1] - empty[1]), atol=1e-5)
    assert torch.allclose(light[1], empty[1], atol=1e-5)
    assert torch.allclose(heavy[2], plain[2], atol=1e-6)


def test_padding_does_not_leak_into_words(encoder):
    tokenizer = CaptionTokenizer()
    tokens = torch.tensor([tokenizer.encode("red house")])
    with torch.no_grad():
        before = encoder(tokens)[0][:, :3]
        encoder.embedding.weight[tokenizer.pad] += 1
        after = encoder(tokens)[0][:, :3]
        encoder.embedding.weight[tokenizer.pad] -= 1
    assert torch.allclose(before, after, atol=1e-6)


def test_a_batch_equals_its_items(encoder):
    tokenizer = CaptionTokenizer()
    tokens = torch.tensor([tokenizer.encode(t) for t in ("two red boats", "", "the sea at dusk")])
    with torch.no_grad():
        together = encoder(tokens)
        alone = [encoder(row[None]) for row in tokens]
    for part in (0, 1):
        assert torch.allclose(together[part], torch.cat([a[part] for a in alone]), atol=1e-5)


def test_loading_reports_what_is_missing(encoder):
    state = encoder.state_dict()
    state.pop("pool.bias")
    missing, unexpected = CaptionEncoder().load_sd(state)
    assert missing == ["pool.bias"] and not unexpected
