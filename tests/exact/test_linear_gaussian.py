"""Every sampler on a linear-Gaussian problem, where the posterior is known and so is the bias of those that do not sample it.

Prior N(0, I_8); A is 4 x 8 with singular values from U(0, 1); three problems. An integrator on a Gaussian posterior's denoiser
is affine in x, so the law of its draws follows exactly from its steps: that shows the step bias without Monte-Carlo noise.
Draws are held to laws by z-scores; |z| < 5 for the few dozen numbers of a test fails once in 10^4 runs of new seeds.
"""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import Denoiser, Gaussian, Karras, LinearOperator, LogUniform, Problem, Streams
from invdiff.guidance import MMPS, Guidance, PiGDM
from invdiff.priors import GaussianPrior
from invdiff.samplers import DDIM, DDNM, DPS, Ancestral, DiffPIR, Energy, Euler, Guided, Heun, Steered
from invdiff.samplers.guided import Level

F64 = torch.float64
EYE = torch.eye(8, dtype=F64)
EDM = Karras(0.02, 100.0)


class Dense(LinearOperator):
    """U diag(a) V_4^T with its factors at hand."""

    def __init__(self, seed):
        super().__init__((8,), (4,))
        g = torch.Generator().manual_seed(seed)
        self.u, _, self.vt = torch.linalg.svd(torch.randn(4, 8, dtype=F64, generator=g))
        self.a = torch.rand(4, dtype=F64, generator=g).sort(descending=True).values
        self.sigma_y = float(torch.rand((), dtype=F64, generator=g) * self.a.max())
        self.x = torch.randn(8, dtype=F64, generator=g)
        self.register_buffer("matrix", self.u @ torch.diag(self.a) @ self.vt[:4])

    def forward(self, x):
        return x @ self.matrix.T

    def adjoint(self, y):
        return y @ self.matrix

    def solve(self, b, rho):
        z = (b @ self.vt.T) / (torch.cat([self.a, self.a.new_zeros(4)]).square() + rho[:, None])
        return z @ self.vt

    def pinv(self, y):
        return (y @ self.u / self.a) @ self.vt[:4]


class Doubled(Guidance):
    """A deliberately wrong guidance: twice the step from D to the posterior's mean."""

    def __call__(self, prior, problem):
        return _Doubled(prior, MMPS(cg_steps=4)(prior, problem))


class _Doubled(Denoiser):
    def __init__(self, prior, guided):
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.guided = prior, guided

    def forward(self, x, sigma):
        return 2.0 * self.guided(x, sigma) - self.prior(x, sigma)


def make(seed, cov=EYE):
    operator = Dense(seed)
    prior = GaussianPrior(torch.zeros(8, dtype=F64), cov, sigma_min=1e-3, sigma_max=300.0)
    problem = Problem.simulate(operator, Gaussian(operator.sigma_y), operator.x, seed=seed)
    return prior, problem, prior.posterior(problem)


PROBLEMS = [make(seed) for seed in range(3)]


def coloured():
    a = torch.randn(8, 8, dtype=F64, generator=torch.Generator().manual_seed(11))
    return make(0, a @ a.T / 8 + 0.05 * EYE)


def z_mean(draws, mean, cov):
    return float(((draws.mean(0) - mean) / (cov.diagonal() / len(draws)).sqrt()).abs().max())


def z_cov(draws, cov):
    spread = ((torch.outer(cov.diagonal(), cov.diagonal()) + cov**2) / len(draws)).sqrt()
    return float(((draws.T.cov() - cov) / spread).abs().max())


def z_coverage(draws, mean, cov, level=0.9):
    half = math.sqrt(2.0) * torch.erfinv(torch.tensor(level, dtype=F64)) * cov.diagonal().sqrt()
    inside = ((draws - mean).abs() < half).double().mean(0)
    return float(((inside - level) / math.sqrt(level * (1 - level) / len(draws))).abs().max())


