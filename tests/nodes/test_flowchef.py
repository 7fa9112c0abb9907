"""FlowChef inside a host: references, masks, measurements, losses and the edit guider, on models of all kinds."""

import logging

import comfy.model_management
import comfy.samplers
import host_models
import pytest
import torch
from operator_checks import misfit
from trajectory.operators.losses import Loss
from trajectory.operators.masks import Mask
from trajectory.operators.measurement import Measurement
from trajectory.operators.resample import Downsample

KINDS = ("eps", "v", "edm", "flow")
SHAPE = (2, 4, 6, 8)
STEPS = 8


class LatentDownsample(Downsample):
    space = "latent"


def noise_of(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def half(shape=SHAPE, items=1):
    """A MASK that repaints the right half."""
    mask = torch.zeros(items, *shape[-2:])
    mask[..., shape[-1] // 2 :] = 1
    return mask


def defaults(cls):
    return {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}


def flowchef(host, **inputs):
    cls = host.node_table["TrajectoryFlowChefSampler"]
    return cls.execute(**{**defaults(cls), **inputs}).args[0]


def edit_guider(host, patcher, target=0.4, source=-0.2, **inputs):
    cls = host.node_table["TrajectoryFlowChefEditGuider"]
    texts = {"target": host_models.conditioning(target), "source": host_models.conditioning(source)}
    return cls.execute(**{**defaults(cls), "model": patcher, **texts, **inputs}).args[0]


def scaled_model(kind, channels=4):
    """A model whose latents are half as large as the VAE's."""
    patcher = host_models.model(kind, channels)
    patcher.model.latent_format.scale_factor = 0.5
    return patcher


def sigmas_of(patcher, kind, steps=STEPS):
    scheduler = "simple" if kind == "flow" else "karras"
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, steps)


def sample(sampler, kind, patcher=None, noise=None, latent=None, mask=None, sigmas=None, guider=None, cfg=1.0):
    patcher = patcher or scaled_model(kind)
    guider = guider or host_models.guider(patcher, cfg=cfg)
    noise = noise_of(0) if noise is None else noise
    latent = torch.zeros_like(noise) if latent is None else latent
    sigmas = sigmas_of(patcher, kind) if sigmas is None else sigmas
    return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=3).clone()


# --- references and masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_is_kept_in_the_scale_of_the_vae(host, kind, cfg):
    reference = noise_of(1)
    sampler = flowchef(host, strength=1.0, max_norm=0.0, reference={"samples": reference}, mask=half())
    out = sample(sampler, kind, cfg=cfg)
    assert torch.allclose(out[..., :4], reference[..., :4], atol=1e-5)
    assert (out[..., 4:] - reference[..., 4:]).abs().mean() > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_is_the_hosts_euler_to_the_bit(host, kind):
    sampler = flowchef(host, strength=0.0, reference={"samples": noise_of(1)})
    euler = comfy.samplers.sampler_object("euler")
    for mask, latent in ((None, None), (half()[:, None], noise_of(2))):
        expected = sample(euler, kind, latent=latent, mask=mask)
        assert torch.equal(sample(sampler, kind, latent=latent, mask=mask), expected)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_latents_noise_mask_is_the_mask_and_the_host_does_not_paint_over(host, kind):
    latent = noise_of(1)
    patcher = scaled_model(kind)
    seen, forward = [], patcher.model.diffusion_model.forward

    def watched(x, *args, **kwargs):
        seen.append(x.clone())
        return forward(x, *args, **kwargs)

    patcher.model.diffusion_model.forward = watched
    by_noise_mask = sample(flowchef(host, strength=0.2), kind, patcher, latent=latent, mask=half()[:, None])
    first = [x.clone() for x in seen]
    seen.clear()
    by_mask = sample(flowchef(host, strength=0.2, mask=half()), kind, patcher, latent=latent)
    assert torch.equal(by_noise_mask, by_mask)
    assert all(torch.equal(a, b) for a, b in zip(first, seen, strict=True))  # the model saw its own states
    other = {"samples": noise_of(5)}
    assert torch.equal(
        sample(flowchef(host, strength=0.2, reference=other), kind, latent=latent, mask=half()[:, None]),
        sample(flowchef(host, strength=0.2, reference=other, mask=half()), kind, latent=latent),
    )


