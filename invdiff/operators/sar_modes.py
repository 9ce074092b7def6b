"""Approximate modes of the radar model: plane waves, and a rectangle for the polar sector, with a screen of phases.

Both take the wave for plane, dR_p(r) ~ o_p - u_p . r, with o_p = mean_a |q_pa| - R_p and u_p = mean_a q_pa / |q_pa|. Then, with
k_pk = (2 f_pk / c) (u_p's x and y), in cycles per m, the phase history of a plane scene is its Fourier transform:

    y[p, k] = e^{j phi_p} m[p, k] e^{s 4 pi j f_pk o_p / c} sum_r S(r) g(r) exp(-s 2 pi j k_pk . r)

    PlaneWave         the transform at the points k_pk of the polar sector, by a non-uniform FFT
    FourierAperture   the sector taken for a rectangle, k ~ k_0 + (p - p0) d_p e_p + (k - k0) d_k e_k, by an FFT

What is left of the wave's curvature, 2 pi |r|^2 / (lambda R) rad across the line of sight, hardly changes over a short
aperture; its mean is the screen S(r) = exp(s 4 pi j f_c mean_p(dR_p - dR_p of the mode)(r) / c), f_c the middle frequency.
Without it, S = 1, a mode is usable up to |r| = sqrt(lambda R / 8), where the curvature reaches pi / 4.

References: Jakowatz, Wahl, Eichel, Ghiglia, Thompson, Spotlight-mode synthetic aperture radar, 1996.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.linalg import expand
from ..core.spectrum import Spectrum, given
from .constants import Constants, as_given
from .nufft import NUFFT
from .sar import PhaseHistory, Radar, check_geometry, spacing
from .sar_cells import SPEED_OF_LIGHT, differential_range
from .sar_geometry import ground

__all__ = ["FourierAperture", "PlaneWave", "fourier_aperture", "plane_wave"]


class Geometry(NamedTuple):
    """What the plane wave sees: (P, A, 3) m, (P, K) Hz, (P,) m, (P, K) boolean or None."""

    positions: Tensor
    frequencies: Tensor
    reference: Tensor
    mask: Tensor | None

    @property
    def looks(self) -> Tensor:
        """u_p, (P, 3)."""
        return (self.positions / self.positions.norm(dim=-1, keepdim=True)).mean(1)

    @property
    def offsets(self) -> Tensor:
        """o_p, (P,), m."""
        return self.positions.norm(dim=-1).mean(1) - self.reference

    @property
    def centre(self) -> float:
        """f_c, Hz."""
        return float(self.frequencies.mean())

    @property
    def waves(self) -> Tensor:
        """k_pk, (P, K, 2), x and y, cycles per m."""
        return (2.0 / SPEED_OF_LIGHT) * self.frequencies[..., None] * self.looks[:, None, :2]

    def carrier(self, sign: int) -> Tensor:
        """e^{s 4 pi j f o / c}, (P, K)."""
        return turned(sign * (2.0 / SPEED_OF_LIGHT) * self.frequencies * self.offsets[:, None])

    def screen(self, points: Tensor, slopes: Tensor, sign: int) -> Tensor:
        """S, (H, W), for a mode with dR_p = o_p - slopes_p . r at the middle frequency, slopes (P, 3)."""
        r, total = points.reshape(-1, 3).mT.contiguous(), torch.zeros(points[..., 0].numel(), dtype=torch.float64)
        for q, reference, slope, offset in zip(self.positions, self.reference, slopes, self.offsets, strict=True):
            total += differential_range(q[None], reference[None], r)[0] - offset + slope @ r
        return turned(sign * 2.0 * self.centre / SPEED_OF_LIGHT * total / len(slopes)).reshape(points.shape[:2])


class PlaneWave(Radar):
    """Phase history of a plane scene under plane waves, with or without the screen of the mean curvature.

    Relative errors against the exact model, X band, R = 10.16 km, an arc of 1 degree (measured): .20 without and 3.7e-3 with
    the screen in a scene of 8 m, 1.5 and .052 in one of 30 m, 1.4 and .14 in one of 50 m. Without it use the mode where
    |r| < sqrt(lambda R / 8), 6.3 m there.

    Args:
        positions: phase centres, (P, 3) or (P, A, 3), m, float64, as for `PhaseHistory`.
        frequencies: (K,) or (P, K), Hz; any spacing.
        size: H, W of the scene. step: between rows and between columns, m: its points are `ground(size, step)`.
        sign: s, -1 or 1.
        reference: R_p, (P,), m; None for the mean distance of the phase centres from the origin.
        phases: phi_p, (P,), rad; None for none.
        mask: (P,), (P, K) or (1, K), boolean, True where something is measured; None for everywhere.
        screen: whether S is applied.
        accuracy: of the transform, as in `NUFFT`.

    Shapes: reflectivity (B, 1, H, W) complex -> phase history (B, 1, P, K) complex, zero where not measured.

    Raises:
        ShapeError: shapes disagree. ConfigError: the sign, the step or the accuracy.
    """

    def __init__(
        self,
        positions: Tensor,
        frequencies: Tensor,
        size: tuple[int, int],
        step: float | tuple[float, float],
        *,
        sign: Literal[-1, 1],
        reference: Tensor | None = None,
        phases: Tensor | None = None,
        mask: Tensor | None = None,
        screen: bool = True,
        accuracy: float = 1e-6,
    ) -> None:
        seen = _geometry("PlaneWave", positions, frequencies, sign, reference, phases, mask)
        super().__init__((1, *size), (1, *seen.frequencies.shape), in_complex=True, out_complex=True)
        points, self.sign = ground((size[0], size[1]), step), sign
        dy, dx = _steps(step)
        # in cycles per pixel, rows first; whole cycles are nothing on a grid, but turn its middle where that is between points
        waves = sign * (seen.waves * torch.tensor([dx, dy], dtype=torch.float64)).flip(-1)
        middle = torch.tensor([n // 2 - (n - 1) / 2 for n in size], dtype=torch.float64)
        self.transform = NUFFT(waves.flatten(0, 1), size, accuracy=accuracy, norm="none")
        factor = seen.carrier(sign) * turned(-waves @ middle) * _phasors(phases)
        shade = seen.screen(points, seen.looks, sign) if screen else torch.ones(size, dtype=torch.complex128)
        self.constants = Constants(as_given, factor, shade)
        _describe(self, seen, points, positions)

    def forward(self, x: Tensor) -> Tensor:
        factor, shade = self.constants(x)
        return _masked(self, self.transform(x * shade).unflatten(-1, self.out_shape[1:]) * factor)

    def adjoint(self, y: Tensor) -> Tensor:
        factor, shade = self.constants(y)
        return self.transform.adjoint((_masked(self, y) * factor.conj()).flatten(-2)) * shade.conj()


class FourierAperture(Radar):
    """Phase history of a plane scene as a part of its discrete Fourier transform, A A^H = H W m.

    The rectangle is that of the middle of the sector: e_k the mean direction of the look on the ground, e_p across it in the
    direction of the track. The transform sets the grid, rows along e_p, columns along e_k, which covers the unambiguous extents
    1 / d_p x 1 / d_k around the origin: `points`, (H, W, 3), in steps of 1 / (H d_p) and 1 / (W d_k), `spacing`. `solve` and
    `pinv` are closed forms.

    Usable where a point moves through less than a cell of resolution: at (x, y) along and across the look the phases are wrong
    by up to 2 pi |y| (D k / 2) (b / 2) + 2 pi |x| k (D^2 / 8), D the angle of the arc, k = 2 f_c cos e / c, b the relative
    bandwidth, and by what `PlaneWave` does not model.

    Args:
        positions, sign, reference, phases, mask, screen: as for `PlaneWave`; the track an arc of uniform speed.
        frequencies: (K,), Hz, equally spaced.
        size: H >= P, W >= K.

    Shapes: reflectivity (B, 1, H, W) complex -> phase history (B, 1, P, K) complex, zero where not measured.

    Raises:
        ShapeError: shapes disagree. ConfigError: the sign, frequencies that are not equally spaced, fewer points than samples,
            or a track that does not sweep.
    """

    def __init__(
        self,
        positions: Tensor,
        frequencies: Tensor,
        size: tuple[int, int],
        *,
        sign: Literal[-1, 1],
        reference: Tensor | None = None,
        phases: Tensor | None = None,
        mask: Tensor | None = None,
        screen: bool = True,
    ) -> None:
        seen = _geometry("FourierAperture", positions, frequencies, sign, reference, phases, mask)
        pulses, k = seen.frequencies.shape
        if size[0] < pulses or size[1] < k or pulses < 2 or frequencies.ndim != 1:
            raise ConfigError(
                f"FourierAperture: expected two pulses or more, frequencies (K,) and a size of at least {pulses} x {k}, the "
                f"samples, got {tuple(frequencies.shape)} and {tuple(size)}"
            )
        super().__init__((1, *size), (1, pulses, k), in_complex=True, out_complex=True)
        self.sign = sign
        looks = seen.looks[:, :2]
        along = looks.mean(0) / looks.mean(0).norm()
        across = torch.stack((-along[1], along[0]))
        wavenumber = 2.0 * seen.centre / SPEED_OF_LIGHT
        # by least squares, so that what is uneven in the track does not set the step
        order = torch.arange(pulses, dtype=torch.float64) - (pulses - 1) / 2
        sweep = float(wavenumber * (looks @ across) @ order / (order @ order))
        if not abs(sweep) > 0.0:
            raise ConfigError("FourierAperture: expected a track that sweeps an angle, got none")
        across, sweep = (-across, -sweep) if sweep < 0.0 else (across, sweep)
        df = float(spacing("FourierAperture", frequencies)[1])
        step = 2.0 * df / SPEED_OF_LIGHT * float((looks @ along).mean())
        self.spacing = (1.0 / (size[0] * sweep), 1.0 / (size[1] * step))
        rows, columns = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
        flat = rows[:, None, None] * self.spacing[0] * across + columns[:, None] * self.spacing[1] * along
        points = torch.cat((flat, torch.zeros(*size, 1, dtype=torch.float64)), -1)
        # the mean wave vector at f_c has no part across
        middle = wavenumber * float((looks @ along).mean()) * self.spacing[1] * columns
        last, end = (torch.arange(n, dtype=torch.float64) for n in (pulses, k))
        # (k - k0) (n - n0) / N = k n / N - k0 (n - n0) / N - k n0 / N
        inside = middle - (k - 1) / 2 * columns / size[1] - ((pulses - 1) / 2 * rows / size[0])[:, None]
        outside = -(last * (size[0] - 1) / 2 / size[0])[:, None] - end * (size[1] - 1) / 2 / size[1]
        shade = turned(-sign * inside)
        if screen:
            slopes = torch.zeros(pulses, 3, dtype=torch.float64)
            slopes[:, :2] = (looks @ along).mean() * along + (order * sweep / wavenumber)[:, None] * across
            shade = shade * seen.screen(points, slopes, sign)
        self.constants = Constants(as_given, seen.carrier(sign) * turned(-sign * outside) * _phasors(phases), shade)
        _describe(self, seen, points, positions)

    def forward(self, x: Tensor) -> Tensor:
        factor, shade = self.constants(x)
        return _masked(self, fft_pair(x * shade, -self.sign)[..., : factor.shape[0], : factor.shape[1]] * factor)

    def adjoint(self, y: Tensor) -> Tensor:
        factor, shade = self.constants(y)
        (height, width), (pulses, k) = self.in_shape[1:], self.out_shape[1:]
        part = torch.nn.functional.pad(_masked(self, y) * factor.conj(), (0, width - k, 0, height - pulses))
        return fft_pair(part, self.sign) * shade.conj()

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        # (A^H A + rho)^-1 = (1 - A^H (H W + rho)^-1 A) / rho, as A A^H = H W where something is measured
        weight = expand(torch.as_tensor(rho), b)
        return (b - self.normal(b) / (weight + self.in_shape[1] * self.in_shape[2])) / weight

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) / (self.in_shape[1] * self.in_shape[2])

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        _, shade = self.constants(given(like))
        root = math.sqrt(self.in_shape[1] * self.in_shape[2])
        values = shade.real.new_zeros(self.in_shape)
        seen = torch.ones(self.out_shape) if self.measured is None else self.measured.expand(self.out_shape)
        values[:, : self.out_shape[1], : self.out_shape[2]] = root * seen.to(values)
        return Spectrum(values, partial(self._modes, shade=shade / root), partial(self._image, shade=shade.conj() / root))

    def _modes(self, x: Tensor, shade: Tensor) -> Tensor:
        return fft_pair(x * shade, -self.sign)

    def _image(self, c: Tensor, shade: Tensor) -> Tensor:
        return fft_pair(c, self.sign) * shade


def plane_wave(like: PhaseHistory, *, screen: bool = True, accuracy: float = 1e-6) -> PlaneWave:
    """The plane-wave mode of a phase history, with its geometry, sign, phases and mask.

    Args:
        like: of a plane scene, `ground(size, step)`.

    Raises:
        ConfigError: its points are no such grid.
    """
    seen, step = geometry_of("plane_wave", like), grid_steps("plane_wave", like.points)
    options = {"reference": seen.reference, "phases": like.phases.detach(), "mask": seen.mask}
    size, positions = (like.in_shape[1], like.in_shape[2]), like.positions.detach()
    return PlaneWave(positions, seen.frequencies, size, step, sign=like.sign, screen=screen, accuracy=accuracy, **options)


def fourier_aperture(like: PhaseHistory, size: tuple[int, int] | None = None, *, screen: bool = True) -> FourierAperture:
    """The 2-D FFT mode of a phase history, with its geometry, sign, phases and mask, on the grid that the transform sets.

    Args:
        size: H >= P, W >= K; None for P, K, one point for each cell of resolution.

    Raises:
        ConfigError: frequencies that differ by pulse, or as for `FourierAperture`.
    """
    seen = geometry_of("fourier_aperture", like)
    if not torch.equal(seen.frequencies, seen.frequencies[:1].expand_as(seen.frequencies)):
        raise ConfigError("fourier_aperture: expected the same frequencies for all pulses: use plane_wave")
    options = {"reference": seen.reference, "phases": like.phases.detach(), "mask": seen.mask}
    size = (like.out_shape[1], like.out_shape[2]) if size is None else (size[0], size[1])
    return FourierAperture(like.positions.detach(), seen.frequencies[0], size, sign=like.sign, screen=screen, **options)


def geometry_of(owner: str, operator: PhaseHistory) -> Geometry:
    """The geometry that a phase history has now."""
    q = operator.positions.detach().cpu()
    if q.dtype != torch.float64:
        raise ShapeError(f"{owner}: expected positions to stay float64, got {str(q.dtype)[6:]}")
    q = q.reshape(len(q), -1, 3)
    mask = None if operator.measured is None else operator.measured[0].cpu()
    return Geometry(q, operator.frequencies.cpu(), operator.reference.cpu(), mask)


def grid_steps(owner: str, points: Tensor) -> tuple[float, float]:
    """Steps of rows and columns, m, of a scene that is `ground(size, step)`."""
    r = points.cpu()
    dy = float(r[1, 0, 1] - r[0, 0, 1]) if len(r) > 1 else 0.0
    dx = float(r[0, 1, 0] - r[0, 0, 0]) if r.shape[1] > 1 else 0.0
    steps = (dy or dx or 1.0, dx or dy or 1.0)
    # a micrometre turns the phase by less than 1e-3
    if min(steps) <= 0.0 or float((ground((len(r), r.shape[1]), steps) - r).abs().max()) > 1e-6:
        raise ConfigError(f"{owner}: expected a plane scene, points ground(size, step) about the origin, got other points")
    return steps


def turned(cycles: Tensor) -> Tensor:
    """exp(2 pi j cycles); whole cycles are taken off first, which are many."""
    phase = (cycles - cycles.round()) * (2.0 * math.pi)
    return torch.polar(torch.ones_like(phase), phase)


def fft_pair(t: Tensor, direction: int) -> Tensor:
    """sum_mn t[m, n] exp(direction 2 pi j (m p / H + n q / W)) over the last two dimensions."""
    return torch.fft.ifft2(t, norm="forward") if direction > 0 else torch.fft.fft2(t)


def _geometry(
    owner: str,
    positions: Tensor,
    frequencies: Tensor,
    sign: int,
    reference: Tensor | None,
    phases: Tensor | None,
    mask: Tensor | None,
) -> Geometry:
    fixed, measured = check_geometry(owner, positions, frequencies, sign, reference, phases, mask)
    q = positions.detach().reshape(len(positions), -1, 3)
    return Geometry(q, frequencies.detach().double().expand(len(q), -1), fixed, measured)


def _describe(operator: Radar, seen: Geometry, points: Tensor, positions: Tensor) -> None:
    """What image formation and autofocus read."""
    operator.measured = None if seen.mask is None else seen.mask[None]
    for name, value in (("positions", positions), ("frequencies", seen.frequencies), ("points", points)):
        operator.register_buffer(name, value.detach().clone(), persistent=False)


def _masked(operator: Radar, y: Tensor) -> Tensor:
    return y if operator.measured is None else y * operator.measured


def _phasors(phases: Tensor | None) -> Tensor:
    if phases is None:
        return torch.ones(1, 1, dtype=torch.complex128)
    turn = phases.detach().double()[:, None]
    return torch.polar(torch.ones_like(turn), turn)


def _steps(step: float | tuple[float, float]) -> tuple[float, float]:
    return (float(step), float(step)) if isinstance(step, float | int) else (float(step[0]), float(step[1]))
