"""How the pictures of the help pages are drawn: charts, rows of pictures, and pictures painted by the examples."""

import functools

from PIL import Image, ImageDraw, ImageFont
from studio import Studio, example
from trajectory.charts import PAPER, line_chart, wrapped

WIDTH, HEIGHT = 800, 460
GAP, LETTERS = 8, 15
STRIP, CUT = 640, 2  # width of a row of frames, and between two of them


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


def strips(rows):
    """Rows of (frames of a clip, label), equally many each, the label printed below the frames, as an RGB picture."""
    edge = (STRIP + CUT) // len(rows[0][0]) - CUT
    height = edge + LETTERS + 4 + 2 * GAP
    paper, font = Image.new("RGB", (STRIP, height * len(rows)), PAPER), ImageFont.load_default(LETTERS)
    pen = ImageDraw.Draw(paper)
    for row, (frames, label) in enumerate(rows):
        for column, frame in enumerate(frames):
            small = frame.resize((edge, edge), Image.Resampling.LANCZOS)
            paper.paste(small, (column * (edge + CUT), row * height))
        pen.text((0, row * height + edge + GAP / 2), label, "black", font, "la")
    return paper


def storyboard(frames, caption, edge=400, cells=3):
    """Eight frames and their caption in the last of 3 x 3 cells, as a square RGB picture of `edge` pixels."""
    side = (edge + CUT) // cells - CUT
    paper, font = Image.new("RGB", (edge, edge), PAPER), ImageFont.load_default(LETTERS)
    places = [(column * (side + CUT), row * (side + CUT)) for row in range(cells) for column in range(cells)]
    for frame, place in zip(frames, places, strict=False):
        paper.paste(frame.resize((side, side), Image.Resampling.LANCZOS), place)
    text = "\n".join(wrapped(caption, LETTERS, side - 2 * GAP))
    middle = tuple(place + side / 2 for place in places[-1])
    ImageDraw.Draw(paper).text(middle, text, "black", font, "mm", align="center")
    return paper


@functools.cache
def studio():
    return Studio()


def painted(name, settings):
    """Pictures of the node "Picture" of an example with {"Node title.input": value} changed."""
    return studio().pictures(example(name), settings)["Picture"]
