"""Despeckling networks: the parts of an intensity, the minimisers of both losses, training, files, the published layout."""

import math

import pytest
import torch
from torch import nn

from invdiff.core import ConfigError, DataError, ShapeError, Streams
from invdiff.core.rng import derived
from invdiff.core.speckle import Intensity, SingleLook
from invdiff.learning import Training, fit
from invdiff.priors import EDMDenoiser, GaussianField, GaussianPrior, Matern, StationaryGaussian, UNet
from invdiff.priors.cycle import CycleSpun, shift_grid
from invdiff.priors.despeckler import Despeckler, load_despeckler, load_merlin, merlin_losses, r2r_losses, r2r_split
from invdiff.priors.level import AnyLevel
from invdiff.priors.merlin import MerlinNet

F64 = torch.float64


class Pointwise(nn.Module):
    """A piecewise linear function of each pixel, on knots from -4 to 4 half a unit apart."""

    def __init__(self, start=0.0):
        super().__init__()
        self.values = nn.Parameter(torch.full((17,), start))

    def forward(self, x):
        place = (2.0 * (x + 4.0)).clamp(0.0, 15.999)
        k = place.long()
        return self.values[k] + (place - k) * (self.values[k + 1] - self.values[k])


@pytest.mark.parametrize(("looks", "alpha"), [(1.0, 0.5), (4.4, 0.25), (0.5, 0.1)])
def test_parts_of_an_intensity_are_independent_looks(looks, alpha):
    """Mean, variance and third moment of Gamma laws of alpha L and (1 - alpha) L looks; no correlation, nor of logarithms."""
    n, r = 200_000, 3.0
    whole = Intensity(looks).sample(torch.full((1, n), r, dtype=F64), Streams(0))
    parts = r2r_split(whole, looks, alpha, Streams(1))
    torch.testing.assert_close(alpha * parts[0] + (1.0 - alpha) * parts[1], whole)
    for part, k in zip(parts, (alpha * looks, (1.0 - alpha) * looks), strict=True):
        x = part[0] / r
        # raw moments of Gamma(k, 1 / k): prod_{i < m} (1 + i / k)
        for m in (1, 2, 3):
            moment, square = (math.prod(1.0 + i / k for i in range(p)) for p in (m, 2 * m))
            assert abs(float((x**m).mean()) - moment) < 5.0 * math.sqrt((square - moment**2) / n)
    assert abs(float(torch.corrcoef(torch.cat(parts))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.cat(parts).log())[0, 1])) < 0.02
    # a Beta law of another number of looks leaves a correlation
    wrong = torch.cat(r2r_split(whole, 2.0 * looks, alpha, Streams(1)))
    assert float(torch.corrcoef(wrong)[0, 1]) > 0.05
    with pytest.raises(ConfigError, match="r2r_split"):
        r2r_split(whole, 1.0, 1.0, Streams(0))


