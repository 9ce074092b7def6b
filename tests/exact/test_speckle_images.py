"""What is estimated from images of speckle: the equivalent number of looks, and the spectrum that correlates it."""

import math

import pytest
import torch

from invdiff.core import ConfigError, DataError, ShapeError, Streams
from invdiff.core.speckle import Intensity, SingleLook, effective_looks
from invdiff.operators.speckle_whitening import SpeckleSpectrum, coherence, whiten_spectrum

F64 = torch.float64


def scene(n):
    """Two fields and a lake, an area with texture, and bright points in one of 1,000 pixels."""
    i = torch.arange(n, dtype=F64) / n
    y, x = torch.meshgrid(i, i, indexing="ij")
    fields = torch.where(x > 0.37, 4.0, 1.0) * torch.where((y - 0.5) ** 2 + (x - 0.6) ** 2 < 0.04, 0.2, 1.0)
    fields = fields * torch.where(y > 0.7, (0.8 * torch.sin(40.0 * x)).exp(), 1.0)
    return torch.where(torch.rand(n, n, generator=torch.Generator().manual_seed(0)) < 1e-3, 1000.0, fields)


@pytest.mark.parametrize("method", ["moments", "log"])
@pytest.mark.parametrize("looks", [1.0, 2.7, 10.0])
def test_equivalent_looks(method, looks):
    """Homogeneous: 512^2 pixels, 5 standard errors are 2 % for one look. A scene: the homogeneous blocks count."""
    speckle = Intensity(looks).sample(torch.ones(1, 512, 512, dtype=F64), Streams(4))[0]
    assert effective_looks(speckle, method=method) == pytest.approx(looks, rel=0.02)
    observed = speckle * scene(512)
    assert effective_looks(observed, method=method) == pytest.approx(looks, rel=0.1)
    everywhere = float(observed.mean() ** 2 / observed.var())
    assert everywhere < 0.1 * looks


def test_blocks_without_data_are_left_out():
    speckle = Intensity(4.0).sample(torch.ones(1, 256, 256), Streams(4))[0]
    speckle[:50] = 0.0
    assert effective_looks(speckle) == pytest.approx(4.0, rel=0.05)
    with pytest.raises(DataError, match="none of the blocks"):
        effective_looks(torch.ones(64, 64))
    with pytest.raises(ShapeError, match="at least 16 x 16"):
        effective_looks(torch.ones(64, 8))
    with pytest.raises(ConfigError, match="method"):
        effective_looks(speckle, method="mode")


