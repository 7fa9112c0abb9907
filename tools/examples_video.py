"""The examples of TRIP."""

FRAMES, SIZE = 8, 128
TEXT_ALONE = "text to video"
PLAYED = (
    "*Save Animated WEBP* plays in the editor; for a video file connect the frames to *Create Video* and *Save Video*."
)


class Trunk:
    """Begins with the picture that clips are made of: the eps miniature paints it, and "First frame" shows it.

    picture: its link. frames: the link of an empty clip.
    """

    def __init__(self, graph, caption, seed):
        self.graph = graph
        painter = graph.add("TrajectoryLoadMiniature", 0, "Painter", model="landscapes (eps)")
        texts = self.texts(0, painter, caption, "First frame caption")
        size, self.frames = self.empty("Size", 1), self.empty("Frames", FRAMES)
        self.picture = self.decode(1, painter, self.sample(0, "Paint", painter, texts, size, seed))
        graph.add("PreviewImage", 1, "First frame", images=self.picture)

    def empty(self, title, number):
        size = {"width": SIZE, "height": SIZE, "batch_size": number}
        return self.graph.add("EmptyLatentImage", 0, title, **size), 0

    def miniature(self, column, variant, title):
        picture = {} if variant == TEXT_ALONE else {"image": self.picture}
        return self.graph.add("TrajectoryTRIPMiniature", column, title, model=variant, **picture)

    def texts(self, column, loader, caption, title="Caption"):
        """{input of KSampler: link} for a caption."""
        words = {"positive": (title, caption), "negative": ("Negative", "")}
        return {
            name: (self.graph.add("CLIPTextEncode", column, title, clip=(loader, "CLIP"), text=text), 0)
            for name, (title, text) in words.items()
        }

    def sample(self, column, title, loader, texts, latents, seed=0, model=None):
        """The link of the latents of a run, by the loader's model where no other one is given.

        The last node of its column: a run's preview makes it taller.
        """
        run = self.graph.add(
            "KSampler", column, title, model=model or (loader, "MODEL"), latent_image=latents, **texts, seed=seed,
            steps=20, cfg=2.0, sampler_name="euler", scheduler="normal",
        )  # fmt: skip
        return run, 0

    def decode(self, column, loader, latents):
        return self.graph.add("VAEDecode", column, samples=latents, vae=(loader, "VAE")), 0

    def still(self, column, loader):
        """The link of the picture as a clip of the model's latents."""
        still = self.graph.add(
            "TrajectoryTRIPReferenceLatent", column, "Still clip", image=self.picture, vae=(loader, "VAE"),
            length=FRAMES,
        )  # fmt: skip
        return still, 0

    def play(self, column, loader, latents, title="Picture", measures="How true, how steady", prefix="clip"):
        """Save decoded latents as an animation, and measure it."""
        frames = self.decode(column, loader, latents)
        self.graph.add("SaveAnimatedWEBP", column, title, images=frames, filename_prefix=prefix)
        self.graph.add("TrajectoryTRIPVideoMetrics", column, measures, images=frames, reference=self.picture)


def example_animate(graph):
    trunk = Trunk(graph, "a dusk over green hills with a yellow balloon on the left", seed=4)
    loader = trunk.miniature(1, "TRIP", "Animator")
    texts = trunk.texts(2, loader, "a dusk over green hills, a yellow balloon on the left drifts right")
    trunk.play(3, loader, trunk.sample(2, "Sample", loader, texts, trunk.frames, seed=4))
    graph.note(1, (
        "A picture, and 8 frames in which the balloon drifts as the **Caption** says. The network of **Animator** sees "
        "the picture as one more frame, and the noise that leads back to the picture is fused with the noise that it "
        "finds: the first frame is the picture, as **How true, how steady** tells.\n\nConnect *Load Image* with a "
        "landscape of 128x128 in the place of the painted one, and say what moves: a balloon *rises*, *sinks* or "
        "*drifts left* or *right*, a boat *sails left* or *right*, clouds *drift left* or *right*, the sun or the moon "
        "*rises* or *sinks*; *slowly* moves them half as far. The *model* TRIP (no shortcut) shows what the fusion is "
        f"worth.\n\n{PLAYED}"
    ))  # fmt: skip


