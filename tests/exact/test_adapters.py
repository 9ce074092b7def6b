"""Adapters against the Gaussian that they should be: units, channels, slices, subspaces, ensembles, latents."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Denoiser, Matrix, ShapeError, Streams
from invdiff.priors import GaussianMixture, GaussianPrior, StationaryGaussian
from invdiff.priors.affine import Affine
from invdiff.priors.conditional import Given
from invdiff.priors.ensemble import Alternating, Average, Experts, Mixture
from invdiff.priors.subspace import Subspace, fit_subspace
from invdiff.priors.tiles import Tiles
from invdiff.priors.volumes import ChannelWise, Slices

F64 = torch.float64


def normal(*shape, seed=0):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=F64)


def gaussian(*shape, seed=0):
    a = normal(math.prod(shape), math.prod(shape), seed=seed)
    return GaussianPrior(normal(*shape, seed=seed + 1), a @ a.T / len(a) + 0.1 * torch.eye(len(a), dtype=F64))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


LEVELS = torch.tensor([0.05, 0.5, 3.0, 40.0], dtype=F64)


class Told(Denoiser):
    """A denoiser of one condition: D = x + concat + vector, to see who is told what."""

    def __init__(self, shape=(1, None, None)):
        super().__init__(shape)
        self.divisor, self.calls = 4, []

    def forward(self, x, sigma, condition=None):
        self.calls.append(len(x))
        if condition is None:
            return x
        return x + condition.get("concat", 0.0) + condition["vector"].reshape(-1, *[1] * (x.ndim - 1)) + 0.0 * sigma.sum()


class Isotropic(Denoiser):
    """N(mean, s^2 I) with the density of its noisy unknowns."""

    def __init__(self, mean, s):
        super().__init__(tuple(mean.shape), 1e-3, 1000.0)
        self.mean, self.s = mean, s

    def forward(self, x, sigma):
        return self.mean + self.s**2 / (self.s**2 + sigma[:, None] ** 2) * (x - self.mean)

    def log_prob(self, x, sigma):
        variance = self.s**2 + sigma**2
        return -0.5 * ((x - self.mean).square().sum(1) / variance + x.shape[1] * (2 * math.pi * variance).log())


class Latent(Denoiser):
    """A latent prior: images are twice as large."""

    def __init__(self):
        super().__init__((1, None, None))

    @property
    def image_divisor(self):
        return 2

    def synthesis(self, shape):
        return Matrix(torch.eye(2))

    def forward(self, x, sigma, condition=None):
        return x


class SameSize(Latent):
    """An image prior whose shape and divisor are those of the latent one."""

    def synthesis(self, shape):
        return None


@pytest.mark.parametrize("scale", [2.5, -0.3])
@pytest.mark.parametrize("shift", ["number", "channels", "image"])
def test_affine_is_the_gaussian_in_other_units(scale, shift):
    u, x = gaussian(2, 3, 2), normal(4, 2, 3, 2, seed=5)
    b = {"number": 0.7, "channels": [0.5, -2.0], "image": normal(2, 3, 2, seed=6)}[shift]
    full = torch.tensor(b, dtype=F64).reshape(2, 1, 1) if shift == "channels" else b
    prior = Affine(u, scale, b)
    close(prior(x, LEVELS), GaussianPrior(scale * u.mean + full, scale**2 * u.cov)(x, LEVELS))
    assert (prior.sigma_min, prior.sigma_max) == (u.sigma_min * abs(scale), u.sigma_max * abs(scale))
    assert Affine(Told()).divisor == 4 and Affine(Told()).shape == (1, None, None)


def test_a_negative_scale_leaves_levels_positive():
    """D_u = u + sigma_u becomes D = a (x / a + sigma / |a|) = x - sigma."""

    class Level(Denoiser):
        def forward(self, x, sigma):
            return x + sigma[:, None]

    x = normal(4, 3)
    close(Affine(Level((3,)), -0.5)(x, LEVELS), x - LEVELS[:, None])


def test_what_a_prior_says_of_itself_is_passed_on():
    prior = Told()
    prior.value_range, prior.known = (-1.0, 1.0), torch.tensor([0.1, 0.2])
    for same in (
        Slices(prior),
        ChannelWise(prior),
        Tiles(prior, 8, overlap=2),
        Given(prior, {"label": [0]}),
        Average([prior] * 2),
    ):
        assert same.value_range == (-1.0, 1.0) and torch.equal(same.known, prior.known)
    other = Affine(prior, -2.0, [3.0])
    assert other.value_range == (1.0, 5.0) and torch.equal(other.known, 2 * prior.known)
    assert Affine(gaussian(2, 3), 2.0).value_range is None
    wide = constant(0.0, shape=(2, 3))
    wide.value_range = (-1.0, 1.0)
    assert Affine(wide, 1.0, [0.0, 10.0]).value_range == (-1.0, 11.0)
    mixed = Average([prior, other])
    assert mixed.value_range is None and mixed.known is None
    assert Subspace(prior, torch.ones(1, 1)).value_range is None


def test_affine_refuses_what_would_colour_the_noise():
    with pytest.raises(ConfigError, match="one scale for all channels"):
        Affine(Told(), [1.0, 2.0])
    for scale in (0.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="finite scale that is not zero"):
            Affine(Told(), scale)
    for shift in ([1.0, 2.0], torch.zeros(2, 3), [math.nan]):
        with pytest.raises(ShapeError, match="expected a finite shift"):
            Affine(Told(), 1.0, shift)


@pytest.mark.parametrize("batch", [None, 1, 5])
def test_channels_are_independent(batch):
    pair, x = gaussian(2, 3), normal(4, 6, 3, seed=5)
    exact = GaussianPrior(pair.mean.repeat(3, 1), torch.block_diag(pair.cov, pair.cov, pair.cov))
    close(ChannelWise(pair, 6, batch=batch)(x, LEVELS), exact(x, LEVELS))
    close(ChannelWise(pair, batch=batch)(x, LEVELS), exact(x, LEVELS))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch", [None, 7])
def test_slices_are_independent(axis, batch):
    plane, n = gaussian(2, 2, 3), 4
    cov = torch.zeros(n, 12, n, 12, dtype=F64)
    cov[range(n), :, range(n), :] = plane.cov

    def volume(t):
        """(..., slice, flattened plane) with the slices put to their axis."""
        return t.reshape(*t.shape[:-2], n, 2, 2, 3).movedim(-4, t.ndim - 2 + axis + 1)

    mean = volume(plane.mean.flatten().expand(n, 12))
    columns = volume(cov.reshape(n * 12, n, 12)).flatten(1)
    rows = volume(columns.T.reshape(n * 12, n, 12)).flatten(1)
    x = normal(4, *mean.shape, seed=5)
    close(Slices(plane, axis, batch=batch)(x, LEVELS), GaussianPrior(mean, rows)(x, LEVELS))


def test_slices_are_those_of_indexing():
    prior = Slices(StationaryGaussian((1, 4, 6)), 1, count=5)
    assert prior.shape == (1, 4, 5, 6) and Slices(Told(), 0).divisor == 4
    x = normal(4, 1, 4, 5, 6)
    for k in range(5):
        close(prior(x, LEVELS)[:, :, :, k], prior.prior(x[:, :, :, k], LEVELS))
    with pytest.raises(ConfigError, match=r"axis in 0 \.\.\. 2"):
        Slices(StationaryGaussian((1, 4, 6)), 3)
    with pytest.raises(ConfigError, match="batch >= 1"):
        Slices(Told(), 0, batch=0)


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("batch", [None, 4])
def test_parts_are_told_the_condition_of_their_item(many, batch):
    x, sigma = normal(3, 1, 4, 4, 4), LEVELS[:3]
    vector = normal(many, 1, seed=1)
    concat = normal(many, 1, 4, 4, 4, seed=2)
    seen = Slices(Told(), 1, batch=batch)(x, sigma, {"concat": concat, "vector": vector})
    close(seen, x + concat + vector.reshape(-1, 1, 1, 1, 1))
    x = normal(3, 5, 4, 4)
    seen = ChannelWise(Told(), batch=batch)(x, sigma, {"concat": concat[:, :, 0], "vector": vector})
    close(seen, x + concat[:, :, 0] + vector.reshape(-1, 1, 1, 1))
    with pytest.raises(ShapeError, match="each of 3 items, or one for all"):
        ChannelWise(Told())(x, sigma, {"vector": normal(2, 1)})


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"multiple of the prior's \(2\)"):
        ChannelWise(gaussian(2, 3), 5)
    with pytest.raises(ShapeError, match="multiple of 2 channels"):
        ChannelWise(gaussian(2, 3))(normal(1, 5, 3), LEVELS[:1])


def test_a_subspace_is_the_gaussian_of_rank_r():
    """The covariance E C E^T is singular: what is outside of the subspace shrinks to the mean."""
    abundances = gaussian(2, 3)
    basis, mean = torch.linalg.qr(normal(5, 2, seed=3)).Q, normal(5, 1, seed=4)[:, 0]
    lift = torch.kron(basis.contiguous(), torch.eye(3, dtype=F64))
    exact = GaussianPrior(mean[:, None] + basis @ abundances.mean, lift @ abundances.cov @ lift.T)
    x = normal(4, 5, 3, seed=5)
    close(Subspace(abundances, basis, mean)(x, LEVELS), exact(x, LEVELS))
    assert Subspace(Told((2, None)), basis).divisor == 4
    with pytest.raises(ConfigError, match=r"E\^T E differs from the identity by 3"):
        Subspace(abundances, 2 * basis)
    with pytest.raises(ShapeError, match=r"expected a basis \(C, 2\)"):
        Subspace(abundances, torch.eye(5, dtype=F64))


def test_fit_subspace_finds_the_spectra():
    """Spectra of rank two about a mean; of white noise of standard deviation e three of five dimensions are missed, e^2 3/5."""
    truth = torch.linalg.qr(normal(5, 2, seed=3)).Q
    scales = torch.tensor([3.0, 1.0], dtype=F64)
    images = torch.einsum("cr,nrhw->nchw", truth * scales, normal(4, 2, 30, 40)) + normal(5, 1, 1, seed=4)
    basis, mean, residual = fit_subspace(images, 2)
    close(basis.T @ basis, torch.eye(2, dtype=F64))
    # the sample covariance of the two abundances rotates them within the plane, not the plane
    close(basis @ basis.T, truth @ truth.T)
    close(mean, images.mean((0, 2, 3)))
    assert residual < 1e-7
    assert bool((basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all())
    close(Subspace(Told((2, None, None)), basis, mean)(images, LEVELS), images)
    noisy = fit_subspace(images + 0.1 * normal(4, 5, 30, 40, seed=7), 2)
    # the sum of 4800 x 3 squares: relative error sqrt(2 / 14400) of the square, five times half of that
    assert noisy.residual == pytest.approx(0.1 * 0.6**0.5, rel=0.03)
    with pytest.raises(ConfigError, match=r"rank in 1 \.\.\. 5"):
        fit_subspace(images, 6)


def test_an_average_of_gaussians_with_one_covariance_is_the_gaussian_between():
    a, b = gaussian(6), gaussian(6)
    b.mean.add_(1.0)
    between = GaussianPrior(0.25 * a.mean + 0.75 * b.mean, a.cov)
    x = normal(4, 6, seed=5)
    close(Average([a, b], [1.0, 3.0])(x, LEVELS), between(x, LEVELS))


def test_a_mixture_of_priors_is_the_mixture():
    means, stds, weights = normal(3, 4, seed=1), [0.5, 1.0, 2.0], [1.0, 2.0, 5.0]
    covs = torch.stack([s**2 * torch.eye(4, dtype=F64) for s in stds])
    exact = GaussianMixture(torch.tensor(weights, dtype=F64), means, covs)
    prior = Mixture([Isotropic(m, s) for m, s in zip(means, stds, strict=True)], weights)
    x = 2.0 * normal(4, 4, seed=5)
    close(prior(x, LEVELS), exact(x, LEVELS))
    smoothed = GaussianMixture(exact.weights, means, covs + 0.25 * torch.eye(4, dtype=F64))
    close(prior.log_prob(x, torch.full((4,), 0.5, dtype=F64)), smoothed.log_prob(x))
    nested = Mixture([Mixture([prior.priors[0], prior.priors[1]], weights[:2]), prior.priors[2]], [3.0, 5.0])
    close(nested(x, LEVELS), exact(x, LEVELS))
    assert float((Average(list(prior.priors), weights)(x, LEVELS) - exact(x, LEVELS)).abs().max()) > 0.1
    with pytest.raises(CapabilityError, match="Told has no log_prob"):
        Mixture([Told()])


def constant(value, low=2e-3, high=80.0, shape=(3,)):
    class Constant(Denoiser):
        def forward(self, x, sigma, condition=None):
            return torch.full_like(x, value)

    return Constant(shape, low, high)


def test_alternating_gives_each_its_share_of_the_levels():
    """300 levels, shares 1 : 3; a low-discrepancy sequence is off by less than 3 standard deviations of independent draws."""
    prior = Alternating([constant(0.0), constant(1.0)], [1.0, 3.0])
    sigma = torch.logspace(-2.6, 1.9, 300, dtype=F64)
    chosen = prior(normal(300, 3), sigma)[:, 0]
    assert abs(float(chosen.mean()) - 0.75) < 3 * (0.25 * 0.75 / 300) ** 0.5
    assert int((chosen.diff() == 0).sum()) < 220  # of 299 neighbours independent draws would repeat 187
    single = torch.cat([prior(normal(1, 3), s[None])[:, 0] for s in sigma])
    assert torch.equal(single, chosen)


def test_experts_take_their_levels():
    prior = Experts([constant(0.0, 0.01, 0.3), constant(1.0, 0.2, 5.0), constant(2.0, 4.0, 90.0)], [0.25, 5.0])
    assert (prior.sigma_min, prior.sigma_max) == (0.01, 90.0)
    sigma = torch.tensor([60.0, 0.01, 5.0, 0.25, 0.26, 5.1, 90.0], dtype=F64)
    assert prior(normal(7, 3), sigma)[:, 0].tolist() == [2, 0, 1, 0, 1, 2, 2]
    with pytest.raises(ConfigError, match=r"levels in \[0.01, 0.3\] and would be used in \[0.01, 0.4\]"):
        Experts([constant(0.0, 0.01, 0.3), constant(1.0, 0.2, 5.0)], [0.4])
    with pytest.raises(ConfigError, match="move the edges"):
        Experts([constant(0.0, 0.01, 0.1), constant(1.0, 0.2, 5.0)], [0.15])
    with pytest.raises(ConfigError, match="one edge between each two priors"):
        Experts([constant(0.0), constant(1.0)], [])


def test_ensembles_of_priors_that_do_not_fit_are_refused():
    merged = Average([constant(0.0, shape=(1, None, 8)), constant(1.0, 0.1, 200.0, shape=(None, None, 8))])
    assert merged.shape == (1, None, 8) and (merged.sigma_min, merged.sigma_max) == (0.1, 80.0)
    assert Average([Told(), Affine(Told())]).divisor == 4
    with pytest.raises(ShapeError, match="same unknown"):
        Average([constant(0.0), constant(0.0, shape=(4,))])
    with pytest.raises(ShapeError, match="same unknown"):
        Average([constant(0.0), constant(0.0, shape=(3, 1))])
    with pytest.raises(ConfigError, match="no noise level in common"):
        Average([constant(0.0, 0.1, 1.0), constant(0.0, 2.0, 3.0)])
    with pytest.raises(ConfigError, match="2 positive weights"):
        Alternating([constant(0.0), constant(0.0)], [1.0, -1.0])
    with pytest.raises(ConfigError, match="at least one prior"):
        Average([])


def test_slices_along_two_axes_join():
    """The mean over the axes of a field that is white: each axis is right, and so is their mean."""
    white = StationaryGaussian((1, 4, 4), length=1e-3, std=2.0)
    cube = StationaryGaussian((1, 4, 4, 4), length=1e-3, std=2.0)
    x = normal(4, 1, 4, 4, 4)
    for join in (Average, Alternating):
        torch.testing.assert_close(join([Slices(white, a) for a in range(3)])(x, LEVELS), cube(x, LEVELS), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [Affine, ChannelWise, Slices, lambda p: Tiles(p, 8, overlap=2), lambda p: Subspace(p, torch.eye(1))],
)
def test_adapters_of_the_unknown_go_inside_of_a_latent_prior(wrap):
    with pytest.raises(ConfigError, match="the unknown of Latent is not the image"):
        wrap(Latent())
    with pytest.raises(ConfigError, match="the unknown of Given is not the image"):
        wrap(Given(Latent(), {"label": [0]}))
    assert Average([Latent(), Latent()]).image_divisor == 2
    with pytest.raises(ShapeError, match="got images and what they are decoded from"):
        Average([Given(Latent(), {"label": [0]}), SameSize()])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: Affine(p, 0.5, 0.5),
        ChannelWise,
        lambda p: Slices(p, 0, batch=3),
        lambda p: Subspace(p, torch.ones(1, 1)),
        lambda p: Tiles(p, 4, overlap=2),
        lambda p: Average([p, p]),
        lambda p: Alternating([p, p]),
    ],
)
def test_adapters_keep_dtype_items_and_gradients(wrap):
    prior = wrap(StationaryGaussian((1, 4, 4)))
    x = normal(3, *[4 if n is None else n for n in prior.shape]) if prior.shape[0] else normal(3, 2, 4, 4)
    sigma = torch.tensor([0.1, 3.0, 0.1])
    out = prior(x.float().requires_grad_(), sigma)
    assert out.dtype == torch.float32 and out.requires_grad
    for k in range(3):
        torch.testing.assert_close(out[k : k + 1], prior(x[k : k + 1].float(), sigma[k : k + 1]), rtol=1e-5, atol=1e-6)
    # D - x = -sigma^2 / (p + sigma^2) x with power p >= 1e-4: 1e-8 of x
    torch.testing.assert_close(prior(x, torch.full((3,), 1e-6, dtype=F64)), x, rtol=0, atol=1e-7)
