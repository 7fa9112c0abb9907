"""JPEG, few bits, clipping, networks and deepinv's physics inside a host."""

import importlib
import importlib.util
import io

import comfy.model_management
import numpy as np
import operator_nodes
import pytest
import torch
from operator_checks import misfit
from operator_nodes import call, check_operator, image, operator
from PIL import Image
from safetensors.torch import save_file

CODECS = {
    **{f"JPEG {s} {r}": lambda host, s=s, r=r: operator(host, "JPEG", quality=40, subsampling=s, rounding=r)
       for s in ("4:2:0", "4:4:4") for r in ("straight-through", "cubic")},
    "Quantise": lambda host: operator(host, "Quantise"),
    "Clip": lambda host: operator(host, "Clip"),
}  # fmt: skip


@pytest.mark.parametrize("name", CODECS)
def test_a_picture_is_measured_shown_and_steered_by(host, name):
    held = "cubic" in name or name == "Clip"  # coefficients safe in their steps, and what is cut off, hardly move
    measured = check_operator(host, CODECS[name](host), gain=0.95 if held else 0.8)
    assert measured.y.shape == (2, 3, 17, 22)


def test_a_picture_is_shown_as_its_file(host):
    """Pillow's, of the same quality."""
    x = torch.linspace(0, 1, 64).view(1, 1, 64, 1) * torch.tensor([1.0, 0.5, 0.2]) + torch.linspace(0, 0.3, 64).view(
        1, 64, 1, 1)  # fmt: skip
    pixels = (255 * x.clamp(0, 1)).round()
    _, preview = call(host, "ApplyOperator", operator=operator(host, "JPEG", quality=10), image=pixels / 255)
    file = io.BytesIO()
    Image.fromarray(pixels[0].byte().numpy()).save(file, "JPEG", quality=10, subsampling="4:2:0")
    assert np.abs(255 * preview[0].numpy() - np.asarray(Image.open(file), dtype=float)).mean() < 1


def test_a_file_of_ones_own_is_a_measurement(host):
    picture, made = image(2, 16, 24), operator(host, "JPEG", quality=50)
    _, preview = call(host, "ApplyOperator", operator=made, image=picture)
    found, = call(host, "MeasurementFromImage", image=preview, operator=made, width=24, height=16)
    assert misfit(found, picture.movedim(-1, 1)) < 1e-6


def test_rounding_none_measures_but_does_not_steer(host):
    made = operator(host, "JPEG", rounding="none")
    measured, _ = call(host, "ApplyOperator", operator=made, image=image())
    with pytest.raises(ValueError, match="JPEG has no gradient"):
        measured.direction(image(seed=1).movedim(-1, 1))


# --- networks


class Network(torch.nn.Module):
    """Enlarges by two and mixes the colours of neighbours."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(3, 12, 3, padding=1)
        self.register_buffer("middle", torch.tensor(0.5))

    def forward(self, x):
        return torch.nn.functional.pixel_shuffle(self.mix(x - self.middle), 2) + self.middle


class Descriptor:
    """As Load Upscale Model hands out: spandrel's, which runs in inference mode, pads to even sizes and clamps."""

    scale, input_channels, output_channels = 2, 3, 3

    def __init__(self):
        self.model = Network().eval()
        self.calls = []

    @torch.inference_mode()
    def __call__(self, picture):
        self.calls.append(tuple(picture.shape))
        height, width = picture.shape[-2:]
        even = torch.nn.functional.pad(picture, (0, width % 2, 0, height % 2), mode="replicate")
        return self.model(even).clamp_(0, 1)[..., : 2 * height, : 2 * width]


def upscale_model():
    """Made where hosts make it, in inference mode."""
    with torch.inference_mode():
        made = Descriptor()
        generator = torch.Generator().manual_seed(0)
        for p in made.model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    assert all(p.is_inference() for p in made.model.parameters())
    return made


def test_a_network_of_an_upscale_model_carries_gradients(host):
    model = upscale_model()
    measured = check_operator(host, operator(host, "FromModel", upscale_model=model), gain=0.5)
    assert measured.y.shape == (2, 3, 34, 44)
    assert all(shape[0] == 1 for shape in model.calls)
    model.calls.clear()
    call(host, "MeasurementFromImage", image=image(1, 34, 44), operator=measured.operator, width=22, height=17)
    assert not model.calls  # a shape needs no network
    x = image(1).movedim(-1, 1)
    with torch.inference_mode():
        assert torch.allclose(measured.operator.A(x), model(x.clone()), atol=1e-6)


