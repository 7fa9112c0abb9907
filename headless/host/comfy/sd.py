"""Loading of diffusion models, and the CLIP and VAE objects."""

import logging
from collections.abc import Mapping

import torch

import comfy._mmdit
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.taesd.taesd
import comfy.utils

_CHUNK = 16  # pictures per pass of an autoencoder, to bound the memory
_ELSEWHERE = "run the graph with --comfyui PATH or --host URL to use it on a real ComfyUI."


# --- diffusion models ------------------------------------------------------------------------------------------------


def load_diffusion_model_state_dict(sd, model_options: Mapping = {}):
    """ModelPatcher of an SD3-class model in the host's own or diffusers' format, or None for any other state dict.

    `model_options["dtype"]` is the dtype to store the weights in; by default what the device computes well.
    """
    weights = comfy._mmdit.convert_diffusers(sd)
    unet_config = comfy._mmdit.unet_config(weights)
    if unet_config is None:
        return None
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    config = comfy.supported_models.SD3(unet_config)
    supported = config.supported_inference_dtypes
    dtype = model_options.get("dtype") or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights))
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, load_device, supported))
    model = config.get_model(weights, "")
    model.load_model_weights({key: weight.to(offload_device, dtype) for key, weight in weights.items()}, "")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=load_device, offload_device=offload_device)


def load_diffusion_model(unet_path, model_options: Mapping = {}):
    """Like `load_diffusion_model_state_dict` for a file. Raises RuntimeError when the model is of another class."""
    model = load_diffusion_model_state_dict(comfy.utils.load_torch_file(unet_path), model_options=model_options)
    if model is None:
        raise RuntimeError(
            f"ERROR: Could not detect model type of: {unet_path}\nThe embedded host runs the pack's miniatures "
            f"(SD3-class models); {_ELSEWHERE}")
    return model


# --- text encoders ---------------------------------------------------------------------------------------------------


class CLIP:
    """A tokenizer and a text encoder, given by a target with `tokenizer`, `clip` (their classes) and `params`."""

    def __init__(self, target=None, embedding_directory=None, no_init=False, tokenizer_data: Mapping = {},
                 parameters=0, *, model_options: Mapping = {}):
        if no_init:
            return
        load_device = model_options.get("load_device", comfy.model_management.text_encoder_device())
        offload_device = model_options.get("offload_device", comfy.model_management.text_encoder_offload_device())
        dtype = model_options.get("dtype") or comfy.model_management.text_encoder_dtype(load_device)
        device = model_options.get("initial_device") or comfy.model_management.text_encoder_initial_device(
            load_device, offload_device, parameters * comfy.model_management.dtype_size(dtype))
        self.cond_stage_model = target.clip(
            **{**target.params, "dtype": dtype, "device": device, "model_options": model_options})
        self.tokenizer = target.tokenizer(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.cond_stage_model, load_device=load_device, offload_device=offload_device)
        self.patcher.is_clip = True
        self.layer_idx = None
        self.tokenizer_options = {}
        self.use_clip_schedule = False
        self.apply_hooks_to_conds = None

    def clone(self):
        n = CLIP(no_init=True)
        n.__dict__.update(self.__dict__)
        n.patcher = self.patcher.clone()
        n.tokenizer_options = dict(self.tokenizer_options)
        return n

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        """Weight patches of the text encoder, as the ModelPatcher takes them."""
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def set_tokenizer_option(self, option_name, value):
        """Pass an option to the tokenizer from now on."""
        self.tokenizer_options[option_name] = value

    def clip_layer(self, layer_idx):
        """Encode with the output of this layer (None: the encoder's own choice)."""
        self.layer_idx = layer_idx

    def tokenize(self, text, return_word_ids=False, **kwargs):
        """{encoder name: [[(token, weight), ...], ...]}."""
        options = {**self.tokenizer_options, **kwargs.pop("tokenizer_options", {})}
        if options:
            kwargs["tokenizer_options"] = options
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        """Text tokens [1, T, C]; also the pooled vector [1, P], or all that the encoder gives, as a dict."""
        encoder = self.cond_stage_model
        encoder.reset_clip_options()
        if self.layer_idx is not None:
            encoder.set_clip_options({"layer": self.layer_idx})
        if return_pooled == "unprojected":
            encoder.set_clip_options({"projected_pooled": False})
        self.load_model()
        cond, pooled, *extra = encoder.encode_token_weights(tokens)
        if return_dict:
            return {"cond": cond, "pooled_output": pooled, **(extra[0] if extra else {})}
        return (cond, pooled) if return_pooled else cond

    def encode_from_tokens_scheduled(self, tokens, unprojected=False, add_dict: Mapping = {}, show_pbar=True):
        """CONDITIONING [[cond, {"pooled_output": ..., **add_dict}]]."""
        return_pooled = "unprojected" if unprojected else True
        encoded = self.encode_from_tokens(tokens, return_pooled=return_pooled, return_dict=True)
        return [[encoded.pop("cond"), {**encoded, **add_dict}]]

    def encode(self, text):
        return self.encode_from_tokens(self.tokenize(text))

    def load_sd(self, sd, full_model=False):
        """Load weights; returns (missing, unexpected) keys."""
        encoder = self.cond_stage_model
        return encoder.load_state_dict(sd, strict=False) if full_model else encoder.load_sd(sd)

    def get_sd(self):
        return {**self.cond_stage_model.state_dict(), **self.tokenizer.state_dict()}

    def load_model(self):
        comfy.model_management.load_model_gpu(self.patcher)
        return self.patcher

    def get_key_patches(self):
        """Weights and patches of the text encoder, as model merging wants them."""
        return self.patcher.get_key_patches()


