"""Operators on pixels, for samplers of latents."""

from comfy_api.latest import io

from ..operators.through import ThroughVAE
from ._autoencoder import decoder, encoder
from ._schema import schema
from ._types import OPERATOR
from .operators import CATEGORY


class OperatorThroughVAE(io.ComfyNode):
    """OPERATOR of latents that decodes them for an operator of pixels."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="TrajectoryOperatorThroughVAE",
            display_name="Operator Through VAE",
            category=CATEGORY,
            description=(
                "Lets an operator of pixels steer a sampler of latents: each prediction is decoded, and the gradient "
                "comes back through the VAE."
            ),
            search_aliases=["latent operator", "decode", "pixel space", "differentiable vae", "taesd"],
            inputs=[
                OPERATOR.Input("operator", tooltip="An operator of pixels, such as Operator Downsample or Operator "
                               "Blur."),
                io.Vae.Input("vae", tooltip=(
                    "The VAE of the model that will be steered. A TAESD needs a fraction of the memory and time; load "
                    "it unquantised.")),
            ],
            outputs=[OPERATOR.Output(display_name="operator", tooltip="The operator, of latents.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, operator, vae):
        return io.NodeOutput(ThroughVAE(
            operator, decoder(vae), encoder(vae), vae.spacial_compression_decode(), vae.latent_channels,
            frames=vae.latent_dim == 3))  # fmt: skip


NODES = [OperatorThroughVAE]
