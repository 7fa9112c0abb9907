"""The UNet of Stable Diffusion 1, 2 and XL (Rombach et al. 2022), with the host's module names and patch interface.

Names and behaviour are the host's where a pack can see them: state dict keys, blocks that are sequences of layers
(packs make new ones out of them), any latent size, controls, and what `transformer_options` holds: wrappers, patches,
replaced attentions, and the place in the network ("block", "transformer_index", "block_index") at which they run.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import nn

from comfy._layers import optimized_attention, timestep_features
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

_GROUPS = 32


# --- layers ----------------------------------------------------------------------------------------------------------


class _Stored:
    """A layer made without initial values, which a state dict brings; it computes in the dtype of its input."""

    def reset_parameters(self):
        """Draw nothing."""

    def weights_like(self, x):
        return self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)


class _Linear(_Stored, nn.Linear):
    def forward(self, x):
        return F.linear(x, *self.weights_like(x))


class _Conv2d(_Stored, nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, *self.weights_like(x), stride=self.stride, padding=self.padding)


class _GroupNorm(_Stored, nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x, self.num_groups, *self.weights_like(x), eps=self.eps)


class _LayerNorm(_Stored, nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, *self.weights_like(x), eps=self.eps)


def _conv3(inputs, outputs, stride=1, **like):
    return _Conv2d(inputs, outputs, 3, stride=stride, padding=1, **like)


def _embedder(inputs, width, **like):
    return nn.Sequential(_Linear(inputs, width, **like), nn.SiLU(), _Linear(width, width, **like))


# --- residual blocks and resizing ------------------------------------------------------------------------------------


class TimestepBlock(nn.Module):
    """A layer that is called with the features and the embedding of the timestep."""


class ResBlock(TimestepBlock):
    """Two convolutions beside a skip connection, with the embedding added between them."""

    def __init__(self, channels, emb_channels, out_channels, dropout=0.0, **like):
        super().__init__()
        self.channels, self.emb_channels, self.out_channels = channels, emb_channels, out_channels
        self.in_layers = nn.Sequential(
            _GroupNorm(_GROUPS, channels, **like), nn.SiLU(), _conv3(channels, out_channels, **like))
        self.emb_layers = nn.Sequential(nn.SiLU(), _Linear(emb_channels, out_channels, **like))
        self.out_layers = nn.Sequential(
            _GroupNorm(_GROUPS, out_channels, **like), nn.SiLU(), nn.Dropout(dropout),
            _conv3(out_channels, out_channels, **like))
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else _Conv2d(channels, out_channels, 1, **like)

    def forward(self, x, emb):
        """[B, out_channels, H, W] for x [B, channels, H, W] and emb [B, emb_channels]."""
        h = self.in_layers(x)
        h = h + self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Half the size, rounded up by a convolution and down by a mean."""

    def __init__(self, channels, use_conv, **like):
        super().__init__()
        self.channels = self.out_channels = channels
        self.op = _conv3(channels, channels, stride=2, **like) if use_conv else nn.AvgPool2d(2)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size, or the height and width of `output_shape` [B, C, H, W], by nearest neighbours."""

    def __init__(self, channels, use_conv, **like):
        super().__init__()
        self.channels = self.out_channels = channels
        self.use_conv = use_conv
        if use_conv:
            self.conv = _conv3(channels, channels, **like)

    def forward(self, x, output_shape=None):
        height, width = x.shape[-2:]
        size = (2 * height, 2 * width) if output_shape is None else tuple(output_shape[2:])
        x = F.interpolate(x, size=size, mode="nearest")
        return self.conv(x) if self.use_conv else x


# --- transformers ----------------------------------------------------------------------------------------------------


class _GatedProjection(nn.Module):
    """GEGLU (Shazeer 2020): one half of a projection times the GELU of the other."""

    def __init__(self, inputs, outputs, **like):
        super().__init__()
        self.proj = _Linear(inputs, outputs * 2, **like)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width, dropout=0.0, **like):
        super().__init__()
        self.net = nn.Sequential(
            _GatedProjection(width, width * 4, **like), nn.Dropout(dropout), _Linear(width * 4, width, **like))

    def forward(self, x):
        return self.net(x)


class CrossAttention(nn.Module):
    """Attention of x to a context (to x itself without one), of which `value` may give other values than keys."""

    def __init__(self, width, context_dim, heads, dim_head, dropout=0.0, attn_precision=None, **like):
        super().__init__()
        self.heads, self.dim_head, self.attn_precision = heads, dim_head, attn_precision
        inner = heads * dim_head
        self.to_q = _Linear(width, inner, bias=False, **like)
        self.to_k = _Linear(context_dim, inner, bias=False, **like)
        self.to_v = _Linear(context_dim, inner, bias=False, **like)
        self.to_out = nn.Sequential(_Linear(inner, width, **like), nn.Dropout(dropout))

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        value = context if value is None else value
        masks = () if mask is None else (mask,)
        return self.to_out(optimized_attention(
            self.to_q(x), self.to_k(context), self.to_v(value), self.heads, *masks,
            attn_precision=self.attn_precision, transformer_options=transformer_options))


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text and a gated MLP, with the patches that may run around each attention.

    Patches receive the options of the run without the patches themselves, and of this block the number of heads, their
    width and the precision.
    """

    def __init__(self, width, heads, dim_head, context_dim=None, dropout=0.0, attn_precision=None, **like):
        super().__init__()
        self.n_heads, self.d_head, self.attn_precision = heads, dim_head, attn_precision
        attention = {"heads": heads, "dim_head": dim_head, "dropout": dropout, "attn_precision": attn_precision, **like}
        self.attn1 = CrossAttention(width, width, **attention)
        self.ff = _FeedForward(width, dropout, **like)
        self.attn2 = CrossAttention(width, width if context_dim is None else context_dim, **attention)
        self.norm1, self.norm2, self.norm3 = (_LayerNorm(width, **like) for _ in range(3))

    def forward(self, x, context=None, transformer_options=None):
        options = {} if transformer_options is None else transformer_options
        patches = options.get("patches", {})
        extra = {key: value for key, value in options.items() if key not in ("patches", "patches_replace")}
        extra.update(n_heads=self.n_heads, dim_head=self.d_head, attn_precision=self.attn_precision)

        query, functions = self.norm1(x), patches.get("attn1_patch", ())
        keys = values = query if functions else None
        for patch in functions:
            query, keys, values = patch(query, keys, values, extra)
        x = self._attend("attn1", query, keys, values, options, extra) + x
        for patch in patches.get("middle_patch", ()):
            x = patch(x, extra)

        query, functions = self.norm2(x), patches.get("attn2_patch", ())
        keys, values = context, context if functions else None
        for patch in functions:
            query, keys, values = patch(query, keys, values, extra)
        x = self._attend("attn2", query, keys, values, options, extra) + x
        return x + self.ff(self.norm3(x))

    def _attend(self, name, query, keys, values, options, extra):
        """The attention, or what replaces it at this place, and then its output patches."""
        attention = getattr(self, name)
        replacement = self._replacement(name, options)
        if replacement is None:
            out = attention(query, context=keys, value=values, transformer_options=options)
        else:
            keys = query if keys is None else keys
            values = keys if values is None else values
            out = attention.to_out(
                replacement(attention.to_q(query), attention.to_k(keys), attention.to_v(values), extra))
        for patch in options.get("patches", {}).get(f"{name}_output_patch", ()):
            out = patch(out, extra)
        return out

    @staticmethod
    def _replacement(name, options):
        """The function for this very transformer block, else that for all of its attention layer, else None."""
        replacements = options.get("patches_replace", {}).get(name, {})
        block = options.get("block")
        if block is None:
            return None
        return replacements.get((*block[:2], options.get("block_index", 0)), replacements.get(block))


