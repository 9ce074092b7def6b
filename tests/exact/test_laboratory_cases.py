"""The laboratory's images and toys against formulas of their own; diagnostics against planted faults; grids; files."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch.distributions import MultivariateNormal

from invdiff import validation
from invdiff.commands.validating import validate
from invdiff.core import ConfigError, Streams
from invdiff.guidance import MMPS
from invdiff.samplers import DAPS, Guided, Heun, Laplace, PnPDM
from invdiff.validation import MAKERS, Contender, Results, calibration, contenders, diagnostics, gate, grid, modes
from invdiff.validation.case import Case
from invdiff.validation.cases import coloured, mixture, white
from invdiff.validation.diagnose import NAMES
from invdiff.validation.grids import GRIDS, fitted
from invdiff.validation.image_cases import FIELDS, IMAGES, SHIFTS, random_field, shapes, toy
from invdiff.validation.null_gate import BLIND, CALIBRATION_FAULTS, WEAK, faulty, informed

F64 = torch.float64


def dense(operator):
    """The matrix of an operator, by its formula on every unit vector."""
    count = math.prod(operator.in_shape)
    return operator(torch.eye(count, dtype=F64).reshape(count, *operator.in_shape)).flatten(1).T


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_the_toys_posterior_by_scalars(sigma):
    """Every measurement is of one coordinate, so that the posterior is that of single numbers."""
    weak, strong = toy(0, sigma=sigma), toy(0, strong=True, sigma=sigma)
    gain = 0.1 + 0.05 * torch.arange(14, dtype=F64)
    y = weak.problem.y[0]
    torch.testing.assert_close(weak.exact.weights, torch.tensor([0.8, 0.2], dtype=F64))
    torch.testing.assert_close(weak.exact.means[:, 2:], (gain * y / (gain**2 + sigma**2)).expand(2, 14))
    torch.testing.assert_close(weak.exact.mean[:2], torch.tensor([0.6, 0.6], dtype=F64))
    variances = torch.cat([torch.tensor([1.0 + 0.2 + 0.16 * 9.0] * 2, dtype=F64), sigma**2 / (gain**2 + sigma**2)])
    torch.testing.assert_close(weak.exact.cov.diagonal(), variances)

    y = strong.problem.y[0]
    evidence = []
    for weight, mean, variance in ((0.8, 0.0, 1.0), (0.2, 3.0, 2.0)):
        total = 9.0 * variance + sigma**2
        evidence.append(weight * math.prod(math.exp(-0.5 * (float(v) - 3.0 * mean) ** 2 / total) / total**0.5 for v in y[:2]))
    assert float(strong.exact.weights[1]) == pytest.approx(evidence[1] / sum(evidence), rel=1e-9)


def test_the_random_fields_posterior_is_wieners_filter():
    case = random_field(0, side=12, shift=2.0, sigma=0.2)
    spectrum, y = case.prior.spectrum, case.problem.y
    unit = torch.zeros(1, 1, 12, 12, dtype=F64)
    unit[..., 0, 0] = 1.0
    k = torch.fft.fft2(case.problem.operator(unit))
    mean = torch.fft.ifft2(k.conj() * spectrum / (k.abs() ** 2 * spectrum + 0.04) * torch.fft.fft2(y)).real[0]
    torch.testing.assert_close(case.exact.mean, mean, atol=1e-10, rtol=1e-8)
    left = (0.04 * spectrum / (k.abs() ** 2 * spectrum + 0.04)).flatten().sort().values
    torch.testing.assert_close(case.exact.variances.sort().values, left, atol=1e-12, rtol=1e-8)
    # P(2) / P(1) of the spectrum, and a variance of one
    assert float(spectrum[0, 2] / spectrum[0, 1]) == pytest.approx(2.0**-3.035 * math.exp(-3.0 / 64.0), rel=1e-9)
    assert float(spectrum.mean()) == pytest.approx(1.0, rel=1e-9)


def test_the_shift_moves_the_truth_and_leaves_the_spread():
    fields = [random_field(1, side=10, shift=s) for s in SHIFTS]
    y = [f.problem.y for f in fields]
    # the noise is the same, the truth in proportion to the shift
    torch.testing.assert_close((y[3] - y[2]) / 2.0, (y[1] - y[0]) / 0.5)
    torch.testing.assert_close(fields[0].exact.variances, fields[3].exact.variances)
    slope = dense(fields[0].problem.operator).inverse() @ ((y[1] - y[0]) / 0.5).flatten()
    law = random_field(1, side=10).prior
    # one standard deviation in every direction: |x|^2 = N in units of the prior's variances
    assert float(law.distance(slope.reshape(1, 1, 10, 10))) == pytest.approx(100.0, rel=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_the_weights_of_the_shapes_are_their_evidences(name):
    largest = []
    for seed in range(3):
        case = MAKERS[name](seed)
        matrix, prior = dense(case.problem.operator), case.prior
        cov = (prior.bases[0] * prior.variances[0]) @ prior.bases[0].T
        noise = float(case.problem.noise.sigma) ** 2 * torch.eye(len(matrix), dtype=F64)
        law = MultivariateNormal(prior.means.flatten(1) @ matrix.T, matrix @ cov @ matrix.T + noise)
        weights = (prior.weights.log() + law.log_prob(case.problem.y.flatten())).softmax(0)
        torch.testing.assert_close(case.exact.weights, weights, atol=1e-9, rtol=1e-6)
        largest.append(float(weights.max()))
    # more than one shape is left in each problem
    assert max(largest) < 0.95
    # and they are far apart: of 18 standard deviations or more of the smooth field
    away = (shapes()[1:] - shapes()[:1]).flatten(1) @ prior.bases[0] / prior.variances[0].sqrt()
    assert float(away.norm(dim=1).min()) > 18.0


def test_modes_accept_exact_draws_and_reject_three_per_cent():
    case = random_field(0, side=10, sigma=0.2)
    sets = [case.exact.sample(Streams(k, 400)) for k in range(40)]
    rows = [modes(x, case) for x in sets]
    assert max(abs(r[key]) for r in rows for key in ("z_mean", "z_cov")) < 5.0
    assert abs(sum(r["z_spread"] for r in rows)) / math.sqrt(40.0) < 4.0
    # the floor is the root of the expected square
    square = sum(r["distance"] ** 2 for r in rows) / 40.0
    assert square == pytest.approx(rows[0]["floor"] ** 2, rel=0.1)
    assert sum(r["coverage"] for r in rows) / 40.0 == pytest.approx(0.9, abs=0.01)
    wide = [modes(case.exact.mean + 1.03 * (x - case.exact.mean), case)["z_spread"] for x in sets[:5]]
    assert min(wide) > 4.0
    moved = modes(sets[0] + 0.5 * case.exact.std, case)
    assert moved["z_mean"] > 8.0


def test_rows_on_a_new_case():
    exact = next(c for c in contenders() if c.name == "laplace" and c.cases == FIELDS)
    assert validation.row(exact, FIELDS[0], 400)["ok"]


@pytest.mark.slow
def test_known_biases_on_a_new_case():
    known = next(c for c in contenders() if c.name == "ddrm" and c.cases[0] == FIELDS[1])
    assert validation.row(known, FIELDS[1], 400)["ok"]


def test_every_diagnostic_accepts_exact_draws():
    case = mixture(2)
    found = diagnostics(faulty(case, "none", 100, 0), case, most=40)
    assert tuple(found) == NAMES and not [name for name, reading in found.items() if reading.alarm]


def test_what_stein_is_blind_to_others_see():
    case, two = mixture(2), ("sliced W1", "KSD")
    for fault in ("mode lost", "exchanged"):
        found = diagnostics(faulty(case, fault, 200, 0), case, only=two)
        assert found["sliced W1"].alarm and not found["KSD"].alarm
    # half a deviation of a mode is little beside the distance between modes
    found = diagnostics(faulty(case, "moved", 200, 0), case, only=two)
    assert found["KSD"].alarm and not found["sliced W1"].alarm


@pytest.mark.parametrize("fault", ["wide", "moved", "shuffled"])
def test_faults_on_a_gaussian_are_seen(fault):
    case = coloured()
    found = diagnostics(faulty(case, fault, 400, 0), case, only=("mean", "sliced W1", "W2", "CRPS", "KSD"), most=150)
    assert found["sliced W1"].alarm and found["W2"].alarm and found["KSD"].alarm
    assert found["mean"].alarm == (fault == "moved")
    assert not (fault == "shuffled" and found["CRPS"].alarm)


def test_calibration_accepts_the_posterior_and_rejects_faults():
    found = {name: calibration(informed(), draw, problems=150) for name, draw in CALIBRATION_FAULTS.items()}
    assert not any(reading.alarm for reading in found["none"].values())
    assert found["none"]["coverage"].value == pytest.approx(0.9, abs=0.03)
    assert found["wide"]["coverage"].alarm and found["wide"]["coverage"].value > 0.93 and found["moved"]["SBC"].alarm
    # draws of the prior have the right ranks where the measurement is not looked at
    assert found["prior"]["TARP"].alarm and found["prior"]["SBC, likelihood"].alarm
    assert not found["prior"]["SBC"].alarm and not found["prior"]["coverage"].alarm


def test_a_case_without_a_density_has_the_other_diagnostics():
    case = MAKERS["despeckling"](0)
    assert tuple(diagnostics(case.exact.sample(Streams(0, 40)), case, only=("KSD", "W2", "mean"), most=20)) == ("W2",)


@pytest.mark.slow
def test_the_gate_is_open():
    rows = gate(repeats=5)
    assert [r for r in rows if not r["ok"]] == []
    assert {(r["diagnostic"], r["fault"]) for r in rows} >= BLIND
    assert {(r["diagnostic"], r["case"], r["fault"]) for r in rows} >= WEAK


def test_what_a_diagnostic_can_not_do_is_an_error():
    case = coloured()
    with pytest.raises(ConfigError, match="20 draws"):
        diagnostics(case.exact.sample(Streams(0, 19)), case)
    with pytest.raises(ConfigError, match=r"names of mean, .*, got MMD"):
        diagnostics(case.exact.sample(Streams(0, 40)), case, only=("MMD",))
    with pytest.raises(ConfigError, match="ten to divide"):
        calibration(white(), n=20)


def test_the_options_follow_the_size_of_a_problem():
    case = GRIDS["white"][2](32, 0.01)
    sampler = next(c for c in contenders() if c.name == "mmps, heun" and "white" in c.cases).sampler
    new = fitted(sampler, case, 0.01)
    assert (new.guidance.cg_steps, new.grid.sigma_min, new.steps) == (16, 0.0025, sampler.steps)
    daps = fitted(DAPS("jacobian", krylov=8), GRIDS["complex"][2](32, 1.0), 1.0)
    assert daps.krylov == 32
    assert (
        fitted(Guided(guidance=MMPS(cg_steps=3), integrator=Heun()), GRIDS["complex"][2](32, 1.0), 1.0).guidance.cg_steps == 16
    )
    assert float(case.problem.noise.sigma) == 0.01 and case.problem.shape == (32,)


def test_every_grid_is_of_its_case_and_grows():
    for name, (extents, levels, make) in GRIDS.items():
        small, large = (make(d, levels[0]) for d in extents)
        assert name in MAKERS and small.name == large.name == name
        assert math.prod(small.problem.shape) < math.prod(large.problem.shape)
        assert len(set(levels)) == 3


def test_a_grid_has_two_sizes_and_three_levels_and_rejects_a_fault():
    rows = grid(Contender("laplace", Laplace(steps=1), "exact", ("field", "no such grid")), n=300)
    assert [(r["size"], r["level"]) for r in rows] == [(d, s) for d in (8, 32) for s in (0.01, 0.1, 1.0)]
    assert all(r["ok"] for r in rows)
    assert validation.sizes_table(rows).count("\n") == 2 and "0.01, 0.1, 1" in validation.sizes_table(rows)
    wrong = grid(Contender("pnp-dm", PnPDM(steps=20, last=1.0, decay=0.8, inner=5), "exact", ("white",)), n=300)
    assert not any(r["ok"] for r in wrong if r["level"] < 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmps, unipc(2)", "pigdm, heun", "daps, jacobian", "tds", "laplace", "despeckle"])
def test_exact_samplers_pass_at_two_sizes_and_three_levels(name):
    for contender in contenders():
        if contender.name == name and contender.claim == "exact" and contender.cases[0] in GRIDS:
            rows = grid(Contender(name, contender.sampler, "exact", contender.cases[:2]))
            assert [r for r in rows if not r["ok"]] == []


ROWS = [
    {
        "sampler": "a",
        "case": "white",
        "claim": "exact",
        "coverage": 0.9,
        "worst_z": 2.0,
        "network_calls": 60,
        "network_vjps": 480,
    },
    {
        "sampler": "<b>",
        "case": "white",
        "claim": "wrong",
        "coverage": 0.5,
        "worst_z": 90.0,
        "network_calls": 0,
        "network_vjps": 0,
    },
    {"sampler": "c", "case": "mixture dy=1", "claim": "biased", "ratio": 7.5, "network_calls": 9, "network_vjps": 0},
]
ROWS = [r | {"ok": r["sampler"] != "<b>", "draws": 10, "seconds": 0.1} for r in ROWS]


def test_the_page_stands_alone_and_shows_every_row():
    rows = [*ROWS, {**ROWS[2], "case": "random field, shift 2"}]
    assert list(validation.page.__globals__["families"](rows)) == ["Gaussian posteriors", "Mixtures", "Random field"]
    text = validation.page(Results(rows=rows, facts={"torch": "2"}))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert text.count('<td class="failed">FAILED') == 1 and text.count('<td class="ok">ok') == 3
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    marks = [len(ElementTree.fromstring(d).findall(".//{http://www.w3.org/2000/svg}circle")) for d in drawings]
    assert marks == [2, 1, 1, 2]


def test_a_point_of_the_drawing_is_where_its_numbers_are():
    from invdiff.validation.drawing import ABOVE, LEFT, deviation_drawing

    row = {**ROWS[0], "worst_z": 100.0, "network_calls": 50, "network_vjps": 50}
    mark = ElementTree.fromstring(deviation_drawing([row])).find(".//{http://www.w3.org/2000/svg}circle")
    # 10^2 of the decade from 10^2 to 10^3, and 10^2 of those from 10^0 to 10^2
    assert (float(mark.get("cx")), float(mark.get("cy"))) == (LEFT, ABOVE)


def test_files_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "run", lambda quick, progress: ROWS)
    monkeypatch.setattr(
        validation,
        "sizes",
        lambda n, progress: [{"sampler": "a", "case": "white", "size": 8, "level": 0.1, "worst_z": 1.0, "ok": True}],
    )
    text, ok = validate((), str(tmp_path / "new"))
    assert not ok and text == validation.table(ROWS)
    held = json.loads((tmp_path / "new/validation.json").read_text())
    assert held["rows"] == ROWS and set(held) == {"facts", "rows"}
    assert (tmp_path / "new/validation.md").read_text() == text + "\n"
    assert (tmp_path / "new/validation.html").read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["validation.html", "validation.json", "validation.md"]
    text, ok = validate(("--sizes", "--json"))
    assert ok and set(json.loads(text)) == {"facts", "sizes"}
    with pytest.raises(ConfigError, match="a folder that exists"):
        validate((), str(tmp_path / "no" / "such"))


def test_a_case_of_a_prior_that_knows_its_posterior():
    case = coloured()
    again = Case.of("again", case.problem, case.prior)
    torch.testing.assert_close(again.exact.mean, case.exact.mean)
