"""Records tests/parity/superdiff.json: python record_superdiff.py /path/to/super-diffusion

What one step of the authors' Stable Diffusion script (github.com/necludov/super-diffusion,
applications/images/clip_eval.py) makes of given predictions. The script cannot be imported (it loads its networks on a
GPU first), so the very statements of its branches "and" and "or" are cut out of the file and run.
"""

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

SCRIPT = "applications/images/clip_eval.py"
BRANCH = "args.method == 'and' or args.method == 'or'"
SHAPE = (3, 4, 5, 6)
# (method, guidance_scale, sigma, next sigma, lift, T, logp): the lift and logp of the script favour the second and the
# first prompt
SETTINGS = (
    ("and", 7.5, 9.0, 8.2, 0.0, 1.0, 0.0),
    ("and", 3.0, 1.3, 1.1, 5.0, 1.0, 0.0),
    ("or", 7.5, 9.0, 8.2, 0.0, 1.0, 0.0),
    ("or", 2.0, 0.5, 0.4, 0.0, 0.1, 1.5),
)
STEPS = 50
LOG_Q = ((0.4, -0.2, 1.0), (0.1, 0.3, -0.5))
"""Log-densities of the two prompts before the step."""
SEED = 11


def given():
    """State and predictions of the noise: x, v of the first prompt, of the second and without one; float64."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(4)]


def noise():
    """What the script draws from torch's global generator after SEED."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)


def branch(checkout):
    """The code of one step of AND and OR."""
    tree = ast.parse((Path(checkout) / SCRIPT).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == BRANCH]
    (step,) = (node for node in found if any(isinstance(part, ast.If) for part in node.body))
    return compile(ast.Module(step.body, []), SCRIPT, "exec")


def record(checkout):
    code, out = branch(checkout), []
    for method, scale, sigma, sigma_next, lift, temperature, logp in SETTINGS:
        x, first, second, none = given()
        logs = [torch.zeros(2, SHAPE[0], dtype=torch.float64) for _ in range(3)]
        logs[0][0], logs[1][0] = (torch.tensor(values) for values in LOG_Q)
        names = {
            "torch": torch, "wandb": SimpleNamespace(log=lambda values: None), "i": 0, "t": None, "lift": lift,
            "args": SimpleNamespace(
                method=method, guidance_scale=scale, num_inference_steps=STEPS, T=temperature, logp=logp),
            "sigma": torch.tensor(sigma, dtype=torch.float64), "latents": x.clone(),
            "dsigma": torch.tensor(sigma_next - sigma, dtype=torch.float64),
            "vel_obj": first, "vel_uncond": none, "bg_embeddings": None, "get_vel": lambda *_, v=second: (v, None),
            "ll_obj": logs[0], "ll_bg": logs[1], "kappa": logs[2],
        }  # fmt: skip
        torch.manual_seed(SEED)
        exec(code, names)  # noqa: S102 -- the reference
        out.append({
            "kappa": names["kappa"][1].tolist(), "first": (logs[0][1] - logs[0][0]).tolist(),
            "second": (logs[1][1] - logs[1][0]).tolist(), "sum": names["latents"].sum((1, 2, 3)).tolist(),
        })  # fmt: skip
    return out


if __name__ == "__main__":
    Path(__file__).with_name("superdiff.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
