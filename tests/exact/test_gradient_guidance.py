"""Samplers that follow the gradient of the misfit, or project on the data, against the laws that their equations imply.

Prior N(0, I), A = U diag(a) V^T: every step is affine, x' = k x + b + c z in each singular direction, and (k, b, c) are written
here from the papers. Draws are held to that law by z-scores below 5, and to the posterior where a limit reaches it.
"""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, Matrix, Poisson, Problem, Streams
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers import DPS, DiffPIR
from invdiff.samplers.dds import DDS
from invdiff.samplers.flowchef import FlowChef
from invdiff.samplers.gdp import GDP
from invdiff.samplers.guided import Level
from invdiff.samplers.lgd import LGD
from invdiff.samplers.mcg import MCG
from invdiff.validation.cases import coloured, complex_valued

F64 = torch.float64
EDM = Karras(0.02, 100.0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class White:
    """Prior N(0, I_d), four measurements with singular values 0.9, 0.6, 0.3 and 0.1."""

    def __init__(self, sigma_y=0.3, d=8, seed=0):
        self.u, _, self.vh = torch.linalg.svd(randn(4, d, seed=seed))
        self.a, self.sigma_y = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=F64), sigma_y
        self.prior = GaussianPrior(torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64), sigma_max=1000.0)
        operator = Matrix((self.u * self.a) @ self.vh[:4])
        self.problem = Problem.simulate(operator, Gaussian(sigma_y), randn(d, seed=seed + 1), seed)

    def law(self, sampler, rule):
        """Of the draws in the basis V; `rule` gives (k, b, c) from sigma, sigma', a and the datum of a direction."""
        grid, d = sampler.grid(sampler.steps, 1e-3, 1000.0).tolist(), len(self.vh)
        data = (self.problem.y[0] @ self.u / self.a).tolist() + [0.0] * (d - 4)
        means, variances = [], []
        for a, datum in zip([*self.a.tolist(), *[0.0] * (d - 4)], data, strict=True):
            mean, variance = 0.0, grid[0] ** 2
            for s, t in pairwise(grid):
                k, b, c = rule(s, t, a, datum)
                mean, variance = k * mean + b, k * k * variance + c * c
            means.append(mean)
            variances.append(variance)
        return torch.tensor(means, dtype=F64), torch.tensor(variances, dtype=F64)

    def worst(self, sampler, rule, n=1000, seed=1):
        """The largest z-score; directions without any spread are compared to rounding."""
        draws, (mean, variance) = sampler(self.problem, self.prior, n=n, seed=seed).x @ self.vh.T, self.law(sampler, rule)
        free = variance > 1e-16
        exact, fixed = GaussianPrior(mean[free], torch.diag(variance[free])), (draws - mean)[:, ~free].norm()
        return max(z_mean(draws[:, free], exact), z_cov(draws[:, free], exact), float(fixed) / 1e-7)


def ancestral(s, t, k0, b0, c0=0.0):
    """(k, b, c) of the ancestral step from an estimate k0 x + b0 + c0 z of x0."""
    keep = (t / s) ** 2
    return keep + (1 - keep) * k0, (1 - keep) * b0, math.hypot((1 - keep) * c0, t * math.sqrt(1 - keep))


def stepped(sampler, case, k=20, n=3):
    """A step of the sampler from a random state at level k, the state, its levels and the noise of the step."""
    grid = sampler.grid(sampler.steps, case.prior.sigma_min, case.prior.sigma_max).tolist()
    state, streams = Level(k, 2.0 * randn(n, 8, seed=5), grid[k]), Streams(4, n)
    new = sampler.step(case.problem, sampler.condition(case.problem, case.prior), state, streams).x
    return new, state.x, grid[k], grid[k + 1], streams.normal(k + 1, (8,), dtype=F64)


def lgd_rule(sigma_y, zeta=1.0):
    """One point."""

    def rule(s, t, a, datum):
        d, w, r = 1 / (1 + s * s), zeta * s * s / (1 + s * s) * (a / sigma_y) ** 2, s / math.hypot(1, s)
        return ancestral(s, t, d * (1 - w), w * datum, w * r)

    return rule


