"""A report says what was measured, hides nothing, and is written whole or not at all."""

import base64
import io
import json
import math
import re
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Ellipse
from PIL import Image

from invdiff import kernels
from invdiff.core import ConfigError, DataError, Samples, ShapeError, Streams
from invdiff.metrics import coverage, nrmse, psnr, ssim
from invdiff.plot import calibration_figure, gaussian_figure, reconstruction_figure
from invdiff.report import Estimate, Item, Report

FILES = {"report.json", "report.html", "figure.png", "samples.h5", "config.yaml", "environment.json"}
METRICS = {"psnr", "ssim", "nrmse", "misfit", "coverage"}


@pytest.fixture
def no_figures(monkeypatch):
    """For tests about numbers and files: drawing takes most of the time of a report."""
    monkeypatch.setattr(Report, "_images", lambda self: {"Reconstruction": b"a picture"})


def normal(shape, draws=1, seed=0):
    return Streams(seed, draws).normal(0, shape)


def item(name="item", shape=(1, 16, 20), n=24, truth=True, kind="posterior", seed=0, **options):
    """Truth and draws of one law, so that the draws are calibrated; two baselines."""
    x = normal(shape, n + 1, seed)
    draws = Samples(
        x=x[1:],
        kind=kind,
        sampler="MMPS",
        network_calls=50.0,
        network_vjps=7.0,
        operator_calls=90.0,
        seconds=1.5,
        peak_bytes=2**20,
    )
    baselines = [
        Estimate(
            method="adjoint", image=0.5 * x[0], misfit=3.0, facts={"formula": "fbp", "seconds": 0.25, "operator_calls": 1}
        ),
        Estimate(method="tikhonov", image=0.9 * x[0], misfit=1.0, facts={"strength": math.inf}),
    ]
    last = Estimate.of(draws, misfit=1.02, z_mean=2.5)
    return Item(
        name=name, estimates=[*baselines, last], truth=x[0] if truth else None, data_range=4.0 if truth else None, **options
    )


def report(*items, **options):
    options = {"task": "toy", "seed": 3, "config": {"sampler": {"steps": 5, "rate": 0.1}}, "units": "HU", **options}
    return Report(items=items or (item(),), **options)


