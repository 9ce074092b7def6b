"""The hierarchical model of speckle: each conditional against its closed form, the whole against quadrature, planted phases."""

import math
from types import SimpleNamespace

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Matrix, NumericalError, Problem, Streams, ViewAsComplex
from invdiff.metrics import z_cov, z_mean
from invdiff.operators import Identity, Speckled, speckle_of, spotlight
from invdiff.operators.sar import PhaseHistory
from invdiff.priors import GaussianField, GaussianPrior, Matern, SpeckledPrior
from invdiff.samplers import SplitGibbs
from invdiff.samplers.split_gibbs import draw_image, draw_log_reflectivity, first_level, log_intensity

F64, C128 = torch.float64, torch.complex128


def law(v, density):
    """Mean and variance of a density on a grid."""
    weight = density / density.sum()
    mean = (weight * v).sum()
    return float(mean), float((weight * (v - mean) ** 2).sum())


def close(found, mean, variance):
    """Sample mean and variance within five standard errors, of a law not far from normal."""
    n = found.numel()
    assert abs(float(found.mean()) - mean) < 5.0 * (variance / n) ** 0.5
    assert abs(float(found.var()) - variance) < 5.0 * variance * (4.0 / n) ** 0.5


@pytest.mark.parametrize("rho", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(("intensity", "looks"), [(0.0, 1.0), (1e-3, 1.0), (1.0, 1.0), (300.0, 1.0), (0.2, 4.0), (30.0, 4.4)])
def test_reflectivity_given_the_image(intensity, looks, rho):
    """Against quadrature of exp(-L (v + I e^-v)) N(v; u, rho^2)."""
    size, u = (100, 200), 0.7
    image = torch.full((1, 1, *size), intensity**0.5, dtype=C128)
    start = torch.full((1, 1, *size), u, dtype=F64)
    drawn = draw_log_reflectivity(log_intensity(image), start, rho, Streams(0), 3, looks)
    v = torch.linspace(u - 60.0, u + 60.0, 400_001, dtype=F64)
    exponent = -looks * (v + intensity * torch.exp(-v)) - 0.5 * ((v - u) / rho) ** 2
    close(drawn, *law(v, torch.exp(exponent - exponent.max())))


def matrix(seed=0, m=5, n=6):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=C128)


def test_image_given_the_reflectivity():
    """Mean and covariance of the complex Gaussian posterior, and what a mask leaves out."""
    mask = torch.tensor([1, 1, 0, 1, 1], dtype=torch.bool).reshape(1, 1, 5)

    class Masked(Matrix):
        def __init__(self):
            super().__init__(matrix(), (1, 2, 3))
            self.measured = mask[0, 0]

        def forward(self, x):
            return super().forward(x) * self.measured

        def adjoint(self, y):
            return super().adjoint(y * self.measured)

    a, sigma, n = Masked(), 0.4, 4000
    v = torch.linspace(-1.0, 1.5, 6, dtype=F64).reshape(1, 1, 2, 3)
    y = (torch.linspace(-1.0, 2.0, 5, dtype=F64) + 0.5j) * mask[0, 0]
    drawn, residual = draw_image(a, y[None], torch.tensor(sigma, dtype=F64), v.expand(n, -1, -1, -1), Streams(0, n), 2, 200)
    assert residual < 1e-4
    assert draw_image(a, y[None], torch.tensor(sigma, dtype=F64), v, Streams(0), 2, 1)[1] > 1e-2
    rows = matrix()[mask[0, 0]]
    r = v.flatten().exp().diag().to(C128)
    gain = r @ rows.mH @ torch.linalg.inv(rows @ r @ rows.mH + 2.0 * sigma**2 * torch.eye(4, dtype=C128))
    mean, covariance = gain @ y[mask[0, 0]], r - gain @ rows @ r
    found = drawn.flatten(1)
    real_rows, imaginary_rows = (
        torch.cat((covariance.real, -covariance.imag), 1),
        torch.cat((covariance.imag, covariance.real), 1),
    )
    half = 0.5 * torch.cat((real_rows, imaginary_rows))
    real = torch.cat((found.real, found.imag), 1)
    exact = SimpleNamespace(mean=torch.cat((mean.real, mean.imag)), cov=half)
    assert z_mean(real, exact) < 5.0
    assert z_cov(real, exact) < 5.0


