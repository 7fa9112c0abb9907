"""Records tests/parity/flowchef.json: python record_flowchef.py /path/to/FlowChef

Runs the authors' sampler for pixels, `sample_ode_generative` of inverseproblems/pixel_models/rfpp (github.com/
FlowChef/FlowChef), on an analytic flow and stores every 31st element of its results. What it imports beside torch
is for training and files and is stood in for.
"""

import json
import math
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE, SCALE, EVERY = 64, 500.0, 31
BOX, FACTOR, KERNEL, SPREAD = 20, 4, 11, 5.0
RUNS = {  # name: (operator, solver, the authors' N)
    "inpaint": ("box_inpaint", "euler", 20),
    "super-resolution": ("super_resolution", "euler", 20),
    "deblur": ("deblur", "euler", 20),
    "inpaint, heun": ("box_inpaint", "heun", 19),
}


def picture():
    """8-bit test picture [H, W, 3]."""
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = [np.sin(7 * row + 3 * k) * np.cos(5 * column + k) + (row + column > 1) for k in range(3)]
    return np.uint8(np.clip(np.stack(waves, -1) * 60 + 110, 0, 255))


def start():
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * (1 - 1e-5)


def denoised(x, s):
    """Posterior mean of independent Gaussian pixels whose mean is a ramp and whose deviation is 0.5."""
    mean = torch.linspace(-0.6, 0.6, SIZE, device=x.device)
    alpha = 1 - s
    return mean + alpha * 0.25 / (alpha**2 * 0.25 + s**2) * (x - alpha * mean)


class Velocity(torch.nn.Module):
    """What the authors' sampler asks of a network."""

    config = {"label_dim": 0}

    def forward(self, x, t, label):
        s = t.view(-1, 1, 1, 1)
        return (x - denoised(x, s)) / s


def levels(solver, n):
    """The authors' noise levels."""
    n = (n + 1) // 2 if solver == "heun" else n
    return [1 - 1e-5, *(i / n for i in reversed(range(1, n))), 0.0]


def stand_in(name, **names):
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(names)
    return module


class Compose:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, image):
        for step in self.steps:
            image = step(image)
        return image


def to_tensor():
    return lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def normalize(mean, std):
    return lambda image: (image - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def record(checkout):
    sys.path.insert(0, str(Path(checkout) / "inverseproblems/pixel_models/rfpp"))
    transforms = stand_in("torchvision.transforms", Compose=Compose, ToTensor=to_tensor, Normalize=normalize)
    saving = stand_in("torchvision.utils", save_image=lambda *_: None)
    stand_in("torchvision", transforms=transforms, utils=saving)
    stand_in("matplotlib", pyplot=stand_in("matplotlib.pyplot"))
    stand_in("utils", straightness=None, parse_config=None, save_traj=None)
    stand_in("network_edm", SongUNet=None, DhariwalUNet=None, EDMPrecondVel=None)
    torch.cuda.reset_peak_memory_stats = torch.cuda.max_memory_allocated = lambda: 0
    import generate_inverseproblems_flowchef as authors
    from inverse_operators import SamplingConfig, get_inverse_operator

    authors.arg = types.SimpleNamespace(likebaseline=False, gradient_scale=SCALE)
    config = SamplingConfig()
    config.mask_size, config.scale_factor, config.kernel_size, config.blur_sigma = BOX, FACTOR, KERNEL, SPREAD
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "picture.png")
        Image.fromarray(picture()).save(file)
        for name, (config.inverse_problem, solver, n) in RUNS.items():
            operator = get_inverse_operator(config, device="cpu")
            states, *_ = authors.sample_ode_generative(
                Velocity(), start(), n, use_tqdm=False, solver=solver, operator=operator, ref_img_path=file,
                output_dir=folder)  # fmt: skip
            results[name] = [round(value, 7) for value in states[-1].flatten()[::EVERY].tolist()]
    assert all(math.isfinite(value) for values in results.values() for value in values)
    return results


if __name__ == "__main__":
    Path(__file__).with_name("flowchef.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
