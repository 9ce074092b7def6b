"""The health check: right networks pass, imperfect ones too, and every usual mistake of wiring is named.

Smooth 8 x 8 images, N(m, C) with a power spectrum over seven decades (standard deviation 0.5, the finest detail 6e-4), and
ideal networks for them in closed form.
"""

import math

import pytest
import torch
from torch import nn

from invdiff.core.denoiser import Denoiser
from invdiff.core.errors import ConfigError, DataError, InvdiffError, NumericalError
from invdiff.core.health import check, measure
from invdiff.core.rng import Streams
from invdiff.priors.flows import RectifiedFlow
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.mixture import GaussianMixture
from invdiff.priors.paths import EDM, VE, ContinuousVP
from invdiff.priors.steps import DiscreteVP, cosine_betas, cumulative_betas, linear_betas, scaled_linear_betas
from invdiff.priors.wrapped import Wrapped

F64 = torch.float64
SHAPE = (1, 8, 8)
FREQUENCY = 8 * torch.fft.fftfreq(8, dtype=F64)
SPECTRUM = (1 + FREQUENCY[:, None] ** 2 + FREQUENCY**2) ** -5.0
SPECTRUM = SPECTRUM / SPECTRUM.mean() / 4
FINE = SPECTRUM < SPECTRUM.flatten().sort().values[20]  # noqa: SIM300
COV = torch.fft.ifft2(torch.fft.fft2(torch.eye(64, dtype=F64).reshape(64, 8, 8)) * SPECTRUM).real.reshape(64, 64)
PRIOR = GaussianPrior(torch.full(SHAPE, 0.1, dtype=F64), COV, sigma_min=1e-2, sigma_max=1e2)
BETAS = linear_betas()
ABAR = torch.tensor(BETAS, dtype=F64).neg().add(1).cumprod(0)


def images(count, seed=0):
    return PRIOR.sample(Streams(seed, count))


def col(v):
    return v.reshape(-1, 1, 1, 1)


def ideal(predicts, path, prior=PRIOR, sigma_data=0.5):
    """The network that a perfect training gives; it reads the level out of what it is told."""

    def net(x, told):
        told = told.double()
        time = {EDM: lambda: (4 * told).exp(), VE: told.exp}.get(type(path), lambda: told / path.factor)()
        a, s = col(path.alpha(time)), col(path.sigma(time))
        u = x * torch.hypot(s, torch.full_like(s, sigma_data)) if predicts == "edm" else x / a
        data = prior(u, (s / a).flatten())
        noise = (u - data) / (s / a)
        if predicts == "edm":
            total = torch.hypot(s, torch.full_like(s, sigma_data))
            return (data - (sigma_data / total) ** 2 * u) * total / (s * sigma_data)
        if predicts == "velocity":
            return sum(col(r) * v for r, v in zip(path.rates(time), (data, noise), strict=True))
        return {"noise": noise, "data": data, "score": -noise / s, "v": a * noise - s * data}[predicts]

    return net


def wrapped(net, path, predicts, **options):
    return Wrapped(net, path, predicts, shape=SHAPE, **options)


DDPM, FLOW, VP = DiscreteVP(BETAS), RectifiedFlow(margin=0.01), ContinuousVP()
UNIT, BACK, EDM_PATH = DiscreteVP(BETAS, factor=1e-3), RectifiedFlow(1, margin=0.01), EDM(0.01, 40.0)
RIGHT = [
    (DDPM, "noise", {}),
    (DiscreteVP(BETAS, nearest=True), "noise", {}),
    (UNIT, "v", {}),
    (DDPM, "data", {"sigma_min": 0.5}),
    (VP, "score", {}),
    (VE(), "score", {}),
    (FLOW, "velocity", {}),
    (BACK, "velocity", {}),
    (EDM_PATH, "edm", {"sigma_data": 0.5}),
]


def rough(x):
    """A fixed function of the input, of unit root mean square and as rough as white noise."""
    w = torch.randn(64, 64, dtype=F64, generator=torch.Generator().manual_seed(3))
    flat = x.flatten(1) / x.flatten(1).square().mean(1, keepdim=True).sqrt()
    return (math.sqrt(2) * torch.sin(flat @ w)).reshape(x.shape)


FLAWS = {
    "none": lambda x, o: o,
    "10 % more": lambda x, o: 1.1 * o,
    "10 % less": lambda x, o: 0.9 * o,
    "10 % of anything": lambda x, o: o + 0.1 * o.square().mean((1, 2, 3), keepdim=True).sqrt() * rough(x),
}


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize(("path", "predicts", "options"), RIGHT)
def test_right_networks_pass_with_eight_images(path, predicts, options, flaw):
    net = ideal(predicts, path)
    prior = wrapped(lambda x, t: FLAWS[flaw](x, net(x, t)), path, predicts, **options)
    health = prior.check(images(8), batch=512)
    assert not health.problems
    assert all(r <= 1.25 * b for r, b in zip(health.rms, health.bound, strict=True))
    assert str(health).splitlines()[0].split() == ["sigma", "rms", "bound", "bias", "gain", "level"]
    assert len(str(health).splitlines()) == 1 + len(health.sigma)


