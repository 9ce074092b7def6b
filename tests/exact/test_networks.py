"""Networks against closed forms: inflation by a dimension, attention, positions, spectral convolution, the ideal velocity."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from invdiff.core.rng import Streams
from invdiff.priors.dit import DiT, positions
from invdiff.priors.fno import FNO, SpectralConv
from invdiff.priors.layers import SelfAttention, initialise, shuffle, unshuffle
from invdiff.priors.network import EDMDenoiser, load_network
from invdiff.priors.unet import UNet

F64 = torch.float64


def normal(*shape, seed=0):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=F64)


def filled(net):
    """The network in float64, with weights where it starts at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in net.double().parameters():
            weights.add_(0.1 * torch.randn(weights.shape, generator=generator, dtype=F64))
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("sizes", [(6,), (4, 6), (2, 4, 6)])
def test_unshuffle_by_its_definition(sizes):
    x, dims = normal(2, 3, *sizes), len(sizes)
    y = unshuffle(x, 2)
    for k, offset in enumerate(itertools.product(range(2), repeat=dims)):
        every_other = (slice(None), slice(None), *(slice(o, None, 2) for o in offset))
        assert torch.equal(y[:, k :: 2**dims], x[every_other])
    assert torch.equal(shuffle(y, 2), x)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_network_that_does_not_look_along_an_axis_is_the_one_without_it(dims):
    """Kernels that are zero off the centre of a new first axis (means, where they halve it), on fields constant along it."""
    options = {"widths": (32, 32), "blocks": 1, "embedding": 16, "attention": (1,)}
    flat, deep = filled(UNet(1, 2, dims=dims, **options)), UNet(1, 2, dims=dims + 1, **options).double()
    state, offsets = flat.state_dict(), 2**dims
    for name, weight in list(state.items()):
        if name.startswith("exit"):  # the same for both offsets in a patch along the new axis
            weight = weight.unflatten(0, (2, 1, offsets)).repeat_interleave(2, dim=1).flatten(0, 2)
        elif name == "enter.weight":  # the mean of both offsets
            weight = weight.unflatten(1, (1, 1, offsets)).repeat_interleave(2, dim=2).flatten(1, 3) / 2
        if weight.ndim > 2:
            size = weight.shape[-1]
            weight = weight.unsqueeze(2)
            weight = F.pad(weight, (0, 0) * dims + (1, 1)) if size == 3 else weight.repeat_interleave(size, dim=2) / size
        state[name] = weight
    deep.load_state_dict(state)
    x, noise = normal(2, 1, *(8, 12)[:dims]), torch.tensor([-1.0, 0.5], dtype=F64)
    want = flat(x, noise).unsqueeze(2)
    got = deep(x.unsqueeze(2).expand(2, 1, 4, *x.shape[2:]), noise)
    torch.testing.assert_close(got, want.expand_as(got), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("width", "heads"), [(64, 1), (96, 3), (128, 2)])