def example_noise_prior(graph):
    trunk = Trunk(graph, "a blue day over the desert with a red balloon on the left", seed=8)
    loader = trunk.miniature(1, TEXT_ALONE, "Video model")
    texts = trunk.texts(1, loader, "a blue day over the desert, a red balloon on the left drifts right")
    plain = trunk.sample(1, "Sample without", loader, texts, trunk.frames, seed=8)
    trunk.play(3, loader, plain, "Without", "Measures without", "without")
    prior = graph.add(
        "TrajectoryTRIPFitPrior", 2, "What the model knows", model=(loader, "MODEL"), latents=plain,
        positive=texts["positive"],
    )  # fmt: skip
    model = graph.add(
        "TrajectoryTRIPNoisePrior", 2, "Prior", model=(loader, "MODEL"), reference=trunk.still(2, loader),
        prior=(prior, 0),
    )  # fmt: skip
    drawn = trunk.sample(3, "Sample with", loader, texts, trunk.frames, seed=8, model=(model, 0))
    trunk.play(4, loader, drawn, measures="Measures with")
    graph.note(2, (
        "A video model that knows no picture, and one patch that makes it begin with one. **Without** is a clip of the "
        "**Caption**, **Picture** one of the same noise whose frames **Prior** draws to the painting, the less the "
        "further a frame is from the first and the lower the noise. How much, **What the model knows** has measured: "
        "it took the clip without, and compared at 12 noise levels what the model predicts with the first frame.\n\n"
        "With a video model of your own (AnimateDiff, Wan, Hunyuan) put **Prior** between it and the sampler and "
        "connect *Load Image*. To do without the measurement disconnect *prior* and set *motion*: more of it leaves "
        f"more to the model.\n\n{PLAYED}"
    ))  # fmt: skip


def example_train_fusion(graph):
    trunk = Trunk(graph, "a blue day over the desert with a red balloon on the left", seed=2)
    caption = "a blue day over the desert, a red balloon on the left drifts right"
    teacher = trunk.miniature(1, "TRIP", "In the place of your clips")
    clips = trunk.sample(
        1, "A clip", teacher, trunk.texts(1, teacher, caption, "What the clip shows"), trunk.frames, seed=2
    )
    loader = trunk.miniature(2, TEXT_ALONE, "Video model")
    texts = trunk.texts(2, loader, caption)
    begun = graph.add("TrajectoryTRIPLoadTNF", 2, "Begin with")
    trained = graph.add(
        "TrajectoryTRIPTrainTNF", 2, "Train", model=(loader, "MODEL"), positive=texts["positive"], clips=clips,
        steps=200, learning_rate=0.001, resume=(begun, 0),
    )  # fmt: skip
    graph.add("PreviewImage", 3, "Plot", images=(trained, "loss_curve"))
    graph.add("TrajectoryTRIPSaveTNF", 3, "Keep", tnf=(trained, "tnf"))
    model = graph.add(
        "TrajectoryTRIPApplyTNF", 3, "Apply", model=(loader, "MODEL"), tnf=(trained, "tnf"),
        reference=trunk.still(3, loader),
    )  # fmt: skip
    trunk.play(4, loader, trunk.sample(3, "Sample", loader, texts, trunk.frames, seed=2, model=(model, 0)))
    graph.note(2, (
        "A small transformer learns how much of the picture and how much of the **Video model** each pixel of each "
        "frame takes; the model itself stays as it is. **Plot** is its loss, **Keep** writes it into models/trip, and "
        "**Begin with** loads what was kept.\n\nTwo hundred steps on one clip show how the nodes go together. For use "
        "connect clips of your own through *VAE Encode* in the place of **A clip**, several in one batch with the "
        "*length* of each, and train for thousands of steps. **Begin with** serves this model; for another one "
        f"disconnect *resume*.\n\n{PLAYED}"
    ))  # fmt: skip


EXAMPLES = {
    "Animate a picture (TRIP)": example_animate,
    "Image noise prior": example_noise_prior,
    "Train a temporal noise fusion": example_train_fusion,
}