def moments(draws, problem, posterior):
    """Relative error of the mean, and variance over the true one in observed and unobserved directions."""
    vt = problem.operator.vt
    ratio = (draws @ vt.T).var(0) / (vt @ posterior.cov @ vt.T).diagonal()
    error = (draws.mean(0) - posterior.mean).norm() / posterior.mean.norm()
    return torch.stack([error, ratio[:4].mean(), ratio[4:].mean()])


def push(integrator, denoiser, grid, mean, cov):
    """Mean and covariance after the steps of a grid, exactly: from what a step does to 0, to unit vectors and to noise."""
    for sigma, sigma_next in pairwise(grid):
        x = torch.cat([torch.zeros(1, 8, dtype=F64), EYE])
        out = integrator.step(denoiser, x, sigma, sigma_next, lambda x=x: torch.zeros_like(x))
        noisy = integrator.step(denoiser, x[:1], sigma, sigma_next, lambda x=x: torch.ones_like(x[:1]))
        linear, c = (out[1:] - out[0]).T, float((noisy - out[0])[0, 0])
        mean, cov = linear @ mean + out[0], linear @ cov @ linear.T + c**2 * EYE
    return mean, cov


def law(sampler, prior, denoiser):
    """The exact law of a Guided sampler's draws."""
    grid = sampler.grid(sampler.steps, prior.sigma_min, prior.sigma_max).tolist()
    return push(sampler.integrator, denoiser, grid, torch.zeros(8, dtype=F64), grid[0] ** 2 * EYE)


@pytest.mark.parametrize(("integrator", "order"), [(Euler(), 1), (DDIM(0.5), 1), (Ancestral(), 1), (Heun(), 2)])
def test_the_error_falls_at_the_order_of_the_integrator(integrator, order):
    """From the exact law at 50 to the law at 0.05, where x = x0 + 0.05 n."""
    _, _, posterior = coloured()
    errors = []
    for steps in (100, 200, 400):
        grid = LogUniform(0.05, 50.0)(steps, 0.05, 50.0).tolist()[:-1]
        mean, cov = push(integrator, posterior, grid, posterior.mean, posterior.cov + 2500.0 * EYE)
        errors.append(float((cov - posterior.cov - 0.0025 * EYE).norm()))
        assert float((mean - posterior.mean).norm()) < 1e-9
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("guidance", [MMPS(cg_steps=4), PiGDM()])
@pytest.mark.parametrize("k", range(3))
def test_posterior_samplers_sample_the_posterior(guidance, k):
    """Grid to 300 and 0.005: the errors of start, end and steps are below a fifth of the Monte-Carlo error."""
    prior, problem, posterior = PROBLEMS[k]
    draws = Guided(guidance, Heun(), Karras(0.005, 300.0), steps=60)(problem, prior, n=4000, seed=k).x
    assert z_mean(draws, posterior.mean, posterior.cov) < 5
    assert z_cov(draws, posterior.cov) < 5
    assert z_coverage(draws, posterior.mean, posterior.cov) < 5


def test_mmps_samples_the_posterior_of_a_coloured_prior():
    prior, problem, posterior = coloured()
    draws = Guided(MMPS(cg_steps=4), Heun(), Karras(0.005, 300.0), steps=60)(problem, prior, n=4000, seed=5).x
    assert z_mean(draws, posterior.mean, posterior.cov) < 5 and z_cov(draws, posterior.cov) < 5


def test_no_guidance_samples_the_prior():
    prior, problem, _ = coloured()
    draws = Guided(None, Heun(), Karras(0.005, 300.0), steps=60)(problem, prior, n=4000, seed=5).x
    assert z_mean(draws, torch.zeros(8, dtype=F64), prior.cov) < 5 and z_cov(draws, prior.cov) < 5


def test_the_test_sees_a_wrong_sampler():
    prior, problem, posterior = PROBLEMS[2]
    draws = Guided(Doubled(), Heun(), Karras(0.005, 300.0), steps=60)(problem, prior, n=4000, seed=0).x
    assert z_mean(draws, posterior.mean, posterior.cov) > 20


