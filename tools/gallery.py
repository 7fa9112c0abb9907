"""Paints the README's picture, web/images/landscapes.jpg, with the example 'Text to image': python tools/gallery.py"""

from pathlib import Path

from PIL import Image
from studio import Studio, example

ROOT = Path(__file__).resolve().parents[1]
EDGE, COLUMNS = 256, 4
PICTURES = [
    ("a blue day over green hills with a sun and clouds, two red houses on the left and a red balloon on the right", 4),
    ("a dusk over the sea with a moon and a white boat in the middle", 3),
    ("a black night over snow with a moon and three blue houses on the right", 2),
    ("a white noon over a desert with a sun and a green tree on the left", 4),
]


def main():
    studio, workflow = Studio(), example("Text to image")
    sheet = Image.new("RGB", (EDGE * COLUMNS, EDGE * -(-len(PICTURES) // COLUMNS)))
    for index, (caption, seed) in enumerate(PICTURES):
        [picture] = studio.pictures(workflow, {"Caption.text": caption, "Noise.noise_seed": seed})["Picture"]
        picture = picture.resize((EDGE, EDGE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % COLUMNS * EDGE, index // COLUMNS * EDGE))
    sheet.save(ROOT / "web" / "images" / "landscapes.jpg", quality=90)


if __name__ == "__main__":
    main()
