"""Networks with random weights."""

import torch


def stirred(module, seed=0, std=0.2):
    """`module` with weights of which none is zero, so that everything has an effect."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return module
