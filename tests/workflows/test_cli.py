"""`trajectory run` from the outside: what it prints, what it leaves behind, and its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from trajectory.headless import cli, errors
from trajectory.headless.runtime import embedded

GRAPHS = Path(__file__).parent / "graphs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with `input/small.png`, used by the embedded host."""
    try:
        embedded()
    except RuntimeError:
        pytest.skip("a real ComfyUI is imported in this process")
    import folder_paths

    (tmp_path / "input").mkdir()
    Image.new("RGB", (12, 8), (200, 10, 10)).save(tmp_path / "input" / "small.png")
    for name in ("input", "output", "temp"):
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    embedded().forget()
    return tmp_path


def graph():
    return json.loads((GRAPHS / "two_branches.json").read_text())


def run(folder, content, *arguments):
    """Exit code of `trajectory run` on a graph that is written to a file with a space in its name."""
    path = folder / "my graph.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return cli.main(["run", str(path), *arguments])


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- what goes well --------------------------------------------------------------------------------------------------

def test_results_and_previews_are_named_and_lie_in_the_output_folder(folder, capsys):
    assert run(folder, graph(), "--out", "my results") == 0
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()
    assert first == f"Keep it (#2): {Path('my results/kept/first_00001_.png')}"
    assert second.startswith(f"Look at it (#4): {Path('my results/preview')}")
    assert (folder / first.split(": ")[1]).is_file() and Image.open(folder / second.split(": ")[1]).size == (24, 16)
    assert "[4/4] Look at it (#4)" in shown.err
    assert len(files(folder / "my results")) == 2


def test_a_saved_picture_runs_again(folder, capsys):
    assert run(folder, graph(), "--set", "Larger.width=40") == 0
    picture = Image.open(folder / "out/kept/first_00001_.png")
    assert json.loads(picture.info["prompt"])["3"]["inputs"]["width"] == 40
    assert json.loads(picture.info["workflow"])["nodes"][2]["widgets_values"][1] == 40, "the graph follows --set"
    embedded().forget()
    assert cli.main(["run", str(folder / "out/kept/first_00001_.png"), "--set", "#3.height=4"]) == 0
    again = Image.open(folder / "out/kept/first_00002_.png").info
    assert json.loads(again["prompt"])["3"]["inputs"] | {"image": None} == {
        "upscale_method": "bilinear", "width": 40, "height": 4, "crop": "disabled", "image": None}
    assert "workflow" not in again, "a graph that cannot follow --set is not passed off as the one that was run"


def test_list_of_nodes(folder, capsys):
    assert cli.main(["nodes"]) == 0
    assert "SaveImage: Save Image" in capsys.readouterr().out


# --- bad input: exit code 2, a sentence with node, title, input, value and fix, and nothing left behind --------------

