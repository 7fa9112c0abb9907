"""The core nodes that examples use: pictures in and out with their metadata, latents, sigmas, sampling from parts."""

import json

import comfy.samplers
import folder_paths
import host_models
import numpy as np
import pytest
import torch
from comfy_api.latest import io, ui
from PIL import Image

WORKFLOW = {"nodes": [{"id": 1, "title": "Caf\u00e9"}], "version": 0.4}


def uniform(*shape, seed=0):
    """Values in 0..1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def call(host, node_id, **inputs):
    """Outputs of a node called as the executor calls it, without one."""
    cls = host.node_table[node_id]
    if hasattr(cls, "GET_SCHEMA"):
        return cls.execute(**inputs).args
    return getattr(cls(), cls.FUNCTION)(**inputs)


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def picture(host):
    """8 by 6 pixels, half transparent on the left, in the input folder."""
    pixels = np.zeros((6, 8, 4), dtype=np.uint8)
    pixels[..., 0] = np.arange(8) * 30
    pixels[..., 3] = 255
    pixels[:, :4, 3] = 51
    Image.fromarray(pixels, "RGBA").save(host.input / "picture.png")
    return "picture.png"


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_saved_picture_opens_its_graph(host, picture):
    prompt = {"1": node("LoadImage", image=picture), "2": node("SaveImage", images=["1", 0], filename_prefix="sub/out")}
    result = host.run(prompt, extra_data={"extra_pnginfo": {"workflow": WORKFLOW, "more": [1]}})
    (saved,) = result.outputs["2"]["images"]
    assert saved == {"filename": "out_00001_.png", "subfolder": "sub", "type": "output"}
    with Image.open(host.output / "sub" / "out_00001_.png") as written:
        text = {key: json.loads(value) for key, value in written.text.items()}
        assert np.array_equal(np.array(written)[0, :, 0], np.arange(8) * 30)
    # newer hosts add what the run has cached ("is_changed") to the prompt's nodes
    assert {i: (n["class_type"], n["inputs"]) for i, n in text.pop("prompt").items()} == {
        i: (n["class_type"], n["inputs"]) for i, n in prompt.items()}
    assert text == {"workflow": WORKFLOW, "more": [1]}


def test_numbers_of_saved_pictures_go_on(host, picture):
    for expected in (["a_00001_.png"], ["a_00002_.png"]):
        host.forget()
        result = host.run({"1": node("LoadImage", image=picture),
                           "2": node("SaveImage", images=["1", 0], filename_prefix="a")})
        assert [entry["filename"] for entry in result.outputs["2"]["images"]] == expected


def test_previews_go_to_the_temp_folder(host, picture):
    result = host.run({"1": node("LoadImage", image=picture), "2": node("PreviewImage", images=["1", 0])})
    (saved,) = result.outputs["2"]["images"]
    assert saved["type"] == "temp" and (host.temp / saved["filename"]).is_file()


def test_an_animation_carries_its_graph_too(host):
    class Frames:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"
        CATEGORY = "tests"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def run(self):
            return (torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 8, 16, 3),)

    host.node_table["TestFrames"] = Frames
    prompt = {"1": node("TestFrames"), "2": node("SaveAnimatedWEBP", images=["1", 0], filename_prefix="film", fps=4.0,
                                                 lossless=True, quality=80, method="default")}
    result = host.run(prompt, extra_data={"extra_pnginfo": {"workflow": WORKFLOW}})
    del host.node_table["TestFrames"]
    assert list(result.outputs["2"]["animated"]) == [True]
    with Image.open(host.output / result.outputs["2"]["images"][0]["filename"]) as film:
        assert (film.n_frames, film.size) == (3, (16, 8))
        exif = film.getexif()
    assert json.loads(exif[0x0110].removeprefix("prompt:"))["2"]["inputs"]["fps"] == 4.0
    assert json.loads(exif[0x010F].removeprefix("workflow:")) == WORKFLOW


def test_pictures_of_v3_nodes_carry_their_graph(host):
    hidden = io.HiddenHolder(None, {"1": node("A")}, {"workflow": WORKFLOW}, None, None, None)

    class Running(io.ComfyNode):
        pass

    Running.hidden = hidden
    shown = ui.PreviewImage(uniform(2, 4, 4, 3), cls=Running).as_dict()
    assert len(shown["images"]) == 2 and shown["images"][0]["type"] == "temp"
    with Image.open(host.temp / shown["images"][1]["filename"]) as written:
        assert json.loads(written.text["prompt"]) == hidden.prompt and json.loads(written.text["workflow"]) == WORKFLOW
    saved = ui.ImageSaveHelper.get_save_images_ui(uniform(1, 4, 4, 3), "v3", Running).as_dict()
    assert (host.output / saved["images"][0]["filename"]).is_file()
    mask = ui.PreviewMask(torch.eye(4)[None]).as_dict()["images"][0]
    with Image.open(host.temp / mask["filename"]) as written:
        assert np.array_equal(np.array(written)[..., 1], np.eye(4) * 255)


def test_a_picture_and_its_transparency_are_loaded(host, picture):
    image, mask = call(host, "LoadImage", image=picture)
    assert image.shape == (1, 6, 8, 3) and torch.allclose(image[0, 0, :, 0], torch.arange(8) * 30 / 255)
    assert mask.shape == (1, 6, 8) and torch.allclose(mask[0, 0], torch.tensor([0.8] * 4 + [0.0] * 4))
    (red,) = call(host, "LoadImageMask", image=picture, channel="red")
    assert torch.equal(red[0], image[0, ..., 0])
    (alpha,) = call(host, "LoadImageMask", image=picture, channel="alpha")
    assert torch.equal(alpha, mask)


def test_the_frames_of_an_animation_are_a_batch(host):
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (0, 100, 200)]
    frames[0].save(host.input / "film.webp", save_all=True, append_images=frames[1:], lossless=True)
    image, mask = call(host, "LoadImage", image="film.webp")
    assert torch.allclose(image[:, 0, 0, 0] * 255, torch.tensor([0.0, 100.0, 200.0])) and mask.shape == (3, 64, 64)


def test_an_overwritten_picture_is_loaded_again(host, picture):
    def shown():
        result = host.run({"1": node("LoadImage", image=picture), "2": node("PreviewImage", images=["1", 0])})
        with Image.open(host.temp / result.outputs["2"]["images"][0]["filename"]) as written:
            return written.size

    assert shown() == (8, 6)
    Image.new("RGB", (3, 2)).save(host.input / picture)
    assert shown() == (3, 2)


def test_a_file_that_is_no_picture_is_named(host):
    (host.input / "text.png").write_text("no picture", encoding="utf-8")
    prompt = {"1": node("LoadImage", image="text.png"), "2": node("PreviewImage", images=["1", 0])}
    failure = host.run(prompt).failure
    assert failure["node_id"] == "1" and "text.png" in failure["exception_message"]
    error = host.run({**prompt, "1": node("LoadImage", image="none.png")}).node_errors["1"]["errors"][0]
    assert error["extra_info"]["input_name"] == "image" and "none.png" in error["details"]


@pytest.mark.parametrize(("width", "height", "size"),
                         [(16, 3, (3, 16)), (16, 0, (12, 16)), (0, 3, (3, 4)), (0, 0, (6, 8))])
def test_image_scale(host, width, height, size):
    image = uniform(2, 6, 8, 3)
    (scaled,) = call(host, "ImageScale", image=image, upscale_method="bilinear", width=width, height=height,
                     crop="disabled")
    assert scaled.shape == (2, *size, 3)


# --- latents and sigmas ----------------------------------------------------------------------------------------------


def test_empty_latents(host):
    assert call(host, "EmptyLatentImage", width=64, height=32, batch_size=2)[0]["samples"].shape == (2, 4, 4, 8)
    assert call(host, "EmptySD3LatentImage", width=64, height=32, batch_size=2)[0]["samples"].shape == (2, 16, 4, 8)


@pytest.mark.parametrize("node_id", ["EmptyLatentImage", "EmptySD3LatentImage"])
def test_sizes_off_the_latent_grid_are_refused(host, node_id):
    if host.name != "embedded":
        pytest.skip("real hosts cut the size down to the grid without a word")
    with pytest.raises(ValueError, match="height is 30.*Use 24 or 32"):
        call(host, node_id, width=64, height=30)


def test_batches_of_latents(host):
    mask = uniform(1, 4, 4)
    latent = {"samples": uniform(2, 4, 4, 4, seed=1), "batch_index": [3, 5]}
    (repeated,) = call(host, "RepeatLatentBatch", samples=latent, amount=3)
    assert torch.equal(repeated["samples"][2:4], latent["samples"])
    assert repeated["batch_index"] == [3, 5, 6, 8, 9, 11]
    (masked,) = call(host, "SetLatentNoiseMask", samples=repeated, mask=mask)
    assert masked["noise_mask"].shape == (1, 1, 4, 4) and "noise_mask" not in repeated
    (chosen,) = call(host, "LatentFromBatch", samples=masked, batch_index=4, length=9)
    assert torch.equal(chosen["samples"], repeated["samples"][4:]) and chosen["batch_index"] == [9, 11]
    assert torch.equal(chosen["noise_mask"], masked["noise_mask"])
    (first,) = call(host, "LatentFromBatch", samples={"samples": latent["samples"]}, batch_index=1, length=1)
    assert first["batch_index"] == [1]


def test_latent_blend(host):
    one, zero = {"samples": torch.ones(1, 4, 4, 4)}, {"samples": torch.zeros(1, 4, 8, 8)}
    (blended,) = call(host, "LatentBlend", samples1=one, samples2=zero, blend_factor=0.25)
    assert torch.allclose(blended["samples"], torch.full((1, 4, 4, 4), 0.25))


def test_conditioning(host):
    a, b = [[torch.ones(1, 2, 3), {"pooled_output": torch.ones(1, 4), "note": 1}]], [[torch.ones(1, 1, 3), {}]]
    (combined,) = call(host, "ConditioningCombine", conditioning_1=a, conditioning_2=b)
    (zeroed,) = call(host, "ConditioningZeroOut", conditioning=combined)
    assert [entry[0].abs().sum() for entry in zeroed] == [0, 0] and zeroed[0][1]["note"] == 1
    assert zeroed[0][1]["pooled_output"].sum() == 0 and a[0][1]["pooled_output"].sum() == 4


def test_sigmas(host):
    model = host_models.model("flow")
    (sigmas,) = call(host, "BasicScheduler", model=model, scheduler="simple", steps=6, denoise=1.0)
    assert len(sigmas) == 7 and sigmas[-1] == 0 and sigmas.device.type == "cpu"
    (half,) = call(host, "BasicScheduler", model=model, scheduler="simple", steps=6, denoise=0.5)
    assert len(half) == 7 and half[0] < sigmas[0]
    assert len(call(host, "BasicScheduler", model=model, scheduler="simple", steps=6, denoise=0.0)[0]) == 0
    high, low = call(host, "SplitSigmas", sigmas=sigmas, step=2)
    assert torch.equal(high, sigmas[:3]) and torch.equal(low, sigmas[2:])
    (flipped,) = call(host, "FlipSigmas", sigmas=sigmas)
    assert flipped[0] == pytest.approx(1e-4) and torch.equal(flipped[1:], sigmas.flip(0)[1:]) and sigmas[-1] == 0
    (shifted,) = call(host, "ModelSamplingSD3", model=model, shift=7.0)
    (later,) = call(host, "BasicScheduler", model=shifted, scheduler="simple", steps=6, denoise=1.0)
    assert (later[1:-1] > sigmas[1:-1]).all()


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["eps", "flow"])
def model(request):
    return host_models.model(request.param)


def condition(mean):
    return [[torch.full((1, 2, 8), mean), {}]]


def test_a_sampler_from_parts_equals_the_one_in_one_piece(host, model):
    latent = {"samples": uniform(2, 4, 8, 8, seed=1), "batch_index": [1, 4]}
    positive, negative = condition(0.8), condition(-0.2)
    (whole,) = call(host, "KSampler", model=model, seed=7, steps=5, cfg=2.0, sampler_name="euler", scheduler="simple",
                    positive=positive, negative=negative, latent_image=latent, denoise=1.0)
    (sigmas,) = call(host, "BasicScheduler", model=model, scheduler="simple", steps=5, denoise=1.0)
    (sampler,) = call(host, "KSamplerSelect", sampler_name="euler")
    (noise,) = call(host, "RandomNoise", noise_seed=7)
    (guider,) = call(host, "CFGGuider", model=model, positive=positive, negative=negative, cfg=2.0)
    parts, denoised = call(host, "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                           latent_image=latent)
    assert torch.allclose(parts["samples"], whole["samples"], atol=1e-6) and parts["batch_index"] == [1, 4]
    assert torch.allclose(denoised["samples"], parts["samples"], atol=1e-5)  # the last step ends on its estimate
    custom, _ = call(host, "SamplerCustom", model=model, add_noise=True, noise_seed=7, cfg=2.0, positive=positive,
                     negative=negative, sampler=sampler, sigmas=sigmas, latent_image=latent)
    assert torch.allclose(custom["samples"], whole["samples"], atol=1e-6)


def test_two_stages_equal_one(host, model):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    common = {"model": model, "noise_seed": 3, "steps": 6, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
              "positive": condition(0.5), "negative": condition(0.0)}
    (whole,) = call(host, "KSamplerAdvanced", **common, add_noise="enable", latent_image=latent, start_at_step=0,
                    end_at_step=10000, return_with_leftover_noise="disable")
    (first,) = call(host, "KSamplerAdvanced", **common, add_noise="enable", latent_image=latent, start_at_step=0,
                    end_at_step=3, return_with_leftover_noise="enable")
    (second,) = call(host, "KSamplerAdvanced", **common, add_noise="disable", latent_image=first, start_at_step=3,
                     end_at_step=10000, return_with_leftover_noise="disable")
    assert torch.allclose(second["samples"], whole["samples"], atol=1e-5)


def test_a_basic_guider_ignores_guidance_and_disabled_noise_is_none(host, model):
    (sigmas,) = call(host, "BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)
    (guider,) = call(host, "BasicGuider", model=model, conditioning=condition(0.5))
    (noise,) = call(host, "DisableNoise")
    (sampler,) = call(host, "KSamplerSelect", sampler_name="heun")
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    assert noise.generate_noise(latent).abs().sum() == 0 and isinstance(guider, comfy.samplers.CFGGuider)
    out, _ = call(host, "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                  latent_image=latent)
    assert out["samples"].isfinite().all() and latent["samples"].sum() == 0
    none, _ = call(host, "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas[:0],
                   latent_image=latent)
    assert torch.equal(none["samples"], latent["samples"])


class TestModel:
    """Gives `model`, which the test sets."""

    RETURN_TYPES = ("MODEL", "CONDITIONING")
    FUNCTION = "run"
    CATEGORY = "tests"
    __test__ = False

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return self.model, condition(0.0)


def test_an_interrupted_sampler_stops(host, model):
    """The progress bar notices it when it next calls its hook (newer hosts leave some steps out)."""
    host.forget()
    TestModel.model = model
    host.node_table["TestModel"] = TestModel
    prompt = {
        "1": node("TestModel"), "2": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "3": node("KSampler", model=["1", 0], seed=1, steps=8, cfg=1.0, sampler_name="euler", scheduler="simple",
                  positive=["1", 1], negative=["1", 1], latent_image=["2", 0], denoise=1.0),
        "4": node("VAEDecode", samples=["3", 0], vae=["5", 0]), "5": node("VAELoader", vae_name="pixel_space"),
        "6": node("PreviewImage", images=["4", 0])}
    steps = []

    def stop(event, data):
        if event == "progress":
            steps.append(data["value"])
            if data["value"] == 1:
                host.interrupt()

    result = host.run(prompt, on_event=stop)
    del host.node_table["TestModel"]
    assert result.interrupted and steps and max(steps) < 8
    (data,) = [data for event, data in result.messages if event == "execution_interrupted"]
    assert data["node_type"] == "KSampler" and "2" in data["executed"]


def test_folders_are_those_of_the_fixture(host):
    assert folder_paths.get_output_directory() == str(host.output)
