"""Weights to begin with: what is copied, what a run remembers of it, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from invdiff.commands import training
from invdiff.core.errors import ConfigError, DataError
from invdiff.core.rng import Streams
from invdiff.learning import Start, Training, fit, start_from
from invdiff.priors.autoencoder import Autoencoder
from invdiff.priors.dit import DiT
from invdiff.priors.network import EDMDenoiser, load_network
from invdiff.priors.unet import UNet

RUN = Training(steps=3, batch=2, crop=8, full_from=1.0, warmup=0, cooldown=0.0, ema=0.9, save_every=1)


def denoiser(*, seed=0, sigma_data=1.0, preconditioning="edm", **options):
    options = {"widths": (32,), "blocks": 1, "embedding": 16, "patch": 1} | options
    return EDMDenoiser(UNet(1, 1, seed=seed, **options), sigma_data=sigma_data, preconditioning=preconditioning)


def trained(**options):
    """Every weight is another than at the start."""
    prior, generator = denoiser(**options), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weights in prior.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator))
    return prior


def white(index):
    return Streams(7, (index,)).normal(0, (1, 16, 16))[0]


def test_a_larger_network_takes_what_it_shares_with_a_smaller_one():
    """One more scale, and attention: the smaller one's tensors, all of them, and no other."""
    small = trained(widths=(32, 32, 64))
    options = {"widths": (32, 32, 64, 96), "attention": (2, 3)}
    large, fresh = denoiser(**options, seed=1), denoiser(**options, seed=1).net.state_dict()
    started = start_from(large, small.net.state_dict())
    assert set(started.taken) == set(small.net.state_dict())
    assert started.unused == ()
    assert set(started.missing) == set(fresh) - set(started.taken)
    own = ("encoder.3.", "decoder.3.", "down.2.", "up.2.")
    assert all(name.startswith(own) or ".attention." in name for name in started.missing)
    for name, value in large.net.state_dict().items():
        assert torch.equal(value, small.net.state_dict()[name] if name in started.taken else fresh[name]), name


def test_a_smaller_network_leaves_what_it_has_no_place_for():
    """A wider second scale: what touches it has another shape on both sides."""
    large, small = trained(widths=(32, 64)), denoiser(widths=(32, 32))
    started = start_from(small, large.net.state_dict())
    other = {n for n, t in large.net.state_dict().items() if t.shape != small.net.state_dict()[n].shape}
    assert {"down.0.weight", "up.0.weight", "encoder.1.0.conv1.weight"} <= other
    assert set(started.missing) == set(started.unused) == other


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_its_own_file_makes_it_again(tmp_path, dtype):
    source, path = trained(), tmp_path / "prior.safetensors"
    source.save(path, dtype=dtype)
    again = denoiser(seed=3)
    started = start_from(again, path)
    assert (len(started.taken), started.missing, started.unused) == (len(source.net.state_dict()), (), ())
    saved = load_network(path)
    for a, b in zip(again.parameters(), saved.parameters(), strict=True):
        assert a.dtype is torch.float32
        assert torch.equal(a, b)
    assert start_from(denoiser(), Start(path, "mine", started.sha256)).facts("mine") == {
        "from": "mine",
        "taken": len(started.taken),
        "of": len(started.taken),
        "unused": 0,
        "sha256": started.sha256,
    }


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    trained().save(path)
    with pytest.raises(ConfigError, match="has preconditioning edm, the network to be trained flow"):
        start_from(denoiser(preconditioning="flow"), path)
    transformer = EDMDenoiser(DiT(1, 1, width=32, depth=1, patch=2, embedding=16), sigma_data=1.0)
    # the embedding of the noise level is of the same shape, and means nothing elsewhere
    with pytest.raises(ConfigError, match="has network UNet, the network to be trained DiT"):
        start_from(transformer, path)
    with pytest.raises(ConfigError, match="has network UNet, the network to be trained Autoencoder"):
        start_from(Autoencoder(1, 2, widths=(16,)), path)
    with pytest.raises(ConfigError, match="none of the 2 tensors of the given tensors has a name and a shape"):
        start_from(denoiser(), {"exit.weight": torch.zeros(1), "other": torch.zeros(1)})
    with pytest.raises(DataError, match=r"start_from: can't read .*none\.safetensors"):
        start_from(denoiser(), tmp_path / "none.safetensors")
    with pytest.raises(DataError, match="truncated or altered"):
        start_from(denoiser(), Start(path, sha256="0" * 64))
    # units are what a training adapts to
    assert start_from(denoiser(sigma_data=0.3), path).missing == ()


