"""What AdcSR costs at its real size, with random weights: seconds and memory for a picture, beside the authors' class.

    python -m trajectory.benchmarks.adcsr [--authors /path/to/AdcSR] [--sizes 128 256] [--rounds 3]

Without a checkout of github.com/Guaishou74851/AdcSR (which needs diffusers) only ours is run. On the CPU in float32, on
one thread: both in turn in this process, with the same weights on the same picture; the processor's time (median of the
rounds, so that other programs do not count) and the peak of the tensors that a run allocates, without the weights and
without what a kernel uses inside. On a GPU, where there is one, milliseconds for a picture in fp16 as well.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import torch

from ..models import adcsr, checkpoints
from ._peak import Peak

RECORDER = Path(__file__).parents[1] / "tests" / "parity" / "record_adcsr.py"
GPU_RUNS = 20


def recorder():
    """The module that builds the authors' class and draws random weights."""
    spec = importlib.util.spec_from_file_location("record_adcsr", RECORDER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def networks(checkout):
    """{name: function of a picture in 0..1}, and our module. The two share their weights."""
    if checkout is None:
        with torch.device("meta"):
            empty = adcsr.AdcSR()
        weights = recorder().random_weights({key: value.shape for key, value in empty.state_dict().items()})
        ours = checkpoints.filled(adcsr.AdcSR, weights)
        return {"ours": ours}, ours
    authors = recorder()
    whole, net, half = authors.theirs(checkout, authors.PUBLISHED, authors.DECODER)
    ours = adcsr.network(adcsr.net_weights(checkpoints.state_dict(net)), adcsr.decoder_weights(half))
    return {"authors'": lambda picture: whole(2 * picture - 1) / 2 + 0.5, "ours": ours}, ours


def cost(network, picture):
    """(seconds of the processor, bytes at the peak) of one picture."""
    began = time.process_time()
    with Peak() as counted:
        network(picture)
    return time.process_time() - began, counted.peak


def milliseconds(network, picture):
    """Of the GPU for one picture."""
    for _ in range(3):
        network(picture)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(GPU_RUNS):
        network(picture)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / GPU_RUNS


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--authors", help="a checkout of the authors' repository")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512], help="sides of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs, ours = networks(arguments.authors)
    for size in arguments.sizes:
        picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        for network in runs.values():
            network(picture[..., : adcsr.ALIGN, : adcsr.ALIGN])  # the first call of a process is slower
        rounds = [[cost(network, picture) for network in runs.values()] for _ in range(arguments.rounds)]
        first = None
        for name, costs in zip(runs, zip(*rounds, strict=True), strict=True):
            seconds, peak = (statistics.median(column) for column in zip(*costs, strict=True))
            first = first or (seconds, peak)
            print(f"{size:4d} x {size:<4d} {name:8s} {seconds:7.2f} s ({seconds / first[0]:.3f})   "
                  f"peak {peak / 2**20:8.1f} MiB ({peak / first[1]:.3f})", flush=True)
    if torch.cuda.is_available():
        ours.to("cuda", torch.float16)
        for size in arguments.sizes:
            print(f"{size:4d} x {size:<4d} on {torch.cuda.get_device_name()} in fp16: "
                  f"{milliseconds(ours, torch.rand(1, 3, size, size, device='cuda')):.1f} ms", flush=True)


if __name__ == "__main__":
    sys.exit(main())
