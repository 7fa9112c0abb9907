"""Files, state dicts, resizing, tiling and progress: the host's grab bag."""

import itertools
import math

import torch
import torch.nn.functional as F

# --- files -----------------------------------------------------------------------------------------------------------


def load_torch_file(ckpt, safe_load=False, device=None, return_metadata=False):
    """State dict of a safetensors file, or of a torch file read with `weights_only`.

    Raises ValueError naming the file when a safetensors file is damaged or cut short.
    """
    device = torch.device("cpu") if device is None else device
    metadata = None
    if str(ckpt).lower().endswith((".safetensors", ".sft")):
        import safetensors

        try:
            with safetensors.safe_open(ckpt, framework="pt", device=device.type) as file:
                state_dict = {key: file.get_tensor(key) for key in file.keys()}
                metadata = file.metadata()
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{ckpt} is no complete safetensors file ({error}). Check its size, then download or copy it again."
            ) from error
    else:
        state_dict = _unwrapped(torch.load(ckpt, map_location=device, weights_only=True))
    return (state_dict, metadata) if return_metadata else state_dict


def _unwrapped(checkpoint):
    """The state dict inside a training checkpoint: under `state_dict`, or the only entry when that is a dict."""
    if "state_dict" in checkpoint:
        return checkpoint["state_dict"]
    if len(checkpoint) == 1:
        (only,) = checkpoint.values()
        if isinstance(only, dict):
            return only
    return checkpoint


def save_torch_file(sd, ckpt, metadata=None):
    import safetensors.torch

    safetensors.torch.save_file(sd, ckpt, metadata=metadata)


# --- state dicts and attributes --------------------------------------------------------------------------------------


def state_dict_prefix_replace(state_dict, replace_prefix, filter_keys=False):
    """Rename keys by prefix; with `filter_keys` the renamed ones move into a new dict and the rest stays behind."""
    out = {} if filter_keys else state_dict
    for old, new in replace_prefix.items():
        for key in [key for key in state_dict if key.startswith(old)]:
            out[new + key[len(old):]] = state_dict.pop(key)
    return out


def calculate_parameters(sd, prefix=""):
    return sum(weight.nelement() for key, weight in sd.items() if key.startswith(prefix))


def weight_dtype(sd, prefix=""):
    """dtype of most elements, or None for no weights."""
    counts = {}
    for key, weight in sd.items():
        if key.startswith(prefix):
            counts[weight.dtype] = counts.get(weight.dtype, 0) + weight.numel()
    return max(counts, key=counts.get) if counts else None


# diffusers' names of layers against the host's, for `unet_to_diffusers`
_DIFFUSERS_RESIDUAL = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
                       "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_DIFFUSERS_ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
                   "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
                   "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2",
                   "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_TRANSFORMER_LAYERS = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
_TRANSFORMER_PROJECTIONS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v")


