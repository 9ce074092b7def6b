"""The spectral capability against dense algebra, for every operator that claims it."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import yaml

import invdiff
from invdiff.core import (
    CapabilityError,
    Gaussian,
    LinearOperator,
    Matrix,
    Problem,
    Stack,
    Streams,
    Unmeasured,
    ViewAsComplex,
    build,
    capabilities,
    dot,
)
from invdiff.core.algebra import Gram, dense
from invdiff.core.spectrum import Decomposed, Spectrum, dense_spectrum
from invdiff.operators import (
    Blur,
    Downsample,
    ParallelBeamCT,
    WaveletSynthesis,
    cartesian_mri,
    gaussian_blur,
    random_inpainting,
)
from invdiff.operators.cs import BlockCS, DenseCS, PermutedCS
from invdiff.operators.fourier import hartley
from invdiff.operators.pde.poisson import Heat, Helmholtz, Poisson

F64 = torch.float64
CONFIGS = sorted((Path(invdiff.__file__).parent / "configs" / "operator").glob("*.yaml"))


def packaged(path):
    config = yaml.safe_load(path.read_text("utf-8"))
    return lambda: build({**config, **config["_test_"]})


def normal(*shape, seed=0, dtype=F64):
    return Streams(seed).normal(0, shape, dtype=dtype)[0]


def blur():
    return Blur(normal(3, 4).abs(), (2, 5, 6))


def rank_two():
    return Matrix(normal(5, 2) @ normal(2, 8, seed=1), (2, 4))


def is_spectral(path):
    operator = packaged(path)()
    return isinstance(operator, LinearOperator) and operator.spectral


CASES = {path.stem: packaged(path) for path in CONFIGS if is_spectral(path)} | {
    "blur of an even size": lambda: gaussian_blur(6, 8, sigma=0.5),
    "blur of an odd size": lambda: gaussian_blur(5, 7, sigma=0.5),
    "blur without some frequencies": lambda: Blur(torch.full((1, 2), 0.5, dtype=F64), (1, 4, 6)),
    "downsample, unequal sides": lambda: Downsample((2, 9, 6), 3, "lanczos"),
    "matrix": lambda: Matrix(normal(3, 8)),
    "tall matrix": lambda: Matrix(normal(9, 4), (2, 2)),
    "matrix of rank two": rank_two,
    "complex matrix": lambda: Matrix(normal(3, 5, dtype=torch.complex128)),
    "complex matrix through real": lambda: Matrix(normal(3, 4, dtype=torch.complex128), (1, 4)) @ ViewAsComplex((1, 4)),
    "mri through real": lambda: cartesian_mri(5, 8, 1, 2, 0.25) @ ViewAsComplex((1, 5, 8)),
    "-2 blur": lambda: -2.0 * blur(),
    "gram": lambda: Gram(blur()),
    "unmeasured": lambda: Unmeasured((2, 3)),
    "mask of wavelet coefficients": lambda: random_inpainting(8, 8, 1, keep=0.5) @ WaveletSynthesis((1, 8, 8), "db2", 1),
    "wavelet of a blur": lambda: WaveletSynthesis((2, 4, 6), "haar", 1).H.H @ Blur(normal(3, 3).abs(), (2, 4, 6)),
    "dense cs": lambda: DenseCS((1, 4, 5), 0.3),
    "block cs, four kinds of blocks": lambda: BlockCS((2, 7, 8), 0.4, block=3),
    "block cs, blocks smaller than the rows": lambda: BlockCS((1, 4, 4), 0.9, block=3),
    "permuted cs, a last run": lambda: PermutedCS((1, 5, 5), 0.5, block=3),
    "permuted cs, short": lambda: PermutedCS((1, 2, 3), 0.5, block=3),
    "poisson, all boundaries": lambda: Poisson((2, 4, 5, 6), boundary=("periodic", "dirichlet", "neumann")),
    "poisson, periodic": lambda: Poisson((1, 5, 6), boundary="periodic"),
    "heat, last axis with walls": lambda: Heat((1, 6, 5), 0.01, 1.0, boundary=("periodic", "neumann")),
    "helmholtz": lambda: Helmholtz((1, 6, 4), 5.0, boundary=("dirichlet", "periodic")),
    "decomposed": lambda: Decomposed(Stack([blur(), random_inpainting(5, 6, 2, keep=0.5)])),
    "decomposed, complex": lambda: Decomposed(cartesian_mri(4, 6, 3, 2, 0.25)),
    "decomposed, through real": lambda: Decomposed(cartesian_mri(4, 6, 3, 2, 0.25) @ ViewAsComplex((1, 4, 6))),
}


@pytest.fixture(params=CASES, scope="module")
def operator(request):
    return CASES[request.param]()


def draw(operator, side, seed=0, batch=3, dtype=F64):
    shape, is_complex = (operator.in_shape, operator.in_complex) if side == "x" else (operator.out_shape, operator.out_complex)
    return Streams(seed, batch).normal(0, shape, side, torch.promote_types(dtype, torch.complex64) if is_complex else dtype)


def close(a, b, tolerance=1e-12):
    scale = max(1.0, float(b.abs().max()) if b.numel() else 1.0)
    return a.shape == b.shape and a.dtype == b.dtype and float((a - b).abs().max()) <= tolerance * scale


@pytest.mark.parametrize(("dtype", "bar"), [(F64, 1e-12), (torch.float32, 1e-5)])
def test_the_basis_is_unitary(operator, dtype, bar):
    """Parseval in Re<., .>, and the inverse from both sides."""
    x = draw(operator, "x", dtype=dtype)
    spectrum = operator.spectrum(x)
    c = spectrum.to(x)
    assert c.shape == (3, *spectrum.values.shape) and c.numel() == x.numel() and c.is_complex() == x.is_complex()
    assert spectrum.values.dtype == dtype and bool((spectrum.values >= 0).all())
    assert close(dot(c, c), dot(x, x), bar) and close(spectrum.back(c), x, bar)
    other = Streams(1, 3).normal(0, c.shape[1:], dtype=c.dtype)
    assert close(spectrum.to(spectrum.back(other)), other, bar)
    assert close(dot(other, c), dot(spectrum.back(other), x), bar)


def test_the_normal_operator_is_diagonal(operator):
    x = draw(operator, "x")
    spectrum = operator.spectrum(x)
    assert close(spectrum.back(spectrum.values.square() * spectrum.to(x)), operator.normal(x))


def test_the_values_are_the_singular_values(operator):
    spectrum = operator.spectrum()
    want = torch.zeros(0, dtype=F64) if operator.out_shape == (0,) else torch.linalg.svdvals(dense(operator))
    got = spectrum.values.flatten().sort(descending=True).values
    got = got.repeat_interleave(2) if operator.in_complex else got
    kept = min(len(want), len(got))
    assert bool((got[:kept] - want[:kept]).abs().le(1e-12 * max(1.0, float(got.max()))).all()) and not got[kept:].any()
    # what counts as zero is zero
    assert int((got > 0).sum()) == int((want > 1e-12 * want.max()).sum() if len(want) else 0)


def test_data_is_the_pseudo_inverse(operator):
    """The bar is that of conjugate gradients on the normal equations where the operator has no closed form."""
    y = draw(operator, "y")
    spectrum = operator.spectrum(y)
    y = y if operator.measured is None else y * operator.measured
    assert close(spectrum.back(spectrum.data(operator, y)), operator.pinv(y), 1e-7)


def test_solve_is_diagonal(operator):
    x = draw(operator, "x")
    spectrum = operator.spectrum(x)
    assert close(spectrum.back(spectrum.to(x) / (spectrum.values.square() + 0.3)), operator.solve(x, 0.3), 1e-8)


def test_noise_in_the_basis(operator):
    """A^H n = V a n' with n' white: the covariance of V^H A^H n is diag(a^2), in the real space."""
    if operator.out_shape == (0,):
        return
    spectrum, y = operator.spectrum(), torch.eye(dense(operator).shape[0], dtype=F64)
    if operator.out_complex:
        half = y.shape[1] // 2
        y = torch.complex(y[:, :half], y[:, half:])
    y = y.reshape(-1, *operator.out_shape)
    c = spectrum.to(operator.adjoint(y)).flatten(1)
    c, values = (
        (torch.cat((c.real, c.imag), 1), spectrum.values.flatten().repeat(2))
        if c.is_complex()
        else (
            c,
            spectrum.values.flatten(),
        )
    )
    assert close(c.mT @ c, values.square().diag())


def test_copies_keep_it(operator):
    x = draw(operator, "x")
    spectrum = operator.spectrum(x)
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other.spectrum(x).to(x), spectrum.to(x))
    assert capabilities(operator) >= {"spectral", "solve", "adjoint"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ParallelBeamCT(6, 4),
        lambda: cartesian_mri(5, 8, 3, 2, 0.25),
        lambda: Stack([blur(), blur()]),
        lambda: blur() @ random_inpainting(5, 6, 2, keep=0.5),
        lambda: WaveletSynthesis((1, 8, 8), "bior2.2", 1),
        lambda: cartesian_mri(5, 8, 3, 2, 0.25) @ ViewAsComplex((1, 5, 8)),
    ],
)
def test_others_say_what_to_do(make):
    operator = make()
    assert "spectral" not in capabilities(operator)
    with pytest.raises(CapabilityError, match=rf"{type(operator).__name__} has no singular values .*\.Decomposed\(operator\)"):
        operator.spectrum()
    assert "spectral" in capabilities(Decomposed(operator))


def test_large_operators_are_refused():
    with pytest.raises(CapabilityError, match="at most 4096 unknowns, ParallelBeamCT has 4225"):
        Decomposed(ParallelBeamCT(65, 4))
    with pytest.raises(CapabilityError, match="at most 4096 unknowns, ParallelBeamCT has 4225"):
        dense_spectrum(ParallelBeamCT(65, 4))


def test_an_operator_that_is_linear_over_the_reals_alone():
    """The real part of a complex number has one singular value for the real part and another for the imaginary one."""
    with pytest.raises(CapabilityError, match=r"Adjoint takes complex numbers .* compose it with ViewAsComplex\(\(2,\)\)"):
        dense_spectrum(ViewAsComplex((2,)).H)
    conjugating = Matrix(normal(2, 4)) @ ViewAsComplex((2,)).H
    assert "spectral" in capabilities(Decomposed(conjugating @ ViewAsComplex((2,))))
    assert close(dense_spectrum(conjugating @ ViewAsComplex((2,))).values[:2], torch.linalg.svdvals(normal(2, 4)))


def test_a_changed_matrix_is_decomposed_again():
    operator = rank_two()
    before = operator.spectrum().values
    assert operator.spectrum().values is before
    operator.matrix.mul_(2.0)
    assert close(operator.spectrum().values, 2.0 * before)


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), (1, 2, 3)])
def test_hartley_is_its_own_inverse_and_adjoint(axes):
    x, w = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    assert close(hartley(hartley(x, axes), axes), x)
    assert close((hartley(x, axes) * w).sum(), (x * hartley(w, axes)).sum())


def test_white_noise_stays_white_and_independent():
    """4,000 draws of white noise in the image: the covariance of the coefficients is I; 5 standard errors."""
    n, operator = 4000, gaussian_blur(3, 4, sigma=0.2)
    c = operator.spectrum().to(Streams(0, n).normal(0, operator.in_shape, dtype=F64)).flatten(1)
    error = (c.T @ c / n - torch.eye(12, dtype=F64)) * n**0.5
    assert float((error / (1.0 + torch.eye(12)).sqrt()).abs().max()) < 5


def test_a_wrong_basis_is_seen():
    """The FFT's order of the frequencies instead of the image's: the check of the diagonal rejects it."""
    operator, x = gaussian_blur(5, 6, sigma=0.5), normal(3, 1, 5, 6)
    right = operator.spectrum()
    wrong = Spectrum(right.values.roll(1, -1), right.to, right.back)
    assert not close(wrong.back(wrong.values.square() * wrong.to(x)), operator.normal(x), 1e-2)


def test_the_measurement_has_the_noise_it_says():
    """b = sigma / a: the residuals of 2,000 measurements of one image, in units of b, have unit variance; 5 standard errors."""
    operator, n, sigma = blur(), 2000, 0.3
    x = normal(1, 2, 5, 6)
    spectrum = operator.spectrum()
    y = Gaussian(sigma).sample(operator(x).expand(n, -1, -1, -1), Streams(3, n))
    z = (spectrum.data(operator, y) - spectrum.to(x)) * spectrum.values / sigma
    assert abs(float(z.square().mean()) - 1.0) < 5 * (2.0 / z.numel()) ** 0.5
    assert Problem(operator, Gaussian(sigma), y[:1]).y.shape[0] == 1
