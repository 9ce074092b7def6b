"""Fused normalisation and gates: against torch's own operations, what they keep, and their Triton forms in the interpreter."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from invdiff import kernels
from invdiff.core.errors import ConfigError, ShapeError
from invdiff.kernels import geglu, group_norm_silu, group_norm_torch, silu_gate

# forward mode loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

F64 = torch.float64
SHAPES = {"1d": (3, 6, 7), "2d": (2, 6, 5, 4), "3d": (2, 4, 3, 2, 5), "one item": (1, 8, 3, 4), "no space": (4, 6)}
FORMS = {"film": (True, True), "scale": (True, False), "shift": (False, True), "none": (False, False)}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def laid_out(x: Tensor, last: bool) -> Tensor:
    """x with its channels last in memory, or first."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def inputs(shape: tuple[int, ...], form: str = "film", last: bool = False, dtype: torch.dtype = F64) -> list[Tensor | None]:
    """x (off centre, so that a wrong mean is seen), weight, bias, scale, shift; vectors of mixed precision are float32."""
    batch, channels = shape[:2]
    wide = torch.promote_types(dtype, torch.float32)
    scale, shift = FORMS[form]
    return [
        laid_out(2 + 3 * draw(*shape), last).to(dtype),
        draw(channels, seed=1).to(wide),
        draw(channels, seed=2).to(wide),
        draw(batch, channels, seed=3).to(dtype) if scale else None,
        draw(batch, channels, seed=4).to(dtype) if shift else None,
    ]


def ours(x, weight, bias, scale=None, shift=None, groups=2, activation=True):
    return group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift, activation=activation)


def torchs(x, weight, bias, scale=None, shift=None, groups=2, activation=True):
    """What one writes."""
    over = (..., *[None] * (x.ndim - 2))
    u = F.group_norm(x, groups, weight, bias, 1e-5)
    u = u if scale is None else u * (1 + scale[over])
    u = u if shift is None else u + shift[over]
    return F.silu(u) if activation else u


