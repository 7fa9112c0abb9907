"""What TRIP's shortcut and its fusion give: the miniatures animate first frames of held-out clips as captions say.

    python -m trajectory.benchmarks.trip --out clips.png

The rows of trained variants begin from the same noise. Those without the shortcut, "plain", which reads the image, and
"text", which does not, are also sampled with the first frame held alone, and with the image noise prior: "prior" by the
moments of training clips, "low prior" on the low band alone, and "measured prior" by what the network itself predicts.

psnr: of the first frame against that of the painted clip, both decoded. consistency: mean cosine, times 100, of the
checker's features, in the place of CLIP's, of the given first frame with those of the others; last: with those of the
last one. What lags behind its caption has more of both than a painted clip. faithful: the mean cosine of each frame
with the painted one. drift: colours in CIELAB. still: mean |frame - first| where nothing moves. adjacent, jitter:
restoration/video_metrics.py. motion: share of frames whose thing has come as far as the caption says, %
(landscapes/moving.py). frechet: of features of a fixed random 3-D convolutional network against the painted clips,
decoded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file

from ..models.trip import read
from ..operators.measurement import psnr
from ..restoration import video_metrics
from ..samplers.image_prior import ImagePrior, measured, moments, with_first
from ..samplers.paths import VE
from ..training import autoencoder
from ..training.landscapes import checker
from ..training.landscapes.moving import Tracker, held_out_clips
from ..training.latents import decode, from_model
from ..training.trip import CHANNELS, FILES, FRAMES, SIZE, Batches, latents_of, load_encoder, sigmas
from .painting import contact_sheet

Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def loaded(variant: str, captions: list[str]):
    """(network, contexts [B, 20, 128] of captions)."""
    model = read(load_file(FILES[variant]), torch.float32)
    encoder = load_encoder(model.words)
    return model, encoder(torch.tensor([encoder.tokenizer.encode(text) for text in captions]))[0]


@torch.no_grad()
def animate(variant: str, images: torch.Tensor, captions: list[str], *, steps: int, cfg: float, seed: int,
            change: Change = lambda denoised, images, sigma: denoised) -> torch.Tensor:  # fmt: skip
    """Clips [B, 4, 8, h, w] from latents of first frames [B, 4, h, w] by Euler's method; item k draws of (seed, k).

    change: takes denoised clips, the images and sigma [B], and returns the clips to go on with.
    """
    model, contexts = loaded(variant, [*captions, ""])
    context, empty = contexts[:-1], contexts[-1:].expand(len(captions), -1, -1)
    levels = torch.cat([sigmas()[torch.linspace(999, 0, steps).round().long()], torch.zeros(1)])
    shape = (images.shape[1], FRAMES, *images.shape[2:])
    x = torch.stack([drawn(shape, seed, k) for k in range(len(images))]) * (1 + levels[0] ** 2).sqrt()
    for level, following in zip(levels, levels[1:], strict=False):
        sigma, given = level.expand(len(x)), [images] if model.config.image else []
        seen = x / (1 + level**2).sqrt()
        eps = torch.lerp(*(_in_parts(model, seen, sigma, text, *given) for text in (empty, context)), cfg)
        denoised = change(x - level * eps, images, sigma)
        x = denoised + (x - denoised) * following / level
    return x


def drawn(shape, seed: int, item: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(np.random.default_rng((seed, item)).integers(2**62)))
    return torch.randn(shape, generator=generator)


def _in_parts(model, *given):
    """model(*given), a few items at a time: attention over all of them would take gigabytes."""
    return torch.cat([model(*part) for part in zip(*(value.split(16) for value in given), strict=True)])


def held(denoised, images, sigma):
    """The first frame is the image, as under a noise mask."""
    return with_first(denoised.transpose(1, 2), images[:, None]).transpose(1, 2)


def with_prior(prior: ImagePrior, denoised, images, sigma):
    return prior(denoised.transpose(1, 2), images[:, None], sigma[:, None], VE).transpose(1, 2)


@torch.no_grad()
def measured_prior(variant: str, batches: Batches, number: int) -> ImagePrior:
    """The prior with the best weights for a variant, on the first clips of the training pool and their captions."""
    captions = [clip.caption(np.random.default_rng((4, k))) for k, clip in enumerate(batches.scripts[:number])]
    model, contexts = loaded(variant, captions)
    clips = batches.clips[:number].float().transpose(1, 2)

    def predict(x, sigma, k):
        image = [clips[k : k + 1, 0]] if model.config.image else []
        x, level = x.transpose(1, 2), sigma[:, None, None, None, None]
        eps = model(x / (1 + level**2).sqrt(), sigma, contexts[k : k + 1], *image)
        return (x - level * eps).transpose(1, 2)

    levels = sigmas()[torch.linspace(40, 960, 12).round().long()]
    return ImagePrior(measured(clips, predict, VE, levels.tolist()))


def decoded(model, clips: torch.Tensor) -> torch.Tensor:
    """Latents [B, 4, T, h, w] to frames [B, T, 3, H, W] in 0..1."""
    return torch.stack([decode(model, from_model(clip.transpose(0, 1))) for clip in clips])


class Features(torch.nn.Sequential):
    """Clips [B, T, 3, H, W] in 0..1 to 64 numbers each, by a fixed random 3-D convolutional network."""

    def __init__(self):
        convolution = partial(torch.nn.Conv3d, kernel_size=3, stride=(1, 2, 2), padding=1)
        super().__init__(convolution(3, 16), torch.nn.ReLU(), convolution(16, 32), torch.nn.ReLU(), convolution(32, 32))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            fan = max(parameter[0].numel(), 1)
            torch.nn.init.normal_(parameter, std=fan**-0.5 if parameter.ndim > 1 else 0.0, generator=generator)

    @torch.no_grad()
    def forward(self, clips):
        made = torch.cat([super(Features, self).forward(part.transpose(1, 2) * 2 - 1) for part in clips.split(8)])
        return torch.cat([made.mean((2, 3, 4)), made.std((2, 3, 4))], dim=1)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of two sets of features [B, D], as normal distributions."""
    a, b = a.double(), b.double()
    covariances = a.T.cov(), b.T.cov()
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * root)


