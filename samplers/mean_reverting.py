"""MR Sampler: solvers of mean-reverting diffusion (Li et al. 2025, arXiv 2502.07856) as a preset of DPM-Solver.

A mean-reverting state x = mu + alpha (x0 - mu) + sigma n is an ordinary one in y = (x - mu)/alpha, with the noise level
sigma/alpha and the clean picture x0 - mu. In these coordinates the paper's formulas are the exponential integrators of
DPM-Solver (ODE) and of its reverse SDE, so what is left of the sampler is the choice of options.
"""

from .dpm_solver import plan_dpm_solver
from .plan import check_choices, plan_sampler

EQUATIONS = {"ode": 0.0, "sde": 1.0}
"""Equation -> tau."""

PREDICTIONS = ("data", "noise")


def plan_mean_reverting(sigmas, schedule, *, equation="ode", order=2, prediction="data"):
    """Plan of MR-ODE-k or MR-SDE-k on the noise levels sigma/alpha of the mean-reverting model.

    equation: one of EQUATIONS. order: 1-3. prediction: 'data' or 'noise'. As in `plan_dpm_solver`, order 3 is the exact
    three-node polynomial, where the authors' lacks a factor 2. Raises ValueError for unknown words.
    """
    check_options(equation, order, prediction)
    return plan_dpm_solver(sigmas, schedule, order=order, prediction=prediction, tau=EQUATIONS[equation])


sample_mean_reverting = plan_sampler(plan_mean_reverting)


def check_options(equation, order, prediction):
    """Raise ValueError with the option, its value and the fix."""
    choices = {
        "equation": (equation, EQUATIONS), "order": (order, (1, 2, 3)), "prediction": (prediction, PREDICTIONS),
    }  # fmt: skip
    check_choices(choices)
