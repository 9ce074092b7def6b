"""Crude inverses to start from: exact where nothing is lost, off by what is; samplers that start there; a preconditioner."""

import math
from dataclasses import replace

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, NumericalError, Operator, Problem, ShapeError, Streams
from invdiff.core.algebra import Matrix, dense
from invdiff.guidance import MMPS
from invdiff.operators import Blur, Exponential, Mask, Regrid
from invdiff.operators.pde import NavierStokes2D, kolmogorov
from invdiff.operators.regrid import Every
from invdiff.priors import StationaryGaussian
from invdiff.samplers import Euler, Guided

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64


def normal(*shape, seed=0):
    return Streams(seed, 2).normal(0, shape, dtype=F64)


def smooth(n, below, batch=2):
    """(batch, 1, n, n): random fields of the modes |k| < below along each axis."""
    return Regrid((1, 2 * below - 1, 2 * below - 1), n, boundary="periodic")(normal(1, 2 * below - 1, 2 * below - 1))[:batch]


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("shape", "n"), [((1, 6), 3), ((2, 6, 4), 2), ((1, 4, 2, 6), 2), ((1, 5, 3), 1)])
def test_every_takes_every_nth_point(shape, n):
    operator = Every(shape, n)
    x = normal(*shape)
    y = operator(x)
    assert y.shape[1:] == operator.out_shape == (shape[0], *(size // n for size in shape[1:]))
    for index in torch.cartesian_prod(*(torch.arange(size // n) for size in shape[1:])).reshape(-1, len(shape) - 1).tolist():
        assert torch.equal(y[(..., *index)], x[(..., *(n * i for i in index))])
    matrix = dense(operator)
    v = normal(*operator.out_shape, seed=1)
    torch.testing.assert_close(operator.adjoint(v).flatten(1), v.flatten(1) @ matrix, rtol=0, atol=0)
    assert torch.equal(matrix @ matrix.mT, torch.eye(len(matrix), dtype=F64))
    inverse = torch.linalg.inv(matrix.mT @ matrix + 0.3 * torch.eye(matrix.shape[1], dtype=F64))
    torch.testing.assert_close(operator.solve(x, 0.3).flatten(1), x.flatten(1) @ inverse, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("n", [2, 3])
def test_the_guess_of_every_is_exact_below_the_nyquist_mode_of_what_is_seen(n):
    """12 points seen of 12 n: modes |k| < 6 come back, the mode 6 does not."""
    x = smooth(12 * n, 6)
    operator = Every((1, 12 * n, 12 * n), n)
    torch.testing.assert_close(operator.guess(operator(x)), x, rtol=0, atol=1e-13)
    wave = torch.cos(12 * math.pi * torch.arange(12 * n, dtype=F64) / (12 * n)).expand(1, 1, 12 * n, -1)
    assert float(operator.guess(operator(wave)).abs().max()) < 1e-13


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Every((1, 6, 5), 2), ShapeError, r"divisible by 2, got \(1, 6, 5\)"),
        (lambda: Every((6,), 2), ShapeError, r"got \(6,\)"),
        (lambda: Every((1, 6), 0), ConfigError, "n >= 1, got 0"),
        (lambda: Exponential((1, 4)).guess(normal(1, 5)), (ShapeError, CapabilityError), "Exponential"),
        (lambda: Guided(steps=2, start="data"), ConfigError, '"prior" or "guess", got \'data\''),
        (lambda: NavierStokes2D((4, 4), 0.1).guess(normal(1, 4, 5)), ShapeError, "expected y of shape"),
        (lambda: NavierStokes2D((4, 4), 0.1).guess(normal(1, 4, 4) / 0.0), NumericalError, "start from the prior"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_an_operator_without_a_guess_says_so():
    class Square(Operator):
        def forward(self, x):
            return x.square()

    problem = Problem(Square((1, 4), (1, 4)), Gaussian(0.1), normal(1, 4)[:1])
    with pytest.raises(CapabilityError, match=r"Square has no guess\(y\)"):
        problem.operator.guess(problem.y)
    with pytest.raises(CapabilityError, match="start from the prior"):
        Guided(steps=2, start="guess")(problem, StationaryGaussian((1, 4)), n=1, seed=0)


def test_the_guess_of_a_linear_operator_is_its_pseudoinverse_and_of_a_chain_the_chain():
    blur = Blur(torch.tensor([[0.1, 0.2, 0.4]], dtype=F64), (1, 4, 6))
    y = normal(1, 4, 6)
    assert torch.equal(blur.guess(y), blur.pinv(y))
    mask = Mask(torch.ones(4, 6, dtype=torch.bool).tril(), (1, 4, 6))
    assert torch.equal((mask @ blur).guess(y), blur.pinv(mask.pinv(y)))
    flow, every = NavierStokes2D((8, 8), 0.01, time=0.1, steps=4), Every((1, 8, 8), 2)
    seen = normal(1, 4, 4)
    assert torch.equal((every @ flow).guess(seen), flow.guess(every.guess(seen)))


def test_the_guess_of_a_flow_undoes_it_but_for_what_viscosity_took_more_than_twofold():
    """Forced, 24 x 24: the scheme's own error, of order 4, with viscosity or without, as long as no mode was halved."""
    x, f = 2.0 * smooth(24, 5)[:1], kolmogorov((24, 24), 2, -3.0)

    def error(nu, time, steps, save=1):
        flow = NavierStokes2D((24, 24), nu, forcing=f, time=time, steps=steps, save=save)
        return relative(flow.guess(flow(x)), x)

    coarse, fine = error(0.0, 0.4, 16), error(0.0, 0.4, 32)
    assert fine < 1e-6 and coarse / fine > 12.0
    coarse, fine = error(1e-2, 0.4, 16), error(1e-2, 0.4, 32)
    assert fine < 1e-6 and coarse / fine > 12.0
    assert error(1.0, 0.4, 16) > 0.1
    assert error(1e-3, 0.4, 16, save=2) == pytest.approx(error(1e-3, 0.2, 8), rel=1e-9)  # from the first of the saved states


def test_the_guess_of_a_flow_takes_more_steps_where_the_state_is_fast():
    flow = NavierStokes2D((16, 16), 0.0, time=1.0, steps=2)
    y = 2.0 * smooth(16, 4)
    assert float(flow.courant(-y).max()) > 2.8
    fine = NavierStokes2D((16, 16), 0.0, time=1.0, steps=256)
    assert relative(-flow.guess(y), fine(-y)) < 2e-2


def test_a_guided_run_starts_at_the_guess():
    operator = Every((1, 8, 8), 2)
    prior = StationaryGaussian((1, 8, 8), length=2.0)
    problem = Problem.simulate(operator, Gaussian(0.05), normal(1, 8, 8)[0], seed=0)
    sampler = Guided(guidance=MMPS(cg_steps=20), integrator=Euler(), grid=Karras(sigma_max=3.0), steps=4)
    warm, streams = replace(sampler, start="guess"), Streams(1, 3)
    cold = sampler.init(problem, prior, streams).x
    torch.testing.assert_close(warm.init(problem, prior, streams).x, cold + operator.guess(problem.y), rtol=0, atol=1e-15)
    # what the guess adds is forgotten as the posterior narrows: Euler keeps its share of the last level
    assert relative(warm(problem, prior, n=3, seed=1).x, sampler(problem, prior, n=3, seed=1).x) < 0.5
    assert not torch.equal(warm(problem, prior, n=3, seed=1).x[0], warm(problem, prior, n=3, seed=1).x[1])


def test_a_reference_takes_the_tangent_of_an_operator_that_is_not_linear():
    """A Gaussian prior as its own reference: one step solves each linearisation; 33 measurements are two blocks of rows."""
    prior, sigma = StationaryGaussian((1, 9, 11), std=0.5, length=2.0, decay=2.0), torch.tensor([0.7, 0.2], dtype=F64)
    x, mask = normal(1, 9, 11), torch.zeros(9, 11, dtype=torch.bool)
    mask[::3] = True
    places = mask.flatten().nonzero()[:, 0]
    rows = torch.eye(99, dtype=F64)[places]
    assert len(rows) == 33
    operator = Matrix(rows, (1, 9, 11)) @ Exponential((1, 9, 11))
    noise = torch.linspace(0.02, 0.1, 33, dtype=F64)
    seen = Problem.simulate(operator, Gaussian(noise), 0.5 * normal(1, 9, 11, seed=3)[0], seed=0)
    wanted = MMPS(cg_steps=33, newton=2)(prior, seen)(x, sigma)
    found = MMPS(cg_steps=1, newton=2, reference="prior")(prior, seen)(x, sigma)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    assert relative(MMPS(cg_steps=1, newton=2)(prior, seen)(x, sigma), wanted) > 1e-2
