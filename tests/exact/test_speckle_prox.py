"""Proximal maps of speckle against brute force, scaling, extremes and bisection."""

import math

import pytest
import torch

from invdiff.core import ConfigError, NumericalError
from invdiff.core.speckle_prox import prox_amplitude, prox_intensity, prox_log

F64 = torch.float64


def powers(n, low, high, seed):
    return 10.0 ** (low + (high - low) * torch.rand(n, dtype=F64, generator=torch.Generator().manual_seed(seed)))


def brute_force(objective, low, high):
    """The least point of a function of each row: a geometric grid, then golden sections of the best cell."""
    grid = low[:, None] * (high / low)[:, None] ** torch.linspace(0.0, 1.0, 1001, dtype=F64)
    k = objective(grid).argmin(1, keepdim=True).clamp(1, 999)
    a, b = grid.gather(1, k - 1), grid.gather(1, k + 1)
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(60):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        left = objective(c) < objective(d)
        a, b = torch.where(left, a, c), torch.where(left, d, b)
    return (0.5 * (a + b))[:, 0]


def cases(n, seed):
    """Centres of both signs, data and c = step L over six decades each."""
    sign = torch.where(powers(n, 0, 1, seed) < 10**0.7, 1.0, -1.0)
    return sign * powers(n, -3, 3, seed + 1), powers(n, -3, 3, seed + 2), powers(n, -3, 3, seed + 3)


@pytest.mark.parametrize("prox", [prox_intensity, prox_amplitude])
def test_proximal_maps_are_the_least_points(prox):
    """3,000 cases at 1e-6; the objective without v^2 / 2, which would hide it behind rounding."""
    v, data, c = cases(3000, 10)
    looks, power = 3.7, 1 if prox is prox_intensity else 2

    def objective(r):
        nll = power * r.log() + (data[rows, None] / r) ** power
        return c[rows, None] * nll + 0.5 * r.square() - v[rows, None] * r

    found, moved, several = prox(v, data, looks=looks, step=c / looks), 0, 0
    for rows in torch.arange(3000).split(500):
        low = 0.05 * torch.minimum(data[rows], torch.sqrt(c[rows] * data[rows] / (v[rows].abs() + c[rows])))
        expected = brute_force(objective, low.clamp_min(1e-6), 1.2 * torch.maximum(v[rows].abs(), data[rows]))
        torch.testing.assert_close(found[rows], expected, rtol=1e-6, atol=0)
        slope = torch.diff(objective(powers(1000, -3, 3, 0).sort().values.expand(len(rows), -1)), dim=1) > 0
        several += int((torch.diff(slope.int(), dim=1) == -1).any(1).sum())
        moved += int(((expected - v[rows]).abs() > 0.1 * v[rows].abs()).sum())
    # the cases have maxima between two minima, and answers that are not the centre
    assert several > 100 and moved > 1000


@pytest.mark.parametrize("prox", [prox_intensity, prox_amplitude])
def test_the_better_of_two_minima_changes_sides(prox):
    """Small data and a large centre: the well of the data wins for large steps, the centre for small ones."""
    v, data = torch.tensor(1.0, dtype=F64), torch.tensor(0.01, dtype=F64)
    assert float(prox(v, data, looks=1.0, step=0.01)) == pytest.approx(1.0, abs=0.03)
    assert float(prox(v, data, looks=1.0, step=0.2)) == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("scale", [1e-12, 1e15])
def test_proximal_maps_scale(scale):
    """Data and centre in other units, the step in their square: single precision, where a cube would overflow."""
    v, data, c = (t.float() for t in cases(1000, 20))
    for prox in (prox_intensity, prox_amplitude):
        reference = prox(v, data, looks=2.0, step=c)
        assert reference.dtype == torch.float32 and bool((reference > 0).all())
        found = prox(v * scale, data * scale, looks=2.0, step=c.double() * scale**2)
        torch.testing.assert_close(found / scale, reference, rtol=2e-5, atol=0)


def test_proximal_maps_at_extremes():
    """Twenty decades of each: positive, between the bounds, and stationary."""
    v, data, c = powers(4000, -10, 10, 30), powers(4000, -10, 10, 31), powers(4000, -20, 20, 32)
    v[::3] *= -1.0
    r = prox_intensity(v, data, looks=1.0, step=c)
    terms = torch.stack([r**3, -v * r**2, c * r, -c * data])
    a = prox_amplitude(v, data, looks=1.0, step=c)
    other = torch.stack([a**4, -v * a**3, 2 * c * a**2, -2 * c * data**2])
    for x, t in ((r, terms), (a, other)):
        assert bool((x > 0).all()) and bool((x >= torch.minimum(v, data) * (1 - 1e-14)).all())
        assert bool((x <= torch.maximum(v, data) * (1 + 1e-14)).all())
        assert float((t.sum(0).abs() / t.abs().amax(0)).max()) < 1e-14


