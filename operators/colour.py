"""Pictures of other channels: colourisation as a measurement."""

import torch

from .base import Operator, constant, working

MATRICES = {
    "grayscale": [[0.299, 0.587, 0.114]],
    "mean": [[1 / 3, 1 / 3, 1 / 3]],
    "drop red": [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "drop green": [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    "drop blue": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
}
"""{name: a row of weights of red, green and blue for each channel that is measured}; grayscale is BT.601's luma."""


class Colour(Operator):
    """Each channel of y is a weighted sum of the channels of x: y[k] = sum over c of matrix[k][c] x[c].

    matrix: [K, C], any K.
    """

    def __init__(self, matrix):
        matrix = constant(matrix, torch.float64)
        if matrix.ndim != 2 or not matrix.isfinite().all() or not matrix.any():
            raise ValueError(f"matrix is {matrix.tolist()}; write a row of finite weights for each channel to measure, "
                             "not all zero")
        self.matrix = matrix

    def check(self, shape):
        if shape[1] != self.matrix.shape[1]:
            raise ValueError(f"matrix has {self.matrix.shape[1]} weights a row, but there are {shape[1]} channels; "
                             "write one weight for each channel")

    @staticmethod
    def _mix(matrix, x):
        return torch.einsum("kc,bchw->bkhw", matrix.to(x.device, x.dtype), x)

    def forward(self, x):
        return self._mix(self.matrix, x)

    def adjoint(self, y, shape):
        return self._mix(self.matrix.T, y)

    def out_shape(self, shape):
        self.check(shape)
        return torch.Size((shape[0], len(self.matrix), *shape[2:]))

    def norm2(self, shape):
        return float(torch.linalg.matrix_norm(self.matrix, 2)) ** 2

    def pinv(self, y, shape):
        self.check(shape)
        return self._mix(torch.linalg.pinv(self.matrix), working(y))

    def preview(self, y):
        """What is no picture by itself is shown by the picture that it tells of."""
        if len(self.matrix) in (1, 3):
            return super().preview(y)
        return super().preview(self.pinv(y, (len(y), self.matrix.shape[1], *y.shape[2:])))
