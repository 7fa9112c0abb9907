"""BDIA Invert inside a host: an exact round trip, runs that do not belong to it, cancelling, progress."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import host_models
import pytest
import torch

KINDS = ("eps", "v", "edm", "flow")
SCHEDULERS = {"eps": "karras", "v": "karras", "edm": "karras", "flow": "simple"}
SHAPE = (1, 4, 6, 6)
STEPS = 20


def picture(shape=SHAPE, seed=0):
    return 0.4 + 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmas_of(patcher, kind, steps=STEPS, total=None):
    """A schedule of `steps` intervals, the last ones of one of `total`."""
    sampling = patcher.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, SCHEDULERS[kind], total or steps)[-steps - 1 :]


def invert(host, guider, latent, sigmas, gamma=0.96, end_sigma=0.0, verify=False):
    """(noise LATENT, SAMPLER, SIGMAS, report) of the node."""
    latent = latent if isinstance(latent, dict) else {"samples": latent}
    node = host.node_table["TrajectoryBDIAInvert"]
    return node.execute(
        guider=guider, latent=latent, sigmas=sigmas, gamma=gamma, end_sigma=end_sigma, verify=verify
    ).args


def sample(guider, sampler, sigmas, like, noise=None, mask=None, callback=None):
    """What SamplerCustomAdvanced does with Disable Noise, unless `noise` is given."""
    noise = torch.zeros_like(like) if noise is None else noise
    return guider.sample(
        noise, torch.zeros_like(like), sampler, sigmas, denoise_mask=mask, callback=callback, disable_pbar=True, seed=0
    )


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_back_is_exact(host, kind, cfg):
    patcher = host_models.model(kind)
    guider, x = host_models.guider(patcher, cfg=cfg), picture()
    noise, sampler, sigmas, _ = invert(host, guider, x, sigmas_of(patcher, kind))
    assert len(patcher.model.diffusion_model.calls) == (len(sigmas) - 1) * (1 if cfg == 1 else 2)
    back = sample(guider, sampler, sigmas, x)
    assert (back - x).abs().max() < 1e-5
    assert (noise["samples"] - x).abs().mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_keeps_nothing_of_a_run_and_needs_no_noise(host, kind):
    patcher = host_models.model(kind)
    guider, x = host_models.guider(patcher), picture()
    _, sampler, sigmas, _ = invert(host, guider, x, sigmas_of(patcher, kind))
    edit = host_models.guider(patcher, positive=-0.5)
    first = sample(edit, sampler, sigmas, x)
    sample(guider, sampler, sigmas, x)
    assert torch.equal(first, sample(edit, sampler, sigmas, x, noise=picture(seed=9)))
    # Gaussian data of another mean: the picture goes there and keeps its own deviation from the mean
    assert float(first.mean()) == pytest.approx(float(x.mean()) - 0.9, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_schedule(host, kind):
    """As with denoise below 1, or the low part of SplitSigmas."""
    patcher = host_models.model(kind)
    guider, x = host_models.guider(patcher, cfg=2.0), picture()
    given = sigmas_of(patcher, kind, steps=12, total=20)
    noise, sampler, sigmas, _ = invert(host, guider, x, given)
    assert torch.equal(sigmas[:10], given[:10]) and (sigmas[0] < 1 or kind != "flow")
    assert (sample(guider, sampler, sigmas, x) - x).abs().max() < 1e-5
    assert noise["samples"].shape == SHAPE


def test_a_schedule_that_ends_before_zero_keeps_its_end(host):
    patcher = host_models.model("eps")
    guider, x = host_models.guider(patcher), picture()
    given = torch.tensor([9.0, 5.0, 2.0, 0.5])
    _, sampler, sigmas, _ = invert(host, guider, x, given)
    assert torch.equal(sigmas, given)
    assert (sample(guider, sampler, sigmas, x) - x).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_closing_zero_becomes_the_smallest_sigma_of_the_model(host, kind):
    patcher = host_models.model(kind)
    sampling = patcher.get_model_object("model_sampling")
    sigmas = invert(host, host_models.guider(patcher), picture(), sigmas_of(patcher, kind))[2]
    end = 0.002 if kind == "flow" else float(sampling.sigma_min)
    assert float(sigmas[-1]) == pytest.approx(end) and float(sigmas[-2]) > end * 1.001


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 4, 3, 4, 4), (1, 1, 40)], ids=str)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_batches_odd_sizes_video_and_packed_latents(host, kind, shape):
    patcher = host_models.model(kind, channels=shape[1])
    guider, x = host_models.guider(patcher, cfg=2.0), picture(shape)
    _, sampler, sigmas, _ = invert(host, guider, x, sigmas_of(patcher, kind))
    back = sample(guider, sampler, sigmas, x)
    assert back.shape == shape and (back - x).abs().max() < 1e-5
    for k in range(shape[0]):
        alone = invert(host, guider, x[k : k + 1], sigmas_of(patcher, kind))[1]
        for one, many in zip(alone.pair, sampler.pair, strict=True):
            assert torch.allclose(one, many[k : k + 1], rtol=1e-5, atol=1e-5)


def test_latents_that_travel_as_one(host):
    """Video and audio in one latent: the sampler sees them packed, and both come back."""
    nested = pytest.importorskip("comfy.nested_tensor", reason="this host has single latents only")
    parts = [picture((2, 4, 3, 4, 4)), picture((2, 4, 5, 6), seed=1)]
    patcher, latent = host_models.model("flow"), nested.NestedTensor(parts)
    guider = host_models.guider(patcher)
    noise, sampler, sigmas, _ = invert(host, guider, latent, sigmas_of(patcher, "flow"))
    assert [part.shape for part in noise["samples"].unbind()] == [part.shape for part in parts]
    back = guider.sample(latent * 0, latent * 0, sampler, sigmas, disable_pbar=True, seed=0)
    for part, expected in zip(back.unbind(), parts, strict=True):
        assert (part - expected).abs().max() < 1e-5


def test_bfloat16_latents(host):
    patcher = host_models.model("flow")
    guider, x = host_models.guider(patcher), picture().bfloat16()
    _, sampler, sigmas, _ = invert(host, guider, x, sigmas_of(patcher, "flow"))
    assert (sample(guider, sampler, sigmas, x.float()) - x.float()).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_verify_reports_the_drift_and_changes_nothing(host, kind):
    patcher = host_models.model(kind)
    guider, x = host_models.guider(patcher, cfg=2.0), picture()
    quick = invert(host, guider, x, sigmas_of(patcher, kind))
    patcher.model.diffusion_model.calls.clear()
    careful = invert(host, guider, x, sigmas_of(patcher, kind), verify=True)
    intervals = len(careful[2]) - 1
    assert len(patcher.model.diffusion_model.calls) == 2 * (2 * intervals - 1)
    assert all(torch.equal(a, b) for a, b in zip(quick[1].pair, careful[1].pair, strict=True))
    assert quick[3].endswith("not verified") and f"{intervals} intervals from sigma" in careful[3]
    assert float(careful[3].rsplit(" ", 1)[1]) < 1e-6


def test_a_small_gamma_shows_in_the_report(host):
    """Rounding grows by 1/gamma a step: 80 steps at 0.5 leave nothing, and the report says so."""
    patcher = host_models.model("flow")
    sigmas = sigmas_of(patcher, "flow", 80)
    report = invert(host, host_models.guider(patcher), picture(), sigmas, gamma=0.5, verify=True)[3]
    assert float(report.rsplit(" ", 1)[1]) > 1e-3


def test_inputs_are_left_as_they_are(host):
    patcher = host_models.model("eps")
    guider, given = host_models.guider(patcher), sigmas_of(patcher, "eps")
    latent = {"samples": picture(), "batch_index": [4]}
    kept, options = given.clone(), patcher.model_options.copy()
    noise = invert(host, guider, latent, given)[0]
    assert torch.equal(given, kept) and torch.equal(latent["samples"], picture()) and patcher.model_options == options
    assert noise["batch_index"] == [4] and guider.model_options == options


def test_each_conditioning_is_called_alone_and_patches_still_know_which(host):
    """A batch of conditionings would round differently whenever the host finds another amount of free memory."""
    patcher = host_models.model("eps")
    network, seen = patcher.model.diffusion_model, []
    forward = network.forward

    def watching(x, *args, transformer_options=None, **kwargs):
        seen.append((len(x), transformer_options["cond_or_uncond"]))
        return forward(x, *args, transformer_options=transformer_options, **kwargs)

    network.forward = watching
    guider = host_models.guider(patcher, cfg=3.0)
    _, sampler, sigmas, _ = invert(host, guider, picture(), sigmas_of(patcher, "eps"))
    sample(guider, sampler, sigmas, picture())
    assert seen == [(1, [0]), (1, [1])] * (2 * len(sigmas) - 3)


def test_a_users_own_batching_function_stays(host):
    patcher = host_models.model("eps")
    guider, calls = host_models.guider(patcher, cfg=2.0), []

    def own(args):
        calls.append(1)
        arguments = args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        return comfy.samplers.calc_cond_batch(*arguments)

    guider.model_options = {**guider.model_options, "sampler_calc_cond_batch_function": own}
    sigmas = invert(host, guider, picture(), sigmas_of(patcher, "eps"))[2]
    assert len(calls) == len(sigmas) - 1


def test_progress_comes_once_a_call_in_float32(host, monkeypatch):
    import latent_preview

    seen = []

    def prepare(model, steps, *_, **__):
        return lambda step, denoised, x, total: seen.append((step, total, denoised.dtype, x.dtype))

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    patcher = host_models.model("flow")
    guider = host_models.guider(patcher)
    _, sampler, sigmas, _ = invert(host, guider, picture(), sigmas_of(patcher, "flow"), verify=True)
    n = len(sigmas) - 1
    # the way back starts with two states, so its first interval needs no call
    assert [s[:2] for s in seen] == [(i, 2 * n) for i in range(2 * n) if i != n]
    seen.clear()
    sample(guider, sampler, sigmas, picture(), callback=prepare(None, n))
    assert [s[:2] for s in seen] == [(i, n) for i in range(1, n)]
    assert {dtype for s in seen for dtype in s[2:]} == {torch.float32}


@pytest.mark.parametrize("during", ["invert", "verify", "edit"])
def test_interruption(host, during):
    patcher = host_models.model("eps")
    guider, given = host_models.guider(patcher), sigmas_of(patcher, "eps")
    _, sampler, sigmas, _ = invert(host, guider, picture(), given)
    network = patcher.model.diffusion_model
    forward, stop = network.forward, {"invert": 4, "verify": len(sigmas) + 3, "edit": 4}[during]
    network.calls.clear()

    def interrupting(*args, **kwargs):
        if len(network.calls) == stop:
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    network.forward = interrupting
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        if during == "edit":
            sample(guider, sampler, sigmas, picture())
        else:
            invert(host, guider, picture(), given, verify=True)
    assert len(network.calls) == stop + 1
    network.forward = forward
    assert (sample(guider, sampler, sigmas, picture()) - picture()).abs().max() < 1e-5


@pytest.mark.parametrize("change, words", [
    ({"sigmas": torch.tensor([5.0, 2.0, 0.5])}, "sigmas .3 values from 5 to 0.5. is not.*output 'sigmas'"),
    ({"like": picture((2, 4, 6, 6))}, r"latent_image has the shape \[2, 4, 6, 6\].*output 'latent'"),
    ({"like": picture((1, 4, 8, 6))}, r"\[1, 4, 8, 6\], but \[1, 4, 6, 6\] was inverted"),
    ({"mask": torch.ones(1, 1, 6, 6)}, "latent_image has a noise_mask.*ImageCompositeMasked"),
], ids=["sigmas", "batch", "size", "mask"])  # fmt: skip
def test_a_run_that_does_not_belong_to_the_inversion_is_refused_before_the_first_call(host, change, words):
    patcher = host_models.model("eps")
    guider = host_models.guider(patcher)
    _, sampler, sigmas, _ = invert(host, guider, picture(), sigmas_of(patcher, "eps"))
    patcher.model.diffusion_model.calls.clear()
    with pytest.raises(ValueError, match=words):
        sample(guider, sampler, **{"sigmas": sigmas, "like": picture(), **change})
    assert patcher.model.diffusion_model.calls == []


@pytest.mark.parametrize("change, words", [
    ({"latent": {"samples": picture(), "noise_mask": torch.ones(1, 6, 6)}}, "latent has a noise_mask"),
    ({"sigmas": torch.tensor([])}, "sigmas has too few"), ({"sigmas": torch.tensor([2.0, 0.0])}, "sigmas has too few"),
    ({"sigmas": torch.tensor([1.0, 2.0, 4.0])}, "falling schedule"), ({"gamma": 0.0}, "gamma is 0.0"),
    ({"end_sigma": -1.0}, "end_sigma is -1.0"),
], ids=str)  # fmt: skip
def test_inputs_that_cannot_be_inverted_are_named_with_the_fix(host, change, words):
    patcher = host_models.model("eps")
    given = {"latent": picture(), "sigmas": sigmas_of(patcher, "eps"), **change}
    with pytest.raises(ValueError, match=words):
        invert(host, host_models.guider(patcher), **given)
    assert patcher.model.diffusion_model.calls == []
