"""TRIP in miniature (Zhang et al. 2024, arXiv 2403.17005): a video network that reads the first frame along time and
whose noise is fused with the noise that would lead every frame back to that first one.

A clip x0 [B, C, N, h, w] is noised as x = (x0 + sigma noise) / sqrt(1 + sigma^2). The shortcut is the image noise prior
eps_ref = (x sqrt(1 + sigma^2) - image) / sigma, the residual path the 3D-UNet's eps_res; both are fused by a linear
rule or by the temporal noise fusion, a small transformer.

Ours: the UNet answers with v = (noise - sigma x0) / sqrt(1 + sigma^2), and what the fusion adds is divided by
sqrt(1 + sigma^2). At the high noise that decides what moves, an error of either counts once in x0, where one of eps
would count sigma times. For the same reason the fusion sees both noises by what they mean for the picture: there they
differ by (x0_res - image) / sigma, a small part of either.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from .captions import WORDS, CaptionEncoder, CaptionTokenizer
from .checkpoints import filled
from .conditional_unet import Sinusoids
from .shapes import shape_of

HEADS, NORM_GROUPS, SINUSOIDS = 4, 8, 64
FIRST_SHARE, LAST_SHARE = 0.9, 0.1  # of the prior, in the first and in the last frame
MOTION_WORDS = tuple("drift drifts rise rises sail sails sink sinks slowly".split())


class MotionTokenizer(CaptionTokenizer):
    """The words of the landscapes and what things in them do."""

    WORDS = WORDS + MOTION_WORDS


class MotionEncoder(CaptionEncoder):
    """The caption encoder of the landscapes with vectors for the words of motion, which alone are TRIP's own."""

    TOKENIZER = MotionTokenizer

    @classmethod
    def of(cls, captions, words):
        """From the state of a CaptionEncoder and the vectors [9, 128] of the words of motion."""
        known = captions["embedding.weight"]
        return filled(cls, captions | {"embedding.weight": torch.cat([known, words.to(known)])}, torch.float32)

    def learning(self, tokens, words):
        """Context [B, 20, 128] of tokens [B, 20] with `words` in the place of the vectors of the words of motion."""
        table = torch.cat([self.embedding.weight[: -len(words)], words])
        return torch.func.functional_call(self, {"embedding.weight": table}, (tokens,))[0]


def _attend(query, key, value):
    """Attention of HEADS heads over [B, tokens, width]."""
    query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _timestep(sigma):
    """The noise level as a time for sinusoids: even in its logarithm."""
    return 250 * sigma.float().log()


def _deviation(sigma):
    """Of x0 + sigma noise, for x0 of unit variance."""
    return (1 + sigma.square()).sqrt()


class Attention(nn.Module):
    """x + attention(norm(x), context), over [B, tokens, width]; to itself where there is no context."""

    def __init__(self, width, context=None):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, context=None):
        normed = self.norm(x)
        key, value = self.key_value(normed if context is None else context).chunk(2, dim=-1)
        return x + self.out(_attend(self.query(normed), key, value))


class ResidualBlock(nn.Module):
    """Two convolutions within each frame, then one over each pixel's neighbours in time."""

    def __init__(self, width_in, width, time):
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time = nn.Linear(time, width)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)
        self.norm3 = nn.GroupNorm(NORM_GROUPS, width)
        self.temporal = nn.Conv2d(3 * width, width, 1)

    def forward(self, x, time, frames):
        """x [B * frames, width_in, h, w], time [B * frames, time]."""
        hidden = self.conv1(silu(self.norm1(x))) + self.time(time)[..., None, None]
        x = self.skip(x) + self.conv2(silu(self.norm2(hidden)))
        clip = pad(silu(self.norm3(x)).unflatten(0, (-1, frames)), (0,) * 6 + (1, 1))
        near = torch.cat([clip[:, :-2], clip[:, 1:-1], clip[:, 2:]], dim=2)
        return x + self.temporal(near.flatten(0, 1))


