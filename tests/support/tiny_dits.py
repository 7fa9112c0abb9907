"""Small random networks of the kinds of DiT that a real host has, behind the host's own model classes."""

import inspect

import torch
import unets

FLUX = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "context_in_dim": 24, "hidden_size": 32, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "qkv_bias": True,
    "vec_in_dim": 8, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = {"axes_dim": [4, 4, 4, 4], "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True,
         "ops_bias": False, "qkv_bias": False, "vec_in_dim": None, "guidance_embed": False}  # fmt: skip
CHROMA = {"in_channels": 16, "out_channels": 16, "in_dim": 64, "out_dim": 32, "hidden_dim": 32, "n_layers": 2}
HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "patch_size": [1, 2, 2], "axes_dim": [4, 6, 6], "theta": 256, "byt5": False,
    "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
COSMOS = {
    "max_img_h": 16, "max_img_w": 16, "max_frames": 8, "in_channels": 4, "out_channels": 4, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 24,
    "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 8, "concat_padding_mask": True,
}  # fmt: skip
GENERAL = {"block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
           "extra_per_block_abs_pos_emb_type": "learnable"}  # fmt: skip
SD3 = {
    "input_size": None, "in_channels": 4, "out_channels": 4, "patch_size": 2, "depth": 2, "num_patches": 64,
    "pos_embed_max_size": 8, "adm_in_channels": 8, "context_size": 24, "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
}  # fmt: skip

