"""The spectral capability: the basis in which A^H A is diagonal, where it is fast.

    A^H A = V diag(a^2) V^H,    V unitary in Re<., .>,    a >= 0

`to` is V^H, `back` is V, both onto. The coefficients of a real unknown are real and as many as its values, so that white noise
is white in either basis and Gaussian densities factor: periodic operators use the Hartley transform in place of the FFT, whose
coefficients of a real image come in conjugate pairs. Those of a complex unknown may be complex, with the same a for both
components; through `ViewAsComplex` they become real parts and imaginary parts. With Gaussian noise of sigma_y per real
component, what y says in this basis is

    ybar = V^H A^+ y = V^H A^H y / a^2,    ybar_i ~ N((V^H x)_i, b_i^2),    b_i = sigma_y / a_i

independent over i, and nothing where a_i = 0. Values a_i <= n eps max a, n the larger side of the matrix that is decomposed
(the longest axis, of transforms) and eps that of the precision, are rounding and count as zero.

A matrix (m, N), m < N, gives V by m Householder reflections, which cost what the matrix does: no complement is stored.

References: Kawar, Elad, Ermon, Song, Denoising diffusion restoration models, NeurIPS 2022, arXiv:2201.11793, Section 4.
Householder, Unitary triangularization of a nonsymmetric matrix, JACM 5, 1958.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from .errors import CapabilityError
from .linalg import expand
from .operator import LinearOperator

__all__ = [
    "Decomposed",
    "Remembered",
    "Spectrum",
    "dense_spectrum",
    "flat_spectrum",
    "given",
    "matrix_spectrum",
    "reflect",
    "reflect_back",
    "reflectors",
    "significant",
    "unchanged",
]

LARGEST = 4096


@dataclass(frozen=True)
class Spectrum:
    """A^H A = V diag(a^2) V^H.

    Args:
        values: a >= 0, real, in the shape of the coefficients without the batch.
        to: V^H, (B, *in_shape) -> (B, *values.shape). back: V, its inverse.
    """

    values: Tensor
    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]

    def data(self, operator: LinearOperator, y: Tensor) -> Tensor:
        """V^H A^+ y, (B, *values.shape), zero where a is."""
        return self.to(operator.adjoint(y)) * self.inverse.square()

    @property
    def inverse(self) -> Tensor:
        """1 / a, zero where a is."""
        return torch.where(self.values > 0.0, 1.0 / self.values, 0.0)


def given(like: Tensor | None) -> Tensor:
    """What says the precision and the device of a spectrum: float64 on the CPU where nothing does."""
    return torch.empty((), dtype=torch.float64) if like is None else like


def unchanged(x: Tensor) -> Tensor:
    """The basis of operators that are diagonal as they are."""
    return x


def significant(values: Tensor, size: int) -> Tensor:
    """Singular values (...), with zero for those that are rounding of an operator of so large a side."""
    return torch.where(values > size * torch.finfo(values.dtype).eps * values.max(), values, 0.0)


def reflectors(v: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns (N, r) -> (N, r), (r,): reflections whose product is unitary and begins with them, up to signs."""
    return torch.geqrf(v)


def reflect(x: Tensor, h: Tensor, tau: Tensor) -> Tensor:
    """V^H x of the rows of x, (..., N) -> (..., N)."""
    return torch.ormqr(h, tau, x.reshape(-1, x.shape[-1]).mT, True, True).mT.reshape(x.shape)


def reflect_back(c: Tensor, h: Tensor, tau: Tensor) -> Tensor:
    """V c of the rows of c, (..., N) -> (..., N)."""
    return torch.ormqr(h, tau, c.reshape(-1, c.shape[-1]).mT, True, False).mT.reshape(c.shape)


def flat_spectrum(shape: tuple[int, ...], values: Tensor, h: Tensor, tau: Tensor) -> Spectrum:
    """Of a matrix on flattened unknowns (B, *shape): singular values (r,), and the reflections of their right vectors."""
    padded = torch.cat((values, values.new_zeros(prod(shape) - len(values))))
    return Spectrum(padded, partial(_flat_to, h=h, tau=tau), partial(_flat_back, h=h, tau=tau, shape=shape))


