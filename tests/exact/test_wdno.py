"""Wavelet diffusion neural operators: packing, noise, exactness for Gaussian fields, conditions and replacement.

Known answers: closed forms for Gaussian fields, and identities to rounding. z-scores: 5 standard errors.
"""

import json
from pathlib import Path

import pytest
import torch

from invdiff.core import ConfigError, DataError, Denoiser, Karras, Problem, ShapeError, Streams
from invdiff.core.algebra import dense
from invdiff.priors import EDMDenoiser, UNet
from invdiff.priors.bands import BandUNet
from invdiff.priors.packed import ChannelScale, PackedSynthesis
from invdiff.priors.wdno import FieldCode, FieldPrior, field_network
from invdiff.samplers import Guided, Heun

F64 = torch.float64
ROOT = Path(__file__).parents[2]


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some_fields(n=6, grid=(8, 16), dtype=torch.float32):
    return {
        "u0": randn(n, 1, *grid[1:], seed=1, dtype=dtype),
        "uT": randn(n, 1, *grid[1:], seed=2, dtype=dtype),
        "f": 3.0 * randn(n, 1, *grid, seed=3, dtype=dtype),
        "u": randn(n, 1, *grid, seed=4, dtype=dtype).cumsum(-1),
    }


PACKINGS = [
    ((2, 8, 12), {"wavelet": "haar", "levels": 2}),
    ((1, 8, 16), {"wavelet": "bior2.4"}),
    ((1, 4, 6, 4), {"wavelet": "bior1.3", "levels": 1, "mode": "zero"}),
    ((2, 9, 7), {"wavelet": "db4", "levels": 2, "multiple": 4}),
    ((1, 12), {"wavelet": "sym4", "levels": 2, "mode": "symmetric", "multiple": 4}),
    ((1, 4, 8, 8), {"wavelet": "haar", "levels": 2}),
]


@pytest.mark.parametrize(("shape", "options"), PACKINGS)
def test_packing_and_synthesis(shape, options):
    plain = PackedSynthesis(shape, **options)
    basis = PackedSynthesis(shape, **options, scales=0.5 + randn(shape[0], len(plain.dwt.names), seed=2).abs())
    x, u = randn(3, *shape), randn(3, *basis.in_shape, seed=1)
    c = basis.dwt.analysis(x)
    assert torch.equal(basis.unpack(basis.pack(c)), c)
    assert basis.in_shape[0] == shape[0] * 2 ** (options.get("levels", 1) * (len(shape) - 1))
    assert all(n % options.get("multiple", 1) == 0 for n in basis.in_shape[1:])
    # PyWavelets' sym4 and db4 reconstruct to 1e-11
    assert float((basis(basis.analysis(x)) - x).abs().max()) < (1e-10 if options["wavelet"] in ("sym4", "db4") else 1e-12)
    left, right = (basis(u) * x).sum(), (u * basis.adjoint(x)).sum()
    assert float((left - right).abs()) < 1e-12 * float(basis(u).norm() * x.norm())
    exact = x.flatten(1) @ torch.linalg.pinv(dense(basis)).T
    assert float((basis.pinv(x).flatten(1) - exact).abs().max()) < 1e-8 * float(exact.abs().max())
    if basis.square:
        assert torch.allclose(basis.pinv(x), basis.analysis(x), rtol=0.0, atol=1e-13)


def test_the_packing_keeps_places():
    """A step in one corner shows in the coarse place of that corner in every phase of its details."""
    basis = PackedSynthesis((1, 8, 8), "haar", 2)
    x = torch.zeros(1, 1, 8, 8, dtype=F64)
    x[..., :1, :1] = 1.0
    u = basis.analysis(x)
    assert u.shape == (1, 16, 2, 2) and float(u[..., 1:, :].abs().max()) == float(u[..., :, 1:].abs().max()) == 0.0
    assert basis.bands == (0, 1, 2, 3, *[4] * 4, *[5] * 4, *[6] * 4)
    # the first phase of each fine band has it, the others nothing
    assert [int(v) for v in (u[0, :, 0, 0].abs() > 0)] == [1, 1, 1, 1, *[1, 0, 0, 0] * 3]