# name: (model class, options of the network, shape of a latent, width of a text)
DITS = {
    "Wan": ("WAN21", {
        "model_type": "t2v", "in_dim": 4, "out_dim": 4, "dim": 48, "ffn_dim": 32, "freq_dim": 16, "text_dim": 24,
        "num_heads": 2, "num_layers": 2}, (4, 2, 6, 4), 24),
    "LTX": ("LTXV", {
        "in_channels": 4, "cross_attention_dim": 36, "attention_head_dim": 18, "num_attention_heads": 2,
        "caption_channels": 24, "num_layers": 2}, (4, 2, 6, 4), 24),
    "Cosmos": ("CosmosVideo", {**COSMOS, **GENERAL}, (4, 2, 6, 4), 24),
    "Cosmos Predict2": ("CosmosPredict2", {**COSMOS, "mlp_ratio": 2.0}, (4, 2, 6, 4), 24),
    "Stable Audio": ("StableAudio1", {
        "io_channels": 4, "embed_dim": 128, "cond_token_dim": 768, "global_cond_dim": 1536, "depth": 2,
        "num_heads": 2, "project_cond_tokens": True}, (4, 20), 768),
    "PixArt": ("PixArt", {
        "in_channels": 4, "hidden_size": 36, "depth": 2, "num_heads": 2, "caption_channels": 24,
        "model_max_length": 9, "micro_condition": False, "pe_interpolation": 1}, (4, 40, 34), 24),
    "SD3": ("SD3", SD3, (4, 6, 4), 24),
    "SD3.5 medium": ("SD3", {**SD3, "x_block_self_attn_layers": [0]}, (4, 6, 4), 24),
    "Flux": ("Flux", FLUX, (4, 7, 5), 24),
    "Flux 2": ("Flux2", {**FLUX, **FLUX2, "patch_size": 1}, (4, 4, 3), 24),
    "Chroma": ("Chroma", {**FLUX, **CHROMA}, (4, 6, 4), 24),
    "Qwen-Image": ("QwenImage", {
        "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)}, (4, 1, 6, 4), 24),
    "HunyuanVideo": ("HunyuanVideo", {**FLUX, **HUNYUAN}, (4, 2, 6, 4), 24),
    "AuraFlow": ("AuraFlow", {
        "in_channels": 4, "out_channels": 4, "dim": 32, "n_layers": 3, "n_double_layers": 1, "n_heads": 2,
        "global_conddim": 32, "cond_seq_dim": 24, "max_seq": 64}, (4, 6, 4), 24),
}  # fmt: skip


def _known(function, options):
    parameters = inspect.signature(function).parameters
    return options if "kwargs" in parameters else {k: v for k, v in options.items() if k in parameters}


def _network_options(name, cls, options):
    """The options that this version of the host's network knows."""
    import dataclasses
    import importlib

    if name in ("Flux", "Flux 2", "Chroma", "HunyuanVideo"):
        module = importlib.import_module(cls.__module__)
        params = next(value for key, value in vars(module).items() if key == f"{cls.__name__}Params")
        return {k: v for k, v in options.items() if k in {field.name for field in dataclasses.fields(params)}}
    return _known(cls.__init__, options)


def network_class(name):
    import comfy.ldm.audio.dit
    import comfy.ldm.aura.mmdit
    import comfy.ldm.chroma.model
    import comfy.ldm.cosmos.model
    import comfy.ldm.cosmos.predict2
    import comfy.ldm.flux.model
    import comfy.ldm.hunyuan_video.model
    import comfy.ldm.lightricks.model
    import comfy.ldm.modules.diffusionmodules.mmdit
    import comfy.ldm.pixart.pixartms
    import comfy.ldm.qwen_image.model
    import comfy.ldm.wan.model

    ldm = comfy.ldm
    return {
        "Wan": ldm.wan.model.WanModel, "LTX": ldm.lightricks.model.LTXVModel, "Cosmos": ldm.cosmos.model.GeneralDIT,
        "Cosmos Predict2": ldm.cosmos.predict2.MiniTrainDIT, "PixArt": ldm.pixart.pixartms.PixArtMS,
        "Stable Audio": ldm.audio.dit.AudioDiffusionTransformer, "Flux": ldm.flux.model.Flux,
        "Flux 2": ldm.flux.model.Flux, "Chroma": ldm.chroma.model.Chroma, "AuraFlow": ldm.aura.mmdit.MMDiT,
        "SD3": ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper,
        "SD3.5 medium": ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper,
        "Qwen-Image": ldm.qwen_image.model.QwenImageTransformer2DModel,
        "HunyuanVideo": ldm.hunyuan_video.model.HunyuanVideo,
    }[name]  # fmt: skip


def dit(name):
    """ModelPatcher of a random network of that kind in float32. Needs a real host; `None` if this version lacks it."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    kind, options, shape, _ = DITS[name]
    model_class = getattr(comfy.model_base, kind, None)
    if model_class is None:
        return None

    class Format(comfy.latent_formats.LatentFormat):
        latent_channels = shape[0]
        latent_dimensions = len(shape) - 1

    class Config(comfy.supported_models_base.BASE):
        unet_extra_config = {}
        latent_format = Format
        memory_usage_factor = 0.01
        sampling_settings = {"shift": 3.0, "sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 0.5}

    config = Config(_network_options(name, network_class(name), options))
    config.latent_format = Format()
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    arguments = {}
    if name == "Stable Audio":
        from comfy.ldm.audio.embedders import NumberConditioner

        weights = unets.random_weights(NumberConditioner(768, min_val=0, max_val=512))
        arguments = {"seconds_start_embedder_weights": weights, "seconds_total_embedder_weights": weights}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = model_class(config, device=device, **arguments)
    network = base.diffusion_model
    network.load_state_dict(unets.random_weights(network))
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=device)


def conditioning(name, seed, tokens, items=1):
    """CONDITIONING of a random text for that kind of network."""
    text = torch.randn(items, tokens, DITS[name][3], generator=torch.Generator().manual_seed(seed))
    options = {"pooled_output": torch.full((items, 8), 0.3)}
    if name == "LTX":  # cannot do without; the last token is padding
        options["attention_mask"] = (torch.arange(tokens) < tokens - 1).long().expand(items, -1)
    return [[text, options]]
