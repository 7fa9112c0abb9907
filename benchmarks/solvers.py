"""Distance to the exact solution per network call: this pack's solvers against every deterministic sampler of ComfyUI.

    python -m trajectory.benchmarks.solvers /path/to/ComfyUI [--all]

The models are exact denoisers of Gaussian mixtures (FAMILIES: few to many modes, 3 to 128 dimensions, flat to 1/f
spectra), so that no network's error hides the solver's. Every sampler starts from the same noise on the same schedule
of the host, with as many steps as its calls allow, and its end is measured against a Runge-Kutta reference of 1500
steps in units of the data's standard deviation; what is printed is the median over all items. Takes about ten minutes.
"""

import argparse
import sys
import types
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from ..samplers import angular, bdia, deis, dpm_solver, momentum, pndm
from ..samplers.model import Schedule, path_of
from ..samplers.plan import execute

BUDGETS = (5, 8, 10, 15, 20)
SETTINGS = (("VE", "karras", 0), ("VE", "normal", 0), ("flow", "simple", 1), ("flow", "simple", 3))
"""Path, the host's scheduler, shift of a flow."""
SEEDS, ITEMS = range(200, 204), 16

RIVALS = ("dpmpp_2m", "uni_pc", "deis")
RECOMMENDED = "Angular"
OURS = {
    RECOMMENDED: (angular.sample_angular, {}),
    "DPM-Solver": (dpm_solver.sample_dpm_solver, {}),
    "DPM-Solver, order 3, unic, basis sigma": (
        dpm_solver.sample_dpm_solver, {"order": 3, "corrector": "unic", "basis": "sigma"}),
    "DPM-Solver as UniPC-3": (dpm_solver.sample_dpm_solver, {
        "order": 3, "corrector": "unic", "variant": "midpoint", "basis": "-log sigma", "lower_order_final": "on",
        "guard": 0.0}),
    "DEIS": (deis.sample_deis, {}),
    "DEIS, logrhoAB": (deis.sample_deis, {"variant": "logrhoAB"}),
    "PNDM": (pndm.sample_pndm, {}),
    "Momentum": (momentum.sample_momentum, {}),
    "BDIA": (bdia.sample_bdia, {}),
}  # fmt: skip
"""Name -> (sampler, options): the nodes at their defaults, and settings that their help pages name."""


@dataclass(frozen=True)
class Family:
    """Mixtures whose modes' means and deviations follow a spectrum f^-power, of unit mean variance before `spread`."""

    dimensions: int
    modes: int
    mode_std: float
    power: float
    spread: float


FAMILIES = (
    Family(48, 12, 0.3, 0.5, 0.9), Family(16, 8, 0.3, 0.0, 1.0), Family(3, 3, 0.35, 0.0, 1.0),
    Family(64, 64, 0.1, 0.5, 1.0), Family(64, 1, 1.0, 0.75, 0.3), Family(128, 24, 0.5, 0.25, 0.7),
)  # fmt: skip


class Mixture:
    """The posterior mean E[x0 | x] of a Gaussian mixture, in float64."""

    def __init__(self, family, seed, flow):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.arange(1, family.dimensions + 1, dtype=torch.float64) ** -family.power
        scale = scale / scale.square().mean().sqrt()
        shape = family.modes, family.dimensions
        self.means = torch.randn(shape, generator=generator, dtype=torch.float64) * scale * family.spread
        widths = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        self.variances = (widths * family.mode_std * scale) ** 2
        self.log_shares = torch.log_softmax(torch.randn(shape[0], generator=generator, dtype=torch.float64) / 2, 0)
        self.flow = flow

    def __call__(self, x, sigma, **_):
        sigma = sigma.double().view(-1, 1, 1)
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        total = alpha**2 * self.variances + sigma**2
        residual = x.double().unsqueeze(1) - alpha * self.means
        log_odds = self.log_shares - (residual**2 / total + total.log()).sum(-1) / 2
        modes = self.means + alpha * self.variances / total * residual
        return (log_odds.softmax(-1).unsqueeze(-1) * modes).sum(1)


class Handed:
    """What a host hands to a sampler function: a denoiser with its schedule behind it. Counts its calls."""

    def __init__(self, mixture, model_sampling):
        patcher = types.SimpleNamespace(get_model_object=lambda _: model_sampling, model_options={})
        base = types.SimpleNamespace(model_sampling=model_sampling)
        self.inner_model = types.SimpleNamespace(
            model_patcher=patcher, inner_model=base, model_sampling=model_sampling
        )
        self.model_patcher, self.mixture, self.calls = patcher, mixture, 0

    def __call__(self, x, sigma, **_):
        self.calls += 1
        return self.mixture(x, sigma).to(x.dtype)


@dataclass
class Problem:
    """A schedule of the host, mixtures with starts x and exact ends."""

    name: str
    model_sampling: object
    scheduler: str
    cases: list

    def sigmas(self, steps):
        import comfy.samplers

        return comfy.samplers.calculate_sigmas(self.model_sampling, self.scheduler, steps)


