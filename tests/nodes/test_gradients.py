"""Gradients through the host's networks, whose weights were made in inference mode as the host's nodes make them."""

import comfy.model_management
import comfy.sd
import pytest
import torch
import unets
from trajectory.nodes import _autoencoder, _gradients
from trajectory.nodes._autoencoder import decoder, encoder
from trajectory.nodes._gradients import carry_gradients
from trajectory.operators.base import gradients


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_autoencoder(dtype=torch.float32, channels=4):
    """The host's VAE around a TAESD with random weights."""
    import comfy.taesd.taesd

    network = comfy.taesd.taesd.TAESD(latent_channels=channels)
    weights = unets.random_weights(network)
    weights |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    return comfy.sd.VAE(sd=weights, dtype=dtype)


def full_autoencoder(dtype=torch.float32):
    """The host's VAE of Stable Diffusion's class with random weights; a real host only."""
    network = pytest.importorskip("comfy.ldm.models.autoencoder").AutoencoderKL(
        embed_dim=4, ddconfig={"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3,
                               "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [],
                               "dropout": 0.0})  # fmt: skip
    return comfy.sd.VAE(sd=unets.random_weights(network), dtype=dtype)


def unet_gradient(network):
    """The gradient of a random projection of the network's output with respect to its input."""
    with gradients():
        x = draw(2, 4, 8, 8).requires_grad_()
        out = network(x, torch.tensor([700.0, 30.0]), context=draw(2, 5, 24, seed=2), transformer_options={})
        return torch.autograd.grad((out * draw(2, 4, 8, 8, seed=3)).sum(), x)[0]


def vae_gradient(network):
    with gradients():
        z = draw(1, 4, 4, 4).requires_grad_()
        out = network.decode(z)
        return torch.autograd.grad((out * draw(*out.shape, seed=3)).sum(), z)[0]


def inference_network(make, *options):
    with torch.inference_mode():
        return make(*options)