def api(**changes):
    """An API prompt of a picture that is saved; `changes` are inputs of its nodes, by class."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "small.png"} | changes.get("LoadImage", {}),
              "_meta": {"title": "Picture"}},
        "3": {"class_type": "ImageScale", "_meta": {"title": "Larger"},
              "inputs": {"image": ["1", 0], "upscale_method": "area", "width": 24, "height": 16, "crop": "disabled"}
              | changes.get("ImageScale", {})},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}
              | changes.get("SaveImage", {}), "_meta": {"title": "Keep it"}},
    }


def without(prompt, ident, name):
    del prompt[ident]["inputs"][name]
    return prompt


def unknown_node():
    saved = graph()
    saved["nodes"][2] |= {"type": "SuperScale", "properties": {"cnr_id": "super-pack"}}
    return saved


def latent(**size):
    return {"5": {"class_type": "EmptyLatentImage", "_meta": {"title": "Canvas"},
                  "inputs": {"width": 64, "height": 64, "batch_size": 1} | size}} | api()


DEEP = "[" * 200_000
OVERFLOW = json.dumps(api(ImageScale={"width": 1.5})).replace("1.5", "1e999")

BAD = {
    "bottomless JSON": (DEEP, ["my graph.json is nested too deeply"]),
    "deep JSON": (DEEP[:400] + "]" * 400, ["my graph.json is nested too deeply"]),
    "NaN": (json.dumps(api(ImageScale={"width": float("nan")})), ["my graph.json holds the number NaN", "finite"]),
    "infinity": (json.dumps(api(ImageScale={"width": float("-inf")})), ["holds the number -Infinity"]),
    "overflow": (OVERFLOW, ["holds the number 1e999"]),
    "NaN as a text": ({"1": api()["1"], "4": {"class_type": "SaveAnimatedWEBP", "_meta": {"title": "Film"}, "inputs": {
        "images": ["1", 0], "filename_prefix": "x", "fps": "nan", "lossless": True, "quality": 80,
        "method": "default"}}},
        ['"Film" (#4, SaveAnimatedWEBP): input "fps" is \'nan\', but must be a number']),
    "endless number": ("9" * 10_000, ["holds a number that is too long"]),
    "name that leads out": (api(SaveImage={"filename_prefix": "../../x"}),
                            ['"Keep it" (#9, SaveImage): input "filename_prefix" is \'../../x\'',
                             'Take a name without ".."']),
    "link to a node without outputs": (
        api() | {"4": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "y"}}},
        ['output 0 of "Keep it" (#9, SaveImage), which has no outputs.']),
    "no JSON": ('{"nodes": [}', ["my graph.json is no JSON", "line 1, column 12"]),
    "no workflow": ({"answer": 42}, ["no workflow"]),
    "unknown node": (unknown_node(), ['"Larger" (#3, SuperScale): from the pack super-pack', "--comfyui", "--host"]),
    "missing link": (without(api(), "9", "images"),
                     ['"Keep it" (#9, SaveImage): input "images" (IMAGE) is missing. Connect it']),
    "link to nothing": (api(SaveImage={"images": ["7", 0]}),
                        ['"Keep it" (#9, SaveImage): input "images" is linked to node #7, which is not in the graph']),
    "link to no output": (api(SaveImage={"images": ["3", 2]}), ["output 2 of", '"Larger" (#3, ImageScale)']),
    "wrong link": (api(SaveImage={"images": ["1", 1]}),
                   ['input "images" takes IMAGE, but is linked to "Picture" (#1, LoadImage), which gives MASK']),
    "circle": (api(ImageScale={"image": ["3", 0]}), ["The links run in a circle", '"Larger" (#3, ImageScale)']),
    "out of range": (api(ImageScale={"width": 99999}),
                     ['"Larger" (#3, ImageScale): input "width" is 99999, but must be between 0 and 16384',
                      '--set "Larger.width=512"']),
    "wrong type": (api(ImageScale={"width": "wide"}),
                   ['"Larger" (#3, ImageScale): input "width" is \'wide\', but must be a whole number']),
    "unknown option": (api(ImageScale={"crop": "centre"}),
                       ['input "crop" is \'centre\', which is not one of its options. Did you mean "center"',
                        "Options: disabled, center."]),
    "no such picture": (api(LoadImage={"image": "none.png"}),
                        ['"Picture" (#1, LoadImage): input "image" is \'none.png']),
    "off the latent grid": (latent(width=70),
                            ['"Canvas" (#5, EmptyLatentImage): input "width" is 70', "Take 64 or 72"]),
    "no output node": ({"1": api()["1"]}, ["no output node"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(folder, capsys, case):
    content, sentences = BAD[case]
    assert run(folder, content) == 2
    said = capsys.readouterr().err
    for sentence in sentences:
        assert sentence in said
    assert "Traceback" not in said
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--set", "Lager.width=3"], 'no node is called "Lager". Did you mean "Larger"'),
    (["--set", "Larger.with=3"], 'has no input "with". Did you mean "width"'),
    (["--set", "Larger.width=x"], "is a whole number, not 'x'"),
    (["--set", "Larger"], "Node title.input=value"),
    (["--seed", "3"], "no node of this graph has a seed"),
    (["--set", "Larger.width=NaN"], "is a whole number, not 'NaN'"),
    (["--set", "Larger.image=[NaN]"], "holds the number NaN; numbers have to be finite"),
    (["--set", "Larger.image=" + "[" * 200_000], "is nested too deeply"),
    (["--out", "my graph.json"], "my graph.json is a file; name a folder"),
    (["--out", "my graph.json/sub/folder"], "my graph.json is a file; name a folder"),
    (["--comfyui", "input"], "this is no ComfyUI checkout"),
    (["--host", "http://127.0.0.1:9"], "No ComfyUI answers at http://127.0.0.1:9"),
])
def test_bad_arguments(folder, capsys, arguments, sentence):
    assert run(folder, graph(), *arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write, not even root")
@pytest.mark.parametrize("command", ["run", "serve"])
def test_an_output_folder_that_cannot_be_made(folder, capsys, command):
    (folder / "api.json").write_text(json.dumps(api()))
    assert cli.main([command, *(["api.json"] if command == "run" else []), "--out", "/proc/nope"]) == 2
    said = capsys.readouterr().err
    assert "--out /proc/nope: no results can be written there" in said and "host reads" not in said
    assert "[1/" not in said, "nothing has run"


def test_a_picture_of_a_host_that_wrote_nan(folder):
    prompt = api()
    prompt["1"]["is_changed"] = [float("nan")]
    text = PngInfo()
    text.add_text("prompt", json.dumps(prompt))
    Image.new("RGB", (4, 4)).save(folder / "saved.png", pnginfo=text)
    assert cli.main(["run", "saved.png"]) == 0


def test_missing_file(folder, capsys):
    assert cli.main(["run", "no such graph.json"]) == 2
    assert "no such graph.json: there is no such file." in capsys.readouterr().err


def test_a_file_that_is_no_picture(folder, capsys):
    (folder / "input" / "text.png").write_text("I am no picture")
    assert run(folder, api(LoadImage={"image": "text.png"})) == 2
    said = capsys.readouterr().err
    assert '"Picture" (#1, LoadImage) failed' in said
    assert "image = 'text.png'" in said and "no picture that can be read" in said and "Traceback" not in said


def test_truncated_weights(folder, capsys, monkeypatch):
    import folder_paths

    (folder / "weights.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae", ([str(folder)], {".safetensors"}))
    prompt = api() | {
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "weights.safetensors"}, "_meta": {"title": "The VAE"}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["4", 0]}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["4", 0]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}}
    assert run(folder, prompt) == 2
    shown = capsys.readouterr()
    assert '"The VAE" (#4, VAELoader) failed' in shown.err and "weights.safetensors" in shown.err
    assert "Traceback" not in shown.err


def test_a_good_branch_runs_and_is_listed_though_another_is_bad(folder, capsys):
    assert run(folder, graph(), "--set", "Larger.width=-1") == 2
    shown = capsys.readouterr()
    assert shown.out == f"Keep it (#2): {Path('out/kept/first_00001_.png')}\n"
    assert 'input "width" is -1' in shown.err


@pytest.fixture
def broken_node(folder, monkeypatch):
    class Broken:
        INPUT_TYPES = classmethod(lambda cls: {"required": {"image": ("IMAGE",)}})
        RETURN_TYPES = ()
        FUNCTION = "run"
        OUTPUT_NODE = True

        def run(self, image):
            raise RuntimeError("the wheel came off")

    monkeypatch.setitem(embedded().node_table, "Broken", Broken)
    return {"8": {"class_type": "Broken", "inputs": {"image": ["3", 0]}, "_meta": {"title": "Rickety"}}}


def test_a_node_that_breaks(folder, capsys, broken_node):
    prompt = api() | broken_node
    assert run(folder, prompt) == 1
    shown = capsys.readouterr()
    assert '"Rickety" (#8, Broken) failed: the wheel came off' in shown.err and "Traceback" not in shown.err
    assert 'raise RuntimeError("the wheel came off")' not in shown.err
    assert run(folder, prompt, "--traceback") == 1
    assert 'raise RuntimeError("the wheel came off")' in capsys.readouterr().err


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

SLOW_NODE = """
import sys, time
from trajectory.headless.cli import main
from trajectory.headless.runtime import embedded

