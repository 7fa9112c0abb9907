"""Records tests/parity/adcsr.json: python record_adcsr.py /path/to/AdcSR

The authors' network (Net, github.com/Guaishou74851/AdcSR) over a UNet of diffusers and a half decoder with random
weights, and the line of their test.py that sets mean and contrast. Their class wants 320 channels at the first size and
256 from the decoder; the others are small here.
"""

import ast
import json
import sys
from pathlib import Path

import torch

PUBLISHED = {
    "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "use_linear_projection": True,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SMALL = {**PUBLISHED, "block_out_channels": [320, 128, 64, 64], "attention_head_dim": [5, 2, 1, 1],
         "cross_attention_dim": 8}  # fmt: skip
DECODER, SMALL_DECODER = [64, 128, 256, 256], [32, 32, 64, 256]
SIZE, STRIDE = (16, 32), 3


def random_weights(shapes, seed=0):
    """{key: tensor} for {key: shape}, small enough that the output stays near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key in sorted(shapes):
        drawn = torch.randn(shapes[key], generator=generator)
        if drawn.ndim == 1:
            weights[key] = drawn.mul_(0.1).add_(1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = drawn.div_(drawn[0].numel() ** 0.5)
    return weights


def picture(size=SIZE):
    """A picture [1, 3, h, w] in 0..1."""
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))


def theirs(checkout, unet, decoder):
    """The authors' network, as their test.py builds it, and the state dicts that its two files hold: net, decoder."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.autoencoders.vae import Decoder

    sys.path.insert(0, str(checkout))
    try:
        from model import Net
    finally:
        sys.path.pop(0)
    with torch.device("meta"):  # of the whole SD 2.1 they keep a part
        halves = [Decoder(4, 3, ["UpDecoderBlock2D"] * 4, decoder, layers_per_block=2) for _ in range(2)]
        net = Net(UNet2DConditionModel(**unet), halves[0])
    net, half = net.to_empty(device="cpu").eval(), halves[1].to_empty(device="cpu").eval()
    for module, seed in ((net, 0), (half, 1)):
        shapes = {key: value.shape for key, value in module.named_parameters()}  # each under its first name alone
        module.load_state_dict(random_weights(shapes, seed), strict=False)
    whole = torch.nn.Sequential(net, *half.up_blocks, half.conv_norm_out, half.conv_act, half.conv_out)
    return whole, {f"module.{key}": value for key, value in net.state_dict().items()}, {
        f"decoder.{key}": value for key, value in half.state_dict().items()}  # fmt: skip


def their_fix(checkout, sr, lr):
    """SR with the mean and contrast of LR, both in -1..1."""
    source = (Path(checkout) / "test.py").read_text(encoding="utf-8")
    line = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assign) and ".std(" in ast.unparse(n))
    names = {"SR": sr, "LR": lr}
    exec(compile(ast.Module([line], []), "test.py", "exec"), names)  # noqa: S102 - the authors'
    return names["SR"]


def record(checkout):
    whole, net, half = theirs(checkout, SMALL, SMALL_DECODER)
    lr = 2 * picture() - 1
    with torch.no_grad():
        sr = whole(lr)
    fixed = their_fix(checkout, sr, lr)
    return {
        "net": {key: list(value.shape) for key, value in net.items()},
        "decoder": {key: list(value.shape) for key, value in half.items()},
        **{name: [float(f"{number:.7g}") for number in found[0, :, ::STRIDE, ::STRIDE].flatten().tolist()]
           for name, found in (("sr", sr), ("fixed", fixed))},
    }  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("adcsr.json").write_text(json.dumps(record(sys.argv[1])) + "\n")
