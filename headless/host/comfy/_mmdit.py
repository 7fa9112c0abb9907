"""The SD3-class MMDiT (Esser et al. 2024), with the host's module names, and the way to it from diffusers' format.

Names and behaviour are the host's where a pack can see them: modules such as `joint_blocks[i].x_block.attn.qkv` and
their state dict keys, any latent size, replaced blocks (`patches_replace["dit"][("double_block", i)]`) and a replaced
attention (`optimized_attention_override`) in `transformer_options`.
"""

import math
import re

import torch
from torch import nn

from comfy._layers import optimized_attention, timestep_features

_HEAD_WIDTH = 64  # fixed in this class of models: heads = blocks = width / 64
_TIME_FEATURES = 256

# --- state dicts -----------------------------------------------------------------------------------------------------

_RENAMED = {
    r"pos_embed\.proj\.": "x_embedder.proj.",
    r"pos_embed\.pos_embed": "pos_embed",
    r"time_text_embed\.timestep_embedder\.linear_1\.": "t_embedder.mlp.0.",
    r"time_text_embed\.timestep_embedder\.linear_2\.": "t_embedder.mlp.2.",
    r"time_text_embed\.text_embedder\.linear_1\.": "y_embedder.mlp.0.",
    r"time_text_embed\.text_embedder\.linear_2\.": "y_embedder.mlp.2.",
    r"norm_out\.linear\.": "final_layer.adaLN_modulation.1.",
    r"proj_out\.": "final_layer.linear.",
    r"transformer_blocks\.": "joint_blocks.",
    r"norm1\.linear\.": "x_block.adaLN_modulation.1.",
    r"norm1_context\.linear\.": "context_block.adaLN_modulation.1.",
    r"attn\.to_out\.0\.": "x_block.attn.proj.",
    r"attn\.to_add_out\.": "context_block.attn.proj.",
    r"attn\.norm_([qk])\.": r"x_block.attn.ln_\1.",
    r"attn\.norm_added_([qk])\.": r"context_block.attn.ln_\1.",
    r"attn\.to_([qkv])\.": r"x_block.attn.\1.",
    r"attn\.add_([qkv])_proj\.": r"context_block.attn.\1.",
    r"ff\.net\.0\.proj\.": "x_block.mlp.fc1.",
    r"ff\.net\.2\.": "x_block.mlp.fc2.",
    r"ff_context\.net\.0\.proj\.": "context_block.mlp.fc1.",
    r"ff_context\.net\.2\.": "context_block.mlp.fc2.",
}


def convert_diffusers(state_dict):
    """The state dict of a diffusers `SD3Transformer2DModel` under the host's keys; any other one as it is."""
    if "transformer_blocks.0.attn.add_q_proj.weight" not in state_dict or "pos_embed.proj.weight" not in state_dict:
        return state_dict
    renamed = {}
    for key, weight in state_dict.items():
        for pattern, replacement in _RENAMED.items():
            key = re.sub(rf"(?:^|(?<=\.)){pattern}", replacement, key)
        renamed[key] = weight
    for key in [key for key in renamed if re.search(r"_block\.attn\.q\.(weight|bias)$", key)]:
        parts = [key.replace(".attn.q.", f".attn.{name}.") for name in "qkv"]
        renamed[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    last = len({key.split(".")[1] for key in renamed if key.startswith("joint_blocks.")}) - 1
    for prefix in ("final_layer", f"joint_blocks.{last}.context_block"):  # here diffusers has the scale first
        for end in ("weight", "bias"):
            key = f"{prefix}.adaLN_modulation.1.{end}"
            renamed[key] = torch.cat(renamed[key].chunk(2)[::-1])
    return renamed


def unet_config(state_dict):
    """The network's configuration read off a state dict with the host's keys, or None for other kinds of models."""
    needed = ("joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight", "pos_embed",
              "context_embedder.weight", "y_embedder.mlp.0.weight", "final_layer.linear.weight")
    if any(key not in state_dict for key in needed) or any(".attn2." in key for key in state_dict):
        return None
    width, in_channels, patch_size, _ = state_dict["x_embedder.proj.weight"].shape
    blocks = {key.split(".")[1] for key in state_dict if key.startswith("joint_blocks.")}
    if len(blocks) != width // _HEAD_WIDTH:
        return None
    num_patches = state_dict["pos_embed"].shape[1]
    return {
        "in_channels": in_channels,
        "out_channels": state_dict["final_layer.linear.weight"].shape[0] // patch_size ** 2,
        "patch_size": patch_size,
        "depth": len(blocks),
        "adm_in_channels": state_dict["y_embedder.mlp.0.weight"].shape[1],
        "context_size": state_dict["context_embedder.weight"].shape[1],
        "num_patches": num_patches,
        "pos_embed_max_size": round(math.sqrt(num_patches)),
        "qk_norm": "rms" if "joint_blocks.0.context_block.attn.ln_q.weight" in state_dict else None,
        "pos_embed_scaling_factor": None,
    }


# --- the network -----------------------------------------------------------------------------------------------------


def _layer_norm(width):
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def _modulate(x, shift, scale):
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


class _Embedder(nn.Module):
    """Two linear layers from a vector to the width of the network."""

    def __init__(self, inputs, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x):
        return self.mlp(x)


class _PatchEmbed(nn.Module):
    def __init__(self, in_channels, width, patch_size):
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)


