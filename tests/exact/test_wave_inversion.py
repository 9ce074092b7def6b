"""Inverse scattering and full waveforms: posteriors in closed form, least squares, derivatives that share their fields."""

from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Matrix, NumericalError, Poisson, Problem, ShapeError, Streams
from invdiff.generators import DarcyFlow, Scatterers
from invdiff.guidance import MMPS
from invdiff.operators.pde import BornScattering, Darcy, LippmannSchwinger
from invdiff.operators.pde.wave import AcousticWave
from invdiff.operators.pointwise import Clip, Exponential
from invdiff.priors import StationaryGaussian
from invdiff.priors.mapped import Mapped
from invdiff.samplers import Guided, REDDiff
from invdiff.samplers.least_squares import LeastSquares, Linearised
from invdiff.tasks import Fields, Item, Relative, Task
from invdiff.tasks.waves import depth_gradient, full_waveform, inverse_scattering

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64, C128 = torch.float64, torch.complex128
SMALL = {"length": 1.0, "wavelength": 0.6, "transmitters": 3, "receivers": 7, "radius": 1.4}
WAVES = {"spacing": 1.0, "dt": 0.2, "steps": 24, "frequency": 0.5, "layer": 3, "fastest": 1.6, "every": 2}


def normal(shape, purpose, batch=1, dtype=F64):
    return Streams(2, batch).normal(0, shape, purpose, dtype)


def uniform(shape, batch=2):
    return Streams(3, batch).uniform(0, shape, "x", F64)


def gap(a, b):
    return float((a - b).norm() / b.norm())


# derivatives that share their fields


@pytest.mark.parametrize("lossy", [False, True])
def test_reciprocity_gives_the_derivative_of_scattering(lossy):
    operator = LippmannSchwinger(6, **SMALL, tol=1e-12, lossy=lossy)
    kind = C128 if lossy else F64
    x, t, v = uniform((1, 6, 6)).to(kind), normal((1, 6, 6), "t", 2, kind), normal((3, 7), "v", 2, C128)
    x = x + 0.2j * uniform((1, 6, 6)) if lossy else x
    y, push, pull = operator.linearize(x)
    assert torch.equal(y, operator(x)) or gap(y, operator(x)) < 1e-11
    assert gap(push(t), operator.jvp(x, t)[1]) < 1e-10
    assert gap(pull(v), operator.vjp(x)[1](v)) < 1e-10


def test_the_derivative_of_waves_from_a_stored_run():
    """The same to rounding as that of automatic differentiation; for other policies the general way is taken."""
    places = [[1.0, 2.0], [4.0, 3.5]], [[2.0, 4.0], [5.0, 1.0], [3.25, 2.0]]
    stored, plain = (AcousticWave((7, 6), *places, **WAVES, memory=m) for m in ("full", "checkpoint(step)"))
    x, t, v = 0.5 + uniform(stored.in_shape), normal(stored.in_shape, "t", 2), normal(stored.out_shape, "v", 2)
    want, tangent = plain.jvp(x, t)
    for operator in (stored, plain):
        y, push, pull = operator.linearize(x)
        assert gap(y, want) < 1e-13
        assert gap(push(t), tangent) < 1e-12
        assert gap(pull(v), plain.vjp(x)[1](v)) < 1e-12


# least squares


def test_least_squares_of_a_matrix_is_its_pseudoinverse():
    """Six Krylov steps at most are needed for a rank of six; what the start has beside the rows stays."""
    operator, start = Matrix(normal((6, 10), "matrix")[0]), normal((10,), "start")[0]
    problem = Problem(operator, Gaussian(0.1), normal((6,), "y"))
    x, facts = LeastSquares(start, iterations=1, krylov=8, tol=1e-14, target=0.0)(problem)
    want = start + operator.pinv(problem.y - operator(start[None]))
    assert gap(x, want) < 1e-9
    assert facts["stopped"] == "iterations"


def darcy(sigma=1e-4):
    truth = DarcyFlow(seed=5, size=12)([0])["a"].double()
    return Problem.simulate(Darcy(12), Gaussian(sigma), truth, seed=1)


def test_least_squares_of_darcy_decreases_to_the_noise():
    _, facts = LeastSquares(6.0, iterations=15, krylov=8)(darcy())
    history = facts["history"]
    assert all(a > b for a, b in pairwise(history))
    assert history[0] > 100.0 and history[-1] <= 1.0
    assert facts["stopped"] == "target" and facts["operator_calls"] > 0


def test_a_step_to_where_the_operator_is_not_defined_is_too_long():
    """Darcy refuses a permeability that is not positive: least squares halves its step."""
    problem = Problem(Darcy(6), Gaussian(1e-3), 10.0 * Darcy(6)(torch.full((1, 1, 6, 6), 0.2, dtype=F64)))
    x, facts = LeastSquares(5.0, iterations=3)(problem)
    assert bool((x > 0).all()) and facts["chi2"] < facts["history"][0]


