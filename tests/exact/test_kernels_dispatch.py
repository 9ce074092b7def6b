"""Which form of a kernel runs: names, the environment, what the forms need."""

import subprocess
import sys

import pytest
import torch

import invdiff
from invdiff import kernels
from invdiff.core.errors import ConfigError
from invdiff.kernels.dispatch import own_backward, use_triton


def test_kernels_are_switched():
    cpu = torch.zeros(1)
    before = kernels.enabled()
    with kernels.using("gate", "group_norm"):
        assert kernels.enabled() == {"gate", "group_norm"}
        kernels.disable("gate")
        assert kernels.enabled() == {"group_norm"}
        kernels.enable("update")
        assert kernels.enabled() == {"group_norm", "update"}
        with kernels.using():
            assert not kernels.enabled()
        # on, but neither CUDA nor the interpreter
        assert kernels.enabled() == {"group_norm", "update"}
        assert not use_triton(cpu, kernel="group_norm")
    assert kernels.enabled() == before
    for call in (kernels.enable, kernels.disable, lambda n: kernels.using(n).__enter__(), lambda n: use_triton(cpu, kernel=n)):
        with pytest.raises(ConfigError, match="group_norm, gate, wavelet, projector, update, got 'norm'"):
            call("norm")
    assert kernels.enabled() == before


@pytest.mark.parametrize(
    ("said", "names"),
    [("", ()), ("none", ()), ("all", kernels.NAMES), ("gate, update", ("gate", "update")), ("gates", None)],
)
def test_environment_switches_kernels(monkeypatch, said, names):
    monkeypatch.setattr(kernels.dispatch, "_on", None)
    monkeypatch.setenv("INVDIFF_KERNELS", said)
    if names is None:
        with pytest.raises(ConfigError, match=r"INVDIFF_KERNELS: expected all, none, or names .* got 'gates'"):
            kernels.enabled()
    else:
        assert kernels.enabled() == set(names)


def test_a_wrong_environment_ends_a_run_that_needs_no_kernel_before_it_starts(monkeypatch):
    monkeypatch.setattr(kernels.dispatch, "_on", None)
    monkeypatch.setenv("INVDIFF_KERNELS", "gates")
    with pytest.raises(ConfigError, match="INVDIFF_KERNELS"):
        invdiff.task("toy_gaussian").run(seed=0, n=1)


def test_interpreter_is_asked_for(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with kernels.using("gate"):
        assert use_triton(torch.zeros(1), kernel="gate")
        assert not use_triton(torch.zeros(1), kernel="update")


def test_compiled_graphs_take_the_operation_for_triton_alone(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with kernels.using("gate"):
        assert not own_backward("gate", torch.zeros(1))
        assert own_backward("gate")


def test_triton_is_not_imported_with_the_package():
    code = "import sys, invdiff.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
