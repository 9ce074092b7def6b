"""Tasks and classes of one's own on the command line, and what a file or an override may not reach."""

import json
import sys
import types
from pathlib import Path

import pytest
import yaml

from invdiff.catalogue import Plan, compose

OWN = """
defaults:
  - override /sampler@_global_.sampler: mmps
  - override /prior@_global_.prior: gaussian_signal
"""
FAST = ["n=8", "sampler.steps=3"]

pytestmark = pytest.mark.usefixtures("empty_folder")


def own_task(name="own", **changes):
    body = compose()["task"] | {"name": name} | changes
    Path("mine/task").mkdir(parents=True, exist_ok=True)
    Path(f"mine/task/{name}.yaml").write_text(OWN + yaml.safe_dump(body))


def test_a_task_of_ones_own(call):
    own_task()
    code, out, err = call("run", "--config-dir", "mine", "task=own", *FAST, "out=here")
    assert (code, err) == (0, "")
    assert json.loads(Path("here/report.json").read_text())["task"] == "own"
    assert "report: here/report.html" in out


def test_a_task_of_ones_own_may_not_have_a_packaged_name(call):
    own_task("toy_gaussian", draws=7)
    code, out, err = call("run", "--config-dir=mine", "--cfg", "job")
    assert code == 0
    assert yaml.safe_load(out)["task"]["draws"] == compose()["task"]["draws"]
    assert err == (
        "invdiff: warning: mine/task/toy_gaussian.yaml is not used, because task=toy_gaussian is the packaged one: "
        "give the file another name\n"
    )


def test_foreign_classes_are_allowed_on_the_command_line_only(call, monkeypatch):
    """A noise of another package: refused, whatever the file says; built when the user names the package."""
    from invdiff.core import Gaussian

    class Loud(Gaussian):
        def __init__(self) -> None:
            super().__init__(0.5)

    module = types.ModuleType("loud_package")
    Loud.__module__, module.Loud = "loud_package", Loud
    monkeypatch.setitem(sys.modules, "loud_package", module)
    own_task(noise={"_target_": "loud_package.Loud", "_allow_": ["loud_package."]})
    line = ["run", "--config-dir", "mine", "task=own", *FAST, "out=here"]
    code, _, err = call(*line)
    assert code == 2
    assert "loud_package.Loud is not under invdiff.: allow its package" in err
    built, report = [], types.SimpleNamespace(table=lambda: "")
    monkeypatch.setattr(Plan, "run", lambda plan, **_: built.append(plan.task.noise) or report)
    for allow in (["--allow", "loud_package"], ["--allow=loud_package."]):
        assert call(*line, *allow)[0] == 0
    assert [type(noise) for noise in built] == [Loud, Loud]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("task/own.yaml", "# @package _global_\nhydra: {callbacks: {x: {_target_: os.makedirs, name: built}}}\n"),
        ("task/own.yaml", '# @package _global_\n"\\x68ydra": {callbacks: {x: {_target_: os.makedirs, name: built}}}\n'),
        ("task/own.yaml", "#  @package   hydra.callbacks\nx: {_target_: os.makedirs, name: built}\n"),
        ("task/own.yaml", "defaults: [/other@_global_.hydra.callbacks: x]\n"),
        ("task/own.yaml", "defaults: [override /hydra/launcher: x]\n"),
        ("hydra/launcher/x.yaml", "_target_: os.makedirs\n"),
        ("own.yaml", "defaults: [config, _self_]\nhydra: {mode: MULTIRUN}\n"),
        ("task/own.yaml", "a: [1, 2\n"),
    ],
)
def test_a_file_may_not_configure_hydra(call, file, text):
    """hydra builds what it finds under `hydra` by itself."""
    Path("mine", file).parent.mkdir(parents=True)
    Path("mine", file).write_text(text)
    code, _, err = call("run", "--config-dir", "mine", "task=own")
    assert (code, err.count("\n")) == (2, 1)
    assert f"mine/{file}: " in err
    assert [p.name for p in Path().iterdir()] == ["mine"]


@pytest.mark.parametrize("target", ["os.system", "invdiff.cli.main", "invdiff.core.build.build"])
def test_no_override_reaches_beyond_the_package(call, target):
    code, _, err = call("run", f"task.noise={{_target_:{target}}}")
    assert code == 2
    assert f"build: {target} is not" in err
