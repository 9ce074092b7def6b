"""What a sampler does beside the network and the operator: it never makes the host wait for the device inside a step.

Read off the operators that PyTorch dispatches: those that hand a value, or a shape that depends on values, to the host. A copy
between devices can't be seen on a CPU; the test marked gpu sees it.
"""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

import invdiff
from invdiff.core import (
    CapabilityError,
    ConfigError,
    Denoiser,
    Gaussian,
    Karras,
    NumericalError,
    Problem,
    Sampler,
    State,
    Streams,
    build,
)
from invdiff.core import sampler as loop
from invdiff.core.budget import peak
from invdiff.core.watch import Watch, numbers
from invdiff.guidance import MMPS, noise_level
from invdiff.operators import random_inpainting
from invdiff.priors import StationaryGaussian
from invdiff.priors.field import SpectralGaussian
from invdiff.samplers import DDNM, SITCOM, DFlow, Guided, Heun, LangevinDraw, RePaint
from invdiff.samplers.despeckle import log_problem

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

# a value, an error flag or a shape on its way to the host
WAITS = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "is_nonzero", "allclose",
}  # fmt: skip
SHAPE, STEPS = (1, 4, 4), 3
FOLDER = Path(invdiff.__file__).parent / "configs" / "sampler"
# networks of one size and measurement, a consistency function, and complex images with their speckle
OTHERS = {"AlternatingGibbs", "shipped_idm", "Multistep", "SplitGibbs", "ReflectivityEM", "GaussianField"}
CONFIGS = {p.stem: p for p in sorted(FOLDER.glob("*.yaml")) if not OTHERS & set(re.split(r"\W", p.read_text()))}
ALLOWED = {
    "despeckle": "proposals are drawn until one is taken in every pixel",
    "despeckle_learned": "proposals are drawn until one is taken in every pixel",
    "laplace": "a line search, with the objective in its hand",
    "laplace_warm": "a line search, with the objective in its hand",
    "mmps_field": "the factor of a level is looked up by its number",
    "sitcom": "an item that fits the data is not evaluated any more; never with stop=0",
    "tds": "torch has no eigenvalues without the look at their error flag",
}


