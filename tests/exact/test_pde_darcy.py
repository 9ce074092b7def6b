"""Darcy flow against solutions in closed form, and its derivatives against finite differences and dense algebra."""

import copy
import math
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

import invdiff
from invdiff.core import ConfigError, DataError, Operator, Problem, ShapeError, Streams, build
from invdiff.core.noise import Gaussian
from invdiff.operators.pde import darcy
from invdiff.operators.pde.darcy import Darcy
from invdiff.priors import GaussianPrior
from invdiff.samplers import DPS

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

MEANS = ["harmonic", "arithmetic"]


def centres(n, m=None, length=1.0):
    """Coordinates of the cells along the first and the second axis."""
    y, x = ((torch.arange(k, dtype=torch.float64) + 0.5) * (length / k) for k in (n, m or n))
    return y[:, None], x[None]


def permeability(size, batch=3, seed=0, dtype=torch.float64):
    """Log-normal and white, between about 0.1 and 10."""
    return Streams(seed, batch).normal(0, (1, *size), "a", dtype).exp()


def field(size, purpose, batch=3):
    return Streams(1, batch).normal(0, (1, *size), purpose, torch.float64)


def error(u, want):
    return float((u - want).norm() / want.norm())


def smooth(n, m, faces, length=1.0):
    """u = sin(k x) sin(2 k y), k = pi / length, in a = 2 + cos(k x) sin(k y): f = -a lap(u) - grad(a) . grad(u)."""
    y, x = centres(n, m, length)
    k = math.pi / length
    u = (k * x).sin() * (2 * k * y).sin()
    a = 2 + (k * x).cos() * (k * y).sin()
    a_x, a_y = -k * (k * x).sin() * (k * y).sin(), k * (k * x).cos() * (k * y).cos()
    u_x, u_y = k * (k * x).cos() * (2 * k * y).sin(), 2 * k * (k * x).sin() * (2 * k * y).cos()
    f = 5 * k * k * a * u - a_x * u_x - a_y * u_y
    return Darcy((n, m), f, length=length, faces=faces)(a[None, None]), u[None, None]


