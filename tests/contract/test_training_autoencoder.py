"""Autoencoders through the same loop: the evidence bound, exact resume, the card, and latents as a training source."""

import pytest
import torch

from invdiff.commands.training import train
from invdiff.core.errors import ConfigError, DataError
from invdiff.core.rng import Streams
from invdiff.learning import Training, fit
from invdiff.learning.batches import Batch
from invdiff.learning.objectives import item_losses
from invdiff.priors.autoencoder import Autoencoder, load_autoencoder
from invdiff.priors.network import load_network
from invdiff.tasks.encoded import Encoded

RUN = {"steps": 4, "batch": 2, "crop": 8, "full_from": 0.75, "warmup": 0, "save_every": 2}


def small(**options):
    return Autoencoder(1, 2, widths=(16, 16), blocks=1, sigma_data=0.5, fidelity=0.1, **options)


def source(index):
    """Blocks of 4 x 4 equal pixels, which two latents can hold."""
    return 0.5 * Streams(3, (index,)).normal(0, (1, 4, 4))[0].repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_the_loss_is_the_evidence_bound():
    """-ELBO of a Gaussian encoder and a decoder of standard deviation s, in nats, with torch's own densities."""
    autoencoder = small().double()
    x, noise = (Streams(k, 2).normal(0, (1, 8, 8), dtype=torch.float64) for k in (0, 1))
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    got = item_losses(autoencoder, Batch(x, x + sigma[:, None, None, None] * noise, sigma))
    m, v = autoencoder.posterior(x)
    # the first two of the sixteen values of each 4 x 4 block, row by row
    n = torch.stack([noise[:, 0, ::4, ::4], noise[:, 0, ::4, 1::4]], 1)
    decoded = autoencoder.decode(m + v * n)
    fidelity = torch.distributions.Normal(decoded, 0.1)
    likelihood = (fidelity.log_prob(x) - fidelity.log_prob(decoded)).flatten(1).sum(1)
    prior = torch.distributions.Normal(torch.zeros_like(m), torch.ones_like(v))
    divergence = torch.distributions.kl_divergence(torch.distributions.Normal(m, v), prior).flatten(1).sum(1)
    want = (divergence - likelihood) * 2 * 0.1**2 / 0.5**2 / 64
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    assert all(map(torch.equal, small().parameters(), small().parameters()))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_run_resumes_exactly(tmp_path):
    whole = fit(small(), source, Training(**RUN), tmp_path / "a", progress=False)
    fit(small(), source, Training(**RUN | {"steps": 2}, cooldown=0.0), tmp_path / "b", progress=False)
    # the learning rate of the first two steps does not know of the cooldown
    resumed = fit(small(), source, Training(**RUN, cooldown=0.0), tmp_path / "b", progress=False)
    straight = fit(small(), source, Training(**RUN, cooldown=0.0), tmp_path / "c", progress=False)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    recomputed = fit(small(), source, Training(**RUN, memory="checkpoint(block)"), tmp_path / "d", progress=False)
    assert all(map(torch.equal, recomputed.state_dict().values(), whole.state_dict().values()))
    again = load_autoencoder(tmp_path / "a" / "ema.safetensors")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert (again.sigma_data, again.fidelity, again.facts["step"]) == (0.5, 0.1, 4)


def test_it_carries_what_images_have_in_common(tmp_path):
    """On new images less than 0.6 of the loss of an autoencoder that says nothing, E |x|^2 / sigma_d^2; 0.4 here."""
    training = Training(**RUN | {"steps": 150, "batch": 4, "full_from": 1.0, "save_every": 150}, lr=5e-3, ema=0.9)
    trained = fit(small(), source, training, tmp_path, progress=False)
    x, noise = torch.stack([source(10**6 + k) for k in range(32)]), Streams(9, 32).normal(0, (1, 16, 16))
    with torch.no_grad():
        loss = item_losses(trained, Batch(x, x + noise, torch.ones(32))).mean()
    assert loss < 0.6 * x.square().mean() / 0.5**2
    assert trained.training is False


def test_the_command_writes_a_card(tmp_path):
    card = {"held_out": source, "images": 3, "licence": "none"}
    path = train("tiny", source, small(), Training(**RUN), out=tmp_path, card=card, progress=False)
    loaded = load_autoencoder(path)
    images = torch.stack([source(k) for k in range(3)])
    rms = (loaded.decode(loaded.encode(images)) - images).square().mean().sqrt()
    assert loaded.facts["reconstruction"]["rms"] == pytest.approx(float(rms), abs=1e-4)
    assert loaded.facts["reconstruction"]["images"] == 3
    assert "On 3 held-out images" in (tmp_path / "tiny.md").read_text()
    with pytest.raises(DataError, match=r"load_network: .* has no 'sigma_data'"):
        load_network(path)


def test_what_an_autoencoder_can_not_do(tmp_path):
    for option in ({"sheet_every": 2}, {"drop": 0.1}, {"objective": "flow"}, {"levels": "uniform"}):
        with pytest.raises(ConfigError, match="an autoencoder makes no draws"):
            fit(small(), source, Training(**RUN, **option), tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"an autoencoder makes no draws: leave card\.draws out"):
        train("tiny", source, small(), Training(**RUN), out=tmp_path, card={"held_out": source, "draws": 2})
    wide = Autoencoder(1, 20, widths=(16, 16), blocks=1)
    with pytest.raises(ConfigError, match="20 latent channels are more than the 16 values"):
        fit(wide, source, Training(**RUN), tmp_path, progress=False)


def test_latents_as_a_source():
    autoencoder = small().eval()
    plain, kept = Encoded(source, autoencoder), Encoded(source, autoencoder, keep=2)
    assert torch.equal(plain(5), autoencoder.encode(source(5)[None])[0])
    assert torch.equal(kept(5), plain(1))
    assert kept(1) is kept(3)
    assert not plain(0).requires_grad
    with pytest.raises(ConfigError, match="Encoded: expected keep >= 1"):
        Encoded(source, autoencoder, keep=0)
    with pytest.raises(ConfigError, match="Encoded: expected a source of images and an autoencoder"):
        Encoded(source, None)
