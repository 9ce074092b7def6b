"""The wavelet kernel in Triton's interpreter against the dense tiles of `DWT`, which are held to PyWavelets elsewhere.

Values are of order 1 and sums have at most some thirty terms: float32 leaves 4e-6, float64 1e-13. The interpreter needs some
milliseconds for every load of every program: sizes are small, and each still has an odd length, an edge and a tap beyond it.
"""

import importlib
import sys

import pytest
import torch

from invdiff import kernels
from invdiff.core import CapabilityError, ConfigError, ShapeError, dot, norm
from invdiff.kernels.wavelet import EDGES, coefficients_of, polyphase, wavelet_down, wavelet_up
from invdiff.operators.dwt import DWT
from invdiff.operators.filterbank import filters

HAAR = (0.5**0.5, 0.5**0.5, -(0.5**0.5), 0.5**0.5)
OWN = "invdiff.kernels.wavelet_triton"


@pytest.fixture
def interpreter(monkeypatch):
    """The kernel defined for the interpreter, and switched on; other tests find what they would have found."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    before = sys.modules.pop(OWN, None)
    with kernels.using("wavelet"):
        yield
    sys.modules.pop(OWN, None)
    if before is not None:
        sys.modules[OWN] = before


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def bank_of(wavelet):
    return filters(wavelet)[0].flatten().tolist()


def maps(dwt, x, c):
    return dwt.analysis(x), dwt.inverse_adjoint(x), dwt.inverse(c), dwt.adjoint(c)


# a pair in one launch (up to 8 taps), an axis per launch, three axes, axes that are not last, corners of an earlier level
CASES = [
    ("haar", "periodization", (2, 5, 6), None, 2),
    ("haar", "symmetric", (1, 2, 3, 4), None, 1),
    ("haar", "zero", (1, 8, 4), None, 2),
    ("db4", "periodization", (1, 7, 12), None, 1),
    ("db4", "zero", (1, 5, 6), None, 1),
    ("db2", "symmetric", (1, 7, 6), None, 1),
    ("db2", "symmetric", (1, 1), None, 1),
    ("bior4.4", "symmetric", (1, 3), None, 1),
    ("bior4.4", "periodization", (1, 2, 1, 5), None, 1),
    ("sym5", "periodization", (1, 11), None, 2),
    ("sym5", "zero", (6, 2, 3), (0, 1), 1),
    ("db2", "periodization", (1, 3, 2, 4), (1, 3), 1),
]


@pytest.mark.parametrize(("wavelet", "mode", "shape", "axes", "levels"), CASES)
def test_the_four_maps_are_those_of_the_tiles(interpreter, wavelet, mode, shape, axes, levels):
    dwt = DWT(shape, wavelet, levels, mode, axes)
    x, c = randn(1, *shape), randn(1, *dwt.coefficient_shape, seed=1)
    found = maps(dwt, x, c)
    with kernels.using():
        expected = maps(dwt, x, c)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=4e-6 * float(b.abs().max()))
    analysis, inverse_adjoint, inverse, adjoint = found
    for forward, w, v, backward in ((analysis, c, x, adjoint), (inverse, x, c, inverse_adjoint)):
        assert bool(((dot(forward, w) - dot(v, backward)).abs() <= 1e-6 * norm(forward) * norm(w)).all())
    torch.testing.assert_close(dwt.inverse(analysis), x, rtol=0, atol=4e-6)


def test_the_tiles_are_not_used_when_the_kernel_is_on(interpreter, monkeypatch):
    dwt, x = DWT((1, 6), "haar"), randn(1, 1, 6)
    monkeypatch.setattr(type(dwt.levels[0][0].analysis), "forward", lambda *_: pytest.fail("the tiles ran"))
    torch.testing.assert_close(dwt.analysis(x)[0, 0, :3], (x[0, 0, ::2] + x[0, 0, 1::2]) / 2**0.5)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.bfloat16, 0.06)])
def test_other_precisions(interpreter, dtype, atol):
    """bfloat16 has 8 bits; the interpreter cuts where a device rounds, so that values of 4 may be off by 2^-5 and more."""
    dwt, x = DWT((1, 6, 8), "db2"), randn(1, 1, 6, 8, dtype=torch.float64).to(dtype)
    c = dwt.analysis(x)
    assert c.dtype == dtype
    with kernels.using():
        torch.testing.assert_close(c.double(), dwt.analysis(x.double()), rtol=0, atol=atol)


def test_any_strides(interpreter):
    """Two leading dimensions with a stride each, three, and a last dimension with gaps; for a pair and for one axis."""
    x = randn(3, 2, 3, 4)
    for view in (x.transpose(0, 1), x[:, :, 1:3], x.transpose(2, 3)[:, :1]):
        for dims in ([2, 3], [2]):
            found, want = (wavelet_down(v, dims, HAAR, "zero") for v in (view, view.contiguous()))
            assert torch.equal(found, want) and found.is_contiguous()
    x = randn(2, 2, 1, 2, 2).transpose(0, 2)
    assert torch.equal(wavelet_down(x, [3, 4], HAAR, "zero"), wavelet_down(x.contiguous(), [3, 4], HAAR, "zero"))
    assert wavelet_down(x[:0], [3, 4], bank_of("db2"), "zero").shape == (0, 2, 2, 4, 4)


@pytest.mark.parametrize("edge", ["zero", "periodization"])
def test_registration(interpreter, edge):
    """Schema, fake form, autograd and tracing, by torch's own checks."""
    x, c = randn(1, 3).requires_grad_(), randn(1, 4).requires_grad_()
    torch.library.opcheck(wavelet_down, (x, [1], HAAR, edge))
    torch.library.opcheck(wavelet_up, (c, [1], [3], HAAR, edge))


