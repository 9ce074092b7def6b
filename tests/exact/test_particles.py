"""Sequential Monte Carlo: resampling, effective sample sizes, and a bootstrap filter on a Gaussian whose posterior is known."""

import math
from dataclasses import dataclass

import pytest
import torch

from invdiff.core import ConfigError, Gaussian, Karras, Matrix, NumericalError, Problem, Streams
from invdiff.priors import GaussianPrior
from invdiff.samplers.particles import Particles, Proposed, effective_size, normalised, picked, systematic

F64 = torch.float64
GRID = Karras(sigma_max=30.0, sigma_min=0.02)


@dataclass(frozen=True)
class Bootstrap(Particles):
    """Particles of the prior N(0, 1) by its exact reverse transitions, weighted by the likelihood at the end alone."""

    likelihood: bool = True

    def look(self, problem, prior, x, at):
        return x.new_zeros(len(x)), (prior(x, x.new_full((len(x),), at.sigma)),)

    def propose(self, problem, prior, x, seen, history, at, noise):
        share = (at.sigma_next / at.sigma) ** 2
        variance = at.sigma_next**2 * (1.0 - share) + (1.0 - share) ** 2 * at.sigma**2 / (1.0 + at.sigma**2)
        new = share * x + (1.0 - share) * seen[0] + math.sqrt(variance) * noise(problem.shape)
        log = problem.log_likelihood(new) if self.likelihood and at.sigma_next == 0.0 else x.new_zeros(len(x))
        return Proposed(new, log, history)


@pytest.fixture
def toy():
    """x ~ N(0, 1), y = x + n, n ~ N(0, 1/2^2), y = 1.5: mean 1.2, variance 0.2."""
    prior = GaussianPrior(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64), sigma_max=100.0)
    return Problem(Matrix(torch.ones(1, 1, dtype=F64)), Gaussian(0.5), torch.tensor([1.5], dtype=F64)), prior


def weights(*w):
    return torch.tensor([w], dtype=F64).log()


def test_systematic_resampling_leaves_between_floor_and_ceil_of_n_w_children_and_n_w_in_the_mean():
    n, runs = 16, 4000
    log = normalised(2.0 * Streams(1).normal(0, (n,), "w", F64)).expand(runs, n)
    u = Streams(2, runs).uniform(0, (), "u", F64)
    children = torch.nn.functional.one_hot(systematic(log, u), n).sum(1).double()
    expected = n * log[0].exp()
    assert bool((children >= expected.floor()).all() and (children <= expected.ceil()).all())
    share = expected - expected.floor()
    assert float(((children.mean(0) - expected).abs() / (share * (1 - share) / runs).sqrt().clamp_min(1e-9)).max()) < 5.0


def test_particles_of_no_weight_are_no_ancestors():
    log = torch.tensor([[-math.inf, 0.0, -math.inf], [0.0, -math.inf, -math.inf]], dtype=F64)
    for u in (1e-12, 0.5, 1.0 - 1e-12):
        at = torch.full((2,), u, dtype=F64)
        assert systematic(log, at).tolist() == [[1, 1, 1], [0, 0, 0]] and picked(log, at).tolist() == [1, 0]


def test_effective_sample_sizes():
    assert float(effective_size(weights(0.25, 0.25, 0.25, 0.25))) == pytest.approx(4.0)
    assert float(effective_size(weights(0.5, 0.5, 0.0, 0.0))) == pytest.approx(2.0)
    # in whatever scale
    assert float(effective_size(weights(3.0, 1.0) + 700.0)) == pytest.approx(16.0 / 10.0)


def test_one_particle_is_picked_by_its_weight():
    runs = 20_000
    index = picked(weights(0.1, 0.6, 0.3).expand(runs, 3), Streams(0, runs).uniform(0, (), "u", F64))
    share = torch.bincount(index, minlength=3) / runs
    assert float((share - torch.tensor([0.1, 0.6, 0.3])).abs().max()) < 5 * 0.5 / math.sqrt(runs)


def test_the_bias_of_a_bootstrap_filter_falls_like_one_over_n(toy):
    """The draw is one of N draws of the prior, picked by the likelihood: its mean has a bias of the order of 1 / N."""
    problem, prior = toy
    bias = {}
    for n, draws in ((1, 4000), (4, 4000), (16, 4000), (256, 500)):
        x = Bootstrap(particles=n, grid=GRID, steps=10)(problem, prior, draws, seed=n).x
        bias[n] = 1.2 - float(x.mean())
        # a draw's standard deviation goes from 1 to 0.45
        assert bias[n] == pytest.approx(expected_bias(n), abs=5 / math.sqrt(draws))
    assert expected_bias(1) == pytest.approx(1.2, abs=0.03) and expected_bias(4) / expected_bias(16) > 2.5


def expected_bias(n, runs=20_000):
    """1.2 - E[x of the pick] for N independent draws of the prior, by simulation."""
    x = Streams(5, runs).normal(0, (n,), "x", F64)
    w = (-0.5 * ((1.5 - x) / 0.5) ** 2).softmax(1)
    return 1.2 - float((w * x).sum(1).mean())


def test_the_variance_is_that_of_the_posterior_and_not_of_the_prior(toy):
    problem, prior = toy
    fine = {"grid": GRID, "steps": 10}
    x = Bootstrap(particles=256, **fine)(problem, prior, 1000, seed=0).x
    assert float(x.var()) == pytest.approx(0.2, abs=5 * 0.2 * math.sqrt(2 / 1000))
    unweighted = Bootstrap(particles=256, likelihood=False, **fine)(problem, prior, 1000, seed=0).x
    assert float(unweighted.var()) > 0.6


def test_draws_do_not_depend_on_the_batch_nor_on_chunks(toy):
    problem, prior = toy
    sampler = Bootstrap(particles=5, grid=GRID, steps=10, resample=1.0)
    whole = sampler(problem, prior, 7, seed=3)
    parts = Bootstrap(particles=5, grid=GRID, steps=10, resample=1.0, chunk=4)(problem, prior, 7, seed=3, batch=3)
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-12, atol=1e-12)
    assert whole.network_calls == parts.network_calls == 5 * 10
    assert all(0.0 < fact["ess"] <= 5.0 + 1e-9 for fact in whole.info)


def test_a_run_without_weights_stops_with_its_step(toy):
    @dataclass(frozen=True)
    class Lost(Bootstrap):
        def look(self, problem, prior, x, at):
            log, seen = super().look(problem, prior, x, at)
            return (log - math.inf if at.step == 2 else log), seen

    problem, prior = toy
    with pytest.raises(NumericalError, match=r"not finite after step 3 of 6 in draws \[0, 1\]"):
        Lost(particles=4, grid=GRID, steps=6)(problem, prior, 2, seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"particles": 0}, "particles >= 1"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"resample": 1.5}, r"resample in \[0, 1\], got 1.5"),
    ],
)
def test_options_out_of_range_are_errors(options, words):
    with pytest.raises(ConfigError, match=words):
        Bootstrap(**options)
