"""AdcSR inside a host: its files, pictures of any size, tiles, colours, and the host's own node for upscale models."""

import adcsr_files
import comfy.model_management
import folder_paths
import pytest
import torch
from torch.nn import functional
from trajectory.restoration import colour_fix

FILES = {"net": "net_params_200.pkl", "decoder": "halfDecoder.ckpt", "dtype": "fp32"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/adcsr of its own, with the two files of a tiny network."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "adcsr", ([str(tmp_path)], {".pkl", ".ckpt"}))
    adcsr_files.write(tmp_path, adcsr_files.random_network())
    return tmp_path


def load(host, **choices):
    """(ADCSR, UPSCALE_MODEL)"""
    with torch.inference_mode():
        return host.node_table["TrajectoryAdcSRLoader"].execute(**{**FILES, **choices}).args


def upscale(host, adcsr, image, tile=512, overlap=32, color_fix="adcsr"):
    with torch.inference_mode():
        return host.node_table["TrajectoryAdcSRUpscale"].execute(
            adcsr=adcsr, image=image, tile=tile, overlap=overlap, color_fix=color_fix).args[0]  # fmt: skip


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(height, width):
    rows, columns = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 9, width), indexing="ij")
    return torch.stack([0.5 + 0.4 * torch.sin(rows + k) * torch.cos(columns - k) for k in range(3)], -1)[None]


# --- AdcSR Upscale ----------------------------------------------------------------------------------------------------


def test_a_picture_is_what_the_network_makes_with_the_mean_and_contrast_of_the_input(host, folder):
    adcsr, _ = load(host)
    picture = image(1, 32, 48, 3)
    made = upscale(host, adcsr, picture)
    with torch.no_grad():
        low = picture.movedim(-1, 1)
        expected = colour_fix.adcsr(adcsr_files.random_network()(low), low).clamp(0, 1)
    torch.testing.assert_close(made.movedim(-1, 1), expected, rtol=1e-4, atol=1e-5)
    assert made.std() > 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 33), (3000, 17)])
def test_any_size_gives_four_times_it(host, folder, size):
    adcsr, _ = load(host)
    made = upscale(host, adcsr, image(1, *size, 3), tile=256)
    assert made.shape == (1, 4 * size[0], 4 * size[1], 3)
    assert 0 <= made.min() and made.max() <= 1


def test_alpha_is_enlarged_and_kept(host, folder):
    adcsr, _ = load(host)
    picture = torch.cat([image(2, 16, 16, 3), torch.zeros(2, 16, 16, 1)], -1)
    picture[:, :, 8:, 3] = 1
    made = upscale(host, adcsr, picture)
    assert made.shape == (2, 64, 64, 4)
    assert torch.equal(made[..., :3], upscale(host, adcsr, picture[..., :3]))
    assert (made[:, :, :24, 3] == 0).all() and (made[:, :, 40:, 3] == 1).all()


@pytest.mark.parametrize("color_fix", ["adcsr", "wavelet", "adain", "lab", "none"])
def test_frames_of_a_still_picture_are_identical_and_do_not_depend_on_each_other(host, folder, color_fix):
    adcsr, _ = load(host)
    frames = image(1, 16, 16, 3).expand(16, -1, -1, -1)
    made = upscale(host, adcsr, frames, color_fix=color_fix)
    assert made.shape[0] == 16 and all(torch.equal(frame, made[0]) for frame in made)
    other = upscale(host, adcsr, torch.cat([image(1, 16, 16, 3, seed=1), frames[:1]]), color_fix=color_fix)
    assert torch.equal(other[1], made[0])


def test_colours_are_fixed_on_the_whole_picture_not_on_its_tiles(host, folder):
    adcsr, _ = load(host)
    adcsr.model.forward = lambda x: functional.interpolate(x, scale_factor=4.0) ** 3
    picture = smooth(64, 160)
    low = picture.movedim(-1, 1)
    expected = colour_fix.adcsr(adcsr.model(low), low).clamp(0, 1)
    made = upscale(host, adcsr, picture, tile=64, overlap=16)
    torch.testing.assert_close(made.movedim(-1, 1), expected)


def test_tiles_are_nearly_the_whole_picture(host, folder):
    """Only nearly, since norms and attention see a tile: of a pattern that repeats, a tile has seen it all."""
    adcsr, _ = load(host)
    places = torch.arange(128) * torch.pi / 8
    pattern = torch.sin(places[:64, None] + places)[None, ..., None] * torch.tensor([0.4, 0.2, -0.3]) + 0.5
    whole, tiled = (upscale(host, adcsr, pattern, tile=tile, color_fix="none") for tile in (0, 64))
    assert not torch.equal(whole, tiled)
    assert torch.corrcoef(torch.stack([whole.flatten(), tiled.flatten()]))[0, 1] > 0.95


def test_cancelling_stops_before_the_next_network_call(host, folder):
    adcsr, _ = load(host)
    calls = []
    adcsr.model.unet.register_forward_hook(
        lambda *_: calls.append(1) or comfy.model_management.interrupt_current_processing())
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            upscale(host, adcsr, image(3, 16, 16, 3))
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert calls == [1]