def test_a_tangent_at_zero_is_born():
    """Data of the linear model: Tikhonov of the tangent of the exact operator is Tikhonov of Born's."""
    from invdiff.samplers.classical import Tikhonov

    exact, born = LippmannSchwinger(8, **SMALL, tol=1e-12), BornScattering(8, **SMALL)
    problem = Problem.simulate(born, Gaussian(1e-3), 0.1 * uniform((1, 8, 8), 1), seed=0)
    x, facts = Linearised(strength=1e-3)(Problem(exact, problem.noise, problem.y))
    assert gap(x, Tikhonov(1e-3)(problem)[0]) < 1e-8
    assert facts["chi2"] > Tikhonov(1e-3)(problem)[1]["chi2"]


@pytest.mark.parametrize("options", [{"iterations": 0}, {"krylov": 0}, {"halvings": 0}, {"tol": -1.0}, {"target": -1.0}])
def test_bad_options_of_least_squares_are_named(options):
    with pytest.raises(ConfigError, match="LeastSquares: expected iterations"):
        LeastSquares(**options)


def test_what_least_squares_does_not_take_is_named():
    operator = Matrix(torch.eye(3, dtype=F64))
    with pytest.raises(CapabilityError, match="LeastSquares needs Gaussian noise"):
        LeastSquares()(Problem(operator, Poisson(1.0), torch.ones(3, dtype=F64)))
    with pytest.raises(ShapeError, match="one measurement"):
        LeastSquares()(Problem(operator, Gaussian(1.0), torch.ones(2, 3, dtype=F64)))
    with pytest.raises(NumericalError, match="at the start is inf"):
        LeastSquares(1e200)(Problem(operator * 1e200, Gaussian(1.0), torch.ones(3, dtype=F64)))


# priors through a function


def test_a_mapped_prior_is_decoded_and_measured_as_its_image():
    """An exponential of a field seen without gaps and nearly without noise: draws are positive, and near the truth."""
    field = StationaryGaussian((1, 6, 6), mean=0.3, std=0.4, length=2.0, sigma_max=20.0).double()
    prior = Mapped(field, Exponential((1, 6, 6)))
    data = Fields(generator=DarcyFlow(size=6, seed=1), name="a")
    task = Task(name="mapped", data=data, operator=lambda item: Clip(item.shape, 0.0), noise=Relative(0.02))
    sampler = Guided(guidance=MMPS(cg_steps=8, newton=3), steps=10)
    item = task.run(prior=prior, sampler=sampler, n=4, dtype="float64").items[0]
    draws = item.estimates[-1].samples.x
    assert bool((draws > 0).all())
    assert gap(draws.mean(0), item.truth.double()) < 0.1


def test_operators_that_do_not_fit_a_mapped_prior_are_named():
    field = StationaryGaussian((1, 6, 6))
    with pytest.raises(ShapeError, match="Mapped: expected real operators"):
        Mapped(field, Clip((1, 5, 6), 0.0))
    with pytest.raises(ConfigError, match="Mapped"):
        Mapped(Mapped(field, Clip((1, 6, 6), 0.0)), Clip((1, 6, 6), 0.0))


# tasks


def test_the_linear_task_of_scattering_has_the_exact_posterior():
    """Born, a Gaussian field, Gaussian noise: from noise that hides x altogether, MMPS gives the mean of the posterior."""
    field = StationaryGaussian((1, 6, 6), mean=0.05, std=0.1, length=1.5, sigma_max=1e4).double()
    task = Task(
        name="born",
        data=Fields(generator=Scatterers(size=6, contrast=(0.05, 0.3))),
        operator=lambda item: inverse_scattering(item, model="born", wavelength=0.6, transmitters=3, receivers=5),
        noise=Relative(0.1),
    )
    (item,) = task.data.items(1, 0, field)
    problem = task.problem(item, dtype=F64)
    mean, _ = field.posterior_draws(problem, 1, seed=0, tol=1e-12)
    guided = MMPS(cg_steps=36)(field, problem)
    found = guided(torch.zeros(1, 1, 6, 6, dtype=F64), torch.full((1,), 1e4, dtype=F64))
    assert gap(found[0], mean) < 1e-6
    assert gap(mean, item.truth.double()) < 0.5 * gap(torch.full_like(mean, 0.05), item.truth.double())


def test_red_diff_starts_at_the_mean_of_the_prior():
    field = StationaryGaussian((1, 6, 6), mean=3000.0, std=300.0, sigma_max=1e6).double()
    operator = full_waveform(Item("ground", (1, 6, 6)), shots=1, receivers=2, time=0.024)
    problem = Problem(operator, Gaussian(1.0), torch.zeros(operator.out_shape, dtype=F64))
    state = REDDiff(init_from="prior", steps=5).init(problem, field, Streams(0, 2))
    assert state.x.shape == (2, 1, 6, 6)
    assert float((state.x - 3000.0).abs().max()) < 10.0


def test_setups_of_waves_name_what_they_do_not_take():
    square, wide = Item("a", (1, 6, 6)), Item("b", (1, 6, 8))
    with pytest.raises(ShapeError, match="square image"):
        inverse_scattering(wide)
    with pytest.raises(ConfigError, match="full or born"):
        inverse_scattering(square, model="rytov")
    with pytest.raises(ConfigError, match="0 < low < high"):
        full_waveform(square, low=2.0, high=1.0)
    with pytest.raises(ShapeError, match="an image"):
        full_waveform(Item("c", (6, 6)))
    z = depth_gradient((1, 4, 4), 0.0, 8.0)
    assert z.flatten().tolist() == [1.0, 3.0, 5.0, 7.0]
