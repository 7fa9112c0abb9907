"""Checkpoints of research repositories read as data: nothing in a file is ever executed.

    python models/checkpoints.py FILE [OUT.safetensors]

writes a pickled checkpoint as safetensors, with what is no tensor as JSON in its metadata; `read` gives back the same.
"""

from __future__ import annotations

import collections
import json
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

STRUCTURE = "structure"
"""Key of a safetensors file's metadata: the nested checkpoint as JSON, each tensor as {"tensor": its name}."""

WRAPPERS = ("state_dict", "params_ema", "params", "model_state_dict")
"""Names under which a training framework puts the weights themselves."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""


class Inert:
    """Stands for an object of a class that is not loaded: takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *_arguments, **_options):
        return super().__new__(cls)

    def _nothing(self, *_arguments, **_options):
        pass

    __init__ = __call__ = __setitem__ = __setstate__ = append = extend = add = update = _nothing


_TORCH = ("Size", "device", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int8",
          "int16", "int32", "int64", "uint8", "bool")
_GLOBALS = {
    **{("torch._utils", name): getattr(torch._utils, name) for name in (
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
        "_rebuild_parameter_with_state") if hasattr(torch._utils, name)},
    **{("torch", name): getattr(torch, name) for name in _TORCH if hasattr(torch, name)},
    **{("torch", name): getattr(torch, name) for name in dir(torch) if name.endswith("Storage")},
    ("torch.storage", "TypedStorage"): torch.storage.TypedStorage,
    ("torch.storage", "UntypedStorage"): torch.storage.UntypedStorage,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    **{(module, name): value for module in ("builtins", "__builtin__") for name, value in (
        ("dict", dict), ("list", list), ("set", set), ("frozenset", frozenset), ("tuple", tuple), ("int", int),
        ("float", float), ("bool", bool), ("str", str), ("bytes", bytes), ("complex", complex), ("slice", slice))},
    ("numpy", "dtype"): np.dtype, ("numpy", "ndarray"): np.ndarray,
    **{(f"numpy.{core}.multiarray", name): value for core in ("core", "_core") for name, value in (
        ("scalar", np.float64(0).__reduce__()[0]), ("_reconstruct", np.zeros(1).__reduce__()[0]))},
    ("_codecs", "encode"): lambda text, encoding="utf-8": text.encode("latin1"),  # bytes in an old pickle protocol
}  # fmt: skip
_ACTING = {
    "_io", "_posixsubprocess", "_thread", "asyncio", "builtins", "__builtin__", "code", "codeop", "commands", "ctypes",
    "_ctypes", "exec", "ftplib", "gc", "http", "importlib", "imp", "inspect", "io", "linecache", "marshal",
    "multiprocessing", "nt", "ntpath", "operator", "_operator", "os", "pdb", "pickle", "_pickle", "pip", "pkgutil",
    "platform", "posix", "posixpath", "pty", "pydoc", "runpy", "setuptools", "shutil", "signal", "site", "smtplib",
    "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading", "timeit", "trace", "urllib", "venv",
    "webbrowser", "zipimport",
}  # fmt: skip
"""Packages that reach files, programs or code. That is no setting of a trainer, and is told before the file is used."""
_LOADERS = ("load", "hub", "jit", "package", "distributed", "runstring", "_load_from_bytes", "from_file", "fromfile")
"""The same of names in torch and numpy."""


class RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain values; objects of other classes become inert, and are never made.

    What reaches files, programs or code is refused by name: it would be as inert, but the file is not to be trusted.
    """

    def find_class(self, module, name):
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        root, *inner = module.split(".")
        parts = {*inner, *name.split(".")}
        if root in _ACTING or root in ("torch", "numpy") and not parts.isdisjoint(_LOADERS):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need: it may be malicious")
        if root in ("torch", "numpy") and "_rebuild" in name:
            raise pickle.UnpicklingError(f"it holds a kind of tensor that is not read ({module}.{name})")
        return type(name, (Inert,), {})


def _load(file, **_options):
    return RestrictedUnpickler(file).load()


_PICKLE = types.SimpleNamespace(Unpickler=RestrictedUnpickler, load=_load, __name__="restricted")


def read(path):
    """The contents of a checkpoint: nested dicts and lists of tensors (on the CPU), numbers, texts and None.

    path: a safetensors file, or one that torch.save or pickle wrote. Objects of unknown classes are left out.
    Raises ValueError naming the file and why: damaged, cut short, no checkpoint, or asking for code.
    """
    path = Path(path)
    try:
        return _safetensors(path) if path.suffix in (".safetensors", ".sft") else _plain(_pickled(path), {})
    except FileNotFoundError:
        raise ValueError(f"{path.name} does not exist") from None
    except (pickle.UnpicklingError, SafetensorError, EOFError, OSError, RuntimeError, ValueError, TypeError, KeyError,
            IndexError, AttributeError, AssertionError, OverflowError, MemoryError, UnicodeDecodeError, ImportError,
            RecursionError, zipfile.BadZipFile, struct.error) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(f"{path.name} ({path.stat().st_size} bytes) is not read: "
                         f"{reason[0] if reason else type(error).__name__}") from error


def _pickled(path):
    with path.open("rb") as file:
        start = file.read(2)
    zipped = start == b"PK"
    if not zipped and (start[:1] != b"\x80" or tarfile.is_tarfile(path)):
        raise ValueError("it is neither safetensors nor a checkpoint that torch.save wrote")
    if zipped and "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():  # what torch.load asks
        raise ValueError("it is a TorchScript program; only weights are read")
    return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)


def _plain(value, made):
    """`value` without what is no plain value. made: {id of a container: what became of it}; shared ones stay shared."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if id(value) not in made:
            made[id(value)] = None  # of a container inside itself
            if isinstance(value, dict):
                made[id(value)] = {str(key): _plain(item, made) for key, item in value.items() if _is_plain(item)}
            else:
                made[id(value)] = [_plain(item, made) for item in value if _is_plain(item)]
        return made[id(value)]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value


