"""Records tests/parity/s3diff.json: python record_s3diff.py /path/to/S3Diff (needs diffusers and peft)

The authors' code (github.com/ArcticHare105/S3Diff) on small networks with weights from a formula: what its estimator of
blur and noise makes of pictures, the names under which it saves a restorer, and what that makes of a batch of two
pictures with two degradations, from encoder to decoder.
"""

import ast
import json
import sys
import types
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "support"))
from small_networks import UNET, VAE, drawn, shapes_of  # noqa: E402

SIZES = ((1, 1), (2, 3), (7, 50), (61, 40))
ESTIMATOR = {"num_feats": [8, 8, 8, 12]}  # the published: [64, 64, 64, 128]
DEGRADATIONS = ((0.2, 0.7), (0.9, 0.15))
RANKS = {"unet": 6, "vae": 4}
BLOCKS = {"unet": 10, "vae": 6}
ADAPTERS = {"unet": "default", "vae": "vae_skip"}
CFG = 1.07


def picture(height, width, items=1):
    """[items, 3, height, width] in 0..1."""
    return torch.rand(items, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def inputs():
    """Pictures [2, 3, 32, 48] in 0..1, and texts [1, 5, 24], the wanted and the unwanted."""
    generator = torch.Generator().manual_seed(3)
    return picture(32, 48, 2), *torch.randn(2, 1, 5, 24, generator=generator)


def checkpoint(shapes):
    """The contents of an s3diff.pkl of random weights. shapes: {section: {key: shape}}."""
    file = {name: drawn(keys, name) for name, keys in shapes.items()}
    embeddings = {name: file.pop(name) for name in list(file) if name.endswith("_block")}
    return {**file, "w": file["w"]["w"], "state_embeddings": embeddings,
            **{f"rank_{name}": rank for name, rank in RANKS.items()}}  # fmt: skip


def piece(path, name, **scope):
    """The function or class `name` of a file, without what else the file imports."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    found = next(node for node in ast.walk(tree) if getattr(node, "name", None) == name)
    scope = {"torch": torch, "nn": torch.nn, **scope}
    exec(compile(ast.Module([found], []), str(path), "exec"), scope)  # noqa: S102 - the authors'
    return scope[name]


def estimator(checkout, **options):
    """The authors' estimator, with random weights."""
    root, unneeded = Path(checkout), {"default_init_weights": lambda *_: None}
    block = piece(root / "basicsr/archs/arch_util.py", "ResidualBlockNoBN", **unneeded)
    network = piece(root / "src/de_net.py", "DEResNet", ResidualBlockNoBN=block, **unneeded)
    made = network(**options).eval()
    made.load_state_dict(drawn(shapes_of(made.state_dict()), "estimator"))
    return made


def assigned(path, name):
    """The literal that a file assigns to `name` first."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return next(ast.literal_eval(node.value) for node in ast.walk(tree)
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name)  # fmt: skip


def restore(path):
    """The authors' `S3Diff.forward` from where the texts are encoded: f(self, c_t, deg_score, texts...)."""
    import numpy as np

    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    forward = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "forward")
    begins = [ast.unparse(statement).partition(" = ")[0] for statement in forward.body]
    forward.body = forward.body[begins.index("deg_proj") :]
    for argument, name in zip(forward.args.args[-2:], ("pos_caption_enc", "neg_caption_enc"), strict=True):
        argument.arg = name
    forward.decorator_list = []
    scope = {"torch": torch, "np": np, "print": lambda *_: None}
    exec(compile(ast.Module([forward], []), str(path), "exec"), scope)  # noqa: S102 - the authors'
    return scope["forward"]


def with_lora(network, targets, rank, adapter, forward):
    """Give a network peft's layers as the authors do; their names."""
    from peft import LoraConfig

    network.add_adapter(LoraConfig(r=rank, target_modules=targets), adapter_name=adapter)
    layers = [key.removesuffix(".base_layer") for key, _ in network.named_modules() if key.endswith(".base_layer")]
    for layer in layers:
        module = network.get_submodule(layer)
        module.forward = types.MethodType(forward, module)
    return layers


