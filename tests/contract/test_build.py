"""Objects from dictionaries: what is allowed, what is checked, and what is said."""

import functools
import sys
import types

import pytest
import torch

from invdiff.core import ConfigError, Gaussian, Karras, build
from invdiff.core.build import check, resolve

GAUSSIAN = {"_target_": "invdiff.core.Gaussian", "sigma": 0.1}


def test_an_object_and_what_is_nested_in_it():
    built = build({"a": GAUSSIAN, "list": [GAUSSIAN, 1, "x"], "_note_": 3, "b": None})
    assert isinstance(built["a"], Gaussian)
    assert float(built["a"].sigma) == pytest.approx(0.1, rel=1e-6)
    assert isinstance(built["list"][0], Gaussian)
    assert built["list"][1:] == [1, "x"]
    assert built["b"] is None


def test_further_arguments_win_and_objects_pass_through():
    assert float(build(GAUSSIAN, sigma=0.5).sigma) == 0.5
    sigma = torch.tensor([1.0, 2.0])
    assert torch.equal(build({**GAUSSIAN, "sigma": sigma}).sigma, sigma)


def test_notes_are_skipped():
    assert build({"_target_": "invdiff.core.Karras", "rho": 3.0, "_test_": {"rho": 5.0}, "_doc_": "x"}) == Karras(rho=3.0)


def test_partial_binds_now_and_is_called_later():
    bound = build({"_target_": "invdiff.core.Gaussian", "_partial_": True})
    assert isinstance(bound, functools.partial)
    assert float(bound(sigma=2.0).sigma) == 2.0
    assert build({**GAUSSIAN, "_partial_": False}).sigma == build(GAUSSIAN).sigma
    nested = build({"make": {"_target_": "invdiff.core.Karras", "_partial_": True, "rho": 2.0}})
    assert nested["make"](sigma_min=0.1) == Karras(sigma_min=0.1, rho=2.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sigma": "abc"}, "Gaussian: expected sigma"),
        ({"sigma": 0.1, "sigmma": 1}, "Gaussian: unknown option sigmma; it takes sigma"),
        ({}, "Gaussian: missing option sigma"),
        ({"sigma": -1.0}, "sigma"),
        ({"_partial_": True, "sigmma": 1}, "unknown option sigmma"),
        ({"_partial_": "yes", "sigma": 1.0}, "expected _partial_ to be true or false, got 'yes'"),
    ],
)
def test_wrong_options_are_one_clear_line(options, says):
    with pytest.raises(ConfigError, match=says) as caught:
        build({"_target_": "invdiff.core.Gaussian", **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.print",
        "invdiff_evil.Thing",
        "invdiff.core.build.importlib.import_module",
        "invdiff.core.build.functools",
        "invdiff.core.noise.torch.load",
        "invdiff.core.noise.torch",
        "invdiff.core.Nothing",
        "invdiff.nothing.Thing",
        "invdiff",
        "invdiff.",
        "",
        # these could be told to allow more
        "invdiff.core.build.build",
        "invdiff.core.build",
        "invdiff.cli.main",
        "invdiff.commands.running.run",
        # a file starts no programs
        "invdiff.operators.Subprocess",
        "invdiff.operators.blackbox.BlackBox",
    ],
)
def test_only_things_of_the_package_are_built(target):
    with pytest.raises(ConfigError, match="build:"):
        build({"_target_": target})


@pytest.fixture
def foreign(monkeypatch):
    module = types.ModuleType("foreign_package")
    exec("class Thing:\n    def __init__(self, a: int = 1) -> None:\n        self.a = a", module.__dict__)
    module.Reexported = Gaussian
    monkeypatch.setitem(sys.modules, "foreign_package", module)
    return module


@pytest.mark.parametrize("prefix", ["foreign_package", "foreign_package."])
def test_a_package_is_allowed_by_the_caller_only(foreign, prefix):
    config = {"_target_": "foreign_package.Thing", "a": 3}
    with pytest.raises(ConfigError, match=r"foreign_package.Thing is not under invdiff\.: allow its package"):
        build(config)
    with pytest.raises(ConfigError, match="not under"):
        build({**config, "allow": [prefix], "_allow_": [prefix]})
    assert build({"x": [config]}, allow=[prefix])["x"][0].a == 3
    # a prefix ends at a dot
    with pytest.raises(ConfigError, match="not under"):
        build(config, allow=["foreign"])


class Base:
    """Annotated with a name that exists for type checkers only, beside one that exists."""

    def __init__(self, known: "int", unknown: "Nowhere" = None, path: "str | None" = None) -> None:  # noqa: F821
        self.known = known


def test_one_annotation_that_cannot_be_evaluated_does_not_hide_the_others():
    check(Base, {"known": 1, "unknown": "anything", "path": None})
    with pytest.raises(ConfigError, match="Base: expected known to be int, got 'abc'"):
        check(Base, {"known": "abc"})
    with pytest.raises(ConfigError, match=r"Base: expected path to be str \| None, got 3"):
        check(Base, {"known": 1, "path": 3})


@pytest.mark.parametrize(
    ("target", "options", "fits"),
    [
        ("invdiff.core.Karras", {"rho": 3}, True),
        ("invdiff.core.Karras", {"rho": True}, False),
        ("invdiff.core.Karras", {"sigma_min": None}, True),
        # declared in a base class, in another module than this one
        ("invdiff.core.VP", {"sigma_min": "0.1"}, False),
        ("invdiff.catalogue.Run", {"n": 2.0}, False),
        ("invdiff.catalogue.Run", {"dtype": "float16"}, False),
    ],
)
def test_leaves_are_checked_against_the_annotations(target, options, fits):
    if fits:
        check(resolve(target), options)
    else:
        with pytest.raises(ConfigError, match="expected"):
            check(resolve(target), options)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("core.Karras", {"rho": [7.0]}),
        ("core.Karras", {"rho": {"a": 1}}),
        ("core.Gaussian", {"sigma": [0.1]}),
        ("tasks.CTSlices", {"window": [1.0]}),
        ("tasks.CTSlices", {"clip": [1.0, "high"]}),
        ("tasks.CTSlices", {"path": ["a"]}),
        ("samplers.Guided", {"grid": {"_target_": "invdiff.core.Gaussian", "sigma": 1.0}}),
    ],
)
def test_lists_dictionaries_and_objects_have_to_fit_the_annotation(target, options):
    with pytest.raises(ConfigError, match=f"expected {next(iter(options))} to be"):
        build({"_target_": f"invdiff.{target}", **options})


def test_lists_that_fit_are_taken():
    assert build({"_target_": "invdiff.tasks.CTSlices", "window": [-500, 500.0]}).window == [-500, 500.0]
