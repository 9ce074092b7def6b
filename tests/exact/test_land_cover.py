"""Scenes of land cover: the speckle's law, the radar's side, sources of pairs, priors of any level and named conditions."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, log_bias, log_variance
from invdiff.generators.land_cover import COVER, LandCover
from invdiff.priors import GaussianPrior
from invdiff.priors.level import AnyLevel
from invdiff.priors.network import EDMDenoiser
from invdiff.priors.told import Named
from invdiff.priors.unet import UNet
from invdiff.tasks.scenes import Scenes

F64 = torch.float64
NAMES = tuple(COVER)


def test_a_scene_is_a_function_of_seed_and_index():
    small = LandCover(size=24)
    every, alone = small((0, 1, 5)), small((5,))
    for name, values in every.items():
        torch.testing.assert_close(alone[name], values[2:], rtol=1e-5, atol=1e-5)
        assert not torch.equal(LandCover(seed=1, size=24)((0, 1, 5))[name], values)
    assert every["optical"].shape == (3, 3, 24, 24)
    assert float(every["optical"].min()) >= 0.0 and float(every["optical"].max()) <= 1.0


def test_scenes_stay_what_shipped_priors_were_trained_on():
    """Means and standard deviations, as they were then; a pixel whose rounding crosses a threshold moves them by 1e-3."""
    made = LandCover(seed=3, size=48)((7,))
    known = {"reflectivity": (-2.766, 1.206), "sar": (-2.902, 1.317), "optical": (0.295, 0.113), "cover": (3.952, 2.684)}
    for name, (mean, std) in known.items():
        assert float(made[name].mean()) == pytest.approx(mean, abs=5e-3), name
        assert float(made[name].std()) == pytest.approx(std, abs=5e-3), name


def test_the_speckle_has_the_law_of_its_looks():
    """24,000 pixels: four standard errors of mean and variance of log G, 3.5 % of the variance."""
    made = LandCover(size=64, looks=3.0)(range(6))
    gain = (made["sar"] - made["reflectivity"]).double().flatten()
    assert abs(float(gain.mean()) - log_bias(3.0)) < 4.0 * math.sqrt(log_variance(3.0) / len(gain))
    assert abs(float(gain.var()) / log_variance(3.0) - 1.0) < 0.035
    assert abs(float(gain.exp().mean()) - 1.0) < 4.0 / math.sqrt(3.0 * len(gain))


def test_the_radar_looks_towards_larger_columns():
    """Walls flash on the near side of roofs, shadows lie on the far one, as often as not along the track."""
    cover = LandCover(size=96)(range(8))["cover"][:, 0]
    roof, wall, shadow = (cover == NAMES.index(name) for name in ("roof", "wall", "shadow"))
    near = int((wall[..., :-1] & roof[..., 1:]).sum()), int((wall[..., 1:] & roof[..., :-1]).sum())
    far = int((roof[..., :-1] & shadow[..., 1:]).sum()), int((roof[..., 1:] & shadow[..., :-1]).sum())
    assert near[0] > 3 * near[1] and far[0] > 3 * far[1]


def test_kinds_of_ground_keep_their_order():
    made = LandCover(size=128)(range(6))
    mean = {n: float(made["reflectivity"][made["cover"] == k].mean()) for k, n in enumerate(NAMES)}
    assert mean["water"] < mean["road"] < mean["bare soil"] < mean["green crop"] < mean["forest"] < mean["wall"]
    blue = {n: made["optical"][:, 2:][made["cover"] == NAMES.index(n)].mean() for n in ("water", "ripe crop")}
    red = {n: made["optical"][:, :1][made["cover"] == NAMES.index(n)].mean() for n in ("water", "ripe crop")}
    assert blue["water"] > red["water"] and red["ripe crop"] > blue["ripe crop"]


def test_sources_of_pairs_stay_aligned():
    source = Scenes(LandCover(size=32), "reflectivity", told=("sar",), count=4, batch=2, mirror=True)
    plain = Scenes(LandCover(size=32), "reflectivity", count=4, mirror=False)
    turned = 0
    for k in range(12):
        field, told = source(k)
        # the gain of the speckle has the law of four looks whichever way both are turned
        assert abs(float((told["concat"] - field).exp().mean()) - 1.0) < 5.0 / math.sqrt(4.0 * 32 * 32)
        same = torch.equal(field, plain(k))
        turned += not same
        assert same or torch.equal(field.flip(1), plain(k))
    assert 1 <= turned <= 11
    levelled = Scenes(LandCover(size=16), "reflectivity", count=1, level=0.5)
    levels = torch.stack([levelled(k).mean() for k in range(200)])
    assert abs(float(levels.mean())) < 4.0 * 0.5 / math.sqrt(200) and 0.4 < float(levels.std()) < 0.6
    with pytest.raises(ConfigError, match="depth too"):
        Scenes(LandCover(size=32), "depth", count=1)(0)


def test_any_level_is_the_limit_of_a_wide_prior_of_the_mean():
    n, sigma = 6, 0.7
    root = torch.linspace(-1.0, 1.0, n * n, dtype=F64).reshape(n, n).sin()
    flat = torch.eye(n, dtype=F64) - 1.0 / n
    cov = flat @ root @ root.mT @ flat
    own = AnyLevel(GaussianPrior(torch.zeros(n, dtype=F64), cov))
    x = torch.linspace(3.0, 8.0, n, dtype=F64)[None] + torch.tensor([[0.3], [-40.0]], dtype=F64)
    wide = cov + 1e9 * torch.ones(n, n, dtype=F64) / n
    expected = (wide @ torch.linalg.solve(wide + sigma**2 * torch.eye(n, dtype=F64), x.mT)).mT
    torch.testing.assert_close(own(x, torch.full((2,), sigma, dtype=F64)), expected, rtol=1e-7, atol=1e-6)


def test_a_named_condition_is_told_in_its_order():
    net = UNet(1, 1, widths=(32,), blocks=1, concat_channels=3, seed=0)
    torch.nn.init.normal_(net.exit.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    prior = Named(EDMDenoiser(net, sigma_data=1.0), ["a", "b"])
    a, b = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1, 2, 8, 8)
    x, sigma = torch.zeros(2, 1, 8, 8), torch.ones(2)
    told = prior.tell({"b": b, "a": a})
    assert torch.equal(told(x, sigma), prior.prior(x, sigma, {"concat": torch.cat((a, b), 1).expand(2, -1, -1, -1)}))
    with pytest.raises(ConfigError, match="b is missing"):
        prior.tell({"a": a})
    with pytest.raises(CapabilityError, match="told a, b"):
        prior(x, sigma)
