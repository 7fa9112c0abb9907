"""Makes the pictures of the help pages, web/docs/images: python tools/figures.py [node id ...]

Charts are computed on problems with exact answers (tests/support), picture rows are painted by the miniature with the
graphs of the examples. The same on every run.
"""

import argparse
import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import figures_composition
import figures_operators
import figures_restoration
import figures_steering
import figures_video
import numpy as np
import torch
from drawing import WIDTH, chart, painted, sheet, studio
from examples import EXAMPLES, negative_prompt
from graphs import Graph
from PIL import Image
from studio import elsewhere, example
from trajectory.headless import runtime
from trajectory.samplers import schedules, time_shift
from trajectory.samplers.angular import plan_angular
from trajectory.samplers.bdia import plan_bdia
from trajectory.samplers.deis import plan_deis
from trajectory.samplers.dpm_solver import plan_dpm_solver, sample_dpm_solver
from trajectory.samplers.interpolant import EPSILONS, strength_function
from trajectory.samplers.key_steps import key_steps
from trajectory.samplers.mean_reverting import plan_mean_reverting
from trajectory.samplers.model import schedule_from
from trajectory.samplers.one_more_step import signal
from trajectory.samplers.paths import FLOW, VE
from trajectory.samplers.plan import execute
from trajectory.samplers.pndm import plan_pndm
from trajectory.samplers.spectrum import power_law
from trajectory.samplers.timesteps import with_fractional_timesteps

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "web" / "docs" / "images"
sys.path.append(str(ROOT / "tests" / "support"))
import host_models  # noqa: E402
from exact_models import MEAN, STD, two_modes  # noqa: E402

CALLS = "network calls"
ERROR = "distance to the exact result"
EXACT = two_modes(VE)


# --- problems with exact answers


@functools.cache
def model_sampling():
    """The host's schedule object of an eps model, with the noise levels of Stable Diffusion."""
    return host_models.model("eps").get_model_object("model_sampling")


@functools.cache
def schedule():
    return schedule_from(model_sampling())


