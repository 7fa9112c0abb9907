"""The examples of SuperDiff."""

EPS, FLOW, OPEN = "landscapes (eps)", "landscapes (flow)", "landscapes (open)"


def superposition(graph, model, prompts, texts, mode, cfg, seed, steps, scheduler):
    """Prompts of one model under SuperDiff, with the log of the run. `prompts`: titles of the nodes."""
    loader = graph.add("TrajectoryLoadMiniature", 0, model=model)
    empty = "EmptySD3LatentImage" if model == FLOW else "EmptyLatentImage"
    latent = graph.add(empty, 0, "Size", width=128, height=128, batch_size=1)
    noise = graph.add("RandomNoise", 0, "Noise", noise_seed=seed)
    encoded = {
        f"prompt_{i}": (graph.add("CLIPTextEncode", 1, title, clip=(loader, "CLIP"), text=text), 0)
        for i, (title, text) in enumerate(zip(prompts, texts, strict=True), 1)
    }
    negative = graph.add("CLIPTextEncode", 1, "Negative", clip=(loader, "CLIP"), text="")
    guider = graph.add(
        "TrajectorySuperDiffGuider", 2, "Prompts", model=(loader, "MODEL"), negative=(negative, 0), cfg=cfg, **encoded
    )
    log(graph, loader, latent, noise, guider, mode, steps, scheduler)


def log(graph, loader, latent, noise, guider, mode, steps, scheduler):
    """The rest of an example from the guider on."""
    sampler = graph.add("TrajectorySuperDiffSampler", 1, "Superposition", mode=mode)
    sigmas = graph.add(
        "BasicScheduler", 2, "Schedule", model=(loader, "MODEL"), scheduler=scheduler, steps=steps, denoise=1.0
    )
    run = graph.add(
        "SamplerCustomAdvanced", 2, "Sample", noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0),
        sigmas=(sigmas, 0), latent_image=(latent, 0),
    )  # fmt: skip
    picture = graph.add("VAEDecode", 3, samples=(run, 0), vae=(loader, "VAE"))
    graph.add("SaveImage", 3, "Picture", images=(picture, 0), filename_prefix="superdiff")
    graph.add("TrajectorySuperDiffLog", 3, "Plot", sampler=(sampler, 0), latent=(run, 0))


def example_and(graph):
    superposition(
        graph, OPEN, ("Light and tree", "Ground and house"),
        ("a dawn with a moon, a white tree on the left", "green hills, a yellow house on the right"),
        "AND", cfg=1.5, seed=0, steps=25, scheduler="karras",
    )  # fmt: skip
    graph.note(4, "a dawn over green hills with a moon, a white tree on the left and a yellow house on the right")
    graph.nodes[-1]["title"] = "Caption"
    graph.note(4, (
        "AND keeps the picture equally likely under both prompts at every step: it shows what each of them says. What "
        "a prompt leaves out is open to this miniature, so that the other one may fill it in; **Caption** has both. "
        "The plot has the weight of each prompt and the log-densities, which stay together. *Conditioning (Combine)* "
        "of the two prompts under euler paints a sun from this noise, and a balloon of nobody's."
    ))  # fmt: skip


def example_or(graph):
    superposition(
        graph, FLOW, ("Other", "Caption"),
        ("a black night over the sea with a moon, a white boat in the middle",
         "a blue day over green hills with a sun, two red houses on the left"),
        "OR", cfg=2.0, seed=1, steps=20, scheduler="simple",
    )  # fmt: skip
    graph.note(4, (
        "OR follows the prompt under which the picture is likelier: a whole picture of one of them, where *average* "
        "blends both. Another seed may choose the other prompt; *bias* favours one, in nats. The plot shows when the "
        "choice is made."
    ))  # fmt: skip


def example_two_models(graph):
    texts = {EPS: "a dusk with a moon, two red houses on the left", OPEN: "snow, two red houses on the left"}
    parts = {}
    for i, (name, caption) in enumerate(texts.items(), 1):
        loader = graph.add("TrajectoryLoadMiniature", 0, model=name)
        parts["loader"] = parts.get("loader", loader)
        titles = {"positive": f"Prompt {i}", "negative": f"Negative {i}"}
        for (kind, title), text in zip(titles.items(), (caption, ""), strict=True):
            parts[f"{kind}_{i}"] = (graph.add("CLIPTextEncode", 1, title, clip=(loader, "CLIP"), text=text), 0)
        parts[f"model_{i}"] = (loader, "MODEL")
    loader = parts.pop("loader")
    latent = graph.add("EmptyLatentImage", 0, "Size", width=128, height=128, batch_size=1)
    noise = graph.add("RandomNoise", 0, "Noise", noise_seed=2)
    guider = graph.add("TrajectorySuperDiffMultiModelGuider", 2, "Models", cfg=2.0, **parts)
    log(graph, loader, latent, noise, guider, "AND", 25, "karras")
    graph.note(4, "a dusk over snow with a moon, two red houses on the left")
    graph.nodes[-1]["title"] = "Caption"
    graph.note(4, (
        "Two models with weights and prompts of their own, here the eps miniature, which is told the light, and the "
        "open one, which is told the ground, paint one picture that is equally likely under both: **Caption**. They "
        "must share a VAE; kinds (eps, v, flow) and schedules may differ."
    ))  # fmt: skip


EXAMPLES = {
    "SuperDiff AND": example_and,
    "SuperDiff OR": example_or,
    "SuperDiff two models": example_two_models,
}
