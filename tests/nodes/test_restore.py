"""What all restoring nodes share: frames, tiles, progress, cancelling, memory, and files in the model folders."""

import logging
import os

import pytest
import torch
from torch.nn import functional


@pytest.fixture
def restore(host):
    from trajectory.nodes import _restore

    return _restore


def doubled(picture, progress):
    return picture.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (17, 5)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_gives_scale_times_it_and_keeps_alpha(restore, size, channels):
    image = torch.rand(2, *size, channels, generator=torch.Generator().manual_seed(0))
    made = restore.each_frame(image, 2, doubled)
    assert made.shape == (2, 2 * size[0], 2 * size[1], 4 if channels == 4 else 3)
    colours = image[..., :3].expand(*image.shape[:3], 3)
    torch.testing.assert_close(made[..., :3], colours.repeat_interleave(2, 1).repeat_interleave(2, 2))
    if channels == 4:
        torch.testing.assert_close(made[..., 3].mean(), image[..., 3].mean(), rtol=0.2, atol=0.02)


def test_an_opaque_picture_stays_opaque(restore):
    image = torch.cat([torch.rand(1, 9, 7, 3), torch.ones(1, 9, 7, 1)], -1)
    assert (restore.each_frame(image, 4, lambda p, _: functional.interpolate(p, scale_factor=4))[..., 3] == 1).all()


def test_frames_are_restored_one_by_one_and_do_not_touch_each_other(restore):
    image = torch.rand(3, 24, 32, 3, generator=torch.Generator().manual_seed(1))
    seen = []

    def noisy(picture, progress):
        seen.append(picture.shape)
        return doubled(picture, progress) + 0.1 * restore.noise_of((1, 3, 48, 64), 7)

    together = restore.each_frame(image, 2, noisy, "lab")
    assert seen == [(1, 3, 24, 32)] * 3
    for k in range(3):
        assert torch.equal(restore.each_frame(image[k:k + 1], 2, noisy, "lab"), together[k:k + 1])
    still = restore.each_frame(image[:1].expand(16, -1, -1, -1), 2, noisy, "wavelet")
    assert all(torch.equal(frame, still[0]) for frame in still)


@pytest.mark.parametrize("image, message", [
    (torch.rand(0, 4, 4, 3), r"image has the shape \[0, 4, 4, 3\]"),
    (torch.rand(4, 4, 3), r"image has the shape"),
    (torch.rand(1, 4, 4, 2), "image has 2 channels"),
    (torch.full((1, 4, 4, 3), float("nan")), "image has values that are not finite"),
])
def test_what_is_no_picture_is_refused(restore, image, message):
    with pytest.raises(ValueError, match=message):
        restore.each_frame(image, 2, doubled)


def test_a_result_that_is_not_finite_is_told_with_its_fix(restore):
    with pytest.raises(ValueError, match="not finite.*choose dtype fp32 in the loader"):
        restore.each_frame(torch.rand(1, 4, 4, 3), 1, lambda picture, _: picture / 0)


def test_another_color_fix_is_refused_before_anything_runs(restore):
    with pytest.raises(ValueError, match="color_fix is 'sepia'; choose one of none, wavelet, adain, lab"):
        restore.each_frame(torch.rand(1, 4, 4, 3), 1, lambda *_: pytest.fail("ran"), "sepia")


def test_progress_rises_to_its_end_over_frames_and_tiles(restore, monkeypatch):
    seen = []

    class Bar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value):
            seen.append(value / self.total)

    monkeypatch.setattr(restore.comfy.utils, "ProgressBar", Bar)

    def tiled(picture, progress):
        def network(crop, progress):
            progress(0.5)
            return crop

        return restore.in_tiles(network, picture, tile=16, overlap=4, progress=progress)

    restore.each_frame(torch.rand(2, 40, 40, 3), 1, tiled)
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1 and len(seen) > 30


def test_cancelling_ends_a_run_between_two_tiles(restore):
    from comfy.model_management import InterruptProcessingException, interrupt_current_processing

    calls = []

    def network(crop, progress):
        calls.append(1)
        if len(calls) == 3:
            interrupt_current_processing()
        return crop

    def tiled(picture, progress):
        return restore.in_tiles(network, picture, tile=16, overlap=4, progress=progress)

    try:
        with pytest.raises(InterruptProcessingException):
            restore.each_frame(torch.rand(1, 64, 64, 3), 1, tiled)
    finally:
        interrupt_current_processing(False)
    assert len(calls) == 3


