"""CLIP vision networks with random weights inside a host: its own class, or a stand-in where it has none."""

import json
import tempfile
from pathlib import Path

import torch
import unets

CONFIG = {
    "model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 64, "num_channels": 3, "patch_size": 14, "image_size": 56, "projection_dim": 16,
    "hidden_act": "quick_gelu",
}  # fmt: skip


class FakeNetwork(torch.nn.Module):
    """Four layers on the patches of a picture, with the call of the host's networks and their adding in place."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 32, 14, 14)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(32) for _ in range(4))
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))
        self.projection = torch.nn.Linear(32, 16)

    def forward(self, pixel_values, attention_mask=None, intermediate_output=None):
        x, states = self.patches(pixel_values).flatten(2).mT, []
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x += layer(norm(x)).tanh()
            states.append(x.clone())
        states = torch.stack(states, 1) if intermediate_output == "all" else states[-2]
        return x, states, self.projection(x.mean(1)), None


def fake_vision():
    import comfy.model_patcher

    class Vision:
        image_size, image_mean, image_std = 56, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]

    vision = Vision()
    vision.load_device, vision.model = torch.device("cpu"), FakeNetwork()
    vision.patcher = comfy.model_patcher.ModelPatcher(vision.model, vision.load_device, vision.load_device)
    return vision


def vision_of(host, **changes):
    """CLIP_VISION with random weights, made in inference mode as Load CLIP Vision does."""
    with torch.inference_mode():
        if host.name == "embedded":
            made = fake_vision()
        else:
            import comfy.clip_vision

            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "config.json"
                file.write_text(json.dumps({**CONFIG, **changes}))
                made = comfy.clip_vision.ClipVisionModel(str(file))
        made.model.load_state_dict(unets.random_weights(made.model))
    return made
