"""Bytes of tensors alive at each moment of a computation, on any device, and without computing anything if asked.

Every operator that PyTorch dispatches, in the forward as in the backward pass, shows its results to a `LiveStorage`. The first
tensor on a storage adds the storage's bytes, a weak reference subtracts them when the storage is freed:

    live(t) = sum of bytes of the storages made inside and not yet freed,      peak = max_t live(t).

Views share a storage and count once; what existed before (weights, inputs, the optimiser's state) does not count. The numbers
are exact and repeat, and hold with checkpointing and with autograd Functions that compute in their backward pass. Not seen are
an operator's own workspace (cuDNN, FFT plans, the temporaries inside one operator, custom operators included), the allocator's
rounding and caching, sparse tensors, and memory from outside the dispatcher (NumPy); `torch.cuda.max_memory_allocated` sees the
first two.

Under `FakeTensorMode` tensors have shapes and no data, so that the step of a network with 100 million parameters is measured
within seconds and in a few MiB. The recipe, as `measure` has it:

    unet = UNet(...)                                    # built beforehand, with data: initialisation needs it
    def make():                                         # called among fake tensors: these cost nothing
        x, noise = torch.empty(8, 1, 256, 256), torch.zeros(8)
        return lambda: unet(x, noise).abs().mean()
    measure(make).peak

Real weights take part as they are (`allow_non_fake_inputs`); modules that read no data while they are built (`nn.Conv2d`, but
not `skip_init`) may be built in `make`, where they take no memory either. The precision (autocast) and the form of attention
must be those of the real run; code that branches on values can't be measured so.

References: Chen, Xu, Zheng, Zhuang, Pan, Tian, Training deep nets with sublinear memory cost, 2016, arXiv:1604.06174 (what the
numbers are compared for).
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveStorage", "Measured", "is_fake", "measure", "step_bytes"]

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Measured:
    """What one training step needs.

    Attributes:
        held: bytes alive between the forward and the backward pass: what autograd saved, and the result.
        peak: most bytes alive at any moment of both passes, without the gradients of the leaves.
        gradients: bytes of the gradients of the leaves (parameters, inputs).
        calls: operators dispatched in both passes, by name (`convolution`, `convolution_backward`, `mm`, ...).
        seconds: wall-clock time of both passes; without meaning for a run on fake tensors.
    """

    held: int
    peak: int
    gradients: int
    calls: Mapping[str, int] = field(repr=False)
    seconds: float


class LiveStorage(TorchDispatchMode):
    """Counts the storages made inside `with LiveStorage() as meter:`, and follows them until they are freed.

    Enter it inside a `FakeTensorMode`, not around one. Backward passes must run inside as well. A storage that was there before
    is known by its first use as an input; a tensor from NumPy or a file that appears inside is therefore taken for an old one.
    The meter keeps a few hundred bytes for each storage made, so it is for steps, not for whole trainings.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive so far.
        calls: operators dispatched so far, by name; those outside `aten` with their namespace.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.calls: Counter[str] = Counter()
        self._leaves: dict[int, weakref.ref[Tensor]] = {}
        self._serials: dict[int, int] = {}  # storages alive: their address, their number; -1 for old ones
        self._sizes: dict[int, int] = {}  # by number: addresses are used again
        self._events: list[tuple[int, int]] = []
        self._made = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, name = func._schema.name.split("::")
        if namespace != "prim":
            self.calls[name if namespace == "aten" else f"{namespace}::{name}"] += 1
        if name != "lift_fresh":  # its input is torch.tensor's new storage
            for tensor in _strided((args, kwargs)):
                self._old(tensor)
                if tensor.requires_grad and tensor.is_leaf:
                    self._leaves[id(tensor)] = weakref.ref(tensor)
        result = func(*args, **kwargs)
        results = result if isinstance(result, (tuple, list)) else (result,)
        for value, declared in zip(results, func._schema.returns, strict=False):
            for tensor in _strided(value):
                # the view of a real weight among fake tensors is on a storage of its own, yet costs nothing
                if declared.alias_info is not None and name != "lift_fresh":
                    self._old(tensor)
                self._seen(tensor)
        return result

    def leaves(self) -> list[Tensor]:
        """The tensors used so far, and still there, that a backward pass gives a gradient."""
        found = (reference() for reference in self._leaves.values())
        return [leaf for leaf in found if leaf is not None and leaf.is_leaf]  # a view gets its grad_fn after it was seen

    def held(self, *apart: Any) -> int:
        """Bytes alive now, without the storages of the tensors in `apart` (tensors, or containers of them)."""
        numbers = self._numbers(apart)
        return self.live - sum(self._sizes[n] for n in numbers)

    def peak_without(self, *apart: Any) -> int:
        """Most bytes alive so far, without the storages that the tensors in `apart` are on now, from when these were made.

        The gradient of a weight is one storage from its first contribution on, to which autograd adds in place; set apart at
        the end, it is missing at every moment.
        """
        numbers, live, peak = self._numbers(apart), 0, 0
        for number, change in self._events:
            if number not in numbers:
                live += change
                peak = max(peak, live)
        return peak

    def _numbers(self, tensors: Any) -> set[int]:
        serials = (self._serials.get(t.untyped_storage()._cdata, -1) for t in _strided(tensors))
        return {n for n in serials if n >= 0}

    def _old(self, tensor: Tensor) -> None:
        """A tensor that nothing inside has made."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._serials:
            self._follow(storage, -1)

    def _seen(self, tensor: Tensor) -> None:
        """A result: on a new storage, or on a known one that may have been resized."""
        storage = tensor.untyped_storage()
        number = self._serials.get(storage._cdata)
        if number is None:
            number, self._made = self._made, self._made + 1
            self._sizes[number] = 0
            self._follow(storage, number)
        if number >= 0:
            self._change(number, storage.nbytes() - self._sizes[number])

    def _follow(self, storage: torch.UntypedStorage, number: int) -> None:
        self._serials[storage._cdata] = number
        weakref.finalize(storage, self._freed, storage._cdata).atexit = False

    def _freed(self, address: int) -> None:
        number = self._serials.pop(address)
        if number >= 0:
            self._change(number, -self._sizes[number])

    def _change(self, number: int, change: int) -> None:
        if change:
            self._sizes[number] += change
            self._events.append((number, change))
            self.live += change
            self.peak = max(self.peak, self.live)


def measure(make: Callable[[], Callable[[], Result]], *, fake: bool = True, within: bool = False) -> Measured:
    """Memory and operators of one step, forward and, where its result requires a gradient, backward.

    Args:
        make: builds the inputs (and the model, if it is not built beforehand) and returns the step, a function without
            arguments that returns a tensor, as a loss, or several; their cotangents are ones. What `make` builds does not
            count.
        fake: on tensors without data, see above; otherwise in earnest, for the same numbers.
        within: the backward pass ends at the leaves used inside, and leaves the graph alone that a captured tensor comes from;
            not with re-entrant checkpoints.

    The gradients that the leaves had are put back.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        step = make()
        meter = LiveStorage()
        with meter:
            start = time.perf_counter()
            result = step()
            held = meter.live
            before = [(leaf, leaf.grad) for leaf in meter.leaves()]
            for leaf, _ in before:
                leaf.grad = None
            roots = [t for t in _strided(result) if t.requires_grad]
            if roots and (before or not within):
                ends = [leaf for leaf, _ in before] if within else None
                torch.autograd.backward(roots, [torch.ones_like(t) for t in roots], inputs=ends)
            seconds = time.perf_counter() - start
        gradients = [leaf.grad for leaf in meter.leaves() if leaf.grad is not None]
        size = meter.live - meter.held(gradients)
        peak = meter.peak_without(gradients)
        for leaf, gradient in before:
            leaf.grad = gradient
    return Measured(held, peak, size, dict(meter.calls), seconds)


def step_bytes(step: Callable[..., Result], state: Sequence[Tensor]) -> Measured:
    """`measure` of step(*state), with gradients for the state too; the state itself does not count.

    It is computed in earnest only where its operators need values; torch's random state is then left as it was.
    """
    # among fake tensors none may have a grad_fn: torch asks for its .grad, which is a warning
    apart = [t.detach() for t in state]

    def make() -> Callable[[], Result]:
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in apart]
        return lambda: step(*leaves)

    with torch.enable_grad():
        if any(is_fake(t) for t in state):
            return measure(make, fake=False, within=True)
        try:
            return measure(make, within=True)
        except (DataDependentOutputException, DynamicOutputShapeException):
            with torch.random.fork_rng(sorted({t.device.index for t in state if t.is_cuda})):
                return measure(make, fake=False, within=True)


def is_fake(tensor: Tensor) -> bool:
    """Whether the tensor has a shape and no data: code that checks values has nothing to check there."""
    return isinstance(tensor, FakeTensor)


def _strided(tree: Any) -> Iterable[Tensor]:
    """The tensors of a nest of containers that have one storage."""
    return (t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.layout is torch.strided)
