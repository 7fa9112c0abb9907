"""Noise and the two entry points that sampler nodes call."""

import torch

import comfy.model_management
import comfy.nested_tensor
import comfy.samplers
import comfy.utils


def prepare_noise(latent_image, seed, noise_inds=None):
    """CPU noise like the latent. With `noise_inds` item k gets the draw number noise_inds[k] of the stream."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    if latent_image.is_nested:
        return comfy.nested_tensor.NestedTensor(_noise(part, generator, noise_inds) for part in latent_image.unbind())
    return _noise(latent_image, generator, noise_inds)


def _noise(latent_image, generator, noise_inds):
    def draw(batch):
        shape = [batch, *latent_image.shape[1:]]
        return torch.randn(shape, dtype=torch.float32, generator=generator, device="cpu").to(latent_image.dtype)

    if noise_inds is None:
        return draw(latent_image.shape[0])
    draws = [draw(1) for _ in range(int(max(noise_inds)) + 1)]
    return torch.cat([draws[int(index)] for index in noise_inds])


def fix_empty_latent_channels(model, latent_image):
    """An all-zero latent with the channels of the model's latent format; any other latent as it is."""
    if latent_image.is_nested:
        return latent_image
    expected = model.get_model_object("latent_format")
    if not torch.any(latent_image):
        latent_image = comfy.utils.repeat_to_batch_size(latent_image, expected.latent_channels, dim=1)
    lacks_time = latent_image.ndim == 4 and expected.latent_dimensions == 3
    return latent_image[:, :, None] if lacks_time else latent_image


def sample(model, noise, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=1.0,
           disable_noise=False, start_step=None, last_step=None, force_full_denoise=False, noise_mask=None, sigmas=None,
           callback=None, disable_pbar=False, seed=None):
    """A KSampler node's run: steps, scheduler and denoise make the sigmas."""
    sampler = comfy.samplers.KSampler(
        model, steps=steps, device=model.load_device, sampler=sampler_name, scheduler=scheduler, denoise=denoise,
        model_options=model.model_options)
    samples = sampler.sample(
        noise, positive, negative, cfg=cfg, latent_image=latent_image, start_step=start_step, last_step=last_step,
        force_full_denoise=force_full_denoise, denoise_mask=noise_mask, sigmas=sigmas, callback=callback,
        disable_pbar=disable_pbar, seed=seed)
    return samples.to(comfy.model_management.intermediate_device())


def sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, latent_image, noise_mask=None, callback=None,
                  disable_pbar=False, seed=None):
    """A run with a SAMPLER object over given sigmas."""
    samples = comfy.samplers.sample(
        model, noise, positive, negative, cfg, model.load_device, sampler, sigmas, model_options=model.model_options,
        latent_image=latent_image, denoise_mask=noise_mask, callback=callback, disable_pbar=disable_pbar, seed=seed)
    return samples.to(comfy.model_management.intermediate_device())
