"""Guided denoisers against E[x0 | x, y]: for a Gaussian prior that is the exact posterior's own denoiser."""

from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, Denoiser, Gaussian, Matrix, Poisson, Problem, Stack, ViewAsComplex
from invdiff.guidance import MMPS, PiGDM, linearize
from invdiff.priors import GaussianPrior

F64 = torch.float64


class Linear(Denoiser):
    """A denoiser whose Jacobian is neither symmetric nor positive, as a network's."""

    def __init__(self, jacobian):
        super().__init__((8,))
        self.register_buffer("jacobian", jacobian)

    def forward(self, x, sigma):
        return x @ self.jacobian.T


class Frozen(Denoiser):
    def forward(self, x, sigma):
        return x.detach() * 0.5


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def coloured(shape, size=8):
    a = randn(size, size, seed=1)
    return GaussianPrior(randn(*shape, seed=2), a @ a.T / size + 0.05 * torch.eye(size, dtype=F64))


def problems():
    """name -> (prior, problem, number of real measurements)."""
    vector, image = coloured((8,)), coloured((2, 2, 2))
    dense = Matrix(randn(4, 8, seed=3), (8,))
    complex_ = Matrix(torch.complex(randn(3, 4, seed=4), randn(3, 4, seed=5)), (1, 2, 2)) @ ViewAsComplex((1, 2, 2))
    white = GaussianPrior(torch.zeros(5, dtype=F64), torch.eye(5, dtype=F64))
    levels = torch.tensor([0.05, 0.2, 0.7, 1.5], dtype=F64)
    simulate = Problem.simulate
    return {
        "dense": (vector, simulate(dense, Gaussian(0.3), randn(8, seed=6)), 4),
        "uneven noise": (vector, simulate(dense, Gaussian(levels), randn(8, seed=6)), 4),
        "complex": (image, simulate(complex_, Gaussian(0.3), randn(2, 2, 2, seed=6)), 6),
        "synthesis": (white, simulate(dense, Gaussian(0.3), randn(8, seed=6)).through(Matrix(randn(8, 5, seed=7), (5,))), 4),
        "stack": (vector, simulate(Stack([dense, 0.5 * dense]), Gaussian(0.3), randn(8, seed=6)), 8),
        "nothing": (vector, Problem.unmeasured((8,), F64), 0),
    }


@pytest.mark.parametrize("name", problems())
@pytest.mark.parametrize("grad", [True, False])
def test_mmps_is_exact_for_gaussian_priors(name, grad):
    """The solver ends after as many steps as there are measurements: what is left is rounding, at conditions to 1e5."""
    prior, problem, count = problems()[name]
    x, sigma = 3.0 * randn(5, *prior.shape, seed=8), torch.tensor([1e-3, 0.1, 0.6, 3.0, 80.0], dtype=F64)
    with torch.set_grad_enabled(grad):
        denoised = MMPS(cg_steps=count + 2)(prior, problem)(x, sigma)
    exact = prior if count == 0 else prior.posterior(problem)
    assert not denoised.requires_grad
    torch.testing.assert_close(denoised, exact(x, sigma), rtol=0, atol=1e-9)


@pytest.mark.parametrize("std", [1.0, 0.4])
@pytest.mark.parametrize("is_complex", [False, True])
def test_pigdm_is_exact_for_white_gaussian_priors(std, is_complex):
    prior = GaussianPrior(randn(2, 2, 2), std**2 * torch.eye(8, dtype=F64))
    _, problem, _ = problems()["complex"]
    if not is_complex:
        problem = Problem.simulate(Matrix(randn(4, 8, seed=3), (2, 2, 2)), Gaussian(0.3), randn(2, 2, 2, seed=6))
    x, sigma = 3.0 * randn(4, 2, 2, 2, seed=8), torch.tensor([0.01, 0.6, 3.0, 80.0], dtype=F64)
    exact = prior.posterior(problem)(x, sigma)
    torch.testing.assert_close(PiGDM(data_std=std)(prior, problem)(x, sigma), exact, rtol=0, atol=1e-8)
    assert float((PiGDM(data_std=2.0 * std)(prior, problem)(x, sigma) - exact).abs().max()) > 0.01
    mean, more = prior(x, sigma), PiGDM(data_std=std, weight=2.5)
    torch.testing.assert_close(more(prior, problem)(x, sigma), mean + 2.5 * (exact - mean), rtol=0, atol=1e-7)
    assert (PiGDM().kind, more.kind) == ("posterior", "point")


