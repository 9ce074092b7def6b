"""Problems of a pair (f, u) that an equation ties: what a prior of both fields is asked, beside a prior of f alone.

    decoupled    p(f)        y = H A f + n                                 A the exact solver, H the sensors
    joint        p(f, u)     y = H u + n                                   linear in the pair, whatever A is
                             0 = L u - f + e,  e ~ N(0, slack^2)           the equation again, if wanted

Both have one posterior of f where p(f, u) = p(f) delta(u - A f): the second line then says nothing that the prior doesn't. A
learned joint prior ties its fields only approximately. The residual, as a measurement of zero with a pseudo-noise `slack`,
leads the draws back to the equation; the decoupled problem never leaves it.

References: Huang, Yang, Wang, Park, DiffusionPDE, 2024, arXiv:2406.17763. Yao et al., Guided diffusion sampling on function
spaces with applications to PDEs (FunDPS), 2025.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Gaussian, LinearOperator, Problem, ShapeError, Stack
from ..generators.sources import Generator
from ..operators.pde.poisson import Diagonal
from ..priors.wdno import FieldCode
from .control import Field

__all__ = ["Pairs", "Residual", "joint_problem"]


class Pairs:
    """index -> (unknown, {"concat": coordinates}), float32: fields of one sample as a training source for `FieldPrior`.

    Blocks of neighbouring indices are computed at once; a training run asks for indices in turn.

    Args:
        generator: indices -> {name: (N, 1, *grid)} with the names of the code.
        code: the unknown fields and their units; nothing is told.
        block: samples that are generated at once.

    Raises:
        ConfigError: the code has something that is told, or block is below one; on a call, the generator lacks a field.
    """

    def __init__(self, generator: Generator, code: FieldCode, *, block: int = 64) -> None:
        if code.told or block < 1:
            raise ConfigError(f"Pairs: expected a code with nothing told and block >= 1, got {code.told} and {block}")
        self.generator, self.code, self.block = generator, code, block
        self._held: tuple[int, Tensor, Tensor] | None = None

    def __call__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        number, place = divmod(index, self.block)
        if self._held is None or self._held[0] != number:
            fields = self.samples(range(number * self.block, (number + 1) * self.block))
            unknown = self.code.encode(fields)
            grid = fields[self.code.unknown[0]].shape[2:]
            self._held = number, unknown, self.code.condition(grid, {}, like=unknown)[0]
        _, unknown, where = self._held
        return unknown[place], {"concat": where}

    def samples(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The fields of some samples, {name: (N, 1, *grid)}, in their own units: for those of a code."""
        made = self.generator(indices)
        if missing := [name for name in self.code.unknown if name not in made]:
            raise ConfigError(
                f"Pairs: {type(self.generator).__name__} makes {', '.join(made)}, expected {', '.join(missing)} too"
            )
        return {name: made[name].float() for name in self.code.unknown}


class Residual(LinearOperator):
    """What an equation leaves of a pair, (f, u) -> L u - f; (B, 2, *grid) -> (B, 1, *grid).

    Functions of the Laplacian are symmetric, so that the adjoint is made of the same two halves. For `Heat` the pair is (u(0),
    u(T)) and the residual u(T) - A u(0).

    Args:
        equation: with fields (1, *grid).

    Raises:
        ShapeError: the fields have more than one channel.
    """

    def __init__(self, equation: Diagonal) -> None:
        if equation.in_shape[0] != 1:
            raise ShapeError(f"Residual: expected an equation of fields (1, *grid), got {equation.in_shape}")
        super().__init__((2, *equation.in_shape[1:]), equation.in_shape)
        self.equation = equation

    def forward(self, x: Tensor) -> Tensor:
        return self.equation.residual(x[:, :1], x[:, 1:])

    def adjoint(self, y: Tensor) -> Tensor:
        nothing = torch.zeros_like(y)
        return torch.cat([self.equation.residual(y, nothing), self.equation.residual(nothing, y)], dim=1)


def joint_problem(problem: Problem, equation: Diagonal, *, slack: float | None = None) -> Problem:
    """The problem of the pair (f, u) from one of u, whose decoupled form is `problem.through(equation)`.

    Args:
        problem: of u, (1, *grid), with a linear operator and Gaussian noise.
        equation: f -> u.
        slack: pseudo-noise of the equation's residual, in the units of f; None leaves the residual out.

    Raises:
        CapabilityError: the operator is not linear or the noise not Gaussian. ConfigError: slack is not positive.
        ShapeError: the problem is on other fields than the equation.
    """
    if problem.shape != equation.out_shape:
        raise ShapeError(f"joint_problem: the problem is on {problem.shape}, the equation gives {equation.out_shape}")
    if not (isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian)):
        raise CapabilityError(
            f"joint_problem: expected a linear operator and Gaussian noise, got {type(problem.operator).__name__} and "
            f"{type(problem.noise).__name__}"
        )
    residual = Residual(equation)
    pair = problem.through(Field(residual.in_shape, 1))
    if slack is None:
        return pair
    if not slack > 0.0:
        raise ConfigError(f"joint_problem: expected slack > 0 or none, got {slack}")
    assert isinstance(pair.operator, LinearOperator)
    stack, y = Stack([pair.operator, residual]), problem.y
    sigma = problem.noise.sigma.to(y).expand(problem.operator.out_shape).flatten()
    zero = y.new_zeros(residual.out_shape).flatten()
    sigmas, values = torch.cat([sigma, torch.full_like(zero, slack)]), torch.cat([y.flatten(), zero])
    # where the parts have one shape but for the first axis, Stack keeps the others
    return Problem(stack, Gaussian(sigmas.reshape(stack.out_shape)), values.reshape(stack.out_shape))
