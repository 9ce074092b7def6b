"""Decoupled annealing: the draw of its data step, the laws of its levels, and where it is exact.

n independent draws are held to a closed form by z-scores below 5, which fail once in 10^4 runs of new seeds.
"""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import (
    CapabilityError,
    ConfigError,
    Denoiser,
    Gaussian,
    Karras,
    Matrix,
    NumericalError,
    Operator,
    Poisson,
    Problem,
    Streams,
    ViewAsComplex,
)
from invdiff.core.algebra import dense, flatten_real
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers.daps import DAPS, root
from invdiff.samplers.gibbs_steps import ExactDraw, LangevinDraw
from invdiff.validation.cases import coloured, complex_valued, composed, white
from invdiff.validation.laboratory import moments

F64 = torch.float64
EDM = Karras(0.02, 100.0)


def worst_of(draws, mean, cov):
    exact = GaussianPrior(mean, cov)
    return max(z_mean(draws, exact), z_cov(draws, exact))


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def worst(draws, case):
    found = moments(draws, case)
    return max(abs(found[key]) for key in ("z_mean", "z_cov", "z_spread"))


class Masked(Matrix):
    """Four rows, of which the second is not measured."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.measured = torch.tensor([True, False, True, True])

    def forward(self, x):
        return super().forward(x) * self.measured

    def adjoint(self, y):
        return super().adjoint(y * self.measured)


def conditional_problem(kind):
    operator, sigma = Matrix(randn(4, 6, seed=1)), Gaussian(0.4)
    if kind == "masked":
        operator = Masked(operator.matrix)
    elif kind == "uneven":
        sigma = Gaussian(torch.tensor([0.2, 0.5, 1.0, 0.3], dtype=F64))
    elif kind == "complex":
        operator = Matrix(torch.complex(randn(2, 3, seed=1), randn(2, 3, seed=2))) @ ViewAsComplex((3,))
    return Problem.simulate(operator, sigma, randn(6, seed=3), seed=4)


@pytest.mark.parametrize("spread", [0.3, 2.0])
@pytest.mark.parametrize("kind", ["real", "masked", "uneven", "complex"])
def test_the_exact_draw_has_the_law_of_its_gaussian(kind, spread):
    problem, n, centre = conditional_problem(kind), 4000, randn(6, seed=5)
    sigma = problem.noise.sigma
    drawn = ExactDraw()(problem, sigma, centre.expand(n, -1), spread, Streams(0, n), step=2, part=0.0)
    a = dense(problem.operator, F64, None)
    weight = 1.0 / flatten_real(sigma.expand(1, *problem.operator.out_shape), problem.operator.out_complex)[0] ** 2
    y = flatten_real(problem.y, problem.operator.out_complex)[0]
    precision = a.T @ (weight[:, None] * a) + torch.eye(6, dtype=F64) / spread**2
    mean = torch.linalg.solve(precision, a.T @ (weight * y) + centre / spread**2)
    cov = torch.linalg.inv(precision)
    assert worst_of(drawn, mean, cov) < 5 < worst_of(drawn, mean, 1.3 * cov)


def langevin_law(h, steps, spread=0.2):
    """Moments after `steps` from the centre, x <- x + h (b - Q x) + sqrt(2 h) z, by the recursion of matrices."""
    problem, centre = conditional_problem("real"), randn(6, seed=5)
    a, eye = problem.operator.matrix, torch.eye(6, dtype=F64)
    q, b = a.T @ a / 0.16 + eye / spread**2, a.T @ problem.y[0] / 0.16 + centre / spread**2
    mean, cov = centre, torch.zeros(6, 6, dtype=F64)
    for _ in range(steps):
        mean, cov = mean + h * (b - q @ mean), (eye - h * q) @ cov @ (eye - h * q) + 2.0 * h * eye
    return mean, cov, torch.linalg.solve(q, b), torch.linalg.inv(q)


def test_langevin_follows_its_recursion_and_its_closed_form():
    problem, n, h = conditional_problem("real"), 2000, 8e-3
    centre = randn(6, seed=5).expand(n, -1)
    for steps in (5, 40):
        drawn = LangevinDraw(steps, h)(problem, problem.noise.sigma, centre, 0.2, Streams(1, n), step=0, part=0.3)
        mean, cov, _, limit = langevin_law(h, steps)
        assert worst_of(drawn, mean, cov) < 5
        values, basis = torch.linalg.eigh(limit)
        closed = values * (1 - (1 - h / values) ** (2 * steps)) / (1 - 0.5 * h / values)
        torch.testing.assert_close((basis.T @ cov @ basis).diagonal(), closed, rtol=1e-10, atol=0)


def test_small_steps_of_langevin_agree_with_the_exact_draw():
    """h l / 2 is 2 % for the largest curvature, a third of a standard error, and (1 - h l)^K below 10^-2 for the smallest."""
    problem, n = conditional_problem("real"), 500
    centre = randn(6, seed=5).expand(n, -1)
    _, _, mean, cov = langevin_law(1.0, 1)
    low, high = (1.0 / torch.linalg.eigvalsh(cov)).aminmax()
    h = 0.04 / float(high)
    steps = math.ceil(5.0 / (h * float(low)))
    drawn = LangevinDraw(steps, h)(problem, problem.noise.sigma, centre, 0.2, Streams(2, n), step=0, part=0.0)
    assert worst_of(drawn, mean, cov) < 5
    coarse = LangevinDraw(50, 1.8 / float(high))(problem, problem.noise.sigma, centre, 0.2, Streams(2, n), step=0, part=0.0)
    assert worst_of(coarse, mean, cov) > 20
    # its step shrinks in the course of a run
    part, whole = (LangevinDraw(1, 0.1, last=0.01), LangevinDraw(1, 0.1 * (1 - 0.5 * 0.99)))
    one, other = (s(problem, problem.noise.sigma, centre, 0.2, Streams(2, n), step=0, part=0.5) for s in (part, whole))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_krylov_root_is_the_square_root():
    """Of a matrix with a zero eigenvalue, from a generic vector, an eigenvector, and one of its null space."""
    values, basis = torch.tensor([0.0, 1e-3, 0.5, 2.0, 9.0], dtype=F64), torch.linalg.qr(randn(5, 5)).Q
    v, exact = (basis * values) @ basis.T, (basis * values.sqrt()) @ basis.T
    z = torch.stack([randn(5, seed=1), 3.0 * basis[:, 3], basis[:, 0], randn(5, seed=2)])
    # an eigenvalue of zero is found as one of 1e-16
    torch.testing.assert_close(root(lambda t: t @ v, z, 5), z @ exact, rtol=0, atol=1e-7)
    torch.testing.assert_close(root(lambda t: t @ v, z, 9), z @ exact, rtol=0, atol=1e-7)
    torch.testing.assert_close(root(lambda t: 4.0 * t, z, 3), 2.0 * z, rtol=0, atol=1e-12)
    assert float((root(lambda t: t @ v, z[:1], 2) - z[:1] @ exact).norm()) > 1e-2
    torch.testing.assert_close(root(lambda t: t @ v, z[1:], 3)[2], root(lambda t: t @ v, z[3:], 3)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d", "m"), [(8, 4), (5, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_the_isotropic_rule_is_exact_for_a_white_prior(seed, d, m):
    """Three problems of noise 0.3 to 0.9 of |A|; the same draw with a covariance of noise is too wide."""
    case = white(seed, d, m)
    right = DAPS(grid=EDM, steps=15)(case.problem, case.prior, 1000, seed=1)
    assert worst(right.x, case) < 5 and right.kind == "posterior"
    assert worst(DAPS("noise", grid=EDM, steps=15)(case.problem, case.prior, 1000, seed=1).x, case) > 5
    scaled = GaussianPrior(torch.zeros(d, dtype=F64), 0.25 * torch.ones(d, dtype=F64))
    exact = scaled.posterior(case.problem)
    drawn = DAPS(data_std=0.5, grid=EDM, steps=15)(case.problem, scaled, 1000, seed=1).x
    assert worst_of(drawn, exact.mean, exact.cov) < 5
    drawn = DAPS(data_std=1.0, grid=EDM, steps=15)(case.problem, scaled, 1000, seed=1).x
    assert worst_of(drawn, exact.mean, exact.cov) > 5


@pytest.mark.parametrize("sigma", [0.03, 0.2, 1.0])
@pytest.mark.parametrize(
    ("make", "d", "m"), [(coloured, 8, 4), (coloured, 5, 2), (complex_valued, 8, 2), (composed, 8, 4), (composed, 5, 3)]
)
def test_with_the_jacobian_it_is_exact_for_every_gaussian_prior(make, d, m, sigma):
    case = make(1, d, m, sigma)
    found = DAPS("jacobian", krylov=d, grid=EDM, steps=8)(case.problem, case.prior, 1000, seed=1)
    assert worst(found.x, case) < 5
    # D, the root, A V A^T in every iteration, and V A^T at the end
    assert (found.network_calls, found.network_vjps) == (8, 8 * (2 * d + 1))


def test_the_other_rules_are_not():
    case = coloured(1)
    for wrong in (DAPS(grid=EDM, steps=40), DAPS("noise", ode_steps=10, grid=EDM, steps=40)):
        assert worst(wrong(case.problem, case.prior, 1000, seed=1).x, case) > 10
    few = DAPS("jacobian", krylov=1, grid=EDM, steps=8)
    assert worst(few(case.problem, case.prior, 1000, seed=1).x, case) > 20


def law(case, sampler):
    """Means and variances along the singular vectors for the prior N(0, I), by the recursion of the module's docstring."""
    u, s, vh = torch.linalg.svd(case.problem.operator.matrix)
    sigma_y = float(case.problem.noise.sigma) if sampler.tau is None else sampler.tau
    data = torch.zeros(vh.shape[0], dtype=F64)
    data[: len(s)] = (u.T @ case.problem.y[0]) * s / sigma_y**2
    curvature = torch.zeros_like(data)
    curvature[: len(s)] = s.square() / sigma_y**2
    low, k = case.prior.sigma_min, sampler.ode_steps
    grid = sampler.grid(sampler.steps, low, case.prior.sigma_max).tolist()
    mean, variance = torch.zeros_like(data), torch.full_like(data, grid[0] ** 2)
    for sigma, sigma_next in pairwise(grid):
        inner = [sigma * (low / sigma) ** (i / k) for i in range(k)] + [0.0]
        g = math.prod(t / r + (1.0 - t / r) / (1.0 + r * r) for r, t in pairwise(inner))
        spread = sigma**2 if sampler.covariance == "noise" else sigma**2 / (1.0 + sigma**2)
        p = curvature + 1.0 / spread
        mean = (data + g * mean / spread) / p
        variance = 1.0 / p + (g / (spread * p)) ** 2 * variance + sigma_next**2
    return vh, mean, variance


