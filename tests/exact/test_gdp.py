"""GDP beyond a known operator: fits of unknown degradations in closed form, patches, and a coarse image as guide."""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, Matrix, Operator, Problem, ShapeError, Streams
from invdiff.metrics import z_cov, z_mean
from invdiff.operators.restoration import Downsample, Identity, Mask
from invdiff.priors import GaussianPrior
from invdiff.priors.tiles import Tiles
from invdiff.samplers.gdp import GDP, hierarchical
from invdiff.samplers.gdp_blind import GainOffset, SmallKernel, variation_slope
from invdiff.samplers.guided import Level

F64 = torch.float64
EDM, IMAGE = Karras(0.02, 100.0), (2, 5, 6)


def randn(*shape, seed=0):
    return Streams(seed).normal(0, shape, "test", F64)[0]


def observed(degraded, sigma=0.1, shape=IMAGE):
    """The problem of an image that is measured pixel by pixel."""
    return Problem(Identity(shape), Gaussian(sigma), degraded)


def stepped(degradation, problem, c, times):
    phi = degradation.start(problem, len(c))
    for _ in range(times):
        phi = degradation.update(problem, phi, c)
    return phi


@pytest.mark.parametrize("per", ["all", "channel"])
@pytest.mark.parametrize("std", [None, 0.2])
def test_steps_of_the_gain_end_at_least_squares(per, std):
    c, y = randn(3, *IMAGE), randn(1, *IMAGE, seed=1)
    problem, rho = observed(y), 0.0 if std is None else (0.1 / std) ** 2
    axes = (1, 2, 3) if per == "all" else (2, 3)
    exact = ((c * y).sum(axes) + rho * 1.5) / (c.square().sum(axes) + rho)
    exact = exact.reshape(3, -1)
    torch.testing.assert_close(stepped(GainOffset(per, mean=1.5, std=std), problem, c, 1), exact, rtol=1e-12, atol=0)
    damped = GainOffset(per, 0.3, 1.5, std)
    for times in (1, 7):
        expected = exact + 0.7**times * (1.5 - exact)
        torch.testing.assert_close(stepped(damped, problem, c, times), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(damped.fit(problem, c, 200), exact, rtol=1e-10, atol=0)
    assert float((stepped(GainOffset(per, mean=1.5, std=0.05), problem, c, 1) - exact).abs().min()) > 1e-3


def test_a_step_is_the_papers_at_its_length():
    """f - l grad mean((f c - y)^2), by autograd, is the share 2 l ||c||^2 / m."""
    c, y, length = randn(1, *IMAGE), randn(1, *IMAGE, seed=1), 0.2
    f = torch.tensor(1.0, dtype=F64, requires_grad=True)
    slope = torch.autograd.grad((f * c - y).square().mean(), f)[0]
    share = float(2 * length * c.square().mean())
    found = stepped(GainOffset(step=share), observed(y), c, 1)
    torch.testing.assert_close(found, (f - length * slope).detach().reshape(1, 1), rtol=1e-12, atol=0)


def test_what_is_not_measured_is_not_fitted():
    mask = torch.arange(6) < 3
    c, y = randn(2, *IMAGE), randn(1, *IMAGE, seed=1) * mask
    problem = Problem(Mask(mask, IMAGE), Gaussian(0.1), y)
    for degradation in (GainOffset(), GainOffset(offset=True, tv=1e-9, smooth=1e-3), SmallKernel(1)):
        phi = stepped(degradation, problem, c * mask, 3)
        assert float(degradation.residual(problem, phi, randn(2, *IMAGE, seed=2))[..., 3:].abs().max()) == 0.0
    torch.testing.assert_close(
        stepped(GainOffset(), problem, c * mask, 1)[:, 0], (c * y).sum((1, 2, 3)) / (c * mask).square().sum((1, 2, 3))
    )


def test_an_offset_of_any_shape_explains_every_image():
    """Which is why it needs a weight on its variation; of a large one it is a constant, and the fit the line of regression."""
    c, y = randn(2, 1, 5, 6), randn(1, 1, 5, 6, seed=1)
    problem = observed(y, shape=(1, 5, 6))
    free = GainOffset(offset=True, tv=1e-9, smooth=1e-3)
    assert float(free.residual(problem, stepped(free, problem, c, 3), c).abs().max()) < 1e-8
    with pytest.raises(ConfigError, match="tv > 0 for an offset, got 0"):
        GainOffset(offset=True)
    stiff = GainOffset(offset=True, tv=100.0, smooth=10.0)
    phi = stepped(stiff, problem, c, 1000)
    for k in range(2):
        line = torch.stack((c[k].flatten(), torch.ones(30, dtype=F64)), 1)
        gain, level = torch.linalg.lstsq(line, y.flatten()[:, None]).solution.flatten().tolist()
        # the offset still bends, by 4 % of the spread of y, and moves f and the mean of M to second order in that
        assert float(phi[k, 0]) == pytest.approx(gain, abs=0.005)
        assert float(phi[k, 1:].mean()) == pytest.approx(level, abs=0.005)
        assert float(phi[k, 1:].std()) < 0.06


def test_the_variation_has_its_gradient_and_its_bound():
    for shape in ((2, 3, 5, 6), (2, 7), (1, 2, 9), (1, 1, 3, 4, 5)):
        image, delta = randn(*shape), 0.3
        leaf = image.clone().requires_grad_()
        first = min(2, image.ndim - 1)
        ahead = [torch.cat((leaf.diff(dim=d), torch.zeros_like(leaf.narrow(d, 0, 1))), d) for d in range(first, leaf.ndim)]
        total = torch.stack([a.square() for a in ahead]).sum(0).add(delta**2).sqrt().sum()
        torch.testing.assert_close(variation_slope(image, delta), torch.autograd.grad(total, leaf)[0], rtol=0, atol=1e-12)
    board = torch.tensor([(-1.0) ** (i + j) for i in range(8) for j in range(8)], dtype=F64).reshape(1, 1, 8, 8)
    steepest = float(variation_slope(1e-6 * board, 0.3).abs().max()) / 1e-6
    assert 0.9 * 4 * 2 / 0.3 < steepest <= 4 * 2 / 0.3


@pytest.mark.parametrize("std", [None, 0.3])
def test_steps_of_a_kernel_end_at_least_squares(std):
    c, y, size = randn(2, *IMAGE), randn(1, *IMAGE, seed=1), 3
    problem, rho = observed(y), 0.0 if std is None else (0.1 / std) ** 2
    delta = torch.zeros(9, dtype=F64)
    delta[4] = 1.0
    found = stepped(SmallKernel(size, std=std), problem, c, 1)
    for k in range(2):
        padded = torch.nn.functional.pad(c[k], (1, 1, 1, 1))
        moved = torch.stack([padded[:, i : i + 5, j : j + 6].flatten() for i in range(3) for j in range(3)], 1)
        exact = torch.linalg.solve(moved.T @ moved + rho * torch.eye(9, dtype=F64), moved.T @ y.flatten() + rho * delta)
        torch.testing.assert_close(found[k], exact, rtol=1e-9, atol=1e-12)
    damped = stepped(SmallKernel(size, 0.4, std), problem, c, 5)
    torch.testing.assert_close(damped, found + 0.6**5 * (delta - found), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("degradation", [GainOffset("channel", offset=True, tv=1.0), SmallKernel(3)])
def test_degradations_are_transposed(degradation):
    problem, c, r = observed(randn(1, *IMAGE)), randn(2, *IMAGE, seed=1), randn(2, *IMAGE, seed=2)
    phi = degradation.start(problem, 2)
    torch.testing.assert_close(degradation.apply(phi, c), c)
    phi = phi + randn(*phi.shape, seed=3)
    linear = degradation.apply(phi, c) - degradation.apply(phi, torch.zeros_like(c))
    left, right = (linear * r).sum((1, 2, 3)), (c * degradation.transposed(phi, r)).sum((1, 2, 3))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def small_prior(shape, mean=2.0, std=0.3):
    return GaussianPrior(mean + 0.5 * randn(*shape, seed=9), torch.full(shape, std**2, dtype=F64), sigma_max=1000.0)


@pytest.mark.parametrize("form", ["x0", "xt"])
def test_draws_find_the_gain_that_the_prior_identifies(form):
    """x ~ N(m, 0.3^2), y = 2.5 x + 0.05 n: what is known of f is the regression of y on m, to 2.5 * 0.3 / |m| = 0.09."""
    shape = (1, 4, 4)
    prior = small_prior(shape)
    x = prior.sample(Streams(5))
    problem = Problem.simulate(2.5 * Identity(shape), Gaussian(0.05), x, 3)
    unknown = Problem(Identity(shape), problem.noise, problem.y)
    zeta = {"x0": 0.03, "xt": 10.0}[form]
    found = {}
    for name, std in (("fitted", None), ("held", 1e-6)):
        blind = GainOffset(step=0.5, std=std)
        draws = GDP(zeta, form, blind, grid=EDM, steps=150)(unknown, prior, n=20, seed=0).x
        own = (draws * problem.y).sum((1, 2, 3)) / draws.square().sum((1, 2, 3))
        if name == "fitted":
            torch.testing.assert_close(blind.fit(unknown, draws)[:, 0], own, rtol=1e-9, atol=0)
        found[name] = float(own.mean())
    regressed = float((problem.y * prior.mean).sum() / prior.mean.square().sum())
    assert abs(found["fitted"] - regressed) < 0.05 and abs(found["fitted"] - 2.5) < 3 * 0.09
    # with f held at one, x follows y instead
    assert found["held"] < 2.0


def test_a_known_degradation_is_gdp_of_the_whole_operator():
    """A prior of no width on f = 1 and no offset: the steps are those of plain GDP."""
    prior = small_prior((1, 4, 4))
    problem = Problem.simulate(Identity((1, 4, 4)), Gaussian(0.1), prior.sample(Streams(5)), 3)
    plain, blind = (GDP(0.1, "x0", b, grid=EDM, steps=20) for b in (None, GainOffset(std=1e-12)))
    torch.testing.assert_close(blind(problem, prior, n=3, seed=0).x, plain(problem, prior, n=3, seed=0).x, rtol=1e-9, atol=1e-9)


def test_complex_measurements_have_real_gains_and_complex_offsets():
    c, y = torch.complex(randn(2, 4), randn(2, 4, seed=1)), torch.complex(randn(1, 4, seed=2), randn(1, 4, seed=3))
    problem = Problem(Matrix(torch.eye(4, dtype=torch.complex128)), Gaussian(0.1), y)
    gain = stepped(GainOffset(), problem, c, 1)[:, 0]
    torch.testing.assert_close(gain.real, (c.conj() * y).real.sum(1) / c.abs().square().sum(1))
    assert float(gain.imag.abs().max()) == 0.0
    free = GainOffset(offset=True, tv=1e-9, smooth=1e-3)
    assert float(free.residual(problem, stepped(free, problem, c, 3), c).abs().max()) < 1e-8


def test_guided_patches_are_gdp_on_tiles():
    """Two windows of eight of twelve pixels, each guided by its part of y and averaged by Hann weights, written out."""
    small = GaussianPrior(0.3 * randn(1, 8, seed=2), torch.diag(torch.linspace(0.1, 1.0, 8, dtype=F64)) + 0.05)
    whole, gain = Tiles(small, 8, overlap=4, shift=False), torch.linspace(0.5, 1.5, 12, dtype=F64)
    problem = Problem.simulate(Matrix(torch.diag(gain), (1, 12)), Gaussian(0.1), randn(1, 12, seed=1), 0)
    sampler, zeta = GDP(0.2, grid=EDM, steps=30), 0.2
    grid = EDM(30, 1e-3, 100.0).tolist()
    s, t = grid[10:12]
    x, rise = 2.0 * randn(2, 1, 12, seed=4), torch.sin(0.5 * math.pi * (torch.arange(4, dtype=F64) + 0.5) / 4).square()
    weights = [torch.cat((torch.ones(4, dtype=F64), 1 - rise)), torch.cat((rise, torch.ones(4, dtype=F64)))]
    mean = torch.zeros_like(x)
    for start, weight in zip((0, 4), weights, strict=True):
        part = slice(start, start + 8)
        denoised = small(x[..., part], torch.full((2,), s, dtype=F64))
        own = (t / s) ** 2 * x[..., part] + (1 - (t / s) ** 2) * denoised
        slope = 2 * gain[part] * (gain[part] * denoised - problem.y[:, None, part])
        mean[..., part] += weight * (own - zeta * math.sqrt(1 + t * t) * slope)
    z = Streams(7, 2).normal(11, (1, 12), dtype=F64)
    found = sampler.step(problem, whole, Level(10, x, s), Streams(7, 2)).x
    torch.testing.assert_close(found, mean + t * math.sqrt(1 - (t / s) ** 2) * z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_a_coarse_image_guides_by_its_weight(weight):
    """Half of the pixels are seen, and the means of four are known: of N(0, I), the law of GDP by each singular direction."""
    d = 16
    pool = torch.kron(torch.eye(4, dtype=F64), torch.full((1, 4), 0.25, dtype=F64))
    seen = torch.eye(d, dtype=F64)[::2]
    prior = GaussianPrior(torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64), sigma_max=1000.0)
    problem = Problem.simulate(Matrix(seen), Gaussian(0.1), randn(d, seed=3), 0)
    coarse, sampler = 3.0 + randn(4, seed=5), GDP(0.05, grid=EDM, steps=40)
    guided = hierarchical(problem, coarse, Matrix(pool), weight)
    draws = sampler(guided, prior, n=800, seed=1).x

    def law(weight):
        matrix = torch.cat((seen, math.sqrt(weight) * pool))
        power, v = torch.linalg.eigh(matrix.T @ matrix)
        data = torch.cat((problem.y[0], math.sqrt(weight) * coarse)) @ matrix @ v
        mean, variance = torch.zeros(d, dtype=F64), torch.full((d,), 1e4, dtype=F64)
        for s, t in pairwise(EDM(40, 1e-3, 1000.0).tolist()):
            keep, step = (t / s) ** 2, 2 * 0.05 * math.sqrt(1 + t * t)
            k = keep + (1 - keep - step * power) / (1 + s * s)
            mean, variance = k * mean + step * data, k * k * variance + t * t * (1 - keep)
        return GaussianPrior(v @ mean, (v * variance) @ v.T)

    assert z_mean(draws, law(weight)) < 5 and z_cov(draws, law(weight)) < 5
    assert z_mean(draws, law(2.0 * weight)) > 10
    # to a sampler that weighs by the noise, a mean of four is known to sigma / sqrt(w)
    exact, precision = prior.posterior(guided), torch.eye(d, dtype=F64) + (seen.T @ seen + weight * pool.T @ pool) / 0.01
    torch.testing.assert_close(exact.cov, torch.linalg.inv(precision), rtol=0, atol=1e-10)


def test_a_coarse_image_tells_patches_what_they_cannot_see():
    """A line of 24 with a correlation length of 16 and windows of 8, the first 8 pixels seen. The means of four of the draws
    follow a coarse result, here the exact one, to the end; without it they are those of windows that know their overlap."""
    line = torch.arange(24, dtype=F64)
    cov = torch.exp(-((line[:, None] - line).square()) / (2 * 16.0**2)) + 1e-2 * torch.eye(24, dtype=F64)
    whole = GaussianPrior(torch.zeros(1, 24, dtype=F64), cov, sigma_max=1000.0)
    windows = Tiles(GaussianPrior(torch.zeros(1, 8, dtype=F64), cov[:8, :8], sigma_max=1000.0), 8, overlap=2)
    mask = (line < 8)[None]
    problem = Problem(Mask(mask, (1, 24)), Gaussian(0.05), 2.0 * mask.double())
    pool = Matrix(torch.kron(torch.eye(6, dtype=F64), torch.full((1, 4), 0.25, dtype=F64)), (1, 24))
    coarse = pool(whole.posterior(problem).mean[None])[0]
    sampler = GDP(0.2, grid=EDM, steps=60)
    far, means = slice(4, 6), {}
    for name, given in (("alone", problem), ("guided", hierarchical(problem, coarse, pool, 8.0))):
        means[name] = pool(sampler(given, windows, n=60, seed=0).x).mean(0)
    assert float(coarse[far].min()) > 0.9
    assert float((means["guided"] - coarse).abs().max()) < 0.1
    assert float((means["alone"] - coarse)[far].abs().min()) > 0.5


def test_a_coarse_image_joins_images_as_vectors_and_any_noise():
    shape, down = (1, 4, 4), Downsample((1, 4, 4), 2)
    sigma = torch.full((4, 4), 0.1, dtype=F64)
    sigma[0] = 0.3
    problem = Problem(Identity(shape), Gaussian(sigma), randn(*shape))
    coarse = randn(1, 2, 2, seed=1)
    joined = hierarchical(problem, coarse, down, 9.0)
    x = randn(1, *shape, seed=2)
    torch.testing.assert_close(joined.operator(x)[0, :16], x.flatten(), rtol=0, atol=0)
    torch.testing.assert_close(joined.operator(x)[0, 16:], 3.0 * down(x).flatten(), rtol=1e-14, atol=0)
    torch.testing.assert_close(joined.y[0, 16:], 3.0 * coarse.flatten(), rtol=0, atol=0)
    torch.testing.assert_close(joined.noise.sigma[16:], torch.full((4,), (0.75 * 0.01 + 0.25 * 0.09) ** 0.5, dtype=F64))

    class Squared(Operator):
        def forward(self, x):
            return x * x

    squared = Problem(Squared(shape, shape), problem.noise, problem.y)
    for arguments, error, words in (
        ((problem, coarse, down, 0.0), ConfigError, "weight > 0, got 0.0"),
        ((problem, randn(1, 3, 3), down, 1.0), ShapeError, "one coarse image"),
        ((squared, coarse, down, 1.0), CapabilityError, "Squared is none"),
    ):
        with pytest.raises(error, match=words):
            hierarchical(*arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GainOffset("pixel"), 'per to be "all" or "channel"'),
        (lambda: GainOffset(step=1.5), r"a step in \(0, 1\]"),
        (lambda: GainOffset(std=0.0), "std > 0"),
        (lambda: GainOffset(smooth=0.0), "smooth > 0"),
        (lambda: SmallKernel(4), "an odd size, got 4"),
    ],
)
def test_options_out_of_range_are_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_measurements_without_channels_are_named():
    flat = Problem(Matrix(torch.eye(4, dtype=F64)), Gaussian(0.1), randn(4))
    for degradation, words in ((GainOffset("channel"), "needs channels and axes"), (SmallKernel(3), r"got \(4,\) float64")):
        with pytest.raises(ShapeError, match=words):
            degradation.start(flat, 1)
