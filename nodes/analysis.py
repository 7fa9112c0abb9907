"""Nodes that show what a solver or schedule does."""

from comfy_api.latest import io, ui

from ..samplers.model import schedule_from
from ._schema import schema


class PlanInfo(io.ComfyNode):
    """What a solver will do on a schedule, before any network call."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryPlanInfo",
            display_name="Solver Plan Info",
            category="trajectory/analysis",
            description="Shows a solver's plan on given SIGMAS: network calls, order and extrapolation of each step.",
            search_aliases=["nfe", "order", "solver", "plan", "inspect"],
            is_output_node=True,
            inputs=[
                io.Sampler.Input("sampler", tooltip="A solver of this pack."),
                io.Sigmas.Input("sigmas", tooltip="The schedule it will run on."),
                io.Model.Input("model", tooltip="Says whether it is a flow, and what its own time is."),
            ],
            outputs=[
                io.String.Output(display_name="plan", tooltip="One line a step."),
                io.Int.Output(display_name="network calls", tooltip="NFE of one run without guidance."),
            ],
        )

    @classmethod
    def execute(cls, sampler, sigmas, model):
        make_plan = getattr(getattr(sampler, "sampler_function", None), "plan", None)
        if make_plan is None:
            raise ValueError(
                "sampler has no plan to show: it is not one of Trajectory's solvers. "
                "Connect a node of the category trajectory/solvers."
            )
        schedule = schedule_from(model.get_model_object("model_sampling"))
        plan = make_plan(sigmas.tolist(), schedule, **sampler.extra_options)
        text = plan.describe()
        return io.NodeOutput(text, plan.calls, ui=ui.PreviewText(text))


NODES = [PlanInfo]
