"""What every SAMPLER of the pack must do inside a host, whatever its method. A node joins by one line in SAMPLERS."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import host_models
import pytest
import torch
from exact_models import PATHS, gaussian_flow_map
from trajectory.nodes.solvers import sampler_recipe
from trajectory.samplers.dpm_solver import sample_dpm_solver

# node id, inputs that differ from the defaults, distance to the exact solution that STEPS steps may leave (first order:
# more), or None for a sampler that adds fresh noise
SAMPLERS = {
    "angular": ("TrajectoryAngularSampler", {}, 0.02),
    "angular-1": ("TrajectoryAngularSampler", {"order": 1, "corrector": 1}, 0.15),
    "angular-4": ("TrajectoryAngularSampler", {"order": 4, "corrector": 4, "data_std": 0.5}, 0.02),
    "dpm-solver-1": ("TrajectoryDPMSolverSampler", {"order": 1}, 0.15),
    "dpm-solver-2m": ("TrajectoryDPMSolverSampler", {}, 0.04),
    "dpm-solver-2m-midpoint": ("TrajectoryDPMSolverSampler", {"variant": "midpoint"}, 0.04),
    "dpm-solver-3m-model-time": ("TrajectoryDPMSolverSampler", {"order": 3, "basis": "model time"}, 0.02),
    "dpm-solver-4m-rk": ("TrajectoryDPMSolverSampler", {"order": 4, "start": "rk"}, 0.02),
    "dpm-solver-2m-noise": ("TrajectoryDPMSolverSampler", {"prediction": "noise"}, 0.04),
    "dpm-solver-3m-derivative": ("TrajectoryDPMSolverSampler", {"order": 3, "prediction": "derivative"}, 0.02),
    "dpm-solver-2s": ("TrajectoryDPMSolverSampler", {"method": "singlestep"}, 0.04),
    "dpm-solver-3s": ("TrajectoryDPMSolverSampler", {"method": "singlestep", "order": 3}, 0.02),
    "dpm-solver-unic": ("TrajectoryDPMSolverSampler", {"corrector": "unic"}, 0.04),
    "dpm-solver-sde": ("TrajectoryDPMSolverSampler", {"tau": 1.0}, None),
    "deis-tab3": ("TrajectoryDEISSampler", {}, 0.02),
    "deis-rhoab2-noise": ("TrajectoryDEISSampler", {"variant": "rhoAB", "order": 2, "flow_form": "noise"}, 0.04),
    "deis-ipndm": ("TrajectoryDEISSampler", {"variant": "iPNDM"}, 0.04),
    "deis-rk3": ("TrajectoryDEISSampler", {"variant": "rhoRK", "rk": "kutta3"}, 0.02),
    "deis-sde": ("TrajectoryDEISSampler", {"variant": "logrhoAB", "order": 1, "tau": 0.5}, None),
    "dpm-solver-sde-unic": ("TrajectoryDPMSolverSampler", {"tau": 0.5, "corrector": "unic", "order": 3}, None),
    "bdia": ("TrajectoryBDIASampler", {}, 0.15),
    "bdia-1": ("TrajectoryBDIASampler", {"gamma": 1.0}, 0.04),
    "bdia-0.9-vp": ("TrajectoryBDIASampler", {"gamma": 0.9, "space": "vp"}, 0.04),
    "bdia-ve": ("TrajectoryBDIASampler", {"space": "ve"}, 0.15),
    "pndm-plms": ("TrajectoryPNDMSampler", {}, 0.04),
    "pndm-f": ("TrajectoryPNDMSampler", {"method": "F-PNDM", "coefficients": "variable"}, 0.02),
    "pndm-s": ("TrajectoryPNDMSampler", {"method": "S-PNDM"}, 0.04),
    "momentum-ghvb": ("TrajectoryMomentumSampler", {}, 0.04),
    "momentum-ghvb-variable": ("TrajectoryMomentumSampler", {"order": 4, "beta": 0.8, "variable_step": True}, 0.02),
    "momentum-hb": ("TrajectoryMomentumSampler", {"base": "HB"}, 0.15),
    "momentum-nesterov": ("TrajectoryMomentumSampler", {"base": "Nesterov", "beta": 0.6}, 0.15),
    "momentum-2m": ("TrajectoryMomentumSampler", {"base": "DPM++2M"}, 0.15),
    "momentum-unipc": ("TrajectoryMomentumSampler", {"base": "UniPC", "order": 2}, 0.15),
    "time-shift": ("TrajectoryTimeShiftSampler", {}, 0.15),
    "time-shift-paper": ("TrajectoryTimeShiftSampler", {"mode": "paper", "window": 2}, 0.2),
    "time-shift-2m": ("TrajectoryTimeShiftSampler", {"base": "dpmpp_2m"}, 0.04),
    "time-shift-ipndm": ("TrajectoryTimeShiftSampler", {"base": "ipndm"}, 0.04),
    "time-shift-ancestral": ("TrajectoryTimeShiftSampler", {"base": "ancestral"}, None),
    "interpolant": ("TrajectoryInterpolantSampler", {}, None),
    "interpolant-ode": ("TrajectoryInterpolantSampler", {"scale": 0.0}, 0.04),
    "interpolant-em": ("TrajectoryInterpolantSampler", {"integrator": "euler-maruyama"}, None),
    "interpolant-heun": ("TrajectoryInterpolantSampler", {"integrator": "heun"}, None),
    "mr-ode": ("TrajectoryMRSampler", {}, 0.04),
    "mr-sde": ("TrajectoryMRSampler", {"equation": "sde"}, None),
    "resshift": ("TrajectoryResShiftSampler", {}, None),
    "resshift-ode": ("TrajectoryResShiftSampler", {"eta_noise": 0.0}, 0.15),
    "oms-wrap": (
        "TrajectoryOMSSamplerWrap",
        {"sampler": sampler_recipe(sample_dpm_solver), "start": {"samples": torch.zeros(1)}}, 0.04,
    ),
    # without strength; what it steers is in test_flowchef.py
    "flowchef": ("TrajectoryFlowChefSampler", {"strength": 0.0}, 0.15),
    "flowchef-heun": ("TrajectoryFlowChefSampler", {"strength": 0.0, "solver": "heun"}, 0.04),
    "prior-noise": ("TrajectoryPriorNoiseInjection", {"sampler": sampler_recipe(sample_dpm_solver)}, None),
}
KINDS = ("eps", "v", "edm", "flow")
SCHEDULERS = {"eps": "karras", "v": "karras", "edm": "karras", "flow": "simple"}
STEPS = 40
SHAPE = (1, 4, 6, 6)


@pytest.fixture(params=SAMPLERS)
def recipe(request, host):
    node_id, inputs, tolerance = SAMPLERS[request.param]
    sampler = build(host, node_id, inputs)
    sampler.tolerance = tolerance
    return sampler


def build(host, node_id, inputs):
    """The SAMPLER that a node returns, its other inputs at their defaults."""
    cls = host.node_table[node_id]
    defaults = {i.id: getattr(i, "default", None) for i in cls.GET_SCHEMA().inputs}
    return cls.execute(**{**defaults, **inputs}).args[0]


def noise_of(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmas_of(patcher, kind, steps=STEPS):
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), SCHEDULERS[kind], steps)


def sample(kind, sampler, noise, latent=None, sigmas=None, cfg=1.0, mask=None, seed=7, patcher=None, **options):
    """(result, reports of the callback) of one run through the host's guider."""
    patcher = patcher or host_models.model(kind)
    guider = host_models.guider(patcher, cfg=cfg)
    sigmas = sigmas_of(patcher, kind) if sigmas is None else sigmas
    latent = torch.zeros_like(noise) if latent is None else latent
    reports = []

    def callback(step, denoised, x, total):
        reports.append((step, denoised.clone(), x.clone(), total))

    out = guider.sample(
        noise, latent, sampler, sigmas, denoise_mask=mask, callback=callback, disable_pbar=True, seed=seed, **options
    )
    return out, reports


