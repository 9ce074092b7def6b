"""The network prior: preconditioning, free sizes, precision, and files that either load or say in one line why not."""

import json
import math

import pytest
import torch
from safetensors.torch import load, save

from invdiff.core.errors import ConfigError, DataError, InvdiffError, ShapeError
from invdiff.core.rng import Streams
from invdiff.priors import network
from invdiff.priors.network import EDMDenoiser, denoising_error, load_network
from invdiff.priors.unet import UNet

DATA = 0.7


def small(*, trained=True, channels=1, **options):
    """A network of a few thousand weights; `trained` fills the layers that start at zero."""
    net = UNet(channels, channels, widths=(32, 32), blocks=1, embedding=16, **options)
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in net.parameters():
                weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
    return EDMDenoiser(net, sigma_data=DATA)


def normal(*shape, seed=0, dtype=torch.float32):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=dtype)


def test_an_untrained_network_is_the_posterior_mean_of_white_noise():
    """F = 0 leaves c_skip x, which is E[x0 | x] for x0 ~ N(0, sigma_data^2 I)."""
    x, sigma = normal(3, 1, 16, 24, dtype=torch.float64), torch.tensor([1e-3, 0.5, 30.0], dtype=torch.float64)
    shrink = (DATA**2 / (sigma**2 + DATA**2))[:, None, None, None]
    torch.testing.assert_close(small(trained=False)(x, sigma), shrink * x, rtol=1e-14, atol=1e-15)


def test_preconditioning_is_that_of_the_paper():
    prior = small().double()
    x, sigma = normal(3, 1, 16, 16, dtype=torch.float64), torch.tensor([0.01, 0.6, 20.0], dtype=torch.float64)
    got = prior(x, sigma)
    for k, s in enumerate(sigma.tolist()):
        total = math.hypot(s, DATA)
        out = prior.net(x[k : k + 1] / total, torch.tensor([math.log(s) / 4], dtype=torch.float64))
        want = (DATA / total) ** 2 * x[k : k + 1] + s * DATA / total * out
        torch.testing.assert_close(got[k : k + 1], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_as_sigma_vanishes(dtype):
    """|D - x| = sigma |F| + O(sigma^2), so it falls with sigma down to the rounding of x."""
    prior, x = small(), normal(2, 1, 16, 16, dtype=dtype)
    for sigma in (1e-2, 1e-4, 1e-6):
        gap = (prior(x, torch.full((2,), sigma, dtype=dtype)) - x).abs().max()
        assert gap < 20 * sigma + 4 * torch.finfo(dtype).eps


def test_items_of_a_batch_are_independent():
    prior = small().double()
    x, sigma = normal(4, 1, 16, 16, dtype=torch.float64), torch.tensor([0.01, 0.2, 3.0, 40.0], dtype=torch.float64)
    alone = torch.cat([prior(x[k : k + 1], sigma[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(prior(x, sigma), alone, rtol=1e-12, atol=1e-12)


def test_the_noise_level_reaches_the_network():
    net, x = small().net, normal(1, 1, 16, 16)
    assert (net(x, torch.tensor([0.0])) - net(x, torch.tensor([0.2]))).abs().max() > 1e-3


def test_dtype_follows_the_input_and_precision_the_weights():
    """float64 in and out; with float32 weights the network's own rounding is left, 1e-5 for a dozen layers of unit scale."""
    prior, x, sigma = small(), normal(2, 1, 16, 16, dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)
    mixed, single = prior(x, sigma), prior(x.float(), sigma.float())
    exact = prior.double()(x, sigma)
    assert mixed.dtype is torch.float64
    assert single.dtype is torch.float32
    assert exact.dtype is torch.float64
    assert 0 < (mixed - exact).abs().max() < 1e-5


def test_bf16_is_an_option_that_stays_within_its_rounding():
    """Unit roundoff 2^-8, a dozen layers in sequence: a few per cent of the network's own contribution."""
    prior, x, sigma = small(), normal(4, 1, 32, 32), torch.tensor([0.01, 0.3, 2.0, 20.0])
    exact = prior(x, sigma)
    prior.bf16 = True
    rough = prior(x, sigma)
    own = (sigma * DATA / (sigma**2 + DATA**2).sqrt())[:, None, None, None]
    gap = ((rough - exact) / own).square().mean().sqrt()
    assert rough.dtype is torch.float32
    assert 0 < gap < 0.05 * prior.net(x, sigma.log() / 4).square().mean().sqrt()


def test_derivatives_against_finite_differences():
    prior, sigma = small().double(), torch.tensor([0.4], dtype=torch.float64)
    x, v, w = (normal(1, 1, 8, 8, seed=k, dtype=torch.float64) for k in range(3))
    _, pullback = torch.func.vjp(lambda u: prior(u, sigma), x)
    step = 1e-5
    difference = (prior(x + step * v, sigma) - prior(x - step * v, sigma)) / (2 * step)
    torch.testing.assert_close((pullback(w)[0] * v).sum(), (w * difference).sum(), rtol=1e-7, atol=1e-8)


def test_sizes_are_free_and_checked():
    prior = small(channels=2)
    assert prior.shape == (2, None, None)
    assert prior.net.divisor == 4
    for height, width in ((8, 8), (16, 28)):
        assert prior(normal(1, 2, height, width), torch.ones(1)).shape == (1, 2, height, width)
    with pytest.raises(ShapeError, match="multiples of 4, got \\(16, 18\\)"):
        prior(normal(1, 2, 16, 18), torch.ones(1))
    with pytest.raises(ShapeError, match="EDMDenoiser: expected real x"):
        prior(normal(1, 1, 16, 16), torch.ones(1))
    assert UNet(1, 1, widths=(32, 32, 32), blocks=1).divisor == 8


@pytest.mark.parametrize("wrong", [{"widths": (20,)}, {"widths": ()}, {"blocks": 0}, {"patch": 0}, {"embedding": 7}])
def test_impossible_networks_are_refused(wrong):
    with pytest.raises(ConfigError, match="UNet: expected widths"):
        UNet(1, 1, **wrong)


def test_wrong_preconditioning_is_refused():
    with pytest.raises(ConfigError, match="sigma_data > 0"):
        EDMDenoiser(small().net, sigma_data=0.0)
    with pytest.raises(ConfigError, match="maps 1 channels to 2"):
        EDMDenoiser(UNet(1, 2, widths=(32,), blocks=1), sigma_data=1.0)


def test_building_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = small(trained=False), small(trained=False), small(trained=False, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.net.enter.weight, again.net.enter.weight)
    assert not torch.equal(first.net.enter.weight, other.net.enter.weight)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 10.0])
def test_denoising_error_of_white_noise(sigma):
    """The posterior standard deviation, sigma sigma_d / sqrt(sigma^2 + sigma_d^2), within 5 standard errors of 8,192 pixels."""
    images = DATA * normal(8, 1, 32, 32, seed=3)
    prior = small(trained=False)
    (error,) = denoising_error(prior, images, [sigma], seed=0)
    want = sigma * DATA / math.hypot(sigma, DATA)
    assert abs(error / want - 1) < 5 / math.sqrt(2 * images.numel())
    assert error == pytest.approx(denoising_error(prior, images, [sigma], seed=0, batch=3)[0], rel=1e-6)


def test_a_file_carries_everything(tmp_path):
    prior, path = small(channels=2), tmp_path / "deep" / "prior.safetensors"
    prior.save(path, {"data": "phantoms", "error": {"0.1": 0.02}})
    again = load_network(path)
    x, sigma = normal(2, 2, 16, 16), torch.tensor([0.1, 4.0])
    torch.testing.assert_close(again(x, sigma), prior(x, sigma), rtol=1e-6, atol=1e-6)  # memory formats round differently
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), prior.parameters(), strict=True))
    assert again.facts == {"data": "phantoms", "error": {"0.1": 0.02}}
    assert (again.shape, again.sigma_data, again.sigma_min, again.sigma_max) == ((2, None, None), DATA, 0.005, 40.0)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert [p.name for p in path.parent.iterdir()] == ["prior.safetensors"]


