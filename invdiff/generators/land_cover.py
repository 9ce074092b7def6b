"""Scenes of land cover as a radar and a camera see them: reflectivity, speckled intensity and colours of the same ground.

A scene is painted from the ground up, in pixels, so that a larger one has more in it and not larger things:

    parcels      cells of random sites, each of one crop, with furrows
    forest       where a smooth Gaussian field is above a level, with texture
    water        where another is below one, and a river where a third is near zero
    roads        straight, smooth
    a town       rectangles about a centre with a common direction: a roof, to the radar's side the bright corner of wall and
                 ground, away from it the radar's shadow; the camera sees the sun's
    a car park   asphalt with rows of cars, some of which flash
    flashes      single pixels up to 25 dB above the rest

The radar looks along the last axis, towards larger indices. Every kind of ground has a backscatter of its own, u = log sigma0
in nats, and a colour; crops share backscatters and differ in colour, light and season change from scene to scene: the colour
is not a function of the radar image. The radar's image is of fully developed speckle,

    sar = u + log G,    G ~ Gamma(L, 1 / L)    of L looks, independent in each pixel.

Backscatters follow the order and the rough values of X and C band surveys at middle incidence; nothing is fitted to a sensor.

References: Ulaby, Dobson, Handbook of radar scattering statistics for terrain, 1989.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.rng import Streams
from ..core.speckle import LogIntensity

__all__ = ["COVER", "LandCover"]

# name: (backscatter, dB; red, green, blue reflectance)
COVER: dict[str, tuple[float, tuple[float, float, float]]] = {
    "bare soil": (-12.0, (0.46, 0.37, 0.27)),
    "green crop": (-8.0, (0.28, 0.42, 0.16)),
    "ripe crop": (-8.5, (0.60, 0.54, 0.28)),
    "meadow": (-10.5, (0.36, 0.48, 0.22)),
    "forest": (-6.5, (0.10, 0.21, 0.10)),
    "water": (-20.0, (0.06, 0.13, 0.19)),
    "road": (-16.0, (0.37, 0.37, 0.38)),
    "town": (-9.0, (0.42, 0.41, 0.37)),
    "roof": (-5.0, (0.50, 0.35, 0.30)),
    "wall": (7.0, (0.42, 0.41, 0.37)),
    "shadow": (-22.0, (0.42, 0.41, 0.37)),
    "car": (3.0, (0.45, 0.45, 0.50)),
}
NAMES = tuple(COVER)
_CROPS = 4
_DECIBEL = math.log(10.0) / 10.0


@dataclass(frozen=True, kw_only=True)
class LandCover:
    """Pairs of radar and optical images.

    Samples are "reflectivity" (N, 1, size, size), log sigma0; "sar" (N, 1, size, size), log intensity; "optical" (N, 3, size,
    size), red, green and blue in [0, 1]; "cover" (N, 1, size, size), place in COVER.

    Args:
        seed: of the set.
        size: pixels along each side.
        looks: L.
        parcels, buildings: how many in 128 x 128 pixels, for buildings at most.
        roads: at most.

    Raises:
        ConfigError: an option is out of its range.
    """

    seed: int = 0
    size: int = 128
    looks: float = 4.0
    parcels: int = 28
    buildings: int = 40
    roads: int = 3

    def __post_init__(self) -> None:
        require_positive(self, size=self.size, looks=self.looks, parcels=self.parcels)
        if min(self.buildings, self.roads) < 0:
            raise ConfigError(f"LandCover: expected buildings and roads >= 0, got {self.buildings} and {self.roads}")

    @torch.no_grad()
    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        scene = _Scene(Streams(self.seed, indices), self.size, device)
        area = (self.size / 128.0) ** 2
        _parcels(scene, max(2, round(self.parcels * area)))
        _nature(scene)
        for j in range(self.roads):
            _road(scene, j)
        _town(scene, round(self.buildings * area))
        _car_park(scene)
        flash = scene.uniform("flash") < 3e-4
        scene.paint(flash, "wall", scene.u + _DECIBEL * (8.0 + 17.0 * scene.uniform("flash level")), scene.colour)
        light = 1.0 + 0.08 * scene.numbers("light", 4)
        colour = scene.colour * light[:, :1, None, None] * (0.5 + 0.5 * light[:, 1:, None, None])
        colour = colour + 0.012 * scene.normal("grain", 3)
        made = {
            "reflectivity": scene.u[:, None],
            "sar": LogIntensity(self.looks).sample(scene.u[:, None], scene.streams),
            "optical": colour.clamp(0.0, 1.0),
            "cover": scene.cover[:, None],
        }
        return {name: field.to(dtype) for name, field in made.items()}


class _Scene:
    """What has been painted so far: u (N, H, W), colour (N, 3, H, W), cover (N, H, W), and the scene's random numbers."""

    def __init__(self, streams: Streams, size: int, device: torch.device | str) -> None:
        self.streams, self.size, self.device = streams, size, device
        axis = torch.arange(size, dtype=torch.float32, device=device)
        self.y, self.x = axis[:, None], axis[None, :]
        n = len(streams.draws)
        self.u, self.colour = torch.zeros(n, size, size, device=device), torch.zeros(n, 3, size, size, device=device)
        self.cover = torch.zeros(n, size, size, device=device)

    def paint(self, where: Tensor, name: str, u: Tensor | None = None, colour: Tensor | None = None) -> None:
        """Lay a kind of ground over some pixels, with its own u and colour or others."""
        own, rgb = COVER[name]
        u = self.u.new_tensor(_DECIBEL * own) if u is None else u
        colour = self.colour.new_tensor(rgb)[:, None, None] if colour is None else colour
        self.u, self.colour = torch.where(where, u, self.u), torch.where(where[:, None], colour, self.colour)
        self.cover = torch.where(where, float(NAMES.index(name)), self.cover)

    def draw(self, name: str, count: int) -> Tensor:
        """Uniform numbers of each scene, (N, count)."""
        return self.streams.uniform(0, (count,), name, device=self.device)

    def numbers(self, name: str, count: int) -> Tensor:
        """Normal numbers of each scene, (N, count)."""
        return self.streams.normal(0, (count,), name, device=self.device)

    def uniform(self, name: str) -> Tensor:
        return self.streams.uniform(0, (self.size, self.size), name, device=self.device)

    def normal(self, name: str, channels: int) -> Tensor:
        return self.streams.normal(0, (channels, self.size, self.size), name, device=self.device)

    def smooth(self, name: str, length: float) -> Tensor:
        """A periodic Gaussian field of unit variance with a correlation exp(-r^2 / 4 length^2), pixels, (N, H, W)."""
        rows, columns = (f(self.size, device=self.device) for f in (torch.fft.fftfreq, torch.fft.rfftfreq))
        kernel = (-0.5 * (2.0 * math.pi * length) ** 2 * (rows[:, None].square() + columns.square())).exp()
        whole = torch.fft.irfft2(kernel, s=(self.size, self.size)).square().sum().sqrt()
        return torch.fft.irfft2(torch.fft.rfft2(self.normal(name, 1)[:, 0]) * kernel, s=(self.size, self.size)) / whole


