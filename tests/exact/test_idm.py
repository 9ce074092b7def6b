"""Reversible stages and IDM: the published recursion, the function of the pretrained network, gradients under every policy."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import invdiff
from invdiff.core import ConfigError, DataError, Gaussian, Memory, Problem, ShapeError, Streams, drift
from invdiff.learning.unrolled import EndToEnd
from invdiff.metrics import psnr
from invdiff.operators import BlockCS, PermutedCS
from invdiff.priors import EDMDenoiser, GaussianPrior, UNet
from invdiff.priors.reversible import Additive, Affine, Momentum, ReversibleChain
from invdiff.samplers.idm import IDM
from invdiff.samplers.idm_network import IDMNetwork, load_idm
from invdiff.tasks.measurements import block_cs, few_views, multicoil_mri, permuted_cs

POLICIES = ["checkpoint(step)", "checkpoint(block)", "checkpoint(both)", "revolve(2)", "invertible", "offload"]


def randomised(module, scale=0.1, seed=0):
    """Every parameter away from the zeros at which networks start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += (
                scale
                * torch.randn(p.shape, generator=generator, dtype=p.dtype)
                / max(1.0, p[0].numel() ** 0.5 if p.ndim else 1.0)
            )
    return module


def denoiser(dtype=torch.float64, widths=(32, 64), **options):
    net = UNet(1, 1, widths=list(widths), blocks=1, embedding=8, **options)
    return EDMDenoiser(randomised(net).to(dtype), sigma_data=0.25, mean=0.4)


def network(dtype=torch.float64, **options):
    return randomised(IDMNetwork(denoiser(dtype), **options).to(dtype), 0.02, 1)


def measured(dtype=torch.float64, ratio=0.4):
    operator = PermutedCS((1, 8, 8), ratio=ratio, block=8, seed=2)
    x = 0.4 + 0.25 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=dtype)
    return operator, operator(x), x


