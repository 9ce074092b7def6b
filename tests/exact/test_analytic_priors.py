"""Closed-form priors: denoiser and posterior against dense linear algebra, and draws against their moments."""

import pytest
import torch

from invdiff.core import CapabilityError, Gaussian, Matrix, Poisson, Problem, Streams, ViewAsComplex
from invdiff.priors import GaussianMixture, GaussianPrior, StationaryGaussian

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def spd():
    a = randn(6, 6)
    return a @ a.T + 0.1 * torch.eye(6, dtype=F64)


def test_gaussian_denoiser_is_the_wiener_filter(spd):
    prior, x, sigma = GaussianPrior(randn(6, seed=1), spd), randn(4, 6, seed=2), torch.tensor([0.1, 0.5, 2.0, 30.0], dtype=F64)
    for k in range(4):
        gain = spd @ torch.linalg.inv(spd + sigma[k] ** 2 * torch.eye(6, dtype=F64))
        expected = prior.mean + gain @ (x[k] - prior.mean)
        torch.testing.assert_close(prior(x, sigma)[k], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_gaussian_posterior_is_that_of_the_normal_equations(spd, kind):
    if kind == "real":
        operator, matrix = Matrix(randn(3, 6, seed=3)), randn(3, 6, seed=3)
    else:
        half = torch.complex(randn(2, 3, seed=3), randn(2, 3, seed=4))
        operator, matrix = Matrix(half) @ ViewAsComplex((3,)), torch.cat([half, 1j * half], dim=1)
    prior = GaussianPrior(randn(6, seed=1), spd)
    problem = Problem.simulate(operator, Gaussian(0.3), randn(6, seed=5), seed=7)
    posterior = prior.posterior(problem)
    precision = torch.linalg.inv(spd) + (matrix.mH @ matrix).real / 0.09
    mean = torch.linalg.solve(precision, torch.linalg.solve(spd, prior.mean) + (matrix.mH @ problem.y[0]).real / 0.09)
    torch.testing.assert_close(posterior.cov, torch.linalg.inv(precision), rtol=0, atol=1e-11)
    torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=1e-11)


def test_gaussian_draws_have_the_moments(spd):
    prior = GaussianPrior(randn(6, seed=1), spd)
    x, n = prior.sample(Streams(0, 20000)), 20000
    z = (x.mean(0) - prior.mean) / (spd.diagonal() / n).sqrt()
    spread = ((spd**2 + torch.outer(spd.diagonal(), spd.diagonal())) / n).sqrt()
    assert float(z.abs().max()) < 5
    assert float(((torch.cov(x.T) - spd) / spread).abs().max()) < 5


def test_mixture_denoiser_is_tweedie_of_its_density(spd):
    covs = torch.stack([spd, torch.eye(6, dtype=F64)])
    weights, means = torch.tensor([0.3, 0.7], dtype=F64), randn(2, 6, seed=1)
    smoothed = GaussianMixture(weights, means, covs + 0.49 * torch.eye(6, dtype=F64))
    x = randn(5, 6, seed=2).requires_grad_()
    (score,) = torch.autograd.grad(smoothed.log_prob(x).sum(), x)
    expected = x + 0.49 * score
    prior = GaussianMixture(weights, means, covs)
    torch.testing.assert_close(prior(x, torch.full((5,), 0.7, dtype=F64)), expected, rtol=0, atol=1e-12)


def test_mixture_posterior_is_prior_times_likelihood(spd):
    prior = GaussianMixture(torch.tensor([0.3, 0.7], dtype=F64), randn(2, 6, seed=1), torch.stack([spd, 0.5 * spd]))
    problem = Problem.simulate(Matrix(randn(3, 6, seed=3), (6,)), Gaussian(0.3), randn(6, seed=5))
    x = randn(7, 6, seed=6)
    evidence = prior.log_prob(x) + problem.log_likelihood(x) - prior.posterior(problem).log_prob(x)
    torch.testing.assert_close(evidence, evidence[:1].expand(7), rtol=0, atol=1e-9)


