"""Saved graphs become the prompt that the editor would queue; broken ones are refused with a sentence that helps."""

import copy
import json
from pathlib import Path

import pytest
from trajectory.headless import graph, overrides, preflight, widgets, workflow_file
from trajectory.headless.errors import UnknownNodes, UserError

GRAPHS = Path(__file__).parent / "graphs"


def node(required=None, optional=None, output=(), **more):
    return {"input": {"required": required or {}, "optional": optional or {}}, "output": list(output), **more}


MODEL = {"model": ["MODEL", {}]}
SEED = ["INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}]
OBJECT_INFO = {
    "LoadModel": node({"name": [["small.safetensors", "large.safetensors"]]}, output=["MODEL", "CLIP"],
                      display_name="Load a model"),
    "Encode": node({"clip": ["CLIP"], "text": ["STRING", {"multiline": True, "dynamicPrompts": True}]},
                   output=["CONDITIONING"]),
    "Latent": node({"width": ["INT", {"default": 64, "min": 16, "max": 512, "step": 8}],
                    "height": ["INT", {"default": 64, "min": 16, "max": 512, "step": 8}]}, output=["LATENT"]),
    "Sample": node({"model": ["MODEL"], "seed": SEED, "steps": ["INT", {"default": 20, "min": 1, "max": 100}],
                    "cfg": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0}],
                    "method": ["COMBO", {"options": ["euler", "heun"]}],
                    "positive": ["CONDITIONING"], "latent": ["LATENT"]}, output=["LATENT"]),
    "Save": node({"latent": ["LATENT"], "filename_prefix": ["STRING", {"default": "x"}]}, output_node=True),
    "Shift": node({**MODEL, "amount": ["FLOAT", {"default": 1.0}]}, output=["MODEL"]),
    "ShowModel": node(MODEL, output_node=True),
    "Merge": node({"a": ["MODEL"]}, {"b": ["MODEL"]}, output=["MODEL"], output_node=True),
}


def load(name):
    return json.loads((GRAPHS / f"{name}.json").read_text())


def convert(workflow, object_info=OBJECT_INFO):
    return graph.to_prompt(load(workflow) if isinstance(workflow, str) else workflow, object_info)


def single(kind, values, inputs=(), object_info=None):
    """Inputs of the only node of a graph."""
    workflow = {"nodes": [{"id": 1, "type": kind, "inputs": list(inputs), "widgets_values": values}], "links": []}
    return convert(workflow, object_info or OBJECT_INFO)["1"]["inputs"]


def test_flat_graph_with_seed_control_converted_widget_primitive_and_note():
    assert convert("flat_04") == {
        "1": {"class_type": "LoadModel", "inputs": {"name": "small.safetensors"}, "_meta": {"title": "Load a model"}},
        "2": {"class_type": "Encode", "inputs": {"text": "a red house", "clip": ["1", 1]},
              "_meta": {"title": "Positive"}},
        "3": {"class_type": "Latent", "inputs": {"width": 64, "height": 128}, "_meta": {"title": "Latent"}},
        "4": {"class_type": "Sample", "_meta": {"title": "Sampler"},
              "inputs": {"seed": 42, "steps": 12, "cfg": 5.5, "method": "euler", "model": ["1", 0],
                         "positive": ["2", 0], "latent": ["3", 0]}},
        "5": {"class_type": "Save", "inputs": {"filename_prefix": "42_picture", "latent": ["4", 0]},
              "_meta": {"title": "Keep it"}},
    }


def test_version_1_with_links_as_objects_and_values_by_name():
    prompt = convert("flat_1")
    assert prompt["2"]["inputs"] == {"amount": 3.0, "model": ["1", 0]}
    assert prompt["3"]["inputs"] == {"model": ["2", 0]}


def test_nested_subgraphs_with_promoted_widgets():
    prompt = convert("nested_subgraphs")
    assert list(prompt) == ["1", "10:1", "10:2:1", "11"]
    assert prompt["10:1"]["inputs"] == {"amount": 1.5, "model": ["1", 0]}
    assert prompt["10:2:1"]["inputs"] == {"amount": 2.5, "model": ["10:1", 0]}
    assert prompt["10:2:1"]["_meta"]["title"] == "Deep"
    assert prompt["11"]["inputs"] == {"model": ["10:2:1", 0]}


