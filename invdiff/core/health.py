"""Is a prior wired up right? What must hold for E[x0 | x] on held-out data, and what a wrong wiring breaks.

With u = x0 + sigma n and D = D(u, sigma) the posterior mean for the distribution of the data, four things are theorems:

    bound    E|D - x0|^2 <= E|m + k (u - m) - x0|^2 = (s sigma)^2 / (s^2 + sigma^2),    k = s^2 / (s^2 + sigma^2)
    bias     E[D - x0] = 0
    gain     E<D - u, x0 - D> = 0: the g that minimises E|u + g (D - u) - x0|^2 is 1
    level    the c that minimises min_g E|u + g (D(u, c sigma) - u) - x0|^2 is 1

m and s^2 are the data's mean and variance. D minimises the mean squared error over *all* functions of u: the first line
compares it with one of them, the scalar Wiener filter; the others say that no change of D by a constant, by a factor on what
it removes, or by another noise level does better. They hold exactly for the data's own distribution and its own posterior
mean. A trained network is flagged where it is further from them than outputs with a relative error of 10 % explain, by more
than 3.5 standard errors:

             flagged where                                                            a right network with an error of 10 %
    bound    rms > 1.25 bound                                                         1.12 at 5 s for one that predicts eps
    bias     |bias| > s / 4                                                           s / 10
    gain     g > 1.28, or g < 0.78 if that factor lowers |D - x0|^2 by 5 %            0.91 ... 1.11
    level    |ln c| > 0.12 if that c lowers |D - x0|^2 by 1 %                         0.05; 0.02 of it is the parabola's

Standard errors come from the spread between items, each averaged over draws of the noise: every comparison is paired, on the
same items and noise, and that of ln c is the jackknife's. `level` says what the prior seems to read, 1 / c in units of sigma,
with the gain fitted beside it because a wrong level changes both. It is blind where another level does no harm: for denoisers
without a level, and where the noise is far below the finest detail of the data. So a step too many in a table of steps shows
only near sigma_min, and only in data that are smooth on that scale.

A network that predicts x0 and errs by 10 % of it is worse than no denoising for sigma below a tenth of the data's root mean
square, and is flagged below about a third of it: its sigma_min is too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .denoiser import Denoiser
from .errors import ConfigError, DataError
from .probe import Probe, probe

__all__ = ["Health", "check", "measure"]

_Z = 3.5  # standard errors
_VALUES = 2**15  # of noise at each level, at least


@dataclass(frozen=True)
class Health:
    """What was measured, one entry per noise level.

    Attributes:
        sigma: noise levels.
        rms: root mean square of D - x0.
        bound: that of the scalar Wiener filter for the data's mean and variance.
        bias: mean of D - x0.
        gain: what D - x has to be multiplied by to fit x0 - x best; 1 for a right prior.
        level: the level that the prior seems to read, in units of sigma; 1 for a right one, nan where it makes no difference.
        problems: one clause each; empty for a healthy prior.
    """

    sigma: tuple[float, ...]
    rms: tuple[float, ...]
    bound: tuple[float, ...]
    bias: tuple[float, ...]
    gain: tuple[float, ...]
    level: tuple[float, ...]
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = ("sigma", "rms", "bound", "bias", "gain", "level")
        rows = zip(*(getattr(self, name) for name in names), strict=True)
        lines = ["".join(f"{name:>11}" for name in names), *("".join(f"{v:11.4g}" for v in row) for row in rows)]
        return "\n".join([*lines, *self.problems])


def measure(
    prior: Denoiser,
    data: Tensor,
    *,
    sigmas: Sequence[float] | None = None,
    seed: int = 0,
    expected: Mapping[str, Sequence[float]] | None = None,
    batch: int = 16,
) -> Health:
    """The health of a prior on held-out data; `check` is the same and raises where there is a problem.

    Args:
        data: (N, *shape) in the prior's units, floating-point, 4 items at least and 8 to see much; not those it was trained on.
        sigmas: noise levels, in the prior's interval; None for eight from sigma_min to sigma_max or five standard deviations of
            the data, beyond which D is the mean whatever the network does.
        expected: columns "sigma", "rms" and "spread" of a model card; those in the prior's interval are measured too; an rms
            more than three spreads away is a problem.
        batch: items per call.

    Raises:
        ConfigError: the prior's noise levels lie above those at which anything is left of the data, a sigma is outside them,
            there is none, or batch < 1.
        DataError: fewer than 4 items, no real floating-point numbers, not finite, or constant.
        NumericalError: the prior returned a value that is not finite.
    """
    real = data.is_floating_point()
    if not real or len(data) < 4 or not bool(data.isfinite().all()) or float(data.double().std()) == 0.0:
        raise DataError(
            f"check: expected 4 or more finite floating-point items that are not constant, got {tuple(data.shape)} {data.dtype}"
        )
    scale = float(data.double().std(unbiased=False))
    chosen = _levels(prior, scale) if sigmas is None else list(sigmas)
    if expected is not None:
        chosen += [s for s in expected["sigma"] if prior.sigma_min <= s <= prior.sigma_max]
    if not chosen or batch < 1:
        raise ConfigError(f"check: expected a noise level or more and batch >= 1, got {len(chosen)} and {batch}")
    draws = math.ceil(_VALUES / data.numel())
    asked = {s: probe(prior, data, s, draws, seed, batch) for s in sorted(set(chosen))}
    # those asked for between the levels that a prior knows are one
    probes = list({p.sigma: p for p in asked.values()}.values())
    problems = _problems(probes) + ([] if expected is None else _expected(asked, expected))
    return Health(
        sigma=tuple(p.sigma for p in probes),
        rms=tuple(_rms(p.error) for p in probes),
        bound=tuple(scale * p.sigma / math.hypot(scale, p.sigma) for p in probes),
        bias=tuple(float(p.bias.mean()) for p in probes),
        gain=tuple(p.gain for p in probes),
        level=tuple(_reads(p) for p in probes),
        problems=tuple(_ranged(prior, data, problems)),
    )


def check(
    prior: Denoiser,
    data: Tensor,
    *,
    sigmas: Sequence[float] | None = None,
    seed: int = 0,
    expected: Mapping[str, Sequence[float]] | None = None,
    batch: int = 16,
) -> Health:
    """`measure`, and a ConfigError that says what is wrong if anything is."""
    health = measure(prior, data, sigmas=sigmas, seed=seed, expected=expected, batch=batch)
    if health.problems:
        raise ConfigError(f"{type(prior).__name__}: {'; '.join(health.problems)}")
    return health


def _levels(prior: Denoiser, scale: float) -> list[float]:
    low, high = prior.sigma_min, min(prior.sigma_max, 5.0 * scale)
    if low >= high:
        raise ConfigError(
            f"{type(prior).__name__}: its noise levels start at {low:g} but the data's standard deviation is {scale:g}: are "
            "they in the prior's units?"
        )
    levels = [low * (high / low) ** (k / 6) for k in range(7)]
    second = low * math.sqrt(2.0)  # where a smaller one can be told
    return [*levels, second] if second < high else levels


def _problems(probes: list[Probe]) -> list[str]:
    """Of each kind the worst."""
    worst = [max(filter(None, map(test, probes)), default=None) for test in (_bound, _bias, _gain, _level)]
    return [text for _, text in filter(None, worst)]


def _ranged(prior: Denoiser, data: Tensor, problems: list[str]) -> list[str]:
    """The problems, after that of the declared range of values."""
    if prior.value_range is None:
        return problems
    (low, high), least, most = prior.value_range, float(data.min()), float(data.max())
    slack, narrow = 0.1 * (high - low), most - least < 0.6 * (high - low)
    # data that fill half of the range may be right; together with another problem they explain it
    if least >= low - slack and most <= high + slack and not (problems and narrow):
        return problems
    theirs = f"[{low:g}, {high:g}] and these are in [{least:.3g}, {most:.3g}]"
    return [f"it was trained on values in {theirs}: does it need Affine?", *problems]


def _bound(p: Probe) -> tuple[float, str] | None:
    if not _exceeds(p.error - 1.25**2 * p.shrunk):
        return None
    error, shrunk, fit, removed = _rms(p.error), _rms(p.shrunk), *p.told
    mirrored = _rms(p.noise + 2 * fit + removed)  # of 2 u - D
    hint = f", and {mirrored:.3g} with the sign of D - x reversed" if mirrored < 0.5 * error else ""
    text = f"at sigma={p.sigma:.3g} its error of {error:.3g} is {error / shrunk:.2f} times that of shrinking to the mean{hint}"
    return error / shrunk, text


def _bias(p: Probe) -> tuple[float, str] | None:
    bias = float(p.bias.mean())
    if not _exceeds(math.copysign(1.0, bias) * p.bias - p.scale / 4):
        return None
    return abs(bias) / p.scale, (
        f"at sigma={p.sigma:.3g} the mean of D is off by {bias:+.3g}, with data of standard deviation {p.scale:.3g}: is the "
        "value range right? Affine changes it"
    )


def _gain(p: Probe) -> tuple[float, str] | None:
    (fit, removed), gain = p.told, p.gain
    little = _exceeds(fit - 1.28 * removed)
    wasted = (1.0 - gain) ** 2 * float(removed.mean() / p.error.mean())
    much = wasted > 0.05 and _exceeds(0.78 * removed - fit)
    text = f"at sigma={p.sigma:.3g} what it removes fits the noise best when multiplied by {gain:.2f}: is its level right?"
    return (abs(gain - 1.0), text) if little or much else None


def _level(p: Probe) -> tuple[float, str] | None:
    (place, saving, _), (place_error, saving_error) = p.read(), p.spread
    # the saving is a small difference between items that differ much: it confirms the place, which decides
    if abs(place) <= max(0.12, _quantile(len(p.noise)) * place_error) or saving <= max(0.01, 2 * saving_error):
        return None
    edge = " or less" if place >= math.log(max(p.factors)) else " or more" if place <= math.log(min(p.factors)) else ""
    text = f"at sigma={p.sigma:.3g} the network reads {math.exp(-place):.2f} sigma{edge}: is its time right, and its range?"
    return abs(place), text


def _expected(probes: Mapping[float, Probe], expected: Mapping[str, Sequence[float]]) -> list[str]:
    found = []
    for sigma, rms, spread in zip(expected["sigma"], expected["rms"], expected["spread"], strict=True):
        if sigma in probes and abs((error := _rms(probes[sigma].error)) - rms) > 3 * spread:
            text = f"at sigma={sigma:.3g} its error is {error:.3g}, expected {rms:.3g} with a spread of {spread:.2g}"
            found.append((abs(error - rms) / spread, text))
    return [max(found)[1]] if found else []


def _reads(p: Probe) -> float:
    """The level that is read, in units of sigma; nan where the curve is too flat to say."""
    place, _, span = p.read()
    return math.exp(-place) if span > 0.01 else math.nan


def _rms(squares: Tensor) -> float:
    return math.sqrt(float(squares.mean()))


def _exceeds(excess: Tensor) -> bool:
    """Is the mean over items positive, beyond its standard error?"""
    return float(excess.mean()) > _quantile(len(excess)) * float(excess.std()) / math.sqrt(len(excess))


def _quantile(count: int) -> float:
    """Student's t that is as rare for `count` items as _Z for a normal (by Wallace's approximation); 6.2 for eight items."""
    nu = count - 1
    return math.sqrt(nu * math.expm1((_Z * (8 * nu + 3) / (8 * nu + 1)) ** 2 / nu))
