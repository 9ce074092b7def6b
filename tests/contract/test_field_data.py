"""Fields as the truths of a task: of generators and of files."""

import re

import numpy as np
import pytest
import torch

from invdiff.catalogue import load, override
from invdiff.core import ConfigError, DataError, Gaussian, NumericalError, ShapeError, build
from invdiff.generators import BurgersFlow, DarcyFlow, KolmogorovFlow, SourceFields, Stored
from invdiff.guidance import MMPS
from invdiff.io.images import write_hdf5
from invdiff.operators.restoration import Identity
from invdiff.priors import StationaryGaussian
from invdiff.samplers import Guided
from invdiff.tasks import Task
from invdiff.tasks.field_data import Fields

PRIOR = StationaryGaussian((1, 8, 8), mean=0.0, std=1.0)
SMALL = SourceFields(size=8)


def truths(data, count=1, seed=0):
    return [item.truth for item in data.items(count, seed, PRIOR)]


def test_samples_are_those_of_the_generator_under_a_seed_of_their_own():
    first, second = Fields(generator=SMALL, name="u").items(2, 5, PRIOR)
    expected = SourceFields(size=8, seed=1_000_005)([0, 1])["u"]
    torch.testing.assert_close(torch.stack((first.truth, second.truth)), expected, rtol=1e-6, atol=0)
    assert (first.name, first.shape, first.truth.dtype) == ("sample 0", (1, 8, 8), torch.float32)
    assert "seed=1000005" in first.facts["generator"]
    # the shipped priors' held-out set, from its seventh sample
    (held_out,) = truths(Fields(generator=SMALL, name="u", seed=1000, index=7), seed=5)
    torch.testing.assert_close(held_out, SourceFields(size=8, seed=1000)([7])["u"][0], rtol=1e-6, atol=0)


def test_frames_are_channels_and_can_be_chosen():
    flow = KolmogorovFlow(size=8, frames=3, spinup=0.1, interval=0.1)
    (every,) = truths(Fields(generator=flow))
    assert every.shape == (3, 8, 8)
    (some,) = truths(Fields(generator=flow, times=[-1, 0]))
    assert torch.equal(some, every[[2, 0]])
    trajectory = BurgersFlow(size=8, frames=4, steps=40, scale=1.0)
    assert truths(Fields(generator=trajectory))[0].shape == (1, 5, 8)
    assert truths(Fields(generator=trajectory, dims=1, times=[4]))[0].shape == (1, 8)


def test_entries_of_a_file(tmp_path):
    values = np.arange(5 * 3 * 4 * 4, dtype=np.float64).reshape(5, 3, 4, 4)
    path = tmp_path / "flow.h5"
    write_hdf5(path, {"w": values, "other": values[:, 0]})
    first, second = Fields(path=str(path), dataset="w", index=2).items(2, 0, PRIOR)
    assert (second.name, second.shape, second.facts["entry"]) == ("entry 3", (3, 4, 4), 3)
    np.testing.assert_array_equal(first.truth.numpy(), values[2])
    (thin,) = truths(Fields(path=str(path), dataset="other", every=2))
    np.testing.assert_array_equal(thin.numpy(), values[:1, 0, ::2, ::2])
    # booleans, such as two-valued permeabilities, are numbers
    np.savez(tmp_path / "x.npz", x=values[:, 0] > 7, y=values[:, 0])
    assert truths(Fields(path=str(tmp_path / "x.npz"), dataset="x"))[0].unique().tolist() == [0.0, 1.0]


def test_stored_reads_what_fields_are_published_in(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 5, 4, 4))
    write_hdf5(
        tmp_path / "flow.h5",
        {"Vx": values, **{f"{a}-coordinate": np.arange(n) for a, n in (("x", 4), ("y", 4), ("t", 6))}},
    )
    source = Stored(tmp_path / "flow.h5", times=[4, 0], every=2)
    np.testing.assert_allclose(source(1), values[:1, 0, ::2, ::2], rtol=1e-6)
    np.testing.assert_allclose(source(2), values[1:, 4, ::2, ::2], rtol=1e-6)


