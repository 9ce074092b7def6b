"""What adapters share: the same unknown with another denoiser, batches made of parts, and a sequence of choices in sigma.

What has to differ from one noise level to the next (where tiles begin, which of several priors is asked) is a function of sigma
alone, so that D(x, sigma) stays a function, whatever the sampler, the batch and the resume. It reads the R_d sequence,

    k = floor(64 ln sigma),    u_k = frac(1/2 + k (g^-1, ..., g^-d)),    g^(d+1) = g + 1,

whose golden-ratio steps fill [0, 1)^d evenly: consecutive levels differ, and those of a run are spread at least about as evenly
as independent draws would be.

References: Roberts, The unreasonable effectiveness of quasirandom sequences, 2018 (the R_d sequence).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import CapabilityError, ConfigError, ShapeError
from ..core.operator import Operator

__all__ = [
    "Adapter",
    "SameUnknown",
    "by_level",
    "chunked",
    "expanded",
    "grouped",
    "is_encoded",
    "quasirandom",
    "require_conditional",
    "require_image",
    "require_multiples",
    "spread",
]


class Adapter(Denoiser):
    """Base of denoisers made of another one, with its divisor, value range and noise levels.

    Args:
        prior: the other one.
        shape: of the unknown.
        scale: units of the unknown in a unit of the prior's, positive.
    """

    def __init__(self, prior: Denoiser, shape: tuple[int | None, ...], *, scale: float = 1.0) -> None:
        super().__init__(shape, prior.sigma_min * scale, prior.sigma_max * scale)
        self.prior, self.divisor, self.value_range = prior, prior.divisor, prior.value_range
        self.known = None if prior.known is None else prior.known * scale


class SameUnknown(Adapter):
    """Base of denoisers of the very unknown of another one, with its way to images."""

    def __init__(self, prior: Denoiser) -> None:
        super().__init__(prior, prior.shape)

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        return self.prior.image_shape

    @property
    def image_divisor(self) -> int:
        return self.prior.image_divisor

    def synthesis(self, shape: Sequence[int]) -> Operator | None:
        return self.prior.synthesis(shape)

    def analyse(self, x: Tensor) -> Tensor:
        return self.prior.analyse(x)


def is_encoded(prior: Denoiser) -> bool:
    """Does the unknown stand for an image that is made from it: latents, wavelet coefficients?"""
    # shapes can agree all the same: square wavelet coefficients
    shape = tuple(prior.image_divisor if n is None else n for n in prior.image_shape)
    return prior.synthesis(shape) is not None


def require_image(prior: Denoiser, who: str) -> None:
    """Refuse a prior of latents or coefficients: an adapter of the unknown goes between its denoiser and its decoder.

    Raises:
        ConfigError: the unknown of the prior stands for something else.
    """
    if is_encoded(prior):
        name = type(prior).__name__
        raise ConfigError(
            f"{who}: the unknown of {name} is not the image it decodes to: write {name}({who}(prior), ...) instead"
        )


def require_conditional(prior: Denoiser, who: str) -> None:
    """Refuse a prior that cannot be told a condition.

    Raises:
        CapabilityError: its `forward` takes no third argument.
    """
    try:
        inspect.signature(prior.forward).bind(None, None, None)
    except TypeError:
        raise CapabilityError(
            f"{who}: {type(prior).__name__} is not conditional: expected a prior with forward(x, sigma, condition)"
        ) from None


def require_multiples(prior: Denoiser, x: Tensor) -> None:
    """Refuse an unknown whose free sizes are no multiples of the prior's divisor.

    Raises:
        ShapeError: a size is none.
    """
    if any(s is None and n % prior.divisor for s, n in zip(prior.shape[1:], x.shape[2:], strict=True)):
        name, sizes = type(prior).__name__, tuple(x.shape[2:])
        raise ShapeError(f"{name}: expected sizes that are multiples of {prior.divisor}, got {sizes}: pad or crop")


def quasirandom(k: int, dims: int) -> tuple[float, ...]:
    """The k-th point of the R_d sequence, `dims` numbers in [0, 1); k may be negative."""
    g = 2.0
    for _ in range(64):
        g = (1.0 + g) ** (1.0 / (dims + 1))
    return tuple((0.5 + k * g ** -(i + 1)) % 1.0 for i in range(dims))


Part = Callable[[int, Tensor, Tensor, "Condition | None"], Tensor]


def by_level(denoise: Part, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
    """denoise(k, x, sigma, condition) for each k = floor(64 ln sigma) of a batch, on the items that have it."""
    return grouped((64.0 * sigma.double().log()).floor().long(), denoise, x, sigma, condition)


def grouped(keys: Tensor, denoise: Part, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
    """denoise(key, ...) for each value of the integers keys (B,), on the items that have it."""
    values = keys.unique().tolist()
    if len(values) == 1:
        return denoise(values[0], x, sigma, condition)
    rows = [(keys == value).nonzero()[:, 0] for value in values]
    parts = [denoise(k, x[r], sigma[r], _items(condition, r)) for k, r in zip(values, rows, strict=True)]
    return torch.cat(parts)[torch.cat(rows).argsort()]


def chunked(prior: Denoiser, x: Tensor, sigma: Tensor, condition: Condition | None, batch: int | None) -> Tensor:
    """prior(x, sigma, condition), at most `batch` items in a call."""
    if batch is None or len(x) <= batch:
        return prior(x, sigma, condition)
    chunks = [slice(i, i + batch) for i in range(0, len(x), batch)]
    return torch.cat([prior(x[c], sigma[c], _items(condition, c)) for c in chunks])


def spread(condition: Condition | None, items: int, times: int, cut: Callable[[Tensor], Tensor]) -> Condition | None:
    """The condition of the parts of a batch, part-major: (part 0 of all items, part 1 of all items, ...).

    Args:
        items, times: size of the batch, and number of parts of an item.
        cut: from images (B, C, *spatial) to their parts (times * B, C, *part), as it is applied to the unknown.
    """
    if condition is None:
        return None
    parts = {}
    for key, value in condition.items():
        if key == "concat":
            parts[key] = cut(expanded(value, items))
        else:
            parts[key] = value if len(value) == 1 else expanded(value, items).repeat(times, *[1] * (value.ndim - 1))
    return parts


def expanded(value: Tensor, items: int) -> Tensor:
    """A condition (B or 1, ...) as one of B items.

    Raises:
        ShapeError: it is for another number of items.
    """
    if value.ndim == 0 or len(value) not in (1, items):
        raise ShapeError(f"condition: expected one for each of {items} items, or one for all, got {tuple(value.shape)}")
    return value.expand(items, *value.shape[1:])


def _items(condition: Condition | None, rows: Tensor | slice) -> Condition | None:
    if condition is None:
        return None
    return {key: value if len(value) == 1 else value[rows] for key, value in condition.items()}