def test_attention_is_its_formula_and_commutes_with_permutations(width, heads):
    attend, h = SelfAttention(width), normal(2, 7, width)
    initialise(attend, torch.Generator().manual_seed(0), zero=[])
    attend.double().requires_grad_(False)
    assert attend.heads == heads
    q, k, v = (h @ attend.qkv.weight.mT + attend.qkv.bias).chunk(3, dim=-1)
    out, size = [], width // heads
    for part in range(heads):
        a, b, c = (t[..., part * size : (part + 1) * size] for t in (q, k, v))
        out.append(torch.softmax(a @ b.mT / math.sqrt(size), dim=-1) @ c)
    want = torch.cat(out, dim=-1) @ attend.out.weight.mT + attend.out.bias
    torch.testing.assert_close(attend(h), want, rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(attend(h[:, order]), attend(h)[:, order], rtol=1e-12, atol=1e-12)


def test_only_positions_tell_patches_apart(monkeypatch):
    """A transformer commutes with permutations of its patches; with positions it does not."""
    net, x, noise = filled(DiT(1, 1, width=32, depth=2, patch=2, embedding=16)), normal(2, 1, 8, 8), torch.zeros(2, dtype=F64)

    def swapped(u):
        patches = unshuffle(u, 2).flatten(2)[..., torch.arange(16).flip(0)]
        return shuffle(patches.unflatten(2, (4, 4)), 2)

    assert (net(swapped(x), noise) - swapped(net(x, noise))).abs().max() > 1e-3
    monkeypatch.setattr("invdiff.priors.dit.positions", lambda grid, width, like: like.new_zeros(math.prod(grid), width))
    torch.testing.assert_close(net(swapped(x), noise), swapped(net(x, noise)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("grid", "width"), [((5,), 32), ((3, 4), 32), ((2, 3, 2), 64)])
def test_positions_are_sines_and_cosines_of_the_indices(grid, width):
    table, count = positions(grid, width, like=torch.zeros((), dtype=F64)), width // (2 * len(grid))
    for row, index in zip(table, itertools.product(*map(range, grid)), strict=True):
        want = []
        for i in index:
            angles = [i * 10.0 ** (-4 * j / count) for j in range(count)]
            want += [*map(math.sin, angles), *map(math.cos, angles)]
        want += [0.0] * (width - len(want))
        torch.testing.assert_close(row, torch.tensor(want, dtype=F64), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("modes", "sizes"), [((3,), (8,)), ((3,), (7,)), ((2, 1), (5, 6)), ((1, 0, 1), (4, 2, 3))])
def test_spectral_convolution_is_the_circular_one_with_its_kernel(modes, sizes):
    """kappa(x) = Re sum_k c_k R_k exp(2 pi i k x) over the kept wavenumbers, c_k = 1 where k_last = 0, else 2."""
    layer, u = SpectralConv(2, 3, modes), normal(2, 2, *sizes)
    with torch.no_grad():
        layer.double().weight.copy_(normal(*layer.weight.shape, seed=1))
    points = torch.tensor(list(itertools.product(*map(range, sizes))), dtype=F64)
    wavenumbers = [[*range(m + 1), *range(-m, 0)] for m in modes[:-1]] + [list(range(modes[-1] + 1))]
    kernel = torch.zeros(2, 3, len(points), dtype=F64)
    for place in itertools.product(*(range(len(k)) for k in wavenumbers)):
        k = torch.tensor([along[j] for along, j in zip(wavenumbers, place, strict=True)], dtype=F64)
        real, imaginary = layer.weight.detach()[(slice(None), slice(None), *place)].unbind(-1)
        phase = 2 * math.pi * (points / torch.tensor(sizes)) @ k
        wave = real[..., None] * phase.cos() - imaginary[..., None] * phase.sin()
        kernel += wave if k[-1] == 0 else 2 * wave
    want = torch.zeros(2, 3, *sizes, dtype=F64)
    for y, index in enumerate(itertools.product(*map(range, sizes))):
        # u moved by y, weighted with kappa(y)
        moved = u.roll(index, dims=tuple(range(2, 2 + len(sizes))))
        want += torch.einsum("bi...,io->bo...", moved, kernel[..., y]) / len(points)
    torch.testing.assert_close(layer(u).detach(), want, rtol=1e-12, atol=1e-12)


def field(sizes, band=3):
    """Samples of a random field with wavenumbers up to `band`, the same field on every grid."""
    coefficients = normal(2, 2, *[band + 1] * len(sizes), 2)
    x = torch.zeros(2, 2, *sizes, dtype=F64)
    grid = torch.meshgrid(*(2 * math.pi * torch.arange(n, dtype=F64) / n for n in sizes), indexing="ij")
    for k in itertools.product(range(band + 1), repeat=len(sizes)):
        a, b = coefficients[(slice(None), slice(None), *k)].unbind(-1)
        phase = sum(m * g for m, g in zip(k, grid, strict=True))
        x += a[(..., *[None] * len(sizes))] * phase.cos() + b[(..., *[None] * len(sizes))] * phase.sin()
    return x


@pytest.mark.parametrize("sizes", [(8,), (7, 8), (7, 8, 7)])
def test_a_neural_operator_is_the_same_function_on_every_grid(sizes):
    """Without the pointwise nonlinearity, to rounding; with it the two grids alias differently, which the test sees."""
    net = filled(FNO(2, 2, modes=(2,) * len(sizes), width=8, depth=2, embedding=16))
    noise, fine = torch.tensor([-1.0, 0.5], dtype=F64), tuple(2 * n for n in sizes)
    common = (slice(None), slice(None), *[slice(None, None, 2)] * len(sizes))

    def gap():
        return float((net(field(fine), noise)[common] - net(field(sizes), noise)).abs().max())

    assert gap() > 1e-6
    for module in (net, *net.blocks):
        module.activation = nn.Identity()
    assert net(field(sizes), noise).abs().max() > 0.1
    assert gap() < 1e-10


def test_a_neural_operator_commutes_with_translations():
    net, x, noise = filled(FNO(2, 2, modes=(2, 2), width=8, embedding=16)), normal(1, 2, 9, 6), torch.zeros(1, dtype=F64)
    moved = net(x.roll((4, 1), dims=(2, 3)), noise)
    torch.testing.assert_close(moved, net(x, noise).roll((4, 1), dims=(2, 3)), rtol=1e-12, atol=1e-12)


class Ideal(nn.Module):
    """E[v | x_tau] for x0 ~ N(0, I), given z = x_tau / sqrt((1 - tau)^2 + tau^2) and logit(tau) / 4."""

    architecture, dims, divisor, noise = {"channels_in": 1, "channels_out": 1}, 2, 1, True

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, z, noise, condition=None):
        tau = torch.sigmoid(4 * noise)[:, None, None, None]
        return z * (2 * tau - 1) / (tau.square() + (1 - tau).square()).sqrt()


def test_the_ideal_velocity_gives_the_wiener_filter():
    """Gaussian data N(mean, sigma_d^2): D = mean + sigma_d^2 / (sigma_d^2 + sigma^2) (x - mean)."""
    data, mean = 0.7, -1.3
    prior = EDMDenoiser(Ideal(), sigma_data=data, mean=mean, preconditioning="flow")
    x, sigma = normal(4, 1, 4, 4), torch.tensor([1e-6, 0.05, 0.7, 30.0], dtype=F64)
    gain = (data**2 / (data**2 + sigma**2))[:, None, None, None]
    torch.testing.assert_close(prior(x, sigma), mean + gain * (x - mean), rtol=1e-12, atol=1e-12)
    wrong = EDMDenoiser(Ideal(), sigma_data=data, mean=mean)
    assert (wrong(x, sigma) - mean - gain * (x - mean)).abs().max() > 1e-2


@pytest.mark.parametrize("preconditioning", ["edm", "flow"])
def test_the_output_scale_makes_the_loss_that_of_the_target(preconditioning):
    """|D - x0|^2 / c_out^2 = |F - target|^2: of EDM, (x0 - c_skip x) / c_out, and of the flow, v = eps - x0 in units."""
    data, mean = 0.7, -1.3
    net = filled(UNet(1, 1, widths=(32,), blocks=1, embedding=16, patch=1))
    prior = EDMDenoiser(net, sigma_data=data, mean=mean, preconditioning=preconditioning)
    clean, eps, s = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1), 0.3
    x, sigma, total = clean + s * eps, torch.tensor([s], dtype=F64), math.hypot(s, data)
    noise = torch.tensor([math.log(s if preconditioning == "edm" else s / data) / 4], dtype=F64)
    out = net((x - mean) / total, noise)
    if preconditioning == "edm":
        target = (clean - mean - (data / total) ** 2 * (x - mean)) * total / (s * data)
    else:
        target = eps - (clean - mean) / data
    got = (prior(x, sigma) - clean) / prior.output_scale(sigma)
    torch.testing.assert_close(got, out - target, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("coupling", [0.0, 0.5])
def test_a_periodic_unet_commutes_with_rolls(dims, coupling):
    """By multiples of the divisor: neither the halvings nor the patches have another place then. Without it, walls are seen."""
    options = {"widths": (32, 32), "blocks": 1, "embedding": 16, "patch": 2, "dims": dims, "attention": (1,)}
    x, noise = normal(2, 1, *(12, 16)[:dims]), torch.tensor([0.3, -0.5], dtype=F64)
    shifts, axes = (4, -8)[:dims], tuple(range(2, 2 + dims))
    for periodic in (True, False):
        net = filled(UNet(1, 2, periodic=periodic, coupling=coupling, **options))
        assert net.divisor == 4
        gap = net(x.roll(shifts, axes), noise) - net(x, noise).roll(shifts, axes)
        assert (float(gap.abs().max()) < 1e-12) == periodic
    # by another number of points it does not
    net = filled(UNet(1, 2, periodic=True, **options))
    assert float((net(x.roll(1, 2), noise) - net(x, noise).roll(1, 2)).abs().max()) > 1e-3


def test_a_periodic_unet_on_a_repeated_field_is_its_value_repeated():
    net = filled(UNet(1, 1, widths=(32, 32), blocks=1, embedding=16, periodic=True))
    x, noise = normal(1, 1, 8, 12), torch.tensor([0.2], dtype=F64)
    torch.testing.assert_close(net(x.repeat(1, 1, 2, 3), noise), net(x, noise).repeat(1, 1, 2, 3), rtol=0, atol=1e-12)


def test_a_file_keeps_that_a_network_wraps_around(tmp_path):
    options = {"widths": (32, 32), "blocks": 1, "embedding": 16}
    x, sigma = normal(2, 1, 8, 8).float(), torch.tensor([0.3, 4.0])
    nets = {periodic: filled(UNet(1, 1, periodic=periodic, **options)).float() for periodic in (True, False)}
    nets[False].load_state_dict(nets[True].state_dict())
    found = {}
    for periodic, net in nets.items():
        prior = EDMDenoiser(net, sigma_data=0.7)
        prior.save(tmp_path / f"{periodic}.safetensors")
        again = load_network(tmp_path / f"{periodic}.safetensors")
        assert again.net.architecture.get("periodic", False) == periodic
        found[periodic] = again(x, sigma)
        torch.testing.assert_close(found[periodic], prior(x, sigma), rtol=1e-5, atol=1e-5)
    # the same weights, and another network
    assert float((found[True] - found[False]).abs().max()) > 1e-3
