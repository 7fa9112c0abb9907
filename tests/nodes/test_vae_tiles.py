"""A VAE in tiles: one brightness for all, any size, cancelled between two tiles."""

import pytest
import torch
from torch.nn import functional


class Half(torch.nn.Module):
    """Convolutions and GroupNorm as in Stable Diffusion's autoencoder, without its attention; 8 pixels a cell."""

    def __init__(self, ins, outs, resize):
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(ins, 16, 3, padding=1), torch.nn.GroupNorm(4, 16)
        self.last, self.resize = torch.nn.Conv2d(16, outs, 3, padding=1), resize

    def forward(self, x):
        return self.last(functional.silu(self.norm(self.first(self.resize(x)))))


class Autoencoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = Half(3, 4, lambda x: functional.avg_pool2d(x, 8))
            self.decoder = Half(4, 3, lambda x: functional.interpolate(x, scale_factor=8.0))

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


@pytest.fixture
def vae(host):
    """The bundled autoencoder's object around a network that normalises."""
    import comfy.model_patcher

    made = host.node_table["TrajectoryLoadMiniature"].execute("landscapes (eps)").args[2]
    made.first_stage_model = Autoencoder().eval()
    made.process_input = lambda x: 2 * x - 1
    made.process_output = lambda x: x.add_(1).div_(2).clamp_(0, 1)  # in place, as hosts expect it
    made.patcher = comfy.model_patcher.ModelPatcher(made.first_stage_model, made.device, torch.device("cpu"))
    return made


def test_tiles_equal_the_whole_and_the_hosts_own_do_not(vae):
    from trajectory.nodes._vae_tiles import decoded, encoded

    picture = torch.rand(1, 3, 512, 768, generator=torch.Generator().manual_seed(1))
    picture[..., :256] *= 0.1
    shares = []
    with torch.inference_mode():
        whole = encoded(vae, picture, 0, shares.append)
        tiled = encoded(vae, picture, 256, shares.append)
        apart = vae.encode_tiled(picture.movedim(1, -1), tile_x=256, tile_y=256, overlap=32)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
        assert (apart - whole).abs().max() > 0.05
        shown = decoded(vae, whole, 0, shares.append)
        torch.testing.assert_close(decoded(vae, whole, 256, shares.append), shown, rtol=0, atol=1e-5)
    assert shown.shape == (1, 3, 512, 768) and max(shares) < 1


def test_cancelling_ends_it_between_two_tiles(vae):
    from comfy.model_management import InterruptProcessingException, interrupt_current_processing
    from trajectory.nodes._restore import Progress
    from trajectory.nodes._vae_tiles import decoded

    interrupt_current_processing()
    try:
        with pytest.raises(InterruptProcessingException), torch.inference_mode():
            decoded(vae, torch.zeros(1, 4, 100, 100), 256, Progress(lambda done: None))
    finally:
        interrupt_current_processing(False)


def test_the_real_autoencoder_of_stable_diffusion(host):
    """Without its attention, which sees only its tile. It looks farther than a halo: closely equal, not exactly."""
    sd = pytest.importorskip("comfy.ldm.models.autoencoder", reason="needs a real host")
    import comfy.sd
    from trajectory.nodes._vae_tiles import decoded, encoded

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
                  "ch_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
        vae = comfy.sd.VAE(sd=sd.AutoencoderKL(ddconfig=config, embed_dim=4).state_dict(),
                           config={"params": {"ddconfig": config, "embed_dim": 4}}, dtype=torch.float32)
        for name, parameter in vae.first_stage_model.named_parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.0 if "attn" in name else parameter[0].numel() ** -0.5)
            else:
                parameter.data.fill_(float("norm" in name and name.endswith("weight")))
    picture = torch.rand(1, 3, 384, 512, generator=torch.Generator().manual_seed(1))
    picture[..., :256] *= 0.1
    with torch.inference_mode():
        whole, tiled = encoded(vae, picture, 0, lambda share: None), encoded(vae, picture, 256, lambda share: None)
        apart = vae.encode_tiled(picture.movedim(1, -1), tile_x=256, tile_y=256, overlap=64)
        assert (tiled - whole).std() < 0.05 * (apart - whole).std()
        z = torch.randn(1, 4, 48, 64, generator=torch.Generator().manual_seed(2))
        whole, tiled = decoded(vae, z, 0, lambda share: None), decoded(vae, z, 256, lambda share: None)
        apart = vae.decode_tiled(z, tile_x=32, tile_y=32, overlap=8).movedim(-1, 1)
        assert (tiled - whole).std() < 0.2 * (apart - whole).std()