def test_subgraph_without_host_values_keeps_those_inside():
    workflow = load("nested_subgraphs")
    del workflow["nodes"][1]["widgets_values"]
    prompt = convert(workflow)
    assert prompt["10:1"]["inputs"]["amount"] == 9.0
    assert prompt["10:2:1"]["inputs"]["amount"] == 7.0, "the inner subgraph node's own value"


def test_widget_promoted_by_proxy_list():
    workflow = load("nested_subgraphs")
    host = workflow["nodes"][1]
    host["properties"]["proxyWidgets"] = [["2", "depth"], ["-1", "first"], ["1", "$$preview"]]
    host["widgets_values"] = [4.5, 5.5, None]
    prompt = convert(workflow)
    assert (prompt["10:1"]["inputs"]["amount"], prompt["10:2:1"]["inputs"]["amount"]) == (5.5, 4.5)


@pytest.mark.parametrize(("mode", "expected"), [(4, {"model": ["1", 0]}), (2, None)])
def test_bypassed_and_muted_subgraph(mode, expected):
    workflow = load("nested_subgraphs")
    workflow["nodes"][1]["mode"] = mode
    prompt = convert(workflow)
    assert set(prompt) == ({"1", "11"} if expected else {"1"})
    assert prompt.get("11", {}).get("inputs") == expected


def test_linked_subgraph_input_wins_over_its_widget():
    workflow = load("nested_subgraphs")
    workflow["nodes"].append({"id": 12, "type": "Number", "order": 0, "widgets_values": [0.25],
                              "outputs": [{"name": "FLOAT", "type": "FLOAT", "links": [3]}]})
    workflow["links"].append([3, 12, 0, 10, 1, "FLOAT"])
    workflow["nodes"][1]["inputs"][1]["link"] = 3
    info = OBJECT_INFO | {"Number": node({"value": ["FLOAT", {}]}, output=["FLOAT"])}
    assert convert(workflow, info)["10:1"]["inputs"]["amount"] == ["12", 0]


def test_subgraph_that_contains_itself():
    workflow = load("nested_subgraphs")
    workflow["definitions"]["subgraphs"][0]["nodes"][1]["type"] = "outer"
    with pytest.raises(UserError, match="contains itself"):
        convert(workflow)


def test_mute_drops_what_needs_it_and_bypass_passes_through():
    prompt = convert("mute_and_bypass")
    assert set(prompt) == {"1", "3", "7"}
    assert prompt["3"]["inputs"] == {"model": ["1", 0]}, "past the bypassed node"
    assert prompt["7"]["inputs"] == {"a": ["1", 0]}, "an optional input only loses its link"


def test_reroute_get_and_set_nodes():
    prompt = convert("virtual_nodes")
    assert set(prompt) == {"1", "5"}
    assert prompt["5"]["inputs"] == {"model": ["1", 0]}


def test_get_node_without_set_node():
    workflow = load("virtual_nodes")
    workflow["nodes"][3]["widgets_values"] = ["another"]
    with pytest.raises(UserError, match='gets "another", but no Set node'):
        convert(workflow)


@pytest.mark.parametrize(("types", "slot", "wanted", "index"), [
    (["IMAGE", "MASK"], 1, "MASK", 1), (["MASK", "IMAGE"], 0, "IMAGE", 1), (["MODEL"], 0, "IMAGE", None),
    (["IMAGE,MASK"], 0, "MASK", 0), (["A", "B"], 1, "*", 1), ([], 0, "IMAGE", None),
])
def test_which_input_a_bypassed_node_passes(types, slot, wanted, index):
    saved = {"inputs": [{"type": t} for t in types], "outputs": [{"type": wanted}] * 2}
    assert graph._bypass(saved, slot, wanted) == index


# --- widget values ---------------------------------------------------------------------------------------------------

def test_missing_values_get_their_defaults():
    assert single("Sample", [7, "fixed"]) == {"seed": 7, "steps": 20, "cfg": 8.0, "method": "euler"}