def distance(found, wanted):
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if b is not None]
    with torch.no_grad():
        top = sum(float((a - b).double().square().sum()) for a, b in pairs)
        return (top / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5


@pytest.mark.parametrize("coupling", [Affine(0.3), Additive(), Momentum(0.4)])
@pytest.mark.parametrize("text", POLICIES)
def test_a_reversible_chain_has_the_gradient_of_plain_autograd(coupling, text):
    """With a condition that is shared by the blocks, and couplings away from their start."""
    blocks = [randomised(torch.nn.Bilinear(5, 3, 5, dtype=torch.float64), seed=k) for k in range(4)]
    chain = randomised(ReversibleChain(blocks, coupling).double(), 0.05)
    x, code = (torch.randn(2, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (5, 3))
    x.requires_grad_(), code.requires_grad_()

    def gradients(memory):
        with memory.active():
            out = chain(x, code)
        return out.detach(), torch.autograd.grad(out.sin().sum(), [x, code, *chain.parameters()])

    (plain, wanted), (same, found) = gradients(Memory.parse("full")), gradients(Memory.parse(text))
    torch.testing.assert_close(plain, same, rtol=1e-14, atol=1e-14)
    assert distance(found, wanted) < 1e-12


def test_the_couplings_are_their_equations():
    """Two blocks f(x) = w_k x on numbers, from (s z, z) to z_1 + m z_2."""

    def run(coupling, w1, w2, z=2.0, s=0.7, m=0.3):
        blocks = [torch.nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2)]
        for block, w in zip(blocks, (w1, w2), strict=True):
            block.weight.data.fill_(w)
        chain = ReversibleChain(blocks, coupling).double()
        chain.start.data.fill_(s), chain.finish.data.fill_(m)
        if chain.v is not None:
            chain.v.data.fill_(coupling.v)
        return chain(torch.tensor([[z]], dtype=torch.float64)).item()

    z, s, m, w1, w2 = 2.0, 0.7, 0.3, 1.5, -0.4
    for coupling, rule in (
        (Affine(0.3), lambda p, x, w: 0.7 * w * x + 0.3 * p),
        (Additive(), lambda p, x, w: p + (w * x - x)),
        (Momentum(0.4), lambda p, x, w: x + 0.4 * (x - p) + 0.6 * (w * x - x)),
    ):
        first = rule(s * z, z, w1)
        assert run(coupling, w1, w2) == pytest.approx(rule(z, first, w2) + m * first, rel=1e-12)


def test_a_pretrained_unet_becomes_reversible_and_keeps_its_weights():
    """Every tensor of the plain network has a place, and with v -> 0 the function is the same."""
    plain = denoiser().net
    distances = []
    for v in (0.3, 0.1, 0.01):
        coupled = UNet(**plain.architecture, coupling=v).double()
        missing, unexpected = coupled.load_state_dict(plain.state_dict(), strict=False)
        assert not unexpected and {m.rsplit(".", 1)[-1] for m in missing} == {"v", "start", "finish"}
        x, noise = measured()[2], torch.tensor([-0.2, 0.1], dtype=torch.float64)
        distances.append(distance([coupled(x, noise)], [plain(x, noise)]))
    assert distances[0] > distances[1] > distances[2] > 0 and distances[2] < 0.02
    assert UNet(**coupled.architecture).architecture == coupled.architecture


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("steps", [1, 4])
def test_idm_has_the_gradient_of_plain_autograd(text, steps):
    model = network(steps=steps)
    operator, y, x = measured()

    def gradients(memory):
        loss = (model(operator, y, memory) - x).abs().mean()
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    assert distance(gradients(text), gradients("full")) < 1e-10


def test_idm_in_single_precision():
    model, (operator, y, x) = network(torch.float32, steps=3), measured(torch.float32)
    assert drift(model.moves(operator, y), model.begin(operator, y)) < 1e-5

    def gradients(memory):
        return torch.autograd.grad((model(operator, y, memory) - x).abs().mean(), list(model.parameters()), allow_unused=True)

    assert distance(gradients("invertible"), gradients("full")) < 1e-5


def test_without_coupling_and_injectors_it_is_the_prior_and_the_range_null_space_step():
    prior = denoiser()
    operator, y, _ = measured()
    model = IDMNetwork(prior, steps=2, coupling=0.0, injectors=False, sigmas=[0.5, 0.2]).double()
    x = 0.4 + operator.adjoint(y - operator(torch.full((1, 1, 8, 8), 0.4, dtype=torch.float64)))
    for sigma, following in ((0.5, 0.2), (0.2, 0.0)):
        # the levels are kept as logarithms in single precision
        sigma, following = (float(torch.tensor(v).log().double().exp()) if v else 0.0 for v in (sigma, following))
        x0 = prior(x, torch.full((2,), sigma, dtype=torch.float64))
        eps = (x - x0) / sigma
        x = x0 - operator.adjoint(operator(x0) - y) + following * eps
    torch.testing.assert_close(model(operator, y), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(operator(model(operator, y)), y, rtol=1e-10, atol=1e-10)


def test_the_coupling_of_the_steps_is_the_published_one():
    """(h, x) -> (x, (1 - v) F(x) + v h) from (s x_T, x_T), end x + m h; F by the network's own step."""
    model = network(steps=3)
    model.v.data.copy_(torch.tensor([0.2, 0.5, 0.7]))
    operator, y, _ = measured()
    h, x = model.begin(operator, y)
    torch.testing.assert_close(h, model.start * x)
    for move, v in zip(model.moves(operator, y), (0.2, 0.5, 0.7), strict=True):
        h, x = x, (1 - v) * move.evaluate(x, *move.inputs) + v * h
    torch.testing.assert_close(model(operator, y), x + model.finish * h, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("widths", [(32, 64), (32, 32, 96)])
def test_injectors_start_at_the_identity_and_then_see_the_measurement(widths):
    """Also where a factor of 8 is shuffled by 4 only, since 96 is no multiple of 64."""
    prior, (operator, y, _) = denoiser(widths=widths), measured()
    fresh, seeing = (IDMNetwork(prior, coupling=0.0).double() for _ in range(2))
    randomised(seeing, 0.02, 1)
    blind = IDMNetwork(prior, coupling=0.0, injectors=False).double()
    torch.testing.assert_close(fresh(operator, y), blind(operator, y))
    x, sigma = 0.4 * torch.ones_like(fresh.begin(operator, y)[1]), torch.tensor(0.3, dtype=torch.float64)
    step = next(m.body for m in seeing.moves(operator, y))
    other = next(m.body for m in seeing.moves(operator, 2 * y))
    assert distance([seeing.denoise(x, sigma, step.seen, 0)], [seeing.denoise(x, sigma, other.seen, 0)]) > 1e-6


def test_the_sampler_is_the_network(tmp_path):
    model, (operator, y, _) = network(), measured()
    prior = GaussianPrior(torch.zeros(1, 8, 8, dtype=torch.float64), torch.eye(64, dtype=torch.float64))
    problem = Problem(operator, Gaussian(0.01), y[:1])
    draws = IDM(network=model)(problem, prior, n=2, seed=0)
    assert draws.kind == "point"
    assert draws.network_calls == 3  # one estimate, whatever n is
    assert draws.operator_calls == IDM(network=model)(problem, prior, seed=0).operator_calls
    with torch.no_grad():
        torch.testing.assert_close(draws.x, model(operator, y[:1]).expand(2, -1, -1, -1))
    with pytest.raises(ConfigError, match="has 3 steps"):
        IDM(network=model, steps=5)


@pytest.mark.parametrize("memory", ["full", "checkpoint(both)", "invertible"])
def test_the_sampler_differentiates_the_network(memory):
    model, (operator, y, _) = network(), measured()
    prior = GaussianPrior(torch.zeros(1, 8, 8, dtype=torch.float64), torch.eye(64, dtype=torch.float64))
    y = y[:1].clone().requires_grad_()
    x = IDM(network=model).differentiate(Problem(operator, Gaussian(0.01), y), prior, seed=0, memory=memory)
    wanted = torch.autograd.grad(model(operator, y).square().sum(), [y, model.tau])
    assert distance(torch.autograd.grad(x.square().sum(), [y, model.tau]), wanted) < 1e-10


def test_an_operator_of_another_norm_is_refused():
    model, (operator, y, _) = network(), measured()
    prior = GaussianPrior(torch.zeros(1, 8, 8, dtype=torch.float64), torch.eye(64, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"norm 1.* lengthens A\^T y by 3"):
        IDM(network=model)(Problem(3.0 * operator, Gaussian(0.01), 3.0 * y[:1]), prior, seed=0)


def test_files(tmp_path):
    model, (operator, y, _) = network(torch.float32, coupling=0.2), measured(torch.float32)
    model.save(tmp_path / "idm.safetensors", {"data": "none"})
    again = load_idm(tmp_path / "idm.safetensors")
    assert again.facts == {"data": "none"} and torch.equal(again(operator, y), model(operator, y))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "idm.safetensors").read_bytes()[:5000])
    with pytest.raises(DataError, match="truncated"):
        load_idm(tmp_path / "cut.safetensors")
    denoiser(torch.float32).save(tmp_path / "prior.safetensors")
    with pytest.raises(DataError, match=r"no network|does not fit|do not fit|has no|no .denoiser."):
        load_idm(tmp_path / "prior.safetensors")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: IDMNetwork(denoiser(), steps=0), ConfigError),
        (lambda: IDMNetwork(denoiser(), coupling=1.0), ConfigError),
        (lambda: IDMNetwork(denoiser(), sigmas=[0.1]), ConfigError),
        (lambda: IDMNetwork(denoiser(classes=3)), ConfigError),
        (lambda: network()(BlockCS((1, 10, 8)), torch.zeros(1, 1, 1, 1, 272, dtype=torch.float64)), ShapeError),
        (lambda: network()(PermutedCS((2, 8, 8)), torch.zeros(1, 1, 256, dtype=torch.float64)), ShapeError),
        (lambda: EndToEnd(network(), []), ConfigError),
        (lambda: multicoil_mri((1, 8, 8)), ShapeError),
        (lambda: few_views((2, 8, 8)), ShapeError),
    ],
)
def test_what_is_refused(make, error):
    with pytest.raises(error):
        make()


