"""Foreign parametrisations: ideal networks in closed form, written in their own coordinates, against the exact denoiser.

For x0 ~ N(mu, C) and x_t = a x0 + s eps, with M = a^2 C + s^2 I and z = M^-1 (x_t - a mu): E[x0 | x_t] = mu + a C z and
E[eps | x_t] = s z. The paths' a(t), s(t) are written here a second time, as functions of what the network is told.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from invdiff.core.errors import CapabilityError, ConfigError, ShapeError
from invdiff.priors.flows import Cosine, Interpolant, RectifiedFlow
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.paths import EDM, VE, ContinuousVP, PFGMpp
from invdiff.priors.steps import DiscreteVP, cosine_betas, cumulative_betas, linear_betas, scaled_linear_betas
from invdiff.priors.wrapped import Wrapped

F64 = torch.float64
SHAPE = (2, 2, 3)
SIZE = math.prod(SHAPE)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def col(v):
    return v.double().reshape(-1, 1, 1, 1)


ROOT = randn(SIZE, SIZE) / 4
COV, MEAN = ROOT @ ROOT.T + 1e-4 * torch.eye(SIZE, dtype=F64), 0.3 * randn(*SHAPE, seed=1)
PRIOR = GaussianPrior(MEAN, COV)


def ideal(predicts, alpha_sigma, rates=None, sigma_data=0.7):
    """The network that a perfect training would give."""

    def net(x, told):
        a, s = (col(v) for v in alpha_sigma(told.double()))
        if predicts == "edm":  # x = (x0 + s eps) / q
            q = torch.hypot(s, torch.full_like(s, sigma_data))
            a, s = 1 / q, s / q
        m = col(a) ** 2 * COV.expand(len(x), 1, SIZE, SIZE) + s**2 * torch.eye(SIZE, dtype=F64)
        z = torch.linalg.solve(m[:, 0], (x - a * MEAN).flatten(1)).reshape(x.shape)
        data, noise = MEAN + a * (z.flatten(1) @ COV).reshape(x.shape), s * z
        if predicts == "edm":  # F = (D - c_skip u) / c_out with u = q x, and q^2 = level^2 + sigma_data^2
            return (data - sigma_data**2 / q * x) / (s * sigma_data)
        if predicts == "velocity":
            da, ds = (col(v) for v in rates(told.double()))
            return da * data + ds * noise
        return {"noise": noise, "data": data, "score": -z, "v": a * noise - s * data}[predicts]

    return net


def table(betas, first=0, factor=1.0):
    """abar by a plain product, ln(level) linear between the steps."""
    abar = torch.tensor(betas, dtype=F64).neg().add(1).cumprod(0)
    levels = ((1 - abar) / abar).sqrt().log()

    def alpha_sigma(told):
        t = told / factor - first
        left = t.floor().clamp(0, len(levels) - 2).long()
        level = (levels[left] + (t - left) * (levels[left + 1] - levels[left])).exp()
        return (1 + level**2).rsqrt(), level * (1 + level**2).rsqrt()

    return alpha_sigma


def linear_vp(t):
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    return (-0.5 * integral).exp(), (1 - (-integral).exp()).sqrt()


def linear_vp_rates(t):
    a, s = linear_vp(t)
    beta = 0.1 + 19.9 * t
    return -0.5 * beta * a, 0.5 * beta * a**2 / s


def exploding(inverse):
    return lambda told: (torch.ones_like(told), inverse(told))


def trigonometric(t):
    return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)


def parabola(t):
    return (1 - t) ** 2, t.sqrt()


# name: path, alpha and sigma as functions of what is told, their derivatives, tolerance
PATHS = {
    "ddpm": (DiscreteVP(linear_betas()), table(linear_betas()), None, 1e-6),
    "ddpm, 1..T": (DiscreteVP(linear_betas(), first=1), table(linear_betas(), 1), None, 1e-6),
    "ddpm, t/T": (DiscreteVP(linear_betas(), factor=1e-3), table(linear_betas(), 0, 1e-3), None, 1e-6),
    "stable diffusion": (DiscreteVP(scaled_linear_betas()), table(scaled_linear_betas()), None, 1e-6),
    "squared cosine": (DiscreteVP(cosine_betas()), table(cosine_betas()), None, 1e-6),
    "vp": (ContinuousVP(), linear_vp, linear_vp_rates, 1e-10),
    "vp, 999 t": (ContinuousVP(factor=999.0), lambda u: linear_vp(u / 999), lambda u: linear_vp_rates(u / 999), 1e-10),
    "ve, log": (VE(), exploding(torch.exp), None, 1e-10),
    "ve, sigma": (VE(tells="sigma"), exploding(lambda u: u), lambda u: (0 * u, 0 * u + 1), 1e-10),
    "ve, index": (VE(tells="index", steps=101), exploding(lambda u: 0.01 * 5000 ** (u / 100)), None, 1e-10),
    "ncsn": (VE(tells="index", steps=101, descending=True), exploding(lambda u: 50 * 5000 ** (-u / 100)), None, 1e-10),
    "edm": (EDM(), exploding(lambda u: (4 * u).exp()), None, 1e-10),
    "flow": (RectifiedFlow(), lambda t: (1 - t, t), lambda t: (0 * t - 1, 0 * t + 1), 1e-10),
    "flow, data at 1": (
        RectifiedFlow(1, factor=1000.0),
        lambda u: (u / 1000, 1 - u / 1000),
        lambda u: (0 * u + 1, 0 * u - 1),
        1e-10,
    ),
    "cosine": (
        Cosine(),
        trigonometric,
        lambda t: (-math.pi / 2 * trigonometric(t)[1], math.pi / 2 * trigonometric(t)[0]),
        1e-10,
    ),
    "interpolant": (
        Interpolant(lambda t: (1 - t) ** 2, torch.sqrt, near=1e-4),
        parabola,
        lambda t: (-2 * (1 - t), 0.5 / t.sqrt()),
        1e-10,
    ),
}
PAIRS = [(n, p) for n, v in PATHS.items() for p in ("noise", "data", "v", "score", "velocity") if p != "velocity" or v[2]]


def levels(prior, count=7):
    """Over the interval; above 100, D = x - l eps and a = 1 - t lose l^2 roundings of float64, more than the tolerance."""
    low, high = max(prior.sigma_min, 1e-3), min(prior.sigma_max, 100.0)
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=F64).clamp(prior.sigma_min, prior.sigma_max)


def gap(prior, sigma):
    """Largest error of D relative to D and to what it removes; twenty roundings of x, 5e-15, count as 1e-10."""
    x = MEAN + (randn(len(sigma), SIZE, seed=2) @ ROOT.T).reshape(-1, *SHAPE) + col(sigma) * randn(len(sigma), *SHAPE, seed=3)
    want = PRIOR(x, sigma)
    norms = torch.stack([want, want - x]).flatten(2).norm(dim=2).min(0).values + 5e-5 * x.flatten(1).norm(dim=1)
    return float(((prior(x, sigma) - want).flatten(1).norm(dim=1) / norms).max())


@pytest.mark.parametrize(("name", "predicts"), PAIRS)
def test_every_parametrisation_is_the_same_denoiser(name, predicts):
    path, alpha_sigma, rates, tolerance = PATHS[name]
    prior = Wrapped(ideal(predicts, alpha_sigma, rates), path, predicts, shape=SHAPE)
    assert gap(prior, levels(prior)) < tolerance


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_edm_preconditioning(sigma_data):
    net = ideal("edm", exploding(lambda u: (4 * u).exp()), sigma_data=sigma_data)
    prior = Wrapped(net, EDM(), "edm", shape=SHAPE, sigma_data=sigma_data)
    assert gap(prior, levels(prior)) < 1e-9


@pytest.mark.parametrize("name", PATHS)
def test_paths_invert_their_level_and_differentiate(name):
    path, _, rates, _ = PATHS[name]
    level = torch.logspace(math.log10(path.sigma_min), math.log10(path.sigma_max), 301, dtype=F64)[1:-1]
    t = path.time(level)
    torch.testing.assert_close(path.sigma(t) / path.alpha(t), level, rtol=1e-11, atol=0)
    if rates:
        h = 1e-6 * torch.minimum(t, (1 - t).abs() + 1e-3)
        for rate, value in zip(path.rates(t), (path.alpha, path.sigma), strict=True):
            torch.testing.assert_close((value(t + h) - value(t - h)) / (2 * h), rate, rtol=1e-5, atol=1e-5)
    elif isinstance(path, DiscreteVP):
        with pytest.raises(CapabilityError, match="DiscreteVP: its time is not continuous"):
            Wrapped(lambda x, t: x, path, "velocity", shape=SHAPE)


def test_schedules_are_the_published_ones():
    """sigma_max of DDPM's, of Stable Diffusion's; f(1 / T) / f(0) and the cut at 0.999 of improved DDPM's."""
    assert DiscreteVP(linear_betas()).sigma_max == pytest.approx(157.4073, rel=1e-6)
    assert DiscreteVP(scaled_linear_betas()).sigma_min == pytest.approx(0.0291672, rel=1e-5)
    assert DiscreteVP(scaled_linear_betas()).sigma_max == pytest.approx(14.61464, rel=1e-6)
    betas = cosine_betas(4000)
    angles = [(u + 0.008) / 1.008 * math.pi / 2 for u in (0.0, 1 / 4000)]
    assert betas[0] == pytest.approx(1 - (math.cos(angles[1]) / math.cos(angles[0])) ** 2, rel=1e-9)
    assert betas[-1] == 0.999
    assert cumulative_betas(torch.tensor(linear_betas(), dtype=F64).neg().add(1).cumprod(0)) == pytest.approx(linear_betas())


