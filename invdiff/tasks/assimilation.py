"""Data assimilation: posterior draws of a long trajectory, in windows that overlap.

    u_{t+1} = M(u_t),    y_t = H(u_t) + noise,    t = 0, ..., K

A window begins at the time a and ends at b. Its unknown is u_a, and every measurement enters once: with b' the end of the
window before,

    p(u_a | y_0 ... y_b) ~ p(u_a | y_0 ... y_b') prod_{b' < t <= b} p(y_t | H M^(t - a) u_a).

The first factor is known by the draws of the window before, carried on to a. It is replaced by N(m, C) of their mean and

    C = inflation^2 ((1 - shrink) S + shrink diag(S)),    S their covariance,

and written as the given prior times a Gaussian measurement of u_a of precision C^-1 - P^-1 and information C^-1 m - P^-1 mu,
N(mu, P) the Gaussian next to the prior (`climate`). What the prior says is then counted once, and what is not Gaussian about it
stays; directions in which C is not below P carry nothing. So any sampler draws the windows, as posteriors of one problem each.

For linear M and H, a Gaussian prior, and shrink 0 this is the Kalman smoother with a lag of up to `window`; with windows of one
time the Kalman filter. Shrink 1 loses the correlations of the errors, and the more the longer the overlap, since what then
stands for more of the data is the carried state. Measured for a drifting wave on 12 points with 3 sensors and windows of 4,
root mean square distance of the mean from the smoother's: 0.26, 0.41 and 0.70 standard deviations at overlaps of 0, 2 and 3
(`tests/exact/test_assimilation.py` holds them).
There is no error of the model; inflation stands for what is missing.

References: Evensen, Data assimilation: the ensemble Kalman filter, 2009, chapters 4 and 9. Fisher, Leutbecher, Kelly, On the
equivalence between Kalman smoothing and weak-constraint four-dimensional variational data assimilation, QJRMS 131, 2005.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..core import (
    CapabilityError,
    ConfigError,
    Denoiser,
    Gaussian,
    LinearOperator,
    Matrix,
    NumericalError,
    Operator,
    Problem,
    ShapeError,
)
from ..core.resume import Progress, fingerprint
from ..core.rng import derived
from ..core.sampler import Sampler
from ..core.samples import Samples
from .watched import Scaled, Seen, watched

__all__ = ["Assimilation", "errors_in_time"]

# unknowns up to which a covariance is held
DENSE = 2048


@dataclass(frozen=True, kw_only=True)
class Assimilation:
    """Draws of u_0 ... u_K given y_0 ... y_K.

    Args:
        model: M, from the state to the state one time later, real, (C, *grid) -> (C, *grid).
        observe: H, linear or not, real.
        noise: Gaussian, its sigma a number or a tensor that broadcasts to a measurement.
        window: times whose measurements a window reaches to, >= 1.
        overlap: times that a window shares with the one before, 0 <= overlap < window.
        inflation: factor of the standard deviations that are carried over, > 0.
        shrink: between 0, the covariance of the draws, which have to be more than the numbers of a state, and 1, the variance
            of each point alone. Below 1 for states of at most 2,048 numbers.
        climate: mean (C, *grid) and covariance of the prior, flattened (N, N) or its diagonal (C, *grid); None counts the
            prior again in each window, which does little where the data say much more than it.

    Raises:
        ConfigError, ShapeError: an argument is out of its range, or of another shape.
        CapabilityError: the noise is not Gaussian, a measurement is complex, or the state too large for shrink < 1.
    """

    model: Operator
    observe: Operator
    noise: Gaussian
    window: int
    overlap: int = 0
    inflation: float = 1.0
    shrink: float = 1.0
    climate: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        shape = self.model.in_shape
        if self.model.out_shape != shape or self.observe.in_shape != shape:
            raise ShapeError(
                f"Assimilation: expected a model from {shape} to itself and an observation of it, got a model to "
                f"{self.model.out_shape} and an observation of {self.observe.in_shape}"
            )
        if not isinstance(self.noise, Gaussian) or self.observe.out_complex or self.model.in_complex:
            raise CapabilityError("Assimilation needs Gaussian noise and real states and measurements")
        self.noise.check(self.observe.out_shape)
        if not (self.window >= 1 and 0 <= self.overlap < self.window and self.inflation > 0 and 0 <= self.shrink <= 1):
            raise ConfigError(
                "Assimilation: expected window >= 1, 0 <= overlap < window, inflation > 0 and 0 <= shrink <= 1, got "
                f"{self.window}, {self.overlap}, {self.inflation} and {self.shrink}"
            )
        if self.shrink < 1 and prod(shape) > DENSE:
            raise CapabilityError(f"Assimilation: shrink < 1 is for states of at most {DENSE} numbers, this one has {shape}")
        if self.climate is not None:
            mean, cov = self.climate
            if mean.shape != shape or cov.shape not in (shape, (prod(shape),) * 2):
                raise ShapeError(
                    f"Assimilation: expected a climate of mean {shape} and covariance {shape} or {(prod(shape),) * 2}, got "
                    f"{tuple(mean.shape)} and {tuple(cov.shape)}"
                )

    def windows(self, times: int) -> list[tuple[int, int, int]]:
        """(a, first time with new measurements, b) of each window, for `times` times."""
        found: list[tuple[int, int, int]] = []
        while not found or found[-1][2] < times - 1:
            a, new = len(found) * (self.window - self.overlap), found[-1][2] + 1 if found else 0
            found.append((a, new, min(a + self.window, times) - 1))
        return found

    def __call__(
        self, y: Tensor, prior: Denoiser, sampler: Sampler, n: int, *, seed: int, resume: str | Path | None = None
    ) -> Samples:
        """Draws of all states, (n, K + 1, C, *grid), given y, (K + 1, *observe.out_shape).

        The state at t has the law of the last window that begins at t or before: given the measurements up to its end. A draw
        is one orbit of the model inside a window, not continuous between windows. `info` has a dictionary per window.

        Args:
            prior: of a state.
            sampler: draws from the posterior of one window; the k-th has the seed `core.rng.derived(seed, k)`.
            n: draws, >= 2.
            resume: a file that holds the windows that are done, as that of `Sampler`, until the last is.

        Raises:
            ShapeError, ConfigError, CapabilityError: y or n do not fit, or the sampler gives point estimates.
            NumericalError: a value of the state has no spread over the draws that are carried over; it is named.
        """
        if y.shape[1:] != self.observe.out_shape or not len(y):
            raise ShapeError(f"Assimilation: expected y (K + 1, {self.observe.out_shape}), got {tuple(y.shape)}")
        if n < 2 or (self.shrink == 0 and n <= prod(self.model.in_shape)):
            least = prod(self.model.in_shape) + 1 if self.shrink == 0 else 2
            raise ConfigError(f"Assimilation: expected n >= {least} draws for shrink {self.shrink:g}, got {n}")
        schedule = self.windows(len(y))
        if resume is None:
            run = Progress()
        else:
            facts = fingerprint(sampler, self.problem(y, 0, 0, schedule[0][2]), prior, n, None, seed)
            given = [y, *(self.climate or ())]
            own = f"{self.window} {self.overlap} {self.inflation} {self.shrink} {[_crc(t) for t in given]}"
            run = Progress.load(resume, facts | {"assimilation": own})
        begun = time.perf_counter() - run.seconds
        for k, (a, new, b) in enumerate(schedule[len(run.finished) :], len(run.finished)):
            before = run.finished[-1][:, -1].to(y.device) if k else None
            drawn = sampler(self.problem(y, a, new, b, before), prior, n, seed=derived(seed, k))
            if drawn.kind != "posterior":
                raise CapabilityError(f"Assimilation needs draws with a spread, {drawn.sampler} gives point estimates")
            after = schedule[k + 1][0] if k + 1 < len(schedule) else b
            run.finished.append(self.carry(drawn.x, after - a))
            calls = (drawn.operator_calls, drawn.network_calls, drawn.network_vjps)
            run.counts = tuple(c + round(n * d) for c, d in zip(run.counts, calls, strict=True))  # type: ignore[assignment]
            run.seconds = time.perf_counter() - begun
            run.info.append({"window": k, "first": a, "new": new, "last": b, "seconds": drawn.seconds})
            run.save()
        run.remove()
        # a block ends with the state that the next one begins with
        blocks = [block if k == len(schedule) - 1 else block[:, :-1] for k, block in enumerate(run.finished)]
        operator, network, vjp = (c / n for c in run.counts)
        return Samples(
            x=torch.cat([block.to(y.device) for block in blocks], 1),
            sampler=f"Assimilation({getattr(sampler, 'name', type(sampler).__name__)})",
            info=run.info,
            operator_calls=operator,
            network_calls=network,
            network_vjps=vjp,
            seconds=run.seconds,
        )

    def problem(self, y: Tensor, a: int, new: int, b: int, before: Tensor | None = None) -> Problem:
        """The problem of u_a in units of the noise, given y_new ... y_b and draws from the window before, (n, C, *grid)."""
        weight = (1.0 / self.noise.sigma.to(y)).expand(self.observe.out_shape)
        scaled = Scaled(weight, self.observe.measured) @ self.observe
        seen: list[Seen] = [(t - a, scaled) for t in range(new, b + 1)]
        values = [(weight * y[t]).flatten() for t in range(new, b + 1)]
        if before is not None:
            operator, value = self.carried(before)
            seen, values = [(0, operator), *seen], [value.to(y), *values]
        return Problem(watched(self.model, seen), Gaussian(1.0), torch.cat(values))

    def carried(self, draws: Tensor) -> tuple[LinearOperator, Tensor]:
        """What draws of a state, (n, C, *grid), say beyond the prior: an operator and its measurement, noise of one."""
        x = draws.double().flatten(1)
        mean, factor = x.mean(0), self.inflation**2
        variance = factor * x.var(0)
        fixed = ~((variance > 0.0) & variance.isfinite())
        if bool(fixed.any()):
            shape, place = self.model.in_shape, int(fixed.nonzero()[0])
            at = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape))
            raise NumericalError(
                f"Assimilation: expected draws with a spread at each value of the state, that at {at} has the variance "
                f"{float(variance[place]):g}: leave values that are fixed out of the state"
            )
        mu, p = (v.to(x) for v in self.climate) if self.climate is not None else (mean, None)
        if self.shrink == 1:
            if p is not None and p.shape != self.model.in_shape:
                p = p.diagonal()
            own = torch.zeros_like(variance) if p is None else 1.0 / p.flatten()
            root = (1.0 / variance - own).clamp_min(0.0).sqrt()
            information = mean / variance - mu.flatten() * own
            value = torch.where(root > 0, information / root, 0.0)
            return Scaled(root.reshape(self.model.in_shape).to(draws)), value
        cov = (1.0 - self.shrink) * factor * x.T.cov() + self.shrink * torch.diag(variance)
        precision = torch.linalg.inv(cov)
        information = precision @ mean
        if p is not None:
            own = torch.diag(1.0 / p.flatten()) if p.shape == self.model.in_shape else torch.linalg.inv(p)
            precision, information = precision - own, information - own @ mu.flatten()
        values, basis = torch.linalg.eigh(0.5 * (precision + precision.T))
        kept = values > 1e-12 * values.abs().max()
        root, basis = values[kept].sqrt(), basis[:, kept]
        return Matrix((root[:, None] * basis.T).to(draws), self.model.in_shape), (basis.T @ information) / root

    @torch.no_grad()
    def carry(self, u: Tensor, count: int) -> Tensor:
        """The orbit of states (n, C, *grid) over `count` times, (n, count + 1, C, *grid)."""
        states = [u]
        for _ in range(count):
            states.append(self.model(states[-1]))
        return torch.stack(states, 1)


def errors_in_time(draws: Samples, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square over the points of the error of the mean, and of the standard deviation, (K + 1,) each.

    Args:
        truth: (K + 1, C, *grid).
    """
    error, spread = (draws.mean - truth).flatten(1), draws.std.flatten(1)
    return error.square().mean(1).sqrt(), spread.square().mean(1).sqrt()


def _crc(y: Tensor) -> str:
    return f"{zlib.crc32(y.detach().cpu().contiguous().numpy().tobytes()):08x}"
