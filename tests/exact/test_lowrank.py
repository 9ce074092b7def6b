"""Mixtures of low-rank Gaussians against the dense mixture, and the EM fit against what the data were drawn from."""

import copy

import pytest
import torch

from invdiff.core import ConfigError, Gaussian, Matrix, NumericalError, Problem, ShapeError, Streams, ViewAsComplex
from invdiff.operators import Mask
from invdiff.priors import GaussianMixture
from invdiff.priors.lowrank import LowRankMixture
from invdiff.priors.lowrank_fit import fit_lowrank
from invdiff.samplers import Guided

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def subspaces(k, n, r, seed=0):
    return torch.linalg.qr(randn(k, n, r, seed=seed)).Q


def mixture(taus=(0.3, 0.5, 0.2), shape=(1, 2, 4), rank=2):
    spreads = torch.tensor([[4.0, 1.0], [2.0, 0.5], [3.0, 0.01]], dtype=F64)[:, :rank]
    bases = subspaces(3, 8, 2)[:, :, :rank]
    weights, taus = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor(taus, dtype=F64)
    return LowRankMixture(weights, randn(3, *shape, seed=1), bases, spreads, taus)


def dense(prior, sigma=0.0):
    return GaussianMixture(prior.weights, prior.means, prior.covs + sigma**2 * torch.eye(8, dtype=F64))


