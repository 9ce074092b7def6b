"""Moment matching for fields and for operators that are not linear: preconditioners, tangents, and where they lead."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Matrix, Operator, Problem, ViewAsComplex
from invdiff.core.counting import Counted, Counter
from invdiff.guidance import MMPS
from invdiff.operators.pde import Helmholtz, Poisson, random_sensors
from invdiff.operators.restoration import Identity, Mask
from invdiff.priors import Affine, GaussianPrior
from invdiff.priors.field import GaussianField, StationaryGaussian
from invdiff.priors.spectra import Matern

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
SHAPE = (1, 6, 5)
LEVELS = torch.tensor([1e-3, 0.1, 0.6, 3.0, 80.0], dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def covariance(field):
    size = math.prod(field.shape)
    return field.covariance(torch.eye(size, dtype=F64).reshape(size, *field.shape)).reshape(size, size)


def twin(field):
    """The same law as a dense Gaussian."""
    return GaussianPrior(torch.full(field.shape, field.mean, dtype=F64), covariance(field))


def field(boundary="neumann", decay=2.0, length=3.0, std=0.7):
    return GaussianField(SHAPE, Matern(decay), mean=0.3, std=std, length=length, boundary=boundary)


def measured(operator, sigma):
    return Problem.simulate(operator, Gaussian(sigma), randn(*SHAPE, seed=6), seed=1)


PROBLEMS = {
    "dense": lambda: measured(Matrix(randn(7, 30, seed=3), SHAPE), 0.3),
    "uneven noise": lambda: measured(Matrix(randn(4, 30, seed=3), SHAPE), torch.tensor([0.01, 0.2, 0.7, 1.5])),
    "sensors, precise": lambda: measured(random_sensors(SHAPE, 12) @ Poisson(SHAPE), 1e-6),
    "sensors, Helmholtz": lambda: measured(random_sensors(SHAPE, 5, seed=1) @ Helmholtz(SHAPE, 2.0), 1e-3),
    "every point": lambda: measured(Identity(SHAPE), 0.1),
    "mask": lambda: measured(Mask(randn(6, 5) > 0.3, SHAPE), 0.05),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("boundary", ["neumann", "periodic", ("dirichlet", "periodic")])
def test_one_step_is_exact_for_a_gaussian_field_as_its_own_reference(name, boundary):
    """E[x0 | x, y] by dense algebra, at five levels in one batch; the sensors' matrix has singular values over four decades."""
    prior, problem = field(boundary), PROBLEMS[name]()
    x = 0.3 + (0.7 + LEVELS[:, None, None, None]) * randn(5, *SHAPE, seed=8)
    exact = twin(prior).posterior(problem)(x, LEVELS)
    for reference in ("prior", prior):
        found = MMPS(cg_steps=1, reference=reference)(prior, problem)(x, LEVELS)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)
    assert float((MMPS(cg_steps=1)(prior, problem)(x, LEVELS) - exact).abs().max()) > 1e-3 or name == "every point"


def test_one_step_is_exact_for_stationary_fields_and_several_channels():
    shape = (2, 4, 4)
    prior = StationaryGaussian(shape, std=0.4, length=2.0, mean=-1.0)
    problem = Problem.simulate(Matrix(randn(9, 32, seed=3), shape), Gaussian(0.02), randn(*shape))
    x, sigma = randn(3, *shape, seed=2), torch.tensor([0.05, 0.4, 9.0], dtype=F64)
    exact = twin(prior).posterior(problem)(x, sigma)
    found = MMPS(cg_steps=1, reference="prior")(prior, problem)(x, sigma)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_another_spectrum_changes_the_speed_and_not_the_limit():
    prior, problem, sigma = field(), PROBLEMS["sensors, precise"](), torch.full((3,), 0.3, dtype=F64)
    x = 0.3 + randn(3, *SHAPE, seed=8)
    exact = twin(prior).posterior(problem)(x, sigma)

    def error(steps, reference):
        return float((MMPS(cg_steps=steps, reference=reference)(prior, problem)(x, sigma) - exact).norm() / exact.norm())

    near, far = field(decay=1.8, length=2.5, std=1.4), field("dirichlet", decay=1.0, length=1.0)
    for reference in (near, far):
        errors = [error(k, reference) for k in (1, 3, 14)]
        assert errors[0] > 1e-4 and errors[2] < 1e-6, errors
    assert error(8, near) < 0.5 * error(8, far) < 0.05 * error(8, None)


def test_a_reference_for_a_prior_that_is_no_field():
    """A trained network would be such a prior."""
    prior, problem = twin(field(decay=2.5)), PROBLEMS["dense"]()
    x = 0.3 + randn(5, *SHAPE, seed=8)
    exact = prior.posterior(problem)(x, LEVELS)
    errors = [float((MMPS(cg_steps=k, reference=field())(prior, problem)(x, LEVELS) - exact).abs().max()) for k in (1, 2, 4, 8)]
    assert all(later < earlier for earlier, later in pairwise(errors)) and errors[-1] < 1e-9
    assert errors[1] < 0.2 * float((MMPS(cg_steps=2)(prior, problem)(x, LEVELS) - exact).abs().max())