def test_seed_without_its_control_entry():
    assert single("Sample", [7, 30, 2.0, "heun"]) == {"seed": 7, "steps": 30, "cfg": 2.0, "method": "heun"}


def test_values_by_name_win_over_their_positions():
    workflow = {"nodes": [{"id": 1, "type": "Shift", "widgets_values": [1.0], "widgets_values_named": {"amount": 2.0}}]}
    assert convert(workflow)["1"]["inputs"] == {"amount": 2.0}


def test_control_entries_of_a_combo_and_upload_button():
    info = {"Pick": node({"image": [["a.png"], {"image_upload": True, "control_after_generate": True}]},
                         {"mode": ["STRING", {"default": ""}]})}
    assert single("Pick", ["a.png", "increment", "", "image", "soft"], object_info=info) == {
        "image": "a.png", "mode": "soft"}
    assert single("Pick", ["a.png", "soft"], object_info=info) == {"image": "a.png", "mode": "soft"}


def test_force_input_is_no_widget_but_old_files_hold_its_value():
    info = {"Mix": node({"amount": ["FLOAT", {"forceInput": True}], "steps": ["INT", {"default": 3}]})}
    assert single("Mix", [5], object_info=info) == {"steps": 5}
    assert single("Mix", [0.5, 5], object_info=info) == {"amount": 0.5, "steps": 5}


def test_a_list_value_is_wrapped_and_other_inputs_are_no_widgets():
    info = {"Points": node({"model": ["MODEL"], "curve": ["CURVE", {}], "count": ["INT", {"default": 1}]})}
    assert single("Points", [[[0, 0], [1, 1]], 4], object_info=info) == {
        "curve": {"__value__": [[0, 0], [1, 1]]}, "count": 4}


def test_dynamic_combo_brings_its_inputs():
    options = [{"key": "none", "inputs": {}}, {"key": "blur", "inputs": {"required": {"radius": ["INT", {}]}}}]
    info = {"Filter": node({"kind": ["COMFY_DYNAMICCOMBO_V3", {"options": options}], "name": ["STRING", {}]})}
    assert single("Filter", ["blur", 5, "x"], object_info=info) == {"kind": "blur", "kind.radius": 5, "name": "x"}
    assert single("Filter", ["none", "x"], object_info=info) == {"kind": "none", "name": "x"}


def test_schema_order_comes_from_input_order():
    info = {"Pair": node({"b": ["INT", {}], "a": ["INT", {}]}) | {"input_order": {"required": ["a", "b"]}}}
    assert single("Pair", [1, 2], object_info=info) == {"a": 1, "b": 2}


def test_dynamic_prompts_draw_repeatably_and_drop_comments():
    texts = {widgets.resolve_choices("a {red|blue} {house|{tall|small} tree} /* no */sky // end", str(k))
             for k in range(40)}
    assert texts == {f"a {c} {t} sky " for c in ("red", "blue") for t in ("house", "tall tree", "small tree")}
    assert widgets.resolve_choices("{a|b|c|d}", "k") == widgets.resolve_choices("{a|b|c|d}", "k")
    assert widgets.resolve_choices(r"keep \{this|that\}", "k") == r"keep \{this|that\}"


# --- errors ----------------------------------------------------------------------------------------------------------

def test_unknown_nodes_are_listed_with_their_packs():
    workflow = {"nodes": [
        {"id": 1, "type": "FancyUpscale", "title": "Upscale", "properties": {"cnr_id": "fancy-pack", "ver": "1.2"}},
        {"id": 2, "type": "Other", "properties": {"aux_id": "somebody/other-pack"}},
        {"id": 3, "type": "Sampel"}, {"id": 4, "type": "Core", "properties": {"cnr_id": "comfy-core"}},
        {"id": 5, "type": "workflow>mine"}, {"id": 6, "type": "8c2e3f0a-1111-2222-3333-444455556666"},
        {"id": 7, "type": "Muted", "mode": 2}]}
    with pytest.raises(UnknownNodes) as caught:
        convert(workflow)
    text = str(caught.value)
    assert '"Upscale" (#1, FancyUpscale): from the pack fancy-pack 1.2' in text
    assert "https://github.com/somebody/other-pack" in text
    assert "known types like it: Sample" in text
    assert "a node of ComfyUI itself" in text
    assert "convert it to a subgraph" in text and "definition is not in the file" in text
    assert "Muted" not in text


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda w: w["links"].pop(0), '"Sampler" (#4): input "model" has link 1, which is not in the file'),
    (lambda w: w["links"][0].__setitem__(1, 99), '"Sampler" (#4): input "model" is linked to node #99'),
    (lambda w: w["links"].append([9]), "a link that cannot be read"),
    (lambda w: w["nodes"].append({"type": "Sample"}), "a node without an id"),
])
def test_broken_links(change, sentence):
    workflow = load("flat_04")
    change(workflow)
    with pytest.raises(UserError) as caught:
        convert(workflow)
    assert sentence in str(caught.value)


