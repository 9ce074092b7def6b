"""Blind and multi-band denoisers against dense linear algebra: what they compute, and what they leave out."""

import math

import pytest
import torch

from invdiff.core.denoiser import Denoiser
from invdiff.core.errors import CapabilityError, ConfigError, ShapeError
from invdiff.core.problem import Problem
from invdiff.core.rng import Streams
from invdiff.core.schedule import Karras, LogUniform
from invdiff.priors.blind import Blind
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.multiscale import MultiScale, haar_merge, haar_split
from invdiff.samplers import Guided

F64 = torch.float64
LIMITS = {"sigma_min": 0.01, "sigma_max": 4.0}


def normal(*shape, seed=0):
    return Streams(seed, 1).normal(0, shape, dtype=F64)[0]


# blind denoisers


@pytest.mark.parametrize("outputs", ["noise", "image"])
def test_a_blind_denoiser_reads_sigma_from_the_image(outputs):
    """White data of deviation s: the level is read as |x|^2 / N - s^2, so the shrinkage s^2 / (|x|^2 / N) has the relative
    error sqrt(2 / N) of |x|^2 / N; 5 standard errors."""
    s, size = 0.7, 128

    def shrink(x):
        return x * (s**2 / x.square().mean((1, 2, 3), keepdim=True))

    net = shrink if outputs == "image" else lambda x: x - shrink(x)
    prior = Blind(net, shape=(1, None, None), outputs=outputs, **LIMITS)
    exact = GaussianPrior(torch.zeros(1, size, size, dtype=F64), torch.full((1, size, size), s**2, dtype=F64))
    sigma = torch.tensor([0.05, 0.5, 3.0], dtype=F64)
    x = s * normal(3, 1, size, size) + sigma[:, None, None, None] * normal(3, 1, size, size, seed=1)
    got, want = prior(x, sigma), exact(x, sigma)
    assert ((got - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)).max() < 5 * math.sqrt(2 / size**2)
    assert torch.equal(prior(x, sigma.flip(0)), got)


@pytest.mark.parametrize("sigma", [0.0, 0.0099, 4.001, math.nan])
def test_outside_of_its_interval_a_blind_denoiser_is_refused(sigma):
    prior = Blind(torch.zeros_like, shape=(1, 4, 4), **LIMITS)
    with pytest.raises(ConfigError, match=rf"trained for sigma in \[0.01, 4\], and is called at {sigma:g}"):
        prior(torch.zeros(2, 1, 4, 4), torch.tensor([1.0, sigma]))


@pytest.mark.parametrize("grid", [Karras(), LogUniform()])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_grids_stay_inside_of_an_interval_that_rounds_badly(grid, dtype):
    """55/255 rounds up in float32; every level of a grid is called, both limits included."""
    prior = Blind(torch.zeros_like, shape=(1, 2, 2), sigma_min=1 / 255, sigma_max=55 / 255)
    levels = grid(50, prior.sigma_min, prior.sigma_max)[:-1].to(dtype)
    prior(torch.zeros(50, 1, 2, 2, dtype=dtype), levels)


def test_samplers_run_on_a_blind_denoiser():
    prior = Blind(lambda x: 0.5 * x, shape=(1, 4, 4), sigma_min=1 / 255, sigma_max=55 / 255)
    draws = Guided(steps=8)(Problem.unmeasured((1, 4, 4)), prior, n=2, seed=0)
    assert bool(draws.x.isfinite().all())


def test_an_answer_that_would_broadcast_is_refused():
    prior = Blind(lambda x: x.mean(1, keepdim=True), shape=(3, 4, 4), **LIMITS)
    with pytest.raises(ShapeError, match=r"expected function to return \(1, 3, 4, 4\), got \(1, 1, 4, 4\)"):
        prior(torch.zeros(1, 3, 4, 4), torch.ones(1))
    with pytest.raises(ConfigError, match="expected outputs"):
        Blind(torch.zeros_like, shape=(1, 4, 4), outputs="score", **LIMITS)
    with pytest.raises(ShapeError, match=r"Blind: expected sizes that are multiples of 4, got \(4, 6\)"):
        Blind(torch.zeros_like, shape=(1, None, None), divisor=4, **LIMITS)(torch.zeros(1, 1, 4, 6), torch.ones(1))
    assert len({repr(Blind(abs, shape=(1, 4, 4), outputs=outputs, **LIMITS)) for outputs in ("noise", "image")}) == 2


