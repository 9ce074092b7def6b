"""Sensors: exact for linear fields, of second order for smooth ones, at the walls what the boundary says."""

import math

import pytest
import torch

from invdiff.core import ConfigError, ShapeError
from invdiff.operators.pde.sensors import PointSensors, random_sensors

F64 = torch.float64


def points(n, boundary, length=1.0):
    i = torch.arange(n, dtype=F64)
    return {"periodic": i * length / n, "dirichlet": (i + 1) * length / (n + 1), "neumann": (i + 0.5) * length / n}[boundary]


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet", "neumann"])
def test_a_sensor_on_a_point_reads_that_point(boundary):
    x = points(6, boundary, 2.5)
    field = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    sensors = PointSensors((2, 6), x[:, None], length=2.5, boundary=boundary)
    torch.testing.assert_close(sensors(field), field, rtol=1e-12, atol=1e-12)


def test_linear_fields_are_read_exactly():
    """a + b s + c t on cells' centres, between them."""
    s, t = points(7, "neumann", 2.0), points(5, "neumann", 3.0)
    field = (0.3 + 1.7 * s[:, None] - 0.8 * t)[None, None]
    where = torch.tensor([[0.9, 1.1], [1.31, 2.2], [0.2, 0.35]], dtype=F64)
    found = PointSensors((1, 7, 5), where, length=[2.0, 3.0], boundary="neumann")(field)
    torch.testing.assert_close(found[0, 0], 0.3 + 1.7 * where[:, 0] - 0.8 * where[:, 1], rtol=1e-12, atol=1e-12)


def test_walls():
    """Half a spacing from a wall: half the value at a Dirichlet wall, the value at a Neumann one, and periodic fields wrap."""
    field = torch.tensor([[[2.0, 5.0, 7.0]]], dtype=F64)
    wanted = {"dirichlet": (0.125, 1.0), "neumann": (0.05, 2.0), "periodic": (2.5 / 3, 0.5 * (7.0 + 2.0))}
    for boundary, (where, value) in wanted.items():
        assert PointSensors((1, 3), [[where]], boundary=boundary)(field).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet"])
def test_smooth_fields_are_read_to_second_order(boundary):
    where = torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    k = 2 * math.pi if boundary == "periodic" else math.pi
    errors = []
    for n in (32, 64):
        x = points(n, boundary)
        sensors = PointSensors((1, n, n), where, boundary=boundary)
        read = sensors((torch.sin(k * x)[:, None] * torch.sin(k * x))[None, None])[0, 0]
        errors.append((read - torch.sin(k * where[:, 0]) * torch.sin(k * where[:, 1])).square().mean().sqrt())
    assert float((errors[0] / errors[1]).log2()) == pytest.approx(2.0, abs=0.15)


def test_seeds_and_what_is_refused():
    a, b, c = (random_sensors((1, 8, 8), 5, seed=seed) for seed in (0, 0, 1))
    field = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(a(field), b(field)) and not torch.equal(a(field), c(field))
    with pytest.raises(ConfigError, match=r"position 1, \[1.5\], lies outside"):
        PointSensors((1, 8), [[0.5], [1.5]])
    with pytest.raises(ConfigError, match="boundaries of periodic"):
        PointSensors((1, 8), [[0.5]], boundary="robin")
    with pytest.raises(ShapeError, match="positions"):
        PointSensors((1, 8, 8), [[0.5]])
    with pytest.raises(ConfigError, match="count >= 1"):
        random_sensors((1, 8), 0)


def test_a_composition_with_a_solver_keeps_the_memory_policy_of_the_solver():
    """The pullback through sensors holds the states of the chain, not the activations of its steps, and is the same."""
    from invdiff.core.storage import LiveStorage
    from invdiff.operators.pde.spectral import Burgers

    u = torch.sin(2 * math.pi * points(64, "periodic"))[None, None]
    held, gradients = [], []
    for memory in ("full", "checkpoint(step)"):
        operator = random_sensors((1, 64), 9, boundary="periodic") @ Burgers(64, 0.02, time=0.2, steps=32, memory=memory)
        with LiveStorage() as meter:
            y, back = operator.vjp(u)
            held.append(meter.live)
            gradients.append(back(torch.ones_like(y)))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)
    assert held[1] < 0.2 * held[0]
