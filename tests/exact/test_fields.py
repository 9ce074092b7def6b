"""Gaussian fields: transforms against dense matrices, covariances against closed forms, fits against what was drawn."""

import copy
import math

import pytest
import torch

from invdiff.core import ConfigError, Gaussian, Matrix, NumericalError, Problem, ShapeError, Streams, build
from invdiff.operators.cosine import dct, dst, idct, idst
from invdiff.operators.restoration import Mask
from invdiff.priors import GaussianPrior
from invdiff.priors.field import GaussianField, StationaryGaussian, rows
from invdiff.priors.spectra import Laplacian, Matern, PowerLaw, SquaredExponential, Tabulated, fit_spectrum, radial_spectrum

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def columns(field):
    """The covariance on the flattened grid of one channel."""
    size = math.prod(field.shape)
    return field.covariance(torch.eye(size, dtype=F64).reshape(size, *field.shape)).reshape(size, size)


# transforms


@pytest.mark.parametrize("n", [1, 2, 3, 8, 15])
@pytest.mark.parametrize("kind", ["neumann", "dirichlet"])
def test_transform_is_the_eigenbasis_of_the_laplacian_between_walls(n, kind):
    forward, inverse = (dct, idct) if kind == "neumann" else (dst, idst)
    basis = forward(torch.eye(n, dtype=F64), 0)
    torch.testing.assert_close(basis @ basis.T, torch.eye(n, dtype=F64), rtol=0, atol=1e-13)
    torch.testing.assert_close(inverse(torch.eye(n, dtype=F64), 0), basis.T, rtol=0, atol=1e-13)
    # minus the second difference, whose neighbour beyond a wall is the mirror image or its negative
    beside = torch.diag(torch.ones(n - 1, dtype=F64), 1)
    laplacian = 2.0 * torch.eye(n, dtype=F64) - beside - beside.T
    for wall in (0, n - 1):
        laplacian[wall, wall] += -1.0 if kind == "neumann" else 1.0
    k = torch.arange(n, dtype=F64) + (0.0 if kind == "neumann" else 1.0)
    expected = torch.diag(4.0 * torch.sin(0.5 * math.pi * k / n) ** 2)
    torch.testing.assert_close(basis @ laplacian @ basis.T, expected, rtol=0, atol=1e-13)
    assert bool((basis[0] > 0).all())


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_transforms_are_those_of_scipy_along_any_axis(dim):
    import scipy.fft

    x = randn(2, 5, 6, 4)
    for ours, theirs in ((dct, scipy.fft.dct), (dst, scipy.fft.dst), (idct, scipy.fft.idct), (idst, scipy.fft.idst)):
        expected = torch.from_numpy(theirs(x.numpy(), type=2, axis=dim, norm="ortho"))
        torch.testing.assert_close(ours(x, dim), expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(ours(x.float(), dim), expected.float(), rtol=0, atol=1e-5)


# fields against dense Gaussians


FIELDS = {
    "periodic 1D": lambda: GaussianField((1, 9), Matern(1.2), std=0.7, length=2.0, mean=0.3),
    "mixed 2D": lambda: GaussianField((1, 4, 5), Matern(1.5), length=(2.0, 1.0), spacing=0.5, boundary=("neumann", "periodic")),
    "walls 3D": lambda: GaussianField((1, 3, 2, 4), SquaredExponential(), boundary=("dirichlet", "neumann", "dirichlet")),
    "laplacian": lambda: GaussianField.laplacian((1, 5, 4), scale=3.0, tau=2.0, alpha=1.5, spacing=(0.2, 0.25)),
    "stationary": lambda: StationaryGaussian((1, 4, 6), std=0.4, length=(1.0, 3.0), spacing=(0.5, 2.0), mean=-1.0),
}


@pytest.mark.parametrize("name", list(FIELDS))
def test_field_is_the_gaussian_with_its_covariance(name):
    field = FIELDS[name]()
    cov = columns(field)
    torch.testing.assert_close(cov, cov.T, rtol=0, atol=1e-14)
    mean = torch.full(field.shape, field.mean, dtype=F64)
    twin, x, sigma = GaussianPrior(mean, cov), 2.0 * randn(3, *field.shape), torch.tensor([0.02, 0.5, 7.0], dtype=F64)
    torch.testing.assert_close(field(x, sigma), twin(x, sigma), rtol=0, atol=1e-11)
    eye = torch.eye(len(cov), dtype=F64)
    laws = [torch.distributions.MultivariateNormal(mean.flatten(), cov + s**2 * eye) for s in (*sigma.tolist(), 0.0)]
    expected = torch.stack([law.log_prob(v.flatten()) for law, v in zip(laws, x, strict=False)])
    torch.testing.assert_close(field.log_prob(x, sigma), expected, rtol=1e-10, atol=1e-9)
    if name != "walls 3D":  # whose smooth spectrum leaves the dense Cholesky few digits
        torch.testing.assert_close(field.log_prob(x[:1]), laws[-1].log_prob(x[:1].flatten(1)), rtol=1e-8, atol=1e-6)
    problem = Problem.simulate(Matrix(randn(4, len(cov), seed=1), field.shape), Gaussian(0.3), x[0])
    mean, draws = field.posterior_draws(problem, 3000, seed=3, tol=1e-11)
    exact = twin.posterior(problem)
    torch.testing.assert_close(mean, exact.mean, rtol=0, atol=1e-8)
    assert float(((draws.mean(0) - exact.mean) / exact.std).abs().max()) < 5 / 3000**0.5
    assert float((draws.std(0) / exact.std - 1).abs().max()) < 5 / (2 * 3000) ** 0.5


@pytest.mark.parametrize("name", list(FIELDS))
def test_gram_is_that_of_the_dense_covariance(name):
    """R V R^T with V = C - C (C + sigma^2)^-1 C, and C for no x at all."""
    field = FIELDS[name]()
    cov, r = columns(field), randn(7, math.prod(field.shape), seed=2)
    gram = field.gram(r.reshape(7, *field.shape))
    for sigma in (1e-3, 0.5, 20.0):
        v = cov - cov @ torch.linalg.solve(cov + sigma**2 * torch.eye(len(cov), dtype=F64), cov)
        torch.testing.assert_close(gram(sigma), r @ v @ r.T, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gram(math.inf), r @ cov @ r.T, rtol=1e-10, atol=1e-12)
    single = field.float().gram(r.float().reshape(7, *field.shape))(0.5)
    assert single.dtype == F64
    torch.testing.assert_close(single, field.gram(r.reshape(7, *field.shape))(0.5), rtol=1e-5, atol=1e-5)


def test_gram_and_rows_of_several_channels_and_of_nothing():
    field = GaussianField((2, 3, 4), Matern(1.5), boundary=("periodic", "neumann"))
    operator = Matrix(randn(5, 24, seed=1), (2, 3, 4))
    r = rows(operator, torch.zeros(1, 5, dtype=F64), block=2)
    torch.testing.assert_close(r.flatten(1), operator.matrix, rtol=0, atol=0)
    torch.testing.assert_close(field.gram(r)(math.inf), r.flatten(1) @ columns(field) @ r.flatten(1).T, rtol=1e-11, atol=1e-12)
    problem = Problem.unmeasured((2, 3, 4), F64)
    assert rows(problem.operator, problem.y).shape == (0, 2, 3, 4)
    mean, draws = field.posterior_draws(problem, 3, seed=4)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=0)
    assert torch.equal(draws, field.sample(Streams(4, 3), F64))