def pigdm_rule(sigma_y):
    def rule(s, t, a, datum):
        d, r2 = 1 / (1 + s * s), s * s / (1 + s * s)
        w = r2 * a * a / (r2 * a * a + sigma_y**2)
        return ancestral(s, t, d * (1 - w), w * datum)

    return rule


@pytest.mark.parametrize("d", [8, 16])
@pytest.mark.parametrize("sigma_y", [0.2, 0.5, 1.0])
def test_lgd_with_one_point_follows_its_equation(sigma_y, d):
    case, sampler = White(sigma_y, d), LGD(points=1, grid=EDM, steps=60)
    assert case.worst(sampler, lgd_rule(sigma_y)) < 5
    assert case.worst(sampler, lgd_rule(sigma_y, 0.3), n=2000) > 10


def test_lgd_with_many_points_is_pigdm_and_with_few_it_is_not():
    case, rule = White(0.5), pigdm_rule(0.5)
    assert case.worst(LGD(points=64, grid=EDM, steps=30), rule, n=400) < 5
    assert case.worst(LGD(points=1, grid=EDM, steps=30), rule, n=4000) > 20


def test_the_gradient_of_lgd_tends_to_that_of_pigdm():
    """10,000 estimates: the mean of one point's is that of the likelihood at D, to the digits that a mean of noise has; of
    more points it nears the closed form, the faster the more there are, up to 1 / n."""
    case, r = White(0.5), 0.6
    centre, matrix, y = randn(1, 8, seed=9), case.problem.operator.matrix, case.problem.y
    misfit = y - centre @ matrix.T
    closed = (torch.linalg.solve(r * r * matrix @ matrix.T + 0.25 * torch.eye(4), misfit.T).T @ matrix)[0]
    errors = {}
    for n in (1, 4, 16, 64):
        found = LGD(points=n).gradient(case.problem, centre + r * Streams(n, 10_000).normal(0, (n, 8), "points", F64))
        error = (found.var(0) / len(found)).sqrt()
        if n == 1:
            assert float(((found.mean(0) - (misfit @ matrix)[0] / 0.25) / error).abs().max()) < 5
        errors[n] = float((found.mean(0) - closed).norm())
    assert errors[1] > 2 * errors[4] > 5 * errors[16] > 15 * errors[64]


@pytest.mark.parametrize("make", [coloured, complex_valued])
def test_the_step_of_lgd_is_the_papers(make):
    """By autograd through the log of the mean of the likelihoods."""
    case, sampler = make(), LGD(points=5, zeta=0.8, data_std=0.5, grid=EDM, steps=50)
    new, x, s, t, z = stepped(sampler, case)
    leaf = x.clone().requires_grad_()
    denoised = case.prior(leaf, torch.full((3,), s, dtype=F64))
    r = (1 / (1 / s**2 + 1 / 0.25)) ** 0.5
    points = denoised[:, None] + r * Streams(4, 3).normal(21, (5, 8), "points", F64)
    value = torch.stack([case.problem.log_likelihood(p) for p in points]).logsumexp(1).sum()
    guided = denoised + 0.8 * s * s * torch.autograd.grad(value, leaf, retain_graph=True)[0]
    keep = (t / s) ** 2
    torch.testing.assert_close(new, (keep * x + (1 - keep) * guided + t * (1 - keep) ** 0.5 * z).detach(), rtol=1e-9, atol=1e-9)


def dds_rule(gamma, eta):
    def rule(s, t, a, datum):
        d, w, c = 1 / (1 + s * s), gamma * a * a / (1 + gamma * a * a), eta * t * math.sqrt(1 - (t / s) ** 2)
        return d * (1 - w) + math.sqrt(t * t - c * c) / s * (1 - d), w * datum, c

    return rule


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
@pytest.mark.parametrize("d", [8, 16])
def test_dds_follows_its_equation(d, eta):
    """With as many CG steps as A has singular values; one step is another law, and so is another gamma."""
    case, rule = White(0.3, d), dds_rule(5.0, eta)
    assert case.worst(DDS(4, 5.0, eta, grid=EDM, steps=40), rule) < 5
    assert case.worst(DDS(1, 5.0, eta, grid=EDM, steps=40), rule) > 20
    assert case.worst(DDS(4, 3.0, eta, grid=EDM, steps=40), rule) > 20