def test_training_sees_another_operator_at_every_step_and_learns():
    """Ten steps of Adam on one batch lower the loss of that batch's operators by a tenth."""
    model = EndToEnd(IDMNetwork(denoiser(torch.float32)), [partial(permuted_cs, ratio=0.3, block=8)], noise=0.01)
    clean = measured(torch.float32)[2]
    first, second = (model.measure(clean, step, Streams(0, 2)) for step in (0, 1))
    assert not torch.equal(first[0].order, second[0].order) and torch.equal(first[1], model.measure(clean, 0, Streams(0, 2))[1])
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    values = []
    for _ in range(10):
        loss = model.losses(clean, 0, Streams(0, 2)).mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]
    rough, fine = model.errors(clean, 0)
    assert rough.shape == fine.shape == (2,) and bool((fine > 0).all())


@pytest.mark.parametrize(
    ("measurement", "shape"),
    [(block_cs, (1, 16, 16)), (permuted_cs, (1, 16, 16)), (multicoil_mri, (2, 16, 16)), (few_views, (1, 16, 16))],
)
def test_measurements_are_functions_of_shape_and_seed(measurement, shape):
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(measurement(shape, seed=3)(x), measurement(shape, seed=3)(x))


@pytest.mark.parametrize("block", [32, 33])
@pytest.mark.parametrize("ratio", [0.01, 0.04, 0.1, 0.25, 0.3, 0.4, 0.5])
def test_the_published_ratios_and_blocks(ratio, block):
    operator = block_cs((1, 2 * block, block), ratio=ratio, block=block)
    assert abs(operator.out_shape[-1] - ratio * block**2) <= 0.5
    x = torch.rand(1, 1, 2 * block, block, generator=torch.Generator().manual_seed(0))
    again = operator.adjoint(operator(x))
    torch.testing.assert_close(operator.adjoint(operator(again)), again, rtol=1e-4, atol=1e-4)  # orthonormal rows: L = 1


