"""Low-rank changes of weights: exact sums, convolutions as matrices, and no change without a pair."""

import torch
from trajectory.models.low_rank import merged


def test_matrices_and_convolutions_get_up_times_down():
    generator = torch.Generator().manual_seed(0)
    weights = {
        "block.to_q.weight": torch.randn(6, 4, generator=generator),
        "block.conv.weight": torch.randn(6, 4, 3, 3, generator=generator),
        "block.conv.bias": torch.randn(6, generator=generator),
    }
    pairs = {}
    for name, inner in (("block.to_q.weight", 4), ("block.conv.weight", 36)):
        pairs[f"{name}.up"] = torch.randn(6, 2, generator=generator)
        pairs[f"{name}.down"] = torch.randn(2, inner, generator=generator)
    changed = merged(weights, pairs)
    assert list(changed) == list(weights)
    assert changed["block.conv.bias"] is weights["block.conv.bias"]
    # the change of one element, by hand
    i, j, k, m = 3, 2, 1, 0
    up, down = pairs["block.conv.weight.up"], pairs["block.conv.weight.down"]
    expected = weights["block.conv.weight"][i, j, k, m] + sum(up[i, r] * down[r, j * 9 + k * 3 + m] for r in range(2))
    torch.testing.assert_close(changed["block.conv.weight"][i, j, k, m], expected)
    difference = changed["block.to_q.weight"] - weights["block.to_q.weight"]
    assert torch.linalg.matrix_rank(difference, atol=1e-5) == 2
    assert not torch.equal(changed["block.to_q.weight"], weights["block.to_q.weight"])


def test_half_precision_factors_are_multiplied_in_the_precision_of_the_weights():
    weight = torch.zeros(3, 3)
    up, down = torch.full((3, 1), 300.0).half(), torch.full((1, 3), 300.0).half()  # the product exceeds half's 65504
    assert merged({"w": weight}, {"w.up": up, "w.down": down})["w"].tolist() == [[90000.0] * 3] * 3
