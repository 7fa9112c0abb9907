"""Temporal noise fusion of denoised clips: its formula on both paths, its file, and its training."""

import math
import struct

import exact_models
import pytest
import torch
from random_weights import stirred
from safetensors.torch import load_file, save_file
from trajectory.models import tnf as files
from trajectory.models.tnf import TemporalFusion
from trajectory.models.trip import TNF, TRIP, Config
from trajectory.samplers.paths import FLOW, VE
from trajectory.training import tnf as training

SHAPE = (2, 3, 4, 8, 8)  # clips, frames, channels, height, width
LEVELS = torch.tensor([[2.0], [0.3]])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fusion(channels=4, patch=2, dim=8, frames=3, side=4):
    return stirred(TemporalFusion(TNF(channels, patch, dim, frames, side), "noise", "a model")).requires_grad_(False)


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VE, FLOW], ids=["ve", "flow"])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)], ids=str)
def test_it_begins_as_the_linear_fusion_of_what_is_denoised(path, size):
    """lam z_ref + (1 - lam) D with lam from .9 to .1, whatever the path."""
    begun = training.begun(4, 5, 8, 2, "noise", "", seed=0)
    shape = (2, 5, 4, *size)
    denoised, still, x = noise(*shape), noise(2, 1, 4, *size, seed=1), noise(*shape, seed=2)
    sigma = torch.tensor([[30.0], [0.05]] if path is VE else [[1.0], [0.01]])
    lam = torch.linspace(0.9, 0.1, 5).view(1, 5, 1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(begun(denoised, still, x, sigma), lam * still + (1 - lam) * denoised, atol=1e-4)


def test_it_is_what_trip_does_inside():
    """The fused noise of the network and the fusion behind it of what its residual path denoises are the same."""
    network = stirred(TRIP(Config(width=8, time=16, frames=3, dim=8, side=4))).requires_grad_(False)
    seen = []
    network.fusion.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    scaled, image, sigma = noise(2, 4, 3, 8, 8), noise(2, 4, 8, 8, seed=1), LEVELS[:, 0]
    eps = network(scaled, sigma, noise(2, 20, 128, seed=2), image)
    level = sigma.view(-1, 1, 1, 1, 1)
    x = scaled * (1 + level**2).sqrt()
    clips = ((x - level * seen[0]).transpose(1, 2), image[:, None], x.transpose(1, 2))
    behind = TemporalFusion(network.fusion, "noise")(*clips, sigma[:, None])
    assert torch.allclose(behind.transpose(1, 2), x - level * eps, atol=1e-4)


def test_clips_do_not_mix_and_a_still_frame_stands_for_all():
    fused, (x, denoised, still) = fusion(), (noise(*SHAPE, seed=k) for k in range(3))
    both = fused(denoised, still[:, :1], x, LEVELS)
    assert torch.allclose(fused(denoised[1:], still[1:, :1], x[1:], LEVELS[1:]), both[1:], atol=1e-5)
    assert torch.equal(fused(denoised, still[:, :1].expand(SHAPE), x, LEVELS), both)
    assert torch.allclose(fused(denoised, still[:, :1], x, LEVELS.expand(2, 3)), both, atol=1e-5)
    for changed in ((denoised.roll(1, 1), still[:, :1], x, LEVELS), (denoised, still[:, 1:2], x, LEVELS),
                    (denoised, still[:, :1], x, LEVELS * 2)):
        assert not torch.allclose(fused(*changed), both, atol=1e-3)


@pytest.mark.parametrize("path", [VE, FLOW], ids=["ve", "flow"])
@pytest.mark.parametrize("levels", [[[50.0], [1.0]], [[0.05], [1.0]], [[0.9, 0.05, 0.3], [0.1, 1.0, 0.02]]], ids=str)
def test_it_sees_what_both_paths_mean_for_the_picture_at_any_level_of_each_frame(path, levels):
    """D - z_ref, and (x - z_ref) / sqrt(1 + sigma^2), in patches of 2 x 2."""
    fused, (x0, denoised, still, n) = fusion(), (noise(*SHAPE, seed=k) for k in range(4))
    sigma = torch.tensor(levels).clamp(max=1.0 if path is FLOW else 50.0)
    level, seen = sigma[..., None, None, None], {}
    x = (1 - level if path is FLOW else 1) * x0 + level * n
    for name in ("from_res", "from_ref"):
        getattr(fused.tnf, name).register_forward_hook(
            lambda module, given, out, name=name: seen.update({name: given[0]}))
    fused(denoised, still[:, :1], x, sigma)
    for name, value in {"from_res": denoised - still[:, :1],
                        "from_ref": (x - still[:, :1]) / (1 + level.square()).sqrt()}.items():  # fmt: skip
        patches = value.unfold(3, 2, 2).unfold(4, 2, 2).permute(0, 1, 3, 4, 2, 5, 6)  # B N rows columns C 2 2
        assert torch.allclose(seen[name], patches.flatten(4).flatten(1, 3), atol=2e-5)


def test_a_frame_without_noise_leaves_the_others_as_they_are_told_apart():
    """It takes the level of the noisiest one, so that the clip's time is that of frames with noise."""
    fused, (x, denoised, still) = fusion(), (noise(*SHAPE, seed=k) for k in range(3))
    out = fused(denoised, still[:, :1], x, torch.tensor([[0.0, 0.3, 0.3], [0.0, 0.1, 0.2]]))
    assert torch.equal(out[:, 0], denoised[:, 0]) and out.isfinite().all()
    same = fused(denoised, still[:, :1], x, torch.tensor([[0.3, 0.3, 0.3], [0.2, 0.1, 0.2]]))
    assert torch.equal(out[:, 1:], same[:, 1:])


def test_without_noise_nothing_is_fused_and_low_precision_is_computed_in_full():
    fused, (x, denoised, still) = fusion(), (noise(*SHAPE, seed=k).bfloat16() for k in range(3))
    sigma = torch.tensor([[0.0], [1.0]])
    out = fused(denoised, still, x, sigma)
    assert out.dtype == torch.float32 and out.isfinite().all() and torch.equal(out[0], denoised[0].float())
    assert torch.equal(out, fused(denoised.float(), still.float(), x.float(), sigma))


def test_frames_without_noise_stay_and_the_others_are_fused():
    fused, (x, denoised, still) = fusion(), (noise(*SHAPE, seed=k) for k in range(3))
    x, denoised = (clips.requires_grad_() for clips in (x, denoised))
    out = fused(denoised, still, x, torch.tensor([[0.0, 0.4, 0.4], [0.0, 0.0, 0.0]]))
    assert torch.equal(out[1], denoised[1]) and torch.equal(out[0, 0], denoised[0, 0])
    assert out.isfinite().all() and not torch.allclose(out[0, 1:], denoised[0, 1:], atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), (x, denoised)))


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_every_bit(tmp_path):
    made = fusion(channels=3, patch=3, dim=12, frames=5, side=6)
    files.write(tmp_path / "a.safetensors", made)
    again = files.read(tmp_path / "a.safetensors")
    assert again.about() == made.about() == {
        "format": "trip_tnf", "version": "2", "channels": "3", "patch": "3", "dim": "12", "heads": "4", "blocks": "1",
        "max_frames": "5", "parametrisation": "noise", "base": "a model"}  # fmt: skip
    assert again.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in again.state_dict().items())
    assert all(name.startswith("tnf.") for name in load_file(tmp_path / "a.safetensors"))