class Waits(TorchDispatchMode):
    """Counts, by name, what makes the host wait."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        # torch.tensor copies its values from the host, and waits until they are there
        if name in WAITS | {"lift_fresh"} or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def waits(sampler, problem, prior):
    """What the steps of a run hand to the host, after `init`."""
    streams, mode = Streams(0, 2), Waits()
    with torch.no_grad():
        denoiser = sampler.condition(problem, prior)
        state = sampler.init(problem, denoiser, streams)
        # the first step fills caches
        state = sampler.step(problem, denoiser, state, streams)
        with mode:
            while state.step < min(sampler.steps, STEPS):
                state = sampler.step(problem, denoiser, state, streams)
    return dict(mode.found)


def field():
    return StationaryGaussian(SHAPE, mean=0.3, std=0.8, length=1.0, sigma_min=0.05, sigma_max=600.0).double()


def measured():
    return Problem.simulate(random_inpainting(*SHAPE[1:]), Gaussian(0.3), field().sample(Streams(1), torch.float64), seed=3)


def made(name):
    """A preset with few steps, in the units of these tests."""
    sampler = build(yaml.safe_load(CONFIGS[name].read_text()))
    options = {"steps": STEPS} | ({"jump": 1, "repeats": 2} if isinstance(sampler, RePaint) else {})
    sampler = dataclasses.replace(sampler, **options)
    if isinstance(getattr(sampler, "draw", None), LangevinDraw):
        sampler = dataclasses.replace(sampler, draw=dataclasses.replace(sampler.draw, steps=2))
    reference = getattr(getattr(sampler, "guidance", None), "reference", None)
    if isinstance(reference, SpectralGaussian):
        return dataclasses.replace(sampler, guidance=dataclasses.replace(sampler.guidance, reference=field()))
    return sampler


@pytest.mark.parametrize("name", CONFIGS)
def test_no_step_makes_the_host_wait(name):
    sampler, problem = made(name), measured()
    if name.startswith("despeckle"):
        problem = log_problem(torch.view_as_complex(Streams(2).normal(0, (*SHAPE, 2)).double())[0], kind="complex")
    found = waits(sampler, problem, field())
    assert bool(found) == (name in ALLOWED), found


def test_what_need_not_wait_does_not():
    """The options beside the presets that once did."""
    problem = measured()
    for sampler in (SITCOM(stop=0.0, steps=STEPS), RePaint(repeats=2, jump=1, noise_aware=True, steps=STEPS)):
        assert waits(sampler, problem, field()) == {}, sampler


@dataclasses.dataclass(frozen=True)
class Asks(Sampler):
    """Steps that wait, each in another way."""

    how: str = "item"
    steps: int = STEPS

    def init(self, problem, prior, streams):
        return State(0, streams.normal(0, problem.shape))

    def step(self, problem, prior, state, streams):
        x = state.x
        if self.how == "item":
            x = x / max(float(x.abs().max()), 1.0)
        elif self.how == "mask":
            x = x + x[x > 0].mean()
        elif self.how == "tensor":
            x = x * torch.tensor([0.5])
        elif self.how == "branch" and x.sum() > 0:
            x = -x
        return State(state.step + 1, x)


@pytest.mark.parametrize(
    ("how", "name"),
    [("item", "_local_scalar_dense"), ("mask", "index"), ("tensor", "lift_fresh"), ("branch", "_local_scalar_dense")],
)
def test_the_test_sees_a_step_that_waits(how, name):
    assert waits(Asks(how=how), measured(), field()) == {name: STEPS - 1}
    assert waits(Asks(how="none"), measured(), field()) == {}


# values that are not finite, found late


class Later:
    """An event that passes when it is waited for, or after so many questions."""

    def __init__(self, questions):
        self.left = questions

    def query(self):
        self.left -= 1
        return self.left < 0

    def synchronize(self):
        self.left = 0


class Late(Watch):
    """A watch whose flags arrive later, as on an accelerator."""

    def __init__(self, name, steps, prompt=False):
        super().__init__(name, steps, prompt=False)

    def copied(self, finite):
        return finite.clone(), Later(2)


class Breaks(Denoiser):
    """A prior that returns NaN for the first item below a level, and raises below another."""

    def __init__(self, below, fails=0.0):
        super().__init__(SHAPE, 0.05, 50.0)
        self.prior, self.below, self.fails = field(), below, fails

    def forward(self, x, sigma):
        if float(sigma[0]) < self.fails:
            raise RuntimeError("a decomposition failed")
        broken = (sigma < self.below) & (torch.arange(len(x)) == 0)
        return self.prior(x, sigma) * torch.where(broken, torch.nan, 1.0)[:, None, None, None]


def test_a_value_found_late_is_reported_with_its_step(monkeypatch):
    sampler, problem = DDNM(grid=Karras(), steps=9), measured()
    levels = Karras()(9, 0.05, 50.0).tolist()
    words = r"DDNM: values that are not finite after step 4 of 9 in draws \[0\] of the batch"
    with pytest.raises(NumericalError, match=words):
        sampler(problem, Breaks(levels[2]), n=3, seed=0)
    steps = []
    monkeypatch.setattr(loop, "Watch", Late)
    with pytest.raises(NumericalError, match=words):
        sampler(problem, Breaks(levels[2]), n=3, seed=0, callback=lambda info: steps.append(info["step"]))
    # it went on until the flags were there
    assert steps[-1] > 4
    # what is left is looked at before the run ends, and before another error that follows from it
    with pytest.raises(NumericalError, match="after step 9 of 9"):
        sampler(problem, Breaks(levels[7]), n=3, seed=0)
    with pytest.raises(NumericalError, match=words):
        sampler(problem, Breaks(levels[2], fails=levels[3]), n=3, seed=0)
    with pytest.raises(RuntimeError, match="a decomposition failed"):
        sampler(problem, Breaks(0.0, fails=levels[3]), n=3, seed=0)


def test_late_or_prompt_the_run_is_the_same(monkeypatch):
    """Facts that are tensors become numbers once the run waits anyway."""
    sampler, problem = DFlow(flow_steps=2, steps=3), measured()
    prompt = sampler(problem, field(), n=2, seed=0, batch=1)
    monkeypatch.setattr(loop, "Watch", Late)
    late = sampler(problem, field(), n=2, seed=0, batch=1)
    assert torch.equal(prompt.x, late.x) and prompt.info == late.info
    assert [type(facts["misfit"]) for facts in late.info] == [float] * 3
    assert numbers({"a": 1, "b": torch.tensor(2.5)}) == {"a": 1, "b": 2.5}


# what is read from the device once


def test_the_noise_level_is_read_once_and_again_when_it_changes():
    problem, mode = measured(), Waits()
    assert noise_level(problem, "a sampler") == 0.3
    with mode:
        assert noise_level(problem, "a sampler") == 0.3
    assert not mode.found
    problem.noise.sigma.mul_(2.0)
    assert noise_level(problem, "a sampler") == 0.6
    problem.noise.sigma = torch.tensor(0.5, dtype=torch.float64)
    assert noise_level(problem, "a sampler") == 0.5


def test_measured_values_are_counted_once_and_again_when_the_mask_changes():
    operator, mode = random_inpainting(4, 4), Waits()
    count = operator.count_measured()
    with mode:
        assert operator.count_measured() == count == int(operator.measured.sum())
    assert mode.found == {"_local_scalar_dense": 1}  # the test's own
    operator.measured.fill_(True)
    assert operator.count_measured() == 16
    operator.measured = torch.zeros(4, 4, dtype=torch.bool)
    assert operator.count_measured() == 0


def test_streams_of_neighbouring_draws_are_made_on_the_device():
    mode = Waits()
    with mode:
        near = Streams(3, range(4, 9)).normal(2, (5,))
    assert not mode.found
    some = Streams(3, (8, 4)).normal(2, (5,))
    assert torch.equal(some, near[[4, 0]])


# draws that fit into memory


def test_a_batch_fits_into_its_budget():
    """The worst moment of a step, in chunks of as many draws as fit, and of one more."""
    sampler, problem, seen = Guided(MMPS(), Heun(), steps=3), measured(), []
    whole = sampler(problem, field(), n=7, seed=1).x
    budget = peak(sampler, problem, field(), 3) + 100
    parts = sampler(problem, field(), n=7, seed=1, batch=f"{budget}B", callback=lambda info: seen.append(len(info["draws"])))
    assert seen == [3] * 6 + [1] * 3
    torch.testing.assert_close(parts.x, whole, rtol=1e-9, atol=1e-9)
    assert peak(sampler, problem, field(), 4) > budget
    # all of them, and no more than there are
    sampler(problem, field(), n=2, seed=1, batch="1GiB", callback=lambda info: seen.append(len(info["draws"])))
    assert seen[9:] == [2] * 3


def test_a_budget_that_is_too_small_or_no_number_is_an_error():
    sampler, problem = Guided(MMPS(), Heun(), steps=3), measured()
    with pytest.raises(CapabilityError, match=r"a step of one draw needs .* MiB, the budget is 0.0 MiB"):
        sampler(problem, field(), n=2, seed=0, batch="100B")
    with pytest.raises(ConfigError, match="a number of draws or of bytes like 8GiB, got 'many'"):
        sampler(problem, field(), n=2, seed=0, batch="many")
    with pytest.raises(ConfigError, match="batch >= 1"):
        sampler(problem, field(), n=2, seed=0, batch=0)
    with pytest.raises(ConfigError, match=r"batch=2\.5"):
        sampler(problem, field(), n=2, seed=0, batch=2.5)


def test_a_budget_resumes(tmp_path):
    sampler, problem, path = Guided(MMPS(), Heun(), steps=3), measured(), tmp_path / "run.pt"
    budget = f"{peak(sampler, problem, field(), 2) + 100}B"

    def interrupt(info):
        if info["draws"][0] == 2 and info["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, field(), n=5, seed=0, batch=budget, resume=path, callback=interrupt)
    whole = sampler(problem, field(), n=5, seed=0, batch=2)
    assert torch.equal(sampler(problem, field(), n=5, seed=0, batch=budget, resume=path).x, whole.x)


def test_a_run_without_a_file_reads_no_weights(monkeypatch):
    def refuse(*_):
        raise AssertionError("what a file needs")

    monkeypatch.setattr(loop, "fingerprint", refuse)
    sampler = Guided(None, Heun(), steps=3)
    sampler(measured(), field(), seed=0)
    with pytest.raises(AssertionError, match="what a file needs"):
        sampler(measured(), field(), seed=0, resume="unused.pt")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ALLOWED and not n.startswith("despeckle")])
def test_no_step_synchronises_on_the_gpu(name):
    sampler, problem, prior = made(name), measured(), field().to("cuda")
    problem = Problem(problem.operator.to("cuda"), problem.noise.to("cuda"), problem.y.cuda())
    streams = Streams(0, 2)
    with torch.no_grad():
        denoiser = sampler.condition(problem, prior)
        state = sampler.step(problem, denoiser, sampler.init(problem, denoiser, streams), streams)
        torch.cuda.set_sync_debug_mode("error")
        try:
            while state.step < STEPS:
                state = sampler.step(problem, denoiser, state, streams)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_value_that_is_not_finite_is_found_on_the_gpu():
    problem = measured()
    problem = Problem(problem.operator.to("cuda"), problem.noise.to("cuda"), problem.y.cuda())
    with pytest.raises(NumericalError, match=r"not finite after step [23] of 6 in draws \[0, 1\]"):
        Guided(None, Heun(), steps=6)(problem, _Nan().to("cuda"), n=2, seed=0)


class _Nan(Denoiser):
    def __init__(self):
        super().__init__(SHAPE, 0.05, 50.0)
        self.prior = field()

    def forward(self, x, sigma):
        return self.prior(x, sigma) * torch.where(sigma < 10.0, torch.nan, 1.0)[:, None, None, None]
