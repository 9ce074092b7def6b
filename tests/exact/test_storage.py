"""Live bytes against counts by hand: chains of element-wise functions, checkpoints, a layered network, a real U-Net."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from invdiff.core import Checkpoint, Full
from invdiff.core.storage import LiveStorage, is_fake, measure, step_bytes
from invdiff.priors.unet import UNet

N, SIZE = 6, 1000
TENSOR, SCALAR = 4 * SIZE, 4


def exps(y, count):
    for _ in range(count):
        y = y.exp()
    return y


def chain(every=0, reentrant=False):
    """x -> exp -> ... -> exp -> sum, N times; each exp saves its result."""

    def make():
        x = torch.full((SIZE,), -1.0, requires_grad=True)

        def step():
            y = x
            for _ in range(N // every if every else 0):
                y = checkpoint(exps, y, every, use_reentrant=reentrant)
            return (y if every else exps(y, N)).sum()

        return step

    return make


def layers():
    """Weights with data, whether or not the rest has any."""
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4, bias=False))

    def make():
        x = torch.zeros(32, 8)
        return lambda: net(x).square().mean()

    return net, make


@pytest.mark.parametrize("fake", [True, False])
def test_a_chain_holds_what_autograd_saves(fake):
    """N results and the sum; at the peak one cotangent more, and the root's 1."""
    found = measure(chain(), fake=fake)
    assert found.held == N * TENSOR + SCALAR
    assert found.peak == (N + 1) * TENSOR + 2 * SCALAR
    assert found.gradients == TENSOR
    assert (found.calls["exp"], found.calls["mul"], found.calls["sum"]) == (N, N, 1)


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("every", [1, 2, 3, 6])
def test_checkpoints_hold_their_inputs(every, fake):
    """The inputs of all segments but the first, which existed; then the last segment's results and a cotangent."""
    found = measure(chain(every), fake=fake)
    assert found.held == (N // every - 1) * TENSOR + SCALAR
    assert found.calls["exp"] == 2 * N
    assert found.peak == (N // every - 1 + every + 1) * TENSOR + 2 * SCALAR


def test_reentrant_checkpoints_run_inside_the_meter():
    found = measure(chain(2, reentrant=True), fake=False)
    assert found.held == 2 * TENSOR + SCALAR and found.calls["exp"] == 2 * N


@pytest.mark.parametrize("fake", [True, False])
def test_a_network_of_layers(fake):
    """Held: both Linears' results, GELU's, square's, the mean. x, the weights, and views of weights existed."""
    net, make = layers()
    found = measure(make, fake=fake)
    assert found.held == 4 * 32 * (16 + 16 + 4 + 0) + SCALAR
    assert found.gradients == 4 * sum(p.numel() for p in net.parameters())
    assert found.calls["mm"] == 1 + 3 and found.calls["addmm"] == 1
    assert all(p.grad is None for p in net.parameters())


def test_gradients_are_put_back():
    net, make = layers()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    first, again = measure(make, fake=False), measure(make)
    assert (first.peak, first.gradients) == (again.peak, again.gradients)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())


def test_views_and_operations_in_place_take_nothing():
    x = torch.ones(SIZE)
    with LiveStorage() as meter:
        assert meter.live == 0
        y = x[::2].view(2, -1).t()
        y.add_(1)
        assert meter.live == 0
        z = x + 1
        kept = z[:1]
        assert meter.live == TENSOR
        del z
        assert meter.live == TENSOR, "a view keeps the whole storage"
        del kept
        assert (meter.live, meter.peak) == (0, TENSOR)


def test_a_storage_counts_until_it_is_freed_and_as_it_grows():
    with LiveStorage() as meter:
        a = torch.tensor([1.0, 2.0])
        assert meter.live == 8
        b = torch.empty(10)
        b.resize_(20)
        assert meter.live == 8 + 80
        assert meter.held([a]) == 80 and meter.held(a, {"b": b}) == 0
        del b
        assert (meter.live, meter.peak) == (8, 88)
        assert meter.peak_without(a) == 80
    del a
    assert meter.live == 0, "what outlives the block is followed too"


def test_an_autograd_function_is_measured_inside():
    """Forward makes the result, backward two temporaries and the gradient."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return (g * 4).div(2)

    def make():
        x = torch.ones(SIZE, requires_grad=True)
        return lambda: Doubled.apply(x)

    found = measure(make, fake=False)
    assert found.held == TENSOR
    # result, its cotangent, g * 4; the quotient is the gradient, set apart
    assert found.peak == 3 * TENSOR


def test_inference_is_measured_without_a_backward_pass():
    def make():
        x = torch.ones(SIZE)
        return lambda: exps(x, N)

    found = measure(make)
    assert (found.held, found.peak, found.gradients) == (TENSOR, 2 * TENSOR, 0)


def test_a_shared_weight_is_one_gradient():
    """Its three contributions are added in one storage, which the peak leaves out: one product is alive at a time."""

    def make():
        w, x = torch.ones(SIZE, requires_grad=True), torch.ones(SIZE)
        return lambda: (w * x + w * x + w * x).sum()

    real, fake = measure(make, fake=False), measure(make)
    assert (real.held, real.peak, real.gradients) == (fake.held, fake.peak, fake.gradients)
    assert real.gradients == TENSOR
    assert real.held == SCALAR


def test_a_unet_without_data_needs_what_it_needs():
    """Fake and real agree to the byte, in both directions, with and without its checkpoints."""
    peaks = []
    net = UNet(1, 1, widths=(32, 32), blocks=1, embedding=16, attention=(1,))
    for policy in (Full(), Checkpoint("block")):

        def make(policy=policy):
            x, noise = torch.zeros(2, 1, 16, 16), torch.zeros(2)

            def step():
                with policy.active():
                    return net(x, noise).square().mean()

            return step

        fake, real = measure(make), measure(make, fake=False)
        assert (fake.held, fake.peak, fake.gradients) == (real.held, real.peak, real.gradients)
        assert {k: v for k, v in fake.calls.items() if "conv" in k} == {k: v for k, v in real.calls.items() if "conv" in k}
        assert fake.gradients == 4 * sum(p.numel() for p in net.parameters())
        peaks.append(fake.peak)
    assert peaks[1] < 0.7 * peaks[0]


def test_a_hundred_million_parameters_take_no_memory():
    def make():
        net = nn.Sequential(*[nn.Conv2d(1024, 1024, 3, padding=1) for _ in range(11)])
        x = torch.zeros(1, 1024, 256, 256)
        return lambda: net(x).mean()

    found = measure(make)
    assert found.held == 10 * 4 * 1024 * 256**2 + SCALAR
    assert found.gradients == 11 * 4 * (1024 * 1024 * 9 + 1024)
    assert found.calls["convolution"] == found.calls["convolution_backward"] == 11


def test_step_bytes_of_a_state():
    """One exp: its result; the backward pass adds the cotangent, and the gradient is set apart."""
    found = step_bytes(lambda x: (x.exp(),), (torch.ones(SIZE),))
    assert (found.held, found.peak, found.gradients) == (TENSOR, 2 * TENSOR, TENSOR)


def test_step_bytes_computes_where_values_are_needed():
    seen = []

    def step(x):
        y = x.exp() * torch.rand(())
        seen.append(is_fake(y))
        return (y if float(y.abs().max()) > 0 else x,)

    before = torch.get_rng_state()
    found = step_bytes(step, (torch.ones(SIZE),))
    assert seen == [True, False] and found.held == 2 * TENSOR + SCALAR
    assert torch.equal(torch.get_rng_state(), before)


def test_the_meter_sees_what_must_not_be_kept():
    """A result kept by accident is seen, and nothing is kept by the meter."""
    kept = []

    def make(keep):
        x = torch.ones(SIZE, requires_grad=True)

        def step():
            y = x * 2
            kept.extend([y.detach()] * keep)
            return y.sum()

        return step

    clean, leaky = measure(lambda: make(False)), measure(lambda: make(True))
    assert leaky.held - clean.held == TENSOR
    with LiveStorage() as meter:
        x = torch.ones(SIZE, requires_grad=True)
        gone = weakref.ref(x)
        x.exp().sum().backward()
        del x
    gc.collect()
    assert gone() is None and meter.leaves() == [] and meter.live == 0
