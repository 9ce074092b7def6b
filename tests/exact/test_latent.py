"""Latent priors: the decoder as an operator with exact derivatives, and the posterior of latents in closed form."""

import pytest
import torch
from torch import nn

from invdiff.core import Denoiser, Gaussian, Matrix, Problem, ShapeError, Streams
from invdiff.core.errors import ConfigError
from invdiff.priors import GaussianPrior
from invdiff.priors.autoencoder import Autoencoder, Decoder
from invdiff.priors.latent import LatentPrior
from invdiff.samplers import DPS
from invdiff.tasks.data import Item
from invdiff.tasks.distance import distance_from_prior
from invdiff.tasks.setups import inpainting, synthesis


def normal(*shape, seed=0):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=torch.float64)


def small(**options):
    return Autoencoder(1, 3, widths=(16, 32), blocks=1, sigma_data=0.5, mean=0.2, **options).double().eval()


class Linear(nn.Module):
    """x = W z with orthonormal columns: 4 latents for 4 x 4 images."""

    channels, latent, factor = 1, 4, 4

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.linalg.qr(normal(16, 4))[0])

    def encode(self, x):
        return (x.flatten(1) @ self.w)[:, :, None, None]

    def decode(self, z):
        return (z[:, :, 0, 0] @ self.w.T).reshape(-1, 1, 4, 4)

    def latent_shape(self, shape):
        return 4, shape[1] // 4, shape[2] // 4


# torch compiles the forward derivative of GroupNorm by a function of its own that it calls deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_derivatives_of_the_decoder():
    """<J v, w> = <v, J^T w> to rounding, and both against finite differences."""
    decoder = Decoder(small(), (1, 16, 8))
    z, v, w = normal(2, 3, 4, 2), normal(2, 3, 4, 2, seed=1), normal(2, 1, 16, 8, seed=2)
    x, forward = decoder.jvp(z, v)
    again, pullback = decoder.vjp(z)
    torch.testing.assert_close(x, again, rtol=1e-12, atol=1e-12)
    left, right = (forward * w).sum(), (v * pullback(w)).sum()
    assert abs(left - right) < 1e-12 * forward.norm() * w.norm()
    step = 1e-5
    difference = (decoder(z + step * v) - decoder(z - step * v)) / (2 * step)
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-8)
    assert all(p.grad is None for p in decoder.parameters())