def test_reroutes_in_a_circle():
    workflow = load("virtual_nodes")
    workflow["nodes"][1]["inputs"][0]["link"] = 9
    workflow["links"].append([9, 2, 0, 2, 0, "*"])
    with pytest.raises(UserError, match="circle"):
        convert(workflow)


def prompt_of(name="flat_04"):
    return convert(name)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda p: p["4"]["inputs"].update(model=["77", 0]), 'input "model" is linked to node #77, which is not in'),
    (lambda p: p["4"]["inputs"].update(model=["1", 5]), "output 5 of"),
    (lambda p: p["2"]["inputs"].update(clip=["4", 0]), "circle"),
    (lambda p: p["3"]["inputs"].update(width=70), "not a multiple of the latent grid's 8. Take 64 or 72."),
])
def test_prompt_checks(change, sentence):
    prompt = prompt_of()
    change(prompt)
    with pytest.raises(UserError) as caught:
        preflight.check_values(prompt, OBJECT_INFO)
    assert sentence in str(caught.value)


def test_a_good_prompt_passes_and_needs_all_its_nodes():
    prompt = prompt_of()
    preflight.check_types(prompt, OBJECT_INFO)
    preflight.check_values(prompt, OBJECT_INFO)
    assert preflight.needed(prompt, OBJECT_INFO) == {"1", "2", "3", "4", "5"}


@pytest.mark.parametrize("bad", [{"1": {"inputs": {}}}, {"1": {"class_type": "Save"}}])
def test_prompt_of_the_wrong_shape(bad):
    with pytest.raises(UserError, match="API format"):
        preflight.check_types(bad, OBJECT_INFO)


# --- overrides -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("target", "text", "ident", "name", "value"), [
    ("Sampler.steps", "30", "4", "steps", 30), ("sampler.cfg", "4", "4", "cfg", 4.0),
    ("#4.seed", "0x10", "4", "seed", 16),
    ("Sample.method", "heun", "4", "method", "heun"), ("Positive.text", "a = b", "2", "text", "a = b"),
    ("Sample.steps", "1e1", "4", "steps", 10), ("Sampler.model", "[1, 2]", "4", "model", {"__value__": [1, 2]}),
])
def test_override(target, text, ident, name, value):
    prompt = prompt_of()
    assert overrides.apply_overrides(prompt, [(target, text)], OBJECT_INFO) == [(ident, name)]
    assert prompt[ident]["inputs"][name] == value


@pytest.mark.parametrize(("target", "text", "sentence"), [
    ("Sampler.step", "3", 'has no input "step". Did you mean "steps"'),
    ("Smapler.steps", "3", 'no node is called "Smapler". Did you mean "Sampler"'),
    ("Sampler.steps", "many", "is a whole number, not 'many'"), ("Sampler.steps", "2.5", "is a whole number"),
    ("Sampler.cfg", "nan", "is a number"),
])
def test_override_that_fits_nothing(target, text, sentence):
    with pytest.raises(UserError) as caught:
        overrides.apply_overrides(prompt_of(), [(target, text)], OBJECT_INFO)
    assert sentence in str(caught.value)


def test_override_of_a_title_that_two_nodes_have():
    prompt = prompt_of()
    prompt["3"]["_meta"]["title"] = "Sampler"
    with pytest.raises(UserError, match='"#3.steps", "#4.steps"'):
        overrides.apply_overrides(prompt, [("Sampler.steps", "3")], OBJECT_INFO)


