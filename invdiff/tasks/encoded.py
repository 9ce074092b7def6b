"""Latents of images: a training source for latent priors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError

__all__ = ["Encoded"]


class Encoded:
    """An endless source of latents, a function of the index as the source of images is.

    Args:
        source: index -> image (C, H, W).
        autoencoder: with `encode`; it is frozen.
        keep: how many latents there are: index k is index k mod `keep`, encoded once and kept; None encodes at every call.

    Returns (of a call): the encoder's mean, (latent, h, w) float32 tensor.
    """

    def __init__(self, source: Callable[[int], Tensor], autoencoder: nn.Module, keep: int | None = None) -> None:
        if not callable(source) or not hasattr(autoencoder, "encode"):
            raise ConfigError(f"Encoded: expected a source of images and an autoencoder, got {source!r} and {autoencoder!r}")
        if keep is not None and keep < 1:
            raise ConfigError(f"Encoded: expected keep >= 1, got {keep}")
        self.source, self.autoencoder, self.keep = source, autoencoder.eval().requires_grad_(False), keep
        self._kept: dict[int, Tensor] = {}

    def __call__(self, index: int) -> Tensor:
        if self.keep is None:
            return self._encode(index)
        index %= self.keep
        if index not in self._kept:
            self._kept[index] = self._encode(index)
        return self._kept[index]

    @torch.no_grad()
    def _encode(self, index: int) -> Tensor:
        return self.autoencoder.encode(self.source(index)[None])[0].contiguous()