@pytest.mark.parametrize("kind", ["merlin", "r2r"])
def test_the_minimiser_is_the_posterior_mean(kind):
    """A reflectivity of 1 or 9: u at a quantile of what is seen, by L-BFGS on the expected loss, against log E[R | seen]."""
    looks, alpha = 2.0, 0.5
    # equally spaced in the logarithm, where the density of half a look has no pole
    seen, other = torch.linspace(0.05, 12.0, 9, dtype=F64), torch.linspace(-40.0, math.log(400.0), 4001, dtype=F64).exp()
    levels = torch.tensor([1.0, 9.0], dtype=F64)[:, None]

    def density(x, k):
        """Of an intensity of k looks."""
        return torch.exp((k - 1.0) * x.log() - k * x / levels - k * levels.log())

    # a^2 of a real part is half an intensity of half a look
    k1, k2 = (0.5, 0.5) if kind == "merlin" else (alpha * looks, (1.0 - alpha) * looks)
    share = density(seen, k1)
    share = share / share.sum(0)
    exact = (share * levels).sum(0).log()
    law = density(other, k2) * other
    law = law / law.sum(1, keepdim=True)
    moment = (share * (law * other).sum(1, keepdim=True)).sum(0)
    moment = 0.5 * moment if kind == "merlin" else moment

    def loss(u):
        # linear in what is not seen, so that its mean is all that enters
        return merlin_losses(u, moment.sqrt()) if kind == "merlin" else r2r_losses(u, moment, (1.0 - alpha) * looks)

    u = torch.zeros_like(exact).requires_grad_()
    optimizer = torch.optim.LBFGS([u], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        total = loss(u).sum()
        total.backward()
        return total

    optimizer.step(closure)
    torch.testing.assert_close(u.detach(), exact, rtol=0.0, atol=1e-5)


def short(**options):
    settings = {"steps": 150, "batch": 8, "crop": 16, "full_from": 1.0, "lr": 0.15, "warmup": 5, "cooldown": 0.6, "ema": 0.9}
    return Training(**settings | {"save_every": 10**6} | options)


def chips(kind, looks, seed, count):
    """Reflectivities of 1 or 50, pixel by pixel: complex chips, or intensities."""
    r = torch.where(Streams(seed, count).uniform(0, (1, 16, 16), "scene") < 0.5, 1.0, 50.0)
    z = (Intensity(looks) if kind == "r2r" else SingleLook()).sample(r, Streams(seed + 1, count))
    return z if kind == "r2r" else torch.cat((z.real, z.imag), 1)


@pytest.mark.parametrize(("kind", "looks"), [("merlin", 1.0), ("r2r", 2.0)])
def test_training_reaches_the_bayes_estimate(tmp_path, kind, looks):
    """A pointwise network against E[R | one pixel], by loss and by value, on scenes of two levels."""
    alpha = 0.5
    model = Despeckler(Pointwise(1.0), looks=looks, alpha=alpha, floor=1e-6)
    bank = chips(kind, looks, 7, 512)
    trained = fit(model, lambda index: bank[index % len(bank)], short(), tmp_path, progress=False)
    held = chips(kind, looks, 107, 200)
    streams = Streams(3, 200)

    def bayes(power, k):
        """log E[R | power] with power ~ Gamma(k) of mean R, the two levels equally likely."""
        odds = [torch.exp(-k * math.log(r) - k * power / r) for r in (1.0, 50.0)]
        return ((odds[0] + 50.0 * odds[1]) / (odds[0] + odds[1])).log()

    if kind == "merlin":
        a, b = held.split(1, 1)
        best = 0.5 * (merlin_losses(bayes(2.0 * a.square(), 0.5), b) + merlin_losses(bayes(2.0 * b.square(), 0.5), a))
        grid, exact = torch.linspace(-1.0, 4.0, 8).exp(), lambda p: bayes(2.0 * p, 0.5)
    else:
        seen, other = r2r_split(held, looks, alpha, streams)
        best = r2r_losses(bayes(seen, 1.0), other, 1.0)
        grid, exact = torch.linspace(-1.0, 4.0, 8).exp(), lambda p: bayes(p, 1.0)
    start = Despeckler(Pointwise(1.0), looks=looks, alpha=alpha, floor=1e-6).losses(held, streams).mean()
    end, least = trained.losses(held, streams).mean(), best.mean()
    start = start.detach()
    assert float(end - least) < 0.03 and float(start - least) > 0.7
    found = trained(grid.reshape(1, 1, 2, 4)).flatten()
    assert float((found - exact(grid)).abs().mean()) < 0.25
    complex_image = torch.complex(grid.sqrt(), grid.flip(0).sqrt()).reshape(1, 1, 2, 4)
    mean = 0.5 * (found.exp() + found.flip(0).exp())
    torch.testing.assert_close(trained(complex_image).exp().flatten(), mean, rtol=1e-4, atol=1e-4)


def test_a_batch_is_a_function_of_its_indices(tmp_path):
    model = Despeckler(Pointwise(), looks=2.0)
    images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    whole = model.losses(images, Streams(0, range(4)))
    torch.testing.assert_close(model.losses(images[2:], Streams(0, (2, 3))), whole[2:])
    assert not torch.allclose(model.losses(images[2:], Streams(0, (4, 5))), whole[2:])
    with torch.no_grad():
        # the identity, which says log I of what it sees
        model.network.values.copy_(torch.linspace(-4.0, 4.0, 17))
    averaged = model.averaged(images, 3, seed=5)
    assert torch.equal(averaged, model.averaged(images, 3, seed=5))
    torch.testing.assert_close(model.averaged(images[:2], 3, seed=5), averaged[:2])
    parts = [model.averaged(images, 1, seed=derived(5, k)) for k in range(3)]
    torch.testing.assert_close(averaged, torch.stack(parts).exp().mean(0).log())
    assert not torch.allclose(parts[0], parts[1])


def test_precisions():
    """Images of another precision than the weights', of which the answer has the image's."""
    model, image = Despeckler(Pointwise(0.3), floor=1e-3), torch.linspace(0.0, 3.0, 16, dtype=F64).reshape(1, 1, 4, 4)
    net = Despeckler(MerlinNet(3, 1), floor=1e-3)
    for each in (model, net):
        assert each(image).dtype == F64 and each(torch.complex(image, image)).dtype == F64
        torch.testing.assert_close(each(image).float(), each(image.float()), rtol=1e-5, atol=1e-5)


def test_a_level_that_nobody_knows():
    """The mean of the answer is that of x, and the Jacobian symmetric, also of a prior whose own mean varies."""
    root = torch.linspace(-1.0, 1.0, 36, dtype=F64).reshape(6, 6).sin().cumsum(1)
    prior = AnyLevel(GaussianPrior(torch.linspace(0.0, 2.0, 6, dtype=F64), root @ root.mT + 0.1 * torch.eye(6, dtype=F64)))
    x = torch.linspace(3.0, 8.0, 6, dtype=F64) + torch.tensor([[0.3], [-40.0]], dtype=F64)
    sigma = torch.ones(2, dtype=F64)
    torch.testing.assert_close(prior(x, sigma).mean(1), x.mean(1))
    torch.testing.assert_close(prior(x + 5.0, sigma), prior(x, sigma) + 5.0)
    jacobian = torch.func.jacrev(lambda t: prior(t[None], sigma[:1])[0])(x[0])
    torch.testing.assert_close(jacobian, jacobian.mT)


def test_files(tmp_path):
    """Saved and read again; other networks are the user's to give; what is wrong is said."""
    net = MerlinNet(6, 2, seed=1)
    nn.init.constant_(net.dec1.bias, 0.1)
    model = Despeckler(net, shift=0.5, scale=2.0, floor=1e-3, looks=4.0)
    image = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "a.safetensors", {"data": "none"})
    again = load_despeckler(tmp_path / "a.safetensors")
    assert torch.equal(again(image), model(image)) and again.facts == {"data": "none"} and again.looks == 4.0
    # at the start the network is the identity: u = log(I + floor), here less 2 scale times the bias
    torch.testing.assert_close(again(image), (image + 1e-3).log() - 0.4, rtol=1e-4, atol=1e-4)
    own = Despeckler(Pointwise(0.3), floor=1.0)
    own.save(tmp_path / "b.safetensors")
    assert torch.equal(load_despeckler(tmp_path / "b.safetensors", network=Pointwise())(image), own(image))
    with pytest.raises(DataError, match="give one as network"):
        load_despeckler(tmp_path / "b.safetensors")
    EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1), sigma_data=1.0).save(tmp_path / "c.safetensors")
    with pytest.raises(DataError, match="it is a UNet"):
        load_despeckler(tmp_path / "c.safetensors")
    for wrong in ({"scale": 0.0}, {"floor": -1.0}, {"looks": 0.0}, {"alpha": 1.0}, {"shift": math.inf}):
        with pytest.raises(ConfigError, match="Despeckler"):
            Despeckler(net, **wrong)
    with pytest.raises(ShapeError, match="multiples of 4"):
        model(torch.ones(1, 1, 6, 8))
    with pytest.raises(ShapeError, match="real and imaginary"):
        model.losses(torch.ones(1, 3, 8, 8), Streams(0))
    with pytest.raises(DataError, match="floor"):
        Despeckler(net)(torch.zeros(1, 1, 8, 8))


