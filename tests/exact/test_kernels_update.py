"""The sampler's update: the rules by their definitions, the noise against `Streams` bit for bit, Triton against torch."""

import importlib
import sys
import zlib

import pytest
import torch

from invdiff import kernels
from invdiff.core import ConfigError, ShapeError, Streams
from invdiff.kernels.update import combine, sampler_update
from invdiff.samplers.integrators import ddim

OWN = "invdiff.kernels.update_triton"
F64 = torch.float64


@pytest.fixture
def interpreter(monkeypatch):
    """The kernel defined for the interpreter, and switched on; other tests find what they would have found."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    before = sys.modules.pop(OWN, None)
    with kernels.using("update"):
        yield
    sys.modules.pop(OWN, None)
    if before is not None:
        sys.modules[OWN] = before


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def tensors(count, *shape, dtype=F64):
    return [randn(*shape, seed=i, dtype=dtype) for i in range(count)]


def test_the_rules_of_the_samplers():
    """Euler, ancestral, Heun, O-BELM and a gradient, written as their papers have them; a few roundings of float64."""
    x, d, ahead, d_ahead, previous, gradient = tensors(6, 2, 1, 5, 7)
    sigma, to, streams = 3.0, 2.0, Streams(7, (4, 1))
    eps, eps_ahead, h = (x - d) / sigma, (ahead - d_ahead) / to, to - sigma
    z = streams.normal(5, (1, 5, 7), dtype=F64)
    c = to * (1 - (to / sigma) ** 2) ** 0.5
    share = (to**2 - c**2) ** 0.5 / sigma
    r = 0.8
    pairs = [
        (sampler_update([(to / sigma, x), (1 - to / sigma, d)]), d + to * eps),
        (sampler_update([(share, x), (1 - share, d)], noise=(c, streams, 5, "step")), ddim(d, x, sigma, to, 1.0, lambda: z)),
        (
            sampler_update([(1 + h / (2 * sigma), x), (-h / (2 * sigma), d), (h / (2 * to), ahead), (-h / (2 * to), d_ahead)]),
            x + h * (eps + eps_ahead) / 2,
        ),
        (
            sampler_update([(1 - r**2 + h * (1 + r) / sigma, x), (r**2, previous), (-h * (1 + r) / sigma, d), (0.3, gradient)]),
            r**2 * previous + (1 - r**2) * x + h * (1 + r) * eps + 0.3 * gradient,
        ),
        (
            sampler_update([(to / sigma, x), (1 - to / sigma, d)], clip=(1, -0.5, 0.6)),
            d.clamp(-0.5, 0.6) + (to / sigma) * (x - d.clamp(-0.5, 0.6)),
        ),
    ]
    for found, want in pairs:
        torch.testing.assert_close(found, want, rtol=0, atol=1e-14)


def test_the_result_is_new_and_contiguous():
    x, d = tensors(2, 2, 3, 4, 5)
    keep = x.clone(), d.clone()
    for clip in (None, (0, -1.0, 1.0)):
        for terms in ([(1.0, x)], [(0.3, x), (0.7, d)], [(2.0, x), (0.7, d)]):
            out = sampler_update(terms, clip=clip)
            assert out.data_ptr() not in (x.data_ptr(), d.data_ptr())
    assert torch.equal(x, keep[0]) and torch.equal(d, keep[1])
    assert sampler_update([(1.0, x.to(memory_format=torch.channels_last))]).is_contiguous()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")  # torch's own, in forward mode
def test_derivatives():
    x, d, e = (t.requires_grad_() for t in tensors(3, 2, 3))
    noise = (0.5, Streams(0, 2), 1, "step")
    for clip in (None, (0, -0.4, 0.5), (2, -0.4, 0.5)):
        update = lambda *t, clip=clip: sampler_update(  # noqa: E731
            list(zip((0.25, 0.75, -1.5), t, strict=True)), clip=clip, noise=noise
        )
        assert torch.autograd.gradcheck(update, (x, d, e), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(update, (x, d, e))


SEEDS = [(0, 0, (0,)), (-5, 1, (3, 1)), (2**40 + 17, 999, (2**31 + 5, 7)), (2**63 - 1, 2**31, (2**32 - 1,))]


@pytest.mark.parametrize(("seed", "step", "draws"), SEEDS)
def test_the_words_are_those_of_the_streams(interpreter, seed, step, draws):
    from invdiff.kernels.update_triton import words

    found = words(seed, draws, step, zlib.crc32(b"purpose"), 300, torch.device("cpu"))
    assert torch.equal(found, Streams(seed, draws)._words(step, 1200, "purpose", None))


def ulps(a, b):
    """Distance in units of the last place, for finite numbers of one dtype."""
    small = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}[a.dtype]
    a, b = (t.view(small).to(torch.int64) for t in (a, b))
    return (torch.where(a < 0, -(a & (2**31 - 1)), a) - torch.where(b < 0, -(b & (2**31 - 1)), b)).abs().max()


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1), (torch.float16, 1)])
def test_the_noise_is_that_of_the_streams(interpreter, dtype, bar):
    """Odd sizes with a part of a block at the end, and draws that are no run; the same for each draw alone."""
    streams, zero = Streams(2**40 + 17, (5, 0, 9)), torch.zeros(3, 1, 41, 53, dtype=dtype)
    z = sampler_update([(1.0, zero)], noise=(1.0, streams, 4, "step"))
    want = streams.normal(4, (1, 41, 53), "step", dtype)
    assert z.dtype == dtype and ulps(z, want) <= bar
    # two libraries may differ in the last digit of a float64 logarithm, not more often than in a thousandth
    assert (z != want).float().mean() < 1e-3
    alone = sampler_update([(1.0, zero[:1])], noise=(1.0, Streams(2**40 + 17, (9,)), 4, "step"))
    assert torch.equal(alone[0], z[2])


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 2e-6), (torch.float16, 2e-2), (torch.bfloat16, 0.12)], ids=["f32", "f16", "bf16"]
)
def test_triton_against_torch(interpreter, dtype, atol):
    """Values up to 8 in sums of six; torch rounds after each term, and the interpreter cuts bfloat16 instead of rounding."""
    xs = tensors(5, 2, 3, 7, 11, dtype=dtype)
    coefficients, noise = (0.5, 0.2, -0.3, 1.5, 0.1), (0.7, Streams(3, (1, 8)), 2, "step")
    for count, clip, fresh in (
        (1, (0, -0.7, 0.3), None),
        (2, None, noise),
        (3, (1, -1.0, 1.0), noise),
        (5, (4, 0.0, 9.0), noise),
    ):
        terms = list(zip(coefficients[:count], xs[:count], strict=True))
        found = sampler_update(terms, clip=clip, noise=fresh)
        with kernels.using():
            want = sampler_update(terms, clip=clip, noise=fresh)
        torch.testing.assert_close(found, want, rtol=0, atol=atol)
    broken = xs[0].clone()
    broken[0, 0, 0, 0] = float("nan")
    assert sampler_update([(1.0, broken)], clip=(0, -1.0, 1.0)).isnan().sum() == 1
    assert sampler_update([(1.0, xs[0][:0])]).shape == (0, 3, 7, 11)


def test_registration(interpreter):
    x, d = (t.requires_grad_() for t in tensors(2, 2, 3, dtype=torch.float32))
    arguments = ([x, d], [0.5, 0.25], 1, -0.5, 0.5, 0.3, 11, [4, 2], 6, 77)
    torch.library.opcheck(combine, arguments)
    torch.library.opcheck(combine, ([x, d], [0.5, 0.25], -1, 0.0, 0.0, 0.0, 0, None, 0, 0))


def test_derivatives_of_the_operation_are_those_of_torch(interpreter):
    x, d = (t.requires_grad_() for t in tensors(2, 2, 9, dtype=torch.float32))
    for clip in (None, (1, -0.5, 0.5)):
        saved = []

        def gradients(clip=clip):
            out = sampler_update([(0.5, x), (0.25, d)], clip=clip, noise=(1.0, Streams(0, 2), 0, "step"))
            return torch.autograd.grad(out.square().sum(), (x, d))

        found = gradients()
        with kernels.using():
            torch.testing.assert_close(found, gradients(), rtol=1e-5, atol=1e-6)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t), lambda t: t):
            sampler_update([(0.5, x), (0.25, d)], clip=clip)
        assert len(saved) == (clip is not None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")  # torch's own, in forward mode
def test_transforms_take_the_torch_form(interpreter):
    """The operation has rules for neither; a float64 tensor takes the torch form as well."""
    x, d = tensors(2, 4, 2, 9, dtype=torch.float32)
    update = lambda a, b: sampler_update([(0.5, a), (0.25, b)])  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(update)(x, d), 0.5 * x + 0.25 * d)
    _, tangent = torch.func.jvp(update, (x[0], d[0]), (d[0], x[0]))
    torch.testing.assert_close(tangent, 0.5 * d[0] + 0.25 * x[0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], d[0])
        tangent = torch.autograd.forward_ad.unpack_dual(update(dual, d[0])).tangent
    torch.testing.assert_close(tangent, 0.5 * d[0])
    with kernels.using():
        want = update(x.double(), d.double())
    assert torch.equal(update(x.double(), d.double()), want)


@pytest.mark.parametrize("on", [(), ("update",)])
def test_torch_compile_sees_one_graph(interpreter, on):
    x, d = tensors(2, 2, 9, dtype=torch.float32)
    update = lambda a, b: sampler_update([(0.5, a), (0.25, b)], clip=(1, -0.5, 0.5)) * 2  # noqa: E731
    with kernels.using(*on):
        compiled = torch.compile(update, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, d), update(x, d), rtol=0, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize(("terms", "noise"), [(2, False), (5, True)])
def test_the_kernel_compiles_for_a_device(terms, noise, monkeypatch, tmp_path):
    """To a binary of compute capability 9.0; the angle of Box-Muller is float64 there as in the interpreter."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    update_triton = importlib.import_module(OWN)

    names = update_triton._combine.arg_names
    fixed = {"TERMS": terms, "CLIP": 1, "NOISE": noise, "BLOCK": 1024}
    types = {"*bf16": ["out", *(f"x{i}" for i in range(5))], "*i32": ["draws"]}
    types |= {"i32": ["n", "tiles", "step", "purpose", "seed0", "seed1"], "constexpr": list(fixed)}
    signature = {n: next((t for t, those in types.items() if n in those), "fp32") for n in names}
    source = triton.compiler.ASTSource(update_triton._combine, signature, {(names.index(n),): v for n, v in fixed.items()})
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    assert binary.asm["cubin"]
    assert ("401921FB54442D18" in binary.asm["ptx"].upper()) == noise


