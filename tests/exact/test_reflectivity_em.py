"""Expectation maximisation for the reflectivity: its fixed point in closed form, what it refuses."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Matrix, Problem, ViewAsComplex
from invdiff.operators import Speckled
from invdiff.operators.sar import PhaseHistory
from invdiff.operators.sar_geometry import circular_track, ground
from invdiff.priors import SpeckledPrior, StationaryGaussian
from invdiff.samplers.reflectivity_em import ReflectivityEM

F64 = torch.float64
MEAN, STD, RHO = -0.5, 0.8, 0.4


def history(**options):
    """Two pulses and few frequencies, two pixels far apart."""
    track = circular_track(torch.tensor([0.0, 0.01], dtype=F64), distance=1e4, elevation=0.7)
    return PhaseHistory(track, 9.6e9 + 5e7 * torch.arange(4, dtype=F64), ground((1, 2), 2.1), sign=-1, **options)


def prior():
    return SpeckledPrior(StationaryGaussian((1, 1, 2), mean=MEAN, std=STD, length=1e-3))


def solved(power_of, rho=RHO):
    """u with 1 - P e^-v + (v - m) / (s^2 + rho^2) = 0 and u = (s^2 v + rho^2 m) / (s^2 + rho^2), P = power_of(u)."""
    u = 0.0
    for _ in range(4000):
        power = power_of(u)
        low, high = -30.0, 30.0
        for _ in range(80):
            v = 0.5 * (low + high)
            low, high = (v, high) if 1.0 - power * math.exp(-v) + (v - MEAN) / (STD**2 + rho**2) < 0.0 else (low, v)
        u, before = (STD**2 * v + rho**2 * MEAN) / (STD**2 + rho**2), u
        if abs(u - before) < 1e-10:
            break
    return u


def test_without_noise_it_is_the_mode_under_the_prior_and_the_splitting():
    a = history()
    x = torch.tensor([0.9 + 0.3j, -0.05 + 0.02j], dtype=torch.complex128).reshape(1, 1, 1, 2)
    problem = Problem(a, Gaussian(torch.tensor(1e-4, dtype=F64)), a(x)).through(Speckled((1, 2)))
    draws = ReflectivityEM(steps=60, first=RHO, last=RHO, cg_steps=40, probes=1)(problem, prior(), 1, seed=0)
    for k in range(2):
        expected = solved(lambda u, k=k: float(x.flatten()[k].abs() ** 2))
        assert float(draws.x[0, 0, 0, k]) == pytest.approx(expected, abs=2e-4)
    torch.testing.assert_close(Speckled((1, 2))(draws.x), x, rtol=1e-3, atol=1e-3)
    assert draws.kind == "point" and draws.info[-1]["residual"] < 1e-3


def test_the_variance_of_the_image_counts():
    """One pixel: m = y R / (R + s), V = R s / (R + s) with s = 2 sigma^2 / 8 for eight equal measurements of it."""
    a, rho, y = Matrix(torch.ones(8, 1, dtype=torch.complex128), (1, 1, 1)), 1.0, 0.6 - 0.2j
    own = SpeckledPrior(StationaryGaussian((1, 1, 1), mean=MEAN, std=STD, length=1e-3))
    data = torch.full((8,), y, dtype=torch.complex128)
    problem = Problem(a, Gaussian(torch.tensor(2.0, dtype=F64)), data).through(Speckled((1, 1)))
    draws = ReflectivityEM(steps=6, first=rho, last=rho, probes=150, cg_steps=4)(problem, own, 1, seed=1)
    noise = 2.0 * 2.0**2 / 8.0

    def power(u, variance=True):
        r = math.exp(u)
        return abs(y * r / (r + noise)) ** 2 + variance * r * noise / (r + noise)

    # 150 probes: 8 % of the variance, 0.024 of u
    exact = solved(power, rho=rho)
    assert float(draws.x[0, 0, 0, 0]) == pytest.approx(exact, abs=0.08)
    assert exact - solved(lambda u: power(u, variance=False), rho=rho) > 0.3


def test_planted_errors_of_phase_are_found():
    """Of one pixel, without noise: y_p = e^{j phi_p} (A x)_p has phi - arg(sum e^{j phi}) for answer, after two steps."""
    planted = torch.tensor([0.3, -0.8, 1.1], dtype=F64)
    a = PhaseHistory(
        circular_track(torch.tensor([0.0, 0.01, 0.02], dtype=F64), distance=1e4, elevation=0.7),
        9.6e9 + 5e7 * torch.arange(4, dtype=F64), ground((1, 1), 1.0), sign=-1,
    )  # fmt: skip
    x = torch.full((1, 1, 1, 1), 0.9 - 0.4j, dtype=torch.complex128)
    own = SpeckledPrior(StationaryGaussian((1, 1, 1), mean=MEAN, std=STD, length=1e-3))
    turn = torch.polar(torch.ones_like(planted), planted)
    problem = Problem(a, Gaussian(torch.tensor(1e-3, dtype=F64)), a(x) * turn[:, None]).through(Speckled((1, 1)))
    draws = ReflectivityEM(steps=3, probes=1, autofocus=True)(problem, own, 2, seed=0)
    found = torch.tensor(draws.info[-1]["phases"], dtype=F64)
    torch.testing.assert_close(found, (planted - turn.sum().angle()).expand(2, 3), rtol=0.0, atol=1e-5)
    # nothing is lost by the sum over the pulses
    torch.testing.assert_close(Speckled((1, 1))(draws.x).abs(), x.abs().expand(2, 1, 1, 1), rtol=1e-5, atol=0.0)


def test_what_every_sampler_promises(tmp_path):
    """Seeds, chunks, resuming, counts, dtype."""
    a = Matrix(torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.complex128), (1, 2, 2))
    own = SpeckledPrior(StationaryGaussian((1, 2, 2), mean=MEAN, std=STD, length=1.0))
    y = torch.linspace(-1.0, 2.0, 6, dtype=F64) + 0.5j
    problem = Problem(a, Gaussian(0.4), y).through(Speckled((2, 2)))
    sampler, path = ReflectivityEM(steps=3), tmp_path / "run.pt"
    whole = sampler(problem, own, 4, seed=0, batch=2)
    assert torch.equal(sampler(problem, own, 4, seed=0, batch=2).x, whole.x)
    torch.testing.assert_close(sampler(problem, own, 4, seed=0).x, whole.x, rtol=1e-9, atol=1e-9)
    # the probes' noise is all that a seed changes, and a draw
    assert not torch.equal(sampler(problem, own, 4, seed=1, batch=2).x, whole.x)
    assert not torch.equal(whole.x[0], whole.x[1])
    assert whole.network_calls == 3 and [i["step"] for i in whole.info] == [1, 2, 3]

    def interrupt(info):
        if info["step"] == 2 and info["draws"][0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, own, 4, seed=0, batch=2, resume=path, callback=interrupt)
    assert torch.equal(sampler(problem, own, 4, seed=0, batch=2, resume=path).x, whole.x)
    single = Problem(Matrix(a.matrix.to(torch.complex64), (1, 2, 2)), Gaussian(0.4), y.to(torch.complex64))
    drawn = sampler(single.through(Speckled((2, 2))), own, 4, seed=0, batch=2).x
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.double(), whole.x, rtol=1e-3, atol=1e-3)


def test_what_it_refuses():
    a = history()
    problem = Problem(a, Gaussian(0.1), a(torch.ones(1, 1, 1, 2, dtype=torch.complex64)))
    with pytest.raises(CapabilityError, match="ReflectivityEM: expected a linear operator"):
        flat = StationaryGaussian((2, 1, 2), mean=MEAN, std=STD, length=1e-3)
        ReflectivityEM(steps=1)(problem.through(ViewAsComplex((1, 1, 2))), flat, 1, seed=0)
    with pytest.raises(CapabilityError, match="SpeckledPrior"):
        flat = StationaryGaussian((3, 1, 2), mean=MEAN, std=STD, length=1e-3)
        ReflectivityEM(steps=1)(problem.through(Speckled((1, 2))), flat, 1, seed=0)
    with pytest.raises(CapabilityError, match="the prior is defined"):
        ReflectivityEM(steps=1, first=1e4)(problem.through(Speckled((1, 2))), prior(), 1, seed=0)
    with pytest.raises(ConfigError, match="expected 0 < last <= first"):
        ReflectivityEM(first=0.1, last=0.2)
