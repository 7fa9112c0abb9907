"""Read what `trajectory run` is given: a saved graph, an API prompt, or a picture that holds one."""

from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .strict_json import BadJSON, parse

PICTURES = (".png", ".webp", ".jpg", ".jpeg")


@dataclass
class Saved:
    """The contents of a file: `graph` as the editor saves it, `prompt` in API format; at least one is not None."""

    graph: dict | None = None
    prompt: dict | None = None


def read(path: str | Path) -> Saved:
    """Raises UserError where the file is missing, no JSON of finite numbers (with line and column), or no workflow."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the workflow file in it.")
    if path.suffix.lower() in PICTURES:
        return _from_picture(path)
    try:
        return recognise(parse(path.read_text(encoding="utf-8-sig")), str(path))
    except BadJSON as error:
        raise UserError(f"{path} {error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file, so no workflow (.json) either.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def recognise(data, source: str) -> Saved:
    """Tell a saved graph from an API prompt; `source` names the file in errors."""
    if isinstance(data, dict):
        if isinstance(data.get("nodes"), list):
            return Saved(graph=data)
        if isinstance(data.get("prompt"), dict) and is_prompt(data["prompt"]):
            info = (data.get("extra_data") or {}).get("extra_pnginfo") or {}
            return Saved(graph=info.get("workflow"), prompt=data["prompt"])
        if is_prompt(data):
            return Saved(prompt=data)
    raise UserError(f"{source} is JSON, but no workflow: it has neither a list of nodes (saved from the editor) "
                    'nor nodes with a "class_type" (API format).')


def is_prompt(data: dict) -> bool:
    """API format: {id: {"class_type": ..., "inputs": {...}}}. One node that has it is enough to tell the intent."""
    return bool(data) and any(isinstance(node, dict) and "class_type" in node for node in data.values())


def _from_picture(path: Path) -> Saved:
    """The graph in a saved picture: PNG text chunks, or the EXIF strings `workflow:...` and `prompt:...` of a WebP."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            texts = {k: v for k, v in picture.info.items() if isinstance(v, str)}
            exif = [v for v in picture.getexif().values() if isinstance(v, str)]
    except OSError:
        raise UserError(f"{path} is no picture that can be read.") from None
    for entry in exif:
        name, _, text = entry.partition(":")
        texts.setdefault(name.lower(), text)
    saved = Saved(*(_embedded(texts.get(name), path) for name in ("workflow", "prompt")))
    if saved.graph is None and saved.prompt is None:
        raise UserError(f"{path} holds no workflow: the picture was not saved by ComfyUI or Trajectory, "
                        "or another program removed its metadata.")
    return saved


def _embedded(text: str | None, path: Path) -> dict | None:
    """NaN becomes null, as in the editor: hosts write it themselves, for nodes that always run again."""
    if not text:
        return None
    try:
        return parse(text, constant=lambda _: None)
    except BadJSON as error:
        raise UserError(f"{path}: its workflow is damaged; it {error}.") from None
