"""A prior on a coarse grid: the posterior of fine fields that the coarse grid holds, by dense algebra."""

import pytest
import torch

from invdiff.core import Gaussian, Matrix, Problem, ShapeError, Streams
from invdiff.core.algebra import dense
from invdiff.generators import SourceFields
from invdiff.guidance import MMPS
from invdiff.operators.pde import Poisson, random_sensors
from invdiff.priors import GaussianPrior
from invdiff.priors.coarse import Coarse
from invdiff.priors.field import GaussianField
from invdiff.priors.network import EDMDenoiser
from invdiff.priors.spectra import Laplacian, Matern
from invdiff.priors.unet import UNet
from invdiff.samplers import Guided, Heun
from invdiff.tasks import Fields, Relative, Task
from invdiff.tasks.field_setups import source_by_sensors

F64 = torch.float64
KINDS = ["periodic", "neumann", "dirichlet", ("neumann", "periodic")]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def coarse(boundary, size=(9, 8)):
    law = GaussianField((1, 5, 4), Matern(1.5), mean=0.3, std=0.8, length=2.0, boundary=boundary)
    return Coarse(law, (5, 4), size, boundary=boundary)


def covariance(field):
    size = field.spectrum.numel()
    return field.covariance(torch.eye(size, dtype=F64).reshape(size, *field.shape)).reshape(size, size)


@pytest.mark.parametrize("boundary", KINDS)
def test_posterior_through_the_synthesis_is_that_of_the_band_limited_field(boundary):
    """x = R c is N(R m, R C R^T): E[x | y] and Cov[x | y] of the fine field, and R applied to those of the coarse one."""
    prior, operator = coarse(boundary), Matrix(randn(6, 72, seed=1), (1, 9, 8))
    problem = Problem.simulate(operator, Gaussian(0.2), randn(1, 9, 8), seed=2)
    up, matrix = dense(prior.synthesis(operator.in_shape)), operator.matrix
    mean, cov = up @ torch.full((20,), 0.3, dtype=F64), up @ covariance(prior.prior) @ up.T
    gain = cov @ matrix.T @ torch.linalg.inv(matrix @ cov @ matrix.T + 0.04 * torch.eye(6, dtype=F64))
    wanted, spread = mean + gain @ (problem.y[0] - matrix @ mean), cov - gain @ matrix @ cov
    unknown = problem.through(prior.synthesis(operator.in_shape))
    found, draws = prior.prior.posterior_draws(unknown, 2000, seed=3)
    torch.testing.assert_close(prior.up(found[None]).flatten(), wanted, rtol=0, atol=1e-9)
    fine = prior.up(draws).flatten(1)
    scale = (spread.diagonal()[:, None] * spread.diagonal() + spread**2).sqrt() / 2000**0.5
    assert float(((fine.T.cov() - spread).abs() / (scale + 1e-12)).max()) < 5.5
    # the guided denoiser is that of the posterior of c
    twin = GaussianPrior(torch.full((1, 5, 4), 0.3, dtype=F64), covariance(prior.prior)).posterior(unknown)
    x, sigma = randn(3, 1, 5, 4, seed=5), torch.tensor([0.01, 0.5, 20.0], dtype=F64)
    guided = MMPS(cg_steps=1, reference="prior")(prior, unknown)
    torch.testing.assert_close(guided(x, sigma), twin(x, sigma), rtol=0, atol=1e-9)


@pytest.mark.parametrize("boundary", KINDS)
def test_coarse_fields_come_back(boundary):
    prior = coarse(boundary)
    c = prior.down(prior.up(randn(2, 1, 5, 4)))  # without what alternates from point to point
    torch.testing.assert_close(prior.analyse(prior.synthesis((1, 9, 8))(c)), c, rtol=0, atol=1e-13)
    assert (prior.shape, prior.image_shape) == ((1, 5, 4), (1, 9, 8))
    x, sigma = randn(2, 1, 5, 4), torch.tensor([0.1, 3.0], dtype=F64)
    assert torch.equal(prior(x, sigma), prior.prior(x, sigma))
    assert (prior.sigma_min, prior.sigma_max) == (prior.prior.sigma_min, prior.prior.sigma_max)


def test_a_law_in_physical_units_is_the_same_law_on_both_grids():
    """Draws of the coarse law on 12 x 12, shown on 24 x 24, have the covariance of the fine law without its higher modes."""
    laws = [GaussianField((1, n), Laplacian(1.0, 3.0, 2.0), std=None, spacing=1.0 / n, boundary="neumann") for n in (12, 24)]
    prior = Coarse(laws[0], (12,), 24)
    up = dense(prior.up)
    keep = torch.arange(24) < 12
    cut = GaussianField((1, 24), lambda q: laws[1].spectrum * keep / 24.0, std=None, spacing=1.0 / 24, boundary="neumann")
    torch.testing.assert_close(up @ covariance(laws[0]) @ up.T, covariance(cut), rtol=0, atol=1e-13)


def test_a_network_of_any_size():
    net = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, embedding=16, patch=2), sigma_data=0.5)
    prior = Coarse(net, (8, 6), 16, boundary="periodic")
    assert (prior.shape, prior.image_shape, prior.sigma_data) == ((1, 8, 6), (1, 16, 16), 0.5)
    x, sigma = Streams(0, 2).normal(0, (1, 8, 6)), torch.ones(2)
    assert torch.equal(prior(x, sigma), net(x, sigma))


def test_in_a_task_the_images_are_fine_and_the_draws_coarse():
    """The report has the fine truth and fine estimates, of draws on the coarse grid."""
    size, side = 8, 4
    law = GaussianField.laplacian((1, side, side), scale=1.0, tau=3.0, alpha=2.0, spacing=1 / side, zero_mean=True)
    task = Task(
        name="coarse",
        data=Fields(generator=SourceFields(size=size), name="f"),
        operator=lambda item: source_by_sensors(item, sensors=10),
        noise=Relative(0.05),
        data_range=None,
    )
    sampler = Guided(MMPS(cg_steps=1, reference="prior"), Heun(), steps=8)
    report = task.run(prior=Coarse(law, (side, side), size), sampler=sampler, n=4, dtype="float64")
    (item,) = report.items
    assert item.estimates[-1].image.shape == item.truth.shape == (1, size, size)
    assert item.metrics(item.estimates[-1])["nrmse"] < 1.0
    operator = random_sensors((1, 8, 8), 3) @ Poisson((1, 8, 8))
    assert (operator @ Coarse(law, (side, side), size).up).in_shape == (1, side, side)


@pytest.mark.parametrize(
    ("grid", "size", "words"),
    [
        ((5, 5), 9, r"expected a prior on fields of \(5, 5\), got one on \(1, 5, 4\)"),
        ((5,), 9, r"expected a prior on fields of \(5,\)"),
        ((5, 4), (9, 3), r"expected a grid no coarser than \(5, 4\), got \(9, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(grid, size, words):
    law = GaussianField((1, 5, 4), Matern(1.5), boundary="neumann")
    with pytest.raises(ShapeError, match=f"Coarse: {words}"):
        Coarse(law, grid, size)
    net = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, embedding=16, patch=2), sigma_data=0.5)
    with pytest.raises(ShapeError, match="of sizes divisible by 2"):
        Coarse(net, (7, 8), 16)