def starts(sigma, items=64, seed=0):
    """States [items, 3] of the two-mode problem at a noise level so high that they are noise alone."""
    return sigma * torch.randn(items, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(planner, sigmas, x, denoise=EXACT, report=None, **options):
    """(result, network calls) of a planner on the two-mode problem, or on another denoiser of its states."""
    plan = planner(sigmas, schedule(), **options)
    table = torch.tensor(sigmas, dtype=torch.float64)
    return execute(plan, denoise, x, table, {"seed": 0}, report, disable=True), plan.calls


def error(x, exact):
    return float((x - exact).square().mean().sqrt())


def convergence(solvers, sigmas_of, counts):
    """Series of a chart, error against calls, of solvers {name: (planner, options)} on sigmas_of(steps)."""
    levels = sigmas_of(counts[0])
    x, above = starts(levels[0]), [sigma for sigma in levels if sigma > 0]
    fine = np.geomspace(levels[0], above[-1], 2000)
    exact, _ = solve(plan_dpm_solver, [*fine.tolist(), *levels[len(above) :]], x, order=3, start="rk")
    series = []
    for name, (planner, options) in solvers.items():
        runs = [solve(planner, sigmas_of(steps), x, **options) for steps in counts]
        series.append((name, [calls for _, calls in runs], [error(result, exact) for result, _ in runs]))
    return series


def skipping(skip, append_zero=False):
    """steps -> noise levels, whose last above 0 is the same for all."""
    return lambda steps: schedules.time_skip(schedule(), steps, skip, append_zero=append_zero)


# --- one function a help page


def angular():
    solvers = {
        "DDIM": (plan_dpm_solver, {"order": 1}),
        "DPM-Solver, order 2": (plan_dpm_solver, {"order": 2}),
        "DPM-Solver, order 3": (plan_dpm_solver, {"order": 3}),
        "DPM-Solver, order 2 + unic": (plan_dpm_solver, {"order": 2, "corrector": "unic"}),
        "DEIS, tAB": (plan_deis, {}),
        "Angular": (plan_angular, {}),
    }
    series = convergence(solvers, skipping("rho", append_zero=True), (5, 6, 7, 8, 10, 12, 15, 20, 27, 36))
    return chart(series, "Angular and other solvers on karras steps", CALLS, ERROR, log_x=True, log_y=True)


def dpm_solver():
    own = {"lower_order_final": "off", "guard": 0.0}
    solvers = {
        "order 1 (DDIM)": (plan_dpm_solver, {"order": 1}),
        "order 2": (plan_dpm_solver, {"order": 2, **own}),
        "order 2 + unic": (plan_dpm_solver, {"order": 2, "corrector": "unic", **own}),
        "order 3, singlestep": (plan_dpm_solver, {"order": 3, "method": "singlestep", **own}),
        "order 3": (plan_dpm_solver, {"order": 3, **own}),
        "order 3, start rk": (plan_dpm_solver, {"order": 3, "start": "rk", **own}),
    }
    series = convergence(solvers, skipping("logSNR"), (6, 9, 12, 18, 27, 42, 63, 96, 144))
    return chart(series, "DPM-Solver, exact denoiser with two modes", CALLS, ERROR, log_x=True, log_y=True)


def deis():
    solvers = {
        "tAB, order 0 (DDIM)": (plan_deis, {"order": 0}),
        **{f"{name}, order 3": (plan_deis, {"variant": name}) for name in ("tAB", "rhoAB", "logrhoAB", "iPNDM")},
        "rhoRK, heun": (plan_deis, {"variant": "rhoRK", "rk": "heun"}),
    }
    series = convergence(solvers, skipping("time_quadratic"), (6, 8, 10, 14, 20, 30, 44, 64))
    return chart(series, "DEIS on time_quadratic", CALLS, ERROR, log_x=True, log_y=True)


def pndm():
    solvers = {
        f"{method}, {coefficients}": (plan_pndm, {"method": method, "coefficients": coefficients})
        for method in ("S-PNDM", "PLMS", "F-PNDM") for coefficients in ("constant", "variable")
    }  # fmt: skip
    series = convergence(solvers, skipping("time_uniform"), (8, 12, 18, 27, 40, 60, 90, 140))
    return chart(series, "PNDM on time_uniform", CALLS, ERROR, log_x=True, log_y=True)


def momentum():
    betas = {"GHVB": (1, 0.8, 0.5, 0.3), "DPM++2M": (1, 0.8, 0.6, 0.4)}
    return sheet([[
        (painted("Momentum at high guidance", {"Solver.base": base, "Solver.beta": beta})[0], f"{base}, beta {beta}")
        for beta in row
    ] for base, row in betas.items()])  # fmt: skip


def interpolant():
    sigma = np.linspace(0.02, 0.98, 25)
    series = [
        (name, sigma, np.broadcast_to(tau(sigma) if callable(tau) else tau, sigma.shape))
        for name in EPSILONS for tau in [strength_function(FLOW, name, 1.0)]
    ]  # fmt: skip
    return chart(series, "Strength of the noise of each epsilon at scale 1", "sigma of a flow", "tau")


def mean_reverting():
    mu, reach = 0.6, 50 / 255  # the damaged value, and the noise on it at the end of IR-SDE's time
    levels = torch.tensor(np.geomspace(200 * reach, 0.02, 13))
    alphas = 1 / (1 + (levels / reach) ** 2).sqrt()
    states, x = [], starts(float(levels[0]), items=5, seed=3)
    last, _ = solve(plan_mean_reverting, levels.tolist(), x, report=lambda state: states.append(state["x"]))
    states.append(last)
    values = (mu + alphas[:, None] * torch.stack(states)[..., 0]).T.tolist()
    lines = [(f"run {item}", range(len(states)), line) for item, line in enumerate(values, 1)]
    damaged = ("mu, the damaged value", range(len(states)), [mu] * len(states))
    return chart([*lines, damaged], "MR-ODE of order 2 restores a value", "step", "value")


def bdia():
    gammas, sigmas_of, series = np.linspace(0, 1, 11), skipping("rho", append_zero=True), []
    x = starts(sigmas_of(10)[0])
    exact, _ = solve(plan_dpm_solver, sigmas_of(2000), x, order=3)
    for steps in (10, 20, 40, 80):
        runs = [solve(plan_bdia, sigmas_of(steps), x, gamma=float(gamma))[0] for gamma in gammas]
        series.append((f"{steps} steps", gammas, [error(run, exact) for run in runs]))
    return chart(series, "BDIA on karras steps", "gamma (0 is DDIM)", ERROR, log_y=True)


def bdia_invert():
    graph = Graph(studio().object_info)
    EXAMPLES["Exact inversion and edit"](graph)
    nodes = {node.get("title"): node for node in graph.nodes}
    loader = next(node for node in graph.nodes if node["type"] == "TrajectoryLoadMiniature")
    noise = graph.add("VAEDecode", 3, samples=(nodes["Invert"], "latent"), vae=(loader, "VAE"))
    graph.add("PreviewImage", 3, "Inverted", images=(noise, 0))
    shown = studio().pictures(graph.save())
    again = studio().pictures(graph.save(), {"Caption.text": nodes["Source caption"]["widgets_values"][0]})
    [source], [noise], [edited], [again] = shown["Source"], shown["Inverted"], shown["Picture"], again["Picture"]
    drift = np.abs(np.asarray(source, int) - np.asarray(again, int)).max()
    return sheet([[
        (source, "source"), (noise, "inverted: its noise"),
        (again, f"painted again, off by at most {drift} of 255"), (edited, "edited: a blue balloon"),
    ]])  # fmt: skip


def denoising_mcmc():
    choices = [({"start_sigma": 0.7, "eta": 0}, "0.7, eta 0"), ({"start_sigma": 0.9, "eta": 100}, "0.9, eta 100")]
    rows = []
    for values, label in choices:
        settings = {f"Chain.{name}": value for name, value in values.items()}
        pictures = painted("Denoising MCMC", settings)
        rows.append([(picture, f"start_sigma {label}: {i}") for i, picture in enumerate(pictures, 1)])
    return sheet(rows)


class Hosted:
    """A denoiser with a schedule, as a host hands it to a sampler."""

    def __init__(self, denoise):
        self.denoise = denoise
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=model_sampling()))

    def __call__(self, x, sigma, **_):
        return self.denoise(x, sigma)


