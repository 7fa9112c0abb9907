"""Large pictures through a network in tiles: any size, overlaps blended, nothing lost at the borders."""

import math
from functools import cached_property

import torch

from ..operators.borders import mirrored

RAMPS = {
    "feather": lambda place: 0.5 - 0.5 * torch.cos(math.pi * (2 * place - 0.5).clamp(0, 1)),
    "crop": lambda place: (place >= 0.5).double(),
}
"""{blend: weight of a tile at a place in 0..1 from its edge into an overlap}. The two tiles' weights sum to 1; the
outer quarter, where a network sees least beyond the edge, does not count."""


def starts_of(length, tile, overlap, grain):
    """Where tiles begin along a side: evenly spread, at multiples of grain, overlapping by `overlap` or more."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [(length - tile) * number // (count - 1) // grain * grain for number in range(count)]


class TilePlan:
    """How a picture of one size is cut and put together again.

    Args:
        height, width: of the picture, in pixels.
        tile: the longest side of a tile; 0 is the whole picture at once. Rounded down to a multiple of align.
        overlap: least overlap of two tiles, rounded up to a multiple of grain; at most half a tile counts, else a
            picture would have tiles without end.
        align: what the network needs the sides to be multiples of.
        scale: how much larger the network's output is; a Fraction where it is smaller, of which the denominator
            divides align.
        blend: "feather" mixes the middle of overlaps by raised cosines; "crop" cuts them in the middle, which for a
            convolutional network whose receptive radius fits in half an overlap equals the untiled run.
        grain: what tiles begin at multiples of, by default align: less where sides are bound to larger blocks than
            places are.
    """

    def __init__(self, height, width, tile, overlap, align=1, scale=1, blend="feather", grain=None):
        grain = grain or align
        self.height, self.width, self.align, self.scale = height, width, align, scale
        self.padded = tuple(math.ceil(side / align) * align for side in (height, width))
        tile = max(align, tile // align * align) if tile else max(self.padded)
        overlap = min(max(math.ceil(overlap / grain) * grain, 0), tile // 2 // grain * grain)
        self.tile = tile
        self._starts = [starts_of(side, tile, overlap, grain) for side in self.padded]
        self._sides = [min(tile, side) for side in self.padded]
        self._ramp = RAMPS[blend]

    @property
    def boxes(self):
        """[(top, left, height, width)] of the tiles, in pixels of the padded picture."""
        rows, columns = self._starts
        return [(top, left, *self._sides) for top in rows for left in columns]

    @property
    def cores(self):
        """For each box, the part of it that no other tile counts: (top, bottom, left, right) as shares of its sides."""
        rows, columns = (self._own(starts, side, self.align) for starts, side in
                         zip(self._starts, self._sides, strict=True))
        return [row + column for row in rows for column in columns]

    @staticmethod
    def _own(starts, side, align):
        middles = [(before + side + after) // 2 // align * align for before, after in zip(starts, starts[1:],
                                                                                         strict=False)]
        edges = zip([starts[0], *middles], [*middles, starts[-1] + side], strict=True)
        return [((low - start) / side, (high - start) / side) for start, (low, high) in zip(starts, edges, strict=True)]

    def pad(self, x):
        """x [..., H, W] with its sides padded to `padded`: mirrored on the right and below."""
        margin = [target - side for target, side in zip(self.padded, x.shape[-2:], strict=True)]
        return mirrored(x, margin, twice=False)[..., margin[0]:, margin[1]:] if any(margin) else x

    def cut(self, x, box):
        """The part of x [..., H, W] in a box. x has the padded sides times any factor: a picture, latents, noise."""
        rows, columns = (slice(start * side // whole, (start + length) * side // whole) for start, length, side, whole
                         in zip(box[:2], box[2:], x.shape[-2:], self.padded, strict=True))
        return x[..., rows, columns]

    @cached_property
    def _weights(self):
        """Along each axis, {start: weights of the tile that starts there}, at the output's size."""
        return [self._axis(starts, side) for starts, side in zip(self._starts, self._sides, strict=True)]

    def _axis(self, starts, side):
        weights = {}
        for number, start in enumerate(starts):
            line = torch.ones(int(side * self.scale), dtype=torch.float64)
            if number:
                count = int((starts[number - 1] + side - start) * self.scale)
                line[:count] *= self._rise(count)
            if number + 1 < len(starts):
                count = int((start + side - starts[number + 1]) * self.scale)
                line[len(line) - count:] *= 1 - self._rise(count)
            weights[start] = line.float()
        return weights

    def _rise(self, count):
        return self._ramp((torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1))

    def run(self, function, *padded):
        """function over the tiles of the tensors `padded`, put together: [B, C', scale H, scale W] in float32.

        function(*crops) -> [B, C', scale h, scale w] on any device; the sum is kept on that of padded[0].
        """
        if len(self.boxes) == 1:
            return self._cropped(function(*padded).to(padded[0].device, torch.float32))
        total = norm = None
        for box in self.boxes:
            tile = function(*(self.cut(x, box) for x in padded)).to(padded[0].device, torch.float32)
            weight = (self._weights[0][box[0]][:, None] * self._weights[1][box[1]]).to(tile.device)
            if total is None:
                sides = [int(side * self.scale) for side in self.padded]
                total, norm = tile.new_zeros((*tile.shape[:-2], *sides)), tile.new_zeros(sides)
            place = tuple(slice(int(start * self.scale), int((start + length) * self.scale))
                          for start, length in zip(box[:2], box[2:], strict=True))
            total[(..., *place)] += weight * tile
            norm[place] += weight
        return self._cropped(total / norm)

    def _cropped(self, x):
        return x[..., : math.ceil(self.height * self.scale), : math.ceil(self.width * self.scale)]
