"""Your own forward operator: two formulas, and every sampler works on it.

A scanner that measures the sums along rows and columns of an image, and every third diagonal: 96 numbers for 1,024 pixels. The
prior is a Gaussian random field, so the exact posterior is known and the sampler can be compared with it.

    python examples/own_operator.py
"""

import torch

import invdiff


class RowsAndColumns(invdiff.core.LinearOperator):
    """y = (row sums, column sums, sums over wrapped diagonals), (B, 1, N, N) -> (B, 3 N)."""

    def __init__(self, size):
        super().__init__((1, size, size), (3 * size,))
        row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        self.register_buffer("index", torch.stack([row, size + column, 2 * size + (row + column) % size]).reshape(3, -1))

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([flat.new_zeros(len(x), *self.out_shape).index_add(1, i, flat) for i in self.index]).sum(0)

    def adjoint(self, y):
        return sum(y[:, i] for i in self.index).reshape(-1, *self.in_shape)


operator = RowsAndColumns(32)
prior = invdiff.priors.StationaryGaussian((1, 32, 32), mean=0.0, std=1.0, length=4.0)
truth = prior.sample(invdiff.Streams(7))
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(0.5), truth, seed=0)

draws = invdiff.sampler("mmps", steps=60, cg_steps=20)(problem, prior, n=64, seed=0, progress=True)
exact_mean, exact_draws = prior.posterior_draws(problem, 4000, seed=1)

error = (draws.mean - exact_mean).square().mean().sqrt()
expected = exact_draws.std(0).square().mean().sqrt() / 64**0.5
x, y = invdiff.Streams(0).normal(0, (1, 32, 32), dtype=torch.float64), invdiff.Streams(1).normal(0, (96,), dtype=torch.float64)
gap = abs(float(invdiff.core.dot(operator(x), y) - invdiff.core.dot(x, operator.adjoint(y))))
print(f"adjoint gap            {gap / float(operator(x).norm() * y.norm()):.1e} of |A x| |y|")
print(f"mean of 64 draws       rms distance {error:.3f} to the exact mean; {expected:.3f} expected of 64 exact draws")
print(f"standard deviation     {draws.std.mean():.3f}; exact {exact_draws.std(0).mean():.3f}")
print(f"network calls per draw {draws.network_calls:.0f}, vector-Jacobian products {draws.network_vjps:.0f}")