EPS, SCORE, VELOCITY, F = ideal("noise", DDPM), ideal("score", VP), ideal("velocity", FLOW), ideal("edm", EDM_PATH)
WRONG = {
    "alpha for the cumulative alpha": (EPS, DiscreteVP(cumulative_betas(1 - torch.tensor(BETAS, dtype=F64))), "noise", {}),
    "square root forgotten": (EPS, DiscreteVP(cumulative_betas(ABAR**2)), "noise", {}),
    "square root taken twice": (EPS, DiscreteVP(cumulative_betas(ABAR**0.5)), "noise", {}),
    "cosine for linear": (EPS, DiscreteVP(cosine_betas()), "noise", {"sigma_max": 1e3}),
    "scaled linear for linear": (EPS, DiscreteVP(scaled_linear_betas()), "noise", {}),
    "t + 1": (EPS, DiscreteVP(BETAS, first=1), "noise", {}),
    "t - 1": (EPS, DiscreteVP(BETAS, first=-1), "noise", {"sigma_min": 0.0149}),
    "t + 1, x0": (ideal("data", DDPM), DiscreteVP(BETAS, first=1), "data", {}),
    "eps as v": (EPS, DDPM, "v", {}),
    "v as eps": (ideal("v", DDPM), DDPM, "noise", {}),
    "eps as x0": (EPS, DDPM, "data", {}),
    "x0 as eps": (ideal("data", DDPM), DDPM, "noise", {}),
    "sign of the score": (lambda x, t: -SCORE(x, t), VP, "score", {}),
    "sign of the flow": (lambda x, t: -VELOCITY(x, t), FLOW, "velocity", {}),
    "time of the flow": (lambda x, t: VELOCITY(x, 1 - t), FLOW, "velocity", {}),
    "ends of the flow": (VELOCITY, BACK, "velocity", {}),
    "[0, 1] for 1000": (EPS, UNIT, "noise", {}),
    "1000 for [0, 1]": (ideal("noise", UNIT), DDPM, "noise", {}),
    "input not scaled": (lambda x, t: EPS(x / col(DDPM.alpha(t)), t), DDPM, "noise", {}),
    "sigma_data": (F, EDM_PATH, "edm", {"sigma_data": 1.0}),
    "ln sigma for ln(sigma) / 4": (lambda x, t: F(x, 4 * t), EDM_PATH, "edm", {"sigma_data": 0.5}),
}


@pytest.mark.parametrize("count", [64, 256])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_wiring_is_named(name, count):
    net, path, predicts, options = WRONG[name]
    with pytest.raises(InvdiffError, match=r"Wrapped: .*at sigma") as caught:
        wrapped(net, path, predicts, **options).check(images(count), batch=1024)
    assert type(caught.value) is (NumericalError if name == "1000 for [0, 1]" else ConfigError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["alpha for the cumulative alpha", "sign of the score", "ends of the flow", "v as eps"])
def test_eight_images_are_enough_for_gross_errors(name):
    net, path, predicts, options = WRONG[name]
    with pytest.raises(ConfigError):
        wrapped(net, path, predicts, **options).check(images(8), batch=512)


def test_the_diagnosis():
    reading = "at sigma=0.0141 the network reads 1.41 sigma or more"
    with pytest.raises(ConfigError, match=reading):
        wrapped(EPS, DiscreteVP(BETAS, first=1), "noise").check(images(64), batch=512)
    with pytest.raises(ConfigError, match=r"and 0\.\d+ with the sign of D - x reversed"):
        wrapped(lambda x, t: -SCORE(x, t), VP, "score").check(images(64), batch=512)


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.5), (2.0, -1.0)])
def test_value_ranges(scale, shift):
    """[-1, 1] against [0, 1]: a network trained on scale^-1 (x - shift), given x; the hint needs the declared range."""
    data = scale * images(64) + shift
    prior = wrapped(EPS, DDPM, "noise", value_range=(-3.0, 3.0) if scale == 0.5 else (-1.5, 1.5))
    with pytest.raises(ConfigError, match=r"it was trained on values in .*does it need Affine"):
        prior.check(data, batch=512)
    prior.value_range = None
    with pytest.raises(ConfigError, match=r"at sigma"):
        prior.check(data, batch=512)


class Misreads(Denoiser):
    """The exact denoiser for `factor` times the level it is given."""

    def __init__(self, factor):
        super().__init__(SHAPE, 0.01, 10.0)
        self.factor = factor

    def forward(self, x, sigma):
        return PRIOR(x, self.factor * sigma)


