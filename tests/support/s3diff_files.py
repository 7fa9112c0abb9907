"""Random files in the layout of S3Diff's, for any two networks."""

import torch

TARGETS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out", "proj_in",
           "proj_out", "ff.net.2", "ff.net.0.proj")  # fmt: skip


class Draw:
    """Random tensors, one after another, small enough that a layer passes on what it gets."""

    def __init__(self, seed=0):
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape):
        value = torch.randn(shape, generator=self._generator)
        return value / (value[0].numel() if value.ndim > 1 else 100) ** 0.5


def low_rank(layers, rank, adapter, draw):
    """{key: tensor} as peft names them, small changes of a network. layers: {name: shape of its weight}."""
    weights = {}
    for name, (out, *into) in layers.items():
        weights[f"{name}.lora_A.{adapter}.weight"] = draw(rank, *into)
        weights[f"{name}.lora_B.{adapter}.weight"] = 0.1 * draw(out, rank, *(1 for _ in into[1:]))
    return weights


def checkpoint(unet, vae, ranks=(6, 4), whole=None, seed=0):
    """The contents of an s3diff.pkl. unet, vae: {layer: shape of its weight}; whole: {key: weight} of the UNet."""
    draw, made = Draw(seed), {"state_embeddings": {}}
    networks = (("unet", unet, 10, "default", whole or {}), ("vae", vae, 6, "vae_skip", {}))
    for (name, layers, blocks, adapter, extra), rank in zip(networks, ranks, strict=True):
        made |= {
            f"rank_{name}": rank,
            f"state_dict_{name}": low_rank(layers, rank, adapter, draw) | extra,
            f"state_dict_{name}_de_mlp": {"0.weight": draw(16, 32), "0.bias": draw(16)},
            f"state_dict_{name}_block_mlp": {"0.weight": draw(5, 7), "0.bias": draw(5)},
            f"state_dict_{name}_fuse_mlp": {"weight": draw(rank**2, 21), "bias": draw(rank**2)},
        }
        made["state_embeddings"][f"state_dict_{name}_block"] = {"weight": draw(blocks, 7)}
    return made | {"w": 10 * draw(8), "unet_lora_target_modules": list(TARGETS)}


def unet_layers(model):
    """{diffusers' name: shape} of the layers of a UNet, given as the host's BaseModel, that S3Diff changes."""
    import comfy.utils

    host_keys = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    shapes = {key: value.shape for key, value in model.diffusion_model.state_dict().items()}
    return {key.removesuffix(".weight"): shapes[name] for key, name in host_keys.items()
            if key.endswith(tuple(f".{target}.weight" for target in TARGETS)) and name in shapes
            or key == "conv_out.weight"}  # fmt: skip


def tiny_encoder_layers(vae):
    """{diffusers' name: shape} of the convolutions in the encoder of a TAESD."""
    weights = vae.first_stage_model.state_dict()
    return {key.replace("taesd_encoder.", "encoder.layers.").removesuffix(".weight"): value.shape
            for key, value in weights.items() if key.startswith("taesd_encoder.") and value.ndim == 4}


def estimator(widths=(8, 12, 16), seed=0):
    """Random weights {key: tensor} of the estimator of blur and noise."""
    from trajectory.models.s3diff import DENet

    draw = Draw(seed)
    return {key: draw(*value.shape) for key, value in DENet(widths).state_dict().items()}