@pytest.mark.parametrize("taus", [(0.3, 0.5, 0.2), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_denoiser_and_density_are_those_of_the_dense_mixture(taus, rank):
    prior = mixture(taus, rank=rank)
    x, sigma = 2.0 * randn(5, 1, 2, 4, seed=2), torch.tensor([0.05, 0.3, 1.0, 4.0, 50.0], dtype=F64)
    torch.testing.assert_close(prior(x, sigma), dense(prior)(x, sigma), rtol=0, atol=1e-9)
    expected = torch.stack([dense(prior, float(s)).log_prob(v[None])[0] for v, s in zip(x, sigma, strict=True)])
    torch.testing.assert_close(prior.log_prob(x, sigma), expected, rtol=1e-11, atol=1e-9)
    if min(taus) > 0:
        torch.testing.assert_close(prior.log_prob(x), dense(prior).log_prob(x), rtol=1e-11, atol=1e-9)


OPERATORS = {
    "dense": lambda: Matrix(randn(3, 8, seed=3), (1, 2, 4)),
    "tall": lambda: Matrix(randn(11, 8, seed=3), (1, 2, 4)),
    "in the span": lambda: Matrix(subspaces(3, 8, 2)[0].T.contiguous(), (1, 2, 4)),
    "complex": lambda: Matrix(torch.complex(randn(3, 4, seed=3), randn(3, 4, seed=4)), (1, 1, 4)) @ ViewAsComplex((1, 1, 4)),
    "masked": lambda: Mask(torch.tensor([[True, False, True, False], [False, False, True, True]]), (1, 2, 4)),
}


@pytest.mark.parametrize("taus", [(0.3, 0.5, 0.2), (0.0, 0.0, 0.0), (0.0, 0.5, 0.2)])
@pytest.mark.parametrize("kind", list(OPERATORS))
def test_posterior_is_that_of_the_dense_mixture(kind, taus):
    operator = OPERATORS[kind]()
    prior = mixture(taus, (2, 1, 4) if kind == "complex" else (1, 2, 4))
    problem = Problem.simulate(operator, Gaussian(0.2), prior.sample(Streams(3))[0], seed=4)
    ours, exact = prior.posterior(problem), dense(prior).posterior(problem)
    covs = torch.einsum("knm,km,kpm->knp", exact.bases, exact.variances, exact.bases)
    torch.testing.assert_close(ours.weights, exact.weights, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.means, exact.means, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.covs, covs, rtol=0, atol=1e-9)
    x, sigma = prior.sample(Streams(5, 4)), torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=F64)
    torch.testing.assert_close(ours(x, sigma), exact(x, sigma), rtol=0, atol=1e-8)


def test_posterior_with_noise_that_differs_between_measurements():
    prior, sigma = mixture(), torch.tensor([0.1, 0.5, 2.0], dtype=F64)
    problem = Problem.simulate(OPERATORS["dense"](), Gaussian(sigma), prior.sample(Streams(3))[0], seed=4)
    ours, exact = prior.posterior(problem), dense(prior).posterior(problem)
    torch.testing.assert_close(ours.weights, exact.weights, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.mean, torch.einsum("k,k...->...", exact.weights, exact.means), rtol=0, atol=1e-9)


@pytest.mark.parametrize("narrow", [False, True])
def test_draws_have_the_moments(narrow):
    prior = mixture()
    if narrow:  # a posterior, whose spreads are negative along what was measured
        problem = Problem.simulate(OPERATORS["dense"](), Gaussian(0.05), prior.sample(Streams(3))[0], seed=4)
        prior = prior.posterior(problem)
        assert float(prior.spreads.min()) < -0.03
    n = 40000
    x = prior.sample(Streams(0, n)).flatten(1)
    d = x - prior.mean.flatten()
    for sample, exact in ((d, torch.zeros_like(d[0])), (d[:, :, None] * d[:, None], prior.cov)):
        assert float(((sample.mean(0) - exact) / (sample.std(0) / n**0.5)).abs().max()) < 5


def test_small_noise_in_single_precision():
    """The residual off the subspace is 1e-3 beside a mean of 30: a difference of squares would lose it, 30^2 eps > 1e-6."""
    weights, means = torch.ones(2), torch.stack([torch.full((64,), 30.0), torch.full((64,), 30.002)])
    prior = LowRankMixture(weights, means, subspaces(2, 64, 3).float(), torch.ones(2, 3), 1e-3)
    x, sigma = means + 1e-4, torch.full((2,), 1e-3)
    expected = copy.deepcopy(prior).double().log_prob(x.double(), sigma.double())
    torch.testing.assert_close(prior.log_prob(x, sigma).double(), expected, rtol=1e-3, atol=0)


def test_what_does_not_fit_is_refused():
    w, m, u, s = torch.ones(2, dtype=F64), randn(2, 8), subspaces(2, 8, 2), torch.ones(2, 2, dtype=F64)
    with pytest.raises(ShapeError, match=r"bases \(K, N, r\)"):
        LowRankMixture(w, m, u[:, :5], s, 0.1)
    with pytest.raises(ConfigError, match="not orthonormal"):
        LowRankMixture(w, m, 2.0 * u, s, 0.1)
    with pytest.raises(ConfigError, match="spreads"):
        LowRankMixture(w, m, u, -s, 0.1)


def test_a_mixture_of_one_runs_and_resumes(tmp_path):
    """Its taus were an expanded tensor of one value, which has no bytes to compare a resumed run by."""
    one = LowRankMixture(torch.ones(1, dtype=F64), randn(1, 1, 2, 4), subspaces(1, 8, 2), torch.ones(1, 2, dtype=F64), 0.3)
    draws = Guided(steps=3)(Problem.unmeasured((1, 2, 4), F64), one, n=2, seed=0, resume=tmp_path / "run")
    assert draws.x.shape == (2, 1, 2, 4)


# the fit


def drawn(zero_mean, n=24, count=2000, tau=0.05):
    """Three subspaces of two dimensions in 24, through the origin or about separate centres."""
    means = torch.zeros(3, n, dtype=F64) if zero_mean else 3.0 * randn(3, n, seed=8)
    spreads = torch.tensor([[4.0, 1.0], [2.0, 1.0], [3.0, 0.5]], dtype=F64)
    prior = LowRankMixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, subspaces(3, n, 2, seed=9), spreads, tau)
    return prior, prior.sample(Streams(11, count))


