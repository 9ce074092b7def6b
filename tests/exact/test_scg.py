"""Stochastic control guidance: one candidate is the prior's chain, the best one is chosen, the law of one value, the bias."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, Matrix, NumericalError, Poisson, Problem, Streams
from invdiff.operators.blackbox import BlackBox
from invdiff.priors import GaussianPrior
from invdiff.samplers import Ancestral, Guided
from invdiff.samplers.scg import SCG
from invdiff.validation import cases
from invdiff.validation.laboratory import moments

F64 = torch.float64
GRID = Karras(0.02, 100.0)


@dataclass(frozen=True)
class Worst(SCG):
    """A planted fault: the candidate that fits worst."""

    def misfits(self, problem, prior, candidates, sigma):
        return -super().misfits(problem, prior, candidates, sigma)


@pytest.mark.parametrize("options", [{"candidates": 1}, {"candidates": 7, "start": 1.0}])
def test_one_candidate_is_ancestral_sampling(options):
    case = cases.coloured()
    ours = SCG(grid=GRID, steps=20, **options)(case.problem, case.prior, n=3, seed=4)
    chain = Guided(integrator=Ancestral(), grid=GRID, steps=20)(case.problem, case.prior, n=3, seed=4)
    torch.testing.assert_close(ours.x, chain.x, rtol=1e-12, atol=1e-12)
    assert ours.operator_calls == 0 and ours.network_calls == 20


@pytest.mark.parametrize("make", [cases.coloured, cases.complex_valued])
def test_the_candidate_is_the_best_of_all(make):
    """Every step again by its formula, draw by draw."""
    case, sampler, seen = make(), SCG(candidates=6, start=0.25, grid=GRID, steps=8), []
    sampler(case.problem, case.prior, n=2, seed=3, callback=lambda info: seen.append(info["x"]))
    levels = GRID(8, 0.02, 100.0).tolist()
    for k in range(1, 7):
        s, t, x = levels[k], levels[k + 1], seen[k - 1]
        z = Streams(3, 2).normal(k + 1, (6, 8), dtype=F64)
        for b in range(2):
            denoised = case.prior(x[b : b + 1], torch.tensor([s], dtype=F64))
            ratio = (t / s) ** 2
            candidates = ratio * x[b] + (1 - ratio) * denoised + t * math.sqrt(1 - ratio) * z[b]
            at = case.prior(candidates, torch.full((6,), t, dtype=F64))
            misfit = (case.problem.y - case.problem.operator(at)).abs().square().sum(1)
            best = int(misfit.argmin()) if k >= 2 else 0
            torch.testing.assert_close(seen[k][b], candidates[best], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [SCG, Worst])
@pytest.mark.parametrize(("n", "y", "a"), [(2, 0.5, 1.0), (9, -3.0, 0.4), (40, 12.0, 2.0)])
def test_the_law_of_one_value(sampler, n, y, a):
    """|z - t| of 4,000 draws through its distribution function is uniform: Kolmogorov's distance below 2.5 / sqrt(4000)."""
    spread, draws = 2.0, 4000
    prior = GaussianPrior(torch.zeros(1, dtype=F64), spread**2 * torch.ones(1, dtype=F64), sigma_min=1.0, sigma_max=5.0)
    problem = Problem(Matrix(torch.tensor([[a]], dtype=F64)), Gaussian(0.3), torch.tensor([y], dtype=F64))
    x = sampler(candidates=n, start=0.0, steps=2)(problem, prior, n=draws, seed=1).x
    s, t = 5.0, 1.0
    first = s * Streams(1, draws).normal(0, (1,), "init", F64)
    gains = [spread**2 / (spread**2 + level**2) for level in (s, t)]
    fresh = t * math.sqrt(1 - (t / s) ** 2)
    mean = ((t / s) ** 2 + (1 - (t / s) ** 2) * gains[0]) * first
    z, target = (x / gains[1] - mean) / fresh, (y / (a * gains[1]) - mean) / fresh
    r = (z - target).abs()
    u = (1 - torch.special.ndtr(target + r) + torch.special.ndtr(target - r)).pow(n)
    distance = float((u.flatten().sort().values - (torch.arange(draws, dtype=F64) + 0.5) / draws).abs().max())
    assert distance < 2.5 / math.sqrt(draws) if sampler is SCG else distance > 10.0 / math.sqrt(draws)


