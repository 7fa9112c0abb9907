"""The text side of the miniature models: a word tokenizer and a small transformer that encodes captions.

Both classes have the surface that ComfyUI's CLIP object drives (`tokenize_with_weights`, `encode_token_weights`, ...),
in plain torch, so that they serve training, the embedded host and a real host alike.
"""

from __future__ import annotations

import logging
import re

import torch
from torch import nn

log = logging.getLogger(__name__)

PAD, START, UNKNOWN = "<pad>", "<start>", "<unknown>"
_SPECIAL = (PAD, START, UNKNOWN)
# Words that carry no attribute: the tokenizer passes over them, which keeps the context short.
_FILLERS = frozenset("the on in of at under over with and an is are there".split())
# Words of the landscape grammar. Their order is part of the trained weights: it may only grow at the end.
WORDS = tuple(
    "a balloon balloons black blue boat boats bright clouds cloudy dawn day desert dusk green hills house houses "
    "landscape left middle moon mountains night noon one orange painting picture pink pitch red right sandy sea sky "
    "snow snowy starry sun sunrise sunset three tree trees two white yellow".split()
)
CONTEXT_LENGTH = 20

_WEIGHT_TOKEN = re.compile(r"\\[()\\]|\(|\)|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[^\\():]+|:|\\")
_NESTING_WEIGHT = 1.1  # what bare parentheses multiply by, as in the host


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Split a prompt into (text, weight): `(words:1.3)` weighs 1.3, bare parentheses weigh 1.1 per level, `\\(` is a
    letter. Unbalanced parentheses are letters or close at the end of the text; no text is an error."""
    stack: list[list[tuple[str, float]]] = [[]]
    for token in _WEIGHT_TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif token.endswith(")") and not token.startswith("\\"):
            weight = _NESTING_WEIGHT if token == ")" else float(token[1:-1])
            if len(stack) > 1:
                inner = stack.pop()
                stack[-1] += [(part, value * weight) for part, value in inner]
        else:
            stack[-1].append((token[1] if token.startswith("\\") and len(token) == 2 else token, 1.0))
    return [part for level in stack for part in level]


class CaptionTokenizer:
    """Words to numbers, with a weight each, padded to one fixed length so that conditionings batch."""

    WORDS = WORDS

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.words = (*_SPECIAL, *self.WORDS)
        self.index = {word: number for number, word in enumerate(self.words)}
        self.pad, self.start, self.unknown = (self.index[s] for s in _SPECIAL)
        self._reported: set[str] = set()

    def encode(self, text: str) -> list[int]:
        """Token numbers of a plain text without weights, padded: what training uses."""
        return self._pad([(self.start, 1.0), *self._tokens(text, 1.0)], numbers_only=True)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_) -> dict[str, list[list[tuple]]]:
        """The host's form: one section of (token, weight) or (token, weight, word number) entries."""
        entries = [(self.start, 1.0)]
        for part, weight in parse_weights(text):
            entries += self._tokens(part, weight)
        if len(entries) > CONTEXT_LENGTH:
            left_out = " ".join(self.words[t] for t, _w in entries[CONTEXT_LENGTH:])
            log.warning("The caption is longer than %d words; left out: %s", CONTEXT_LENGTH - 1, left_out)
        entries = self._pad(entries)
        if return_word_ids:
            entries = [(t, w, n if t not in (self.pad, self.start) else 0) for n, (t, w) in enumerate(entries)]
        return {"captions": [entries]}

    def untokenize(self, token_weight_pair: list[tuple]) -> list[tuple]:
        """Each entry beside its word."""
        return [(entry, self.words[entry[0]]) for entry in token_weight_pair]

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        return " ".join(self.words[t] for t in ids if not skip_special_tokens or t >= len(_SPECIAL))

    def state_dict(self) -> dict:
        return {}

    def _tokens(self, text: str, weight: float) -> list[tuple[int, float]]:
        found = []
        for word in re.findall(r"[^\W_]+", text.lower()):
            if word in _FILLERS:
                continue
            if word not in self.index and word not in self._reported:
                self._reported.add(word)
                log.warning("The landscape miniature does not know the word %r; it is read as an unknown word.", word)
            found.append((self.index.get(word, self.unknown), weight))
        return found

    def _pad(self, entries, numbers_only=False):
        entries = entries[:CONTEXT_LENGTH] + [(self.pad, 1.0)] * (CONTEXT_LENGTH - len(entries))
        return [t for t, _w in entries] if numbers_only else entries


class _Block(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, **factory):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, **factory)
        self.qkv = nn.Linear(width, 3 * width, **factory)
        self.out = nn.Linear(width, width, **factory)
        self.norm2 = nn.LayerNorm(width, **factory)
        self.up = nn.Linear(width, 4 * width, **factory)
        self.down = nn.Linear(4 * width, width, **factory)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class CaptionEncoder(nn.Module):
    """Captions to conditioning: context [B, 20, 128] and pooled [B, 256]. The empty caption is the unconditional."""

    WIDTH, POOLED, LAYERS, HEADS = 128, 256, 3, 4
    TOKENIZER = CaptionTokenizer

    def __init__(self, device=None, dtype=None, model_options=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.tokenizer = self.TOKENIZER()
        self.disable_offload = True  # small: the host moves it whole and need not stream its layers
        self.dtypes = {dtype or torch.float32}
        self.embedding = nn.Embedding(len(self.tokenizer.words), self.WIDTH, **factory)
        self.position = nn.Parameter(torch.zeros(CONTEXT_LENGTH, self.WIDTH, **factory))
        self.blocks = nn.ModuleList(_Block(self.WIDTH, self.HEADS, **factory) for _ in range(self.LAYERS))
        self.norm = nn.LayerNorm(self.WIDTH, **factory)
        self.pool = nn.Linear(self.WIDTH, self.POOLED, **factory)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`tokens` int64 [B, 20] -> (context [B, 20, 128], pooled [B, 256])."""
        mask = (tokens != self.tokenizer.pad)[:, None, None, :]
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return x, self.pool(x[:, 0])

    # What the host's CLIP object calls.

    def set_clip_options(self, options: dict) -> None:
        """Captions have no layers to skip and no projection to switch off: the host's options do not apply."""

    def reset_clip_options(self) -> None:
        """See `set_clip_options`."""

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode the tokenizer's sections. A word's weight moves its vector along the line from the empty caption's."""
        sections = token_weight_pairs["captions"]
        device = self.position.device
        tokens = torch.tensor([[entry[0] for entry in section] for section in sections], device=device)
        weights = torch.tensor([[float(entry[1]) for entry in section] for section in sections], device=device)
        with torch.no_grad():
            context, pooled = self(tokens)
            if bool((weights != 1).any()):
                empty, _pooled = self(torch.tensor([self.tokenizer.encode("")], device=device))
                context = empty + (context - empty) * weights[..., None].to(context.dtype)
        context = torch.cat(context.split(1), dim=1)
        return context.float().cpu(), pooled[:1].float().cpu()

    def load_sd(self, state: dict):
        """Load trained weights; the host's name for `load_state_dict`."""
        return self.load_state_dict(state, strict=False)
