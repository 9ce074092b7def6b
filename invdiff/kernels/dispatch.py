"""Which form of a kernel runs: the torch form, which is the reference, or the Triton form, where it is switched on.

Every kernel has a torch form that runs everywhere. Its Triton form is used where the tensors are on a CUDA device that Triton
compiles for, or the process runs Triton's interpreter (TRITON_INTERPRET=1, any device, slow, for tests), and only if the kernel
is switched on: one that was never measured on a GPU is off by default, and none was. The environment variable INVDIFF_KERNELS
("all", "none" or names joined by commas) says what is on when the process starts.

The choice is the process's, not the thread's: autograd runs backward passes on threads of its own.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.utils._triton import has_triton

from ..core.errors import ConfigError

__all__ = ["NAMES", "disable", "enable", "enabled", "interpreting", "own_backward", "transformed", "use_triton", "using"]

NAMES = ("group_norm", "gate", "wavelet", "projector", "update")
_DEFAULT: frozenset[str] = frozenset()  # a name comes in here when docs record its times on a GPU

_on: frozenset[str] | None = None  # None until somebody asks, so that a wrong environment is no failing import


def enabled() -> frozenset[str]:
    """The kernels that are switched on.

    Raises:
        ConfigError: INVDIFF_KERNELS has an unknown name.
    """
    global _on
    if _on is None:
        _on = _from_environment()
    return _on


def enable(*names: str) -> None:
    """Switch kernels on, in the whole process.

    Raises:
        ConfigError: a name is unknown.
    """
    global _on
    _on = enabled() | _known(names)


def disable(*names: str) -> None:
    """Switch kernels off, in the whole process.

    Raises:
        ConfigError: a name is unknown.
    """
    global _on
    _on = enabled() - _known(names)


@contextmanager
def using(*names: str) -> Iterator[None]:
    """Exactly these kernels on, the others off, in the whole process, inside the `with` block; `using()` is torch alone.

    Raises:
        ConfigError: a name is unknown.
    """
    global _on
    before, _on = enabled(), _known(names)
    try:
        yield
    finally:
        _on = before


def use_triton(*tensors: Tensor, kernel: str) -> bool:
    """Whether the Triton form of `kernel` is to be used for these tensors.

    True if the kernel is switched on, and all tensors are on CUDA and Triton compiles for it, or the process runs Triton's
    interpreter.

    Raises:
        ConfigError: the kernel is unknown.
    """
    _known((kernel,))
    if kernel not in enabled():
        return False
    return interpreting() or (all(t.is_cuda for t in tensors) and has_triton())


def own_backward(kernel: str, *tensors: Tensor | None) -> bool:
    """Whether an operation with a backward pass of its own serves here, and not rather what it is made of.

    It does not in forward mode, nor under `torch.func`. In a graph that is compiled it does only for a Triton form, because
    compilers fuse torch's operations.
    """
    if torch.compiler.is_compiling():
        return kernel in enabled() and all(t is None or t.is_cuda for t in tensors)
    return not transformed() and (
        forward_ad._current_level < 0 or all(t is None or forward_ad.unpack_dual(t).tangent is None for t in tensors)
    )


def transformed(*gradients: Tensor) -> bool:
    """Whether a `torch.func` transform is running, or these are batches of gradients (`is_grads_batched`)."""
    return _functorch.peek_interpreter_stack() is not None or any(map(_functorch.is_legacy_batchedtensor, gradients))


def interpreting() -> bool:
    """Whether the process runs Triton's interpreter: TRITON_INTERPRET=1 and Triton is installed."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y") and (
        importlib.util.find_spec("triton") is not None
    )


def _known(names: Iterable[str], who: str = "kernels: expected names") -> frozenset[str]:
    """The names as a set, if all are kernels."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ConfigError(f"{who} out of {', '.join(NAMES)}, got {', '.join(map(repr, unknown))}")
    return frozenset(names)


def _from_environment() -> frozenset[str]:
    """What INVDIFF_KERNELS says, or the default."""
    said = os.environ.get("INVDIFF_KERNELS", "").strip()
    if said in ("", "all", "none"):
        return {"": _DEFAULT, "all": frozenset(NAMES), "none": frozenset[str]()}[said]
    return _known([name.strip() for name in said.split(",")], "INVDIFF_KERNELS: expected all, none, or names")
