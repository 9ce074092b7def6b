"""Consistency functions: the boundary to the bit, the file, and multistep draws against the Gaussian that they must have."""

import itertools
import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, DataError, Gaussian, Matrix, Problem, ShapeError, Streams
from invdiff.learning.distillation import solver_step
from invdiff.priors import EDMDenoiser, GaussianPrior, Given, UNet, load_network
from invdiff.priors.consistency import Consistency, ConsistencyModel, load_consistency
from invdiff.samplers.multistep import Multistep

F64 = torch.float64
M, S, LOW, HIGH = 0.7, 0.5, 0.1, 30.0


def normal(*shape, seed=0, dtype=torch.float32):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=dtype)


def alive(net, size=0.2):
    """The network with weights that are nowhere zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return net


def teacher(**options):
    net = alive(UNet(2, 2, widths=(32,), blocks=1, embedding=16, patch=1, concat_channels=1))
    return EDMDenoiser(net, sigma_data=0.6, mean=0.3, sigma_min=0.005, sigma_max=20.0, **options)


class Exact(Consistency):
    """f of N(m, s^2), where m may be a condition."""

    def __init__(self, power=0.5):
        super().__init__((6,), LOW, HIGH)
        self.power = power

    def forward(self, x, sigma, condition=None):
        m = M if condition is None else condition["vector"]
        return m + ((S**2 + LOW**2) / (S**2 + sigma[:, None] ** 2)) ** self.power * (x - m)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_boundary_is_an_identity_to_the_bit(dtype, bf16):
    model = ConsistencyModel.of(teacher(bf16=bf16))
    x, told = 3.0 * normal(3, 2, 8, 8, dtype=dtype), {"concat": normal(3, 1, 8, 8, seed=1)}
    for precision in (torch.float32, F64):
        assert torch.equal(model(x, torch.full((3,), 0.005, dtype=precision), told), x)
    above = model(x, torch.full((3,), 0.006), told)
    assert not torch.equal(above, x)
    torch.testing.assert_close(above, x, rtol=0, atol=0.05)


def test_a_student_begins_as_its_teacher_but_for_sigma_min():
    """c_skip and c_out are EDM's up to a relative sigma_min / sigma; |F| and |x| are a few units here."""
    old = teacher()
    new, x, told = ConsistencyModel.of(old), normal(3, 2, 8, 8, seed=2), {"concat": normal(1, 1, 8, 8, seed=1)}
    sigma = torch.tensor([0.05, 1.0, 20.0])
    scaled = x * (sigma**2 + 0.36).sqrt()[:, None, None, None]
    with torch.no_grad():
        error = (new(scaled, sigma, told) - old(scaled, sigma, told)).abs().flatten(1).amax(1)
        size = (old(scaled, sigma, told) - scaled).abs().flatten(1).amax(1)
    assert bool((error < 2.5 * 0.005 / sigma * size).all())
    assert bool((error > 0).all())
    with torch.no_grad():
        old.net.enter.weight.zero_()
    assert bool((new.net.enter.weight != 0).any())


def test_the_file_is_read_by_its_own_loader_only(tmp_path):
    model = ConsistencyModel.of(teacher())
    model.save(tmp_path / "f.safetensors", {"note": "x"})
    again = load_consistency(tmp_path / "f.safetensors")
    x, sigma, told = normal(2, 2, 8, 8), torch.tensor([0.3, 9.0]), {"concat": normal(1, 1, 8, 8)}
    assert all(torch.equal(a, b) for a, b in zip(again.net.parameters(), model.net.parameters(), strict=True))
    # convolutions in another memory format
    torch.testing.assert_close(again(x, sigma, told), model(x, sigma, told), rtol=1e-4, atol=1e-5)
    assert again.header == model.header
    assert again.facts == {"note": "x"}
    with pytest.raises(DataError, match="consistency"):
        load_network(tmp_path / "f.safetensors")
    teacher().save(tmp_path / "d.safetensors")
    with pytest.raises(DataError, match="no consistency model"):
        load_consistency(tmp_path / "d.safetensors")


def test_what_a_consistency_model_refuses():
    with pytest.raises(ConfigError, match="'edm', got flow"):
        ConsistencyModel.of(teacher(preconditioning="flow"))
    with pytest.raises(ConfigError, match="got GaussianPrior"):
        ConsistencyModel.of(GaussianPrior(torch.zeros(3), torch.eye(3)))
    with pytest.raises(CapabilityError, match="no posterior mean"):
        ConsistencyModel.of(teacher()).check(normal(8, 2, 8, 8))
    with pytest.raises(ConfigError, match="sigma_data > 0"):
        ConsistencyModel(teacher().net, sigma_data=0.0)
    net = UNet(1, 1, widths=(32, 32), blocks=1, embedding=16, patch=1)
    with pytest.raises(ShapeError, match="multiples of 2"):
        ConsistencyModel(net, sigma_data=1.0)(normal(1, 1, 5, 5), torch.ones(1))


