"""What every packaged sampler promises whatever it computes: seeds, chunks, resuming, capabilities, errors, dtypes."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

import invdiff
from invdiff.core import (
    CapabilityError,
    DataError,
    Denoiser,
    Gaussian,
    Karras,
    LinearOperator,
    NumericalError,
    Operator,
    Poisson,
    Problem,
    Sampler,
    Streams,
    ViewAsComplex,
    build,
    capabilities,
)
from invdiff.core.errors import ConfigError
from invdiff.core.spectrum import given, matrix_spectrum
from invdiff.guidance import MMPS, PiGDM
from invdiff.priors import GaussianPrior, StationaryGaussian
from invdiff.priors.field import SpectralGaussian
from invdiff.samplers import (
    DPS,
    SKROCK,
    Ancestral,
    DFlow,
    DiffPIR,
    Guided,
    Heun,
    LangevinDraw,
    Laplace,
    PnPDM,
    REDDiff,
    Reversible,
    Steered,
)

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

# a trained reconstruction network takes one size and measurement, split Gibbs a speckled image, despeckling its logarithm, a
# consistency function nothing, RePaint a mask, blind split Gibbs parameters of the operator: see their tests
OTHERS = {"AlternatingGibbs", "shipped_idm", "SplitGibbs", "Despeckle", "Multistep", "ReflectivityEM", "RePaint"}
FOLDER = Path(invdiff.__file__).parent / "configs" / "sampler"
CONFIGS = {p.stem: p for p in sorted(FOLDER.glob("*.yaml")) if not OTHERS & set(re.split(r"\W", p.read_text()))}
F64 = torch.float64
SHAPE, STEPS = (2, 2, 2), 6


class Matrix(LinearOperator):
    """A dense matrix on flattened tensors, real or complex."""

    def __init__(self, matrix, shape):
        super().__init__(shape, (len(matrix),), in_complex=matrix.is_complex(), out_complex=matrix.is_complex())
        self.register_buffer("matrix", matrix)

    def forward(self, x):
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y):
        return (y @ self.matrix.conj()).reshape(-1, *self.in_shape)

    def spectrum(self, like=None):
        return matrix_spectrum(self.matrix, self.in_shape, given(like))

    def solve(self, b, rho):
        gram = self.matrix.mH @ self.matrix
        shifted = gram.T + rho[:, None, None] * torch.eye(len(gram), dtype=gram.dtype)
        return torch.linalg.solve(shifted, b.flatten(1)).reshape(b.shape)

    def pinv(self, y):
        return (y @ torch.linalg.pinv(self.matrix).T).reshape(-1, *self.in_shape)


class Saturating(Operator):
    """A non-linear measurement."""

    def __init__(self):
        super().__init__(SHAPE, SHAPE)

    def forward(self, x):
        return torch.tanh(x)


class Breaks(Denoiser):
    """A prior that returns NaN below a noise level."""

    def __init__(self, prior, below):
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.below = prior, below

    def forward(self, x, sigma):
        return self.prior(x, sigma) * torch.where(sigma < self.below, torch.nan, 1.0)[:, None, None, None]


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_prior(dtype=F64):
    a = randn(8, 8, seed=1)
    return GaussianPrior(
        randn(*SHAPE, seed=2).to(dtype), (a @ a.T / 8 + 0.1 * torch.eye(8)).to(dtype), sigma_min=0.05, sigma_max=50.0
    )


def make_problem(kind="real", dtype=F64):
    prior, noise = make_prior(dtype), Gaussian(0.3)
    if kind == "real":
        operator = Matrix(randn(3, 8, seed=3).to(dtype), SHAPE)
    elif kind == "complex":
        operator = Matrix(torch.complex(randn(3, 4, seed=3), randn(3, 4, seed=4)), (1, 2, 2)) @ ViewAsComplex((1, 2, 2))
    elif kind == "nonlinear":
        operator = Saturating()
    else:
        operator, noise = Matrix(torch.eye(8, dtype=dtype), SHAPE), Poisson(20.0, 5.0)
    x = prior.sample(Streams(9, 1))
    return Problem.simulate(operator, noise, x.abs() if kind == "counts" else x, seed=5)


def make_field(dtype=F64):
    return StationaryGaussian(SHAPE, mean=0.3, std=0.8, length=1.0, sigma_min=0.05, sigma_max=50.0).to(dtype)


def reference(sampler):
    """What the directions of moment matching are preconditioned by, if anything."""
    return getattr(getattr(sampler, "guidance", None), "reference", None)


def prior_of(sampler, dtype=F64):
    """A Gaussian; a Gaussian field for the samplers that need one."""
    return make_field(dtype) if reference(sampler) == "prior" or isinstance(sampler, Laplace) else make_prior(dtype)


# presets in the units of their task, in those of these tests
UNITS = {
    "reddiff_waveform": {"lr": 0.1, "lam": 0.25, "grid": Karras()},
    "daps_langevin": {"tau": 0.3, "ode_steps": 1, "draw": LangevinDraw(steps=5)},
}


@pytest.fixture(params=CONFIGS)
def sampler(request):
    options = {"steps": STEPS} | UNITS.get(request.param, {})
    made = dataclasses.replace(build(yaml.safe_load(CONFIGS[request.param].read_text())), **options)
    if getattr(getattr(made, "guidance", None), "cg_steps", 0) > 10:
        # more than there are measurements
        made = dataclasses.replace(made, guidance=dataclasses.replace(made.guidance, cg_steps=10))
    if isinstance(reference(made), SpectralGaussian):
        # a field on the grid of these tests
        made = dataclasses.replace(made, guidance=dataclasses.replace(made.guidance, reference=make_field()))
    return made


@pytest.fixture
def prior(sampler):
    return prior_of(sampler)


def number(info):
    """What every sampler records of a step: its noise level, or the misfit or the objective where it has none."""
    return next(info[name] for name in ("sigma", "misfit", "objective") if name in info)


def facts(samples):
    return samples.info, samples.network_calls, samples.network_vjps, samples.operator_calls


def test_the_packaged_samplers_are_samplers_with_explicit_options(sampler):
    assert isinstance(sampler, Sampler)
    assert sampler.kind in ("posterior", "point")
    assert sampler.needs <= {"forward", "vjp", "adjoint", "solve", "spectral"}


def test_guidance_configs_build():
    for path in (Path(invdiff.__file__).parent / "configs" / "guidance").glob("*.yaml"):
        assert build(yaml.safe_load(path.read_text())) in (MMPS(), PiGDM())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_name_every_option(name):
    config = yaml.safe_load(CONFIGS[name].read_text())
    assert set(config) - {"_target_"} == {f.name for f in dataclasses.fields(build(config))}


def test_one_seed_one_result(sampler, prior):
    problem = make_problem()
    a, b, c = (sampler(problem, prior, n=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.x, b.x) and facts(a) == facts(b)
    assert not torch.equal(a.x, c.x)
    assert a.x.shape == (3, *SHAPE) and a.x.dtype == F64 and a.kind == sampler.kind
    assert len({tuple(x.flatten().tolist()) for x in a.x}) == 3
    assert [i["step"] for i in a.info] == list(range(1, STEPS + 1)) and all(number(i) >= 0 for i in a.info)


def test_draws_do_not_depend_on_chunks(sampler, prior):
    problem = make_problem()
    whole = sampler(problem, prior, n=5, seed=3)
    for batch in (1, 2):
        parts = sampler(problem, prior, n=5, seed=3, batch=batch)
        # rounding of sums in another order, carried through a few dozen well-conditioned steps
        torch.testing.assert_close(parts.x, whole.x, rtol=1e-9, atol=1e-9)
        assert parts.network_calls == whole.network_calls and parts.network_vjps == whole.network_vjps
    torch.testing.assert_close(sampler(problem, prior, n=2, seed=3).x, whole.x[:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [0, 1])
def test_an_interrupted_run_resumes_bit_for_bit(sampler, prior, tmp_path, chunk):
    problem, path = make_problem(), tmp_path / "run.pt"
    whole = sampler(problem, prior, n=4, seed=7, batch=2)

    def interrupt(info):
        if info["step"] == STEPS // 2 and info["draws"][0] == 2 * chunk:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, prior, n=4, seed=7, batch=2, resume=path, callback=interrupt)
    with pytest.raises(DataError, match="its seed is 7, here it is 8"):
        sampler(problem, prior, n=4, seed=8, batch=2, resume=path)
    with pytest.raises(DataError, match="sampler"):
        dataclasses.replace(sampler, steps=STEPS + 1)(problem, prior, n=4, seed=7, batch=2, resume=path)
    content, kept = torch.load(path, weights_only=True), path.read_bytes()
    for change in ({"finished": "x"}, {"state": {"other": 1}}, {"seconds": None, "counts": None}):
        torch.save(content | change, path)
        with pytest.raises(DataError, match="delete it to start anew"):
            sampler(problem, prior, n=4, seed=7, batch=2, resume=path)
    path.write_bytes(kept)
    resumed = sampler(problem, prior, n=4, seed=7, batch=2, resume=path)
    if reference(sampler) is not None:
        # the three rows of the operator are made again: not for each of the four draws, but for all
        resumed = dataclasses.replace(resumed, operator_calls=resumed.operator_calls - 3 / 4)
    assert torch.equal(resumed.x, whole.x) and facts(resumed) == facts(whole)
    assert not path.exists()


def test_a_missing_capability_is_one_error_before_the_run(sampler, prior):
    problem, calls = make_problem("nonlinear"), []
    if getattr(sampler, "start", "prior") == "guess":
        with pytest.raises(CapabilityError, match=r"Saturating has no guess\(y\)"):
            sampler(problem, prior, n=2, seed=0, callback=calls.append)
        assert not calls
        return
    if sampler.needs <= capabilities(problem.operator):
        x = sampler(problem, prior, n=2, seed=0).x
        assert bool(torch.isfinite(x).all())
        return
    with pytest.raises(CapabilityError, match=r"needs .*adjoint.* of the operator; Saturating offers forward, vjp"):
        sampler(problem, prior, n=2, seed=0, callback=calls.append)
    assert not calls


def test_counts_either_run_or_propose_the_gaussian(sampler, prior):
    problem = make_problem("counts")
    try:
        x = sampler(problem, prior, n=2, seed=0).x
    except CapabilityError as error:
        words = str(error)
    else:
        assert bool(torch.isfinite(x).all())
        return
    assert "problem.gaussian()" in words


def test_nan_stops_the_run_at_its_step(sampler, prior):
    seen = []
    if isinstance(sampler, DFlow | PnPDM | SKROCK):
        # every step passes through all levels, or there is one
        with pytest.raises(NumericalError, match=r"not finite after step 1 of 6 in draws \[0, 1\]"):
            sampler(make_problem(), Breaks(prior, 1.0), n=2, seed=0)
        return
    if isinstance(sampler, Laplace):
        # takes the law of a field, and no other denoiser
        with pytest.raises(CapabilityError, match="got Breaks"):
            sampler(make_problem(), Breaks(prior, 1.0), n=2, seed=0)
        return
    sampler(make_problem(), prior, n=2, seed=0, callback=lambda info: seen.append(info["sigma"]))
    # a denoiser that fails below its third level is first called there in step 3 or, by Heun's look ahead, in step 2
    levels = sorted({*seen, 50.0} - {0.0}, reverse=True)
    if reference(sampler) == "prior":
        # the broken prior is no field
        sampler = dataclasses.replace(sampler, guidance=dataclasses.replace(sampler.guidance, reference=prior))
    with pytest.raises(NumericalError, match=r"not finite after step [23] of 6 in draws \[0, 1\]"):
        sampler(make_problem(), Breaks(prior, 0.5 * (levels[1] + levels[2])), n=2, seed=0)


def test_a_point_estimate_has_no_spread(sampler, prior):
    samples = sampler(make_problem(), prior, n=3, seed=0)
    if sampler.kind == "posterior":
        assert samples.std.shape == SHAPE and samples.quantile(0.5).shape == SHAPE
        return
    for spread in (lambda: samples.std, lambda: samples.quantile(0.9), lambda: samples.interval()):
        with pytest.raises(CapabilityError, match="point estimate"):
            spread()


def test_complex_measurements_through_a_view(sampler, prior):
    problem = make_problem("complex")
    assert problem.y.is_complex()
    if reference(sampler) is not None or isinstance(sampler, Laplace):
        with pytest.raises(CapabilityError, match=r"a Gaussian field, for an operator .* real measurements, .* complex"):
            sampler(problem, prior, n=2, seed=0)
        return
    samples = sampler(problem, prior, n=2, seed=0)
    assert samples.x.shape == (2, *SHAPE) and samples.x.dtype == F64 and bool(torch.isfinite(samples.x).all())


def test_single_precision_stays_single(sampler):
    assert sampler(make_problem(dtype=torch.float32), prior_of(sampler, torch.float32), n=2, seed=0).x.dtype == torch.float32


def test_no_graph_grows_through_a_trainable_prior(sampler, prior):
    name = "mean" if isinstance(prior, GaussianPrior) else "spectrum"
    setattr(prior, name, torch.nn.Parameter(prior._buffers.pop(name)))
    graphs = []
    sampler(make_problem(), prior, n=2, seed=0, callback=lambda info: graphs.append(info["x"].requires_grad))
    assert graphs == [False] * STEPS and getattr(prior, name).grad is None


def test_costs_are_those_of_the_method(prior):
    problem = make_problem()
    heun = Guided(MMPS(cg_steps=4), Heun(), steps=7)(problem, prior, n=3, seed=0)
    assert (heun.network_calls, heun.network_vjps) == (13, 4 * 13)
    ancestral = Guided(PiGDM(), Ancestral(), steps=7)(problem, prior, n=3, seed=0)
    assert (ancestral.network_calls, ancestral.network_vjps) == (7, 7)
    # residual: forward, adjoint; the solve
    assert ancestral.operator_calls == 3 * 7
    pairs = Reversible(MMPS(cg_steps=4), steps=7)(problem, prior, n=3, seed=0)
    assert (pairs.network_calls, pairs.network_vjps) == (7, 4 * 7)
    # five steps with a derivative and one without, each of four evaluations
    flow = DFlow(flow_steps=4, memory="full", steps=6)(problem, prior, n=3, seed=0)
    assert (flow.network_calls, flow.network_vjps) == (4 * 6, 4 * 5)
    assert (DPS(steps=7)(problem, prior, n=3, seed=0).network_vjps, DiffPIR(steps=7)(problem, prior, seed=0).network_vjps) == (
        7,
        0,
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MMPS(cg_steps=0), "cg_steps >= 1 and newton >= 1, got 0 and 1"),
        (lambda: PiGDM(data_std=0.0), "data_std > 0"),
        (lambda: DPS(zeta=-1.0), "zeta > 0"),
        (lambda: DiffPIR(zeta=1.5), r"zeta in \[0, 1\], got 1.5"),
        (lambda: DiffPIR(lam=0.0), "lam > 0"),
        (lambda: Steered("inverse"), "projection"),
        (lambda: Steered(None), "neither a projection nor an energy"),
        (lambda: Steered(repeats=0), "repeats >= 1"),
        (lambda: REDDiff(weight="cubic"), "weight to be one of linear"),
        (lambda: REDDiff(scaling="mean"), "scaling"),
        (lambda: DFlow(regulariser="sparse"), "regulariser to be one of gaussian"),
        (lambda: DFlow(flow_steps=1), "flow_steps >= 2"),
        (lambda: DFlow(memory="none"), "memory: expected full"),
    ],
)
def test_options_out_of_range_are_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
