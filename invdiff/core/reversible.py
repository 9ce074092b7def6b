"""Chains that are differentiated from their last state alone, because every step can be undone.

A move turns a pair of tensors (p, x) into

    (x, n),    n = a p + b x + c f(x),        undone by    p = (n - b x - c f(x)) / a

for any function f and numbers a != 0, b, c. The same evaluation of f serves the inverse and the derivative: with the
cotangents (g_x, g_n) of the result,

    g_p = a g_n,    g_x <- g_x + b g_n + c J_f^T g_n,    da = <p, g_n>,    db = <x, g_n>,    dc = <f, g_n>.

A chain of N moves costs N evaluations forward and N in the backward pass, and keeps two tensors whatever N is. Exact-inversion
samplers, reversible networks and the coupling of invertible fine-tuning are such chains, with other a, b, c:

    affine coupling   a = v     b = 0       c = 1 - v       IDM, both levels
    additive          a = 1     b = -1      c = 1           p + (f(x) - x), the reversible residual network
    momentum          a = -g    b = 2 g     c = 1 - g       x + g (x - p) + (1 - g) (f(x) - x)

Undoing a move divides rounding errors by a: `drift` measures what is left after a whole chain.

References: Gomez, Ren, Urtasun, Grosse, The reversible residual network, NeurIPS 2017, arXiv:1707.04585. Chen, Zhang, Li,
Zhang, Invertible diffusion models for compressed sensing, 2024, arXiv:2403.17006. Sander, Ablin, Blondel, Peyre, Momentum
residual neural networks, ICML 2021, arXiv:2102.07870.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .errors import CapabilityError, ConfigError, NumericalError

__all__ = ["Move", "Pair", "drift", "reversible", "run_moves"]

Pair = tuple[Tensor, Tensor]
Number = float | Tensor

# of every item, how many elements of the first state are kept to see whether the inverse comes back to it
_PROBE = 256


@dataclass(frozen=True, eq=False)
class Move:
    """(p, x) -> (x, a p + b x + c body(x, *inputs)).

    Args:
        a, b, c: numbers, or tensors () that receive a gradient.
        body: f, a function of x and of `inputs`; None where c = 0.
        inputs: further tensors that f depends on and that receive a gradient: skips, conditions. What is not named here, and is
            no parameter, must not require a gradient.
        parameters: of f; those of the body if it is a module and None is given.
    """

    a: Number
    b: Number
    c: Number
    body: Callable[..., Tensor] | None = None
    inputs: tuple[Tensor, ...] = ()
    parameters: tuple[Tensor, ...] | None = field(default=None)

    def __call__(self, p: Tensor, x: Tensor) -> Pair:
        """The pair after the move."""
        return x, self.combine(p, x, self.evaluate(x, *self.inputs))

    def evaluate(self, x: Tensor, *inputs: Tensor) -> Tensor | None:
        """f(x) in the dtype of x."""
        return None if self.body is None else self.body(x, *inputs).to(x.dtype)

    def combine(self, p: Tensor, x: Tensor, f: Tensor | None) -> Tensor:
        """n, in the dtype of the pair."""
        n = self.a * p
        if not _is_zero(self.b):
            n = n + self.b * x
        return n if f is None else n + self.c * f

    def undo(self, x: Tensor, n: Tensor, f: Tensor | None) -> Tensor:
        """p."""
        rest = n if f is None else n - self.c * f
        if not _is_zero(self.b):
            rest = rest - self.b * x
        return rest / self.a

    def depends_on(self) -> tuple[Tensor, ...]:
        """The parameters of f that want a gradient."""
        own = self.parameters
        if own is None:
            own = tuple(self.body.parameters()) if isinstance(self.body, nn.Module) else ()
        return tuple(t for t in own if t.requires_grad)


def run_moves(moves: Sequence[Callable[..., Pair]], pair: Pair) -> Pair:
    """The pair after all moves, by plain autograd."""
    for move in moves:
        pair = move(*pair)
    return pair


def reversible(moves: Sequence[Move], pair: Pair, *, digits: float = 3.0) -> Pair:
    """The pair after all moves; the backward pass reconstructs every state from the last.

    Randomness of torch's global generator and autocast are the same in the backward pass as they were. There is no second
    derivative, no forward mode and no vmap: use another memory policy for those.

    Args:
        digits: relative agreement, in decimal digits, of the first pair with what the backward pass reconstructs of it.

    Raises:
        ConfigError: a is zero, a, b or c is a tensor of another shape than (), or the pair is not of one shape and dtype.
        NumericalError: in the backward pass, that fewer digits were left.
        CapabilityError: in the backward pass, that its own derivative is asked for, or that of a tensor which no move names.
    """
    p, x = pair
    if p.shape != x.shape or p.dtype != x.dtype or not p.is_floating_point():
        raise ConfigError(
            f"reversible: expected a pair of real tensors of one shape and dtype, got {tuple(p.shape)} {p.dtype} and "
            f"{tuple(x.shape)} {x.dtype}"
        )
    for move in moves:
        if _is_zero(move.a):
            raise ConfigError("reversible: a move with a = 0 has no inverse")
        shapes = [tuple(v.shape) for v in (move.a, move.b, move.c) if isinstance(v, Tensor)]
        if any(shapes):
            raise ConfigError(f"reversible: expected a, b and c to be numbers or tensors (), got shapes {shapes}")
    if not (torch.is_grad_enabled() and moves):
        return run_moves(moves, pair)
    # each tensor once, whichever moves share it: its gradient is summed in one place
    tensors: dict[int, Tensor] = {}
    places: dict[int, int] = {}
    for move in moves:
        for t in (move.a, move.b, move.c, *move.inputs, *move.depends_on()):
            if isinstance(t, Tensor):
                tensors[id(t)] = t
                places.setdefault(id(t), len(places))
    links = tuple(_Link.of(move, places) for move in moves)
    out: Pair = _Chain.apply(links, digits, p, x, *tensors.values())  # type: ignore[no-untyped-call]
    return out


@torch.no_grad()
def drift(moves: Sequence[Move], pair: Pair) -> float:
    """The largest relative error, over both tensors and all items, after all moves and back.

    What is random is the same on the way back, and torch's random state is left as it was.
    """
    (p, x), states = pair, []
    with _replayed(_random_state(p)), torch.autocast(**_autocast(p)):
        for move in moves:
            states.append(_random_state(p) if move.body is not None else None)
            p, x = move(p, x)
        for move, random in zip(reversed(moves), reversed(states), strict=True):
            with _replayed(random):
                f = move.evaluate(p, *move.inputs)
            p, x = move.undo(p, x, f), p
    return max(_distance(found, wanted) for found, wanted in zip((p, x), pair, strict=True))


@dataclass(frozen=True, eq=False)
class _Link:
    """A move without its tensors but the parameters that wanted a gradient, and their places in a list.

    Tensors may be kept for the backward pass as saved tensors only: what else holds them keeps them alive through a checkpoint
    around the chain, and within one the saved ones are others, recomputed.
    """

    move: Move
    numbers: tuple[int | None, ...]
    inputs: tuple[int, ...]
    own: tuple[int, ...]

    @staticmethod
    def of(move: Move, places: dict[int, int]) -> _Link:
        numbers = (move.a, move.b, move.c)
        bare = [1.0 if isinstance(v, Tensor) else v for v in numbers]
        own = move.depends_on()
        return _Link(
            replace(move, a=bare[0], b=bare[1], c=bare[2], inputs=(), parameters=own),
            tuple(places[id(v)] if isinstance(v, Tensor) else None for v in numbers),
            tuple(places[id(t)] for t in move.inputs),
            tuple(places[id(t)] for t in own),
        )

    def on(self, tensors: Sequence[Tensor]) -> Move:
        """The move, with the tensors in their places."""
        bare = (self.move.a, self.move.b, self.move.c)
        a, b, c = (v if k is None else tensors[k] for v, k in zip(bare, self.numbers, strict=True))
        return replace(self.move, a=a, b=b, c=c, inputs=tuple(tensors[k] for k in self.inputs))


class _Chain(torch.autograd.Function):
    """The moves, with a backward pass that undoes them."""

    @staticmethod
    def forward(ctx: Any, links: tuple[_Link, ...], digits: float, p: Tensor, x: Tensor, *tensors: Tensor) -> Pair:
        ctx.links, ctx.digits, ctx.autocast, ctx.random = links, digits, _autocast(p), []
        probe = [_probe(t) for t in (p, x)]
        moves = [link.on(tensors) for link in links]
        with torch.autocast(**ctx.autocast):
            for move in moves:
                ctx.random.append(_random_state(p) if move.body is not None else None)
                p, x = move(p, x)
        # an output that is an input has to be another tensor
        p, x = p.clone() if len(moves) == 1 else p, x
        ctx.save_for_backward(p, x, *probe, *tensors)
        return p, x

    @staticmethod
    def backward(ctx: Any, g_x: Tensor, g_n: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise CapabilityError("reversible: has no second derivative: use memory full or checkpoint")
        x, n, probe_p, probe_x, *tensors = ctx.saved_tensors
        # the last state is given up as the one before it is known, unless the graph is kept
        ctx.maybe_clear_saved_tensors()
        needed: Sequence[bool] = ctx.needs_input_grad[4:]
        sums: dict[int, Tensor] = {}

        def add(place: int | None, gradient: Tensor | None) -> None:
            if place is not None and needed[place] and gradient is not None:
                # not in place: two inputs of f may have been given one tensor
                sums[place] = sums[place] + gradient if place in sums else _alone(gradient)

        for link, random in zip(reversed(ctx.links), reversed(ctx.random), strict=True):
            move = link.on(tensors)
            f, by_c, pull = _linearised(move, link, x, g_n, needed, ctx.autocast, random)
            # before the derivative of f, which needs neither n nor the value of f
            p = move.undo(x, n, f)
            del n, f
            add(link.numbers[0], _inner(p, g_n, move.a))
            add(link.numbers[1], _inner(x, g_n, move.b))
            add(link.numbers[2], by_c)
            if pull is not None:
                first, others = pull()
                g_x = g_x + first
                for place, gradient in others:
                    add(place, gradient)
                del first, others
            del pull
            g_p = move.a * g_n
            if not _is_zero(move.b):
                g_x = g_x + move.b * g_n
            x, n, g_x, g_n = p, x, g_p, g_x
        _require_return(((x, probe_p), (n, probe_x)), ctx.digits)
        return None, None, g_x, g_n, *(sums.get(k) for k in range(len(tensors)))


def _linearised(
    move: Move, link: _Link, x: Tensor, g_n: Tensor, needed: Sequence[bool], autocast: dict[str, Any], random: Any
) -> tuple[Tensor | None, Tensor | None, Callable[[], tuple[Tensor, list[tuple[int, Tensor | None]]]] | None]:
    """f(x), detached, <f(x), g_n>, and what gives (c J_x^T g_n, [(a tensor's place, its gradient)]) from the graph of f."""
    if move.body is None:
        return None, None, None
    with torch.enable_grad(), torch.autocast(**autocast), _replayed(random):
        leaf = x.detach().requires_grad_()
        inputs = [t.detach().requires_grad_(needed[k]) for t, k in zip(move.inputs, link.inputs, strict=True)]
        out = move.evaluate(leaf, *inputs)
    assert out is not None
    with torch.enable_grad():
        # differentiated in the place of f: its graph holds g_n, and the value of f is free
        inner = (out * g_n).sum()
    wanted = [(k, t) for k, t in zip(link.inputs, inputs, strict=True) if t.requires_grad]
    # those frozen since then get none
    wanted += [(k, t) for k, t in zip(link.own, move.parameters or (), strict=True) if needed[k] and t.requires_grad]
    _require_named(inner, [leaf, *(t for _, t in wanted)])

    def pull() -> tuple[Tensor, list[tuple[int, Tensor | None]]]:
        if not inner.requires_grad:
            return torch.zeros_like(x), []
        c = torch.ones_like(inner) * move.c
        first, *others = torch.autograd.grad(inner, [leaf, *(t for _, t in wanted)], c, allow_unused=True)
        zero = torch.zeros_like(x) if first is None else first
        return zero, [(k, gradient) for (k, _), gradient in zip(wanted, others, strict=True)]

    return out.detach(), inner.detach(), pull


def _require_named(value: Tensor, named: Sequence[Tensor]) -> None:
    """Whether the graph of a value ends in these tensors only: the gradient of another one would be lost."""
    known, seen, nodes = {id(t) for t in named}, set(), [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in known:  # type: ignore[attr-defined]
            found = node.variable  # type: ignore[attr-defined]
            raise CapabilityError(
                f"reversible: the body of a move depends on a tensor of shape {tuple(found.shape)} that requires a gradient, "
                "and has it neither in inputs nor in parameters: name it there, detach it, or use memory checkpoint"
            )


def _alone(gradient: Tensor) -> Tensor:
    """The gradient on a storage of its own: that of one of several joined tensors is a view that keeps the others'."""
    return gradient.clone() if gradient.untyped_storage().nbytes() > gradient.numel() * gradient.element_size() else gradient


def _inner(a: Tensor, b: Tensor, coefficient: Number) -> Tensor | None:
    return (a * b).sum() if isinstance(coefficient, Tensor) else None


def _is_zero(value: Number) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _distance(found: Tensor, wanted: Tensor) -> float:
    if not wanted.numel():
        return 0.0
    error = _items(found - wanted).double().norm(dim=1) / _items(wanted).double().norm(dim=1).clamp_min(1e-30)
    return float(error.max()) if bool(torch.isfinite(error).all()) else float("inf")


def _items(t: Tensor) -> Tensor:
    """One row for each item."""
    return t.flatten(1) if t.ndim > 1 else t.reshape(-1, 1)


def _probe(t: Tensor) -> Tensor:
    """Some elements of each item."""
    flat = _items(t)
    return flat[:, :: max(1, flat.shape[1] // _PROBE)].clone()


def _require_return(pairs: Sequence[tuple[Tensor, Tensor]], digits: float) -> None:
    if any(isinstance(t, FakeTensor) or not t.numel() for t, _ in pairs):
        return
    scale = max(float(probe.abs().max()) for _, probe in pairs) or 1.0
    worst = max(float((_probe(t) - probe).abs().max()) for t, probe in pairs) / scale
    if not worst <= 10.0**-digits:
        raise NumericalError(
            f"reversible: the backward pass reconstructs the first state with a relative error of {worst:.1e}, more than "
            f"1e-{digits:g}: the coupling amplifies rounding too much for so many steps; use memory checkpoint, or float64"
        )


def _autocast(t: Tensor) -> dict[str, Any]:
    kind = t.device.type
    # without its cache of cast weights: older releases of PyTorch use those cast without a graph again where one is wanted
    return {
        "device_type": kind,
        "dtype": torch.get_autocast_dtype(kind),
        "enabled": torch.is_autocast_enabled(kind),
        "cache_enabled": False,
    }


def _random_state(t: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(t.device) if t.is_cuda else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None] | None) -> Iterator[None]:
    if state is None:
        yield
        return
    cpu, cuda = state
    with torch.random.fork_rng([torch.cuda.current_device()] if cuda is not None else []):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        yield