class SpatialTransformer(nn.Module):
    """Transformer blocks on the places of a feature map."""

    def __init__(self, channels, heads, dim_head, depth=1, context_dim=None, dropout=0.0, use_linear=False,
                 attn_precision=None, **like):
        super().__init__()
        self.in_channels, self.use_linear = channels, use_linear
        self.norm = _GroupNorm(_GROUPS, channels, eps=1e-6, **like)
        inner = heads * dim_head
        project = _Linear if use_linear else functools.partial(_Conv2d, kernel_size=1)
        self.proj_in = project(channels, inner, **like)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, context_dim, dropout, attn_precision, **like)
            for _ in range(depth))
        self.proj_out = project(inner, channels, **like)

    def forward(self, x, context=None, transformer_options=None):
        """x [B, C, H, W] with the blocks' result added; context [B, T, D], or one for each block in a list."""
        options = {} if transformer_options is None else transformer_options
        options["activations_shape"] = list(x.shape)
        contexts = context if isinstance(context, list) else [context] * len(self.transformer_blocks)
        h = self.norm(x)
        tokens = self.proj_in(_tokens(h)) if self.use_linear else _tokens(self.proj_in(h))
        for index, block in enumerate(self.transformer_blocks):
            options["block_index"] = index
            tokens = block(tokens, context=contexts[index], transformer_options=options)
        size = x.shape[-2:]
        out = _picture(self.proj_out(tokens), size) if self.use_linear else self.proj_out(_picture(tokens, size))
        return out + x


