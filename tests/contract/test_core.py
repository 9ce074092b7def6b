"""Streams, noise models, problems and grids."""

import math

import pytest
import torch

from invdiff.core import (
    VP,
    ConfigError,
    Gaussian,
    Karras,
    LogUniform,
    Matrix,
    NumericalError,
    Poisson,
    Problem,
    ShapeError,
    Streams,
    Unmeasured,
)
from invdiff.core.rng import philox

F64 = torch.float64


@pytest.mark.parametrize(
    ("word", "expected"),
    [(0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)), (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD))],
)
def test_philox_gives_the_published_words(word, expected):
    """Known-answer vectors of the Random123 distribution (Salmon et al. 2011)."""
    counter = tuple(torch.tensor(word) for _ in range(4))
    assert tuple(int(v) for v in philox(counter, (word, word))) == expected


def test_a_draw_has_its_noise_whatever_the_batch():
    whole = Streams(3, 6).normal(2, (5, 7))
    parts = torch.cat([Streams(3, (0, 1)).normal(2, (5, 7)), Streams(3, range(2, 6)).normal(2, (5, 7))])
    assert torch.equal(whole, parts)
    assert torch.equal(Streams(3, (4,)).normal(2, (5, 7))[0], whole[4])


@pytest.mark.parametrize("other", [(4, 2, "step"), (3, 1, "step"), (3, 2, "init"), (-3, 2, "step"), (3 + 2**32, 2, "step")])
def test_seed_step_and_purpose_give_independent_noise(other):
    seed, step, purpose = other
    a, b = Streams(3, 1).normal(2, (40000,)), Streams(seed, 1).normal(step, (40000,), purpose)
    assert abs(float((a * b).mean())) < 5 / 200
    assert not torch.equal(a, b)


def test_normals_have_the_moments_and_tails():
    z = Streams(0, 10).normal(0, (100000,), dtype=F64).flatten()
    n = len(z)
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / n)
    share = math.erfc(3 / math.sqrt(2))
    assert abs(float((z.abs() > 3).double().mean()) - share) < 5 * math.sqrt(share / n)
    pairs = z.reshape(-1, 2)
    assert abs(float((pairs[:, 0] * pairs[:, 1]).mean())) < 5 / math.sqrt(n / 2)


def test_complex_normals_have_unit_components():
    z = Streams(0, 1).normal(0, (50000,), dtype=torch.complex64)
    assert z.dtype == torch.complex64
    assert abs(float(z.real.var()) - 1) < 0.04
    assert abs(float(z.imag.var()) - 1) < 0.04


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
def test_uniform_numbers_are_inside_the_open_interval_in_every_dtype(monkeypatch, word, dtype):
    monkeypatch.setattr(Streams, "_words", lambda *_: torch.full((1, 4), word))
    u = Streams(0).uniform(0, (4,), dtype=dtype)
    assert bool((u > 0).all()) and bool((u < 1).all())


def test_no_draws_have_no_numbers():
    assert Streams(0, ()).normal(0, (3, 5)).shape == Streams(0, ()).uniform(0, (3, 5)).shape == (0, 3, 5)


@pytest.mark.parametrize("seed", [True, 1.5, 2**63, "0"])
def test_a_seed_is_an_integer_of_64_bits(seed):
    with pytest.raises(ConfigError, match="seed"):
        Streams(seed)


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_gaussian_density_is_normalised_and_matches_its_samples(dtype):
    sigma = torch.tensor([0.5, 2.0, 0.1], dtype=F64)
    noise, clean = Gaussian(sigma), torch.zeros(20000, 3, dtype=dtype)
    y = noise.sample(clean, Streams(1, 20000))
    real = torch.view_as_real(y).reshape(20000, 3, -1) if y.is_complex() else y[..., None]
    expected = torch.distributions.Normal(0.0, sigma[:, None]).log_prob(real).flatten(1).sum(1)
    torch.testing.assert_close(noise.log_prob(y, clean), expected, rtol=1e-10, atol=1e-10)
    assert float((real.var((0, 2)) / sigma**2 - 1).abs().max()) < 5 * math.sqrt(2 / 20000)


def test_poisson_matches_torch_and_its_samples():
    noise, clean = Poisson(10.0, 2.0), torch.tensor([[0.0, 0.3, 5.0]]).expand(20000, 3)
    y, mean = noise.sample(clean, Streams(0, 20000)), torch.tensor([2.0, 5.0, 52.0])
    assert float(((y.mean(0) - mean) / (mean / 20000).sqrt()).abs().max()) < 5
    assert float((y.var(0) / mean - 1).abs().max()) < 0.06
    expected = torch.distributions.Poisson(mean).log_prob(y).sum(1)
    torch.testing.assert_close(noise.log_prob(y, clean), expected, rtol=1e-5, atol=1e-4)
    surrogate, z = noise.gaussian(y[:1])
    torch.testing.assert_close(z, (y[:1] - 2.0) / 10.0)
    torch.testing.assert_close(surrogate.sigma, y[0].clamp_min(1).sqrt() / 10.0)


