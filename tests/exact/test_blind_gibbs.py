"""Image and parameters by turns, what data identify of parameters, and the task of an unknown centre of rotation."""

import math
from dataclasses import dataclass

import pytest
import torch

from invdiff.core import (
    CapabilityError,
    ConfigError,
    Gaussian,
    Karras,
    Matrix,
    Problem,
    Samples,
    Streams,
)
from invdiff.core.algebra import dense
from invdiff.core.counting import Counted
from invdiff.guidance import MMPS
from invdiff.metrics import z_cov, z_mean
from invdiff.operators import ParallelBeamCT
from invdiff.operators.calibration import Calibrated, Fourier, Multiplied
from invdiff.operators.restoration import gaussian_kernel
from invdiff.operators.unknown import unknown_gains, unknown_kernel, unknown_shift
from invdiff.priors import Affine, GaussianPrior, StationaryGaussian
from invdiff.priors.independent import Independent
from invdiff.samplers import Ancestral, Guided
from invdiff.samplers.alternating import AlternatingGibbs, _Parameters
from invdiff.samplers.classical import Adjoint
from invdiff.tasks import Item
from invdiff.tasks.calibration import Nominal, OffCentreSlices, parameters, shifted_ct
from invdiff.validation.blind_cases import blind_gain

F64 = torch.float64
GRID = Karras(sigma_max=100.0, sigma_min=0.02)
SCAN = ParallelBeamCT((6, 6), 4)
OPERATORS = {"gains": unknown_gains(SCAN, -1), "shift": unknown_shift(SCAN)}
OPERATORS["gains of shifted views"] = Calibrated(OPERATORS["shift"], OPERATORS["gains"].response)


def normal(*shape, seed=0, dtype=F64):
    return Streams(seed).normal(0, shape, "test", dtype)[0]


def gauss(mean, std, shape=(1,)):
    return GaussianPrior(torch.full(shape, mean, dtype=F64), torch.full(shape, std**2, dtype=F64))


def worst(draws, exact):
    """Largest z-score of mean, variance and quantiles of any coordinate against many exact draws."""
    x, n = draws.flatten(1), len(draws)
    e = exact.sample(Streams(10**6, 40_000)).flatten(1)
    centred = e - e.mean(0)
    variance, fourth = centred.square().mean(0), centred.pow(4).mean(0)
    share = 1.0 / n + 1.0 / len(e)
    z = [(x.mean(0) - e.mean(0)) / (variance * share).sqrt(), (x.var(0) - variance) / ((fourth - variance**2) * share).sqrt()]
    for q in (0.1, 0.5, 0.9):
        below = (x <= e.quantile(q, 0)).double().mean(0)
        z.append((below - q) / math.sqrt(q * (1.0 - q) * share))
    return float(torch.stack(z).abs().max())


def drawn(case, sampler, n):
    return sampler(case.problem, case.prior, n, seed=1).x


# the same by turns


GIBBS = AlternatingGibbs(steps=60, first=3.0, last=0.1, decay=0.9, inner=10)


@dataclass(frozen=True)
class Forgetful(AlternatingGibbs):
    """A planted fault: parameters are drawn without their prior."""

    def condition(self, problem, prior):
        flat = Independent([prior.prior.parts[0], gauss(0.0, 3.0)], prior.prior.units)
        return Counted(flat, prior.counter)


def test_turns_of_image_and_gain_have_the_same_law():
    """60 sweeps with a coupling of 0.1, of which 400 draws do not see the bias."""
    case = blind_gain()
    assert worst(drawn(case, GIBBS, 400), case.exact) < 5.0
    forgetful = Forgetful(steps=40, first=3.0, last=0.1, decay=0.9, inner=5)
    assert worst(drawn(case, forgetful, 300), case.exact) > 10.0


def test_a_draw_of_linear_parameters_is_always_taken_and_has_their_law():
    """Against the closed form of a Gaussian; the log-ratio of Metropolis and Hastings is zero."""
    operator, law = OPERATORS["gains"], gauss(0.1, 0.5, (10,))
    x = normal(1, 1, 6, 6)
    y, sigma = operator(operator.join(x, normal(1, 10, seed=4))), torch.tensor(0.7, dtype=F64)
    many = _Parameters(operator.given(x.expand(4000, -1, -1, -1)), y, sigma, law)
    noise = Streams(0, 4000).normal(0, (10,), "test", F64)
    phi, ratio = many.proposed(normal(4000, 10), noise)
    torch.testing.assert_close(ratio, torch.zeros(4000, dtype=F64), atol=1e-9, rtol=0)
    offset = operator.given(x)(torch.zeros(1, 10, dtype=F64))
    matrix = operator.given(x.expand(10, -1, -1, -1))(torch.eye(10, dtype=F64)).flatten(1).T - offset.flatten()[:, None]
    linear = Problem(Matrix(matrix), Gaussian(0.7), (y - offset).flatten())
    exact = law.posterior(linear)
    assert z_mean(phi, exact) < 5.0 and z_cov(phi, exact) < 5.0