def test_the_hash_is_checked(tmp_path):
    import hashlib

    path = tmp_path / "prior.safetensors"
    small().save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load_network(path, sha256=digest)
    with pytest.raises(DataError, match=f"truncated or altered: expected sha256 00.*, found {digest}"):
        load_network(path, sha256="0" * 64)


@pytest.mark.parametrize("keep", [0, 4, 100, -1000, -1])
def test_truncated_files_are_refused(tmp_path, keep):
    path = tmp_path / "prior.safetensors"
    small().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    _one_line(path, "truncated or no safetensors file")


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    _one_line(path, "No such file")
    path.write_text("<!doctype html>")
    _one_line(path, "no safetensors file")
    path.write_bytes(save({"weight": torch.ones(2)}))
    _one_line(path, "no network of invdiff")
    path.write_bytes(save({"weight": torch.ones(2)}, metadata={"invdiff.network": "[1, 2]"}))
    _one_line(path, "do not fit")


def test_headers_that_the_weights_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    small().save(path)
    blob = path.read_bytes()
    header = json.loads(json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]["invdiff.network"])
    changes = (
        {"widths": [32, 64]},
        {"blocks": "many"},
        {"attention": True},
        {"attention": [0]},
        {"windows": 8},
        {"widths": [20]},
    )
    for change in changes:
        wrong = header | {"architecture": header["architecture"] | change}
        path.write_bytes(save(load(blob), metadata={"invdiff.network": json.dumps(wrong)}))
        _one_line(path, "do not fit")


def test_files_from_before_there_were_other_networks_load(tmp_path):
    path, prior = tmp_path / "prior.safetensors", small()
    prior.save(path)
    blob = path.read_bytes()
    header = json.loads(json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]["invdiff.network"])
    assert header["architecture"].keys() == {"channels_in", "channels_out", "widths", "blocks", "embedding", "patch"}
    for key in ("network", "preconditioning", "mean"):
        del header[key]
    path.write_bytes(save(load(blob), metadata={"invdiff.network": json.dumps(header)}))
    again, x, sigma = load_network(path), normal(2, 1, 16, 16), torch.tensor([0.1, 4.0])
    assert (again.preconditioning, again.mean) == ("edm", 0.0)
    torch.testing.assert_close(again(x, sigma), prior(x, sigma), rtol=1e-6, atol=1e-6)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "prior.safetensors"
    small(trained=False).save(path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(network.Path, "replace", full_disk)
    with pytest.raises(DataError, match="No space left"):
        small().save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_facts_must_be_json():
    with pytest.raises(ConfigError, match="facts"):
        small().save("never written", {"error": float("nan")})


def _one_line(path, reason):
    with pytest.raises(InvdiffError, match=reason) as caught:
        load_network(path)
    assert type(caught.value) is DataError
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
