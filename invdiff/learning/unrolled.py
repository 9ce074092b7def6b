"""End-to-end training of a reconstruction network: measure an image, reconstruct it, compare.

    L = E_x mean |f(A, A x + sigma_y n) - x| / sigma_data,    A drawn anew at every step

The operator of step t is a function of t (of t and the number of the measurement, where a network learns several in turn), the
same for the whole batch, so that neither a resumed run, nor one in pieces or processes, sees another one.

References: Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed sensing, TPAMI 2025, arXiv:2403.17006.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ConfigError, LinearOperator, Memory, Streams
from ..core.linalg import norm
from ..samplers.idm_network import IDMNetwork

__all__ = ["EndToEnd"]

Measurement = Callable[..., LinearOperator]


class EndToEnd(nn.Module):
    """A network and the measurements that it learns to invert.

    Args:
        network: (operator, y, memory) -> images.
        measurements: functions (shape, seed=...) -> operator on real images of that shape (C, H, W); step t takes number t
            modulo their count, with seed t.
        noise: sigma_y, the standard deviation of each real component of the noise in y.

    Raises:
        ConfigError: there are no measurements, or the noise is negative.
    """

    def __init__(self, network: IDMNetwork, measurements: Sequence[Measurement], noise: float = 0.0) -> None:
        super().__init__()
        if not measurements or not noise >= 0.0:
            raise ConfigError(f"EndToEnd: expected measurements and noise >= 0, got {len(measurements)} and {noise}")
        self.network, self.measurements, self.noise = network, tuple(measurements), float(noise)
        # what the training loop asks of a network
        self.sigma_data, self.divisor, self.bf16 = network.sigma_data, network.divisor, False
        self.memory_format, self.classes, self.dims = network.memory_format, 0, 2

    @property
    def net(self) -> EndToEnd:
        """Itself: what is trained."""
        return self

    @property
    def header(self) -> dict[str, Any]:
        """What makes the same network again, but for its weights."""
        return self.network.header

    @property
    def facts(self) -> dict[str, Any]:
        """What the network's file says of it."""
        return self.network.facts

    @facts.setter
    def facts(self, facts: dict[str, Any]) -> None:
        self.network.facts = facts

    @property
    def names(self) -> list[str]:
        """What the measurements are called."""
        return [_name(m) for m in self.measurements]

    def losses(self, clean: Tensor, step: int, streams: Streams, memory: str | Memory = "full") -> Tensor:
        """The loss of each image of (B, C, H, W), (B,)."""
        self.network.bf16 = self.bf16
        operator, y = self.measure(clean, step, streams)
        return (self.network(operator, y, memory) - clean).abs().flatten(1).mean(1) / self.sigma_data

    @torch.no_grad()
    def measure(self, clean: Tensor, step: int, streams: Streams) -> tuple[LinearOperator, Tensor]:
        """The operator of a step, and noisy measurements of the images."""
        operator = self.measurements[step % len(self.measurements)](tuple(clean.shape[1:]), seed=step).to(clean.device)
        y = operator(clean)
        if self.noise:
            y = y + self.noise * streams.normal(0, operator.out_shape, "measurement", y.dtype, y.device)
            y = y if operator.measured is None else y * operator.measured
        return operator, y

    @torch.no_grad()
    def errors(self, images: Tensor, number: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Root mean square errors of A^T y / L^2 and of the reconstruction of each image, (N,) both, with measurement `number`.

        The operators are ones that no step of a training has seen.
        """
        rough, fine = [], []
        for k, image in enumerate(images):
            operator, y = self.measure(image[None], number - len(self.measurements) * (k + 1), Streams(seed, (k,)))
            size = image.numel() ** 0.5
            rough.append(norm(operator.adjoint(y) / self.network.norm**2 - image)[0] / size)
            fine.append(norm(self.network(operator, y) - image)[0] / size)
        return torch.stack(rough), torch.stack(fine)

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None, *, dtype: torch.dtype | None = None) -> None:
        """Write the network, for `load_idm`."""
        self.network.save(path, facts, dtype=dtype)


def _name(measurement: Measurement) -> str:
    if isinstance(measurement, partial):
        options = ", ".join(f"{k}={v}" for k, v in measurement.keywords.items())
        return f"{measurement.func.__name__}({options})"
    return getattr(measurement, "__name__", type(measurement).__name__)
