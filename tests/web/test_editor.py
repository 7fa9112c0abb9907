"""A person can find, add, save, queue and read every node in ComfyUI's own editor, old and new, in both renderers."""

import json
from pathlib import Path

import pytest
from trajectory.headless import graph, widgets

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"), key=lambda path: path.stem)
FIRST_EXAMPLE = "Text to image"


def example(name: str) -> dict:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def object_info(server):
    return server.json("/api/object_info")


@pytest.fixture(scope="module")
def pack(object_info):
    """{node id: schema} of the pack's own nodes."""
    return {name: info for name, info in object_info.items() if info["python_module"].startswith("custom_nodes.")}


def expected_widgets(info: dict) -> list[str]:
    """Names of the inputs that the editor shows as widgets, in their order."""
    return [name for name, spec in widgets.declared(info) if widgets.is_widget(spec)]


def test_every_node_is_registered(editor, pack):
    found = editor.run(
        "ids => Object.fromEntries(ids.map(id => [id, window.LiteGraph.registered_node_types[id]?.title]))", list(pack)
    )
    assert found == {name: info["display_name"] for name, info in pack.items()}
    assert editor.page_faults() == []


def test_every_node_can_be_added_and_shows_its_widgets(editor, pack):
    script = """ids => {
        app.graph.clear()
        return Object.fromEntries(ids.map((id, index) => {
            const node = window.LiteGraph.createNode(id)
            node.pos = [40 + 360 * (index % 4), 60 + 420 * Math.floor(index / 4)]
            app.graph.add(node)
            return [id, {
                id: String(node.id),
                widgets: (node.widgets ?? []).map(widget => widget.name),
                inputs: node.inputs.filter(input => !input.widget).map(input => input.name),
                outputs: node.outputs.map(output => output.name),
            }]
        }))
    }"""
    found = editor.run(script, list(pack))
    for name, info in pack.items():
        shown = [widget for widget in found[name]["widgets"] if widget != "control_after_generate"]
        assert shown[: len(expected_widgets(info))] == expected_widgets(info), name
        declared = [i for i, _ in widgets.declared(info)]
        assert found[name]["inputs"] == [i for i in declared if i not in expected_widgets(info)], name
        assert found[name]["outputs"] == info["output_name"], name
    if editor.vue:
        for name, info in pack.items():
            drawn = editor.page.locator(f'[data-node-id="{found[name]["id"]}"]').first
            drawn.wait_for(state="visible", timeout=10_000)
            text = drawn.inner_text()
            assert info["display_name"] in text
            for widget in expected_widgets(info):
                assert widget in text, (name, widget)
    assert editor.page_faults() == []


def test_every_node_has_its_help_page(editor, pack):
    for name, info in pack.items():
        folder = info["python_module"].split(".")[1]
        status, body, _ = editor.server.ask(f"/extensions/{folder}/docs/{name}.md")
        assert status == 200 and body.startswith(b"# "), name


def test_a_help_page_shows_its_picture(editor):
    pictures = editor.help_pictures("TrajectoryDPMSolverSampler")
    assert pictures and all(picture["width"] > 100 for picture in pictures), pictures


def test_the_example_opens_from_the_template_list(editor):
    page = editor.page
    editor.run("() => { app.graph.clear(); app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    card = page.get_by_text(FIRST_EXAMPLE, exact=True).first
    if not card.is_visible():  # the older browser lists the core's templates first and the packs' by their name
        page.get_by_text("trajectory", exact=True).first.click(timeout=15_000)
    shown = page.get_by_text(EXAMPLES[0].stem, exact=True).first
    shown.wait_for(timeout=15_000)
    shown.hover()
    for _ in range(30):  # the list makes its cards as it is scrolled
        if card.is_visible():
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(100)
    card.click(timeout=15_000)
    wanted = sorted(node["type"] for node in example(FIRST_EXAMPLE)["nodes"])
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(wanted), timeout=20_000)
    nodes = editor.run("() => app.graph._nodes.map(node => ({type: node.type, faulty: !!node.has_errors}))")
    assert sorted(node["type"] for node in nodes) == wanted
    assert [node for node in nodes if node["faulty"]] == []
    assert page.get_by_text("Missing Node", exact=False).count() == 0
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_the_editor_and_the_command_line_read_a_graph_alike(editor, object_info, name):
    workflow = example(name)
    editor.load(workflow)
    theirs = editor.run("async () => (await app.graphToPrompt()).output")
    ours = graph.to_prompt(workflow, object_info)
    plain = [
        {i: {"class_type": n["class_type"], "inputs": n["inputs"]} for i, n in prompt.items()}
        for prompt in (ours, theirs)
    ]
    assert plain[0] == plain[1]


def test_saving_and_loading_keeps_values(editor):
    editor.load(example(FIRST_EXAMPLE))
    read = """() => app.graph._nodes
        .map(node => [node.id, (node.widgets ?? []).map(widget => [widget.name, widget.value])])
        .sort((a, b) => a[0] - b[0])"""
    changed = editor.run(
        """() => {
            for (const node of app.graph._nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name === 'steps') widget.value = 7
                    else if (widget.name === 'order') widget.value = 3
            return JSON.parse(JSON.stringify(app.graph.serialize()))
        }"""
    )
    before = editor.run(read)
    assert any(["order", 3] in values or ["steps", 7] in values for _, values in before)
    editor.load(changed)
    assert editor.run(read) == before


def test_queueing_delivers_a_picture(editor):
    editor.load(example(FIRST_EXAMPLE))
    script = """async () => {
        const save = app.graph._nodes.find(node => node.type === 'SaveImage')
        for (const node of app.graph._nodes)
            for (const widget of node.widgets ?? [])
                if (widget.name === 'steps') widget.value = 2
        const heard = []
        const names = ['execution_start', 'executing', 'progress_state', 'executed', 'execution_success']
        const note = event => heard.push(event.type)
        names.forEach(name => app.api.addEventListener(name, note))
        const done = new Promise((resolve, reject) => {
            app.api.addEventListener('execution_success', () => resolve(), {once: true})
            app.api.addEventListener('execution_error', event => reject(event.detail.exception_message), {once: true})
            setTimeout(() => reject('no end of the run; heard ' + heard), 120000)
        })
        await app.queuePrompt(0)
        await done
        for (let i = 0; i < 100 && !save.imgs?.length; i++) await new Promise(resolve => setTimeout(resolve, 100))
        names.forEach(name => app.api.removeEventListener(name, note))
        return {heard: [...new Set(heard)], output: app.nodeOutputs[save.id] ?? Object.values(app.nodeOutputs)[0],
                shown: save.imgs?.map(image => image.src) ?? []}
    }"""
    done = editor.run(script)
    assert {"execution_start", "executing", "progress_state", "executed", "execution_success"} <= set(done["heard"])
    picture = done["output"]["images"][0]
    assert (editor.server.out / picture["subfolder"] / picture["filename"]).is_file()
    if editor.vue:
        editor.page.locator(f'img[src*="{picture["filename"]}"]').first.wait_for(state="visible", timeout=10_000)
    else:
        assert picture["filename"] in done["shown"][0]
    assert editor.page_faults() == []
