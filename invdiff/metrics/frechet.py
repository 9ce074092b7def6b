"""The Frechet distance between two sets of images, by the first two moments of their features.

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}),

the squared 2-Wasserstein distance of the Gaussians with the moments of the features. With the features of an Inception network
it is the FID of the literature; no weights are fetched here: the extractor is any function images -> features (N, D), and the
one that stands in for it, `RandomFeatures`, is a fixed random convolutional network, whose distances compare with each other
and with no published number.

From n items the distance is too large by about k / n, where k depends on both distributions: two samples of n items each of one
white Gaussian of D features are D (D + 5) / (2 n) apart, 2 D / n of it by their means. Compare distances of equally many items
only. `fid` estimates the bias from halves of the sets, which have twice of it.

References: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, GANs trained by a two time-scale update rule converge to a local
Nash equilibrium, NeurIPS 2017, arXiv:1706.08500. Chong, Forsyth, Effectively unbiased FID and inception score and where to find
them, CVPR 2020, arXiv:1911.07023 (the bias k / N).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core import ConfigError, DataError, ShapeError, Streams

__all__ = ["Frechet", "RandomFeatures", "fid", "frechet_distance"]

Extractor = Callable[[Tensor], Tensor]


class Frechet(NamedTuple):
    """Result of a comparison.

    Attributes:
        distance: squared Frechet distance of the features, at least zero but for rounding.
        bias: by how much the finite number of items makes it too large, about; nan where half of them are too few to tell.
    """

    distance: float
    bias: float


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians with the moments of features a (N, D) and b (M, D), in float64.

    Raises:
        ShapeError: the features differ in number, or a set has no more items than features: its covariance is singular, and
            the distance mostly the lack of items.
        DataError: a feature is not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) <= a.shape[1]:
        raise ShapeError(
            "frechet_distance: expected features (N, D), (M, D) with N, M > D, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}: take more items or fewer features"
        )
    if bad := sum(int((~x.isfinite()).sum()) for x in (a, b)):
        raise DataError(f"frechet_distance: {bad} of the {a.numel() + b.numel()} features are not finite")
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0.0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0.0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * cross)


@torch.no_grad()
def fid(images_a: Tensor, images_b: Tensor, extractor: Extractor | None = None, *, batch: int = 64) -> Frechet:
    """Frechet distance between the features of two sets of images, (N, C, H, W) and (M, C, H, W).

    Args:
        extractor: images (n, C, H, W) -> features (n, D), each of its own image; None for `RandomFeatures`, 96 of them. For the
            FID of the literature give the pooled features of Inception-v3, D = 2048, and thousands of images.
        batch: images given to the extractor at once.

    Raises:
        ShapeError: the images or features are not of such shapes, or not more than D.
    """
    if images_a.ndim != 4 or images_a.shape[1:2] != images_b.shape[1:2] or images_b.ndim != 4:
        raise ShapeError(
            f"fid: expected images (N, C, H, W), (M, C, H, W), got {tuple(images_a.shape)} and {tuple(images_b.shape)}"
        )
    if batch < 1:
        raise ConfigError(f"fid: expected batch >= 1, got {batch}")
    extract = RandomFeatures(images_a.shape[1]).to(images_a.device) if extractor is None else extractor
    a, b = (torch.cat([extract(x.to(images_a)) for x in images.split(batch)]) for images in (images_a, images_b))
    distance = frechet_distance(a, b)
    if min(len(a), len(b)) // 2 <= a.shape[1]:
        return Frechet(distance, float("nan"))
    halves = [frechet_distance(a[k::2], b[k::2]) for k in (0, 1)]
    return Frechet(distance, sum(halves) / 2 - distance)


class RandomFeatures(nn.Module):
    """Features of a fixed random convolutional network: (N, C, H, W) -> (N, 6 width), sizes of 8 or more.

    Three scales of 3 x 3 filters with independent normal weights, half-wave rectified, each halved in size by averaging; the
    features are mean and standard deviation over the positions of every channel of every scale. Layout is lost, textures and
    colours remain. They scale with the images: distances scale with the square of their units.

    Args:
        channels: of the images.
        width: filters of each scale.
        seed: of the weights; distances of different seeds do not compare.
    """

    def __init__(self, channels: int, *, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        if min(channels, width) < 1:
            raise ConfigError(f"RandomFeatures: expected positive channels and width, got {channels} and {width}")
        self.channels = channels
        for scale, fan in enumerate((channels, width, width)):
            drawn = Streams(seed, (scale,)).normal(0, (width, fan, 3, 3), "features")[0]
            self.register_buffer(f"filters{scale}", drawn * (2.0 / (9 * fan)) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """The features of each image."""
        if images.ndim != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < 8:
            raise ShapeError(f"RandomFeatures: expected (N, {self.channels}, 8 or more, 8 or more), got {tuple(images.shape)}")
        features, h = [], images
        for scale in range(3):
            h = h if scale == 0 else functional.avg_pool2d(h, 2)
            filters = self.get_buffer(f"filters{scale}").to(h.dtype)
            # a border of zeros would be a feature of its own
            h = functional.conv2d(functional.pad(h, (1, 1, 1, 1), mode="reflect"), filters).relu()
            features += [h.mean((2, 3)), h.flatten(2).std(2, correction=0)]
        return torch.cat(features, 1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])