def test_a_connected_mask_takes_the_place_of_the_noise_mask(host):
    latent = noise_of(1)
    both = sample(flowchef(host, mask=half()), "flow", latent=latent, mask=1 - half()[:, None])
    assert torch.equal(both, sample(flowchef(host, mask=half()), "flow", latent=latent))


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_packed_latent_is_steered_by_its_noise_mask(host, kind):
    shape = (2, 1, 40)
    mask = torch.zeros(2, 1, 40)
    mask[..., 20:] = 1
    patcher, latent = scaled_model(kind, channels=1), noise_of(1, shape)
    sampler = flowchef(host, strength=1.0, max_norm=0.0)
    x = patcher.model.process_latent_in(latent)

    class Wrapped:  # as the host hands a packed latent to a sampler function
        latent_image, noise = x, noise_of(0, shape)
        inner_model = host_models.guider(patcher)

        def __call__(self, x, sigma, denoise_mask, **_):
            assert denoise_mask is None
            return 0.4 + 0.5 * (x - 0.4)

    Wrapped.inner_model.inner_model = patcher.model
    out = sampler.sampler_function(
        Wrapped(), noise_of(0, shape), sigmas_of(patcher, kind), {"denoise_mask": mask}, disable=True,
        **sampler.extra_options,
    )  # fmt: skip
    assert torch.allclose(out[..., :20], x[..., :20], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 4, 3, 6, 8)], ids=str)
