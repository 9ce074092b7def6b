"""Figures and animations of fields: common limits, whole frames, nothing drawn of what is not a number."""

import math
from math import inf, nan

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from invdiff.core import ConfigError, DataError, ShapeError, Streams
from invdiff.plot_fields import Fields, animation, curve_figure, field_figure, space_time_figure


def normal(*shape, seed=0):
    return Streams(seed).normal(0, shape)[0]


def maps(figure):
    """The limits of every image of a figure, without those of the bars."""
    return [image.get_clim() for ax in figure.axes for image in ax.images]


def drawn(figure):
    """A figure that draws without a warning (all are errors here)."""
    FigureCanvasAgg(figure).draw()
    return figure


def smooth(frames, size):
    """Travelling waves, (frames, size, size), different in every frame."""
    x = torch.arange(size) * (2.0 * math.pi / size)
    t = torch.arange(frames)[:, None, None] / frames
    return torch.sin(3.0 * x + 5.0 * t) * torch.cos(2.0 * x[:, None] - 4.0 * t) + 0.3 * torch.sin(7.0 * x[:, None] + t)


def test_the_fields_of_a_group_share_their_limits():
    a, b = normal(8, 12), 3.0 * normal(1, 8, 12, seed=1)
    low, high = min(float(a.min()), float(b.min())), max(float(a.max()), float(b.max()))
    bound = max(-low, high)
    groups = [
        Fields(fields={"a": a, "b": b}),
        Fields(fields={"a": a, "b": b}, colours="signed", units="m"),
        Fields(fields={"a": a.abs()}, colours="spread", points={"a": torch.tensor([[0.1, 0.9], [0.5, 0.5]])}),
        Fields(fields={"a": a}, limits=(-7.0, 9.0)),
    ]
    found = maps(drawn(field_figure([groups[:2], groups[2:]], titles=["one", "two"])))
    expected = [(low, high)] * 2 + [(-bound, bound)] * 2 + [(0.0, float(a.abs().max())), (-7.0, 9.0)]
    assert [pytest.approx(pair) for pair in expected] == found


def test_a_point_is_marked_where_it_is():
    places = torch.tensor([[0.25, 0.75]])
    figure = field_figure([[Fields(fields={"a": normal(4, 4)}, points={"a": places})]])
    (marks,) = figure.axes[0].collections
    assert marks.get_offsets().tolist() == [[0.75, 0.25]]
    assert figure.axes[0].images[0].origin == "lower"


def test_constant_fields_have_limits():
    figure = field_figure([[Fields(fields={"a": torch.zeros(4, 4)}, colours=c) for c in ("value", "signed", "spread")]])
    assert maps(drawn(figure)) == [(-0.5, 0.5), (-1.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"fields": {}}, ConfigError, "expected fields"),
        ({"fields": {"a": torch.zeros(4, 4)}, "colours": "grey"}, ConfigError, "grey"),
        ({"fields": {"a": torch.zeros(4, 4)}, "limits": (1.0, 1.0)}, ConfigError, "limits that increase"),
        ({"fields": {"a": torch.zeros(4, 4)}, "points": {"b": torch.zeros(1, 2)}}, ConfigError, "points in b"),
        ({"fields": {"a": torch.zeros(4, 4)}, "points": {"a": torch.zeros(1, 3)}}, ShapeError, r"\(1, 3\)"),
        ({"fields": {"a": torch.zeros(2, 4, 4)}}, ShapeError, r"a: expected a real \(H, W\), got \(2, 4, 4\)"),
        ({"fields": {"a": torch.zeros(4, 4, dtype=torch.complex64)}}, ShapeError, "complex64"),
        ({"fields": {"a": torch.tensor([[0.0, nan], [inf, 1.0]])}}, DataError, "a: 2 of the 4 values are not finite"),
    ],
)
def test_impossible_fields_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        Fields(**options)


def test_rows_and_titles_go_together():
    group = Fields(fields={"a": torch.zeros(4, 4)})
    for rows, titles in (([], ()), ([[]], ()), ([[group]], ["one", "two"])):
        with pytest.raises(ConfigError, match="field_figure: expected"):
            field_figure(rows, titles=titles)


def test_space_time_has_its_axes_and_limits():
    t, x = torch.linspace(0.0, 2.0, 5), torch.arange(8) / 8
    values, spreads = {"truth": normal(5, 8), "mean": 2.0 * normal(5, 8)}, {"std": normal(5, 8).abs()}
    figure = drawn(space_time_figure(values, spreads, t=t, x=x, places=torch.tensor([0.3, 0.6]), moments=t[1:], units="u"))
    bound = float(values["mean"].abs().max())
    assert maps(figure)[:2] == [pytest.approx((-bound, bound))] * 2
    assert maps(figure)[2] == pytest.approx((0.0, float(spreads["std"].max())))
    first = figure.axes[0]
    assert (first.get_xlabel(), first.get_ylabel()) == ("x", "t")
    # cells of an eighth about the points, of a half about the times
    assert first.images[0].get_extent() == pytest.approx([-1 / 16, 15 / 16, -0.25, 2.25])
    assert [line.get_xdata()[0] for line in first.lines[::2]] == pytest.approx([0.3, 0.6])
    assert list(first.lines[1].get_ydata()) == pytest.approx(t[1:].tolist())


