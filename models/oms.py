"""Modules of One More Step: what their weights say of the network, in the words of ComfyUI's UNetModel.

A module is a UNet2DConditionModel of diffusers without a time path. The published ones: two "B" modules (160, 320, 640
channels; text of width 1024 from OpenCLIP-H) for the latents of SD 1.5/2.1 and of SDXL, and an "L" module for SDXL
(text of width 2048 from SDXL's own two encoders).
"""

import json

import torch

HEAD_CHANNELS = 32  # of the published B modules and the miniature
SDXL_WIDTH = 2048
GROUPS = 32  # of every norm in the host's UNet
NEEDED = ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight",
          "up_blocks.0.resnets.0.conv1.weight", "conv_out.weight")  # fmt: skip


def unet_config(weights, config=None):
    """Options of the host's UNetModel for a module.

    Args:
        weights: {key: tensor} under diffusers' keys.
        config: the module's config.json as a dict, which alone knows the number of heads. Without it a head has 32
            channels.

    Raises:
        ValueError: the weights are not those of a module, or of one that UNetModel cannot be.
    """
    if lacking := [key for key in NEEDED if key not in weights]:
        raise ValueError("these are not the weights of a One More Step module: it has the keys of a diffusers UNet, "
                         f"and {', '.join(lacking)} is not there")
    if flat := [key for key in NEEDED if weights[key].ndim != 4 or 0 in weights[key].shape]:
        raise ValueError(f"{flat[0]} has the shape {list(weights[flat[0]].shape)}, where a convolution has four sizes")
    if any("time_emb" in key for key in weights):
        raise ValueError("this is a UNet with a time path, so a diffusion model and not a One More Step module")
    if config and config.get("norm_num_groups", GROUPS) != GROUPS:
        raise ValueError(f"config.json asks for norms of {config['norm_num_groups']} groups; the host's UNet has "
                         f"{GROUPS}")
    channels = len(weights["conv_in.weight"])
    down, up = _blocks(weights, "down_blocks"), _blocks(weights, "up_blocks")
    if len(down) != len(up):
        raise ValueError(f"the weights have {len(down)} levels on the way down and {len(up)} on the way up; a UNet has "
                         "equally many")
    widths = [len(weights[f"down_blocks.{level}.resnets.0.conv1.weight"]) for level in range(len(down))]
    texts = {weights[key].shape[1] for key in weights if key.endswith("attn2.to_k.weight")}
    projections = {weights[key].ndim for key in weights if key.endswith("proj_in.weight")}
    if len(texts) != 1 or len(projections) != 1:
        raise ValueError("a One More Step module attends to one text; these weights do to "
                         f"{len(texts)} of the widths {sorted(texts)}")
    width = texts.pop()
    return {
        "model_channels": channels, "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": len(weights["conv_out.weight"]), "num_res_blocks": [len(depths) for depths in down],
        "channel_mult": [width // channels for width in widths],
        "transformer_depth": [depth for depths in down for depth in depths],
        "transformer_depth_output": [depth for depths in up for depth in depths][::-1],  # read from its end
        "transformer_depth_middle": _depth(weights, "mid_block.attentions.0"),
        "context_dim": width, "use_linear_in_transformer": projections.pop() == 2,
        **_heads(widths, width, config),
    }  # fmt: skip


def _blocks(weights, part):
    """For each block of `part` the number of transformer layers after each of its residual blocks."""
    found = {}
    for key in weights:
        if key.startswith(part) and ".resnets." in key:
            _, block, _, residual, *_ = key.split(".")
            found.setdefault(int(block), set()).add(int(residual))
    return [
        [_depth(weights, f"{part}.{block}.attentions.{i}") for i in sorted(found[block])] for block in sorted(found)
    ]


def _depth(weights, name):
    """The number of transformer layers under `name`."""
    prefix = f"{name}.transformer_blocks."
    return len({key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)})


def _heads(widths, text_width, config):
    if config is None:
        if text_width == SDXL_WIDTH:
            raise ValueError("the number of heads of a module with text of width 2048 stands in its config.json only; "
                             "put that beside the weights")
        return {"num_head_channels": HEAD_CHANNELS}
    # diffusers calls the number of heads attention_head_dim where it has no num_attention_heads
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    numbers = heads if isinstance(heads, list) else [heads] * len(widths)
    if len(numbers) != len(widths) or not all(
        isinstance(n, int) and n > 0 and width % n == 0 for width, n in zip(widths, numbers, strict=True)
    ):
        raise ValueError(f"config.json asks for {heads!r} heads, which do not divide levels of {widths} channels")
    if isinstance(heads, int):
        return {"num_heads": heads}
    sizes = {width // number for width, number in zip(widths, numbers, strict=True)}
    if len(sizes) > 1:
        raise ValueError(f"config.json asks for {heads} heads on levels of {widths} channels; the host's UNet has "
                         "heads of one size on all levels")
    return {"num_head_channels": sizes.pop()}


def with_time(weights, options):
    """`weights` with a time path that is zero, which UNetModel has and a module has not.

    options: `unet_config` of the same weights.
    """
    channels, embedding = options["model_channels"], 4 * options["model_channels"]
    shapes = {"time_embedding.linear_1": (embedding, channels), "time_embedding.linear_2": (embedding, embedding)}
    for key, value in weights.items():
        if key.endswith("conv1.weight"):
            shapes[key.removesuffix("conv1.weight") + "time_emb_proj"] = (len(value), embedding)
    missing = {f"{name}.weight": shape for name, shape in shapes.items()}
    missing |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    like = weights["conv_in.weight"]
    return {**weights, **{name: torch.zeros(shape, dtype=like.dtype) for name, shape in missing.items()}}


def read_config(weights_file):
    """config.json beside a file of weights (a Path), or None where there is none. Raises ValueError if it is broken."""
    path = weights_file.with_name("config.json")
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} does not hold the options of a network; fetch it again")
    return config


def family(name, context_dim):
    """Whose latents a module works in, from the `name` of its file or folder: 'SDXL', 'SD1.5 and 2.1' or None.

    The two B modules have the same layout, so that only their names tell them apart; a name that fits both does not.
    """
    if context_dim == SDXL_WIDTH:
        return "SDXL"
    words = {"SDXL": ("xl",), "SD1.5 and 2.1": ("15", "1.5", "21", "2.1")}
    found = [choice for choice, parts in words.items() if any(part in name.lower() for part in parts)]
    return found[0] if len(found) == 1 else None