NETWORKS = {
    "unet": (lambda: unets.unet().model.diffusion_model, unet_gradient),
    "vae": (lambda: tiny_autoencoder().first_stage_model, vae_gradient),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_of_inference_mode_carry_gradients_like_others(host, kind):
    make, gradient = NETWORKS[kind]
    expected = gradient(make())
    network = inference_network(make)
    with pytest.raises(RuntimeError, match="[Ii]nference tensors"):
        gradient(network)
    carry_gradients(network)
    assert torch.allclose(gradient(network), expected, atol=1e-6)
    with torch.inference_mode():
        network.to(torch.float64).to(torch.float32)
    assert any(weight.is_inference() for weight in network.parameters())
    carry_gradients(network)
    assert torch.allclose(gradient(network), expected, atol=1e-6)
    assert not any(weight.requires_grad for weight in network.parameters())


def test_a_second_scan_changes_nothing_and_attributes_are_found(host):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with torch.inference_mode():
        network.to(torch.float64)
        network[0].scale = torch.ones(2)
    carry_gradients(network)
    held = [*network.parameters(), *network.buffers(), network[0].scale]
    assert not any(tensor.is_inference() for tensor in held)
    carry_gradients(network)
    assert all(a is b for a, b in zip(held, [*network.parameters(), *network.buffers(), network[0].scale], strict=True))


# --- decoder and encoder ---------------------------------------------------------------------------------------------


def autoencoders(host):
    yield tiny_autoencoder
    if host.name != "embedded":
        yield full_autoencoder


def test_decode_is_the_hosts_and_so_is_encode(host):
    for make in autoencoders(host):
        vae, z = make(), 0.5 * draw(2, 4, 4, 6)
        pixels = decoder(vae)(z)
        assert pixels.shape == (2, 3, 32, 48) and pixels.dtype == torch.float32
        with torch.no_grad():
            assert torch.allclose(pixels, vae.decode(z).movedim(-1, 1), atol=1e-5)
            assert torch.allclose(encoder(vae)(pixels), vae.encode(pixels.movedim(1, -1)), atol=1e-4)
        assert not encoder(vae)(pixels).is_inference()


def gradient_of(decode, z, function):
    """As a sampler asks for it: inside a host's inference mode."""
    with torch.inference_mode():
        inside = z.clone()
        with gradients():
            leaf = inside.clone().requires_grad_()
            return torch.autograd.grad(function(decode(leaf)), leaf)[0]


def mild(vae):
    """The autoencoder with a decoder whose pictures stay inside 0..1."""
    last = vae.first_stage_model.taesd_decoder[-1]
    with torch.inference_mode():
        last.weight.mul_(0.02)
        last.bias.fill_(0.5)
    return vae


def test_the_gradient_is_that_of_finite_differences(host):
    vae = inference_network(lambda: mild(tiny_autoencoder()))
    decode, z = decoder(vae), 0.1 * draw(2, 4, 4, 4)
    assert 0 < decode(z).min() and decode(z).max() < 1
    gradient = gradient_of(decode, z, lambda pixels: pixels.square().sum())
    step = 5e-4 * gradient / gradient.norm()
    change = decode(z + step).double().square().sum() - decode(z - step).double().square().sum()
    assert float((gradient * step).sum()) == pytest.approx(float(change) / 2, rel=1e-2)


def test_items_of_a_batch_do_not_touch(host):
    decode, z = decoder(inference_network(tiny_autoencoder)), draw(2, 4, 4, 4)
    whole = gradient_of(decode, z, lambda pixels: (pixels - 0.3).square().sum())
    alone = [gradient_of(decode, part, lambda pixels: (pixels - 0.3).square().sum()) for part in z.split(1)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-5 * float(whole.abs().max()))


def test_a_pixel_outside_the_range_is_pulled_back(host):
    vae = mild(tiny_autoencoder())
    with torch.no_grad():
        vae.first_stage_model.taesd_decoder[-1].bias.fill_(3.0)  # white everywhere
    decode, z = decoder(vae), 0.1 * draw(1, 4, 4, 4)
    assert torch.equal(decode(z), torch.ones(1, 3, 32, 32))
    clamped = gradient_of(lambda z: vae.process_output(vae.first_stage_model.decode(z)), z, torch.Tensor.sum)
    assert not clamped.any()
    assert gradient_of(decode, z, torch.Tensor.sum).any()


def test_bf16_weights_give_the_gradient_of_float32(host):
    z = 0.3 * draw(1, 4, 8, 8)
    fine, coarse = (gradient_of(decoder(mild(inference_network(tiny_autoencoder, dtype))), z,
                                lambda pixels: (pixels - 0.3).square().sum())
                    for dtype in (torch.float32, torch.bfloat16))  # fmt: skip
    assert coarse.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(fine.flatten(), coarse.flatten(), dim=0) > 0.98


def test_the_full_autoencoder_carries_gradients(host):
    if host.name == "embedded":
        pytest.skip("the embedded host has tiny autoencoders only")
    for dtype in (torch.float32, torch.bfloat16):
        found = gradient_of(decoder(inference_network(full_autoencoder, dtype)), draw(1, 4, 4, 4),
                            lambda pixels: (pixels - 0.3).square().sum())  # fmt: skip
        assert found.isfinite().all() and found.any()


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "words"), [
    ((1, 16, 4, 4), "another model"), ((1, 4, 5, 4, 4), "5 frames"), ((1, 4, 64), "another model")])
def test_latents_that_do_not_fit_are_refused(host, shape, words):
    with pytest.raises(ValueError, match=words):
        decoder(tiny_autoencoder())(torch.zeros(shape))


def test_latents_of_one_frame_are_a_picture(host):
    decode, z = decoder(tiny_autoencoder()), draw(1, 4, 4, 4)
    assert torch.equal(decode(z.unsqueeze(2)), decode(z))


