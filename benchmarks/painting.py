"""Pictures of a bundled model for many captions, by what the nodes of a graph do."""

from __future__ import annotations

import torch
from PIL import Image

from ..headless.runtime import embedded

BATCH = 16


def defaults(node_class) -> dict:
    """The values that a node's widgets begin with."""
    return {i.id: i.default for i in node_class.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}


class Painter:
    """One choice of Load Miniature: `model`, `clip`, `vae` and `nodes`, the table of all nodes (of the embedded host
    unless given)."""

    def __init__(self, choice: str, nodes=None):
        self.nodes = nodes or embedded().node_table
        self.model, self.clip, self.vae = self.nodes["TrajectoryLoadMiniature"].execute(choice).args

    def node(self, name: str, **inputs):
        """The first output of a node with its default widgets and `inputs`."""
        node_class = self.nodes[name]
        return node_class.execute(**{**defaults(node_class), **inputs}).args[0]

    def conditioning(self, captions):
        """CONDITIONING of a batch: item k is caption k."""
        encoded = [self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True) for text in captions]
        conds, pooled = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        return [[conds, {"pooled_output": pooled}]]

    def noise(self, indices, size: int, seed: int) -> torch.Tensor:
        """Initial noise [B, C, size/8, size/8]; that of picture k is a function of seed + k alone."""
        channels = self.model.model.latent_format.latent_channels
        return torch.stack([
            torch.randn(channels, size // 8, size // 8, generator=torch.Generator().manual_seed(seed + k))
            for k in indices
        ])  # fmt: skip

    def paint(self, captions, *, size=128, steps=20, cfg=2.0, seed=0, negatives=None, model=None, sampler=None,
              scheduler="simple", starts=None, masks=None, indices=None) -> torch.Tensor:
        """A picture for each caption: [B, size, size, 3] in 0..1.

        `negatives` are texts (empty by default), `starts` latents [B, C, h, w] to begin from in place of empty ones,
        `masks` [B, 1, H, W] their noise masks; `model` a patched clone; `sampler` a SAMPLER or a name of the host's,
        the Angular Sampler unless given. `indices` number the pictures for their noise, from 0 unless given.
        """
        import comfy.samplers

        model = model or self.model
        if sampler is None:
            sampler = self.node("TrajectoryAngularSampler")
        elif isinstance(sampler, str):
            sampler = comfy.samplers.sampler_object(sampler)
        negatives = negatives or [""] * len(captions)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
        pictures = []
        for part in torch.arange(len(captions)).split(BATCH):
            chosen = part.tolist()
            noise = self.noise([k if indices is None else indices[k] for k in chosen], size, seed)
            start = torch.zeros_like(noise) if starts is None else starts[chosen]
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(*(self.conditioning([texts[k] for k in chosen]) for texts in (captions, negatives)))
            guider.set_cfg(cfg)
            mask = None if masks is None else masks[chosen]
            made = guider.sample(noise, start, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
            pictures.append(self.vae.decode(made))
        return torch.cat(pictures)


def contact_sheet(pictures: torch.Tensor, columns: int = 16) -> Image.Image:
    """Pictures side by side, row by row."""
    rows = [torch.cat(list(row), dim=1) for row in pictures[: len(pictures) // columns * columns].split(columns)]
    return Image.fromarray((torch.cat(rows).clamp(0, 1) * 255).round().byte().numpy())
