"""Checkpoints: weights of every layout that research code saves, and nothing else."""

import argparse
import collections
import io
import os
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
from trajectory.models import checkpoints


class Settings:
    """A class that a reader does not have."""

    def __init__(self):
        self.rate = 1e-4


class Runs:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


WEIGHTS = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2, dtype=torch.float16)}


def same(found, wanted):
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value) and found[key].dtype == value.dtype


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saved_is_read(tmp_path, zipped, protocol):
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    same(checkpoints.read(path), WEIGHTS)


@pytest.mark.parametrize("wrapped", [
    {"state_dict": {f"module.{key}": value for key, value in WEIGHTS.items()}, "epoch": 3},
    {"params_ema": WEIGHTS, "params": {}},
    {f"module._orig_mod.{key}": value for key, value in WEIGHTS.items()},
    {"state_dict": WEIGHTS, "hyper_parameters": {"data": Settings(), "rate": 0.1}, "callbacks": [Settings()]},
    {"state_dict": {key: torch.nn.Parameter(value) for key, value in WEIGHTS.items()}},
])
def test_the_weights_are_found_in_every_wrapper(tmp_path, wrapped):
    path = tmp_path / "weights.ckpt"
    torch.save(wrapped, path)
    same(checkpoints.state_dict(checkpoints.read(path)), WEIGHTS)


def test_settings_of_all_kinds_are_read_as_plain_values(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({
        "state_dict": collections.OrderedDict(WEIGHTS), "rank": np.int64(4), "rate": np.float32(0.5), "name": "s3",
        "list": ["a", ("b", None)], "args": argparse.Namespace(lr=1), "path": tmp_path, "table": np.arange(3.0),
        "default": collections.defaultdict(list, x=[1]), "set": {1}, "settings": Settings(), "size": torch.Size([1, 2]),
    }, path)  # fmt: skip
    read = checkpoints.read(path)
    assert read["rank"] == 4 and read["rate"] == 0.5 and read["name"] == "s3" and read["list"] == ["a", ["b", None]]
    assert read["default"] == {"x": [1]} and read["set"] == [1] and read["size"] == [1, 2]
    assert torch.equal(read["table"], torch.arange(3.0, dtype=torch.float64))
    assert not {"args", "settings"} & set(read)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain", "hidden"])
def test_a_malicious_file_is_refused_by_name_and_nothing_runs(tmp_path, how):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    evil = {"state_dict": WEIGHTS, "extra": Runs(f"touch {trace}")}
    if how == "plain":
        path.write_bytes(pickle.dumps(evil["extra"]))
    elif how == "hidden":  # inside a Lightning dict whose classes become inert
        torch.save({"settings": Settings(), "callbacks": {"stop": [evil["extra"]]}, **WEIGHTS}, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"weights\.pth \(\d+ bytes\) is not read: .*system, which no weights need"):
        checkpoints.read(path)
    assert not trace.exists()


@pytest.mark.parametrize("module, name", [
    ("builtins", "eval"), ("builtins", "getattr"), ("torch.storage", "_load_from_bytes"), ("torch", "load"),
    ("torch.hub", "load"), ("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("subprocess", "Popen"),
    ("importlib", "import_module"), ("runpy", "run_path"), ("pickle", "loads"), ("__builtin__", "eval"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"), ("posix", "system"), ("nt", "system"),
    ("operator", "methodcaller"), ("ctypes", "CDLL"), ("torch.jit", "load"), ("os.path", "join"),
])
def test_globals_that_could_act_are_refused(module, name):
    pickled = b"\x80\x02c" + f"{module}\n{name}\n.".encode()
    with pytest.raises(pickle.UnpicklingError, match="no weights need|not read"):
        checkpoints.RestrictedUnpickler(io.BytesIO(pickled)).load()


@pytest.mark.parametrize("module, name", [
    ("collections", "Counter"), ("collections", "deque"), ("decimal", "Decimal"), ("uuid", "UUID"),
    ("random", "Random"), ("torch.optim.lr_scheduler", "StepLR"), ("torch.nn.modules.linear", "Linear"),
    ("numpy", "float32"), ("logging", "Logger"), ("weakref", "ref"), ("no_such_package", "run"),
])
def test_all_others_are_never_made(module, name):
    """Not even those that are harmless: a class of that name which takes everything and does nothing."""
    pickled = b"\x80\x02c" + f"{module}\n{name}\n(K\x01tR.".encode()
    made = checkpoints.RestrictedUnpickler(io.BytesIO(pickled)).load()
    assert isinstance(made, checkpoints.Inert) and vars(made) == {}


def test_what_trainers_save_beside_the_weights_does_not_hinder(tmp_path):
    path = tmp_path / "lightning.ckpt"
    schedule = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), [1])
    torch.save({"state_dict": WEIGHTS, "lr_schedulers": [schedule.state_dict()], "names": np.array(["a"]),
                "queue": collections.deque([1]), "network": torch.nn.Linear(1, 1), "type": np.float32}, path)
    read = checkpoints.read(path)
    same(read["state_dict"], WEIGHTS)
    assert not {"names", "queue", "network", "type"} & set(read)


def test_shared_lists_are_not_unfolded_and_a_list_in_itself_is_cut(tmp_path):
    """Forty lists that each hold the one before twice would be a million million."""
    deep = ["weights"]
    for _ in range(40):
        deep = [deep, deep]
    around = []
    around.append(around)
    path = tmp_path / "weights.pt"
    torch.save({"deep": deep, "around": around, "w": torch.ones(1)}, path)
    read = checkpoints.read(path)
    assert read["around"] == [None] and read["deep"][0] is read["deep"][1]


def test_objects_of_other_packages_are_inert(monkeypatch):
    """Not even their module is imported."""
    pickled = b"\x80\x02cno_such_package.deep\nThing\n(K\x01tR}(X\x01\x00\x00\x00aK\x01ub."
    thing = checkpoints.RestrictedUnpickler(io.BytesIO(pickled)).load()
    assert isinstance(thing, checkpoints.Inert) and "no_such_package" not in sys.modules
    assert vars(thing) == {}
    probe = types.ModuleType("probe_package")
    probe.act = lambda *_: (_ for _ in ()).throw(AssertionError("called"))
    monkeypatch.setitem(sys.modules, "probe_package", probe)
    checkpoints.RestrictedUnpickler(io.BytesIO(b"\x80\x02cprobe_package\nact\n(K\x01tR.")).load()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, zipped, share):
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.rand(200, 50)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"weights\.pth \(\d+ bytes\) is not read: "):
        checkpoints.read(path)


