"""Writes the example workflows and their thumbnails: python tools/examples.py [name ...]

Each example is described below as a few nodes with their links and positions, saved in the editor's format (0.4), then
run in the embedded host; the first picture saved by the node titled "Picture" becomes the thumbnail of the same name,
the frames of an animation together with their caption.
Texts and values live here alone, so that all examples stay alike.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

import examples_composition
import examples_operators
import examples_restoration
import examples_steering
import examples_video
from drawing import storyboard
from graphs import CAPTION, Graph, text_to_image
from PIL import Image
from studio import elsewhere, frames_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"


def example_text_to_image(graph):
    text_to_image(graph)
    graph.note(0, (
        "The bundled miniature paints the landscape of the **Caption**. Change its words: light (*black night, blue "
        "night, dusk, dawn, blue day, white noon*), ground (*green hills, snow, sea, desert*), *sun* or *moon*, "
        "houses, trees, boats, balloons with colours, counts and places.\n\n"
        "To use a large model, replace **Load Miniature** by its loaders; the rest of the graph stays."
    ))  # fmt: skip


def example_solver_and_schedule(graph):
    nodes = text_to_image(
        graph, "a dusk over the sea with a moon and one white boat in the middle", seed=3,
        sampler=lambda g: g.add("TrajectoryDPMSolverSampler", 1, "Solver", order=3),
        sigmas=lambda g, loader: g.add(
            "TrajectoryTimeSkipScheduler", 2, "Schedule", model=(loader, "MODEL"), steps=10, skip="time_uniform"
        ),
    )  # fmt: skip
    graph.add(
        "TrajectoryPlanInfo", 3, "Plan", sampler=(nodes["sampler"], 0), sigmas=(nodes["sigmas"], 0),
        model=(nodes["loader"], "MODEL"),
    )  # fmt: skip
    graph.note(0, (
        "A third-order solver in ten network calls. **Plan** shows each step before it runs: its noise levels, the "
        "order used, and how far the weights extrapolate (kappa).\n\nTry *skip*, *order* and *method*, and watch the "
        "plan and the picture change."
    ))  # fmt: skip


def example_deis(graph):
    text_to_image(
        graph, "a dusk over green hills with a sun, two green trees on the right and a white balloon on the left",
        sampler=lambda g: g.add("TrajectoryDEISSampler", 1, "Solver", variant="tAB", order=2), seed=1,
        sigmas=lambda g, loader: g.add(
            "TrajectoryTimeSkipScheduler", 2, "Schedule", model=(loader, "MODEL"), steps=10, skip="time_quadratic"
        ),
    )  # fmt: skip
    graph.note(0, (
        "DEIS in the model's own time (tAB) on the schedule of its paper, *time_quadratic*, in ten network calls.\n\n"
        "Try the *variant* rhoRK with *rk* heun at 5 steps: the same number of calls, spent inside the steps."
    ))  # fmt: skip


def example_compare_solvers(graph):
    nodes = text_to_image(
        graph, "a white noon over the desert with a sun, two green trees on the left and one blue house on the right",
        seed=6, steps=15,
    )  # fmt: skip
    euler = graph.add("KSamplerSelect", 0, "Euler of the host", sampler_name="euler")
    heun = graph.add("KSamplerSelect", 0, "Heun of the host", sampler_name="heun")
    deis = graph.add("TrajectoryDEISSampler", 1, "DEIS", order=2)
    comparison = graph.add(
        "TrajectorySolverComparison", 4, "Comparison", guider=(nodes["guider"], 0), noise=(nodes["noise"], 0),
        latent_image=(nodes["latent"], 0), sampler_1=(euler, 0), sampler_2=(heun, 0), sampler_3=(deis, 0),
        sampler_4=(nodes["sampler"], 0), scheduler="kl_optimal", steps="6, 9, 13, 20, 30",
        reference_steps=240, names="Euler, Heun, DEIS, Angular",
    )  # fmt: skip
    graph.add("PreviewImage", 4, "Plot", images=(comparison, "plot"))
    graph.note(3, (
        "Four samplers on the picture of the **Caption**: how far each is from the exact result after how many network "
        "calls (Heun makes two a step). Read off the **Plot** how many calls pay.\n\n**Comparison** also returns the "
        "numbers as a table and as CSV. Try another *scheduler*: on many, the jump from the last sigma to 0 decides, "
        "and all solvers look alike."
    ))  # fmt: skip


def example_fractional_timesteps(graph):
    text_to_image(
        graph, "a dawn over the snow with a sun, one red house in the middle and a yellow balloon on the right", seed=2,
        patch=lambda g, loader: g.add("TrajectoryFractionalTimesteps", 1, model=(loader, "MODEL")),
    )  # fmt: skip
    graph.note(0, (
        "Where **Fractional Timesteps** belongs: after the loader and any *ModelSampling* node, before guider and "
        "schedule.\n\nThe miniature is a flow model, which hears exact times anyway: the node returns it as it is, and "
        "the picture is the same without it. It acts on eps and v models such as Stable Diffusion 1.5 and SDXL, whose "
        "time the host rounds to one of 1000 steps; that shows from about 100 steps on and in comparisons of solvers."
    ))  # fmt: skip


def example_inversion_and_edit(graph):
    loader = graph.add("TrajectoryLoadMiniature", 0)
    clip, model, vae = (loader, "CLIP"), (loader, "MODEL"), (loader, "VAE")
    source = graph.add("CLIPTextEncode", 0, "Source caption", clip=clip, text=CAPTION)
    edited = graph.add("CLIPTextEncode", 2, "Caption", clip=clip, text=CAPTION.replace("red balloon", "blue balloon"))
    negative = graph.add("CLIPTextEncode", 0, "Negative", clip=clip, text="")
    sigmas = graph.add("BasicScheduler", 1, "Schedule", model=model, scheduler="simple", steps=30, denoise=1.0)

    def guidance(column, title, caption):
        prompts = {"positive": (caption, 0), "negative": (negative, 0)}
        return graph.add("CFGGuider", column, title, model=model, **prompts, cfg=2.0)

    def picture(column, run):
        return graph.add("VAEDecode", column, samples=(run, 0), vae=vae), 0

    describe = guidance(1, "Source guidance", source)
    paint = graph.add(
        "SamplerCustomAdvanced", 1, "Sample the source", noise=(graph.add("RandomNoise", 0, "Noise", noise_seed=4), 0),
        guider=(describe, 0), sampler=(graph.add("TrajectoryBDIASampler", 0, "Solver", gamma=1.0), 0),
        sigmas=(sigmas, 0), latent_image=(graph.add("EmptySD3LatentImage", 0, width=128, height=128, batch_size=1), 0),
    )  # fmt: skip
    graph.add("PreviewImage", 1, "Source", images=picture(1, paint))
    inversion = graph.add(
        "TrajectoryBDIAInvert", 2, "Invert", guider=(describe, 0), latent=(paint, 0), sigmas=(sigmas, 0)
    )
    edit = graph.add(
        "SamplerCustomAdvanced", 3, "Sample the edit", noise=(graph.add("DisableNoise", 2), 0),
        guider=(guidance(2, "Guidance", edited), 0), sampler=(inversion, "sampler"), sigmas=(inversion, "sigmas"),
        latent_image=(inversion, "latent"),
    )  # fmt: skip
    graph.add("SaveImage", 3, "Picture", images=picture(3, edit), filename_prefix="landscape")
    graph.note(3, (
        "**Invert** walks the source picture up to its noise, and the edit walks down from there with another "
        "**Caption**: what the caption does not change stays. With the source caption it paints the source again; the "
        "drift of that round trip stands on the node.\n\nTo edit a picture of your own, connect *Load Image* and *VAE "
        "Encode* to **Invert**, and describe the picture in **Source caption**."
    ))  # fmt: skip


def example_denoising_mcmc(graph):
    loader = graph.add("TrajectoryLoadMiniature", 0)
    caption = graph.add("CLIPTextEncode", 1, "Caption", clip=(loader, "CLIP"), text=CAPTION)
    negative = graph.add("CLIPTextEncode", 1, "Negative", clip=(loader, "CLIP"), text="")
    latent = graph.add("EmptySD3LatentImage", 0, "Size", width=128, height=128, batch_size=1)
    guider = graph.add(
        "CFGGuider", 2, "Guidance", model=(loader, "MODEL"), positive=(caption, 0), negative=(negative, 0), cfg=2.0
    )
    sampler = graph.add("TrajectoryDPMSolverSampler", 1, "Solver")
    chain = graph.add(
        "TrajectoryDenoisingMCMC", 2, "Chain", guider=(guider, 0), sampler=(sampler, 0), latent=(latent, 0), seed=4,
        samples=4, n_skip=8, eta=100.0, burn_in=8, rho=2.0, start_sigma=0.9,
    )  # fmt: skip
    picture = graph.add("VAEDecode", 3, samples=(chain, "latent"), vae=(loader, "VAE"))
    graph.add("SaveImage", 3, "Picture", images=(picture, 0), filename_prefix="landscape")
    graph.note(0, (
        "Four landscapes of one caption from one chain: it walks over noisy pictures, and every *n_skip* states the "
        "least noisy one is denoised.\n\nLower *start_sigma* to 0.7 and *eta* to 0 for small changes of one layout; "
        "raise *n_skip* and the pictures differ more. *trace* tells the noise level of every state."
    ))  # fmt: skip


def example_fisher_path(graph):
    text_to_image(
        graph, "a dawn over snow with a sun, two green trees on the left and a red house on the right", seed=3,
        sigmas=lambda g, loader: g.add(
            "TrajectoryFisherPathScheduler", 2, "Schedule", model=(loader, "MODEL"), steps=16, exponent=1.0
        ),
    )  # fmt: skip
    graph.note(0, (
        "Steps that change the distribution of a noisy picture equally much: they gather where the noise covers the "
        "frequencies of pictures.\n\nRaise *exponent* for smoother pictures, or connect clean latents to *spectrum*. "
        "0 gives steps even in log-SNR."
    ))  # fmt: skip


def example_time_shift(graph):
    text_to_image(
        graph, "a dawn over the sea with a sun, two white boats in the middle and a yellow balloon on the left", seed=2,
        sampler=lambda g: g.add("TrajectoryTimeShiftSampler", 1, "Solver", window=100, cutoff=0.1), steps=10,
    )  # fmt: skip
    graph.note(0, (
        "Euler in ten network calls, each at the noise level that the state really has: the *window* says how far it "
        "may be from the schedule's.\n\nSet *window* to 0 for plain Euler, or *mode* to paper for the published rule."
    ))  # fmt: skip


def example_time_shift_patch(graph):
    text_to_image(
        graph, "a blue day over the desert with a sun and clouds, one red house in the middle", seed=2, steps=10,
        patch=lambda g, loader: g.add("TrajectoryTimeShiftModel", 1, model=(loader, "MODEL")),
        sampler=lambda g: g.add("KSamplerSelect", 1, "Solver", sampler_name="euler"),
    )  # fmt: skip
    graph.note(0, (
        "The same measurement under a sampler of the host: **Time-Shift (model patch)** tells the network the level of "
        "the state and leaves the sampler's steps alone. *Time-Shift Sampler* moves both."
    ))  # fmt: skip


def example_pndm(graph):
    text_to_image(
        graph, "a dawn over snow with a sun, three white houses in the middle and a red balloon on the right", seed=2,
        sampler=lambda g: g.add("TrajectoryPNDMSampler", 1, "Solver", method="PLMS"),
    )
    graph.note(0, (
        "PLMS, the multistep sampler that early latent diffusion models were shown with: 20 steps in 20 network calls "
        "on a flow, 21 on others.\n\nTry the *method* F-PNDM, whose first steps make four calls each, and "
        "*coefficients* variable."
    ))  # fmt: skip


def example_momentum(graph):
    text_to_image(
        graph,
        "hills under a pink dawn with clouds, three red balloons on the right, the moon, two red trees on the left",
        seed=20, cfg=8.0, steps=10,
        sampler=lambda g: g.add("TrajectoryMomentumSampler", 1, "Solver", order=2, beta=0.5, variable_step=True),
    )  # fmt: skip
    graph.note(0, (
        "Guidance of 8 in ten steps makes solvers overshoot into saturated blobs. Momentum steadies them: set *beta* "
        "to 1, which is none, and the picture falls apart.\n\nTry the *base* DPM++2M with *beta* 1 and 0.6, and "
        "*order* 4, which is too high for so few steps at this guidance. At a guidance of 2 momentum gains nothing."
    ))  # fmt: skip


def example_interpolant(graph):
    text_to_image(
        graph, "a dusk over snow with a moon, three blue houses on the right and a white balloon on the left", seed=1,
        sampler=lambda g: g.add("TrajectoryInterpolantSampler", 1, "Solver", epsilon="sigma", scale=0.5), steps=30,
    )  # fmt: skip
    graph.note(0, (
        "A dial from the ODE to the SDE: *scale* 0 paints without fresh noise, more of it leaves the first noise "
        "further behind, and *epsilon* says at which noise levels.\n\nSet *sigma_high* to 0.5 to keep the layout of "
        "*scale* 0 and change details only."
    ))  # fmt: skip


def example_mean_reverting(graph):
    text_to_image(
        graph, "a blue night over green hills with a moon, two white houses in the middle", seed=3, steps=15,
        sampler=lambda g: g.add("TrajectoryMRSampler", 1, "Solver", equation="ode"),
    )  # fmt: skip
    graph.note(0, (
        "**MR Sampler** is made for mean-reverting restoration models, whose loaders come with a later release.\n\nOn "
        "the miniature, as on every ordinary model, it is the same as *DPM-Solver Sampler* of that *order*: put that "
        "node in its place and the picture stays."
    ))  # fmt: skip


def example_one_more_step(graph):
    def one_more_step(graph, nodes):
        module = graph.add("TrajectoryOMSLoader", 0)
        return graph.add(
            "TrajectoryOMSStep", 2, "Start", oms_model=(module, 0), model=(nodes["loader"], "MODEL"),
            positive=(nodes["caption"], 0), negative=(nodes["negative"], 0), latent=(nodes["latent"], 0),
        )  # fmt: skip

    text_to_image(
        graph, "a bright white noon over snow with a sun, two red houses on the left and a blue balloon on the right",
        seed=12, start=one_more_step, miniature="landscapes (eps)",
    )  # fmt: skip
    graph.note(0, (
        "The schedule of Stable Diffusion begins with a trace of a picture in its noise, and a model that never saw "
        "pure noise misses the darkest and the brightest pictures. **Start** asks a small module for the light and "
        "colours of the caption, and the sampler begins there: the noon is white.\n\nSet *strength* to 0 on "
        "**Start** to see which light the model takes without it, or give **Start** a caption of its own: *a black "
        "night* under the same objects."
    ))  # fmt: skip


def example_low_frequency_seed(graph):
    def from_colour(graph):
        loader, solver = graph.nodes[0], graph.add("TrajectoryAngularSampler", 1, "Solver")
        colour = graph.add(
            "TrajectoryLowFrequencySeed", 1, "Colour", vae=(loader, "VAE"), colour="#f0a060", width=128, height=128
        )
        return graph.add("TrajectoryOMSSamplerWrap", 1, "Start", sampler=(solver, 0), start=(colour, 0))

    text_to_image(
        graph, "the sea with a sun and one white boat on the left", sampler=from_colour, miniature="landscapes (eps)"
    )
    graph.note(0, (
        "The caption names no light: the **Colour** chooses it. Its latent is added to the noise that the sampler "
        "starts from, and no module is needed.\n\nTry *#080810* for a night and *#ffffff* for a noon, or connect an "
        "image, of which *blur* leaves light and colours. Without inpainting, the latent may as well go straight into "
        "the sampler's *latent_image*."
    ))  # fmt: skip


def example_faster_diffusion(graph):
    def sampler(graph):
        euler = graph.add("KSamplerSelect", 1, "Solver", sampler_name="euler")
        return graph.add("TrajectoryPriorNoiseInjection", 1, "Texture", sampler=(euler, 0))

    text_to_image(
        graph, "a dusk over the sea with a sun and clouds, two white boats on the left and a red balloon on the right",
        steps=50, cfg=3.0, seed=0, sampler=sampler,
        patch=lambda g, loader: g.add(
            "TrajectoryFasterDiffusion", 1, "Faster", model=(loader, "MODEL")),
        miniature="landscapes (eps)",
    )  # fmt: skip
    graph.note(0, (
        "Fifty steps, nine of which run the whole network: at the others the encoder's features of the last whole step "
        "are used again. **Texture** adds a little of the start's noise back.\n\nCompare with *end_percent* 0 on "
        "**Faster**, where every step is whole, and with *fresh_input* off, the method as published: after the last "
        "whole step it does not see the picture any more, and leaves noise in one as small as this."
    ))  # fmt: skip


def example_faster_diffusion_dit(graph):
    text_to_image(
        graph, "a blue day over green hills with a sun and clouds, two red houses on the left", steps=25, seed=1,
        patch=lambda g, loader: g.add("TrajectoryFasterDiffusionDiT", 1, "Faster", model=(loader, "MODEL")),
    )  # fmt: skip
    graph.note(0, (
        "A third of the transformer's blocks rest at most of the steps: what they added at the last key step is added "
        "again.\n\nRaise *fraction* on **Faster** until the picture suffers."
    ))  # fmt: skip


def negative_prompt(graph, caption, away, miniature, steps, seed, **values):
    """The common trunk at CFG 1, steered away from a text."""

    def patch(graph, loader):
        text = graph.add("CLIPTextEncode", 1, "Away from", clip=(loader, "CLIP"), text=away)
        return graph.add("TrajectoryNASA", 1, "NASA", model=(loader, "MODEL"), negative=(text, 0), **values)

    return text_to_image(graph, caption, seed=seed, cfg=1.0, steps=steps, patch=patch, miniature=miniature)


def example_nasa(graph):
    negative_prompt(
        graph, "green hills with a sun and two red houses on the left", "dusk", seed=0, steps=8,
        miniature="landscapes (few-step)", scale=0.5,
    )  # fmt: skip
    graph.note(0, (
        "A distilled model paints in eight steps at a CFG of 1, where **Negative**, the guider's own, has no effect. "
        "**NASA** steers the attention to the caption away from another text instead: the caption leaves the light "
        "open, and **Away from** rules out the dusk.\n\nSet *scale* to 0 to see the picture without it, or write "
        "*blue day* or *white noon*. The *mode* nag with *scale* 2 is steady at larger strengths, and on models in "
        "which text and image attend jointly."
    ))  # fmt: skip


EXAMPLES = {
    "Text to image": example_text_to_image,
    "Solver and schedule": example_solver_and_schedule,
    "DEIS in model time": example_deis,
    "Compare solvers": example_compare_solvers,
    "Fractional timesteps": example_fractional_timesteps,
    "Exact inversion and edit": example_inversion_and_edit,
    "Denoising MCMC": example_denoising_mcmc,
    "Fisher path schedule": example_fisher_path,
    "Time-Shift": example_time_shift,
    "Time-Shift model patch": example_time_shift_patch,
    "PNDM": example_pndm,
    "Momentum at high guidance": example_momentum,
    "Stochastic interpolant": example_interpolant,
    "Mean-reverting preset": example_mean_reverting,
    "One More Step": example_one_more_step,
    "Low-Frequency Seed": example_low_frequency_seed,
    "Negative prompt without CFG": example_nasa,
    "Faster Diffusion": example_faster_diffusion,
    "Faster Diffusion (DiT)": example_faster_diffusion_dit,
    **examples_operators.EXAMPLES,
    **examples_steering.EXAMPLES,
    **examples_composition.EXAMPLES,
    **examples_restoration.EXAMPLES,
    **examples_video.EXAMPLES,
}


def thumbnail(workflow_file, edge=400, quality=88):
    """JPEG bytes of the first picture that its node "Picture" saves, run by the command line as a user would."""
    from trajectory.headless.cli import main

    nodes = json.loads(workflow_file.read_text(encoding="utf-8"))["nodes"]
    values = {node.get("title"): node.get("widgets_values") for node in nodes}
    prefix = values["Picture"][0]
    with tempfile.TemporaryDirectory() as out:
        if main(["run", str(workflow_file), "--out", out]):
            sys.exit(f"{workflow_file} did not run")
        frames = frames_of(min(Path(out).glob(f"{prefix}_*")))
    if len(frames) > 1:
        picture = storyboard(frames, values["Caption"][0], edge)
    else:
        picture = frames[0].resize((edge, edge), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=quality)
    return target.getvalue()


@elsewhere()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(EXAMPLES), help="examples to write (default: all)")
    parser.add_argument("--no-thumbnails", action="store_true", help="write the workflows only")
    arguments = parser.parse_args()
    from trajectory.headless.embedded import EmbeddedHost

    info = EmbeddedHost(Path("out")).object_info()
    FOLDER.mkdir(exist_ok=True)
    for name in arguments.names:
        graph = Graph(info)
        EXAMPLES[name](graph)
        target = FOLDER / f"{name}.json"
        target.write_text(json.dumps(graph.save(), indent=1) + "\n", encoding="utf-8")
        if not arguments.no_thumbnails:
            target.with_suffix(".jpg").write_bytes(thumbnail(target))


if __name__ == "__main__":
    main()