def with_gradients(function, tensors: list[Tensor | None], dy: Tensor) -> list[Tensor]:
    """The value and the gradient of every tensor."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], dy)]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error of a list of tensors, in the 2-norm."""
    return max(float((a.to(F64) - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_torchs_operations(shape, form, last):
    for activation in (True, False):
        tensors, dy = inputs(shape, form, last), draw(*shape, seed=5)
        found, expected = (with_gradients(partial(f, activation=activation), tensors, dy) for f in (ours, torchs))
        assert error(found, expected) < 1e-12
        with torch.no_grad():
            torch.testing.assert_close(ours(*tensors, activation=activation), found[0], rtol=0, atol=0)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("form", ["film", "none"])
@pytest.mark.parametrize("piece", [1, 20, 50])
def test_pieces_change_nothing(monkeypatch, form, last, piece):
    """Pieces of less than a group, of some of an item and of an item or two; 24 entries an item, 12 a group."""
    tensors, dy = inputs((5, 4, 3, 2), form, last), draw(5, 4, 3, 2, seed=5)
    expected = with_gradients(torchs, tensors, dy)
    monkeypatch.setattr(group_norm_torch, "PIECE", piece)
    assert error(with_gradients(ours, tensors, dy), expected) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("form", ["film", "none"])
def test_precision(form, last, dtype, tolerance):
    """Rounding of a few operations; a mean of 33 standard deviations is no harm to the statistics of channels that are first.

    Where they are last, torch's normalisation takes the difference of the mean square and the squared mean.
    """
    tensors, dy = inputs((2, 32, 9, 9), form, last, dtype), draw(2, 32, 9, 9, seed=5, dtype=dtype)
    far = dtype == torch.float32 and not last
    tensors[0] += 100 if far else 0
    wide = [None if t is None else t.to(F64) for t in tensors]
    bound = tolerance * (33 if far else 1)
    found = with_gradients(ours, tensors, dy)
    assert error(found, with_gradients(torchs, wide, dy.to(F64))) < bound
    assert [t.dtype for t in found] == [t.dtype for t in (tensors[0], *tensors) if t is not None]
    statistics = torch.ops.invdiff.group_norm_silu(tensors[0], 2, tensors[1][None], tensors[2][None], True, 1e-5)[1:]
    expected = wide[0].unflatten(1, (2, -1)).flatten(2)
    torch.testing.assert_close(statistics[0].to(F64), expected.mean(2), rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics[1].to(F64), expected.var(2, correction=0).rsqrt(), rtol=2e-5, atol=0)


def test_layouts_are_kept():
    for shape in ((2, 6, 5, 4), (2, 6, 3, 4, 5), (2, 6, 7)):
        for last in (False, True):
            tensors = inputs(shape, last=last)
            for dy in (draw(*shape), laid_out(draw(*shape), True), torch.ones(()).double().expand(shape)):
                y, dx, *_ = with_gradients(ours, tensors, dy)
                assert y.stride() == dx.stride() == tensors[0].stride()
    gaps = draw(2, 6, 5, 8)[..., ::2]
    assert error([ours(gaps, *inputs((2, 6, 5, 4))[1:])], [torchs(gaps, *inputs((2, 6, 5, 4))[1:])]) < 1e-12
    images = draw(2, 6, 5, 4).contiguous(memory_format=torch.channels_last)
    assert silu_gate(images, dim=1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_derivatives(last):
    """First, batched and second derivatives, and forward mode."""
    tensors = [t.requires_grad_() for t in inputs((2, 4, 3, 2), last=last)]
    assert torch.autograd.gradcheck(ours, tensors, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, tensors, atol=1e-4)
    for function in (lambda x: silu_gate(x, dim=1), geglu, lambda x: geglu(x, approximate="tanh")):
        assert torch.autograd.gradcheck(function, tensors[:1], check_batched_grad=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, tensors[:1])


def test_function_transforms():
    x, *rest = inputs((3, 4, 3, 2))
    v = draw(3, 4, 3, 2, seed=6)
    for function, expected in (
        (ours, torchs),
        (lambda x, *_: silu_gate(x), lambda x, *_: F.silu(x.chunk(2, -1)[1]) * x[..., :1]),
    ):
        for transform in (
            lambda f: torch.func.jvp(lambda u: f(u, *rest), (x,), (v,))[1],
            lambda f: torch.func.grad(lambda u: f(u, *rest).square().sum())(x),
            lambda f: torch.func.hessian(lambda s: f(x[:1] * s, *rest[:2]).square().sum())(x.new_ones(2)),
            lambda f: torch.vmap(lambda u, w: f(u[None], w, rest[1])[0])(x, draw(3, 4, seed=7)),
        ):
            torch.testing.assert_close(transform(function), transform(expected), rtol=1e-10, atol=1e-10)


def test_only_what_needs_a_gradient():
    for wanted in range(5):
        tensors, dy = inputs((2, 4, 3, 2)), draw(2, 4, 3, 2, seed=5)
        tensors[wanted].requires_grad_()
        (found,) = torch.autograd.grad(ours(*tensors), tensors[wanted], dy)
        (expected,) = torch.autograd.grad(torchs(*tensors), tensors[wanted], dy)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def kept(function, *tensors: Tensor | None) -> int:
    """Bytes that autograd keeps, parameters and all, each storage once."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(*(None if t is None else t.requires_grad_() for t in tensors))
    assert y.requires_grad
    return sum(storages.values())


def test_one_tensor_is_kept():
    """x, mean and rstd (B, groups), gamma and beta (B, C), and what these are products of; torch keeps n and u as well."""
    shape, groups = (2, 8, 16, 16), 2
    whole, vector = 4 * 2 * 8 * 16 * 16, 4 * 2 * 8
    for last in (False, True):
        tensors = inputs(shape, last=last, dtype=torch.float32)
        small = kept(ours, *tensors) - whole
        # gamma, beta, 1 + scale; weight and bias, half as large; statistics
        assert small <= 3 * vector + vector + 2 * 4 * 2 * groups
        assert kept(torchs, *inputs(shape, last=last, dtype=torch.float32)) >= 3 * whole
    assert kept(ours, *inputs(shape, "none", dtype=torch.float32)) - whole <= vector + 2 * 4 * 2 * groups
    x = inputs(shape, dtype=torch.float32)[0]
    for function, plain in ((silu_gate, F.silu), (geglu, F.gelu)):
        assert kept(function, x.detach()) == whole
        assert kept(lambda x, plain=plain: x.chunk(2, -1)[0] * plain(x.chunk(2, -1)[1]), x.detach()) == whole + whole // 2


@pytest.mark.parametrize("dim", [-1, 1, 0])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_gates_equal_torchs_operations(dim, last):
    x, half = laid_out(draw(4, 6, 5, 2), last), [n // (2 if axis == dim % 4 else 1) for axis, n in enumerate((4, 6, 5, 2))]
    for function, act in (
        (lambda x: silu_gate(x, dim=dim), F.silu),
        (lambda x: geglu(x, dim=dim), F.gelu),
        (lambda x: geglu(x, dim=dim, approximate="tanh"), lambda b: F.gelu(b, approximate="tanh")),
    ):
        expected = with_gradients(lambda x, act=act: x.chunk(2, dim)[0] * act(x.chunk(2, dim)[1]), [x], draw(*half))
        assert error(with_gradients(function, [x], draw(*half)), expected) < 1e-14
        found = with_gradients(function, [x.bfloat16()], draw(*half).bfloat16())
        assert found[0].dtype == found[1].dtype == torch.bfloat16
        assert error(found, expected) < 2**-6


OPERATIONS = {
    "norm": lambda x, v: (torch.ops.invdiff.group_norm_silu, (x, 2, v, v, True, 1e-5)),
    "norm shared": lambda x, v: (torch.ops.invdiff.group_norm_silu, (x, 2, *v[:, None].detach(), False, 1e-5)),
    "norm backward": lambda x, v: (
        torch.ops.invdiff.group_norm_silu_backward,
        (x.detach(), x.detach(), 2, v.detach(), v.detach(), v.detach()[:, :2].clone(), v.detach()[:, :2].exp(), True, 1e-5),
    ),
    "gate": lambda x, v: (torch.ops.invdiff.gate, (x, "gelu", 1)),
    "gate backward": lambda x, v: (torch.ops.invdiff.gate_backward, (x.detach()[:, ::2], x.detach(), "silu", 1)),
}


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_well_registered(name, last):
    operation, arguments = OPERATIONS[name](laid_out(draw(2, 4, 3, 2), last).requires_grad_(), draw(2, 4).requires_grad_())
    torch.library.opcheck(operation, arguments)


def test_operations_equal_the_functions():
    """What a compiled graph calls where the Triton form is on."""
    x, weight, bias, *_ = inputs((2, 4, 3, 2))
    dy = draw(2, 4, 3, 2, seed=5)
    vectors = [weight.expand(2, 4).contiguous(), bias.expand(2, 4).contiguous()]
    operation = torch.ops.invdiff.group_norm_silu
    found = with_gradients(lambda x, g, b: operation(x, 2, g, b, True, 1e-5)[0], [x, *vectors], dy)
    expected = with_gradients(ours, [x, weight, bias], dy)
    assert error([*found[:2], *(t.sum(0) for t in found[2:])], expected) < 1e-12
    found = with_gradients(lambda x: torch.ops.invdiff.gate(x, "silu", 1), [x], dy[:, :2])
    assert error(found, with_gradients(lambda x: silu_gate(x, dim=1), [x], dy[:, :2])) == 0


def test_compiled_graphs_are_whole():
    """Neither the functions nor the operations break a graph."""
    x, weight, bias, scale, shift = inputs((2, 4, 3, 2))
    dy = draw(2, 4, 3, 1, seed=5)

    def network(x, weight, bias, scale, shift):
        y = torch.ops.invdiff.group_norm_silu(x, 2, weight[None], bias[None], True, 1e-5)[0]
        return torch.ops.invdiff.gate(ours(y, weight, bias, scale, shift), "gelu", 3) + geglu(y)

    tensors = [x, weight, bias, scale, shift]
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert error(with_gradients(compiled, tensors, dy), with_gradients(network, tensors, dy)) < 1e-12


def test_tensors_without_data():
    with FakeTensorMode():
        for last in (False, True):
            x = laid_out(torch.empty(2, 4, 3, 2), last).requires_grad_()
            vector, item = torch.empty(4, requires_grad=True), torch.empty(2, 4, requires_grad=True)
            y = geglu(silu_gate(ours(x, vector, vector, item, item), dim=1), dim=1)
            assert y.shape == (2, 1, 3, 2)
            assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_bits_repeat_and_items_are_independent(last):
    tensors, dy = inputs((3, 8, 9, 9), last=last, dtype=torch.float32), draw(3, 8, 9, 9, seed=5, dtype=torch.float32)
    first, second = (with_gradients(ours, tensors, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    alone = with_gradients(ours, [t[1:2] if i in (0, 3, 4) else t for i, t in enumerate(tensors)], dy[1:2])
    assert error(alone[:2], [t[1:2].double() for t in first[:2]]) < 1e-6


def test_errors():
    x, weight, bias, scale, _ = inputs((2, 6, 5, 4))
    with pytest.raises(ShapeError, match=r"groups that divide C, got .* 4 groups"):
        group_norm_silu(x, 4, weight, bias)
    for wrong in ({"scale": scale[:1]}, {"shift": scale[..., None]}, {"weight": weight[:2]}):
        with pytest.raises(ShapeError, match=f"expected {next(iter(wrong))}"):
            group_norm_silu(x, 2, **({"weight": weight, "bias": bias} | wrong))
    with pytest.raises(ShapeError, match="even axis 2"):
        silu_gate(x, dim=2)
    with pytest.raises(ConfigError, match="none or tanh, got 'erf'"):
        geglu(x, approximate="erf")


def test_triton_forms_in_the_interpreter():
    """In a process of its own: kernels are interpreted if the variable is set before they are defined."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "INVDIFF_KERNELS": "all", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["interpreted", str(len(INTERPRETED))]


def interpreted_norm() -> None:
    """Against torch in float64: one tile a group and many, odd sizes, both layouts, shared and own factors."""
    from invdiff.kernels import group_norm_triton

    group_norm_triton.TILE, group_norm_triton.WHOLE, group_norm_triton.CHUNK = 256, 512, 2
    for shape, groups, form, last, dtype, activation in (
        ((2, 12, 9, 7), 3, "film", False, torch.float32, True),
        ((1, 6, 13, 11), 2, "film", True, torch.float32, False),
        ((2, 8, 171), 2, "shift", False, torch.bfloat16, True),
        ((1, 32, 3, 5), 2, "scale", True, torch.bfloat16, True),
        ((1, 5, 5, 7, 3), 1, "none", False, torch.float16, True),
    ):
        tensors, dy = inputs(shape, form, last, dtype), draw(*shape, seed=5, dtype=dtype)
        wide = [None if t is None else t.double() for t in tensors]
        found, expected = (
            with_gradients(partial(f, groups=groups, activation=activation), given, dy.to(given[0].dtype))
            for f, given in ((ours, tensors), (torchs, wide))
        )
        bound = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
        assert error(found, expected) < bound, (shape, form, error(found, expected))
        assert found[0].stride() == found[1].stride() == tensors[0].stride()
    again = with_gradients(partial(ours, groups=groups), tensors, dy)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def interpreted_statistics() -> None:
    """Of float32 values with a mean of 1000: sums of squares would leave one digit of the deviations."""
    from invdiff.kernels import group_norm_triton

    x, one = draw(1, 2, 1999, dtype=torch.float32) + 1000, torch.ones(1, 2)
    _, mean, rstd = group_norm_triton.forward(x, 1, one, one, True, 1e-5)
    torch.testing.assert_close(mean.double(), x.double().mean().view(1, 1), rtol=1e-6, atol=0)
    torch.testing.assert_close(rstd.double(), x.double().var(correction=0).rsqrt().view(1, 1), rtol=2e-5, atol=0)


def interpreted_gates() -> None:
    for shape, dim, last in (((3, 7, 10), -1, False), ((2, 6, 5, 4), 1, True), ((2, 6, 5, 4), 1, False), ((4, 301), 0, False)):
        x = laid_out(2 * draw(*shape, dtype=torch.float32), last)
        for function in (silu_gate, geglu, lambda x, dim: geglu(x, dim=dim, approximate="tanh")):
            dy = draw(*function(x.double(), dim=dim).shape, seed=5, dtype=torch.float32)
            expected = with_gradients(partial(function, dim=dim), [x.double()], dy.double())
            for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2**-6)):
                found = with_gradients(partial(function, dim=dim), [x.to(dtype)], dy.to(dtype))
                assert error(found, expected) < bound, (shape, dim, dtype, error(found, expected))
                assert found[1].stride() == x.stride()


def interpreted_dispatch() -> None:
    """The Triton form ran above, because it is on, and not for float64."""
    import invdiff.kernels.gates_triton as form

    form.forward = None
    assert silu_gate(draw(2, 4)).shape == (2, 2)
    with kernels.using("group_norm"):
        assert silu_gate(draw(2, 4, dtype=torch.float32)).shape == (2, 2)
    with pytest.raises(TypeError, match="not callable"):
        silu_gate(draw(2, 4, dtype=torch.float32))


INTERPRETED = (interpreted_norm, interpreted_statistics, interpreted_gates, interpreted_dispatch)

if __name__ == "__main__":
    for check in INTERPRETED:
        check()
    sys.stdout.write(f"interpreted {len(INTERPRETED)}")
