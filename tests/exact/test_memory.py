"""Memory policies: the gradient of plain autograd, the evaluations that the theory counts, randomness and autocast replayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from invdiff.core import CapabilityError, ConfigError, NumericalError
from invdiff.core.memory import Closed, Memory, run_block, run_chain
from invdiff.core.policies import Checkpoint, DriftWarning, Full, Invertible, Offload, Revolve
from invdiff.core.reversible import Move, drift, reversible, run_moves
from invdiff.core.storage import measure

POLICIES = [
    "full",
    "checkpoint(step)",
    "checkpoint(step, 3)",
    "checkpoint(block)",
    "checkpoint(both)",
    "revolve(3)",
    "invertible",
    "offload",
]


class Body(nn.Module):
    """A small non-linear field with a block, dropout if asked for, and a condition."""

    def __init__(self, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(a, b, 3, padding=1, dtype=dtype) for a, b in ((1, 4), (4, 1)))
        for k, p in enumerate(self.parameters()):
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=dtype)
        self.dropout, self.calls, self.autocast = dropout, 0, set()

    def forward(self, x, skip=None):
        self.calls += 1
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        h = run_block(self.inner, x)
        return h if skip is None else h + torch.sin(skip) * x

    def inner(self, x):
        return self.second(nn.functional.dropout(torch.tanh(self.first(x)), self.dropout))


def chain(body, count, dtype=torch.float64, v=0.97, skip=None):
    """Moves x' = v p + 0.05 x + (0.95 - v) f(x) with learnable v, whose inverse amplifies rounding v^(-count / 2) times."""
    v = torch.tensor(v, dtype=dtype, requires_grad=True)
    inputs = () if skip is None else (skip,)
    return [Move(v, 0.05, 0.95 - v, body, inputs) for _ in range(count)], v


def pair(dtype=torch.float64):
    generator = torch.Generator().manual_seed(9)
    return tuple(torch.randn(2, 1, 6, 6, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))


def gradients(memory, count, dtype=torch.float64, **options):
    body, skip = Body(dtype, **options), torch.linspace(0, 1, 36, dtype=dtype).reshape(1, 1, 6, 6).requires_grad_()
    moves, v = chain(body, count, dtype, skip=skip)
    state = pair(dtype)
    torch.manual_seed(3)
    p, x = memory.chain(moves, state)
    loss = (x.square() + 0.3 * p.sin()).sum()
    return loss.detach(), torch.autograd.grad(loss, [*state, *body.parameters(), v, skip]), body.calls


def distance(found, wanted):
    top = sum(float((a - b).double().square().sum()) for a, b in zip(found, wanted, strict=True))
    return (top / sum(float(b.double().square().sum()) for b in wanted)) ** 0.5


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_every_policy_has_the_gradient_of_plain_autograd(text, dtype, tolerance, count):
    loss, wanted, _ = gradients(Full(), count, dtype)
    again, found, _ = gradients(Memory.parse(text), count, dtype)
    assert loss == again
    assert distance(found, wanted) < tolerance


def test_the_test_sees_a_wrong_gradient():
    _, wanted, _ = gradients(Full(), 7)
    _, found, _ = gradients(Full(), 8)
    assert distance(found, wanted) > 1e-3


@pytest.mark.parametrize("text", POLICIES)
def test_dropout_is_replayed(text):
    torch.manual_seed(1)
    loss, wanted, _ = gradients(Full(), 7, dropout=0.3)
    state = torch.get_rng_state()
    again, found, _ = gradients(Memory.parse(text), 7, dropout=0.3)
    assert loss == again
    assert distance(found, wanted) < 1e-10
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("text", POLICIES)
def test_autocast_is_replayed(text):
    """Plain autograd sums the gradients of the cast weights in bfloat16, the inverse in float32: hence the tolerance."""

    def run(memory):
        with torch.autocast("cpu", torch.bfloat16):
            body = Body(torch.float32)
            moves, _ = chain(body, 5, torch.float32)
            out = memory.chain(moves, pair(torch.float32))
        found = torch.autograd.grad(out[1].square().sum(), list(body.parameters()))
        assert body.autocast == {True}
        return found

    assert distance(run(Memory.parse(text)), run(Full())) < (4e-3 if text == "invertible" else 1e-6)


@pytest.mark.parametrize(
    ("text", "count", "evaluations"),
    [
        ("full", 25, 25),
        ("checkpoint(step)", 25, 49),
        ("checkpoint(step, 5)", 25, 45),
        ("checkpoint(step, 7)", 25, 46),
        ("checkpoint(step, 30)", 25, 25),
        ("revolve(4)", 25, 79),
        ("revolve(2)", 25, 119),
        ("invertible", 25, 50),
    ],
)
def test_evaluations(text, count, evaluations):
    body = Body()
    moves, _ = chain(body, count)
    Memory.parse(text).chain(moves, pair())  # its check of the drift happens once
    body.calls = 0
    out = Memory.parse(text).chain(moves, pair())
    torch.autograd.grad(out[1].sum(), list(body.parameters()))
    assert body.calls == evaluations