@torch.no_grad()
def looks(frames: torch.Tensor) -> torch.Tensor:
    """The checker's features [T, 192] of frames [T, 3, H, W]."""
    return checker.load().trunk(checker.prepare(frames.movedim(1, -1)) * 2 - 1)


def measures(made: torch.Tensor, real: torch.Tensor, trackers: list[Tracker], features: Features) -> dict[str, float]:
    """The means over clips of frames `made` [B, T, 3, H, W]; real: the painted clips, decoded."""
    rows = []
    for frames, truth, tracker in zip(made, real, trackers, strict=True):
        painted = torch.from_numpy(tracker.clip.paint(FRAMES, SIZE))
        still = (painted.amax(0) - painted.amin(0)).amax(-1) == 0
        seen, right = looks(torch.cat([truth[:1], frames[1:]])), looks(truth)
        rows.append({
            "psnr": psnr(frames[:1], truth[:1]),
            "consistency": video_metrics.frame_consistency(seen),
            "last": video_metrics.frame_consistency(seen[[0, -1]]),
            "faithful": 100 * torch.cosine_similarity(seen[1:], right[1:]).mean().item(),
            "drift": video_metrics.colour_drift(frames, truth[:1]),
            "still": float((frames - truth[:1])[..., still].abs().mean()),
            "adjacent": video_metrics.adjacent_difference(frames),
            "jitter": video_metrics.jitter(frames),
            "motion": 100 * tracker.accuracy(frames.movedim(1, -1).numpy()),
        })  # fmt: skip
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"frechet": frechet(features(made), features(real))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=64, help="held-out clips")
    parser.add_argument("--variants", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", type=int, default=250, help="training clips that the prior is fitted to")
    parser.add_argument("--out", help="write the frames of the first clips, one row for each way, to this file")
    args = parser.parse_args()

    clips, vae, features = held_out_clips(args.number), autoencoder.load(CHANNELS), Features()
    captions = [clip.caption(np.random.default_rng((3, k)), keep=1.0) for k, clip in enumerate(clips)]
    latents = torch.stack([latents_of(vae, clip) for clip in clips])
    real, images = decoded(vae, latents), latents[:, :, 0]
    trackers = [Tracker(clip, SIZE) for clip in clips]
    batches = Batches(args.fit, 0)
    fitted = moments(batches.clips.transpose(1, 2))
    run = partial(animate, images=images, captions=captions, steps=args.steps, cfg=args.cfg, seed=args.seed)
    ways = {variant: partial(run, variant) for variant in args.variants}
    for variant in [variant for variant in ("plain", "text") if variant in ways]:
        ways[f"{variant}, first frame held"] = partial(run, variant, change=held)
        for name, prior in {
            "prior": ImagePrior(fitted),
            "low prior": ImagePrior(mode="constant", band="low"),
            "measured prior": measured_prior(variant, batches, 24),
        }.items():
            ways[f"{variant}, {name}"] = partial(run, variant, change=partial(with_prior, prior))
    sheet = []
    known = {"painted": lambda: latents, "frozen": lambda: images[:, :, None].expand_as(latents)}
    for name, way in (known | ways).items():
        made = decoded(vae, way())
        found = measures(made, real, trackers, features)
        print(f"{name:24}", "  ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
        sheet.append(made[:4])
    if args.out:
        rows = torch.stack(sheet, dim=1)  # clip, way, frame
        contact_sheet(rows.flatten(0, 2).movedim(1, -1), FRAMES).save(args.out)


if __name__ == "__main__":
    main()
