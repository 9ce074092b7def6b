"""Memory policies where chains are odd: random, empty, of captured tensors, and what was measured of another network."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from invdiff.core import CapabilityError, ConfigError, Gaussian, Memory, Problem
from invdiff.core.policies import Auto, Checkpoint, DriftWarning, Full, Invertible, Revolve
from invdiff.core.reversible import Move, drift, reversible, run_moves
from invdiff.core.storage import measure, step_bytes
from invdiff.operators import BlockCS
from invdiff.priors import EDMDenoiser, UNet
from invdiff.samplers.idm import IDM
from invdiff.samplers.idm_network import IDMNetwork

F64 = torch.float64
POLICIES = ["checkpoint(step)", "checkpoint(both)", "revolve(2)", "invertible", "offload", "auto(1GiB)", "auto(500KiB)"]


def linear(scale=0.3, seed=0, dtype=F64):
    layer = nn.Linear(8, 8, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype))
    return layer


def pair(shape=(2, 8), dtype=F64):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, x):
        return nn.functional.dropout(self.layer(x), 0.5)


def test_the_first_chain_of_a_network_with_dropout_draws_what_plain_autograd_draws():
    """The check of the drift neither takes another mask on the way back, nor leaves the random state elsewhere."""
    body, state = Dropped(), pair()
    moves = [Move(0.9, 0.0, 0.1, body) for _ in range(5)]

    def gradients(memory):
        torch.manual_seed(4)
        p, x = memory.chain(moves, state)
        return torch.autograd.grad((p * x).sum(), list(body.parameters()))

    torch.testing.assert_close(gradients(Invertible()), gradients(Full()), rtol=1e-12, atol=1e-14)
    assert drift(moves, state) < 1e-14


def test_what_was_measured_of_one_network_is_not_said_of_another():
    """A weight of 1e4 loses all digits of float32 in eight moves, one of 0.3 none; both orders."""
    state = pair(dtype=torch.float32)

    def run(scale):
        body = linear(scale, dtype=torch.float32)
        moves = [Move(0.9, 0.05, 0.05, body) for _ in range(8)]
        Invertible().chain(moves, state)[1].sum().backward()

    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(0.3)
        with pytest.warns(DriftWarning):
            run(1e4)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 8), (2, 0), (1, 8)])
def test_states_of_any_shape(shape):
    def gradients(memory):
        w = torch.tensor(0.7, dtype=F64, requires_grad=True)
        state = pair(shape)
        p, x = memory.chain([Move(0.9, 0.1, 0.2, lambda h, w: (h * w).sin(), (w,)) for _ in range(3)], state)
        return torch.autograd.grad((p + x * x).sum(), [w, *state])

    torch.testing.assert_close(gradients(Invertible()), gradients(Full()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("text", ["full", *POLICIES])
def test_a_chain_without_steps_is_the_state(text):
    state = pair()
    assert Memory.parse(text).chain([], state) is state


def test_a_tensor_that_no_move_names_is_an_error_and_no_lost_gradient():
    """Captured by a function: a weight, or what comes from a tensor that requires a gradient."""
    layer, state = linear(), pair()
    gain = torch.tensor(2.0, dtype=F64, requires_grad=True)
    captured = 3 * gain
    for body, parameters in ((lambda x: layer(x), ()), (lambda x: layer(x) * captured, tuple(layer.parameters()))):
        out = reversible([Move(0.9, 0.0, 0.1, body, parameters=parameters)], state)
        with pytest.raises(CapabilityError, match="neither in inputs nor in parameters"):
            out[1].sum().backward()
    layer.requires_grad_(False), gain.requires_grad_(False)
    captured = 3 * gain
    reversible([Move(0.9, 0.0, 0.1, lambda x: layer(x) * captured)], state)[1].sum().backward()
    assert state[1].grad is not None


def test_a_weight_that_is_frozen_before_the_backward_pass_gets_no_gradient():
    layer, state = linear(), pair()
    out = reversible([Move(0.9, 0.0, 0.1, layer) for _ in range(2)], state)
    layer.bias.requires_grad_(False)
    (wanted,) = torch.autograd.grad(run_moves([Move(0.9, 0.0, 0.1, layer) for _ in range(2)], state)[1].sum(), layer.weight)
    out[1].sum().backward()
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-12, atol=0)
    assert layer.bias.grad is None


def test_a_graph_that_is_kept_is_differentiated_again():
    layer = linear()
    p, x = reversible([Move(0.9, 0.0, 0.1, layer) for _ in range(3)], pair())
    loss = (p * x).sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, list(layer.parameters()))))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, list(layer.parameters()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Full(blocks="inverted"), "blocks"),
        (lambda: Checkpoint("both", blocks="none"), "blocks"),
        (lambda: Revolve(2.5), "integer"),
        (lambda: Invertible(digits=0.0), "digits > 0"),
        (lambda: Auto(0), "budget > 0"),
        (lambda: reversible([Move(torch.ones(1), 0.0, 1.0, linear())], pair()), r"tensors \(\), got shapes \[\(1,\)\]"),
    ],
)
def test_what_is_no_policy_and_no_move(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_move_with_a_zero_can_not_be_undone():
    with pytest.raises(CapabilityError, match="can't be undone"):
        Invertible().chain([Move(0.0, 0.0, 1.0, linear())], pair())


def idm(dtype):
    net = UNet(1, 1, widths=[32, 32], blocks=1, embedding=8)
    network, generator = (
        IDMNetwork(EDMDenoiser(net, sigma_data=0.25, mean=0.4), steps=2).to(dtype),
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for p in network.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator, dtype=dtype)
    operator = BlockCS((1, 8, 8), ratio=0.4, block=8, seed=2)
    x = 0.4 + 0.25 * torch.randn(2, 1, 8, 8, generator=generator, dtype=dtype)
    return network, operator, x


@pytest.mark.parametrize(
    "memory", [*map(Memory.parse, POLICIES), Full(blocks="invert"), Checkpoint(blocks="invert")], ids=lambda m: str(m)[:32]
)
def test_idm_is_differentiated_by_the_measurement(memory):
    """The measurement enters every step and every injector, and comes from a graph of its own."""
    network, operator, x = idm(F64)
    source = operator(x).requires_grad_()

    def gradient(memory):
        return torch.autograd.grad((network(operator, source.exp().log(), memory) - x).abs().mean(), source)[0]

    wanted = gradient(Full())
    assert (gradient(memory) - wanted).norm() < 1e-12 * wanted.norm()


# torch hides it, but not from a filter that makes errors of warnings
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_measured_step_leaves_the_graph_of_what_it_captures():
    scale = torch.ones(1000, requires_grad=True)
    captured = scale.exp()
    state = (torch.ones(1000, requires_grad=True),)

    def step(x):
        return ((x * captured).sin(),)

    for memory in (Auto(2**20), Auto(2**15)):
        (found,) = torch.autograd.grad(memory.chain([step] * 3, state)[0].sum(), scale, retain_graph=True)
        (wanted,) = torch.autograd.grad(Full().chain([step] * 3, state)[0].sum(), scale, retain_graph=True)
        torch.testing.assert_close(found, wanted)
    assert step_bytes(step, state).held > 0 and scale.grad is None


def test_an_invertible_chain_without_data_is_measured():
    """A pair of states at the end of the chain, whatever its length: 16 kB, and the loss."""

    def held(steps):
        def make():
            x, v = torch.ones(2, 1000), torch.tensor(0.9, requires_grad=True)
            moves = [Move(v, 0.0, 0.1, torch.tanh) for _ in range(steps)]
            return lambda: Invertible().chain(moves, (x, x))[1].sum()

        return measure(make).held

    assert held(4) == held(12)


def test_a_run_in_another_precision_leaves_the_network_of_the_sampler_as_it_is():
    network, operator, x = idm(torch.float32)
    weight = network.log_sigma.detach().clone()
    problem = Problem(operator, Gaussian(0.01), operator(x[:1].double()))
    draws = IDM(network=network, steps=2)(problem, network.denoiser, seed=0)
    assert draws.x.dtype == F64 and torch.equal(network.log_sigma, weight) and network.log_sigma.dtype == torch.float32
    with torch.no_grad():
        wanted = copy.deepcopy(network).double()(operator, problem.y)
    torch.testing.assert_close(draws.x, wanted, rtol=1e-12, atol=1e-12)


def test_weights_cast_without_a_graph_are_not_kept_for_those_who_want_one():
    """Older releases of PyTorch would take them from the cache, and lose the gradient of the weights."""
    seen = []

    class Seeing(nn.Linear):
        def forward(self, x):
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
            return super().forward(x)

    with torch.autocast("cpu", torch.bfloat16):
        moves = [Move(0.9, 0.0, 0.1, Seeing(8, 8)) for _ in range(2)]
        Invertible().chain(moves, pair(dtype=torch.float32))[1].sum().backward()
        assert torch.is_autocast_cache_enabled()
    # two moves, checked forth and back, then forward and backward
    assert seen == [(True, False)] * 8
