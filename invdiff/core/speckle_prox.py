"""Proximal maps of the speckle likelihoods: argmin over r of step NLL(r) + (r - v)^2 / 2, value by value, c = step L.

Logarithm, u = log R, z = log I: NLL = L (u + e^(z - u)) is convex, and d = z - u solves

    d + c (e^d - 1) = z - v,

so that w = c e^d is the Lambert function W in its logarithmic form, w + log w = log c + z - s with s = v - c, and u = s + w.
In d nothing overflows or cancels: Halley's iteration from the two asymptotes of W.

Intensity R: NLL = L (log R + I / R), and the stationary points are the roots of

    R^3 - v R^2 + c R - c I = R^2 (R - v) + c (R - I),     one or three of them positive.

Amplitude A = R^(1/2), a = I^(1/2), the centre v an amplitude too: NLL = L (2 log A + a^2 / A^2), and they are the roots of

    A^4 - v A^3 + 2 c A^2 - 2 c a^2,    over A^2:  A (A - v) + 2 c (1 - a^2 / A^2).

Both functions go from negative to positive and are first concave, then convex, so that Newton's iteration rises to the smallest
root from a lower bound if that root is in the concave part, and falls to the largest from an upper bound if it is in the convex
part; no root between them is a minimum. The one of smaller objective is the answer.

All maps compute in float64, return the dtype of v, and are differentiable once in all tensors.

References: Corless, Gonnet, Hare, Jeffrey, Knuth, On the Lambert W function, Adv. Comput. Math. 5, 1996.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import ConfigError, NumericalError

__all__ = ["prox_amplitude", "prox_intensity", "prox_log"]

_EPS = torch.finfo(torch.float64).eps


def _prepared(owner: str, v: Tensor, data: Tensor, looks: float, step: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """v, the data and c = step L in float64, broadcast against each other."""
    c = torch.as_tensor(step, dtype=torch.float64, device=v.device) * looks
    if not (looks > 0 and bool(((c > 0) & c.isfinite()).all())):
        raise ConfigError(f"{owner}: expected looks > 0 and step > 0, got looks {looks} and step {step}")
    return torch.broadcast_tensors(v.double(), data.double(), c)


def prox_log(v: Tensor, z: Tensor, *, looks: float, step: float | Tensor) -> Tensor:
    """argmin over u of step L (u + e^(z - u)) + (u - v)^2 / 2.

    Args:
        v: centre, a log-reflectivity, any shape.
        z: log-intensity, broadcasts against v.
        looks: L > 0.
        step: positive, a number or a tensor that broadcasts against v.

    Raises:
        ConfigError: looks or step is not positive.
    """
    centre, data, c = _prepared("prox_log", v, z, looks, step)
    with torch.no_grad():
        log_c, total = c.log(), data - centre
        a = log_c + c + total
        # log w: a - e^a + ... below, log(a - log a) above, and never off by more than 0.3
        low = a - torch.log1p(a.clamp_max(1.0).exp())
        above = a.clamp_min(1.0)
        d = torch.where(a > 1.0, (above - above.log()).log(), low) - log_c
        for _ in range(5):
            w = c * d.exp()
            f = d + c * torch.expm1(d) - total
            # Halley: f' = 1 + w, f'' = w
            d = d - 2.0 * f * (1.0 + w) / (2.0 * (1.0 + w).square() - f * w)
    w = c * d.exp()
    d = d - (d + c * torch.expm1(d) - (data - centre)) / (1.0 + w)
    # each form where it does not cancel
    u = torch.where(d > 0.0, data - d, centre + c * torch.expm1(d.clamp_max(0.0)))
    return u.to(v.dtype)


def prox_intensity(v: Tensor, intensity: Tensor, *, looks: float, step: float | Tensor) -> Tensor:
    """argmin over R > 0 of step L (log R + I / R) + (R - v)^2 / 2.

    Args:
        v: centre, a reflectivity of any sign, any shape.
        intensity: I >= 0, broadcasts against v; where it is 0 the objective falls without bound towards R = 0, and R is 0.
        looks: L > 0.
        step: positive, a number or a tensor that broadcasts against v, in squared units of v.

    Raises:
        ConfigError: looks or step is not positive.
        NumericalError: an intensity is negative.
    """
    centre, data, c = _prepared("prox_intensity", v, intensity, looks, step)
    inside, data = _positive("prox_intensity", data)

    def stationarity(r: Tensor) -> tuple[Tensor, Tensor]:
        return r.square() * (r - centre) + c * (r - data), r * (3.0 * r - 2.0 * centre) + c

    def objective(r: Tensor) -> Tensor:
        return c * (r.log() + data / r) + r * (0.5 * r - centre)

    with torch.no_grad():
        # each term that is not negative gives a bound: at b none exceeds c I
        cube = (c * data).pow(1.0 / 3.0)
        below = (c * data / (-centre).clamp_min(0.0)).sqrt().nan_to_num(nan=math.inf, posinf=math.inf)
        start = _bounds(centre, data, cube, below)
        r = _minimum(stationarity, objective, start, (centre / 3.0).clamp_min(0.0))
    return torch.where(inside, _differentiable(r, stationarity), 0.0).to(v.dtype)


def prox_amplitude(v: Tensor, amplitude: Tensor, *, looks: float, step: float | Tensor) -> Tensor:
    """argmin over A > 0 of step L (2 log A + a^2 / A^2) + (A - v)^2 / 2, with A the root of the reflectivity.

    Args:
        v: centre, an amplitude of any sign, any shape.
        amplitude: a >= 0, broadcasts against v; where it is 0 the objective falls without bound towards A = 0, and A is 0.
        looks: L > 0.
        step: positive, a number or a tensor that broadcasts against v, in squared units of v.

    Raises:
        ConfigError: looks or step is not positive.
        NumericalError: an amplitude is negative.
    """
    centre, data, c = _prepared("prox_amplitude", v, amplitude, looks, step)
    inside, data = _positive("prox_amplitude", data)

    def stationarity(a: Tensor) -> tuple[Tensor, Tensor]:
        ratio = data / a
        value = a * (a - centre) + 2.0 * c * (1.0 - ratio) * (1.0 + ratio)
        return value, 2.0 * a - centre + 4.0 * c * ratio.square() / a

    def objective(a: Tensor) -> Tensor:
        return c * (2.0 * a.log() + (data / a).square()) + a * (0.5 * a - centre)

    with torch.no_grad():
        square = (2.0 * c).sqrt() * data
        below = (square.square() / (-centre).clamp_min(0.0)).pow(1.0 / 3.0).nan_to_num(nan=math.inf, posinf=math.inf)
        start = _bounds(centre, data, square.sqrt(), below)
        a = _minimum(stationarity, objective, start, (3.0**0.5 * square).sqrt())
    return torch.where(inside, _differentiable(a, stationarity), 0.0).to(v.dtype)


def _positive(owner: str, data: Tensor) -> tuple[Tensor, Tensor]:
    """Where the data are positive, and the data with 1 elsewhere."""
    if bool((data < 0).any()):
        raise NumericalError(f"{owner}: expected data that are not negative, got {float(data.min()):.3g}")
    inside = data > 0
    return inside, torch.where(inside, data, 1.0)


def _bounds(centre: Tensor, data: Tensor, root: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of all positive roots, within a constant factor of the smallest and the largest.

    `root` solves the equation of the highest power against the data, `below` that of the power of -v where v < 0. All roots
    are between v and the data where v > 0.
    """
    positive = centre.clamp_min(0.0)
    least = torch.minimum(torch.minimum(data, root), below) / 3.0
    low = torch.maximum(least, torch.minimum(positive, data))
    high = torch.minimum(torch.minimum(torch.maximum(positive, data), positive + root), below)
    return low, torch.maximum(low, high)


