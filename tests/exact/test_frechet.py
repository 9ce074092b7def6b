"""The Frechet distance: Gaussians in closed form, invariances, and the bias of few items."""

import math

import pytest
import torch

from invdiff.core import ConfigError, DataError, ShapeError, Streams
from invdiff.metrics.frechet import RandomFeatures, fid, frechet_distance

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=dtype)


def with_moments(mean, cov, n, seed=0):
    """n items whose sample moments are these to rounding."""
    white = normal(n, len(mean), seed=seed)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).mT
    return mean + white @ torch.linalg.cholesky(cov).mT


def covariance(seed, size=5):
    factor = normal(size, size, seed=seed)
    return factor @ factor.mT + 0.1 * torch.eye(size, dtype=F64)


def test_commuting_gaussians():
    """Diagonal covariances: |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    (m_a, m_b), (s_a, s_b) = normal(2, 5), normal(2, 5, seed=1).abs() + 0.2
    found = frechet_distance(with_moments(m_a, s_a.square().diag(), 40), with_moments(m_b, s_b.square().diag(), 30, seed=3))
    assert found == pytest.approx(float((m_a - m_b).square().sum() + (s_a - s_b).square().sum()), rel=1e-10)


def test_gaussians_against_the_square_root_of_a_product():
    """tr (C_a C_b)^{1/2} is the sum of the square roots of the eigenvalues of C_a C_b, which is not symmetric."""
    (m_a, m_b), a, b = normal(2, 5), covariance(1), covariance(2)
    root = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    exact = float((m_a - m_b).square().sum() + a.trace() + b.trace() - 2.0 * root)
    x, y = with_moments(m_a, a, 50), with_moments(m_b, b, 60, seed=5)
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(exact, rel=1e-10)
    assert frechet_distance(x.float(), y.float()) == pytest.approx(exact, rel=1e-5)


def test_invariance_and_scale():
    x, y = with_moments(normal(1, 5)[0], covariance(1), 50), with_moments(normal(2, 5)[1], covariance(2), 50, seed=6)
    rotation, _ = torch.linalg.qr(normal(5, 5, seed=8))
    base = frechet_distance(x, y)
    assert frechet_distance(x @ rotation + 7.0, y @ rotation + 7.0) == pytest.approx(base, rel=1e-9)
    assert frechet_distance(3.0 * x, 3.0 * y) == pytest.approx(9.0 * base, rel=1e-10)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0.0, abs=1e-10)


def test_features_that_do_not_vary():
    """A singular covariance: eigenvalues that rounding makes negative count as zero."""
    x = normal(40, 3)
    flat = torch.cat([x, x, torch.zeros(40, 1, dtype=F64)], 1)
    assert frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-7)
    assert frechet_distance(flat, 2.0 * flat) == pytest.approx(
        float(2.0 * x.mean(0).square().sum() + 2.0 * torch.cov(x.T).trace()), rel=1e-6
    )


def test_the_bias_of_few_items_is_known_and_reported():
    """Of white features D (D + 5) / (2 n), to O(D / n) relative; the estimate from halves, to the noise of 20 runs."""
    d, n, runs = 8, 400, 20
    found = [
        fid(x[:, :, None, None], y[:, :, None, None], lambda u: u.flatten(1))
        for x, y in ((normal(n, d, seed=2 * k), normal(n, d, seed=2 * k + 1)) for k in range(runs))
    ]
    exact = d * (d + 5) / (2 * n)
    distance, bias = (torch.tensor(values) for values in zip(*found, strict=True))
    error = float(distance.std()) / math.sqrt(runs)
    assert float(distance.mean()) == pytest.approx(exact, abs=5 * error + 0.05 * exact)
    assert float(bias.mean()) == pytest.approx(exact, abs=5 * float(bias.std()) / math.sqrt(runs) + 0.05 * exact)
    assert error < 0.05 * exact


def test_too_few_items_are_refused_and_the_bias_is_left_open():
    with pytest.raises(ShapeError, match="N, M > D"):
        frechet_distance(normal(5, 5), normal(9, 5))
    with pytest.raises(DataError, match="2 of the 70 features are not finite"):
        frechet_distance(normal(7, 5), torch.cat([normal(6, 5), torch.tensor([[0.0, math.nan, 1.0, math.inf, 0.0]])]))
    images = normal(7, 5, 1, 1)
    assert math.isnan(fid(images, images + 1.0, lambda u: u.flatten(1)).bias)
    with pytest.raises(ShapeError, match="expected images"):
        fid(images, images[:, :3])
    with pytest.raises(ConfigError, match="batch >= 1"):
        fid(images, images, batch=0)


def test_the_extractor_sees_batches_and_any_will_do():
    sizes = []

    def extract(x):
        sizes.append(len(x))
        return x.mean((2, 3))

    a, b = normal(50, 3, 8, 8), 1.0 + normal(40, 3, 8, 8, seed=1)
    found = fid(a, b, extract, batch=16)
    assert sizes == [16, 16, 16, 2, 16, 16, 8]
    assert found.distance == pytest.approx(frechet_distance(a.mean((2, 3)), b.mean((2, 3))), rel=1e-12)
    assert found.distance == pytest.approx(3.0, abs=0.4)


def test_random_features_are_fixed_homogeneous_and_of_one_image_each():
    x, net = normal(6, 3, 16, 24, dtype=torch.float32), RandomFeatures(3)
    features = net(x)
    assert features.shape == (6, 96)
    assert torch.equal(features, RandomFeatures(3)(x))
    assert not torch.equal(features, RandomFeatures(3, seed=1)(x))
    torch.testing.assert_close(net(x[2:3]), features[2:3])
    torch.testing.assert_close(net(5.0 * x), 5.0 * features, rtol=1e-4, atol=1e-5)
    with pytest.raises(ShapeError, match="8 or more"):
        net(x[..., :4])


def test_the_default_orders_images_by_how_far_they_are():
    """White images against others, no further than twice the bias, and against smoother ones, the further the smoother."""

    def smooth(x, weight):
        return ((1 - weight) * x + weight * x.roll(1, -1)) / math.sqrt((1 - weight) ** 2 + weight**2)

    a, b = (normal(400, 1, 16, 16, seed=k, dtype=torch.float32) for k in (0, 1))
    same, near, far = fid(a, b), fid(a, smooth(b, 0.25)), fid(a, smooth(b, 0.5))
    assert same.distance < 2.0 * same.bias
    assert near.distance > 3.0 * same.distance
    assert far.distance > 1.5 * near.distance
