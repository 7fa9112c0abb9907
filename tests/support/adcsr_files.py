"""A tiny AdcSR with random weights, and its two files as the authors publish theirs."""

import torch
from trajectory.models.adcsr import LEVELS, AdcSR

WIDTHS, DECODER_WIDTHS = (48, 96, 48, 48), (16, 16, 8, 8)


def random_network(seed=0):
    """AdcSR whose output has about the contrast of its input's noise."""
    network = AdcSR(WIDTHS, DECODER_WIDTHS).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in network.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.copy_(drawn / drawn[0].numel() ** 0.5)
        else:
            weight.copy_(0.1 * drawn + (1.0 if key.endswith("weight") else 0.0))
    return network


def published(network):
    """(net, decoder): the nested contents of net_params_200.pkl and halfDecoder.ckpt."""
    state = network.state_dict()
    unet, middle, rest = (
        {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
        for part in ("unet.", "decoder.mid_block.", "decoder."))  # fmt: skip
    order = [f"down_blocks.{n}" for n in range(LEVELS)] + ["mid_block"] + [f"up_blocks.{n}" for n in range(LEVELS)]
    order += ["conv_norm_out", "conv_act", "conv_out"]
    again = {f"body.{number}{key.removeprefix(name)}": value for number, name in enumerate(order)
             for key, value in unet.items() if key.startswith(f"{name}.")}  # fmt: skip
    net = {**{f"1.{key}": value for key, value in {**unet, **again}.items()},
           **{f"2.{key}": value for key, value in middle.items()}}  # fmt: skip
    untrained = {key: torch.zeros_like(value) for key, value in rest.items() if key.startswith("mid_block.")}
    decoder = {**rest, **untrained, "conv_in.weight": torch.zeros(DECODER_WIDTHS[0], 4, 3, 3)}
    return ({f"module.body.{key}": value for key, value in net.items()},
            {"state_dict": {f"decoder.{key}": value for key, value in decoder.items()}, "epoch": 7})  # fmt: skip


def write(folder, network):
    """Put the two files into a folder."""
    for name, contents in zip(("net_params_200.pkl", "halfDecoder.ckpt"), published(network), strict=True):
        torch.save(contents, folder / name)
