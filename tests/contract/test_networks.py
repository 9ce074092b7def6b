"""What every network promises: a zero start, independent items, free sizes, derivatives, conditions, precision, files."""

import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import load

from invdiff.core import Checkpoint, Full, Invertible
from invdiff.core.errors import ConfigError, DataError, ShapeError
from invdiff.core.rng import Streams
from invdiff.priors.dit import DiT
from invdiff.priors.fno import FNO
from invdiff.priors.network import EDMDenoiser, load_network
from invdiff.priors.unet import UNet

F64 = torch.float64
SIZES = {1: (24,), 2: (8, 12), 3: (4, 8, 4)}
MODES = {1: (3,), 2: (2, 1), 3: (1, 2, 1)}
CONDITION = {"concat_channels": 1, "vector": 3, "classes": 4}
KINDS = ["unet1", "unet2", "unet3", "dit1", "dit2", "dit3", "fno1", "fno2", "fno3"]


def make(kind, *, trained=True, **options):
    """A network of a few thousand weights and two channels; `trained` fills the layers that start at zero."""
    name, dims = kind[:-1], int(kind[-1])
    if name == "unet":
        net = UNet(2, 2, widths=(32, 32), blocks=1, embedding=16, dims=dims, attention=(1,), **options)
    elif name == "dit":
        net = DiT(2, 2, width=32, depth=2, patch=2, embedding=16, dims=dims, **options)
    else:
        net = FNO(2, 2, modes=MODES[dims], width=8, depth=2, embedding=16, **options)
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in net.parameters():
                weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
    return net.eval()


def normal(*shape, seed=0, dtype=torch.float32):
    return Streams(seed, shape[0]).normal(0, shape[1:], dtype=dtype)


def inputs(kind, batch=2, dtype=torch.float32):
    return normal(batch, 2, *SIZES[int(kind[-1])], dtype=dtype), torch.linspace(-1.2, 0.8, batch, dtype=dtype)


