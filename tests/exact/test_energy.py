"""Explicit energies: gradients against autograd and differences, normalisation by quadrature, proximal points by optimality."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Matrix, NumericalError, ShapeError
from invdiff.operators.wavelet import WaveletSynthesis
from invdiff.priors.energy import EnergyPrior, Quadratic, Sparse, TotalVariation
from invdiff.priors.lowrank import LowRankMixture

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def orthonormal(shape):
    n = math.prod(shape)
    return Matrix(torch.linalg.qr(randn(n, n, seed=9)).Q, shape)


def energies(shape):
    analysis = Matrix(randn(7, math.prod(shape), seed=5), shape)
    weight = torch.arange(7, dtype=F64)
    return {
        "quadratic": Quadratic(2.0, 0.3),
        "isotropic": TotalVariation(1.5, 0.4),
        "anisotropic": TotalVariation(1.5, 0.4, isotropic=False),
        "sparse": Sparse(orthonormal(shape), 0.7, 0.2),
        "analysis": Sparse(analysis, weight, 0.2),
        "a function": Sparse(lambda x: torch.fft.rfft(x).real, 0.7, 0.2),
        "sum": TotalVariation(1.5, 0.4) + Quadratic(0.1),
    }


@pytest.mark.parametrize("shape", [(1, 9), (2, 3, 4), (1, 3, 2, 4)])
@pytest.mark.parametrize("name", list(energies((1, 9))))
def test_score_is_the_gradient(name, shape):
    energy, x = energies(shape)[name], 0.5 * randn(3, *shape)
    x[0] = 0.0  # where lengths vanish
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy.log_prob(leaf).sum(), leaf)
    with torch.no_grad():
        score = energy.score(x)
    torch.testing.assert_close(score, gradient, rtol=0, atol=1e-12)
    v, step = randn(3, *shape, seed=2), 1e-6
    slope = (energy.log_prob(x + step * v) - energy.log_prob(x - step * v)) / (2 * step)
    # Huber's second derivative jumps: a difference across it is off by step / smoothing at most
    torch.testing.assert_close(slope, (score * v).flatten(1).sum(1), rtol=1e-4, atol=1e-4)


def test_total_variation_of_pictures_with_known_jumps():
    x = torch.zeros(1, 2, 6, 6, dtype=F64)
    x[:, 0, 2:4, 2:4] = 3.0
    # four edges of length 2, but one corner has its two jumps at the same pixel
    assert float(TotalVariation(1.0, 1e-12, isotropic=False).log_prob(x)) == pytest.approx(-24.0)
    assert float(TotalVariation(1.0, 1e-12).log_prob(x)) == pytest.approx(-(6 * 3.0 + 3.0 * 2**0.5))
    # below the smoothing it is quadratic
    assert float(TotalVariation(1.0, 100.0, isotropic=False).log_prob(x)) == pytest.approx(-8 * 9.0 / 200.0)
    with pytest.raises(ShapeError, match=r"\(B, C, \*spatial\)"):
        TotalVariation(1.0, 0.1).log_prob(torch.zeros(2, 5))


def huber_constant(weight, eps):
    """Integral of exp(-weight h(r)) over the line; 2 / weight, a Laplace law's, for eps -> 0."""
    core = math.sqrt(2 * math.pi * eps / weight) * math.erf(math.sqrt(weight * eps / 2))
    return core + 2.0 / weight * math.exp(-0.5 * weight * eps)


