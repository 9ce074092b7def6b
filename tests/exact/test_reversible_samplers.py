"""Chains that can be undone: accuracy on a non-linear denoiser, the way back, and derivatives through whole chains."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import nn

from invdiff.core import (
    CapabilityError,
    ConfigError,
    Denoiser,
    DriftWarning,
    Gaussian,
    Karras,
    LinearOperator,
    Operator,
    Problem,
    ShapeError,
    Streams,
    drift,
)
from invdiff.core.reversible import run_moves
from invdiff.core.storage import LiveStorage
from invdiff.guidance import MMPS
from invdiff.operators import random_inpainting
from invdiff.priors import EDMDenoiser, UNet
from invdiff.samplers import (
    BDIA,
    DDNM,
    DPS,
    EDICT,
    OBELM,
    Ancestral,
    Coupled,
    DiffPIR,
    Euler,
    Graded,
    Guided,
    Heun,
    REDDiff,
    Reversible,
)

F64 = torch.float64
SCHEMES = {"obelm": OBELM(), "graded": Graded(), "bdia": BDIA(), "edict": EDICT(0.97), "coupled": Coupled(0.97)}
POLICIES = ["checkpoint(step)", "checkpoint(block)", "checkpoint(both)", "revolve(3)", "offload", "invertible"]


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Perturbed(Denoiser):
    """The denoiser of N(0, 0.25) whose slope has a third of a random convolutional network added: non-linear and stiff."""

    def __init__(self, dtype=F64, size=8, sigma_min=0.02):
        super().__init__((1, size, size), sigma_min, 80.0)
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        for k, p in enumerate(self.parameters()):
            p.data = randn(*p.shape, seed=k) / (p[0].numel() ** 0.5 if p.ndim == 4 else 3.0)
        self.to(dtype)
        self.calls = 0

    def forward(self, x, sigma):
        self.calls += 1
        s = sigma[:, None, None, None]
        total = 0.25 + s.square()
        slope = s * x / total + 0.3 * self.second(torch.tanh(2.0 * self.first(x * total.rsqrt())))
        return x - s * slope


def grid(steps, low=0.02):
    return Karras()(steps, low, 80.0).tolist()


def distance(found, wanted):
    top = sum(float((a - b).double().square().sum()) for a, b in zip(found, wanted, strict=True))
    return (top / sum(float(b.double().square().sum()) for b in wanted)) ** 0.5


def gradients(sampler, problem, prior, wanted, memory="full", n=2, start=None):
    x = sampler.differentiate(problem, prior, n, seed=4, memory=memory, start=start)
    return x.detach(), torch.autograd.grad((x - 0.3).square().sum(), wanted)


@pytest.fixture(scope="module")
def reference():
    """Noise and what a fine Heun's rule makes of it, its last step Euler's from 0.02 as in every grid."""
    prior, start = Perturbed(), 80.0 * randn(4, 1, 8, 8, seed=7)
    x, fine = start, grid(1000)
    with torch.no_grad():
        for a, b in itertools.pairwise(fine):
            x = Heun().step(prior, x, a, b, lambda: None)
    return prior, start, x


def error(scheme, steps, reference):
    prior, start, wanted = reference
    with torch.no_grad():
        x = scheme.finish(run_moves(scheme.moves(prior, grid(steps)), scheme.start(start)))
    return float((x - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("scheme", [OBELM(), Graded(), BDIA()])
def test_second_order(scheme, reference):
    """Twice the steps, a quarter of the error: measured ratios 3.9 to 4.7 between 50 and 200 steps."""
    errors = [error(scheme, n, reference) for n in (50, 100, 200)]
    assert all(3.4 < a / b < 5.5 for a, b in itertools.pairwise(errors)), errors
    assert errors[1] < 5e-3


def test_first_order_and_the_order_test_sees_it(reference):
    errors = [error(EDICT(0.999), n, reference) for n in (400, 800)]
    assert errors[0] / errors[1] > 1.5
    assert 1.5 < error(BDIA(0.5, "sigma"), 50, reference) / error(BDIA(0.5, "sigma"), 100, reference) < 2.7


def test_bdia_is_the_published_recursion():
    """z_{i-1} = DDIM(z_i) + gamma (z_{i+1} - DDIM^-1(z_i)) for z = alpha x, the noise evaluated once."""
    prior, sigmas, gamma = Perturbed(), grid(9), 0.7
    alpha = [1.0 / math.sqrt(1.0 + s * s) for s in sigmas]
    x = 80.0 * randn(2, 1, 8, 8, seed=7)
    pair, z = (x, x), [alpha[0] * x]
    with torch.no_grad():
        for k, move in enumerate(BDIA(gamma).moves(prior, sigmas)):
            pair = move(*pair)
            noise = (z[k] / alpha[k] - prior(z[k] / alpha[k], torch.full((2,), sigmas[k], dtype=F64))) / sigmas[k]

            def ddim(to, k=k, noise=noise):
                return alpha[to] * (z[k] / alpha[k] + (sigmas[to] - sigmas[k]) * noise)

            z.append(ddim(k + 1) if k == 0 else ddim(k + 1) + gamma * (z[k - 1] - ddim(k - 1)))
            torch.testing.assert_close(alpha[k + 1] * pair[1], z[-1], rtol=1e-11, atol=1e-11)


def test_edict_is_the_published_recursion():
    prior, sigmas, p = Perturbed(), grid(5), 0.93
    start = 80.0 * randn(2, 1, 8, 8, seed=7)

    def slope(x, sigma):
        return (x - prior(x, torch.full((2,), sigma, dtype=F64))) / sigma

    with torch.no_grad():
        x, y = start, start
        for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
            if k > 0:
                x, y = y, x
            x = x + (t - s) * slope(y, s)
            y = y + (t - s) * slope(x, s)
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
        found = run_moves(EDICT(p).moves(prior, sigmas), (start, start))
    torch.testing.assert_close(found, (x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [10, 50, 250])
def test_what_comes_back_in_single_precision(steps):
    """O-BELM loses (scale of the data / sigma_min)^(12/7) = 250 times 1e-7, whatever the number of steps."""
    prior, start = Perturbed(torch.float32), 80.0 * randn(4, 1, 8, 8, seed=7, dtype=torch.float32)

    def lost(scheme):
        return drift(scheme.moves(prior, grid(steps)), scheme.start(start))

    assert lost(OBELM()) < 3e-5
    assert lost(Graded()) < 1e-5
    assert lost(BDIA()) < 3e-6
    assert (lost(BDIA(0.5)) < 1e-3) is (steps == 10)
    assert (lost(Coupled(0.5)) < 1e-3) is (steps == 10)
    assert (lost(EDICT()) < 1e-4) is (steps < 250)


def test_a_low_smallest_level_costs_o_belm_digits_and_graded_none():
    prior, start = Perturbed(torch.float32, sigma_min=0.002), 80.0 * randn(4, 1, 8, 8, seed=7, dtype=torch.float32)
    lost = [drift(s.moves(prior, grid(100, 0.002)), s.start(start)) for s in (OBELM(), Graded())]
    assert lost[0] > 1e-4 and lost[1] < 3e-5


@pytest.mark.parametrize("name", SCHEMES)
def test_a_pair_comes_back_and_so_does_an_image(name):
    sampler = Reversible(None, SCHEMES[name], steps=20)
    prior, start = Perturbed(), 80.0 * randn(3, 1, 8, 8, seed=7)
    pair = sampler.generate(None, prior, start)
    found = sampler.invert(None, prior, pair)
    torch.testing.assert_close(found, sampler.scheme.start(start), rtol=1e-9, atol=1e-9)
    noise = sampler.invert(None, prior, pair[1])
    torch.testing.assert_close(sampler.generate(None, prior, noise)[1], pair[1], rtol=1e-9, atol=1e-9)


def test_the_noise_of_an_image_alone_is_approximate():
    """One step of DDIM's inversion at 0.02, for data of scale 0.5: the noise is right to a few per cent, not to rounding."""
    sampler = Reversible(None, Graded(), steps=60)
    prior, start = Perturbed(), 80.0 * randn(3, 1, 8, 8, seed=7)
    noise = sampler.invert(None, prior, sampler.generate(None, prior, start)[1])[1]
    assert 1e-6 < distance([noise], [start]) < 0.2


