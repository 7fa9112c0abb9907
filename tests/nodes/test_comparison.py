"""Solver Comparison on models with exact answers: counted calls, orders, failures, cancelling."""

import csv

import comfy.model_management
import comfy.samplers
import host_models
import pytest
import torch

FINE = {"steps": "20, 40, 80", "reference_steps": 600, "scheduler": "karras"}
KINDS = ("eps", "v", "edm", "flow")


class Noise:
    """NOISE as a host's node gives it; keeps the latents it was asked for."""

    def __init__(self, seed=3):
        self.seed, self.asked = seed, []

    def generate_noise(self, latent):
        self.asked.append(latent)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(latent["samples"].shape, generator=generator).to(latent["samples"].dtype)


def compare(host, *samplers, kind="eps", shape=(1, 4, 6, 6), patcher=None, latent=None, cfg=1.0, **options):
    """(rows of the CSV, table, plot) of the node run on SAMPLERs or names of the host's samplers."""
    cls = host.node_table["TrajectorySolverComparison"]
    defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if hasattr(i, "default")}
    samplers = [comfy.samplers.sampler_object(s) if isinstance(s, str) else s for s in samplers]
    inputs = {
        **defaults, "noise": Noise(), "latent_image": latent or {"samples": torch.zeros(shape)},
        "guider": host_models.guider(patcher or host_models.model(kind, channels=shape[1]), cfg=cfg), **options,
    }  # fmt: skip
    out = cls.execute(**inputs, **{f"sampler_{i}": s for i, s in enumerate(samplers, 1)})
    plot, table, text = out.args
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    for row in rows:
        row["steps"], row["calls"], row["distance"] = int(row["steps"]), int(row["calls"]), float(row["distance"])
    return rows, table, plot


