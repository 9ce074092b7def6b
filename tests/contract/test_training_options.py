"""What a run can be told: the objective, conditions, pieces, what is recomputed, what is written, and how it is stopped."""

import functools
import itertools
import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from invdiff.core import Auto, Checkpoint, Full
from invdiff.core.errors import CapabilityError, ConfigError, DataError, ShapeError
from invdiff.core.rng import Streams
from invdiff.learning import Training, fit
from invdiff.learning.batches import Batch, Batches, pieces
from invdiff.learning.interrupts import postponed, termination_interrupts
from invdiff.learning.objectives import item_losses, noise_levels
from invdiff.priors.network import EDMDenoiser, load_network
from invdiff.priors.unet import UNet

RUN = Training(steps=4, batch=8, crop=8, full_from=0.75, lr=1e-3, warmup=2, cooldown=0.0, ema=0.9, save_every=2)


def network(**options):
    return UNet(1, 1, widths=(32,), blocks=1, embedding=16, patch=1, **options)


def untrained(sigma_data=1.0, preconditioning="edm", **options):
    return EDMDenoiser(network(**options), sigma_data=sigma_data, preconditioning=preconditioning)


def white(index, dims=2):
    return Streams(7, (index,)).normal(0, (1, *[16] * dims))[0]


def train(out, training=RUN, source=white, denoiser=None, **options):
    denoiser = denoiser or untrained()
    return fit(denoiser, source, training, out, progress=False, **options)


def batch_of(source, training, step=0, denoiser=None):
    batches = Batches(source, training, denoiser or untrained(), "cpu")
    indices = batches.indices(step)
    return batches(step, indices, range(len(indices)))


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def equal(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def close(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        # AdamW's first steps have the size lr whatever the gradient is: rounding of a small gradient shows
        torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("preconditioning", ["edm", "flow"])
def test_the_flow_objective_is_flow_matching(preconditioning):
    """|v - (eps - x0)|^2 on x_tau, by its definition, in units of sigma_d; float64 leaves 1e-10."""
    denoiser = untrained(0.3, preconditioning).double()
    for parameter in denoiser.net.exit.parameters():
        torch.nn.init.uniform_(parameter, -0.1, 0.1, generator=torch.Generator().manual_seed(0))
    x0, eps = (Streams(0, 6).normal(step, (1, 8, 8), dtype=torch.float64) for step in (0, 1))
    tau = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    t = tau[:, None, None, None]
    x_tau = (1 - t) * x0 + t * eps
    sigma = 0.3 * tau / (1 - tau)
    velocity = (x_tau - denoiser(0.3 * x_tau / (1 - t), sigma) / 0.3) / t
    plain = (velocity - (eps - x0)).square().flatten(1).mean(1)
    noisy = 0.3 * x0 + sigma[:, None, None, None] * eps
    torch.testing.assert_close(
        item_losses(denoiser, Batch(0.3 * x0, noisy, sigma), objective="flow"), plain, rtol=1e-10, atol=0
    )
    if preconditioning == "flow":
        noise = (sigma / 0.3).log() / 4
        scaled = x_tau / ((1 - t).square() + t.square()).sqrt()
        torch.testing.assert_close(denoiser.net(scaled, noise), velocity, rtol=1e-10, atol=1e-12)


def test_uniform_levels_are_uniform_in_tau():
    """One in each of the 16 classes of equal width between the denoiser's limits, in every step."""
    denoiser = EDMDenoiser(network(), sigma_data=0.5, sigma_min=0.05, sigma_max=4.5)
    training = replace(RUN, levels="uniform")
    low, high = 0.05 / 0.55, 0.9
    sigma = torch.stack([noise_levels(training, denoiser, t, 16) for t in range(32)]).double()
    quantile = (sigma / (sigma + 0.5) - low) / (high - low)
    assert torch.equal((quantile * 16).floor().sort(1).values, torch.arange(16.0, dtype=torch.float64).expand(32, 16))


def test_pieces_cover_a_batch_once():
    for count in (1, 5, 16):
        for parts in (1, 2, 3):
            for cuts in (1, 2, 4):
                found = [place for part in range(parts) for piece in pieces(count, part, parts, cuts) for place in piece]
                assert found == list(range(count))
    assert [len(piece) for piece in pieces(16, 1, 2, 4)] == [2, 2, 2, 2]


def test_accumulated_pieces_are_the_whole_batch(tmp_path):
    """The same items in the same order, each asked for once, and the weights of one piece to rounding."""
    asked = []

    def source(index):
        asked.append(index)
        return white(index)

    whole = train(tmp_path / "whole", source=source)
    once, asked = asked, []
    cut = train(tmp_path / "cut", replace(RUN, accumulate=3), source)
    assert once == asked == [*range(24), 24, 25]
    close(cut, whole)
    for a, b in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["gradient"] == pytest.approx(a["gradient"], rel=1e-4)
    assert not equal(train(tmp_path / "other", replace(RUN, seed=1)), whole)


def test_recomputed_activations_and_compiled_networks_train_the_same_weights(tmp_path, monkeypatch):
    whole = train(tmp_path / "plain")
    assert equal(train(tmp_path / "blocks", replace(RUN, memory="checkpoint(block)")), whole)
    # the tracing is tested, for code generation takes a minute
    calls = []

    def traced(graph, _):
        calls.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=traced))
    denoiser = untrained()
    compiled = train(tmp_path / "compiled", replace(RUN, compile=True), denoiser=denoiser)
    torch.compiler.reset()
    assert calls
    close(compiled, whole)
    assert compiled.state_dict().keys() == denoiser.state_dict().keys() == whole.state_dict().keys()
    assert load_network(tmp_path / "compiled" / "ema.safetensors").facts["training"]["compile"]


