"""Problems of the literature and small images, whose posterior is known in closed form.

    toy             x in R^16, (x_1, x_2) ~ 0.8 N(0, I) + 0.2 N((3, 3), 2 I), the others N(0, 1); y = A x + n
                    weak: y_i = s_i x_{i + 2}, s = 0.1, 0.15 ... 0.75      strong: y_i = 3 x_i, i = 1 ... 4
    random field    P(k) ~ max(k, 1)^(n_s - 4) exp(-(k / k_c)^2), n_s = 0.965, behind a Gaussian blur: Wiener's posterior
    deconvolution   an image that is one of five shapes plus a smooth field, behind a Gaussian blur
    tomography      the same behind a few parallel beams

`weak` says nothing of the two coordinates that have two modes: what a sampler finds there are the weights of the prior. The
truth of the random field is C^(1/2) e times `shift`, e of random signs: as far from the prior's mean, in every direction at
once, as so many standard deviations. An exact posterior has the same covariance for every shift; what depends on it is bias.

References: the toy: 2026, arXiv:2602.04189, appendix B. The five problems of Gaussian mixtures for inpainting, tomography and
phase retrieval: 2025, arXiv:2503.03007.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..core import Gaussian, LinearOperator, Matrix, Problem, Streams
from ..operators.ct import ParallelBeamCT
from ..operators.restoration import Blur, gaussian_blur
from ..priors import GaussianField, GaussianMixture, GaussianPrior, Matern
from .case import F64, Case, normal

__all__ = ["FIELDS", "IMAGES", "MAKERS", "SHIFTS", "TOYS", "deconvolution", "random_field", "tomography", "toy"]

SHIFTS = (0.5, 1.0, 2.0, 4.0)
TRUTH = (3.0, 2.0, 0.5, -0.5, 1.0, 0.8, -0.6, 1.1, -0.9, 0.4, 0.0, -1.2, 0.7, -0.3, 0.5, -0.8)


def toy(seed: int = 0, strong: bool = False, sigma: float | None = None) -> Case:
    """The toy problem; noise of 0.2 or 0.5 by the seed, or given."""
    sigma = (0.2, 0.5)[seed % 2] if sigma is None else sigma
    means, covs = torch.zeros(2, 16, dtype=F64), torch.eye(16, dtype=F64).repeat(2, 1, 1)
    means[1, :2], covs[1, :2, :2] = 3.0, 2.0 * torch.eye(2, dtype=F64)
    prior = GaussianMixture(torch.tensor([0.8, 0.2], dtype=F64), means, covs, sigma_max=1000.0)
    matrix = 3.0 * torch.eye(16, dtype=F64)[:4]
    if not strong:
        matrix = torch.cat((torch.zeros(14, 2, dtype=F64), (0.1 + 0.05 * torch.arange(14, dtype=F64)).diag()), 1)
    problem = Problem.simulate(Matrix(matrix), Gaussian(sigma), torch.tensor(TRUTH, dtype=F64), seed)
    return Case.of(f"toy, {'strong' if strong else 'weak'}", problem, prior)


def _primordial(q: Tensor) -> Tensor:
    return q.clamp_min(1.0) ** (0.965 - 4.0) * torch.exp(-((q / 8.0) ** 2))


def random_field(seed: int = 0, side: int = 16, shift: float = 1.0, sigma: float = 0.1) -> Case:
    """A periodic field of variance one; q = 1 is one wave across the image."""
    shape = (1, side, side)
    law = GaussianField(shape, _primordial, length=side / (2.0 * math.pi), sigma_max=1000.0)
    count = side * side
    cov = law.covariance(torch.eye(count, dtype=F64).reshape(count, *shape)).reshape(count, count)
    twin = GaussianPrior(torch.zeros(shape, dtype=F64), 0.5 * (cov + cov.T), sigma_max=1000.0)
    white = shift * normal(seed, count).sign()
    values, basis = torch.linalg.eigh(twin.cov)
    truth = ((white @ basis) * values.clamp_min(0.0).sqrt() @ basis.T).reshape(shape)
    problem = Problem.simulate(gaussian_blur(side, side, sigma=1.0), Gaussian(sigma), truth, seed)
    return Case(f"random field, shift {shift:g}", problem, law, twin.posterior(problem))


def shapes(side: int = 8) -> Tensor:
    """Five images, (5, 1, side, side): a disc that is plain, or striped along the rows, the columns, both, or the diagonal."""
    line = torch.arange(side, dtype=F64) - (side - 1) / 2.0
    y, x = torch.meshgrid(line, line, indexing="ij")
    disc = torch.sigmoid(2.0 * (0.36 * side - (x * x + y * y).sqrt()))
    wave = [torch.cos(2.0 * math.pi * k / side) for k in (2.0 * y, 2.0 * x)]
    diagonal = torch.cos(2.0 * math.pi * 1.5 * (x + y) / side)
    stripes = [torch.zeros_like(disc), *wave, wave[0] * wave[1], diagonal]
    return torch.stack([2.0 * disc * (1.0 + 0.8 * s) for s in stripes])[:, None]


def _shapes_prior(side: int) -> GaussianMixture:
    means = shapes(side)
    count = side * side
    smooth = GaussianField((1, side, side), Matern(1.5), std=0.25, length=1.0)
    cov = smooth.covariance(torch.eye(count, dtype=F64).reshape(count, 1, side, side)).reshape(count, count)
    weights = torch.tensor([0.3, 0.2, 0.2, 0.15, 0.15], dtype=F64)
    return GaussianMixture(weights, means, 0.5 * (cov + cov.T), sigma_max=1000.0)


def _shapes_case(name: str, operator: LinearOperator, sigma: float, seed: int) -> Case:
    prior = _shapes_prior(operator.in_shape[-1])
    return Case.of(name, Problem.simulate(operator, Gaussian(sigma), prior.sample(Streams(seed + 7)), seed), prior)


def deconvolution(seed: int = 0, side: int = 8, sigma: float = 0.5) -> Case:
    """A blur of 1.2 pixels, cut at three, that leaves little of the stripes."""
    line = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=F64) / 1.2).square())
    kernel = torch.outer(line, line) / line.sum() ** 2
    return _shapes_case("deconvolution", Blur(kernel, (1, side, side)), sigma, seed)


def tomography(seed: int = 0, side: int = 8, sigma: float = 2.0, views: int = 3) -> Case:
    """Line integrals, in units of the image times its pixels."""
    return _shapes_case("tomography", ParallelBeamCT(side, views, detector=side, engine="joseph"), sigma, seed)


TOYS = ("toy, weak", "toy, strong")
FIELDS = tuple(f"random field, shift {s:g}" for s in SHIFTS)
IMAGES = ("deconvolution", "tomography")
MAKERS: dict[str, Callable[[int], Case]] = {
    "toy, weak": toy,
    "toy, strong": partial(toy, strong=True),
    **{name: partial(random_field, shift=s) for name, s in zip(FIELDS, SHIFTS, strict=True)},
    "deconvolution": deconvolution,
    "tomography": tomography,
}
