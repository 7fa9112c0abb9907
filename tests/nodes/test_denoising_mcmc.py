"""Denoising MCMC and the Fisher Path Scheduler inside a host, on models with exact answers."""

import comfy.model_management
import comfy.samplers
import host_models
import pytest
import torch

KINDS = ("eps", "v", "edm", "flow")
SHAPE = (1, 4, 6, 6)
FEW = {"samples": 2, "n_skip": 3, "burn_in": 2, "denoise_steps": 6}


def node(host, node_id, **inputs):
    """The outputs of a node, its other inputs at their defaults."""
    cls = host.node_table[node_id]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    return cls.execute(**{**defaults, **inputs}).args


def noise_of(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latent_of(seed, shape=SHAPE):
    """A clean latent of the model with mean 0.4."""
    return {"samples": 0.4 + host_models.STD * noise_of(seed, shape)}


def run(host, kind="flow", latent=None, patcher=None, cfg=1.0, sampler=None, **inputs):
    """(LATENT, trace) of the node."""
    guider = host_models.guider(patcher or host_models.model(kind), cfg=cfg)
    sampler = sampler or node(host, "TrajectoryDPMSolverSampler")[0]
    latent = latent_of(0) if latent is None else latent
    return node(host, "TrajectoryDenoisingMCMC", guider=guider, sampler=sampler, latent=latent, **{**FEW, **inputs})


def sigmas_in(trace):
    return [float(line.split()[2]) for line in trace.splitlines() if line]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_pictures_have_the_guided_law(host, kind, cfg):
    """Mean and spread of 24 pictures of 144 values; their chain is short, so 0.15 is allowed for what it remembers."""
    out, trace = run(host, kind, latent_of(0, (2, *SHAPE[1:])), cfg=cfg, samples=12, burn_in=15, seed=3)
    mean = -0.2 + cfg * 0.6
    assert out["samples"].shape == (24, *SHAPE[1:]) and out["samples"].dtype == torch.float32
    assert abs(float(out["samples"].mean()) - mean) < 0.15
    assert 0.3 < float((out["samples"] - mean).std()) < 0.75
    for chain in trace.split("\n\n"):
        lines = chain.splitlines()
        assert len(lines) == 15 + 12 * 3 and sum("denoised" in line for line in lines) == 12


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_pictures_differ_and_the_seed_fixes_them(host, kind):
    first, trace = run(host, kind, seed=5)
    again, trace_again = run(host, kind, seed=5)
    other, _ = run(host, kind, seed=6)
    assert torch.equal(first["samples"], again["samples"]) and trace == trace_again
    assert (first["samples"] - other["samples"]).abs().mean() > 0.05
    assert (first["samples"][0] - first["samples"][1]).abs().mean() > 0.05


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("empty", [False, True])
def test_item_k_of_a_batch_is_that_item_alone(host, kind, empty):
    """An item is told by `batch_index`, as the host's noise is."""
    shape = (3, *SHAPE[1:])
    latent = {"samples": torch.zeros(shape)} if empty else latent_of(1, shape)
    batch, traces = run(host, kind, latent, cfg=2.0)
    for k in range(3):
        item = {"samples": latent["samples"][k : k + 1], "batch_index": [k]}
        alone, trace = run(host, kind, item, cfg=2.0)
        assert torch.allclose(batch["samples"][2 * k : 2 * k + 2], alone["samples"], atol=1e-5)
        assert trace == traces.split("\n\n")[k] and "batch_index" not in alone


def test_an_empty_latent_is_sampled_first(host):
    patcher = host_models.model("flow")
    out, _ = run(host, "flow", {"samples": torch.zeros(1, 1, 6, 6)}, patcher, burn_in=1)
    assert out["samples"].shape == (2, *SHAPE[1:])  # an empty latent takes the channels of the model
    assert len(patcher.model.diffusion_model.calls) == 2 * 6 + 1 + 2 * (3 + 6)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_network_calls_and_progress_are_counted(host, kind, monkeypatch):
    import latent_preview

    seen = []

    def prepare(patcher, steps, *_):
        def callback(step, denoised, x, total):
            assert denoised.shape == x.shape and total == steps
            seen.append((step, total))

        return callback

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    patcher = host_models.model(kind)
    run(host, kind, latent_of(0, (2, *SHAPE[1:])), patcher)
    total = 2 * (2 + 2 * (3 + 6))
    assert len(patcher.model.diffusion_model.calls) == total
    assert seen == [(k, total) for k in range(total)]


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_mask_the_picture_is_untouched(host, kind):
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 3:] = 1.0
    latent = latent_of(2)
    out, _ = run(host, kind, {**latent, "noise_mask": mask})
    for picture in out["samples"]:
        assert torch.allclose(picture[..., :3], latent["samples"][0, ..., :3], atol=1e-5)
        assert (picture - latent["samples"][0])[..., 3:].abs().mean() > 0.1
    assert "noise_mask" not in out


