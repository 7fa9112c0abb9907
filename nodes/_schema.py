"""What lets one source run on every host from ComfyUI 0.3.64 on: newer schema arguments are dropped where unknown."""

import inspect

from comfy_api.latest import io


def _known(callable_, arguments):
    """Keep the arguments that `callable_` accepts (all of them when it takes **kwargs)."""
    parameters = inspect.signature(callable_).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def kw(constructor, *args, **arguments):
    """Call an input's constructor without the arguments this host does not know yet.

    Example: `kw(io.Float.Input, "tau", default=0.0, min=0.0, max=2.0, tooltip="...", advanced=True)`.
    """
    return constructor(*args, **_known(constructor.__init__, arguments))


def schema(**fields):
    """`io.Schema` without the fields this host does not know yet (`search_aliases` came with 0.11)."""
    return io.Schema(**_known(io.Schema, fields))
