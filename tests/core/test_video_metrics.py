"""The measures of a video against loops over its frames, and against published colours."""

import numpy as np
import pytest
import torch
from trajectory.restoration import video_metrics

# CIELAB of sRGB's corners under D65, as colour tables print them.
LAB = {
    (0, 0, 0): (0, 0, 0), (1, 1, 1): (100, 0, 0), (1, 0, 0): (53.24, 80.09, 67.20), (0, 0, 1): (32.30, 79.19, -107.86),
}  # fmt: skip


def video(count, height=7, width=10):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def flat(colour, count=1):
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(count, 3, 5, 8)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_differences_are_those_of_neighbours(count):
    frames = video(count)
    f = frames.double().numpy()
    steps = [np.abs(f[i + 1] - f[i]).mean() for i in range(count - 1)]
    bends = [np.abs(f[i - 1] - 2 * f[i] + f[i + 1]).mean() for i in range(1, count - 1)]
    assert video_metrics.adjacent_difference(frames) == pytest.approx(np.mean(steps), rel=1e-5)
    assert video_metrics.jitter(frames) == pytest.approx(np.mean(bends) if bends else 0.0, rel=1e-5)


def test_one_frame_has_no_motion_and_is_consistent():
    assert video_metrics.adjacent_difference(video(1)) == video_metrics.jitter(video(1)) == 0
    assert video_metrics.frame_consistency(torch.ones(1, 5)) == 100


@pytest.mark.parametrize("colour", LAB)
@pytest.mark.parametrize("other", LAB)
def test_the_drift_of_a_colour_is_its_distance_in_lab(colour, other):
    distance = np.linalg.norm(np.subtract(LAB[colour], LAB[other]))
    frames = torch.cat([flat(colour, 2), flat(other, 2)])  # half of them have drifted
    assert video_metrics.colour_drift(frames, flat(other)) == pytest.approx(distance / 2, abs=0.02)


def test_the_drift_is_of_mean_colours_not_of_what_moves():
    reference = video(1)
    assert video_metrics.colour_drift(reference.roll(3, dims=-1), reference) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("count", [None, 1, 3, 20])
def test_consistency_is_the_mean_cosine_with_the_first(count):
    embeddings = video(6).flatten(1) - 0.5
    e = embeddings.double().numpy()
    others = e[1:] if count is None else e[1 : 1 + count]
    cosines = [np.dot(e[0], other) / np.linalg.norm(e[0]) / np.linalg.norm(other) for other in others]
    assert video_metrics.frame_consistency(embeddings, count) == pytest.approx(100 * np.mean(cosines), rel=1e-4)
