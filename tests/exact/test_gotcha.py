"""What is known of one degree of the Gotcha set: where its brightest target is, how wide, and phases planted in its pulses.

The file is not part of the project: INVDIFF_DATA names a folder with sar/gotcha_pass1_HH_az001.mat (the file
data_3dsar_pass1_az001_HH.mat of the AFRL), else these tests are skipped.
"""

import os
from pathlib import Path

import pytest
import torch

from invdiff.core import Streams
from invdiff.io import read_gotcha
from invdiff.metrics import point_response
from invdiff.operators import PhaseHistory, form_image, ground, resolution
from invdiff.samplers.autofocus import minimum_entropy, phase_gradient, without_trend

PEAK = torch.tensor([-15.6, 21.6], dtype=torch.float64)  # x and y, m


@pytest.fixture(scope="module")
def data():
    path = Path(os.environ.get("INVDIFF_DATA", "")) / "sar" / "gotcha_pass1_HH_az001.mat"
    if "INVDIFF_DATA" not in os.environ or not path.is_file():
        pytest.skip("INVDIFF_DATA names no folder with sar/gotcha_pass1_HH_az001.mat")
    found = read_gotcha(path)
    q, f, r0 = (torch.from_numpy(v) for v in (found.positions, found.frequencies, found.reference))
    y = torch.from_numpy(found.signal)[None]
    return q, f, {"sign": found.sign, "reference": r0}, y / y.abs().square().mean().sqrt()


def test_the_brightest_target_is_where_it_is_known_to_be(data):
    q, f, model, y = data
    points = ground((200, 200), 0.25)
    image = form_image(PhaseHistory(q, f, points, **model), y[None], window="none")[0, 0].abs()
    peak = points[image == image.max()][0]
    assert float((peak[:2] - PEAK).abs().max()) < 0.2
    assert float(image.max() / image.median()) > 20.0
    # the other sign focuses too, at the reflected place
    turned = form_image(PhaseHistory(q, f, points, **{**model, "sign": -model["sign"]}), y[None], window="none")[0, 0].abs()
    assert float((points[turned == turned.max()][0][:2] + PEAK).abs().max()) < 0.2


def test_its_width_is_that_of_the_aperture(data):
    """Half-power widths of a uniform aperture, 0.886 of its resolution; the target is a real one."""
    q, f, model, y = data
    along = q.mean(0)[:2] / q.mean(0)[:2].norm()
    across = torch.stack((-along[1], along[0]))
    spacing = (0.1, 0.3)
    rows, columns = ((torch.arange(n, dtype=torch.float64) - n // 2) * s for n, s in zip((64, 64), spacing, strict=True))
    flat = PEAK + rows[:, None, None] * along + columns[:, None] * across
    points = torch.cat((flat, torch.zeros(64, 64, 1, dtype=torch.float64)), -1)
    chip = form_image(PhaseHistory(q, f, points, **model), y[None], window="none")[0, 0]
    found, expected = point_response(chip, spacing=spacing).width_metres, [0.886 * v for v in resolution(q, f)]
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("method", "error"), [(minimum_entropy, 0.02), (phase_gradient, 0.1)])
def test_planted_phases_are_found(data, method, error):
    """1 rad a pulse, beyond the 0.2 rad that either method finds in the data as they are."""
    q, f, model, y = data
    a = PhaseHistory(q, f, ground((200, 200), 0.25), **model)
    planted = without_trend(Streams(2).normal(0, (len(q),), "white", torch.float64)[0])
    turned = y * torch.exp(1j * planted).to(y)[:, None]
    own, both = (method(a, v).double() for v in (y, turned))
    assert float(without_trend(both - own - planted).square().mean().sqrt()) < error
