"""Start-up options of the host, at the values that a plain start has."""

from enum import Enum
from types import SimpleNamespace


class LatentPreviewMethod(Enum):
    """How a latent becomes a preview picture while sampling."""

    NoPreviews = "none"
    Auto = "auto"
    Latent2RGB = "latent2rgb"
    TAESD = "taesd"


args = SimpleNamespace(
    base_directory=None,
    cpu=False,
    default_hashing_function="sha256",
    disable_metadata=False,
    gpu_only=False,
    preview_method=LatentPreviewMethod.Auto,
    preview_size=512,
)
