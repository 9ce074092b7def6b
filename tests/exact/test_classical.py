"""The baselines against dense algebra, closed forms of total variation, and the conditions of optimality."""

import math

import pytest
import torch

from invdiff.core import (
    CapabilityError,
    ConfigError,
    Gaussian,
    LinearOperator,
    NumericalError,
    Operator,
    Poisson,
    Problem,
    Streams,
    ViewAsComplex,
    dot,
)
from invdiff.samplers.classical import Adjoint, Tikhonov, TotalVariation, _differences, _differences_adjoint

F64, C128 = torch.float64, torch.complex128


class Dense(LinearOperator):
    """A matrix on flattened unknowns; None is the identity."""

    def __init__(self, shape, matrix=None, dtype=F64):
        size = (math.prod(shape) if matrix is None else len(matrix),)
        complex_ = dtype.is_complex
        super().__init__(shape, shape if matrix is None else size, in_complex=complex_, out_complex=complex_)
        self.matrix = matrix

    def forward(self, x):
        return x if self.matrix is None else x.flatten(1) @ self.matrix.T

    def adjoint(self, y):
        return y if self.matrix is None else (y @ self.matrix.conj()).reshape(-1, *self.in_shape)


def normal(shape, step=0, dtype=F64):
    return Streams(0).normal(step, shape, dtype=dtype)[0]


def denoising(y, sigma=1.0):
    shape = tuple(y.shape)
    return Problem(Dense(shape, dtype=y.dtype), Gaussian(sigma), y)


def test_adjoint_is_the_adjoint_or_filtered_back_projection():
    matrix = normal((7, 5))
    problem = Problem(Dense((5,), matrix), Gaussian(0.1), normal((7,), 1))
    x, facts = Adjoint()(problem)
    assert torch.allclose(x[0], matrix.T @ problem.y[0])
    assert facts["formula"] == "adjoint"
    assert facts["chi2"] == pytest.approx(problem.chi2(x).item())
    assert facts["operator_calls"] == 1

    class Scanner(Dense):
        def fbp(self, y):
            return 7.0 * self.adjoint(y)

    x, facts = Adjoint()(Problem(Scanner((5,), matrix), Gaussian(0.1), problem.y))
    assert torch.allclose(x[0], 7.0 * matrix.T @ problem.y[0])
    assert facts["formula"] == "fbp"


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("rows", [4, 9])
def test_tikhonov_is_dense_algebra(dtype, rows):
    """Also with a noise level for each value, which enters as a weight with unit root mean square."""
    matrix, y = normal((rows, 6), dtype=dtype), normal((rows,), 1, dtype)
    sigma = 0.1 + Streams(0).uniform(2, (rows,), dtype=F64)[0]
    for level in (torch.tensor(0.3, dtype=F64), sigma):
        x, facts = Tikhonov(strength=0.7)(Problem(Dense((6,), matrix, dtype), Gaussian(level), y))
        w = (1 / level.expand(rows)) ** 2 / ((1 / level) ** 2).mean()
        a = matrix.mH @ (w[:, None] * matrix) + 0.7 * torch.eye(6, dtype=dtype)
        assert torch.allclose(x[0], torch.linalg.solve(a, matrix.mH @ (w * y)), rtol=1e-8, atol=1e-10)
        assert facts["chi2"] == pytest.approx(
            ((matrix @ x[0] - y).abs() / level).square().sum().item() / y.real.numel() / (1 + dtype.is_complex)
        )


def test_tikhonov_finds_the_strength_of_chi2_one():
    for step in range(5):
        matrix, truth = normal((12, 20), step), normal((20,), step + 10)
        problem = Problem.simulate(Dense((20,), matrix), Gaussian(0.2), truth, seed=step)
        x, facts = Tikhonov()(problem)
        assert problem.chi2(x).item() == pytest.approx(1.0, abs=1.01e-3)
        assert torch.allclose(x, Tikhonov(strength=facts["strength"])(problem)[0], rtol=1e-7)
        assert facts["iterations"] < 15