def test_zero_data_have_the_limit_and_negative_ones_none():
    v = torch.tensor([-1.0, 0.0, 5.0])
    for prox in (prox_intensity, prox_amplitude):
        assert torch.equal(prox(v, torch.zeros(3), looks=1.0, step=0.3), torch.zeros(3))
        with pytest.raises(NumericalError, match="not negative, got -1"):
            prox(v, -torch.ones(3), looks=1.0, step=0.3)
        with pytest.raises(ConfigError, match="step > 0"):
            prox(v, v.abs(), looks=1.0, step=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ConfigError, match="looks > 0"):
        prox_log(v, v, looks=0.0, step=1.0)


def test_the_proximal_map_of_the_logarithm_is_the_least_point():
    n = 2000
    v = 20.0 * torch.randn(n, dtype=F64, generator=torch.Generator().manual_seed(0))
    difference, _, c = cases(n, 40)
    z = v + 5.0 * difference.sign() * torch.log1p(difference.abs())
    found = prox_log(v, z, looks=4.4, step=c / 4.4)

    def objective(s):
        # u = centre + s - 100 to have positive numbers; e^(z - u) <= e^35 in the bracket
        u = torch.minimum(v, z)[:, None] + s - 100.0
        return c[:, None] * (u + (z[:, None] - u).exp()) + 0.5 * (u - v[:, None]).square()

    low = torch.full((n,), 99.99, dtype=F64)
    expected = torch.minimum(v, z) - 100.0 + brute_force(objective, low, 100.01 + (v - z).abs())
    # where it is flat, golden sections find it to the root of the rounding of the objective
    assert float((found - expected).abs().max()) < 1e-6 * 20.0
    stationary = found - v + c * (1.0 - (z - found).exp())
    assert float((stationary.abs() / (1.0 + v.abs() + c * (1.0 + (z - found).exp()))).max()) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("c", [1e-30, 1e-3, 1.0, 50.0, 1e10, 1e30])
def test_the_proximal_map_of_the_logarithm_never_overflows(c, dtype):
    """Against bisection of d + c (e^d - 1) = z - v for differences up to 10^4 either way."""
    delta = torch.cat([powers(200, -12, 4, 50), -powers(200, -12, 4, 51), torch.zeros(1, dtype=F64)]).to(dtype)
    found = prox_log(torch.zeros_like(delta), delta, looks=1.0, step=c)
    low, high = delta.double().clamp_max(0.0), delta.double().clamp_min(0.0)
    for _ in range(1200):
        middle = 0.5 * (low + high)
        above = middle + c * torch.expm1(middle) > delta.double()
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    expected = delta.double() - 0.5 * (low + high)
    rounding = torch.finfo(dtype).eps
    assert bool(found.isfinite().all())
    assert bool(((found - expected).abs() <= 8 * rounding * delta.abs()).all())


def test_proximal_maps_keep_a_centre_that_the_data_agree_with():
    """R = I, A = a and u = z have no gradient, whatever the step."""
    x = powers(50, -2, 2, 60)
    torch.testing.assert_close(prox_intensity(x, x, looks=2.0, step=powers(50, -6, 6, 61)), x, rtol=1e-14, atol=0)
    torch.testing.assert_close(prox_amplitude(x, x, looks=2.0, step=powers(50, -6, 6, 62)), x, rtol=1e-14, atol=0)
    torch.testing.assert_close(prox_log(x, x, looks=2.0, step=powers(50, -6, 6, 63)), x, rtol=1e-15, atol=0)


@pytest.mark.parametrize("prox", [prox_intensity, prox_amplitude, prox_log])
def test_derivatives_of_proximal_maps(prox):
    v = torch.tensor([0.7, -2.0, 3.0, 10.0], dtype=F64, requires_grad=True)
    data = torch.tensor([1.3, 0.5, 0.1, 4.0], dtype=F64, requires_grad=True)
    step = torch.tensor([0.3, 1.0, 0.02, 5.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, d, s: prox(v, d, looks=1.7, step=s), (v, data, step), atol=1e-7)
