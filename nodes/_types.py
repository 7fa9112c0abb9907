"""The pack's own types of links."""

from comfy_api.latest import io

OPERATOR = io.Custom("OPERATOR")
"""An `operators.base.Operator`."""
MEASUREMENT = io.Custom("MEASUREMENT")
"""An `operators.measurement.Measurement`."""
LOSS = io.Custom("LOSS")
"""An `operators.losses.Loss`."""
