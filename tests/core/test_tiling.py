"""Tiles: nothing lost, nothing doubled, no seam; GroupNorm over tiles as over the whole picture."""

import random
import threading
from fractions import Fraction

import pytest
import torch
from torch.nn import functional
from trajectory.restoration.group_norm import run_in_unison
from trajectory.restoration.tiling import TilePlan, starts_of


def cases(count, seed=0):
    draw = random.Random(seed)
    for _ in range(count):
        yield (draw.randint(1, 150), draw.randint(1, 150), draw.choice([0, *range(1, 70)]), draw.randint(0, 80),
               draw.choice([1, 2, 8, 16]), draw.choice([1, 2, 4]))


def enlarged(x, scale):
    return x.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


@pytest.mark.parametrize("blend", ["feather", "crop"])
def test_identity_in_is_identity_out_for_200_random_sizes(blend):
    generator = torch.Generator().manual_seed(1)
    for height, width, tile, overlap, align, scale in cases(200):
        plan = TilePlan(height, width, tile, overlap, align, scale, blend)
        x = torch.rand(1, 2, height, width, generator=generator)
        seen = []

        def network(crop, seen=seen, align=align, scale=scale):
            assert crop.shape[-2] % align == crop.shape[-1] % align == 0
            seen.append(crop.shape)
            return enlarged(crop, scale)

        y = plan.run(network, plan.pad(x))
        assert y.shape == (1, 2, scale * height, scale * width)
        torch.testing.assert_close(y, enlarged(x, scale), rtol=0, atol=0 if blend == "crop" else 1e-5)
        assert len(seen) == len(plan.boxes)
        assert plan.run(lambda crop, s=scale: torch.ones_like(enlarged(crop, s)), plan.pad(x)).sub(1).abs().max() < 1e-6


