"""Faster Diffusion's reuse of features (Li et al., NeurIPS 2024, arXiv 2312.09608): what a run remembers of a network.

At a key step the features of the first part of the network are kept, at the steps after it they stand in for that part,
while the second part runs with the current timestep. Features are the outputs of a UNet's encoder, as the paper has it,
and the residual of a transformer's first blocks, our analogue. They belong to one conditioning, not to a batch, because
a host joins conditionings in one batch or splits them as its memory allows.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

FULL, RECORD, RECALL = "full", "record", "recall"


class Stale(Exception):
    """There are no features, or they are of another size, type or device than now asked for."""


class FeatureRun:
    """One run over a `key_steps.Timeline`: whether a call keeps features, uses them or neither, and the features.

    `begin` and `conditionings` bracket what the host does: an evaluation of the sampler, and the calculation of a group
    of conditionings in it (several for perturbed guidance or context windows, each with features of its own).
    """

    def __init__(self, timeline):
        self.timeline = timeline
        self.stored = {}
        self.mode = FULL  # also for a call from outside the two brackets
        self._planned, self._key, self._group = FULL, None, 0

    def begin(self, sigma):
        """A new evaluation at this sigma."""
        self._group = 0
        self.step, self.on_grid = self.timeline.place(sigma)
        key = self.timeline.key(self.step)
        if not self.timeline.skips(self.step):
            self._planned, key = FULL, None
        elif key != self._key or (self.on_grid and self.step == key):
            self._planned = RECORD
        else:
            self._planned = RECALL
        self._key = key
        if self._planned != RECALL:
            self.stored.clear()

    def conditionings(self, calculate):
        """calculate(mode) in the mode of this step; once more as at a key step where no features fit."""
        self._group += 1
        try:
            self.mode = self._planned
            return calculate(self.mode)
        except Stale:
            self.mode = RECORD
            return calculate(self.mode)
        finally:
            self.mode = FULL

    def names(self, transformer_options):
        """What tells the features of each conditioning in a batch from all others."""
        window = getattr(transformer_options.get("context_window"), "index_list", ())
        return [(self._group, uuid, tuple(window)) for uuid in transformer_options["uuids"]]

    def find(self, names):
        """The features stored under each name. Raises Stale when one is missing."""
        if any(name not in self.stored for name in names):
            raise Stale
        return [self.stored[name] for name in names]


def _join(parts, copies=1):
    """The parts [B, ...] of several conditionings as a batch of its own, each repeated `copies` times."""
    return torch.cat([part for part in parts for _ in range(copies)])


def _repeat(value, batch, count, copies):
    """`_join` for what holds `count` conditionings in a batch of this size; anything else as it is."""
    if not torch.is_tensor(value) or value.ndim == 0 or len(value) != batch:
        return value
    return _join(value.chunk(count), copies)


# --- UNets -----------------------------------------------------------------------------------------------------------


@dataclass
class Feature:
    """What one block gave for one conditioning: `value` [B, ...] for items of the shape `entered`."""

    entered: tuple
    value: torch.Tensor
    transformer_index: int | None


@dataclass
class Encoded:
    """The encoder's features of one conditioning, block by block, the key step's control, outputs of later steps."""

    features: list[Feature]
    control: dict | None
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)


class _Layer(nn.Module):
    """A layer that is a plain function of the features, which a UNet calls as such."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _rewired(network, rewire):
    """A network that shares everything with `network` but the blocks before the decoder: these are rewire(i, block)."""
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    blocks = [type(block)(*rewire(i, block)) for i, block in enumerate(_encoder(network))]
    if network.middle_block is not None:
        twin.middle_block = blocks.pop()
    twin.input_blocks = nn.ModuleList(blocks)
    return twin


def _encoder(network):
    middle = [] if network.middle_block is None else [network.middle_block]
    return [*network.input_blocks, *middle]


def _recording(network, options, features):
    """A twin that appends a Feature for each block, before control and patches change what the block gave."""

    def rewire(i, block):
        entered = []

        def enter(x):
            entered.append(tuple(x.shape[1:]))
            return x

        def leave(x):
            features.append(Feature(entered.pop(), x.clone(), options.get("transformer_index")))
            return x

        return _Layer(enter), *block, _Layer(leave)

    return _rewired(network, rewire)


