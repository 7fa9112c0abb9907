"""Pictures of the help pages of super-resolution and restoration."""

import functools

import numpy as np
import torch
from drawing import chart, sheet, studio
from figures_operators import drawn, picture, pixels
from studio import example
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from trajectory.models.adcsr import AdcSR
from trajectory.models.s3diff import block_of, s3diff
from trajectory.operators.blur import Blur, gaussian_kernel, motion_kernel
from trajectory.samplers.dpm_solver import plan_dpm_solver
from trajectory.samplers.ir_sde import IRSDE, SPACINGS, ir_sde_schedule, signal
from trajectory.samplers.mean_reverting import plan_mean_reverting
from trajectory.samplers.residual_shift import PUBLISHED, ResidualShift, schedule, sigma_of
from trajectory.training.degradation import degrade


def ir_sde_loader():
    """The forward process of a model with max_sigma 50 on a painting and its blurred version."""
    clean, a = picture(), signal()
    degraded = Blur(motion_kernel(17, 30)).A(clean)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    row = [(drawn(clean), "clean")]
    for t in (10, 30, 50, 100):
        state = degraded + a[t - 1] * (clean - degraded) + 50 / 255 * (1 - a[t - 1] ** 2) ** 0.5 * noise
        row.append((drawn(state), f"t = {t}"))
    return sheet([[*row, (drawn(degraded), "degraded")]])


def ir_sde_scheduler():
    from exact_models import PATHS, run, two_modes

    problem, levels = (PATHS["ve"], two_modes(PATHS["ve"])), IRSDE(10).sigmas
    x = levels[-1] * torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = [*np.geomspace(levels[-1], levels[0], 2000).tolist(), 0.0]
    exact, _ = run(plan_dpm_solver, *problem, fine, x, order=3)
    series = []
    for name, order in (("Euler", 1), ("MR Sampler", 2)):
        for spacing in SPACINGS:
            steps = (4, 6, 8, 10, 15, 20, 30, 50, 100)
            runs = [run(plan_mean_reverting, *problem, ir_sde_schedule(levels, n, spacing), x, order=order)[0]
                    for n in steps]  # fmt: skip
            series.append((f"{name}, {spacing}", steps, [float((r - exact).square().mean().sqrt()) for r in runs]))
    return chart(series, "Values with two modes, exact denoiser", "network calls", "distance to the exact result",
                 log_x=True, log_y=True)  # fmt: skip


@functools.cache
def adcsr_operations(side):
    """Trillions of multiplications and additions of AdcSR for a square picture: {kind: number}."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        AdcSR()(torch.empty(1, 3, side, side))
    kinds = {"convolution": "convolutions", "bmm": "attention", "mm": "linear layers", "addmm": "linear layers"}
    found = dict.fromkeys(kinds.values(), 0.0)
    for operation, number in counted.get_flop_counts()["Global"].items():
        found[kinds[str(operation).removeprefix("aten.")]] += number / 1e12
    return found


def adcsr_loader():
    sides = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
    costs = [adcsr_operations(side) for side in sides]
    series = [(kind, sides, [cost[kind] for cost in costs]) for kind in costs[0]]
    return chart(series, "What AdcSR computes for a square picture", "side of the input, in pixels",
                 "10^12 operations", log_x=True, log_y=True)  # fmt: skip


def adcsr_upscale():
    tiles, series = (96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024), []
    for overlap in (16, 32, 64):
        # of a large picture each further tile adds this many pixels
        new = [(tile - overlap) ** 2 / 1e6 for tile in tiles]
        work = [sum(adcsr_operations(tile).values()) / pixels for tile, pixels in zip(tiles, new, strict=True)]
        series.append((f"overlap {overlap}", tiles, work))
    return chart(series, "What AdcSR computes for a large picture in tiles", "tile, in pixels of the input",
                 "10^12 operations a megapixel", log_x=True, log_y=True)  # fmt: skip


RESSHIFT = ("clean", *(f"eta = {eta:.2f}" for eta in ResidualShift.published(4).etas), "degraded")


def resshift_loader():
    """The forward process of the 4-step networks on a painting and its degraded version enlarged, in pixels."""
    clean, process = 2 * picture() - 1, ResidualShift.published(4)
    small = degrade(picture(), [3])
    y = 2 * functional.interpolate(small, scale_factor=4, mode="bicubic") - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    states = [clean, *(process.diffused(clean, y, eta, noise) for eta in process.etas), y]
    return sheet([[(drawn(state / 2 + 0.5), label) for state, label in zip(states, RESSHIFT, strict=True)]])


def resshift_upscale():
    """Paintings of the example, their degraded versions plainly enlarged, and restored."""
    return sheet([restored("ResShift Upscale", *case) for case in RESTORED])


RESTORED = (
    ("a blue day over the sea with a sun, two white boats in the middle and a red balloon on the right", 2),
    ("a dusk over green hills with a sun, two green trees on the right and a white balloon on the left", 1),
)


def resshift_sampler():
    """How much of a state's noise a step keeps, along the 15 levels."""
    process = ResidualShift.published(15)
    etas, sigmas = process.etas[::-1], process.sigmas[::-1]
    steps = list(range(1, len(etas)))
    series = [
        ("eta_noise 0 (euler)", steps, [1.0] * len(steps)),
        ("eta_noise 1", steps, [after / eta for eta, after in zip(etas, etas[1:], strict=False)]),
        ("euler_ancestral", steps, [(after / sigma) ** 2 for sigma, after in zip(sigmas, sigmas[1:], strict=False)]),
    ]
    return chart(series, "What each of 15 steps keeps of the noise in the state", "step", "share of the variance")