def test_a_file_is_never_replaced(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write(path, fusion())
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        files.write(path, stirred(fusion(), seed=1))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def parts():
    made = fusion()
    return made.state_dict(), made.about()


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(("change", "words"), [
    (lambda weights, about: (weights, {"format": "pt"}), "format 'pt' and version None"),
    (lambda weights, about: (weights, {**about, "version": "1"}), "version '1'"),
    (lambda weights, about: (weights, without(about, "channels")), "no number of channels"),
    (lambda weights, about: (weights, {**about, "channels": "0"}), "no number of channels"),
    (lambda weights, about: (weights, {**about, "channels": "9" * 5000}), "no number of channels"),
    (lambda weights, about: (weights, {**about, "channels": "-4"}), "no number of channels"),
    (lambda weights, about: (weights, {**about, "channels": "3"}), "weights are of another model"),
    (lambda weights, about: (weights, {**about, "patch": "4"}), "differ in patch"),
    (lambda weights, about: (weights, {**about, "max_frames": "99", "heads": "1"}), "differ in heads, max_frames"),
    (lambda weights, about: (weights, {**about, "parametrisation": "x"}), "parametrisation 'x'"),
    (lambda weights, about: (without(weights, "tnf.head.bias"), about), "tnf.head.bias"),
    (lambda weights, about: (weights | {"tnf.extra": torch.zeros(1)}, about), "tnf.extra"),
    (lambda weights, about: (weights | {"tnf.frame": torch.zeros(0, 1, 2)}, about), "tnf.frame"),
    (lambda weights, about: (weights | {"tnf.place": torch.full((1, 8, 4, 4), math.nan)}, about), "not finite"),
    (lambda weights, about: (weights | {"tnf.share": torch.tensor([2.0, -1.0])}, about), r"shares .* \[2.0, -1.0\]"),
    (lambda weights, about: ({"conv.weight": torch.zeros(3)}, {}), "format None"),
])  # fmt: skip
def test_what_is_no_such_file_is_refused_by_name(tmp_path, change, words):
    weights, about = change(*parts())
    save_file(weights, tmp_path / "bad.safetensors", about)
    with pytest.raises(ValueError, match=f"bad.safetensors is no file of a temporal noise fusion: .*{words}"):
        files.read(tmp_path / "bad.safetensors")


def test_damaged_files_and_pickles_are_refused_by_name(tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file(*parts()[:1], path, parts()[1])
    whole = path.read_bytes()
    for contents in (whole[:-10], whole[:20], b"", struct.pack("<Q", 2**60) + whole[8:]):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match="bad.safetensors is no safetensors file"):
            files.read(path)
    torch.save({"tnf.head.bias": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="bad.safetensors is no safetensors file"):
        files.read(path)
    with pytest.raises(ValueError, match="none.safetensors is no safetensors file"):
        files.read(tmp_path / "none.safetensors")


# --- the training ----------------------------------------------------------------------------------------------------

SIGMAS = {VE: lambda percent: 20 * (0.03 / 20) ** percent, FLOW: lambda percent: 1 - percent}


def learn(path, clips, fused, **options):
    network = exact_models.gaussian(path, mean=0.0, std=1.0)
    options = {"steps": 3, "learning_rate": 1e-2, "batch": 2, "seed": 0, "report": lambda: None, **options}
    return training.train(fused, clips, lambda x, sigma: network(x, sigma).float(), path, SIGMAS[path], **options)


def clip(frames=3, side=4):
    """One clip that moves evenly away from its first frame."""
    return noise(1, 1, 4, side, side) + torch.linspace(0, 1, frames).view(1, -1, 1, 1, 1) * noise(1, 1, 4, side, side,
                                                                                                  seed=1)  # fmt: skip


@pytest.mark.parametrize("path", [VE, FLOW], ids=["ve", "flow"])
def test_it_learns_one_clip(path):
    fused = training.begun(4, 3, 32, 2, "noise", "", seed=0)
    losses = learn(path, clip(), fused, steps=200, batch=8, learning_rate=1e-2)
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    made = [training.begun(4, 3, 8, 2, "noise", "", seed=seed) for seed in (5, 5, 2**64 - 1)]
    losses = [learn(VE, noise(4, *SHAPE[1:]), fused, seed=seed)
              for fused, seed in zip(made, (5, 5, 2**64 - 1), strict=True)]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (fused.state_dict() for fused in made)
    assert losses[0] == losses[1] != losses[2] and all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["tnf.from_res.weight"], other["tnf.from_res.weight"])


def test_a_training_goes_on_from_a_copy_also_in_inference_mode():
    with torch.inference_mode():
        source = fusion(side=6)
        weights = {name: value.clone() for name, value in source.state_dict().items()}
        again = training.continued(source, "another model")
        assert all(torch.equal(again.state_dict()[name], weights[name]) for name in weights)
        learn(FLOW, noise(*SHAPE), again)
        assert all(torch.equal(source.state_dict()[name], weights[name]) for name in weights)
        assert not torch.equal(again.tnf.head.weight, weights["tnf.head.weight"])
    assert (again.base, again.parametrisation) == ("another model", "noise")
    assert not any(value.is_inference() or value.requires_grad for value in again.parameters())


def test_losses_and_gradients_that_are_not_finite_end_a_training():
    with pytest.raises(ValueError, match="the loss of step 1 is nan, .*, at learning_rate 0.01; lower that"):
        learn(VE, torch.full(SHAPE, math.nan), fusion())
    fused = fusion()
    fused.tnf.head.bias.requires_grad_().register_hook(lambda gradient: gradient * math.inf)
    before = fused.state_dict()["tnf.place"].clone()
    with pytest.raises(ValueError, match=r"the loss of step 1 is [\d.]+, and its gradient (nan|inf), at"):
        learn(VE, noise(*SHAPE), fused)
    assert torch.equal(fused.tnf.place, before)


def test_noise_levels_are_within_the_run_and_reports_are_one_a_step():
    asked, reports = [], []
    training.train(
        fusion(), noise(*SHAPE), lambda x, sigma: x, VE, lambda percent: asked.append(percent) or 1.0, steps=5,
        learning_rate=1e-3, batch=3, seed=0, report=lambda: reports.append(1))  # fmt: skip
    assert len(asked) == 15 and len(reports) == 5 and 0 < min(asked) < max(asked) < 1


def test_the_curve_has_the_means_of_equal_parts():
    assert training.curve([3.0, 1.0]) == ([1, 2], [3.0, 1.0])
    at, means = training.curve([float(k) for k in range(105)])
    assert at == [*range(3, 106, 3)] and means[:2] == [1.0, 4.0]
