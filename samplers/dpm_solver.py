"""DPM-Solver and DPM-Solver++, multistep and singlestep, in any prediction, on any path (Lu et al. 2022a, 2022b).

The two methods differ in where the prediction is known: at the past points of SIGMAS (multistep), or at points inside
the step that SIGMAS itself supplies (singlestep).
"""

from .integrator import STARTS, Integrator, plan_multistep, record_step, usable
from .plan import Plan, check_choices, plan_sampler
from .weights import BASES, VARIANTS, basis_function

METHODS = ("multistep", "singlestep")
CORRECTORS = ("none", "unic")
LOWER_ORDER_FINAL = ("auto", "on", "off")
AUTO_BASIS = {"data": "logSNR", "noise": "logSNR", "derivative": "sigma"}


def plan_dpm_solver(
    sigmas, schedule, *, method="multistep", order=2, prediction="data", basis="auto", variant="taylor",
    lower_order_final="auto", start="ramp", corrector="none", tau=0.0, guard=6.0,
):  # fmt: skip
    """Plan of DPM-Solver for the noise levels `sigmas` (Lu et al. 2022a, 2022b; SA-Solver's noise, Xue et al. 2023).

    method: 'multistep' reuses past predictions, 'singlestep' spends the sigmas of SIGMAS as stages; both cost one call
    an interval. order: 1-4 (singlestep 1-3). prediction: 'data' (the ++ form), 'noise' or 'derivative'. basis: the
    variable of the interpolation polynomial; 'auto' is logSNR, sigma for the derivative. variant: factor on two-node
    steps, see `weights.VARIANTS`. lower_order_final: lower the order towards the end ('auto': below 10 steps).
    start: how the first steps of a multistep method run, before it has a history: 'ramp' 1, 2, ..., 'rk' singlesteps
    with inserted calls, 'euler'. corrector: 'unic' (Zhao et al. 2023). tau: 0 ODE, 1 reverse SDE. guard: lower the
    order while the weights' kappa is larger (0 = never).

    The official multistep order 3 lacks a factor 2 in its second difference and converges with order 2; this one is
    the exact three-node polynomial. Raises ValueError for options that exclude each other.
    """
    check_options(method, order, prediction, basis, variant, lower_order_final, start, corrector, tau)
    u = basis_function(AUTO_BASIS[prediction] if basis == "auto" else basis, schedule)
    sigmas = usable(sigmas, schedule.path, tau)
    plan = Plan()
    integrator = Integrator(plan, schedule.path, u, prediction, variant, tau, guard)
    if method == "singlestep":
        _plan_singlestep(integrator, sigmas, order)
    else:
        plan_multistep(
            integrator, sigmas, falling_orders(sigmas, order, lower_order_final), start, corrector == "unic"
        )
    return plan


sample_dpm_solver = plan_sampler(plan_dpm_solver)


def check_options(method, order, prediction, basis, variant, lower_order_final, start, corrector, tau):
    """Raise ValueError with the option, its value and the fix: unknown words, options that exclude each other."""
    choices = {
        "method": (method, METHODS), "order": (order, (1, 2, 3, 4)), "prediction": (prediction, tuple(AUTO_BASIS)),
        "basis": (basis, ("auto", *BASES)), "variant": (variant, tuple(VARIANTS)), "start": (start, STARTS),
        "lower_order_final": (lower_order_final, LOWER_ORDER_FINAL), "corrector": (corrector, CORRECTORS),
    }  # fmt: skip
    check_choices(choices)
    if method == "singlestep" and order > 3:
        raise ValueError(f"order is {order}, but singlestep goes up to 3; lower order, or set method to multistep")
    if method == "singlestep" and corrector != "none":
        raise ValueError("corrector 'unic' belongs to method multistep; set corrector to none, or method to multistep")
    if tau < 0:
        raise ValueError(f"tau is {tau}; it is the strength of the noise, 0 (none) or more")
    if tau > 0 and prediction == "derivative":
        raise ValueError(f"tau is {tau}, but prediction 'derivative' has no noisy form; set tau 0 or prediction data")
    bases = {"data": ("auto", "logSNR", "-log sigma"), "noise": ("auto", "logSNR"), "derivative": ()}[prediction]
    if variant != "taylor" and basis not in bases:
        raise ValueError(
            f"variant '{variant}' is a factor in log-SNR: it needs prediction data or noise and basis auto or logSNR "
            "(with data also -log sigma); set variant to taylor"
        )


def falling_orders(sigmas, order, lower_order_final):
    """The order of each step: `order`, but no more than the steps that are left where the end is to be lowered."""
    steps = max(len(sigmas) - 1, 0)
    lower = lower_order_final == "on" or (lower_order_final == "auto" and steps < 10)
    return [min(order, steps - i) if lower else order for i in range(steps)]


def singlestep_groups(steps, order):
    """How `steps` calls are shared out to steps of the given order (Lu et al. 2022a, section 3.4 and appendix D)."""
    if order == 3:
        full, rest = divmod(steps, 3)
        return [3] * (full - 1) + [2, 1] if rest == 0 and full else [3] * full + [rest] * (rest > 0)
    full, rest = divmod(steps, order)
    return [order] * full + [1] * rest


def _plan_singlestep(integrator, sigmas, order):
    plan, last = integrator.plan, max(len(sigmas) - 1, 0)
    groups = [1] if last and integrator.closed(*sigmas[:2]) else []  # nothing else starts from sigma 1 of a flow
    groups += singlestep_groups(last - len(groups), order)
    if last and sigmas[last] == 0 and groups[-1] > 1:  # the step to sigma 0 is x = D
        groups[-1:] = [groups[-1] - 1, 1]
    i = 0
    for group in groups:
        calls = plan.calls
        first = integrator.predict(plan.result, sigmas[i], i)
        stages = [(sigmas[j], j) for j in range(i + 1, i + group)]
        out, sigma_b = f"x{i + group}", sigmas[i + group]
        nodes, kappa, _ = integrator.singlestep(out, plan.result, first, stages, sigma_b)
        record_step(plan, sigmas[i], sigma_b, nodes, calls, kappa)
        plan.result = out
        i += group
