"""Solvers as SAMPLER nodes: each hands out a recipe for SamplerCustom and SamplerCustomAdvanced."""

import comfy.model_management
import comfy.samplers
from comfy_api.latest import io

from ..samplers import deis, dpm_solver
from ..samplers.classical import TABLEAUS
from ..samplers.integrator import STARTS
from ..samplers.weights import BASES, PREDICTIONS, VARIANTS
from ._schema import kw, schema

CATEGORY = "trajectory/solvers"
THRESHOLDINGS = ("off", "dynamic")


def sampler_recipe(function, **options):
    """SAMPLER of a plan sampler that the host can cancel before every network call."""
    cancel = comfy.model_management.throw_exception_if_processing_interrupted
    return comfy.samplers.KSAMPLER(function, {**options, "before_call": cancel})


def s_noise_input():
    return io.Float.Input("s_noise", default=1.0, min=0.0, max=10.0, step=0.01, tooltip=(
        "Multiplies the fresh noise; has no effect at tau 0."))  # fmt: skip


def guard_input():
    return kw(io.Float.Input, "guard", default=6.0, min=0.0, max=50.0, step=0.1, advanced=True, tooltip=(
        "Lowers the order of a step whose weights extrapolate further than this (sum of |weights| over their sum). "
        "Matters on uneven schedules such as normal. 0 turns it off."))  # fmt: skip


class DPMSolverSampler(io.ComfyNode):
    """SAMPLER of the DPM-Solver family."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryDPMSolverSampler",
            display_name="DPM-Solver Sampler",
            category=CATEGORY,
            description=(
                "DPM-Solver and DPM-Solver++ of order 1 to 4 for eps, v, EDM and flow models. One network call an "
                "interval of SIGMAS, true third order."
            ),
            search_aliases=["dpm", "dpm++", "dpmpp", "2m", "3m", "unipc", "sa-solver", "exponential integrator"],
            inputs=[
                io.Combo.Input("method", options=list(dpm_solver.METHODS), default="multistep", tooltip=(
                    "multistep reuses past predictions: best for guided sampling. singlestep spends the sigmas of "
                    "SIGMAS as stages inside a step: good without guidance.")),
                io.Int.Input("order", default=2, min=1, max=4, tooltip=(
                    "Order of accuracy. 2 is robust at any CFG, 3 pays from about 15 steps on; singlestep goes to 3. "
                    "Order 1 is DDIM/Euler.")),
                io.Combo.Input("prediction", options=list(PREDICTIONS), default="data", tooltip=(
                    "What the polynomial interpolates: the denoised picture (data, the ++ form, for guided sampling), "
                    "the noise, or the derivative dx/dsigma (the velocity of a flow).")),
                kw(io.Combo.Input, "basis", options=["auto", *BASES], default="auto", advanced=True, tooltip=(
                    "The variable of the interpolation polynomial. auto: log-SNR; sigma for the derivative.")),
                kw(io.Combo.Input, "variant", options=list(VARIANTS), default="taylor", advanced=True, tooltip=(
                    "taylor integrates the polynomial exactly; midpoint (DPM-Solver++ 2M, UniPC bh2) and bh1 rescale "
                    "second-order steps. Third order with singlestep midpoint is the paper's 'dpmsolver' type.")),
                kw(io.Combo.Input, "lower_order_final", options=list(dpm_solver.LOWER_ORDER_FINAL), default="auto",
                    advanced=True, tooltip=(
                    "Lower the order in the last steps, which steadies short runs. auto: below 10 steps. "
                    "Multistep only.")),
                kw(io.Combo.Input, "start", options=list(STARTS), default="ramp", advanced=True, tooltip=(
                    "First steps of a multistep run, before it has a history: ramp uses order 1, 2, ...; rk inserts "
                    "extra network calls and keeps the full order; euler uses order 1.")),
                kw(io.Combo.Input, "corrector", options=list(dpm_solver.CORRECTORS), default="none",
                    advanced=True, tooltip=(
                    "unic corrects each state with the next prediction at no extra call (UniPC): one order more. "
                    "Multistep only.")),
                io.Float.Input("tau", default=0.0, min=0.0, max=2.0, step=0.01, tooltip=(
                    "Strength of fresh noise: 0 is the deterministic ODE, 1 the reverse SDE (as SA-Solver). Needs "
                    "prediction data or noise. Each batch item has its own noise.")),
                s_noise_input(),
                guard_input(),
                kw(io.Combo.Input, "thresholding", options=list(THRESHOLDINGS), default="off", advanced=True, tooltip=(
                    "dynamic clamps each prediction to a quantile of its values (Imagen). For models that work on "
                    "pixels only: latents have no fixed range.")),
                kw(io.Float.Input, "threshold_ratio", default=0.995, min=0.5, max=1.0, step=0.001, advanced=True,
                    tooltip="The quantile of dynamic thresholding; has no effect when it is off."),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, s_noise, guard, thresholding, threshold_ratio, **options):
        dpm_solver.check_options(**options)
        if thresholding not in THRESHOLDINGS:
            raise ValueError(f"thresholding is {thresholding!r}; choose one of {', '.join(THRESHOLDINGS)}")
        threshold = threshold_ratio if thresholding == "dynamic" else 0.0
        options |= {"s_noise": s_noise, "guard": guard, "threshold": threshold}
        return io.NodeOutput(sampler_recipe(dpm_solver.sample_dpm_solver, **options))


class DEISSampler(io.ComfyNode):
    """SAMPLER of the DEIS family."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryDEISSampler",
            display_name="DEIS Sampler",
            category=CATEGORY,
            description=(
                "DEIS, the exponential integrator in the loaded model's own time, with its sigma, log-SNR, iPNDM and "
                "Runge-Kutta versions, for eps, v, EDM and flow models."
            ),
            search_aliases=["deis", "tab", "rhoab", "ipndm", "adams-bashforth", "lms", "runge-kutta", "heun", "rk4"],
            inputs=[
                io.Combo.Input("variant", options=list(deis.VARIANTS), default="tAB", tooltip=(
                    "What the polynomial runs in: tAB the model's own time (the paper's best), rhoAB sigma, logrhoAB "
                    "log-SNR. iPNDM takes the weights of even steps, rhoRK a Runge-Kutta table with extra calls.")),
                io.Int.Input("order", default=3, min=0, max=4, tooltip=(
                    "Degree of the polynomial: order + 1 predictions are used. 3 is the paper's; 1 or 2 are steadier "
                    "at high CFG. Not used by rhoRK.")),
                io.Combo.Input("rk", options=list(TABLEAUS), default="heun", tooltip=(
                    "The table of rhoRK: heun makes 2 calls an interval, the third-order ones 3, rk4 4.")),
                kw(io.Combo.Input, "flow_form", options=list(deis.FLOW_FORMS), default="velocity",
                    advanced=True, tooltip=(
                    "On flow models: interpolate the velocity, or the noise as the paper does. Others have one form.")),
                io.Float.Input("tau", default=0.0, min=0.0, max=2.0, step=0.01, tooltip=(
                    "Strength of fresh noise: 0 is the deterministic ODE, 1 the reverse SDE. Not for iPNDM, rhoRK.")),
                s_noise_input(),
                guard_input(),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, s_noise, guard, **options):
        deis.check_options(**options)
        return io.NodeOutput(sampler_recipe(deis.sample_deis, s_noise=s_noise, guard=guard, **options))


NODES = [DPMSolverSampler, DEISSampler]