def test_tiles_overlap_by_what_is_asked_and_never_leave_the_picture():
    for length, _, tile, overlap, align, _ in cases(200, seed=2):
        length, tile = max(align, length // align * align), max(align, tile // align * align)
        overlap = min(-(-overlap // align) * align, tile // 2 // align * align)
        starts = starts_of(length, tile, overlap, align)
        assert starts[0] == 0 and starts[-1] == max(0, length - tile)
        assert all(start % align == 0 for start in starts)
        assert all(0 < after - before <= tile - overlap for before, after in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("align, grain", [(64, 1), (8, 8), (1, 1)])
def test_no_overlap_makes_tiles_without_end(align, grain):
    for tile, overlap in ((128, 127), (128, 128), (128, 4096), (1, 1024)):
        boxes = TilePlan(512, 512, tile, overlap, align, grain=grain).boxes
        assert len(boxes) <= (2 * -(-512 // max(tile // align * align, align))) ** 2


def test_a_convolutional_network_in_tiles_equals_the_untiled_run_to_the_last_bit():
    """Whole numbers, so that no order of summation can hide or make a difference; a stride, so that starts matter."""
    generator = torch.Generator().manual_seed(3)
    kernels = [torch.randint(-2, 3, shape, generator=generator).float() for shape in (
        (4, 3, 3, 3), (5, 4, 3, 3), (3, 5, 3, 3))]

    def network(x):
        x = functional.conv2d(x, kernels[0], padding=1)
        x = functional.conv2d(x.relu(), kernels[1], padding=1, stride=2)
        return functional.conv2d(enlarged(x, 2), kernels[2], padding=1)

    radius = 6
    x = torch.randint(0, 9, (2, 3, 96, 64), generator=generator).float()
    plan = TilePlan(96, 64, 32, 2 * radius, align=2, blend="crop")
    assert len(plan.boxes) == 15
    whole = network(plan.pad(x))[..., :96, :64]
    assert torch.equal(plan.run(network, plan.pad(x)), whole)
    narrow = TilePlan(96, 64, 32, 0, align=2, blend="crop")
    assert not torch.equal(narrow.run(network, narrow.pad(x)), whole)  # the overlap is what does it


def test_noise_and_masks_are_cut_with_the_picture():
    plan = TilePlan(40, 24, 16, 4, align=8, scale=2)
    x = torch.arange(40 * 24.0).view(1, 1, 40, 24)
    coarse = functional.avg_pool2d(plan.pad(x), 4)

    def network(crop, part):
        torch.testing.assert_close(functional.avg_pool2d(crop, 4), part)
        return enlarged(crop, 2)

    torch.testing.assert_close(plan.run(network, plan.pad(x), coarse), enlarged(x, 2), rtol=0, atol=1e-3)


def test_fresh_noise_in_each_tile_would_fade_where_tiles_overlap_and_shared_noise_does_not():
    plan = TilePlan(64, 256, 64, 32)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(8, 4, 64, 256, generator=generator)
    shared = plan.run(lambda crop: crop, noise)
    fresh = plan.run(lambda crop: torch.randn(crop.shape, generator=generator), noise)
    seam = slice(plan.boxes[1][1] + 12, plan.boxes[0][1] + 64 - 12)  # the middle of the first overlap
    assert abs(shared[..., seam].std() - 1) < 0.05 and fresh[..., seam].std() < 0.8


class Block(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = torch.nn.GroupNorm(4, channels)
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv(functional.silu(self.norm(x)))


@pytest.fixture
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), Block(8), torch.nn.Conv2d(8, 8, 3, stride=2, padding=1), Block(8),
            Block(8), torch.nn.GroupNorm(2, 8, affine=False), torch.nn.Upsample(scale_factor=2),
            torch.nn.Conv2d(8, 3, 3, padding=1)).eval()


@pytest.mark.parametrize("inference", [True, False])
def test_group_norm_over_tiles_is_that_of_the_whole_picture(encoder, inference):
    x = torch.rand(2, 3, 51, 81, generator=torch.Generator().manual_seed(5))
    x[..., :40] *= 0.2  # a dark side, which a tile would normalise away
    plan = TilePlan(51, 81, 48, 24, align=2, blend="crop")
    padded = plan.pad(x)
    with torch.inference_mode(inference), torch.no_grad():
        whole = encoder(padded)[..., :51, :81]
        together = run_in_unison(encoder, encoder, plan, padded)
        apart = plan.run(encoder, padded)
        torch.testing.assert_close(together, whole, rtol=1e-5, atol=1e-5)
        assert (apart - whole).abs().max() > 0.05
        torch.testing.assert_close(encoder(padded)[..., :51, :81], whole, rtol=0, atol=0)  # as it was before


def test_a_network_that_shrinks(encoder):
    """As an encoder does: the tiles of the result are a half of those of the picture."""
    x = torch.rand(1, 3, 70, 46, generator=torch.Generator().manual_seed(6))
    half = encoder[:5]
    plan = TilePlan(70, 46, 40, 20, align=2, scale=Fraction(1, 2), blend="crop")
    with torch.no_grad():
        torch.testing.assert_close(run_in_unison(half, half, plan, x), half(x), rtol=1e-5, atol=1e-5)


def test_progress_is_told_in_the_callers_thread_and_may_end_the_run(encoder):
    plan = TilePlan(64, 64, 32, 8, align=2)
    shares, thread = [], threading.current_thread()

    def progress(share):
        assert threading.current_thread() is thread
        shares.append(share)
        if share > 0.5:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        run_in_unison(encoder, encoder, plan, torch.rand(1, 3, 64, 64), progress)
    assert shares == sorted(shares) and shares[0] == 0 and threading.active_count() == threads


def test_an_error_in_one_tile_ends_all_and_leaves_the_network_as_it_was(encoder):
    x = torch.rand(1, 3, 64, 64)
    plan = TilePlan(64, 64, 32, 8, align=2)
    calls = []

    def network(crop):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no room")
        return encoder(crop)

    with pytest.raises(MemoryError, match="no room"), torch.no_grad():
        run_in_unison(encoder, network, plan, x)
    assert all("forward" not in module.__dict__ and not module._forward_hooks for module in encoder.modules())
    with torch.no_grad():
        run_in_unison(encoder, encoder, plan, x)


def test_tiles_may_begin_between_the_blocks_that_bind_their_sides():
    x = torch.rand(1, 2, 200, 130, generator=torch.Generator().manual_seed(9))
    plan = TilePlan(200, 130, 128, 16, align=64, grain=4)
    assert {box[2:] for box in plan.boxes} == {(128, 128)} and len(plan.boxes) == 6
    assert all(top % 4 == left % 4 == 0 for top, left, _, _ in plan.boxes)
    assert len(TilePlan(200, 130, 128, 16, align=64).boxes) == 6 < len(TilePlan(512, 512, 128, 16, align=64).boxes)
    torch.testing.assert_close(plan.run(lambda crop: crop, plan.pad(x)), x, rtol=0, atol=1e-6)
    assert len(TilePlan(512, 512, 128, 16, align=64, grain=1).boxes) == 25
