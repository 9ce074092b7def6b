"""Split Gibbs with a diffusion prior: the stationary law at a fixed coupling, its limit, and the schedules.

1,000 independent chains are held to a closed form by z-scores below 5, which fail once in 10^4 runs of new seeds.
"""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Operator, Poisson, Problem
from invdiff.core.algebra import dense, flatten_real
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers import Ancestral, Churn, Heun
from invdiff.samplers.gibbs_steps import ExactDraw, LangevinDraw
from invdiff.samplers.pnpdm import PnPDM
from invdiff.validation.cases import coloured, complex_valued, composed, white

F64 = torch.float64


def stationary(case, rho):
    """The posterior for noise of covariance sigma_y^2 I + rho^2 A A^T."""
    problem, prior = case.problem, case.prior
    a = dense(problem.operator, F64, None)
    noise = float(problem.noise.sigma) ** 2 * torch.eye(len(a), dtype=F64) + rho**2 * a @ a.T
    gain = torch.linalg.solve(a @ prior.cov @ a.T + noise, a @ prior.cov).T
    y = flatten_real(problem.y, problem.y.is_complex())[0]
    cov = prior.cov - gain @ a @ prior.cov
    return GaussianPrior(prior.mean + gain @ (y - a @ prior.mean), 0.5 * (cov + cov.T))


def worst(draws, exact):
    whitened = exact._rotate(draws - exact.mean) / exact.variances.sqrt()
    spread = float(whitened.var(0).mean() - 1.0) / math.sqrt(2.0 / whitened.numel())
    return max(z_mean(draws, exact), z_cov(draws, exact), abs(spread))


@pytest.mark.parametrize(
    ("case", "rho"),
    [
        pytest.param(case, rho, id=f"{case.name}, d = {case.prior.mean.numel()}, rho = {rho}")
        for case, rho in (
            (white(0), 0.5),
            (white(2, 5, 2), 0.3),
            (coloured(1, sigma=0.05), 1.0),
            (coloured(1, 5, 2, sigma=0.3), 0.5),
            (complex_valued(2, sigma=0.5), 0.5),
            (composed(1, sigma=0.3), 0.6),
        )
    ],
)
def test_chains_have_the_stationary_law_of_their_coupling(case, rho):
    """Starting at rho = 10, where a sweep forgets all; 20 levels of the reverse diffusion, each 0.8 of the one before."""
    prior = GaussianPrior(case.prior.mean, case.prior.cov, sigma_min=0.01)
    sampler = PnPDM(steps=25, first=10.0, last=rho, decay=0.5, inner=20)
    found = sampler(case.problem, prior, 1000, seed=1)
    assert worst(found.x, stationary(case, rho)) < 5 and found.kind == "posterior"
    assert worst(found.x, stationary(case, 3.0 * rho)) > 5
    assert found.info[-1]["sigma"] == rho


def test_as_the_coupling_vanishes_the_law_becomes_the_posterior():
    """Its error is of second order in rho, and 3 % of the variance at 0.1 in what the laboratory's problems observe."""
    ratios = {rho: [] for rho in (0.05, 0.1, 0.3)}
    for case in map(white, range(3)):
        vh = torch.linalg.svd(case.problem.operator.matrix).Vh
        rotated = lambda law, vh=vh: (vh @ law.cov @ vh.T).diagonal()  # noqa: E731
        for rho, rows in ratios.items():
            rows.append(rotated(stationary(case, rho)) / rotated(case.exact))
    observed, null = ({rho: float(torch.stack(rows)[:, part].mean()) for rho, rows in ratios.items()} for part in OBSERVED)
    assert (observed[0.1] - 1.0) / (observed[0.05] - 1.0) == pytest.approx(4.0, abs=0.15)
    assert (observed[0.1], observed[0.3]) == pytest.approx((1.03, 1.27), abs=0.01)
    assert tuple(null.values()) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)


OBSERVED = (slice(0, 4), slice(4, 8))


