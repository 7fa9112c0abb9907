"""What the engine itself costs: 20 steps on a 4x128x128 latent with a model that costs nothing.

    python -m trajectory.benchmarks.engine /path/to/ComfyUI

Prints the time of each solver as a ratio to the host's `dpmpp_2m`, both measured in turn in this process (the lower
quartile of many runs, on one thread), and the most latents that are alive at once beside the host's own.
"""

import argparse
import sys
import time

import torch

from ..samplers import angular, deis, dpm_solver
from ..samplers.model import schedule_from
from .solvers import Handed, start_host

SOLVERS = {
    "DPM-Solver 2M (as dpmpp_2m)": (dpm_solver.sample_dpm_solver, {"variant": "midpoint"}, 2),
    "DPM-Solver 3M": (dpm_solver.sample_dpm_solver, {"order": 3}, 3),
    "DEIS rhoAB3": (deis.sample_deis, {"variant": "rhoAB"}, 4),
    "Angular": (angular.sample_angular, {}, 3),
}
"""Name -> (sampler, options, predictions it interpolates)."""

STEPS, RUNS, SHAPE = 20, 60, (1, 4, 128, 128)


class Free(Handed):
    """A model that gives the same latent to every call."""

    def __call__(self, x, sigma, **_):
        return self.mixture


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", help="a ComfyUI checkout whose requirements are installed")
    start_host(parser.parse_args().comfyui)
    import comfy.model_sampling
    import comfy.samplers

    class Eps(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    denoised, noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    model_sampling = Eps()
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "karras", STEPS)
    host = comfy.samplers.sampler_object("dpmpp_2m").sampler_function

    def seconds(sampler, options):
        model, x = Free(denoised, model_sampling), noise * sigmas[0]
        began = time.perf_counter()
        sampler(model, x, sigmas, extra_args={"seed": 0}, callback=None, disable=True, **options)
        return time.perf_counter() - began

    for name, (sampler, options, predictions) in SOLVERS.items():
        pairs = [(seconds(sampler, options), seconds(host, {})) for _ in range(RUNS)]
        ours, theirs = (sorted(column)[RUNS // 4] for column in zip(*pairs, strict=True))
        plan = sampler.plan(sigmas.tolist(), schedule_from(model_sampling), **options)
        print(
            f"{name:28s} {ours * 1e3:6.2f} ms, {ours / theirs:.2f} of the host's {theirs * 1e3:.2f} ms; "
            f"at most {plan.most_alive()} latents for {predictions} predictions"
        )


if __name__ == "__main__":
    sys.exit(main())
