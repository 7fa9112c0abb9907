"""The examples of FlowChef and its losses."""

from graphs import CAPTION, text_to_image

REPAINTED = CAPTION.replace("a red balloon", "two green trees")
RECOLOURED = CAPTION.replace("red balloon", "blue balloon")


class Painting:
    """The common trunk: the miniature and a picture that it paints, whose node is titled "Source".

    Each example has a seed of its own: a host that runs two of them hands out a cached preview of the same picture.
    """

    def __init__(self, graph, seed):
        self.graph = graph
        self.loader = graph.add("TrajectoryLoadMiniature", 0)
        self.model, self.clip, self.vae = ((self.loader, name) for name in ("MODEL", "CLIP", "VAE"))
        self.source = graph.add("CLIPTextEncode", 0, "Source caption", clip=self.clip, text=CAPTION)
        self.negative = graph.add("CLIPTextEncode", 0, "Negative", clip=self.clip, text="")
        self.empty = graph.add("EmptySD3LatentImage", 0, "Size", width=128, height=128, batch_size=1)
        solver = graph.add("TrajectoryAngularSampler", 1, "Solver")
        self.sigmas = self.schedule(1, 20)
        self.picture = self.sample(1, "Sample the source", self.guidance(1, self.source), solver, seed)
        graph.add("PreviewImage", 1, "Source", images=self.picture)

    def schedule(self, column, steps):
        return self.graph.add(
            "BasicScheduler", column, "Schedule", model=self.model, scheduler="simple", steps=steps, denoise=1.0
        )

    def guidance(self, column, caption):
        texts = {"positive": (caption, 0), "negative": (self.negative, 0)}
        return self.graph.add("CFGGuider", column, "Guidance", model=self.model, **texts, cfg=2.0)

    def caption(self, text):
        return self.graph.add("CLIPTextEncode", 2, "Caption", clip=self.clip, text=text)

    def mask(self, x, y, width, height):
        """A white box on black, as the link of a MASK."""
        black = self.graph.add("SolidMask", 2, "Keep", value=0.0, width=128, height=128)
        white = self.graph.add("SolidMask", 2, "Repaint", value=1.0, width=width, height=height)
        mask = self.graph.add(
            "MaskComposite", 2, "Mask", destination=(black, 0), source=(white, 0), x=x, y=y, operation="add"
        )
        return mask, 0

    def encoded(self):
        return self.graph.add("VAEEncode", 2, "Encode", pixels=self.picture, vae=self.vae), 0

    def sample(self, column, title, guider, sampler, seed, latent=None, sigmas=None):
        """The link of the picture that is sampled."""
        noise = self.graph.add("RandomNoise", column, "Noise", noise_seed=seed)
        run = self.graph.add(
            "SamplerCustomAdvanced", column, title, noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0),
            sigmas=(sigmas or self.sigmas, 0), latent_image=latent or (self.empty, 0),
        )  # fmt: skip
        return self.graph.add("VAEDecode", column, samples=(run, 0), vae=self.vae), 0

    def save(self, picture):
        self.graph.add("SaveImage", 3, "Picture", images=picture, filename_prefix="landscape")


def example_inpaint(graph):
    painting = Painting(graph, seed=5)
    encoded = painting.encoded()
    steer = graph.add(
        "TrajectoryFlowChefSampler", 3, "FlowChef", strength=0.1, schedule="rise to 1",
        mask=painting.mask(72, 0, 56, 128),
    )  # fmt: skip
    guider = painting.guidance(3, painting.caption(REPAINTED))
    painting.save(painting.sample(3, "Sample", guider, steer, 2, encoded, painting.schedule(3, 30)))
    graph.note(3, (
        "The right side is painted anew by another **Caption**; the left side is pulled back to the source at each "
        "step, and the model sees both sides as one picture. The white of the mask is what **FlowChef** repaints; the "
        "sampled latent is what it keeps. With *rise to 1* as its *schedule* the pull begins gently and ends at the "
        "source itself; *constant* leaves the rest a little off.\n\nFor a picture of your own connect *Load "
        "Image* to **Encode**, draw a mask there and connect it."
    ))  # fmt: skip


def example_edit(graph):
    painting = Painting(graph, seed=4)
    encoded, mask = painting.encoded(), painting.mask(80, 8, 40, 60)
    guider = graph.add(
        "TrajectoryFlowChefEditGuider", 3, "Edit guidance", model=painting.model,
        target=(painting.caption(RECOLOURED), 0), source=(painting.source, 0), cfg=3.0, mask=mask,
    )  # fmt: skip
    steer = graph.add(
        "TrajectoryFlowChefSampler", 3, "FlowChef", strength=0.05, source_steps=5, schedule="rise to 1",
        reference=encoded, mask=mask,
    )  # fmt: skip
    painting.save(painting.sample(3, "Sample", guider, steer, 3, sigmas=painting.schedule(3, 30)))
    graph.note(3, (
        "Another colour for the balloon, without inversion: the first *source_steps* pull the whole picture to the "
        "source, so that the balloon stays where it is; then only what is outside the **Mask** is pulled. **Edit "
        "guidance** leads from the **Source caption** to the **Caption** inside the mask alone.\n\nMore "
        "*source_steps* or *strength* hold the old colour, fewer let go of its shape."
    ))  # fmt: skip


