"""Guidance by a condition c: what it is, stronger than it is, and by a classifier.

    Given               D(x, sigma | c)
    ClassifierFree      D(x, sigma | null) + w (D(x, sigma | c) - D(x, sigma | null))
    ClassifierGuided    D(x, sigma) + w sigma^2 grad_x log p(c | x, sigma)

At w = 1 both are D(x, sigma | c), the last by Bayes' rule for the noisy x. With another w they have, at each level, the score
of p(x; sigma) p(c | x, sigma)^w, which is not the smoothed p(x) p(c | x)^w: for w > 1 sharper samples that are no longer draws
of any posterior. Limiting the levels at which that is done keeps more of the diversity.

References: Dhariwal, Nichol, Diffusion models beat GANs on image synthesis, NeurIPS 2021, arXiv:2105.05233; Ho, Salimans,
Classifier-free diffusion guidance, 2022, arXiv:2207.12598 (their weight is w - 1); Kynkäänniemi, Aittala, Karras, Laine, Aila,
Lehtinen, Applying guidance in a limited interval improves sample and distribution quality in diffusion models, NeurIPS 2024,
arXiv:2404.07724.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..core.errors import CapabilityError, ConfigError, ShapeError
from ..core.linalg import expand
from .adapter import SameUnknown, expanded, require_conditional

__all__ = ["ClassifierFree", "ClassifierGuided", "Given", "Interval"]

_KEYS = ("concat", "vector", "label")
Told = Mapping[str, "Tensor | Sequence[float]"]
Weight = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Interval:
    """A weight at noise levels low < sigma <= high, and one, the plain condition, at the others.

    Args:
        weight: inside of the interval.
        low, high: in data units.
    """

    weight: float
    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high:
            raise ConfigError(f"Interval: expected 0 <= low < high, got {self.low} and {self.high}")

    def __call__(self, sigma: Tensor) -> Tensor:
        """Weights of levels (B,)."""
        inside = (sigma > self.low) & (sigma <= self.high)
        return torch.ones_like(sigma).masked_fill(inside, self.weight)


class Given(SameUnknown):
    """A conditional prior with its condition fixed.

    Args:
        prior: with `forward(x, sigma, condition)`.
        condition: of the keys `concat` (B or 1, C', *spatial), `vector` (B or 1, K), `label` (B or 1,), tensors or lists of
            numbers. Samplers, whose batches are chunks of the draws, need one for all items, (1, ...).

    Raises:
        CapabilityError: the prior is not conditional. ConfigError: another key. ShapeError: a condition for another number of
            items.
    """

    def __init__(self, prior: Denoiser, condition: Told) -> None:
        require_conditional(prior, "Given")
        super().__init__(prior)
        self.condition = _Held(condition, "Given")

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x, condition]."""
        return self.prior(x, sigma, self.condition(len(x)))

    def extra_repr(self) -> str:
        return f"condition={self.condition.keys}"


class ClassifierFree(SameUnknown):
    """Classifier-free guidance: a conditional prior, away from its own null condition.

    Args:
        prior: with `forward(x, sigma, condition)`.
        condition: as of `Given`.
        weight: w; 0 is the null condition, 1 the condition, more than 1 overdoes it. A number, or a function from levels (B,)
            to weights (B,), such as `Interval`.
        null: what the prior was told in training in place of a condition, with the same keys (the null class, zeros); the two
            are evaluated in one call of twice the batch. None asks the prior, or the one that it adapts, for its
            `null(condition)`, as networks of this package have it, and calls one that has none without a condition.

    Where all weights of a batch are one, the null condition is not evaluated.

    Raises:
        CapabilityError: the prior is not conditional. ConfigError: an unknown key, or other keys in null.
    """

    def __init__(self, prior: Denoiser, condition: Told, *, weight: float | Weight, null: Told | None = None) -> None:
        require_conditional(prior, "ClassifierFree")
        super().__init__(prior)
        self.condition, self.weight = _Held(condition, "ClassifierFree"), weight
        inner: Any = prior
        while not hasattr(inner, "null") and hasattr(inner, "prior"):  # adapters hand the condition on
            inner = inner.prior
        if null is None and hasattr(inner, "null"):
            null = inner.null({key: getattr(self.condition, key) for key in self.condition.keys})
        self.null = None if null is None else _Held(null, "ClassifierFree")
        if self.null is not None and self.null.keys != self.condition.keys:
            raise ConfigError(
                f"ClassifierFree: expected null to have the keys {self.condition.keys} of the condition, got {self.null.keys}"
            )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_null + w (D_condition - D_null)."""
        w = torch.full_like(sigma, self.weight) if isinstance(self.weight, int | float) else self.weight(sigma)
        told = self.condition(len(x))
        if bool((w == 1.0).all()):
            return self.prior(x, sigma, told)
        if self.null is None:
            plain, conditional = self.prior(x, sigma), self.prior(x, sigma, told)
        else:
            null = self.null(len(x))
            both = {key: torch.cat([expanded(null[key], len(x)), expanded(told[key], len(x))]) for key in told}
            plain, conditional = self.prior(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return plain + expand(w, x).to(x.dtype) * (conditional - plain)

    def extra_repr(self) -> str:
        # a resumed run compares it, and the address of a function is another one there
        weight = getattr(self.weight, "__qualname__", self.weight)
        return f"condition={self.condition.keys}, weight={weight}, null={None if self.null is None else self.null.keys}"


class ClassifierGuided(SameUnknown):
    """Classifier guidance: a prior and a classifier of noisy unknowns.

    Args:
        prior: unconditional.
        log_prob: (x, sigma) -> log p(c | x, sigma) of the wanted c, (B,), differentiable, items independent.
        weight: w; 1 is Bayes' rule.

    Raises:
        CapabilityError: log_prob carries no gradient. ShapeError: it does not give one number for each item.
    """

    def __init__(self, prior: Denoiser, log_prob: Callable[[Tensor, Tensor], Tensor], *, weight: float = 1.0) -> None:
        super().__init__(prior)
        self.log_prob, self.weight = log_prob, float(weight)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D + w sigma^2 grad log p(c | x)."""
        # a caller that differentiates D needs the second derivative of log_prob
        twice = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            point = x if twice else x.detach().requires_grad_()
            value = self.log_prob(point, sigma)
            total = value.sum()
        if value.shape != sigma.shape:
            raise ShapeError(f"ClassifierGuided: expected log_prob of shape {tuple(sigma.shape)}, got {tuple(value.shape)}")
        if not total.requires_grad:
            raise CapabilityError("ClassifierGuided: the gradient of log_prob is needed, but its value carries none")
        (score,) = torch.autograd.grad(total, point, create_graph=twice)
        return self.prior(x, sigma) + self.weight * expand(sigma, x).to(x.dtype) ** 2 * score

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"


class _Held(nn.Module):
    """A condition that moves with its owner and is saved in its place."""

    def __init__(self, condition: Told, who: str) -> None:
        super().__init__()
        unknown = set(condition) - set(_KEYS)
        if unknown or not condition:
            raise ConfigError(
                f"{who}: expected a condition with keys of {', '.join(_KEYS)}, got {', '.join(condition) or 'none'}"
            )
        self.keys = tuple(key for key in _KEYS if key in condition)
        for key in self.keys:
            value = torch.as_tensor(condition[key])
            self.register_buffer(key, value.long() if key == "label" and not value.is_floating_point() else value)

    def forward(self, items: int) -> Condition:
        condition = {key: getattr(self, key) for key in self.keys}
        for value in condition.values():
            expanded(value, items)
        return condition
