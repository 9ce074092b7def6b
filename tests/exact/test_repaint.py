"""RePaint: the law of its equations and its schedule, independent pixels, and how repeats mend the others.

For a Gaussian prior every step is affine, so that the law of the draws follows from a schedule and dense matrices, written here
from the paper. Draws are held to laws by z-scores below 5.
"""

from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, Matrix, Poisson, Problem, Streams
from invdiff.metrics import z_cov, z_mean
from invdiff.operators.restoration import Mask
from invdiff.priors import GaussianPrior
from invdiff.samplers.repaint import RePaint

F64 = torch.float64
EDM = Karras(0.02, 100.0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def make(d=8, correlation=0.0, sigma_y=1e-6, seed=0):
    """A stationary chain of pixels of standard deviation 1.2 about random means, every second one known."""
    lag = (torch.arange(d)[:, None] - torch.arange(d)).abs().to(F64)
    cov = 1.44 * (correlation**lag if correlation else torch.eye(d, dtype=F64))
    prior = GaussianPrior(randn(d, seed=seed), cov, sigma_max=1000.0)
    operator = Mask(torch.arange(d) % 2 == 0, (d,))
    return Problem.simulate(operator, Gaussian(sigma_y), prior.sample(Streams(seed)), seed), prior


def schedule(steps, repeats, jump, last=0):
    """The paper's list of times, as indices of levels: 0 is the highest, `steps` is zero. Up goes one level at a time, and from
    no time before `last`."""
    left = {time: repeats - 1 for time in range(0, steps - jump, jump) if time >= last}
    time, times = steps, []
    while time >= 1:
        time -= 1
        times.append(time)
        if left.get(time, 0) > 0:
            left[time] -= 1
            for _ in range(jump):
                time += 1
                times.append(time)
    return [steps - 1 - t for t in [*times, -1]]


def law(problem, prior, sampler):
    """Mean and covariance of the draws."""
    grid = sampler.grid(sampler.steps, 1e-3, 1000.0).tolist()
    known, d = problem.operator.measured.to(F64), len(prior.mean)
    eye, y = torch.eye(d, dtype=F64), problem.y[0]
    sigma_y = float(problem.noise.sigma) if sampler.noise_aware else 0.0
    mean, cov = prior.mean, grid[0] ** 2 * eye
    jacobians = [prior.cov @ torch.linalg.inv(prior.cov + s * s * eye) for s in grid]
    last = sum(level < sigma_y for level in grid[:-1])
    for i, j in pairwise(schedule(sampler.steps, sampler.repeats, sampler.jump, last)):
        s, t = grid[i], grid[j]
        if t > s:
            cov = cov + (t * t - s * s) * eye
            continue
        m = known if t >= sigma_y else torch.zeros_like(known)
        keep, jacobian = (t / s) ** 2, jacobians[i]
        linear = (1 - m)[:, None] * (keep * eye + (1 - keep) * jacobian)
        mean = linear @ mean + (1 - m) * (1 - keep) * ((eye - jacobian) @ prior.mean) + m * y
        variance = (1 - m) * t * t * (1 - keep) + m * max(t * t - sigma_y**2, 0.0)
        cov = linear @ cov @ linear.T + torch.diag(variance)
    return mean, 0.5 * (cov + cov.T)


def worst(draws, mean, cov):
    """The largest z-score; pixels without any spread are compared to rounding."""
    free = cov.diagonal() > 1e-16
    fixed = float((draws - mean)[:, ~free].abs().max()) if not bool(free.all()) else 0.0
    exact = GaussianPrior(mean[free], cov[free][:, free])
    return max(z_mean(draws[:, free], exact), z_cov(draws[:, free], exact), fixed / 1e-9)


def distance(problem, prior, sampler):
    """Kullback-Leibler divergence of the law of the draws from the posterior; of hidden pixels where y is taken as it is."""
    exact, (mean, cov) = prior.posterior(problem), law(problem, prior, sampler)
    of = torch.ones(len(mean), dtype=torch.bool) if sampler.noise_aware else ~problem.operator.measured
    a, b, gap = cov[of][:, of], exact.cov[of][:, of], (mean - exact.mean)[of]
    inverse = torch.linalg.inv(b)
    return float(0.5 * (torch.trace(inverse @ a) - len(gap) + gap @ inverse @ gap + torch.logdet(b) - torch.logdet(a)))


@pytest.mark.parametrize("sigma_y", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("d", [8, 16])
@pytest.mark.parametrize(("repeats", "jump"), [(1, 3), (3, 1), (3, 4)])
def test_draws_follow_the_equations(repeats, jump, d, sigma_y):
    problem, prior = make(d, 0.9, sigma_y)
    sampler = RePaint(repeats, jump, noise_aware=sigma_y < 1.0, grid=EDM, steps=20)
    draws = sampler(problem, prior, n=1000, seed=2).x
    assert worst(draws, *law(problem, prior, sampler)) < 5


def test_the_test_sees_another_schedule():
    problem, prior = make(8, 0.9)
    draws = RePaint(4, 4, grid=EDM, steps=20)(problem, prior, n=4000, seed=2).x
    assert worst(draws, *law(problem, prior, RePaint(4, 4, grid=EDM, steps=20))) < 5
    for other in ((2, 4), (1, 4)):
        assert worst(draws, *law(problem, prior, RePaint(*other, grid=EDM, steps=20))) > 8


def test_hidden_pixels_that_are_independent_are_drawn_from_the_prior():
    """Up to what the ancestral step loses; known ones are y itself."""
    problem, prior = make()
    hidden = ~problem.operator.measured
    mean, cov = law(problem, prior, RePaint(1, 1, grid=EDM, steps=1000))
    torch.testing.assert_close(mean[hidden], prior.mean[hidden], rtol=0, atol=1e-9)
    assert bool(((cov.diagonal()[hidden] / 1.44 - 1).abs() < 0.02).all())
    draws = RePaint(2, 5, grid=EDM, steps=20)(problem, prior, n=50, seed=0).x
    torch.testing.assert_close(draws[:, ~hidden], problem.y[:, ~hidden].expand(50, -1), rtol=0, atol=0)


@pytest.mark.parametrize("jump", [1, 10])
def test_repeats_mend_what_replacement_gets_wrong(jump):
    """Kullback-Leibler divergence of the law of the draws from the posterior, for pixels that are correlated."""
    problem, prior = make(8, 0.9)
    found = [distance(problem, prior, RePaint(r, jump, grid=EDM, steps=200)) for r in (1, 2, 5, 20)]
    assert found[0] == pytest.approx(0.489, abs=0.001) and found[-1] < 0.005
    assert all(a > 2 * b for a, b in pairwise(found))


@pytest.mark.parametrize("sigma_y", [0.1, 0.3, 1.0])
def test_repeats_reach_the_posterior_of_noisy_data_where_the_noise_is_allowed_for(sigma_y):
    problem, prior = make(8, 0.9, sigma_y)
    found = [distance(problem, prior, RePaint(r, 1, noise_aware=True, grid=EDM, steps=200)) for r in (1, 2, 5, 20)]
    assert all(a > b for a, b in pairwise(found)) and found[-1] < 0.1 * found[0]
    fine = distance(problem, prior, RePaint(20, 1, noise_aware=True, grid=EDM, steps=400))
    assert fine < 0.5 * found[-1]


def test_chunks_and_resuming_change_nothing(tmp_path):
    problem, prior = make(8, 0.9)
    sampler, path = RePaint(2, 3, grid=EDM, steps=8), tmp_path / "run.pt"
    whole = sampler(problem, prior, n=4, seed=7, batch=2)
    torch.testing.assert_close(sampler(problem, prior, n=3, seed=7).x, whole.x[:3], rtol=1e-9, atol=1e-9)

    def interrupt(info):
        if info["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, prior, n=4, seed=7, batch=2, resume=path, callback=interrupt)
    resumed = sampler(problem, prior, n=4, seed=7, batch=2, resume=path)
    assert torch.equal(resumed.x, whole.x) and resumed.network_calls == whole.network_calls == len(schedule(8, 2, 3)) - 1 - 6


def test_it_is_for_masks_and_says_so():
    problem, prior = make()
    with pytest.raises(CapabilityError, match="expected a Mask, got Matrix"):
        RePaint(1, 1, steps=4)(Problem(Matrix(torch.eye(8, dtype=F64)), problem.noise, problem.y), prior, seed=0)
    assert [len(RePaint(noise_aware=aware).caveats) for aware in (True, False)] == [1, 2]
    counts = Problem(problem.operator, Poisson(10.0), problem.y.abs())
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        RePaint(1, 1, noise_aware=True, steps=4)(counts, prior, seed=0)
    with pytest.raises(ConfigError, match="1 <= jump < steps = 4, got 1 and 4"):
        RePaint(1, 4, steps=4)
    with pytest.raises(ConfigError, match="repeats >= 1"):
        RePaint(0, 1)
