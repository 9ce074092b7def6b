"""Errors of phase of the pulses, found from the sharpness of the image: the classical autofocus.

    y[p, k] = e^{j phi_p} (A g)[p, k],      focused data  y e^{-j phi}

Phase gradient. The history of a bright point r in the pulses, its range and its place across centred by the model itself,

    h_r[p] = sum_k w_pk conj(A e_r)[p, k] y[p, k] = |a|^2 g(r) e^{j phi_p} + what lies beside it,

is shifted to its peak across and low-passed over the pulses, which is the window around the point in the image, and the
gradient of the phase is

    phi_{p+1} - phi_p = arg sum_r conj(h_r[p]) h_r[p + 1],

of maximum likelihood for equal clutter. One point for each cell of range is taken, the brightest. Gradients are added up, a
constant and a slope are taken off, which are a phase and a shift of the image, and the data turned; and again with a narrower
window, until the phases stay. Arcs below half a circle only, where pulses have a cross-range.

Minimum entropy. phi = argmin - sum_r p_r ln p_r - o ln(o / M), p = |x|^2 / E, o = 1 - sum_r p_r, x the image of y e^{-j phi},
by a quasi-Newton method with the gradient by the exact transpose of the image formation. E is the energy of an image of all of
the unambiguous extents, which phases do not change, and o what lies off the image, taken as spread over the M other cells:
without it the least entropy is that of an image which all but one point has left.

References: Wahl, Eichel, Ghiglia, Jakowatz, Phase gradient autofocus: a robust tool for high resolution SAR phase correction,
IEEE TAES 30, 1994. Kragh, Monotonic iterative algorithm for minimum-entropy autofocus, ASAP workshop, 2006.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core import ConfigError, NumericalError, ShapeError
from ..operators.sar import Radar
from ..operators.sar_cells import SPEED_OF_LIGHT
from ..operators.sar_geometry import form_image, image_weights, resolution, taylor

__all__ = ["minimum_entropy", "phase_gradient", "without_trend"]


def phase_gradient(
    operator: Radar, y: Tensor, *, targets: int = 64, iterations: int = 12, window: tuple[float, float] = (1.0, 0.1)
) -> Tensor:
    """Errors of phase of one phase history by the phase-gradient algorithm, (P,), rad, without constant and slope.

    It needs bright points in several cells of range. Each iteration costs one adjoint for the image, less than another one for
    the points (`Radar.histories`), and with the modes of `sar_modes` one forward call for each point instead.

    Args:
        operator: of the image, (1, H, W) -> (1, P, K), its pulses in the order of the track.
        y: (1, P, K), one measurement.
        targets: points at most, of those within 20 dB of the brightest.
        iterations: at most; it stops where the phases change by less than 1e-3 rad.
        window: first and last width about the points, as parts of all P cells across; six tenths of the last one each time. The
            first one limits how fast errors may vary over the pulses, and lets in what lies beside the points.

    Raises:
        ShapeError: y is no measurement of the operator. ConfigError: an argument is out of its range, or there are fewer than
            three pulses. NumericalError: y is 0 or not finite.
    """
    _check("phase_gradient", operator, y)
    if targets < 1 or iterations < 1 or not 0.0 < window[1] <= window[0] <= 1.0:
        raise ConfigError(
            "phase_gradient: expected targets and iterations >= 1, and windows 0 < last <= first <= 1, "
            f"got {targets}, {iterations} and {window}"
        )
    phases, part = torch.zeros(operator.out_shape[1], dtype=torch.float64, device=y.device), window[0]
    used, weights = _pulses(operator).to(y.device), taylor(y.shape[-1]).to(device=y.device, dtype=y.real.dtype)
    for _ in range(iterations):
        turned = y * _turn(-phases).to(y)
        histories = operator.histories(turned * weights, _brightest(operator, turned, targets))
        step = torch.zeros_like(phases)
        step[used] = _gradient(_windowed(histories, max(3, round(part * len(phases))))[:, used])
        step = _settled(step, operator)
        phases = phases + step
        if float(step.square().mean().sqrt()) < 1e-3:
            break
        part = max(0.6 * part, window[1])
    return _settled(phases, operator).to(y.real.dtype)


def minimum_entropy(operator: Radar, y: Tensor, *, start: Tensor | None = None, iterations: int = 60) -> Tensor:
    """Errors of phase of one phase history by the entropy of the image, (P,), rad, without constant and slope.

    The local minimum next to the start, which points, edges and shadows alike make. An iteration costs about one image and one
    forward call.

    Args:
        operator, y: as for `phase_gradient`; the image is that of `form_image`.
        start: (P,), rad, the phases of another method say; None for none.
        iterations: of L-BFGS, at most.

    Raises:
        ShapeError: y or start do not fit. ConfigError: iterations < 1, or fewer than three pulses or 2 x 2 pixels.
            NumericalError: y is 0 or not finite.
    """
    from scipy.optimize import minimize

    _check("minimum_entropy", operator, y)
    if start is not None and start.shape != (operator.out_shape[1],):
        raise ShapeError(f"minimum_entropy: expected start ({operator.out_shape[1]},), got {tuple(start.shape)}")
    if iterations < 1 or min(operator.in_shape[1:]) < 2:
        raise ConfigError(
            "minimum_entropy: expected iterations >= 1 and an image of 2 x 2 pixels or more, "
            f"got {iterations} and {operator.in_shape[1:]}"
        )
    pixels = y.real.new_tensor(operator.in_shape[1] * operator.in_shape[2])
    cells, energy = _whole(operator, y)
    outside = (cells - pixels).clamp_min(1.0).log()

    def value_and_gradient(at: Any) -> tuple[float, Any]:
        with torch.enable_grad():
            phases = torch.tensor(at, dtype=torch.float64, device=y.device, requires_grad=True)
            image = form_image(operator, (y * _turn(-phases).to(y))[None])
            # the derivative of p ln p at 0 is infinite
            power = (image.abs().square() / energy).clamp_min(1e-30)
            lost = (1.0 - power.sum()).clamp_min(1e-30)
            value = (torch.special.entr(power).sum() + torch.special.entr(lost) + lost * outside).double()
            (gradient,) = torch.autograd.grad(value, phases)
        return float(value.detach()), gradient.cpu().numpy()

    first = torch.zeros(operator.out_shape[1], dtype=torch.float64) if start is None else start.detach().cpu().double()
    options = {"maxiter": iterations, "maxcor": 20, "ftol": 1e-8, "gtol": 1e-7}
    search = minimize(value_and_gradient, first.numpy(), jac=True, method="L-BFGS-B", options=options)
    phases = torch.from_numpy(search.x).to(y.device)
    return _settled(phases, operator).to(y.real.dtype)


def without_trend(phases: Tensor, along: Tensor | None = None) -> Tensor:
    """Phases (P,), rad, modulo 2 pi, without the constant and the slope that explain most of them: about zero.

    First the slope a with the largest |sum_p exp(j (phi_p - a l_p))|, which jumps of 2 pi do not change, then the least squares
    of what is left in (-pi, pi].

    Args:
        along: place l of each pulse along the track, (P,); None for equal steps.
    """
    count, wide = len(phases), phases.detach().double()
    place = torch.linspace(-1.0, 1.0, count, dtype=torch.float64, device=wide.device) if along is None else along.to(wide)
    place = place - place.mean()
    reach = float(place.abs().max())
    if count < 3 or reach <= 0.0:
        return torch.zeros_like(phases)
    # up to a turn for two pulses, in eighths of the main lobe; then by closer looks
    slope, step = 0.0, math.pi / (8.0 * reach)
    offsets = torch.arange(-4 * count, 4 * count + 1, dtype=torch.float64, device=wide.device)
    fine = torch.arange(-32, 33, dtype=torch.float64, device=wide.device)
    for _ in range(4):
        trial = slope + step * offsets
        sums = [_phasors(wide - some[:, None] * place).sum(1) for some in trial.split(max(1, (1 << 20) // count))]
        slope = float(trial[torch.cat(sums).abs().argmax()])
        offsets, step = fine, step / 16.0
    turn = _phasors(wide - slope * place)
    left = (turn * turn.sum().conj()).angle()
    left = left - left.mean()
    return (left - (left * place).sum() / place.square().sum() * place).to(phases.dtype)


def _check(owner: str, operator: Radar, y: Tensor) -> None:
    if y.ndim != 3:
        raise ShapeError(f"{owner}: expected y of one measurement {operator.out_shape}, got {tuple(y.shape)}")
    operator.check(y[None], "y")
    if operator.out_shape[1] < 3:
        raise ConfigError(
            f"{owner}: expected three pulses or more, as fewer have no errors but constant and slope, got {y.shape[1]}"
        )
    energy = float((y if operator.measured is None else y * operator.measured).abs().sum())
    if not 0.0 < energy < math.inf:
        raise NumericalError(
            f"{owner}: expected a finite phase history with something measured in it, got one of absolute sum {energy}"
        )


def _phasors(phases: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(phases), phases)


def _turn(phases: Tensor) -> Tensor:
    return _phasors(phases)[:, None]


def _looks(operator: Radar) -> Tensor:
    q = operator.positions.detach().reshape(len(operator.positions), -1, 3).double()
    return (q / q.norm(dim=-1, keepdim=True)).mean(1)


def _track(operator: Radar) -> Tensor:
    """The place of each pulse in k-space across the look: a shift of the image has phases in proportion."""
    looks = _looks(operator)[:, :2]
    mean = looks.mean(0)
    across = looks @ torch.stack((-mean[1], mean[0]))
    return across / across.abs().max().clamp_min(1e-12)


def _pulses(operator: Radar) -> Tensor:
    """Indices of the pulses of which anything is measured."""
    return (
        torch.arange(operator.out_shape[1]) if operator.measured is None else operator.measured[0].any(-1).nonzero()[:, 0].cpu()
    )


def _settled(phases: Tensor, operator: Radar) -> Tensor:
    """Without the trend of the measured pulses; zero where nothing is measured."""
    used = _pulses(operator).to(phases.device)
    out = torch.zeros_like(phases)
    out[used] = without_trend(phases[used], _track(operator).to(phases.device)[used])
    return out


def _brightest(operator: Radar, y: Tensor, targets: int) -> Tensor:
    """Indices of the brightest pixel of each cell of range, within 20 dB of the brightest of all, (n,)."""
    image = form_image(operator, y[None])[0, 0].abs().flatten()
    f = operator.frequencies.double()
    bandwidth = float((f[..., -1] - f[..., 0]).mean()) * f.shape[-1] / (f.shape[-1] - 1)
    cell = (
        (operator.points.double().reshape(-1, 3) @ _looks(operator).mean(0) * (2.0 * bandwidth / SPEED_OF_LIGHT)).floor().long()
    )
    cell = (cell - cell.min()).to(image.device)
    peak = image.new_zeros(int(cell.max()) + 1).scatter_reduce(0, cell, image, "amax")
    bright = ((image == peak[cell]) & (image >= 0.1 * image.max())).nonzero()[:, 0]
    return bright[image[bright].argsort(descending=True)[:targets]]


def _whole(operator: Radar, y: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels that the unambiguous extents hold, and the energy of an image in all of them."""
    f, looks, r = operator.frequencies.double().cpu(), _looks(operator).cpu(), operator.points.double().cpu()
    # two antennas far from each other see along the mean of their looks, which is shorter than one
    cell = math.prod(resolution(looks, f[0])) / float(looks.norm(dim=-1).mean()) ** 2
    down, across = (r[1, 0] - r[0, 0])[:2], (r[0, 1] - r[0, 0])[:2]
    pixel = (down[0] * across[1] - down[1] * across[0]).abs()
    # Parseval: samples lie one by one in cells of k-space, which are the inverse of the extents
    spread = (y * image_weights(operator).to(device=y.device, dtype=y.real.dtype)).abs().square().sum()
    pixels = (math.prod(operator.out_shape) * cell / pixel).to(spread)
    return pixels, pixels * spread


def _windowed(histories: Tensor, width: int) -> Tensor:
    """Shifted to the peak across, to a sixteenth of a cell, and without what lies beyond `width` cells about it."""
    count = histories.shape[1]
    lag = torch.fft.fftfreq(16 * count, 1.0 / count, dtype=torch.float64, device=histories.device)
    # off its middle the window would cut the lobes of a point unevenly, by errors that grow from one iteration to the next
    peak = lag[torch.fft.fft(histories, 16 * count).abs().argmax(1)]
    place = torch.arange(count, dtype=torch.float64, device=histories.device) / count
    spectrum = torch.fft.fft(histories * _phasors(-2.0 * math.pi * peak[:, None] * place).to(histories))
    return torch.fft.ifft(spectrum * (lag[::16].abs() <= 0.5 * width))


def _gradient(histories: Tensor) -> Tensor:
    """Phases from the estimate of their gradient, (P,)."""
    step = (histories[:, :-1].conj() * histories[:, 1:]).sum(0).angle().double()
    return torch.cat((step.new_zeros(1), step.cumsum(0)))
