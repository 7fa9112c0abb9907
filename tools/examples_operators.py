"""The examples of operators and measurements."""

from graphs import text_to_image


def painting(graph):
    """The picture of the common trunk as a link."""
    return next(node for node in graph.nodes if node["type"] == "VAEDecode"), 0


def save(graph, column, measured):
    """Save the preview of a measurement as the picture of the example."""
    graph.add("SaveImage", column, "Picture", images=(measured, "preview"), filename_prefix="measurement")


def example_describe_a_degradation(graph):
    text_to_image(
        graph, "a blue day over the sea with a sun, two white boats in the middle and a red balloon on the right",
        seed=2, title="Original",
    )  # fmt: skip
    picture = painting(graph)
    soften = graph.add("TrajectoryOperatorBlur", 4, "Blur", kernel="motion", length=9, angle=20.0)
    shrink = graph.add("TrajectoryOperatorDownsample", 4, "Fewer pixels", factor=2, kernel="area")
    both = graph.add("TrajectoryOperatorCompose", 4, "First the blur", outer=(shrink, 0), inner=(soften, 0))
    measured = graph.add("TrajectoryApplyOperator", 5, "Degrade", operator=(both, 0), image=picture, sigma_y=0.02)
    save(graph, 5, measured)
    resized = graph.add(
        "ImageScale", 6, "Resize", image=(measured, "preview"), upscale_method="bicubic", width=128, height=128,
        crop="disabled",
    )  # fmt: skip
    owned = graph.add(
        "TrajectoryMeasurementFromImage", 6, "The same of a picture file", image=(measured, "preview"),
        operator=(both, 0), width=128, height=128, sigma_y=0.02,
    )  # fmt: skip
    graph.add(
        "TrajectoryMeasurementReport", 6, "What resizing is worth", measurement=(owned, 0), image=(resized, 0),
        reference=picture,
    )  # fmt: skip
    graph.add(
        "TrajectoryMeasurementReport", 5, "The original", measurement=(measured, "measurement"), image=picture,
        reference=picture,
    )  # fmt: skip
    graph.note(4, (
        "A degradation, described: a moving camera, then half the pixels along each side, and noise. Its *measurement* "
        "is what samplers steer by, such as *FlowChef Sampler*.\n\nThe two reports: the original leaves "
        "just the noise as residual; a plainly resized picture leaves more, and stands far from the original.\n\n"
        "For a small picture of your own connect *Load Image* to **The same of a picture file**."
    ))  # fmt: skip


def example_two_measurements_in_one(graph):
    text_to_image(
        graph, "a dusk over green hills with a sun, two green trees on the right and a white balloon on the left",
        seed=1, title="Original",
    )  # fmt: skip
    picture = painting(graph)
    nothing = graph.add("SolidMask", 4, "Black", value=0.0, width=128, height=128)
    white = graph.add("SolidMask", 4, "White", value=1.0, width=40, height=40)
    hole = graph.add(
        "MaskComposite", 4, "Hole", destination=(nothing, 0), source=(white, 0), x=44, y=44, operation="add"
    )
    known = graph.add("TrajectoryOperatorMask", 5, "What is known", mask=(hole, 0), grow=4)
    grey = graph.add("TrajectoryOperatorColour", 5, "Grey", matrix="grayscale")
    both = graph.add("TrajectoryOperatorStack", 5, "Both", a=(known, 0), b=(grey, 0), weight_b=0.5)
    measured = graph.add("TrajectoryApplyOperator", 6, "Measure both", operator=(both, 0), image=picture)
    parts = {
        title: graph.add("TrajectoryApplyOperator", 6, title, operator=(operator, 0), image=picture)
        for title, operator in (("With a hole", known), ("In grey", grey))
    }
    save(graph, 6, parts["With a hole"])
    graph.add("PreviewImage", 6, "Plot", images=(parts["In grey"], "preview"))
    for title, seen in parts.items():
        graph.add(
            "TrajectoryMeasurementReport", 7, f"{title}: report", measurement=(measured, 0), image=(seen, "preview"),
            reference=picture,
        )  # fmt: skip
    graph.note(7, (
        "Two measurements of one picture: it has colours but for a **Hole**, and a grey copy knows the hole, too. "
        "**Both** together leave just the colours in the hole open. The reports tell that neither picture alone agrees "
        "with both.\n\n*weight_b* says how much the grey copy counts. Draw a mask of your own in *Load Image (as "
        "Mask)*; white is unknown."
    ))  # fmt: skip


def example_codecs_and_scanners(graph):
    nodes = text_to_image(
        graph, "a dawn over the snow with a sun, one red house in the middle and a yellow balloon on the right", seed=2,
        title="Original",
    )  # fmt: skip

    def seen(column, title, operator, picture):
        return graph.add("TrajectoryApplyOperator", column, title, operator=(operator, 0), image=picture)

    def shown(column, *measured):
        graph.add("PreviewImage", column, "Plot", images=(seen(column, *measured), "preview"))

    picture = painting(graph)
    save(graph, 4, seen(4, "As a file", graph.add("TrajectoryOperatorJPEG", 4, "JPEG", quality=8), picture))
    shown(4, "In 8 levels", graph.add("TrajectoryOperatorQuantise", 4, "Few bits", bits=3), picture)
    shown(5, "Overexposed", graph.add("TrajectoryOperatorClip", 5, "Clip", gain=2.0), picture)
    radial = graph.add(
        "TrajectoryOperatorFourierMask", 5, "MRI", pattern="radial", acceleration=4.0, centre_fraction=0.04
    )
    shown(5, "Its spectrum in lines", radial, picture)
    shown(6, "Its spectrum without phase", graph.add("TrajectoryOperatorPhaseRetrieval", 6, "Diffraction"), picture)
    shown(6, "Its sinogram", graph.add("TrajectoryOperatorRadon", 6, "CT", views=60), picture)
    four = graph.add("EmptySD3LatentImage", 7, "Four frames", width=128, height=128, batch_size=4)
    sigmas = graph.add(
        "BasicScheduler", 7, "Fewer steps", model=(nodes["loader"], 0), scheduler="simple", steps=6, denoise=1.0
    )
    run = graph.add(
        "SamplerCustomAdvanced", 7, "Sample the frames", noise=(nodes["noise"], 0), guider=(nodes["guider"], 0),
        sampler=(nodes["sampler"], 0), sigmas=(sigmas, 0), latent_image=(four, 0),
    )  # fmt: skip
    frames = graph.add("VAEDecode", 7, samples=(run, 0), vae=(nodes["loader"], "VAE"))
    shown(8, "Two of four", graph.add("TrajectoryOperatorTemporal", 8, "Slow camera"), (frames, 0))
    graph.note(4, (
        "What codecs, cameras and scanners keep of a picture, as operators. A sampler that steers by their "
        "measurements looks for a picture that they would have seen alike.\n\nSpectra are shown by their logarithm, "
        "frequency 0 in the middle; in a sinogram each row is a direction. **Slow camera** takes a batch for a video; "
        "its four pictures stand in for frames here.\n\nFor a JPEG file of your own set *quality* to that of the "
        "file and connect *Load Image* to *Measurement From Image*."
    ))  # fmt: skip


EXAMPLES = {
    "Describe a degradation": example_describe_a_degradation,
    "Two measurements in one": example_two_measurements_in_one,
    "Codecs and scanners": example_codecs_and_scanners,
}
