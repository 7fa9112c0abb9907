"""S3Diff inside a host: its files, the measured degradation, the patches for one degradation, One-Step Upscale."""

import logging
import os

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import s3diff_files
import torch
import unets
from trajectory.models import s3diff as files_of
from trajectory.models.one_step import autoencoder_key
from trajectory.nodes import s3diff as nodes
from trajectory.nodes._restore import patcher_of
from trajectory.nodes.models import load_weights
from trajectory.nodes.one_step import in_one_step

IN = "input_blocks.0.0"


def picture(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tiny_vae():
    return comfy.sd.VAE(sd=load_weights("landscapes_autoencoder4"), dtype=torch.float32)


@pytest.fixture(scope="module")
def networks():
    return unets.unet(), tiny_vae()


@pytest.fixture(scope="module")
def contents(networks):
    """Of a random s3diff.pkl for these networks."""
    model, vae = networks
    weight = model.model.diffusion_model.state_dict()[f"{IN}.weight"]
    whole = {"conv_in.weight": weight + 0.05, "conv_in.bias": torch.full((len(weight),), 0.1)}
    return s3diff_files.checkpoint(
        s3diff_files.unet_layers(model.model), s3diff_files.tiny_encoder_layers(vae), whole=whole)


@pytest.fixture(scope="module")
def restorer(contents):
    return nodes.Restorer(files_of.s3diff(contents), patcher_of(files_of.de_net(s3diff_files.estimator())))


def call(host, node_id, **inputs):
    return host.node_table[node_id].execute(**inputs).args


def apply(host, networks, restorer, **inputs):
    model, vae = networks
    inputs = {"strength": 1.0, "blur": nodes.MEASURE, "noise": nodes.MEASURE, **inputs}
    return call(host, "TrajectoryApplyS3Diff", model=model, vae=vae, s3diff=restorer, **inputs)


def weights_of(patcher):
    """The weights as they are when this patcher is loaded."""
    comfy.model_management.load_models_gpu([patcher])
    return {key: value.clone() for key, value in patcher.model.state_dict().items()}


def run(networks, picture, cfg=1.07, negative=0.7):
    """What a restorer makes of an IMAGE of 32 x 32."""
    model, vae = networks
    latent = vae.encode(picture)
    negative = None if negative is None else unets.conditioning(negative)
    return in_one_step(model, latent, unets.conditioning(0.3), negative, cfg)


# --- the degradation


def test_the_degradation_is_measured(host, restorer):
    image = picture(3, 40, 33, 3)
    blur, noise, blurs, noises = call(host, "TrajectoryS3DiffDegradation", image=image, s3diff=restorer)
    network = restorer.estimator.model
    expected = network(image.movedim(-1, 1))
    assert torch.allclose(torch.tensor([blurs, noises]).T, expected, atol=6e-4)
    assert blur == pytest.approx(sum(blurs) / 3) and noise == pytest.approx(sum(noises) / 3)
    assert all(isinstance(value, float) for value in (blur, noise, *blurs, *noises))
    for k in range(3):
        alone = call(host, "TrajectoryS3DiffDegradation", image=image[k : k + 1], s3diff=restorer)
        assert alone[0] == blurs[k] and alone[1] == noises[k]


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 1, 200, 3), (2, 17, 5, 4), (1, 8, 8, 1)], ids=str)
def test_pictures_of_any_size(host, restorer, shape):
    blur, noise, *_ = call(host, "TrajectoryS3DiffDegradation", image=picture(*shape), s3diff=restorer)
    assert 0 < blur < 1 and 0 < noise < 1


def test_the_lists_are_lists_for_the_host(host):
    schema = host.node_table["TrajectoryS3DiffDegradation"].GET_SCHEMA()
    assert [output.is_output_list for output in schema.outputs] == [False, False, True, True]


def test_values_that_are_none_are_refused(host, restorer):
    image = picture(1, 8, 8, 3)
    image[0, 2, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="image has values that are not finite"):
        call(host, "TrajectoryS3DiffDegradation", image=image, s3diff=restorer)
    with pytest.raises(ValueError, match=r"image has the shape \[0, 8, 8, 3\]"):
        call(host, "TrajectoryS3DiffDegradation", image=picture(0, 8, 8, 3), s3diff=restorer)