NAMES = {f"enc{k}" for k in range(7)} | {"dec5", "dec5b", "dec4", "dec4b", "dec3", "dec3b", "dec2", "dec2b"}
NAMES |= {"dec1a", "dec1b", "dec1"}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_published_weights_load_by_name(tmp_path, suffix):
    """Names and shapes of the published state dictionary, its units, and the rule of the two parts."""
    from safetensors.torch import save_file

    net = MerlinNet(seed=2)
    with torch.no_grad():
        net.dec1.weight.uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
    state, path = net.state_dict(), tmp_path / f"weights.{suffix}"
    assert set(state) == {f"{name}.{part}" for name in NAMES for part in ("weight", "bias")}
    shapes = {"enc0": (48, 1), "enc6": (48, 48), "dec5": (96, 96), "dec2": (96, 144), "dec1a": (64, 97), "dec1b": (32, 64)}
    for name, shape in (shapes | {"dec1": (1, 32)}).items():
        assert state[f"{name}.weight"].shape == (*shape, 3, 3)
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    model = load_merlin(path)
    image = 50.0 * torch.randn(1, 1, 32, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    low, high = -1.429329123112601, 10.089038980848645
    amplitudes = []
    for part in (image.real, image.imag):
        h = ((part.square() + 1e-3).log() - 2.0 * low) / (2.0 * (high - low))
        amplitudes.append(((high - low) * net(h) + low).exp())
    expected = 0.5 * (amplitudes[0].square() + amplitudes[1].square())
    torch.testing.assert_close(model(image).exp(), expected, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in model.parameters())


def test_what_is_not_the_published_network(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    torch.save(nn.Linear(1, 1), tmp_path / "code.pth")
    for name in ("other.pth", "broken.pth", "broken.safetensors", "code.pth", "missing.pth"):
        with pytest.raises(DataError, match="load_merlin"):
            load_merlin(tmp_path / name)
    torch.save(MerlinNet(3, 1).state_dict(), tmp_path / "small.pth")
    assert load_merlin(tmp_path / "small.pth").divisor == 2
    with pytest.raises(DataError, match="altered"):
        load_merlin(tmp_path / "small.pth", sha256="0" * 64)
    with pytest.raises(ConfigError, match="multiple of 3"):
        MerlinNet(8)


class Ramped(GaussianPrior):
    """Depends on the position."""

    def forward(self, x, sigma):
        return super().forward(x, sigma) * torch.linspace(0.0, 1.0, 4, dtype=x.dtype)


def test_cycle_spinning():
    """Exact for a stationary prior; of another one, the mean over the shifts by hand; the condition moves along."""
    x, sigma = Streams(0, 2).normal(0, (1, 8, 8), dtype=F64), torch.tensor([0.3, 2.0], dtype=F64)
    field = StationaryGaussian((1, 8, 8), length=2.0)
    torch.testing.assert_close(CycleSpun(field, 3)(x, sigma), field(x, sigma))
    walled = GaussianField((1, 8, 8), Matern(1.5), length=2.0, boundary="neumann")
    assert not torch.allclose(CycleSpun(walled, 3)(x, sigma), walled(x, sigma), atol=1e-2)
    small = Ramped(torch.zeros(1, 4, 4, dtype=F64), torch.ones(1, 4, 4, dtype=F64))
    y = x[..., :4, :4]
    scale = (1.0 / (1.0 + sigma**2))[:, None, None, None]
    ramp = torch.linspace(0.0, 1.0, 4, dtype=F64)
    by_hand = y * scale * 0.5 * (ramp + ramp.roll(-1))
    torch.testing.assert_close(CycleSpun(small, [(0, 0), (2, 1)])(y, sigma), by_hand)
    # all shifts take the position out
    torch.testing.assert_close(CycleSpun(small, 1)(y, sigma), y * scale * 0.5)
    assert shift_grid(100, (256, 256)) == [(a, b) for a in (0, 100, 200) for b in (0, 100, 200)]
    net = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, patch=1, periodic=True, concat_channels=1), sigma_data=1.0).double()
    nn.init.normal_(net.net.exit.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    told = {"concat": Streams(4, 2).normal(0, (1, 8, 8), dtype=F64)}
    torch.testing.assert_close(CycleSpun(net, [(1, 2), (5, 3)])(x, sigma, told), net(x, sigma, told))
    for wrong in ([], [(1,)], [(1, 2, 3)], 0):
        with pytest.raises(ConfigError, match=r"CycleSpun|shift_grid"):
            CycleSpun(field, wrong)