class FramesOnly(torch.nn.Module):
    """A video's autoencoder around one of pictures."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def decode(self, z):
        return self.network.decode(z[:, :, 0]).unsqueeze(2)


def test_an_autoencoder_of_videos_decodes_single_pictures(host):
    vae, z = tiny_autoencoder(), draw(2, 4, 4, 4)
    expected = decoder(vae)(z)
    vae.first_stage_model, vae.latent_dim = FramesOnly(vae.first_stage_model), 3
    vae.memory_used_decode = lambda shape, dtype: shape[4]
    assert torch.equal(decoder(vae)(z), expected)
    assert gradient_of(decoder(vae), z, torch.Tensor.sum).shape == z.shape


def test_an_autoencoder_of_sound_is_refused(host):
    vae = tiny_autoencoder()
    vae.latent_dim = 1
    with pytest.raises(ValueError, match="sound"):
        decoder(vae)


class Quantised(torch.nn.Module):
    """Rounds what passes, and cuts the gradient as kernels of packed integers do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def decode(self, z):
        return self.network.decode(z.detach())


def test_weights_without_a_gradient_are_refused_before_the_picture(host):
    vae = tiny_autoencoder()
    vae.first_stage_model = Quantised(vae.first_stage_model)
    with pytest.raises(ValueError, match="vae carries no gradient.*unquantised"):
        gradient_of(decoder(vae), draw(1, 4, 4, 4), torch.Tensor.sum)
    assert decoder(vae)(draw(1, 4, 4, 4)).shape == (1, 3, 32, 32)  # without gradient they serve


def test_too_little_memory_is_told_before_the_start(host, monkeypatch):
    vae = tiny_autoencoder()
    monkeypatch.setattr(_autoencoder, "free_memory", lambda patcher: 100_000)
    with pytest.raises(ValueError, match=r"vae needs .* GB .* free; use a smaller picture"):
        gradient_of(decoder(vae), draw(1, 4, 4, 4), torch.Tensor.sum)


def test_what_a_gradient_holds_is_measured(host):
    """Against the tensors that autograd keeps for a picture of another size."""
    vae, kept = tiny_autoencoder(), {}
    predicted = _autoencoder._bytes_per_cell(vae) * 20 * 20

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _autoencoder._pixels(vae, draw(1, 4, 20, 20).requires_grad_())
    weights = {weight.untyped_storage().data_ptr() for weight in vae.first_stage_model.parameters()}
    assert predicted == pytest.approx(sum(size for at, size in kept.items() if at not in weights), rel=0.05)


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("error", [lambda: comfy.model_management.OOM_EXCEPTION("out"), lambda: RuntimeError(
    "DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_running_out_of_memory_is_told(host, error, when):
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if when == "forward":
                raise error()
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise error()

    vae = tiny_autoencoder()
    decode = decoder(vae)
    gradient_of(decode, draw(1, 4, 4, 4), torch.Tensor.sum)  # the trial is over
    inner = vae.first_stage_model.decode
    vae.first_stage_model.decode = lambda z: Failing.apply(inner(z))
    with pytest.raises(ValueError, match=r"vae ran out of memory.*32 x 32; use a smaller picture"):
        gradient_of(decode, draw(1, 4, 4, 4), torch.Tensor.sum)


def test_the_model_of_a_run_stays_loaded(host, monkeypatch):
    """The host frees memory by moving out what it is not asked for, and would move out the model in use."""
    model, vae, asked = unets.unet(), tiny_autoencoder(), []
    comfy.model_management.load_models_gpu([model])
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda models, **_: asked.append(models))
    _gradients.load(vae.patcher, 1 << 60)
    model.pre_run()
    _gradients.load(vae.patcher, 1 << 60)
    model.cleanup()
    assert model not in asked[0] and model in asked[1] and vae.patcher in asked[1]
