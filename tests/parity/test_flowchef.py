"""FlowChef against the authors' sampler for pixels, by recorded numbers (record_flowchef.py): same to 1e-5."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trajectory.operators.blur import Blur
from trajectory.operators.masks import Mask
from trajectory.operators.measurement import Measurement
from trajectory.operators.resample import Downsample
from trajectory.samplers.flowchef import Steering, sample_flowchef

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("record_flowchef", HERE / "record_flowchef.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
DATA = json.loads((HERE / "flowchef.json").read_text())
SHAPE = (1, 3, recorder.SIZE, recorder.SIZE)


class CONST:
    """The host's name for flows."""


class Flow:
    inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=CONST()))

    def __call__(self, x, sigma, **_):
        return recorder.denoised(x, sigma.view(-1, 1, 1, 1))


def operator(name):
    if name == "box_inpaint":
        hidden = torch.zeros(1, *SHAPE[2:])
        low = (recorder.SIZE - recorder.BOX) // 2
        hidden[:, low : low + recorder.BOX, low : low + recorder.BOX] = 1
        return Mask(hidden)
    if name == "super_resolution":
        return Downsample(recorder.FACTOR)
    line = torch.arange(recorder.KERNEL) - recorder.KERNEL // 2 - 0.5  # half a pixel off, as theirs is
    line = torch.exp(-0.5 * (line / recorder.SPREAD) ** 2).flip(0)  # they correlate
    return Blur(line[:, None] * line, border="zero")


@pytest.mark.parametrize("name", recorder.RUNS)
def test_same_as_the_authors(name):
    problem, solver, n = recorder.RUNS[name]
    seen = operator(problem)
    picture = torch.from_numpy(recorder.picture()).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = seen.A(picture)
    measurement = Measurement(seen, y, 0.0, SHAPE)
    # Theirs is the gradient of a mean over y, so its size depends on that of y and on the operator's norm.
    strength = 2 * recorder.SCALE * seen.norm2(SHAPE) / y.numel()
    out = sample_flowchef(
        Flow(), recorder.start(), torch.tensor(recorder.levels(solver, n)), disable=True, strength=strength,
        steering=lambda *_: Steering((measurement.direction,)), steer_last=False, max_norm=0.0, solver=solver,
    )  # fmt: skip
    expected = torch.tensor(DATA[name])
    assert (out.flatten()[:: recorder.EVERY] - expected).abs().max() < 1e-5


def test_one_strength_serves_operators_of_any_size():
    """What is 500 in the authors' units is about 0.08 of the way for inpainting and for super-resolution."""
    shares = [
        2 * recorder.SCALE * seen.norm2(SHAPE) / seen.A(torch.zeros(SHAPE)).numel()
        for seen in map(operator, ("box_inpaint", "super_resolution"))
    ]
    assert shares == pytest.approx([0.0814, 0.0814], abs=1e-4)
