"""Train the TRIP miniature: animates the first frame of a landscape as a caption says, in 8 frames.

    python -m trajectory.training.trip                      # TRIP, with temporal noise fusion
    python -m trajectory.training.trip --variant linear     # ablation: the linear fusion
    python -m trajectory.training.trip --variant plain      # ablation: no shortcut, the image along time alone
    python -m trajectory.training.trip --variant text       # no image at all: a text-to-video model for the prior

DDPM with the schedule and the latents of the eps miniature, and captions by the frozen caption encoder, to which the
vectors of the words of motion are learned. The paper's loss || eps - eps~ ||^2 is weighted by 1 + sigma^2, which makes
it that of v: else the high noise, where motion is decided, hardly counts. Places where something moves, a tenth of all,
count nine times. All variants begin with the same UNet and draw the same clips, noise and captions.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file

from ..models.trip import TRIP, Config, MotionEncoder
from . import autoencoder, tnf
from ._fit import falling, fit
from ._muon import Muon
from ._run import MINIATURES, WORK, Average, device_and_autocast, initialise, save_weights
from ._shards import load_pool
from .captions import DROPOUT
from .eps_model import CAPTIONS_FILE, CHANNELS, alpha_bars, attention_for
from .landscapes.moving import Clip, training_clip
from .latents import encode, to_model

FRAMES, SIZE = 8, 128
VARIANTS = {
    "tnf": Config(fusion="tnf"),
    "linear": Config(fusion="linear"),
    "plain": Config(fusion="none"),
    "text": Config(fusion="none", image=False),
}
FILES = {variant: MINIATURES / f"trip_{variant}.safetensors" for variant in VARIANTS}
MOVING, MOVING_WEIGHT = 0.3, 9.0
"""How far a latent is from its first frame's where something moves, and how much more that place counts."""
ENDS = ("conv2", ".temporal", ".out", "conv_out", *(f"fusion.{end}" for end in tnf.ENDS))
"""Layers that end a residual branch, the network or the fusion, or modulate it."""


def build_model(variant: str, seed: int) -> TRIP:
    """The network at the start of its training, alike in what the variants have in common."""
    model = TRIP(VARIANTS[variant])
    initialise(model, seed, ENDS)
    torch.nn.init.normal_(model.words, std=0.3, generator=torch.Generator().manual_seed(seed))
    return model


def optimiser_for(model: TRIP) -> Muon:
    """Muon for the matrices and convolutions between the ends; AdamW for the ends, the time path and all vectors."""
    ends = ("conv_in", "conv_out", "time", "head", "from_re", "words", "frame", "place")
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and not any(end in name for end in ends)
        (hidden if matrix else others).append(parameter)
    return Muon(hidden, others)


def load_encoder(words: torch.Tensor) -> MotionEncoder:
    """The trained caption encoder, frozen, with vectors for the words of motion."""
    return MotionEncoder.of(load_file(CAPTIONS_FILE), words)


def latents_of(model, clip: Clip) -> torch.Tensor:
    """Latents [4, 8, 16, 16] of a painted clip at model scale, by the autoencoder `model`."""
    pictures = torch.from_numpy(clip.paint(FRAMES, SIZE)).movedim(-1, 1)
    return to_model(encode(model, pictures)).transpose(0, 1)


def make_examples(numbers: range, seed: int) -> dict[str, torch.Tensor]:
    """Latents of whole clips, fp16 [N, 4, 8, 16, 16]."""
    model = autoencoder.load(CHANNELS)
    return {"clips": torch.stack([latents_of(model, training_clip(number, seed)).half() for number in numbers])}


class Batches:
    """What each step learns from, a function of (seed, step) alone."""

    def __init__(self, number: int, seed: int):
        self.clips = load_pool(f"trip_{seed}", number, partial(make_examples, seed=seed))["clips"]
        self.scripts = [training_clip(k, seed) for k in range(len(self.clips))]
        self.tokenizer, self.seed = MotionEncoder.TOKENIZER(), seed

    def draw(self, step: int, batch: int) -> tuple[torch.Tensor, ...]:
        """Clips x0 and noise [B, 4, 8, 16, 16], times t int64 [B], tokens [B, 20]."""
        rng = np.random.default_rng((self.seed, step))  # tied to the step: a resumed run draws what a whole one draws
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        picked = rng.integers(len(self.clips), size=batch)
        x0 = self.clips[torch.from_numpy(picked)].float()
        noise, times = torch.randn(x0.shape, generator=generator), torch.randint(1000, (batch,), generator=generator)
        texts = ["" if rng.random() < DROPOUT else self.scripts[k].caption(rng) for k in picked]
        return x0, noise, times, torch.tensor([self.tokenizer.encode(text) for text in texts])


def sigmas() -> torch.Tensor:
    """Noise level of each time [1000], on clean latents of unit scale."""
    bars = alpha_bars()
    return ((1 - bars) / bars).sqrt()


def _with(context, function):
    def within(*given):
        with context():
            return function(*given)

    return within


def train(args) -> None:
    device, autocast = device_and_autocast()
    model = build_model(args.variant, args.seed).to(device)
    model.unet.forward = _with(attention_for(device), model.unet.forward)  # the fusion has too many tokens for it
    encoder = load_encoder(model.words.detach()).to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    batches, levels = Batches(args.pool, args.seed), sigmas().to(device)

    def objective(step):
        x0, noise, times, tokens = (t.to(device) for t in batches.draw(step, args.batch))
        sigma = levels[times]
        level = sigma[:, None, None, None, None]
        image = x0[:, :, 0] if model.config.image else None
        with autocast:
            context = encoder.learning(tokens, model.words)
            eps = model((x0 + level * noise) / (1 + level.square()).sqrt(), sigma, context, image)
        moving = (x0 - x0[:, :, :1]).abs().amax(1, keepdim=True) > MOVING
        weight = (1 + level.square()) * (1 + (MOVING_WEIGHT - 1) * moving)
        return {"loss": (weight * (eps - noise).square()).mean()}

    fit(model, optimiser_for(model), Average(model, 0.998), objective, steps=args.steps,
        checkpoint=WORK / f"trip_{args.variant}.pt", rate=falling(args.rate, 200, 0.02, args.steps),
        save=partial(save_weights, FILES[args.variant]), clip=[list(model.parameters())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=list(VARIANTS), default="tnf")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=4000, help="clips painted")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