def _parcels(scene: _Scene, count: int) -> None:
    """Cells of random sites under a metric of each scene's own, so that parcels are long in a common direction."""
    site, angle = scene.size * scene.draw("sites", 2 * count), math.pi * scene.draw("direction", 1)[..., None]
    long = 1.0 + 1.5 * scene.draw("long", 1)[..., None]
    along, across = scene.x * angle.cos() + scene.y * angle.sin(), (scene.y * angle.cos() - scene.x * angle.sin()) * long
    nearest, which = torch.full_like(scene.u, math.inf), torch.zeros_like(scene.u, dtype=torch.long)
    for j in range(count):
        a, b = site[:, j, None, None], site[:, count + j, None, None]
        apart = (along - a * angle.cos() - b * angle.sin()).square()
        apart = apart + (across - (b * angle.cos() - a * angle.sin()) * long).square()
        which, nearest = torch.where(apart < nearest, j, which), torch.minimum(nearest, apart)

    def of_parcel(values: Tensor) -> Tensor:
        return values.gather(1, which.flatten(1)).view_as(which)

    crop = (_CROPS * of_parcel(scene.draw("crop", count))).floor()
    direction = angle + 0.5 * math.pi * (of_parcel(scene.draw("furrows", count)) < 0.5)
    period = 3.0 + 6.0 * of_parcel(scene.draw("period", count))
    furrows = (2.0 * math.pi * (scene.x * direction.cos() + scene.y * direction.sin()) / period).sin()
    depth = of_parcel(scene.draw("depth", count))
    tint = torch.stack([of_parcel(scene.numbers(f"tint {c}", count)) for c in range(3)], 1)
    u = 0.35 * of_parcel(scene.numbers("moisture", count)) + 0.2 * depth * furrows + 0.08 * scene.smooth("soil", 2.0)
    colour = 0.035 * tint + (0.02 * depth * furrows + 0.015 * scene.smooth("shade", 3.0))[:, None]
    for k, name in enumerate(NAMES[:_CROPS]):
        rgb = scene.colour.new_tensor(COVER[name][1])[:, None, None]
        scene.paint(crop == k, name, _DECIBEL * COVER[name][0] + u, rgb + colour)


def _nature(scene: _Scene) -> None:
    """Forest, lakes and a river."""
    level = scene.draw("levels", 4)[..., None, None]
    rough = scene.smooth("trees", 1.0)
    forest = scene.smooth("forest", 12.0) + 0.15 * scene.smooth("edge", 2.0) > 0.2 + 1.6 * level[:, 0]
    green = scene.colour.new_tensor(COVER["forest"][1])[:, None, None] * (1.0 + 0.25 * rough[:, None])
    scene.paint(forest, "forest", _DECIBEL * COVER["forest"][0] + 0.35 * rough, green)
    lake = scene.smooth("water", 16.0) < -0.6 - 2.0 * level[:, 1]
    river = (scene.smooth("river", 24.0).abs() < 0.03 + 0.15 * level[:, 2]) & (level[:, 2] < 0.4)
    wind = _DECIBEL * (COVER["water"][0] + 4.0 * level[:, 3]) + 0.1 * scene.smooth("waves", 3.0)
    scene.paint(lake | river, "water", wind)


