"""Model cards: the error table against a network whose error is known, and what is written."""

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
