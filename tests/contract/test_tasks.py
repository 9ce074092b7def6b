"""Every packaged task runs tiny and reports in the schema; data, setups, resuming and errors against known answers."""

import json
import math

import numpy as np
import pytest
import torch

from invdiff.catalogue import load
from invdiff.configs import names
from invdiff.core import DataError, Denoiser, Gaussian, InvdiffError, ShapeError, Streams, build
from invdiff.guidance import MMPS
from invdiff.operators.restoration import Identity
from invdiff.priors import StationaryGaussian
from invdiff.samplers import Guided
from invdiff.samplers.despeckle import Despeckle
from invdiff.tasks import Crop, Item, Photographs, Relative, Task
from invdiff.tasks.closed_form import exact_posterior
from invdiff.tasks.distance import distance_from_prior
from invdiff.tasks.setups import cartesian_mri, gaussian_signal, synthesis
from invdiff.validation.matrix import tiny

FAST = Guided(guidance=MMPS(cg_steps=2), steps=4)
METRICS = {"psnr", "ssim", "nrmse", "misfit", "coverage"}


def small(data=None, operator=None, **options) -> Task:
    options = {"noise": Gaussian(0.1), "name": "small"} | options
    return Task(data=data or Photographs(size=16), operator=operator or (lambda item: Identity(item.shape)), **options)


FIELD = StationaryGaussian((1, 16, 16), mean=0.4, std=0.2)


# every packaged task


@pytest.mark.parametrize("name", names("task"))
def test_a_packaged_task_runs_and_its_report_has_the_schema(name, tmp_path):
    task, prior = tiny(name)
    sampler = Despeckle(steps=2) if name == "sar_despeckle" else FAST
    report = task.run(prior=prior, sampler=sampler, n=2, seed=3, out=tmp_path / "out")
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert facts["task"] == name
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "report.json",
        "report.html",
        "figure.png",
        "samples.h5",
        "config.yaml",
    }
    assert not (tmp_path / "out/resume").exists()
    (item,) = facts["items"]
    assert len(item["methods"]) == len(task.baselines) + 1 + task.exact
    for method in item["methods"].values():
        assert method.keys() >= METRICS
        assert math.isfinite(method["misfit"])
        assert math.isfinite(method["nrmse"])
        assert (method["error_rate"] is None) == (task.levels is None)
    assert facts["facts"]["data"][item["name"]].keys() >= {"operator", "noise", "pixel_mm"}
    assert report.table().count("\n") >= len(item["methods"])


@pytest.mark.parametrize("name", names("task"))
def test_a_packaged_task_writes_down_all_options_of_its_data(name):
    """Only what is written down can be set on hydra's command line."""
    config = load("task", name)
    data = build(config["data"])
    assert {k for k in config["data"] if not k.startswith("_")} == set(data.__dataclass_fields__)


def test_the_same_seed_gives_the_same_numbers_and_items_do_not_depend_on_their_number():
    task = small()
    one, again, two = (task.run(prior=FIELD, sampler=FAST, n=2, items=k, seed=5) for k in (1, 1, 2))
    x = [r.items[0].estimates[-1].samples.x for r in (one, again, two)]
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
    assert not torch.equal(x[0], task.run(prior=FIELD, sampler=FAST, n=2, seed=6).items[0].estimates[-1].samples.x)


def test_toy_draws_agree_with_the_exact_posterior_and_a_wrong_sampler_does_not():
    """2,000 draws, 16 elements and 136 covariances: 5 standard errors are exceeded once in 10^4 runs of a right sampler."""
    task = build(load("task", "toy_gaussian") | {"baselines": []})
    prior = gaussian_signal()
    right = task.run(prior=prior, sampler=Guided(guidance=MMPS(cg_steps=4), steps=60)).items[0].estimates[-1].facts
    assert right["z_mean"] < 5
    assert right["z_cov"] < 5
    assert right["std_ratio"] == pytest.approx(1, abs=0.03)
    wrong = task.run(prior=prior, sampler=Guided(steps=30)).items[0].estimates[-1].facts
    assert wrong["z_mean"] > 20
    assert wrong["std_ratio"] > 1.05