def test_reversible_stages_train_the_same_weights(tmp_path):
    """In float64, where undoing two moves with v = 0.5 costs a few units of 1e-16, and AdamW still divides by small numbers."""

    def doubled(index):
        return white(index).double()

    pair = [untrained(coupling=0.5).double() for _ in range(2)]
    whole, undone = (
        train(tmp_path / memory, replace(RUN, memory=memory), doubled, denoiser)
        for memory, denoiser in zip(("full", "invertible"), pair, strict=True)
    )
    for a, b in zip(undone.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert any(not torch.equal(a, b) for a, b in zip(undone.parameters(), whole.parameters(), strict=True))


def test_an_automatic_policy_is_measured_for_each_shape(tmp_path, monkeypatch):
    """What one piece needs, crops and whole images apart; the weights are those of the plain run."""
    asked = []

    def choose(policy, steps, state, original=Auto.choose):
        chosen = original(policy, steps, state)
        asked.append((tuple(state[0].shape), chosen))
        return chosen

    monkeypatch.setattr(Auto, "choose", choose)
    whole = train(tmp_path / "plain")
    assert equal(train(tmp_path / "large", replace(RUN, memory="auto(1GiB)")), whole)
    assert asked == [((8, 1, 8, 8), Full()), ((2, 1, 16, 16), Full())]
    asked.clear()
    assert equal(train(tmp_path / "small", replace(RUN, memory="auto(900KiB)")), whole)
    assert asked == [((8, 1, 8, 8), Checkpoint("both")), ((2, 1, 16, 16), Checkpoint("both"))]
    with pytest.raises(CapabilityError, match="memory auto: one step with its derivative needs"):
        train(tmp_path / "smaller", replace(RUN, memory="auto(1KiB)"))


def test_the_policy_may_change_and_older_runs_may_continue(tmp_path):
    """A checkpoint from when there was `checkpoint: false` instead, and one with a setting that nobody knows."""
    whole = train(tmp_path / "straight")
    train(tmp_path, replace(RUN, steps=2))
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content["training"].pop("memory") == "full"
    assert content.pop("start") is None
    torch.save(content | {"training": content["training"] | {"annealed": True}}, path)
    with pytest.raises(ConfigError, match="annealed=True, which is no setting of this version"):
        train(tmp_path)
    torch.save(content | {"training": content["training"] | {"checkpoint": False}}, path)
    assert equal(train(tmp_path, replace(RUN, memory="checkpoint(block)")), whole)


@pytest.mark.parametrize("dims", [1, 3])
def test_any_number_of_dimensions(tmp_path, dims):
    denoiser = untrained(dims=dims)
    source = functools.partial(white, dims=dims)
    batch = batch_of(source, RUN, denoiser=denoiser)
    assert batch.clean.shape == (8, 1, *[8] * dims)
    assert batch_of(source, RUN, 3, denoiser).clean.shape == (8 // 2**dims, 1, *[16] * dims)
    average = train(tmp_path, replace(RUN, steps=1, sheet_every=1, sheet=2), source, denoiser)
    assert average(batch.noisy, batch.sigma).shape == batch.clean.shape
    assert (tmp_path / "samples_000001.png").exists()


def conditional(index):
    image = white(index)
    return image, {"concat": torch.cat([image, -image]), "vector": torch.ones(3), "label": torch.tensor(index % 5)}


def test_conditions_follow_their_images():
    denoiser = untrained(concat_channels=2, vector=3, classes=5)
    batch = batch_of(conditional, RUN, 1, denoiser)
    assert torch.equal(batch.condition["concat"], torch.cat([batch.clean, -batch.clean], dim=1))
    assert batch.condition["label"].tolist() == [k % 5 for k in range(8, 16)]
    assert batch.condition["vector"].shape == (8, 3)


def test_dropped_conditions(tmp_path):
    """A share of `drop`, within five standard errors, the same for all parts of an item's condition: null class and zeros."""
    training, denoiser = replace(RUN, batch=512, crop=2, drop=0.3), untrained(concat_channels=2, vector=3, classes=5)
    batch = batch_of(conditional, training, 0, denoiser)
    dropped = batch.condition["label"] == 5
    assert abs(dropped.double().mean() - 0.3) < 5 * (0.21 / 512) ** 0.5
    assert torch.equal(dropped, batch.condition["vector"].sum(1) == 0)
    assert torch.equal(dropped, batch.condition["concat"].flatten(1).abs().amax(1) == 0)
    # by index, not by batch
    half = batch_of(conditional, replace(training, batch=256), 1, denoiser)
    assert torch.equal(half.condition["label"], batch.condition["label"][256:])
    average = train(tmp_path, replace(RUN, drop=0.3, sheet_every=4, sheet=2), conditional, denoiser)
    assert (tmp_path / "samples_000004.png").exists()
    assert average.net.label.weight.shape == (6, 16)


def test_sources_that_do_not_fit(tmp_path):
    def mixed(index):
        return conditional(index) if index % 2 else white(index)

    with pytest.raises(DataError, match="some items with a condition"):
        train(tmp_path, source=mixed)
    with pytest.raises(DataError, match="got ndarray"):
        train(tmp_path, source=lambda k: white(k).numpy())
    with pytest.raises(ShapeError, match="share their sizes"):
        train(tmp_path, source=lambda k: (white(k), {"concat": torch.ones(2, 4, 4)}))
    with pytest.raises(ConfigError, match="expected a condition of nothing, got concat"):
        train(tmp_path, source=lambda k: (white(k), {"concat": white(k)}))
    with pytest.raises(ShapeError, match=r"expected images \(C, 2 sizes\) for the network, the source gives \(16, 16\)"):
        train(tmp_path, source=lambda k: white(k)[0])
    with pytest.raises(ShapeError, match=r"images of one shape in a batch, the source gives \(1, 8, 8\) and \(2, 8, 8\)"):
        train(tmp_path, source=lambda k: white(k).expand(1 + k % 2, 16, 16))
    # at the first step, not when the images are used whole
    coarse = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, patch=4), sigma_data=1.0)
    with pytest.raises(ShapeError, match=r"multiples of 4, .* whole from full_from=0\.75 on, the source gives \(1, 15, 16\)"):
        train(tmp_path, source=lambda k: white(k)[:, 1:], denoiser=coarse)
    train(tmp_path, replace(RUN, full_from=1.0), source=lambda k: white(k)[:, 1:], denoiser=coarse)


