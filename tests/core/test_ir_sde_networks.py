"""IR-SDE's and Refusion's networks: sizes, readers, borders, precisions. Parity: tests/parity/test_ir_sde.py."""

import pytest
import torch
from trajectory.models import conditional_unet, nafnet
from trajectory.models.conditional_unet import ConditionalUNet, mirrored
from trajectory.models.nafnet import ConditionalNAFNet

TINY = {
    conditional_unet.read: lambda: ConditionalUNet(nf=4, depth=2),
    nafnet.read: lambda: ConditionalNAFNet(width=4, encoders=(1, 2), middle=1, decoders=(1, 1)),
}


def tiny(read, seed=0):
    """A small network of the reader's class with weights that all matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TINY[read]()
        for name, weight in network.named_parameters():
            if name.endswith(("beta", "gamma")):  # 0 before training
                torch.nn.init.normal_(weight)
    return network.eval().requires_grad_(False)


def noise_like(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make, parameters", [
    (ConditionalUNet, 137_147_523),
    (lambda: ConditionalUNet(nf=32, depth=5), 135_346_755),
    (ConditionalNAFNet, 76_608_387),
    (lambda: ConditionalNAFNet(in_channels=3), 76_606_659),
    (lambda: ConditionalNAFNet(in_channels=16, out_channels=8, intro_skip=True), 76_617_032),
])  # fmt: skip
def test_published_sizes(make, parameters):
    with torch.device("meta"):
        assert sum(weight.numel() for weight in make().parameters()) == parameters


@pytest.mark.parametrize("read", TINY)
@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (2, 3), (5, 17), (16, 16), (33, 3)])
def test_any_size_and_each_item_alone(read, height, width):
    network, x, times = tiny(read), noise_like(2, 6, height, width), torch.tensor([1.0, 63.5])
    both = network(x, times)
    assert both.shape == (2, 3, height, width) and both.isfinite().all()
    assert torch.allclose(both[1:], network(x[1:], times[1:]), atol=1e-5)
    assert not torch.allclose(both, network(x, times + 20), atol=1e-4)


@pytest.mark.parametrize("read", TINY)
def test_a_reader_finds_the_sizes_in_the_weights(read):
    network, x = tiny(read), noise_like(1, 6, 7, 9)
    again = read(network.state_dict())
    assert torch.equal(again(x, torch.ones(1)), network(x, torch.ones(1)))
    half = read(network.state_dict(), torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    exact, result = (made(x, torch.ones(1)) for made in (network, half))
    assert result.dtype is torch.float32 and not torch.equal(result, exact)
    assert (result - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize("read, other", [(conditional_unet.read, nafnet.read), (nafnet.read, conditional_unet.read)])
def test_weights_of_another_network_are_refused_by_name(read, other):
    with pytest.raises(ValueError, match="these are not the weights of a Conditional"):
        read(tiny(other).state_dict())
    weights = tiny(read).state_dict()
    with pytest.raises(ValueError, match="these are not the weights of a Conditional"):
        read({key: weight.flatten() for key, weight in weights.items()})
    with pytest.raises(ValueError, match=r"unknown \(fusion\.weight\)"):
        read({**weights, "fusion.weight": torch.ones(1)})
    weights.popitem()
    with pytest.raises(ValueError, match="1 missing"):
        read(weights)


def test_mirroring_goes_on_beyond_the_picture():
    line = torch.arange(3.0).view(1, 1, 3)
    assert mirrored(line, 8)[0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert mirrored(line, 8).shape == (1, 8, 8)
    assert torch.equal(mirrored(noise_like(4, 5), 1), noise_like(4, 5))