def _recalling(network, options, encoded, copies=1, fresh_input=False):
    """A twin whose blocks give these features. Raises Stale for an input that they were not made for.

    fresh_input: the first block, a convolution of the state, runs as ever.
    """

    def rewire(i, block):
        if fresh_input and i == 0:
            return block
        parts = [one.features[i] for one in encoded]

        def recall(x):
            _check(x, parts, copies)
            if parts[0].transformer_index is not None:
                options["transformer_index"] = parts[0].transformer_index
            return _join([part.value for part in parts], copies)

        return (_Layer(recall),)

    return _rewired(network, rewire)


def _check(x, parts, copies=1):
    like = all(
        part.entered == tuple(x.shape[1:]) and part.value.dtype == x.dtype and part.value.device == x.device
        for part in parts
    )
    if not like or len(x) != copies * sum(len(part.value) for part in parts):
        raise Stale


def _split(features, count):
    """The features of each of `count` conditionings."""
    parts = [[Feature(f.entered, value, f.transformer_index) for value in f.value.chunk(count)] for f in features]
    return [list(of_one) for of_one in zip(*parts, strict=True)]


def _split_control(control, batch, count):
    """A ControlNet's features of each of `count` conditionings."""
    if control is None:
        return [None] * count

    def part(value, k):
        return value.chunk(count)[k] if torch.is_tensor(value) and len(value) == batch else value

    return [{name: [part(value, k) for value in values] for name, values in control.items()} for k in range(count)]


def _merge_control(encoded, items, copies=1):
    """The controls of several conditionings of B = `items` as a batch, each repeated `copies` times."""
    controls = [one.control for one in encoded]
    if None in controls:
        return None

    def join(values):
        whole = torch.is_tensor(values[0]) and len(values[0]) == items
        return _join(values, copies) if whole else values[0]

    return {name: [join(values) for values in zip(*(c[name] for c in controls), strict=True)] for name in controls[0]}