@pytest.mark.parametrize(("weight", "eps"), [(2.0, 0.5), (3.0, 1e-4)])
def test_total_variation_of_a_line_is_a_walk_with_laplace_steps(weight, eps):
    """Midpoints on 40 lengths; the rule's error is that of the kink or of the quadratic core, below step^2."""
    step = 1e-3 if eps < 0.1 else 1e-2
    r = (torch.arange(-20.0 / step, 20.0 / step, dtype=F64) + 0.5) * step
    x = torch.stack([torch.zeros_like(r), r], dim=1)[:, None]
    density = TotalVariation(weight, eps).log_prob(x).exp() * step
    constant = huber_constant(weight, eps)
    assert float(density.sum()) == pytest.approx(constant, rel=1e-4)
    if eps < 0.1:
        assert constant == pytest.approx(2 / weight, rel=1e-3)
        assert float((density * r.abs()).sum() / constant) == pytest.approx(1 / weight, rel=1e-3)
    # three points: the steps are independent
    a, b = (v.flatten() for v in torch.meshgrid(r[:: len(r) // 800], r[:: len(r) // 800], indexing="ij"))
    x, coarse = torch.stack([torch.zeros_like(a), a, a + b], dim=1)[:, None], float(r[len(r) // 800] - r[0])
    total = float(TotalVariation(weight, 0.5).log_prob(x).exp().sum()) * coarse**2
    assert total == pytest.approx(huber_constant(weight, 0.5) ** 2, rel=1e-2)


def test_sparse_coefficients_are_independent_laplace_laws():
    step = 0.02
    r = (torch.arange(-500, 500, dtype=F64) + 0.5) * step
    x = torch.cartesian_prod(r, r)
    energy = Sparse(Matrix(torch.linalg.qr(randn(2, 2)).Q), torch.tensor([2.0, 3.0], dtype=F64), 0.3)
    total = float(energy.log_prob(x).exp().sum()) * step**2
    assert total == pytest.approx(huber_constant(2.0, 0.3) * huber_constant(3.0, 0.3), rel=1e-4)


@pytest.mark.parametrize("name", ["quadratic", "isotropic", "anisotropic", "sparse"])
@pytest.mark.parametrize("shape", [(1, 12), (2, 5, 6)])
def test_proximal_point_is_optimal(name, shape):
    """u = x + step grad log p(u); the objective is 1-strongly convex, so the residual bounds the error."""
    energy, x, step = energies(shape)[name], randn(3, *shape), 0.8
    x[2] = 0.25
    u = energy.proximal(x, step, tol=1e-9) if name.endswith("tropic") else energy.proximal(x, step)
    torch.testing.assert_close(u, x + step * energy.score(u), rtol=0, atol=1e-7)


def test_proximal_of_total_variation_on_two_points_is_soft_thresholding():
    x = torch.tensor([[[0.0, 5.0]], [[1.0, 1.5]]], dtype=F64)
    u = TotalVariation(1.0, 1e-6).proximal(x, 1.0, tol=1e-8)
    expected = torch.tensor([[[1.0, 4.0]], [[1.25, 1.25]]], dtype=F64)
    torch.testing.assert_close(u, expected, rtol=0, atol=1e-6)


def test_wavelet_sparse_images():
    """Orthonormal wavelets: one coefficient in, its threshold out."""
    synthesis = WaveletSynthesis((1, 16, 16), "db2", 2)
    energy = Sparse(synthesis.H, 2.0, 1e-3)
    c = torch.zeros(1, *synthesis.in_shape, dtype=F64)
    c.view(-1)[[3, 70, 200]] = torch.tensor([5.0, -1.0, 0.1], dtype=F64)
    x = synthesis(c)
    assert float(energy.log_prob(x)) == pytest.approx(-2.0 * (6.1 - 3 * 0.5e-3), rel=1e-9)
    kept = synthesis.adjoint(energy.proximal(x, 0.25)).view(-1)[[3, 70, 200]]
    torch.testing.assert_close(kept, torch.tensor([4.5, -0.5, 0.1e-3 / 0.501], dtype=F64), rtol=0, atol=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(CapabilityError, match="not orthonormal"):
        Sparse(Matrix(randn(9, 9), (1, 9)), 1.0, 0.1).proximal(randn(2, 1, 9), 0.1)
    with pytest.raises(NumericalError, match="raise max_iter"):
        TotalVariation(1.0, 1e-3).proximal(randn(1, 1, 8, 8), 5.0, max_iter=10, tol=1e-8)
    with pytest.raises(NumericalError, match="after 5 iterations"):
        TotalVariation(1.0, 1e-3).proximal(randn(1, 1, 8, 8), 5.0, max_iter=5)
    with pytest.raises(ConfigError, match="smoothing > 0"):
        TotalVariation(1.0, 0.0)
    with pytest.raises(ConfigError, match="weights >= 0"):
        Sparse(orthonormal((1, 9)), -1.0, 0.1)


def test_weights_of_coefficients_follow_the_precision_of_the_image():
    analysis, x = WaveletSynthesis((1, 8), "haar").H, randn(2, 1, 8).float()
    energy = Sparse(analysis, torch.full((1, 8), 0.3, dtype=F64), 0.1)
    assert {energy.log_prob(x).dtype, energy.score(x).dtype, energy.proximal(x, 0.1).dtype} == {torch.float32}


# a density at every noise level is a denoiser


def test_energy_prior_is_the_denoiser_of_its_density():
    bases, spreads = torch.linalg.qr(randn(3, 6, 2, seed=1)).Q, torch.ones(3, 2, dtype=F64)
    mixture = LowRankMixture(torch.tensor([1.0, 2.0, 3.0], dtype=F64), randn(3, 1, 2, 3), bases, spreads, 0.2)
    prior = EnergyPrior(mixture.log_prob, (1, 2, 3), sigma_min=0.01, sigma_max=10.0)
    x, sigma = randn(4, 1, 2, 3, seed=2), torch.tensor([0.02, 0.3, 1.0, 8.0], dtype=F64)
    with torch.no_grad():
        torch.testing.assert_close(prior(x, sigma), mixture(x, sigma), rtol=0, atol=1e-11)
    # guidance differentiates through it, by autograd and by torch.func
    leaf, v = x.clone().requires_grad_(), randn(4, 1, 2, 3, seed=3)
    (ours,) = torch.autograd.grad((prior(leaf, sigma) * v).sum(), leaf)
    (exact,) = torch.autograd.grad((mixture(leaf, sigma) * v).sum(), leaf)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-10)
    _, pullback = torch.func.vjp(lambda u: prior(u, sigma), x)
    torch.testing.assert_close(pullback(v)[0], exact, rtol=0, atol=1e-10)


def test_energy_prior_of_an_energy_that_knows_its_smoothing():
    """A Gaussian: the energy at sigma is a Quadratic of another weight."""
    prior = EnergyPrior(
        lambda x, s: -0.5 * x.square().flatten(1).sum(1) / (4.0 + s**2), (3, None), sigma_min=0.1, sigma_max=9.0
    )
    x, sigma = randn(2, 3, 5), torch.tensor([0.5, 3.0], dtype=F64)
    expected = x * (4.0 / (4.0 + sigma**2))[:, None, None]
    torch.testing.assert_close(prior(x, sigma), expected, rtol=0, atol=1e-14)
