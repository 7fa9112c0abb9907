"""The pictures of the help pages of TRIP."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from drawing import chart, sheet, strips, studio
from figures_operators import drawn
from safetensors.torch import load_file
from studio import example
from trajectory.models import tnf as fusions
from trajectory.models.tnf import TemporalFusion
from trajectory.models.trip import read
from trajectory.operators.measurement import psnr
from trajectory.restoration import video_metrics
from trajectory.samplers.image_prior import Drift, ImagePrior, moments
from trajectory.samplers.paths import VE
from trajectory.training import autoencoder
from trajectory.training import tnf as training
from trajectory.training.landscapes.moving import Clip, Motion, held_out_clips
from trajectory.training.landscapes.scene import Group, Scene
from trajectory.training.latents import decode, from_model
from trajectory.training.trip import CHANNELS, FILES, FRAMES, SIZE, latents_of, load_encoder, sigmas

ANIMATE, PRIOR, TRAIN = "Animate a picture (TRIP)", "Image noise prior", "Train a temporal noise fusion"


# --- painted clips and what the networks make of them


@functools.cache
def painted_clips(number):
    """Latents [number, 4, 8, 16, 16] of held-out clips at model scale, and their captions."""
    model, clips = autoencoder.load(CHANNELS), held_out_clips(number)
    with torch.no_grad():
        latents = torch.stack([latents_of(model, clip) for clip in clips])
    return latents, [clip.caption(np.random.default_rng(k), keep=1.0) for k, clip in enumerate(clips)]


def frames(pixels):
    """Pixels [T, 3, H, W] in 0..1 as pictures."""
    return [drawn(frame[None]) for frame in pixels]


def clip_of(name, settings=None, title="Picture"):
    """Frames of the node `title` of an example with {"Node title.input": value} changed."""
    return studio().pictures(example(name), settings)[title]


# --- one function a help page


def miniature():
    rows = []
    for first, clip, seed in (
        ("a dusk over green hills with a yellow balloon on the left",
         "a dusk over green hills, a yellow balloon on the left drifts right", 4),
        ("a dawn over the sea with a red boat on the left",
         "a dawn over the sea, a red boat on the left sails right", 3),
        ("a dawn over snow with a sun and two green trees on the left",
         "a dawn over snow, two green trees on the left, the sun rises", 0),
    ):  # fmt: skip
        settings = {"First frame caption.text": first, "Paint.seed": seed, "Caption.text": clip, "Sample.seed": seed}
        rows.append((clip_of(ANIMATE, settings), clip))
    return strips(rows)


def reference_latent():
    """A picture, the channels of its latent, and the picture that they stand for."""
    latents, _ = painted_clips(1)
    still, model = latents[:1, :, 0], autoencoder.load(CHANNELS)
    low, high = still.amin(), still.amax()
    planes = ((still - low) / (high - low))[0, :, None, None].expand(-1, 1, 3, -1, -1)
    row = [(drawn(plane), f"channel {k}") for k, plane in enumerate(planes, 1)]
    picture = torch.from_numpy(held_out_clips(1)[0].paint(FRAMES, SIZE)[:1]).movedim(-1, 1)
    with torch.no_grad():
        decoded = decode(model, from_model(still))
    return sheet([[(drawn(picture), "picture"), *row, (drawn(decoded), "decoded")]])


def noise_prior():
    shown = studio().pictures(example(PRIOR))
    picture = shown["First frame"][0]
    return strips([
        ([picture] * FRAMES, "the picture, and the still clip that the frames are drawn to"),
        (shown["Without"], "without the prior: the model knows the caption alone"),
        (shown["Picture"], "with the prior, the same noise"),
    ])  # fmt: skip


def noise_prior_weights():
    """lam of some frames of 8 over the noise level, at the defaults."""
    levels = np.geomspace(0.03, 30, 25)
    weights = ImagePrior(Drift()).weights(torch.tensor(levels)[:, None], VE, FRAMES)
    series = [(f"frame {k + 1}", levels, weights[:, k].tolist()) for k in (0, 1, 3, 5, 7)]
    return chart(series, "How much of the picture the adaptive prior gives", "sigma", "weight", log_x=True)


def fit_prior():
    """tau^2 of 32 painted clips, and the rules of motion and growth that end where it ends."""
    latents, _ = painted_clips(32)
    fitted = moments(latents.transpose(1, 2))
    numbers, share = range(1, FRAMES + 1), (fitted.tau2[-1] / fitted.s2) ** 0.5
    series = [("fitted to 32 clips", numbers, [tau2 / fitted.s2 for tau2 in fitted.tau2])]
    for growth in (0.5, 1.0, 2.0):
        series.append((f"motion {share:.2f}, growth {growth:g}", numbers, Drift(share, growth).of(FRAMES)))
    return chart(series, "How far frames are from the first", "frame", "tau^2 / s^2")


def video_metrics_of_faults():
    """A painted clip and what can be wrong with one, each with its measures."""
    scene = Scene("dusk", "none", "hills", False, (Group("balloon", "red", 1, "left"),))
    clip = Clip(scene, Motion("balloon", "right"), (0,))
    true = torch.from_numpy(clip.paint(FRAMES, SIZE)).movedim(-1, 1)
    way, grey = torch.linspace(0.2, 1, FRAMES).view(-1, 1, 1, 1), true.mean(1, keepdim=True).expand_as(true)
    darker = torch.tensor([1.0, 0.85]).repeat(FRAMES // 2).view(-1, 1, 1, 1)
    rows = []
    for name, made in (
        ("as painted", true),
        ("frozen", true[:1].expand_as(true)),
        ("flickering", darker * true),
        ("losing its colours", torch.lerp(true, grey, 0.7 * way)),
    ):
        label = (f"{name}: first-frame PSNR {psnr(made[:1], true[:1]):.0f}, "
                 f"adjacent difference {video_metrics.adjacent_difference(made):.3f}, "
                 f"jitter {video_metrics.jitter(made):.3f}, "
                 f"colour drift {video_metrics.colour_drift(made, true[:1]):.1f}")  # fmt: skip
        rows.append((frames(made), label))
    return strips(rows)


@functools.cache
def network(variant):
    return read(load_file(FILES[variant]), torch.float32)


@torch.no_grad()
def gates():
    """How much of the picture the bundled fusion takes, of 8 held-out clips, by frame and noise level."""
    model = network("tnf")
    latents, captions = painted_clips(8)
    encoder, fusion = load_encoder(model.words), model.fusion
    context = encoder(torch.tensor([encoder.tokenizer.encode(text) for text in captions]))[0]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    heads, series = [], []
    hook = fusion.head.register_forward_hook(lambda _module, _given, made: heads.append(made))
    for level in (10.0, 3.0, 1.0, 0.3, 0.1):
        sigma = torch.full((len(latents),), level)
        model((latents + level * noise) / (1 + level**2) ** 0.5, sigma, context, latents[:, :, 0])
        change = heads.pop().chunk(2, dim=-1)[0].unflatten(1, (FRAMES, -1))  # clips, frames, patches, values of one
        gate = torch.sigmoid(fusion.shares(FRAMES).logit() + change)
        series.append((f"sigma {level:g}", range(1, FRAMES + 1), gate.mean((0, 2, 3)).tolist()))
    hook.remove()
    series.append(("before training", range(1, FRAMES + 1), fusion.shares(FRAMES).flatten().tolist()))
    return chart(series, "The gate of the bundled fusion", "frame", "share of the picture's noise")


def apply_fusion():
    """The example of the training, with what it has trained and without."""
    trained, plain = (studio().pictures(example(TRAIN), {"Apply.strength": strength}) for strength in (1.0, 0.0))
    return strips([
        (trained["First frame"] * FRAMES, "the picture"),
        (plain["Picture"], "strength 0: the model knows the caption alone"),
        (trained["Picture"], "strength 1: with the fusion, the same noise"),
    ])  # fmt: skip


def losses(fusion, seed=0, steps=240):
    """The loss of each step of a training of `fusion` beside the model of text alone, on 8 painted clips."""
    latents, _ = painted_clips(8)
    model, levels = network("text"), sigmas()
    encoder = load_encoder(model.words)
    empty = encoder(torch.tensor([encoder.tokenizer.encode("")]))[0]

    @torch.no_grad()
    def predict(x, sigma):
        level = sigma.view(-1, 1, 1, 1, 1)
        seen = (x / (1 + level.square()).sqrt()).transpose(1, 2)
        return x - level * model(seen, sigma, empty.expand(len(x), -1, -1)).transpose(1, 2)

    return training.train(
        fusion, latents.transpose(1, 2), predict, VE, lambda share: float(levels[round(999 * (1 - share))]),
        steps=steps, learning_rate=1e-3, batch=4, seed=seed, report=lambda: None,
    )  # fmt: skip


def means(name, values, begin=0, width=20):
    """The series of a chart with the mean of every `width` losses, which vary with the noise."""
    averages = np.reshape(values, (-1, width)).mean(1)
    return name, [begin + width * (k + 1) for k in range(len(averages))], averages.tolist()


@functools.cache
def first_training():
    """A fusion that has been trained from the linear one on, and the losses."""
    fusion = training.begun(CHANNELS, FRAMES, 64, 2, "noise", "", 0)
    return fusion, losses(fusion)


def train():
    bundled = TemporalFusion(network("tnf").fusion, "noise")
    series = [means("from the linear fusion on", first_training()[1]),
              means("from the bundled one on", losses(training.continued(bundled, "")))]  # fmt: skip
    return chart(series, "Training of a fusion on 8 clips", "step", "loss", log_y=True)


def save():
    fusion, before = first_training()
    with tempfile.TemporaryDirectory() as folder:
        fusions.write(Path(folder, "tnf.safetensors"), fusion)
        after = losses(training.continued(fusions.read(Path(folder, "tnf.safetensors")), ""), seed=1)
    series = [means("a training", before), means("one that goes on from its file", after, len(before))]
    return chart(series, "Two trainings of a fusion on 8 clips", "step", "loss", log_y=True)


FIGURES = {
    "TrajectoryTRIPMiniature": miniature,
    "TrajectoryTRIPReferenceLatent": reference_latent,
    "TrajectoryTRIPNoisePrior": noise_prior,
    "TrajectoryTRIPNoisePriorWeights": noise_prior_weights,
    "TrajectoryTRIPFitPrior": fit_prior,
    "TrajectoryTRIPVideoMetrics": video_metrics_of_faults,
    "TrajectoryTRIPLoadTNF": gates,
    "TrajectoryTRIPApplyTNF": apply_fusion,
    "TrajectoryTRIPTrainTNF": train,
    "TrajectoryTRIPSaveTNF": save,
}
