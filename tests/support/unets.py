"""Small random UNets of Stable Diffusion's class inside a host, and the same networks as diffusers builds them."""

import torch

# Three levels with attention at the lower two, as SDXL and the modules of One More Step have.
CONFIG = {
    "model_channels": 32, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 2], "transformer_depth": [0, 1, 2],
    "transformer_depth_output": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": 1, "context_dim": 24,
    "num_head_channels": 16,
}  # fmt: skip
SHAPE = (2, 4, 8, 8)


def random_weights(network, seed=0):
    """{key: tensor} of the network's shapes, small enough that the output stays near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in network.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim < 2:
            weights[key] = 0.1 * drawn + (1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = drawn / value[0].numel() ** 0.5
    return weights


def unet(seed=0, dtype=None, **changes):
    """ModelPatcher of a random eps UNet with 4 latent channels, scaled as Stable Diffusion 1. Needs an active host."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models_base
    from trajectory.nodes import _unet

    config = {**CONFIG, **changes}
    family = type("Family", (comfy.supported_models_base.BASE,), {"unet_extra_config": {}})
    shapes = comfy.model_base.BaseModel(family({**_unet.COMMON, **config})).diffusion_model
    return _unet.unet_model(config, random_weights(shapes, seed), comfy.latent_formats.SD15, dtype=dtype)


def conditioning(value, tokens=5):
    """CONDITIONING of a fixed text for `unet`."""
    text = torch.sin(torch.arange(tokens * 24.0) * (1 + value)).reshape(1, tokens, 24)
    return [[text, {}]]