def test_another_color_fix_and_bad_pictures_are_refused(host, folder):
    adcsr, _ = load(host)
    with pytest.raises(ValueError, match="color_fix is 'sepia'; choose one of adcsr, none, wavelet, adain, lab"):
        upscale(host, adcsr, image(1, 4, 4, 3), color_fix="sepia")
    with pytest.raises(ValueError, match="image has the shape"):
        upscale(host, adcsr, image(0, 4, 4, 3))
    with pytest.raises(ValueError, match="image has values that are not finite"):
        upscale(host, adcsr, torch.full((1, 4, 4, 3), float("inf")))


# --- AdcSR Loader -----------------------------------------------------------------------------------------------------


def test_the_files_of_the_folder_are_the_choices(host, folder):
    inputs = {part.id: part for part in host.node_table["TrajectoryAdcSRLoader"].define_schema().inputs}
    assert inputs["net"].options == inputs["decoder"].options == ["halfDecoder.ckpt", "net_params_200.pkl"]


def test_weights_are_stored_as_chosen(host, folder):
    assert load(host, dtype="fp16")[0].model.dtype == torch.float16
    assert load(host, dtype="auto")[0].model.dtype == torch.float32  # the tests run on a CPU
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        load(host, dtype="fp8")


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_bad_files_are_refused_by_name(host, folder):
    whole = (folder / "net_params_200.pkl").read_bytes()
    (folder / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    torch.save({"module.body.1.conv_in.weight": Malicious()}, folder / "bad.pkl")
    net, _ = adcsr_files.published(adcsr_files.random_network())
    torch.save({key: value for key, value in net.items() if "mid_block" not in key and ".body.4." not in key},
               folder / "short.pkl")  # fmt: skip
    for choices, message in [
        ({"net": "nowhere.pkl"}, "net is 'nowhere.pkl', which is no file in models/adcsr"),
        ({"net": "cut.pkl"}, r"net: cut.pkl \(\d+ bytes\) is not read"),
        ({"net": "bad.pkl"}, "net: bad.pkl .* it asks for .*exec"),
        ({"net": "halfDecoder.ckpt"}, "net is 'halfDecoder.ckpt', but it is not AdcSR's net_params file.*the other"),
        ({"decoder": "net_params_200.pkl"}, "decoder is 'net_params_200.pkl', but it is not AdcSR's halfDecoder file"),
        ({"net": "short.pkl"}, r"net 'short.pkl' and decoder 'halfDecoder.ckpt' give no AdcSR: .*unet.mid_block"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(host, **choices)


# --- the same network as an UPSCALE_MODEL -----------------------------------------------------------------------------


def stock(host, model, picture):
    with torch.inference_mode():
        return host.node_table["ImageUpscaleWithModel"].execute(upscale_model=model, image=picture).args[0]


@pytest.mark.parametrize("size", [(1, 1), (17, 33)])
def test_the_hosts_own_node_enlarges_any_size_with_it(host, folder, size):
    _, model = load(host)
    picture = image(2, *size, 3)
    made = stock(host, model, picture)
    assert made.shape == (2, 4 * size[0], 4 * size[1], 3)
    with torch.inference_mode():
        torch.testing.assert_close(made.movedim(-1, 1), torch.cat([model(x) for x in picture.movedim(-1, 1).split(1)]))


def test_in_the_hosts_node_it_is_adcsr_upscale_with_wavelets(host, folder):
    adcsr, model = load(host)
    picture = smooth(40, 24)
    torch.testing.assert_close(stock(host, model, picture), upscale(host, adcsr, picture, color_fix="wavelet"))


def test_tiles_of_the_hosts_node_have_the_colours_of_the_whole(host, folder):
    """Each half of a picture has the mean of that half of the input, and there is no edge where two tiles meet."""
    _, model = load(host)
    picture = smooth(16, 700)
    made = stock(host, model, picture)
    blurred = functional.avg_pool2d(made.movedim(-1, 1), 64, 64)
    expected = functional.avg_pool2d(picture.movedim(-1, 1), 16, 16)[..., : blurred.shape[-1]]
    assert (blurred - expected).abs().max() < 0.15
    steps = made.mean((0, 1, 3)).diff().abs()
    border = 128  # of a picture or tile, along which the network's padding shows
    start, end = 4 * 480 - border, 4 * 512 + border
    elsewhere = torch.cat([steps[border:start], steps[end:-border]])
    assert steps[start:end].max() < 1.5 * elsewhere.max()  # tiles that are not blended: 5 times


def test_the_hosts_node_is_cancelled_before_a_tile(host, folder):
    _, model = load(host)
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            stock(host, model, image(1, 16, 16, 3))
    finally:
        comfy.model_management.interrupt_current_processing(False)


def test_it_is_an_operator_with_a_gradient(host, folder):
    _, model = load(host)
    operator = host.node_table["TrajectoryOperatorFromModel"].execute(upscale_model=model).args[0]
    picture = 0.3 + 0.4 * image(1, 3, 16, 16)
    picture.requires_grad_()
    made = operator.forward(picture)
    assert made.shape == (1, 3, 64, 64)
    gradient, = torch.autograd.grad(made.sum(), picture)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