def unet_to_diffusers(unet_config):
    """{key in diffusers' UNet2DConditionModel: key in the host's UNetModel} of every weight that either may have.

    Empty for a configuration that is not of a UNet.
    """
    if "num_res_blocks" not in unet_config:
        return {}
    residuals, levels = unet_config["num_res_blocks"], len(unet_config["channel_mult"])
    depths, depths_up = list(unet_config["transformer_depth"]), list(unet_config["transformer_depth_output"])
    keys = {}

    def layer(diffusers, host, ends=("weight", "bias")):
        keys.update({f"{diffusers}.{end}": f"{host}.{end}" for end in ends})

    def residual(diffusers, host):
        for theirs, ours in _DIFFUSERS_RESIDUAL.items():
            layer(f"{diffusers}.{theirs}", f"{host}.{ours}")

    def transformer(diffusers, host, depth):
        for name in ("norm", "proj_in", "proj_out"):
            layer(f"{diffusers}.{name}", f"{host}.{name}")
        for block in (f"transformer_blocks.{t}" for t in range(depth)):
            for name in _TRANSFORMER_LAYERS:
                layer(f"{diffusers}.{block}.{name}", f"{host}.{block}.{name}")
            for name in _TRANSFORMER_PROJECTIONS:
                layer(f"{diffusers}.{block}.{name}", f"{host}.{block}.{name}", ends=("weight",))

    for theirs, ours in _DIFFUSERS_ENDS.items():
        layer(theirs, ours)
    for level in range(levels):
        start = 1 + (residuals[level] + 1) * level
        for i in range(residuals[level]):
            residual(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{start + i}.0")
            depth = depths.pop(0)
            if depth > 0:
                transformer(f"down_blocks.{level}.attentions.{i}", f"input_blocks.{start + i}.1", depth)
        layer(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{start + residuals[level]}.0.op")
    residual("mid_block.resnets.0", "middle_block.0")
    transformer("mid_block.attentions.0", "middle_block.1", unet_config["transformer_depth_middle"])
    residual("mid_block.resnets.1", "middle_block.2")
    for level, count in enumerate(reversed(residuals)):
        for i in range(count + 1):
            block = f"output_blocks.{(count + 1) * level + i}"
            residual(f"up_blocks.{level}.resnets.{i}", f"{block}.0")
            depth = depths_up.pop()
            if depth > 0:
                transformer(f"up_blocks.{level}.attentions.{i}", f"{block}.1", depth)
            if i == count:
                layer(f"up_blocks.{level}.upsamplers.0.conv", f"{block}.{2 if depth > 0 else 1}.conv")
    return keys


def get_attr(obj, attr):
    """Attribute by dotted path."""
    for name in attr.split("."):
        obj = getattr(obj, name)
    return obj


def set_attr(obj, attr, value):
    """Set an attribute by dotted path and return the previous value."""
    path, _, name = attr.rpartition(".")
    owner = get_attr(obj, path) if path else obj
    previous = getattr(owner, name)
    setattr(owner, name, value)
    return previous


def set_attr_param(obj, attr, value):
    """`set_attr` of a tensor, as a parameter without gradient."""
    return set_attr(obj, attr, torch.nn.Parameter(value, requires_grad=False))


def copy_to_param(obj, attr, value):
    get_attr(obj, attr).data.copy_(value)


# --- batches ---------------------------------------------------------------------------------------------------------


def repeat_to_batch_size(tensor, batch_size, dim=0):
    """Tensor cut or cyclically repeated to `batch_size` along `dim`."""
    length = tensor.shape[dim]
    if length < batch_size:
        repeats = [1] * tensor.ndim
        repeats[dim] = math.ceil(batch_size / length)
        tensor = tensor.repeat(repeats)
    return tensor.narrow(dim, 0, batch_size) if tensor.shape[dim] > batch_size else tensor


def _spread_indices(length, batch_size):
    """Indices that stretch `length` items over `batch_size` places, keeping both ends when there are fewer places."""
    if batch_size <= 1:
        return list(range(min(length, batch_size)))
    if batch_size < length:
        return [min(round(i * (length - 1) / (batch_size - 1)), length - 1) for i in range(batch_size)]
    return [min(math.floor((i + 0.5) * length / batch_size), length - 1) for i in range(batch_size)]


def resize_to_batch_size(tensor, batch_size):
    if tensor.shape[0] == batch_size:
        return tensor
    return tensor[_spread_indices(tensor.shape[0], batch_size)]


def pack_latents(latents):
    """Latents of different shape as one [B, 1, N], and their shapes."""
    shapes = [latent.shape for latent in latents]
    return torch.cat([latent.reshape(latent.shape[0], 1, -1) for latent in latents], dim=-1), shapes


def unpack_latents(combined_latent, latent_shapes):
    if len(latent_shapes) == 1:
        return [combined_latent]
    parts = combined_latent.split([math.prod(shape[1:]) for shape in latent_shapes], dim=-1)
    return [part.reshape([part.shape[0], *shape[1:]]) for part, shape in zip(parts, latent_shapes, strict=True)]


def reshape_mask(input_mask, output_shape):
    """Mask resized to a latent's shape [B, C, ...]: interpolated over space, repeated over channels and batch."""
    dims = len(output_shape) - 2
    if dims == 2:
        input_mask = input_mask.reshape((-1, 1) + tuple(input_mask.shape[-2:]))
    elif dims == 3 and input_mask.ndim < 5:
        input_mask = input_mask.reshape((1, 1, -1) + tuple(input_mask.shape[-2:]))
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
    mask = F.interpolate(input_mask, size=output_shape[2:], mode=mode)
    if mask.shape[1] < output_shape[1]:
        mask = mask.repeat((1, output_shape[1]) + (1,) * dims)[:, :output_shape[1]]
    return repeat_to_batch_size(mask, output_shape[0])


# --- resizing --------------------------------------------------------------------------------------------------------


def _slerp(a, b, ratio):
    """Spherical interpolation of the rows of a and b [N, C], with the norm interpolated linearly; ratio is [N, 1]."""
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a = torch.where(norm_a == 0.0, torch.zeros_like(a), a / norm_a)
    unit_b = torch.where(norm_b == 0.0, torch.zeros_like(b), b / norm_b)
    dot = (unit_a * unit_b).sum(1, keepdim=True)
    angle = torch.acos(dot)
    sine = torch.sin(angle)
    mixed = torch.sin((1.0 - ratio) * angle) / sine * unit_a + torch.sin(ratio * angle) / sine * unit_b
    mixed = mixed * (norm_a * (1.0 - ratio) + norm_b * ratio)
    mixed = torch.where(dot > 1 - 1e-5, a, mixed)  # the same direction: the angle is lost in rounding
    return torch.where(dot < 1e-5 - 1, a * (1.0 - ratio) + b * ratio, mixed)  # opposite: no shortest way


def _neighbours(length_old, length_new, device):
    """Left and right source index and the ratio between them for every target position."""
    def stretched(values):
        return F.interpolate(values.reshape(1, 1, 1, -1), size=(1, length_new), mode="bilinear").flatten()

    left = torch.arange(length_old, dtype=torch.float32, device=device)
    right = (left + 1).clamp(max=length_old - 1)
    position = stretched(left)
    return position.long(), stretched(right).long(), position - position.floor()


def _slerp_last_axis(samples, length_new):
    left, right, ratio = _neighbours(samples.shape[-1], length_new, samples.device)
    rows = samples.movedim(1, -1)  # [N, H, W, C]
    channels = rows.shape[-1]
    ratio = ratio.expand(rows.shape[0], rows.shape[1], length_new).reshape(-1, 1)
    mixed = _slerp(rows[:, :, left].reshape(-1, channels), rows[:, :, right].reshape(-1, channels), ratio)
    return mixed.reshape(rows.shape[0], rows.shape[1], length_new, channels).movedim(-1, 1)


def bislerp(samples, width, height):
    """Latents [N, C, H, W] resized by spherical interpolation along both axes, width first."""
    wide = _slerp_last_axis(samples.float(), width)
    return _slerp_last_axis(wide.transpose(-1, -2), height).transpose(-1, -2).to(samples.dtype)


def lanczos(samples, width, height):
    """Pictures [N, C, H, W] in 0..1 resized by Pillow, hence quantised to 8 bit."""
    import numpy as np
    from PIL import Image

    resized = []
    for picture in samples.movedim(1, -1).cpu().numpy():
        grey = picture.shape[-1] == 1
        image = Image.fromarray(np.clip(255.0 * (picture[..., 0] if grey else picture), 0, 255).astype(np.uint8))
        image = image.resize((width, height), resample=Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image).astype(np.float32) / 255.0)
        resized.append(pixels.unsqueeze(0) if grey else pixels.movedim(-1, 0))
    return torch.stack(resized).to(samples.device, samples.dtype)


def _crop_to_aspect(samples, width, height):
    old_height, old_width = samples.shape[-2:]
    old_aspect, aspect = old_width / old_height, width / height
    x = y = 0
    if old_aspect > aspect:
        x = round((old_width - old_width * (aspect / old_aspect)) / 2)
    elif old_aspect < aspect:
        y = round((old_height - old_height * (old_aspect / aspect)) / 2)
    return samples.narrow(-2, y, old_height - 2 * y).narrow(-1, x, old_width - 2 * x)


def common_upscale(samples, width, height, upscale_method, crop):
    """Resize [B, C, (frames,) H, W] with a torch mode, `bislerp` or `lanczos`; crop "center" keeps the aspect ratio."""
    shape = tuple(samples.shape)
    if len(shape) > 4:
        samples = samples.reshape(shape[0], shape[1], -1, *shape[-2:]).movedim(2, 1).reshape(-1, shape[1], *shape[-2:])
    if crop == "center":
        samples = _crop_to_aspect(samples, width, height)
    if upscale_method == "bislerp":
        out = bislerp(samples, width, height)
    elif upscale_method == "lanczos":
        out = lanczos(samples, width, height)
    else:
        out = F.interpolate(samples, size=(height, width), mode=upscale_method)
    if len(shape) == 4:
        return out
    return out.reshape(shape[0], -1, shape[1], height, width).movedim(2, 1).reshape(*shape[:-2], height, width)


# --- tiling ----------------------------------------------------------------------------------------------------------


def get_tiled_scale_steps(width, height, tile_x, tile_y, overlap):
    """Number of tiles of one picture."""
    rows = 1 if height <= tile_y else math.ceil((height - overlap) / (tile_y - overlap))
    columns = 1 if width <= tile_x else math.ceil((width - overlap) / (tile_x - overlap))
    return rows * columns


def tiled_scale(samples, function, tile_x=64, tile_y=64, overlap=8, upscale_amount=4, out_channels=3,
                output_device="cpu", pbar=None):
    """Apply a scaling function to [B, C, H, W] tile by tile and blend the overlaps linearly."""
    tile = (tile_y, tile_x)
    size = [round(length * upscale_amount) for length in samples.shape[2:]]
    output = torch.zeros([samples.shape[0], out_channels, *size], device=output_device)
    starts = [range(0, length - overlap, t - overlap) if length > t else [0]
              for length, t in zip(samples.shape[2:], tile, strict=True)]
    for index in range(samples.shape[0]):
        item = samples[index:index + 1]
        weight = torch.zeros([1, 1, *size], device=output_device)
        for top, left in itertools.product(*starts):
            part = function(item[:, :, top:top + tile_y, left:left + tile_x]).to(output_device)
            mask = _feather(part.shape[2:], round(overlap * upscale_amount), output_device)
            rows = slice(round(top * upscale_amount), round(top * upscale_amount) + part.shape[2])
            columns = slice(round(left * upscale_amount), round(left * upscale_amount) + part.shape[3])
            output[index:index + 1, :, rows, columns] += part * mask
            weight[:, :, rows, columns] += mask
            if pbar is not None:
                pbar.update(1)
        output[index:index + 1] /= weight
    return output


def _feather(size, width, device):
    """Weights [1, 1, H, W] that rise linearly over `width` pixels from each edge (a shorter axis is left flat)."""
    mask = torch.ones([1, 1, *size], device=device)
    for axis, length in zip((2, 3), size, strict=True):
        if width >= length:
            continue
        ramp = torch.ones(length, device=device)
        rise = torch.arange(1, width + 1, device=device) / width
        ramp[:width] *= rise
        ramp[length - width:] *= rise.flip(0)
        mask = mask * (ramp[:, None] if axis == 2 else ramp)
    return mask


# --- progress --------------------------------------------------------------------------------------------------------

PROGRESS_BAR_ENABLED = True
PROGRESS_BAR_HOOK = None


def set_progress_bar_enabled(enabled):
    """Show or hide the bars on the console; the hook hears of all of them."""
    global PROGRESS_BAR_ENABLED
    PROGRESS_BAR_ENABLED = enabled


class ProgressBar:
    """Progress of a node, reported to the hook that was registered when the bar was made."""

    def __init__(self, total, node_id=None):
        self.node_id, self.hook = node_id, PROGRESS_BAR_HOOK
        self.current, self.total = 0, total

    def update(self, value):
        """Go on by `value`."""
        self.update_absolute(self.current + value)

    def update_absolute(self, value, total=None, preview=None):
        """Go to `value`, at most the total, which may change on the way."""
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        if self.hook is not None:
            self.hook(self.current, self.total, preview, node_id=self.node_id)


def set_progress_bar_global_hook(function):
    """Register `function(value, total, preview, node_id=...)` for all bars made from now on."""
    global PROGRESS_BAR_HOOK
    PROGRESS_BAR_HOOK = function