@pytest.mark.parametrize("ours", [linear_betas, scaled_linear_betas, cosine_betas])
def test_schedules_are_those_of_diffusers(ours):
    schedulers = pytest.importorskip("diffusers.schedulers")
    name = {linear_betas: "linear", scaled_linear_betas: "scaled_linear", cosine_betas: "squaredcos_cap_v2"}[ours]
    ends = {scaled_linear_betas: (0.00085, 0.012)}.get(ours, (1e-4, 0.02))
    theirs = schedulers.DDPMScheduler(1000, beta_schedule=name, beta_start=ends[0], beta_end=ends[1]).alphas_cumprod.double()
    alpha = DiscreteVP(ours()).alpha(torch.arange(1000, dtype=F64))
    torch.testing.assert_close(alpha[:999], theirs[:999].sqrt(), rtol=1e-4, atol=0)  # theirs is a product in float32


def test_nearest_steps():
    """Whole int64 steps for tables; exact at the known levels, and between them what the nearest step's network says."""
    told = []

    def net(x, t):
        told.append(t)
        return ideal("noise", table(linear_betas(), 1))(x, t)

    path = DiscreteVP(linear_betas(), first=1, nearest=True)
    prior = Wrapped(net, path, "noise", shape=SHAPE)
    known = prior.known[[0, 9, 500, 998]]
    assert gap(prior, known) < 1e-9
    assert told[-1].tolist() == [1, 10, 501, 999]
    assert told[-1].dtype is torch.int64
    sigma = known[:1] * 1.2
    x = randn(1, *SHAPE)
    a = (1 + sigma**2).rsqrt()
    want = x - sigma * ideal("noise", table(linear_betas(), 1))(a * x, torch.ones(1))
    torch.testing.assert_close(prior(x, sigma), want, rtol=1e-12, atol=1e-12)
    assert DiscreteVP(linear_betas(), nearest=True, factor=1e-3).told(torch.tensor([1.4], dtype=F64)).item() == 1e-3


