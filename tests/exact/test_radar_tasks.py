"""Radar tasks: items of files and of scenes, sparse apertures, scores against known answers, errors of use."""

import math

import numpy as np
import pytest
import torch

from invdiff.core import ConfigError, Gaussian, LogIntensity, Problem, Samples, ShapeError, Streams
from invdiff.generators.land_cover import LandCover
from invdiff.operators import Identity, Speckled
from invdiff.operators.sar import PhaseHistory
from invdiff.operators.sar_geometry import form_image
from invdiff.priors import SpeckledPrior, StationaryGaussian
from invdiff.samplers import SplitGibbs
from invdiff.samplers.despeckle import Despeckle
from invdiff.samplers.reflectivity_em import ReflectivityEM
from invdiff.tasks import Task
from invdiff.tasks.radar import BackProjection, PhaseHistories, phase_history, radar_score, reflectivity
from invdiff.tasks.setups import Crop, Relative, synthesis
from invdiff.tasks.speckle_images import SpeckledImages, log_reflectivity, ratio_score
from invdiff.tasks.translation import RadarPairs

SMALL = {"size": (16, 16), "pulses": 12, "frequencies": 16}


def item(**options):
    return next(PhaseHistories(**(SMALL | options)).items(1, 0, None))


def phase_file(tmp_path, scene=None):
    """A generic phase history of a made-up scene."""
    own = item() if scene is None else scene
    y = own.operator()(own.truth[None])[0, 0]
    path = tmp_path / "history.npz"
    parts = {"signal": y.numpy(), "positions": own.track.numpy(), "frequencies": own.frequencies.numpy()}
    np.savez(path, **parts, sign=-1)
    return path, y


