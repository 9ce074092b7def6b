"""The command line: one line for every mistake, codes, folders, and what the help costs."""

import errno
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml

from invdiff import cli
from invdiff.catalogue import compose
from invdiff.commands import running
from invdiff.configs import names
from invdiff.core import DataError, NumericalError
from invdiff.samplers import Guided

FAST = ["n=8", "sampler.steps=3"]

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bogus"], "unknown command 'bogus'"),
        (["lst"], "unknown command 'lst', did you mean list?"),
        (["task=toy_gaussian"], "invdiff run task=toy_gaussian"),
        (["run", "toy_gaussian"], "expected OPTION=VALUE, got 'toy_gaussian', did you mean task=toy_gaussian?"),
        (["run", "n=abc"], "Run: expected n to be int | None, got 'abc'"),
        (["run", "n=2.5"], "Run: expected n to be int | None, got 2.5"),
        (["run", "n=[1]"], "Run: expected n to be int | None, got [1]"),
        (["run", "seed=-1"], "Run: expected 0 <= seed < 2^63, got -1"),
        (["run", "out="], "run: expected out to be a folder, got nothing"),
        (["run", "out=[a]"], "run: expected out to be the name of a folder, got ['a']"),
        (["run", "sampler=null"], "run: expected sampler to be the name of a sampler (invdiff list samplers), got null"),
        (["run", "task=3"], "run: expected task to be the name of a task (invdiff list tasks), got 3"),
        (["run", "~sampler"], "run: expected sampler to be a Sampler, got none: choose one by sampler=NAME"),
        (["run", "sampler.grid.rho=0"], "Karras: expected rho > 0, got 0"),
        (["run", "task.noise.sigma=[a]"], "Gaussian: expected sigma to be"),
        (["run", "task.baselines=[3]"], "Task: expected baselines to be"),
        (["run", "task.data_range=0"], "toy_gaussian: expected data_range > 0, got 0"),
        (["run", "+task.window=[2,1]"], "expected window to be [low, high] with low < high, got [2, 1]"),
        (["run", "task=ct_sparse_view", "operator.views=-1"], "ParallelBeamCT: expected at least one angle"),
        (["run", "task=ct_sparse_view", "data.slice=3"], "CTSlices: expected a file, data.path=FILE, for slice=3, got none"),
        (["run", "task=ct_sparse_view", "data.pixel=0"], "CTSlices: expected pixel > 0 in mm, got 0"),
        (["run", "task=mri_cartesian", "operator.coils=0"], "cartesian_mri: expected coils >= 1, got 0"),
        (["run", "task=mri_cartesian", "data.scale=0"], "MRSlice: expected scale > 0, got 0"),
        (["run", "seed=null"], "Run: expected seed to be int, got None"),
        (["run", "dtype=float16"], "Run: expected dtype to be 'float32' or 'float64', got 'float16'"),
        (["run", "resume=maybe"], "Run: expected resume to be bool, got 'maybe'"),
        (["run", "progress=maybe"], "Run: expected progress to be bool, got 'maybe'"),
        (["run", "device=gpu"], "Run: expected device to be cpu, cuda"),
        (["run", "n=0"], "n >= 1"),
        (["run", "items=0"], "items >= 1"),
        (["run", "seed=1e400"], "seed"),
        (["run", "nn=3"], "Could not override 'nn'. To append to your config use +nn=3, did you mean n?"),
        (["run", "+nn=3"], "run: unknown option nn; it takes task, prior, sampler, n, items"),
        (["run", "task=toy_gausian"], "there is no task/toy_gausian, did you mean toy_gaussian? there are burgers_"),
        (["run", "sampler=mnps"], "there is no sampler/mnps, did you mean mmps?"),
        (["run", "sampler.stepz=3"], "Could not override 'sampler.stepz'"),
        (["run", "+sampler.stepz=3"], "unknown option stepz; it takes"),
        (["run", "sampler.steps=abc"], "expected steps to be int, got 'abc'"),
        (["run", "sampler.steps=0"], "expected steps >= 1, got 0"),
        (["run", "task.noise.sigma=-1"], "sigma"),
        (["run", "task.noise.sigma=nan"], "sigma"),
        (["run", "task.noise.sigma=.nan"], "sigma"),
        (["run", "n=="], "Error parsing override 'n=='"),
        (["run", "out=${nothing}"], "nothing"),
        (["run", "--foo"], "unknown option '--foo'"),
        (["run", "--config-dri", "x"], "did you mean --config-dir?"),
        (["run", "--config-dir"], "expected a value after --config-dir"),
        (["run", "--config-dir", "nowhere"], "--config-dir: there is no folder nowhere"),
        (["run", "--allow"], "expected a value after --allow"),
        (["run", "--experimental-rerun", "x"], "unknown option '--experimental-rerun'"),
        (["list"], "expected one of tasks, operators, priors, samplers, guidances, sets, got nothing"),
        (["list", "smaplers"], "got smaplers"),
        (["list", "tasks", "--jsn"], "unknown option '--jsn', did you mean --json?"),
        (["doctor", "x"], "unknown option 'x'"),
        (["validate", "--quik"], "did you mean --quick?"),
        (["train", "prior=ct127"], "there is no train/ct127, did you mean ct128?"),
        (["train", "prior=mr128"], "source.paths and card.held_out.paths have to be given, as in source.paths=VALUE"),
        (["train", "prior=mr128", "source.paths=[a.nii]"], "prior=mr128: card.held_out.paths has to be given, as in card."),
        (["train", "training.steps=-1"], "expected steps > 0, got -1"),
        (["train", "training.steps=many"], "Training: expected steps to be int, got 'many'"),
        (["train", "threads=many"], "train: expected threads to be int | None, got 'many'"),
        (["train", "network=null"], "train: expected network to be "),
        (["train", "source=5"], "train: expected source to be "),
        (["train", "card=5"], "train: expected card to be "),
        (["train", "device=foo"], "train: expected device to be cpu, cuda"),
        (["train", "card.images=1"], "images >= 2, and draws 0 or >= 2, got images=1, draws=0"),
        (["train", "card.draws=1"], "images >= 2, and draws 0 or >= 2, got images=64, draws=1"),
        (["train", "card.held_out.size=100", "card.held_out.pool=1"], "multiples of 8, got (100, 100)"),
        (["train", "threads=0"], "train: expected threads >= 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(call, arguments, says):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("invdiff: ")
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("where", [0, 1, 2])
def test_debug_anywhere_shows_the_traceback(call, where):
    arguments = ["run", "n=abc"]
    arguments.insert(where, "--debug")
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" in err
    assert "expected n to be int" in err.splitlines()[-1]


def test_version_and_help(call):
    assert call("--version") == (0, "invdiff 0.1.0\n", "")
    for arguments in (["--help"], ["-h"], ["run", "--help"], ["train", "-h"]):
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        assert out.startswith("invdiff")
        assert max(map(len, out.splitlines())) <= 128
    assert all(name in call("run", "--help")[1] for group in ("task", "sampler", "prior") for name in names(group))


def test_the_configuration_is_printed_and_nothing_computed(call):
    code, out, _ = call("run", "--cfg", "job", "n=3", "sampler.steps=4")
    assert code == 0
    assert yaml.safe_load(out) == json.loads(json.dumps(compose(options={"n": 3, "sampler.steps": 4})))
    assert call("run", "n=3", "--cfg", "job", "sampler.steps=4")[1] == out
    assert list(Path().iterdir()) == []


def test_a_run_prints_its_table_and_the_place_of_its_report(call):
    code, out, err = call("run", *FAST, "seed=3", "out=here")
    assert (code, err) == (0, "")
    report = json.loads(Path("here/report.json").read_text())
    assert "report: here/report.html" in out.splitlines()[-1]
    assert out.strip().splitlines()[0] in (out, report, *out.splitlines())
    written = yaml.safe_load(Path("here/config.yaml").read_text())
    assert (written["n"], written["seed"], written["sampler"]["steps"]) == (8, 3, 3)
    # hydra leaves nothing beside it
    assert [p.name for p in Path().iterdir()] == ["here"]
    assert not list(Path().rglob(".hydra"))


def test_the_default_place_has_task_and_time(call):
    assert call("run", *FAST)[0] == 0
    (folder,) = Path("outputs/toy_gaussian").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert (folder / "report.html").is_file()


def test_a_sweep_has_a_folder_for_each_job_and_goes_on_after_a_failure(call):
    code, out, err = call("run", "-m", *FAST[:1], "sampler.steps=3,0", "seed=0", "out=all")
    assert code == 2
    assert Path("all/0/report.html").is_file()
    assert not Path("all/1").exists()
    assert "[0] n=8 sampler.steps=3 seed=0" in out
    assert err.splitlines()[0].startswith("invdiff: [1] n=8 sampler.steps=0 seed=0: ")
    assert err.splitlines()[1] == "invdiff: 1 of 2 jobs failed"
    assert sorted(p.name for p in Path().iterdir()) == ["all"]


def test_bare_invdiff_is_the_demonstration(call, monkeypatch):
    seen = []
    report = types.SimpleNamespace(table=lambda: "the table")
    monkeypatch.setattr(running, "run", lambda config, out, allow: seen.append(config) or report)
    assert call()[0] == 0
    code, out, _ = call("run")
    assert code == 0
    assert out.splitlines()[1] == "the table"
    assert [config["task"]["name"] for config in seen] == ["toy_gaussian", "toy_gaussian"]


def full(text):
    """A DataError that comes from a full disk."""
    error = DataError(text)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "here/x"), "here/x: No space left on device: free some space"),
        (full("here: can't be written: No space left on device"), "No space left on device: free some space, or choose"),
        (NumericalError("MMPS: values that are not finite\nafter step 3"), "MMPS: values that are not finite after step 3"),
        (MemoryError(), "out of memory: compute fewer draws at once, as in batch=1"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
    ],
)
def test_an_error_during_the_run_is_one_line(call, monkeypatch, error, says):
    def fails(*_):
        raise error

    monkeypatch.setattr(running, "run", fails)
    code, out, err = call("run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_an_error_of_the_program_is_a_traceback_and_code_1(call, monkeypatch):
    monkeypatch.setattr(running, "run", lambda *_: 1 / 0)
    code, _, err = call("run")
    assert code == 1
    assert "ZeroDivisionError" in err


def test_an_interrupted_run_says_how_to_continue(call, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run", interrupted)
    code, out, err = call("run", "task=toy_gaussian", "n=4")
    assert (code, out) == (130, "")
    again = re.fullmatch(r"\ninvdiff: interrupted; to continue: invdiff (run task=toy_gaussian n=4 (out=outputs/\S+))\n", err)
    assert again
    assert again[2].startswith("out=outputs/toy_gaussian/20")
    code, _, err = call(*again[1].split())
    assert code == 130
    assert err.endswith(f"to continue: invdiff {again[1]}\n")
    assert call("run", "out=a b", "n=4")[2].endswith("invdiff run 'out=a b' n=4\n")


def test_an_interrupted_run_and_the_same_line_again_give_the_uninterrupted_result(call, monkeypatch):
    line = ["run", "n=4", "batch=2", "sampler.steps=5"]
    assert call(*line, "out=whole")[0] == 0
    step, calls = Guided.step, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Guided, "step", interrupted)
    code, _, err = call(*line, "out=cut")
    assert code == 130
    assert err.endswith("invdiff run n=4 batch=2 sampler.steps=5 out=cut\n")
    assert not Path("cut/report.html").exists()
    assert call(*line, "out=cut")[0] == 0
    # the step that was interrupted is done again, and no other
    assert len(calls) == 2 * 5 + 1
    cut, whole = (json.loads(Path(name, "report.json").read_text()) for name in ("cut", "whole"))
    assert numbers(cut["items"]) == numbers(whole["items"])
    assert not Path("cut/resume").exists()


def numbers(tree):
    """The numbers of a report that don't measure time or memory."""
    if isinstance(tree, dict):
        return {k: numbers(v) for k, v in tree.items() if not re.search("seconds|memory|bytes", k)}
    return [numbers(v) for v in tree] if isinstance(tree, list) else tree


def test_hydra_on_a_python_it_does_not_run_on(call, monkeypatch):
    import hydra

    monkeypatch.setattr(hydra, "__version__", "1.3.8")
    monkeypatch.setattr(cli.sys, "version_info", (3, 14, 0))
    code, _, err = call("run")
    assert code == 2
    assert err == "invdiff: hydra 1.3.8 does not run on Python 3.14: pip install 'hydra-core>=1.4.0rc3'\n"


def environment():
    root = str(Path(cli.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def process(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_quick(arguments):
    """At most 0.6 s, the best of five, each in a new interpreter; the first that keeps the budget is enough."""
    costs = []
    while not costs or (min(costs) > 0.6 and len(costs) < 5):
        begin = time.perf_counter()
        done = process("-m", "invdiff", *arguments)
        costs.append(time.perf_counter() - begin)
        assert (done.returncode, done.stderr) == (0, "")
    assert min(costs) <= 0.6


def test_from_a_shell():
    code = "import sys; from invdiff.cli import main; c = main(['run', '--cfg', 'job']); sys.exit(c or 'torch' in sys.modules)"
    done = process("-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    # in a process of its own, since hydra leaves its loggers behind
    done = process("-m", "invdiff", "run", "--info", "searchpath")
    assert done.returncode == 0
    assert "pkg://invdiff.configs" in done.stdout
    done = process("-m", "invdiff", "run", "task=nothing")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
