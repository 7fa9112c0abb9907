"""TRIP's image noise prior as a change of the denoised clip: frames are drawn to the picture that it begins with.

The prior of Zhang et al. (CVPR 2024), eps^{i->1} = (z_t^i - sqrt(abar) z^1) / sqrt(1 - abar), is the noise that leads
back to the first frame in one step. Denoised, that is the first frame itself, whatever the parametrisation, so the
linear fusion of noises lam eps^{i->1} + (1 - lam) eps^i is the linear fusion lam z^1 + (1 - lam) D^i.

A clip is [B, T, C, h, w] here, in the scale in which the model samples.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .paths import FLOW
from .plan import check_choices

AXES = ("auto", "batch", "time")
MODES = ("adaptive", "paper_linear", "constant")
BANDS = ("full", "low")


# --- clips -----------------------------------------------------------------------------------------------------------


def axis_of(latents, axis="auto"):
    """Where latents keep their frames: 'time' for [B, C, T, h, w], 'batch' for [T, C, h, w], or what `axis` says.

    Raises ValueError for an unknown axis, and for latents that keep no frames there.
    """
    check_choices({"axis": (axis, AXES)})
    if latents.ndim not in (4, 5):
        raise ValueError(f"the latent has the shape {list(latents.shape)}; the prior needs frames of pictures, "
                         "[frames, channels, height, width] or [batch, channels, frames, height, width]")
    if axis == "time" and latents.ndim == 4:
        raise ValueError("axis is time, but the latent [frames, channels, height, width] has no axis of time; choose "
                         "auto or batch")
    if axis == "batch" and latents.ndim == 5:
        raise ValueError("axis is batch, but the latent [batch, channels, frames, height, width] has an axis of time; "
                         "choose auto or time")
    return axis if axis != "auto" else "time" if latents.ndim == 5 else "batch"


def to_clips(x, axis):
    """Latents as clips [B, T, ...]; levels of noise [B] as [B or 1, T or 1]."""
    if axis == "batch":
        return x[None]
    return x[:, None] if x.ndim == 1 else x.movedim(2, 1)


def from_clips(clips, axis):
    return clips[0] if axis == "batch" else clips.movedim(1, 2)


# --- the weight lam of each frame, from how far it is from the first -------------------------------------------------


def adaptive(sigma, path, tau2, s2):
    """The weight with the least squared error of lam z^1 + (1 - lam) D^i, for D^i of a network that knows no z^1 and
    denoises each pixel alone:

    lam* = sigma^2 s^2 / (sigma^2 s^2 + alpha^2 tau_i^2 (s^2 + tau_i^2)).

    It is 1 in pure noise and for a frame that stands still (tau 0), and 0 at sigma 0. sigma, tau2: tensors that
    broadcast. This is the pack's own rule.
    """
    alpha = 1 - sigma if path is FLOW else 1.0
    known = sigma**2 * s2
    return torch.where(tau2 == 0, 1.0, known / (known + alpha**2 * tau2 * (s2 + tau2)))


class Distances:
    """What frames are expected to be: `of(frames)` is tau2 of each, `s2` the variance of a picture."""

    def weights(self, sigma, path, frames):
        """lam* [B or 1, frames] at noise levels sigma [B or 1, frames or 1]."""
        return adaptive(sigma, path, sigma.new_tensor(self.of(frames)), self.s2)


@dataclass(frozen=True)
class Moments(Distances):
    """z^i = z^1 + Delta^i with Var z^1 = s2 and Var Delta^i = tau2[i], in the squared units of the sampled latents."""

    tau2: tuple[float, ...]
    s2: float = 1.0

    def of(self, frames):
        """tau2 of the first `frames` frames. Raises ValueError for more than were fitted."""
        return self.tau2[: _known(frames, len(self.tau2))]


def _known(frames, fitted):
    if frames > fitted:
        raise ValueError(f"prior was fitted to {fitted} frames, but the model samples {frames}; fit it to clips of at "
                         f"least {frames} frames")
    return frames


@dataclass(frozen=True)
class Drift(Distances):
    """tau_i^2 = motion^2 ((i - 1) / (N - 1))^growth of frame i = 1..N, at unit variance of a picture.

    growth 1 is a random walk, 2 a constant speed, 0 the same distance for all frames but the first.
    """

    motion: float = 1.0
    growth: float = 1.0
    s2 = 1.0

    def of(self, frames):
        last = max(frames - 1, 1)
        return tuple(self.motion**2 * (i / last) ** self.growth if i else 0.0 for i in range(frames))


def moments(clips):
    """Moments of clips [B, T, C, h, w]: tau2[i] = mean (z^i - z^1)^2, s2 = Var z^1 about the mean of each channel.

    Raises ValueError for values that are not finite, and for first frames without variance.
    """
    clips = clips.float()
    first = clips[:, :1]
    tau2 = (clips - first).square().mean(dim=(0, 2, 3, 4))
    s2 = first.var(dim=(0, 1, 3, 4), correction=0).mean()
    if not (tau2.isfinite().all() and s2.isfinite()):
        raise ValueError("latents has values that are not finite (NaN or infinite); look for the node that makes them, "
                         "often a VAE in fp16, and load that in bf16 or fp32")
    if not s2 > 0:
        raise ValueError("latents have first frames of one even value, which have no variance; encode pictures")
    return Moments(tuple(tau2.tolist()), s2.item())


@dataclass(frozen=True)
class Measured:
    """The weights that were best for one network: lam[k][i] of frame i at the noise level sigmas[k].

    The levels rise, and are two or more. Below and above them the weights are those of the last one, so they need not
    be 0 at the end nor 1 in pure noise.
    """

    sigmas: tuple[float, ...]
    lam: tuple[tuple[float, ...], ...]

    def weights(self, sigma, path, frames):
        """lam [B or 1, frames] at sigma [B or 1, frames or 1], linear in log sigma between the levels."""
        table, levels = sigma.new_tensor(self.lam)[:, : _known(frames, len(self.lam[0]))], sigma.new_tensor(self.sigmas)
        at = sigma.clamp(levels[0], levels[-1])
        above = torch.bucketize(at, levels).clamp(1, len(levels) - 1)
        below = above - 1
        share = (at / levels[below]).log() / (levels[above] / levels[below]).log()
        lam = torch.lerp(table[below], table[above], share[..., None])  # [B, levels of frames, frames]
        return lam.expand(-1, frames, -1).diagonal(dim1=1, dim2=2)


def measured(clips, predict, path, sigmas, report=lambda: None):
    """Measured of clips [K, T, C, h, w] and a network: the least squares solution for each frame and noise level,

    lam = sum (z^i - D^i)(z^1 - D^i) / sum (z^1 - D^i)^2.

    So a network that sees the picture itself, or that moves things as its text says, is left what it does well.

    Args:
        predict: (x [1, T, C, h, w], sigma [1], number of the clip) -> D.
        path: of the model. sigmas: noise levels, rising, above 0. report: called before each prediction.

    Raises ValueError for values that are not finite.
    """
    products = torch.zeros(2, len(sigmas), clips.shape[1], dtype=torch.float64)
    for number, clip in enumerate(clips.float()):
        noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(number)).to(clip)
        for level, sigma in enumerate(sigmas):
            report()
            x = path.alpha(sigma) * clip + sigma * noise
            denoised = predict(x[None], x.new_tensor([sigma]), number)[0].float()
            off, still = clip - denoised, clip[:1] - denoised
            products[:, level] += torch.stack([off * still, still * still]).mean(dim=(2, 3, 4)).cpu()
    if not products.isfinite().all():
        raise ValueError("latents, or what the model makes of them, have values that are not finite (NaN or infinite); "
                         "look for the node that makes them, often a model in fp16, and load that in bf16 or fp32")
    lam = torch.where(products[1] > 0, products[0] / products[1], 1.0).clamp(0, 1)
    return Measured(tuple(sigmas), tuple(map(tuple, lam.tolist())))


def paper_linear(frames, lambda_last):
    """The paper's weights [frames]: from 1 for the first linearly to `lambda_last` for the last, at all sigmas."""
    return torch.linspace(1.0, lambda_last, frames)


