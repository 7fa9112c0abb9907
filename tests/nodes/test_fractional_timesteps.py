"""Fractional Timesteps: the network hears the exact time, nothing else changes."""

import comfy.model_sampling
import comfy.samplers
import host_models
import pytest
import torch
from exact_models import PATHS, gaussian_flow_map

KINDS = ("eps", "v")


def patch(host, patcher):
    return host.node_table["TrajectoryFractionalTimesteps"].execute(model=patcher).args[0]


def sampling_of(patcher):
    return patcher.get_model_object("model_sampling")


class TimedNetwork(host_models.GaussianNetwork):
    """A Gaussian network that knows the noise level by the timestep alone, as real networks do."""

    def __init__(self, kind, sampling):
        super().__init__(kind)
        self.table, self.heard = sampling.log_sigmas.double(), []

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **_):
        self.heard.append(timesteps.clone())
        t = timesteps.double().clamp(0, len(self.table) - 1)
        low = t.floor().long()
        log_sigma = torch.lerp(self.table[low], self.table[t.ceil().long()], t - low)
        sigmas = log_sigma.exp()[: len(transformer_options["sigmas"])]
        return super().forward(x, timesteps, context, control, {**transformer_options, "sigmas": sigmas})


@pytest.fixture(params=KINDS)
def patcher(request):
    made = host_models.model(request.param)
    made.model.diffusion_model = TimedNetwork(request.param, sampling_of(made))
    return made


def final_error(patcher, steps):
    """RMS distance of a run of DPM-Solver on sigmas between the entries to the exact solution."""
    from trajectory.samplers.dpm_solver import sample_dpm_solver

    noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(sampling_of(patcher), "karras", steps)[:-1]
    sampler = comfy.samplers.KSAMPLER(sample_dpm_solver, {"order": 3})
    states = []
    out = host_models.guider(patcher).sample(
        noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0,
        callback=lambda step, x0, x, total: states.append(x.double()))  # fmt: skip
    exact = gaussian_flow_map(PATHS["ve"], states[0], float(sigmas[0]), float(sigmas[-1]), 0.4, host_models.STD)
    return float((out - exact).square().mean().sqrt())


def test_rounding_floors_the_error_and_the_patch_removes_the_floor(host, patcher):
    rounded = {steps: final_error(patcher, steps) for steps in (25, 100, 200, 300)}
    patched = {steps: final_error(patch(host, patcher), steps) for steps in rounded}
    assert patched[100] / patched[200] > 5 and patched[300] < 2e-6  # the third order goes on, to float32's rounding
    assert min(rounded.values()) > 2e-5 and rounded[100] / rounded[300] < 3  # without the patch the error stays
    assert all(rounded[steps] > 15 * patched[steps] for steps in (200, 300))
    assert rounded[25] == pytest.approx(patched[25], rel=0.3)  # at few steps it hardly shows


def test_the_time_is_the_inverse_of_the_hosts_sigma(host, patcher):
    sampling = sampling_of(patch(host, patcher))
    t = torch.tensor([0.0, 0.25, 0.5, 17.125, 499.5, 777.77, 998.9, 999.0])
    assert torch.allclose(sampling.timestep(sampling.sigma(t)), t, atol=2e-3)
    assert (sampling_of(patcher).timestep(sampling.sigma(t)) != t).any()  # the host rounds


def test_table_entries_keep_their_time_to_the_last_bit(host, patcher):
    before, after = sampling_of(patcher), sampling_of(patch(host, patcher))
    assert torch.equal(after.timestep(before.sigmas), torch.arange(1000.0))
    assert all(after.timestep(sigma).item() == k for k, sigma in enumerate(before.sigmas))
    assert after.timestep(before.sigmas[3]).shape == ()


def test_sigmas_outside_the_table_take_its_ends(host, patcher):
    before, after = sampling_of(patcher), sampling_of(patch(host, patcher))
    outside = torch.tensor([0.0, 1e-6, 100.0, 999999999.9])
    assert after.timestep(outside).tolist() == before.timestep(outside).tolist() == [0, 0, 999, 999]


