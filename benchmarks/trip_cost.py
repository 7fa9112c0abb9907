"""What the image noise prior of TRIP costs: the text-to-video miniature's 8 frames at 128x128 by Euler's method, CFG 2.

    python -m trajectory.benchmarks.trip_cost [/path/to/ComfyUI]

Runs the miniature under each patch in turn in this process, on one thread, and prints the processor's time that a step
spends in the patch's function behind guidance (median of the calls), and its share of the rest of the step (median of
the runs). With a checkout, the host's own patch of that kind, CFG-Zero*, is measured beside them. What `lock_first`
sets once more behind a run is not in it: a copy of the frames, once.
"""

import argparse
import statistics
import time

import torch

from .faster_diffusion import activate
from .painting import defaults

STEPS, FRAMES, SIZE, ROUNDS = 10, 8, 128, 5
CAPTION = "a blue day over green hills with a sun and clouds and a red balloon on the left, the red balloon rises"
PATCHES = {
    "adaptive, full": {},
    "adaptive, low": {"band": "low"},
    "paper_linear, full": {"mode": "paper_linear"},
    "constant, low": {"mode": "constant", "band": "low"},
}


class Timed:
    """A function, and the processor's seconds that each call of it took."""

    def __init__(self, function):
        self.function, self.seconds = function, []

    def __call__(self, *args):
        began = time.process_time()
        result = self.function(*args)
        self.seconds.append(time.process_time() - began)
        return result


def seconds_of(model, run):
    """(seconds of each call of the function behind guidance of a MODEL, seconds of all else) in `run(model)`."""
    (function,) = model.model_options["sampler_post_cfg_function"]
    clone, timed, whole = model.clone(), Timed(function), Timed(run)
    clone.model_options["sampler_post_cfg_function"] = [timed]
    whole(clone)
    return timed.seconds, sum(whole.seconds) - sum(timed.seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", nargs="?", help="a ComfyUI checkout whose requirements are installed")
    checkout = parser.parse_args().comfyui
    activate(checkout)
    import comfy.samplers

    from ..nodes.trip import TRIPNoisePrior
    from ..nodes.trip_miniature import TRIPMiniature

    torch.set_num_threads(1)
    model, clip, _ = TRIPMiniature.execute("text to video").args
    reference = {"samples": torch.zeros(FRAMES, 4, SIZE // 8, SIZE // 8)}
    given = {**defaults(TRIPNoisePrior), "model": model, "reference": reference}
    models = {name: TRIPNoisePrior.execute(**{**given, **inputs})[0] for name, inputs in PATCHES.items()}
    if checkout is not None:
        from comfy_extras.nodes_cfg import CFGZeroStar

        models["CFG-Zero* of the host"] = CFGZeroStar.execute(model)[0]
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (CAPTION, ""))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    noise = torch.randn(reference["samples"].shape, generator=torch.Generator().manual_seed(0))

    def run(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(2.0)
        euler = comfy.samplers.sampler_object("euler")
        guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)

    with torch.inference_mode():
        rounds = [[seconds_of(patched, run) for patched in models.values()] for _ in range(ROUNDS + 1)][1:]
    step = statistics.median(rest for measured in rounds for _, rest in measured) / STEPS
    print(f"{'a step of the miniature':24s} {step * 1e3:8.3f} ms")
    for name, measured in zip(models, zip(*rounds, strict=True), strict=True):
        spent = statistics.median(call for calls, _ in measured for call in calls)
        print(f"{name:24s} {spent * 1e3:8.3f} ms  {100 * spent / step:6.2f} %")


if __name__ == "__main__":
    main()