@pytest.mark.parametrize("factor", [0.7, 0.8, 1.0, 1.25, 1.4])
def test_the_level_that_is_read(factor):
    """512 images at levels amid their spectrum: 5 % from the parabola and the sampling of modes."""
    health = measure(Misreads(factor), images(512), sigmas=[0.1, 0.3], batch=512)
    assert health.level == pytest.approx((factor, factor), rel=0.05)
    assert bool(health.problems) == (factor != 1.0)


class Blind(Denoiser):
    """Reads the level out of the image: the 20 finest modes hold nothing but noise."""

    def __init__(self):
        super().__init__(SHAPE, 0.05, 10.0)

    def forward(self, x, sigma):
        fine = torch.fft.fft2(x, norm="ortho").abs().square()[..., FINE]
        return PRIOR(x, fine.flatten(1).mean(1).sqrt())


def test_blind_denoisers_are_exempt_from_the_level():
    health = Blind().check(images(8), batch=512)
    assert all(math.isnan(v) for v in health.level)


def test_mixtures_pass_and_their_mistakes_do_not():
    means = 0.7 * torch.stack([torch.ones(SHAPE, dtype=F64), -torch.ones(SHAPE, dtype=F64)])
    mixture = GaussianMixture(torch.tensor([0.3, 0.7], dtype=F64), means, COV / 4, sigma_min=1e-2, sigma_max=1e2)
    data = mixture.sample(Streams(0, 64))
    mixture.check(data, batch=512)
    wrapped(ideal("noise", DDPM, mixture), DDPM, "noise").check(data, batch=512)
    for predicts, path in (("v", DDPM), ("noise", DiscreteVP(cumulative_betas(ABAR**2)))):
        with pytest.raises(ConfigError):
            wrapped(ideal("noise", DDPM, mixture), path, predicts).check(data, batch=512)


def test_the_bound_is_attained_by_white_data():
    """For N(m, s^2 I) D is the scalar Wiener filter: rms = bound within 5 standard errors."""
    white = GaussianPrior(torch.full(SHAPE, 0.3, dtype=F64), torch.full(SHAPE, 0.25, dtype=F64), sigma_min=0.05, sigma_max=2.0)
    health = white.check(white.sample(Streams(0, 64)), batch=512)
    assert health.rms == pytest.approx(health.bound, rel=5 / math.sqrt(2 * 64 * 64))
    assert max(map(abs, health.bias)) < 5 * 0.5 / math.sqrt(64 * 64)


def test_expected_errors():
    data, sigmas = images(32), [0.05, 0.5]
    health = measure(PRIOR, data, sigmas=sigmas, batch=512)
    curve = {"sigma": sigmas, "rms": [health.rms[0] * 1.05, health.rms[1]], "spread": [health.rms[0] * 0.05, 1.0]}
    assert set(sigmas) <= set(PRIOR.check(data, expected=curve, batch=512).sigma)
    with pytest.raises(ConfigError, match=r"at sigma=0.05 its error is .* expected .* with a spread of"):
        PRIOR.check(data, expected=curve | {"spread": [health.rms[0] * 0.01, 1.0]}, sigmas=sigmas, batch=512)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t):
        return torch.full_like(x, self.value)


def test_what_can_not_be_checked():
    with pytest.raises(DataError, match=r"4 or more finite floating-point items"):
        PRIOR.check(images(3))
    with pytest.raises(DataError, match=r"not constant"):
        PRIOR.check(torch.ones(8, *SHAPE, dtype=F64))
    with pytest.raises(NumericalError, match=r"not finite at sigma"):
        wrapped(Constant(math.nan), VP, "noise").check(images(8))
    with pytest.raises(ConfigError, match=r"noise levels in \[0.01, 100\], got 0.001"):
        PRIOR.check(images(8), sigmas=[0.001])
    with pytest.raises(DataError, match=r"floating-point items .* torch.uint8"):
        PRIOR.check((100 + 50 * images(8)).to(torch.uint8))
    with pytest.raises(ConfigError, match=r"a noise level or more and batch >= 1, got 0 and 16"):
        PRIOR.check(images(8), sigmas=[])
    with pytest.raises(ConfigError, match=r"a noise level or more and batch >= 1, got 1 and 0"):
        PRIOR.check(images(8), sigmas=[0.1], batch=0)
    with pytest.raises(ConfigError, match=r"start at 0.01 but the data's standard deviation is"):
        PRIOR.check(images(8) / 1000)
    with pytest.raises(ConfigError, match=r"times that of shrinking"):  # D = x
        wrapped(Constant(0.0), VP, "noise").check(images(8), batch=512)


def test_the_verdict_does_not_depend_on_the_batch():
    data = images(8)
    one, other = (check(PRIOR, data, sigmas=[0.1], batch=b) for b in (16, 300))
    assert one.rms == pytest.approx(other.rms, rel=1e-12)
    assert one.level == pytest.approx(other.level, rel=1e-9)
