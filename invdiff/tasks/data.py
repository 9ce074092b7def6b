"""Where the images and measurements of a task come from: generators, packaged files, the user's files.

A source gives `Item`s: a ground truth (then the measurement is simulated), a measurement, or both. What a file's numbers mean
is said by the user, never guessed: `units` or an explicit `scale` and `shift`,

    x = scale * value + shift.

    hu       x = 1 + HU / 1000                          attenuation relative to water
    water    x = value
    window   x = 1 + (low + value (high - low)) / 1000  a display window, value from 0 to 1 (integers: over their whole range)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core import ConfigError, DataError, Denoiser, ShapeError, Streams
from ..io.images import Array, read_array
from ..io.images import finite as finite
from .phantoms import Phantoms
from .planes import Plane, planes, smooth_phase

__all__ = ["CTSlices", "Data", "Item", "MRSlice", "Photographs", "PriorDraws"]


@dataclass(frozen=True)
class Item:
    """One thing to reconstruct.

    Args:
        name: what reports call it.
        shape: of the image, (C, *spatial).
        truth: the image, real or complex; None where it is not known.
        y: a real measurement; None where one is simulated from the truth.
        pixel: size of a pixel in mm; None where it is not known.
        affine: (4, 4), from (row, column, 0, 1) of the image to mm; None where the file has none.
        facts: where it comes from, for the report: path, slice, units, notes.
        told: what a conditional prior is told of it, by its method `tell`: {name: (1, ...)}.
    """

    name: str
    shape: tuple[int, ...]
    truth: Tensor | None = None
    y: Tensor | None = None
    pixel: float | None = None
    affine: NDArray[np.float64] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Base of the sources.

    Args:
        measurement: a file with a measurement; None simulates it from the truth.
        measurement_dataset: its name inside an HDF5 or .npz file.
        measurement_index: the entry along its first axis, when the file holds a stack of them.
        measurement_scale: y is this times the stored values.
    """

    measurement: str | None = None
    measurement_dataset: str | None = None
    measurement_index: int | None = None
    measurement_scale: float = 1.0

    def __post_init__(self) -> None:
        scale = self.measurement_scale
        _require(type(self).__name__, "a finite measurement_scale, not 0", scale != 0 and np.isfinite(scale), scale)

    @abstractmethod
    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        """`count` items, a function of the seed only (and of the prior, for draws from it)."""

    def measured(self) -> Tensor | None:
        """The user's measurement as stored, times its scale; None where there is none."""
        if self.measurement is None:
            return None
        array = read_array(self.measurement, self.measurement_dataset)
        values = np.asarray(array.data)
        if self.measurement_index is not None:
            if not values.ndim or not -len(values) <= self.measurement_index < len(values):
                raise ConfigError(f"{self.measurement}: holds {values.shape}, which has no entry {self.measurement_index}")
            values = values[self.measurement_index]
        values = finite(self.measurement, values) * self.measurement_scale
        return torch.from_numpy(np.ascontiguousarray(values))