@pytest.mark.parametrize("make", [coloured, complex_valued])
def test_the_solver_of_dds_is_the_best_point_of_a_krylov_space(make):
    """Against the space's own orthonormal basis; the whole space is DiffPIR's proximal step."""
    case, gamma, denoised = make(), 3.0, randn(2, 8, seed=6)
    operator, y = case.problem.operator, case.problem.y
    m = torch.eye(8, dtype=F64) + gamma * operator.normal(torch.eye(8, dtype=F64))
    b = gamma * operator.adjoint(y - operator(denoised))
    for k in (1, 2, 3):
        found = DDS(k, gamma).correction(case.problem, denoised)
        for x, right in zip(found, b, strict=True):
            basis = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(m, j) @ right for j in range(k)], 1)).Q
            best = basis @ torch.linalg.solve(basis.T @ m @ basis, basis.T @ right)
            torch.testing.assert_close(x, best, rtol=0, atol=1e-10)
    # rho = lam sigma_y^2 / sigma^2 = 1 / gamma
    level = (gamma * float(case.problem.noise.sigma) ** 2) ** 0.5
    proximal = DiffPIR().correct(case.problem, denoised, denoised, level, 0.0).x0
    torch.testing.assert_close(denoised + DDS(8, gamma).correction(case.problem, denoised), proximal, rtol=0, atol=1e-9)


def mcg_rule(s, t, a, datum):
    return (0.0, datum, t) if a else ancestral(s, t, 1 / (1 + s * s), 0.0)


@pytest.mark.parametrize("d", [8, 16])
def test_mcg_on_a_white_prior_is_replacement(d):
    """Whatever the gradient's step; the same draws by DPS alone are of another law."""
    case = White(0.3, d)
    assert case.worst(MCG(0.5, grid=EDM, steps=50), mcg_rule) < 5
    assert case.worst(DPS(0.5, grid=EDM, steps=50), mcg_rule) > 20


@pytest.mark.parametrize("make", [coloured, complex_valued])
def test_the_step_of_mcg_is_dps_seen_through_the_projection(make):
    case, sampler = make(), MCG(0.7, grid=EDM, steps=50)
    operator = case.problem.operator
    new, _, _, t, _ = stepped(sampler, case)
    plain = stepped(DPS(0.7, grid=EDM, steps=50), case)[0]
    n = Streams(4, 3).normal(21, (8,), "measurement", F64)
    torch.testing.assert_close(operator(new), case.problem.y + t * operator(n), rtol=0, atol=1e-8)
    change = new - plain
    torch.testing.assert_close(change, operator.pinv(operator(change)), rtol=0, atol=1e-8)


def gdp_rule(form, zeta):
    def rule(s, t, a, datum):
        d, c2 = 1 / (1 + s * s), t * t * (1 - (t / s) ** 2)
        x0, xt = math.sqrt(1 + t * t), c2 * math.sqrt((1 + s * s) / (1 + t * t)) * d
        w, (k, b, c) = 2 * zeta * a * a * (x0 if form == "x0" else xt), ancestral(s, t, d, 0.0)
        return k - w * d, b + w * datum, c

    return rule


@pytest.mark.parametrize("d", [8, 16])
@pytest.mark.parametrize(("form", "zeta"), [("x0", 0.03), ("x0", 0.5), ("xt", 1.5), ("xt", 10.0)])
def test_gdp_follows_its_equation(form, zeta, d):
    case, sampler = White(0.3, d), GDP(zeta, form, grid=EDM, steps=50)
    assert case.worst(sampler, gdp_rule(form, zeta)) < 5


def test_the_test_sees_another_weight_or_form_of_gdp():
    case, sampler = White(0.3), GDP(0.1, "x0", grid=EDM, steps=50)
    assert case.worst(sampler, gdp_rule("x0", 0.05)) > 20 and case.worst(sampler, gdp_rule("xt", 0.1)) > 20