def test_a_run_is_the_chain():
    prior, problem = Perturbed(), Problem.unmeasured((1, 8, 8), F64)
    sampler = Reversible(None, EDICT(), steps=7)
    draws = sampler(problem, prior, n=2, seed=1)
    start = 80.0 * Streams(1, 2).normal(0, (1, 8, 8), "init", F64)
    torch.testing.assert_close(draws.x, sampler.generate(problem, prior, start)[1], rtol=1e-12, atol=1e-12)
    assert draws.network_calls == 14 and Reversible(None, steps=7)(problem, prior, seed=1).network_calls == 7


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("memory", POLICIES)
@pytest.mark.parametrize(("name", "steps"), [("obelm", 12), ("graded", 100), ("edict", 12)])
def test_the_derivative_of_a_chain_that_can_be_undone(name, steps, memory, dtype, tolerance):
    prior = Perturbed(dtype)
    start = (80.0 * randn(2, 1, 8, 8, seed=7, dtype=dtype)).requires_grad_()
    problem, sampler = Problem.unmeasured((1, 8, 8), dtype), Reversible(None, SCHEMES[name], steps=steps)
    wanted = [start, *prior.parameters()]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        x, found = gradients(sampler, problem, prior, wanted, memory, start=start)
    again, exact = gradients(sampler, problem, prior, wanted, start=start)
    assert torch.equal(x, again)
    assert distance(found[:1], exact[:1]) < tolerance and distance(found[1:], exact[1:]) < tolerance


