"""Despeckling by posterior sampling: single pixels by quadrature, calibration and the ratio image of simulated scenes."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, DataError, Gaussian, Problem, ShapeError, Streams
from invdiff.core.speckle import Intensity, LogIntensity, SingleLook
from invdiff.metrics import ratio_statistics
from invdiff.operators import Identity
from invdiff.priors import GaussianField, GaussianPrior, Matern
from invdiff.samplers.despeckle import Despeckle, log_problem

F64 = torch.float64


def pixels(z, looks, mean=0.5, std=1.2):
    """Independent pixels of log-intensities z, and mean and variance of their posterior by quadrature."""
    prior = GaussianPrior(torch.full((1, 1, len(z)), mean, dtype=F64), std**2 * torch.eye(len(z), dtype=F64), sigma_min=1e-3)
    u = torch.linspace(mean - 12.0 * std, mean + 12.0 * std, 20_001, dtype=F64)
    exponent = -looks * (u + (z[:, None] - u).exp()) - 0.5 * ((u - mean) / std) ** 2
    weight = torch.softmax(exponent, 1)
    middle = (weight * u).sum(1)
    return prior, middle, (weight * (u - middle[:, None]) ** 2).sum(1)


@pytest.mark.parametrize(("looks", "temper"), [(1.0, 1.0), (4.0, 1.0), (4.4, 1.0), (4.4, 0.5)])
def test_posterior_of_single_pixels_against_quadrature(looks, temper):
    """Log-intensities from 2.5 standard deviations below the prior's mean to two above; a power is a number of looks."""
    n, z = 800, torch.tensor([-2.5, 0.0, 1.0, 3.0], dtype=F64)
    prior, mean, variance = pixels(z, looks * temper)
    problem = Problem(Identity((1, 1, 4)), LogIntensity(looks), z.reshape(1, 1, 4))
    draws = Despeckle(temper=temper)(problem, prior, n, seed=0).x.flatten(1)
    # five standard errors, and what a coupling of 0.2 leaves: 0.04 of a standard deviation, 6 % of a variance
    assert bool(((draws.mean(0) - mean).abs() / variance.sqrt() < 0.04 + 5.0 * n**-0.5).all())
    assert bool((draws.var(0) / variance - 1.0).abs().max() < 0.06 + 5.0 * (2.0 / n) ** 0.5)
    # without the speckle's bias the answer is another one
    assert bool(((z - mean).abs() / variance.sqrt()).max() > 0.4)


def test_the_test_sees_a_strong_coupling():
    z = torch.tensor([-2.5, 0.0, 1.0, 3.0], dtype=F64)
    prior, _, variance = pixels(z, 4.4)
    problem = Problem(Identity((1, 1, 4)), LogIntensity(4.4), z.reshape(1, 1, 4))
    draws = Despeckle(steps=40, last=1.0)(problem, prior, 800, seed=0).x.flatten(1)
    assert float((draws.var(0) / variance - 1.0).abs().max()) > 0.5


def scene(looks, size, seed, length=2.0):
    field = GaussianField((1, *size), Matern(1.5), mean=1.0, std=1.0, length=length, sigma_min=5e-3)
    truth = field.sample(Streams(seed), F64)
    return field, truth, Problem.simulate(Identity((1, *size)), LogIntensity(looks), truth, seed + 1)


@pytest.mark.parametrize("looks", [1.0, 4.4])
def test_intervals_of_simulated_scenes_are_calibrated(looks):
    """Ranks of the truth among 19 draws, in three scenes: uniform, so that the second to the last but one enclose 90 %."""
    ranks, covered = [], []
    for k in range(3):
        field, truth, problem = scene(looks, (12, 12), 10 * k, length=1.0)
        draws = Despeckle(steps=40, inner=3)(problem, field, 19, seed=k).x
        rank = (draws < truth).sum(0).flatten()
        ranks.append(rank)
        covered.append(float(((rank > 0) & (rank < 19)).double().mean()))
    rank = torch.cat(ranks).double()
    # neighbours share what is unknown: as if a quarter of the 432 pixels were independent
    independent = len(rank) / 4.0
    assert abs(sum(covered) / 3.0 - 0.9) < 4.0 * math.sqrt(0.09 / independent)
    assert abs(float(rank.mean()) - 9.5) < 4.0 * math.sqrt(33.25 / independent)
    assert abs(float(rank.var()) / 33.25 - 1.0) < 4.0 * math.sqrt(0.8 / independent)
    # fewer draws that are half as wide would not do: the interval of one standard deviation
    inner = ((rank > 2) & (rank < 17)).double().mean()
    assert abs(float(inner) - 0.7) < 4.0 * math.sqrt(0.21 / independent)