def test_a_file_gives_the_scene_that_made_it(tmp_path):
    path, y = phase_file(tmp_path)
    read = item(path=str(path))
    assert torch.equal(read.y[0], y) and read.truth is None
    torch.testing.assert_close(read.operator()(item().truth[None])[0, 0], y, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(read.whole, form_image(item().operator(), y[None, None])[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="one item"):
        list(PhaseHistories(path=str(path), **SMALL).items(2, 0, None))
    with pytest.raises(ConfigError, match="gotcha only"):
        item(path=[str(path), str(path)])


def test_options_that_would_do_nothing_or_harm_are_errors():
    for options in ({"format": "gotcha"}, {"sign": 1}):
        with pytest.raises(ConfigError, match="a file, data"):
            item(**options)
    for options in ({"elevation": 90.0}, {"aperture": 0.0}, {"distance": -1.0}, {"bandwidth": 2e10}, {"bandwidth": 0.0}):
        with pytest.raises(ConfigError, match="PhaseHistories"):
            item(**options)
    for options in ({"window": (0, 0, 8, 8)}, {"kind": "intensity"}, {"floor": 1.0}, {"dataset": "slc"}):
        with pytest.raises(ConfigError, match=f"for {next(iter(options))}="):
            SpeckledImages(**options)


def test_scenes_of_any_size():
    own = item(size=(5, 11))
    assert own.truth.shape == (1, 5, 11) and own.points.shape == (5, 11, 3)
    assert radar_score(own, own.truth[None])["error"] < 1e-5


def test_the_score_of_the_truth_is_zero_and_of_nothing_one():
    own = item()
    right = radar_score(own, own.truth[None])
    assert right["error"] < 1e-5 and right["magnitude_error"] < 1e-5 and 0.0 < right["entropy"] < math.log(256)
    wrong = radar_score(own, torch.stack((2.0 * own.truth, -0.2 * own.truth)))
    assert wrong["error"] == pytest.approx(0.1, rel=1e-4)


def test_a_sparse_aperture_measures_its_share():
    operator = phase_history(item(), pattern="random", share=0.25)
    assert isinstance(operator, PhaseHistory) and int(operator.measured.any(-1).sum()) == 3
    back, _ = BackProjection()(Problem(operator, Gaussian(0.1), operator(item().truth[None])))
    assert back.shape == (1, 1, 16, 16)


def test_what_is_said_of_the_reflectivity():
    """Draws a nat above and below the truth: their mean is right, their intervals hold it, the image given it is near."""
    own = item()
    problem = Problem.simulate(own.operator(), Gaussian(0.01), own.truth[None], 0).through(Speckled((16, 16)))
    u = own.reflectivity + torch.tensor([-1.0, 1.0])[:, None, None, None]
    x = torch.cat((u, torch.zeros(2, 2, 16, 16)), 1)
    draws = Samples(x=x, sampler="test", kind="posterior", network_calls=0, network_vjps=0, operator_calls=0, seconds=0.0)
    facts, figures = reflectivity(own, draws, problem)
    assert facts["reflectivity_rms"] == pytest.approx(0.0, abs=1e-6) and facts["reflectivity_coverage"] == 1.0
    assert facts["given_u_error"] < 0.05
    assert set(figures) == {"Log-reflectivity"}
    assert reflectivity(own, draws, problem.through(Identity((3, 16, 16)))) == ({}, {})


@pytest.mark.parametrize("sampler", [SplitGibbs(steps=4, cg_steps=20), ReflectivityEM(steps=3, cg_steps=20)])
def test_complex_images_are_drawn_through_the_prior_of_their_reflectivity(sampler, tmp_path):
    task = Task(
        name="radar", data=PhaseHistories(**SMALL), operator=phase_history, noise=Relative(0.2), view="magnitude",
        score=radar_score, inspect=reflectivity, baselines=[BackProjection()],
    )  # fmt: skip
    prior = SpeckledPrior(StationaryGaussian((1, 16, 16), std=1.0, mean=0.0))
    report = task.run(prior=prior, sampler=sampler, n=2, out=tmp_path / "out")
    estimate = report.items[0].estimates[-1]
    assert estimate.samples.x.shape == (2, 1, 16, 16) and not estimate.samples.x.is_complex()
    assert estimate.facts["error"] < 1.0 and estimate.facts["reflectivity_rms"] < 3.0
    assert ("reflectivity_coverage" in estimate.facts) == (sampler.kind == "posterior")


def test_a_prior_of_complex_images_takes_a_larger_grid_but_no_real_operator():
    prior = SpeckledPrior(StationaryGaussian((1, 24, 24), std=1.0))
    crop = synthesis(phase_history(item()), prior)
    assert isinstance(crop, Crop) and crop.in_complex and crop.in_shape == (1, 24, 24)
    with pytest.raises(ShapeError, match="takes real ones"):
        synthesis(log_reflectivity(next(SpeckledImages(size=24).items(1, 0, None))), prior)


def test_despeckling_a_file(tmp_path):
    """The ratio of a constant scene, given the truth, has the moments of the speckle; the window is cut out."""
    z = Streams(0).normal(0, (1, 64, 48), "z", torch.complex64)[0, 0] * math.sqrt(0.5)
    np.save(tmp_path / "slc.npy", z.numpy())
    own = next(SpeckledImages(path=str(tmp_path / "slc.npy"), window=(8, 0, 56, 48)).items(1, 0, None))
    torch.testing.assert_close(own.y[0].exp(), z[8:].abs().square(), rtol=1e-4, atol=1e-7)
    facts = ratio_score(own, torch.zeros(1, 1, 56, 48))
    n = 56 * 48
    assert abs(facts["ratio_mean"] - 1.0) < 4.0 / math.sqrt(n) and abs(facts["ratio_variance"] - 1.0) < 4.0 * math.sqrt(8.0 / n)
    assert max(abs(facts["ratio_lag_row"]), abs(facts["ratio_lag_column"])) < 4.0 / math.sqrt(n)
    with pytest.raises(ConfigError, match="not within"):
        next(SpeckledImages(path=str(tmp_path / "slc.npy"), window=(30, 0, 56, 48)).items(1, 0, None))
    task = Task(name="speckle", data=SpeckledImages(size=16), operator=log_reflectivity, noise=LogIntensity(1.0))
    report = task.run(prior=StationaryGaussian((1, 16, 16), mean=-2.0, std=1.0), sampler=Despeckle(steps=4), n=2)
    assert report.items[0].estimates[-1].image.shape == (1, 16, 16)


def test_pairs_from_a_file_have_no_truth(tmp_path):
    sar = LandCover(size=16)((0,))["sar"][0, 0].numpy()
    np.savez(tmp_path / "sar.npz", sar=sar)
    (own,) = RadarPairs(path=str(tmp_path / "sar.npz")).items(1, 0, None)
    assert own.truth is None and own.shape == (3, 16, 16) and torch.equal(own.told["sar"][0, 0], torch.from_numpy(sar))
    (made,) = RadarPairs(generator=LandCover(size=16)).items(1, 0, None)
    assert made.truth.shape == (3, 16, 16) and made.told["sar"].shape == (1, 1, 16, 16)