def order_of(table, name):
    """The order in a sampler's first row."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return float(next(row[4] for row in rows if row[0] == name))


def solver(function, **options):
    return comfy.samplers.KSAMPLER(function, options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fitted_orders_are_those_of_the_methods(host, kind):
    scheduler = "kl_optimal" if kind == "flow" else "karras"
    steps = {"edm": "40, 80, 160"}.get(kind, FINE["steps"])
    options = {**FINE, "scheduler": scheduler, "steps": steps, "reference_steps": 1000}
    _, table, _ = compare(host, "euler", "dpmpp_2m", "heun", kind=kind, cfg=2.0, **options)
    assert order_of(table, "euler") == pytest.approx(1, abs=0.3), table
    assert order_of(table, "dpmpp_2m") == pytest.approx(2, abs=0.3), table
    assert order_of(table, "heun") == pytest.approx(2, abs=0.35), table


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_calls_are_counted(host, cfg):
    from trajectory.samplers.deis import sample_deis

    patcher = host_models.model("eps")
    rk4 = solver(sample_deis, variant="rhoRK", rk="rk4")
    rows, _, _ = compare(host, "euler", "heun", rk4, patcher=patcher, cfg=cfg, steps="5, 10", reference_steps=20)
    assert [row["calls"] for row in rows] == [5, 10, 9, 19, 4 * 4 + 1, 4 * 9 + 1]  # the last step is one call
    repeated = 5 + 9 + 17  # whether there is fresh noise
    evaluated = sum(patcher.model.diffusion_model.calls)
    assert evaluated == (20 + sum(row["calls"] for row in rows) + repeated) * (1 if cfg == 1 else 2)


def test_the_distance_is_that_of_the_hosts_own_runs(host):
    """Against a run of the guider as SamplerCustomAdvanced makes it."""
    patcher, latent = host_models.model("flow"), 0.3 * torch.ones(3, 4, 6, 6)
    rows, _, _ = compare(host, "euler", patcher=patcher, latent={"samples": latent}, steps="6", reference_steps=300)
    noise = Noise().generate_noise({"samples": latent})

    def run(steps):
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
        guider = host_models.guider(patcher)
        return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=3)

    coarse, fine = run(6).flatten(1), run(1000).flatten(1)
    distances = (coarse - fine).square().mean(1).sqrt() / fine.std(1, correction=0)
    assert rows[0]["distance"] == pytest.approx(float(distances.median()), rel=0.02)


def test_fresh_noise_is_noticed_and_only_that(host):
    from trajectory.samplers.dpm_solver import sample_dpm_solver

    noisy = solver(sample_dpm_solver, tau=1.0)
    rows, table, _ = compare(host, "euler_ancestral", noisy, "euler", "heun", steps="6, 12", reference_steps=60)
    assert [row["stochastic"] for row in rows] == ["True"] * 4 + ["False"] * 4
    assert min(row["distance"] for row in rows[:4]) > 0.3
    notes = [line for line in table.splitlines() if "does not go to 0" in line]
    assert len(notes) == 2 and notes[0].startswith("| euler_ancestral") and notes[1].startswith("| dpm_solver")


def test_a_failing_sampler_leaves_the_others(host):
    def sample_broken(model, x, sigmas, extra_args=None, callback=None, disable=None):
        if len(sigmas) > 6:
            raise RuntimeError("no more than 5 steps")
        return x

    def sample_exploding(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return x * float("nan")

    rows, table, plot = compare(
        host, solver(sample_broken), "euler", solver(sample_exploding), steps="5, 8", reference_steps=40)  # fmt: skip
    assert [row["sampler"] for row in rows] == ["broken"] * 2 + ["euler"] * 2 + ["exploding"] * 2
    assert rows[0]["error"] == "" and rows[1]["error"] == "RuntimeError: no more than 5 steps"
    assert "no more than 5 steps" in table and 0 < rows[3]["distance"] < rows[2]["distance"]
    assert rows[4]["distance"] != rows[4]["distance"] and plot.isfinite().all()


def test_cancelling_stops_before_the_next_call(host):
    patcher = host_models.model("eps")
    network = patcher.model.diffusion_model
    forward = network.forward

    def interrupting(*args, **kwargs):
        if len(network.calls) == 45:  # beyond the reference, in a sampler of the host that checks nothing itself
            comfy.model_management.interrupt_current_processing()
        return forward(*args, **kwargs)

    network.forward = interrupting
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(host, "heun", "euler", patcher=patcher, steps="5, 8", reference_steps=40)
    assert len(network.calls) == 46 and not comfy.model_management.processing_interrupted()


def test_progress_runs_once_over_all_runs(host, monkeypatch):
    shown = []
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append((value, total)))
    compare(host, "euler", "heun", steps="4, 6", reference_steps=10)
    total = 10 + 2 * (4 + 4 + 6)
    assert shown[-1] == (total, total) and {t for _, t in shown} == {total}
    assert [v for v, _ in shown] == sorted(v for v, _ in shown)


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("shape", [(3, 4, 6, 6), (1, 4, 2, 5, 3), (2, 1, 40)], ids=str)
def test_batches_video_and_packed_latents(host, kind, shape):
    rows, _, plot = compare(host, "euler", "dpmpp_2m", kind=kind, shape=shape, steps="10, 20", reference_steps=100)
    assert all(0 < row["distance"] < 0.5 for row in rows) and rows[1]["distance"] < rows[0]["distance"]
    assert plot.shape == (1, 600, 960, 3) and plot.min() >= 0 and plot.max() == 1 and plot.std() > 0.05


def test_a_mask_is_kept(host):
    mask = torch.zeros(1, 1, 6, 6)
    latent = {"samples": torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1)), "noise_mask": mask}
    rows, _, _ = compare(host, "euler", latent=latent, steps="4", reference_steps=20)
    assert rows[0]["distance"] < 1e-5  # nothing is free to change


@pytest.mark.parametrize(("scheduler", "denoise"), [("simple", 0.6), ("beta", 0.37), ("ddim_uniform", 1.0)])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_where_the_first_sigma_moves_each_run_has_its_own_reference(host, kind, scheduler, denoise):
    """A common reference would leave a distance of the order of the shift of the start."""
    rows, _, _ = compare(host, "dpmpp_2m", kind=kind, scheduler=scheduler, denoise=denoise, steps="7, 15, 60",
                         reference_steps=400)  # fmt: skip
    assert rows[0]["distance"] > rows[2]["distance"] and rows[2]["distance"] < 0.05


def test_all_runs_start_from_one_noise_and_leave_the_inputs_alone(host):
    noise, latent = Noise(), {"samples": torch.zeros(1, 4, 6, 6), "batch_index": [5]}
    guider = host_models.guider(host_models.model("eps"))
    before = {**vars(guider)}
    first, _, _ = compare(host, "euler", "heun", noise=noise, latent=latent, guider=guider, steps="4, 6",
                          reference_steps=20)  # fmt: skip
    assert len(noise.asked) == 1 and noise.asked[0]["batch_index"] == [5]
    assert vars(guider) == before and not latent["samples"].any()
    again, _, _ = compare(host, "euler", "heun", noise=noise, latent=latent, guider=guider, steps="4, 6",
                          reference_steps=20)  # fmt: skip
    assert again == first


def test_a_sampler_object_of_another_kind_can_be_compared(host):
    class Shortcut(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
                   disable_pbar=False):  # fmt: skip
            return model_wrap(noise * sigmas[0], sigmas[:1], **extra_args)

    rows, _, _ = compare(host, Shortcut(), "euler", steps="3", reference_steps=20)
    assert (rows[0]["sampler"], rows[0]["calls"]) == ("Shortcut", 1)


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": "5, x"}, "steps is '5, x'"),
    ({"names": "a, b, c"}, "names has 3 entries, but 2 samplers"),
    ({"scheduler": "nothing"}, "scheduler is 'nothing'; choose one of simple"),
    ({"scheduler": "kl_optimal", "steps": "1"}, "scheduler kl_optimal gives no usable schedule of 1 steps"),
])  # fmt: skip
def test_bad_input_is_named_before_any_call(host, options, message):
    patcher = host_models.model("eps")
    with pytest.raises(ValueError, match=message):
        compare(host, "euler", "heun", patcher=patcher, **options)
    assert not patcher.model.diffusion_model.calls


def test_gaps_between_connected_samplers_do_not_matter(host):
    euler, heun = (comfy.samplers.sampler_object(name) for name in ("euler", "heun"))
    rows, _, _ = compare(host, euler, None, heun, steps="4", reference_steps=20, names="one, two")
    assert [row["sampler"] for row in rows] == ["one", "two"]


def test_a_sampler_that_writes_into_its_schedule_does_not_reach_the_others(host):
    def greedy(model, x, sigmas, extra_args=None, callback=None, disable=None):
        sigmas[1:] = 0.5
        return x

    alone, _, _ = compare(host, "euler", names="e", steps="5, 8", reference_steps=40)
    after, _, _ = compare(host, solver(greedy), "euler", names="g, e", steps="5, 8", reference_steps=40)
    assert [row for row in after if row["sampler"] == "e"] == alone


def test_a_result_of_another_shape_is_a_failed_run(host):
    def halved(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return x[:, :2]

    rows, _, _ = compare(host, solver(halved), "euler", steps="5, 8", reference_steps=40)
    assert [bool(row["error"]) for row in rows] == [True, True, False, False] and "shape" in rows[0]["error"]
