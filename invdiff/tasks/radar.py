"""Radar imaging as a task: phase histories of made-up scenes or of files, operators of sparse apertures, and what is reported.

The truth of a made-up scene is a complex image: log-reflectivity of `LandCover`, counted from its mean, and speckle. Of a file
there is none; the image that is formed of all pulses is the reference then. Estimates of sparse apertures are compared with it
as the whole aperture would see them: through all pulses, and formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import ConfigError, DataError, Denoiser, Gaussian, LinearOperator, Operator, Problem, Samples, Streams
from ..generators.land_cover import LandCover
from ..io.sar import PhaseData, read_gotcha, read_phase_history
from ..io.sar_formats import read_cphd
from ..metrics import coverage, entropy
from ..operators.sar import PhaseHistory, Radar
from ..operators.sar_geometry import circular_track, form_image, ground, kept_pulses
from ..operators.speckled import Speckled
from ..report import LEVEL
from ..samplers.split_gibbs import draw_image
from .data import Data, Item

__all__ = ["BackProjection", "PhaseHistories", "RadarItem", "phase_history", "radar_score", "reflectivity"]


@dataclass(frozen=True, kw_only=True)
class RadarItem(Item):
    """An item with the geometry of its phase history.

    Args:
        track, frequencies, reference, sign, points: see `PhaseHistory`.
        reflectivity: log-reflectivity, (1, H, W), where it is known.
        whole: the image that is formed of all pulses, (1, H, W), of a file.
    """

    track: Tensor
    frequencies: Tensor
    reference: Tensor | None
    sign: Literal[-1, 1]
    points: Tensor
    reflectivity: Tensor | None = None
    whole: Tensor | None = None

    def operator(self, mask: Tensor | None = None, *, accuracy: float = 1e-5) -> PhaseHistory:
        """The phase history of the item's scene."""
        seen = self.track, self.frequencies, self.points
        return PhaseHistory(*seen, sign=self.sign, reference=self.reference, mask=mask, accuracy=accuracy)


@dataclass(frozen=True, kw_only=True)
class PhaseHistories(Data):
    """Phase histories of made-up scenes seen from an arc of a circle, or of the user's files.

    Args:
        path: a file or several of one aperture; None makes scenes up.
        format: "gotcha", "generic" or "cphd"; None goes by the suffix: .cphd, .mat for Gotcha, others are generic.
        sign: of generic data that do not say it.
        size: rows and columns of the image.
        spacing: of rows and of columns, m.
        index: of the first made-up scene; its seed is 1,000,000 + the run's.
        pulses, frequencies: how many, of made-up data.
        aperture, elevation: degrees. distance: m. centre_frequency, bandwidth: Hz.

    Raises:
        ConfigError: an option is out of its range, or of files and there is none, or a measurement is given beside it.
    """

    path: str | Sequence[str] | None = None
    format: Literal["gotcha", "generic", "cphd"] | None = None
    sign: Literal[-1, 1] | None = None
    size: tuple[int, int] = (64, 64)
    spacing: tuple[float, float] = (0.6, 0.3)
    index: int = 0
    pulses: int = 64
    frequencies: int = 128
    aperture: float = 1.0
    elevation: float = 45.0
    distance: float = 10_000.0
    centre_frequency: float = 9.6e9
    bandwidth: float = 6.2e8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measurement is not None:
            raise ConfigError("PhaseHistories: expected the measurement as path, got data.measurement")
        if min(*self.size, self.pulses, self.frequencies - 1) < 1 or min(self.spacing) <= 0.0 or self.index < 0:
            raise ConfigError(
                "PhaseHistories: expected positive sizes, spacings and numbers and index >= 0, got "
                f"{self.size}, {self.spacing}, {self.pulses}, {self.frequencies} and {self.index}"
            )

        low, high = self.centre_frequency - 0.5 * self.bandwidth, self.centre_frequency + 0.5 * self.bandwidth
        if min(self.aperture, self.distance) <= 0.0 or not 0.0 <= self.elevation < 90.0 or not 0.0 <= low < high:
            raise ConfigError(
                "PhaseHistories: expected aperture, distance and bandwidth > 0, 0 <= elevation < 90 and a band above 0 Hz, "
                f"got {self.aperture}, {self.distance}, {self.bandwidth}, {self.elevation} and {low:g} to {high:g}"
            )
        if self.path is None and (self.format is not None or self.sign is not None):
            raise ConfigError(
                f"PhaseHistories: expected a file, data.path=FILE, for format={self.format} and sign={self.sign}, got none"
            )

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        points = ground((self.size[0], self.size[1]), (self.spacing[0], self.spacing[1]))
        if self.path is not None:
            if count != 1:
                raise ConfigError(f"{self.path}: the files of a path are one item, got items={count}")
            yield self._read(points)
            return
        degree = math.pi / 180.0
        arc = self.aperture * degree * ((torch.arange(self.pulses, dtype=torch.float64) + 0.5) / self.pulses - 0.5)
        band = (torch.arange(self.frequencies, dtype=torch.float64) + 0.5) / self.frequencies - 0.5
        made = LandCover(seed=1_000_000 + seed, size=max(self.size))
        for index in range(self.index, self.index + count):
            u = made((index,))["reflectivity"][:, :, : self.size[0], : self.size[1]]
            u = u - u.mean()
            speckle = Streams(made.seed, (index,)).normal(0, (2, *self.size), "speckle")
            yield RadarItem(
                name=f"scene {index}",
                shape=(1, *self.size),
                truth=Speckled((self.size[0], self.size[1]))(torch.cat((u, speckle), 1))[0],
                facts={"generator": repr(made), "scene": index},
                track=circular_track(arc, distance=self.distance, elevation=self.elevation * degree),
                frequencies=self.centre_frequency + self.bandwidth * band,
                reference=None,
                sign=-1,
                points=points,
                reflectivity=u[0],
            )

    def _read(self, points: Tensor) -> RadarItem:
        assert self.path is not None
        paths = [self.path] if isinstance(self.path, str) else list(self.path)
        data = _phase_data(paths, self.format, self.sign)
        q, f, r0 = (torch.from_numpy(v) for v in (data.positions, data.frequencies, data.reference))
        y = torch.from_numpy(data.signal)[None]
        whole = form_image(PhaseHistory(q, f, points, sign=data.sign, reference=r0), y[None])[0]
        facts = {name: str(value) for name, value in data.facts.items()}
        geometry: dict[str, Any] = {"track": q, "frequencies": f, "reference": r0, "sign": data.sign, "points": points}
        name = ", ".join(Path(p).name for p in paths)
        return RadarItem(name=name, shape=(1, *self.size), y=y, facts=facts, whole=whole, **geometry)