@pytest.mark.parametrize("states", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 6, 23])
def test_revolve_needs_the_fewest_evaluations(count, states):
    """Against dynamic programming over the place of the next stored state."""
    best = {}
    for n in range(1, count + 1):
        for c in range(1, states + 1):
            splits = [m + best[n - m, c - 1] + best[m, c] for m in range(1, n)] if c > 1 else [n * (n + 1) // 2]
            best[n, c] = min(splits) if n > 1 else 1
    body = Body()
    out = Revolve(states).chain(chain(body, count)[0], pair())
    out[1].sum().backward()
    assert body.calls == best[count, states] == Revolve.evaluations(count, states)


def test_a_chain_of_plain_steps_has_any_number_of_tensors():
    w = torch.tensor(0.7, requires_grad=True)

    def step(a, b, c):
        return a * w, b + a, c.sin()

    def value(memory):
        start = [torch.tensor(float(k), requires_grad=True) for k in (1, 2, 3)]
        return torch.autograd.grad(sum(memory.chain([step] * 9, tuple(start))), [w, *start])

    for text in ("checkpoint(step)", "revolve(2)", "offload"):
        assert value(Memory.parse(text)) == value(Full())
    with pytest.raises(CapabilityError, match="can't be undone"):
        value(Invertible())


def test_a_chain_that_drifts_is_recomputed_and_says_so():
    """v = 0.5 loses a factor sqrt(2) a move: 60 of them leave nothing of float32."""
    body = Body(torch.float32)
    state = pair(torch.float32)
    moves = chain(body, 60, torch.float32, v=0.5)[0]
    assert drift(moves, state) > 1e-2
    with pytest.warns(DriftWarning, match="recomputed instead"):
        out = Invertible().chain(moves, state)
    found = torch.autograd.grad(out[1].sum(), list(body.parameters()))
    wanted = torch.autograd.grad(run_moves(moves, state)[1].sum(), list(body.parameters()))
    assert distance(found, wanted) < 1e-6


def test_a_drift_nobody_checked_is_an_error_in_the_backward_pass():
    moves, state = chain(Body(torch.float32), 60, torch.float32, v=0.5)[0], pair(torch.float32)
    with pytest.raises(NumericalError, match="relative error"):
        reversible(moves, state)[1].sum().backward()


def test_no_second_derivative_without_saying_so():
    state = pair()
    out = reversible(chain(Body(), 3)[0], state)[1].square().sum()
    with pytest.raises(CapabilityError, match="second derivative"):
        torch.autograd.grad(out, state, create_graph=True)


def closed(counts):
    def step(a, b, c):
        counts.append(1)
        return a * b.cos(), b + a.sin(), c

    return Closed(step)


@pytest.mark.parametrize("memory", [Checkpoint(), Checkpoint(every=3), Revolve(2), Offload(), Checkpoint("both", 4)])
@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, True)])
def test_closed_steps_have_first_and_second_derivatives(memory, needed):
    def run(policy, counts=None):
        start = tuple(
            torch.linspace(k, k + 1, 5, dtype=torch.float64).requires_grad_(n) for k, n in zip((1, 2, 3), needed, strict=True)
        )
        out = policy.chain([closed([] if counts is None else counts)] * 8, start)
        # the last tensor of the state is passed on as it is: no gradient of it reaches the others
        loss, wanted = (out[0] * out[1]).square().sum() + out[2].sum(), [s for s in start if s.requires_grad]
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted, materialize_grads=True)
        return [*first, *second]

    for found, wanted in zip(run(memory), run(Full()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_closed_steps_are_evaluated_as_often_as_others():
    for memory, evaluations in ((Checkpoint(), 15), (Checkpoint(every=4), 12), (Revolve(2), Revolve.evaluations(8, 2))):
        counts = []
        a, b, c = (torch.ones(3, requires_grad=True) for _ in range(3))
        torch.autograd.grad(memory.chain([closed(counts)] * 8, (a, b, c))[0].sum(), a)
        assert len(counts) == evaluations, memory


@pytest.mark.parametrize("memory", [Checkpoint(), Revolve(2), Checkpoint(over="both")])
def test_second_derivatives_through_recomputation(memory):
    def hessian_product(policy):
        state = pair()
        (g,) = torch.autograd.grad(policy.chain(chain(Body(), 4)[0], state)[1].square().sum(), state[:1], create_graph=True)
        return torch.autograd.grad(g.square().sum(), state)

    assert distance(hessian_product(memory), hessian_product(Full())) < 1e-12


def test_offload_in_a_lower_precision_is_near_and_not_exact():
    _, wanted, _ = gradients(Full(), 7, torch.float32)
    _, found, _ = gradients(Offload(torch.bfloat16), 7, torch.float32)
    assert 1e-5 < distance(found, wanted) < 3e-2


def test_parameters_that_are_frozen_get_no_gradient():
    body = Body()
    body.first.requires_grad_(False)
    state = pair()
    reversible(chain(body, 3)[0], state)[1].sum().backward()
    assert body.first.weight.grad is None and body.second.weight.grad is not None and state[0].grad is not None


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("full", Full()),
        ("checkpoint", Checkpoint()),
        (" checkpoint( both ) ", Checkpoint("both")),
        ("checkpoint(step, 8)", Checkpoint("step", 8)),
        ("revolve(8)", Revolve(8)),
        ("offload(bfloat16, cpu)", Offload(torch.bfloat16)),
        (Invertible(), Invertible()),
    ],
)
def test_policies_have_names(text, policy):
    assert Memory.parse(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "checkpoint(layer)",
        "checkpoint(step, 0)",
        "checkpoint(block, 2)",
        "revolve",
        "revolve(0)",
        "offload(int8)",
        "auto(many)",
        3,
    ],
)
def test_names_that_are_none(text):
    with pytest.raises(ConfigError):
        Memory.parse(text)