class Mixer(nn.Module):
    """Attention between the pixels of a frame, to the caption, and between the frames of each pixel."""

    def __init__(self, width, context, frames):
        super().__init__()
        self.spatial = Attention(width)
        self.text = Attention(width, context)
        self.temporal = Attention(width)
        self.frame = nn.Parameter(torch.zeros(frames, width))

    def forward(self, x, context, frames):
        """x [B * frames, width, h, w], context [B, tokens, context]."""
        size = x.shape[-2:]
        x = self.spatial(x.flatten(2).mT).unflatten(0, (-1, frames))  # [B, frames, pixels, width]
        x = self.text(x.flatten(1, 2), context).unflatten(1, (frames, -1)).transpose(1, 2)
        x = self.temporal((x + self.frame[:frames]).flatten(0, 1)).unflatten(0, x.shape[:2])
        return x.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)


class VideoUNet(nn.Module):
    """Noisy frames to their v, on two levels; with `image` the first one is a clean picture to go by, which is
    marked and not answered."""

    def __init__(self, channels, width, time, context, frames, image):
        super().__init__()
        self.image = image
        frames += image
        self.time_mlp = nn.Sequential(Sinusoids(SINUSOIDS), nn.Linear(SINUSOIDS, time), nn.SiLU(),
                                      nn.Linear(time, time))  # fmt: skip
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        if image:
            self.is_image = nn.Parameter(torch.zeros(width))
        self.down1 = ResidualBlock(width, width, time)
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down2 = ResidualBlock(2 * width, 2 * width, time)
        self.down_mixer = Mixer(2 * width, context, frames)
        self.middle = ResidualBlock(2 * width, 2 * width, time)
        self.up2 = ResidualBlock(4 * width, 2 * width, time)
        self.up_mixer = Mixer(2 * width, context, frames)
        self.enlarge = nn.Conv2d(2 * width, width, 3, padding=1)
        self.up1 = ResidualBlock(2 * width, width, time)
        self.norm_out = nn.GroupNorm(NORM_GROUPS, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, sigma, context):
        """x [B, image + N, C, h, w], h and w even, to [B, N, C, h, w]."""
        frames = x.shape[1]
        time = silu(self.time_mlp[1:](self.time_mlp[0](_timestep(sigma)).to(x.dtype))).repeat_interleave(frames, 0)
        x = self.conv_in(x.flatten(0, 1))
        if self.image:
            first, rest = x.unflatten(0, (-1, frames)).tensor_split([1], dim=1)
            x = torch.cat([first + self.is_image[:, None, None], rest], dim=1).flatten(0, 1)
        high = self.down1(x, time, frames)
        low = self.down_mixer(self.down2(self.shrink(high), time, frames), context, frames)
        x = torch.cat([self.middle(low, time, frames), low], dim=1)
        x = self.up_mixer(self.up2(x, time, frames), context, frames)
        x = self.enlarge(interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.up1(torch.cat([x, high], dim=1), time, frames)
        return self.conv_out(silu(self.norm_out(x))).unflatten(0, (-1, frames))[:, int(self.image) :]


class LinearFusion(nn.Module):
    """eps = share_i eps_ref + (1 - share_i) eps_res, where the prior's share falls evenly over the frames."""

    def __init__(self):
        super().__init__()
        self.register_buffer("share", torch.tensor([FIRST_SHARE, LAST_SHARE]))

    def shares(self, frames):
        """Of the prior in each frame, [frames, 1, 1]. A lone frame is the first one."""
        way = torch.linspace(0, 1, frames, device=self.share.device)[:, None, None]
        return torch.lerp(*self.share.float(), way)

    def forward(self, eps_res, eps_ref, sigma):
        """The fused noise [B, C, N, h, w] of both, at any noise level."""
        return torch.lerp(eps_res, eps_ref, self.shares(eps_ref.shape[2]))


class TNF(LinearFusion):
    """Temporal noise fusion: a small transformer over patches of all frames.

    The residual path, under a norm that the noise level modulates, attends to itself and then to both paths. Of the
    result come a gate g and a rest r: eps = g eps_ref + (1 - g) eps_res + r / sqrt(1 + sigma^2). Before training both
    are those of the linear fusion. The residual path is seen as sigma (eps_ref - eps_res), which is x0_res - image, the
    shortcut as sigma eps_ref / sqrt(1 + sigma^2). This, the widths and the gate are ours; the paper gives the order of
    the parts.

    Args:
        channels: of the latents. patch: its side in latent pixels. dim: width, a multiple of 4.
        frames, side: places that the tables of positions hold; those of longer or larger clips lie between them.
    """

    def __init__(self, channels, patch=2, dim=48, frames=16, side=8):
        super().__init__()
        self.channels, self.patch = channels, patch
        values = channels * patch**2
        self.from_res, self.from_ref = nn.Linear(values, dim), nn.Linear(values, dim)
        self.place = nn.Parameter(torch.zeros(1, dim, side, side))
        self.frame = nn.Parameter(torch.zeros(1, dim, frames))
        self.time_mlp = nn.Sequential(Sinusoids(SINUSOIDS), nn.Linear(SINUSOIDS, dim), nn.SiLU(),
                                      nn.Linear(dim, 6 * dim))  # fmt: skip
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.self_qkv, self.self_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.cross = Attention(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, 2 * values)

    def forward(self, eps_res, eps_ref, sigma):
        """The fused noise [B, C, N, h, w], float32, at noise levels sigma [B] or, where frames have their own, [B, N].

        Either noise is (x - clean) / sigma, as a velocity of a flow is, too.

        Raises:
            ValueError: h or w is no multiple of the patch, or there are other channels.
        """
        eps_res, eps_ref = eps_res.float(), eps_ref.float()
        if eps_res.shape[1] != self.channels or any(side % self.patch for side in eps_res.shape[-2:]):
            raise ValueError(f"latents of {eps_res.shape[1]} channels and {list(eps_res.shape[-2:])} pixels, where the "
                             f"fusion takes {self.channels} channels and multiples of {self.patch} pixels")
        dtype = self.head.weight.dtype
        places = self._places(eps_res.shape, dtype)
        level = sigma.float().view(len(sigma), 1, -1, 1, 1)
        res = self.from_res(self._patches(level * (eps_ref - eps_res)).to(dtype)) + places
        ref = self.from_ref(self._patches(level * eps_ref / _deviation(level)).to(dtype)) + places
        time = self.time_mlp[0](_timestep(level.amax((1, 2, 3, 4)))).to(dtype)
        modulation = self.time_mlp[1:](time)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        hidden = self.norm(res) * (1 + scale1) + shift1
        x = res + (1 + gate1) * self.self_out(_attend(*self.self_qkv(hidden).chunk(3, dim=-1)))
        x = self.cross(x, torch.cat([ref, res], dim=1))
        hidden = self.norm(x) * (1 + scale2) + shift2
        x = x + (1 + gate2) * self.down(silu(self.up(hidden)))
        change, rest = (self._frames(part, eps_res.shape) for part in self.head(x).float().chunk(2, dim=-1))
        gate = torch.sigmoid(self.shares(eps_res.shape[2]).logit() + change)
        return torch.lerp(eps_res, eps_ref, gate) + rest / _deviation(level)

    def shares(self, frames):
        """As for places: those of a shorter clip are the first ones, those of a longer one lie between them."""
        return super().shares(max(frames, self.frame.shape[-1]))[:frames]

    def _places(self, shape, dtype):
        size = [side // self.patch for side in shape[-2:]]
        place = interpolate(self.place.float(), size, mode="bilinear", align_corners=False)[0].flatten(1).mT
        frames = shape[2]
        frame = self.frame[..., :frames]
        if frames > frame.shape[-1]:
            frame = interpolate(frame.float(), frames, mode="linear", align_corners=True)
        return (frame[0].mT[:, None] + place).flatten(0, 1).to(dtype)

    def _patches(self, x):
        """[B, C, N, h, w] to [B, N * patches, C * patch^2]."""
        rows = x.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch))  # B C N h p w p
        return rows.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)

    def _frames(self, x, shape):
        """The inverse of `_patches`."""
        _batch, channels, frames, height, width = shape
        grid = x.unflatten(2, (channels, self.patch, self.patch))
        grid = grid.unflatten(1, (frames, height // self.patch, width // self.patch))  # B N h w C p p
        return grid.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)


@dataclass(frozen=True)
class Config:
    """Sizes of a network, and which of its variants it is.

    fusion: "tnf", "linear", or "none", the ablation without the shortcut. image: whether the network reads the first
    frame at all; one that does not is a text-to-video model and has no fusion. patch, dim and side are TNF's.
    """

    channels: int = 4
    width: int = 32
    time: int = 96
    context: int = CaptionEncoder.WIDTH
    frames: int = 8
    patch: int = 2
    dim: int = 48
    side: int = 8
    fusion: str = "tnf"
    image: bool = True


class TRIP(nn.Module):
    """The noise in a clip, from its caption and, unless the variant has no image, its first frame."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.unet = VideoUNet(config.channels, config.width, config.time, config.context, config.frames, config.image)
        if config.fusion == "tnf":
            self.fusion = TNF(config.channels, config.patch, config.dim, config.frames, config.side)
        elif config.fusion == "linear":
            self.fusion = LinearFusion()
        self.words = nn.Parameter(torch.zeros(len(MOTION_WORDS), config.context))

    def forward(self, x, sigma, context, image=None):
        """eps [B, C, N, h, w], float32.

        Args:
            x: (x0 + sigma noise) / sqrt(1 + sigma^2), [B, C, N, h, w], N at most `config.frames`, h and w even.
            sigma: noise levels [B], above 0.
            context: of the captions, [B, tokens, config.context].
            image: latent of the first frame, [B, C, h, w]; needed by, and only by, variants that read it.
        """
        dtype = self.unet.conv_in.weight.dtype
        x, context, clip = x.float(), context.to(dtype), x
        if self.config.image:
            image = image.float()[:, :, None]
            clip = torch.cat([image, x], dim=2)
        level = sigma.float()[:, None, None, None, None]
        deviation = _deviation(level)
        v = self.unet(clip.to(dtype).transpose(1, 2), sigma, context).float().transpose(1, 2)
        eps_res = (level * x + v) / deviation
        if self.config.fusion == "none":
            return eps_res
        eps_ref = (x * deviation - image) / level
        return self.fusion(eps_res, eps_ref, sigma)


def read(weights, dtype=None):
    """TRIP of a saved {key: tensor}, whose names and shapes say its sizes and variant.

    Raises ValueError for weights of another network.
    """
    width, channels, _, _ = shape_of(weights, "unet.conv_in.weight", 4)
    image = "unet.is_image" in weights
    fusion = {}
    if "fusion.head.weight" in weights:
        values, dim = shape_of(weights, "fusion.head.weight", 2)
        patch = math.isqrt(values // 2 // channels)
        fusion = {"patch": patch, "dim": dim, "side": shape_of(weights, "fusion.place", 4)[-1]}
    config = Config(
        channels=channels, width=width, time=shape_of(weights, "unet.time_mlp.1.weight", 2)[0],
        context=shape_of(weights, "words", 2)[1], frames=shape_of(weights, "unet.down_mixer.frame", 2)[0] - image,
        fusion="tnf" if fusion else "linear" if "fusion.share" in weights else "none", image=image,
        **fusion)  # fmt: skip
    return filled(lambda: TRIP(config), weights, dtype)
