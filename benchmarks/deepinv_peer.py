"""deepinv 0.5.0 on our side's network and measurements: the denoiser, the operators, the samplers.

Its denoisers take images in [0, 1] and sigma in their unit, as the shipped prior natural64 does; its diffusions are of images
in [-1, 1], of twice the level. Some start at 76 in our unit, above the largest level of the network: the input is shrunk to
that level, where both means agree.

DPS, PiGDM and moment matching run on its variance-preserving or exploding diffusion, in DDPM steps, DiffPIR and DDRM on levels
of their own. Calls are counted at the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import deepinv
import torch
from deepinv.sampling import (
    DDRM,
    DPS,
    DDPMSolver,
    DiffPIR,
    MomentMatchingDataFidelity,
    PiGDMDataFidelity,
    PosteriorDiffusion,
    VarianceExplodingDiffusion,
    VariancePreservingDiffusion,
)
from torch import Tensor

import invdiff
from invdiff import operators

__all__ = ["NOISE", "SIZE", "TASKS", "Case", "Network", "make_case", "theirs"]

SIZE, NOISE = 64, 0.05
TASKS = ("inpainting", "deblurring", "superresolution")


class Network(invdiff.Denoiser):
    """The prior; counts the items that it sees and the vector-Jacobian products of them."""

    def __init__(self, prior: invdiff.Denoiser) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.calls, self.vjps = prior, 0, 0

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += len(x)
        return _Counted.apply(self.prior(x, sigma), self)


class _Counted(torch.autograd.Function):
    """The identity, whose backward is counted; also under torch.func.vjp."""

    @staticmethod
    def forward(x: Tensor, owner: Network) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # noqa: ARG004
        ctx.owner = inputs[1]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.owner.vjps += len(gradient)
        return gradient, None


class Theirs(deepinv.models.Denoiser):
    """The network with deepinv's interface, images in [0, 1] and sigma in their unit."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
        low, high, origin = self.network.sigma_min, self.network.sigma_max, self.network.origin
        sigma = torch.as_tensor(sigma, dtype=x.dtype).flatten().expand(len(x))
        near = origin + (x - origin) * (high / sigma.clamp_min(high)).reshape(-1, 1, 1, 1)
        return self.network(near, sigma.clamp(low, high))


@dataclass
class Case:
    """One measurement for both sides."""

    task: str
    truth: Tensor
    problem: invdiff.Problem
    physics: Any


def physics_of(task: str, noise: Any) -> tuple[invdiff.LinearOperator, Any]:
    """The operator, and deepinv's."""
    shape = (1, SIZE, SIZE)
    if task == "inpainting":
        ours = operators.random_inpainting(SIZE, SIZE, keep=0.5, seed=0)
        mask = ours.measured.expand(shape).float()[None]
        return ours, deepinv.physics.Inpainting(img_size=shape, mask=mask, noise_model=noise)
    if task == "deblurring":
        kernel = operators.restoration.gaussian_kernel(1.5)
        return operators.Blur(kernel, shape), deepinv.physics.BlurFFT(shape, kernel.float()[None, None], noise_model=noise)
    # on a periodic grid, so that deepinv has its closed form; the blocks begin at the pixels that are kept
    filter = torch.zeros(1, 1, 7, 7)
    filter[..., :4, :4] = 1 / 16
    theirs = deepinv.physics.Downsampling(shape, filter, factor=4, padding="circular", noise_model=noise)
    return operators.Downsample(shape, 4, "box"), theirs


def make_case(task: str, truth: Tensor, seed: int) -> Case:
    """Raises: RuntimeError where the operators differ."""
    ours, theirs = physics_of(task, deepinv.physics.GaussianNoise(NOISE))
    for a, b in ((ours(truth), theirs.A(truth)), (ours.adjoint(ours(truth)), theirs.A_adjoint(theirs.A(truth)))):
        gap = float((a - b).abs().max())
        if not gap < 1e-5:
            raise RuntimeError(f"{task}: A x of {type(theirs).__name__} differs from ours by {gap:.1e}")
    return Case(task, truth, invdiff.Problem.simulate(ours, invdiff.Gaussian(NOISE), truth, seed=seed), theirs)


def diffused(schedule: str, steps: int) -> tuple[Any, DDPMSolver]:
    """A diffusion of deepinv's, from the network's largest level, and DDPM steps with as many network calls."""
    if schedule == "ve":
        # the last call is that of the final denoising
        return VarianceExplodingDiffusion(alpha=1.0), DDPMSolver(torch.linspace(1, 0, steps, dtype=torch.float64))
    sde, times = VariancePreservingDiffusion(alpha=1.0), torch.linspace(1, 0, 2001, dtype=torch.float64)
    first = float(times[sde.sigma_t(times) <= 80.0][0])
    return sde, DDPMSolver(torch.linspace(first, 0, steps + 1, dtype=torch.float64))


def theirs(name: str, network: Network, case: Case, n: int, steps: int, seed: int, options: dict[str, Any]) -> Tensor:
    """deepinv's draws, (n, 1, H, W); its samplers draw from the global generator, which is left as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return _drawn(name, network, case, n, steps, seed, options)


def _drawn(name: str, network: Network, case: Case, n: int, steps: int, seed: int, options: dict[str, Any]) -> Tensor:
    denoiser, y, physics = Theirs(network), case.problem.y.repeat(n, 1, 1, 1), case.physics
    if name == "DiffPIR":
        with torch.no_grad():
            model = DiffPIR(denoiser, deepinv.optim.data_fidelity.L2(), sigma=NOISE, max_iter=steps, **options)
            return model(y, physics)
    if name == "DDRM":
        first = options.get("first", 1.0)
        model = DDRM(denoiser, sigmas=torch.linspace(first, 0, steps).tolist(), eta=options.get("eta", 0.85))
        return model(y, physics)
    sde, solver = diffused(options.get("schedule", "vp"), steps)
    weight, start, generator = options.get("weight", 1.0), (n, 1, SIZE, SIZE), torch.Generator().manual_seed(seed)
    solver.rng = generator
    if name == "DPS":
        model = DPS(denoiser, solver=solver, schedule=options.get("schedule", "vp"), weight=weight)
    else:
        fidelity = {"PiGDM": PiGDMDataFidelity, "MMPS": MomentMatchingDataFidelity}[name](weight=weight)
        model = PosteriorDiffusion(fidelity, denoiser, sde, solver)
    with torch.no_grad():
        return model(y, physics, x_init=start, seed=seed).float()
