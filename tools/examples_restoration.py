"""Examples of super-resolution and restoration."""

from graphs import text_to_image


def degraded(graph, column):
    """The painting of the common trunk as a small bad picture: blurred, a quarter of the size, noisy, JPEG."""
    painting = next(node for node in graph.nodes if node["type"] == "VAEDecode"), 0
    soften = graph.add("TrajectoryOperatorBlur", column, "Blur", sigma=0.8)
    shrink = graph.add("TrajectoryOperatorDownsample", column, "A quarter of the size", factor=4)
    both = graph.add("TrajectoryOperatorCompose", column, "First the blur", outer=(shrink, 0), inner=(soften, 0))
    small = graph.add("TrajectoryApplyOperator", column, "Degrade", operator=(both, 0), image=painting, sigma_y=0.02)
    codec = graph.add("TrajectoryOperatorJPEG", column, "JPEG", quality=75)
    file = graph.add("TrajectoryApplyOperator", column, "As a file", operator=(codec, 0), image=(small, "preview"))
    graph.add("PreviewImage", column, "Plot", images=(file, "preview"))
    return file, "preview"


def example_resshift_upscale(graph):
    text_to_image(
        graph, "a blue day over the sea with a sun, two white boats in the middle and a red balloon on the right",
        seed=2, title="Original",
    )  # fmt: skip
    small = degraded(graph, 4)
    loader = graph.add("TrajectoryResShiftLoader", 5, "Restorer")
    upscaled = graph.add(
        "TrajectoryResShiftUpscale", 5, "Restore", resshift=(loader, "resshift"), image=small, seed=1)
    graph.add("SaveImage", 5, "Picture", images=(upscaled, 0), filename_prefix="restored")
    large = graph.add(
        "ImageScale", 6, "Enlarge", image=small, upscale_method="bicubic", width=128, height=128, crop="disabled")
    encoded = graph.add("VAEEncode", 6, pixels=(large, 0), vae=(loader, "VAE"))
    sampler = graph.add("TrajectoryResShiftSampler", 6, "Published chain")
    sigmas = graph.add("TrajectoryResShiftScheduler", 6, "Trained levels", steps=4)
    unread = graph.nodes[1], 0
    run = graph.add(
        "SamplerCustom", 7, "The same by hand", model=(loader, "MODEL"), noise_seed=1, cfg=1.0,
        positive=unread, negative=unread, sampler=(sampler, 0), sigmas=(sigmas, 0),
        latent_image=(encoded, 0),
    )  # fmt: skip
    decoded = graph.add("VAEDecode", 7, samples=(run, 0), vae=(loader, "VAE"))
    graph.add("PreviewImage", 7, "Sampled", images=(decoded, 0))
    graph.note(5, (
        "The painting of the **Caption**, made small and bad (the **Plot**), at 4 times its size: **Restore** does all "
        "of it, for pictures of any size. Connect *Load Image* in place of **As a file**, and in **Restorer** choose "
        "the published files, to restore photographs.\n\n**The same by hand** is the same network as a MODEL: its "
        "latent is the encoded, plainly enlarged picture, its text is not read. Any sampler, mask or schedule can be "
        "tried on it."
    ))  # fmt: skip


def restorer(graph, column):
    """Apply OSEDiff on the miniature that the bundled file changes; and what its text goes through."""
    loader = graph.add("TrajectoryLoadMiniature", column, "What is changed", model="landscapes (eps)")
    changed = graph.add(
        "TrajectoryApplyOSEDiff", column, "Restorer", model=(loader, "MODEL"), vae=(loader, "VAE"),
        file="landscapes (bundled)",
    )  # fmt: skip
    text = graph.add("CLIPTextEncode", column, "What it shows", clip=(loader, "CLIP"), text="")
    return changed, text


def example_one_step_upscale(graph):
    text_to_image(
        graph, "a blue day over the sea with a sun, two white boats in the middle and a red balloon on the right",
        seed=2, title="Original",
    )  # fmt: skip
    small = degraded(graph, 4)
    changed, text = restorer(graph, 5)
    upscaled = graph.add(
        "TrajectoryOneStepUpscale", 6, "Restore", image=small, model=(changed, "model"), vae=(changed, "vae"),
        positive=(text, 0),
    )  # fmt: skip
    graph.add("SaveImage", 6, "Picture", images=(upscaled, 0), filename_prefix="restored")
    graph.note(5, (
        "The painting of the **Caption**, made small and bad (the **Plot**), at 4 times its size in one call of the "
        "network. Tell it in **What it shows** what the picture is of, or nothing.\n\nFor photographs load Stable "
        "Diffusion 2.1-base in place of **What is changed**, choose *osediff.pkl* in **Restorer**, and "
        "connect *Load Image* in place of **As a file**."
    ))  # fmt: skip


def example_one_step_tiles(graph):
    text_to_image(
        graph, "a blue day over the desert with a sun, two red houses on the left and a yellow balloon on the right",
        seed=11, title="Original",
    )  # fmt: skip
    small = degraded(graph, 4)
    changed, text = restorer(graph, 5)
    large = graph.add(
        "ImageScale", 6, "Enlarge", image=small, upscale_method="bicubic", width=128, height=128, crop="disabled")
    latent = graph.add("VAEEncode", 6, "Encode as it was trained to", pixels=(large, 0), vae=(changed, "vae"))
    tiled = graph.add("TrajectoryTiledDenoise", 6, "Tiles", model=(changed, "model"), tile=12, overlap=6)
    guider = graph.add("BasicGuider", 6, "Guidance", model=(tiled, 0), conditioning=(text, 0))
    sampler = graph.add("TrajectoryOneStepSRSampler", 7, "One step")
    sigmas = graph.add(
        "BasicScheduler", 7, "Largest noise level", model=(changed, "model"), scheduler="simple", steps=1, denoise=1.0)
    run = graph.add(
        "SamplerCustomAdvanced", 7, "Sample", noise=(graph.add("DisableNoise", 7), 0), guider=(guider, 0),
        sampler=(sampler, 0), sigmas=(sigmas, 0), latent_image=(latent, 0),
    )  # fmt: skip
    picture = graph.add("VAEDecode", 7, samples=(run, 0), vae=(changed, "vae"))
    graph.add("SaveImage", 7, "Picture", images=(picture, 0), filename_prefix="restored")
    graph.note(5, (
        "What *One-Step Upscale* does, by hand: enlarge, encode with the VAE of **Restorer**, one call of the network "
        "in **Tiles** of 12 cells (96 pixels), decode. The latent itself stands where sampling would have noise, so "
        "**Sample** needs none.\n\nA mask on the latent restores a part, and any node for a MODEL can stand between."
    ))  # fmt: skip


EXAMPLES = {
    "ResShift Upscale": example_resshift_upscale,
    "One-Step Upscale": example_one_step_upscale,
    "One-step restoration in tiles": example_one_step_tiles,
}
