"""The wavelet transform against PyWavelets, its four maps against each other, and the synthesis operator against dense algebra.

Coefficients are of order 1 and float64; 1e-12 leaves a few thousand roundings.
"""

import warnings

import pytest
import pywt
import torch

from invdiff.core import ConfigError, ShapeError, Streams, dot, norm
from invdiff.core.algebra import dense
from invdiff.operators.dwt import DWT
from invdiff.operators.wavelet import WaveletSynthesis, band_rms

F64 = torch.float64
WAVELETS = ["haar", "db2", "db4", "sym4", "coif1", "bior1.3", "bior2.4", "rbio3.1"]
MODES = ["periodization", "symmetric", "zero"]
# shape, axes, levels: 1D, 2D, 3D, space-time and channels last; odd, even, shorter and longer than the filters and a tile
CASES = [
    ((2, 16), None, 3),
    ((1, 7), None, 2),
    ((2, 8, 12), None, 2),
    ((1, 9, 5), None, 2),
    ((2, 4, 6, 8), None, 1),
    ((1, 5, 8, 6), None, 2),
    ((2, 6, 7, 8), (1, 3), 2),
    ((8, 6, 2), (0, -2), 2),
    ((1, 1), None, 2),
    ((1, 131, 200), None, 3),
]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def pywt_coefficients(x, dwt):
    """PyWavelets' coefficients, one array per band in our order, and in its own structure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # more levels than it advises
        tree = pywt.wavedecn(x.numpy(), dwt.wavelet, dwt.mode, len(dwt.levels), [a + 1 for a in dwt.axes])
    return [tree[0], *(level[key] for level in tree[1:] for key in sorted(level))], tree


@pytest.mark.parametrize(("shape", "axes", "levels"), CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_the_transform_is_that_of_pywavelets(wavelet, mode, shape, axes, levels):
    dwt, x = DWT(shape, wavelet, levels, mode, axes), randn(2, *shape)
    c = dwt.analysis(x)
    expected, tree = pywt_coefficients(x, dwt)
    for band, want in zip(dwt.split(c), expected, strict=True):
        torch.testing.assert_close(band, torch.from_numpy(want), rtol=0, atol=1e-12)
    # the inverse of coefficients that are no image's
    bands = [randn(*want.shape, seed=i) for i, want in enumerate(expected)]
    details = iter(bands[1:])
    other = [bands[0].numpy(), *({key: next(details).numpy() for key in sorted(level)} for level in tree[1:])]
    image = torch.from_numpy(pywt.waverecn(other, wavelet, mode, [a + 1 for a in dwt.axes]))
    image = image[tuple(slice(n) for n in x.shape)]
    torch.testing.assert_close(dwt.inverse(dwt.join(bands)), image, rtol=0, atol=1e-12)
    torch.testing.assert_close(dwt.inverse(c), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("shape", "axes", "levels"), CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior2.4"])
def test_both_adjoints_are_exact(wavelet, mode, shape, axes, levels):
    dwt = DWT(shape, wavelet, levels, mode, axes)
    x, c = randn(2, *shape), randn(2, *dwt.coefficient_shape, seed=1)
    for forward, backward, v, w in ((dwt.analysis, dwt.adjoint, x, c), (dwt.inverse, dwt.inverse_adjoint, c, x)):
        gap = (dot(forward(v), w) - dot(v, backward(w))).abs()
        assert bool((gap <= 1e-12 * norm(forward(v)) * norm(w) + 1e-14).all())
    if wavelet != "bior2.4":
        torch.testing.assert_close(dwt.inverse(dwt.inverse_adjoint(x)), x, rtol=0, atol=1e-11)


def test_which_of_the_four_maps_differ():
    def maps(wavelet, mode):
        dwt, x = DWT((1, 16), wavelet, 1, mode), randn(1, 1, 16)
        c = randn(1, *dwt.coefficient_shape)
        return dwt.analysis(x), dwt.inverse_adjoint(x), dwt.inverse(c), dwt.adjoint(c)

    for wavelet, mode in (("bior2.4", "symmetric"), ("bior2.4", "zero"), ("bior2.4", "periodization"), ("db4", "symmetric")):
        a, b, c, d = maps(wavelet, mode)
        assert float((a - b).abs().max()) > 0.01 and float((c - d).abs().max()) > 0.01
    for mode in ("periodization", "zero"):
        a, b, c, d = maps("db4", mode)
        assert torch.allclose(a, b, rtol=0, atol=1e-12) and torch.allclose(c, d, rtol=0, atol=1e-12)
    assert torch.equal(maps("bior2.4", "symmetric")[2], maps("bior2.4", "zero")[2])


def test_layouts():
    assert DWT((3, 64, 32), "db4", 3).coefficient_shape == (3, 64, 32)
    assert DWT((3, 32, 64, 64), "bior1.3", 1, "zero").coefficient_shape == (3, 36, 68, 68)
    assert DWT((3, 81, 120), "bior2.4").coefficient_shape == (3, 82, 120)
    flat = DWT((3, 20, 12), "db2", 2, "symmetric")
    assert flat.coefficient_shape == (3, 4 * (7 * 5) + 3 * (11 * 7))
    assert flat.names == ("2aa", "2ad", "2da", "2dd", "1ad", "1da", "1dd")
    mallat = DWT((1, 8, 8), "haar", 2)
    bump = torch.zeros(1, 1, 8, 8)
    bump[0, 0, :2, 2:4] = 1.0
    assert [float(band.sum()) for band in mallat.split(bump)] == [0, 4, 0, 0, 0, 0, 0]
    for dwt in (flat, mallat):
        c = randn(2, *dwt.coefficient_shape)
        assert torch.equal(dwt.join(dwt.split(c)), c)
        index, bands = dwt.band_index(), dwt.split(c)
        for i, band in enumerate(bands):
            assert torch.equal(c[:, index == i].sort().values, band.flatten(1).sort().values)


@pytest.mark.parametrize(("mode", "size"), [("periodization", 8), ("zero", 7)])
def test_bands_as_channels(mode, size):
    dwt, x = DWT((3, size, 6, 10), "bior1.3", 1, mode), randn(2, 3, size, 6, 10)
    c = dwt.analysis(x)
    channels = dwt.bands_as_channels(c)
    keys = ["aaa", "aad", "ada", "add", "daa", "dad", "dda", "ddd"]
    expected = pywt.dwtn(x.numpy(), "bior1.3", mode, axes=(2, 3, 4))
    for channel in range(3):
        for i, key in enumerate(keys):
            want = torch.from_numpy(expected[key][:, channel])
            torch.testing.assert_close(channels[:, 8 * channel + i], want, rtol=0, atol=1e-12)
    assert torch.equal(dwt.channels_as_bands(channels), c)
    with pytest.raises(ConfigError, match="expected one level along axes after the channels, got 2 along"):
        DWT((1, 8), "haar", 2).bands_as_channels(randn(1, 1, 8))


def test_chunks_change_nothing_and_float32_stays():
    """More than 2^20 values are transformed in pieces on one thread."""
    dwt, x = DWT((1, 600, 600), "db2", 2, "zero"), randn(4, 1, 600, 600).float()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        c = dwt.analysis(x)
    finally:
        torch.set_num_threads(threads)
    assert c.dtype == torch.float32
    torch.testing.assert_close(c[3:], dwt.analysis(x[3:]), rtol=0, atol=1e-5)
    # float32 has 6e-8; some 40 of them
    torch.testing.assert_close(dwt.inverse(c), x, rtol=0, atol=3e-6)


def test_differentiable_as_it_is():
    dwt, x = DWT((1, 9, 6), "bior2.4", 2, "symmetric"), randn(1, 1, 9, 6).requires_grad_()
    w = randn(1, *dwt.coefficient_shape)
    (gradient,) = torch.autograd.grad(dot(dwt.analysis(x), w).sum(), x)
    torch.testing.assert_close(gradient, dwt.adjoint(w), rtol=0, atol=1e-12)


SYNTHESES = {
    "orthonormal": lambda: WaveletSynthesis((1, 8, 4), "db2", 2),
    "tight": lambda: WaveletSynthesis((2, 7, 5), "db2", 2, "symmetric"),
    "tight, odd": lambda: WaveletSynthesis((1, 7, 5), "db2"),
    "square": lambda: WaveletSynthesis((2, 8, 4), "bior2.4", 2),
    "scaled square": lambda: WaveletSynthesis((2, 8), "db2", 2, scales=[[2.0, 1.0, 0.5], [1.0, 3.0, 0.7]]),
    "neither": lambda: WaveletSynthesis((1, 6, 7), "bior1.3", 1, "zero", (1,), [2.0, 0.5]),
}


@pytest.mark.parametrize("name", SYNTHESES)
def test_synthesis_against_dense_algebra(name):
    """Closed forms hold to 1e-12; conjugate gradients stop at a residual of 1e-11, at condition numbers below 100."""
    s = SYNTHESES[name]()
    matrix, x, u = dense(s), randn(3, *s.out_shape), randn(3, *s.in_shape, seed=1)
    assert (s.orthonormal, s.square) == (name == "orthonormal", matrix.shape[0] == matrix.shape[1])
    torch.testing.assert_close(s(s.analysis(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(s.adjoint(x).flatten(1), x.flatten(1) @ matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(s.normal(u).flatten(1), u.flatten(1) @ matrix.T @ matrix, rtol=0, atol=1e-12)
    bar = 1e-9 if name == "neither" else 1e-12
    torch.testing.assert_close(s.pinv(x).flatten(1), x.flatten(1) @ torch.linalg.pinv(matrix).T, rtol=0, atol=bar)
    rho = torch.tensor([0.1, 1.0, 10.0], dtype=F64)
    system = matrix.T @ matrix + rho[:, None, None] * torch.eye(matrix.shape[1], dtype=F64)
    want = torch.linalg.solve(system, u.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(s.solve(u, rho).flatten(1), want, rtol=0, atol=1e-9 if "square" in name else bar)
    if name in ("tight", "neither"):
        assert float((s.pinv(x) - s.analysis(x)).abs().max()) > 0.01


@pytest.mark.parametrize(("wavelet", "known"), [("bior2.4", 2.0), ("bior1.3", 1.28), ("db4", 1.0)])
def test_the_condition_number_is_that_of_the_filters(wavelet, known):
    """From the 2 x 2 matrices of the filters' Fourier transforms at k and k + n / 2; in two dimensions its square."""
    bank = pywt.Wavelet(wavelet)
    spectrum = torch.fft.fft(torch.tensor([bank.rec_lo, bank.rec_hi], dtype=F64), n=32)
    values = torch.linalg.svdvals(torch.stack([spectrum[:, :16].T, spectrum[:, 16:].T], dim=-1))
    condition = float(values.max() / values.min())
    assert condition == pytest.approx(known, rel=0.005)
    for rank in (1, 2):
        values = torch.linalg.svdvals(dense(WaveletSynthesis((1, *[32] * rank), wavelet)))
        assert float(values[0] / values[-1]) == pytest.approx(condition**rank, rel=1e-9)


