"""Weights from files: what is read, what is refused and how; the DnCNN family; and the networks of the example."""

import argparse
import hashlib
import importlib.util
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from invdiff.core.errors import ConfigError, DataError
from invdiff.priors.cnn import DnCNN
from invdiff.priors.sources import load_into, read_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[k].dtype is v.dtype and torch.equal(found[k], v) for k, v in expected.items())


def one_line(reason, *args, error=DataError, **options):
    with pytest.raises(error, match=reason) as caught:
        read_weights(*args, **options)
    assert "\n" not in str(caught.value) and str(args[0]) in str(caught.value)


# files


def test_safetensors_with_their_facts(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(TENSORS, path, metadata={"licence": "MIT"})
    tensors, facts = read_weights(path)
    same(tensors, TENSORS)
    assert facts == {"licence": "MIT"}
    one_line("leave key out", path, key="model", error=ConfigError)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_files_of_torch(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    torch.save(TENSORS, path)
    same(read_weights(path)[0], TENSORS)
    torch.save({"state_dict": TENSORS, "epoch": 7}, path)
    tensors, facts = read_weights(path, key="state_dict")
    same(tensors, TENSORS)
    assert facts == {}
    one_line(r"found state_dict \(dict\), epoch \(int\): give the right key=", path)
    one_line(r"no entry 'model', it holds state_dict \(dict\), epoch \(int\)", path, key="model")
    one_line(r"expected entry 'epoch' of .* to hold named tensors only, found a int", path, key="epoch")


def test_weights_of_a_module_are_plain_tensors(tmp_path):
    net = nn.Linear(2, 2)
    torch.save(dict(net.named_parameters()), tmp_path / "net.pt")
    assert not any(t.requires_grad for t in read_weights(tmp_path / "net.pt")[0].values())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_hash_is_checked_before_anything_is_read(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    save_file(TENSORS, path) if suffix == "safetensors" else torch.save(TENSORS, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    same(read_weights(path, sha256=digest.upper())[0], TENSORS)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    one_line(f"truncated or altered: expected sha256 {digest}, found ", path, sha256=digest)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_files_are_refused(tmp_path, suffix, keep):
    path = tmp_path / f"net.{suffix}"
    save_file(TENSORS, path) if suffix == "safetensors" else torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:keep])
    one_line("truncated or no", path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_missing_and_foreign_files(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    one_line("No such file", path)
    path.write_text("<!doctype html>")
    one_line("truncated or no", path)
    path.unlink()
    path.mkdir()
    one_line("Is a directory", path)
    one_line("expected a file of .safetensors, .pt", tmp_path / "net.pkl", error=ConfigError)


class Runs:
    """Unpickling makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickles_that_run_code_are_refused_and_do_not(tmp_path):
    path, made = tmp_path / "net.pt", tmp_path / "made"
    torch.save({"state_dict": TENSORS, "loader": Runs(str(made))}, path)
    one_line("holds a pickled posix.mkdir|holds a pickled nt.mkdir", path, key="state_dict")
    assert not made.exists()
    pickle.loads(pickle.dumps(Runs(str(made))))  # it would have
    assert made.exists()
    torch.save({"state_dict": TENSORS, "args": argparse.Namespace(lr=1e-4)}, path)
    one_line("holds a pickled argparse.Namespace", path, key="state_dict")


# into networks


def test_names_are_stripped_renamed_and_left_out():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    tensors = {f"module.{k}": v for k, v in TENSORS.items()} | {"module.steps": torch.tensor(7)}
    out = load_into(net, tensors, rename=lambda name: None if name == "steps" else name.replace("a.", "0."))
    assert out is net
    assert torch.equal(net[0].weight, TENSORS["a.weight"]) and torch.equal(net[0].bias, torch.ones(2))
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_a_prefix_that_only_some_names_have_is_theirs():
    net = nn.ModuleDict({"module": nn.Linear(3, 2), "other": nn.Linear(3, 2)})
    load_into(net, nn.ModuleDict({"module": nn.Linear(3, 2), "other": nn.Linear(3, 2)}).state_dict())
    wrapped = nn.DataParallel(net)
    load_into(net, wrapped.state_dict())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"0.bias": None}, r"1 missing \(0.bias\)$"),
        ({"1.bias": torch.ones(2)}, r"Sequential: 1 unexpected \(1.bias\)$"),
        ({"0.weight": torch.ones(3, 2)}, r"1 of another shape \(0.weight \(3, 2\) for \(2, 3\)\)$"),
        ({f"x{k}": torch.ones(1) for k in range(6)}, r"6 unexpected \(x0, x1, x2, x3 and 2 more\)$"),
        ({"0.bias": None, "b": torch.ones(2)}, r"1 missing \(0.bias\); 1 unexpected \(b\)$"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, reason):
    net = nn.Sequential(nn.Linear(3, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    tensors = {k: v for k, v in ({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)} | change).items() if v is not None}
    with pytest.raises(DataError, match=reason):
        load_into(net, tensors)
    same(net.state_dict(), before)


def test_two_tensors_with_one_name_are_refused():
    with pytest.raises(DataError, match=r"b.weight and another tensor of the file are both renamed to weight"):
        load_into(nn.Linear(3, 2), {"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, rename=lambda name: name[2:])


# the DnCNN family


def randomised(net):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for t in net.state_dict().values():
            t.copy_(torch.rand(t.shape, generator=generator, dtype=torch.float64) + 0.1)
    return net.double()


@pytest.mark.parametrize("norm", [None, "variance", "deviation"])
@pytest.mark.parametrize("first_linear", [True, False])
def test_the_chain_is_what_the_equations_say(norm, first_linear):
    options = {"width": 2, "kernels": (3, 1, 5, 3), "bias": norm is None, "norm": norm, "first_linear": first_linear}
    net, x = randomised(DnCNN(2, 1, **options)), torch.linspace(-3, 2, 60, dtype=torch.float64).reshape(1, 2, 6, 5)
    state, h = net.state_dict(), x
    for k, size in enumerate(options["kernels"]):
        h = F.conv2d(h, state[f"convs.{k}.weight"], state.get(f"convs.{k}.bias"), padding=size // 2)
        if norm and k in (1, 2):
            running = state[f"norms.{k - 1}.running"].flatten()
            deviation = running.sqrt() + 1e-5 if norm == "variance" else running
            h = h * (state[f"norms.{k - 1}.weight"].flatten() / deviation)[:, None, None]
        if k in (1, 2) or (k == 0 and not first_linear):
            h = torch.maximum(h, torch.zeros_like(h))
    torch.testing.assert_close(net(x), h, rtol=1e-12, atol=1e-12)
    shape = {"variance": (2,), "deviation": (1, 2, 1, 1)}
    assert norm is None or state["norms.0.running"].shape == state["norms.1.weight"].shape == shape[norm]


def test_without_biases_it_is_homogeneous():
    x = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    free, biased = (DnCNN(width=4, kernels=(3,) * 4, bias=bias).double() for bias in (False, True))
    torch.testing.assert_close(free(7 * x), 7 * free(x), rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        biased.convs[-1].bias.fill_(1.0)
    assert (biased(7 * x) - 7 * biased(x)).abs().max() > 1


def test_building_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = DnCNN(width=4), DnCNN(width=4), DnCNN(width=4, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.convs[3].weight, again.convs[3].weight)
    assert not torch.equal(first.convs[3].weight, other.convs[3].weight)


@pytest.mark.parametrize("wrong", [{"kernels": (3,)}, {"kernels": (3, 4)}, {"width": 0}, {"norm": "layer"}])
def test_impossible_chains_are_refused(wrong):
    with pytest.raises(ConfigError, match="DnCNN: expected"):
        DnCNN(**wrong)


# the example, on the networks that it was written for


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "foreign_networks.py"
    if not path.is_file():
        pytest.skip("the examples are not beside the tests")
    spec = importlib.util.spec_from_file_location("foreign_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data():
    """The folder INVDIFF_DATA/eval."""
    folder = Path(os.environ.get("INVDIFF_DATA", "")) / "eval"
    if "INVDIFF_DATA" not in os.environ or not (folder / "weights").is_dir():
        pytest.skip("INVDIFF_DATA names no folder with eval/weights")
    return folder


@pytest.mark.parametrize(
    ("table", "rows", "tolerance"),
    [
        pytest.param("photographs", ["natural_gray/bsd68/test031"], 0.006, marks=pytest.mark.slow),
        ("portrait", [25, 200], 0.006),
        ("numbers", [50, 800], 6e-5),
    ],
)
def test_published_networks_reach_their_numbers(example, data, table, rows, tolerance):
    """To half a unit of the last place that is stated, and a little for another machine's rounding."""
    known = {"photographs": example.PHOTOGRAPHS, "portrait": example.FACES, "numbers": example.DIGITS}[table]
    found = list(getattr(example, table)(data, {row: known[row] for row in rows}))
    assert len(found) == len(rows)
    for _, ours, stated in found:
        assert ours == pytest.approx(list(stated), abs=tolerance)


def test_the_example_needs_its_data(example, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["foreign_networks.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="foreign_networks: no networks in") as caught:
        example.main()
    assert "\n" not in str(caught.value)
