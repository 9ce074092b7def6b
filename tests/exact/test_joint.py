"""Joint problems of a pair (f, u): with the exact joint law they have the posterior of the decoupled problem."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Problem, ShapeError, Stack, Streams, dot
from invdiff.core import Poisson as Counts
from invdiff.core.algebra import dense
from invdiff.generators import SourceFields
from invdiff.operators.pde import Heat, Helmholtz, Poisson, random_sensors
from invdiff.priors import EDMDenoiser, GaussianField, GaussianPrior, UNet
from invdiff.priors.wdno import FieldCode, FieldPrior, field_network
from invdiff.tasks.joint import Pairs, Residual, joint_problem

ROOT = Path(__file__).parents[2]
F64 = torch.float64
N = 12
EQUATIONS = {
    "poisson": lambda: Poisson((1, N, N), length=2.0),
    "helmholtz": lambda: Helmholtz((1, 7, 6), 1.5),
    "mean removed": lambda: Poisson((1, 7, 6), boundary=("neumann", "periodic")),
    "spectral": lambda: Poisson((1, 6, 6), boundary="periodic", scheme="spectral"),
    "heat": lambda: Heat((1, 9), 0.01, 0.5),
}


def normal(*shape, seed=0):
    return Streams(seed, 3).normal(0, shape, dtype=F64)


def law():
    return GaussianField.laplacian((1, N, N), scale=1.0, tau=3.0, alpha=2.0, spacing=1.0 / N, zero_mean=True)


def covariance():
    size = N * N
    return law().covariance(torch.eye(size, dtype=F64).reshape(size, 1, N, N)).reshape(size, size)


def pair_law(equation, units=1.0, of_u=None):
    """N(0, C) of (f, units u); u = A f, or independent of f with the covariance `of_u`."""
    c, a = covariance(), units * dense(equation)
    cross, own = (c @ a.T, a @ c @ a.T) if of_u is None else (torch.zeros_like(c), of_u)
    return GaussianPrior(torch.zeros(2, N, N, dtype=F64), torch.cat([torch.cat([c, cross], 1), torch.cat([cross.T, own], 1)]))


def of_u(equation, level=1e-2):
    """Twenty sensors of the field of a known source."""
    u = equation(law().sample(Streams(5, 1), F64))
    sensors = random_sensors((1, N, N), 20, seed=3, length=equation.length)
    return Problem.simulate(sensors, Gaussian(level * float(u.square().mean().sqrt())), u)


@pytest.mark.parametrize("name", list(EQUATIONS))
def test_residual_is_that_of_the_equation_with_its_exact_adjoint(name):
    equation = EQUATIONS[name]()
    residual, shape = Residual(equation), equation.in_shape
    x, v = normal(2, *shape[1:]), normal(*shape, seed=1)
    torch.testing.assert_close(residual(x), equation.residual(x[:, :1], x[:, 1:]), rtol=0, atol=0)
    left, right = dot(residual(x), v), dot(x, residual.adjoint(v))
    assert float(((left - right).abs() / left.abs()).max()) < 1e-12
    # of the solver's own output nothing is left but rounding
    f = normal(*shape, seed=2)
    exact = residual(torch.cat([f, equation(f)], 1)).norm() / f.norm()
    assert float(exact) < 1e-11
    off = residual(torch.cat([f, equation(f) + normal(*shape, seed=3)], 1)).norm() / f.norm()
    assert float(off) > 1e-3


@pytest.mark.parametrize("slack", [None, 1e-1, 1e-3])
def test_the_exact_joint_law_has_the_posterior_of_the_decoupled_problem(slack):
    """Where p(f, u) knows the equation, neither the way round nor the residual changes anything."""
    equation = EQUATIONS["poisson"]()
    problem = of_u(equation)
    alone = GaussianPrior(torch.zeros(1, N, N, dtype=F64), covariance()).posterior(problem.through(equation))
    joint = pair_law(equation).posterior(joint_problem(problem, equation, slack=slack))
    assert float((joint.mean[:1] - alone.mean).norm() / alone.mean.norm()) < 1e-6
    u = equation(alone.mean[None])[0]
    assert float((joint.mean[1:] - u).norm() / u.norm()) < 1e-6
    assert float((joint.std[:1] - alone.std).abs().max() / alone.std.max()) < 1e-6
    # the test sees a law that ties other fields: u twice as large asks for half the source
    other = pair_law(equation, units=2.0).posterior(joint_problem(problem, equation))
    assert float((other.mean[:1] - 0.5 * alone.mean).norm() / alone.mean.norm()) < 0.05


def test_the_residual_says_what_a_prior_does_not_know():
    """u independent of f, of 30,000 times its variance: the sensors alone say nothing of f; with a small slack, all."""
    equation = EQUATIONS["poisson"]()
    problem = of_u(equation)
    wide = pair_law(equation, of_u=torch.eye(N * N, dtype=F64))
    alone = GaussianPrior(torch.zeros(1, N, N, dtype=F64), covariance()).posterior(problem.through(equation)).mean
    assert float(wide.posterior(joint_problem(problem, equation)).mean[:1].abs().max()) == 0.0
    found = [wide.posterior(joint_problem(problem, equation, slack=s)).mean[:1] for s in (1e-1, 1e-2, 1e-3)]
    errors = [float((x - alone).norm() / alone.norm()) for x in found]
    assert errors[2] < 1e-3 and errors[0] > errors[1] > errors[2]


def test_joint_problem_keeps_each_noise_and_measures_zero():
    equation = EQUATIONS["poisson"]()
    problem = of_u(equation)
    uneven = Problem(problem.operator, Gaussian(0.1 + torch.rand(20, generator=torch.Generator().manual_seed(0))), problem.y)
    found = joint_problem(uneven, equation, slack=0.3)
    assert isinstance(found.operator, Stack) and isinstance(found.noise, Gaussian)
    torch.testing.assert_close(found.noise.sigma[:20], uneven.noise.sigma.double(), rtol=0, atol=0)
    assert bool((found.noise.sigma[20:] == 0.3).all()) and bool((found.y[:, 20:] == 0.0).all())
    torch.testing.assert_close(found.y[:, :20], problem.y[:, 0], rtol=0, atol=0)
    # sensors with the shape of the residual are stacked as channels
    line = Poisson((1, 4))
    few = Problem(random_sensors((1, 4), 4), Gaussian(0.1), torch.ones(1, 4, dtype=F64))
    assert joint_problem(few, line, slack=0.3).y.shape == (1, 2, 4)


def test_pairs_are_the_fields_in_their_units():
    plain = FieldCode(unknown=("f", "u"), slices=(), fields=())
    generator = SourceFields(seed=2, size=8)
    code = plain.measured(Pairs(generator, plain).samples(range(64)))
    source = Pairs(generator, code, block=3)
    items = torch.stack([source(i)[0] for i in range(64)])
    torch.testing.assert_close(items.square().mean((0, 2, 3)), torch.ones(2), rtol=1e-4, atol=0)
    fields = generator(range(64))
    network = field_network(EDMDenoiser(UNet(2, 2, widths=(32,), blocks=1, concat_channels=2), sigma_data=1.0), code)
    prior = FieldPrior(network, code, (8, 8))
    assert prior.image_shape == (2, 8, 8)
    back = prior.synthesis((2, 8, 8))(items)
    torch.testing.assert_close(back, torch.cat([fields["f"], fields["u"]], 1), rtol=1e-5, atol=1e-6)
    # in any order, whatever was asked for before
    torch.testing.assert_close(source(1)[0], items[1], rtol=0, atol=0)
    assert source(1)[1]["concat"].shape == (2, 8, 8)
    x, sigma = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
    torch.testing.assert_close(prior(x, sigma), network(x, sigma, {"concat": source(1)[1]["concat"][None]}), rtol=0, atol=0)


def test_what_does_not_fit_is_refused():
    equation = EQUATIONS["poisson"]()
    problem = of_u(equation)
    with pytest.raises(ConfigError, match="slack > 0"):
        joint_problem(problem, equation, slack=0.0)
    with pytest.raises(ShapeError, match="the equation gives"):
        joint_problem(problem, Poisson((1, 8, 8)))
    with pytest.raises(CapabilityError, match="Gaussian noise"):
        joint_problem(Problem(problem.operator, Counts(1.0), problem.y.abs()), equation)
    with pytest.raises(ShapeError, match="fields"):
        Residual(Poisson((2, 8, 8)))
    with pytest.raises(ConfigError, match="nothing told"):
        Pairs(SourceFields(size=8), FieldCode(unknown=("f",), slices=(), fields=("u",)))
    lacking = Pairs(SourceFields(size=8, solve=False), FieldCode(unknown=("f", "u"), slices=(), fields=()))
    with pytest.raises(ConfigError, match="makes f, expected u"):
        lacking(0)


def test_the_comparison_runs(tmp_path):
    main = runpy.run_path(str(ROOT / "benchmarks" / "joint.py"))["main"]
    arguments = ["--tiny", "--out", str(tmp_path / "rows.json"), "--work", str(tmp_path)]
    main(arguments)
    text = (tmp_path / "rows.json").read_text()
    rows = {r["name"]: r for r in json.loads(text)["rows"]}
    assert len(rows) == 12 and rows["alone, dps"]["tried"] and rows["pair"]["residual"] > 0.0
    # only a learned prior of the pair can leave the equation
    assert all((r["residual"] > 1e-4) == n.startswith(("pair", "tied")) for n, r in rows.items() if "residual" in r)
    assert rows["exact, posterior"]["error"] < 1.0
    main(arguments)
    assert (tmp_path / "rows.json").read_text() == text