@pytest.mark.parametrize("integrator", [Ancestral(), DDIM(0.5), Euler()])
def test_draws_follow_the_law_of_their_steps(integrator):
    """At 30 steps, where the step bias is many standard errors: streams and loop are right, the bias is the integrator's."""
    prior, problem, posterior = PROBLEMS[0]
    sampler = Guided(MMPS(cg_steps=4), integrator, grid=EDM, steps=30)
    draws, (mean, cov) = sampler(problem, prior, n=4000, seed=1).x, law(sampler, prior, posterior)
    assert z_mean(draws, mean, cov) < 5 and z_cov(draws, cov) < 5
    assert z_cov(draws, posterior.cov) > 5


def test_ancestral_sampling_loses_spread_and_the_test_sees_it():
    """200 Karras steps lose 2 to 5 % of the standard deviation; the loss halves with twice the steps; Heun's is below 0.1 %."""
    for prior, problem, posterior in PROBLEMS:
        vt, loss = problem.operator.vt, {}
        for integrator, steps in ((Ancestral(), 200), (Ancestral(), 400), (Heun(), 60)):
            _, cov = law(Guided(MMPS(), integrator, grid=EDM, steps=steps), prior, posterior)
            loss[integrator, steps] = 1 - ((vt @ cov @ vt.T).diagonal() / (vt @ posterior.cov @ vt.T).diagonal()).sqrt()
        assert bool(((loss[Ancestral(), 200] > 0.02) & (loss[Ancestral(), 200] < 0.05)).all())
        torch.testing.assert_close(
            loss[Ancestral(), 400] / loss[Ancestral(), 200], torch.full((8,), 0.5, dtype=F64), rtol=0, atol=0.05
        )
        assert float(loss[Heun(), 60].abs().max()) < 5e-3


def test_the_start_without_x0_is_an_error_of_the_stated_size():
    """Pure noise of level s instead of x0 + s n: the mean is off by |mean| / s standard deviations for the ODE."""
    prior, _, posterior = PROBLEMS[2]
    for top in (30.0, 300.0):
        mean, _ = law(Guided(MMPS(), Heun(), Karras(0.005, top), steps=400), prior, posterior)
        z = torch.linalg.solve(posterior.cov.float(), (mean - posterior.mean).float()) @ (mean - posterior.mean).float()
        assert float(z.sqrt()) == pytest.approx(float(posterior.mean.norm()) / top, rel=0.05)


def recursion(sampler, operator, y, rule):
    """Means and variances along the singular vectors of a sampler that treats each for itself.

    The prior is N(0, 1), D = x / (1 + sigma^2). `rule` gives (k, b, c) of x' = k x + b + c z from sigma, sigma' and the
    singular value and datum of a direction.
    """
    grid = sampler.grid(sampler.steps, 1e-3, 300.0).tolist()
    data = (y[0] @ operator.u / operator.a).tolist() + [0.0] * 4
    means, variances = [], []
    for a, datum in zip([*operator.a.tolist(), 0.0, 0.0, 0.0, 0.0], data, strict=True):
        mean, variance = 0.0, grid[0] ** 2
        for sigma, sigma_next in pairwise(grid):
            k, b, c = rule(sigma, sigma_next, a, datum)
            mean, variance = k * mean + b, k * k * variance + c * c
        means.append(mean)
        variances.append(variance)
    return torch.tensor(means, dtype=F64), torch.tensor(variances, dtype=F64)


def diffpir_rule(zeta, lam, sigma_y):
    def rule(s, t, a, datum):
        # argmin (y - a x)^2 / sigma_y^2 + lam (x - D)^2 / s^2
        weight = a * a / sigma_y**2 + lam / s**2
        k0, b0 = lam / s**2 / weight / (1 + s * s), a * a / sigma_y**2 * datum / weight
        r = t * math.sqrt(1 - zeta) / s
        return k0 + r * (1 - k0), b0 - r * b0, t * math.sqrt(zeta)

    return rule


