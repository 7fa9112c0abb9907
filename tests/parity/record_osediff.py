"""Records tests/parity/osediff.json: python record_osediff.py /path/to/OSEDiff (needs diffusers and peft)

The authors' code (github.com/cswry/OSEDiff) on small networks with weights from a formula: which layers it changes, the
names under which it saves them, and what it makes of a picture, from encoder to decoder.
"""

import ast
import json
import sys
import types
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from small_networks import UNET, VAE, drawn, shapes_of  # noqa: E402

RANK = 4


def inputs():
    """A picture [1, 3, 32, 48] in -1..1 and a text [1, 5, 24]."""
    generator = torch.Generator().manual_seed(3)
    return 2 * torch.rand(1, 3, 32, 48, generator=generator) - 1, torch.randn(1, 5, 24, generator=generator)


def checkpoint(shapes):
    """The contents of an osediff.pkl of random weights. shapes: {section: {key: shape}}."""
    return {"rank_unet": RANK, "rank_vae": RANK, **{name: drawn(keys, name) for name, keys in shapes.items()}}


def authors(checkout, unet, vae):
    """The functions and classes of osediff.py, in which from_pretrained gives these two networks."""
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    tree = ast.parse((Path(checkout) / "osediff.py").read_text(encoding="utf-8"))
    wanted = ("initialize_vae", "initialize_unet", "OSEDiff_gen", "OSEDiff_test")
    found = [node for node in tree.body if getattr(node, "name", None) in wanted]
    scope = {"torch": torch, "LoraConfig": LoraConfig, "DDPMScheduler": DDPMScheduler, "print": lambda *_: None}
    for name, network in (("UNet2DConditionModel", unet), ("AutoencoderKL", vae)):
        scope[name] = types.SimpleNamespace(from_pretrained=lambda *_, network=network, **__: network)
    exec(compile(ast.Module(found, []), "osediff.py", "exec"), scope)  # noqa: S102 - the authors'
    return types.SimpleNamespace(**{name: scope[name] for name in wanted})


def networks():
    """UNet and autoencoder of diffusers with random weights, and their shapes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    made = {"unet": UNet2DConditionModel(**UNET).eval(), "vae": AutoencoderKL(**VAE).eval()}
    shapes = {name: shapes_of(network.state_dict()) for name, network in made.items()}
    for name, network in made.items():
        network.load_state_dict(drawn(shapes[name], name))
    return made, shapes


def saved(checkout):
    """{section: {key: shape}} of the file that training of the small networks would save."""
    made, _ = networks()
    code = authors(checkout, **made)
    args = types.SimpleNamespace(pretrained_model_name_or_path=None, lora_rank=RANK)
    vae, in_vae = code.initialize_vae(args)
    unet, *in_unet = code.initialize_unet(args)
    self = types.SimpleNamespace(
        unet=unet, vae=vae, lora_vae_modules_encoder=in_vae, lora_unet_modules_encoder=in_unet[0],
        lora_unet_modules_decoder=in_unet[1], lora_unet_others=in_unet[2], lora_rank_unet=RANK, lora_rank_vae=RANK)
    kept = []
    authors_save = code.OSEDiff_gen.save_model
    authors_save.__globals__["torch"] = types.SimpleNamespace(save=lambda sd, _path: kept.append(sd))
    authors_save(self, None)
    modules = {name: value for name, value in kept[0].items() if name.endswith("_modules")}
    return {name: shapes_of(kept[0][name]) for name in ("state_dict_unet", "state_dict_vae")}, modules


@torch.no_grad()
def record(checkout):
    from diffusers import DDPMScheduler

    shapes, modules = saved(checkout)
    made, base = networks()
    code = authors(checkout, **made)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(timesteps=[999])  # of one step, diffusers has made 0 since
    picture, text = inputs()
    self = types.SimpleNamespace(
        **made, noise_scheduler=scheduler, timesteps=torch.tensor([999]), weight_dtype=torch.float32,
        encode_prompt=lambda _prompt: text,
        args=types.SimpleNamespace(latent_tiled_size=96, latent_tiled_overlap=32))
    code.OSEDiff_test.load_ckpt(self, {**checkpoint(shapes), **modules})

    latents, steps = [], []
    encode, step = made["vae"].encode, scheduler.step

    def without_sampling(x):
        """The mean of the posterior, which hosts take, where the authors draw from it."""
        mean = encode(x).latent_dist.mode()
        latents.append(mean * made["vae"].config.scaling_factor)
        return types.SimpleNamespace(latent_dist=types.SimpleNamespace(sample=lambda: mean))

    made["vae"].encode = without_sampling
    scheduler.step = lambda *args, **options: steps.append(step(*args, **options)) or steps[-1]
    restored = code.OSEDiff_test.forward(self, picture, "")
    return {"base": base, "file": shapes, "counts": {name: len(set(names)) for name, names in modules.items()},
            "latent": latents[0].flatten().tolist(), "denoised": steps[0].prev_sample.flatten().tolist(),
            "image": [round(value, 5) for value in restored.flatten().tolist()]}  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("osediff.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