def test_scales_are_root_mean_squares():
    x = randn(50, 2, 8, 8).cumsum(-1)
    plain = PackedSynthesis((2, 8, 8), "bior2.4", 1, multiple=8)
    basis = PackedSynthesis((2, 8, 8), "bior2.4", 1, scales=plain.band_rms(x), multiple=8)
    assert torch.allclose(basis.band_rms(x), plain.band_rms(x))
    power = basis.analysis(x).square().sum((0, 2, 3)) / (50 * 16)
    assert torch.allclose(power, torch.ones_like(power))


def test_packing_refuses():
    with pytest.raises(ConfigError, match="expected multiple >= 1, got 0"):
        PackedSynthesis((1, 8), "haar", multiple=0)
    with pytest.raises(ShapeError, match=r"expected scales of shape \(1, 2\) for the bands 1a, 1d, got \(1, 3\)"):
        PackedSynthesis((1, 8), "haar", scales=[[1.0, 1.0, 1.0]])
    with pytest.raises(ConfigError, match="expected positive scales"):
        PackedSynthesis((1, 8), "haar", scales=[[1.0, 0.0]])
    with pytest.raises(ShapeError, match="ChannelScale: expected 2 scales"):
        ChannelScale((2, 8), [1.0])
    with pytest.raises(ConfigError, match="expected positive scales"):
        ChannelScale((1, 8), [-1.0])


def z_covariance(draws, cov):
    draws = draws.flatten(1)
    found = draws.T @ draws / len(draws)
    spread = ((torch.outer(cov.diagonal(), cov.diagonal()) + cov**2) / len(draws)).sqrt()
    return float(((found - cov) / spread.clamp_min(1e-12)).abs().max())


def test_noise_of_coefficients_and_of_fields():
    """White in the coefficients is S S^T in the field; white in the field is Q Q^T in the coefficients; not the same."""
    shape = (1, 4, 6)
    basis = PackedSynthesis(shape, "bior2.4", scales=[[3.0, 1.0, 1.0, 0.5]])
    u, x = (Streams(7).normal(0, (20_000, *s), p, F64)[0] for s, p in ((basis.in_shape, "u"), (shape, "x")))
    s = dense(basis)
    q = torch.linalg.inv(s)
    assert z_covariance(basis(u), s @ s.T) < 5 < 20 < z_covariance(basis(u), torch.eye(24, dtype=F64))
    assert z_covariance(basis.analysis(x), q @ q.T) < 5 < 20 < z_covariance(basis.analysis(x), torch.eye(24, dtype=F64))
    haar = PackedSynthesis(shape, "haar")
    assert haar.orthonormal and z_covariance(haar(u), torch.eye(24, dtype=F64)) < 5


# ---- the prior of fields


def gaussian_code(wavelet):
    """Band units of a Gaussian law whose coefficients are independent, and its covariance in the fields."""
    scales = {"u": [2.0, 0.7, 0.5, 0.1], "f": [1.0, 1.0, 0.3, 0.2]}
    code = FieldCode(slices=(), fields=(), wavelet=wavelet, scales=scales)
    s = dense(code.synthesis((4, 6)))
    return code, s @ s.T


def untrained(channels, told, **options):
    return EDMDenoiser(UNet(channels, channels, widths=(32,), blocks=1, concat_channels=told, **options), sigma_data=1.0)


class Plain(Denoiser):
    """A network before training, asked without the channels of the coordinates."""

    def __init__(self, net):
        super().__init__(net.shape)
        self.net = net

    def forward(self, x, sigma, condition=None):
        return self.net(x, sigma)