def build(checkout):
    """What the authors' S3Diff.__init__ makes, of small networks; and the shapes of those without LoRA."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from torch import nn

    source = Path(checkout) / "src/s3diff_tile.py"
    forward = piece(Path(checkout) / "src/model.py", "my_lora_fwd", Any=object)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(timesteps=[999])  # of one step, diffusers has made 0 since
    self = types.SimpleNamespace(
        unet=UNet2DConditionModel(**UNET).eval(), vae=AutoencoderKL(**VAE).eval(), sched=scheduler,
        timesteps=torch.tensor([999]), guidance_scale=CFG, latent_tiled_size=96, latent_tiled_overlap=32,
        W=torch.zeros(64))
    base = {name: shapes_of(getattr(self, name).state_dict()) for name in RANKS}
    for name, rank in RANKS.items():
        targets = assigned(source, f"target_modules_{name}")
        vars(self).update({
            f"{name}_lora_layers": with_lora(getattr(self, name), targets, rank, ADAPTERS[name], forward),
            f"target_modules_{name}": targets, f"lora_rank_{name}": rank,
            f"{name}_de_mlp": nn.Sequential(nn.Linear(256, 256), nn.ReLU()),
            f"{name}_block_mlp": nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
            f"{name}_fuse_mlp": nn.Linear(320, rank**2),
            f"{name}_block_embeddings": nn.Embedding(BLOCKS[name], 64),
        })  # fmt: skip
    return self, base


def saved(self, checkout):
    """{section: {key: shape}} of the file that the authors would save."""
    kept = []
    save = piece(Path(checkout) / "src/s3diff_tile.py", "save_model")
    save.__globals__["torch"] = types.SimpleNamespace(save=lambda contents, _path: kept.append(contents))
    save(self, None)
    sections = {name: value for name, value in kept[0].items() if name.startswith("state_dict_")}
    sections |= {"w": {"w": kept[0]["w"]}, **kept[0]["state_embeddings"]}
    return {name: shapes_of(weights) for name, weights in sections.items()}


def fill(self, base, contents):
    """Give everything the random weights that ours get."""
    for name in RANKS:
        network = getattr(self, name)
        own, new = drawn(base[name], name), contents[f"state_dict_{name}"]
        network.load_state_dict({key: new[key] if key in new else own[key.replace(".base_layer.", ".")]
                                 for key in network.state_dict()})  # fmt: skip
        for part in ("de_mlp", "block_mlp", "fuse_mlp"):
            getattr(self, f"{name}_{part}").load_state_dict(contents[f"state_dict_{name}_{part}"])
        getattr(self, f"{name}_block_embeddings").load_state_dict(
            contents["state_embeddings"][f"state_dict_{name}_block"])
    self.W = contents["w"]


@torch.no_grad()
def record(checkout):
    network = estimator(checkout, **ESTIMATOR)
    degrees = [network(picture(*size)).flatten().tolist() for size in SIZES]

    self, base = build(checkout)
    file = saved(self, checkout)
    fill(self, base, checkpoint(file))
    latents, steps = [], []
    encode, step = self.vae.encode, self.sched.step

    def without_sampling(x):
        """The mean of the posterior, which hosts take, where the authors draw from it."""
        mean = encode(x).latent_dist.mode()
        latents.append(mean * self.vae.config.scaling_factor)
        return types.SimpleNamespace(latent_dist=types.SimpleNamespace(sample=lambda: mean))

    self.vae.encode = without_sampling
    self.sched.step = lambda *args, **options: steps.append(step(*args, **options)) or steps[-1]
    pictures, *texts = inputs()
    restored = restore(Path(checkout) / "src/s3diff_tile.py")(
        self, 2 * pictures - 1, torch.tensor(DEGRADATIONS), *(text.repeat(2, 1, 1) for text in texts))
    return {"degrees": degrees, "base": base, "file": file, "latents": latents[0].flatten().tolist(),
            "denoised": steps[0].prev_sample.flatten().tolist(),
            "restored": [round(value, 4) for value in restored.flatten().tolist()]}  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("s3diff.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