def test_too_few_steps_are_a_bias_that_falls():
    prior, problem, _ = problems()["stack"]
    x, sigma = 3.0 * randn(3, 8, seed=8), torch.full((3,), 1.0, dtype=F64)
    exact = prior.posterior(problem)(x, sigma)
    errors = [float((MMPS(cg_steps=k)(prior, problem)(x, sigma) - exact).norm()) for k in (1, 2, 3, 4, 5)]
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[0] > 0.05 and errors[4] < 1e-9


def test_one_step_makes_the_residual_least():
    prior, problem, _ = problems()["dense"]
    x, sigma = randn(3, 8, seed=8), torch.tensor([0.2, 1.0, 4.0], dtype=F64)
    matrix, denoised = problem.operator.matrix, prior(x, sigma)
    expected = []
    for k in range(3):
        v = sigma[k] ** 2 * prior.cov @ torch.linalg.inv(prior.cov + sigma[k] ** 2 * torch.eye(8, dtype=F64))
        r = problem.y[0] - matrix @ denoised[k]
        m = matrix @ v @ matrix.T + 0.09 * torch.eye(4, dtype=F64)
        expected.append(denoised[k] + v @ matrix.T @ r * (r @ m @ r) / (r @ m @ m @ r))
    torch.testing.assert_close(MMPS(cg_steps=1)(prior, problem)(x, sigma), torch.stack(expected), rtol=0, atol=1e-11)


def test_the_residual_never_grows_whatever_the_jacobian():
    """y - A D - M w falls with every step, and is the least that its Krylov space allows."""
    _, problem, _ = problems()["stack"]
    matrix = torch.cat([problem.operator.operators[0].matrix, 0.5 * problem.operator.operators[0].matrix])
    jacobian, x, sigma = randn(8, 8, seed=12), randn(1, 8, seed=8), torch.tensor([2.0], dtype=F64)
    prior, v = Linear(jacobian), 4.0 * jacobian.T @ matrix.T
    b = (problem.y - problem.operator(prior(x, sigma)))[0]
    lengths = []
    for k in range(1, 6):
        shift = (MMPS(cg_steps=k)(prior, problem)(x, sigma) - prior(x, sigma))[0]
        # the least residual that the Krylov space allows, by dense least squares
        m, krylov = matrix @ v + 0.09 * torch.eye(8, dtype=F64), [b]
        for _ in range(k - 1):
            krylov.append(m @ krylov[-1] / krylov[-1].norm())
        basis = torch.linalg.qr(torch.stack(krylov, dim=1)).Q
        c = torch.linalg.lstsq(m @ basis, b[:, None], driver="gelsd").solution[:, 0]
        torch.testing.assert_close(shift, v @ basis @ c, rtol=0, atol=1e-6)
        lengths.append(float((b - m @ basis @ c).norm()))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(lengths))


def test_items_of_a_batch_do_not_couple():
    prior, problem, _ = problems()["complex"]
    x, sigma = 3.0 * randn(3, 2, 2, 2, seed=8), torch.tensor([0.01, 0.6, 80.0], dtype=F64)
    for guidance in (MMPS(cg_steps=2), PiGDM()):
        denoiser = guidance(prior, problem)
        alone = torch.cat([denoiser(x[k : k + 1], sigma[k : k + 1]) for k in range(3)])
        torch.testing.assert_close(denoiser(x, sigma), alone, rtol=0, atol=1e-11)


def test_linearize_is_the_jacobian():
    prior = coloured((8,))
    denoised, transposed = linearize(prior, randn(2, 8), torch.tensor([0.5, 2.0], dtype=F64))
    v = randn(2, 8, seed=3)
    for k, sigma in enumerate((0.5, 2.0)):
        jacobian = prior.cov @ torch.linalg.inv(prior.cov + sigma**2 * torch.eye(8, dtype=F64))
        torch.testing.assert_close(transposed(v)[k], jacobian.T @ v[k], rtol=0, atol=1e-12)
    assert not denoised.requires_grad


