"""The plan as a program: memory, callback, dtypes, shapes, cancelling."""

import pytest
import torch
from exact_models import PATHS, gaussian, start, uniform_lam
from trajectory.samplers.dpm_solver import plan_dpm_solver, sample_dpm_solver
from trajectory.samplers.model import Schedule
from trajectory.samplers.plan import Plan, dynamic_threshold, execute, run_plan

VE = PATHS["ve"]
SIGMAS = torch.tensor(uniform_lam(VE, 10.0, 0.1, 8))


@pytest.mark.parametrize("prediction", ["data", "noise", "derivative"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_no_more_latents_alive_than_the_order_needs(order, prediction):
    plan = plan_dpm_solver(uniform_lam(VE, 10.0, 0.1, 12), Schedule(), order=order, prediction=prediction, guard=0)
    assert plan.most_alive() <= order + 2


def test_terms_on_one_slot_are_added_up():
    plan = Plan()
    plan.combine("y", (1.0, "x"), (0.5, "x"), (0.0, "gone"))
    plan.result = "y"
    x = torch.ones(2, 3)
    assert torch.equal(execute(plan, None, x, torch.tensor([]), disable=True), torch.full((2, 3), 1.5))


def test_kept_slots_come_back_with_the_result_and_given_ones_are_not_changed():
    plan = Plan(result="z", keep=("y",))
    plan.combine("y", (2.0, "x"))
    plan.combine("w", (1.0, "y"), (1.0, "before"))
    plan.combine("z", (1.0, "w"), (1.0, "x"))
    given = {"x": torch.ones(2, 3), "before": torch.full((2, 3), 5.0)}
    out = run_plan(plan, None, given, torch.tensor([]), disable=True, dtype=torch.float32)
    assert {slot: float(value[0, 0]) for slot, value in out.items()} == {"y": 2.0, "z": 8.0}
    assert set(given) == {"x", "before"} and float(given["x"].sum()) == 6.0


def test_the_model_gets_its_own_dtype_while_sums_are_taken_in_that_of_the_given_slots():
    def model(x, sigma):
        assert x.dtype == sigma.dtype == torch.float32
        return x * 0.1

    plan = plan_dpm_solver(SIGMAS.tolist(), Schedule(), order=1)
    out = run_plan(plan, model, {"x": start(VE, 10.0)}, SIGMAS, disable=True, dtype=torch.float32)
    assert out[plan.result].dtype == torch.float64


@pytest.mark.parametrize("options", [{}, {"method": "singlestep", "order": 3}, {"start": "rk", "order": 3}])
def test_the_callback_comes_once_an_interval_in_order(options):
    seen = []
    sample_dpm_solver(gaussian(VE), start(VE, 10.0), SIGMAS, callback=seen.append, disable=True, **options)
    assert [report["i"] for report in seen] == list(range(8))
    for report in seen:
        assert report["sigma"] == SIGMAS[report["i"]] and report["sigma_hat"] == report["sigma"]
        assert report["x"].shape == report["denoised"].shape == (16, 3)


def test_the_model_gets_the_users_sigmas_bit_for_bit():
    seen = []

    def model(x, sigma):
        seen.append(sigma[0].item())
        return x * 0

    sample_dpm_solver(model, start(VE, 10.0).float(), SIGMAS, disable=True)
    assert seen == SIGMAS[:-1].tolist()


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 16, 3, 4, 4), (2, 1, 77), (1, 5)], ids=str)
def test_any_shape(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole = sample_dpm_solver(gaussian(VE), x, SIGMAS, {"seed": 3}, disable=True, tau=0.7)
    assert whole.shape == shape and torch.isfinite(whole).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_accumulated_in_float32(dtype):
    """The result stays within two roundings of the float32 run on the same rounded predictions."""
    model = gaussian(VE)
    x = start(VE, 10.0).to(dtype)
    low = sample_dpm_solver(lambda x, s: model(x.float(), s).to(dtype), x, SIGMAS, disable=True)
    rounding = lambda x, s: model(x.to(dtype).float(), s).to(dtype).float()  # noqa: E731
    high = sample_dpm_solver(rounding, x.float(), SIGMAS, disable=True)
    assert low.dtype == dtype
    assert (low.float() - high).abs().max() <= 2 * torch.finfo(dtype).eps * high.abs().max()


@pytest.mark.parametrize("options", [{"tau": 1.0}, {"tau": 1.0, "method": "singlestep", "order": 3}])
def test_item_k_of_a_batch_is_that_item_alone(options):
    x = start(VE, 10.0).float()
    batch = sample_dpm_solver(gaussian(VE), x, SIGMAS, {"seed": 5}, disable=True, **options)
    for k in (0, 3, 15):
        alone = sample_dpm_solver(gaussian(VE), x[k : k + 1], SIGMAS, {"seed": 5}, disable=True, **options)
        assert torch.equal(batch[k : k + 1], alone)


def test_item_k_of_a_batch_is_that_item_alone_when_the_noise_is_disabled():
    """A chained sampler gets zeros as noise and its items as states."""

    def inpaint_wrapper(items):
        def model(x, sigma, **_):
            return gaussian(VE)(x, sigma)

        model.noise = torch.zeros(items, 3)
        return model

    x = start(VE, 10.0, items=3).float()
    batch = sample_dpm_solver(inpaint_wrapper(3), x, SIGMAS, {"seed": 5}, disable=True, tau=1.0)
    for k in range(3):
        alone = sample_dpm_solver(inpaint_wrapper(1), x[k : k + 1], SIGMAS, {"seed": 5}, disable=True, tau=1.0)
        assert torch.equal(batch[k : k + 1], alone)


def test_equal_items_get_different_noise():
    x = torch.zeros(3, 4)
    out = sample_dpm_solver(gaussian(VE), x, SIGMAS, {"seed": 5}, disable=True, tau=1.0)
    assert not torch.equal(out[0], out[1]) and not torch.equal(out[1], out[2])


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    sample_dpm_solver(gaussian(VE), start(VE, 10.0), SIGMAS, {"seed": 1}, disable=True, tau=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_input_is_not_changed():
    x, sigmas = start(VE, 10.0), SIGMAS.clone()
    kept = x.clone()
    sample_dpm_solver(gaussian(VE), x, sigmas, disable=True)
    assert torch.equal(x, kept) and torch.equal(sigmas, SIGMAS)


def test_a_run_is_cancelled_before_the_next_call():
    class Cancelled(Exception):
        pass

    calls = []

    def cancel():
        if len(calls) == 3:
            raise Cancelled

    def model(x, sigma):
        calls.append(1)
        return x * 0

    with pytest.raises(Cancelled):
        sample_dpm_solver(model, start(VE, 10.0), SIGMAS, disable=True, before_call=cancel)
    assert len(calls) == 3


def test_dynamic_threshold_is_per_item_and_leaves_pictures_in_range_alone():
    inside, outside = torch.linspace(-1, 1, 101).view(1, 1, 101), torch.linspace(-4, 4, 101).view(1, 1, 101)
    out = dynamic_threshold(torch.cat([inside, outside]), 0.9)
    assert torch.equal(out[:1], inside)
    assert out[1].abs().max() == 1.0 and out[1, 0, 50].abs() < 1e-6


def test_describe_shows_calls_and_orders():
    plan = plan_dpm_solver([3.0, 2.0, 1.0, 0.0], Schedule())
    text = plan.describe()
    assert text.startswith("3 network calls in 3 steps") and len(text.splitlines()) == 4