def resshift_scheduler():
    series = []
    for label, steps, power in (("4 steps", 4, 0.3), ("15 steps", 15, 0.3), ("15 steps, power 1", 15, 1.0)):
        roots = schedule(steps, PUBLISHED[steps], power=power)[::-1]
        series.append((label, np.linspace(0, 1, steps), [sigma_of(root) for root in roots]))
    return chart(series, "Noise levels of ResShift", "part of the run", "sigma", log_y=True)


SD_TURBO = {
    "model_channels": 320, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1, "context_dim": 1024, "num_head_channels": 64, "use_linear_in_transformer": True,
}  # fmt: skip


def s3diff_loader():
    """Numbers in the low-rank pairs of each block of SD-Turbo's UNet, at the published rank."""
    import comfy.model_base
    import comfy.supported_models_base
    from s3diff_files import unet_layers
    from trajectory.nodes._unet import COMMON

    family = type("Family", (comfy.supported_models_base.BASE,), {"unet_extra_config": {}})
    with torch.device("meta"):
        model = comfy.model_base.BaseModel(family({**COMMON, **SD_TURBO}), device="meta")
    numbers = [0.0] * 10
    for layer, (out, *into) in unet_layers(model).items():
        numbers[block_of(layer, len(numbers))] += 32 * (out + np.prod(into)) / 1e6
    return chart([("UNet", list(range(len(numbers))), numbers)], "What S3Diff adds to SD-Turbo",
                 "block: 0 - 3 down, 4 middle, 5 - 8 up, 9 the last layer", "millions of numbers")  # fmt: skip


def s3diff_degradation():
    """The painting with more and more blur, and with more and more noise."""
    painting, noise = picture(), torch.randn(picture().shape, generator=torch.Generator().manual_seed(0))
    blurred = [(drawn(Blur(gaussian_kernel(width)).A(painting)), f"blur of sigma {width}") for width in (1, 2, 3, 4)]
    noisy = [(drawn(painting + level * noise), f"noise of {level:g}") for level in (0.03, 0.06, 0.1, 0.15)]
    return sheet([[(drawn(painting), "clean"), *row] for row in (blurred, noisy)])