def test_each_item_has_its_own_mask(host):
    masks = torch.zeros(2, 1, 6, 6)
    masks[1] = 1.0
    latent = latent_of(3, (2, *SHAPE[1:]))
    out, _ = run(host, "flow", {**latent, "noise_mask": masks})
    moved = (out["samples"].view(2, 2, *SHAPE[1:]) - latent["samples"][:, None]).abs().mean(dim=(1, 2, 3, 4))
    assert moved[0] < 1e-5 and moved[1] > 0.1


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 4, 3, 4, 4), (1, 1, 40)], ids=str)
def test_odd_sizes_video_and_packed_latents(host, kind, shape):
    patcher = host_models.model(kind, channels=shape[1])
    out, trace = run(host, kind, latent_of(4, shape), patcher)
    assert out["samples"].shape == (2 * shape[0], *shape[1:]) and torch.isfinite(out["samples"]).all()
    assert len(sigmas_in(trace)) == 8 * shape[0]


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_latents_that_travel_as_one(host, kind):
    nested_tensor = pytest.importorskip("comfy.nested_tensor", reason="this host has single latents only")
    parts = [latent_of(5, (2, 4, 3, 4, 4))["samples"], latent_of(6, (2, 4, 5, 6))["samples"]]
    patcher = host_models.model(kind)
    batch, _ = run(host, kind, {"samples": nested_tensor.NestedTensor(parts)}, patcher)
    assert [tuple(p.shape) for p in batch["samples"].unbind()] == [(4, 4, 3, 4, 4), (4, 4, 5, 6)]
    with pytest.raises(ValueError, match="differ in kind"):
        run(host, kind, {"samples": nested_tensor.NestedTensor(parts)}, patcher, spectrum=latent_of(0))


def test_bfloat16_latents(host):
    latent = {"samples": latent_of(7)["samples"].bfloat16()}
    assert torch.isfinite(run(host, "flow", latent)[0]["samples"]).all()


@pytest.mark.parametrize("kind, sigma", [("eps", 3.0), ("flow", 0.7)])
def test_the_level_of_a_chain(host, kind, sigma):
    fixed = sigmas_in(run(host, kind, start_sigma=sigma, sigma_estimator="fixed")[1])
    assert fixed == pytest.approx([sigma] * len(fixed), rel=1e-4)
    spectral = sigmas_in(run(host, kind, start_sigma=sigma)[1])
    assert len(set(spectral)) > 2 and all(0.3 * sigma < s < 1.43 * sigma for s in spectral)


def test_a_reference_sets_the_spectrum(host):
    """Its variance is the unit of the automatic first level: on eps, 4 standard deviations."""
    reference = {"samples": 2.0 * noise_of(8, (4, 4, 16, 16))}
    trace = run(host, "eps", sigma_estimator="fixed", spectrum=reference)[1]
    assert sigmas_in(trace)[0] == pytest.approx(8.0, rel=0.05)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpmpp_2m"])
def test_any_sampler_of_the_host_denoises(host, sampler):
    for kind in ("eps", "flow"):
        out, _ = run(host, kind, sampler=comfy.samplers.sampler_object(sampler), burn_in=10, samples=4)
        assert abs(float(out["samples"].mean()) - 0.4) < 0.25 and float(out["samples"].std()) < 1.0


def test_a_solver_that_adds_noise_gives_its_own_to_each_picture(host):
    """With a step of next to nothing the states are equal: what differs is the solver's noise."""
    sampler = comfy.samplers.sampler_object("euler_ancestral")
    options = {"eta": 1e-9, "n_skip": 1, "sigma_estimator": "fixed", "sampler": sampler, "seed": 2**64 - 1}
    first, second = run(host, "eps", **options)[0]["samples"]
    assert (first - second).abs().mean() > 0.05


