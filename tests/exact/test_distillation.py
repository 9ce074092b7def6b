"""Distillation: the closed-form consistency function, what the losses and the rival do, and a resume that nobody can tell."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from invdiff.core import CapabilityError, ConfigError, Denoiser, NumericalError, Streams
from invdiff.learning.discriminator import Discriminator, rival_loss, student_loss
from invdiff.learning.distil import _Run, distil
from invdiff.learning.distillation import Distillation, consistency_loss, solver_step
from invdiff.priors import DiT, EDMDenoiser, UNet
from invdiff.priors.consistency import ConsistencyModel, load_consistency
from invdiff.priors.layers import Network

S, LOW, HIGH = 0.5, 0.05, 5.0
SMALL = Distillation(steps=6, batch=3, crop=8, warmup=2, cooldown=0.0, levels=9, save_every=3, lr=1e-3, lr_rival=1e-3)


class Teacher(Denoiser):
    """E[x0 | x, c] of x0 ~ N(c, s^2), white."""

    def __init__(self):
        super().__init__((1, None, None), LOW, HIGH)

    def forward(self, x, sigma, condition=None):
        share = S**2 / (S**2 + sigma[:, None, None, None] ** 2)
        return condition["concat"] + share * (x - condition["concat"])


class Table(Network):
    """a(sigma) x + b(sigma) c, all that the exact function needs, with a and b of each level by themselves."""

    def __init__(self, grid):
        super().__init__(1, 1, dims=2, divisor=1, embedding=2, noise=True, concat_channels=1, vector=0, classes=0)
        self.architecture = {"channels_in": 1, "channels_out": 1}
        self.memory_format = torch.contiguous_format
        self.embed = torch.nn.Identity()
        self.register_buffer("noises", grid.log() / 4)
        self.table = torch.nn.Parameter(torch.zeros(len(grid), 2))

    def forward(self, x, noise, condition=None):
        h, _ = self.prepare(x, noise, condition)
        nearest = (noise[:, None] - self.noises).abs().argmin(1)
        return (self.table[nearest][:, :, None, None] * h).sum(1, keepdim=True)


TOLD, REST = Streams(7, 1024).normal(0, (2, 1, 8, 8)).unbind(1)


def pair(index):
    k = index % len(TOLD)
    return TOLD[k] + S * REST[k], {"concat": TOLD[k]}


def items(count, first=0):
    """Images and what is told of them, (count, 1, 8, 8) each."""
    pairs = [pair(k) for k in range(first, first + count)]
    return torch.stack([x for x, _ in pairs]), torch.stack([c["concat"] for _, c in pairs])


def exact(x, sigma, told):
    r = math.sqrt((S**2 + LOW**2) / (S**2 + sigma**2))
    return told + r * (x - told)


@pytest.mark.parametrize(("loss", "weight"), [("l2", "one"), ("huber", "inverse")])
def test_the_student_of_a_gaussian_teacher_is_the_closed_form(tmp_path, loss, weight):
    """Both losses, and both weights, have one minimum: the teacher's flow by Heun's rule on the 9 levels, to .005. That is
    within .022 of the closed form, which is as far as .46 from the teacher's posterior mean."""
    settings = Distillation(
        steps=240, batch=8, crop=8, lr=4e-2, warmup=5, cooldown=0.75, levels=9, target=0.8, ema=0.9, loss=loss, weight=weight,
        adversarial=0.0, save_every=60,
    )  # fmt: skip
    blank = ConsistencyModel(Table(settings.grid(Teacher())), sigma_data=1.0, sigma_min=LOW, sigma_max=HIGH)
    student = distil(Teacher(), pair, settings, tmp_path, student=blank, progress=False)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.02 * losses[0]
    told, noise = Streams(1, (0,)).normal(0, (2, 4, 1, 8, 8))[0]
    given, grid = {"concat": told}, settings.grid(student)
    for k, sigma in enumerate(grid[:-1]):
        x = told + math.hypot(S, sigma) * noise
        found, end = student(x, sigma.expand(4), given), x
        for a, b in itertools.pairwise(grid[k:]):
            end = solver_step(Teacher(), end, a.expand(4), b.expand(4), given)
        closed = exact(x, float(sigma), told)
        assert float((found - end).square().mean().sqrt()) < 0.005
        assert float((found - closed).square().mean().sqrt()) < 0.022 + 0.005
        if k == 0:
            assert float((Teacher()(x, sigma.expand(4), given) - closed).square().mean().sqrt()) > 0.4