def test_a_network_can_be_called_where_weights_are_normal(host):
    model = Descriptor()
    check_operator(host, operator(host, "FromModel", upscale_model=model), gain=0.8)


def test_interruption_before_a_network(host):
    model = upscale_model()
    made = operator(host, "FromModel", upscale_model=model)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        call(host, "ApplyOperator", operator=made, image=image())
    assert not model.calls


def test_a_network_of_other_channels_is_refused(host):
    model = upscale_model()
    model.input_channels = 4
    with pytest.raises(ValueError, match="the network takes pictures of 4 channels, but there are 3"):
        call(host, "ApplyOperator", operator=operator(host, "FromModel", upscale_model=model), image=image())


def test_running_out_of_memory_is_told(host, monkeypatch):
    model = upscale_model()
    measured, _ = call(host, "ApplyOperator", operator=operator(host, "FromModel", upscale_model=model), image=image())

    def too_large(_):
        raise comfy.model_management.OOM_EXCEPTION("too large")

    monkeypatch.setattr(model.model, "forward", too_large)
    with pytest.raises(ValueError, match="upscale_model ran out of memory in the gradient of a picture of 22 x 17"):
        measured.direction(image(seed=1).movedim(-1, 1))


def test_a_file_of_load_upscale_model_is_an_operator(host, tmp_path):
    """Real hosts alone have that node: spandrel's own descriptor, around a small network of random weights."""
    if "UpscaleModelLoader" not in host.node_table:
        pytest.skip("the embedded host loads no upscale models")
    import folder_paths
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2).state_dict(), tmp_path / "small.safetensors")
    folder_paths.add_model_folder_path("upscale_models", str(tmp_path))
    with torch.inference_mode():
        model, = host.node_table["UpscaleModelLoader"].execute("small.safetensors").args
    measured = check_operator(host, operator(host, "FromModel", upscale_model=model), gain=0.95)
    assert measured.y.shape == (2, 3, 34, 44)
    with torch.inference_mode():
        x = image(1).movedim(-1, 1)
        assert torch.allclose(measured.operator.A(x), model(x.clone()), atol=1e-5)
    upscaled, = host.node_table["ImageUpscaleWithModel"].execute(model, image()).args  # the host's own use goes on
    assert torch.allclose(upscaled.movedim(-1, 1), measured.y, atol=1e-4)


# --- deepinv


def test_deepinv_has_a_node_where_it_is_installed(host):
    installed = importlib.util.find_spec("deepinv") is not None
    assert ("TrajectoryOperatorFromDeepinv" in host.node_table) == installed


def test_without_deepinv_its_node_is_left_out(host, monkeypatch):
    from trajectory.nodes import operators_codec

    find = importlib.util.find_spec
    for installed in (False, True):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest, there=installed: (
            there if name == "deepinv" else find(name, *rest)))  # fmt: skip
        fresh = find(operators_codec.__name__)
        module = importlib.util.module_from_spec(fresh)
        fresh.loader.exec_module(module)
        ids = [node.GET_SCHEMA().node_id for node in module.NODES]
        assert ("TrajectoryOperatorFromDeepinv" in ids) == installed and "TrajectoryOperatorJPEG" in ids


def test_a_physics_of_deepinv(host):
    pytest.importorskip("deepinv")
    check_operator(host, operator(host, "FromDeepinv"), gain=0.1)
    made = operator(host, "FromDeepinv", physics="Inpainting", arguments='{"img_size": [3, 17, 22], "mask": 0.5}')
    check_operator(host, made, gain=0.1)
    with pytest.raises(ValueError, match="arguments is no JSON"):
        operator(host, "FromDeepinv", arguments="{img_size: 3}")


@pytest.mark.parametrize(("name", "inputs", "message"), [
    ("JPEG", {"quality": 100}, "quality is 100; set it to 1 - 95"),
    ("JPEG", {"subsampling": "4:1:1"}, "subsampling is '4:1:1'"),
    ("Quantise", {"bits": 9}, "bits is 9"),
    ("Clip", {"gain": -1.0}, "gain is -1.0"),
])  # fmt: skip
def test_wrong_inputs_are_named(host, name, inputs, message):
    with pytest.raises(ValueError, match=message):
        operator_nodes.operator(host, name, **inputs)