@pytest.mark.parametrize("zero_mean", [True, False])
def test_fit_finds_the_subspaces_that_data_were_drawn_from(zero_mean):
    truth, x = drawn(zero_mean)
    fit = fit_lowrank(x.reshape(-1, 1, 4, 6), 3, 2, seed=0, floor=1e-3)
    found = fit.prior
    assert found.shape == (1, 4, 6)
    cosines = torch.linalg.svdvals(truth.bases.mT[:, None] @ found.bases[None]).amin(-1)
    order = cosines.argmax(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    # an angle has the standard error tau / sqrt(l M w) per direction off the subspace, 22 of them: chi of 22 below 8
    allowed = 8.0 * 0.05 / (truth.spreads.amin(1) * 2000 * truth.weights).sqrt()
    sine = (1.0 - cosines.amax(1) ** 2).sqrt()
    assert bool((sine < allowed).all()), (sine, allowed)
    w, v = truth.weights, found.weights[order]
    assert float(((v - w) / (w * (1 - w) / 2000).sqrt()).abs().max()) < 5
    assert float((found.taus / 0.05 - 1).abs().max()) < 5 / (2 * 2000 * 0.2 * 22) ** 0.5
    variances = (found.spreads + found.taus[:, None] ** 2)[order].sort(1, descending=True).values
    expected = (truth.spreads + 0.05**2).sort(1, descending=True).values
    assert float(((variances / expected - 1) / (2 / (2000 * w[:, None])).sqrt()).abs().max()) < 5
    # the true parameters are less likely than those at the maximum, by about half their number over M
    assert 0.0 < float(fit.log_likelihood[-1] - truth.log_prob(x).mean()) < 0.1


@pytest.mark.parametrize(("components", "rank", "floor"), [(3, 2, 1e-3), (4, 3, 1e-3), (2, 1, 0.2), (5, 4, 1e-3)])
def test_likelihood_never_falls(components, rank, floor):
    """From an early start on, where it has far to rise, through the floor on tau, to convergence."""
    _, x = drawn(False, count=400)
    history = fit_lowrank(x, components, rank, seed=1, floor=floor, tol=0.0, iterations=60, restarts=1).log_likelihood
    assert len(history) > 6 and float(history[-1] - history[0]) > 0.1
    assert float(history.diff().min()) > -1e-10


def test_one_component_of_full_data_is_principal_components():
    _, x = drawn(False, count=300)
    prior = fit_lowrank(x, 1, 4, seed=0, floor=1e-6, tol=1e-14, iterations=2000).prior
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    torch.testing.assert_close(prior.taus[0] ** 2, values[:-4].mean(), rtol=1e-8, atol=0)
    torch.testing.assert_close(prior.spreads[0] + prior.taus[0] ** 2, values[-4:], rtol=1e-8, atol=0)
    assert float(torch.linalg.svdvals(prior.bases[0].T @ vectors[:, -4:]).min()) > 1 - 1e-8


def test_exact_subspaces_end_at_the_floor():
    truth, x = drawn(True, tau=0.0)
    fit = fit_lowrank(x, 3, 2, seed=0, floor=1e-4)
    assert bool((fit.prior.taus == 1e-4).all()) and bool(fit.log_likelihood.isfinite().all())
    assert float(torch.linalg.svdvals(truth.bases.mT[:, None] @ fit.prior.bases[None]).amin(-1).amax(1).min()) > 1 - 1e-8


def test_fit_is_a_function_of_its_seed_and_says_what_is_wrong():
    _, x = drawn(False, count=200)
    a, b = (fit_lowrank(x, 3, 2, seed=4, floor=1e-3).prior for _ in range(2))
    assert torch.equal(a.means, b.means) and torch.equal(a.bases, b.bases)
    with pytest.raises(ConfigError, match="1 <= rank < 24"):
        fit_lowrank(x, 3, 24, seed=0, floor=1e-3)
    with pytest.raises(ShapeError, match="items or more"):
        fit_lowrank(x[:5], 3, 2, seed=0, floor=1e-3)
    with pytest.raises(NumericalError, match="lost its data"):
        fit_lowrank(torch.cat([x[:1].expand(196, -1), x[:4] + 100.0]), 12, 2, seed=0, floor=1e-6)