@pytest.mark.parametrize(
    "sampler",
    [
        DAPS("noise", ode_steps=5, grid=EDM, steps=40),
        DAPS("noise", ode_steps=1, grid=EDM, steps=40),
        DAPS("noise", ode_steps=3, tau=0.05, grid=EDM, steps=40),
        DAPS("isotropic", ode_steps=4, grid=EDM, steps=40),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_draws_follow_the_recursion(sampler, seed):
    case = white(seed)
    vh, mean, variance = law(case, sampler)
    drawn = sampler(case.problem, case.prior, 1000, seed=2).x @ vh.T
    assert worst_of(drawn, mean, variance.diag()) < 5


def test_the_papers_rule_has_its_known_bias():
    """The numbers of the docstring, from the recursion; the isotropic rule has none."""

    def bias(sampler):
        rows = []
        for case in map(white, range(3)):
            vh, mean, variance = law(case, sampler)
            ratio = variance / (vh @ case.exact.cov @ vh.T).diagonal()
            error = (mean - vh @ case.exact.mean).norm() / case.exact.mean.norm()
            rows.append(torch.stack([error, ratio[:4].mean(), ratio[4:].mean()]))
        return torch.stack(rows).mean(0).tolist()

    for steps, numbers in ((5, [0.17, 1.18, 1.41]), (10, [0.26, 1.28, 1.67]), (300, [0.37, 1.42, 2.12])):
        assert bias(DAPS("noise", ode_steps=steps, grid=EDM, steps=200)) == pytest.approx(numbers, abs=0.02)
    assert bias(DAPS(grid=EDM, steps=25)) == pytest.approx([0.0, 1.0, 1.0], abs=1e-3)


class Saturating(Operator):
    def __init__(self):
        super().__init__((1, 20, 20), (1, 20, 20))

    def forward(self, x):
        return torch.tanh(2.0 * x)


def test_langevin_takes_an_operator_that_is_not_linear():
    """Every pixel against quadrature of exp(-(y - tanh 2x)^2 / (2 sigma_y^2) - (x - c)^2 / (2 r^2))."""
    operator = Saturating()
    problem = Problem(operator, Gaussian(0.2), torch.full((1, 1, 20, 20), 0.6, dtype=F64))
    centre, spread = torch.full((1, 1, 20, 20), -0.1, dtype=F64), 0.5
    drawn = LangevinDraw(120, 2.5e-3)(problem, problem.noise.sigma, centre, spread, Streams(0), step=0, part=0.0)
    x = torch.linspace(-4.0, 4.0, 20_001, dtype=F64)
    density = (-((0.6 - (2.0 * x).tanh()) ** 2) / 0.08 - (x + 0.1) ** 2 / (2.0 * spread**2)).exp()
    density = density / density.sum()
    mean = float((density * x).sum())
    variance = float((density * (x - mean) ** 2).sum())
    assert abs(float(drawn.mean()) - mean) < 5.0 * (variance / 400) ** 0.5
    assert abs(float(drawn.var()) / variance - 1.0) < 5.0 * (4.0 / 400) ** 0.5
    whole = DAPS(draw=LangevinDraw(20, 2e-3), grid=Karras(0.05, 5.0), steps=4)
    prior = GaussianPrior(torch.zeros(1, 20, 20, dtype=F64), torch.ones(1, 20, 20, dtype=F64))
    assert float((operator(whole(problem, prior, 1, seed=0).x) - 0.6).mean().abs()) < 0.2


class Breaks(Denoiser):
    def forward(self, x, sigma):
        return x * torch.where(sigma < 1.0, torch.nan, 0.5)[:, None]


def test_a_value_that_is_not_finite_is_an_error():
    case = white(0)
    with pytest.raises(NumericalError, match="DAPS: values that are not finite"):
        DAPS(grid=EDM, steps=10)(case.problem, Breaks((8,), 0.01, 100.0), 2, seed=0)


def test_options_that_do_not_fit_are_errors():
    for make, words in (
        (lambda: DAPS("full"), "covariance to be one of noise, isotropic, jacobian"),
        (lambda: DAPS(data_std=0.0), "data_std > 0"),
        (lambda: DAPS(ode_steps=0), "ode_steps >= 1"),
        (lambda: DAPS(tau=0.0), "tau > 0 or none"),
        (lambda: DAPS("jacobian", ode_steps=2), "expected ode_steps = 1"),
        (lambda: DAPS("jacobian", draw=LangevinDraw()), r"draw = ExactDraw\(\)"),
        (lambda: LangevinDraw(h=0.0), "h > 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()
    problem = Problem(Saturating(), Gaussian(0.2), torch.zeros(1, 1, 20, 20))
    prior = GaussianPrior(torch.zeros(1, 20, 20), torch.ones(1, 20, 20))
    for rule in ("isotropic", "jacobian"):
        with pytest.raises(CapabilityError, match="DAPS needs adjoint"):
            DAPS(rule)(problem, prior, seed=0)
    with pytest.raises(CapabilityError, match=r"problem\.gaussian\(\)"):
        DAPS(draw=LangevinDraw())(Problem(Saturating(), Poisson(5.0), problem.y), prior, seed=0)