def out_of_memory_above(restore, limit, sizes):
    def network(crop, *_):
        sizes.append(tuple(crop.shape[-2:]))
        if max(crop.shape[-2:]) > limit:
            raise restore.comfy.model_management.OOM_EXCEPTION("no room")
        return crop

    return network


@pytest.mark.parametrize("tile", [0, 64])
def test_out_of_memory_halves_the_tile_and_begins_the_picture_again(restore, tile, caplog):
    picture, sizes = torch.rand(1, 3, 100, 60, generator=torch.Generator().manual_seed(2)), []
    with caplog.at_level(logging.WARNING, "trajectory"):
        made = restore.in_tiles(out_of_memory_above(restore, 32, sizes), picture, tile=tile, overlap=8, align=4,
                                progress=restore.Progress(lambda done: None))
    torch.testing.assert_close(made, picture)
    assert max(sizes[-1]) <= 32 and "Out of memory" in caplog.text


def test_the_next_frames_begin_with_the_tile_that_fits(restore, caplog):
    sizes, network = [], None
    network = out_of_memory_above(restore, 16, sizes)

    def tiled(picture, progress):
        return restore.in_tiles(network, picture, tile=64, overlap=8, align=4, progress=progress)

    image = torch.rand(3, 70, 66, 3)
    with caplog.at_level(logging.WARNING, "trajectory"):
        torch.testing.assert_close(restore.each_frame(image, 1, tiled), image)
    assert caplog.text.count("Out of memory") == 2  # 64 to 32 to 16, in the first frame alone


def test_a_network_of_ours_is_loaded_as_a_whole_or_not_at_all(restore):
    """Where a host would leave layers on the CPU, since it has memory for a few of them only."""
    network = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
    patcher = restore.patcher_of(network)
    patcher.partially_load(torch.device("meta"), 300_000)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert patcher.partially_unload(torch.device("cpu"), 1) == 0
    assert patcher.clone().partially_unload(torch.device("cpu"), 1) == 0


def test_out_of_memory_at_the_least_tile_is_the_hosts_to_tell(restore):
    sizes = []
    with pytest.raises(restore.comfy.model_management.OOM_EXCEPTION):
        restore.in_tiles(out_of_memory_above(restore, 8, sizes), torch.rand(1, 3, 100, 60), tile=64, overlap=8, align=4,
                         least=16, progress=restore.Progress(lambda done: None))
    assert max(sizes[-1]) == 16


def test_noise_is_a_function_of_its_seed_and_the_global_generator_stays(restore):
    before = torch.get_rng_state()
    a, b, c = (restore.noise_of((1, 3, 8, 8), seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())
    restore.noise_of((1,), 2**64 - 1)  # the largest seed of a node


@pytest.mark.parametrize("choice", ["auto", "fp32", "fp16", "bf16"])
def test_dtypes(restore, choice):
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(choice, torch.float32)
    assert restore.dtype_of(choice) == expected  # the tests run on a CPU
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        restore.dtype_of("fp8")


@pytest.fixture
def folder(host, tmp_path, monkeypatch):
    import folder_paths
    from trajectory.nodes import _files

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "restorers", ([str(tmp_path)], set()))
    return tmp_path, _files


def test_weight_files_are_listed_and_read(folder):
    path, files = folder
    torch.save({"module.w": torch.ones(2)}, path / "weights.pth")
    (path / "readme.txt").write_text("no weights")
    os.utime(path)
    assert files.files("restorers") == ["weights.pth"]
    assert torch.equal(files.read("restorers", "weights.pth", "net")["module.w"], torch.ones(2))


@pytest.mark.parametrize("name", ["other.pth", "../secret.pth", "/etc/passwd", ""])
def test_a_file_that_is_not_in_the_list_is_refused(folder, name):
    path, files = folder
    (path.parent / "secret.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="net is .*, which is no file in models/restorers"):
        files.read("restorers", name, "net")


def test_a_damaged_file_is_refused_by_the_inputs_name(folder):
    path, files = folder
    (path / "weights.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"net: weights\.pth \(8 bytes\) is not read: .*Fetch it again"):
        files.read("restorers", "weights.pth", "net")
