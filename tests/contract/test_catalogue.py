"""The front door: names, options by keyword, and the same configuration as hydra's."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch
import yaml

import invdiff
from invdiff.catalogue import Plan, Run, compose, load, make, override, task
from invdiff.configs import names, read, summary
from invdiff.core import ConfigError, Problem, Sampler
from invdiff.priors import GaussianPrior

GROUPS = ("task", "operator", "prior", "sampler", "guidance")
TASKS = names("task")

CONFIG = {
    "_target_": "invdiff.core.Karras",
    "rho": 7.0,
    "first": {"_target_": "invdiff.core.Gaussian", "sigma": 0.1},
    "second": {"_target_": "invdiff.core.Poisson", "gain": 2.0, "deep": {"_target_": "invdiff.core.VP", "beta_min": 0.1}},
    "plain": {"a": 1, "b": 2},
    "_test_": {"_target_": "invdiff.core.Poisson", "gain": 3.0},
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rho": 5.0}, {"rho": 5.0}),
        ({"sigma": 0.2}, {"first": CONFIG["first"] | {"sigma": 0.2}}),
        ({"gain": 9.0}, {"second": CONFIG["second"] | {"gain": 9.0}}),
        # not written down, but an argument of Poisson
        ({"background": 1.0}, {"second": CONFIG["second"] | {"background": 1.0}}),
        (
            {"second.deep.sigma_min": 1.0},
            {"second": CONFIG["second"] | {"deep": CONFIG["second"]["deep"] | {"sigma_min": 1.0}}},
        ),
        # Karras and VP have it: the nearest to the top is the one that is meant
        ({"sigma_min": 0.5}, {"sigma_min": 0.5}),
        ({"plain": {"b": 3}}, {"plain": {"a": 1, "b": 3}}),
        ({"first": {"_target_": "invdiff.core.VP"}}, {"first": {"_target_": "invdiff.core.VP"}}),
        ({"first": None}, {"first": None}),
    ],
)
def test_an_option_finds_its_place(options, expected):
    before = yaml.safe_dump(CONFIG)
    assert override(CONFIG, options, "thing") == CONFIG | expected
    assert yaml.safe_dump(CONFIG) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rhoo": 1}, "thing: unknown option rhoo, did you mean rho[?] it takes rho, .*first.sigma.*second.deep.beta_min"),
        ({"zzz": 1}, "thing: unknown option zzz; it takes rho"),
        ({"third.sigma": 1}, "thing: there is no third to set third.sigma in"),
        ({"first.sigma.x": 1}, "thing: there is no first.sigma to set"),
        ({"_target_": "os.system"}, "unknown option _target_"),
    ],
)
def test_an_option_that_is_not_there_is_one_clear_line(options, says):
    with pytest.raises(ConfigError, match=says) as caught:
        override(CONFIG, options, "thing")
    assert "\n" not in str(caught.value)


def test_an_ambiguous_option_names_the_places():
    config = {"a": {"_target_": "invdiff.core.Karras"}, "b": {"_target_": "invdiff.core.VP"}}
    with pytest.raises(ConfigError, match=r"thing: option sigma_min is ambiguous: give a\.sigma_min or b\.sigma_min"):
        override(config, {"sigma_min": 1.0}, "thing")


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_name_is_answered_with_the_nearest(group):
    first = names(group)[0]
    with pytest.raises(ConfigError, match=rf"{group} '{first}x' does not exist: did you mean \w+\? There are .*{first}"):
        load(group, f"{first}x")
    with pytest.raises(ConfigError, match="does not exist"):
        load(group, "../config")


@pytest.mark.parametrize("path", [f"{group}/{name}" for group in (*GROUPS, "train") for name in names(group)])
def test_every_configuration_is_plain(path):
    """No interpolation, which the catalogue would not resolve; a mapping with a target; a task overrides only what it may."""
    config = read(path)
    text = yaml.safe_dump(config)
    assert "${" not in text
    if not path.startswith("train/"):
        assert config["_target_"].startswith("invdiff.")
    for line in config.get("defaults", []):
        assert set(line) <= {"override /sampler@_global_.sampler", "override /prior@_global_.prior"}


def hydra_composes(overrides):
    import hydra
    from omegaconf import OmegaConf

    version = tuple(int(v) for v in hydra.__version__.split(".")[:2])
    with hydra.initialize_config_module("invdiff.configs", **({"version_base": "1.3"} if version < (1, 4) else {})):
        return OmegaConf.to_container(hydra.compose("config", overrides), resolve=True)


@pytest.mark.parametrize("name", TASKS)
def test_compose_is_what_hydra_composes(name):
    ours = compose(name)
    assert ours == hydra_composes([f"task={name}"])
    assert list(ours["task"]) == list(hydra_composes([f"task={name}"])["task"])


def test_compose_with_another_sampler_prior_and_values():
    sampler, prior = names("sampler")[-1], names("prior")[-1]
    ours = compose(TASKS[0], sampler, prior, {"n": 3, "sampler.steps": 11})
    assert ours == hydra_composes([f"task={TASKS[0]}", f"sampler={sampler}", f"prior={prior}", "n=3", "sampler.steps=11"])
    assert (ours["n"], ours["sampler"]["steps"]) == (3, 11)


@pytest.mark.parametrize("value", ["1e-3", "1E5", "-2.5e+3", ".5e-2", "5e0", "1.e3", "1e", "e3", "0x1e3", "1_0", "1.5", "1-3"])
def test_numbers_are_read_as_hydra_reads_them(value, monkeypatch):
    from omegaconf import OmegaConf

    monkeypatch.setattr("invdiff.configs._text", lambda _: f"a: {value}")
    ours, theirs = read("x")["a"], OmegaConf.create(f"a: {value}").a
    assert (type(ours), ours) == (type(theirs), theirs)


def test_the_options_of_a_run_are_the_same_everywhere():
    """In config.yaml, in Run and in Plan.run, but that a function shows no bars unless it is asked to."""
    fields = {f.name: f.default for f in dataclasses.fields(Run)}
    written = {k: v for k, v in read("config").items() if k not in ("defaults", "hydra")}
    signature = {k: p.default for k, p in inspect.signature(Plan.run).parameters.items() if k != "self"}
    assert fields == written == signature | {"progress": True}


@pytest.mark.parametrize(("options", "says"), [({"device": "gpu"}, "device"), ({"device": "meta:x"}, "device")])
def test_a_device_that_does_not_exist(options, says):
    with pytest.raises(ConfigError, match=says):
        Run(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_this_machine_lacks():
    with pytest.raises(ConfigError, match="Run: torch finds no device 'cuda' on this machine: use device=cpu"):
        Run(device="cuda")


def test_samplers_by_name_with_options_by_keyword():
    sampler = invdiff.sampler("mmps", steps=7, cg_steps=2)
    assert isinstance(sampler, Sampler)
    assert (sampler.steps, sampler.guidance.cg_steps) == (7, 2)
    assert invdiff.sampler("mmps", grid=invdiff.Karras(rho=3.0)).grid == invdiff.Karras(rho=3.0)
    with pytest.raises(ConfigError, match="sampler mmps: unknown option stepz, did you mean steps"):
        invdiff.sampler("mmps", stepz=3)
    with pytest.raises(ConfigError, match="expected steps to be int, got '7'"):
        invdiff.sampler("mmps", steps="7")
    with pytest.raises(ConfigError, match="sampler 'mnps' does not exist: did you mean mmps"):
        invdiff.sampler("mnps")


@pytest.mark.parametrize("name", names("sampler"))
def test_every_sampler_is_built(name):
    assert invdiff.sampler(name).kind in ("posterior", "point")


def test_operators_and_guidances_by_name():
    name = names("operator")[0]
    assert isinstance(invdiff.operator(name, **load("operator", name).get("_test_", {})), invdiff.Operator)
    assert make("guidance", "mmps", cg_steps=4).cg_steps == 4


def test_the_demonstration_runs_with_its_own_prior_and_sampler(tmp_path):
    plan = task("toy_gaussian")
    assert isinstance(plan, Plan)
    report = plan.run(n=4, seed=0, out=str(tmp_path / "out"))
    assert "psnr" in report.table().lower() or report.table()
    assert (tmp_path / "out" / "report.html").is_file()
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (written["n"], written["seed"]) == (4, 0)
    assert written["sampler"] == plan.config["sampler"]


def test_a_sampler_and_a_prior_may_be_objects():
    own = task("toy_gaussian")
    prior = GaussianPrior(torch.zeros(own.prior.shape), torch.ones(own.prior.shape))
    sampler = invdiff.sampler("mmps", steps=3, cg_steps=1)
    plan = task("toy_gaussian", sampler=sampler, prior=prior)
    assert plan.sampler is sampler
    assert plan.prior is prior
    report = plan.run(n=2)
    assert report.config["sampler"] == repr(sampler)
    assert report.config["prior"].startswith("GaussianPrior")
    by_name = task("toy_gaussian", sampler="pigdm")
    assert by_name.config["sampler"] == load("sampler", "pigdm")
    assert by_name.config["prior"] == own.config["prior"]


@pytest.mark.parametrize("name", invdiff.__all__)
def test_every_name_of_the_package_is_there(name):
    assert getattr(invdiff, name) is not None
    assert name in dir(invdiff)


def test_a_name_that_the_package_lacks():
    with pytest.raises(AttributeError, match="module 'invdiff' has no attribute 'nothing'"):
        _ = invdiff.nothing
    assert invdiff.Problem is Problem


def test_import_is_lazy():
    """`import invdiff` brings neither torch nor hydra nor matplotlib, and what one uses from Python not the last two."""
    code = """
import sys, invdiff
assert not {"torch", "hydra", "matplotlib", "yaml"} & set(sys.modules)
invdiff.sampler("mmps"), invdiff.tasks, invdiff.priors, invdiff.metrics
assert not {"hydra", "omegaconf", "matplotlib"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_summaries():
    assert summary("train/ct128").startswith("Procedural CT slices")
    assert summary("config").startswith("What `invdiff run` composes")