def test_photograph_tasks_compare_with_the_exact_posterior():
    task, prior = tiny("inpaint")
    facts = task.run(prior=prior, sampler=Guided(guidance=MMPS(cg_steps=20), steps=40), n=16).items[0].estimates[-1].facts
    # 16 draws of 1,024 correlated pixels: the mean's error is 1 standard error, the spread's relative error below 5 %
    assert facts["mean_error"] == pytest.approx(1, abs=0.35)
    assert facts["std_ratio"] == pytest.approx(1, abs=0.05)


# interrupted runs


class Interrupted(StationaryGaussian):
    """A prior during whose k-th call somebody presses Ctrl-C."""

    left = math.inf

    def forward(self, x, sigma):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().forward(x, sigma)


@pytest.mark.parametrize("calls", [3, 9])
def test_an_interrupted_run_leaves_only_its_progress_and_continues(tmp_path, calls):
    """Seven calls an item and batch of one: interrupted in the first item, and in the second."""
    task, out = small(), tmp_path / "out"
    prior = Interrupted((1, 16, 16), mean=0.4, std=0.2).float()
    options = {"prior": prior, "sampler": FAST, "n": 2, "items": 2}
    whole = task.run(**options)
    prior.left = calls
    with pytest.raises(KeyboardInterrupt):
        task.run(**options, out=out)
    assert [p.name for p in out.iterdir()] == ["resume"]
    prior.left = math.inf
    with pytest.raises(DataError, match="seed is 0, here it is 1"):
        task.run(**options, out=out, seed=1)
    resumed = task.run(**options, out=out)
    for a, b in zip(whole.items, resumed.items, strict=True):
        assert torch.equal(a.estimates[-1].samples.x, b.estimates[-1].samples.x)
        assert a.estimates[-1].samples.network_calls == b.estimates[-1].samples.network_calls
    assert (out / "report.json").exists()
    assert not (out / "resume").exists()


def test_resume_false_starts_anew_and_a_damaged_file_is_named(tmp_path):
    task = small()
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume/0.draws").write_bytes(b"no file of ours")
    with pytest.raises(DataError, match=r"0\.draws: is no file of an interrupted run"):
        task.run(prior=FIELD, sampler=FAST, n=1, out=tmp_path)
    assert (tmp_path / "resume/0.draws").exists()
    task.run(prior=FIELD, sampler=FAST, n=1, out=tmp_path, resume=False)
    assert (tmp_path / "report.json").exists()
    assert not (tmp_path / "resume").exists()


# noise, and the way to the prior's grid


def test_relative_noise_is_a_part_of_the_measured_signal():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    operator = Identity((1, 8, 8))
    operator.measured = mask
    clean = 3.0 * mask[None].double()
    assert float(Relative(0.02).of(clean, operator, noisy=False).sigma) == pytest.approx(0.06, rel=1e-12)
    # the mean square of a noisy measurement is (1 + level^2) times that of the clean one
    assert float(Relative(0.5).of(clean * 1.25**0.5, operator, noisy=True).sigma) == pytest.approx(1.5, rel=1e-12)
    kspace = cartesian_mri(Item("i", (1, 8, 8)), coils=1, acceleration=1.5)
    y = (1 + 1j) * kspace.measured.expand(1, 1, 8, 8).double()
    assert float(Relative(0.1).of(y, kspace, noisy=False).sigma) == pytest.approx(0.1, rel=1e-12)


def test_crop_is_the_centre_and_its_adjoint_pads():
    crop = Crop((2, 8, 7), (2, 5, 4))
    x, y = Streams(0).normal(0, (2, 8, 7), dtype=torch.float64), Streams(1).normal(0, (2, 5, 4), dtype=torch.float64)
    assert torch.equal(crop(x), x[:, :, 1:6, 1:5])
    assert float((crop(x) * y).sum()) == pytest.approx(float((x * crop.adjoint(y)).sum()), rel=1e-12)
    assert torch.equal(crop(crop.adjoint(y)), y)
    with pytest.raises(ShapeError, match="is no part of"):
        Crop((1, 4, 4), (1, 5, 4))


class Flat(Denoiser):
    """A prior of any size that is a multiple of eight."""

    divisor = 8

    def __init__(self, channels):
        super().__init__((channels, None, None))

    def forward(self, x, sigma):
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0
        return x / (1 + sigma[:, None, None, None] ** 2)