MEASURED = {
    "uneven noise": lambda f: (Matrix(randn(5, 20, seed=1), f.shape), torch.tensor([0.05, 0.1, 0.2, 0.5, 1.0])),
    "mask": lambda f: (Mask(randn(4, 5) > 0.0, f.shape), 0.1),
    "noise on a grid": lambda f: (Mask(randn(4, 5) > 0.0, f.shape), 0.1 + torch.rand(5, dtype=F64)),
}


@pytest.mark.parametrize("name", list(MEASURED))
def test_dense_posterior_is_that_of_conjugate_gradients_and_of_dense_algebra(name, monkeypatch):
    field = FIELDS["mixed 2D"]()
    operator, sigma = MEASURED[name](field)
    problem = Problem.simulate(operator, Gaussian(sigma), randn(*field.shape))
    mean, draws = field.posterior_draws(problem, 4, seed=3)
    exact = GaussianPrior(torch.full(field.shape, field.mean, dtype=F64), columns(field)).posterior(problem)
    torch.testing.assert_close(mean, exact.mean, rtol=0, atol=1e-11)
    single = Problem(copy.deepcopy(operator).float(), Gaussian(sigma), problem.y.float())
    torch.testing.assert_close(field.float().posterior_draws(single, 4, seed=3)[1], draws.float(), rtol=0, atol=1e-4)
    monkeypatch.setattr("invdiff.priors.field.DENSE", 0)
    iterated = FIELDS["mixed 2D"]().posterior_draws(problem, 4, seed=3, tol=1e-12)
    torch.testing.assert_close(mean, iterated[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(draws, iterated[1], rtol=0, atol=1e-9)


def test_defaults_are_what_they_were():
    """Bit for bit: recorded numbers of tasks hang on them."""
    k = torch.stack([a * a for a in torch.meshgrid(*[torch.fft.fftfreq(n, dtype=F64) for n in (24, 15)], indexing="ij")]).sum(0)
    spectrum = (1.0 + (2.0 * math.pi * 32.0) ** 2 * k) ** -1.25
    field = StationaryGaussian((1, 24, 15), mean=0.43, std=0.23, length=32.0, decay=1.25)
    assert torch.equal(field.spectrum, 0.23**2 * spectrum / spectrum.mean())
    twin = GaussianField((1, 24, 15), Matern(1.25), mean=0.43, std=0.23, length=32.0)
    torch.testing.assert_close(twin.spectrum, field.spectrum, rtol=1e-13, atol=0)


# closed forms in physical units


def bell(r, length):
    return torch.exp(-0.5 * (r / length) ** 2)


@pytest.mark.parametrize(("boundary", "sign"), [("periodic", 0.0), ("neumann", 1.0), ("dirichlet", -1.0)])
def test_covariance_of_the_squared_exponential_with_its_images(boundary, sign):
    """Density sqrt(2 pi) l exp(-q^2 / 2) on the line; images of the source at 2 L j + x' and, at walls, +- at 2 L j - x'."""
    n, h, length = 40, 0.05, 0.15
    field = GaussianField(
        (1, n),
        lambda q: math.sqrt(2 * math.pi) * length * torch.exp(-0.5 * q * q),
        std=None,
        length=length,
        spacing=h,
        boundary=boundary,
    )
    x, period = (torch.arange(n, dtype=F64) + 0.5) * h, n * h * (1.0 if sign == 0.0 else 2.0)
    expected = torch.zeros(n, n, dtype=F64)
    for j in range(-3, 4):
        expected += bell(x[:, None] - x - j * period, length) + sign * bell(x[:, None] + x - j * period, length)
    torch.testing.assert_close(columns(field), expected, rtol=0, atol=1e-9)
    draws = field.sample(Streams(0, 10000), F64)[:, 0]
    sample, d = draws.T @ draws / 10000, expected.diagonal()
    spread = ((torch.outer(d, d) + expected**2) / 10000).sqrt()
    assert float(((sample - expected) / spread).abs().max()) < 5


def test_anisotropic_covariance_in_the_plane():
    lengths, spacing = (0.3, 0.1), (0.1, 0.04)
    density = 2 * math.pi * lengths[0] * lengths[1]
    field = GaussianField((1, 48, 48), lambda q: density * torch.exp(-0.5 * q * q), std=None, length=lengths, spacing=spacing)
    source = torch.zeros(1, 1, 48, 48, dtype=F64)
    source[..., 24, 24] = 1.0
    a, b = ((torch.arange(48, dtype=F64) - 24) * h for h in spacing)
    expected = bell(a, lengths[0])[:, None] * bell(b, lengths[1])
    torch.testing.assert_close(field.covariance(source)[0, 0], expected, rtol=0, atol=1e-8)


def test_inverse_of_the_neumann_laplacian_is_its_green_function():
    """(-d^2/dx^2 + tau^2) G = delta on [0, 1]; the modes beyond the grid, sum over k > n of 2 / (pi k)^2, are the error."""
    n, tau = 400, 3.0
    field = GaussianField.laplacian((1, n), scale=1.0, tau=tau, alpha=1.0, spacing=1.0 / n)
    x = (torch.arange(n, dtype=F64) + 0.5) / n
    low, high = torch.minimum(x[:, None], x), torch.maximum(x[:, None], x)
    green = torch.cosh(tau * low) * torch.cosh(tau * (1.0 - high)) / (tau * math.sinh(tau))
    torch.testing.assert_close(columns(field), green, rtol=0, atol=2.0 / (math.pi**2 * n))


@pytest.mark.parametrize("boundary", ["neumann", "periodic", "dirichlet"])
def test_covariance_of_two_points_does_not_depend_on_the_grid(boundary):
    """Cell centres of n x n are among those of 3n x 3n. What lies beyond the grid is the sum of |k|^-4, of order n^-2."""
    values = []
    for n in (9, 27, 81):
        field = GaussianField.laplacian((1, n, n), scale=1.0, tau=3.0, alpha=2.0, spacing=1.0 / n, boundary=boundary)
        fold = n // 9
        at = [fold * i + fold // 2 for i in range(9)]
        source = torch.zeros(1, 1, n, n, dtype=F64)
        source[..., at[2], at[3]] = 1.0
        values.append(field.covariance(source)[0, 0][at][:, at])
    coarse, fine = ((values[i] - values[2]).abs().max() / values[2].abs().max() for i in (0, 1))
    assert float(coarse) < 0.02 and float(fine) < 0.25 * float(coarse)


def test_limits():
    x, sigma = randn(2, 1, 6, 5), torch.tensor([0.5, 2.0], dtype=F64)
    white = GaussianField((1, 6, 5), torch.ones_like, std=0.8, boundary="neumann")
    shrink = (0.64 / (0.64 + sigma**2))[:, None, None, None]
    torch.testing.assert_close(white(x, sigma), shrink * x, rtol=0, atol=1e-13)
    density = GaussianField((1, 6, 5), torch.ones_like, std=None, spacing=(0.1, 0.5))  # white noise: variance 1 / cell
    torch.testing.assert_close(columns(density), torch.eye(30, dtype=F64) / 0.05, rtol=0, atol=1e-12)
    for boundary in ("periodic", "neumann"):
        field = GaussianField((1, 6, 5), Matern(1.5), mean=2.0, zero_mean=True, boundary=boundary)
        for value in (field(x, sigma), field.sample(Streams(0, 2), F64)):
            torch.testing.assert_close(value.mean((1, 2, 3)), torch.full((2,), 2.0, dtype=F64), rtol=0, atol=1e-13)
        with pytest.raises(NumericalError, match="give a sigma"):
            field.log_prob(x)
        assert bool(field.log_prob(x, sigma).isfinite().all())


# spectra


def test_spectra_are_the_formulas():
    q = torch.tensor([0.0, 0.5, 2.0, 8.0], dtype=F64)
    expected = torch.tensor([1.0, 1.0, 0.125, 0.0], dtype=F64)
    torch.testing.assert_close(PowerLaw(3.0, low=1.0, high=4.0)(q), expected)
    torch.testing.assert_close(Matern(2.0)(q), 1 / (1 + q**2) ** 2)
    torch.testing.assert_close(Laplacian(3.0, 2.0, 1.5)(q), 9 / (q**2 + 4) ** 1.5)
    torch.testing.assert_close(SquaredExponential()(q), torch.exp(-(q**2) / 2))
    table = Tabulated((0.0, 1.0, 4.0, 10.0), (1.0, 3.0, 0.0, 6.0))
    torch.testing.assert_close(table(q), torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=F64))


def test_field_from_a_configuration():
    spectrum = {"_target_": "invdiff.priors.spectra.PowerLaw", "power": 3, "low": 0.5}
    config = {"_target_": "invdiff.priors.field.GaussianField", "shape": [1, 6, 5], "spectrum": spectrum, "length": [1, 2.0]}
    field = build(config | {"boundary": ["periodic", "neumann"]})
    twin = GaussianField((1, 6, 5), PowerLaw(3, 0.5), length=(1, 2), boundary=("periodic", "neumann"))
    assert torch.equal(field.spectrum, twin.spectrum)
    with pytest.raises(ConfigError, match="boundary"):
        build(config | {"boundary": "open"})


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="extend the table"):
        GaussianField((1, 16), Tabulated((0.0, 1.0), (1.0, 1.0)))
    with pytest.raises(ConfigError, match="no constant mode"):
        GaussianField((1, 4), Matern(1.0), boundary="dirichlet", zero_mean=True)
    with pytest.raises(ConfigError, match="periodic, neumann or dirichlet"):
        GaussianField((1, 4), Matern(1.0), boundary="open")
    with pytest.raises(ConfigError, match="finite spectrum"):
        GaussianField((1, 4), lambda q: 1.0 / q)
    with pytest.raises(ShapeError, match="one length for each of the 2"):
        StationaryGaussian((1, 4, 4), length=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match="length and spacing > 0"):
        StationaryGaussian((1, 4, 4), length=0.0)


@pytest.mark.parametrize(("decay", "crop"), [(1.4, 16), (2.5, 40)])
def test_fit_finds_the_spectrum_that_crops_were_drawn_from(decay, crop):
    """Six fits to disjoint draws: their mean lies within 5 of its own standard errors of the truth. Without the leakage in the
    model the decay from the small crops is off by 7."""
    truth = {"mean": 0.4, "std": 0.2, "length": 2.0, "decay": decay}
    field = StationaryGaussian((1, 96, 80), spacing=0.5, **truth)
    images = field.sample(Streams(0, 120), F64)[..., 20 : 24 + crop, 10 : 10 + crop]
    fits = [fit_spectrum(part, spacing=0.5) for part in images.split(20)]
    for name, value in truth.items():
        found = torch.tensor([f[name] for f in fits])
        assert abs(float(found.mean()) - value) < 5 * float(found.std()) / 6**0.5, (name, found)
        assert float(found.std()) < 0.25 * value


def test_fit_of_volumes_and_of_what_is_no_such_field():
    volumes = StationaryGaussian((3, 12, 10, 8), length=1.0).sample(Streams(1, 4))
    assert StationaryGaussian((1, 12, 10, 8), **fit_spectrum(volumes)).shape == (1, 12, 10, 8)
    with pytest.raises(NumericalError, match="no such spectrum"):
        fit_spectrum(randn(8, 1, 32, 32))  # white: neither a length nor a decay
    with pytest.raises(NumericalError, match="constant"):
        fit_spectrum(torch.full((2, 1, 32, 32), 0.3))


def test_a_resumed_run_can_tell_means_apart():
    assert repr(StationaryGaussian((1, 4), mean=0.1)) != repr(StationaryGaussian((1, 4), mean=0.2))


def test_the_radial_spectrum_of_draws_is_that_of_their_law():
    size, spacing = 32, 0.25
    law = GaussianField((1, size, size), Laplacian(3.0, 2.0, 1.5), std=None, spacing=spacing, boundary="periodic")
    draws = law.sample(Streams(0, 400), torch.float64)
    table = radial_spectrum(draws, spacing=spacing)
    q = torch.tensor(table.q[1:12], dtype=torch.float64)
    # 400 draws of some 6 modes and more on a ring, and the curvature of the spectrum over one
    assert float((torch.tensor(table.p[1:12]) / Laplacian(3.0, 2.0, 1.5)(q) - 1.0).abs().max()) < 0.05
    again = GaussianField((1, size, size), table, std=None, spacing=spacing, boundary="periodic")
    assert abs(float(again.spectrum.sum() / draws.square().mean(0).sum()) - 1.0) < 0.02
    for wrong in (torch.zeros(2, 1, 8, 6), torch.zeros(4, 4), torch.zeros(2, 1, 2, 2)):
        with pytest.raises(ShapeError, match="radial_spectrum"):
            radial_spectrum(wrong)