# --- autoencoders ----------------------------------------------------------------------------------------------------


class _PixelSpace(torch.nn.Module):
    """The identity, for models that sample pixels."""

    def __init__(self):
        super().__init__()
        self.pixel_space_vae = torch.nn.Parameter(torch.tensor(1.0))

    def encode(self, pixels):
        return pixels

    def decode(self, samples):
        return samples


class VAE:
    """An autoencoder between IMAGE [B, H, W, 3] in 0..1 and latents [B, C, H/8, W/8]."""

    def __init__(self, sd=None, device=None, config=None, dtype=None, metadata=None):
        self.downscale_ratio = self.upscale_ratio = 8
        self.latent_channels = 4
        self.latent_dim = 2
        self.output_channels = 3
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.crop_input = True
        self.process_input = _to_signed
        self.process_output = _to_unsigned
        self.memory_used_encode = self.memory_used_decode = _no_memory
        self.first_stage_model = self._make_network(sd or {})
        if self.first_stage_model is None:
            return
        self.device = comfy.model_management.vae_device() if device is None else device
        self.vae_dtype = dtype or comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = comfy.model_management.intermediate_device()
        missing, unknown = self.first_stage_model.load_state_dict(sd, strict=False, assign=True)
        if missing or unknown:
            logging.warning("VAE weights missing: %s; not understood: %s", missing, unknown)
        self.first_stage_model.to(self.vae_dtype).eval()
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device())

    def _make_network(self, sd):
        """The network for the state dict, and the attributes that go with it; None and a warning if there is none."""
        if "taesd_decoder.1.weight" in sd:
            self.latent_channels = sd["taesd_decoder.1.weight"].shape[1]
            with torch.device("meta"):  # draws no weights
                network = comfy.taesd.taesd.TAESD(latent_channels=self.latent_channels)
            network.vae_scale = torch.nn.Parameter(torch.tensor(1.0))
            network.vae_shift = torch.nn.Parameter(torch.tensor(0.0))
            return network
        if "pixel_space_vae" in sd:
            self.downscale_ratio = self.upscale_ratio = 1
            self.latent_channels = 3
            return _PixelSpace()
        logging.warning("WARNING: No VAE weights detected, VAE not initalized.")
        return None

    def throw_exception_if_invalid(self):
        if self.first_stage_model is None:
            raise RuntimeError(
                f"ERROR: VAE is invalid: None\n\nThe embedded host reads autoencoders of TAESD's layout; {_ELSEWHERE}")

    def vae_encode_crop_pixels(self, pixels):
        """Pictures cut at their edges to a multiple of the latent grid, and to the colours without alpha."""
        if self.crop_input:
            for axis in range(1, pixels.ndim - 1):
                excess = pixels.shape[axis] % self.downscale_ratio
                if excess:
                    pixels = pixels.narrow(axis, excess // 2, pixels.shape[axis] - excess)
        return pixels[..., :self.output_channels]

    def _load(self):
        self.throw_exception_if_invalid()
        comfy.model_management.load_models_gpu([self.patcher])

    @torch.no_grad()
    def _decode(self, samples):
        return self.first_stage_model.decode(samples.to(self.device, self.vae_dtype)).float()

    @torch.no_grad()
    def _encode(self, pixels):
        return self.first_stage_model.encode(self.process_input(pixels).to(self.device, self.vae_dtype)).float()

    def decode(self, samples_in, vae_options: Mapping = {}):
        self._load()
        pictures = [self.process_output(self._decode(part).to(self.output_device)) for part in samples_in.split(_CHUNK)]
        return torch.cat(pictures).movedim(1, -1)

    def encode(self, pixel_samples):
        self._load()
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        return torch.cat([self._encode(part).to(self.output_device) for part in pixels.split(_CHUNK)])

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """`decode` in tiles of tile_x x tile_y latent pixels, averaged over three tile shapes."""
        self._load()
        tiles = {"tile_x": tile_x, "tile_y": tile_y, "overlap": overlap}
        return self.decode_tiled_(samples, **{k: v for k, v in tiles.items() if v is not None}).movedim(1, -1)

    def decode_tiled_(self, samples, tile_x=64, tile_y=64, overlap=16):
        return self.process_output(
            self._tiled(samples, self._decode, tile_x, tile_y, overlap, self.upscale_ratio, self.output_channels))

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """`encode` in tiles of tile_x x tile_y pixels, averaged over three tile shapes."""
        self._load()
        tiles = {"tile_x": tile_x, "tile_y": tile_y, "overlap": overlap}
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        return self.encode_tiled_(pixels, **{k: v for k, v in tiles.items() if v is not None})

    def encode_tiled_(self, pixel_samples, tile_x=512, tile_y=512, overlap=64):
        return self._tiled(
            pixel_samples, self._encode, tile_x, tile_y, overlap, 1 / self.downscale_ratio, self.latent_channels)

    def _tiled(self, samples, function, tile_x, tile_y, overlap, scale, channels):
        shapes = [(tile_x, tile_y), (tile_x * 2, tile_y // 2), (tile_x // 2, tile_y * 2)]
        height, width = samples.shape[2:]
        tiles = sum(comfy.utils.get_tiled_scale_steps(width, height, *shape, overlap) for shape in shapes)
        bar = comfy.utils.ProgressBar(samples.shape[0] * tiles)
        parts = [comfy.utils.tiled_scale(samples, function, *shape, overlap, scale, channels, self.output_device, bar)
                 for shape in shapes]
        return sum(parts) / 3.0

    def get_sd(self):
        return self.first_stage_model.state_dict()

    def spacial_compression_decode(self):
        return self.upscale_ratio

    def spacial_compression_encode(self):
        return self.downscale_ratio

    def temporal_compression_decode(self):
        """None: this is no video autoencoder."""


def _to_signed(image):
    return image * 2.0 - 1.0


def _to_unsigned(image):
    return torch.clamp((image + 1.0) / 2.0, min=0.0, max=1.0)


def _no_memory(shape, dtype):
    """Bytes to have free before a run: there is no memory management here."""
    return 0