def test_without_measurements_the_prior_stays():
    prior, x = field(), randn(5, *SHAPE, seed=8)
    found = MMPS(cg_steps=1, reference="prior")(prior, Problem.unmeasured(SHAPE, F64))(x, LEVELS)
    torch.testing.assert_close(found, prior(x, LEVELS), rtol=0, atol=1e-14)


def test_single_precision_is_near_double():
    """The factors are double whatever the field is in."""
    problem, prior, x = PROBLEMS["dense"](), field(), randn(5, *SHAPE, seed=8)
    exact = twin(prior).posterior(problem)(x, LEVELS)
    single = Problem(problem.operator.float(), Gaussian(0.3), problem.y.float())
    found = MMPS(cg_steps=1, reference="prior")(field().float(), single)(x.float(), LEVELS.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.float(), rtol=0, atol=1e-4)


class Disguised(Operator):
    """A matrix that doesn't say that it is one."""

    def __init__(self, matrix, shape):
        super().__init__(shape, (len(matrix),))
        self.register_buffer("matrix", matrix)

    def forward(self, x):
        return x.flatten(1) @ self.matrix.T


@pytest.mark.parametrize("newton", [1, 3])
def test_a_linear_operator_in_disguise_gives_the_same(newton):
    prior, x = twin(field()), randn(5, *SHAPE, seed=8)
    problem = PROBLEMS["uneven noise"]()
    disguised = Problem(Disguised(problem.operator.matrix, SHAPE), problem.noise, problem.y)
    for steps, tolerance in ((2, 1e-10), (6, 1e-8)):
        wanted = MMPS(cg_steps=steps)(prior, problem)(x, LEVELS)
        found = MMPS(cg_steps=steps)(prior, disguised)(x, LEVELS)
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    found = MMPS(cg_steps=6, newton=newton)(prior, disguised)(x, LEVELS)
    torch.testing.assert_close(found, prior.posterior(problem)(x, LEVELS), rtol=0, atol=1e-8)


class Parabola(Operator):
    """x + x^2 / 2 of each value."""

    def __init__(self, shape=(1,)):
        super().__init__(shape, shape)

    def forward(self, x):
        return x + 0.5 * x.square()


def mode(d, v, y, variance):
    """Where (x - d)^2 / v + (x + x^2 / 2 - y)^2 / variance is least: a root of a cubic."""
    slope, misfit = np.array([1.0, 1.0]), np.array([0.5, 1.0, -y])
    roots = np.roots(np.polyadd(np.polymul(slope, misfit) / variance, np.array([1.0, -d]) / v))
    real = roots[abs(roots.imag) < 1e-9].real
    return min(real, key=lambda x: (x - d) ** 2 / v + (x + x * x / 2 - y) ** 2 / variance)


def scalar(levels=(0.2, 0.5, 1.0)):
    prior = GaussianPrior(torch.tensor([1.0], dtype=F64), torch.tensor([0.25], dtype=F64))
    problem = Problem(Parabola(), Gaussian(0.2), torch.tensor([[2.4]], dtype=F64))
    sigma = torch.tensor(levels, dtype=F64)
    return prior, problem, 1.0 + randn(len(sigma), 1, seed=3) * sigma[:, None], sigma


def test_repeated_tangents_converge_to_the_mode():
    prior, problem, x, sigma = scalar()
    d, v = prior(x, sigma), 0.25 * sigma**2 / (0.25 + sigma**2)
    wanted = torch.tensor([[mode(float(d[k, 0]), float(v[k]), 2.4, 0.04)] for k in range(3)], dtype=F64)
    errors = [float((MMPS(cg_steps=1, newton=k)(prior, problem)(x, sigma) - wanted).abs().max()) for k in (1, 2, 4, 40)]
    assert errors[0] > 1e-3 and errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1] and errors[3] < 1e-12, errors


def test_two_tangents_by_hand():
    """x_{k+1} = D + V J (y - A(x_k) - J (D - x_k)) / (V J^2 + sigma_y^2), J = 1 + x_k."""
    prior, problem, x, sigma = scalar()
    d, v = prior(x, sigma), (0.25 * sigma**2 / (0.25 + sigma**2))[:, None]
    at = d
    for k in (1, 2, 3):
        slope = 1.0 + at
        at = d + v * slope * (2.4 - at - 0.5 * at**2 - slope * (d - at)) / (v * slope**2 + 0.04)
        torch.testing.assert_close(MMPS(cg_steps=1, newton=k)(prior, problem)(x, sigma), at, rtol=1e-12, atol=0)