def test_what_a_guidance_can_not_do_is_an_error():
    prior, problem, _ = problems()["uneven noise"]
    with pytest.raises(CapabilityError, match=r"PiGDM needs one noise level, Gaussian has sigma of shape \(4,\)"):
        PiGDM()(prior, problem)
    counts = Problem(problem.operator, Poisson(10.0), problem.y.abs())
    for guidance in (PiGDM(), MMPS()):
        with pytest.raises(CapabilityError, match=r"Poisson: problem.gaussian\(\)"):
            guidance(prior, counts)
    with pytest.raises(CapabilityError, match="Frozen: the method needs dD/dx"):
        MMPS()(Frozen((8,)), problem)(randn(1, 8), torch.ones(1, dtype=F64))


def test_preconditioned_mmps_is_exact_in_one_step_for_a_white_prior():
    """There the preconditioner is the inverse itself."""
    matrix = torch.randn(4, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    prior = GaussianPrior(torch.full((6,), 0.3, dtype=F64), torch.full((6,), 0.49, dtype=F64))
    problem = Problem.simulate(Matrix(matrix), Gaussian(0.05), torch.ones(6, dtype=F64))
    x, sigma = (
        2.0 * torch.randn(3, 6, dtype=F64, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.05, 0.5, 5.0], dtype=F64),
    )
    exact = prior.posterior(problem)(x, sigma)
    torch.testing.assert_close(MMPS(cg_steps=1, data_std=0.7)(prior, problem)(x, sigma), exact, rtol=0, atol=1e-8)
    assert float((MMPS(cg_steps=1)(prior, problem)(x, sigma) - exact).abs().max()) > 1e-2


def test_the_preconditioner_changes_the_speed_and_not_the_limit():
    """An ill-conditioned operator: three preconditioned steps come nearer than five without, and enough steps are exact."""
    operator = Matrix(torch.diag(torch.logspace(0, -2, 12, dtype=F64)))
    a = torch.randn(12, 12, dtype=F64, generator=torch.Generator().manual_seed(2))
    prior = GaussianPrior(torch.zeros(12, dtype=F64), torch.eye(12, dtype=F64) + 0.2 * a @ a.T / 12)
    problem = Problem.simulate(operator, Gaussian(0.01), torch.ones(12, dtype=F64))
    x, sigma = torch.randn(5, 12, dtype=F64, generator=torch.Generator().manual_seed(3)), torch.full((5,), 1.0, dtype=F64)
    exact = prior.posterior(problem)(x, sigma)
    error = {o: float((o(prior, problem)(x, sigma) - exact).norm()) for o in (MMPS(3, 1.0), MMPS(5), MMPS(12, 1.0))}
    assert error[MMPS(3, 1.0)] < 0.3 * error[MMPS(5)]
    assert error[MMPS(12, 1.0)] < 1e-8


def test_the_unit_of_the_measurement_changes_no_digit():
    """In units that make it small, squares of a converged residual underflow in single precision; powers of two are exact."""
    matrix, found = randn(4, 8, seed=3).float(), []
    prior = coloured((8,)).float()
    y = (randn(1, 4, seed=9)).float()
    for unit in (1.0, 2.0**-24):
        problem = Problem(Matrix(unit * matrix, (8,)), Gaussian(0.01 * unit), unit * y)
        found.append(MMPS(cg_steps=12)(prior, problem)(randn(3, 8, seed=8).float(), torch.full((3,), 0.3)))
    assert bool(found[1].isfinite().all()) and torch.equal(*found)


def test_a_precise_measurement_is_seen_beside_many_weak_ones():
    """Residuals count in units of their noise: a step serves what is far from explained first."""
    prior = GaussianPrior(torch.zeros(501, dtype=F64), torch.eye(501, dtype=F64))
    sigmas, truth = torch.full((501,), 30.0, dtype=F64), randn(501, seed=1)
    sigmas[0], truth[0] = 0.1, 5.0
    problem = Problem.simulate(Matrix(torch.eye(501, dtype=F64), (501,)), Gaussian(sigmas), truth, seed=0)
    x, sigma = 10.0 * randn(4, 501, seed=2), torch.full((4,), 10.0, dtype=F64)
    exact, found = prior.posterior(problem)(x, sigma), MMPS(cg_steps=1)(prior, problem)(x, sigma)
    # the prior knows nothing of the 5; unweighted, one step ends 5 away
    assert float((prior(x, sigma) - exact)[:, 0].abs().min()) > 4.8
    assert float((found - exact)[:, 0].abs().max()) < 0.02
    assert float((found - exact)[:, 1:].abs().max()) < 0.15