class _Attention(nn.Module):
    """The projections of one stream around the joint attention."""

    def __init__(self, width, pre_only, qk_norm):
        super().__init__()
        self.num_heads = width // _HEAD_WIDTH
        self.qkv = nn.Linear(width, width * 3)
        if not pre_only:
            self.proj = nn.Linear(width, width)
        self.ln_q, self.ln_k = (
            nn.RMSNorm(_HEAD_WIDTH, eps=1e-6) if qk_norm == "rms" else nn.Identity() for _ in range(2))

    def pre_attention(self, x):
        """q, k, v, each [B, L, width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, _HEAD_WIDTH)).unbind(2)
        return tuple(part.flatten(2) for part in (self.ln_q(q), self.ln_k(k), v))


class _Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, width * 4)
        self.fc2 = nn.Linear(width * 4, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class _Stream(nn.Module):
    """One stream (text or image) of a joint block; with `pre_only` it feeds the attention and ends."""

    def __init__(self, width, pre_only, qk_norm):
        super().__init__()
        self.pre_only = pre_only
        self.norm1 = _layer_norm(width)
        self.attn = _Attention(width, pre_only, qk_norm)
        if not pre_only:
            self.norm2 = _layer_norm(width)
            self.mlp = _Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, width * (2 if pre_only else 6)))

    def pre_attention(self, x, c):
        """(q, k, v) and what `post_attention` needs of the modulation."""
        shift, scale, *rest = self.adaLN_modulation(c).chunk(2 if self.pre_only else 6, dim=1)
        return self.attn.pre_attention(_modulate(self.norm1(x), shift, scale)), rest

    def post_attention(self, attention, x, gate, shift_mlp, scale_mlp, gate_mlp):
        x = x + gate.unsqueeze(1) * self.attn.proj(attention)
        return x + gate_mlp.unsqueeze(1) * self.mlp(_modulate(self.norm2(x), shift_mlp, scale_mlp))


class JointBlock(nn.Module):
    """Attention of text and image tokens together, each stream with its own weights."""

    def __init__(self, width, pre_only, qk_norm):
        super().__init__()
        self.context_block = _Stream(width, pre_only, qk_norm)
        self.x_block = _Stream(width, False, qk_norm)

    def forward(self, context, x, c, transformer_options=None, **kwargs):
        """(text tokens or None after the last block, image tokens)."""
        options = transformer_options or {}
        text, text_modulation = self.context_block.pre_attention(context, c)
        image, image_modulation = self.x_block.pre_attention(x, c)
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))
        heads = self.x_block.attn.num_heads
        attention = optimized_attention(q, k, v, heads=heads, transformer_options=options)
        x = self.x_block.post_attention(attention[:, context.shape[1]:], x, *image_modulation)
        if self.context_block.pre_only:
            return None, x
        return self.context_block.post_attention(attention[:, :context.shape[1]], context, *text_modulation), x


class _FinalLayer(nn.Module):
    def __init__(self, width, values):
        super().__init__()
        self.norm_final = _layer_norm(width)
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, width * 2))

    def forward(self, x, c):
        return self.linear(_modulate(self.norm_final(x), *self.adaLN_modulation(c).chunk(2, dim=1)))


class OpenAISignatureMMDITWrapper(nn.Module):
    """Network of a `unet_config`, made without weights: load a whole state dict with `assign=True`."""

    def __init__(self, in_channels, out_channels, patch_size, depth, adm_in_channels, context_size, num_patches,
                 pos_embed_max_size, qk_norm=None, dtype=torch.float32, device=None, **unused):
        super().__init__()
        self.dtype = dtype
        self.in_channels, self.out_channels, self.patch_size, self.depth = in_channels, out_channels, patch_size, depth
        self.hidden_size = width = depth * _HEAD_WIDTH
        self.num_heads = depth
        self.pos_embed_max_size = pos_embed_max_size
        with torch.device("meta"):  # draws no random weights
            self.x_embedder = _PatchEmbed(in_channels, width, patch_size)
            self.register_buffer("pos_embed", torch.empty(1, num_patches, width))
            self.t_embedder = _Embedder(_TIME_FEATURES, width)
            self.y_embedder = _Embedder(adm_in_channels, width)
            self.context_embedder = nn.Linear(context_size, width)
            self.joint_blocks = nn.ModuleList(
                JointBlock(width, pre_only=i == depth - 1, qk_norm=qk_norm) for i in range(depth))
            self.final_layer = _FinalLayer(width, patch_size ** 2 * out_channels)

    def forward(self, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):
        """Velocity [B, C, H, W] for x [B, C, H, W], timesteps [B] in 0..1000, context [B, T, D] and pooled y [B, P]."""
        if x.dtype == self.final_layer.linear.weight.dtype:
            return self._forward(x, timesteps, context, y, transformer_options or {})
        # The weights are stored in another dtype than the one to compute in: cast them for this call.
        stored = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return torch.func.functional_call(
            self, {name: tensor.to(x.dtype) for name, tensor in stored.items()}, (x, timesteps),
            {"context": context, "y": y, "transformer_options": transformer_options})

    def _forward(self, x, timesteps, context, y, transformer_options):
        height, width = x.shape[-2:]
        size = self.patch_size
        x = nn.functional.pad(x, (0, -width % size, 0, -height % size), mode="circular")
        rows, columns = x.shape[-2] // size, x.shape[-1] // size
        tokens = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self._positions(rows, columns)
        vector = self.t_embedder(timestep_features(timesteps, _TIME_FEATURES).to(x.dtype))
        if y is not None:
            vector = vector + self.y_embedder(y)
        tokens = self._run_blocks(tokens, self.context_embedder(context), vector, transformer_options)
        patches = self.final_layer(tokens, vector).unflatten(-1, (size, size, -1)).unflatten(1, (rows, columns))
        picture = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return picture[..., :height, :width]

    def _positions(self, rows, columns):
        """The middle of the table of position embeddings, [1, rows columns, width]."""
        limit = self.pos_embed_max_size
        if rows > limit or columns > limit:
            raise ValueError(
                f"The latent has {rows} x {columns} patches, but this model was made for at most {limit} x {limit} "
                f"(pictures of {limit * self.patch_size * 8} pixels a side); choose a smaller width and height.")
        top, left = (limit - rows) // 2, (limit - columns) // 2
        table = self.pos_embed.unflatten(1, (limit, limit))
        return table[:, top:top + rows, left:left + columns].flatten(1, 2)

    def _run_blocks(self, tokens, context, vector, transformer_options):
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})
        for i, block in enumerate(self.joint_blocks):
            args = {"img": tokens, "txt": context, "vec": vector, "transformer_options": transformer_options}
            if ("double_block", i) in replacements:
                out = replacements[("double_block", i)](args, {"original_block": _BlockCall(block)})
                tokens, context = out["img"], out["txt"]
            else:
                context, tokens = block(context, tokens, vector, transformer_options)
        return tokens


class _BlockCall:
    """A block as a function of a dict, the form in which a replacement calls the original."""

    def __init__(self, block):
        self.block = block

    def __call__(self, args):
        text, image = self.block(args["txt"], args["img"], args["vec"], args["transformer_options"])
        return {"txt": text, "img": image}