def test_learned_variance_is_ignored_and_must_be_said():
    net = ideal("noise", table(linear_betas()))
    both = lambda x, t: torch.cat([net(x, t), randn(*x.shape)], dim=1)  # noqa: E731
    path = DiscreteVP(linear_betas())
    prior = Wrapped(both, path, "noise", shape=SHAPE, learned_variance=True)
    assert gap(prior, levels(prior)) < 1e-6
    x, one = randn(1, *SHAPE), torch.ones(1, dtype=F64)
    with pytest.raises(ShapeError, match="got \\(1, 4, 2, 3\\): if the second half is a learned variance"):
        Wrapped(both, path, "noise", shape=SHAPE)(x, one)
    with pytest.raises(ShapeError, match="to return \\(1, 4, 2, 3\\), got \\(1, 2, 2, 3\\)"):
        Wrapped(net, path, "noise", shape=SHAPE, learned_variance=True)(x, one)


def test_conditions_and_other_calls():
    seen = []

    def net(x, t, condition=None):
        seen.append(condition)
        return x

    x, one = randn(1, *SHAPE), torch.ones(1, dtype=F64)
    prior, label = Wrapped(net, EDM(), "noise", shape=SHAPE), {"label": torch.zeros(1, dtype=torch.int64)}
    prior(x, one)
    prior(x, one, label)
    assert seen == [None, label]
    wrong = Wrapped(lambda x, t: (x,), EDM(), "noise", shape=SHAPE)
    with pytest.raises(ShapeError, match="returned a tuple, not a tensor"):
        wrong(x, one)
    right = Wrapped(lambda x, t: (x,), EDM(), "noise", shape=SHAPE, call=lambda net, x, t, condition: net(x, t)[0])
    torch.testing.assert_close(right(x, one), x - x)


