"""Coefficient priors: exact where they are an image prior, exact through `problem.through`, and refused where they are neither.

The images are Gaussian, so that the posterior is known. z-scores as in test_linear_gaussian: 5 standard errors.
"""

import pytest
import torch

from invdiff.core import ConfigError, Denoiser, Gaussian, Karras, Matrix, Problem, ShapeError, Streams
from invdiff.core.algebra import dense
from invdiff.guidance import MMPS
from invdiff.operators.wavelet import WaveletSynthesis
from invdiff.priors import Affine, Average, ChannelWise, GaussianPrior
from invdiff.priors.wavelet import CoefficientDomain, WaveletDomain, WaveletPrior, denoise_coloured, synthesized_noise
from invdiff.samplers import Guided, Heun

F64 = torch.float64
SHAPE = (1, 4, 6)
SIZE = 24


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def images():
    """A Gaussian law of images whose pixels are correlated."""
    a = randn(SIZE, SIZE, seed=1)
    cov = a @ a.T / SIZE + 0.1 * torch.eye(SIZE, dtype=F64)
    return GaussianPrior(randn(*SHAPE, seed=2), cov, sigma_min=1e-3, sigma_max=300.0)


def coefficients(prior, synthesis):
    """The law of the coefficients of images: exact, for any synthesis."""
    analysis = torch.func.jacrev(lambda x: synthesis.analysis(x[None])[0].flatten())(prior.mean).reshape(-1, SIZE)
    cov = analysis @ prior.cov @ analysis.T
    mean = synthesis.analysis(prior.mean[None])[0]
    return GaussianPrior(mean, 0.5 * (cov + cov.T), sigma_min=prior.sigma_min, sigma_max=prior.sigma_max)


def z_scores(draws, exact):
    """Largest deviation of means and of covariances in standard errors."""
    draws, mean, cov = draws.flatten(1), exact.mean.flatten(), exact.cov
    z_mean = (draws.mean(0) - mean) / (cov.diagonal() / len(draws)).sqrt()
    spread = ((torch.outer(cov.diagonal(), cov.diagonal()) + cov**2) / len(draws)).sqrt()
    return float(z_mean.abs().max()), float(((draws.T.cov() - cov) / spread).abs().max())


def measurement():
    operator = Matrix(randn(4, SIZE, seed=3), SHAPE)
    return Problem.simulate(operator, Gaussian(0.5), images().sample(Streams(4))[0])


BASIS = WaveletSynthesis(SHAPE, "haar")
SAMPLER = Guided(MMPS(cg_steps=4), Heun(), Karras(0.005, 300.0), steps=40)
SYNTHESES = {
    "haar": {"wavelet": "haar"},
    "bior2.4": {"wavelet": "bior2.4"},
    "bior2.4 scaled": {"wavelet": "bior2.4", "scales": [4.0, 1.0, 1.0, 0.3]},
    "bior1.3 zero": {"wavelet": "bior1.3", "mode": "zero"},
    "db2 symmetric, two levels": {"wavelet": "db2", "mode": "symmetric", "levels": 2},
}


# as many draws of redundant coefficients take above ten seconds
REDUNDANT = {"bior1.3 zero", "db2 symmetric, two levels"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in REDUNDANT else []) for n in SYNTHESES])
def test_a_coefficient_prior_samples_the_posterior_of_the_image(name):
    """1,500 draws of the coefficients, synthesized, against the posterior of the image; also with redundant coefficients."""
    prior, problem, synthesis = images(), measurement(), WaveletSynthesis(SHAPE, **SYNTHESES[name])
    through = WaveletPrior(coefficients(prior, synthesis), synthesis)
    draws = SAMPLER(problem.through(through.synthesis(SHAPE)), through, n=1500, seed=0).x
    assert max(z_scores(synthesis(draws), prior.posterior(problem))) < 5
    x = randn(1, *SHAPE)
    assert through.image_shape == SHAPE and torch.equal(through.analyse(x), synthesis.analysis(x))
    with pytest.raises(ShapeError, match=r"WaveletPrior: expected images of shape \(1, 4, 6\), got \(1, 8, 8\)"):
        through.synthesis((1, 8, 8))


