"""What the receiver of a radar records of chirps, and how it becomes a phase history.

The pulse exp(2 pi j (f_0 t + K t^2 / 2)), |t| <= T / 2, of bandwidth B = K T comes back from a point with the delay 2 R / c.
With t' = t - 2 R_p / c, the time after the reference range, and d = 2 dR / c, dR = R - R_p, the receiver has

    raw         e(t') = exp(-2 pi j f_0 d) exp(j pi K (t' - d)^2) rect((t' - d) / T)               (f_0 taken off)
    deramped    e(t') exp(-j pi K t'^2) = exp(-2 pi j (f_0 + K t') d) exp(j pi K d^2) rect((t' - d) / T)

The first factor of the deramped echo is `PhaseHistory` with the sign -1 at f = f_0 + K t'; exp(j pi K d^2) is the residual
video phase. The beat has the frequency f_t = -K d, hence that phase is pi f_t^2 / K, and exp(-j pi f_t^2 / K) takes it off for
all ranges at once (deskew). That filter also has the delay -d, and brings all echoes to the same time |t'| <= T / 2. What it
leaves is the ripple of a sweep that ends, 1 / (2 pi sqrt(K) x) of a point's amplitude at the time x from an end, and far less
from x = F / 2 K on, F the sampling rate.

    e_n = (1 / N) sum_k exp(2 pi j (k - k0) (n - n0) / N) C_k y_k,      C_k = sum_n c_n exp(-2 pi j (k - k0) (n - n0) / N)

of N samples at the rate F is the convolution, periodic with N / F, of the chirp c_n with the range profile of a phase history
y_k at f_0 + (k - k0) F / N, k0 = n0 = N // 2. Its adjoint is the matched filter: conj(C) in frequency. The platform is taken to
stand still while a pulse is out.

References: Carrara, Goodman, Majewski, Spotlight synthetic aperture radar: signal processing algorithms, 1995, chapter 2 and
appendix C.1 (deskew). Cumming, Wong, Digital processing of synthetic aperture radar data, 2005, chapter 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.operator import LinearOperator
from ..core.spectrum import Spectrum, unchanged
from .constants import Constants
from .sar_cells import SPEED_OF_LIGHT

__all__ = ["ChirpConvolution", "VideoPhase", "chirp", "chirp_frequencies", "deramp", "deskew", "echoes", "range_compress"]


def chirp(times: Tensor, *, rate: float, duration: float, frequency: float = 0.0) -> Tensor:
    """exp(2 pi j (f t + K t^2 / 2)) for |t| <= T / 2, else 0; complex, of the shape of the times.

    Args:
        times: s, float64. rate: K, Hz/s, of either sign. duration: T, s. frequency: at t = 0, Hz.
    """
    _positive("chirp", rate=abs(rate), duration=duration)
    cycles = times * (frequency + 0.5 * rate * times)
    turn = 2.0 * math.pi * (cycles - cycles.round())
    return torch.polar((times.abs() <= 0.5 * duration).to(turn), turn)


def echoes(ranges: Tensor, reflectivity: Tensor, times: Tensor, *, frequency: float, rate: float, duration: float) -> Tensor:
    """Raw echoes of points at baseband, sum_i g_i e_i(t'), (P, n).

    Args:
        ranges: dR of each point at each pulse, (P, N), m, float64. reflectivity: (N,), complex.
        times: t', after the delay of the reference range, (n,), s. frequency: f_0, Hz. rate: K, Hz/s. duration: T, s.
    """
    if ranges.ndim != 2 or reflectivity.shape != ranges.shape[1:] or times.ndim != 1:
        found = f"{tuple(ranges.shape)}, {tuple(reflectivity.shape)} and {tuple(times.shape)}"
        raise ShapeError(f"echoes: expected ranges (P, N), reflectivity (N,) and times (n,), got {found}")
    delay = (2.0 / SPEED_OF_LIGHT) * ranges
    cycles = -frequency * delay
    carrier = torch.polar(torch.ones_like(delay), 2.0 * math.pi * (cycles - cycles.round())) * reflectivity
    out = carrier.new_zeros(len(ranges), len(times))
    for d, value in zip(delay.unbind(1), carrier.unbind(1), strict=True):
        out += value[:, None] * chirp(times - d[:, None], rate=rate, duration=duration)
    return out


def deramp(raw: Tensor, times: Tensor, *, rate: float) -> Tensor:
    """Raw echoes (..., n) mixed with a long chirp from the reference range, e(t') exp(-j pi K t'^2)."""
    span = 2.0 * float(times.abs().max()) + 1.0 / abs(rate) ** 0.5
    return raw * chirp(times, rate=rate, duration=span).conj().to(raw)


def deskew(signal: Tensor, *, rate: float, sample_rate: float) -> Tensor:
    """Deramped echoes (..., n) without the residual video phase, and brought to the same time; `VideoPhase` undone.

    The filter is periodic with n samples: let the record reach max |d| beyond T / 2 on both sides.

    Args:
        rate: K, Hz/s. sample_rate: F, Hz, above the spread of the beats, K (max d - min d).
    """
    return _filtered(signal, _video(signal.shape[-1], rate, sample_rate).conj())


def chirp_frequencies(samples: int, *, frequency: float, step: float) -> Tensor:
    """f_0 + (k - k0) step, (N,), Hz: of `ChirpConvolution`, step = F / N, and of N deramped samples, step = K / F."""
    return frequency + step * (torch.arange(samples, dtype=torch.float64) - samples // 2)


class VideoPhase(LinearOperator):
    """The residual video phase of deramped echoes; unitary, its adjoint and inverse is `deskew`.

    Args:
        pulses, samples: P, n. rate: K, Hz/s, of either sign. sample_rate: F, Hz.

    Shapes: phase history at f_0 + K t' (B, 1, P, n) complex -> deramped echoes (B, 1, P, n) complex.
    """

    unitary = True

    def __init__(self, pulses: int, samples: int, *, rate: float, sample_rate: float) -> None:
        _positive("VideoPhase", rate=abs(rate), sample_rate=sample_rate)
        super().__init__((1, pulses, samples), (1, pulses, samples), in_complex=True, out_complex=True)
        self.rate, self.sample_rate = rate, sample_rate

    def forward(self, x: Tensor) -> Tensor:
        return _filtered(x, _video(self.in_shape[2], self.rate, self.sample_rate))

    def adjoint(self, y: Tensor) -> Tensor:
        return deskew(y, rate=self.rate, sample_rate=self.sample_rate)

    def normal(self, x: Tensor) -> Tensor:
        return x.clone()

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        return b / (1.0 + torch.as_tensor(rho).reshape(-1, 1, 1, 1))

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)


class ChirpConvolution(LinearOperator):
    """Raw echoes of chirps, of the phase history at f_0 + (k - k0) F / N: `ChirpConvolution(...) @ PhaseHistory(...)`.

    Raw echoes are periodic with N / F here: the swath's delays and the pulse have to fit into it. The model is of the chirp as
    it is sampled; beyond F its edges fold (a few per cent of the norm at F = 1.2 B).

    Args:
        pulses: P. samples: N of each pulse. sample_rate: F, Hz, at least B. bandwidth: B, Hz. duration: T, s, of the pulse.

    Shapes: phase history of sign -1, (B, 1, P, N) complex -> raw echoes (B, 1, P, N) complex, at t' = (n - N // 2) / F.

    Raises:
        ConfigError: the pulse is longer than the record, or its band wider than the sampling rate.
    """

    def __init__(self, pulses: int, samples: int, *, sample_rate: float, bandwidth: float, duration: float) -> None:
        _positive("ChirpConvolution", sample_rate=sample_rate, bandwidth=bandwidth, duration=duration)
        if bandwidth > sample_rate or duration > samples / sample_rate:
            raise ConfigError(
                f"ChirpConvolution: expected a bandwidth within the sampling rate {sample_rate:g} Hz and a pulse within the "
                f"record of {samples / sample_rate:g} s, got {bandwidth:g} Hz and {duration:g} s"
            )
        super().__init__((1, pulses, samples), (1, pulses, samples), in_complex=True, out_complex=True)
        self.sample_rate, self.bandwidth = sample_rate, bandwidth
        times = (torch.arange(samples, dtype=torch.float64) - samples // 2) / sample_rate
        self.constants = Constants(_spectrum, chirp(times, rate=bandwidth / duration, duration=duration))

    def forward(self, x: Tensor) -> Tensor:
        return _to_times(x * self.constants(x)[0])

    def adjoint(self, y: Tensor) -> Tensor:
        # the inverse transform has 1 / N
        return _to_frequencies(y) * (self.constants(y)[0].conj() / y.shape[-1])

    def normal(self, x: Tensor) -> Tensor:
        return x * self._power(x)

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        return b / (self._power(b) + torch.as_tensor(rho).reshape(-1, 1, 1, 1))

    def pinv(self, y: Tensor) -> Tensor:
        # C falls outside of the band; it has zeros only where the pulse hardly sweeps
        (spectrum,) = self.constants(y)
        held = spectrum.abs() > 10.0 * torch.finfo(y.real.dtype).eps * spectrum.abs().max()
        return _to_frequencies(y) * held / torch.where(held, spectrum, 1.0)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        values = self._power(torch.empty(self.in_shape, dtype=torch.float64) if like is None else like).sqrt()
        cut = 10.0 * torch.finfo(values.dtype).eps * values.max()
        return Spectrum(torch.where(values > cut, values, 0.0).expand(self.in_shape), unchanged, unchanged)

    def _power(self, like: Tensor) -> Tensor:
        return self.constants(like)[0].abs().square() / self.in_shape[-1]


def range_compress(operator: ChirpConvolution, raw: Tensor) -> Tensor:
    """Range profiles of raw echoes (B, 1, P, N) by the matched filter, at the same times; a point of 1 has the peak 1.

    Its 3-dB width is .886 / B, its first side lobes lie 13.3 dB below the peak.
    """
    energy = operator.constants(raw)[0].abs().square().sum() / raw.shape[-1]
    return _to_times(operator.adjoint(raw)) * (raw.shape[-1] / energy)


def _video(samples: int, rate: float, sample_rate: float) -> Tensor:
    """exp(j pi f_t^2 / K), (n,), in the order of the FFT."""
    beat = torch.fft.fftfreq(samples, 1.0 / sample_rate, dtype=torch.float64)
    turn = math.pi / rate * beat.square()
    return torch.polar(torch.ones_like(turn), turn)


def _filtered(t: Tensor, response: Tensor) -> Tensor:
    return torch.fft.ifft(torch.fft.fft(t) * response.to(t))


def _spectrum(pulse: Tensor) -> tuple[Tensor]:
    return (_to_frequencies(pulse),)


def _to_times(t: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(t, -1)), -1)


def _to_frequencies(t: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(t, -1)), -1)


def _positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ConfigError(f"{owner}: expected {name} above 0, got {value}")
