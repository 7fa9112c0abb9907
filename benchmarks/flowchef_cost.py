"""What steering by FlowChef costs beside plain sampling: 20 steps of the flow miniature at 128x128, CFG 2.

    python -m trajectory.benchmarks.flowchef_cost

Runs the host's Euler, FlowChef under a mask and FlowChef by measurements of latents in turn in this process, on one
thread, and prints the processor's time (lower quartile of the runs) and the peak of the tensors that a run allocates,
each with its ratio to Euler. The peak is counted on the CPU, tensor by tensor as operations make and free them; the
model's weights and what a kernel uses inside are not in it. The network is tiny: what a pull costs is a share of its
13 ms a step here, and does not grow with the network.
"""

import statistics
import sys
import time

import torch

from ._peak import Peak
from .painting import Painter

STEPS, SIZE, ROUNDS = 20, 128, 24
CAPTION = "a blue day over green hills with a sun and clouds, two red houses on the left and a red balloon on the right"


def main():
    torch.set_num_threads(1)
    painter = Painter("landscapes (flow)")
    import comfy.samplers

    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., SIZE // 2 :] = 1
    with torch.inference_mode():
        start = painter.vae.encode(painter.paint([CAPTION], size=SIZE, steps=STEPS))
        latent = {"samples": start}

        def measured(operator):
            return {"measurement": painter.node("TrajectoryApplyOperator", operator=operator, latent=latent)}

        ways = {
            "mask": {"reference": latent, "mask": mask},
            "Operator Mask": measured(painter.node("TrajectoryOperatorMask", mask=mask)),
            "Operator Downsample": measured(painter.node("TrajectoryOperatorDownsample", factor=4)),
        }
        samplers = {"Euler of the host": comfy.samplers.sampler_object("euler")}
        samplers |= {f"FlowChef, {name}": painter.node("TrajectoryFlowChefSampler", **by) for name, by in ways.items()}
        guider = comfy.samplers.CFGGuider(painter.model)
        guider.set_conds(painter.conditioning([CAPTION]), painter.conditioning([""]))
        guider.set_cfg(2.0)
        sigmas = comfy.samplers.calculate_sigmas(painter.model.get_model_object("model_sampling"), "simple", STEPS)
        noise = painter.noise([0], SIZE, 0)

        def run(sampler):
            guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)

        def seconds(sampler):
            began = time.process_time()
            run(sampler)
            return time.process_time() - began

        def peak(sampler):
            with Peak() as counted:
                run(sampler)
            return counted.peak

        times = [[seconds(sampler) for sampler in samplers.values()] for _ in range(ROUNDS)][2:]
        times = [statistics.quantiles(column, n=4)[0] for column in zip(*times, strict=True)]
        peaks = [peak(sampler) for sampler in samplers.values()]
    for name, t, bytes_ in zip(samplers, times, peaks, strict=True):
        print(f"{name:30s} {t * 1e3:7.1f} ms ({t / times[0]:.3f})   peak {bytes_ / 2**20:6.2f} MiB "
              f"({bytes_ / peaks[0]:.3f})")


if __name__ == "__main__":
    sys.exit(main())