def test_measuring_can_be_interrupted(host, restorer):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        call(host, "TrajectoryS3DiffDegradation", image=picture(1, 8, 8, 3), s3diff=restorer)
    assert not comfy.model_management.processing_interrupted()


# --- the patches


def test_the_patched_weights_are_the_merged_ones(host, networks, restorer):
    """W + strength (8 / r) up M^T down; whole layers are interpolated; what is not named stays."""
    model, vae = networks
    plain, plain_vae = weights_of(model), weights_of(vae.patcher)
    patched, patched_vae = apply(host, networks, restorer, blur=0.3, noise=0.6, strength=0.5)
    ours, ours_vae = weights_of(patched), weights_of(patched_vae.patcher)
    unet, encoder = restorer.changes.at(0.3, 0.6)
    keys = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    changed = set()
    for weights, before, change, name in (
        (ours, plain, unet, lambda key: f"diffusion_model.{keys[key]}"),
        (ours_vae, plain_vae, encoder, autoencoder_key),
    ):  # fmt: skip
        for layer, (up, down) in change.low_rank.items():
            key = name(f"{layer}.weight")
            delta = 0.5 * 8 / len(down) * (up.flatten(1) @ down.flatten(1)).view_as(before[key])
            assert delta.abs().max() > 1e-4
            assert torch.allclose(weights[key], before[key] + delta, atol=1e-5), key
            changed.add(key)
    for end in ("weight", "bias"):
        key = f"diffusion_model.{IN}.{end}"
        assert torch.allclose(ours[key], (plain[key] + unet.weights[f"conv_in.{end}"]) / 2, atol=1e-6)
        changed.add(key)
    for weights, before in ((ours, plain), (ours_vae, plain_vae)):
        assert all(torch.equal(weights[key], before[key]) for key in before if key not in changed)
    assert all(torch.equal(value, plain[key]) for key, value in weights_of(model).items())


def test_strength_0_is_the_plain_model(host, networks, restorer):
    image = picture(1, 32, 32, 3)
    off = run(apply(host, networks, restorer, blur=0.3, noise=0.6, strength=0.0), image)
    assert torch.equal(off, run(networks, image))
    on = run(apply(host, networks, restorer, blur=0.3, noise=0.6), image)
    assert (on - off).abs().max() > 0.1


def test_degradations_come_from_the_image_or_by_hand(host, networks, restorer):
    image = picture(2, 32, 32, 3)
    blur, noise, *_ = call(host, "TrajectoryS3DiffDegradation", image=image, s3diff=restorer)
    small = image[:1]
    by_image = run(apply(host, networks, restorer, image=image), small)
    assert torch.equal(by_image, run(apply(host, networks, restorer, blur=blur, noise=noise), small))
    assert torch.equal(by_image, run(apply(host, networks, restorer, blur=blur, image=image), small))
    other = run(apply(host, networks, restorer, noise=0.9, image=image), small)
    assert torch.equal(other, run(apply(host, networks, restorer, blur=blur, noise=0.9), small))
    assert (other - by_image).abs().max() > 1e-2


def test_cfg_1_is_the_positive_alone(host, networks, restorer):
    patched, image = apply(host, networks, restorer, blur=0.3, noise=0.6), picture(1, 32, 32, 3)
    alone = run(patched, image, negative=None)
    assert torch.equal(run(patched, image, cfg=1.0), alone)
    assert (run(patched, image) - alone).abs().max() > 1e-3


def test_a_restorer_is_not_made_of_a_restorer(host, networks, restorer):
    once = apply(host, networks, restorer, blur=0.3, noise=0.6)
    off = apply(host, networks, restorer, blur=0.3, noise=0.6, strength=0.0)
    for twice, name in ((once, "model"), (off, "model"), ((networks[0], once[1]), "vae")):
        with pytest.raises(ValueError, match=f"{name} already is a one-step restorer's; connect the plain"):
            apply(host, twice, restorer, blur=0.3, noise=0.6)