def test_sizes_that_the_network_does_not_divide_go_through_a_larger_grid():
    report = small(Photographs(size=20)).run(prior=Flat(1), sampler=FAST, n=2)
    assert report.items[0].estimates[-1].image.shape == (1, 20, 20)
    operator = cartesian_mri(Item("i", (1, 20, 24)), coils=2)
    to_image = synthesis(operator, Flat(2))
    assert to_image.in_shape == (2, 24, 24)
    assert to_image.out_shape == (1, 20, 24)
    assert to_image.out_complex
    assert synthesis(Identity((1, 16, 16)), Flat(1)) is None


@pytest.mark.parametrize(
    ("operator", "shape"), [(Identity((1, 16, 16)), (2, None, None)), (Identity((1, 32, 32)), (1, 16, 16))]
)
def test_a_prior_that_does_not_fit_is_named(operator, shape):
    prior = Flat(1)
    prior.shape = shape
    with pytest.raises(ShapeError, match="choose a prior that fits"):
        synthesis(operator, prior)


def test_complex_images_are_compared_by_their_magnitude():
    task, prior = tiny("mri_cartesian")
    item = task.run(prior=prior, sampler=FAST, n=3).items[0]
    truth = next(task.data.items(1, 0, prior)).truth
    torch.testing.assert_close(item.truth, truth.abs())
    assert item.data_range == pytest.approx(float(truth.abs().max()))
    assert all(e.image.min() >= 0 for e in item.estimates)


# bad options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items >= 1"),
        ({"items": 4}, "there are 3 packaged ones"),
        ({"n": 0}, "n >= 1"),
        ({"dtype": "float16"}, "float32 or float64"),
        ({"prior": None}, "choose one by prior=NAME"),
    ],
)
def test_bad_options_of_a_run_are_named(options, message):
    with pytest.raises(InvdiffError, match=message):
        small().run(**{"prior": FIELD, "sampler": FAST, "n": 1} | options)


def test_a_folder_that_is_a_file_is_found_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="a file, not a folder"):
        small().run(prior=FIELD, sampler=FAST, n=1, out=tmp_path / "file/out")


# the distance to the prior


def test_what_the_prior_does_not_know_is_far_from_it():
    prior = StationaryGaussian((1, 32, 32), std=0.2, length=4.0, decay=2.0)
    own = prior.sample(Streams(11))
    assert not distance_from_prior(prior, own)["far"]
    assert distance_from_prior(prior, own)["worst"] == pytest.approx(1, abs=0.25)
    checkerboard = torch.from_numpy(np.indices((32, 32)).sum(0) % 2).float()[None, None]
    assert distance_from_prior(prior, checkerboard)["far"]
    assert distance_from_prior(Flat(1), own) is None


def test_the_distance_uses_the_card_of_a_network():
    """D = x / (1 + sigma^2) of an image m at sigma errs by rms sqrt(sigma^2 + sigma^4 m^2) / (1 + sigma^2)."""
    prior = Flat(1)
    sigma = 0.5
    expected = math.hypot(sigma, sigma**2) / (1 + sigma**2)
    prior.facts = {"denoising_error": {"sigma": [1e-4, sigma], "rms": [1.0, expected], "spread": [0.0, 0.0]}}
    found = distance_from_prior(prior, torch.full((1, 1, 64, 64), 4.0))
    assert found["sigma"] == [sigma]
    # 4,096 pixels: the mean of the noise adds a relative error of 1 / 64
    assert found["worst"] == pytest.approx(math.hypot(sigma, 4 * sigma**2) / math.hypot(sigma, sigma**2), rel=0.04)
    assert found["far"]


def test_the_posterior_of_a_blur_is_that_of_conjugate_gradients():
    """Two ways to one posterior: diagonal in Fourier space, and CG to a relative residual of 1e-10."""
    task, prior = tiny("deblur")
    problem = task.problem(next(task.data.items(1, 0, prior)), dtype=torch.float64)
    mean, draws = prior.posterior_draws(problem, 3, seed=4, tol=1e-10, max_iter=10_000)
    exact = exact_posterior(prior, problem, 3, seed=4)
    # what CG leaves is amplified by the spectrum, 1e4 times the noise's variance
    torch.testing.assert_close(exact.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.samples.x, draws, rtol=0, atol=1e-6)