def test_a_blind_network_runs_in_the_dtype_of_its_weights():
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    x = normal(2, 1, 4, 4)
    prior = Blind(net, shape=(1, None, None), **LIMITS)
    got = prior(x, torch.ones(2, dtype=F64))
    assert got.dtype is F64
    assert torch.equal(got, x - net(x.float()).double())


# multi-band denoisers


def test_one_haar_level_is_half_an_orthonormal_transform():
    image = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=F64)[None, None]
    low, details = haar_split(image)
    assert low.item() == 15 / 4
    assert details.flatten().tolist() == [-9 / 4, -5 / 4, 3 / 4]
    matrix = torch.stack([torch.cat(haar_split(e.reshape(1, 1, 2, 2)), 1).flatten() for e in torch.eye(4, dtype=F64)], dim=1)
    torch.testing.assert_close(matrix @ matrix.T, 0.25 * torch.eye(4, dtype=F64), rtol=0, atol=0)
    x = normal(2, 3, 6, 10)
    low, details = haar_split(x)
    assert low.shape == (2, 3, 3, 5) and details.shape == (2, 9, 3, 5)
    torch.testing.assert_close(haar_merge(low, details), x, rtol=0, atol=1e-15)
    # the horizontal detail of the second channel comes second
    torch.testing.assert_close(details[:, 1], haar_split(x[:, 1:2])[1][:, 0], rtol=0, atol=0)


def test_identities_in_all_bands_are_the_identity():
    """Six additions of numbers of order one at each of three levels."""
    low = Blind(torch.zeros_like, shape=(2, None, None), **LIMITS)
    band = Blind(lambda x, c: torch.zeros_like(x), shape=(6, None, None), **LIMITS)
    prior, x = MultiScale(low, [band] * 3), normal(2, 2, 16, 24)
    torch.testing.assert_close(prior(x, torch.tensor([1.0, 2.0], dtype=F64)), x, rtol=0, atol=1e-14)


class Conditional(Denoiser):
    """E[d | d + sigma n, low] for jointly Gaussian bands: low first, then d, with this mean and covariance."""

    def __init__(self, shape, mean, cov):
        super().__init__(shape, **LIMITS)
        k = len(mean) - math.prod(shape)
        self.low_mean, self.mean = mean[:k], mean[k:]
        self.gain = cov[k:, :k] @ torch.linalg.inv(cov[:k, :k])
        self.cov = cov[k:, k:] - self.gain @ cov[:k, k:]

    def denoise(self, d, low, sigma):
        """Of flat columns (n,), (k,)."""
        expected = self.mean + self.gain @ (low - self.low_mean)
        noise = sigma**2 * torch.eye(len(d), dtype=F64)
        return expected + self.cov @ torch.linalg.solve(self.cov + noise, d - expected)

    def forward(self, x, sigma, condition=None):
        items = zip(x.flatten(1), condition["concat"].flatten(1), sigma, strict=True)
        return torch.stack([self.denoise(*item) for item in items]).reshape(x.shape)


def wiener(mean, cov, noise, y):
    return mean + cov @ torch.linalg.solve(cov + torch.diag(noise), y - mean)


class Bands:
    """A Gaussian of 4 x 4 images; its bands, coarsest first, are `analysis` times the flat image."""

    def __init__(self, independent=False):
        self.analysis = torch.stack([self.split(e)[-1] for e in torch.eye(16, dtype=F64)], dim=1)
        a = normal(16, 16)
        cov = self.analysis @ (a @ a.T + 0.1 * torch.eye(16, dtype=F64)) @ self.analysis.T
        if independent:
            cov = cov * torch.block_diag(*(torch.ones(n, n, dtype=F64) for n in (1, 3, 12)))
        self.cov, self.mean = cov, normal(16, seed=1)
        self.synthesis = torch.linalg.inv(self.analysis)
        self.image = GaussianPrior(
            (self.synthesis @ self.mean).reshape(1, 4, 4), self.synthesis @ cov @ self.synthesis.T, **LIMITS
        )
        # (half-size image, details) from (low, coarse details, details)
        half = torch.eye(16, dtype=F64)
        half[:4, :4] = torch.stack([haar_merge(*self.unflatten(e)).flatten() for e in torch.eye(4, dtype=F64)], dim=1)
        self.low = GaussianPrior(self.mean[:1].reshape(1, 1, 1), cov[:1, :1], **LIMITS)
        self.coarse = Conditional((3, 1, 1), self.mean[:4], cov[:4, :4])
        self.fine = Conditional((3, 2, 2), half @ self.mean, half @ cov @ half.T)
        self.half = half

    @staticmethod
    def unflatten(bands):
        return bands[:1].reshape(1, 1, 1, 1), bands[1:4].reshape(1, 3, 1, 1)

    @staticmethod
    def split(image):
        half, fine = haar_split(image.reshape(1, 1, 4, 4))
        low, coarse = haar_split(half)
        return low, coarse, fine, torch.cat([low.flatten(), coarse.flatten(), fine.flatten()])