def test_odd_sizes_and_videos(host, kind, shape):
    reference, mask = noise_of(1, shape), half(shape)
    sampler = flowchef(host, strength=1.0, max_norm=0.0, reference={"samples": reference}, mask=mask)
    out = sample(sampler, kind, noise=noise_of(0, shape))
    known = slice(0, shape[-1] // 2)
    assert torch.allclose(out[..., known], reference[..., known], atol=1e-5)


def test_a_mask_of_pixels_is_brought_to_the_latents_cells(host, caplog):
    mask = torch.zeros(1, 48, 64)
    mask[:, :, 30:] = 1  # cuts through the fourth of eight cells
    reference = noise_of(1)
    with caplog.at_level(logging.INFO, "trajectory"):
        out = sample(flowchef(host, strength=1.0, max_norm=0.0, reference={"samples": reference}, mask=mask), "flow")
    assert torch.allclose(out[..., :3], reference[..., :3], atol=1e-5)
    assert (out[..., 3] - reference[..., 3]).abs().mean() > 0.2
    assert "resized to the latent's 6 x 8; 38 % of it is kept" in caplog.text


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_item_k_of_a_batch_is_that_item_alone(host, kind):
    shape = (3, *SHAPE[1:])
    noise, reference, masks = noise_of(0, shape), noise_of(1, shape), (noise_of(2, (3, 6, 8)) > 0).float()
    operator = LatentDownsample(2)
    y = operator.A(noise_of(4, shape))

    def run(k):
        measurement = Measurement(operator, y[k], 0.0, tuple(noise[k].shape))
        inputs = {"reference": {"samples": reference[k]}, "mask": masks[k], "measurement": measurement}
        return sample(flowchef(host, strength=0.3, **inputs), kind, noise=noise[k], cfg=2.0)

    whole = run(slice(0, 3))
    for k in range(3):
        assert torch.allclose(whole[k : k + 1], run(slice(k, k + 1)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_denoise_below_1_and_a_schedule_that_ends_above_0(host, kind):
    patcher, latent = scaled_model(kind), noise_of(1)
    late = sigmas_of(patcher, kind, 2 * STEPS)[-STEPS - 1 :]
    sampler = flowchef(host, strength=1.0, max_norm=0.0, mask=half())
    out = sample(sampler, kind, patcher, latent=latent, sigmas=late)
    assert torch.allclose(out[..., :4], latent[..., :4], atol=1e-5)
    early = sample(sampler, kind, patcher, latent=latent, sigmas=sigmas_of(patcher, kind)[:5])
    assert early.isfinite().all()
    for sigmas in ([], [0.7], [0.8, 0.5, 0.5, 0.0]):
        assert sample(sampler, kind, patcher, latent=latent, sigmas=torch.tensor(sigmas)).isfinite().all()


def test_bfloat16_and_a_second_run(host):
    sampler = flowchef(host, strength=0.3, reference={"samples": noise_of(1)}, mask=half(), source_steps=2)
    high = sample(sampler, "flow")
    low = sample(sampler, "flow", noise=noise_of(0).bfloat16())
    assert (low.float() - high).abs().max() < 0.2
    assert torch.equal(sample(sampler, "flow"), high)


def test_runs_in_inference_mode_as_the_hosts_nodes_do(host):
    operator = LatentDownsample(2)
    with torch.inference_mode():
        measurement = Measurement(operator, operator.A(noise_of(4)), 0.0, SHAPE)
        out = sample(flowchef(host, strength=1.0, max_norm=0.0, measurement=measurement), "flow")
    assert misfit(measurement, out) < 1e-5


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_interruption(host, kind):
    patcher = scaled_model(kind)
    network, forward = patcher.model.diffusion_model, patcher.model.diffusion_model.forward
    sampler = flowchef(host, reference={"samples": noise_of(1)}, inner_steps=3)
    whole = sample(sampler, kind, patcher)
    network.calls.clear()

    def interrupting(*args, **kwargs):
        if len(network.calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    network.forward = interrupting
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(sampler, kind, patcher)
    assert len(network.calls) == 4
    network.forward = forward
    assert torch.equal(sample(sampler, kind, patcher), whole)


# --- measurements and losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_measurement_of_latents_is_met(host, kind):
    operator = LatentDownsample(2)
    measurement = Measurement(operator, operator.A(noise_of(4)), 0.0, SHAPE)
    errors = [
        misfit(measurement, sample(flowchef(host, strength=strength, max_norm=0.0, measurement=measurement), kind))
        for strength in (0.0, 0.3, 1.0)
    ]
    assert errors[0] > 0.3 and errors[1] < 0.2 * errors[0] and errors[2] < 1e-5


def test_a_measurement_of_pixels_steers_a_model_of_pixels(host):
    """Such a model works in -1..1, a measurement in 0..1."""
    shape = (1, 3, 8, 8)
    picture = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    measurement = Measurement(Mask(half(shape)), picture * (1 - half(shape)), 0.0, shape)
    patcher = host_models.model("flow", channels=3)
    sampler = flowchef(host, strength=1.0, max_norm=0.0, measurement=measurement)
    out = sample(sampler, "flow", patcher, noise_of(0, shape))
    assert torch.allclose(out[..., :4] / 2 + 0.5, picture[..., :4], atol=1e-5)


def test_a_loss_of_a_picture_falls(host):
    model, clip, vae = host.node_table["TrajectoryLoadMiniature"].execute("landscapes (flow)").args
    with torch.inference_mode():
        states, pooled = clip.encode_from_tokens(clip.tokenize("a dusk over sea"), return_pooled=True)
        text = [[states, {"pooled_output": pooled}]]
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(text, text)
        noise, sigmas, red = noise_of(0, (1, 16, 8, 8)), sigmas_of(model, "flow", 4), []
        for strength in (0.0, 0.3):

            def redness(pixels):
                return (pixels[:, 0] - 1).square().flatten(1).mean(1)

            sampler = flowchef(host, strength=strength, loss=Loss(redness), vae=vae)
            latent = sample(sampler, "flow", model, noise, guider=guider, sigmas=sigmas)
            red.append(float(redness(vae.decode(latent).movedim(-1, 1))))
    assert red[1] < 0.5 * red[0]


# --- the edit guider -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_acts_inside_the_mask_alone(host, kind):
    """Outside, the run is that of the target's Gaussian; inside of the guided one. Elements do not mix here."""
    patcher, euler = scaled_model(kind), comfy.samplers.sampler_object("euler")
    edited = sample(euler, kind, patcher, guider=edit_guider(host, patcher, cfg=3.0, mask=half()))
    target, guided = (sample(euler, kind, patcher, cfg=cfg) for cfg in (1.0, 3.0))
    assert torch.allclose(edited[..., :4], target[..., :4], atol=1e-5)
    assert torch.allclose(edited[..., 4:], guided[..., 4:], atol=1e-5)
    everywhere = sample(euler, kind, patcher, guider=edit_guider(host, patcher, cfg=3.0))
    assert torch.allclose(everywhere, guided, atol=1e-5)


@pytest.mark.parametrize(
    "cfg, steer_with, items", [(1.0, "target", 2), (1.0, "source", 4), (3.0, "target", 4), (3.0, "source", 4)]
)
def test_one_batched_call_a_step(host, cfg, steer_with, items):
    patcher = scaled_model("flow")
    guider = edit_guider(host, patcher, cfg=cfg, steer_with=steer_with, mask=half())
    sample(flowchef(host, reference={"samples": noise_of(1)}), "flow", patcher, guider=guider)
    assert sum(patcher.model.diffusion_model.calls) == items * STEPS


def test_the_source_prediction_is_steered_where_chosen(host):
    """In one step to 0 the source's prediction, the Gaussian about -0.2, is what moves to the reference."""
    patcher, reference = host_models.model("flow"), noise_of(1)
    sigmas, noise = torch.tensor([0.5, 0.0]), noise_of(0)

    def run(steer_with):
        guider = edit_guider(host, patcher, cfg=3.0, steer_with=steer_with)
        sampler = flowchef(host, strength=1.0, max_norm=0.0, reference={"samples": reference})
        return sample(sampler, "flow", patcher, noise, sigmas=sigmas, guider=guider)

    assert torch.allclose(run("target"), reference, atol=1e-6)
    x = 0.5 * noise
    gain = 0.5 * host_models.STD**2 / (0.25 * host_models.STD**2 + 0.25)

    def denoised(mean):
        return mean + gain * (x - 0.5 * mean)

    assert torch.allclose(run("source"), denoised(1.6) + reference - denoised(-0.2), atol=1e-5)


def test_the_models_own_guidance_functions_run_before_the_mask(host):
    patcher, euler = host_models.model("flow"), comfy.samplers.sampler_object("euler")
    patcher = patcher.clone()
    patcher.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 1.0)
    plain = sample(euler, "flow", host_models.model("flow"))
    out = sample(euler, "flow", patcher, guider=edit_guider(host, patcher, cfg=1.0, mask=half()))
    assert torch.allclose(out[..., :4], plain[..., :4], atol=1e-5)
    assert (out[..., 4:] - plain[..., 4:]).min() > 0.5


def test_an_edit_guider_keeps_nothing_of_a_run(host):
    patcher = scaled_model("flow")
    guider = edit_guider(host, patcher, mask=half(), steer_with="source")
    before = dict(vars(guider))
    sampler = flowchef(host, reference={"samples": noise_of(1)})
    first = sample(sampler, "flow", patcher, guider=guider)
    assert torch.equal(sample(sampler, "flow", patcher, guider=guider), first)
    assert vars(guider).keys() == before.keys() and guider.model_options is patcher.model_options


def test_a_reference_brings_its_noise_mask(host):
    marked = {"samples": noise_of(1), "noise_mask": half()[:, None]}
    plain = {"samples": noise_of(1)}
    by_reference = sample(flowchef(host, reference=marked), "flow")
    assert torch.equal(by_reference, sample(flowchef(host, reference=plain, mask=half()), "flow"))
    assert not torch.equal(by_reference, sample(flowchef(host, reference=plain), "flow"))


@pytest.mark.parametrize("mask", [torch.zeros(1, 0, 0), half() * torch.nan])
def test_a_mask_without_content_is_told(host, mask):
    for node in (flowchef, lambda host, mask: edit_guider(host, scaled_model("flow"), mask=mask)):
        with pytest.raises(ValueError, match="mask has"):
            node(host, mask=mask)


# --- bad input -------------------------------------------------------------------------------------------------------


def latent_measurement(shape):
    operator = LatentDownsample(2)
    return Measurement(operator, operator.A(torch.zeros(shape)), 0.0, shape)


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({}, "nothing to steer toward; connect measurement, loss, or reference"),
        ({"mask": half()}, "mask is connected, but the sampled latent is empty.*connect reference"),
        ({"source_steps": 5}, "source_steps is 5, but there is no picture"),
        ({"reference": {"samples": torch.zeros(1, 4, 6, 10)}}, "reference is a latent 1 x 4 x 6 x 10, but the sampled"),
        ({"reference": {"samples": torch.zeros(1, 16, 6, 8)}}, "reference is a latent 1 x 16 x 6 x 8"),
        ({"reference": {"samples": torch.zeros(3, 4, 6, 8)}}, "reference is a latent 3 x 4 x 6 x 8"),
        ({"reference": {"samples": torch.ones(SHAPE)}, "mask": half(items=3)}, "mask has 3 items, but the latent"),
        ({"measurement": Measurement(Downsample(2), torch.zeros(1, 3, 24, 32), 0.0, (1, 3, 48, 64))},
         "measurement is of pixels, but the model samples latents; put Operator Through VAE"),
        ({"measurement": latent_measurement((1, 16, 6, 8))}, "8 x 6 with 16 channels.*Operator Through VAE was given"),
        ({"measurement": latent_measurement((1, 4, 4, 4))}, "4 x 4 with 4 channels"),
        ({"loss": lambda pixels: pixels.mean((1, 2, 3))}, "loss is connected, but vae is not"),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_the_first_call(host, inputs, words):
    patcher = scaled_model("flow")
    with pytest.raises(ValueError, match=words):
        sample(flowchef(host, **inputs), "flow", patcher)
    assert not patcher.model.diffusion_model.calls


def test_an_empty_latent_with_a_noise_mask_has_nothing_to_keep(host):
    with pytest.raises(ValueError, match="The latent has a noise mask, but the sampled latent is empty"):
        sample(flowchef(host), "flow", mask=half()[:, None])


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"strength": -0.1}, "strength is -0.1"),
        ({"start": 0.9, "stop": 0.2}, "start is 0.9 and stop 0.2"),
        ({"mode": "sign"}, "mode is 'sign'; choose one of linear, soft-sign"),
        ({"schedule": "rise to 1", "loss": Loss(None)}, "schedule is 'rise to 1', but a loss has no end"),
    ],
)
def test_bad_options_are_told_by_the_node(host, inputs, words):
    with pytest.raises(ValueError, match=words):
        flowchef(host, **inputs)


def test_bad_options_of_the_edit_guider(host):
    with pytest.raises(ValueError, match="steer_with is 'both'; choose one of target, source"):
        edit_guider(host, host_models.model("flow"), steer_with="both")
