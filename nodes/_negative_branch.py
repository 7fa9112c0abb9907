"""How a second prompt reaches the attention of the host's networks: one way for each kind of network.

Everything is hung on the call of a run and nothing on the model: the texts go through the layers that the network has,
so its patches, precisions and offloading stay the host's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.utils
import torch

# The host publishes no other name for its attention, and packs depend on this one; its backend is chosen on import.
from comfy.ldm.modules.attention import optimized_attention

from ..samplers.negative_attention import cross_attention, joint_attention

KEY = "trajectory_nasa"


@dataclass
class Call:
    """A call of the host's `apply_model`, to be made with some of its arguments changed."""

    executor: Callable
    x: torch.Tensor
    t: torch.Tensor
    c_concat: torch.Tensor | None
    c_crossattn: torch.Tensor | None
    control: dict | None
    transformer_options: dict
    others: dict

    def __call__(self, **changes):
        call = replace(self, **changes)
        return call.executor(
            call.x, call.t, call.c_concat, call.c_crossattn, call.control, call.transformer_options, **call.others)


class NegativeBranch:
    """The negative prompt of one run.

    Args:
        conds: {name: host's cond} of the negative prompt as the model made them: `c_crossattn`, `attention_mask`.
        combine: (Z+, Z-, channels) -> Z.
        text_only: whether the negative branch of joint attention sums text values alone.
        blocks: numbers of the attentions to steer, in the order of the network, or None for all.
        sigmas: (start, end), both included, between which the run is steered.
    """

    def __init__(self, conds, combine, text_only, blocks, sigmas):
        self.combine, self.text_only, self.blocks, self.sigmas = combine, text_only, blocks, sigmas
        self._conds = {name: conds[name].cond for name in ("c_crossattn", "attention_mask") if name in conds}
        self._texts = {}
        self.rows, self.counted, self._worked, self._begun = [], 0, False, False

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                    **others):
        """APPLY_MODEL wrapper."""
        options = transformer_options or {}
        call = Call(executor, x, t, c_concat, c_crossattn, control, options, others)
        kinds = options.get("cond_or_uncond", [0])
        start, end = self.sigmas
        first, self._begun = not self._begun, True
        if 0 not in kinds or not end <= float(options["sigmas"][0]) <= start:
            return call()
        self._check_width(c_crossattn)
        size = len(x) // len(kinds)
        self.rows = _steered_rows(kinds, size)
        self._size, self.counted = size, 0
        network = executor.class_obj.diffusion_model
        out = STEERING[type(network).__name__](self, network, call)
        self._check_effect(network, first)
        return out

    def text(self, name, like, items):
        """The negative prompt's tensor [items, L, ...] on device and in dtype of `like`; None if it has none.

        Each conditioning, and each copy of one in a larger batch, is a block of the host's items: so is the text.
        """
        if name not in self._conds:
            return None
        key = (name, items, self._size, like.device, like.dtype)
        if key not in self._texts:
            one = comfy.utils.repeat_to_batch_size(self._conds[name], self._size)
            one = one.to(like.device, like.dtype if one.is_floating_point() else None)
            self._texts[key] = torch.cat([one] * (items // self._size))
        return self._texts[key]

    def combination(self, number=None, channels=-1):
        """What to do with Z+ and Z- in the attention of that number, by default the next one."""
        number = self.counted if number is None else number
        self.counted += 1
        if self.blocks is not None and number not in self.blocks:
            return lambda positive, negative: positive
        self._worked = True
        return lambda positive, negative: self.combine(positive, negative, channels)

    def _check_width(self, context):
        width = self._conds["c_crossattn"].shape[-1]
        if context is None or context.shape[-1] != width:
            theirs = "no text at all" if context is None else f"texts of {context.shape[-1]} channels"
            raise ValueError(f"NASA, input 'negative': its text has {width} channels, but this model takes {theirs}; "
                             "encode the negative prompt with the CLIP that belongs to the model.")

    def _check_effect(self, network, first):
        if not first:  # later calls may skip attentions: packs that reuse features do
            return
        if self.counted and not self._worked:
            raise _no_such_blocks(self.counted)
        if not self.counted:
            raise ValueError(
                f"NASA found no attention to text in {type(network).__name__}, because another patch of this model "
                "puts its own attention there; remove that patch or NASA.")


def _steered_rows(kinds, size):
    """Items of a batch of that many to each conditioning, one conditioning after the other, that are positive."""
    return [part * size + i for part, kind in enumerate(kinds) if kind == 0 for i in range(size)]


def check_blocks(network, blocks):
    """Raises ValueError where a UNet has none of these attentions; other networks show theirs when they run."""
    if type(network).__name__ == "UNetModel" and blocks is not None:
        count = len(list(_unet_places(network)))
        if not any(number < count for number in blocks):
            raise _no_such_blocks(count)


def _no_such_blocks(count):
    return ValueError(f"NASA, input 'blocks': none of these numbers exists, for this model's attentions to text are 0 "
                      f"to {count - 1}; choose among them, or 'all'.")


# --- the kinds of networks -------------------------------------------------------------------------------------------


def steer_unet(run, network, call):
    """UNets: negative tokens are appended before to_k and to_v, and the attention behind them is replaced."""

    def append(query, context, value, extra):
        text = run.text("c_crossattn", context, len(context))
        extra[KEY] = context.shape[1]  # the same dict reaches the replaced attention
        return query, torch.cat([context, text], dim=1), torch.cat([value, text], dim=1)

    def replacement(number, previous):
        def attention(q, k, v, extra):
            def host(q, k, v, mask):
                return optimized_attention(
                    q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"], transformer_options=extra)

            positive = host if previous is None else lambda q, k, v, mask: previous(q, k, v, extra)
            kinds = extra.get("cond_or_uncond", [0])
            rows = _steered_rows(kinds, len(q) // len(kinds))  # a pack that decodes ahead makes the batch larger
            return cross_attention(positive, q, k, v, None, extra[KEY], rows, run.combination(number), host)

        return attention

    options = call.transformer_options
    patches = options.get("patches", {})
    replaced = options.get("patches_replace", {})
    theirs = replaced.get("attn2", {})
    ours = {place: replacement(number, theirs.get(place, theirs.get(place[:2])))
            for number, place in enumerate(_unet_places(network))}
    return call(transformer_options={
        **options, "patches": {**patches, "attn2_patch": [*patches.get("attn2_patch", []), append]},
        "patches_replace": {**replaced, "attn2": {**theirs, **ours}}})


def _unet_places(network):
    """(name, block, transformer block) of each attention to text, in the order of the network."""
    middle = [] if network.middle_block is None else [network.middle_block]
    for name, blocks in (("input", network.input_blocks), ("middle", middle), ("output", network.output_blocks)):
        for number, block in enumerate(blocks):
            for layer in block:
                for index in range(len(getattr(layer, "transformer_blocks", ()))):
                    yield name, number, index


class _SameLength(Exception):
    """There are as many image tokens as text tokens, so that self- and cross-attention look alike."""


def steer_cross_attention(run, network, call):
    """DiTs with cross-attention: negative tokens are appended to the text, and an attention of that many keys splits.

    Self-attention is known by its queries, as many as its keys. Where the image happens to have as many tokens as both
    texts together, the negative text is given twice, which changes no attention to it.
    """
    context = call.c_crossattn
    length = context.shape[1]
    text = run.text("c_crossattn", context, len(context))
    masks = _text_masks(run, call, context, text)

    def attempt(repeats):
        total = length + repeats * text.shape[1]

        def attention(attend, channels, q, k, v, mask):
            if k.shape[-2] != total:
                return attend(q, k, v, mask)
            if q.shape[-2] == total:
                raise _SameLength
            return cross_attention(attend, q, k, v, mask, length, run.rows, run.combination(channels=channels))

        others = call.others if masks is None else {
            **call.others, "attention_mask": torch.cat([masks[0], *[masks[1]] * repeats], dim=1)}
        return call(c_crossattn=torch.cat([context, *[text] * repeats], dim=1), others=others,
                    transformer_options=_overridden(call.transformer_options, attention))

    try:
        return attempt(1)
    except _SameLength:
        run.counted = 0
        return attempt(2)


def steer_joint(run, network, call):
    """DiTs with joint attention: steered items run a second time with the negative text, in the same batch."""
    if any(call.others.get(name) is not None for name in ("txt_byt5", "clip_fea")):
        raise ValueError("NASA does not know where quoted (byT5) or picture tokens stand among this model's text; take "
                         "the quotes out of the positive prompt, or the vision input off it.")
    context, rows, options = call.c_crossattn, run.rows, call.transformer_options
    text = run.text("c_crossattn", context, len(rows))
    lengths = context.shape[1], text.shape[1]
    longest = max(lengths)
    before = _registers(network)
    image_first = any(getattr(block, "flipped_img_txt", False) for block in getattr(network, "double_blocks", ()))
    joint = None  # how many tokens text and image have together

    def attention(attend, channels, q, k, v, mask):
        nonlocal joint
        tokens = q.shape[-2]
        if joint is None and tokens > before + longest:
            joint = tokens
        if tokens == joint:
            start = tokens - longest if image_first else before
            image = slice(0, start) if image_first else slice(start + longest, None)
            combine = run.combination(channels=channels)
        elif joint is None and tokens == longest:  # a refiner of the texts, before they meet the image
            start, image, combine = 0, slice(0, 0), lambda positive, negative: positive
        else:  # the image by itself
            return attend(q, k, v, mask)
        padding = [(start + length, start + longest) for length in lengths]
        return joint_attention(attend, q, k, v, mask, image, padding, rows, combine, run.text_only)

    def again(value):
        """The value of a batched argument for the larger batch."""
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == len(call.x):
            return torch.cat([value, value[rows]])
        if isinstance(value, dict):
            return {name: again(part) for name, part in value.items()}
        return [again(part) for part in value] if isinstance(value, list) else value

    others = again(call.others)
    masks = _text_masks(run, call, context, text)
    if masks is not None:
        others["attention_mask"] = torch.cat([_padded(mask, longest) for mask in masks])
    kinds = options.get("cond_or_uncond", [0])
    steered = [part for part, kind in enumerate(kinds) if kind == 0]
    options = _overridden(options, attention) | {"cond_or_uncond": [*kinds, *[0] * len(steered)]}
    if "uuids" in options:
        options["uuids"] = [*options["uuids"], *[options["uuids"][part] for part in steered]]
    out = call(
        x=again(call.x), t=again(call.t), c_concat=again(call.c_concat), control=again(call.control), others=others,
        c_crossattn=torch.cat([_padded(context, longest), _padded(text, longest)]), transformer_options=options)
    return out[:len(call.x)]


def _registers(network):
    """How many tokens of its own the network puts before the text."""
    tokens = getattr(network, "register_tokens", None)
    return getattr(network, "register_length", 0) if tokens is None else tokens.shape[1]


def _padded(text, length):
    """A text, or its mask, of that many tokens. Padding is never attended to; a network's mean token stays the same."""
    missing = length - text.shape[1]
    if not missing:
        return text
    padding = text.mean(dim=1, keepdim=True) if text.ndim == 3 else text[:, :1]
    return torch.cat([text, padding.expand(-1, missing, *text.shape[2:])], dim=1)


def steer_pixart(run, network, call):
    """PixArt, whose attention hears of no options: its cross-attentions are replaced while the network runs."""
    context = call.c_crossattn
    text = run.text("c_crossattn", context, len(context))

    def steered(layer):
        def forward(x, cond, mask=None):
            batch, _, width = x.shape
            k, v = layer.kv_linear(cond).view(batch, -1, 2 * width).chunk(2, dim=-1)

            def attend(q, k, v, mask):
                return optimized_attention(q, k, v, layer.num_heads)

            z = cross_attention(
                attend, layer.q_linear(x), k, v, None, context.shape[1], run.rows, run.combination())
            return layer.proj_drop(layer.proj(z))

        return forward

    layers = [block.cross_attn for block in network.blocks]
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = steered(layer)
        return call(c_crossattn=torch.cat([context, text], dim=1))
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


# --- what they share -------------------------------------------------------------------------------------------------


def _overridden(options, attention):
    """Options whose attention is `attention(attend, channels, q, k, v, mask)` around what was there before."""
    previous = options.get("optimized_attention_override")

    def override(original, q, k, v, heads, mask=None, **more):
        def attend(q, k, v, mask):
            if previous is None:
                return original(q, k, v, heads, mask=mask, **more)
            return previous(original, q, k, v, heads, mask=mask, **more)

        if not more.get("skip_reshape"):  # [B, L, heads, D] is allowed, too, where [B, L, heads D] is
            q, k, v = q.flatten(2), k.flatten(2), v.flatten(2)
        channels = (1, 3) if more.get("skip_output_reshape") else -1
        return attention(attend, channels, q, k, v, mask)

    return {**options, "optimized_attention_override": override}


def _text_masks(run, call, context, text):
    """The masks [B, L] of both texts, or None if neither has one, or it is one of text and image as Flux has it."""
    positive = call.others.get("attention_mask")
    if positive is not None and positive.shape != context.shape[:2]:
        return None
    negative = run.text("attention_mask", text, len(text))
    known = negative if positive is None else positive
    if known is None:
        return None
    seen = 0 if known.is_floating_point() else 1  # masks of floats are added to the logits
    return [known.new_full(tokens.shape[:2], seen) if mask is None else mask
            for mask, tokens in ((positive, context), (negative, text))]


STEERING = {
    "UNetModel": steer_unet,
    "PixArtMS": steer_pixart,
    **dict.fromkeys((
        "WanModel", "VaceWanModel", "CameraWanModel", "LTXVModel", "GeneralDIT", "MiniTrainDIT", "Anima",
        "AudioDiffusionTransformer"), steer_cross_attention),
    **dict.fromkeys((
        "OpenAISignatureMMDITWrapper", "MMDiT", "Flux", "Chroma", "ChromaRadiance", "QwenImageTransformer2DModel",
        "HunyuanVideo"), steer_joint),
}  # fmt: skip
"""{class name of the network: how it is steered}."""