@pytest.mark.parametrize(("scheme", "each"), [(OBELM(), 1), (EDICT(0.97), 2)])
def test_evaluations_of_an_inverted_chain(scheme, each):
    prior, problem = Perturbed(), Problem.unmeasured((1, 8, 8), F64)
    sampler = Reversible(None, scheme, steps=15)
    sampler.differentiate(problem, prior, seed=0, memory="invertible")  # the drift is measured once
    prior.calls = 0
    x = sampler.differentiate(problem, prior, seed=0, memory="invertible")
    assert prior.calls == 15 * each
    x.sum().backward()
    assert prior.calls == 2 * 15 * each


def test_a_chain_that_lost_its_digits_is_recomputed():
    prior, problem = Perturbed(torch.float32), Problem.unmeasured((1, 8, 8))
    sampler, wanted = Reversible(None, BDIA(0.5), steps=40), list(prior.parameters())
    with pytest.warns(DriftWarning, match="recomputed instead"):
        _, found = gradients(sampler, problem, prior, wanted, "invertible")
    assert distance(found, gradients(sampler, problem, prior, wanted)[1]) < 1e-6


class Shaded(LinearOperator):
    """A diagonal operator with a trainable diagonal that leaves out half of the pixels."""

    def __init__(self, gain):
        super().__init__((1, 4, 4), (1, 4, 4))
        self.gain = nn.Parameter(gain)
        self.register_buffer("kept", (torch.arange(16).reshape(1, 4, 4) % 2).to(gain))

    def forward(self, x):
        return self.kept * self.gain * x

    adjoint = forward

    def pinv(self, y):
        return self.kept / self.gain * y

    def solve(self, b, rho):
        return b / ((self.kept * self.gain).square() + rho[:, None, None, None])


class Bent(Operator):
    """A non-linear operator with a trainable parameter."""

    def __init__(self, gain):
        super().__init__((1, 4, 4), (1, 4, 4))
        self.gain = nn.Parameter(gain)

    def forward(self, x):
        return torch.tanh(self.gain * x)


def tunable(operator=Shaded, frozen=False):
    """Prior, problem, and everything that the draws depend on smoothly."""
    prior = Perturbed(size=4)
    op = operator(1.0 + 0.1 * randn(1, 4, 4, seed=1)).requires_grad_(not frozen)
    y = randn(1, 1, 4, 4, seed=2).requires_grad_()
    start = (80.0 * randn(2, 1, 4, 4, seed=3)).requires_grad_()
    problem = Problem(op, Gaussian(0.05), y)
    return prior, problem, [start, y, *prior.parameters(), *([] if frozen else op.parameters())]