@pytest.fixture(scope="module")
def photograph():
    """80 x 80 pixels that no network was trained on."""
    return next(iter(invdiff.tasks.Photographs(size=80).items(1, 0, invdiff.prior("natural64")))).truth[None]


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("make", [block_cs, permuted_cs])
def test_the_shipped_network_for_compressed_sensing(make, ratio, photograph):
    """It is far above A^T y, and its measurement fits the data."""
    operator = make((1, 80, 80), ratio=ratio, seed=-1)
    problem = Problem.simulate(operator, Gaussian(0.005), photograph[0], seed=0)
    estimate = invdiff.sampler("idm")(problem, invdiff.prior("natural64"), seed=0).x
    error, rough = (psnr(x, photograph, 1.0).item() for x in (estimate, operator.adjoint(problem.y)))
    assert error > rough + 10.0
    assert (operator(estimate) - problem.y).square().mean().sqrt() < 0.02


def test_a_report_says_what_the_network_was_trained_for():
    sampler = invdiff.sampler("idm")
    (caveat,) = sampler.caveats
    assert "block_cs(ratio=0.25)" in caveat
    task = invdiff.task("cs_image", sampler=sampler, baselines=[], **{"operator.ratio": 0.33, "data.size": 24})
    assert caveat in task.run(seed=0, n=1).all_notes()


def test_a_run_of_the_shipped_network_resumes_bit_for_bit(photograph, tmp_path):
    problem = Problem.simulate(block_cs((1, 80, 80)), Gaussian(0.005), photograph[0], seed=0)
    sampler, prior = invdiff.sampler("idm"), invdiff.prior("natural64")

    def interrupt(info):
        if info["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(problem, prior, seed=0, resume=tmp_path / "run.pt", callback=interrupt)
    resumed = sampler(problem, prior, seed=0, resume=tmp_path / "run.pt")
    assert torch.equal(resumed.x, sampler(problem, prior, seed=0).x)


def test_the_shipped_network_for_k_space():
    """On a slice of the volume that NiBabel ships, where total variation has 31.1 dB."""
    report = invdiff.task("mri_cartesian", sampler="idm_mri").run(seed=0)
    assert report.summary()["IDM"]["psnr"]["mean"] > 31.5
