"""The nodes of the pack: one module a family, each imported in isolation.

The host drops every later node when one schema raises, and logs no traceback. So the pack checks each family itself:
a module that breaks is logged with its traceback, kept in `failures`, and the others stay.
"""

import importlib
import logging

from comfy_api.latest import ComfyExtension

logger = logging.getLogger("trajectory")

FAMILIES = (
    "models", "solvers", "time_shift", "inversion", "schedules", "analysis", "denoising_mcmc",
    "faster_diffusion", "nasa", "oms", "operators", "operators_codec", "operators_imaging",
    "measurements", "flowchef", "losses", "operators_vae",
    "superdiff", "adcsr", "resshift", "s3diff", "one_step", "irsde", "trip", "trip_miniature",
    "trip_tnf",
)  # fmt: skip

failures: dict[str, str] = {}
"""Module name -> why it is missing, filled while loading."""


def healthy_nodes(families=FAMILIES, package=__name__):
    """The node classes of every family that imports and whose schemas are valid; never raises."""
    classes = []
    for family in families:
        try:
            module = importlib.import_module(f".{family}", package)
            for cls in module.NODES:
                cls.GET_SCHEMA()
        except Exception as error:  # whatever breaks in one family must not take the others with it
            failures[family] = f"{type(error).__name__}: {error}"
            logger.exception("Trajectory: the nodes of '%s' are missing because their module failed to load", family)
        else:
            classes += module.NODES
    return classes


class TrajectoryExtension(ComfyExtension):
    async def get_node_list(self):
        return healthy_nodes()
