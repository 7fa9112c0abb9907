"""Pictures in the forms that the editor asks for."""

from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def converted(path: Path, preview: str | None, channel: str) -> tuple[bytes, str]:
    """(encoded picture, its type) of a picture file.

    Args:
        preview: format and quality such as "webp;90" or "jpeg;80"; PNG where it is None.
        channel: "rgba", the colours alone ("rgb") or the alpha channel alone ("a").
    """
    form, _, quality = (preview or "png").partition(";")
    form = form if preview is None or form in ("webp", "jpeg") else "webp"
    with Image.open(path) as opened:
        if channel == "a":
            alpha = opened.getchannel("A") if "A" in opened.getbands() else Image.new("L", opened.size, 255)
            picture = Image.new("RGBA", opened.size)
            picture.putalpha(alpha)
            form = "png" if form == "jpeg" else form
        else:
            picture = opened.convert("RGB") if channel == "rgb" or form == "jpeg" else opened.copy()
    buffer = BytesIO()
    options = {} if form == "png" else {"quality": int(quality) if quality.isdigit() else 90}
    picture.save(buffer, format=form, **options)
    return buffer.getvalue(), f"image/{form}"


def with_alpha(source: Path, mask: bytes) -> bytes:
    """PNG of a picture, its text kept, with the alpha channel of a mask."""
    text = PngInfo()
    with Image.open(source) as opened:
        for key, value in getattr(opened, "text", {}).items():
            text.add_text(key, value)
        picture = opened.convert("RGBA")
    with Image.open(BytesIO(mask)) as opened:
        picture.putalpha(opened.convert("RGBA").getchannel("A").resize(picture.size))
    buffer = BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
