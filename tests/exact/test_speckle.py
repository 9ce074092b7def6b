"""Speckle: normalised densities, one law in four coordinates, sampled moments against psi(L) - log L and psi_1(L)."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, DataError, NumericalError, Problem, ShapeError, Streams
from invdiff.core.speckle import Amplitude, Intensity, LogIntensity, SingleLook, log_bias, log_variance
from invdiff.operators.restoration import Identity, Mask

F64 = torch.float64
LOOKS = [0.6, 1.0, 2.7, 10.0]
EULER = 0.57721566490153286


def powers(n, low, high, seed):
    return 10.0 ** (low + (high - low) * torch.rand(n, dtype=F64, generator=torch.Generator().manual_seed(seed)))


def gradient(function, x):
    at = x.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def test_constants_of_one_look():
    assert log_bias(1) == pytest.approx(-EULER, abs=1e-14)
    assert log_variance(1) == pytest.approx(math.pi**2 / 6, abs=1e-14)
    assert [round(log_bias(n), 3) for n in (2, 4, 10)] == [-0.270, -0.130, -0.051]
    assert [round(log_variance(n), 3) for n in (2, 4, 10)] == [0.645, 0.284, 0.105]


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("law", [Intensity, Amplitude])
@pytest.mark.parametrize("reflectivity", [0.03, 20.0])
def test_the_densities_of_positive_measurements_integrate_to_one(law, looks, reflectivity):
    """In t = log y, where the integrand decays at both ends and the trapezoidal rule is exact to rounding."""
    t = torch.linspace(-90.0, 12.0, 20001, dtype=F64)[:, None]
    density = (law(looks).log_prob(t.exp(), torch.full_like(t, reflectivity)) + t[:, 0]).exp()
    assert float(density.sum() * (t[1] - t[0])) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("looks", LOOKS)
def test_the_density_of_the_logarithm_integrates_to_one(looks):
    t = torch.linspace(-90.0, 12.0, 20001, dtype=F64)[:, None]
    p = LogIntensity(looks).log_prob(t, torch.full_like(t, -1.5)).exp() * (t[1] - t[0])
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-10)
    assert float((p * (t[:, 0] + 1.5)).sum()) == pytest.approx(log_bias(looks), abs=1e-10)
    second = float((p * (t[:, 0] + 1.5 - log_bias(looks)).square()).sum())
    assert second == pytest.approx(log_variance(looks), abs=1e-9)


def test_the_density_of_a_complex_image_is_that_of_two_normals():
    y = torch.complex(*torch.randn(2, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(0)))
    clean = torch.tensor([0.01, 0.3, 1.0, 7.0, 100.0], dtype=F64).expand(3, 5)
    normal = torch.distributions.Normal(0.0, (clean / 2).sqrt())
    expected = (normal.log_prob(y.real) + normal.log_prob(y.imag)).sum(1)
    torch.testing.assert_close(SingleLook().log_prob(y, clean), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("looks", LOOKS)
def test_the_four_coordinates_are_one_law(looks):
    """p(y) dy = p(I) dI; and intensity is torch's Gamma."""
    intensity = powers(40, -3, 2, 0)[:, None]
    clean = powers(40, -2, 2, 1)[:, None]
    gamma = torch.distributions.Gamma(looks, looks / clean).log_prob(intensity)[:, 0]
    log_i = intensity.log()[:, 0]
    torch.testing.assert_close(Intensity(looks).log_prob(intensity, clean), gamma, rtol=1e-12, atol=1e-12)
    amplitude = Amplitude(looks).log_prob(intensity.sqrt(), clean)
    torch.testing.assert_close(amplitude, gamma + math.log(2.0) + 0.5 * log_i, rtol=1e-12, atol=1e-12)
    logarithm = LogIntensity(looks).log_prob(intensity.log(), clean.log())
    torch.testing.assert_close(logarithm, gamma + log_i, rtol=1e-12, atol=1e-12)
    if looks == 1.0:
        single = SingleLook().log_prob(torch.polar(intensity.sqrt(), clean), clean)
        torch.testing.assert_close(single, gamma - math.log(math.pi), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("looks", LOOKS)
def test_gradients_are_the_closed_forms(looks, dtype):
    intensity, clean = powers(30, -2, 2, 2).to(dtype), powers(30, -1, 1, 3).to(dtype)
    by_ratio = -looks * (1 / clean - intensity / clean**2)
    cases = [(Intensity(looks), intensity), (Amplitude(looks), intensity.sqrt())]
    if looks == 1.0:
        cases.append((SingleLook(), torch.polar(intensity.sqrt(), clean)))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    scale = looks * (1 / clean + intensity / clean**2)
    for noise, y in cases:
        found = gradient(lambda r, noise=noise, y=y: noise.log_prob(y[None], r[None]), clean)
        assert found.dtype == dtype and float(((found - by_ratio).abs() / scale).max()) < tolerance
    z, u = intensity.log(), clean.log()
    found = gradient(lambda u: LogIntensity(looks).log_prob(z[None], u[None]), u)
    expected = looks * torch.expm1(z - u)
    assert found.dtype == dtype and float(((found - expected).abs() / (looks + expected.abs())).max()) < 10 * tolerance


@pytest.mark.parametrize("looks", [1.0, 2.0, 4.0, 10.0])
def test_sampled_bias_and_variance_of_the_logarithm(looks):
    """Within 1 %, with as many draws as make 1 % of the bias, and of the variance, 4.1 standard errors."""
    n = math.ceil(max(log_variance(looks) * (4.1 / (0.01 * log_bias(looks))) ** 2, 4.4 * (4.1 / 0.01) ** 2))
    z = LogIntensity(looks).sample(torch.zeros(1, n, dtype=F64), Streams(3))
    assert float(z.mean()) / log_bias(looks) == pytest.approx(1.0, abs=0.01)
    assert float(z.var()) / log_variance(looks) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("looks", [0.05, 0.6, 3.3])
def test_samples_have_the_distribution_of_the_law(looks):
    """Kolmogorov-Smirnov against the incomplete Gamma function; D sqrt(n) > 2.5 has the probability 7e-6."""
    n = 20000
    y = Intensity(looks).sample(torch.full((1, n), 5.0, dtype=F64), Streams(1))[0].sort().values
    cdf = torch.special.gammainc(torch.tensor(looks, dtype=F64), y * looks / 5.0)
    steps = torch.arange(n, dtype=F64) / n
    assert float(torch.maximum(cdf - steps, steps + 1 / n - cdf).max()) * math.sqrt(n) < 2.5


def test_the_coordinates_sample_one_intensity():
    clean, streams = powers(60, -2, 2, 4).reshape(3, 20), Streams(7, 3)
    intensity = Intensity(0.02).sample(clean, streams)
    torch.testing.assert_close(Amplitude(0.02).sample(clean, streams).square(), intensity)
    logs = LogIntensity(0.02).sample(clean.log(), streams)
    assert bool(logs.isfinite().all())
    torch.testing.assert_close(logs.exp(), intensity)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_complex_samples_have_power_r(dtype):
    clean = torch.tensor([0.1, 1.0, 30.0], dtype=dtype).expand(20000, 3)
    y = SingleLook().sample(clean, Streams(0, 20000))
    real = torch.stack([y.real, y.imag])
    error = 5 * math.sqrt(2 / 20000)
    assert y.dtype == dtype.to_complex()
    assert float((real.var(1) / (clean[0] / 2) - 1).abs().max()) < error
    assert float((real.prod(0).mean(0) / (clean[0] / 2)).abs().max()) < error / math.sqrt(2)


@pytest.mark.parametrize("noise", [Intensity(1.5), Amplitude(1.5), SingleLook(), LogIntensity(1.5)])
def test_results_are_per_item_and_draws_do_not_depend_on_the_batch(noise):
    clean = powers(20, -1, 1, 5).float().reshape(4, 5)
    y = noise.sample(clean, Streams(0, 4))
    assert torch.equal(y[2:3], noise.sample(clean[2:3], Streams(0, (2,))))
    for value in (noise.log_prob(y, clean), noise.chi2(y, clean)):
        assert value.shape == (4,) and value.dtype == torch.float32
    assert torch.equal(noise.log_prob(y[1:2], clean)[1], noise.log_prob(y, clean)[1])
    assert torch.equal(noise.chi2(y, clean)[3:], noise.chi2(y[3:], clean[3:]))


@pytest.mark.parametrize("looks", [1.0, 4.4])
def test_the_mean_of_chi2_is_the_number_of_real_values(looks):
    """Var (L (G - 1)^2) = 2 + 6 / L, of (2 |y|^2 / R) = 4."""
    clean = powers(300, -2, 2, 6).expand(500, 300)
    noises = [(Intensity(looks), 1), (Amplitude(looks), 1), (LogIntensity(looks), 1), (SingleLook(), 2)]
    for noise, count in noises:
        values = clean.log() if isinstance(noise, LogIntensity) else clean
        found = float(noise.chi2(noise.sample(values, Streams(2, 500)), values).mean()) / 300
        assert found == pytest.approx(count, abs=5 * math.sqrt(8.0 / 150000))


@pytest.mark.parametrize("noise", [Intensity(2.5), Amplitude(2.5)])
def test_what_is_not_measured_counts_nothing(noise):
    mask = torch.tensor([[True, False, True, True]])
    x = torch.tensor([[[2.0, 3.0, 0.5, 1.0]]], dtype=F64)
    problem = Problem.simulate(Mask(mask, (1, 4)), noise, x, seed=1)
    same = Problem(Identity((1, 3)), noise, problem.y[..., mask[0]])
    torch.testing.assert_close(problem.log_likelihood(x), same.log_likelihood(x[..., mask[0]]))
    torch.testing.assert_close(problem.chi2(x), same.chi2(x[..., mask[0]]))
    slope = gradient(problem.log_likelihood, x)
    assert slope[0, 0, 1] == 0 and bool((slope[0, 0, [0, 2, 3]] != 0).all())


def test_the_logarithm_has_no_gradient_where_nothing_is_measured():
    mask = torch.tensor([[True, False]])
    u = torch.tensor([[[0.7, 3.0]]], dtype=F64)
    problem = Problem.simulate(Mask(mask, (1, 2)), LogIntensity(2.0), u)
    assert gradient(problem.log_likelihood, u)[0, 0, 1] == 0


def test_outside_of_the_support():
    one = torch.ones(1, 1)
    assert Intensity(2.0).log_prob(one, -one).item() == -math.inf
    assert Intensity(2.0).log_prob(-one, one).item() == -math.inf
    assert Amplitude(1.0).log_prob(0 * one, one).item() == -math.inf
    assert Intensity(1.0).log_prob(0 * one, one).item() == 0.0
    assert SingleLook().log_prob(torch.zeros(1, 1, dtype=torch.complex64), one).item() == pytest.approx(-math.log(math.pi))
    with pytest.raises(NumericalError, match="Intensity: the reflectivity A x is negative"):
        Intensity(2.0).sample(-one, Streams(0))


@pytest.mark.parametrize("looks", [3.5, 12.0])
@pytest.mark.parametrize("law", [Intensity, Amplitude])
def test_the_gaussian_has_the_moments_of_the_likelihood(law, looks):
    y = torch.tensor([[0.2, 1.0, 30.0]], dtype=F64)
    noise, centre = law(looks).gaussian(y)
    t = torch.linspace(-12.0, 60.0, 40001, dtype=F64)[:, None]
    for k in range(3):
        weight = (law(looks).log_prob(y[:, k, None], t.exp()) + t[:, 0]).softmax(0)
        mean = float((weight * t[:, 0].exp()).sum())
        variance = float((weight * (t[:, 0].exp() - mean).square()).sum())
        assert mean == pytest.approx(float(centre[0, k]), rel=1e-8)
        assert variance == pytest.approx(float(noise.sigma[k]) ** 2, rel=1e-5)


def test_gaussians_of_many_intensities_combine_to_the_reflectivity():
    """The precisions have a heavy tail: at 8 looks the weighted mean of 10^6 has a standard error of about 0.2 %."""
    looks, n = 8.0, 10**6
    noise, centre = Intensity(looks).gaussian(Intensity(looks).sample(torch.full((1, n), 3.0, dtype=F64), Streams(0)))
    weight = noise.sigma.square().reciprocal()
    assert float((weight * centre[0]).sum() / weight.sum()) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("looks", [0.6, 1.0, 9.0])
def test_the_gaussian_of_the_logarithm_is_exact_in_mean_and_variance(looks):
    z = torch.tensor([[0.3, -5.0]], dtype=F64)
    noise, centre = LogIntensity(looks).gaussian(z)
    torch.testing.assert_close(centre, z - log_bias(looks), rtol=0, atol=1e-15)
    assert float(noise.sigma) ** 2 == pytest.approx(log_variance(looks), rel=1e-14)
    problem = Problem(Identity((2,)), LogIntensity(looks), z).gaussian()
    assert problem.noise.sigma.shape == () and torch.equal(problem.y, centre)


def test_few_looks_have_no_gaussian_in_r():
    for noise, y in ((Intensity(3.0), torch.ones(1, 2)), (SingleLook(), torch.ones(1, 2, dtype=torch.complex64))):
        with pytest.raises(CapabilityError, match=r"needs more than 3: use LogIntensity"):
            noise.gaussian(y)
    noise, centre = Intensity(5.0).gaussian(torch.tensor([[0.0, 3.0, 6.0]]))
    assert centre[0, 0] == 0.0 and noise.sigma[0] == noise.sigma[1]
    with pytest.raises(DataError, match="no positive intensity"):
        Intensity(5.0).gaussian(torch.zeros(1, 2))


@pytest.mark.parametrize("looks", [0.0, -1.0, math.inf, math.nan, True, "4"])
def test_looks_must_be_a_positive_number(looks):
    with pytest.raises(ConfigError, match="Intensity: expected looks"):
        Intensity(looks)


def test_a_single_look_image_is_a_problem_of_its_reflectivity():
    """Complex data of a real operator: simulated, counted twice, and of the likelihood of its intensity but for log pi."""
    r = torch.linspace(0.5, 4.0, 64, dtype=torch.float64).reshape(1, 8, 8)
    problem = Problem.simulate(Identity((1, 8, 8)), SingleLook(), r, seed=0)
    assert problem.y.is_complex()
    assert float(problem.chi2(r[None])) == pytest.approx(1.0, abs=5.0 * (1.0 / 64) ** 0.5)
    intensity = Problem(problem.operator, Intensity(1.0), problem.y.abs().square())
    other = r[None] * 1.7
    gain = problem.log_likelihood(other) - problem.log_likelihood(r[None])
    torch.testing.assert_close(gain, intensity.log_likelihood(other) - intensity.log_likelihood(r[None]))
    with pytest.raises(ShapeError, match="complex"):
        Problem(problem.operator, SingleLook(), problem.y.real)
