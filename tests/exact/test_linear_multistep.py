"""Integrators that remember: orders on closed-form flows, weights, laws of the SDE forms, posteriors, resuming, derivatives."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Karras, Problem, Streams
from invdiff.guidance import MMPS
from invdiff.priors import GaussianMixture, GaussianPrior
from invdiff.samplers import DDIM, Ancestral, Churn, DFlow, Euler, Guided, Heun
from invdiff.samplers.integrators import RFSolver
from invdiff.samplers.linear_multistep import PNDM, DPMSolver, UniPC, exponential_moments, interpolatory
from invdiff.validation import Doubled, moments
from invdiff.validation.cases import coloured, white

F64 = torch.float64
LOW, HIGH = 0.1, 3.0
VARIANCES = torch.tensor([0.05, 0.4, 1.5, 4.0], dtype=F64)
MEAN = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=F64)
PRIOR = GaussianPrior(MEAN, VARIANCES, sigma_min=1e-3, sigma_max=100.0)
MULTISTEP = [DPMSolver(), DPMSolver(1.0), PNDM(), PNDM("multistep"), UniPC(1), UniPC(2), UniPC(3)]
names = {"ids": repr}


def unused():
    raise AssertionError("a rule without noise asked for it")


def levels(steps, high=HIGH, low=LOW):
    return Karras(low, high)(steps + 1, low, high)[:-1].tolist()


def flow(rule, prior, x, sigmas):
    """x at the last level of a grid that does not go to zero."""
    past, zero = x.new_zeros(rule.keeps, *x.shape), torch.zeros_like(x)
    for k in range(len(sigmas) - 1):
        x, past = rule.advance(prior, x, past, sigmas, k, lambda: zero)
        assert past.shape == (rule.keeps, *x.shape)
    return x


def slope(errors):
    """Of -log2(error) over equal doublings of the steps, least squares."""
    y = [-math.log2(e) for e in errors]
    k = [i - (len(y) - 1) / 2 for i in range(len(y))]
    return sum(a * b for a, b in zip(k, y, strict=True)) / sum(a * a for a in k)


def gaussian_errors(rule, counts=(64, 128, 256), high=HIGH):
    """In the direction of each eigenvector x - m is multiplied by sqrt((l + sigma'^2) / (l + sigma^2))."""
    z = torch.tensor([[1.0, -1.0, 0.5, 2.0]], dtype=F64)
    start, end = (MEAN + z * (VARIANCES + s * s).sqrt() for s in (high, LOW))
    return [float((flow(rule, PRIOR, start, levels(n, high)) - end).norm() / (end - MEAN).norm()) for n in counts]


# the midpoint rule in a flow's time is of third order on Gaussians, see its docstring; of second on the mixture below
GAUSSIAN_ORDER = {RFSolver(): 3}


@pytest.mark.parametrize(
    "rule", [Euler(), Heun(), DDIM(), RFSolver(), *(r for r in MULTISTEP if getattr(r, "eta", 0.0) == 0.0)], **names
)
def test_the_flow_of_a_gaussian_is_followed_to_the_declared_order(rule):
    order = GAUSSIAN_ORDER.get(rule, rule.order)
    assert slope(gaussian_errors(rule)) == pytest.approx(order, abs=0.15)


def test_orders_that_only_the_start_limits_show_from_high_levels():
    """At 80, where D hardly changes with the level, the first step's error is too small to see."""
    counts = (32, 64, 128)
    assert slope(gaussian_errors(UniPC(3), counts, 80.0)) == pytest.approx(4.0, abs=0.15)
    assert slope(gaussian_errors(PNDM("multistep"), counts, 80.0)) > 3.5
    for rule in (UniPC(3), PNDM("multistep")):
        assert gaussian_errors(rule, (64,), 80.0)[0] < 0.11 * gaussian_errors(DPMSolver(), (64,), 80.0)[0]


@dataclass(frozen=True)
class EqualSteps(PNDM):
    """A planted fault: the weights of equal steps on a grid that has none."""

    def advance(self, denoise, x, past, sigmas, k, noise):
        equal = [sigmas[k] - j * (sigmas[k + 1] - sigmas[k]) for j in range(k, -2, -1)]
        return super().advance(denoise, x, past, equal, k, noise)


@dataclass(frozen=True)
class Overshoots(DPMSolver):
    """A planted fault: the step before taken for half as long, and D's line therefore twice as steep."""

    def advance(self, denoise, x, past, sigmas, k, noise):
        near = [*sigmas[: k - 1], math.sqrt(sigmas[k - 1] * sigmas[k]), *sigmas[k:]] if k else sigmas
        return super().advance(denoise, x, past, near, k, noise)


def test_wrong_weights_lose_the_order():
    assert slope(gaussian_errors(EqualSteps())) < 2.3
    assert slope(gaussian_errors(Overshoots())) < 1.3


def test_the_flow_of_a_mixture_is_followed_to_the_declared_order():
    """D is not linear there; against the classical rule of fourth order, written out, on 800 of Karras' levels."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.7], [0.2, -1.2]], dtype=F64)
    prior = GaussianMixture(torch.ones(3, dtype=F64), means, 0.3 * torch.eye(2, dtype=F64), sigma_min=1e-3, sigma_max=100.0)
    start = torch.tensor([[1.5, -2.0], [-0.4, 3.0], [0.1, 0.3]], dtype=F64)

    def eps(x, sigma):
        return (x - prior(x, torch.full((len(x),), sigma, dtype=F64))) / sigma

    x = start
    for s, then in pairwise(levels(800)):
        h = then - s
        a = eps(x, s)
        b = eps(x + 0.5 * h * a, s + 0.5 * h)
        c = eps(x + 0.5 * h * b, s + 0.5 * h)
        x = x + h / 6 * (a + 2 * b + 2 * c + eps(x + h * c, then))
    for rule in (RFSolver(), DPMSolver(), UniPC(2), PNDM()):
        errors = [float((flow(rule, prior, start, levels(n)) - x).norm()) for n in (50, 100, 200)]
        assert slope(errors) == pytest.approx(rule.order, abs=0.3), rule


def test_weights_integrate_polynomials_and_are_those_of_the_textbook_at_equal_steps():
    even = interpolatory([0.0, -1.0, -2.0, -3.0], [1.0, 1 / 2, 1 / 3, 1 / 4])
    assert even == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], rel=1e-13)
    for h in (1e-6, 0.03, 0.99, 1.01, 7.0):
        found = exponential_moments(h, 4)
        # by midpoints
        u = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
        exact = [float((h * (-h * (1 - u)).exp() * u**i).mean()) for i in range(4)]
        assert found == pytest.approx(exact, rel=1e-9)
        nodes = [0.0, -0.7, -1.9, 1.0]
        weights = interpolatory(nodes, found)
        for i in range(4):
            assert sum(w * u**i for w, u in zip(weights, nodes, strict=True)) == pytest.approx(found[i], rel=1e-12)


def test_unipc_predicts_as_dpm_solver_and_is_exact_where_d_is_a_line():
    """D = a + b log sigma for every x: p = 2 and 3 follow x(sigma) = a + b log sigma + b + c sigma after the first steps."""

    class Line(GaussianPrior):
        def forward(self, x, sigma):
            return (0.3 + 0.8 * sigma.log())[:, None].expand_as(x)

    prior, grid = Line(MEAN, VARIANCES), levels(6)

    def exact(sigma, c):
        return 0.3 + 0.8 * math.log(sigma) + 0.8 + c * sigma

    x = torch.full((1, 4), exact(HIGH, 1.0), dtype=F64)
    past = x.new_zeros(3, 1, 4)
    # the first step, and its correction by (1 - e^-h) / 2, are of low order
    for k in range(2):
        x, past = UniPC(2).advance(prior, x, past, grid, k, unused)
    c = (float(past[0, 0, 0]) - exact(grid[1], 0.0)) / grid[1]
    for k in range(2, 6):
        x, past = UniPC(2).advance(prior, x, past, grid, k, unused)
        assert float(past[0, 0, 0]) == pytest.approx(exact(grid[k], c), rel=1e-12)
    # the predictor alone: a step of DPM-Solver++(2M) from what is remembered
    x, past = torch.ones(1, 4, dtype=F64), torch.ones(1, 1, 4, dtype=F64)
    told = torch.stack([x, PRIOR(x, torch.full((1,), grid[1], dtype=F64))])
    corrected, kept = UniPC(2).advance(PRIOR, x, torch.cat([x[None], past, past]), grid, 1, lambda: x)
    again = DPMSolver().advance(_Fixed(told[1]), kept[0], past, grid, 1, lambda: x)[0]
    torch.testing.assert_close(corrected, again, rtol=1e-13, atol=0)


class _Fixed(GaussianPrior):
    def __init__(self, value):
        super().__init__(MEAN, VARIANCES)
        self.value = value

    def forward(self, x, sigma):
        return self.value


TAU = 0.7
SCALAR = GaussianPrior(torch.zeros(1, dtype=F64), torch.full((1,), TAU**2, dtype=F64), sigma_min=1e-4, sigma_max=100.0)


def law(rule, mean, variance, steps, high=2.0):
    """Of x at LOW where x at `high` has that mean and variance: each step is linear in (x, past, z)."""
    sigmas, size = levels(steps, high), 1 + rule.keeps
    basis, z = torch.eye(size + 1, size, dtype=F64), torch.eye(size + 1, dtype=F64)[:, -1:]
    m, c = torch.zeros(size, dtype=F64), torch.zeros(size, size, dtype=F64)
    m[0], c[0, 0] = mean, variance
    for k in range(steps):
        x, past = rule.advance(SCALAR, basis[:, :1], basis[:, 1:].T[..., None], sigmas, k, lambda: z)
        rows = torch.cat([x, *past], 1)
        m, c = rows[:-1].T @ m, rows[:-1].T @ c @ rows[:-1] + torch.outer(rows[-1], rows[-1])
    return float(m[0]), float(c[0, 0])


def exact_law(eta, mean, variance, high=2.0):
    """x / sqrt(t^2 + s^2) keeps unit variance and forgets by the factor (t^2 + s'^2)^(eta / 2) / (t^2 + s^2)^(eta / 2)."""
    now, then = math.hypot(TAU, high), math.hypot(TAU, LOW)
    kept = (then / now) ** eta
    return mean * kept * then / now, then**2 * (1.0 - kept**2 + kept**2 * variance / now**2)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("start", [(1.0, 0.0), (1.0, TAU**2 + 4.0)], ids=["point", "law"])
def test_moments_of_the_sde_forms_converge_to_the_second_order(eta, start):
    """Mean and variance, from one point and from the right law."""
    exact = exact_law(eta, *start)
    found = [law(DPMSolver(eta), *start, n) for n in (64, 128, 256)]
    for k in (0, 1):
        errors = [abs(f[k] - exact[k]) for f in found]
        if max(errors) < 1e-12:
            # the mean for eta = 1 has no error, and a point stays one for eta = 0
            assert (k, eta) in ((0, 1.0), (1, 0.0))
            continue
        assert slope(errors) == pytest.approx(2.0, abs=0.15)


def test_first_order_rules_with_noise_are_of_the_first_order():
    """The declared order of the rules that do not remember, from one point; DPM-Solver's first step is one of them."""
    exact = exact_law(1.0, 1.0, 0.0)
    for rule in (Ancestral(), Churn()):
        errors = [abs(law(rule, 1.0, 0.0, n)[1] - exact[1]) for n in (64, 128, 256)]
        assert slope(errors) == pytest.approx(rule.order, abs=0.15)
    x = torch.ones(2, 1, dtype=F64)
    for eta, other in ((0.0, Euler()), (1.0, Ancestral())):
        first = DPMSolver(eta).advance(SCALAR, x, x.new_zeros(1, 2, 1), [2.0, 1.0, 0.0], 0, lambda: x)[0]
        torch.testing.assert_close(first, other.step(SCALAR, x, 2.0, 1.0, lambda: x), rtol=1e-14, atol=0)


@pytest.mark.parametrize("rule", [*MULTISTEP, RFSolver()], **names)
def test_the_last_step_returns_the_estimate(rule):
    x, past = torch.ones(2, 4, dtype=F64), torch.full((rule.keeps, 2, 4), math.nan, dtype=F64)
    for k, sigmas in ((0, [0.5, 0.0]), (1, [1.0, 0.5, 0.0])):
        found, _ = rule.advance(PRIOR, x, past, sigmas, k, lambda: x)
        assert torch.equal(found, PRIOR(x, torch.full((2,), 0.5, dtype=F64)))


FINE = Karras(sigma_max=300.0, sigma_min=0.005)


@pytest.mark.parametrize(
    ("rule", "calls"), [(DPMSolver(), 40), (UniPC(2), 40), (PNDM("multistep"), 40), (RFSolver(), 39)], **names
)
def test_the_posterior_in_forty_evaluations(rule, calls):
    """1,000 draws against the closed form; Heun needs 59 evaluations for the same, see benchmarks/integrators.py."""
    for seed, make in enumerate((white, coloured)):
        case = make(seed)
        steps = 20 if isinstance(rule, RFSolver) else 40
        assert worst(rule, MMPS(cg_steps=4), case, steps) < 5.0
        found = Guided(None, rule, FINE, steps=steps)(case.problem, case.prior, 1, seed=1)
        assert found.network_calls == calls


@dataclass(frozen=True)
class Quiet(DPMSolver):
    """A planted fault: a tenth of the noise is missing."""

    def advance(self, denoise, x, past, sigmas, k, noise):
        return super().advance(denoise, x, past, sigmas, k, lambda: 0.9 * noise())


def worst(rule, guidance, case, steps):
    x = Guided(guidance, rule, FINE, steps=steps)(case.problem, case.prior, 1000, seed=1).x
    z = moments(x, case)
    return max(abs(z[name]) for name in ("z_mean", "z_cov", "z_spread"))


def test_the_posterior_by_the_sde_form_and_what_is_rejected():
    case, mmps = white(0), MMPS(cg_steps=4)
    assert worst(DPMSolver(1.0), mmps, case, 60) < 5.0
    assert worst(Quiet(1.0), mmps, case, 60) > 10.0
    assert worst(UniPC(2), Doubled(mmps), case, 40) > 10.0


@pytest.mark.parametrize("rule", MULTISTEP, **names)
def test_runs_resume_bit_for_bit_and_do_not_depend_on_the_batch(rule, tmp_path):
    case, path = coloured(0), tmp_path / "run.pt"
    sampler = Guided(MMPS(cg_steps=2), rule, FINE, steps=8)
    whole = sampler(case.problem, case.prior, 4, seed=7, batch=2)

    def interrupt(info):
        if info["step"] == 4 and info["draws"][0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(case.problem, case.prior, 4, seed=7, batch=2, resume=path, callback=interrupt)
    resumed = sampler(case.problem, case.prior, 4, seed=7, batch=2, resume=path)
    assert torch.equal(resumed.x, whole.x) and resumed.network_calls == whole.network_calls
    torch.testing.assert_close(sampler(case.problem, case.prior, 4, seed=7).x, whole.x, rtol=1e-9, atol=1e-9)
    extra = 9 if rule == PNDM() else 0
    assert whole.network_calls == 8 + extra


@pytest.mark.parametrize("rule", MULTISTEP, **names)
def test_the_derivative_is_the_same_under_every_policy(rule):
    """Of the draws by the prior's mean and by the first iterate, against autograd through the steps written out."""
    prior = GaussianPrior(MEAN, VARIANCES, sigma_min=0.05, sigma_max=50.0)
    sampler, problem = Guided(integrator=rule, steps=7), Problem.unmeasured((4,), dtype=F64)
    mean = prior._buffers.pop("mean")
    prior.mean = torch.nn.Parameter(mean)
    begin = 50.0 * torch.linspace(-1.0, 1.0, 8, dtype=F64).reshape(2, 4)
    cotangent = torch.linspace(0.5, 2.0, 8, dtype=F64).reshape(2, 4)

    def gradients(x, start):
        return torch.autograd.grad((cotangent * x).sum(), [start, prior.mean])

    start, sigmas = begin.clone().requires_grad_(), Karras()(7, 0.05, 50.0).tolist()
    x, past = start, start.new_zeros(rule.keeps, 2, 4)
    for k in range(7):
        x, past = rule.advance(prior, x, past, sigmas, k, lambda k=k: Streams(4, 2).normal(k + 1, (4,), dtype=F64))
    wanted = (x.detach(), *gradients(x, start))
    for memory in ("full", "checkpoint(step)", "checkpoint(step, 2)", "revolve(2)", "offload"):
        start = begin.clone().requires_grad_()
        x = sampler.differentiate(problem, prior, 2, seed=4, memory=memory, start=start)
        torch.testing.assert_close((x.detach(), *gradients(x, start)), wanted, rtol=1e-12, atol=1e-13)


def test_what_cannot_be_is_an_error():
    for make, words in (
        (lambda: DPMSolver(-1.0), "eta >= 0, got -1"),
        (lambda: UniPC(4), "p to be 1, 2 or 3, got 4"),
        (lambda: PNDM("euler"), "warm_up to be"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()
    with pytest.raises(CapabilityError, match="DPMSolver remembers earlier evaluations"):
        DFlow(flow=DPMSolver(), steps=2)(white(0).problem, white(0).prior, seed=0)


def test_errors_decrease_with_the_steps_taken():
    """Few steps on the usual grid, from 80 to 0.1: no rule blows up on its uneven distances."""
    for rule in (DPMSolver(), PNDM(), PNDM("multistep"), UniPC(2), UniPC(3), RFSolver()):
        errors = gaussian_errors(rule, (10, 20, 40), 80.0)
        assert all(b < a for a, b in pairwise(errors)) and errors[0] < 0.1