def test_the_fixed_point_of_a_field_solves_the_equation_of_the_mode():
    """(C^-1 + 1 / sigma^2) (x - D) = J^T (y - A x) / sigma_y^2, of 30 unknowns; V^-1 = C^-1 + 1 / sigma^2."""
    law = field()
    prior, sigma = twin(law), torch.tensor([0.4], dtype=F64)
    problem = Problem.simulate(Matrix(randn(7, 30, seed=3) / 5, SHAPE) @ Parabola(SHAPE), Gaussian(0.3), randn(*SHAPE, seed=6))
    x = randn(1, *SHAPE, seed=8)
    found = MMPS(cg_steps=9, newton=40)(prior, problem)(x, sigma)
    value, pull = problem.operator.vjp(found)
    right = pull(problem.y - value).flatten() / 0.09
    inverse = torch.linalg.inv(covariance(law)) + torch.eye(30, dtype=F64) / 0.16
    torch.testing.assert_close(inverse @ (found - prior(x, sigma)).flatten(), right, rtol=1e-6, atol=1e-6)


def test_more_tangents_only_from_a_level_on_and_item_by_item():
    prior, problem, x, sigma = scalar((0.2, 0.5, 1.0))
    once, thrice = (MMPS(cg_steps=1, newton=k)(prior, problem)(x, sigma) for k in (1, 3))
    assert float((once - thrice).abs().min()) > 1e-6
    for below, expected in (
        (2.0, thrice),
        (0.5, torch.cat([thrice[:2], once[2:]])),
        (0.3, torch.cat([thrice[:1], once[1:]])),
        (0.1, once),
    ):
        guided = MMPS(cg_steps=1, newton=3, newton_below=below)(prior, problem)
        torch.testing.assert_close(guided(x, sigma), expected, rtol=1e-13, atol=0)
        alone = torch.cat([guided(x[k : k + 1], sigma[k : k + 1]) for k in range(3)])
        torch.testing.assert_close(alone, expected, rtol=1e-13, atol=0)


class Counting(Parabola):
    def __init__(self):
        super().__init__()
        self.points = 0

    def linearize(self, x):
        self.points += 1
        return super().linearize(x)


def test_tangents_are_taken_only_as_often_as_asked():
    prior, problem, x, sigma = scalar((1.0, 1.0))
    for options, points in (({"newton": 3}, 3), ({"newton": 3, "newton_below": 0.5}, 1), ({}, 1)):
        operator = Counting()
        MMPS(cg_steps=2, **options)(prior, Problem(operator, problem.noise, problem.y))(x, sigma)
        assert operator.points == points


def test_the_field_inside_of_a_wrapper_is_the_reference():
    prior, problem, x = field(), PROBLEMS["dense"](), randn(5, *SHAPE, seed=8)
    found = MMPS(cg_steps=1, reference="prior")(Counted(prior, Counter()), problem)(x, LEVELS)
    # what changes the field is no wrapper: another scale is another covariance
    with pytest.raises(CapabilityError, match=r"expected as reference a Gaussian field on .*, got Affine"):
        MMPS(reference="prior")(Affine(prior, scale=0.5), problem)
    torch.testing.assert_close(found, twin(prior).posterior(problem)(x, LEVELS), rtol=0, atol=1e-9)


def test_what_no_preconditioner_can_be_made_of():
    prior, problem = field(), PROBLEMS["dense"]()
    other = GaussianField((1, 5, 6), Matern(2.0))
    is_complex = Matrix(torch.complex(randn(3, 4), randn(3, 4)), (1, 2, 2)) @ ViewAsComplex((1, 2, 2))
    small = GaussianField((2, 2, 2), Matern(2.0))
    large = Matrix(torch.zeros(4097, 30, dtype=F64), SHAPE)
    for reference, given, words in (
        (other, problem, r"a Gaussian field on \(1, 6, 5\), got GaussianField on \(1, 5, 6\)"),
        (twin(prior), problem, r"a Gaussian field on \(1, 6, 5\), got GaussianPrior"),
        ("prior", Problem(is_complex, Gaussian(0.1), torch.zeros(3, dtype=torch.complex128)), r"\(3,\) complex"),
        ("prior", Problem(large, Gaussian(0.1), torch.zeros(4097, dtype=F64)), r"at most 4096 .* Matrix has \(4097,\)"),
    ):
        guided = small if given.operator is is_complex else prior
        with pytest.raises(CapabilityError, match=words):
            MMPS(reference=reference)(guided, given)
    with pytest.raises(CapabilityError, match="got GaussianPrior"):
        MMPS(reference="prior")(twin(prior), problem)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"newton": 0}, "newton >= 1, got 5 and 0"),
        ({"newton_below": 0.0}, "newton_below > 0 or none, got 0.0"),
        ({"data_std": 1.0, "reference": "prior"}, "one preconditioner or none, got data_std and reference"),
    ],
)
def test_options_that_can_not_be(options, words):
    with pytest.raises(ConfigError, match=words):
        MMPS(**options)


def test_what_each_option_needs_of_the_operator():
    assert MMPS().needs == MMPS(newton=3).needs == {"vjp"}
    assert MMPS(reference="prior").needs == {"vjp"} and MMPS(data_std=1.0).needs == {"adjoint", "solve"}
