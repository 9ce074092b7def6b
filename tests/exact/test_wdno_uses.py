"""What wavelet diffusion neural operators are for: control, refinement, learning, and the regression network beside them.

Known answers: the linear-quadratic optimum, the posterior of a Gaussian law, identities to rounding.
"""

import json
import runpy
from math import prod
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

from invdiff.core import ConfigError, DataError, Gaussian, Karras, ShapeError, Streams
from invdiff.core.algebra import dense
from invdiff.guidance import MMPS
from invdiff.learning import Training, describe_regression, fit, write_regression_card
from invdiff.priors import FNO, EDMDenoiser, GaussianPrior, UNet, load_network
from invdiff.priors.bands import BandUNet
from invdiff.priors.refine import coarsen, refine, upsample
from invdiff.priors.regression import Regression, load_regression
from invdiff.priors.wdno import FieldCode, FieldPrior, field_network, load_fields
from invdiff.samplers import DPS, Guided, Heun
from invdiff.tasks.control import Field, LastFrame, control_problem, objective, solved
from invdiff.tasks.trajectories import RefinedTrajectories, Trajectories, as_fields

F64 = torch.float64
ROOT = Path(__file__).parents[2]


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some_fields(n=6, grid=(8, 16), dtype=torch.float32):
    return {
        "u0": randn(n, 1, *grid[1:], seed=1, dtype=dtype),
        "uT": randn(n, 1, *grid[1:], seed=2, dtype=dtype),
        "f": 3.0 * randn(n, 1, *grid, seed=3, dtype=dtype),
        "u": randn(n, 1, *grid, seed=4, dtype=dtype).cumsum(-1),
    }


def untrained(channels, told, **options):
    return EDMDenoiser(UNet(channels, channels, widths=(32,), blocks=1, concat_channels=told, **options), sigma_data=1.0)


# ---- control as inference


def linear_system(n=4, times=3):
    """u(t+1) = M u(t) + f(t) from u(0), and the Gaussian law of (u, f) for f ~ N(0, s^2)."""
    m = 0.5 * torch.eye(n, dtype=F64) + 0.2 * randn(n, n, seed=5)
    u0, s = randn(n, seed=6), 0.8
    size = n * times
    # (u, f) = offset + map f
    columns = torch.eye(size, dtype=F64).reshape(size, times, n)

    def run(f, start):
        states, u = [], start
        for t in range(times):
            u = u @ m.T + f[..., t, :]
            states.append(u)
        return torch.stack(states, -2)

    response = run(columns, torch.zeros(n, dtype=F64))
    offset = run(torch.zeros(times, n, dtype=F64), u0)
    whole = torch.cat([response.flatten(1), torch.eye(size, dtype=F64)], 1).T
    mean = torch.stack([offset, torch.zeros_like(offset)])
    prior = GaussianPrior(mean, s**2 * whole @ whole.T, sigma_min=1e-3, sigma_max=1e3)
    return prior, response[:, -1].T, offset[-1], s


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_control_is_the_linear_quadratic_optimum(weight):
    """The posterior mean of MMPS at a high level is the solution of the normal equations of J + tau^2 |f|^2 / s^2."""
    prior, reach, free, s = linear_system()
    target, tau = randn(1, 4, seed=8), 0.05
    problem = control_problem(prior.shape, target, weight=weight, temperature=tau)
    posterior = MMPS(cg_steps=16)(prior, problem)
    found = posterior(1e3 * randn(1, *prior.shape, seed=9), torch.tensor([1e3], dtype=F64))[0]
    # min |G f + free - u*|^2 / 4 + w |f|^2 / 12 + tau^2 |f|^2 / s^2, at sigma = 1000 up to (s / sigma)^2
    matrix = reach.T @ reach / 4 + (weight / 12 + tau**2 / s**2) * torch.eye(12, dtype=F64)
    best = torch.linalg.solve(matrix, reach.T @ (target[0] - free) / 4)
    assert torch.allclose(found[1].flatten(), best, atol=2e-3)
    assert torch.allclose(found[0, -1], reach @ best + free, atol=2e-3)
    final, f = found[None, :1, -1], found[None, 1:]
    other = 1.1 * f
    reached = (reach @ other.flatten() + free)[None, None]
    penalty = tau**2 / s**2 * 12 * torch.stack([f.square().mean(), other.square().mean()])
    values = torch.cat([objective(final, f, target, weight=weight), objective(reached, other, target, weight=weight)]) + penalty
    assert values[0] < values[1]


