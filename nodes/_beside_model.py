"""Predictions of a MODEL outside of a sampling, with the model loaded and conditioned as the host does it for one."""

import comfy.model_management
import comfy.samplers
import torch

from ..samplers.image_prior import from_clips, to_clips


class Work(comfy.samplers.Sampler):
    """A SAMPLER of one run that samples nothing: what `work` makes of the model is left in `made`."""

    def __init__(self, work, axis):
        self.work, self.axis, self.made = work, axis, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):  # fmt: skip
        def predict(clips, sigma):
            together = len(clips) if self.axis == "time" else 1  # on the batch axis a whole batch is one clip
            parts = []
            for clip, level in zip(clips.split(together), sigma.split(together), strict=True):
                comfy.model_management.throw_exception_if_processing_interrupted()
                with torch.inference_mode():
                    x = from_clips(clip, self.axis)
                    parts.append(to_clips(model_wrap(x, level.expand(len(x)), **extra_args), self.axis))
            return torch.cat(parts)

        self.made = self.work(predict, noise.device)
        return latent_image


def beside_model(model, positive, clips, axis, work):
    """What `work(predict, device)` returns, while the host has the MODEL loaded and conditioned by `positive`.

    predict: (x [B, N, C, h, w], sigma [B]) -> D, without gradient. clips: [B, N, C, h, w] of the largest B that predict
    is called with. Raises ValueError for a conditioning of no parts, of which hosts make no prediction at all.
    """
    if not positive:
        raise ValueError("positive is empty, so the model would predict nothing; connect CLIP Text Encode")
    run, guider = Work(work, axis), comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    empty = torch.zeros_like(from_clips(clips if axis == "time" else clips[:1], axis))
    highest = float(model.get_model_object("model_sampling").sigma_max)
    guider.sample(empty, empty, run, torch.tensor([highest, 0.0]), disable_pbar=True, seed=0)
    return run.made