def denoise_picture(x, sigma):
    """The exact denoiser of pictures [1, 3, H, W] whose pixels are draws of the two modes."""
    pixels = x.movedim(1, -1)
    each = sigma.expand(pixels.shape[:-1].numel())
    return EXACT(pixels.reshape(-1, 3), each).view(pixels.shape).movedim(-1, 1)


def wasserstein(x):
    """Mean distance of a picture's sorted values to those of as many draws of the two modes, over the channels."""
    values, generator = x.movedim(1, -1).reshape(-1, 3), torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (len(values), 1), generator=generator) * 2 - 1
    draws = signs * MEAN + STD * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return float((values.sort(0).values - draws.sort(0).values).abs().mean())


def noise_picture(sigma):
    return sigma * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def time_shift_sampler():
    counts, sigmas_of = (5, 7, 10, 14, 20, 28, 40), skipping("time_uniform", append_zero=True)
    choices = {
        "Euler": {"window": 0}, "window 40, cutoff 0.3 (defaults)": {},
        "window 100, cutoff 0.1": {"window": 100, "cutoff": 0.1}, "the paper's rule": {"mode": "paper"},
    }  # fmt: skip
    series = []
    for name, options in choices.items():
        distances = []
        for steps in counts:
            sigmas = torch.tensor(sigmas_of(steps), dtype=torch.float64)
            x = time_shift.sample_time_shift(
                Hosted(denoise_picture), noise_picture(sigmas[0]), sigmas, disable=True, **options
            )
            distances.append(wasserstein(x))
        series.append((name, counts, distances))
    title, label = "Euler with and without Time-Shift", "distance to the data (Wasserstein)"
    return chart(series, title, CALLS, label, log_x=True, log_y=True)


