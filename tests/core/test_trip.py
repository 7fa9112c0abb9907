"""TRIP in miniature: its network, the fusions and what they begin as, its training."""

import math
from dataclasses import replace

import pytest
import torch
from random_weights import stirred
from trajectory.models import trip
from trajectory.models.captions import CaptionEncoder
from trajectory.models.trip import TNF, TRIP, Config, LinearFusion, MotionEncoder
from trajectory.training import trip as training

SMALL = Config(width=8, time=16, context=128, frames=4, dim=8, side=4)
VARIANTS = {"tnf": SMALL, "linear": replace(SMALL, fusion="linear"), "plain": replace(SMALL, fusion="none"),
            "text": replace(SMALL, fusion="none", image=False)}  # fmt: skip


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(config, batch=2):
    x, image = noise(batch, 4, config.frames, 8, 8), noise(batch, 4, 8, 8, seed=1)
    return x, torch.tensor([0.3, 4.0])[:batch], noise(batch, 20, 128, seed=2), image if config.image else None


def test_a_network_at_the_start_of_its_training_is_the_linear_fusion_of_v_0_and_the_prior(monkeypatch):
    for name, config in VARIANTS.items():
        monkeypatch.setitem(training.VARIANTS, name, config)
    x, sigma, context, image = inputs(SMALL)
    with torch.no_grad():
        fused = {name: training.build_model(name, 0)(x, sigma, context, image if config.image else None)
                 for name, config in VARIANTS.items()}  # fmt: skip
    level = sigma.view(-1, 1, 1, 1, 1)
    prior = (x * (1 + level**2).sqrt() - image[:, :, None]) / level
    of_v_0 = x * level / (1 + level**2).sqrt()
    expected = torch.lerp(of_v_0, prior, torch.linspace(0.9, 0.1, 4)[:, None, None])
    assert torch.allclose(fused["linear"], expected, atol=1e-5)
    assert torch.allclose(fused["tnf"], fused["linear"], atol=1e-5)
    for name in ("plain", "text"):
        assert torch.allclose(fused[name], of_v_0, atol=1e-6)


def test_tnf_begins_as_the_linear_fusion_of_any_two_noises(monkeypatch):
    monkeypatch.setitem(training.VARIANTS, "tnf", SMALL)
    fusion = training.build_model("tnf", 0).fusion
    residual, prior, sigma = noise(2, 4, 6, 8, 12), noise(2, 4, 6, 8, 12, seed=1), torch.tensor([0.1, 9.0])
    assert torch.allclose(fusion(residual, prior, sigma), LinearFusion()(residual, prior, sigma), atol=1e-6)
    frames = LinearFusion()(torch.zeros(1, 1, 5, 1, 1), torch.ones(1, 1, 5, 1, 1), sigma).flatten().tolist()
    assert frames == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])


def test_the_prior_is_the_noise_that_leads_back_to_the_image():
    """eps_ref = eps + dz / sigma where the frame is image + dz: the identity of the paper."""
    config = VARIANTS["linear"]
    model = stirred(TRIP(config))
    image, change, eps, sigma = noise(1, 4, 8, 8), noise(1, 4, 4, 8, 8, seed=1), noise(1, 4, 4, 8, 8, seed=2), 0.7
    seen = []
    model.fusion.register_forward_hook(lambda module, given, out: seen.append(given[1]))
    x = (image[:, :, None] + change + sigma * eps) / math.sqrt(1 + sigma**2)
    model(x, torch.tensor([sigma]), noise(1, 20, 128), image)
    assert torch.allclose(seen[0], eps + change / sigma, atol=1e-5)


def test_patches_are_put_back_where_they_were():
    fusion, x = TNF(3, patch=2, dim=8), noise(2, 3, 5, 4, 6)
    assert torch.equal(fusion._frames(fusion._patches(x), x.shape), x)


def test_the_first_frames_of_a_longer_clip_take_what_they_take_in_it():
    """Of the picture, where none attends to another: a clip shorter than the table is its beginning."""
    fusion = stirred(TNF(4, dim=8, frames=4, side=4))
    for layer in (fusion.self_out, fusion.cross.out):
        torch.nn.init.zeros_(layer.weight)
    whole = noise(1, 4, 4, 8, 8), noise(1, 4, 4, 8, 8, seed=1)
    for frames in (1, 3):
        short = fusion(*(x[:, :, :frames] for x in whole), torch.ones(1))
        assert torch.allclose(short, fusion(*whole, torch.ones(1))[:, :, :frames], atol=1e-5)
    assert fusion.shares(7).flatten().tolist() == pytest.approx(LinearFusion().shares(7).flatten().tolist())