def test_metropolis_and_hastings_keep_the_law_of_a_shift():
    """Of a known image: draws by quadrature are still of that law after five steps, and not where every one is taken."""
    operator, law, n = OPERATORS["shift"], gauss(0.0, 1.5), 20_000
    x, sigma = normal(1, 1, 6, 6), torch.tensor(6.0, dtype=F64)
    y = operator(operator.join(x, torch.full((1, 1), 0.8, dtype=F64))) + 6.0 * normal(1, 1, 4, 10, seed=7)
    s = torch.linspace(-7.0, 7.0, 2801, dtype=F64)[:, None]
    misfit = (operator.given(x.expand(2801, -1, -1, -1))(s) - y).square().flatten(1).sum(1) / 36.0
    weight = (-0.5 * misfit - 0.5 * (s[:, 0] / 1.5).square()).softmax(0)
    mean = (weight * s[:, 0]).sum()
    variance = (weight * (s[:, 0] - mean).square()).sum()
    places = torch.searchsorted(weight.cumsum(0), Streams(0, n).uniform(0, (1,), "start", F64))
    chain = _Parameters(operator.given(x.expand(n, -1, -1, -1)), y, sigma, law)
    far = {}
    for always in (False, True):
        phi, shares = s[places[:, 0].clamp_max(2800)], []
        for k in range(5):
            new, ratio = chain.proposed(phi, Streams(0, n).normal(k, (1,), "test", F64))
            accept = Streams(0, n).uniform(k, (1,), "taken", F64).log() < ratio[:, None]
            shares.append(float(accept.double().mean()))
            phi = new if always else torch.where(accept, new, phi)
        fourth = (weight * (s[:, 0] - mean).pow(4)).sum()
        z = (phi.mean() - mean) / (variance / n).sqrt(), (phi.var() - variance) / ((fourth - variance**2) / n).sqrt()
        far[always] = max(abs(float(v)) for v in z)
    assert far[False] < 5.0 < 10.0 < far[True] and 0.1 < min(shares) < max(shares) < 0.9


def test_turns_need_a_linear_operator_and_gaussian_parameters():
    case, gibbs = blind_gain(), AlternatingGibbs(steps=2, first=3.0, last=0.1)
    with pytest.raises(CapabilityError, match="AlternatingGibbs: expected a Calibrated operator, got Unmeasured"):
        gibbs(Problem.unmeasured((1, 7), F64), case.prior, seed=0)
    with pytest.raises(CapabilityError, match="AlternatingGibbs: expected an Independent prior of an image in units of 1"):
        gibbs(case.problem, Independent([case.prior.parts[0], Affine(gauss(0.0, 1.0))], [1.0, 0.3]), seed=0)
    twice = OPERATORS["gains of shifted views"]
    prior = Independent([StationaryGaussian((1, 37)), gauss(0.0, 1.0, (10,))])
    with pytest.raises(CapabilityError, match="AlternatingGibbs: expected an operator that is linear for known parameters"):
        gibbs(Problem(twice, Gaussian(1.0), torch.zeros(1, 4, 10, dtype=F64)), prior, seed=0)
    with pytest.raises(CapabilityError, match="AlternatingGibbs: the prior is defined for noise of"):
        AlternatingGibbs(steps=2, first=1e9)(case.problem, case.prior, seed=0)