def speckled(a, truth, sigma, seed=0):
    """The problem of a scene (u, a, b)."""
    return Problem.simulate(a, Gaussian(sigma), Speckled(a.in_shape[1:])(truth)[0], seed).through(Speckled(a.in_shape[1:]))


def test_posterior_of_single_pixels_against_quadrature():
    """A diagonal complex measurement of independent pixels: p(u | y) ~ CN(y; 0, |d|^2 e^u + 2 sigma^2) N(u; m, s^2)."""
    m, s, sigma, n = 0.5, 1.2, 0.3, 1500
    d = torch.tensor([1.0, 2.0j, 0.5 + 0.5j, -1.0], dtype=C128)
    prior = GaussianPrior(torch.full((1, 2, 2), m, dtype=F64), s**2 * torch.eye(4, dtype=F64), sigma_min=1e-3)
    y = torch.tensor([0.2 + 0.1j, 3.0j, 1.0, 4.0 - 2.0j], dtype=C128)
    problem = Problem(Matrix(d.diag(), (1, 2, 2)), Gaussian(sigma), y).through(Speckled((2, 2)))
    sampler = SplitGibbs(steps=120, last=0.15)
    draws = sampler(problem, SpeckledPrior(prior), n, seed=0).x[:, 0].flatten(1)
    u = torch.linspace(-12.0, 14.0, 20_001, dtype=F64)
    for k in range(4):
        variance = d[k].abs() ** 2 * u.exp() + 2.0 * sigma**2
        density = torch.exp(-(y[k].abs() ** 2) / variance - 0.5 * ((u - m) / s) ** 2) / variance
        mean, spread = law(u, density)
        close(draws[:, k], mean, spread)
        # the prior alone is another law
        assert abs(mean - m) > 0.3 or abs(spread - s**2) > 0.3


def small(dtype=F64):
    a = spotlight((8, 8), 0.3, pulses=16, frequencies=16, aperture=0.1)
    truth = torch.cat((torch.zeros(1, 1, 8, 8), Streams(1).normal(0, (2, 8, 8))), 1).to(dtype)
    return speckled(a, truth, 0.5), SpeckledPrior(GaussianField((1, 8, 8), Matern(1.5), std=1.0, length=2.0))


@pytest.mark.parametrize("autofocus", [False, True])
def test_what_every_sampler_promises(tmp_path, autofocus):
    """Seeds, chunks, resuming, counts, dtype; and the reflectivity and the image belong together."""
    (problem, prior), sampler, path = small(), SplitGibbs(steps=4, inner=5, autofocus=autofocus), tmp_path / "run.pt"
    whole = sampler(problem, prior, 4, seed=0, batch=2)
    assert torch.equal(sampler(problem, prior, 4, seed=0, batch=2).x, whole.x)
    assert not torch.equal(sampler(problem, prior, 4, seed=1, batch=2).x, whole.x)
    torch.testing.assert_close(sampler(problem, prior, 4, seed=0, batch=1).x, whole.x, rtol=1e-9, atol=1e-9)
    assert whole.network_calls == 4 * (2 * 5 - 1) and [i["step"] for i in whole.info] == [1, 2, 3, 4]
    # of each draw of the first batch
    assert [len(p) for p in whole.info[-1].get("phases", [])] == ([16, 16] if autofocus else [])

    def interrupt(info):
        if info["step"] == 2 and info["draws"][0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, prior, 4, seed=0, batch=2, resume=path, callback=interrupt)
    assert torch.equal(sampler(problem, prior, 4, seed=0, batch=2, resume=path).x, whole.x)
    torch.testing.assert_close(speckle_of(whole.x[:, :1], Speckled((8, 8))(whole.x)), whole.x)
    single, _ = small(torch.float32)
    assert sampler(single, prior, 2, seed=0).x.dtype == torch.float32