def _road(scene: _Scene, j: int) -> None:
    there, a, b, angle, width = scene.draw(f"road {j}", 5)[..., None, None].unbind(1)
    apart = (scene.x - scene.size * a) * (math.pi * angle).cos() + (scene.y - scene.size * b) * (math.pi * angle).sin()
    scene.paint((apart.abs() < 1.0 + width) & (there < 0.5), "road")


def _town(scene: _Scene, count: int) -> None:
    """Buildings about a centre, in two scenes of three."""
    there, a, b, angle, spread, dense = scene.draw("town", 6)[..., None, None].unbind(1)
    spread = scene.size * (0.1 + 0.25 * spread)
    roofs = scene.colour.new_tensor([[0.56, 0.30, 0.23], [0.62, 0.61, 0.60], [0.36, 0.33, 0.33]])
    near = (scene.x - scene.size * a).square() + (scene.y - scene.size * b).square()
    blocks = scene.smooth("blocks", 8.0)
    yard = (near < (1.3 * spread).square() * (1.0 + 0.4 * blocks)) & (there < 0.67) & (scene.cover != NAMES.index("water"))
    scene.paint(yard, "town", _DECIBEL * COVER["town"][0] + 0.3 * scene.smooth("yards", 1.5))
    for j in range(count):
        place, values = scene.numbers(f"place {j}", 2)[..., None, None], scene.draw(f"building {j}", 7)[..., None, None]
        turn = 0.5 * math.pi * angle
        x = scene.x - scene.size * a - spread * place[:, 0]
        y = scene.y - scene.size * b - spread * place[:, 1]
        length, width, height = 3.0 + 6.0 * values[:, 0], 2.0 + 2.5 * values[:, 1], 1.0 + 4.0 * values[:, 2]
        along, across = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()

        def inside(
            dx: Tensor | float,
            dy: Tensor | float,
            *,
            box: tuple[Tensor, ...] = (along, across, turn, length, width),
        ) -> Tensor:
            """Where the point (x - dx, y - dy) is in the building."""
            s, c = box[2].sin(), box[2].cos()
            return ((box[0] - dx * c - dy * s).abs() < box[3]) & ((box[1] - dy * c + dx * s).abs() < box[4])

        stands = (there < 0.67) & (values[:, 3] < 0.3 + 0.7 * dense)
        roof, wall = inside(0.0, 0.0) & stands, inside(-1.5, 0.0) & stands
        dark = (inside(height, 0.0) | inside(0.5 * height, 0.0)) & stands
        sun = inside(0.6 * height, 0.6 * height) & stands & ~roof
        scene.paint(dark & ~roof, "shadow", colour=scene.colour)
        scene.colour = torch.where(sun[:, None], 0.45 * scene.colour, scene.colour)
        # a wall that faces the radar flashes
        bright = _DECIBEL * (COVER["wall"][0] + 12.0 * (2.0 * turn).cos().square() * values[:, 6] - 6.0)
        scene.paint(wall & ~roof, "wall", bright.expand_as(scene.u), scene.colour)
        kind = roofs[(3.0 * values[:, 4, 0, 0]).long()][..., None, None] * (0.8 + 0.4 * values[:, 5])[:, None]
        scene.paint(roof, "roof", colour=kind)


def _car_park(scene: _Scene) -> None:
    """In one scene of three."""
    there, a, b, angle, length, width, filled = scene.draw("car park", 7)[..., None, None].unbind(1)
    turn = math.pi * angle
    x, y = scene.x - scene.size * a, scene.y - scene.size * b
    along, across = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    inside = (along.abs() < 10.0 + 25.0 * length) & (across.abs() < 6.0 + 14.0 * width) & (there < 0.33)
    scene.paint(inside, "road", _DECIBEL * (COVER["road"][0] - 1.0) + 0.1 * scene.smooth("asphalt", 1.0))
    row, place = (across / 7.0).floor(), (along / 3.0).floor()
    number = (torch.remainder(row, 8.0) * 32.0 + torch.remainder(place, 32.0)).long().flatten(1)
    taken, flash, red, blue = (scene.draw(f"car {k}", 256).gather(1, number).view_as(scene.u) for k in range(4))
    car = (torch.remainder(across, 7.0) < 3.5) & (torch.remainder(along, 3.0) < 2.0) & (taken < 0.9 * filled)
    u = _DECIBEL * (COVER["car"][0] - 10.0 + 25.0 * flash.square())
    scene.paint(inside & car, "car", u, torch.stack([0.2 + 0.6 * red, 0.2 + 0.3 * red + 0.3 * blue, 0.2 + 0.6 * blue], 1))
