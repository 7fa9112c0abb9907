"""Devices, loading and interruption. There is no memory management: a loaded model stays where it is."""

import threading
import weakref
from collections.abc import Sequence

import torch

from comfy.cli_args import args

OOM_EXCEPTION = torch.cuda.OutOfMemoryError
_loaded = weakref.WeakSet()  # the patchers whose patches are in their models, one per model


class InterruptProcessingException(Exception):
    """The user asked to stop the run."""


_interrupt = threading.Event()


def interrupt_current_processing(value=True):
    if value:
        _interrupt.set()
    else:
        _interrupt.clear()


def processing_interrupted():
    return _interrupt.is_set()


def throw_exception_if_processing_interrupted():
    """Raise (once per request) when the user asked to stop."""
    if _interrupt.is_set():
        _interrupt.clear()
        raise InterruptProcessingException()


def get_torch_device():
    if args.cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device(torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _cpu():
    return torch.device("cpu")


def intermediate_device():
    """Where latents and pictures wait between two nodes."""
    return get_torch_device() if args.gpu_only else _cpu()


def intermediate_dtype():
    return torch.float32


def unet_offload_device():
    return intermediate_device()


def text_encoder_device():
    return get_torch_device()


def text_encoder_offload_device():
    return intermediate_device()


def text_encoder_initial_device(load_device, offload_device, model_size=0):
    return offload_device


def text_encoder_dtype(device=None):
    """float16, in which the host keeps text encoder weights on every device (they are computed in float32)."""
    return torch.float16


def vae_device():
    return get_torch_device()


def vae_offload_device():
    return intermediate_device()


def vae_dtype(device=None, allowed_dtypes: Sequence = []):
    """First allowed dtype that the device computes well; float32 on a CPU."""
    for dtype in allowed_dtypes:
        if dtype == torch.float16 and should_use_fp16(device) or dtype == torch.bfloat16 and should_use_bf16(device):
            return dtype
    return torch.float32


def should_use_fp16(device=None, model_params=0, prioritize_performance=True, manual_cast=False):
    return (get_torch_device() if device is None else device).type in ("cuda", "mps")


def should_use_bf16(device=None, model_params=0, prioritize_performance=True, manual_cast=False):
    device = get_torch_device() if device is None else device
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def unet_dtype(device=None, model_params=0,
               supported_dtypes: Sequence = [torch.float16, torch.bfloat16, torch.float32], weight_dtype=None):
    """dtype for diffusion weights: the first supported one that the device computes well, else float32."""
    for dtype in supported_dtypes:
        if dtype == torch.float16 and should_use_fp16(device) or dtype == torch.bfloat16 and should_use_bf16(device):
            return dtype
    return torch.float32


def unet_manual_cast(weight_dtype, inference_device,
                     supported_dtypes: Sequence = [torch.float16, torch.bfloat16, torch.float32]):
    """dtype to compute in when it differs from that of the weights, or None."""
    if weight_dtype in (torch.float32, torch.float64):
        return None
    if weight_dtype == torch.float16 and should_use_fp16(inference_device):
        return None
    if weight_dtype == torch.bfloat16 and should_use_bf16(inference_device):
        return None
    return unet_dtype(inference_device, supported_dtypes=supported_dtypes)


def dtype_size(dtype):
    return dtype.itemsize


def supports_cast(device, dtype):
    return device.type != "mps" or dtype in (torch.float32, torch.float16)


def get_autocast_device(dev):
    return getattr(dev, "type", "cuda")


def is_device_type(device, type):
    return getattr(device, "type", None) == type


def is_device_cuda(device):
    return is_device_type(device, "cuda")


def is_device_mps(device):
    return is_device_type(device, "mps")


def is_device_cpu(device):
    return is_device_type(device, "cpu")


def cpu_mode():
    return is_device_cpu(get_torch_device())


def xformers_enabled():
    return False


def pytorch_attention_flash_attention():
    return True


def cast_to(weight, dtype=None, device=None, non_blocking=False, copy=False):
    return weight.to(device=device, dtype=dtype, non_blocking=non_blocking, copy=copy)


def cast_to_device(tensor, device, dtype, copy=False):
    return cast_to(tensor, dtype=dtype, device=device, copy=copy)


def module_size(module):
    """Bytes of all parameters and buffers."""
    return sum(tensor.nelement() * tensor.element_size() for tensor in module.state_dict().values())


def get_free_memory(dev=None, torch_free_too=False):
    """Free bytes of a device; on a CPU, where nothing here depends on it, a large constant."""
    dev = get_torch_device() if dev is None else dev
    free = torch.cuda.mem_get_info(dev)[0] if is_device_cuda(dev) else 1 << 40
    return (free, free) if torch_free_too else free


def load_models_gpu(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None,
                    force_full_load=False):
    """Bring the patchers' models, with all their patches applied, to their load devices."""
    wanted = dict.fromkeys(model for patcher in models for model in (patcher, *patcher.model_patches_models()))
    for patcher in wanted:
        for other in [other for other in _loaded if other is not patcher and other.is_clone(patcher)]:
            other.detach(unpatch_all=False)
            _loaded.discard(other)
        patcher.model_patches_to(patcher.load_device)
        patcher.partially_load(patcher.load_device)
        _loaded.add(patcher)


def load_model_gpu(model):
    return load_models_gpu([model])


def loaded_models(only_currently_used=False):
    return list(_loaded)


def free_memory(memory_required, device, keep_loaded: Sequence = []):
    """Move every loaded model of the device back, except those to keep, when memory is short of the request."""
    if get_free_memory(device) >= memory_required:
        return []
    unloaded = [patcher for patcher in _loaded if patcher.load_device == device and patcher not in keep_loaded]
    for patcher in unloaded:
        patcher.detach()
        _loaded.discard(patcher)
    return unloaded


def unload_all_models():
    free_memory(float("inf"), get_torch_device())


def cleanup_models():
    """Nothing to do: a model that nobody references is collected with its patcher."""


def soft_empty_cache(force=False):
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