def test_bf16_is_warned_of_once(host, networks, restorer, caplog):
    with caplog.at_level(logging.WARNING, "trajectory"):
        apply(host, networks, restorer, blur=0.3, noise=0.6)
        assert not caplog.text
        model = unets.unet(dtype=torch.bfloat16)
        for blur in (0.3, 0.6):
            apply(host, (model, networks[1]), restorer, blur=blur, noise=0.6)
    assert caplog.text.count("computes in bf16") == 1


@pytest.mark.parametrize("inputs, message", [
    ({}, "blur and noise is -1, to be measured, but image is not connected"),
    ({"blur": 0.5}, "noise is -1, to be measured, but image is not connected"),
    ({"blur": -0.5, "noise": 0.5}, "blur is -0.5; set it to a number from 0 to 1"),
    ({"blur": 0.5, "noise": float("nan")}, "noise is nan; set it"),
    ({"blur": 0.5, "noise": 0.5, "strength": 3.0}, "strength is 3.0; set it to a number from 0 to 2"),
])  # fmt: skip
def test_wrong_numbers_are_named(host, networks, restorer, inputs, message):
    with pytest.raises(ValueError, match=message):
        apply(host, networks, restorer, **inputs)


def test_networks_of_other_sizes_are_refused(host, networks, restorer):
    other = unets.unet(model_channels=64)
    with pytest.raises(ValueError, match="model is not the one that this file changes: .*connect that of SD-Turbo"):
        apply(host, (other, networks[1]), restorer, blur=0.5, noise=0.5)
    pixels = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    with pytest.raises(ValueError, match="vae is not the one that this file changes"):
        apply(host, (networks[0], pixels), restorer, blur=0.5, noise=0.5)


# --- the whole restorer


def upscale(host, networks, restorer, image, **inputs):
    model, vae = networks
    inputs = {"scale": 2, "upscale_method": "bilinear", "process_size": 64, "tile": 0, "overlap": 0, "vae_tile": 0,
              "color_fix": "none", "positive": unets.conditioning(0.3), "negative": unets.conditioning(0.7),
              "cfg": 1.07, "degradation": "per_image", **inputs}  # fmt: skip
    return call(host, "TrajectoryOneStepUpscale", image=image, model=model, vae=vae, s3diff=restorer, **inputs)[0]


def test_each_picture_of_a_batch_has_its_own_degradation(host, networks, restorer):
    image = torch.cat([picture(1, 30, 26, 3), 0.2 * picture(1, 30, 26, 3, seed=1)])
    batch = upscale(host, networks, restorer, image)
    assert batch.shape == (2, 60, 52, 3)
    for k in range(2):
        assert torch.equal(upscale(host, networks, restorer, image[k : k + 1])[0], batch[k])
    mean = upscale(host, networks, restorer, image, degradation="batch_mean")
    blur, noise, *_ = call(host, "TrajectoryS3DiffDegradation", image=image, s3diff=restorer)
    by_hand = upscale(host, networks, restorer, image, degradation="manual", blur=blur, noise=noise)
    assert torch.allclose(mean, by_hand, atol=1e-6) and (mean - batch).abs().max() > 1e-3


def test_an_applied_restorer_needs_no_s3diff(host, networks, restorer):
    """One degradation by hand is the same either way; at strength 0 it is the plain model."""
    image = picture(1, 20, 20, 3)
    by_hand = upscale(host, networks, restorer, image, degradation="manual", blur=0.3, noise=0.6)
    made = apply(host, networks, restorer, blur=0.3, noise=0.6)
    assert torch.allclose(upscale(host, made, None, image), by_hand, atol=1e-6)
    off = apply(host, networks, restorer, blur=0.3, noise=0.6, strength=0.0)
    assert (upscale(host, off, None, image) - by_hand).abs().max() > 1e-3