def test_control_by_draws_and_forbidden_places():
    prior, _, _, _ = linear_system()
    target, forbidden = randn(1, 4, seed=8), torch.zeros(3, 4, dtype=torch.bool)
    forbidden[0] = True
    problem = control_problem(prior.shape, target, weight=0.1, temperature=0.3, forbidden=forbidden)
    exact = prior.posterior(problem)
    draws = Guided(MMPS(cg_steps=12), Heun(), Karras(0.005, 300.0), steps=30)(problem, prior, n=250, seed=0).x
    z = (draws.mean(0) - exact.mean) / (exact.cov.diagonal().reshape(exact.mean.shape).clamp_min(1e-8) / 250).sqrt()
    assert float(z.abs().max()) < 5
    assert float(draws[:, 1, 0].abs().max()) < 0.01 < 0.1 < float(draws[:, 1, 1:].abs().mean())
    # every sampler is a controller
    plain = control_problem(prior.shape, target, temperature=0.3)
    assert isinstance(plain.noise, Gaussian)
    reached = DPS(steps=100)(plain, prior, n=2, seed=0).x[:, 0, -1]
    assert float((reached - target).square().mean()) < float((prior.mean[0, -1] - target).square().mean())


def test_control_operators_and_refusals():
    for operator in (LastFrame((2, 3, 4, 5), 1), Field((2, 3, 4), 1), Field((2, 3, 4), 0, torch.arange(12).reshape(3, 4) > 4)):
        x, y = randn(2, *operator.in_shape), randn(2, *operator.out_shape, seed=1)
        assert float(((operator(x) * y).sum() - (x * operator.adjoint(y)).sum()).abs()) < 1e-12
        assert torch.allclose(operator.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(dense(operator)).T)
    with pytest.raises(ShapeError, match=r"expected a target of shape \(1, 4\), got \(4,\)"):
        control_problem((2, 3, 4), torch.zeros(4))
    with pytest.raises(ConfigError, match=r"expected temperature > 0, slack > 0 and weight >= 0, got 0\.0"):
        control_problem((2, 3, 4), torch.zeros(1, 4), temperature=0.0)


# ---- levels


def test_levels_of_one_solution():
    """Linear fields are refined exactly inside, averages are kept, and coarse levels are those of the data."""
    t, x = (torch.arange(8, dtype=F64) + 1) / 8, (torch.arange(16, dtype=F64) + 0.5) / 16
    u, u0 = (t[:, None] + 2 * x)[None, None], (2 * x)[None, None]
    below = coarsen({"u": u, "u0": u0, "f": u})
    assert torch.equal(below["u"], u[:, :, 1::2].unflatten(-1, (8, 2)).mean(-1))
    assert torch.equal(below["f"][0, 0, :, 0], (t[0::2] + t[1::2]) / 2 + 2 * (x[0] + x[1]) / 2)
    again = upsample(below["u"], below["u0"])
    assert again.shape == u.shape and torch.allclose(again[..., 2:-2], u[..., 2:-2], atol=1e-12)
    rough = randn(2, 1, 4, 6, 6)
    fine = upsample(rough, randn(2, 1, 6, 6, seed=1))
    assert fine.shape == (2, 1, 8, 12, 12)
    assert torch.allclose(coarsen({"u": fine})["u"], rough, atol=1e-12)
    with pytest.raises(ShapeError, match="expected even sizes, got u on"):
        coarsen({"u": rough[..., :5]})


