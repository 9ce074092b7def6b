"""Sparse baselines: soft thresholds in closed form, the discrepancy, the fixed point of sparse Bayesian learning."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Matrix, NumericalError, Problem
from invdiff.operators import Identity, spotlight
from invdiff.samplers import SBL, SparseL1

F64, C128 = torch.float64, torch.complex128


def complex_values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=C128)


def unitary(n):
    return torch.linalg.qr(complex_values(n, n))[0]


def test_l1_of_a_unitary_operator_is_a_soft_threshold():
    """x = max(1 - strength sigma^2 / |A^H y|, 0) A^H y."""
    a, y, sigma, strength = unitary(12), complex_values(12, seed=1), 0.5, 3.0
    x, facts = SparseL1(strength=strength)(Problem(Matrix(a, (1, 3, 4)), Gaussian(sigma), y))
    back = a.mH @ y
    expected = back * (1.0 - strength * sigma**2 / back.abs()).clamp_min(0.0)
    torch.testing.assert_close(x.flatten(), expected, rtol=1e-9, atol=1e-9)
    assert facts["strength"] == strength and facts["residual"] < 1e-6
    assert 0 < int((expected == 0).sum()) < 12


def test_l1_meets_its_conditions_of_optimality():
    """|A^H (A x - y)| / sigma^2 = strength where x is not zero, against its phase, and at most that elsewhere."""
    a, y, sigma = complex_values(9, 16), complex_values(9, seed=2), 0.7
    x = SparseL1(strength=4.0, iterations=300)(Problem(Matrix(a, (1, 4, 4)), Gaussian(sigma), y))[0].flatten()
    slope = a.mH @ (a @ x - y) / sigma**2
    on = x.abs() > 1e-8
    assert 0 < int(on.sum()) < 16
    torch.testing.assert_close(slope[on], -4.0 * x[on] / x[on].abs(), rtol=1e-5, atol=1e-5)
    assert float(slope[~on].abs().max()) < 4.0


def points(share=1.0, sigma=0.5):
    """Three points seen by a spotlight radar."""
    a = spotlight(
        (16, 16), 0.4, pulses=32, frequencies=32, aperture=0.08, pattern="all" if share == 1.0 else "random", share=share
    )
    x = torch.zeros(1, 16, 16, dtype=C128)
    x[0, 4, 5], x[0, 10, 3], x[0, 12, 13] = 2.0, 1.5j, -1.0
    return x, Problem.simulate(a, Gaussian(sigma), x, seed=0)


def test_l1_by_the_discrepancy_finds_the_points():
    x, problem = points(0.4)
    found, facts = SparseL1()(problem)
    assert 0.9 < facts["chi2"] <= 1.0
    brightest = found.abs().flatten().topk(3).indices.sort().values
    assert torch.equal(brightest, x.abs().flatten().topk(3).indices.sort().values)
    with pytest.raises(NumericalError, match="sigma is too small"):
        SparseL1(iterations=2)(Problem(problem.operator, Gaussian(1e-6), problem.y))


def test_sbl_of_one_value_has_its_closed_form():
    """The likelihood CN(y; 0, R + 2 sigma^2) is largest at R = max(|y|^2 - 2 sigma^2, 0); x = R y / (R + 2 sigma^2)."""
    y, sigma = torch.tensor([3.0 + 1.0j, 0.2j, 1.5, -4.0], dtype=C128), 0.5
    x, _ = SBL(iterations=400, probes=64)(Problem(Matrix(torch.eye(4, dtype=C128), (1, 2, 2)), Gaussian(sigma), y))
    r = (y.abs().square() - 2 * sigma**2).clamp_min(0.0)
    expected = (y * r / (r + 2 * sigma**2)).reshape(1, 1, 2, 2)
    # the variances are means of 64 draws
    torch.testing.assert_close(x, expected, rtol=0.02, atol=0.02)


def test_sbl_finds_the_points():
    x, problem = points(0.4)
    found, facts = SBL(iterations=15)(problem)
    assert float((found[0] - x).norm() / x.norm()) < 0.15
    assert 0.5 < facts["chi2"] < 1.5
    assert float(found.abs().median()) < 0.02


def test_wrong_arguments():
    y = torch.zeros(1, 4, 4)
    with pytest.raises(CapabilityError, match="complex"):
        SBL()(Problem(Identity((1, 4, 4)), Gaussian(0.1), y))
    for wrong in ({"strength": 0.0}, {"strength": math.inf}, {"iterations": 0}):
        with pytest.raises(ConfigError, match="SparseL1"):
            SparseL1(**wrong)(Problem(Identity((1, 4, 4)), Gaussian(0.1), y))
    with pytest.raises(ConfigError, match="SBL"):
        SBL(probes=0)(points()[1])