def test_mixture_draws_fall_into_the_components():
    means = torch.tensor([[-50.0, 0.0], [0.0, 50.0], [50.0, 0.0]], dtype=F64)
    x = GaussianMixture(torch.tensor([1.0, 2.0, 7.0], dtype=F64), means).sample(Streams(0, 10000))
    share = torch.cdist(x, means).argmin(1).bincount(minlength=3) / 10000
    expected = torch.tensor([0.1, 0.2, 0.7])
    assert float(((share - expected) / (expected * (1 - expected) / 10000).sqrt()).abs().max()) < 5


def test_stationary_field_is_the_gaussian_with_its_covariance():
    field = StationaryGaussian((1, 6, 8), mean=0.5, std=0.2, length=2.0)
    columns = field.covariance(torch.eye(48, dtype=F64).reshape(48, 1, 6, 8)).reshape(48, 48)
    twin = GaussianPrior(torch.full((1, 6, 8), 0.5, dtype=F64), columns)
    x, sigma = field.sample(Streams(0, 3), F64), torch.tensor([0.05, 0.3, 2.0], dtype=F64)
    torch.testing.assert_close(field(x, sigma), twin(x, sigma), rtol=0, atol=1e-12)
    torch.testing.assert_close(columns.diagonal(), torch.full((48,), 0.04, dtype=F64))
    problem = Problem.simulate(Matrix(randn(10, 48, seed=1), (1, 6, 8)), Gaussian(0.1), x[0])
    mean, draws = field.posterior_draws(problem, 4000, seed=3, tol=1e-10)
    exact = twin.posterior(problem)
    torch.testing.assert_close(mean, exact.mean, rtol=0, atol=1e-9)
    assert float(((draws.mean(0) - exact.mean) / exact.std).abs().max()) < 5 / 4000**0.5
    assert float((draws.std(0) / exact.std - 1).abs().max()) < 5 / (2 * 4000) ** 0.5


def test_posterior_of_another_likelihood_is_refused(spd):
    prior, operator = GaussianPrior(randn(6), spd), Matrix(randn(3, 6).abs(), (6,))
    problem = Problem.simulate(operator, Poisson(5.0), torch.ones(6, dtype=F64))
    with pytest.raises(CapabilityError, match="Poisson"):
        prior.posterior(problem)


def test_densities_at_every_noise_level():
    """log p_sigma of a Gaussian and of a mixture of one is torch's own, and its gradient is Tweedie's score."""
    cov = torch.tensor([[1.0, 0.6, 0.1], [0.6, 2.0, 0.3], [0.1, 0.3, 0.5]], dtype=torch.float64)
    mean, x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), Streams(0, 4).normal(0, (3,), dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 1.0, 5.0], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    want = torch.distributions.MultivariateNormal(mean, cov + sigma[:, None, None] ** 2 * eye).log_prob(x)
    for prior in (GaussianPrior(mean, cov), GaussianMixture(torch.ones(1, dtype=torch.float64), mean[None], cov)):
        torch.testing.assert_close(prior.log_prob(x, sigma), want, rtol=1e-12, atol=1e-12)
        still = torch.distributions.MultivariateNormal(mean, cov).log_prob(x)
        torch.testing.assert_close(prior.log_prob(x), still, rtol=1e-12, atol=1e-12)
        score = torch.func.grad(lambda u, p=prior: p.log_prob(u, sigma).sum())(x)
        torch.testing.assert_close(x + sigma[:, None] ** 2 * score, prior(x, sigma), rtol=1e-10, atol=1e-10)


def test_moments_of_a_mixture():
    """Two points at -1 and 3 with weights 1/4 and 3/4 and unit covariance: mean 2, variance 1 + 3."""
    prior = GaussianMixture(torch.tensor([0.25, 0.75]).double(), torch.tensor([[-1.0], [3.0]]).double())
    torch.testing.assert_close(prior.mean, torch.tensor([2.0]).double())
    torch.testing.assert_close(prior.cov, torch.tensor([[4.0]]).double())
