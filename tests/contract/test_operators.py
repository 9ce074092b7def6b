"""Every operator of the package, at the tiny size its configuration names, and some composed ones, keep the contract."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import yaml

import invdiff
from invdiff.core import CapabilityError, LinearOperator, Problem, ShapeError, Stack, Streams, ViewAsComplex, build, dot, norm
from invdiff.core.noise import Gaussian
from invdiff.operators import Blur, Downsample, ParallelBeamCT, cartesian_mri, gaussian_blur, random_inpainting

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CONFIGS = sorted((Path(invdiff.__file__).parent / "configs" / "operator").glob("*.yaml"))


def packaged(path):
    config = yaml.safe_load(path.read_text("utf-8"))
    return lambda: build({**config, **config["_test_"]})


def mask(channels=2):
    return random_inpainting(5, 6, channels, keep=0.6)


def blur(channels=2):
    return Blur(Streams(3).uniform(0, (3, 4), dtype=torch.float64)[0], (channels, 5, 6))


# the others keep the contract of test_nonlinear_operators.py
LINEAR = [path for path in CONFIGS if isinstance(packaged(path)(), LinearOperator)]
CASES = {path.stem: packaged(path) for path in LINEAR} | {
    "ct_fourier": lambda: ParallelBeamCT((8, 7), 6, engine="fourier", pixel=0.8, pitch=1.1),
    "mri_single_coil": lambda: cartesian_mri(5, 8, 1, 2, 0.25),
    "mri_variable_density": lambda: cartesian_mri(6, 6, 4, 2, 0.2, pattern="variable_density"),
    "lanczos": lambda: Downsample((1, 9, 6), 3, "lanczos"),
    "blur @ mask": lambda: blur() @ mask(),
    "mask @ blur": lambda: mask() @ blur(),
    "stack": lambda: Stack([blur(), mask()]),
    "stack of several shapes": lambda: Stack([blur(1), ParallelBeamCT((5, 6), 3)]),
    "2 blur - mask": lambda: 2.0 * blur() - mask(),
    "mri through real": lambda: cartesian_mri(5, 8, 3, 2, 0.25) @ ViewAsComplex((1, 5, 8)),
    "adjoint": lambda: ParallelBeamCT(6, 4).H,
    "gram": lambda: blur().gram,
}


@pytest.fixture(params=CASES, scope="module")
def operator(request):
    return CASES[request.param]()


def draw(operator, side, seed=0, batch=3, dtype=torch.float64):
    shape, is_complex = (operator.in_shape, operator.in_complex) if side == "x" else (operator.out_shape, operator.out_complex)
    return Streams(seed, batch).normal(
        0, shape, side, torch.complex(*torch.zeros(2, dtype=dtype)).dtype if is_complex else dtype
    )


def flat(v):
    """(B, ...) -> (B, real components)."""
    return (torch.view_as_real(v.resolve_conj()) if v.is_complex() else v).flatten(1)


def unflat(v, shape, is_complex):
    return torch.view_as_complex(v.reshape(-1, *shape, 2)) if is_complex else v.reshape(-1, *shape)


def dense(operator):
    """The operator as a real matrix."""
    size = flat(draw(operator, "x", batch=1)).shape[1]
    basis = torch.eye(size, dtype=torch.float64)
    return flat(operator(unflat(basis, operator.in_shape, operator.in_complex))).mT


def close(a, b, tolerance):
    scale = max(float(b.abs().max()), 1.0)
    return a.shape == b.shape and a.dtype == b.dtype and float((a - b).abs().max()) <= tolerance * scale


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_adjoint_is_exact(operator, dtype, bar):
    for seed in range(4):
        x, y = draw(operator, "x", seed, dtype=dtype), draw(operator, "y", seed, dtype=dtype)
        gap = (dot(operator(x), y) - dot(x, operator.adjoint(y))).abs()
        assert bool((gap <= bar * norm(operator(x)) * norm(y)).all())
        assert bool((gap <= bar * norm(x) * norm(operator.adjoint(y))).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_have_the_shape_and_precision_of_the_input(operator, dtype):
    x, y = draw(operator, "x", dtype=dtype), draw(operator, "y", dtype=dtype)
    results = ((operator(x), y), (operator.adjoint(y), x), (operator.normal(x), x), (operator.solve(x, 2.0), x))
    for result, like in results:
        assert (result.shape, result.dtype) == (like.shape, like.dtype)


def test_linearity(operator):
    a, b = draw(operator, "x", 1), draw(operator, "x", 2)
    assert close(operator(2.0 * a - 3.0 * b), 2.0 * operator(a) - 3.0 * operator(b), 1e-13)
    assert not operator(torch.zeros_like(a)).any()


def test_items_of_a_batch_are_independent(operator):
    x, rho = draw(operator, "x"), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    together = operator(x), operator.solve(x, rho), operator.normal(x)
    for i in range(3):
        alone = operator(x[i : i + 1]), operator.solve(x[i : i + 1], rho[i]), operator.normal(x[i : i + 1])
        assert all(close(t[i : i + 1], a, 1e-10) for t, a in zip(together, alone, strict=True))


def test_backward_is_the_adjoint_and_forward_mode_the_operator(operator):
    x, v, w = draw(operator, "x").requires_grad_(), draw(operator, "x", 1), draw(operator, "y", 2)
    (gradient,) = torch.autograd.grad(dot(operator(x), w).sum(), x)
    assert torch.equal(gradient, operator.adjoint(w))
    y = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dot(operator.adjoint(y), v).sum(), y)
    assert torch.equal(gradient, operator(v))
    value, pullback = operator.vjp(x.detach())
    assert torch.equal(value, operator(x.detach()))
    assert torch.equal(pullback(w), operator.adjoint(w))
    _, tangent = operator.jvp(x.detach(), v)
    assert torch.equal(tangent, operator(v))


def test_second_derivatives(operator):
    """The gradient of |A x|^4 per item, and its derivative, against finite differences."""
    x = draw(operator, "x", batch=1).requires_grad_()
    scale = float(norm(operator(x)).detach())
    torch.autograd.gradgradcheck(lambda x: dot(operator(x) / scale, operator(x) / scale).square(), x, fast_mode=True)


def test_solve_differentiates_to_itself(operator):
    b, v = draw(operator, "x").requires_grad_(), draw(operator, "x", 1)
    (gradient,) = torch.autograd.grad(dot(operator.solve(b, 0.5), v).sum(), b)
    assert close(gradient, operator.solve(v, 0.5), 1e-10)


def test_vmap(operator):
    x = torch.stack([draw(operator, "x", seed) for seed in range(2)])
    assert close(torch.vmap(operator)(x), torch.stack([operator(v) for v in x]), 1e-13)


def test_normal(operator):
    x = draw(operator, "x")
    assert close(operator.normal(x), operator.adjoint(operator(x)), 1e-13)


def test_solve_against_dense_algebra(operator):
    """The bar is that of conjugate gradients, 1e-11 of the residual, times a condition number of up to 1e3."""
    a, b = dense(operator), draw(operator, "x")
    rho = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64) * float(torch.linalg.matrix_norm(a, 2) ** 2) / 100
    want = [
        torch.linalg.solve(a.mT @ a + r * torch.eye(a.shape[1], dtype=a.dtype), v) for r, v in zip(rho, flat(b), strict=True)
    ]
    assert close(flat(operator.solve(b, rho)), torch.stack(want), 1e-8)


def test_pinv_against_dense_algebra(operator):
    """The normal equations square the condition number, and conjugate gradients stop at 1e-11."""
    a, y = dense(operator), draw(operator, "y")
    if isinstance(operator, ParallelBeamCT) and operator.engine == "fourier":
        with pytest.raises(CapabilityError, match="use fbp"):
            operator.pinv(y)
        return
    assert close(flat(operator.pinv(y)), flat(y) @ torch.linalg.pinv(a, rtol=1e-10).mT, 1e-6)


def test_wrong_inputs_are_named(operator):
    x, y = draw(operator, "x"), draw(operator, "y")
    other = x.real if x.is_complex() else torch.complex(x, x)
    wrong = [lambda: operator(x[..., :-1]), lambda: operator(other), lambda: operator(x.real.long())]
    wrong += [lambda: operator.adjoint(y[..., :-1]), lambda: operator(x[0]), lambda: operator.solve(other, 1.0)]
    for call in wrong:
        with pytest.raises(ShapeError, match=type(operator).__name__) as error:
            call()
        assert "\n" not in str(error.value)


def test_no_cast_of_the_module_loses_precision(operator):
    x = draw(operator, "x")
    want, other = operator(x), copy.deepcopy(operator)
    for cast in (torch.nn.Module.float, torch.nn.Module.double, lambda m: m.to(torch.float32), lambda m: m.to("cpu")):
        assert torch.equal(cast(other)(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(other))(x), want)
    assert not operator.state_dict()


def test_constants_made_in_inference_mode_serve_autograd():
    operator = gaussian_blur(7, 8, sigma=0.7)
    x = draw(operator, "x")
    with torch.inference_mode():
        operator(x)
    y = operator(x).requires_grad_()
    operator.pinv(y).sum().backward()
    assert y.grad is not None


def test_nothing_is_measured_where_the_mask_says_so(operator):
    if operator.measured is not None:
        hidden = ~operator.measured.expand(operator.out_shape)
        assert not operator(draw(operator, "x"))[:, hidden].any()
        assert operator.count_measured() == int((~hidden).sum()) * (2 if operator.out_complex else 1)


def test_a_problem_can_be_made_of_it(operator):
    """chi^2 per measured value at the truth is 1 up to 6 standard errors of its chi-squared law."""
    x = draw(operator, "x", batch=1)
    problem = Problem.simulate(operator, Gaussian(0.1), x)
    assert abs(float(problem.chi2(x)) - 1.0) < 6.0 * (2.0 / operator.count_measured()) ** 0.5


def test_every_configuration_builds_at_its_typical_size():
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text("utf-8"))
        assert build(config).in_shape[-1] >= 32