def test_the_model_is_told_the_schedule_of_each_solver_run(host):
    patcher = host_models.model("eps")
    network, told = patcher.model.diffusion_model, []
    forward = network.forward

    def listening(*args, **kwargs):
        options = kwargs["transformer_options"]
        told.append((float(options["sigmas"][0]), options["sample_sigmas"].tolist()))
        return forward(*args, **kwargs)

    network.forward = listening
    run(host, "eps", patcher=patcher, samples=1)
    sigma_max = float(patcher.get_model_object("model_sampling").sigma_max)
    assert all(schedule == pytest.approx([sigma_max, 0.0]) for _, schedule in told[:5])
    assert [sigma for sigma, _ in told[5:]] == pytest.approx(told[5][1][:-1]) and len(told) == 5 + 6


@pytest.mark.parametrize("at", [1, 4])
def test_interruption_leaves_nothing_behind(host, at):
    patcher = host_models.model("flow")
    whole, _ = run(host, "flow", patcher=patcher)
    network = patcher.model.diffusion_model
    network.calls.clear()
    forward = network.forward

    def interrupting(*args, **kwargs):
        if len(network.calls) == at:
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    network.forward = interrupting
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(host, "flow", patcher=patcher)
    assert len(network.calls) == at + 1
    network.forward = forward
    assert not comfy.model_management.processing_interrupted()
    assert torch.equal(run(host, "flow", patcher=patcher)[0]["samples"], whole["samples"])


def test_inputs_are_not_changed(host):
    latent = {**latent_of(9), "noise_mask": torch.ones(1, 1, 6, 6)}
    before = {name: value.clone() for name, value in latent.items()}
    run(host, "flow", latent)
    assert latent.keys() == before.keys() and all(torch.equal(latent[name], before[name]) for name in before)


@pytest.mark.parametrize("inputs, words", [
    ({"sampler": object()}, "connect a SAMPLER"), ({"samples": 0}, "samples is 0"),
    ({"sigma_estimator": "classifier"}, "choose one of spectral, fixed"),
    ({"latent": {"samples": torch.ones(1, 3, 6, 6)}}, "latent has 3 channels and the model works on 4"),
    ({"latent": {"samples": torch.ones(1, 4, 6, 6)}}, "has no variation"),
    ({"spectrum": {"samples": torch.ones(1, 3, 6, 6)}}, "spectrum has 3 channels"),
    ({"spectrum": {"samples": torch.ones(1, 4, 2, 6, 6)}}, "differ in kind"),
    ({"start_sigma": 1.0}, "start_sigma is 1.0"),
])  # fmt: skip
def test_bad_inputs_are_named_with_the_fix(host, inputs, words):
    with pytest.raises(ValueError, match=words):
        run(host, "flow", **inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reference", [False, True])
def test_fisher_path_runs_from_the_first_to_the_last_sigma(host, kind, reference):
    patcher = host_models.model(kind)
    smooth = torch.nn.functional.avg_pool2d(noise_of(10, (2, 4, 34, 34)), 3, 1)
    spectrum = {"spectrum": {"samples": smooth}} if reference else {}
    [sigmas] = node(host, "TrajectoryFisherPathScheduler", model=patcher, steps=12, **spectrum)
    sampling = patcher.get_model_object("model_sampling")
    assert sigmas.shape == (13,) and sigmas.dtype == torch.float32 and (sigmas.diff() < 0).all()
    assert float(sigmas[0]) == pytest.approx(float(sampling.sigma_max), rel=1e-5) and sigmas[-1] == 0
    sampler = node(host, "TrajectoryDPMSolverSampler")[0]
    out = host_models.guider(patcher).sample(noise_of(11), torch.zeros(SHAPE), sampler, sigmas, disable_pbar=True)
    assert abs(float(out.mean()) - 0.4) < 4 * host_models.STD / 12


def test_fisher_path_without_denoising_is_empty(host):
    [sigmas] = node(host, "TrajectoryFisherPathScheduler", model=host_models.model("eps"), denoise=0.0)
    assert sigmas.shape == (0,)