def restoration(graph, operator, seed, strength, note):
    """From what an operator leaves of the source back to a picture that agrees with it."""
    painting = Painting(graph, seed)
    pixels = operator(graph)
    through = graph.add("TrajectoryOperatorThroughVAE", 2, "Through VAE", operator=(pixels, 0), vae=painting.vae)
    measured = graph.add("TrajectoryApplyOperator", 2, "Degrade", operator=(through, 0), image=painting.picture)
    graph.add("PreviewImage", 2, "Plot", images=(measured, "preview"))
    steer = graph.add(
        "TrajectoryFlowChefSampler", 3, "FlowChef", strength=strength, schedule="rise to 1",
        measurement=(measured, "measurement"),
    )  # fmt: skip
    guider = painting.guidance(3, painting.caption(CAPTION))
    picture = painting.sample(3, "Sample", guider, steer, 1)
    painting.save(picture)
    graph.add(
        "TrajectoryMeasurementReport", 3, "Report", measurement=(measured, "measurement"), image=picture,
        reference=painting.picture,
    )  # fmt: skip
    graph.note(3, note)


def example_super_resolution(graph):
    restoration(
        graph, lambda g: g.add("TrajectoryOperatorDownsample", 2, "Fewer pixels", factor=4), 9, 0.3, (
            "A 32 x 32 picture (**Plot**), and a 128 x 128 one that becomes it when it is made smaller: each step's "
            "prediction is decoded, compared with the small picture and moved along the gradient through the VAE; the "
            "network itself is not differentiated. **Report** tells how well it agrees.\n\nFor a small picture of your "
            "own replace **Degrade** by *Measurement From Image*, and write in the **Caption** what it shows."
        ),
    )  # fmt: skip


def example_deblur(graph):
    restoration(
        graph, lambda g: g.add("TrajectoryOperatorBlur", 2, "Blur", sigma=3.0), 11, 0.6, (
            "From a blurred picture (**Plot**) to a sharp one that gives it back when it is blurred. What the blur "
            "took, the **Caption** and the model fill in.\n\nThe blur has to be described as it is: try another "
            "*sigma* behind **Degrade** with *Measurement From Image*, and see the picture get hard or soft."
        ),
    )  # fmt: skip


def layout_and_colours(graph):
    """FlowChef by two losses of a painting that the graph makes: a small grey copy, and how much of each colour."""
    loader, caption, negative, size = graph.nodes[:4]
    painted = graph.add(
        "CLIPTextEncode", 1, "Picture caption", clip=(loader, "CLIP"),
        text="a dusk over the sea with a sun and a red balloon on the right",
    )  # fmt: skip
    guider = graph.add(
        "CFGGuider", 2, model=(loader, "MODEL"), positive=(painted, 0), negative=(negative, 0), cfg=2.0
    )
    sigmas = graph.add("BasicScheduler", 2, model=(loader, "MODEL"), scheduler="simple", steps=12, denoise=1.0)
    noise = graph.add("RandomNoise", 1, noise_seed=1)
    sampler = graph.add("TrajectoryAngularSampler", 1)
    run = graph.add(
        "SamplerCustomAdvanced", 2, noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0), sigmas=(sigmas, 0),
        latent_image=(size, 0),
    )  # fmt: skip
    picture = graph.add("VAEDecode", 2, samples=(run, 0), vae=(loader, "VAE"))
    grey = graph.add("TrajectoryOperatorColour", 3, "Grey", matrix="grayscale")
    small = graph.add("TrajectoryOperatorDownsample", 3, "Small", factor=4)
    both = graph.add("TrajectoryOperatorCompose", 3, "Small and grey", outer=(small, 0), inner=(grey, 0))
    measured = graph.add("TrajectoryApplyOperator", 3, "Measure", operator=(both, 0), image=(picture, 0))
    graph.add("PreviewImage", 3, "Plot", images=(measured, "preview"))
    layout = graph.add("TrajectoryLossMeasurement", 4, "Layout", measurement=(measured, 0))
    colours = graph.add("TrajectoryLossColour", 4, "Colours", target="histogram", reference=(picture, 0))
    loss = graph.add(
        "TrajectoryLossSum", 4, "Layout and colours", loss_1=(layout, 0), weight_2=2.0, loss_2=(colours, 0)
    )
    return graph.add(
        "TrajectoryFlowChefSampler", 4, "Solver", strength=0.1, stop=0.5, loss=(loss, 0), vae=(loader, "VAE")
    )


def example_colour_guidance(graph):
    text_to_image(graph, "the sea with a sun and a red balloon on the right", sampler=layout_and_colours)
    graph.note(0, (
        "Two losses steer one run. **Layout** is a small grey copy of a painting; **Colours** is the histogram of the "
        "same painting, which says how much there is of each colour, but not where. The prompt of the steered run says "
        "nothing of the light.\n\nSet *weight_2* of **Layout and colours** to 0: the places stay, and the dusk is "
        "gone. Then give **Colours** a *target* mean or palette, and colours of your own."
    ))  # fmt: skip


EXAMPLES = {
    "FlowChef inpaint": example_inpaint,
    "FlowChef edit": example_edit,
    "FlowChef 4x super-resolution": example_super_resolution,
    "FlowChef deblur": example_deblur,
    "FlowChef colour guidance": example_colour_guidance,
}