@pytest.mark.parametrize("wavelet", ["haar", "bior2.4"])
def test_white_prior_is_exact_for_a_gaussian_field(wavelet):
    """F = 0 is the Wiener filter of coefficients of unit scale: S D(u) = E[x0 | x0 + sigma S n] in closed form."""
    code, cov = gaussian_code(wavelet)
    prior = FieldPrior(Plain(untrained(8, 0, patch=1).double()), code, (4, 6))
    basis, u, sigma = prior.basis, randn(3, *prior.shape), torch.tensor([0.3, 1.0, 4.0], dtype=F64)
    s = dense(basis)
    for k, level in enumerate(sigma.tolist()):
        noise = level**2 * s @ s.T
        exact = cov @ torch.linalg.solve(cov + noise, basis(u)[k].flatten())
        assert torch.allclose(basis(prior(u, sigma))[k].flatten(), exact, atol=1e-12)


def test_shaped_prior_is_exact_for_a_gaussian_field():
    """The same for white noise of the field and an orthonormal basis: the network before training, wavelets and all."""
    code, cov = gaussian_code("haar")
    rows = [dict(code.scales)[n] for n in ("u", "f")]
    net = EDMDenoiser(BandUNet(2, 2, wavelet="haar", scales=rows, widths=(32,), blocks=1), sigma_data=1.0).double()
    plain = FieldCode(slices=(), fields=())
    prior = FieldPrior(Plain(net), plain, (4, 6))
    x, sigma = randn(3, *prior.shape), torch.tensor([0.02, 1.0, 40.0], dtype=F64)
    for k, level in enumerate(sigma.tolist()):
        exact = cov @ torch.linalg.solve(cov + level**2 * torch.eye(48, dtype=F64), x[k].flatten())
        # the gains and scales are buffers in float32
        assert torch.allclose(prior(x, sigma)[k].flatten(), exact, atol=2e-6)
    # where the basis is not orthonormal, bands share noise: no longer exact, and only there
    rough = EDMDenoiser(BandUNet(2, 2, wavelet="bior2.4", scales=rows, widths=(32,), blocks=1), sigma_data=1.0).double()
    assert rough.net.gains.tolist()[:4] == pytest.approx([1.41476, 1.030077, 1.030077, 0.75], rel=1e-4)


def test_gains_are_those_of_white_noise():
    net = BandUNet(1, 1, wavelet="bior1.3", levels=2, scales=[[1.0] * 7], widths=(32,), blocks=1)
    basis = PackedSynthesis((1, 32, 32), "bior1.3", 2)
    found = basis.analysis(randn(400, 1, 32, 32)).square().mean((0, 2, 3)).sqrt()
    assert float((found / net.gains - 1.0).abs().max()) < 5 / (2 * 400 * 64) ** 0.5 * 2.5  # neighbours are correlated