def test_tnf_works_on_longer_and_larger_clips_and_refuses_what_it_cannot_cut():
    fusion = stirred(TNF(4, patch=2, dim=8, frames=4, side=4))
    for shape in ((1, 4, 9, 12, 6), (1, 4, 1, 2, 2)):
        assert fusion(noise(*shape), noise(*shape, seed=1), torch.ones(1)).shape == shape
    with pytest.raises(ValueError, match="multiples of 2"):
        fusion(noise(1, 4, 2, 3, 4), noise(1, 4, 2, 3, 4), torch.ones(1))
    with pytest.raises(ValueError, match="4 channels"):
        fusion(noise(1, 3, 2, 4, 4), noise(1, 3, 2, 4, 4), torch.ones(1))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_clips_of_a_batch_do_not_mix_and_each_input_matters(config):
    model = stirred(TRIP(config))
    x, sigma, context, image = inputs(config)
    with torch.no_grad():
        both = model(x, sigma, context, image)
        alone = model(x[1:], sigma[1:], context[1:], image[1:] if config.image else None)
        assert both.shape == x.shape
        assert torch.allclose(both[1:], alone, atol=1e-4)
        for changed in [(x.roll(1, 2), sigma, context, image), (x, sigma + 1, context, image),
                        (x, sigma, context + 1, image)] + [(x, sigma, context, x[:, :, 1])] * config.image:  # fmt: skip
            assert not torch.allclose(model(*changed), both, atol=1e-3)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_file_says_its_sizes_and_variant(config):
    model = stirred(TRIP(config))
    again = trip.read(model.state_dict())
    assert again.config == (config if config.fusion == "tnf" else replace(config, dim=48, side=8))
    given = inputs(config)
    assert torch.equal(again(*given), model(*given))


def test_files_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="unet.conv_in.weight"):
        trip.read({"weight": torch.zeros(1)})
    weights = TRIP(SMALL).state_dict()
    del weights["unet.middle.conv1.bias"]
    with pytest.raises(ValueError, match="unet.middle.conv1.bias"):
        trip.read(weights)


def test_fewer_frames_than_trained_for_are_fine_and_half_precision_is():
    x, sigma, context, image = inputs(SMALL)
    model = stirred(TRIP(SMALL)).bfloat16()
    fused = model(x[:, :, :3], sigma, context, image)
    assert fused.shape == (2, 4, 3, 8, 8) and fused.dtype == torch.float32 and fused.isfinite().all()


def test_words_of_motion_join_the_caption_encoder_and_leave_its_own_captions_as_they_were():
    known = CaptionEncoder()
    words = torch.nn.Parameter(noise(len(trip.MOTION_WORDS), CaptionEncoder.WIDTH))
    grown = MotionEncoder.of(known.state_dict(), words.detach())
    still, moving = (torch.tensor([grown.tokenizer.encode(text)]) for text in ("a red boat", "a red boat sails left"))
    assert torch.equal(grown(still)[0], known(still)[0])
    assert torch.equal(grown.learning(moving, words), grown(moving)[0])
    grown.learning(moving, words).square().sum().backward()
    sails = trip.MOTION_WORDS.index("sails")
    assert words.grad[sails].any() and not words.grad[sails + 1].any()
    assert all(parameter.grad is None for parameter in grown.parameters())


def test_the_variants_begin_alike_and_every_weight_is_trained_once():
    models = {variant: training.build_model(variant, 0) for variant in training.VARIANTS}
    whole = models["tnf"].state_dict()
    for variant, model in models.items():
        optimiser = training.optimiser_for(model)
        trained = [*optimiser.hidden, *(p for group in optimiser.adam.param_groups for p in group["params"])]
        assert len(trained) == len({id(p) for p in trained}) == len(list(model.parameters()))
        shared = {key: value for key, value in model.state_dict().items() if "frame" not in key}
        assert all(torch.equal(value, whole[key]) for key, value in shared.items()), variant
        assert 2 * sum(p.numel() for p in model.parameters()) < 1.5e6  # bytes of the file
    assert not torch.equal(training.build_model("tnf", 1).words, whole["words"])


def test_a_batch_depends_on_seed_and_step_alone(monkeypatch):
    pool = {"clips": torch.arange(12.0).view(12, 1, 1, 1, 1).expand(-1, 4, 2, 4, 4)}
    monkeypatch.setattr(training, "load_pool", lambda stem, number, make: pool)
    first, again = (training.Batches(12, 0).draw(5, 6) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], training.Batches(12, 0).draw(6, 6)[1])
    x0, eps, times, tokens = first
    assert eps.shape == x0.shape and tokens.shape == (6, 20) and 0 <= int(times.min()) and int(times.max()) < 1000


def test_examples_are_latents_of_whole_clips():
    clips = training.make_examples(range(1), 0)["clips"]
    assert clips.shape == (1, 4, 8, 16, 16) and clips.dtype == torch.float16
    assert (clips[:, :, 0] != clips[:, :, -1]).any()


def test_tnf_learns_one_clip(monkeypatch):
    monkeypatch.setitem(training.VARIANTS, "tnf", replace(SMALL, dim=16))
    fusion = training.build_model("tnf", 0).fusion
    residual, prior, target = (noise(1, 4, 3, 8, 8, seed=k) for k in range(3))
    optimiser, losses = torch.optim.AdamW(fusion.parameters(), 1e-2), []
    for _ in range(200):
        loss = (fusion(residual, prior, torch.ones(1)) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
