"""Time and memory of Faster Diffusion on UNets of Stable Diffusion's sizes, against the model as it is.

    python -m trajectory.benchmarks.faster_diffusion [/path/to/ComfyUI] [--model sd15|sdxl] [--size 512] [--steps 50]
    python -m trajectory.benchmarks.faster_diffusion --model sdxl --count

Random weights: the time does not depend on what they say. The ceiling is what the operations allow: all of them over
those that are left when the encoder and the middle run at the key steps alone. Memory is the highest a run reaches, on
a GPU only. Decoding ahead (parallel_decode) is measured there, too. Without a path the embedded host runs the network.
--count stops at the ceilings, which need neither weights nor time: the operations are counted on the meta device.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..samplers.key_steps import SCHEDULES, key_steps

MODELS = {
    "sd15": (512, {
        "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1, "context_dim": 768,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_heads": 8,
    }),
    "sdxl": (1024, {
        "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10, "context_dim": 2048,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64,
        "use_linear_in_transformer": True,
    }),
}  # fmt: skip
"""Name -> (edge of its pictures, options of the UNet). Without SDXL's vector input, whose cost is nil."""
TOKENS = 77


def activate(checkout):
    """Makes a host importable: the checkout, or the embedded one."""
    if checkout is None:
        from ..headless import runtime

        return runtime.activate()
    sys.path.insert(0, str(Path(checkout).resolve()))
    sys.argv = ["main.py"] if torch.cuda.is_available() else ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()


def outline(config):
    """The UNet without its weights, on the meta device."""
    import comfy.model_base
    import comfy.supported_models_base

    from ..nodes._unet import COMMON

    family = type("UNet", (comfy.supported_models_base.BASE,), {"unet_extra_config": {}})
    meta = torch.device("meta")
    with meta:
        return comfy.model_base.BaseModel(family({**COMMON, **config}), device=meta).diffusion_model


def build(config, dtype):
    """ModelPatcher of a random UNet, its weights drawn in the dtype that they keep."""
    import comfy.latent_formats

    from ..nodes._unet import unet_model

    weights = {}
    for key, value in outline(config).state_dict().items():
        weights[key] = torch.empty(value.shape, dtype=dtype).uniform_(-1, 1).div_(max(value[0].numel(), 1) ** 0.5)
    return unet_model(config, weights, comfy.latent_formats.SD15, dtype=dtype)


def conditioning(patcher, seed):
    generator = torch.Generator().manual_seed(seed)
    width = patcher.model.model_config.unet_config["context_dim"]
    return [[torch.randn(1, TOKENS, width, generator=generator), {}]]


def sample(patcher, latent, steps):
    """(seconds, bytes at the highest or None) of a guided Euler run."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(conditioning(patcher, 1), conditioning(patcher, 2))
    guider.set_cfg(7.5)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with torch.inference_mode():
        guider.sample(latent, torch.zeros_like(latent), comfy.samplers.sampler_object("euler"), sigmas,
                      disable_pbar=True, seed=0)  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated()
    return time.perf_counter() - start, None


def attention(original, q, k, v, heads, *args, **kwargs):
    """In place of the host's, which asks how much memory the device has free."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def count(config, batch, size):
    """(operations of a guided step, share of them in encoder and middle) for latents of this edge."""
    network = outline(config)
    middle = [network.middle_block] if network.middle_block is not None else []
    layers = [layer for block in [*network.input_blocks, *middle] for layer in block]
    before, inside = [], []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: before.append(counter.get_total_flops()))
        layer.register_forward_hook(lambda *_: inside.append(counter.get_total_flops() - before.pop()))
    items = 2 * batch
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        text = torch.empty(items, TOKENS, config["context_dim"])
        network(torch.empty(items, 4, size, size), torch.empty(items), text,
                transformer_options={"optimized_attention_override": attention})  # fmt: skip
    return counter.get_total_flops(), sum(inside) / counter.get_total_flops()


def ceiling(share, schedule, steps):
    """(key steps, how many times as fast a run is at most)."""
    keys = len(key_steps(schedule, steps))
    return keys, 1 / (1 - share * (1 - keys / steps))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", help="a ComfyUI folder (default: the embedded host)")
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--size", type=int, help="edge of the picture in pixels (default: the model's own)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--schedules", nargs="+", choices=[s for s in SCHEDULES if s != "custom"],
                        default=["paper", "uniform"])  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind, taken in turn; the median counts")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default=None)
    parser.add_argument("--count", action="store_true", help="count operations, run nothing")
    arguments = parser.parse_args()
    activate(arguments.checkout)
    from ..nodes.faster_diffusion import FasterDiffusion

    steps, (edge, config) = arguments.steps, MODELS[arguments.model]
    size = (arguments.size or edge) // 8
    operations, share = count(config, arguments.batch, size)
    print(f"{arguments.model}, {8 * size}x{8 * size}, batch {arguments.batch}: {operations / 1e9:.0f} GFLOP a guided "
          f"step, {share:.1%} of them in encoder and middle")  # fmt: skip
    ceilings = {schedule: ceiling(share, schedule, steps) for schedule in arguments.schedules}
    for schedule, (keys, factor) in ceilings.items():
        print(f"{schedule}: {keys} of {steps} steps whole, at most {factor:.2f}x")
    if arguments.count:
        return

    gpu = torch.cuda.is_available()
    dtype = getattr(torch, arguments.dtype or ("float16" if gpu else "float32"))
    print(f"{dtype}, {torch.cuda.get_device_name() if gpu else f'CPU, {torch.get_num_threads()} threads'}")
    patcher = build(config, dtype)
    latent = torch.randn(arguments.batch, 4, size, size, generator=torch.Generator().manual_seed(0))
    common = {"interval": 4, "custom": "0", "start_percent": 0.0, "end_percent": 1.0, "skip_controlnet": True,
              "fresh_input": True}
    runs = {"plain": patcher}
    for schedule in arguments.schedules:
        for parallel in (False, True) if gpu else (False,):
            patched = FasterDiffusion.execute(patcher, schedule=schedule, parallel_decode=parallel, **common).args[0]
            runs[schedule, parallel] = patched
    sample(patcher, latent, 1)  # loads the weights
    measured = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, model in runs.items():
            measured[name].append(sample(model, latent, steps))

    def median(name):
        return statistics.median(seconds for seconds, _ in measured[name])

    def memory(name):
        peak = measured[name][0][1]
        return "" if peak is None else f", {peak / 2**20:.0f} MiB"

    print(f"plain: {median('plain'):.2f} s{memory('plain')}")
    for schedule, parallel in list(runs)[1:]:
        speedup, (_, highest) = median("plain") / median((schedule, parallel)), ceilings[schedule]
        print(f"{schedule}{', decoding ahead' if parallel else ''}: {median((schedule, parallel)):.2f} s, "
              f"{speedup:.2f}x, {speedup / highest:.0%} of the most{memory((schedule, parallel))}")  # fmt: skip


if __name__ == "__main__":
    main()
