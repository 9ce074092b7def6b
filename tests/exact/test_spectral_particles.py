"""What the particle samplers that need a spectrum share: chunks, precision, and what they refuse."""

from dataclasses import replace

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Poisson, Problem, Streams
from invdiff.operators import ParallelBeamCT, gaussian_blur
from invdiff.priors import GaussianPrior
from invdiff.samplers import DDSMC, FPS, MCGdiff

F64 = torch.float64
WRONG = {
    DDSMC: ({"eta": 1.1}, {"data_std": 0.0}, {"particles": 0}),
    MCGdiff: ({"eta": 0.0}, {"kappa": 0.0}, {"particles": 0}),
    FPS: ({"eta": 0.0}, {"eta": 1.1}, {"particles": 0}),
}
each = pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)


@each
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_draws_do_not_depend_on_the_batch_nor_on_chunks(kind, dtype):
    operator = gaussian_blur(5, 6, sigma=0.5)
    prior = GaussianPrior(torch.zeros(1, 5, 6, dtype=dtype), torch.eye(30, dtype=dtype))
    truth = Streams(0).normal(0, (1, 5, 6), dtype=F64)[0].to(dtype)
    problem, sampler = Problem.simulate(operator, Gaussian(0.5), truth, 0), kind(particles=4, steps=6)
    whole = sampler(problem, prior, n=5, seed=1).x
    assert whole.dtype == dtype
    for other in (sampler(problem, prior, n=5, seed=1, batch=2), replace(sampler, chunk=3)(problem, prior, n=5, seed=1)):
        torch.testing.assert_close(other.x, whole, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-4)


@each
def test_what_they_refuse(kind):
    prior, name = GaussianPrior(torch.zeros(1, 6, 6, dtype=F64), torch.eye(36, dtype=F64)), kind.__name__
    x = torch.ones(1, 6, 6, dtype=F64)
    with pytest.raises(CapabilityError, match=f"{name} needs spectral of the operator; ParallelBeamCT offers"):
        kind()(Problem.simulate(ParallelBeamCT(6, 4), Gaussian(0.1), x), prior, seed=0)
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        kind()(Problem.simulate(gaussian_blur(6, 6, sigma=0.5), Poisson(10.0, 1.0), x), prior, seed=0)
    for options in WRONG[kind]:
        with pytest.raises(ConfigError, match=f"{name}: expected"):
            kind(**options)