def test_losses_of_one_residual():
    """By hand; a small residual is quadratic to the last digits, and a large one linear."""
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-6, 0.0], [300.0, 400.0]], dtype=torch.float64)
    b, c = torch.zeros_like(a), 0.01
    square = (a / 2.0).square().mean(1)
    torch.testing.assert_close(consistency_loss("l2", a, b, 2.0, c), square)
    huber = consistency_loss("huber", a, b, 2.0, c)
    torch.testing.assert_close(huber[:1], (square[:1] + c * c).sqrt() - c)
    assert float(huber[1]) == 0.0
    assert float(huber[2] / square[2]) == pytest.approx(1.0 / (2.0 * c), rel=1e-6)
    assert float(huber[3] / square[3].sqrt()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_order_of_the_solver(solver, order):
    """Of many steps along the flow, whose end is known: halving them divides the error by 2^order."""
    told = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    start = told + torch.tensor([4.0, -1.0, 2.0, 0.5], dtype=torch.float64).view_as(told)

    def error(steps):
        x, grid = start, torch.logspace(math.log10(HIGH), math.log10(LOW), steps + 1, dtype=torch.float64)
        for k in range(steps):
            x = solver_step(Teacher(), x, grid[k : k + 1], grid[k + 1 : k + 2], {"concat": told}, solver=solver)
        return float((x - exact(start, HIGH, told)).norm())

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.1)


def test_the_levels_are_stratified_and_a_function_of_seed_and_step():
    settings = replace(SMALL, levels=9)
    for step in range(20):
        assert sorted(settings.places(step, 16).tolist()) == sorted(k for k in range(8) for _ in range(2))
    assert torch.equal(settings.places(3, 5), settings.places(3, 5))
    assert any(not torch.equal(settings.places(3, 5), settings.places(k, 5)) for k in range(4, 8))
    grid = settings.grid(Teacher())
    assert (grid[0], grid[-1]) == (torch.tensor(HIGH), torch.tensor(LOW))


def network(seed=0):
    return UNet(1, 1, widths=(32, 32), blocks=1, embedding=16, patch=1, concat_channels=1, seed=seed)