def _tokens(x):
    """[B, C, H, W] as rows [B, H W, C]."""
    return x.flatten(2).transpose(1, 2)


def _picture(tokens, size):
    """The inverse of `_tokens`."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


# --- the network -----------------------------------------------------------------------------------------------------


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """One block of the network: layers in a row, each called with what its kind takes."""

    def forward(self, *args, **kwargs):
        return _run_layers(self, *args, **kwargs)


def _run_layers(layers, x, emb, context=None, transformer_options=None, output_shape=None):
    options = {} if transformer_options is None else transformer_options
    for layer in layers:
        if isinstance(layer, TimestepBlock):
            x = layer(x, emb)
        elif isinstance(layer, SpatialTransformer):
            x = layer(x, context, options)
            if "transformer_index" in options:
                options["transformer_index"] += 1
        elif isinstance(layer, Upsample):
            x = layer(x, output_shape=output_shape)
        else:
            x = _run_foreign(layer, x, emb, context, options, output_shape)
    return x


def _run_foreign(layer, x, emb, context, options, output_shape):
    """A layer of another kind: by the patch that a pack gave for its class, or as a function of the features."""
    for kind, handler in options.get("patches", {}).get("forward_timestep_embed_patch", ()):
        if isinstance(layer, kind):
            # the last three belong to video networks: context of the time axis, number of frames, still pictures
            return handler(layer, x, emb, context, options, output_shape, None, None, None)
    return layer(x)


def _add_control(h, control, name):
    """Add the next of a ControlNet's features for this part of the network; those of another shape are left out."""
    if control is None or not control.get(name):
        return h
    added = control[name].pop()
    if added is not None:
        try:
            h += added
        except RuntimeError:
            logging.warning("A control of shape %s does not fit features of shape %s: left out.",
                            tuple(added.shape), tuple(h.shape))
    return h


