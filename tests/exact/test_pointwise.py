"""Functions of single values: their values, slopes and remainders, and what becomes of them in compositions."""

import math

import pytest
import torch

from invdiff.core import ConfigError, Matrix, Operator, ShapeError
from invdiff.operators.pointwise import Clip, Exponential, Step

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
SHAPE = (2, 3, 4)
SMOOTH = {
    "exponential": lambda: Exponential(SHAPE, 2.5),
    "step": lambda: Step(SHAPE, low=3.0, high=12.0, width=0.7),
    "falling step": lambda: Step(SHAPE, low=1.0, high=-2.0, width=1.3),
}
ALL = SMOOTH | {"clip": lambda: Clip(SHAPE, -0.5, 0.8)}


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def flat(values):
    """One item whose values these are."""
    return torch.tensor(values, dtype=F64)[None]


def test_clip_inside_outside_and_without_bounds():
    x = flat([-3.0, -1.0, 0.0, 2.0, 5.0])
    for low, high, value, slope in (
        (-1.0, 2.0, [-1.0, -1.0, 0.0, 2.0, 2.0], [0.0, 1.0, 1.0, 1.0, 0.0]),
        (-1.0, math.inf, [-1.0, -1.0, 0.0, 2.0, 5.0], [0.0, 1.0, 1.0, 1.0, 1.0]),
        (-math.inf, 2.0, [-3.0, -1.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0, 0.0]),
    ):
        clip = Clip((5,), low, high)
        assert torch.equal(clip(x), flat(value)) and torch.equal(clip.slope(x), flat(slope))
    free = Clip((5,))
    assert torch.equal(free(x), x) and torch.equal(free.slope(x), torch.ones_like(x))


def test_exponential_at_known_points():
    x = flat([0.0, math.log(2.0), -math.log(4.0)])
    torch.testing.assert_close(Exponential((3,), 3.0)(x), flat([3.0, 6.0, 0.75]), rtol=1e-15, atol=0)


def test_step_is_the_normal_distribution_function():
    """Phi(0) = 1/2, Phi(1) - Phi(-1) = erf(1 / sqrt 2), and steepest at the edge."""
    step = Step((5,), low=3.0, high=12.0, width=0.2)
    found = step(flat([-50.0, -0.2, 0.0, 0.2, 50.0]))[0]
    part = 4.5 * math.erf(math.sqrt(0.5))
    torch.testing.assert_close(found, flat([3.0, 7.5 - part, 7.5, 7.5 + part, 12.0])[0], rtol=1e-14, atol=0)
    assert float(step.slope(torch.zeros(1, 5, dtype=F64))[0, 0]) == pytest.approx(
        9.0 / (0.2 * math.sqrt(2 * math.pi)), rel=1e-14
    )


@pytest.mark.parametrize("name", ALL)
def test_slope_is_the_derivative_by_autograd(name):
    operator, x, t = ALL[name](), randn(3, *SHAPE), randn(3, *SHAPE, seed=1)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(operator(leaf), leaf, t)
    value, push, pull = operator.linearize(x)
    assert torch.equal(value, operator(x))
    for found in (push(t), pull(t), operator.jvp(x, t)[1], operator.vjp(x)[1](t), t * operator.slope(x)):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
    assert operator(x.float()).dtype == operator.slope(x.float()).dtype == torch.float32


@pytest.mark.parametrize("name", SMOOTH)
def test_remainder_is_of_second_order(name):
    operator, x, t = SMOOTH[name](), randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    value, push, _ = operator.linearize(x)
    left = [float((operator(x + h * t) - value - h * push(t)).norm()) for h in (1e-2, 1e-3)]
    assert math.log10(left[0] / left[1]) == pytest.approx(2.0, abs=0.1)


class Square(Operator):
    """With the derivative that any operator has."""

    def forward(self, x):
        return x.square()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("order", ["inside", "outside", "between", "two"])
def test_in_a_composition(name, order):
    """value, push and pull of `linearize` are those of torch.func, and adjoint to each other."""
    inner, matrix = ALL[name](), Matrix(randn(5, 24, seed=2) / 5, SHAPE)
    before = Matrix(randn(24, 24, seed=5) / 5, (24,))
    operator = {
        "inside": lambda: matrix @ inner,
        "outside": lambda: type_on((5,), inner) @ matrix,
        "between": lambda: matrix @ inner @ Square(SHAPE, SHAPE),
        "two": lambda: type_on((24,), inner) @ before @ type_on((24,), inner),
    }[order]()
    x, t = randn(3, *operator.in_shape, seed=3), randn(3, *operator.in_shape, seed=4)
    v = randn(3, *operator.out_shape, seed=6)
    value, push, pull = operator.linearize(x)
    expected, derivative = torch.func.jvp(operator, (x,), (t,))
    _, backward = torch.func.vjp(operator, x)
    for found, wanted in ((value, expected), (push(t), derivative), (pull(v), backward(v)[0])):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close((push(t) * v).sum(), (t * pull(v)).sum(), rtol=1e-11, atol=0)
    torch.testing.assert_close(operator.vjp(x)[1](v), pull(v), rtol=1e-12, atol=1e-13)
    # products at a point are linear and can be taken again
    torch.testing.assert_close(push(2.0 * t), 2.0 * push(t), rtol=1e-13, atol=1e-13)


def type_on(shape, operator):
    """The same function on another shape."""
    options = {
        Clip: ("low", "high"),
        Exponential: ("scale",),
        Step: ("low", "high", "width"),
    }[type(operator)]
    return type(operator)(shape, **{name: getattr(operator, name) for name in options})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Clip((3,), 1.0, 1.0), "Clip: expected low < high, got 1.0 and 1.0"),
        (lambda: Clip((3,), math.nan, 1.0), "Clip: expected low < high"),
        (lambda: Exponential((3,), 0.0), "scale"),
        (lambda: Step((3,), low=0.0, high=1.0, width=-1.0), "width"),
    ],
)
def test_options_out_of_range_are_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("name", ALL)
def test_other_shapes_are_refused(name):
    for call in (lambda o: o(randn(2, 3, 4)), lambda o: o.linearize(randn(2, 3, 4)), lambda o: o.vjp(randn(1, 2, 3, 5))):
        with pytest.raises(ShapeError, match=r"expected x of shape \(B, 2, 3, 4\) real"):
            call(ALL[name]())