def test_space_time_refuses_what_does_not_fit():
    t, x = torch.linspace(0.0, 1.0, 5), torch.arange(8.0)
    with pytest.raises(ShapeError, match=r"expected a to be \(5, 8\)"):
        space_time_figure({"a": torch.zeros(8, 5)}, t=t, x=x)
    with pytest.raises(ConfigError, match="expected t to increase by equal steps"):
        space_time_figure({"a": torch.zeros(5, 8)}, t=t**2, x=x)
    with pytest.raises(DataError, match="not finite"):
        space_time_figure({"a": torch.full((5, 8), nan)}, t=t, x=x)


def test_a_curve_is_the_mean_in_a_band():
    t, items = torch.linspace(0.0, 1.0, 6), normal(3, 6).abs() + 0.1
    (ax,) = drawn(curve_figure({"one": items, "two": items[0]}, t=t, log=True)).axes
    assert list(ax.lines[0].get_ydata()) == pytest.approx(items.mean(0).tolist())
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((float(items.min()), float(items.max())))
    with pytest.raises(ShapeError, match="6 times of t"):
        curve_figure({"one": items[:, 1:]}, t=t)
    with pytest.raises(ConfigError, match="one > 0"):
        curve_figure({"one": items - 1.0}, t=t, log=True)
    with pytest.raises(DataError, match="not finite"):
        curve_figure({"one": items / 0.0}, t=t)
    with pytest.raises(ConfigError, match="at least one curve"):
        curve_figure({}, t=t)


def test_an_animation_has_its_frames_in_common_colours(tmp_path):
    a = torch.linspace(-1.0, 1.0, 5)[:, None, None].expand(5, 4, 6).clone()
    a[:, 0, :] = -1.0  # the first row, which is shown at the bottom
    b = torch.ones(5, 4, 6)
    for name in ("one.gif", "two.gif"):
        animation({"a": a, "b": b}, tmp_path / "new" / name, fps=10, times=torch.arange(5) / 4, units="u", size=48)
    assert (tmp_path / "new" / "one.gif").read_bytes() == (tmp_path / "new" / "two.gif").read_bytes()
    with Image.open(tmp_path / "new" / "one.gif") as picture:
        assert picture.n_frames == 5
        assert picture.size == (8 + 2 * (48 + 8) + 84, 24 + 32 + 34)
        assert picture.info["duration"] == 100
        for k in range(5):
            picture.seek(k)
            rgb = picture.convert("RGB")
            # the second field's 1 is the top of the map in every frame, the first row of the first its bottom
            assert rgb.getpixel((64 + 20, 24 + 10)) == (103, 0, 31)
            assert rgb.getpixel((8 + 20, 24 + 30)) == (5, 48, 97)
        assert rgb.getpixel((8 + 20, 24 + 2)) == (103, 0, 31)


def test_still_frames_are_kept_and_blocked_cells_are_grey(tmp_path):
    blocked = torch.zeros(4, 4, dtype=torch.bool)
    blocked[3, 0] = True
    animation({"a": torch.zeros(7, 4, 4)}, tmp_path / "a.gif", blocked=blocked, limits=(0.0, 1.0), colours="value", size=40)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 7
        red, green, blue = picture.convert("RGB").getpixel((8 + 5, 24 + 5))
    assert red == green == blue


def test_sixty_frames_of_three_panels_stay_small(tmp_path):
    w = smooth(60, 64)
    animation({"truth": w, "estimate": 0.9 * w, "error": -0.1 * w}, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 60
    assert (tmp_path / "a.gif").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("frames", "options", "error", "words"),
    [
        ({}, {}, ConfigError, "expected panels"),
        ({"a": torch.zeros(2, 4, 4)}, {"fps": 0.0}, ConfigError, "fps"),
        ({"a": torch.zeros(2, 4, 4)}, {"colours": "grey"}, ConfigError, "grey"),
        ({"a": torch.zeros(4, 4)}, {}, ShapeError, r"expected a real \(T, H, W\)"),
        ({"a": torch.zeros(2, 4, 4), "b": torch.zeros(3, 4, 4)}, {}, ShapeError, "panels of one shape"),
        ({"a": torch.zeros(2, 4, 4)}, {"times": torch.zeros(3)}, ShapeError, "expected 2 times"),
        ({"a": torch.zeros(2, 4, 4)}, {"blocked": torch.zeros(4, 5, dtype=torch.bool)}, ShapeError, r"\(4, 5\)"),
        ({"a": torch.full((2, 4, 4), nan)}, {}, DataError, "a: 32 of the 32 values are not finite"),
    ],
)
def test_impossible_animations_are_refused(tmp_path, frames, options, error, words):
    with pytest.raises(error, match=words):
        animation(frames, tmp_path / "a.gif", **options)
    assert not (tmp_path / "a.gif").exists()