@pytest.mark.parametrize("code", [FieldCode(), FieldCode(wavelet="bior2.4"), FieldCode(wavelet="haar", levels=2)])
def test_conditions_and_replacement(code):
    samples = some_fields()
    code = code.measured(samples)
    assert FieldCode(**json.loads(json.dumps(code.header))) == code
    unknown = code.encode(samples)
    assert abs(float(unknown.square().mean()) - 1.0) < 0.01
    fields = code.synthesis((8, 16))(unknown)
    assert torch.allclose(fields, torch.cat([samples["u"], samples["f"]], 1), atol=1e-4)
    told = {name: samples[name][:1] for name in ("u0", "f")}
    concat = code.condition((8, 16), told, like=unknown)
    channels = code.concat_channels(2)
    assert concat.shape == (1, channels, *unknown.shape[2:])
    flags = concat[0, -5:-2].flatten(1)
    assert flags.min(1).values.tolist() == flags.max(1).values.tolist() == [1.0, 0.0, 1.0]
    net = untrained(unknown.shape[1], channels, patch=2 if code.wavelet is None else 1)
    prior = FieldPrior(field_network(net, code), code, (8, 16), told)
    with torch.no_grad():
        net.net.exit.bias.fill_(0.3)
        denoised = prior(randn(4, *prior.shape, dtype=torch.float32), torch.full((4,), 2.0))
    half = prior.shape[0] // 2
    # exactly, at any level: the coefficients are the told ones, bit for bit
    assert torch.equal(denoised[:, half:], prior.given[:, half:].expand(4, -1, -1, -1))
    assert torch.allclose(prior.given[0, half:], unknown[0, half:], atol=1e-5)
    assert not torch.equal(denoised[:, :half], unknown[:1, :half].expand(4, -1, -1, -1))
    draws = Guided(None, Heun(), Karras(0.01, 10.0), steps=3)(Problem.unmeasured(prior.basis.in_shape), prior, 2, seed=0).x
    assert torch.allclose(prior.synthesis((2, 8, 16))(draws)[:, 1:], samples["f"][:1].expand(2, -1, -1, -1), atol=1e-4)
    alone = prior.tell({"u0": samples["u0"][0]})
    assert prior.replaces and not alone.replaces and alone.image_shape == (2, 8, 16)
    with pytest.raises(ShapeError, match=r"FieldPrior: expected fields of shape \(2, 8, 16\), got \(1, 8, 16\)"):
        prior.synthesis((1, 8, 16))
    with pytest.raises(ConfigError, match="rho can't be told: expected u0, uT, f"):
        prior.tell({"rho": samples["f"]})
    with pytest.raises(ShapeError, match=r"expected u0 of shape \(N, 1, 16\), got \(6, 1, 8, 16\)"):
        prior.tell({"u0": samples["u"]})


def test_every_dimension():
    """One axis of time and two of space; three of space alone."""
    grid = (4, 8, 8)
    samples = some_fields(3, grid)
    code = FieldCode(wavelet="bior1.3").measured(samples)
    assert code.channels("u", 3) == 8 and code.channels("u0", 3) == 4
    assert code.condition(grid, {"u0": samples["u0"]}, like=samples["u"]).shape == (3, 4 + 4 + 8 + 3 + 3, 2, 4, 4)
    static = FieldCode(unknown=("a", "p"), slices=(), fields=("a",), wavelet="haar")
    assert static.synthesis((4, 4, 4)).in_shape == (16, 2, 2, 2)
    net = untrained(16, code.concat_channels(3), patch=1, dims=3)
    prior = FieldPrior(field_network(net, code), code, grid, {"f": samples["f"][:1]})
    assert prior(randn(2, *prior.shape, dtype=torch.float32), torch.ones(2)).shape == (2, 16, 2, 4, 4)


def test_a_code_with_more_coefficients_than_values():
    """The other modes, filled up for the network: fields come back, and what is told replaces coefficients all the same."""
    samples = some_fields()
    code = FieldCode(wavelet="bior1.3", mode="zero", multiple=4).measured(samples)
    basis, unknown = code.synthesis((8, 16)), code.encode(samples)
    assert basis.in_shape == (8, 8, 12) and not basis.square
    assert torch.allclose(basis(unknown)[:, :1], samples["u"], atol=1e-4)
    net = field_network(untrained(8, code.concat_channels(2), patch=1), code)
    prior = FieldPrior(net, code, (8, 16), {"f": samples["f"]})
    found = prior.synthesis((2, 8, 16))(prior(randn(6, *prior.shape, dtype=torch.float32), torch.ones(6)))
    assert torch.allclose(found[:, 1:], samples["f"], atol=1e-4)


def test_codes_refuse():
    with pytest.raises(ConfigError, match="expected different names"):
        FieldCode(slices=("u0", "u0"))
    with pytest.raises(ConfigError, match="scales of v, which is neither"):
        FieldCode(scales={"v": [1.0]})
    with pytest.raises(DataError, match="all values of f are zero"):
        FieldCode().measured(some_fields() | {"f": torch.zeros(6, 1, 8, 16)})
    with pytest.raises(ConfigError, match="needs channels_in=8 and concat_channels=13, the network has 8 and 0"):
        field_network(untrained(8, 0, patch=1), FieldCode(wavelet="haar"))