class Slow:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"image": ("IMAGE",), "deaf": ("BOOLEAN", {"default": False})}})
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    def run(self, image, deaf):
        from comfy.utils import ProgressBar
        open("slow node runs", "w").close()
        bar = ProgressBar(2000)
        for step in range(2000):
            time.sleep(0.02)
            if not deaf:
                bar.update(1)
        return (image,)

embedded().node_table["Slow"] = Slow
sys.exit(main(sys.argv[1:]))
"""


def start_slow_run(folder, deaf):
    prompt = api(SaveImage={"images": ["1", 0]}) | {
        "4": {"class_type": "Slow", "inputs": {"image": ["3", 0], "deaf": deaf}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "late"}}}
    (folder / "slow.json").write_text(json.dumps(prompt))
    process = subprocess.Popen([sys.executable, "-c", SLOW_NODE, "run", "slow.json"], cwd=folder, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (folder / "slow node runs").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_stops_at_the_next_step_and_keeps_what_is_finished(folder):
    process = start_slow_run(folder, deaf=False)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == f"Keep it (#9): {Path('out/x_00001_.png')}\n"
    assert "Stopping at the next step" in err and "stopped. Finished: Picture" in err and "Traceback" not in err
    assert files(folder / "out") == ["x_00001_.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_second_ctrl_c_kills(folder):
    process = start_slow_run(folder, deaf=True)
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "Stopping" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT


# --- sentences -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kind", "message"), [
    ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 8 TiB."),
    ("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 8 TiB"),
    ("MemoryError", ""),
    ("RuntimeError", "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ("RuntimeError", "MPS backend out of memory"),
])
def test_want_of_memory(kind, message):
    prompt = {"1": {"class_type": "EmptyLatentImage", "inputs": {"width": 16384}}}
    failure = {"node_id": "1", "exception_type": kind, "exception_message": message}
    assert errors.describe_failure(failure, prompt) == (
        '"EmptyLatentImage" (#1) failed: the memory is not enough for it.\nLower width, height or batch_size.\n'
        "Its inputs: width = 16384")
    assert not errors.is_bad_input(failure)


def test_advice_fits_the_folder():
    prompt = {"1": {"class_type": "SaveImage", "inputs": {}}}
    missing = {"node_id": "1", "exception_type": "FileNotFoundError", "exception_message": "No such file: '/out/x'"}
    assert "host reads" not in errors.describe_failure(missing, prompt, Path("/out"))
    assert "host reads" in errors.describe_failure(missing, prompt, Path("/elsewhere"))
    outside = {"node_id": "1", "exception_type": "Exception",
               "exception_message": "Saving image outside the output folder is not allowed."}
    assert 'a name without ".."' in errors.describe_failure(outside, prompt) and errors.is_bad_input(outside)


def test_sentences_for_hosts_that_say_less():
    prompt = {"1": {"class_type": "X", "inputs": {}}}
    assert errors.describe_validation({"message": "Bad", "details": "thing"}, {}, prompt, {}) == ["Bad (thing)"]
    record = {"1": {"errors": [{"type": "exception_during_validation", "message": "It broke", "details": "why"}]}}
    assert errors.describe_validation(None, record, prompt, {}) == ['"X" (#1): It broke (why)']
