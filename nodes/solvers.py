"""Solvers as SAMPLER nodes: each hands out a recipe for SamplerCustom and SamplerCustomAdvanced."""

import copy

import comfy.model_management
import comfy.samplers
from comfy_api.latest import io

from ..samplers import angular, bdia, deis, dpm_solver, interpolant, mean_reverting, momentum, pndm
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


def with_function(sampler, around):
    """A copy of a SAMPLER whose function is around(that of `sampler`)."""
    if not hasattr(sampler, "sampler_function"):
        raise ValueError(f"sampler is a {type(sampler).__name__}, which samples by itself; connect a SAMPLER that is a "
                         "function of model and sigmas, such as KSamplerSelect or a solver of this pack")
    copied = copy.copy(sampler)
    copied.sampler_function = around(sampler.sampler_function)
    return copied


def sampler_output():
    return io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustom and SamplerCustomAdvanced.")


def s_noise_input():
    return io.Float.Input("s_noise", default=1.0, min=0.0, max=10.0, step=0.01, tooltip=(
        "Multiplies the fresh noise; has no effect at tau 0."))  # fmt: skip


def guard_input(default=6.0):
    return kw(io.Float.Input, "guard", default=default, min=0.0, max=50.0, step=0.1, advanced=True, tooltip=(
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
            outputs=[sampler_output()],
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
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, s_noise, guard, **options):
        deis.check_options(**options)
        return io.NodeOutput(sampler_recipe(deis.sample_deis, s_noise=s_noise, guard=guard, **options))


class AngularSampler(io.ComfyNode):
    """SAMPLER of the predictor-corrector in the angle of the v-prediction."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryAngularSampler",
            display_name="Angular Sampler",
            category=CATEGORY,
            description=(
                "The solver to start with: a predictor-corrector in the angle of the v-prediction, close to the exact "
                "result in few network calls on any schedule, for eps, v, EDM and flow models."
            ),
            search_aliases=["recommended", "default", "best", "v-prediction", "trigflow", "adams", "pece", "angle"],
            inputs=[
                io.Int.Input("order", default=0, min=0, max=4, tooltip=(
                    "Predictions used by the predictor. 0 is automatic: 1 below 10 steps, else 3, on flow models 2.")),
                kw(io.Int.Input, "corrector", default=0, min=0, max=4, advanced=True, tooltip=(
                    "Predictions used to correct each state once its own is known, at no extra call; 1 is no "
                    "correction. 0 is automatic: 3; on flow models 2.")),
                kw(io.Float.Input, "data_std", default=0.0, min=0.0, max=5.0, step=0.01, advanced=True, tooltip=(
                    "Standard deviation of the data for which one step is exact, 0.05 or more: small leans to the data "
                    "prediction, large to the noise prediction. 0 is automatic: 1; on flow models from 10 steps 2.")),
                guard_input(),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, guard, **options):
        angular.check_options(**options)
        return io.NodeOutput(sampler_recipe(angular.sample_angular, guard=guard, **options))


class BDIASampler(io.ComfyNode):
    """SAMPLER of BDIA-DDIM."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryBDIASampler",
            display_name="BDIA Sampler",
            category=CATEGORY,
            description=(
                "BDIA-DDIM: a DDIM step forward, corrected by a step back to the state before. Closer than DDIM at the "
                "same one network call an interval, for eps, v, EDM and flow models."
            ),
            search_aliases=["bdia", "ddim", "bi-directional", "invertible", "leapfrog"],
            inputs=[
                io.Float.Input("gamma", default=0.5, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Share of the step back. 0 is DDIM/Euler; 0.5 is safe at 10 steps, 0.9 suits 20 and 1 40.")),
                kw(io.Combo.Input, "space", options=list(bdia.SPACES), default="auto", advanced=True, tooltip=(
                    "Scaling of the two states that the step back compares. vp: constant variance, the paper's. ve: "
                    "constant signal. auto: vp, and on flow models the states as they are.")),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, gamma, space):
        bdia.check_options(gamma, space)
        return io.NodeOutput(sampler_recipe(bdia.sample_bdia, gamma=gamma, space=space))


class PNDMSampler(io.ComfyNode):
    """SAMPLER of PNDM and PLMS."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryPNDMSampler",
            display_name="PNDM Sampler",
            category=CATEGORY,
            description=(
                "PNDM: F-PNDM, S-PNDM and the PLMS of latent diffusion, with the paper's weights or exact ones for "
                "uneven steps, for eps, v, EDM and flow models."
            ),
            search_aliases=["pndm", "plms", "f-pndm", "s-pndm", "prk", "adams-bashforth", "linear multistep"],
            inputs=[
                io.Combo.Input("method", options=list(pndm.METHODS), default="PLMS", tooltip=(
                    "The first steps, and how many predictions the others use. PLMS: one extra call, then up to 4; "
                    "the default, for the 9 extra calls of F-PNDM rarely pay below 50 steps. S-PNDM: one extra call, "
                    "then 2.")),
                io.Combo.Input("coefficients", options=list(pndm.COEFFICIENTS), default="constant", tooltip=(
                    "constant: the paper's weights, exact on even steps in sigma, steady at few steps. variable: exact "
                    "on uneven steps, for 50 steps and more: F-PNDM is then truly of fourth order.")),
                kw(io.Combo.Input, "mid", options=list(pndm.MIDDLES), default="auto", advanced=True, tooltip=(
                    "What the inner stages at the start of F-PNDM halve. auto: the model's own time as the paper does; "
                    "sigma where the model has none.")),
                guard_input(default=7.0),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, guard, **options):
        pndm.check_options(**options)
        return io.NodeOutput(sampler_recipe(pndm.sample_pndm, guard=guard, **options))


class MomentumSampler(io.ComfyNode):
    """SAMPLER of solvers with momentum."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryMomentumSampler",
            display_name="Momentum Sampler",
            category=CATEGORY,
            description=(
                "Solvers with momentum, which stay stable at high guidance and few steps: heavy ball, GHVB and "
                "Nesterov on PLMS, heavy ball on DPM++2M and UniPC, for eps, v, EDM and flow models."
            ),
            search_aliases=["momentum", "ghvb", "heavy ball", "polyak", "nesterov", "divergence artifacts", "plms"],
            inputs=[
                io.Combo.Input("base", options=list(momentum.BASES), default="GHVB", tooltip=(
                    "GHVB keeps the order of the solver. HB (heavy ball) and Nesterov are of first order and damp "
                    "more; all three run on PLMS. DPM++2M and UniPC take heavy-ball momentum.")),
                io.Int.Input("order", default=3, min=1, max=5, tooltip=(
                    "Predictions used by a step. The paper writes order and beta as one number: its 2.7 is order 3 "
                    "with beta 0.7. Not used by DPM++2M, which takes 2.")),
                io.Float.Input("beta", default=0.7, min=momentum.LEAST_BETA, max=1.0, step=0.01, tooltip=(
                    "Share of the newest prediction in the velocity: 1 is no momentum, smaller is steadier and, at few "
                    "steps, softer. The paper uses 0.3 to 0.9.")),
                kw(io.Boolean.Input, "variable_step", default=False, advanced=True, tooltip=(
                    "Exact weights for uneven steps; off: the paper's constant ones. For HB, GHVB and Nesterov; the "
                    "others are always exact.")),
                guard_input(default=7.0),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, base, order, beta, variable_step, guard):
        momentum.check_options(base, order, beta)
        options = {"base": base, "order": order, "beta": beta, "variable_step": variable_step, "guard": guard}
        return io.NodeOutput(sampler_recipe(momentum.sample_momentum, **options))


class InterpolantSampler(io.ComfyNode):
    """SAMPLER of stochastic interpolants."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryInterpolantSampler",
            display_name="Stochastic Interpolant Sampler",
            category=CATEGORY,
            description=(
                "A dial from the ODE to an SDE of any diffusion coefficient epsilon(sigma) that keeps the distribution "
                "at every noise level, for eps, v, EDM and flow models."
            ),
            search_aliases=["sde", "stochastic", "interpolant", "sit", "flow sde", "epsilon", "churn", "langevin"],
            inputs=[
                io.Combo.Input("epsilon", options=list(interpolant.EPSILONS), default="sigma", tooltip=(
                    "Where the noise is added, sigma counted from 0 to 1 as on a flow. sigma/(1-sigma) is the usual "
                    "reverse SDE; sigma spares the start, sigma^2 and sin^2 start and end; constant acts most at the "
                    "end.")),
                io.Float.Input("scale", default=1.0, min=0.0, max=4.0, step=0.01, tooltip=(
                    "Multiplies epsilon: 0 is the deterministic ODE, more corrects errors and varies details.")),
                io.Float.Input("sigma_high", default=1000.0, min=0.0, max=1000.0, step=0.01, tooltip=(
                    "Steps that start above this sigma of the model add no noise.")),
                io.Float.Input("sigma_low", default=0.0, min=0.0, max=1000.0, step=0.01, tooltip=(
                    "Steps that start below this sigma of the model add no noise.")),
                io.Int.Input("order", default=2, min=1, max=3, tooltip="Order of the exponential integrator."),
                io.Combo.Input("integrator", options=list(interpolant.INTEGRATORS), default="exponential", tooltip=(
                    "exponential is exact in the noise and the linear part: for few steps. euler-maruyama and heun "
                    "are the paper's; heun makes two calls an interval.")),
                kw(io.Float.Input, "s_noise", default=1.0, min=0.0, max=10.0, step=0.01, advanced=True, tooltip=(
                    "Multiplies the fresh noise; other than 1 leaves the distribution.")),
                guard_input(),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, s_noise, guard, **options):
        interpolant.check_options(**options)
        return io.NodeOutput(sampler_recipe(interpolant.sample_interpolant, s_noise=s_noise, guard=guard, **options))


class MRSampler(io.ComfyNode):
    """SAMPLER of mean-reverting models."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryMRSampler",
            display_name="MR Sampler",
            category=CATEGORY,
            description=(
                "MR Sampler for mean-reverting restoration models (IR-SDE, DA-CLIP): 5 to 20 steps in place of 100. "
                "A preset of DPM-Solver, so it runs on every model."
            ),
            search_aliases=["mrs", "mean reverting", "ir-sde", "da-clip", "restoration", "dpm++"],
            inputs=[
                io.Combo.Input("equation", options=list(mean_reverting.EQUATIONS), default="ode", tooltip=(
                    "ode is deterministic, best below 10 steps; sde adds fresh noise in each step.")),
                io.Int.Input("order", default=2, min=1, max=3, tooltip="Order of the solver; 2 is the paper's choice."),
                io.Combo.Input("prediction", options=list(mean_reverting.PREDICTIONS), default="data", tooltip=(
                    "What is interpolated: the restored picture (data, steady at few steps) or the noise.")),
                s_noise_input(),
            ],
            outputs=[sampler_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, s_noise, **options):
        mean_reverting.check_options(**options)
        return io.NodeOutput(sampler_recipe(mean_reverting.sample_mean_reverting, s_noise=s_noise, **options))


NODES = [
    AngularSampler, DPMSolverSampler, DEISSampler, BDIASampler, PNDMSampler, MomentumSampler, InterpolantSampler,
    MRSampler,
]  # fmt: skip