def test_refinement():
    """A network that knows nothing, told nothing but its level's scale, adds noise of its units around the interpolation."""
    code = FieldCode(unknown=("r",), slices=("u0",), fields=("f", "coarse"), wavelet="haar", scales={"r": [1e-3] * 4})
    net = field_network(untrained(4, code.concat_channels(2), patch=1), code)
    data = some_fields(2, (16, 32))
    coarse = coarsen(coarsen(data))["u"]
    sampler = Guided(None, Heun(), Karras(0.01, 10.0), steps=4)
    found = refine(net, code, coarse, data["u0"], data["f"], sampler, seed=3, times=2)
    assert [tuple(v.shape) for v in found] == [(2, 1, 8, 16), (2, 1, 16, 32)]
    assert float((found[0] - upsample(coarse, coarsen(coarsen(data))["u0"])).abs().max()) < 0.02
    same = refine(net, code, coarse, data["u0"], data["f"], sampler, seed=3, times=2)
    # products of matrices may differ in the last digit with the place in memory
    assert torch.allclose(found[1], same[1], rtol=0.0, atol=1e-6)
    other = refine(net, code, coarse, data["u0"], data["f"], sampler, seed=4, times=2)
    assert float((other[1] - found[1]).abs().max()) > 1e-3
    used = []
    for seed in (3, 4):

        def spy(problem, prior, n, *, seed):
            used.append(seed)
            return sampler(problem, prior, n, seed=seed)

        refine(net, code, coarse, data["u0"], data["f"], spy, seed=seed, times=2)
    assert len(set(used)) == 4, "levels of neighbouring seeds are the same draws"
    with pytest.raises(ShapeError, match=r"expected f on \(8, 16\) and u0 on \(16,\), got \(16, 32\)"):
        refine(net, code, coarse, data["u0"], data["f"], sampler, seed=0, times=1)


# ---- learning


class Diffusion:
    """A stand-in: u decays towards f, which is one of three parameters' worth of fields."""

    def __call__(self, indices, *, dtype=torch.float32, device="cpu"):
        a, b, c = Streams(3, list(indices)).normal(0, (3, 1, 1), "parameters", F64).unbind(1)  # (N, 1, 1) each
        x, t = torch.pi * (torch.arange(16, dtype=F64) + 0.5) / 16, (torch.arange(8, dtype=F64)[:, None] + 0.5) / 8
        f, states = (a + c * t) * torch.sin(x), [b * torch.sin(2 * x)]
        for slot in f.split(1, dim=1):
            states.append(0.8 * states[-1] + 0.2 * slot)
        return {"u0": states[0].to(dtype), "f": f.to(dtype), "u": torch.cat(states, 1).to(dtype)}


def test_sources_are_functions_of_the_index():
    plain = FieldCode(wavelet="haar")
    source = Trajectories(Diffusion(), plain, count=10, keep={"f": 0.5, "uT": 0.0}, batch=4)
    code = source.code = plain.measured(source.samples(range(10)))
    again = Trajectories(Diffusion(), code, count=10, keep={"f": 0.5, "uT": 0.0}, batch=10)
    for k in (13, 2, 7):
        (x, told), (y, also) = source(k), again(k)
        assert torch.allclose(x, y, atol=1e-6) and torch.allclose(told["concat"], also["concat"], atol=1e-6)
    flags = torch.stack([source(k)[1]["concat"][-5:-2, 0, 0] for k in range(200)])
    assert flags[:, 0].tolist() == [1.0] * 200 and float(flags[:, 1].sum()) == 0.0 and 70 < float(flags[:, 2].sum()) < 130
    fields = as_fields(Diffusion()([0]))
    assert torch.equal(fields["uT"][0, 0], fields["u"][0, 0, -1])
    finer = RefinedTrajectories(
        Trajectories(Diffusion(), FieldCode(unknown=("r",), slices=("u0",), fields=("f", "coarse")), count=4), levels=2, batch=3
    )
    shapes = [tuple(finer(k)[0].shape) for k in range(24)]
    assert set(shapes) == {(1, 8, 16), (1, 4, 8)} and all(len(set(shapes[k : k + 3])) == 1 for k in range(0, 24, 3))
    with pytest.raises(ConfigError, match="expected keep to have probabilities of u0, uT, f"):
        Trajectories(Diffusion(), plain, count=4, keep={"f": 2.0})


