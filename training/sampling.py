"""Pictures from the bundled miniature without any host: Euler steps over the host's own flow schedule."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from . import autoencoder
from .latents import decode, from_model
from .text_to_image import CAPTIONS_FILE, MODEL_FILE, TextToImage

FLOW_SHIFT = 3.0  # what the host uses for SD3-class models


def load() -> tuple[TextToImage, torch.nn.Module]:
    """The exported text-to-image model and autoencoder, in float32."""
    flow, captions = load_file(MODEL_FILE), load_file(CAPTIONS_FILE)
    model = TextToImage(flow["pos_embed.proj.weight"].shape[0] // 64)
    state = {f"flow.{k}": v for k, v in flow.items()} | {f"captions.{k}": v for k, v in captions.items()}
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model.eval(), autoencoder.load()


def schedule(steps: int) -> torch.Tensor:
    """The host's `simple` schedule for a flow model: `steps` noise levels evenly spread in time, then zero."""
    time = torch.tensor([1000 - int(k * 1000 / steps) for k in range(steps)] + [0]) / 1000
    return FLOW_SHIFT * time / (1 + (FLOW_SHIFT - 1) * time)


@torch.no_grad()
def generate(model, vae, captions: list[str], size=128, steps=20, cfg=3.0, seed=0, batch=32) -> torch.Tensor:
    """One picture per caption, [B, size, size, 3] in 0..1. Picture k starts from the noise of seed + k."""
    tokenizer, sigmas, pictures = model.captions.tokenizer, schedule(steps), []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        noise = [torch.randn(16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed + start + k))
                 for k in range(len(part))]
        x = torch.stack(noise)
        tokens = torch.tensor([tokenizer.encode(c) for c in part] + [tokenizer.encode("")] * len(part))
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                stated, empty = model(torch.cat([x, x]), sigma.expand(2 * len(part)), tokens).float().chunk(2)
            x = x + (following - sigma) * (empty + cfg * (stated - empty))
        pictures.append(decode(vae, from_model(x)))
    return torch.cat(pictures).movedim(1, -1)