def test_dropout_resumes_too(tmp_path):
    """Bit for bit, and torch's generator is left alone."""
    before = torch.get_rng_state()
    straight = train(tmp_path / "straight", denoiser=untrained(dropout=0.5))
    train(tmp_path / "parts", replace(RUN, steps=2, full_from=1.0), denoiser=untrained(dropout=0.5))
    torch.rand(1)
    parts = train(tmp_path / "parts", denoiser=untrained(dropout=0.5))
    assert equal(straight, parts)
    assert not equal(straight, train(tmp_path / "without"))
    torch.set_rng_state(before)
    train(tmp_path / "again", denoiser=untrained(dropout=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_log(tmp_path):
    train(tmp_path, replace(RUN, log_every=1, save_every=3))
    log = lines(tmp_path)
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert [line["lr"] for line in log] == [RUN.learning_rate(t) for t in range(4)]
    sigma = noise_levels(RUN, untrained(), 0, 8)
    batch = batch_of(white, RUN)
    losses = item_losses(untrained(), batch)
    assert log[0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    for octave, mean in log[0]["octaves"].items():
        inside = (sigma >= 2.0 ** int(octave)) & (sigma < 2.0 ** (int(octave) + 1))
        assert mean == pytest.approx(losses[inside].mean().item(), abs=1e-5)
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(log))
    # a line that was being written when the machine stopped is no reason not to go on; a damaged one is
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')
    train(tmp_path, replace(RUN, log_every=1, save_every=3, steps=5, full_from=0.6))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    (tmp_path / "log.jsonl").write_text("no log\n")
    with pytest.raises(DataError, match="can't read the log"):
        train(tmp_path, replace(RUN, steps=6, full_from=0.5))


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, replace(RUN, log_every=2, tensorboard=True))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in lines(tmp_path)]