def test_nothing_but_the_time_changes(host, patcher):
    before, patched = sampling_of(patcher), patch(host, patcher)
    after = sampling_of(patched)
    assert isinstance(after, type(before)) and patched is not patcher and sampling_of(patcher) is before
    assert torch.equal(after.sigmas, before.sigmas) and after.sigma_data == before.sigma_data
    assert [after.percent_to_sigma(p) for p in (0, 0.3, 1)] == [before.percent_to_sigma(p) for p in (0, 0.3, 1)]
    x, sigma = torch.randn(2, 4, 3, 3), torch.tensor([0.5, 7.0])
    assert torch.equal(after.calculate_input(sigma, x), before.calculate_input(sigma, x))
    assert torch.equal(after.calculate_denoised(sigma, x, x), before.calculate_denoised(sigma, x, x))
    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        sigmas = [comfy.samplers.calculate_sigmas(sampling, scheduler, 12) for sampling in (before, after)]
        assert torch.equal(*sigmas), scheduler
    after.set_sigmas(after.sigmas * 2)
    assert not torch.equal(after.sigmas, before.sigmas)  # the copy shares no table with the model's own


def test_the_network_hears_fractions(host, patcher):
    network = patcher.model.diffusion_model
    final_error(patcher, 10)
    assert all(t == t.round() for t in torch.cat(network.heard))
    network.heard.clear()
    final_error(patch(host, patcher), 10)
    fractions = [t for t in torch.cat(network.heard) if t != t.round()]
    assert len(fractions) >= 7 and network.heard[0].dtype == torch.float32


@pytest.mark.parametrize("kind", ["flow", "edm"])
def test_models_of_continuous_time_come_back_as_they_are(host, kind):
    patcher = host_models.model(kind)
    assert patch(host, patcher) is patcher


def test_a_second_patch_changes_nothing(host, patcher):
    once = patch(host, patcher)
    assert patch(host, once) is once


def discrete(kind, settings):
    """What the host's Model Sampling Discrete patches in: a fresh schedule with another table."""
    class Advanced(comfy.model_sampling.ModelSamplingDiscrete, getattr(comfy.model_sampling, kind)):
        pass

    return Advanced(**settings)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION"])
def test_behind_another_patch_of_the_schedule_it_works_on_that_schedule(host, patcher, kind):
    model = patcher.clone()
    model.add_object_patch("model_sampling", discrete(kind, {"zsnr": True}))
    sampling = sampling_of(patch(host, model))
    assert float(sampling.sigma_max) > 1000 and isinstance(sampling, getattr(comfy.model_sampling, kind))
    t = torch.tensor([0.5, 500.25, 998.5])
    assert torch.allclose(sampling.timestep(sampling.sigma(t)), t, atol=2e-3)


def test_a_later_patch_of_the_schedule_takes_its_place(host, patcher):
    model = patch(host, patcher).clone()
    model.add_object_patch("model_sampling", discrete("EPS", {}))
    assert sampling_of(model).timestep(torch.tensor([3.3])).dtype == torch.int64
    assert patch(host, model) is not model  # and can be patched again


def test_a_spaced_table_is_interpolated_in_its_own_timesteps(host):
    """LCM keeps 50 of the 1000 steps: entry k is timestep 20 k + 19."""
    if "ModelSamplingDiscrete" not in host.node_table:
        pytest.skip("the embedded host has no LCM schedule")
    (model,) = host.node_table["ModelSamplingDiscrete"]().patch(host_models.model("eps"), "lcm", False)
    before, after = sampling_of(model), sampling_of(patch(host, model))
    assert torch.equal(after.timestep(before.sigmas), before.timestep(before.sigmas).float())
    t = torch.tensor([19.0, 24.5, 510.25])
    assert torch.allclose(after.timestep(after.sigma(t)), t, atol=2e-2)