# --- fusion ----------------------------------------------------------------------------------------------------------


def low_band(x, size):
    """The means of cells of `size` x `size` pixels, interpolated: [..., h, w]. A side up to `size` has its one mean."""
    height, width = x.shape[-2:]
    cell = min(size, height), min(size, width)
    planes = x.reshape(1, -1, height, width)  # as channels of one item: three times as fast to interpolate
    planes = F.pad(planes, (0, -width % cell[1], 0, -height % cell[0]), mode="replicate")
    means = F.avg_pool2d(planes, cell)
    return F.interpolate(means, size=planes.shape[-2:], mode="bilinear")[..., :height, :width].reshape(x.shape)


@dataclass(frozen=True)
class ImagePrior:
    """The fusion of denoised clips with a reference.

    distances: for adaptive: Distances, or Measured weights. mode, band: of MODES and BANDS. strength: multiplies all
    weights. lambda_last: for paper_linear. low_pass: side of a cell of the low band, in latent pixels. lock_first: the
    first frame is the reference, whatever the other options say.
    """

    distances: Distances | Measured = Drift()
    mode: str = "adaptive"
    strength: float = 1.0
    lambda_last: float = 0.1
    band: str = "full"
    low_pass: int = 8
    lock_first: bool = True

    def __post_init__(self):
        check_choices({"mode": (self.mode, MODES), "band": (self.band, BANDS)})

    def weights(self, sigma, path, frames):
        """lam of each frame [B or 1, frames], float32, at levels of noise sigma [B or 1, frames or 1]."""
        sigma = sigma.float()
        if self.mode == "adaptive":
            lam = self.distances.weights(sigma, path, frames)
        elif self.mode == "paper_linear":
            lam = paper_linear(frames, self.lambda_last).to(sigma)
        else:
            lam = sigma.new_ones(frames)
        return (self.strength * lam).expand(len(sigma), frames)

    def __call__(self, denoised, reference, sigma, path):
        """D' of clips [B, T, C, h, w]; reference [1 or B, 1 or T, C, h, w]; sigma as in `weights`."""
        lam = self.weights(sigma, path, denoised.shape[1]).to(denoised)[..., None, None, None]
        target = reference if self.band == "full" else denoised + low_band(reference - denoised, self.low_pass)
        fused = torch.lerp(denoised, target, lam)
        return with_first(fused, reference) if self.lock_first else fused


def with_first(clips, reference):
    """Clips [B, T, ...] whose first frame is that of the reference [1 or B, 1 or T, ...]."""
    return torch.cat([reference[:, :1].expand_as(clips[:, :1]), clips[:, 1:]], dim=1)