CASES = {
    "ddnm": (DDNM(steps=6), {}),
    "ddnm, free of noise": (DDNM(noise_aware=False, steps=6), {}),
    "diffpir": (DiffPIR(steps=6), {"frozen": True}),
    "diffpir, non-linear": (DiffPIR(zeta=0.5, lam=1000.0, grid=Karras(sigma_max=1.0), steps=6), {"operator": Bent}),
    "heun": (Guided(steps=6), {}),
    "ancestral": (Guided(integrator=Ancestral(), steps=6), {}),
    "euler": (Guided(integrator=Euler(), steps=6), {}),
    "o-belm": (Reversible(steps=6), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_finite_differences(case):
    """Along a random direction of everything at once, by central differences with a step of 1e-6."""
    sampler, options = CASES[case]
    prior, problem, wanted = tunable(**options)
    direction = [randn(*t.shape, seed=50 + k) for k, t in enumerate(wanted)]

    def loss(h=0.0):
        for t, v in zip(wanted, direction, strict=True):
            t.data.add_(v, alpha=h)
        x = sampler.differentiate(problem, prior, 2, seed=4, start=wanted[0])
        for t, v in zip(wanted, direction, strict=True):
            t.data.sub_(v, alpha=h)
        return (x - 0.3).square().sum()

    x = sampler.differentiate(problem, prior, 2, seed=4, start=wanted[0])
    found = torch.autograd.grad((x - 0.3).square().sum(), wanted, allow_unused=True)
    unused = [k for k, g in enumerate(found) if g is None]
    # an unconditional sampler depends on neither y nor the operator
    assert unused == ([] if not hasattr(sampler, "guidance") else [1, len(wanted) - 1])
    slope = sum(float((g * v).sum()) for g, v in zip(found, direction, strict=True) if g is not None)
    with torch.no_grad():
        difference = float(loss(1e-6) - loss(-1e-6)) / 2e-6
    assert slope == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("memory", [p for p in POLICIES if p != "invertible"])
@pytest.mark.parametrize("sampler", [DDNM(steps=12), Guided(integrator=Ancestral(), steps=12)])
def test_the_derivative_of_any_chain(sampler, memory):
    prior, problem, wanted = tunable()
    used = wanted if isinstance(sampler, DDNM) else [wanted[0], *prior.parameters()]
    x, found = gradients(sampler, problem, prior, used, memory, start=wanted[0])
    again, exact = gradients(sampler, problem, prior, used, start=wanted[0])
    assert torch.equal(x, again) and distance(found, exact) < 1e-12


def test_the_draws_are_those_of_a_run():
    prior, problem, _ = tunable()
    for sampler in (DDNM(steps=6), Guided(steps=6), Reversible(steps=6)):
        x = sampler.differentiate(problem, prior, 2, seed=4, memory="revolve(2)")
        assert torch.equal(x.detach(), sampler(problem, prior, 2, seed=4).x) and x.requires_grad


@pytest.mark.parametrize("sampler", [DPS(steps=3), REDDiff(steps=3), Guided(MMPS(), steps=3), Reversible(MMPS(), steps=3)])
def test_what_has_no_derivative_says_what_has(sampler):
    prior, problem, _ = tunable(frozen=True)
    with pytest.raises(CapabilityError, match="without guidance, DDNM, DiffPIR and IDM"):
        sampler.differentiate(problem, prior, seed=0)


def test_errors():
    prior, problem, _ = tunable()
    with pytest.raises(CapabilityError, match="solve of Shaded has no derivative"):
        DiffPIR(steps=3).differentiate(problem, prior, seed=0)
    with pytest.raises(CapabilityError, match="can't be undone"):
        DDNM(steps=3).differentiate(problem, prior, seed=0, memory="invertible")
    with pytest.raises(ShapeError, match=r"expected start of shape \(1, 1, 4, 4\)"):
        DDNM(steps=3).differentiate(problem, prior, seed=0, start=randn(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="needs a problem"):
        Reversible(MMPS(), steps=3).invert(None, prior, randn(1, 1, 4, 4))
    with pytest.raises(ShapeError, match="expected x of shape"):
        Reversible(steps=3).invert(problem, prior, randn(1, 1, 4, 6))
    with pytest.raises(ConfigError, match="expected full, checkpoint"):
        DDNM(steps=3)(problem, prior, seed=0, memory="small")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BDIA(0.0), r"gamma in \(0, 1\]"),
        (lambda: BDIA(1.0, "x"), "coordinates to be vp or sigma"),
        (lambda: EDICT(1.2), r"p in \(0, 1\]"),
        (lambda: Coupled(1.0), r"v in \(0, 1\)"),
        (lambda: Graded(-1.0), "power >= 0"),
    ],
)
def test_options_out_of_range(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("sampler", [Guided(MMPS(cg_steps=2), Euler(), steps=2), DPS(steps=2)])
def test_blocks_recomputed_in_a_run_change_the_peak_and_not_the_draws(sampler):
    net = UNet(1, 1, widths=(32,), blocks=3, embedding=8, patch=1)
    for k, p in enumerate(net.parameters()):
        p.data += 0.05 * randn(*p.shape, seed=k, dtype=torch.float32)
    prior = EDMDenoiser(net, sigma_data=0.5)
    truth = randn(1, 16, 16, dtype=torch.float32)
    problem = Problem.simulate(random_inpainting(16, 16, keep=0.5), Gaussian(0.1), truth)
    peaks, draws = [], []
    for memory in ("full", "checkpoint(block)"):
        with LiveStorage() as meter:
            draws.append(sampler(problem, prior, n=2, seed=0, memory=memory).x)
        peaks.append(meter.peak)
    assert torch.equal(*draws)
    assert peaks[1] < 0.7 * peaks[0]