def test_the_gaussian_function_is_the_end_of_the_flow():
    """Heun's rule in 4,000 steps along the flow of the posterior mean, error O(1 / steps^2)."""
    prior = GaussianPrior(torch.full((6,), M, dtype=F64), S**2 * torch.eye(6, dtype=F64), sigma_max=HIGH)
    x = torch.linspace(-40.0, 40.0, 6, dtype=F64)[None]
    grid = torch.logspace(math.log10(HIGH), math.log10(LOW), 4001, dtype=F64)
    end = x
    for a, b in itertools.pairwise(grid):
        end = solver_step(prior, end, a[None], b[None], None)
    torch.testing.assert_close(end, Exact()(x, grid[:1]), rtol=0, atol=1e-5)


def z_scores(draws, mean, variance):
    n = draws.numel()
    z_mean = abs(float(draws.mean()) - mean) / math.sqrt(variance / n)
    return z_mean, abs(float((draws - mean).square().mean()) / variance - 1.0) / math.sqrt(2.0 / n)


def expected(levels):
    """Mean and variance of the draws, by the recursion of the module."""
    mean, variance = 0.0, 0.0
    for k, sigma in enumerate(levels):
        r = (S**2 + LOW**2) / (S**2 + sigma**2)
        variance = r * (variance + sigma**2 - (LOW**2 if k else 0.0))
        mean = M + math.sqrt(r) * (mean - M)
    return mean, variance


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_multistep_draws_the_gaussian(steps):
    """24,000 values against the recursion, which is within .03 of N(m, s^2 + sigma_min^2); 5 standard errors."""
    sampler, prior = Multistep(steps=steps), Exact()
    samples = sampler(Problem.unmeasured((6,), F64), prior, n=4000, seed=1)
    mean, variance = expected(sampler.grid(prior))
    assert mean == pytest.approx(M, abs=0.03)
    assert variance == pytest.approx(S**2 + LOW**2, rel=2e-3)
    assert max(z_scores(samples.x, mean, variance)) < 5
    assert samples.network_calls == steps
    # the posterior mean in place of f
    wrong = sampler(Problem.unmeasured((6,), F64), Exact(power=1.0), n=4000, seed=1)
    assert max(z_scores(wrong.x, mean, variance)) > 20


def test_given_levels_and_a_condition():
    told = Given(Exact(), {"vector": torch.full((1, 6), -2.0, dtype=F64)})
    sampler = Multistep(steps=2, levels=(30.0, 0.5))
    draws = sampler(Problem.unmeasured((6,), F64), told, n=4000, seed=2).x
    mean, variance = expected((30.0, 0.5))
    # the mean is proportional to m
    assert max(z_scores(draws, -2.0 / M * mean, variance)) < 5


def test_the_levels_are_some_of_a_student_s_grid():
    """Of N = 41 levels every 40 / K-th."""
    prior, u = Exact(), torch.linspace(0, 1, 41, dtype=F64)
    grid = (HIGH ** (1 / 7) + u * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7
    for steps in (1, 2, 4, 5, 8):
        chosen = torch.tensor(Multistep(steps=steps).grid(prior), dtype=F64)
        torch.testing.assert_close(chosen, grid[:: 40 // steps][:steps])


def test_draws_depend_on_neither_the_batch_nor_a_resume(tmp_path):
    problem, prior, sampler = Problem.unmeasured((6,), F64), Exact(), Multistep(steps=3)
    whole = sampler(problem, prior, n=5, seed=4).x
    assert torch.equal(sampler(problem, prior, n=5, seed=4, batch=2).x, whole)

    def stop(info):
        if info["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, prior, n=5, seed=4, resume=tmp_path / "run", callback=stop)
    assert torch.equal(sampler(problem, prior, n=5, seed=4, resume=tmp_path / "run").x, whole)


def test_multistep_refuses_what_it_cannot_draw():
    problem = Problem.unmeasured((6,), F64)
    with pytest.raises(CapabilityError, match="consistency function, got GaussianPrior"):
        Multistep()(problem, GaussianPrior(torch.zeros(6, dtype=F64), torch.eye(6, dtype=F64)), seed=0)
    measured = Problem(Matrix(torch.eye(6, dtype=F64)), Gaussian(0.1), torch.zeros(1, 6, dtype=F64))
    with pytest.raises(CapabilityError, match="ignores measurements"):
        Multistep()(measured, Exact(), seed=0)
    with pytest.raises(ConfigError, match="2 decreasing levels"):
        Multistep(steps=2, levels=(1.0, 2.0))
    with pytest.raises(ConfigError, match="inside the prior's"):
        Multistep(steps=1, levels=(50.0,))(problem, Exact(), seed=0)
    with pytest.raises(ConfigError, match="rho > 0"):
        Multistep(rho=0.0)
    assert not Given(Exact(), {"vector": [[0.0] * 6]}).posterior_mean
    assert teacher().posterior_mean