def denoiser(seed=0):
    """A network teacher that says something."""
    net, generator = network(seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net.exit.weight.normal_(0.0, 0.05, generator=generator)
    return EDMDenoiser(net, sigma_data=1.1, sigma_min=LOW, sigma_max=HIGH)


def weights(folder):
    return load_file(folder / "distillation.safetensors")


def same(a, b):
    """The state of all roles and optimisers, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_all_roles_resume_bit_for_bit(tmp_path):
    """Interrupted where no checkpoint was due, with a line of the log open, and cut off at a checkpoint."""
    whole = distil(denoiser(), pair, SMALL, tmp_path / "a", progress=False)
    state = weights(tmp_path / "a")
    roles = {key.split(".")[0] for key in state}
    assert roles == {"student", "target", "average", "rival", "optimizer"}
    assert {key.split(".")[1] for key in state if key.startswith("optimizer")} == {"student", "rival"}

    def failing(index):
        if index == 5 * SMALL.batch and not done:
            done.append(True)
            raise KeyboardInterrupt
        return pair(index)

    done: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        distil(denoiser(), failing, SMALL, tmp_path / "b", progress=False)
    assert any(key.startswith("log.opinions") for key in weights(tmp_path / "b"))
    resumed = distil(denoiser(), pair, SMALL, tmp_path / "b", progress=False)
    distil(denoiser(), pair, replace(SMALL, steps=3), tmp_path / "c", progress=False)
    distil(denoiser(), pair, SMALL, tmp_path / "c", progress=False)
    assert same(weights(tmp_path / "b"), state)
    assert same(weights(tmp_path / "c"), state)
    logs = [
        [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_s")} for line in text.splitlines()]
        for text in ((tmp_path / name / "log.jsonl").read_text() for name in "abc")
    ]
    assert logs[0] == logs[1] == logs[2]
    assert [line["step"] for line in logs[0]] == [3, 3, 6, 6]
    assert logs[0][1].keys() == {"step", "adversarial", "rival", "logit_real", "logit_fake"}
    read = load_consistency(tmp_path / "a" / "ema.safetensors")
    for other in (whole, resumed):
        assert same(other.net.state_dict(), read.net.state_dict())
    assert read.facts["distillation"]["levels"] == 9
    assert read.facts["step"] == 6
    # another seed is another run
    distil(denoiser(), pair, replace(SMALL, seed=1), tmp_path / "d", progress=False)
    assert not same(weights(tmp_path / "d"), state)


def test_another_run_is_not_continued(tmp_path):
    distil(denoiser(), pair, SMALL, tmp_path, progress=False)
    with pytest.raises(ConfigError, match="loss=huber, not l2"):
        distil(denoiser(), pair, replace(SMALL, loss="l2"), tmp_path, progress=False)
    with pytest.raises(ConfigError, match="another teacher"):
        distil(denoiser(1), pair, SMALL, tmp_path, progress=False)
    with pytest.raises(ConfigError, match="already at step 6"):
        distil(denoiser(), pair, replace(SMALL, steps=4), tmp_path, progress=False)
    again = distil(denoiser(), pair, replace(SMALL, loss="l2", steps=1), tmp_path, progress=False, resume=False)
    assert again.facts["step"] == 1


@pytest.mark.parametrize("form", ["softplus", "hinge", "wgan"])
@pytest.mark.parametrize("balance", ["gradient", "fixed"])
def test_the_rival_reaches_the_student_and_nobody_else(tmp_path, form, balance):
    settings = replace(SMALL, form=form, balance=balance, penalty=0.1, adversarial=0.5, real="data")

    def run(settings):
        made = _Run(denoiser(), ConsistencyModel.of(denoiser()), None, pair, settings, tmp_path, resume=False)
        made.journal.close()
        if made.rival is not None:
            with torch.no_grad():
                # a head that is not undecided
                made.rival.logit.weight.fill_(0.1)
        made.gradients()
        return made

    with_rival, without = run(settings), run(replace(settings, adversarial=0.0))
    deaf = run(replace(settings, adversarial_from=1))
    pairs = [list(zip(a.parameters, b.parameters, strict=True)) for a, b in ((with_rival, without), (deaf, without))]
    assert any(not torch.equal(a.grad, b.grad) for a, b in pairs[0])
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs[1])
    assert bool(with_rival.rival.logit.weight.grad.abs().sum() > 0)
    assert all(p.grad is not None for p in with_rival.rivals)
    for role in (with_rival.teacher, with_rival.target, with_rival.average):
        assert all(p.grad is None and not p.requires_grad for p in role.parameters())
    before = {key: value.clone() for key, value in with_rival.teacher.state_dict().items()}
    rival = {key: value.clone() for key, value in with_rival.rival.state_dict().items()}
    with_rival.update()
    assert same(before, with_rival.teacher.state_dict())
    assert not same(rival, with_rival.rival.state_dict())


def test_the_balanced_gradient_is_as_long_as_it_is_said(tmp_path):
    made = _Run(
        denoiser(), ConsistencyModel.of(denoiser()), None, pair, replace(SMALL, adversarial=0.3), tmp_path, resume=False
    )
    made.journal.close()
    with torch.no_grad():
        made.rival.logit.weight.fill_(0.1)
    x, told = items(3)
    sigma, other = torch.tensor([0.1, 1.0, 5.0]), torch.full_like(x, 0.01)
    images = (0.5 * x).requires_grad_()
    extra = made.opinion(x, sigma, {"concat": told}, images, x, other)
    assert float(extra.norm()) == pytest.approx(0.3 * float(other.norm()), rel=1e-5)
    # down the student's own loss, at the unchanged rival
    noisy, told = (x, {"concat": told})

    def loss(u):
        return float(student_loss("softplus", made.rival(noisy, sigma, told, u)[0]))

    with torch.no_grad():
        assert loss(images - 10.0 * extra) < loss(images)


@pytest.mark.parametrize("form", ["softplus", "hinge", "wgan"])
def test_the_discriminator_separates_two_laws(form):
    """Real images at another level than x from images of half their contrast, by 40 steps."""
    rival = Discriminator(ConsistencyModel.of(denoiser()))
    optimizer = torch.optim.AdamW(rival.parameters(), 1e-3, betas=(0.5, 0.99))

    def logits(step, count=16):
        x, told = items(count, first=16 * step)
        noisy = x + Streams(3, range(count)).normal(step, x.shape[1:])
        return rival(noisy, torch.ones(count), {"concat": told}, x, 0.5 * x)

    start = logits(61)
    assert all(bool((t == 0).all()) for t in start)
    for step in range(40):
        optimizer.zero_grad()
        rival_loss(form, *logits(step)).backward()
        torch.nn.utils.clip_grad_norm_(rival.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        real, fake = (t.mean(1) for t in logits(61, 48))
    assert float((real[:, None] > fake[None]).float().mean()) > 0.95


def test_the_discriminator_looks_at_the_noisy_image_and_the_condition():
    rival, (x, told) = Discriminator(ConsistencyModel.of(denoiser())), pair(0)
    with torch.no_grad():
        rival.logit.weight.fill_(0.1)
    x, told, sigma = x[None], {"concat": told["concat"][None]}, torch.ones(1)
    base, again = rival(x, sigma, told, x, x)
    assert torch.equal(base, again)
    assert base.shape == (1, 16)
    for changed in (
        rival(x + 1.0, sigma, told, x),
        rival(x, 2.0 * sigma, told, x),
        rival(x, sigma, {"concat": told["concat"] + 1.0}, x),
        rival(x, sigma, told, x + 1.0),
    ):
        assert not torch.allclose(changed[0], base)


def test_bf16_and_the_target_as_real(tmp_path):
    """The options run, and the precision goes no further than the run."""
    teacher = denoiser()
    settings = replace(SMALL, steps=2, bf16=True, real="target", solver="euler", full_from=0.5)
    student = distil(teacher, pair, settings, tmp_path, progress=False)
    assert not student.bf16
    assert not teacher.bf16
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert all(p.requires_grad for p in teacher.parameters())


def test_a_value_that_is_not_finite_stops_the_run_and_keeps_the_last_step(tmp_path):
    def broken(index):
        x, told = pair(index)
        return (x * math.nan if index >= 4 * SMALL.batch else x), told

    with pytest.raises(NumericalError, match="step 4"):
        distil(denoiser(), broken, SMALL, tmp_path, progress=False)
    assert distil(denoiser(), pair, replace(SMALL, steps=3), tmp_path, progress=False).facts["step"] == 3


def test_what_a_distillation_refuses(tmp_path):
    for wrong in ({"steps": 0}, {"loss": "l1"}, {"target": 1.5}, {"levels": 1}, {"form": "wgan"}, {"adversarial": -1.0}):
        with pytest.raises(ConfigError, match="Distillation: "):
            replace(SMALL, **wrong)
    narrow = ConsistencyModel(network(), sigma_data=1.0, sigma_min=LOW, sigma_max=2 * HIGH)
    with pytest.raises(ConfigError, match="outside of the teacher's"):
        distil(denoiser(), pair, SMALL, tmp_path, student=narrow, progress=False)
    with pytest.raises(ConfigError, match="got Teacher"):
        distil(Teacher(), pair, SMALL, tmp_path, progress=False)
    dit = ConsistencyModel(
        DiT(1, 1, width=32, depth=1, patch=2, concat_channels=1), sigma_data=1.0, sigma_min=LOW, sigma_max=HIGH
    )
    with pytest.raises(CapabilityError, match="expected a UNet"):
        distil(Teacher(), pair, SMALL, tmp_path, student=dit, progress=False)
    distil(Teacher(), pair, replace(SMALL, steps=1, adversarial=0.0), tmp_path, student=dit, progress=False)


@pytest.mark.slow
def test_a_student_is_trained_from_its_configuration_with_a_card(tmp_path):
    """The command's own function: weights that load, a card with a row for the teacher and one for each number of steps."""
    from invdiff.catalogue import load
    from invdiff.commands.training import train
    from invdiff.core import ConfigError, Streams, build
    from invdiff.learning import Distillation
    from invdiff.priors import EDMDenoiser, UNet, load_consistency

    recipe = load("train", "sar_optical_fast")
    assert isinstance(build(recipe["distillation"]), Distillation)

    def source(index):
        return Streams(0, (index,)).normal(0, (1, 16, 16), "item")[0]

    net = EDMDenoiser(UNet(1, 1, widths=(32,), blocks=1, embedding=8, seed=0), sigma_data=1.0)
    settings = Distillation(steps=2, batch=2, crop=8, adversarial=0.0, warmup=1)
    card = {"held_out": source, "images": 26, "about": "white"}
    options = {"out": tmp_path, "card": card, "progress": False}
    path = train("small", source, net, settings, **options)
    student = load_consistency(path)
    rows = student.facts["comparison"]
    assert [(r["model"], r["steps"]) for r in rows] == [("teacher", 250), *(("student", k) for k in (1, 2, 4, 8))]
    assert (tmp_path / "small.md").read_text().count("| student |") == 4
    with pytest.raises(ConfigError, match="begins with its teacher"):
        train("small", source, net, settings, **options, start="natural64")