def short(**options):
    return Training(batch=8, crop=64, full_from=0.0, lr=3e-3, warmup=5, ema=0.95, p_mean=0.0, p_std=1.5, **options)


def test_training_makes_a_simulator(tmp_path):
    """Given u(0) and f the estimate at a high level is nearer to the solution than one that ignores them; saved, read again."""
    plain = FieldCode(wavelet="haar")
    source = Trajectories(Diffusion(), plain, count=64, keep={"uT": 0.5, "f": 0.8}, batch=64)
    source.code = code = plain.measured(source.samples(range(64)))
    network = field_network(untrained(8, code.concat_channels(2), patch=1), code)
    network = fit(network, source, short(steps=40), tmp_path / "run", progress=False)
    network.save(tmp_path / "net.safetensors", dtype=torch.float16)
    read, known = load_fields(tmp_path / "net.safetensors")
    assert known == code
    held = as_fields(Diffusion()(range(1000, 1008)))
    prior = FieldPrior(read, known, (8, 16), {"u0": held["u0"], "f": held["f"]})
    noisy = code.encode(held) + 10.0 * randn(8, *prior.shape, dtype=torch.float32)
    with torch.no_grad():
        found = prior.basis(prior(noisy, torch.full((8,), 10.0)))[:, :1]
    assert float((found - held["u"]).square().mean()) < 0.6 * float(held["u"].square().mean())
    with pytest.raises(DataError, match="says nothing of fields"):
        untrained(8, 0, patch=1).save(tmp_path / "other.safetensors")
        load_fields(tmp_path / "other.safetensors")