def ddnm_rule(zeta, sigma_y):
    def rule(s, t, a, datum):
        lam = min(1.0, t / sigma_y) if sigma_y else 1.0
        gamma = math.sqrt(max(t * t - (lam * sigma_y) ** 2, 0.0))
        w, k = (lam if a else 0.0), 1 / (1 + s * s)
        return (1 - w) * k + gamma * math.sqrt(1 - zeta) * (1 - k) / s, w * datum, gamma * math.sqrt(zeta)

    return rule


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("name", ["diffpir 1", "diffpir 7, zeta 0.3", "ddnm", "ddnm+"])
def test_decoupled_samplers_follow_their_equations(name, k):
    """DiffPIR and DDNM against the recursion of their equations, direction by direction."""
    prior, problem, _ = PROBLEMS[k]
    sigma_y = problem.operator.sigma_y
    sampler, rule = {
        "diffpir 1": (DiffPIR(1.0, grid=EDM, steps=40), diffpir_rule(1.0, 1.0, sigma_y)),
        "diffpir 7, zeta 0.3": (DiffPIR(0.3, grid=EDM, lam=7.0, steps=40), diffpir_rule(0.3, 7.0, sigma_y)),
        "ddnm": (DDNM(0.7225, grid=EDM, noise_aware=False, steps=40), ddnm_rule(0.7225, 0.0)),
        "ddnm+": (DDNM(0.7225, grid=EDM, steps=40), ddnm_rule(0.7225, sigma_y)),
    }[name]
    draws = sampler(problem, prior, n=2000, seed=k).x
    rotated, (mean, variance) = draws @ problem.operator.vt.T, recursion(sampler, problem.operator, problem.y, rule)
    # directions without any spread are compared to rounding
    free = variance > 1e-20
    torch.testing.assert_close(rotated[:, ~free], mean[~free].expand(2000, -1), rtol=0, atol=1e-9)
    assert z_mean(rotated[:, free], mean[free], torch.diag(variance[free])) < 5
    assert z_cov(rotated[:, free], torch.diag(variance[free])) < 5


def test_diffpir_and_ddnm_have_their_known_bias():
    """Exact moments at 200 steps: DiffPIR with lam = zeta = 1 halves the variance everywhere, DDNM loses a quarter."""
    rows = {}
    for _, problem, posterior in PROBLEMS:
        operator = problem.operator
        for name, sampler, rule in (
            ("diffpir", DiffPIR(1.0, grid=EDM, steps=200), diffpir_rule(1.0, 1.0, operator.sigma_y)),
            ("ddnm", DDNM(0.7225, grid=EDM, noise_aware=False, steps=200), ddnm_rule(0.7225, 0.0)),
        ):
            mean, variance = recursion(sampler, operator, problem.y, rule)
            ratio = variance / (operator.vt @ posterior.cov @ operator.vt.T).diagonal()
            error = (mean - operator.vt @ posterior.mean).norm() / posterior.mean.norm()
            rows.setdefault(name, []).append(torch.stack([error, ratio[:4].mean(), ratio[4:].mean()]))
    bias = {name: torch.stack(row).mean(0).tolist() for name, row in rows.items()}
    assert bias["diffpir"] == pytest.approx([0.03, 0.48, 0.48], abs=0.02)
    assert bias["ddnm"][1:] == pytest.approx([0.0, 0.74], abs=0.02) and bias["ddnm"][0] > 1