def matrix_spectrum(matrix: Tensor, shape: tuple[int, ...], like: Tensor) -> Spectrum:
    """Of a real or complex matrix (m, N) on unknowns (*shape), in the precision and on the device of `like`."""
    wide = matrix.detach().to(torch.complex128 if matrix.is_complex() else torch.float64)
    _, s, vh = torch.linalg.svd(wide, full_matrices=False)
    kind = torch.promote_types(like.real.dtype, torch.complex64) if matrix.is_complex() else like.real.dtype
    h, tau = (t.to(like.device, kind) for t in reflectors(vh.mH))
    return flat_spectrum(shape, significant(s.to(like.device, like.real.dtype), max(matrix.shape)), h, tau)


def dense_spectrum(operator: LinearOperator, like: Tensor | None = None) -> Spectrum:
    """Of any linear operator of at most 4096 unknowns, by its matrix: one call on a batch of as many as it has unknowns.

    Args:
        like: for the precision and the device; None is float64 on the CPU. The operator is called in that precision.

    Raises:
        CapabilityError: the operator is larger, or takes complex numbers and is linear over the reals alone.
    """
    from .algebra import dense

    size = prod(operator.in_shape)
    if size > LARGEST:
        raise CapabilityError(
            f"dense_spectrum: expected at most {LARGEST} unknowns, {type(operator).__name__} has {size}: samplers that need "
            "solve in place of spectral take it"
        )
    like = given(like)
    real = dense(operator, like.real.dtype, like.device)
    if operator.in_complex:
        half = len(real) // 2
        top, bottom = real[:half], real[half:]
        linear = operator.out_complex and torch.allclose(top[:, size:], -bottom[:, :size], rtol=1e-4, atol=1e-6)
        if not (linear and torch.allclose(bottom[:, size:], top[:, :size], rtol=1e-4, atol=1e-6)):
            raise CapabilityError(
                f"dense_spectrum: {type(operator).__name__} takes complex numbers and is linear over the reals alone: compose "
                f"it with ViewAsComplex({operator.in_shape})"
            )
        real = torch.complex(top[:, :size], bottom[:, :size])
    return matrix_spectrum(real, operator.in_shape, like)


class Remembered:
    """The last value of a function, and of what it was made; copies and pickles of an operator begin without."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.value: Spectrum | None = None

    def __call__(self, key: Hashable, make: Callable[[], Spectrum]) -> Spectrum:
        """The value for a key; made where the last one was another."""
        if self.value is None or self.key != key:
            # a tensor made under inference_mode could not be used by autograd later
            with torch.inference_mode(False), torch.no_grad():
                self.key, self.value = key, make()
        return self.value

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        return Remembered, ()


class Decomposed(LinearOperator):
    """The same operator with its singular values, by `dense_spectrum` at the first use: `Problem(Decomposed(a), noise, y)`.

    For operators without a spectrum in closed form, of at most 4096 unknowns. `solve` and `pinv` become closed forms.

    Args:
        operator: whose matrix does not change any more.

    Raises:
        CapabilityError: the operator is larger.
    """

    def __init__(self, operator: LinearOperator) -> None:
        if prod(operator.in_shape) > LARGEST:
            raise CapabilityError(
                f"Decomposed: expected at most {LARGEST} unknowns, {type(operator).__name__} has {prod(operator.in_shape)}"
            )
        super().__init__(
            operator.in_shape, operator.out_shape, in_complex=operator.in_complex, out_complex=operator.out_complex
        )
        self.operator, self.measured = operator, operator.measured
        self._remembered = Remembered()

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        return self.operator.normal(x)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        at = given(like)
        return self._remembered((at.real.dtype, at.device), partial(dense_spectrum, self.operator, at))

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        spectrum = self.spectrum(b)
        return spectrum.back(spectrum.to(b) / (spectrum.values.square() + expand(torch.as_tensor(rho), spectrum.values[None])))

    def pinv(self, y: Tensor) -> Tensor:
        spectrum = self.spectrum(y)
        return spectrum.back(spectrum.data(self.operator, y))


def _flat_to(x: Tensor, h: Tensor, tau: Tensor) -> Tensor:
    return reflect(x.flatten(1), h, tau)


def _flat_back(c: Tensor, h: Tensor, tau: Tensor, shape: tuple[int, ...]) -> Tensor:
    return reflect_back(c, h, tau).reshape(-1, *shape)
