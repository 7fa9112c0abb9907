"""What every linear measurement operator must fulfil, as checks of one operator on small random pictures."""

import torch

DTYPES = {torch.float32: 1e-5, torch.float64: 1e-10}
"""{dtype: largest relative error of the adjoint}."""


def pictures(shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def like_measurement(operator, shape, seed=1, dtype=torch.float64):
    """Random numbers of the shape and kind of a measurement of pictures of this shape."""
    y = operator.A(torch.zeros(shape, dtype=dtype))
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)


def misfit(measurement, x):
    """RMS of the residual A x - y over all of y, a float."""
    return float(measurement.residual(x).abs().square().mean()) ** 0.5


def product(a, b):
    """Real inner product of two tensors."""
    return float(torch.vdot(a.flatten(), b.flatten()).real)


def adjoint_error(operator, shape, seed=0, dtype=torch.float64):
    """|<A x, y> - <x, At y>| / |<A x, y>| of a random y that is half A x, so that the quotient means something."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    seen = operator.A(x)
    other = like_measurement(operator, shape, seed + 1, dtype)
    y = seen + other * (seen.norm() / other.norm())
    return abs(product(seen, y) - product(x, operator.At(y, shape))) / max(abs(product(seen, y)), 1e-12)


def dense(operator, shape):
    """The matrix [n, pixels] of a linear operator on one item, complex numbers as two rows; float64."""
    columns = []
    for i in range(shape[1] * shape[2] * shape[3]):
        unit = torch.zeros((1, *shape[1:]), dtype=torch.float64)
        unit.view(-1)[i] = 1
        columns.append(numbers(operator.A(unit)))
    return torch.stack(columns, 1)


def numbers(y):
    return (torch.view_as_real(y) if y.is_complex() else y).flatten()


def check_adjoint(operator, shape, seed=0):
    for dtype, tolerance in DTYPES.items():
        error = adjoint_error(operator, shape, seed, dtype)
        assert error < tolerance, (error, shape, dtype)


def check_out_shape(operator, shape):
    assert operator.out_shape(shape) == operator.A(pictures(shape)).shape


def check_pinv(operator, shape, tolerance=1e-3):
    """A pinv(A x) = A x, and pinv is of the shape of x."""
    x = pictures(shape)
    y = operator.A(x)
    back = operator.pinv(y, shape)
    assert back.shape == x.shape and back.dtype == x.dtype
    assert (operator.A(back) - y).norm() <= tolerance * y.norm()


def check_prox(operator, shape, gammas=(0.1, 1.0, 10.0), tolerance=1e-5):
    """Against the dense solve of (1 + gamma At A) z = x + gamma At y."""
    matrix = dense(operator, shape)
    x, y = pictures(shape, 3), operator.A(pictures(shape, 4)) + 0.1 * like_measurement(operator, shape)
    for gamma in gammas:
        solved = operator.prox(x, y, gamma)
        for item in range(len(x)):
            right = x[item].flatten() + gamma * matrix.T @ numbers(y[item])
            exact = torch.linalg.solve(torch.eye(len(right), dtype=right.dtype) + gamma * matrix.T @ matrix, right)
            assert (solved[item].flatten() - exact).norm() < tolerance * exact.norm(), gamma


def check_norm2(operator, shape, tolerance=0.05):
    """Against the largest singular value of the matrix. Power iteration comes from below, and slowly."""
    exact = float(torch.linalg.matrix_norm(dense(operator, shape), 2)) ** 2
    assert (1 - tolerance) * exact <= operator.norm2(shape) <= exact * (1 + 1e-5)


def check_gradient(operator, shape):
    """Autograd's gradient of A against finite differences, float64."""
    x = pictures(shape).requires_grad_()
    assert torch.autograd.gradcheck(operator.A, (x,))


def check_items(operator, shape):
    """Item k of a batch is that item alone, for A and what follows from it."""
    x = pictures(shape, dtype=torch.float32)
    y = operator.A(x)
    for k in range(len(x)):
        one = (1, *shape[1:])
        assert torch.allclose(operator.A(x[k : k + 1]), y[k : k + 1], atol=1e-6)
        assert torch.allclose(operator.At(y[k : k + 1], one), operator.At(y, shape)[k : k + 1], atol=1e-5)
        assert torch.allclose(operator.pinv(y[k : k + 1], one), operator.pinv(y, shape)[k : k + 1], atol=1e-3)


def check_modes(operator, shape):
    """Half precision is computed in float32, and inference mode changes nothing."""
    x = pictures(shape, dtype=torch.float32)
    rounded = x.bfloat16()
    y = operator.A(rounded)
    assert y.dtype in (torch.float32, torch.complex64) and torch.equal(y, operator.A(rounded.float()))
    with torch.inference_mode():
        inside = operator.At(operator.A(x), shape)
    assert torch.allclose(inside, operator.At(operator.A(x), shape), atol=1e-6)


def check_linear(operator, shape):
    """Everything above, for a linear operator whose items are independent; on a small shape."""
    check_adjoint(operator, shape)
    check_out_shape(operator, shape)
    check_pinv(operator, shape)
    check_prox(operator, shape)
    check_norm2(operator, shape)
    check_gradient(operator, (1, shape[1], *shape[2:]))
    check_items(operator, shape)
    check_modes(operator, shape)
