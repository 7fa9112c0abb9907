"""The benchmark of what the image noise prior costs: it tells a patch's own time from that of the rest."""

import time

import comfy.samplers
import host_models
import torch
from trajectory.benchmarks.trip_cost import seconds_of


def spin(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_the_time_in_a_patch_is_told_from_the_rest(host):
    patcher = host_models.model("eps").clone()

    def slow(args):
        spin(0.02)
        return args["denoised"]

    def run(model):
        spin(0.05)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        sigmas = torch.tensor([3.0, 1.0, 0.3, 0.0])
        euler = comfy.samplers.sampler_object("euler")
        host_models.guider(model).sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)

    patcher.set_model_sampler_post_cfg_function(slow)
    calls, rest = seconds_of(patcher, run)
    assert len(calls) == 3 and all(call >= 0.02 for call in calls) and rest >= 0.05
    assert patcher.model_options["sampler_post_cfg_function"] == [slow]