def test_band_networks_are_files(tmp_path):
    net = EDMDenoiser(BandUNet(1, 1, scales=[[1.0, 0.5, 0.5, 0.2]], widths=(32,), blocks=1, concat_channels=2), sigma_data=1.0)
    torch.nn.init.normal_(net.net.inner.exit.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    net.save(tmp_path / "net.safetensors", {})
    x, told = randn(2, 1, 8, 12, dtype=torch.float32), {"concat": randn(1, 2, 8, 12, dtype=torch.float32)}
    with torch.no_grad():
        read, own = (m(x, torch.ones(2), told) for m in (load_network(tmp_path / "net.safetensors"), net))
    assert torch.allclose(read, own, atol=1e-5)  # read, the weights are in another layout
    with pytest.raises(ConfigError, match=r"expected positive scales, \(1, 4\) for the bands 1aa"):
        BandUNet(1, 1, scales=[[1.0] * 3])


def test_regression(tmp_path):
    """A Fourier network on the relative error: learns, is saved, predicts in the units of the fields on other grids."""
    plain = FieldCode(unknown=("u",), slices=("u0",), fields=("f",))
    source = Trajectories(Diffusion(), plain, count=64, batch=64)
    source.code = code = plain.measured(source.samples(range(64)))
    net = FNO(code.concat_channels(2), 1, modes=(2, 4), width=12, depth=2, noise=False)
    model = fit(Regression(net, code, pad=2), source, short(steps=60), tmp_path / "run", progress=False)
    held = as_fields(Diffusion()(range(1000, 1016)))
    told = {"u0": held["u0"], "f": held["f"]}
    found = model.predict((8, 16), told)
    error = (found - held["u"]).flatten(1).norm(dim=1) / held["u"].flatten(1).norm(dim=1)
    assert float(error.mean()) < 0.5
    losses = model.losses(code.encode(held), code.condition((8, 16), told, like=found))
    assert torch.allclose(losses, error, rtol=1e-4)
    model.save(tmp_path / "net.safetensors")
    assert torch.allclose(load_regression(tmp_path / "net.safetensors").predict((8, 16), told), found, atol=1e-6)
    finer = {"u0": randn(1, 1, 32, dtype=torch.float32), "f": randn(1, 1, 16, 32, dtype=torch.float32)}
    assert model.predict((16, 32), finer).shape == (1, 1, 16, 32)
    described = describe_regression(model, source, 4, {"data": "a stand-in", "licence": "MIT"})
    described.facts |= {"step": 60, "training": {}}
    write_regression_card(described, "stand_in", tmp_path / "card.md")
    mean = float(torch.cat([model.losses(x[None], c["concat"][None]) for x, c in map(source, range(4))]).mean())
    assert described.facts["relative_l2"] == {"mean": pytest.approx(mean, abs=1e-5), "spread": ANY, "items": 4}
    assert "on 4 held-out items" in (tmp_path / "card.md").read_text()
    with pytest.raises(ConfigError, match="a regression network makes no draws"):
        fit(model, source, short(steps=2, drop=0.5), tmp_path / "other", progress=False)
    with pytest.raises(DataError, match="it is a UNet"):
        untrained(8, 0, patch=1).save(tmp_path / "other.safetensors")
        load_regression(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("grid", "levels"), [((32,), 2), ((4, 8, 8), 1)])
def test_band_networks_in_other_dimensions(grid, levels):
    dims = len(grid)
    rows = [[1.0] * (1 + levels * (2**dims - 1))] * 2
    net = BandUNet(2, 2, wavelet="bior1.3", levels=levels, scales=rows, widths=(32,), blocks=1, dims=dims, concat_channels=1)
    prior, x = EDMDenoiser(net, sigma_data=1.0), randn(2, 2, *grid, dtype=torch.float32)
    told = {"concat": randn(1, 1, *grid, dtype=torch.float32)}
    assert prior(x, torch.ones(2), told).shape == x.shape
    assert torch.allclose(prior(x, torch.full((2,), 1e-3), told), x, atol=1e-4)


def test_a_solver_scores():
    from invdiff.operators.pde.shocks import BurgersShocks

    solver = BurgersShocks(16, slots=2, time=0.1, steps=16, save=2)
    u0, f = randn(1, 1, 8, dtype=torch.float32), randn(3, 1, 2, 8, dtype=torch.float32)
    found = solved(solver, u0, f, factor=2)
    assert found.shape == (3, 1, 2, 8) and prod(found.shape) == 48
    given = torch.cat([u0[0], f[1, 0]]).double().repeat_interleave(2, -1)
    assert torch.allclose(found[1, 0], solver(given[None])[0].unflatten(-1, (8, 2)).mean(-1).float())


def test_the_protocol_runs(tmp_path):
    name = "haar 1"
    main = runpy.run_path(str(ROOT / "benchmarks" / "wdno.py"))["main"]
    arguments = ["--tiny", "--steps", "2", "--seeds", "0", "--out", str(tmp_path / "rows.json"), "--work", str(tmp_path)]
    main([*arguments, "--variants", name])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [r["variant"] for r in rows] == [name] and rows[0]["control"]["data"] < rows[0]["control"]["none"]
    main([*arguments, "--variants", name])
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 1


@pytest.mark.slow
def test_the_small_protocol_keeps_its_order(tmp_path):
    """Half of the documented training, one seed: what docs/wdno.md says of the ordering, with room for the seed."""
    main = runpy.run_path(str(ROOT / "benchmarks" / "wdno.py"))["main"]
    out = tmp_path / "rows.json"
    main(["--steps", "300", "--seeds", "0", "--out", str(out), "--work", str(tmp_path), "--variants", "fno", "haar 1", "pixel"])
    fno, haar, pixel = json.loads(out.read_text())["rows"]
    error = {row["variant"]: row["simulation"]["mean"]["relative_l2"] for row in (haar, pixel)}
    assert error["haar 1"] < 0.8 * error["pixel"]
    assert fno["simulation"]["one"]["relative_l2"] < error["haar 1"] < 1.0
    # every controller does better than none, and none better than the data's own control
    assert haar["control"]["data"] < fno["control"]["descent"] < haar["control"]["guided"] < 0.5 * haar["control"]["none"]
