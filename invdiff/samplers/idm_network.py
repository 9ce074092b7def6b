"""The network of invertible diffusion models (IDM): T sampling steps with a measurement in them, trained end to end.

In sigma coordinates, sigma_T > ... > sigma_1 > sigma_0 = 0, with a denoiser D_t that sees the measurement, one step is

    x0 = D_t(x),   eps = (x - x0) / sigma_t,   x0 <- x0 - tau_t A^T (A x0 - y) / L^2,   F_t(x) = x0 + sigma_{t-1} eps

(for orthonormal rows, L = 1 and tau = 1, the range-null-space step), and the steps are coupled so that they can be undone,

    (h, x) -> (x, (1 - v_t) F_t(x) + v_t h),    start x = mu + A^T (y - A mu) / L^2, h = s x,    end x + m h.

Inside the U-Net every block is followed by an injector: with r the factor of the block's scale and f the features,

    f <- f + unshuffle_r(W' [i, A^T A i, A^T y]),    i = W shuffle_r(f),

one pair W, W' for each step and block; blocks and injectors of a scale are a reversible chain in turn (`priors.reversible`).
Where r^2 does not divide the width, the largest factor of r that can be shuffled is, and nearest upsampling does the rest, with
means of its pixels on the way back.
v, s, m, tau and the levels sigma_t are learnt. Nothing is random: the network is a point estimator.

Where it differs from the paper: the U-Net is one of this package, with its noise level, its skips added rather than
concatenated, and all of its scales; the levels are learnt as ln sigma_t, tau_t is learnt, and the couplings start at
v = 10^(-2 / length), not at 1/2: the smaller v, the nearer to the pretrained function; the inverse amplifies rounding up to
1 / v at each move for blocks near the identity, so that this choice costs two digits whatever the length. The injectors see
the measurement centred and scaled as the network sees its input, and start at zero.

References: Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed sensing, TPAMI 2025, arXiv:2403.17006.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ConfigError, LinearOperator, Memory, Move, ShapeError
from ..core.memory import run_block
from ..priors.files import read, write
from ..priors.layers import conv
from ..priors.network import EDMDenoiser
from ..priors.reversible import Affine, ReversibleChain
from ..priors.unet import UNet

__all__ = ["IDMNetwork", "load_idm"]


class IDMNetwork(nn.Module):
    """(operator, y) -> x, in T steps through one U-Net.

    Args:
        denoiser: a two-dimensional U-Net without condition, which is copied: pretrained weights are the start.
        steps: T.
        coupling: v at the start, of the sampling steps and of the chains in the U-Net; None for 10^(-2 / length); 0 for the
            plain network, which can't be undone: F_t itself, and stages of plain blocks.
        injectors: whether the U-Net sees the measurement.
        norm: L, the operator's norm.
        sigmas: the noise levels at the start, the highest first; None for a geometric sequence from 2 to 1/8 sigma_data.

    Shapes: y (B, *operator.out_shape) -> (B, C, H, W), operator from real images (C, H, W), H and W multiples of `divisor`.

    Raises:
        ConfigError: the network is no such U-Net, or a number is not possible.
        ShapeError: on a call, that operator and network do not fit.
    """

    # what the training loop asks of a network
    memory_format, classes, dims, bf16 = torch.channels_last, 0, 2, False

    def __init__(
        self,
        denoiser: EDMDenoiser,
        *,
        steps: int = 3,
        coupling: float | None = None,
        injectors: bool = True,
        norm: float = 1.0,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        net = denoiser.net
        if not isinstance(net, UNet) or net.dims != 2 or net.architecture.keys() & {"concat_channels", "vector", "classes"}:
            raise ConfigError(f"IDMNetwork: expected a two-dimensional UNet without condition, got {net.architecture}")
        if steps < 1 or not norm > 0 or not (coupling is None or 0.0 <= coupling < 1.0):
            raise ConfigError(
                f"IDMNetwork: expected steps >= 1, norm > 0 and 0 <= coupling < 1, got {steps}, {norm}, {coupling}"
            )
        levels = list(sigmas) if sigmas is not None else _geometric(2 * denoiser.sigma_data, denoiser.sigma_data / 8, steps)
        if len(levels) != steps or min(levels) <= 0:
            raise ConfigError(f"IDMNetwork: expected {steps} positive sigmas, got {levels}")
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(True)
        self.steps, self.coupling, self.injectors = steps, coupling, injectors
        self.norm, self.divisor, self.channels = float(norm), denoiser.divisor, net.channels_in
        self.sigma_data, self.facts = denoiser.sigma_data, {}
        self.log_sigma = nn.Parameter(torch.tensor(levels).log())
        self.tau = nn.Parameter(torch.ones(steps))
        self.v = nn.Parameter(torch.full((steps,), _share(coupling, steps))) if coupling != 0.0 else None
        self.start, self.finish = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        own = self.denoiser.net
        for half in (own.encoder, own.decoder):
            for level, stage in enumerate(half):
                half[level] = self._stage(list(stage), own.patch * 2**level)

    def _stage(self, blocks: list[nn.Module], factor: int) -> nn.Module:
        if self.injectors:
            width = blocks[0].conv1.in_channels
            blocks = [m for b in blocks for m in (b, _Injectors(self.steps, width, self.channels, factor))]
        return nn.ModuleList(blocks) if self.v is None else ReversibleChain(blocks, Affine(_share(self.coupling, len(blocks))))

    @property
    def net(self) -> IDMNetwork:
        """Itself: what is trained."""
        return self

    def forward(self, operator: LinearOperator, y: Tensor, memory: str | Memory = "full") -> Tensor:
        """The estimate of x from y = A x."""
        pair = Memory.parse(memory).chain(self.moves(operator, y), self.begin(operator, y))
        return self.end(*pair)

    def begin(self, operator: LinearOperator, y: Tensor) -> tuple[Tensor, Tensor]:
        """The pair (h, x) before the first step."""
        shape = operator.in_shape
        if (
            operator.in_complex
            or len(shape) != 3
            or shape[0] != self.channels
            or shape[1] % self.divisor
            or shape[2] % self.divisor
        ):
            raise ShapeError(
                f"IDMNetwork: expected an operator on real images ({self.channels}, H, W), sizes multiples of {self.divisor}, "
                f"got {type(operator).__name__} on {shape}"
            )
        mean = self.denoiser.mean
        x = mean + self._back(operator, y - operator(torch.full((1, *shape), mean, dtype=y.real.dtype, device=y.device)))
        return self.start * x, x

    def end(self, h: Tensor, x: Tensor) -> Tensor:
        """The estimate from the last pair."""
        return x + self.finish * h

    def moves(self, operator: LinearOperator, y: Tensor) -> list[Move]:
        """The T steps."""
        seen = _Seen(operator, self._back(operator, y), self.norm, self.denoiser.mean, self.sigma_data)
        sigma, body = self.log_sigma.exp(), tuple(self.denoiser.parameters())
        moves = []
        for t in range(self.steps):
            following = sigma[t + 1] if t + 1 < self.steps else torch.zeros_like(sigma[0])
            v = 0.0 if self.v is None else self.v[t]
            step = _Step(self, operator, seen, t)
            moves.append(Move(v, 0.0, 1.0 - v, step, (sigma[t], following, self.tau[t], y, seen.back), body))
        return moves

    def denoise(self, x: Tensor, sigma: Tensor, seen: _Seen, step: int) -> Tensor:
        """D_t(x), with the measurement in every injector."""

        def net(x: Tensor, noise: Tensor, _: None) -> Tensor:
            unet = self.denoiser.net
            x, code = unet.prepare(x, noise, None)

            def call(block: nn.Module, h: Tensor, code: Tensor, back: Tensor) -> Tensor:
                return block(h, step, seen.normal, back) if isinstance(block, _Injectors) else block(h, code)

            def stage(half: nn.ModuleList, level: int, h: Tensor) -> Tensor:
                blocks = half[level]
                if isinstance(blocks, ReversibleChain):
                    return blocks(h, code, seen.back, call=call)
                for block in blocks:
                    h = call(block, h, code, seen.back) if isinstance(block, _Injectors) else run_block(block, h, code)
                return h

            return unet.traverse(x, stage)

        self.denoiser.bf16 = self.bf16
        return self.denoiser.through(net, x, sigma.expand(len(x)))

    def data_step(self, operator: LinearOperator, y: Tensor, x0: Tensor, tau: Tensor) -> Tensor:
        """x0 - tau A^T (A x0 - y) / L^2."""
        return x0 - tau * self._back(operator, operator(x0) - y)

    def _back(self, operator: LinearOperator, y: Tensor) -> Tensor:
        return operator.adjoint(y) / self.norm**2

    @property
    def header(self) -> dict[str, Any]:
        """What makes the same network again, but for its weights."""
        own = {"steps": self.steps, "coupling": self.coupling, "injectors": self.injectors, "norm": self.norm}
        return {"network": "IDMNetwork", "denoiser": self.denoiser.header, "architecture": own}

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None, *, dtype: torch.dtype | None = None) -> None:
        """Write weights, architecture and facts as one safetensors file, for `load_idm`."""
        write(path, self.state_dict(), self.header | {"facts": dict(self.facts if facts is None else facts)}, dtype)


def load_idm(path: str | Path, *, sha256: str | None = None) -> IDMNetwork:
    """The network that `IDMNetwork.save` wrote, frozen, on the CPU.

    Args:
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, not one of these, or has another hash.
    """

    def make(header: dict[str, Any], weights: dict[str, Tensor]) -> IDMNetwork:
        if header["network"] != "IDMNetwork":
            raise ValueError(f"it is a {header['network']}")
        inner = header["denoiser"]
        units = {k: inner[k] for k in ("sigma_data", "mean", "sigma_min", "sigma_max", "preconditioning")}
        network = IDMNetwork(EDMDenoiser(UNet(**inner["architecture"]), **units), **header["architecture"])
        network.facts = dict(header["facts"])
        network.load_state_dict(weights)
        return network

    return read(path, make, who="load_idm", sha256=sha256).eval().requires_grad_(False)


class _Seen:
    """What injectors know of the measurement, in the network's units: A^T A / L^2 and A^T (y - A mu) / (L^2 sigma_data).

    `back` has the gradient of y, so that it is an input wherever a chain is undone.
    """

    def __init__(self, operator: LinearOperator, back: Tensor, norm: float, mean: float, sigma_data: float) -> None:
        self.operator, self.square = operator, norm**2
        constant = torch.full((1, *operator.in_shape), mean, dtype=back.dtype, device=back.device)
        self.back = (back - operator.normal(constant) / self.square) / sigma_data

    def after(self, back: Tensor) -> _Seen:
        """The same with this tensor as `back`."""
        other = copy.copy(self)
        other.back = back
        return other

    def normal(self, image: Tensor) -> Tensor:
        return self.operator.normal(image) / self.square


class _Step(nn.Module):
    """F_t(x); the network is no submodule, so that the weights are listed once."""

    def __init__(self, network: IDMNetwork, operator: LinearOperator, seen: _Seen, step: int) -> None:
        super().__init__()
        self.of = (network, operator)
        self.seen, self.step = seen, step

    def forward(self, x: Tensor, sigma: Tensor, following: Tensor, tau: Tensor, y: Tensor, back: Tensor) -> Tensor:
        network, operator = self.of
        x0 = network.denoise(x, sigma, self.seen.after(back), self.step)
        eps = (x - x0) / sigma
        return network.data_step(operator, y, x0, tau) + following * eps


class _Injectors(nn.Module):
    """f + unshuffle(W' [i, A^T A i, A^T y]), i = W shuffle(f), one pair (W, W') for each step."""

    def __init__(self, steps: int, width: int, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = max(r for r in range(1, factor + 1) if factor % r == 0 and width % r**2 == 0)
        self.rest, inner = factor // self.factor, width // self.factor**2
        self.to_image = nn.ModuleList(conv(2, inner, channels, 1) for _ in range(steps))
        self.to_features = nn.ModuleList(conv(2, 3 * channels, inner, 1) for _ in range(steps))
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            for layer in self.to_image:
                layer.get_parameter("weight").fill_(1.0 / inner)

    def forward(self, h: Tensor, step: int, normal: Callable[[Tensor], Tensor], back: Tensor) -> Tensor:
        image = self.to_image[step](F.pixel_shuffle(h, self.factor)).to(back.dtype)
        image = F.interpolate(image, scale_factor=self.rest) if self.rest > 1 else image
        known = torch.cat([image, normal(image), back.expand_as(image)], dim=1).to(h.dtype)
        known = F.avg_pool2d(known, self.rest) if self.rest > 1 else known
        return h + F.pixel_unshuffle(self.to_features[step](known), self.factor)


def _geometric(high: float, low: float, steps: int) -> list[float]:
    return [high * (low / high) ** (t / max(1, steps - 1)) for t in range(steps)]


def _share(coupling: float | None, length: int) -> float:
    """v at the start: v^length = 1 / 100."""
    return 10.0 ** (-2.0 / length) if coupling is None else coupling