def test_dps_is_the_papers_step_in_variance_preserving_form():
    """x_{t-1} = DDPM(x_t) - zeta grad_{x_t} ||y - A D||, in x_t = alpha_t x with beta_t, by autograd."""
    prior, problem, _ = coloured()
    sampler = DPS(0.7, grid=EDM, steps=50)
    grid = sampler.grid(50, prior.sigma_min, prior.sigma_max).tolist()
    state = Level(20, 2.0 * torch.randn(3, 8, dtype=F64, generator=torch.Generator().manual_seed(0)), grid[20])
    streams = Streams(4, 3)
    new = sampler.step(problem, prior, state, streams).x
    sigma, sigma_next = grid[20], grid[21]
    bar, bar_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    beta = 1 - bar / bar_next
    x_t = (math.sqrt(bar) * state.x).requires_grad_()
    denoised = prior(x_t / math.sqrt(bar), torch.full((3,), sigma, dtype=F64))
    mean = math.sqrt(bar_next) * beta / (1 - bar) * denoised + math.sqrt(1 - beta) * (1 - bar_next) / (1 - bar) * x_t
    z = streams.normal(21, (8,), dtype=F64)
    gradient = torch.autograd.grad((problem.y - problem.operator(denoised)).norm(dim=1).sum(), x_t)[0]
    expected = mean + math.sqrt(beta * (1 - bar_next) / (1 - bar)) * z - 0.7 * gradient
    torch.testing.assert_close(new, expected.detach() / math.sqrt(bar_next), rtol=0, atol=1e-10)


def test_dps_has_its_known_bias():
    """Unobserved directions as ancestral sampling; observed ones too narrow, around the data, not the posterior's mean."""
    rows = torch.stack(
        [
            moments(DPS(1.0, grid=EDM, steps=200)(problem, prior, n=500, seed=1).x, problem, posterior)
            for prior, problem, posterior in PROBLEMS
        ]
    ).mean(0)
    error, observed, null = rows.tolist()
    assert error > 0.9 and observed < 0.6 and null == pytest.approx(0.95, abs=0.07)


def test_steered_with_the_pseudoinverse_follows_the_data_and_the_prior():
    """Observed directions are A^+ y exactly; the others are ancestral draws of the prior, with any number of repeats."""
    prior, problem, _ = PROBLEMS[0]
    operator = problem.operator
    for repeats in (1, 3):
        draws = Steered("pinv", repeats=repeats, grid=EDM, steps=60)(problem, prior, n=2000, seed=3).x @ operator.vt.T
        data = (problem.y @ operator.u / operator.a).expand(2000, -1)
        torch.testing.assert_close(draws[:, :4], data, rtol=0, atol=1e-9)
        grid, variance = EDM(60, 1e-3, 300.0).tolist(), 1e4
        for s, t in pairwise(grid):
            for j in range(repeats):
                variance = variance + (s * s - t * t if j else 0.0)
                keep = (t / s) ** 2
                variance = (keep + (1 - keep) / (1 + s * s)) ** 2 * variance + t * t * (1 - keep)
        cov = variance * EYE[:4, :4]
        assert z_mean(draws[:, 4:], torch.zeros(4, dtype=F64), cov) < 5 and z_cov(draws[:, 4:], cov) < 5


def test_steered_projections_and_energies_are_their_formulas():
    prior, problem, _ = coloured()
    operator, x, sigma = problem.operator, torch.randn(2, 8, dtype=F64, generator=torch.Generator().manual_seed(0)), 0.6
    denoised = prior(x, torch.full((2,), sigma, dtype=F64))
    jacobian = prior.cov @ torch.linalg.inv(prior.cov + sigma**2 * EYE)
    misfit = operator(denoised) - problem.y
    estimate = lambda sampler: sampler.estimate(problem, prior, x, sigma)  # noqa: E731
    torch.testing.assert_close(estimate(Steered("adjoint")), denoised - misfit @ operator.matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        estimate(Steered(0.5 * operator.H)), denoised - 0.5 * misfit @ operator.matrix, rtol=0, atol=1e-12
    )
    energy = Energy(operator, problem.y, weight=0.3, sigma_low=0.5, sigma_high=1.0)
    moved = denoised - 0.3 * sigma * misfit @ operator.matrix @ jacobian
    torch.testing.assert_close(estimate(Steered(None, (energy,))), moved, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        estimate(Steered("pinv", (energy,))), moved - operator.pinv(operator(moved) - problem.y), rtol=0, atol=1e-12
    )
    outside = Energy(operator, problem.y, sigma_low=0.7)
    torch.testing.assert_close(estimate(Steered(None, (outside,))), denoised, rtol=0, atol=1e-12)