def test_planted_errors_of_phase_are_found():
    """Within 0.1 rad, after what a shift of the image and a global phase explain is removed."""
    size, pulses, sigma = (16, 16), 32, 0.7
    clean = spotlight(size, 0.3, pulses=pulses, frequencies=48, aperture=0.06)
    field = GaussianField((1, *size), Matern(1.5), std=1.5, length=2.0)
    truth = torch.cat((field.sample(Streams(5), F64), Streams(1).normal(0, (2, *size), dtype=F64)), 1)
    planted = 1.0 * Streams(2).normal(0, (pulses,), "phases", F64)[0]
    turned = PhaseHistory(clean.positions, clean.frequencies[0], clean.points, sign=-1, phases=planted)
    data = Problem.simulate(turned, Gaussian(sigma), Speckled(size)(truth)[0], 0).y
    problem = Problem(clean, Gaussian(sigma), data).through(Speckled(size))
    sampler = SplitGibbs(steps=40, autofocus=True, first=1.0, inner=3)
    phases = torch.tensor(sampler(problem, SpeckledPrior(field), 1, seed=0).info[-1]["phases"], dtype=F64)
    along = torch.stack((torch.ones(pulses, dtype=F64), torch.linspace(-1.0, 1.0, pulses, dtype=F64)), 1)

    def error(found):
        residual = unwrapped(found - planted)
        residual = residual - along @ torch.linalg.lstsq(along, residual[:, None]).solution[:, 0]
        return float(residual.square().mean().sqrt())

    assert error(torch.zeros(pulses, dtype=F64)) > 0.5
    assert phases.shape == (1, pulses) and error(phases[0]) < 0.1


def unwrapped(phase):
    """Continued without jumps."""
    step = torch.diff(phase)
    step = torch.remainder(step + math.pi, 2.0 * math.pi) - math.pi
    return torch.cat((phase[:1], phase[:1] + step.cumsum(0)))


def test_where_the_chain_starts():
    """At |x|^2, whatever the gain of A; and where the data are zero, or not finite, not at log 0."""
    a, x = Matrix(1e-3j * torch.eye(4, dtype=C128), (1, 2, 2)), torch.full((1, 1, 2, 2), 3.0 - 4.0j, dtype=C128)
    prior = GaussianPrior(torch.full((1, 2, 2), 0.5, dtype=F64), torch.eye(4, dtype=F64), sigma_min=1e-3)
    assert first_level(a, a(x), prior) == pytest.approx(math.log(25.0))
    problem = Problem(a, Gaussian(0.3), torch.zeros(4, dtype=C128)).through(Speckled((2, 2)))
    start = SplitGibbs().init(problem, SpeckledPrior(prior), Streams(0, 2))
    for u in (start.x[:, :1], start.v):
        assert torch.equal(u, torch.full((2, 1, 2, 2), 0.5, dtype=F64))
    nan = torch.full((1, 1, 2, 2), math.nan)
    with pytest.raises(NumericalError, match="not finite in 4 of 4 pixels"):
        draw_log_reflectivity(nan, torch.zeros_like(nan), 1.0, Streams(0), 0)


def test_what_it_can_not_do():
    a = spotlight((8, 8), 0.3, pulses=6, frequencies=6)
    prior = GaussianField((1, 8, 8), Matern(1.5))
    problem = Problem(a, Gaussian(0.1), torch.zeros(1, 6, 6, dtype=C128))
    with pytest.raises(CapabilityError, match="SpeckledPrior"):
        SplitGibbs()(problem.through(Speckled((8, 8))), GaussianField((3, 8, 8), Matern(1.5)), seed=0)
    with pytest.raises(CapabilityError, match="Speckled"):
        three = GaussianField((2, 8, 8), Matern(1.5))
        SplitGibbs()(problem.through(ViewAsComplex((1, 8, 8))), three, seed=0)
    with pytest.raises(CapabilityError, match="rho goes"):
        SplitGibbs(last=1e-6)(problem.through(Speckled((8, 8))), SpeckledPrior(prior), seed=0)
    flat = Problem(Identity((1, 8, 8)), Gaussian(0.1), torch.zeros(1, 8, 8))
    with pytest.raises(CapabilityError, match="Speckled"):
        SplitGibbs()(flat, prior, seed=0)
    for wrong in ({"last": 3.0}, {"last": 0.0}, {"inner": 0}, {"cg_steps": 0}):
        with pytest.raises(ConfigError, match="SplitGibbs"):
            SplitGibbs(**wrong)
