"""Layered velocities: bounds, layers, faults, and each sample a function of its index."""

import pytest
import torch

from invdiff.core import ConfigError
from invdiff.generators.velocity import VelocityModels


def flat(**more):
    return VelocityModels(**{"shape": (200, 40), "fold": 0.0, "faults": 0, "gradient": 0.0, **more})


def jumps(c):
    """Positions of jumps down each column, (N, 1, H - 1, W)."""
    return c.diff(dim=-2).abs() > 1e-3


def test_samples_are_functions_of_their_index():
    """Alone, among others, in another order; another seed is another set; bounds hold."""
    models = VelocityModels(seed=3, shape=(24, 32))
    c = models(range(6), dtype=torch.float64)["c"]
    assert c.shape == (6, 1, 24, 32) and c.dtype == torch.float64
    assert torch.equal(models((4, 1), dtype=torch.float64)["c"], c[[4, 1]])
    assert models((0,))["c"].dtype == torch.float32
    assert float((VelocityModels(seed=4, shape=(24, 32))(range(6), dtype=torch.float64)["c"] - c).abs().min(0)[0].max()) > 1.0
    many = VelocityModels(seed=5, shape=(16, 16))(range(200))["c"]
    assert float(many.min()) >= 1500.0 and float(many.max()) <= 4500.0
    assert float(many.min()) < 1700.0 and float(many.max()) > 4300.0


def test_flat_layers_have_the_number_asked_for():
    """Without folds, faults and gradient: constant along x, with as many values as layers, all numbers alike."""
    c = flat(layers=(2, 5))(range(400), dtype=torch.float64)["c"]
    assert float((c - c[..., :1]).abs().max()) == 0.0
    number = jumps(c)[..., 0].sum((1, 2)) + 1
    # two tops in one of 200 rows are one jump
    assert int(number.max()) == 5 and int(number.min()) >= 1
    share = torch.bincount(number, minlength=6)[2:].double() / 400.0
    assert float((share - 0.25).abs().max()) < 0.25 * 6 * (0.75 / 0.25 / 400.0) ** 0.5


def test_the_gradient_alone_is_linear_in_depth():
    c = flat(gradient=1.0)(range(2), dtype=torch.float64)["c"]
    z = (torch.arange(200, dtype=torch.float64) + 0.5) / 200.0
    torch.testing.assert_close(c, (1500.0 + 3000.0 * z)[:, None].expand_as(c), rtol=1e-14, atol=0)


def test_faults_shift_layers_by_no_more_than_the_throw():
    """Half of the sets have the one fault; where its line does not cross a top, a row's rounding apart."""
    c = flat(layers=(2, 2), faults=1, throw=0.1)(range(300), dtype=torch.float64)["c"]
    place = jumps(c).double().argmax(-2)[:, 0]
    single = (jumps(c).sum(-2) == 1).flatten(1).all(1)
    moved = (place.amax(1) - place.amin(1))[single]
    assert 15 < int(moved.max()) <= 21
    assert abs(float(((c - c[..., :1]).abs().amax((1, 2, 3)) > 0).double().mean()) - 0.5) < 6 * 0.5 / 300**0.5
    assert float(flat(layers=(2, 2))(range(300), dtype=torch.float64)["c"].diff(dim=-1).abs().max()) == 0.0


def test_folds_bend_layers_by_no_more_than_their_height():
    """sum_k 1 / k = 11 / 6 times the height each way."""
    c = flat(layers=(2, 2), fold=0.05)(range(100), dtype=torch.float64)["c"]
    place = jumps(c).double().argmax(-2)[:, 0]
    inside = jumps(c).sum(-2).amin((1, 2)) == 1
    reach = (place.amax(1) - place.amin(1))[inside]
    assert 4 < int(reach.max()) <= 2 * 11 / 6 * 0.05 * 200 + 1


def test_wrong_arguments_are_named():
    for more in ({"low": 0.0}, {"low": 5000.0}, {"layers": (3, 2)}, {"fold": -1.0}, {"faults": -1}, {"gradient": 1.5}):
        with pytest.raises(ConfigError, match="VelocityModels"):
            VelocityModels(**more)