@pytest.mark.parametrize("edge", EDGES)
def test_each_is_the_other_backwards(interpreter, edge):
    x, bank = randn(1, 5, dtype=torch.float64).requires_grad_(), bank_of("db2")
    c = wavelet_down(x, [1], bank, edge)
    w = randn(*c.shape, seed=1, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(c, x, w, create_graph=True)
    assert torch.equal(gradient, wavelet_up(w, [1], [5], bank, edge))
    # and again, through the backward pass
    v = randn(1, 5, seed=2, dtype=torch.float64)
    (second,) = torch.autograd.grad(gradient, w, v)
    assert torch.equal(second, wavelet_down(v, [1], bank, edge))


def test_nothing_is_saved_and_batches_fold(interpreter):
    saved = []
    x, bank = randn(2, 1, 4).requires_grad_(), bank_of("haar")
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        c = wavelet_down(x, [2], bank, "zero")
        y = wavelet_up(c, [2], [4], bank, "zero")
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not saved
    torch.testing.assert_close(gradient, torch.ones_like(x))
    mapped = torch.func.vmap(lambda v: wavelet_up(wavelet_down(v, [1], bank, "zero"), [1], [4], bank, "zero"), in_dims=2)
    torch.testing.assert_close(mapped(x.detach().movedim(0, 2)), x.detach())


@pytest.mark.parametrize("wavelet", ["haar", "db4", "sym5", "bior4.4"])
@pytest.mark.parametrize("edge", ["zero", "crop"])
def test_the_table_by_its_definition(wavelet, edge):
    """An impulse at position p gives h_b[s - p] at 0: every tap is in the table once, at (b, v, i) of p = 2 i + v."""
    bank = tuple(bank_of(wavelet))
    taps = len(bank) // 2
    shift = taps // 2 if edge == "crop" else 1
    down, first = polyphase(bank, shift, False)
    for b in (0, 1):
        for p in range(shift - taps + 1, shift + 1):
            assert down[b][p % 2][p // 2 - first] == bank[b * taps + shift - p]
    assert sum(value != 0.0 for rows in down for row in rows for value in row) == sum(value != 0.0 for value in bank)
    up, start = polyphase(bank, shift, True)
    for u in (0, 1):
        for v in (0, 1):
            assert up[u][v] == down[v][u][::-1]
    assert start == -(first + len(down[0][0]) - 1)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("name", ["_axis", "_pair"])
def test_the_kernels_compile_for_a_device(name, up, monkeypatch, tmp_path):
    """To a binary of compute capability 9.0, also where sizes of 1 have become constants; no device is needed."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    wavelet_triton = importlib.import_module(OWN)

    kernel = getattr(wavelet_triton, name)
    names = kernel.arg_names
    meta = {"EDGE": 3, "UP": up, "ACC": triton.language.float32}
    tile = {"BA": 8, "BB": 64} if name == "_pair" else {"BK": 4, "BI": 128}
    pointers = {"x": "*fp32", "out": "*fp32", "table": "*fp32", "first": "i32"}
    sizes = [n for n in names if n not in {*pointers, *meta, *tile, "W"}]
    for window, constants in ((5, {}), (1, dict.fromkeys(sizes, 1))):
        fixed = {**meta, **tile, "W": window, **constants}
        signature = {n: "constexpr" if n in fixed else pointers.get(n, "i32") for n in names}
        source = triton.compiler.ASTSource(kernel, signature, {(names.index(n),): v for n, v in fixed.items()})
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
        assert binary.asm["cubin"]


def test_the_table_of_haar():
    assert polyphase(HAAR, 1, False) == ((((HAAR[1],), (HAAR[0],)), ((HAAR[3],), (HAAR[2],))), 0)
    assert [coefficients_of(7, 4, edge) for edge in EDGES] == [5, 4, 4, 5]


def test_wrong_arguments_are_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = randn(2, 6)
    with pytest.raises(ConfigError, match="wavelet_down: expected edge zero, crop, periodization, symmetric, got 'reflect'"):
        wavelet_down(x, [1], HAAR, "reflect")
    with pytest.raises(ConfigError, match="expected two filters of the same even length, got 6 numbers"):
        wavelet_down(x, [1], (1.0,) * 6, "zero")
    for dims in ([], [2], [1, 1], [-1]):
        with pytest.raises(ShapeError, match="expected different dimensions that hold values"):
            wavelet_down(x, dims, HAAR, "zero")
    with pytest.raises(ShapeError, match=r"expected a real tensor, got torch\.complex64"):
        wavelet_down(x + 0j, [1], HAAR, "zero")
    with pytest.raises(CapabilityError, match=r"expected a CUDA tensor \(or TRITON_INTERPRET=1\), got one on cpu: use DWT"):
        wavelet_down(x, [1], HAAR, "zero")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    with pytest.raises(ShapeError, match=r"wavelet_up: expected \[8\] coefficients along the dimensions \[1\] for sizes \[7\]"):
        wavelet_up(x, [1], [7], HAAR, "zero")


@pytest.mark.gpu
@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior4.4", "sym5"])
@pytest.mark.parametrize("mode", ["periodization", "symmetric", "zero"])
def test_on_a_device(wavelet, mode):
    """Sizes with many tiles, interior and at edges, in two and three dimensions; sums of some hundred terms in float32."""
    for shape in ((2, 200, 333), (1, 30, 41, 140)):
        dwt = DWT(shape, wavelet, 2, mode)
        x, c = randn(2, *shape), randn(2, *dwt.coefficient_shape, seed=1)
        expected = maps(dwt, x, c)
        with kernels.using("wavelet"):
            found = maps(dwt.cuda(), x.cuda(), c.cuda())
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-5 * float(b.abs().max()))
