"""DEIS: exponential integrators with the polynomial in the model's own time (Zhang & Chen 2023, arXiv 2204.13902).

With rho = sigma/alpha the ODE is dy/drho = eps in y = x/alpha, and each method is a choice of the polynomial's
variable, or a classical table. On a flow the velocity form dx/dsigma = d is the same without the division by alpha.
"""

from .classical import ADAMS_BASHFORTH, TABLEAUS, UniformIntegrator, plan_runge_kutta
from .integrator import Integrator, plan_multistep, usable
from .plan import Plan, check_choices, plan_sampler
from .weights import basis_function

VARIANTS = {
    "tAB": {"noise": "model time", "derivative": "model time"},
    "rhoAB": {"noise": "sigma/alpha", "derivative": "sigma"},
    "logrhoAB": {"noise": "logSNR", "derivative": "logSNR"},
    "iPNDM": None,
    "rhoRK": None,
}
"""Method -> variable of its polynomial by prediction; None for those with fixed weights."""

FLOW_FORMS = ("velocity", "noise")


def plan_deis(sigmas, schedule, *, variant="tAB", order=3, rk="heun", flow_form="velocity", tau=0.0, guard=6.0):
    """Plan of DEIS for the noise levels `sigmas` (Zhang & Chen 2023, algorithm 1 and section 3.3).

    variant: one of VARIANTS. order: degree of the polynomial, 0-4: order + 1 predictions, so that the local error is
    O(h^(order + 2)). rk: the table of 'rhoRK', whose stages are further calls. flow_form: what is interpolated on a
    flow; the VE path has the noise alone. tau: as in `dpm_solver`, in the noise form. guard: see
    `integrator.Integrator.guarded`. Raises ValueError for options that exclude each other.
    """
    check_options(variant, order, rk, flow_form, tau)
    path = schedule.path
    prediction = "noise" if tau > 0 or (path.name == "flow" and flow_form == "noise") else "derivative"
    sigmas, plan = usable(sigmas, path, tau), Plan()
    if variant == "rhoRK":
        plan_runge_kutta(Integrator(plan, path, None, prediction), sigmas, TABLEAUS[rk])
        return plan
    if variant == "iPNDM":
        integrator = UniformIntegrator(plan, path, basis_function("-log sigma", schedule), prediction)
    else:
        u = basis_function(VARIANTS[variant][prediction], schedule)
        integrator = Integrator(plan, path, u, prediction, tau=tau, guard=guard)
    plan_multistep(integrator, sigmas, [order + 1] * max(len(sigmas) - 1, 0), "ramp", correct=False)
    return plan


sample_deis = plan_sampler(plan_deis)


def check_options(variant, order, rk, flow_form, tau):
    """Raise ValueError with the option, its value and the fix: unknown words, options that exclude each other."""
    choices = {
        "variant": (variant, VARIANTS), "order": (order, range(len(ADAMS_BASHFORTH))), "rk": (rk, TABLEAUS),
        "flow_form": (flow_form, FLOW_FORMS),
    }  # fmt: skip
    check_choices(choices)
    if tau < 0:
        raise ValueError(f"tau is {tau}; it is the strength of the noise, 0 (none) or more")
    if tau > 0 and variant in ("iPNDM", "rhoRK"):
        raise ValueError(f"tau is {tau}, but variant {variant} has no noisy form; set tau 0, or variant to tAB")