def test_networks_that_do_not_fit_are_refused_before_any_work(host, networks, restorer, monkeypatch):
    monkeypatch.setattr(type(restorer.estimator.model), "forward", lambda *_, **__: pytest.fail("measured"))
    image, made = picture(1, 20, 20, 3), apply(host, networks, restorer, blur=0.3, noise=0.6)
    with pytest.raises(ValueError, match="model is no restorer; connect that of Apply OSEDiff"):
        upscale(host, networks, None, image)
    with pytest.raises(ValueError, match="model already is a one-step restorer's; connect the plain model of SD-Turbo"):
        upscale(host, made, restorer, image)
    with pytest.raises(ValueError, match="vae already is a one-step restorer's"):
        upscale(host, (networks[0], made[1]), restorer, image)


def test_one_picture_does_not_change_another(host, networks, restorer):
    first, others = picture(1, 20, 20, 3), (picture(1, 20, 20, 3, seed=s) * s / 3 for s in (1, 3))
    results = [upscale(host, networks, restorer, torch.cat([first, other]))[0] for other in others]
    assert torch.equal(*results)


# --- files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/s3diff."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "s3diff", ([], set()))
    if hasattr(folder_paths, "filename_list_cache"):
        folder_paths.filename_list_cache.pop("s3diff", None)
    (tmp_path / "s3diff").mkdir()
    return tmp_path / "s3diff"


def load(host, s3diff="s3diff.pkl", de_net="de_net.pth"):
    return call(host, "TrajectoryS3DiffLoader", s3diff=s3diff, de_net=de_net)[0]


@pytest.fixture
def files(folder, contents):
    torch.save(contents, folder / "s3diff.pkl")
    torch.save(s3diff_files.estimator(), folder / "de_net.pth")
    return folder


def test_files_load(host, files, networks, restorer):
    assert nodes.choices(False) == ["s3diff.pkl", "de_net.pth"] and nodes.choices(True) == ["de_net.pth", "s3diff.pkl"]
    loaded, image = load(host), picture(1, 32, 32, 3)
    assert call(host, "TrajectoryS3DiffDegradation", image=image, s3diff=loaded) == call(
        host, "TrajectoryS3DiffDegradation", image=image, s3diff=restorer)
    ours, expected = (run(apply(host, networks, chosen, image=image), image) for chosen in (loaded, restorer))
    assert torch.allclose(ours, expected, atol=1e-4)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_other_files_are_refused_by_name(host, files, monkeypatch):
    monkeypatch.chdir(files)
    torch.save({"w": Malicious()}, files / "bad.pkl")
    (files / "short.pkl").write_bytes((files / "s3diff.pkl").read_bytes()[:-1000])
    torch.save({"rank_unet": 4, "state_dict_unet": {}, "state_dict_vae": {}}, files / "osediff.pkl")
    for name, message in (("bad.pkl", "bad.pkl .*(system|malicious)"), ("short.pkl", "short.pkl .* is not read"),
                          ("osediff.pkl", "'osediff.pkl'.*no low-rank changes in state_dict_unet"),
                          ("de_net.pth", "'de_net.pth'.*no low-rank changes"),
                          ("none.pkl", "'none.pkl', which is no file in models/s3diff")):  # fmt: skip
        with pytest.raises(ValueError, match=f"(?s)^s3diff.*{message}"):
            load(host, name)
    with pytest.raises(ValueError, match="^de_net is 's3diff.pkl'"):
        load(host, de_net="s3diff.pkl")
    torch.save({"conv_first.0.weight": torch.zeros(4, 3, 3, 3)}, files / "part.pth")
    with pytest.raises(ValueError, match="^de_net is 'part.pth'.*another model: .*missing"):
        load(host, de_net="part.pth")
    torch.save(s3diff_files.estimator() | {"fc_degree.1.2.bias": torch.full((1,), torch.inf)}, files / "inf.pth")
    with pytest.raises(ValueError, match="^de_net is 'inf.pth', and fc_degree.1.2.bias has values that are not finite"):
        load(host, de_net="inf.pth")
    for number, contents in enumerate((None, [torch.zeros(2)], torch.zeros(2))):
        torch.save(contents, files / f"{number}.pkl")
        with pytest.raises(ValueError, match=f"^s3diff is '{number}.pkl', and it is .*, not weights by name"):
            load(host, f"{number}.pkl")
    assert not (files / "executed").exists()
