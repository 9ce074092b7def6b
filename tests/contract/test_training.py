"""The training loop: the loss, the levels, the schedule, and a resume that nobody can tell from an uninterrupted run."""

import json
import math
from dataclasses import replace

import pytest
import torch

from invdiff.core.errors import ConfigError, DataError, NumericalError, ShapeError
from invdiff.core.rng import Streams
from invdiff.learning import Training, fit
from invdiff.learning.batches import Batches
from invdiff.learning.objectives import item_losses
from invdiff.priors.network import EDMDenoiser, denoising_error, load_network
from invdiff.priors.unet import UNet

RUN = Training(steps=6, batch=4, crop=8, full_from=0.5, lr=1e-3, warmup=2, cooldown=0.0, ema=0.9, save_every=3)


def untrained(sigma_data=1.0):
    return EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, embedding=16, patch=1), sigma_data=sigma_data)


def white(index):
    return Streams(7, (index,)).normal(0, (1, 16, 16))[0]


def train(out, training=RUN, source=white, **options):
    denoiser = untrained()
    return denoiser, fit(denoiser, source, training, out, progress=False, **options)


def batch_at(source, training, step):
    batches = Batches(source, training, untrained(), "cpu")
    indices = batches.indices(step)
    return batches(step, indices, range(len(indices)))


