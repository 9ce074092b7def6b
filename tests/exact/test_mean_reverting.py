"""Mean-reverting priors: the path of the SDE, the denoiser of a Gaussian, MR Sampler's steps against ours, posteriors."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Karras, Problem, ShapeError, Streams
from invdiff.priors import ContinuousVP, DiscreteVP, GaussianPrior
from invdiff.priors.mean_reverting import MeanReverting, reverting_betas
from invdiff.samplers import Guided
from invdiff.samplers.linear_multistep import DPMSolver

F64 = torch.float64
SHAPE, SCALE = (1, 2, 2), 0.4
MU = torch.tensor([0.3, -0.2, 0.8, 0.1], dtype=F64).reshape(1, *SHAPE)
VARIANCES = torch.tensor([0.02, 0.1, 0.3, 0.9], dtype=F64)
# x0 is not about mu: the degraded image is biased
MEAN = (MU + 0.15)[0]
LAW = GaussianPrior(MEAN, VARIANCES.diag())
PATHS = {"irsde": DiscreteVP(reverting_betas(), first=1), "linear": ContinuousVP(first=1e-4)}


def network(path, predicts):
    """The exact one of N(MEAN, diag VARIANCES): of x_t ~ N(alpha MEAN + (1 - alpha) mu, alpha^2 C + s^2), of elements."""

    def net(x, mu, time):
        alpha = path.alpha(time.double())[:, None, None, None]
        s = SCALE * (1.0 - alpha**2).sqrt()
        c = VARIANCES.reshape(1, *SHAPE)
        x0 = MEAN + alpha * c / (alpha**2 * c + s**2) * (x - alpha * MEAN - (1.0 - alpha) * mu)
        n = (x - alpha * x0 - (1.0 - alpha) * mu) / s
        return {"noise": n, "data": x0, "score": -n / s}[predicts]

    return net


def make(name="irsde", predicts="noise", mean=MU):
    return MeanReverting(network(PATHS[name], predicts), PATHS[name], predicts, shape=SHAPE, scale=SCALE, mean=mean)


def randn(*shape, seed=0):
    return Streams(seed).normal(0, shape, "test", F64)[0]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("predicts", ["noise", "data", "score"])
def test_it_is_the_denoiser_of_its_law(name, predicts):
    prior = make(name, predicts)
    levels = torch.logspace(math.log10(1.01 * prior.sigma_min), math.log10(0.99 * prior.sigma_max), 7, dtype=F64)
    x = MEAN + (1.0 + levels)[:, None, None, None] * randn(7, *SHAPE)
    torch.testing.assert_close(prior(x, levels), LAW(x, levels), rtol=1e-9, atol=1e-9)
    assert torch.equal(prior.origin, MU[0]) and prior.posterior_mean
    # a network of mu = 0 that is called as one of mu is another denoiser
    other = prior.tell({"mean": torch.zeros_like(MU)})
    assert float((other(x, levels) - LAW(x, levels)).abs().max()) < 1e-9  # the exact net knows mu, wherever it is
    wrong = MeanReverting(
        lambda x, mu, t: prior.prior.net(x, 0.0 * mu, t), PATHS[name], predicts, shape=SHAPE, scale=SCALE, mean=MU
    )
    assert float((wrong(x, levels) - LAW(x, levels)).abs().max()) > 1e-3


def test_the_path_is_that_of_the_sde():
    """Mean and variance of dx = theta (mu - x) dt + sqrt(2 theta) lambda dw by small steps of their own equations."""
    path = ContinuousVP(beta_min=0.2, beta_max=8.0, first=1e-4)
    m, v, mu, x0, n = 0.0, 0.0, 0.7, -0.4, 200_000
    m = x0
    for k in range(n):
        theta = 0.5 * (0.2 + 7.8 * (k + 0.5) / n)
        # the midpoint rule for both linear equations
        m += (mu - m - 0.5 * theta / n * (mu - m)) * theta / n
        v += (2.0 * theta * (SCALE**2 - v) - theta / n * 2.0 * theta * (SCALE**2 - v)) / n
    alpha = float(path.alpha(torch.tensor(1.0, dtype=F64)))
    assert m == pytest.approx(alpha * x0 + (1.0 - alpha) * mu, rel=1e-8)
    assert v == pytest.approx(SCALE**2 * (1.0 - alpha**2), rel=1e-8)
    abar = torch.cumprod(1.0 - torch.tensor(reverting_betas(50, 0.01), dtype=F64), 0)
    assert float(abar[-1].sqrt()) == pytest.approx(0.01, rel=1e-9)
    theta = -torch.diff(torch.cat([torch.zeros(1, dtype=F64), abar.log()]))
    # the cosine's shape, and its end, where theta is proportional to one
    assert bool((torch.diff(theta) > 0).all()) and float(theta[24] / theta[49]) == pytest.approx(
        1 - math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2, rel=1e-9
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_steps_of_mr_sampler_are_ours(eta):
    """x at s and t, times of the mean-reverting SDE, by its semi-analytic solutions for a frozen network (noise for the ODE,
    data for the SDE), against one step in u: to rounding."""
    path, prior = PATHS["linear"], make("linear")
    draws, noise = randn(3, *SHAPE, seed=1), randn(3, *SHAPE, seed=2)
    for now, then in ((0.9, 0.7), (0.5, 0.45), (0.2, 0.01)):
        t = torch.tensor([now, then], dtype=F64)
        (a, b), (s, r) = path.alpha(t).tolist(), (SCALE * path.sigma(t)).tolist()
        x = a * MEAN + (1 - a) * MU + draws
        told = torch.full((3,), now, dtype=F64)
        h = math.log((s / a) / (r / b))
        if eta == 0.0:
            n = network(path, "noise")(x, MU, told)
            theirs = b / a * x + (1 - b / a) * MU - r * math.expm1(h) * n
        else:
            x0, decay = network(path, "data")(x, MU, told), math.exp(-2 * h)
            theirs = r / s * math.exp(-h) * x + (1 - b / a * decay - b + b * decay) * MU
            theirs = theirs + b * (1 - decay) * x0 + r * math.sqrt(1 - decay) * noise
        u = (x - (1 - a) * MU) / a
        ours, _ = DPMSolver(eta).advance(prior, u, u.new_zeros(1, *u.shape), [s / a, r / b, 0.0], 0, lambda: noise)
        torch.testing.assert_close(b * ours + (1 - b) * MU, theirs, rtol=1e-12, atol=1e-12)


def test_draws_are_of_the_law_and_start_about_mu():
    """2,000 draws from N(mu, sigma_max^2): five standard errors of mean and variance of each element."""
    prior, n = make(), 2000
    problem = Problem.unmeasured(SHAPE, dtype=F64)
    x = Guided(None, DPMSolver(), Karras(), steps=40)(problem, prior, n, seed=0).x
    deviation, variance = VARIANCES.sqrt().reshape(SHAPE), VARIANCES.reshape(SHAPE)
    assert float(((x.mean(0) - MEAN).abs() / deviation).max()) < 5.0 / math.sqrt(n)
    assert float((x.var(0) / variance - 1.0).abs().max()) < 5.0 * math.sqrt(2.0 / n)


def test_a_module_in_its_own_precision_is_told_and_saved():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Conv2d(2, 1, 1)

        def forward(self, x, mu, time):
            assert x.dtype == mu.dtype == torch.float32 and x.shape == mu.shape and time.shape == x.shape[:1]
            return self.mix(torch.cat([x, mu], 1))

    path = PATHS["irsde"]
    untold = MeanReverting(Net(), path, shape=(1, None, None), scale=SCALE, name="degraded", value_range=(0.0, 1.0))
    x, level = randn(3, 1, 4, 6), torch.full((3,), 0.5, dtype=F64)
    with pytest.raises(CapabilityError, match="expected to be told degraded"):
        untold(x, level)
    prior = untold.tell({"degraded": randn(1, 1, 4, 6, seed=3), "other": x})
    out = prior(x, level)
    assert out.dtype == F64 and out.shape == x.shape and prior.value_range == (0.0, 1.0) and not prior.training
    torch.testing.assert_close(prior(x[1:2], level[:1]), out[1:2], rtol=1e-6, atol=1e-6)
    assert set(prior.state_dict()) == {"mean", "prior.net.mix.weight", "prior.net.mix.bias"}
    assert prior.sigma_max == pytest.approx(SCALE * path.sigma_max) and untold.origin == 0.0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scale": 0.0}, ConfigError, "scale > 0"),
        ({"predicts": "v"}, ConfigError, "one of noise, data, score"),
        ({"mean": MU[0]}, ShapeError, r"mean of shape \(1, 1, 2, 2\), got \(1, 2, 2\)"),
    ],
)
def test_what_cannot_be_is_an_error(options, error, words):
    with pytest.raises(error, match=words):
        MeanReverting(network(PATHS["irsde"], "noise"), PATHS["irsde"], **{"shape": SHAPE, "mean": MU} | options)
    with pytest.raises(ConfigError, match="expected to be told mean, got other"):
        make().tell({"other": MU})
    with pytest.raises(ConfigError, match=r"last in \(0, 1\)"):
        reverting_betas(10, 1.0)
    wrong = MeanReverting(lambda x, mu, t: x[:, :, :1], PATHS["irsde"], "data", shape=SHAPE, mean=MU)
    with pytest.raises(ShapeError, match="expected function to return"):
        wrong(MU, torch.ones(1, dtype=F64))