def test_a_run_begins_with_it_and_resumes_without_it(tmp_path):
    path, plain = tmp_path / "prior.safetensors", {"progress": False}
    trained().save(path)
    whole = fit(denoiser(), white, RUN, tmp_path / "whole", start=path, **plain)
    # three steps of 1e-3 do not come from anywhere else
    begun, straight = load_network(path), fit(denoiser(), white, RUN, tmp_path / "straight", **plain)
    for a, b in zip(whole.parameters(), begun.parameters(), strict=True):
        assert 0 < (a - b).abs().max() < 3.1e-3
    assert "start" not in straight.facts
    fit(denoiser(), white, replace(RUN, steps=2), tmp_path / "parts", start=path, **plain)
    path.unlink()
    parts = fit(denoiser(), white, RUN, tmp_path / "parts", start=path, **plain)
    assert all(map(torch.equal, parts.state_dict().values(), whole.state_dict().values()))
    count = len(list(begun.net.parameters()))
    for prior in (whole, parts, load_network(tmp_path / "parts" / "ema.safetensors")):
        assert prior.facts["start"] == whole.facts["start"]
        assert {key: prior.facts["start"][key] for key in ("from", "taken", "of", "unused")} == {
            "from": str(path),
            "taken": count,
            "of": count,
            "unused": 0,
        }
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2, 3]
    assert (log[0]["start"]["from"], log[0]["start"]["missing"], log[0]["start"]["unused"]) == (str(path), [], [])
    with pytest.raises(ConfigError, match=r"began with .*prior\.safetensors, not with other"):
        fit(denoiser(), white, replace(RUN, steps=4), tmp_path / "parts", start="other", **plain)
    with pytest.raises(ConfigError, match="began with its initial weights, not with other"):
        fit(denoiser(), white, replace(RUN, steps=4), tmp_path / "straight", start="other", **plain)
    # another run on the same network forgets where the last one began
    assert "start" not in fit(whole, white, RUN, tmp_path / "again", **plain).facts


def test_names_of_packaged_priors():
    for name in ("natural64", "ct128_latent"):
        start = training.beginning(name)
        assert start.label == name
        assert load_network(start.path, sha256=start.sha256)
    assert training.beginning("natural64.safetensors") == Start("natural64.safetensors")
    with pytest.raises(ConfigError, match="start=photographs: that prior is no network"):
        training.beginning("photographs")
    with pytest.raises(ConfigError, match=r"start=natural46 is neither a file nor a packaged prior; there are .*natural64"):
        training.beginning("natural46")


def test_the_card_says_where_a_network_began(tmp_path):
    """A narrow network from a packaged one: what of it fits, in the card and in the line that makes it again."""
    settings = Training(steps=1, batch=2, crop=16, full_from=1.0, warmup=0)
    card = {"held_out": white, "images": 2, "data": "noise"}
    network = denoiser(widths=(64,), blocks=2, embedding=128, patch=2)
    packaged = load_network(training.beginning("natural64").path).net.state_dict()
    fits = [n for n, t in network.net.state_dict().items() if n in packaged and packaged[n].shape == t.shape]
    training.train("mine", white, network, settings, out=tmp_path, card=card, start="natural64", progress=False)
    text = (tmp_path / "mine.md").read_text()
    assert "- **reproduce**: `invdiff train prior=mine start=natural64`" in text
    counts = f"{len(fits)} of {len(network.net.state_dict())} tensors; {len(packaged) - len(fits)} of its own fit nothing here"
    assert f"- **start**: from natural64 (sha256 {training.beginning('natural64').sha256}): {counts}" in text
    assert load_network(tmp_path / "mine.safetensors").facts["start"]["from"] == "natural64"