def test_the_reverse_diffusion_must_draw_and_must_not_lose_variance():
    """The ancestral rule loses some in every sweep, the ODE draws nothing: both are seen."""
    case = white(0)
    for integrator in (Ancestral(), Heun()):
        sampler = PnPDM(steps=30, first=10.0, last=0.3, decay=0.6, inner=5, integrator=integrator)
        assert worst(sampler(case.problem, case.prior, 1000, seed=1).x, stationary(case, 0.3)) > 10
    assert PnPDM().integrator == Churn()


def test_the_schedules_of_the_papers():
    case = white(0)
    decays = PnPDM(steps=8, first=4.0, last=0.5, decay=0.5, inner=2)
    holds = PnPDM(steps=8, first=4.0, last=0.5, decay=0.5, hold=3, inner=2)
    levels = [[i["sigma"] for i in s(case.problem, case.prior, 1, seed=0).info] for s in (decays, holds)]
    assert levels[0] == [4.0, 2.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert levels[1] == [4.0, 4.0, 4.0, 4.0, 2.0, 1.0, 0.5, 0.5]
    assert "coupling of 2," in PnPDM(steps=2, first=4.0, last=0.5, decay=0.5).caveats[0]


class Saturating(Operator):
    def __init__(self):
        super().__init__((1, 20, 20), (1, 20, 20))

    def forward(self, x):
        return torch.tanh(2.0 * x)


def test_an_operator_that_is_not_linear_by_langevin():
    """Every pixel against quadrature of p(x) times the integral of N(z; x, rho^2) p(y | z)."""
    problem = Problem(Saturating(), Gaussian(0.3), torch.full((1, 1, 20, 20), 0.6, dtype=F64))
    prior = GaussianPrior(torch.zeros(1, 20, 20, dtype=F64), torch.ones(1, 20, 20, dtype=F64))
    rho = 0.4
    sampler = PnPDM(steps=12, first=1.0, last=rho, decay=0.6, inner=6, draw=LangevinDraw(25, 4e-3))
    x = sampler(problem, prior, 1, seed=3).x
    grid = torch.linspace(-5.0, 5.0, 1001, dtype=F64)
    likelihood = (-((0.6 - (2.0 * grid).tanh()) ** 2) / (2.0 * 0.09)).exp()
    smooth = (-((grid[:, None] - grid) ** 2) / (2.0 * rho**2)).exp() @ likelihood
    density = smooth * (-0.5 * grid.square()).exp()
    density = density / density.sum()
    mean = float((density * grid).sum())
    variance = float((density * (grid - mean) ** 2).sum())
    assert abs(float(x.mean()) - mean) < 5.0 * (variance / 400) ** 0.5
    assert abs(float(x.var()) / variance - 1.0) < 5.0 * (4.0 / 400) ** 0.5
    assert abs(float(x.mean())) > 10.0 * (variance / 400) ** 0.5


def test_what_it_cannot_do_is_an_error():
    for make, words in (
        (lambda: PnPDM(decay=0.0), "0 < decay <= 1"),
        (lambda: PnPDM(hold=-1), "hold >= 0"),
        (lambda: PnPDM(first=0.1, last=0.3), "0 < last <= first"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()
    case = white(0)
    low = GaussianPrior(case.prior.mean, case.prior.cov, sigma_max=5.0)
    with pytest.raises(CapabilityError, match=r"rho goes from 10 to 0\.1"):
        PnPDM(steps=2)(case.problem, low, seed=0)
    with pytest.raises(CapabilityError, match=r"problem\.gaussian\(\)"):
        PnPDM(steps=2)(Problem(case.problem.operator, Poisson(5.0), case.problem.y.abs()), case.prior, seed=0)
    problem = Problem(Saturating(), Gaussian(0.3), torch.zeros(1, 1, 20, 20))
    prior = GaussianPrior(torch.zeros(1, 20, 20), torch.ones(1, 20, 20))
    with pytest.raises(CapabilityError, match="PnPDM needs adjoint, solve"):
        PnPDM(draw=ExactDraw())(problem, prior, seed=0)