def exact(kind, report, sigma_a, sigma_b, mean=0.4):
    """The exact end of the run from the state that the first report shows."""
    path = PATHS["flow" if kind == "flow" else "ve"]
    return gaussian_flow_map(path, report[2].double(), float(sigma_a), float(sigma_b), mean, host_models.STD).float()


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_ends_where_the_exact_solution_ends(recipe, kind, cfg):
    patcher = host_models.model(kind)
    sigmas = sigmas_of(patcher, kind)
    out, reports = sample(kind, recipe, noise_of(0), cfg=cfg, patcher=patcher)
    assert [r[0] for r in reports] == list(range(STEPS)) and out.shape == SHAPE
    mean = -0.2 + cfg * 0.6
    evaluated = sum(patcher.model.diffusion_model.calls)
    assert evaluated % (1 if cfg == 1 else 2) == 0 and evaluated >= STEPS * (1 if cfg == 1 else 2)
    if recipe.tolerance:
        assert (out - exact(kind, reports[0], sigmas[0], 0.0, mean)).abs().max() < recipe.tolerance
    else:
        assert abs(float(out.mean()) - mean) < 4 * host_models.STD / 12 and 0.3 < float(out.std()) < 0.75


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("denoise", [0.3, 0.6, 1.0])
def test_partial_denoise_starts_from_the_picture(recipe, kind, denoise):
    patcher = host_models.model(kind)
    sigmas = sigmas_of(patcher, kind, int(STEPS / denoise))[-STEPS - 1 :]
    latent = 0.4 + 0.1 * noise_of(9)
    out, reports = sample(kind, recipe, noise_of(1), latent, sigmas, patcher=patcher)
    if recipe.tolerance:
        assert (out - exact(kind, reports[0], sigmas[0], 0.0)).abs().max() < recipe.tolerance
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_partial_schedule_returns_the_state_at_its_last_sigma(recipe, kind):
    patcher = host_models.model(kind)
    sigmas = sigmas_of(patcher, kind)[: STEPS * 2 // 3]
    out, reports = sample(kind, recipe, noise_of(2), sigmas=sigmas, patcher=patcher)
    if kind == "flow":
        out = out * (1 - sigmas[-1])  # the host divides what it returns
    end = exact(kind, reports[0], sigmas[0], sigmas[-1])
    scale = max(1.0, float(sigmas[-1]))
    if recipe.tolerance:
        assert (out - end).abs().max() < recipe.tolerance * scale
    else:
        assert 0.5 < float(out.std() / end.std()) < 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_mask_the_picture_is_untouched(recipe, kind):
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 3:] = 1.0
    latent = noise_of(3)
    out, _ = sample(kind, recipe, noise_of(4), latent, mask=mask)
    assert torch.allclose(out[..., :3], latent[..., :3], atol=1e-5)
    assert (out[..., 3:] - latent[..., 3:]).abs().mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_item_k_of_a_batch_is_that_item_alone(recipe, kind):
    noise, latent = noise_of(5, (3, *SHAPE[1:])), noise_of(6, (3, *SHAPE[1:]))
    batch, _ = sample(kind, recipe, noise, latent, cfg=2.0)
    for k in range(3):
        alone, _ = sample(kind, recipe, noise[k : k + 1], latent[k : k + 1], cfg=2.0)
        assert torch.allclose(batch[k : k + 1], alone, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_equals_the_first(recipe, kind):
    """A recipe keeps nothing of a run, and the seed fixes it."""
    first, _ = sample(kind, recipe, noise_of(7))
    sample(kind, recipe, noise_of(8, (2, 4, 10, 4)), seed=99)
    again, _ = sample(kind, recipe, noise_of(7))
    assert torch.equal(first, again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 4, 3, 4, 4), (1, 1, 40)], ids=str)
