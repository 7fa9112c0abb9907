"""The nodes of losses: what they make of the host's types, and networks of vision with their gradients."""

import pytest
import torch
from operator_checks import misfit
from trajectory.nodes._vision import vision_embeds, vision_states
from trajectory.operators.base import Operator, gradients
from trajectory.operators.losses import Loss
from trajectory.operators.measurement import Measurement
from vision import vision_of


def image(*shape, seed=1):
    """IMAGE [B, H, W, 3]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make(host, node, *args, **inputs):
    cls = host.node_table[f"Trajectory{node}"]
    optional = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    return cls.execute(*args, **{**optional, **inputs}).args[0]


# --- CLIP Vision -----------------------------------------------------------------------------------------------------


NODES = {
    "LossCLIPVision": {},
    "LossStyleGram": {"layers": "-3, 1"},
}


@pytest.mark.parametrize("node", NODES)
def test_a_network_of_vision_has_a_gradient_where_the_host_runs_nodes(host, node):
    with torch.inference_mode():
        loss = make(host, node, clip_vision=vision_of(host), reference=image(1, 40, 64, 3), **NODES[node])
        x = pixels(2, 3, 48, 32)
        values, moved = loss(x), loss.direction(x)
    assert isinstance(loss, Loss) and values.shape == (2,) and values.dtype == torch.float32
    with torch.inference_mode():
        alone = torch.cat([loss.direction(item) for item in x.split(1)])
        assert torch.allclose(moved, alone, atol=1e-4)
        for _ in range(20):
            x = x - 0.02 * loss.direction(x)
        assert (loss(x) < 0.8 * values).all()
        assert loss(loss_reference(image(1, 40, 64, 3))).abs().max() < 1e-3


def loss_reference(shown):
    return shown.movedim(-1, 1)


@pytest.mark.parametrize("node", NODES)
def test_the_gradient_of_vision_is_that_of_finite_differences(host, node):
    loss = make(host, node, clip_vision=vision_of(host), reference=image(1, 40, 64, 3), **NODES[node])
    x = pixels(1, 3, 48, 32)
    with gradients():
        leaf = x.clone().requires_grad_()
        gradient, = torch.autograd.grad(loss(leaf).sum(), leaf)
    step = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        change = loss(x + step) - loss(x - step)
    assert float((gradient * step).sum()) == pytest.approx(float(change) / 2, rel=2e-2)


def test_embeddings_are_the_hosts_but_for_its_rounding(host):
    if host.name == "embedded":
        pytest.skip("the embedded host has no CLIP Vision")
    vision, shown = vision_of(host), image(2, 56, 84, 3)
    smooth = torch.nn.functional.avg_pool2d(shown.movedim(-1, 1), 9, 1, 4)
    with torch.no_grad():
        theirs = vision.encode_image(smooth.movedim(1, -1), crop=False)
        ours = vision_embeds(vision)(smooth)
        states = vision_states(vision, [-2])(smooth)[:, 0]
    assert torch.allclose(ours, theirs["image_embeds"].float(), atol=0.02 * float(ours.abs().max()))
    expected = theirs["penultimate_hidden_states"].float()
    assert torch.allclose(states, expected, atol=0.03 * float(expected.abs().max()))


def test_siglip_and_half_precision(host):
    if host.name == "embedded":
        pytest.skip("the embedded host has no CLIP Vision")
    siglip = vision_of(host, model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh")
    half = vision_of(host)
    half.model.half()
    hooks = [len(layer._forward_pre_hooks) for layer in half.model.modules()]
    for vision in (siglip, half):
        for node in NODES:
            loss = make(host, node, clip_vision=vision, reference=image(1, 40, 64, 3), **NODES[node])
            assert loss.direction(pixels(1, 3, 48, 32)).isfinite().all()
    assert [len(layer._forward_pre_hooks) for layer in half.model.modules()] == hooks  # nothing is left behind


def test_networks_of_vision_that_do_not_fit(host):
    vision, shown = vision_of(host), image(1, 40, 64, 3)
    with pytest.raises(ValueError, match=r"layers is \[9\], but clip_vision has 4"):
        make(host, "LossStyleGram", clip_vision=vision, reference=shown, layers="9")
    vision.image_size = 0
    with pytest.raises(ValueError, match="clip_vision reads pictures of any size"):
        make(host, "LossCLIPVision", clip_vision=vision, reference=shown)
    vision = vision_of(host)
    vision.model.forward = lambda pixel_values, intermediate_output=None: intermediate_output < 0
    with pytest.raises(ValueError, match="hidden states"):
        make(host, "LossStyleGram", clip_vision=vision, reference=shown)


def test_running_out_of_memory_names_clip_vision(host):
    import comfy.model_management

    vision = vision_of(host)
    loss = make(host, "LossCLIPVision", clip_vision=vision, reference=image(1, 40, 64, 3))

    def failing(**_):
        raise comfy.model_management.OOM_EXCEPTION("out")

    vision.model.forward = failing
    with pytest.raises(ValueError, match="clip_vision ran out of memory"):
        loss.direction(pixels(1, 3, 48, 32))


# --- colour, measurement and sum -------------------------------------------------------------------------------------


class Grey(Operator):
    def forward(self, x):
        return x.mean(1, keepdim=True)


def test_colours_are_read_as_written(host):
    loss = make(host, "LossColour", target="mean", colours="#ff8000")
    orange = torch.tensor([1.0, 128 / 255, 0.0]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert torch.allclose(loss(orange), torch.zeros(2), atol=1e-12)
    both = make(host, "LossColour", target="palette", colours="ff8000, #0000FF")
    blue = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert float(both(blue)) == pytest.approx(0, abs=1e-6) == float(both(orange[:1]))


def test_a_histogram_of_a_picture_with_alpha(host):
    shown = image(1, 16, 16, 4)
    loss = make(host, "LossColour", target="histogram", reference=shown)
    assert float(loss(shown[..., :3].movedim(-1, 1))) == pytest.approx(0, abs=1e-9)


def test_a_mask_is_where_colours_count(host):
    mask = torch.zeros(8, 8)  # some nodes hand out a MASK without its first axis
    mask[:4] = 1.0
    x = pixels(1, 3, 8, 8)
    for shape in (mask, mask[None]):
        moved = make(host, "LossColour", mask=shape).direction(x)
        assert moved[..., :4, :].any() and not moved[..., 4:, :].any()


@pytest.mark.parametrize(("inputs", "words"), [
    ({"colours": "#ff80"}, "'#ff80'"), ({"colours": "orange"}, "'orange'"), ({"colours": " "}, "colours is empty"),
    ({"target": "histogram"}, "reference is not connected"), ({"target": "hue"}, "target is 'hue'"),
    ({"mask": torch.zeros(1, 8, 8)}, "black everywhere"), ({"mask": torch.ones(3, 8, 8)}, "3 items"),
    ({"mask": torch.zeros(1, 0, 0)}, "mask has the shape"),
    ({"mask": torch.full((1, 8, 8), torch.nan)}, "mask has values that are not finite"),
    ({"target": "histogram", "reference": torch.zeros(0, 8, 8, 3)}, "reference has the shape"),
    ({"target": "histogram", "reference": torch.full((1, 8, 8, 3), torch.nan)}, "reference has values")])  # fmt: skip
def test_colours_that_do_not_fit(host, inputs, words):
    with pytest.raises(ValueError, match=words):
        make(host, "LossColour", **inputs)


@pytest.mark.parametrize(("layers", "words"), [("", "layers is empty"), ("first", "'first'")])
def test_layers_that_are_none(host, layers, words):
    with pytest.raises(ValueError, match=words):
        make(host, "LossStyleGram", clip_vision=vision_of(host), reference=image(1, 40, 64, 3), layers=layers)


def test_a_measurement_and_a_sum(host):
    x = pixels(2, 3, 8, 8)
    measurement = Measurement(Grey(), torch.zeros(1, 1, 8, 8), 0.0, (1, 3, 8, 8))
    first = make(host, "LossMeasurement", measurement)
    assert torch.allclose(first(x), x.mean(1).square().mean((1, 2)))
    second = make(host, "LossColour")
    joined = make(host, "LossSum", loss_1=first, loss_3=second, weight_1=2.0, weight_3=0.5)
    assert torch.allclose(joined(x), 2 * first(x) + 0.5 * second(x))
    with pytest.raises(ValueError, match="weight is 0"):
        make(host, "LossSum", loss_1=first, weight_1=0.0)
    with pytest.raises(ValueError, match="weight_2 is nan; set it to a finite number"):
        make(host, "LossSum", loss_1=first, loss_2=second, weight_2=torch.nan)


def test_the_histogram_of_a_grey_picture(host):
    shown = image(1, 16, 16, 1)
    loss = make(host, "LossColour", target="histogram", reference=shown)
    assert float(loss(shown.expand(-1, -1, -1, 3).movedim(-1, 1))) == pytest.approx(0, abs=1e-9)


# --- Operator Through VAE --------------------------------------------------------------------------------------------


def test_an_operator_goes_through_the_vae_of_a_miniature(host):
    """Its measurement steers latents, where the host runs nodes."""
    with torch.inference_mode():
        vae = host.node_table["TrajectoryLoadMiniature"].execute("landscapes (flow)").args[2]
        operator = make(host, "OperatorThroughVAE", operator=Grey(), vae=vae)
        assert operator.domain((1, 3, 64, 64)) == (1, 16, 8, 8)
        z = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
        goal = vae.encode(image(1, 64, 64, 3))
        measurement = Measurement(operator, operator.A(goal).clone(), 0.0, operator.domain((1, 3, 64, 64)))
        before = misfit(measurement, z)
        for _ in range(15):
            z = z - measurement.direction(z)
        assert misfit(measurement, z) < 0.8 * before
        assert operator.pinv(measurement.y, z.shape).shape == z.shape
        with pytest.raises(ValueError, match="takes latents already"):
            make(host, "OperatorThroughVAE", operator=operator, vae=vae)