def test_wrong_arguments_are_named():
    x = torch.zeros(2, 3)
    for terms in ([], [(1.0, x)] * 6):
        with pytest.raises(ConfigError, match=f"expected 1 to 5 terms, got {len(terms)}"):
            sampler_update(terms)
    for other in (x[:1], x.double(), x.to(torch.complex64)):
        with pytest.raises(ShapeError, match="expected real tensors of one shape"):
            sampler_update([(1.0, x), (1.0, other)])
    for clip in ((1, 0.0, 1.0), (0, 1.0, 0.0)):
        with pytest.raises(ConfigError, match=r"expected clip \(0 to 0, low, high >= low\)"):
            sampler_update([(1.0, x)], clip=clip)
    with pytest.raises(ShapeError, match="expected streams of 2 draws, got 3"):
        sampler_update([(1.0, x)], noise=(1.0, Streams(0, 3), 0, "step"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_device(dtype):
    """float32 to some roundings; normals to one unit of the last place."""
    xs = tensors(3, 3, 2, 100, 111, dtype=dtype)
    streams = Streams(2**40 + 17, (5, 0, 9))
    terms = [(0.5, xs[0]), (-0.3, xs[1]), (1.5, xs[2])]
    want = sampler_update(terms, clip=(1, -0.5, 0.5), noise=(0.7, streams, 3, "step"))
    with kernels.using("update"):
        found = sampler_update([(c, t.cuda()) for c, t in terms], clip=(1, -0.5, 0.5), noise=(0.7, streams, 3, "step"))
        z = sampler_update([(1.0, torch.zeros_like(xs[0], device="cuda"))], noise=(1.0, streams, 3, "step"))
    torch.testing.assert_close(found.cpu(), want, rtol=0, atol=4e-6 if dtype == torch.float32 else 0.12)
    assert ulps(z.cpu(), streams.normal(3, (2, 100, 111), "step", dtype)) <= 1