def state(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def weights(out):
    """All of a checkpoint but the log's clock."""
    return {key: value for key, value in state(out).items() if key != "log"}


def same(a, b):
    """Bit for bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_the_loss_of_the_untrained_network_is_one():
    """White data of rms sigma_d: the error is sigma^2 sigma_d^2 / (sigma^2 + sigma_d^2), which the weight turns into 1.

    16 items of 1,024 pixels: the mean of squares of 16,384 normals has a standard error of sqrt(2 / 16384).
    """
    training = Training(steps=1, batch=16, crop=32, full_from=1.0)
    batch = batch_at(lambda k: 0.3 * Streams(0, (k,)).normal(0, (1, 32, 32))[0], training, 0)
    assert abs(item_losses(untrained(0.3), batch).mean().item() - 1) < 5 * math.sqrt(2 / 16384)


def test_levels_are_stratified_and_log_normal():
    """One level in each of the 16 quantiles of every step; over 64 steps the moments of ln sigma are those asked for.

    Stratified, the errors are far below those of 1,024 independent draws; the bounds are 2 standard errors of such draws.
    """
    training = Training(steps=64, batch=16, crop=2, p_mean=-0.7, p_std=1.3, full_from=1.0)
    levels = torch.stack([batch_at(lambda k: torch.zeros(1, 2, 2), training, t)[2] for t in range(64)]).log()
    quantiles = torch.special.ndtr((levels.double() + 0.7) / 1.3) * 16
    assert torch.equal(quantiles.floor().sort(1).values, torch.arange(16.0, dtype=torch.float64).expand(64, 16))
    assert abs(levels.mean() + 0.7) < 2 * 1.3 / 32
    assert abs(levels.std() - 1.3) < 2 * 1.3 / math.sqrt(2048)


def test_no_place_of_a_batch_has_levels_of_its_own():
    """A source that goes round 4 images shows each of them at every level: 256 times among the quarters of the levels.

    The count of an image in a quarter has a mean of 64 and, whatever the others in its batch, a standard deviation of 6.9.
    """
    training = Training(steps=256, batch=4, crop=2, p_mean=0.0, p_std=1.0, full_from=1.0)
    counts = torch.zeros(4, 4)
    for step in range(256):
        clean, _, sigma, *_ = batch_at(lambda k: torch.full((1, 2, 2), float(k % 4)), training, step)
        for image, level in zip(clean[:, 0, 0, 0], torch.special.ndtr(sigma.log()), strict=True):
            counts[int(image), int(4 * level)] += 1
    assert (counts - 64).abs().max() < 5 * 6.93


def test_batches_are_functions_of_seed_and_step():
    ramp = torch.arange(256.0).reshape(1, 16, 16)
    training = replace(RUN, batch=4, full_from=1.0)
    clean, noisy, sigma, *_ = batch_at(lambda k: ramp, training, 3)
    again = batch_at(lambda k: ramp, training, 3)
    assert all(map(torch.equal, (clean, noisy, sigma), again[:3]))
    # item 12 is the first of step 3 by fours and the fifth of step 1 by eights: same crop, same noise
    wide = batch_at(lambda k: ramp, replace(training, batch=8), 1)
    assert torch.equal(clean[0], wide[0][4])
    noise = ((noisy - clean) / sigma[:, None, None, None])[0], ((wide[1] - wide[0]) / wide[2][:, None, None, None])[4]
    # subtracting the image (up to 255) from the sum costs 2^-16 / sigma
    torch.testing.assert_close(*noise, rtol=1e-4, atol=255 * 2**-22 / sigma[0].item())
    # a crop is a window of the image
    assert torch.equal(clean - clean[:, :, :1, :1], (ramp[..., :8, :8]).expand(4, 1, 8, 8))
    assert len(clean[:, 0, 0, 0].unique()) > 1


def test_whole_images_keep_the_number_of_pixels():
    crops, whole = batch_at(white, RUN, 2)[0], batch_at(white, RUN, 3)[0]
    assert crops.shape == (4, 1, 8, 8)
    assert whole.shape == (1, 1, 16, 16)
    assert torch.equal(whole[0], white(12))


def test_schedule():
    training = Training(steps=100, lr=1.0, warmup=9, cooldown=0.2)
    rates = [training.learning_rate(t) for t in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (t + 1) for t in range(10)])
    assert rates[9:81] == [1.0] * 72
    assert rates[80:] == pytest.approx([(100 - t) / 20 for t in range(80, 100)])


def test_the_average_of_a_first_step():
    """Decay min(ema, 1 / 10) at step 0: 0.1 of the start and 0.9 of the step."""
    start, out = untrained(), {}
    for name, ema in (("young", 0.9), ("none", 0.0)):
        denoiser = untrained()
        out[name] = (denoiser, _fit_nowhere(denoiser, replace(RUN, steps=1, ema=ema)))
    net, average = out["none"]
    assert all(map(torch.equal, net.parameters(), average.parameters()))
    net, average = out["young"]
    for a, b, c in zip(average.parameters(), net.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, 0.9 * b + 0.1 * c, rtol=1e-6, atol=1e-8)


def _fit_nowhere(denoiser, training):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return fit(denoiser, white, training, folder, progress=False)


def test_extending_a_run_is_the_long_run(tmp_path):
    """3 steps, then 6 with the checkpoint of the 3: the weights, the averages, the optimiser and the losses of 6 in one go."""
    _, straight = train(tmp_path / "straight", replace(RUN, full_from=1.0))
    train(tmp_path / "parts", replace(RUN, steps=3, full_from=1.0))
    _, parts = train(tmp_path / "parts", replace(RUN, full_from=1.0))
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "parts"))
    assert same(straight.state_dict(), parts.state_dict())
    assert _losses(tmp_path / "straight") == _losses(tmp_path / "parts")


def test_resuming_an_interrupted_run(tmp_path):
    """Ctrl-C while the source works for step 4: its checkpoint is of four complete steps, none of them is done again, and the
    line of the log that was open goes on. The cool-down and the whole images lie behind the break."""
    training = replace(RUN, cooldown=0.5)

    def failing(index):
        asked.append(index)
        if index >= 16 and interrupted:
            raise KeyboardInterrupt
        return white(index)

    asked, interrupted = [], True
    train(tmp_path / "straight", training)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", training, failing)
    assert state(tmp_path / "parts")["step"] == 4
    assert asked == [*range(13), 16]
    interrupted = False
    train(tmp_path / "parts", training, failing)
    assert asked[14:] == [16, 20]
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "parts"))
    assert _losses(tmp_path / "straight") == _losses(tmp_path / "parts")
    train(tmp_path / "parts", training)  # nothing left to do
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "parts"))
    train(tmp_path / "parts", replace(training, seed=1), resume=False)
    assert not same(weights(tmp_path / "straight"), weights(tmp_path / "parts"))


def test_the_averaged_weights_are_a_prior_on_disk(tmp_path):
    _, average = train(tmp_path)
    again = load_network(tmp_path / "ema.safetensors")
    assert same(again.state_dict(), average.state_dict())
    assert again.facts["step"] == 6
    assert again.facts["training"]["batch"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "ema.safetensors", "log.jsonl"]
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [3, 6]


def test_training_finds_a_known_image(tmp_path):
    """All of the data is one image, so E[x0 | x] is that image: from 0.7 the error at sigma = 1 has to fall to a third."""
    image = torch.sin(torch.arange(16.0) / 2).expand(1, 16, 16) * 2**0.5
    training = Training(steps=60, batch=8, crop=16, full_from=1.0, lr=3e-3, warmup=5, ema=0.9, p_mean=0.0, p_std=1.0)
    denoiser = untrained()
    (before,) = denoising_error(denoiser, image[None], [1.0], seed=0)
    average = fit(denoiser, lambda k: image, training, tmp_path, progress=False)
    (after,) = denoising_error(average, image[None], [1.0], seed=0)
    assert before == pytest.approx(2**-0.5, rel=0.15)
    assert after < 0.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    def broken(index):
        return white(index) if index < 16 else white(index) * bad

    with pytest.raises(NumericalError, match="at step 4 the loss is"):
        train(tmp_path, replace(RUN, save_every=1), broken)
    kept = state(tmp_path)
    assert kept["step"] == 4
    assert all(w.isfinite().all() for w in kept["net"].values())


def test_bf16_is_an_option_of_the_run(tmp_path):
    denoiser, average = train(tmp_path, replace(RUN, bf16=True))
    assert not denoiser.bf16
    assert not average.bf16
    assert {w.dtype for w in average.parameters()} == {torch.float32}


def test_another_run_is_not_resumed(tmp_path):
    train(tmp_path)
    for change, words in (({"seed": 1}, "seed=0, not 1"), ({"lr": 0.1}, "lr=0.001, not 0.1"), ({"steps": 5}, "past steps=5")):
        with pytest.raises(ConfigError, match=words):
            train(tmp_path, replace(RUN, **change))
    wider = EDMDenoiser(UNet(1, 1, widths=(64,), blocks=1, embedding=16, patch=1), sigma_data=1.0)
    with pytest.raises(ConfigError, match=r"another network, with widths=\[32\], not \[64\]"):
        fit(wider, white, RUN, tmp_path, progress=False)
    # the same weights in other units are another denoiser
    with pytest.raises(ConfigError, match=r"another network, with sigma_data=1\.0, not 0\.5"):
        fit(untrained(0.5), white, replace(RUN, steps=7), tmp_path, progress=False)
    # nor does it go by what it says alone
    path = tmp_path / "checkpoint.pt"
    content = state(tmp_path)
    torch.save({key: value for key, value in content.items() if key != "model"}, path)
    with pytest.raises(ConfigError, match="another network"):
        fit(wider, white, RUN, tmp_path, progress=False)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="no checkpoint of a training"):
            train(tmp_path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(DataError, match="no checkpoint of a training"):
        train(tmp_path)


def test_settings_and_sources_are_checked(tmp_path):
    for wrong in ({"steps": 0}, {"batch": -1}, {"ema": 1.5}, {"cooldown": -0.1}, {"warmup": -1}, {"lr": math.nan}):
        with pytest.raises(ConfigError, match=f"Training: expected .*{next(iter(wrong))}"):
            replace(RUN, **wrong)
    with pytest.raises(ShapeError, match="smaller than the crop of 32"):
        train(tmp_path, replace(RUN, crop=32))


def _losses(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient"]) for line in lines]
