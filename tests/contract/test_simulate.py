"""Data sets in files: the same samples whatever the pieces, the interruptions and the machine's end; and the command."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import invdiff
from invdiff.configs import names, read
from invdiff.core import ConfigError, DataError, NumericalError, ShapeError, Streams, build
from invdiff.generators import BurgersFlow, DarcyFlow, KolmogorovFlow, SourceFields, store
from invdiff.generators.flows import NavierStokesPairs
from invdiff.generators.smoke import SmokeControl
from invdiff.generators.store import simulate
from invdiff.io.fields import read_fields


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Two fields; `at` is where something happens."""

    seed: int = 0
    at: int = -1
    event: str = ""

    def __call__(self, indices, *, dtype=torch.float32, device="cpu"):
        values = Streams(self.seed, indices).normal(0, (1, 2, 3), dtype=torch.float64)
        if self.at in indices and self.event == "interrupt":
            raise KeyboardInterrupt
        if self.at in indices and self.event == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.at in indices and self.event == "nan":
            values[list(indices).index(self.at), 0, 1, 1] = torch.nan
        rows = values[:-1] if self.event == "short" else values
        return {"v": rows.to(dtype), "square": rows.square().to(dtype)}


def content(path):
    with h5py.File(path) as file:
        return {name: item[()] for name, item in file.items()}, dict(file.attrs)


def same(one, other):
    (values, facts), (others, other_facts) = content(one), content(other)
    assert facts == other_facts
    assert values.keys() == others.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, others[name], strict=True)


@pytest.fixture
def becomes(monkeypatch):
    """A generator of the same description without the event."""

    def calm(generator):
        object.__setattr__(generator, "event", "")
        return generator

    describe = store._describe
    monkeypatch.setattr(store, "_describe", lambda g: {**describe(g), "fields": json.dumps({"seed": g.seed})})
    return calm