def weighting(n, band, shift, edge):
    """Amplitudes over an FFT of n bins: a raised cosine (1 at the middle, `edge` at the ends) over a part of the spectrum."""
    x = (torch.arange(n, dtype=F64) - n // 2) / (band * n)
    middle = (1 + edge) / 2
    return torch.fft.ifftshift((middle + (1 - middle) * torch.cos(2 * math.pi * x)) * (x.abs() <= 0.5)).roll(shift)


def coloured(image, band, edge):
    """The image through a band that is off centre along both axes, by different bins."""
    weights = weighting(image.shape[0], band, 17, edge)[:, None] * weighting(image.shape[1], band, -40, edge)
    return torch.fft.ifft2(torch.fft.fft2(image) * weights), weights


def white_speckle(height, width, seed):
    return SingleLook().sample(torch.ones(1, height, width, dtype=F64), Streams(seed))[0]


@pytest.mark.parametrize("edge", [0.08, 0.5, 1.0])
@pytest.mark.parametrize("band", [0.8, 1.0])
@pytest.mark.parametrize("bright", [(0.0, 0.0), (1e3, 0.0), (1e2, 1e2)])
def test_whitened_speckle_is_uncorrelated(band, edge, bright):
    """One target of 60 dB, or two of 40 dB whose spectra interfere, half a pixel off the grid: the clutter decides."""
    clutter, shape = white_speckle(256, 200, 5), (256, 200)
    targets = torch.zeros(shape, dtype=torch.complex128)
    targets[60, 90], targets[61, 92] = bright
    ramps = [torch.exp(1j * math.pi * torch.fft.fftfreq(n, dtype=F64)) for n in shape]
    targets = torch.fft.ifft2(torch.fft.fft2(targets) * ramps[0][:, None] * ramps[1])
    slc, weights = coloured(clutter + targets, band, edge)
    white, spectrum = whiten_spectrum(slc)
    # the filter that was found on the clutter alone, whose coherence the targets would hide
    alone = coloured(clutter, band, edge)[0]
    before, after = ([coherence(z, dim=d) for d in (0, 1)] for z in (alone, spectrum.whiten(alone)))
    assert max(after) < 0.03
    if (band, edge) != (1.0, 1.0):
        assert min(before) > 0.2 if edge == 1.0 else min(before) > 0.25
    grid = tuple(int((weights.sum(1 - d) > 0).sum()) for d in (0, 1))
    assert all(abs(n - m) <= 2 for n, m in zip(white.shape, grid, strict=True))
    found = spectrum.whiten(alone).abs().square().mean()
    assert float(found / alone.abs().square().mean()) == pytest.approx(1.0, abs=0.03)


def test_the_transfer_function_is_found():
    """16 cosines over 205 bins of a mean of about 205 independent lines have a standard error of 1 % in amplitude."""
    slc, _ = coloured(white_speckle(256, 256, 1), 0.8, 0.3)
    _, spectrum = whiten_spectrum(slc)
    expected = torch.fft.fftshift(weighting(256, 0.8, 0, 0.3))
    expected = expected[expected > 0]
    assert spectrum.rows.numel() == expected.numel() and spectrum.starts[0] == (17 - (len(expected) - 1) // 2) % 256
    error = spectrum.rows / expected
    error = error / error.mean() - 1
    assert float(error.square().mean().sqrt()) < 0.02 and float(error.abs().max()) < 0.1
    assert float(spectrum.rows.square().sum()) == pytest.approx(256.0, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_colouring_undoes_whitening(dtype):
    slc, _ = coloured(white_speckle(128, 96, 2), 0.7, 0.3)
    white, spectrum = whiten_spectrum(slc.to(dtype))
    assert white.dtype == dtype and white.shape[0] < 100
    tolerance = 1e-5 if dtype == torch.complex64 else 1e-13
    torch.testing.assert_close(spectrum.colour(white), slc.to(dtype), rtol=0, atol=tolerance)
    batch = torch.stack([white, 2 * white])[:, None]
    torch.testing.assert_close(spectrum.whiten(spectrum.colour(batch)), batch, rtol=0, atol=50 * tolerance)


def test_texture_is_not_taken_for_a_transfer_function():
    """White speckle of a scene with edges over 13 dB has a flat spectrum."""
    slc = white_speckle(256, 256, 3) * scene(256).clamp_max(10.0).sqrt()
    white, spectrum = whiten_spectrum(slc)
    assert white.shape == slc.shape
    for amplitude in (spectrum.rows, spectrum.columns):
        assert float((amplitude - 1).abs().max()) < 0.25
    assert max(coherence(white, dim=d) for d in (0, 1)) < 0.03


def test_images_that_can_not_be_whitened():
    zero = torch.zeros(128, 128, dtype=torch.complex64)
    with pytest.raises(DataError, match="the image is zero"):
        whiten_spectrum(zero)
    with pytest.raises(ShapeError, match=r"at least 64 pixels along each axis, got \(128, 32\)"):
        whiten_spectrum(zero[:, :32])
    with pytest.raises(ConfigError, match="floor between 0 and 1"):
        whiten_spectrum(zero, floor=1.0)
    spectrum = SpeckleSpectrum(torch.ones(8), torch.ones(8), (0, 0), (8, 8))
    with pytest.raises(ShapeError, match=r"expected slc of shape \(..., 8, 8\) complex"):
        spectrum.whiten(zero)
    with pytest.raises(ShapeError, match="more than 128 pixels"):
        coherence(zero, lag=128)
