"""Group normalisation over a picture that is worked on in tiles, as if it were not.

A tile that is normalised by its own mean and variance has its own brightness. Here the tiles of a picture take turns:
each runs to its next GroupNorm and waits there; when all have arrived, their sums give mean and variance of the whole
picture, and each goes on. What a waiting tile holds lies in the host's memory meanwhile.
"""

import threading
from contextlib import contextmanager

import torch


class _Cancelled(Exception):
    """Ends the thread of a tile whose run was given up."""


class _Tile(threading.Thread):
    """One tile's way through the network; it runs only between `resume` and its next pause."""

    def __init__(self, function, crop, core):
        super().__init__(daemon=True)
        self._function, self._crop, self.core = function, crop.clone(), core  # its own, which it may park
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._inference = torch.is_inference_mode_enabled()
        self.within = []  # inputs of the modules that it is in the middle of
        self.finished, self.cancelled, self.error, self.result = False, False, None, None
        self.sums = self.statistics = None
        self.start()

    def run(self):
        self._go.acquire()
        try:
            if not self.cancelled:
                with torch.inference_mode(self._inference), torch.no_grad():
                    self.result = self._function(self._crop)
        except _Cancelled:
            pass
        except BaseException as error:  # handed to the thread that resumed this one
            self.error = error
        finally:
            self._crop, self.finished = None, True
            self._back.release()

    def resume(self):
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def end(self):
        """Give up what is left of its way."""
        self.cancelled = True
        self._go.release()
        self.join()

    def pause(self, sums, held):
        """Wait until all tiles have handed in their sums; the statistics of the whole picture."""
        self.sums = sums
        with _parked([*self.within, *held]):
            self._back.release()
            self._go.acquire()
        if self.cancelled:
            raise _Cancelled
        return self.statistics


@contextmanager
def _parked(tensors):
    """Their contents in the CPU's memory meanwhile, where that is another."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.device.type != "cpu"}
    kept = [(storage, storage.nbytes(), storage.cpu()) for storage in storages.values()]
    for storage in storages.values():
        storage.resize_(0)
    yield
    for storage, size, content in kept:
        storage.resize_(size)
        storage.copy_(content)


def _sums(x, groups, core):
    """[B, groups, 3]: count, sum and sum of squares over a tile's own part, in float64 on the CPU."""
    height, width = x.shape[-2:]
    top, bottom, left, right = core
    part = x[..., round(top * height): round(bottom * height), round(left * width): round(right * width)].float()
    part = part.reshape(len(x), groups, -1)
    count = torch.full(part.shape[:2], part.shape[-1])
    return torch.stack([n.double().cpu() for n in (count, part.sum(-1), part.square().sum(-1))], -1)


def _shared(norm, x):
    """GroupNorm `norm` of a tile x, by the statistics of all tiles."""
    tile = threading.current_thread()
    mean, variance = tile.pause(_sums(x, norm.num_groups, tile.core), [x])
    rate = (variance + norm.eps).rsqrt()
    y = x.float().reshape(len(x), norm.num_groups, -1)
    y = ((y - mean.to(y)[..., None]) * rate.to(y)[..., None]).reshape(x.shape)
    if norm.affine:
        weight, bias = (p.to(y).view(1, -1, *[1] * (x.ndim - 2)) for p in (norm.weight, norm.bias))
        y = torch.addcmul(bias, y, weight)
    return y.to(x.dtype)


@contextmanager
def _in_unison(network):
    """Every GroupNorm of the network normalises by all tiles meanwhile."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    blocks = [module for module in network.modules() if not isinstance(module, torch.nn.GroupNorm)
              and any(isinstance(inner, torch.nn.GroupNorm) for inner in module.modules())]

    def enter(_module, inputs):
        if inputs and isinstance(threading.current_thread(), _Tile):
            threading.current_thread().within.append(inputs[0])

    def leave(_module, inputs, _output):
        if inputs and isinstance(threading.current_thread(), _Tile):
            threading.current_thread().within.pop()

    hooks = [hook for block in blocks for hook in (
        block.register_forward_pre_hook(enter), block.register_forward_hook(leave))]
    before = [(norm, norm.__dict__.get("forward")) for norm in norms]
    for norm in norms:
        norm.forward = lambda x, norm=norm: _shared(norm, x)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, forward in before:
            del norm.forward
            if forward is not None:
                norm.forward = forward


def run_in_unison(network, function, plan, padded, progress=lambda done: None):
    """`plan.run(function, padded)` in which every torch.nn.GroupNorm of `network` sees the whole picture at once.

    Args:
        network: the module that `function` runs a tile [B, C, h, w] through, whatever it does before and after.
        plan: TilePlan. Its overlap is the halo of the tiles: the result equals the untiled one where half of it
            covers the network's receptive radius, and where nothing but convolution and GroupNorm looks at neighbours.
        padded: the picture [B, C, H, W] with plan's padded sides.
        progress: called in the caller's thread with the share that is done; what it raises ends the run.
    """
    if len(plan.boxes) == 1:
        progress(0.0)
        return plan.run(function, padded)
    stops = 1 + sum(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    with _in_unison(network):
        tiles = [_Tile(function, plan.cut(padded, box), core)
                 for box, core in zip(plan.boxes, plan.cores, strict=True)]
        try:
            for stop in range(stops):
                for number, tile in enumerate(tiles):
                    progress((stop + number / len(tiles)) / stops)
                    tile.resume()
                if tiles[0].finished:
                    break
                count, total, squares = sum(tile.sums for tile in tiles).unbind(-1)
                mean = total / count
                for tile in tiles:
                    tile.statistics = mean, (squares / count - mean**2).clamp(min=0)
        finally:
            for tile in tiles:
                tile.end()
    results = iter(tiles)
    return plan.run(lambda _crop: next(results).result, padded)