def time_shift_model():
    series = []
    for steps in (5, 10, 20, 40):
        shift = time_shift.LabelShift(time_shift.LevelMeter(schedule(), "corrected", window=1000, cutoff=0.0))
        told = []

        def network(x, sigma, told=told):
            told.append(float(sigma))
            return denoise_picture(x, sigma)

        def patched(x, sigma, shift=shift, network=network):
            return shift.predict(lambda: shift.call(network, x, sigma, len(x)), x, sigma)

        sigmas = torch.tensor(skipping("time_uniform", append_zero=True)(steps), dtype=torch.float64)
        sample_dpm_solver(Hosted(patched), noise_picture(sigmas[0]), sigmas, disable=True, order=1)
        shown = sigmas[:-2].tolist()  # the last call is at the end of the model's table, below which nothing is told
        series.append((f"{steps} steps", shown, [a / b for a, b in zip(told, shown, strict=False)]))
    title = "Noise that Euler's states really have"
    return chart(series, title, "sigma of the schedule", "measured sigma / sigma", log_x=True)


def steps_chart(levels, title):
    """Noise levels {name: sigmas}, a closing 0 left out, against the step."""
    return chart([(name, range(len(s)), s) for name, s in levels.items()], title, "step", "sigma", log_y=True)


def time_skip_scheduler():
    levels = {skip: schedules.time_skip(schedule(), 20, skip) for skip in schedules.SKIPS}
    return steps_chart(levels, "20 steps on the noise levels of Stable Diffusion")


def fisher_path_scheduler():
    levels = {
        f"exponent {exponent}": schedules.fisher_path(schedule(), power_law(exponent, (128, 128)), 20)
        for exponent in (0, 1, 2, 3)
    }
    levels["rho 7 (karras)"] = schedules.time_skip(schedule(), 20, "rho")
    return steps_chart(levels, "20 steps on the noise levels of Stable Diffusion")


def fractional_timesteps():
    """The network of an eps model knows its noise level by the timestep alone, which the host rounds."""
    counts, sigmas_of, series = (10, 20, 40, 80, 160, 320, 640, 1000), skipping("rho"), []
    x = starts(sigmas_of(10)[0])

    def hearing(sampling):
        def denoise(x, sigma, **_):
            level = sampling.sigma(sampling.timestep(sigma.float())).double().view(-1, 1)
            sigma = sigma.view(-1, 1)
            state = x * ((1 + level**2) / (1 + sigma**2)).sqrt()  # what the network is given, at the level it hears
            return x - sigma / level * (state - EXACT(state, level))

        return denoise

    exact, _ = solve(plan_dpm_solver, sigmas_of(3000), x, order=3)
    fractional = with_fractional_timesteps(model_sampling())
    for name, sampling in (("host: nearest timestep", model_sampling()), ("fractional", fractional)):
        runs = [solve(plan_dpm_solver, sigmas_of(steps), x, hearing(sampling), order=3)[0] for steps in counts]
        series.append((name, counts, [error(run, exact) for run in runs]))
    return chart(series, "DPM-Solver of order 3, karras steps", CALLS, ERROR, log_x=True, log_y=True)


