"""Scale of the latents that a model samples in, against those of its VAE."""


def _channel_groups(channels):
    """Factors [channels][3] for a rough preview without a decoder: each colour averages every third channel."""
    weight = 1.5 / channels ** 0.5
    return [[weight if channel % 3 == colour else 0.0 for colour in range(3)] for channel in range(channels)]


class LatentFormat:
    """Latents of the VAE times `scale_factor`."""

    scale_factor = 1.0
    latent_channels = 4
    latent_dimensions = 2
    latent_rgb_factors = None
    latent_rgb_factors_bias = None
    taesd_decoder_name = None

    def process_in(self, latent):
        return latent * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor


class SD15(LatentFormat):
    def __init__(self, scale_factor=0.18215):
        self.scale_factor = scale_factor
        self.latent_rgb_factors = _channel_groups(4)
        self.taesd_decoder_name = "taesd_decoder"


class SDXL(LatentFormat):
    scale_factor = 0.13025

    def __init__(self):
        self.latent_rgb_factors = _channel_groups(4)
        self.taesd_decoder_name = "taesdxl_decoder"


class SD3(LatentFormat):
    latent_channels = 16

    def __init__(self):
        self.latent_rgb_factors = _channel_groups(16)
        self.taesd_decoder_name = "taesd3_decoder"
        self.scale_factor = 1.5305
        self.shift_factor = 0.0609

    def process_in(self, latent):
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor + self.shift_factor