def condition(kind, batch=2, dtype=torch.float32):
    return {
        "concat": normal(batch, 1, *SIZES[int(kind[-1])], seed=5, dtype=dtype),
        "vector": normal(batch, 3, seed=6, dtype=dtype),
        "label": torch.arange(batch) % 4,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_networks_start_at_zero(kind):
    assert torch.equal(make(kind, trained=False)(*inputs(kind)), torch.zeros(2, 2, *SIZES[int(kind[-1])]))
    assert make(kind)(*inputs(kind)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_a_batch_are_independent(kind):
    net, (x, noise), given = make(kind, **CONDITION).double(), inputs(kind, 3, F64), condition(kind, 3, F64)
    alone = [net(x[k : k + 1], noise[k : k + 1], {key: part[k : k + 1] for key, part in given.items()}) for k in range(3)]
    torch.testing.assert_close(net(x, noise, given), torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_against_finite_differences(kind):
    net, (x, noise) = make(kind).double(), inputs(kind, 1, F64)
    v, w = normal(*x.shape, seed=1, dtype=F64), normal(*x.shape, seed=2, dtype=F64)
    _, pullback = torch.func.vjp(lambda u: net(u, noise), x)
    step = 1e-5
    difference = (net(x + step * v, noise) - net(x - step * v, noise)) / (2 * step)
    torch.testing.assert_close((pullback(w)[0] * v).sum(), (w * difference).sum(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_free_and_checked(kind):
    net, dims = make(kind), int(kind[-1])
    larger = tuple(n + net.divisor for n in SIZES[dims])
    assert net(normal(1, 2, *larger), torch.zeros(1)).shape == (1, 2, *larger)
    for shape in ((1, 3, *larger), (1, 2, *larger, 4), *([(1, 2, *larger[:-1], net.divisor + 1)] if net.divisor > 1 else [])):
        with pytest.raises(ShapeError, match=f"{type(net).__name__}: expected \\(B, 2, {dims} sizes that are multiples of"):
            net(torch.zeros(shape), torch.zeros(1))
    with pytest.raises(ShapeError, match="expected noise levels of shape \\(1,\\), got \\(2,\\)"):
        net(normal(1, 2, *larger), torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_denoisers_take_every_network_and_bf16_stays_within_its_rounding(kind):
    """Unit roundoff 2^-8, a dozen layers in sequence: a few per cent of the network's own output."""
    denoiser, (x, noise) = EDMDenoiser(make(kind), sigma_data=0.5, mean=0.2), inputs(kind)
    sigma = (4 * noise).exp()
    exact = denoiser(x, sigma)
    denoiser.bf16 = True
    gap = ((denoiser(x, sigma) - exact).flatten(1) / denoiser.output_scale(sigma)[:, None]).square().mean().sqrt()
    assert denoiser.shape == (2, *[None] * int(kind[-1]))
    assert denoiser.divisor == denoiser.net.divisor
    assert 0 < gap < 0.05 * denoiser.net(x, noise).square().mean().sqrt()


@pytest.mark.parametrize("kind", ["unet2", "dit2", "fno2"])
def test_bfloat16_weights_serve_float32_data(kind):
    """Weights and activations are rounded to 2^-8 each, and a noise coordinate near 1 at eight turns by 2 pi 8 2^-9 = 0.1."""
    (x, noise), exact, rough = inputs(kind), *(EDMDenoiser(make(kind), sigma_data=0.5) for _ in range(2))
    rough.net.bfloat16()
    gap, own = rough(x, noise.exp()) - exact(x, noise.exp()), exact.net(x, noise).square().mean().sqrt()
    assert gap.dtype is torch.float32
    assert 0 < gap.square().mean().sqrt() < 0.1 * own


@pytest.mark.parametrize("kind", ["unet2", "unet3", "dit2", "fno2"])
def test_channels_last_changes_nothing(kind):
    net, (x, noise) = make(kind), inputs(kind)
    want, layout = net(x, noise), torch.channels_last if kind[-1] == "2" else torch.channels_last_3d
    got = net.to(memory_format=net.memory_format)(x.contiguous(memory_format=layout), noise)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_network_compiled_for_any_batch_takes_its_condition():
    """Sizes that the compiler takes for variables are compared as numbers are."""
    net = make("unet2", vector=3)
    with torch.no_grad():
        compiled = torch.compile(net.prepare, backend="eager", fullgraph=True, dynamic=True)
        for batch in (2, 3):
            call = (*inputs("unet2", batch), {"vector": normal(batch, 3, seed=6)})
            torch.testing.assert_close(compiled(*call), net.prepare(*call), rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["unet2", "unet3", "dit2", "fno2"])
def test_networks_compile_without_graph_breaks(kind):
    """fullgraph=True raises at a break; "eager" runs the captured graph operation by operation, so nothing may change."""
    denoiser = EDMDenoiser(make(kind, **CONDITION), sigma_data=0.5)
    (x, noise), given = inputs(kind), condition(kind)
    with torch.no_grad():
        compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, noise.exp(), given), denoiser(x, noise.exp(), given), rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


def kept(net, call, x, noise, given, memory):
    """How many numbers, beside the weights, autograd keeps of call(x, noise, given)."""
    found, weights = {}, {p.data_ptr() for p in net.parameters()}
    with memory.active(), torch.autograd.graph.saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t):
        loss = call(x.detach().requires_grad_(), noise, given).square().sum()
    assert loss.requires_grad
    return sum(t.numel() for address, t in found.items() if address not in weights)


def gradients(net, call, x, noise, given, memory):
    """Of a loss for the input and for the weights."""
    x = x.detach().requires_grad_()
    with memory.active():
        loss = call(x, noise, given).square().sum()
    return torch.autograd.grad(loss, [x, *net.parameters()])


@pytest.mark.parametrize("kind", ["unet2", "dit2", "fno2"])
def test_recomputed_blocks_give_the_same_gradients(kind):
    """Bit for bit: the same operations on the same numbers."""
    net = make(kind, **CONDITION)
    call = (net, net, *inputs(kind), condition(kind))
    assert kept(*call, Checkpoint("block")) < 0.5 * kept(*call, Full())
    assert all(map(torch.equal, gradients(*call, Checkpoint("block")), gradients(*call, Full())))


def test_reversible_stages_give_the_same_gradients():
    """Undone in float32 with v = 0.5: two blocks cost a factor of 4 of the unit roundoff 6e-8, sums over pixels some more."""
    net = UNet(2, 2, widths=(32, 32), blocks=2, embedding=16, attention=(1,), coupling=0.5, classes=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in net.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
    call = (net, net, *inputs("unet2"), {"label": torch.tensor([0, 3])})
    assert kept(*call, Invertible()) < 0.5 * kept(*call, Full())
    got, want = gradients(*call, Invertible()), gradients(*call, Full())
    assert not all(map(torch.equal, got, want))
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


def test_a_compiled_network_follows_the_policy():
    """One compiled object under both policies in turn, without graph breaks."""
    net = make("unet2", **CONDITION)
    call = (torch.compile(net, backend="eager", fullgraph=True), *inputs("unet2"), condition("unet2"))
    full, blocks = Full(), Checkpoint("block")
    counts = [kept(net, *call, memory) for memory in (full, blocks, full)]
    assert counts[1] < 0.5 * counts[0] == 0.5 * counts[2]
    for memory in (full, blocks):
        got, want = gradients(net, *call, memory), gradients(net, net, *call[1:], memory)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(want[0].abs().max()))
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["unet2", "dit2", "fno2"])
def test_every_part_of_a_condition_is_heard_and_may_be_shared(kind):
    net, (x, noise), given = make(kind, **CONDITION), inputs(kind), condition(kind)
    want = net(x, noise, given)
    for key, part in given.items():
        assert (net(x, noise, {**given, key: part.flip(0)}) - want).abs().amax((1, 2, 3)).min() > 1e-4
    shared = {key: part[:1] for key, part in given.items()}
    repeated = {key: torch.cat([part, part]) for key, part in shared.items()}
    torch.testing.assert_close(net(x, noise, shared), net(x, noise, repeated), rtol=0, atol=1e-6)


def test_the_last_label_is_for_none():
    """Index `classes` has an embedding of its own: five rows for four classes, and the fifth is not the others."""
    net, (x, noise) = make("unet2", classes=4), inputs("unet2")
    assert net.label.weight.shape == (5, 16)
    outs = [net(x, noise, {"label": torch.tensor([k])}) for k in range(5)]
    assert all((outs[4] - out).abs().max() > 1e-4 for out in outs[:4])
    with pytest.raises(ConfigError, match="UNet: expected labels 0 to 4 \\(none\\), got 5 to 5"):
        net(x, noise, {"label": torch.tensor([5])})


@pytest.mark.parametrize("kind", ["unet2", "dit2", "fno2"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vector": None}, ConfigError, "expected a condition of concat, label, vector, got concat, label"),
        ({"text": torch.zeros(2, 1)}, ConfigError, "got concat, label, text, vector"),
        ({"vector": torch.zeros(2, 4)}, ShapeError, "real condition vector of shape \\(2 or 1, 3\\), got \\(2, 4\\)"),
        ({"vector": torch.zeros(3, 3)}, ShapeError, "condition vector of shape \\(2 or 1, 3\\), got \\(3, 3\\)"),
        ({"concat": torch.zeros(2, 1, 8, 8)}, ShapeError, "condition concat of shape \\(2 or 1, 1, 8, 12\\)"),
        ({"label": torch.zeros(2)}, ShapeError, "int64 condition label of shape \\(2 or 1\\), got \\(2,\\) torch.float32"),
        ({"label": torch.tensor(1)}, ShapeError, "int64 condition label of shape \\(2 or 1\\), got \\(\\)"),
    ],
)
def test_wrong_conditions_are_refused(kind, change, error, message):
    given = {key: part for key, part in (condition(kind) | change).items() if part is not None}
    with pytest.raises(error, match=message):
        make(kind, **CONDITION)(*inputs(kind), given)


def test_a_condition_where_none_is_declared_is_refused():
    x, noise = inputs("unet2")
    with pytest.raises(ConfigError, match="UNet: expected a condition of nothing, got label"):
        make("unet2")(x, noise, {"label": torch.tensor([0])})
    with pytest.raises(ConfigError, match="expected a condition of label, got nothing"):
        EDMDenoiser(make("unet2", classes=2), sigma_data=1.0)(x, noise.exp())


def test_dropout_is_off_in_evaluation():
    plain, dropped, (x, noise) = make("unet2"), make("unet2", dropout=0.5), inputs("unet2")
    assert torch.equal(dropped(x, noise), plain(x, noise))
    with torch.random.fork_rng():
        assert not torch.equal(dropped.train()(x, noise), plain(x, noise))
        assert torch.equal(plain.train()(x, noise), plain.eval()(x, noise))


def test_a_regression_network_has_no_noise_level():
    net, (x, noise) = make("fno2", noise=False), inputs("fno2")
    assert net(x).shape == x.shape
    assert not hasattr(net, "embed")
    assert make("fno2", noise=False, vector=3)(x, condition={"vector": torch.ones(1, 3)}).shape == x.shape
    with pytest.raises(ConfigError, match="FNO: expected no noise level"):
        net(x, noise)
    with pytest.raises(ConfigError, match="UNet: expected a noise level"):
        make("unet2")(x, None)
    with pytest.raises(ConfigError, match="the FNO has no noise level"):
        EDMDenoiser(net, sigma_data=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_carries_every_network(kind, tmp_path):
    path, sigma = tmp_path / "prior.safetensors", torch.tensor([0.1, 4.0])
    prior = EDMDenoiser(make(kind, **CONDITION), sigma_data=0.7, mean=-0.3, preconditioning="flow")
    prior.save(path, {"data": "none"})
    again = load_network(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    x, given = inputs(kind)[0], condition(kind)
    assert type(again.net) is type(prior.net)
    assert again.net.architecture == prior.net.architecture
    assert (again.preconditioning, again.mean, again.facts) == ("flow", -0.3, {"data": "none"})
    torch.testing.assert_close(again(x, sigma, given), prior(x, sigma, given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "roundoff"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_files_are_half_as_large_and_read_as_float32(tmp_path, dtype, roundoff):
    full, half, prior = tmp_path / "full", tmp_path / "half", EDMDenoiser(make("unet2"), sigma_data=1.0)
    prior.save(full)
    prior.save(half, dtype=dtype)
    count = sum(p.numel() for p in prior.net.parameters())
    assert full.stat().st_size - half.stat().st_size == pytest.approx(2 * count, abs=0.05 * count)
    assert {t.dtype for t in load(half.read_bytes()).values()} == {dtype}
    for a, b in zip(load_network(half).parameters(), prior.parameters(), strict=True):
        assert a.dtype is torch.float32
        # 2^-24 is the smallest subnormal of float16
        assert ((a - b).abs() <= roundoff * b.abs() + 2**-25).all()


def test_weights_that_a_dtype_cannot_hold_are_refused(tmp_path):
    prior = EDMDenoiser(make("fno1"), sigma_data=1.0)
    with pytest.raises(ConfigError, match=r"expected weights stored as float32, float16 or bfloat16, got torch.int8"):
        prior.save(tmp_path / "never", dtype=torch.int8)
    with torch.no_grad():
        prior.net.exit.bias[0] = 1e5
    with pytest.raises(ConfigError, match=r"exit\.bias is not finite as torch.float16"):
        prior.save(tmp_path / "never", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_unknown_networks_and_preconditionings_are_refused(tmp_path):
    from safetensors.torch import save

    path = tmp_path / "prior.safetensors"
    EDMDenoiser(make("unet1"), sigma_data=1.0).save(path)
    blob = path.read_bytes()
    header = json.loads(json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]["invdiff.network"])
    for change, reason in (({"network": "VGG"}, "no network is called 'VGG'"), ({"preconditioning": "ve"}, "'edm' or 'flow'")):
        path.write_bytes(save(load(blob), metadata={"invdiff.network": json.dumps(header | change)}))
        with pytest.raises(DataError, match=reason):
            load_network(path)


def test_default_architectures_are_those_of_old_files():
    old = {"channels_in": 1, "channels_out": 1, "widths": [64, 96, 128], "blocks": 2, "embedding": 128, "patch": 2}
    assert UNet(1, 1).architecture == old
    assert UNet(1, 1, attention=[2]).architecture == old | {"attention": [2]}


@pytest.mark.parametrize("kind", KINDS)
def test_architectures_make_the_same_network_again(kind):
    before = torch.random.get_rng_state()
    net = make(kind, trained=False, **CONDITION)
    again = type(net)(**json.loads(json.dumps(net.architecture)))
    assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))
    assert list(net.state_dict()) == list(again.state_dict())
    assert torch.equal(before, torch.random.get_rng_state())


def test_parameter_counts():
    """From the layers' formulas: E = 16 is the code, W the width, 12 W^2 + 9 W a transformer block without its steering."""
    code = 2 * (16 * 16 + 16)
    blocks = 4 * (2 * (9 * 32 * 32 + 32) + 4 * 32 + 17 * 64) + 2 * (4 * 32 * 32 + 4 * 32 + 2 * 32)
    ends = (8 * 9 * 32 + 32) + (32 * 9 * 8 + 8) + 2 * 32
    assert count(make("unet2")) == code + blocks + ends + (4 * 32 * 32 + 32) + (32 * 32 + 32)
    block = 12 * 32 * 32 + 9 * 32 + 17 * 6 * 32
    assert count(make("dit2")) == code + 2 * block + 17 * 64 + (8 * 32 + 32) + (32 * 8 + 8)
    block = 2 * 8 * 8 * math.prod((2 * 2 + 1, 1 + 1)) + 2 * (64 + 8) + 17 * 16
    assert count(make("fno2")) == code + 2 * block + (2 * 8 + 8) + (64 + 8) + (8 * 2 + 2)


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: UNet(1, 1, dims=4), "UNet: expected dims of 1, 2 or 3"),
        (lambda: UNet(1, 1, attention=(3,)), "attention on scales 0 to 2 and 0 <= dropout < 1, got \\(3,\\)"),
        (lambda: UNet(1, 1, dropout=1.0), "0 <= dropout < 1"),
        (lambda: UNet(1, 1, vector=-1), "negative"),
        (lambda: DiT(1, 1, width=48), "DiT: expected a width that is a multiple of 32"),
        (lambda: DiT(1, 1, patch=0), "positive channels and patch"),
        (lambda: FNO(1, 1, modes=()), "FNO: expected non-negative modes"),
        (lambda: FNO(1, 1, modes=(2, 2, 2, 2)), "FNO: expected dims of 1, 2 or 3"),
        (lambda: EDMDenoiser(UNet(1, 1, widths=(32,)), sigma_data=1.0, preconditioning="ve"), "'edm' or 'flow', got 've'"),
    ],
)
def test_impossible_networks_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_modes_beyond_the_grid_are_refused():
    with pytest.raises(ShapeError, match="modes \\(2, 1\\) need a grid of at least \\(5, 3\\) points, got \\(4, 8\\)"):
        make("fno2")(torch.zeros(1, 2, 4, 8), torch.zeros(1))


def test_the_recomputing_norm_is_the_same_network_and_keeps_less():
    """With the kernel switched on, values and gradients agree to rounding, and a step holds less for its derivative."""
    from invdiff.core.storage import measure
    from invdiff.kernels import using

    net = UNet(1, 1, widths=[32], blocks=2, embedding=8)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.05
    x, noise = torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16), torch.tensor([0.1, -0.3])

    def results():
        out = net(x, noise)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(net.parameters()))]

    def held():
        return measure(lambda: lambda: net(x, noise).square().sum(), fake=False).held

    plain, kept = results(), held()
    with using("group_norm"):
        for found, wanted in zip(results(), plain, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
        assert held() < 0.75 * kept
