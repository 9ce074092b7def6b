"""The wavelet diffusion neural operator: one conditional denoiser of the fields of an equation, for every use of it.

    unknown      x = (u, f, ...), fields on one grid, the first axis time where there is one
    D(x, sigma | told)      told: states of one moment (u(0), u(T)), whole fields (f), each or none of them

simulation: u given u(0) and f. Control: u and f given u(0), perhaps u(T), and an objective. Data: any measurement of them. What
is told goes in as channels beside the unknown, with one channel each that says whether it was, and with the coordinates; in
training parts are left out at random (`tasks.trajectories`). A field that is both unknown and told is returned exactly, as in
inpainting by replacement. Everything else, an objective or a measurement, is a problem on the fields, to which
`problem.through(prior.synthesis(shape))` and any sampler apply: the same weights serve all.

The unknown that carries the noise, u below, is a choice of coordinates, with `synthesis` S the way to the fields:

    "white"    packed wavelet coefficients in units of their root mean square by band, x = S u (`packed`); the published one.
               D estimates E[u0 | u0 + sigma n]. In the field the noise is sigma S n, as strong in every band as the data are
               there: of fine scales less is hidden than by white noise of the field.
    "shaped"   the noise of the coefficients is the image of white noise of the fields. Whitened, the coefficients are then the
               fields themselves, up to a rotation, so that x = s u with one s per field, and the wavelets are layers of the
               network (`bands`). D estimates E[u0 | u0 + sigma n] of the fields, whatever the basis.
    neither    the same x = s u and a network without wavelets: the twin that wavelets are to be compared with.

For orthonormal filters without scales the first two have the same noise.

References: Hu, Wang, Chen et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.errors import ConfigError, DataError, ShapeError
from ..operators.dwt import Mode
from .adapter import Adapter, require_conditional
from .network import EDMDenoiser, load_network
from .packed import ChannelScale, PackedSynthesis

__all__ = ["FieldCode", "FieldPrior", "field_network", "load_fields"]

Synthesis = PackedSynthesis | ChannelScale
Scales = tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class FieldCode:
    """How fields and what is told about them become the channels of a network.

    Args:
        unknown: names of the fields to be generated, each a channel (1, *grid).
        slices: names of what is told at one moment, (1, *grid[1:]), repeated along the first axis.
        fields: names of what is told as a whole field, (1, *grid).
        wavelet: of the coefficients; None where the unknown are the fields themselves.
        levels, mode, multiple: of `PackedSynthesis`.
        scales: {name: units of each band, or of the field}; names that are missing have units of 1.

    Raises:
        ConfigError: nothing is unknown, a name appears twice, or is none of these.
    """

    unknown: Sequence[str] = ("u", "f")
    slices: Sequence[str] = ("u0", "uT")
    fields: Sequence[str] = ("f",)
    wavelet: str | None = None
    levels: int = 1
    mode: Mode = "periodization"
    multiple: int = 1
    scales: Mapping[str, Sequence[float]] | Scales = ()

    def __post_init__(self) -> None:
        for part in ("unknown", "slices", "fields"):
            object.__setattr__(self, part, tuple(getattr(self, part)))
        # a tuple, so that a code can be a key
        pairs = sorted((name, tuple(float(v) for v in s)) for name, s in self.units.items())
        object.__setattr__(self, "scales", tuple(pairs))
        if not self.unknown or any(len(set(n)) < len(n) for n in (self.unknown, self.told)):
            raise ConfigError(f"FieldCode: expected different names, got {self.unknown}, {self.slices} and {self.fields}")
        if stray := [name for name in self.units if name not in (*self.unknown, *self.told)]:
            raise ConfigError(f"FieldCode: scales of {', '.join(stray)}, which is neither unknown nor told")

    @property
    def units(self) -> dict[str, Sequence[float]]:
        """The scales as a dictionary."""
        return dict(self.scales)

    @property
    def told(self) -> tuple[str, ...]:
        """The names of what may be told, in the order of their channels."""
        return (*self.slices, *self.fields)

    @property
    def header(self) -> dict[str, Any]:
        """What makes the same code again, as JSON can hold it."""
        return asdict(self) | {"scales": {name: list(s) for name, s in self.units.items()}}

    def synthesis(self, grid: Sequence[int]) -> Synthesis:
        """From the unknown to the fields, (B, channels, *coarse) -> (B, len(unknown), *grid)."""
        return _synthesis(self, tuple(self.unknown), tuple(grid))

    def channels(self, name: str, dims: int) -> int:
        """Channels of a name on a grid of so many axes."""
        if self.wavelet is None:
            return 1
        return 2 ** (self.levels * (dims - (name in self.slices)))

    def concat_channels(self, dims: int) -> int:
        """Channels of the condition: what is told, an indicator of each, and the coordinates."""
        return sum(self.channels(name, dims) + 1 for name in self.told) + dims

    def measured(self, samples: Mapping[str, Tensor]) -> FieldCode:
        """The code with the units of samples, {name: (N, 1, *grid) or (N, 1, *grid[1:])}: root mean squares, by band.

        A band without any content, as the details in time of something constant, has the smallest positive one.
        """
        found = self.units
        for name in dict.fromkeys((*self.unknown, *self.told)):
            x = samples[name]
            plain = replace(self, scales=())
            basis = _synthesis(plain, (name,), tuple(x.shape[2:]))
            rms = basis.band_rms(x)[0] if isinstance(basis, PackedSynthesis) else x.double().square().mean().sqrt()[None]
            if not bool(rms.max() > 0):
                raise DataError(f"FieldCode: all values of {name} are zero, so that they have no units")
            rms = rms.clamp_min(float(rms[rms > 1e-6 * rms.max()].min()))
            found[name] = [float(f"{v:.6g}") for v in rms]
        return replace(self, scales=found)

    def encode(self, samples: Mapping[str, Tensor]) -> Tensor:
        """The unknown of fields {name: (N, 1, *grid)}, (N, channels, *coarse)."""
        x = torch.cat([samples[name] for name in self.unknown], dim=1)
        return self.synthesis(x.shape[2:]).analysis(x)

    def condition(self, grid: Sequence[int], told: Mapping[str, Tensor], *, like: Tensor) -> Tensor:
        """The channels of what is told, {name: (1 or N, 1, ...)}: (1 or N, K, *coarse) of the dtype and device of `like`.

        Raises:
            ConfigError: a name that can't be told. ShapeError: a shape that does not fit the grid.
        """
        if unknown := set(told) - set(self.told):
            raise ConfigError(f"FieldCode: {', '.join(sorted(unknown))} can't be told: expected {', '.join(self.told)}")
        grid, dims = tuple(grid), len(grid)
        coarse, items = self.synthesis(grid).in_shape[1:], max((len(v) for v in told.values()), default=1)
        parts, indicators = [], []
        for name in self.told:
            parts.append(self._part(name, told.get(name), grid, coarse).to(like).expand(items, -1, *coarse))
            indicators.append(like.new_full((items, 1, *coarse), float(name in told)))
        axes = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n for n in coarse]
        where = [a.reshape(-1, *[1] * (dims - 1 - i)).expand(coarse)[None, None] for i, a in enumerate(axes)]
        return torch.cat([*parts, *indicators, *(w.expand(items, -1, *coarse) for w in where)], dim=1)

    def _part(self, name: str, value: Tensor | None, grid: tuple[int, ...], coarse: tuple[int, ...]) -> Tensor:
        own = grid[1:] if name in self.slices else grid
        if value is None:
            return torch.zeros(1, self.channels(name, len(grid)), *coarse)
        if tuple(value.shape[1:]) != (1, *own):
            raise ShapeError(
                f"FieldCode: expected {name} of shape (N, 1, {', '.join(map(str, own))}), got {tuple(value.shape)}"
            )
        packed = _synthesis(self, (name,), own).analysis(value)
        return packed.unsqueeze(2).expand(*packed.shape[:2], *coarse) if name in self.slices else packed


@lru_cache(maxsize=64)
def _synthesis(code: FieldCode, names: tuple[str, ...], grid: tuple[int, ...]) -> Synthesis:
    shape, scales = (len(names), *grid), code.units
    if code.wavelet is None:
        return ChannelScale(shape, [v for name in names for v in scales.get(name, (1.0,))])
    rows = [scales.get(name) for name in names]
    bands = next((len(row) for row in rows if row is not None), 0)
    filled = [row or (1.0,) * bands for row in rows] if bands else None
    return PackedSynthesis(shape, code.wavelet, code.levels, code.mode, scales=filled, multiple=code.multiple)


class FieldPrior(Adapter):
    """A conditional network as a prior of the fields on one grid, given what it is told.

    Args:
        network: D(x, sigma, {"concat": ...}) of the unknown of the code: an `EDMDenoiser`, or another conditional denoiser.
        code: that the network was trained with.
        grid: of the fields, time first where there is one.
        told: {name: (1, ...) or (1, 1, ...)}, or (N, 1, ...) for the N draws of a run that makes them at once.

    The unknown is that of the code, (channels, *coarse); sigma is in its units.

    Attributes:
        concat: the condition of the network.
        replaces: whether a field that is unknown is told.
        facts, sigma_data: those of the network.

    Raises:
        CapabilityError: the network is not conditional.
        ConfigError, ShapeError: what is told has another name or shape.
    """

    concat: Tensor
    given: Tensor
    keep: Tensor

    def __init__(
        self, network: Denoiser, code: FieldCode, grid: Sequence[int], told: Mapping[str, Tensor] | None = None
    ) -> None:
        require_conditional(network, "FieldPrior")
        basis = code.synthesis(grid)
        super().__init__(network, basis.in_shape)
        self.code, self.grid, self.basis, self.value_range = code, tuple(grid), basis, None
        self.facts, self.sigma_data = getattr(network, "facts", {}), getattr(network, "sigma_data", 1.0)
        like = next((p for p in network.parameters()), torch.zeros(()))
        ranks = {name: len(self.grid) + 1 - (name in code.slices) for name in code.told}
        held = {k: v[None] if v.ndim == ranks.get(k) else v for k, v in (told or {}).items()}
        self.register_buffer("concat", code.condition(grid, held, like=like.detach()))
        per, coarse = basis.in_shape[0] // len(code.unknown), basis.in_shape[1:]
        known = {n: _synthesis(code, (n,), self.grid).analysis(held[n]) for n in code.unknown if n in held}
        items = max((len(v) for v in known.values()), default=1)
        parts = [known.get(n, torch.zeros(1, per, *coarse)).to(like.detach()) for n in code.unknown]
        self.register_buffer("given", torch.cat([p.expand(items, *p.shape[1:]) for p in parts], dim=1))
        self.replaces = bool(known)
        mask = torch.tensor([n in known for n in code.unknown]).repeat_interleave(per)
        self.register_buffer("keep", mask[(..., *[None] * len(coarse))].to(like.device))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x, told], with the told fields in their place."""
        denoised = self.prior(x, sigma, {"concat": self.concat.to(x.dtype)})
        return torch.where(self.keep, self.given.to(x.dtype), denoised) if self.replaces else denoised

    def tell(self, told: Mapping[str, Tensor], grid: Sequence[int] | None = None) -> FieldPrior:
        """The same network told something else, on another grid if one is given."""
        return FieldPrior(self.prior, self.code, self.grid if grid is None else grid, told)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(fields, *grid)."""
        return self.basis.out_shape

    @property
    def image_divisor(self) -> int:
        return 1

    def synthesis(self, shape: Sequence[int]) -> Synthesis:
        """The operator from the unknown to the fields, whose shape must be the prior's."""
        if tuple(shape) != self.basis.out_shape:
            raise ShapeError(f"FieldPrior: expected fields of shape {self.basis.out_shape}, got {tuple(shape)}")
        return self.basis

    def analyse(self, x: Tensor) -> Tensor:
        """The unknown of fields (B, fields, *grid)."""
        return self.basis.analysis(x)

    def extra_repr(self) -> str:
        return f"{self.code}, grid={self.grid}"


def field_network(network: EDMDenoiser, code: FieldCode) -> EDMDenoiser:
    """The network, with the code among its facts: for training, and from then on in its file.

    Raises:
        ConfigError: the network has other channels than the code.
    """
    dims = network.net.dims
    expected = sum(code.channels(name, dims) for name in code.unknown), code.concat_channels(dims)
    found = network.net.channels_in, network.net.concat_channels
    if found != expected:
        raise ConfigError(
            f"field_network: the code needs channels_in={expected[0]} and concat_channels={expected[1]}, the network has "
            f"{found[0]} and {found[1]}"
        )
    network.facts["fields"] = code.header
    return network


def load_fields(path: str | Path, *, sha256: str | None = None, bf16: bool = False) -> tuple[EDMDenoiser, FieldCode]:
    """A network of fields and its code, for `FieldPrior`; see `load_network`.

    Raises:
        DataError: the file is missing or damaged, or its facts hold no code of fields.
    """
    network = load_network(path, sha256=sha256, bf16=bf16)
    if "fields" not in network.facts:
        raise DataError(f"load_fields: {path} is a network, but says nothing of fields: read it with load_network")
    return network, FieldCode(**network.facts["fields"])