def problems():
    """The four settings of the table; needs the host on the import path."""
    import comfy.model_sampling as host

    class Eps(host.ModelSamplingDiscrete, host.EPS):
        pass

    class Flow(host.ModelSamplingDiscreteFlow, host.CONST):
        pass

    for kind, scheduler, shift in SETTINGS:
        model_sampling = Flow() if shift else Eps()
        if shift:
            model_sampling.set_parameters(shift=float(shift))
        problem = Problem(f"{kind}, {scheduler}{f', shift {shift}' if shift else ''}", model_sampling, scheduler, [])
        first = float(problem.sigmas(10)[0])
        for family in FAMILIES:
            for seed in SEEDS:
                mixture = Mixture(family, seed, bool(shift))
                noise = torch.Generator().manual_seed(1000 + seed)
                x = first * torch.randn(ITEMS, family.dimensions, generator=noise, dtype=torch.float64)
                problem.cases.append((mixture, x, exact_end(mixture, path_of(model_sampling), x, first)))
        yield problem


def exact_end(mixture, path, x, first, steps=1500, last=1e-4):
    """The end of the exact flow from `x` at `first`: classical Runge-Kutta in even log-SNR, then the denoiser."""
    finite = min(first, 0.9995) if path.name == "flow" else first
    sigmas = [float(s) for s in path.sigma(np.linspace(path.lam(finite), path.lam(last), steps + 1))]
    if finite < first:
        sigmas = [*np.linspace(first, finite, 20), *sigmas[1:]]
    plan = deis.plan_deis(sigmas, Schedule(path), variant="rhoRK", rk="rk4")
    end = execute(plan, mixture, x, torch.tensor(sigmas, dtype=torch.float64), disable=True)
    return mixture(end, torch.full((len(x),), last))


def run(sampler, options, problem, case, steps, seed=0, items=None):
    """(end, network calls)."""
    mixture, x, _ = case
    model = Handed(mixture, problem.model_sampling)
    arguments = {"extra_args": {"seed": seed, "model_options": {}}, "callback": None, "disable": True}
    end = sampler(model, x[:items].float(), problem.sigmas(steps), **arguments, **options)
    return end, model.calls


def median_error(sampler, options, problem, budget):
    """The median distance with at most `budget` calls; None where not even one step fits in."""
    for steps in range(budget, 0, -1):
        if run(sampler, options, problem, problem.cases[0], steps, items=1)[1] <= budget:
            break
    else:
        return None
    errors = []
    for case in problem.cases:
        end, _ = run(sampler, options, problem, case, steps)
        errors.append((end.double() - case[2]).square().mean(-1).sqrt() / case[2].std())
    return float(torch.cat(errors).median())


def host_samplers():
    """Name -> (sampler, options) of the host's; those that need the guidance of two models (cfg_pp) stay out."""
    import comfy.samplers

    for name in comfy.samplers.SAMPLER_NAMES:
        if "cfg_pp" not in name:
            sampler = comfy.samplers.sampler_object(name)
            yield name, (sampler.sampler_function, sampler.extra_options)


def is_deterministic(sampler, options, problem):
    """Whether the seed changes nothing."""
    ends = [run(sampler, options, problem, problem.cases[0], 8, seed, items=2)[0] for seed in (1, 2)]
    return torch.equal(*ends)


def measure():
    """{setting: {name: [error by budget]}} of the host's deterministic samplers and of OURS."""
    results = {}
    for problem in problems():
        rows = results[problem.name] = {}
        theirs = {n: s for n, s in host_samplers() if is_deterministic(*s, problem)}
        for name, (sampler, options) in {**theirs, **OURS}.items():
            rows[name] = [median_error(sampler, options, problem, budget) for budget in BUDGETS]
            print(f"  {problem.name}: {name}", file=sys.stderr)
    return results


def summary(results):
    """The README's table: our recommended default, the best of ours, the host's best and its usual three."""
    lines = [f"| schedule | calls | **{RECOMMENDED}** | best of this pack | best of ComfyUI | {' | '.join(RIVALS)} |"]
    lines.append("|---" * (5 + len(RIVALS)) + "|")
    for setting, rows in results.items():
        for i, budget in enumerate(BUDGETS):
            errors = {name: row[i] for name, row in rows.items() if row[i] is not None}
            ours = min(OURS, key=lambda name, errors=errors: errors.get(name, np.inf))
            theirs = min((n for n in errors if n not in OURS), key=errors.get)
            cells = [
                setting, str(budget), f"**{errors[RECOMMENDED]:.4f}**", f"{errors[ours]:.4f} ({ours})",
                f"{errors[theirs]:.4f} ({theirs})", *(f"{errors[name]:.4f}" for name in RIVALS),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def everything(results):
    """All samplers, one block a setting."""
    lines = []
    for setting, rows in results.items():
        lines.append(f"\n{setting}: error with {', '.join(map(str, BUDGETS))} calls")
        for name, row in sorted(rows.items(), key=lambda item: item[1][2] or np.inf):
            lines.append(f"{name:42s}" + "".join(f"{e:9.4f}" if e is not None else "        -" for e in row))
    return "\n".join(lines)


def start_host(checkout):
    """Put a ComfyUI checkout on the import path, on the CPU."""
    sys.path.insert(0, checkout)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", help="a ComfyUI checkout whose requirements are installed")
    parser.add_argument("--all", action="store_true", help="print every sampler, too")
    arguments = parser.parse_args()
    start_host(arguments.comfyui)
    warnings.filterwarnings("ignore")  # the host's own, of adaptive samplers on float32
    results = measure()
    print(summary(results))
    if arguments.all:
        print(everything(results))


if __name__ == "__main__":
    main()