def solver_comparison():
    plot = studio().pictures(example("Compare solvers"))["Plot"][0]
    plot = plot.resize((WIDTH, WIDTH * plot.height // plot.width), Image.Resampling.LANCZOS)
    return plot.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def plan_info():
    import comfy.samplers

    series = []
    for scheduler, guard in (("karras", 0.0), ("normal", 0.0), ("normal", 6.0)):
        sigmas = comfy.samplers.calculate_sigmas(model_sampling(), scheduler, 20).tolist()
        steps = plan_dpm_solver(sigmas, schedule(), order=3, guard=guard).steps
        name = f"{scheduler}, guard {guard:g}" if guard else scheduler
        series.append((name, range(1, len(steps) + 1), [step.kappa for step in steps]))
    return chart(series, "How far the weights of order 3 extrapolate", "step", "kappa", log_y=True)


def load_miniature():
    seeds = {
        "a blue day over green hills with a sun and clouds, two red houses on the left": 1,
        "a dusk over the sea with a moon and a white boat in the middle": 1,
        "a black night over snow with a moon and three blue houses on the right": 1,
        "a white noon over a desert with a sun and a green tree on the left": 1,
        "a dawn over the sea with a sun and two red boats on the right": 7,
        "a blue night over green hills with a moon, a yellow balloon in the middle": 2,
        "a dusk over the desert with a sun and three green trees on the right": 1,
        "a blue day over snow with clouds and a yellow balloon on the left": 1,
    }
    pictures = [
        (painted("Text to image", {"Caption.text": caption, "Noise.noise_seed": seed})[0], caption)
        for caption, seed in seeds.items()
    ]
    return sheet([pictures[:4], pictures[4:]])


def faster_diffusion():
    steps = range(50)
    series = []
    for name in ("paper", "uniform", "pro"):
        keys = key_steps(name, len(steps))
        series.append((name, list(steps), [sum(k <= step for k in keys) for step in steps]))
    return chart(series, "Key steps of a run of 50", "step", "whole steps so far")


def faster_diffusion_dit():
    settings = {
        "every step whole": {"Faster.end_percent": 0.0},
        "uniform, a third at rest": {},
        "uniform, two thirds at rest": {"Faster.fraction": 0.67},
        "paper, a third at rest": {"Faster.schedule": "paper"},
    }
    return sheet([[(painted("Faster Diffusion (DiT)", changed)[0], name) for name, changed in settings.items()]])


def prior_noise_injection():
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model_sampling(), "normal", 50).tolist()[:-1]
    below = np.array([float(schedule().time(sigma)) < 0.5 for sigma in sigmas])
    series = [
        (f"strength {s}", list(range(len(sigmas))), (s * below.cumsum()).tolist()) for s in (0.0015, 0.003, 0.006)
    ]
    return chart(series, "Noise added in a run of 50 steps", "step", "share of the initial noise")


def means(captions):
    """What OMS Step hands out for each caption, decoded, with its label."""
    graph = Graph(studio().object_info)
    EXAMPLES["One More Step"](graph)
    loader, start = graph.nodes[0], next(node for node in graph.nodes if node.get("title") == "Start")
    decoded = graph.add("VAEDecode", 3, samples=(start, 0), vae=(loader, "VAE"))
    graph.add("PreviewImage", 3, "Mean", images=(decoded, 0))
    return [(studio().pictures(graph.save(), {"Caption.text": caption})["Mean"][0], caption) for caption in captions]


def oms_loader():
    lights = ("black night", "blue night", "dusk", "dawn", "blue day", "white noon")
    grounds = ("snow", "the sea", "green hills", "the desert", "snow", "green hills")
    captions = [f"a {light} over {ground}" for light, ground in zip(lights, grounds, strict=True)]
    return sheet([means(captions[:3]), means(captions[3:])])


def oms_step():
    captions = (
        "a white noon over snow with two blue trees in the middle",
        "a bright white noon over snow with a sun, two red houses on the left and a blue balloon on the right",
        "a white noon over green hills with a sun, one red house on the right",
        "a black night over the sea with a white boat on the left",
    )
    rows, settings = {0.0: "without", 1.0: "with One More Step"}, {"Noise.noise_seed": 0}
    return sheet([[
        (painted("One More Step", {**settings, "Caption.text": caption, "Start.strength": strength})[0],
         f"{caption}: {label}")
        for caption in captions
    ] for strength, label in rows.items()])  # fmt: skip


def oms_sampler_wrap():
    sigmas = np.geomspace(0.3, 100, 25)
    first = float(model_sampling().sigma_max)
    flow = np.linspace(0.3, 1, 11)
    series = [
        ("eps and v: 1/sqrt(1 + sigma^2)", sigmas, [signal(float(sigma)) for sigma in sigmas]),
        ("where Stable Diffusion begins", [first], [signal(first)]),
        ("flow: 1 - sigma", flow, 1 - flow),
    ]
    return chart(series, "Weight of the start in the first state", "first sigma of the schedule", "weight", log_x=True)


def low_frequency_seed():
    graph = Graph(studio().object_info)
    EXAMPLES["Text to image"](graph)
    loader = graph.nodes[0]
    painting = next((node, 0) for node in graph.nodes if node["type"] == "VAEDecode")
    blurs = (0.06, 0.12, 0.25, 0.5)
    for blur in blurs:
        seed = graph.add(
            "TrajectoryLowFrequencySeed", 4, vae=(loader, "VAE"), image=painting, blur=blur, width=128, height=128
        )
        decoded = graph.add("VAEDecode", 4, samples=(seed, 0), vae=(loader, "VAE"))
        graph.add("PreviewImage", 4, f"{blur}", images=(decoded, 0))
    shown = studio().pictures(graph.save())
    return sheet([[(shown["Picture"][0], "image"), *((shown[f"{b}"][0], f"blur {b}") for b in blurs)]])


def nasa():
    choices = [
        ({"scale": 0.0}, "without"), ({"scale": 0.2}, "nasa, 0.2"),
        ({"mode": "nasa_text_only", "scale": 0.7}, "nasa_text_only, 0.7"),
        ({"mode": "nag", "scale": 4.0, "blend": 0.25}, "nag, 4, blend 0.25"),
    ]  # fmt: skip
    rows = []
    for caption, away in (("green hills with red houses", "a dusk"), ("a landscape", "a dusk")):
        row = []
        for values, label in choices:
            graph = Graph(studio().object_info)
            negative_prompt(graph, caption, away, miniature="landscapes (flow)", steps=20, seed=3, **values)
            row.append((studio().pictures(graph.save())["Picture"][0], label))
        rows.append(row)
    return sheet(rows)


FIGURES = {
    "TrajectoryAngularSampler": angular,
    "TrajectoryDPMSolverSampler": dpm_solver,
    "TrajectoryDEISSampler": deis,
    "TrajectoryPNDMSampler": pndm,
    "TrajectoryMomentumSampler": momentum,
    "TrajectoryInterpolantSampler": interpolant,
    "TrajectoryMRSampler": mean_reverting,
    "TrajectoryBDIASampler": bdia,
    "TrajectoryBDIAInvert": bdia_invert,
    "TrajectoryDenoisingMCMC": denoising_mcmc,
    "TrajectoryTimeShiftSampler": time_shift_sampler,
    "TrajectoryTimeShiftModel": time_shift_model,
    "TrajectoryNASA": nasa,
    "TrajectoryTimeSkipScheduler": time_skip_scheduler,
    "TrajectoryFisherPathScheduler": fisher_path_scheduler,
    "TrajectoryFractionalTimesteps": fractional_timesteps,
    "TrajectorySolverComparison": solver_comparison,
    "TrajectoryPlanInfo": plan_info,
    "TrajectoryLoadMiniature": load_miniature,
    "TrajectoryOMSLoader": oms_loader,
    "TrajectoryOMSStep": oms_step,
    "TrajectoryOMSSamplerWrap": oms_sampler_wrap,
    "TrajectoryLowFrequencySeed": low_frequency_seed,
    "TrajectoryFasterDiffusion": faster_diffusion,
    "TrajectoryFasterDiffusionDiT": faster_diffusion_dit,
    "TrajectoryPriorNoiseInjection": prior_noise_injection,
    **figures_operators.FIGURES,
    **figures_steering.FIGURES,
    **figures_composition.FIGURES,
    **figures_restoration.FIGURES,
    **figures_video.FIGURES,
}


def save(picture, stem):
    """Charts have a palette and become PNG, picture rows JPEG."""
    if picture.mode == "P":
        picture.save(stem.with_suffix(".png"), optimize=True)
    else:
        picture.save(stem.with_suffix(".jpg"), quality=75, optimize=True)


@elsewhere()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FIGURES), help="node ids (default: all)")
    names = parser.parse_args().names
    runtime.activate()
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        save(FIGURES[name](), FOLDER / name)


if __name__ == "__main__":
    main()
