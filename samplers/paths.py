"""The two probability paths of diffusion and flow models, as functions of the noise level sigma.

The state is x = alpha(sigma) x0 + sigma n, and lam(sigma) = log(alpha / sigma) is half the log signal-to-noise ratio.
Every variance-exploding or -preserving model (eps, v, EDM) reaches the sampler as VE, since hosts rescale the input;
a rectified flow reaches it as FLOW. Their probability-flow ODE is the same: dx/dsigma = (x - D(x, sigma)) / sigma,
with D the denoised prediction (Lu et al. 2022, DPM-Solver; Lipman et al. 2023, flow matching).
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Path:
    """A path by its half-logSNR. All methods take and return float64 scalars or arrays."""

    name: str

    def alpha(self, sigma):
        """Signal scale: 1 (VE) or 1 - sigma (flow)."""
        if isinstance(sigma, float):  # planners ask for single levels, on which numpy is ten times as slow
            return 1.0 if self.name == "ve" else 1.0 - sigma
        return np.ones_like(sigma, dtype=float) if self.name == "ve" else 1.0 - np.asarray(sigma, dtype=float)

    def lam(self, sigma):
        """log(alpha / sigma); +inf at sigma 0, -inf at sigma 1 of a flow."""
        if isinstance(sigma, float) and sigma > 0 < self.alpha(sigma):
            return math.log(self.alpha(sigma)) - math.log(sigma)
        sigma = np.asarray(sigma, dtype=float)
        with np.errstate(divide="ignore"):
            return np.log(self.alpha(sigma)) - np.log(sigma)

    def sigma(self, lam):
        """Inverse of `lam`."""
        lam = np.asarray(lam, dtype=float)
        return np.exp(-lam) if self.name == "ve" else 1.0 / (1.0 + np.exp(lam))

    def dsigma_dlam(self, sigma):
        return -sigma * self.alpha(sigma)


VE = Path("ve")
FLOW = Path("flow")