def test_shapes_and_sizes():
    autoencoder = small()
    assert autoencoder.factor == 4
    for height, width in ((8, 8), (16, 28)):
        z = autoencoder.encode(normal(2, 1, height, width))
        assert z.shape[1:] == autoencoder.latent_shape((1, height, width)) == (3, height // 4, width // 4)
        assert autoencoder.decode(z).shape == (2, 1, height, width)
    with pytest.raises(ShapeError, match="multiples of 4, got \\(1, 1, 10, 8\\)"):
        autoencoder.encode(normal(1, 1, 10, 8))
    with pytest.raises(ShapeError, match="expected latents \\(B, 3, h, w\\)"):
        autoencoder.decode(normal(1, 4, 2, 2))
    with pytest.raises(ShapeError, match="image shape \\(1, H, W\\)"):
        autoencoder.latent_shape((2, 8, 8))
    with pytest.raises(ConfigError, match="multiples of 16"):
        Autoencoder(1, 3, widths=(20,))
    with pytest.raises(ShapeError, match="LatentPrior: expected a prior on \\(3, h, w\\)"):
        LatentPrior(GaussianPrior(torch.zeros(4, 2, 2), torch.ones(4, 2, 2)), autoencoder)


def test_scale_and_mean_belong_to_the_data():
    """The network sees (x - mean) / sigma_data: two autoencoders with the same weights differ by just that."""
    one, other = small(), Autoencoder(1, 3, widths=(16, 32), blocks=1).double().eval()
    x = normal(2, 1, 8, 8)
    z = other.encode(x)
    torch.testing.assert_close(one.encode(0.2 + 0.5 * x), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.decode(z), 0.2 + 0.5 * other.decode(z), rtol=1e-12, atol=1e-12)


def test_a_linear_autoencoder_carries_the_posterior_of_latents_to_images():
    """With x = W z and z Gaussian, the posterior of z through A W, decoded, is that of x ~ N(W m, W C W^T)."""
    autoencoder = Linear()
    latents = GaussianPrior(normal(4, 1, 1), torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.2], dtype=torch.float64)))
    prior = LatentPrior(latents, autoencoder)
    matrix, w = normal(5, 16, seed=3), autoencoder.w
    operator = Matrix(matrix, (1, 4, 4))
    x = prior.synthesis((1, 4, 4))(latents.sample(Streams(5, 1)))
    problem = Problem.simulate(operator, Gaussian(0.1), x, seed=1)
    through = Problem(Matrix(matrix @ w, (4, 1, 1)), problem.noise, problem.y)
    z = normal(6, 4, 1, 1, seed=4)
    composed = problem.through(prior.synthesis((1, 4, 4)))
    torch.testing.assert_close(composed.log_likelihood(z), through.log_likelihood(z), rtol=1e-12, atol=1e-12)
    images = GaussianPrior((latents.mean.flatten() @ w.T).reshape(1, 4, 4), w @ latents.cov @ w.T).posterior(problem)
    exact = latents.posterior(through)
    torch.testing.assert_close(images.mean.flatten(), w @ exact.mean.flatten(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(images.cov, w @ exact.cov @ w.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior.analyse(prior.synthesis((1, 4, 4))(z)), z, rtol=1e-12, atol=1e-12)


def test_a_sampler_sees_the_same_problem():
    """A sampler that needs derivatives alone draws the same from A o decode as from the matrix A W."""
    prior = LatentPrior(GaussianPrior(torch.zeros(4, 1, 1).double(), torch.ones(4, 1, 1).double()), Linear())
    matrix = normal(5, 16, seed=3)
    problem = Problem.simulate(Matrix(matrix, (1, 4, 4)), Gaussian(0.5), normal(1, 1, 4, 4, seed=7))
    composed = problem.through(prior.synthesis((1, 4, 4)))
    plain = Problem(Matrix(matrix @ prior.autoencoder.w, (4, 1, 1)), problem.noise, problem.y)
    one, other = (DPS(steps=30)(p, prior, n=2, seed=0).x for p in (composed, plain))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert one.abs().max() > 0.1


def test_a_latent_prior_knows_what_its_denoiser_knows():
    """The card, by which a report measures how far an image is from the prior, its scale, and the only noise levels."""
    inner = GaussianPrior(torch.zeros(4, 1, 1).double(), torch.ones(4, 1, 1).double())
    assert distance_from_prior(LatentPrior(inner, Linear()), normal(2, 4, 1, 1)) is None
    card = {"sigma": [0.05, 0.5, 5.0], "rms": [0.01, 0.1, 1.0]}
    inner.facts, inner.sigma_data, inner.known = {"denoising_error": card}, 0.1, torch.tensor([0.1, 1.0])
    prior = LatentPrior(inner, Linear())
    assert torch.equal(prior.known, inner.known)
    # 0.5 and 5 are beyond twice the scale
    assert distance_from_prior(prior, normal(2, 4, 1, 1))["sigma"] == [0.05]


def test_a_task_takes_the_grid_of_the_images():
    """Images of 10 x 12 pixels and an autoencoder of factor 4 with a prior of divisor 2: a grid of 16 x 16."""

    class Free(Denoiser):
        divisor = 2

        def forward(self, x, sigma):
            return x

    prior = LatentPrior(Free((3, None, None)), small())
    assert prior.image_shape == (1, None, None)
    assert prior.image_divisor == 8
    operator = inpainting(Item("x", (1, 10, 12)))
    crop = synthesis(operator, prior)
    assert crop.in_shape == (1, 16, 16)
    assert prior.synthesis(crop.in_shape).in_shape == (3, 4, 4)