def load(path):
    """JSON as the standard has it: NaN and infinity are errors."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_report_holds_every_file_and_nothing_else(tmp_path):
    out = report(extra={"volume.txt": lambda path: path.write_text("x")}).write(tmp_path / "a" / "out")
    assert {p.name for p in out.iterdir()} == FILES | {"volume.txt"}
    assert yaml.safe_load((out / "config.yaml").read_text()) == {"sampler": {"steps": 5, "rate": 0.1}}
    facts = load(out / "environment.json")
    assert facts["versions"]["torch"] and facts["kernels"] == sorted(kernels.enabled())
    with Image.open(out / "figure.png") as image:
        assert image.size[0] > 1000


def test_numbers_are_those_of_the_metrics(no_figures, tmp_path):
    items = [item("a"), item("b", seed=1)]
    facts = load(report(*items).write(tmp_path / "out") / "report.json")
    assert (facts["task"], facts["seed"], facts["units"], facts["device"]) == ("toy", 3, "HU", "cpu")
    assert [i["name"] for i in facts["items"]] == ["a", "b"]
    for i, found in zip(items, facts["items"], strict=True):
        last, truth = i.estimates[-1], i.truth[None]
        low, high = last.samples.interval(0.9)
        values = found["methods"]["MMPS"]
        assert set(values) >= METRICS
        assert values["psnr"] == psnr(last.image[None], truth, 4.0).item()
        assert values["ssim"] == ssim(last.image[None], truth, 4.0).item()
        assert values["nrmse"] == nrmse(last.image[None], truth).item()
        assert values["coverage"] == coverage(low[None], high[None], truth).item()
        assert (values["misfit"], values["facts"]) == (1.02, {"z_mean": 2.5})
        assert found["methods"]["tikhonov"]["nrmse"] == pytest.approx(0.1, rel=1e-6)
    a, b = (found["methods"]["MMPS"]["psnr"] for found in facts["items"])
    assert facts["methods"]["MMPS"]["psnr"] == pytest.approx({"mean": (a + b) / 2, "standard_error": abs(a - b) / 2})


def test_cost_is_reported_for_the_sampler_and_for_baselines(no_figures, tmp_path):
    methods = load(report().write(tmp_path / "out") / "report.json")["methods"]
    assert methods["MMPS"]["cost"] == {
        "draws": 24,
        "seconds": 1.5,
        "network_calls": 50,
        "network_vjps": 7,
        "operator_calls": 90,
        "peak_bytes": 2**20,
    }
    assert methods["adjoint"]["cost"]["seconds"] == 0.25
    assert methods["adjoint"]["cost"]["network_calls"] is None
    assert methods["adjoint"]["kind"] == "baseline"


def test_what_does_not_exist_is_null_and_a_dash(no_figures, tmp_path):
    plain = report(item(truth=False))
    facts = load(plain.write(tmp_path / "a") / "report.json")
    values = facts["items"][0]["methods"]["MMPS"]
    assert {k for k in METRICS if values[k] is not None} == {"misfit"}
    assert facts["methods"]["MMPS"]["psnr"] == {"mean": None, "standard_error": None}
    assert plain.table().splitlines()[-1].split() == ["MMPS", "-", "-", "-", "1.02", "-", "1.5", "50"]
    assert any("No truth is known" in note for note in facts["notes"])

    point = report(item(kind="point"))
    facts = load(point.write(tmp_path / "b") / "report.json")
    assert facts["items"][0]["methods"]["MMPS"]["coverage"] is None
    assert any("point estimate" in note for note in facts["notes"])
    with h5py.File(tmp_path / "b" / "samples.h5") as file:
        assert set(file["item/MMPS"]) == {"draws", "mean"}


def two_valued(truth, image, levels=(3.0, 12.0), name="a"):
    estimates = [Estimate(method="flat", image=torch.full_like(image, 3.0)), Estimate(method="MMPS", image=image)]
    return Item(name=name, estimates=estimates, truth=truth, levels=levels)


def test_the_error_rate_is_the_part_nearer_to_the_wrong_value(no_figures, tmp_path):
    """Of eight cells, one of the two that are wrong lies only just beyond the middle, 7.5."""
    truth = torch.tensor([[3.0, 3.0, 3.0, 12.0], [12.0, 12.0, 12.0, 12.0]])
    image = torch.tensor([[2.0, 7.4, 7.6, 7.4], [7.6, 30.0, 12.0, 8.0]])
    found = two_valued(truth, image)
    assert found.metrics(found.estimates[1])["error_rate"] == 2 / 8
    assert found.metrics(found.estimates[0])["error_rate"] == 5 / 8
    assert found.metrics(Estimate(method="exact", image=truth))["error_rate"] == 0.0
    assert two_valued(truth, image, None).metrics(found.estimates[1])["error_rate"] is None
    assert two_valued(None, image).metrics(found.estimates[1])["error_rate"] is None
    both = report(found, two_valued(truth, truth, name="b"))
    facts = load(both.write(tmp_path / "out") / "report.json")
    assert facts["items"][0]["methods"]["MMPS"]["error_rate"] == 0.25
    assert facts["methods"]["MMPS"]["error_rate"] == {"mean": 0.125, "standard_error": 0.125}
    head, _, flat, last = both.table().splitlines()
    assert "error rate" in head and "0.6250 ± 0.0000" in flat and "0.1250 ± 0.1250" in last
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<th>error rate</th>" in text and "<td>0.2500</td>" in text


def test_only_unknowns_of_two_values_have_a_column_for_errors(no_figures, tmp_path):
    plain = report()
    facts = load(plain.write(tmp_path / "out") / "report.json")
    assert facts["items"][0]["methods"]["MMPS"]["error_rate"] is None
    assert facts["methods"]["MMPS"]["error_rate"] == {"mean": None, "standard_error": None}
    assert "error rate" not in plain.table()
    assert "error rate" not in (tmp_path / "out" / "report.html").read_text("utf-8")
    # and where one item of two has values, there is one
    x = torch.full((1, 4), 3.0)
    assert "error rate" in report(two_valued(x, x), two_valued(x, x, None, "b")).table()


@pytest.mark.parametrize(("misfit", "told"), [(1.02, None), (9.9, None), (22394.4, "2.239e+04"), (math.nan, "nan")])
def test_an_estimate_that_does_not_explain_the_measurement_is_called_so(misfit, told):
    """Draws of a run that diverged are spread so widely that their intervals hold the truth."""
    (*baselines, last) = item().estimates
    notes = report(Item(name="a", estimates=[*baselines, replace(last, misfit=misfit)])).all_notes()
    found = [note for note in notes if "does not explain" in note]
    assert len(found) == (told is not None) and all(f"The misfit of MMPS is {told}," in note for note in found)


@pytest.mark.parametrize(("kind", "label"), [("posterior", "std, error [HU]"), ("point", "error [HU]")])
def test_the_bar_of_the_errors_names_what_is_shown(kind, label):
    labels = [ax.get_ylabel() for ax in reconstruction_figure([item(kind=kind)], units="HU").axes]
    assert [text for text in labels if "error" in text] == [label]


def test_values_that_are_not_finite_become_null(no_figures, tmp_path):
    exact = Item(
        name="i", estimates=[Estimate(method="m", image=torch.ones(3), misfit=math.nan)], truth=torch.ones(3), data_range=1.0
    )
    facts = load(
        report(exact, facts={"a": math.inf, "b": torch.tensor([1.0, math.nan]), "c": np.float32(2)}).write(tmp_path)
        / "report.json"
    )
    assert facts["items"][0]["methods"]["m"]["psnr"] is None
    assert facts["items"][0]["methods"]["m"]["misfit"] is None
    assert facts["facts"] == {"a": None, "b": [1.0, None], "c": 2.0}
    assert load(report().write(tmp_path) / "report.json")["items"][0]["methods"]["tikhonov"]["facts"] == {"strength": None}


def test_table_has_a_row_for_each_method_in_aligned_columns():
    head, rule, *rows = report(item("a"), item("b", seed=1)).table().splitlines()
    assert head.split("  ")[0] == "method"
    assert all(word in head for word in ("PSNR", "SSIM", "NRMSE", "misfit", "coverage", "seconds", "network calls"))
    assert set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == ["adjoint", "tikhonov", "MMPS"]
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert " ± " in rows[0]


def test_samples_come_back(no_figures, tmp_path):
    original = item("slice/3")
    out = report(original).write(tmp_path / "out")
    with h5py.File(out / "samples.h5") as file:
        group, samples = file["slice_3"], original.estimates[-1].samples
        np.testing.assert_array_equal(group["truth"], original.truth)
        np.testing.assert_array_equal(group["adjoint/estimate"], original.estimates[0].image)
        np.testing.assert_array_equal(group["MMPS/draws"], samples.x)
        np.testing.assert_array_equal(group["MMPS/mean"], samples.mean)
        np.testing.assert_array_equal(group["MMPS/std"], samples.std)
        np.testing.assert_array_equal(group["MMPS/quantile_95"], samples.quantile(0.95))
        assert set(group["MMPS"]) == {"draws", "mean", "std", "quantile_05", "quantile_50", "quantile_95"}
        assert file.attrs["units"] == "HU"


def test_page_needs_nothing_else_and_escapes_what_it_is_given(tmp_path):
    out = report(item("<b>&"), notes=["<script>alert(1)</script>"]).write(tmp_path / "out")
    text = (out / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    images = [base64.b64decode(code) for code in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert images[0] == (out / "figure.png").read_bytes()
    assert len(images) == 2
    for image in images:
        with Image.open(io.BytesIO(image)) as opened:
            opened.verify()


def test_figures_of_the_task_come_first(tmp_path):
    mine = gaussian_figure(normal((4,), 50), torch.zeros(4), torch.eye(4))
    out = report(figures={"Mine": mine}).write(tmp_path / "out")
    text = (out / "report.html").read_text("utf-8")
    assert re.findall("<h2>(.*?)</h2>", text)[1:4] == ["Mine", "Reconstruction", "Calibration"]


@contextmanager
def disk_of(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def failing_move(monkeypatch, count):
    """The system refuses the count-th rename."""
    calls, move = [], Path.replace

    def replace(self, target):
        calls.append(target)
        if len(calls) == count:
            raise OSError(28, "No space left on device")
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield


def interrupted(path):
    path.write_text("half")
    raise KeyboardInterrupt


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("fault", ["disk", "interrupt", "move 4", "move 9"])
def test_a_failed_write_leaves_the_older_report_and_nothing_else(no_figures, tmp_path, monkeypatch, fault):
    out = report().write(tmp_path / "out")
    (out / "other.txt").write_text("of the user")
    before = contents(out)
    later = report(item("later"), extra={"x.txt": interrupted} if fault == "interrupt" else {})
    if fault == "disk":
        with disk_of(5000), pytest.raises(DataError, match=r"^[^\n]*can't be written[^\n]*$"):
            later.write(out)
    elif fault == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            later.write(out)
    else:
        with failing_move(monkeypatch, int(fault[-1])), pytest.raises(DataError, match="No space left"):
            later.write(out)
    assert contents(out) == before
    assert {p.name for p in out.iterdir()} == FILES | {"other.txt"}


def test_a_failed_first_write_leaves_no_folder(no_figures, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        report(extra={"x.txt": interrupted}).write(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"file/out: the report can't be written: Not a directory"):
        report().write(tmp_path / "file" / "out")


def test_a_new_report_replaces_the_old_one(no_figures, tmp_path):
    report(item("old")).write(tmp_path / "out")
    out = report(item("new")).write(tmp_path / "out")
    assert load(out / "report.json")["items"][0]["name"] == "new"
    assert {p.name for p in out.iterdir()} == FILES


def test_what_does_not_fit_together_is_refused():
    x = torch.zeros(1, 4, 4)
    with pytest.raises(ShapeError, match=r"Item a: expected m to be \(1, 4, 4\) real, got \(1, 4, 5\) float32"):
        Item(name="a", estimates=[Estimate(method="m", image=torch.zeros(1, 4, 5))], truth=x)
    with pytest.raises(ShapeError, match="complex64"):
        Item(name="a", estimates=[Estimate(method="m", image=x + 0j)], truth=x)
    with pytest.raises(ConfigError, match="different names"):
        Item(name="a", estimates=[Estimate(method="m", image=x)] * 2)
    with pytest.raises(ConfigError, match="items with different names"):
        report(item("a"), item("a"))


FIGURES = {
    "one": lambda: reconstruction_figure([item()], units="HU"),
    "many": lambda: reconstruction_figure([item(str(k), seed=k) for k in range(6)]),
    "tall": lambda: reconstruction_figure([item(shape=(1, 60, 20))]),
    "colour": lambda: reconstruction_figure([item(shape=(3, 16, 20))]),
    "volume": lambda: reconstruction_figure([item(shape=(1, 5, 16, 20))]),
    "point": lambda: reconstruction_figure([item(kind="point", truth=False)]),
    "vector": lambda: reconstruction_figure([item(shape=(8,))], units="m"),
    "trace": lambda: reconstruction_figure([item("a", shape=(1, 100)), item("b", shape=(1, 100))]),
    "calibration": lambda: calibration_figure([item("a"), item("b", seed=1)], units="HU"),
    "gaussian": lambda: gaussian_figure(normal((8,), 99), torch.zeros(8), torch.eye(8), truth=torch.ones(8)),
    "scalar": lambda: gaussian_figure(normal((1,), 99), torch.zeros(1), torch.eye(1)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_of_a_figure_is_cut_off(name):
    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    drawn = figure.get_tightbbox(renderer)
    assert drawn.x0 > -0.01 and drawn.y0 > -0.01
    assert drawn.x1 < figure.get_figwidth() + 0.01 and drawn.y1 < figure.get_figheight() + 0.01


def test_ellipses_hold_their_share_of_exact_draws():
    """A strongly correlated pair, 4,000 draws; 5 binomial standard errors."""
    cov = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    mean = torch.tensor([3.0, -1.0])
    draws = mean + normal((2,), 4000) @ torch.linalg.cholesky(cov).T
    figure = gaussian_figure(draws, mean, cov)
    ellipses = figure.findobj(Ellipse)
    for patch, share in zip(ellipses, (0.5, 0.9, 0.99), strict=True):
        angle = math.radians(patch.angle)
        centred = draws.numpy() - np.array(patch.center)
        u = centred @ np.array([math.cos(angle), math.sin(angle)]) / (patch.width / 2)
        v = centred @ np.array([-math.sin(angle), math.cos(angle)]) / (patch.height / 2)
        assert abs(np.mean(u * u + v * v <= 1) - share) < 5 * math.sqrt(share * (1 - share) / 4000)


def test_the_calibration_panel_shows_calibrated_draws_on_the_diagonal():
    figure = calibration_figure([item(shape=(1, 64, 64), n=60)])
    line = figure.axes[0].lines[0]
    levels, inside = np.array(line.get_xdata()), np.array(line.get_ydata())
    assert np.all(np.abs(inside - levels) < 5 * np.sqrt(levels * (1 - levels) / 64**2))
