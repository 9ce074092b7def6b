"""Diagnostics of draws: each accepts exact ones and rejects a planted fault, and is blind to what its docstring says."""

import math

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams
from invdiff.metrics import c2st, distance_ranks, kernel_stein, rank_histogram, rank_p_value, sliced_wasserstein, wasserstein
from invdiff.priors import GaussianMixture

F64 = torch.float64


def normal(seed, *shape):
    return Streams(seed).normal(0, shape, "test", F64)[0]


def test_the_stein_kernel_is_that_of_its_definition():
    """s(x) s(y) k + s(x) d_y k + s(y) d_x k + tr d_x d_y k, by automatic differentiation of k."""
    points, scores, c, b = normal(0, 4, 3), normal(1, 4, 3), 0.7, -0.4

    def k(x, y):
        return (c**2 + (x - y).square().sum()) ** b

    total = 0.0
    for i in range(4):
        for j in range(4):
            if i == j:
                continue
            x, y = points[i], points[j]
            d_x, d_y = torch.func.grad(k, 0)(x, y), torch.func.grad(k, 1)(x, y)
            mixed = torch.func.jacrev(torch.func.grad(k, 0), 1)(x, y)
            total += scores[i] @ scores[j] * k(x, y) + scores[i] @ d_y + scores[j] @ d_x + mixed.trace()
    assert kernel_stein(points, scores, scale=c, power=b).ksd2 == pytest.approx(float(total) / 12.0, rel=1e-10)


def test_stein_accepts_exact_draws_and_rejects_a_wrong_variance():
    """p-values of 60 sets of exact draws are uniform: their mean has a standard deviation of 0.037."""
    null = [kernel_stein(x, -x, signs=99).p for x in (normal(k, 100, 4) for k in range(60))]
    assert abs(sum(null) / 60.0 - 0.5) < 4.0 / math.sqrt(12.0 * 60.0)
    assert sum(p <= 0.05 for p in null) <= 9
    x = normal(0, 400, 4)
    for wrong, score in ((1.4 * x, -1.4 * x), (0.7 * x, -0.7 * x), (x, 0.3 - x)):
        assert kernel_stein(wrong, score).p <= 0.005


def test_stein_is_blind_to_a_mode_that_is_missing_and_the_classifier_is_not():
    law = GaussianMixture(torch.ones(2, dtype=F64), torch.tensor([[-15.0] * 4, [15.0] * 4], dtype=F64), sigma_max=100.0)
    whole, half = law.sample(Streams(0, 200)), 15.0 + normal(1, 200, 4)
    score = (law(half, half.new_full((200,), 1e-3)) - half) / 1e-6
    assert kernel_stein(half, score).p > 0.05
    assert c2st(whole, half).z > 5.0 and c2st(whole, law.sample(Streams(5, 200))).z < 4.0


def test_the_classifier_accepts_one_law_and_rejects_two():
    null = [c2st(normal(2 * k, 200, 4), normal(2 * k + 1, 200, 4), iterations=60).z for k in range(6)]
    assert max(abs(z) for z in null) < 4.0 and abs(sum(null) / 6.0) < 4.0 / math.sqrt(6.0)
    a, b = normal(0, 400, 4), normal(1, 400, 4)
    correlated = b.clone()
    correlated[:, 1] = 0.8 * b[:, 0] + 0.6 * b[:, 1]
    for other in (b + 0.7, 0.5 * b, correlated):
        assert c2st(a, other, iterations=100).z > 5.0


def problems(spread, informed):
    """p-value of 400 problems y = x + n, x, n ~ N(0, I), with 19 draws of N(y / 2, spread^2 / 2); None draws the prior."""
    ranks, numbers = [], Streams(0, 400).normal(0, (23, 3), "problems", F64)
    for x, n, *z in numbers:
        z = torch.stack(z)
        y = x + n
        point = y + 0.3 * z[20] if informed else 2.0 * z[20]
        draws = z[:19] if spread is None else 0.5 * y + spread * 0.5**0.5 * z[:19]
        ranks.append(int(distance_ranks(draws, x, point)))
    return rank_p_value(rank_histogram(torch.tensor(ranks), 19, 10))


def test_distance_ranks_are_uniform_for_the_posterior_alone():
    assert problems(1.0, True) > 0.01 and problems(1.0, False) > 0.01
    assert problems(0.7, True) < 1e-4 and problems(1.4, True) < 1e-4
    # draws of the prior, which has the right law over all problems: only points that know the measurement see it
    assert problems(None, False) > 0.01 and problems(None, True) < 1e-4


@pytest.mark.parametrize("order", [1, 2])
def test_wasserstein_known_values(order):
    a = normal(0, 50, 3)
    shift = torch.tensor([0.3, -0.4, 1.2], dtype=F64)
    assert wasserstein(a, (a + shift).flip(0), order=order) == pytest.approx(1.3, rel=1e-9)
    # in one dimension the sliced distance is the distance
    x, y = normal(1, 40, 1), 2.0 * normal(2, 40, 1)
    assert wasserstein(x, y, order=order) == pytest.approx(sliced_wasserstein(x, y, order=order), rel=1e-9)


def test_what_is_wrong_is_named():
    x = normal(0, 5, 2)
    with pytest.raises(ShapeError, match="kernel_stein"):
        kernel_stein(x, x[:4])
    with pytest.raises(ConfigError, match="equal"):
        kernel_stein(torch.zeros(5, 2), x)
    with pytest.raises(ConfigError, match="power"):
        kernel_stein(x, x, power=0.5)
    with pytest.raises(ShapeError, match="c2st"):
        c2st(x, x[:4])
    with pytest.raises(ConfigError, match="folds"):
        c2st(x, x, folds=6)
    with pytest.raises(ShapeError, match="distance_ranks"):
        distance_ranks(x, x[0], x)
    with pytest.raises(ShapeError, match="wasserstein"):
        wasserstein(x, x[:3])
