"""Operators with unknown parameters, on the packed vector of image and parameters.

    y = L2 (m(phi) . L1 x),        (x, phi) packed in one vector

L1 and L2 are operators that are known, `.` is the product of values, and m, the response, is a function of the parameters
(gains, shifts, kernels, maps: `operators.unknown`). The map is linear in x given phi, and in phi given x where the response is.
Derivatives are those of a product,

    J (dx, dphi) = L2 (m . L1 dx + dm . z),   J^H v = (L1^H (conj(m) . w), m'^H (conj(z) . w)),   z = L1 x, w = L2^H v.

Operators may be nested: the x of an outer one is then the packed vector of the inner one, and so on. The prior of the packed
vector is `priors.Independent`; every sampler that asks for no more than `vjp` then draws image and parameters.

References: Fei et al., Generative diffusion prior for unified image restoration and enhancement, CVPR 2023, arXiv:2304.01247
(parameters of the degradation as unknowns beside the image).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.errors import ShapeError
from ..core.operator import LinearOperator, Operator
from .constants import Constants, as_given

__all__ = ["Calibrated", "Fourier", "Multiplied"]

Product = Callable[[Tensor], Tensor]


class Calibrated(Operator):
    """(x, phi) -> L2 (m(phi) . L1 x) on flat vectors, x first.

    Args:
        before: L1, of real unknowns x.
        response: m, (P,) -> a shape that broadcasts with that of L1 x.
        after: L2, on the product; None for the identity.

    Shapes: (B, 1, N + P) real, N the number of values of x -> (B, *after.out_shape).

    Raises:
        ShapeError: the three do not fit together.
    """

    def __init__(self, before: Operator, response: Operator, after: LinearOperator | None = None) -> None:
        try:
            product = torch.broadcast_shapes(before.out_shape, response.out_shape)
        except RuntimeError:
            raise ShapeError(
                f"Calibrated: the response {response.out_shape} does not broadcast with {before.out_shape} of "
                f"{type(before).__name__}"
            ) from None
        is_complex = before.out_complex or response.out_complex
        if before.in_complex or response.in_complex or len(response.in_shape) != 1:
            raise ShapeError(
                f"Calibrated: expected real unknowns, and parameters (P,), got {type(before).__name__} of "
                f"{'complex' if before.in_complex else 'real'} ones and {response.in_shape}: use before @ ViewAsComplex(...)"
            )
        if after is not None and (after.in_shape != product or after.in_complex != is_complex):
            raise ShapeError(
                f"Calibrated: the product is {'complex' if is_complex else 'real'} {tuple(product)}, {type(after).__name__} "
                f"takes {'complex' if after.in_complex else 'real'} {after.in_shape}"
            )
        out, out_complex = (tuple(product), is_complex) if after is None else (after.out_shape, after.out_complex)
        self.count, self.size = response.in_shape[0], math.prod(before.in_shape)
        super().__init__((1, self.size + self.count), out, out_complex=out_complex)
        self.before, self.response, self.after = before, response, after
        self.measured = before.measured if after is None else after.measured

    def split(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """x, (..., *before.in_shape), and phi, (..., P), of (..., 1, N + P)."""
        u = u.squeeze(-2)
        return u[..., : self.size].unflatten(-1, self.before.in_shape), u[..., self.size :]

    def join(self, x: Tensor, phi: Tensor) -> Tensor:
        """The packed vectors (B, 1, N + P) of x, (B, *before.in_shape), and phi, (B, P)."""
        return torch.cat((x.flatten(1), phi), 1)[:, None]

    def at(self, phi: Tensor) -> Operator:
        """The operator on x for parameters that are known: linear where `before` is.

        Args:
            phi: (P,), or (B, P): then of batches of B items alone, each with its own parameters.

        Raises:
            ShapeError: phi has another number of parameters.
        """
        phi = phi[None] if phi.ndim == 1 else phi
        if phi.ndim != 2 or phi.shape[1] != self.count:
            raise ShapeError(f"Calibrated.at: expected phi of shape ({self.count},), got {tuple(phi.shape)}")
        with torch.no_grad():
            known = Multiplied(self.response(phi), self.before.out_shape, is_complex=self.before.out_complex) @ self.before
        known.measured = self.before.measured
        return known if self.after is None else self.after @ known

    def given(self, x: Tensor) -> Operator:
        """The operator on phi, (P,), for images that are known.

        Args:
            x: (B, *before.in_shape); the operator takes batches of B items alone, each with its own image.
        """
        with torch.no_grad():
            z = self.before(x)
        known = Multiplied(z, self.response.out_shape, is_complex=self.response.out_complex) @ self.response
        known.measured = self.before.measured
        return known if self.after is None else self.after @ known

    def forward(self, x: Tensor) -> Tensor:
        image, phi = self.split(x)
        return self._finished(self.response(phi) * self.before(image))

    def _finished(self, product: Tensor) -> Tensor:
        return product if self.after is None else self.after(product)

    def linearize(self, x: Tensor) -> tuple[Tensor, Product, Product]:
        self.check(x, "x")
        image, phi = self.split(x)
        z, push_x, pull_x = self.before.linearize(image)
        m, push_phi, pull_phi = self.response.linearize(phi)

        def push(t: Tensor) -> Tensor:
            dx, dphi = self.split(t)
            return self._finished(m * push_x(dx) + push_phi(dphi) * z)

        def pull(v: Tensor) -> Tensor:
            w = v if self.after is None else self.after.adjoint(v)
            return self.join(pull_x(_reduced(m.conj() * w, z)), pull_phi(_reduced(z.conj() * w, m)))

        return self._finished(m * z), push, pull

    def vjp(self, x: Tensor) -> tuple[Tensor, Product]:
        y, _, pull = self.linearize(x)
        return y, pull

    def jvp(self, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        y, push, _ = self.linearize(x)
        return y, push(tangent)


def _reduced(value: Tensor, like: Tensor) -> Tensor:
    """The adjoint of broadcasting `like` to `value`, and of taking a real value for a complex one."""
    value = value if like.is_complex() or not value.is_complex() else value.real
    return value.sum_to_size((len(value), *like.shape[1:]))


class Multiplied(LinearOperator):
    """x -> f . x with the broadcast shape of the two.

    Args:
        factor: f, (*shape') or (1 or B, *shape'); with B items, of batches of B alone.
        shape: of x without the batch.
        is_complex: whether x is.
    """

    def __init__(self, factor: Tensor, shape: Sequence[int], *, is_complex: bool = False) -> None:
        factor = factor if factor.ndim == len(shape) + 1 else factor[None]
        out = torch.broadcast_shapes(factor.shape[1:], tuple(shape))
        super().__init__(tuple(shape), tuple(out), in_complex=is_complex, out_complex=is_complex or factor.is_complex())
        self.factor = Constants(as_given, factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor(x)[0] * x

    def adjoint(self, y: Tensor) -> Tensor:
        product = self.factor(y)[0].conj() * y
        return (product if self.in_complex else product.real).sum_to_size((len(y), *self.in_shape))


class Fourier(LinearOperator):
    """The centred orthonormal Fourier transform over some axes of a real or complex field.

    Args:
        shape: of the field without the batch.
        axes: from the end, negative.
        is_complex: whether the field is.
        mask: boolean, broadcastable to the shape: the values that are measured; None for all.
    """

    def __init__(
        self, shape: Sequence[int], axes: Sequence[int] = (-2, -1), *, is_complex: bool = False, mask: Tensor | None = None
    ) -> None:
        super().__init__(tuple(shape), tuple(shape), in_complex=is_complex, out_complex=True)
        self.axes, self.measured = tuple(axes), mask

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.fftn(torch.fft.ifftshift(x, self.axes), dim=self.axes, norm="ortho")
        f = torch.fft.fftshift(f, self.axes)
        return f if self.measured is None else f * self.measured

    def adjoint(self, y: Tensor) -> Tensor:
        y = y if self.measured is None else y * self.measured
        x = torch.fft.ifftn(torch.fft.ifftshift(y, self.axes), dim=self.axes, norm="ortho")
        x = torch.fft.fftshift(x, self.axes)
        return x if self.in_complex else x.real
