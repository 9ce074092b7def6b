"""Black boxes: forward models of which nothing is known but their values.

    BlackBox     a function from NumPy arrays to NumPy arrays
    Subprocess   a program that reads a .npy file and writes one

They offer "forward" alone, see `capabilities`, and so does whatever is composed of them; `EnKG` and `SCG` need no more. An
attempt to differentiate them is an error, never a gradient of zero. Each item counts as one call.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.errors import CapabilityError, ConfigError, DataError, ShapeError, require_positive
from ..core.operator import Operator

__all__ = ["BlackBox", "Subprocess"]

Array = npt.NDArray[Any]

# characters of a program's stderr that an error quotes
QUOTED = 2000


class _Opaque(Operator):
    """Base of both: subclasses write `evaluate`, an array of one item, or of a batch where `batched`, to another."""

    differentiable: ClassVar[bool] = False

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        batched: bool = False,
        in_complex: bool = False,
        out_complex: bool = False,
    ) -> None:
        super().__init__(tuple(in_shape), tuple(out_shape), in_complex=in_complex, out_complex=out_complex)
        self.batched = batched

    def evaluate(self, x: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__} does not define evaluate(x)")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Values.apply(x, self)  # type: ignore[no-untyped-call]
        return out

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """A black box has none."""
        _refuse(self)

    def jvp(self, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """A black box has none."""
        _refuse(self)

    def _values(self, x: Tensor) -> Tensor:
        # a copy, which the other side may write on
        array = x.detach().resolve_conj().cpu().numpy().copy()
        if self.batched:
            out = self._checked(self.evaluate(array), (len(array), *self.out_shape)) if len(array) else None
        else:
            items = [self._checked(self.evaluate(item), self.out_shape) for item in array]
            out = np.stack(items) if items else None
        kind = torch.promote_types(x.real.dtype, torch.complex64) if self.out_complex else x.real.dtype
        if out is None:
            return torch.zeros(0, *self.out_shape, dtype=kind, device=x.device)
        return torch.from_numpy(np.ascontiguousarray(out)).to(x.device, kind)

    def _checked(self, out: object, shape: tuple[int, ...]) -> Array:
        array = np.asarray(out)
        kinds = "biufc" if self.out_complex else "biuf"
        if array.shape != shape or array.dtype.kind not in kinds:
            raise ShapeError(
                f"{type(self).__name__}: expected {self.extra_repr()} to return {'complex' if self.out_complex else 'real'} "
                f"numbers of shape {shape}, got {array.dtype} of shape {array.shape}"
            )
        # the machine's own byte order, and strides that are not negative
        return np.array(array, dtype=array.dtype.newbyteorder("="), copy=True)


class _Values(torch.autograd.Function):
    """x -> the values; whoever asks for a derivative is told that there is none."""

    @staticmethod
    def forward(x: Tensor, operator: _Opaque) -> Tensor:
        return operator._values(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        _refuse(ctx.operator)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> NoReturn:
        _refuse(ctx.operator)


def _refuse(operator: Operator) -> NoReturn:
    raise CapabilityError(
        f"{type(operator).__name__} ({operator.extra_repr()}) offers values and no derivative: use a sampler that needs "
        "forward alone, such as EnKG or SCG"
    )


class BlackBox(_Opaque):
    """A function of NumPy arrays as an operator.

    It gets an array of its own, in the precision of the run, and may return any real (complex, where `out_complex`) numbers,
    which are rounded to it. What it raises is passed on as it is.

    Args:
        function: (*in_shape) -> (*out_shape), or (B, *in_shape) -> (B, *out_shape) where `batched`; a deterministic one.
        in_shape, out_shape: shapes without the batch.
        batched: whether it takes a batch; else it is called for each item.
        in_complex, out_complex: whether the spaces are complex.

    Raises:
        ConfigError: the function can't be called.
        ShapeError: the function returns another shape, or numbers of another kind.
    """

    def __init__(
        self,
        function: Callable[[Array], Array],
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        batched: bool = False,
        in_complex: bool = False,
        out_complex: bool = False,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"BlackBox: expected function to be callable, got {function!r}")
        super().__init__(in_shape, out_shape, batched=batched, in_complex=in_complex, out_complex=out_complex)
        self.function = function

    def evaluate(self, x: Array) -> Array:
        """The function itself."""
        return self.function(x)

    def extra_repr(self) -> str:
        # without an address, so that a resumed run knows it again
        kind = type(self.function)
        named = self.function if hasattr(self.function, "__qualname__") else kind
        return f"{named.__module__}.{named.__qualname__}"


class Subprocess(_Opaque):
    """A program as an operator: it reads the unknown from a .npy file and writes the measurement to another.

    It is started without a shell, once for each item or batch, in a temporary folder of its own that is removed afterwards;
    when it takes too long, or the run is interrupted, it is killed with the programs that it has started.

    Args:
        command: the program and its arguments; in each, "{input}" and "{output}" stand for the paths of the files, and both
            have to occur. Relative paths are relative to the temporary folder.
        in_shape, out_shape: shapes without the batch.
        timeout: seconds for one call; None waits.
        batched: whether the files hold batches, (B, *shape); else single items, (*shape).
        in_complex, out_complex: whether the spaces are complex.

    Raises:
        ConfigError: the command is no list of strings, or lacks a file; timeout <= 0.
        DataError: the program can't be started, fails, takes too long, or writes no array; the end of its stderr is quoted.
        ShapeError: the array is of another shape, or of numbers of another kind.
    """

    def __init__(
        self,
        command: Sequence[str],
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        timeout: float | None = None,
        batched: bool = False,
        in_complex: bool = False,
        out_complex: bool = False,
    ) -> None:
        if isinstance(command, str) or not command or not all(isinstance(part, str) for part in command):
            raise ConfigError(f"Subprocess: expected command to be a list of strings, got {command!r}")
        missing = [name for name in ("{input}", "{output}") if not any(name in part for part in command)]
        if missing:
            raise ConfigError(f"Subprocess: expected {' and '.join(missing)} in the arguments of the command, got {command!r}")
        super().__init__(in_shape, out_shape, batched=batched, in_complex=in_complex, out_complex=out_complex)
        if timeout is not None:
            require_positive(self, timeout=timeout)
        self.command, self.timeout = tuple(command), timeout

    def evaluate(self, x: Array) -> Array:
        """One run of the program."""
        with tempfile.TemporaryDirectory(prefix="invdiff-") as name:
            folder = Path(name)
            source, target = folder / "input.npy", folder / "output.npy"
            np.save(source, x, allow_pickle=False)
            arguments = [part.replace("{input}", str(source)).replace("{output}", str(target)) for part in self.command]
            self._run(arguments, folder)
            try:
                with target.open("rb") as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
            except FileNotFoundError:
                raise DataError(f"Subprocess: {self.command[0]} ended without an output file{_told(folder)}") from None
            except (ValueError, EOFError, OSError) as error:
                raise DataError(f"Subprocess: {self.command[0]} wrote no array ({error}){_told(folder)}") from None

    def _run(self, arguments: list[str], folder: Path) -> None:
        # files, not pipes: a grandchild that outlives the program would keep a pipe open
        with (folder / "stderr").open("wb") as errors:
            try:
                program = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    cwd=folder,
                    start_new_session=True,
                )
            except OSError as error:
                raise DataError(f"Subprocess: {arguments[0]} can't be started ({error.strerror})") from None
            try:
                code = program.wait(self.timeout)
            except subprocess.TimeoutExpired:
                _kill(program)
                raise DataError(f"Subprocess: {self.command[0]} did not end within {self.timeout:g} s{_told(folder)}") from None
            except BaseException:
                _kill(program)
                raise
        if code:
            raise DataError(f"Subprocess: {self.command[0]} failed with status {code}{_told(folder)}")

    def extra_repr(self) -> str:
        return " ".join(self.command)


def _kill(program: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(program.pid, signal.SIGKILL)
        else:
            program.kill()
    program.wait()


def _told(folder: Path) -> str:
    """The end of what the program has written to stderr."""
    path = folder / "stderr"
    text = path.read_bytes()[-QUOTED:].decode("utf-8", "replace").strip() if path.exists() else ""
    return f"; it says: {text}" if text else "; it says nothing"