def apply_s3diff():
    """The pieces of the change of one layer, of random weights, for three degradations."""
    import s3diff_files

    made = s3diff(s3diff_files.checkpoint({"conv_out": (12, 12)}, {"encoder.conv_out": (12, 12)}, ranks=(4, 4), seed=5))
    rows = []
    for blur, noise in ((0.2, 0.2), (0.8, 0.2), (0.8, 0.8)):
        change = made.at(blur, noise)[0].low_rank["conv_out"]
        up, down = made.unet.change.low_rank["conv_out"]
        mixing = made.unet.mixing(made.features(blur, noise))[-1]
        pieces = ((up, "B, as in the file"), (mixing.T, f"M^T for blur {blur}, noise {noise}"),
                  (down, "A, as in the file"), (change.scale * change.up @ change.down, "(8 / r) B M^T A"))
        rows.append([(signed(matrix), label) for matrix, label in pieces])
    return sheet(rows)


def signed(matrix, cell=20, side=12):
    """A matrix as a picture of `side` cells: red above 0, blue below, white at 0."""
    value = matrix / matrix.abs().max()
    colours = torch.stack([1 + value.clamp(max=0), 1 - value.abs(), 1 - value.clamp(min=0)])
    paper = torch.full((3, side, side), 0.9)
    top, left = (side - len(matrix)) // 2, (side - matrix.shape[1]) // 2
    paper[:, top : top + len(matrix), left : left + matrix.shape[1]] = colours
    return drawn(paper[None], side * cell)


def one_step_upscale():
    """Paintings of the example, their degraded versions plainly enlarged, and restored."""
    return sheet([restored("One-Step Upscale", *case) for case in RESTORED])


def osediff_texts():
    caption, seed = RESTORED[0]
    texts = {
        "no text": "", "its caption": caption,
        "another caption": "a dusk over the desert with a sun and three green trees on the left",
    }  # fmt: skip
    settings = {"Caption.text": caption, "Noise.noise_seed": seed}
    pictures = {label: studio().pictures(example("One-Step Upscale"), {**settings, "What it shows.text": text})
                for label, text in texts.items()}  # fmt: skip
    small = pixels(pictures["no text"]["Plot"][0])
    return sheet([[(drawn(small), "32x32, as it is"),
                   *((shown["Picture"][0], label) for label, shown in pictures.items())]])  # fmt: skip


def in_tiles(settings):
    """What the example of tiles shows in "Picture" with these settings."""
    return studio().pictures(example("One-step restoration in tiles"), settings)["Picture"][0]


def one_step_levels():
    return sheet([[(in_tiles({"Tiles.tile": 0, "Largest noise level.denoise": denoise}), label)
                   for denoise, label in ((1.0, "sigma 14.6"), (0.5, "sigma 1.6"), (0.25, "sigma 0.7"))]])


def tiled_denoise():
    return sheet([[(in_tiles({"Tiles.tile": tile, "Tiles.overlap": overlap}), label) for tile, overlap, label in (
        (0, 0, "whole"), (12, 6, "tile 12, overlap 6"), (8, 0, "tile 8, overlap 0"))]])


def restored(name, caption, seed):
    """A row: the small picture of an example, plainly enlarged, restored, and what it was."""
    shown = studio().pictures(example(name), {"Caption.text": caption, "Noise.noise_seed": seed})
    small = pixels(shown["Plot"][0])
    plain = functional.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False)
    return [(drawn(small), "32x32, as it is"), (drawn(plain), "bicubic"), (shown["Picture"][0], name),
            (shown["Original"][0], "what it was")]


FIGURES = {
    "TrajectoryS3DiffLoader": s3diff_loader,
    "TrajectoryS3DiffDegradation": s3diff_degradation,
    "TrajectoryApplyS3Diff": apply_s3diff,
    "TrajectoryResShiftLoader": resshift_loader,
    "TrajectoryResShiftSampler": resshift_sampler,
    "TrajectoryResShiftScheduler": resshift_scheduler,
    "TrajectoryResShiftUpscale": resshift_upscale,
    "TrajectoryAdcSRLoader": adcsr_loader,
    "TrajectoryAdcSRUpscale": adcsr_upscale,
    "TrajectoryIRSDELoader": ir_sde_loader,
    "TrajectoryIRSDEScheduler": ir_sde_scheduler,
    "TrajectoryApplyOSEDiff": osediff_texts,
    "TrajectoryOneStepSRSampler": one_step_levels,
    "TrajectoryTiledDenoise": tiled_denoise,
    "TrajectoryOneStepUpscale": one_step_upscale,
}