def test_other_files_are_refused(tmp_path):
    page = tmp_path / "weights.pth"
    page.write_text("<!DOCTYPE html> not found")
    with pytest.raises(ValueError, match="neither safetensors nor a checkpoint"):
        checkpoints.read(page)
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as file:
        file.writestr("script/version", "3")
        file.writestr("script/data.pkl", b"")
        file.writestr("script/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript"):
        checkpoints.read(script)
    tar = tmp_path / "weights.tar.pth"
    with tarfile.open(tar, "w") as archive:
        archive.add(page, "\x80page")
    with pytest.raises(ValueError, match="neither"):
        checkpoints.read(tar)
    archive = tmp_path / "archive.pth"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"archive\.pth"):
        checkpoints.read(archive)
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"\xff" * 30)
    with pytest.raises(ValueError, match=r"weights\.safetensors \(30 bytes\)"):
        checkpoints.read(broken)
    with pytest.raises(ValueError, match="does not exist"):
        checkpoints.read(tmp_path / "none.pth")


NESTED = {"rank": 4, "modules": ["a.b", "c"], "state": {"x.y": torch.rand(2, 2), "z": torch.zeros(())},
          "empty": {}, "none": None, "list": [torch.ones(1), "text"]}


def test_a_nested_checkpoint_comes_back_from_safetensors(tmp_path):
    path = tmp_path / "nested.safetensors"
    checkpoints.write(path, NESTED)
    found = checkpoints.read(path)
    assert {key: found[key] for key in ("rank", "modules", "empty", "none")} == {
        "rank": 4, "modules": ["a.b", "c"], "empty": {}, "none": None}
    same(found["state"], NESTED["state"])
    assert torch.equal(found["list"][0], torch.ones(1)) and found["list"][1] == "text"


def test_the_command_converts(tmp_path):
    source = tmp_path / "weights.pth"
    torch.save({"module.w": torch.ones(2)}, source)
    command = [sys.executable, checkpoints.__file__, str(source)]  # a file: hosts do not know the pack by a name
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    same(checkpoints.read(tmp_path / "weights.safetensors"), {"module.w": torch.ones(2)})
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 1 and "exists; name another file" in again.stderr


def make():
    return torch.nn.Sequential(collections.OrderedDict(conv=torch.nn.Linear(3, 2)))


def test_a_module_is_filled_without_allocating_its_own_weights():
    module = checkpoints.filled(make, WEIGHTS, torch.float32)
    assert torch.equal(module.conv.weight, WEIGHTS["conv.weight"]) and module.conv.bias.dtype == torch.float32
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    checkpoints.filled(make, {**WEIGHTS, "old.table": torch.ones(1)}, ignore=("old.",))


@pytest.mark.parametrize("weights, message", [
    ({"conv.weight": torch.ones(2, 3)}, "1 missing .conv.bias"),
    ({**WEIGHTS, "head": torch.ones(1)}, "1 unknown .head"),
    ({**WEIGHTS, "conv.bias": torch.ones(3)}, r"1 of another shape .conv.bias \[3\] for \[2\]"),
    ({**WEIGHTS, "conv.bias": torch.ones(2, dtype=torch.int64)}, "1 no real numbers .conv.bias"),
    ({**WEIGHTS, "conv.bias": torch.ones(2, dtype=torch.complex64)}, "1 no real numbers .conv.bias"),
])
def test_weights_of_another_model_are_refused(weights, message):
    with pytest.raises(ValueError, match=f"of another model: {message}"):
        checkpoints.filled(make, weights)


def test_a_file_without_weights_is_refused():
    with pytest.raises(ValueError, match="no weights by name"):
        checkpoints.state_dict({"epoch": 3})
