"""Records tests/parity/ir_sde.json: python record_ir_sde.py /path/to/image-restoration-sde

The authors' networks at small widths with weights that follow from their keys, and their noise levels and posterior
sampling on an analytic model.
"""

import importlib.util
import json
import sys
import types
import zlib
from pathlib import Path

import torch

# name -> (folder of the checkout, class, its options, channels of a picture, conditional)
NETWORKS = {
    "unet": ("deraining", "ConditionalUNet", {"in_nc": 3, "out_nc": 3, "nf": 4, "depth": 3}, 3, True),
    "nafnet": ("deraining", "ConditionalNAFNet", {
        "width": 4, "enc_blk_nums": [1, 2], "middle_blk_num": 2, "dec_blk_nums": [1, 1]}, 3, True),
    "nafnet denoising": ("denoising-sde", "ConditionalNAFNet", {
        "width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}, 3, False),
    "nafnet latents": ("latent-dehazing", "ConditionalNAFNet", {
        "img_channel": 8, "width": 4, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]}, 8, True),
}  # fmt: skip
SIZES = ((16, 8), (13, 10))
TIMES = (1.0, 37.0)
POSTERIOR = {"max_sigma": 10, "T": 12, "eps": 0.005}


def seeded(key, shape):
    """A weight of a size that keeps activations near 1, the same wherever the key is the same."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    return values / max(values[0].numel(), 1) ** 0.5 if values.ndim > 1 and shape[0] > 1 else 0.5 * values


def pictures(channels, size):
    """State x and degraded picture mu [2, channels, H, W]."""
    return torch.rand(2, 2, channels, *size, generator=torch.Generator().manual_seed(size[0])).unbind(0)


def noises(number):
    """Standard normal draws [number, 1, 3, 4, 5] of the posterior sampling; the first makes its start."""
    return torch.randn(number, 1, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def predicted(centred, t):
    """An analytic stand-in for the network: bounded, and not linear in x - mu."""
    return torch.tanh(3 * centred) + 0.01 * t


def arch(checkout, folder, module):
    """A module of networks of the checkout, under a package of its own."""
    name = f"reference_{folder.replace('-', '_')}"
    place = Path(checkout) / "codes" / "config" / folder / "models" / "modules"
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(place)]
    return importlib.import_module(f"{name}.{module}")


def network(checkout, folder, cls, options):
    module = {"ConditionalUNet": "DenoisingUNet_arch", "ConditionalNAFNet": "DenoisingNAFNet_arch"}[cls]
    made = getattr(arch(checkout, folder, module), cls)(**options)
    made.load_state_dict({key: seeded(key, value.shape) for key, value in made.state_dict().items()})
    return made.eval()


def record_network(checkout, folder, cls, options, channels, conditional):
    made = network(checkout, folder, cls, options)
    results = []
    with torch.no_grad():
        for size in SIZES:
            x, mu = pictures(channels, size)
            results.append(made(*((x, mu) if conditional else (x,)), torch.tensor(TIMES)))
    results = [[round(value, 6) for value in result.flatten().tolist()] for result in results]
    return {"shapes": {key: list(value.shape) for key, value in made.state_dict().items()}, "results": results}


def sde(checkout):
    """utils/sde_utils.py without its progress bars and file writers."""
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))
    sys.modules.setdefault("torchvision.utils", types.ModuleType("torchvision.utils"))
    path = Path(checkout) / "codes" / "utils" / "sde_utils.py"
    spec = importlib.util.spec_from_file_location("reference_sde", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.tqdm = lambda steps: steps
    return module


def record_posterior(module):
    process = module.IRSDE(**POSTERIOR, schedule="cosine")
    draws = iter(noises(POSTERIOR["T"] + 1))
    mu = torch.linspace(0, 1, 60, dtype=torch.float64).view(1, 3, 4, 5)
    process.set_mu(mu)
    process.set_model(lambda x, mu, t: predicted(x - mu, t))
    start = mu + process.max_sigma * next(draws)
    module.torch = types.SimpleNamespace(**vars(torch))
    module.torch.randn_like = lambda _: next(draws)
    return process.reverse_posterior(start).flatten().tolist()


def record(checkout):
    module = sde(checkout)
    process = module.IRSDE(max_sigma=10, T=100, schedule="cosine", eps=0.005)
    signal = torch.exp(-process.thetas_cumsum * process.dt)
    return {
        "networks": {name: record_network(checkout, *what) for name, what in NETWORKS.items()},
        "dt": float(process.dt), "signal": signal[1:].tolist(), "noise": process.sigma_bars[1:].tolist(),
        "posterior": record_posterior(module),
    }  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("ir_sde.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