class UNetModel(nn.Module):
    """Network of a `unet_config`, made without initial values: load a whole state dict.

    `transformer_depth` and `transformer_depth_output` list the transformer blocks after each residual block on the way
    down and, in the same direction, on the way up (read from its end); `transformer_depth_middle` is -1 for a middle of
    one residual block and -2 for none.

    Raises NotImplementedError for options of other families (video, class labels by number).
    """

    def __init__(self, image_size, in_channels, model_channels, out_channels, num_res_blocks, dropout=0.0,
                 channel_mult=(1, 2, 4, 8), conv_resample=True, num_classes=None, dtype=torch.float32, num_heads=-1,
                 num_head_channels=-1, use_spatial_transformer=False, transformer_depth=(), context_dim=None,
                 legacy=True, use_linear_in_transformer=False, adm_in_channels=None, transformer_depth_middle=None,
                 transformer_depth_output=(), attn_precision=None, device=None, use_checkpoint=False, **others):
        super().__init__()
        foreign = [name for name, value in others.items() if value]
        if foreign or num_classes not in (None, "sequential"):
            raise NotImplementedError(
                f"The embedded host has no UNet with {foreign or f'num_classes={num_classes}'}; run the graph with "
                "--comfyui PATH or --host URL to use it on a real ComfyUI.")
        levels = len(channel_mult)
        self.num_res_blocks = [num_res_blocks] * levels if isinstance(num_res_blocks, int) else num_res_blocks
        self.in_channels, self.model_channels, self.out_channels = in_channels, model_channels, out_channels
        self.channel_mult, self.conv_resample, self.num_classes = channel_mult, conv_resample, num_classes
        self.num_heads, self.num_head_channels = num_heads, num_head_channels
        self.dropout, self.dtype = dropout, dtype

        like = {"dtype": dtype, "device": device}
        emb_channels = model_channels * 4
        self.time_embed = _embedder(model_channels, emb_channels, **like)
        if num_classes == "sequential":
            self.label_emb = nn.Sequential(_embedder(adm_in_channels, emb_channels, **like))

        def residual(inputs, outputs):
            return ResBlock(inputs, emb_channels, outputs, dropout, **like)

        def attention(channels, depth):
            if num_head_channels == -1:
                heads, dim_head = num_heads, channels // num_heads
            else:
                heads, dim_head = channels // num_head_channels, num_head_channels
            return SpatialTransformer(
                channels, heads, dim_head, depth, context_dim, dropout, use_linear_in_transformer, attn_precision,
                **like)

        def block(inputs, outputs, depth):
            return [residual(inputs, outputs)] + ([attention(outputs, depth)] if depth > 0 else [])

        depths, depths_up = list(transformer_depth), list(transformer_depth_output)
        channels = model_channels
        skips = [channels]
        down = [[_conv3(in_channels, channels, **like)]]
        for level, mult in enumerate(channel_mult):
            for _ in range(self.num_res_blocks[level]):
                down.append(block(channels, mult * model_channels, depths.pop(0)))
                channels = mult * model_channels
                skips.append(channels)
            if level < levels - 1:
                down.append([Downsample(channels, conv_resample, **like)])
                skips.append(channels)
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(*layers) for layers in down)

        self.middle_block = None
        if transformer_depth_middle >= 0:
            self.middle_block = TimestepEmbedSequential(
                residual(channels, channels), attention(channels, transformer_depth_middle),
                residual(channels, channels))
        elif transformer_depth_middle == -1:
            self.middle_block = TimestepEmbedSequential(residual(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(self.num_res_blocks[level] + 1):
                layers = block(channels + skips.pop(), mult * model_channels, depths_up.pop())
                channels = mult * model_channels
                if level > 0 and i == self.num_res_blocks[level]:
                    layers.append(Upsample(channels, conv_resample, **like))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Sequential(
            _GroupNorm(_GROUPS, channels, **like), nn.SiLU(), _conv3(model_channels, out_channels, **like))

    def forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        """eps or v [B, C, H, W] for x [B, C, H, W], timesteps [B] in 0..999, context [B, T, D] and y [B, P]."""
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, y, control, options, **kwargs)

    def _forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        options = {} if transformer_options is None else transformer_options
        options["original_shape"] = list(x.shape)
        options["transformer_index"] = 0
        patches = options.get("patches", {})
        emb = self._embed(x, timesteps, y, options)

        h, skips = x, []
        for index, block in enumerate(self.input_blocks):
            options["block"] = ("input", index)
            h = _add_control(_run_layers(block, h, emb, context, options), control, "input")
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)

        options["block"] = ("middle", 0)
        if self.middle_block is not None:
            h = _run_layers(self.middle_block, h, emb, context, options)
        h = _add_control(h, control, "middle")
        for patch in patches.get("middle_block_after_patch", ()):
            h = patch({"h": h, "x": x, "emb": emb, "context": context, "y": y, "timesteps": timesteps,
                       "transformer_options": options})["h"]

        for index, block in enumerate(self.output_blocks):
            options["block"] = ("output", index)
            skip = _add_control(skips.pop(), control, "output")
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, options)
            h = torch.cat([h, skip], dim=1)
            h = _run_layers(block, h, emb, context, options, skips[-1].shape if skips else None)
        return self.out(h.to(x.dtype))

    def _embed(self, x, timesteps, y, options):
        """Embedding [B, 4 model_channels] of the timesteps and, for a model that takes one, of the vector y."""
        assert (y is None) == (self.num_classes is None), "the vector y belongs to networks with adm_in_channels"
        emb = self.time_embed(timestep_features(timesteps, self.model_channels).to(x.dtype))
        for patch in options.get("patches", {}).get("emb_patch", ()):
            emb = patch(emb, self.model_channels, options)
        return emb if y is None else emb + self.label_emb(y)
