"""The pack's own types of links."""

from comfy_api.latest import io

OPERATOR = io.Custom("OPERATOR")
"""An `operators.base.Operator`."""
MEASUREMENT = io.Custom("MEASUREMENT")
"""An `operators.measurement.Measurement`."""
LOSS = io.Custom("LOSS")
"""An `operators.losses.Loss`."""
S3DIFF = io.Custom("S3DIFF")
"""What S3Diff Loader loads: changes of Stable Diffusion that depend on a degradation, and an estimator of it."""
ADCSR = io.Custom("ADCSR")
"""A ModelPatcher of `models.adcsr.AdcSR`."""
RESSHIFT = io.Custom("RESSHIFT_MODEL")
"""A `nodes.resshift.ResShift`."""
TRIP_PRIOR = io.Custom("TRIP_PRIOR")
"""What `samplers.image_prior.ImagePrior` takes as its distances."""
TRIP_TNF = io.Custom("TRIP_TNF")
"""A ModelPatcher of a `models.tnf.TemporalFusion`."""
