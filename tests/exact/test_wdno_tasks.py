"""Trajectories as tasks: what items are told and measured, images of a solution, and J by the solver."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, NumericalError, ShapeError
from invdiff.core.algebra import dense
from invdiff.generators import BurgersControl
from invdiff.guidance import MMPS
from invdiff.priors import EDMDenoiser, FieldCode, StationaryGaussian, UNet, coarsen, field_network, upsample
from invdiff.priors.solution import Solution, field_prior
from invdiff.samplers import Guided, Heun
from invdiff.tasks import Item, Task, objective
from invdiff.tasks.wdno_setups import (
    Coarsen,
    TrajectoryItems,
    control,
    control_noise,
    control_score,
    refinement,
    refinement_score,
    simulation,
)

F64 = torch.float64
MADE = BurgersControl(seed=0, size=16, frames=8, slots=8, factor=1, time=1.0, steps=64)
FREE = Guided(None, Heun(), Karras(), steps=3)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def network(code):
    """With weights that answer to what is told."""
    channels = sum(code.channels(n, 2) for n in code.unknown)
    net = UNet(channels, channels, widths=(32,), blocks=1, concat_channels=code.concat_channels(2), seed=0)
    for k, p in enumerate(net.parameters()):
        p.data += 0.05 * randn(*p.shape, seed=k)
    return field_network(EDMDenoiser(net, sigma_data=1.0, sigma_max=20.0), code)


def wdno(grid=(8, 16)):
    return field_prior(network(FieldCode(wavelet="haar")), grid)


def refining(grid=(8, 16)):
    return field_prior(network(FieldCode(unknown=("r",), slices=("u0",), fields=("f", "coarse"), wavelet="haar")), grid)


def only(use, **options):
    (item,) = TrajectoryItems(use=use, generator=MADE, **options).items(1, 0, None)
    return item


def test_coarsening_is_a_linear_operator():
    operator = Coarsen((1, 6, 8))
    x, y = randn(2, 1, 6, 8, dtype=F64), randn(2, 1, 3, 4, seed=1, dtype=F64)
    assert torch.equal(operator(x), coarsen({"u": x})["u"])
    assert float(((operator(x) * y).sum() - (x * operator.adjoint(y)).sum()).abs()) < 1e-12
    assert torch.allclose(operator.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(dense(operator)).T)
    with pytest.raises(ShapeError, match=r"expected even sizes, got \(1, 5, 8\)"):
        Coarsen((1, 5, 8))


def test_items_are_told_what_belongs_to_them():
    raw = replace(MADE, seed=1_000_000)((0,))
    u, f = raw["u"][:, 1:], raw["f"]
    item = only("simulate")
    assert torch.equal(item.truth, u) and torch.equal(item.told["f"][0], f) and item.y.shape == (0,)
    assert torch.equal(item.told["u0"], raw["u0"])
    item = only("control")
    assert torch.equal(item.truth, torch.cat([u, f])) and torch.equal(item.told["uT"][0], u[:, -1])
    # what is measured is u(T) = u* and f = 0
    assert torch.equal(item.y[:16], u[0, -1]) and not item.y[16:].any() and item.y.shape == control(item).out_shape
    item = only("refine")
    below = coarsen({"u": u[None], "u0": raw["u0"]})
    assert torch.equal(item.y, below["u"][0]) and torch.allclose(refinement(item)(item.truth[None])[0], item.y)
    assert torch.equal(item.told["coarse"], upsample(below["u"], below["u0"]))
    # another level, sample and seed are other items
    assert only("simulate", coarser=1).shape == (1, 4, 8)
    assert not torch.equal(only("simulate", index=1).truth, u) and not torch.equal(only("simulate", seed=3).truth, u)


def test_the_image_is_the_solution_or_all_fields():
    item = only("simulate")
    prior = wdno().tell(item.told)
    assert isinstance(prior, Solution) and prior.image_shape == (None, 8, 16)
    truth = only("control").truth[None]
    x = prior.analyse(truth)
    assert torch.allclose(prior.synthesis((2, 8, 16))(x), truth, atol=1e-5)
    assert torch.allclose(prior.synthesis((1, 8, 16))(x), truth[:, :1], atol=1e-5)
    # of u alone, with f told, the unknown is the same
    assert torch.allclose(prior.analyse(truth[:, :1]), x, atol=1e-5)
    with pytest.raises(CapabilityError, match="does not say what the other fields are"):
        wdno().analyse(truth[:, :1])
    with pytest.raises(ShapeError, match=r"expected fields of shape \(1 or 2"):
        prior.synthesis((3, 8, 16))
    item = only("refine")
    fine = refining().tell(item.told)
    x = fine.analyse(item.truth[None])
    assert torch.allclose(fine.synthesis((1, 8, 16))(x), item.truth[None], atol=1e-5)
    assert torch.allclose(fine.synthesis((1, 8, 16))(0 * x), item.told["coarse"])


def test_tasks_tell_the_prior_and_score():
    plain = {"noise": Gaussian(1.0), "draws": 2}
    task = Task(name="simulate", data=TrajectoryItems(use="simulate", generator=MADE), operator=simulation, **plain)
    report = task.run(prior=wdno(), sampler=FREE, items=2)
    own = wdno().tell(only("simulate").told)
    problem = task.problem(only("simulate")).through(own.synthesis((1, 8, 16)))
    assert torch.equal(report.items[0].estimates[-1].samples.x, own.synthesis((1, 8, 16))(FREE(problem, own, 2, seed=0).x))
    note = "StationaryGaussian can't be told u0, f: the draws know nothing of it."
    assert note not in report.notes
    assert note in task.run(prior=StationaryGaussian((1, 8, 16)), sampler=FREE).notes
    task = Task(
        name="refine", data=TrajectoryItems(use="refine", generator=MADE), operator=refinement, score=refinement_score, **plain
    )
    found = task.run(prior=refining(), sampler=FREE).items[0].estimates[-1]
    truth, coarse = only("refine").truth, only("refine").told["coarse"]
    assert found.facts["relative_l2_of_interpolation"] == pytest.approx(float((coarse - truth).norm() / truth.norm()))
    assert found.facts["relative_l2_of_mean"] == pytest.approx(float((found.image - truth).norm() / truth.norm()))


def test_control_is_valued_by_the_solver():
    item = only("control")
    score = {"weight": 0.01, "time": 1.0, "factor": 1, "steps": 64}
    found = control_score(item, torch.stack([item.truth, 0 * item.truth]), **score)
    # at the generator's resolution its own control reaches the target up to rounding
    f = item.truth[1:]
    assert found["J_data"] == pytest.approx(0.01 * float(f.square().mean()), rel=1e-4)
    assert found["J_best"] == min(found["J_data"], found["J_none"]) < found["J"] < max(found["J_data"], found["J_none"])
    # the first one's trajectory ends at the target, the other's at zero
    believed = objective(
        torch.stack([item.truth[:1, -1], 0 * item.truth[:1, -1]]), torch.stack([f, 0 * f]), item.told["uT"], weight=0.01
    )
    assert found["J_believed"] == pytest.approx(float(believed.mean()), rel=1e-5)
    noise = control_noise((8, 16), weight=0.01, temperature=0.1)
    task = Task(name="control", data=TrajectoryItems(use="control", generator=MADE), operator=control, noise=noise)
    problem = task.problem(item)
    values = problem.chi2(item.truth[None]) * problem.operator.count_measured() * 0.1**2
    assert float(values) == pytest.approx(0.01 * float(f.square().mean()), rel=1e-4)
    draws = task.run(prior=wdno(), sampler=Guided(MMPS(cg_steps=2), Heun(), Karras(), steps=2), n=1)
    assert draws.items[0].estimates[-1].image.shape == (2, 8, 16)


def test_fields_of_the_user(tmp_path):
    path = tmp_path / "mine.npz"
    u0, f = np.linspace(0, 1, 16), np.ones((8, 16))
    np.savez(path, u0=u0, f=f, target=u0, coarse=np.ones((4, 8)))
    for use, shape in (("simulate", (1, 8, 16)), ("control", (2, 6, 16)), ("refine", (1, 8, 16))):
        (item,) = TrajectoryItems(use=use, path=str(path), frames=6).items(1, 0, None)
        assert item.shape == shape and item.truth is None and np.allclose(item.told["u0"].numpy().ravel(), u0)
    task = Task(
        name="mine", data=TrajectoryItems(use="simulate", path=str(path)), operator=simulation, noise=Gaussian(1.0), draws=2
    )
    assert task.run(prior=wdno(), sampler=FREE).items[0].truth is None
    np.savez(path, u0=u0, f=np.ones((8, 12)))
    with pytest.raises(ShapeError, match=r"the fields are on different grids: u0 \(16,\), f \(8, 12\)"):
        next(TrajectoryItems(use="simulate", path=str(path)).items(1, 0, None))
    with pytest.raises(ConfigError, match="expected use to be one of simulate, control, refine"):
        TrajectoryItems(use="guess", generator=MADE)
    with pytest.raises(ConfigError, match="expected a generator or a path, one of the two"):
        TrajectoryItems(use="simulate")
    assert isinstance(only("simulate"), Item)


def test_a_control_that_the_solver_refuses_costs_no_draws():
    def refuse(item, images):
        raise NumericalError("too fast")

    noise = control_noise((8, 16), weight=0.01, temperature=0.1)
    data = TrajectoryItems(use="control", generator=MADE)
    task = Task(name="control", data=data, operator=control, noise=noise, score=refuse)
    (item,) = task.run(prior=wdno(), sampler=FREE, n=2).items
    assert item.estimates[-1].samples.x.shape == (2, 2, 8, 16)
    assert "The score of Guided(None, Heun) is left out: too fast" in item.notes
