"""Smoke as tasks: what items are told, the objective as a linear measurement, and its value by the solver."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from invdiff.core import ConfigError, DataError, Gaussian, Karras, Problem, ShapeError
from invdiff.core.algebra import dense
from invdiff.generators import SmokeControl
from invdiff.guidance import MMPS
from invdiff.operators.pde.smoke import bucket_share
from invdiff.priors import EDMDenoiser, FieldCode, GaussianPrior, UNet, field_network
from invdiff.priors.solution import field_prior
from invdiff.samplers import Guided, Heun
from invdiff.tasks import Task
from invdiff.tasks.smoke_setups import (
    Objective,
    SmokeItems,
    control,
    simulation,
    simulation_score,
    smoke_score,
    solved_density,
)
from invdiff.tasks.trajectories import Trajectories, smoke_fields

F64 = torch.float64
MADE = SmokeControl(seed=0, size=32, frames=4, substeps=4, waypoints=1, noise=0.02, gain=2.5)
CODE = FieldCode(unknown=("density", "vx", "vy", "cx", "cy"), slices=("density0",), fields=("cx", "cy"), wavelet="haar")


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def only(use, **options):
    (item,) = SmokeItems(use=use, generator=MADE, **options).items(1, 0, None)
    return item


def raw():
    return replace(MADE, seed=1_000_000)((0,), dtype=F64)


def wdno(grid=(4, 32, 32)):
    """A prior whose weights answer to what is told."""
    net = UNet(40, 40, widths=(32,), blocks=1, dims=3, patch=1, concat_channels=CODE.concat_channels(3), seed=0)
    for k, p in enumerate(net.parameters()):
        p.data += 0.02 * randn(*p.shape, seed=k, dtype=torch.float32)
    return field_prior(field_network(EDMDenoiser(net, sigma_data=1.0, sigma_max=20.0), CODE), grid)


# ---- fields and items


def test_fields_are_the_frames_after_the_first():
    made = raw()
    fields = smoke_fields(made)
    assert torch.equal(fields["density0"][0, 0], made["density"][0, 0])
    assert torch.equal(fields["density"][0, 0, 3], made["density"][0, 4])
    for axis, name in enumerate("xy"):
        assert torch.equal(fields[f"v{name}"][0, 0, 0], made["velocity"][0, 1, axis])
        assert torch.equal(fields[f"c{name}"][0, 0, 2], made["control"][0, 2, axis])
    assert {tuple(v.shape) for n, v in fields.items() if n != "density0"} == {(1, 1, 4, 32, 32)}


def test_a_source_tells_the_control_as_one():
    options = {"count": 2, "batch": 2, "keep": {"density0": 0.5, "cx": 0.5}, "fields": smoke_fields}
    source = Trajectories(MADE, CODE, together=[["cx", "cy"]], **options)
    apart = Trajectories(MADE, CODE, **options)
    seen, other = [], []
    for k in range(24):
        unknown, condition = source(k)
        assert unknown.shape == (40, 2, 16, 16) and condition["concat"].shape == (26, 2, 16, 16)
        # of density0, cx, cy
        seen.append(tuple(condition["concat"][20:23, 0, 0, 0].tolist()))
        other.append(tuple(apart(k)[1]["concat"][20:23, 0, 0, 0].tolist()))
    assert set(seen) == {(a, b, b) for a in (0.0, 1.0) for b in (0.0, 1.0)}
    # cy is always told where nothing says otherwise
    assert {c for _, _, c in other} == {1.0} and {b for _, b, _ in other} == {0.0, 1.0}
    found = CODE.synthesis((4, 32, 32))(source(0)[0][None])[0]
    expected = smoke_fields(MADE((0,)))
    assert torch.allclose(found[4], expected["cy"][0, 0], atol=1e-5)
    with pytest.raises(ConfigError, match="groups of density0, cx, cy"):
        Trajectories(MADE, CODE, count=1, together=[["cx", "vx"]])
    with pytest.raises(ConfigError, match="groups of density0, cx, cy"):
        Trajectories(MADE, CODE, count=1, together=[["cx"], ["cx", "cy"]])
    with pytest.raises(ConfigError, match="expected coarser=0, got 1"):
        Trajectories(MADE, CODE, count=1, coarser=1, fields=smoke_fields)


def test_items_are_told_what_belongs_to_them():
    fields = {k: v.float() for k, v in smoke_fields(raw()).items()}
    item = only("simulate")
    assert item.shape == (5, 4, 32, 32) and item.y.shape == (0,) and set(item.told) == {"density0", "cx", "cy"}
    assert torch.equal(item.truth, torch.cat([fields[n] for n in CODE.unknown], 1)[0])
    item = only("control")
    assert set(item.told) == {"density0"} and item.y.shape == control(item).out_shape
    assert float(item.y[0]) == 1.0 and not item.y[1:].any()
    assert not torch.equal(only("control", index=1).truth, item.truth)
    assert not torch.equal(only("control", seed=3).truth, item.truth)


# ---- the objective


def test_the_functional_is_the_share_of_the_solver():
    made, item = raw(), only("control")
    outlet, density = MADE.outlets[0], made["density"][0]
    operator = Objective((5, 4, 32, 32), outlet, outlet, total=float(density[-1].sum()), weight=1.0)
    x = torch.cat([smoke_fields(made)[n] for n in CODE.unknown], 1)
    assert float(operator(x)[0, 0]) == pytest.approx(float(made["outlet"][0, -1]), abs=1e-12)
    assert float(made["outlet"][0, -1]) > 1e-3
    # the task's is a share of the smoke at the start
    change = float(density[-1].sum() / density[0].sum())
    assert float(control(item)(x)[0, 0]) == pytest.approx(change * float(bucket_share(density[-1], outlet)), rel=1e-6)


def test_the_operator_is_linear_with_its_adjoint():
    target, rim = torch.arange(6).reshape(2, 3) > 3, torch.arange(6).reshape(2, 3) < 3
    small = Objective((4, 2, 2, 3), target, rim, total=2.5, weight=0.3)
    for operator in (control(only("control")), small):
        x, y = randn(2, *operator.in_shape), randn(2, *operator.out_shape, seed=1)
        left, right = (operator(x) * y).sum(), (x * operator.adjoint(y)).sum()
        assert float((left - right).abs()) < 1e-12 * float(left.abs())
    matrix = dense(small)
    assert matrix.shape == (13, 48) and float(matrix[0].sum()) == pytest.approx(2 / 2.5)
    # each point of the rim once
    assert torch.allclose(matrix[1:] @ matrix[1:].T, 0.3 / 6 * torch.eye(12, dtype=F64))


@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_the_misfit_is_the_objective(weight):
    item, operator = only("control"), partial(control, weight=weight)
    task = Task(name="control", data=SmokeItems(use="control", generator=MADE), operator=operator, noise=Gaussian(0.3))
    problem, x = task.problem(item), randn(2, *item.shape, dtype=torch.float32)
    rim = MADE.operator.control_mask
    share = (x[:, 0, -1] * MADE.outlets[0]).sum((1, 2)) / item.told["density0"].sum()
    effort = x[:, 3:].square().sum(1)[..., rim].flatten(1).mean(1)
    expected = ((1 - share).square() + weight * effort) / 0.3**2
    assert torch.allclose(problem.chi2(x) * problem.operator.count_measured(), expected, rtol=1e-4)
    assert problem.operator.count_measured() == 1 + 2 * 4 * int(rim.sum())


def test_control_under_a_gaussian_law_is_the_closed_form():
    """rho(T) = M c for c ~ N(0, s^2): the posterior mean minimises J / tau^2 + |c|^2 / s^2."""
    n, tau, weight, s, total = 6, 0.2, 0.5, 0.7, 3.0
    move, mask, rim = randn(n, 2 * n, seed=3), torch.arange(n) < 2, torch.arange(n) > 1
    # one frame of n cells: density, cx and cy
    whole = torch.cat([move, torch.eye(2 * n, dtype=F64)])
    prior = GaussianPrior(torch.zeros(3, 1, n, dtype=F64), s**2 * whole @ whole.T, sigma_min=1e-3, sigma_max=1e3)
    operator = Objective((3, 1, n), mask, rim, total=total, weight=weight)
    problem = Problem(operator, Gaussian(tau), torch.eye(1, 9, dtype=F64))
    row, paid = mask.double() @ move / total, torch.diag(torch.cat([rim, rim]).double())
    matrix = (torch.outer(row, row) + weight / 4 * paid) / tau**2 + torch.eye(2 * n, dtype=F64) / s**2
    best = torch.linalg.solve(matrix, row / tau**2)
    exact = prior.posterior(problem).mean
    assert torch.allclose(exact[1:].flatten(), best, atol=1e-6) and torch.allclose(exact[0, 0], move @ best, atol=1e-6)
    # at sigma = 1000 about the mean of the prior, up to (s / sigma)^2
    found = MMPS(cg_steps=4)(prior, problem)(torch.zeros(1, 3, 1, n, dtype=F64), torch.tensor([1e3], dtype=F64))[0]
    assert torch.allclose(found[1:].flatten(), best, atol=1e-4)


# ---- what it is worth


def test_controls_are_valued_by_the_solver():
    item = only("control")
    images = torch.stack([item.truth, item.truth])
    images[1, 3:] = 0.0
    found = smoke_score(item, images, weight=0.1, substeps=4)
    exact = float(raw()["outlet"][0, -1])
    assert found["share_data"] == pytest.approx(exact, abs=1e-6) and found["share_none"] < 1e-6 < exact
    assert found["share_best"] == pytest.approx(exact, abs=1e-6)
    assert found["share"] == pytest.approx(0.5 * (found["share_data"] + found["share_none"]))
    assert found["share_believed"] == pytest.approx(exact, abs=1e-5)
    effort = float(item.truth[3:].square().sum(0)[:, MADE.operator.control_mask].mean())
    assert found["J_data"] == pytest.approx((1 - exact) ** 2 + 0.1 * effort, rel=1e-5)
    assert found["J_none"] == pytest.approx((1 - found["share_none"]) ** 2)
    # outside of the rim a control is neither felt nor paid for
    outside = images.clone()
    outside[:, 3:, :, 12:20, 12:20] = 5.0
    assert smoke_score(item, outside, weight=0.1, substeps=4) == found
    density = solved_density(item.told["density0"], item.truth[None, 3:], substeps=4)
    assert torch.allclose(density[:, 1:].float(), item.truth[:1], atol=1e-5) and density.shape == (1, 5, 32, 32)


def test_simulations_are_scored_against_the_solver():
    item = only("simulate")
    found = simulation_score(item, torch.stack([item.truth, 3.0 * item.truth]))
    assert found["relative_l2"] == pytest.approx(1.0) and found["relative_l2_of_mean"] == pytest.approx(1.0)
    assert found["velocity_l2"] == pytest.approx(1.0) and found["share_error"] == pytest.approx(0.0, abs=1e-6)
    half = item.truth.clone()
    half[0, -1] *= torch.where(MADE.outlets[0], 0.0, 1.0)
    found = simulation_score(item, torch.stack([half, item.truth]))
    assert found["share_error"] == pytest.approx(0.5 * found["share_solver"], rel=1e-4) and found["share_solver"] > 1e-3


def test_tasks_tell_the_prior_and_score():
    free = Guided(None, Heun(), Karras(), steps=2)
    data = SmokeItems(use="simulate", generator=MADE)
    task = Task(name="simulate", data=data, operator=simulation, noise=Gaussian(1.0), score=simulation_score, draws=2)
    estimate = task.run(prior=wdno(), sampler=free).items[0].estimates[-1]
    item, x = only("simulate"), estimate.samples.x
    assert torch.allclose(x[:, 3:], item.truth[3:].expand(2, -1, -1, -1, -1), atol=1e-5)
    assert estimate.facts["relative_l2"] == pytest.approx(simulation_score(item, x)["relative_l2"])
    # what is told is heard
    told = wdno().tell(item.told)
    other = wdno().tell(item.told | {"density0": 0 * item.told["density0"]})
    noisy, sigma = randn(1, *told.shape, dtype=torch.float32), torch.ones(1)
    with torch.no_grad():
        assert float((told(noisy, sigma) - other(noisy, sigma)).abs().max()) > 1e-4


def test_fields_of_the_user_and_refusals(tmp_path):
    path, start = tmp_path / "mine.npz", np.zeros((32, 32))
    start[3, 16] = 1.0
    np.savez(path, density0=start, cx=np.ones((4, 32, 32)), cy=np.zeros((4, 32, 32)))
    for use, frames in (("simulate", 4), ("control", 6)):
        (item,) = SmokeItems(use=use, path=str(path), frames=6).items(1, 0, None)
        assert item.shape == (5, frames, 32, 32) and item.truth is None and float(item.told["density0"].sum()) == 1.0
    assert simulation_score(item, torch.zeros(1, *item.shape)) == {}
    assert "share_data" not in smoke_score(item, torch.zeros(1, *item.shape), substeps=1)
    np.savez(path, density0=start, cx=np.ones((4, 32, 30)), cy=np.zeros((4, 32, 32)))
    with pytest.raises(ShapeError, match=r"different grids: density0 \(32, 32\), cx \(4, 32, 30\)"):
        next(SmokeItems(use="simulate", path=str(path)).items(1, 0, None))
    np.savez(path, density0=0 * start)
    with pytest.raises(DataError, match="density0 holds no smoke"):
        next(SmokeItems(use="control", path=str(path)).items(1, 0, None))
    with pytest.raises(ConfigError, match="expected use to be one of simulate, control"):
        SmokeItems(use="guess", generator=MADE)
    with pytest.raises(ConfigError, match="a generator or a path, one of the two"):
        SmokeItems(use="control")
    with pytest.raises(ConfigError, match="expected total > 0 and weight > 0, got"):
        control(only("control"), weight=0.0)
    mask = torch.ones(3) > 0
    with pytest.raises(ShapeError, match=r"masks of shape \(3,\) with a cell at least, got \(3,\) with 0"):
        Objective((3, 2, 3), mask, ~mask, total=1.0, weight=1.0)