def test_its_bias():
    """What the docstring says of the variances, with room for 300 draws, and that more candidates spread less."""
    case, observed = cases.white(), {}
    for n in (4, 32):
        row = moments(SCG(candidates=n, grid=GRID, steps=50)(case.problem, case.prior, n=300, seed=0).x, case)
        observed[n] = row["observed"]
        assert row["null"] == pytest.approx(0.82, abs=0.17) and row["mean_error"] > 0.5
    assert observed[32] < 0.7 * observed[4] < 0.2


def test_a_black_box_without_a_derivative():
    operator = BlackBox(lambda x: np.sign(x[:2]) + np.round(x[2:] ** 2), (4,), (2,))
    problem = Problem(operator, Gaussian(0.1), torch.tensor([2.0, 3.0], dtype=F64))
    prior = GaussianPrior(torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), sigma_min=0.02, sigma_max=20.0)
    samples = SCG(candidates=8, steps=40)(problem, prior, n=40, seed=0)
    free = prior.sample(Streams(1, 1000))
    assert samples.kind == "point"
    # of 40 levels 10 are ancestral, and the last one is D
    assert samples.operator_calls == 8 * 29 and samples.network_calls == 40 + 8 * 29
    assert float(problem.chi2(samples.x).mean()) < 0.2 * float(problem.chi2(free).mean())


def test_candidates_without_a_misfit_are_not_chosen_and_draws_without_one_are_reported():
    """An operator that has no value below zero."""
    problem = Problem(BlackBox(np.sqrt, (1,), (1,)), Gaussian(0.1), torch.ones(1, dtype=F64))
    prior = GaussianPrior(torch.ones(1, dtype=F64), torch.ones(1, dtype=F64), sigma_min=0.02, sigma_max=20.0)
    with np.errstate(invalid="ignore"):
        x = SCG(candidates=16, steps=30)(problem, prior, n=20, seed=0).x
        assert bool((x > 0.0).all())
        below = GaussianPrior(torch.full((1,), -50.0, dtype=F64), torch.ones(1, dtype=F64), sigma_min=0.02, sigma_max=20.0)
        with pytest.raises(NumericalError, match="SCG: values that are not finite after step 1 of 30"):
            SCG(candidates=16, start=0.0, steps=30)(problem, below, n=2, seed=0)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_draws_do_not_depend_on_the_batch_nor_on_chunks(dtype):
    prior = GaussianPrior(torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype), sigma_min=0.02, sigma_max=20.0)
    problem = Problem(Matrix(torch.ones(1, 4, dtype=dtype)), Gaussian(0.3), torch.ones(1, dtype=dtype))
    sampler = SCG(candidates=5, steps=8)
    whole = sampler(problem, prior, n=5, seed=1).x
    assert whole.dtype == dtype
    for other in (sampler(problem, prior, n=5, seed=1, batch=2), replace(sampler, chunk=3)(problem, prior, n=5, seed=1)):
        torch.testing.assert_close(other.x, whole, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-5)


def test_what_it_refuses():
    case = cases.white()
    problem = Problem(case.problem.operator, Poisson(10.0, 5.0), case.problem.y.abs())
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        SCG()(problem, case.prior, seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"candidates": 0}, "candidates >= 1"), ({"chunk": 0}, "chunk >= 1"), ({"start": 1.5}, r"start in \[0, 1\], got 1.5")],
)
def test_options_out_of_range_are_errors(options, words):
    with pytest.raises(ConfigError, match=f"SCG: expected .*{words}"):
        SCG(**options)