@pytest.mark.parametrize("shape", [(9,), (2, 9), (2, 5, 7), (1, 4, 1, 6), (3, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_differences_and_their_adjoint(shape, dtype):
    x = normal((1, *shape), dtype=dtype)
    dx = _differences(x)
    g = normal(dx.shape, 1, dtype)
    assert dot(dx[None], g[None]).item() == pytest.approx(dot(x, _differences_adjoint(g)).item(), rel=1e-12)
    assert len(dx) == max(len(shape) - 1, 1)
    # the norm that the step sizes rely on
    assert dx.norm() ** 2 <= 4 * len(dx) * x.norm() ** 2
    assert _differences(torch.ones_like(x)).abs().max() == 0


def test_total_variation_of_a_step_is_known():
    """A step of n and m values moves by strength / n and strength / m; a strength beyond the jump leaves the mean."""
    y = torch.cat([torch.full((12,), 1.0), torch.full((20,), 3.0)]).to(F64)
    x, facts = TotalVariation(strength=2.4, tol=1e-8)(denoising(y))
    expected = torch.cat([torch.full((12,), 1.0 + 2.4 / 12), torch.full((20,), 3.0 - 2.4 / 20)]).to(F64)
    assert torch.allclose(x[0], expected, atol=1e-6)
    assert facts["chi2"] == pytest.approx((2.4**2 / 12 + 2.4**2 / 20) / 32, rel=1e-6)
    x, _ = TotalVariation(strength=100.0, tol=1e-8)(denoising(y))
    assert torch.allclose(x[0], y.mean().expand(32), atol=1e-6)


def test_total_variation_without_negative_values_is_known():
    """[-1] * 10 + [1] * 10: the lower half is held at 0, the upper comes down by strength / 10."""
    y = torch.cat([torch.full((10,), -1.0), torch.full((10,), 1.0)]).to(F64)
    x, _ = TotalVariation(strength=2.0, nonnegative=True, tol=1e-8)(denoising(y))
    assert x.min() >= 0
    assert torch.allclose(x[0], torch.cat([torch.zeros(10), torch.full((10,), 0.8)]).to(F64), atol=1e-6)


def test_total_variation_of_a_disk():
    """A disk of radius R loses 2 strength / R, the rest gains perimeter * strength / area.

    The discrete perimeter of forward differences is up to 4 % too long for a disk of 20 pixels with a soft edge.
    """
    n, radius, strength = 64, 20.0, 1.5
    axis = torch.arange(n, dtype=F64) - (n - 1) / 2
    distance = (axis[:, None] ** 2 + axis**2).sqrt()
    disk = (radius + 0.5 - distance).clamp(0, 1)
    x, _ = TotalVariation(strength=strength)(denoising(disk[None]))
    inside, outside = x[0, 0][distance < radius - 4], x[0, 0][distance > radius + 4]
    area = math.pi * radius**2
    assert (1 - inside.mean()).item() == pytest.approx(2 * strength / radius, rel=0.04)
    assert outside.mean().item() == pytest.approx(2 * math.pi * radius * strength / (n * n - area), rel=0.04)


def test_total_variation_is_optimal_under_any_matrix():
    """In one dimension the certificate is explicit: A^T (y - A x) = strength D^T p, |p| <= 1, p = sign(D x) at jumps."""
    matrix = normal((20, 30)) / 5
    truth = torch.cat([torch.zeros(10), torch.full((12,), 2.0), torch.full((8,), 1.0)]).to(F64)
    problem = Problem.simulate(Dense((30,), matrix), Gaussian(0.1), truth)
    x, _ = TotalVariation(strength=0.3, tol=1e-9, max_iter=20000)(problem)
    p = -(matrix.T @ (problem.y[0] - matrix @ x[0])).cumsum(0) / 0.3
    jumps = x[0].diff()
    assert p[:-1].abs().max() <= 1 + 1e-5
    assert abs(p[-1]) < 1e-5
    active = jumps.abs() > 1e-4
    assert active.any()
    assert torch.allclose(p[:-1][active], jumps[active].sign(), atol=1e-4)


def test_total_variation_finds_the_strength_of_chi2_one():
    """And a run with that strength gives the same image."""
    truth = torch.zeros(1, 24, 24, dtype=F64)
    truth[:, 6:18, 8:20] = 1.0
    problem = Problem.simulate(Dense((1, 24, 24), normal((300, 576)) / 24), Gaussian(0.02), truth)
    x, facts = TotalVariation(tol=1e-5)(problem)
    assert problem.chi2(x).item() == pytest.approx(1.0, abs=1e-3)
    again, _ = TotalVariation(strength=facts["strength"], tol=1e-5)(problem)
    assert (again - x).abs().max() < 1e-3
    assert (x[0] - truth).norm() < 0.3 * (Tikhonov()(problem)[0][0] - truth).norm()


def test_total_variation_of_a_complex_image():
    """A global phase passes through, and the real view of the same problem has the same answer: the edges are shared."""
    y = normal((1, 8, 9), dtype=C128)
    method = TotalVariation(strength=0.4, tol=1e-8, max_iter=5000)
    x, _ = method(denoising(y))
    turned, _ = method(denoising(y * 1j))
    assert torch.allclose(turned, 1j * x, atol=1e-6)
    view = ViewAsComplex((1, 8, 9))
    real, _ = method(denoising(y).through(view))
    assert torch.allclose(view(real), x, atol=1e-6)


def test_weights_of_uneven_noise_reach_chi2_one():
    truth = torch.cat([torch.zeros(20), torch.ones(20)]).to(F64)
    sigma = torch.cat([torch.full((30,), 0.1), torch.full((10,), 0.4)]).to(F64)
    problem = Problem.simulate(Dense((40,)), Gaussian(sigma), truth, seed=3)
    for method in (Tikhonov(), TotalVariation(tol=1e-6)):
        x, _ = method(problem)
        assert problem.chi2(x).item() == pytest.approx(1.0, abs=2e-3)


def test_counts_are_reconstructed_by_their_gaussian():
    truth = 2.0 + torch.cat([torch.zeros(50), torch.ones(50)]).to(F64)
    problem = Problem.simulate(Dense((100,)), Poisson(gain=100.0, background=5.0), truth)
    # an estimate with chi^2 = 1 is about as far from the data as the truth is
    noise = (100.0 * truth + 5.0).sum().sqrt().item() / 100.0
    for method in (Adjoint(), Tikhonov(), TotalVariation()):
        x, facts = method(problem)
        assert (x[0] - truth).norm() < 2.5 * noise
        assert facts["chi2"] == pytest.approx(problem.gaussian().chi2(x).item(), rel=1e-6)


def test_noise_beyond_the_signal_gives_the_flattest_image():
    y = 0.1 * normal((30,))
    for method, expected in ((Tikhonov(), torch.zeros(30, dtype=F64)), (TotalVariation(tol=1e-8), y.mean().expand(30))):
        x, facts = method(denoising(y, sigma=1.0))
        assert torch.allclose(x[0], expected, atol=0.12)
        assert facts["chi2"] <= 1
        assert facts["strength"] == math.inf


@pytest.mark.parametrize("method", [Tikhonov(), TotalVariation()])
def test_a_misfit_out_of_reach_is_an_error(method):
    """Two values that contradict each other by far more than sigma."""
    problem = Problem(Dense((1,), torch.ones(2, 1, dtype=F64)), Gaussian(0.1), torch.tensor([0.0, 2.0], dtype=F64))
    with pytest.raises(NumericalError, match=r"no strength reaches chi\^2 = 1 \(it is 1\d\d .*sigma is too small"):
        method(problem)


@pytest.mark.parametrize("method", [Adjoint(), Tikhonov(), TotalVariation()])
def test_nothing_measured_gives_zero(method):
    x, _ = method(Problem.unmeasured((1, 4, 4)))
    assert x.shape == (1, 1, 4, 4)
    assert not x.any()


@pytest.mark.parametrize("method", [Adjoint(), Tikhonov(), TotalVariation()])
def test_a_nonlinear_operator_is_refused(method):
    class Square(Operator):
        def forward(self, x):
            return x * x

    with pytest.raises(CapabilityError, match="needs a linear operator; Square is not"):
        method(Problem(Square((3,), (3,)), Gaussian(1.0), torch.ones(3)))


def test_options_are_checked():
    problem = denoising(normal((3,)))
    for method in (Tikhonov(strength=0.0), TotalVariation(strength=-1.0), TotalVariation(max_iter=0)):
        with pytest.raises(ConfigError, match="expected"):
            method(problem)
    with pytest.raises(ConfigError, match="nonnegative=True needs a real unknown"):
        TotalVariation(nonnegative=True)(denoising(normal((3,), dtype=C128)))


def test_methods_are_deterministic_and_count_their_work():
    problem = Problem.simulate(Dense((1, 6, 6), normal((20, 36))), Gaussian(0.1), normal((1, 6, 6), 1))
    for method in (Tikhonov(), TotalVariation()):
        (a, facts), (b, _) = method(problem), method(problem)
        assert torch.equal(a, b)
        assert facts["seconds"] > 0
        assert facts["operator_calls"] >= facts["iterations"]