def test_assignment_needs_a_dot_and_an_equals_sign():
    assert overrides.parse_assignment("A title.text=x=y") == ("A title.text", "x=y")
    for text in ("Sampler.steps", "steps=3"):
        with pytest.raises(UserError, match="Node title.input=value"):
            overrides.parse_assignment(text)


def test_set_seed():
    prompt = prompt_of()
    assert overrides.set_seed(prompt, 7, OBJECT_INFO) == [("4", "seed")]
    assert prompt["4"]["inputs"]["seed"] == 7
    with pytest.raises(UserError, match="must be between 0 and"):
        overrides.set_seed(prompt, -1, OBJECT_INFO)
    prompt["4"]["inputs"]["seed"] = ["1", 0]
    with pytest.raises(UserError, match="no node of this graph has a seed"):
        overrides.set_seed(prompt, 7, OBJECT_INFO)


@pytest.mark.parametrize(("name", "key", "where"), [
    ("flat_04", ("4", "seed"), lambda w: w["nodes"][3]["widgets_values"][0]),
    ("flat_04", ("4", "steps"), lambda w: w["nodes"][5]["widgets_values"][0]),
    ("flat_1", ("2", "amount"), lambda w: w["nodes"][1]["widgets_values"]["amount"]),
    ("nested_subgraphs", ("10:2:1", "amount"), lambda w: w["nodes"][1]["widgets_values"][1]),
])
def test_an_override_can_be_written_back_into_the_workflow(name, key, where):
    original = load(name)
    before = copy.deepcopy(original)
    conversion = graph.convert(original, OBJECT_INFO)
    for place in conversion.places[key]:
        place.write(99)
    assert where(conversion.workflow) == 99
    assert original == before, "the caller's graph stays as it is"
    assert graph.to_prompt(conversion.workflow, OBJECT_INFO)[key[0]]["inputs"][key[1]] == 99


def test_a_subgraph_that_is_used_twice_has_no_place_for_the_values_of_one():
    workflow = load("nested_subgraphs")
    del workflow["nodes"][1]["widgets_values"]
    workflow["nodes"].append(dict(workflow["nodes"][1], id=20))
    assert graph.convert(workflow, OBJECT_INFO).places["10:1", "amount"] == ()


# --- files -----------------------------------------------------------------------------------------------------------

def test_files_are_recognised(tmp_path):
    prompt = prompt_of()
    for name, content, has_graph in (("my graph.json", load("flat_04"), True), ("api.json", prompt, False),
                                     ("body.json", {"prompt": prompt, "client_id": "x"}, False)):
        (tmp_path / name).write_text(json.dumps(content))
        saved = workflow_file.read(tmp_path / name)
        assert (saved.graph is not None, saved.prompt is not None) == (has_graph, not has_graph)


@pytest.mark.parametrize(("name", "content", "sentence"), [
    ("a.json", '{"nodes": [,]}', "no JSON: Expecting value in line 1, column 12"),
    ("b.json", '{"hello": 1}', "no workflow"), ("c.json", "[]", "no workflow"),
    ("d.json", "\x00\udcff", "no text file"), ("e.png", "not a picture", "no picture that can be read"),
])
def test_files_that_are_no_workflow(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=sentence):
        workflow_file.read(tmp_path / name)


def test_graph_in_a_picture(tmp_path):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("prompt", json.dumps(prompt_of()))
    chunks.add_text("workflow", json.dumps(load("flat_04")))
    Image.new("RGB", (4, 4)).save(tmp_path / "full.png", pnginfo=chunks)
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(prompt_of())
    Image.new("RGB", (4, 4)).save(tmp_path / "moving.webp", exif=exif)

    assert workflow_file.read(tmp_path / "full.png") == workflow_file.Saved(load("flat_04"), prompt_of())
    assert workflow_file.read(tmp_path / "moving.webp") == workflow_file.Saved(None, prompt_of())
    with pytest.raises(UserError, match="holds no workflow"):
        workflow_file.read(tmp_path / "bare.png")
