"""The tensors an operator is made of: derived once in float64, used in the precision and on the device of the input.

One operator then serves float32 and float64 alike, exact to the rounding of either, whatever `.float()`, `.double()` or `.to()`
have been called; a call with a new precision derives its constants again rather than promote rounded ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Constants", "as_given"]


class Constants(nn.Module):
    """Constants of an operator, derived from what defines it.

    Args:
        derive: float64, complex128 or sparse CSR tensors from the given ones, on the CPU; a plain function or a partial of one.
        given: tensors that define the operator, kept as buffers in the precision they have; only their device can change.
    """

    def __init__(self, derive: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> None:
        super().__init__()
        self.derive, self.count = derive, len(given)
        for i, tensor in enumerate(given):
            self.register_buffer(f"given{i}", tensor, persistent=False)
        self._cache: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def forward(self, like: Tensor) -> tuple[Tensor, ...]:
        """The constants in the precision and on the device of `like`."""
        key = (like.real.dtype if like.is_complex() else like.dtype, like.device)
        if key not in self._cache:
            # a tensor made under inference_mode could not be used by autograd later
            with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
                derived = self.derive(*(getattr(self, f"given{i}").cpu() for i in range(self.count)))
                self._cache[key] = tuple(_cast(t, *key) for t in derived)
        return self._cache[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Constants:
        # an integer tensor follows the device and not the precision (nor does it lose an imaginary part)
        for name, tensor in self._buffers.items():
            self._buffers[name] = tensor.to(fn(tensor.new_empty(0, dtype=torch.int64)).device)
        return self

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": {}}


def as_given(*tensors: Tensor) -> tuple[Tensor, ...]:
    """For constants that are the given tensors themselves."""
    return tensors


def _cast(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if tensor.is_complex():
        return tensor.to(device, torch.promote_types(dtype, torch.complex32))
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
