"""RED-diff against closed forms on linear-Gaussian problems: its forces, Adam's steps, where it ends, and its known bias."""

import pytest
import torch

from invdiff.core import ConfigError, Karras, Streams
from invdiff.samplers import REDDiff
from invdiff.validation import moments
from invdiff.validation.cases import coloured, white

F64 = torch.float64
EDM = Karras(0.02, 100.0)


@pytest.mark.parametrize("scaling", ["likelihood", "nvlabs", "inversebench"])
@pytest.mark.parametrize("weight", ["linear", "square", "constant", "score"])
def test_forces_have_their_closed_form(scaling, weight):
    """E[eps_hat - eps] = sigma (C + sigma^2)^-1 (mu - m). It is linear in eps, which cancels in the pair (eps, -eps)."""
    case, sigma, lam = coloured(0), 0.7, 0.4
    mu, eps = Streams(0).normal(0, (2, 3, 8), "test", F64)[0]
    sampler = REDDiff(lam=lam, weight=weight, scaling=scaling, antithetic=True)
    got = sampler.data_force(case.problem, mu) + sampler.prior_force(case.problem, case.prior, mu, sigma, eps)
    w = {"linear": sigma, "square": sigma**2, "constant": 1.0, "score": 1.0 / sigma}[weight]
    total = case.prior.cov + sigma**2 * torch.eye(8, dtype=F64)
    force = lam * w * sigma * torch.linalg.solve(total, (mu - case.prior.mean).T).T
    data = (case.problem.operator(mu) - case.problem.y) @ case.problem.operator.matrix
    expected = {
        "likelihood": data / case.problem.noise.sigma**2 + force,
        "nvlabs": data / 4 + force / 8,
        "inversebench": 2 * data + force,
    }[scaling]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("parallel", [1, 3])
def test_steps_are_torchs_adam(parallel):
    case, steps = coloured(0), 15
    sampler, streams = REDDiff(grid=EDM, steps=steps, lr=0.05, parallel=parallel), Streams(2, 3)
    state = sampler.init(case.problem, case.prior, streams)
    mu = state.x.clone().requires_grad_()
    adam = torch.optim.Adam([mu], lr=0.05, betas=(0.9, 0.99))
    grid = sampler.grid(steps, case.prior.sigma_min, case.prior.sigma_max).tolist()
    for k in range(steps):
        state = sampler.step(case.problem, case.prior, state, streams)
        at = mu.detach()
        mu.grad = sampler.data_force(case.problem, at)
        for j in range(parallel):
            eps = streams.normal(k + 1, (8,), f"step{j}" if j else "step", F64)
            mu.grad += sampler.prior_force(case.problem, case.prior, at, grid[(k + 5 * j) % steps], eps) / parallel
        adam.step()
    torch.testing.assert_close(state.x, mu.detach(), rtol=0, atol=1e-10)


def test_it_has_its_known_bias():
    """A collapsed spread, and a mean at the data: 1000 steps of 0.1 end where the prior's force has vanished."""
    rows = []
    for seed in range(3):
        case = white(seed)
        found = moments(REDDiff(grid=EDM, steps=1000)(case.problem, case.prior, n=100, seed=1).x, case)
        rows.append([found["mean_error"], found["observed"], found["null"]])
    error, observed, null = torch.tensor(rows).mean(0).tolist()
    assert error > 1 and observed < 0.03 and 0.03 < null < 0.25


@pytest.mark.parametrize(("parallel", "high"), [(1, 10.0), (3, 0.01)])
def test_with_the_score_as_weight_it_does_not_fit_the_noise(parallel, high):
    """Its end is the mode, the mean of a Gaussian, of the prior smoothed by the last levels; linear weighting does not."""
    case = coloured(0, sigma=0.5)
    options = {"grid": Karras(sigma_max=high, sigma_min=0.002), "steps": 800, "lr": 0.02, "lam": 1.0, "parallel": parallel}
    width = case.exact.cov.diagonal().sqrt()

    def apart(sampler):
        return float(((sampler(case.problem, case.prior, 2, seed=0).x - case.exact.mean) / width).abs().max())

    assert apart(REDDiff(weight="score", antithetic=True, **options)) < 0.05
    assert apart(REDDiff(**options)) > 0.5


def test_what_is_wrong_is_named():
    with pytest.raises(ConfigError, match="parallel from 1 to steps=4"):
        REDDiff(steps=4, parallel=5)