class Pretended(Denoiser):
    """S D(S^-1 x, sigma) as if it were a denoiser of white noise."""

    def __init__(self, prior, synthesis):
        super().__init__(synthesis.out_shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.basis = prior, synthesis

    def forward(self, x, sigma):
        return denoise_coloured(self.prior, self.basis, x, sigma)


@pytest.mark.parametrize("wrong", ["the adjoint for the inverse", "white noise in the image"])
def test_the_test_sees_what_is_wrong(wrong):
    prior, problem, synthesis = images(), measurement(), WaveletSynthesis(SHAPE, "bior2.4")
    on_coefficients = coefficients(prior, synthesis)
    if wrong == "white noise in the image":
        draws = SAMPLER(problem, Pretended(on_coefficients, synthesis), n=1500, seed=0).x
    else:
        transposed = Matrix(dense(synthesis).inverse().T, synthesis.in_shape)
        problem = Problem(Matrix(problem.operator.matrix @ transposed.matrix, synthesis.in_shape), problem.noise, problem.y)
        draws = transposed(SAMPLER(problem, on_coefficients, n=1500, seed=0).x).reshape(-1, *SHAPE)
    assert max(z_scores(draws, prior.posterior(measurement()))) > 20


def test_an_orthonormal_basis_changes_nothing():
    """The Gaussian's own denoiser, through coefficients and back; its posterior likewise."""
    prior, x, sigma = images(), 3.0 * randn(4, *SHAPE), torch.tensor([1e-3, 0.3, 2.0, 300.0], dtype=F64)
    synthesis = WaveletSynthesis(SHAPE, "db2")
    through = WaveletDomain(coefficients(prior, synthesis), synthesis)
    torch.testing.assert_close(through(x, sigma), prior(x, sigma), rtol=0, atol=1e-10)
    back = CoefficientDomain(through, synthesis)
    u = synthesis.adjoint(x)
    torch.testing.assert_close(back(u, sigma), coefficients(prior, synthesis)(u, sigma), rtol=0, atol=1e-10)
    assert (through.shape, through.sigma_max, back.shape) == (SHAPE, 300.0, SHAPE)


@pytest.mark.parametrize("options", [{}, {"scales": [4.0, 1.0, 1.0, 0.3]}])
def test_coloured_denoising_in_closed_form(options):
    """m + C (C + sigma^2 S S^T)^-1 (z - m), and not that of white noise."""
    prior, synthesis, z = images(), WaveletSynthesis(SHAPE, "bior2.4", **options), randn(3, *SHAPE)
    matrix, on_coefficients = dense(synthesis), coefficients(prior, synthesis)
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=F64)
    denoised = denoise_coloured(on_coefficients, synthesis, z, sigma)
    for k in range(3):
        noise = sigma[k] ** 2 * matrix @ matrix.T
        exact = prior.cov @ torch.linalg.solve(prior.cov + noise, (z[k] - prior.mean).flatten()) + prior.mean.flatten()
        torch.testing.assert_close(denoised[k].flatten(), exact, rtol=0, atol=1e-10)
    assert float((denoised - prior(z, sigma))[1].abs().max()) > 0.01


def test_the_law_of_synthesized_noise():
    synthesis = WaveletSynthesis(SHAPE, "bior2.4", scales=[4.0, 1.0, 1.0, 0.3])
    noise = synthesized_noise(synthesis, torch.tensor(0.7), Streams(1, 4000), dtype=F64)
    matrix = 0.7 * dense(synthesis)
    assert max(z_scores(noise, GaussianPrior(torch.zeros(SHAPE, dtype=F64), matrix @ matrix.T))) < 5
    white = GaussianPrior(torch.zeros(SHAPE, dtype=F64), 0.49 * torch.eye(SIZE, dtype=F64))
    assert max(z_scores(noise, white)) > 20
    levels = torch.tensor([1.0, 2.0])
    assert torch.equal(
        synthesized_noise(synthesis, levels, Streams(1, 2))[1],
        2.0 * synthesized_noise(synthesis, torch.tensor(1.0), Streams(1, 2))[1],
    )


@pytest.mark.parametrize("name", list(SYNTHESES)[1:])
def test_what_is_not_orthonormal_is_refused(name):
    synthesis, prior = WaveletSynthesis(SHAPE, **SYNTHESES[name]), images()
    with pytest.raises(ConfigError, match=r"WaveletDomain: expected an orthonormal synthesis, got .* problem.through"):
        WaveletDomain(coefficients(prior, synthesis), synthesis)
    with pytest.raises(ConfigError, match="CoefficientDomain: expected an orthonormal synthesis"):
        CoefficientDomain(prior, synthesis)
    if not synthesis.square:
        with pytest.raises(ConfigError, match="expected as many coefficients as values"):
            denoise_coloured(coefficients(prior, synthesis), synthesis, randn(1, *SHAPE), torch.ones(1, dtype=F64))


@pytest.mark.parametrize(
    "wrap",
    [
        Affine,
        ChannelWise,
        lambda p: WaveletPrior(p, BASIS),
        lambda p: WaveletDomain(p, BASIS),
        lambda p: CoefficientDomain(p, BASIS),
    ],
)
def test_coefficients_are_no_image_even_where_their_shape_is_that_of_one(wrap):
    prior = WaveletPrior(images(), BASIS)
    assert prior.shape == prior.image_shape
    with pytest.raises(ConfigError, match="the unknown of WaveletPrior is not the image it decodes to"):
        wrap(prior)
    with pytest.raises(ShapeError, match="got images and what they are decoded from"):
        Average([images(), prior])
    assert Average([prior, prior]).synthesis(SHAPE) is BASIS


def test_a_prior_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"expected a prior on coefficients of shape \(1, 8, 8\), got one on \(1, 4, 6\)"):
        WaveletDomain(images(), WaveletSynthesis((1, 8, 8), "haar"))