def test_turns_do_not_depend_on_chunks_and_resume(tmp_path):
    case = blind_gain()
    gibbs = AlternatingGibbs(steps=4, first=3.0, last=1.0, decay=0.5, inner=3)
    whole = gibbs(case.problem, case.prior, 3, seed=1)
    parts = gibbs(case.problem, case.prior, 3, seed=1, batch=2)
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-9, atol=1e-9)

    def stop(facts):
        if facts["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gibbs(case.problem, case.prior, 3, seed=1, resume=tmp_path / "run", callback=stop)
    assert torch.equal(gibbs(case.problem, case.prior, 3, seed=1, resume=tmp_path / "run").x, whole.x)


# what data identify


class Scan:
    """A Gaussian field in a disc, seen by a parallel beam whose centre is off by s samples, of standard deviation 1.5."""

    def __init__(self, size, views, detector):
        self.field = StationaryGaussian((1, size, size), mean=0.5, std=0.2, length=size / 8, decay=2.0, sigma_max=30.0).to(F64)
        t = torch.arange(size, dtype=F64) - (size - 1) / 2
        disc = (t[:, None].square() + t.square() < (0.4 * size) ** 2).to(F64)[None]
        scan = ParallelBeamCT((size, size), views, detector=detector) @ Multiplied(disc, (1, size, size))
        self.operator, self.tau, self.truth = unknown_shift(scan), 1.5, 1.3
        u = self.operator.join(self.field.sample(Streams(3), F64), torch.full((1, 1), self.truth, dtype=F64))
        self.sigma = 0.02 * float(self.operator(u).square().mean().sqrt())
        self.problem = Problem.simulate(self.operator, Gaussian(self.sigma), u, 0)
        self.prior = Independent([self.field, gauss(0.0, self.tau)], [1.0, 0.3])

    def posterior(self):
        """Mean and standard deviation of s by quadrature, and that of the Laplace approximation at the mode.

        The shift T is orthogonal (an odd number of samples): p(s | y) ~ p(s) N(T^-1 y; A m, A C A^T + sigma^2).
        """
        scan = self.operator.at(torch.zeros(1, dtype=F64))
        matrix, size = dense(scan), self.field.shape
        half = self.field.covariance(matrix.reshape(-1, *size)).flatten(1) @ matrix.T
        values, basis = torch.linalg.eigh(half)
        s = torch.linspace(self.truth - 0.4, self.truth + 0.4, 801, dtype=F64)
        transform = Fourier(scan.out_shape, (-1,))
        back = transform.adjoint(self.operator.response(-s[:, None]) * transform(self.problem.y)).flatten(1)
        r = (back - matrix @ torch.full((matrix.shape[1],), 0.5, dtype=F64)) @ basis
        log = -0.5 * (r.square() / (values + self.sigma**2)).sum(1) - 0.5 * (s / self.tau).square()
        weight = log.softmax(0)
        mean, k, h = float((weight * s).sum()), int(log.argmax()), float(s[1] - s[0])
        spread = math.sqrt(float((weight * (s - mean).square()).sum()))
        return mean, spread, h / math.sqrt(float(2.0 * log[k] - log[k - 1] - log[k + 1]))

    def draw(self, n, steps, products):
        grid = Karras(sigma_max=20.0, sigma_min=0.005)
        sampler = Guided(guidance=MMPS(cg_steps=products), integrator=Ancestral(), grid=grid, steps=steps)
        problem = self.problem.through(self.prior.synthesis(self.problem.shape))
        return self.prior.split(sampler(problem, self.prior, n, seed=0).x)[1][:, 0]


@pytest.mark.parametrize(
    ("size", "views", "detector", "n", "steps"),
    [(16, 8, 23, 24, 50), pytest.param(32, 12, 45, 64, 80, marks=pytest.mark.slow)],
)
def test_the_centre_of_rotation_is_found_with_its_error(size, views, detector, n, steps):
    scan = Scan(size, views, detector)
    mean, spread, laplace = scan.posterior()
    assert spread == pytest.approx(laplace, rel=0.05)
    assert abs(scan.truth - mean) < 3.0 * spread < 0.1 * scan.tau
    draws = scan.draw(n, steps, 8)
    assert float(draws.mean()) == pytest.approx(mean, abs=0.5 * spread)
    assert float(draws.std()) == pytest.approx(laplace, rel=0.2)
    assert abs(scan.truth - float(draws.mean())) < 3.0 * float(draws.std())


@pytest.mark.slow
def test_turns_find_the_centre_of_rotation_with_its_error():
    scan = Scan(16, 8, 23)
    mean, spread, _ = scan.posterior()
    sampler = AlternatingGibbs(steps=150, first=3.0, last=0.02, decay=0.93, inner=8)
    problem = scan.problem.through(scan.prior.synthesis(scan.problem.shape))
    draws = scan.prior.split(sampler(problem, scan.prior, 32, seed=0).x)[1][:, 0]
    assert float(draws.mean()) == pytest.approx(mean, abs=0.5 * spread)
    assert float(draws.std()) == pytest.approx(spread, rel=0.35)


class Blurred:
    """A Gaussian field about a bright square, through a kernel with three unknown coefficients of standard deviation 0.1."""

    def __init__(self):
        shape, t = (1, 16, 16), torch.arange(16, dtype=F64)
        field = StationaryGaussian(shape, std=0.2, length=2.0, decay=1.0, sigma_max=30.0).to(F64)
        self.mean = 0.3 + ((t[:, None] - 6).abs() < 4).to(F64) * ((t - 9).abs() < 5) * torch.ones(shape, dtype=F64)
        kernel = gaussian_kernel(1.2)[3:-3, 3:-3]
        self.operator, self.sigma, self.tau = unknown_kernel(shape, kernel / kernel.sum(), None, 2), 0.05, 0.1
        coefficients = gauss(0.0, self.tau, (3,))
        self.truth = coefficients.sample(Streams(53))
        u = self.operator.join(self.mean + field.sample(Streams(3), F64), self.truth)
        self.problem = Problem.simulate(self.operator, Gaussian(self.sigma), u, 0)
        self.prior = Independent([Affine(field, 1.0, self.mean), coefficients], [1.0, 0.05])
        transform = Fourier(shape)
        self.parts = transform(self.problem.y)[0], transform(self.mean[None])[0], torch.fft.fftshift(field.spectrum)

    def log_density(self, phi):
        """log p(phi | y) but for a constant: the modes of the data are independent given the kernel."""
        y, mean, spectrum = self.parts
        k = self.operator.response(phi[None])[0]
        variance = k.abs().square() * spectrum + self.sigma**2
        misfit = ((y - k * mean).abs().square() / variance + variance.log()).sum()
        return -0.5 * (misfit + (phi / self.tau).square().sum())

    def laplace(self):
        """The mode nearest to the truth, by Newton's method, and the covariance there."""
        phi = self.truth[0]
        for _ in range(20):
            hessian = torch.autograd.functional.hessian(self.log_density, phi)
            phi = phi - torch.linalg.solve(hessian, torch.autograd.functional.jacobian(self.log_density, phi))
        return phi, torch.linalg.inv(-hessian)


def test_a_blur_kernel_is_found_where_the_mean_image_has_edges():
    case = Blurred()
    mode, covariance = case.laplace()
    spread = covariance.diagonal().sqrt()
    assert bool((spread < 0.4 * case.tau).all()) and bool(((case.truth[0] - mode).abs() < 3.0 * spread).all())
    sampler = Guided(guidance=MMPS(cg_steps=8), integrator=Ancestral(), grid=Karras(sigma_max=20.0, sigma_min=0.005), steps=40)
    problem = case.problem.through(case.prior.synthesis(case.problem.shape))
    draws = case.prior.split(sampler(problem, case.prior, 24, seed=0).x)[1]
    assert bool(((draws.mean(0) - mode).abs() < 1.5 * spread).all())
    assert bool((draws.std(0) < 2.0 * spread).all()) and bool((draws.std(0) > 0.5 * spread).all())
    error = (draws.mean(0) - case.truth[0]).norm() / case.truth[0].norm()
    assert float(error) < 0.35


# the task


def test_items_of_the_task_hold_slice_and_centre_and_their_draws_say_so():
    source = OffCentreSlices(size=16, std=2.0)
    first, second = source.items(2, 0, None)
    operator = shifted_ct(first, views=4)
    assert first.shape == (1, 257) == operator.in_shape and first.image_shape == (1, 16, 16)
    centres = [float(item.truth[0, -1]) for item in (first, second)]
    assert centres[0] != centres[1] and all(abs(s) < 10.0 for s in centres)
    assert float(next(OffCentreSlices(size=16, centre=0.5).items(1, 0, None)).truth[0, -1]) == 0.5
    prior = Independent([StationaryGaussian((1, 16, 16)), gauss(0.0, 2.0)], [1.0, 2.0])
    truth = first.truth[None].double()
    problem = Problem.simulate(operator, Gaussian(0.1), truth).through(prior.synthesis((1, 257)))
    draws = Samples(x=prior.analyse(torch.cat((truth, truth))), kind="posterior", sampler="none", info=[])
    facts, _ = parameters(first, draws, problem)
    assert facts["parameters"] == facts["parameters_truth"] == pytest.approx([centres[0]], abs=1e-6)
    assert facts["parameters_std"] == [0.0]
    packed = Problem.simulate(operator, Gaussian(0.1), truth)
    nominal = Nominal(Adjoint())
    x, phi = operator.split(nominal(packed)[0])
    torch.testing.assert_close(x, operator.at(torch.zeros(1)).adjoint(packed.y))
    assert float(phi) == 0.0 and nominal.name == "adjoint, nominal"
    with pytest.raises(ConfigError, match=r"OffCentreSlices: expected std > 0 and a finite centre, got 0.0 and None"):
        OffCentreSlices(std=0.0)
    with pytest.raises(ConfigError, match="shifted_ct: expected an item of OffCentreSlices, got Item"):
        shifted_ct(Item("slice", (1, 16, 16)))
