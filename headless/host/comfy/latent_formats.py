"""Scale of the latents that a model samples in, against those of its VAE."""


def _channel_groups(channels):
    """Factors [channels][3] for a rough preview without a decoder: each colour averages every third channel."""
    weight = 1.5 / channels ** 0.5
    return [[weight if channel % 3 == colour else 0.0 for colour in range(3)] for channel in range(channels)]


class LatentFormat:
    """Latents of the VAE times `scale_factor`."""

    latent_channels, latent_dimensions = 4, 2
    scale_factor = 1.0
    # for previews: the name of a tiny decoder, and factors [channels][3] with a bias [3] where there is none
    taesd_decoder_name = latent_rgb_factors = latent_rgb_factors_bias = None

    def _preview_with(self, decoder):
        self.taesd_decoder_name, self.latent_rgb_factors = decoder, _channel_groups(self.latent_channels)

    def process_in(self, latent):
        """From the VAE's scale to the model's."""
        return latent * self.scale_factor

    def process_out(self, latent):
        """From the model's scale to the VAE's."""
        return latent / self.scale_factor


class SD15(LatentFormat):
    """Latents of Stable Diffusion 1 and 2."""

    def __init__(self, scale_factor=0.18215):
        self._preview_with("taesd_decoder")
        self.scale_factor = scale_factor


class SDXL(LatentFormat):
    """Latents of Stable Diffusion XL."""

    scale_factor = 0.13025

    def __init__(self):
        self._preview_with("taesdxl_decoder")


class SD3(LatentFormat):
    """Latents of Stable Diffusion 3, which are centred before they are scaled."""

    latent_channels = 16

    def __init__(self):
        self._preview_with("taesd3_decoder")
        self.scale_factor, self.shift_factor = 1.5305, 0.0609

    def process_in(self, latent):
        return super().process_in(latent - self.shift_factor)

    def process_out(self, latent):
        return super().process_out(latent) + self.shift_factor
