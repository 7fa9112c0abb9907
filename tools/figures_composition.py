"""The pictures of the help pages of SuperDiff."""

from types import SimpleNamespace

import torch
from drawing import chart, example, painted, sheet, studio
from trajectory.samplers import superposition

MEANS = torch.tensor([[[-2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, -2.0]]])
STD = 0.5
PAIRS = (
    ("a dawn with a moon, a white tree on the left", "green hills, a yellow house on the right"),
    ("a blue day with a sun, a red house on the left", "green hills, three blue trees in the middle"),
    ("a blue day with a sun, three red trees in the middle", "green hills, three green balloons on the right"),
    ("a white noon, three red trees in the middle", "a desert, two green balloons on the left"),
)
"""Prompts for SuperDiff AND, of which an average of the predictions loses something."""
COMPOSED = {
    "Combine": {"Superposition.mode": "average", "Superposition.integrator": "ode"},
    "average": {"Superposition.mode": "average"},
    "AND": {"Superposition.mode": "AND"},
}
"""The average without noise is the host's Conditioning (Combine) under euler."""


def logits(x, sigma):
    """log of each Gaussian of the two mixtures at x [B, 2], but for a constant: [2, B, 2]."""
    return -(x[:, None] - MEANS[:, None]).square().sum(-1) / (2 * (STD**2 + sigma**2))


class Mixtures:
    """The `model` of a sampler function for two mixtures of Gaussians, whose predictions are known."""

    inner_model = SimpleNamespace(predict_components=None)

    def __call__(self, x, sigma, model_options, seed):
        mean = torch.softmax(logits(x, float(sigma[0])), -1) @ MEANS
        denoised = mean + STD**2 / (STD**2 + sigma[0] ** 2) * (x - mean)
        return torch.cat([denoised, denoised])


def sampler():
    """Tracked against true log-densities under OR."""
    series = [("exact", [-12, 12], [-12, 12])]
    for steps in (25, 50, 200):
        sigmas = torch.cat([torch.linspace(20 ** (1 / 7), 0.02 ** (1 / 7), steps) ** 7, torch.zeros(1)])
        x = 20 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        record = superposition.Record()
        out = superposition.sample_superdiff(
            Mixtures(), x, sigmas, {"seed": 0}, disable=True, mode="OR", record=record)  # fmt: skip
        first, second = torch.logsumexp(logits(out, 0.0), -1)
        tracked = record.run.log_densities[-1]
        points = sorted(zip((first - second).tolist(), (tracked[:, 0] - tracked[:, 1]).tolist(), strict=True))
        series.append((f"{steps} steps", *zip(*points, strict=True)))
    return chart(series, "Log-densities of two prompts along the way", "true log q1 - log q2 (nats)", "tracked (nats)")


def guider():
    rows = []
    for label, settings in COMPOSED.items():
        texts = [{"Light and tree.text": first, "Ground and house.text": second} for first, second in PAIRS]
        rows.append([(painted("SuperDiff AND", {**settings, **pair})[0], label) for pair in texts])
    return sheet(rows)


def models():
    """A bias this large is one model alone."""
    parts = {"eps model: dusk, houses": "1e6", "open model: snow, houses": "0, 1e6", "AND of both": None}
    row = []
    for label, bias in parts.items():
        alone = {"Superposition.mode": "OR", "Superposition.bias": bias} if bias else {}
        row.append((painted("SuperDiff two models", alone)[0], label))
    return sheet([row])


def log():
    return studio().pictures(example("SuperDiff OR"))["Plot"][0]


FIGURES = {
    "TrajectorySuperDiffGuider": guider,
    "TrajectorySuperDiffMultiModelGuider": models,
    "TrajectorySuperDiffSampler": sampler,
    "TrajectorySuperDiffLog": log,
}