def test_poisson_draws_do_not_depend_on_the_batch():
    noise, clean = Poisson(3.0), torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.sample(clean, Streams(0, 4))[2:3], noise.sample(clean[2:3], Streams(0, (2,))))


@pytest.mark.parametrize("noise", [Gaussian(0.7), Poisson(4.0, 1.0)])
def test_gradient_of_the_log_density(noise):
    y = torch.tensor([[1.0, 3.0, 0.0]], dtype=F64)
    clean = torch.tensor([[0.5, 1.0, 0.2]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: noise.log_prob(y, c), (clean,))


def test_chi2_counts_what_is_measured():
    problem = Problem(Unmeasured((4,)), Gaussian(1.0), torch.zeros(0))
    assert problem.chi2(torch.zeros(2, 4)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(ConfigError, match="sigma > 0"):
        Gaussian(sigma)


@pytest.mark.parametrize(("gain", "background"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -1.0), (math.nan, 0.0)])
def test_poisson_arguments(gain, background):
    with pytest.raises(ConfigError, match="Poisson"):
        Poisson(gain, background)


def test_a_measurement_must_fit_and_be_finite():
    with pytest.raises(ShapeError, match="expected y"):
        Problem(Unmeasured((4,)), Gaussian(1.0), torch.zeros(3))
    from invdiff.core.algebra import ViewAsComplex

    y = torch.zeros(1, 3, 3, dtype=torch.complex64)
    y[0, 1, 1] = complex(math.nan, 0.0)
    with pytest.raises(NumericalError, match="1 of the 9 values"):
        Problem(ViewAsComplex((1, 3, 3)), Gaussian(1.0), y)


@pytest.mark.parametrize("grid", [Karras(), LogUniform(), VP()])
def test_grids_decrease_between_the_limits_and_end_at_zero(grid):
    sigmas = grid(20, 0.01, 50.0)
    assert sigmas.shape == (21,)
    torch.testing.assert_close(sigmas[[0, -2, -1]], torch.tensor([50.0, 0.01, 0.0], dtype=F64), rtol=1e-9, atol=0)
    assert bool((sigmas.diff() < 0).all())


def test_vp_grid_is_the_linear_beta_schedule():
    sigma, t = VP()(11, 1e-2, 50.0), torch.linspace(0, 1, 200001, dtype=F64)
    alpha_bar = torch.exp(-(0.1 * t + 0.5 * 19.9 * t**2))
    table = ((1 - alpha_bar) / alpha_bar).sqrt()
    times = torch.searchsorted(table, sigma[:-1]).double() / 200000
    torch.testing.assert_close(times.diff(), times.diff()[:1].expand(10), rtol=0, atol=2e-5)


def test_karras_grid_is_equation_5():
    expected = (50.0 ** (1 / 7) + 3 / 9 * (0.01 ** (1 / 7) - 50.0 ** (1 / 7))) ** 7
    assert float(Karras()(10, 0.01, 50.0)[3]) == pytest.approx(expected, rel=1e-12)


def test_grids_refuse_levels_outside_the_prior():
    with pytest.raises(ConfigError, match="inside the prior"):
        Karras(sigma_max=100.0)(10, 0.01, 50.0)
    with pytest.raises(ConfigError, match="at least 2"):
        Karras()(1, 0.01, 50.0)


@pytest.mark.parametrize("part", ["operator", "noise", "y"])
def test_a_problem_names_the_part_of_another_class(part):
    parts = {"operator": Unmeasured((3,)), "noise": Gaussian(1.0), "y": torch.zeros(1, 0)}
    with pytest.raises(ConfigError, match=f"expected {part} to be a .*, got list"):
        Problem(**parts | {part: [0.0]})


@pytest.mark.parametrize("make", [lambda: Karras(rho=0.0), lambda: Karras(rho=-1.0), lambda: VP(beta_min=3.0, beta_max=3.0)])
def test_grids_refuse_parameters_without_levels(make):
    with pytest.raises(ConfigError, match="expected"):
        make()


def test_sigma_must_fit_the_measurement():
    with pytest.raises(ShapeError, match="broadcast"):
        Problem(Matrix(torch.eye(4)), Gaussian(torch.ones(3)), torch.zeros(4))
    with pytest.raises(ConfigError, match="a number or a tensor"):
        Gaussian("a")