def _phase_data(paths: Sequence[str], kind: str | None, sign: Literal[-1, 1] | None) -> PhaseData:
    suffix = Path(paths[0]).suffix.lower()
    kind = kind if kind is not None else {".cphd": "cphd", ".mat": "gotcha"}.get(suffix, "generic")
    if kind == "gotcha":
        return read_gotcha(*paths)
    if len(paths) > 1:
        raise ConfigError(f"PhaseHistories: several files join in the format gotcha only, got {len(paths)} of {kind}")
    return read_cphd(paths[0]) if kind == "cphd" else read_phase_history(paths[0], sign=sign)


def phase_history(
    item: Item,
    *,
    pattern: Literal["all", "random", "gap", "band"] = "random",
    share: float = 0.25,
    seed: int = 0,
    accuracy: float = 1e-5,
) -> Operator:
    """The exact operator of the item's aperture, of which a pattern is measured (`kept_pulses`)."""
    own = _radar(item, "phase_history")
    shape = len(own.track), own.frequencies.shape[-1]
    return own.operator(kept_pulses(*shape, pattern=pattern, share=share, seed=seed), accuracy=accuracy)


@dataclass(frozen=True)
class BackProjection:
    """The image that is formed of the measured pulses, with Taylor windows; a baseline."""

    def __call__(self, problem: Problem) -> tuple[Tensor, Mapping[str, Any]]:
        """The image, (1, 1, H, W), and no facts."""
        if not isinstance(problem.operator, Radar):
            raise ConfigError(f"BackProjection: expected a PhaseHistory or a mode of it, got {type(problem.operator).__name__}")
        return form_image(problem.operator, problem.y), {}


def radar_score(item: Item, images: Tensor) -> Mapping[str, Any]:
    """Of complex images (n, 1, H, W), of draws their mean: what all pulses would form of it, against the image of all pulses.

    Returns:
        entropy of that image, in nats; error and magnitude_error, relative to the norm of the image that all pulses form of the
        data of a file, or of the truth.
    """
    own, mean = _radar(item, "radar_score"), images.mean(0, keepdim=True)
    whole = own.operator()
    seen = form_image(whole, whole(mean))
    reference = own.whole[None] if own.whole is not None else form_image(whole, whole(_truth(own)[None].to(mean)))
    reference = reference.to(seen)
    size = reference.norm()
    return {
        "entropy": float(entropy(seen)[0]),
        "error": float((seen - reference).norm() / size),
        "magnitude_error": float((seen.abs() - reference.abs()).norm() / size),
    }


def reflectivity(item: Item, draws: Samples, problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What draws of (u, a, b) say of the log-reflectivity u: facts and figures; of other unknowns nothing.

    Returns:
        `radar_score` of the mean over the draws of E[image | u, y], which has less noise than that of as many images, as
        given_u_error and so on; where u is known, the root mean square error of its mean, and how often the intervals hold it.
    """
    from ..plot_fields import Fields, field_figure

    a, inner = getattr(problem.operator, "outer", None), getattr(problem.operator, "inner", None)
    if not (isinstance(inner, Speckled) and isinstance(a, LinearOperator) and isinstance(problem.noise, Gaussian)):
        return {}, {}
    u = draws.map(lambda x: x[:, :1])
    sigma = problem.noise.sigma.to(u.x)
    means = [draw_image(a, problem.y, sigma, each[None], None, 0, 60)[0] for each in u.x]
    score = radar_score(item, torch.cat(means))
    fields, facts = {"mean": u.mean[0]}, {f"given_u_{name}": value for name, value in score.items()}
    truth = _radar(item, "reflectivity").reflectivity
    if truth is not None:
        truth = truth.to(u.mean)
        fields = {"log-reflectivity": truth[0], **fields}
        facts |= {"reflectivity_rms": float((u.mean - truth).square().mean().sqrt())}
        if draws.kind == "posterior" and len(draws) > 1:
            low, high = u.interval(LEVEL)
            facts["reflectivity_coverage"] = float(coverage(low[None], high[None], truth[None]))
    panels = [Fields(fields=fields, units="log")]
    if len(draws) > 1 and draws.kind == "posterior":
        panels.append(Fields(fields={"standard deviation": u.std[0]}, colours="spread"))
    return facts, {"Log-reflectivity": field_figure([panels])}


def _radar(item: Item, who: str) -> RadarItem:
    if not isinstance(item, RadarItem):
        raise ConfigError(f"{who}: expected an item of PhaseHistories, got {type(item).__name__}")
    return item


def _truth(item: RadarItem) -> Tensor:
    if item.truth is None:
        raise DataError(f"{item.name}: has neither a truth nor an image of all pulses")
    return item.truth
