"""The empirical prior against direct sums in float64, and against the mixture that it is."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, Gaussian, Matrix, NumericalError, Poisson, Problem, ShapeError, Streams
from invdiff.priors import GaussianMixture
from invdiff.priors.empirical import Empirical
from invdiff.priors.lowrank import LowRankMixture

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("bandwidth", [0.0, 0.4])
def test_denoiser_and_density_are_those_of_the_mixture(bandwidth, chunk):
    data, weights = randn(20, 1, 2, 3), torch.arange(20, dtype=F64)  # the first has weight zero, alone in its chunk of one
    prior = Empirical(data, weights=weights, bandwidth=bandwidth, chunk=chunk)
    x, sigma = randn(5, 1, 2, 3, seed=1), torch.tensor([0.05, 0.2, 1.0, 5.0, 100.0], dtype=F64)
    eye = torch.eye(6, dtype=F64)
    twin = GaussianMixture(weights, data, bandwidth**2 * eye)
    torch.testing.assert_close(prior(x, sigma), twin(x, sigma), rtol=0, atol=1e-11)
    smoothed = [GaussianMixture(weights, data, (bandwidth**2 + float(s) ** 2) * eye) for s in sigma]
    expected = torch.stack([p.log_prob(v[None])[0] for p, v in zip(smoothed, x, strict=True)])
    torch.testing.assert_close(prior.log_prob(x, sigma), expected, rtol=1e-11, atol=1e-10)


def test_density_is_differentiable_to_tweedie():
    prior, sigma = Empirical(randn(50, 4), bandwidth=0.1, chunk=8), torch.tensor([0.2, 0.7, 3.0], dtype=F64)
    x = randn(3, 4, seed=1).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(x + sigma[:, None] ** 2 * score, prior(x, sigma), rtol=0, atol=1e-11)
    assert torch.autograd.gradcheck(lambda v: prior(v, sigma), (x,))


def test_single_precision_and_small_noise_far_from_zero():
    """Two items 0.02 apart at a norm of 1,600 in 1,024 dimensions: squares in float32 have errors of 0.3, sigma^2 is 1e-4."""
    data = 50.0 + torch.stack([randn(1024), randn(1024)]).float()
    data[1] = data[0] + 0.02 / 32.0 * torch.sign(randn(1024, seed=3)).float()
    x, sigma = torch.lerp(data[:1], data[1:], 0.4), torch.tensor([1e-2])
    d = (x.double() - data.double()).square().sum(1)
    rho = (-0.5 * d / float(sigma) ** 2).softmax(0)
    assert 0.5 < float(rho[0]) < 0.9
    got, step = Empirical(data)(x, sigma).double() - data[0].double(), (data[1] - data[0]).double()
    # the output itself is rounded to float32 at 50, by up to 2e-6 of steps of 6e-4
    assert float(got[0] @ step / (step @ step)) == pytest.approx(float(rho[1]), abs=3e-3)


def test_small_sigma_is_the_nearest_item_and_large_sigma_the_mean():
    data, x = randn(30, 5), randn(8, 5, seed=1)
    nearest = data[torch.cdist(x, data).argmin(1)]
    torch.testing.assert_close(Empirical(data)(x, torch.full((8,), 1e-3, dtype=F64)), nearest, rtol=0, atol=1e-12)
    far = Empirical(data)(x, torch.full((8,), 1e6, dtype=F64))
    torch.testing.assert_close(far, data.mean(0).expand(8, 5), rtol=0, atol=1e-9)


def test_draws_are_the_items_with_their_weights():
    data, weights = randn(4, 3), torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = Empirical(data, weights=weights).sample(Streams(0, 10000))
    share = (x[:, None] == data).all(-1).double().mean(0)
    p = (weights / 10).double()
    assert float(share.sum()) == 1.0 and float(((share - p) / (p * (1 - p) / 10000).sqrt()).abs().max()) < 5
    x = Empirical(data, weights=weights, bandwidth=0.3).sample(Streams(1, 20000))
    prior = Empirical(data, weights=weights, bandwidth=0.3)
    assert float(((x.mean(0) - prior.mean) / (prior.cov.diagonal() / 20000).sqrt()).abs().max()) < 5
    d = x - prior.mean
    outer = d[:, :, None] * d[:, None]
    assert float(((outer.mean(0) - prior.cov) / (outer.std(0) / 20000**0.5)).abs().max()) < 5


def test_posterior_is_the_limit_of_narrow_kernels():
    data = randn(12, 6)
    problem = Problem.simulate(Matrix(randn(2, 6, seed=3)), Gaussian(0.5), data[4], seed=1)
    ours = Empirical(data).posterior(problem)
    narrow = GaussianMixture(torch.ones(12, dtype=F64), data, 1e-12 * torch.eye(6, dtype=F64)).posterior(problem)
    torch.testing.assert_close(ours.log_weights.exp(), narrow.weights, rtol=0, atol=1e-9)
    # the kernel's own posterior, by the other closed form
    kernels = LowRankMixture(torch.ones(12, dtype=F64), data, data.new_zeros(12, 6, 0), data.new_zeros(12, 0), 0.3)
    dense = GaussianMixture(torch.ones(12, dtype=F64), data, 0.09 * torch.eye(6, dtype=F64)).posterior(problem)
    torch.testing.assert_close(kernels.posterior(problem).means, dense.means, rtol=0, atol=1e-9)
    with pytest.raises(CapabilityError, match="rank 0"):
        Empirical(data, bandwidth=0.3).posterior(problem)


def test_posterior_of_any_likelihood():
    data, operator = randn(12, 6).abs(), Matrix(randn(3, 6, seed=3).abs())
    problem = Problem.simulate(operator, Poisson(20.0), data[4], seed=1)
    log = [float(problem.log_likelihood(v[None])) for v in data]
    total = math.fsum(math.exp(v - max(log)) for v in log)
    expected = torch.tensor([math.exp(v - max(log)) / total for v in log], dtype=F64)
    torch.testing.assert_close(Empirical(data, chunk=5).posterior(problem).log_weights.exp(), expected, rtol=1e-10, atol=1e-14)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="finite real data"):
        Empirical(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"weights \(3,\)"):
        Empirical(randn(3, 4), weights=torch.ones(4))
    with pytest.raises(NumericalError, match="no density"):
        Empirical(randn(3, 4)).log_prob(randn(1, 4))


def test_a_resumed_run_can_tell_bandwidths_apart():
    assert repr(Empirical(randn(3, 2), bandwidth=0.1)) != repr(Empirical(randn(3, 2), bandwidth=0.2))
