"""Gradients through the host's networks.

The host runs nodes in inference mode, and tensors made in that mode cannot be saved for a backward pass, so neither can
weights that were loaded in it. Here they are replaced by normal ones, and what goes wrong in a gradient is told in
terms of the node's input.
"""

from contextlib import contextmanager

import comfy.model_management
import torch

from ..operators.base import gradients


def carry_gradients(*modules):
    """Replace every tensor of the modules that was made in inference mode by a normal one without gradient.

    One tensor at a time, so that no more than the largest is there twice; a scan where nothing is to do. The host's
    next `.to()` may undo it, so it is called before each gradient.
    """
    with torch.inference_mode(False):
        for module in modules:
            for layer in module.modules():
                # Some networks hold constants as plain attributes, which stand in vars().
                for tensors in (layer._parameters, layer._buffers, vars(layer)):
                    for name, tensor in list(tensors.items()):
                        if isinstance(tensor, torch.Tensor) and tensor.is_inference():
                            tensors[name] = _normal(tensor)


def _normal(tensor):
    copy = tensor.detach().clone()
    return torch.nn.Parameter(copy, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copy


def load(patcher, memory):
    """Bring a network to its device with so many bytes to spare, without moving out the model that is being sampled."""
    resident = all(weight.device == torch.device(patcher.load_device) for weight in patcher.model.parameters())
    if resident and free_memory(patcher) >= memory:
        return
    loaded = [other for other in comfy.model_management.loaded_models() if other is not None]
    running = any(getattr(other.model, "current_patcher", None) is not None for other in loaded)
    keep = [other for other in loaded if running and other is not patcher and not getattr(other, "is_clip", False)]
    with torch.inference_mode():  # the host moves weights in that mode, and cannot move such ones out of it
        comfy.model_management.load_models_gpu([*keep, patcher], memory_required=memory)


def free_memory(patcher):
    """Free bytes of the network's device."""
    ask = getattr(patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return ask(patcher.load_device)


@contextmanager
def memory_told(message):
    """What runs out of memory inside raises ValueError(message)."""
    try:
        yield
        return
    except RuntimeError as error:
        words = str(error).lower()
        if not (isinstance(error, comfy.model_management.OOM_EXCEPTION)
                or "out of memory" in words or "can't allocate memory" in words):  # fmt: skip
            raise
    comfy.model_management.soft_empty_cache()  # after the block, since the exception held the graph
    raise ValueError(message)


class _Whole(torch.autograd.Function):
    """function(x) with its own graph inside, so that one place sees what its forward and its backward pass raise."""

    @staticmethod
    def forward(ctx, x, function, message):
        with gradients(), memory_told(message):
            leaf = x.detach().clone().requires_grad_()
            ctx.inside = leaf, function(leaf)
        ctx.message = message
        return ctx.inside[1].detach()

    @staticmethod
    def backward(ctx, gradient):
        (leaf, out), ctx.inside = ctx.inside, None
        with gradients(), memory_told(ctx.message):
            return torch.autograd.grad(out, leaf, gradient.clone())[0], None, None


def with_gradient(network, function, x, message):
    """function(x), differentiable in x where autograd records x. Raises ValueError(message) when memory runs out.

    `network`: the module whose weights `function` uses.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        carry_gradients(network)
        return _Whole.apply(x, function, message)
    with torch.no_grad():
        return function(x)
