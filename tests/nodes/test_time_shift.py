"""The model patch inside a host: what the network is told, under guidance, masks, areas and interruption."""

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import host_models
import pytest
import torch

KINDS = ("eps", "v", "edm", "flow")
SHAPE = (2, 4, 48, 48)
STEPS = 8


def labelled_model(kind):
    """A Gaussian model that believes its timestep, not the sampler; `labels` collects the sigmas it was told."""
    patcher = host_models.model(kind)
    network, sampling = patcher.model.diffusion_model, patcher.get_model_object("model_sampling")
    believe, network.labels = network.forward, []

    def forward(x, timesteps, context=None, transformer_options=None, **kwargs):
        sigma = sampling.sigma(timesteps)
        network.labels.append(sigma.clone())
        return believe(x, timesteps, context, transformer_options={"sigmas": sigma}, **kwargs)

    network.forward = forward
    return patcher


def patch(host, patcher, **inputs):
    cls = host.node_table["TrajectoryTimeShiftModel"]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if i.id != "model"}
    return cls.execute(patcher, **{**defaults, **inputs}).args[0]


def sigmas_of(patcher, kind):
    scheduler = "simple" if kind == "flow" else "karras"
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, STEPS)


def sample(patcher, kind, cfg=1.0, positive=None, mask=None, noise=None, sampler="euler"):
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive or host_models.conditioning(0.4), host_models.conditioning(-0.2))
    guider.set_cfg(cfg)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)) if noise is None else noise
    solver, sigmas = comfy.samplers.sampler_object(sampler), sigmas_of(patcher, kind)
    return guider.sample(
        noise, torch.zeros_like(noise), solver, sigmas, denoise_mask=mask, disable_pbar=True, seed=3
    ).clone()


def labels(patcher):
    """The labels of each call, and none are kept."""
    network = patcher.model.diffusion_model
    told, network.labels = network.labels, []
    return told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [{"window": 0}, {"cutoff": 1.0}], ids=str)
def test_without_a_shift_it_is_the_model_to_the_last_bit(host, kind, inputs):
    patcher = labelled_model(kind)
    assert torch.equal(sample(patch(host, patcher, **inputs), kind), sample(patcher, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["corrected", "paper", "official-DEIS"])
def test_the_label_alone_is_shifted_and_the_model_itself_stays(host, kind, mode):
    patcher = labelled_model(kind)
    plain, nominal = sample(patcher, kind), labels(patcher)
    patched = patch(host, patcher, mode=mode, window=100, cutoff=0.1)
    shifted, told = sample(patched, kind), labels(patcher)
    assert len(told) == len(nominal) == STEPS
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(told, nominal, strict=True))
    assert not torch.allclose(shifted, plain, atol=1e-4)
    assert 0.5 < float(shifted.std()) / host_models.STD < 1.6
    assert torch.equal(sample(patcher, kind), plain)
    assert torch.equal(sample(patched, kind), shifted)  # nothing of a run is left
    again = patch(host, patched, mode=mode, window=100, cutoff=0.1)
    assert torch.equal(sample(again, kind), shifted)  # a second patch replaces the first


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_all_conditionings_of_an_item_hear_its_level(host, kind):
    """cond and uncond in one batch, or in two calls when they cannot be joined."""
    patcher = labelled_model(kind)
    patched = patch(host, patcher, window=100, cutoff=0.1)
    joined, told = sample(patched, kind, cfg=3.0), labels(patcher)
    assert all(len(label) == 4 and torch.equal(label[:2], label[2:]) for label in told)
    longer = [[torch.full((1, 5, 8), 0.4), {}]]  # 5 tokens against 3: some hosts pad them, others call twice
    split, told = sample(patched, kind, cfg=3.0, positive=longer), labels(patcher)
    assert torch.allclose(split, joined, atol=1e-4)
    assert all(torch.equal(label[:2], label[-2:]) for label in told)


def test_parts_of_a_picture_hear_the_level_of_the_whole(host):
    patcher = labelled_model("eps")
    patched = patch(host, patcher, window=100, cutoff=0.1)
    half = torch.zeros(1, 48, 48)
    half[..., :24] = 1.0
    parts = [[host_models.conditioning(0.4)[0][0], {"mask": m, "mask_strength": 1.0}] for m in (half, 1 - half)]
    whole = sample(patched, "eps")
    assert torch.allclose(sample(patched, "eps", positive=parts), whole, atol=1e-4)


def test_areas_hear_the_level_of_the_whole(host):
    if host.name == "embedded":
        pytest.skip("the embedded host has no areas")
    patcher = labelled_model("eps")
    patched = patch(host, patcher, window=100, cutoff=0.1)
    cond = host_models.conditioning(0.4)[0][0]
    parts = [[cond, {"area": (48, 24, 0, x), "strength": 1.0, "set_area_to_bounds": False}] for x in (0, 24)]
    assert torch.allclose(sample(patched, "eps", positive=parts), sample(patched, "eps"), atol=1e-3)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_only_the_inside_of_a_mask_is_measured(host, kind):
    """What lies outside has no say: two batches that differ there alone are told the same levels."""
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 24:] = 1.0
    patcher = labelled_model(kind)
    patched = patch(host, patcher, window=100, cutoff=0.1)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    sample(patched, kind, mask=mask, noise=noise)
    told = labels(patcher)
    sample(patched, kind, mask=mask, noise=torch.where(mask > 0, noise, 3 * noise))
    other = labels(patcher)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(told, other, strict=True))


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_item_k_of_a_batch_is_that_item_alone(host, kind):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(8)) * torch.tensor([1.0, 1.1]).view(2, 1, 1, 1)
    patched = patch(host, labelled_model(kind), mode="paper", window=100)
    batch = sample(patched, kind, cfg=2.0, noise=noise)
    for k in range(2):
        alone = sample(patched, kind, cfg=2.0, noise=noise[k : k + 1])
        assert torch.allclose(batch[k : k + 1], alone, atol=1e-4)


def test_interruption_leaves_nothing_behind(host):
    patcher = labelled_model("eps")
    patched = patch(host, patcher, window=100, cutoff=0.1)
    whole = sample(patched, "eps")
    network = patcher.model.diffusion_model
    forward, network.labels = network.forward, []

    def failing(*args, **kwargs):
        if len(network.labels) == 3:
            raise comfy.model_management.InterruptProcessingException
        return forward(*args, **kwargs)

    network.forward = failing
    options = patched.model_options
    guider = host_models.guider(patched)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        guider.sample(torch.randn(SHAPE), torch.zeros(SHAPE), comfy.samplers.sampler_object("euler"),
                      sigmas_of(patched, "eps"), disable_pbar=True)  # fmt: skip
    network.forward = forward
    assert guider.model_options is options and "wrappers" not in options["transformer_options"]
    assert torch.equal(sample(patched, "eps"), whole)