def test_moves_that_have_no_inverse():
    with pytest.raises(ConfigError, match="a = 0"):
        reversible([Move(0.0, 1.0, 1.0, Body())], pair())
    p, x = pair()
    with pytest.raises(ConfigError, match="one shape"):
        reversible([Move(1.0, 0.0, 1.0, Body())], (p, x[:1]))


def test_a_reversible_chain_inside_a_checkpoint_has_all_gradients():
    v = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    w = torch.linspace(-1, 1, 3, dtype=torch.float64).requires_grad_()
    x = torch.linspace(0, 1, 6, dtype=torch.float64).view(2, 3)

    def pair(w, run):
        skip = 2 * w
        return run([Move(v, 0.0, 1 - v, lambda h, s: (h + s).tanh(), (skip,)) for _ in range(3)], (x, x))

    def gradients(p, h):
        return torch.autograd.grad((p * h).sum(), [v, w])

    wanted = gradients(*pair(w, run_moves))
    for found in (pair(w, reversible), checkpoint(pair, w, reversible, use_reentrant=False)):
        torch.testing.assert_close(gradients(*found), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("text", ["invertible", "checkpoint(both)"])
def test_skips_do_not_outlive_a_checkpoint_around_the_chain(text):
    def make():
        x = torch.ones(2, 1000, requires_grad=True)

        def step(x):
            skip = x.exp()
            with Memory.parse(text).active():
                p, h = run_chain([Move(0.5, 0.0, 0.5, lambda h, s: (h + s).tanh(), (skip,)) for _ in range(3)], (x, x))
            return p + h

        return lambda: checkpoint(step, checkpoint(step, x, use_reentrant=False), use_reentrant=False).sum()

    assert measure(make).held == 8000 + 4


def test_inputs_that_are_given_one_gradient_keep_their_own_sums():
    """Two skips that are added to f get the same cotangent from autograd, at every move."""
    skips = [torch.linspace(k, k + 1, 72, dtype=torch.float64).view(2, 1, 6, 6).requires_grad_() for k in (0, 1)]

    def gradients(run):
        moves = [Move(1.0, 0.0, 0.5, lambda x, a, b: x.tanh() + a + b, tuple(skips)) for _ in range(3)]
        p, x = run(moves, pair())
        return torch.autograd.grad((p * x).sum(), skips)

    torch.testing.assert_close(gradients(reversible), gradients(run_moves), rtol=1e-12, atol=0)


def test_the_backward_pass_of_a_chain_keeps_nothing_of_what_it_has_undone():
    """Whatever the length and however many skips are joined; n tensors of 8 kB, one for the gradient of each skip."""

    def peak(count):
        def make():
            x, skips = torch.ones(2, 1000), [torch.ones(2, 1000, requires_grad=True) for _ in range(count)]

            def body(h, s):
                return torch.cat([h, s], dim=1).tanh().view(2, 2, -1).sum(1)

            def step():
                p, h = reversible([Move(0.5, 0.0, 0.5, body, (s,)) for s in skips], (x, x))
                return (p * h).sum()

            return step

        return measure(make).peak

    # the gradients of the skips are set apart as those of leaves
    assert peak(2) == peak(12)