LEVELS = torch.tensor([1 / 4] * 4 + [1 / 2] * 12, dtype=F64)


@pytest.mark.parametrize("sigma", [0.05, 0.6, 3.0])
def test_the_composition_of_ideal_networks_is_what_the_equations_say(sigma):
    bands, x = Bands(), normal(2, 1, 4, 4, seed=2)
    prior = MultiScale(bands.low, [bands.fine, bands.coarse])
    got = prior(x, torch.full((2,), sigma, dtype=F64))
    for image, out in zip(x, got, strict=True):
        noisy = bands.analysis @ image.flatten()
        low = wiener(bands.mean[:1], bands.cov[:1, :1], (sigma * LEVELS[:1]) ** 2, noisy[:1])
        coarse = bands.coarse.denoise(noisy[1:4], low, sigma / 4)
        half = bands.half[:4, :4] @ torch.cat([low, coarse])
        fine = bands.fine.denoise(noisy[4:], half, sigma / 2)
        want = bands.synthesis @ torch.cat([low, coarse, fine])
        torch.testing.assert_close(out.flatten(), want, rtol=0, atol=1e-11)


def test_what_is_lost_is_what_details_say_about_the_low_band():
    """On the two coarsest bands alone: the posterior mean is the same network, given E[low | all bands]."""
    bands, sigma, noisy = Bands(), 3.0, normal(4, seed=3)
    joint = wiener(bands.mean[:4], bands.cov[:4, :4], (sigma * LEVELS[:4]) ** 2, noisy)
    torch.testing.assert_close(bands.coarse.denoise(noisy[1:], joint[:1], sigma / 4), joint[1:], rtol=0, atol=1e-12)
    alone = wiener(bands.mean[:1], bands.cov[:1, :1], (sigma * LEVELS[:1]) ** 2, noisy[:1])
    assert (bands.coarse.denoise(noisy[1:], alone, sigma / 4) - joint[1:]).abs().max() > 1e-2


@pytest.mark.parametrize("independent", [True, False])
def test_it_is_the_posterior_mean_if_the_bands_are_independent(independent):
    bands, x, sigma = Bands(independent), normal(2, 1, 4, 4, seed=2), torch.tensor([0.6, 3.0], dtype=F64)
    gap = (MultiScale(bands.low, [bands.fine, bands.coarse])(x, sigma) - bands.image(x, sigma)).abs().amax((1, 2, 3))
    assert (gap < 1e-11).all() if independent else (gap > 1e-2).all()


def test_limits_and_sizes_come_from_the_bands():
    def band(channels, low, high, sizes=(None, None), divisor=1):
        return Blind(torch.zeros_like, shape=(channels, *sizes), sigma_min=low, sigma_max=high, divisor=divisor)

    prior = MultiScale(band(1, 0.001, 1.0), [band(3, 0.01, 1.0), band(3, 0.004, 2.0, divisor=3)])
    assert (prior.sigma_min, prior.sigma_max) == (0.02, 2.0)
    assert prior.shape == (1, None, None)
    assert prior.divisor == 12
    with pytest.raises(ShapeError, match="multiples of 12, got \\(12, 8\\)"):
        prior(torch.zeros(1, 1, 12, 8), torch.ones(1))
    fixed = MultiScale(band(2, 0.01, 1.0, (4, 6)), [band(6, 0.01, 1.0, (8, 12)), band(6, 0.01, 1.0, (4, 6))])
    assert fixed.shape == (2, 16, 24)
    with pytest.raises(ShapeError, match=r"expected details \(3, None, None\) at 1/2 of the size, got \(1, None, None\)"):
        MultiScale(band(1, 0.01, 1.0), [band(1, 0.01, 1.0)])
    with pytest.raises(ConfigError, match=r"no noise level of the image in common: \[2, 4\], \[0.02, 1\]"):
        MultiScale(band(1, 0.01, 0.5), [band(3, 1.0, 2.0)])
    with pytest.raises(ConfigError, match="expected details"):
        MultiScale(band(1, 0.01, 0.5), [])
    with pytest.raises(CapabilityError, match="MultiScale: GaussianPrior is not conditional"):
        MultiScale(band(1, 0.01, 0.5, (4, 4)), [GaussianPrior(torch.zeros(3, 4, 4), torch.ones(3, 4, 4))])