def test_odd_sizes_video_and_packed_latents(recipe, kind, shape):
    noise = noise_of(10, shape)
    patcher = host_models.model(kind, channels=shape[1])
    sigmas = sigmas_of(patcher, kind)
    out, reports = sample(kind, recipe, noise, patcher=patcher)
    assert out.shape == shape
    if recipe.tolerance:
        assert (out - exact(kind, reports[0], sigmas[0], 0.0)).abs().max() < recipe.tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_latents(recipe, kind):
    """The run works in the latent's type; rounding 2^-8 of states of size 1 is what separates it from float32."""
    noise = noise_of(11).bfloat16()
    low, _ = sample(kind, recipe, noise)
    high, _ = sample(kind, recipe, noise.float())
    assert torch.isfinite(low).all()
    assert (low.float() - high).abs().max() < 0.1


@pytest.mark.parametrize("sigmas", [[], [2.0], [0.8, 0.5, 0.5, 0.2, 0.0], [0.8, 0.0]], ids=str)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_short_and_repeated_schedules(recipe, kind, sigmas):
    if sigmas == [2.0] and kind == "flow":
        sigmas = [0.5]
    out, _ = sample(kind, recipe, noise_of(12), noise_of(13), sigmas=torch.tensor(sigmas))
    assert torch.isfinite(out).all()
    if not sigmas:
        assert torch.equal(out, noise_of(13))


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_interruption_in_the_middle_leaves_nothing_behind(recipe, kind):
    patcher = host_models.model(kind)
    whole, _ = sample(kind, recipe, noise_of(14), patcher=patcher)
    network = patcher.model.diffusion_model
    network.calls.clear()
    forward = network.forward

    def interrupting(*args, **kwargs):
        if len(network.calls) == 4:
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    network.forward = interrupting
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(kind, recipe, noise_of(14), patcher=patcher)
    assert len(network.calls) == 5  # the call that set the flag ends, no further one starts
    network.forward = forward
    assert not comfy.model_management.processing_interrupted()
    again, _ = sample(kind, recipe, noise_of(14), patcher=patcher)
    assert torch.equal(whole, again)
