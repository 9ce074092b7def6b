"""Tiles against the denoiser of the whole image: exact where its reach ends in the margin, else closer with more overlap."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from invdiff.core import ConfigError, Denoiser, Streams
from invdiff.priors import GaussianPrior, StationaryGaussian
from invdiff.priors.adapter import quasirandom
from invdiff.priors.tiles import Tiles

F64 = torch.float64


def normal(*shape, seed=0):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=F64)


class Local(Denoiser):
    """A nonlinear denoiser that sees two pixels in every direction, zeros beyond the border, and its condition."""

    def __init__(self, dims=2, divisor=1):
        super().__init__((1, *[None] * dims))
        self.divisor, self.calls = divisor, []
        self.conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
        self.kernel = normal(1, 1, *[5] * dims, seed=1)

    def forward(self, x, sigma, condition=None):
        self.calls.append(len(x))
        shape = (-1, *[1] * (x.ndim - 1))
        out = x + sigma.reshape(shape) * torch.tanh(self.conv(x, self.kernel, padding=2))
        if condition is not None:
            out = out * condition["vector"].reshape(shape) + condition["concat"] ** 2 * condition["label"].reshape(shape)
        return out


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((40,), 16, 9), ((23, 37), 12, 6), ((12, 41), (12, 10), 5), ((9, 11, 14), 8, 4)]
)
@pytest.mark.parametrize("shift", [False, True])
def test_what_looks_no_further_than_the_margin_is_exact(size, tile, overlap, shift):
    whole = Local(len(size))
    x, sigma = normal(3, 1, *size), torch.tensor([0.3, 1.0, 7.0], dtype=F64)
    tiles = Tiles(whole, tile, overlap=overlap, margin=2, shift=shift, batch=7)
    torch.testing.assert_close(tiles(x, sigma), whole(x, sigma), rtol=0, atol=1e-13)
    bare = Tiles(whole, tile, overlap=overlap, shift=shift)
    assert float((bare(x, sigma) - whole(x, sigma)).abs().max()) > 1e-2


def test_every_tile_gets_its_part_of_the_condition():
    whole, x, sigma = Local(), normal(2, 1, 20, 31), torch.tensor([0.3, 1.0], dtype=F64)
    tiles = Tiles(whole, 12, overlap=6, margin=2, batch=7)
    for many in (1, 2):
        condition = {
            "concat": normal(many, 1, 20, 31, seed=2),
            "vector": normal(many, 1, seed=3),
            "label": torch.arange(1, many + 1),
        }
        torch.testing.assert_close(tiles(x, sigma, condition), whole(x, sigma, condition), rtol=0, atol=1e-13)


def test_the_weights_are_a_partition_of_unity():
    class Same(Denoiser):
        def forward(self, x, sigma):
            return x

    for size in [(1, 3), (7, 8), (8, 8), (9, 29), (40, 33)]:
        x, levels = normal(4, 2, *size), torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=F64)
        for overlap, margin, shift in [(0, 0, True), (3, 0, True), (3, 1, False), (4, 2, True), (7, 2, True), (7, 0, False)]:
            tiles = Tiles(Same((2, 8, 8)), overlap=overlap, margin=margin, shift=shift)
            torch.testing.assert_close(tiles(x, levels), x, rtol=1e-14, atol=1e-14)


def test_errors_fall_at_the_rate_of_the_filter():
    """A stationary process with covariance a^|lag|: its Wiener filter falls like r^|lag|, the smaller root of

    r + 1 / r = ((1 - a^2) / sigma^2 + 1 + a^2) / a.

    A boundary is felt like r^distance: so is the error with a margin; without one, Hann weights leave (1 / overlap)^2.
    """
    a, s, n, draws = 0.8, 0.5, 300, 32
    lag = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    cov = torch.tensor(a, dtype=F64) ** lag
    whole = GaussianPrior(torch.zeros(1, n, dtype=F64), cov)
    part = GaussianPrior(torch.zeros(1, 48, dtype=F64), cov[:48, :48])
    x, sigma = whole.sample(Streams(0, draws)) + s * normal(draws, 1, n, seed=1), torch.full((draws,), s, dtype=F64)
    exact = whole(x, sigma)
    middle = ((1 - a * a) / s**2 + 1 + a * a) / (2 * a)
    r = middle - (middle**2 - 1) ** 0.5

    def error(overlap, margin=0):
        return float((Tiles(part, overlap=overlap, margin=margin)(x, sigma) - exact).square().mean().sqrt())

    margins = [error(8 + 2 * m, m) for m in (2, 4, 6, 8)]
    for near, far in itertools.pairwise(margins):
        # the seams are a few more each time: 8 % measured
        assert 0.9 < far / near / r**2 < 1.2, (margins, r)
    hann = [error(overlap) for overlap in (0, 4, 8, 16)]
    assert hann[1] < 0.2 * hann[0] and 0.2 < hann[2] / hann[1] < 0.36 and 0.2 < hann[3] / hann[2] < 0.36, hann


def test_fields_on_tiles_come_near_the_whole_field():
    """A stationary field of correlation length 1 on a torus of 64 x 64 and on tiles of 24, away from the border, beyond which
    tiles do not see. The spectrum's edge at Nyquist gives the filter a tail of 1 / distance^2, hence the floor.
    """
    size, s = 64, 0.5
    sigma = torch.full((2,), s, dtype=F64)
    whole = StationaryGaussian((1, size, size), length=1.0)
    x = whole.sample(Streams(0, 2), F64) + s * normal(2, 1, size, size, seed=1)
    row = whole.covariance(torch.eye(1, size * size, dtype=F64).reshape(1, 1, size, size))[0, 0]
    lag = (torch.arange(24)[:, None] - torch.arange(24)).abs()
    cov = row[lag[:, None, :, None], lag[None, :, None, :]].reshape(24 * 24, 24 * 24)
    part = GaussianPrior(torch.zeros(1, 24, 24, dtype=F64), cov)
    inside = (..., slice(12, -12), slice(12, -12))
    exact = whole(x, sigma)[inside]
    errors = [Tiles(part, overlap=o)(x, sigma)[inside] - exact for o in (0, 2, 4, 8, 12)]
    relative = [float(e.square().mean().sqrt() / (exact - x[inside]).square().mean().sqrt()) for e in errors]
    assert relative == sorted(relative, reverse=True), relative
    assert relative[0] > 0.05 and relative[-1] < 0.006, relative


def test_items_do_not_couple_and_gradients_flow():
    tiles = Tiles(Local(), 12, overlap=6, batch=4)
    x, sigma = normal(3, 1, 25, 19).requires_grad_(), torch.tensor([0.3, 2.0, 0.3], dtype=F64)
    out = tiles(x, sigma)
    for k in range(3):
        torch.testing.assert_close(out[k : k + 1], tiles(x[k : k + 1], sigma[k : k + 1]), rtol=0, atol=1e-14)
    v, w, h = normal(3, 1, 25, 19, seed=4), normal(3, 1, 25, 19, seed=5), 1e-6
    (pulled,) = torch.autograd.grad(out, x, v)
    with torch.no_grad():
        pushed = (tiles(x + h * w, sigma) - tiles(x - h * w, sigma)) / (2 * h)
    # central differences of a function of order one: h^2 + eps / h
    torch.testing.assert_close((pulled * w).sum(), (v * pushed).sum(), rtol=1e-7, atol=1e-7)


def test_no_call_is_larger_than_the_batch():
    prior = Local()
    tiles = Tiles(prior, 12, overlap=6, batch=5)
    tiles(normal(3, 1, 30, 30), torch.full((3,), 0.5, dtype=F64))
    assert max(prior.calls) <= 5 and min(prior.calls) >= 1
    prior.calls.clear()
    tiles(normal(9, 1, 12, 12), torch.full((9,), 0.5, dtype=F64))
    assert prior.calls == [5, 4]


def test_seams_move_from_level_to_level():
    """Averaged over 200 levels, the worst pixel has 0.37 of the error (measured) that it has where seams stay in one place."""
    cut, x = Tiles(Local(), 12, overlap=0), normal(1, 1, 60, 12)
    still = Tiles(Local(), 12, overlap=0, shift=False)
    sigma = torch.logspace(-2, 2, 200, dtype=F64)

    def mean_error(prior):
        errors = [(prior(x, s[None]) - Local()(x, s[None])) / s for s in sigma]
        return float(torch.cat(errors).mean(0).abs().max())

    assert mean_error(cut) < 0.5 * mean_error(still)
    starts = torch.tensor([quasirandom(k, 2) for k in range(-400, 400)])
    assert float((starts.mean(0) - 0.5).abs().max()) < 0.01 and float(starts.min()) >= 0.0 and float(starts.max()) < 1.0


def test_small_images_are_reflected():
    """A tile of 5 over 3 pixels (a, b, c): b a b c b."""

    class Seen(Denoiser):
        def forward(self, x, sigma):
            self.x = x
            return x

    seen = Seen((1, 5, 5))
    x = torch.tensor([[1.0, 2.0, 3.0]]).reshape(1, 1, 1, 3)
    assert torch.equal(Tiles(seen, overlap=2)(x, torch.ones(1)), x)
    assert torch.equal(seen.x, torch.tensor([2.0, 1.0, 2.0, 3.0, 2.0]).expand(1, 1, 5, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 10, "overlap": 2}, "multiples of 4 where free, got 10"),
        ({"size": None, "overlap": 2}, "expected a size"),
        ({"size": (8, 8, 8), "overlap": 2}, "expected a size"),
        ({"size": 8, "overlap": 8}, "overlap < size"),
        ({"size": 8, "overlap": 3, "margin": 2}, "2 margin <= overlap"),
        ({"size": 8, "overlap": 3, "batch": 0}, "batch >= 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Tiles(Local(divisor=4), **options)


def test_tiles_need_no_divisor():
    assert Tiles(Local(divisor=4), 8, overlap=2).divisor == 1
    with pytest.raises(ConfigError, match="expected a size"):
        Tiles(StationaryGaussian((1, 16, 16)), 8, overlap=2)