@pytest.mark.parametrize("faces", MEANS)
@pytest.mark.parametrize("length", [1.0, 2.5])
def test_order_is_two_where_the_permeability_is_smooth(faces, length):
    errors = [error(*smooth(n, n + n // 2, faces, length)) for n in (16, 32, 64)]
    assert errors[-1] < 2e-3
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.02


def layers(n, faces, values=(3.0, 12.0, 0.5, 7.0)):
    """Layers of equal thickness across x, f = sin(pi y): u = p(x) sin(pi y), a (pi^2 p - p'') = 1 in a layer.

    p = 1 / (pi^2 a) + A cosh(pi x) + B sinh(pi x) in each; p = 0 at the walls, p and a p' continuous between layers.
    """
    y, x = centres(n)
    count = len(values)
    matrix, right = torch.zeros(2, 2 * count, 2 * count, dtype=torch.float64)[0], torch.zeros(2 * count, dtype=torch.float64)
    c, s = (lambda t: math.cosh(math.pi * t)), (lambda t: math.sinh(math.pi * t))
    matrix[0, 0], right[0] = 1.0, -1 / (math.pi**2 * values[0])
    for i, (p, q) in enumerate(pairwise(values)):
        t, row = (i + 1) / count, 1 + 2 * i
        matrix[row, row - 1 : row + 3] = torch.tensor([c(t), s(t), -c(t), -s(t)], dtype=torch.float64)
        right[row] = (1 / q - 1 / p) / math.pi**2
        matrix[row + 1, row - 1 : row + 3] = torch.tensor([p * s(t), p * c(t), -q * s(t), -q * c(t)], dtype=torch.float64)
    matrix[-1, -2:] = torch.tensor([c(1.0), s(1.0)], dtype=torch.float64)
    right[-1] = -1 / (math.pi**2 * values[-1])
    amplitudes = torch.linalg.solve(matrix, right).reshape(count, 2)
    layer = (x[0] * count).long()
    a = torch.tensor(values, dtype=torch.float64)[layer]
    p = 1 / (math.pi**2 * a) + (amplitudes[layer] * torch.stack([(math.pi * x[0]).cosh(), (math.pi * x[0]).sinh()], 1)).sum(1)
    operator = Darcy(n, (math.pi * y).sin().expand(n, n), faces=faces)
    return operator(a.expand(1, 1, n, n)), (p * (math.pi * y).sin())[None, None]


def test_layered_medium():
    """Layers end at faces: harmonic keeps order two, arithmetic is of first order."""
    harmonic, arithmetic = ([error(*layers(n, faces)) for n in (16, 32, 64)] for faces in MEANS)
    for coarse, fine in pairwise(harmonic):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.1
    assert abs(math.log2(arithmetic[1] / arithmetic[2]) - 1.0) < 0.2
    assert harmonic[-1] < arithmetic[-1] / 10


def test_axes_are_alike():
    """The solution of a transposed permeability is the transpose."""
    a, f = permeability((5, 7)), field((5, 7), "f")[0, 0]
    assert torch.allclose(Darcy((7, 5), f.mT)(a.mT), Darcy((5, 7), f)(a).mT, rtol=1e-12, atol=1e-14)


def test_blocks_converge_faster_by_harmonic_faces():
    """Blocks of 12 and 3, an eighth of the side, against block means of the solution on the four times finer grid."""
    blocks = torch.where(field((8, 8), "blocks", 1) > 0.0, 12.0, 3.0).double()

    def solution(n, faces):
        return Darcy(n, faces=faces)(blocks.repeat_interleave(n // 8, -1).repeat_interleave(n // 8, -2))

    def coarse(u):
        return torch.nn.functional.avg_pool2d(u, 4)

    fine = solution(128, "harmonic")
    harmonic, arithmetic = (error(solution(32, faces), coarse(fine)) for faces in MEANS)
    assert harmonic < arithmetic / 2


@pytest.mark.parametrize("faces", MEANS)
def test_residual_vanishes_on_its_own_output(faces):
    operator = Darcy((13, 9), field((13, 9), "f")[0, 0], length=1.7, faces=faces)
    a = permeability((13, 9))
    u = operator(a)
    assert float(operator.residual(a, u).abs().max()) < 1e-10
    assert float(operator.residual(1.01 * a, u).abs().max()) > 1e-3


@pytest.mark.parametrize("faces", MEANS)
def test_derivatives(faces):
    operator, a = Darcy((3, 4), faces=faces), permeability((3, 4), batch=2).requires_grad_()
    torch.autograd.gradcheck(operator, a, check_forward_ad=True)
    torch.autograd.gradgradcheck(operator, a)


@pytest.mark.parametrize("faces", MEANS)
def test_vjp_is_the_transpose_of_jvp(faces):
    operator, a = Darcy((12, 9), faces=faces), permeability((12, 9))
    da, w = field((12, 9), "da"), field((12, 9), "w")
    value, pullback = operator.vjp(a)
    same, du = operator.jvp(a, da)
    assert torch.equal(value, operator(a)) and torch.equal(same, value)
    left, right = (du * w).sum((1, 2, 3)), (da * pullback(w)).sum((1, 2, 3))
    assert bool(((left - right).abs() <= 1e-10 * du.flatten(1).norm(dim=1) * w.flatten(1).norm(dim=1)).all())
    x = a.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad((operator(x) * w).sum(), x)[0], pullback(w))


def test_taylor_remainder_is_of_second_order():
    """Steps of 2 % of the permeability and less, where terms of third order are small beside those of second."""
    operator, a = Darcy((10, 8)), permeability((10, 8))
    da = 0.02 * a * field((10, 8), "da")
    u, du = operator.jvp(a, da)
    rests = [float((operator(a + t * da) - u - t * du).norm()) for t in (1.0, 0.5, 0.25, 0.125)]
    for large, small in pairwise(rests):
        assert abs(math.log2(large / small) - 2.0) < 0.1


def test_vmap():
    operator, a, w = Darcy((4, 5)), permeability((4, 5), batch=6).reshape(2, 3, 1, 4, 5), field((4, 5), "w")
    assert torch.allclose(torch.vmap(operator)(a), torch.stack([operator(v) for v in a]), rtol=1e-12)

    def pulled(v):
        return operator.vjp(v)[1](w)

    assert torch.allclose(torch.vmap(pulled)(a), torch.stack([pulled(v) for v in a]), rtol=1e-10)
    jacobian = torch.func.jacrev(operator)(a[0])
    assert torch.allclose(jacobian, torch.func.jacfwd(operator)(a[0]), rtol=1e-8, atol=1e-14)


def test_items_of_a_batch_are_independent():
    operator, a, w = Darcy((7, 6)), permeability((7, 6)), field((7, 6), "w")
    u, pullback = operator.vjp(a)
    for i in range(len(a)):
        alone, pull = operator.vjp(a[i : i + 1])
        assert torch.equal(alone, u[i : i + 1])
        assert torch.equal(pull(w[i : i + 1]), pullback(w)[i : i + 1])


def test_precision():
    """float32 is solved in float64: what is left is the rounding of input and output."""
    operator, a, w = Darcy((16, 16)), permeability((16, 16)), field((16, 16), "w")
    (u, pullback), (single, pull) = operator.vjp(a.float().double()), operator.vjp(a.float())
    assert single.dtype == torch.float32 and pull(w.float()).dtype == torch.float32
    assert error(single, u) < 1e-7
    assert error(pull(w.float()), pullback(w.float().double())) < 1e-7


def test_the_configuration_builds():
    config = yaml.safe_load((Path(invdiff.__file__).parent / "configs" / "operator" / "darcy.yaml").read_text("utf-8"))
    assert build(config).in_shape == (1, 64, 64)
    assert build({**config, **config["_test_"]})(permeability((5, 6))).shape == (3, 1, 5, 6)


class Exponential(Operator):
    """The permeability of its logarithm."""

    def forward(self, x):
        return x.exp()


def test_a_sampler_takes_it():
    """DPS finds log-permeabilities that fit to the noise (chi2 0.4 to 0.5), which no draw of the prior does (4 to 50)."""
    shape = (1, 6, 5)
    y, x = (v.reshape(-1) for v in torch.broadcast_tensors(*centres(6, 5)))
    cov = torch.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 0.3) + 1e-3 * torch.eye(30)
    prior = GaussianPrior(torch.zeros(shape, dtype=torch.float64), cov, sigma_min=0.01, sigma_max=10.0)
    operator = Darcy((6, 5), 10.0) @ Exponential(shape, shape)
    problem = Problem.simulate(operator, Gaussian(0.05), prior.sample(Streams(4, 1)), seed=5)
    draws = DPS(zeta=1.0, steps=60)(problem, prior, n=4, seed=0).x
    assert float(problem.chi2(draws).max()) < 1.0
    assert float(problem.chi2(prior.sample(Streams(6, 4))).min()) > 3.0


def test_one_factor_serves_all_derivatives(monkeypatch):
    count, made = [], darcy._factor
    monkeypatch.setattr(darcy, "_factor", lambda *faces: count.append(1) or made(*faces))
    operator, a, w = Darcy((5, 6)), permeability((5, 6)), field((5, 6), "w")
    _, pullback = operator.vjp(a)
    pullback(w), pullback(2 * w)
    assert len(count) == 3
    operator.jvp(a, w)
    assert len(count) == 6


def test_factors_belong_to_their_permeability():
    system, a, b = darcy._System((0.2, 0.25), "harmonic"), permeability((5, 4)), field((5, 4), "b")
    assert torch.allclose(system.solve(a, b), 2.0 * system.solve(2.0 * a, b), rtol=1e-12)


def test_hessian():
    """Forward over reverse equals reverse over reverse, and is symmetric."""
    operator, a, w = Darcy((3, 3)), permeability((3, 3), batch=1), field((3, 3), "w", 1)

    def misfit(a):
        return (operator(a) - w).square().sum()

    one = torch.func.jacfwd(torch.func.grad(misfit))(a).reshape(9, 9)
    two = torch.func.jacrev(torch.func.grad(misfit))(a).reshape(9, 9)
    assert torch.allclose(one, two, rtol=1e-9, atol=1e-12) and torch.allclose(one, one.mT, rtol=1e-9, atol=1e-12)


def test_casts_and_copies_change_nothing():
    operator, a = Darcy((5, 6), field((5, 6), "f")[0, 0]), permeability((5, 6))
    other = pickle.loads(pickle.dumps(copy.deepcopy(operator).float()))
    assert torch.equal(other(a), operator(a)) and not other.state_dict()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_permeability_is_named(value):
    operator, a = Darcy((4, 5)), permeability((4, 5))
    a[1, 0, 2, 3] = value
    with pytest.raises(DataError, match=r"Darcy: expected a permeability > 0 and finite, item 1 ") as raised:
        operator(a)
    assert "\n" not in str(raised.value)


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="Darcy: expected length > 0"):
        Darcy(4, length=0.0)
    with pytest.raises(ConfigError, match="Darcy: expected faces of harmonic, arithmetic"):
        Darcy(4, faces="geometric")
    with pytest.raises(ShapeError, match="Darcy: expected a number or a field"):
        Darcy(4, torch.zeros(4, 5))
    with pytest.raises(ShapeError, match="at least two cells"):
        Darcy((1, 8))
    with pytest.raises(ShapeError, match="Darcy: expected x"):
        Darcy(4)(torch.ones(1, 1, 4, 5))
    with pytest.raises(ShapeError, match="Darcy: expected y"):
        Darcy(4).residual(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 5))