def _newton(x: Tensor, stationarity: Callable[[Tensor], tuple[Tensor, Tensor]], otherwise: Tensor) -> Tensor:
    """The next iterate, or `otherwise` where the function does not rise."""
    f, slope = stationarity(x)
    return torch.where(slope > 0, x - f / slope, otherwise)


def _minimum(
    stationarity: Callable[[Tensor], tuple[Tensor, Tensor]],
    objective: Callable[[Tensor], Tensor],  # without v^2 / 2, which could hide the rest behind rounding
    bounds: tuple[Tensor, Tensor],
    inflection: Tensor,
) -> Tensor:
    """The better of the smallest root, if it is below the inflection, and the largest, if it is above."""
    # an iterate that leaves its part has no root there, and stays on the border, which the other root betters
    left, right = torch.minimum(bounds[0], inflection), torch.maximum(bounds[1], inflection)
    for _ in range(100):
        rise, fall = _newton(left, stationarity, inflection), _newton(right, stationarity, inflection)
        # both go one way until rounding turns them
        rise, fall = torch.minimum(torch.maximum(rise, left), inflection), torch.maximum(torch.minimum(fall, right), inflection)
        moved = bool((rise - left > 4.0 * _EPS * left).any() or (right - fall > 4.0 * _EPS * right).any())
        left, right = rise, fall
        if not moved:
            break
    values = [torch.where(x > 0, objective(x), math.inf).nan_to_num(nan=math.inf, posinf=math.inf) for x in (left, right)]
    return torch.where(values[0] < values[1], left, right)


def _differentiable(root: Tensor, stationarity: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The root with the derivative of the implicit function, from one more step of Newton."""
    f, slope = stationarity(root)
    single = slope > 0
    return root - torch.where(single, f / torch.where(single, slope, 1.0).detach(), 0.0)