@dataclass(frozen=True, kw_only=True)
class PriorDraws(Data):
    """Truths drawn from the prior itself, so that a posterior must be calibrated on them."""

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        y, sample = self.measured(), getattr(prior, "sample", None)
        if y is None and sample is None:
            raise ConfigError(
                f"PriorDraws: {type(prior).__name__} can't be drawn from exactly: use a Gaussian prior or a mixture"
            )
        for index in range(_one(count, self.measurement)):
            truth = None if y is not None else sample(Streams(seed, (index,)))[0]
            yield Item(f"draw {index}", tuple(prior.shape), truth, y)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class CTSlices(Data):
    """Slices of X-ray attenuation relative to water: procedural phantoms, or the user's file.

    Args:
        path: a file (NIfTI, HDF5, .npy, .png, .tif); None paints phantoms that no shipped prior was trained on.
        dataset: the array's name inside an HDF5 or .npz file.
        slice: index along `axis`; None takes the middle. Several items are consecutive slices.
        axis: slicing axis of a volume; None: the last of a NIfTI, the first of everything else.
        size: resample to (size, size) over the slice's field of view; None keeps a file's pixels, and paints phantoms at 128.
        units: "hu", "water" or "window", see the module.
        window: (low, high) in HU, for units "window".
        scale, shift: instead of `units`.
        clip: (low, high) in HU: values outside are set to it, such as the padding of scanners.
        pixel: size of a pixel of the file in mm, where it does not say it; of phantoms, and of the image of a measurement.
            None takes a field of view of 384 mm, which matters to no simulated measurement with relative noise.
    """

    path: str | None = None
    dataset: str | None = None
    slice: int | None = None
    axis: int | None = None
    size: int | None = None
    units: Literal["hu", "water", "window"] | None = None
    window: tuple[float, float] = (-1000.0, 1000.0)
    scale: float | None = None
    shift: float = 0.0
    clip: tuple[float, float] | None = None
    pixel: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, limits in (("window", self.window), ("clip", self.clip)):
            _require("CTSlices", f"{name} [low, high] with low < high", limits is None or limits[0] < limits[1], limits)
        _require("CTSlices", "pixel > 0 in mm", self.pixel is None or 0 < self.pixel < np.inf, self.pixel)
        numbers = (self.scale or 0.0, self.shift)
        _require("CTSlices", "a finite scale, not 0, and shift", self.scale != 0 and bool(np.isfinite(numbers).all()), numbers)
        of_file = {name: getattr(self, name) for name in ("dataset", "slice", "axis", "units", "scale", "clip")}
        given = [f"{name}={value}" for name, value in of_file.items() if value is not None]
        _require("CTSlices", f"a file, data.path=FILE, for {', '.join(given)}", self.path is not None or not given, "none")

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        y, pixel = self.measured(), self.pixel or 384.0 / (self.size or 128)
        if y is not None and self.path is None:
            _one(count, self.measurement)
            if self.size is None or self.pixel is None:
                raise ConfigError("CTSlices: a measurement alone needs the image's size=N in pixels, and pixel=... in mm")
            yield Item("measurement", (1, self.size, self.size), y=_sinogram(self.measurement, y), pixel=pixel)
        elif self.path is None:
            source = Phantoms(1_000_000 + seed, self.size or 128)
            for index in range(count):
                yield Item(f"phantom {index}", source.shape, source(index), pixel=pixel, facts={"units": "water"})
        else:
            array = read_array(self.path, self.dataset)
            facts = {"path": str(self.path), "units": self.units or f"{self.scale} value + {self.shift}"}
            for plane in planes(self.path, array, count=count, start=self.slice, axis=self.axis):
                spacing = plane.spacing or (None if self.pixel is None else (self.pixel, self.pixel))
                plane = replace(plane, image=self.water(plane.image), spacing=spacing).resampled(self.size)
                if plane.spacing is not None and plane.pixel is None:
                    raise ShapeError(f"{self.path}: pixels of {plane.spacing} mm are not square: size=N resamples them")
                truth = torch.from_numpy(np.ascontiguousarray(plane.image, np.float32))[None]
                pixel = plane.pixel or 384.0 / max(truth.shape)
                measured = None if y is None else _sinogram(self.measurement, y)
                yield Item(
                    plane.name, tuple(truth.shape), truth, measured, pixel, plane.affine, {**facts, "slice": plane.index}
                )

    def water(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Attenuation relative to water, as the units say."""
        if (self.units is None) == (self.scale is None):
            raise ConfigError(f"{self.path}: say what its numbers mean: units=hu, water or window, or a scale and a shift")
        _real(self.path, finite(self.path, values))
        if self.scale is not None:
            x = self.scale * values.astype(np.float64) + self.shift
        elif self.units == "hu":
            x = 1.0 + values.astype(np.float64) / 1000.0
        elif self.units == "window":
            x = 1.0 + (self.window[0] + _unit_range(self.path, values) * (self.window[1] - self.window[0])) / 1000.0
        else:
            x = values.astype(np.float64)
        if self.clip is not None:
            x = np.clip(x, 1.0 + self.clip[0] / 1000.0, 1.0 + self.clip[1] / 1000.0)
        if x.min() < -0.1 or x.max() > 32.0:
            raise DataError(
                f"{self.path}: values from {x.min():.4g} to {x.max():.4g} are no attenuation relative to water (air 0): "
                "other units, or padding to cut off by clip=[-1000,3000]"
            )
        return x.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class MRSlice(Data):
    """Slices of a magnetic resonance image, complex; bright tissue is near 1.

    A magnitude volume gets a smooth synthetic phase; what is measured of it is then a simulation, which is easier than a scan.

    Args:
        path: a volume of magnitudes or of complex values; None takes the functional volume that NiBabel ships.
        dataset, slice, axis: see `CTSlices`.
        frame: entry of the fourth axis, where there is one.
        size: resample to (size, size) over the slice's field of view; None keeps the pixels.
        scale: the image is this times the stored values; None divides by the 99.5th percentile of the non-zero magnitudes.
        phase: strength of the synthetic phase in radians; 0 for none. Complex files keep their own.
    """

    path: str | None = None
    dataset: str | None = None
    slice: int | None = None
    axis: int | None = None
    frame: int = 0
    size: int | None = None
    scale: float | None = None
    phase: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("MRSlice", "scale > 0", self.scale is None or 0 < self.scale < np.inf, self.scale)
        _require("MRSlice", "a finite phase in radians", np.isfinite(self.phase), self.phase)

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        y = self.measured()
        if y is not None and not y.is_complex():
            raise ShapeError(f"{self.measurement}: expected complex k-space, got {tuple(y.shape)} {str(y.dtype)[6:]}")
        if y is not None and self.path is None:
            _one(count, self.measurement)
            if y.ndim not in (2, 3):
                raise ShapeError(f"{self.measurement}: expected k-space of shape (coils, H, W) or (H, W), got {tuple(y.shape)}")
            y = y if y.ndim == 3 else y[None]
            yield Item("measurement", (1, *y.shape[1:]), y=y)
            return
        path = self.path if self.path is not None else _example_volume()
        array = _frame(path, read_array(path, self.dataset), self.frame)
        magnitude = np.abs(finite(path, array.data))
        if self.scale is None and not magnitude.any():
            raise DataError(f"{path}: every value is zero")
        scale = self.scale if self.scale is not None else 1.0 / float(np.percentile(magnitude[magnitude > 0], 99.5))
        for plane in planes(path, array, count=count, start=self.slice, axis=self.axis):
            plane = plane.resampled(self.size)
            image, facts = plane.image, {"path": str(path), "slice": plane.index, "units": f"{scale:.6g} value"}
            if not np.iscomplexobj(image):
                if image.min() < 0:
                    raise DataError(f"{path}: expected magnitudes, got values from {image.min():.4g}")
                phase = smooth_phase(np.random.default_rng([seed, plane.index or 0]), image.shape)
                image = image * np.exp(1j * self.phase * phase)
                facts["note"] = "a magnitude image with a synthetic phase: the measurement is simulated"
            truth = torch.from_numpy((scale * image).astype(np.complex64))[None]
            yield Item(plane.name, tuple(truth.shape), truth, y, plane.pixel, plane.affine, facts)


@dataclass(frozen=True, kw_only=True)
class Photographs(Data):
    """Grey photographs, 0 black and 1 white: those that PyWavelets ships, or the user's.

    Args:
        path: an image or array; None takes camera, ascent and aero in turn. Integers are divided by the largest of their type,
            floating-point values have to lie in [0, 1]; colours become luma (ITU-R BT.601).
        dataset: the array's name inside an HDF5 or .npz file.
        size: resample to (size, size); None keeps the pixels.
    """

    path: str | None = None
    dataset: str | None = None
    size: int | None = None

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        y = self.measured()
        if y is not None and self.path is None:
            _one(count, self.measurement)
            y = y if y.ndim in (1, 3) else y[None]
            if self.size is None and y.ndim != 3:
                raise ConfigError(f"{self.measurement}: a measurement alone needs the image's size=N in pixels")
            shape = (1, self.size, self.size) if self.size is not None else tuple(y.shape)
            yield Item("measurement", shape, y=y)
            return
        if self.path is not None:
            _one(count, self.path)
        elif count > len(_PHOTOGRAPHS):
            raise ConfigError(f"Photographs: there are {len(_PHOTOGRAPHS)} packaged ones, got items={count}")
        for name in _PHOTOGRAPHS[:count]:
            path = self.path or f"pywt.data.{name}"
            array = read_array(self.path, self.dataset) if self.path is not None else Array(_photograph(name))
            image = Plane(_grey(path, array)).resampled(self.size).image
            truth = torch.from_numpy(image.astype(np.float32))[None]
            yield Item(
                "image" if self.path else name, tuple(truth.shape), truth, y, facts={"path": str(path), "units": "0 to 1"}
            )


_PHOTOGRAPHS = ("camera", "ascent", "aero")


def _photograph(name: str) -> NDArray[np.uint8]:
    import pywt.data

    return np.asarray(getattr(pywt.data, name)(), np.uint8)


def _example_volume() -> str:
    import nibabel.testing

    return str(nibabel.testing.data_path / "example4d.nii.gz")


def _grey(path: str, array: Array) -> NDArray[np.float64]:
    values = _unit_range(path, finite(path, array.data))
    if values.ndim == 3 and values.shape[2] == 3:
        values = values @ np.array([0.299, 0.587, 0.114])
    if values.ndim != 2:
        raise ShapeError(f"{path}: expected a grey (H, W) or RGB (H, W, 3) image, got {values.shape}")
    return values


def _unit_range(path: str | None, values: NDArray[Any]) -> NDArray[np.float64]:
    """Integers over the range of their type, floating-point numbers as they are; in [0, 1]."""
    _real(path, values)
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    x = values.astype(np.float64) / top
    if x.min() < 0 or x.max() > 1:
        raise DataError(f"{path}: expected values from 0 to {top:g}, got {values.min():.4g} to {values.max():.4g}")
    return x


def _real(path: str | None, values: NDArray[Any]) -> None:
    if np.iscomplexobj(values):
        raise DataError(f"{path}: expected real values, got {values.dtype}")


def _require(who: str, what: str, fine: bool, got: object) -> None:
    if not fine:
        raise ConfigError(f"{who}: expected {what}, got {got}")


def _one(count: int, path: str | None) -> int:
    if path is not None and count != 1:
        raise ConfigError(f"{path}: holds one item, got items={count}")
    return count


def _frame(path: str, array: Array, frame: int) -> Array:
    if array.data.ndim != 4:
        return array
    if not 0 <= frame < array.data.shape[3]:
        raise ConfigError(f"{path}: has frames 0 to {array.data.shape[3] - 1}, got frame={frame}")
    return Array(array.data[..., frame], array.affine, array.facts)


def _sinogram(path: str | None, y: Tensor) -> Tensor:
    if y.is_complex() or y.ndim not in (2, 3):
        raise ShapeError(
            f"{path}: expected a real sinogram of shape (angles, detector), got {tuple(y.shape)} {str(y.dtype)[6:]}"
        )
    return y if y.ndim == 3 else y[None]