class Linear(nn.Module):
    """A network with weights and dropout, which remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.mix, self.drop, self.told = nn.Conv2d(2, 2, 1), nn.Dropout(0.5), None

    def forward(self, x, t):
        self.told = t
        return self.drop(self.mix(x))


def test_dtypes_and_evaluation_mode():
    prior = Wrapped(Linear(), EDM(), "noise", shape=SHAPE)
    x, sigma = randn(2, *SHAPE), torch.tensor([0.1, 3.0], dtype=F64)
    assert not prior.training
    assert prior(x, sigma).dtype is F64
    assert prior(x.float(), sigma.float()).dtype is torch.float32
    torch.testing.assert_close(prior(x, sigma), prior(x, sigma))
    prior = Wrapped(Linear().bfloat16(), DiscreteVP(linear_betas()), "noise", shape=SHAPE)
    time = torch.tensor([997.0, 998.0], dtype=F64)
    assert prior(x, prior.path.sigma(time) / prior.path.alpha(time)).dtype is F64
    torch.testing.assert_close(prior.net.told, time.float())


@pytest.mark.parametrize(("name", "predicts"), [p for p in PAIRS if p[1] != "data"])
def test_no_cancellation_in_float32(name, predicts):
    """At the smallest level D keeps the digits of x: three roundings of it, whatever the path subtracts."""
    path, alpha_sigma, rates, _ = PATHS[name]
    net = ideal(predicts, alpha_sigma, rates)
    prior = Wrapped(lambda x, t: net(x.double(), t.double()).float(), path, predicts, shape=SHAPE)
    sigma = torch.full((4,), path.sigma_min * 1.0001)
    x = 1 + randn(4, *SHAPE).float()
    error = (prior(x, sigma).double() - PRIOR(x.double(), sigma.double())).abs().max()
    removed = (PRIOR(x.double(), sigma.double()) - x).abs().max()
    # told in float32, the level itself is uncertain: t near 1 by 6e-8 / 1e-3 where a flow counts from its data
    assert error < 3 * torch.finfo(torch.float32).eps * x.abs().max() + 2e-4 * removed


def test_derivative_and_batch_independence():
    prior = Wrapped(ideal("velocity", *PATHS["interpolant"][1:3]), PATHS["interpolant"][0], "velocity", shape=SHAPE)
    x, w, sigma = randn(3, *SHAPE), randn(3, *SHAPE, seed=4), torch.tensor([0.05, 0.7, 9.0], dtype=F64)
    for function in (prior, PRIOR):
        alone = torch.cat([function(x[k : k + 1], sigma[k : k + 1]) for k in range(3)])
        torch.testing.assert_close(function(x, sigma), alone, rtol=1e-11, atol=1e-12)
    ours, exact = (torch.func.vjp(lambda u, f=f: f(u, sigma), x)[1](w)[0] for f in (prior, PRIOR))
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)


POINTS = randn(5, 3, 4, 4, seed=5)


def dirac_mean(x, log_kernel):
    """E[x0 | x] for equal masses on POINTS and a kernel of the squared distance."""
    squared = (x[:, None] - POINTS).square().flatten(2).sum(2)
    return torch.einsum("bk,kchw->bchw", log_kernel(squared).softmax(1), POINTS)


def test_pfgm_with_finite_D_and_its_limit():
    """Exact for the heavy-tailed kernel; towards the Gaussian kernel the error falls as 1 / D, as its logarithm does."""
    size, sigma = POINTS[0].numel(), torch.tensor([2.0, 2.5, 3.0], dtype=F64)
    x = POINTS[:3] + col(sigma) * randn(3, 3, 4, 4, seed=6)
    gaussian = dirac_mean(x, lambda s: -s / (2 * sigma[:, None] ** 2))
    errors = []
    for D in (1e3, 1e4, 1e5, 1e6):

        def net(u, r, D=D):
            return dirac_mean(u, lambda s: -0.5 * (size + D) * torch.log1p(s / r[:, None] ** 2))

        prior = Wrapped(net, PFGMpp(D, tells="r"), "data", shape=(3, 4, 4))
        exact = dirac_mean(x, lambda s, D=D: -0.5 * (size + D) * (s + D * sigma[:, None] ** 2).log())
        torch.testing.assert_close(prior(x, sigma), exact, rtol=1e-9, atol=1e-9)
        errors.append(float((prior(x, sigma) - gaussian).norm()))
    orders = [math.log10(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[1:] == pytest.approx([1.0, 1.0], abs=0.05)
    assert errors[0] > 1e-3
    for tells, value in (("sigma", 2.0), ("log", math.log(2.0) / 4)):
        path = PFGMpp(128.0, tells=tells)
        assert path.told(path.time(torch.tensor(2.0, dtype=F64))).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wrapped(abs, EDM(), "eps", shape=SHAPE), "one of noise, data, v, score, velocity, edm, got 'eps'"),
        (lambda: Wrapped(abs, EDM(), "edm", shape=SHAPE), "sigma_data > 0"),
        (lambda: Wrapped(abs, EDM(), "noise", shape=SHAPE, sigma_data=0.5), "only there"),
        (lambda: Wrapped(abs, EDM(), "noise", shape=SHAPE, sigma_min=1e-4), "inside the path's \\[0.002, 80\\]"),
        (lambda: Wrapped(abs, EDM(), "noise", shape=SHAPE, sigma_max=100.0), "inside the path's"),
        (lambda: Wrapped(abs, EDM(), "noise", shape=SHAPE, value_range=(1.0, 0.0)), "low < high"),
        (lambda: DiscreteVP([0.1]), "2 or more betas"),
        (lambda: DiscreteVP([0.1, 1.0]), "betas in \\(0, 1\\), got 2 between 0.1 and 1"),
        (lambda: VE(tells="index"), "with steps"),
        (lambda: VE(tells="time"), "got 'time'"),
        (lambda: VE(descending=True), 'descending with tells "index" only'),
        (lambda: EDM(2.0, 1.0), "EDM: expected 0 < sigma_min < sigma_max"),
        (lambda: PFGMpp(-1.0), "D > 0"),
        (lambda: RectifiedFlow(2), "data_at 0 or 1"),
        (lambda: Cosine(0.7), "margin"),
        (lambda: ContinuousVP(first=0.0), "first"),
        (lambda: Interpolant(lambda t: 1 - t, lambda t: 1 - t), "increasing"),
    ],
)
def test_contradictions_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_free_size_must_be_a_multiple_and_a_fixed_one_is_what_it_is():
    one = torch.ones(1)
    with pytest.raises(ShapeError, match=r"Wrapped: expected sizes that are multiples of 8, got \(16, 12\): pad or crop"):
        Wrapped(net_of_zeros, EDM(), "noise", shape=(1, None, None), divisor=8)(torch.zeros(1, 1, 16, 12), one)
    assert Wrapped(net_of_zeros, EDM(), "noise", shape=(1, None, 12), divisor=8)(torch.zeros(1, 1, 16, 12), one).shape[2] == 16


def test_a_resumed_run_can_tell_priors_apart():
    """What is no weight shows in the representation; addresses of functions, which differ between processes, do not."""

    def text(path, predicts="noise"):
        return repr(Wrapped(net_of_zeros, path, predicts, shape=SHAPE))

    assert len({text(EDM()), text(VE()), text(VE(), "v"), text(VE(0.02), "v")}) == 4
    assert " at 0x" not in text(Interpolant(lambda t: 1 - t, lambda t: t))


def net_of_zeros(x, told):
    return torch.zeros_like(x)