@pytest.mark.parametrize("form", ["x0", "xt"])
@pytest.mark.parametrize("make", [coloured, complex_valued])
def test_the_step_of_gdp_is_the_papers_in_variance_preserving_form(make, form):
    """x_{t-1} ~ N(mu - w grad_{x0} L, Sigma) or N(mu - w Sigma grad_{x_t} L, Sigma), L the mean squared error, by autograd."""
    case, zeta = make(), 0.2
    m = case.problem.operator.count_measured()
    new, x, s, t, z = stepped(GDP(zeta, form, grid=EDM, steps=50), case)
    bar, bar_next = 1 / (1 + s * s), 1 / (1 + t * t)
    beta = 1 - bar / bar_next
    x_t = (math.sqrt(bar) * x).requires_grad_()
    denoised = case.prior(x_t / math.sqrt(bar), torch.full((3,), s, dtype=F64))
    loss = (case.problem.operator(denoised) - case.problem.y).abs().square().sum() / m
    mean = math.sqrt(bar_next) * beta / (1 - bar) * denoised + math.sqrt(1 - beta) * (1 - bar_next) / (1 - bar) * x_t
    variance = beta * (1 - bar_next) / (1 - bar)
    shift = torch.autograd.grad(loss, denoised if form == "x0" else x_t, retain_graph=True)[0]
    mean = mean - zeta * m * shift * (1.0 if form == "x0" else variance)
    torch.testing.assert_close(new, ((mean + math.sqrt(variance) * z) / math.sqrt(bar_next)).detach(), rtol=0, atol=1e-9)


def flowchef_rule(zeta):
    def rule(s, t, a, datum):
        w = 2 * zeta * a * a * (1 + t)
        return (1 + s * t - w) / (1 + s * s), w * datum, 0.0

    return rule


@pytest.mark.parametrize("d", [8, 16])
@pytest.mark.parametrize("zeta", [0.04, 0.3])
def test_flowchef_follows_its_equation(zeta, d):
    case, sampler = White(0.3, d), FlowChef(zeta, grid=EDM, steps=40)
    assert case.worst(sampler, flowchef_rule(zeta)) < 5
    assert case.worst(sampler, flowchef_rule(0.5 * zeta)) > 10


@pytest.mark.parametrize("make", [coloured, complex_valued])
def test_the_step_of_flowchef_is_the_papers_in_the_time_of_the_flow(make):
    """X <- X - zeta grad with the velocity held fixed, then Euler's step, by autograd."""
    case, zeta = make(), 0.2
    new, x, s, t, _ = stepped(FlowChef(zeta, grid=EDM, steps=50), case)
    tau, tau_next = s / (1 + s), t / (1 + t)
    point = ((1 - tau) * x).requires_grad_()
    denoised = case.prior(point.detach() / (1 - tau), torch.full((3,), s, dtype=F64))
    velocity = (point.detach() - denoised) / tau
    loss = (case.problem.operator(point - tau * velocity) - case.problem.y).abs().square().sum()
    moved = point.detach() - zeta * torch.autograd.grad(loss, point)[0] + (tau_next - tau) * velocity
    torch.testing.assert_close(new, moved / (1 - tau_next), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LGD(points=0), "points >= 1"),
        (lambda: LGD(zeta=0.0), "zeta > 0"),
        (lambda: LGD(data_std=-1.0), "data_std > 0"),
        (lambda: DDS(cg_steps=0), "cg_steps >= 1"),
        (lambda: DDS(gamma=0.0), "gamma > 0"),
        (lambda: DDS(eta=1.5), r"eta in \[0, 1\]"),
        (lambda: GDP(zeta=0.0), "GDP: expected zeta > 0"),
        (lambda: GDP(form="x1"), 'form to be "x0" or "xt"'),
        (lambda: FlowChef(zeta=-1.0), "FlowChef: expected zeta > 0"),
    ],
)
def test_options_out_of_range_are_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("sampler", [LGD(steps=4), MCG(steps=4), GDP(steps=4), FlowChef(steps=4)], ids=lambda s: s.name)
def test_counts_need_their_gaussian(sampler):
    problem = Problem(Matrix(torch.eye(8, dtype=F64)), Poisson(10.0), torch.ones(8, dtype=F64))
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        sampler(problem, White().prior, seed=0)