class UNetRun(FeatureRun):
    """A run of a UNet, of which encoder and middle are the first part.

    timesteps_of: sigmas [n] -> the network's timesteps [n], to decode all steps up to the next key step in one batch at
    the key step; None to decode each when its time comes. keep_control: use the key step's control again, too.
    fresh_input: run the first convolution at every step, where none is decoded ahead. It is no part of the paper; it
    costs a thousandth and lets the output follow the state, without which noise stays in small pictures.
    """

    def __init__(self, timeline, timesteps_of=None, keep_control=True, fresh_input=False):
        super().__init__(timeline)
        self.timesteps_of, self.keep_control = timesteps_of, keep_control
        self.fresh_input = fresh_input and timesteps_of is None

    def call(self, executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None,
             **kwargs):
        """The network's output. `executor` is the host's, around the network; whatever it still wraps runs as well."""
        if self.mode == FULL:
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
        names = self.names(transformer_options)
        arguments = {"timesteps": timesteps, "context": context, "y": y, **kwargs}
        if self.mode == RECORD:
            return self._record(executor, names, x, arguments, control, transformer_options)
        return self._recall(executor, names, x, arguments, control, transformer_options)

    def _record(self, executor, names, x, arguments, control, options):
        features, count = [], len(names)
        kept = None if control is None else {name: list(values) for name, values in control.items()}  # it is used up
        output = _run(executor, lambda *args: _recording(*args, features), x, arguments, control, options)
        controls = _split_control(kept, len(x), count)
        for name, of_one, control_of_one in zip(names, _split(features, count), controls, strict=True):
            self.stored[name] = Encoded(of_one, control_of_one)
        if self.timesteps_of is not None and (control is None or self.keep_control):
            self._decode_ahead(executor, names, x, arguments, options)
        return output

    def _decode_ahead(self, executor, names, x, arguments, options):
        """The outputs of all steps up to the next key step: they do not depend on the states to come."""
        ahead = self.timeline.skipped(self.step)
        if not ahead:
            return
        batch, count, copies = len(x), len(names), len(ahead)
        items = batch // count
        encoded = self.find(names)
        sigmas = torch.tensor([self.timeline.sigmas[step] for step in ahead], dtype=torch.float32, device=x.device)
        repeated = {name: _repeat(value, batch, count, copies) for name, value in arguments.items()}
        repeated["timesteps"] = self.timesteps_of(sigmas).repeat_interleave(items).repeat(count)
        options = {**options, "sigmas": sigmas.repeat_interleave(items)}
        control = _merge_control(encoded, items, copies)
        try:
            outputs = _run(executor, lambda *args: _recalling(*args, encoded, copies),
                           _repeat(x, batch, count, copies), repeated, control, options)  # fmt: skip
        except Stale:  # a patch changes sizes at the steps to come: they decide when their time comes
            return
        for one, of_one in zip(encoded, outputs.chunk(count), strict=True):
            one.outputs = dict(zip(ahead, of_one.chunk(copies), strict=True))

    def _recall(self, executor, names, x, arguments, control, options):
        encoded = self.find(names)
        _check(x, [one.features[0] for one in encoded])
        if self.on_grid and all(self.step in one.outputs for one in encoded):
            return _join([one.outputs[self.step] for one in encoded])
        if self.keep_control:
            control = _merge_control(encoded, len(x) // len(names))
        return _run(executor, lambda *args: _recalling(*args, encoded, fresh_input=self.fresh_input), x, arguments,
                    control, options)  # fmt: skip


def _run(executor, twin_of, x, arguments, control, options):
    """The rest of a host's chain of wrappers, around twin_of(network, the options that reach it)."""
    network = executor.class_obj

    def innermost(x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        twin = twin_of(network, transformer_options)
        return twin._forward(x, timesteps, context, y, control, transformer_options, **kwargs)

    chain = type(executor).new_class_executor(innermost, network, executor.wrappers, executor.idx)
    first = ("timesteps", "context", "y")
    kwargs = {name: value for name, value in arguments.items() if name not in first}
    return chain(x, *(arguments[name] for name in first), control, options, **kwargs)


# --- transformers ----------------------------------------------------------------------------------------------------


class BlocksRun(FeatureRun):
    """A run of a transformer, of which the first `count` blocks are the first part.

    Their features are residuals, what the blocks added to the tokens that entered: a transformer has no skip
    connections from its first blocks to its last, so that outputs kept in place of residuals would hide the state.
    """

    used = False

    def call(self, network, transformer_options):
        """network() for the conditionings of these options."""
        if self.mode != FULL:
            self._names = self.names(transformer_options)
        return network()

    def block(self, number, count, previous=None):
        """Replacement of block `number` of the first `count`, or of what `previous` replaced it by."""
        original = previous or (lambda args, extra: extra["original_block"](args))

        def run(args, extra):
            if "skip" in args or not torch.is_tensor(args["img"]):  # a U of blocks, or several pictures at once
                return original(args, extra)
            self.used = True
            if self.mode == RECALL:
                return _streams(args) if number < count - 1 else self._recall(_streams(args))
            if self.mode == RECORD and number == 0:
                self._entered = {name: value.clone() for name, value in _streams(args).items()}  # may change in place
            out = original(args, extra)
            if self.mode == RECORD and number == count - 1:
                self._record(_streams(out))
            return out

        return run

    def _record(self, left):
        entered = _signature(self._entered)
        residuals = {name: value - self._entered[name] for name, value in left.items()}
        for k, name in enumerate(self._names):
            self.stored[name] = entered, {key: value.chunk(len(self._names))[k] for key, value in residuals.items()}

    def _recall(self, entered):
        found = self.find(self._names)
        items = sum(len(residuals["img"]) for _, residuals in found)
        if any(like != _signature(entered) for like, _ in found) or items != len(entered["img"]):
            raise Stale
        return {key: entered[key] + _join([residuals[key] for _, residuals in found]) for key in found[0][1]}


def _streams(values):
    """The tokens of the picture, and of the text where a block hands them on."""
    return {name: values[name] for name in ("img", "txt") if torch.is_tensor(values.get(name))}


def _signature(streams):
    return {name: (value.shape[1:], value.dtype, value.device) for name, value in streams.items()}