def test_the_ratio_image_is_speckle():
    """Of a draw of the posterior I / R has the law of speckle: mean 1 +- 0.02, variance 1 / L, neighbours not correlated."""
    looks = 4.0
    field, _, problem = scene(looks, (64, 64), 3, length=6.0)
    draws = Despeckle(steps=40)(problem, field, 4, seed=0).x
    intensity = problem.y.exp()
    found = ratio_statistics(intensity.expand_as(draws), draws.exp(), looks)
    assert abs(float(found.mean.mean()) - 1.0) < 0.02
    # the standard error of a variance of 4,096 Gamma values of four looks is 2.9 %
    assert abs(float(found.variance.mean()) * looks - 1.0) < 0.12
    assert float(found.autocorrelation.mean(0).abs().max()) < 4.0 / 64.0
    # of a scene that was blurred the ratio has structure
    blurred = torch.nn.functional.avg_pool2d(intensity, 31, 1, 15, count_include_pad=False)
    assert float(ratio_statistics(intensity, blurred, looks).autocorrelation.max()) > 0.2


def test_what_every_sampler_promises(tmp_path):
    field, _, problem = scene(4.0, (8, 8), 0)
    sampler, path = Despeckle(steps=4, inner=3), tmp_path / "run.pt"
    whole = sampler(problem, field, 4, seed=0, batch=2)
    assert torch.equal(sampler(problem, field, 4, seed=0, batch=2).x, whole.x)
    assert not torch.equal(sampler(problem, field, 4, seed=1, batch=2).x, whole.x)
    torch.testing.assert_close(sampler(problem, field, 4, seed=0).x, whole.x, rtol=1e-9, atol=1e-9)
    assert whole.network_calls == 4 * (2 * 3 - 1) and [i["step"] for i in whole.info] == [1, 2, 3, 4]
    assert whole.info[0]["rho"] == 1.5 and whole.info[-1]["rho"] == pytest.approx(0.2)

    def interrupt(info):
        if info["step"] == 2 and info["draws"][0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, field, 4, seed=0, batch=2, resume=path, callback=interrupt)
    assert torch.equal(sampler(problem, field, 4, seed=0, batch=2, resume=path).x, whole.x)
    single = Problem(problem.operator, problem.noise, problem.y.float())
    assert sampler(single, field, 2, seed=0).x.dtype == torch.float32


def test_the_preset():
    from pathlib import Path

    import yaml

    import invdiff
    from invdiff.core import build

    path = Path(invdiff.__file__).parent / "configs" / "sampler" / "despeckle.yaml"
    assert build(yaml.safe_load(path.read_text())) == Despeckle()


def test_images_become_problems():
    """One image in three coordinates; zeros, gaps and wrong numbers of looks are said."""
    r = torch.full((1, 1, 6, 5), 2.0, dtype=F64)
    z = SingleLook().sample(r, Streams(0))[0]
    problem = log_problem(z, kind="complex")
    assert problem.shape == (1, 6, 5) and problem.noise.looks == 1.0
    torch.testing.assert_close(problem.y[0], z.abs().square().log())
    for other in (log_problem(z.abs(), kind="amplitude"), log_problem(z[0].abs().square(), kind="intensity", looks=1.0)):
        torch.testing.assert_close(other.y, problem.y)
    looks = log_problem(Intensity(4.4).sample(r, Streams(0))[0], kind="intensity", looks=4.4)
    assert looks.noise.looks == 4.4
    faint = log_problem(torch.full((2, 2), 1e-30), kind="amplitude")
    assert float(faint.y.max()) == pytest.approx(2.0 * math.log(1e-30), rel=1e-6)
    gap = z.clone()
    gap[0, 0, :2] = 0.0
    with pytest.raises(DataError, match="2 of the 30 values are zero"):
        log_problem(gap, kind="complex")
    floored = log_problem(gap, kind="complex", floor=1e-3)
    assert float(floored.y.min()) == pytest.approx(math.log(1e-3))
    for bad, kind in ((float("nan") * z, "complex"), (-z.abs(), "intensity"), (z.abs() / 0.0, "amplitude")):
        with pytest.raises(DataError, match="not finite"):
            log_problem(bad, kind=kind)
    with pytest.raises(ConfigError, match="one look"):
        log_problem(z, kind="complex", looks=4.0)
    for options in ({"kind": "phase"}, {"kind": "intensity", "floor": -1.0}):
        with pytest.raises(ConfigError, match="log_problem"):
            log_problem(z.abs(), **options)
    for wrong, kind in ((z.abs(), "complex"), (z, "intensity"), (z[0, 0].abs(), "intensity"), (z.abs().long(), "intensity")):
        with pytest.raises(ShapeError, match="log_problem"):
            log_problem(wrong, kind=kind)


def test_what_it_can_not_do():
    field, _, problem = scene(4.0, (8, 8), 0)
    with pytest.raises(CapabilityError, match="LogIntensity"):
        Despeckle()(Problem(problem.operator, Gaussian(1.0), problem.y), field, seed=0)
    with pytest.raises(CapabilityError, match="log_problem"):
        Despeckle()(problem.through(Identity((1, 8, 8)) @ Identity((1, 8, 8))), field, seed=0)
    with pytest.raises(CapabilityError, match="rho goes"):
        Despeckle(last=1e-4)(problem, field, seed=0)
    for wrong in ({"temper": 0.0}, {"temper": 1.5}, {"last": 3.0}, {"inner": 0}):
        with pytest.raises(ConfigError, match="Despeckle"):
            Despeckle(**wrong)
    assert len(Despeckle(temper=0.7).caveats) == 2 and "power 0.7" in Despeckle(temper=0.7).caveats[1]