def test_without_tensorboard_an_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(tmp_path, replace(RUN, tensorboard=True))


def test_sheets_are_draws_of_the_averaged_weights(tmp_path):
    from invdiff.io import read_array

    train(tmp_path, replace(RUN, sheet_every=2, sheet=3, log_every=3))
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["samples_000002.png", "samples_000004.png"]
    sheet = read_array(tmp_path / "samples_000004.png").data
    assert sheet.shape == (20, 20)
    assert sheet[:, :10].std() > 20
    assert not sheet[10:, 10:].any()
    # nothing of the run depends on it
    other = train(tmp_path / "without")
    assert equal(other, load_network(tmp_path / "ema.safetensors"))


def test_older_checkpoints_stay_if_asked_for(tmp_path):
    def there(out):
        return [(p.name, torch.load(p, weights_only=True)["step"]) for p in sorted(out.glob("*.pt"))]

    train(tmp_path, replace(RUN, save_every=1, keep=3))
    assert there(tmp_path) == [("checkpoint.pt", 4), ("checkpoint_000002.pt", 2), ("checkpoint_000003.pt", 3)]
    whole = train(tmp_path / "straight")
    (tmp_path / "checkpoint_000002.pt").rename(tmp_path / "checkpoint.pt")
    assert equal(train(tmp_path, replace(RUN, save_every=1, keep=3)), whole)
    train(tmp_path, replace(RUN, steps=1), resume=False)
    assert there(tmp_path) == [("checkpoint.pt", 1)]


@pytest.fixture
def _interrupts():
    """Ctrl-C as in a terminal: a shell starts programs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_two_steps(tmp_path, number):
    """The step that has begun is completed, so that nothing is computed again."""
    asked = []

    def source(index):
        asked.append(index)
        if index == 12 and stop:
            os.kill(os.getpid(), number)
        return white(index)

    stop = True
    training = replace(RUN, save_every=4)
    with termination_interrupts(), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", training, source)
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert asked == list(range(16))
    stop = False
    assert equal(train(tmp_path / "parts", training, source), train(tmp_path / "straight", training))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("_interrupts")
def test_the_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), postponed(patient=False):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("still here")
    reached = []
    with pytest.raises(KeyboardInterrupt), postponed(patient=True) as check:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        check()
    assert reached == [1]


@pytest.mark.parametrize("text", ["checkpoint(block)", "'checkpoint(block)'", "auto(8GiB)", "invertible"])
def test_a_policy_on_the_command_line(call, text):
    """As in Python, in the shell's quotes or in hydra's too."""
    code, out, err = call("train", "prior=ct128", f"training.memory={text}", "--cfg", "job")
    assert (code, err) == (0, "")
    assert f"  memory: {text.strip(chr(39))}\n" in out


def test_options_are_checked():
    for wrong in ({"accumulate": 0}, {"keep": 0}, {"drop": 1.5}, {"log_every": -1}, {"objective": "v"}, {"levels": "edm"}):
        with pytest.raises(ConfigError, match=f"Training: expected {next(iter(wrong))}"):
            replace(RUN, **wrong)
    for text in ("sometimes", "revolve", "checkpoint(all)", "auto"):
        with pytest.raises(ConfigError, match="memory: expected full, checkpoint"):
            replace(RUN, memory=text)
    with pytest.raises(ConfigError, match="auto measures a network that is not compiled"):
        replace(RUN, memory="auto(1GiB)", compile=True)
