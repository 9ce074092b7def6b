"""Every non-linear operator of the package, at the tiny size its configuration names, keeps the contract of an operator."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import yaml

import invdiff
from invdiff.core import LinearOperator, ShapeError, Streams, build, dot, norm

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FOLDER = Path(invdiff.__file__).parent / "configs" / "operator"
F64 = torch.float64


def made(path):
    config = yaml.safe_load(path.read_text("utf-8"))
    return build({**config, **config["_test_"]})


OPERATORS = {
    path.stem: operator for path in sorted(FOLDER.glob("*.yaml")) if not isinstance(operator := made(path), LinearOperator)
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]


def positive(operator, seed=0, batch=2, dtype=F64):
    """Fields of size one, above zero as coefficients have to be."""
    return 0.5 + Streams(seed, batch).uniform(0, operator.in_shape, "x", dtype)


def direction(shape, seed, batch=2, dtype=F64):
    return Streams(seed, batch).normal(0, shape, "v", dtype)


def kind(operator, dtype):
    """The dtype of the output of an operator at a precision."""
    return torch.promote_types(dtype, torch.complex64) if operator.out_complex else dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_have_the_shape_and_precision_of_the_input(operator, dtype):
    y = operator(positive(operator, dtype=dtype))
    assert y.shape == (2, *operator.out_shape) and y.dtype == kind(operator, dtype) and bool(y.isfinite().all())


def test_items_of_a_batch_are_independent(operator):
    x = positive(operator)
    torch.testing.assert_close(operator(x)[1:], operator(x[1:]), rtol=1e-10, atol=1e-12)


def test_forward_mode_is_the_transpose_of_the_backward_mode(operator):
    x, v = positive(operator), direction(operator.in_shape, 1)
    w = direction(operator.out_shape, 2, dtype=kind(operator, F64))
    _, tangent = operator.jvp(x, v)
    _, pull = operator.vjp(x)
    gap = (dot(tangent, w) - dot(v, pull(w))).abs()
    assert bool((gap <= 1e-11 * norm(tangent) * norm(w)).all())


def test_the_remainder_of_taylor_is_of_second_order(operator):
    x, v = positive(operator), direction(operator.in_shape, 3)
    y, tangent = operator.jvp(x, v)
    rest = [norm(operator(x + h * v) - y - h * tangent) for h in (1e-3, 5e-4)]
    assert (rest[0] / rest[1]).log2().tolist() == pytest.approx([2.0, 2.0], abs=0.1)


def test_it_can_be_copied_and_refuses_other_shapes(operator):
    x = positive(operator)
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(x), operator(x))
    with pytest.raises(ShapeError):
        operator(x[:, :, :-1])