def test_in_a_task(tmp_path):
    """From a configuration to a report, and a measurement of the user's."""
    node = {
        "_target_": "invdiff.tasks.field_data.Fields",
        "generator": {"_target_": "invdiff.generators.fields.SourceFields", "size": 8, "solve": False},
    }
    options = {"operator": lambda item: Identity(item.shape), "noise": Gaussian(0.1), "name": "fields"}
    sampler = Guided(guidance=MMPS(cg_steps=2), steps=4)
    report = Task(data=build(node), **options).run(prior=PRIOR, sampler=sampler, n=2, items=2, seed=0)
    assert [item.name for item in report.items] == ["sample 0", "sample 1"]
    np.save(tmp_path / "y.npy", np.zeros((1, 8, 8), np.float32))
    (item,) = Fields(measurement=str(tmp_path / "y.npy")).items(1, 0, PRIOR)
    assert (item.name, item.shape, item.truth) == ("measurement", (1, 8, 8), None)
    (item,) = Fields(measurement=str(tmp_path / "y.npy"), generator=SMALL, name="f").items(1, 0, PRIOR)
    assert item.truth is not None
    assert item.y.shape == (1, 8, 8)


class Broken(SourceFields):
    def __call__(self, indices, **options):
        return {"f": torch.full((len(indices), 1, 8, 8), torch.nan)}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({}, ConfigError, "Fields: expected a generator or a path, got neither"),
        ({"generator": SMALL, "path": "x.npy"}, ConfigError, "expected a generator or a path, got generator and path"),
        ({"path": "x.npy", "seed": 1}, ConfigError, "Fields: expected a generator for seed, got none"),
        ({"generator": SMALL, "every": 2}, ConfigError, "Fields: expected a path for every, got none"),
        ({"generator": SMALL, "index": -1}, ConfigError, "expected index >= 0 and dims >= 1, got -1 and 2"),
        ({"generator": lambda indices: {}}, ConfigError, "Fields: expected a generator with a seed, such as DarcyFlow"),
        ({"generator": SMALL}, ConfigError, "expected name to be one of f, u, got None"),
        ({"generator": SMALL, "name": "w"}, ConfigError, "expected name to be one of f, u, got 'w'"),
        ({"generator": SMALL, "name": "u", "times": [1]}, ConfigError, "has times 0 to 0, got [1]"),
        (
            {"generator": SMALL, "name": "u", "dims": 1},
            ShapeError,
            "expected a grid of dims=1 axes and channels, got",
        ),
        ({"generator": Broken()}, NumericalError, "sample 0 is not finite"),
        ({"path": "gone.npy"}, DataError, "gone.npy: no such file"),
        ({"path": "nan.npy"}, DataError, "nan.npy: 1 of the 64 values are NaN or infinite"),
        ({"path": "complex.npy"}, DataError, "complex.npy: expected real values, got complex"),
        ({"path": "good.npy", "index": 3}, ConfigError, "good.npy: values has entries 0 to 0, got entries 3 to 3"),
        ({"path": "good.npy", "times": [0]}, ConfigError, "good.npy: values have no times to choose"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, options, error, says):
    monkeypatch.chdir(tmp_path)
    good = np.zeros((1, 8, 8))
    np.save("good.npy", good)
    np.save("complex.npy", good + 1j)
    good[0, 0, 0] = np.nan
    np.save("nan.npy", good)
    with pytest.raises(error, match=re.escape(says)) as caught:
        truths(Fields(**options))
    assert "\n" not in str(caught.value)


def test_permeabilities_have_two_values():
    (a,) = truths(Fields(generator=DarcyFlow(size=8), name="a"))
    assert set(a.unique().tolist()) <= {3.0, 12.0}


@pytest.mark.parametrize("name", ["source_128", "darcy_permeability", "navier_stokes_initial", "burgers_sensors"])
def test_a_file_takes_the_place_of_a_packaged_generator(name, tmp_path):
    """As the comment in the task's configuration says: data.generator=null data.path=FILE."""
    config = load("task", name)
    shape = (1, 8) if config["data"]["dims"] == 1 else (1, 8, 8)
    np.save(tmp_path / "field.npy", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    data = build(override(config, {"data.generator": None, "data.path": str(tmp_path / "field.npy")}, name)["data"])
    (item,) = data.items(1, 0, None)
    assert item.shape == shape and float(item.truth.flatten()[3]) == 3.0
