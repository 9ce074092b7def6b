"""Model cards: the error table against a network whose error is known, and what is written."""

from statistics import mean

import torch

from invdiff.core import Streams
from invdiff.learning import describe, error_table, write_card
from invdiff.priors import EDMDenoiser, UNet, load_network


def untrained():
    """F = 0, so that D = sigma_d^2 / (sigma^2 + sigma_d^2) x: the Wiener filter of white images."""
    return EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1), sigma_data=0.5).eval().requires_grad_(False)


def white(index):
    return 0.5 * Streams(7, (index,)).normal(0, (1, 64, 64))[0]


def test_the_table_of_a_wiener_filter_is_its_closed_form():
    """64 x 64 pixels of 8 images: a standard error of the rms of 0.4 %."""
    table = error_table(untrained(), torch.stack([white(k) for k in range(8)]))
    for sigma, rms, spread, wiener in zip(*(table[k] for k in ("sigma", "rms", "spread", "wiener")), strict=True):
        expected = sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        assert abs(rms / expected - 1) < 0.02
        # the spectrum of eight images is noisy, and the filter for it fits that noise
        assert 0.85 < wiener / expected < 1.01
        assert 0 < spread < 0.03 * expected


def test_a_card_says_what_the_file_holds(tmp_path):
    described = describe(untrained(), white, 2, {"data": "white noise", "licence": "MIT"})
    described.facts |= {"step": 0, "training": {}}
    described.save(tmp_path / "white.safetensors")
    write_card(described, "white", tmp_path / "white.md")
    text = (tmp_path / "white.md").read_text()
    assert "white noise" in text and "| 0.5 |" in text and "invdiff train prior=white" in text
    assert load_network(tmp_path / "white.safetensors").facts["denoising_error"] == described.facts["denoising_error"]


def test_the_table_in_one_and_three_dimensions():
    for dims, side in ((1, 1024), (3, 16)):
        prior = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, dims=dims), sigma_data=0.5).eval().requires_grad_(False)
        images = 0.5 * Streams(7, 4).normal(0, (1, *[side] * dims))
        table = error_table(prior, images)
        for sigma, rms in zip(table["sigma"], table["rms"], strict=True):
            # 4 x 1024 numbers at least: a standard error of 1.1 %
            assert abs(rms * (sigma**2 + 0.25) ** 0.5 / (sigma * 0.5) - 1) < 0.055


def test_conditions_go_to_a_conditional_prior():
    """A network whose output is its condition's embedding: the held-out items' own labels are used."""
    prior = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, classes=3), sigma_data=0.5).eval().requires_grad_(False)
    described = describe(prior, lambda k: (white(k)[:, :16, :16], {"label": torch.tensor(k % 3)}), 3, {}, draws=2)
    assert described.facts["denoising_error"]["images"] == 3
    assert described.facts["two_sample"]["draws"] == 2


def test_the_distance_of_the_right_and_of_a_wrong_prior():
    """Draws of F = 0 on the probability flow are white of the right variance; data of a fifth more are found out.

    The ratio of the spectra of 24 draws and 24 items has a standard error of 14 % in the lowest bin of 16, which has 8 modes,
    of 3 % in the highest, and of about 2 % for the mean of all.
    """
    described = describe(untrained(), lambda k: white(k)[:, :32, :32], 2, {}, draws=24)
    right = described.facts["two_sample"]
    assert right["layout"]["p"] > 0.01 and right["texture"]["p"] > 0.01
    assert abs(mean(right["spectrum"]["ratio"]) - 1) < 0.1
    wrong = describe(untrained(), lambda k: 1.2 * white(k)[:, :32, :32], 2, {}, draws=24).facts["two_sample"]
    assert wrong["texture"]["p"] == 0.001 < wrong["texture"]["floor_p"]
    assert abs(mean(wrong["spectrum"]["ratio"]) - 1 / 1.44) < 0.07
    assert abs(mean(wrong["spectrum"]["floor"]) - 1) < 0.1


def test_the_distances_are_in_the_card(tmp_path):
    described = describe(untrained(), lambda k: white(k)[:, :16, :16], 2, {}, draws=2)
    described.facts |= {"step": 0, "training": {}}
    write_card(described, "white", tmp_path / "white.md", figure="white.png")
    text = (tmp_path / "white.md").read_text()
    assert "![denoising error by noise level](white.png)" in text
    assert "| texture |" in text and "Power spectrum of the draws" in text


def test_the_curve_is_the_table():
    from invdiff.plot import denoising_figure

    table = error_table(untrained(), torch.stack([white(k)[:, :16, :16] for k in range(2)]))
    lines = {line.get_label().split(" (")[0]: line for line in denoising_figure(table).axes[0].lines}
    for name, column in (("network", "rms"), ("Wiener filter", "wiener"), ("the noise itself", "sigma")):
        assert lines[name].get_xdata().tolist() == table["sigma"]
        assert lines[name].get_ydata().tolist() == table[column]
