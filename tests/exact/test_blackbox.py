"""Black boxes: the values of a function or a program, no derivative, and errors that say what went wrong."""

import copy
import pickle
import sys
import time

import numpy as np
import pytest
import torch

from invdiff.core import (
    CapabilityError,
    ConfigError,
    DataError,
    Gaussian,
    Matrix,
    Problem,
    ShapeError,
    ViewAsComplex,
    capabilities,
)
from invdiff.core.counting import Counter, counting
from invdiff.guidance import MMPS
from invdiff.operators.blackbox import BlackBox, Subprocess
from invdiff.priors import GaussianPrior
from invdiff.samplers import DPS, TDS, DiffPIR, Guided, PnPDM, REDDiff

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
SUMS = "import sys, numpy as np; x = np.load(sys.argv[1]); np.save(sys.argv[2], np.stack((x.sum(-1), x[..., 0] ** 2), -1))"


def sums(x):
    return np.stack((x.sum(-1), x[..., 0] ** 2), -1)


def spoiling(x):
    x[:] = 7.0
    return x


def draw(batch=5, dtype=F64):
    return torch.randn(batch, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))


def program(code, *more, **options):
    return Subprocess([sys.executable, "-c", code, "{input}", "{output}", *more], (3,), (2,), **options)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("make", [lambda b: BlackBox(sums, (3,), (2,), batched=b), lambda b: program(SUMS, batched=b)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_values_precision_and_counts(make, batched, dtype):
    operator, x, counter = make(batched), draw(2, dtype), Counter()
    with counting(counter):
        y = operator(x)
    assert y.dtype == dtype and counter.operator == 2
    torch.testing.assert_close(y, torch.stack((x.sum(-1), x[:, 0] ** 2), -1))
    assert operator(x[:0]).shape == (0, 2)


def test_complex_spaces():
    operator = BlackBox(np.conj, (3,), (3,), in_complex=True, out_complex=True)
    x = torch.complex(draw(), draw().flip(0))
    assert torch.equal(operator(x.conj()), x) and operator(x.to(torch.complex64)).dtype == torch.complex64
    assert capabilities(operator @ ViewAsComplex((3,))) == {"forward"}


def test_the_function_gets_a_copy():
    x = draw()
    assert bool((BlackBox(spoiling, (3,), (3,))(x) == 7.0).all()) and torch.equal(x, draw())


def test_it_offers_values_alone_and_so_does_what_is_made_of_it():
    operator, linear = BlackBox(sums, (3,), (2,)), Matrix(torch.eye(2, dtype=F64))
    assert capabilities(linear) == {"forward", "vjp", "adjoint", "solve", "spectral"}
    for made in (operator, linear @ operator, 2.0 * operator, operator + operator, operator @ Matrix(torch.eye(3, dtype=F64))):
        assert capabilities(made) == {"forward"}
        torch.testing.assert_close(made(draw()).shape, (5, 2))


def test_whoever_asks_for_a_derivative_is_told():
    operator, words = BlackBox(sums, (3,), (2,)), r"BlackBox \([a-z.]*test_blackbox.sums\) offers values and no derivative"
    x = draw()
    for ask in (
        lambda o: o.vjp(x)[1](torch.ones(5, 2, dtype=F64)),
        lambda o: o.jvp(x, x),
        lambda o: o.linearize(x)[1](x),
        lambda o: o(x.clone().requires_grad_()).sum().backward(),
        lambda o: torch.func.vjp(o, x)[1](torch.ones(5, 2, dtype=F64)),
    ):
        for made in (operator, operator + operator, Matrix(torch.eye(2, dtype=F64)) @ operator):
            with pytest.raises(CapabilityError, match=words):
                ask(made)


@pytest.mark.parametrize("sampler", [Guided(guidance=MMPS()), DPS(), DiffPIR(), REDDiff(), PnPDM(), TDS(twist="dps")])
def test_samplers_that_need_more_refuse_it_before_the_run(sampler):
    problem = Problem(BlackBox(sums, (3,), (2,)), Gaussian(0.1), torch.zeros(2, dtype=F64))
    prior = GaussianPrior(torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64))
    with pytest.raises(CapabilityError, match=r"of the operator; BlackBox offers forward$"):
        sampler(problem, prior, seed=0)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x, r"to return real numbers of shape \(2,\), got float64 of shape \(3,\)"),
        (lambda x: x[:2] * 1j, "got complex128"),
        (lambda _: np.array(["a", "b"]), "got <U1"),
        (lambda _: None, "got object"),
    ],
)
def test_what_a_function_may_not_return(function, words):
    with pytest.raises(ShapeError, match=words):
        BlackBox(function, (3,), (2,))(draw())


def test_what_a_function_raises_is_passed_on():
    with pytest.raises(ZeroDivisionError):
        BlackBox(lambda _: 1 / 0, (3,), (2,))(draw())


def test_copies_and_names():
    operator = BlackBox(sums, (3,), (2,))
    for made in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(made(draw()), operator(draw())) and repr(made) == repr(operator)
    assert "0x" not in repr(BlackBox(np.polynomial.Polynomial([1.0, 2.0]), (3,), (3,)))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no such mesh')", "failed with status 1; it says: no such mesh"),
        ("pass", "ended without an output file; it says nothing"),
        ("import sys; open(sys.argv[2], 'w').write('x')", "wrote no array"),
        (
            "import sys, numpy as np; np.save(sys.argv[2], np.array([{}], object), allow_pickle=True)",
            "wrote no array .*pickle",
        ),
        ("import sys, numpy as np; np.savez(open(sys.argv[2], 'wb'), a=1)", "wrote no array"),
    ],
)
def test_errors_of_a_program(code, words):
    with pytest.raises(DataError, match=f"Subprocess: .*{words}"):
        program(code)(draw(1))


def test_a_program_of_another_shape():
    with pytest.raises(ShapeError, match=r"Subprocess: expected .* of shape \(2,\), got float64 of shape \(1, 2\)"):
        program(SUMS.replace("-1))", "-1)[None])"))(draw(1))


def test_a_program_that_is_too_slow_is_killed_with_its_children(tmp_path):
    """The child would leave a file after a second."""
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(1.0); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    start = time.monotonic()
    with pytest.raises(DataError, match=r"did not end within 0.5 s; it says nothing"):
        program(code, timeout=0.5)(draw(1))
    assert time.monotonic() - start < 10.0
    time.sleep(1.5)
    assert not mark.exists()


def test_no_shell_and_no_program(tmp_path):
    mark = tmp_path / "mark"
    program(SUMS, f"; touch {mark}")(draw(1))
    assert not mark.exists()
    with pytest.raises(DataError, match="no-such-program can't be started"):
        Subprocess(["no-such-program", "{input}", "{output}"], (3,), (2,))(draw(1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BlackBox(3, (3,), (2,)), "function to be callable, got 3"),
        (lambda: Subprocess("solve {input} {output}", (3,), (2,)), "a list of strings"),
        (lambda: Subprocess([], (3,), (2,)), "a list of strings"),
        (lambda: Subprocess(["solve", "{input}"], (3,), (2,)), "expected {output} in the arguments"),
        (lambda: Subprocess(["solve", "{input}", "{output}"], (3,), (2,), timeout=0.0), "timeout > 0"),
    ],
)
def test_options_out_of_range_are_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
