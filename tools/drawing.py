"""How the pictures of the help pages are drawn: charts, rows of pictures, and pictures painted by the examples."""

import functools

from PIL import Image, ImageDraw, ImageFont
from studio import Studio, example
from trajectory.charts import PAPER, line_chart, wrapped

WIDTH, HEIGHT = 800, 460
GAP, LETTERS = 8, 15


def chart(series, title, x_label, y_label, **options):
    """A line chart as a picture with a palette, which is saved as PNG."""
    drawn = line_chart(series, title, x_label, y_label, size=(WIDTH, HEIGHT), **options)
    return drawn.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def sheet(rows):
    """Rows of equally many (picture, label), the label printed below its picture, as an RGB picture."""
    edge = (WIDTH + GAP) // len(rows[0]) - GAP
    line, font = LETTERS + 4, ImageFont.load_default(LETTERS)
    rows = [[(picture, wrapped(label, LETTERS, edge - GAP)) for picture, label in row] for row in rows]
    heights = [edge + GAP + line * max(len(lines) for _, lines in row) for row in rows]
    paper = Image.new("RGB", (WIDTH, sum(heights)), PAPER)
    pen, top = ImageDraw.Draw(paper), 0
    for row, height in zip(rows, heights, strict=True):
        for column, (picture, lines) in enumerate(row):
            left = column * (edge + GAP)
            paper.paste(picture.resize((edge, edge), Image.Resampling.LANCZOS), (left, top))
            for i, text in enumerate(lines):
                pen.text((left + edge / 2, top + edge + 4 + line * i), text, "black", font, "ma")
        top += height
    return paper


@functools.cache
def studio():
    return Studio()


def painted(name, settings):
    """Pictures of the node "Picture" of an example with {"Node title.input": value} changed."""
    return studio().pictures(example(name), settings)["Picture"]