def test_scales_make_coefficients_of_unit_size():
    images = Streams(0, 50).normal(0, (2, 8, 8), dtype=F64) * torch.tensor([1.0, 5.0], dtype=F64)[:, None, None] + 3.0
    plain = WaveletSynthesis((2, 8, 8), "bior2.4", 2)
    rms = band_rms(plain, images)
    assert rms.shape == (2, 7)
    scaled = WaveletSynthesis((2, 8, 8), "bior2.4", 2, scales=rms)
    torch.testing.assert_close(band_rms(scaled, images), torch.ones(2, 7, dtype=F64), rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled(scaled.analysis(images)), images, rtol=0, atol=1e-12)


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="no discrete wavelet 'db99'"):
        DWT((1, 8), "db99")
    with pytest.raises(ConfigError, match="the filters of 'dmey' reconstruct only to 2e-03"):
        DWT((1, 8), "dmey")
    with pytest.raises(ConfigError, match="got 'reflect'"):
        DWT((1, 8), "haar", 1, "reflect")
    with pytest.raises(ConfigError, match="levels >= 1, got 0"):
        DWT((1, 8), "haar", 0)
    for axes in ((2,), (1, -1), ()):
        with pytest.raises(ShapeError, match="expected different axes of a shape with 2 dimensions"):
            DWT((1, 8), "haar", axes=axes)
    with pytest.raises(ShapeError, match=r"expected a real tensor of shape \(B, 1, 8\), got \(1, 1, 7\)"):
        DWT((1, 8), "haar").analysis(randn(1, 1, 7))
    with pytest.raises(ShapeError, match=r"expected band 1d of shape \(2, 1, 4\), got \(2, 1, 3\)"):
        DWT((1, 8), "haar").join([randn(2, 1, 4), randn(2, 1, 3)])
    with pytest.raises(ShapeError, match=r"expected scales of shape \(2,\) or \(1, 2\) for the bands 1a, 1d, got \(3,\)"):
        WaveletSynthesis((1, 8), "haar", scales=[1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="expected positive scales"):
        WaveletSynthesis((1, 8), "haar", scales=[1.0, 0.0])