def _is_plain(value):
    """Whether a value has a place in what `read` returns."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    return value is None or isinstance(value, (torch.Tensor, dict, list, tuple, set, frozenset, np.generic, bool, int,
                                               float, str))


def _safetensors(path):
    with safe_open(path, "pt") as file:
        structure = (file.metadata() or {}).get(STRUCTURE)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)

    def filled_in(value):
        if isinstance(value, dict):
            if set(value) == {"tensor"} and isinstance(value["tensor"], str):
                return tensors[value["tensor"]]
            return {key: filled_in(item) for key, item in value.items()}
        return [filled_in(item) for item in value] if isinstance(value, list) else value

    return filled_in(json.loads(structure)) if structure else tensors


def write(path, checkpoint):
    """Write a nested checkpoint as safetensors; a tensor under several names is stored once."""
    tensors, first_names = {}, {}

    def named(value, name):
        if isinstance(value, torch.Tensor):
            name = first_names.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride()), name)
            if name not in tensors:
                tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, dict):
            return {key: named(item, f"{name}/{key}" if name else key) for key, item in value.items()}
        if isinstance(value, list):
            return [named(item, f"{name}/{number}") for number, item in enumerate(value)]
        return value

    structure = named(checkpoint, "")
    flat = isinstance(checkpoint, dict) and all(key in tensors for key in checkpoint)
    save_file(tensors, path, {"format": "pt"} if flat else {"format": "pt", STRUCTURE: json.dumps(structure)})


def state_dict(checkpoint):
    """The flat {key: tensor} of a checkpoint, out of the wrappers and without the prefixes that trainers add.

    Raises ValueError where there is none.
    """
    while isinstance(checkpoint, dict):
        inner = next((checkpoint[name] for name in WRAPPERS if isinstance(checkpoint.get(name), dict)), None)
        if inner is None:
            break
        checkpoint = inner
    weights = checkpoint if isinstance(checkpoint, dict) else {}
    weights = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise ValueError("the file holds no weights by name")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return {"".join(_without(key)): value for key, value in weights.items()}


def _without(key):
    """The parts of a key without torch.compile's marks inside."""
    return key.split("_orig_mod.")


def filled(make, weights, dtype=None, ignore=()):
    """make() with these weights in place of its own, which are never allocated; in evaluation mode, without gradients.

    Args:
        make: builds the module. It must compute no tensors but its weights.
        weights: {key: tensor}; floating ones are stored as `dtype`, if given.
        ignore: prefixes of keys in the file that the module does without.

    Raises:
        ValueError: keys are missing or unknown, or shapes differ: the file is of another model.
    """
    with torch.device("meta"):
        module = make()
    wanted = module.state_dict()
    weights = {key: value for key, value in weights.items() if key in wanted or not key.startswith(tuple(ignore))}
    trouble = {
        "missing": [key for key in wanted if key not in weights],
        "unknown": [key for key in weights if key not in wanted],
        "of another shape": [f"{key} {list(weights[key].shape)} for {list(value.shape)}" for key, value in
                             wanted.items() if key in weights and weights[key].shape != value.shape],
        "no real numbers": [key for key, value in wanted.items() if key in weights and value.is_floating_point()
                            and not weights[key].is_floating_point()],
    }
    found = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
             for what, keys in trouble.items() if keys]
    if found:
        raise ValueError(f"its weights are of another model: {'; '.join(found)}")

    def stored(value):
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    module.load_state_dict({key: stored(weights[key]) for key in wanted}, assign=True)
    return module.eval().requires_grad_(False)


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1] in ("-h", "--help"):
        raise SystemExit(__doc__)
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else source.with_suffix(".safetensors")
    if target.exists():
        raise SystemExit(f"{target} exists; name another file to write")
    try:
        write(target, read(source))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