def test_the_file_holds_the_samples_and_what_they_are(tmp_path):
    path = simulate(Noise(seed=3), 7, tmp_path / "a.h5", first=5, chunk=3, dtype="float64")
    assert path == tmp_path / "a.h5"
    values, facts = content(path)
    expected = Noise(seed=3)(range(5, 12), dtype=torch.float64)
    for name, field in expected.items():
        np.testing.assert_array_equal(values[name], field.numpy(), strict=True)
    assert json.loads(facts["fields"]) == {"seed": 3, "at": -1, "event": ""}
    assert facts["generator"].endswith("test_simulate.Noise")
    assert (facts["first"], facts["count"], facts["done"], facts["dtype"]) == (5, 7, 7, "float64")
    assert facts["version"] == invdiff.__version__
    with h5py.File(path) as file:
        assert file["v"].chunks == (1, 1, 2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize(
    "generator",
    [
        DarcyFlow(size=6),
        SourceFields(size=6, wavenumber=1.0),
        BurgersFlow(size=16, frames=2, steps=40, time=0.1, scale=1.0),
        KolmogorovFlow(size=8, frames=2, spinup=0.1, interval=0.1),
    ],
    ids=lambda g: type(g).__name__,
)
def test_the_size_of_the_pieces_does_not_matter(tmp_path, generator):
    one, _ = content(simulate(generator, 5, tmp_path / "one.h5", chunk=1))
    four, _ = content(simulate(generator, 5, tmp_path / "four.h5", chunk=4))
    for name, values in one.items():
        assert np.abs(values - four[name]).max() <= 1e-6 * np.abs(values).max()


@pytest.mark.parametrize("event", ["interrupt", "terminate"])
def test_interrupted_and_continued_is_uninterrupted(tmp_path, becomes, event):
    whole = simulate(Noise(), 8, tmp_path / "whole.h5", chunk=2)
    generator, target = Noise(at=5, event=event), tmp_path / "cut.h5"
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        simulate(generator, 8, target, chunk=2)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not target.exists()
    assert content(tmp_path / "cut.h5.part")[1]["done"] == 4
    made = []
    calm = becomes(generator)
    monkeypatched = type(calm).__call__
    try:
        type(calm).__call__ = lambda self, i, **o: made.extend(i) or monkeypatched(self, i, **o)
        assert simulate(calm, 8, target, chunk=2) == target
        # and a third time there is nothing to do
        simulate(calm, 8, target, chunk=2)
    finally:
        type(calm).__call__ = monkeypatched
    assert made == [4, 5, 6, 7]
    same(target, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.h5", "whole.h5"]


def test_samples_count_only_when_they_are_on_the_disk(tmp_path, monkeypatch):
    """Stopped between the samples and the number of them, the piece is done again."""
    whole = simulate(Noise(), 6, tmp_path / "whole.h5", chunk=2)
    flush, calls = store._flush, []

    def stops(file, part):
        calls.append(1)
        flush(file, part)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "_flush", stops)
    with pytest.raises(KeyboardInterrupt):
        simulate(Noise(), 6, tmp_path / "cut.h5", chunk=2)
    values, facts = content(tmp_path / "cut.h5.part")
    assert facts["done"] == 2
    np.testing.assert_array_equal(values["v"][:4], content(whole)[0]["v"][:4])
    monkeypatch.undo()
    same(simulate(Noise(), 6, tmp_path / "cut.h5", chunk=2), whole)


KILLED = """
import os, signal, sys
from invdiff.generators import DarcyFlow, store
write, calls = store._write, []
def dies(file, part, done, fields):
    calls.append(1)
    if len(calls) == 3:
        for name, values in fields.items():
            file[name][done : done + 1] = values[:1]
        os.kill(os.getpid(), signal.SIGKILL)
    return write(file, part, done, fields)
store._write = dies
store.simulate(DarcyFlow(size=6), 7, sys.argv[1], chunk=2)
"""


def test_killed_in_the_middle_of_a_piece_and_continued(tmp_path):
    target = tmp_path / "a.h5"
    environment = {**os.environ, "PYTHONPATH": str(Path(invdiff.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", KILLED, str(target)], env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert content(tmp_path / "a.h5.part")[1]["done"] == 4
    simulate(DarcyFlow(size=6), 7, target, chunk=2)
    same(target, simulate(DarcyFlow(size=6), 7, tmp_path / "whole.h5", chunk=2))


@pytest.mark.parametrize("name", ["a.h5", "a.h5.part"])
def test_a_file_of_something_else_is_not_continued(tmp_path, name):
    target, here = tmp_path / "a.h5", tmp_path / name
    simulate(Noise(), 4, target).rename(here)
    before = here.read_bytes()
    for generator, options, says in (
        (Noise(seed=1), {}, "seed=0, not 1"),
        (DarcyFlow(size=6), {}, "generator=.*Noise, not invdiff.generators.fields.DarcyFlow"),
        (Noise(), {"first": 2}, "first=0, not 2"),
        (Noise(), {"count": 5}, "count=4, not 5"),
        (Noise(), {"dtype": "float64"}, "dtype=float32, not float64"),
    ):
        with pytest.raises(ConfigError, match=f"{name} was made with {says}: choose another file, or resume=false"):
            simulate(generator, **{"count": 4, "out": target} | options)
    assert here.read_bytes() == before
    values, _ = content(simulate(Noise(seed=1), 3, target, resume=False))
    assert values["v"].shape == (3, 1, 2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    for foreign in (b"", b"\x89HDF\r\n\x1a\n", None):
        target.unlink(missing_ok=True)
        if foreign is None:
            with h5py.File(here, "w") as file:
                file["v"] = np.zeros(3)
        else:
            here.write_bytes(foreign)
        for resume in (True, False):
            with pytest.raises(ConfigError, match=f"{name} is there, and is no data set that simulate wrote"):
                simulate(Noise(), 4, target, resume=resume)
        assert foreign is None or here.read_bytes() == foreign


def test_an_unfinished_file_of_another_version_is_not_continued(tmp_path):
    target, part = tmp_path / "a.h5", tmp_path / "a.h5.part"
    simulate(Noise(), 4, target).rename(part)
    with h5py.File(part, "r+") as file:
        file.attrs["version"] = "0.0.1"
        file.attrs["done"] = 2
    with pytest.raises(ConfigError, match=r"a.h5.part was begun by version 0.0.1 of invdiff, not .*resume=false to begin anew"):
        simulate(Noise(), 4, target)
    simulate(Noise(), 4, target, resume=False)
    # one that is complete stays
    with h5py.File(target, "r+") as file:
        file.attrs["version"] = "0.0.1"
    assert simulate(Noise(), 4, target) == target


@dataclass(frozen=True)
class Vectors:
    """Frames of two components on 4 x 6 points, and a number of each."""

    seed: int = 0
    axes: int = 2

    @property
    def grid_axes(self):
        return {"v": self.axes}

    def __call__(self, indices, *, dtype=torch.float32, device="cpu"):
        values = Streams(self.seed, indices).normal(0, (3, 2, 4, 6), dtype=torch.float64)
        return {"v": values.to(dtype), "w": values[:, :, 0].to(dtype), "sum": values.sum((2, 3, 4)).to(dtype)}


def test_only_axes_of_the_grid_are_thinned(tmp_path):
    path, expected = simulate(Vectors(), 2, tmp_path / "a.h5"), Vectors()(range(2))
    with h5py.File(path) as file:
        assert {name: int(file[name].attrs["grid_axes"]) for name in file} == {"v": 2, "w": 2, "sum": 0}
    found = read_fields(path, every=2, times=[2, 0]).values
    np.testing.assert_array_equal(found["v"], expected["v"][:, [2, 0], :, ::2, ::2])
    np.testing.assert_array_equal(found["w"], expected["w"][:, [2, 0], ::2, ::2])
    np.testing.assert_array_equal(found["sum"], expected["sum"][:, [2, 0]])
    # without the attribute all axes after the first two are those of the grid
    with h5py.File(path, "r+") as file:
        del file["v"].attrs["grid_axes"]
    np.testing.assert_array_equal(read_fields(path, every=2).values["v"], expected["v"][:, :, ::2, ::2, ::2])
    with pytest.raises(ConfigError, match="Vectors: expected grid_axes of v from 0 to 3, got 4"):
        simulate(Vectors(axes=4), 2, tmp_path / "b.h5")
    assert SmokeControl(size=32).grid_axes == {"velocity": 2, "control": 2}


def test_other_fields_under_the_same_name_are_found_out(tmp_path, monkeypatch, becomes):
    generator = Noise(at=3, event="interrupt")
    with pytest.raises(KeyboardInterrupt):
        simulate(generator, 4, tmp_path / "a.h5", chunk=2)
    monkeypatch.setattr(Noise, "__call__", lambda *_, **__: {"v": torch.zeros(2, 5)})
    with pytest.raises(ConfigError, match=r"a.h5.part has fields .*\(1, 2, 3\).*, the generator makes \{'v': \(5,\)\}"):
        simulate(becomes(generator), 4, tmp_path / "a.h5", chunk=2)


def test_a_file_in_use_is_left_alone(tmp_path):
    part = simulate(Noise(), 2, tmp_path / "b.h5").rename(tmp_path / "a.h5.part")
    with part.open("rb") as stream:
        # as another process would that has it open
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="part: another process is at it"):
            simulate(Noise(), 2, tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("generator", "options", "error", "says"),
    [
        (Noise(at=3, event="nan"), {}, NumericalError, "Noise: v of sample 3 is not finite"),
        (Noise(event="short"), {}, ShapeError, "Noise: expected 4 samples of v, got (3, 1, 2, 3)"),
        (Noise(), {"count": 0}, ConfigError, "simulate: expected count >= 1, got 0"),
        (Noise(), {"count": 2.0}, ConfigError, "simulate: expected count >= 1, got 2.0"),
        (Noise(), {"first": -1}, ConfigError, "simulate: expected first >= 0, got -1"),
        (Noise(), {"chunk": True}, ConfigError, "simulate: expected chunk >= 1, got True"),
        (Noise(), {"dtype": "float16"}, ConfigError, "simulate: expected dtype to be float32 or float64, got 'float16'"),
        (Noise(), {"out": "a.npy"}, ConfigError, "expected out to be the name of a file .h5 or .hdf5, got 'a.npy'"),
        (Noise(), {"out": "no/a.h5"}, DataError, "no/a.h5: there is no folder no"),
        (lambda *_, **__: {}, {}, ConfigError, "simulate: expected a generator that is a dataclass, got function"),
        (Noise(event=b"x"), {}, ConfigError, "simulate: Noise can't be written down: Object of type bytes"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, generator, options, error, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(says)):
        simulate(generator, **{"count": 4, "out": "a.h5"} | options)
    assert list(tmp_path.iterdir()) == []


FAST = ["generator.size=6", "count=3"]


@pytest.mark.usefixtures("empty_folder")
def test_a_full_disk_shows_before_the_file_is_begun(call, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    code, out, err = call("simulate", *FAST, "out=a.h5")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "No space left on device: free some space" in err
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("empty_folder")
def test_the_command(call, monkeypatch):
    threads = torch.get_num_threads()
    line = ["simulate", "set=darcy64", *FAST, "generator.seed=4", "chunk=2", "threads=1", "out=a.h5"]
    assert call(*line) == (0, "data: a.h5\n", "")
    assert torch.get_num_threads() == threads
    values, facts = content("a.h5")
    assert facts["generator"] == "invdiff.generators.fields.DarcyFlow"
    np.testing.assert_allclose(values["u"], DarcyFlow(size=6, seed=4)([0, 1, 2])["u"], rtol=1e-5)
    assert call(*line) == (0, "data: a.h5\n", "")
    assert [p.name for p in Path().iterdir()] == ["a.h5"]
    # each job of a sweep has a file in a folder of its own
    assert call("simulate", "-m", *FAST, "generator.seed=0,1", "out=all")[0] == 0
    assert content("all/1/darcy64.h5")[1]["fields"] != content("all/0/darcy64.h5")[1]["fields"]
    write, calls = store._write, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", interrupted)
        code, _, err = call(*line[:-1], "out=b.h5")
    assert code == 130
    assert err == f"\ninvdiff: interrupted; to continue: invdiff {' '.join([*line[:-1], 'out=b.h5'])}\n"
    assert call(*line[:-1], "out=b.h5")[0] == 0
    same("a.h5", "b.h5")


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "simulate: expected out to be the name of a file, as in out=FILE.h5, got nothing"),
        (["out="], "simulate: expected out to be a file, got nothing"),
        (["out=[a]"], "simulate: expected out to be the name of a file, got ['a']"),
        (["out=a.npy"], "simulate: expected out to be the name of a file .h5 or .hdf5, got 'a.npy'"),
        (["out=no/a.h5"], "no/a.h5: there is no folder no"),
        (["set=darcy46", "out=a.h5"], "there is no set/darcy46, did you mean darcy64? there are burgers128"),
        (["set=null", "out=a.h5"], "simulate: expected set to be the name of a set (invdiff list sets), got null"),
        (["count=0", "out=a.h5"], "simulate: expected count >= 1, got 0"),
        (["count=many", "out=a.h5"], "simulate: expected count to be int, got 'many'"),
        (["dtype=half", "out=a.h5"], "simulate: expected dtype to be 'float32' or 'float64', got 'half'"),
        (["threads=0", "out=a.h5"], "simulate: expected threads >= 1, got 0"),
        (["threads=x", "out=a.h5"], "simulate: expected threads >= 1, got 'x'"),
        (["device=foo", "out=a.h5"], "simulate: expected device to be cpu, cuda"),
        (["generator=3", "out=a.h5"], "simulate: expected generator to be a data set such as DarcyFlow, got 3"),
        (["generator.sise=3", "out=a.h5"], "Could not override 'generator.sise'"),
        (["generator.size=2", "out=a.h5"], "DarcyFlow: expected size >= 4, got 2"),
        (["+generator.sise=3", "out=a.h5"], "DarcyFlow: unknown option sise; it takes seed, size"),
        (["+x=3", "out=a.h5"], "simulate: unknown option x; it takes generator, out, threads, count"),
        (["darcy64"], "simulate: expected OPTION=VALUE, got 'darcy64'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_code_2(call, arguments, says):
    code, out, err = call("simulate", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert list(Path().iterdir()) == []


def test_the_sets(call):
    rows = json.loads(call("list", "sets", "--json")[1])
    assert [row["name"] for row in rows] == names("set")
    assert all(row["about"] for row in rows)
    assert "set=" in call("simulate", "--help")[1]
    for name in names("set"):
        config = read(f"set/{name}")
        assert config.keys() - {"chunk"} == {"name", "generator"}
        assert config["name"] == name
        # all of the generator's options are written down, so that each can be overridden
        assert config["generator"].keys() - {"_target_"} == {f.name for f in fields(build(config["generator"]))}


def test_flows_before_and_after(tmp_path):
    """Twice the steps change nothing that single precision shows; the forcing has mean zero, and so the mean stays."""
    values, _ = content(simulate(NavierStokesPairs(size=16), 2, tmp_path / "a.h5"))
    finer = NavierStokesPairs(size=16, steps=64)([0, 1])
    np.testing.assert_array_equal(values["w0"], finer["w0"])
    np.testing.assert_allclose(values["w1"], finer["w1"], atol=1e-6 * np.abs(values["w1"]).max(), rtol=0)
    np.testing.assert_allclose(values["w1"].mean((1, 2, 3)), values["w0"].mean((1, 2, 3)), atol=1e-7)
    assert np.abs(values["w1"] - values["w0"]).max() > 0.05
